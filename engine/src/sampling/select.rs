//! Best of many: maximum, argmax and top-k over a vocabulary, without sorting it.
//!
//! NaN counts as absent everywhere: no comparison with it is true.

use orinoco::frames::Token;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: Token,
    pub(super) logit: f32,
}

/// Elements whose maximum is taken at once; a power of two that fills a few vector registers.
const BLOCK: usize = 64;
const LANES: usize = 16;

/// Largest logit, negative infinity if there is none.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = if *logit > *lane { *logit } else { *lane };
        }
    }
    let best = |a: f32, b: &f32| if *b > a { *b } else { a };
    let of_rest = rest.iter().fold(f32::NEG_INFINITY, best);
    lanes.iter().fold(of_rest, best)
}

/// The first token with the largest logit; `None` if no logit is above negative infinity.
pub(super) fn argmax(logits: &[f32]) -> Option<Token> {
    let max = maximum(logits);
    if max == f32::NEG_INFINITY {
        return None;
    }
    // Whole blocks first: comparing without stopping is what the compiler can do many at once.
    let holds = |block: &[f32]| block.iter().fold(false, |found, l| found | (*l == max));
    let block = logits.chunks(BLOCK).position(holds)?;
    logits[block * BLOCK..]
        .iter()
        .position(|logit| *logit == max)
        .map(|at| (block * BLOCK + at) as Token)
}

/// Puts the `k` best into `out`, best first, of equals the lower token first; those at negative
/// infinity are left out.
///
/// The k-th largest of the blocks' maxima is a lower bound of the k-th largest logit, and hardly any
/// logit lies above it: one pass for the maxima, one over the few blocks that reach the bound.
pub(super) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>, scratch: &mut Vec<f32>) {
    let n_blocks = logits.len().div_ceil(BLOCK);
    let mut floor = f32::NEG_INFINITY;
    scratch.clear();
    scratch.extend(logits.chunks(BLOCK).map(maximum));
    if k < n_blocks {
        let maxima = scratch.len();
        scratch.extend_from_within(..);
        let (_, bound, _) = scratch[maxima..].select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        floor = *bound;
        scratch.truncate(maxima);
    }
    for (b, block) in logits.chunks(BLOCK).enumerate() {
        if scratch[b] < floor {
            continue;
        }
        for (i, &logit) in block.iter().enumerate() {
            if logit >= floor && logit > f32::NEG_INFINITY {
                let token = (b * BLOCK + i) as Token;
                out.push(Candidate { token, logit });
            }
        }
    }
    let order =
        |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, order);
        out.truncate(k);
    }
    out.sort_unstable_by(order);
}

/// e^x for x ≤ 0, within 4e-7 of the true value; 0 below −87. Written so that the compiler can do many
/// at once, which it cannot with `f32::exp`.
pub(super) fn exp(x: f32) -> f32 {
    // exp(x) = 2^n · exp(r), |r| ≤ ln 2 / 2; the polynomial is Cephes' expf. Adding 1.5 · 2^23 rounds to
    // an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x > -87.0 { x } else { -87.0 };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = bounded - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4_f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_66;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x > -87.0 { y * power } else { 0.0 }
}

/// Σ exp((logit − max) / temperature).
pub(super) fn mass(logits: &[f32], max: f32, temperature: f32) -> f64 {
    let scale = 1.0 / temperature;
    let mut total = 0.0;
    // Short runs in f32 lanes, their sums in f64: fast, and exact to about 1e-6.
    for run in logits.chunks(LANES * 64) {
        let mut lanes = [0.0_f32; LANES];
        let (chunks, rest) = run.as_chunks::<LANES>();
        for chunk in chunks {
            for (lane, logit) in lanes.iter_mut().zip(chunk) {
                *lane += exp((logit - max) * scale);
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
        total += rest
            .iter()
            .map(|logit| f64::from(exp((logit - max) * scale)))
            .sum::<f64>();
    }
    total
}
