//! What one model version is, what it needs, how it is run and how it shows that it works.
//!
//! ```json
//! {"schema": 1, "id": "qwen3-4b-instruct-q4km", "line": "assistant-s", "release_seq": 12, "title": "Qwen3 4B",
//!  "model": {"arch": "qwen3", "format": "gguf", "n_params": 4022000000, "quant": "Q4_K_M", "n_ctx_train": 40960,
//!            "n_vocab": 151936, "licence": "Apache-2.0"},
//!  "files": [{"role": "weights", "target": "qwen3-4b-instruct-q4km.gguf", "bytes": 2497281120, "sha256": "…",
//!             "pieces_target": "qwen3-4b-instruct-q4km.pieces", "piece_bytes": 4194304},
//!            {"role": "draft", "line": "drafter", "min_release_seq": 3}],
//!  "runtime": {"n_ctx": 8192, "kv_type_k": "q8_0", "kv_type_v": "q8_0", "sampling_milli": {"temperature": 700}},
//!  "needs": {"memory_mib": [{"n_ctx": 4096, "mib": 3310}, {"n_ctx": 8192, "mib": 3760}], "disk_mib": 2400,
//!            "min_l4t": "36.4.0", "min_engine_build": 9100, "boards": ["orin-nx-16gb"]},
//!  "health": {"load_ms_max": 45000, "golden": [{"kind": "match", "prompt": "Capital of France?",
//!             "must_match": "(?i)\\bparis\\b", "max_tokens": 16}]}}
//! ```
//!
//! The words for what a model is are those of GGUF and of the ModelPack specification. Shares and rates are
//! integers in thousandths or millionths. [`Manifest::parse`] bounds the length first and every value after:
//! what it returns may be acted on without looking again.

mod check;
mod health;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use super::error::{Check, FileError};
use super::name::{BoardName, Digest, LineName, ModelId, TargetName};
use super::pieces::PieceTable;
use crate::board::l4t::L4t;
use crate::frames::KvType;

pub use health::{Golden, Health, SpeedFloor};

/// Longest manifest, bytes: a chat template of 256 KiB, escaped, and the rest.
pub const MANIFEST_BYTES_MAX: usize = 1 << 20;
/// Longest chat template, bytes, as the preflight of GGUF has it.
pub const TEMPLATE_BYTES_MAX: usize = 256 << 10;
/// Of the meaning of a manifest.
pub const SCHEMA: u32 = 1;
/// Most of anything that is listed.
pub const LIST_MAX: usize = 64;
/// Longest context, tokens.
pub const CONTEXT_TOKENS_MAX: u32 = 1 << 24;
/// Most memory that can be asked for, MiB: 1 TiB.
pub const MIB_MAX: u64 = 1 << 20;
/// Release numbers fit in what every JSON reader keeps exactly.
pub const RELEASE_SEQ_MAX: u64 = (1 << 53) - 1;

const CHECK: Check = Check("manifest");

/// One model version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Its name; also that of its files.
    pub id: ModelId,
    /// The line that it continues.
    pub line: LineName,
    /// Its number in the line, from 1; a device does not go back.
    pub release_seq: u64,
    /// For people, at most 200 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// What the model is.
    pub model: Model,
    /// What is fetched, and what must be there.
    pub files: Vec<File>,
    /// How it is run.
    #[serde(default)]
    pub runtime: Runtime,
    /// What the device must have.
    #[serde(default)]
    pub needs: Needs,
    /// Its place among other lines, for choosing by power mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Tier>,
    /// How it shows that it works.
    #[serde(default)]
    pub health: Health,
}

/// What the model is; the first five are read from the file and must agree with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// `general.architecture`.
    pub arch: String,
    /// `gguf`.
    pub format: String,
    /// Parameters.
    pub n_params: u64,
    /// Quantization, e.g. `Q4_K_M`.
    pub quant: String,
    /// Context that it was trained with, tokens.
    pub n_ctx_train: u32,
    /// Entries of the vocabulary.
    pub n_vocab: u32,
    /// SPDX expression, or a name.
    pub licence: String,
    /// E.g. `qwen3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// What it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Where it came from; for people, nothing is fetched from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_url: Option<String>,
    /// Revision at that place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Languages, e.g. `en`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,
    /// What it can do, e.g. `tool_use`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// Digest of the OpenSSF model signature that was checked when it was taken in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oms_bundle_sha256: Option<Digest>,
}

/// One file, or another release that this one works with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum File {
    /// The model. There is exactly one.
    Weights(PiecedFile),
    /// The text of the licence, kept beside it.
    Licence {
        /// Its target.
        target: TargetName,
        /// Its length.
        bytes: u64,
        /// Its digest.
        sha256: Digest,
    },
    /// A smaller model of the same vocabulary that drafts for this one: the release of another line that is on
    /// the device.
    Draft {
        /// Its line.
        line: LineName,
        /// The oldest release that will do.
        min_release_seq: u64,
    },
}

/// A large file with a table of its pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PiecedFile {
    /// Its target.
    pub target: TargetName,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// Target of the table of its pieces.
    pub pieces_target: TargetName,
    /// Length of each piece but the last.
    pub piece_bytes: u32,
}

impl PiecedFile {
    /// Length of its table, bytes.
    pub fn table_bytes(&self) -> u64 {
        PieceTable::table_bytes(self.bytes, self.piece_bytes).expect("checked in Manifest::parse")
    }
}

/// How the model is run. What is not said is as the device is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// KV pool, tokens; 0: what fits.
    #[serde(default)]
    pub n_ctx: u32,
    /// Keys in the KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_type_k: Option<KvType>,
    /// Values in the KV cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_type_v: Option<KvType>,
    /// Jinja template instead of the one in the file: a repaired template is a download of kilobytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Texts that end an answer, besides the model's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Sampling that suits the model, where a request says nothing.
    #[serde(default)]
    pub sampling_milli: SamplingMilli,
}

/// Sampling in thousandths; `top_k` is a count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplingMilli {
    /// 700 is a temperature of 0.7; at most 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<u32>,
    /// Candidates; 0: all; at most 100,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// At most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<u32>,
    /// At most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<u32>,
    /// At most 5000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<u32>,
}

/// What the device must have. An empty list takes any.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needs {
    /// Memory when loaded, by context, ascending; measured, not calculated. Empty: not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory_mib: Vec<MemoryNeed>,
    /// Disk, MiB; 0: the files' lengths.
    #[serde(default)]
    pub disk_mib: u64,
    /// Oldest Jetson Linux, e.g. `36.4.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_l4t: Option<MinL4t>,
    /// Oldest build of llama.cpp; 0: any.
    #[serde(default)]
    pub min_engine_build: u32,
    /// Boards, e.g. `orin-nx-16gb`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boards: Vec<BoardName>,
    /// Names of power modes, e.g. `25W`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub power_modes: Vec<String>,
}

impl Needs {
    /// Memory for a context of `n_ctx` tokens, MiB: of the smallest measured context that holds it, else of the
    /// largest. `None` when nothing was measured.
    pub fn memory_mib(&self, n_ctx: u32) -> Option<u64> {
        let enough = self.memory_mib.iter().find(|need| need.n_ctx >= n_ctx);
        enough.or(self.memory_mib.last()).map(|need| need.mib)
    }
}

/// Memory at one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryNeed {
    /// KV pool, tokens.
    pub n_ctx: u32,
    /// All memory when loaded so, MiB.
    pub mib: u64,
}

/// Place among other lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Least power budget, watts.
    pub min_power_w: u32,
    /// The lowest is taken first.
    pub rank: u32,
}

/// A version of Jetson Linux, in a text such as `36.4.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MinL4t(pub L4t);

impl TryFrom<String> for MinL4t {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true if part.len() <= 4 => part.parse().ok(),
            _ => None,
        };
        let parts: Vec<&str> = text.splitn(4, '.').collect();
        let parsed: Option<Vec<u32>> = parts.iter().map(|part| number(part)).collect();
        match parsed.as_deref() {
            Some(&[release, major, minor]) => Ok(Self(L4t {
                release,
                major,
                minor,
            })),
            _ => Err("a version of Jetson Linux has three numbers, e.g. 36.4.0".into()),
        }
    }
}

impl From<MinL4t> for String {
    fn from(version: MinL4t) -> String {
        version.0.to_string()
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// It is too long, no JSON of this shape, of another schema, or a value is out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let manifest: Self = CHECK.json(bytes, MANIFEST_BYTES_MAX, SCHEMA)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// That each value is within its bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), FileError> {
        check::manifest(self)
    }

    /// The manifest as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("maps have text keys only");
        bytes.push(b'\n');
        bytes
    }

    /// The model file.
    pub fn weights(&self) -> &PiecedFile {
        let weights = self.files.iter().find_map(|file| match file {
            File::Weights(weights) => Some(weights),
            _ => None,
        });
        weights.expect("checked in Manifest::parse")
    }

    /// Line and oldest release of the draft model, if there is one.
    pub fn draft(&self) -> Option<(&LineName, u64)> {
        self.files.iter().find_map(|file| match file {
            File::Draft {
                line,
                min_release_seq,
            } => Some((line, *min_release_seq)),
            _ => None,
        })
    }
}
