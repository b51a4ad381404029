//! What strangers may send: each input has its error with a stable code, or is dropped where nobody can be
//! answered; an honest answer beside it loses nothing, and the daemon's memory stays bounded.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use orinoco::link::Props;
use orinoco::wire::error::Code;
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

/// Asks for a whole answer of 500 bytes, which takes its time.
const HONEST: &str = "!count !tokens 500 !step 4";
const HONEST_BYTES: usize = 500;

/// Inputs of op chat that are refused: what they are, the payload, the code.
fn bodies() -> Vec<(&'static str, Vec<u8>, Code)> {
    let message = |extra: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"x"}}]{extra}}}"#).into_bytes()
    };
    let invalid = Code::InvalidRequest;
    vec![
        ("not JSON", br#"{"messages":"#.to_vec(), invalid),
        ("wrong type", br#"{"messages":7}"#.to_vec(), invalid),
        (
            "wrong type inside",
            br#"{"messages":[{"role":1,"content":"x"}]}"#.to_vec(),
            invalid,
        ),
        (
            "depth bomb",
            format!(r#"{{"messages":{}"#, "[".repeat(60_000)).into_bytes(),
            invalid,
        ),
        (
            "values bomb",
            format!(r#"{{"x":[{}1]}}"#, "1,".repeat(50_000)).into_bytes(),
            invalid,
        ),
        ("key given twice", message(r#","seed":1,"seed":2"#), invalid),
        (
            "key given twice inside",
            br#"{"messages":[{"role":"user","role":"user","content":"x"}]}"#.to_vec(),
            invalid,
        ),
        ("not UTF-8", b"abc\xff\xfe".to_vec(), invalid),
        (
            "half a surrogate",
            message(r#","keep_latest":"\ud800""#),
            invalid,
        ),
        ("NUL", b"a\0b".to_vec(), invalid),
        ("nothing", Vec::new(), invalid),
        (
            "number out of range",
            message(r#","max_tokens":1e300"#),
            invalid,
        ),
        (
            "unknown model",
            message(r#","model":"other""#),
            Code::ModelNotFound,
        ),
        (
            "too long for n_ctx",
            "long ".repeat(1000).into_bytes(),
            Code::ContextLengthExceeded,
        ),
        ("too large", vec![b'x'; 140_000], Code::PayloadTooLarge),
    ]
}

fn code_of(client: &Client, id: &str) -> Code {
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap_err().code
}

/// Most memory that a process ever had, in KiB.
fn peak_kib(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn each_hostile_request_has_its_error_and_an_honest_one_beside_it_its_whole_answer() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted).set("model.n_ctx=4096");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "alice", None).await;
    client.until_mode(Mode::Serving).await;
    let before = peak_kib(&daemon);
    client.ask("chat", "honest", HONEST).await;
    client.until_accepted(&["honest".to_owned()]).await;

    for (at, (what, payload, code)) in bodies().into_iter().enumerate() {
        let id = format!("b{at}");
        client
            .ask_with("chat", &id, payload.into(), Props::default())
            .await;
        client.until_ended(std::slice::from_ref(&id)).await;
        assert_eq!(code_of(&client, &id), code, "{what}");
    }
    client.ask("fly", "op", "x").await;
    client.until_ended(&["op".to_owned()]).await;
    assert_eq!(code_of(&client, "op"), Code::UnknownOp);

    // Response Topics: of another user, too long, with an empty level, and with wildcards.
    let long = format!("orinoco/v1/resp/alice/{}", "x".repeat(300));
    let topics = [
        "orinoco/v1/resp/bob/x",
        &long,
        "orinoco/v1/resp/alice//x",
        "orinoco/v1/resp/alice/+",
        "orinoco/v1/resp/alice/#",
        "elsewhere",
    ];
    for (at, topic) in topics.into_iter().enumerate() {
        let id = format!("t{at}");
        let props = Props {
            response_topic: Some(topic.to_owned()),
            ..Props::default()
        };
        client.ask_with("chat", &id, "x".into(), props).await;
        client.until_ended(std::slice::from_ref(&id)).await;
        assert_eq!(code_of(&client, &id), Code::ResponseTopicDenied, "{topic}");
    }

    // Nobody can be answered on these, and nothing else happens.
    let id = "i".repeat(65);
    for topic in [
        format!("orinoco/v1/n1/req/alice/chat/{id}"),
        "orinoco/v1/n1/req/alice/chat/a.b".to_owned(),
        "orinoco/v1/n1/req/alice/chat/a/b".to_owned(),
        "orinoco/v1/n1/req/resp/chat/1".to_owned(),
        format!("orinoco/v1/n1/req/alice/chat/{}", "x".repeat(600)),
    ] {
        client.publish(topic, "x".into(), Props::default()).await;
    }
    client
        .publish_retained("orinoco/v1/n1/req/alice/chat/kept".into(), "x".into())
        .await;

    client.until_ended(&["honest".to_owned()]).await;
    client.answers.remove("reused");
    client.ask("chat", "reused", "!tokens 3").await;
    client.until_ended(&["reused".to_owned()]).await;
    client.answers.remove("reused");
    client.ask("chat", "reused", "!tokens 4").await;
    client.until_ended(&["reused".to_owned()]).await;
    assert_eq!(code_of(&client, "reused"), Code::IdReused);

    assert_eq!(client.text("honest").len(), HONEST_BYTES);
    assert_eq!(client.faults, Vec::<String>::new());
    let grown = peak_kib(&daemon) - before;
    assert!(grown < 24 << 10, "the daemon grew by {grown} KiB");
}

/// 10 MB cannot reach the daemon: the broker ends the connection that sends them, and no other.
#[tokio::test]
async fn ten_megabytes_end_their_own_connection_alone() {
    let site = Site::with_own_broker(Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    let before = peak_kib(&daemon);
    client.ask("chat", "honest", HONEST).await;
    let port = daemon.port;
    let ended = tokio::task::spawn_blocking(move || flood(port, 10 << 20));
    assert!(
        ended.await.unwrap(),
        "the connection should have been ended"
    );
    client.until_ended(&["honest".to_owned()]).await;
    assert_eq!(client.text("honest").len(), HONEST_BYTES);
    let grown = peak_kib(&daemon) - before;
    assert!(grown < 24 << 10, "the daemon grew by {grown} KiB");
}

/// Sends one PUBLISH of this size over a connection of its own; whether the broker ended it.
fn flood(port: u16, payload_bytes: usize) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    // CONNECT, MQTT 3.1.1, clean session, client id "f".
    stream
        .write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01f")
        .unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let topic = b"orinoco/v1/n1/req/local/chat/big";
    let mut length = 2 + topic.len() + payload_bytes;
    let mut packet = vec![0x30];
    while length > 0 {
        packet.push((length % 128) as u8 | if length > 127 { 0x80 } else { 0 });
        length /= 128;
    }
    packet.extend([0, topic.len() as u8]);
    packet.extend(topic);
    packet.resize(packet.len() + payload_bytes, b'x');
    // It may be ended while we write.
    stream.write_all(&packet).is_err() || stream.read_to_end(&mut Vec::new()).is_err_or_end()
}

trait Ended {
    fn is_err_or_end(&self) -> bool;
}

impl Ended for std::io::Result<usize> {
    /// Anything but a read that ran into its timeout.
    fn is_err_or_end(&self) -> bool {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        !matches!(self, Err(error) if matches!(error.kind(), TimedOut | WouldBlock))
    }
}

/// The template of a hostile model, given as the operator's: it is stopped, and says so to who asked.
#[tokio::test]
async fn a_template_bomb_is_an_error_to_who_asked_and_other_ops_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bomb.jinja");
    let bomb = "{% set ns = namespace(s=messages[0].content) %}{% for i in range(40) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}";
    std::fs::write(&file, bomb).unwrap();
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("model.chat_template_file={}", file.display()));
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("complete", "honest", HONEST).await;
    client.until_accepted(&["honest".to_owned()]).await;
    let worker = daemon.child_named("orinoco-engine");
    for id in ["c1", "c2", "c3", "c4", "c5"] {
        client.ask("chat", id, "x").await;
        client.until_ended(&[id.to_owned()]).await;
        let end = client.answers[id].end().unwrap();
        let error = end.outcome.as_ref().unwrap_err();
        assert!(
            matches!(error.code, Code::EngineError | Code::InvalidRequest),
            "{error}"
        );
    }
    client.until_ended(&["honest".to_owned()]).await;
    assert_eq!(client.text("honest").len(), HONEST_BYTES);
    assert_eq!(
        daemon.child_named("orinoco-engine"),
        worker,
        "the same worker serves on"
    );
}

/// A file that the preflight refuses, put into place by hand: the node says so and stays up.
#[tokio::test]
async fn a_malformed_model_is_told_in_the_state_and_refused_to_requesters() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("bad.gguf"),
        b"GGUF\x09\0\0\0 and what follows is no matter",
    )
    .unwrap();
    let worker = support::daemon::beside_orinoco("orinoco-engine");
    let site = Site::with_own_broker(Engine::Smol)
        .set(format!("paths.models_dir={}", dir.path().display()))
        .set(format!("engine.worker_path={}", worker.display()))
        .set("model.active=bad");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::NoModel).await;
    let state = String::from_utf8(client.documents["state"].to_vec()).unwrap();
    assert!(state.contains("GGUF version 9, expected 2 or 3"), "{state}");
    client.ask("chat", "c", "x").await;
    client.until_ended(&["c".to_owned()]).await;
    assert_eq!(code_of(&client, "c"), Code::NoModel);
    let _: Bytes = client.documents["status"].clone();
}
