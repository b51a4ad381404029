//! The body of a request: first byte the op, the rest the payload.

use orinoco::frames::Input;
use orinoco::wire::request::{Defaults, Limits, parse};
use orinoco::wire::topic::Op;

/// Parses and checks what the daemon relies on.
pub fn check(data: &[u8]) {
    let Some((first, payload)) = data.split_first() else {
        return;
    };
    let op = Op::ALL[usize::from(*first) % Op::ALL.len()];
    let limits = Limits::default();
    let mut request = match parse(op, payload, &limits) {
        Ok(request) => request,
        Err(error) => {
            assert!(error.message.len() < 2048, "a sentence, not the payload");
            assert!((400..600).contains(&error.code.status()));
            assert!(!error.line().contains('\n'));
            return;
        }
    };
    assert_eq!(parse(op, payload, &limits).as_ref(), Ok(&request));
    let defaults = Defaults {
        system_prompt: Some("Be kind.".to_owned()),
        ..Defaults::default()
    };
    request.apply_defaults(&defaults);
    assert!(
        request
            .max_tokens
            .is_some_and(|n| (1..=limits.max_tokens).contains(&n))
    );
    match &request.input {
        Input::Text(text) => assert!(!text.contains('\0')),
        Input::Chat { messages, .. } => {
            let messages: Vec<serde_json::Value> =
                serde_json::from_str(messages).expect("messages are a JSON array");
            assert!((1..=limits.messages + 1).contains(&messages.len()));
            assert!(messages.iter().all(|message| message["role"].is_string()));
        }
    }
    assert!(request.stop.len() <= limits.stop && request.stop.iter().all(|s| !s.is_empty()));
    let sampling = request.sampling(&defaults, 7);
    assert!((0.0..=2.0).contains(&sampling.temperature) && (0.0..=1.0).contains(&sampling.top_p));
    assert!(
        sampling
            .logit_bias
            .iter()
            .all(|(id, bias)| *id >= 0 && bias.is_finite())
    );
}
