//! Keys of a body, read with their ranges. `null` counts as absent, as with OpenAI servers.

use std::ops::RangeInclusive;

use super::{
    Limits, invalid,
    json::{Object, Value},
    keys::{
        Boolean, FlagOrInteger, Inputs, Integer, Key, NameText, Neutral, Real, Stops, Text,
        Unserved, Word,
    },
};
use crate::wire::{
    error::{ApiError, Code},
    topic::Name,
};

/// An object of the body, the way to it for errors, and the bounds of its values.
pub(super) struct Fields<'a> {
    object: &'a Object,
    path: String,
    limits: &'a Limits,
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

/// `alarm, normal and batch`.
pub(super) fn listed(words: &[&str]) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        words => words.concat(),
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
    pub(super) fn new(object: &'a Object, limits: &'a Limits) -> Self {
        Self {
            object,
            path: String::new(),
            limits,
        }
    }

    /// An object inside; `path` as errors name it, e.g. `messages[3]`.
    pub(super) fn inside(&self, object: &'a Object, path: impl Into<String>) -> Self {
        Self {
            object,
            path: path.into(),
            limits: self.limits,
        }
    }

    /// Bounds of the whole body.
    pub(super) fn limits(&self) -> &'a Limits {
        self.limits
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
    pub(super) fn get<T>(&self, key: &Key<T>) -> Option<&'a Value> {
        self.object
            .get(key.name())
            .filter(|value| **value != Value::Null)
    }

    /// All keys with their values.
    pub(super) fn entries(&self) -> &'a Object {
        self.object
    }

    /// Whether a key is given.
    pub(super) fn has<T>(&self, key: &Key<T>) -> bool {
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

    pub(super) fn boolean(&self, key: &Key<Boolean>) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(found)) => Ok(Some(*found)),
            Some(other) => Err(self.wrong_type(key.name(), other, "true or false")),
        }
    }

    pub(super) fn integer(&self, key: &Key<Integer>) -> Result<Option<u64>, ApiError> {
        let allowed = key.takes().0(self.limits);
        let (low, high) = (allowed.start(), allowed.end());
        let name = key.name();
        let found = match self.get(key) {
            None => return Ok(None),
            Some(Value::Integer(found)) => *found,
            Some(Value::Real(found)) if found.fract() == 0.0 && found.abs() <= REAL_INTEGER_MAX => {
                *found as i128
            }
            Some(Value::Real(found)) => {
                return Err(self.error(
                    name,
                    format_args!("is {found}, expected an integer from {low} to {high}"),
                ));
            }
            Some(other) => return Err(self.wrong_type(name, other, "an integer")),
        };
        match u64::try_from(found) {
            Ok(found) if allowed.contains(&found) => Ok(Some(found)),
            _ => Err(self.error(
                name,
                format_args!("is {found}, allowed are {low} to {high}"),
            )),
        }
    }

    /// As [`Self::integer`], for keys whose largest value fits.
    pub(super) fn integer_u32(&self, key: &Key<Integer>) -> Result<Option<u32>, ApiError> {
        let found = self.integer(key)?;
        Ok(found.map(|n| u32::try_from(n).expect("the key's range ends below 2^32")))
    }

    /// `true` as 0, `false` as `None`, or the number.
    pub(super) fn flag_or_integer(
        &self,
        key: &Key<FlagOrInteger>,
    ) -> Result<Option<u32>, ApiError> {
        let (name, high) = (key.name(), key.takes().0);
        let found = match self.get(key) {
            None | Some(Value::Bool(false)) => return Ok(None),
            Some(Value::Bool(true)) => return Ok(Some(0)),
            Some(Value::Integer(found)) => *found,
            Some(Value::Real(found)) if found.fract() == 0.0 && found.abs() <= REAL_INTEGER_MAX => {
                *found as i128
            }
            Some(other) => {
                return Err(self.wrong_type(name, other, "true, false or an integer"));
            }
        };
        match u32::try_from(found) {
            Ok(found) if found <= high => Ok(Some(found)),
            _ => Err(self.error(name, format_args!("is {found}, allowed are 0 to {high}"))),
        }
    }

    pub(super) fn real(&self, key: &Key<Real>) -> Result<Option<f32>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => self.real_of(key.name(), value, &key.takes().0).map(Some),
        }
    }

    /// A number in a range, already looked up.
    pub(super) fn real_of(
        &self,
        key: &str,
        value: &Value,
        allowed: &RangeInclusive<f64>,
    ) -> Result<f32, ApiError> {
        let found = match value {
            Value::Integer(found) => *found as f64,
            Value::Real(found) => *found,
            other => return Err(self.wrong_type(key, other, "a number")),
        };
        if allowed.contains(&found) {
            Ok(found as f32)
        } else {
            let (low, high) = (allowed.start(), allowed.end());
            Err(self.error(key, format_args!("is {found}, allowed are {low} to {high}")))
        }
    }

    pub(super) fn text(&self, key: &Key<Text>) -> Result<Option<String>, ApiError> {
        self.string(key, &key.takes().0(self.limits))
    }

    pub(super) fn word(&self, key: &Key<Word>) -> Result<Option<&'static str>, ApiError> {
        let words = key.takes().0;
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(found)) => match words.iter().find(|word| *word == found) {
                Some(word) => Ok(Some(word)),
                None => {
                    let (found, words) = (quoted(found), listed(words));
                    Err(self.error(key.name(), format_args!("is {found}, allowed are {words}")))
                }
            },
            Some(other) => Err(self.wrong_type(key.name(), other, "a string")),
        }
    }

    pub(super) fn name(&self, key: &Key<NameText>) -> Result<Option<String>, ApiError> {
        let found = self.string(key, &(0..=usize::MAX))?;
        if let Some(text) = &found {
            Name::new(text).map_err(|error| {
                self.error(key.name(), format_args!("is no valid key: {error}"))
            })?;
        }
        Ok(found)
    }

    fn string<T>(
        &self,
        key: &Key<T>,
        bytes: &RangeInclusive<usize>,
    ) -> Result<Option<String>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(found)) => {
                self.checked(key.name(), found, bytes)?;
                Ok(Some(found.clone()))
            }
            Some(other) => Err(self.wrong_type(key.name(), other, "a string")),
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

    /// A string, or an array of strings; required.
    pub(super) fn inputs(&self, key: &Key<Inputs>) -> Result<Vec<String>, ApiError> {
        const EXPECTED: &str = "a string or an array of strings";
        let (name, allowed) = (key.name(), key.takes().0);
        let bytes = 1..=self.limits.payload_bytes;
        let items = match self.get(key) {
            None => return Err(self.error(name, format_args!("is missing, expected {EXPECTED}"))),
            Some(Value::Text(_)) => return Ok(self.string(key, &bytes)?.into_iter().collect()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(self.wrong_type(name, other, EXPECTED)),
        };
        if items.is_empty() || items.len() > allowed {
            let found = items.len();
            return Err(self.error(
                name,
                format_args!("has {found} texts, allowed are 1 to {allowed}"),
            ));
        }
        self.texts(name, items, &bytes)
    }

    /// The strings of an array; an error names the place.
    fn texts(
        &self,
        name: &str,
        items: &[Value],
        bytes: &RangeInclusive<usize>,
    ) -> Result<Vec<String>, ApiError> {
        let mut texts = Vec::with_capacity(items.len());
        for (at, item) in items.iter().enumerate() {
            let name = format!("{name}[{at}]");
            let Value::Text(text) = item else {
                return Err(self.wrong_type(&name, item, "a string"));
            };
            self.checked(&name, text, bytes)?;
            texts.push(text.clone());
        }
        Ok(texts)
    }

    /// A string, or an array of strings.
    pub(super) fn stops(&self, key: &Key<Stops>) -> Result<Vec<String>, ApiError> {
        let (n_max, bytes) = (self.limits.stop, 1..=self.limits.stop_bytes);
        let name = key.name();
        let items = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Text(_)) => {
                return Ok(self.string(key, &bytes)?.into_iter().collect());
            }
            Some(Value::Array(items)) => items,
            Some(other) => {
                return Err(self.wrong_type(name, other, "a string or an array of strings"));
            }
        };
        if items.len() > n_max {
            let found = items.len();
            return Err(self.error(
                name,
                format_args!("has {found} strings, at most {n_max} are allowed"),
            ));
        }
        self.texts(name, items, &bytes)
    }

    pub(super) fn object<T>(&self, key: &Key<T>) -> Result<Option<Fields<'a>>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(self.inside(object, self.path_of(key.name())))),
            Some(other) => Err(self.wrong_type(key.name(), other, "an object")),
        }
    }

    pub(super) fn array<T>(&self, key: &Key<T>) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong_type(key.name(), other, "an array")),
        }
    }
}

/// Refuses keys that would change the answer and cannot be honoured by this version. Their neutral
/// values pass, since client libraries send them unasked.
pub(super) fn refuse_unserved(
    fields: &Fields<'_>,
    unserved: &[Key<Unserved>],
) -> Result<(), ApiError> {
    for key in unserved {
        if fields
            .get(key)
            .is_some_and(|value| !is_neutral(value, &key.takes().0))
        {
            let path = fields.path_of(key.name());
            return Err(ApiError::new(
                Code::NotSupported,
                format!("{path} is not supported by this version, leave it out"),
            )
            .with_param(path));
        }
    }
    Ok(())
}

fn is_neutral(value: &Value, neutral: &Neutral) -> bool {
    let is_word = |value: &Value, words: &[&str]| matches!(value, Value::Text(word) if words.contains(&word.as_str()));
    match neutral {
        Neutral::Null => false,
        Neutral::False => *value == Value::Bool(false),
        Neutral::EmptyText => is_word(value, &[""]),
        Neutral::EmptyArray => matches!(value, Value::Array(items) if items.is_empty()),
        Neutral::Words(words) => is_word(value, words),
        Neutral::TextOnly => matches!(value, Value::Array(kinds)
            if kinds.iter().all(|kind| is_word(kind, &["text"]))),
    }
}
