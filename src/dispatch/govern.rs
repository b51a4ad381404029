//! The dispatcher's side of the governor: what it tells is obeyed and published, what happens here and what
//! operators order is told to it.

use tracing::{info, warn};

use super::Dispatch;
use super::job::{Cancel, Job};
use super::report::retained;
use crate::frames::{Command, Loaded};
use crate::governor::{Notice, Serving, Wish, Word};
use crate::link::{Message, Props, Publish};
use crate::wire::error::{ApiError, Code};
use crate::wire::report::{CommandStatus, ModelCommand, Pressure, PressureEvent, SwitchEvent};
use crate::wire::request::Priority;
use crate::wire::topic::Ordered;

/// Bytes of an operator's order that are looked at: a model's name in a little JSON.
const ORDER_BYTES_MAX: usize = 4096;
/// When a request that was refused for want of memory may be asked again.
const RETRY_AFTER_MS: u64 = 5000;
/// Events are of interest for an hour.
const EVENT_EXPIRY_SECONDS: u32 = 3600;

impl Dispatch {
    /// To the governor; one that is behind misses a notice only when 64 of them wait.
    pub(super) fn notice(&self, notice: Notice) {
        if let Err(error) = self.notices.try_send(notice) {
            warn!(%error, "the governor is behind");
        }
    }

    pub(super) fn on_word(&mut self, word: Word) {
        match word {
            Word::Pressure {
                level,
                available_bytes,
                stale,
            } => {
                self.level = level;
                self.press_embedder();
                let since_ms = match self.node.pressure() {
                    Some(known) if known.level == level => known.since_ms,
                    _ => self.clock.now_ms(),
                };
                self.node.set_pressure(Pressure {
                    level,
                    since_ms,
                    available_bytes,
                    stale,
                });
            }
            Word::Trim => {
                // A worker that is not there has nothing to drop.
                let _ = self.commands.try_send(Command::Trim);
            }
            Word::Grow => {
                // One that is not there may grow when it comes.
                let _ = self.commands.try_send(Command::Grow);
                self.pin_prompts();
            }
            Word::Stepped {
                change,
                action,
                returned_bytes,
                ago,
            } => {
                let event = PressureEvent {
                    from: change.from,
                    to: change.to,
                    at_ms: self.clock.now_ms().saturating_sub(ago.as_millis() as u64),
                    available_bytes: change.available_bytes,
                    threshold_bytes: change.threshold_bytes,
                    action,
                    relief_bytes: change.relief_bytes,
                    returned_bytes,
                };
                self.event("pressure", &event);
            }
            Word::Switching(wish) => {
                info!(model = wish.model, "switching");
                self.command_state(&wish, CommandStatus::Executing, None);
            }
            Word::Switched { errand, outcome } => {
                let (status, reason) = match outcome {
                    Ok(()) => (CommandStatus::Successful, None),
                    Err(reason) => (CommandStatus::Failed, Some(reason)),
                };
                if let Some(reason) = &reason {
                    let (model, why) = (&errand.model, &errand.why);
                    warn!(model, why, reason, "model not served");
                }
                let event = SwitchEvent {
                    model: errand.model,
                    at_ms: self.clock.now_ms(),
                    served: reason.is_none(),
                    reason: reason.clone().unwrap_or(errand.why),
                };
                self.event("switch", &event);
                if let Some(wish) = errand.wish {
                    self.command_state(&wish, status, reason);
                }
            }
            Word::SmallContext(small) => {
                self.small_context = small;
                if let (false, Some(n_ctx_seq)) = (small, self.node.n_ctx_seq()) {
                    self.n_ctx_full = n_ctx_seq;
                }
            }
            Word::Trial(takes) => self.on_trial(takes),
            Word::Chosen(model) => self.on_chosen(model),
            Word::NoTurn {
                model,
                why,
                is_lasting,
            } => self.on_no_turn(&model, why, is_lasting),
            Word::Power(power) => {
                self.node.set_power(power);
                self.pause_surplus();
            }
        }
    }

    /// An operator's order; the broker's rules say who is one.
    pub(super) fn on_order(&mut self, ordered: Ordered, message: Message) {
        let is_about_updates = match &ordered {
            Ordered::Desired => true,
            Ordered::Set { key } => key == "update",
            Ordered::Command { op, .. } => op == "ota",
        };
        if is_about_updates {
            self.on_ota_order(&ordered, &message);
            return self.acknowledge(Some(message.ack));
        }
        let outcome = match ordered {
            _ if message.payload.len() > ORDER_BYTES_MAX => Err(format!(
                "{} bytes, at most {ORDER_BYTES_MAX} are read",
                message.payload.len()
            )),
            Ordered::Set { key } if key == "model" => model_name(&message.payload).map(|model| {
                Some(Wish {
                    model,
                    ticket: None,
                })
            }),
            Ordered::Set { key } if key == "cancel" => match message.payload.trim_ascii() {
                b"all" => {
                    self.cancel_all();
                    Ok(None)
                }
                _ => Err("the payload must be all: every request is called off".to_owned()),
            },
            Ordered::Set { key } => Err(format!(
                "no key {key:?}: known are model, cancel and update"
            )),
            Ordered::Desired => Ok(None),
            // What we, or anybody, wrote about a command that is under way or over.
            Ordered::Command { op, ticket } if op == "model" => {
                command(&message.payload).map(|asked| {
                    asked.map(|model| Wish {
                        model,
                        ticket: Some(ticket),
                    })
                })
            }
            Ordered::Command { op, .. } => Err(format!("no command {op:?}: known are model, ota")),
        };
        match outcome {
            Ok(Some(wish)) => self.notice(Notice::Wish(wish)),
            Ok(None) => {}
            Err(reason) => warn!(topic = message.topic, reason, "order ignored"),
        }
        self.acknowledge(Some(message.ack));
    }

    /// Why nothing new is taken, if memory is short.
    pub(super) fn short_of_memory(&self) -> Option<ApiError> {
        if self.level.admits() {
            return None;
        }
        let available = self
            .node
            .pressure()
            .and_then(|pressure| pressure.available_bytes);
        let left = match available {
            Some(bytes) => format!("{} MiB are left", bytes >> 20),
            None => "and how much is left cannot be read".to_owned(),
        };
        let message = format!("memory is short: {left}; ask again later");
        Some(ApiError::new(Code::OutOfMemory, message).with_retry(RETRY_AFTER_MS))
    }

    /// What jobs have to wait for now.
    pub(super) fn straits(&self) -> Straits {
        Straits {
            is_short: !self.level.admits(),
            small_context: match self.small_context {
                true => self.node.n_ctx_seq(),
                false => None,
            },
        }
    }

    /// Has the jobs that came last leave the worker until as many run as may. What they have made is kept;
    /// they go on in their turn, before all that never began.
    fn pause_surplus(&mut self) {
        let Some((n_seq, _)) = self.node.serving() else {
            return;
        };
        let jobs = self.jobs.values_mut();
        let mut running: Vec<_> = jobs.filter(|job| self.queue.is_running(job.key)).collect();
        running.sort_by_key(|job| job.key);
        for (place, job) in running.into_iter().enumerate() {
            match job.cancel {
                Cancel::No if place >= n_seq => job.cancel = Cancel::ParkWanted,
                Cancel::ParkWanted if place < n_seq => job.cancel = Cancel::No,
                _ => {}
            }
        }
    }

    /// A release is being tried. Streams go on where memory holds both models; where it does not, the worker ends
    /// and they are told.
    fn on_trial(&mut self, takes: Option<std::time::Duration>) {
        self.parks_until = takes.map(|takes| tokio::time::Instant::now() + takes);
    }

    fn command_state(&mut self, wish: &Wish, status: CommandStatus, reason: Option<String>) {
        let Some(ticket) = &wish.ticket else { return };
        let topic = self.settings.names.command("model", ticket);
        let state = ModelCommand {
            status,
            model: wish.model.clone(),
            reason,
        };
        self.send(retained(topic, &state));
    }

    pub(super) fn event<T: serde::Serialize>(&mut self, kind: &str, event: &T) {
        self.event_with_token(kind, event, None);
    }

    /// The same; its delivery is told by the token.
    pub(super) fn event_with_token<T: serde::Serialize>(
        &mut self,
        kind: &str,
        event: &T,
        token: Option<u64>,
    ) {
        let topic = self.settings.names.event(kind);
        let document = retained(topic, event);
        self.send(Publish {
            retain: false,
            token,
            props: Props {
                message_expiry_s: Some(EVENT_EXPIRY_SECONDS),
                ..document.props
            },
            ..document
        });
    }
}

/// What jobs have to wait for.
#[derive(Clone, Copy)]
pub(super) struct Straits {
    /// Memory is short.
    is_short: bool,
    /// So small is the context for want of memory, until a larger one is there.
    small_context: Option<u32>,
}

impl Straits {
    /// Whether a waiting job must not enter the worker: one of the class `batch` that has not begun, while
    /// memory is short; and one that has found the context too small.
    pub(super) fn must_wait(self, job: &Job) -> bool {
        let is_batch = job.request.priority == Some(Priority::Batch);
        let has_outgrown = match (job.outgrown, self.small_context) {
            (Some(outgrown), Some(n_ctx_seq)) => n_ctx_seq <= outgrown,
            _ => false,
        };
        self.is_short && is_batch && !job.has_begun() || has_outgrown
    }
}

/// What the governor has to know of a loaded model.
pub(super) fn serving(loaded: &Loaded) -> Serving {
    let sum = |part: fn(&crate::frames::BufferUse) -> u64| loaded.buffers.iter().map(part).sum();
    let (weights_bytes, kv_bytes): (u64, u64) = (sum(|b| b.weights_bytes), sum(|b| b.kv_bytes));
    let compute_bytes: u64 = sum(|b| b.compute_bytes);
    Serving {
        name: loaded.name.clone(),
        n_ctx: loaded.n_ctx,
        kv_bytes,
        worker_bytes: weights_bytes + kv_bytes + compute_bytes,
        weights_bytes,
    }
}

/// The payload of `set/model`: the bare name.
fn model_name(payload: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(payload).map_err(|_| "the payload is not UTF-8".to_owned())?;
    match text.trim() {
        "" => Err("the payload is empty, a model's name is expected".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// The payload of `cmd/model/{cid}`: `None` unless it is an order. An empty one is its requester's clearing.
fn command(payload: &[u8]) -> Result<Option<String>, String> {
    if payload.is_empty() {
        return Ok(None);
    }
    let command: ModelCommand = serde_json::from_slice(payload)
        .map_err(|error| format!("expected {{\"status\":\"init\",\"model\":\"NAME\"}}: {error}"))?;
    Ok((command.status == CommandStatus::Init).then_some(command.model))
}
