//! Who can do what on the embedded broker, shown by what arrives and what does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/client.rs"]
mod client;

use std::time::{Duration, Instant};

use broker::{DAEMON_PASSWORD, Embedded};
use client::{config, message, next, nothing_received, received, refusal, up, wait_for};
use orinoco::broker::daemon_client_id;
use orinoco::link::{self, Credentials, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use orinoco::users;

const REQUESTS: &str = "orinoco/v1/node/req/#";
/// What is promised of users that come and go.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

fn credentials(user: &str, password: &str) -> Option<Credentials> {
    Some(Credentials {
        user: user.into(),
        password: password.into(),
    })
}

/// A client that gives up for the length of a test once it was refused.
fn client_of(broker: &Embedded, credentials: Option<Credentials>, client_id: &str) -> LinkConfig {
    let patience = Duration::from_secs(60);
    LinkConfig {
        credentials,
        clean_start: true,
        stall: Duration::from_secs(5),
        backoff_min: patience,
        backoff_max: patience,
        ..config(broker.port(), client_id)
    }
}

fn subscribing(config: LinkConfig, filters: &[&str]) -> LinkConfig {
    LinkConfig {
        subscriptions: filters.iter().map(|&f| f.to_owned()).collect(),
        ..config
    }
}

async fn daemon(broker: &Embedded) -> (Link, Inbox) {
    let config = client_of(
        broker,
        credentials("daemon", DAEMON_PASSWORD),
        &daemon_client_id("n"),
    );
    let (link, mut inbox) = link::spawn(subscribing(config, &[REQUESTS]));
    up(&mut inbox).await;
    (link, inbox)
}

/// A broker with the users ann and bob, whose passwords are their names.
async fn with_users() -> Embedded {
    let broker = Embedded::start().await;
    for user in ["ann", "bob"] {
        users::add(&broker.users, user, user, None).unwrap();
    }
    broker
}

async fn connected(broker: &Embedded, user: &str, filters: &[&str]) -> (Link, Inbox) {
    let config = client_of(broker, credentials(user, user), user);
    let (link, mut inbox) = link::spawn(subscribing(config, filters));
    up(&mut inbox).await;
    (link, inbox)
}

/// Publishes, and waits for the broker's verdict: whether it takes it; none where it ended the connection.
async fn verdict(link: &Link, inbox: &mut Inbox, publish: Publish) -> Option<bool> {
    link.try_publish(Publish {
        token: Some(77),
        ..publish
    })
    .unwrap();
    loop {
        match next(inbox).await {
            Inbound::Delivered { token: 77 } => return Some(true),
            Inbound::Undelivered {
                token: Some(77), ..
            } => return Some(false),
            Inbound::Down { .. } => return None,
            _ => {}
        }
    }
}

async fn accepted(link: &Link, inbox: &mut Inbox, publish: Publish) -> bool {
    let verdict = verdict(link, inbox, publish).await;
    verdict.expect("the connection lasts")
}

#[tokio::test]
async fn clients_without_credentials_are_local_until_the_first_user() {
    let broker = Embedded::start().await;
    let (daemon, mut requests) = daemon(&broker).await;
    let anonymous = client_of(&broker, None, "anyone");
    let (link, mut inbox) =
        link::spawn(subscribing(anonymous.clone(), &["orinoco/v1/resp/local/#"]));
    up(&mut inbox).await;
    let request = message("orinoco/v1/node/req/local/chat/1", "hello");
    assert!(accepted(&link, &mut inbox, request.clone()).await);
    let got = received(&mut requests).await;
    // The broker attests who sent it.
    assert!(
        got.props
            .user
            .contains(&("x-mqtt-sender".into(), "local".into())),
        "{got:?}"
    );

    users::add(&broker.users, "ann", "ann", None).unwrap();
    let added = Instant::now();
    loop {
        // What is asked later than that is refused, however long the machine pauses meanwhile.
        let asked = added.elapsed();
        if verdict(&link, &mut inbox, request.clone()).await != Some(true) {
            break;
        }
        let got = received(&mut requests).await;
        daemon.try_ack(got.ack).unwrap();
        assert!(asked < SEEN_WITHIN, "the broker has not seen the user");
    }
    assert!(nothing_received(&mut requests).await);
    let reason = refusal(LinkConfig {
        client_id: "another".into(),
        ..anonymous
    })
    .await;
    assert!(reason.contains("BadUserNamePassword"), "{reason}");
}

#[tokio::test]
async fn a_user_added_and_removed_while_the_broker_runs_comes_and_goes_within_a_second() {
    let broker = with_users().await;
    let cat = |client_id| client_of(&broker, credentials("cat", "cat"), client_id);
    assert!(refusal(cat("before")).await.contains("BadUserNamePassword"));

    users::add(&broker.users, "cat", "cat", None).unwrap();
    // CONNECT looks at the file itself: the first attempt is let in.
    let (link, mut inbox) = link::spawn(cat("after"));
    let first = next(&mut inbox).await;
    assert!(matches!(first, Inbound::Up { .. }), "{first:?}");

    users::remove(&broker.users, "cat").unwrap();
    let removed = Instant::now();
    let request = message("orinoco/v1/node/req/cat/chat/1", "hello");
    loop {
        let asked = removed.elapsed();
        if verdict(&link, &mut inbox, request.clone()).await != Some(true) {
            break;
        }
        assert!(asked < SEEN_WITHIN, "the broker has not seen the removal");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let broker = with_users().await;
    for (user, password) in [
        ("ann", "bob"),
        ("nobody", "x"),
        ("daemon", "daemon"),
        ("local", "x"),
    ] {
        let reason = refusal(client_of(&broker, credentials(user, password), "x")).await;
        assert!(reason.contains("BadUserNamePassword"), "{user}: {reason}");
    }
    connected(&broker, "ann", &[]).await;
}

#[tokio::test]
async fn wrong_passwords_of_others_do_not_lock_the_daemon_out() {
    let broker = with_users().await;
    for attempt in 0..8 {
        let guess = client_of(&broker, credentials("ann", "guess"), &format!("x{attempt}"));
        refusal(guess).await;
    }
    daemon(&broker).await;
    connected(&broker, "ann", &[]).await;
}

#[tokio::test]
async fn a_user_reaches_no_topic_of_another() {
    let broker = with_users().await;
    let (daemon, mut requests) = daemon(&broker).await;
    let (bob, mut bobs) = connected(&broker, "bob", &["orinoco/v1/resp/bob/#"]).await;
    let spying = [
        "#",
        "orinoco/#",
        "orinoco/v1/#",
        "orinoco/v1/resp/#",
        "orinoco/v1/resp/+/1",
        "orinoco/v1/resp/bob/#",
        "orinoco/v1/+/bob/+",
        "orinoco/v1/node/req/#",
        "$share/g/orinoco/v1/resp/bob/#",
        "$share/g/orinoco/v1/node/req/#",
        "$SYS/#",
    ];
    let (ann, mut anns) = connected(&broker, "ann", &spying).await;

    daemon
        .try_publish(message("orinoco/v1/resp/bob/1", "for bob only"))
        .unwrap();
    assert_eq!(received(&mut bobs).await.payload, "for bob only");
    assert!(
        accepted(
            &bob,
            &mut bobs,
            message("orinoco/v1/node/req/bob/chat/1", "bob's")
        )
        .await
    );
    assert_eq!(received(&mut requests).await.payload, "bob's");
    assert!(nothing_received(&mut anns).await, "ann read what is bob's");

    for topic in [
        "orinoco/v1/node/req/bob/chat/2",
        "orinoco/v1/node/req/bob/cancel/1",
        "orinoco/v1/resp/bob/2",
        "orinoco/v1/node/status",
        "orinoco/v1/node/cmd/restart/1",
        "elsewhere",
    ] {
        assert!(
            !accepted(&ann, &mut anns, message(topic, "forged")).await,
            "{topic}"
        );
    }
    assert!(
        nothing_received(&mut requests).await,
        "the daemon got a forged request"
    );
    assert!(nothing_received(&mut bobs).await, "bob got a forged answer");
}

#[tokio::test]
async fn a_user_reads_its_answers_and_the_state_of_nodes() {
    let broker = with_users().await;
    let (daemon, _requests) = daemon(&broker).await;
    let filters = [
        "orinoco/v1/resp/ann/#",
        "orinoco/v1/+/status",
        "orinoco/v1/+/tele/#",
    ];
    let (_ann, mut anns) = connected(&broker, "ann", &filters).await;
    for topic in [
        "orinoco/v1/resp/ann/7",
        "orinoco/v1/node/status",
        "orinoco/v1/node/tele/gpu",
    ] {
        daemon.try_publish(message(topic, topic)).unwrap();
        assert_eq!(received(&mut anns).await.topic, topic);
    }
}

#[tokio::test]
async fn requests_that_would_harm_others_are_swallowed() {
    let broker = with_users().await;
    let (_daemon, mut requests) = daemon(&broker).await;
    let (ann, mut anns) = connected(&broker, "ann", &[]).await;
    let request = |payload: &str| message("orinoco/v1/node/req/ann/chat/1", payload);
    let answered_on = |topic: &str| Props {
        response_topic: Some(topic.into()),
        ..Props::default()
    };

    let props = answered_on("orinoco/v1/resp/bob/1");
    ann.try_publish(Publish {
        props,
        ..request("answer bob")
    })
    .unwrap();
    let props = answered_on("orinoco/v1/node/status");
    ann.try_publish(Publish {
        props,
        ..request("answer everybody")
    })
    .unwrap();
    ann.try_publish(Publish {
        retain: true,
        ..request("again and again")
    })
    .unwrap();
    let props = answered_on("orinoco/v1/resp/ann/1");
    assert!(
        accepted(
            &ann,
            &mut anns,
            Publish {
                props,
                ..request("answer me")
            }
        )
        .await
    );
    assert_eq!(
        received(&mut requests).await.payload,
        "answer me",
        "and nothing before it"
    );

    let config = client_of(&broker, credentials("daemon", DAEMON_PASSWORD), "late");
    let (_late, mut late) = link::spawn(subscribing(config, &[REQUESTS]));
    up(&mut late).await;
    assert!(nothing_received(&mut late).await, "a request was retained");
}

#[tokio::test]
async fn nobody_takes_a_session_over_that_is_anothers() {
    let broker = with_users().await;
    let (_daemon, mut requests) = daemon(&broker).await;
    let (ann, mut anns) = connected(&broker, "ann", &[]).await;
    for client_id in ["ann", &daemon_client_id("n"), &daemon_client_id("other")] {
        for clean_start in [true, false] {
            let thief = client_of(&broker, credentials("bob", "bob"), client_id);
            let reason = refusal(LinkConfig {
                clean_start,
                ..thief
            })
            .await;
            assert!(reason.contains("NotAuthorized"), "{client_id}: {reason}");
        }
    }
    let request = message("orinoco/v1/node/req/ann/chat/1", "still here");
    assert!(accepted(&ann, &mut anns, request).await);
    assert_eq!(received(&mut requests).await.payload, "still here");
}

#[tokio::test]
async fn a_will_reaches_no_further_than_its_user() {
    let broker = with_users().await;
    let will = |topic: &str| message(topic, "last word");
    let own = "orinoco/v1/node/req/ann/chat/1";
    for will in [
        will("orinoco/v1/resp/bob/1"),
        Publish {
            retain: true,
            ..will(own)
        },
    ] {
        let config = client_of(&broker, credentials("ann", "ann"), "ann");
        let reason = refusal(LinkConfig {
            will: Some(will),
            ..config
        })
        .await;
        assert!(reason.contains("NotAuthorized"), "{reason}");
    }
}

#[tokio::test]
async fn a_flood_is_refused_and_the_daemon_is_spared() {
    let broker = Embedded::start_with(|config| config.message_rate_max = 10).await;
    users::add(&broker.users, "ann", "ann", None).unwrap();
    let (daemon, _requests) = daemon(&broker).await;
    let (ann, mut anns) = connected(&broker, "ann", &["orinoco/v1/resp/ann/#"]).await;
    let mut n_refused = 0;
    for token in 0..200 {
        let request = message("orinoco/v1/node/req/ann/chat/1", "flood");
        ann.try_publish(Publish {
            token: Some(token),
            ..request
        })
        .unwrap();
    }
    for _ in 0..200 {
        n_refused += usize::from(matches!(next(&mut anns).await, Inbound::Undelivered { .. }));
    }
    assert!((1..=190).contains(&n_refused), "{n_refused}");
    for number in 0..200 {
        daemon
            .publish(message("orinoco/v1/resp/ann/1", number.to_string()))
            .await
            .unwrap();
    }
    for number in 0..200 {
        let got = received(&mut anns).await;
        assert_eq!(got.payload, number.to_string());
        ann.try_ack(got.ack).unwrap();
    }
}

#[tokio::test]
async fn the_largest_packet_is_one_that_every_client_takes() {
    let broker = Embedded::start().await;
    let (_link, mut inbox) = link::spawn(client_of(&broker, None, "x"));
    let announced = wait_for!(&mut inbox, Inbound::Up { packet_bytes_max, .. } => packet_bytes_max);
    assert_eq!(announced, 1 << 20);
}
