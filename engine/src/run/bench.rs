//! The raw measurement, after llama-bench (one sequence) and llama-batched-bench (several).
//!
//! Prompt part: `n_prompt` arbitrary tokens in each sequence, in full batches. Decoding part: steps of
//! one row a sequence with logits, of arbitrary tokens, nothing sampled and nothing sent, as
//! llama-bench does. Everything cached is dropped before.

use std::time::Instant;

use orinoco::frames::{BenchReport, BenchSpec, Token};

use super::Run;
use crate::model::{DecodeError, Row};
use crate::prefix::Pool;

/// Measures; the report's spec is what was done, cut to what slots and pool allow.
pub(super) fn measure(run: &mut Run<'_>, asked: BenchSpec) -> BenchReport {
    let limits = run.decoder.limits();
    run.shelf.clear();
    run.forget_parked();
    for seq in 0..limits.n_seq_max {
        run.decoder.seq_rm(seq, 0);
    }
    run.pool = Pool::new(limits);
    let n_parallel = asked.n_parallel.clamp(1, limits.n_seq_max);
    let n_room = limits.n_ctx / n_parallel;
    let n_prompt = asked.n_prompt.min(n_room);
    let spec = BenchSpec {
        n_prompt,
        n_gen: asked.n_gen.min(n_room - n_prompt),
        n_parallel,
    };
    if spec != asked {
        tracing::warn!(?asked, ?spec, "the measurement was cut to slots and pool");
    }
    let result = prompt(run, spec).and_then(|prompt_ms| Ok((prompt_ms, generate(run, spec)?)));
    for seq in 0..n_parallel {
        run.decoder.seq_rm(seq, 0);
    }
    let (prompt_ms, gen_ms) = result.unwrap_or_else(|error| {
        tracing::error!(%error, "the measurement failed");
        (f64::NAN, f64::NAN)
    });
    BenchReport {
        spec,
        prompt_ms,
        gen_ms,
    }
}

fn token(seed: u32, n_vocab: u32) -> Token {
    (seed.wrapping_mul(2_654_435_761) % n_vocab.max(1)) as Token
}

fn prompt(run: &mut Run<'_>, spec: BenchSpec) -> Result<f64, DecodeError> {
    let limits = run.decoder.limits();
    let rows = Vec::from_iter((0..spec.n_parallel).flat_map(|seq| {
        (0..spec.n_prompt).map(move |pos| Row {
            seq,
            token: token(seq ^ pos, limits.n_vocab),
            pos,
            wants_logits: pos + 1 == spec.n_prompt,
        })
    }));
    let began = Instant::now();
    for batch in rows.chunks(limits.n_batch as usize) {
        run.decoder.decode(batch)?;
    }
    run.decoder.synchronize();
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

fn generate(run: &mut Run<'_>, spec: BenchSpec) -> Result<f64, DecodeError> {
    let n_vocab = run.decoder.limits().n_vocab;
    let mut rows = Vec::new();
    let began = Instant::now();
    for pos in spec.n_prompt..spec.n_prompt + spec.n_gen {
        rows.clear();
        rows.extend((0..spec.n_parallel).map(|seq| Row {
            seq,
            token: token(seq ^ pos, n_vocab),
            pos,
            wants_logits: true,
        }));
        run.decoder.decode(&rows)?;
        run.decoder.synchronize();
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
