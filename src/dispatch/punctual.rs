//! Time as requesters see it: how long it will take, what is too late, and what a newer request replaces.
//!
//! Part of the dispatcher's one task: it changes the dispatcher's state and waits for nothing. What requests
//! take is `eta`'s to say, in which order they enter `queue`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::eta::{Places, Rates, Work};
use super::job::{Ending, Job, Phase};
use super::queue::Terms;
use super::{Dispatch, earliest};
use crate::frames::JobKey;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::{Accepted, Loading};
use crate::wire::request::{Priority, Request};
use crate::wire::topic::Name;

/// Most streams that are told of their place in the queue at one time: those that are next.
const NOTICES_MAX: usize = 50;
/// A refusal for want of time is never told to be worth repeating sooner.
const RETRY_MS_MIN: u64 = 100;

impl Dispatch {
    /// How each class of jobs of this user is treated.
    pub(super) fn terms(&self, user: &Name, request: &Request) -> Terms {
        let limits = &self.settings.user(user).limits;
        Terms {
            priority: request.priority.unwrap_or_default(),
            weight: limits.weight,
            running_max: limits.running_jobs_max,
        }
    }

    /// When the places of the worker are free, for a job of this class; `None` while no model serves or nothing
    /// is known.
    fn places(&self, class: Priority) -> Option<Places> {
        let (n_seq_max, model) = self.node.serving()?;
        let rates = self.rates.of(&model);
        let mut busy = Vec::new();
        let running = self
            .jobs
            .values()
            .filter(|job| self.queue.is_running(job.key));
        for job in running {
            let makes_room = class == Priority::Alarm && job.priority() == Priority::Batch;
            if !makes_room && job.phase == Phase::Open {
                busy.push(rates.takes(&job.work())?);
            }
        }
        Some(Places::new(n_seq_max, busy))
    }

    /// The line for one model, from its head on.
    fn line_for(&self, bound: Option<&str>, class: Priority) -> Line<'_> {
        let model = self.model_for(bound);
        let loading = self.loading(bound, class);
        let (places, delay) = match loading {
            None => (self.places(class), Some(Duration::ZERO)),
            Some(Loading { eta_ms }) => {
                let free = self.node.slots_soon().map(|n| Places::new(n, []));
                (free, eta_ms.map(Duration::from_millis))
            }
        };
        Line {
            rates: self.rates.of(&model),
            places: places.zip(delay),
            n: 0,
            loading,
        }
    }

    /// Of a job that waits in the queue, and need not be among the jobs: its place in the line for its model, from
    /// 1, and about how long until it has ended.
    fn ahead(
        &self,
        key: JobKey,
        bound: Option<&str>,
        class: Priority,
        work: &Work,
    ) -> (usize, Option<Duration>, Option<Loading>) {
        let mut line = self.line_for(bound, class);
        for other in self.queue.line() {
            if other == key {
                let (n, eta) = line.next(work);
                return (n, eta, line.loading);
            }
            let job = self.jobs.get(&other);
            if let Some(job) = job.filter(|job| job.model.as_deref() == bound) {
                line.next(&job.work());
            }
        }
        (line.n, None, line.loading)
    }

    /// Refuses a request that cannot be answered before its deadline, as things go now.
    pub(super) fn in_time(
        &mut self,
        user: &Name,
        request: &Request,
        bound: Option<&str>,
        body_bytes: usize,
    ) -> Result<(), ApiError> {
        let Some(deadline_ms) = request.deadline_ms else {
            return Ok(());
        };
        // Its place in the line is found by taking it.
        let (probe, order) = (self.new_key(), u64::MAX);
        let terms = self.terms(user, request);
        self.queue.push(order, probe, user, terms);
        let work = work_of(request, body_bytes);
        let (_, eta, loading) = self.ahead(probe, bound, terms.priority, &work);
        self.queue.remove(probe);
        let Some(eta_ms) = eta.map(|eta| eta.as_millis() as u64) else {
            return Ok(());
        };
        if eta_ms <= deadline_ms {
            return Ok(());
        }
        let mut text = format!(
            "the answer would come in about {eta_ms} ms, and is worthless after {deadline_ms} ms"
        );
        if let Some(Loading { eta_ms: Some(ms) }) = loading {
            let model = self.model_for(bound);
            text = format!("{text}: `{model}` has its turn in about {ms} ms");
        }
        let wait_ms = (eta_ms - deadline_ms).max(RETRY_MS_MIN);
        let error = ApiError::new(Code::DeadlineExceeded, text).with_param("deadline_ms");
        Err(error.with_retry(wait_ms).with_eta(eta_ms))
    }

    /// Ends the jobs whose deadline has passed; says when the next one passes.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Instant> {
        let (mut late, mut next) = (Vec::new(), None);
        for job in self.jobs.values().filter(|job| job.phase == Phase::Open) {
            match job.deadline {
                Some(at) if at <= now => late.push(job.key),
                at => next = earliest(next, at),
            }
        }
        for key in late {
            let Some(job) = self.jobs.get(&key) else {
                continue;
            };
            let deadline_ms = job.request.deadline_ms.unwrap_or(0);
            let where_it_was = match (self.queue.is_waiting(key), job.output_ids.len()) {
                (true, 0) => "while it waited".to_owned(),
                (_, n) => format!("after {n} tokens of the answer"),
            };
            let text = format!("the deadline of {deadline_ms} ms passed {where_it_was}");
            info!(user = %job.address.user, id = %job.address.id, deadline_ms, "deadline passed");
            let error = ApiError::new(Code::DeadlineExceeded, text).with_param("deadline_ms");
            self.stop(key, Ending::Failed(error));
        }
        next
    }

    /// A job with a key of its own is on disk: of all that have it the newest stays, the others end.
    pub(super) fn keep_latest(&mut self, key: JobKey) {
        let Some((user, wanted)) = self.jobs.get(&key).and_then(|job| {
            let wanted = job.request.keep_latest.clone()?;
            Some((job.address.user.clone(), wanted))
        }) else {
            return;
        };
        let same = self.jobs.values().filter(|job| {
            job.committed
                && job.phase == Phase::Open
                && job.address.user == user
                && job.request.keep_latest.as_ref() == Some(&wanted)
        });
        let mut same = Vec::from_iter(same.map(|job| (job.order, job.key)));
        same.sort_unstable();
        let Some((_, newest)) = same.pop() else {
            return;
        };
        let Some(by) = self.jobs.get(&newest).map(|job| job.address.id.clone()) else {
            return;
        };
        for (_, older) in same {
            let text = format!("request {by} took its place, as keep_latest {wanted:?} says");
            self.stop(older, Ending::Failed(ApiError::new(Code::Replaced, text)));
        }
    }

    /// What `accepted` says of a job.
    pub(super) fn place_of(&self, key: JobKey) -> Accepted {
        let Some(job) = self.jobs.get(&key).filter(|job| job.has_accepted()) else {
            return Accepted::default();
        };
        let (queue, eta, loading) = match self.queue.is_waiting(key) {
            true => self.ahead(key, job.model.as_deref(), job.priority(), &job.work()),
            false => {
                let rates = self.rates.of(&self.model_for(job.model.as_deref()));
                (0, rates.takes(&job.work()), None)
            }
        };
        Accepted {
            queue,
            eta_ms: eta.map(|eta| eta.as_millis() as u64),
            loading,
        }
    }

    /// Tells streams that wait where they are, when that has changed; says when to look again.
    pub(super) fn tell_places(&mut self, now: Instant) -> Option<Instant> {
        let every = self.settings.queue_notice?;
        if self.queue.waiting() == 0 {
            return None;
        }
        if self.notices_at > now {
            return Some(self.notices_at);
        }
        self.notices_at = now + every;
        let mut lines = BTreeMap::new();
        let mut places = Vec::new();
        for key in self.queue.line() {
            let Some(job) = self.jobs.get(&key) else {
                continue;
            };
            let bound = job.model.as_deref();
            let line = lines
                .entry(bound)
                .or_insert_with(|| self.line_for(bound, Priority::Normal));
            let (queue, eta) = line.next(&job.work());
            let place = Accepted {
                queue,
                eta_ms: eta.map(|eta| eta.as_millis() as u64),
                loading: line.loading,
            };
            places.push((key, place));
        }
        let mut n_told = 0;
        for (key, place) in places {
            if let Some(job) = self.jobs.get_mut(&key)
                && n_told < NOTICES_MAX
                && job.moved(place)
            {
                n_told += 1;
            }
        }
        Some(self.notices_at)
    }
}

/// Who waits for one model.
struct Line<'a> {
    rates: &'a Rates,
    /// When its places are free, from when it serves on, and how long until then; `None`: not known.
    places: Option<(Places, Duration)>,
    /// Those that were counted.
    n: usize,
    loading: Option<Loading>,
}

impl Line<'_> {
    /// The next in it: its place, from 1, and about how long until it has ended.
    fn next(&mut self, work: &Work) -> (usize, Option<Duration>) {
        self.n += 1;
        let takes = self.rates.takes(work);
        let end = self
            .places
            .as_mut()
            .zip(takes)
            .and_then(|((places, delay), takes)| places.take(takes).map(|end| end + *delay));
        (self.n, end)
    }
}

fn work_of(request: &Request, body_bytes: usize) -> Work {
    Work {
        body_bytes,
        n_prompt: 0,
        is_read: false,
        n_made: 0,
        n_output_max: request.max_tokens.unwrap_or(u32::MAX),
        ignores_eos: request.ignore_eos,
    }
}

impl Job {
    /// What is left to do.
    pub(super) fn work(&self) -> Work {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Work {
            n_prompt: self.n_prompt,
            is_read: self.first_token.is_some(),
            n_made: count(self.output_ids.len()),
            ..work_of(&self.request, self.body_bytes)
        }
    }

    /// Its place in the queue is this one now; whether its requester is to be told.
    fn moved(&mut self, place: Accepted) -> bool {
        let is_told = self.committed && self.phase == Phase::Open && self.hears_places();
        if !is_told || self.told_queue == Some(place.queue) {
            return false;
        }
        self.told_queue = Some(place.queue);
        self.place = Some(place);
        true
    }
}
