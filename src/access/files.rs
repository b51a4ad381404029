//! The rules as files for brokers that are not ours.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Right, Role, Rule, Rules};

/// `acl_file` of Mosquitto, 2.0 or newer.
///
/// Mosquitto knows users and no roles: its patterns are for every account and give what a device may do;
/// operators and monitors among `users` get a part of their own. Devices need not be listed.
pub fn mosquitto_acl(rules: &Rules, daemon: &str, users: &BTreeMap<String, Role>) -> String {
    let mut text = format!(
        "\
# Who may do what on Orinoco's topics, protocol v1, root \"{}\".
# Written by `orinoco acl --format mosquitto`. After a change of root, users or roles, write it anew.
#
# A user's name is part of the topic, and %u is the name that the broker has checked: no device can ask, or
# read an answer, in another's name. Mosquitto grants every SUBSCRIBE and filters what it delivers. It
# handles what is denied first, and says at its start that some patterns have no %u, which is meant.

# The daemon of every node. No user, fleet or pool has a name that stands for something else in topics: for
# others, such answers would be telemetry, and such requests orders.
user {daemon}
",
        rules.root(),
    );
    for filter in rules.denied() {
        line(&mut text, "topic deny", filter);
    }
    topics(&mut text, rules.of_daemon());
    for (name, role) in users {
        let extra = match role {
            Role::Device => continue,
            Role::Operator => "an operator: orders to nodes and fleets, Home Assistant's topics",
            Role::Monitor => {
                "a monitor: sees what nodes tell and what they were told, asks nothing"
            }
        };
        let _ = write!(text, "\n# {name}, {extra}.\nuser {name}\n");
        let of_all: Vec<&Rule> = rules.of(Role::Device).collect();
        let own: Vec<&Rule> = rules.of(*role).collect();
        for filter in rules.denied() {
            line(&mut text, "topic deny", filter);
        }
        for lacking in of_all.iter().filter(|rule| !own.contains(rule)) {
            line(&mut text, "topic deny", &lacking.filter.replace("%u", name));
        }
        topics(
            &mut text,
            own.into_iter().filter(|rule| !of_all.contains(rule)),
        );
    }
    text.push_str(
        "\n# Everybody: ask in the own name, read the own answers, see what nodes tell of themselves.\n",
    );
    for filter in rules.denied() {
        line(&mut text, "pattern deny", filter);
    }
    for (filter, right) in merged(rules.of(Role::Device)) {
        line(&mut text, &format!("pattern {right}"), filter);
    }
    text
}

/// ACL file of the broker in the crate mqtt5, also known as `mqttv5 broker --acl-file`.
///
/// What is not assigned a role may do nothing, so that every account has to be listed. Unlike Mosquitto it
/// judges a SUBSCRIBE by its filter, and a share name counts as part of it.
pub fn mqtt5_acl(rules: &Rules, daemon: &str, users: &BTreeMap<String, Role>) -> String {
    let mut text = format!(
        "\
# Who may do what on Orinoco's topics, protocol v1, root \"{}\".
# Written by `orinoco acl --format mqtt5`. After a change of root, users or roles, write it anew: an account
# without an \"assign\" line may do nothing.
",
        rules.root(),
    );
    let mut role = |name: &str, own: Vec<&Rule>, shared: &[String]| {
        text.push('\n');
        for filter in rules.denied() {
            line(
                &mut text,
                &format!("role {name} topic"),
                &format!("{filter} permission deny"),
            );
        }
        for (filter, right) in merged(own.into_iter()) {
            line(
                &mut text,
                &format!("role {name} topic"),
                &format!("{filter} permission {right}"),
            );
        }
        for filter in shared {
            line(
                &mut text,
                &format!("role {name} topic"),
                &format!("{filter} permission read"),
            );
        }
    };
    // In a pool, nodes share a subscription.
    let shared = format!("$share/+/{}/v1/pool/+/req/#", rules.root());
    role("daemon", rules.of_daemon().collect(), &[shared]);
    for of in Role::ALL {
        role(of.as_str(), rules.of(of).collect(), &[]);
    }
    let _ = writeln!(text, "\nassign {daemon} daemon");
    for (name, role) in users {
        let _ = writeln!(text, "assign {name} {role}");
    }
    text
}

/// What [`mosquitto_conf`] takes from the daemon's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MosquittoConf<'a> {
    /// Port to listen on, on loopback.
    pub port: u16,
    /// The daemon's account.
    pub daemon: &'a str,
    /// Largest packet that the daemon takes, bytes.
    pub packet_bytes_max: u32,
    /// QoS 1 messages that the daemon takes at a time.
    pub inflight_max: u16,
    /// Messages kept for a client that is away.
    pub queue_messages_max: usize,
    /// Bytes kept for a client that is away.
    pub queue_bytes_max: usize,
}

/// A file for `/etc/mosquitto/conf.d/` that goes with [`mosquitto_acl`].
pub fn mosquitto_conf(conf: &MosquittoConf<'_>) -> String {
    let MosquittoConf {
        port,
        daemon,
        packet_bytes_max,
        inflight_max,
        queue_messages_max,
        queue_bytes_max,
    } = conf;
    format!(
        "\
# Mosquitto beside Orinoco on one board. Written by `orinoco acl --format mosquitto-conf`; copy it to
# /etc/mosquitto/conf.d/, and what `orinoco acl --format mosquitto` writes to /etc/mosquitto/orinoco.acl.
#
#   mosquitto_passwd -c /etc/mosquitto/orinoco.passwd {daemon}      # the daemon's own account
#   mosquitto_passwd    /etc/mosquitto/orinoco.passwd plc-3       # one for each device
#
# Names are 1 to 64 of A-Z a-z 0-9 _ . -, and none of those that stand for something else in topics:
# `orinoco user add` refuses those, mosquitto_passwd does not, and the access rules make them useless.
#
# Then tell the daemon, in /etc/orinoco/config.d/broker.toml:
#
#   [broker]
#   mode = \"external\"
#   [mqtt]
#   username = \"{daemon}\"
#   password_file = \"/etc/orinoco/mqtt.password\"      # mode 0600, or 0640 when root owns it

# Devices on the site's network need a listener on its address, with TLS. With the last two lines each
# client, the daemon too (\"{daemon}\"), is who its certificate says, and needs no password.
#
#   listener 8883 192.0.2.7
#   certfile /etc/mosquitto/certs/broker.pem
#   keyfile /etc/mosquitto/certs/broker.key
#   cafile /etc/mosquitto/certs/ca.pem
#   require_certificate true
#   use_identity_as_username true
listener {port} 127.0.0.1

# Who a client is decides which topics it has, so nobody is anonymous.
allow_anonymous false
password_file /etc/mosquitto/orinoco.passwd
acl_file /etc/mosquitto/orinoco.acl

# Sessions and retained state survive a power cut; at most a minute of them is lost, and asked again.
persistence true
autosave_interval 60

# A token must not wait for the one after it.
set_tcp_nodelay true

# The largest request that the daemon takes, and its topic and properties (mqtt.packet_bytes_max).
max_packet_size {packet_bytes_max}

# What the daemon may have under way at a time, and what is kept for a client that is away. Sessions of
# clients that do not come back end.
max_inflight_messages {inflight_max}
max_queued_messages {queue_messages_max}
max_queued_bytes {queue_bytes_max}
persistent_client_expiration 2d
"
    )
}

fn topics<'a>(text: &mut String, rules: impl Iterator<Item = &'a Rule>) {
    for (filter, right) in merged(rules) {
        line(text, &format!("topic {right}"), filter);
    }
}

fn line(text: &mut String, words: &str, filter: &str) {
    text.push_str(words);
    text.push(' ');
    text.push_str(filter);
    text.push('\n');
}

/// Filters in their order, each with its rights in a word: "read", "write" or "readwrite".
fn merged<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<(&'a str, &'static str)> {
    let mut merged: Vec<(&str, &'static str)> = Vec::new();
    for rule in rules {
        let word = match rule.right {
            Right::Read => "read",
            Right::Write => "write",
        };
        match merged.iter_mut().find(|(filter, _)| *filter == rule.filter) {
            Some((_, known)) if *known == word => {}
            Some((_, known)) => *known = "readwrite",
            None => merged.push((&rule.filter, word)),
        }
    }
    merged
}
