//! What is not taken, and how its requester hears of it: at once and with a reason, unless it floods us.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Dispatch;
use super::job::{Address, Job};
use super::quotas::Excess;
use crate::link::AckToken;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::Replier;
use crate::wire::topic::Name;

/// How often the log tells of messages that are no requests.
const IGNORED_LOG_EVERY: Duration = Duration::from_secs(1);

/// Messages that are no requests, and were not told of one by one.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    since: Option<Instant>,
    n: u64,
}

impl Dispatch {
    /// An error final for something that never became a job, then its PUBACK.
    pub(super) fn refuse(
        &mut self,
        address: &Address,
        replier: &Replier,
        error: &ApiError,
        ack: Option<AckToken>,
    ) {
        self.meters.n_refused += 1;
        info!(user = %address.user, id = %address.id, code = error.code.as_str(), "request refused");
        let publish = address.publish(self.settings.names.node(), replier.error(0, error), None);
        self.send(publish);
        self.acknowledge(ack);
    }

    /// The same for somebody over its limits: told so, and for a while no longer. Where the id belongs to a
    /// request that was taken, nothing is said at all: its final is another.
    pub(super) fn refuse_excess(
        &mut self,
        address: &Address,
        replier: &Replier,
        error: &ApiError,
        ack: AckToken,
    ) {
        self.meters.n_refused += 1;
        let refusal = self.quotas.refuse(&address.user, Instant::now().into_std());
        if refusal.logged {
            let reason = &error.message;
            warn!(user = %address.user, reason, "user over its limits; not told again for a minute");
        }
        let asked = (address.user.clone(), address.id.clone());
        let is_known = self.open.contains_key(&asked) || self.answered.contains_key(&asked);
        if refusal.told && !is_known {
            debug!(user = %address.user, id = %address.id, code = error.code.as_str(), "request refused");
            let reply = replier.error(0, error);
            self.send(address.publish(self.settings.names.node(), reply, None));
        }
        self.acknowledge(Some(ack));
    }

    /// A message that is no request. Anybody can send any number of them, so the log is told of some.
    pub(super) fn ignore(&mut self, reason: &str) {
        let Ignored { since, n } = &mut self.ignored;
        if since.is_some_and(|at| at.elapsed() < IGNORED_LOG_EVERY) {
            *n += 1;
            return;
        }
        warn!(reason, n_before = *n, "message ignored");
        *since = Some(Instant::now());
        *n = 0;
    }

    /// Whether one more job of this user can be taken now, by its own share and by that of all.
    pub(super) fn room(&self, user: &Name, body_bytes: usize) -> Result<(), ApiError> {
        let limits = &self.settings.user(user).limits;
        self.quotas
            .room(user, limits, body_bytes)
            .map_err(Excess::to_error)?;
        let full = |text| {
            let wait_ms = self.quotas.wait().as_millis() as u64;
            Err(ApiError::new(Code::QueueFull, text).with_retry(wait_ms))
        };
        let (jobs, bytes) = (self.settings.queue_jobs_max, self.settings.queue_bytes_max);
        if self.jobs.len() >= jobs {
            let n = self.jobs.len();
            return full(format!(
                "{n} requests are waiting or running, at most {jobs} are taken"
            ));
        }
        if self.queued_bytes + body_bytes > bytes {
            let n = self.queued_bytes;
            return full(format!(
                "waiting requests hold {n} bytes, at most {bytes} are kept"
            ));
        }
        Ok(())
    }

    /// The job is gone: its place in the queue is another's.
    pub(super) fn left(&mut self, job: &Job) {
        self.queued_bytes -= job.body_bytes;
        let now = Instant::now().into_std();
        self.quotas.left(&job.address.user, job.body_bytes, now);
        self.leave_line(job);
    }
}
