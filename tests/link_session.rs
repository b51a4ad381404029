//! What a link promises, against a broker that does what each test says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/client.rs"]
mod client;
#[path = "support/scripted_broker.rs"]
mod scripted_broker;

use std::time::Duration;

use client::{LIMIT, QUIET, config, impatient, message, received, up, wait_for};
use orinoco::link::{
    self, AckError, CloseError, Inbound, LinkConfig, Props, Publish, PublishError,
};
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use scripted_broker::{Peer, Received, ScriptedBroker};
use tokio::time::{Instant, timeout};

fn with_token(payload: &str, token: u64) -> Publish {
    Publish {
        token: Some(token),
        ..message("t", payload)
    }
}

async fn subscribe(peer: &mut Peer) -> u16 {
    match peer
        .expect(|packet| matches!(packet, Received::Subscribe { .. }))
        .await
    {
        Received::Subscribe { id } => id,
        other => panic!("{other:?}"),
    }
}

// Subscriptions.

#[tokio::test]
async fn filters_are_subscribed_at_each_connection_and_a_kept_session_waits_for_nothing() {
    let broker = ScriptedBroker::start().await;
    let subscriptions = vec!["a/#".into(), "b".into()];
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions,
        ..config(broker.port(), "link")
    });
    // A session of an earlier process may lack what this one wants.
    let mut peer = broker.accept(true).await;
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[1, 1]).await;
    up(&mut inbox).await;
    drop(peer);

    // Up without a SUBACK. That the filters are there is only what the broker says: another client with
    // our id may have left this session.
    let mut peer = broker.accept(true).await;
    up(&mut inbox).await;
    link.try_publish(message("t", "not held up")).unwrap();
    subscribe(&mut peer).await;
    assert_eq!(peer.publishes(1).await[0].0, "not held up");
    drop(peer);

    let mut peer = broker.accept(false).await;
    subscribe(&mut peer).await;
}

#[tokio::test]
async fn a_kept_session_settles_what_is_under_way_before_a_new_packet_id_is_used() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["a".into()],
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[1]).await;
    up(&mut inbox).await;
    for payload in ["1", "2"] {
        link.try_publish(message("t", payload)).unwrap();
    }
    let sent = peer.publishes(2).await;
    drop(peer);

    let mut peer = broker.accept(true).await;
    let again = peer.publishes(2).await;
    assert_eq!(again[0], (sent[0].0.clone(), sent[0].1, true));
    peer.puback(again[0].1, 0).await;
    assert!(
        timeout(QUIET, peer.next()).await.is_err(),
        "no SUBSCRIBE, whose id might be that of the second"
    );
    peer.puback(again[1].1, 0).await;
    subscribe(&mut peer).await;
}

#[tokio::test]
async fn nothing_is_published_before_the_broker_confirmed_the_subscriptions() {
    let broker = ScriptedBroker::start().await;
    let subscriptions = vec!["a/#".into()];
    let (link, _inbox) = link::spawn(LinkConfig {
        subscriptions,
        ..config(broker.port(), "link")
    });
    link.try_publish(message("t", "request")).unwrap();
    let mut peer = broker.accept(false).await;
    let id = subscribe(&mut peer).await;
    assert!(timeout(QUIET, peer.next_publish()).await.is_err());
    peer.suback(id, &[1]).await;
    assert_eq!(peer.publishes(1).await[0].0, "request");
}

#[tokio::test]
async fn a_refused_subscription_is_reported_with_its_filter() {
    let broker = ScriptedBroker::start().await;
    let subscriptions = vec!["mine".into(), "theirs".into()];
    let (_link, mut inbox) = link::spawn(LinkConfig {
        subscriptions,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[1, 0x87]).await;
    let refused =
        wait_for!(&mut inbox, Inbound::SubscribeRefused { filter, reason } => (filter, reason));
    assert_eq!(refused, ("theirs".into(), "NotAuthorized".into()));
    up(&mut inbox).await;
}

#[tokio::test]
async fn what_a_kept_session_sends_at_once_comes_after_up() {
    let broker = ScriptedBroker::start().await;
    let subscriptions = vec!["t".into()];
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(true).await;
    peer.publish("t", 3, b"waited for us").await;
    let id = subscribe(&mut peer).await;
    assert!(timeout(QUIET, inbox.recv()).await.is_err());
    peer.suback(id, &[1]).await;
    let first = client::next(&mut inbox).await;
    assert!(matches!(first, Inbound::Up { .. }), "{first:?}");
    let message = received(&mut inbox).await;
    assert_eq!(message.payload, "waited for us");
    link.try_ack(message.ack).unwrap();
    peer.expect(|packet| *packet == Received::PubAck { id: 3 })
        .await;
}

// Filters that come and go.

/// A link with a plain filter and a switched one, connected.
async fn with_switched(broker: &ScriptedBroker) -> (link::Link, link::Inbox, Peer) {
    with_switched_as(broker, config(broker.port(), "member")).await
}

async fn with_switched_as(
    broker: &ScriptedBroker,
    config: LinkConfig,
) -> (link::Link, link::Inbox, Peer) {
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["plain".into()],
        switched: vec!["$share/g/t".into()],
        ..config
    });
    let peer = confirmed(broker).await;
    up(&mut inbox).await;
    (link, inbox, peer)
}

/// The next connection, its plain filter confirmed.
async fn confirmed(broker: &ScriptedBroker) -> Peer {
    let mut peer = broker.accept(false).await;
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[1]).await;
    peer
}

async fn unsubscribe(peer: &mut Peer) -> u16 {
    match peer
        .expect(|packet| matches!(packet, Received::Unsubscribe { .. }))
        .await
    {
        Received::Unsubscribe { id } => id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn switched_filters_come_and_go_with_the_callers_word() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox, mut peer) = with_switched(&broker).await;
    assert!(timeout(QUIET, peer.next()).await.is_err(), "off at first");
    for _ in 0..2 {
        link.listen(true);
        let id = subscribe(&mut peer).await;
        peer.suback(id, &[1]).await;
        assert!(wait_for!(&mut inbox, Inbound::Listening { on } => on));
        link.listen(false);
        let id = unsubscribe(&mut peer).await;
        // Under way when it left.
        peer.publish("t", 9, b"late").await;
        peer.unsuback(id).await;
        let late = received(&mut inbox).await;
        assert!(link.brought(&late.ack));
        link.try_ack(late.ack).unwrap();
        assert!(!wait_for!(&mut inbox, Inbound::Listening { on } => on));
    }
}

#[tokio::test]
async fn the_last_word_counts_when_it_changes_faster_than_the_broker_confirms() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox, mut peer) = with_switched(&broker).await;
    link.listen(true);
    let first = subscribe(&mut peer).await;
    link.listen(false);
    link.listen(true);
    link.listen(false);
    assert!(
        timeout(QUIET, peer.next()).await.is_err(),
        "one change at a time"
    );
    peer.suback(first, &[1]).await;
    let id = unsubscribe(&mut peer).await;
    peer.unsuback(id).await;
    assert!(wait_for!(&mut inbox, Inbound::Listening { on } => on));
    assert!(!wait_for!(&mut inbox, Inbound::Listening { on } => on));
    assert!(timeout(QUIET, peer.next()).await.is_err());
}

#[tokio::test]
async fn switched_filters_are_wanted_on_the_next_connection_too_in_a_clean_session() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox, mut peer) = with_switched(&broker).await;
    const CLEAN_START: u8 = 2;
    const SESSION_EXPIRY_ZERO: [u8; 5] = [0x11, 0, 0, 0, 0];
    assert_eq!(peer.connect[7] & CLEAN_START, CLEAN_START);
    assert!(
        peer.connect
            .windows(5)
            .any(|bytes| bytes == SESSION_EXPIRY_ZERO)
    );
    link.listen(true);
    subscribe(&mut peer).await;
    drop(peer);
    wait_for!(&mut inbox, Inbound::Down { .. });
    let mut peer = confirmed(&broker).await;
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[1]).await;
    assert!(wait_for!(&mut inbox, Inbound::Listening { on } => on));
}

#[tokio::test]
async fn a_refused_switched_filter_is_reported_and_counts_as_off() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox, mut peer) = with_switched(&broker).await;
    link.listen(true);
    let id = subscribe(&mut peer).await;
    peer.suback(id, &[0x9e]).await;
    let refused =
        wait_for!(&mut inbox, Inbound::SubscribeRefused { filter, reason } => (filter, reason));
    let expected = (
        "$share/g/t".into(),
        "SharedSubscriptionsNotSupported".into(),
    );
    assert_eq!(refused, expected);
    assert!(!wait_for!(&mut inbox, Inbound::Listening { on } => on));
}

#[tokio::test]
async fn a_broker_that_does_not_confirm_a_change_is_left() {
    let broker = ScriptedBroker::start().await;
    let config = impatient(broker.port(), "member");
    let (link, mut inbox, mut peer) = with_switched_as(&broker, config).await;
    link.listen(true);
    subscribe(&mut peer).await;
    let reason = wait_for!(&mut inbox, Inbound::Down { reason, .. } => reason);
    assert!(reason.contains("does not confirm"), "{reason}");
}

#[tokio::test]
async fn a_link_with_switched_filters_publishes_nothing_and_takes_no_foreign_acknowledgement() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox, mut peer) = with_switched(&broker).await;
    let refused = link.try_publish(message("t", "x")).unwrap_err();
    assert!(matches!(refused, PublishError::ReceivesOnly { .. }));
    peer.publish("plain", 1, b"x").await;
    let ack = received(&mut inbox).await.ack;
    let (other, _other_inbox) = link::spawn(config(broker.port(), "other"));
    assert!(matches!(other.try_ack(ack), Err(AckError::OtherLink)));
}

// Takeover.

#[tokio::test]
async fn a_takeover_is_reported_and_not_fought() {
    let broker = ScriptedBroker::start().await;
    let backoff_max = Duration::from_millis(600);
    let (_link, mut inbox) = link::spawn(LinkConfig {
        backoff_max,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    for _ in 0..2 {
        up(&mut inbox).await;
        let since = Instant::now();
        peer.disconnect(0x8e).await;
        let taken_over = wait_for!(&mut inbox, Inbound::Down { taken_over, .. } => taken_over);
        assert!(taken_over);
        // Not after backoff_min, 10 ms.
        peer = broker.accept(false).await;
        assert!(since.elapsed() >= backoff_max / 2, "{:?}", since.elapsed());
    }
}

#[tokio::test]
async fn raw_does_not_see_a_takeover_that_mosquitto_tells() {
    let broker = ScriptedBroker::start().await;
    let (_client, mut event_loop) = AsyncClient::new(raw_with_manual_acks(broker.port()), 8);
    let (peer, connected) = tokio::join!(broker.accept(false), event_loop.poll());
    connected.unwrap();
    peer.disconnect_in_short(0x8e).await;
    let error = timeout(LIMIT, event_loop.poll())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Mqtt state: Connection closed by peer abruptly"
    );
}

#[tokio::test]
async fn a_takeover_that_rumqttc_does_not_see_is_recognised_by_its_repetition() {
    let broker = ScriptedBroker::start().await;
    let backoff_max = Duration::from_millis(600);
    let (_link, mut inbox) = link::spawn(LinkConfig {
        backoff_max,
        ..config(broker.port(), "link")
    });
    broker.accept(false).await.disconnect_in_short(0x8e).await;
    let second = broker.accept(false).await;
    let since = Instant::now();
    second.disconnect_in_short(0x8e).await;
    let first = wait_for!(&mut inbox, Inbound::Down { taken_over, .. } => taken_over);
    let (second, reason) =
        wait_for!(&mut inbox, Inbound::Down { taken_over, reason } => (taken_over, reason));
    assert_eq!((first, second), (false, true), "{reason}");
    assert!(reason.contains("client id \"link\""), "{reason}");
    broker.accept(false).await;
    assert!(since.elapsed() >= backoff_max / 2, "{:?}", since.elapsed());
}

// Acknowledgements of messages.

fn raw_with_manual_acks(port: u16) -> MqttOptions {
    let mut options = MqttOptions::new("raw", "127.0.0.1", port);
    options.set_manual_acks(true).set_clean_start(false);
    options
}

#[tokio::test]
async fn raw_acknowledges_a_message_of_an_earlier_connection() {
    let broker = ScriptedBroker::start().await;
    let (client, mut event_loop) = AsyncClient::new(raw_with_manual_acks(broker.port()), 8);
    let polling = tokio::spawn(async move {
        let mut late = None;
        loop {
            match event_loop.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => late = Some(publish),
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Some(publish) = &late {
                        client.try_ack(publish).unwrap();
                    }
                }
                _ => {}
            }
        }
    });
    let mut peer = broker.accept(false).await;
    peer.publish("t", 1, b"old").await;
    assert!(
        timeout(QUIET, peer.next()).await.is_err(),
        "not acknowledged yet"
    );
    drop(peer);
    // This connection never delivered id 1, and gets an acknowledgement for it.
    let mut peer = broker.accept(false).await;
    peer.expect(|packet| *packet == Received::PubAck { id: 1 })
        .await;
    polling.abort();
}

#[tokio::test]
async fn an_acknowledgement_of_an_earlier_connection_is_dropped() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    let mut peer = broker.accept(false).await;
    peer.publish("t", 1, b"old").await;
    let old = received(&mut inbox).await;
    drop(peer);

    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    peer.publish("t", 1, b"new").await;
    let new = received(&mut inbox).await;
    link.try_ack(old.ack).unwrap();
    link.try_publish(message("t", "after the old one")).unwrap();
    let first = peer.expect(|_| true).await;
    assert!(matches!(first, Received::Publish { .. }), "{first:?}");
    link.try_ack(new.ack).unwrap();
    peer.expect(|packet| *packet == Received::PubAck { id: 1 })
        .await;
}

#[tokio::test]
async fn acknowledgements_pass_while_the_window_is_full() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        inflight: 1,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    for payload in ["fills the window", "waits"] {
        link.try_publish(message("t", payload)).unwrap();
    }
    peer.publishes(1).await;
    peer.publish("t", 5, b"request").await;
    link.try_ack(received(&mut inbox).await.ack).unwrap();
    peer.expect(|packet| *packet == Received::PubAck { id: 5 })
        .await;
}

// Bounds of the inbox.

#[tokio::test]
async fn an_unread_inbox_drops_qos_0_and_keeps_qos_1() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        receive_max: 4,
        inbound_capacity: 8,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    for _ in 0..50 {
        peer.publish("t", 0, b"droppable").await;
    }
    for id in 1..=4 {
        peer.publish("t", id, b"kept").await;
    }
    // Answers to a ping-like probe come after everything before it was read.
    link.try_publish(message("t", "probe")).unwrap();
    let (_, id, _) = peer.publishes(1).await.remove(0);
    peer.puback(id, 0).await;

    let mut kept = 0;
    let mut droppable = 0;
    while kept < 4 {
        match &received(&mut inbox).await.payload[..] {
            b"kept" => kept += 1,
            _ => droppable += 1,
        }
    }
    assert_eq!(link.counters().n_dropped, 50 - droppable);
    assert!((8..=9).contains(&droppable), "{droppable}");
}

#[tokio::test]
async fn what_a_broker_sends_beyond_receive_maximum_waits_its_turn() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        receive_max: 2,
        inbound_capacity: 0,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    for id in 1..=200 {
        peer.publish("t", id, id.to_string().as_bytes()).await;
    }
    let mut held = std::collections::VecDeque::new();
    for id in 1..=200 {
        let message = received(&mut inbox).await;
        assert_eq!(message.payload, id.to_string());
        held.push_back(message.ack);
        if held.len() == 2 {
            assert!(inbox.try_recv().is_none(), "never more than the window");
            link.try_ack(held.pop_front().unwrap()).unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_too_much_to_keep_comes_on_the_next_connection() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        receive_max: 2,
        ..config(broker.port(), "link")
    });
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    let large = vec![b'x'; 100 << 10];
    for id in 1..=50 {
        peer.publish("t", id, &large).await;
    }
    let mut n_received = 0;
    let reason = loop {
        match inbox.recv().await.unwrap() {
            Inbound::Message(message) => {
                n_received += 1;
                link.try_ack(message.ack).unwrap();
            }
            Inbound::Down { reason, .. } => break reason,
            _ => {}
        }
    };
    assert!((30..50).contains(&n_received), "{n_received}");
    assert!(reason.contains("asked for the rest again"), "{reason}");
    let mut peer = broker.accept(true).await;
    for id in n_received + 1..=50 {
        peer.publish("t", id, &large).await;
        let message = wait_for!(&mut inbox, Inbound::Message(message) => message);
        link.try_ack(message.ack).unwrap();
    }
}

// Delivery reports.

#[tokio::test]
async fn delivered_is_told_after_the_acknowledgement_and_for_the_right_message() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    link.try_publish(message("t", "without token")).unwrap();
    for token in [11, 12] {
        link.try_publish(with_token("with token", token)).unwrap();
    }
    let sent = peer.publishes(3).await;
    assert!(
        timeout(QUIET, inbox.recv()).await.is_err(),
        "nothing is acknowledged"
    );
    for (_, id, _) in [&sent[2], &sent[0], &sent[1]] {
        peer.puback(*id, 0).await;
    }
    assert_eq!(
        wait_for!(&mut inbox, Inbound::Delivered { token } => token),
        12
    );
    assert_eq!(
        wait_for!(&mut inbox, Inbound::Delivered { token } => token),
        11
    );
}

#[tokio::test]
async fn delivered_is_told_once_when_the_connection_broke_before_the_acknowledgement() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    link.try_publish(with_token("again", 21)).unwrap();
    let mut first = broker.accept(false).await;
    first.publishes(1).await;
    drop(first);
    let mut second = broker.accept(false).await;
    let sent = second.publishes(1).await;
    second.puback(sent[0].1, 0x10).await; // no matching subscribers: delivered all the same
    assert_eq!(
        wait_for!(&mut inbox, Inbound::Delivered { token } => token),
        21
    );
    assert!(timeout(QUIET, inbox.recv()).await.is_err());
}

#[tokio::test]
async fn a_refused_publish_is_told_as_undelivered_and_not_sent_again() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    link.try_publish(with_token("refused", 31)).unwrap();
    let mut peer = broker.accept(false).await;
    let sent = peer.publishes(1).await;
    peer.puback(sent[0].1, 0x87).await;
    let told = wait_for!(&mut inbox, Inbound::Undelivered { token, reason, .. } => (token, reason));
    assert_eq!(told, (Some(31), "NotAuthorized".into()));
    link.try_publish(message("t", "next")).unwrap();
    assert_eq!(peer.publishes(1).await[0].0, "next");
}

// The outbox and its end.

#[tokio::test]
async fn a_full_outbox_hands_the_message_back() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(LinkConfig {
        outbox_capacity: 2,
        ..config(broker.port(), "link")
    });
    link.try_publish(message("t", "1")).unwrap();
    link.try_publish(message("t", "2")).unwrap();
    assert_eq!(link.free(), 0);
    match link.try_publish(message("t", "3")) {
        Err(PublishError::Full(publish)) => assert_eq!(*publish, message("t", "3")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn closing_sends_what_is_queued_then_the_last_message_then_disconnect() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    link.try_publish(message("t", "queued")).unwrap();
    let other = link.clone();
    let closing = tokio::spawn(link.close(Some(message("t", "offline")), LIMIT));
    let sent = peer.publishes(2).await;
    assert_eq!([&sent[0].0, &sent[1].0], ["queued", "offline"]);
    peer.puback(sent[0].1, 0).await;
    assert!(
        timeout(QUIET, peer.next()).await.is_err(),
        "the last one is not acknowledged yet"
    );
    assert!(!closing.is_finished());
    peer.puback(sent[1].1, 0).await;
    peer.expect(|packet| *packet == Received::Disconnect).await;
    closing.await.unwrap().unwrap();
    assert!(timeout(LIMIT, inbox.recv()).await.unwrap().is_none());
    assert!(matches!(
        other.try_publish(message("t", "late")),
        Err(PublishError::Closed { .. })
    ));
}

#[tokio::test]
async fn closing_gives_up_on_a_broker_that_does_not_acknowledge() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port(), "link"));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    let closed = link.close(Some(message("t", "offline")), QUIET).await;
    assert!(matches!(closed, Err(CloseError::TimedOut(_))), "{closed:?}");
    // No DISCONNECT: the broker publishes the will.
    peer.publishes(1).await;
    assert_eq!(peer.next().await, None);
}

#[tokio::test]
async fn the_will_is_announced_with_qos_1_and_retain() {
    let broker = ScriptedBroker::start().await;
    let will = Publish {
        retain: true,
        props: Props {
            content_type: Some("application/json".into()),
            ..Props::default()
        },
        ..message("node/status", "offline")
    };
    let (_link, _inbox) = link::spawn(LinkConfig {
        will: Some(will),
        ..config(broker.port(), "link")
    });
    let peer = broker.accept(false).await;
    // Connect flags follow protocol name and level: will, will QoS 1, will retain.
    assert_eq!(peer.connect[7] & 0b0011_1100, 0b0010_1100);
    let text = String::from_utf8_lossy(&peer.connect);
    assert!(
        text.contains("node/status") && text.contains("offline"),
        "{text}"
    );
}
