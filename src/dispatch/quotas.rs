//! PURE: how much each user has asked for, and whether it may ask for more.
//!
//! Two kinds of limits (`config::UserLimits`). A *rate* is a bucket that holds one minute's worth and fills
//! evenly: every request is charged before anything is done for it, whatever becomes of it. A *share* is what
//! a user may have in the queue at a time. Who is over a limit hears so with the time to wait; who goes on
//! all the same is heard of less and less, since answering a flood is half of its harm: a requester without
//! an answer asks again by itself.
//!
//! Memory is bounded: a user who has nothing open and full buckets is forgotten, and where a broker lets
//! anybody have any name, names beyond [`USERS_MAX`] share one account.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::config::UserLimits;
use crate::wire::error::{ApiError, Code};
use crate::wire::topic::Name;

/// Users whose rates are remembered one by one.
const USERS_MAX: usize = 4096;
/// How often users are looked through for some to forget, at most.
const FORGET_EVERY: Duration = Duration::from_secs(1);
/// Refusals for being over a limit that a user hears in a minute.
const REFUSALS_PER_MINUTE: u64 = 120;
/// How often the log tells of a user who is over its limits.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Advice to wait is never shorter or longer.
const WAIT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60);
/// The longest time after which a bucket is full again.
const DEBT_MAX: Duration = Duration::from_secs(3600);
/// Weight of the newest interval in the mean between two ends of jobs.
const PACE_WEIGHT: f64 = 0.1;

/// What each user has asked for. Owns numbers only.
#[derive(Debug, Default)]
pub struct Quotas {
    users: HashMap<Name, Usage>,
    /// Of all users beyond [`USERS_MAX`].
    others: Usage,
    forgot: Option<Instant>,
    pace: Pace,
}

#[derive(Debug, Default)]
struct Usage {
    requests: Bucket,
    bytes: Bucket,
    tokens: Bucket,
    refusals: Bucket,
    logged: Option<Instant>,
    jobs: usize,
    job_bytes: usize,
}

/// A limit that a request would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// Requests a minute.
    Requests {
        /// The limit.
        per_minute: u32,
        /// When one more is allowed.
        wait: Duration,
    },
    /// Bytes of requests a minute.
    Bytes {
        /// The limit.
        per_minute: u64,
        /// When as many bytes are allowed.
        wait: Duration,
    },
    /// Tokens of prompts a minute.
    Tokens {
        /// The limit.
        per_minute: u64,
        /// When some are allowed again.
        wait: Duration,
    },
    /// Jobs that have not ended.
    Jobs {
        /// The limit.
        max: usize,
        /// When one has probably ended.
        wait: Duration,
    },
    /// Their bytes.
    JobBytes {
        /// The limit.
        max: usize,
        /// When one has probably ended.
        wait: Duration,
    },
    /// More bytes than this user may ever send at once.
    TooLarge {
        /// Bytes of the request.
        found: usize,
        /// The limit.
        max: u64,
    },
}

/// How a user who is over a limit is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Whether it is told; otherwise the request is dropped.
    pub told: bool,
    /// Whether an operator is.
    pub logged: bool,
}

impl Quotas {
    /// Charges a request that has arrived; an error charges nothing.
    ///
    /// # Errors
    /// The rate that it would exceed.
    pub fn arrive(
        &mut self,
        user: &Name,
        limits: &UserLimits,
        bytes: usize,
        now: Instant,
    ) -> Result<(), Excess> {
        let usage = self.usage(user, now);
        let per_minute = limits.requests_per_minute_max;
        let requests = per_minute.map_or(Ok(usage.requests), |per_minute| {
            let taken = usage.requests.take(1, per_minute.into(), now);
            taken.map_err(|wait| Excess::Requests { per_minute, wait })
        })?;
        let per_minute = limits.prompt_bytes_per_minute_max;
        usage.bytes = per_minute.map_or(Ok(usage.bytes), |per_minute| {
            if bytes as u64 > per_minute {
                let max = per_minute;
                return Err(Excess::TooLarge { found: bytes, max });
            }
            let taken = usage.bytes.take(bytes as u64, per_minute, now);
            taken.map_err(|wait| Excess::Bytes { per_minute, wait })
        })?;
        if let Some(per_minute) = limits.prompt_tokens_per_minute_max {
            // How many it has is known when it is read: it is enough that one is left.
            let taken = usage.tokens.take(1, per_minute, now);
            taken.map_err(|wait| Excess::Tokens { per_minute, wait })?;
        }
        usage.requests = requests;
        Ok(())
    }

    /// A prompt of this user was read. What it has beyond the limit counts against the next minutes.
    pub fn read(&mut self, user: &Name, limits: &UserLimits, n_tokens: u64, now: Instant) {
        if let Some(per_minute) = limits.prompt_tokens_per_minute_max {
            let usage = self.usage(user, now);
            usage.tokens = usage.tokens.charge(n_tokens, per_minute, now);
        }
    }

    /// Whether there is room for one more job of a user in its share of the queue.
    ///
    /// # Errors
    /// The share that it would exceed.
    pub fn room(&self, user: &Name, limits: &UserLimits, bytes: usize) -> Result<(), Excess> {
        if bytes > limits.queue_bytes_max {
            let max = limits.queue_bytes_max as u64;
            return Err(Excess::TooLarge { found: bytes, max });
        }
        let Some(usage) = self.users.get(user) else {
            return Ok(());
        };
        if usage.jobs >= limits.queue_jobs_max {
            let max = limits.queue_jobs_max;
            let wait = self.wait();
            return Err(Excess::Jobs { max, wait });
        }
        if usage.job_bytes.saturating_add(bytes) > limits.queue_bytes_max {
            let max = limits.queue_bytes_max;
            let wait = self.wait();
            return Err(Excess::JobBytes { max, wait });
        }
        Ok(())
    }

    /// A job of this user was taken.
    pub fn entered(&mut self, user: &Name, bytes: usize) {
        // Those with jobs are always known one by one; the queue bounds how many that are.
        let usage = self.users.entry(user.clone()).or_default();
        usage.jobs += 1;
        usage.job_bytes += bytes;
    }

    /// A job of this user is over, and gone.
    pub fn left(&mut self, user: &Name, bytes: usize, now: Instant) {
        if let Some(usage) = self.users.get_mut(user) {
            usage.jobs = usage.jobs.saturating_sub(1);
            usage.job_bytes = usage.job_bytes.saturating_sub(bytes);
        }
        self.pace.ended(now);
    }

    /// How to refuse a user who is over a limit.
    pub fn refuse(&mut self, user: &Name, now: Instant) -> Refusal {
        let usage = self.usage(user, now);
        let logged = usage.logged.is_none_or(|at| now >= at + LOG_EVERY);
        if logged {
            usage.logged = Some(now);
        }
        let told = usage.refusals.take(1, REFUSALS_PER_MINUTE, now);
        if let Ok(refusals) = told {
            usage.refusals = refusals;
        }
        Refusal {
            told: told.is_ok(),
            logged,
        }
    }

    /// When a place in a full queue will probably be free.
    pub fn wait(&self) -> Duration {
        self.pace.mean.clamp(*WAIT.start(), *WAIT.end())
    }

    fn usage(&mut self, user: &Name, now: Instant) -> &mut Usage {
        if !self.users.contains_key(user) && self.users.len() >= USERS_MAX {
            if self.forgot.is_none_or(|at| now >= at + FORGET_EVERY) {
                self.forgot = Some(now);
                self.users.retain(|_, usage| !usage.is_idle(now));
            }
            if self.users.len() >= USERS_MAX {
                return &mut self.others;
            }
        }
        self.users.entry(user.clone()).or_default()
    }
}

impl Usage {
    /// Nothing would change if it were forgotten, but when the log told of it.
    fn is_idle(&self, now: Instant) -> bool {
        let buckets = [self.requests, self.bytes, self.tokens, self.refusals];
        self.jobs == 0 && buckets.iter().all(|bucket| bucket.is_full(now))
    }
}

/// One minute's worth of something, filling evenly. Only the time at which it is full again is kept.
#[derive(Debug, Default, Clone, Copy)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    const HOLDS: Duration = Duration::from_secs(60);

    /// The bucket without `n`, or how long until it has as many. Never to be called with more than it holds.
    fn take(self, n: u64, per_minute: u64, now: Instant) -> Result<Bucket, Duration> {
        let taken = self.charge(n, per_minute, now);
        let full_in = taken.full_at.map_or(Duration::ZERO, |at| at - now);
        match full_in.checked_sub(Self::HOLDS) {
            None | Some(Duration::ZERO) => Ok(taken),
            Some(wait) => Err(wait),
        }
    }

    /// The bucket without `n`, which may be more than there are, though never more than an hour's worth.
    fn charge(self, n: u64, per_minute: u64, now: Instant) -> Bucket {
        let nanos = u128::from(n) * Self::HOLDS.as_nanos() / u128::from(per_minute.max(1));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        Bucket {
            full_at: Some((full_at + cost.min(DEBT_MAX)).min(now + DEBT_MAX)),
        }
    }

    fn is_full(self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }
}

/// How fast jobs end.
#[derive(Debug, Default)]
struct Pace {
    last: Option<Instant>,
    mean: Duration,
}

impl Pace {
    fn ended(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            // An idle night says nothing of the pace.
            let interval = now.saturating_duration_since(last).min(*WAIT.end());
            self.mean = self.mean.mul_f64(1.0 - PACE_WEIGHT) + interval.mul_f64(PACE_WEIGHT);
        }
    }
}

impl Excess {
    /// As the requester is told.
    pub fn to_error(self) -> ApiError {
        let limited = |code, text: String, wait: Duration| {
            let wait = wait.clamp(*WAIT.start(), *WAIT.end());
            // Rounded up: at that time it is allowed.
            ApiError::new(code, text).with_retry(wait.as_millis() as u64 + 1)
        };
        match self {
            Self::Requests { per_minute, wait } => {
                let text = format!("this user may ask {per_minute} times a minute");
                limited(Code::RateLimited, text, wait)
            }
            Self::Bytes { per_minute, wait } => {
                let text = format!("this user may send {per_minute} bytes of requests a minute");
                limited(Code::RateLimited, text, wait)
            }
            Self::Tokens { per_minute, wait } => {
                let text = format!("this user may ask with {per_minute} prompt tokens a minute");
                limited(Code::RateLimited, text, wait)
            }
            Self::Jobs { max, wait } => {
                let text = format!("{max} requests of this user wait or run, more are not taken");
                limited(Code::QueueFull, text, wait)
            }
            Self::JobBytes { max, wait } => {
                let text = format!(
                    "requests of this user wait or run, together they may have {max} bytes"
                );
                limited(Code::QueueFull, text, wait)
            }
            Self::TooLarge { found, max } => ApiError::new(
                Code::PayloadTooLarge,
                format!("{found} bytes, this user may send at most {max} at once"),
            ),
        }
    }
}

#[cfg(test)]
#[path = "quotas_tests.rs"]
mod tests;
