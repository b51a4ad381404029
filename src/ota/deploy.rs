//! Takes a release from a wish to its service, one persisted step after the other.
//!
//! ```text
//!  commands ─▶ Record (state, pure) ─▶ Book (on disk) ─▶ World: trust, catalogue, fetch, verify, try, sweep
//!  fleet, operator, stick, waves          │
//!                                         └──▶ what is told: the state, and an event for each step
//! ```
//!
//! Owns the record of what is on the device and what is under way, and the order: each phase is on the disk
//! before anything is done in it. What is done is behind [`World`], so that every cut and every order of
//! commands is tested without a network, a model or a clock. Runs on a thread of its own, where hashing and
//! waiting for disks disturb nobody.

mod book;
pub mod orders;
mod policy;
pub mod report;
mod scrub;
pub mod site;
#[cfg(test)]
mod tests;
mod unsent;
mod world;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{info, warn};

use super::catalog::{Catalog, ReleaseState};
use super::name::{Digest, LineName};
use super::probe::No;
use super::reason::Reason;
use super::state::{DeploymentId, Heard, Origin, Phase, Record, Want, When};
use super::stick::Request;
use super::waves;
pub use book::{Book, Opened, open};
pub use report::{Event, State};
pub use world::{Tried, World};

/// A board that was too hot or too short of memory is tried again after this time.
const RETRY: Duration = Duration::from_secs(300);
/// A state that could not be written is tried again after this time.
const WRITE_RETRY: Duration = Duration::from_secs(10);
/// A request that somebody left on the device is looked for this often.
const REQUEST_EVERY: Duration = Duration::from_secs(2);
/// Progress of a download is told this often.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// What can be asked of the device. None of it names an address or a file: a release can only be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A release.
    Want(Want),
    /// A release that the fleet is to run, opened to a share of its devices.
    Fleet {
        /// The release.
        want: Want,
        /// The share, in percent.
        percent: u8,
    },
    /// The best release of a line, or of the line deployed last.
    Update(Option<LineName>),
    /// Look what there is.
    Check,
    /// Hold the download.
    Pause,
    /// Go on with it.
    Resume,
    /// Call off what has changed nothing yet.
    Cancel,
    /// Put into service what waits for it.
    Activate,
    /// Back to the release before.
    Rollback(Option<LineName>),
    /// The fleet's settings before those in force, or the device's own.
    RollbackPolicy,
    /// A worker with this model died by itself.
    WorkerDied(String),
    /// The broker has the event of this number.
    Heard(u64),
    /// Read all files again.
    Scrub,
    /// The daemon ends in order.
    Stop,
}

/// A command, and where its outcome is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// What to do.
    pub command: Command,
    /// Its name, chosen by who asks.
    pub ticket: Option<String>,
}

/// What became of a command: taken, with the deployment that it began where it did; or why not.
pub type Taken = Result<Option<DeploymentId>, String>;

/// What is told besides the state.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// A step of a deployment.
    Event(Box<Event>),
    /// What became of a command.
    Answer {
        /// Its name.
        ticket: String,
        /// Taken, or why not.
        outcome: Taken,
    },
}

/// How this device goes about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// This device, for its turn in waves.
    pub device: String,
    /// Its group.
    pub group: String,
    /// Time between two looks at the sources; zero: only by command.
    pub check_every: Duration,
    /// Time between two readings of all files; `None`: only by command.
    pub scrub_every: Option<Duration>,
    /// How long a new release must stay up.
    pub probation: Duration,
    /// Where somebody on the device leaves requests; `None`: nowhere.
    pub requests: Option<PathBuf>,
}

/// What the engine works with.
pub struct Parts {
    /// Commands.
    pub orders: mpsc::Receiver<Order>,
    /// The state, as it changes.
    pub state: watch::Sender<State>,
    /// Events and answers. While it is full, the engine waits.
    pub told: mpsc::Sender<Told>,
}

/// Runs until its orders end.
pub async fn run<W: World>(book: Book, world: W, policy: Policy, parts: Parts) {
    let mut deploy = Deploy {
        book,
        world,
        policy,
        parts,
        catalog: None,
        failed_check: None,
        next_check: Instant::now() + Duration::from_secs(1),
        steady_at: None,
        scrub_at: None,
        to_mend: Vec::new(),
        told_phase: None,
        request: None,
    };
    deploy.scrub_at = deploy.next_scrub();
    deploy.to_mend = deploy.missing();
    deploy.steady_at = Some(Instant::now() + deploy.policy.probation);
    deploy.world.in_service(&deploy.book.record, false);
    // What a cut between a commit and its sweep has left. Where nothing is known to be in service, nothing goes.
    if !deploy.book.record.lines.is_empty() {
        deploy.sweep();
    }
    deploy.tell();
    deploy.tell_events().await;
    deploy.serve().await;
}

struct Deploy<W> {
    book: Book,
    world: W,
    policy: Policy,
    parts: Parts,
    /// As last read.
    catalog: Option<Catalog>,
    /// Why the last look at the sources gave nothing.
    failed_check: Option<No>,
    next_check: Instant,
    /// The release in service has stayed up by then.
    steady_at: Option<Instant>,
    /// All files are read again by then.
    scrub_at: Option<Instant>,
    /// Found damaged, or missing.
    to_mend: Vec<Digest>,
    told_phase: Option<(DeploymentId, Phase)>,
    /// A stick that was put in while something else was under way.
    request: Option<Request>,
}

/// The engine's orders have ended.
struct Closed;

impl<W: World> Deploy<W> {
    async fn serve(&mut self) {
        loop {
            let stepped = match self.book.record.phase() {
                None => self.idle().await,
                Some(phase) => self.step(phase).await,
            };
            if stepped.is_err() {
                return;
            }
        }
    }

    /// Nothing is under way.
    async fn idle(&mut self) -> Result<(), Closed> {
        if let Some(request) = self.request.take() {
            self.apply(request).await;
            return Ok(());
        }
        if let Some(digest) = self.to_mend.pop() {
            self.book.record.damaged(&digest);
            self.save().await;
            return Ok(());
        }
        // What was put in may be pulled now.
        self.world.use_stick(None);
        let is_periodic = !self.policy.check_every.is_zero();
        let steady_at = self.steady_at.filter(|_| {
            let record = &self.book.record;
            record.probation.is_some() || record.policies.n_starts.is_some()
        });
        tokio::select! {
            order = self.parts.orders.recv() => self.obey(order.ok_or(Closed)?).await,
            () = sleep_until(self.next_check), if is_periodic => {
                self.next_check = Instant::now() + self.policy.check_every;
                self.look().await;
                self.tell();
                Ok(())
            }
            request = request(self.policy.requests.as_deref()) => {
                self.request = Some(request);
                Ok(())
            }
            () = until(self.scrub_at) => self.scrub().await,
            () = until(steady_at) => {
                self.book.record.stayed_up(true);
                self.save().await;
                Ok(())
            }
        }
    }

    /// Somebody stands at the device and says: take what lies there. The best release of one line; the line that
    /// serves comes first.
    async fn apply(&mut self, request: Request) {
        info!(id = request.id, path = %request.path.display(), "a stick, or a folder, was brought");
        self.world.use_stick(Some(&request.path));
        let record = &self.book.record;
        let nothing = LineName::new("stick").expect("it has the characters of a line");
        let first = record.first.clone().unwrap_or(nothing);
        let Ok(deployment) = DeploymentId::new(&request.id) else {
            warn!(
                id = request.id,
                "a request without the name of a deployment"
            );
            return;
        };
        let mut want = Want {
            deployment,
            release_seq: None,
            force: true,
            ..want("stick", &first, 0, Origin::Stick)
        };
        // Where it cannot be read, the deployment says so: it looks again.
        if let Ok(catalog) = self.world.check(Some(&want)).await {
            let active = |line: &LineName| {
                let installed = self.book.record.lines.get(line);
                installed.map(|installed| installed.active.release_seq)
            };
            let is_news = |line: &&super::catalog::Line| {
                let active = active(&line.line);
                let best = line.best(&self.policy.group, active);
                best.is_some_and(|best| active != Some(best.release_seq))
            };
            let news = || catalog.lines.iter().filter(is_news);
            let line = news()
                .find(|line| line.line == first)
                .or_else(|| news().next());
            let line = line.or_else(|| catalog.lines.first());
            if let Some(line) = line {
                want.line = line.line.clone();
            }
        }
        self.book.record.want(want);
        self.save().await;
    }

    /// Reads the catalogue without being asked: a recall, or a release whose wave has come, begins.
    async fn look(&mut self) {
        let catalog = match self.world.check(None).await {
            Ok(catalog) => catalog,
            Err(no) => {
                info!(reason = %no.reason, no.detail, "no look at the sources");
                self.failed_check = Some(no);
                return;
            }
        };
        self.failed_check = None;
        self.hear_policy().await;
        let want = self.recall(&catalog).or_else(|| self.turn(&catalog));
        self.catalog = Some(catalog);
        match want {
            Some(want) => {
                self.book.record.want(want);
                self.save().await;
            }
            None => {
                // When releases were seen first.
                self.save().await;
            }
        }
    }

    /// A release in service that was recalled is left: for the best that may be taken, else for the one before.
    fn recall(&mut self, catalog: &Catalog) -> Option<Want> {
        let record = &mut self.book.record;
        for (line, installed) in &record.lines {
            let seq = installed.active.release_seq;
            let Some(known) = catalog.line(line) else {
                continue;
            };
            let state = known.release(seq).map(|release| release.state);
            if state != Some(ReleaseState::Withdrawn) && seq >= known.min_seq {
                continue;
            }
            let best = known.best(&self.policy.group, Some(seq));
            let best = best.filter(|best| !record.has_failed(line, best.release_seq));
            if let Some(best) = best {
                let id = format!("recall-{line}-{seq}-{}", best.release_seq);
                return Some(want(&id, line, best.release_seq, Origin::Recall));
            }
            let is_fine = |seq: u64| {
                let state = known.release(seq).map(|release| release.state);
                state == Some(ReleaseState::Active) && seq >= known.min_seq
            };
            let previous = installed.previous.as_ref();
            if previous.is_some_and(|previous| is_fine(previous.release_seq)) {
                let line = line.clone();
                record.take_back(&line, Reason::Withdrawn, "the release was recalled");
                return None;
            }
            warn!(%line, seq, "the release in service was recalled, and there is none to go to");
        }
        None
    }

    /// A release whose turn has come for this device.
    fn turn(&mut self, catalog: &Catalog) -> Option<Want> {
        let now_s = self.world.now_s();
        let record = &mut self.book.record;
        let lines: Vec<_> = record
            .lines
            .iter()
            .map(|(line, i)| (line.clone(), i.active.release_seq))
            .collect();
        for (name, active) in lines {
            let line = catalog.line(&name)?;
            let Some(best) = line.best(&self.policy.group, Some(active)) else {
                continue;
            };
            let seq = best.release_seq;
            if seq <= active || best.waves.is_empty() || record.has_failed(&name, seq) {
                continue;
            }
            let seen_s = record.seen_for(&name, seq, now_s);
            let place = waves::place(&self.policy.device, &name, seq);
            if waves::starts_after_s(&best.waves, place).is_some_and(|after_s| seen_s >= after_s) {
                return Some(want(
                    &format!("wave-{name}-{seq}"),
                    &name,
                    seq,
                    Origin::Wave,
                ));
            }
        }
        None
    }

    /// Does what belongs to the phase, and goes on to the next.
    async fn step(&mut self, phase: Phase) -> Result<(), Closed> {
        match phase {
            Phase::Checking => self.check().await,
            Phase::Planned => self.go(Phase::Downloading).await,
            Phase::Downloading => self.download().await,
            Phase::Verifying => self.verify().await,
            Phase::Staged => self.staged().await,
            Phase::Paused | Phase::Waiting => self.wait().await,
            Phase::Switching => self.switch().await,
            Phase::RollingBack => self.roll_back().await,
            // It passed, and that could not be written down: what served before serves again. (After a restart it
            // is staged.)
            Phase::Probing => {
                let no = self.book.unwritten();
                self.fail(no.reason, &no.detail).await
            }
            Phase::Committed | Phase::RolledBack | Phase::Failed => {
                self.fail(Reason::DeviceError, "a phase that no step leads to")
                    .await
            }
        }
    }

    async fn check(&mut self) -> Result<(), Closed> {
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
    async fn plan(&mut self, want: &Want) -> Result<Option<(super::state::Release, u64)>, No> {
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

    async fn download(&mut self) -> Result<(), Closed> {
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
                        let order = order.ok_or(Closed)?;
                        if let Command::Heard(event_seq) = order.command {
                            self.book.heard(event_seq);
                            continue;
                        }
                        let before = self.book.record.clone();
                        let answer = obey(&mut self.book.record, &order.command, &self.policy);
                        self.book.answer(&self.parts.told, order.ticket, answer).await;
                        if self.book.record != before {
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

    async fn verify(&mut self) -> Result<(), Closed> {
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
    async fn staged(&mut self) -> Result<(), Closed> {
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
    async fn wait(&mut self) -> Result<(), Closed> {
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
        let is_approved = now.is_approved;
        tokio::select! {
            order = self.parts.orders.recv() => {
                self.obey(order.ok_or(Closed)?).await?;
                let now = self.book.record.deployment.as_ref();
                let approved = now.is_some_and(|now| now.phase == Phase::Waiting && now.is_approved);
                match approved && !is_approved {
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
    async fn switch(&mut self) -> Result<(), Closed> {
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

    async fn roll_back(&mut self) -> Result<(), Closed> {
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

    fn sweep(&mut self) {
        self.world.reached("sweep:before");
        self.world.sweep(&self.book.record.kept());
    }

    /// An order while nothing runs that it could disturb.
    async fn obey(&mut self, order: Order) -> Result<(), Closed> {
        if let Command::Heard(event_seq) = order.command {
            self.book.heard(event_seq);
            return Ok(());
        }
        let answer = match order.command {
            Command::Check => {
                self.look().await;
                match &self.failed_check {
                    None => Ok(None),
                    Some(no) => Err(format!("{}: {}", no.reason, no.detail)),
                }
            }
            Command::Scrub => {
                self.scrub_at = Some(Instant::now());
                Ok(None)
            }
            Command::RollbackPolicy => self.take_policy_back().await.map(|()| None),
            command => obey(&mut self.book.record, &command, &self.policy),
        };
        self.book
            .answer(&self.parts.told, order.ticket, answer)
            .await;
        self.save().await;
        Ok(())
    }

    fn under_way(&self) -> Option<(super::state::Release, u32)> {
        let now = self.book.record.deployment.as_ref()?;
        Some((now.release.clone()?, now.want.max_kbit_s))
    }

    fn line(&self) -> LineName {
        let now = self.book.record.deployment.as_ref();
        now.map(|now| now.want.line.clone())
            .expect("asked while one is under way")
    }

    /// Goes on to the next phase, as soon as that is on the disk.
    async fn go(&mut self, phase: Phase) -> Result<(), Closed> {
        self.enter(phase).await;
        Ok(())
    }

    async fn enter(&mut self, phase: Phase) -> bool {
        self.book.record.enter(phase) && self.save().await
    }

    async fn fail(&mut self, reason: Reason, detail: &str) -> Result<(), Closed> {
        warn!(%reason, detail, "update failed");
        let damaged = self.damaged();
        self.book.record.fail(reason, detail);
        if let Some(line) = damaged {
            self.leave_damaged(&line, detail);
        }
        self.save().await;
        self.sweep();
        Ok(())
    }

    /// Has the record on the disk, and tells of it. Where it cannot be written, what was written last holds.
    async fn save(&mut self) -> bool {
        let is_written = self.write().await;
        self.tell();
        is_written
    }

    /// The same, for who has more to do before the state is told.
    async fn write(&mut self) -> bool {
        let here = self.under_way();
        let bytes = here.map_or(0, |(release, _)| self.world.bytes_here(&release));
        let is_written = self.book.save(bytes, self.world.now_s());
        if is_written {
            self.tell_events().await;
        } else {
            sleep(WRITE_RETRY).await;
        }
        is_written
    }

    async fn tell_events(&mut self) {
        for event in self.book.take_events() {
            // The dispatcher's end is the daemon's.
            let _ = self.parts.told.send(Told::Event(Box::new(event))).await;
        }
    }

    fn tell(&mut self) {
        let group = &self.policy.group;
        let mut state = report::of(&self.book.record, self.catalog.as_ref(), group);
        if let (Some(no), None) = (&self.failed_check, state.reason) {
            state.check_reason = Some(no.reason);
            state.check_detail = Some(no.detail.clone());
        }
        self.world.describe(&mut state);
        let now = self.book.record.deployment.as_ref();
        self.told_phase = now.map(|now| (now.want.deployment.clone(), now.phase));
        self.world.keep_report(&state);
        self.parts.state.send_replace(state);
    }
}

/// What a command does to the record.
fn obey(record: &mut Record, command: &Command, policy: &Policy) -> Taken {
    let line_of = |line: &Option<LineName>, record: &Record| {
        let only = || {
            record
                .lines
                .keys()
                .next()
                .filter(|_| record.lines.len() == 1)
                .cloned()
        };
        let line = line.clone().or_else(|| record.first.clone()).or_else(only);
        line.ok_or_else(|| "no release is on the device: name a line".to_owned())
    };
    let n_so_far = record.last.as_ref().map_or(0, |_| 1);
    match command {
        Command::Want(want) => hear(record, want),
        Command::Fleet { want, percent } => {
            let place = |seq| waves::place(&policy.device, &want.line, seq);
            let is_turn = |seq| waves::is_within(place(seq), *percent);
            match want.release_seq.is_none_or(is_turn) {
                true => hear(record, want),
                // Heard again when it is opened to more. Nothing is noted: a download goes on undisturbed.
                false => Ok(None),
            }
        }
        Command::Update(line) => {
            let line = line_of(line, record)?;
            let id = format!("update-{line}-{:x}", fresh(record, n_so_far));
            let want = Want {
                release_seq: None,
                ..want(&id, &line, 0, Origin::Operator)
            };
            let deployment = want.deployment.clone();
            record.want(want);
            Ok(Some(deployment))
        }
        Command::Pause => match record.enter(Phase::Paused) {
            true => Ok(None),
            false => Err("nothing is being downloaded".to_owned()),
        },
        Command::Resume => {
            match record.phase() == Some(Phase::Paused) && record.enter(Phase::Downloading) {
                true => Ok(None),
                false => Err("nothing is paused".to_owned()),
            }
        }
        Command::Cancel => match record.cancel() {
            true => Ok(None),
            false => Err("nothing is under way that could be called off".to_owned()),
        },
        Command::Activate => match &mut record.deployment {
            Some(now) if now.phase.is_open() => {
                now.is_approved = true;
                Ok(None)
            }
            _ => Err("nothing waits to be put into service".to_owned()),
        },
        Command::Rollback(line) => {
            let line = line_of(line, record)?;
            if record.previous(&line).is_none() {
                return Err(format!("{line} has no release before the one in service"));
            }
            let id = format!("{:x}", fresh(record, n_so_far));
            let want = Want::rollback(&id, line, None);
            let deployment = want.deployment.clone();
            record.want(want);
            Ok(Some(deployment))
        }
        Command::Stop => {
            record.stayed_up(false);
            Ok(None)
        }
        Command::Heard(_) => Ok(None),
        Command::WorkerDied(model) => {
            record.worker_died(model);
            Ok(None)
        }
        Command::Check | Command::Scrub | Command::RollbackPolicy => {
            Err("another update is under way".to_owned())
        }
    }
}

fn hear(record: &mut Record, want: &Want) -> Taken {
    match record.want(want.clone()) {
        Heard::Begun | Heard::Queued | Heard::Same => Ok(Some(want.deployment.clone())),
        Heard::Old => Err("a newer wish of the fleet was heard before".to_owned()),
    }
}

/// A number that no deployment of this record had: commands by hand have no names of their own.
fn fresh(record: &Record, salt: u64) -> u64 {
    let text = serde_json::to_vec(&(record, salt)).unwrap_or_default();
    let digest = super::name::Digest::of(&text);
    u64::from_be_bytes(digest.0[..8].try_into().expect("a digest has 32 bytes"))
}

/// A release that is wanted without being asked for by a person.
fn want(id: &str, line: &LineName, release_seq: u64, origin: Origin) -> Want {
    let text: String = id.chars().take(64).collect();
    Want {
        deployment: DeploymentId::new(&text).expect("lines have the characters of ids"),
        line: line.clone(),
        release_seq: Some(release_seq),
        when: When::Asap,
        window: None,
        max_kbit_s: 0,
        force: false,
        origin,
    }
}

/// The next request that somebody leaves on the device. Taken in the moment of its return, so that one is not
/// lost with a future that is dropped.
async fn request(dir: Option<&Path>) -> Request {
    let Some(dir) = dir else {
        return std::future::pending().await;
    };
    loop {
        match Request::take(dir) {
            Ok(Some(request)) => return request,
            Ok(None) => {}
            Err(error) => warn!(%error, "a request for an update could not be read"),
        }
        sleep(REQUEST_EVERY).await;
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
