//! Jobs whose answers have a grammar: they wait for their matcher before they get a slot.

use orinoco::frames::{Constraint, JobError, Token};

use super::Run;
use crate::grammar::Vocabulary;
use crate::slot::{Slot, Taken};

impl Run<'_> {
    /// Has the grammar compiled; the job joins the queue with its matcher.
    pub(super) fn constrain(&mut self, slot: Slot, constraint: &Constraint) {
        let (decoder, markers) = (&*self.decoder, &self.markers);
        let vocabulary = || {
            let n_vocab = decoder.limits().n_vocab as Token;
            let word = |token| {
                let mut bytes = Vec::new();
                if !decoder.is_eog(token) {
                    markers.piece(token, decoder, &mut bytes);
                }
                bytes
            };
            Vocabulary {
                words: (0..n_vocab).map(word).collect(),
                ends: (0..n_vocab)
                    .filter(|token| decoder.is_eog(*token))
                    .collect(),
            }
        };
        match self.grammars.compile(slot.job, constraint, vocabulary) {
            Ok(()) => self.compiling.push(slot),
            Err(reason) => self.say_done(slot, Err(JobError::Constraint(reason))),
        }
    }

    /// Takes in the matchers that are ready.
    pub(super) fn collect_matchers(&mut self) {
        while let Some((job, matcher)) = self.grammars.compiled() {
            // It may have been cancelled.
            let Some(at) = self.compiling.iter().position(|slot| slot.job == job) else {
                continue;
            };
            let mut slot = self.compiling.remove(at);
            let begun = matcher
                .map_err(JobError::Constraint)
                .and_then(|matcher| slot.constrain(matcher));
            match begun {
                Ok(Taken::More) => {
                    self.wait(slot);
                    self.may_admit = true;
                }
                Ok(Taken::Over(finish)) => self.say_done(slot, Ok(finish)),
                Err(error) => self.say_done(slot, Err(error)),
            }
        }
    }
}
