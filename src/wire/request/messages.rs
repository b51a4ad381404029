//! Messages of a chat: read from a body, kept as JSON of known shape for the chat template.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{
    answer::TOOLS_MAX,
    fields::{Fields, check_text, quoted, refuse_unserved},
    history::{Answer, Call},
    invalid,
    json::Value,
    keys,
};
use crate::{
    frames::Input,
    wire::{
        error::{ApiError, Code},
        tools::{Called, ToolCall},
    },
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

impl<'a> Message<'a> {
    pub(super) fn of(role: &'a str, content: &'a str) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            name: None,
            tool_call_id: None,
            tool_calls: Vec::new(),
        }
    }

    /// What plain text stands for.
    pub(super) fn user(content: &'a str) -> Self {
        Self::of("user", content)
    }

    pub(super) fn is_system(&self) -> bool {
        self.role == "system"
    }

    /// What the model said.
    pub(super) fn answer(answer: Answer) -> Message<'static> {
        let call = |call: Call| ToolCall {
            index: None,
            id: Some(call.id.into()),
            kind: Some("function".into()),
            function: Called {
                name: Some(call.name.into()),
                arguments: call.arguments.into(),
            },
        };
        Message {
            content: answer.text.into(),
            tool_calls: answer.calls.into_iter().map(call).collect(),
            ..Message::of("assistant", "")
        }
    }
}

/// Reads `messages`.
///
/// Content is a string or an array of `{"type":"text","text":…}` parts, which are joined by line
/// feeds as llama.cpp does. Role `developer` becomes `system`, which is what chat templates know.
pub(super) fn read(fields: &Fields<'_>) -> Result<Vec<Message<'static>>, ApiError> {
    let key = keys::MESSAGES.name();
    let items = fields.array(&keys::MESSAGES)?.unwrap_or_default();
    if items.is_empty() {
        let hint = match fields.has(&keys::PROMPT) {
            true => "; prompt belongs to op complete",
            false => "",
        };
        return Err(fields.error(key, format_args!("is missing or empty{hint}")));
    }
    let allowed = fields.limits().messages;
    if items.len() > allowed {
        let found = items.len();
        return Err(fields.error(
            key,
            format_args!("has {found} messages, at most {allowed} are allowed"),
        ));
    }
    let message = |(at, item): (usize, &Value)| match item {
        Value::Object(object) => read_one(&fields.inside(object, format!("{key}[{at}]"))),
        other => Err(fields.error(
            &format!("{key}[{at}]"),
            format_args!("is {}, expected an object", other.kind()),
        )),
    };
    items.iter().enumerate().map(message).collect()
}

fn read_one(fields: &Fields<'_>) -> Result<Message<'static>, ApiError> {
    let role = match fields.word(&keys::ROLE)? {
        None => return Err(fields.error("role", "is missing, expected a string")),
        Some("developer") => "system",
        Some(role) => role,
    };
    refuse_unserved(fields, keys::MESSAGE_UNSERVED)?;
    let tool_calls = tool_calls(fields, role)?;
    let content = match fields.get(&keys::CONTENT) {
        None if !tool_calls.is_empty() => String::new(),
        _ => content(fields)?,
    };
    Ok(Message {
        role: role.into(),
        content: content.into(),
        name: fields.text(&keys::NAME)?.map(Cow::Owned),
        tool_call_id: fields.text(&keys::TOOL_CALL_ID)?.map(Cow::Owned),
        tool_calls,
    })
}

fn tool_calls(fields: &Fields<'_>, role: &str) -> Result<Vec<ToolCall<'static>>, ApiError> {
    let key = keys::TOOL_CALLS.name();
    let items = fields.array(&keys::TOOL_CALLS)?.unwrap_or_default();
    if !items.is_empty() && role != "assistant" {
        return Err(fields.error(key, "is given, and only an assistant calls tools"));
    }
    if items.len() > TOOLS_MAX {
        let found = items.len();
        return Err(fields.error(
            key,
            format_args!("has {found} calls, at most {TOOLS_MAX} are allowed"),
        ));
    }
    let call = |(at, item): (usize, &Value)| {
        let path = format!("{key}[{at}]");
        let Value::Object(object) = item else {
            let kind = item.kind();
            return Err(fields.error(&path, format_args!("is {kind}, expected an object")));
        };
        one_call(&fields.inside(object, fields.path_of(&path)))
    };
    items.iter().enumerate().map(call).collect()
}

fn one_call(call: &Fields<'_>) -> Result<ToolCall<'static>, ApiError> {
    call.word(&keys::CALL_TYPE)?;
    let function = call
        .object(&keys::CALL_FUNCTION)?
        .ok_or_else(|| call.error("function", "is missing, expected an object"))?;
    let name = function
        .name(&keys::CALLED_NAME)?
        .ok_or_else(|| function.error("name", "is missing, expected a string"))?;
    const EXPECTED: &str = "expected JSON text of an object";
    let arguments = match function.get(&keys::CALLED_ARGUMENTS) {
        None => {
            return Err(function.error("arguments", format_args!("is missing, {EXPECTED}")));
        }
        Some(Value::Text(text)) => {
            let path = function.path_of("arguments");
            check_text(text, &path).map_err(|error| error.with_param(path))?;
            text.clone()
        }
        Some(object @ Value::Object(_)) => {
            serde_json::to_string(object).expect("maps with text keys always serialise")
        }
        Some(other) => {
            let kind = other.kind();
            return Err(function.error("arguments", format_args!("is {kind}, {EXPECTED}")));
        }
    };
    Ok(ToolCall {
        index: None,
        id: call.text(&keys::CALL_ID)?.map(Cow::Owned),
        kind: Some("function".into()),
        function: Called {
            name: Some(name.into()),
            arguments: arguments.into(),
        },
    })
}

fn content(fields: &Fields<'_>) -> Result<String, ApiError> {
    const EXPECTED: &str = "expected a string or an array of text parts";
    match fields.get(&keys::CONTENT) {
        None => Err(fields.error("content", format_args!("is missing, {EXPECTED}"))),
        Some(Value::Text(text)) => {
            let path = fields.path_of("content");
            check_text(text, &path).map_err(|error| error.with_param(path))?;
            Ok(text.clone())
        }
        Some(Value::Array(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for (at, part) in parts.iter().enumerate() {
                let path = fields.path_of(&format!("content[{at}]"));
                texts.push(text_part(fields, part, path)?);
            }
            Ok(texts.join("\n"))
        }
        Some(other) => {
            Err(fields.error("content", format_args!("is {}, {EXPECTED}", other.kind())))
        }
    }
}

fn text_part(message: &Fields<'_>, part: &Value, path: String) -> Result<String, ApiError> {
    let Value::Object(object) = part else {
        let kind = part.kind();
        return Err(invalid(format!("{path} is {kind}, expected an object")).with_param(path));
    };
    let part = message.inside(object, path);
    match part.get(&keys::PART_TYPE) {
        Some(Value::Text(kind)) if keys::PART_TYPE.takes().0.contains(&kind.as_str()) => {}
        // An image, say: well-formed, and more than this version can do.
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
    part.text(&keys::PART_TEXT)?
        .ok_or_else(|| part.error("text", "is missing, expected a string"))
}

/// The worker's form: a JSON array.
pub(super) fn to_input(messages: &[Message<'_>]) -> Input {
    Input::Chat {
        messages: to_json(messages),
        tools: None,
    }
}

pub(super) fn to_json<M: Serialize>(messages: &[M]) -> String {
    serde_json::to_string(messages).expect("strings and options always serialise")
}

/// What [`to_input`] wrote; another text has none.
pub(super) fn parsed(messages: &str) -> Vec<Message<'static>> {
    serde_json::from_str(messages).unwrap_or_default()
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
