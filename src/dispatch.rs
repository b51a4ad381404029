//! The one task that owns every job: from a packet to its final, with the queue, the store and the worker
//! in between.
//!
//! Owns: the jobs, the waiting queue, what was already answered, what the worker holds, and what is said
//! about the node on retained topics. Never does: network, disk or process work; those are `link`,
//! `store` and `worker`, which it only sends messages to, and it never waits for any of them.
//!
//! ```text
//! link ──Message──▶ intake ──accept──▶ store          worker ──Step, Done──▶ output ──chunk──▶ link
//!                     │                  │ committed      ▲                    │ last chunk sent
//!                     ▼                  ▼                │                    ▼
//!                   queue ──Submit──────────────────▶ worker      store ◀──finish── final ──▶ link
//! ```
//!
//! The order that makes the promise of one final: the record is on disk before `accepted` and PUBACK; the
//! final is on disk before it is published; it is kept, with the text and the places where it was cut
//! into chunks, until its retention ends. So whatever dies, the same bytes can be said again.

mod calls;
mod checked;
mod checks;
mod conversation;
mod durable;
mod embed;
mod energy;
pub mod eta;
mod govern;
mod idle;
mod intake;
mod job;
mod logprobs;
pub mod output;
pub mod pools;
mod punctual;
pub mod queue;
pub mod quotas;
mod refusals;
mod report;
mod serve;
mod settings;
mod tele;
mod tokens;
pub mod turns;
mod updates;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::frames::{Command, JobKey};
use crate::governor::{Notice, Word};
use crate::link::{AckToken, Inbound, Inbox, Link, Message, Publish, PublishError};
use crate::ota::deploy as ota;
use crate::pressure::Level;
use crate::store::{self, Store};
use crate::telemetry::Heard;
use crate::wire::topic::{Name, RequestId};
use crate::worker::{Asks, Checker, Report};
use conversation::Lines;
use durable::StoreDone;
pub use embed::EmbedSettings;
use embed::Embedder;
use energy::Energy;
use eta::ByModel;
use idle::Idle;
use job::{Job, Phase};
use pools::Pools;
use queue::Queue;
use quotas::Quotas;
use refusals::Ignored;
use report::Node;
pub use report::{Overview, retained};
pub use settings::{Accounts, Discovery, Settings, Tuning, UserEntry, UserSettings, UsersSettings};
use tele::Meters;
use tokens::Tokenizing;
pub use turns::TurnSettings;
use turns::Turns;
pub use updates::Updates;

/// A user's request id: what makes a job the same job.
type Asked = (Name, RequestId);

/// Error finals, `accepted` and repeats that the link could not take yet. Beyond it, requests wait
/// unacknowledged.
const BACKLOG_MAX: usize = 4096;
/// How soon a full outbox or a full store is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// How soon a final that the store refused (disk full) is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// How often expired finals are swept.
const SWEEP: Duration = Duration::from_secs(30);

/// Orders from the daemon.
#[derive(Debug)]
pub enum Control {
    /// Take nothing more; answer when the running jobs have ended or `limit` has passed.
    Drain {
        /// Longest wait.
        limit: Duration,
        /// Told when it is done.
        done: oneshot::Sender<()>,
    },
    /// Other limits are in force.
    Tune(Box<Tuning>),
    /// Say how it goes. The answer comes from the loop itself, so it is proof that this turns.
    Tell(oneshot::Sender<Overview>),
}

/// What the dispatcher works with.
pub struct Parts {
    /// MQTT out.
    pub link: Link,
    /// MQTT in.
    pub inbound: Inbox,
    /// The link of a node that is in pools; it ends with the dispatcher.
    pub pools: Option<(Link, Inbox)>,
    /// Jobs on disk.
    pub store: Store,
    /// What the store found at start.
    pub recovered: store::Recovered,
    /// The clock with which the store was opened.
    pub clock: Clock,
    /// What the engine says.
    pub reports: mpsc::Receiver<Report>,
    /// Judges grammars.
    pub checker: Checker,
    /// To the governor.
    pub notices: mpsc::Sender<Notice>,
    /// From the governor.
    pub words: mpsc::Receiver<Word>,
    /// What the board's sensors say, for telemetry; none when that is off.
    pub readings: Option<mpsc::Receiver<Heard>>,
    /// Updates of models; none on a device without a root of trust.
    pub updates: Option<Updates>,
    /// Told whether requests run.
    pub busy: watch::Sender<bool>,
    /// The daemon's orders.
    pub control: mpsc::Receiver<Control>,
    /// The model that makes vectors, if there is one.
    pub embedder: Option<EmbedSettings>,
}

/// The task's state. See the module's picture.
struct Dispatch {
    settings: Settings,
    link: Link,
    store: Store,
    notices: mpsc::Sender<Notice>,
    checker: Asks,
    meters: Meters,
    energy: Energy,
    /// Whether anything runs.
    busy: watch::Sender<bool>,
    /// How short memory is.
    level: Level,
    /// For want of memory a smaller context or model serves, and another is to come.
    small_context: bool,
    /// Somebody has asked for an answer with a form since the daemon started.
    forms_seen: bool,
    /// What is told of updates, and who takes orders about them.
    updates: Option<(watch::Receiver<ota::State>, mpsc::Sender<ota::Order>)>,
    /// Events about updates on their way to the broker: their numbers, by delivery token, which rise. The last few
    /// hundred: one that is forgotten here is said again after the next start.
    ota_events: BTreeMap<u64, u64>,
    /// The number of the fleet's settings that `info` told last.
    told_policy: Option<u64>,
    /// A release is being tried, and is expected to serve by then.
    parks_until: Option<Instant>,
    /// Tokens that one request might use while that was not so.
    n_ctx_full: u32,
    /// To the worker that serves; closed when none does.
    commands: mpsc::Sender<Command>,
    jobs: HashMap<JobKey, Job>,
    /// Jobs that are not over, by what the requester calls them.
    open: HashMap<Asked, JobKey>,
    /// Jobs that are over, until their retention ends.
    answered: HashMap<Asked, Answered>,
    clock: Clock,
    queue: Queue,
    /// Who is in line for which conversation.
    lines: Lines,
    /// Jobs that are over here and not yet in the worker, which is still to be told.
    stops: Vec<JobKey>,
    queued_bytes: usize,
    quotas: Quotas,
    /// What requests take.
    rates: ByModel,
    /// When streams that wait are next told of their place.
    notices_at: Instant,
    ignored: Ignored,
    tokenizing: HashMap<JobKey, Tokenizing>,
    next_key: u64,
    store_work: JoinSet<StoreDone>,
    /// Finals on their way to the broker, by delivery token.
    delivering: HashMap<u64, Asked>,
    next_token: u64,
    backlog: VecDeque<Publish>,
    /// Requests that came while the backlog was full.
    waiting: VecDeque<Message>,
    /// Stored finals of an earlier run that nobody got yet.
    undelivered: VecDeque<Asked>,
    retry_finals_at: Option<Instant>,
    node: Node,
    is_connected: bool,
    pools: Option<Pools>,
    embedder: Option<Embedder>,
    idle: Idle,
    turns: Turns,
    draining: Option<(Instant, oneshot::Sender<()>)>,
}

/// A job that is over.
#[derive(Clone, Copy)]
struct Answered {
    digest: [u8; 32],
    since: Instant,
    delivered: bool,
    /// It was called off, and is forgotten once that was delivered.
    called_off: bool,
}

/// Unix time that does not jump: the wall clock at the start and the monotonic time since.
#[derive(Clone, Copy)]
pub struct Clock {
    start_ms: u64,
    started: Instant,
}

impl Clock {
    /// Reads the wall clock once.
    pub fn start() -> Self {
        let start_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        Self {
            start_ms,
            started: Instant::now(),
        }
    }

    /// Milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.start_ms + self.started.elapsed().as_millis() as u64
    }
}

/// Runs until the link or the control channel is gone, or a drain has ended. The link ends with its
/// inbox, so that is given back to whoever closes the link.
pub async fn run(settings: Settings, parts: Parts) -> Inbox {
    let Parts {
        link,
        mut inbound,
        pools,
        store,
        recovered,
        clock,
        mut reports,
        checker,
        notices,
        mut words,
        mut readings,
        updates,
        busy,
        mut control,
        embedder,
    } = parts;
    let (asks, mut verdicts) = checker.split();
    let mut dispatch = Dispatch::new(settings, link, store, clock, notices, busy, asks);
    let mut dealt = None;
    if let Some((link, inbox)) = pools {
        dispatch.pools = Some(Pools::new(link));
        dealt = Some(inbox);
    }
    dispatch.embedder = embedder.map(Embedder::new);
    dispatch.recover(recovered);
    let mut releases = Some(dispatch.settings.releases.clone());
    let (mut ota_state, mut ota_told) = (None, None);
    if let Some(updates) = updates {
        (ota_state, ota_told) = (Some(updates.state.clone()), Some(updates.told));
        dispatch.updates = Some((updates.state, updates.orders));
    }
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let wake = dispatch.pump(Instant::now());
        if dispatch.drained() {
            return inbound;
        }
        tokio::select! {
            message = inbound.recv() => match message {
                Some(message) => dispatch.on_inbound(message),
                None => return inbound,
            },
            message = recv_if_any(&mut dealt) => match message {
                Some(message) => dispatch.on_pool_inbound(message),
                None => return inbound,
            },
            report = reports.recv() => match report {
                Some(report) => {
                    dispatch.on_report(report);
                    // Take what else is there before the next pump: one look at the jobs for many frames.
                    while let Ok(report) = reports.try_recv() {
                        dispatch.on_report(report);
                    }
                }
                None => return inbound,
            },
            report = Embedder::report(&mut dispatch.embedder) => dispatch.on_embedder(report),
            Some(verdict) = verdicts.recv() => dispatch.on_verdict(verdict),
            Some(done) = dispatch.store_work.join_next() => match done {
                Ok(done) => dispatch.on_store(done),
                Err(error) => error!(%error, "store task failed"),
            },
            () = updates::changed(&mut ota_state) => dispatch.publish_ota_state(),
            // A release that was loaded on trial is one of the device's own from its commit on.
            () = updates::changed(&mut releases) => dispatch.node.models_changed(),
            Some(told) = received(&mut ota_told) => dispatch.on_ota_told(told),
            Some(heard) = received(&mut readings) => dispatch.on_telemetry(heard),
            word = words.recv() => match word {
                Some(word) => dispatch.on_word(word),
                None => return inbound,
            },
            order = control.recv() => match order {
                Some(Control::Drain { limit, done }) => dispatch.drain(limit, done),
                Some(Control::Tune(tuning)) => {
                    dispatch.settings.tune(&tuning);
                    dispatch.node.info_changed();
                }
                // Who asked may have ended.
                Some(Control::Tell(asked)) => drop(asked.send(dispatch.overview())),
                None => return inbound,
            },
            () = sleep_until(wake) => {}
            _ = sweep.tick() => dispatch.sweep(),
        }
    }
}

async fn recv_if_any(inbox: &mut Option<Inbox>) -> Option<Inbound> {
    match inbox {
        Some(inbox) => inbox.recv().await,
        None => std::future::pending().await,
    }
}

/// The next of a channel that may not be there.
async fn received<T>(channel: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match channel {
        Some(channel) => channel.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Dispatch {
    fn new(
        settings: Settings,
        link: Link,
        store: Store,
        clock: Clock,
        notices: mpsc::Sender<Notice>,
        busy: watch::Sender<bool>,
        checker: Asks,
    ) -> Self {
        let node = Node::new(&settings, clock);
        let idle = Idle::new(settings.idle_unload);
        let turns = Turns::new(settings.model.clone().ok());
        Self {
            settings,
            link,
            store,
            commands: mpsc::channel(1).0, // Closed: nobody serves yet.
            notices,
            checker,
            meters: Meters::new(),
            energy: Energy::new(Instant::now()),
            busy,
            level: Level::Ok,
            small_context: false,
            forms_seen: false,
            updates: None,
            ota_events: BTreeMap::new(),
            told_policy: None,
            parks_until: None,
            n_ctx_full: 0,
            jobs: HashMap::new(),
            open: HashMap::new(),
            answered: HashMap::new(),
            clock,
            queue: Queue::default(),
            lines: Lines::default(),
            stops: Vec::new(),
            queued_bytes: 0,
            quotas: Quotas::default(),
            rates: ByModel::default(),
            notices_at: Instant::now(),
            ignored: Ignored::default(),
            tokenizing: HashMap::new(),
            next_key: 1,
            store_work: JoinSet::new(),
            delivering: HashMap::new(),
            next_token: 1,
            backlog: VecDeque::new(),
            waiting: VecDeque::new(),
            undelivered: VecDeque::new(),
            retry_finals_at: None,
            node,
            is_connected: false,
            pools: None,
            embedder: None,
            idle,
            turns,
            draining: None,
        }
    }

    // ---- events ------------------------------------------------------------------------------------

    fn on_inbound(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Up { .. } => {
                info!("broker connected");
                self.is_connected = true;
                self.node.publish_all();
                self.publish_ota_state();
            }
            Inbound::Down { reason, taken_over } => {
                self.is_connected = false;
                // The broker brings them again.
                self.forget_waiting(false);
                if taken_over {
                    self.node.taken_over(Instant::now());
                    error!(
                        reason,
                        "another daemon uses this node's name: give each its own node.name"
                    );
                } else {
                    warn!(reason, "broker connection lost");
                }
            }
            Inbound::Message(message) => self.on_message(message),
            Inbound::Listening { .. } => {} // Our own filters are on for good.
            Inbound::Undelivered {
                token,
                topic,
                reason,
            } => {
                // It stays in the store, undelivered: asking again with the same id brings it.
                warn!(topic, reason, "the broker refused a message");
                if let Some(token) = token {
                    self.delivering.remove(&token);
                }
            }
            Inbound::SubscribeRefused { filter, reason } => {
                error!(
                    filter,
                    reason,
                    "the broker refused our subscription: no request can arrive; check its ACL"
                );
            }
            Inbound::Delivered { token } => {
                self.on_event_delivered(token);
                if let Some(asked) = self.delivering.remove(&token) {
                    self.on_delivered(asked);
                }
            }
        }
    }

    // ---- work --------------------------------------------------------------------------------------

    /// Does all that can be done now without waiting; says when to look again at the latest.
    fn pump(&mut self, now: Instant) -> Option<Instant> {
        let deadline = self.expire(now);
        let turn = self.take_turns(now);
        self.submit();
        self.flush_backlog();
        self.take_waiting();
        let mut wake = earliest(earliest(deadline, turn), self.tell_places(now));
        wake = earliest(wake, self.flush_jobs(now));
        self.store_finals(now);
        self.resend_undelivered();
        wake = earliest(wake, self.steer_pools(now));
        wake = earliest(wake, self.rest_embedder(now));
        wake = earliest(wake, self.rest_model(now));
        let node_wake = self.flush_reports(now);
        if !self.backlog.is_empty() {
            wake = earliest(wake, Some(now + RETRY));
        }
        let draining = self.draining.as_ref().map(|(limit, _)| *limit);
        earliest(
            earliest(wake, self.retry_finals_at),
            earliest(node_wake, draining),
        )
    }

    /// Sends what is due of each stream; says when the next text is due.
    fn flush_jobs(&mut self, now: Instant) -> Option<Instant> {
        let mut wake = None;
        let node = self.settings.names.node();
        for job in self.jobs.values_mut() {
            while self.backlog.is_empty()
                && let Some(reply) = job.chunk_due(now)
            {
                match self
                    .link
                    .try_publish(job.address.publish(node, reply, None))
                {
                    Ok(()) => job.chunk_sent(now),
                    Err(PublishError::Full(_)) => break,
                    Err(error) => {
                        // Chunks are at most 8 KiB; a broker that refuses those can carry no answer.
                        warn!(%error, "chunk dropped by the link");
                        job.chunk_sent(now);
                    }
                }
            }
            if let Some(due) = job.next_due() {
                wake = earliest(wake, Some(if due <= now { now + RETRY } else { due }));
            }
        }
        wake
    }

    fn drain(&mut self, limit: Duration, done: oneshot::Sender<()>) {
        self.draining = Some((Instant::now() + limit, done));
        self.node.drain();
    }

    /// True once a drain is over; tells who ordered it.
    fn drained(&mut self) -> bool {
        let Some((limit, _)) = &self.draining else {
            return false;
        };
        let is_dealt_to = self.pools.as_ref().is_some_and(Pools::is_listening);
        let quiet = self.queue.running() == 0
            && !is_dealt_to
            && self.delivering.is_empty()
            && self.backlog.is_empty()
            && self.store_work.is_empty()
            && self.jobs.values().all(|job| job.phase == Phase::Open);
        if !quiet && Instant::now() < *limit {
            return false;
        }
        if let Some((_, done)) = self.draining.take() {
            // The daemon may have gone; then nobody needs to know.
            let _ = done.send(());
        }
        true
    }

    // ---- small tools -------------------------------------------------------------------------------

    /// To the link, in order; what it cannot take now waits.
    fn send(&mut self, publish: Publish) {
        self.backlog.push_back(publish);
        self.flush_backlog();
    }

    fn flush_backlog(&mut self) {
        while let Some(publish) = self.backlog.pop_front() {
            match self.link.try_publish(publish) {
                Ok(()) => {}
                Err(PublishError::Full(publish)) => {
                    self.backlog.push_front(*publish);
                    return;
                }
                Err(error) => warn!(%error, "message not sent"),
            }
        }
    }

    /// Requests that a full backlog had held up.
    fn take_waiting(&mut self) {
        while self.backlog.len() < BACKLOG_MAX
            && let Some(message) = self.waiting.pop_front()
        {
            self.on_message(message);
        }
    }

    fn acknowledge(&self, ack: Option<AckToken>) {
        if let Some(ack) = ack
            && self.link_of(&ack).try_ack(ack).is_err()
        {
            debug!(
                "acknowledgement lost with its connection: the broker will send the request again"
            );
        }
    }

    fn delivery_token(&mut self, asked: Asked) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.delivering.insert(token, asked);
        token
    }

    fn new_key(&mut self) -> JobKey {
        self.next_key += 1;
        JobKey(self.next_key)
    }
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// SHA-256 of what was asked: two requests with one id must be the same request.
fn digest_of(op: &str, body: &Bytes) -> [u8; 32] {
    use sha2::Digest;
    let mut hash = sha2::Sha256::new();
    hash.update(op.as_bytes());
    hash.update([0]);
    hash.update(body);
    hash.finalize().into()
}
