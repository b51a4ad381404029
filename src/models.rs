//! Model files: what there is in `models_dir`, what it is, and how a new file gets in.
//!
//! Owns the directory and the judgement of its files ([`gguf`]). A file gets in by [`add()`] (judged,
//! copied, recorded as local and unsigned) or by hand (then there is no record of it). Never loads a
//! model: that is the worker's work, in its own process.

pub mod add;
mod catalogue;
pub mod gguf;
pub mod release;

pub use add::{AddError, Added, OnExisting, add};
pub use catalogue::{Catalogue, Entry, Record, name_of};
pub use release::{Release, Releases};
