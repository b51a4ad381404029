//! Answers: OpenAI objects with a few keys more, or bare text for receivers without JSON.
//!
//! ```text
//! form         accepted   pieces        final
//! Chunks       chunk      chunks        chunk with finish_reason and usage
//! Whole        chunk      none          chat.completion or text_completion
//! Text         none       none          the text
//! TextStream   none       bare pieces   empty payload
//! any          -          -             error: {"error":…}, or `!code message` in the bare forms
//! ```
//!
//! Builds payloads and decides nothing: sequence numbers, joining and retries are the caller's.
//! [`Replier::piece`] is on the way of every token: one allocation, no tree.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    error::{ApiError, Code},
    tools::{self, Called, Part as CallPart, ToolCall},
    topic::{Name, Op, RequestId},
};
use crate::frames::{Finish, Logprob, Timings, Token};

pub mod body;
mod rules;
#[cfg(test)]
mod tests;
mod vectors;

use body::{Choice, Delta, Failure, Logprobs, Message, Orinoco, Response, Tokens, Usage};
pub use body::{Loading, Parked, Part, Session};
pub use vectors::Vectors;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain";
/// Answers that nobody fetched are dropped by the broker after this time, for which a finished id is
/// answered again as well.
pub const EXPIRY_SECONDS: u32 = 600;
/// Status of `accepted`.
const ACCEPTED: u16 = 202;
const OK: u16 = 200;

/// What an answer looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Form {
    /// OpenAI chunks.
    Chunks,
    /// One OpenAI object.
    Whole,
    /// One message of bare text.
    Text,
    /// Bare pieces of text, ended by an empty payload.
    TextStream,
}

impl Form {
    /// From the op, the body's `stream`, and the MQTT 5 user property `accept`.
    ///
    /// `accept` is a list after HTTP: the first known media type wins, unknown ones are skipped. It has
    /// no say in the ops `text`, `text-stream` and `tokenize`.
    pub fn of(op: Op, stream: bool, accept: Option<&str>) -> Self {
        let wants_text = || {
            accept
                .unwrap_or_default()
                .split(',')
                .map(|entry| entry.split(';').next().unwrap_or_default().trim())
                .find(|kind| kind.eq_ignore_ascii_case(TEXT) || kind.eq_ignore_ascii_case(JSON))
                .is_some_and(|kind| kind.eq_ignore_ascii_case(TEXT))
        };
        match op {
            Op::Text => Self::Text,
            Op::TextStream => Self::TextStream,
            Op::Tokenize | Op::Embed => Self::Whole,
            Op::Chat | Op::Complete => match (wants_text(), stream) {
                (true, true) => Self::TextStream,
                (true, false) => Self::Text,
                (false, true) => Self::Chunks,
                (false, false) => Self::Whole,
            },
        }
    }

    /// Whether receivers get bare text.
    pub fn is_bare(self) -> bool {
        matches!(self, Self::Text | Self::TextStream)
    }
}

/// One message to publish on the response topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The body.
    pub payload: Bytes,
    /// Its media type.
    pub content_type: &'static str,
    /// User property `seq`.
    pub seq: Option<u64>,
    /// User property `final`.
    pub is_final: bool,
    /// User property `status`, on the first message and on the last.
    pub status: Option<u16>,
}

/// Where a job stands in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Accepted {
    /// Jobs before it.
    pub queue: usize,
    /// About how long until its answer has ended, milliseconds.
    pub eta_ms: Option<u64>,
    /// Another model serves than the one that it waits for.
    pub loading: Option<Loading>,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct End {
    /// Why.
    pub finish: Finish,
    /// The whole text, cut already for [`Form::Text`] ([`cut`]).
    pub text: String,
    /// Counts and times.
    pub timings: Timings,
    /// From acceptance to the first token, milliseconds.
    pub ttft_ms: f64,
    /// From acceptance to the end, milliseconds.
    pub total_ms: f64,
    /// Messages with text before the final.
    pub n_chunks: u64,
    /// Times that the job went on in another worker.
    pub resumed: u32,
    /// Who wrote what, in order; more than one entry after a switch of models.
    pub parts: Vec<Part>,
    /// Of the module's energy, joules; on boards with rails.
    pub energy_j: Option<f64>,
    /// What was kept of the conversation that it is part of.
    pub session: Option<Session>,
    /// Of all tokens, for [`Form::Whole`]; where they were asked for.
    pub logprobs: Vec<Logprob>,
    /// The final of a stream repeats the text.
    pub include_text: bool,
    /// SHA-256 of the whole text, before any cut.
    pub text_sha256: [u8; 32],
    /// The text was cut to the limit of op `text`.
    pub truncated: bool,
    /// Name and arguments of each call; the text is then what was said beside them.
    pub calls: Vec<(String, String)>,
}

/// Builds the messages that answer one request.
#[derive(Debug, Clone)]
pub struct Replier {
    /// What they look like.
    pub form: Form,
    /// What was asked.
    pub op: Op,
    /// The request's id, which is the answer's `id`.
    pub id: RequestId,
    /// Model that answers; may be empty as long as only errors are built.
    pub model: String,
    /// This node.
    pub node: Name,
    /// When the request was accepted, unix seconds.
    pub created_s: u64,
    /// Rises when a restarted node begins the answer anew.
    pub attempt: u32,
}

impl Replier {
    /// The job is on disk and will end with one final. `None` in the bare forms and for `tokenize`,
    /// whose answer comes at once. Its `seq` is 0.
    pub fn accepted(&self, accepted: &Accepted) -> Option<Outgoing> {
        if self.form.is_bare() || self.op == Op::Tokenize {
            return None;
        }
        let role = match self.op {
            Op::Complete => None,
            _ => Some("assistant".into()),
        };
        let orinoco = Orinoco {
            queue: Some(accepted.queue as u64),
            eta_ms: accepted.eta_ms,
            loading: accepted.loading,
            ..self.orinoco()
        };
        let chunk = self.response(0, false, self.piece_choice(role, "", None), orinoco);
        Some(json(&chunk, 0, false, Some(ACCEPTED)))
    }

    /// Text that was made. `None` in the forms [`Form::Whole`] and [`Form::Text`], and for an empty text
    /// in [`Form::TextStream`], where an empty payload is the end.
    pub fn piece(&self, seq: u64, text: &str) -> Option<Outgoing> {
        self.piece_with(seq, text, &[])
    }

    /// As [`Self::piece`], with how probable its tokens were where that was asked.
    pub fn piece_with(&self, seq: u64, text: &str, logprobs: &[Logprob]) -> Option<Outgoing> {
        match self.form {
            Form::Whole | Form::Text => None,
            Form::TextStream if text.is_empty() => None,
            Form::TextStream => Some(bare(unlike_error(text), seq, false, None)),
            Form::Chunks => {
                let choice = Choice {
                    logprobs: Logprobs::of(logprobs),
                    ..self.piece_choice(None, text, None)
                };
                let chunk = self.response(seq, false, choice, self.orinoco());
                Some(json(&chunk, seq, false, None))
            }
        }
    }

    /// What came of an answer that may call tools; `n_calls` began before this piece. Only in
    /// [`Form::Chunks`].
    pub fn calls_piece(&self, seq: u64, n_calls: usize, parts: &[CallPart]) -> Outgoing {
        let mut content: Option<String> = None;
        let mut calls: Vec<ToolCall<'_>> = Vec::new();
        let mut n_calls = n_calls as u32;
        for part in parts {
            match part {
                CallPart::Content(text) => content.get_or_insert_default().push_str(text),
                CallPart::Call { name } => {
                    calls.push(ToolCall {
                        index: Some(n_calls),
                        ..self.call(n_calls, name, "")
                    });
                    n_calls += 1;
                }
                CallPart::Arguments(text) => {
                    let index = n_calls.saturating_sub(1);
                    match calls.last_mut().filter(|call| call.index == Some(index)) {
                        Some(call) => call.function.arguments.to_mut().push_str(text),
                        None => calls.push(ToolCall {
                            index: Some(index),
                            id: None,
                            kind: None,
                            function: Called {
                                name: None,
                                arguments: text.into(),
                            },
                        }),
                    }
                }
            }
        }
        let choice = Choice {
            delta: Some(Delta {
                role: None,
                content: content
                    .or_else(|| calls.is_empty().then(String::new))
                    .map(Cow::Owned),
                tool_calls: calls,
            }),
            ..Choice::at_end(None)
        };
        let chunk = self.response(seq, false, choice, self.orinoco());
        json(&chunk, seq, false, None)
    }

    fn call<'a>(&self, index: u32, name: &'a str, arguments: &'a str) -> ToolCall<'a> {
        let id = tools::call_id(self.id.as_str(), self.attempt, index);
        ToolCall {
            index: None,
            id: Some(id.into()),
            kind: Some("function".into()),
            function: Called {
                name: Some(name.into()),
                arguments: arguments.into(),
            },
        }
    }

    /// The stream waits for a model that is being put into service. `None` in forms that have no place for it.
    pub fn parked(&self, seq: u64, parked: &Parked) -> Option<Outgoing> {
        if self.form != Form::Chunks {
            return None;
        }
        let orinoco = Orinoco {
            parked: Some(parked.clone()),
            ..self.orinoco()
        };
        let chunk = self.response(seq, false, self.piece_choice(None, "", None), orinoco);
        Some(json(&chunk, seq, false, None))
    }

    /// The stream waits, and is nearer than it was. `None` in forms that have no place for it.
    pub fn moved(&self, seq: u64, place: &Accepted) -> Option<Outgoing> {
        if self.form != Form::Chunks {
            return None;
        }
        let orinoco = Orinoco {
            queue: Some(place.queue as u64),
            eta_ms: place.eta_ms,
            loading: place.loading,
            ..self.orinoco()
        };
        let chunk = self.response(seq, false, self.piece_choice(None, "", None), orinoco);
        Some(json(&chunk, seq, false, None))
    }

    /// The final of an answer. In the bare forms a cancelled job ends as an error, since nothing else
    /// would tell its text from a whole one.
    pub fn end(&self, seq: u64, end: &End) -> Outgoing {
        let status = match end.finish {
            Finish::Cancelled => Code::Cancelled.status(),
            Finish::Stop | Finish::Length => OK,
        };
        if self.form.is_bare() && end.finish == Finish::Cancelled {
            let n_output = end.timings.n_output;
            let message = format!("called off after {n_output} tokens");
            return self.error(seq, &ApiError::new(Code::Cancelled, message));
        }
        let (choice, text) = match self.form {
            Form::TextStream => return bare(Cow::Borrowed(""), seq, true, Some(status)),
            Form::Text => return bare(unlike_error(&end.text), seq, true, Some(status)),
            Form::Chunks => (
                self.last_choice(end),
                end.include_text.then(|| end.text.as_str().into()),
            ),
            Form::Whole => (self.whole_choice(end), None),
        };
        let orinoco = Orinoco {
            text,
            ..self.orinoco_of(end)
        };
        let mut response = self.response(seq, true, choice, orinoco);
        if self.form == Form::Whole && self.op != Op::Complete {
            response.object = "chat.completion".into();
        }
        response.usage = Some(Usage::of(&end.timings));
        json(&response, seq, true, Some(status))
    }

    /// The final of a request that was refused or failed.
    pub fn error(&self, seq: u64, error: &ApiError) -> Outgoing {
        let status = Some(error.code.status());
        if self.form.is_bare() {
            return bare(Cow::Owned(error.line()), seq, true, status);
        }
        let failure = Failure {
            error: Cow::Borrowed(error),
            id: self.id.as_str().into(),
            seq,
            is_final: true,
            attempt: self.attempt,
            orinoco: self.orinoco(),
        };
        json(&failure, seq, true, status)
    }

    /// The answer to `tokenize`, the only message of its request.
    pub fn tokens(&self, ids: &[Token]) -> Outgoing {
        let tokens = Tokens {
            id: self.id.as_str().into(),
            object: "tokenize".into(),
            created: self.created_s,
            model: self.model.as_str().into(),
            tokens: ids.into(),
            n_tokens: ids.len() as u64,
            seq: 0,
            is_final: true,
            attempt: self.attempt,
            orinoco: self.orinoco(),
        };
        json(&tokens, 0, true, Some(OK))
    }

    /// The envelope of chunks; `object` is that of a stream.
    fn response<'a>(
        &'a self,
        seq: u64,
        is_final: bool,
        choice: Choice<'a>,
        orinoco: Orinoco<'a>,
    ) -> Response<'a> {
        Response {
            id: self.id.as_str().into(),
            object: match self.op {
                Op::Complete => "text_completion".into(),
                _ => "chat.completion.chunk".into(),
            },
            created: self.created_s,
            model: self.model.as_str().into(),
            choices: [choice],
            usage: None,
            seq,
            is_final,
            attempt: self.attempt,
            orinoco,
        }
    }

    fn piece_choice<'a>(
        &self,
        role: Option<Cow<'a, str>>,
        text: &'a str,
        finish: Option<Finish>,
    ) -> Choice<'a> {
        let choice = Choice::at_end(finish.map(|finish| finish_reason(finish).into()));
        match self.op {
            Op::Complete => Choice {
                text: Some(text.into()),
                ..choice
            },
            // The final delta is {} as with OpenAI; that of `accepted` has its content, empty.
            _ => Choice {
                delta: Some(Delta {
                    role,
                    content: finish.is_none().then(|| text.into()),
                    tool_calls: Vec::new(),
                }),
                ..choice
            },
        }
    }

    /// The choice of a stream's final.
    fn last_choice<'a>(&self, end: &'a End) -> Choice<'a> {
        Choice {
            finish_reason: Some(reason(end).into()),
            ..self.piece_choice(None, "", Some(end.finish))
        }
    }

    fn whole_choice<'a>(&self, end: &'a End) -> Choice<'a> {
        let choice = Choice {
            logprobs: Logprobs::of(&end.logprobs),
            ..Choice::at_end(Some(reason(end).into()))
        };
        let calls = end.calls.iter().enumerate();
        match self.op {
            Op::Complete => Choice {
                text: Some(end.text.as_str().into()),
                ..choice
            },
            _ => Choice {
                message: Some(Message {
                    role: "assistant".into(),
                    content: (!end.text.is_empty() || end.calls.is_empty())
                        .then(|| end.text.as_str().into()),
                    tool_calls: calls
                        .map(|(at, (name, arguments))| self.call(at as u32, name, arguments))
                        .collect(),
                }),
                ..choice
            },
        }
    }

    fn orinoco(&self) -> Orinoco<'_> {
        Orinoco {
            node: self.node.as_str().into(),
            ..Orinoco::default()
        }
    }

    fn orinoco_of(&self, end: &End) -> Orinoco<'_> {
        let Timings {
            n_output,
            decode_ms,
            prefill_ms,
            ..
        } = end.timings;
        // n tokens have n - 1 gaps between them.
        let tok_s = (n_output > 1 && decode_ms > 0.0)
            .then(|| round(f64::from(n_output - 1) * 1000.0 / decode_ms));
        Orinoco {
            n_chunks: (self.form == Form::Chunks).then_some(end.n_chunks),
            text_sha256: Some(hex(&end.text_sha256)),
            ttft_ms: Some(round(end.ttft_ms)),
            total_ms: Some(round(end.total_ms)),
            prefill_ms: Some(round(prefill_ms)),
            decode_ms: Some(round(decode_ms)),
            tok_s,
            resumed: Some(end.resumed),
            parts: (end.parts.len() > 1).then(|| end.parts.clone()),
            energy_j: end.energy_j.map(round),
            session: end.session.clone(),
            truncated: end.truncated.then_some(true),
            ..self.orinoco()
        }
    }
}

/// The first bytes of `text`, at most `bytes_max`, never half a character.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = bytes_max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Why an answer ended, on the wire.
fn reason(end: &End) -> &'static str {
    match end.finish {
        Finish::Stop if !end.calls.is_empty() => "tool_calls",
        finish => finish_reason(finish),
    }
}

/// `finish_reason` of an answer without calls.
pub fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

/// A model's text that reads like an error of the bare forms (`!code …`) gets a space in front, so that
/// no prompt can make a receiver believe in an error.
fn unlike_error(text: &str) -> Cow<'_, str> {
    let is_like = text.strip_prefix('!').is_some_and(|rest| {
        let end = rest.find(|c: char| c != '_' && !c.is_ascii_lowercase());
        let word = &rest[..end.unwrap_or(rest.len())];
        Code::ALL.iter().any(|code| code.as_str() == word)
    });
    match is_like {
        true => Cow::Owned(format!(" {text}")),
        false => Cow::Borrowed(text),
    }
}

fn bare(text: Cow<'_, str>, seq: u64, is_final: bool, status: Option<u16>) -> Outgoing {
    Outgoing {
        payload: Bytes::from(text.into_owned()),
        content_type: TEXT,
        seq: Some(seq),
        is_final,
        status,
    }
}

fn json(body: &impl Serialize, seq: u64, is_final: bool, status: Option<u16>) -> Outgoing {
    // A chunk with the text of one flush fits without growing.
    let mut payload = Vec::with_capacity(512);
    serde_json::to_writer(&mut payload, body).expect("maps with text keys always serialise");
    Outgoing {
        payload: payload.into(),
        content_type: JSON,
        seq: Some(seq),
        is_final,
        status,
    }
}

/// Microseconds are precise enough, and short.
fn round(ms: f64) -> f64 {
    (ms * 1000.0).round() / 1000.0
}

fn hex(bytes: &[u8; 32]) -> Cow<'static, str> {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(64);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text.into()
}
