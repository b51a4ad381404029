//! Requests: from the bytes of a payload to a checked [`Request`], or to an error that says why not.
//!
//! Bounds first: size, UTF-8, depth and number of values are checked by one pass over the bytes before
//! any JSON is built. Then each known key is read with its range; an error names the key, what was
//! found and what is allowed. Keys that OpenAI servers know and this version cannot honour are refused
//! and not ignored, since the answer would be another than the one asked for; keys that nobody here
//! knows are ignored, as OpenAI servers do. A key given twice is an error at any level.
//!
//! A body that is no JSON object is plain text: one user message, or the prompt.

mod answer;
mod beside;
mod embed;
mod fields;
pub mod history;
mod json;
mod keys;
mod messages;
mod sampling;
pub mod schema;
pub mod template;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::beside::Beside;
pub use self::embed::{EmbedRequest, Encoding, parse_embed};
pub use self::sampling::SamplingOverrides;
use self::{fields::Fields, messages::Message};
use super::tools::Tools;
use super::{
    error::{ApiError, Code},
    topic::Op,
};
use crate::frames::{Constraint, Input, Sampling};

/// What a request may be at most.
// Missing keys are read as their defaults and unknown ones skipped: nodes of other versions have others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Limits {
    /// Bytes of a payload (default 131072).
    pub payload_bytes: usize,
    /// Nesting of arrays and objects (default 32).
    pub depth: usize,
    /// Values in a body, all levels together (default 16384): bounds the memory of parsing.
    pub values: usize,
    /// Messages of a chat (default 1024).
    pub messages: usize,
    /// Stop strings (default 16).
    pub stop: usize,
    /// Bytes of one stop string (default 256).
    pub stop_bytes: usize,
    /// Tokens in logit_bias (default 1024).
    pub logit_bias: usize,
    /// Largest coalesce_ms, milliseconds (default 1000).
    pub coalesce_ms_max: u32,
    /// Largest max_tokens (default 32768); the model's context may allow less.
    pub max_tokens: u32,
    /// Largest deadline_ms, milliseconds (default 86400000, a day).
    pub deadline_ms_max: u64,
    /// Bytes of the one message that answers op text (default 1024); the rest is cut off.
    pub text_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes: 128 << 10,
            depth: 32,
            values: 16_384,
            messages: 1024,
            stop: 16,
            stop_bytes: 256,
            logit_bias: 1024,
            coalesce_ms_max: 1000,
            max_tokens: 32_768,
            deadline_ms_max: 86_400_000,
            text_bytes: 1024,
        }
    }
}

/// Which job goes first. Ordered: `Batch < Normal < Alarm`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When no other waits, or sixteen have passed it; an alarm may interrupt it, and it goes on later.
    Batch,
    /// In turn.
    #[default]
    Normal,
    /// Before all others; only for users who may claim it.
    Alarm,
}

impl Priority {
    /// All of them, the first to be served first.
    pub const ALL: [Self; 3] = [Self::Alarm, Self::Normal, Self::Batch];

    const WORDS: [&str; 3] = [
        Self::ALL[0].as_str(),
        Self::ALL[1].as_str(),
        Self::ALL[2].as_str(),
    ];

    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Normal => "normal",
            Self::Alarm => "alarm",
        }
    }
}

impl FromStr for Priority {
    type Err = ApiError;

    /// Reads the body key or the MQTT 5 user property `priority`.
    fn from_str(text: &str) -> Result<Self, ApiError> {
        Self::ALL
            .into_iter()
            .find(|priority| priority.as_str() == text)
            .ok_or_else(|| {
                let (found, words) = (fields::quoted(text), fields::listed(&Self::WORDS));
                invalid(format!("priority is {found}, allowed are {words}")).with_param("priority")
            })
    }
}

/// A checked request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// From the topic.
    pub op: Op,
    /// The model asked for; `None`: the node's choice.
    pub model: Option<String>,
    /// Messages or text, never empty and without NUL.
    pub input: Input,
    /// What the request says about sampling.
    pub sampling: SamplingOverrides,
    /// Texts that end the answer; none is empty.
    pub stop: Vec<String>,
    /// Most tokens to make, at least 1.
    pub max_tokens: Option<u32>,
    /// Fewest tokens to make.
    pub min_tokens: u32,
    /// Go on after an end-of-generation token.
    pub ignore_eos: bool,
    /// Tell how probable each token was, beside so many of the most probable ones.
    pub logprobs: Option<u8>,
    /// What the whole answer has to be; not together with tools.
    pub constraint: Option<Constraint>,
    /// Tools that may be called, or must be; the template is shown those of [`Input::Chat`].
    pub tools: Option<Tools>,
    /// Pieces as they come, or the whole answer at once.
    pub stream: bool,
    /// The final of a stream repeats the whole text.
    pub include_text: bool,
    /// How long text may be joined before it is sent; 0: each token alone.
    pub coalesce_ms: Option<u32>,
    /// Priority claimed; whether this user may is not decided here.
    pub priority: Option<Priority>,
    /// The answer is worthless after this many milliseconds from acceptance; at least 1.
    pub deadline_ms: Option<u64>,
    /// A later request of the same user with the same key replaces this one until it has ended.
    pub keep_latest: Option<String>,
    /// Conversation that it is part of.
    pub session: Option<String>,
    /// Whether the node keeps that conversation.
    pub keeps: Keeps,
    /// A wording of the node's that it wants; [`Request::input`] says nothing until [`Request::fill`] was called.
    pub template: Option<template::Filling>,
    /// What that was when the request was accepted.
    pub filled: Option<template::Filled>,
}

/// Whether the node keeps the turns of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// The requester sends all of it each time.
    No,
    /// Where the request is part of one: plain text has no place for what was said before.
    InSession,
    /// The request said so.
    Yes,
}

/// What a user's or node's configuration adds to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Defaults {
    /// First message of chats that have no system message of their own.
    pub system_prompt: Option<String>,
    /// Most tokens of an answer when the request does not say (default 512).
    pub max_tokens: u32,
    /// Model when the request does not name one; `None`: the active one.
    pub model: Option<String>,
    /// Class of requests that claim none; `None`: normal.
    pub priority: Option<Priority>,
    /// Deadline of requests that have none, milliseconds.
    pub deadline_ms: Option<u64>,
    /// Key of requests that have none.
    pub keep_latest: Option<String>,
    /// Conversation of requests that name none.
    pub session: Option<String>,
    /// Sampling when the request does not say. In configuration any subset of the keys; the rest are
    /// those of [`Defaults::default`], checked against the same ranges as requests.
    #[serde(deserialize_with = "sampling::over_builtin")]
    pub sampling: Sampling,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            system_prompt: None,
            max_tokens: 512,
            model: None,
            priority: None,
            deadline_ms: None,
            keep_latest: None,
            session: None,
            sampling: sampling::builtin(),
        }
    }
}

/// Reads the payload of a request; that of op `embed` is for [`parse_embed`].
///
/// The op decides what a body may be: `text` and `text-stream` take plain text alone; `chat`,
/// `complete` and `tokenize` take a JSON object, or plain text when the first character that is no
/// white space is not `{`. Plain text is one user message (`chat`, `text`, `text-stream`) or the prompt.
///
/// # Errors
/// [`Code::PayloadTooLarge`], [`Code::InvalidRequest`] or [`Code::NotSupported`].
pub fn parse(op: Op, payload: &[u8], limits: &Limits) -> Result<Request, ApiError> {
    if payload.len() > limits.payload_bytes {
        let (found, allowed) = (payload.len(), limits.payload_bytes);
        return Err(ApiError::new(
            Code::PayloadTooLarge,
            format!("payload of {found} bytes, at most {allowed} are allowed"),
        ));
    }
    let text = std::str::from_utf8(payload).map_err(|error| {
        let at = error.valid_up_to();
        invalid(format!("payload is not UTF-8 at byte {at}"))
    })?;
    // Some Windows tools put a byte order mark before everything they write.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_object = text.trim_ascii_start().starts_with('{');
    match op {
        Op::Embed => Err(ApiError::new(
            Code::NotSupported,
            "op embed has bodies of its own",
        )),
        Op::Chat | Op::Complete | Op::Tokenize if is_object => {
            json::check_bounds(text, limits)?;
            object(op, json::parse(text)?, limits)
        }
        Op::Chat | Op::Complete | Op::Tokenize | Op::Text | Op::TextStream => plain(op, text),
    }
}

impl Request {
    fn new(op: Op, input: Input) -> Self {
        Self {
            op,
            model: None,
            input,
            sampling: SamplingOverrides::default(),
            stop: Vec::new(),
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
            constraint: None,
            tools: None,
            stream: matches!(op, Op::Chat | Op::Complete | Op::TextStream),
            include_text: false,
            coalesce_ms: None,
            priority: None,
            deadline_ms: None,
            keep_latest: None,
            session: None,
            keeps: Keeps::No,
            template: None,
            filled: None,
        }
    }

    /// The conversation that the node keeps for it, if it does.
    pub fn conversation(&self) -> Option<&str> {
        let is_chat = matches!(self.op, Op::Chat | Op::Text | Op::TextStream);
        let session = self.session.as_deref();
        session.filter(|_| is_chat && self.keeps != Keeps::No)
    }

    /// Refuses a conversation without a name; to be asked when the defaults are filled in.
    ///
    /// # Errors
    /// [`Code::InvalidRequest`].
    pub fn check_session(&self) -> Result<(), ApiError> {
        match (self.keeps, &self.session) {
            (Keeps::Yes, None) => Err(invalid(
                "session_history is true and no session is named: say which with session",
            )
            .with_param("session")),
            _ => Ok(()),
        }
    }

    /// Fills in what the request leaves open: model, `max_tokens`, how it is scheduled, and the system prompt of
    /// a chat without one, unless the node keeps its conversation, which may have one. Sampling is merged by [`Request::sampling`].
    pub fn apply_defaults(&mut self, defaults: &Defaults) {
        if self.model.is_none() {
            self.model.clone_from(&defaults.model);
        }
        self.max_tokens.get_or_insert(defaults.max_tokens);
        self.priority = self.priority.or(defaults.priority);
        self.deadline_ms = self.deadline_ms.or(defaults.deadline_ms);
        if self.keep_latest.is_none() {
            self.keep_latest.clone_from(&defaults.keep_latest);
        }
        if self.session.is_none() {
            self.session.clone_from(&defaults.session);
        }
        if self.conversation().is_none()
            && let (Some(prompt), Input::Chat { messages, .. }) =
                (&defaults.system_prompt, &mut self.input)
        {
            messages::put_system_first(messages, prompt);
        }
    }

    /// The sampling chain: the request's values over the defaults'. Without a seed of its own the
    /// request gets `fallback_seed`.
    pub fn sampling(&self, defaults: &Defaults, fallback_seed: u64) -> Sampling {
        let mut base = defaults.sampling.clone();
        base.seed = fallback_seed;
        self.sampling.over(base)
    }
}

/// A chat that begins with a system prompt and says nothing yet.
pub fn beginning(system_prompt: &str) -> Input {
    messages::to_input(&[Message::of("system", system_prompt), Message::user("")])
}

fn invalid(message: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidRequest, message)
}

fn plain(op: Op, text: &str) -> Result<Request, ApiError> {
    fields::check_text(text, "payload")?;
    // A byte order mark says nothing either.
    if text
        .trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')
        .is_empty()
    {
        return Err(invalid("payload has no text, expected a prompt"));
    }
    let input = match op {
        Op::Complete | Op::Tokenize => Input::Text(text.to_owned()),
        _ => messages::to_input(&[Message::user(text)]),
    };
    let mut request = Request::new(op, input);
    request.keeps = Keeps::InSession;
    Ok(request)
}

fn object(op: Op, body: json::Object, limits: &Limits) -> Result<Request, ApiError> {
    let fields = Fields::new(&body, limits);
    fields.integer(&keys::N)?;
    fields.integer(&keys::BEST_OF)?;
    fields::refuse_unserved(&fields, keys::UNSERVED)?;
    let template = match op {
        Op::Complete => None,
        _ => template::read(op, &fields)?,
    };
    let input = match &template {
        Some(_) => messages::to_input(&[]),
        None => input(op, &fields)?,
    };
    let mut request = Request::new(op, input);
    request.template = template;
    request.model = fields.text(&keys::MODEL)?;
    request.sampling = sampling::read(&fields)?;
    request.stop = fields.stops(&keys::STOP)?;
    request.max_tokens = max_tokens(&fields)?;
    request.min_tokens = min_tokens(&fields, request.max_tokens)?;
    request.logprobs = logprobs(&fields)?;
    request.ignore_eos = fields.boolean(&keys::IGNORE_EOS)?.unwrap_or(false);
    request.constraint = answer::constraint(&fields)?;
    let tools = match op {
        Op::Complete => {
            fields::refuse_unserved(&fields, keys::CHAT_ONLY)?;
            None
        }
        _ => answer::tools(&fields)?,
    };
    answer::check_together(
        request.constraint.as_ref(),
        tools.as_ref().map(|(tools, _)| tools),
        !request.stop.is_empty(),
        request.ignore_eos,
    )?;
    if let (
        Some((tools, shown)),
        Input::Chat {
            tools: of_input, ..
        },
    ) = (tools, &mut request.input)
    {
        *of_input = Some(shown);
        request.tools = Some(tools);
    }
    request.stream = fields.boolean(&keys::STREAM)?.unwrap_or(request.stream);
    request.include_text = match fields.object(&keys::STREAM_OPTIONS)? {
        Some(options) => options.boolean(&keys::INCLUDE_TEXT)?.unwrap_or(false),
        None => false,
    };
    request.coalesce_ms = fields.integer_u32(&keys::COALESCE_MS)?;
    request.priority = match fields.word(&keys::PRIORITY)? {
        Some(word) => Some(word.parse()?),
        None => None,
    };
    request.deadline_ms = fields.integer(&keys::DEADLINE_MS)?;
    request.keep_latest = fields.name(&keys::KEEP_LATEST)?;
    request.session = fields.name(&keys::SESSION)?;
    match op {
        Op::Chat if fields.boolean(&keys::SESSION_HISTORY)? == Some(true) => {
            request.keeps = Keeps::Yes;
        }
        Op::Chat => {}
        _ => fields::refuse_unserved(&fields, keys::CHAT_UNSERVED)?,
    }
    Ok(request)
}

fn input(op: Op, fields: &Fields<'_>) -> Result<Input, ApiError> {
    let chat = || messages::read(fields).map(|messages| messages::to_input(&messages));
    let prompt = || -> Result<Input, ApiError> {
        let prompt = fields.text(&keys::PROMPT)?;
        prompt
            .map(Input::Text)
            .ok_or_else(|| invalid("prompt is missing, expected a string").with_param("prompt"))
    };
    match op {
        Op::Complete => prompt(),
        Op::Tokenize => match (fields.has(&keys::PROMPT), fields.has(&keys::MESSAGES)) {
            (true, true) => Err(invalid(
                "both prompt and messages are given, expected one of them",
            )
            .with_param("prompt")),
            (false, true) => chat(),
            _ => prompt(),
        },
        Op::Chat | Op::Text | Op::TextStream | Op::Embed => chat(),
    }
}

/// `max_tokens`, or its newer name `max_completion_tokens`.
fn max_tokens(fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    let older = fields.integer_u32(&keys::MAX_TOKENS)?;
    let newer = fields.integer_u32(&keys::MAX_COMPLETION_TOKENS)?;
    match (older, newer) {
        (Some(one), Some(other)) if one != other => Err(invalid(format!(
            "max_tokens is {one} and max_completion_tokens is {other}, expected one of them"
        ))
        .with_param("max_tokens")),
        (one, other) => Ok(one.or(other)),
    }
}

fn min_tokens(fields: &Fields<'_>, max_tokens: Option<u32>) -> Result<u32, ApiError> {
    let found = fields.integer_u32(&keys::MIN_TOKENS)?.unwrap_or(0);
    match max_tokens {
        Some(max) if found > max => Err(fields.error(
            keys::MIN_TOKENS.name(),
            format_args!("is {found}, more than max_tokens, which is {max}"),
        )),
        _ => Ok(found),
    }
}

/// `logprobs` of chats (a flag, with `top_logprobs`) or of completions (the number itself).
fn logprobs(fields: &Fields<'_>) -> Result<Option<u8>, ApiError> {
    let n_top = fields.integer_u32(&keys::TOP_LOGPROBS)?;
    let wanted = fields.flag_or_integer(&keys::LOGPROBS)?;
    match (wanted, n_top) {
        (Some(own), top) => Ok(Some(own.max(top.unwrap_or(0)) as u8)),
        (None, Some(n @ 1..)) => Err(fields.error(
            keys::TOP_LOGPROBS.name(),
            format_args!("is {n} and logprobs is not true: it says nothing without"),
        )),
        (None, _) => Ok(None),
    }
}
