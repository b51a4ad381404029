//! Facts that hold for any bytes.

use proptest::prelude::*;

use super::*;

/// JSON of any shape, with keys that mean something more often than not.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    use serde_json::Value;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..3).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3.0..3.0_f64).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["user", "system", "tool", "text", "alarm", "7"])
            .prop_map(Value::from),
    ];
    let key = prop_oneof![
        3 => prop::sample::select(vec![
            "messages", "role", "content", "type", "text", "prompt", "model", "temperature", "top_k",
            "top_p", "min_p", "repeat_penalty", "repeat_last_n", "frequency_penalty", "presence_penalty",
            "seed", "stop", "logit_bias", "7", "max_tokens", "max_completion_tokens", "ignore_eos",
            "stream", "stream_options", "include_text", "coalesce_ms", "priority", "deadline_ms",
            "keep_latest", "n", "tools", "name", "tool_call_id",
        ]).prop_map(str::to_owned),
        1 => any::<String>(),
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop::sample::select(Op::ALL.to_vec())
}

/// What the rest of the daemon relies on.
fn assert_checked(request: &Request, limits: &Limits) {
    let sampling = request.sampling(&Defaults::default(), 1);
    assert!((0.0..=2.0).contains(&sampling.temperature));
    assert!((0.0..=1.0).contains(&sampling.top_p) && (0.0..=1.0).contains(&sampling.min_p));
    assert!(
        sampling
            .logit_bias
            .iter()
            .all(|(id, bias)| *id >= 0 && bias.is_finite())
    );
    assert!(sampling.logit_bias.is_sorted_by(|a, b| a.0 < b.0));
    assert!(
        request
            .max_tokens
            .is_none_or(|n| n >= 1 && n <= limits.max_tokens)
    );
    assert!(request.stop.len() <= limits.stop && request.stop.iter().all(|stop| !stop.is_empty()));
    match &request.input {
        Input::Text(text) => assert!(!text.is_empty() && !text.contains('\0')),
        Input::Chat { messages, .. } => {
            let messages: Vec<serde_json::Value> = serde_json::from_str(messages).unwrap();
            assert!(!messages.is_empty());
            assert!(
                messages
                    .iter()
                    .all(|m| m["role"].is_string() && m["content"].is_string())
            );
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_or_refused(op in any_op(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let limits = Limits::default();
        if let Ok(request) = parse(op, &bytes, &limits) {
            assert_checked(&request, &limits);
        }
    }

    #[test]
    fn arbitrary_json_like_text_is_read_or_refused(op in any_op(), text in r#"\{[\{\}\[\]",:0-9a-z\\ ]{0,80}"#) {
        let limits = Limits::default();
        if let Ok(request) = parse(op, text.as_bytes(), &limits) {
            assert_checked(&request, &limits);
        }
    }

    #[test]
    fn arbitrary_values_are_read_or_refused(
        op in any_op(), body in any_json(), keys in prop::collection::btree_map("[a-z_]{1,8}", any_json(), 0..3),
        content in any::<String>()
    ) {
        let mut object = match body {
            serde_json::Value::Object(object) => object,
            _ => serde_json::Map::new(),
        };
        object.extend(keys);
        object.entry("messages").or_insert_with(|| json!([{"role": "user", "content": content}]));
        object.entry("prompt").or_insert_with(|| content.clone().into());
        let limits = Limits::default();
        let bytes = serde_json::to_vec(&object).unwrap();
        if let Ok(request) = parse(op, &bytes, &limits) {
            assert_checked(&request, &limits);
        }
    }

    #[test]
    fn any_text_reaches_the_worker_unchanged(text in "[^\0]{1,200}") {
        let body = json!({"messages": [{"role": "user", "content": &text}]});
        let request = chat(&body).unwrap();
        let messages: serde_json::Value = serde_json::from_str(messages_of(&request)).unwrap();
        prop_assert_eq!(&messages[0]["content"], &json!(&text));
    }
}
