//! How probable tokens were to the model itself.
//!
//! Pure. Taken from the logits as they come from the model: what bias, penalties, temperature and truncation
//! make of them is the requester's own doing and tells nothing about the model.

use orinoco::frames::{Logprob, Token, TokenLogprob};

use super::select::{Candidate, mass, maximum, top_k};

/// Probabilities of one job's tokens.
#[derive(Debug)]
pub struct Logprobs {
    n_top: usize,
    /// A copy, since choosing a token changes them.
    logits: Vec<f32>,
    /// Logarithm of the sum of all weights; not finite where the model computes no numbers.
    log_total: f32,
    candidates: Vec<Candidate>,
    scratch: Vec<f32>,
}

impl Logprobs {
    /// Reports `n_top` of the most probable tokens beside the chosen one.
    pub fn new(n_top: usize) -> Self {
        Self {
            n_top,
            logits: Vec::new(),
            log_total: f32::NAN,
            candidates: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Takes a row of logits before a token is chosen from it.
    pub fn look(&mut self, logits: &[f32]) {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        let max = maximum(logits);
        self.log_total = max + mass(logits, max, 1.0).ln() as f32;
    }

    /// What the last row said of `token`; `piece` gives the bytes of one.
    pub fn of(&mut self, token: Token, piece: impl Fn(Token) -> Vec<u8>) -> Logprob {
        let entry = |token: Token, logit: f32| TokenLogprob {
            bytes: piece(token),
            logprob: logit - self.log_total,
        };
        self.candidates.clear();
        if self.n_top > 0 {
            top_k(
                &self.logits,
                self.n_top,
                &mut self.candidates,
                &mut self.scratch,
            );
        }
        let logit = usize::try_from(token).ok();
        let logit = logit.and_then(|token| self.logits.get(token).copied());
        Logprob {
            chosen: entry(token, logit.unwrap_or(f32::NEG_INFINITY)),
            top: (self.candidates.iter())
                .map(|candidate| entry(candidate.token, candidate.logit))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(token: Token) -> Vec<u8> {
        token.to_le_bytes().to_vec()
    }

    proptest! {
        #[test]
        fn they_are_the_logarithms_of_probabilities_and_the_best_come_first(
            logits in prop::collection::vec(-30.0_f32..30.0, 1..400),
            at in any::<prop::sample::Index>(),
            n_top in 0_usize..25,
        ) {
            let token = at.index(logits.len());
            let mut logprobs = Logprobs::new(n_top);
            logprobs.look(&logits);
            let found = logprobs.of(token as Token, bytes);
            let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let wanted = f64::from(logits[token]) - total.ln();
            prop_assert!((f64::from(found.chosen.logprob) - wanted).abs() < 1e-4);
            prop_assert_eq!(found.chosen.bytes, bytes(token as Token));
            prop_assert_eq!(found.top.len(), n_top.min(logits.len()));
            prop_assert!(found.top.windows(2).all(|pair| pair[0].logprob >= pair[1].logprob));
            let best = logits.iter().copied().fold(f32::MIN, f32::max);
            if let Some(first) = found.top.first() {
                prop_assert!((f64::from(first.logprob) - (f64::from(best) - total.ln())).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn what_is_changed_afterwards_does_not_count() {
        let mut logits = vec![1.0, 1.0];
        let mut logprobs = Logprobs::new(1);
        logprobs.look(&logits);
        logits[0] = f32::NEG_INFINITY;
        let found = logprobs.of(0, bytes).chosen.logprob;
        assert!((found - 0.5_f32.ln()).abs() < 1e-6, "{found}");
    }
}
