//! PURE: which waiting job enters the worker next, and the poison rule.
//!
//! Jobs wait in order of acceptance; a job whose worker died goes back to the front, in its old order.
//! A worker's death counts against the jobs inside only when it died by itself. A job that saw two such
//! deaths is a *suspect*: suspects go first and run alone, so that the next death names its cause. The one
//! that kills the worker while alone is poison; the others end normally. Whatever the reasons, a job is
//! tried at most [`DEATHS_MAX`] times.

use std::collections::{BTreeMap, BTreeSet};

use crate::frames::JobKey;

/// Deaths by itself after which a job is run alone.
const SUSPECT_AFTER: u32 = 2;
/// Deaths of any kind after which a job is given up.
pub const DEATHS_MAX: u32 = 8;

/// Order of acceptance; lower goes first.
pub type Order = u64;

/// Waiting and running jobs of one worker. Owns no job, only keys.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeSet<(Order, JobKey)>,
    running: BTreeMap<JobKey, Order>,
    history: BTreeMap<JobKey, Deaths>,
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
    /// A new job at its place in the order.
    pub fn push(&mut self, order: Order, job: JobKey) {
        self.waiting.insert((order, job));
    }

    /// The job is over, wherever it was.
    pub fn remove(&mut self, job: JobKey) {
        self.running.remove(&job);
        self.history.remove(&job);
        self.waiting.retain(|(_, waiting)| *waiting != job);
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Jobs in the worker.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Place of a waiting job, 0 for the next one; `None` when it does not wait.
    pub fn position(&self, job: JobKey) -> Option<usize> {
        self.waiting.iter().position(|(_, waiting)| *waiting == job)
    }

    /// Takes the next job for a worker with `n_seq_max` sequences, or says that none may enter now.
    pub fn next(&mut self, n_seq_max: usize) -> Option<JobKey> {
        if self.running.len() >= n_seq_max || self.running.keys().any(|job| self.is_suspect(*job)) {
            return None;
        }
        let suspect = self
            .waiting
            .iter()
            .find(|(_, job)| self.is_suspect(*job))
            .copied();
        let entry = match suspect {
            Some(_) if !self.running.is_empty() => return None, // It waits until it can be alone.
            Some(entry) => entry,
            None => *self.waiting.first()?,
        };
        self.waiting.remove(&entry);
        self.running.insert(entry.1, entry.0);
        Some(entry.1)
    }

    /// Puts back a job that could not be handed over.
    pub fn put_back(&mut self, job: JobKey) {
        if let Some(order) = self.running.remove(&job) {
            self.waiting.insert((order, job));
        }
    }

    /// The worker died. Every running job gets its verdict; those to be tried again wait at their place.
    pub fn worker_died(&mut self, by_itself: bool) -> Vec<(JobKey, Verdict)> {
        let running = std::mem::take(&mut self.running);
        let alone = running.len() == 1;
        let mut verdicts = Vec::with_capacity(running.len());
        for (job, order) in running {
            let was_suspect = self.is_suspect(job);
            let deaths = self.history.entry(job).or_default();
            deaths.all += 1;
            deaths.by_itself += u32::from(by_itself);
            let verdict = if by_itself && alone && was_suspect {
                Verdict::Poison
            } else if deaths.all >= DEATHS_MAX {
                Verdict::GiveUp
            } else {
                self.waiting.insert((order, job));
                Verdict::Again
            };
            if verdict != Verdict::Again {
                self.history.remove(&job);
            }
            verdicts.push((job, verdict));
        }
        verdicts
    }

    fn is_suspect(&self, job: JobKey) -> bool {
        self.history
            .get(&job)
            .is_some_and(|deaths| deaths.by_itself >= SUSPECT_AFTER)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
