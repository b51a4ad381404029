//! JSON of a body: bounds by one pass over the bytes, then a tree in which no key stands twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::{Limits, invalid};
use crate::wire::error::ApiError;

/// A JSON value. Objects keep each key once.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// Any integer that 64 bits hold.
    Integer(i128),
    /// Finite, as JSON has no other.
    Real(f64),
    Text(String),
    Array(Vec<Value>),
    Object(Object),
}

/// A JSON object: its entries in the order in which they came, since a model writes the keys of a schema in
/// the schema's order; each key once.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Object {
    entries: Vec<(String, Value)>,
    /// Places of the entries, by key.
    sorted: Vec<u32>,
}

impl Object {
    /// The error is a key that stands twice.
    fn new(entries: Vec<(String, Value)>) -> Result<Self, String> {
        let mut sorted = Vec::from_iter(0..entries.len() as u32);
        let key = |at: &u32| entries[*at as usize].0.as_str();
        sorted.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        match sorted
            .windows(2)
            .find(|pair| key(&pair[0]) == key(&pair[1]))
        {
            Some(pair) => Err(key(&pair[0]).to_owned()),
            None => Ok(Self { entries, sorted }),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let entry = |at: &u32| &self.entries[*at as usize];
        let found = self
            .sorted
            .binary_search_by(|at| entry(at).0.as_str().cmp(key));
        found.ok().map(|at| &entry(&self.sorted[at]).1)
    }

    /// In their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Integer(value) => serializer.serialize_i128(*value),
            Self::Real(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Array(items) => serializer.collect_seq(items),
            Self::Object(object) => serializer.collect_map(object.iter()),
        }
    }
}

impl Value {
    /// What it is, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Real(_) => "a number",
            Self::Text(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

/// Refuses bodies that nest too deep or hold too many values, without building anything.
///
/// Counts brackets and commas outside strings; what is not JSON at all is left to [`parse`].
pub(super) fn check_bounds(text: &str, limits: &Limits) -> Result<(), ApiError> {
    let (mut depth, mut values) = (0_usize, 1_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                values += 1;
                if depth > limits.depth {
                    let allowed = limits.depth;
                    return Err(invalid(format!(
                        "JSON nests deeper than the {allowed} levels allowed"
                    )));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
    }
    if values > limits.values {
        let allowed = limits.values;
        return Err(invalid(format!(
            "JSON holds more than the {allowed} values allowed"
        )));
    }
    Ok(())
}

/// The one object that `text` must be.
pub(super) fn parse(text: &str) -> Result<Object, ApiError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(invalid(format!(
            "body is {}, expected an object",
            other.kind()
        ))),
        Err(error) => Err(invalid(format!("body is no valid JSON: {error}"))),
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, found: bool) -> Result<Value, E> {
        Ok(Value::Bool(found))
    }

    fn visit_i64<E>(self, found: i64) -> Result<Value, E> {
        Ok(Value::Integer(found.into()))
    }

    fn visit_u64<E>(self, found: u64) -> Result<Value, E> {
        Ok(Value::Integer(found.into()))
    }

    fn visit_f64<E>(self, found: f64) -> Result<Value, E> {
        Ok(Value::Real(found))
    }

    fn visit_str<E>(self, found: &str) -> Result<Value, E> {
        Ok(Value::Text(found.to_owned()))
    }

    fn visit_string<E>(self, found: String) -> Result<Value, E> {
        Ok(Value::Text(found))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            object.push(entry);
        }
        let object = Object::new(object).map_err(|key| {
            let key = super::fields::quoted(&key);
            serde::de::Error::custom(format_args!("key {key} is given twice"))
        })?;
        Ok(Value::Object(object))
    }
}
