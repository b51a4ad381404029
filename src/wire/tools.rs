//! Tools that a model may call: what was asked for, the grammar of a call that must be made, and the calls in
//! what the model writes.
//!
//! Pure. The model's own text, markers and all, stays what streams, resumes and repeats are counted in; calls
//! are a function of it ([`Parser`]), so a stream that goes on in another worker, or is sent again, tells the
//! same calls in the same pieces.

mod grammar;
mod parse;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use grammar::{CALLS_MAX, call, schemas};
pub use parse::{Parser, Part};

/// Tools of one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tools {
    /// At least one; no name twice.
    pub functions: Vec<Function>,
    /// Whether one must be called.
    pub choice: Choice,
    /// Whether one answer may call more than once; `None`: where the model's template has it.
    pub parallel: Option<bool>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Shaped `[A-Za-z0-9_.-]{1,64}`.
    pub name: String,
    /// JSON Schema of its arguments, as JSON text; `None`: any object.
    pub parameters: Option<String>,
}

/// Whether a tool must be called. `none` is no tools at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Choice {
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
    /// Once, the tool of this name.
    Named(String),
}

/// A call in a message, or what came of one since the last chunk: OpenAI's object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCall<'a> {
    /// Which call of the answer, from 0; in chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Its name for the tool's answer; in the first piece of a call, and in whole answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// Always `function`, beside the id.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("const" = "function"))]
    pub kind: Option<Cow<'a, str>>,
    /// What is called.
    pub function: Called<'a>,
}

/// Function and arguments of a call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Called<'a> {
    /// One of the request's tools; in the first piece of a call, and in whole answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// JSON text of an object, or what came of it since the last chunk.
    #[serde(default)]
    pub arguments: Cow<'a, str>,
}

/// Content and calls of a whole answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// What was said beside the calls.
    pub content: String,
    /// Name and arguments of each call.
    pub calls: Vec<(String, String)>,
}

impl Answer {
    /// Reads a whole text.
    pub fn of(mut parser: Parser, text: &str) -> Self {
        let mut parts = Vec::new();
        parser.push(text, &mut parts);
        parser.finish(&mut parts);
        let mut answer = Self::default();
        answer.add(&parts);
        answer
    }

    /// Joins what a parser gave.
    pub fn add(&mut self, parts: &[Part]) {
        for part in parts {
            match part {
                Part::Content(text) => self.content.push_str(text),
                Part::Call { name } => self.calls.push((name.clone(), String::new())),
                Part::Arguments(text) => {
                    if let Some((_, arguments)) = self.calls.last_mut() {
                        arguments.push_str(text);
                    }
                }
            }
        }
    }
}

/// The id of an answer's call number `index`: nine letters and digits, which is what Mistral's templates
/// insist on; the same whenever the answer is told again.
pub fn call_id(request: &str, attempt: u32, index: u32) -> String {
    // FNV-1a, whose result no version of a library changes.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let numbers = [attempt.to_le_bytes(), index.to_le_bytes()].concat();
    for byte in request.bytes().chain(numbers) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let digit = |_| {
        let digit = DIGITS[(hash % 36) as usize];
        hash /= 36;
        char::from(digit)
    };
    (0..9).map(digit).collect()
}
