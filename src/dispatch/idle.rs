//! The model is unloaded when nobody asked for a while, and loaded again for the next request.
//!
//! Owns: since when nobody asks, and what the governor was told of it. Whether the worker is ended then is
//! the governor's to decide: memory, updates and orders come first.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::Dispatch;
use crate::governor::Notice;

/// What is told next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    Idle,
    Needed,
}

/// PURE: values in, values out.
#[derive(Debug)]
pub(super) struct Idle {
    /// So long nobody asks before the model is unloaded; `None`: it never is.
    limit: Option<Duration>,
    /// Since when nobody asks and a model serves.
    since: Option<Instant>,
    /// The governor believes that nobody asks.
    is_told: bool,
    /// Somebody asked in passing, and was told to come again.
    is_wanted: bool,
}

impl Idle {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            since: None,
            is_told: false,
            is_wanted: false,
        }
    }

    /// Somebody needs the model, and is not there any more at the next [`Idle::step`].
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// What is to be told now, and when to look again.
    fn step(
        &mut self,
        now: Instant,
        serves: bool,
        has_jobs: bool,
    ) -> (Option<Tell>, Option<Instant>) {
        let Some(limit) = self.limit else {
            return (None, None);
        };
        if std::mem::take(&mut self.is_wanted) || has_jobs {
            self.since = serves.then_some(now);
            let was_told = std::mem::replace(&mut self.is_told, false);
            return (was_told.then_some(Tell::Needed), None);
        }
        if !serves {
            self.since = None;
            return (None, None);
        }
        let until = *self.since.get_or_insert(now) + limit;
        if now < until {
            return (None, Some(until));
        }
        // One that still serves after as long again was kept for a reason that may be over.
        self.since = Some(now);
        self.is_told = true;
        (Some(Tell::Idle), Some(now + limit))
    }
}

impl Dispatch {
    /// Has the model unloaded, or loaded again; says when to look again.
    pub(super) fn rest_model(&mut self, now: Instant) -> Option<Instant> {
        let has_jobs = !self.open.is_empty() || !self.tokenizing.is_empty();
        let serves = self.node.slots().is_some();
        let (tell, wake) = self.idle.step(now, serves, has_jobs);
        let notice = match tell {
            None => return wake,
            Some(Tell::Idle) => Notice::Idle,
            Some(Tell::Needed) => {
                info!("somebody asks: the model is needed");
                Notice::Needed
            }
        };
        if self.notices.try_send(notice).is_err() {
            // It is behind. Who waits must not wait for ever.
            self.idle.is_told = true;
            return Some(now + super::RETRY);
        }
        wake
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn without_a_limit_nothing_is_ever_unloaded() {
        let mut idle = Idle::new(None);
        let at = Instant::now() + Duration::from_secs(1_000_000);
        assert_eq!(idle.step(at, true, false), (None, None));
    }

    #[test]
    fn a_question_in_passing_wakes_the_model() {
        let (mut idle, start) = (Idle::new(Some(LIMIT)), Instant::now());
        assert_eq!(idle.step(start, true, false), (None, Some(start + LIMIT)));
        let at = start + LIMIT;
        assert_eq!(idle.step(at, true, false).0, Some(Tell::Idle));
        assert_eq!(idle.step(at, false, false), (None, None));
        idle.want();
        assert_eq!(idle.step(at, false, false).0, Some(Tell::Needed));
        assert_eq!(idle.step(at, false, false).0, None, "once");
    }

    proptest! {
        /// Whatever happens: nobody who asks finds the model unloaded for good, and it is unloaded only after
        /// the limit without a job.
        #[test]
        fn it_is_unloaded_after_the_limit_and_woken_by_the_first_job(
            steps in proptest::collection::vec((0_u64..15, any::<bool>()), 1..60)
        ) {
            let mut idle = Idle::new(Some(LIMIT));
            let mut now = Instant::now();
            let (mut serves, mut last_needed) = (true, now);
            idle.step(now, serves, true);
            for (seconds, has_jobs) in steps {
                now += Duration::from_secs(seconds);
                let (tell, wake) = idle.step(now, serves, has_jobs);
                match tell {
                    Some(Tell::Idle) => {
                        prop_assert!(!has_jobs && serves && now - last_needed >= LIMIT);
                        serves = false; // As the governor does.
                    }
                    Some(Tell::Needed) => {
                        prop_assert!(has_jobs && !serves);
                        serves = true;
                        prop_assert_eq!(idle.step(now, serves, has_jobs).0, None, "once");
                    }
                    None => {
                        prop_assert!(serves || !has_jobs, "somebody waits for ever");
                        prop_assert!(!serves || has_jobs || now - last_needed < LIMIT);
                        prop_assert!(!serves || has_jobs || wake.is_some());
                    }
                }
                if has_jobs || tell == Some(Tell::Needed) {
                    last_needed = now;
                }
            }
        }
    }
}
