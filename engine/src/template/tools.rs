//! Tools in a conversation: which syntax a template teaches its model, and the same conversation in words
//! where it teaches none that we read.

use std::hash::{DefaultHasher, Hash, Hasher};

use orinoco::frames::ToolSyntax;
use serde_json::{Value as Json, json};

/// The syntax that a template shows its model. [`ToolSyntax::Generic`]: none, or one that nobody reads here;
/// then the template is not told of tools, and [`in_words`] is.
pub(super) fn syntax_of(source: &str) -> ToolSyntax {
    let has = |text: &str| source.contains(text);
    if !has("tools") {
        ToolSyntax::Generic
    } else if has("[TOOL_CALLS]") && !has("[ARGS]") {
        ToolSyntax::Mistral
    } else if has("<tool_call>") && has("arguments") && !has("<function=") && !has("<arg_key>") {
        ToolSyntax::Hermes
    } else if has("ipython") && has("\"parameters\": ") {
        ToolSyntax::Llama3
    } else {
        ToolSyntax::Generic
    }
}

/// What OpenAI lets out and templates count on: a description, and parameters with properties.
pub(super) fn completed(tools: &mut Json) {
    for tool in tools.as_array_mut().into_iter().flatten() {
        let Some(function) = tool.get_mut("function").and_then(Json::as_object_mut) else {
            continue;
        };
        function.entry("description").or_insert_with(|| json!(""));
        let parameters = function
            .entry("parameters")
            .or_insert_with(|| json!({"type": "object"}));
        let Some(parameters) = parameters.as_object_mut() else {
            continue;
        };
        let properties = parameters.entry("properties").or_insert_with(|| json!({}));
        for property in properties
            .as_object_mut()
            .into_iter()
            .flat_map(|p| p.values_mut())
        {
            if let Some(property) = property.as_object_mut() {
                property.entry("description").or_insert_with(|| json!(""));
            }
        }
    }
}

/// Mistral's templates take calls whose ids are nine letters or digits, and no others.
pub(super) fn with_short_ids(messages: &mut [Json]) {
    for message in messages {
        if let Some(id) = message.get_mut("tool_call_id") {
            shorten(id);
        }
        let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
        for call in calls.into_iter().flatten() {
            if let Some(id) = call.get_mut("id") {
                shorten(id);
            }
        }
    }
}

fn shorten(id: &mut Json) {
    let Some(text) = id.as_str() else { return };
    if text.len() == 9 && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return;
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let short = format!("{:09x}", hasher.finish() >> 28);
    *id = Json::String(short);
}

/// The same conversation for a template that knows no tools: what can be called is told in the system
/// message, calls are what the model is asked to write, and results are what the user says.
pub(super) fn in_words(messages: &mut Vec<Json>, tools: Option<&Json>) {
    for message in messages.iter_mut() {
        let Some(message) = message.as_object_mut() else {
            continue;
        };
        let calls = message.remove("tool_calls");
        if let Some(calls) = calls.as_ref().and_then(Json::as_array)
            && !calls.is_empty()
        {
            let text = json!({"tool_calls": Vec::from_iter(calls.iter().map(called))});
            message.insert("content".to_owned(), Json::String(text.to_string()));
        }
        if message.get("role").and_then(Json::as_str) == Some("tool") {
            let content = message.get("content").and_then(Json::as_str);
            let text = format!("Result of the function: {}", content.unwrap_or_default());
            message.insert("content".to_owned(), Json::String(text));
            message.insert("role".to_owned(), json!("user"));
            message.remove("tool_call_id");
        }
    }
    let Some(tools) = tools.and_then(Json::as_array) else {
        return;
    };
    let functions = tools
        .iter()
        .map(|tool| tool.get("function").unwrap_or(tool).to_string());
    let told = format!(
        "You can call these functions:\n{}\n\nTo call functions, answer with nothing but JSON of this form: \
         {{\"tool_calls\": [{{\"name\": \"function name\", \"arguments\": {{\"argument\": \"value\"}}}}]}}\n\
         If no function helps, answer in plain text.",
        Vec::from_iter(functions).join("\n")
    );
    match messages
        .first_mut()
        .filter(|first| first["role"] == "system")
    {
        Some(system) => {
            let own = system["content"].as_str().unwrap_or_default();
            system["content"] = Json::String(format!("{own}\n\n{told}"));
        }
        None => messages.insert(0, json!({"role": "system", "content": told})),
    }
}

fn called(call: &Json) -> Json {
    let function = call.get("function").unwrap_or(call);
    json!({"name": function.get("name"), "arguments": function.get("arguments")})
}
