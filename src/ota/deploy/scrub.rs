//! Model files are read again, by schedule and by command; a damaged one is fetched anew, or the release before it
//! serves.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::obey::{obey_meanwhile, request};
use super::{Closed, Deploy, World};
use crate::ota::name::{Digest, LineName};
use crate::ota::reason::Reason;
use crate::ota::state::{Origin, Release};

/// A board that starts has other things to read first.
const AFTER_START: Duration = Duration::from_secs(300);
/// One that was ended by something else begins again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// A file of the release in service is waited for so long while there is a release to go back to: the worker that
/// has the damaged one mapped may not outlive it.
const MEND_LIMIT: Duration = Duration::from_secs(600);

impl<W: World> Deploy<W> {
    /// When files are read again, counted from when they last were.
    pub(super) fn next_scrub(&self) -> Option<Instant> {
        let every = self.policy.scrub_every?;
        let since_s = self
            .world
            .now_s()
            .saturating_sub(self.book.record.scrubbed_s);
        let rest = every.saturating_sub(Duration::from_secs(since_s));
        Some(Instant::now() + rest.max(AFTER_START.min(every)))
    }

    /// Reads all files again. What is asked for meanwhile comes first: then it begins anew later.
    pub(super) async fn scrub(&mut self) -> Result<(), Closed> {
        self.scrub_at = None;
        let outcome = {
            let mut work = pin!(self.world.scrub());
            loop {
                tokio::select! {
                    outcome = &mut work => break Some(outcome),
                    order = self.parts.orders.recv() => {
                        let (order, told) = (order.ok_or(Closed)?, &self.parts.told);
                        if obey_meanwhile(&mut self.book, told, &self.policy, order).await {
                            break None;
                        }
                    }
                    request = request(self.policy.requests.as_deref()) => {
                        self.request = Some(request);
                        break None;
                    }
                }
            }
        };
        match outcome {
            None => {
                self.scrub_at = Some(Instant::now() + AGAIN);
                self.save().await;
            }
            Some(Err(why)) => {
                warn!(why, "model files could not be read again");
                self.scrub_at = self.policy.scrub_every.map(|every| Instant::now() + every);
            }
            Some(Ok(damaged)) => {
                info!(n_damaged = damaged.len(), "all model files were read again");
                self.book.record.scrubbed_s = self.world.now_s();
                self.save().await;
                self.to_mend = damaged;
                let missing = self.missing();
                for digest in missing {
                    if !self.to_mend.contains(&digest) {
                        self.to_mend.push(digest);
                    }
                }
                self.scrub_at = self.policy.scrub_every.map(|every| Instant::now() + every);
            }
        }
        Ok(())
    }

    /// Files that releases here need and that are not there, as after a scrub whose repair a restart cut short.
    pub(super) fn missing(&self) -> Vec<Digest> {
        let lines = self.book.record.lines.values();
        let releases = lines.flat_map(|line| [Some(&line.active), line.previous.as_ref()]);
        let gone = releases
            .flatten()
            .filter(|release| !self.world.is_intact(release));
        gone.map(|release| release.weights).collect()
    }

    /// When a repair is given up; never, where there is nothing to go back to.
    pub(super) fn mends_by(&self) -> Option<Instant> {
        let line = self.damaged()?;
        let previous = self.book.record.previous(&line)?;
        let can_go_back = self.world.is_intact(previous);
        can_go_back.then(|| Instant::now() + MEND_LIMIT)
    }

    /// The line whose release in service is under repair.
    pub(super) fn damaged(&self) -> Option<LineName> {
        let now = self.book.record.deployment.as_ref()?;
        let is_repair = now.want.origin == Origin::Repair;
        let is_active = |release: &Release| {
            let installed = self.book.record.lines.get(&now.want.line);
            installed.is_some_and(|installed| installed.active == *release)
        };
        let line = now.release.as_ref().is_some_and(is_active);
        (is_repair && line).then(|| now.want.line.clone())
    }

    /// No source has it: the release before serves, if that one is whole.
    pub(super) fn leave_damaged(&mut self, line: &LineName, why: &str) {
        let previous = self.book.record.previous(line);
        if !previous.is_some_and(|previous| self.world.is_intact(previous)) {
            return;
        }
        let detail = format!("its file is damaged, and could not be had again: {why}");
        self.book
            .record
            .take_back(line, Reason::FileDamaged, &detail);
    }
}
