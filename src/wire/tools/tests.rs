use proptest::prelude::*;

use super::*;
use crate::frames::{Constraint, ToolSyntax};

const SYNTAXES: [ToolSyntax; 4] = [
    ToolSyntax::Hermes,
    ToolSyntax::Llama3,
    ToolSyntax::Mistral,
    ToolSyntax::Generic,
];

fn parser(syntax: ToolSyntax) -> Parser {
    Parser::new(syntax, ["lamp", "get_weather"].map(str::to_owned))
}

fn read(syntax: ToolSyntax, text: &str) -> (String, Vec<(String, String)>) {
    let answer = Answer::of(parser(syntax), text);
    (answer.content, answer.calls)
}

fn calls(calls: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, arguments): &(&str, &str)| ((*name).to_owned(), (*arguments).to_owned());
    calls.iter().map(owned).collect()
}

#[test]
fn each_syntax_is_read() {
    let (on, oslo) = (r#"{"on": true}"#, r#"{"city": "Oslo }\" ]"}"#);
    let both = calls(&[("lamp", on), ("get_weather", oslo)]);
    for (syntax, text) in [
        (
            ToolSyntax::Hermes,
            format!(
                "<tool_call>\n{{\"name\": \"lamp\", \"arguments\": {on}}}\n</tool_call>\n<tool_call>{{\"arguments\": {oslo}, \"name\": \"get_weather\"}}</tool_call>\n"
            ),
        ),
        (
            ToolSyntax::Llama3,
            format!(
                "<|python_tag|>{{\"name\": \"lamp\", \"parameters\": {on}}}; {{\"name\": \"get_weather\", \"parameters\": {oslo}}}"
            ),
        ),
        (
            ToolSyntax::Mistral,
            format!(
                "[TOOL_CALLS][{{\"name\": \"lamp\", \"arguments\": {on}, \"id\": \"a1b2c3d4e\"}}, {{\"name\": \"get_weather\", \"arguments\": {oslo}}}]"
            ),
        ),
        (
            ToolSyntax::Generic,
            format!(
                "{{\"tool_calls\": [{{\"name\": \"lamp\", \"arguments\": {on}}}, {{\"name\": \"get_weather\", \"arguments\": {oslo}}}]}}\n"
            ),
        ),
    ] {
        assert_eq!(
            read(syntax, &text),
            (String::new(), both.clone()),
            "{syntax:?}"
        );
    }
}

#[test]
fn content_beside_a_call_is_kept_without_the_white_space_between() {
    let text =
        "Let me see.\n\n<tool_call>\n{\"name\": \"lamp\", \"arguments\": {}}\n</tool_call>\nDone?";
    assert_eq!(
        read(ToolSyntax::Hermes, text),
        ("Let me see.Done?".to_owned(), calls(&[("lamp", "{}")]))
    );
}

#[test]
fn what_is_no_call_is_content_to_the_last_byte() {
    for (syntax, text) in [
        (ToolSyntax::Hermes, "A <tool_call> is a tag."),
        (
            ToolSyntax::Hermes,
            "<tool_call>{\"name\": \"rm\", \"arguments\": {}}</tool_call>",
        ),
        (ToolSyntax::Hermes, "<tool_call>{\"name\": \"lamp\", \"arg"),
        (
            ToolSyntax::Hermes,
            "<tool_call>{\"name\": \"lamp\", \"arguments\": 7}",
        ),
        (ToolSyntax::Llama3, "{\"name\": \"lamp\", \"age\": 3}"),
        (
            ToolSyntax::Llama3,
            "{\"name\": \"Bob\", \"parameters\": {}}",
        ),
        (
            ToolSyntax::Llama3,
            "The lamp {\"name\": \"lamp\", \"parameters\": {}}",
        ),
        (ToolSyntax::Mistral, "[TOOL_CALLS] no"),
        (ToolSyntax::Mistral, "[TOOL_CALLS][]"),
        (ToolSyntax::Generic, "{\"tool_calls\": 7}"),
        (ToolSyntax::Generic, "{\"answer\": 7}"),
        (ToolSyntax::Generic, " plain text "),
    ] {
        assert_eq!(
            read(syntax, text),
            (text.to_owned(), Vec::new()),
            "{syntax:?}"
        );
    }
}

#[test]
fn arguments_leave_as_they_come() {
    let mut parser = parser(ToolSyntax::Hermes);
    let mut parts = Vec::new();
    parser.push(
        "<tool_call>\n{\"name\": \"lamp\", \"arguments\": {\"o",
        &mut parts,
    );
    let begun = [
        Part::Call {
            name: "lamp".to_owned(),
        },
        Part::Arguments("{\"o".to_owned()),
    ];
    assert_eq!(parts, begun);
    assert_eq!((parser.held_bytes(), parser.n_calls()), (0, 1));
    parts.clear();
    parser.push("n\": tr", &mut parts);
    assert_eq!(parts, [Part::Arguments("n\": tr".to_owned())]);
}

#[test]
fn ids_are_nine_letters_and_digits_and_differ() {
    let ids = [("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0)];
    let ids = Vec::from_iter(ids.map(|(id, attempt, index)| call_id(id, attempt, index)));
    for id in &ids {
        assert!(
            id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()),
            "{id}"
        );
        assert_eq!(ids.iter().filter(|other| *other == id).count(), 1);
    }
    assert_eq!(ids[0], call_id("a", 1, 0));
}

fn tools(choice: Choice, parallel: Option<bool>) -> Tools {
    let function = |name: &str| Function {
        name: name.to_owned(),
        parameters: Some(r#"{"type":"object","properties":{"on":{"type":"boolean"}}}"#.to_owned()),
    };
    Tools {
        functions: vec![function("lamp"), function("get_weather")],
        choice,
        parallel,
    }
}

#[test]
fn a_grammar_is_made_only_for_calls_that_must_be() {
    for syntax in SYNTAXES {
        assert_eq!(call(&tools(Choice::Auto, None), syntax), None);
        let Some(Constraint::Calls {
            lark: named,
            arguments,
        }) = call(&tools(Choice::Named("lamp".to_owned()), None), syntax)
        else {
            panic!("a named tool has a grammar");
        };
        assert_eq!(arguments.len(), 1);
        assert!(named.contains("lamp") && !named.contains("get_weather"));
        assert!(!named.contains("{0,"), "one call: {named}");
    }
    let Some(Constraint::Calls {
        lark: required,
        arguments,
    }) = call(&tools(Choice::Required, None), ToolSyntax::Hermes)
    else {
        panic!("required calls have a grammar");
    };
    assert_eq!(arguments.len(), 2);
    assert!(required.contains("one: f0 | f1") && required.contains("{0,7}"));
}

/// Texts with much of what calls are made of.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<tool_call>".to_owned()),
        Just("</tool_call>".to_owned()),
        Just("[TOOL_CALLS]".to_owned()),
        Just("<|python_tag|>".to_owned()),
        Just("{\"tool_calls\": [".to_owned()),
        Just("{\"name\": \"lamp\", \"arguments\": {\"a\": [1, \"}\"]}}".to_owned()),
        Just("{\"name\": \"lamp\", \"parameters\": {}}".to_owned()),
        Just("{\"parameters\": {\"x\": \"\\\"\"}, \"name\": \"get_weather\"}".to_owned()),
        Just("{\"name\": \"lamp\", \"arg".to_owned()),
        Just("{\"name\": \"other\", \"arguments\": {}}".to_owned()),
        "[\\[\\]{}<>,;:\"a-z\\\\ \n]{0,5}",
        "[é€]{0,2}",
    ];
    prop::collection::vec(piece, 0..7).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn the_cut_does_not_matter(text in texts(), which in prop::sample::select(SYNTAXES.to_vec()), cuts in prop::collection::vec(1_usize..9, 1..20)) {
        let whole = Answer::of(parser(which), &text);
        let mut parser = parser(which);
        let (mut answer, mut parts) = (Answer::default(), Vec::new());
        let chars = Vec::from_iter(text.chars());
        let (mut at, mut n) = (0, 0);
        while at < chars.len() {
            let end = (at + cuts[n % cuts.len()]).min(chars.len());
            let piece = String::from_iter(&chars[at..end]);
            parser.push(&piece, &mut parts);
            prop_assert!(parser.held_bytes() <= text.len());
            prop_assert!(text.is_char_boundary(text.len() - parser.held_bytes().min(text.len())) || end < chars.len());
            answer.add(&std::mem::take(&mut parts));
            (at, n) = (end, n + 1);
        }
        parser.finish(&mut parts);
        answer.add(&parts);
        prop_assert_eq!(answer, whole);
    }

    #[test]
    fn a_call_is_always_of_a_tool_and_text_without_calls_is_whole(text in texts(), which in prop::sample::select(SYNTAXES.to_vec())) {
        let answer = Answer::of(parser(which), &text);
        for (name, _) in &answer.calls {
            prop_assert!(name == "lamp" || name == "get_weather");
        }
        if answer.calls.is_empty() && which != ToolSyntax::Llama3 {
            prop_assert_eq!(&answer.content, &text);
        }
        // Nothing is made up: each byte of content was written.
        prop_assert!(answer.content.len() <= text.len());
    }

    #[test]
    fn good_calls_come_back_as_they_were(
        arguments in prop::collection::vec(("[a-z]{1,5}", any::<String>()), 0..4),
        which in prop::sample::select(SYNTAXES.to_vec()), before in "[A-Za-z .]{0,12}",
    ) {
        let map: serde_json::Map<_, _> = arguments.into_iter().map(|(key, value)| (key, value.into())).collect();
        let arguments = serde_json::Value::Object(map).to_string();
        let text = match which {
            ToolSyntax::Hermes => format!("{before}<tool_call>\n{{\"name\": \"lamp\", \"arguments\": {arguments}}}\n</tool_call>"),
            ToolSyntax::Mistral => format!("{before}[TOOL_CALLS][{{\"name\": \"lamp\", \"arguments\": {arguments}}}]"),
            ToolSyntax::Llama3 => format!("{{\"name\": \"lamp\", \"parameters\": {arguments}}}"),
            ToolSyntax::Generic => format!("{{\"tool_calls\": [{{\"name\": \"lamp\", \"arguments\": {arguments}}}]}}"),
        };
        let answer = Answer::of(parser(which), &text);
        prop_assert_eq!(answer.calls, vec![("lamp".to_owned(), arguments)]);
        if matches!(which, ToolSyntax::Hermes | ToolSyntax::Mistral) {
            prop_assert_eq!(answer.content.as_str(), before.trim_end());
        }
    }
}
