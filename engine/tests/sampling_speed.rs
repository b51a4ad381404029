//! What a token costs in the sampler, ours and llama.cpp's: the figures of docs/decisions/0003.
//!
//! Run with `cargo test --release -p orinoco-engine --test sampling_speed -- --nocapture`.

#![allow(clippy::print_stdout, reason = "a report")]

use std::hint::black_box;
use std::time::Instant;

use orinoco::frames::Sampling;
use orinoco_engine::llama::reference::Chain;
use orinoco_engine::sampling::Sampler;
use orinoco_engine::scripted;

/// A vocabulary's logits as models make them: a bell with a few tokens far above it.
fn logits(n_vocab: usize) -> Vec<f32> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    Vec::from_iter((0..n_vocab).map(|i| {
        let bell = (0..8).map(|_| next()).sum::<f32>() * 4.0 - 16.0;
        if i % 997 == 5 { bell + 14.0 } else { bell }
    }))
}

fn median_us(n: usize, mut call: impl FnMut(usize)) -> f64 {
    let mut times = Vec::from_iter((0..n).map(|i| {
        let began = Instant::now();
        call(i);
        began.elapsed().as_secs_f64() * 1e6
    }));
    times.sort_by(f64::total_cmp);
    times[n / 2]
}

#[test]
fn a_token_costs_less_than_llama_cpps_chain() {
    let usual = Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        ..scripted::greedy()
    };
    let chains = [
        ("greedy", scripted::greedy()),
        ("usual", usual.clone()),
        (
            "usual, penalties",
            Sampling {
                repeat_penalty: 1.1,
                repeat_last_n: 64,
                ..usual.clone()
            },
        ),
        (
            "top_p alone",
            Sampling {
                top_k: 0,
                min_p: 0.0,
                ..usual.clone()
            },
        ),
        (
            "temperature alone",
            Sampling {
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                ..usual
            },
        ),
    ];
    for n_vocab in [49_152, 262_144] {
        let logits = logits(n_vocab);
        for (name, spec) in &chains {
            let mut sampler = Sampler::new(spec.clone());
            (0..64).for_each(|token| sampler.accept(token));
            let mut row = logits.clone();
            let ours = median_us(201, |i| {
                black_box(sampler.sample(black_box(&mut row), i as u64));
            });
            let mut chain = Chain::new(spec, n_vocab);
            (0..64).for_each(|token| chain.accept(token));
            let theirs = median_us(51, |_| {
                black_box(chain.apply(black_box(&logits)));
            });
            println!("{n_vocab:7} {name:18} {ours:8.1} us, llama_sampler {theirs:8.1} us");
            assert!(ours < theirs, "{name}: {ours} against {theirs}");
            // 100 us on an idle core of 2020; tests share theirs.
            if spec.top_k > 0 && n_vocab < 50_000 {
                assert!(ours < 1000.0, "{name}: {ours} us");
            }
        }
    }
}
