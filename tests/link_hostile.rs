//! A link and brokers that break the protocol, or serve us badly: it says what is wrong, loses nothing,
//! and is never stuck.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/client.rs"]
mod client;
#[path = "support/scripted_broker.rs"]
mod scripted_broker;

use std::time::Duration;

use client::{LIMIT, QUIET, config, impatient, message, received, up, wait_for};
use orinoco::link::{self, Inbound, Inbox, Link, LinkConfig, Publish};
use scripted_broker::{Peer, Received, ScriptedBroker};
use tokio::time::{Instant, timeout};

fn spawn(broker: &ScriptedBroker) -> (Link, Inbox) {
    link::spawn(config(broker.port(), "link"))
}

async fn down(inbox: &mut Inbox) -> String {
    wait_for!(inbox, Inbound::Down { reason, .. } => reason)
}

/// The link serves: a message goes each way.
async fn serves(link: &Link, inbox: &mut Inbox, peer: &mut Peer) {
    link.try_publish(message("t", "out")).unwrap();
    loop {
        let (payload, id, _) = peer.publishes(1).await.remove(0);
        if id != 0 {
            peer.puback(id, 0).await;
        }
        if payload == "out" {
            break;
        }
    }
    peer.publish("t", 40_000, b"in").await;
    let message = received(inbox).await;
    assert_eq!(message.payload, "in");
    link.try_ack(message.ack).unwrap();
    peer.expect(|packet| *packet == Received::PubAck { id: 40_000 })
        .await;
}

// CONNACK.

#[tokio::test]
async fn a_refusal_is_told_in_words_and_tried_again() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    for (code, expected) in [
        (0x86, "BadUserNamePassword: wrong user name or password"),
        (0x87, "NotAuthorized: its rules do not let us in"),
        (0x84, "it does not speak MQTT 5"),
        (0x88, "the broker refused the connection: ServerUnavailable"),
    ] {
        let mut peer = broker.connect().await;
        peer.write(&[0x20, 3, 0, code, 0]).await;
        let reason = down(&mut inbox).await;
        assert!(reason.contains(expected), "{expected}\nin {reason}");
    }
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    serves(&link, &mut inbox, &mut peer).await;
}

#[tokio::test]
async fn a_broker_that_never_answers_connect_is_left() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        connect_timeout: QUIET,
        ..config(broker.port(), "link")
    });
    let _silent = broker.connect().await;
    let reason = down(&mut inbox).await;
    assert!(reason.contains("no CONNACK from 127.0.0.1"), "{reason}");
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    serves(&link, &mut inbox, &mut peer).await;
}

#[tokio::test]
async fn what_is_no_mqtt_ends_the_connection_and_nothing_else() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    link.try_publish(message("t", "kept")).unwrap();
    // No such packet type; in place of CONNACK, and after it.
    for accepts in [false, true] {
        let mut peer = match accepts {
            true => broker.accept(false).await,
            false => broker.connect().await,
        };
        peer.write(b"\0\x02hi").await;
        assert!(peer.is_left().await);
        let reason = down(&mut inbox).await;
        assert!(
            reason.contains("no MQTT 5") || reason.contains("expected CONNACK"),
            "{reason}"
        );
    }
    let mut peer = broker.accept(false).await;
    assert_eq!(peer.drain(1, QUIET).await, ["kept"]);
    serves(&link, &mut inbox, &mut peer).await;
}

#[tokio::test]
async fn limits_within_which_nothing_could_be_sent_are_told() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    link.try_publish(message("t", "kept")).unwrap();
    for (properties, expected) in [
        (&[0x21, 0, 0][..], "Receive Maximum 0"),
        (&[0x27, 0, 0, 0, 0], "Maximum Packet Size 0"),
        (&[0x24, 0], "takes no QoS 1"),
    ] {
        let mut peer = broker.accept_with(false, properties).await;
        assert!(peer.is_left().await);
        let reason = down(&mut inbox).await;
        assert!(reason.contains(expected), "{expected}\nin {reason}");
    }
    // The least that can be served: one at a time.
    let mut peer = broker.accept_with(false, &[0x21, 0, 1]).await;
    up(&mut inbox).await;
    link.try_publish(message("t", "second")).unwrap();
    assert_eq!(peer.drain(2, QUIET).await, ["kept", "second"]);
    serves(&link, &mut inbox, &mut peer).await;
}

#[tokio::test]
async fn a_session_that_should_be_gone_is_not_believed() {
    let broker = ScriptedBroker::start().await;
    let (_link, mut inbox) = link::spawn(LinkConfig {
        clean_start: true,
        subscriptions: vec!["a".into()],
        ..config(broker.port(), "link")
    });
    for _ in 0..2 {
        let mut peer = broker.accept(true).await;
        assert!(peer.wants_clean_start());
        subscribed(&mut peer).await;
        let session_present =
            wait_for!(&mut inbox, Inbound::Up { session_present, .. } => session_present);
        assert!(!session_present);
    }
}

async fn subscribed(peer: &mut Peer) {
    let packet = peer
        .expect(|packet| matches!(packet, Received::Subscribe { .. }))
        .await;
    if let Received::Subscribe { id } = packet {
        peer.suback(id, &[1]).await;
    }
}

// Subscriptions.

#[tokio::test]
async fn a_broker_that_does_not_confirm_the_subscriptions_is_left() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["a".into()],
        ..impatient(broker.port(), "link")
    });
    link.try_publish(message("t", "kept")).unwrap();
    // At first, and in a session that it claims to have kept.
    for kept in [false, true] {
        let mut silent = broker.accept(kept).await;
        let reason = down(&mut inbox).await;
        assert!(
            reason.contains("does not confirm our subscriptions"),
            "{reason}"
        );
        assert!(silent.is_left().await);
        let mut peer = broker.accept(false).await;
        subscribed(&mut peer).await;
        peer.drain(usize::from(!kept), QUIET).await;
        drop(peer);
        down(&mut inbox).await;
    }
}

#[tokio::test]
async fn acknowledgements_that_nobody_asked_for_change_nothing() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        switched: vec!["$share/p/a".into()],
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    // More than the inbox has places.
    for id in 1..=1000 {
        peer.suback(id, &[0x87]).await;
        peer.write(&[0xb0, 4, 0, id as u8, 0, 0]).await; // UNSUBACK
    }
    peer.publish("t", 1, b"in").await;
    assert_eq!(received(&mut inbox).await.payload, "in");
    drop(link);
}

// Acknowledgements of publishes.

#[tokio::test]
async fn an_acknowledgement_of_nothing_ends_the_connection_and_loses_nothing() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    for payload in ["1", "2"] {
        link.try_publish(message("t", payload)).unwrap();
    }
    let mut peer = broker.accept(false).await;
    let sent = peer.publishes(2).await;
    peer.puback(sent[0].1, 0).await;
    peer.puback(9999, 0).await;
    let reason = down(&mut inbox).await;
    assert!(reason.contains("packet id 9999"), "{reason}");
    let mut peer = broker.accept(true).await;
    assert_eq!(peer.drain(1, QUIET).await, ["2"]);
    serves(&link, &mut inbox, &mut peer).await;
}

/// The others must not hide it: it may be the end of somebody's answer.
#[tokio::test]
async fn one_acknowledgement_that_never_comes_is_noticed_while_others_do() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(impatient(broker.port(), "link"));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    link.try_publish(message("t", "forgotten")).unwrap();
    peer.publishes(1).await;
    // A publish each 50 ms, which is a tenth of the stall limit, is acknowledged at once.
    let reason = loop {
        if let Some(Inbound::Down { reason, .. }) = inbox.try_recv() {
            break reason;
        }
        link.try_publish(message("t", "in time")).unwrap();
        if let Ok(Some((_, id, _))) = timeout(QUIET, peer.next_publish()).await {
            peer.puback(id, 0).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(reason.contains("does not acknowledge"), "{reason}");
    let mut peer = broker.accept(true).await;
    assert_eq!(peer.drain(1, QUIET).await[0], "forgotten");
    serves(&link, &mut inbox, &mut peer).await;
}

#[tokio::test]
async fn many_refused_publishes_leave_the_window_open() {
    const N: u64 = 300;
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        inflight: 4,
        outbox_capacity: N as usize,
        ..config(broker.port(), "link")
    });
    for token in 0..N {
        let refused = Publish {
            token: Some(token),
            ..message("t", token.to_string())
        };
        link.try_publish(refused).unwrap();
    }
    let mut peer = broker.accept(false).await;
    let refusing = async {
        for _ in 0..N {
            let (_, id, _) = peer.publishes(1).await.remove(0);
            peer.puback(id, 0x97).await; // Quota exceeded.
        }
    };
    let told = async {
        let mut tokens = Vec::new();
        while tokens.len() < N as usize {
            if let Inbound::Undelivered { token, reason, .. } = client::next(&mut inbox).await {
                assert_eq!(reason, "QuotaExceeded");
                tokens.push(token.unwrap());
            }
        }
        tokens
    };
    let ((), tokens) = tokio::join!(refusing, told);
    assert_eq!(tokens, (0..N).collect::<Vec<_>>());
    serves(&link, &mut inbox, &mut peer).await;
}

// Messages.

#[tokio::test]
async fn a_message_with_qos_2_is_rejected_and_the_next_one_taken() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    peer.publish_with_qos("t", 7, 2, b"exactly once").await;
    serves(&link, &mut inbox, &mut peer).await;
    assert_eq!(link.counters().n_rejected, 1);
}

/// The announced limit keeps such packets away; a broker that ignores it would send the same one after
/// each reconnect, for ever.
#[tokio::test]
async fn a_packet_larger_than_announced_comes_twice_and_then_its_session_is_given_up() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        packet_bytes_max: 2048,
        subscriptions: vec!["a".into()],
        ..config(broker.port(), "link")
    });
    link.try_publish(message("t", "kept")).unwrap();
    for _ in 0..2 {
        let mut peer = broker.accept(true).await;
        assert!(!peer.wants_clean_start());
        peer.publish("a", 1, &[b'x'; 3000]).await;
        assert!(peer.is_left().await);
    }
    let first = down(&mut inbox).await;
    assert!(
        first.contains("sent a packet of 3006 bytes, and was told that we take 2048"),
        "{first}"
    );
    let second = down(&mut inbox).await;
    assert!(second.contains("its session is given up"), "{second}");

    // A failed attempt in between does not bring the session back.
    drop(broker.connect().await);
    let mut peer = broker.accept(false).await;
    assert!(peer.wants_clean_start());
    subscribed(&mut peer).await;
    up(&mut inbox).await;
    assert_eq!(peer.drain(1, QUIET).await, ["kept"]);
    serves(&link, &mut inbox, &mut peer).await;
    drop(peer);
    // And the next session is kept again.
    assert!(!broker.connect().await.wants_clean_start());
}

/// rumqttc hands out what it has read before it looks at what is to be sent (rumqttc issue 1025).
#[tokio::test]
async fn a_flood_of_messages_does_not_hold_up_publishes() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    let peer = broker.accept(false).await;
    up(&mut inbox).await;
    let (mut reader, mut writer) = peer.split();
    let flooding = tokio::spawn(async move {
        let packet = [&[0x30, 104, 0, 1, b't', 0][..], &[b'x'; 100]].concat();
        while writer.write(&packet.repeat(50)).await {}
    });
    let reading = tokio::spawn(async move { while inbox.recv().await.is_some() {} });
    let mut waits = Vec::new();
    for number in 0..20 {
        let started = Instant::now();
        let probe = Publish {
            topic: "t".into(),
            payload: format!("{number}").into_bytes().into(),
            ..Publish::default()
        };
        link.try_publish(probe).unwrap();
        let arrived = timeout(LIMIT, reader.next_publish()).await.unwrap();
        assert_eq!(arrived.unwrap().0, number.to_string());
        waits.push(started.elapsed());
    }
    // Most of them: the machine has other things to do, too.
    waits.sort();
    assert!(waits[10] < Duration::from_secs(1), "{waits:?}");
    flooding.abort();
    reading.abort();
}

// Reconnecting.

#[tokio::test]
async fn attempts_are_spread_out_and_never_in_a_hot_loop() {
    let broker = ScriptedBroker::start().await;
    let (_link, mut inbox) = link::spawn(LinkConfig {
        backoff_min: Duration::from_millis(40),
        backoff_max: Duration::from_millis(320),
        ..config(broker.port(), "link")
    });
    let mut at = Vec::new();
    for _ in 0..7 {
        drop(broker.connect().await);
        at.push(Instant::now());
    }
    let waits: Vec<u128> = at.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
    // Doubled, at least half of it, and not more than the longest but for a busy machine.
    for (wait, whole) in waits.iter().zip([40, 80, 160, 320, 320, 320]) {
        assert!(*wait >= whole / 2, "{waits:?}");
    }
    // One report for all the same failures.
    down(&mut inbox).await;
    assert!(inbox.try_recv().is_none());
}

#[tokio::test]
async fn a_closed_link_does_not_come_back() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = spawn(&broker);
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    link.close(None, LIMIT).await.unwrap();
    peer.expect(|packet| *packet == Received::Disconnect).await;
    assert!(peer.is_left().await);
    // rumqttc alone would connect again when polled.
    assert!(broker.nobody_for(QUIET).await);
}
