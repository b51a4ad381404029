//! Who may do what on which topics: one list of rules, for every broker.
//!
//! A user writes requests below its own name and reads the answers below its own name, so the name in a
//! topic is the authenticated one, and no payload is ever asked who sent it. What else a user may do, its
//! [`Role`] says:
//!
//! | | ask, and read its answers | what nodes tell | orders (`cmd`, `set`, `fleet`) |
//! |---|---|---|---|
//! | device | yes | reads | – |
//! | monitor | – | reads | reads |
//! | operator | yes | reads | reads, writes |
//! | the daemon | reads requests, writes answers | writes | reads, writes |
//!
//! Owns the list and what it means; the embedded broker asks it ([`Rules::may_write`] and the like), and
//! [`mosquitto_acl`] and [`mqtt5_acl`] write the same list for other brokers. Pure: it knows nothing of
//! connections, passwords or files.
//!
//! A `+` in a rule stands for a node, and could stand for `resp`, `pool` or `fleet` as well: then
//! `…/+/tele/#` would be the answers to a user named `tele`, and `…/+/req/ann/#` answers to one named
//! `req`. Nobody can have such a name ([`Name::is_reserved`]); on a broker whose accounts somebody else
//! makes, the rules also deny what such a user would be answered on, to everybody. So they do with fleets
//! and pools of such names, where a device's own requests would be orders.

mod files;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wire::topic::{LOCAL_USER, RESERVED};

pub use files::{MosquittoConf, mosquitto_acl, mosquitto_conf, mqtt5_acl};

/// The account of the daemon.
pub const DAEMON: &str = "daemon";

/// Where Home Assistant looks for devices, and tells that it has started.
const HOME_ASSISTANT: &str = "homeassistant";

/// What a user is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A machine, or a program, that asks.
    #[default]
    Device,
    /// A display: it sees what nodes tell, and asks nothing.
    Monitor,
    /// A person or program that also gives orders to nodes; Home Assistant is one.
    Operator,
}

impl Role {
    /// All of them, in the order of the configuration.
    pub const ALL: [Self; 3] = [Self::Device, Self::Monitor, Self::Operator];

    /// Its name in configuration and accounts.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Operator => "operator",
            Self::Monitor => "monitor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Not one of [`Role::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no role {found:?}: expected \"device\", \"monitor\" or \"operator\"")]
pub struct UnknownRole {
    /// What was given.
    pub found: String,
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = || UnknownRole {
            found: text.to_owned(),
        };
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(found)
    }
}

/// Who wants something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who<'a> {
    /// A node's daemon.
    Daemon,
    /// An account.
    User {
        /// Its name; the rules put it where they say `%u`.
        name: &'a str,
        /// What it is for.
        role: Role,
    },
}

impl Who<'_> {
    fn name(&self) -> &str {
        match self {
            Who::Daemon => DAEMON,
            Who::User { name, .. } => name,
        }
    }
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Subscribing, and receiving.
    Read,
    /// Publishing.
    Write,
}

/// One rule: whoever it is given to has this right on these topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// To read or to write.
    pub right: Right,
    /// A topic filter; the level `%u` stands for the user's name.
    pub filter: String,
    /// Whether a message on it may be retained. Only for [`Right::Write`].
    pub retain: bool,
}

/// All rules below one root.
#[derive(Debug, Clone)]
pub struct Rules {
    root: String,
    daemon: Vec<Rule>,
    asks: Vec<Rule>,
    sees: Vec<Rule>,
    oversees: Vec<Rule>,
    orders: Vec<Rule>,
    /// What nobody may read or write, whatever else is allowed; see the module's words on `+`.
    denied: Vec<String>,
}

impl Rules {
    /// The rules for topics below `root`, as in `wire::topic::Names`.
    pub fn new(root: &str) -> Self {
        let below = |filter: &str| format!("{root}/v1/{filter}");
        let read = |filter: &str| Rule {
            right: Right::Read,
            filter: below(filter),
            retain: false,
        };
        let write = |filter: &str| Rule {
            right: Right::Write,
            filter: below(filter),
            retain: false,
        };
        let retain = |filter: String| Rule {
            right: Right::Write,
            filter,
            retain: true,
        };
        let home_assistant = |filter: &str| Rule {
            right: Right::Read,
            filter: format!("{HOME_ASSISTANT}/{filter}"),
            retain: false,
        };
        Self {
            root: root.to_owned(),
            daemon: vec![
                read("#"),
                retain(below("#")),
                // Discovery, and the sign that it has to be said again.
                retain(format!("{HOME_ASSISTANT}/device/+/config")),
                home_assistant("status"),
            ],
            asks: vec![
                write("+/req/%u/#"),
                write("pool/+/req/%u/#"),
                read("resp/%u/#"),
            ],
            sees: [
                "+/status", "+/info", "+/models", "+/state", "+/tele/#", "+/evt/#",
            ]
            .map(read)
            .to_vec(),
            oversees: ["+/ota/#", "+/cmd/#", "fleet/#"].map(read).to_vec(),
            orders: vec![
                retain(below("+/cmd/#")),
                // Never retained: it would be done again at each start of the node.
                write("+/set/#"),
                retain(below("fleet/#")),
                home_assistant("#"),
                retain(format!("{HOME_ASSISTANT}/status")),
            ],
            denied: RESERVED
                .iter()
                .filter(|name| **name != LOCAL_USER)
                .map(|name| below(&format!("resp/{name}/#")))
                .chain(["req", "tele", "evt"].map(|name| below(&format!("fleet/{name}/#"))))
                .chain(
                    ["req", "tele", "evt", "cmd", "ota"]
                        .map(|name| below(&format!("pool/{name}/#"))),
                )
                .collect(),
        }
    }

    /// First levels of all topics.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// What the daemon may do.
    pub fn of_daemon(&self) -> impl Iterator<Item = &Rule> {
        self.daemon.iter()
    }

    /// What users of a role may do.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Rule> {
        let none: &[Rule] = &[];
        let [asks, oversees, orders]: [&[Rule]; 3] = match role {
            Role::Device => [&self.asks, none, none],
            Role::Monitor => [none, &self.oversees, none],
            Role::Operator => [&self.asks, &self.oversees, &self.orders],
        };
        asks.iter().chain(&self.sees).chain(oversees).chain(orders)
    }

    /// What nobody may touch, the daemon neither: topics of users, fleets and pools with reserved names.
    pub fn denied(&self) -> impl Iterator<Item = &str> {
        self.denied.iter().map(String::as_str)
    }

    /// Whether somebody may publish to a topic.
    pub fn may_write(&self, who: Who<'_>, topic: &str) -> bool {
        !self.is_denied(topic) && self.allows(who, Right::Write, topic)
    }

    /// Whether somebody may leave a message on a topic for those who come later.
    pub fn may_retain(&self, who: Who<'_>, topic: &str) -> bool {
        !self.is_denied(topic)
            && self
                .rules(who)
                .any(|rule| rule.retain && covers(&rule.filter, who.name(), topic))
    }

    /// Whether somebody may subscribe to a filter: every topic that it matches must be allowed.
    pub fn may_read(&self, who: Who<'_>, filter: &str) -> bool {
        let filter = match (who, filter.strip_prefix("$share/")) {
            // A share name is one level (MQTT 5, 4.8.2).
            (Who::Daemon, Some(shared)) => shared.split_once('/').map_or("", |(_, filter)| filter),
            _ => filter,
        };
        !self.is_denied(filter) && self.allows(who, Right::Read, filter)
    }

    /// Whether a user may ask for an answer on this topic: strictly below its own answers.
    pub fn may_be_answered_on(&self, who: Who<'_>, response_topic: &str) -> bool {
        let own = |name: &str| {
            response_topic
                .strip_prefix(self.root.as_str())
                .and_then(|rest| rest.strip_prefix("/v1/resp/"))
                .and_then(|rest| rest.strip_prefix(name))
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| !rest.is_empty())
        };
        match who {
            Who::Daemon => true,
            Who::User { name, .. } => own(name),
        }
    }

    fn rules(&self, who: Who<'_>) -> Box<dyn Iterator<Item = &Rule> + '_> {
        match who {
            Who::Daemon => Box::new(self.of_daemon()),
            // Accounts come from a checked list; this holds even if one did not.
            Who::User { name, .. } if !is_one_level(name) => Box::new(std::iter::empty()),
            Who::User { role, .. } => Box::new(self.of(role)),
        }
    }

    fn allows(&self, who: Who<'_>, right: Right, filter: &str) -> bool {
        self.rules(who)
            .any(|rule| rule.right == right && covers(&rule.filter, who.name(), filter))
    }

    fn is_denied(&self, filter: &str) -> bool {
        self.denied.iter().any(|denied| covers(denied, "", filter))
    }
}

fn is_one_level(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '+', '#', '$', '%'])
}

/// Whether every topic that `filter` matches is matched by `pattern`, where the level `%u` is `user`. A
/// topic is a filter without wildcards.
fn covers(pattern: &str, user: &str, filter: &str) -> bool {
    let mut pattern = pattern.split('/');
    let mut filter = filter.split('/');
    loop {
        match (pattern.next(), filter.next()) {
            // "a/#" covers "a" and everything below it.
            (Some("#"), _) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some("%u"), level) if level != Some(user) => return false,
            (Some("%u"), Some(_)) => {}
            (Some(expected), Some(level)) if expected == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}
