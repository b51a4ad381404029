//! What of the shelf is left on disk, and what is taken back from there.
//!
//! Saved is when nobody asked for a while, and when the supervisor says that this worker ends: conversations first,
//! each change once. Taken back is a state when a prompt begins as it does and reading it is worth more than
//! computing it; the prompt waits for it, and then finds it on the shelf like any other.

use std::time::{Duration, Instant};

use orinoco::frames::{Event, JobKey, Leaves, OnDisk, Token};
use orinoco::kv_file::{Kind, Outcome};

use super::Run;
use crate::archive::Told;
use crate::model::SeqId;
use crate::shelf::common;
use crate::slot::Slot;

/// A state on disk has to spare so many tokens more than what is in memory.
const N_WORTH_READING: usize = 128;
/// No prompt waits longer for a disk.
const READ_MAX: Duration = Duration::from_secs(2);
/// How often is looked whether something is on disk, while there is nothing else to do.
const LOOK: Duration = Duration::from_millis(10);

/// Prompts that wait for a state.
#[derive(Debug)]
pub(super) struct Fetch {
    id: u64,
    since: Instant,
    slots: Vec<Slot>,
}

/// When what is left on disk is written.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) fetching: Vec<Fetch>,
    /// The supervisor wants it now, and waits no longer than until then.
    pub(super) ends: Option<Instant>,
    quiet_since: Option<Instant>,
    told: OnDisk,
    now: OnDisk,
}

impl Run<'_> {
    /// The slot, unless a state on disk is worth waiting for: then it waits when that is there.
    pub(super) fn fetch(&mut self, slot: Slot) -> Option<Slot> {
        let Some(archive) = &mut self.archive else {
            return Some(slot);
        };
        self.disk.quiet_since = None;
        if self.disk.ends.is_none() && archive.saving().is_some() {
            archive.stop();
        }
        if !self.shelf.is_open() {
            return Some(slot);
        }
        let tokens = slot.tokens();
        let n_vocab = self.decoder.limits().n_vocab;
        let is_token = |id: &Token| u32::try_from(*id).is_ok_and(|id| id < n_vocab);
        let found = archive.inventory().known.iter().map(|known| {
            let n = common(&known.tokens, tokens);
            let is_whole = self.shelf.is_whole(n, known.tokens.len());
            let is_sound = is_whole && known.tokens.iter().all(is_token);
            (if is_sound { n } else { 0 }, known)
        });
        let Some((n_best, best)) = found.max_by_key(|(n, _)| *n) else {
            return Some(slot);
        };
        let best = best.clone();
        let n_shelf = self.shelf.best(tokens).map_or(0, |found| found.n_common);
        let seqs = 0..2 * self.decoder.limits().n_seq_max as SeqId;
        let n_live = seqs.map(|seq| common(self.pool.tokens(seq), tokens)).max();
        let n_spared = n_best.saturating_sub(n_shelf.max(n_live.unwrap_or(0)));
        let compute_ms = self.schedule.row_ms(n_best).unwrap_or(f64::INFINITY) * n_spared as f64;
        if n_spared < N_WORTH_READING || archive.read_ms(best.state_bytes) > compute_ms {
            return Some(slot);
        }
        let under_way = self
            .disk
            .fetching
            .iter_mut()
            .find(|fetch| fetch.id == best.id);
        if let Some(fetch) = under_way {
            fetch.slots.push(slot);
            return None;
        }
        if !archive.read(&best) {
            return Some(slot);
        }
        self.disk.now.n_restored += n_spared as u64;
        self.disk.fetching.push(Fetch {
            id: best.id,
            since: Instant::now(),
            slots: vec![slot],
        });
        None
    }

    /// Takes in what the disk has done.
    pub(super) fn collect_from_disk(&mut self) {
        let Some(archive) = &mut self.archive else {
            return;
        };
        let mut ready = Vec::new();
        while let Some(told) = archive.told() {
            match told {
                Told::Saved(key, outcome) => match outcome {
                    Some(Outcome::Stopped) => {}
                    Some(Outcome::Saved(bytes)) => {
                        self.disk.now.written_bytes += bytes;
                        self.shelf.settle(key);
                    }
                    _ => self.shelf.settle(key),
                },
                Told::Read(id, state) => {
                    let known = archive
                        .inventory()
                        .known
                        .iter()
                        .find(|known| known.id == id);
                    if let (Some(known), Some(state)) = (known, state) {
                        let now_ms = crate::archive::now_ms();
                        self.shelf
                            .put_back(&known.tokens, state, known.kind, now_ms);
                    }
                    let fetched = self.disk.fetching.extract_if(.., |fetch| fetch.id == id);
                    ready.extend(fetched.flat_map(|fetch| fetch.slots));
                }
            }
        }
        let late = |fetch: &mut Fetch| fetch.since.elapsed() > READ_MAX;
        let late = self.disk.fetching.extract_if(.., late);
        ready.extend(late.flat_map(|fetch| fetch.slots));
        let inventory = archive.inventory();
        self.disk.now.n_states = inventory.known.len() as u32;
        self.disk.now.bytes = inventory.bytes;
        for slot in ready {
            self.line_up(slot);
            self.may_admit = true;
        }
        if self.disk.now != self.disk.told {
            self.disk.told = self.disk.now;
            self.outbox.push_back(Event::OnDisk(self.disk.now));
        }
    }

    /// The supervisor wants all of it on disk.
    pub(super) fn save_until(&mut self, limit_ms: u32) {
        self.disk.ends = Some(Instant::now() + Duration::from_millis(limit_ms.into()));
    }

    /// Has the next thing saved, if it is time.
    pub(super) fn leave_on_disk(&mut self) {
        let now = Instant::now();
        let is_settled = self.over.is_empty();
        let is_quiet = self.is_idle() && is_settled;
        let Some(archive) = &mut self.archive else {
            if self.disk.ends.take().is_some() {
                self.outbox.push_back(Event::Saved);
            }
            return;
        };
        if let Some(ends) = self.disk.ends {
            let next = match archive.saving() {
                Some(_) if now < ends => return,
                Some(_) => {
                    archive.stop();
                    None
                }
                None if !is_settled => return,
                None => self.shelf.unsettled().filter(|_| now < ends),
            };
            match next {
                Some(next) => archive.save(next),
                None => {
                    self.disk.ends = None;
                    self.outbox.push_back(Event::Saved);
                }
            }
            return;
        }
        let Some(quiet) = archive.quiet.filter(|_| is_quiet) else {
            self.disk.quiet_since = None;
            return;
        };
        let since = *self.disk.quiet_since.get_or_insert(now);
        if archive.saving().is_none()
            && now >= since + quiet
            && let Some(next) = self.shelf.unsettled()
        {
            archive.save(next);
        }
    }

    /// How long nothing has to be looked at, while there is nothing to decode; `None`: until a command comes.
    pub(super) fn until_disk(&self) -> Option<Duration> {
        let archive = self.archive.as_ref()?;
        if archive.saving().is_some() || self.disk.ends.is_some() {
            return Some(LOOK);
        }
        let quiet = archive.quiet.filter(|_| self.shelf.unsettled().is_some())?;
        let since = self.disk.quiet_since?;
        Some(
            (since + quiet)
                .saturating_duration_since(Instant::now())
                .max(LOOK),
        )
    }

    /// Takes a job out that waits for a state.
    pub(super) fn unfetch(&mut self, job: JobKey) -> Option<Slot> {
        self.disk.fetching.iter_mut().find_map(|fetch| {
            let at = fetch.slots.iter().position(|slot| slot.job == job)?;
            Some(fetch.slots.remove(at))
        })
    }

    /// Forgets a conversation, also what is under way in it.
    pub(super) fn forget_session(&mut self, number: u64) {
        let is_it = Leaves::Session(number);
        self.shelf.forget(number);
        if let Some(archive) = &mut self.archive {
            archive.forget(|known| known.kind == Kind::Session(number));
            archive.stop();
        }
        let running = self.slots.iter_mut().flatten();
        let fetching = self
            .disk
            .fetching
            .iter_mut()
            .flat_map(|fetch| &mut fetch.slots);
        let slots = running
            .chain(&mut self.waiting)
            .chain(&mut self.compiling)
            .chain(fetching);
        let leaves = slots.map(|slot| &mut slot.leaves);
        let left = self.over.left.iter_mut();
        let leaves = leaves.chain(left.map(|left| &mut left.leaves));
        let leaves = leaves.chain(self.parked.iter_mut().map(|kept| &mut kept.leaves));
        for leaves in leaves.filter(|leaves| **leaves == is_it) {
            *leaves = Leaves::Nothing;
        }
        self.release_forgotten();
    }
}
