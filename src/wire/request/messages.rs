//! Messages of a chat: read from a body, kept as JSON of known shape for the chat template.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    Limits,
    fields::{Fields, check_text, quoted},
    invalid,
    json::Value,
};
use crate::{
    frames::Input,
    wire::error::{ApiError, Code},
};

/// One message as the worker gets it. The order of keys is the order in the JSON text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message<'a> {
    role: Cow<'a, str>,
    content: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    fn of(role: &'a str, content: &'a str) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            name: None,
            tool_call_id: None,
        }
    }

    /// What plain text stands for.
    pub(super) fn user(content: &'a str) -> Self {
        Self::of("user", content)
    }
}

/// Reads `messages`.
///
/// Content is a string or an array of `{"type":"text","text":…}` parts, which are joined by line
/// feeds as llama.cpp does. Role `developer` becomes `system`, which is what chat templates know.
pub(super) fn read(
    fields: &Fields<'_>,
    limits: &Limits,
) -> Result<Vec<Message<'static>>, ApiError> {
    let items = fields.array("messages")?.unwrap_or_default();
    if items.is_empty() {
        let hint = match fields.has("prompt") {
            true => "; prompt belongs to op complete",
            false => "",
        };
        return Err(fields.error("messages", format_args!("is missing or empty{hint}")));
    }
    if items.len() > limits.messages {
        let (found, allowed) = (items.len(), limits.messages);
        return Err(fields.error(
            "messages",
            format_args!("has {found} messages, at most {allowed} are allowed"),
        ));
    }
    let message = |(at, item): (usize, &Value)| match item {
        Value::Object(object) => read_one(&Fields::at(object, format!("messages[{at}]")), limits),
        other => Err(fields.error(
            &format!("messages[{at}]"),
            format_args!("is {}, expected an object", other.kind()),
        )),
    };
    items.iter().enumerate().map(message).collect()
}

fn read_one(fields: &Fields<'_>, limits: &Limits) -> Result<Message<'static>, ApiError> {
    let role = fields
        .text("role", 0..=limits.payload_bytes)?
        .ok_or_else(|| fields.error("role", "is missing, expected a string"))?;
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" => "tool",
        other => {
            return Err(fields.error(
                "role",
                format_args!(
                    "is {}, allowed are system, developer, user, assistant and tool",
                    quoted(other)
                ),
            ));
        }
    };
    for key in ["tool_calls", "function_call", "audio"] {
        let is_empty = match fields.get(key) {
            None => true,
            Some(value) => matches!(value, Value::Array(items) if items.is_empty()),
        };
        if !is_empty {
            let path = fields.path_of(key);
            return Err(ApiError::new(
                Code::NotSupported,
                format!("{path} is not supported by this version, leave it out"),
            )
            .with_param(path));
        }
    }
    Ok(Message {
        role: role.into(),
        content: content(fields)?.into(),
        name: fields.text("name", 1..=64)?.map(Cow::Owned),
        tool_call_id: fields.text("tool_call_id", 1..=64)?.map(Cow::Owned),
    })
}

fn content(fields: &Fields<'_>) -> Result<String, ApiError> {
    const EXPECTED: &str = "expected a string or an array of text parts";
    match fields.get("content") {
        None => Err(fields.error("content", format_args!("is missing, {EXPECTED}"))),
        Some(Value::Text(text)) => {
            let path = fields.path_of("content");
            check_text(text, &path).map_err(|error| error.with_param(path))?;
            Ok(text.clone())
        }
        Some(Value::Array(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (at, part) in parts.iter().enumerate() {
                texts.push(text_part(part, fields.path_of(&format!("content[{at}]")))?);
            }
            Ok(texts.join("\n"))
        }
        Some(other) => {
            Err(fields.error("content", format_args!("is {}, {EXPECTED}", other.kind())))
        }
    }
}

fn text_part(part: &Value, path: String) -> Result<String, ApiError> {
    let Value::Object(object) = part else {
        let kind = part.kind();
        return Err(invalid(format!("{path} is {kind}, expected an object")).with_param(path));
    };
    let part = Fields::at(object, path);
    match part.get("type") {
        Some(Value::Text(kind)) if kind == "text" => {}
        Some(Value::Text(kind)) => {
            let path = part.path_of("type");
            let kind = quoted(kind);
            return Err(ApiError::new(
                Code::NotSupported,
                format!("{path} is {kind}, only \"text\" is supported by this version"),
            )
            .with_param(path));
        }
        _ => return Err(part.error("type", "is missing or no string, expected \"text\"")),
    }
    part.text("text", 0..=usize::MAX)?
        .ok_or_else(|| part.error("text", "is missing, expected a string"))
}

/// The worker's form: a JSON array.
pub(super) fn to_input(messages: &[Message<'_>]) -> Input {
    Input::Chat {
        messages: to_json(messages),
        tools: None,
    }
}

fn to_json(messages: &[Message<'_>]) -> String {
    serde_json::to_string(messages).expect("strings and options always serialise")
}

/// Puts a system message first, unless the chat has one. `messages` is the text of [`to_input`];
/// another text is left as it is.
pub(super) fn put_system_first(messages: &mut String, prompt: &str) {
    let Ok(mut parsed) = serde_json::from_str::<Vec<Message<'_>>>(messages) else {
        return;
    };
    if parsed.iter().all(|message| message.role != "system") {
        parsed.insert(0, Message::of("system", prompt));
        *messages = to_json(&parsed);
    }
}
