//! PURE: how a receiver that follows the contract puts one answer together ([`Receiver`]), and what a
//! requester does to get one ([`Requester`]).
//!
//! Used by `orinoco ask`, the benchmarks and the tests, and to be read by whoever writes a client. The
//! rules: an answer is that of the node that first said something; messages of others are not part of it.
//! Messages of a lower attempt are void; a higher attempt starts the text anew; within an attempt a seq
//! that was seen is a repeat, a seq that is skipped is a gap; the first final ends the answer, a further
//! one must be the same bytes; the final's SHA-256 is that of the text put together here.

mod requester;
#[cfg(test)]
mod tests;

use serde_json::from_slice;
use sha2::{Digest, Sha256};

use crate::wire::error::ApiError;
use crate::wire::reply::body::{Answer, Orinoco, Response, Usage};
use crate::wire::topic::Name;

pub use requester::{Action, Requester};

/// One answer as far as it has arrived.
#[derive(Debug, Default)]
pub struct Receiver {
    /// Whose answer this is; none before the first message, and again after [`Self::release`].
    node: Option<Name>,
    /// Whose text stands here.
    text_of: Option<Name>,
    /// A refusal that names a time to ask again is no end: another node may take the request.
    is_of_pool: bool,
    /// Some text, or the promise of it, was heard and may have been shown.
    has_begun: bool,
    attempt: u32,
    seq_next: u64,
    text: String,
    calls: Vec<Call>,
    end: Option<End>,
}

/// A call of a tool, as far as it has arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// Its name for the tool's answer.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON text of an object, whole once the answer has ended well.
    pub arguments: String,
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
    /// A node of the pool does not take the request now. Another may, or this one later.
    Refused(ApiError),
    /// The message of a node that this answer is not bound to. It is not part of the answer; unless it
    /// is final, that node works for nothing and should be told so.
    OtherNode {
        /// Which.
        node: Name,
        /// It has just accepted the request.
        is_first: bool,
        /// It has ended there.
        is_final: bool,
    },
    /// The request is safe on the node's disk.
    Accepted,
    /// This text is new; it is the end of [`Receiver::text`] from this byte on.
    Text {
        /// Where the new text begins.
        from: usize,
    },
    /// The node started again, or another one took over: the text so far is void.
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
    /// An answer that any node of a pool may give.
    pub fn of_pool() -> Self {
        Self {
            is_of_pool: true,
            ..Self::default()
        }
    }

    /// The node that answers, once it said something.
    pub fn node(&self) -> Option<&Name> {
        self.node.as_ref()
    }

    /// The node that answers is gone: the next one to begin is followed, be it another or the same.
    pub fn release(&mut self) {
        if self.end.is_none() {
            self.node = None;
        }
    }

    /// The answer is worth nothing, its end included: what comes next starts it over.
    fn void(&mut self) {
        *self = Self {
            is_of_pool: self.is_of_pool,
            has_begun: self.has_begun,
            ..Self::default()
        };
    }

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
        let (attempt, seq, is_final, node) = match &answer {
            Answer::Failure(it) => (it.attempt, it.seq, true, &it.orinoco.node),
            Answer::Tokens(it) => (it.attempt, it.seq, true, &it.orinoco.node),
            Answer::Embeddings(it) => (it.attempt, it.seq, true, &it.orinoco.node),
            Answer::Response(it) => (it.attempt, it.seq, it.is_final, &it.orinoco.node),
        };
        let node = Name::new(node).map_err(|error| HearError::Malformed {
            length: payload.len(),
            reason: format!("its node: {error}"),
        })?;
        match &self.node {
            Some(bound) if *bound != node => {
                return Ok(Heard::OtherNode {
                    node,
                    is_first: seq == 0 && !is_final,
                    is_final,
                });
            }
            Some(_) => {}
            None => match &answer {
                Answer::Failure(failure)
                    if self.is_of_pool && failure.error.retry_after_ms.is_some() =>
                {
                    return Ok(Heard::Refused(failure.error.clone().into_owned()));
                }
                // In the middle of an answer: its beginning was missed, or belongs to one given up.
                _ if seq > 0 && !is_final && self.text_of.as_ref() != Some(&node) => {
                    return Err(HearError::Gap {
                        expected: 0,
                        found: seq,
                    });
                }
                _ => {}
            },
        }
        if let Some(end) = &self.end {
            let second = is_final && attempt >= self.attempt && end.payload != payload;
            return if second {
                Err(HearError::SecondFinal)
            } else {
                Ok(Heard::Repeat)
            };
        }
        let is_other = self.text_of.as_ref().is_some_and(|old| *old != node);
        if !is_other && attempt < self.attempt {
            return Ok(Heard::Repeat);
        }
        let is_anew = is_other || attempt > self.attempt;
        let started_over = self.has_begun && is_anew;
        let heard = if is_anew {
            // Only a message that keeps the contract takes the place of what is there.
            let mut anew = Self {
                is_of_pool: self.is_of_pool,
                attempt,
                ..Self::default()
            };
            let heard = anew.next(answer, seq, is_final, payload)?;
            *self = anew;
            heard
        } else {
            self.next(answer, seq, is_final, payload)?
        };
        self.node = Some(node.clone());
        self.text_of = Some(node);
        self.has_begun = true;
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
            Answer::Embeddings(embeddings) => Ok(Finished {
                finish_reason: "stop".into(),
                usage: None,
                details: embeddings.orinoco,
                model: embeddings.model.into_owned(),
            }),
            Answer::Response(response) => {
                self.text.push_str(piece_of(&response));
                self.hear_calls(&response);
                if !is_final {
                    self.seq_next = seq + 1;
                    return Ok(if seq == 0 {
                        Heard::Accepted
                    } else {
                        Heard::Text { from }
                    });
                }
                let verified = finished(*response, &self.text);
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

impl Receiver {
    /// The calls of tools so far, in order.
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    fn hear_calls(&mut self, response: &Response<'_>) {
        let choice = &response.choices[0];
        let of_delta = choice.delta.iter().flat_map(|delta| &delta.tool_calls);
        let of_message = choice
            .message
            .iter()
            .flat_map(|message| &message.tool_calls);
        for call in of_delta.chain(of_message) {
            // A piece without an index, or with the next one, begins a call.
            let at = call.index.map_or(self.calls.len(), |index| index as usize);
            if at == self.calls.len() {
                self.calls.push(Call::default());
            }
            let Some(known) = self.calls.get_mut(at) else {
                continue;
            };
            known.id.push_str(call.id.as_deref().unwrap_or_default());
            known
                .name
                .push_str(call.function.name.as_deref().unwrap_or_default());
            known.arguments.push_str(&call.function.arguments);
        }
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
        .and_then(|message| message.content.as_deref());
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
