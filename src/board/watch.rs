//! Notices changes of the power mode within a second, and tells them through a `watch` channel.
//!
//! Two ways, each of which is enough: inotify on the directory of the status file, and polling. nvpmodel
//! rewrites the file in place; a backup tool or an overlay may replace it by rename; on a fresh board the
//! directory is not there yet. The clocks in force lie in sysfs, which has no notices, so they are polled
//! in any case.
//!
//! ```text
//!     inotify ──┐                                   ┌─ differs from the last ──▶ watch::Sender<Present>
//!     poll ─────┴─▶ settle 50 ms ─▶ PowerProbe.read ┤
//!                                                   └─ status unreadable: keep the last for a second
//! ```

mod notices;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, warn};

use super::identity::Module;
use super::nvpmodel::query::{self, Answer};
use super::power::{NamedBy, PowerProbe, Present};
use super::root::Root;
use notices::Notices;

/// After a notice the writer gets this long to finish.
const SETTLE: Duration = Duration::from_millis(50);

/// A status that cannot be understood is one being written, until it stays so for this long.
const GRACE: Duration = Duration::from_secs(1);

/// `nvpmodel -q` is asked again at most this often.
const QUERY_EVERY: Duration = Duration::from_secs(60);

/// How to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchConfig {
    /// Time between two looks. Clocks have no other way to be noticed, so below a second.
    pub poll: Duration,
    /// Whether inotify is used too.
    pub is_notified: bool,
    /// NVIDIA's tool, to be asked when the files do not say the mode; `None`: never, as for any tree but
    /// the live one.
    pub query: Option<PathBuf>,
    /// Time for its answer.
    pub query_limit: Duration,
}

impl WatchConfig {
    /// As the daemon watches `root`.
    pub fn new(root: &Root) -> Self {
        Self {
            poll: Duration::from_millis(500),
            is_notified: true,
            query: root.is_live().then(|| query::PROGRAM.into()),
            query_limit: Duration::from_secs(5),
        }
    }
}

/// Watches the power mode while [`PowerWatch::run`] runs.
#[derive(Debug)]
pub struct PowerWatch {
    config: WatchConfig,
    root: Root,
    probe: PowerProbe,
    sender: watch::Sender<Present>,
    answer: Option<Answer>,
    asked_at: Option<Instant>,
    bad_since: Option<Instant>,
}

impl PowerWatch {
    /// Reads the mode once, so that the receiver starts with it. `module`: see [`PowerProbe::new`].
    pub fn new(
        root: &Root,
        module: Option<Module>,
        config: WatchConfig,
    ) -> (Self, watch::Receiver<Present>) {
        let mut probe = PowerProbe::new(root, module);
        let (sender, receiver) = watch::channel(probe.read(None));
        let watch = Self {
            config,
            root: root.clone(),
            probe,
            sender,
            answer: None,
            asked_at: None,
            bad_since: None,
        };
        (watch, receiver)
    }

    /// Watches until the last receiver is gone.
    pub async fn run(mut self) {
        let mut notices = match self.config.is_notified {
            true => Notices::new(&self.root),
            false => Notices::none(),
        };
        let mut ticks = interval(self.config.poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Watching comes before reading: what is written in between is noticed.
            notices.arm();
            self.look().await;
            tokio::select! {
                () = self.sender.closed() => return,
                _ = ticks.tick() => {}
                () = notices.wait() => sleep(SETTLE).await,
            }
        }
    }

    async fn look(&mut self) {
        let mut present = self.probe.read(self.answer.as_ref());
        if present.is_status_bad() || present.named_by == NamedBy::Nobody {
            if self.ask().await {
                present = self.probe.read(self.answer.as_ref());
            }
        } else if present.named_by == NamedBy::Status {
            // The files speak again; an old answer may be wrong by the next time.
            self.answer = None;
        }
        let is_bad = present.is_status_bad();
        let bad_since = *self.bad_since.get_or_insert_with(Instant::now);
        if !is_bad {
            self.bad_since = None;
        } else if bad_since.elapsed() < GRACE && self.sender.borrow().mode.is_some() {
            return;
        }
        self.sender.send_if_modified(|last| {
            let is_new = *last != present;
            if is_new && is_bad {
                warn!(faults = ?present.faults, "power mode cannot be read");
            }
            *last = present;
            is_new
        });
    }

    /// Asks the tool, when there is one and it was not asked lately; whether there is a new answer.
    async fn ask(&mut self) -> bool {
        let Some(program) = &self.config.query else {
            return false;
        };
        if self.asked_at.is_some_and(|at| at.elapsed() < QUERY_EVERY) {
            return false;
        }
        self.asked_at = Some(Instant::now());
        match query::ask(program, self.config.query_limit).await {
            Ok(answer) => self.answer = Some(answer),
            Err(e) => {
                debug!(
                    error = &e as &dyn std::error::Error,
                    "nvpmodel gave no answer"
                );
                return false;
            }
        }
        true
    }
}
