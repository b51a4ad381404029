//! Beginnings that many prompts share: read before anybody asks, and kept while there is room at all.
//!
//! They are jobs like others, so that a long one holds nobody up, with three differences: they are read when nothing
//! else waits, give their slot back to whoever needs it, and nobody is told of them.

use std::rc::Rc;

use orinoco::frames::{Input, Job, JobError, Token};
use serde_json::Value;

use super::Run;
use crate::model::SeqId;
use crate::shelf::common;
use crate::slot::{Slot, Taken};

impl Run<'_> {
    /// Takes a beginning to be read; says nothing, whatever becomes of it.
    pub(super) fn pin(&mut self, job: &Job) {
        self.expects_forms |= job.constraint.is_some();
        if !self.shelf.is_open() || self.draining {
            return;
        }
        let once = Job {
            max_tokens: 1,
            constraint: None,
            ..job.clone()
        };
        let slot = self
            .beginning_of(&job.input)
            .and_then(|prompt| Slot::new(&once, prompt, 0, Rc::default(), self.decoder));
        match slot {
            Ok((slot, Taken::More)) => {
                self.may_admit = true;
                self.wait(slot);
            }
            Ok((_, Taken::Over(_))) => {}
            Err(error) => tracing::warn!(
                ?error,
                "what prompts begin with cannot be read before it is asked for"
            ),
        }
    }

    /// The ids that do not depend on what the last message says beyond what it has.
    fn beginning_of(&self, input: &Input) -> Result<Vec<Token>, JobError> {
        let [one, other] = ["1", "a"].map(|text| self.tokens_of(&saying(input, text)));
        let (mut one, other) = (one?, other?);
        let n = common(&one, &other);
        one.truncate(n);
        Ok(one)
    }

    /// Has a beginning that is being read wait for a better time; whether there was one.
    pub(super) fn unpin(&mut self) -> bool {
        let is_pinned = |slot: &Option<Slot>| slot.as_ref().is_some_and(Slot::is_pinned);
        let Some(seq) = self.slots.iter().position(is_pinned) else {
            return false;
        };
        if let Some(slot) = self.slots[seq].take() {
            self.waiting.push_back(slot);
        }
        self.release(seq as SeqId);
        true
    }
}

/// The messages, of which the last says `text` as well.
fn saying(input: &Input, text: &str) -> Input {
    let Input::Chat { messages, tools } = input else {
        return input.clone();
    };
    let Ok(mut all) = serde_json::from_str::<Vec<Value>>(messages) else {
        return input.clone();
    };
    if let Some(last) = all.last_mut() {
        let begun = last["content"].as_str().unwrap_or_default();
        last["content"] = format!("{begun}{text}").into();
    }
    Input::Chat {
        messages: Value::from(all).to_string(),
        tools: tools.clone(),
    }
}
