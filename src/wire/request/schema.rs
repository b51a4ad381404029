//! The JSON Schema of request bodies, made from the keys that the parser reads.
//!
//! Keywords are those that JSON Schema 2020-12 and draft 7 share, since AsyncAPI 3 reads the latter.
//! What a schema cannot say is refused by the parser alone: a key given twice, nesting and number of
//! values, bytes where a schema counts characters, `max_tokens` that contradicts `max_completion_tokens`.

use serde_json::{Map, Value, json};

use super::{
    Limits,
    keys::{self, AnyKey, Key, Kind, Neutral},
};
use crate::wire::topic::{NAME_PATTERN, Op};

/// Texts reach C code, where NUL would end them.
const NO_NUL: &str = r"^[^\x00]*$";
/// Unicode's white space, and the byte order mark; ECMA's `\s` lacks one of them.
const BLANK: &str =
    r"\x09-\x0d\x20\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff";
/// Non-negative and in its only spelling.
const TOKEN_ID: &str = "^(0|[1-9][0-9]{0,9})$";

/// The JSON body of an op under these limits; `None` for ops that take none.
pub fn json_body(op: Op, limits: &Limits) -> Option<Value> {
    let [messages, prompt] = [&keys::MESSAGES as &dyn AnyKey, &keys::PROMPT];
    let template: &[&dyn AnyKey] = &[&keys::TEMPLATE, &keys::VARS];
    let mut body = match op {
        Op::Chat => {
            let mut body = object(&[], &[messages], limits);
            add(&mut body, template, limits);
            body["oneOf"] = json!([of_messages(&[]), of_template(&[])]);
            body
        }
        Op::Complete => object(&[prompt], &[], limits),
        Op::Tokenize => {
            let mut body = object(&[], keys::INPUT, limits);
            let none = &["prompt"];
            let of_prompt = chosen("prompt", "string", &["messages", "template", "vars"]);
            body["oneOf"] = json!([of_prompt, of_messages(none), of_template(none)]);
            body
        }
        Op::Embed => {
            let mut body = object(keys::EMBED_INPUT, keys::EMBED, limits);
            add(&mut body, &[&keys::MODEL], limits);
            return Some(body);
        }
        Op::Text | Op::TextStream => return None,
    };
    add(&mut body, keys::BODY, limits);
    match op {
        Op::Chat => add(&mut body, keys::CHAT, limits),
        _ => add_unserved(&mut body, keys::CHAT_UNSERVED, limits),
    }
    match op {
        Op::Complete => add_unserved(&mut body, keys::CHAT_ONLY, limits),
        _ => add(&mut body, keys::TOOL_KEYS, limits),
    }
    add_unserved(&mut body, keys::UNSERVED, limits);
    Some(body)
}

/// A body that says `key`, and none of the others that could stand in its place.
fn chosen(key: &str, kind: &str, none: &[&str]) -> Value {
    let mut properties = Map::from_iter([(key.to_owned(), json!({"type": kind}))]);
    properties.extend(
        none.iter()
            .map(|other| ((*other).to_owned(), json!({"type": "null"}))),
    );
    json!({"required": [key], "properties": properties})
}

fn of_messages(none: &[&str]) -> Value {
    chosen("messages", "array", &[none, &["template", "vars"]].concat())
}

fn of_template(none: &[&str]) -> Value {
    chosen("template", "string", &[none, &["messages"]].concat())
}

/// The plain text that an op takes in the place of JSON, or takes alone.
pub fn text_body(limits: &Limits) -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": limits.payload_bytes,
        "pattern": format!(r"^[^\x00]*[^\x00{BLANK}][^\x00]*$"),
    })
}

/// An object with keys that must be there and keys that may be absent or null. Others are ignored.
fn object(required: &[&dyn AnyKey], optional: &[&dyn AnyKey], limits: &Limits) -> Value {
    let names: Vec<_> = required.iter().map(|key| key.name()).collect();
    let properties: Map<_, _> = required
        .iter()
        .map(|key| (key.name().to_owned(), described(*key, limits)))
        .collect();
    let mut object = json!({"type": "object", "properties": properties});
    if !names.is_empty() {
        object["required"] = names.into();
    }
    add(&mut object, optional, limits);
    object
}

fn add(object: &mut Value, optional: &[&dyn AnyKey], limits: &Limits) {
    for key in optional {
        object["properties"][key.name()] = or_null(described(*key, limits));
    }
}

fn add_unserved(object: &mut Value, unserved: &[Key<keys::Unserved>], limits: &Limits) {
    for key in unserved {
        add(object, &[key], limits);
    }
}

fn described(key: &dyn AnyKey, limits: &Limits) -> Value {
    let mut schema = key.kind().schema(limits);
    schema["description"] = key.about().into();
    schema
}

/// Null counts as absent.
fn or_null(mut schema: Value) -> Value {
    schema["type"] = match schema["type"].take() {
        Value::Array(mut types) => {
            types.push("null".into());
            types.into()
        }
        Value::String(only) if only == "null" => only.into(),
        only => json!([only, "null"]),
    };
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.push(Value::Null);
    }
    schema
}

impl Kind for keys::Boolean {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": "boolean"})
    }
}

impl Kind for keys::Integer {
    fn schema(&self, limits: &Limits) -> Value {
        let allowed = self.0(limits);
        json!({"type": "integer", "minimum": allowed.start(), "maximum": allowed.end()})
    }
}

impl Kind for keys::FlagOrInteger {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": ["boolean", "integer"], "minimum": 0, "maximum": self.0})
    }
}

impl Kind for keys::Real {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": "number", "minimum": self.0.start(), "maximum": self.0.end()})
    }
}

impl Kind for keys::Text {
    fn schema(&self, limits: &Limits) -> Value {
        let bytes = self.0(limits);
        let mut schema = json!({"type": "string", "pattern": NO_NUL});
        if *bytes.start() > 0 {
            schema["minLength"] = (*bytes.start()).into();
        }
        if *bytes.end() < usize::MAX {
            schema["maxLength"] = (*bytes.end()).into();
        }
        schema
    }
}

impl Kind for keys::Word {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": "string", "enum": self.0})
    }
}

impl Kind for keys::NameText {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": "string", "pattern": NAME_PATTERN})
    }
}

impl Kind for keys::Stops {
    fn schema(&self, limits: &Limits) -> Value {
        let text = json!({"type": "string", "minLength": 1, "maxLength": limits.stop_bytes, "pattern": NO_NUL});
        let mut schema = text.clone();
        schema["type"] = json!(["string", "array"]);
        schema["items"] = text;
        schema["maxItems"] = limits.stop.into();
        schema
    }
}

impl Kind for keys::Inputs {
    fn schema(&self, limits: &Limits) -> Value {
        let text = json!({"type": "string", "minLength": 1, "maxLength": limits.payload_bytes, "pattern": NO_NUL});
        let mut schema = text.clone();
        schema["type"] = json!(["string", "array"]);
        schema["items"] = text;
        schema["minItems"] = 1.into();
        schema["maxItems"] = self.0.into();
        schema
    }
}

impl Kind for keys::Biases {
    fn schema(&self, limits: &Limits) -> Value {
        json!({
            "type": "object", "maxProperties": limits.logit_bias,
            "propertyNames": {"pattern": TOKEN_ID},
            "additionalProperties": {"type": "number", "minimum": self.0.start(), "maximum": self.0.end()},
        })
    }
}

impl Kind for keys::Messages {
    fn schema(&self, limits: &Limits) -> Value {
        let mut message = object(keys::MESSAGE, keys::MESSAGE_MORE, limits);
        add_unserved(&mut message, keys::MESSAGE_UNSERVED, limits);
        message["oneOf"] = json!([
            {"required": ["role", "content"], "properties": {"content": {"type": ["string", "array"]}}},
            {"required": ["role", "tool_calls"], "properties": {
                "role": {"type": "string", "const": "assistant"}, "content": {"type": "null"},
                "tool_calls": {"type": "array", "minItems": 1},
            }},
        ]);
        json!({"type": "array", "minItems": 1, "maxItems": limits.messages, "items": message})
    }
}

impl Kind for keys::Content {
    fn schema(&self, limits: &Limits) -> Value {
        let part = object(keys::PART, &[], limits);
        json!({"type": ["string", "array"], "pattern": NO_NUL, "items": part})
    }
}

impl Kind for keys::Options {
    fn schema(&self, limits: &Limits) -> Value {
        object(&[], keys::STREAM_KEYS, limits)
    }
}

impl Kind for keys::Format {
    fn schema(&self, limits: &Limits) -> Value {
        let mut format = object(keys::FORMAT, keys::FORMAT_MORE, limits);
        format["anyOf"] = json!([
            {"required": ["type"], "properties": {
                "type": {"type": "string", "enum": ["text", "json_object"]},
            }},
            {"required": ["type", "json_schema"], "properties": {
                "type": {"type": "string", "const": "json_schema"}, "json_schema": {"type": "object"},
            }},
        ]);
        format
    }
}

impl Kind for keys::NamedSchema {
    fn schema(&self, limits: &Limits) -> Value {
        object(keys::SCHEMA_KEYS, &[], limits)
    }
}

impl Kind for keys::AnySchema {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": ["object", "boolean"], "properties": {}})
    }
}

impl Kind for keys::ObjectSchema {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": "object", "properties": {
            "type": {"type": "string", "const": "object", "description": "Arguments are an object."},
        }})
    }
}

impl Kind for keys::Vars {
    fn schema(&self, _: &Limits) -> Value {
        json!({
            "type": "object", "maxProperties": self.0, "propertyNames": {"pattern": NAME_PATTERN},
            "additionalProperties": {"type": ["string", "number", "boolean", "null"], "pattern": NO_NUL},
        })
    }
}

impl Kind for keys::ToolList {
    fn schema(&self, limits: &Limits) -> Value {
        let tool = object(keys::TOOL, &[], limits);
        json!({"type": "array", "maxItems": super::answer::TOOLS_MAX, "items": tool})
    }
}

impl Kind for keys::FunctionObject {
    fn schema(&self, limits: &Limits) -> Value {
        object(keys::FUNCTION_KEYS, keys::FUNCTION_MORE, limits)
    }
}

impl Kind for keys::ToolChoice {
    fn schema(&self, limits: &Limits) -> Value {
        let mut function = object(keys::FUNCTION_KEYS, &[], limits);
        function["description"] = "The function that is called.".into();
        json!({
            "type": ["string", "object"], "pattern": "^(auto|none|required)$", "required": ["function"],
            "properties": {"function": function},
        })
    }
}

impl Kind for keys::Calls {
    fn schema(&self, limits: &Limits) -> Value {
        let call = object(keys::CALL, keys::CALL_MORE, limits);
        json!({"type": "array", "maxItems": super::answer::TOOLS_MAX, "items": call})
    }
}

impl Kind for keys::CalledObject {
    fn schema(&self, limits: &Limits) -> Value {
        object(keys::CALLED, &[], limits)
    }
}

impl Kind for keys::Arguments {
    fn schema(&self, _: &Limits) -> Value {
        json!({"type": ["string", "object"], "pattern": NO_NUL, "properties": {}})
    }
}

impl Kind for keys::Unserved {
    fn schema(&self, _: &Limits) -> Value {
        match self.0 {
            Neutral::Null => json!({"type": "null"}),
            Neutral::False => json!({"type": "boolean", "enum": [false]}),
            Neutral::EmptyText => json!({"type": "string", "maxLength": 0}),
            Neutral::EmptyArray => json!({"type": "array", "maxItems": 0}),
            Neutral::Words(words) => json!({"type": "string", "enum": words}),
            Neutral::TextOnly => {
                json!({"type": "array", "items": {"type": "string", "const": "text"}})
            }
        }
    }
}
