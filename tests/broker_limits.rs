//! What nobody can have too much of on the embedded broker: connections, time, sessions, messages, bytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/client.rs"]
mod client;

use std::time::{Duration, Instant};

use broker::{DAEMON_PASSWORD, Embedded};
use client::{LIMIT, config, message, next, nothing_received, received, refusal, up};
use orinoco::access::Role;
use orinoco::link::{self, Credentials, Inbound, Inbox, Link, LinkConfig, Publish};
use orinoco::users;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client that gives up for the length of a test once it was refused.
fn of(broker: &Embedded, user: &str, client_id: &str) -> LinkConfig {
    let patience = Duration::from_secs(60);
    let password = if user == "daemon" {
        DAEMON_PASSWORD
    } else {
        user
    };
    LinkConfig {
        credentials: Some(Credentials {
            user: user.into(),
            password: password.into(),
        }),
        stall: Duration::from_secs(5),
        backoff_min: patience,
        backoff_max: patience,
        ..config(broker.port(), client_id)
    }
}

fn subscribing(config: LinkConfig, filter: &str) -> LinkConfig {
    LinkConfig {
        subscriptions: vec![filter.to_owned()],
        ..config
    }
}

async fn connected(config: LinkConfig) -> (Link, Inbox) {
    let (link, mut inbox) = link::spawn(config);
    up(&mut inbox).await;
    (link, inbox)
}

/// A connection that says nothing.
async fn stranger(broker: &Embedded) -> TcpStream {
    TcpStream::connect(("127.0.0.1", broker.port()))
        .await
        .unwrap()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    // The end, or a reset: nothing was ever said.
    timeout(LIMIT, stream.read_u8())
        .await
        .is_ok_and(|read| read.is_err())
}

#[tokio::test]
async fn strangers_make_room_for_who_says_who_it_is() {
    let broker = Embedded::start_with(|config| {
        config.connecting_max = 8;
        config.connecting_limit = Duration::from_secs(60);
    })
    .await;
    users::add(&broker.users, "ann", "ann", None).unwrap();
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(stranger(&broker).await);
    }
    connected(of(&broker, "ann", "ann")).await;
    connected(of(&broker, "daemon", "daemon")).await;
    // All but the newest few have been ended.
    for stranger in &mut strangers[..190] {
        assert!(is_closed(stranger).await);
    }
}

#[tokio::test]
async fn who_does_not_say_who_it_is_in_time_is_left() {
    let broker = Embedded::start_with(|config| {
        config.connecting_limit = Duration::from_millis(200);
    })
    .await;
    // On a machine that pauses, who is slow is left as well; it comes again.
    let again = |config| LinkConfig {
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(10),
        ..config
    };
    let (_link, mut known) = connected(subscribing(
        again(of(&broker, "daemon", "daemon")),
        "orinoco/v1/n1/req/#",
    ))
    .await;
    let since = Instant::now();
    let mut silent = stranger(&broker).await;
    assert!(is_closed(&mut silent).await);
    assert!(since.elapsed() >= Duration::from_millis(150));
    // Who has said it stays as long as it likes.
    assert!(nothing_received(&mut known).await);
    let (writer, _inbox) = connected(again(of(&broker, "daemon", "writer"))).await;
    writer
        .try_publish(message("orinoco/v1/n1/req/x/chat/1", "still here"))
        .unwrap();
    assert_eq!(received(&mut known).await.payload, "still here");
}

#[tokio::test]
async fn who_is_thrown_out_in_mid_sentence_is_told_why() {
    let broker = Embedded::start().await;
    users::add(&broker.users, "ann", "ann", None).unwrap();
    let mut ann = stranger(&broker).await;
    let connect = b"\x10\x1a\0\x04MQTT\x05\xc2\0\x3c\0\0\x03ann\0\x03ann\0\x03ann";
    ann.write_all(connect).await.unwrap();
    // QoS 2, and never a PUBREL: far more than the broker is willing to have open.
    let mut flood = Vec::new();
    for n in 1..=2000_u16 {
        let topic = b"orinoco/v1/n1/req/ann/cancel/x";
        let body = [&[0, topic.len() as u8][..], topic, &n.to_be_bytes(), &[0]].concat();
        flood.extend([&[0x34, body.len() as u8][..], &body].concat());
    }
    ann.write_all(&flood).await.unwrap();
    let mut heard = Vec::new();
    let end = timeout(LIMIT, ann.read_to_end(&mut heard)).await.unwrap();
    assert!(end.is_ok(), "reset: {end:?}");
    let last = heard.len() - 3;
    assert_eq!(heard[last..], [0xe0, 1, 0x93], "Receive Maximum exceeded");
}

#[tokio::test]
async fn a_user_has_so_many_clients_and_others_have_theirs() {
    let broker = Embedded::start_with(|config| {
        config.clients_max = 4;
        config.clients_per_user_max = 2;
    })
    .await;
    for user in ["ann", "bob", "cat"] {
        users::add(&broker.users, user, user, None).unwrap();
    }
    let (first, first_inbox) = connected(of(&broker, "ann", "a1")).await;
    let _second = connected(of(&broker, "ann", "a2")).await;
    let reason = refusal(of(&broker, "ann", "a3")).await;
    assert!(reason.contains("QuotaExceeded"), "{reason}");
    // Who goes and leaves a session behind still has its place, and comes back to it.
    first.close(None, LIMIT).await.unwrap();
    drop(first_inbox);
    assert!(
        refusal(of(&broker, "ann", "a3"))
            .await
            .contains("QuotaExceeded")
    );
    let _again = connected(of(&broker, "ann", "a1")).await;

    let _bobs = [
        connected(of(&broker, "bob", "b1")).await,
        connected(of(&broker, "bob", "b2")).await,
    ];
    let reason = refusal(of(&broker, "cat", "c1")).await;
    assert!(reason.contains("QuotaExceeded"), "{reason}");
    // The daemon is not one of them.
    connected(of(&broker, "daemon", "d1")).await;
}

#[tokio::test]
async fn a_connection_ends_with_its_account() {
    let broker = Embedded::start().await;
    for user in ["ann", "bob", "cat"] {
        users::add(&broker.users, user, user, None).unwrap();
    }
    let reading = |user: &str| {
        let filter = format!("orinoco/v1/resp/{user}/#");
        subscribing(of(&broker, user, user), &filter)
    };
    let (_ann, mut ann) = connected(reading("ann")).await;
    let (_bob, mut bob) = connected(reading("bob")).await;
    let (_cat, mut cat) = connected(reading("cat")).await;
    let (daemon, _inbox) = connected(of(&broker, "daemon", "daemon")).await;

    users::remove(&broker.users, "ann").unwrap();
    users::add(&broker.users, "bob", "another password", None).unwrap();
    for inbox in [&mut ann, &mut bob] {
        assert!(matches!(next(inbox).await, Inbound::Down { .. }));
    }
    for user in ["ann", "bob", "cat"] {
        let answer = message(&format!("orinoco/v1/resp/{user}/1"), "for its eyes only");
        daemon.try_publish(answer).unwrap();
    }
    assert_eq!(received(&mut cat).await.payload, "for its eyes only");
    assert!(nothing_received(&mut ann).await);
    assert!(nothing_received(&mut bob).await);
}

#[tokio::test]
async fn a_role_decides_also_while_the_broker_runs_and_the_configuration_wins() {
    let broker = Embedded::start_with(|config| {
        config.roles.insert("fix".into(), Role::Device);
    })
    .await;
    for (user, role) in [
        ("boss", Role::Operator),
        ("fix", Role::Operator),
        ("ann", Role::Device),
    ] {
        users::add(&broker.users, user, user, Some(role)).unwrap();
    }
    let node = subscribing(of(&broker, "daemon", "daemon"), "orinoco/v1/n1/set/#");
    let (_daemon, mut node) = connected(node).await;
    let order = |from: &str| message("orinoco/v1/n1/set/model", from);
    for user in ["ann", "fix", "boss"] {
        let (link, _inbox) = connected(of(&broker, user, user)).await;
        link.publish(order(user)).await.unwrap();
        link.close(None, LIMIT).await.unwrap();
    }
    assert_eq!(
        received(&mut node).await.payload,
        "boss",
        "and nothing before it"
    );

    users::add(&broker.users, "ann", "ann", Some(Role::Operator)).unwrap();
    let (link, _inbox) = connected(of(&broker, "ann", "ann")).await;
    link.publish(order("ann")).await.unwrap();
    assert_eq!(received(&mut node).await.payload, "ann");
}

#[tokio::test]
async fn retained_messages_have_so_many_bytes_together_and_the_daemon_comes_first() {
    let broker = Embedded::start_with(|config| config.retained_bytes_max = 4000).await;
    users::add(&broker.users, "boss", "boss", Some(Role::Operator)).unwrap();
    let (boss, _inbox) = connected(of(&broker, "boss", "boss")).await;
    let (daemon, _inbox2) = connected(of(&broker, "daemon", "daemon")).await;
    let retain = |topic: &str, bytes: usize| Publish {
        retain: true,
        ..message(topic, "x".repeat(bytes))
    };
    let order = |n: u32| format!("orinoco/v1/n1/cmd/restart/{n}");
    boss.publish(retain(&order(1), 3000)).await.unwrap();
    // In place of the first there is room; beside it there is none.
    boss.publish(retain(&order(1), 3500)).await.unwrap();
    boss.publish(retain(&order(2), 1000)).await.unwrap();
    boss.close(None, LIMIT).await.unwrap();
    daemon
        .publish(retain("orinoco/v1/n1/status", 1000))
        .await
        .unwrap();
    daemon.close(None, LIMIT).await.unwrap();

    let late = subscribing(of(&broker, "daemon", "late"), "orinoco/v1/#");
    let (_late, mut late) = connected(late).await;
    let mut found = [received(&mut late).await, received(&mut late).await]
        .map(|message| (message.topic, message.payload.len()));
    found.sort();
    assert_eq!(
        found,
        [(order(1), 3500), ("orinoco/v1/n1/status".into(), 1000)]
    );
    assert!(nothing_received(&mut late).await);
}

#[tokio::test]
async fn what_is_kept_for_a_client_that_is_away_has_so_many_bytes() {
    let broker = Embedded::start_with(|config| config.queued_bytes_max = 20_000).await;
    users::add(&broker.users, "ann", "ann", None).unwrap();
    let ann = subscribing(of(&broker, "ann", "ann"), "orinoco/v1/resp/ann/#");
    let (link, inbox) = connected(ann.clone()).await;
    link.close(None, LIMIT).await.unwrap();
    drop(inbox);
    let (daemon, _inbox) = connected(of(&broker, "daemon", "daemon")).await;
    for n in 0..50 {
        let payload = format!("{n} {}", "x".repeat(1000));
        let answer = message(&format!("orinoco/v1/resp/ann/{n}"), payload);
        daemon.publish(answer).await.unwrap();
    }
    daemon.close(None, LIMIT).await.unwrap();

    let (link, mut inbox) = connected(ann).await;
    let mut found = Vec::new();
    while found.last() != Some(&49) {
        let message = received(&mut inbox).await;
        let number = message.topic.rsplit('/').next().unwrap();
        found.push(number.parse::<u32>().unwrap());
        link.try_ack(message.ack).unwrap();
    }
    assert!(nothing_received(&mut inbox).await);
    // The oldest went first, and the newest are there in their order.
    assert!((5..=20).contains(&found.len()), "{found:?}");
    let newest: Vec<u32> = (50 - found.len() as u32..50).collect();
    assert_eq!(found, newest);
}
