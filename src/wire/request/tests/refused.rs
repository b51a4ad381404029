//! Facts about requests that are refused.

use super::*;

#[test]
fn wrong_messages_are_named() {
    use Code::{InvalidRequest as Invalid, NotSupported};
    for (messages, code, param) in [
        (json!(null), Invalid, "messages"),
        (json!([]), Invalid, "messages"),
        (json!("hi"), Invalid, "messages"),
        (json!(["hi"]), Invalid, "messages[0]"),
        (json!([{"content": "hi"}]), Invalid, "messages[0].role"),
        (json!([{"role": "user"}]), Invalid, "messages[0].content"),
        (
            json!([{"role": "user", "content": 7}]),
            Invalid,
            "messages[0].content",
        ),
        (
            json!([{"role": "root", "content": "hi"}]),
            Invalid,
            "messages[0].role",
        ),
        (
            json!([{"role": "user", "content": "a\u{0}b"}]),
            Invalid,
            "messages[0].content",
        ),
        (
            json!([{"role": "user", "content": ["hi"]}]),
            Invalid,
            "messages[0].content[0]",
        ),
        (
            json!([{"role": "user", "content": [{"text": "hi"}]}]),
            Invalid,
            "messages[0].content[0].type",
        ),
        (
            json!([{"role": "user", "content": [{"type": "text"}]}]),
            Invalid,
            "messages[0].content[0].text",
        ),
        (
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            NotSupported,
            "messages[0].content[0].type",
        ),
        (
            json!([{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
            Invalid,
            "messages[0].tool_calls[0].function",
        ),
        (
            json!([{"role": "user", "content": "hi", "name": ""}]),
            Invalid,
            "messages[0].name",
        ),
    ] {
        let found = refused(chat(&json!({"messages": messages})));
        assert_eq!(
            (found.0, found.1.as_str()),
            (code, param),
            "{messages}: {}",
            found.2
        );
    }
}

#[test]
fn values_out_of_range_are_named_with_what_is_allowed() {
    for (keys, param, message) in [
        (
            json!({"temperature": 2.5}),
            "temperature",
            "temperature is 2.5, allowed are 0 to 2",
        ),
        (
            json!({"temperature": -1}),
            "temperature",
            "temperature is -1, allowed are 0 to 2",
        ),
        (
            json!({"temperature": "hot"}),
            "temperature",
            "temperature is a string, expected a number",
        ),
        (
            json!({"top_p": 1.01}),
            "top_p",
            "top_p is 1.01, allowed are 0 to 1",
        ),
        (
            json!({"min_p": -0.1}),
            "min_p",
            "min_p is -0.1, allowed are 0 to 1",
        ),
        (
            json!({"top_k": -1}),
            "top_k",
            "top_k is -1, allowed are 0 to 1000000",
        ),
        (
            json!({"repeat_penalty": 0}),
            "repeat_penalty",
            "repeat_penalty is 0, allowed are 0.1 to 10",
        ),
        (
            json!({"repeat_last_n": 5000}),
            "repeat_last_n",
            "repeat_last_n is 5000, allowed are 0 to 4096",
        ),
        (
            json!({"frequency_penalty": 3}),
            "frequency_penalty",
            "frequency_penalty is 3, allowed are -2 to 2",
        ),
        (
            json!({"presence_penalty": true}),
            "presence_penalty",
            "presence_penalty is a boolean, expected a number",
        ),
        (
            json!({"seed": -1}),
            "seed",
            "seed is -1, allowed are 0 to 18446744073709551615",
        ),
        (
            json!({"max_tokens": 0}),
            "max_tokens",
            "max_tokens is 0, allowed are 1 to 32768",
        ),
        (
            json!({"max_tokens": 1e30}),
            "max_tokens",
            "max_tokens is 1000000000000000000000000000000, expected an integer from 1 to 32768",
        ),
        (
            json!({"max_tokens": 1.5}),
            "max_tokens",
            "max_tokens is 1.5, expected an integer from 1 to 32768",
        ),
        (
            json!({"max_tokens": 8, "max_completion_tokens": 9}),
            "max_tokens",
            "max_tokens is 8 and max_completion_tokens is 9, expected one of them",
        ),
        (json!({"n": 2}), "n", "n is 2, allowed are 1 to 1"),
        (
            json!({"stop": 1}),
            "stop",
            "stop is a number, expected a string or an array of strings",
        ),
        (
            json!({"stop": ["a", 1]}),
            "stop[1]",
            "stop[1] is a number, expected a string",
        ),
        (
            json!({"stop": ["a", ""]}),
            "stop[1]",
            "stop[1] has 0 bytes, allowed are 1 to 256",
        ),
        (
            json!({"stop": vec!["a"; 17]}),
            "stop",
            "stop has 17 strings, at most 16 are allowed",
        ),
        (
            json!({"stop": "a".repeat(257)}),
            "stop",
            "stop has 257 bytes, allowed are 1 to 256",
        ),
        (
            json!({"logit_bias": {"x": 1}}),
            "logit_bias",
            "logit_bias has key \"x\", expected a token id",
        ),
        (
            json!({"logit_bias": {"07": 1}}),
            "logit_bias",
            "logit_bias has key \"07\", expected a token id",
        ),
        (
            json!({"logit_bias": {"-7": 1}}),
            "logit_bias",
            "logit_bias has key \"-7\", expected a token id",
        ),
        (
            json!({"logit_bias": {"7": 101}}),
            "logit_bias.7",
            "logit_bias.7 is 101, allowed are -100 to 100",
        ),
        (
            json!({"stream": 1}),
            "stream",
            "stream is a number, expected true or false",
        ),
        (
            json!({"stream_options": {"include_text": "yes"}}),
            "stream_options.include_text",
            "stream_options.include_text is a string, expected true or false",
        ),
        (
            json!({"coalesce_ms": 1001}),
            "coalesce_ms",
            "coalesce_ms is 1001, allowed are 0 to 1000",
        ),
        (
            json!({"priority": "high"}),
            "priority",
            "priority is \"high\", allowed are alarm, normal and batch",
        ),
        (
            json!({"deadline_ms": 0}),
            "deadline_ms",
            "deadline_ms is 0, allowed are 1 to 86400000",
        ),
        (
            json!({"keep_latest": "a/b"}),
            "keep_latest",
            "keep_latest is no valid key: name has '/' at byte 1, allowed are [A-Za-z0-9_.-]",
        ),
        (
            json!({"top_logprobs": 2}),
            "top_logprobs",
            "top_logprobs is 2 and logprobs is not true: it says nothing without",
        ),
        (
            json!({"logprobs": 21}),
            "logprobs",
            "logprobs is 21, allowed are 0 to 20",
        ),
        (
            json!({"logprobs": "yes"}),
            "logprobs",
            "logprobs is a string, expected true, false or an integer",
        ),
        (
            json!({"min_tokens": 9, "max_tokens": 8}),
            "min_tokens",
            "min_tokens is 9, more than max_tokens, which is 8",
        ),
        (
            json!({"model": ""}),
            "model",
            "model has 0 bytes, allowed are 1 to 256",
        ),
    ] {
        let found = refused(chat_with(&keys));
        assert_eq!(
            found,
            (Code::InvalidRequest, param.to_owned(), message.to_owned())
        );
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_and_not_ignored() {
    for keys in [
        json!({"functions": [{}]}),
        json!({"json_schema": {}}),
        json!({"echo": true}),
        json!({"suffix": "end"}),
        json!({"modalities": ["text", "audio"]}),
        json!({"audio": {}}),
    ] {
        let (code, param, _) = refused(chat_with(&keys));
        let key = keys.as_object().unwrap().keys().next().unwrap();
        assert_eq!((code, &param), (Code::NotSupported, key));
    }
    let (code, _, _) = refused(read(Op::Embed, "hi"));
    assert_eq!(code, Code::NotSupported);
}

#[test]
fn a_key_given_twice_is_an_error_at_any_level() {
    for body in [
        r#"{"prompt":"a","prompt":"b"}"#,
        r#"{"prompt":"a","unknown":1,"unknown":1}"#,
        r#"{"prompt":"a","unknown":{"x":[{"y":1,"y":1}]}}"#,
        r#"{"prompt":"a","logit_bias":{"1":1,"1":2}}"#,
        r#"{"prompt":"a","\u0070rompt":"b"}"#,
    ] {
        let (code, _, message) = refused(read(Op::Complete, body));
        assert_eq!(code, Code::InvalidRequest);
        assert!(message.contains("is given twice"), "{message}");
    }
}

#[test]
fn broken_json_is_an_error_that_says_where() {
    for body in [
        "{",
        "{]",
        "{}x",
        r#"{"prompt":"a",}"#,
        r#"{"prompt":"\ud800"}"#,
        r#"{"prompt":1e999}"#,
        "{\"prompt\":\"a\nb\"}",
        r#"{"a":NaN}"#,
    ] {
        let (code, _, message) = refused(read(Op::Complete, body));
        assert_eq!(code, Code::InvalidRequest, "{body}");
        assert!(
            message.contains("line") && message.contains("column"),
            "{message}"
        );
    }
}

#[test]
fn empty_prompts_are_refused() {
    for (op, body) in [
        (Op::Text, ""),
        (Op::Chat, " \n"),
        (Op::Complete, ""),
        (Op::Complete, "{}"),
        (Op::Complete, r#"{"prompt":""}"#),
        (Op::Text, "\u{feff}"),
    ] {
        assert_eq!(
            refused(read(op, body)).0,
            Code::InvalidRequest,
            "{op} {body:?}"
        );
    }
}

#[test]
fn a_chat_with_a_prompt_is_told_which_op_takes_it() {
    let (_, param, message) = refused(read(Op::Chat, r#"{"prompt":"hi"}"#));
    assert_eq!(param, "messages");
    assert_eq!(
        message,
        "messages is missing or empty; prompt belongs to op complete"
    );
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let found = parse(Op::Text, b"abc\xff", &Limits::default());
    assert_eq!(refused(found).2, "payload is not UTF-8 at byte 3");
    assert_eq!(
        refused(read(Op::Text, "a\0b")).2,
        "payload has a NUL character at byte 1"
    );
}

#[test]
fn size_is_checked_before_everything_else() {
    let limits = Limits {
        payload_bytes: 8,
        ..Limits::default()
    };
    let found = refused(parse(
        Op::Text,
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        &limits,
    ));
    assert_eq!(
        found,
        (
            Code::PayloadTooLarge,
            String::new(),
            "payload of 9 bytes, at most 8 are allowed".to_owned()
        )
    );
    assert!(parse(Op::Text, b"12345678", &limits).is_ok());
}

#[test]
fn depth_is_refused_before_parsing_and_strings_do_not_count() {
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth - 1), "]".repeat(depth - 1));
        format!(r#"{{"prompt":"hi","x":{open}{close}}}"#)
    };
    assert!(read(Op::Complete, &nested(32)).is_ok());
    assert!(
        refused(read(Op::Complete, &nested(33)))
            .2
            .contains("32 levels")
    );
    for bomb in [
        "{\"a\":".repeat(20_000),
        format!("{{\"a\":{}", "[".repeat(100_000)),
        "{".repeat(100_000),
    ] {
        let reason = refused(read(Op::Chat, &bomb)).2;
        assert!(reason.contains("32 levels"), "{reason}");
    }
    let quoted = format!(r#"{{"prompt":"\"{}\\"}}"#, "[{".repeat(1000));
    assert!(read(Op::Complete, &quoted).is_ok());
}

#[test]
fn the_number_of_values_is_bounded_before_parsing() {
    let many = |n: usize| format!(r#"{{"prompt":"hi","x":[{}1]}}"#, "1,".repeat(n));
    assert!(read(Op::Complete, &many(16_000)).is_ok());
    assert!(
        refused(read(Op::Complete, &many(17_000)))
            .2
            .contains("16384 values")
    );
}

#[test]
fn hostile_texts_in_errors_are_short_and_escaped() {
    let (_, _, message) = refused(chat_with(&json!({"priority": "\n\u{1b}[31m"})));
    assert!(!message.contains(['\n', '\u{1b}']), "{message:?}");
    let long = json!({"messages": [{"role": "x".repeat(100_000), "content": ""}]});
    assert!(refused(chat(&long)).2.len() < 300);
    let body = format!(r#"{{"{0}":1,"{0}":2}}"#, "k".repeat(100_000));
    assert!(refused(read(Op::Complete, &body)).2.len() < 300);
    let body = format!(
        r#"{{"prompt":"a","logit_bias":{{"{}":1}}}}"#,
        "9".repeat(100_000)
    );
    assert!(refused(read(Op::Complete, &body)).2.len() < 300);
}
