//! PURE: which waiting job enters the worker next, and the poison rule.
//!
//! Users take turns: the next job is that of the user whose turn is longest ago, and of its jobs the oldest.
//! Who had none lately is first, so that one prompt of a quiet user waits for one sequence and not for the
//! queue of a busy one. No sequence stays free while a job waits, unless its user has as many
//! running as it may.
//!
//! A job whose worker died goes before all that never began, in its old order. A worker's death counts
//! against the jobs inside only when it died by itself. A job that saw two such deaths is a *suspect*:
//! suspects go first and run alone, so that the next death names its cause. The one that kills the worker
//! while alone is poison; the others end normally. Whatever the reasons, a job is tried at most
//! [`DEATHS_MAX`] times.

use std::collections::{BTreeMap, BTreeSet};

use crate::frames::JobKey;
use crate::wire::topic::Name;

/// Deaths by itself after which a job is run alone.
const SUSPECT_AFTER: u32 = 2;
/// Deaths of any kind after which a job is given up.
pub const DEATHS_MAX: u32 = 8;

/// Order of acceptance; lower goes first.
pub type Order = u64;

/// Waiting and running jobs of one worker. Owns no job, only keys.
#[derive(Debug, Default)]
pub struct Queue {
    jobs: BTreeMap<JobKey, Entry>,
    /// Waiting again after a worker's death.
    begun: BTreeSet<(Order, JobKey)>,
    /// Users with a job that waits or runs, and those who had one lately.
    users: BTreeMap<Name, User>,
    /// Rises with each job that enters.
    turn: u64,
    n_running: usize,
}

#[derive(Debug)]
struct Entry {
    order: Order,
    user: Name,
    place: Place,
    deaths: Deaths,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Among its user's jobs; it never ran.
    Fresh,
    /// It ran, and waits again.
    Begun,
    /// In the worker. Its user's turn before it entered, and what it was then.
    Running { turn: u64, was_begun: bool },
}

#[derive(Debug, Default)]
struct User {
    fresh: BTreeSet<(Order, JobKey)>,
    n_running: usize,
    n_begun: usize,
    running_max: Option<usize>,
    /// When it last had its turn; 0: not since it came.
    turn: u64,
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
    /// A new job at its place in the order. Its user may have `running_max` jobs in the worker from now on;
    /// `None`: any number.
    pub fn push(&mut self, order: Order, job: JobKey, user: &Name, running_max: Option<usize>) {
        let entry = Entry {
            order,
            user: user.clone(),
            place: Place::Fresh,
            deaths: Deaths::default(),
        };
        self.jobs.insert(job, entry);
        let user = self.users.entry(user.clone()).or_default();
        user.fresh.insert((order, job));
        user.running_max = running_max;
    }

    /// The job is over, wherever it was.
    pub fn remove(&mut self, job: JobKey) {
        if self.leave(job).is_some() {
            self.jobs.remove(&job);
            self.forget_idle();
        }
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.jobs.len() - self.n_running
    }

    /// Jobs in the worker.
    pub fn running(&self) -> usize {
        self.n_running
    }

    /// How many go before a waiting job if nobody else comes; `None` when it does not wait.
    pub fn position(&self, job: JobKey) -> Option<usize> {
        let entry = self.jobs.get(&job)?;
        let place = (entry.order, job);
        match entry.place {
            Place::Running { .. } => None,
            Place::Begun => Some(self.begun.range(..place).count()),
            Place::Fresh => {
                let own = &self.users[&entry.user];
                let ahead = own.fresh.range(..place).count();
                let others = self.users.iter().filter(|(name, _)| **name != entry.user);
                // Before its user's n-th turn from now, each other has n turns, or one more if it is next
                // before this user.
                let turns = others.map(|(_, other)| {
                    let first = usize::from(other.key() < own.key());
                    other.fresh.len().min(ahead + first)
                });
                Some(self.begun.len() + ahead + turns.sum::<usize>())
            }
        }
    }

    /// Takes the next job for a worker with `n_seq_max` sequences, or says that none may enter now.
    /// Jobs that `waits` names are passed over.
    pub fn next(&mut self, n_seq_max: usize, waits: impl Fn(JobKey) -> bool) -> Option<JobKey> {
        if self.n_running >= n_seq_max || self.suspect_runs() {
            return None;
        }
        let begun = self.begun.iter().map(|(_, job)| *job);
        let mut begun = begun.filter(|job| !waits(*job));
        // Only jobs that ran can be suspects.
        let suspect = begun.clone().find(|job| self.is_suspect(*job));
        let job = match suspect {
            Some(_) if self.n_running > 0 => return None, // It waits until it can be alone.
            Some(job) => job,
            None => match begun.next() {
                Some(job) => job,
                None => self.next_fresh(&waits)?,
            },
        };
        self.enter(job);
        Some(job)
    }

    /// Puts back a job that could not be handed over, as if it had not been taken.
    pub fn put_back(&mut self, job: JobKey) {
        if let Some(Place::Running { turn, was_begun }) = self.jobs.get(&job).map(|e| e.place) {
            self.leave(job);
            self.wait(job, was_begun);
            self.user_of(job).turn = turn;
        }
    }

    /// The job leaves the worker for a while, and waits as one that ran.
    pub fn pause(&mut self, job: JobKey) {
        if self.is_running(job) {
            self.leave(job);
            self.wait(job, true);
        }
    }

    /// Whether the job is in the worker.
    pub fn is_running(&self, job: JobKey) -> bool {
        let entry = self.jobs.get(&job);
        entry.is_some_and(|entry| matches!(entry.place, Place::Running { .. }))
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
                    self.wait(job, true);
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
            self.wait(*job, true);
        }
        running
            .into_iter()
            .map(|job| (job, Verdict::Again))
            .collect()
    }

    fn running_jobs(&self) -> Vec<JobKey> {
        let is_running = |(job, entry): (&JobKey, &Entry)| {
            matches!(entry.place, Place::Running { .. }).then_some(*job)
        };
        self.jobs.iter().filter_map(is_running).collect()
    }

    /// The oldest job of the user whose turn is longest ago, among those who may have one more running.
    fn next_fresh(&self, waits: impl Fn(JobKey) -> bool) -> Option<JobKey> {
        let may = |user: &&User| user.running_max.is_none_or(|max| user.n_running < max);
        let first = |user: &User| {
            user.fresh
                .iter()
                .map(|(_, job)| *job)
                .find(|job| !waits(*job))
        };
        let waiting = self.users.values().filter(may);
        let waiting = waiting.filter_map(|user| Some((user.key(), first(user)?)));
        waiting.min_by_key(|(key, _)| *key).map(|(_, job)| job)
    }

    fn enter(&mut self, job: JobKey) {
        let was_begun = self.jobs[&job].place == Place::Begun;
        self.leave(job);
        let next_turn = self.turn + 1;
        let user = self.user_of(job);
        user.n_running += 1;
        let before = user.turn;
        // What goes on had its turn when it began.
        if !was_begun {
            user.turn = next_turn;
            self.turn = next_turn;
        }
        self.n_running += 1;
        self.jobs
            .get_mut(&job)
            .expect("it was chosen from here")
            .place = Place::Running {
            turn: before,
            was_begun,
        };
    }

    /// Takes a job from where it is; what it is next, the caller says.
    fn leave(&mut self, job: JobKey) -> Option<()> {
        let entry = self.jobs.get(&job)?;
        let place = (entry.order, job);
        let user = self
            .users
            .get_mut(&entry.user)
            .expect("users of jobs are known");
        match entry.place {
            Place::Fresh => {
                user.fresh.remove(&place);
            }
            Place::Begun => {
                self.begun.remove(&place);
                user.n_begun -= 1;
            }
            Place::Running { .. } => {
                user.n_running -= 1;
                self.n_running -= 1;
            }
        }
        Some(())
    }

    fn wait(&mut self, job: JobKey, begun: bool) {
        let entry = self.jobs.get_mut(&job).expect("it left just now");
        let place = (entry.order, job);
        let user = self
            .users
            .get_mut(&entry.user)
            .expect("users of jobs are known");
        if begun {
            entry.place = Place::Begun;
            self.begun.insert(place);
            user.n_begun += 1;
        } else {
            entry.place = Place::Fresh;
            user.fresh.insert(place);
        }
    }

    fn user_of(&mut self, job: JobKey) -> &mut User {
        let name = &self.jobs[&job].user;
        self.users.get_mut(name).expect("users of jobs are known")
    }

    /// Forgets users who have nothing here, but for those whose turn was later than that of somebody who
    /// waits: coming back must not put them first again.
    fn forget_idle(&mut self) {
        let waiting = self.users.values().filter(|user| !user.fresh.is_empty());
        let oldest = waiting.map(|user| user.turn).min().unwrap_or(u64::MAX);
        let idle = |user: &User| user.fresh.is_empty() && user.n_begun + user.n_running == 0;
        self.users
            .retain(|_, user| !idle(user) || user.turn > oldest);
    }

    fn suspect_runs(&self) -> bool {
        // At most one runs while a suspect does, and few workers have many sequences.
        self.jobs.iter().any(|(job, entry)| {
            matches!(entry.place, Place::Running { .. }) && self.is_suspect(*job)
        })
    }

    fn is_suspect(&self, job: JobKey) -> bool {
        self.jobs
            .get(&job)
            .is_some_and(|entry| entry.deaths.by_itself >= SUSPECT_AFTER)
    }
}

impl User {
    /// Lower goes first: whose turn is longer ago; of two who had none, whose job is older.
    fn key(&self) -> (u64, Option<(Order, JobKey)>) {
        (self.turn, self.fresh.first().copied())
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
