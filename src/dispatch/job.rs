//! One accepted prompt, from its record in the store to its final.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tokio::time::Instant;

use super::calls::{self, Calls, Sought};
use super::conversation::Conversation;
use super::energy::Spent;
use super::logprobs::Logprobs;
use super::output::Output;
use super::queue::Order;
use crate::frames::{
    self, Finish, Head, JobKey, Leaves, Logprob, Resume, Timings, Token, ToolSyntax,
};
use crate::link::{AckToken, Props, Publish};
use crate::models::release::Runtime;
use crate::wire::error::ApiError;
use crate::wire::reply::{self, Accepted, End, Form, Outgoing, Parked, Part, Replier};
use crate::wire::request::{Priority, Request};
use crate::wire::tools;
use crate::wire::topic::{Name, Op, RequestId};

/// Who asked, and where and how the answer goes.
#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) user: Name,
    pub(super) id: RequestId,
    pub(super) topic: String,
    pub(super) correlation: Option<Bytes>,
}

impl Address {
    /// The packet for one reply.
    pub(super) fn publish(&self, node: &Name, reply: Outgoing, token: Option<u64>) -> Publish {
        let mut user = Vec::with_capacity(4);
        if let Some(seq) = reply.seq {
            user.push(("seq".to_owned(), seq.to_string()));
        }
        user.push(("node".to_owned(), node.to_string()));
        if let Some(status) = reply.status {
            user.push(("status".to_owned(), status.to_string()));
        }
        if reply.is_final {
            user.push(("final".to_owned(), "1".to_owned()));
        }
        Publish {
            topic: self.topic.clone(),
            payload: reply.payload,
            at_least_once: true,
            retain: false,
            props: Props {
                response_topic: None,
                correlation: self.correlation.clone(),
                content_type: Some(reply.content_type.to_owned()),
                message_expiry_s: Some(reply::EXPIRY_SECONDS),
                user,
                payload_utf8: true,
            },
            token,
        }
    }
}

/// How a job ended.
#[derive(Debug)]
pub(super) enum Ending {
    Finished(Finish, Timings),
    Failed(ApiError),
}

/// Where a job stands besides its place in the queue.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Phase {
    /// Waiting, or in the worker.
    Open,
    /// Over; its last chunks leave, then its final is written to the store.
    Ended,
    /// The store writes its final.
    Storing,
}

/// A wish to stop a job that is in the worker.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum Cancel {
    No,
    /// To be handed to the worker at the next turn.
    Wanted,
    /// The worker was told; its `Done` is awaited.
    Sent,
    /// It is to leave the worker for a while; to be handed to the worker at the next turn.
    ParkWanted,
    /// The worker was told; its `Parked` is awaited.
    ParkSent,
}

#[derive(Debug)]
pub(super) struct Job {
    pub(super) key: JobKey,
    pub(super) address: Address,
    pub(super) digest: [u8; 32],
    pub(super) body_bytes: usize,
    pub(super) replier: Replier,
    pub(super) request: Request,
    /// The model that it waits for; `None`: the one that is chosen.
    pub(super) model: Option<String>,
    pub(super) sampling: frames::Sampling,
    /// Its part in a conversation that the node keeps.
    pub(super) conversation: Option<Conversation>,
    /// The record is on disk; nothing is said to the requester before.
    pub(super) committed: bool,
    /// The packets to acknowledge once it is: the first, and repeats that were quicker than the disk.
    pub(super) acks: Vec<AckToken>,
    pub(super) arrived: Instant,
    /// Order of acceptance.
    pub(super) order: Order,
    /// When its answer is worthless.
    pub(super) deadline: Option<Instant>,
    /// Its requester is still to be told of this place in the queue.
    pub(super) place: Option<Accepted>,
    /// Jobs before it, as its requester was last told.
    pub(super) told_queue: Option<usize>,
    /// When it first entered a worker.
    pub(super) began: Option<Instant>,
    /// Times and guesses of the stays in workers that it left before its end.
    pub(super) stays: Timings,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
    pub(super) output: Output,
    /// Of a request with tools, once a model serves it.
    pub(super) calls: Option<Calls>,
    /// Its place in the queue, which it takes once its grammar is found good.
    pub(super) unchecked: Option<Order>,
    /// Ids for another worker, should this one die.
    pub(super) prompt_ids: Vec<Token>,
    pub(super) output_ids: Vec<Token>,
    /// How probable tokens were, where that was asked.
    pub(super) logprobs: Logprobs,
    pub(super) n_cached: u32,
    /// Model whose ids these are.
    pub(super) ids_of: String,
    /// Text and tokens by models before that one.
    pub(super) head: Option<Head>,
    /// Who wrote what, before `ids_of`.
    pub(super) parts: Vec<Part>,
    /// Tokens of the prompt alone.
    pub(super) n_prompt: u32,
    /// Times that another worker took over.
    pub(super) resumed: u32,
    /// Of the module's energy.
    pub(super) spent: Spent,
    pub(super) phase: Phase,
    pub(super) ending: Option<Ending>,
    /// Whether the requester, or we, want it stopped in the worker.
    pub(super) cancel: Cancel,
    /// A context of so many tokens was too small, and a larger one is to come.
    pub(super) outgrown: Option<u32>,
    /// It waits for a model that is being loaded, and its requester is still to be told.
    pub(super) parked: Option<Parked>,
}

/// How often the worker hands over what it has made of an answer that is sent whole: only a worker that dies
/// makes anybody need it earlier.
const SILENT_PACE_MS: u32 = 250;

impl Job {
    /// What the worker gets: the prompt, or where another worker left off.
    ///
    /// `runtime`: what the publisher of the serving model says where the request says nothing.
    pub(super) fn command(&self, runtime: Option<&Runtime>) -> frames::Job {
        let asked = &self.request.sampling;
        let (mut sampling, mut stop) = (self.sampling.clone(), self.request.stop.clone());
        if let Some(runtime) = runtime {
            let suits = &runtime.sampling;
            sampling.temperature = asked
                .temperature
                .or(suits.temperature)
                .unwrap_or(sampling.temperature);
            sampling.top_k = asked.top_k.or(suits.top_k).unwrap_or(sampling.top_k);
            sampling.top_p = asked.top_p.or(suits.top_p).unwrap_or(sampling.top_p);
            sampling.min_p = asked.min_p.or(suits.min_p).unwrap_or(sampling.min_p);
            sampling.repeat_penalty = asked
                .repeat_penalty
                .or(suits.repeat_penalty)
                .unwrap_or(sampling.repeat_penalty);
            // A text that ends answers in general must not cut one that has a form.
            let is_free = self.constraint().is_none();
            stop.extend(
                runtime
                    .stop
                    .iter()
                    .filter(|text| is_free && !self.request.stop.contains(text))
                    .cloned(),
            );
        }
        let resume = (!self.prompt_ids.is_empty()).then(|| Resume {
            prompt_ids: self.prompt_ids.clone(),
            output_ids: self.output_ids.clone(),
            text_bytes: (self.output.text().len() - self.head_bytes()) as u64,
        });
        let (input, turns) = match &self.conversation {
            Some(conversation) => conversation.continued(&self.request.input),
            None => (self.request.input.clone(), Vec::new()),
        };
        frames::Job {
            job: self.key,
            input,
            sampling,
            stop,
            max_tokens: self.request.max_tokens.unwrap_or(0),
            min_tokens: self.request.min_tokens,
            ignore_eos: self.request.ignore_eos,
            // Of calls the text is told otherwise than it was made: no token has a place in it.
            logprobs: (self.request.logprobs).filter(|_| self.request.tools.is_none()),
            constraint: self.constraint(),
            pace_ms: if self.streams() {
                self.output.coalesce().as_millis() as u32
            } else {
                SILENT_PACE_MS
            },
            resume,
            head: self.head.clone(),
            turns,
            leaves: match &self.request.session {
                Some(session) => Leaves::Session(number_of(&self.address.user, session)),
                None => Leaves::Usual,
            },
            urgent: self.priority() == Priority::Alarm,
            yields: self.priority() == Priority::Batch,
        }
    }

    /// What the whole answer has to be.
    fn constraint(&self) -> Option<frames::Constraint> {
        match (&self.request.tools, &self.calls) {
            (Some(tools), Some(calls)) => tools::call(tools, calls.sought().syntax),
            _ => self.request.constraint.clone(),
        }
    }

    /// What is to be judged before a model is asked: the form of the answer, or the arguments of each tool.
    pub(super) fn to_check(&self) -> Vec<frames::Constraint> {
        match (&self.request.tools, &self.request.constraint) {
            (Some(tools), _) if tools.choice != tools::Choice::Auto => tools::schemas(tools),
            (_, constraint) => constraint.iter().cloned().collect(),
        }
    }

    /// Calls are written in the syntax of the first model that serves it, also when another goes on.
    pub(super) fn speak(&mut self, syntax: ToolSyntax) {
        if let (Some(tools), None) = (&self.request.tools, &self.calls) {
            self.calls = Some(Calls::new(Sought::of(tools, syntax)));
        }
    }

    /// The model that serves now is this one. Where it is another than before, what was made goes on as text;
    /// ids whose text was still held back are made again.
    pub(super) fn served_by(&mut self, model: &str) {
        if self.ids_of == model {
            return;
        }
        let before = std::mem::replace(&mut self.ids_of, model.to_owned());
        self.prompt_ids.clear();
        let ids = std::mem::take(&mut self.output_ids);
        let text = self.output.text();
        self.logprobs.rewind(text.len());
        let written = text.len() - self.head_bytes();
        if written == 0 {
            return;
        }
        self.parts.push(Part {
            model: before,
            text_bytes: written as u64,
        });
        let n_before = self.head.as_ref().map_or(0, |head| head.n_output);
        self.head = Some(Head {
            text: text.to_owned(),
            n_output: n_before + ids.len() as u32,
        });
    }

    fn head_bytes(&self) -> usize {
        self.head.as_ref().map_or(0, |head| head.text.len())
    }

    /// Who wrote what, up to now.
    fn parts(&self) -> Vec<Part> {
        let mut parts = self.parts.clone();
        let text_bytes = (self.output.text().len() - self.head_bytes()) as u64;
        if text_bytes > 0 {
            let model = self.ids_of.clone();
            parts.push(Part { model, text_bytes });
        }
        parts
    }

    /// New ids and text; ignored once the job has ended.
    pub(super) fn receive(
        &mut self,
        ids: &[Token],
        logprobs: Vec<Logprob>,
        text: &str,
        now: Instant,
    ) {
        if self.phase != Phase::Open {
            return; // It ended on our side; the worker did not know yet.
        }
        if !ids.is_empty() {
            self.first_token.get_or_insert(now);
        }
        self.output_ids.extend_from_slice(ids);
        self.logprobs.receive(logprobs);
        match &mut self.calls {
            None => self.output.push(text, now),
            Some(calls) => {
                self.output.keep(text);
                if let Some(held) = calls.read(text) {
                    self.output.release(self.output.text().len() - held, now);
                }
            }
        }
    }

    /// It left the worker and goes on later from its last piece.
    pub(super) fn pause(&mut self) {
        self.cancel = Cancel::No;
        self.resumed += u32::from(!self.prompt_ids.is_empty());
    }

    /// Whether it is on its way out of the worker, which is still to say how far it came.
    pub(super) fn is_leaving(&self) -> bool {
        self.cancel == Cancel::ParkSent
    }

    /// Whether it cannot enter the worker now, whatever room there is.
    pub(super) fn must_wait(&self) -> bool {
        self.is_leaving() || self.waits_for_turn()
    }

    /// A stay in the worker is over, and the job is not.
    pub(super) fn spent_in(&mut self, stay: Timings) {
        self.stays = self.timings_with(stay);
    }

    /// Those of the last stay, with the times of all before it.
    pub(super) fn timings_with(&self, last: Timings) -> Timings {
        Timings {
            prefill_ms: self.stays.prefill_ms + last.prefill_ms,
            decode_ms: self.stays.decode_ms + last.decode_ms,
            n_guessed: self.stays.n_guessed + last.n_guessed,
            n_right: self.stays.n_right + last.n_right,
            ..last
        }
    }

    /// Its class.
    pub(super) fn priority(&self) -> Priority {
        self.request.priority.unwrap_or_default()
    }

    /// Whether a worker has begun it.
    pub(super) fn has_begun(&self) -> bool {
        !self.prompt_ids.is_empty() || self.head.is_some()
    }

    /// Whether `done` ended it for want of context, with tokens left to make.
    pub(super) fn is_cut_short(&self, done: &frames::Done, n_ctx_seq: u32) -> bool {
        match &done.end {
            Err(frames::JobError::TooLong { .. }) => true,
            Ok(Finish::Length) => {
                let ids = [&self.prompt_ids, &self.output_ids, &done.ids];
                let n_used: usize = ids.iter().map(|ids| ids.len()).sum();
                let n_max = self.request.max_tokens.unwrap_or(0);
                n_used as u64 >= u64::from(n_ctx_seq)
                    && (n_max == 0 || done.timings.n_output < n_max)
            }
            _ => false,
        }
    }

    /// The job is over; what is unsent leaves first.
    pub(super) fn end(&mut self, ending: Ending) {
        if self.phase == Phase::Open {
            self.phase = Phase::Ended;
            self.ending = Some(ending);
            // News of a pause or of the queue is none any more.
            (self.parked, self.place) = (None, None);
            if self.calls.as_mut().is_some_and(Calls::end) {
                self.output
                    .release(self.output.text().len(), Instant::now());
            }
            self.output.end();
        }
    }

    /// Whether text goes out while it is made.
    pub(super) fn streams(&self) -> bool {
        matches!(self.replier.form, Form::Chunks | Form::TextStream)
    }

    /// seq 0: accepted. `None` for forms that have no such message.
    pub(super) fn accepted(&mut self, place: &Accepted) -> Option<Outgoing> {
        self.told_queue = Some(place.queue);
        self.replier.accepted(place)
    }

    /// Whether its answer begins with that.
    pub(super) fn has_accepted(&self) -> bool {
        !self.replier.form.is_bare()
    }

    /// Whether its answer has a place for news of the queue.
    pub(super) fn hears_places(&self) -> bool {
        self.replier.form == Form::Chunks
    }

    /// The next chunk that is due, if its time has come.
    pub(super) fn chunk_due(&self, now: Instant) -> Option<Outgoing> {
        if !self.committed || !self.streams() {
            return None;
        }
        let seq = self.output.n_chunks() + 1;
        match (self.output.due(), &self.parked, &self.place) {
            (None, Some(parked), _) => self.replier.parked(seq, parked),
            (None, None, Some(place)) => self.replier.moved(seq, place),
            (due, _, _) if due? <= now => {
                let cut = self.output.chunk();
                match &self.calls {
                    None => {
                        let logprobs = self.logprobs.due(self.output.chunk_end());
                        self.replier.piece_with(seq, cut, logprobs)
                    }
                    Some(calls) => {
                        Some(calls.chunk(&self.replier, seq, cut, self.output.is_last()))
                    }
                }
            }
            _ => None,
        }
    }

    /// What [`Self::chunk_due`] gave has left.
    pub(super) fn chunk_sent(&mut self, now: Instant) {
        self.logprobs.told(self.output.chunk_end());
        match self.output.due() {
            Some(_) => {
                if let Some(calls) = &mut self.calls {
                    calls.sent(self.output.chunk());
                }
                self.output.sent(now);
            }
            None => {
                if self.parked.take().is_none() {
                    self.place = None;
                }
                self.output.sent_empty();
            }
        }
    }

    /// The worker it was in makes room; its stream goes on in the next one.
    pub(super) fn park(&mut self, parked: Parked) {
        if self.phase == Phase::Open && self.replier.form == Form::Chunks {
            self.parked = Some(parked);
        }
    }

    /// When [`Self::chunk_due`] will have something.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.committed && self.streams() {
            self.output.due()
        } else {
            None
        }
    }

    /// Everything but the final has left.
    pub(super) fn ready_for_final(&self) -> bool {
        self.phase == Phase::Ended
            && self.committed
            && (!self.streams() || self.output.unsent_bytes() == 0)
    }

    /// The final message of an ended job.
    pub(super) fn final_reply(
        &self,
        now: Instant,
        text_bytes_max: usize,
        session: Option<&reply::Session>,
    ) -> Outgoing {
        let seq = self.output.n_chunks() + 1;
        match self.ending.as_ref().expect("only called on an ended job") {
            Ending::Failed(error) => self.replier.error(seq, error),
            Ending::Finished(finish, timings) => {
                let whole = self.output.text();
                let answer = self.calls.as_ref().map(|calls| calls.answer(whole));
                let text = answer.as_ref().map_or(whole, |answer| &answer.content);
                let kept = match self.replier.form {
                    Form::Text => crate::wire::reply::cut(text, text_bytes_max),
                    _ => text,
                };
                let mut timings = *timings;
                timings.n_cached = self.n_cached;
                timings.n_prompt = self.n_prompt;
                self.replier.end(
                    seq,
                    &End {
                        finish: *finish,
                        text: kept.to_owned(),
                        timings,
                        ttft_ms: millis(self.first_token.unwrap_or(now) - self.arrived),
                        total_ms: millis(now - self.arrived),
                        n_chunks: self.output.n_chunks(),
                        resumed: self.resumed,
                        parts: self.parts(),
                        energy_j: self.spent.joules(),
                        session: session.cloned(),
                        logprobs: self.logprobs.until(text.len()).to_vec(),
                        include_text: self.request.include_text,
                        text_sha256: sha2::Sha256::digest(text).into(),
                        truncated: kept.len() < text.len(),
                        calls: answer.map(|answer| answer.calls).unwrap_or_default(),
                    },
                )
            }
        }
    }
}

/// The same name of two users is two conversations. What is saved on disk has this number, so it is the same in
/// every version.
pub(super) fn number_of(user: &Name, session: &str) -> u64 {
    // A name has no slash.
    let digest = sha2::Sha256::digest(format!("{user}/{session}"));
    let (number, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*number)
}

fn millis(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What is kept with a final, to send all messages of a job again, byte for byte.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Replay {
    op: Op,
    form: Form,
    model: String,
    node: Name,
    created_s: u64,
    attempt: u32,
    text: String,
    cuts: Vec<u32>,
    /// Of each chunk, where any had some. Kept behind the rest, which older versions wrote alone.
    #[serde(skip)]
    logprobs: Vec<Vec<Logprob>>,
    /// How its calls were found. Kept behind the logprobs.
    #[serde(skip)]
    calls: Option<Sought>,
}

impl Replay {
    /// Forms without chunks repeat their final alone.
    pub(super) fn of(job: &Job) -> Self {
        let replier = &job.replier;
        let (text, cuts) = match job.streams() {
            true => (job.output.text().to_owned(), job.output.cuts().to_vec()),
            false => (String::new(), Vec::new()),
        };
        Self {
            op: replier.op,
            form: replier.form,
            model: replier.model.clone(),
            node: replier.node.clone(),
            created_s: replier.created_s,
            attempt: replier.attempt,
            text,
            cuts,
            logprobs: job.logprobs.by_chunk(),
            calls: job.calls.as_ref().map(|calls| calls.sought().clone()),
        }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut bytes = postcard::to_stdvec(self).expect("strings and integers always encode");
        if !self.logprobs.is_empty() || self.calls.is_some() {
            bytes = postcard::to_extend(&self.logprobs, bytes).expect("so do numbers");
        }
        if let Some(calls) = &self.calls {
            bytes = postcard::to_extend(calls, bytes).expect("so do names");
        }
        bytes.into()
    }

    /// `accepted` and the chunks, as they were sent the first time. `None` when the bytes are not ours.
    pub(super) fn messages(bytes: &[u8], id: &RequestId) -> Option<Vec<Outgoing>> {
        let (replay, rest): (Self, _) = postcard::take_from_bytes(bytes).ok()?;
        let (logprobs, rest): (Vec<Vec<Logprob>>, _) = match rest {
            [] => (Vec::new(), rest),
            rest => postcard::take_from_bytes(rest).ok()?,
        };
        let calls: Option<Sought> = match rest {
            [] => None,
            rest => Some(postcard::from_bytes(rest).ok()?),
        };
        let replier = Replier {
            form: replay.form,
            op: replay.op,
            id: id.clone(),
            model: replay.model,
            node: replay.node,
            created_s: replay.created_s,
            attempt: replay.attempt,
        };
        let mut messages: Vec<_> = replier.accepted(&Accepted::default()).into_iter().collect();
        if let Some(sought) = &calls {
            messages.extend(calls::replayed(
                sought,
                &replier,
                &replay.text,
                &replay.cuts,
            )?);
            return Some(messages);
        }
        let mut start = 0;
        for (n, end) in replay.cuts.iter().enumerate() {
            let end = *end as usize;
            let logprobs = logprobs.get(n).map_or(&[][..], Vec::as_slice);
            let text = replay.text.get(start..end)?;
            messages.extend(replier.piece_with(n as u64 + 1, text, logprobs));
            start = end;
        }
        Some(messages)
    }
}
