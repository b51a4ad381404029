//! One job in the worker: what it has read, what it has made, what it has not yet sent.
//!
//! A waiting job has no sequence; an admitted one has the sequence whose number is its place in the
//! loop's table. Knows nothing of channels and never calls the decoder's memory.

use std::rc::Rc;
use std::time::{Duration, Instant};

use orinoco::frames::{
    Done, Finish, Job, JobError, JobKey, Leaves, Logprob, Parked, Piece, Timings, Token,
};

use crate::draft::Ask;
use crate::grammar::Matcher;
use crate::markers::Markers;
use crate::model::{Decoder, Row, SeqId};
use crate::sampling::{Logprobs, Sampler};
use crate::schedule::Want;
use crate::speculation::{Lookup, Luck};
use crate::text::TextOut;

/// A job and its state.
#[derive(Debug)]
pub struct Slot {
    /// Its name on the socketpair.
    pub job: JobKey,
    /// Its prompt is read before those of others.
    pub urgent: bool,
    /// It makes room for an urgent one.
    pub yields: bool,
    /// What is kept of it.
    pub leaves: Leaves,
    /// Turns of its conversation that found no room in the prompt.
    pub n_left_out: u32,
    /// Prompt, then everything made so far.
    tokens: Vec<Token>,
    n_prompt: usize,
    /// Tokens whose rows are in the cache.
    n_past: usize,
    /// Tokens that the answer may have, those of earlier workers counted.
    n_output_max: usize,
    ignore_eos: bool,
    /// Fewest tokens of the answer, and what may not be chosen before.
    n_output_min: u32,
    ends: Vec<Token>,
    sampler: Sampler,
    lookup: Lookup,
    luck: Luck,
    /// What may follow `tokens`; read along in the next batch and then forgotten.
    guess: Vec<Token>,
    /// Tokens that it may guess in this step.
    n_guess_max: usize,
    logprobs: Option<Logprobs>,
    /// Which tokens may follow; none where everything may.
    matcher: Option<Matcher>,
    /// Tokens at the prompt's end that another model's part of the answer became.
    n_head: usize,
    /// What some control tokens stand for in this answer.
    markers: Rc<Markers>,
    text: TextOut,
    unsent_ids: Vec<Token>,
    unsent_logprobs: Vec<Logprob>,
    unsent_text: String,
    pace: Duration,
    /// When its last piece left.
    spoke_at: Option<Instant>,
    timings: Timings,
    prefill_began: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

/// What became of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The answer goes on.
    More,
    /// It is over.
    Over(Finish),
}

impl Slot {
    /// A job with its prompt's ids; replays what earlier workers made. `Ok(Err)` when that already ends
    /// the answer.
    pub fn new(
        job: &Job,
        prompt: Vec<Token>,
        n_head: usize,
        markers: Rc<Markers>,
        decoder: &dyn Decoder,
    ) -> Result<(Self, Taken), JobError> {
        let limits = decoder.limits();
        let n_prompt = prompt.len();
        if n_prompt == 0 {
            return Err(JobError::Input("the prompt is empty".to_owned()));
        }
        if n_prompt >= limits.n_ctx_seq as usize {
            return Err(JobError::TooLong {
                n_prompt: n_prompt as u32,
                n_ctx_seq: limits.n_ctx_seq,
            });
        }
        let output = job.resume.as_ref().map_or(&[][..], |r| &r.output_ids);
        if let Some(id) = prompt
            .iter()
            .chain(output)
            .find(|id| **id < 0 || **id as u32 >= limits.n_vocab)
        {
            return Err(JobError::Input(format!(
                "token id {id} is not in the vocabulary of {} tokens",
                limits.n_vocab
            )));
        }
        let room = limits.n_ctx_seq as usize - n_prompt;
        let n_before = job.head.as_ref().map_or(0, |head| head.n_output);
        let n_output_max = match job.max_tokens as usize {
            0 => room,
            n => n.saturating_sub(n_before as usize).min(room),
        };
        let mut sampler = Sampler::new(job.sampling.clone());
        for token in &prompt {
            sampler.accept(*token);
        }
        let skip = job.resume.as_ref().map_or(0, |r| r.text_bytes);
        let mut slot = Self {
            job: job.job,
            urgent: job.urgent,
            yields: job.yields,
            leaves: job.leaves,
            n_left_out: 0,
            tokens: prompt,
            n_prompt,
            n_past: 0,
            n_output_max,
            ignore_eos: job.ignore_eos,
            n_output_min: job.min_tokens,
            ends: match job.min_tokens {
                0 => Vec::new(),
                _ => {
                    let vocabulary = 0..limits.n_vocab as Token;
                    vocabulary.filter(|token| decoder.is_eog(*token)).collect()
                }
            },
            sampler,
            lookup: Lookup::default(),
            luck: Luck::default(),
            guess: Vec::new(),
            n_guess_max: 0,
            logprobs: job.logprobs.map(|n_top| Logprobs::new(n_top.into())),
            matcher: None,
            n_head,
            markers,
            text: TextOut::new(&job.stop, skip),
            unsent_ids: Vec::new(),
            unsent_logprobs: Vec::new(),
            unsent_text: String::new(),
            pace: Duration::from_millis(job.pace_ms.into()),
            spoke_at: None,
            timings: Timings {
                n_prompt: n_prompt as u32,
                n_output: n_before + output.len() as u32,
                ..Timings::default()
            },
            prefill_began: None,
            first_token: None,
            last_token: None,
        };
        let mut taken = Taken::More;
        for id in output {
            taken = slot.append(*id, decoder, &mut Vec::new())?;
            if taken != Taken::More {
                break;
            }
        }
        Ok((slot, taken))
    }

    /// From now on only what `matcher` allows is chosen. It is shown what was made already.
    pub fn constrain(&mut self, mut matcher: Matcher) -> Result<Taken, JobError> {
        let mut is_over = false;
        for token in &self.tokens[self.n_prompt - self.n_head..] {
            is_over = matcher.accept(*token).map_err(no_match)?;
        }
        if is_over {
            return Ok(Taken::Over(Finish::Stop));
        }
        matcher.foresee();
        self.matcher = Some(matcher);
        Ok(Taken::More)
    }

    /// Nobody asked for it, and nobody is told.
    pub fn is_pinned(&self) -> bool {
        self.leaves == Leaves::Pinned
    }

    /// Ids of the prompt.
    pub fn prompt(&self) -> &[Token] {
        &self.tokens[..self.n_prompt]
    }

    /// Prompt and answer so far.
    pub fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Tokens in the cache.
    pub fn n_past(&self) -> usize {
        self.n_past
    }

    /// Most tokens that it may come to.
    pub fn n_reserved(&self) -> usize {
        self.n_prompt + self.n_output_max
    }

    /// The job has its sequence, with `n_cached` tokens already there.
    pub fn begin(&mut self, n_cached: usize) {
        self.n_past = n_cached;
        self.timings.n_cached = n_cached.min(self.n_prompt) as u32;
    }

    /// Tokens found in the cache at [`Slot::begin`].
    pub fn n_cached(&self) -> u32 {
        self.timings.n_cached
    }

    /// What it would put into the next batch. Prompt and delivered tokens never share a batch:
    /// recomputed in other shapes than they were made in, they would round differently.
    pub fn want(&self) -> Want {
        let end = if self.n_past < self.n_prompt {
            self.n_prompt
        } else {
            self.tokens.len()
        };
        Want {
            n_rows: end - self.n_past + self.guess.len(),
            n_past: self.n_past,
            decodes: self.tokens.len() - self.n_past == 1,
            urgent: self.urgent,
        }
    }

    /// Guesses at most `n_max` tokens to be read along in the next batch.
    pub fn guess(&mut self, n_max: usize) {
        self.guess.clear();
        // The last token of an answer needs no row.
        let n_left = self.n_output_max - (self.tokens.len() - self.n_prompt);
        let n_max = n_max.min(n_left.saturating_sub(1));
        // Under a grammar nothing is guessed: what repeats there, its matcher would often forbid.
        let may_guess = self.matcher.is_none() && n_max > 0 && self.want().decodes;
        self.n_guess_max = match may_guess && self.luck.allows() {
            true => n_max,
            false => 0,
        };
        if self.n_guess_max > 0 {
            self.lookup.guess(&self.tokens, n_max, &mut self.guess);
        }
    }

    /// What a draft model is asked, after [`Slot::guess`] found nothing in what was said.
    pub fn ask(&mut self, seq: SeqId) -> Option<Ask<'_>> {
        (self.n_guess_max > 0 && self.guess.is_empty()).then_some(Ask {
            seq,
            tokens: &self.tokens,
            n_max: self.n_guess_max,
            guess: &mut self.guess,
        })
    }

    /// What was guessed for the next batch.
    pub fn guessed(&self) -> &[Token] {
        &self.guess
    }

    /// Of the guess, the first `n_right` tokens were chosen.
    pub fn guess_told(&mut self, n_right: usize) {
        if !self.guess.is_empty() {
            self.timings.n_guessed += self.guess.len() as u32;
            self.timings.n_right += n_right as u32;
            self.luck.told(n_right);
            self.guess.clear();
        }
    }

    /// Appends its next `n` rows.
    pub fn rows(&self, seq: SeqId, n: usize, rows: &mut Vec<Row>) {
        for pos in self.n_past..self.n_past + n {
            rows.push(Row {
                seq,
                token: match pos.checked_sub(self.tokens.len()) {
                    None => self.tokens[pos],
                    Some(guessed) => self.guess[guessed],
                },
                pos: pos as u32,
                wants_logits: pos + 1 >= self.tokens.len(),
            });
        }
    }

    /// Its next `n` rows are about to be decoded.
    pub fn starts(&mut self, now: Instant) {
        self.prefill_began.get_or_insert(now);
    }

    /// Its next `n` rows are decoded; whether a token can be chosen.
    pub fn advance(&mut self, n: usize) -> bool {
        self.n_past += n;
        self.n_past == self.tokens.len()
    }

    /// Chooses the next token from its row of logits.
    pub fn choose(&mut self, logits: &mut [f32], now: Instant) -> Result<Token, JobError> {
        let index = (self.tokens.len() - self.n_prompt) as u64;
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.look(logits);
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.forbid(logits).map_err(no_match)?;
        }
        if self.timings.n_output < self.n_output_min && self.may_go_on(logits) {
            for token in &self.ends {
                logits[*token as usize] = f32::NEG_INFINITY;
            }
        }
        let token = self.sampler.sample(logits, index).ok_or_else(|| {
            JobError::Decode(
                "no token can be chosen: every logit is forbidden by logit_bias or not a number"
                    .to_owned(),
            )
        })?;
        if self.first_token.is_none() {
            self.first_token = Some(now);
            if let Some(began) = self.prefill_began {
                self.timings.prefill_ms = ms(began, now);
            }
        }
        self.last_token = Some(now);
        Ok(token)
    }

    /// Whether the grammar, if there is one, leaves anything but the end.
    fn may_go_on(&self, logits: &[f32]) -> bool {
        self.matcher.is_none()
            || (0..)
                .zip(logits)
                .any(|(token, logit)| *logit != f32::NEG_INFINITY && !self.ends.contains(&token))
    }

    /// Takes a chosen token into the answer. End-of-generation tokens are not part of it.
    pub fn take(
        &mut self,
        token: Token,
        decoder: &dyn Decoder,
        bytes: &mut Vec<u8>,
    ) -> Result<Taken, JobError> {
        if (self.matcher.is_some() || !self.ignore_eos) && decoder.is_eog(token) {
            return Ok(Taken::Over(Finish::Stop));
        }
        self.timings.n_output += 1;
        self.unsent_ids.push(token);
        if let Some(logprobs) = &mut self.logprobs {
            let piece = |token| {
                let mut bytes = Vec::new();
                decoder.piece(token, &mut bytes);
                bytes
            };
            self.unsent_logprobs.push(logprobs.of(token, piece));
        }
        self.append(token, decoder, bytes)
    }

    fn append(
        &mut self,
        token: Token,
        decoder: &dyn Decoder,
        bytes: &mut Vec<u8>,
    ) -> Result<Taken, JobError> {
        self.tokens.push(token);
        self.sampler.accept(token);
        bytes.clear();
        self.markers.piece(token, decoder, bytes);
        if self.text.push(bytes, &mut self.unsent_text) {
            return Ok(Taken::Over(Finish::Stop));
        }
        if let Some(matcher) = &mut self.matcher
            && matcher.accept(token).map_err(no_match)?
        {
            return Ok(Taken::Over(Finish::Stop));
        }
        if self.tokens.len() - self.n_prompt >= self.n_output_max {
            return Ok(Taken::Over(Finish::Length));
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.foresee();
        }
        Ok(Taken::More)
    }

    /// Whether it has something to say since the last piece, and its pace lets it.
    pub fn is_due(&self, now: Instant) -> bool {
        self.spoke_at.is_none_or(|at| now >= at + self.pace) && !self.is_silent()
    }

    fn is_silent(&self) -> bool {
        self.is_pinned() || (self.unsent_ids.is_empty() && self.unsent_text.is_empty())
    }

    /// What it has to say since the last piece, if anything, where another slot is due: a little early, so
    /// that all speak in the same frame.
    pub fn piece(&mut self, now: Instant) -> Option<Piece> {
        let is_early = self.spoke_at.is_some_and(|at| now < at + self.pace / 2);
        if is_early || self.is_silent() {
            return None;
        }
        // A piece without text (a character is not whole yet) holds nothing back.
        if !self.unsent_text.is_empty() {
            self.spoke_at = Some(now);
        }
        Some(Piece {
            job: self.job,
            ids: std::mem::take(&mut self.unsent_ids),
            logprobs: std::mem::take(&mut self.unsent_logprobs),
            text: std::mem::take(&mut self.unsent_text),
        })
    }

    /// Takes back a piece that could not be sent; the next one begins with it.
    pub fn unsend(&mut self, piece: Piece) {
        debug_assert!(self.is_silent());
        self.spoke_at = None;
        self.unsent_ids = piece.ids;
        self.unsent_logprobs = piece.logprobs;
        self.unsent_text = piece.text;
    }

    /// The last event of the job, with all that was not sent.
    pub fn done(mut self, end: Result<Finish, JobError>) -> Done {
        self.text.finish(&mut self.unsent_text);
        Done {
            job: self.job,
            end,
            timings: self.timings(),
            ids: self.unsent_ids,
            logprobs: self.unsent_logprobs,
            text: self.unsent_text,
        }
    }

    /// The job leaves for a while, with all that was not sent. What may be the begin of a stop string is made
    /// from the ids again when it comes back.
    pub fn parked(self) -> Parked {
        Parked {
            job: self.job,
            timings: self.timings(),
            ids: self.unsent_ids,
            logprobs: self.unsent_logprobs,
            text: self.unsent_text,
        }
    }

    fn timings(&self) -> Timings {
        let decode = self.first_token.zip(self.last_token);
        Timings {
            decode_ms: decode.map_or(0.0, |(first, last)| ms(first, last)),
            ..self.timings
        }
    }
}

fn no_match(reason: String) -> JobError {
    JobError::Constraint(reason)
}

fn ms(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}

/// The end of a job that never got so far as to have a slot.
pub fn refused(job: JobKey, error: JobError) -> Done {
    Done {
        job,
        end: Err(error),
        ids: Vec::new(),
        logprobs: Vec::new(),
        text: String::new(),
        timings: Timings::default(),
    }
}
