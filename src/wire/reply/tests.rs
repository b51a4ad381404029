//! Facts about answers. What they look like byte for byte is pinned in `tests/wire_v1.rs`.

use proptest::prelude::*;

use super::*;

fn replier(op: Op, form: Form) -> Replier {
    Replier {
        form,
        op,
        id: RequestId::new("r1").unwrap(),
        model: "smollm2".to_owned(),
        node: Name::new("press-7").unwrap(),
        created_s: 1_790_000_000,
        attempt: 1,
    }
}

fn end(finish: Finish, text: &str) -> End {
    End {
        finish,
        text: text.to_owned(),
        timings: Timings {
            n_prompt: 10,
            n_cached: 4,
            n_output: 3,
            prefill_ms: 20.0,
            decode_ms: 8.0,
            ..Timings::default()
        },
        ttft_ms: 21.0,
        total_ms: 30.0,
        n_chunks: 2,
        resumed: 0,
        parts: Vec::new(),
        session: None,
        energy_j: None,
        logprobs: Vec::new(),
        include_text: false,
        text_sha256: [7; 32],
        truncated: false,
        calls: Vec::new(),
    }
}

fn read(outgoing: &Outgoing) -> body::Answer<'static> {
    serde_json::from_slice(&outgoing.payload).unwrap()
}

fn text_of(outgoing: &Outgoing) -> &str {
    std::str::from_utf8(&outgoing.payload).unwrap()
}

#[test]
fn the_form_follows_op_stream_and_accept() {
    use Form::{Chunks, Text, TextStream, Whole};
    for (op, stream, accept, form) in [
        (Op::Chat, true, None, Chunks),
        (Op::Chat, false, None, Whole),
        (Op::Complete, true, Some("application/json"), Chunks),
        (Op::Chat, true, Some("text/plain"), TextStream),
        (Op::Chat, false, Some("TEXT/plain; charset=utf-8"), Text),
        (Op::Chat, true, Some("image/png, text/plain"), TextStream),
        (Op::Chat, true, Some("application/json, text/plain"), Chunks),
        (Op::Chat, true, Some("*/*"), Chunks),
        (Op::Chat, true, Some(""), Chunks),
        (Op::Text, false, Some("application/json"), Text),
        (Op::TextStream, true, Some("application/json"), TextStream),
        (Op::Tokenize, true, Some("text/plain"), Whole),
    ] {
        assert_eq!(
            Form::of(op, stream, accept),
            form,
            "{op} {stream} {accept:?}"
        );
    }
}

#[test]
fn who_gets_accepted_and_who_gets_pieces() {
    for (op, form, is_accepted, has_pieces) in [
        (Op::Chat, Form::Chunks, true, true),
        (Op::Chat, Form::Whole, true, false),
        (Op::Complete, Form::Chunks, true, true),
        (Op::Tokenize, Form::Whole, false, false),
        (Op::Text, Form::Text, false, false),
        (Op::TextStream, Form::TextStream, false, true),
    ] {
        let replier = replier(op, form);
        assert_eq!(
            replier
                .accepted(&Accepted {
                    queue: 0,
                    eta_ms: None,
                    loading: None,
                })
                .is_some(),
            is_accepted,
            "{op}"
        );
        assert_eq!(replier.piece(1, "a").is_some(), has_pieces, "{op}");
    }
}

#[test]
fn status_is_on_the_first_message_and_on_the_last() {
    let replier = replier(Op::Chat, Form::Chunks);
    let accepted = replier
        .accepted(&Accepted {
            queue: 3,
            eta_ms: None,
            loading: None,
        })
        .unwrap();
    assert_eq!(
        (accepted.status, accepted.seq, accepted.is_final),
        (Some(202), Some(0), false)
    );
    let piece = replier.piece(1, "a").unwrap();
    assert_eq!(
        (piece.status, piece.seq, piece.is_final),
        (None, Some(1), false)
    );
    let last = replier.end(2, &end(Finish::Stop, "a"));
    assert_eq!(
        (last.status, last.seq, last.is_final),
        (Some(200), Some(2), true)
    );
    let last = replier.end(2, &end(Finish::Cancelled, "a"));
    assert_eq!((last.status, last.is_final), (Some(499), true));
    let last = replier.error(1, &ApiError::new(Code::Poison, "x"));
    assert_eq!((last.status, last.is_final), (Some(500), true));
}

#[test]
fn a_bare_stream_is_pieces_and_an_empty_payload() {
    let replier = replier(Op::TextStream, Form::TextStream);
    assert_eq!(text_of(&replier.piece(0, "Hel").unwrap()), "Hel");
    assert_eq!(replier.piece(1, ""), None, "an empty payload is the end");
    let last = replier.end(1, &end(Finish::Length, "Hello"));
    assert_eq!((text_of(&last), last.content_type), ("", "text/plain"));
}

#[test]
fn a_bare_error_is_one_line() {
    let error =
        ApiError::new(Code::QueueFull, "32 jobs wait,\nat most 32\tare allowed").with_retry(500);
    for (op, form) in [(Op::Text, Form::Text), (Op::TextStream, Form::TextStream)] {
        let last = replier(op, form).error(0, &error);
        assert_eq!(
            text_of(&last),
            "!queue_full 32 jobs wait, at most 32 are allowed"
        );
        assert!(last.is_final);
    }
}

#[test]
fn a_bare_answer_called_off_is_an_error_and_not_a_shorter_answer() {
    for (op, form) in [(Op::Text, Form::Text), (Op::TextStream, Form::TextStream)] {
        let last = replier(op, form).end(4, &end(Finish::Cancelled, "Hel"));
        assert_eq!(text_of(&last), "!cancelled called off after 3 tokens");
    }
}

#[test]
fn no_model_can_fake_a_bare_error() {
    let stream = replier(Op::TextStream, Form::TextStream);
    let piece = |text: &str| text_of(&stream.piece(0, text).unwrap()).to_owned();
    assert_eq!(piece("!poison now"), " !poison now");
    assert_eq!(piece("!cancelled"), " !cancelled");
    for harmless in [
        "!",
        "!!",
        "! poison",
        "!poisonous",
        "!Poison",
        "so !poison",
        "!2",
    ] {
        assert_eq!(piece(harmless), harmless);
    }
    let whole = replier(Op::Text, Form::Text).end(0, &end(Finish::Stop, "!no_model\u{e9}"));
    assert_eq!(text_of(&whole), " !no_model\u{e9}");
}

#[test]
fn a_whole_chat_carries_its_text_once() {
    let mut done = end(Finish::Stop, "Hello");
    done.include_text = true;
    let last = replier(Op::Chat, Form::Whole).end(1, &done);
    let body::Answer::Response(response) = read(&last) else {
        panic!("no response: {last:?}");
    };
    assert_eq!(response.object, "chat.completion");
    assert_eq!(
        response.choices[0]
            .message
            .as_ref()
            .unwrap()
            .content
            .as_deref(),
        Some("Hello")
    );
    assert_eq!(response.orinoco.text, None);
    assert_eq!(response.orinoco.n_chunks, None);
}

#[test]
fn a_stream_repeats_its_text_when_asked() {
    let mut done = end(Finish::Stop, "Hello");
    done.include_text = true;
    let last = replier(Op::Chat, Form::Chunks).end(3, &done);
    let body::Answer::Response(response) = read(&last) else {
        panic!("no response: {last:?}");
    };
    assert_eq!(response.orinoco.text.as_deref(), Some("Hello"));
}

#[test]
fn speed_is_absent_where_it_has_no_meaning() {
    let mut done = end(Finish::Stop, "");
    let speed = |done: &End| match read(&replier(Op::Chat, Form::Chunks).end(1, done)) {
        body::Answer::Response(response) => response.orinoco.tok_s,
        other => panic!("no response: {other:?}"),
    };
    assert_eq!(speed(&done), Some(250.0));
    done.timings.n_output = 1;
    assert_eq!(speed(&done), None);
    done.timings = Timings {
        n_output: 5,
        ..Timings::default()
    };
    assert_eq!(speed(&done), None);
}

#[test]
fn guesses_are_told_only_where_some_were_made() {
    let mut done = end(Finish::Stop, "");
    let told = |done: &End| {
        let last = replier(Op::Chat, Form::Chunks).end(1, done);
        let payload: serde_json::Value = serde_json::from_slice(&last.payload).unwrap();
        payload["usage"]["completion_tokens_details"].clone()
    };
    assert!(told(&done).is_null());
    (done.timings.n_guessed, done.timings.n_right) = (12, 9);
    assert_eq!(
        told(&done),
        serde_json::json!({"accepted_prediction_tokens": 9, "rejected_prediction_tokens": 3})
    );
}

#[test]
fn times_that_are_no_numbers_do_not_break_the_answer() {
    let mut done = end(Finish::Stop, "");
    done.ttft_ms = f64::NAN;
    done.total_ms = f64::INFINITY;
    let last = replier(Op::Chat, Form::Chunks).end(1, &done);
    assert!(matches!(read(&last), body::Answer::Response(_)));
}

proptest! {
    #[test]
    fn a_cut_is_a_prefix_and_wastes_less_than_a_character(text in any::<String>(), bytes_max in 0_usize..40) {
        let found = cut(&text, bytes_max);
        prop_assert!(text.starts_with(found) && found.len() <= bytes_max);
        prop_assert!(found.len() == text.len() || found.len() + 4 > bytes_max);
    }

    #[test]
    fn any_text_survives_a_chunk(text in any::<String>(), seq in any::<u64>()) {
        for (op, form) in [(Op::Chat, Form::Chunks), (Op::Complete, Form::Chunks)] {
            let chunk = replier(op, form).piece(seq, &text).unwrap();
            let body::Answer::Response(response) = read(&chunk) else {
                return Err(TestCaseError::fail("no response"));
            };
            let [choice] = response.choices;
            let found = choice.delta.and_then(|delta| delta.content).or(choice.text);
            prop_assert_eq!(found.as_deref(), Some(text.as_str()));
            prop_assert_eq!(response.seq, seq);
        }
    }

    #[test]
    fn any_message_of_an_error_survives(message in any::<String>()) {
        let error = ApiError::new(Code::EngineError, message);
        let last = replier(Op::Chat, Form::Chunks).error(1, &error);
        let body::Answer::Failure(failure) = read(&last) else {
            return Err(TestCaseError::fail("no failure"));
        };
        prop_assert_eq!(failure.error.into_owned(), error.clone());
        prop_assert_eq!(error.line().lines().count(), 1);
    }
}
