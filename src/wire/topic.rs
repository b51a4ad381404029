//! Topics: which exist, what their parts may be, and where an answer may go.
//!
//! ```text
//! orinoco/v1/press-7/req/plc4/chat/01J9Z3     a request of user plc4 to node press-7
//! orinoco/v1/press-7/req/plc4/cancel/01J9Z3   ... called off
//! orinoco/v1/press-7/req/plc4/forget/kitchen  a conversation that the node keeps, forgotten
//! orinoco/v1/resp/plc4/01J9Z3                 its answer
//! orinoco/v1/press-7/status                   retained, also the last will
//! ```
//!
//! The user stands in the topic, where the broker's access rules hold it to the credentials, so that
//! no payload is ever asked who sent it. A topic is bounded before it is looked at: length, wildcards,
//! control characters, then the exact number of levels, then each level.

use std::{borrow::Borrow, fmt, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod pool;
#[cfg(test)]
mod tests;

pub use pool::POOLS_MAX;

/// Longest topic that is looked at, in bytes. The longest valid one is far shorter.
pub const TOPIC_BYTES_MAX: usize = 512;
/// Longest Response Topic that is honoured, in bytes.
pub const RESPONSE_TOPIC_BYTES_MAX: usize = 256;
/// Longest name, id or root, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The shape of a [`Name`], as a regular expression.
pub const NAME_PATTERN: &str = "^[A-Za-z0-9_.-]{1,64}$";
/// The shape of a [`RequestId`], as a regular expression.
pub const ID_PATTERN: &str = "^[A-Za-z0-9_-]{1,64}$";
/// The user of clients without credentials on loopback. Reserved, yet valid in topics.
pub const LOCAL_USER: &str = "local";
/// Words with a meaning in topics; no user, node or pool may have them as a name.
pub const RESERVED: [&str; 15] = [
    "req", "resp", "pool", "fleet", "tele", "evt", "cmd", "set", "status", "state", "info",
    "models", "ota", "daemon", LOCAL_USER,
];

/// Why a text is no name, request id or root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or too long.
    #[error("{what} of {found} bytes, 1 to {NAME_BYTES_MAX} are allowed")]
    Length {
        /// `name`, `request id` or `root`.
        what: &'static str,
        /// Bytes found.
        found: usize,
    },
    /// A character outside the allowed ones.
    #[error("{what} has {found:?} at byte {at}, allowed are {allowed}")]
    Character {
        /// `name`, `request id` or `root`.
        what: &'static str,
        /// The first wrong character.
        found: char,
        /// Its position in bytes.
        at: usize,
        /// The allowed ones, as in a regular expression.
        allowed: &'static str,
    },
    /// A word with a meaning of its own in topics.
    #[error("name {found:?} is reserved, choose another")]
    Reserved {
        /// The word.
        found: String,
    },
    /// A root with an empty level.
    #[error("root {found:?} has an empty level, expected names joined by single slashes")]
    EmptyLevel {
        /// The root.
        found: String,
    },
}

fn check(
    what: &'static str,
    text: &str,
    allowed: &'static str,
    is_allowed: fn(char) -> bool,
) -> Result<(), NameError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(NameError::Length {
            what,
            found: text.len(),
        });
    }
    match text.char_indices().find(|&(_, c)| !is_allowed(c)) {
        Some((at, found)) => Err(NameError::Character {
            what,
            found,
            at,
            allowed,
        }),
        None => Ok(()),
    }
}

/// Name of a user, node or pool: `[A-Za-z0-9_.-]{1,64}`.
///
/// Only the shape is checked here, since topics may carry the user `local`; who creates a user, node
/// or pool also asks [`Name::is_reserved`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// Checks the shape.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check("name", text, "[A-Za-z0-9_.-]", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
        })?;
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of [`RESERVED`].
    pub fn is_reserved(&self) -> bool {
        RESERVED.contains(&self.0.as_str())
    }
}

/// Id of a request, chosen by the requester: `[A-Za-z0-9_-]{1,64}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

impl RequestId {
    /// Checks the shape.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check("request id", text, "[A-Za-z0-9_-]", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
        })?;
        Ok(Self(text.to_owned()))
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_traits {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}
text_traits!(Name, RequestId);

/// What a request asks for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// Messages in, an assistant's answer out.
    Chat,
    /// A text in, its continuation out.
    Complete,
    /// Plain text in, one message of bare text out.
    Text,
    /// Plain text in, bare pieces of text out.
    TextStream,
    /// A text or messages in, token ids out.
    Tokenize,
    /// A text in, a vector out.
    Embed,
}

impl Op {
    /// All of them, in the order in which errors name them.
    pub const ALL: [Self; 6] = [
        Self::Chat,
        Self::Complete,
        Self::Text,
        Self::TextStream,
        Self::Tokenize,
        Self::Embed,
    ];

    /// Its level in a topic.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Complete => "complete",
            Self::Text => "text",
            Self::TextStream => "text-stream",
            Self::Tokenize => "tokenize",
            Self::Embed => "embed",
        }
    }

    /// The op of a topic level.
    pub fn from_level(level: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.as_str() == level)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a message on one of our subscriptions wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A prompt. An op that this version does not know is kept, since it still gets an answer.
    Request {
        /// Who asks, as the broker let it through.
        user: Name,
        /// What for, or the unknown level.
        op: Result<Op, String>,
        /// Its id.
        id: RequestId,
    },
    /// A prompt called off.
    Cancel {
        /// Whose.
        user: Name,
        /// Which.
        id: RequestId,
    },
    /// A conversation that the node keeps, forgotten.
    Forget {
        /// Whose.
        user: Name,
        /// Which.
        session: Name,
    },
}

/// What an operator's topic asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ordered {
    /// `{r}/v1/{n}/set/{key}`.
    Set {
        /// What to set.
        key: String,
    },
    /// `{r}/v1/fleet/{group}/desired`.
    Desired,
    /// `{r}/v1/{n}/cmd/{op}/{cid}`.
    Command {
        /// What to do.
        op: String,
        /// Its name, chosen by who asks.
        ticket: String,
    },
}

/// Why a topic is none of ours. Nobody can be answered then: the sender is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Longer than anything we would look at.
    #[error("topic of {found} bytes, at most {TOPIC_BYTES_MAX} are allowed")]
    TooLong {
        /// Bytes found.
        found: usize,
    },
    /// A wildcard or a control character, NUL among them.
    #[error("topic has {found:?} at byte {at}, wildcards and control characters are not allowed")]
    Character {
        /// The first such character.
        found: char,
        /// Its position in bytes.
        at: usize,
    },
    /// Another prefix, or another number of levels.
    #[error("topic {found:?} is no {expected}")]
    Shape {
        /// The topic, cut to a loggable length.
        found: String,
        /// The pattern.
        expected: String,
    },
    /// The user's level is no name.
    #[error("user of topic: {0}")]
    User(NameError),
    /// The id's level is no request id.
    #[error("id of topic: {0}")]
    Id(NameError),
    /// The session's level is no name.
    #[error("session of topic: {0}")]
    Session(NameError),
}

/// The topics of one node under one root, and of the pools that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    root: String,
    node: Name,
    pools: Vec<Name>,
    /// Whose wishes about releases are heard.
    fleet: Option<Name>,
}

impl Names {
    /// `root` is one or more names joined by `/`, at most 64 bytes; `node` may not be reserved.
    pub fn new(root: &str, node: Name) -> Result<Self, NameError> {
        check("root", root, "[A-Za-z0-9_.-] and /", |c| {
            c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/')
        })?;
        if root.split('/').any(str::is_empty) {
            return Err(NameError::EmptyLevel {
                found: root.to_owned(),
            });
        }
        if node.is_reserved() {
            return Err(NameError::Reserved { found: node.0 });
        }
        Ok(Self {
            root: root.to_owned(),
            node,
            pools: Vec::new(),
            fleet: None,
        })
    }

    /// These, of a node that hears the wishes of a group about releases.
    #[must_use]
    pub fn with_fleet(mut self, group: Name) -> Self {
        self.fleet = Some(group);
        self
    }

    /// `{r}/v1/fleet/{group}/desired`, retained; `None` for a node without updates.
    pub fn desired(&self) -> Option<String> {
        let group = self.fleet.as_ref()?;
        Some(format!("{}/v1/fleet/{group}/desired", self.root))
    }

    /// This node.
    pub fn node(&self) -> &Name {
        &self.node
    }

    /// The root.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Reads the topic of a received message: `{r}/v1/{n}/req/{u}/{op}/{id}`, or the same of a pool,
    /// `{r}/v1/pool/{p}/req/{u}/{op}/{id}`.
    ///
    /// Reserved users are refused, except [`LOCAL_USER`].
    pub fn parse(&self, topic: &str) -> Result<Incoming, TopicError> {
        if topic.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong { found: topic.len() });
        }
        if let Some((at, found)) = topic
            .char_indices()
            .find(|&(_, c)| matches!(c, '+' | '#') || c.is_control())
        {
            return Err(TopicError::Character { found, at });
        }
        let [user, op, id] = self.levels(topic).ok_or_else(|| TopicError::Shape {
            found: topic.chars().take(128).collect(),
            expected: format!("{}/v1/{}/req/USER/OP/ID", self.root, self.node),
        })?;
        let user = Name::new(user).map_err(TopicError::User)?;
        if user.is_reserved() && user.as_str() != LOCAL_USER {
            return Err(TopicError::User(NameError::Reserved { found: user.0 }));
        }
        if op == "forget" {
            let session = Name::new(id).map_err(TopicError::Session)?;
            return Ok(Incoming::Forget { user, session });
        }
        let id = RequestId::new(id).map_err(TopicError::Id)?;
        Ok(match op {
            "cancel" => Incoming::Cancel { user, id },
            _ => Incoming::Request {
                user,
                op: Op::from_level(op).ok_or_else(|| op.to_owned()),
                id,
            },
        })
    }

    /// Reads an operator's topic; `None` for every other, or one whose levels are no names.
    pub fn parse_order(&self, topic: &str) -> Option<Ordered> {
        if self.fleet.is_some() && self.desired().as_deref() == Some(topic) {
            return Some(Ordered::Desired);
        }
        let below = topic
            .strip_prefix(self.root.as_str())?
            .strip_prefix("/v1/")?
            .strip_prefix(self.node.as_str())?;
        let name = |level: &str| Some(RequestId::new(level).ok()?.as_str().to_owned());
        if let Some(key) = below.strip_prefix("/set/") {
            return Some(Ordered::Set { key: name(key)? });
        }
        let (op, ticket) = below.strip_prefix("/cmd/")?.split_once('/')?;
        Some(Ordered::Command {
            op: name(op)?,
            ticket: name(ticket)?,
        })
    }

    /// `{r}/v1/{n}/set/{key}`.
    pub fn set(&self, key: &str) -> String {
        self.of_node(&format!("set/{key}"))
    }

    /// `{r}/v1/{n}/cmd/{op}/{cid}`, retained.
    pub fn command(&self, op: &str, ticket: &str) -> String {
        self.of_node(&format!("cmd/{op}/{ticket}"))
    }

    /// User, op and id, when prefix and number of levels are right and the op is not empty.
    fn levels<'a>(&self, topic: &'a str) -> Option<[&'a str; 3]> {
        let own = || {
            topic
                .strip_prefix(self.root.as_str())?
                .strip_prefix("/v1/")?
                .strip_prefix(self.node.as_str())?
                .strip_prefix("/req/")
        };
        let rest = own().or_else(|| self.below_pool(topic))?;
        let mut levels = rest.split('/');
        let found = [levels.next()?, levels.next()?, levels.next()?];
        (levels.next().is_none() && !found[1].is_empty()).then_some(found)
    }

    /// The filters to subscribe to: requests, and the orders of operators.
    pub fn subscriptions(&self) -> Vec<String> {
        let own = ["req/#", "set/+", "cmd/+/+"].map(|filter| self.of_node(filter));
        own.into_iter().chain(self.desired()).collect()
    }

    /// `{r}/v1/resp/{u}/{id}`: where the answer goes.
    pub fn resp(&self, user: &Name, id: &RequestId) -> String {
        format!("{}/v1/resp/{user}/{id}", self.root)
    }

    /// `{r}/v1/resp/{u}/#`: all answers to a user, whatever Response Topic was asked for.
    pub fn resp_filter(&self, user: &Name) -> String {
        format!("{}/v1/resp/{user}/#", self.root)
    }

    /// Whether a Response Topic may be answered on: strictly inside `{r}/v1/resp/{u}/`, no wildcard, no
    /// control character, no empty level, at most [`RESPONSE_TOPIC_BYTES_MAX`].
    ///
    /// The daemon may write below every user's `resp`; without this rule a requester could make it
    /// write into another's.
    pub fn resp_allowed(&self, user: &Name, topic: &str) -> bool {
        topic.len() <= RESPONSE_TOPIC_BYTES_MAX
            && topic
                .strip_prefix(self.root.as_str())
                .and_then(|rest| rest.strip_prefix("/v1/resp/"))
                .and_then(|rest| rest.strip_prefix(user.as_str()))
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| {
                    rest.split('/').all(|level| !level.is_empty())
                        && !rest.contains(|c: char| matches!(c, '+' | '#') || c.is_control())
                })
    }

    /// `{r}/v1/{n}/status`, retained, also the last will.
    pub fn status(&self) -> String {
        self.of_node("status")
    }

    /// `{r}/v1/{n}/info`, retained.
    pub fn info(&self) -> String {
        self.of_node("info")
    }

    /// `{r}/v1/{n}/models`, retained.
    pub fn models(&self) -> String {
        self.of_node("models")
    }

    /// `{r}/v1/{n}/state`, retained.
    pub fn state(&self) -> String {
        self.of_node("state")
    }

    /// `{r}/v1/{n}/evt/{kind}`.
    pub fn event(&self, kind: &str) -> String {
        self.of_node(&format!("evt/{kind}"))
    }

    /// `{r}/v1/{n}/ota/state`, retained: how an update goes.
    pub fn ota_state(&self) -> String {
        self.of_node("ota/state")
    }

    /// `{r}/v1/{n}/tele/{kind}`, retained.
    pub fn tele(&self, kind: &str) -> String {
        self.of_node(&format!("tele/{kind}"))
    }

    /// `{r}/v1/{n}/req/{u}/{op}/{id}`: where a client asks.
    pub fn req(&self, user: &Name, op: Op, id: &RequestId) -> String {
        self.of_node(&format!("req/{user}/{op}/{id}"))
    }

    /// `{r}/v1/{n}/req/{u}/cancel/{id}`: where a client calls off.
    pub fn cancel(&self, user: &Name, id: &RequestId) -> String {
        self.of_node(&format!("req/{user}/cancel/{id}"))
    }

    /// `{r}/v1/{n}/req/{u}/forget/{session}`: where a client has a conversation forgotten.
    pub fn forget(&self, user: &Name, session: &Name) -> String {
        self.of_node(&format!("req/{user}/forget/{session}"))
    }

    fn of_node(&self, rest: &str) -> String {
        format!("{}/v1/{}/{rest}", self.root, self.node)
    }
}
