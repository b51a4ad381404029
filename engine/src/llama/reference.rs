//! llama.cpp's own sampler chain, as the reference that tests and `docs/decisions/0003` measure
//! ours against. The product never samples with it.

#![allow(unsafe_code, reason = "llama_sampler is a C interface")]

use llama_cpp_sys_2 as sys;
use orinoco::frames::{Sampling, Token};

/// A `llama_sampler` chain with the same settings, the draw left out.
#[derive(Debug)]
pub struct Chain {
    raw: *mut sys::llama_sampler,
}

impl Chain {
    /// For a vocabulary of `n_vocab` tokens.
    pub fn new(spec: &Sampling, n_vocab: usize) -> Self {
        let biases = Vec::from_iter(
            spec.logit_bias
                .iter()
                .map(|&(token, bias)| sys::llama_logit_bias { token, bias }),
        );
        // SAFETY: each sampler is owned by the chain from `chain_add` on; the biases are copied.
        let raw = unsafe {
            let raw = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            let add = |sampler| sys::llama_sampler_chain_add(raw, sampler);
            add(sys::llama_sampler_init_logit_bias(
                n_vocab as i32,
                biases.len() as i32,
                biases.as_ptr(),
            ));
            add(sys::llama_sampler_init_penalties(
                n_vocab as i32,
                spec.repeat_last_n as i32,
                spec.repeat_penalty,
                spec.frequency_penalty,
                spec.presence_penalty,
            ));
            if spec.temperature <= 0.0 {
                add(sys::llama_sampler_init_greedy());
            } else {
                add(sys::llama_sampler_init_top_k(spec.top_k as i32));
                add(sys::llama_sampler_init_top_p(spec.top_p, 1));
                add(sys::llama_sampler_init_min_p(spec.min_p, 1));
                add(sys::llama_sampler_init_temp(spec.temperature));
                add(sys::llama_sampler_init_dist(1));
            }
            raw
        };
        Self { raw }
    }

    /// Shows the penalties a token.
    pub fn accept(&mut self, token: Token) {
        // SAFETY: the chain is live.
        unsafe { sys::llama_sampler_accept(self.raw, token) }
    }

    /// Runs the chain as `llama_sampler_sample` does, over a candidate for each token of the vocabulary.
    pub fn apply(&mut self, logits: &[f32]) -> (Token, Vec<(Token, f32)>) {
        let mut data =
            Vec::from_iter(
                logits
                    .iter()
                    .enumerate()
                    .map(|(id, &logit)| sys::llama_token_data {
                        id: id as Token,
                        logit,
                        p: 0.0,
                    }),
            );
        let mut array = sys::llama_token_data_array {
            data: data.as_mut_ptr(),
            size: data.len(),
            selected: -1,
            sorted: false,
        };
        // SAFETY: chain and array are live; llama.cpp leaves `size` entries at `data`, which may then
        // point to a buffer of the chain.
        let left = unsafe {
            sys::llama_sampler_apply(self.raw, &raw mut array);
            std::slice::from_raw_parts(array.data, array.size)
        };
        let selected =
            left[usize::try_from(array.selected).expect("the chain ends in a choice")].id;
        let mut left = Vec::from_iter(left.iter().map(|c| (c.id, c.p)));
        left.sort_by_key(|(token, _)| *token);
        (selected, left)
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: made by llama_sampler_chain_init, freed once.
        unsafe { sys::llama_sampler_free(self.raw) }
    }
}

/// Tokens and probabilities that the chain chooses from, by token; with temperature 0 the one chosen.
pub fn survivors(spec: &Sampling, seen: &[Token], logits: &[f32]) -> Vec<(Token, f32)> {
    let mut chain = Chain::new(spec, logits.len());
    seen.iter().for_each(|token| chain.accept(*token));
    let (selected, left) = chain.apply(logits);
    if spec.temperature <= 0.0 {
        return vec![(selected, 1.0)];
    }
    left
}
