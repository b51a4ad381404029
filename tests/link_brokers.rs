//! The link with real brokers: Mosquitto and the embedded one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod client;

use std::time::{Duration, Instant};

use broker::{DAEMON_PASSWORD, Embedded, Mosquitto};
use certificates::{Authority, Validity};
use client::{LIMIT, QUIET, config, message, nothing_received, received, up, wait_for};
use orinoco::link::{self, Credentials, Inbound, Inbox, LinkConfig, Props, Publish, TlsFiles};
use tokio::time::timeout;

/// A link of the daemon: it may use everything below the root on both brokers.
fn daemon(port: u16, client_id: &str, subscriptions: &[&str]) -> LinkConfig {
    LinkConfig {
        credentials: Some(Credentials {
            user: "daemon".into(),
            password: DAEMON_PASSWORD.into(),
        }),
        subscriptions: subscriptions
            .iter()
            .map(|&filter| filter.to_owned())
            .collect(),
        stall: Duration::from_secs(5),
        ..config(port, client_id)
    }
}

async fn a_request_is_answered_with_its_properties(port: u16) {
    let request = "orinoco/v1/node/req/ann/chat/1";
    let response = "orinoco/v1/resp/ann/1";
    let (server, mut server_inbox) =
        link::spawn(daemon(port, "server", &["orinoco/v1/node/req/#"]));
    let (client, mut client_inbox) =
        link::spawn(daemon(port, "client", &["orinoco/v1/resp/ann/#"]));
    up(&mut server_inbox).await;
    up(&mut client_inbox).await;

    let props = Props {
        response_topic: Some(response.into()),
        correlation: Some(vec![0, 1, 255].into()),
        content_type: Some("application/json".into()),
        message_expiry_s: Some(60),
        user: vec![
            ("accept".into(), "text/plain".into()),
            ("accept".into(), "*".into()),
        ],
        payload_utf8: true,
    };
    let asked = Publish {
        props: props.clone(),
        token: Some(1),
        ..message(request, "2+2?")
    };
    client.try_publish(asked).unwrap();
    let got = received(&mut server_inbox).await;
    assert_eq!(
        (got.topic.as_str(), &got.payload[..]),
        (request, &b"2+2?"[..])
    );
    let mut found = got.props;
    // The embedded broker attests the sender in two more.
    found.user.retain(|(key, _)| !key.starts_with("x-mqtt-"));
    assert_eq!(found, props);
    server.try_ack(got.ack).unwrap();

    let answer = Publish {
        props: Props {
            correlation: found.correlation,
            ..Props::default()
        },
        ..message(&found.response_topic.unwrap(), "4")
    };
    server.try_publish(answer).unwrap();
    wait_for!(&mut client_inbox, Inbound::Delivered { token: 1 });
    let got = received(&mut client_inbox).await;
    assert_eq!(
        (got.topic.as_str(), &got.payload[..]),
        (response, &b"4"[..])
    );
    assert_eq!(got.props.correlation.as_deref(), Some(&[0, 1, 255][..]));
}

#[tokio::test]
async fn a_request_is_answered_over_mosquitto() {
    let broker = Mosquitto::start().await;
    a_request_is_answered_with_its_properties(broker.port()).await;
}

#[tokio::test]
async fn a_request_is_answered_over_the_embedded_broker() {
    let broker = Embedded::start().await;
    a_request_is_answered_with_its_properties(broker.port()).await;
}

/// Online while it lives, offline by its will when it dies, and what the last one said stays.
async fn the_will_replaces_the_retained_status(port: u16) {
    let status = "orinoco/v1/node/status";
    let retained = |payload: &str| Publish {
        retain: true,
        ..message(status, payload)
    };
    let (link, mut inbox) = link::spawn(LinkConfig {
        will: Some(retained("offline")),
        ..daemon(port, "node", &[])
    });
    up(&mut inbox).await;
    link.try_publish(Publish {
        token: Some(1),
        ..retained("online")
    })
    .unwrap();
    wait_for!(&mut inbox, Inbound::Delivered { token: 1 });

    let (_monitor, mut monitor) = link::spawn(daemon(port, "monitor", &[status]));
    let seen = received(&mut monitor).await;
    assert_eq!((&seen.payload[..], seen.retain), (&b"online"[..], true));
    // A dropped inbox ends the link without DISCONNECT, as a crash does.
    drop(inbox);
    assert_eq!(received(&mut monitor).await.payload, "offline");

    let (_late, mut late) = link::spawn(daemon(port, "late", &[status]));
    let seen = received(&mut late).await;
    assert_eq!((&seen.payload[..], seen.retain), (&b"offline"[..], true));
}

#[tokio::test]
async fn the_will_replaces_the_retained_status_on_mosquitto() {
    let broker = Mosquitto::start().await;
    the_will_replaces_the_retained_status(broker.port()).await;
}

#[tokio::test]
async fn the_will_replaces_the_retained_status_on_the_embedded_broker() {
    let broker = Embedded::start().await;
    the_will_replaces_the_retained_status(broker.port()).await;
}

/// A clean close says its last word itself and takes the will back.
async fn a_closed_link_leaves_its_last_word(port: u16) {
    let status = "orinoco/v1/node/status";
    let (_monitor, mut monitor) = link::spawn(daemon(port, "monitor", &[status]));
    up(&mut monitor).await;
    let will = Some(message(status, "lost"));
    let (link, mut inbox) = link::spawn(LinkConfig {
        will,
        ..daemon(port, "node", &[])
    });
    up(&mut inbox).await;
    link.close(Some(message(status, "offline")), LIMIT)
        .await
        .unwrap();
    assert_eq!(received(&mut monitor).await.payload, "offline");
    assert!(
        nothing_received(&mut monitor).await,
        "no will after DISCONNECT"
    );
}

#[tokio::test]
async fn a_closed_link_leaves_its_last_word_on_mosquitto() {
    let broker = Mosquitto::start().await;
    a_closed_link_leaves_its_last_word(broker.port()).await;
}

#[tokio::test]
async fn a_closed_link_leaves_its_last_word_on_the_embedded_broker() {
    let broker = Embedded::start().await;
    a_closed_link_leaves_its_last_word(broker.port()).await;
}

/// The limit that the link announces keeps a packet away that would end its connection, again and again.
async fn a_message_larger_than_announced_stays_with_the_broker(port: u16) {
    let topic = "orinoco/v1/node/req/ann/chat/1";
    let (_reader, mut inbox) = link::spawn(LinkConfig {
        packet_bytes_max: 2048,
        ..daemon(port, "reader", &["orinoco/v1/node/req/#"])
    });
    up(&mut inbox).await;
    let (writer, mut events) = link::spawn(daemon(port, "writer", &[]));
    up(&mut events).await;
    for payload in ["x".repeat(3000), "small".into()] {
        writer.try_publish(message(topic, payload)).unwrap();
    }
    match client::next(&mut inbox).await {
        Inbound::Message(message) => assert_eq!(message.payload, "small"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_larger_than_announced_stays_with_mosquitto() {
    let broker = Mosquitto::start().await;
    a_message_larger_than_announced_stays_with_the_broker(broker.port()).await;
}

#[tokio::test]
async fn a_message_larger_than_announced_stays_with_the_embedded_broker() {
    let broker = Embedded::start().await;
    a_message_larger_than_announced_stays_with_the_broker(broker.port()).await;
}

/// Two daemons with one identity: one of them gives way and says why, the other serves.
async fn two_equal_clients_do_not_fight(port: u16) {
    let backoff_max = Duration::from_secs(60);
    let config = LinkConfig {
        backoff_max,
        ..daemon(port, "same", &[])
    };
    let (_first, mut first) = link::spawn(config.clone());
    up(&mut first).await;
    let (_second, mut second) = link::spawn(config);
    let (mut gave_way, mut serves) = tokio::select! {
        _ = taken_over(&mut first) => (first, second),
        _ = taken_over(&mut second) => (second, first),
    };
    // The other was thrown out by the last attempt, or was never told of its connection.
    while timeout(QUIET, serves.recv()).await.is_ok() {}
    assert!(
        timeout(QUIET, gave_way.recv()).await.is_err(),
        "it does not come back at once"
    );
    assert!(
        timeout(QUIET, serves.recv()).await.is_err(),
        "and leaves the other alone"
    );
}

async fn taken_over(inbox: &mut Inbox) {
    while !wait_for!(inbox, Inbound::Down { taken_over, .. } => taken_over) {}
}

#[tokio::test]
async fn two_equal_clients_do_not_fight_on_mosquitto() {
    let broker = Mosquitto::start().await;
    two_equal_clients_do_not_fight(broker.port()).await;
}

#[tokio::test]
async fn two_equal_clients_do_not_fight_on_the_embedded_broker() {
    let broker = Embedded::start().await;
    two_equal_clients_do_not_fight(broker.port()).await;
}

/// Mosquitto 2.0.11 forgets our Receive Maximum in a burst, and a link that left it for that would meet
/// the same burst on every connection.
#[tokio::test]
async fn a_burst_through_mosquitto_arrives_on_one_connection() {
    const N: usize = 1000;
    let broker = Mosquitto::start().await;
    let reader = LinkConfig {
        receive_max: 8,
        ..daemon(broker.port(), "reader", &["t/#"])
    };
    let (reader, mut inbox) = link::spawn(reader);
    up(&mut inbox).await;
    let writer = LinkConfig {
        inflight: 500,
        ..daemon(broker.port(), "writer", &[])
    };
    let (writer, mut events) = link::spawn(writer);
    up(&mut events).await;

    let publishing = async {
        for number in 0..N {
            writer
                .publish(message("t/n", number.to_string()))
                .await
                .unwrap();
        }
    };
    let reading = async {
        for number in 0..N {
            let Inbound::Message(message) = client::next(&mut inbox).await else {
                panic!("the connection was left after {number} messages");
            };
            assert_eq!(message.payload, number.to_string());
            reader.try_ack(message.ack).unwrap();
        }
    };
    tokio::join!(publishing, reading);
}

#[tokio::test]
async fn every_publish_arrives_while_mosquitto_is_restarted_twice() {
    const N: usize = 300;
    let mut broker = Mosquitto::start().await;
    let (reader, mut inbox) = link::spawn(daemon(broker.port(), "reader", &["t/#"]));
    up(&mut inbox).await;
    let (writer, mut events) = link::spawn(daemon(broker.port(), "writer", &[]));
    up(&mut events).await;

    let publishing = async {
        for number in 0..N {
            writer
                .publish(message("t/n", number.to_string()))
                .await
                .unwrap();
            if number == N / 3 || number == 2 * N / 3 {
                broker.stop();
                // Some are queued while there is no broker.
                for extra in 0..10 {
                    let extra = Publish {
                        topic: "t/x".into(),
                        ..message("", extra.to_string())
                    };
                    writer.try_publish(extra).unwrap();
                }
                broker.restart().await;
            }
        }
    };
    let reading = async {
        let mut numbers = Vec::new();
        let mut n_extras = 0;
        while numbers.last() != Some(&(N - 1)) {
            let message = received(&mut inbox).await;
            let number: usize = std::str::from_utf8(&message.payload)
                .unwrap()
                .parse()
                .unwrap();
            reader.try_ack(message.ack).unwrap();
            match message.topic.as_str() {
                // At least once: one that was acknowledged too late may come again.
                "t/n" if numbers.contains(&number) => {}
                "t/n" => numbers.push(number),
                _ => n_extras += 1,
            }
        }
        (numbers, n_extras)
    };
    let (_, (numbers, n_extras)) = tokio::join!(publishing, reading);
    assert_eq!(numbers, (0..N).collect::<Vec<_>>(), "all, and in order");
    assert!(n_extras >= 20, "{n_extras}");
}

/// One-way latency of a chunk from try_publish to the reader, at the cadence of a fast model.
async fn measure_latency(name: &str, port: u16, tls: Option<TlsFiles>, at_least_once: bool) {
    const N: usize = 500;
    let (_reader, mut inbox) = link::spawn(LinkConfig {
        tls: tls.clone(),
        ..daemon(port, "reader", &["orinoco/v1/resp/ann/#"])
    });
    up(&mut inbox).await;
    let (writer, mut events) = link::spawn(LinkConfig {
        tls,
        ..daemon(port, "writer", &[])
    });
    up(&mut events).await;
    let started = Instant::now();
    let writing = async {
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        for _ in 0..N {
            tick.tick().await;
            let mut payload = started.elapsed().as_nanos().to_string();
            payload.extend(std::iter::repeat_n(' ', 350 - payload.len()));
            let chunk = message("orinoco/v1/resp/ann/1", payload);
            writer
                .try_publish(Publish {
                    at_least_once,
                    ..chunk
                })
                .unwrap();
        }
    };
    let reading = async {
        let mut latencies = Vec::new();
        while latencies.len() < N {
            let chunk = received(&mut inbox).await;
            let now = started.elapsed().as_nanos();
            let sent: u128 = std::str::from_utf8(&chunk.payload)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            latencies.push(Duration::from_nanos((now - sent) as u64));
            _reader.try_ack(chunk.ack).unwrap();
        }
        latencies
    };
    let (_, mut latencies) = tokio::join!(writing, reading);
    latencies.sort();
    let at = |percent: usize| latencies[N * percent / 100 - 1];
    use std::io::Write;
    let qos = u8::from(at_least_once);
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "{name} QoS {qos}, 350 B each 10 ms, n={N}: p50 {:?} p99 {:?} max {:?}",
        at(50),
        at(99),
        at(100)
    )
    .unwrap();
}

#[tokio::test]
#[ignore = "a measurement; run alone: cargo test --release --test link_brokers -- --ignored latency"]
async fn latency_of_a_chunk() {
    let mosquitto = Mosquitto::start().await;
    let embedded = Embedded::start().await;
    let plant = Authority::new("plant");
    plant.server("broker", &["127.0.0.1"], Validity::Now);
    let folder = plant.folder().display();
    let encrypted = Mosquitto::start_with(&format!(
        "certfile {folder}/broker.pem\nkeyfile {folder}/broker.key\nallow_anonymous true\n"
    ))
    .await;
    for at_least_once in [false, true] {
        measure_latency("Mosquitto", mosquitto.port(), None, at_least_once).await;
        let files = Some(plant.trusted());
        measure_latency("Mosquitto, TLS", encrypted.port(), files, at_least_once).await;
        measure_latency("embedded", embedded.port(), None, at_least_once).await;
    }
}
