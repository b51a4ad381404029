//! The dispatcher's side of the worker: what it is given, and what becomes of what it says.
//!
//! Part of the dispatcher's one task: it changes the dispatcher's state and waits for nothing. Which job goes
//! next and which makes room is `queue`'s to say; that the worker hears it in this order is kept here: what is
//! to stop, then who is to make room, then who enters.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::govern::Straits;
use super::job::{Cancel, Ending, Job, Phase};
use super::queue::{self, Verdict, Why};
use super::turns::Gate;
use super::{Dispatch, govern};
use crate::frames::{
    self, Command, Constraint, Done, Event, Finish, JobError, JobKey, Leaves, Logprob, Parked,
    Piece, Timings, Token,
};
use crate::governor::Notice;
use crate::pressure::Level;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply;
use crate::wire::request::{self, Defaults};
use crate::worker::{Cause, Report};

/// Beginnings that are read before anybody asks, at most; the worker has room for more commands.
const PINNED_MAX: usize = 32;
/// What a stream is told of its pause for another while nothing was measured.
const PAUSE_GUESS: Duration = Duration::from_secs(1);

impl Dispatch {
    pub(super) fn on_report(&mut self, report: Report) {
        self.node.on_report(&report);
        match report {
            Report::Loading { .. } => {}
            Report::Serving {
                commands, loaded, ..
            } => {
                self.commands = commands;
                self.on_turn(&loaded.name, Duration::from_millis(loaded.load_ms));
                self.meters.on_next_worker();
                if self.level >= Level::Trim {
                    let _ = self.commands.try_send(Command::Trim); // its queue is empty
                }
                if !self.small_context {
                    self.n_ctx_full = loaded.n_ctx_seq;
                }
                self.pin_prompts();
                self.notice(Notice::Serving(govern::serving(&loaded)));
            }
            Report::SwitchFailed { name, reason } => {
                self.notice(Notice::SwitchFailed { name, reason });
            }
            Report::Resting { models, bytes } => self.on_resting(models, bytes),
            Report::Trying { name } => self.notice(Notice::Trying(name)),
            Report::Tried { name, end } => {
                // The one that follows serves at once.
                self.parks_until = None;
                self.notice(Notice::Tried { name, end });
            }
            Report::Event(Event::Started {
                job,
                prompt_ids,
                n_cached,
                n_left_out,
            }) => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    if job.n_prompt == 0 {
                        job.n_prompt = prompt_ids.len() as u32;
                        let user = &job.address.user;
                        let limits = self.settings.user(user).limits;
                        let n_tokens = prompt_ids.len() as u64;
                        let now = Instant::now().into_std();
                        self.quotas.read(user, &limits, n_tokens, now);
                        self.meters.n_prompt += prompt_ids.len() as u64;
                        self.meters.n_cached += u64::from(n_cached);
                        // What it finds of its own when it comes back is not told as found.
                        job.n_cached = n_cached;
                    }
                    if job.prompt_ids.is_empty()
                        && let Some(conversation) = &mut job.conversation
                    {
                        conversation.n_left_out = n_left_out;
                    }
                    job.prompt_ids = prompt_ids;
                }
            }
            Report::Event(Event::Step { pieces, .. }) => self.on_pieces(pieces),
            Report::Event(Event::Done(done)) => self.on_done(*done),
            Report::Event(Event::Parked(parked)) => self.on_parked(*parked),
            Report::Event(Event::Cached { bytes }) => self.notice(Notice::Cached(bytes)),
            Report::Event(Event::OnDisk(now)) => self.meters.on_disk(now),
            Report::Event(Event::Tokenized { job, ids }) => self.on_tokenized(job, ids),
            Report::Event(event) => debug!(?event, "unexpected event"),
            Report::Down(down) => {
                self.notice(Notice::NotServing);
                self.on_worker_down(&down);
                if down.cause == Cause::Idle {
                    self.turn_is_free();
                }
                self.leave_hopeless_guest();
            }
        }
    }

    /// Has the worker read what many prompts begin with before anybody asks. These are not jobs of the queue: nobody
    /// hears of them, and they give way to whatever comes.
    pub(super) fn pin_prompts(&mut self) {
        let mut beginnings = self.settings.beginnings();
        beginnings.truncate(PINNED_MAX);
        let is_told = beginnings.iter().any(|(_, form)| form.is_some());
        if self.forms_seen && !is_told {
            // Who asked for one will ask for more.
            let any = Constraint::JsonSchema("{}".to_owned());
            beginnings.push((request::beginning(""), Some(any)));
        }
        for (input, constraint) in beginnings {
            let job = frames::Job {
                job: self.new_key(),
                input,
                sampling: Defaults::default().sampling,
                stop: Vec::new(),
                max_tokens: 1,
                min_tokens: 0,
                ignore_eos: false,
                logprobs: None,
                constraint,
                pace_ms: 0,
                resume: None,
                head: None,
                turns: Vec::new(),
                leaves: Leaves::Pinned,
                urgent: false,
                yields: false,
            };
            // A worker that takes nothing more now reads it when it is asked for.
            let _ = self.commands.try_send(Command::Submit(Box::new(job)));
        }
    }

    fn on_pieces(&mut self, pieces: Vec<Piece>) {
        let now = Instant::now();
        let n_tokens: usize = pieces.iter().map(|piece| piece.ids.len()).sum();
        self.meters.step(n_tokens as u64, now);
        for piece in pieces {
            let Some(job) = self.jobs.get_mut(&piece.job) else {
                continue;
            };
            if !piece.ids.is_empty() {
                match job.last_token.replace(now) {
                    None => self.meters.first_token(now - job.arrived),
                    Some(last) => self.meters.next_tokens(piece.ids.len(), now - last),
                }
            }
            job.receive(&piece.ids, piece.logprobs, &piece.text, now);
            if job.phase == Phase::Open
                && job.output.unsent_bytes() > self.settings.output_pending_bytes_max
            {
                let limit = self.settings.output_pending_bytes_max;
                let error = ApiError::new(
                    Code::SlowConsumer,
                    format!("the broker did not take the answer: over {limit} bytes were waiting"),
                );
                self.stop(piece.job, Ending::Failed(error));
            }
        }
    }

    fn on_done(&mut self, done: Done) {
        self.energy.advance(Instant::now(), self.queue.running());
        let n_ctx_seq = self.node.n_ctx_seq().unwrap_or(0);
        let may_grow = self.small_context && self.n_ctx_full > n_ctx_seq;
        let Some(job) = self.jobs.get_mut(&done.job) else {
            self.queue.remove(done.job);
            return;
        };
        job.spent.ends(&self.energy);
        let has_outgrown = may_grow
            && job.is_cut_short(&done, n_ctx_seq)
            && !matches!(done.end, Err(JobError::TooLong { n_prompt, .. }) if n_prompt >= self.n_ctx_full);
        if job.phase == Phase::Open && has_outgrown {
            job.pause();
            job.outgrown = Some(n_ctx_seq);
            info!(user = %job.address.user, id = %job.address.id, n_ctx_seq, "a stream waits for a larger context");
            self.queue.pause(done.job);
            return;
        }
        self.queue.remove(done.job);
        self.count_guesses(&done.timings);
        self.last_words(done.job, &done.ids, done.logprobs, &done.text);
        let Some(job) = self.jobs.get_mut(&done.job) else {
            return;
        };
        job.end(match done.end {
            Ok(finish) => {
                let timings = job.timings_with(done.timings);
                // The times of a worker that died are lost with it.
                if finish != Finish::Cancelled && job.resumed == 0 {
                    let measured = Timings {
                        n_cached: job.n_cached,
                        n_prompt: job.n_prompt,
                        ..timings
                    };
                    let rates = self.rates.of_mut(&job.ids_of);
                    rates.ended(job.body_bytes, &measured);
                }
                Ending::Finished(finish, timings)
            }
            Err(error) => Ending::Failed(api_error(&error, job.has_begun())),
        });
    }

    fn count_guesses(&mut self, stay: &Timings) {
        self.meters.n_guessed += u64::from(stay.n_guessed);
        self.meters.n_right += u64::from(stay.n_right);
    }

    /// Ids and text that no piece brought.
    fn last_words(&mut self, key: JobKey, ids: &[Token], logprobs: Vec<Logprob>, text: &str) {
        let now = Instant::now();
        let Some(job) = self.jobs.get_mut(&key) else {
            return;
        };
        if !ids.is_empty() {
            self.meters.step(ids.len() as u64, now);
            match job.last_token.replace(now) {
                None => self.meters.first_token(now - job.arrived),
                Some(last) => self.meters.next_tokens(ids.len(), now - last),
            }
        }
        job.receive(ids, logprobs, text, now);
    }

    /// The job left the worker, and goes on in its turn.
    fn on_parked(&mut self, parked: Parked) {
        let now = Instant::now();
        self.energy.advance(now, self.queue.running());
        self.count_guesses(&parked.timings);
        self.last_words(parked.job, &parked.ids, parked.logprobs, &parked.text);
        let turn_away = self.turn_away();
        let Some(job) = self.jobs.get_mut(&parked.job) else {
            return self.queue.remove(parked.job);
        };
        job.spent.ends(&self.energy);
        job.spent_in(parked.timings);
        match job.cancel {
            _ if job.phase != Phase::Open => self.queue.remove(parked.job),
            // Called off in the meantime.
            Cancel::Wanted | Cancel::Sent => {
                self.queue.remove(parked.job);
                job.end(Ending::Finished(Finish::Cancelled, job.timings_so_far()));
                self.stops.push(parked.job);
            }
            cancel => {
                job.pause();
                if let Some(eta) = turn_away {
                    job.park(reply::Parked::for_turn(eta));
                }
                self.queue.pause(parked.job);
                self.meters.n_parked += 1;
                debug!(user = %job.address.user, id = %job.address.id, ?cancel, "a stream made room");
            }
        }
    }

    /// Ends a job on our side, wherever it is. One in the worker keeps its place there until the worker says
    /// that it is gone: it has no other to give.
    pub(super) fn stop(&mut self, key: JobKey, ending: Ending) {
        let Some(job) = self
            .jobs
            .get_mut(&key)
            .filter(|job| job.phase == Phase::Open)
        else {
            return;
        };
        job.unchecked = None;
        job.end(ending);
        if self.queue.is_running(key) {
            job.cancel = Cancel::Wanted;
        } else {
            self.queue.remove(key);
            if job.has_begun() {
                self.stops.push(key); // What the worker keeps for it is not needed any more.
            }
        }
    }

    fn on_worker_down(&mut self, down: &crate::worker::Down) {
        self.energy.advance(Instant::now(), self.queue.running());
        self.meters.n_deaths += u64::from(!down.cause.on_purpose());
        let verdicts = match down.cause.on_purpose() {
            true => self.queue.worker_left(),
            false => self.queue.worker_died(down.cause.by_itself()),
        };
        if down.cause.by_itself() {
            self.tell_updates_of_death();
        }
        let parks_until = self.parks_until;
        let turn_away = self.turn_away();
        for (key, verdict) in verdicts {
            let Some(job) = self.jobs.get_mut(&key) else {
                continue;
            };
            match verdict {
                // It ended on our side before.
                _ if job.phase != Phase::Open => self.queue.remove(key),
                Verdict::Again if matches!(job.cancel, Cancel::Wanted | Cancel::Sent) => {
                    // Asked to stop, and stopped it has.
                    self.queue.remove(key);
                    job.end(Ending::Finished(Finish::Cancelled, job.timings_so_far()));
                }
                Verdict::Again => {
                    job.pause();
                    if let Some(until) = parks_until.filter(|_| down.cause.on_purpose()) {
                        let eta = until.saturating_duration_since(Instant::now());
                        job.park(reply::Parked::for_update(eta));
                    } else if let Some(eta) = turn_away.filter(|_| down.cause.on_purpose()) {
                        job.park(reply::Parked::for_turn(eta));
                    }
                }
                Verdict::Poison => job.end(Ending::Failed(ApiError::new(
                    Code::Poison,
                    format!(
                        "this request ended the engine whenever it ran; last time it {}",
                        down.cause
                    ),
                ))),
                Verdict::GiveUp => job.end(Ending::Failed(ApiError::new(
                    Code::EngineError,
                    format!(
                        "the engine ended {} times under this request; last time it {}",
                        queue::DEATHS_MAX,
                        down.cause
                    ),
                ))),
            }
        }
        // What was to leave has left.
        for job in self.jobs.values_mut() {
            if matches!(job.cancel, Cancel::ParkWanted | Cancel::ParkSent) {
                job.pause();
            }
        }
        self.stops.clear();
        // The next worker is asked again; nothing was promised yet.
        for (_, tokenizing) in std::mem::take(&mut self.tokenizing) {
            let error =
                ApiError::new(Code::EngineError, "the engine ended; ask again").with_retry(1000);
            self.refuse(
                &tokenizing.address,
                &tokenizing.replier,
                &error,
                Some(tokenizing.ack),
            );
        }
    }

    /// Hands waiting jobs to the worker while it has sequences free, or can have.
    pub(super) fn submit(&mut self) {
        self.energy.advance(Instant::now(), self.queue.running());
        if !self.send_stops() {
            return;
        }
        let Some((n_seq_max, model)) = self.node.serving() else {
            return;
        };
        let syntax = self.node.tool_syntax();
        let runtime = self.settings.runtime_of(&model);
        let gate = self.gate();
        loop {
            if !self.make_room(n_seq_max, &gate) {
                break;
            }
            let waits = must_wait(&self.jobs, self.straits(), &gate);
            let Some(key) = self.queue.next(n_seq_max, waits) else {
                break;
            };
            let open = self
                .jobs
                .get_mut(&key)
                .filter(|job| job.phase == Phase::Open);
            let Some(job) = open else {
                self.queue.remove(key);
                continue;
            };
            job.served_by(&model);
            job.speak(syntax);
            let command = Command::Submit(Box::new(job.command(runtime.as_ref())));
            if self.commands.try_send(command).is_err() {
                self.queue.put_back(key);
                break;
            }
            job.parked = None;
            if job.began.is_none() {
                let now = Instant::now();
                job.began = Some(now);
                self.meters.entered(job.priority(), now - job.arrived);
            }
            job.place = None;
            job.spent.begins(&self.energy);
        }
        let runs = self.queue.running() > 0;
        self.busy
            .send_if_modified(|busy| std::mem::replace(busy, runs) != runs);
    }

    /// Tells the worker what is to stop or to leave; `false` when it takes no more.
    fn send_stops(&mut self) -> bool {
        while let Some(key) = self.stops.last() {
            if self.commands.try_send(Command::Cancel(*key)).is_err() {
                return false;
            }
            self.stops.pop();
        }
        for job in self.jobs.values_mut() {
            let (command, told) = match job.cancel {
                Cancel::Wanted => (Command::Cancel(job.key), Cancel::Sent),
                Cancel::ParkWanted => (Command::Park(job.key), Cancel::ParkSent),
                Cancel::No | Cancel::Sent | Cancel::ParkSent => continue,
            };
            if self.commands.try_send(command).is_err() {
                return false;
            }
            job.cancel = told;
        }
        true
    }

    /// Has a job make room for an alarm, or for a user with less than its share. It waits from now on, though not
    /// for its turn before the worker has said how far it came; `false` when the worker takes no more.
    fn make_room(&mut self, n_seq_max: usize, gate: &Gate) -> bool {
        let waits = must_wait(&self.jobs, self.straits(), gate);
        let may_leave = |key| {
            self.jobs
                .get(&key)
                .is_some_and(|job| job.cancel == Cancel::No && job.phase == Phase::Open)
        };
        let Some(room) = self.queue.room(n_seq_max, waits, may_leave) else {
            return true;
        };
        let newcomer = self.jobs.get(&room.newcomer);
        let rates = self.rates.of(self.node.model());
        let takes = newcomer.and_then(|job| rates.takes(&job.work()));
        let pause = takes.unwrap_or(PAUSE_GUESS);
        if self.commands.try_send(Command::Park(room.victim)).is_err() {
            return false;
        }
        if let Some(job) = self.jobs.get_mut(&room.victim) {
            job.cancel = Cancel::ParkSent;
            job.park(match room.why {
                Why::Alarm => reply::Parked::for_alarm(pause),
                Why::Share => reply::Parked::for_share(pause),
            });
            let (user, id) = (&job.address.user, &job.address.id);
            match room.why {
                Why::Alarm => info!(%user, %id, "a stream makes room for an alarm"),
                Why::Share => debug!(%user, %id, "a stream makes room for another user's"),
            }
        }
        self.queue.make_room(room);
        true
    }
}

/// Which jobs may not enter the worker now, though it be their turn.
fn must_wait<'a>(
    jobs: &'a HashMap<JobKey, Job>,
    straits: Straits,
    gate: &'a Gate,
) -> impl Fn(JobKey) -> bool + 'a {
    move |key| {
        jobs.get(&key)
            .is_some_and(|job| job.must_wait() || straits.must_wait(job) || !gate.lets(job))
    }
}

/// `has_begun`: by another model, or with a larger context.
pub(super) fn api_error(error: &JobError, has_begun: bool) -> ApiError {
    match error {
        JobError::TooLong {
            n_prompt,
            n_ctx_seq,
        } if has_begun => ApiError::new(
            Code::ContextLengthExceeded,
            format!(
                "another model or a smaller context took over, where prompt and answer so far have {n_prompt} tokens \
                 and a request may use {n_ctx_seq}: ask again with less"
            ),
        ),
        JobError::TooLong {
            n_prompt,
            n_ctx_seq,
        } => ApiError::new(
            Code::ContextLengthExceeded,
            format!(
                "the prompt has {n_prompt} tokens, a request may use {n_ctx_seq} for prompt and answer: shorten it"
            ),
        ),
        JobError::Template(reason) => ApiError::new(
            Code::InvalidRequest,
            format!("the chat template refused the messages: {reason}"),
        ),
        JobError::Input(reason) => ApiError::new(Code::InvalidRequest, reason.clone()),
        JobError::Decode(reason) => {
            ApiError::new(Code::EngineError, format!("decoding failed: {reason}"))
        }
        JobError::Constraint(reason) => ApiError::new(
            Code::GrammarFailed,
            format!("the answer has no next token by its grammar: {reason}"),
        ),
    }
}
