//! Who holds which cells of the KV pool, and which cached prefix serves a new prompt.
//!
//! Pure: it mirrors what the loop tells llama.cpp and never calls it. Sequences `0..n_seq_max` decode
//! ("slots"); a job that ends leaves its tokens to a parked sequence, and a new prompt takes them
//! back by `seq_cp`, which only marks cells. So one cell may belong to several sequences; each cell
//! here has an owner count, and admission reckons with the exact number of free ones.

use orinoco::frames::Token;

use crate::model::{Limits, SeqId};

/// Shorter common prefixes than this are decoded again: a BOS token and a template's head.
const N_SHARED_MIN: usize = 8;

/// Parked sequences may hold one cell in this many. They are in the way of every decode: attention walks
/// over all used cells, masked or not. Measured with SmolLM2 135M on one core, 8192 cells: 136 t/s with
/// none parked, 133 with 2000, 115 with 4000, 113 with 6000.
const PARKED_SHARE: usize = 4;

/// The pool and everything in it.
#[derive(Debug)]
pub struct Pool {
    limits: Limits,
    /// Slots first, then parked sequences; the index is the [`SeqId`].
    seqs: Vec<Seq>,
    /// Owners of each cell. The numbers are ours; llama.cpp places rows as it likes.
    owners: Vec<u16>,
    free: Vec<u32>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Seq {
    tokens: Vec<Token>,
    cells: Vec<u32>,
    /// Slots: most tokens that the job may come to; 0 when no job has it.
    reserved: usize,
    /// Parked: when it was last used.
    used_at: u64,
}

/// How a job gets its sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// The slot's sequence.
    pub seq: SeqId,
    /// Where its first tokens come from, and how many.
    pub source: Option<(SeqId, usize)>,
}

impl Pool {
    /// An empty pool.
    pub fn new(limits: Limits) -> Self {
        let n_seqs = (limits.n_seq_max + limits.n_parked_max) as usize;
        let mut seqs = Vec::new();
        seqs.resize_with(n_seqs, Seq::default);
        Self {
            limits,
            seqs,
            owners: vec![0; limits.n_ctx as usize],
            free: Vec::from_iter((0..limits.n_ctx).rev()),
            clock: 0,
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

    /// Parked sequences that hold something, least recently used first.
    pub fn parked(&self) -> Vec<SeqId> {
        let mut parked = Vec::from_iter(
            (self.limits.n_seq_max..self.seqs.len() as SeqId)
                .filter(|seq| !self.tokens(*seq).is_empty()),
        );
        parked.sort_by_key(|seq| self.seqs[*seq as usize].used_at);
        parked
    }

    /// A slot and the best source for a job of `tokens` that may come to `reserve` tokens, or `None`
    /// when it has to wait. The caller then calls [`Pool::begin`] and evicts [`Pool::to_evict`].
    ///
    /// `whole(seq, n)` says whether the first `n` tokens of `seq` are all still in the cache.
    pub fn admit(
        &self,
        tokens: &[Token],
        reserve: usize,
        whole: impl Fn(SeqId, usize) -> bool,
    ) -> Option<Admission> {
        let slots = 0..self.limits.n_seq_max;
        let seq = slots
            .clone()
            .find(|seq| self.seqs[*seq as usize].reserved == 0)?;
        let best = |among: std::ops::Range<SeqId>| {
            among
                .map(|from| (common(self.tokens(from), tokens), from))
                .filter(|(n, from)| *n >= N_SHARED_MIN && whole(*from, *n))
                .max_by_key(|(n, from)| (*n, self.seqs[*from as usize].used_at))
        };
        let can_share = self.limits.n_parked_max > 0;
        let live = can_share.then(|| best(slots)).flatten();
        let parked = best(self.limits.n_seq_max..self.seqs.len() as SeqId);
        // Every parked sequence can be given up, so only the cells of running jobs stand in the way.
        let n_obtainable = self.n_free() + self.n_only_parked();
        let needed = reserve - live.map_or(0, |(n, _)| n) + self.n_growth();
        if needed > n_obtainable {
            return None;
        }
        let source = live.into_iter().chain(parked).max_by_key(|(n, _)| *n);
        Some(Admission {
            seq,
            source: source.map(|(n, from)| (from, n)),
        })
    }

    /// Cells that running jobs may still ask for.
    fn n_growth(&self) -> usize {
        self.seqs
            .iter()
            .map(|seq| seq.reserved.saturating_sub(seq.tokens.len()))
            .sum()
    }

    /// Cells that only parked sequences own.
    fn n_only_parked(&self) -> usize {
        let mut owned_by_slots = vec![false; self.owners.len()];
        for slot in &self.seqs[..self.limits.n_seq_max as usize] {
            for cell in &slot.cells {
                owned_by_slots[*cell as usize] = true;
            }
        }
        let live = owned_by_slots.iter().filter(|owned| **owned).count();
        self.owners.len() - self.n_free() - live
    }

    /// The parked sequence to give up next so that every running job finds its cells, least recently
    /// used first; `None` once they do.
    pub fn to_evict(&self) -> Option<SeqId> {
        if self.n_growth() <= self.n_free() {
            return None;
        }
        self.parked().first().copied()
    }

    /// The parked sequence to give up because parked ones hold more than their share of the pool; the one
    /// used last stays however long it is, so that a conversation finds its last turn.
    pub fn over_share(&self) -> Option<SeqId> {
        let parked = self.parked();
        let share = self.owners.len() / PARKED_SHARE;
        (parked.len() > 1 && self.n_only_parked() > share).then(|| parked[0])
    }

    /// Gives the slot to a job, with what its source lends it.
    pub fn begin(&mut self, admission: &Admission, reserve: usize) {
        self.seqs[admission.seq as usize].reserved = reserve.max(1);
        if let Some((from, n)) = admission.source {
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

    /// Forgets everything of `seq` from position `from` on.
    pub fn truncate(&mut self, seq: SeqId, from: usize) {
        let seq = &mut self.seqs[seq as usize];
        seq.tokens.truncate(from);
        for cell in seq.cells.drain(from.min(seq.cells.len())..) {
            let owners = &mut self.owners[cell as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(cell);
            }
        }
    }

    /// The slot's job is over: where to park its tokens, if anywhere. Whoever is parked there, if
    /// anyone, is evicted by the caller first. The slot itself is then truncated to nothing.
    pub fn parking_for(&self, seq: SeqId) -> Option<SeqId> {
        if self.limits.n_parked_max == 0 || self.tokens(seq).len() < N_SHARED_MIN {
            return None;
        }
        // A parked sequence that is only a head of this one has nothing more to give.
        let parked = self.parked();
        let contained = parked
            .iter()
            .copied()
            .find(|other| self.tokens(seq).starts_with(self.tokens(*other)));
        let empty = (self.limits.n_seq_max..self.seqs.len() as SeqId)
            .find(|seq| self.tokens(*seq).is_empty());
        contained.or(empty).or(parked.first().copied())
    }

    /// Makes the first `n` cells of `from` also those of the empty sequence `to`.
    pub fn share(&mut self, from: SeqId, to: SeqId, n: usize) {
        self.clock += 1;
        let clock = self.clock;
        let source = &mut self.seqs[from as usize];
        source.used_at = clock;
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
        target.used_at = clock;
    }

    /// Takes the slot from its job.
    pub fn end(&mut self, seq: SeqId) {
        self.seqs[seq as usize].reserved = 0;
        self.truncate(seq, 0);
    }
}

/// Length of the longest common prefix, leaving at least one token of `wanted` to decode, because only
/// decoding gives logits.
fn common(cached: &[Token], wanted: &[Token]) -> usize {
    let n = cached
        .iter()
        .zip(wanted)
        .take_while(|(a, b)| a == b)
        .count();
    n.min(wanted.len().saturating_sub(1))
}

#[cfg(test)]
mod tests;
