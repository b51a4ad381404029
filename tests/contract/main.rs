//! The published contract and the product are one: what is kept in `docs/contract/` is what the command
//! writes, what the daemon sends and takes is what the schemas say, and the page for programmers shows
//! nothing that is not so.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod exchange;
mod judge;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use judge::{Judge, strict};
use orinoco::contract;
use orinoco::wire::{Code, Limits, Op, request};
use serde_json::Value;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files of a folder and below, by their paths in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).unwrap_or_else(|error| panic!("{next:?}: {error}")) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), text);
            }
        }
    }
    found
}

/// The pinned messages, by the names of their files without `.json`.
fn pinned() -> BTreeMap<String, Value> {
    let parsed = |(path, text): (PathBuf, String)| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, serde_json::from_str(&text).unwrap())
    };
    let folder = repository().join("tests/wire/v1");
    files(&folder).into_iter().map(parsed).collect()
}

#[test]
fn the_kept_documents_are_what_the_command_writes() {
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new(env!("CARGO_BIN_EXE_orinoco"))
        .args(["schema", "--out"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(status.success());
    let (kept, written) = (
        files(&repository().join("docs/contract")),
        files(dir.path()),
    );
    let changed: Vec<_> = kept
        .keys()
        .chain(written.keys())
        .filter(|path| kept.get(*path) != written.get(*path))
        .collect();
    assert!(
        changed.is_empty(),
        "the wire contract is no longer what docs/contract says: {changed:?}\n\
         If that is intended, write it anew, and read the difference as a client would:\n\
         \n    rm -r docs/contract && cargo run --release -p orinoco -- schema --out docs/contract\n"
    );
}

#[test]
fn the_command_prints_what_it_would_write() {
    let printed = |args: &[&str]| -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_orinoco"))
            .arg("schema")
            .args(args)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(printed(&[]), contract::asyncapi());
    assert_eq!(
        printed(&["--format", "json-schema"]),
        contract::json_schema_bundle()
    );
}

/// Every key of every body says what it is, with its unit, in words that need no Rust.
#[test]
fn every_key_is_described_with_its_unit() {
    fn check(schema: &Value, path: &str, found: &mut Vec<String>) {
        let Some(object) = schema.as_object() else {
            return;
        };
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            let about = property["description"].as_str().unwrap_or_default();
            let unit = [
                ("_ms", "illisecond"),
                ("_bytes", "byte"),
                ("_ms_max", "illisecond"),
            ];
            let lacks_unit = unit
                .iter()
                .any(|(end, unit)| name.ends_with(end) && !about.to_lowercase().contains(unit));
            if about.is_empty() || about.contains("[`") || lacks_unit {
                found.push(format!("{path}: {about:?}"));
            }
            check(property, &path, found);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = object.get(key) {
                check(inner, path, found);
            }
        }
    }
    let mut found = Vec::new();
    let bundle = contract::json_schema_bundle();
    for (name, schema) in bundle["$defs"].as_object().unwrap() {
        check(schema, name, &mut found);
        if schema["description"]
            .as_str()
            .unwrap_or_default()
            .is_empty()
        {
            found.push(format!("{name}: no description"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Which schema a pinned message belongs to, by the first words of its name.
const KINDS: &[(&str, &str)] = &[
    ("accepted", "response"),
    ("chunk", "response"),
    ("final", "response"),
    ("whole", "response"),
    ("tokens", "tokens"),
    ("embeddings", "embeddings"),
    ("error", "failure"),
    ("status", "status"),
    ("info", "info"),
    ("models", "models"),
    ("model_command", "model-command"),
    ("state", "state"),
    ("ota_command", "ota-command"),
    ("ota_desired", "ota-desired"),
    ("ota_event", "ota-event"),
    ("ota_state", "ota-state"),
    ("pressure_event", "pressure-event"),
    ("switch_event", "switch-event"),
    ("tele_gpu", "tele-gpu"),
    ("tele_host", "tele-host"),
    ("tele_llm", "tele-llm"),
    ("tele_queue", "tele-queue"),
];
/// Lists of cases, each with a test of its own here or in `tests/wire_v1.rs`.
const LISTS: &[&str] = &[
    "bare",
    "error_codes",
    "error_codes_1_1",
    "requests_refused",
    "topic_forget",
    "topics",
    "topics_pool",
];

#[test]
fn pinned_messages_are_what_the_schemas_say() {
    let schemas = contract::json_schemas();
    for (name, message) in pinned() {
        if LISTS.contains(&name.as_str()) {
            continue;
        }
        let first = name.split('_').next().unwrap();
        let (kind, schema) = match first {
            "request" => {
                let op = name.split('_').nth(1).unwrap();
                let kind = format!("{op}-request");
                (kind.clone(), schemas[&kind].clone())
            }
            _ => {
                let is_of = |words: &str| {
                    let rest = name.strip_prefix(words);
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                };
                let of = KINDS.iter().find(|(words, _)| is_of(words));
                let (_, kind) = of.unwrap_or_else(|| panic!("{name} belongs to no schema"));
                ((*kind).to_owned(), strict(&schemas[*kind]))
            }
        };
        Judge::of(&schema, "").assert_right(&message, &format!("{name} ({kind})"));
        Judge::of_draft_7(&schema, "").assert_right(&message, &format!("{name} ({kind}), draft 7"));
    }
}

#[test]
fn bodies_pinned_as_refused_are_refused_by_the_schemas() {
    let schemas = contract::json_schemas();
    let mut judged = 0;
    for case in pinned()["requests_refused"].as_array().unwrap() {
        // What is no JSON, or has a key twice, is not a matter of schemas.
        let body = case["body"].as_str().unwrap();
        let Ok(parsed) = serde_json::from_str::<Value>(body) else {
            continue;
        };
        if case["param"].is_null() {
            continue;
        }
        let kind = format!("{}-request", case["op"].as_str().unwrap());
        assert!(!Judge::of(&schemas[&kind], "").is_right(&parsed), "{body}");
        judged += 1;
    }
    assert!(judged >= 3);
}

#[test]
fn the_published_codes_are_the_pinned_ones() {
    let published = &contract::json_schemas()["failure"]["$defs"]["Code"]["oneOf"];
    let published = published.as_array().unwrap();
    let pinned = pinned();
    let lists = ["error_codes", "error_codes_1_1"];
    let lists = lists.map(|name| pinned[name].as_array().unwrap());
    let pinned = Vec::from_iter(lists.into_iter().flatten());
    assert_eq!(published.len(), pinned.len());
    for row in pinned {
        let entry = published.iter().find(|entry| entry["const"] == row["code"]);
        let about = entry.unwrap()["description"].as_str().unwrap().to_owned();
        assert!(about.starts_with(&row["status"].to_string()), "{about}");
    }
}

/// The type of an error follows from its code, and the schema knows.
#[test]
fn a_wrong_type_for_a_code_is_no_failure() {
    let judge = Judge::of(&contract::json_schemas()["failure"], "");
    let mut failure = pinned()["error_retry"].clone();
    judge.assert_right(&failure, "error_retry");
    for code in Code::ALL {
        failure["error"]["code"] = code.as_str().into();
        failure["error"]["type"] = code.kind().into();
        judge.assert_right(&failure, code.as_str());
    }
    failure["error"]["type"] = "invalid_request_error".into();
    assert!(!judge.is_right(&failure));
}

/// A device that was written today reads what the node says in a year.
#[test]
fn keys_that_come_later_break_no_reader() {
    fn with_more(value: &Value) -> Value {
        match value {
            Value::Array(items) => items.iter().map(with_more).collect(),
            Value::Object(object) => {
                // Keys of logit_bias are token ids, and no others will come.
                let more = |(key, value): (&String, &Value)| {
                    let value = match key.as_str() {
                        "logit_bias" => value.clone(),
                        _ => with_more(value),
                    };
                    (key.clone(), value)
                };
                let mut object: serde_json::Map<_, _> = object.iter().map(more).collect();
                object.insert("of_a_later_version".to_owned(), 1.into());
                object.into()
            }
            other => other.clone(),
        }
    }
    use orinoco::wire::{reply::body::Answer, report};
    for (name, message) in pinned() {
        let text = with_more(&message).to_string();
        let read = match name.split('_').next().unwrap() {
            "accepted" | "chunk" | "final" | "whole" | "tokens" | "embeddings" => {
                serde_json::from_str::<Answer<'_>>(&text).map(drop)
            }
            "status" => serde_json::from_str::<report::Status>(&text).map(drop),
            "info" => serde_json::from_str::<report::Info>(&text).map(drop),
            "models" => serde_json::from_str::<report::Models>(&text).map(drop),
            "state" => serde_json::from_str::<report::State>(&text).map(drop),
            "request" => {
                let op = Op::from_level(name.split('_').nth(1).unwrap()).unwrap();
                assert!(is_taken(op, &text), "{name}");
                Ok(())
            }
            _ => Ok(()),
        };
        assert!(read.is_ok(), "{name}: {read:?}");
    }
}

/// Every example of the AsyncAPI document is what its own schema says, as AsyncAPI reads it.
#[test]
fn examples_are_what_their_schemas_say() {
    let document = contract::asyncapi();
    let messages = document["components"]["messages"].as_object().unwrap();
    for (name, message) in messages {
        let reference = message["payload"]["$ref"].as_str().unwrap();
        let judge = Judge::of_draft_7(&document, reference.strip_prefix('#').unwrap());
        let examples = message["examples"].as_array().unwrap();
        assert!(!examples.is_empty(), "{name} has no example");
        for example in examples {
            judge.assert_right(&example["payload"], name);
        }
    }
}

/// Whether the node takes this as a body of the op.
fn is_taken(op: Op, body: &str) -> bool {
    let limits = Limits::default();
    match op {
        Op::Embed => request::parse_embed(body.as_bytes(), &limits).is_ok(),
        op => request::parse(op, body.as_bytes(), &limits).is_ok(),
    }
}
