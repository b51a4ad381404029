//! Answers that have to be something: JSON of a schema, text of a grammar, calls of tools; over MQTT, with
//! plain clients, with the real model and with the scripted engine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::report::Mode;
use serde_json::{Value, json};
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

async fn serving(engine: Engine) -> (Site, Daemon, Client) {
    let site = Site::with_own_broker(engine);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    (site, daemon, client)
}

fn chat(user: &str, keys: &Value) -> String {
    let mut body = json!({
        "messages": [{"role": "user", "content": user}], "temperature": 0, "max_tokens": 120,
    });
    let more = keys.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body.to_string()
}

fn json_schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
}

fn validates(schema: &Value, text: &str) -> bool {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler
        .add_resource("schema.json", schema.clone())
        .unwrap();
    let index = compiler.compile("schema.json", &mut schemas).unwrap();
    let value: Value = serde_json::from_str(text).unwrap();
    schemas.validate(&value, index).is_ok()
}

fn finish_of(client: &Client, id: &str) -> String {
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap().finish_reason.clone()
}

fn refusal(client: &Client, id: &str) -> ApiError {
    let end = client.answers[id].end().unwrap();
    end.outcome.clone().expect_err("must be refused")
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {
            "name": "set_lamp", "description": "Switches a lamp.",
            "parameters": {"type": "object", "required": ["room", "on"], "additionalProperties": false, "properties": {
                "room": {"type": "string", "enum": ["hall", "kitchen"]}, "on": {"type": "boolean"}
            }},
        }},
        {"type": "function", "function": {
            "name": "read_sensor",
            "parameters": {"type": "object", "required": ["id"], "additionalProperties": false, "properties": {
                "id": {"type": "integer", "minimum": 1, "maximum": 9}
            }},
        }},
    ])
}

/// The messages on a topic as mosquitto_sub prints them, until one is final; asked with mosquitto_pub.
fn by_plain_clients(port: u16, id: &str, body: &str) -> Vec<Value> {
    use std::io::{BufRead, BufReader};
    let port = port.to_string();
    let mut listener = Command::new("mosquitto_sub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-V",
            "311",
            "-q",
            "1",
            "-W",
            "100",
        ])
        .args([
            "-t",
            &format!("orinoco/v1/resp/local/{id}"),
            "-t",
            "orinoco/v1/n1/status",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(listener.stdout.take().unwrap()).lines();
    // The retained status says that the subscription stands.
    lines.next().unwrap().unwrap();
    let asked = Command::new("mosquitto_pub")
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-V",
            "311",
            "-q",
            "1",
            "-m",
            body,
        ])
        .args(["-t", &format!("orinoco/v1/n1/req/local/chat/{id}")])
        .status()
        .unwrap();
    assert!(asked.success());
    let mut messages = Vec::new();
    for line in lines {
        let message: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let is_final = message["final"] == json!(true);
        messages.push(message);
        if is_final {
            break;
        }
    }
    listener.kill().unwrap();
    listener.wait().unwrap();
    messages
}

/// Name and arguments of the calls in OpenAI's deltas, put together as its clients do.
fn calls_of(messages: &[Value]) -> Vec<(String, Value)> {
    let mut calls: Vec<(String, String)> = Vec::new();
    for message in messages {
        let deltas = message["choices"][0]["delta"]["tool_calls"].as_array();
        for call in deltas.into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert_eq!(call["id"].as_str().unwrap().len(), 9);
                assert_eq!(call["type"], "function");
                calls.push((
                    call["function"]["name"].as_str().unwrap().to_owned(),
                    String::new(),
                ));
            }
            calls[index]
                .1
                .push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    let parsed =
        |(name, arguments): (String, String)| (name, serde_json::from_str(&arguments).unwrap());
    calls.into_iter().map(parsed).collect()
}

#[tokio::test]
async fn a_tool_that_must_be_called_is_called_by_the_real_model_for_plain_clients() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Smol);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    let port = broker.port();
    let user = "It is dark in the kitchen. Switch the lamp on.";
    let required = chat(user, &json!({"tools": tools(), "tool_choice": "required"}));
    let named = chat(
        user,
        &json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "read_sensor"}}}),
    );
    let (required, named) = tokio::task::spawn_blocking(move || {
        (
            by_plain_clients(port, "p1", &required),
            by_plain_clients(port, "p2", &named),
        )
    })
    .await
    .unwrap();
    for (messages, names) in [
        (required, ["set_lamp", "read_sensor"].as_slice()),
        (named, &["read_sensor"]),
    ] {
        let last = messages.last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "tool_calls", "{last}");
        let calls = calls_of(&messages);
        assert!(!calls.is_empty());
        for (name, arguments) in calls {
            assert!(names.contains(&name.as_str()), "{name}");
            let tools = tools();
            let tool = tools
                .as_array()
                .unwrap()
                .iter()
                .find(|tool| tool["function"]["name"] == name.as_str());
            assert!(
                validates(
                    &tool.unwrap()["function"]["parameters"],
                    &arguments.to_string()
                ),
                "{arguments}"
            );
        }
        let said = messages
            .iter()
            .filter_map(|m| m["choices"][0]["delta"]["content"].as_str());
        assert_eq!(
            said.collect::<String>(),
            "",
            "nothing is said beside a call that must be made"
        );
    }
}

#[tokio::test]
async fn an_answer_of_the_real_model_keeps_its_schema_and_its_grammar() {
    let (_site, _daemon, mut client) = serving(Engine::Smol).await;
    let schema = json!({
        "type": "object", "required": ["device", "celsius", "tags"], "additionalProperties": false,
        "properties": {
            "device": {"type": "string", "maxLength": 12},
            "celsius": {"type": "number", "minimum": -40, "maximum": 125},
            "tags": {"type": "array", "items": {"enum": ["ok", "hot", "cold"]}, "minItems": 1, "maxItems": 3},
        },
    });
    let format = json_schema(&schema);
    for (id, keys) in [
        ("s1", json!({"response_format": format})),
        (
            "s2",
            json!({"response_format": format, "stream": false, "temperature": 1, "seed": 7}),
        ),
        ("s3", json!({"response_format": format, "max_tokens": 5})),
        (
            "s4",
            json!({"grammar": "start: \"valve \" /[0-9]{1,2}/ \" \" (\"open\" | \"shut\")"}),
        ),
    ] {
        client
            .ask("chat", id, &chat("Report the boiler's temperature.", &keys))
            .await;
    }
    let ids = ["s1", "s2", "s3", "s4"].map(str::to_owned);
    client.until_ended(&ids).await;
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ["s1", "s2"] {
        assert_eq!(finish_of(&client, id), "stop");
        assert!(validates(&schema, client.text(id)), "{}", client.text(id));
    }
    // An object that five tokens do not finish: the final says so.
    assert!(client.text("s3").starts_with('{'));
    assert_eq!(finish_of(&client, "s3"), "length");
    let words = Vec::from_iter(client.text("s4").split(' '));
    assert!(
        words[0] == "valve" && ["open", "shut"].contains(&words[2]),
        "{words:?}"
    );
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_with_its_place_and_a_hostile_schema_costs_its_limit() {
    let (_site, _daemon, mut client) = serving(Engine::Scripted).await;
    let unique =
        json!({"type": "object", "properties": {"ids": {"type": "array", "uniqueItems": true}}});
    let one = |i: usize| json!({"type": "string", "pattern": format!("^(.*{i}.*){{3}}$")});
    let dear =
        json!({"type": "object", "properties": {"x": {"allOf": Vec::from_iter((0..16).map(one))}}});
    let began = Instant::now();
    let asked = [
        ("u1", json!({"response_format": json_schema(&unique)})),
        ("u2", json!({"response_format": json_schema(&dear)})),
        ("u3", json!({"response_format": json_schema(&dear)})),
        ("u4", json!({"grammar": "start: nothing"})),
    ];
    for (id, keys) in &asked {
        client.ask("chat", id, &chat("x", keys)).await;
    }
    client
        .ask("chat", "free", &chat("!tokens 12 others go on", &json!({})))
        .await;
    let ids = ["u1", "u2", "u3", "u4", "free"].map(str::to_owned);
    client.until_ended(&ids).await;
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(client.faults, Vec::<String>::new());
    let param = |id: &str| refusal(&client, id).param.unwrap();
    assert_eq!(
        param("u1"),
        "response_format.json_schema.schema.properties.ids"
    );
    assert!(
        param("u2").starts_with("response_format.json_schema.schema"),
        "{}",
        param("u2")
    );
    assert_eq!(refusal(&client, "u2"), refusal(&client, "u3"));
    assert_eq!(param("u4"), "grammar");
    for id in ["u1", "u2", "u4"] {
        assert_eq!(refusal(&client, id).code, Code::InvalidRequest);
    }
    assert_eq!(client.text("free"), "others go on");
}

#[tokio::test]
async fn a_stream_with_a_schema_goes_on_in_the_next_worker_and_still_validates() {
    let (_site, daemon, mut client) = serving(Engine::Scripted).await;
    let schema = json!({
        "type": "array", "minItems": 60, "maxItems": 60, "items": {"type": "integer", "minimum": 100, "maximum": 999},
    });
    let keys = json!({"response_format": json_schema(&schema), "max_tokens": 400});
    client.ask("chat", "whole", &chat("!count", &keys)).await;
    client.until_ended(&["whole".to_owned()]).await;
    client
        .ask("chat", "broken", &chat("!count !step 20", &keys))
        .await;
    client
        .until("some of it", |_, client| {
            client
                .answers
                .get("broken")
                .is_some_and(|answer| answer.text().len() > 60)
        })
        .await;
    assert!(daemon.kill_worker());
    client.until_ended(&["broken".to_owned()]).await;
    assert_eq!(client.faults, Vec::<String>::new());
    assert!(
        validates(&schema, client.text("broken")),
        "{}",
        client.text("broken")
    );
    assert_eq!(client.text("broken"), client.text("whole"));
    assert_eq!(finish_of(&client, "broken"), "stop");
    let end = client.answers["broken"].end().unwrap();
    assert_eq!(end.outcome.as_ref().unwrap().details.resumed, Some(1));
}

#[tokio::test]
async fn calls_are_found_while_the_model_writes_as_it_likes_and_told_again_byte_for_byte() {
    // A broker that stays while the daemon is away.
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    let written =
        r#"{"tool_calls": [{"name": "set_lamp", "arguments": {"room": "hall", "on": true}}]}"#;
    let auto = |stream: bool| {
        let keys = json!({"tools": tools(), "stream": stream, "coalesce_ms": 0});
        chat(
            &format!("!tokens {} !step 1 {written}", written.len()),
            &keys,
        )
    };
    client.ask("chat", "a1", &auto(true)).await;
    client.ask("chat", "a2", &auto(false)).await;
    let none = json!({"tools": tools(), "tool_choice": "none"});
    client
        .ask(
            "chat",
            "a3",
            &chat(&format!("!tokens {} {written}", written.len()), &none),
        )
        .await;
    let talk = json!({"messages": [
        {"role": "user", "content": "Lamp on."},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "set_lamp", "arguments": "{\"on\": true}"}},
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "!tokens 28 done"},
    ], "tools": tools()});
    client.ask("chat", "a4", &talk.to_string()).await;
    let ids = ["a1", "a2", "a3", "a4"].map(str::to_owned);
    client.until_ended(&ids).await;
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ["a1", "a2"] {
        let [call] = client.answers[id].calls() else {
            panic!("one call: {:?}", client.answers[id].calls())
        };
        assert_eq!(
            (call.name.as_str(), call.arguments.as_str()),
            ("set_lamp", r#"{"room": "hall", "on": true}"#)
        );
        assert_eq!(
            (client.text(id), finish_of(&client, id).as_str()),
            ("", "tool_calls")
        );
    }
    assert_eq!(client.text("a3"), written);
    // A tool's answer is heard.
    assert!(client.text("a4").contains("done"), "{}", client.text("a4"));

    // Asked again after a restart: the same calls in the same pieces.
    let first = client.answers.remove("a1").unwrap();
    assert_eq!(daemon.stop(), 0);
    client.until_status("offline").await;
    let _daemon = site.start();
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "a1", &auto(true)).await;
    client.until_ended(&["a1".to_owned()]).await;
    assert_eq!(client.answers["a1"].calls(), first.calls());
    assert_eq!(client.answers["a1"].end(), first.end());
}

/// The model writes in the syntax of whatever template it is given: forced in it, and read back from it.
#[tokio::test]
async fn each_syntax_is_forced_and_read_back() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::var_os("ORINOCO_TEMPLATES")
        .map_or_else(|| root.join("target/test-deps/templates"), Into::into);
    for (template, n_calls_max) in [
        ("Qwen-Qwen2.5-7B-Instruct", 8),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", 8),
        ("meta-llama-Llama-3.2-3B-Instruct", 1),
        ("mistralai-Mistral-Nemo-Instruct-2407", 8),
    ] {
        let file = dir.join(format!("{template}.jinja"));
        assert!(
            file.is_file(),
            "{} is missing: run scripts/fetch-templates.sh",
            file.display()
        );
        let site = Site::with_own_broker(Engine::Smol)
            .set(format!("model.chat_template_file={}", file.display()));
        let daemon = site.start();
        let mut client = Client::connect(daemon.port, site.node, "local", None).await;
        client.until_mode(Mode::Serving).await;
        let user = "Switch the lamp in the hall on.";
        let required = json!({"tools": tools(), "tool_choice": "required", "max_tokens": 400});
        let once = json!({
            "tools": tools(), "tool_choice": {"type": "function", "function": {"name": "set_lamp"}}, "stream": false,
        });
        client.ask("chat", "r", &chat(user, &required)).await;
        client.ask("chat", "n", &chat(user, &once)).await;
        client.until_ended(&["r", "n"].map(str::to_owned)).await;
        assert_eq!(client.faults, Vec::<String>::new(), "{template}");
        for (id, most) in [("r", n_calls_max), ("n", 1)] {
            assert_eq!(finish_of(&client, id), "tool_calls", "{template} {id}");
            assert_eq!(client.text(id), "", "{template} {id}");
            let calls = client.answers[id].calls();
            assert!(
                (1..=most).contains(&calls.len()),
                "{template} {id}: {calls:?}"
            );
            for call in calls {
                let tools = tools();
                let mut tools = tools.as_array().unwrap().iter();
                let tool = tools
                    .find(|tool| tool["function"]["name"] == call.name.as_str())
                    .unwrap();
                assert!(
                    validates(&tool["function"]["parameters"], &call.arguments),
                    "{template}: {call:?}"
                );
                assert_eq!(call.id.len(), 9);
            }
        }
        assert_eq!(client.answers["n"].calls()[0].name, "set_lamp");
    }
}
