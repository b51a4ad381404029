//! Each defect of rumqttc 0.25.1 (v5) that the link repairs, twice: raw rumqttc shows it, the link
//! does not. When a "raw" test fails after an update, its repair can go.
//!
//! The contract for any client library in its place, and where it is tested:
//!
//! | promise | test (here, unless another file is named) |
//! |---|---|
//! | what is queued outlives the session, in order | `queued_messages_survive_a_lost_session_in_order`, `…_with_a_small_window` |
//! | and every fault of a network and a broker, end to end | chaos.rs |
//! | what is sent again says so, under its packet id | `a_kept_session_gets_unacknowledged_messages_again_with_their_ids_and_dup` |
//! | packet ids that collide wedge nothing (rumqttc issue 1056) | `acknowledgements_out_of_order_wedge_nothing` |
//! | a peer that stops reading, acknowledging or answering is left | `a_peer_that_stopped_reading_is_left`, `a_broker_that_does_not_acknowledge_…`, `a_broker_that_answers_no_ping_…`; link_hostile.rs: `one_acknowledgement_that_never_comes_…` |
//! | a packet that is too large is nobody's poison, in either direction | `a_packet_that_the_broker_does_not_take_…`, `a_packet_queued_before_the_limit_was_known_…`, `a_large_message_arrives_and_the_limit_is_announced`; link_hostile.rs: `a_packet_larger_than_announced_comes_twice_…` |
//! | no topic aliases, in either direction (rumqttc issue 972) | `a_message_without_topic_is_rejected_…`, `a_broker_that_offers_aliases_gets_whole_topics` |
//! | no QoS 2, and refusals leave the window open (issue 1060) | link_hostile.rs: `a_message_with_qos_2_is_rejected_…`, `many_refused_publishes_leave_the_window_open` |
//! | a small window, little memory, and never more than the broker takes | `raw_takes_14_mib_for_each_connection_and_a_link_does_not`, `no_more_messages_are_in_flight_than_the_broker_takes` |
//! | small packets go out at once | `a_small_packet_goes_out_at_once` |
//! | keep-alive: 0 from the broker, and less than rumqttc takes | `a_broker_that_turns_keep_alive_off_is_kept`, `a_keep_alive_that_rumqttc_would_panic_at_is_raised` |
//! | who publishes never waits for who polls (issues 263, 1025) | link_session.rs: `a_full_outbox_hands_the_message_back`, `an_unread_inbox_…`; link_hostile.rs: `a_flood_of_messages_does_not_hold_up_publishes` |
//! | subscribed at each connection (issue 250); a refusal is told with its filter | link_session.rs: `filters_are_subscribed_at_each_connection_…`, `a_refused_subscription_…` |
//! | delivered is told, for the right message, once | link_session.rs: `delivered_is_told_…` |
//! | an acknowledgement names its connection (issue 859) | link_session.rs: `an_acknowledgement_of_an_earlier_connection_is_dropped` |
//! | a takeover is told and not fought | link_session.rs: `a_takeover_is_reported_…`, `a_takeover_that_rumqttc_does_not_see_…`; link_brokers.rs: `two_equal_clients_…`; chaos.rs: `two_daemons_with_one_name_…` |
//! | waits double, with jitter | link_hostile.rs: `attempts_are_spread_out_…`; properties in src/link/backoff.rs |
//! | the last word (`offline`) is acknowledged before DISCONNECT, and then nobody comes back | link_session.rs: `closing_sends_what_is_queued_then_…`; link_brokers.rs: `a_closed_link_leaves_its_last_word_…`; link_hostile.rs: `a_closed_link_does_not_come_back` |
//! | TLS without rumqttc's | link_tls.rs |

#![allow(clippy::print_stderr, reason = "a failed test says its seed")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/client.rs"]
mod client;
#[path = "support/random.rs"]
mod random;
#[path = "support/scripted_broker.rs"]
mod scripted_broker;

use std::time::Duration;

use client::{QUIET, up, wait_for};
use orinoco::link::{self, Inbound, Link, LinkConfig, Publish, PublishError};
use random::Random;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{self as packets, Packet};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions, MqttState, Request};
use scripted_broker::{Peer, Received, ScriptedBroker};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

fn config(port: u16) -> LinkConfig {
    client::config(port, "link")
}

fn message(payload: impl Into<String>) -> Publish {
    client::message("t", payload)
}

fn raw_options(port: u16) -> MqttOptions {
    let mut options = MqttOptions::new("raw", "127.0.0.1", port);
    options
        .set_keep_alive(Duration::from_secs(5))
        .set_clean_start(false);
    options
}

/// Polls as rumqttc's examples do: errors are followed by another poll.
fn poll_raw(mut event_loop: EventLoop) -> Polling {
    let task = tokio::spawn(async move {
        loop {
            if event_loop.poll().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
    Polling(task.abort_handle())
}

struct Polling(AbortHandle);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn numbers(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("m{i}")).collect()
}

fn publish_20(link: &Link) {
    for payload in numbers(20) {
        link.try_publish(message(payload)).unwrap();
    }
}

// A connection is lost, and the broker has no session any more.

async fn lose_session_after(broker: &ScriptedBroker, n_seen: usize, n_after: usize) -> Vec<String> {
    let mut first = broker.accept(false).await;
    first.publishes(n_seen).await;
    drop(first);
    broker.accept(false).await.drain(n_after, QUIET).await
}

#[tokio::test]
async fn raw_forgets_queued_messages_with_the_session() {
    let broker = ScriptedBroker::start().await;
    let (client, event_loop) = AsyncClient::new(raw_options(broker.port()), 64);
    for payload in numbers(20) {
        client
            .try_publish("t", QoS::AtLeastOnce, false, payload)
            .unwrap();
    }
    let _polling = poll_raw(event_loop);
    assert_eq!(
        lose_session_after(&broker, 3, 0).await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn raw_forgets_what_it_never_wrote_and_its_subscriptions_with_the_session() {
    let broker = ScriptedBroker::start().await;
    let mut options = raw_options(broker.port());
    options.set_outgoing_inflight_upper_limit(2);
    let (client, event_loop) = AsyncClient::new(options, 64);
    for payload in numbers(20) {
        client
            .try_publish("t", QoS::AtLeastOnce, false, payload)
            .unwrap();
    }
    client.try_subscribe("a", QoS::AtLeastOnce).unwrap();
    let _polling = poll_raw(event_loop);
    // With a window of two, eighteen publishes and the subscription were still in its queue.
    let mut first = broker.accept(false).await;
    first.publishes(2).await;
    drop(first);
    let mut second = broker.accept(false).await;
    assert!(
        timeout(QUIET, second.next()).await.is_err(),
        "neither is sent"
    );
}

#[tokio::test]
async fn queued_messages_survive_a_lost_session_in_order() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(config(broker.port()));
    publish_20(&link);
    assert_eq!(lose_session_after(&broker, 3, 20).await, numbers(20));
}

#[tokio::test]
async fn queued_messages_survive_a_lost_session_with_a_small_window() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(LinkConfig {
        inflight: 2,
        ..config(broker.port())
    });
    publish_20(&link);
    assert_eq!(lose_session_after(&broker, 2, 20).await, numbers(20));
}

#[tokio::test]
async fn raw_repeats_without_saying_so() {
    let broker = ScriptedBroker::start().await;
    let (client, event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    client
        .try_publish("t", QoS::AtLeastOnce, false, "once more")
        .unwrap();
    let _polling = poll_raw(event_loop);
    broker.accept(false).await.publishes(1).await;
    // MQTT 5, 3.3.1.1: DUP must be set on a message that is delivered again.
    let again = broker.accept(true).await.publishes(1).await;
    assert_eq!(again, [("once more".into(), 1, false)]);
}

#[tokio::test]
async fn a_kept_session_gets_unacknowledged_messages_again_with_their_ids_and_dup() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(config(broker.port()));
    for payload in numbers(3) {
        link.try_publish(message(payload)).unwrap();
    }
    let mut first = broker.accept(false).await;
    let sent = first.publishes(3).await;
    first.puback(sent[0].1, 0).await;
    // Until the acknowledgement was read, the link may send the message again.
    while !link_has_read(&link, &mut first).await {}
    drop(first);
    let again = broker.accept(true).await.publishes(2).await;
    assert_eq!(
        again,
        [
            ("m1".into(), sent[1].1, true),
            ("m2".into(), sent[2].1, true)
        ]
    );
}

/// A publish that arrives was handed over after everything read before it.
async fn link_has_read(link: &Link, peer: &mut Peer) -> bool {
    let probe = Publish {
        topic: "probe".into(),
        ..Publish::default()
    };
    link.try_publish(probe).unwrap();
    peer.expect(|packet| matches!(packet, Received::Publish { .. }))
        .await;
    true
}

// The window.

#[tokio::test]
async fn no_more_messages_are_in_flight_than_the_broker_takes() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(LinkConfig {
        stall: Duration::from_secs(5), // The oldest is owed for two silences.
        ..config(broker.port())
    });
    publish_20(&link);
    // Receive Maximum 5; one place stays free for acknowledgements (src/link/connection.rs).
    let mut peer = broker.accept_with(false, &[0x21, 0, 5]).await;
    let sent = peer.publishes(4).await;
    assert!(
        timeout(QUIET, peer.next_publish()).await.is_err(),
        "the window is full"
    );
    // Out of order: the oldest id is still out, and must not come round.
    for (_, id, _) in &sent[1..] {
        peer.puback(*id, 0).await;
    }
    assert!(
        timeout(QUIET, peer.next_publish()).await.is_err(),
        "the oldest is still out"
    );
    peer.puback(sent[0].1, 0).await;
    assert_eq!(peer.drain(16, QUIET).await, numbers(20)[4..]);
}

// Packet ids collide, then the session is lost.

async fn collide_then_count(broker: &ScriptedBroker, n_after: usize) -> usize {
    // Of two in flight, the second is acknowledged: the next id is that of the first.
    let mut first = broker.accept(false).await;
    let sent = first.publishes(2).await;
    first.puback(sent[1].1, 0).await;
    let _ = timeout(QUIET, first.next_publish()).await;
    drop(first);
    let mut second = broker.accept(false).await;
    second.drain(n_after, QUIET).await.len()
}

#[tokio::test]
async fn raw_sends_nothing_any_more_after_a_collision() {
    let broker = ScriptedBroker::start().await;
    let mut options = raw_options(broker.port());
    options.set_outgoing_inflight_upper_limit(2);
    let (client, event_loop) = AsyncClient::new(options, 64);
    let _polling = poll_raw(event_loop);
    let publisher = tokio::spawn(async move {
        for payload in numbers(20) {
            client
                .publish("t", QoS::AtLeastOnce, false, payload)
                .await
                .unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert_eq!(collide_then_count(&broker, 0).await, 0);
    publisher.abort();
}

#[tokio::test]
async fn acknowledgements_out_of_order_wedge_nothing() {
    let broker = ScriptedBroker::start().await;
    let (link, _inbox) = link::spawn(LinkConfig {
        inflight: 2,
        ..config(broker.port())
    });
    publish_20(&link);
    // All but the one that was acknowledged.
    assert_eq!(collide_then_count(&broker, 19).await, 19);
}

// The peer stops reading.

#[tokio::test]
async fn raw_waits_for_ever_for_a_peer_that_stopped_reading() {
    let broker = ScriptedBroker::start().await;
    let (client, mut event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    let publisher = tokio::spawn(async move {
        let body = vec![b'x'; 1 << 16];
        while client
            .publish("t", QoS::AtMostOnce, false, body.clone())
            .await
            .is_ok()
        {}
    });
    let (peer, _) = tokio::join!(broker.accept(false), event_loop.poll());
    // Not a proof of "for ever", but longer than keep-alive: neither a ping nor an error.
    let stalled = loop {
        match timeout(Duration::from_secs(6), event_loop.poll()).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => break false,
            Err(_) => break true,
        }
    };
    assert!(stalled);
    publisher.abort();
    drop(peer);
}

#[tokio::test]
async fn a_peer_that_stopped_reading_is_left() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(client::impatient(broker.port(), "link"));
    let _stalled = broker.accept(false).await;
    up(&mut inbox).await;
    let publisher = tokio::spawn(async move {
        let payload = vec![b'x'; 1 << 16].into();
        let publish = Publish {
            topic: "t".into(),
            payload,
            ..Publish::default()
        };
        while link.publish(publish.clone()).await.is_ok() {}
    });
    let reason = wait_for!(&mut inbox, Inbound::Down { reason, .. } => reason);
    assert!(reason.contains("does not read"), "{reason}");
    let mut second = broker.accept(false).await;
    assert_eq!(second.publishes(50).await.len(), 50);
    publisher.abort();
}

#[tokio::test]
async fn a_broker_that_does_not_acknowledge_is_left_and_gets_the_message_again() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(client::impatient(broker.port(), "link"));
    link.try_publish(message("once more")).unwrap();
    let mut first = broker.accept(false).await;
    first.publishes(1).await;
    let reason = wait_for!(&mut inbox, Inbound::Down { reason, .. } => reason);
    assert!(reason.contains("does not acknowledge"), "{reason}");
    assert_eq!(
        broker.accept(false).await.publishes(1).await[0].0,
        "once more"
    );
}

// Sizes.

#[tokio::test]
async fn raw_leaves_a_broker_that_sends_12_kib() {
    let broker = ScriptedBroker::start().await;
    let (_client, event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    let _polling = poll_raw(event_loop);
    let mut peer = broker.accept(false).await;
    peer.publish("t", 0, &vec![b'x'; 12 << 10]).await;
    assert!(peer.is_left().await);
}

#[tokio::test]
async fn a_large_message_arrives_and_the_limit_is_announced() {
    let broker = ScriptedBroker::start().await;
    let (_link, mut inbox) = link::spawn(config(broker.port()));
    let mut peer = broker.accept(false).await;
    // Maximum Packet Size is property 0x27.
    let announced = [&[0x27][..], &(1u32 << 20).to_be_bytes()].concat();
    assert!(peer.connect.windows(5).any(|window| window == announced));
    peer.publish("t", 0, &vec![b'x'; 512 << 10]).await;
    let message = wait_for!(&mut inbox, Inbound::Message(message) => message);
    assert_eq!(message.payload.len(), 512 << 10);
}

/// CONNACK property Maximum Packet Size 200.
const TAKES_200_BYTES: [u8; 5] = [0x27, 0, 0, 0, 200];

#[tokio::test]
async fn raw_repeats_a_packet_that_the_broker_does_not_take() {
    let broker = ScriptedBroker::start().await;
    let (client, event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    let _polling = poll_raw(event_loop);
    let _ = client.try_publish("t", QoS::AtLeastOnce, false, vec![b'x'; 300]);
    // It comes back with every connection, and ends it.
    for _ in 0..4 {
        let mut peer = broker.accept_with(true, &TAKES_200_BYTES).await;
        assert!(peer.is_left().await);
    }
}

#[tokio::test]
async fn a_packet_that_the_broker_does_not_take_is_refused_before_it_is_queued() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    let mut peer = broker.accept_with(false, &TAKES_200_BYTES).await;
    up(&mut inbox).await;
    let refused = link.try_publish(message("x".repeat(300)));
    assert!(
        matches!(
            refused,
            Err(PublishError::TooLarge {
                found: 309,
                allowed: 200,
                ..
            })
        ),
        "{refused:?}"
    );
    link.try_publish(message("small")).unwrap();
    assert_eq!(peer.publishes(1).await[0].0, "small");
}

#[tokio::test]
async fn a_packet_queued_before_the_limit_was_known_is_reported_and_not_in_the_way() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    link.try_publish(Publish {
        token: Some(7),
        ..message("x".repeat(300))
    })
    .unwrap();
    link.try_publish(message("small")).unwrap();
    let mut peer = broker.accept_with(false, &TAKES_200_BYTES).await;
    assert_eq!(peer.publishes(1).await[0].0, "small");
    let token = wait_for!(&mut inbox, Inbound::Undelivered { token, .. } => token);
    assert_eq!(token, Some(7));
}

// Keep-alive 0 from the server.

#[tokio::test]
async fn raw_leaves_a_broker_that_turns_keep_alive_off() {
    let broker = ScriptedBroker::start().await;
    let (_client, event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    let _polling = poll_raw(event_loop);
    let mut peer = broker.accept_with(false, &[0x13, 0, 0]).await;
    assert!(peer.is_left().await);
}

#[tokio::test]
async fn a_broker_that_turns_keep_alive_off_is_kept() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    let mut peer = broker.accept_with(false, &[0x13, 0, 0]).await;
    up(&mut inbox).await;
    // The first timer was set before we could change it: one ping comes at once.
    peer.expect(|packet| *packet == Received::Ping).await;
    peer.write(&[0xd0, 0]).await;
    assert!(timeout(QUIET, peer.next()).await.is_err(), "and no more");
    link.try_publish(message("still here")).unwrap();
    assert_eq!(peer.publishes(1).await[0].0, "still here");
}

// Topic aliases.

#[tokio::test]
async fn raw_delivers_an_aliased_message_without_its_topic() {
    let broker = ScriptedBroker::start().await;
    let mut options = raw_options(broker.port());
    options.set_topic_alias_max(Some(10));
    let (_client, mut event_loop) = AsyncClient::new(options, 8);
    let (mut peer, connected) = tokio::join!(broker.accept(false), event_loop.poll());
    connected.unwrap();
    // Topic "a" becomes alias 1; then only the alias comes.
    peer.write(&[0x30, 7, 0, 1, b'a', 3, 0x23, 0, 1]).await;
    peer.write(&[0x30, 6, 0, 0, 3, 0x23, 0, 1]).await;
    let mut topics = Vec::new();
    while topics.len() < 2 {
        if let Ok(Event::Incoming(Packet::Publish(publish))) = event_loop.poll().await {
            topics.push(publish.topic);
        }
    }
    assert_eq!(topics, ["a", ""]);
}

#[tokio::test]
async fn a_message_without_topic_is_rejected_and_acknowledged() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    peer.publish("", 9, b"aliased").await;
    peer.expect(|packet| *packet == Received::PubAck { id: 9 })
        .await;
    peer.publish("t", 0, b"next").await;
    let message = wait_for!(&mut inbox, Inbound::Message(message) => message);
    assert_eq!(message.payload, "next");
    assert_eq!(link.counters().n_rejected, 1);
}

/// Those of one connection mean nothing on the next.
#[tokio::test]
async fn a_broker_that_offers_aliases_gets_whole_topics() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    // Topic Alias Maximum 10.
    let mut peer = broker.accept_with(false, &[0x22, 0, 10]).await;
    up(&mut inbox).await;
    for payload in ["first", "again"] {
        link.try_publish(message(payload)).unwrap();
        let whole = |packet: &Received| matches!(packet, Received::Publish { topic, payload: found, .. } if topic == "t" && found == payload);
        peer.expect(whole).await;
    }
}

/// rumqttc panics at less than 5 s.
#[tokio::test]
async fn a_keep_alive_that_rumqttc_would_panic_at_is_raised() {
    let broker = ScriptedBroker::start().await;
    let (_link, mut inbox) = link::spawn(LinkConfig {
        keep_alive: Duration::from_secs(1),
        ..config(broker.port())
    });
    let peer = broker.accept(false).await;
    // After protocol name (6 bytes), level and flags.
    assert_eq!(peer.connect[8..10], [0, 5]);
    up(&mut inbox).await;
}

#[tokio::test]
async fn a_broker_that_answers_no_ping_is_left_after_keep_alive_and_stall() {
    let broker = ScriptedBroker::start().await;
    let keep_alive = Duration::from_secs(5);
    let (_link, mut inbox) = link::spawn(LinkConfig {
        keep_alive,
        ..client::impatient(broker.port(), "link")
    });
    let _silent = broker.accept(false).await;
    up(&mut inbox).await;
    let reason = wait_for!(&mut inbox, Inbound::Down { reason, .. } => reason);
    // By one of the link's watches: rumqttc alone would take two keep-alives, and says something else.
    assert!(reason.ends_with("for 500ms"), "{reason}");
}

// Memory.

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn raw_takes_14_mib_for_each_connection_and_a_link_does_not() {
    let before = resident_bytes();
    let loops: Vec<_> = (0..8)
        .map(|_| AsyncClient::new(raw_options(1), 8))
        .collect();
    let raw = resident_bytes().saturating_sub(before);
    assert!(raw > 64 << 20, "{raw} bytes for 8");
    drop(loops);

    let broker = ScriptedBroker::start().await;
    let before = resident_bytes();
    let mut links = Vec::new();
    for number in 0..8 {
        let (link, mut inbox) =
            link::spawn(client::config(broker.port(), &format!("link{number}")));
        let peer = broker.accept(false).await;
        up(&mut inbox).await;
        links.push((link, inbox, peer));
    }
    // Other tests of this program take memory at the same time; the least of what raw took is far off.
    let ours = resident_bytes().saturating_sub(before);
    assert!(ours < 32 << 20, "{ours} bytes for 8");
}

// Small packets.

/// From one publish to the arrival of the next, which follows at once; the peer's kernel is slow to
/// acknowledge. The quickest of several, as the machine has other things to do.
async fn quickest_second_packet<Sent: Future<Output = ()>>(
    peer: &mut Peer,
    publish: impl Fn() -> Sent,
) -> Duration {
    let mut quickest = Duration::MAX;
    for _ in 0..8 {
        peer.delay_tcp_acks();
        publish().await;
        peer.publishes(1).await;
        let since = Instant::now();
        publish().await;
        peer.publishes(1).await;
        quickest = quickest.min(since.elapsed());
        // The acknowledgement that was held back is out.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    quickest
}

#[tokio::test]
async fn raw_holds_a_small_packet_back_until_the_one_before_is_acknowledged() {
    let broker = ScriptedBroker::start().await;
    let (client, event_loop) = AsyncClient::new(raw_options(broker.port()), 8);
    let _polling = poll_raw(event_loop);
    let mut peer = broker.accept(false).await;
    let publish = || async {
        client
            .try_publish("t", QoS::AtMostOnce, false, "token")
            .unwrap()
    };
    let quickest = quickest_second_packet(&mut peer, publish).await;
    assert!(quickest > Duration::from_millis(20), "{quickest:?}");
}

#[tokio::test]
async fn a_small_packet_goes_out_at_once() {
    let broker = ScriptedBroker::start().await;
    let (link, mut inbox) = link::spawn(config(broker.port()));
    let mut peer = broker.accept(false).await;
    up(&mut inbox).await;
    let publish = || async {
        link.try_publish(Publish {
            topic: "t".into(),
            payload: "token".into(),
            ..Publish::default()
        })
        .unwrap();
    };
    let quickest = quickest_second_packet(&mut peer, publish).await;
    assert!(quickest < Duration::from_millis(20), "{quickest:?}");
}

// Hostile bytes.

/// A panic would end the daemon, so this is the worst that a broker could do. What rumqttc makes of any
/// bytes is an error, or a packet that the link must cope with.
#[test]
fn raw_survives_any_bytes() {
    let seed: u64 = getrandom::u64().unwrap();
    eprintln!("seed {seed:#x}");
    let mut random = Random(seed);
    let mut n_packets = 0;
    for _ in 0..300 {
        let mut state = MqttState::new(65, true);
        for _ in 0..10 {
            let publish = packets::Publish::new("t", QoS::AtLeastOnce, "x", None);
            state
                .handle_outgoing_packet(Request::Publish(publish))
                .unwrap();
        }
        for _ in 0..1000 {
            let mut bytes: bytes::BytesMut = packet(&mut random).as_slice().into();
            if let Ok(packet) = Packet::read(&mut bytes, Some(1 << 20)) {
                n_packets += 1;
                let _ = state.handle_incoming_packet(packet);
                state.events.clear();
            }
        }
    }
    assert!(n_packets > 10_000, "most were cut off at once: {n_packets}");
}

/// Any type and flags, a length that is right, and a body of small numbers for the most part: those
/// are lengths and names of properties.
fn packet(random: &mut Random) -> Vec<u8> {
    let length = random.next() % 40;
    let mut packet = vec![random.next() as u8, length as u8];
    for _ in 0..length {
        let byte = random.next();
        packet.push(match byte & 0x300 {
            0 => byte as u8,
            _ => (byte >> 16) as u8 % 48,
        });
    }
    packet
}
