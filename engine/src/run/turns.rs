//! Conversations that are longer than a sequence may be: their oldest turns are left out, whole.

use orinoco::frames::{Input, Job, JobError, Token};
use serde_json::Value;

use super::Run;

impl Run<'_> {
    /// Ids of a job's prompt, and how many of its oldest turns they leave out.
    ///
    /// Where all of them are too many, more go than must: down to half of what a sequence may have. So the
    /// prompts of the next turns begin as this one does, and only what is new has to be read.
    pub(super) fn prompt_of(&self, job: &Job) -> Result<(Vec<Token>, u32), JobError> {
        let whole = self.tokens_of(&job.input)?;
        let n_ctx = self.decoder.limits().n_ctx_seq as usize;
        let n_answer = match job.max_tokens as usize {
            0 => n_ctx / 4,
            n => n.min(n_ctx / 4),
        };
        if job.turns.is_empty() || whole.len() + n_answer <= n_ctx {
            return Ok((whole, 0));
        }
        let without = |n: usize| self.tokens_of(&without(&job.input, &job.turns[..n]));
        let (mut fewest, mut most) = (1, job.turns.len());
        while fewest < most {
            let middle = usize::midpoint(fewest, most);
            if without(middle)?.len() <= n_ctx / 2 {
                most = middle;
            } else {
                fewest = middle + 1;
            }
        }
        Ok((without(fewest)?, fewest as u32))
    }
}

/// The messages without those of these turns, which stand behind the first system messages.
fn without(input: &Input, turns: &[u32]) -> Input {
    let Input::Chat { messages, tools } = input else {
        return input.clone();
    };
    let Ok(mut all) = serde_json::from_str::<Vec<Value>>(messages) else {
        return input.clone(); // The template says what is wrong with them.
    };
    let is_system = |message: &&Value| message["role"] == "system";
    let begin = all.iter().take_while(is_system).count();
    let n: usize = turns.iter().map(|n| *n as usize).sum();
    all.drain(begin..(begin + n).min(all.len()));
    Input::Chat {
        messages: Value::from(all).to_string(),
        tools: tools.clone(),
    }
}
