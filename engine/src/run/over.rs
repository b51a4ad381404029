//! What ended jobs leave in the pool, until it is copied to the shelf.
//!
//! A copy holds everybody up, so that it waits for its moment. A short one is made at once. A long one is made when
//! nobody has asked for a while: who asks again at once finds the very cells, and nothing is copied at all. Where
//! nobody rests so long, the sequence moves to a place of the pool, which only marks cells; there it is in the way
//! of each decode, so that all of them have half the pool at most, and whoever needs cells has theirs first.

use std::time::{Duration, Instant};

use orinoco::frames::{Leaves, Token};

use super::Run;
use crate::model::SeqId;
use crate::shelf::common;

/// Who asks again at once does so within this time.
const GRACE: Duration = Duration::from_millis(100);

/// Sequences whose job is over and told; the oldest first.
#[derive(Debug, Default)]
pub(super) struct Over {
    pub(super) left: Vec<Left>,
    /// Since when there is nothing to decode.
    quiet_since: Option<Instant>,
}

/// One of them, still in its slot or in a place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Left {
    pub(super) seq: SeqId,
    pub(super) leaves: Leaves,
}

impl Over {
    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

impl Run<'_> {
    /// The job of `seq` is over and told.
    pub(super) fn leave(&mut self, seq: SeqId, leaves: Leaves) {
        self.pool.over(seq);
        // What is the head of it has nothing more to give.
        let tokens = self.pool.tokens(seq);
        let is_head = |left: &Left| {
            left.leaves != Leaves::Pinned && tokens.starts_with(self.pool.tokens(left.seq))
        };
        let (heads, rest) = self.over.left.iter().partition(|left| is_head(left));
        self.over.left = rest;
        self.over.left.push(Left { seq, leaves });
        self.release_all(heads);
    }

    /// Takes what ended jobs left out of their slots, and when it is time out of the pool. Whether that made room.
    pub(super) fn settle(&mut self) -> bool {
        if self.disk.ends.is_some() {
            let all = std::mem::take(&mut self.over.left);
            let is_any = !all.is_empty();
            for left in all {
                self.shelve(left);
            }
            return is_any;
        }
        if !self.is_idle() {
            self.over.quiet_since = None;
            return self.clear_slots();
        }
        if !self.over.is_empty() {
            self.over.quiet_since.get_or_insert_with(Instant::now);
        }
        // One, so that a command waits for one copy at most.
        if self.until_settle() != Some(Duration::ZERO) {
            return false;
        }
        let left = self.over.left.remove(0);
        self.shelve(left);
        true
    }

    /// How long what is left may stay, while there is nothing to decode; `None`: nothing is left.
    pub(super) fn until_settle(&self) -> Option<Duration> {
        let first = self.over.left.first()?;
        let is_wanted = self.draining || self.bench.is_some() || self.score.is_some();
        let n_tokens = self.pool.tokens(first.seq).len();
        if is_wanted || self.disk.ends.is_some() || self.shelf.is_quick(n_tokens) {
            return Some(Duration::ZERO);
        }
        let passed = self
            .over
            .quiet_since
            .map_or(Duration::ZERO, |s| s.elapsed());
        Some(GRACE.saturating_sub(passed))
    }

    /// While others are under way: what is quick is copied, what is not moves to a place.
    fn clear_slots(&mut self) -> bool {
        let n_slots = self.decoder.limits().n_seq_max;
        let is_in_slot = |left: &Left| left.seq < n_slots;
        let in_slots = Vec::from_iter(self.over.left.extract_if(.., |left| is_in_slot(left)));
        for left in &in_slots {
            match self.may_copy(*left) {
                true => self.shelve(*left),
                false => self.keep(*left),
            }
        }
        !in_slots.is_empty()
    }

    /// Whether a copy holds the others up for a short time only, or for a part of what reading it again would.
    /// What is pinned is read once, and before others come.
    fn may_copy(&mut self, left: Left) -> bool {
        let n_tokens = self.pool.tokens(left.seq).len();
        let read_ms = self.schedule.row_ms(n_tokens);
        let read_ms = read_ms.map_or(0.0, |ms| ms * n_tokens as f64);
        left.leaves == Leaves::Pinned || self.shelf.may_hold_up(n_tokens, read_ms)
    }

    fn keep(&mut self, left: Left) {
        let n_tokens = self.pool.tokens(left.seq).len();
        let most = self.decoder.limits().n_ctx as usize / 2;
        if n_tokens <= most && self.shelf.takes(n_tokens, left.leaves) {
            let kept = |run: &Self| -> usize {
                let kept = run.over.left.iter();
                kept.map(|left| run.pool.tokens(left.seq).len()).sum()
            };
            while kept(self) + n_tokens > most {
                let oldest = self.over.left.remove(0);
                self.release(oldest.seq);
            }
            if let Some(place) = self.place_for(left.seq) {
                self.over.left.push(Left { seq: place, ..left });
                return;
            }
        }
        self.release(left.seq);
    }

    /// Moves what a slot has to a place, and frees the slot; `None`: there is no place, nor one to be had.
    pub(super) fn place_for(&mut self, seq: SeqId) -> Option<SeqId> {
        let n_past = self.pool.tokens(seq).len() as u32;
        if n_past == 0 {
            return None;
        }
        let mut place = self.pool.park(seq);
        if place.is_none() && self.give_up_kept(&[]) {
            place = self.pool.park(seq);
        }
        let place = place?;
        self.decoder.seq_cp(seq, place, n_past);
        self.decoder.seq_rm(seq, 0);
        self.may_admit = true;
        Some(place)
    }

    /// Gives the cells and the place of what is kept back: of that which has least in common with `wanted`, the oldest.
    /// Whether there was any.
    pub(super) fn give_up_kept(&mut self, wanted: &[Token]) -> bool {
        let n_slots = self.decoder.limits().n_seq_max;
        let kept = self.over.left.iter().enumerate();
        let kept = kept.filter(|(_, left)| left.seq >= n_slots);
        let least = kept.min_by_key(|(_, left)| common(self.pool.tokens(left.seq), wanted));
        let Some((at, _)) = least else {
            return false;
        };
        let left = self.over.left.remove(at);
        self.put_away(left);
        true
    }

    /// What is to be forgotten is not kept until it is quiet.
    pub(super) fn release_forgotten(&mut self) {
        let n_slots = self.decoder.limits().n_seq_max;
        let is_it = |left: &mut Left| left.seq >= n_slots && left.leaves == Leaves::Nothing;
        let forgotten = Vec::from_iter(self.over.left.extract_if(.., is_it));
        self.release_all(forgotten);
    }

    fn release_all(&mut self, all: Vec<Left>) {
        for left in all {
            self.release(left.seq);
        }
    }

    /// Gives its cells back, and copies them before where that may be.
    pub(super) fn put_away(&mut self, left: Left) {
        match self.may_copy(left) {
            true => self.shelve(left),
            false => self.release(left.seq),
        }
    }

    /// Out of the pool, onto the shelf.
    fn shelve(&mut self, left: Left) {
        self.copy(left);
        self.release(left.seq);
    }

    /// Copies what is in the cache to the shelf, if its last window is whole and it is worth it.
    fn copy(&mut self, Left { seq, leaves }: Left) {
        let began = Instant::now();
        let tokens = self.pool.tokens(seq);
        let n_swa = self.decoder.limits().n_swa;
        let has_window = (self.decoder.seq_pos_min(seq))
            .is_some_and(|min| min == 0 || (n_swa > 0 && (min + n_swa) as usize <= tokens.len()));
        if has_window
            && self
                .shelf
                .wants(tokens, self.decoder.state_bytes(seq), leaves)
            && let Some(state) = self.decoder.state(seq)
        {
            let n_tokens = tokens.len();
            let now_ms = crate::archive::now_ms();
            self.shelf.put(tokens.to_vec(), state, leaves, now_ms);
            self.shelf
                .copied(n_tokens, began.elapsed().as_secs_f64() * 1e3);
        }
    }
}
