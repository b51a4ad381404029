//! How the next token is chosen from one row of logits.
//!
//! Pure: logits in, token out. The chain is `logit_bias` → penalties → `top_k` → `top_p` → `min_p` →
//! temperature → draw, each with llama.cpp's meaning. The draw of output token `i` depends on
//! `(seed, i)` alone, so a stream that continues in another process draws what it would have drawn.
//! docs/decisions/0003 says why this is not `llama_sampler`.

mod logprobs;
mod select;

use std::collections::{HashMap, VecDeque};

use orinoco::frames::{Sampling, Token};

pub use self::logprobs::Logprobs;
use self::select::{Candidate, exp, mass, maximum, top_k};

/// The sampler of one job: its settings and the tokens that its penalties look back on.
#[derive(Debug)]
pub struct Sampler {
    spec: Sampling,
    recent: VecDeque<Token>,
    counts: HashMap<Token, u32>,
    /// Kept between tokens so that a token costs no allocation.
    candidates: Vec<Candidate>,
    scratch: Vec<f32>,
}

impl Sampler {
    /// A sampler that has seen no token.
    pub fn new(spec: Sampling) -> Self {
        Self {
            spec,
            recent: VecDeque::new(),
            counts: HashMap::new(),
            candidates: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Shows the penalties a token of the prompt or of the answer.
    pub fn accept(&mut self, token: Token) {
        if !self.has_penalties() {
            return;
        }
        if self.recent.len() >= self.spec.repeat_last_n as usize
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Chooses output token number `index` (from 0). Changes `logits` in place.
    ///
    /// `None` when no token has a finite logit: everything was forbidden, or the model is broken.
    pub fn sample(&mut self, logits: &mut [f32], index: u64) -> Option<Token> {
        self.adjust(logits);
        if self.spec.temperature <= 0.0 {
            return select::argmax(logits);
        }
        self.survivors(logits, index)
    }

    /// Bias and penalties.
    fn adjust(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.spec.logit_bias {
            if let Some(logit) = usize::try_from(token)
                .ok()
                .and_then(|token| logits.get_mut(token))
            {
                *logit += bias;
            }
        }
        for (&token, &count) in &self.counts {
            let Some(logit) = usize::try_from(token)
                .ok()
                .and_then(|token| logits.get_mut(token))
            else {
                continue;
            };
            // Dividing alone would make tokens with negative logits more likely.
            if *logit <= 0.0 {
                *logit *= self.spec.repeat_penalty;
            } else {
                *logit /= self.spec.repeat_penalty;
            }
            *logit -= count as f32 * self.spec.frequency_penalty + self.spec.presence_penalty;
        }
    }

    fn has_penalties(&self) -> bool {
        self.spec.repeat_last_n > 0
            && (self.spec.repeat_penalty != 1.0
                || self.spec.frequency_penalty != 0.0
                || self.spec.presence_penalty != 0.0)
    }

    fn survivors(&mut self, logits: &[f32], index: u64) -> Option<Token> {
        let Self {
            spec,
            candidates,
            scratch,
            ..
        } = self;
        let max = maximum(logits);
        if !max.is_finite() {
            return None;
        }
        candidates.clear();
        let bounded = spec.top_k > 0 && (spec.top_k as usize) < logits.len();
        if bounded {
            top_k(logits, spec.top_k as usize, candidates, scratch);
            let total = candidates
                .iter()
                .map(|c| f64::from(exp(c.logit - max)))
                .sum();
            keep_top_p(candidates, spec.top_p, total, max);
        } else if spec.top_p < 1.0 {
            let total = mass(logits, max, 1.0);
            // The nucleus is nearly always small: widen only until it is inside.
            let mut k = 128;
            loop {
                candidates.clear();
                top_k(logits, k, candidates, scratch);
                let closed = keep_top_p(candidates, spec.top_p, total, max);
                if closed || k >= logits.len() {
                    break;
                }
                k = (k * 8).min(logits.len());
            }
        } else if spec.min_p > 0.0 {
            let floor = max + spec.min_p.ln();
            candidates.extend(above(logits, floor));
        } else {
            return draw_all(logits, max, spec.temperature, uniform(spec.seed, index));
        }
        if spec.min_p > 0.0 {
            let floor = max + spec.min_p.ln();
            candidates.retain(|candidate| candidate.logit >= floor);
        }
        draw(candidates, max, spec.temperature, uniform(spec.seed, index))
    }

    /// What the last [`Sampler::sample`] chose from with `temperature` above 0 and some truncation:
    /// tokens and their probabilities at that temperature, for tests.
    #[doc(hidden)]
    pub fn last_distribution(&self) -> Vec<(Token, f32)> {
        let max = self
            .candidates
            .iter()
            .fold(f32::NEG_INFINITY, |max, c| max.max(c.logit));
        let weigh = |c: &Candidate| f64::from((c.logit - max) / self.spec.temperature).exp();
        let total: f64 = self.candidates.iter().map(weigh).sum();
        Vec::from_iter(
            self.candidates
                .iter()
                .map(|c| (c.token, (weigh(c) / total) as f32)),
        )
    }
}

/// Cuts `candidates` (best first) after the first whose cumulated share of `total` reaches `top_p`;
/// whether it was reached.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f32, total: f64, max: f32) -> bool {
    if top_p >= 1.0 {
        return true;
    }
    let wanted = f64::from(top_p) * total;
    let mut cumulated = 0.0;
    for (i, candidate) in candidates.iter().enumerate() {
        cumulated += f64::from(exp(candidate.logit - max));
        if cumulated >= wanted {
            candidates.truncate(i + 1);
            return true;
        }
    }
    false
}

fn above(logits: &[f32], floor: f32) -> impl Iterator<Item = Candidate> {
    logits
        .iter()
        .enumerate()
        .filter(move |(_, logit)| **logit >= floor)
        .map(|(token, &logit)| Candidate {
            token: token as Token,
            logit,
        })
}

/// Draws among `candidates` by `u` in [0, 1).
fn draw(candidates: &[Candidate], max: f32, temperature: f32, u: f64) -> Option<Token> {
    let weigh = |logit: f32| f64::from(exp((logit - max) / temperature));
    let total: f64 = candidates.iter().map(|c| weigh(c.logit)).sum();
    let target = u * total;
    let mut cumulated = 0.0;
    let mut last = None;
    for candidate in candidates {
        let weight = weigh(candidate.logit);
        if weight > 0.0 {
            cumulated += weight;
            last = Some(candidate.token);
            if cumulated > target {
                break;
            }
        }
    }
    last
}

/// [`draw`] over the whole vocabulary, without candidates.
fn draw_all(logits: &[f32], max: f32, temperature: f32, u: f64) -> Option<Token> {
    const BLOCK: usize = 256;
    let blocks = || logits.chunks(BLOCK).enumerate();
    let total: f64 = blocks()
        .map(|(_, block)| mass(block, max, temperature))
        .sum();
    let mut left = u * total;
    // Rounding can leave a rest after the last block; the last token with any weight then wins.
    let mut last = None;
    for (b, block) in blocks() {
        let in_block = mass(block, max, temperature);
        if in_block <= left || in_block == 0.0 {
            left -= in_block;
            if in_block > 0.0 {
                last = Some((b, block));
            }
            continue;
        }
        last = Some((b, block));
        break;
    }
    let (b, block) = last?;
    let mut drawn = None;
    for (i, logit) in block.iter().enumerate() {
        let weight = f64::from(exp((logit - max) / temperature));
        if weight > 0.0 {
            drawn = Some((b * BLOCK + i) as Token);
            if weight > left {
                break;
            }
            left -= weight;
        }
    }
    drawn
}

/// A number in [0, 1) from `(seed, index)`: two rounds of splitmix64, as a counter-based generator.
fn uniform(seed: u64, index: u64) -> f64 {
    let mixed = splitmix64(splitmix64(seed).wrapping_add(index));
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
