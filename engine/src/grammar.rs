//! Grammars: which tokens may come next in an answer that has to be JSON of a schema, or text of a grammar.
//!
//! The only place that names llguidance. A grammar is compiled on a thread of its own while the loop decodes
//! for others, and kept for the next job that wants the same; the mask of a sequence's next token is made on
//! another thread while the decode that leads to it runs. What a grammar costs is bounded three times: its
//! compilation in a process that can be killed ([`check`]), before any worker sees it; the size of what is
//! compiled; and the work of each mask. A matcher that failed says so for good: nothing is ever chosen
//! without its mask. Never touches llama.cpp: it gets the vocabulary as bytes.

pub mod check;
mod compile;
mod numbers;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use llguidance::toktrie::SimpleVob;
use orinoco::frames::{Constraint, JobKey, Token};

pub use self::compile::{Compiler, Vocabulary};
use self::numbers::{Digits, Place};

/// Jobs whose grammars wait to be compiled, or masks that wait to be made; the loop holds fewer jobs.
const PENDING_MAX: usize = 512;
/// Compiled grammars kept for the next job.
const KEPT_MAX: usize = 16;

/// Compiles grammars, and lends the thread that makes masks.
///
/// What takes longest is sorting the vocabulary: tenths of a second to seconds of one core. It is done once, on the
/// thread that compiles, with [`Grammars::prepare`] before anybody waits for it, else with the first grammar.
#[derive(Default)]
pub struct Grammars {
    threads: Option<Threads>,
    n_pending: usize,
}

struct Threads {
    asks: SyncSender<(JobKey, Constraint)>,
    compiled: Receiver<(JobKey, Result<Begun, String>)>,
    masks: SyncSender<MaskTask>,
}

impl Grammars {
    /// Has the vocabulary sorted beside whatever the caller does.
    pub fn prepare(&mut self, vocabulary: Vocabulary) -> std::io::Result<()> {
        if self.threads.is_none() {
            self.threads = Some(Threads::start(vocabulary)?);
        }
        Ok(())
    }

    /// Whether the vocabulary is known, sorted or about to be.
    pub fn is_prepared(&self) -> bool {
        self.threads.is_some()
    }

    /// Asks for a matcher; it comes by [`Grammars::compiled`]. `vocabulary` is called the first time only.
    pub fn compile(
        &mut self,
        job: JobKey,
        constraint: &Constraint,
        vocabulary: impl FnOnce() -> Vocabulary,
    ) -> Result<(), String> {
        let threads = match &mut self.threads {
            Some(threads) => threads,
            none => none.insert(Threads::start(vocabulary()).map_err(|e| e.to_string())?),
        };
        let ask = (job, constraint.clone());
        let taken = threads.asks.try_send(ask);
        taken.map_err(|_| format!("{PENDING_MAX} grammars wait to be compiled"))?;
        self.n_pending += 1;
        Ok(())
    }

    /// Whether a matcher is still to come.
    pub fn is_compiling(&self) -> bool {
        self.n_pending > 0
    }

    /// The next matcher that is ready, or why there is none.
    pub fn compiled(&mut self) -> Option<(JobKey, Result<Matcher, String>)> {
        let threads = self.threads.as_ref().filter(|_| self.n_pending > 0)?;
        match threads.compiled.try_recv() {
            Ok((job, compiled)) => {
                self.n_pending -= 1;
                let masks = &threads.masks;
                Some((job, compiled.map(|begun| begun.matcher(masks))))
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => unreachable!("a panic there ends the process"),
        }
    }
}

impl Threads {
    fn start(vocabulary: Vocabulary) -> std::io::Result<Self> {
        let (asks, asked) = sync_channel::<(JobKey, Constraint)>(PENDING_MAX);
        let (done, compiled) = sync_channel(PENDING_MAX);
        let (masks, tasks) = sync_channel::<MaskTask>(PENDING_MAX);
        std::thread::Builder::new()
            .name("grammars".to_owned())
            .spawn(move || {
                let digits = Arc::new(vocabulary.digits());
                let compiler = Compiler::new(vocabulary);
                let mut kept = VecDeque::new();
                while let Ok((job, constraint)) = asked.recv() {
                    let matcher = compiler
                        .as_ref()
                        .map_err(String::clone)
                        .and_then(|compiler| kept_or_compiled(compiler, &mut kept, constraint))
                        .map(|(matcher, is_json)| Begun {
                            matcher,
                            is_json,
                            digits: Arc::clone(&digits),
                        });
                    if done.send((job, matcher)).is_err() {
                        return;
                    }
                }
            })?;
        std::thread::Builder::new()
            .name("masks".to_owned())
            .spawn(move || {
                while let Ok(MaskTask { mut text, back }) = tasks.recv() {
                    let mask = text.mask();
                    // Its job may have been cancelled meanwhile.
                    let _ = back.send((text, mask));
                }
            })?;
        Ok(Self {
            asks,
            compiled,
            masks,
        })
    }
}

fn kept_or_compiled(
    compiler: &Compiler,
    kept: &mut VecDeque<(Constraint, llguidance::Matcher)>,
    constraint: Constraint,
) -> Result<(llguidance::Matcher, bool), String> {
    let is_json = !matches!(constraint, Constraint::Lark(_));
    if let Some(at) = kept.iter().position(|(of, _)| *of == constraint)
        && let Some(entry) = kept.remove(at)
    {
        kept.push_back(entry);
    } else {
        let matcher = compiler.compile(&constraint)?;
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((constraint, matcher));
    }
    // Never used itself, so that each job begins at the begin; its own caches, so that none waits for another.
    let matcher = kept.back().expect("just put there").1.deep_clone();
    Ok((matcher, is_json))
}

/// A matcher at its begin.
struct Begun {
    matcher: llguidance::Matcher,
    is_json: bool,
    digits: Arc<Digits>,
}

impl Begun {
    fn matcher(self, masks: &SyncSender<MaskTask>) -> Matcher {
        let state = match self.matcher.get_error() {
            Some(error) => State::Failed(error),
            None => State::Here(Box::new(Text {
                matcher: self.matcher,
                place: self.is_json.then(Place::default),
                digits: self.digits,
            })),
        };
        Matcher {
            state,
            masks: masks.clone(),
        }
    }
}

/// What an answer was so far, to its grammar.
struct Text {
    matcher: llguidance::Matcher,
    /// Of an answer whose numbers are to end.
    place: Option<Place>,
    digits: Arc<Digits>,
}

impl Text {
    fn take(&mut self, token: u32) -> Result<(), String> {
        let taken = self.matcher.consume_token(token);
        taken.map_err(|error| first_line(&error))?;
        if let Some(place) = &mut self.place {
            let env = self.matcher.tok_env();
            let env = env.map_err(|error| first_line(&error))?;
            *place = place.after(env.tok_trie().token(token));
        }
        Ok(())
    }

    fn mask(&mut self) -> Result<SimpleVob, String> {
        let mask = self.matcher.compute_mask();
        let mask = mask.map_err(|error| first_line(&error))?;
        let left = self.place.and_then(Place::digits_left);
        match left.filter(|left| self.digits.concern(*left)) {
            Some(left) => self.end_number(mask, left),
            None => Ok(mask),
        }
    }

    /// Of `mask`, the tokens that write at most `left` digits more. Where digits must follow, those after
    /// which the number may end; where no single one leads there, all.
    fn end_number(&mut self, mask: SimpleVob, left: usize) -> Result<SimpleVob, String> {
        let mut kept = mask.clone();
        for token in mask.iter().filter(|token| self.digits.exceed(*token, left)) {
            kept.disallow_token(token);
        }
        if !kept.is_zero() {
            return Ok(kept);
        }
        for digit in self.digits.single() {
            if !mask.is_allowed(*digit) {
                continue;
            }
            for ender in self.digits.enders() {
                let valid = self.matcher.validate_tokens(&[*digit, *ender]);
                if valid.map_err(|error| first_line(&error))? == 2 {
                    kept.allow_token(*digit);
                    break;
                }
            }
        }
        Ok(if kept.is_zero() { mask } else { kept })
    }
}

struct MaskTask {
    text: Box<Text>,
    back: SyncSender<Made>,
}

/// A text that comes back with its mask.
type Made = (Box<Text>, Result<SimpleVob, String>);

/// Where one answer stands in its grammar.
pub struct Matcher {
    state: State,
    masks: SyncSender<MaskTask>,
}

enum State {
    Here(Box<Text>),
    /// Its next mask is being made.
    Away(Receiver<Made>),
    /// For good: nothing may be chosen any more.
    Failed(String),
}

impl Matcher {
    /// Takes a token of the answer. `Ok(true)`: the answer is complete and nothing can follow.
    pub fn accept(&mut self, token: Token) -> Result<bool, String> {
        let mut text = self.take()?;
        let taken = u32::try_from(token)
            .map_err(|_| format!("no token has the id {token}"))
            .and_then(|token| text.take(token));
        let matcher = &text.matcher;
        match taken {
            Ok(()) if matcher.is_stopped() && !matcher.stop_reason().is_ok() => {
                self.fail(format!("it stopped: {}", matcher.stop_reason()))
            }
            Ok(()) => {
                let is_over = matcher.is_stopped();
                self.state = State::Here(text);
                Ok(is_over)
            }
            Err(reason) => self.fail(reason),
        }
    }

    /// Begins the mask of the next token beside whatever the caller does until [`Matcher::forbid`].
    pub fn foresee(&mut self) {
        if !matches!(self.state, State::Here(_)) {
            return;
        }
        let (back, made) = sync_channel(1);
        let State::Here(text) = std::mem::replace(&mut self.state, State::Away(made)) else {
            return;
        };
        if let Err(error) = self.masks.try_send(MaskTask { text, back }) {
            let (std::sync::mpsc::TrySendError::Full(task)
            | std::sync::mpsc::TrySendError::Disconnected(task)) = error;
            self.state = State::Here(task.text);
        }
    }

    /// Takes every token that may not follow out of `logits`: sets them to negative infinity.
    pub fn forbid(&mut self, logits: &mut [f32]) -> Result<(), String> {
        let mask = match std::mem::replace(&mut self.state, State::Failed(String::new())) {
            State::Away(made) => match made.recv() {
                Ok((text, mask)) => {
                    self.state = State::Here(text);
                    mask
                }
                Err(_) => Err("its thread ended".to_owned()),
            },
            State::Here(mut text) => {
                let mask = text.mask();
                self.state = State::Here(text);
                mask
            }
            State::Failed(reason) => Err(reason),
        };
        match mask {
            Ok(mask) => {
                keep(&mask, logits);
                Ok(())
            }
            Err(reason) => self.fail(reason),
        }
    }

    fn take(&mut self) -> Result<Box<Text>, String> {
        match std::mem::replace(&mut self.state, State::Failed(String::new())) {
            State::Here(text) => Ok(text),
            State::Away(made) => match made.recv() {
                Ok((text, Ok(_))) => Ok(text),
                Ok((_, Err(reason))) => self.fail(reason),
                Err(_) => self.fail("its thread ended".to_owned()),
            },
            State::Failed(reason) => self.fail(reason),
        }
    }

    fn fail<T>(&mut self, reason: String) -> Result<T, String> {
        self.state = State::Failed(reason.clone());
        Err(reason)
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.state {
            State::Here(_) => "Matcher",
            State::Away(_) => "Matcher(away)",
            State::Failed(_) => "Matcher(failed)",
        })
    }
}

/// Leaves the logits of the tokens in `mask`. A vocabulary may be padded with rows that no token has: those
/// go as well.
fn keep(mask: &SimpleVob, logits: &mut [f32]) {
    let words = mask.as_slice();
    for (chunk, word) in logits.chunks_mut(32).zip(words) {
        match *word {
            u32::MAX => {}
            0 => chunk.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in chunk.iter_mut().enumerate() {
                    if word & (1 << bit) == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
    let covered = (words.len() * 32).min(logits.len());
    logits[covered..].fill(f32::NEG_INFINITY);
}

/// Of an error chain, without what was decoded so far and without a backtrace.
fn first_line(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
