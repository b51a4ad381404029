//! Who holds which cells of the KV pool, and where a new prompt's first tokens come from.
//!
//! Pure: it mirrors what the loop tells llama.cpp and never calls it. A new prompt takes the tokens that a
//! running sequence begins with by `seq_cp`, which only marks cells. So one cell may belong to several
//! sequences; each cell here has an owner count, and admission reckons with the exact number of free ones.
//! A job that is interrupted moves its cells to a *place*, a sequence that never decodes, until it comes back.
//! What jobs leave behind when they end is `shelf`'s.

use orinoco::frames::Token;

use crate::model::{Limits, SeqId};
use crate::shelf::{Found, common};

/// Shorter common prefixes than this are decoded again: a BOS token and a template's head.
const N_SHARED_MIN: usize = 8;

/// A saved sequence has to spare this many tokens more than a running one: what is shared with a running
/// sequence needs no cells.
const N_WORTH_COPYING: usize = 32;

/// The pool and everything in it.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    /// The index is the [`SeqId`]: one for each slot, then as many places for parked ones.
    seqs: Vec<Seq>,
    /// Owners of each cell. The numbers are ours; llama.cpp places rows as it likes.
    owners: Vec<u16>,
    free: Vec<u32>,
}

#[derive(Debug, Default)]
struct Seq {
    tokens: Vec<Token>,
    cells: Vec<u32>,
    /// Most tokens that the job may come to; 0 when no job has it.
    reserved: usize,
}

/// Where the first tokens of a job come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The first so many of a running sequence.
    Live(SeqId, usize),
    /// Those that it has in common with a saved one.
    Saved(Found),
}

/// How a job gets its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The slot's sequence.
    pub seq: SeqId,
    /// Where its first tokens come from.
    pub source: Option<Source>,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: Limits) -> Self {
        let mut seqs = Vec::new();
        seqs.resize_with(2 * limits.n_seq_max as usize, Seq::default);
        Self {
            limits,
            seqs,
            owners: vec![0; limits.n_ctx as usize],
            free: Vec::from_iter((0..limits.n_ctx).rev()),
        }
    }

    /// Tokens whose rows are in the cache for `seq`.
    pub fn tokens(&self, seq: SeqId) -> &[Token] {
        &self.seqs[seq as usize].tokens
    }

    /// Cells that no sequence owns.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    /// Whether a slot is free: then a job that is not admitted wants for cells.
    pub fn has_slot(&self) -> bool {
        let slots = &self.seqs[..self.limits.n_seq_max as usize];
        slots.iter().any(|seq| seq.reserved == 0)
    }

    /// A slot and the best source for a job of `tokens` that may come to `reserve` tokens, or `None`
    /// when it has to wait. The caller then calls [`Pool::begin`]. `saved` is the best that is saved.
    ///
    /// `whole(seq, n)` says whether the first `n` tokens of `seq` are all still in the cache.
    pub fn admit(
        &self,
        tokens: &[Token],
        reserve: usize,
        saved: Option<Found>,
        whole: impl Fn(SeqId, usize) -> bool,
    ) -> Option<Admission> {
        let seq = (0..self.limits.n_seq_max).find(|seq| self.seqs[*seq as usize].reserved == 0)?;
        let live = (0..self.seqs.len() as SeqId)
            .filter(|_| self.limits.shares_prefixes)
            .map(|from| (common(self.tokens(from), tokens), from))
            .filter(|(n, from)| *n >= N_SHARED_MIN && whole(*from, *n))
            .max();
        let n_live = live.map_or(0, |(n, _)| n);
        let n_spare = self.n_free().checked_sub(self.n_growth())?;
        let enough = match live {
            None => N_SHARED_MIN,
            Some((n, _)) => n + N_WORTH_COPYING,
        };
        // It comes back whole before it is cut to what is common.
        let saved = saved
            .filter(|saved| saved.n_common >= enough && saved.n_tokens.max(reserve) <= n_spare);
        let source = match saved {
            Some(saved) => Some(Source::Saved(saved)),
            None if reserve.saturating_sub(n_live) > n_spare => return None,
            None => live.map(|(n, from)| Source::Live(from, n)),
        };
        Some(Admission { seq, source })
    }

    /// Cells that running jobs may still ask for.
    fn n_growth(&self) -> usize {
        self.seqs
            .iter()
            .map(|seq| seq.reserved.saturating_sub(seq.tokens.len()))
            .sum()
    }

    /// Gives the slot to a job, with what a running source lends it. What is saved comes by
    /// [`Pool::push`], once it is back.
    pub fn begin(&mut self, admission: &Admission, reserve: usize) {
        self.seqs[admission.seq as usize].reserved = reserve.max(1);
        if let Some(Source::Live(from, n)) = admission.source {
            self.share(from, admission.seq, n);
        }
    }

    /// Records that `tokens` were decoded onto the end of `seq`.
    pub fn push(&mut self, seq: SeqId, tokens: &[Token]) {
        for token in tokens {
            let cell = self
                .free
                .pop()
                .expect("admission keeps cells free for every reserved token");
            self.owners[cell as usize] = 1;
            let seq = &mut self.seqs[seq as usize];
            seq.tokens.push(*token);
            seq.cells.push(cell);
        }
    }

    /// Records that of `seq` only the first `n` tokens are left: guesses that were wrong are gone.
    pub fn cut(&mut self, seq: SeqId, n: usize) {
        let seq = &mut self.seqs[seq as usize];
        seq.tokens.truncate(n);
        for cell in seq.cells.drain(n.min(seq.cells.len())..) {
            let owners = &mut self.owners[cell as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(cell);
            }
        }
    }

    /// Makes the first `n` cells of `from` also those of the empty sequence `to`.
    fn share(&mut self, from: SeqId, to: SeqId, n: usize) {
        let source = &self.seqs[from as usize];
        let tokens = source.tokens[..n].to_vec();
        let cells = source.cells[..n].to_vec();
        for cell in &cells {
            self.owners[*cell as usize] += 1;
        }
        let target = &mut self.seqs[to as usize];
        debug_assert!(
            target.tokens.is_empty(),
            "share into an empty sequence only"
        );
        target.tokens = tokens;
        target.cells = cells;
    }

    /// Moves what the slot `seq` has in the cache to a place, and frees the slot; `None`: no place is free, or
    /// sequences cannot be parted.
    pub fn park(&mut self, seq: SeqId) -> Option<SeqId> {
        if !self.limits.shares_prefixes {
            return None;
        }
        let mut places = self.limits.n_seq_max..self.seqs.len() as SeqId;
        let place = places.find(|place| self.tokens(*place).is_empty())?;
        let parked = std::mem::take(&mut self.seqs[seq as usize]);
        self.seqs[place as usize] = Seq {
            reserved: 0, // It grows no more.
            ..parked
        };
        Some(place)
    }

    /// Its job is over: it grows no more, and keeps its cells until [`Pool::end`].
    pub fn over(&mut self, seq: SeqId) {
        let seq = &mut self.seqs[seq as usize];
        seq.reserved = seq.tokens.len().max(1);
    }

    /// Takes the slot from its job.
    pub fn end(&mut self, seq: SeqId) {
        self.seqs[seq as usize].reserved = 0;
        self.cut(seq, 0);
    }
}

#[cfg(test)]
mod tests;
