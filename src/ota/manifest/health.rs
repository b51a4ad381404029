//! How a release shows that it works, before it stays in service.

use regex_lite::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

use crate::ota::name::BoardName;

/// Limits of the probe. 0 and empty: not judged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Longest load, milliseconds.
    #[serde(default)]
    pub load_ms_max: u64,
    /// Most memory that the worker may take, MiB.
    #[serde(default)]
    pub peak_mib_max: u64,
    /// Speed by board and power mode; the first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speed_milli_tok_s: Vec<SpeedFloor>,
    /// Prompts with known answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub golden: Vec<Golden>,
}

impl Health {
    /// The floor for this board in this mode.
    pub fn speed(&self, board: &str, mode: &str) -> Option<&SpeedFloor> {
        let fits = |floor: &&SpeedFloor| {
            floor
                .board
                .as_ref()
                .is_none_or(|name| name.as_str() == board)
                && floor.mode.as_ref().is_none_or(|name| name == mode)
        };
        self.speed_milli_tok_s.iter().find(fits)
    }
}

/// The least speed, in thousandths of a token a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeedFloor {
    /// On this board; none: on any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<BoardName>,
    /// In this power mode; none: in any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Making tokens, one stream.
    #[serde(default)]
    pub decode_min: u64,
    /// Reading a prompt.
    #[serde(default)]
    pub prefill_min: u64,
}

/// A prompt with a known answer. Never byte for byte: kernels and the shape of batches change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Golden {
    /// The likeliest answer to a chat message has something in it.
    Match {
        /// The user's message.
        prompt: String,
        /// Regular expression that the answer must have a match for.
        must_match: String,
        /// Length of the answer, tokens.
        max_tokens: u32,
    },
    /// A text is not surprising.
    Likelihood {
        /// The text.
        text: String,
        /// Mean negative log-likelihood of its tokens at most, in millionths of a nat.
        mean_nll_micro_max: u64,
    },
}

/// Memory that a compiled pattern may take, bytes.
const PATTERN_BYTES_MAX: usize = 1 << 20;

impl Golden {
    /// The pattern that the answer must have a match for; `None` where there is none.
    ///
    /// # Errors
    /// What is wrong with the pattern; never after [`Manifest::check`](super::Manifest::check).
    pub fn pattern(&self) -> Result<Option<Regex>, String> {
        let Self::Match { must_match, .. } = self else {
            return Ok(None);
        };
        let mut builder = RegexBuilder::new(must_match);
        let regex = builder.size_limit(PATTERN_BYTES_MAX).nest_limit(50).build();
        regex.map(Some).map_err(|e| e.to_string())
    }
}
