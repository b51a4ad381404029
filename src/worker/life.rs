//! One worker's life: [`load`] from its start to `Loaded`, then [`serve`] until something ends it.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::admission::{Admitted, Memo, admit, available_bytes};
use super::plan::PlanError;
use super::process::{Child, ReadError};
use super::pulse::Pulser;
use super::rest::{Inside, Residents};
use super::trial::{self, Ordered, Shown, Then, TrialEnd};
use super::{
    COMMANDS, Cause, Checked, Doing, END_LIMIT, Order, Placing, Report, WorkerConfig, kv_files,
    other_protocol,
};
use crate::frames::{Command, Event, Hello, LoadSpec, Loaded, PROTOCOL, Sandbox};
use crate::ledger::{Comparison, Readings, Taken};
use crate::offload;

/// The receiver of reports has gone: end.
pub(super) struct Closed;

/// A worker with its model loaded, judged and proven.
pub(super) struct Ready {
    pub(super) child: Child,
    /// With what this load has learned.
    pub(super) memo: Memo,
    checked: Box<Checked>,
    loaded: Box<Loaded>,
    hello: Box<Hello>,
    sandbox: Box<Sandbox>,
    spec: LoadSpec,
    /// What it showed on trial.
    shown: Option<Box<Shown>>,
}

/// A worker that did not come that far.
pub(super) struct Failed {
    pub(super) cause: Cause,
    pub(super) stderr_tail: Vec<String>,
    /// With what the attempt has learned.
    pub(super) memo: Memo,
    /// What it showed on trial, where that would not do.
    pub(super) shown: Option<Box<Shown>>,
}

/// Why a worker serves no more. The child is still to be buried.
pub(super) enum Served {
    /// It died, or must. `ordered` was being loaded beside it, and is wanted still.
    Ended {
        verdict: Option<Cause>,
        ordered: Option<Box<LoadSpec>>,
    },
    /// The next one is loaded and takes its place.
    Replaced(Box<Ready>),
    /// It is the turn of another, which is loaded now, or rests. `rests`: this one has no jobs any more, and may.
    Turned {
        load: Box<LoadSpec>,
        next: Option<Box<Ready>>,
        rests: bool,
    },
    /// To be ended first.
    Ordered(Order),
}

/// Who follows a load. Nobody does beside a worker that serves.
pub(super) struct Follower {
    pub(super) reports: mpsc::Sender<Report>,
    pub(super) pulse: Pulser,
}

impl Follower {
    /// A full channel drops a figure of progress, which the next one replaces.
    fn tell(&self, fraction: f32) {
        let _ = self.reports.try_send(Report::Loading { fraction });
    }
}

type Loading = Pin<Box<dyn Future<Output = Result<Ready, Failed>> + Send>>;

/// What a load starts from.
pub(super) struct Before {
    /// What earlier loads have learned.
    pub(super) memo: Memo,
    /// Mapped by workers that go on meanwhile.
    pub(super) mapped_bytes: u64,
}

impl Before {
    /// Beside the worker that serves and those that rest.
    fn beside(memo: &Memo, serving: &Checked, residents: &Residents) -> Self {
        let served_bytes = serving.comparison.account().mapped_bytes();
        Self {
            memo: memo.clone(),
            mapped_bytes: served_bytes + residents.mapped_bytes(),
        }
    }
}

/// Has the model of `spec` planned and judged, starts a worker and loads it. Dropping the future ends the
/// worker.
pub(super) async fn load(
    config: WorkerConfig,
    spec: LoadSpec,
    before: Before,
    follower: Option<Follower>,
) -> Result<Ready, Failed> {
    let turn_to = |doing, patience| {
        if let Some(follower) = &follower {
            follower.pulse.turn_to(doing, Some(patience));
        }
    };
    if let Some(follower) = &follower {
        follower.tell(0.0);
    }
    // One answer of the planner may be late and cost it its life; all of them take a second or two.
    turn_to(Doing::Loading, config.load_stall * 2 + END_LIMIT);
    let mut memo = before.memo;
    let admitted = match admit(&config, &spec, &mut memo, before.mapped_bytes).await {
        Ok(admitted) => admitted,
        Err(PlanError { cause, stderr_tail }) => {
            return Err(Failed {
                cause,
                stderr_tail,
                memo,
                shown: None,
            });
        }
    };
    let mut load = admitted.load.clone();
    let states = kv_files::open(config.kv_dir.as_deref(), &mut load);
    let mut child = match Child::start(&config.program, spec.sandbox.as_ref(), states) {
        Ok(child) => child,
        Err(error) => {
            return Err(Failed {
                cause: Cause::Spawn(format!("{}: {error}", config.program.display())),
                stderr_tail: Vec::new(),
                memo,
                shown: None,
            });
        }
    };
    turn_to(Doing::Loading, config.load_stall);
    let follow = follower.as_ref();
    let loaded = until_loaded(&mut child, &load, config.load_stall, follow).await;
    let checked = loaded.and_then(|(hello, sandbox, loaded)| {
        let checked = check(&config, &admitted, &child, &hello, &loaded)?;
        Ok((hello, sandbox, loaded, Box::new(checked)))
    });
    match checked {
        Ok((hello, sandbox, loaded, checked)) => {
            memo.proven(&spec.path);
            Ok(Ready {
                child,
                memo,
                checked,
                loaded,
                hello,
                sandbox,
                spec,
                shown: None,
            })
        }
        Err(verdict) => {
            turn_to(Doing::Ending, END_LIMIT);
            let (cause, stderr_tail) = child.bury(verdict).await;
            Err(Failed {
                cause,
                stderr_tail,
                memo,
                shown: None,
            })
        }
    }
}

/// Loads as [`load`] does; then the worker has to show that it works, if it is on trial.
pub(super) async fn load_and_try(
    config: WorkerConfig,
    spec: LoadSpec,
    before: Before,
    follower: Option<Follower>,
    trial: Option<(Ordered, mpsc::Sender<Report>)>,
) -> Result<Ready, Failed> {
    let Some((trial, reports)) = trial else {
        return load(config, spec, before, follower).await;
    };
    let patience = trial.stall + END_LIMIT;
    let pulse = follower.as_ref().map(|follower| follower.pulse.clone());
    let memo = before.memo.clone();
    let (name, started) = (spec.name.clone(), Instant::now());
    let loading = load(config, spec, before, follower);
    let Ok(loaded) = tokio::time::timeout(trial.load_max, loading).await else {
        return Err(Failed {
            cause: Cause::Stalled(trial.load_max),
            stderr_tail: Vec::new(),
            memo,
            shown: None,
        });
    };
    let mut ready = loaded?;
    let load = started.elapsed();
    if let Some(pulse) = &pulse {
        pulse.turn_to(Doing::Loading, Some(patience.max(trial.limit)));
    }
    // Where nobody listens any more, the one that serves ends the trial.
    let _ = reports.send(Report::Trying { name }).await;
    let failed = |(cause, stderr_tail), memo, shown| Failed {
        cause,
        stderr_tail,
        memo,
        shown,
    };
    let before_bytes = ready.child.private_bytes();
    match trial::run(&mut ready.child, &trial).await {
        Ok(shown) => {
            let after_bytes = ready.child.private_bytes();
            let grown = before_bytes.zip(after_bytes);
            let grown_bytes = grown.map_or(0, |(before, after)| after.saturating_sub(before));
            let shown = Box::new(Shown {
                load,
                peak_bytes: ready.taken_bytes().saturating_add(grown_bytes),
                ..shown
            });
            if (trial.judge)(&shown) {
                ready.shown = Some(shown);
                return Ok(ready);
            }
            let buried = ready.child.bury(Some(Cause::Unfit)).await;
            Err(failed(buried, ready.memo, Some(shown)))
        }
        Err(verdict) => Err(failed(ready.child.bury(verdict).await, ready.memo, None)),
    }
}

/// What the load took and where the model runs; not proven is not served.
fn check(
    config: &WorkerConfig,
    admitted: &Admitted,
    child: &Child,
    hello: &Hello,
    loaded: &Loaded,
) -> Result<Checked, Option<Cause>> {
    let Admitted {
        plan,
        need,
        room,
        expected,
        ..
    } = admitted;
    let proof = offload::after_load(expected, &hello.backends, loaded, Some(plan))
        .map_err(|unproven| Some(Cause::Unproven(unproven.to_string())))?;
    let available_after_bytes = available_bytes(&config.admission.root);
    let readings = Readings {
        available_before_bytes: room.available_bytes,
        available_after_bytes,
        private_bytes: child.private_bytes(),
    };
    let comparison = Comparison {
        planned: need.clone(),
        taken: Taken::of(loaded, need, readings),
    };
    info!(
        planned_bytes = need.total_bytes(),
        taken_bytes = comparison.taken.total_bytes(),
        difference_bytes = comparison.difference_bytes(),
        available_before_bytes = room.available_bytes,
        available_after_bytes,
        reserve_bytes = room.reserve_bytes,
        ?proof,
        "model loaded"
    );
    Ok(Checked {
        comparison,
        room: *room,
        available_after_bytes,
        proof,
    })
}

/// `Err(None)`: it closed its socket, ask the exit status.
async fn until_loaded(
    child: &mut Child,
    spec: &LoadSpec,
    stall: Duration,
    follower: Option<&Follower>,
) -> Result<(Box<Hello>, Box<Sandbox>, Box<Loaded>), Option<Cause>> {
    if !child.send(Command::Load(Box::new(spec.clone()))).await {
        return Err(None);
    }
    let (mut hello, mut sandbox) = (None, None);
    let mut heard = Instant::now();
    loop {
        let event = match tokio::time::timeout_at(heard + stall, child.events.recv()).await {
            Err(_) => return Err(Some(Cause::Stalled(heard.elapsed()))),
            Ok(None) => return Err(None),
            Ok(Some(Err(ReadError(reason)))) => return Err(Some(Cause::Protocol(reason))),
            Ok(Some(Ok(event))) => event,
        };
        heard = Instant::now();
        if let Some(follower) = follower {
            follower.pulse.beat();
        }
        match event {
            Event::Hello(found) if found.protocol != PROTOCOL => {
                return Err(Some(other_protocol(found.protocol)));
            }
            Event::Hello(found) => {
                info!(version = found.version, llama = found.llama, backends = ?found.backends, "worker started");
                hello = Some(found);
            }
            Event::Sandboxed(found) => {
                if !found.gaps.is_empty() {
                    warn!(
                        gaps = found.gaps.join("; "),
                        "the worker's sandbox is not whole"
                    );
                }
                sandbox = Some(found);
            }
            Event::LoadProgress { fraction } => {
                if let Some(follower) = follower {
                    follower.tell(fraction);
                }
            }
            Event::LoadFailed { message } => return Err(Some(Cause::LoadFailed(message))),
            Event::Loaded(loaded) => {
                // A model that was opened outside a sandbox is none that we asked for.
                let (Some(hello), Some(sandbox)) = (hello.take(), sandbox.take()) else {
                    let reason = "Loaded before Hello and Sandboxed";
                    return Err(Some(Cause::Protocol(reason.into())));
                };
                return Ok((Box::new(hello), Box::new(sandbox), loaded));
            }
            _ => {}
        }
    }
}

impl Ready {
    /// Reports that it serves, and serves until it ends or has to.
    pub(super) async fn serve(
        &mut self,
        config: &WorkerConfig,
        orders: &mut mpsc::Receiver<Order>,
        reports: &mpsc::Sender<Report>,
        pulse: &Pulser,
        residents: &mut Residents,
    ) -> Result<Served, Closed> {
        pulse.turn_to(Doing::Serving, Some(config.step_stall));
        let child = &mut self.child;
        let (command_queue, mut commands) = mpsc::channel(COMMANDS);
        let report = async |report| reports.send(report).await.map_err(|_| Closed);
        report(Report::Serving {
            loaded: self.loaded.clone(),
            hello: self.hello.clone(),
            sandbox: self.sandbox.clone(),
            commands: command_queue,
            checked: self.checked.clone(),
        })
        .await?;
        report(residents.report()).await?;
        let mut inside = Inside::default();
        let mut heard = Instant::now();
        let mut pings = tokio::time::interval(config.step_stall / 4);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next: Option<Next> = None;
        let (mut commanded, mut obeys) = (true, true);
        let verdict = loop {
            tokio::select! {
                event = child.events.recv() => {
                    match event {
                        None => break None,
                        Some(Err(ReadError(reason))) => break Some(Cause::Protocol(reason)),
                        Some(Ok(Event::Pong(_))) => {}
                        Some(Ok(event)) => {
                            inside.heard(&event);
                            report(Report::Event(event)).await?;
                        }
                    }
                    // After the report: that wait was ours, not the worker's.
                    heard = Instant::now();
                    pulse.beat();
                }
                command = commands.recv(), if commanded => match command {
                    None => commanded = false,
                    Some(command) => {
                        inside.told(&command);
                        if !child.send(command).await {
                            break None;
                        }
                    }
                },
                order = orders.recv(), if obeys => match order {
                    None => obeys = false,
                    Some(Order::Dismiss) => {
                        residents.end_all().await;
                        report(residents.report()).await?;
                    }
                    // What is served already is not loaded again; a switch under way ends.
                    Some(Order::Serve { load, .. } | Order::Turn { load, .. }) if *load == self.spec => {
                        if let Some(called_off) = next.take().and_then(Next::called_off) {
                            report(called_off).await?;
                        }
                    }
                    Some(order) => {
                        if let Some(called_off) = next.take().and_then(Next::called_off) {
                            report(called_off).await?;
                        }
                        let is_turn = matches!(order, Order::Turn { .. });
                        if !is_turn {
                            residents.end_all().await;
                            report(residents.report()).await?;
                        }
                        if let Order::Turn { load, .. } = &order {
                            residents.end_unlike(load).await;
                        }
                        let (spec, trial, turn) = match order {
                            Order::Turn { load, rests } if residents.has(&load) => {
                                let rests = rests && inside.leave(child, &mut commands, reports, config.step_stall).await?;
                                return Ok(Served::Turned { load, next: None, rests });
                            }
                            Order::Turn { load, rests } => (*load, None, Some(rests && residents.takes_any())),
                            Order::Serve { load, placing: Placing::Beside } => (*load, None, None),
                            Order::Try { load, trial, placing: Placing::Beside } => (*load, Some(trial), None),
                            order => return Ok(Served::Ordered(order)),
                        };
                        let before = Before::beside(&self.memo, &self.checked, residents);
                        let with_reports = trial.clone().map(|trial| (trial, reports.clone()));
                        let loading = load_and_try(config.clone(), spec.clone(), before, None, with_reports);
                        next = Some(Next { spec, trial, turn, loading: Box::pin(loading) });
                    }
                },
                ready = async { (&mut next.as_mut().expect("polled only when there is one").loading).await }, if next.is_some() => {
                    let Next { spec, trial, turn, .. } = next.take().expect("it has just ended");
                    match ready {
                        Ok(mut ready) => {
                            if let Some(passed) = ready.passed() {
                                report(passed).await?;
                            }
                            if let Some(rests) = turn {
                                let rests = rests && inside.leave(child, &mut commands, reports, config.step_stall).await?;
                                let (load, next) = (Box::new(spec), Some(Box::new(ready)));
                                return Ok(Served::Turned { load, next, rests });
                            }
                            if trial.is_none_or(|trial| trial.then == Then::Serve) {
                                return Ok(Served::Replaced(Box::new(ready)));
                            }
                            self.memo = ready.memo;
                            ready.child.end().await;
                        }
                        Err(failed) => {
                            self.memo = failed.memo.clone();
                            if matches!(failed.cause, Cause::NoRoom(_)) && residents.make_room().await {
                                report(residents.report()).await?;
                                let before = Before::beside(&self.memo, &self.checked, residents);
                                let loading = load_and_try(config.clone(), spec.clone(), before, None, None);
                                next = Some(Next { spec, trial, turn, loading: Box::pin(loading) });
                                continue;
                            }
                            let gives_bytes = self.checked.comparison.account().worker_bytes();
                            if let Cause::NoRoom(refusal) = &failed.cause && refusal.fits_with(gives_bytes) {
                                info!(model = spec.name, "memory does not hold both: it is loaded after the old one");
                                let (load, placing) = (Box::new(spec), Placing::After);
                                return Ok(Served::Ordered(match trial {
                                    Some(trial) => Order::Try { load, trial, placing },
                                    None => Order::Serve { load, placing },
                                }));
                            }
                            report(match trial {
                                Some(_) => failed.tried(&spec.name),
                                None => failed.switch(&spec.name),
                            }).await?;
                        }
                    }
                },
                () = residents.died() => report(residents.report()).await?,
                _ = pings.tick() => if !child.try_send(Command::Ping(0)) { /* its queue is full: silence decides */ },
                () = tokio::time::sleep_until(heard + config.step_stall) => {
                    break Some(Cause::Stalled(heard.elapsed()));
                }
                () = reports.closed() => return Err(Closed),
            }
        };
        // Its successor is not waited for: a trial has time, and who had a turn asks again.
        let ordered = next.as_ref().and_then(Next::ordered);
        if let Some(called_off) = next.and_then(Next::called_off) {
            report(called_off).await?;
        }
        Ok(Served::Ended { verdict, ordered })
    }

    /// As the report of a trial that it passed, once.
    pub(super) fn passed(&mut self) -> Option<Report> {
        let shown = self.shown.take()?;
        Some(Report::Tried {
            name: self.spec.name.clone(),
            end: TrialEnd::Passed(shown),
        })
    }

    /// What it was asked to load.
    pub(super) fn spec(&self) -> &LoadSpec {
        &self.spec
    }

    /// What it has mapped.
    pub(super) fn mapped_bytes(&self) -> u64 {
        self.checked.comparison.account().mapped_bytes()
    }

    /// All that it has taken.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.checked.comparison.taken.total_bytes()
    }
}

/// The next worker, on its way.
struct Next {
    spec: LoadSpec,
    trial: Option<Ordered>,
    /// It is its turn; whether the old one may rest.
    turn: Option<bool>,
    loading: Loading,
}

impl Next {
    /// What is to serve whatever becomes of the worker that serves now.
    fn ordered(&self) -> Option<Box<LoadSpec>> {
        let is_order = self.trial.is_none() && self.turn.is_none();
        is_order.then(|| Box::new(self.spec.clone()))
    }

    /// As the report of a trial that something else took the place of.
    fn called_off(self) -> Option<Report> {
        self.trial.map(|_| called_off(&self.spec.name))
    }
}

/// The report of a trial that never came to its end.
pub(super) fn called_off(name: &str) -> Report {
    Report::Tried {
        name: name.to_owned(),
        end: TrialEnd::Ended(Cause::Switched),
    }
}

impl Failed {
    /// As the report of a trial that it did not pass.
    pub(super) fn tried(self, name: &str) -> Report {
        Report::Tried {
            name: name.to_owned(),
            end: match self.shown {
                Some(shown) => TrialEnd::Unfit(shown),
                None => TrialEnd::Ended(self.cause),
            },
        }
    }

    /// As the report of a switch that did not happen.
    pub(super) fn switch(self, name: &str) -> Report {
        Report::SwitchFailed {
            name: name.to_owned(),
            reason: format!("the engine {}", self.cause),
        }
    }
}
