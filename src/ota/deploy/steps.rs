//! The steps of a deployment, from the look at the catalogue to the commit or the way back.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::obey::{obey_meanwhile, request};
use super::{Closed, Command, Deploy, Tried, World, until};
use crate::ota::catalog::ReleaseState;
use crate::ota::probe::No;
use crate::ota::reason::Reason;
use crate::ota::state::{Origin, Phase, Release, Want, When};

/// A board that was too hot or too short of memory is tried again after this time.
const RETRY: Duration = Duration::from_secs(300);
/// Progress of a download is told this often.
const TELL_EVERY: Duration = Duration::from_secs(2);

impl<W: World> Deploy<W> {
    pub(super) async fn check(&mut self) -> Result<(), Closed> {
        let Some(want) = self
            .book
            .record
            .deployment
            .as_ref()
            .map(|now| now.want.clone())
        else {
            return Ok(());
        };
        let planned = self.plan(&want).await;
        if self.book.record.phase() != Some(Phase::Checking) {
            return Ok(());
        }
        match planned {
            Err(no) => self.fail(no.reason, &no.detail).await,
            Ok(None) => {
                self.book.record.done();
                self.save().await;
                Ok(())
            }
            Ok(Some((release, bytes_total))) => {
                if let Some(now) = &mut self.book.record.deployment {
                    now.release = Some(release);
                    now.bytes_total = bytes_total;
                }
                self.go(Phase::Planned).await
            }
        }
    }

    /// The release that is meant, judged by the catalogue; `None`: it is in service already.
    async fn plan(&mut self, want: &Want) -> Result<Option<(Release, u64)>, No> {
        let no = |reason, detail: String| No { reason, detail };
        let catalog = self.world.check(Some(want)).await?;
        self.catalog = Some(catalog.clone());
        self.hear_policy().await;
        let line = catalog.line(&want.line).ok_or_else(|| {
            no(
                Reason::NotInCatalog,
                format!("no line {} in the catalogue", want.line),
            )
        })?;
        let active = self
            .book
            .record
            .lines
            .get(&want.line)
            .map(|i| i.active.release_seq);
        let release = match want.release_seq {
            Some(seq) => line.release(seq),
            None => line.best(&self.policy.group, active),
        };
        let release = release.filter(|release| release.is_for(&self.policy.group));
        let Some(release) = release else {
            let which = want
                .release_seq
                .map_or("a release".to_owned(), |seq| format!("release {seq}"));
            return Err(no(
                Reason::NotInCatalog,
                format!(
                    "{which} of {} is not in the catalogue for group {}",
                    want.line, self.policy.group
                ),
            ));
        };
        let seq = release.release_seq;
        if release.state == ReleaseState::Withdrawn {
            return Err(no(
                Reason::Withdrawn,
                format!("release {seq} of {} was recalled", want.line),
            ));
        }
        if !line.allows(active, seq) {
            return Err(no(
                Reason::DowngradeRefused,
                format!(
                    "release {seq} is below {}, which is in service, or below the least, {}",
                    active.unwrap_or(0),
                    line.min_seq
                ),
            ));
        }
        if active == Some(seq) {
            let installed = &self.book.record.lines[&want.line];
            if self.world.is_intact(&installed.active) {
                return Ok(None);
            }
        }
        self.world.plan(&want.line, release).await.map(Some)
    }

    pub(super) async fn download(&mut self) -> Result<(), Closed> {
        let Some((release, max_kbit_s)) = self.under_way() else {
            return Ok(());
        };
        let mut last_told = Instant::now();
        let give_up_at = self.mends_by();
        let outcome = {
            let mut progress = self.world.progress();
            let mut work = pin!(self.world.download(&release, max_kbit_s));
            loop {
                tokio::select! {
                    outcome = &mut work => break Some(outcome),
                    order = self.parts.orders.recv() => {
                        let (order, told) = (order.ok_or(Closed)?, &self.parts.told);
                        if obey_meanwhile(&mut self.book, told, &self.policy, order).await {
                            break None;
                        }
                    }
                    () = until(give_up_at) => break Some(Err(No {
                        reason: Reason::SourceUnreachable,
                        detail: "no source had what is damaged in time".into(),
                    })),
                    request = request(self.policy.requests.as_deref()) => {
                        // It may hold the rest of what is under way.
                        self.request = Some(request);
                        break None;
                    }
                    changed = progress.changed(), if progress.has_changed().is_ok() => {
                        if changed.is_ok() && last_told.elapsed() >= TELL_EVERY {
                            last_told = Instant::now();
                            // With all that was told before: a retained document is read alone.
                            let mut state = self.parts.state.borrow().clone();
                            state.take_progress(&progress.borrow_and_update());
                            self.parts.state.send_replace(state);
                        }
                    }
                }
            }
        };
        match outcome {
            None => {
                if let Some(request) = &self.request {
                    self.world.use_stick(Some(&request.path));
                }
                self.save().await;
                Ok(())
            }
            Some(Ok(())) => self.go(Phase::Verifying).await,
            Some(Err(no)) => self.fail(no.reason, &no.detail).await,
        }
    }

    pub(super) async fn verify(&mut self) -> Result<(), Closed> {
        let Some((release, _)) = self.under_way() else {
            return Ok(());
        };
        let line = self.line();
        match self.world.verify(&line, &release).await {
            Ok(()) if self.book.record.mended() => {
                self.save().await;
                Ok(())
            }
            Ok(()) => self.go(Phase::Staged).await,
            Err(no) => self.fail(no.reason, &no.detail).await,
        }
    }

    /// Everything is here. When does it begin?
    pub(super) async fn staged(&mut self) -> Result<(), Closed> {
        let Some(now) = &self.book.record.deployment else {
            return Ok(());
        };
        let waits = match now.want.when {
            _ if now.is_approved => false,
            When::Asap => false,
            When::StagedOnly => true,
            When::Window => self.minutes_to_window() > 0,
        };
        match waits {
            true => self.go(Phase::Waiting).await,
            false => self.go(Phase::Switching).await,
        }
    }

    fn minutes_to_window(&self) -> u32 {
        let now = self.book.record.deployment.as_ref();
        let window = now.and_then(|now| now.want.window);
        window.map_or(0, |window| window.opens_in(self.world.minute_of_day()))
    }

    /// For the window, an operator, or a better moment.
    pub(super) async fn wait(&mut self) -> Result<(), Closed> {
        let Some(now) = &self.book.record.deployment else {
            return Ok(());
        };
        let is_paused = now.phase == Phase::Paused;
        let time = match now.want.when {
            _ if is_paused => None,
            _ if now.is_approved => Some(RETRY),
            When::StagedOnly => None,
            When::Asap => Some(RETRY),
            // Looked at each minute: clocks are set.
            When::Window => Some(Duration::from_secs(60)),
        };
        tokio::select! {
            order = self.parts.orders.recv() => {
                let order = order.ok_or(Closed)?;
                // Also of one that was approved before, and waits to be tried again.
                let is_activate = matches!(order.command, Command::Activate);
                self.obey(order).await?;
                match is_activate && self.book.record.phase() == Some(Phase::Waiting) {
                    true => self.go(Phase::Switching).await,
                    false => Ok(()),
                }
            }
            () = until(time.map(|time| Instant::now() + time)) => match self.minutes_to_window() {
                _ if self.book.record.phase() != Some(Phase::Waiting) => Ok(()),
                0 => self.go(Phase::Switching).await,
                _ => Ok(()),
            },
        }
    }

    /// Has the release loaded and looked at; commits it, or goes back.
    pub(super) async fn switch(&mut self) -> Result<(), Closed> {
        let Some((release, _)) = self.under_way() else {
            return Ok(());
        };
        let line = self.line();
        let mut tried = self.world.begin_trial(&line, &release).await;
        if tried.is_none() {
            if !self.enter(Phase::Probing).await {
                // Not written down: so it is not done either.
                self.world.settle(false);
                return Ok(());
            }
            tried = Some(self.world.end_trial().await);
        }
        match tried.expect("one of the two has said it") {
            Tried::Passed { serves, detail } => {
                if self.book.record.phase() == Some(Phase::Switching) {
                    self.enter(Phase::Probing).await;
                }
                if let Some(now) = &mut self.book.record.deployment {
                    now.detail = detail;
                }
                self.book
                    .record
                    .commit(serves || self.book.record.lines.is_empty());
                let is_written = self.save().await;
                self.world.in_service(&self.book.record, false);
                self.world.settle(is_written);
                if is_written {
                    self.steady_at = Some(Instant::now() + self.policy.probation);
                    self.sweep();
                }
                Ok(())
            }
            Tried::No(no) => {
                self.book.record.give_up(no.reason, &no.detail);
                self.save().await;
                Ok(())
            }
            Tried::NotNow(why) => {
                info!(why, "the release waits");
                self.book.record.uncount();
                if let Some(now) = &mut self.book.record.deployment {
                    now.detail = why;
                    // Who asked for a time got it; this is another wait.
                    now.is_approved = true;
                }
                self.go(Phase::Waiting).await
            }
        }
    }

    pub(super) async fn roll_back(&mut self) -> Result<(), Closed> {
        let Some(now) = &self.book.record.deployment else {
            return Ok(());
        };
        let is_of_active = matches!(now.want.origin, Origin::Rollback { .. });
        let (line, detail) = (now.want.line.clone(), now.detail.clone());
        if is_of_active {
            let previous = self.book.record.previous(&line).cloned();
            if !previous.is_some_and(|previous| self.world.is_intact(&previous)) {
                let why = format!("{detail}; the release before is not on the device any more");
                return self.fail(Reason::PreviousMissing, &why).await;
            }
        }
        self.world.reached("rolling_back:before");
        self.book.record.rolled_back();
        let is_written = self.save().await;
        if is_written {
            self.world.in_service(&self.book.record, is_of_active);
            self.sweep();
        }
        Ok(())
    }
}
