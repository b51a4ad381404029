//! Op `embed`: vectors of texts by a second model, in a worker of its own.
//!
//! Owns that worker, which is there only while somebody needs it: it is started by the first request, judged
//! by the same account of memory as every load, and ended when nobody asked for a while or memory runs short.
//! So a board that never embeds pays nothing, and one that does gives the bytes back to the model that talks.
//! A process of its own, since an embedding model is a stranger's file as well: what kills its worker ends no
//! stream.
//!
//! Answered without the queue and the store: asking again costs nothing and gives the same vectors. The
//! request is acknowledged when it is answered, so that the broker brings it again after a power cut.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::checked::NoModel;
use super::durable::too_large;
use super::job::Address;
use super::{Asked, Dispatch, earliest};
use crate::frames::{Command, EmbedJob, Embedded, Event, JobError, JobKey, Loaded, TextError};
use crate::governor::Notice;
use crate::link::{AckToken, Message};
use crate::pressure::Level;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::{Replier, Vectors};
use crate::wire::request::{EmbedRequest, parse_embed};
use crate::wire::topic::Name;
use crate::worker::{self, Cause, Down, Report, Worker, WorkerConfig};

/// Requests under way; more are refused. They are not acknowledged before they are answered, and the broker
/// must have room in its window for others.
const EMBEDDING_MAX: usize = 32;
/// Of one user: nobody takes all places.
const EMBEDDING_PER_USER_MAX: usize = 16;
/// Deaths of a worker that a request is suspected of before it is refused.
const DEATHS_MAX: u32 = 2;
/// Failed starts in a row after which who waits is refused.
const HOPELESS_AFTER: u32 = 3;
/// A refusal for want of memory, or of a good file, stands so long before the file is looked at again.
const REFUSAL_STANDS: Duration = Duration::from_secs(2);

/// The embedding model as it is configured.
#[derive(Debug, Clone)]
pub struct EmbedSettings {
    /// Its name.
    pub name: String,
    /// How its worker is started.
    pub worker: WorkerConfig,
    /// Its worker is ended when nobody asked for so long; `None`: never.
    pub idle: Option<Duration>,
}

/// The worker, what is known of its model, and the requests.
pub(super) struct Embedder {
    settings: EmbedSettings,
    worker: Option<Running>,
    /// By key: the order in which they came.
    requests: BTreeMap<JobKey, Embedding>,
    last_used: Instant,
    /// Starts in a row that came to nothing.
    failures: u32,
    /// Why it was not started the last time.
    refusal: Option<(Instant, ApiError)>,
}

struct Running {
    worker: Worker,
    /// None while it loads.
    serves: Option<(tokio::sync::mpsc::Sender<Command>, Box<Loaded>)>,
}

/// A question.
struct Embedding {
    address: Address,
    replier: Replier,
    digest: [u8; 32],
    request: EmbedRequest,
    /// Of the question and of its repeats.
    acks: Vec<AckToken>,
    is_sent: bool,
    /// Workers that died with it inside.
    deaths: u32,
}

impl Embedder {
    pub(super) fn new(settings: EmbedSettings) -> Self {
        Self {
            settings,
            worker: None,
            requests: BTreeMap::new(),
            last_used: Instant::now(),
            failures: 0,
            refusal: None,
        }
    }

    /// Its model's name.
    fn name(&self) -> &str {
        &self.settings.name
    }

    /// What is loaded, if it is.
    pub(super) fn loaded(&self) -> Option<&Loaded> {
        Some(&self.worker.as_ref()?.serves.as_ref()?.1)
    }

    /// The next report of the worker; never while there is none.
    pub(super) async fn report(embedder: &mut Option<Self>) -> Option<Report> {
        match embedder.as_mut().and_then(|it| it.worker.as_mut()) {
            Some(running) => running.worker.reports.recv().await,
            None => std::future::pending().await,
        }
    }

    fn key_of(&self, asked: &Asked) -> Option<JobKey> {
        let is_it = |one: &Embedding| one.address.user == asked.0 && one.address.id == asked.1;
        let found = self.requests.iter().find(|(_, one)| is_it(one));
        found.map(|(key, _)| *key)
    }

    fn of_user(&self, user: &Name) -> usize {
        let is_theirs = |one: &&Embedding| one.address.user == *user;
        self.requests.values().filter(is_theirs).count()
    }

    /// Hands over what the worker has not got. A request that was inside a worker when that died goes alone.
    fn feed(&mut self) {
        let Some(Running {
            serves: Some((commands, _)),
            ..
        }) = &self.worker
        else {
            return;
        };
        for key in Vec::from_iter(self.requests.keys().copied()) {
            let (mut inside, mut suspect_inside) = (false, false);
            for one in self.requests.values().filter(|one| one.is_sent) {
                inside = true;
                suspect_inside |= one.deaths > 0;
            }
            let Some(one) = self.requests.get_mut(&key).filter(|one| !one.is_sent) else {
                continue;
            };
            if suspect_inside || (one.deaths > 0 && inside) {
                continue;
            }
            let job = EmbedJob {
                job: key,
                texts: one.request.texts.clone(),
                truncate: one.request.truncate,
            };
            if commands.try_send(Command::Embed(Box::new(job))).is_err() {
                return; // At the next turn.
            }
            one.is_sent = true;
        }
    }
}

impl Dispatch {
    /// A request in order; it is answered later, or refused now.
    pub(super) fn embed(&mut self, address: Address, mut replier: Replier, message: Message) {
        if let Some(embedder) = &self.embedder {
            embedder.name().clone_into(&mut replier.model);
        }
        let digest = super::digest_of("embed", &message.payload);
        match self.embed_request(&address, digest, &message) {
            Ok(None) => self.hold_embedding(&address, message.ack),
            Ok(Some(request)) => {
                let key = self.new_key();
                let Some(embedder) = &mut self.embedder else {
                    return;
                };
                embedder.last_used = Instant::now();
                let embedding = Embedding {
                    address,
                    replier,
                    digest,
                    request,
                    acks: vec![message.ack],
                    is_sent: false,
                    deaths: 0,
                };
                embedder.requests.insert(key, embedding);
                if embedder.worker.is_none() {
                    info!(model = embedder.name(), "embedding model is loaded");
                    let (worker, _keeper) = worker::spawn(embedder.settings.worker.clone());
                    embedder.worker = Some(Running {
                        worker,
                        serves: None,
                    });
                }
                embedder.feed();
            }
            Err(error) => self.refuse(&address, &replier, &error, Some(message.ack)),
        }
    }

    /// What is asked; `None`: it is under way already.
    fn embed_request(
        &self,
        address: &Address,
        digest: [u8; 32],
        message: &Message,
    ) -> Result<Option<EmbedRequest>, ApiError> {
        let Some(embedder) = &self.embedder else {
            return Err(not_served());
        };
        let asked = (address.user.clone(), address.id.clone());
        if let Some(key) = embedder.key_of(&asked) {
            return match embedder.requests[&key].digest == digest {
                true => Ok(None),
                false => Err(ApiError::new(
                    Code::IdReused,
                    format!("id `{}` is that of another request under way", asked.1),
                )),
            };
        }
        let request = parse_embed(&message.payload, &self.settings.limits)?;
        let meant = request
            .model
            .as_deref()
            .map(|name| self.settings.meant(name));
        let name = embedder.name();
        if let Some(model) = meant.filter(|model| *model != name && *model != "default") {
            let text = format!("no embedding model `{model}` here: this node has `{name}`");
            return Err(ApiError::new(Code::ModelNotFound, text).with_param("model"));
        }
        let n_dims = embedder.loaded().map(|loaded| loaded.n_dims);
        if let (Some(wanted), Some(n_dims)) = (request.dimensions, n_dims) {
            check_dimensions(wanted, n_dims)?;
        }
        if let Some(error) = self.short_of_memory() {
            return Err(error);
        }
        if let Some((_, error)) = embedder
            .refusal
            .as_ref()
            .filter(|(since, _)| since.elapsed() < REFUSAL_STANDS)
        {
            return Err(error.clone());
        }
        if embedder.requests.len() >= EMBEDDING_MAX
            || embedder.of_user(&address.user) >= EMBEDDING_PER_USER_MAX
        {
            let text = "too many embeddings at once";
            return Err(ApiError::new(Code::QueueFull, text).with_retry(200));
        }
        Ok(Some(request))
    }

    fn hold_embedding(&mut self, address: &Address, ack: AckToken) {
        let asked = (address.user.clone(), address.id.clone());
        if let Some(embedder) = &mut self.embedder
            && let Some(key) = embedder.key_of(&asked)
            && let Some(one) = embedder.requests.get_mut(&key)
        {
            one.acks.push(ack);
        }
    }

    pub(super) fn on_embedder(&mut self, report: Option<Report>) {
        let Some(embedder) = &mut self.embedder else {
            return;
        };
        match report {
            Some(Report::Serving {
                commands,
                loaded,
                checked,
                ..
            }) => {
                embedder.failures = 0;
                embedder.refusal = None;
                embedder.last_used = Instant::now();
                if let Some(running) = &mut embedder.worker {
                    running.serves = Some((commands, loaded));
                }
                let bytes = checked.comparison.taken.total_bytes();
                self.embedder_takes(bytes);
                self.check_waiting();
            }
            Some(Report::Event(Event::Embedded { job, outcome })) => {
                embedder.last_used = Instant::now();
                self.on_embedded(job, *outcome);
            }
            Some(Report::Down(down)) => self.on_embedder_down(&down),
            Some(_) => {}
            None => {
                // Its keeper has ended, which it does with us only.
                embedder.worker = None;
            }
        }
        if let Some(embedder) = &mut self.embedder {
            embedder.feed();
        }
    }

    /// Now that the model is known: requests for longer vectors than it makes are refused.
    fn check_waiting(&mut self) {
        let Some(embedder) = &self.embedder else {
            return;
        };
        let Some(n_dims) = embedder.loaded().map(|loaded| loaded.n_dims) else {
            return;
        };
        let wrong = embedder.requests.iter().filter_map(|(key, one)| {
            let error = check_dimensions(one.request.dimensions?, n_dims).err()?;
            Some((*key, error))
        });
        for (key, error) in Vec::from_iter(wrong) {
            self.refuse_embedding(key, &error);
        }
    }

    fn on_embedded(&mut self, key: JobKey, outcome: Result<Embedded, TextError>) {
        let embedded = match outcome {
            Ok(embedded) => embedded,
            Err(error) => return self.refuse_embedding(key, &text_error(&error)),
        };
        let Some(one) = self
            .embedder
            .as_mut()
            .and_then(|embedder| embedder.requests.remove(&key))
        else {
            return;
        };
        let reply = one.replier.vectors(&Vectors {
            n_dims: embedded.n_dims as usize,
            values: embedded.vectors,
            dimensions: one.request.dimensions,
            encoding: one.request.encoding,
            n_tokens: embedded.n_tokens,
            truncated: embedded.n_truncated > 0,
        });
        let publish = one.address.publish(self.settings.names.node(), reply, None);
        let (found, allowed) = (
            publish.packet_bytes(),
            self.link.packet_bytes_max() as usize,
        );
        if found > allowed {
            let mut error = too_large(found, allowed);
            error.message = format!(
                "the vectors make a packet of {found} bytes, the broker takes {allowed}: ask for fewer texts at once, \
                 for encoding_format base64, or for fewer dimensions"
            );
            self.refuse(&one.address, &one.replier, &error, None);
        } else {
            self.send(publish);
        }
        for ack in one.acks {
            self.acknowledge(Some(ack));
        }
    }

    fn refuse_embedding(&mut self, key: JobKey, error: &ApiError) {
        let one = self
            .embedder
            .as_mut()
            .and_then(|it| it.requests.remove(&key));
        if let Some(one) = one {
            self.refuse(&one.address, &one.replier, error, None);
            for ack in one.acks {
                self.acknowledge(Some(ack));
            }
        }
    }

    /// The worker is gone, or was not started.
    fn on_embedder_down(&mut self, down: &Down) {
        self.embedder_takes(0);
        let Some(embedder) = &mut self.embedder else {
            return;
        };
        warn!(model = embedder.name(), cause = %down.cause, "embedding worker ended");
        let is_crowded = matches!(down.cause, Cause::NoRoom(_)) && !self.turns.resting.is_empty();
        if let Some(running) = &mut embedder.worker {
            running.serves = None;
        }
        let mut poison = Vec::new();
        for (key, one) in &mut embedder.requests {
            if std::mem::take(&mut one.is_sent) && down.cause.by_itself() {
                one.deaths += 1;
                if one.deaths >= DEATHS_MAX {
                    poison.push(*key);
                }
            }
        }
        embedder.failures = match down.had_served {
            true => 0,
            false => embedder.failures + 1,
        };
        let is_hopeless = down.cause.is_decision() || embedder.failures >= HOPELESS_AFTER;
        let error = is_hopeless.then(|| {
            let reason = format!("the embedding engine {}", down.cause);
            let why = NoModel::new(down, reason);
            let may_wait = matches!(&down.cause, Cause::NoRoom(refusal) if refusal.may_fit_later());
            match may_wait {
                true => ApiError::new(why.code, why.reason).with_retry(why.retry_ms),
                false => ApiError::new(why.code, why.reason),
            }
        });
        for key in poison {
            let text = format!(
                "this request ended the engine whenever it ran; last time it {}",
                down.cause
            );
            self.refuse_embedding(key, &ApiError::new(Code::Poison, text));
        }
        if is_crowded {
            // Who is told to come again finds room.
            self.notice(Notice::Crowded);
        }
        if let Some(error) = error {
            self.end_embedder(&error);
            if let Some(embedder) = &mut self.embedder {
                embedder.refusal = Some((Instant::now(), error));
                embedder.failures = 0;
            }
        }
    }

    /// Ends the worker; who waits is refused with `error`.
    fn end_embedder(&mut self, error: &ApiError) {
        let Some(embedder) = &mut self.embedder else {
            return;
        };
        embedder.worker = None;
        for key in Vec::from_iter(embedder.requests.keys().copied()) {
            self.refuse_embedding(key, error);
        }
        self.embedder_takes(0);
    }

    /// A user calls a request off; whether it was one of these.
    pub(super) fn cancel_embedding(&mut self, asked: &Asked) -> bool {
        let Some(embedder) = &mut self.embedder else {
            return false;
        };
        let Some(key) = embedder.key_of(asked) else {
            return false;
        };
        if let Some(Running {
            serves: Some((commands, _)),
            ..
        }) = &embedder.worker
        {
            // One that does not hear it answers a request that nobody knows any more.
            let _ = commands.try_send(Command::Cancel(key));
        }
        self.refuse_embedding(key, &ApiError::new(Code::Cancelled, "called off"));
        true
    }

    /// Memory is short: what nobody uses goes first, and with the worker that talks goes this one too.
    pub(super) fn press_embedder(&mut self) {
        let level = self.level;
        let Some(embedder) = &mut self.embedder else {
            return;
        };
        if embedder.worker.is_none() || level < Level::Trim {
            return;
        }
        if level >= Level::Kill {
            let text = "memory is short; ask again later";
            self.end_embedder(&ApiError::new(Code::OutOfMemory, text).with_retry(5000));
        } else if embedder.requests.is_empty() {
            info!(
                model = embedder.name(),
                "embedding model unloaded: memory is short"
            );
            embedder.worker = None;
            self.embedder_takes(0);
        }
    }

    /// Ends a worker that nobody needs; says when to look again.
    pub(super) fn rest_embedder(&mut self, now: Instant) -> Option<Instant> {
        if self.level >= Level::Trim {
            self.press_embedder();
        }
        let embedder = self.embedder.as_mut()?;
        embedder.feed();
        let idle = embedder.settings.idle?;
        if embedder.worker.is_none() || !embedder.requests.is_empty() {
            return None;
        }
        let until = embedder.last_used + idle;
        if until > now {
            return earliest(None, Some(until));
        }
        let idle_seconds = idle.as_secs();
        info!(
            model = embedder.name(),
            idle_seconds, "embedding model unloaded: nobody asks"
        );
        embedder.worker = None;
        self.embedder_takes(0);
        None
    }

    /// Tells the account, and who decides by it.
    fn embedder_takes(&mut self, bytes: u64) {
        if self.node.set_embedding_bytes(bytes) {
            self.notice(Notice::Embedding(bytes));
        }
    }
}

/// To whoever asks a node without an embedding model.
pub(super) fn not_served() -> ApiError {
    ApiError::new(
        Code::NotSupported,
        "no embedding model is configured on this node: embeddings.model names one",
    )
}

fn check_dimensions(wanted: u32, n_dims: u32) -> Result<(), ApiError> {
    match wanted > n_dims {
        true => Err(ApiError::new(
            Code::InvalidRequest,
            format!("dimensions is {wanted}, the vectors of this model have {n_dims}"),
        )
        .with_param("dimensions")),
        false => Ok(()),
    }
}

fn text_error(error: &TextError) -> ApiError {
    let at = error.index;
    match &error.error {
        JobError::TooLong {
            n_prompt,
            n_ctx_seq,
        } => ApiError::new(
            Code::ContextLengthExceeded,
            format!(
                "input[{at}] has {n_prompt} tokens, a text may have {n_ctx_seq}: split it, or set truncate"
            ),
        )
        .with_param(format!("input[{at}]")),
        other => {
            let mut error = super::serve::api_error(other, false);
            error.message = format!("input[{at}]: {}", error.message);
            error
        }
    }
}
