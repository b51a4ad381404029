//! `docs/protocol.md` shows nothing that is not so.

use std::collections::BTreeSet;

use orinoco::contract;
use orinoco::wire::{Code, Limits, Op, PROTOCOL, request};
use serde_json::Value;

use super::judge::{Judge, strict};

const PAGE: &str = include_str!("../../docs/protocol.md");

/// Text of the fenced blocks with this word behind the fence.
fn blocks(word: &str) -> Vec<&'static str> {
    let opening = format!("```{word}\n");
    PAGE.split(opening.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// Rows of the table whose heading begins so, as cells.
fn table(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, rest) = PAGE
        .split_once(&format!("\n| {heading} |"))
        .unwrap_or_else(|| panic!("no table {heading:?}"));
    let rows = rest
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// Words between back quotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A block says by the word behind its fence what it is: `json chat-request`, or `json response` ...
#[test]
fn every_message_shown_is_what_its_schema_says() {
    let schemas = contract::json_schemas();
    let mut shown = BTreeSet::new();
    for (name, schema) in &schemas {
        let judge = match name.ends_with("-request") {
            true => Judge::of(schema, ""),
            false => Judge::of(&strict(schema), ""),
        };
        for block in blocks(&format!("json {name}")) {
            let message: Value = serde_json::from_str(block)
                .unwrap_or_else(|error| panic!("{name}: {error}\n{block}"));
            judge.assert_right(&message, name);
            if let Some(op) = name.strip_suffix("-request").and_then(Op::from_level) {
                assert!(super::is_taken(op, block), "{block}");
            }
            shown.insert(name.as_str());
        }
    }
    let all: BTreeSet<_> = schemas
        .keys()
        .map(String::as_str)
        .filter(|name| *name != "text-request")
        .collect();
    assert_eq!(shown, all, "each message is shown");
    let fences = PAGE.matches("```json").count();
    let judged: usize = schemas
        .keys()
        .map(|name| blocks(&format!("json {name}")).len())
        .sum();
    assert_eq!(fences, judged, "a block names no schema");
}

/// Bodies in shell commands are requests as well.
#[test]
fn every_body_in_a_command_is_taken() {
    let mut taken = 0;
    for block in blocks("sh") {
        for command in block.split("mosquitto_pub ").skip(1) {
            let Some((_, rest)) = command.split_once(" -m '") else {
                continue;
            };
            let body = rest.split('\'').next().unwrap();
            let topic = command.split_once("/req/").unwrap().1;
            let op = Op::from_level(topic.split('/').nth(1).unwrap()).unwrap();
            request::parse(op, body.as_bytes(), &Limits::default())
                .unwrap_or_else(|error| panic!("{error}: {body}"));
            taken += 1;
        }
    }
    assert!(taken >= 4);
}

#[test]
fn the_table_of_topics_is_complete() {
    let document = contract::asyncapi();
    let rows = table("topic");
    let shown: BTreeSet<_> = rows
        .iter()
        .map(|row| quoted(row[0])[0].to_owned())
        .collect();
    for (name, channel) in document["channels"].as_object().unwrap() {
        let address = channel["address"]
            .as_str()
            .unwrap()
            .replace("{root}", "orinoco");
        let address = [("node", "n"), ("user", "u"), ("pool", "p")].iter().fold(
            address,
            |address, (long, short)| {
                address.replace(&format!("{{{long}}}"), &format!("{{{short}}}"))
            },
        );
        assert!(
            shown.contains(&address),
            "{address} is not in the table: {shown:#?}"
        );
        let row = rows
            .iter()
            .find(|row| quoted(row[0])[0] == address)
            .unwrap();
        let operation = &document["operations"][name];
        let mqtt = &operation["bindings"]["mqtt"];
        let direction = match operation["action"].as_str().unwrap() {
            "receive" => "to",
            _ => "from",
        };
        assert!(row[1].starts_with(direction), "{row:?}");
        assert_eq!(row[2], mqtt["qos"].to_string(), "{row:?}");
        assert_eq!(row[3] == "yes", mqtt["retain"] == true, "{row:?}");
    }
}

/// Each key that a body may have has a row, with its bounds.
#[test]
fn the_table_of_keys_is_complete() {
    let schemas = contract::json_schemas();
    let rows = table("key");
    let mut known = BTreeSet::new();
    for name in [
        "chat-request",
        "complete-request",
        "tokenize-request",
        "embed-request",
    ] {
        for (key, schema) in schemas[name]["properties"].as_object().unwrap() {
            known.insert(key.as_str());
            let is_unserved = schema["description"]
                .as_str()
                .unwrap()
                .contains("supported by this version");
            if is_unserved {
                assert!(PAGE.contains(&format!("`{key}`")), "{key} is not named");
                continue;
            }
            let row = rows
                .iter()
                .find(|row| {
                    quoted(row[0])
                        .iter()
                        .any(|name| name.split('.').next() == Some(key))
                })
                .unwrap_or_else(|| panic!("no row for {key}"));
            for bound in [
                "minimum",
                "maximum",
                "minItems",
                "maxItems",
                "maxProperties",
            ] {
                // The longest prompt is the longest payload; 2^64-1 is written with a power.
                let Some(number) = schema.get(bound).filter(|n| n.as_u64() != Some(u64::MAX))
                else {
                    continue;
                };
                let number = number.as_f64().unwrap().to_string();
                let numbers: Vec<_> = row[3]
                    .split(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-')))
                    .collect();
                assert!(
                    numbers.contains(&number.as_str()),
                    "{key}: no {number} in {:?}",
                    row[3]
                );
            }
            for word in schema["enum"].as_array().into_iter().flatten() {
                let word = word.as_str().unwrap_or("null");
                assert!(
                    word == "null" || quoted(row[3]).contains(&word),
                    "{key}: no {word}"
                );
            }
        }
    }
    for row in rows {
        for key in quoted(row[0]) {
            let top = key.split('.').next().unwrap();
            assert!(known.contains(top), "{key} is no key");
        }
    }
}

#[test]
fn the_table_of_codes_is_that_of_the_code() {
    let shown: Vec<(String, String)> = table("code")
        .iter()
        .map(|row| (quoted(row[0])[0].to_owned(), row[1].to_owned()))
        .collect();
    let ours: Vec<_> = Code::ALL
        .iter()
        .map(|code| (code.to_string(), code.status().to_string()))
        .collect();
    assert_eq!(shown, ours);
}

/// Each key that an answer or a document may have is named on the page.
#[test]
fn every_key_of_answers_and_documents_is_named() {
    let bundle = contract::json_schema_bundle();
    for (name, schema) in bundle["$defs"].as_object().unwrap() {
        for key in schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
        {
            let is_named = [
                format!("`{key}`"),
                format!(".{key}`"),
                format!("\"{key}\""),
                format!("].{key}`"),
            ]
            .iter()
            .any(|form| PAGE.contains(form.as_str()));
            assert!(is_named, "{name}.{key} is not on the page");
        }
    }
}

#[test]
fn the_page_is_of_this_version() {
    assert!(PAGE.contains(&format!("`{PROTOCOL}`")), "no `{PROTOCOL}`");
    for file in ["contract/asyncapi.json", "contract/schemas"] {
        assert!(PAGE.contains(&format!("({file})")), "no link to {file}");
    }
}
