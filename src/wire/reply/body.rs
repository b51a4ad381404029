//! JSON bodies of answers, for both directions: the node writes them, clients read them.
//!
//! Order of fields is order on the wire. Texts are borrowed where a body is written. Readers ignore
//! keys that they do not know, since later versions may add some. The comments on types and fields are
//! published with their schemas, for the programmer of a device.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

use crate::{
    frames::{self, Timings, Token},
    wire::{
        SHA256_PATTERN,
        error::{ApiError, ErrorObject},
        tools::ToolCall,
        topic::{ID_PATTERN, NAME_PATTERN},
    },
};

/// A message of an answer: accepted (seq 0), a chunk of text, or the final.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("allOf" = rules::response()))]
pub struct Response<'a> {
    /// The request's id.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: Cow<'a, str>,
    /// `chat.completion.chunk` in a stream, `chat.completion` as a whole, `text_completion` for op complete.
    #[schemars(extend("enum" = ["chat.completion.chunk", "chat.completion", "text_completion"]))]
    pub object: Cow<'a, str>,
    /// When the request was accepted, unix seconds.
    pub created: u64,
    /// Model that answers.
    pub model: Cow<'a, str>,
    /// Always one.
    pub choices: [Choice<'a>; 1],
    /// Counts of tokens, in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Rises by one with each message of an attempt, from 0, which is accepted.
    pub seq: u64,
    /// Nothing follows.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// From 1; rises when the node began the answer anew, and text of lower attempts is void.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// What OpenAI has no place for.
    pub orinoco: Orinoco<'a>,
}

/// The one choice: delta, message or text, by the kind of object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Choice<'a> {
    /// Always 0.
    #[schemars(extend("const" = 0))]
    pub index: u32,
    /// Of a chat in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta<'a>>,
    /// Of a chat as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Message<'a>>,
    /// Of a completion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Cow<'a, str>>,
    /// How probable the tokens were, where logprobs asked for it: in chunks those of their text, in a whole
    /// answer all of them. None beside tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Logprobs>,
    /// In the final why the answer ended, else null. tool_calls: it calls tools, and stopped for that. length:
    /// max_tokens or the context is used up; what a schema or a grammar asked for may then be incomplete.
    #[serde(default)]
    #[schemars(extend("enum" = ["stop", "tool_calls", "length", "cancelled", null]))]
    pub finish_reason: Option<Cow<'a, str>>,
}

impl<'a> Choice<'a> {
    pub(super) fn at_end(finish_reason: Option<Cow<'a, str>>) -> Self {
        Self {
            index: 0,
            delta: None,
            message: None,
            text: None,
            logprobs: None,
            finish_reason,
        }
    }
}

/// What came since the last chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Delta<'a> {
    /// Who speaks, in accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("const" = "assistant"))]
    pub role: Option<Cow<'a, str>>,
    /// The text; empty in accepted, absent in the final and where there are only calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cow<'a, str>>,
    /// Pieces of calls: the first of a call has id and name, all have what came of the arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Message<'a> {
    /// Who speaks.
    #[schemars(extend("const" = "assistant"))]
    pub role: Cow<'a, str>,
    /// The whole text; null where there are only calls.
    #[serde(default)]
    pub content: Option<Cow<'a, str>>,
    /// The calls, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
}

/// How probable tokens were to the model, before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Logprobs {
    /// One for each token, in order.
    pub content: Vec<TokenLogprob>,
}

/// A token of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// Its text; U+FFFD stands for bytes that are part of a character, empty is a control token.
    pub token: String,
    /// Natural logarithm of its probability; -9999 stands for none at all.
    #[schemars(range(min = -9999.0))]
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The most probable tokens in its place, best first, as many as top_logprobs asked for.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopLogprob {
    /// Its text, as with the token that was chosen.
    pub token: String,
    /// Natural logarithm of its probability; -9999 stands for none at all.
    #[schemars(range(min = -9999.0))]
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Logprobs {
    /// `None` for none.
    pub(super) fn of(logprobs: &[frames::Logprob]) -> Option<Self> {
        let content = logprobs.iter().map(|logprob| {
            let chosen = TopLogprob::of(&logprob.chosen);
            TokenLogprob {
                token: chosen.token,
                logprob: chosen.logprob,
                bytes: chosen.bytes,
                top_logprobs: logprob.top.iter().map(TopLogprob::of).collect(),
            }
        });
        (!logprobs.is_empty()).then(|| Self {
            content: content.collect(),
        })
    }
}

impl TopLogprob {
    fn of(token: &frames::TokenLogprob) -> Self {
        // JSON has no infinity; the number is the one that OpenAI has for it.
        const NONE: f32 = -9999.0;
        Self {
            token: String::from_utf8_lossy(&token.bytes).into_owned(),
            logprob: match token.logprob.is_nan() {
                true => NONE,
                false => token.logprob.clamp(NONE, 0.0),
            },
            bytes: token.bytes.clone(),
        }
    }
}

/// Counts of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// More on the prompt.
    pub prompt_tokens_details: PromptDetails,
    /// More on the answer; absent where nothing was guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionDetails>,
}

/// More on the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PromptDetails {
    /// Of the prompt's tokens, those found in the cache.
    pub cached_tokens: u64,
}

/// More on the answer's tokens: those that were guessed and read along, so that one step makes several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionDetails {
    /// Guessed tokens that became part of the answer.
    pub accepted_prediction_tokens: u64,
    /// Guessed tokens that did not.
    pub rejected_prediction_tokens: u64,
}

impl Usage {
    pub(super) fn of(timings: &Timings) -> Self {
        let (prompt, output) = (timings.n_prompt.into(), timings.n_output.into());
        Self {
            prompt_tokens: prompt,
            completion_tokens: output,
            total_tokens: prompt + output,
            prompt_tokens_details: PromptDetails {
                cached_tokens: timings.n_cached.into(),
            },
            completion_tokens_details: (timings.n_guessed > 0).then(|| CompletionDetails {
                accepted_prediction_tokens: timings.n_right.into(),
                rejected_prediction_tokens: (timings.n_guessed - timings.n_right).into(),
            }),
        }
    }
}

/// A part of an answer, by one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// The model's name.
    pub model: String,
    /// Bytes of text that it wrote.
    pub text_bytes: u64,
}

/// A conversation that the node keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    /// Its name.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// Turns that are kept, this one among them; 0: it was too large to be kept.
    pub turns: u64,
    /// Oldest turns that were dropped with this one, for want of room in the model's context or on the node.
    pub dropped_turns: u64,
    /// Oldest turns that the model did not see this time.
    pub left_out_turns: u64,
}

/// Why a stream pauses, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Parked {
    /// `update`: another model is being put into service, and memory does not hold both. `alarm`: a request of
    /// that class has its place. `share`: another user has, who had less than its share of the node. `turn`: another
    /// model has its turn; it goes on when its own model serves again.
    #[schemars(extend("enum" = ["update", "alarm", "share", "turn"]))]
    pub reason: String,
    /// About how long until text comes again, milliseconds.
    pub eta_ms: u64,
}

impl Parked {
    /// For an update that takes about so long.
    pub fn for_update(eta: std::time::Duration) -> Self {
        Self {
            reason: "update".to_owned(),
            eta_ms: eta.as_millis() as u64,
        }
    }

    /// For the turn of another model, and the loads before and after it.
    pub fn for_turn(eta: std::time::Duration) -> Self {
        Self {
            reason: "turn".to_owned(),
            eta_ms: eta.as_millis() as u64,
        }
    }

    /// For a request of the class alarm, which takes about so long.
    pub fn for_alarm(eta: std::time::Duration) -> Self {
        Self {
            reason: "alarm".to_owned(),
            eta_ms: eta.as_millis() as u64,
        }
    }

    /// For a request of another user, which takes about so long.
    pub fn for_share(eta: std::time::Duration) -> Self {
        Self {
            reason: "share".to_owned(),
            eta_ms: eta.as_millis() as u64,
        }
    }
}

/// The model that a request waits for does not serve now, and is loaded in its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loading {
    /// About how long until it serves, milliseconds; absent while nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
}

/// What OpenAI has no place for. Absent keys do not apply to the message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Orinoco<'a> {
    /// Node that answers; in every message, since of a pool two may.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub node: Cow<'a, str>,
    /// Requests before this one; in accepted, and in chunks without text while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u64>,
    /// About how long until the answer has ended, milliseconds, by what requests took lately; beside queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
    /// Another model serves than the one that is to answer; beside queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<Loading>,
    /// The stream pauses and goes on by itself, with nothing lost or repeated; in a chunk without text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked: Option<Parked>,
    /// Messages between accepted and this final; in the final of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_chunks: Option<u64>,
    /// SHA-256 of the whole text, hexadecimal; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SHA256_PATTERN))]
    pub text_sha256: Option<Cow<'a, str>>,
    /// The whole text, where stream_options.include_text asked for it; in the final of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Cow<'a, str>>,
    /// Milliseconds from acceptance to the first token; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub ttft_ms: Option<f64>,
    /// Milliseconds from acceptance to the end; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub total_ms: Option<f64>,
    /// Milliseconds that reading the prompt took; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub prefill_ms: Option<f64>,
    /// Milliseconds from the first token to the last; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub decode_ms: Option<f64>,
    /// Tokens a second, from the first token to the last; in the final, absent below two tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub tok_s: Option<f64>,
    /// Times that the answer went on in another worker process, with nothing lost or repeated; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<u32>,
    /// Which model wrote which part of the answer, in order; only when it was more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<Vec<Part>>,
    /// Joules that the request took: the module's energy while it ran, shared evenly among those that ran at
    /// the same time; in the final, on boards that measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub energy_j: Option<f64>,
    /// True where the text was cut to a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<bool>,
    /// The conversation that the node keeps, with this turn; in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// The final of a request that was refused or failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Failure<'a> {
    /// What went wrong.
    #[schemars(with = "ErrorObject<'_>")]
    pub error: Cow<'a, ApiError>,
    /// The request's id.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: Cow<'a, str>,
    /// One more than that of the message before it; 0 where the request was refused at once.
    pub seq: u64,
    /// Always true.
    #[serde(rename = "final")]
    #[schemars(extend("const" = true))]
    pub is_final: bool,
    /// From 1; rises when the node began the answer anew.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// The node, and nothing else.
    pub orinoco: Orinoco<'a>,
}

/// The answer to `tokenize`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tokens<'a> {
    /// The request's id.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: Cow<'a, str>,
    /// Always `tokenize`.
    #[schemars(extend("const" = "tokenize"))]
    pub object: Cow<'a, str>,
    /// Unix seconds.
    pub created: u64,
    /// Model whose vocabulary it is.
    pub model: Cow<'a, str>,
    /// The ids of the tokens.
    #[schemars(with = "Vec<Token>", inner(range(min = 0)))]
    pub tokens: Cow<'a, [Token]>,
    /// How many they are.
    pub n_tokens: u64,
    /// Always 0.
    #[schemars(extend("const" = 0))]
    pub seq: u64,
    /// Always true.
    #[serde(rename = "final")]
    #[schemars(extend("const" = true))]
    pub is_final: bool,
    /// From 1; rises when the node began the answer anew.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// The node, and nothing else.
    pub orinoco: Orinoco<'a>,
}

/// The answer to `embed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embeddings<'a> {
    /// The request's id.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: Cow<'a, str>,
    /// Always `list`.
    #[schemars(extend("const" = "list"))]
    pub object: Cow<'a, str>,
    /// Unix seconds.
    pub created: u64,
    /// Model that made them.
    pub model: Cow<'a, str>,
    /// One for each text, in their order.
    #[schemars(length(min = 1))]
    pub data: Vec<Embedding<'a>>,
    /// Counts of tokens.
    pub usage: EmbedUsage,
    /// Always 0.
    #[schemars(extend("const" = 0))]
    pub seq: u64,
    /// Always true.
    #[serde(rename = "final")]
    #[schemars(extend("const" = true))]
    pub is_final: bool,
    /// From 1; rises when the node began the answer anew.
    #[schemars(range(min = 1))]
    pub attempt: u32,
    /// The node, and whether a text was cut.
    pub orinoco: Orinoco<'a>,
}

/// The vector of one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Embedding<'a> {
    /// Always `embedding`.
    #[schemars(extend("const" = "embedding"))]
    pub object: Cow<'a, str>,
    /// Number of the text, from 0.
    pub index: u32,
    /// Its length is 1.
    pub embedding: Values,
}

/// The numbers of a vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Values {
    /// As they are.
    Float(Vec<f32>),
    /// 32-bit floats, little endian, in base64.
    Base64(String),
}

/// Counts of tokens that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EmbedUsage {
    /// Tokens of all texts.
    pub prompt_tokens: u64,
    /// The same.
    pub total_tokens: u64,
}

/// Any body on a response topic, as a client reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Answer<'a> {
    /// Refused or failed.
    Failure(Failure<'a>),
    /// Ids.
    Tokens(Tokens<'a>),
    /// Vectors.
    Embeddings(Embeddings<'a>),
    /// Chunk or whole answer.
    Response(Box<Response<'a>>),
}
