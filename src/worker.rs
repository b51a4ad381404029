//! Keeps one `orinoco-engine` process alive and speaks frames with it.
//!
//! Owns: the child process, its socketpair, its standard error, the restart back-off, and the decision
//! that a silent worker is stalled. Never owns: jobs, queue, or what to do with them after a death;
//! those belong to `dispatch`, which hears of everything through [`Report`]s.
//!
//! ```text
//!            start              Hello, Loaded                 any death
//! (waiting) ───────▶ (loading) ───────────────▶ (serving) ───────────────▶ (waiting, back-off)
//!     ▲                  │ LoadFailed, stall, death   │ ▲                        │
//!     └──────────────────┴────────────────────────────│─│────────────────────────┘
//!                                    Order::Serve     ▼ │ loaded beside, or after
//!                                                (switching)
//! ```
//!
//! A frame is proof of life. While a model loads, one must come every `load_stall`; afterwards a ping goes
//! out every quarter of `step_stall` and some frame must come within `step_stall`, else the worker is
//! killed: a decode that never returns and a stopped process look the same from outside, and both leave
//! the board without an answer.
//!
//! An [`Order`] changes what is served. The next model loads beside the old one, which goes on meanwhile,
//! or after it, when memory does not hold both. One that cannot be loaded changes nothing: the old one goes
//! on, or comes back. Whatever was in the old worker is reported down and belongs to the next.
//!
//! An [`Order::Turn`] changes it for a while: the old worker parks its jobs and rests (`rest`), as long as memory
//! allows, so that its next turn begins at once. Every other order ends those that rest.
//!
//! An [`Order::Try`] is a switch with a condition: the next worker first shows that it works (`trial`), and only
//! then takes the place of the old one.
//!
//! Before each load its model is planned and judged (`admission`), and after it what was taken and where it
//! runs: what does not fit is not started, and what is not proven to use the GPU that is there is killed.

mod admission;
mod backoff;
mod checker;
mod keeper;
pub mod kv_files;
mod life;
mod plan;
mod process;
mod pulse;
mod rest;
pub mod survey;
pub mod trial;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::frames::{Command, Event, Hello, LoadSpec, Loaded, PROTOCOL, Sandbox};
use crate::ledger::{Comparison, Refusal, Room};
use crate::offload::Proof;
pub use admission::AdmissionConfig;
pub use backoff::Backoff;
pub use checker::{Asks, Checker, Verdict};
pub use plan::{PlanError, Planner, greet};
use pulse::Pulser;
pub use pulse::{Doing, Pulse};
use trial::TrialEnd;

/// How the worker is started and judged.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The `orinoco-engine` binary.
    pub program: PathBuf,
    /// What it is to load first, where it fits; `None`: nothing, until it is ordered.
    pub load: Option<LoadSpec>,
    /// What it must fit into, and what it must prove.
    pub admission: AdmissionConfig,
    /// Longest silence while a model loads.
    pub load_stall: Duration,
    /// Longest silence afterwards.
    pub step_stall: Duration,
    /// Pause before the second restart; the first is immediate, later ones double it.
    pub backoff_min: Duration,
    /// Longest pause between restarts.
    pub backoff_max: Duration,
    /// Workers that stay loaded after their turn, at most.
    pub resident_max: usize,
    /// Where workers leave states for the next; `None`: nowhere.
    pub kv_dir: Option<PathBuf>,
}

/// What the dispatcher hears.
#[derive(Debug)]
pub enum Report {
    /// A worker was started and a model is loading; `fraction` of its bytes are read.
    Loading {
        /// 0.0 to 1.0.
        fraction: f32,
    },
    /// Jobs can be submitted now.
    Serving {
        /// What was loaded.
        loaded: Box<Loaded>,
        /// Who loaded it.
        hello: Box<Hello>,
        /// What holds it in.
        sandbox: Box<Sandbox>,
        /// To this worker and no other: what is sent after its end is lost.
        commands: mpsc::Sender<Command>,
        /// What it took, and where it runs.
        checked: Box<Checked>,
    },
    /// Which models stay loaded and do not serve, each at rest in a worker of its own, where that has changed.
    Resting {
        /// Their names, the one that has rested longest first.
        models: Vec<String>,
        /// What they have taken.
        bytes: u64,
    },
    /// A frame that concerns a job, a measurement or a tokenization.
    Event(Event),
    /// The worker is gone. Every job that was in it needs another one.
    Down(Down),
    /// A model that was ordered cannot be served; what was served before still is, or will be again.
    SwitchFailed {
        /// The model.
        name: String,
        /// Why.
        reason: String,
    },
    /// The worker on trial is loaded, and shows now that it works.
    Trying {
        /// Its model.
        name: String,
    },
    /// A trial ended. After a pass that was to serve, [`Report::Serving`] follows; after anything else what was
    /// served before still is, or will be again.
    Tried {
        /// The model.
        name: String,
        /// How.
        end: TrialEnd,
    },
}

/// What is to be served, from whoever decides about memory and power.
#[derive(Debug)]
pub enum Order {
    /// Serve this instead.
    Serve {
        /// What to load.
        load: Box<LoadSpec>,
        /// When to load it.
        placing: Placing,
    },
    /// It is the turn of this model: serve it as with [`Placing::Beside`], or at once where it rests.
    Turn {
        /// What to load.
        load: Box<LoadSpec>,
        /// The one that serves now stays loaded, at rest, where memory allows; else it ends.
        rests: bool,
    },
    /// End those that rest.
    Dismiss,
    /// Load this beside what serves, or after it where memory does not hold both, and have it show that it works.
    Try {
        /// What to load.
        load: Box<LoadSpec>,
        /// What it has to show, and what comes then.
        trial: trial::Ordered,
        /// Whether the old one has to go first.
        placing: Placing,
    },
    /// End the worker, which nobody asks, and start none until the next `Serve`.
    Unload,
    /// End the worker at once and start none until the next `Serve`.
    Rest {
        /// Completes "the engine ...", for people.
        why: String,
    },
}

/// When the next model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placing {
    /// While the old one still serves, so that nobody waits; after it where memory does not hold both. What
    /// would not fit alone either changes nothing.
    Beside,
    /// After the old one's end: its streams wait for the load.
    After,
    /// As [`Placing::After`], where memory is short already: the operator's reserve is what is missing, so no
    /// more than this is left alone.
    Straitened {
        /// At most the operator's reserve counts.
        reserve_bytes: u64,
    },
}

/// What was found out around a load.
#[derive(Debug, Clone)]
pub struct Checked {
    /// What was planned and what was taken.
    pub comparison: Comparison,
    /// What there was to take from.
    pub room: Room,
    /// MemAvailable after the load.
    pub available_after_bytes: u64,
    /// Where the model runs.
    pub proof: Proof,
}

/// A worker's end, or why none was started.
#[derive(Debug, Clone)]
pub struct Down {
    /// Why.
    pub cause: Cause,
    /// Its last lines on standard error, for a technician.
    pub stderr_tail: Vec<String>,
    /// When the next one is started.
    pub retry_in: Duration,
    /// It had served before.
    pub had_served: bool,
}

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The binary could not be started.
    Spawn(String),
    /// It said why it cannot serve the model.
    LoadFailed(String),
    /// The model does not fit; no worker was started.
    NoRoom(Box<Refusal>),
    /// How much memory is left is not known, a sentence; no worker was started.
    NoReading(String),
    /// There is a GPU, and the model does not run on it, or not as it should; a sentence. Killed by us, if it
    /// was started.
    Unproven(String),
    /// Exit code, with no word on the socket.
    Exited(i32),
    /// Killed by a signal that it raised itself: SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE, SIGSYS.
    Crashed(i32),
    /// Killed by a signal from outside: SIGKILL of an operator or of the kernel.
    Killed(i32),
    /// No frame for too long; killed by us.
    Stalled(Duration),
    /// It sent bytes that are no frame, or another protocol; killed by us.
    Protocol(String),
    /// It was on trial, and what it showed will not do.
    Unfit,
    /// Another model takes its place.
    Switched,
    /// [`Order::Unload`].
    Idle,
    /// [`Order::Rest`].
    Rested(String),
}

impl Cause {
    /// Whether the death speaks against the jobs inside: the worker died by itself.
    ///
    /// A kill from outside and a failure to start speak against memory or the installation. A stall
    /// does speak against the jobs: something in a decode never came back.
    pub fn by_itself(&self) -> bool {
        matches!(
            self,
            Self::Crashed(_) | Self::Exited(_) | Self::Stalled(_) | Self::Protocol(_)
        )
    }

    /// Whether we ended it on purpose, so that nothing is wrong.
    pub fn on_purpose(&self) -> bool {
        matches!(self, Self::Switched | Self::Idle | Self::Rested(_))
    }

    /// Whether this is a decision with its reasons: trying again at once changes nothing, and the worker's
    /// last words add nothing.
    pub fn is_decision(&self) -> bool {
        matches!(
            self,
            Self::LoadFailed(_) | Self::NoRoom(_) | Self::NoReading(_) | Self::Unproven(_)
        )
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = |signal: &i32| {
            nix::sys::signal::Signal::try_from(*signal)
                .map_or("unknown signal", nix::sys::signal::Signal::as_str)
        };
        match self {
            Self::Spawn(reason) => write!(f, "could not be started: {reason}"),
            Self::LoadFailed(reason) => write!(f, "cannot serve the model: {reason}"),
            Self::NoRoom(refusal) => write!(f, "was not started: {refusal}"),
            Self::NoReading(reason) => write!(f, "was not started: {reason}"),
            Self::Unproven(reason) => write!(f, "is not proven to use the GPU: {reason}"),
            Self::Exited(code) => write!(f, "exited with code {code}"),
            Self::Crashed(signal) => write!(f, "crashed with {}", name(signal)),
            Self::Killed(signal) => write!(f, "was killed with {}", name(signal)),
            Self::Stalled(after) => write!(
                f,
                "made no progress for {:.1} s and was killed",
                after.as_secs_f64()
            ),
            Self::Protocol(reason) => {
                write!(f, "broke the frame protocol and was killed: {reason}")
            }
            Self::Unfit => f.write_str("did not show that it works"),
            Self::Switched => f.write_str("makes room for another model"),
            Self::Idle => f.write_str("was unloaded, since nobody asked"),
            Self::Rested(why) => f.write_str(why),
        }
    }
}

/// A worker that was killed, or has ended, is gone within this time, with all that it had: the kernel gives
/// back gigabytes and a GPU context.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Commands on their way to the worker. When full, the dispatcher tries again at its next turn.
const COMMANDS: usize = 256;
/// Reports on their way to the dispatcher. When full, the worker's own channel fills and text joins.
const REPORTS: usize = 256;
/// Orders that wait. They are rare, and each makes the one before it void.
const ORDERS: usize = 4;

/// The owner's end. The keeper ends when `reports` is dropped.
#[derive(Debug)]
pub struct Worker {
    /// In order; a `Down` comes after the last event of the worker that it names.
    pub reports: mpsc::Receiver<Report>,
    /// What to serve; may be dropped by who never changes it.
    pub orders: mpsc::Sender<Order>,
    /// What the keeper is at, for whoever watches over the process.
    pub pulse: watch::Receiver<Pulse>,
}

/// Starts the keeper. Must be called on the main thread of a current-thread runtime: the kernel ends the
/// child when the *thread* that made it ends.
pub fn spawn(config: WorkerConfig) -> (Worker, tokio::task::JoinHandle<()>) {
    let (report_queue, reports) = mpsc::channel(REPORTS);
    let (orders, order_queue) = mpsc::channel(ORDERS);
    let (pulser, pulse) = Pulser::new();
    let task = tokio::spawn(keeper::keep(config, order_queue, report_queue, pulser));
    let worker = Worker {
        reports,
        orders,
        pulse,
    };
    (worker, task)
}

fn other_protocol(found: u32) -> Cause {
    Cause::Protocol(format!(
        "worker speaks frames {found}, this daemon {PROTOCOL}: install both from one package"
    ))
}
