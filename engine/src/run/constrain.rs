//! Jobs whose answers have a grammar: they wait for their matcher before they get a slot.

use std::time::Duration;

use orinoco::frames::{Constraint, JobError, Token};

use super::Run;
use crate::slot::{Slot, Taken};

/// A worker to which nothing comes for so long rests: sorting takes a core that a prompt could use.
const QUIET: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });
/// Tokens of the vocabulary that are read at a time: well below a millisecond.
const WORDS_AT_ONCE: usize = 2048;

impl Run<'_> {
    /// Has the grammar compiled; the job joins the queue with its matcher.
    pub(super) fn constrain(&mut self, slot: Slot, constraint: &Constraint) {
        if !self.grammars.is_prepared() {
            self.read_words(usize::MAX);
        }
        let words = std::mem::take(&mut self.words);
        let vocabulary = || words;
        match self.grammars.compile(slot.job, constraint, vocabulary) {
            Ok(()) => self.compiling.push(slot),
            Err(reason) => self.say_done(slot, Err(JobError::Constraint(reason))),
        }
    }

    /// How long nothing may come before the vocabulary is read on; `None`: it need not be read. It takes four tenths
    /// of a KiB a token, so where no form is expected, or memory is short, it waits until one is asked for.
    pub(super) fn reads_words_after(&self) -> Option<Duration> {
        if !self.expects_forms || self.grammars.is_prepared() || self.shelf.is_closed() {
            return None;
        }
        Some(match self.words.words.is_empty() {
            true => QUIET,
            false => Duration::ZERO,
        })
    }

    /// Reads on in the vocabulary, so far that nobody notices, and has it sorted when all of it is read.
    pub(super) fn prepare_grammars(&mut self) {
        self.read_words(WORDS_AT_ONCE);
        if self.words.words.len() < self.decoder.limits().n_vocab as usize {
            return;
        }
        let words = std::mem::take(&mut self.words);
        if let Err(error) = self.grammars.prepare(words) {
            tracing::warn!(%error, "the vocabulary is sorted when an answer with a form is wanted");
        }
    }

    /// At most `n` tokens.
    fn read_words(&mut self, n: usize) {
        let begin = self.words.words.len();
        let end = begin
            .saturating_add(n)
            .min(self.decoder.limits().n_vocab as usize);
        for token in begin as Token..end as Token {
            let mut bytes = Vec::new();
            match self.decoder.is_eog(token) {
                true => self.words.ends.push(token),
                false => self.markers.piece(token, &*self.decoder, &mut bytes),
            }
            self.words.words.push(bytes);
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
