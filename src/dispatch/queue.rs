//! PURE: which waiting job enters the worker next, which makes room for it, and the poison rule.
//!
//! Three classes. An `alarm` goes before everything, and takes the place of a `batch` job where none is free.
//! `normal` goes before `batch`, but not for ever: after [`BATCH_AFTER`] of the one that passed it, one of the
//! other has its turn. Inside a class users take turns by their weights (`lane`), and of its user's jobs the
//! oldest goes first: one prompt of a quiet user waits for one sequence and not for the queue of a busy one. No
//! sequence stays free while a job waits, unless its user has as many running as it may.
//!
//! What is free goes to whoever waits, so a busy user soon has the sequences that quiet ones leave between two
//! prompts. It holds them on loan: who comes with less than its share takes one back ([`Why::Share`]), as long as
//! the other is left with no less, by weight, than the newcomer then has; and nobody is given one that it would have
//! to give back at once. So each step evens the shares, and no two jobs can take places from each other in turn.
//!
//! A job whose worker died, or that made room for an alarm, goes before those of its class that never began, in its
//! old order. One that gave a share back goes before its user's others, at its user's turn.
//!
//! A worker's death counts against the jobs inside only when it died by itself. A job that saw two such deaths is a
//! *suspect*: suspects go before others of their class and run alone, so that the next death names its cause. The
//! one that kills the worker while alone is poison; the others end normally. Whatever the reasons, a job is tried at
//! most [`DEATHS_MAX`] times.

mod lane;

use std::collections::BTreeMap;

use crate::frames::JobKey;
use crate::wire::request::Priority;
use crate::wire::topic::Name;
use lane::{Lane, Seat, Turn};

/// Deaths by itself after which a job is run alone.
const SUSPECT_AFTER: u32 = 2;
/// Deaths of any kind after which a job is given up.
pub const DEATHS_MAX: u32 = 8;
/// Jobs of the class `normal` that pass a waiting one of the class `batch` before that has its turn.
pub const BATCH_AFTER: u32 = 16;

/// Order of acceptance; lower goes first.
pub type Order = u64;

/// Waiting and running jobs of one worker. Owns no job, only keys.
#[derive(Debug, Default)]
pub struct Queue {
    jobs: BTreeMap<JobKey, Entry>,
    /// What waits, by class; see [`index`].
    lanes: [Lane; 3],
    /// Users with a job that waits or runs.
    users: BTreeMap<Name, User>,
    /// Jobs of the class `normal` that entered while one of the class `batch` waited.
    batch_passed: u32,
    n_running: usize,
}

/// How a job is to be treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Its class.
    pub priority: Priority,
    /// Turns of its user for each one of a user with 1.
    pub weight: u32,
    /// Most jobs of its user in the worker; `None`: any number.
    pub running_max: Option<usize>,
}

#[derive(Debug)]
struct Entry {
    order: Order,
    user: Name,
    terms: Terms,
    place: Place,
    deaths: Deaths,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In its lane.
    Waiting,
    /// In the worker. The turn by which it entered; `None`: it had begun before.
    Running { turn: Option<Turn>, passed: u32 },
}

#[derive(Debug, Default)]
struct User {
    n_jobs: usize,
    n_running: usize,
    running_max: Option<usize>,
    weight: u32,
}

/// A running job that has to make room for a waiting one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Who leaves.
    pub victim: JobKey,
    /// For whom.
    pub newcomer: JobKey,
    /// Why.
    pub why: Why,
}

/// Why a job makes room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// An alarm waits and a job of the class `batch` runs.
    Alarm,
    /// Its user has more than its share, and the newcomer's less.
    Share,
}

#[derive(Debug, Default, Clone, Copy)]
struct Deaths {
    all: u32,
    by_itself: u32,
}

/// What a death means for one job that was inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Back in the queue.
    Again,
    /// It kills workers: never again.
    Poison,
    /// Not convicted, but tried too often.
    GiveUp,
}

impl Queue {
    /// A new job at its place in the order. Its user may have as many jobs in the worker as its terms say from
    /// now on.
    pub fn push(&mut self, order: Order, job: JobKey, user: &Name, terms: Terms) {
        let entry = Entry {
            order,
            user: user.clone(),
            terms,
            place: Place::Waiting,
            deaths: Deaths::default(),
        };
        self.jobs.insert(job, entry);
        let known = self.users.entry(user.clone()).or_default();
        known.n_jobs += 1;
        known.running_max = terms.running_max;
        known.weight = terms.weight.max(1);
        self.lanes[index(terms.priority)].push((order, job), user, terms.weight);
    }

    /// The job is over, wherever it was.
    pub fn remove(&mut self, job: JobKey) {
        if !self.leave(job) {
            return;
        }
        let Some(entry) = self.jobs.remove(&job) else {
            return;
        };
        if let Some(user) = self.users.get_mut(&entry.user) {
            user.n_jobs -= 1;
            if user.n_jobs == 0 {
                self.users.remove(&entry.user);
            }
        }
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.jobs.len() - self.n_running
    }

    /// Those of one class.
    pub fn waiting_in(&self, class: Priority) -> usize {
        self.lanes[index(class)].waiting()
    }

    /// Jobs in the worker.
    pub fn running(&self) -> usize {
        self.n_running
    }

    /// Whether the job waits.
    pub fn is_waiting(&self, job: JobKey) -> bool {
        let entry = self.jobs.get(&job);
        entry.is_some_and(|entry| entry.place == Place::Waiting)
    }

    /// Whether the job is in the worker.
    pub fn is_running(&self, job: JobKey) -> bool {
        self.jobs.contains_key(&job) && !self.is_waiting(job)
    }

    /// How many go before a waiting job if nobody else comes; `None` when it does not wait. Each call walks
    /// the line: ask [`Queue::line`] for many.
    pub fn position(&self, job: JobKey) -> Option<usize> {
        self.is_waiting(job)
            .then(|| self.line().position(|other| other == job))?
    }

    /// All that wait, in the order in which they would enter one after the other if nobody else came and nothing
    /// ran: shares may put one forward.
    pub fn line(&self) -> impl Iterator<Item = JobKey> {
        let mut lanes = self.lanes.each_ref().map(|lane| lane.line().peekable());
        let mut passed = self.batch_passed;
        std::iter::from_fn(move || {
            let waits = lanes.each_mut().map(|lane| lane.peek().is_some());
            let class = choose(waits, passed)?;
            passed = passed_after(passed, class, waits);
            lanes[class].next()
        })
    }

    /// Takes the next job for a worker with `n_seq_max` sequences, or says that none may enter now.
    /// Jobs that `waits` names are passed over.
    pub fn next(&mut self, n_seq_max: usize, waits: impl Fn(JobKey) -> bool) -> Option<JobKey> {
        if self.n_running >= n_seq_max || self.suspect_runs() {
            return None;
        }
        let firsts = [0, 1, 2].map(|lane| self.first_of(lane, &waits));
        let are_there = firsts.map(|first| first.is_some());
        let class = choose(are_there, self.batch_passed)?;
        let job = self.instead_of(firsts[class]?, class, &waits);
        if self.is_suspect(job) && self.n_running > 0 {
            return None; // It waits until it can be alone.
        }
        let passed = self.batch_passed;
        self.batch_passed = passed_after(passed, class, are_there);
        self.enter(job, passed);
        Some(job)
    }

    /// Who has to make room for whom, where no sequence is free: among the jobs that `may_leave`, the youngest of
    /// the class `batch` for an alarm; else one of a user above its share for one below, not for `batch`.
    pub fn room(
        &self,
        n_seq_max: usize,
        waits: impl Fn(JobKey) -> bool,
        may_leave: impl Fn(JobKey) -> bool,
    ) -> Option<Room> {
        if self.n_running < n_seq_max && !self.suspect_runs() {
            return None;
        }
        self.for_alarm(&waits, &may_leave)
            .or_else(|| self.for_share(&waits, &may_leave))
    }

    fn for_alarm(
        &self,
        waits: &impl Fn(JobKey) -> bool,
        may_leave: &impl Fn(JobKey) -> bool,
    ) -> Option<Room> {
        let newcomer = self.first_of(index(Priority::Alarm), waits)?;
        let running = self.running_that(may_leave);
        let (_, victim) = running
            .filter(|(_, entry)| entry.terms.priority == Priority::Batch)
            .map(|(job, entry)| (entry.order, job))
            .max()?;
        Some(Room {
            victim,
            newcomer,
            why: Why::Alarm,
        })
    }

    fn for_share(
        &self,
        waits: &impl Fn(JobKey) -> bool,
        may_leave: &impl Fn(JobKey) -> bool,
    ) -> Option<Room> {
        let are_there = [0, 1, 2].map(|lane| self.first_of(lane, waits).is_some());
        let class = choose(are_there, self.batch_passed)?;
        if class == index(Priority::Batch) {
            return None;
        }
        let (_, _, newcomer) = self.candidates(class, waits).min()?;
        let own = self.user_of(newcomer);
        let has_surplus = |user: &User| user.owes(user.n_running, own);
        // Most of the time nobody has, and the jobs need not be looked at.
        if !self.users.values().any(has_surplus) || self.suspect_runs() {
            return None;
        }
        // Nobody enters before a suspect that is first, and that waits until it can be alone.
        if self.is_suspect(self.first_of(class, waits)?) {
            return None;
        }
        let running = self.running_that(may_leave);
        let of_surplus = running.filter_map(|(job, entry)| {
            let (user, of) = (&self.users[&entry.user], index(entry.terms.priority));
            let is_below = of >= class.max(index(Priority::Normal));
            (is_below && has_surplus(user)).then_some((
                of,
                user.share_of(user.n_running),
                entry.order,
                job,
            ))
        });
        let (.., victim) = of_surplus.max()?;
        Some(Room {
            victim,
            newcomer,
            why: Why::Share,
        })
    }

    fn running_that(
        &self,
        may_leave: &impl Fn(JobKey) -> bool,
    ) -> impl Iterator<Item = (JobKey, &Entry)> {
        let running = self.jobs.iter().map(|(job, entry)| (*job, entry));
        running.filter(|(job, entry)| entry.place != Place::Waiting && may_leave(*job))
    }

    /// The victim leaves the worker and waits: for an alarm as one that ran, before what never began; else first of
    /// its user's, which has its turn back.
    pub fn make_room(&mut self, room: Room) {
        if room.why == Why::Alarm {
            return self.pause(room.victim);
        }
        let Some(entry) = self.jobs.get(&room.victim) else {
            return;
        };
        let (seat, lane) = ((entry.order, room.victim), index(entry.terms.priority));
        let (user, weight) = (entry.user.clone(), entry.terms.weight);
        if !self.is_running(room.victim) {
            return;
        }
        self.leave(room.victim);
        if let Some(entry) = self.jobs.get_mut(&room.victim) {
            entry.place = Place::Waiting;
        }
        self.lanes[lane].push_returned(seat, &user, weight);
        if lane == index(Priority::Batch) {
            // Else it might be its turn again at once.
            self.batch_passed = 0;
        }
    }

    /// Puts back a job that could not be handed over, as if it had not been taken.
    pub fn put_back(&mut self, job: JobKey) {
        let place = self.jobs.get(&job).map(|entry| entry.place);
        if let Some(Place::Running { turn, passed }) = place {
            self.leave(job);
            self.wait(job, turn);
            self.batch_passed = passed;
        }
    }

    /// The job leaves the worker for a while, and waits as one that ran.
    pub fn pause(&mut self, job: JobKey) {
        if self.is_running(job) {
            self.leave(job);
            self.wait(job, None);
        }
    }

    /// The worker died. Every running job gets its verdict; those to be tried again wait at their place.
    pub fn worker_died(&mut self, by_itself: bool) -> Vec<(JobKey, Verdict)> {
        let running = self.running_jobs();
        let alone = running.len() == 1;
        let mut verdicts = Vec::with_capacity(running.len());
        for job in running {
            let was_suspect = self.is_suspect(job);
            let deaths = &mut self.jobs.get_mut(&job).expect("just listed").deaths;
            deaths.all += 1;
            deaths.by_itself += u32::from(by_itself);
            let verdict = if by_itself && alone && was_suspect {
                Verdict::Poison
            } else if deaths.all >= DEATHS_MAX {
                Verdict::GiveUp
            } else {
                Verdict::Again
            };
            match verdict {
                Verdict::Again => {
                    self.leave(job);
                    self.wait(job, None);
                }
                Verdict::Poison | Verdict::GiveUp => self.remove(job),
            }
            verdicts.push((job, verdict));
        }
        verdicts
    }

    /// The worker was ended on purpose, which counts against nobody: every running job waits at its place.
    pub fn worker_left(&mut self) -> Vec<(JobKey, Verdict)> {
        let running = self.running_jobs();
        for job in &running {
            self.leave(*job);
            self.wait(*job, None);
        }
        running
            .into_iter()
            .map(|job| (job, Verdict::Again))
            .collect()
    }

    fn running_jobs(&self) -> Vec<JobKey> {
        let running = self.jobs.iter();
        let running = running.filter(|(_, entry)| entry.place != Place::Waiting);
        running.map(|(job, _)| *job).collect()
    }

    /// The job of one lane whose turn it is, among those that may.
    fn first_of(&self, lane: usize, waits: &impl Fn(JobKey) -> bool) -> Option<JobKey> {
        let mut begun = self.lanes[lane].begun().filter(|job| !waits(*job));
        // Only jobs that ran can be suspects.
        let suspect = begun.clone().find(|job| self.is_suspect(*job));
        suspect
            .or_else(|| begun.next())
            .or_else(|| self.fresh_of(lane, waits).min().map(|(_, (_, job))| job))
    }

    /// Of each user that may the first job of a lane that never ran or gave its place back, with the user's turn.
    fn fresh_of(
        &self,
        lane: usize,
        waits: &impl Fn(JobKey) -> bool,
    ) -> impl Iterator<Item = (Turn, Seat)> {
        self.lanes[lane].firsts(|user| self.may_enter(user), |job| !waits(job))
    }

    /// `first`, or who would take its place from it at once.
    fn instead_of(&self, first: JobKey, lane: usize, waits: &impl Fn(JobKey) -> bool) -> JobKey {
        let holder = self.user_of(first);
        if holder.n_running == 0 || self.is_suspect(first) {
            return first;
        }
        let owed = self
            .candidates(lane, waits)
            .filter(|(.., job)| holder.owes(holder.n_running + 1, self.user_of(*job)));
        owed.min().map_or(first, |(.., job)| job)
    }

    /// Of each user the first job of a lane, with the share that it would then have and its turn.
    fn candidates(
        &self,
        lane: usize,
        waits: &impl Fn(JobKey) -> bool,
    ) -> impl Iterator<Item = (u64, Turn, JobKey)> {
        let begun = self.lanes[lane].begun().filter(|job| !waits(*job));
        let begun = begun.map(|job| (Turn::default(), job));
        let fresh = self.fresh_of(lane, waits);
        let fresh = fresh.map(|(turn, (_, job))| (turn, job));
        begun.chain(fresh).map(|(turn, job)| {
            let user = self.user_of(job);
            (user.share_of(user.n_running + 1), turn, job)
        })
    }

    fn may_enter(&self, user: &Name) -> bool {
        // The lane remembers some who have nothing here.
        let user = self.users.get(user);
        user.is_some_and(|user| user.running_max.is_none_or(|max| user.n_running < max))
    }

    fn user_of(&self, job: JobKey) -> &User {
        &self.users[&self.jobs[&job].user]
    }

    fn enter(&mut self, job: JobKey, passed: u32) {
        let entry = self.jobs.get_mut(&job).expect("it was chosen from here");
        let lane = &mut self.lanes[index(entry.terms.priority)];
        let turn = lane.enter((entry.order, job), &entry.user);
        entry.place = Place::Running { turn, passed };
        let user = self.users.get_mut(&entry.user);
        user.expect("users of jobs are known").n_running += 1;
        self.n_running += 1;
    }

    /// Takes a job from where it is; what it is next, the caller says. Whether there is such a job.
    fn leave(&mut self, job: JobKey) -> bool {
        let Some(entry) = self.jobs.get(&job) else {
            return false;
        };
        match entry.place {
            Place::Waiting => {
                let lane = &mut self.lanes[index(entry.terms.priority)];
                lane.remove((entry.order, job), &entry.user);
            }
            Place::Running { .. } => {
                let user = self.users.get_mut(&entry.user);
                user.expect("users of jobs are known").n_running -= 1;
                self.n_running -= 1;
            }
        }
        true
    }

    /// `turn`: that by which it entered, to be had again; `None`: it waits as one that ran.
    fn wait(&mut self, job: JobKey, turn: Option<Turn>) {
        let entry = self.jobs.get_mut(&job).expect("it left just now");
        entry.place = Place::Waiting;
        let (seat, terms) = ((entry.order, job), entry.terms);
        let lane = &mut self.lanes[index(terms.priority)];
        lane.put_back(seat, &entry.user, terms.weight, turn);
    }

    fn suspect_runs(&self) -> bool {
        // At most one runs while a suspect does, and few workers have many sequences.
        self.jobs
            .iter()
            .any(|(job, entry)| entry.place != Place::Waiting && self.is_suspect(*job))
    }

    fn is_suspect(&self, job: JobKey) -> bool {
        self.jobs
            .get(&job)
            .is_some_and(|entry| entry.deaths.by_itself >= SUSPECT_AFTER)
    }
}

impl User {
    /// Whether it, with `n_running`, would have no less than `other` if it gave one of them to it.
    fn owes(&self, n_running: usize, other: &Self) -> bool {
        let (mine, theirs) = (n_running.saturating_sub(1), other.n_running + 1);
        mine as u64 * u64::from(other.weight) >= theirs as u64 * u64::from(self.weight)
    }

    /// What `n_running` are for its weight, to be compared.
    fn share_of(&self, n_running: usize) -> u64 {
        ((n_running as u64) << 20) / u64::from(self.weight)
    }
}

/// The lane of a class; those that go first come first.
const fn index(class: Priority) -> usize {
    match class {
        Priority::Alarm => 0,
        Priority::Normal => 1,
        Priority::Batch => 2,
    }
}

/// The lane whose turn it is, of those where somebody waits.
fn choose(waits: [bool; 3], batch_passed: u32) -> Option<usize> {
    match waits {
        [true, _, _] => Some(0),
        [_, true, true] if batch_passed >= BATCH_AFTER => Some(2),
        [_, true, _] => Some(1),
        [_, _, true] => Some(2),
        _ => None,
    }
}

/// The count of those that passed the class `batch`, after one of `class` entered.
fn passed_after(passed: u32, class: usize, waits: [bool; 3]) -> u32 {
    match class {
        1 if waits[2] => passed.saturating_add(1),
        // An alarm is no competitor: it may not use up others' patience.
        0 => passed,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
