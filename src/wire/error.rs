//! Errors as requesters see them: a stable code, an HTTP-like status, an OpenAI `type`.
//!
//! Codes are never renamed and never change their status; new ones may come. Every refused or failed
//! request ends with exactly one of these.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal $status:literal $kind:literal),* $(,)?) => {
        /// What went wrong, in one stable word.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[schemars(transform = tell_status)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// All of them, by status.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word on the wire.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// HTTP-like status: 4xx, the request is at fault; 5xx, this node is.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// `type` of an OpenAI error object.
            pub const fn kind(self) -> &'static str {
                match self { $(Self::$variant => $kind,)* }
            }
        }
    };
}

codes! {
    /// The body is no valid request; `param` names the key.
    InvalidRequest = "invalid_request" 400 "invalid_request_error",
    /// The Response Topic is not below the requester's own.
    ResponseTopicDenied = "response_topic_denied" 403 "permission_error",
    /// This user may not do that here (op, priority, model).
    NotAllowed = "not_allowed" 403 "permission_error",
    /// No model of that name on this node.
    ModelNotFound = "model_not_found" 404 "not_found_error",
    /// The deadline passed, or cannot be met.
    DeadlineExceeded = "deadline_exceeded" 408 "timeout_error",
    /// The requester took the answer too slowly; what was unsent is lost.
    SlowConsumer = "slow_consumer" 408 "timeout_error",
    /// The id was used within the last ten minutes with another body.
    IdReused = "id_reused" 409 "invalid_request_error",
    /// A newer request of the same user with the same keep_latest took its place.
    Replaced = "replaced" 409 "cancelled_error",
    /// The payload is larger than this node takes.
    PayloadTooLarge = "payload_too_large" 413 "invalid_request_error",
    /// The prompt has more tokens than one request may use.
    ContextLengthExceeded = "context_length_exceeded" 422 "invalid_request_error",
    /// The answer went where the grammar or schema costs more than its limit, or leaves no next token.
    GrammarFailed = "grammar_failed" 422 "invalid_request_error",
    /// The queue has no place.
    QueueFull = "queue_full" 429 "rate_limit_error",
    /// This user asks too often or too much.
    RateLimited = "rate_limited" 429 "rate_limit_error",
    /// Called off by the requester before it began.
    Cancelled = "cancelled" 499 "cancelled_error",
    /// The engine failed on this request.
    EngineError = "engine_error" 500 "server_error",
    /// This request, alone, made the engine die twice.
    Poison = "poison" 500 "server_error",
    /// The op of the topic is unknown to this version.
    UnknownOp = "unknown_op" 501 "not_supported_error",
    /// A known op or key that this version does not serve yet.
    NotSupported = "not_supported" 501 "not_supported_error",
    /// A model is being loaded.
    ModelLoading = "model_loading" 503 "unavailable_error",
    /// No model can be served; `state` on the node's topic says why.
    NoModel = "no_model" 503 "unavailable_error",
    /// The node is about to stop.
    Draining = "draining" 503 "unavailable_error",
    /// The job cannot be stored.
    StorageFull = "storage_full" 507 "unavailable_error",
    /// The job does not fit into the memory that is left.
    OutOfMemory = "out_of_memory" 507 "unavailable_error",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An OpenAI error object: `{"message","type","code","param"}`, and `retry_after_ms` where a retry helps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// What went wrong.
    pub code: Code,
    /// A sentence for a person: what was found, what is expected, what to do.
    pub message: String,
    /// The key at fault, e.g. `messages[2].content`.
    #[serde(default)]
    pub param: Option<String>,
    /// When the same request, with the same id, may succeed.
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
    /// When the answer would come, where that is too late.
    #[serde(default)]
    pub eta_ms: Option<u64>,
}

impl ApiError {
    /// An error without a key and without a time to retry.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after_ms: None,
            eta_ms: None,
        }
    }

    /// Names the key at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Says when to try again.
    #[must_use]
    pub fn with_retry(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }

    /// Says when the answer would come.
    #[must_use]
    pub fn with_eta(mut self, eta_ms: u64) -> Self {
        self.eta_ms = Some(eta_ms);
        self
    }

    /// The error as a line of bare text, `!code message`, for receivers without JSON.
    ///
    /// Control characters become spaces, so that it stays one line.
    pub fn line(&self) -> String {
        let message: String = self
            .message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        format!("!{} {message}", self.code)
    }
}

impl Serialize for ApiError {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ErrorObject {
            message: &self.message,
            r#type: self.code.kind(),
            code: self.code,
            param: self.param.as_deref(),
            retry_after_ms: self.retry_after_ms,
            eta_ms: self.eta_ms,
        }
        .serialize(serializer)
    }
}

/// What went wrong, as OpenAI has it.
// Its order of keys as well; `param` is null there when it does not apply.
#[derive(Serialize, JsonSchema)]
#[schemars(extend("allOf" = kinds_of_codes()))]
pub(super) struct ErrorObject<'a> {
    /// A sentence for a person: what was found, what is expected, what to do. It may change.
    message: &'a str,
    /// Kind of error, which its code decides.
    r#type: &'static str,
    /// One stable word for programs.
    code: Code,
    /// The key at fault, e.g. messages[2].content; null where there is none.
    param: Option<&'a str>,
    /// Milliseconds after which the same request, with the same id, may succeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// Milliseconds in which the answer would have come, where a deadline cannot be met.
    #[serde(skip_serializing_if = "Option::is_none")]
    eta_ms: Option<u64>,
}

/// Puts the status beside each code of the published schema.
fn tell_status(schema: &mut schemars::Schema) {
    let Some(serde_json::Value::Array(codes)) = schema.get_mut("oneOf") else {
        return;
    };
    for entry in codes {
        let code = Code::ALL
            .iter()
            .find(|code| entry["const"] == code.as_str());
        let about = entry["description"].as_str().unwrap_or_default();
        if let Some(code) = code {
            entry["description"] = format!("{}: {about}", code.status()).into();
        }
    }
}

/// Which `type` a code has, as conditions of a JSON Schema.
fn kinds_of_codes() -> Vec<serde_json::Value> {
    let mut kinds: Vec<_> = Code::ALL.iter().map(|code| code.kind()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let rule = |kind: &str| {
        let codes: Vec<_> = Code::ALL
            .iter()
            .filter(|code| code.kind() == kind)
            .collect();
        serde_json::json!({
            "if": {"properties": {"code": {"enum": codes}}},
            "then": {"properties": {"type": {"const": kind}}},
        })
    };
    kinds.into_iter().map(rule).collect()
}
