//! Judges grammars and schemas before a model is asked: in a child of its own, which is killed when it takes
//! too long, and is gone when nobody asks.
//!
//! Owns that child and the verdicts, by hash of what was judged, so that the same schema costs nothing the
//! second time. One at a time, in order: a hostile schema costs its limit on one core at the lowest priority,
//! and keeps only other new schemas waiting.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::process::Child;
use crate::frames::{CheckSpec, Command, Constraint, Event, JobKey, Refused, SandboxSpec};

/// What one compilation may hold. Real schemas take single megabytes.
const BYTES: u64 = 128 << 20;
/// How long one may compute, the search for the place at fault included.
const TIME_MS: u32 = 2_000;
/// When the child is killed, its start included: where others have the cores, two seconds of computing take
/// longer than that.
const KILL_AFTER: Duration = Duration::from_secs(20);
/// So long an idle child is kept for the next question.
const IDLE: Duration = Duration::from_secs(5);
/// Verdicts kept.
const VERDICTS_MAX: usize = 1024;
/// Questions that wait; more are refused by whoever asks.
const WAITING_MAX: usize = 64;

/// A question about several, by the job that wants to know.
type Ask = (JobKey, Vec<Constraint>);

/// A verdict.
#[derive(Debug)]
pub struct Verdict {
    /// Who asked.
    pub job: JobKey,
    /// Whether all may be used; or which is the first that may not.
    pub outcome: Result<(), (usize, Refused)>,
}

/// Both ends of a checker: questions down, verdicts up in the order of the questions.
#[derive(Debug)]
pub struct Checker {
    asks: mpsc::Sender<Ask>,
    verdicts: mpsc::Receiver<Verdict>,
}

/// Where questions go.
#[derive(Debug)]
pub struct Asks(mpsc::Sender<Ask>);

impl Asks {
    /// Asks; `false` when too many wait.
    pub fn ask(&self, job: JobKey, constraints: Vec<Constraint>) -> bool {
        self.0.try_send((job, constraints)).is_ok()
    }
}

impl Checker {
    /// Starts the task on the current runtime; no child before the first question.
    pub fn start(program: PathBuf, sandbox: Option<SandboxSpec>) -> Self {
        let (asks, asked) = mpsc::channel(WAITING_MAX);
        let (tell, verdicts) = mpsc::channel(WAITING_MAX);
        let task = Task {
            program,
            sandbox,
            verdicts: Verdicts::default(),
            child: None,
        };
        tokio::spawn(task.run(asked, tell));
        Self { asks, verdicts }
    }

    /// Its ends.
    pub fn split(self) -> (Asks, mpsc::Receiver<Verdict>) {
        (Asks(self.asks), self.verdicts)
    }
}

struct Task {
    program: PathBuf,
    sandbox: Option<SandboxSpec>,
    verdicts: Verdicts,
    child: Option<Child>,
}

impl Task {
    async fn run(mut self, mut asked: mpsc::Receiver<Ask>, tell: mpsc::Sender<Verdict>) {
        loop {
            let ask = match &self.child {
                Some(_) => match tokio::time::timeout(IDLE, asked.recv()).await {
                    Ok(ask) => ask,
                    Err(_) => {
                        self.put_down().await;
                        continue;
                    }
                },
                None => asked.recv().await,
            };
            let Some((job, constraints)) = ask else {
                return self.put_down().await;
            };
            let mut outcome = Ok(());
            for (at, constraint) in constraints.into_iter().enumerate() {
                if let Err(refused) = self.known_or_judged(constraint).await {
                    outcome = Err((at, refused));
                    break;
                }
            }
            if tell.send(Verdict { job, outcome }).await.is_err() {
                return self.put_down().await;
            }
        }
    }

    async fn put_down(&mut self) {
        if let Some(child) = self.child.take() {
            child.end().await;
        }
    }

    async fn known_or_judged(&mut self, constraint: Constraint) -> Result<(), Refused> {
        let key = key_of(&constraint);
        if let Some(outcome) = self.verdicts.get(key) {
            return outcome;
        }
        let judged = tokio::time::timeout(KILL_AFTER, self.compile(constraint)).await;
        let outcome = match judged {
            Ok(Compiled::Is(outcome)) => {
                if outcome.as_ref().is_err_and(|refused| refused.exceeded) {
                    self.put_down().await; // it is leaving by itself
                }
                outcome
            }
            Ok(Compiled::Gone) => {
                // It needed more than it could have, or crashed the compiler.
                if let Some(child) = self.child.take() {
                    let (cause, tail) = child.bury(None).await;
                    let last = tail.last().map(String::as_str);
                    warn!(%cause, last, "a grammar ended the process that judged it");
                }
                Err(exceeded("it ended the process that judged it"))
            }
            Ok(Compiled::Never(reason)) => {
                // Another try may do better.
                warn!(reason, "grammars cannot be judged");
                return Err(exceeded("it cannot be judged on this node now"));
            }
            Err(_) => {
                if let Some(child) = self.child.take() {
                    child.kill().await;
                }
                debug!("a grammar was given up");
                Err(exceeded(&format!("it takes longer than {TIME_MS} ms")))
            }
        };
        self.verdicts.put(key, outcome.clone());
        outcome
    }

    async fn compile(&mut self, constraint: Constraint) -> Compiled {
        if self.child.is_none() {
            match self.started().await {
                Ok(child) => self.child = Some(child),
                Err(reason) => return Compiled::Never(reason),
            }
        }
        let Some(child) = &mut self.child else {
            return Compiled::Gone;
        };
        if !child.send(Command::Compile(constraint)).await {
            return Compiled::Gone;
        }
        loop {
            match child.events.recv().await {
                Some(Ok(Event::Compiled(outcome))) => return Compiled::Is(outcome),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Compiled::Gone,
            }
        }
    }

    async fn started(&self) -> Result<Child, String> {
        let mut child = Child::start(&self.program, self.sandbox.as_ref(), None)
            .map_err(|error| format!("{}: {error}", self.program.display()))?;
        let spec = CheckSpec {
            bytes: BYTES,
            time_ms: TIME_MS,
            sandbox: self.sandbox.clone(),
        };
        loop {
            match child.events.recv().await {
                Some(Ok(Event::Hello(_))) => {
                    child.send(Command::Check(spec.clone())).await;
                }
                Some(Ok(Event::Sandboxed(sandbox))) => {
                    for gap in &sandbox.gaps {
                        debug!(gap, "what judges grammars is not held in");
                    }
                    return Ok(child);
                }
                Some(Ok(Event::LoadFailed { message })) => return Err(message),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.0),
                None => {
                    let (cause, _) = child.bury(None).await;
                    return Err(cause.to_string());
                }
            }
        }
    }
}

/// What came of asking the child.
enum Compiled {
    Is(Result<(), Refused>),
    /// The child has ended.
    Gone,
    /// There is no child.
    Never(String),
}

fn exceeded(reason: &str) -> Refused {
    Refused {
        place: Vec::new(),
        reason: reason.to_owned(),
        exceeded: true,
    }
}

/// Two hashes of 64 bits: nobody finds another schema with both, and a wrong verdict would only be one about
/// his own schema.
type Key = (u64, u64);

fn key_of(constraint: &Constraint) -> Key {
    let hash = |seed: u8| {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        constraint.hash(&mut hasher);
        hasher.finish()
    };
    (hash(0), hash(1))
}

#[derive(Debug, Default)]
struct Verdicts {
    by_key: HashMap<Key, Result<(), Refused>>,
    order: VecDeque<Key>,
}

impl Verdicts {
    fn get(&self, key: Key) -> Option<Result<(), Refused>> {
        self.by_key.get(&key).cloned()
    }

    fn put(&mut self, key: Key, outcome: Result<(), Refused>) {
        if self.order.len() == VERDICTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
        if self.by_key.insert(key, outcome).is_none() {
            self.order.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_kept_for_the_newest_only() {
        let mut verdicts = Verdicts::default();
        for n in 0..=VERDICTS_MAX as u64 {
            verdicts.put((n, n), Ok(()));
        }
        assert_eq!(verdicts.get((0, 0)), None);
        assert_eq!(verdicts.get((1, 1)), Some(Ok(())));
        assert_eq!(verdicts.by_key.len(), VERDICTS_MAX);
    }
}
