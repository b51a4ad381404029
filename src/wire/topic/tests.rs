//! Facts about topics.

use proptest::prelude::*;

use super::*;

fn names() -> Names {
    Names::new("orinoco", Name::new("press-7").unwrap()).unwrap()
}

fn user(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn name_text() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_.-]{1,64}".prop_filter("reserved names are refused", |text| {
        !RESERVED.contains(&text.as_str())
    })
}

/// Levels as an attacker would choose them.
fn level() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("..".to_owned()),
        prop::sample::select(RESERVED.to_vec()).prop_map(str::to_owned),
        prop::sample::select(vec![
            "orinoco", "v1", "press-7", "chat", "cancel", "forget", "plc4", "$share"
        ])
        .prop_map(str::to_owned),
        "[A-Za-z0-9_-]{1,70}",
        "\\PC{0,8}",
        any::<String>(),
    ]
}

#[test]
fn an_operators_topics_are_read_and_no_others() {
    let names = names();
    let set = Ordered::Set {
        key: "model".into(),
    };
    assert_eq!(names.parse_order("orinoco/v1/press-7/set/model"), Some(set));
    let command = Ordered::Command {
        op: "model".into(),
        ticket: "c-1".into(),
    };
    let topic = names.command("model", "c-1");
    assert_eq!(names.parse_order(&topic), Some(command));
    for other in [
        "orinoco/v1/press-7/set",
        "orinoco/v1/press-7/set/",
        "orinoco/v1/press-7/set/a/b",
        "orinoco/v1/press-8/set/model",
        "orinoco/v1/press-7/cmd/model",
        "orinoco/v1/press-7/cmd/model/",
        "orinoco/v1/press-7/cmd/model/a/b",
        "orinoco/v1/press-7/req/plc4/chat/1",
    ] {
        assert_eq!(names.parse_order(other), None, "{other}");
    }
}

#[test]
fn the_topics_of_a_node_are_these() {
    let (names, plc) = (names(), user("plc4"));
    let id = RequestId::new("01J9Z3").unwrap();
    assert_eq!(
        names.subscriptions(),
        [
            "orinoco/v1/press-7/req/#",
            "orinoco/v1/press-7/set/+",
            "orinoco/v1/press-7/cmd/+/+"
        ]
    );
    assert_eq!(
        names.req(&plc, Op::TextStream, &id),
        "orinoco/v1/press-7/req/plc4/text-stream/01J9Z3"
    );
    assert_eq!(
        names.cancel(&plc, &id),
        "orinoco/v1/press-7/req/plc4/cancel/01J9Z3"
    );
    assert_eq!(names.resp(&plc, &id), "orinoco/v1/resp/plc4/01J9Z3");
    assert_eq!(names.resp_filter(&plc), "orinoco/v1/resp/plc4/#");
    assert_eq!(names.status(), "orinoco/v1/press-7/status");
    assert_eq!(names.info(), "orinoco/v1/press-7/info");
    assert_eq!(names.models(), "orinoco/v1/press-7/models");
    assert_eq!(names.state(), "orinoco/v1/press-7/state");
    assert_eq!(names.event("pressure"), "orinoco/v1/press-7/evt/pressure");
    assert_eq!(names.tele("llm"), "orinoco/v1/press-7/tele/llm");
}

#[test]
fn a_root_may_have_several_levels() {
    let names = Names::new("site/hall2", user("n1")).unwrap();
    let topic = names.req(&user("a"), Op::Chat, &RequestId::new("1").unwrap());
    assert_eq!(topic, "site/hall2/v1/n1/req/a/chat/1");
    assert!(names.parse(&topic).is_ok());
}

#[test]
fn roots_that_are_no_topic_prefix_are_refused() {
    for root in [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "a b",
        "$SYS",
        "a/#",
        "+",
        "ö",
        &"r".repeat(65),
    ] {
        assert!(Names::new(root, user("n1")).is_err(), "{root:?}");
    }
}

#[test]
fn names_have_a_shape_and_a_length() {
    for good in ["a", "A.b_c-9", "..", &"x".repeat(64), "local", "req"] {
        assert_eq!(Name::new(good).unwrap().as_str(), good);
    }
    for bad in [
        "",
        " ",
        "a/b",
        "a+",
        "#",
        "ä",
        "a\0",
        "a\n",
        "$a",
        &"x".repeat(65),
    ] {
        assert!(Name::new(bad).is_err(), "{bad:?}");
        assert!(RequestId::new(bad).is_err(), "{bad:?}");
    }
    assert!(RequestId::new("a.b").is_err(), "an id has no dot");
}

#[test]
fn errors_of_names_say_what_was_found_and_what_is_allowed() {
    let error = Name::new("plc 4").unwrap_err();
    assert_eq!(
        error.to_string(),
        "name has ' ' at byte 3, allowed are [A-Za-z0-9_.-]"
    );
    let error = RequestId::new("").unwrap_err();
    assert_eq!(
        error.to_string(),
        "request id of 0 bytes, 1 to 64 are allowed"
    );
}

#[test]
fn a_name_from_json_is_checked_like_any_other() {
    assert_eq!(
        serde_json::from_str::<Name>("\"plc4\"").unwrap(),
        user("plc4")
    );
    assert!(serde_json::from_str::<Name>("\"plc/4\"").is_err());
    assert!(serde_json::from_str::<RequestId>("\"\"").is_err());
    assert_eq!(serde_json::to_string(&user("plc4")).unwrap(), "\"plc4\"");
}

#[test]
fn reserved_words_are_no_node_and_no_user_but_local_is_heard() {
    for word in RESERVED {
        assert!(user(word).is_reserved());
        assert!(Names::new("orinoco", user(word)).is_err());
        let heard = names().parse(&format!("orinoco/v1/press-7/req/{word}/chat/1"));
        assert_eq!(heard.is_ok(), word == LOCAL_USER, "{word}");
    }
    assert!(!user("plc4").is_reserved());
}

#[test]
fn an_unknown_op_still_gets_its_user_and_id() {
    assert_eq!(
        names().parse("orinoco/v1/press-7/req/plc4/rerank/7"),
        Ok(Incoming::Request {
            user: user("plc4"),
            op: Err("rerank".to_owned()),
            id: RequestId::new("7").unwrap(),
        })
    );
}

#[test]
fn a_cancel_names_user_and_id() {
    assert_eq!(
        names().parse("orinoco/v1/press-7/req/plc4/cancel/7"),
        Ok(Incoming::Cancel {
            user: user("plc4"),
            id: RequestId::new("7").unwrap(),
        })
    );
}

#[test]
fn topics_that_are_no_request_are_refused() {
    for topic in [
        "",
        "/",
        "orinoco",
        "orinoco/v1/press-7/req",
        "orinoco/v1/press-7/req/",
        "orinoco/v1/press-7/req/plc4/chat",
        "orinoco/v1/press-7/req/plc4/chat/",
        "orinoco/v1/press-7/req/plc4//1",
        "orinoco/v1/press-7/req//chat/1",
        "orinoco/v1/press-7/req/plc4/chat/1/",
        "orinoco/v1/press-7/req/plc4/chat/1/2",
        "/orinoco/v1/press-7/req/plc4/chat/1",
        "orinoco/v2/press-7/req/plc4/chat/1",
        "orinoco/v1/press-70/req/plc4/chat/1",
        "orinoco/v1/press-7/reqs/plc4/chat/1",
        "orinoco/v1/resp/plc4/1",
        "Orinoco/v1/press-7/req/plc4/chat/1",
        "orinoco/v1/press-7/req/plc4/chat/1.2",
        "orinoco/v1/press-7/req/plc 4/chat/1",
        "orinoco/v1/press-7/req/plc4/+/1",
        "orinoco/v1/press-7/req/#",
        "orinoco/v1/press-7/req/plc4/chat/1\0",
        "orinoco/v1/press-7/req/plc4/ch\nat/1",
        "$share/p/orinoco/v1/press-7/req/plc4/chat/1",
    ] {
        assert!(names().parse(topic).is_err(), "{topic:?}");
    }
}

#[test]
fn length_is_checked_before_anything_else() {
    let topic = format!("orinoco/v1/press-7/req/plc4/chat/{}+", "x".repeat(1 << 20));
    assert_eq!(
        names().parse(&topic),
        Err(TopicError::TooLong { found: topic.len() })
    );
}

#[test]
fn the_longest_valid_topics_are_inside_the_bounds() {
    let longest = "x".repeat(NAME_BYTES_MAX);
    let names = Names::new(&longest, user(&longest)).unwrap();
    let (user, id) = (user(&longest), RequestId::new(&longest).unwrap());
    assert!(names.parse(&names.req(&user, Op::TextStream, &id)).is_ok());
    assert!(names.resp_allowed(&user, &names.resp(&user, &id)));
}

#[test]
fn answers_stay_inside_the_requesters_own_topics() {
    let plc = user("plc4");
    for inside in [
        "orinoco/v1/resp/plc4/1",
        "orinoco/v1/resp/plc4/a/b",
        "orinoco/v1/resp/plc4/$x",
    ] {
        assert!(names().resp_allowed(&plc, inside), "{inside:?}");
    }
    let long = format!("orinoco/v1/resp/plc4/{}", "x".repeat(256));
    for outside in [
        "",
        "orinoco/v1/resp/plc4",
        "orinoco/v1/resp/plc4/",
        "orinoco/v1/resp/plc4//",
        "orinoco/v1/resp/plc4/a//b",
        "orinoco/v1/resp/plc4/a/",
        "orinoco/v1/resp/plc4x/1",
        "orinoco/v1/resp/plc5/1",
        "orinoco/v1/resp/plc4/#",
        "orinoco/v1/resp/plc4/+/x",
        "orinoco/v1/resp/plc4/a\0b",
        "orinoco/v1/resp/plc4/a\u{85}b",
        "orinoco/v1/press-7/cmd/x/1",
        "/orinoco/v1/resp/plc4/1",
        "$SYS/broker",
        &long,
    ] {
        assert!(!names().resp_allowed(&plc, outside), "{outside:?}");
    }
}

proptest! {
    #[test]
    fn what_a_client_asks_is_what_the_node_hears(
        name in name_text(), id in "[A-Za-z0-9_-]{1,64}", at in 0..Op::ALL.len()
    ) {
        let (names, user, id) = (names(), user(&name), RequestId::new(&id).unwrap());
        let op = Op::ALL[at];
        let asked = names.parse(&names.req(&user, op, &id));
        prop_assert_eq!(asked, Ok(Incoming::Request { user: user.clone(), op: Ok(op), id: id.clone() }));
        let called_off = names.parse(&names.cancel(&user, &id));
        prop_assert_eq!(called_off, Ok(Incoming::Cancel { user: user.clone(), id: id.clone() }));
        prop_assert!(names.resp_allowed(&user, &names.resp(&user, &id)));
    }

    #[test]
    fn a_topic_that_is_heard_is_written_in_one_way_only(
        levels in prop::collection::vec(level(), 0..9), has_prefix in any::<bool>()
    ) {
        let prefix = if has_prefix { "orinoco/v1/press-7/req/" } else { "" };
        let topic = format!("{prefix}{}", levels.join("/"));
        match names().parse(&topic) {
            Err(_) => {}
            Ok(Incoming::Cancel { user, id }) => prop_assert_eq!(names().cancel(&user, &id), topic),
            Ok(Incoming::Forget { user, session }) => prop_assert_eq!(names().forget(&user, &session), topic),
            Ok(Incoming::Request { user, op, id }) => {
                let op = op.map_or_else(|unknown| unknown, |op| op.to_string());
                prop_assert_eq!(format!("orinoco/v1/press-7/req/{user}/{op}/{id}"), topic);
            }
        }
    }

    #[test]
    fn an_allowed_response_topic_is_below_its_user(
        levels in prop::collection::vec(level(), 0..5), has_prefix in any::<bool>()
    ) {
        let prefix = if has_prefix { "orinoco/v1/resp/plc4/" } else { "orinoco/v1/resp/" };
        let topic = format!("{prefix}{}", levels.join("/"));
        if names().resp_allowed(&user("plc4"), &topic) {
            prop_assert!(topic.len() <= RESPONSE_TOPIC_BYTES_MAX);
            prop_assert!(topic.len() > "orinoco/v1/resp/plc4/".len());
            prop_assert!(topic.starts_with("orinoco/v1/resp/plc4/"));
            prop_assert!(!topic.contains(['+', '#', '\0']));
        }
    }
}
