//! PURE: how a receiver that follows the contract puts one answer together.
//!
//! Used by `orinoco ask`, the benchmarks and the tests, and to be read by whoever writes a client. The
//! rules: messages of a lower attempt are void; a higher attempt starts the text anew; within an attempt
//! a seq that was seen is a repeat, a seq that is skipped is a gap; the first final ends the answer, a
//! further one must be the same bytes; the final's SHA-256 is that of the text put together here.

use serde_json::from_slice;
use sha2::{Digest, Sha256};

use crate::wire::error::ApiError;
use crate::wire::reply::body::{Answer, Orinoco, Response, Usage};

/// One answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Receiver {
    attempt: u32,
    seq_next: u64,
    text: String,
    end: Option<End>,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// The final as it came.
    pub payload: Vec<u8>,
    /// How it ended, or the error.
    pub outcome: Result<Finished, ApiError>,
}

/// What a good final says.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// `stop`, `length` or `cancelled`.
    pub finish_reason: String,
    /// Counts.
    pub usage: Option<Usage>,
    /// Timings and the like.
    pub details: Orinoco<'static>,
    /// The model that answered.
    pub model: String,
}

/// What one message meant.
#[derive(Debug, PartialEq)]
pub enum Heard {
    /// The request is safe on the node's disk.
    Accepted,
    /// This text is new; it is the end of [`Receiver::text`] from this byte on.
    Text {
        /// Where the new text begins.
        from: usize,
    },
    /// The node started again: the text so far is void.
    StartedOver,
    /// The answer is complete.
    End,
    /// Seen before.
    Repeat,
}

/// A message that breaks the contract.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HearError {
    /// Not one of the known bodies.
    #[error("message of {length} bytes is no answer: {reason}")]
    Malformed {
        /// Its size.
        length: usize,
        /// The parser's reason.
        reason: String,
    },
    /// Messages are missing.
    #[error("message {found} came where {expected} was due: text is missing")]
    Gap {
        /// The seq that was due.
        expected: u64,
        /// The seq that came.
        found: u64,
    },
    /// Two finals that differ.
    #[error("a second final differs from the first")]
    SecondFinal,
    /// The text is not what the node sent.
    #[error("the text received has SHA-256 {calculated}, the final says {expected}")]
    Digest {
        /// Of the text put together here.
        calculated: String,
        /// In the final.
        expected: String,
    },
}

impl Receiver {
    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The attempt that the text belongs to; 0 before anything came.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The end, once it came.
    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// Takes the next message of this answer's topic.
    ///
    /// # Errors
    /// [`HearError`] when the message breaks the contract; the state is then as before it.
    pub fn hear(&mut self, payload: &[u8]) -> Result<Heard, HearError> {
        let answer: Answer<'static> =
            from_slice(payload).map_err(|error| HearError::Malformed {
                length: payload.len(),
                reason: error.to_string(),
            })?;
        let (attempt, seq, is_final) = match &answer {
            Answer::Failure(failure) => (failure.attempt, failure.seq, true),
            Answer::Tokens(tokens) => (tokens.attempt, tokens.seq, true),
            Answer::Response(response) => (response.attempt, response.seq, response.is_final),
        };
        if let Some(end) = &self.end {
            let second = is_final && attempt >= self.attempt && end.payload != payload;
            return if second {
                Err(HearError::SecondFinal)
            } else {
                Ok(Heard::Repeat)
            };
        }
        if attempt < self.attempt {
            return Ok(Heard::Repeat);
        }
        let started_over = attempt > self.attempt && self.attempt > 0;
        if attempt > self.attempt {
            self.attempt = attempt;
            self.seq_next = 0;
            self.text.clear();
        }
        let heard = self.next(answer, seq, is_final, payload)?;
        Ok(if started_over && heard == Heard::Accepted {
            Heard::StartedOver
        } else {
            heard
        })
    }

    fn next(
        &mut self,
        answer: Answer<'static>,
        seq: u64,
        is_final: bool,
        payload: &[u8],
    ) -> Result<Heard, HearError> {
        if seq < self.seq_next {
            return Ok(Heard::Repeat);
        }
        // An error may come in place of anything.
        if seq > self.seq_next && !matches!(answer, Answer::Failure(_)) {
            return Err(HearError::Gap {
                expected: self.seq_next,
                found: seq,
            });
        }
        let from = self.text.len();
        let outcome = match answer {
            Answer::Failure(failure) => Err(failure.error.into_owned()),
            Answer::Tokens(tokens) => Ok(Finished {
                finish_reason: "stop".into(),
                usage: None,
                details: tokens.orinoco,
                model: tokens.model.into_owned(),
            }),
            Answer::Response(response) => {
                self.text.push_str(piece_of(&response));
                if !is_final {
                    self.seq_next = seq + 1;
                    return Ok(if seq == 0 {
                        Heard::Accepted
                    } else {
                        Heard::Text { from }
                    });
                }
                let verified = finished(response, &self.text);
                if verified.is_err() {
                    self.text.truncate(from);
                }
                Ok(verified?)
            }
        };
        self.seq_next = seq + 1;
        self.end = Some(End {
            payload: payload.to_vec(),
            outcome,
        });
        Ok(Heard::End)
    }
}

/// The text that a message carries.
fn piece_of<'a>(response: &'a Response<'_>) -> &'a str {
    let choice = &response.choices[0];
    let delta = choice
        .delta
        .as_ref()
        .and_then(|delta| delta.content.as_deref());
    let whole = choice
        .message
        .as_ref()
        .map(|message| message.content.as_ref());
    delta
        .or(whole)
        .or(choice.text.as_deref())
        .unwrap_or_default()
}

fn finished(response: Response<'static>, text: &str) -> Result<Finished, HearError> {
    if let Some(expected) = response.orinoco.text_sha256.as_deref() {
        let calculated: String = Sha256::digest(text)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if calculated != expected {
            return Err(HearError::Digest {
                calculated,
                expected: expected.to_owned(),
            });
        }
    }
    let [choice] = response.choices;
    Ok(Finished {
        finish_reason: choice.finish_reason.unwrap_or_default().into_owned(),
        usage: response.usage,
        details: response.orinoco,
        model: response.model.into_owned(),
    })
}

#[cfg(test)]
mod tests {
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
        replier(attempt).accepted(&Accepted { queue: 0 }).unwrap()
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
                include_text: false,
                text_sha256: Sha256::digest(text).into(),
                truncated: false,
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
}
