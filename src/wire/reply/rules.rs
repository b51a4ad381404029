//! What the keys of an answer have to do with one another, as conditions of a JSON Schema.
//!
//! A type says which keys there may be; these say which of them come together.

use serde_json::{Value, json};

/// Conditions on [`super::body::Response`].
pub(super) fn response() -> Value {
    let object_is = |object: &str| json!({"properties": {"object": {"const": object}}});
    // Kinds of values are told again: some validators want each keyword beside the type that it is for.
    let choices = |one: Value| json!({"type": "array", "items": one});
    let choice_has = |key: &str| json!({"properties": {"choices": choices(json!({"type": "object", "required": [key]}))}});
    let finish = |kind: &str| {
        choices(json!({"type": "object", "properties": {"finish_reason": {"type": kind}}}))
    };
    json!([
        {"if": object_is("chat.completion.chunk"), "then": choice_has("delta")},
        {"if": object_is("chat.completion"), "then": choice_has("message")},
        {"if": object_is("text_completion"), "then": choice_has("text")},
        {"if": object_is("chat.completion"), "then": {"properties": {"final": {"const": true}}}},
        {
            "if": {"properties": {"seq": {"const": 0}}},
            "then": {"properties": {"final": {"const": false}, "orinoco": {"type": "object", "required": ["queue"]}}},
        },
        {
            "if": {"properties": {"final": {"const": true}}},
            "then": {
                "required": ["usage"],
                "properties": {
                    "choices": finish("string"),
                    "orinoco": {
                        "type": "object",
                        "required": ["text_sha256", "ttft_ms", "total_ms", "prefill_ms", "decode_ms", "resumed"],
                    },
                },
            },
            "else": {"properties": {"choices": finish("null")}},
        },
    ])
}
