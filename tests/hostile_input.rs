//! What strangers may send, over MQTT to a running daemon: each input has its error with a stable code and a
//! sentence, or is dropped where nobody can be answered; an honest answer beside it loses nothing, and the
//! daemon's memory stays bounded.
//!
//! Elsewhere: each malformed model, and what its refusal costs (models_preflight.rs); a flood (flood.rs);
//! foreign answers and forged topics on both brokers (broker_access.rs); the parsers by themselves
//! (fuzz_corpus.rs, scripts/fuzz.sh); a program that took over the worker (engine/tests/worker/sandbox.rs).

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use orinoco::link::Props;
use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

/// Asks for a whole answer of 500 bytes, which takes its time.
const HONEST: &str = "!count !tokens 500 !step 4";
const HONEST_BYTES: usize = 500;

/// A payload for op chat that is refused.
struct Case {
    what: &'static str,
    payload: Vec<u8>,
    code: Code,
    /// Part of the sentence: what was found, or expected.
    says: &'static str,
}

fn cases() -> Vec<Case> {
    let chat = |extra: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"x"}}]{extra}}}"#).into_bytes()
    };
    let case = |what, payload, code, says| Case {
        what,
        payload,
        code,
        says,
    };
    let invalid = |what, payload: Vec<u8>, says| case(what, payload, Code::InvalidRequest, says);
    vec![
        invalid(
            "not JSON",
            br#"{"messages":"#.to_vec(),
            "no valid JSON: EOF while parsing a value at line 1 column 12",
        ),
        invalid(
            "wrong type",
            br#"{"messages":7}"#.to_vec(),
            "messages is a number, expected an array",
        ),
        invalid(
            "wrong type inside",
            br#"{"messages":[{"role":1,"content":"x"}]}"#.to_vec(),
            "messages[0].role is a number, expected a string",
        ),
        invalid(
            "depth bomb",
            format!(r#"{{"messages":{}"#, "[".repeat(60_000)).into_bytes(),
            "nests deeper than the 32 levels",
        ),
        invalid(
            "values bomb",
            format!(r#"{{"x":[{}1]}}"#, "1,".repeat(50_000)).into_bytes(),
            "more than the 16384 values",
        ),
        invalid(
            "key given twice",
            chat(r#","seed":1,"seed":2"#),
            r#"key "seed" is given twice"#,
        ),
        invalid(
            "key given twice inside",
            br#"{"messages":[{"role":"user","role":"user","content":"x"}]}"#.to_vec(),
            r#"key "role" is given twice"#,
        ),
        invalid(
            "not UTF-8",
            b"abc\xff\xfe".to_vec(),
            "payload is not UTF-8 at byte 3",
        ),
        invalid(
            "half a surrogate",
            chat(r#","stop":"\ud800""#),
            "no valid JSON: unexpected end of hex escape",
        ),
        invalid("NUL", b"a\0b".to_vec(), "a NUL character at byte 1"),
        invalid("nothing", Vec::new(), "payload has no text"),
        invalid(
            "number out of range",
            chat(r#","max_tokens":1e300"#),
            "expected an integer from 1 to 32768",
        ),
        case(
            "unknown model",
            chat(r#","model":"other""#),
            Code::ModelNotFound,
            "no model `other` here: this node serves",
        ),
        case(
            "too long for n_ctx",
            "long ".repeat(1000).into_bytes(),
            Code::ContextLengthExceeded,
            "a request may use 4096 for prompt and answer",
        ),
        case(
            "too large",
            vec![b'x'; 140_000],
            Code::PayloadTooLarge,
            "140000 bytes, at most 131072 are taken",
        ),
    ]
}

/// The error that this request ends with.
async fn refusal(client: &mut Client, id: &str) -> ApiError {
    client.until_ended(&[id.to_owned()]).await;
    let end = client.answers[id].end().unwrap();
    end.outcome.clone().unwrap_err()
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

    for (at, case) in cases().into_iter().enumerate() {
        let id = format!("b{at}");
        let payload = case.payload.into();
        client
            .ask_with("chat", &id, payload, Props::default())
            .await;
        let error = refusal(&mut client, &id).await;
        assert_eq!(error.code, case.code, "{}", case.what);
        assert!(error.message.contains(case.says), "{}: {error}", case.what);
    }
    client.ask("fly", "op", "x").await;
    let error = refusal(&mut client, "op").await;
    assert_eq!(error.code, Code::UnknownOp);
    assert!(error.message.starts_with("no op `fly`: known are chat"));

    // Response Topics: of another user, outside of all, with an empty level, with wildcards, too long.
    let long = format!("orinoco/v1/resp/alice/{}", "x".repeat(60_000));
    let topics = [
        "orinoco/v1/resp/bob/x",
        "elsewhere",
        "orinoco/v1/resp/alice//x",
        "orinoco/v1/resp/alice/+",
        "orinoco/v1/resp/alice/#",
        &long,
    ];
    for (at, topic) in topics.into_iter().enumerate() {
        let id = format!("t{at}");
        let props = Props {
            response_topic: Some(topic.to_owned()),
            ..Props::default()
        };
        client.ask_with("chat", &id, "x".into(), props).await;
        let error = refusal(&mut client, &id).await;
        assert_eq!(error.code, Code::ResponseTopicDenied, "{topic}");
        let expected = "at most 256 bytes inside orinoco/v1/resp/alice/#, without wildcards";
        assert!(error.message.contains(expected), "{error}");
        assert!(error.message.len() < 400, "{error}");
    }

    client.ask("chat", "reused", "!tokens 3").await;
    client.until_ended(&["reused".to_owned()]).await;
    client.answers.remove("reused");
    client.ask("chat", "reused", "!tokens 4").await;
    let error = refusal(&mut client, "reused").await;
    assert_eq!(error.code, Code::IdReused);
    assert!(error.message.contains("take a new one"), "{error}");

    client.until_ended(&["honest".to_owned()]).await;
    assert_eq!(client.text("honest").len(), HONEST_BYTES);
    assert_eq!(client.faults, Vec::<String>::new());
    let grown = peak_kib(&daemon) - before;
    assert!(grown < 24 << 10, "the daemon grew by {grown} KiB");
}

/// There is no topic to answer on, or the answer would come again at each start.
#[tokio::test]
async fn what_cannot_be_answered_is_dropped_and_a_retained_request_at_each_start() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let mut daemon = site.start();
    let mut all = Client::watch(broker.port(), "orinoco/v1/resp/#").await;
    let mut client = Client::connect(broker.port(), site.node, "alice", None).await;
    client.until_mode(Mode::Serving).await;
    let chat = "orinoco/v1/n1/req/alice/chat";
    for topic in [
        format!("{chat}/{}", "i".repeat(65)),
        format!("{chat}/a.b"),
        format!("{chat}/a/b"),
        format!("{chat}/{}", "x".repeat(60_000)),
        "orinoco/v1/n1/req/resp/chat/1".to_owned(),
        format!("orinoco/v1/n1/req/{}/chat/1", "u".repeat(65)),
    ] {
        client.publish(topic, "x".into(), Props::default()).await;
    }
    let kept = format!("{chat}/kept");
    client.publish_retained(kept, "x".into()).await;
    // No client may publish to wildcards: the broker ends such a connection.
    for wildcard in ["+", "#"] {
        let (port, topic) = (broker.port(), format!("{chat}/{wildcard}"));
        let ended = tokio::task::spawn_blocking(move || publish_raw(port, &topic, 1));
        assert!(ended.await.unwrap(), "{wildcard}");
    }

    for id in ["after", "after-restart"] {
        client.ask("chat", id, "!tokens 3").await;
        client.until_ended(&[id.to_owned()]).await;
        let nothing_else = |all: &Client| all.answers.keys().all(|id| id.starts_with("after"));
        all.until("the answer", |_, all| all.answers.contains_key(id))
            .await;
        assert!(nothing_else(&all), "{:?}", all.answers.keys());
        if id == "after" {
            let stopped = tokio::task::spawn_blocking(|| daemon.stop()).await;
            assert_eq!(stopped.unwrap(), 0);
            client.until_status("offline").await;
            daemon = site.start();
            client.until_status("online").await;
            client.until_mode(Mode::Serving).await;
        }
    }
    drop(daemon);
}

/// 10 MB never reach the daemon: Mosquitto was told what it takes, and the embedded broker ends the
/// connection that sends them.
#[tokio::test]
async fn ten_megabytes_do_not_reach_the_daemon() {
    let mosquitto = Mosquitto::start().await;
    let on_mosquitto = Site::with_broker_on(mosquitto.port(), Engine::Scripted);
    let on_its_own = Site::with_own_broker(Engine::Scripted);
    for (site, is_ended) in [(on_mosquitto, false), (on_its_own, true)] {
        let daemon = site.start();
        let mut client = Client::connect(daemon.port, site.node, "local", None).await;
        client.until_mode(Mode::Serving).await;
        let before = peak_kib(&daemon);
        client.ask("chat", "honest", HONEST).await;
        client.until_accepted(&["honest".to_owned()]).await;
        let port = daemon.port;
        let topic = "orinoco/v1/n1/req/local/chat/big";
        let ended = tokio::task::spawn_blocking(move || publish_raw(port, topic, 10 << 20));
        assert_eq!(ended.await.unwrap(), is_ended);
        client.until_ended(&["honest".to_owned()]).await;
        assert_eq!(client.text("honest").len(), HONEST_BYTES);
        assert_eq!(client.answers.len(), 1);
        let grown = peak_kib(&daemon) - before;
        assert!(grown < 24 << 10, "the daemon grew by {grown} KiB");
    }
}

/// Sends one PUBLISH with QoS 0 over a connection of its own, and a ping; whether the broker ended the
/// connection instead of answering that.
fn publish_raw(port: u16, topic: &str, payload_bytes: usize) -> bool {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    // CONNECT, MQTT 3.1.1, clean session, client id "f".
    stream
        .write_all(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01f")
        .unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    let mut length = 2 + topic.len() + payload_bytes;
    let mut packet = vec![0x30];
    while length > 0 {
        packet.push((length % 128) as u8 | if length > 127 { 0x80 } else { 0 });
        length /= 128;
    }
    packet.extend((topic.len() as u16).to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.resize(packet.len() + payload_bytes, b'x');
    // It may be ended while we write.
    if stream.write_all(&packet).is_err() || stream.write_all(&[0xc0, 0]).is_err() {
        return true;
    }
    match stream.read(&mut [0; 2]) {
        Ok(n) => n == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
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
        let error = refusal(&mut client, id).await;
        assert_eq!(error.code, Code::InvalidRequest);
        let says = match id {
            "c4" | "c5" => "it had to be stopped 3 times and is not used any more",
            _ => "it needs more than 64 MiB of memory",
        };
        assert!(error.message.contains(says), "{id}: {error}");
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
    let error = refusal(&mut client, "c").await;
    assert_eq!(error.code, Code::NoModel);
    assert!(error.message.contains("bad.gguf is refused"), "{error}");
}
