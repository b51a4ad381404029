//! Facts about answers that have a form.

use serde_json::{Value, json};

use super::*;
use crate::wire::tools::Choice;

fn lamp() -> Value {
    json!({"type": "function", "function": {"name": "lamp", "description": "A lamp.", "parameters": {
        "type": "object", "properties": {"zone": {"type": "string"}, "on": {"type": "boolean"}},
    }}})
}

fn with_schema(schema: &Value) -> Result<Request, ApiError> {
    chat_with(
        &json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}}}),
    )
}

#[test]
fn a_schema_arrives_with_its_keys_in_their_order() {
    let body = r#"{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"z":{"minimum":1.0},"a":{"enum":[3,"b",null,true,-2.5]}},"required":["z"]}}}}"#;
    let request = read(Op::Complete, body).unwrap();
    let expected = r#"{"type":"object","properties":{"z":{"minimum":1.0},"a":{"enum":[3,"b",null,true,-2.5]}},"required":["z"]}"#;
    assert_eq!(
        request.constraint,
        Some(Constraint::JsonSchema(expected.to_owned()))
    );
    let object = chat_with(&json!({"response_format": {"type": "json_object"}})).unwrap();
    assert_eq!(
        object.constraint,
        Some(Constraint::JsonSchema(r#"{"type":"object"}"#.to_owned()))
    );
    let grammar = chat_with(&json!({"grammar": "start: \"a\""})).unwrap();
    assert_eq!(
        grammar.constraint,
        Some(Constraint::Lark("start: \"a\"".to_owned()))
    );
}

#[test]
fn tools_arrive_for_the_template_and_for_the_grammar() {
    let request = chat_with(&json!({"tools": [lamp()], "parallel_tool_calls": false})).unwrap();
    let tools = request.tools.unwrap();
    assert_eq!(
        (tools.functions.len(), tools.functions[0].name.as_str()),
        (1, "lamp")
    );
    assert_eq!((tools.choice, tools.parallel), (Choice::Auto, Some(false)));
    assert!(
        tools.functions[0]
            .parameters
            .as_ref()
            .unwrap()
            .contains("zone")
    );
    let Input::Chat {
        tools: Some(shown), ..
    } = request.input
    else {
        panic!("the template is shown the tools")
    };
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown, json!([lamp()]));

    let choice = |choice: Value| {
        let request = chat_with(&json!({"tools": [lamp()], "tool_choice": choice})).unwrap();
        request.tools.map(|tools| tools.choice)
    };
    assert_eq!(choice(json!("required")), Some(Choice::Required));
    assert_eq!(choice(json!("none")), None);
    let named = json!({"type": "function", "function": {"name": "lamp"}});
    assert_eq!(choice(named), Some(Choice::Named("lamp".to_owned())));
}

#[test]
fn calls_and_results_are_messages() {
    let request = chat(&json!({"messages": [
        {"role": "user", "content": "on"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": {"on": true}}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ]}))
    .unwrap();
    let messages: Value = serde_json::from_str(messages_of(&request)).unwrap();
    assert_eq!(
        messages[1],
        json!({"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "lamp", "arguments": "{\"on\":true}"}},
        ]})
    );
    assert_eq!(messages[2]["tool_call_id"], "c1");
}

#[test]
fn what_is_wrong_in_a_form_is_refused_by_its_place() {
    let schema = "response_format.json_schema.schema";
    let deep = |inner: Value| json!({"type": "object", "properties": {"a": {"items": inner}}});
    let patterns: Map<String, Value> = (0..65)
        .map(|n| (format!("p{n}"), json!({"pattern": "a"})))
        .collect();
    for (found, param) in [
        (with_schema(&json!(7)), schema.to_owned()),
        (
            with_schema(&deep(json!({"pattern": "a".repeat(513)}))),
            format!("{schema}.properties.a.items.pattern"),
        ),
        (
            with_schema(&deep(json!({"allOf": vec![json!({}); 17]}))),
            format!("{schema}.properties.a.items.allOf"),
        ),
        (
            with_schema(&deep(json!({"$ref": "http://x/y"}))),
            format!("{schema}.properties.a.items.$ref"),
        ),
        (
            with_schema(&json!({"enum": ["a\0b"]})),
            format!("{schema}.enum.0"),
        ),
        (
            with_schema(&json!({"enum": ["x".repeat(66_000)]})),
            schema.to_owned(),
        ),
        (
            chat_with(&json!({"response_format": {"type": "xml"}})),
            "response_format.type".to_owned(),
        ),
        (
            chat_with(&json!({"response_format": {"type": "json_schema"}})),
            "response_format.json_schema".to_owned(),
        ),
        (
            chat_with(&json!({"tools": [{}]})),
            "tools[0].type".to_owned(),
        ),
        (
            chat_with(&json!({"tools": [lamp(), lamp()]})),
            "tools[1].function.name".to_owned(),
        ),
        (
            chat_with(&json!({"tools": vec![lamp(); 65]})),
            "tools".to_owned(),
        ),
        (
            chat_with(&json!({"tool_choice": "required"})),
            "tool_choice".to_owned(),
        ),
        (
            chat_with(&json!({"tools": [lamp()], "tool_choice": "sometimes"})),
            "tool_choice".to_owned(),
        ),
        (
            chat_with(&json!({"tools": [lamp()], "tool_choice": {"function": {"name": "x"}}})),
            "tool_choice.function.name".to_owned(),
        ),
        (
            chat_with(&json!({"grammar": "start: \"a\"", "stop": "x"})),
            "stop".to_owned(),
        ),
        (
            chat_with(&json!({"grammar": "start: \"a\"", "ignore_eos": true})),
            "ignore_eos".to_owned(),
        ),
        (
            chat_with(
                &json!({"grammar": "start: \"a\"", "response_format": {"type": "json_object"}}),
            ),
            "grammar".to_owned(),
        ),
    ] {
        let (code, at, message) = refused(found);
        assert_eq!((code, at), (Code::InvalidRequest, param), "{message}");
        assert!(message.len() < 1000);
    }
    let crowd = with_schema(&json!({"type": "object", "properties": patterns}));
    assert!(refused(crowd).2.contains("64 allowed"));
    let both = chat_with(&json!({"tools": [lamp()], "response_format": {"type": "json_object"}}));
    assert_eq!(refused(both).0, Code::NotSupported);
    let complete = read(
        Op::Complete,
        &json!({"prompt": "a", "tools": [lamp()]}).to_string(),
    );
    assert_eq!(refused(complete).0, Code::NotSupported);
    let long = with_schema(&json!({("k".repeat(3000)): {"pattern": "a".repeat(600)}}));
    assert!(refused(long).1.len() < 1000);
}

#[test]
fn neutral_forms_are_no_form() {
    let neutral = json!({"response_format": {"type": "text"}, "grammar": "", "tools": [], "tool_choice": "auto", "stop": "x"});
    let request = chat_with(&neutral).unwrap();
    assert_eq!((request.constraint, request.tools), (None, None));
}
