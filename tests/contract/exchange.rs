//! A real exchange, overheard and held against the AsyncAPI document: every op, refusals, failures, a
//! cancel, and what a node tells about itself from its start to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use orinoco::contract;
use orinoco::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use orinoco::wire::{Code, Limits};
use serde_json::{Value, json};

use super::judge::{Judge, strict};
use super::support::broker::Mosquitto;
use super::support::daemon::{Engine, Site};

const PATIENCE: Duration = Duration::from_secs(60);

/// A message as it came.
struct Heard {
    topic: String,
    payload: Bytes,
    qos: u8,
    retain: bool,
    props: Props,
}

impl Heard {
    fn has(&self, property: &str, value: &str) -> bool {
        self.props.user.contains(&(property.into(), value.into()))
    }

    fn is_final(&self) -> bool {
        self.has("final", "1")
    }
}

fn id_of(topic: &str) -> &str {
    topic.rsplit('/').next().unwrap()
}

/// The AsyncAPI document, as somebody reads it who holds messages against it.
struct Contract {
    document: Value,
    judges: BTreeMap<String, Judge>,
}

impl Contract {
    fn new() -> Self {
        let document = contract::asyncapi();
        let strict = strict(&document);
        let definitions = document["components"]["schemas"].as_object().unwrap();
        let judge = |name: &String| {
            let pointer = format!("/components/schemas/{name}");
            // What requesters send may have keys more; what the node sends may not.
            let is_request = name.ends_with("Request");
            let source = if is_request { &document } else { &strict };
            (name.clone(), Judge::of(source, &pointer))
        };
        let judges = definitions.keys().map(judge).collect();
        Self { document, judges }
    }

    /// Name of the one channel with this topic.
    fn channel(&self, topic: &str) -> Option<&str> {
        let levels: Vec<_> = topic.split('/').collect();
        let fits = |address: &str| {
            let pattern: Vec<_> = address.split('/').collect();
            let same =
                |(pattern, level): (&&str, &&str)| pattern.starts_with('{') || pattern == level;
            pattern.len() == levels.len() && pattern.iter().zip(&levels).all(same)
        };
        let channels = self.document["channels"].as_object().unwrap();
        let mut found = channels
            .iter()
            .filter(|(_, channel)| fits(channel["address"].as_str().unwrap()));
        let (name, _) = found.next()?;
        assert!(found.next().is_none(), "{topic} has two channels");
        Some(name)
    }

    fn names(list: &Value) -> BTreeSet<String> {
        let last = |reference: &Value| {
            let target = reference["$ref"].as_str().unwrap();
            target.rsplit('/').next().unwrap().to_owned()
        };
        list.as_array().unwrap().iter().map(last).collect()
    }

    /// Messages that an operation sends or receives.
    fn messages(&self, channel: &str) -> BTreeSet<String> {
        Self::names(&self.document["operations"][channel]["messages"])
    }

    /// Messages that answer it.
    fn replies(&self, channel: &str) -> BTreeSet<String> {
        Self::names(&self.document["operations"][channel]["reply"]["messages"])
    }

    fn assert_right(&self, reference: &Value, value: &Value, what: &str) {
        let name = reference["$ref"]
            .as_str()
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap();
        self.judges[name].assert_right(value, what);
    }

    /// A message from the node, on a topic of its own.
    fn assert_sent(&self, message: &Heard) -> (String, String) {
        let what = format!("{} {:?}", message.topic, message.payload);
        let channel = self.channel(&message.topic);
        let channel = channel.unwrap_or_else(|| panic!("no channel for {what}"));
        let operation = &self.document["operations"][channel];
        assert_eq!(operation["action"], "send", "{what}");
        let name = name_of(channel, message);
        assert!(self.messages(channel).contains(&name), "no {name}: {what}");

        let described = &self.document["components"]["messages"][&name];
        let content_type = message.props.content_type.as_deref();
        assert_eq!(described["contentType"].as_str(), content_type, "{what}");
        assert!(message.props.payload_utf8, "{what}");
        self.assert_right(&described["payload"], &payload_of(message), &what);
        if !described["headers"].is_null() {
            let headers: Value = message.props.user.iter().cloned().collect();
            self.assert_right(&described["headers"], &headers, &what);
        }
        let mqtt = &operation["bindings"]["mqtt"];
        assert_eq!(mqtt["qos"], message.qos, "{what}");
        assert_eq!(mqtt["retain"], message.retain, "{what}");
        // The broker counts down.
        match (
            mqtt["messageExpiryInterval"].as_u64(),
            message.props.message_expiry_s,
        ) {
            (None, None) => {}
            (Some(most), Some(left)) => assert!(u64::from(left) <= most && most - 60 < left.into()),
            (most, left) => panic!("expires after {left:?} s, {most:?} is described: {what}"),
        }
        (channel.to_owned(), name)
    }
}

fn payload_of(message: &Heard) -> Value {
    let text = std::str::from_utf8(&message.payload).unwrap();
    match message.props.content_type.as_deref() {
        Some("application/json") => serde_json::from_str(text).unwrap(),
        _ => text.into(),
    }
}

/// Which message of its channel it is.
fn name_of(channel: &str, message: &Heard) -> String {
    if channel != "resp" {
        return channel.to_owned();
    }
    let body = payload_of(message);
    let name = match body["object"].as_str() {
        _ if body.is_string() => "bareText",
        _ if body["error"].is_object() => "failure",
        Some("tokenize") => "tokens",
        Some("list") => "embeddings",
        _ if body["seq"] == 0 => "accepted",
        _ if body["final"] == false => "chunk",
        _ if body["orinoco"]["n_chunks"].is_u64() => "final",
        _ => "whole",
    };
    name.to_owned()
}

/// Hears everything, and asks.
struct Tap {
    link: Link,
    inbox: Inbox,
    heard: Vec<Heard>,
    /// Channel of each question, by its id.
    asked: BTreeMap<String, String>,
    /// Channels and messages that were used so far.
    used: BTreeSet<String>,
    said: BTreeSet<String>,
    contract: Contract,
}

impl Tap {
    async fn on(port: u16) -> Self {
        let mut config = LinkConfig::new("127.0.0.1", port, "tap");
        config.subscriptions = ["resp/#", "n1/status", "n1/info", "n1/models", "n1/state"]
            .map(|rest| format!("orinoco/v1/{rest}"))
            .to_vec();
        let (link, mut inbox) = link::spawn(config);
        while !matches!(inbox.recv().await, Some(Inbound::Up { .. })) {}
        Self {
            link,
            inbox,
            heard: Vec::new(),
            asked: BTreeMap::new(),
            used: BTreeSet::new(),
            said: BTreeSet::new(),
            contract: Contract::new(),
        }
    }

    async fn publish(&mut self, topic: &str, payload: &[u8], props: Props) {
        let publish = Publish {
            topic: topic.to_owned(),
            payload: Bytes::copy_from_slice(payload),
            at_least_once: true,
            props,
            ..Publish::default()
        };
        self.link.publish(publish).await.unwrap();
    }

    /// Sends what the document allows on this topic.
    async fn say(&mut self, topic: &str, body: &str, props: Props) -> String {
        self.publish(topic, body.as_bytes(), props).await;
        let channel = self.contract.channel(topic).unwrap().to_owned();
        let (content_type, payload) = match serde_json::from_str(body) {
            Ok(json @ Value::Object(_)) => ("application/json", json),
            _ => ("text/plain", body.into()),
        };
        let described = &self.contract.document["components"]["messages"];
        let allowed = self.contract.messages(&channel);
        let name = allowed
            .iter()
            .find(|name| described[name.as_str()]["contentType"] == content_type)
            .unwrap_or_else(|| panic!("{channel} takes no {content_type}"));
        let payload_schema = &described[name.as_str()]["payload"];
        self.contract.assert_right(payload_schema, &payload, body);
        self.said.insert(name.clone());
        self.used.insert(channel.clone());
        channel
    }

    async fn ask(&mut self, topic: &str, body: &str, props: Props) {
        let channel = self.say(topic, body, props).await;
        self.asked.insert(id_of(topic).to_owned(), channel);
    }

    async fn cancel(&mut self, topic: &str) {
        self.say(topic, "", Props::default()).await;
    }

    async fn until(&mut self, what: &str, mut found: impl FnMut(&Heard) -> bool) {
        let wait = async {
            loop {
                if let Inbound::Message(message) = self.inbox.recv().await.unwrap() {
                    self.link.try_ack(message.ack).unwrap();
                    let message = Heard {
                        topic: message.topic,
                        payload: message.payload,
                        qos: message.qos,
                        retain: message.retain,
                        props: message.props,
                    };
                    let is_it = found(&message);
                    self.heard.push(message);
                    if is_it {
                        return;
                    }
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "waited in vain for {what}");
    }

    /// Until all these answers have ended.
    async fn until_finals(&mut self, ids: &[&str]) {
        let mut open: BTreeSet<_> = ids.iter().copied().collect();
        self.until("finals", |message| {
            if message.is_final() {
                open.remove(id_of(&message.topic));
            }
            open.is_empty()
        })
        .await;
    }

    async fn until_document(&mut self, topic: &str, key: &str, word: &str) {
        self.until(word, |message| {
            message.topic.ends_with(topic) && payload_of(message)[key] == word
        })
        .await;
    }
}

fn to_node(op: &str, id: &str) -> String {
    format!("orinoco/v1/n1/req/local/{op}/{id}")
}

fn to_pool(op: &str, id: &str) -> String {
    format!("orinoco/v1/pool/hall2/req/local/{op}/{id}")
}

fn chat(keys: &Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "!count !tokens 20"}]});
    body.as_object_mut()
        .unwrap()
        .extend(keys.as_object().unwrap().clone());
    body.to_string()
}

fn accepting_text() -> Props {
    Props {
        user: vec![("accept".into(), "text/plain".into())],
        ..Props::default()
    }
}

async fn every_op_in_every_form(tap: &mut Tap) {
    let correlated = Props {
        correlation: Some(Bytes::from_static(&[0, 159])),
        ..Props::default()
    };
    let with_text = chat(&json!({"stream_options": {"include_text": true}}));
    let each_token = r#"{"prompt": "!count !tokens 20", "coalesce_ms": 0}"#;
    let whole = r#"{"prompt": "!count !tokens 20", "stream": false}"#;
    for (topic, body, props) in [
        (to_node("chat", "c1"), with_text.as_str(), correlated),
        (
            to_node("chat", "c2"),
            &chat(&json!({"stream": false})),
            Props::default(),
        ),
        (to_node("chat", "c3"), "!count !tokens 9", Props::default()),
        (to_node("chat", "c4"), "!count !tokens 9", accepting_text()),
        (to_node("complete", "p1"), each_token, Props::default()),
        (to_node("complete", "p2"), whole, Props::default()),
        (
            to_node("tokenize", "k1"),
            r#"{"prompt": "abc"}"#,
            Props::default(),
        ),
        (
            to_node("embed", "v1"),
            r#"{"input": ["a", "b"]}"#,
            Props::default(),
        ),
        (
            to_node("text", "t1"),
            "!count !tokens 2000",
            Props::default(),
        ),
        (
            to_node("text-stream", "t2"),
            "!count !tokens 20",
            Props::default(),
        ),
        (to_pool("chat", "pc"), "!count !tokens 9", Props::default()),
        (to_pool("complete", "pp"), whole, Props::default()),
        (to_pool("tokenize", "pk"), "abc", Props::default()),
        (to_pool("embed", "pv"), "abc", Props::default()),
        (to_pool("text", "pt"), "!count !tokens 9", Props::default()),
        (
            to_pool("text-stream", "ps"),
            "!count !tokens 9",
            Props::default(),
        ),
    ] {
        tap.ask(&topic, body, props).await;
        tap.until_finals(&[id_of(&topic)]).await;
    }
}

/// While it runs, while it waits, and in bare text. A third has no room.
async fn called_off(tap: &mut Tap) {
    let long = "!count !tokens 4000 !step 5";
    tap.ask(&to_node("chat", "x1"), long, Props::default())
        .await;
    tap.until("text", |message| {
        id_of(&message.topic) == "x1" && payload_of(message)["seq"] == 1
    })
    .await;
    tap.ask(&to_node("text-stream", "x2"), "!count", Props::default())
        .await;
    tap.ask(&to_node("chat", "x3"), "!count", Props::default())
        .await;
    tap.until_finals(&["x3"]).await;
    tap.cancel(&to_node("forget", "kitchen")).await;
    tap.cancel(&to_node("cancel", "x2")).await;
    tap.until_finals(&["x2"]).await;
    tap.cancel(&to_pool("cancel", "x1")).await;
    tap.until_finals(&["x1"]).await;
}

/// Bodies that the document allows, and others.
async fn refused_and_failed(tap: &mut Tap) {
    let long = "long ".repeat(1000);
    for (topic, body) in [
        (to_node("chat", "e1"), chat(&json!({"model": "other"}))),
        (to_node("chat", "e2"), chat(&json!({"priority": "alarm"}))),
        (to_node("complete", "e3"), long.clone()),
        (to_node("complete", "e4"), "!count !fail at 3".to_owned()),
        (to_node("text", "e5"), long),
        (to_node("chat", "c1"), "another body".to_owned()),
    ] {
        tap.ask(&topic, &body, Props::default()).await;
        tap.until_finals(&[id_of(&topic)]).await;
    }
    let with_functions = br#"{"messages": [{"role": "user", "content": "x"}], "functions": [{}]}"#;
    let foreign = Props {
        response_topic: Some("orinoco/v1/resp/other/1".into()),
        ..Props::default()
    };
    for (op, id, body, props) in [
        (
            "chat",
            "e6",
            br#"{"messages": "#.as_slice(),
            Props::default(),
        ),
        (
            "chat",
            "e7",
            br#"{"messages": [], "seed": -1}"#,
            Props::default(),
        ),
        ("chat", "e8", with_functions, Props::default()),
        ("tokenize", "e9", b"\xff", Props::default()),
        ("text", "e10", b"a\0b", Props::default()),
        ("embed", "e11", br#"{"input": 7}"#, Props::default()),
        ("fly", "e12", b"x", Props::default()),
        ("chat", "e13", &[b'x'; 140_000], Props::default()),
        ("chat", "e14", b"x", foreign),
    ] {
        tap.publish(&to_node(op, id), body, props).await;
        tap.until_finals(&[id]).await;
    }
}

#[tokio::test]
async fn all_that_a_daemon_says_is_what_the_document_says() {
    let broker = Mosquitto::start().await;
    let mut tap = Tap::on(broker.port()).await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("engine.n_seq_max=1")
        .set("embeddings.model=gemma-3-270m-q4_k_m")
        .set("requests.queue_jobs_max=2")
        .set("model.n_ctx=2048")
        .set("pools.names=hall2")
        .set("pools.settle_ms=10");
    let daemon = site.start();
    tap.until("its part in the pool", |message| {
        message.topic.ends_with("/state") && payload_of(message)["pools"]["taking"] == true
    })
    .await;
    every_op_in_every_form(&mut tap).await;
    called_off(&mut tap).await;
    refused_and_failed(&mut tap).await;
    // A refusal is forgotten: the id that had no room has some now.
    tap.ask(&to_node("chat", "x3"), "!count !tokens 9", Props::default())
        .await;
    tap.until_finals(&["x3"]).await;
    assert!(tap.heard.last().unwrap().has("status", "200"));
    assert_eq!(daemon.stop(), 0);
    tap.until_document("/status", "state", "offline").await;

    let (mut said, mut used) = (tap.said.clone(), tap.used.clone());
    for message in &tap.heard {
        let (channel, name) = tap.contract.assert_sent(message);
        let id = id_of(&message.topic);
        if let ("resp", Some(asked)) = (channel.as_str(), tap.asked.get(id)) {
            let is_reply = tap.contract.replies(asked).contains(&name);
            assert!(is_reply, "{name} answers no {asked}: {:?}", message.payload);
        }
        if id == "c1" && message.has("status", "202") {
            assert_eq!(
                message.props.correlation.as_deref(),
                Some([0, 159].as_slice())
            );
        }
        said.insert(name);
        used.insert(channel);
    }
    // The limits that the schemas were made with are those of a node that nobody configured.
    let told = tap
        .heard
        .iter()
        .find(|message| message.topic.ends_with("/info"))
        .unwrap();
    assert_eq!(payload_of(told)["limits"], json!(Limits::default()));
    // Nothing was left out of the exchange, so nothing in the document is unproven.
    let described = |pointer: &str| -> BTreeSet<String> {
        let of = tap.contract.document.pointer(pointer).unwrap();
        of.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(used, without(ELSEWHERE, described("/channels")));
    assert_eq!(said, without(ELSEWHERE, described("/components/messages")));
    let codes: BTreeSet<_> = tap
        .heard
        .iter()
        .filter(|message| message.topic.contains("/resp/"))
        .filter_map(|message| {
            payload_of(message)["error"]["code"]
                .as_str()
                .map(str::to_owned)
        })
        .collect();
    for code in [
        Code::InvalidRequest,
        Code::ResponseTopicDenied,
        Code::NotAllowed,
        Code::ModelNotFound,
        Code::IdReused,
        Code::PayloadTooLarge,
        Code::ContextLengthExceeded,
        Code::QueueFull,
        Code::EngineError,
        Code::UnknownOp,
        Code::NotSupported,
    ] {
        assert!(codes.contains(code.as_str()), "no {code} among {codes:?}");
    }
}

/// What needs an operator, signed updates, short memory or a GPU, or comes every few seconds: tests/governor.rs and
/// tests/ota_deploy.rs bring it about,
/// and the examples on the page are judged by its schemas.
const ELSEWHERE: &[&str] = &[
    "allRequests",
    "modelCommand",
    "modelName",
    "otaCommand",
    "otaDesired",
    "otaEvent",
    "otaState",
    "pressureEvent",
    "setCancel",
    "setModel",
    "setUpdate",
    "switchEvent",
    "teleGpu",
    "teleHost",
    "teleLlm",
    "teleQueue",
    "updateWord",
];

fn without(left_out: &[&str], mut names: BTreeSet<String>) -> BTreeSet<String> {
    names.retain(|name| !left_out.contains(&name.as_str()));
    names
}
