//! Facts about requests.

use serde_json::{Map, json};

use super::*;

mod answers;
mod properties;
mod refused;

fn read(op: Op, body: &str) -> Result<Request, ApiError> {
    parse(op, body.as_bytes(), &Limits::default())
}

fn chat(body: &serde_json::Value) -> Result<Request, ApiError> {
    read(Op::Chat, &body.to_string())
}

/// A chat with one message and these keys.
fn chat_with(keys: &serde_json::Value) -> Result<Request, ApiError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let object = body.as_object_mut().unwrap();
    object.extend(keys.as_object().unwrap().clone());
    chat(&body)
}

fn refused(found: Result<Request, ApiError>) -> (Code, String, String) {
    let error = found.expect_err("must be refused");
    (error.code, error.param.unwrap_or_default(), error.message)
}

fn messages_of(request: &Request) -> &str {
    match &request.input {
        Input::Chat {
            messages,
            tools: None,
        } => messages,
        other => panic!("no chat without tools: {other:?}"),
    }
}

fn user_says(text: &str) -> Input {
    Input::Chat {
        messages: format!(r#"[{{"role":"user","content":{}}}]"#, json!(text)),
        tools: None,
    }
}

#[test]
fn every_key_of_a_chat_arrives() {
    let found = chat_with(&json!({
        "model": "qwen3-4b", "temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1,
        "repeat_penalty": 1.1, "repeat_last_n": 32, "frequency_penalty": -0.5, "presence_penalty": 1,
        "seed": u64::MAX, "stop": ["\n\n", "END"], "logit_bias": {"20": 1.5, "3": -100},
        "max_tokens": 64, "ignore_eos": true, "stream": false, "stream_options": {"include_text": true},
        "coalesce_ms": 0, "priority": "alarm", "deadline_ms": 5000, "keep_latest": "line-3", "n": 1,
        "user": "ignored", "unknown": {"deep": [1, {}]}
    }));
    let expected = Request {
        op: Op::Chat,
        model: Some("qwen3-4b".to_owned()),
        input: user_says("hi"),
        sampling: SamplingOverrides {
            temperature: Some(0.5),
            top_k: Some(20),
            top_p: Some(0.9),
            min_p: Some(0.1),
            repeat_penalty: Some(1.1),
            repeat_last_n: Some(32),
            frequency_penalty: Some(-0.5),
            presence_penalty: Some(1.0),
            seed: Some(u64::MAX),
            logit_bias: vec![(3, -100.0), (20, 1.5)],
        },
        stop: vec!["\n\n".to_owned(), "END".to_owned()],
        max_tokens: Some(64),
        min_tokens: 0,
        ignore_eos: true,
        logprobs: None,
        constraint: None,
        tools: None,
        stream: false,
        include_text: true,
        coalesce_ms: Some(0),
        priority: Some(Priority::Alarm),
        deadline_ms: Some(5000),
        keep_latest: Some("line-3".to_owned()),
        session: None,
        keeps: Keeps::No,
        template: None,
        filled: None,
    };
    assert_eq!(found, Ok(expected));
}

#[test]
fn null_counts_as_absent() {
    let all_null = json!({
        "model": null, "temperature": null, "stop": null, "logit_bias": null, "max_tokens": null,
        "stream": null, "stream_options": null, "priority": null, "n": null, "tools": null,
        "response_format": null, "logprobs": null
    });
    assert_eq!(chat_with(&all_null), chat_with(&json!({})));
}

#[test]
fn plain_text_is_a_message_or_a_prompt() {
    for op in [Op::Chat, Op::Text, Op::TextStream] {
        assert_eq!(
            read(op, "hi \"you\"").unwrap().input,
            user_says("hi \"you\""),
            "{op}"
        );
    }
    for op in [Op::Complete, Op::Tokenize] {
        assert_eq!(
            read(op, " [1]").unwrap().input,
            Input::Text(" [1]".to_owned()),
            "{op}"
        );
    }
}

#[test]
fn text_ops_never_read_json() {
    let body = r#"{"messages": 1, "messages": 2"#;
    assert_eq!(read(Op::Text, body).unwrap().input, user_says(body));
}

#[test]
fn a_byte_order_mark_hides_no_json() {
    let found = read(
        Op::Chat,
        "\u{feff} \r\n{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]}",
    );
    assert_eq!(found.unwrap().input, user_says("hi"));
}

#[test]
fn chat_complete_and_text_stream_come_in_pieces_unless_told() {
    let streams = |op, body| read(op, body).unwrap().stream;
    assert!(streams(Op::Chat, "hi"));
    assert!(streams(Op::Complete, r#"{"prompt":"hi"}"#));
    assert!(streams(Op::TextStream, "hi"));
    assert!(!streams(Op::Text, "hi"));
    assert!(!streams(Op::Tokenize, "hi"));
    assert!(!streams(Op::Complete, r#"{"prompt":"hi","stream":false}"#));
}

#[test]
fn tokenize_takes_a_prompt_or_messages_but_not_both() {
    let prompt = read(Op::Tokenize, r#"{"prompt":"hi"}"#).unwrap();
    assert_eq!(prompt.input, Input::Text("hi".to_owned()));
    let messages = r#""messages":[{"role":"user","content":"hi"}]"#;
    assert_eq!(
        read(Op::Tokenize, &format!("{{{messages}}}"))
            .unwrap()
            .input,
        user_says("hi")
    );
    let (code, param, _) = refused(read(
        Op::Tokenize,
        &format!("{{\"prompt\":\"a\",{messages}}}"),
    ));
    assert_eq!((code, param.as_str()), (Code::InvalidRequest, "prompt"));
}

#[test]
fn messages_reach_the_worker_in_one_form() {
    let found = chat(&json!({"messages": [
        {"content": "Be brief.", "role": "developer", "extra": 1},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "name": "anna"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "tool", "content": "7 bar", "tool_call_id": "c1"},
    ]}))
    .unwrap();
    assert_eq!(
        messages_of(&found),
        concat!(
            r#"[{"role":"system","content":"Be brief."},"#,
            r#"{"role":"user","content":"one\ntwo","name":"anna"},"#,
            r#"{"role":"assistant","content":""},"#,
            r#"{"role":"tool","content":"7 bar","tool_call_id":"c1"}]"#
        )
    );
}

#[test]
fn an_integer_with_an_empty_fraction_is_an_integer() {
    assert_eq!(
        chat_with(&json!({"max_tokens": 64.0})).unwrap().max_tokens,
        Some(64)
    );
    assert_eq!(
        chat_with(&json!({"max_completion_tokens": 9}))
            .unwrap()
            .max_tokens,
        Some(9)
    );
}

#[test]
fn neutral_values_of_client_libraries_pass() {
    let neutral = json!({
        "tools": [], "tool_choice": "none", "functions": [], "function_call": "auto",
        "response_format": {"type": "text"}, "logprobs": false, "top_logprobs": 0, "echo": false,
        "suffix": "", "grammar": "", "modalities": ["text"], "best_of": 1
    });
    assert_eq!(chat_with(&neutral), chat_with(&json!({})));
}

#[test]
fn defaults_fill_what_a_request_leaves_open() {
    let defaults = Defaults {
        system_prompt: Some("Be \"brief\".".to_owned()),
        max_tokens: 99,
        model: Some("small".to_owned()),
        ..Defaults::default()
    };
    let mut open = read(Op::Chat, "hi").unwrap();
    open.apply_defaults(&defaults);
    assert_eq!(
        messages_of(&open),
        r#"[{"role":"system","content":"Be \"brief\"."},{"role":"user","content":"hi"}]"#
    );
    assert_eq!(
        (open.max_tokens, open.model.as_deref()),
        (Some(99), Some("small"))
    );

    let own = json!({"messages": [{"role": "user", "content": "a"}, {"role": "developer", "content": "b"}], "max_tokens": 5, "model": "big"});
    let mut own = chat(&own).unwrap();
    let before = own.clone();
    own.apply_defaults(&defaults);
    assert_eq!(own, before);

    let mut prompt = read(Op::Complete, "hi").unwrap();
    prompt.apply_defaults(&defaults);
    assert_eq!(prompt.input, Input::Text("hi".to_owned()));
}

#[test]
fn the_requests_sampling_wins_over_the_defaults() {
    let request = chat_with(&json!({"temperature": 0, "seed": 7, "logit_bias": {"1": 2}})).unwrap();
    let found = request.sampling(&Defaults::default(), 42);
    let expected = Sampling {
        temperature: 0.0,
        seed: 7,
        logit_bias: vec![(1, 2.0)],
        ..sampling::builtin()
    };
    assert_eq!(found, expected);
    let silent = read(Op::Chat, "hi")
        .unwrap()
        .sampling(&Defaults::default(), 42);
    assert_eq!(
        silent,
        Sampling {
            seed: 42,
            ..sampling::builtin()
        }
    );
}

#[test]
fn configured_defaults_may_be_partial_and_are_checked() {
    let found: Defaults =
        toml::from_str("max_tokens = 9\n[sampling]\ntemperature = 0.2\ntop_k = 5").unwrap();
    let expected = Defaults {
        max_tokens: 9,
        sampling: Sampling {
            temperature: 0.2,
            top_k: 5,
            ..sampling::builtin()
        },
        ..Defaults::default()
    };
    assert_eq!(found, expected);
    let written = toml::to_string(&found).unwrap();
    assert_eq!(toml::from_str::<Defaults>(&written).unwrap(), found);

    for bad in [
        "temperature = nan",
        "temperature = inf",
        "top_p = 2.0",
        "top_k = -1",
        "top_k = 2000000",
        "repeat_last_n = 5000",
        "temprature = 1.0",
    ] {
        assert!(
            toml::from_str::<Defaults>(&format!("[sampling]\n{bad}")).is_err(),
            "{bad}"
        );
    }
}

/// 0.1 has no exact f32, so a range kept in f32 began a little above it.
#[test]
fn the_ends_of_a_range_are_inside_it() {
    for keys in [
        json!({"repeat_penalty": 0.1}),
        json!({"repeat_penalty": 10}),
        json!({"temperature": 0}),
        json!({"temperature": 2.0}),
        json!({"top_logprobs": 0.0}),
    ] {
        assert!(chat_with(&keys).is_ok(), "{keys}");
    }
}

#[test]
fn logprobs_are_a_flag_with_a_number_beside_it_or_the_number_itself() {
    let asked = |keys: serde_json::Value| chat_with(&keys).unwrap().logprobs;
    assert_eq!(asked(json!({})), None);
    assert_eq!(asked(json!({"logprobs": true})), Some(0));
    assert_eq!(
        asked(json!({"logprobs": true, "top_logprobs": 20})),
        Some(20)
    );
    assert_eq!(asked(json!({"logprobs": 5})), Some(5));
    assert_eq!(asked(json!({"logprobs": 0.0})), Some(0));
}
