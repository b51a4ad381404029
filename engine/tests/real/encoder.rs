//! all-MiniLM-L6-v2 against its own package: `minilm.json` has texts, and their tokens and vectors by the
//! package's weights and tokenizer, computed without llama.cpp (`minilm.py`).

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use orinoco::frames::{
    BufferUse, Command, EmbedJob, Embedded, Event, JobKey, LoadSpec, Loaded, Task,
};
use orinoco_engine::embed;
use orinoco_engine::model::{Encoder, Loader};
use serde::Deserialize;

use super::backend;
use super::common::{MINILM, SMOLLM, real_spec};

#[derive(Deserialize)]
struct Known {
    text: String,
    ids: Vec<i32>,
    /// In steps of 1/4000.
    vector: Vec<i16>,
}

fn known() -> Vec<Known> {
    serde_json::from_str(include_str!("minilm.json")).unwrap()
}

fn spec() -> LoadSpec {
    LoadSpec {
        task: Task::Embed,
        n_ctx: 512,
        n_seq_max: 32,
        prefix_cache_bytes: 0,
        ..real_spec(MINILM)
    }
}

fn with_encoder(spec: &LoadSpec, play: impl FnOnce(&mut dyn Encoder, Loaded)) {
    let (_guard, mut loader) = backend();
    let mut play = Some(play);
    loader
        .with_encoder(spec, &mut |_| true, &mut |encoder, loaded| {
            play.take().unwrap()(encoder, loaded);
        })
        .unwrap();
}

/// The answer to one job.
fn ask(encoder: &mut dyn Encoder, loaded: &Loaded, texts: &[&str], truncate: bool) -> Embedded {
    let (to, from) = sync_channel(8);
    let (events, told) = sync_channel(64);
    to.send(Command::Embed(Box::new(EmbedJob {
        job: JobKey(1),
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        truncate,
    })))
    .unwrap();
    to.send(Command::Drain).unwrap();
    embed::run(encoder, loaded.clone(), &from, &events);
    drop(events);
    let answer = told.into_iter().find_map(|event| match event {
        Event::Embedded { outcome, .. } => Some(*outcome),
        _ => None,
    });
    answer.unwrap().unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_the_package() {
    let known = known();
    assert!(known.len() >= 50);
    with_encoder(&spec(), |encoder, loaded| {
        assert_eq!((loaded.n_dims, loaded.n_ctx_seq), (384, 512));
        let texts = Vec::from_iter(known.iter().map(|one| one.text.as_str()));
        // All in one job: they share batches.
        let together = ask(encoder, &loaded, &texts, false);
        let mut other_tokens = VecDeque::new();
        for (one, vector) in known.iter().zip(together.vectors.chunks(384)) {
            let ids = encoder.tokenize(&one.text).unwrap();
            let alone = ask(encoder, &loaded, &[&one.text], false);
            assert!(cosine(&alone.vectors, vector) > 0.9999, "{:?}", one.text);
            if ids != one.ids {
                other_tokens.push_back(&one.text);
                continue;
            }
            let theirs = Vec::from_iter(one.vector.iter().map(|step| f32::from(*step)));
            let found = cosine(vector, &theirs);
            assert!(found >= 0.999, "{:?}: {found}", one.text);
        }
        println!("other tokens than the package's: {other_tokens:?}");
        // A mark in a text is no control token here, and the package gives up on words of over 100 letters.
        let is_known = |text: &&String| text.contains("[MASK]") || text.len() > 100;
        assert_eq!(other_tokens.len(), 2, "{other_tokens:?}");
        assert!(other_tokens.iter().all(is_known), "{other_tokens:?}");
    });
}

#[test]
fn a_text_that_was_cut_is_the_one_the_package_cuts() {
    with_encoder(&spec(), |encoder, loaded| {
        let long = "pump ".repeat(600);
        let cut = ask(encoder, &loaded, &[&long], true);
        assert_eq!((cut.n_truncated, cut.n_tokens), (1, 512));
        let same = "pump ".repeat(510);
        let whole = ask(encoder, &loaded, &[&same], false);
        assert_eq!(whole.n_tokens, 512);
        assert!(cosine(&cut.vectors, &whole.vectors) > 0.999_999);
    });
}

#[test]
fn models_for_text_and_models_for_vectors_are_told_apart() {
    let (_guard, mut loader) = backend();
    let talks = LoadSpec {
        task: Task::Embed,
        n_ctx: 512,
        ..real_spec(SMOLLM)
    };
    let refused = loader.with_encoder(&talks, &mut |_| true, &mut |_, _| panic!("served"));
    let message = refused.unwrap_err().0;
    assert!(message.contains("llama.pooling_type"), "{message}");
    let embeds = LoadSpec {
        task: Task::Generate,
        ..spec()
    };
    let refused = loader.with_model(&embeds, &mut |_| true, &mut |_, _, _| panic!("served"));
    let message = refused.unwrap_err().0;
    assert!(message.contains("embeddings.model"), "{message}");
}

#[test]
fn the_plan_of_an_embedding_model_is_what_it_takes() {
    let (_guard, mut loader) = backend();
    let spec = spec();
    let mut planned = None;
    loader
        .with_outline(&spec, &mut |planner| {
            planned = Some(planner.plan(&orinoco::frames::PlanAsk::of(&spec)).unwrap());
        })
        .unwrap();
    let mut taken = None;
    loader
        .with_encoder(&spec, &mut |_| true, &mut |_, loaded| {
            taken = Some(loaded.buffers);
        })
        .unwrap();
    // A mapped file has a buffer of its own name; the bytes are the same.
    let sum = |buffers: Vec<BufferUse>| {
        let parts = buffers
            .iter()
            .map(|b| [b.weights_bytes, b.kv_bytes, b.compute_bytes]);
        parts.fold([0; 3], |a, b| [a[0] + b[0], a[1] + b[1], a[2] + b[2]])
    };
    assert_eq!(sum(planned.unwrap().buffers), sum(taken.unwrap()));
}

/// Milliseconds a query, one at a time and 32 at once; run with --nocapture on an idle machine:
/// `cargo test --release -p orinoco-engine --test real -- --ignored embedding_speed --nocapture`
#[test]
#[ignore = "a measurement"]
fn embedding_speed() {
    for n_threads in [1, 2] {
        let spec = LoadSpec {
            n_threads,
            ..spec()
        };
        with_encoder(&spec, |encoder, loaded| {
            let text = "The pump in hall 3 vibrates and draws 14.2 A since the morning shift.";
            let mut median = |texts: &[&str]| {
                let times = (0..25).map(|_| {
                    let began = Instant::now();
                    ask(encoder, &loaded, texts, false);
                    began.elapsed().as_secs_f64() * 1e3
                });
                let mut times = Vec::from_iter(times);
                times.sort_by(f64::total_cmp);
                times[times.len() / 2]
            };
            let (one, many) = (median(&[text]), median(&[text; 32]));
            println!(
                "{n_threads} threads: one query {one:.2} ms, 32 at once {:.2} ms each",
                many / 32.0
            );
        });
    }
}
