//! PURE: wordings that the node has, and requests that bring what varies: `{"template": …, "vars": {…}}`.
//!
//! A template is fixed text, then a line for each variable. What varies stands last by construction, so that all
//! requests of a template begin alike and the beginning is read once. There is no language in which a request, or a
//! template, could say more than that: a value is put into its line as it is, and never looked at again. What it
//! says stays text, whatever it looks like; that no control token is read out of it is the worker's part.
//!
//! The configuration makes templates; what it may say is checked here as well, so that a template that exists can
//! be filled in.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Limits, Request, answer,
    fields::{Fields, check_text, listed},
    invalid,
    json::{self, Value},
    keys, messages,
    messages::Message,
};
use crate::frames::{Constraint, Input};
use crate::wire::error::ApiError;
use crate::wire::topic::{Name, Op};

/// Templates of a node: their names and variables stand in one retained document.
pub const TEMPLATES_MAX: usize = 32;
/// Variables of one template.
pub const VARS_MAX: usize = 16;
/// Where a line has its value.
const PLACE: &str = "{}";

/// A wording with places for what varies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// First message; `None`: as in other chats.
    pub system: Option<String>,
    /// What the second message begins with; may be empty.
    pub user: String,
    /// In the order of their lines, at most [`VARS_MAX`]; each name once.
    pub vars: Vec<Var>,
    /// Most tokens of an answer when the request does not say.
    pub max_tokens: Option<u32>,
    /// JSON Schema of the answer, of a request that asks for no other form.
    pub schema: Option<String>,
}

/// One variable of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Var {
    /// The key in `vars`.
    pub name: String,
    /// What it takes.
    pub kind: Kind,
    /// Most bytes of a value as text.
    pub bytes_max: usize,
    /// What happens without a value.
    pub without: Without,
    /// The text around the value.
    pub line: Line,
}

/// What a request without a value for a variable means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// An error.
    Refused,
    /// Its line is left out.
    NoLine,
    /// This value.
    Default(String),
}

/// What a variable takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One line of text; a number or a boolean is text as well, as JSON writes it.
    String,
    /// Text of any number of lines, and what `string` takes.
    Text,
    /// A whole number.
    Integer,
    /// A number.
    Number,
    /// `true` or `false`.
    Boolean,
}

impl Kind {
    /// All of them, with their words.
    pub const ALL: [(&str, Self); 5] = [
        ("string", Self::String),
        ("text", Self::Text),
        ("integer", Self::Integer),
        ("number", Self::Number),
        ("boolean", Self::Boolean),
    ];

    /// A value from a configuration, which writes all kinds as text. The error completes "expected ...".
    ///
    /// # Errors
    /// Text that is no such value.
    pub fn of_default(self, text: &str) -> Result<String, String> {
        let value = match self {
            Self::String | Self::Text => Value::Text(text.to_owned()),
            _ => serde_json::from_str(text).map_err(|_| self.expected().to_owned())?,
        };
        self.text_of(&value).map_err(|_| self.expected().to_owned())
    }

    const fn expected(self) -> &'static str {
        match self {
            Self::String => "one line of text",
            Self::Text => "text",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Boolean => "true or false",
        }
    }

    /// The value as it stands in the prompt. The error says what it is instead.
    fn text_of(self, value: &Value) -> Result<String, String> {
        match (self, value) {
            (Self::Boolean | Self::String | Self::Text, Value::Bool(found)) => {
                Ok(found.to_string())
            }
            (Self::Boolean, _) => Err(value.kind().to_owned()),
            (_, Value::Integer(found)) => Ok(found.to_string()),
            (Self::Integer, Value::Real(found)) => match whole(*found) {
                Some(found) => Ok(found.to_string()),
                None => Err(found.to_string()),
            },
            (_, Value::Real(found)) => {
                Ok(serde_json::to_string(found).expect("JSON has no other reals than finite ones"))
            }
            (Self::String, Value::Text(found)) => match found.chars().find(|c| ends_line(*c)) {
                None => Ok(found.clone()),
                Some(c) => Err(format!("text with the control character {c:?}")),
            },
            (Self::Text, Value::Text(found)) => Ok(found.clone()),
            _ => Err(value.kind().to_owned()),
        }
    }
}

/// The integer that a number with a fraction part holds exactly, since some languages have no other numbers.
fn whole(found: f64) -> Option<i64> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    (found.fract() == 0.0 && found.abs() <= EXACT_MAX).then_some(found as i64)
}

/// Whether a character would begin another line, on a screen or to a model, or is none that a person writes.
fn ends_line(c: char) -> bool {
    (c.is_control() && c != '\t') || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A line of a template: what stands before its value, and behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    before: String,
    after: String,
}

impl Line {
    /// A line with one `{}`, where the value stands. The error completes "expected ...".
    ///
    /// # Errors
    /// None or several of them, or control characters.
    pub fn new(text: &str) -> Result<Self, String> {
        let one = || format!("one line of text with one {PLACE}, where the value stands");
        let (before, after) = text.split_once(PLACE).ok_or_else(one)?;
        if after.contains(PLACE) || text.chars().any(ends_line) {
            return Err(one());
        }
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// `name: {}`
    pub fn named(name: &str) -> Self {
        Self {
            before: format!("{name}: "),
            after: String::new(),
        }
    }
}

/// The templates of a node, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Templates(pub BTreeMap<String, Template>);

/// What a request wants filled in: shaped as it must be, and nothing else known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Filling {
    name: String,
    vars: Vec<(String, Value)>,
}

/// A request's template, filled in. Kept with the job, so that it stays what it was when it was accepted, whatever
/// the configuration says later.
// As JSON: keys that are not known are skipped, missing ones were not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Filled {
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<String>,
    user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<String>,
}

/// Reads `template` and `vars`; `None` where neither is given.
pub(super) fn read(op: Op, fields: &Fields<'_>) -> Result<Option<Filling>, ApiError> {
    let name = fields.name(&keys::TEMPLATE)?;
    let vars = fields.object(&keys::VARS)?;
    let (name, vars) = match (name, vars) {
        (None, None) => return Ok(None),
        (None, Some(_)) => {
            let key = keys::VARS.name();
            return Err(fields.error(key, "is given, and no template that has variables"));
        }
        (Some(name), vars) => (name, vars),
    };
    // A chat has no use for a prompt beside messages either.
    let prompt = (op == Op::Tokenize && fields.has(&keys::PROMPT)).then_some(keys::PROMPT.name());
    let messages = (fields.has(&keys::MESSAGES)).then_some(keys::MESSAGES.name());
    if let Some(key) = prompt.or(messages) {
        let text = format!("both {key} and template are given, expected one of them");
        return Err(invalid(text).with_param(key));
    }
    let mut filling = Filling {
        name,
        vars: Vec::new(),
    };
    let Some(vars) = vars else {
        return Ok(Some(filling));
    };
    let found = vars.entries().len();
    if found > VARS_MAX {
        let key = keys::VARS.name();
        let text = format_args!("has {found} variables, at most {VARS_MAX} are allowed");
        return Err(fields.error(key, text));
    }
    for (name, value) in vars.entries().iter() {
        if Name::new(name).is_err() {
            let found = super::fields::quoted(name);
            let text = format!("vars has the key {found}, which no variable can have");
            return Err(invalid(text).with_param(keys::VARS.name()));
        }
        let path = vars.path_of(name);
        match value {
            Value::Null => continue,
            Value::Text(text) => {
                check_text(text, &path).map_err(|error| error.with_param(path))?;
            }
            Value::Array(_) | Value::Object(_) => {
                let kind = value.kind();
                return Err(vars.error(
                    name,
                    format_args!("is {kind}, expected a string, a number or a boolean"),
                ));
            }
            Value::Bool(_) | Value::Integer(_) | Value::Real(_) => {}
        }
        filling.vars.push((name.clone(), value.clone()));
    }
    Ok(Some(filling))
}

impl Templates {
    /// A request's template, filled in.
    ///
    /// # Errors
    /// [`crate::wire::error::Code::InvalidRequest`]: no such template, or not its variables.
    fn fill(&self, filling: &Filling) -> Result<Filled, ApiError> {
        let name = &filling.name;
        let template = self.0.get(name).ok_or_else(|| {
            let text = match self.0.is_empty() {
                true => format!("no template `{name}` here: this node has none"),
                false => {
                    let names = Vec::from_iter(self.0.keys().map(String::as_str));
                    format!("no template `{name}` here: there are {}", listed(&names))
                }
            };
            invalid(text).with_param(keys::TEMPLATE.name())
        })?;
        template.fill(filling)
    }
}

impl Template {
    /// What all requests of this template begin with: for the worker, which reads it before anybody asks.
    /// `system_prompt`: what chats without a system message get.
    pub fn beginning(&self, system_prompt: Option<&str>) -> Input {
        let mut user = self.fixed();
        if let Some(first) = self.vars.first()
            && first.without != Without::NoLine
        {
            user.push_str(&first.line.before);
        }
        to_input(self.system.as_deref().or(system_prompt), &user)
    }

    /// Up to the lines.
    fn fixed(&self) -> String {
        match self.user.is_empty() || self.vars.is_empty() {
            true => self.user.clone(),
            false => format!("{}\n\n", self.user),
        }
    }

    fn fill(&self, filling: &Filling) -> Result<Filled, ApiError> {
        let of = &filling.name;
        let wrong = |name: &str, found: String| {
            let path = format!("{}.{name}", keys::VARS.name());
            invalid(format!("{path} {found}")).with_param(path)
        };
        let is_known = |name: &String| self.vars.iter().any(|var| var.name == *name);
        if let Some((name, _)) = filling.vars.iter().find(|(name, _)| !is_known(name)) {
            let names = Vec::from_iter(self.vars.iter().map(|var| var.name.as_str()));
            let has = match names.is_empty() {
                true => "which has none".to_owned(),
                false => format!("which has {}", listed(&names)),
            };
            return Err(wrong(
                name,
                format!("is no variable of template `{of}`, {has}"),
            ));
        }
        let mut user = self.fixed();
        let mut n_lines = 0;
        for var in &self.vars {
            let expected = var.kind.expected();
            let given = filling.vars.iter().find(|(name, _)| *name == var.name);
            let value = match (given, &var.without) {
                (Some((_, value)), _) => var.kind.text_of(value).map_err(|found| {
                    wrong(&var.name, format!("is {found}, expected {expected}"))
                })?,
                (None, Without::Default(value)) => value.clone(),
                (None, Without::NoLine) => continue,
                (None, Without::Refused) => {
                    let text = format!("is missing: template `{of}` needs it, {expected}");
                    return Err(wrong(&var.name, text));
                }
            };
            let (bytes, allowed) = (value.len(), var.bytes_max);
            if bytes > allowed {
                let text = format!("has {bytes} bytes as text, at most {allowed} are allowed");
                return Err(wrong(&var.name, text));
            }
            let Line { before, after } = &var.line;
            let parts = [if n_lines > 0 { "\n" } else { "" }, before, &value, after];
            user.extend(parts);
            n_lines += 1;
        }
        if n_lines == 0 {
            user.clone_from(&self.user);
        }
        if user.trim().is_empty() {
            let text = format!("vars has nothing that template `{of}` could say");
            return Err(invalid(text).with_param(keys::VARS.name()));
        }
        Ok(Filled {
            system: self.system.clone(),
            user,
            max_tokens: self.max_tokens,
            schema: self.schema.clone(),
        })
    }

    /// The schema of its answers as requests have it; the error completes "expected ...".
    ///
    /// # Errors
    /// It is no JSON Schema, or not within the bounds of those in requests.
    pub fn checked_schema(text: &str) -> Result<String, String> {
        let limits = Limits::default();
        json::check_bounds(text, &limits)
            .and_then(|()| json::parse(text))
            .and_then(|schema| answer::schema_text(&Value::Object(schema), "schema"))
            .map_err(|error| format!("a JSON Schema in text: {}", error.message))
    }
}

fn to_input(system: Option<&str>, user: &str) -> Input {
    let system = system.map(|text| Message::of("system", text));
    messages::to_input(&Vec::from_iter(
        system.into_iter().chain([Message::user(user)]),
    ))
}

impl Request {
    /// Fills in the template that the request names, unless that was done when it was accepted; what it is then is
    /// to be kept with the job ([`super::Beside::keep`]).
    ///
    /// # Errors
    /// [`crate::wire::error::Code::InvalidRequest`]: no such template, not its variables, or what the request asks
    /// for beside it contradicts its form of the answer.
    pub fn fill(&mut self, templates: &Templates) -> Result<(), ApiError> {
        let Some(filling) = self.template.as_ref().filter(|_| self.filled.is_none()) else {
            return Ok(());
        };
        let filled = templates.fill(filling)?;
        self.put(filled)
    }

    /// What its template has made of it beside its body, bytes.
    pub fn filled_bytes(&self) -> usize {
        let bytes = |filled: &Filled| {
            let fixed = [&filled.system, &filled.schema];
            filled.user.len()
                + fixed
                    .map(|text| text.as_ref().map_or(0, String::len))
                    .iter()
                    .sum::<usize>()
        };
        self.filled.as_ref().map_or(0, bytes)
    }

    /// Takes what was filled in.
    pub(super) fn put(&mut self, filled: Filled) -> Result<(), ApiError> {
        let Input::Chat { messages, .. } = &mut self.input else {
            return Ok(());
        };
        if let Input::Chat { messages: all, .. } = to_input(filled.system.as_deref(), &filled.user)
        {
            *messages = all;
        }
        self.max_tokens = self.max_tokens.or(filled.max_tokens);
        if self.constraint.is_none()
            && let Some(schema) = &filled.schema
        {
            self.constraint = Some(Constraint::JsonSchema(schema.clone()));
            answer::check_together(
                self.constraint.as_ref(),
                self.tools.as_ref(),
                !self.stop.is_empty(),
                self.ignore_eos,
            )
            .map_err(|error| {
                let text = format!(
                    "the template has a schema of its answers: {}",
                    error.message
                );
                ApiError {
                    message: text,
                    ..error
                }
            })?;
        }
        self.filled = Some(filled);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
