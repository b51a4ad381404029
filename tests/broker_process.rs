//! The embedded broker as a process: what it keeps when it is killed, and when it ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/client.rs"]
mod client;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use broker::{
    DAEMON_PASSWORD, EmbeddedProcess, HELPER_FOLDER, HELPER_PORT, embedded_config, free_port,
};
use client::{config, message, received, up, wait_for};
use orinoco::broker::{BrokerError, PortChoice, serve};
use orinoco::link::{self, Credentials, Inbound, LinkConfig, Publish};

#[test]
#[ignore = "a helper process, started by the other tests"]
fn broker_process() {
    broker::helper_main();
}

#[test]
#[ignore = "a helper process, started by the other tests"]
fn broker_parent() {
    let Ok(folder) = std::env::var(HELPER_FOLDER) else {
        return;
    };
    let broker = EmbeddedProcess::start(Path::new(&folder), 0);
    use std::io::Write;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", orinoco::broker::ready_line(broker.address)).unwrap();
    // Killed here, without a chance to end its child.
    std::thread::park();
}

fn daemon(port: u16, client_id: &str, subscriptions: &[&str]) -> LinkConfig {
    let password = DAEMON_PASSWORD.into();
    LinkConfig {
        credentials: Some(Credentials {
            user: "daemon".into(),
            password,
        }),
        subscriptions: subscriptions
            .iter()
            .map(|&filter| filter.to_owned())
            .collect(),
        stall: Duration::from_secs(5),
        ..config(port, client_id)
    }
}

/// The most memory that a process has had so far, in KiB.
fn peak_memory_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = peak.unwrap().split_whitespace().nth(1);
    number.unwrap().parse().unwrap()
}

/// Tries a wrong password; returns when it was refused.
fn guess(address: SocketAddr, n: u8) {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).unwrap();
    let connect = b"\x10\x1a\0\x04MQTT\x05\xc2\0\x3c\0\0\x03gue\0\x03ann\0\x03pw";
    stream.write_all(&[&connect[..], &[n]].concat()).unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!(connack[3], 0x86, "bad user name or password: {connack:?}");
}

/// Each hash takes 19 MiB, which the allocator would not give back.
#[test]
fn who_guesses_passwords_costs_the_memory_of_two_hashes_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    orinoco::users::add(&folder.path().join("users.toml"), "ann", "right", None).unwrap();
    let broker = EmbeddedProcess::start(folder.path(), 0);
    let before = peak_memory_kib(broker.process.id());
    std::thread::scope(|scope| {
        for n in 0..15 {
            let address = broker.address;
            scope.spawn(move || (0..4).for_each(|round| guess(address, n * 4 + round)));
        }
    });
    let grown = peak_memory_kib(broker.process.id()) - before;
    assert!((19 << 10..60 << 10).contains(&grown), "{grown} KiB");
}

fn n_queued(folder: &Path) -> usize {
    let queues = folder.join("broker/queues");
    let clients = std::fs::read_dir(queues).into_iter().flatten().flatten();
    let files = clients.flat_map(|client| std::fs::read_dir(client.path()).into_iter().flatten());
    files
        .flatten()
        .filter(|file| file.path().extension().is_some_and(|e| e == "json"))
        .count()
}

#[tokio::test]
async fn queued_and_retained_messages_survive_kill_9() {
    const N: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let mut broker = EmbeddedProcess::start(folder.path(), free_port());
    let port = broker.address.port();
    // A reader whose session stays when it goes.
    let (reader, mut inbox) = link::spawn(daemon(port, "reader", &["orinoco/v1/resp/ann/#"]));
    up(&mut inbox).await;
    reader.close(None, client::LIMIT).await.unwrap();
    let (writer, mut events) = link::spawn(daemon(port, "writer", &[]));
    up(&mut events).await;
    for number in 0..N {
        writer
            .try_publish(message("orinoco/v1/resp/ann/1", number.to_string()))
            .unwrap();
    }
    let status = Publish {
        retain: true,
        token: Some(1),
        ..message("orinoco/v1/n/status", "on")
    };
    writer.try_publish(status).unwrap();
    wait_for!(&mut events, Inbound::Delivered { token: 1 });
    // mqtt5 writes queues 250 ms after the fact: src/broker.rs.
    let since = Instant::now();
    while n_queued(folder.path()) < N {
        assert!(
            since.elapsed() < client::LIMIT,
            "{} of {N}",
            n_queued(folder.path())
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    broker.kill();

    let broker = EmbeddedProcess::start(folder.path(), port);
    assert_eq!(broker.address.port(), port);
    let (reader, mut inbox) = link::spawn(daemon(port, "reader", &["orinoco/v1/resp/ann/#"]));
    assert!(up(&mut inbox).await, "the session is there");
    for number in 0..N {
        let got = received(&mut inbox).await;
        assert_eq!(got.payload, number.to_string());
        reader.try_ack(got.ack).unwrap();
    }
    let (_late, mut late) = link::spawn(daemon(port, "late", &["orinoco/v1/+/status"]));
    let got = received(&mut late).await;
    assert_eq!((&got.payload[..], got.retain), (&b"on"[..], true));
}

#[tokio::test]
async fn every_publish_arrives_while_the_embedded_broker_is_killed() {
    const N: usize = 100;
    let folder = tempfile::tempdir().unwrap();
    let mut broker = EmbeddedProcess::start(folder.path(), free_port());
    let port = broker.address.port();
    let (reader, mut inbox) = link::spawn(daemon(port, "reader", &["orinoco/v1/resp/ann/#"]));
    up(&mut inbox).await;
    let (writer, mut events) = link::spawn(daemon(port, "writer", &[]));
    up(&mut events).await;
    let mut numbers = Vec::new();
    let publish = |number: usize| message("orinoco/v1/resp/ann/1", number.to_string());
    let mut read_up_to = async |last: usize| {
        while numbers.last() != Some(&last) {
            let got = received(&mut inbox).await;
            let number: usize = std::str::from_utf8(&got.payload).unwrap().parse().unwrap();
            reader.try_ack(got.ack).unwrap();
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        numbers.clone()
    };
    for number in 0..N / 2 {
        writer.try_publish(publish(number)).unwrap();
    }
    // Everything read: what the broker takes in its last 250 ms it may lose (src/broker.rs).
    read_up_to(N / 2 - 1).await;
    broker.kill();
    for number in N / 2..N {
        writer.try_publish(publish(number)).unwrap();
    }
    let _broker = EmbeddedProcess::start(folder.path(), port);
    assert_eq!(read_up_to(N - 1).await, (0..N).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_broker_ends_by_sigterm() {
    let folder = tempfile::tempdir().unwrap();
    let mut broker = EmbeddedProcess::start(folder.path(), 0);
    let (_link, mut inbox) = link::spawn(daemon(broker.address.port(), "x", &[]));
    up(&mut inbox).await;
    assert!(broker.terminate().success());
}

fn listens(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

#[test]
fn a_broker_ends_with_its_parent() {
    let folder = tempfile::tempdir().unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "broker_parent",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(HELPER_FOLDER, folder.path())
        .env(HELPER_PORT, "0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let address = broker::ready_address(&mut parent);
    assert!(listens(address));
    parent.kill().unwrap();
    parent.wait().unwrap();
    let since = Instant::now();
    while listens(address) {
        assert!(
            since.elapsed() < client::LIMIT,
            "the broker outlives its parent"
        );
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_taken_port_is_passed_over_or_reported() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let mut config = embedded_config(folder.path(), port);
    let error = serve(config.clone(), |_| (), std::future::pending())
        .await
        .unwrap_err();
    assert!(
        matches!(error, BrokerError::Listen { address, .. } if address.port() == port),
        "{error}"
    );

    config.port = PortChoice::FirstFreeFrom(port);
    let (tell, told) = tokio::sync::oneshot::channel();
    let serving = serve(
        config,
        |address| tell.send(address).unwrap(),
        std::future::pending(),
    );
    let address = tokio::select! {
        address = told => address.unwrap(),
        ended = serving => panic!("{ended:?}"),
    };
    assert!(
        address.port() > port && address.ip().is_loopback(),
        "{address}"
    );
}

#[tokio::test]
async fn two_brokers_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let _first = EmbeddedProcess::start(folder.path(), 0);
    let config = embedded_config(folder.path(), 0);
    let error = serve(config, |_| (), std::future::pending())
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Mqtt5(_)), "{error}");
}

#[tokio::test]
async fn an_unusable_users_file_keeps_the_broker_from_starting() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("users.toml"), "not = [users").unwrap();
    let config = embedded_config(folder.path(), 0);
    let error = serve(config, |_| (), std::future::pending())
        .await
        .unwrap_err();
    assert!(matches!(error, BrokerError::Users(_)), "{error}");
}
