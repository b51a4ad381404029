//! A few tokens right after the load, timed, and the speed of the memory that they were read from.
//!
//! Layers and buffers can all be in the right place and decoding can still crawl: clocks at their lowest,
//! kernels compiled at run time, a driver that falls back. The numbers go to the supervisor, which knows
//! what this board should reach.

use std::time::Instant;

use orinoco::frames::{Canary, LoadSpec};

use super::context::Context;
use super::{device, log};
use crate::model::{Decoder, LoadError, Row};

/// Decodes that are not counted: they wake clocks, and CUDA captures its graph.
const N_WARM_UP: u32 = 4;
/// Longest time for all of it, whatever the number of tokens: a restart waits for it.
const MS_MAX: u128 = 1500;

/// Decodes `canary_tokens` of any text, one at a time; nothing when none are asked for.
pub(super) fn sing(
    context: &mut Context<'_>,
    spec: &LoadSpec,
) -> Result<Option<Canary>, LoadError> {
    if spec.canary_tokens == 0 {
        return Ok(None);
    }
    let n_tokens = N_WARM_UP + spec.canary_tokens;
    let n_tokens = n_tokens.min(context.limits().n_ctx_seq);
    let start = Instant::now();
    let mut times_ms = Vec::new();
    for pos in 0..n_tokens {
        let row = Row {
            seq: 0,
            token: 0,
            pos,
            wants_logits: true,
        };
        let step = Instant::now();
        context.decode(&[row]).map_err(|error| {
            LoadError(format!("canary decode: {error}; {}", log::take().reason()))
        })?;
        context.synchronize();
        times_ms.push(step.elapsed().as_secs_f64() * 1e3);
        if start.elapsed().as_millis() > MS_MAX {
            break;
        }
    }
    context.seq_rm(0, 0);
    // A model so slow that nothing but warming up happened is judged by that.
    let counted = if times_ms.len() > N_WARM_UP as usize {
        &mut times_ms[N_WARM_UP as usize..]
    } else {
        &mut times_ms[..]
    };
    counted.sort_by(f64::total_cmp);
    let Some(token_ms) = counted.get(counted.len() / 2).copied() else {
        return Ok(None);
    };
    Ok(Some(Canary {
        n_tokens: counted.len() as u32,
        token_ms,
        bytes_per_second: device::fill_bytes_per_second(spec.backend).unwrap_or(0.0),
    }))
}
