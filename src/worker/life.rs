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
use super::{
    COMMANDS, Cause, Checked, Doing, END_LIMIT, Order, Placing, Report, WorkerConfig,
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
}

/// A worker that did not come that far.
pub(super) struct Failed {
    pub(super) cause: Cause,
    pub(super) stderr_tail: Vec<String>,
    /// With what the attempt has learned.
    pub(super) memo: Memo,
}

/// Why a worker serves no more. The child is still to be buried.
pub(super) enum Served {
    /// It died, or must.
    Ended(Option<Cause>),
    /// The next one is loaded and takes its place.
    Replaced(Box<Ready>),
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
            });
        }
    };
    let mut child = match Child::start(&config.program, spec.sandbox.as_ref()) {
        Ok(child) => child,
        Err(error) => {
            return Err(Failed {
                cause: Cause::Spawn(format!("{}: {error}", config.program.display())),
                stderr_tail: Vec::new(),
                memo,
            });
        }
    };
    turn_to(Doing::Loading, config.load_stall);
    let follow = follower.as_ref();
    let loaded = until_loaded(&mut child, &admitted.load, config.load_stall, follow).await;
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
            })
        }
        Err(verdict) => {
            turn_to(Doing::Ending, END_LIMIT);
            let (cause, stderr_tail) = child.bury(verdict).await;
            Err(Failed {
                cause,
                stderr_tail,
                memo,
            })
        }
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
        let mut heard = Instant::now();
        let mut pings = tokio::time::interval(config.step_stall / 4);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut next: Option<(LoadSpec, Loading)> = None;
        let (mut commanded, mut ordered) = (true, true);
        loop {
            tokio::select! {
                event = child.events.recv() => {
                    match event {
                        None => return Ok(Served::Ended(None)),
                        Some(Err(ReadError(reason))) => return Ok(Served::Ended(Some(Cause::Protocol(reason)))),
                        Some(Ok(Event::Pong(_))) => {}
                        Some(Ok(event)) => report(Report::Event(event)).await?,
                    }
                    // After the report: that wait was ours, not the worker's.
                    heard = Instant::now();
                    pulse.beat();
                }
                command = commands.recv(), if commanded => match command {
                    None => commanded = false,
                    Some(command) => if !child.send(command).await { return Ok(Served::Ended(None)) },
                },
                order = orders.recv(), if ordered => match order {
                    None => ordered = false,
                    // What is served already is not loaded again; a switch under way ends.
                    Some(Order::Serve { load, .. }) if *load == self.spec => next = None,
                    Some(Order::Serve { load: spec, placing: Placing::Beside }) => {
                        let before = Before {
                            memo: self.memo.clone(),
                            mapped_bytes: self.checked.comparison.account().mapped_bytes(),
                        };
                        let loading = load(config.clone(), (*spec).clone(), before, None);
                        next = Some((*spec, Box::pin(loading)));
                    }
                    Some(order) => return Ok(Served::Ordered(order)),
                },
                ready = async { (&mut next.as_mut().expect("polled only when there is one").1).await }, if next.is_some() => match ready {
                    Ok(ready) => return Ok(Served::Replaced(Box::new(ready))),
                    Err(failed) => {
                        let (spec, _) = next.take().expect("it has just ended");
                        self.memo = failed.memo.clone();
                        let gives_bytes = self.checked.comparison.account().worker_bytes();
                        if let Cause::NoRoom(refusal) = &failed.cause && refusal.fits_with(gives_bytes) {
                            info!(model = spec.name, "memory does not hold both: it is loaded after the old one");
                            let load = Box::new(spec);
                            return Ok(Served::Ordered(Order::Serve { load, placing: Placing::After }));
                        }
                        report(failed.switch(&spec.name)).await?;
                    }
                },
                _ = pings.tick() => if !child.try_send(Command::Ping(0)) { /* its queue is full: silence decides */ },
                () = tokio::time::sleep_until(heard + config.step_stall) => {
                    return Ok(Served::Ended(Some(Cause::Stalled(heard.elapsed()))));
                }
                () = reports.closed() => return Err(Closed),
            }
        }
    }

    /// What it was asked to load.
    pub(super) fn spec(&self) -> &LoadSpec {
        &self.spec
    }

    /// All that it has taken.
    pub(super) fn taken_bytes(&self) -> u64 {
        self.checked.comparison.taken.total_bytes()
    }
}

impl Failed {
    /// As the report of a switch that did not happen.
    pub(super) fn switch(self, name: &str) -> Report {
        Report::SwitchFailed {
            name: name.to_owned(),
            reason: format!("the engine {}", self.cause),
        }
    }
}
