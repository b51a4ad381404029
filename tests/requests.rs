//! What a requester sees: every op, repeats, cancels, refusals; on the embedded broker and on Mosquitto.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/client.rs"]
mod client;
#[path = "requests/embed.rs"]
mod embed;
mod support;
#[path = "requests/templates.rs"]
mod templates;

use std::time::Duration;

use bytes::Bytes;
use orinoco::link::{self, Inbox, Props};
use orinoco::wire::error::Code;
use orinoco::wire::report::{Held, Info, Mode, Models, Status};
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

const LOCAL: &str = "local";

/// A serving daemon with the scripted engine and its own broker, and a connected client.
async fn own_broker(settings: &[&str]) -> (Site, Daemon, Client) {
    let site = settings
        .iter()
        .fold(Site::with_own_broker(Engine::Scripted), |site, setting| {
            site.set(*setting)
        });
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    (site, daemon, client)
}

fn ids<const N: usize>(ids: [&str; N]) -> Vec<String> {
    ids.map(str::to_owned).to_vec()
}

async fn every_op_answers(client: &mut Client) {
    client.ask("chat", "c1", "!count !tokens 40").await;
    client.ask("complete", "c2", "!count !tokens 40").await;
    client
        .ask(
            "chat",
            "c3",
            r#"{"messages":[{"role":"user","content":"!count !tokens 40"}],"stream":false}"#,
        )
        .await;
    client.ask("tokenize", "c4", "abc").await;
    client.ask("text", "c5", "!count !tokens 40").await;
    client.ask("text-stream", "c6", "!count !tokens 40").await;
    client.until_ended(&ids(["c1", "c2", "c3", "c4"])).await;
    client
        .until("bare answers", |_, client| {
            client.bare.contains_key("c5")
                && client
                    .bare
                    .get("c6")
                    .is_some_and(|pieces| pieces.last().is_some_and(Bytes::is_empty))
        })
        .await;
    assert_eq!(client.faults, Vec::<String>::new());
    let text = client.text("c1").to_owned();
    assert!(text.starts_with("0 1 2 3 "), "{text}");
    assert_eq!(client.text("c2"), text);
    assert_eq!(client.text("c3"), text);
    assert_eq!(client.bare["c5"], [Bytes::from(text.clone())]);
    assert_eq!(client.bare["c6"].concat(), text.as_bytes());
}

#[tokio::test]
async fn every_op_answers_on_the_embedded_broker() {
    let (_site, _daemon, mut client) = own_broker(&[]).await;
    every_op_answers(&mut client).await;
}

#[tokio::test]
async fn every_op_answers_on_mosquitto() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    every_op_answers(&mut client).await;
}

#[tokio::test]
async fn a_finished_id_is_answered_from_the_store_byte_for_byte() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "r1", "!count !tokens 60 !step 2").await;
    client.until_ended(&ids(["r1"])).await;
    let text = client.text("r1").to_owned();
    // A requester that lost everything asks again, also after a restart of the daemon.
    assert_eq!(daemon.stop(), 0);
    client.until_status("offline").await;
    let _daemon = site.start();
    client.until_mode(Mode::Serving).await;
    let first = client.answers.remove("r1").unwrap();
    client.ask("chat", "r1", "!count !tokens 60 !step 2").await;
    client.until_ended(&ids(["r1"])).await;
    assert_eq!(client.faults, Vec::<String>::new());
    assert_eq!(client.text("r1"), text);
    assert_eq!(client.answers["r1"].end(), first.end());
    assert_eq!(client.finals["r1"].len(), 1);
}

/// Every message on `topic` until the final, as JSON.
async fn until_final(inbox: &mut Inbox) -> Vec<serde_json::Value> {
    let mut said = Vec::new();
    loop {
        let message = client::received(inbox).await;
        let body: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        said.push(body);
        if said.last().unwrap()["final"] == true {
            return said;
        }
    }
}

#[tokio::test]
async fn probabilities_come_with_the_text_of_each_chunk_also_when_it_is_said_again() {
    let (_site, daemon, mut client) = own_broker(&[]).await;
    let mut config = client::config(daemon.port, "reader");
    config.subscriptions = vec!["orinoco/v1/resp/local/#".to_owned()];
    let (_link, mut inbox) = link::spawn(config);
    client::up(&mut inbox).await;
    let body = r#"{"messages":[{"role":"user","content":"!count"}],"logprobs":true,"top_logprobs":2,
        "stop":["14"],"coalesce_ms":0,"max_tokens":100}"#;
    client.ask("chat", "l1", body).await;
    let first = until_final(&mut inbox).await;
    let mut text = String::new();
    for chunk in &first[1..first.len() - 1] {
        let choice = &chunk["choices"][0];
        let content = choice["delta"]["content"].as_str().unwrap();
        for token in choice["logprobs"]["content"].as_array().unwrap() {
            text.push_str(token["token"].as_str().unwrap());
            assert!(token["logprob"].as_f64().unwrap() > -0.001, "{token}");
            assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
            assert_eq!(token["top_logprobs"][1]["logprob"], -100.0);
        }
        assert!(text.ends_with(content), "{text:?}, {content:?}");
    }
    // The tokens of the stop text were made, and are told as little as their text.
    assert!(text.ends_with("12 13 "), "{text}");
    client.ask("chat", "l1", body).await;
    assert_eq!(until_final(&mut inbox).await[1..], first[1..]);

    let whole = body.replace("\"coalesce_ms\":0", "\"stream\":false");
    client.ask("chat", "l2", &whole).await;
    let choice = until_final(&mut inbox).await.pop().unwrap()["choices"][0].take();
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    let joined = String::from_iter(tokens.iter().map(|token| token["token"].as_str().unwrap()));
    assert_eq!(choice["message"]["content"], joined.as_str());
    assert_eq!(joined, text);
}

#[tokio::test]
async fn a_model_answers_to_its_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tiny.gguf");
    std::fs::write(&file, "").unwrap();
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("models.tiny.file={}", file.display()))
        .set("models.tiny.aliases=code,home")
        .set("model.active=tiny");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let has_aliases = |client: &Client| {
        let document = client.documents.get("models")?;
        let models: Models = serde_json::from_slice(document).ok()?;
        let tiny = models.models.into_iter().find(|model| model.name == "tiny");
        Some(tiny?.aliases == ["code", "home"])
    };
    client
        .until("the names", |_, client| has_aliases(client) == Some(true))
        .await;
    for (id, model, found) in [
        ("m1", "code", None),
        ("m2", "cod", Some(Code::ModelNotFound)),
    ] {
        let body = format!(r#"{{"prompt":"a","max_tokens":2,"model":"{model}"}}"#);
        client.ask("complete", id, &body).await;
        client.until_ended(&ids([id])).await;
        let end = client.answers[id].end().unwrap();
        assert_eq!(end.outcome.as_ref().err().map(|error| error.code), found);
    }
}

#[tokio::test]
async fn an_id_with_another_body_is_refused_while_it_runs_and_afterwards() {
    let (_site, _daemon, mut client) = own_broker(&[]).await;
    client.ask("complete", "i1", "!count !tokens 20").await;
    client.until_ended(&ids(["i1"])).await;
    client.answers.clear();
    client.ask("complete", "i1", "!count !tokens 21").await;
    client.until_ended(&ids(["i1"])).await;
    let error = client.answers["i1"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err();
    assert_eq!(error.code, Code::IdReused);
}

#[tokio::test]
async fn a_running_and_a_waiting_job_can_be_cancelled() {
    let (_site, _daemon, mut client) = own_broker(&["engine.n_seq_max=1"]).await;
    client
        .ask("chat", "run", "!count !tokens 4000 !step 5")
        .await;
    client
        .ask("chat", "wait", "!count !tokens 4000 !step 5")
        .await;
    client
        .until("some text", |_, client| {
            client
                .answers
                .get("run")
                .is_some_and(|a| a.text().len() > 10)
        })
        .await;
    client.cancel("wait").await;
    client.cancel("run").await;
    client.until_ended(&ids(["run", "wait"])).await;
    for id in ["run", "wait"] {
        let end = client.answers[id].end().unwrap().outcome.as_ref().unwrap();
        assert_eq!(end.finish_reason, "cancelled", "{id}");
    }
    assert!(client.text("run").len() < 4000);
    assert_eq!(client.text("wait"), "");
    // The sequence is free again.
    client.ask("chat", "next", "!count !tokens 10").await;
    client.until_ended(&ids(["next"])).await;
    assert_eq!(client.text("next").len(), 10);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_with_its_code() {
    let (_site, _daemon, mut client) = own_broker(&[
        "engine.n_seq_max=1",
        "requests.queue_jobs_max=2",
        "model.n_ctx=2048",
    ])
    .await;
    let cases: [(&str, &str, &str, Code); 8] = [
        ("chat", "e1", r#"{"messages":"#, Code::InvalidRequest),
        (
            "chat",
            "e2",
            r#"{"messages":[{"role":"user","content":"x"}],"model":"other"}"#,
            Code::ModelNotFound,
        ),
        (
            "chat",
            "e3",
            r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":100000}"#,
            Code::InvalidRequest,
        ),
        ("embed", "e4", r#"{"input":"x"}"#, Code::NotSupported),
        ("fly", "e5", "x", Code::UnknownOp),
        (
            "chat",
            "e6",
            r#"{"messages":[{"role":"user","content":"x"}],"priority":"alarm"}"#,
            Code::NotAllowed,
        ),
        (
            "chat",
            "e7",
            &format!("{} ", "long ".repeat(1000)),
            Code::ContextLengthExceeded,
        ),
        ("chat", "e8", &"x".repeat(140_000), Code::PayloadTooLarge),
    ];
    for (op, id, body, code) in cases {
        client.ask(op, id, body).await;
        client.until_ended(&ids([id])).await;
        let end = client.answers[id].end().unwrap();
        assert_eq!(
            end.outcome
                .as_ref()
                .map_err(|error| error.code)
                .unwrap_err(),
            code,
            "{id}"
        );
    }
    // Room for two jobs; the third hears when to ask again.
    client
        .ask("chat", "q1", "!count !tokens 2000 !step 5")
        .await;
    client.ask("chat", "q2", "!count !tokens 10").await;
    client.until_accepted(&ids(["q1", "q2"])).await;
    client.ask("chat", "q3", "!count !tokens 10").await;
    client.until_ended(&ids(["q3"])).await;
    let error = client.answers["q3"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err()
        .clone();
    assert_eq!(error.code, Code::QueueFull);
    assert!(error.retry_after_ms.is_some());
    client.cancel("q1").await;
    client.until_ended(&ids(["q1", "q2"])).await;
}

#[tokio::test]
async fn an_answer_goes_to_the_response_topic_with_its_correlation_data_and_never_elsewhere() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "alice", None).await;
    client.until_mode(Mode::Serving).await;
    let ask = |topic: &str| Props {
        response_topic: Some(topic.to_owned()),
        correlation: Some(Bytes::from_static(&[0, 159, 255])),
        ..Props::default()
    };
    client
        .ask_with(
            "chat",
            "own",
            "!count !tokens 10".into(),
            ask("orinoco/v1/resp/alice/elsewhere"),
        )
        .await;
    client.until_ended(&ids(["elsewhere"])).await;
    assert!(
        client
            .correlations
            .iter()
            .all(|data| data.as_ref() == [0, 159, 255])
    );
    assert!(!client.correlations.is_empty());
    client
        .ask_with(
            "chat",
            "foreign",
            "!count !tokens 10".into(),
            ask("orinoco/v1/resp/bob/x"),
        )
        .await;
    client.until_ended(&ids(["foreign"])).await;
    let error = client.answers["foreign"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err();
    assert_eq!(error.code, Code::ResponseTopicDenied);
}

#[tokio::test]
async fn a_retained_request_is_ignored() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    client
        .publish_retained(
            "orinoco/v1/n1/req/local/chat/old".into(),
            "!count !tokens 5".into(),
        )
        .await;
    let _daemon = site.start();
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "new", "!count !tokens 5").await;
    client.until_ended(&ids(["new"])).await;
    assert!(!client.answers.contains_key("old"));
}

#[tokio::test]
async fn the_node_tells_what_it_is_and_says_goodbye() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client.until_status("online").await; // The last of its documents to be said.
    let status: Status = serde_json::from_slice(&client.documents["status"]).unwrap();
    let info: Info = serde_json::from_slice(&client.documents["info"]).unwrap();
    let models: Models = serde_json::from_slice(&client.documents["models"]).unwrap();
    assert_eq!(serde_json::to_value(status.state).unwrap(), "online");
    assert_eq!(info.node, "n1");
    let engine = info.engine.unwrap();
    assert!(engine.offload.is_some());
    let sandbox = engine.sandbox.unwrap();
    assert!(sandbox.seccomp && sandbox.no_new_privs, "{sandbox:?}");
    assert_eq!(sandbox.state == Held::Full, sandbox.gaps.is_empty());
    assert_eq!(models.active.as_deref(), Some("SmolLM2-135M-Instruct.Q4_1"));
    assert!(models.models.len() >= 2);
    // An orderly end is published by the daemon itself, a death by the broker.
    assert_eq!(daemon.stop(), 0);
    client.until_status("offline").await;
    assert!(!site.log().contains("WARN"), "{}", site.log());
    let daemon = site.start();
    client.until_status("online").await;
    daemon.power_cut();
    client.until_status("offline").await;
}

#[tokio::test]
async fn users_have_their_own_limits_and_defaults() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("users.plc.max_tokens=7")
        .set("users.plc.max_tokens_max=10")
        .set("users.plc.ops=chat");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc", None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "u1", "!count").await;
    client.ask("complete", "u2", "!count").await;
    client
        .ask(
            "chat",
            "u3",
            r#"{"messages":[{"role":"user","content":"!count"}],"max_tokens":11}"#,
        )
        .await;
    client.until_ended(&ids(["u1", "u2", "u3"])).await;
    assert_eq!(client.text("u1").len(), 7);
    let code = |id: &str| {
        client.answers[id]
            .end()
            .unwrap()
            .outcome
            .as_ref()
            .unwrap_err()
            .code
    };
    assert_eq!(
        (code("u2"), code("u3")),
        (Code::NotAllowed, Code::InvalidRequest)
    );
}

#[tokio::test]
async fn text_is_joined_while_it_is_made_and_sent_singly_on_request() {
    let (_site, _daemon, mut client) = own_broker(&[]).await;
    let body = |ms: u32| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"!count !tokens 100 !step 5"}}],"coalesce_ms":{ms}}}"#
        )
    };
    let chunks = |client: &Client, id: &str| {
        let end = client.answers[id].end().unwrap();
        end.outcome.as_ref().unwrap().details.n_chunks.unwrap()
    };
    // A machine with other things to do joins as well, and takes longer: one of several tries shows it.
    let mut seen = Vec::new();
    for n in 0..10 {
        let (each, joined) = (format!("each{n}"), format!("joined{n}"));
        for (id, ms) in [(&each, 0), (&joined, 200)] {
            client.ask("chat", id, &body(ms)).await;
            client.until_ended(std::slice::from_ref(id)).await;
        }
        assert_eq!(client.text(&each), client.text(&joined));
        let found = (chunks(&client, &each), chunks(&client, &joined));
        if found.0 > 60 && found.1 <= 10 {
            return;
        }
        seen.push(found);
    }
    panic!("one message a token, or nearly, and few that are joined: {seen:?}");
}

#[tokio::test]
async fn a_full_disk_refuses_with_507_and_service_resumes_when_there_is_room() {
    let Some(disk) = support::daemon::SmallDisk::mount(96) else {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    };
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set(format!("paths.state_dir={}", disk.path().display()))
        .with_state_dir(disk.path());
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client
        .ask("chat", "before", "!count !tokens 400 !step 3")
        .await;
    client.until_accepted(&ids(["before"])).await;
    disk.fill();
    client.ask("chat", "refused", "!count !tokens 10").await;
    client.until_ended(&ids(["refused"])).await;
    let error = client.answers["refused"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err()
        .clone();
    assert_eq!(error.code, Code::StorageFull);
    assert_eq!(error.code.status(), 507);
    disk.empty();
    // What was accepted before ends all the same.
    client.until_ended(&ids(["before"])).await;
    assert_eq!(client.text("before").len(), 400);
    client.listen(Duration::from_millis(1500)).await; // The store looks again after a second.
    client.ask("chat", "after", "!count !tokens 10").await;
    client.until_ended(&ids(["after"])).await;
    assert_eq!(client.text("after").len(), 10);
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_request_that_was_called_off_may_be_asked_again_under_its_id() {
    let (_site, _daemon, mut client) = own_broker(&["engine.n_seq_max=1"]).await;
    // It waits behind this one, and cannot end before it is called off.
    client
        .ask("chat", "first", "!count !tokens 500 !step 20")
        .await;
    client.until_text("first").await;
    let body = "!count !tokens 300 !step 2";
    client.ask("chat", "again", body).await;
    client.until_accepted(&ids(["again"])).await;
    client.cancel("again").await;
    client.until_ended(&ids(["again"])).await;
    let finish = |client: &Client| {
        let end = client.answers["again"].end().unwrap();
        end.outcome.as_ref().unwrap().finish_reason.clone()
    };
    assert_eq!(finish(&client), "cancelled");
    client.cancel("first").await;
    client.until_ended(&ids(["first"])).await;
    // Until the broker has told the node that it has the final, that final is said again.
    while finish(&client) == "cancelled" {
        client.answers.clear();
        client.ask("chat", "again", body).await;
        client.until_ended(&ids(["again"])).await;
    }
    assert_eq!(client.text("again").len(), 300);
}
