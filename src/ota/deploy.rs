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
//!
//! Here is the turn of the wheel. What each phase does is in `steps`, what orders do in `obey`, what begins without
//! one in `look`, settings of the fleet in `policy`, files that are read again in `scrub`.

mod book;
mod look;
mod obey;
pub mod orders;
mod policy;
pub mod report;
mod scrub;
pub mod site;
mod steps;
#[cfg(test)]
mod tests;
mod unsent;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::warn;

use super::catalog::Catalog;
use super::name::{Digest, LineName};
use super::probe::No;
use super::reason::Reason;
use super::state::{DeploymentId, Phase, Release, Want};
use super::stick::Request;
pub use book::{Book, Opened, open};
pub use report::{Event, State};
pub use world::{Tried, World};

/// A state that could not be written is tried again after this time.
const WRITE_RETRY: Duration = Duration::from_secs(10);

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
            request = obey::request(self.policy.requests.as_deref()) => {
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

    fn sweep(&mut self) {
        self.world.reached("sweep:before");
        self.world.sweep(&self.book.record.kept());
    }

    fn under_way(&self) -> Option<(Release, u32)> {
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
        self.world.keep_report(&state);
        self.parts.state.send_replace(state);
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
