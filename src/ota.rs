//! Model updates: what a signed release is, how it gets onto a board, and how it gets into service.
//!
//! ```text
//! metadata/  1.root.json … N.root.json  timestamp.json  7.snapshot.json  7.targets.json      TUF 1.0
//! targets/   <sha256>.catalog.json      which releases there are, for whom, which are recalled
//!            <sha256>.policy.toml       settings for the fleet
//!            <sha256>.<id>.manifest.json  one model version: files, needs, runtime, health
//!            <sha256>.<id>.pieces       digests of the model's pieces, 32 bytes each
//!            <sha256>.<id>.gguf         the model
//! ```
//!
//! The same tree stands on an HTTP server, on a mirror of the site and on a stick. All names are flat and
//! checked ([`name`]). Metadata says what is genuine; the [`catalog`] says what is to run where; a command
//! over MQTT only chooses among that. Every role carries the signed time of its making as [`ISSUED_FIELD`],
//! since boards without a clock have no better one.
//!
//! Numbers in all these files are integers: implementations of TUF refuse others, and canonical JSON has none.
//! The files are read leniently where they come from a newer publisher (keys that are not known are passed
//! over) and a raised `schema` says that a device must understand more than it does. What is signed is hostile
//! all the same until it was bounded: a key can be stolen.
//!
//! Nothing here signs. The publisher is a program of its own, `orinoco-ota`.

pub mod blobs;
pub mod catalog;
pub mod crash;
pub mod deploy;
mod error;
pub mod fetch;
pub mod manifest;
pub mod name;
pub mod pieces;
pub mod policy;
pub mod probe;
pub mod reason;
pub mod source;
pub mod state;
pub mod stick;
pub mod trust;
pub mod vfs;
pub mod waves;

pub use error::FileError;
pub use name::{BoardName, Digest, GroupName, LineName, ModelId, TargetName};
pub use reason::Reason;

/// Build of llama.cpp that the engine of this product has (`b` and this number); manifests may ask for a newer one.
/// The crate that carries llama.cpp does not tell its build: the source of llama-cpp-sys-2 0.1.161 was compared
/// with that of b11434 and is the same. Raise it together with the crate.
pub const ENGINE_BUILD: u32 = 11434;

/// Field in the signed part of each role of ours: when it was signed, in the form of `expires`,
/// e.g. `2026-11-21T13:30:00Z`.
pub const ISSUED_FIELD: &str = "x-issued";
