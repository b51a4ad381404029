//! PURE: a schema as it is compiled: with our white space, and with an end for each format that has none.
//!
//! Only narrows: what is allowed here, the schema as it came allows as well.

use serde_json::{Map, Value, json};

/// Keywords whose value is a schema.
pub(super) const ONE: [&str; 3] = ["items", "additionalProperties", "not"];
/// Keywords whose value is an array of schemas.
pub(super) const ARRAYS: [&str; 5] = ["prefixItems", "anyOf", "allOf", "oneOf", "items"];
/// Keywords whose value is an object of schemas.
pub(super) const OBJECTS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];

/// Formats whose grammar goes on for ever, and the most characters of one.
const FORMATS: [(&str, u64); 5] = [
    // To the nanosecond, with an offset.
    ("date-time", 35),
    ("time", 24),
    // Six parts of a few digits.
    ("duration", 32),
    // RFC 1035, section 2.3.4.
    ("hostname", 253),
    // RFC 5321, section 4.5.3.1.1, of the part before the `@`; so neither this part nor a label is too long.
    ("email", 64),
];

/// The schema with our choice of white space: one space where Python's `json.dumps` has one, and none else.
/// That is what models have seen most, it costs the fewest tokens, and none can be made for ever.
pub(super) fn prepared(schema: Value) -> Result<Value, String> {
    let mut schema = match schema {
        Value::Object(_) => schema,
        Value::Bool(true) => Value::Object(Map::new()),
        Value::Bool(false) => return Err("the schema false allows nothing".to_owned()),
        _ => return Err("a schema is an object or a boolean".to_owned()),
    };
    end_formats(&mut schema);
    schema["x-guidance"] =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    Ok(schema)
}

fn end_formats(schema: &mut Value) {
    let Value::Object(object) = schema else {
        return;
    };
    let number = |key: &str| object.get(key).and_then(Value::as_u64);
    let (least, most) = (number("minLength"), number("maxLength"));
    let ends = FORMATS.iter().find(|(name, _)| {
        object.get("format").and_then(Value::as_str) == Some(name)
            && !object.contains_key("enum")
            && !object.contains_key("const")
    });
    if let Some((_, end)) = ends
        && least.is_none_or(|least| least <= *end)
        && most.is_none_or(|most| most > *end)
    {
        object.insert("maxLength".to_owned(), json!(end));
    }
    for (key, value) in object {
        let key = key.as_str();
        match value {
            Value::Object(below) if OBJECTS.contains(&key) => {
                below.values_mut().for_each(end_formats);
            }
            Value::Array(below) if ARRAYS.contains(&key) => below.iter_mut().for_each(end_formats),
            Value::Object(_) if ONE.contains(&key) => end_formats(value),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_end_wherever_a_schema_is_and_nowhere_else() {
        let given = json!({
            "properties": {"format": {"type": "string", "format": "time"}, "at": {"format": "date-time", "maxLength": 20}},
            "items": [{"format": "email", "minLength": 70}, {"format": "email", "maxLength": 300}],
            "additionalProperties": {"anyOf": [{"format": "uuid"}, {"format": "hostname"}]},
            "enum": [{"format": "time"}], "$defs": {"x": {"format": "time", "const": "00:00:00Z"}},
        });
        let mut expected = given.clone();
        expected["properties"]["format"]["maxLength"] = json!(24);
        expected["items"][1]["maxLength"] = json!(64);
        expected["additionalProperties"]["anyOf"][1]["maxLength"] = json!(253);
        let mut prepared = prepared(given).unwrap();
        prepared.as_object_mut().unwrap().remove("x-guidance");
        assert_eq!(prepared, expected);
    }
}
