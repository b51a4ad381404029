//! Entry points of the fuzzers: bytes of a stranger, and what must hold whatever they are.
//!
//! Each file in `entry` takes any bytes and panics when a promise is broken. The same files run in the
//! ordinary tests over the corpus (`tests/fuzz_corpus.rs`, and the template's tests in the engine), so
//! what a fuzzer found once stays found.

pub mod entry {
    pub mod answer;
    pub mod catalog;
    pub mod frames;
    pub mod gguf;
    pub mod kv_file;
    pub mod manifest;
    pub mod metadata;
    pub mod pieces;
    pub mod request;
    pub mod schema;
    pub mod stick;
    pub mod template;
    pub mod tools;
    pub mod topic;
}

/// The template's source without the engine around it, which would bring llama.cpp along.
#[path = "../../engine/src"]
#[allow(dead_code, unreachable_pub)]
mod engine {
    pub mod budget;
    pub mod model;
    pub mod template;
}
use engine::{budget, model, template};
