//! A worker that only plans: it says what a model would take and is thrown away.
//!
//! Laying a model out takes 55 to 300 ms and some tens of megabytes, whatever its size; a question about
//! it takes some 10 ms. It can die of a hostile file like any worker, which is why it is one.

use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use tracing::debug;

use super::process::{Child, ReadError};
use super::{Cause, other_protocol};
use crate::frames::{Command, Event, Hello, LoadSpec, Outline, PROTOCOL, Plan, PlanAsk};

/// A planning worker, its model laid out.
pub struct Planner {
    child: Child,
    /// The model, and the devices it would be put on.
    pub outline: Outline,
    stall: Duration,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine {cause}")]
pub struct PlanError {
    /// How the planning worker ended.
    pub cause: Cause,
    /// Its last lines on standard error.
    pub stderr_tail: Vec<String>,
}

impl Planner {
    /// Starts `program` for the model of `load`. Each answer must come within `stall`.
    ///
    /// Must be called on the main thread of a current-thread runtime, as every start of a worker.
    ///
    /// # Errors
    /// The model is none, or the worker ended.
    pub async fn start(
        program: &Path,
        load: &LoadSpec,
        stall: Duration,
    ) -> Result<Self, PlanError> {
        let mut child =
            Child::start(program, load.sandbox.as_ref(), None).map_err(|error| PlanError {
                cause: Cause::Spawn(format!("{}: {error}", program.display())),
                stderr_tail: Vec::new(),
            })?;
        match lay_out(&mut child, load, stall).await {
            Ok(outline) => Ok(Self {
                child,
                outline,
                stall,
            }),
            Err(verdict) => Err(bury(child, verdict).await),
        }
    }

    /// What a context for `ask` would take; the inner error says why there is no such context.
    ///
    /// # Errors
    /// The worker ended; this one is of no more use.
    pub async fn ask(&mut self, ask: PlanAsk) -> Result<Result<Plan, String>, Option<Cause>> {
        self.say(Command::Ask(ask)).await?;
        match next(&mut self.child, self.stall).await? {
            Event::Planned(plan) => Ok(plan.map(|plan| *plan)),
            _ => Err(Some(Cause::Protocol("no answer to an ask".into()))),
        }
    }

    /// Whether the first GPU gives `bytes` in one piece; true without a GPU.
    ///
    /// # Errors
    /// As [`Planner::ask`].
    pub async fn probe(&mut self, bytes: u64) -> Result<bool, Option<Cause>> {
        self.say(Command::Probe(bytes)).await?;
        match next(&mut self.child, self.stall).await? {
            Event::Probed(gives) => Ok(gives),
            _ => Err(Some(Cause::Protocol("no answer to a probe".into()))),
        }
    }

    /// Closes the socket and waits until the worker is gone and its memory with it.
    pub async fn end(self) {
        self.child.end().await;
    }

    /// After an error of [`Planner::ask`]: the cause, with the worker's last words.
    pub async fn bury(self, verdict: Option<Cause>) -> PlanError {
        bury(self.child, verdict).await
    }

    async fn say(&self, command: Command) -> Result<(), Option<Cause>> {
        // A closed socket is a dead worker: its exit status says more.
        self.child.send(command).await.then_some(()).ok_or(None)
    }
}

/// Starts `program`, hears its first words within `limit`, and ends it: it needs its libraries for that, and
/// no model.
///
/// Must be called on the main thread of a current-thread runtime, as every start of a worker.
///
/// # Errors
/// It said nothing, or something else.
pub async fn greet(program: &Path, limit: Duration) -> Result<Hello, PlanError> {
    let mut child = Child::start(program, None, None).map_err(|error| PlanError {
        cause: Cause::Spawn(format!("{}: {error}", program.display())),
        stderr_tail: Vec::new(),
    })?;
    match next(&mut child, limit).await {
        Ok(Event::Hello(hello)) => {
            child.end().await;
            Ok(hello)
        }
        Ok(_) => {
            let other = Cause::Protocol("no hello".into());
            Err(bury(child, Some(other)).await)
        }
        Err(verdict) => Err(bury(child, verdict).await),
    }
}

async fn bury(child: Child, verdict: Option<Cause>) -> PlanError {
    let (cause, stderr_tail) = child.bury(verdict).await;
    PlanError { cause, stderr_tail }
}

async fn lay_out(
    child: &mut Child,
    load: &LoadSpec,
    stall: Duration,
) -> Result<Outline, Option<Cause>> {
    if !child.send(Command::Plan(Box::new(load.clone()))).await {
        return Err(None);
    }
    loop {
        match next(child, stall).await? {
            Event::Hello(found) if found.protocol != PROTOCOL => {
                return Err(Some(other_protocol(found.protocol)));
            }
            Event::Hello(_) | Event::Sandboxed(_) => {}
            Event::Outline(outline) => return Ok(*outline),
            _ => return Err(Some(Cause::Protocol("no answer to a plan".into()))),
        }
    }
}

/// The next event; the error is a verdict, `None`: it closed its socket.
async fn next(child: &mut Child, stall: Duration) -> Result<Event, Option<Cause>> {
    match timeout(stall, child.events.recv()).await {
        Err(_) => Err(Some(Cause::Stalled(stall))),
        Ok(None) => Err(None),
        Ok(Some(Err(ReadError(reason)))) => Err(Some(Cause::Protocol(reason))),
        Ok(Some(Ok(Event::LoadFailed { message }))) => Err(Some(Cause::LoadFailed(message))),
        Ok(Some(Ok(event))) => {
            debug!(?event, "planned");
            Ok(event)
        }
    }
}
