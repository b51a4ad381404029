//! One step: plan, decode, choose a token for each sequence that came to its end.

use std::ops::Range;
use std::time::Instant;

use orinoco::frames::JobError;

use super::Run;
use crate::model::{DecodeError, SeqId};
use crate::slot::{Slot, Taken};

impl Run<'_> {
    /// One step, if there is anything to decode. `false` when the supervisor is gone.
    pub(super) fn compute(&mut self) -> bool {
        let before_guess = Instant::now();
        let has_drafted = self.guess();
        self.wants.clear();
        let wants = self.slots.iter().map(|slot| slot.as_ref().map(Slot::want));
        self.wants.extend(wants);
        self.schedule.plan(&self.wants, &mut self.shares);
        self.rows.clear();
        let began = Instant::now();
        let (mut n_decoding, mut n_guessed, mut n_prefill, mut n_past) = (0, 0, 0, 0);
        for (seq, slot) in self.slots.iter_mut().enumerate() {
            let (Some(slot), n @ 1..) = (slot, self.shares[seq]) else {
                continue;
            };
            if slot.want().decodes {
                n_decoding += 1;
                n_guessed += slot.guessed().len();
            } else {
                n_prefill += n;
                n_past = slot.n_past();
            }
            slot.starts(began);
            slot.rows(seq as SeqId, n, &mut self.rows);
        }
        if self.rows.is_empty() {
            self.cut_aside();
            return true;
        }
        self.step += 1;
        self.n_made = 0;
        let n_cut = self.aside.n_cut();
        let result = self.decode(0..self.rows.len());
        match result {
            Ok(()) => {
                // Reading logits has waited for the computation; a prefill without logits has not.
                if n_prefill > 0 {
                    self.decoder.synchronize();
                }
                let ms = began.elapsed().as_secs_f64() * 1e3;
                // Where a prompt was cut meanwhile, that may have taken longer.
                let is_pure = self.aside.n_cut() == n_cut;
                let step = self.step;
                tracing::trace!(step, n_decoding, n_prefill, n_past, ms, is_pure, "decoded");
                if n_guessed == 0 && is_pure {
                    self.schedule.measured(n_decoding, n_prefill, n_past, ms);
                }
                if let Some(gain) = &mut self.gain
                    && n_prefill == 0
                    && is_pure
                {
                    // A draft model takes its time also when it finds nothing.
                    let n_tried = n_guessed.max(usize::from(has_drafted));
                    let ms = before_guess.elapsed().as_secs_f64() * 1e3;
                    gain.measured(n_decoding, n_tried, self.n_made, ms);
                }
                true
            }
            Err(DecodeError::Aborted) => false,
            Err(error) => self.decode_apart(error),
        }
    }

    /// Lets the sequences that decode guess what comes next, where that pays. Not while somebody's prompt is
    /// read: that fills the step already. Whether a draft model was asked.
    fn guess(&mut self) -> bool {
        if self.n_draft == 0 {
            return false;
        }
        let running = || self.slots.iter().flatten();
        let n_decoding = running().filter(|slot| slot.want().decodes).count();
        let pays = n_decoding == running().count()
            && (self.gain.as_ref()).is_none_or(|gain| gain.pays(n_decoding));
        for slot in self.slots.iter_mut().flatten() {
            slot.guess(if pays { self.n_draft } else { 0 });
        }
        let Some(draft) = &mut self.draft else {
            return false;
        };
        let slots = (0..).zip(&mut self.slots);
        let mut asks = Vec::from_iter(slots.filter_map(|(seq, slot)| slot.as_mut()?.ask(seq)));
        draft.guess(&mut asks);
        !asks.is_empty()
    }

    /// Decodes a range of `rows` and takes the tokens of the sequences in it.
    fn decode(&mut self, range: Range<usize>) -> Result<(), DecodeError> {
        self.decoder.decode(&self.rows[range.clone()])?;
        self.cut_aside();
        let mut at = range.start;
        while at < range.end {
            let seq = self.rows[at].seq;
            let n = self.rows[at..range.end]
                .iter()
                .take_while(|row| row.seq == seq)
                .count();
            at += n;
            self.take(seq, n, at - 1 - range.start);
        }
        Ok(())
    }

    /// `n` rows of `seq` are in the cache, guessed ones last; the last was row `row` of the batch.
    fn take(&mut self, seq: SeqId, n: usize, row: usize) {
        let Some(slot) = &mut self.slots[seq as usize] else {
            return;
        };
        let (past, n_guessed) = (slot.n_past(), slot.guessed().len());
        let n = n - n_guessed;
        self.pool.push(seq, &slot.tokens()[past..past + n]);
        self.pool.push(seq, slot.guessed());
        if !slot.advance(n) {
            return;
        }
        let mut n_right = 0;
        let taken = loop {
            let logits = self.decoder.logits(row - n_guessed + n_right);
            let taken = slot
                .choose(logits, Instant::now())
                .and_then(|token| slot.take(token, &*self.decoder, &mut self.bytes));
            self.n_made += 1;
            // As long as what was guessed is chosen, its row and the logits after it are what they would be.
            if taken == Ok(Taken::More) && slot.guessed().get(n_right) == slot.tokens().last() {
                n_right += 1;
                slot.advance(1);
            } else {
                break taken;
            }
        };
        slot.guess_told(n_right);
        if n_right < n_guessed {
            let n_past = slot.n_past();
            self.pool.cut(seq, n_past);
            self.decoder.seq_rm(seq, n_past as u32);
        }
        match taken {
            Ok(Taken::More) => {}
            Ok(Taken::Over(finish)) => self.end(seq as usize, Ok(finish)),
            Err(error) => self.end(seq as usize, Err(error)),
        }
    }

    /// The batch failed: each sequence alone, so that only those that fail again end.
    fn decode_apart(&mut self, error: DecodeError) -> bool {
        tracing::warn!(%error, n_rows = self.rows.len(), "decode failed; each sequence is tried alone");
        let mut at = 0;
        while at < self.rows.len() {
            let (seq, pos) = (self.rows[at].seq, self.rows[at].pos);
            let n = self.rows[at..]
                .iter()
                .take_while(|row| row.seq == seq)
                .count();
            // Parts of the failed batch may be in the cache.
            let clean = self.decoder.seq_rm(seq, pos);
            let result = if clean {
                self.decode(at..at + n)
            } else {
                Err(error)
            };
            match result {
                Ok(()) => {}
                Err(DecodeError::Aborted) => return false,
                Err(error) => {
                    tracing::error!(%error, seq, n_rows = n, "decode failed for one job");
                    self.end(seq as usize, Err(JobError::Decode(error.to_string())));
                }
            }
            at += n;
        }
        true
    }
}
