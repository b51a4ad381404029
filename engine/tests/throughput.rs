//! Streams through the socket against the raw decode rate of the same process.
//!
//! Needs an idle machine, so it is asked for by name:
//! `cargo test --release -p orinoco-engine --test throughput -- --ignored --nocapture`

#![allow(clippy::print_stdout, reason = "a report")]

mod common;

use std::time::Instant;

use common::{SMOLLM, Worker, job, real_spec};
use orinoco::frames::{BenchSpec, Command, Event, JobKey, LoadSpec, Sampling};

const N_GEN: u32 = 128;
const ROUNDS: u64 = 5;

/// Tokens a second of the decoding part.
fn raw(worker: &mut Worker, n_parallel: u32) -> f64 {
    worker.send(&Command::Bench(BenchSpec {
        n_prompt: 16,
        n_gen: N_GEN,
        n_parallel,
    }));
    let Some(Event::Bench(report)) = worker.next() else {
        panic!("a report was expected")
    };
    f64::from(N_GEN * n_parallel) / (report.gen_ms / 1e3)
}

/// Tokens a second between the first step that has all streams and the last token.
fn streams(worker: &mut Worker, round: u64, n: u64, sampling: &Sampling) -> f64 {
    let keys = Vec::from_iter((0..n).map(|i| JobKey(1000 * (round + 1) + i)));
    for key in &keys {
        let mut job = job(
            key.0,
            &format!("{} Once upon a time there was", key.0),
            N_GEN + 1,
        );
        job.ignore_eos = true;
        job.sampling = sampling.clone();
        worker.send(&Command::Submit(Box::new(job)));
    }
    let (mut began, mut n_done, mut n_tokens) = (None, 0, 0);
    while n_done < n {
        match worker.next().expect("the worker died") {
            Event::Step { pieces, .. } => {
                if began.is_some() {
                    n_tokens += pieces.iter().map(|p| p.ids.len()).sum::<usize>();
                } else if pieces.len() == n as usize {
                    began = Some(Instant::now());
                }
            }
            Event::Done(done) => {
                n_tokens += done.ids.len();
                n_done += 1;
            }
            _ => {}
        }
    }
    n_tokens as f64
        / began
            .expect("all streams in one step")
            .elapsed()
            .as_secs_f64()
}

#[test]
#[ignore = "needs an idle machine"]
fn streams_reach_the_raw_rate() {
    let spec = LoadSpec {
        n_ctx: 4096,
        n_seq_max: 8,
        n_threads: 0,
        ..real_spec(SMOLLM)
    };
    let (mut worker, _) = Worker::real(&spec);
    let greedy = orinoco_engine::scripted::greedy();
    let usual = Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        ..greedy.clone()
    };
    for (n, wanted) in [(1, 0.97), (8, 0.95)] {
        let (mut best_raw, mut best, mut best_usual) = (0.0_f64, 0.0_f64, 0.0_f64);
        for round in 0..ROUNDS {
            best_raw = best_raw.max(raw(&mut worker, n as u32));
            best = best.max(streams(&mut worker, 2 * round, n, &greedy));
            best_usual = best_usual.max(streams(&mut worker, 2 * round + 1, n, &usual));
        }
        println!(
            "{n} streams: raw {best_raw:.1} t/s, greedy {best:.1} ({:.3}), usual chain {best_usual:.1} ({:.3})",
            best / best_raw,
            best_usual / best_raw
        );
        assert!(
            best / best_raw >= wanted,
            "{} of the raw rate",
            best / best_raw
        );
    }
}
