//! JSON bodies of answers, for both directions: the node writes them, clients read them.
//!
//! Order of fields is order on the wire. Texts are borrowed where a body is written. Readers ignore
//! keys that they do not know, since later versions may add some.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    frames::{Timings, Token},
    wire::error::ApiError,
};

/// `chat.completion.chunk`, `chat.completion` or `text_completion`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response<'a> {
    /// The request's id.
    pub id: Cow<'a, str>,
    /// Which of the three.
    pub object: Cow<'a, str>,
    /// Unix seconds.
    pub created: u64,
    /// Model that answers.
    pub model: Cow<'a, str>,
    /// Always one.
    pub choices: [Choice<'a>; 1],
    /// Counts, in the final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Rises by one with each message of an attempt, from 0.
    pub seq: u64,
    /// Nothing follows.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Text of lower attempts is void.
    pub attempt: u32,
    /// What OpenAI has no place for.
    pub orinoco: Orinoco<'a>,
}

/// The one choice: `delta`, `message` or `text`, by the kind of object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice<'a> {
    /// Always 0.
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
    /// `stop`, `length` or `cancelled` in the final, else null.
    #[serde(default)]
    pub finish_reason: Option<Cow<'a, str>>,
}

impl<'a> Choice<'a> {
    pub(super) fn at_end(finish_reason: Option<Cow<'a, str>>) -> Self {
        Self {
            index: 0,
            delta: None,
            message: None,
            text: None,
            finish_reason,
        }
    }
}

/// What came since the last chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta<'a> {
    /// `assistant`, in `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Cow<'a, str>>,
    /// Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Cow<'a, str>>,
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<'a> {
    /// `assistant`.
    pub role: Cow<'a, str>,
    /// Text.
    pub content: Cow<'a, str>,
}

/// Counts of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
    /// Both.
    pub total_tokens: u64,
    /// More on the prompt.
    pub prompt_tokens_details: PromptDetails,
}

/// More on the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptDetails {
    /// Found in the KV cache.
    pub cached_tokens: u64,
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
        }
    }
}

/// What OpenAI has no place for. Absent keys do not apply to the message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Orinoco<'a> {
    /// Node that answers; in every message, since in a pool two may.
    pub node: Cow<'a, str>,
    /// Jobs before this one; in `accepted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u64>,
    /// Messages with text before this final.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_chunks: Option<u64>,
    /// SHA-256 of the whole text, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_sha256: Option<Cow<'a, str>>,
    /// The whole text, when asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<Cow<'a, str>>,
    /// From acceptance to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// From acceptance to the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<f64>,
    /// Reading the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_ms: Option<f64>,
    /// From the first token to the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_ms: Option<f64>,
    /// Tokens a second, from the first token to the last; absent below two tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tok_s: Option<f64>,
    /// Times that the answer went on in another worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed: Option<u32>,
    /// The text was cut to a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<bool>,
}

/// The final of a request that was refused or failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure<'a> {
    /// What went wrong.
    pub error: Cow<'a, ApiError>,
    /// The request's id.
    pub id: Cow<'a, str>,
    /// As in [`Response`].
    pub seq: u64,
    /// Always true.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// As in [`Response`].
    pub attempt: u32,
    /// The node, and nothing else.
    pub orinoco: Orinoco<'a>,
}

/// The answer to `tokenize`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokens<'a> {
    /// The request's id.
    pub id: Cow<'a, str>,
    /// `tokenize`.
    pub object: Cow<'a, str>,
    /// Unix seconds.
    pub created: u64,
    /// Model whose vocabulary it is.
    pub model: Cow<'a, str>,
    /// Ids.
    pub tokens: Cow<'a, [Token]>,
    /// How many.
    pub n_tokens: u64,
    /// Always 0.
    pub seq: u64,
    /// Always true.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// As in [`Response`].
    pub attempt: u32,
    /// The node, and nothing else.
    pub orinoco: Orinoco<'a>,
}

/// Any body on a response topic, as a client reads it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Answer<'a> {
    /// Refused or failed.
    Failure(Failure<'a>),
    /// Ids.
    Tokens(Tokens<'a>),
    /// Chunk or whole answer.
    Response(Response<'a>),
}
