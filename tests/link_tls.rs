//! TLS and client certificates, with a real Mosquitto and certificates made here.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod client;
mod support;

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use certificates::{Authority, Validity, write_key};
use client::{LIMIT, message, nothing_received, received, up, wait_for};
use orinoco::link::{self, IdentityFiles, Inbound, LinkConfig, Publish, TlsFiles};
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{Engine, Site};
use support::requester::Client;

const HOST: &str = "127.0.0.1";

/// Mosquitto with a certificate of this authority, and whoever trusts it let in.
async fn mosquitto(plant: &Authority, names: &[&str], validity: Validity) -> Mosquitto {
    plant.server("broker", names, validity);
    Mosquitto::start_with(&format!("{}allow_anonymous true\n", shows(plant, "broker"))).await
}

/// Mosquitto that lets in certificates of this authority alone, by the names in them, to what the rules
/// that we ship allow them.
async fn mosquitto_with_identities(plant: &Authority) -> Mosquitto {
    plant.server("broker", &[HOST], Validity::Now);
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/mosquitto/orinoco.acl");
    Mosquitto::start_with(&format!(
        "{}cafile {}\n\
         require_certificate true\n\
         use_identity_as_username true\n\
         acl_file {rules}\n",
        shows(plant, "broker"),
        plant.ca_file().display(),
    ))
    .await
}

fn shows(plant: &Authority, file: &str) -> String {
    let folder = plant.folder().display();
    format!("certfile {folder}/{file}.pem\nkeyfile {folder}/{file}.key\n")
}

fn config(broker: &Mosquitto, client_id: &str, tls: TlsFiles) -> LinkConfig {
    LinkConfig {
        tls: Some(tls),
        stall: Duration::from_secs(2),
        ..client::config(broker.port(), client_id)
    }
}

/// Why the link does not come up.
async fn refusal(config: LinkConfig) -> String {
    let (_link, mut inbox) = link::spawn(config);
    match client::next(&mut inbox).await {
        Inbound::Down { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

// The broker's certificate.

#[tokio::test]
async fn messages_of_any_size_go_both_ways_over_tls() {
    let plant = Authority::new("plant");
    let broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["t".into()],
        ..config(&broker, "link", plant.trusted())
    });
    up(&mut inbox).await;
    for size in [0, 1, 1 << 10, 16 << 10, 512 << 10] {
        link.try_publish(message("t", "x".repeat(size))).unwrap();
        let message = received(&mut inbox).await;
        assert_eq!(message.payload.len(), size);
        link.try_ack(message.ack).unwrap();
    }
}

#[tokio::test]
async fn a_broker_of_another_authority_is_refused() {
    let (plant, stranger) = (Authority::new("plant"), Authority::new("plant"));
    let broker = mosquitto(&stranger, &[HOST], Validity::Now).await;
    let reason = refusal(config(&broker, "link", plant.trusted())).await;
    let expected = format!(
        "the broker's certificate was not issued by an authority in {}",
        plant.ca_file().display()
    );
    assert_eq!(reason, expected);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_unless_that_name_is_expected() {
    let plant = Authority::new("plant");
    let broker = mosquitto(&plant, &["broker.plant.example"], Validity::Now).await;
    let reason = refusal(config(&broker, "link", plant.trusted())).await;
    assert!(
        reason.contains(HOST) && reason.contains("broker.plant.example"),
        "{reason}"
    );
    let expecting = TlsFiles {
        server_name: Some("broker.plant.example".into()),
        ..plant.trusted()
    };
    let (_link, mut inbox) = link::spawn(config(&broker, "link", expecting));
    up(&mut inbox).await;
}

#[tokio::test]
async fn a_certificate_that_expired_or_is_not_valid_yet_is_refused_and_the_clock_named() {
    let plant = Authority::new("plant");
    for (validity, expected) in [
        (Validity::Past, "the broker's certificate expired"),
        (
            Validity::Future,
            "the broker's certificate begins to be valid in",
        ),
    ] {
        let broker = mosquitto(&plant, &[HOST], validity).await;
        let reason = refusal(config(&broker, "link", plant.trusted())).await;
        assert!(
            reason.contains(expected) && reason.contains("clock"),
            "{reason}"
        );
    }
}

/// `openssl req -x509` alone makes such a certificate, and many brokers show it.
#[tokio::test]
async fn an_authority_that_shows_its_own_certificate_is_told_what_to_do() {
    let plant = Authority::new("plant");
    let broker =
        Mosquitto::start_with(&format!("{}allow_anonymous true\n", shows(&plant, "ca"))).await;
    let reason = refusal(config(&broker, "link", plant.trusted())).await;
    assert!(reason.contains("CA:FALSE"), "{reason}");
}

#[tokio::test]
async fn tls_to_a_plain_port_and_a_plain_connection_to_tls_are_told_apart() {
    let plant = Authority::new("plant");
    let plain = Mosquitto::start().await;
    let reason = refusal(config(&plain, "link", plant.trusted())).await;
    assert!(reason.contains("is it a port for TLS?"), "{reason}");

    let broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let reason = refusal(client::config(broker.port(), "link")).await;
    assert!(reason.contains("TLS"), "{reason}");
}

// Ours.

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_says_so_and_gets_ours() {
    let plant = Authority::new("plant");
    let broker = mosquitto_with_identities(&plant).await;
    let reason = refusal(config(&broker, "link", plant.trusted())).await;
    assert_eq!(
        reason,
        "the broker asks for a client certificate, and none is configured"
    );

    let stranger = Authority::new("another plant");
    let forged = stranger.client("daemon", "daemon", Validity::Now);
    let reason = refusal(config(&broker, "link", with(&plant, forged))).await;
    assert!(reason.contains("our certificate"), "{reason}");

    let expired = plant.client("expired", "daemon", Validity::Past);
    let reason = refusal(config(&broker, "link", with(&plant, expired))).await;
    assert!(reason.contains("our certificate"), "{reason}");

    let good = plant.client("daemon", "daemon", Validity::Now);
    let (_link, mut inbox) = link::spawn(config(&broker, "link", with(&plant, good)));
    up(&mut inbox).await;
}

fn with(plant: &Authority, identity: IdentityFiles) -> TlsFiles {
    TlsFiles {
        identity: Some(identity),
        ..plant.trusted()
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_without_a_restart() {
    let plant = Authority::new("plant");
    let broker = mosquitto_with_identities(&plant).await;
    let identity = plant.client("daemon", "daemon", Validity::Past);
    let (_link, mut inbox) = link::spawn(config(&broker, "link", with(&plant, identity)));
    wait_for!(&mut inbox, Inbound::Down { .. });
    plant.client("daemon", "daemon", Validity::Now);
    up(&mut inbox).await;
}

/// The whole: a daemon and a device, each known by its certificate alone.
#[tokio::test]
async fn certificates_as_identities_answer_end_to_end() {
    let plant = Authority::new("plant");
    let broker = mosquitto_with_identities(&plant).await;
    let daemon = plant.client("daemon", "daemon", Validity::Now);
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("mqtt.tls=on")
        .set(format!("mqtt.tls_ca_file={}", plant.ca_file().display()))
        .set(format!("mqtt.tls_cert_file={}", daemon.cert_file.display()))
        .set(format!("mqtt.tls_key_file={}", daemon.key_file.display()));
    let daemon = site.start();

    let device = |name: &str| with(&plant, plant.client(name, name, Validity::Now));
    let mut plc = Client::connect_with(
        config(&broker, "plc-3", device("plc-3")),
        site.node,
        "plc-3",
    )
    .await;
    plc.until_mode(Mode::Serving).await;
    plc.ask("chat", "c1", "!count !tokens 5").await;
    plc.until_ended(&["c1".to_owned()]).await;
    assert_eq!(plc.text("c1"), "0 1 2");

    // Another certificate cannot ask in the name of plc-3, nor read what it is told.
    let mut other = Client::connect_with(
        config(&broker, "other", device("press")),
        site.node,
        "plc-3",
    )
    .await;
    other.ask("chat", "forged", "!count !tokens 5").await;
    plc.ask("chat", "c2", "!count !tokens 5").await;
    plc.until_ended(&["c2".to_owned()]).await;
    other.listen(client::QUIET).await;
    assert_eq!(other.answers.len(), 0, "{:?}", other.answers.keys());
    assert!(!plc.answers.contains_key("forged"));

    assert_eq!(daemon.stop(), 0);
    plc.until_status("offline").await;
}

// The relay between rumqttc and TLS hands on all there is.

#[tokio::test]
async fn a_closed_link_leaves_its_last_word_over_tls() {
    let plant = Authority::new("plant");
    let broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let (_monitor, mut monitor) = link::spawn(LinkConfig {
        subscriptions: vec!["status".into()],
        ..config(&broker, "monitor", plant.trusted())
    });
    up(&mut monitor).await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        will: Some(message("status", "lost")),
        ..config(&broker, "node", plant.trusted())
    });
    up(&mut inbox).await;
    link.close(Some(message("status", "offline")), LIMIT)
        .await
        .unwrap();
    assert_eq!(received(&mut monitor).await.payload, "offline");
    assert!(nothing_received(&mut monitor).await, "DISCONNECT arrived");
}

#[tokio::test]
async fn a_broker_that_freezes_is_left_over_tls_too_and_nothing_is_lost() {
    let plant = Authority::new("plant");
    let broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["t".into()],
        stall: Duration::from_millis(500),
        ..config(&broker, "link", plant.trusted())
    });
    up(&mut inbox).await;
    broker.freeze();
    // More than the sockets between us hold.
    const N: usize = 40;
    for number in 0..N {
        let payload = format!("{number:-<60000}").repeat(2);
        link.try_publish(message("t", payload)).unwrap();
    }
    let reason = wait_for!(&mut inbox, Inbound::Down { reason, .. } => reason);
    assert!(reason.contains("for 500ms"), "{reason}");
    broker.thaw();
    let mut numbers = Vec::new();
    while numbers.len() < N {
        let message = received(&mut inbox).await;
        let text = std::str::from_utf8(&message.payload).unwrap();
        let number: usize = text.split('-').next().unwrap().parse().unwrap();
        link.try_ack(message.ack).unwrap();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    assert_eq!(numbers, (0..N).collect::<Vec<_>>());
}

#[tokio::test]
async fn every_publish_arrives_while_a_broker_with_tls_is_restarted() {
    let plant = Authority::new("plant");
    let mut broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let (link, mut inbox) = link::spawn(LinkConfig {
        subscriptions: vec!["t".into()],
        ..config(&broker, "link", plant.trusted())
    });
    up(&mut inbox).await;
    let mut numbers = Vec::new();
    for number in 0..60 {
        if number % 20 == 10 {
            broker.stop();
            broker.restart().await;
        }
        link.try_publish(message("t", number.to_string())).unwrap();
    }
    while numbers.len() < 60 {
        let message = received(&mut inbox).await;
        link.try_ack(message.ack).unwrap();
        let number: u32 = std::str::from_utf8(&message.payload)
            .unwrap()
            .parse()
            .unwrap();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    assert_eq!(numbers, (0..60).collect::<Vec<_>>());
}

// Files.

#[test]
fn files_that_cannot_be_used_are_named_with_what_they_hold() {
    let plant = Authority::new("plant");
    plant.client("me", "me", Validity::Now);
    plant.client("you", "you", Validity::Now);
    let path = |name: &str| plant.path(name);
    fs::write(path("empty"), "").unwrap();
    fs::write(path("text"), "hello").unwrap();
    fs::write(path("cut"), "-----BEGIN CERTIFICATE-----\nAAAA\n").unwrap();
    fs::write(
        path("der"),
        [&[0x30, 0x82, 1, 0][..], &[0; 256][..]].concat(),
    )
    .unwrap();
    fs::write(path("huge"), vec![b'x'; (1 << 20) + 1]).unwrap();
    let key = fs::read_to_string(path("me.key")).unwrap();
    write_key(&path("open.key"), &key, 0o644);
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    write_key(&path("encrypted.key"), &encrypted, 0o600);
    write_key(
        &path("cert.key"),
        &fs::read_to_string(path("me.pem")).unwrap(),
        0o600,
    );
    write_key(
        &path("nonsense.key"),
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        0o600,
    );

    let check = |ca: &str, cert: &str, key: &str, name: Option<&str>| {
        let files = TlsFiles {
            ca_file: path(ca),
            identity: Some(IdentityFiles {
                cert_file: path(cert),
                key_file: path(key),
            }),
            server_name: name.map(str::to_owned),
        };
        files.check(HOST).map_err(|error| error.to_string())
    };
    assert_eq!(check("ca.pem", "me.pem", "me.key", None), Ok(()));
    for (ca, cert, key, expected) in [
        ("nowhere", "me.pem", "me.key", "nowhere: No such file"),
        (
            "empty",
            "me.pem",
            "me.key",
            "empty: expected PEM with -----BEGIN CERTIFICATE-----, found nothing",
        ),
        ("text", "me.pem", "me.key", "found something else"),
        ("cut", "me.pem", "me.key", "without its -----END line"),
        ("der", "me.pem", "me.key", "found binary DER"),
        ("huge", "me.pem", "me.key", "more than 1048576 bytes"),
        (
            "me.key",
            "me.pem",
            "me.key",
            "me.key: expected PEM with -----BEGIN CERTIFICATE-----, found a private key",
        ),
        ("ca.pem", "me.key", "me.key", "found a private key"),
        ("ca.pem", "nowhere", "me.key", "nowhere: No such file"),
        ("ca.pem", "me.pem", "nowhere", "nowhere: No such file"),
        (
            "ca.pem",
            "me.pem",
            "cert.key",
            "expected PEM with -----BEGIN PRIVATE KEY-----, found a certificate",
        ),
        (
            "ca.pem",
            "me.pem",
            "open.key",
            "open.key has the mode 0644, so that others can read it",
        ),
        (
            "ca.pem",
            "me.pem",
            "encrypted.key",
            "found a key with a passphrase",
        ),
        (
            "ca.pem",
            "me.pem",
            "nonsense.key",
            "nonsense.key: expected an RSA",
        ),
        (
            "ca.pem",
            "me.pem",
            "you.key",
            "is not that of the certificate in",
        ),
    ] {
        let error = check(ca, cert, key, None).unwrap_err();
        assert!(error.contains(expected), "{expected}\nin {error}");
        assert!(
            !error.contains("MIG"),
            "a key is no part of an error: {error}"
        );
    }
    let error = check("ca.pem", "me.pem", "me.key", Some("no name")).unwrap_err();
    assert!(
        error.contains("\"no name\" is no name that a certificate could be for"),
        "{error}"
    );
}

// The command line.

fn orinoco(args: &[&str]) -> Output {
    // A question that nobody answers would wait for ever.
    Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_orinoco")])
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ask_speaks_tls_by_flags_and_as_the_daemon_on_this_machine_does() {
    let plant = Authority::new("plant");
    let broker = mosquitto(&plant, &[HOST], Validity::Now).await;
    let ca = plant.ca_file().display().to_string();
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("mqtt.tls=on")
        .set(format!("mqtt.tls_ca_file={ca}"));
    let _daemon = site.start();
    let state = site.dir.path().join("state").display().to_string();
    let port = broker.port().to_string();
    let question = "!count !tokens 5";

    let as_daemon = orinoco(&["ask", "--state-dir", &state, question]);
    assert_eq!(as_daemon.stdout, b"0 1 2\n", "{as_daemon:?}");
    let there = ["ask", "--host", HOST, "--port", &port, "--node", site.node];
    let by_flags = orinoco(&[&there[..], &["--ca-file", &ca, question]].concat());
    assert_eq!(by_flags.stdout, b"0 1 2\n", "{by_flags:?}");

    let stranger = Authority::new("stranger");
    let stranger = stranger.ca_file().display().to_string();
    let limit = ["--accept-seconds", "1"];
    let wrong = orinoco(&[&there[..], &["--ca-file", &stranger], &limit, &[question]].concat());
    assert_eq!(wrong.status.code(), Some(69), "{wrong:?}");
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        stderr.contains("was not issued by an authority in"),
        "{stderr}"
    );
}

#[test]
fn config_check_reads_the_files_too_and_names_each_mistake() {
    let plant = Authority::new("plant");
    plant.client("me", "me", Validity::Now);
    fs::write(plant.path("password"), "geheim\n").unwrap();
    let at = |name: &str| plant.path(name).display().to_string();
    let folder = plant.path("etc");
    fs::create_dir(&folder).unwrap();
    let check = |more: &str| {
        let text = format!(
            "[broker]\nmode = \"external\"\n[mqtt]\nusername = \"daemon\"\npassword_file = {:?}\n\
             tls = \"on\"\ntls_ca_file = {:?}\n{more}",
            at("password"),
            at("ca.pem")
        );
        fs::write(folder.join("config.toml"), text).unwrap();
        orinoco(&["config", "check", "--config", folder.to_str().unwrap()])
    };
    let output = check(&format!(
        "tls_cert_file = {:?}\ntls_key_file = {:?}\n",
        at("me.pem"),
        at("ca.key")
    ));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{stderr}");
    for expected in [
        "mqtt.password_file: ",
        "password has the mode 0644",
        "ca.key has the mode 0644",
    ] {
        assert!(stderr.contains(expected), "{expected}\nin {stderr}");
    }
    assert!(!stderr.contains("geheim"), "{stderr}");

    write_key(&plant.path("password"), "geheim\n", 0o600);
    let output = check("");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// The message carried by a link over TLS is not readable on the way.
#[tokio::test]
async fn what_goes_over_the_wire_is_not_readable() {
    use tokio::io::AsyncReadExt;
    let plant = Authority::new("plant");
    let listener = tokio::net::TcpListener::bind((HOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (link, _inbox) = link::spawn(LinkConfig {
        tls: Some(plant.trusted()),
        credentials: Some(link::Credentials {
            user: "alice".into(),
            password: "geheim".into(),
        }),
        ..client::config(port, "link")
    });
    link.try_publish(Publish::default()).unwrap_err();
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut hello = [0; 64];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(hello[..2], [0x16, 3], "a TLS handshake, and no CONNECT");
}
