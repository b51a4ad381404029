//! Who may use which topics: the rules of the embedded broker, and nothing but rules.
//!
//! A user writes requests below its own name and reads the answers below its own name, so the name
//! in a topic is the authenticated one. The daemon reads and writes everything below the root.

/// The user of the daemon.
pub const DAEMON: &str = "daemon";

/// The user of clients without credentials, on loopback, while there are no users.
pub const LOCAL: &str = "local";

/// The rules for one root.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    root: String,
}

impl Rules {
    pub(super) fn new(root: &str) -> Rules {
        Rules {
            root: root.to_owned(),
        }
    }

    /// Whether a user may publish to a topic.
    pub(super) fn may_write(&self, user: &str, topic: &str) -> bool {
        let root = &self.root;
        if user == DAEMON {
            return covers(&format!("{root}/v1/#"), topic) || covers("homeassistant/#", topic);
        }
        if !names_one_level(user) {
            return false;
        }
        [
            format!("{root}/v1/+/req/{user}/#"),
            format!("{root}/v1/pool/+/req/{user}/#"),
        ]
        .iter()
        .any(|pattern| covers(pattern, topic))
    }

    /// Whether a user may subscribe to a filter: every topic that it matches must be allowed.
    pub(super) fn may_read(&self, user: &str, filter: &str) -> bool {
        let root = &self.root;
        if user == DAEMON {
            // A share name is one level (MQTT 5, 4.8.2).
            let filter = match filter.strip_prefix("$share/") {
                Some(shared) => shared.split_once('/').map_or("", |(_, filter)| filter),
                None => filter,
            };
            return covers(&format!("{root}/v1/#"), filter) || covers("homeassistant/#", filter);
        }
        if !names_one_level(user) {
            return false;
        }
        if covers(&format!("{root}/v1/resp/{user}/#"), filter) {
            return true;
        }
        ["status", "info", "models", "state", "tele/#", "evt/#"]
            .iter()
            .any(|tail| covers(&format!("{root}/v1/+/{tail}"), filter))
    }

    /// Whether a user may ask for an answer on this topic: strictly below its own responses.
    pub(super) fn may_be_answered_on(&self, user: &str, response_topic: &str) -> bool {
        let own = format!("{}/v1/resp/{user}/", self.root);
        user == DAEMON
            || response_topic
                .strip_prefix(&own)
                .is_some_and(|rest| !rest.is_empty())
    }
}

/// Users come from a checked file; this holds even if one did not.
fn names_one_level(user: &str) -> bool {
    !user.is_empty() && !user.contains(['/', '+', '#', '$'])
}

/// Whether every topic that `filter` matches is matched by `pattern`. A topic is a filter without
/// wildcards.
fn covers(pattern: &str, filter: &str) -> bool {
    let mut pattern = pattern.split('/');
    let mut filter = filter.split('/');
    loop {
        match (pattern.next(), filter.next()) {
            // "a/#" covers "a" and everything below it.
            (Some("#"), _) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(expected), Some(level)) if expected == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules() -> Rules {
        Rules::new("orinoco")
    }

    #[test]
    fn a_user_writes_requests_under_its_own_name_only() {
        let may = |topic: &str| rules().may_write("ann", topic);
        assert!(may("orinoco/v1/node-1/req/ann/chat/1"));
        assert!(may("orinoco/v1/pool/p/req/ann/chat/1"));
        assert!(may("orinoco/v1/node-1/req/ann/cancel/1"));
        for topic in [
            "orinoco/v1/node-1/req/bob/chat/1",
            "orinoco/v1/node-1/req/annabel/chat/1",
            "orinoco/v1/resp/ann/1",
            "orinoco/v1/node-1/status",
            "orinoco/v1/node-1/cmd/restart/1",
            "orinoco/v1/node-1/set/model",
            "orinoco/v1/fleet/all/desired",
            "orinoco/v2/node-1/req/ann/chat/1",
            "other/v1/node-1/req/ann/chat/1",
            "homeassistant/device/node-1/config",
            "$SYS/broker/uptime",
            "",
        ] {
            assert!(!may(topic), "{topic}");
        }
    }

    #[test]
    fn a_user_reads_its_own_answers_and_what_nodes_say_of_themselves() {
        let may = |filter: &str| rules().may_read("ann", filter);
        for filter in [
            "orinoco/v1/resp/ann/#",
            "orinoco/v1/resp/ann/+",
            "orinoco/v1/resp/ann/1",
            "orinoco/v1/+/status",
            "orinoco/v1/node-1/models",
            "orinoco/v1/+/tele/#",
            "orinoco/v1/node-1/evt/pressure",
        ] {
            assert!(may(filter), "{filter}");
        }
        for filter in [
            "#",
            "+/#",
            "orinoco/#",
            "orinoco/v1/#",
            "orinoco/v1/resp/#",
            "orinoco/v1/resp/+/1",
            "orinoco/v1/resp/bob/#",
            "orinoco/v1/+/ann/#",
            "orinoco/v1/+/#",
            "orinoco/v1/+/+",
            "orinoco/v1/+/req/ann/#",
            "$share/g/orinoco/v1/resp/ann/#",
            "$share/g/orinoco/v1/+/status",
            "$SYS/#",
        ] {
            assert!(!may(filter), "{filter}");
        }
    }

    #[test]
    fn the_daemon_has_the_root_also_shared_and_nothing_of_the_broker() {
        let rules = rules();
        assert!(rules.may_read(DAEMON, "orinoco/v1/node-1/req/#"));
        assert!(rules.may_read(DAEMON, "$share/p/orinoco/v1/pool/p/req/#"));
        assert!(rules.may_write(DAEMON, "orinoco/v1/resp/ann/1"));
        assert!(rules.may_write(DAEMON, "homeassistant/device/node-1/config"));
        assert!(!rules.may_read(DAEMON, "#"));
        assert!(!rules.may_read(DAEMON, "$share/p"));
        assert!(!rules.may_read(DAEMON, "$SYS/#"));
    }

    #[test]
    fn answers_are_asked_for_strictly_below_the_own_name() {
        let may = |topic: &str| rules().may_be_answered_on("ann", topic);
        assert!(may("orinoco/v1/resp/ann/1"));
        for topic in [
            "orinoco/v1/resp/ann",
            "orinoco/v1/resp/ann/",
            "orinoco/v1/resp/annabel/1",
            "x",
        ] {
            assert!(!may(topic), "{topic}");
        }
    }

    #[test]
    fn a_user_whose_name_is_no_level_may_do_nothing() {
        for user in ["", "+", "#", "a/b", "$x"] {
            assert!(!rules().may_write(user, &format!("orinoco/v1/n/req/{user}/chat/1")));
            assert!(!rules().may_read(user, &format!("orinoco/v1/resp/{user}/#")));
        }
    }

    /// Matching of one topic, as the MQTT specification tells it (MQTT 5, 4.7.1).
    fn matches(filter: &[String], topic: &[String]) -> bool {
        match (filter.first().map(String::as_str), topic.first()) {
            (Some("#"), _) => true,
            (None, None) => true,
            (Some(level), Some(name)) if level == "+" || level == name => {
                matches(&filter[1..], &topic[1..])
            }
            _ => false,
        }
    }

    fn levels(with: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
        let level = proptest::sample::select(with).prop_map(str::to_owned);
        (proptest::collection::vec(level, 1..5), any::<bool>()).prop_map(|(mut levels, multi)| {
            if multi {
                levels.push("#".into());
            }
            levels
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn what_a_covered_filter_matches_the_pattern_matches_too(
            pattern in levels(&["a", "b", "+"]),
            filter in levels(&["a", "b", "+"]),
            topic in proptest::collection::vec(proptest::sample::select(&["a", "b", "c"][..]).prop_map(str::to_owned), 1..6),
        ) {
            if covers(&pattern.join("/"), &filter.join("/")) && matches(&filter, &topic) {
                prop_assert!(matches(&pattern, &topic));
            }
        }
    }
}
