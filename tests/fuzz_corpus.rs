//! The inputs of the fuzzers, and changes of them, through the same entry points: what a fuzzer found once
//! stays found. `scripts/fuzz.sh` runs the fuzzers themselves; the template's corpus runs in the engine.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test fails by panicking; the fuzzers have the entry points from a library"
)]

use std::path::Path;

use proptest::prelude::*;

#[path = "../fuzz/src/entry/answer.rs"]
mod answer;
#[path = "../fuzz/src/entry/catalog.rs"]
mod catalog;
#[path = "../fuzz/src/entry/frames.rs"]
mod frames;
#[path = "../fuzz/src/entry/gguf.rs"]
mod gguf;
#[path = "../fuzz/src/entry/kv_file.rs"]
mod kv_file;
#[path = "../fuzz/src/entry/manifest.rs"]
mod manifest;
#[path = "../fuzz/src/entry/metadata.rs"]
mod metadata;
#[path = "../fuzz/src/entry/pieces.rs"]
mod pieces;
#[path = "../fuzz/src/entry/request.rs"]
mod request;
#[path = "../fuzz/src/entry/schema.rs"]
mod schema;
#[path = "../fuzz/src/entry/stick.rs"]
mod stick;
#[path = "../fuzz/src/entry/tools.rs"]
mod tools;
#[path = "../fuzz/src/entry/topic.rs"]
mod topic;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 13] = [
    ("answer", answer::check),
    ("catalog", catalog::check),
    ("frames", frames::check),
    ("gguf", gguf::check),
    ("kv_file", kv_file::check),
    ("manifest", manifest::check),
    ("metadata", metadata::check),
    ("pieces", pieces::check),
    ("request", request::check),
    ("schema", schema::check),
    ("tools", tools::check),
    ("stick", stick::check),
    ("topic", topic::check),
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let files = std::fs::read_dir(&dir).unwrap();
    let inputs = Vec::from_iter(files.map(|file| std::fs::read(file.unwrap().path()).unwrap()));
    assert!(!inputs.is_empty(), "no inputs in {}", dir.display());
    inputs
}

#[test]
fn every_input_of_the_corpus_keeps_every_promise() {
    for (target, check) in TARGETS {
        corpus(target).iter().for_each(|input| check(input));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn so_does_every_change_of_one(
        which in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<Option<prop::sample::Index>>(),
    ) {
        for (target, check) in TARGETS {
            let inputs = corpus(target);
            let mut input = inputs[which.index(inputs.len())].clone();
            for (at, byte) in &changes {
                if let Some(place) = input.len().checked_sub(1).map(|last| at.index(last + 1)) {
                    input[place] = *byte;
                }
            }
            if let Some(cut) = cut {
                input.truncate(cut.index(input.len() + 1));
            }
            check(&input);
        }
    }
}
