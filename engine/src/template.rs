//! Chat templates: OpenAI messages to prompt text.
//!
//! The Jinja text comes from the model's file (or the operator) and is hostile until proven otherwise:
//! its size, the instructions it may run, the text it may produce, the memory it may hold meanwhile and the
//! time it may take are bounded. Where the file has none, or one that does not work, a family that fits the
//! vocabulary is used. Never tokenizes.

mod families;
mod functions;
#[cfg(test)]
mod golden;
mod tools;

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use orinoco::frames::ToolSyntax;
use serde_json::{Map, Value as Json};

use crate::budget::{self, Budget};
use crate::model::TemplateSource;

/// Largest Jinja text, bytes.
pub const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Largest rendered prompt, bytes.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Instructions of one rendering. A thousand messages need about 100,000; an endless template is
/// stopped after less than 50 ms on one core of 2020.
const FUEL: u64 = 400_000;
/// One rendering, or compiling. A few instructions can double a text forty times, so that counting them is
/// not enough.
const BUDGET: Budget = Budget {
    bytes: 64 << 20,
    time: Duration::from_secs(2),
};
/// A template that was stopped so often is not used again: each time leaves up to [`BUDGET`]`.bytes` behind.
const STOPS_MAX: u32 = 3;

/// Why there is no prompt text; fragments that complete "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The Jinja text is too large.
    #[error("use the chat template: it has {found} bytes, at most {SOURCE_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// The Jinja text is malformed.
    #[error("compile the chat template: {0}")]
    Compile(String),
    /// The messages are not what a template can read.
    #[error("read {0}")]
    Messages(String),
    /// The template refused the messages or ran into a bound.
    #[error("render the chat template: {0}")]
    Render(String),
}

/// A compiled template.
pub struct ChatTemplate {
    env: Arc<Environment<'static>>,
    /// The file's own for conversations with tools.
    for_tools: Option<Arc<Environment<'static>>>,
    tool_syntax: ToolSyntax,
    n_stops: Cell<u32>,
    name: &'static str,
    bos: String,
    eos: String,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The operator's template if there is one, else the file's, else a family.
    ///
    /// `is_token(text)` says whether the vocabulary has `text` as one control token. Only the operator's
    /// template fails; one of the file that does not work is replaced, and the log says so.
    pub fn new(
        of_model: &TemplateSource,
        of_operator: Option<&str>,
        is_token: impl Fn(&str) -> bool,
    ) -> Result<Self, TemplateError> {
        if let Some(source) = of_operator {
            return Self::compile("operator", source, of_model);
        }
        if let Some(source) = &of_model.source {
            match Self::compile("gguf", source, of_model).and_then(Self::tried) {
                Ok(template) => return Ok(template.with_tools(of_model.for_tools.as_deref())),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "chat template of the model's file does not work; a family is used"
                    );
                }
            }
        }
        let (name, source) = families::fitting(is_token);
        Self::compile(name, source, of_model)
    }

    fn compile(
        name: &'static str,
        source: &str,
        of_model: &TemplateSource,
    ) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::TooLarge {
                found: source.len(),
            });
        }
        let env = compiled(source)?;
        Ok(Self {
            env: Arc::new(env),
            for_tools: None,
            tool_syntax: tools::syntax_of(source),
            n_stops: Cell::new(0),
            name,
            bos: of_model.bos.clone(),
            eos: of_model.eos.clone(),
        })
    }

    /// Itself, with another template for conversations with tools, where that has a syntax that we read.
    fn with_tools(mut self, source: Option<&str>) -> Self {
        let Some(source) = source.filter(|source| source.len() <= SOURCE_BYTES_MAX) else {
            return self;
        };
        let syntax = tools::syntax_of(source);
        if syntax == ToolSyntax::Generic {
            return self;
        }
        match compiled(source) {
            Ok(env) => {
                self.for_tools = Some(Arc::new(env));
                self.tool_syntax = syntax;
            }
            Err(error) => tracing::warn!(%error, "the file's template for tools is not used"),
        }
        self
    }

    /// How its model writes that it calls a tool.
    pub fn tool_syntax(&self) -> ToolSyntax {
        self.tool_syntax
    }

    /// Itself, if it can render the simplest conversation.
    fn tried(self) -> Result<Self, TemplateError> {
        let user = serde_json::json!([{"role": "user", "content": "hello"}]);
        let text = self.render_values(&user, None)?;
        if !text.contains("hello") {
            return Err(TemplateError::Render(
                "the user's message is not in the prompt".to_owned(),
            ));
        }
        Ok(self)
    }

    /// `gguf`, `operator`, or the family's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The prompt of `messages` (a JSON array of OpenAI messages) with the head of an answer at its end.
    pub fn render(&self, messages: &str, tools: Option<&str>) -> Result<String, TemplateError> {
        let parse = |what: &str, text: &str| {
            serde_json::from_str::<Json>(text)
                .map_err(|error| TemplateError::Messages(format!("{what}: {error}")))
        };
        let mut messages = normalized(parse("messages", messages)?)?;
        let mut tools = tools.map(|tools| parse("tools", tools)).transpose()?;
        match self.tool_syntax {
            ToolSyntax::Generic => tools::in_words(&mut messages, tools.take().as_ref()),
            ToolSyntax::Mistral => tools::with_short_ids(&mut messages),
            ToolSyntax::Hermes | ToolSyntax::Llama3 => {}
        }
        if let Some(tools) = &mut tools {
            tools::completed(tools);
        }
        match self.render_values(&Json::Array(messages.clone()), tools.as_ref()) {
            // Gemma, Mistral and others refuse a system role: it then opens the first user message.
            Err(error) if fold_system(&mut messages) => self
                .render_values(&Json::Array(messages), tools.as_ref())
                .map_err(|_| error),
            result => result,
        }
    }

    fn render_values(
        &self,
        messages: &Json,
        tools: Option<&Json>,
    ) -> Result<String, TemplateError> {
        if self.n_stops.get() >= STOPS_MAX {
            return Err(TemplateError::Render(format!(
                "it had to be stopped {STOPS_MAX} times and is not used any more; another model, or another chat_template_file, is needed"
            )));
        }
        let context = context! {
            messages => Value::from(Serde(messages)),
            tools => tools.map(|tools| Value::from(Serde(tools))),
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        let env = match &self.for_tools {
            Some(env) if tools.is_some() => Arc::clone(env),
            _ => Arc::clone(&self.env),
        };
        let rendered = budget::within(BUDGET, move || -> Result<Vec<u8>, String> {
            let template = env.get_template(NAME).map_err(|error| explain(&error))?;
            let mut output = Bounded(Vec::new());
            template
                .render_captured_to(context, &mut output)
                .map_err(|error| explain(&error))?;
            Ok(output.0)
        });
        let output = rendered
            .map_err(|exceeded| {
                self.n_stops.set(self.n_stops.get() + 1);
                TemplateError::Render(exceeded.to_string())
            })?
            .map_err(TemplateError::Render)?;
        String::from_utf8(output).map_err(|error| TemplateError::Render(error.to_string()))
    }
}

fn compiled(source: &str) -> Result<Environment<'static>, TemplateError> {
    let text = functions::without_generation_tags(source);
    budget::within(BUDGET, move || environment(text))
        .map_err(|exceeded| TemplateError::Compile(exceeded.to_string()))?
        .map_err(|error| TemplateError::Compile(explain(&error)))
}

/// An environment with this one template in it.
fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    // As transformers' apply_chat_template sets its environment.
    env.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    env.set_fuel(Some(FUEL));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    functions::add_to(&mut env);
    env.add_template_owned(NAME, source)?;
    Ok(env)
}

/// Collects at most [`OUTPUT_BYTES_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "the prompt would have more than {OUTPUT_BYTES_MAX} bytes"
            )));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One sentence of a Jinja error, with the text of `raise_exception` if that is what it was.
fn explain(error: &minijinja::Error) -> String {
    use std::error::Error as _;
    let mut text = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => format!("it ran more than {FUEL} instructions"),
        (_, Some(detail)) => detail.to_owned(),
        (kind, None) => kind.to_string(),
    };
    if let Some(line) = error.line() {
        text.push_str(&format!(" (line {line})"));
    }
    if let Some(source) = error.source() {
        text.push_str(&format!(": {source}"));
    }
    text
}

/// Messages as templates expect them: objects with a role, contents as one string, arguments of tool
/// calls as objects.
fn normalized(messages: Json) -> Result<Vec<Json>, TemplateError> {
    let wrong = |i: usize, what: &str| TemplateError::Messages(format!("messages[{i}]{what}"));
    let Json::Array(mut messages) = messages else {
        return Err(TemplateError::Messages(
            "messages: an array is expected".into(),
        ));
    };
    if messages.is_empty() {
        return Err(TemplateError::Messages(
            "messages: at least one is expected".into(),
        ));
    }
    for (i, message) in messages.iter_mut().enumerate() {
        let Json::Object(message) = message else {
            return Err(wrong(i, ": an object is expected"));
        };
        if !message.get("role").is_some_and(Json::is_string) {
            return Err(wrong(i, ".role: a string is expected"));
        }
        match message.get_mut("content") {
            Some(Json::String(_)) => {}
            // Templates concatenate contents; an assistant's tool call has none.
            None | Some(Json::Null) => {
                message.insert("content".into(), Json::String(String::new()));
            }
            Some(Json::Array(parts)) => {
                let text = joined(parts)
                    .ok_or_else(|| wrong(i, ".content: only parts of type text are supported"))?;
                message.insert("content".into(), Json::String(text));
            }
            Some(_) => return Err(wrong(i, ".content: a string or an array is expected")),
        }
        parse_arguments(message);
    }
    Ok(messages)
}

fn joined(parts: &[Json]) -> Option<String> {
    parts
        .iter()
        .map(|part| match part.get("type")?.as_str()? {
            "text" => part.get("text")?.as_str(),
            _ => None,
        })
        .collect()
}

/// OpenAI carries arguments as a JSON text; templates write them with `tojson`.
fn parse_arguments(message: &mut Map<String, Json>) {
    let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else {
            continue;
        };
        if let Some(text) = arguments.as_str()
            && let Ok(parsed @ Json::Object(_)) = serde_json::from_str(text)
        {
            *arguments = parsed;
        }
    }
}

/// Moves a leading system message into the first user message; whether there was one.
fn fold_system(messages: &mut Vec<Json>) -> bool {
    if messages.first().and_then(|m| m["role"].as_str()) != Some("system") {
        return false;
    }
    let Some(user) = messages.iter().position(|m| m["role"] == "user") else {
        return false;
    };
    let text = format!(
        "{}\n\n{}",
        messages[0]["content"].as_str().unwrap_or_default(),
        messages[user]["content"].as_str().unwrap_or_default()
    );
    messages[user]["content"] = Json::String(text);
    messages.remove(0);
    true
}

#[cfg(test)]
mod tests;
