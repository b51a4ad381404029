//! The body of a request: first byte the op, the rest the payload; and what becomes of it with the node's templates.

use orinoco::frames::Input;
use orinoco::wire::error::ApiError;
use orinoco::wire::request::template::{Kind, Line, Template, Templates, Var, Without};
use orinoco::wire::request::{Beside, Defaults, Limits, parse};
use orinoco::wire::topic::Op;

/// One of each kind.
fn templates() -> Templates {
    let var = |(word, kind): (&str, Kind), without| Var {
        name: word.to_owned(),
        kind,
        bytes_max: 40,
        without,
        line: Line::named(word),
    };
    let optional = Kind::ALL.map(|kind| var(kind, Without::NoLine));
    let full = Template {
        system: Some("Explain.".to_owned()),
        user: "This:".to_owned(),
        vars: optional.to_vec(),
        max_tokens: Some(9),
        schema: None,
    };
    let strict = Template {
        system: None,
        vars: vec![
            var(Kind::ALL[3], Without::Refused),
            var(Kind::ALL[0], Without::Default("x".to_owned())),
        ],
        schema: Some(r#"{"type":"object"}"#.to_owned()),
        ..full.clone()
    };
    Templates([("a".to_owned(), full), ("b".to_owned(), strict)].into())
}

fn check_error(error: &ApiError) {
    assert!(error.message.len() < 2048, "a sentence, not the payload");
    assert!((400..600).contains(&error.code.status()));
    assert!(!error.line().contains('\n'));
}

/// Parses and checks what the daemon relies on.
pub fn check(data: &[u8]) {
    let Some((first, payload)) = data.split_first() else {
        return;
    };
    let op = Op::ALL[usize::from(*first) % Op::ALL.len()];
    let limits = Limits::default();
    let mut request = match parse(op, payload, &limits) {
        Ok(request) => request,
        Err(error) => return check_error(&error),
    };
    let mut again = parse(op, payload, &limits).expect("as before");
    assert_eq!(again, request);
    if let Err(error) = request.fill(&templates()) {
        return check_error(&error);
    }
    // What was kept is what it was, whatever templates there are later.
    let mut beside = Beside::default();
    beside.keep(&request);
    let kept = Beside::from_bytes(&beside.to_bytes().unwrap_or_default());
    again.add(&kept).expect("nothing was said beside it");
    again.fill(&Templates::default()).expect("it was filled in");
    assert_eq!(again, request);
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
