//! The wire contract as documents for machines: an AsyncAPI document, and JSON Schemas of the bodies.
//!
//! Pure: made from the types and tables of [`crate::wire`], which the daemon itself parses and writes
//! with, and from the messages pinned in `tests/wire/v1/`. `orinoco schema` prints them, and
//! `docs/contract/` keeps what it writes: a test compares the two, so that a change of the contract is
//! seen by whoever reviews it.
//!
//! The schemas describe this version of the contract under the default limits. Readers skip keys that
//! they do not know and bear codes and words that they do not know, as `docs/protocol.md` says; so no
//! schema forbids additional properties.

use std::collections::BTreeMap;

use serde_json::{Value, json};

mod asyncapi;
mod messages;
mod schemas;
mod topics;

/// Name of the AsyncAPI document in a folder.
pub const ASYNCAPI_FILE: &str = "asyncapi.json";
/// Folder of the JSON Schemas, beside the AsyncAPI document.
pub const SCHEMAS_DIR: &str = "schemas";

/// The AsyncAPI 3 document, self-contained.
pub fn asyncapi() -> Value {
    sorted(asyncapi::document())
}

/// Each published body with its JSON Schema (2020-12), by the name of its file without `.json`.
pub fn json_schemas() -> BTreeMap<String, Value> {
    let definitions = schemas::definitions();
    schemas::PUBLISHED
        .iter()
        .map(|name| (file_name(name), sorted(schemas::alone(name, &definitions))))
        .collect()
}

/// All of them in one document, under `$defs`.
pub fn json_schema_bundle() -> Value {
    sorted(json!({
        "$schema": schemas::META_SCHEMA,
        "$id": "urn:orinoco:v1",
        "title": "Orinoco, wire contract 1",
        "$defs": schemas::definitions(),
    }))
}

/// The same with all keys in their alphabetical order. Without it the order would depend on what else
/// is built: some crates make serde_json keep the order of insertion.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(sorted).collect(),
        Value::Object(object) => {
            let object: BTreeMap<_, _> = object.into_iter().collect();
            let sorted = object.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(sorted.collect())
        }
        other => other,
    }
}

/// `ChatRequest` to `chat-request`.
fn file_name(name: &str) -> String {
    let mut file = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !file.is_empty() {
            file.push('-');
        }
        file.push(letter.to_ascii_lowercase());
    }
    file
}
