//! The keeper: one life after the other, and what is to be served next.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::admission::Memo;
use super::backoff::Backoff;
use super::kv_files;
use super::life::{Before, Closed, Failed, Follower, Ready, Served, called_off, load_and_try};
use super::pulse::Pulser;
use super::rest::Residents;
use super::trial::{Ordered, Then};
use super::{Cause, Doing, Down, END_LIMIT, Order, Placing, Report, WorkerConfig};
use crate::frames::LoadSpec;

/// What a worker leaves on disk at its end takes no longer, when nobody waits.
const SAVE_AT_END: Duration = Duration::from_secs(5);
/// And when streams wait for the next one.
const SAVE_AT_SWITCH: Duration = Duration::from_secs(1);

/// How long a worker may take to save before this order is obeyed; `None`: not at all, memory is short.
fn save_before(order: &Order) -> Option<Duration> {
    match order {
        Order::Unload => Some(SAVE_AT_END),
        Order::Serve {
            placing: Placing::Straitened { .. },
            ..
        }
        | Order::Dismiss
        | Order::Rest { .. } => None,
        Order::Serve { .. } | Order::Turn { .. } | Order::Try { .. } => Some(SAVE_AT_SWITCH),
    }
}

struct Keeper {
    config: WorkerConfig,
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    pulse: Pulser,
    backoff: Backoff,
    /// What to serve; none while resting.
    target: Option<LoadSpec>,
    /// Left alone for it, where that is less than the operator's reserve.
    reserve_bytes: Option<u64>,
    /// The target is on trial; and what was the target before, to come back to.
    trial: Option<(Ordered, Option<LoadSpec>)>,
    /// Served before the target was ordered, with all that it had taken: comes back when the target cannot be
    /// loaded.
    before: Option<(LoadSpec, u64)>,
    /// What loads have learned so far.
    memo: Memo,
    /// Those whose turn is over.
    residents: Residents,
    /// Nobody gives orders any more.
    unordered: bool,
}

pub(super) async fn keep(
    config: WorkerConfig,
    orders: mpsc::Receiver<Order>,
    reports: mpsc::Sender<Report>,
    pulse: Pulser,
) {
    let backoff = Backoff::new(config.backoff_min, config.backoff_max);
    let residents = Residents::new(config.resident_max, config.step_stall);
    let mut keeper = Keeper {
        residents,
        target: config.load.clone(),
        reserve_bytes: None,
        config,
        orders,
        reports,
        pulse,
        backoff,
        trial: None,
        before: None,
        memo: Memo::default(),
        unordered: false,
    };
    // The receiver of reports is gone, and the workers with their futures.
    let Err(Closed) = keeper.run().await;
    keeper.residents.end_all().await;
}

impl Keeper {
    async fn run(&mut self) -> Result<std::convert::Infallible, Closed> {
        loop {
            let Some(spec) = self.target.clone() else {
                self.pause(None).await?;
                continue;
            };
            if self.trial.is_none()
                && let Some(resident) = self.residents.take(&spec).await
            {
                self.lives(resident).await?;
                continue;
            }
            let reports = self.reports.clone();
            let before = Before {
                memo: self.memo.clone(),
                // The worker before it is gone.
                mapped_bytes: self.residents.mapped_bytes(),
            };
            let follower = Follower {
                reports: reports.clone(),
                pulse: self.pulse.clone(),
            };
            let trial = self.trial.as_ref();
            let trial = trial.map(|(trial, _)| (trial.clone(), reports.clone()));
            let loading = load_and_try(self.straitened(), spec, before, Some(follower), trial);
            let loaded = tokio::select! {
                loaded = loading => loaded,
                Some(order) = self.orders.recv(), if !self.unordered => {
                    // Nothing was in that worker.
                    if let (Some((_, resume)), Some(target)) = (self.trial.take(), self.target.take()) {
                        self.reports.send(called_off(&target.name)).await.map_err(|_| Closed)?;
                        self.target = resume;
                    }
                    self.obey(order).await;
                    continue;
                }
                () = reports.closed() => return Err(Closed),
            };
            match loaded {
                Ok(ready) => self.tried(ready).await?,
                Err(failed) => self.not_loaded(failed).await?,
            }
        }
    }

    /// Serves with it; one on trial may only have been there to be looked at.
    async fn tried(&mut self, mut ready: Ready) -> Result<(), Closed> {
        if let Some(passed) = ready.passed() {
            self.reports.send(passed).await.map_err(|_| Closed)?;
        }
        match self.trial.take() {
            Some((trial, resume)) if trial.then == Then::Return => {
                self.memo = ready.memo;
                self.pulse.turn_to(Doing::Ending, Some(END_LIMIT));
                ready.child.end().await;
                self.before = None;
                self.target = resume;
                Ok(())
            }
            _ => self.lives(ready).await,
        }
    }

    /// Serves with this worker and those that replace it, until one ends.
    async fn lives(&mut self, mut ready: Ready) -> Result<(), Closed> {
        loop {
            let started = Instant::now();
            self.before = None;
            self.target = Some(ready.spec().clone());
            self.memo = ready.memo.clone();
            let served = ready
                .serve(
                    &self.config,
                    &mut self.orders,
                    &self.reports,
                    &self.pulse,
                    &mut self.residents,
                )
                .await;
            let served = match served {
                Ok(served) => served,
                Err(Closed) => {
                    self.pulse.turn_to(Doing::Ending, Some(END_LIMIT));
                    ready.child.save(SAVE_AT_END).await;
                    ready.child.end().await;
                    return Err(Closed);
                }
            };
            self.pulse.turn_to(Doing::Ending, Some(END_LIMIT));
            match served {
                Served::Ended { verdict, ordered } => {
                    let (spec, taken_bytes) = (ready.spec().clone(), ready.taken_bytes());
                    let (cause, stderr_tail) = ready.child.bury(verdict).await;
                    if cause.by_itself() {
                        kv_files::remove(self.config.kv_dir.as_deref(), &spec);
                    }
                    if let Some(ordered) = ordered {
                        info!(model = ordered.name, "loaded in its place, as ordered");
                        self.target = Some(*ordered);
                        self.before = Some((spec, taken_bytes));
                        self.reserve_bytes = None;
                    }
                    let retry_in = self.backoff.after_life_of(started.elapsed());
                    return self.down(cause, stderr_tail, retry_in, true).await;
                }
                Served::Ordered(order) => {
                    let serving = (ready.spec().clone(), ready.taken_bytes());
                    if let Some(limit) = save_before(&order) {
                        ready.child.save(limit).await;
                    }
                    let cause = self.obey(order).await;
                    self.before = Some(serving).filter(|_| cause != Cause::Idle);
                    let (cause, stderr_tail) = ready.child.bury(Some(cause)).await;
                    return self.down(cause, stderr_tail, Duration::ZERO, true).await;
                }
                Served::Turned { load, next, rests } => {
                    let next = match next {
                        Some(next) => Some(*next),
                        None => {
                            let mut next = self.residents.take(&load).await;
                            if let Some(next) = &mut next {
                                // More than it knew when its own turn ended.
                                next.memo = ready.memo.clone();
                            }
                            next
                        }
                    };
                    info!(model = load.name, rests, "its turn");
                    self.reserve_bytes = None;
                    let stderr_tail = match rests {
                        true => {
                            self.residents.keep(ready).await;
                            Vec::new()
                        }
                        false => {
                            ready.child.save(SAVE_AT_SWITCH).await;
                            ready.child.bury(Some(Cause::Switched)).await.1
                        }
                    };
                    self.target = Some(*load);
                    self.down(Cause::Switched, stderr_tail, Duration::ZERO, true)
                        .await?;
                    match next {
                        Some(next) => ready = next,
                        // It died just now.
                        None => return Ok(()),
                    }
                }
                Served::Replaced(next) => {
                    info!(model = next.spec().name, "model loaded beside the old one");
                    self.reserve_bytes = None;
                    ready.child.save(SAVE_AT_SWITCH).await;
                    let (cause, stderr_tail) = ready.child.bury(Some(Cause::Switched)).await;
                    self.down(cause, stderr_tail, Duration::ZERO, true).await?;
                    ready = *next;
                }
            }
        }
    }

    async fn not_loaded(&mut self, mut failed: Failed) -> Result<(), Closed> {
        self.memo = std::mem::take(&mut failed.memo);
        if matches!(failed.cause, Cause::NoRoom(_)) && self.residents.make_room().await {
            let told = self.reports.send(self.residents.report()).await;
            return told.map_err(|_| Closed);
        }
        if let (Some((_, resume)), Some(target)) = (self.trial.take(), &self.target) {
            let report = failed.tried(&target.name);
            self.before = None;
            self.target = resume;
            return self.reports.send(report).await.map_err(|_| Closed);
        }
        let fits_less = |before_bytes: u64| match &failed.cause {
            // The target was to take less memory, and even that is not there.
            Cause::NoRoom(refusal) => refusal.need.total_bytes() < before_bytes,
            _ => false,
        };
        let before = self.before.take_if(|(_, bytes)| !fits_less(*bytes));
        if let (Some((before, _)), Some(target)) = (before, &self.target) {
            let report = failed.switch(&target.name);
            self.target = Some(before);
            return self.reports.send(report).await.map_err(|_| Closed);
        }
        let retry_in = self.backoff.after_life_of(Duration::ZERO);
        self.down(failed.cause, failed.stderr_tail, retry_in, false)
            .await
    }

    /// The configuration for a load that memory may be short for.
    fn straitened(&self) -> WorkerConfig {
        let mut config = self.config.clone();
        if let Some(bytes) = self.reserve_bytes {
            config.admission.reserve_bytes_max = bytes;
        }
        config
    }

    /// Takes the order; says how the worker that was there ends.
    async fn obey(&mut self, order: Order) -> Cause {
        if !matches!(order, Order::Turn { .. }) {
            self.residents.end_all().await;
        }
        match order {
            Order::Turn { load, .. } => {
                self.target = Some(*load);
                self.reserve_bytes = None;
                Cause::Switched
            }
            Order::Dismiss => Cause::Switched,
            Order::Serve { load, placing } => {
                self.target = Some(*load);
                self.reserve_bytes = match placing {
                    Placing::Straitened { reserve_bytes } => Some(reserve_bytes),
                    Placing::Beside | Placing::After => None,
                };
                Cause::Switched
            }
            Order::Try { load, trial, .. } => {
                let resume = self.target.replace(*load);
                self.trial = Some((trial, resume));
                self.reserve_bytes = None;
                Cause::Switched
            }
            Order::Unload => {
                self.target = None;
                Cause::Idle
            }
            Order::Rest { why } => {
                self.target = None;
                Cause::Rested(why)
            }
        }
    }

    async fn down(
        &mut self,
        cause: Cause,
        stderr_tail: Vec<String>,
        retry_in: Duration,
        had_served: bool,
    ) -> Result<(), Closed> {
        if cause.on_purpose() {
            info!(%cause, "worker ended");
        } else {
            warn!(%cause, retry_ms = retry_in.as_millis() as u64, "worker ended");
        }
        let down = Down {
            cause,
            stderr_tail,
            retry_in,
            had_served,
        };
        let told = self.reports.send(Report::Down(down)).await;
        told.map_err(|_| Closed)?;
        self.pause(Some(retry_in)).await
    }

    /// Waits for the time, or without one for ever; an order ends the wait.
    async fn pause(&mut self, time: Option<Duration>) -> Result<(), Closed> {
        let doing = match time {
            Some(_) => Doing::Pausing,
            None => Doing::Resting,
        };
        self.pulse.turn_to(doing, time);
        let elapsed = async {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // A pause of nothing ends at once; the order is found in the next life.
            biased;
            () = elapsed => {}
            order = self.orders.recv(), if !self.unordered => match order {
                Some(order) => { self.obey(order).await; }
                None => self.unordered = true,
            },
            () = self.reports.closed() => return Err(Closed),
        }
        Ok(())
    }
}
