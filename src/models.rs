//! Model files: what there is in `models_dir`, what it is, and how a new file gets in.
//!
//! Owns the directory and the judgement of its files ([`gguf`]). Never loads a model: that is the worker's
//! work, in its own process.

pub mod gguf;
