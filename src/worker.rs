//! Keeps one `orinoco-engine` process alive and speaks frames with it.
//!
//! Owns: the child process, its socketpair, its standard error, the restart back-off, and the decision
//! that a silent worker is stalled. Never owns: jobs, queue, or what to do with them after a death;
//! those belong to `dispatch`, which hears of everything through [`Report`]s.
//!
//! ```text
//!            start              Hello, Loaded                 any death
//! (waiting) ───────▶ (loading) ───────────────▶ (serving) ───────────────▶ (waiting, back-off)
//!     ▲                  │ LoadFailed, stall, death                              │
//!     └──────────────────┴──────────────────────────────────────────────────────┘
//! ```
//!
//! A frame is proof of life. While a model loads, one must come every `load_stall`; afterwards a ping goes
//! out every quarter of `step_stall` and some frame must come within `step_stall`, else the worker is
//! killed: a decode that never returns and a stopped process look the same from outside, and both leave
//! the board without an answer.

mod backoff;
mod process;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::frames::{Command, Event, Hello, LoadSpec, Loaded, PROTOCOL, Sandbox};
pub use backoff::Backoff;
use process::{Child, ReadError};

/// How the worker is started and judged.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The `orinoco-engine` binary.
    pub program: PathBuf,
    /// What it is to load.
    pub load: LoadSpec,
    /// Longest silence while a model loads.
    pub load_stall: Duration,
    /// Longest silence afterwards.
    pub step_stall: Duration,
    /// Pause before the second restart; the first is immediate, later ones double it.
    pub backoff_min: Duration,
    /// Longest pause between restarts.
    pub backoff_max: Duration,
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
    },
    /// A frame that concerns a job, a measurement or a tokenization.
    Event(Event),
    /// The worker is gone. Every job that was in it needs another one.
    Down(Down),
}

/// A worker's end.
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
        }
    }
}

/// Commands on their way to the worker. When full, the dispatcher tries again at its next turn.
const COMMANDS: usize = 256;
/// Reports on their way to the dispatcher. When full, the worker's own channel fills and text joins.
const REPORTS: usize = 256;

/// The dispatcher's end: commands down, reports up. The keeper ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    /// Lost when no worker serves: only send after [`Report::Serving`] and before [`Report::Down`].
    pub commands: mpsc::Sender<Command>,
    /// In order; a `Down` comes after the last event of the worker that it names.
    pub reports: mpsc::Receiver<Report>,
}

/// Starts the keeper. Must be called on the main thread of a current-thread runtime: the kernel ends the
/// child when the *thread* that made it ends.
pub fn spawn(config: WorkerConfig) -> (Worker, tokio::task::JoinHandle<()>) {
    let (commands, command_queue) = mpsc::channel(COMMANDS);
    let (report_queue, reports) = mpsc::channel(REPORTS);
    let task = tokio::spawn(keep(config, command_queue, report_queue));
    (Worker { commands, reports }, task)
}

/// The dispatcher has gone: end.
struct Closed;

async fn keep(
    config: WorkerConfig,
    mut commands: mpsc::Receiver<Command>,
    reports: mpsc::Sender<Report>,
) {
    let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
    loop {
        let started = Instant::now();
        let mut had_served = false;
        let (cause, stderr_tail) = match Child::start(&config.program, config.load.sandbox.as_ref())
        {
            Err(error) => (
                Cause::Spawn(format!("{}: {error}", config.program.display())),
                Vec::new(),
            ),
            Ok(mut child) => {
                let life = live(
                    &config,
                    &mut child,
                    &mut commands,
                    &reports,
                    &mut had_served,
                )
                .await;
                match life {
                    Err(Closed) => {
                        child.end().await;
                        return;
                    }
                    Ok(verdict) => child.bury(verdict).await,
                }
            }
        };
        let retry_in = backoff.after_life_of(if had_served {
            started.elapsed()
        } else {
            Duration::ZERO
        });
        warn!(%cause, retry_ms = retry_in.as_millis() as u64, "worker ended");
        let down = Down {
            cause,
            stderr_tail,
            retry_in,
            had_served,
        };
        if reports.send(Report::Down(down)).await.is_err() {
            return;
        }
        // Commands meant for the worker that died would confuse the next one.
        let pause = tokio::time::sleep(retry_in);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                command = commands.recv() => if command.is_none() { return },
            }
        }
        while let Ok(stale) = commands.try_recv() {
            drop(stale);
        }
    }
}

/// One worker, from its first frame to its last. `Ok(None)`: it closed its socket, ask the exit status.
async fn live(
    config: &WorkerConfig,
    child: &mut Child,
    commands: &mut mpsc::Receiver<Command>,
    reports: &mpsc::Sender<Report>,
    had_served: &mut bool,
) -> Result<Option<Cause>, Closed> {
    let report = async |report| reports.send(report).await.map_err(|_| Closed);
    report(Report::Loading { fraction: 0.0 }).await?;
    if !child
        .send(Command::Load(Box::new(config.load.clone())))
        .await
    {
        return Ok(None);
    }
    let mut hello: Option<Hello> = None;
    let mut sandbox: Option<Sandbox> = None;
    let mut heard = Instant::now();
    let mut pings = tokio::time::interval(config.step_stall / 4);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let limit = if *had_served {
            config.step_stall
        } else {
            config.load_stall
        };
        tokio::select! {
            event = child.events.recv() => {
                heard = Instant::now();
                match event {
                    None => return Ok(None),
                    Some(Err(ReadError(reason))) => return Ok(Some(Cause::Protocol(reason))),
                    Some(Ok(Event::Hello(found))) if found.protocol != PROTOCOL => {
                        return Ok(Some(Cause::Protocol(format!(
                            "worker speaks frames {}, this daemon {PROTOCOL}: install both from one package",
                            found.protocol
                        ))));
                    }
                    Some(Ok(Event::Hello(found))) => {
                        info!(version = found.version, llama = found.llama, backends = ?found.backends, "worker started");
                        hello = Some(found);
                    }
                    Some(Ok(Event::Sandboxed(found))) => {
                        if !found.gaps.is_empty() {
                            warn!(gaps = found.gaps.join("; "), "the worker's sandbox is not whole");
                        }
                        sandbox = Some(found);
                    }
                    Some(Ok(Event::LoadProgress { fraction })) => report(Report::Loading { fraction }).await?,
                    Some(Ok(Event::LoadFailed { message })) => return Ok(Some(Cause::LoadFailed(message))),
                    Some(Ok(Event::Loaded(loaded))) => {
                        // A model that was opened outside a sandbox is none that we asked for.
                        let (Some(hello), Some(sandbox)) = (hello.take(), sandbox.take()) else {
                            return Ok(Some(Cause::Protocol("Loaded before Hello and Sandboxed".into())));
                        };
                        *had_served = true;
                        let (hello, sandbox) = (Box::new(hello), Box::new(sandbox));
                        report(Report::Serving { loaded, hello, sandbox }).await?;
                        heard = Instant::now();
                    }
                    Some(Ok(Event::Pong(_))) => {}
                    Some(Ok(event)) => {
                        report(Report::Event(event)).await?;
                        // The wait was ours, not the worker's.
                        heard = Instant::now();
                    }
                }
            }
            command = commands.recv() => match command {
                None => return Err(Closed),
                Some(command) if *had_served => if !child.send(command).await { return Ok(None) },
                Some(_) => {}
            },
            _ = pings.tick(), if *had_served => if !child.try_send(Command::Ping(0)) { /* its queue is full: silence decides */ },
            () = tokio::time::sleep_until(heard + limit) => return Ok(Some(Cause::Stalled(heard.elapsed()))),
        }
    }
}
