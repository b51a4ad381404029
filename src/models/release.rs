//! Models that came as signed releases, beside the files that somebody put on the board.

use std::path::PathBuf;
use std::sync::Arc;

use crate::frames::{Draft, KvType};

/// The releases in service, as they change; the owner of updates writes it.
pub type Releases = Arc<Vec<Release>>;

/// One release, and how its publisher wants it run.
#[derive(Debug, Clone, PartialEq)]
pub struct Release {
    /// The name of this version of the model.
    pub name: String,
    /// The name under which requests, profiles and orders know it, whichever version serves.
    pub line: String,
    /// Its number in the line.
    pub release_seq: u64,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
    /// The file.
    pub path: PathBuf,
    /// Its length.
    pub file_bytes: u64,
    /// It serves where nobody says otherwise.
    pub is_first: bool,
    /// How it is run.
    pub runtime: Runtime,
    /// The release that drafts for it, where its publisher names one.
    pub draft: Option<Draft>,
}

/// How a release is run; what is not said is as the board is configured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    /// KV pool, tokens.
    pub n_ctx: Option<u32>,
    /// Keys in the KV cache.
    pub kv_type_k: Option<KvType>,
    /// Values in the KV cache.
    pub kv_type_v: Option<KvType>,
    /// Jinja template instead of the file's own.
    pub chat_template: Option<String>,
    /// Texts that end an answer, besides those of the request.
    pub stop: Vec<String>,
    /// Sampling that suits the model, where a request says nothing.
    pub sampling: Sampling,
}

/// Sampling, where a request says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sampling {
    /// As in a request.
    pub temperature: Option<f32>,
    /// As in a request.
    pub top_k: Option<u32>,
    /// As in a request.
    pub top_p: Option<f32>,
    /// As in a request.
    pub min_p: Option<f32>,
    /// As in a request.
    pub repeat_penalty: Option<f32>,
}

/// The name of the version that a line's name stands for now; other names stand for themselves.
pub fn resolve<'a>(releases: &'a [Release], name: &'a str) -> &'a str {
    let release = releases.iter().find(|release| release.line == name);
    release.map_or(name, |release| release.name.as_str())
}
