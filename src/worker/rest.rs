//! Workers whose turn is over and that stay loaded: the next turn of their model begins at once, with what it has
//! read still in its cache.
//!
//! Owns: these workers and their order, the one that has rested longest first. None of them decodes; each is pinged
//! like one that serves, and one that dies is forgotten. They are the first memory that is given back: a load that
//! does not fit ends them one by one, and whatever is not a turn ends all.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

use super::life::{Closed, Ready};
use super::process::{Child, ReadError};
use super::{Cause, Report};
use crate::frames::{Command, Event, JobKey, Leaves, LoadSpec};

/// So long after a worker's end all that it had is counted as free: a driver may take a moment.
const GIVEN_BACK: Duration = Duration::from_millis(200);
/// Deaths that wait to be looked at.
const DEATHS: usize = 64;

/// It died while it rested.
struct Died;

/// What a resting worker is woken for.
enum Wake {
    /// Its turn.
    Serve,
    /// Its end.
    End,
}

struct Resting {
    spec: LoadSpec,
    taken_bytes: u64,
    mapped_bytes: u64,
    /// Its number among all that ever rested.
    id: u64,
    wake: oneshot::Sender<Wake>,
    /// The worker, if it is alive when it is woken.
    task: JoinHandle<Option<Ready>>,
}

/// Those that rest, the one that has done so longest first.
pub(super) struct Residents {
    list: Vec<Resting>,
    max: usize,
    step_stall: Duration,
    n_rested: u64,
    /// The numbers of those that died.
    died: (mpsc::Sender<u64>, mpsc::Receiver<u64>),
}

impl Residents {
    pub(super) fn new(max: usize, step_stall: Duration) -> Self {
        Self {
            list: Vec::new(),
            max,
            step_stall,
            n_rested: 0,
            // Each dies once: full, so many more than ever rest at a time have died since the last look.
            died: mpsc::channel(DEATHS),
        }
    }

    /// Whether one more may rest at all.
    pub(super) fn takes_any(&self) -> bool {
        self.max > 0
    }

    /// Whether a model rests that would be loaded so.
    pub(super) fn has(&self, spec: &LoadSpec) -> bool {
        self.list.iter().any(|resting| resting.spec == *spec)
    }

    /// A worker that has nothing to do rests from now on; too many are one less.
    pub(super) async fn keep(&mut self, ready: Ready) {
        let (wake, woken) = oneshot::channel();
        self.n_rested += 1;
        let (id, died) = (self.n_rested, self.died.0.clone());
        let step_stall = self.step_stall;
        let resting = Resting {
            spec: ready.spec().clone(),
            taken_bytes: ready.taken_bytes(),
            mapped_bytes: ready.mapped_bytes(),
            id,
            wake,
            task: tokio::spawn(async move {
                let alive = rest(ready, step_stall, woken).await;
                if let Err(Died) = alive {
                    // Full: it is found dead when it is needed.
                    let _ = died.try_send(id);
                }
                alive.ok().flatten()
            }),
        };
        info!(
            model = resting.spec.name,
            bytes = resting.taken_bytes,
            "worker rests"
        );
        self.list.push(resting);
        while self.list.len() > self.max {
            self.end_oldest().await;
        }
    }

    /// The worker that has this loaded, to serve again.
    pub(super) async fn take(&mut self, spec: &LoadSpec) -> Option<Ready> {
        let at = self.list.iter().position(|resting| resting.spec == *spec)?;
        let resting = self.list.remove(at);
        // One that has died takes no word.
        let _ = resting.wake.send(Wake::Serve);
        resting.task.await.ok().flatten()
    }

    /// Ends the one that has rested longest, and has its memory back on return; `false` when there is none.
    pub(super) async fn end_oldest(&mut self) -> bool {
        if self.list.is_empty() {
            return false;
        }
        let resting = self.list.remove(0);
        info!(model = resting.spec.name, "resting worker ends");
        let _ = resting.wake.send(Wake::End);
        let _ = resting.task.await;
        true
    }

    /// Ends the one that has rested longest for a load that did not fit; `false` when there is none.
    pub(super) async fn make_room(&mut self) -> bool {
        let is_made = self.end_oldest().await;
        if is_made {
            tokio::time::sleep(GIVEN_BACK).await;
        }
        is_made
    }

    /// Ends what has this model loaded in another way.
    pub(super) async fn end_unlike(&mut self, spec: &LoadSpec) {
        let is_unlike = |resting: &Resting| resting.spec.name == spec.name && resting.spec != *spec;
        while let Some(at) = self.list.iter().position(is_unlike) {
            self.list[..=at].rotate_right(1);
            self.end_oldest().await;
        }
    }

    /// What those that rest have mapped.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.list.iter().map(|resting| resting.mapped_bytes).sum()
    }

    pub(super) async fn end_all(&mut self) {
        while self.end_oldest().await {}
    }

    /// Waits until one has died, and forgets it.
    pub(super) async fn died(&mut self) {
        // Never closed: a sender is kept here.
        if let Some(id) = self.died.1.recv().await {
            self.list.retain(|resting| resting.id != id);
        }
    }

    /// As the dispatcher hears it.
    pub(super) fn report(&self) -> Report {
        Report::Resting {
            models: self.list.iter().map(|r| r.spec.name.clone()).collect(),
            bytes: self.list.iter().map(|resting| resting.taken_bytes).sum(),
        }
    }
}

/// Pings the worker until it is woken: to serve, or to end and be none.
async fn rest(
    mut ready: Ready,
    step_stall: Duration,
    mut woken: oneshot::Receiver<Wake>,
) -> Result<Option<Ready>, Died> {
    let mut heard = Instant::now();
    let mut pings = tokio::time::interval(step_stall / 4);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let verdict = loop {
        let child = &mut ready.child;
        tokio::select! {
            wake = &mut woken => match wake {
                Ok(Wake::Serve) => return Ok(Some(ready)),
                Ok(Wake::End) | Err(_) => {
                    // It has nothing to lose, and somebody waits for its memory.
                    ready.child.kill().await;
                    return Ok(None);
                }
            },
            event = child.events.recv() => match event {
                None => break None,
                Some(Err(ReadError(reason))) => break Some(Cause::Protocol(reason)),
                Some(Ok(Event::Pong(_))) => heard = Instant::now(),
                // It has no jobs; what it says of its cache nobody asks.
                Some(Ok(_)) => heard = Instant::now(),
            },
            // Its queue is full: silence decides.
            _ = pings.tick() => drop(child.try_send(Command::Ping(0))),
            () = tokio::time::sleep_until(heard + step_stall) => {
                break Some(Cause::Stalled(heard.elapsed()));
            }
        }
    };
    let model = ready.spec().name.clone();
    let (cause, _) = ready.child.bury(verdict).await;
    warn!(model, %cause, "a resting worker ended");
    Err(Died)
}

/// The jobs in a worker that serves.
#[derive(Default)]
pub(super) struct Inside(BTreeSet<JobKey>);

impl Inside {
    /// It was told this. What is pinned is nobody's job, and ends by itself.
    pub(super) fn told(&mut self, command: &Command) {
        if let Command::Submit(job) = command
            && job.leaves != Leaves::Pinned
        {
            self.0.insert(job.job);
        }
    }

    /// It said this.
    pub(super) fn heard(&mut self, event: &Event) {
        match event {
            Event::Done(done) => self.0.remove(&done.job),
            Event::Parked(parked) => self.0.remove(&parked.job),
            _ => false,
        };
    }

    /// Has all of them leave, so that the worker can rest; `false` when it does not get there in time. What was
    /// still on its way to it is lost, as with a worker's end.
    pub(super) async fn leave(
        &mut self,
        child: &mut Child,
        commands: &mut mpsc::Receiver<Command>,
        reports: &mpsc::Sender<Report>,
        limit: Duration,
    ) -> Result<bool, Closed> {
        commands.close();
        while let Ok(command) = commands.try_recv() {
            if matches!(command, Command::Cancel(_)) && !child.send(command).await {
                return Ok(false);
            }
        }
        for job in &self.0 {
            if !child.send(Command::Park(*job)).await {
                return Ok(false);
            }
        }
        let end = Instant::now() + limit;
        while !self.0.is_empty() {
            match tokio::time::timeout_at(end, child.events.recv()).await {
                Ok(Some(Ok(Event::Pong(_)))) => {}
                Ok(Some(Ok(event))) => {
                    self.heard(&event);
                    let told = reports.send(Report::Event(event)).await;
                    told.map_err(|_| Closed)?;
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}
