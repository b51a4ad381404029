//! PURE: which waiting job enters the worker next, which makes room for it, and the poison rule.
//!
//! Three classes. An `alarm` goes before everything, and takes the place of a `batch` job where none is free.
//! `normal` goes before `batch`, but not for ever: after [`BATCH_AFTER`] of the one that passed it, one of the
//! other has its turn. Inside a class users take turns by their weights (`lane`), and of its user's jobs the
//! oldest goes first: one prompt of a quiet user waits for one sequence and not for the queue of a busy one. No
//! sequence stays free while a job waits, unless its user has as many running as it may.
//!
//! A job whose worker died, or that made room, goes before those of its class that never began, in its old
//! order. A worker's death counts against the jobs inside only when it died by itself. A job that saw two such
//! deaths is a *suspect*: suspects go before others of their class and run alone, so that the next death names
//! its cause. The one that kills the worker while alone is poison; the others end normally. Whatever the
//! reasons, a job is tried at most [`DEATHS_MAX`] times.

mod lane;

use std::collections::BTreeMap;

use crate::frames::JobKey;
use crate::wire::request::Priority;
use crate::wire::topic::Name;
use lane::{Lane, Turn};

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

    /// All that wait, in the order in which they would enter one after the other if nobody else came.
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
        let job = firsts[class]?;
        if self.is_suspect(job) && self.n_running > 0 {
            return None; // It waits until it can be alone.
        }
        let passed = self.batch_passed;
        self.batch_passed = passed_after(passed, class, are_there);
        self.enter(job, passed);
        Some(job)
    }

    /// The job that has to make room, where an alarm could enter if one did: the youngest of those of the class
    /// `batch` that `may_leave`.
    pub fn victim(
        &self,
        n_seq_max: usize,
        waits: impl Fn(JobKey) -> bool,
        may_leave: impl Fn(JobKey) -> bool,
    ) -> Option<JobKey> {
        if self.n_running < n_seq_max && !self.suspect_runs() {
            return None;
        }
        self.first_of(index(Priority::Alarm), &waits)?;
        let running = self.jobs.iter().filter(|(job, entry)| {
            entry.place != Place::Waiting
                && entry.terms.priority == Priority::Batch
                && may_leave(**job)
        });
        running
            .map(|(job, entry)| (entry.order, *job))
            .max()
            .map(|(_, job)| job)
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

    /// The job of one lane that goes before the others there, among those that may.
    fn first_of(&self, lane: usize, waits: &impl Fn(JobKey) -> bool) -> Option<JobKey> {
        let lane = &self.lanes[lane];
        let mut begun = lane.begun().filter(|job| !waits(*job));
        // Only jobs that ran can be suspects.
        let suspect = begun.clone().find(|job| self.is_suspect(*job));
        let may = |user: &Name| {
            // The lane remembers some who have nothing here.
            let user = self.users.get(user);
            user.is_some_and(|user| user.running_max.is_none_or(|max| user.n_running < max))
        };
        suspect
            .or_else(|| begun.next())
            .or_else(|| lane.fresh(may, |job| !waits(job)))
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
