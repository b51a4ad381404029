//! What an account can do to others, tried on both brokers: each attack is shown by what does not arrive,
//! beside what arrives all the same.
//!
//! Mosquitto grants every SUBSCRIBE, so that no SUBACK proves anything. An attack counts as failed when an
//! honest message, sent after it by way of the same broker, has arrived, and nothing of the attack has.
//! Floods are in `tests/flood.rs`, too many connections in `tests/broker_limits.rs`, client certificates in
//! `tests/link_tls.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod arena;
mod raw;
mod tables;

use arena::{Arena, Broker, LIMIT, asking, message, try_to};
use orinoco::link::{self, Credentials, Inbound, LinkConfig, Props};
use orinoco::wire::error::Code;
use tokio::time::timeout;

/// The daemon may write every answer, and is asked to write one where it does not belong.
async fn the_daemon_is_nobodys_deputy(arena: &Arena) {
    let (_bob, bob) = arena
        .join("bob", "bob-waits", &["orinoco/v1/resp/bob/#"])
        .await;
    let (_hall, hall) = arena
        .join("hall", "hall-waits", &["orinoco/v1/+/status"])
        .await;
    let mut alice = arena.requester("alice").await;
    let too_long = format!("orinoco/v1/resp/alice/{}", "x".repeat(300));
    for (n, topic) in [
        "orinoco/v1/resp/bob/deputy",
        "orinoco/v1/n1/status",
        "orinoco/v1/resp/alice",
        "orinoco/v1/resp/alice/",
        "elsewhere",
        &too_long,
    ]
    .into_iter()
    .enumerate()
    {
        let props = Props {
            response_topic: Some(topic.to_owned()),
            ..Props::default()
        };
        let id = format!("deputy{n}");
        alice
            .ask_with("chat", &id, "!count !tokens 9".into(), props)
            .await;
    }
    // A claim about who one is, in a property: nobody asks it.
    let props = Props {
        user: vec![("x-mqtt-sender".into(), "bob".into())],
        ..Props::default()
    };
    alice
        .ask_with("chat", "claim", "!count !tokens 7".into(), props)
        .await;
    // Another's priority.
    let alarm = r#"{"messages":[{"role":"user","content":"!count"}],"priority":"alarm"}"#;
    alice.ask("chat", "alarm", alarm).await;
    alice
        .until_ended(&["claim".to_owned(), "alarm".to_owned()])
        .await;
    assert_eq!(alice.text("claim").len(), 7);
    let refused = alice.answers["alarm"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err();
    assert_eq!(refused.code, Code::NotAllowed);
    // The embedded broker swallows such requests, all but the one that is only too long; otherwise the daemon
    // refuses them, to who has asked.
    let answers = alice.answers.iter();
    let deputies: Vec<_> = answers.filter(|(id, _)| id.starts_with("deputy")).collect();
    let n_expected = match arena.broker {
        Broker::Embedded(_) => 1,
        Broker::Mosquitto(_) => 6,
    };
    assert_eq!(deputies.len(), n_expected);
    for (id, answer) in deputies {
        let refused = answer.end().unwrap().outcome.as_ref().unwrap_err();
        assert_eq!(refused.code, Code::ResponseTopicDenied, "{id}");
    }
    arena.answers("bob", "after-all").await;
    bob.until_topic("/after-all").await;
    assert_eq!(bob.with("deputy"), []);
    assert_eq!(hall.with("deputy"), []);
}

/// Topics that the rules of a broker let pass, and that are no requests: nothing is answered to them.
async fn what_is_no_request_is_not_answered(arena: &Arena) {
    let (early, seen) = arena.early.as_ref().unwrap();
    let too_long = "z".repeat(65);
    for id in [&too_long, "odd/er", "odd er", "odd\u{e9}r"] {
        try_to(early, seen, asking("alice", "chat", id, "!count !tokens 5")).await;
    }
    arena.answers("alice", "no-odds").await;
    seen.until_topic("/no-odds").await;
    for part in ["odd", &too_long] {
        let answered = seen.with(part).into_iter();
        let answered: Vec<_> = answered
            .filter(|(topic, _)| !topic.ends_with("/no-odds"))
            .collect();
        assert_eq!(answered, []);
    }
}

/// Anybody may call its client as it likes; only the account says who it is.
async fn a_client_id_is_no_name(arena: &Arena) {
    let (_bob, bob) = arena
        .join("bob", "bob-is-bob", &["orinoco/v1/resp/bob/#"])
        .await;
    let filters = ["orinoco/v1/resp/bob/#", "orinoco/v1/resp/alice/#"];
    let (as_bob, as_bob_seen) = arena.join("alice", "bob", &filters).await;
    let (node, node_seen) = arena
        .join("daemon", "orinoco-daemon-knows", &["orinoco/v1/n1/req/#"])
        .await;
    let forged = message("orinoco/v1/n1/req/bob/cancel/forged", "forged");
    try_to(&as_bob, &as_bob_seen, forged).await;
    let own = asking("alice", "cancel", "own", "own name");
    try_to(&as_bob, &as_bob_seen, own).await;
    node_seen.until_payload("own name").await;
    assert_eq!(node_seen.with("forged"), []);
    for user in ["bob", "alice"] {
        let topic = format!("orinoco/v1/resp/{user}/for");
        try_to(&node, &node_seen, message(&topic, &format!("for {user}"))).await;
    }
    bob.until_payload("for bob").await;
    as_bob_seen.until_payload("for alice").await;
    assert_eq!(as_bob_seen.with("for bob"), []);
}

/// A device that joins the members of a pool would be dealt a part of the requests. It is shown none; the
/// embedded broker deals it none, so that none is lost either.
async fn nobody_joins_a_pool_uninvited(arena: &Arena) {
    const POOL: &str = "$share/p7/orinoco/v1/pool/p7/req/#";
    let (_member, member) = arena.join("daemon", "orinoco-daemon-p7", &[POOL]).await;
    let own = "orinoco/v1/resp/alice/#";
    let (_thief, thief) = arena.join("alice", "alice-in-p7", &[POOL, own]).await;
    let (bob, bob_seen) = arena.join("bob", "bob-asks-p7", &[]).await;
    for n in 0..6 {
        let topic = format!("orinoco/v1/pool/p7/req/bob/chat/{n}");
        try_to(&bob, &bob_seen, message(&topic, &format!("dealt {n}"))).await;
    }
    let (node, node_seen) = arena.join("daemon", "orinoco-daemon-ends", &[]).await;
    let end = message("orinoco/v1/resp/alice/p7", "nothing more");
    try_to(&node, &node_seen, end).await;
    thief.until_payload("nothing more").await;
    assert_eq!(thief.with("dealt"), []);
    if matches!(arena.broker, Broker::Embedded(_)) {
        member.until_payload("dealt 5").await;
        assert_eq!(member.with("dealt").len(), 6);
    }
}

/// Somebody connects with another's client id, whose answers wait.
async fn anothers_session_gives_nothing_away(arena: &Arena) {
    let (alice, alice_seen) = arena
        .join("alice", "alices-own", &["orinoco/v1/resp/alice/#"])
        .await;
    alice.close(None, LIMIT).await.unwrap();
    drop(alice_seen);
    let (node, node_seen) = arena.join("daemon", "orinoco-daemon-queues", &[]).await;
    try_to(
        &node,
        &node_seen,
        message("orinoco/v1/resp/alice/q", "waits for alice"),
    )
    .await;

    let (_thief, mut thief) = link::spawn(LinkConfig {
        clean_start: false,
        ..arena.config("bob", "alices-own", &["orinoco/v1/resp/bob/#"])
    });
    // Refused, or let in with nothing of alice's.
    match timeout(LIMIT, thief.recv()).await.unwrap().unwrap() {
        Inbound::Down { .. } => {}
        Inbound::Up { .. } => {
            try_to(
                &node,
                &node_seen,
                message("orinoco/v1/resp/bob/q", "for bob"),
            )
            .await;
            loop {
                let event = timeout(LIMIT, thief.recv()).await.unwrap().unwrap();
                if let Inbound::Message(message) = event {
                    assert_ne!(message.payload, "waits for alice");
                    if message.payload == "for bob" {
                        break;
                    }
                }
            }
        }
        other => panic!("{other:?}"),
    }
}

/// Nobody is let in without the right password, or without any.
async fn nobody_is_anonymous(arena: &Arena) {
    for (user, password) in [
        (Some("alice"), "bob"),
        (Some("nobody"), "nobody"),
        (Some("daemon"), "password"),
        (None, ""),
    ] {
        let credentials = user.map(|user| Credentials {
            user: user.into(),
            password: password.into(),
        });
        let (_link, mut inbox) = link::spawn(LinkConfig {
            credentials,
            ..LinkConfig::new("127.0.0.1", arena.port, "intruder")
        });
        let first = timeout(LIMIT, inbox.recv()).await.unwrap().unwrap();
        assert!(matches!(first, Inbound::Down { .. }), "{user:?}: {first:?}");
    }
}

async fn all(arena: Arena) {
    arena.answers("alice", "before").await;
    let (_, early) = arena.early.as_ref().unwrap();
    early.until_topic("/before").await;
    assert_eq!(
        early.with("\"id\":\"again\""),
        [],
        "a retained request was heeded"
    );
    nobody_is_anonymous(&arena).await;
    tables::what_may_not_be_written_reaches_nobody(&arena).await;
    tables::what_may_not_be_read_is_not_sent(&arena).await;
    the_daemon_is_nobodys_deputy(&arena).await;
    what_is_no_request_is_not_answered(&arena).await;
    a_client_id_is_no_name(&arena).await;
    nobody_joins_a_pool_uninvited(&arena).await;
    raw::a_last_will_reaches_no_further_than_its_owner(&arena).await;
    raw::a_last_will_has_no_deputy(&arena).await;
    raw::an_alias_opens_no_topic(&arena).await;
    raw::there_is_no_alias_0(&arena).await;
    anothers_session_gives_nothing_away(&arena).await;
    arena.answers("bob", "after").await;
    let daemon = arena.daemon.unwrap();
    assert_eq!(daemon.stop(), 0, "{}", arena.site.log());
}

#[tokio::test]
async fn every_attack_fails_on_the_embedded_broker() {
    all(Arena::with_embedded().await).await;
}

#[tokio::test]
async fn every_attack_fails_on_mosquitto_with_the_rules_that_acl_writes() {
    all(Arena::with_mosquitto().await).await;
}
