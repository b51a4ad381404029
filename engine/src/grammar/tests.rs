use std::time::{Duration, Instant};

use orinoco::frames::CheckSpec;
use serde_json::{Value, json};

use super::check::check;
use super::*;

fn schema(schema: &Value) -> Constraint {
    Constraint::JsonSchema(schema.to_string())
}

fn compiled(constraint: &Constraint) -> Result<Matcher, String> {
    let mut grammars = Grammars::default();
    let job = JobKey(1);
    grammars.compile(job, constraint, Vocabulary::of_bytes)?;
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        if let Some((of, matcher)) = grammars.compiled() {
            assert_eq!(of, job);
            return matcher;
        }
        std::thread::yield_now();
    }
    panic!("no matcher came");
}

fn allowed(matcher: &mut Matcher) -> Result<Vec<usize>, String> {
    let mut logits = [0.0; 257];
    matcher.forbid(&mut logits)?;
    let ids = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| logit.is_finite());
    Ok(ids.map(|(id, _)| id).collect())
}

/// Feeds a text; whether it was taken to its end, and whether it may end there.
fn takes(constraint: &Constraint, text: &str) -> (bool, bool) {
    let mut matcher = compiled(constraint).unwrap();
    for (at, byte) in text.bytes().enumerate() {
        matcher.foresee();
        if !allowed(&mut matcher).unwrap().contains(&usize::from(byte)) {
            return (false, false);
        }
        if matcher.accept(byte.into()).unwrap() {
            return (at + 1 == text.len(), true);
        }
    }
    (true, allowed(&mut matcher).unwrap().contains(&256))
}

#[test]
fn what_a_schema_allows_is_allowed_and_nothing_else() {
    let lamp = schema(&json!({
        "type": "object", "required": ["on", "level"], "additionalProperties": false,
        "properties": {"on": {"type": "boolean"}, "level": {"type": "integer", "minimum": 0, "maximum": 99}}
    }));
    assert_eq!(takes(&lamp, r#"{"on": true, "level": 42}"#), (true, true));
    assert_eq!(takes(&lamp, r#"{"on": true"#), (true, false));
    assert_eq!(takes(&lamp, r#"{"on": true, "level": 100"#), (false, false));
    assert_eq!(
        takes(&lamp, r#"{"level": 42"#),
        (false, false),
        "order is the schema's"
    );
    assert_eq!(takes(&lamp, r#"{"off""#), (false, false));
    assert_eq!(takes(&lamp, "sure"), (false, false));
}

#[test]
fn an_answer_may_end_exactly_where_the_grammar_accepts() {
    let digits = Constraint::Lark("start: /[0-9]{2,3}/".to_owned());
    assert_eq!(takes(&digits, "1"), (true, false));
    assert_eq!(takes(&digits, "12"), (true, true));
    assert_eq!(takes(&digits, "123"), (true, true));
    assert_eq!(
        takes(&digits, "1234"),
        (false, true),
        "it was over before the 4"
    );
}

#[test]
fn a_complete_answer_is_over_by_itself() {
    let word = Constraint::Lark("start: \"yes\"".to_owned());
    let mut matcher = compiled(&word).unwrap();
    let over = Vec::from_iter(
        "yes"
            .bytes()
            .map(|byte| matcher.accept(byte.into()).unwrap()),
    );
    assert_eq!(over, [false, false, true]);
}

#[test]
fn a_failed_matcher_never_gives_a_mask_again() {
    let mut matcher = compiled(&Constraint::Lark("start: \"yes\"".to_owned())).unwrap();
    assert!(matcher.accept(b'n'.into()).is_err());
    assert!(allowed(&mut matcher).is_err());
    matcher.foresee();
    assert!(allowed(&mut matcher).is_err());
    assert!(matcher.accept(b'y'.into()).is_err());
}

#[test]
fn rows_of_logits_that_no_token_has_are_never_chosen() {
    let mut matcher = compiled(&Constraint::Lark("start: /[a-z]+/".to_owned())).unwrap();
    let mut logits = [0.0; 300];
    matcher.forbid(&mut logits).unwrap();
    assert!(
        logits[257..]
            .iter()
            .all(|logit| *logit == f32::NEG_INFINITY)
    );
}

/// What may follow `text`, as characters; `.` stands for the end of the answer.
fn after(constraint: &Constraint, text: &str) -> String {
    let mut matcher = compiled(constraint).unwrap();
    for byte in text.bytes() {
        let may_follow = allowed(&mut matcher).unwrap();
        assert!(
            may_follow.contains(&usize::from(byte)),
            "{text}: {may_follow:?}"
        );
        assert!(!matcher.accept(byte.into()).unwrap(), "{text}");
    }
    let ids = allowed(&mut matcher).unwrap().into_iter();
    ids.map(|id| u8::try_from(id).map_or('$', char::from))
        .collect()
}

#[test]
fn a_number_ends_after_the_digits_that_any_reader_keeps() {
    let reading = schema(&json!({
        "type": "object", "required": ["n", "x"], "additionalProperties": false,
        "properties": {"n": {"type": "integer"}, "x": {"type": "number"}}
    }));
    let whole = format!("{{\"n\": -{}", "1".repeat(18));
    assert_eq!(after(&reading, &whole), ",0123456789");
    let whole = whole + "0";
    assert_eq!(after(&reading, &whole), ",");
    let fraction = format!("{whole}, \"x\": {}.{}", "9".repeat(19), "0".repeat(17));
    assert_eq!(after(&reading, &fraction), "Ee}");
    assert_eq!(after(&reading, &(fraction + "e-99")), "}");
    // Where the answer is the number, its end is the answer's.
    let alone = schema(&json!({"type": ["number", "null"], "minimum": 0, "maximum": 10}));
    assert_eq!(after(&alone, "1.99999999999999999"), "$");
    let free = schema(&json!({"type": "object"}));
    let any = format!("{{\"any\": [{{\"a\\\"1\": {}", "5".repeat(19));
    assert_eq!(after(&free, &any), ",.Ee}");
}

#[test]
fn a_number_has_the_digits_that_its_schema_asks_for() {
    // None of 19 digits is large enough.
    let large = schema(&json!({"type": "integer", "minimum": 1e17, "multipleOf": 5}));
    let odd = format!("1{}3", "0".repeat(17));
    assert_eq!(after(&large, &odd), "05");
    assert_eq!(after(&large, &(odd + "5")), "$");
    // Of zeros there could be any number.
    let positive = schema(&json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}));
    let zeros = format!("0.{}", "0".repeat(17));
    assert_eq!(after(&positive, &zeros), "123456789");
    assert_eq!(after(&positive, &(zeros + "4")), "$");
}

#[test]
fn digits_of_texts_and_of_grammars_are_the_requesters_own() {
    let text = schema(&json!({"type": "string"}));
    let digits = "1".repeat(40);
    assert!(after(&text, &format!("\"{digits}")).contains('7'));
    let lark = Constraint::Lark("start: /[0-9]+/".to_owned());
    assert_eq!(after(&lark, &digits), "0123456789$");
}

#[test]
fn the_arguments_of_a_call_end_as_answers_do() {
    let call = Constraint::Calls {
        lark: "start: \"<\" (a0 | a1) \">\"".to_owned(),
        arguments: vec![
            json!({"type": "integer"}).to_string(),
            json!({"type": "string", "format": "date-time"}).to_string(),
        ],
    };
    assert_eq!(after(&call, &format!("<{}", "7".repeat(19))), ">");
    let at = "<\"2026-11-21T20:09:57.123456789";
    assert!(after(&call, at).contains('5'));
    // An offset has to have its place.
    assert_eq!(after(&call, &format!("{at}01234")), "Zz");
}

#[test]
fn a_format_that_would_go_on_for_ever_ends() {
    for (format, begin) in [
        ("date-time", "2026-11-21T20:09:57."),
        ("time", "20:09:57."),
        ("duration", "P"),
        ("hostname", "a"),
        ("email", "a"),
    ] {
        let constraint = schema(&json!({"type": "string", "format": format}));
        let mut matcher = compiled(&constraint).unwrap();
        for byte in format!("\"{begin}").bytes() {
            assert!(!matcher.accept(byte.into()).unwrap());
        }
        // Digits as long as there may be some, and then what there must be.
        let mut n = 0;
        loop {
            let ids = allowed(&mut matcher).unwrap();
            let digit = ids.iter().find(|id| (48..58).contains(*id));
            let next = *digit.unwrap_or(&ids[0]);
            n += 1;
            if next == 256 || matcher.accept(next as Token).unwrap() {
                break;
            }
            assert!(n < 260, "{format}");
        }
    }
}

#[test]
fn a_grammar_is_compiled_once_for_many_jobs() {
    let constraint = schema(&json!({"type": "array", "items": {"type": "string", "maxLength": 9}}));
    let mut grammars = Grammars::default();
    for n in 0..8 {
        grammars
            .compile(JobKey(n), &constraint, Vocabulary::of_bytes)
            .unwrap();
    }
    let mut matchers = Vec::new();
    let until = Instant::now() + Duration::from_secs(30);
    while matchers.len() < 8 && Instant::now() < until {
        if let Some((_, matcher)) = grammars.compiled() {
            matchers.push(matcher.unwrap());
        }
        std::thread::yield_now();
    }
    // Each stands at the begin, whatever the others did.
    for matcher in &mut matchers {
        assert_eq!(allowed(matcher).unwrap(), [usize::from(b'[')]);
        assert!(!matcher.accept(b'['.into()).unwrap());
    }
    assert!(!grammars.is_compiling());
}

fn spec() -> CheckSpec {
    CheckSpec {
        bytes: 128 << 20,
        // Of the whole process: other tests compute in it as well.
        time_ms: 60_000,
        sandbox: None,
    }
}

#[test]
fn what_cannot_be_kept_is_refused_with_its_place() {
    let found = |constraint: &Value| {
        let refused = check(&spec(), &schema(constraint)).expect_err("must be refused");
        (refused.place.join("."), refused.reason, refused.exceeded)
    };
    let unique = json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true});
    let (place, reason, exceeded) =
        found(&json!({"type": "object", "properties": {"a": {"type": "string"}, "ids": unique}}));
    assert_eq!(
        (place.as_str(), exceeded),
        ("properties.ids", false),
        "{reason}"
    );
    assert!(reason.contains("uniqueItems"), "{reason}");

    let regex = json!({"type": "array", "items": {"type": "string", "pattern": "(?<=a)b"}});
    let (place, reason, _) = found(&regex);
    assert_eq!(place, "items", "{reason}");

    let (place, reason, _) = found(&json!({"$ref": "#/$defs/none"}));
    assert_eq!(place, "", "{reason}");
    check(&spec(), &schema(&json!({"type": "object"}))).unwrap();
    check(
        &spec(),
        &Constraint::Lark("start: \"a\" | start \"b\"".to_owned()),
    )
    .unwrap();
    check(&spec(), &Constraint::Lark("start: nothing".to_owned())).unwrap_err();
}

/// Schemas that are small and dear: each ends within its limit, with a verdict.
#[test]
fn a_hostile_schema_costs_at_most_its_limit() {
    let limits = CheckSpec {
        time_ms: 1000,
        ..spec()
    };
    let all_of = |n: usize| {
        let one = |i: usize| json!({"type": "string", "pattern": format!("^(.*{i}.*){{3}}$")});
        json!({"allOf": Vec::from_iter((0..n).map(one))})
    };
    let mut nested = json!({"type": "string"});
    for i in 0..24 {
        nested = json!({"anyOf": [{"type": "array", "items": nested.clone(), "minItems": i}, {"type": "object", "properties": {"a": nested}}]});
        if nested.to_string().len() > 60_000 {
            break;
        }
    }
    let hostile = [
        ("patterns multiplied", all_of(16)),
        (
            "a large repetition",
            json!({"type": "string", "pattern": "^((a|b|ab){1,999}){1,999}$"}),
        ),
        (
            "ambiguous counts",
            json!({"type": "string", "pattern": "^(.*a.{0,200}){12}$"}),
        ),
        (
            "a huge string",
            json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}),
        ),
        (
            "a huge array",
            json!({"type": "array", "minItems": 1_000_000, "items": {"type": "array", "minItems": 1_000_000}}),
        ),
        ("many branches", nested),
        (
            "numbers",
            json!({"type": "number", "multipleOf": 0.000_001, "minimum": 0.123_456_789, "maximum": 1e300}),
        ),
    ];
    for (what, hostile) in hostile {
        let began = Instant::now();
        let verdict = check(&limits, &schema(&hostile));
        let took = began.elapsed();
        // Its limit is processor time; who gets none waits eight times as long, for each try.
        assert!(
            took < Duration::from_secs(60),
            "{what}: {took:?}, {verdict:?}"
        );
    }
}

/// What docs/protocol.md lists.
#[test]
fn the_keywords_that_are_promised_are_kept() {
    let object = |properties: Value| json!({"type": "object", "properties": properties, "additionalProperties": false});
    for (what, constraint) in [
        ("enum", json!({"enum": [1, "a", null]})),
        ("const", json!({"const": {"a": 1}})),
        ("types", json!({"type": ["string", "null"], "maxLength": 3})),
        ("objects", object(json!({"a": {"type": "string"}}))),
        (
            "patternProperties",
            json!({"type": "object", "patternProperties": {"^t[0-9]$": {"type": "integer"}}, "additionalProperties": false}),
        ),
        (
            "additionalProperties",
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
        ),
        (
            "items",
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}),
        ),
        (
            "prefixItems",
            json!({"type": "array", "prefixItems": [{"type": "boolean"}], "items": false}),
        ),
        (
            "lengths",
            json!({"type": "string", "minLength": 1, "maxLength": 20}),
        ),
        ("pattern", json!({"type": "string", "pattern": "^[a-z]+$"})),
        (
            "minimum, maximum",
            json!({"type": "number", "minimum": -1.5, "maximum": 3}),
        ),
        (
            "exclusive bounds",
            json!({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}),
        ),
        ("multipleOf", json!({"type": "integer", "multipleOf": 5})),
        (
            "anyOf",
            json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
        ),
        (
            "oneOf",
            json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}),
        ),
        (
            "allOf",
            json!({"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 5}]}),
        ),
        (
            "$ref",
            json!({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}}),
        ),
        ("true", json!(true)),
    ] {
        check(&spec(), &schema(&constraint))
            .unwrap_or_else(|refused| panic!("{what}: {refused:?}"));
    }
    for format in [
        "date-time",
        "date",
        "time",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
    ] {
        let constraint = json!({"type": "string", "format": format});
        check(&spec(), &schema(&constraint))
            .unwrap_or_else(|refused| panic!("{format}: {refused:?}"));
    }
    for (what, constraint) in [
        ("uniqueItems", json!({"type": "array", "uniqueItems": true})),
        ("not", json!({"not": {"type": "string"}})),
        (
            "contains",
            json!({"type": "array", "contains": {"type": "integer"}}),
        ),
        (
            "if",
            json!({"if": {"type": "string"}, "then": {"maxLength": 3}}),
        ),
        (
            "look-around",
            json!({"type": "string", "pattern": "^(?=a)b"}),
        ),
        (
            "unknown format",
            json!({"type": "string", "format": "serial-number"}),
        ),
        (
            "oneOf, overlapping",
            json!({"oneOf": [{"type": "integer", "minimum": 1}, {"type": "integer", "maximum": 5}]}),
        ),
        (
            "nothing",
            json!({"type": "integer", "minimum": 5, "maximum": 1}),
        ),
        ("false", json!(false)),
    ] {
        let verdict = check(&spec(), &schema(&constraint));
        assert!(
            verdict.as_ref().is_err_and(|refused| !refused.exceeded),
            "{what}: {verdict:?}"
        );
    }
}
