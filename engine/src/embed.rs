//! The loop of an embedding model: commands → pack → encode → answer, until drained or alone.
//!
//! Owns the texts that wait. Texts of several jobs share a batch, one of each in turn, so that a single
//! question does not wait for a catalogue that came before it. Nothing lasts longer than one batch, so there
//! is nothing to save and nothing to resume: a job that was lost with its worker is asked again.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};

use orinoco::frames::{
    Command, EmbedJob, Embedded, Event, JobError, JobKey, Loaded, TextError, Token,
};

use crate::model::{DecodeError, Encoder};

/// Answers jobs with `encoder` until [`Command::Drain`] is done or the commands' sender is gone. Sends
/// [`Event::Loaded`] first.
///
/// An answer waits for room in the events' channel: nothing else is left to do meanwhile.
pub fn run(
    encoder: &mut dyn Encoder,
    loaded: Loaded,
    commands: &Receiver<Command>,
    events: &SyncSender<Event>,
) {
    let mut run = Run {
        encoder,
        events,
        jobs: VecDeque::new(),
        draining: false,
    };
    let mut goes_on = events.send(Event::Loaded(Box::new(loaded))).is_ok();
    while goes_on {
        goes_on = run.turn(commands);
    }
}

struct Run<'a> {
    encoder: &'a mut dyn Encoder,
    events: &'a SyncSender<Event>,
    /// The next text is that of the first.
    jobs: VecDeque<Pending>,
    draining: bool,
}

/// A job with texts left, or not yet answered.
struct Pending {
    job: JobKey,
    /// Number and tokens of each text that waits.
    texts: VecDeque<(usize, Vec<Token>)>,
    /// All vectors, one after the other.
    vectors: Vec<f32>,
    n_open: usize,
    n_tokens: u32,
    n_truncated: u32,
}

impl Run<'_> {
    /// One turn of the loop; `false` when it is over.
    fn turn(&mut self, commands: &Receiver<Command>) -> bool {
        loop {
            let next = match self.jobs.is_empty() && !self.draining {
                true => commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => commands.try_recv(),
            };
            match next {
                Ok(command) => {
                    if !self.command(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        if self.jobs.is_empty() {
            return !self.draining;
        }
        self.step()
    }

    fn command(&mut self, command: Command) -> bool {
        match command {
            Command::Embed(job) => match self.read(&job) {
                Ok(pending) => {
                    self.jobs.push_back(pending);
                    true
                }
                Err(error) => self.say(job.job, Err(error)),
            },
            Command::Cancel(key) => {
                self.jobs.retain(|pending| pending.job != key);
                true
            }
            Command::Ping(n) => self.events.send(Event::Pong(n)).is_ok(),
            Command::Drain => {
                self.draining = true;
                true
            }
            Command::Trim | Command::Grow => true,
            // It is not named: a text belongs in no log.
            _ => {
                tracing::warn!("a command that has no place in an embedding worker is ignored");
                true
            }
        }
    }

    /// Tokenizes all texts of a job; the first that will not do ends it.
    fn read(&self, job: &EmbedJob) -> Result<Pending, TextError> {
        let shape = self.encoder.shape();
        let most = shape.n_tokens_max as usize;
        let mut pending = Pending {
            job: job.job,
            texts: VecDeque::with_capacity(job.texts.len()),
            vectors: vec![0.0; job.texts.len() * shape.n_dims as usize],
            n_open: job.texts.len(),
            n_tokens: 0,
            n_truncated: 0,
        };
        for (index, text) in job.texts.iter().enumerate() {
            let failed = |error| TextError {
                index: index as u32,
                error,
            };
            let tokens = self.encoder.tokenize(text);
            let mut tokens = tokens.map_err(|reason| failed(JobError::Input(reason)))?;
            if tokens.is_empty() {
                return Err(failed(JobError::Input("the text has no tokens".to_owned())));
            }
            if tokens.len() > most {
                if !job.truncate {
                    return Err(failed(JobError::TooLong {
                        n_prompt: tokens.len() as u32,
                        n_ctx_seq: shape.n_tokens_max,
                    }));
                }
                cut(&mut tokens, most);
                pending.n_truncated += 1;
            }
            pending.n_tokens += tokens.len() as u32;
            pending.texts.push_back((index, tokens));
        }
        Ok(pending)
    }

    /// One batch, and the answers that are whole with it.
    fn step(&mut self) -> bool {
        let batch = self.pack();
        if batch.is_empty() {
            return self.answer(); // of jobs without a text
        }
        let rows = Vec::from_iter(batch.iter().map(|(_, _, tokens)| tokens.as_slice()));
        match self.encoder.encode(&rows) {
            Ok(vectors) => self.take(&batch, &vectors),
            Err(DecodeError::Aborted) => return false,
            Err(error) => {
                tracing::warn!(%error, n_texts = batch.len(), "a batch failed; each text is tried alone");
                for one in batch.chunks(1) {
                    match self.encoder.encode(&[&one[0].2]) {
                        Ok(vectors) => self.take(one, &vectors),
                        Err(DecodeError::Aborted) => return false,
                        Err(error) => {
                            let (key, index, _) = &one[0];
                            self.jobs.retain(|pending| pending.job != *key);
                            let error = TextError {
                                index: *index as u32,
                                error: JobError::Decode(error.to_string()),
                            };
                            if !self.say(*key, Err(error)) {
                                return false;
                            }
                        }
                    }
                }
            }
        }
        self.answer()
    }

    /// Texts of the jobs in turn, as many as one batch takes; at least one.
    fn pack(&mut self) -> Vec<(JobKey, usize, Vec<Token>)> {
        let shape = self.encoder.shape();
        let (mut batch, mut n_tokens) = (Vec::new(), 0);
        let mut n_passed = 0;
        while batch.len() < shape.n_seq_max as usize && n_passed < self.jobs.len() {
            let Some(mut pending) = self.jobs.pop_front() else {
                break;
            };
            let next = pending.texts.front().map(|(_, tokens)| tokens.len());
            match next {
                Some(n) if n_tokens + n <= shape.n_batch as usize => {
                    n_tokens += n;
                    n_passed = 0;
                    if let Some((index, tokens)) = pending.texts.pop_front() {
                        batch.push((pending.job, index, tokens));
                    }
                }
                _ => n_passed += 1,
            }
            self.jobs.push_back(pending);
        }
        batch
    }

    fn take(&mut self, batch: &[(JobKey, usize, Vec<Token>)], vectors: &[f32]) {
        let n_dims = self.encoder.shape().n_dims as usize;
        for ((key, index, _), vector) in batch.iter().zip(vectors.chunks(n_dims)) {
            // A job that was called off meanwhile is gone.
            if let Some(pending) = self.jobs.iter_mut().find(|pending| pending.job == *key) {
                let own = &mut pending.vectors[index * n_dims..][..n_dims];
                own.copy_from_slice(vector);
                normalise(own);
                pending.n_open -= 1;
            }
        }
    }

    /// Answers the jobs that are whole. `false` when nobody listens any more.
    fn answer(&mut self) -> bool {
        let n_dims = self.encoder.shape().n_dims;
        while let Some(at) = self.jobs.iter().position(|pending| pending.n_open == 0) {
            let Some(pending) = self.jobs.remove(at) else {
                break;
            };
            let embedded = Embedded {
                n_dims,
                vectors: pending.vectors,
                n_tokens: pending.n_tokens,
                n_truncated: pending.n_truncated,
            };
            if !self.say(pending.job, Ok(embedded)) {
                return false;
            }
        }
        true
    }

    fn say(&self, job: JobKey, outcome: Result<Embedded, TextError>) -> bool {
        let outcome = Box::new(outcome);
        self.events.send(Event::Embedded { job, outcome }).is_ok()
    }
}

/// The first `most` tokens; the last of them is the text's last, which marks its end in BERT.
fn cut(tokens: &mut Vec<Token>, most: usize) {
    if let (Some(last), Some(end)) = (tokens.last().copied(), most.checked_sub(1)) {
        tokens.truncate(end);
        tokens.push(last);
    }
}

/// Gives it the length 1; a vector of nothing stays what it is.
fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let length = square.sqrt();
    if length > 0.0 && length.is_finite() {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::scripted::{ScriptedEncoder, load_spec};

    fn job(key: u64, texts: &[&str]) -> Command {
        Command::Embed(Box::new(EmbedJob {
            job: JobKey(key),
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
            truncate: false,
        }))
    }

    /// The answers to commands that were there before the loop began, in their order.
    fn play(commands: Vec<Command>) -> Vec<(JobKey, Result<Embedded, TextError>)> {
        let (to, from) = sync_channel(100);
        let (events, told) = sync_channel(100);
        for command in commands.into_iter().chain([Command::Drain]) {
            to.send(command).unwrap();
        }
        let mut encoder = ScriptedEncoder::new(&load_spec());
        let loaded = encoder.loaded(&load_spec());
        run(&mut encoder, loaded, &from, &events);
        drop(events);
        let answers = told.into_iter().filter_map(|event| match event {
            Event::Embedded { job, outcome } => Some((job, *outcome)),
            _ => None,
        });
        answers.collect()
    }

    #[test]
    fn vectors_come_in_the_order_of_the_texts_and_have_the_length_one() {
        let texts = ["b", "a", "abc", "a"];
        let answers = play(vec![job(1, &texts), job(2, &["abc"])]);
        let whole = answers.iter().find(|(key, _)| *key == JobKey(1)).unwrap();
        let embedded = whole.1.as_ref().unwrap();
        let vectors = Vec::from_iter(embedded.vectors.chunks(embedded.n_dims as usize));
        assert_eq!(vectors.len(), 4);
        assert_eq!(vectors[1], vectors[3]);
        assert_ne!(vectors[0], vectors[1]);
        for vector in &vectors {
            let length: f32 = vector.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-6, "{length}");
        }
        let alone = answers.iter().find(|(key, _)| *key == JobKey(2)).unwrap();
        assert_eq!(alone.1.as_ref().unwrap().vectors, vectors[2]);
        assert_eq!(embedded.n_tokens, 3 + 3 + 5 + 3);
    }

    #[test]
    fn a_single_question_does_not_wait_for_a_catalogue() {
        let catalogue = Vec::from_iter((0..100).map(|n| format!("entry {n}")));
        let texts = Vec::from_iter(catalogue.iter().map(String::as_str));
        let answers = play(vec![job(1, &texts), job(2, &["question"])]);
        assert_eq!(answers[0].0, JobKey(2));
        assert_eq!(answers[1].0, JobKey(1));
        assert_eq!(answers.len(), 2);
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_by_number_or_cut_where_that_is_asked() {
        let long = "x".repeat(1000);
        let texts = ["short", &long];
        let answers = play(vec![job(1, &texts), job(2, &["short"])]);
        let refused = answers[0].1.as_ref().unwrap_err();
        assert_eq!(refused.index, 1);
        assert!(
            matches!(
                refused.error,
                JobError::TooLong {
                    n_prompt: 1002,
                    n_ctx_seq: 256
                }
            ),
            "{refused:?}"
        );
        assert!(answers[1].1.is_ok(), "the other job does not suffer");
        let cut = Command::Embed(Box::new(EmbedJob {
            job: JobKey(3),
            texts: vec![long],
            truncate: true,
        }));
        let cut = play(vec![cut]).remove(0).1.unwrap();
        assert_eq!((cut.n_truncated, cut.n_tokens), (1, 256));
    }

    #[test]
    fn what_is_called_off_is_not_answered() {
        let commands = vec![job(1, &["a"]), Command::Cancel(JobKey(1)), job(2, &["b"])];
        let answers = play(commands);
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].0, JobKey(2));
    }

    #[test]
    fn the_end_mark_outlives_a_cut() {
        let mut tokens = vec![101, 5, 6, 7, 8, 102];
        cut(&mut tokens, 4);
        assert_eq!(tokens, [101, 5, 6, 102]);
    }
}
