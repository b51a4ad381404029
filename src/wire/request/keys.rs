//! Keys of a JSON body: what each is for, and which values it takes.
//!
//! One table for three readers: [`super::fields`] reads values through a key and can look for nothing
//! else, [`super::schema`] describes the same keys for the published contract, and a person finds here
//! what a body may say. A key is made in this file only, and each list of keys is published: what the
//! node reads and what it says that it reads cannot differ.

use std::ops::RangeInclusive;

use serde_json::Value;

use super::{Limits, Priority};

/// A key of an object, and the kind of its values.
#[derive(Debug)]
pub(super) struct Key<T> {
    name: &'static str,
    about: &'static str,
    takes: T,
}

impl<T> Key<T> {
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// The kind of values, with their bounds.
    pub(super) fn takes(&self) -> &T {
        &self.takes
    }
}

/// A kind of values.
pub(super) trait Kind: Sync {
    /// Its JSON Schema.
    fn schema(&self, limits: &Limits) -> Value;
}

/// A key whatever its kind, for the published lists.
pub(super) trait AnyKey: Sync {
    fn name(&self) -> &'static str;
    /// For the programmer of a device; units are named.
    fn about(&self) -> &'static str;
    fn kind(&self) -> &dyn Kind;
}

impl<T: Kind> AnyKey for Key<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn kind(&self) -> &dyn Kind {
        &self.takes
    }
}

/// `true` or `false`.
#[derive(Debug)]
pub(super) struct Boolean;

/// A whole number; `64.0` is one as well, since some languages have no other numbers.
#[derive(Debug)]
pub(super) struct Integer(pub(super) fn(&Limits) -> RangeInclusive<u64>);

/// `true`, `false`, or a number up to this.
#[derive(Debug)]
pub(super) struct FlagOrInteger(pub(super) u32);

/// A number.
#[derive(Debug)]
pub(super) struct Real(pub(super) RangeInclusive<f64>);

/// A string without NUL, with so many bytes.
#[derive(Debug)]
pub(super) struct Text(pub(super) fn(&Limits) -> RangeInclusive<usize>);

/// One of these words.
#[derive(Debug)]
pub(super) struct Word(pub(super) &'static [&'static str]);

/// A string shaped like the names in topics.
#[derive(Debug)]
pub(super) struct NameText;

/// A string that is not empty, or an array of such.
#[derive(Debug)]
pub(super) struct Stops;

/// A string that is not empty, or an array of so many of them.
#[derive(Debug)]
pub(super) struct Inputs(pub(super) usize);

/// An object from token ids to numbers.
#[derive(Debug)]
pub(super) struct Biases(pub(super) RangeInclusive<f64>);

/// An array of objects with the keys of [`MESSAGE`].
#[derive(Debug)]
pub(super) struct Messages;

/// A string, or an array of objects with the keys of [`PART`].
#[derive(Debug)]
pub(super) struct Content;

/// An object with the keys of [`STREAM_OPTIONS`].
#[derive(Debug)]
pub(super) struct Options;

/// An object with the keys of [`FORMAT`].
#[derive(Debug)]
pub(super) struct Format;

/// An object with the keys of [`SCHEMA_KEYS`].
#[derive(Debug)]
pub(super) struct NamedSchema;

/// A JSON Schema.
#[derive(Debug)]
pub(super) struct AnySchema;

/// A JSON Schema of an object.
#[derive(Debug)]
pub(super) struct ObjectSchema;

/// An object from names to strings, numbers and booleans, with so many of them.
#[derive(Debug)]
pub(super) struct Vars(pub(super) usize);

/// An array of objects with the keys of [`TOOL`].
#[derive(Debug)]
pub(super) struct ToolList;

/// A word, or an object that names a function.
#[derive(Debug)]
pub(super) struct ToolChoice;

/// An object with the keys of [`FUNCTION_KEYS`].
#[derive(Debug)]
pub(super) struct FunctionObject;

/// An array of objects with the keys of [`CALL`].
#[derive(Debug)]
pub(super) struct Calls;

/// An object with the keys of [`CALLED`].
#[derive(Debug)]
pub(super) struct CalledObject;

/// JSON text of an object, or that object.
#[derive(Debug)]
pub(super) struct Arguments;

/// A key that would change the answer and that this version cannot honour. Client libraries send it
/// with a value that changes nothing, and that passes.
#[derive(Debug)]
pub(super) struct Unserved(pub(super) Neutral);

/// The value that changes nothing. `null` always does nothing.
#[derive(Debug)]
pub(super) enum Neutral {
    Null,
    False,
    EmptyText,
    EmptyArray,
    /// One of these words.
    Words(&'static [&'static str]),
    /// An array of nothing but `"text"`.
    TextOnly,
}

/// Declares the keys of one object, and the list of them.
macro_rules! keys {
    ($(#[$doc:meta])* $list:ident: $($key:ident = $name:literal $takes:ident $(($value:expr))?, $about:literal;)*) => {
        $(pub(super) const $key: Key<$takes> =
            Key { name: $name, about: $about, takes: $takes $(($value))? };)*
        $(#[$doc])*
        pub(super) const $list: &[&dyn AnyKey] = &[$(&$key),*];
    };
}

keys! {
    /// What is asked; [`super::input`] knows which op wants which.
    INPUT:
    MESSAGES = "messages" Messages,
        "The conversation so far.";
    PROMPT = "prompt" Text(|limits| 1..=limits.payload_bytes),
        "Text that is continued or tokenized as it stands, without a chat template.";
    TEMPLATE = "template" NameText,
        "In the place of messages: a wording that the node has, by one of the names in its info.";
    VARS = "vars" Vars(super::template::VARS_MAX),
        "What varies in it, by the names of its variables.";
}

/// Texts in one request for vectors: their answer is one packet.
const EMBED_TEXTS_MAX: usize = 256;

keys! {
    /// Of op embed, which must be there.
    EMBED_INPUT:
    INPUTS = "input" Inputs(EMBED_TEXTS_MAX),
        "A text, or up to 256 texts, to turn into vectors.";
}

keys! {
    /// Of op embed, beside [`MODEL`].
    EMBED:
    DIMENSIONS = "dimensions" Integer(|_| 1..=65_536),
        "Length of the vectors: their first numbers, of length 1 again. Absent: as the model makes them.";
    ENCODING_FORMAT = "encoding_format" Word(&["float", "base64"]),
        "float: arrays of numbers; base64: 32-bit floats, little endian, less than half as long. Absent: float.";
    TRUNCATE = "truncate" Boolean,
        "true: a text that is too long for the model is cut, and orinoco.truncated says so; false: it is refused. Absent: false.";
}

/// As with OpenAI.
const TOP_LOGPROBS_MAX: u32 = 20;

keys! {
    /// How it is to be answered: every op reads these, though `tokenize` has no use for most.
    BODY:
    MODEL = "model" Text(|_| 1..=256),
        "A name from the node's `models`, at most 256 bytes. Absent: the user's default, else the active one.";
    MAX_TOKENS = "max_tokens" Integer(|limits| 1..=limits.max_tokens.into()),
        "Most tokens to make. Absent: the user's default. The model's context may allow less.";
    MAX_COMPLETION_TOKENS = "max_completion_tokens" Integer(|limits| 1..=limits.max_tokens.into()),
        "Newer name of max_tokens. Where both are given they must be equal.";
    TEMPERATURE = "temperature" Real(0.0..=2.0),
        "0 always takes the best token. Absent: 0.8, unless configured.";
    TOP_K = "top_k" Integer(|_| 0..=1_000_000),
        "Only so many best tokens are drawn from; 0: off. Absent: 40, unless configured.";
    TOP_P = "top_p" Real(0.0..=1.0),
        "Only the best tokens that together have this probability are drawn from; 1: off. Absent: 0.95, unless configured.";
    MIN_P = "min_p" Real(0.0..=1.0),
        "Tokens less likely than this share of the best one are not drawn; 0: off. Absent: 0.05, unless configured.";
    REPEAT_PENALTY = "repeat_penalty" Real(0.1..=10.0),
        "Divides the logits of tokens that came before; 1: off. Absent: 1, unless configured.";
    // Penalties walk over this many tokens at each draw.
    REPEAT_LAST_N = "repeat_last_n" Integer(|_| 0..=4096),
        "Tokens that the penalties look back on; 0: none. Absent: 64, unless configured.";
    FREQUENCY_PENALTY = "frequency_penalty" Real(-2.0..=2.0),
        "Taken from a token's logit for each time it came before; 0: off. Absent: 0, unless configured.";
    PRESENCE_PENALTY = "presence_penalty" Real(-2.0..=2.0),
        "Taken from a token's logit when it came before; 0: off. Absent: 0, unless configured.";
    SEED = "seed" Integer(|_| 0..=u64::MAX),
        "Same seed, same draw. Absent: a new one for each request.";
    LOGIT_BIAS = "logit_bias" Biases(-100.0..=100.0),
        "Token id, as a string, to what is added to its logit.";
    STOP = "stop" Stops,
        "Text, or texts, that end the answer and are not part of it; each at most 256 bytes unless the node's limits differ.";
    MIN_TOKENS = "min_tokens" Integer(|limits| 0..=limits.max_tokens.into()),
        "Fewest tokens to make: before them the model does not end the answer; a stop text still does. Absent: 0.";
    LOGPROBS = "logprobs" FlagOrInteger(TOP_LOGPROBS_MAX),
        "true: tell how probable each token was to the model. A number also asks for so many top_logprobs, as OpenAI has it for completions. Absent: false.";
    TOP_LOGPROBS = "top_logprobs" Integer(|_| 0..=TOP_LOGPROBS_MAX.into()),
        "So many of the most probable tokens are told beside each token; needs logprobs. Absent: 0.";
    IGNORE_EOS = "ignore_eos" Boolean,
        "Go on when the model would end; for measurements. Absent: false.";
    STREAM = "stream" Boolean,
        "true: chunks, then a final; false: one answer. Absent: true.";
    STREAM_OPTIONS = "stream_options" Options,
        "More on the stream.";
    COALESCE_MS = "coalesce_ms" Integer(|limits| 0..=limits.coalesce_ms_max.into()),
        "Milliseconds for which text may be joined before it is sent; 0: a message for each token. Absent: 40, unless configured.";
    RESPONSE_FORMAT = "response_format" Format,
        "What the answer is: text, any JSON object, or JSON that a schema allows. The answer always validates, or its finish_reason is not stop.";
    GRAMMAR = "grammar" Text(|_| 0..=super::answer::GRAMMAR_BYTES_MAX),
        "A grammar in llguidance's dialect of Lark, whose text the answer is; in the place of response_format.";
    PRIORITY = "priority" Word(&Priority::WORDS),
        "Which request goes first; the node's configuration says who may claim which. Absent: the user's default, normal unless configured.";
    DEADLINE_MS = "deadline_ms" Integer(|limits| 1..=limits.deadline_ms_max),
        "Milliseconds from acceptance after which the answer is worthless: refused at once where it cannot be met, ended when it passes. Absent: the user's default, none unless configured.";
    KEEP_LATEST = "keep_latest" NameText,
        "A later request of the same user with the same key replaces this one until it has ended.";
    SESSION = "session" NameText,
        "The conversation that the request is part of, by a name of the user's own. Absent: the user's default, none unless configured.";
    N = "n" Integer(|_| 1..=1),
        "Answers wanted; only one is made.";
    BEST_OF = "best_of" Integer(|_| 1..=1),
        "Answers to choose from; only one is made.";
}

keys! {
    /// Tools, of a chat.
    TOOL_KEYS:
    TOOLS = "tools" ToolList,
        "Functions that the model may call, at most 64; their schemas have at most 65536 bytes together.";
    TOOL_CHOICE = "tool_choice" ToolChoice,
        "Whether one is called: auto, as the model likes; none; required, at least one; or the one that is named. Absent: auto.";
    PARALLEL = "parallel_tool_calls" Boolean,
        "Whether one answer may have several calls. Absent: where the model's template has them.";
}

keys! {
    /// Keys of `response_format`.
    FORMAT:
    FORMAT_TYPE = "type" Word(&["text", "json_object", "json_schema"]), "Kind of format.";
}

keys! {
    /// Keys of `response_format` that may be absent.
    FORMAT_MORE:
    JSON_SCHEMA = "json_schema" NamedSchema, "The schema, of type json_schema.";
}

keys! {
    /// Keys of `response_format.json_schema`.
    SCHEMA_KEYS:
    SCHEMA = "schema" AnySchema,
        "A JSON Schema of at most 65536 bytes. Keywords that cannot be kept are refused and never ignored.";
}

keys! {
    /// Keys of a tool.
    TOOL:
    TOOL_TYPE = "type" Word(&["function"]), "Kind of tool.";
    FUNCTION = "function" FunctionObject, "The function.";
}

keys! {
    /// Keys of a function.
    FUNCTION_KEYS:
    FUNCTION_NAME = "name" NameText, "Its name; no other tool has it.";
}

keys! {
    /// Keys of a function that may be absent.
    FUNCTION_MORE:
    FUNCTION_DESCRIPTION = "description" Text(|limits| 0..=limits.payload_bytes),
        "What it does, for the model.";
    PARAMETERS = "parameters" ObjectSchema,
        "JSON Schema of its arguments. Absent: any object.";
    STRICT = "strict" Boolean,
        "Taken and without effect: calls that must be made always validate.";
}

keys! {
    /// Of a chat alone.
    CHAT:
    SESSION_HISTORY = "session_history" Boolean,
        "true: the node keeps the conversation; messages has what is new, and earlier turns stand before it. Needs session. Absent: false; plain text with a session is kept.";
}

/// Tools are chosen by nobody where there are none.
const NO_CHOICE: &[&str] = &["none", "auto"];

const fn unserved(name: &'static str, neutral: Neutral) -> Key<Unserved> {
    let about = match neutral {
        Neutral::TextOnly => "Only text is supported by this version.",
        _ => "Not supported by this version; only a value that changes nothing passes.",
    };
    Key {
        name,
        about,
        takes: Unserved(neutral),
    }
}

/// Keys of a body that OpenAI's servers know and this version does not serve.
pub(super) const UNSERVED: &[Key<Unserved>] = &[
    unserved("functions", Neutral::EmptyArray),
    unserved("function_call", Neutral::Words(NO_CHOICE)),
    unserved("json_schema", Neutral::Null),
    unserved("echo", Neutral::False),
    unserved("suffix", Neutral::EmptyText),
    unserved("modalities", Neutral::TextOnly),
    unserved("audio", Neutral::Null),
];

/// Keys that belong to a chat.
pub(super) const CHAT_ONLY: &[Key<Unserved>] = &[
    unserved("tools", Neutral::EmptyArray),
    unserved("tool_choice", Neutral::Words(NO_CHOICE)),
    unserved("template", Neutral::Null),
    unserved("vars", Neutral::Null),
];

/// Keys of [`CHAT`], in other ops.
pub(super) const CHAT_UNSERVED: &[Key<Unserved>] = &[unserved("session_history", Neutral::False)];

/// The same in a message.
pub(super) const MESSAGE_UNSERVED: &[Key<Unserved>] = &[
    unserved("function_call", Neutral::EmptyArray),
    unserved("audio", Neutral::EmptyArray),
];

keys! {
    /// Keys of a message that every message has.
    MESSAGE:
    ROLE = "role" Word(&["system", "developer", "user", "assistant", "tool"]),
        "Who speaks; developer is another word for system.";
}

keys! {
    /// Keys of a message that may be absent.
    MESSAGE_MORE:
    CONTENT = "content" Content,
        "What was said: text, or parts of text that are joined by line feeds. Absent only beside tool_calls.";
    NAME = "name" Text(|_| 1..=64),
        "Name of the speaker, at most 64 bytes, for chat templates that show it.";
    TOOL_CALL_ID = "tool_call_id" Text(|_| 1..=64),
        "The call that a tool's message answers, at most 64 bytes.";
    TOOL_CALLS = "tool_calls" Calls,
        "What an assistant's message called.";
}

keys! {
    /// Keys of a call.
    CALL:
    CALL_FUNCTION = "function" CalledObject, "What was called.";
}

keys! {
    /// Keys of a call that may be absent.
    CALL_MORE:
    CALL_ID = "id" Text(|_| 1..=64), "The call's id, at most 64 bytes.";
    CALL_TYPE = "type" Word(&["function"]), "Kind of call.";
}

keys! {
    /// Keys of what was called.
    CALLED:
    CALLED_NAME = "name" NameText, "The function.";
    CALLED_ARGUMENTS = "arguments" Arguments, "Its arguments: JSON text of an object, or the object.";
}

keys! {
    /// Keys of a part of a message's content.
    PART:
    PART_TYPE = "type" Word(&["text"]), "Kind of part; only text is supported by this version.";
    PART_TEXT = "text" Text(|_| 0..=usize::MAX), "The text.";
}

keys! {
    /// Keys of `stream_options`.
    STREAM_KEYS:
    INCLUDE_TEXT = "include_text" Boolean,
        "The final of a stream repeats the whole text, in orinoco.text. Absent: false.";
}
