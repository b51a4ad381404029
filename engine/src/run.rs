//! The loop: commands → admit → plan → decode → sample → emit, until drained or alone.
//!
//! Owns every job in the worker and the decoder's cache. Between two decodes anything can change. It
//! waits only for commands and only when there is nothing to compute; it never waits for the socket:
//! text that the outgoing channel does not take joins the next step's, and what may not be lost
//! (`Started`, `Done`, answers) queues in the outbox, whose length bounds how many commands are read.

mod admit;
mod aside;
mod bench;
mod constrain;
mod disk;
mod over;
mod park;
mod pin;
mod score;
mod step;
mod turns;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError};
use std::time::{Duration, Instant};

use orinoco::frames::{
    BenchSpec, Command, Event, Finish, JobError, JobKey, LoadSpec, Loaded, Speculation, Token,
};

use crate::archive::Archive;
use crate::controls::Controls;
use crate::draft::Draft;
use crate::grammar::{Grammars, Vocabulary};
use crate::markers::Markers;
use crate::model::{Decoder, LoadError, Row};
use crate::prefix::Pool;
use crate::schedule::{Bounds, Schedule, Want};
use crate::shelf::Shelf;
use crate::slot::Slot;
use crate::speculation::Gain;
use crate::template::ChatTemplate;
use aside::Aside;
use disk::Disk;
use over::Over;
use park::Kept;

/// Events that wait for the channel before commands are left unread.
const OUTBOX_MAX: usize = 256;
/// Jobs without a slot; the supervisor sends no more than `n_seq_max` at all.
const WAITING_MAX: usize = 256;
/// How often a full channel is tried while there is nothing to compute.
const RETRY: Duration = Duration::from_millis(2);

/// Serves jobs with `decoder`, which `draft` guesses for if there is one, and with what earlier workers left in
/// `archive`, until [`Command::Drain`] is done or the
/// commands' sender is gone.
///
/// Sends [`Event::Loaded`] first. An operator's chat template that does not compile is a failed load.
pub fn run(
    decoder: &mut dyn Decoder,
    draft: Option<&mut dyn Decoder>,
    spec: &LoadSpec,
    mut loaded: Loaded,
    archive: Option<Archive>,
    commands: &Receiver<Command>,
    events: &SyncSender<Event>,
) -> Result<(), LoadError> {
    let is_token = |text: &str| {
        decoder
            .tokenize(text, false, true)
            .is_ok_and(|ids| ids.len() == 1)
    };
    let of_model = decoder.template();
    let template = ChatTemplate::new(&of_model, spec.chat_template.as_deref(), is_token)
        .map_err(|error| LoadError(format!("failed to {error}")))?;
    loaded.chat_template = template.name().to_owned();
    loaded.tool_syntax = template.tool_syntax();
    let limits = decoder.limits();
    #[expect(
        clippy::redundant_closure,
        reason = "only its argument can be lent for a shorter time than it was got"
    )]
    let draft = draft.map(|draft| Draft::new(draft));
    let mut slots = Vec::new();
    slots.resize_with(limits.n_seq_max as usize, || None);
    let mut run = Run {
        pool: Pool::new(limits),
        shelf: Shelf::new(
            match limits.shares_prefixes {
                true => usize::try_from(spec.prefix_cache_bytes).unwrap_or(usize::MAX),
                false => 0,
            },
            limits.n_swa,
        ),
        shelf_bytes_told: 0,
        archive: archive.filter(|_| limits.shares_prefixes && spec.prefix_cache_bytes > 0),
        disk: Disk::default(),
        schedule: Schedule::new(Bounds {
            n_batch: limits.n_batch as usize,
            n_ubatch: limits.n_ubatch as usize,
            step_ms: f64::from(spec.step_ms),
            step_tokens: spec.step_tokens as usize,
        }),
        n_draft: limits.n_draft as usize,
        draft,
        // On request whatever it costs; else as it was measured to pay.
        gain: (spec.speculation != Speculation::Always).then(Gain::default),
        n_made: 0,
        markers: Rc::new(Markers::of(decoder)),
        controls: Controls::new(
            (0..limits.n_vocab as Token).filter_map(|token| decoder.control(token)),
        ),
        grammars: Grammars::default(),
        words: Vocabulary::default(),
        expects_forms: false,
        compiling: Vec::new(),
        aside: Aside::default(),
        decoder,
        template,
        bos: of_model.bos,
        add_bos: of_model.add_bos,
        slots,
        waiting: VecDeque::new(),
        over: Over::default(),
        parked: Vec::new(),
        may_admit: true,
        outbox: VecDeque::from([Event::Loaded(Box::new(loaded))]),
        bench: None,
        score: None,
        draining: false,
        step: 0,
        rows: Vec::new(),
        wants: Vec::new(),
        shares: Vec::new(),
        bytes: Vec::new(),
    };
    while run.turn(commands, events) {}
    Ok(())
}

struct Run<'d> {
    decoder: &'d mut dyn Decoder,
    template: ChatTemplate,
    bos: String,
    add_bos: bool,
    /// By sequence.
    slots: Vec<Option<Slot>>,
    waiting: VecDeque<Slot>,
    /// Jobs whose grammars are being compiled; then they wait.
    compiling: Vec<Slot>,
    /// Jobs that are to be cut into tokens while a step is computed.
    aside: Aside,
    grammars: Grammars,
    /// The vocabulary, as far as it was read for them.
    words: Vocabulary,
    /// Whether answers with a form will be wanted.
    expects_forms: bool,
    markers: Rc<Markers>,
    /// What messages may not write.
    controls: Controls,
    /// What ended jobs left in the pool, to be saved when that holds nobody up.
    over: Over,
    /// Jobs that are to come back, and the places where the pool keeps what they have; the oldest first.
    parked: Vec<Kept>,
    /// Whether anything changed since the first waiting job was last refused.
    may_admit: bool,
    pool: Pool,
    /// What ended jobs leave behind.
    shelf: Shelf,
    shelf_bytes_told: usize,
    /// What of it is on disk.
    archive: Option<Archive>,
    disk: Disk,
    schedule: Schedule,
    /// Guessed tokens a sequence, at most; 0: none.
    n_draft: usize,
    /// Guesses where nothing was said before that would.
    draft: Option<Draft<'d>>,
    /// `None`: guesses are always made.
    gain: Option<Gain>,
    /// Tokens made in this step.
    n_made: usize,
    outbox: VecDeque<Event>,
    bench: Option<BenchSpec>,
    /// A text to be scored when nothing runs.
    score: Option<String>,
    draining: bool,
    step: u64,
    // Kept between steps so that a step costs few allocations.
    rows: Vec<Row>,
    wants: Vec<Option<Want>>,
    shares: Vec<usize>,
    bytes: Vec<u8>,
}

impl Run<'_> {
    /// One turn of the loop; `false` when it is over.
    fn turn(&mut self, commands: &Receiver<Command>, events: &SyncSender<Event>) -> bool {
        if !self.read(commands) {
            return false;
        }
        self.collect_from_aside();
        self.collect_matchers();
        self.collect_from_disk();
        self.admit();
        if self.settle() {
            self.admit();
        }
        if !self.compute() {
            return false;
        }
        if self.is_idle()
            && self.over.is_empty()
            && let Some(spec) = self.bench.take()
        {
            let report = bench::measure(self, spec);
            self.outbox.push_back(Event::Bench(report));
        }
        if self.is_idle()
            && self.over.is_empty()
            && let Some(text) = self.score.take()
        {
            let scored = score::score(self, &text);
            self.outbox.push_back(Event::Scored(scored));
        }
        self.leave_on_disk();
        let bytes = self.shelf.bytes();
        if bytes != self.shelf_bytes_told {
            self.shelf_bytes_told = bytes;
            let bytes = bytes as u64;
            self.outbox.push_back(Event::Cached { bytes });
        }
        if !self.emit(events) {
            return false;
        }
        !(self.draining && self.is_idle() && self.outbox.is_empty())
    }

    fn is_idle(&self) -> bool {
        self.has_nothing_to_decode() && self.compiling.is_empty() && self.disk.fetching.is_empty()
    }

    fn has_nothing_to_decode(&self) -> bool {
        self.waiting.is_empty() && self.aside.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Reads the commands that are there; waits for one only when there is nothing else to do. `false`
    /// when the sender is gone.
    fn read(&mut self, commands: &Receiver<Command>) -> bool {
        if self.has_nothing_to_decode()
            && self.bench.is_none()
            && self.score.is_none()
            && !(self.is_idle() && self.until_settle() == Some(Duration::ZERO))
        {
            let first = if !self.outbox.is_empty() || !self.is_idle() {
                commands.recv_timeout(RETRY)
            } else if self.draining {
                return true;
            } else {
                let (words, disk) = (self.reads_words_after(), self.until_disk());
                let waits = words.into_iter().chain(disk).chain(self.until_settle());
                match waits.min() {
                    Some(wait) => {
                        let first = commands.recv_timeout(wait);
                        let is_quiet = matches!(first, Err(RecvTimeoutError::Timeout));
                        if is_quiet && words == Some(wait) {
                            self.prepare_grammars();
                        }
                        first
                    }
                    None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                }
            };
            match first {
                Ok(command) => self.command(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while self.outbox.len() < OUTBOX_MAX {
            match commands.try_recv() {
                Ok(command) => self.command(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Load(_) => tracing::warn!("a second Load is ignored: one model a worker"),
            Command::Plan(_)
            | Command::Ask(_)
            | Command::Probe(_)
            | Command::Check(_)
            | Command::Compile(_) => {
                tracing::warn!(
                    "a serving worker plans and judges nothing: that is for one that is thrown away"
                );
            }
            Command::Embed(_) => {
                tracing::warn!("this worker makes text; vectors are made by one of their own");
            }
            Command::Submit(job) => self.submit(job),
            Command::Cancel(job) => self.cancel(job),
            Command::Park(job) => self.park(job),
            Command::Tokenize { job, input } => {
                let ids = self.tokens_of(&input);
                self.outbox.push_back(Event::Tokenized { job, ids });
            }
            Command::Bench(spec) => self.bench = Some(spec),
            Command::Score(text) => self.score = Some(text),
            Command::Trim => self.trim(),
            Command::Grow => self.shelf.set_open(true),
            Command::Save { limit_ms } => self.save_until(limit_ms),
            Command::Forget(number) => self.forget_session(number),
            Command::Ping(n) => self.outbox.push_back(Event::Pong(n)),
            Command::Drain => {
                self.draining = true;
                self.waiting.retain(|slot| !slot.is_pinned());
            }
        }
    }

    fn cancel(&mut self, job: JobKey) {
        self.cut_now(job);
        if let Some(at) = self.waiting.iter().position(|slot| slot.job == job)
            && let Some(slot) = self.waiting.remove(at)
        {
            self.may_admit = true;
            self.say_done(slot, Ok(Finish::Cancelled));
        }
        if let Some(at) = self.compiling.iter().position(|slot| slot.job == job) {
            let slot = self.compiling.swap_remove(at);
            self.say_done(slot, Ok(Finish::Cancelled));
        }
        if let Some(slot) = self.unfetch(job) {
            self.say_done(slot, Ok(Finish::Cancelled));
        }
        let running = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.job == job);
        if let Some(seq) = self.slots.iter().position(running) {
            self.end(seq, Ok(Finish::Cancelled));
        }
        self.forget(job);
    }

    fn say_done(&mut self, slot: Slot, end: Result<Finish, JobError>) {
        self.outbox.push_back(Event::Done(Box::new(slot.done(end))));
    }

    /// Hands out what can be handed out now. `false` when nobody listens any more.
    fn emit(&mut self, events: &SyncSender<Event>) -> bool {
        // In order, so that Started comes before the job's first piece, and its pieces before Done.
        while let Some(event) = self.outbox.pop_front() {
            match events.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.outbox.push_front(event);
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => return false,
            }
        }
        let now = Instant::now();
        if !self.slots.iter().flatten().any(|slot| slot.is_due(now)) {
            return true;
        }
        let slots = self.slots.iter_mut().flatten();
        let pieces = Vec::from_iter(slots.filter_map(|slot| slot.piece(now)));
        let step = self.step;
        match events.try_send(Event::Step { step, pieces }) {
            Ok(()) => true,
            Err(TrySendError::Full(Event::Step { pieces, .. })) => {
                for piece in pieces {
                    let mut slots = self.slots.iter_mut().flatten();
                    if let Some(slot) = slots.find(|slot| slot.job == piece.job) {
                        slot.unsend(piece);
                    }
                }
                true
            }
            Err(TrySendError::Full(_)) => unreachable!("the event that comes back is the one sent"),
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests;
