//! Bodies of requests, made from their schemas: what a schema allows the parser takes, and what one of
//! the two refuses the other refuses, apart from [`what_only_the_parser_knows`].

use orinoco::contract;
use orinoco::wire::{Limits, Op, request};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::judge::Judge;

const OPS: [(Op, &str); 3] = [
    (Op::Chat, "chat-request"),
    (Op::Complete, "complete-request"),
    (Op::Tokenize, "tokenize-request"),
];

fn is_taken(op: Op, body: &Value) -> bool {
    request::parse(op, body.to_string().as_bytes(), &Limits::default()).is_ok()
}

/// Why a body that a schema allows is refused all the same; each stands in `docs/protocol.md` too.
fn what_only_the_parser_knows(body: &Value, schema: &Value) -> Option<&'static str> {
    let differ = |one: &Value, other: &Value| {
        one.is_number() && other.is_number() && one.as_f64() != other.as_f64()
    };
    if differ(&body["max_tokens"], &body["max_completion_tokens"]) {
        return Some("max_tokens and max_completion_tokens contradict one another");
    }
    let max_tokens = body["max_tokens"].as_f64();
    let max_tokens = max_tokens.or(body["max_completion_tokens"].as_f64());
    if body["min_tokens"].as_f64() > max_tokens && max_tokens.is_some() {
        return Some("more tokens at least than at most");
    }
    let tells = body["logprobs"] == true || body["logprobs"].is_number();
    if body["top_logprobs"].as_f64() > Some(0.0) && !tells {
        return Some("top_logprobs without logprobs");
    }
    if body["seed"].is_f64() && body["seed"].as_f64() > Some(9_007_199_254_740_992.0) {
        return Some("an integer written with a fraction is exact up to 2^53 only");
    }
    let is_id = |key: &String| key.parse::<i32>().is_ok();
    if !body["logit_bias"]
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, _)| is_id(key))
    {
        return Some("a token id has 31 bits");
    }
    if let Some(why) = contradicts_its_answer(body) {
        return Some(why);
    }
    has_more_bytes(body, schema).then_some("lengths count bytes, a schema counts characters")
}

/// What cannot be together in one answer.
fn contradicts_its_answer(body: &Value) -> Option<&'static str> {
    let is_given = |value: &Value| value.as_array().is_some_and(|items| !items.is_empty());
    let has_tools = is_given(&body["tools"]);
    let choice = &body["tool_choice"];
    let has_grammar = body["grammar"]
        .as_str()
        .is_some_and(|text| !text.is_empty());
    let has_format =
        body["response_format"].is_object() && body["response_format"]["type"] != "text";
    let must_call = *choice == json!("required") || choice.is_object();
    if has_grammar && has_format {
        return Some("response_format and grammar contradict one another");
    }
    let names = body["tools"].as_array().into_iter().flatten();
    let names = Vec::from_iter(names.map(|tool| &tool["function"]["name"]));
    if choice.is_object() && !names.contains(&&choice["function"]["name"]) {
        return Some("the tool that is named is none of the tools");
    }
    if must_call && !has_tools {
        return Some("a call is asked for, and there are no tools");
    }
    if (1..names.len()).any(|at| names[..at].contains(&names[at])) {
        return Some("two tools have one name");
    }
    if (has_grammar || has_format) && has_tools && *choice != json!("none") {
        return Some("response_format and tools contradict one another");
    }
    let has_form = has_grammar || has_format || must_call;
    let has_stop = is_given(&body["stop"]) || body["stop"].is_string();
    if has_form && (has_stop || body["ignore_eos"] == json!(true)) {
        return Some("stop and ignore_eos contradict an answer that has a form");
    }
    let messages = body["messages"].as_array().into_iter().flatten();
    for message in messages {
        if is_given(&message["tool_calls"]) && message["role"] != "assistant" {
            return Some("only an assistant calls tools");
        }
    }
    None
}

/// Whether a text is longer in bytes than its schema allows in characters.
fn has_more_bytes(value: &Value, schema: &Value) -> bool {
    match value {
        Value::String(text) => {
            let most = schema["maxLength"].as_u64();
            most.is_some_and(|most| text.len() as u64 > most)
        }
        Value::Array(items) => items
            .iter()
            .any(|item| has_more_bytes(item, &schema["items"])),
        Value::Object(object) => object
            .iter()
            .any(|(key, value)| has_more_bytes(value, &schema["properties"][key])),
        _ => false,
    }
}

/// Values that a schema allows. Knows the keywords that our schemas use, and fails on others.
fn allowed_by(schema: &Value) -> BoxedStrategy<Value> {
    let forms = ["oneOf", "anyOf"].map(|keyword| schema[keyword].as_array());
    if let Some(forms) = forms.into_iter().flatten().next() {
        let forms: Vec<_> = forms
            .iter()
            .map(|form| allowed_by(&both(schema, form)))
            .collect();
        return proptest::strategy::Union::new(forms).boxed();
    }
    if let Some(value) = schema.get("const") {
        return Just(value.clone()).boxed();
    }
    if let Some(values) = schema["enum"].as_array() {
        return select(values.clone()).boxed();
    }
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    let of = |kind: &Value| match kind.as_str().expect("each schema has a type") {
        "null" => Just(Value::Null).boxed(),
        "boolean" => any::<bool>().prop_map(Value::from).boxed(),
        "integer" => integers(schema),
        "number" => numbers(schema),
        "string" => texts(schema),
        "array" => arrays(schema),
        "object" => objects(schema),
        kind => panic!("unknown type {kind}"),
    };
    proptest::strategy::Union::new(kinds.iter().map(of)).boxed()
}

/// A schema and one of its alternatives, as one.
fn both(schema: &Value, form: &Value) -> Value {
    let mut schema = schema.clone();
    for keyword in ["oneOf", "anyOf"] {
        schema.as_object_mut().unwrap().remove(keyword);
    }
    schema["required"] = form["required"].clone();
    for (key, narrowed) in form["properties"].as_object().unwrap() {
        for (keyword, value) in narrowed.as_object().unwrap() {
            schema["properties"][key][keyword] = value.clone();
        }
    }
    schema
}

fn integers(schema: &Value) -> BoxedStrategy<Value> {
    let (low, high) = (
        schema["minimum"].as_u64().unwrap(),
        schema["maximum"].as_u64().unwrap(),
    );
    let exact = high.min(1 << 53);
    prop_oneof![
        (low..=high).prop_map(Value::from),
        select(vec![low, high]).prop_map(Value::from),
        // Some languages know no other numbers.
        (low..=exact).prop_map(|n| json!(n as f64)),
    ]
    .boxed()
}

fn numbers(schema: &Value) -> BoxedStrategy<Value> {
    let (low, high) = (
        schema["minimum"].as_f64().unwrap_or(-1e6),
        schema["maximum"].as_f64().unwrap_or(1e6),
    );
    let whole: Vec<i64> = (low.ceil() as i64..=high.floor() as i64).collect();
    prop_oneof![
        (low..=high).prop_map(Value::from),
        select(vec![low, high]).prop_map(Value::from),
        select(whole).prop_map(Value::from),
    ]
    .boxed()
}

fn texts(schema: &Value) -> BoxedStrategy<Value> {
    let pattern = schema["pattern"].as_str().unwrap_or("^$");
    let inner = pattern.trim_start_matches('^').trim_end_matches('$');
    let low = schema["minLength"].as_u64().unwrap_or(0) as usize;
    let high = schema["maxLength"].as_u64().unwrap_or(u64::MAX) as usize;
    let free = prop::string::string_regex(inner).unwrap();
    let fits = move |text: &String| text.len() >= low && text.len() <= high;
    if pattern != r"^[^\x00]*$" {
        return free
            .prop_filter("length", fits)
            .prop_map(Value::from)
            .boxed();
    }
    // As long as may be, and as short.
    let longest = if high <= 1024 { high } else { 40 };
    prop_oneof![
        4 => free.prop_filter("length", fits).prop_map(Value::from),
        1 => select(vec![low, longest]).prop_map(|length| "x".repeat(length).into()),
    ]
    .boxed()
}

fn arrays(schema: &Value) -> BoxedStrategy<Value> {
    let low = schema["minItems"].as_u64().unwrap_or(0) as usize;
    let high = schema["maxItems"].as_u64().unwrap_or(u64::MAX) as usize;
    if high == 0 {
        return Just(json!([])).boxed();
    }
    let few = prop::collection::vec(allowed_by(&schema["items"]), low..=high.min(3));
    few.prop_map(Value::from).boxed()
}

fn objects(schema: &Value) -> BoxedStrategy<Value> {
    if let Some(pattern) = schema["propertyNames"]["pattern"].as_str() {
        let inner = pattern.trim_start_matches('^').trim_end_matches('$');
        let key = prop::string::string_regex(inner).unwrap();
        let value = allowed_by(&schema["additionalProperties"]);
        let entries = prop::collection::btree_map(key, value, 0..4);
        return entries
            .prop_map(|map| Value::Object(map.into_iter().collect()))
            .boxed();
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    let properties = schema["properties"].as_object().unwrap();
    let keys: Vec<_> = properties
        .iter()
        .map(|(key, property)| {
            let value = match required.contains(&json!(key)) {
                true => allowed_by(property).prop_map(Some).boxed(),
                false => prop::option::weighted(0.15, allowed_by(property)).boxed(),
            };
            let key = key.clone();
            value.prop_map(move |value| (key.clone(), value))
        })
        .collect();
    let unknown = prop::option::weighted(0.1, any::<u8>());
    (keys, unknown)
        .prop_map(|(keys, unknown)| {
            let mut object: Map<String, Value> = keys
                .into_iter()
                .filter_map(|(key, value)| Some((key, value?)))
                .collect();
            object.extend(unknown.map(|n| ("of_another_server".to_owned(), json!({"n": [n]}))));
            object.into()
        })
        .boxed()
}

fn any_body() -> impl Strategy<Value = (Op, Value, Value)> {
    let schemas = contract::json_schemas();
    let of = |&(op, name): &(Op, &str)| {
        let schema = schemas[name].clone();
        allowed_by(&schema).prop_map(move |body| (op, schema.clone(), body))
    };
    proptest::strategy::Union::new(OPS.iter().map(of))
}

/// What somebody might put in the place of a value: other kinds, and what lies just outside of ranges.
fn wrong() -> impl Strategy<Value = Value> {
    let numbers = [
        "-1",
        "0",
        "1",
        "2",
        "0.5",
        "2.0",
        "2.0001",
        "-2.01",
        "10.5",
        "100",
        "101",
        "-100.5",
        "1000",
        "1001",
        "4096",
        "4097",
        "32768",
        "32769",
        "64.5",
        "1000000",
        "1000001",
        "86400000",
        "86400001",
        "18446744073709551615",
        "18446744073709551616",
        "9007199254740994.0",
        "1e300",
        "-0.0",
    ];
    let parsed = numbers.map(|text| serde_json::from_str::<Value>(text).unwrap());
    let texts = [
        "",
        "\0",
        "a\0b",
        "text",
        "user",
        "root",
        "alarm",
        "urgent",
        "none",
        "auto",
        "required",
        "7",
        "07",
        "a/b",
        "é",
        "image_url",
        " ",
    ];
    let lengths = [64, 65, 256, 257];
    prop_oneof![
        3 => select(parsed.to_vec()),
        2 => select(texts.map(Value::from).to_vec()),
        1 => select(lengths.map(|n| Value::from("x".repeat(n))).to_vec()),
        1 => select(lengths.map(|n| Value::from("é".repeat(n))).to_vec()),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => select(vec![
            json!([]), json!({}), json!([1]), json!([null]), json!([""]), json!(["text"]), json!(["audio"]),
            json!({"type": "text"}), json!({"type": "json_object"}), json!({"7": 1}), json!({"x": 1}),
            json!({"7": null}), json!({"2147483648": 1}), json!({"include_text": 1}), json!([{}]),
            json!(vec!["s"; 16]), json!(vec!["s"; 17]), json!([{"type": "text", "text": null}]),
            json!([{"type": "text", "text": "a"}]), json!([{"role": "user", "content": "a", "name": ""}]),
        ]),
    ]
}

/// Paths of all values in a body, as JSON pointers.
fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                places(item, &format!("{path}/{at}"), found);
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                places(value, &format!("{path}/{key}"), found);
            }
        }
        _ => {}
    }
}

/// One value of the body replaced, one of its keys removed, or one of the schema's added.
fn spoiled(body: &Value, schema: &Value, wrong: Value, at: prop::sample::Index, how: u8) -> Value {
    let mut body = body.clone();
    let mut all = Vec::new();
    places(&body, "", &mut all);
    // The root stays an object: anything else is plain text.
    let place = all[1..]
        .get(at.index(all.len().max(2) - 1))
        .cloned()
        .unwrap_or_default();
    match how {
        0 => {
            let (parent, key) = place.rsplit_once('/').unwrap_or(("", ""));
            if let Some(Value::Object(object)) = body.pointer_mut(parent) {
                object.remove(key);
            }
        }
        1..=4 => {
            let known: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
            body[known[at.index(known.len())]] = wrong;
        }
        _ => {
            if let Some(value) = body.pointer_mut(&place).filter(|_| !place.is_empty()) {
                *value = wrong;
            }
        }
    }
    body
}

/// The parser takes nothing that the schema refuses, and refuses more only for the known reasons.
fn assert_same(op: Op, schema: &Value, judge: &Judge, body: &Value) -> Result<(), TestCaseError> {
    let (allowed, taken) = (judge.is_right(body), is_taken(op, body));
    let more = what_only_the_parser_knows(body, schema);
    prop_assert!(!taken || allowed, "taken and not allowed, {op}: {body}");
    prop_assert!(
        taken || !allowed || more.is_some(),
        "allowed and refused, {op}: {body}"
    );
    prop_assert!(
        !(taken && more.is_some()),
        "taken in spite of {more:?}, {op}: {body}"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn what_a_schema_allows_is_taken((op, schema, body) in any_body()) {
        let taken = is_taken(op, &body);
        let more = what_only_the_parser_knows(&body, &schema);
        prop_assert_eq!(taken, more.is_none(), "{} {:?}: {}", op, more, body);
    }
}

/// The judges are made once: compiling a schema takes longer than judging a thousand bodies.
#[test]
fn a_spoiled_body_is_refused_by_both_or_by_none() {
    let schemas = contract::json_schemas();
    let judges = OPS.map(|(op, name)| (op, Judge::of(&schemas[name], "")));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 6000,
        ..ProptestConfig::default()
    });
    let (mut refused, mut taken) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let spoil = (any_body(), wrong(), any::<prop::sample::Index>(), 0..10_u8);
    runner
        .run(&spoil, |((op, schema, body), wrong, at, how)| {
            let body = spoiled(&body, &schema, wrong, at, how);
            let (_, judge) = judges.iter().find(|(of, _)| *of == op).unwrap();
            let count = if judge.is_right(&body) {
                &taken
            } else {
                &refused
            };
            count.set(count.get() + 1);
            assert_same(op, &schema, judge, &body)
        })
        .unwrap();
    // Neither side is empty, or the comparison would prove nothing.
    let (refused, taken) = (*refused.get_mut(), *taken.get_mut());
    assert!(
        refused > 1000 && taken > 500,
        "{refused} refused, {taken} taken"
    );
}

#[test]
fn each_difference_is_one() {
    let schemas = contract::json_schemas();
    let chat = |keys: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut()
            .unwrap()
            .extend(keys.as_object().unwrap().clone());
        body
    };
    let judge = Judge::of(&schemas["chat-request"], "");
    for keys in [
        json!({"max_tokens": 1, "max_completion_tokens": 2}),
        json!({"seed": 9_007_199_254_740_994.0}),
        json!({"logit_bias": {"2147483648": 1}}),
        json!({"model": "é".repeat(200)}),
    ] {
        let body = chat(keys);
        assert!(
            judge.is_right(&body) && !is_taken(Op::Chat, &body),
            "{body}"
        );
        assert!(what_only_the_parser_knows(&body, &schemas["chat-request"]).is_some());
    }
    // Nor does a schema know of keys given twice, of depth, and of the number of values.
    let twice = br#"{"messages":[{"role":"user","content":"hi"}],"seed":1,"seed":1}"#;
    assert!(request::parse(Op::Chat, twice, &Limits::default()).is_err());
    let deep = format!("{}1{}", "[".repeat(40), "]".repeat(40));
    let deep = chat(json!({"x": serde_json::from_str::<Value>(&deep).unwrap()}));
    assert!(judge.is_right(&deep) && !is_taken(Op::Chat, &deep));
    let many = chat(json!({"x": vec![1; 20_000]}));
    assert!(judge.is_right(&many) && !is_taken(Op::Chat, &many));
}

#[test]
fn the_node_takes_the_plain_text_that_its_schema_allows() {
    let judge = Judge::of(&contract::json_schemas()["text-request"], "");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 3000,
        ..ProptestConfig::default()
    });
    let blank = select(vec![
        " ", "\n", "\t", "\u{85}", "\u{a0}", "\u{2028}", "\u{3000}", "\u{feff}", "\u{200b}", "\0",
        "a",
    ]);
    let text = prop_oneof![
        any::<String>(),
        prop::collection::vec(blank, 0..4).prop_map(|parts| parts.concat()),
    ];
    runner
        .run(&text, |text| {
            let taken = request::parse(Op::Text, text.as_bytes(), &Limits::default()).is_ok();
            prop_assert_eq!(judge.is_right(&json!(text)), taken, "{:?}", text);
            Ok(())
        })
        .unwrap();
}
