//! What an answer must be, and what judges that before a model is asked.

use serde::{Deserialize, Serialize};

use super::SandboxSpec;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Constraint {
    /// JSON that this JSON Schema allows; the text of the schema.
    JsonSchema(String),
    /// Text of this grammar, in llguidance's dialect of Lark.
    Lark(String),
    /// Calls of tools.
    Calls {
        /// A grammar in which the rules `a0`, `a1`, … are missing.
        lark: String,
        /// What they are: JSON of these schemas.
        arguments: Vec<String>,
    },
}

/// How a model writes that it calls a tool. Its chat template says which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ToolSyntax {
    /// `<tool_call>{"name": …, "arguments": …}</tool_call>`: Hermes, Qwen.
    Hermes,
    /// `{"name": …, "parameters": …}` as the whole answer: Llama 3.x.
    Llama3,
    /// `[TOOL_CALLS][{"name": …, "arguments": …}]`: Mistral.
    Mistral,
    /// `{"tool_calls": [{"name": …, "arguments": …}]}` as the whole answer: templates that know no tools.
    #[default]
    Generic,
}

/// How grammars are to be judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckSpec {
    /// What one compilation may hold, bytes.
    pub bytes: u64,
    /// How long one may compute, the search for the place at fault included, milliseconds.
    pub time_ms: u32,
    /// As of a worker that serves; `None`: no sandbox, for debugging.
    pub sandbox: Option<SandboxSpec>,
}

/// Why a grammar is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The innermost schema at fault, as keys and indices from the root; empty: the whole, or not known.
    pub place: Vec<String>,
    /// A sentence without its end.
    pub reason: String,
    /// It was stopped at a limit.
    pub exceeded: bool,
}
