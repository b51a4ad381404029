//! How likely the model finds a text: the mean negative log-likelihood of its tokens.
//!
//! The probe of an update asks for it: a damaged or wrong model is surprised by plain language long before its
//! answers read like nonsense, and unlike an answer the figure changes little between kernels and batch shapes.

use orinoco::frames::{JobError, Scored};

use super::Run;
use crate::model::Row;
use crate::prefix::Pool;

/// Longest text, tokens: a page.
const TOKENS_MAX: usize = 2048;

/// Scores `text`; nothing else may run. What was cached is dropped.
pub(super) fn score(run: &mut Run<'_>, text: &str) -> Result<Scored, JobError> {
    let limits = run.decoder.limits();
    let ids = (run.decoder.tokenize(text, true, false)).map_err(JobError::Input)?;
    let n_max = TOKENS_MAX.min(limits.n_ctx_seq as usize);
    if ids.len() > n_max {
        return Err(JobError::TooLong {
            n_prompt: ids.len() as u32,
            n_ctx_seq: n_max as u32,
        });
    }
    if ids.len() < 2 {
        return Err(JobError::Input("a text of less than two tokens".into()));
    }
    run.shelf.clear();
    run.forget_parked();
    for seq in 0..limits.n_seq_max {
        run.decoder.seq_rm(seq, 0);
    }
    run.pool = Pool::new(limits);
    // As many rows have logits in one batch as sequences can decode side by side.
    let n_rows = limits.n_seq_max.min(limits.n_batch).max(1) as usize;
    let mut nll = 0.0;
    let mut scored = Ok(());
    'text: for (n_batch, batch) in ids.chunks(n_rows).enumerate() {
        let first = n_batch * n_rows;
        let rows = Vec::from_iter(batch.iter().enumerate().map(|(row, token)| Row {
            seq: 0,
            token: *token,
            pos: (first + row) as u32,
            wants_logits: true,
        }));
        scored = (run.decoder.decode(&rows)).map_err(|error| JobError::Decode(error.to_string()));
        if scored.is_err() {
            break;
        }
        for row in 0..rows.len() {
            let Some(next) = ids.get(first + row + 1) else {
                break 'text;
            };
            nll += surprise(run.decoder.logits(row), *next as usize);
        }
    }
    run.decoder.seq_rm(0, 0);
    scored?;
    let n_tokens = ids.len() - 1;
    Ok(Scored {
        n_tokens: n_tokens as u32,
        mean_nll: nll / n_tokens as f64,
    })
}

/// Negative logarithm of the probability of `token`, nats; infinite where logits are no numbers.
fn surprise(logits: &[f32], token: usize) -> f64 {
    let Some(chosen) = logits.get(token) else {
        return f64::INFINITY;
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let nll = sum.ln() + f64::from(max) - f64::from(*chosen);
    match nll.is_finite() {
        true => nll,
        false => f64::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::surprise;

    #[test]
    fn even_odds_of_four_are_the_logarithm_of_four_and_no_number_is_infinite() {
        assert!((surprise(&[1.0; 4], 2) - 4.0_f64.ln()).abs() < 1e-9);
        assert!(surprise(&[100.0, 0.0], 0) < 1e-9);
        assert_eq!(surprise(&[f32::NAN; 4], 0), f64::INFINITY);
        assert_eq!(surprise(&[1.0], 7), f64::INFINITY);
    }
}
