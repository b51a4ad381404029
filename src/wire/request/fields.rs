//! Keys of a body, read with their ranges. `null` counts as absent, as with OpenAI servers.

use std::ops::RangeInclusive;

use super::{
    invalid,
    json::{Object, Value},
};
use crate::wire::error::{ApiError, Code};

/// An object of the body and the way to it, for errors.
pub(super) struct Fields<'a> {
    object: &'a Object,
    path: String,
}

/// Largest integer that a JSON number with a fraction part still holds exactly.
const REAL_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// A text in quotes and short enough for an error; control characters are escaped.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// Refuses NUL, which prompts have no use for and C strings end at.
pub(super) fn check_text(text: &str, path: &str) -> Result<(), ApiError> {
    match text.find('\0') {
        Some(at) => Err(invalid(format!("{path} has a NUL character at byte {at}"))),
        None => Ok(()),
    }
}

impl<'a> Fields<'a> {
    /// The body itself.
    pub(super) fn new(object: &'a Object) -> Self {
        Self {
            object,
            path: String::new(),
        }
    }

    /// An object inside; `path` as errors name it, e.g. `messages[3]`.
    pub(super) fn at(object: &'a Object, path: impl Into<String>) -> Self {
        Self {
            object,
            path: path.into(),
        }
    }

    /// The way to a key, e.g. `stream_options.include_text`.
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The value of a key, unless null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| **value != Value::Null)
    }

    /// All keys with their values.
    pub(super) fn entries(&self) -> &'a Object {
        self.object
    }

    /// Whether a key is given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// An error that names the key.
    pub(super) fn error(&self, key: &str, found: impl std::fmt::Display) -> ApiError {
        let path = self.path_of(key);
        invalid(format!("{path} {found}")).with_param(path)
    }

    fn wrong_type(&self, key: &str, found: &Value, expected: &str) -> ApiError {
        self.error(
            key,
            format_args!("is {}, expected {expected}", found.kind()),
        )
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(found)) => Ok(Some(*found)),
            Some(other) => Err(self.wrong_type(key, other, "true or false")),
        }
    }

    /// An integer in a range. A number with an empty fraction (`64.0`) is one, since some languages
    /// have no other numbers.
    pub(super) fn integer(
        &self,
        key: &str,
        allowed: RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let (low, high) = (allowed.start(), allowed.end());
        let found = match self.get(key) {
            None => return Ok(None),
            Some(Value::Integer(found)) => *found,
            Some(Value::Real(found)) if found.fract() == 0.0 && found.abs() <= REAL_INTEGER_MAX => {
                *found as i128
            }
            Some(Value::Real(found)) => {
                return Err(self.error(
                    key,
                    format_args!("is {found}, expected an integer from {low} to {high}"),
                ));
            }
            Some(other) => return Err(self.wrong_type(key, other, "an integer")),
        };
        match u64::try_from(found) {
            Ok(found) if allowed.contains(&found) => Ok(Some(found)),
            _ => Err(self.error(key, format_args!("is {found}, allowed are {low} to {high}"))),
        }
    }

    /// A number in a range.
    pub(super) fn real(
        &self,
        key: &str,
        allowed: &RangeInclusive<f32>,
    ) -> Result<Option<f32>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => self.real_of(key, value, allowed).map(Some),
        }
    }

    /// A number in a range, already looked up.
    pub(super) fn real_of(
        &self,
        key: &str,
        value: &Value,
        allowed: &RangeInclusive<f32>,
    ) -> Result<f32, ApiError> {
        let found = match value {
            Value::Integer(found) => *found as f64,
            Value::Real(found) => *found,
            other => return Err(self.wrong_type(key, other, "a number")),
        };
        let (low, high) = (*allowed.start(), *allowed.end());
        if found >= low.into() && found <= high.into() {
            Ok(found as f32)
        } else {
            Err(self.error(key, format_args!("is {found}, allowed are {low} to {high}")))
        }
    }

    /// A string without NUL, with this many bytes.
    pub(super) fn text(
        &self,
        key: &str,
        bytes: RangeInclusive<usize>,
    ) -> Result<Option<String>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(found)) => {
                self.checked(key, found, &bytes)?;
                Ok(Some(found.clone()))
            }
            Some(other) => Err(self.wrong_type(key, other, "a string")),
        }
    }

    fn checked(
        &self,
        key: &str,
        text: &str,
        bytes: &RangeInclusive<usize>,
    ) -> Result<(), ApiError> {
        let path = self.path_of(key);
        check_text(text, &path).map_err(|error| error.with_param(path))?;
        if !bytes.contains(&text.len()) {
            let (found, low, high) = (text.len(), bytes.start(), bytes.end());
            return Err(self.error(
                key,
                format_args!("has {found} bytes, allowed are {low} to {high}"),
            ));
        }
        Ok(())
    }

    /// A string, or an array of strings.
    pub(super) fn texts(
        &self,
        key: &str,
        n_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<String>, ApiError> {
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Text(_)) => {
                return Ok(self.text(key, 0..=bytes_max)?.into_iter().collect());
            }
            Some(Value::Array(items)) => items,
            Some(other) => {
                return Err(self.wrong_type(key, other, "a string or an array of strings"));
            }
        };
        if items.len() > n_max {
            let found = items.len();
            return Err(self.error(
                key,
                format_args!("has {found} strings, at most {n_max} are allowed"),
            ));
        }
        let mut texts = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            let key = format!("{key}[{at}]");
            let Value::Text(text) = item else {
                return Err(self.wrong_type(&key, item, "a string"));
            };
            self.checked(&key, text, &(0..=bytes_max))?;
            texts.push(text.clone());
        }
        Ok(texts)
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields::at(object, self.path_of(key)))),
            Some(other) => Err(self.wrong_type(key, other, "an object")),
        }
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong_type(key, other, "an array")),
        }
    }
}

/// Refuses keys that would change the answer and cannot be honoured by this version. Their neutral
/// values pass, since client libraries send them unasked.
pub(super) fn refuse_unserved(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.integer("n", 1..=1)?;
    fields.integer("best_of", 1..=1)?;
    let is_empty = |value: &Value| matches!(value, Value::Array(items) if items.is_empty());
    let is_false = |value: &Value| *value == Value::Bool(false);
    let is_word = |value: &Value, words: &[&str]| matches!(value, Value::Text(word) if words.contains(&word.as_str()));
    for key in [
        "tools",
        "functions",
        "tool_choice",
        "function_call",
        "response_format",
        "json_schema",
        "grammar",
        "logprobs",
        "top_logprobs",
        "echo",
        "suffix",
        "modalities",
        "audio",
    ] {
        let Some(value) = fields.get(key) else {
            continue;
        };
        let is_neutral = match key {
            "tools" | "functions" => is_empty(value),
            "tool_choice" | "function_call" => is_word(value, &["none", "auto"]),
            "response_format" => matches!(value, Value::Object(format)
                if format.get("type").is_some_and(|kind| is_word(kind, &["text"]))),
            "logprobs" | "echo" => is_false(value),
            "top_logprobs" => *value == Value::Integer(0),
            "grammar" | "suffix" => is_word(value, &[""]),
            "modalities" => matches!(value, Value::Array(kinds)
                if kinds.iter().all(|kind| is_word(kind, &["text"]))),
            _ => false,
        };
        if !is_neutral {
            return Err(ApiError::new(
                Code::NotSupported,
                format!("{key} is not supported by this version, leave it out"),
            )
            .with_param(key));
        }
    }
    Ok(())
}
