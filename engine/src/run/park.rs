//! Jobs that are interrupted, to go on later where they were.
//!
//! What a job has in the cache moves to a place of the pool, which only marks cells: it costs no time, and an
//! urgent job has its slot in the same turn. There it stays until the job comes back, or until somebody needs
//! its cells: then it becomes bytes on the shelf, or is read again. In the first two cases the text is the
//! uninterrupted one, for the cells are the same.

use orinoco::frames::{Event, JobKey, Leaves};

use super::Run;
use super::over::Left;
use crate::model::SeqId;
use crate::slot::Slot;

/// A job that is to come back.
#[derive(Debug)]
pub(super) struct Kept {
    job: JobKey,
    /// Where the pool keeps what it has.
    place: SeqId,
    pub(super) leaves: Leaves,
}

impl Run<'_> {
    /// Takes a job out of its slot, or out of the queue; nothing where it is over.
    pub(super) fn park(&mut self, job: JobKey) {
        self.cut_now(job);
        if let Some(at) = self.waiting.iter().position(|slot| slot.job == job)
            && let Some(slot) = self.waiting.remove(at)
        {
            self.may_admit = true;
            self.outbox
                .push_back(Event::Parked(Box::new(slot.parked())));
            return;
        }
        // Its grammar is compiled again when it comes back.
        if let Some(at) = self.compiling.iter().position(|slot| slot.job == job) {
            let slot = self.compiling.swap_remove(at);
            self.outbox
                .push_back(Event::Parked(Box::new(slot.parked())));
            return;
        }
        if let Some(slot) = self.unfetch(job) {
            self.outbox
                .push_back(Event::Parked(Box::new(slot.parked())));
            return;
        }
        let is_it = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.job == job);
        if let Some(seq) = self.slots.iter().position(is_it) {
            self.park_slot(seq as SeqId);
        }
    }

    fn park_slot(&mut self, seq: SeqId) {
        let Some(slot) = self.slots[seq as usize].take() else {
            return;
        };
        match self.place_for(seq) {
            Some(place) => self.parked.push(Kept {
                job: slot.job,
                place,
                leaves: slot.leaves,
            }),
            // More are parked than can decode: it goes the way of one that is over.
            None => self.leave(seq, slot.leaves),
        }
        self.outbox
            .push_back(Event::Parked(Box::new(slot.parked())));
    }

    /// Makes room for the first that waits: what ended jobs left; of what is parked, others' first; then, for an
    /// urgent one, the youngest job that yields; at last its own. Whether there was anything.
    pub(super) fn make_room(&mut self) -> bool {
        let Some(first) = self.waiting.front() else {
            return false;
        };
        if first.is_pinned() {
            // It takes nothing from anybody; but what nobody uses is not waited for.
            return self.slots.iter().all(Option::is_none) && self.give_up_kept(&[]);
        }
        let (job, urgent) = (first.job, first.urgent);
        if self.unpin() {
            return true;
        }
        if !self.pool.has_slot() {
            return false;
        }
        let first = self.waiting.front();
        let wanted = first.map_or_else(Vec::new, |slot| slot.tokens().to_vec());
        if self.give_up_kept(&wanted) {
            return true;
        }
        if let Some(at) = self.parked.iter().position(|kept| kept.job != job) {
            let kept = self.parked.remove(at);
            self.put_kept_away(&kept);
            return true;
        }
        let slots = self.slots.iter().enumerate();
        let yields = slots.filter_map(|(seq, slot)| Some((seq, slot.as_ref()?)));
        let yields = yields.filter(|(_, slot)| urgent && slot.yields);
        if let Some((seq, _)) = yields.max_by_key(|(_, slot)| slot.job) {
            self.park_slot(seq as SeqId);
            return true;
        }
        match self.parked.pop() {
            Some(kept) => self.put_kept_away(&kept),
            None => return false,
        }
        true
    }

    fn put_kept_away(&mut self, kept: &Kept) {
        self.put_away(Left {
            seq: kept.place,
            leaves: kept.leaves,
        });
    }

    /// The job came back, or is over: nothing is kept for it.
    pub(super) fn forget(&mut self, job: JobKey) {
        if let Some(at) = self.parked.iter().position(|kept| kept.job == job) {
            let kept = self.parked.remove(at);
            self.release(kept.place);
        }
    }

    /// Nothing is kept for anybody.
    pub(super) fn forget_parked(&mut self) {
        for kept in std::mem::take(&mut self.parked) {
            self.release(kept.place);
        }
    }
}
