//! Answers under schemas and grammars with a real model: whatever it would have said, they validate.

use std::io::Write as _;

use orinoco::frames::{Constraint, Finish, Job, Resume, Sampling};
use serde_json::{Value, json};

use super::common::{GEMMA, SMOLLM, chat, real_spec};
use super::{run_jobs, tokenized, with_decoder};

/// Name, what is asked, schema. The first ten are keywords of the JSON-Schema-Test-Suite (draft 2020-12), the
/// others payloads of devices.
fn schemas() -> Vec<(&'static str, &'static str, Value)> {
    let closed = |required: &[&str], properties: Value| json!({"type": "object", "required": required, "additionalProperties": false, "properties": properties});
    vec![
        (
            "type, enum, const",
            "Pick.",
            json!({"type": "object", "required": ["a", "b", "c"], "properties": {
            "a": {"enum": [1, "two", null, [3], {"four": 4}]}, "b": {"const": {"x": [true]}}, "c": {"type": ["boolean", "null"]},
        }, "additionalProperties": false}),
        ),
        (
            "minLength, maxLength, pattern",
            "Name a part.",
            closed(
                &["id", "note"],
                json!({
                    "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"}, "note": {"type": "string", "minLength": 3, "maxLength": 20},
                }),
            ),
        ),
        (
            "minimum, exclusiveMaximum, multipleOf",
            "Count.",
            closed(
                &["n", "x", "m"],
                json!({
                    "n": {"type": "integer", "minimum": -3, "maximum": 1000}, "x": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
                    "m": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 500},
                }),
            ),
        ),
        (
            "items, minItems, maxItems",
            "List numbers.",
            json!({"type": "array", "minItems": 2, "maxItems": 5, "items": {"type": "integer", "minimum": 0, "maximum": 99}}),
        ),
        (
            "prefixItems",
            "A pair.",
            json!({"type": "array", "prefixItems": [{"type": "string", "maxLength": 8}, {"type": "integer", "minimum": 0, "maximum": 9}], "items": false, "minItems": 2}),
        ),
        (
            "additionalProperties of a schema",
            "Levels of tanks.",
            json!({"type": "object", "required": ["t1"], "properties": {"t1": {"type": "integer", "minimum": 0, "maximum": 100}}, "additionalProperties": false}),
        ),
        (
            "anyOf",
            "Either.",
            json!({"anyOf": [closed(&["ok"], json!({"ok": {"const": true}})), closed(&["error"], json!({"error": {"type": "string", "maxLength": 16}}))]}),
        ),
        (
            "oneOf, disjoint",
            "One.",
            json!({"oneOf": [{"type": "integer", "minimum": 0, "maximum": 99}, {"type": "string", "maxLength": 10}, {"type": "null"}]}),
        ),
        (
            "allOf",
            "Both.",
            json!({"allOf": [
                {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "minimum": 1}}},
                {"type": "object", "required": ["b"], "properties": {"a": {"type": "integer", "maximum": 9}, "b": {"type": "boolean"}}, "additionalProperties": false},
            ]}),
        ),
        (
            "$ref, $defs, recursion",
            "A tree.",
            json!({"$ref": "#/$defs/node", "$defs": {
                "node": closed(&["v", "l"], json!({"v": {"type": "integer", "minimum": 0, "maximum": 9}, "l": {"$ref": "#/$defs/leaves"}})),
                "leaves": {"type": "array", "maxItems": 2, "items": closed(&["v"], json!({"v": {"type": "boolean"}}))},
            }}),
        ),
        (
            "thermostat",
            "Set the living room to 21 degrees.",
            closed(
                &["mode", "setpoint", "fan"],
                json!({
                    "mode": {"enum": ["off", "heat", "cool", "auto"]}, "setpoint": {"type": "number", "minimum": 5, "maximum": 35}, "fan": {"type": "boolean"},
                }),
            ),
        ),
        (
            "Modbus request",
            "Read three registers of unit 5.",
            closed(
                &["unit", "function", "address", "count"],
                json!({
                    "unit": {"type": "integer", "minimum": 1, "maximum": 247}, "function": {"enum": [1, 2, 3, 4]},
                    "address": {"type": "integer", "minimum": 0, "maximum": 65535}, "count": {"type": "integer", "minimum": 1, "maximum": 125},
                }),
            ),
        ),
        (
            "alarm",
            "The pump is too hot.",
            closed(
                &["severity", "source", "text"],
                json!({
                    "severity": {"enum": ["info", "warning", "critical"]}, "source": {"type": "string", "pattern": "^[a-z0-9_]{1,12}$"},
                    "text": {"type": "string", "maxLength": 40},
                }),
            ),
        ),
        (
            "position",
            "Where is the truck?",
            closed(
                &["lat", "lon", "fix"],
                json!({
                    "lat": {"type": "number", "minimum": -90, "maximum": 90}, "lon": {"type": "number", "minimum": -180, "maximum": 180},
                    "fix": {"enum": ["none", "2d", "3d"]},
                }),
            ),
        ),
        (
            "time of a reading",
            "When was it?",
            closed(
                &["at", "value"],
                json!({
                    "at": {"type": "string", "format": "date-time"}, "value": {"type": ["number", "null"], "minimum": 0, "maximum": 10},
                }),
            ),
        ),
        (
            "light command",
            "Make it warm and dim.",
            closed(
                &["state", "brightness", "color"],
                json!({
                    "state": {"enum": ["ON", "OFF", "TOGGLE"]}, "brightness": {"type": "integer", "minimum": 0, "maximum": 254},
                    "color": closed(&["x", "y"], json!({"x": {"type": "number", "minimum": 0, "maximum": 1}, "y": {"type": "number", "minimum": 0, "maximum": 1}})),
                }),
            ),
        ),
        (
            "CAN frame",
            "Send a frame.",
            closed(
                &["id", "data"],
                json!({
                    "id": {"type": "string", "pattern": "^0x[0-9A-F]{3}$"},
                    "data": {"type": "array", "minItems": 1, "maxItems": 8, "items": {"type": "integer", "minimum": 0, "maximum": 255}},
                }),
            ),
        ),
        (
            "meter",
            "Report the meter.",
            closed(
                &["serial", "kwh", "tariffs"],
                json!({
                    "serial": {"type": "string", "pattern": "^[0-9]{8}$"}, "kwh": {"type": "number", "minimum": 0, "maximum": 999_999},
                    "tariffs": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"enum": ["day", "night"]}},
                }),
            ),
        ),
        (
            "work order",
            "The belt slips. What is to be done?",
            closed(
                &["action", "parts", "minutes"],
                json!({
                    "action": {"type": "string", "minLength": 1, "maxLength": 30}, "minutes": {"type": "integer", "minimum": 1, "maximum": 480},
                    "parts": {"type": "array", "maxItems": 3, "items": closed(&["name", "n"], json!({"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 1, "maximum": 9}}))},
                }),
            ),
        ),
        (
            "network of a gateway",
            "Its address?",
            closed(
                &["ip", "mac", "up"],
                json!({
                    "ip": {"type": "string", "format": "ipv4"}, "mac": {"type": "string", "pattern": "^([0-9a-f]{2}:){5}[0-9a-f]{2}$"}, "up": {"type": "boolean"},
                }),
            ),
        ),
    ]
}

fn constrained(key: u64, ask: &str, schema: &Value, temperature: f32) -> Job {
    Job {
        constraint: Some(Constraint::JsonSchema(schema.to_string())),
        sampling: Sampling {
            temperature,
            top_k: 40,
            top_p: 0.95,
            seed: key,
            ..orinoco_engine::scripted::greedy()
        },
        ..chat(key, ask, 400)
    }
}

/// The schema, formats included.
struct Judge(boon::Schemas, boon::SchemaIndex);

impl Judge {
    fn of(schema: &Value) -> Self {
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.enable_format_assertions();
        compiler
            .add_resource("http://judge/schema", schema.clone())
            .unwrap();
        let index = compiler
            .compile("http://judge/schema", &mut schemas)
            .unwrap();
        Self(schemas, index)
    }

    fn is_right(&self, value: &Value) -> bool {
        self.0.validate(value, self.1).is_ok()
    }
}

/// Where the answers are put down for a second judge, if anywhere (scripts/test.sh --full).
fn record() -> Option<std::fs::File> {
    let path = std::env::var_os("ORINOCO_ANSWERS")?;
    let opened = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    Some(opened.unwrap())
}

/// Of the schemas those at which answers fail first, for a test of seconds.
const HARD: [&str; 7] = [
    "minimum, exclusiveMaximum, multipleOf",
    "oneOf, disjoint",
    "allOf",
    "$ref, $defs, recursion",
    "time of a reading",
    "work order",
    "network of a gateway",
];

/// `n` answers under each schema that is `wanted`.
fn all_validate(name: &str, n: u64, wanted: impl Fn(&str) -> bool) {
    let spec = real_spec(name);
    let (mut n_answers, mut n_schemas, mut record) = (0, 0, record());
    with_decoder(&spec, |decoder, loaded| {
        for (what, ask, schema) in schemas() {
            if !wanted(what) {
                continue;
            }
            n_schemas += 1;
            let judge = Judge::of(&schema);
            let jobs = (0..n).map(|seed| {
                // The best token always, as drawn as is usual, and wilder than anybody would.
                let temperature = [0.0, 0.8, 1.5][(seed % 3) as usize];
                constrained(seed, ask, &schema, temperature)
            });
            for done in run_jobs(decoder, &spec, &loaded, &Vec::from_iter(jobs)) {
                assert_eq!(done.end, Ok(Finish::Stop), "{what}: {}", done.text);
                let value: Value = serde_json::from_str(&done.text)
                    .unwrap_or_else(|error| panic!("{what}: {error}: {}", done.text));
                assert!(judge.is_right(&value), "{what}: {}", done.text);
                if let Some(file) = &mut record {
                    writeln!(file, "{}", json!({"schema": schema, "text": done.text})).unwrap();
                }
                n_answers += 1;
            }
        }
    });
    println!("{name}: {n_answers} answers under {n_schemas} schemas validate");
}

#[test]
fn answers_under_the_hard_schemas_validate() {
    all_validate(SMOLLM, 2, |what| HARD.contains(&what));
}

#[test]
#[ignore = "minutes; scripts/test.sh --full runs it"]
fn a_thousand_answers_under_twenty_schemas_validate() {
    all_validate(SMOLLM, 50, |_| true);
    all_validate(GEMMA, 5, |_| true);
}

#[test]
fn a_constrained_stream_resumes_to_the_same_text() {
    let spec = real_spec(SMOLLM);
    let (_, ask, schema) = schemas().remove(18);
    with_decoder(&spec, |decoder, loaded| {
        let whole = constrained(3, ask, &schema, 0.0);
        let first = run_jobs(decoder, &spec, &loaded, std::slice::from_ref(&whole)).remove(0);
        for at in [1, first.ids.len() / 2, first.ids.len() - 1] {
            let short = Job {
                max_tokens: at as u32,
                ..whole.clone()
            };
            let cut = run_jobs(decoder, &spec, &loaded, std::slice::from_ref(&short)).remove(0);
            assert_eq!(cut.end, Ok(Finish::Length));
            let prompt = orinoco::frames::Input::Chat {
                messages: format!("[{{\"role\":\"user\",\"content\":{}}}]", json!(ask)),
                tools: None,
            };
            let prompt_ids = tokenized(decoder, &spec, &loaded, &[prompt]).remove(0);
            let rest = Job {
                resume: Some(Resume {
                    prompt_ids,
                    output_ids: cut.ids.clone(),
                    text_bytes: cut.text.len() as u64,
                }),
                ..whole.clone()
            };
            let rest = run_jobs(decoder, &spec, &loaded, &[rest]).remove(0);
            assert_eq!(rest.end, Ok(Finish::Stop));
            let text = cut.text + &rest.text;
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(Judge::of(&schema).is_right(&value), "{text}");
        }
    });
}
