//! Facts about one answer.

use super::*;
use crate::frames::{Finish, Timings};
use crate::wire::error::Code;
use crate::wire::reply::{Accepted, End as Ending, Form, Outgoing, Replier};
use crate::wire::topic::{Name, Op, RequestId};

fn replier(attempt: u32) -> Replier {
    Replier {
        form: Form::Chunks,
        op: Op::Chat,
        id: RequestId::new("a1").unwrap(),
        model: "m".into(),
        node: Name::new("n1").unwrap(),
        created_s: 1,
        attempt,
    }
}

fn accepted(attempt: u32) -> Outgoing {
    replier(attempt)
        .accepted(&Accepted {
            queue: 0,
            eta_ms: None,
            loading: None,
        })
        .unwrap()
}

fn end(attempt: u32, seq: u64, text: &str) -> Outgoing {
    replier(attempt).end(
        seq,
        &Ending {
            finish: Finish::Stop,
            text: text.into(),
            timings: Timings::default(),
            ttft_ms: 1.0,
            total_ms: 2.0,
            n_chunks: seq - 1,
            resumed: 0,
            parts: Vec::new(),
            session: None,
            energy_j: None,
            logprobs: Vec::new(),
            include_text: false,
            text_sha256: Sha256::digest(text).into(),
            truncated: false,
            calls: Vec::new(),
        },
    )
}

fn piece(attempt: u32, seq: u64, text: &str) -> Outgoing {
    replier(attempt).piece(seq, text).unwrap()
}

#[test]
fn an_answer_is_put_together_and_its_digest_checked() {
    let mut receiver = Receiver::default();
    assert_eq!(receiver.hear(&accepted(1).payload), Ok(Heard::Accepted));
    assert_eq!(
        receiver.hear(&piece(1, 1, "Ori").payload),
        Ok(Heard::Text { from: 0 })
    );
    assert_eq!(
        receiver.hear(&piece(1, 2, "noco").payload),
        Ok(Heard::Text { from: 3 })
    );
    assert_eq!(
        receiver.hear(&piece(1, 2, "noco").payload),
        Ok(Heard::Repeat)
    );
    assert_eq!(receiver.hear(&end(1, 3, "Orinoco").payload), Ok(Heard::End));
    assert_eq!(
        receiver.hear(&end(1, 3, "Orinoco").payload),
        Ok(Heard::Repeat)
    );
    assert_eq!(receiver.text(), "Orinoco");
}

#[test]
fn a_higher_attempt_starts_the_text_anew_and_a_lower_one_is_void() {
    let mut receiver = Receiver::default();
    for message in [accepted(1), piece(1, 1, "old")] {
        receiver.hear(&message.payload).unwrap();
    }
    assert_eq!(receiver.hear(&accepted(2).payload), Ok(Heard::StartedOver));
    assert_eq!(
        receiver.hear(&piece(1, 2, "late").payload),
        Ok(Heard::Repeat)
    );
    receiver.hear(&piece(2, 1, "new").payload).unwrap();
    assert_eq!(receiver.hear(&end(2, 2, "new").payload), Ok(Heard::End));
    assert_eq!((receiver.text(), receiver.attempt()), ("new", 2));
}

#[test]
fn gaps_wrong_digests_and_second_finals_are_errors() {
    let mut receiver = Receiver::default();
    receiver.hear(&accepted(1).payload).unwrap();
    assert_eq!(
        receiver.hear(&piece(1, 2, "b").payload),
        Err(HearError::Gap {
            expected: 1,
            found: 2
        })
    );
    receiver.hear(&piece(1, 1, "a").payload).unwrap();
    assert!(matches!(
        receiver.hear(&end(1, 2, "b").payload),
        Err(HearError::Digest { .. })
    ));
    assert_eq!(receiver.hear(&end(1, 2, "a").payload), Ok(Heard::End));
    let other = replier(1).error(2, &ApiError::new(Code::EngineError, "x"));
    assert_eq!(receiver.hear(&other.payload), Err(HearError::SecondFinal));
}

#[test]
fn an_error_may_come_in_place_of_anything() {
    let mut receiver = Receiver::default();
    receiver.hear(&accepted(1).payload).unwrap();
    receiver
        .hear(
            &replier(1)
                .error(1, &ApiError::new(Code::EngineError, "gone"))
                .payload,
        )
        .unwrap();
    assert_eq!(
        receiver.end().unwrap().outcome.as_ref().unwrap_err().code,
        Code::EngineError
    );
}

/// It used to throw the text away and forget the attempt, although it was an error (found by fuzzing).
#[test]
fn a_gap_in_a_new_attempt_changes_nothing() {
    let mut receiver = Receiver::default();
    receiver.hear(&accepted(1).payload).unwrap();
    receiver.hear(&piece(1, 1, "a").payload).unwrap();
    let heard = receiver.hear(&piece(2, 5, "z").payload);
    assert!(matches!(heard, Err(HearError::Gap { .. })), "{heard:?}");
    assert_eq!((receiver.attempt(), receiver.text()), (1, "a"));
    let heard = receiver.hear(&accepted(2).payload);
    assert_eq!(heard, Ok(Heard::StartedOver));
    assert_eq!((receiver.attempt(), receiver.text()), (2, ""));
}

/// One answer as it arrives, and what becomes of it: the same file holds the receiver of the Node-RED
/// nodes (`node-red/lib/receiver.js`) to these rules.
#[derive(serde::Deserialize)]
struct Play {
    name: String,
    pool: bool,
    hear: Vec<serde_json::Value>,
    heard: Vec<String>,
    text: String,
    end: String,
}

#[test]
fn the_plays_shared_with_other_languages_end_as_they_say() {
    let plays: Vec<Play> =
        serde_json::from_str(include_str!("../../tests/wire/plays.json")).unwrap();
    for play in plays {
        let mut receiver = if play.pool {
            Receiver::of_pool()
        } else {
            Receiver::default()
        };
        let heard: Vec<&str> = play
            .hear
            .iter()
            .map(
                |message| match receiver.hear(message.to_string().as_bytes()) {
                    Ok(Heard::Refused(_)) => "refused",
                    Ok(Heard::OtherNode { .. }) => "other_node",
                    Ok(Heard::Accepted) => "accepted",
                    Ok(Heard::Text { .. }) => "text",
                    Ok(Heard::StartedOver) => "started_over",
                    Ok(Heard::End) => "end",
                    Ok(Heard::Repeat) => "repeat",
                    Err(HearError::Gap { .. }) => "gap",
                    Err(HearError::Digest { .. }) => "digest",
                    Err(HearError::Malformed { .. }) => "malformed",
                    Err(HearError::SecondFinal) => "second_final",
                },
            )
            .collect();
        assert_eq!(heard, play.heard, "{}", play.name);
        assert_eq!(receiver.text(), play.text, "{}", play.name);
        let end = match &receiver.end().expect("each play ends").outcome {
            Ok(finished) => finished.finish_reason.clone(),
            Err(error) => format!("error {}", error.code.as_str()),
        };
        assert_eq!(end, play.end, "{}", play.name);
    }
}
