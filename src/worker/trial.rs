//! A trial: the next worker shows that it works before it takes anybody's place.
//!
//! It is the worker that would serve: sandboxed, loaded with the arguments of production in the power mode of the
//! moment. What it is asked, and whether the answers will do, is for whoever orders the trial; here it is asked
//! and timed. A worker that dies, hangs or says nothing in time ends the trial like any other "no": the one that
//! serves goes on, or comes back.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cause;
use super::process::{Child, ReadError};
use crate::frames::{
    BenchReport, BenchSpec, Command, Event, Finish, Input, Job, JobError, JobKey, Scored,
};

/// What a worker has to show.
pub struct Trial {
    /// Asked one after the other.
    pub asks: Vec<Ask>,
    /// Measured after the asks.
    pub bench: Option<BenchSpec>,
    /// A load that takes longer is not waited for.
    pub load_max: Duration,
    /// Longest silence of the worker after the load.
    pub stall: Duration,
    /// Longest time for all of it, after the load.
    pub limit: Duration,
    /// Whether that will do.
    pub judge: Judge,
    /// What becomes of a worker that passed.
    pub then: Then,
}

/// Says whether what was shown will do.
pub type Judge = Box<dyn Fn(&Shown) -> bool + Send + Sync>;

/// What becomes of a worker that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It serves, in place of the one that did.
    Serve,
    /// It ends; the one that served goes on.
    Return,
}

/// One thing to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// The likeliest answer to a user's message, through the chat template.
    Chat {
        /// The message.
        prompt: String,
        /// Length of the answer, tokens.
        max_tokens: u32,
    },
    /// How likely a text is.
    Score(String),
}

/// What a worker showed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shown {
    /// From the start of the process until it could serve.
    pub load: Duration,
    /// By ask.
    pub answers: Vec<Answer>,
    /// The measurement.
    pub speed: Option<BenchReport>,
    /// All memory that it took, at its largest, bytes.
    pub peak_bytes: u64,
}

/// What it said.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// To [`Ask::Chat`].
    Text {
        /// The answer.
        text: String,
        /// Why it ended.
        finish: Finish,
    },
    /// To [`Ask::Score`].
    Scored(Scored),
    /// It could not.
    Failed(JobError),
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq)]
pub enum TrialEnd {
    /// It will do.
    Passed(Box<Shown>),
    /// It will not do.
    Unfit(Box<Shown>),
    /// There was no worker, or none any more.
    Ended(Cause),
}

impl fmt::Debug for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Prompts belong in no log.
        write!(f, "Trial({} asks, {:?})", self.asks.len(), self.then)
    }
}

/// A trial on its way; shared, since it is handed on when memory does not hold both workers.
pub type Ordered = Arc<Trial>;

/// Asks the worker. `Err(None)`: it closed its socket, ask the exit status.
pub(super) async fn run(child: &mut Child, trial: &Trial) -> Result<Shown, Option<Cause>> {
    let end = Instant::now() + trial.limit;
    let mut asking = Asking {
        child,
        end,
        stall: trial.stall,
        next: 1,
    };
    let mut shown = Shown::default();
    for ask in &trial.asks {
        let answer = match ask {
            Ask::Chat { prompt, max_tokens } => asking.chat(prompt, *max_tokens).await?,
            Ask::Score(text) => asking.score(text).await?,
        };
        shown.answers.push(answer);
    }
    if let Some(spec) = trial.bench {
        asking.say(Command::Bench(spec)).await?;
        let report = loop {
            if let Event::Bench(report) = asking.event().await? {
                break report;
            }
        };
        shown.speed = Some(report);
    }
    Ok(shown)
}

struct Asking<'a> {
    child: &'a mut Child,
    end: Instant,
    stall: Duration,
    next: u64,
}

impl Asking<'_> {
    async fn chat(&mut self, prompt: &str, max_tokens: u32) -> Result<Answer, Option<Cause>> {
        let key = JobKey(u64::MAX - self.next);
        self.next += 1;
        let messages = serde_json::json!([{"role": "user", "content": prompt}]);
        let input = Input::Chat {
            messages: messages.to_string(),
            tools: None,
        };
        let job = Job::plain(key, input, max_tokens);
        self.say(Command::Submit(Box::new(job))).await?;
        let mut text = String::new();
        loop {
            match self.event().await? {
                Event::Step { pieces, .. } => {
                    let pieces = pieces.into_iter().filter(|piece| piece.job == key);
                    text.extend(pieces.map(|piece| piece.text));
                }
                Event::Done(done) if done.job == key => {
                    text.push_str(&done.text);
                    return Ok(match done.end {
                        Ok(finish) => Answer::Text { text, finish },
                        Err(error) => Answer::Failed(error),
                    });
                }
                _ => {}
            }
        }
    }

    async fn score(&mut self, text: &str) -> Result<Answer, Option<Cause>> {
        self.say(Command::Score(text.to_owned())).await?;
        loop {
            if let Event::Scored(scored) = self.event().await? {
                return Ok(scored.map_or_else(Answer::Failed, Answer::Scored));
            }
        }
    }

    async fn say(&mut self, command: Command) -> Result<(), Option<Cause>> {
        self.child.send(command).await.then_some(()).ok_or(None)
    }

    async fn event(&mut self) -> Result<Event, Option<Cause>> {
        let limit = self.end.min(Instant::now() + self.stall);
        match tokio::time::timeout_at(limit, self.child.events.recv()).await {
            Err(_) => Err(Some(Cause::Stalled(self.stall))),
            Ok(None) => Err(None),
            Ok(Some(Err(ReadError(reason)))) => Err(Some(Cause::Protocol(reason))),
            Ok(Some(Ok(event))) => Ok(event),
        }
    }
}
