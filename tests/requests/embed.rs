//! Op embed: vectors by a second model, in a worker that is there when it is needed.

use std::io::Write as _;

use orinoco::wire::topic::Op;
use serde_json::{Value, json};

use super::client;
use super::support::daemon::{Daemon, Engine, Site, children_of, poll};
use super::support::requester::Client;
use super::{LOCAL, Mode, Models, ids};
use orinoco::link::{self, Inbox, Link};
use orinoco::wire::error::Code;
use orinoco::wire::report::{Info, State};

/// A scripted daemon whose embedding model's file has this text, and who hears its answers.
struct Play {
    _dir: tempfile::TempDir,
    site: Site,
    daemon: Daemon,
    client: Client,
    _link: Link,
    inbox: Inbox,
}

async fn play(file: &str, settings: &[&str]) -> Play {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mini.gguf");
    std::fs::write(&path, file).unwrap();
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("models.mini.file={}", path.display()))
        .set("models.mini.aliases=vectors")
        .set("embeddings.model=mini");
    let site = settings
        .iter()
        .fold(site, |site, setting| site.set(*setting));
    let daemon = site.start();
    let mut config = client::config(daemon.port, "reader");
    config.subscriptions = vec!["orinoco/v1/resp/local/#".to_owned()];
    let (link, mut inbox) = link::spawn(config);
    client::up(&mut inbox).await;
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    Play {
        _dir: dir,
        site,
        daemon,
        client,
        _link: link,
        inbox,
    }
}

impl Play {
    async fn ask(&mut self, id: &str, body: &Value) -> Value {
        self.client.ask("embed", id, &body.to_string()).await;
        self.answer(id).await
    }

    /// The answer with this id, and no other.
    async fn answer(&mut self, id: &str) -> Value {
        loop {
            let message = client::received(&mut self.inbox).await;
            let body: Value = serde_json::from_slice(&message.payload).unwrap();
            if body["id"] == id {
                return body;
            }
        }
    }

    fn n_workers(&self) -> usize {
        let children = children_of(self.daemon.pid());
        let is_worker = |pid: &&i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.starts_with("orinoco-engine")
        };
        children.iter().filter(is_worker).count()
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    let numbers = value.as_array().expect("an array of numbers");
    numbers.iter().map(|x| x.as_f64().unwrap()).collect()
}

#[tokio::test]
async fn texts_become_vectors_in_openais_shape() {
    let mut play = play("", &[]).await;
    assert_eq!(play.n_workers(), 1, "nobody asked for vectors yet");
    let body = json!({"input": ["one", "two", "one"], "model": "vectors"});
    let answer = play.ask("v1", &body).await;
    assert_eq!(answer["object"], "list", "{answer}");
    assert_eq!(answer["model"], "mini");
    assert_eq!(answer["final"], true);
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 15, "total_tokens": 15})
    );
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(data[1]["index"], 1);
    assert_eq!(data[0]["embedding"], data[2]["embedding"]);
    let vector = numbers(&data[0]["embedding"]);
    assert_eq!(vector.len(), 8);
    assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);

    let body = json!({"input": "one", "dimensions": 3, "encoding_format": "float"});
    let short = numbers(&play.ask("v2", &body).await["data"][0]["embedding"]);
    let length: f64 = vector[..3].iter().map(|x| x * x).sum::<f64>().sqrt();
    for (found, whole) in short.iter().zip(&vector) {
        assert!(
            (found - whole / length).abs() < 1e-5,
            "{short:?} of {vector:?}"
        );
    }
    let body = json!({"input": "one", "encoding_format": "base64"});
    let packed = play.ask("v3", &body).await;
    assert_eq!(packed["data"][0]["embedding"].as_str().unwrap().len(), 44);

    play.client
        .until("the model's length", |_, client| {
            let models: Option<Models> = client
                .documents
                .get("models")
                .and_then(|document| serde_json::from_slice(document).ok());
            models.is_some_and(|models| {
                let mini = models.models.iter().find(|model| model.name == "mini");
                mini.is_some_and(|mini| mini.dimensions == Some(8) && mini.embeds == Some(true))
            })
        })
        .await;
    let info: Info = serde_json::from_slice(&play.client.documents["info"]).unwrap();
    assert!(info.ops.contains(&Op::Embed));
    // The model that talks is another, and goes on.
    play.client.ask("chat", "c1", "!count !tokens 3").await;
    play.client.until_ended(&ids(["c1"])).await;
}

#[tokio::test]
async fn what_cannot_be_embedded_is_refused_with_a_reason() {
    let mut play = play("", &["model.n_ubatch=64"]).await;
    let long = "x".repeat(100);
    for (id, body, code, part) in [
        (
            "x1",
            json!({"input": ["a", long]}),
            "context_length_exceeded",
            "input[1] has 102 tokens, a text may have 64",
        ),
        (
            "x2",
            json!({"input": "a", "dimensions": 9}),
            "invalid_request",
            "the vectors of this model have 8",
        ),
        (
            "x3",
            json!({"input": "a", "model": "other"}),
            "model_not_found",
            "this node has `mini`",
        ),
        (
            "x4",
            json!({"input": []}),
            "invalid_request",
            "allowed are 1 to 256",
        ),
    ] {
        let answer = play.ask(id, &body).await;
        assert_eq!(answer["error"]["code"], code, "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{message}");
    }
    let cut = play
        .ask("x5", &json!({"input": long, "truncate": true}))
        .await;
    assert_eq!(cut["orinoco"]["truncated"], true, "{cut}");
    // Prompts are not for it.
    play.client
        .ask(
            "chat",
            "x6",
            r#"{"messages":[{"role":"user","content":"a"}],"model":"mini"}"#,
        )
        .await;
    assert_eq!(play.answer("x6").await["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_with_the_numbers_and_prompts_go_on() {
    let mut play = play("!weights-bytes 900000000000000\n", &[]).await;
    let answer = play.ask("n1", &json!({"input": "a"})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("GiB"), "{message}");
    assert_eq!(answer["error"]["code"], "no_model", "{message}");
    play.client.ask("chat", "c1", "!count !tokens 3").await;
    play.client.until_ended(&ids(["c1"])).await;
    assert!(play.client.answers["c1"].end().unwrap().outcome.is_ok());
}

#[tokio::test]
async fn a_text_that_ends_its_worker_takes_nobody_with_it() {
    let mut play = play("", &["engine.restart_backoff_ms_min=1"]).await;
    play.ask("p0", &json!({"input": "warm"})).await;
    play.client
        .ask("embed", "p1", r#"{"input":"!abort"}"#)
        .await;
    play.client
        .ask("embed", "p2", r#"{"input":["fine","also fine"]}"#)
        .await;
    let (mut ended, mut answered) = (false, false);
    while !(ended && answered) {
        let message = client::received(&mut play.inbox).await;
        let body: Value = serde_json::from_slice(&message.payload).unwrap();
        match body["id"].as_str() {
            Some("p1") => {
                assert_eq!(body["error"]["code"], Code::Poison.as_str(), "{body}");
                ended = true;
            }
            Some("p2") => {
                assert_eq!(body["data"].as_array().map(Vec::len), Some(2), "{body}");
                answered = true;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_idle_embedding_model_is_unloaded_and_comes_back_when_it_is_asked() {
    let mut play = play("!weights-bytes 5000000\n", &["embeddings.idle_seconds=3"]).await;
    play.ask("i1", &json!({"input": "a"})).await;
    assert_eq!(play.n_workers(), 2);
    let embedding_bytes = |client: &Client| {
        let document = client.documents.get("state");
        let state: Option<State> = document.and_then(|bytes| serde_json::from_slice(bytes).ok());
        state.and_then(|state| state.memory?.embedding_bytes)
    };
    play.client
        .until("the account has it", |_, client| {
            embedding_bytes(client).is_some_and(|bytes| bytes >= 5_000_000)
        })
        .await;
    play.client
        .until("the account has it no more", |_, client| {
            embedding_bytes(client).is_none()
        })
        .await;
    poll(|| (play.n_workers() == 1).then_some(()));
    let answer = play.ask("i2", &json!({"input": "a"})).await;
    assert_eq!(answer["data"].as_array().map(Vec::len), Some(1), "{answer}");
}

#[tokio::test]
async fn the_command_line_prints_a_line_for_each_text() {
    let play = play("", &[]).await;
    let command = |args: &[&str]| {
        let mut command = play.site.command(args);
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    let output = command(&["embed", "one", "two"]).await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let _ = std::io::stderr().write_all(&output.stderr);
    let lines = Vec::from_iter(text.lines());
    assert_eq!(lines.len(), 2, "{text}");
    let vector: Vec<f32> = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(vector.len(), 8);
    let output = command(&["embed", "--dimensions", "70", "one"])
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("dimensions is 70"), "{words}");
}

#[tokio::test]
async fn a_real_model_finds_what_is_alike() {
    let site = Site::with_own_broker(Engine::Smol).set("embeddings.model=all-MiniLM-L6-v2.F16");
    let daemon = site.start();
    let mut config = client::config(daemon.port, "reader");
    config.subscriptions = vec!["orinoco/v1/resp/local/#".to_owned()];
    let (_link, mut inbox) = link::spawn(config);
    client::up(&mut inbox).await;
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let texts = [
        "Pump 3 vibrates strongly.",
        "The third pump shakes a lot.",
        "Lunch is at noon.",
    ];
    client
        .ask("embed", "r1", &json!({"input": texts}).to_string())
        .await;
    let message = client::received(&mut inbox).await;
    let answer: Value = serde_json::from_slice(&message.payload).unwrap();
    let data = answer["data"]
        .as_array()
        .unwrap_or_else(|| panic!("{answer}"));
    let vectors = Vec::from_iter(data.iter().map(|one| numbers(&one["embedding"])));
    let alike = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (near, far) = (
        alike(&vectors[0], &vectors[1]),
        alike(&vectors[0], &vectors[2]),
    );
    assert!(near > 0.6 && far < 0.3, "{near} {far}");
}
