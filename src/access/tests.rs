//! Facts about who may do what.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

fn rules() -> Rules {
    Rules::new("orinoco")
}

const fn user(name: &str, role: Role) -> Who<'_> {
    Who::User { name, role }
}

const ANN: Who<'_> = user("ann", Role::Device);
const BOSS: Who<'_> = user("boss", Role::Operator);
const HALL: Who<'_> = user("hall", Role::Monitor);

#[test]
fn a_device_writes_requests_under_its_own_name_only() {
    let may = |topic: &str| rules().may_write(ANN, topic);
    assert!(may("orinoco/v1/node-1/req/ann/chat/1"));
    assert!(may("orinoco/v1/pool/p/req/ann/chat/1"));
    assert!(may("orinoco/v1/node-1/req/ann/cancel/1"));
    for topic in [
        "orinoco/v1/node-1/req/bob/chat/1",
        "orinoco/v1/node-1/req/annabel/chat/1",
        "orinoco/v1/node-1/req/%u/chat/1",
        "orinoco/v1/resp/ann/1",
        "orinoco/v1/resp/req/ann/1",
        "orinoco/v1/node-1/status",
        "orinoco/v1/node-1/cmd/restart/1",
        "orinoco/v1/node-1/set/model",
        "orinoco/v1/fleet/all/desired",
        "orinoco/v1/fleet/req/ann/desired",
        "orinoco/v1/pool/req/ann/chat/1",
        "orinoco/v1/pool/cmd/req/ann/chat/1",
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
fn a_device_reads_its_own_answers_and_what_nodes_say_of_themselves() {
    let may = |filter: &str| rules().may_read(ANN, filter);
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
        "orinoco/v1/resp/tele/1",
        "orinoco/v1/+/ann/#",
        "orinoco/v1/+/#",
        "orinoco/v1/+/+",
        "orinoco/v1/+/req/ann/#",
        "orinoco/v1/+/cmd/#",
        "orinoco/v1/fleet/#",
        "homeassistant/#",
        "$share/g/orinoco/v1/resp/ann/#",
        "$share/g/orinoco/v1/+/status",
        "$SYS/#",
    ] {
        assert!(!may(filter), "{filter}");
    }
}

#[test]
fn orders_are_given_by_operators_alone_and_seen_by_monitors() {
    for topic in [
        "orinoco/v1/node-1/cmd/restart/1",
        "orinoco/v1/node-1/set/model",
        "orinoco/v1/fleet/all/desired",
        "homeassistant/status",
    ] {
        assert!(rules().may_write(BOSS, topic), "{topic}");
        assert!(!rules().may_write(ANN, topic), "{topic}");
        assert!(!rules().may_write(HALL, topic), "{topic}");
    }
    for filter in ["orinoco/v1/+/cmd/#", "orinoco/v1/fleet/#"] {
        assert!(rules().may_read(BOSS, filter), "{filter}");
        assert!(rules().may_read(HALL, filter), "{filter}");
        assert!(!rules().may_read(ANN, filter), "{filter}");
    }
    // What Home Assistant subscribes to.
    for filter in ["homeassistant/+/+/config", "homeassistant/device/+/config"] {
        assert!(rules().may_read(BOSS, filter), "{filter}");
    }
    // Orders stay on their topics: a node, pool or answer has no such name.
    for topic in ["orinoco/v1/resp/cmd/1", "orinoco/v1/resp/set/1"] {
        assert!(!rules().may_write(BOSS, topic), "{topic}");
    }
}

#[test]
fn a_monitor_asks_nothing() {
    assert!(!rules().may_write(HALL, "orinoco/v1/node-1/req/hall/chat/1"));
    assert!(!rules().may_read(HALL, "orinoco/v1/resp/hall/#"));
    assert!(rules().may_read(HALL, "orinoco/v1/+/tele/#"));
}

#[test]
fn only_orders_with_a_state_are_retained() {
    for (who, topic, may) in [
        (BOSS, "orinoco/v1/node-1/cmd/restart/1", true),
        (BOSS, "orinoco/v1/fleet/all/desired", true),
        (BOSS, "homeassistant/status", true),
        (BOSS, "orinoco/v1/node-1/set/model", false),
        (BOSS, "orinoco/v1/node-1/req/boss/chat/1", false),
        (ANN, "orinoco/v1/node-1/req/ann/chat/1", false),
        (ANN, "orinoco/v1/node-1/cmd/restart/1", false),
        (Who::Daemon, "orinoco/v1/node-1/status", true),
        (Who::Daemon, "homeassistant/device/node-1/config", true),
    ] {
        assert_eq!(rules().may_retain(who, topic), may, "{who:?} {topic}");
    }
}

#[test]
fn the_daemon_has_the_root_also_shared_and_nothing_of_the_broker() {
    let rules = rules();
    let daemon = Who::Daemon;
    assert!(rules.may_read(daemon, "orinoco/v1/node-1/req/#"));
    assert!(rules.may_read(daemon, "$share/p/orinoco/v1/pool/p/req/#"));
    assert!(rules.may_write(daemon, "orinoco/v1/resp/ann/1"));
    assert!(rules.may_write(daemon, "orinoco/v1/resp/local/1"));
    assert!(rules.may_write(daemon, "homeassistant/device/node-1/config"));
    assert!(!rules.may_write(daemon, "homeassistant/light/x/config"));
    assert!(!rules.may_read(daemon, "#"));
    assert!(!rules.may_read(daemon, "$share/p"));
    assert!(!rules.may_read(daemon, "$SYS/#"));
}

/// `…/+/tele/#` is for telemetry of nodes, and would also match answers to somebody named `tele`.
#[test]
fn nobody_is_answered_under_a_name_that_means_something_else() {
    for name in RESERVED.iter().filter(|name| **name != LOCAL_USER) {
        let topic = format!("orinoco/v1/resp/{name}/1");
        for who in [Who::Daemon, ANN, BOSS, HALL] {
            assert!(!rules().may_write(who, &topic), "{who:?} {topic}");
            assert!(!rules().may_read(who, &topic), "{who:?} {topic}");
        }
    }
}

#[test]
fn answers_are_asked_for_strictly_below_the_own_name() {
    let may = |topic: &str| rules().may_be_answered_on(ANN, topic);
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
    for name in ["", "+", "#", "a/b", "$x", "%u"] {
        let who = user(name, Role::Operator);
        assert!(!rules().may_write(who, &format!("orinoco/v1/n/req/{name}/chat/1")));
        assert!(!rules().may_read(who, &format!("orinoco/v1/resp/{name}/#")));
    }
}

fn users() -> BTreeMap<String, Role> {
    [
        ("ann", Role::Device),
        ("boss", Role::Operator),
        ("hall", Role::Monitor),
    ]
    .map(|(name, role)| (name.to_owned(), role))
    .into()
}

/// Mosquitto matches each line for itself: the first user lines, denials before grants, then patterns.
fn mosquitto_allows(acl: &str, user: &str, right: Right, topic: &str) -> bool {
    let (mut of_user, mut patterns, mut current) = (Vec::new(), Vec::new(), "");
    for line in acl.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["user", name] => current = name,
            ["topic", word, filter] if current == user => of_user.push((word, filter)),
            ["topic", ..] => {}
            ["pattern", word, filter] => patterns.push((word, filter)),
            _ => panic!("no line of an ACL file: {line}"),
        }
    }
    for list in [of_user, patterns] {
        let matching: Vec<&str> = list
            .iter()
            .filter(|(_, filter)| covers(filter, user, topic))
            .map(|(word, _)| *word)
            .collect();
        if matching.contains(&"deny") {
            return false;
        }
        let wanted = match right {
            Right::Read => "read",
            Right::Write => "write",
        };
        if matching
            .iter()
            .any(|word| *word == wanted || *word == "readwrite")
        {
            return true;
        }
    }
    false
}

fn topic() -> impl Strategy<Value = String> {
    let node = proptest::sample::select(&["n1", "resp", "pool", "fleet", "tele", "req", "p"][..]);
    let rest = proptest::sample::select(
        &[
            "status", "info", "tele", "evt", "cmd", "set", "req", "resp", "ota", "ann", "boss",
            "hall", "daemon", "desired", "chat", "1",
        ][..],
    );
    let own = (node, proptest::collection::vec(rest, 1..5))
        .prop_map(|(node, rest)| format!("orinoco/v1/{node}/{}", rest.join("/")));
    prop_oneof![
        9 => own,
        1 => proptest::sample::select(
            &["homeassistant/status", "homeassistant/device/n1/config", "other/v1/n1/status"][..],
        )
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn what_mosquitto_allows_by_the_written_file_is_what_the_rules_allow(topic in topic()) {
        let acl = mosquitto_acl(&rules(), DAEMON, &users());
        for (name, who) in [("daemon", Who::Daemon), ("ann", ANN), ("boss", BOSS), ("hall", HALL)] {
            let write = mosquitto_allows(&acl, name, Right::Write, &topic);
            prop_assert_eq!(write, rules().may_write(who, &topic), "{} writes {}", name, &topic);
            let read = mosquitto_allows(&acl, name, Right::Read, &topic);
            prop_assert_eq!(read, rules().may_read(who, &topic), "{} reads {}", name, &topic);
        }
    }

    #[test]
    fn what_a_covered_filter_matches_the_pattern_matches_too(
        pattern in levels(&["a", "b", "+"]),
        filter in levels(&["a", "b", "+"]),
        topic in proptest::collection::vec(
            proptest::sample::select(&["a", "b", "c"][..]).prop_map(str::to_owned), 1..6,
        ),
    ) {
        if covers(&pattern.join("/"), "", &filter.join("/")) && matches(&filter, &topic) {
            prop_assert!(matches(&pattern, &topic));
        }
    }
}

/// The same for the other format, judged by the crate that reads it.
#[tokio::test]
async fn what_mqtt5_allows_by_the_written_file_is_what_the_rules_allow() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acl");
    let text = mqtt5_acl(&rules(), DAEMON, &users());
    std::fs::write(&file, &text).unwrap();
    let acl = mqtt5::broker::AclManager::from_file(&file).await.unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..1000 {
        let topic = topic().new_tree(&mut runner).unwrap().current();
        for (name, who) in [
            ("daemon", Who::Daemon),
            ("ann", ANN),
            ("boss", BOSS),
            ("hall", HALL),
            ("unlisted", user("a/b", Role::Device)),
        ] {
            let write = acl.check_publish(Some(name), &topic).await;
            assert_eq!(
                write,
                rules().may_write(who, &topic),
                "{name} writes {topic}"
            );
            let read = acl.check_subscribe(Some(name), &topic).await;
            assert_eq!(read, rules().may_read(who, &topic), "{name} reads {topic}");
        }
    }
    let pool = "$share/p/orinoco/v1/pool/p/req/#";
    assert!(acl.check_subscribe(Some("daemon"), pool).await, "{text}");
    assert!(!acl.check_subscribe(Some("ann"), pool).await);
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
