//! A packet becomes a job, a repeat of what was said, a cancel, or an error final.
//!
//! Bounds are checked in this order: retained flag, topic, the user's rate, op, response topic, repeat, size
//! and shape of the body, model, room; of a pool also whether this node takes more. What is refused gets its
//! error final first and its PUBACK after (`refusals`), so that no window sticks.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::durable::StoreDone;
use super::embed;
use super::energy::Spent;
use super::job::{Address, Cancel, Ending, Job, Phase};
use super::logprobs::Logprobs;
use super::output::Output;
use super::queue::Order;
use super::tokens::Tokenizing;
use super::{Answered, Asked, BACKLOG_MAX, Dispatch, digest_of};
use crate::frames::{Finish, JobKey, Timings, Token};
use crate::link::{AckToken, Message};
use crate::store;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::{Form, Replier};
use crate::wire::request::{self, Beside, Request};
use crate::wire::topic::{Incoming, Name, Op, RESPONSE_TOPIC_BYTES_MAX, RequestId};

/// A request whose topic is in order.
struct Arrived {
    address: Address,
    op: Op,
    message: Message,
}

impl Dispatch {
    pub(super) fn on_message(&mut self, message: Message) {
        if self.draining.is_some() && !self.is_of_pool(&message.ack) {
            // Not acknowledged: the broker keeps it for our next connection. It keeps nothing of a pool;
            // there the requester is told, and asks another node.
            debug!("message left with the broker");
            return;
        }
        if self.backlog.len() >= BACKLOG_MAX {
            // At most as many as link lets through unacknowledged. QoS 0 promises nothing.
            if message.qos > 0 {
                self.waiting.push_back(message);
            }
            return;
        }
        if let Some(ordered) = self.settings.names.parse_order(&message.topic) {
            return self.on_order(ordered, message);
        }
        if message.retain {
            self.ignore("it is retained, and would be asked again at each start");
            return self.acknowledge(Some(message.ack));
        }
        match self.settings.names.parse(&message.topic) {
            Err(error) => {
                self.ignore(&error.to_string());
                self.acknowledge(Some(message.ack));
            }
            Ok(Incoming::Cancel { user, id }) => {
                self.cancel((user, id));
                self.acknowledge(Some(message.ack));
            }
            Ok(Incoming::Forget { user, session }) => self.forget(user, session, message.ack),
            Ok(Incoming::Request { user, op, id }) => self.on_request(user, op, id, message),
        }
    }

    fn on_request(&mut self, user: Name, op: Result<Op, String>, id: RequestId, message: Message) {
        let names = &self.settings.names;
        let standard = names.resp(&user, &id);
        let wanted = message.props.response_topic.clone();
        let foreign = wanted
            .as_ref()
            .filter(|topic| !names.resp_allowed(&user, topic))
            .cloned();
        let address = Address {
            topic: if foreign.is_some() {
                standard
            } else {
                wanted.unwrap_or(standard)
            },
            user,
            id,
            correlation: message.props.correlation.clone(),
        };
        let (op, unknown) = match op {
            Ok(op) => (op, None),
            Err(name) => (Op::Chat, Some(name)),
        };
        let accept = accept_of(&message);
        let replier = self.replier(
            &address.id,
            op,
            Form::of(op, true, accept.as_deref()),
            1,
            self.clock.now_ms(),
        );
        let limits = self.settings.user(&address.user).limits;
        let (bytes, now) = (message.payload.len(), Instant::now().into_std());
        if let Err(excess) = self.quotas.arrive(&address.user, &limits, bytes, now) {
            return self.refuse_excess(&address, &replier, &excess.to_error(), message.ack);
        }
        let refusal = if let Some(name) = unknown {
            let ops = "chat, complete, text, text-stream, tokenize, embed, cancel, forget";
            Some(ApiError::new(
                Code::UnknownOp,
                format!("no op `{name}`: known are {ops}"),
            ))
        } else if let Some(topic) = foreign {
            let allowed = self.settings.names.resp_filter(&address.user);
            // It may have 65,535 bytes.
            let shown: String = topic.chars().take(100).collect();
            Some(ApiError::new(
                Code::ResponseTopicDenied,
                format!(
                    "response topic {shown:?} is not taken: expected at most \
                     {RESPONSE_TOPIC_BYTES_MAX} bytes inside {allowed}, without wildcards, empty \
                     levels and control characters"
                ),
            ))
        } else if op == Op::Embed && self.embedder.is_none() {
            Some(embed::not_served())
        } else if !self.settings.user(&address.user).allows(op) {
            Some(ApiError::new(
                Code::NotAllowed,
                format!("user {} may not use op {}", address.user, op.as_str()),
            ))
        } else {
            None
        };
        match refusal {
            Some(error) => self.refuse(&address, &replier, &error, Some(message.ack)),
            None => self.on_arrived(Arrived {
                address,
                op,
                message,
            }),
        }
    }

    fn on_arrived(&mut self, arrived: Arrived) {
        let Arrived {
            address,
            op,
            message,
        } = arrived;
        let asked = (address.user.clone(), address.id.clone());
        let accept = accept_of(&message);
        let replier = self.replier(
            &address.id,
            op,
            Form::of(op, true, accept.as_deref()),
            1,
            self.clock.now_ms(),
        );
        if op == Op::Embed {
            let pool_refusal = match self.is_of_pool(&message.ack) {
                true => self.pool_refusal(),
                false => None,
            };
            return match pool_refusal {
                Some(error) => self.refuse(&address, &replier, &error, Some(message.ack)),
                None => self.embed(address, replier, message),
            };
        }
        let digest = digest_of(op.as_str(), &message.payload);
        if let Some(repeat) = self.repeat_of(&asked, &digest) {
            return self.on_repeat(asked, repeat, &address, &replier, message);
        }
        let request = match self.parse(op, &message, &address.user) {
            Ok(request) => request,
            Err(error) => return self.refuse(&address, &replier, &error, Some(message.ack)),
        };
        if request.tools.is_some() && Form::of(op, request.stream, accept.as_deref()).is_bare() {
            let text = "tools are given, and the answer is asked for as text/plain, which has no place for calls";
            let error = ApiError::new(Code::InvalidRequest, text).with_param("tools");
            return self.refuse(&address, &replier, &error, Some(message.ack));
        }
        if self.is_of_pool(&message.ack) {
            let kept = request.conversation().map(|_| {
                let text = "a conversation is kept by one node: ask that, and not its pool";
                ApiError::new(Code::NotSupported, text).with_param("session")
            });
            if let Some(error) = kept.or_else(|| self.pool_refusal()) {
                return self.refuse(&address, &replier, &error, Some(message.ack));
            }
        }
        let model = self.bound(&request);
        if op == Op::Tokenize {
            if let Some(error) = self.other_serves(model.as_deref()) {
                return self.refuse(&address, &replier, &error, Some(message.ack));
            }
            return self.tokenize(
                Tokenizing {
                    address,
                    replier,
                    ack: message.ack,
                },
                request.input,
            );
        }
        if let Some(error) = self.no_model() {
            return self.refuse(&address, &replier, &error, Some(message.ack));
        }
        if let Some(error) = self.short_of_memory() {
            return self.refuse(&address, &replier, &error, Some(message.ack));
        }
        let body_bytes = message.payload.len() + request.filled_bytes();
        if let Err(error) = self.room(&address.user, body_bytes) {
            return self.refuse_excess(&address, &replier, &error, message.ack);
        }
        let bound = model.as_deref();
        if let Err(error) = self.in_time(&address.user, &request, bound, body_bytes) {
            return self.refuse(&address, &replier, &error, Some(message.ack));
        }
        let order = self.next_key;
        let attempt = store::FIRST_ATTEMPT;
        let record = store::Record {
            job: store::JobId {
                user: asked.0.to_string(),
                id: asked.1.to_string(),
            },
            op: op.as_str().to_owned(),
            digest,
            body: message.payload.clone(),
            response_topic: Some(address.topic.clone()),
            correlation: address.correlation.clone(),
            accept,
            beside: self
                .beside(&message)
                .ok()
                .and_then(|mut beside| {
                    beside.keep(&request);
                    beside.to_bytes()
                })
                .map(Bytes::from),
            model,
            accepted_at_ms: self.clock.now_ms(),
        };
        let job = self.take(
            address,
            op,
            request,
            &record,
            Place { order, attempt },
            Some(message.ack),
        );
        let store = self.store.clone();
        self.store_work.spawn(async move {
            StoreDone::Accepted {
                job,
                outcome: store.accept(record).await,
            }
        });
    }

    /// Why no model will serve soon, if so.
    pub(super) fn no_model(&self) -> Option<ApiError> {
        let no_model = self.node.no_model()?;
        let text = format!("no model serves: {}", no_model.reason);
        Some(ApiError::new(no_model.code, text).with_retry(no_model.retry_ms))
    }

    /// Bytes to a request with this user's defaults, for a model that we have.
    fn parse(&self, op: Op, message: &Message, user: &Name) -> Result<Request, ApiError> {
        if message.payload.len() > self.settings.limits.payload_bytes {
            let (found, limit) = (message.payload.len(), self.settings.limits.payload_bytes);
            return Err(ApiError::new(
                Code::PayloadTooLarge,
                format!("{found} bytes, at most {limit} are taken"),
            ));
        }
        let mut request = request::parse(op, &message.payload, &self.settings.limits)?;
        request.add(&self.beside(message)?)?;
        self.settings.user(user).check(&request)?;
        request.fill(&self.settings.templates)?;
        request.apply_defaults(&self.settings.user(user).defaults);
        request.check_session()?;
        if request.conversation().is_some() && !self.settings.keeps_sessions {
            let text = "this node keeps no conversations (sessions.per_user_max is 0): send all of it with messages";
            return Err(ApiError::new(Code::NotSupported, text).with_param("session"));
        }
        if let Some(model) = &request.model {
            self.may_name(model)?;
        }
        Ok(request)
    }

    fn beside(&self, message: &Message) -> Result<Beside, ApiError> {
        let props = &message.props;
        Beside::read(&props.user, props.message_expiry_s, &self.settings.limits)
    }

    /// A job with its place in the queue.
    fn take(
        &mut self,
        address: Address,
        op: Op,
        request: Request,
        record: &store::Record,
        place: Place,
        ack: Option<AckToken>,
    ) -> JobKey {
        let key = self.new_key();
        let form = Form::of(op, request.stream, record.accept.as_deref());
        let replier = Replier {
            model: self.model_for(record.model.as_deref()),
            ..self.replier(&address.id, op, form, place.attempt, record.accepted_at_ms)
        };
        let coalesce = request.coalesce_ms.map_or(self.settings.coalesce, |ms| {
            Duration::from_millis(ms.into())
        });
        let coalesce_bytes = if coalesce.is_zero() {
            1
        } else {
            self.settings.coalesce_bytes
        };
        // Without a seed of the requester's own, a repeated attempt must not need one either: it starts anew.
        let sampling = request.sampling(&self.settings.user(&address.user).defaults, random_seed());
        let deadline = request.deadline_ms.map(|ms| {
            // After a restart, what is left of it; a clock that was set back meanwhile takes nothing away.
            let passed_ms = self.clock.now_ms().saturating_sub(record.accepted_at_ms);
            Instant::now() + Duration::from_millis(ms.saturating_sub(passed_ms))
        });
        self.open
            .insert((address.user.clone(), address.id.clone()), key);
        let body_bytes = record.body.len() + request.filled_bytes();
        self.queued_bytes += body_bytes;
        self.quotas.entered(&address.user, body_bytes);
        debug!(user = %address.user, id = %address.id, op = op.as_str(), "request taken");
        let logprobs = Logprobs::new(request.logprobs.is_some());
        let mut job = Job {
            key,
            digest: record.digest,
            body_bytes,
            address,
            replier,
            request,
            model: record.model.clone(),
            sampling,
            committed: ack.is_none(),
            acks: ack.into_iter().collect(),
            arrived: Instant::now(),
            order: place.order,
            deadline,
            place: None,
            told_queue: None,
            began: None,
            stays: Timings::default(),
            first_token: None,
            last_token: None,
            output: Output::new(coalesce, coalesce_bytes),
            calls: None,
            unchecked: Some(place.order),
            prompt_ids: Vec::new(),
            output_ids: Vec::new(),
            logprobs,
            n_cached: 0,
            ids_of: String::new(),
            head: None,
            parts: Vec::new(),
            n_prompt: 0,
            resumed: 0,
            spent: Spent::default(),
            phase: Phase::Open,
            ending: None,
            cancel: Cancel::No,
            outgrown: None,
            parked: None,
            conversation: None,
        };
        self.forms_seen |= !job.to_check().is_empty();
        self.join(&mut job);
        self.jobs.insert(key, job);
        self.line_up(key);
        key
    }

    /// What the store kept over a restart: jobs start again, finals that nobody got are said again.
    pub(super) fn recover(&mut self, recovered: store::Recovered) {
        let (pending, finals) = (recovered.pending.len(), recovered.finals.len());
        if pending + finals > 0 {
            info!(pending, finals, "jobs recovered");
        }
        for meta in recovered.finals {
            let Some(asked) = asked_of(&meta.job) else {
                continue;
            };
            let delivered = matches!(
                meta.state,
                store::JobState::Finished {
                    delivered: true,
                    ..
                }
            );
            let answered = Answered {
                digest: meta.digest,
                since: Instant::now(),
                delivered,
                called_off: false, // Known when it is read.
            };
            self.answered.insert(asked.clone(), answered);
            if !delivered {
                self.undelivered.push_back(asked);
            }
        }
        for store::Pending {
            record,
            order,
            attempt,
        } in recovered.pending
        {
            let place = Place { order, attempt };
            self.next_key = self.next_key.max(order + 1);
            let (Some((user, id)), Some(op)) = (asked_of(&record.job), Op::from_level(&record.op))
            else {
                warn!(
                    user = record.job.user,
                    id = record.job.id,
                    op = record.op,
                    "stored job of another version left alone"
                );
                continue;
            };
            let topic = record
                .response_topic
                .clone()
                .unwrap_or_else(|| self.settings.names.resp(&user, &id));
            let address = Address {
                user,
                id,
                topic,
                correlation: record.correlation.clone(),
            };
            let beside = record.beside.as_deref().map(Beside::from_bytes);
            let parsed = request::parse(op, &record.body, &self.settings.limits);
            let parsed = parsed.and_then(|mut request| {
                request.add(&beside.unwrap_or_default())?;
                // Done already, when it was accepted.
                request.fill(&self.settings.templates)?;
                Ok(request)
            });
            // It is for that model and no other, also under another configuration.
            let record = match self.still_bound(&record) {
                Ok(model) => store::Record { model, ..record },
                Err(error) => {
                    let key = self.take_lost(address, op, &record, place);
                    if let Some(job) = self.jobs.get_mut(&key) {
                        job.end(Ending::Failed(error));
                    }
                    continue;
                }
            };
            match parsed {
                Ok(mut request) => {
                    request.apply_defaults(&self.settings.user(&address.user).defaults);
                    let key = self.take(address, op, request, &record, place, None);
                    self.keep_latest(key);
                    self.announce(key);
                    self.recall(key);
                }
                Err(error) => {
                    // Taken under other limits than today's.
                    let key = self.take_lost(address, op, &record, place);
                    if let Some(job) = self.jobs.get_mut(&key) {
                        job.end(Ending::Failed(error));
                    }
                }
            }
        }
    }

    /// A stored job that cannot be answered any more: it still gets its one final.
    fn take_lost(
        &mut self,
        address: Address,
        op: Op,
        record: &store::Record,
        place: Place,
    ) -> JobKey {
        let request = request::parse(op, b"-", &self.settings.limits)
            .expect("plain text is a request for any op");
        let key = self.take(address, op, request, record, place, None);
        self.queue.remove(key);
        key
    }

    /// Says `accepted` again, as to a requester that asks twice.
    fn announce(&mut self, key: JobKey) {
        let place = self.place_of(key);
        let Some(job) = self.jobs.get_mut(&key).filter(|job| job.committed) else {
            return;
        };
        if let Some(reply) = job.accepted(&place) {
            let publish = job.address.publish(self.settings.names.node(), reply, None);
            self.send(publish);
        }
    }

    fn repeat_of(&self, asked: &Asked, digest: &[u8; 32]) -> Option<Repeat> {
        if let Some(key) = self.open.get(asked) {
            let same = self.jobs.get(key).is_some_and(|job| job.digest == *digest);
            return Some(if same {
                Repeat::Open(*key)
            } else {
                Repeat::Other
            });
        }
        let known = self.answered.get(asked)?;
        Some(if known.digest == *digest {
            Repeat::Answered
        } else {
            Repeat::Other
        })
    }

    fn on_repeat(
        &mut self,
        asked: Asked,
        repeat: Repeat,
        address: &Address,
        replier: &Replier,
        message: Message,
    ) {
        match repeat {
            Repeat::Open(key) => {
                self.announce(key);
                match self.jobs.get_mut(&key).filter(|job| !job.committed) {
                    // Until the first copy is on disk, neither is acknowledged.
                    Some(job) => job.acks.push(message.ack),
                    None => self.acknowledge(Some(message.ack)),
                }
            }
            Repeat::Answered => self.read_final(asked, Some(Box::new(message))),
            Repeat::Other => {
                let text = format!(
                    "id `{}` was used for another request in the last minutes: take a new one",
                    asked.1
                );
                self.refuse(
                    address,
                    replier,
                    &ApiError::new(Code::IdReused, text),
                    Some(message.ack),
                );
            }
        }
    }

    /// An operator calls off everything.
    pub(super) fn cancel_all(&mut self) {
        let all: Vec<Asked> = self.open.keys().cloned().collect();
        info!(
            n_requests = all.len(),
            "an operator called off all requests"
        );
        for asked in all {
            self.cancel(asked);
        }
    }

    fn cancel(&mut self, asked: Asked) {
        if self.cancel_embedding(&asked) {
            return;
        }
        let Some(key) = self.open.get(&asked) else {
            debug!(user = %asked.0, id = %asked.1, "nothing to cancel");
            return;
        };
        let key = *key;
        let Some(job) = self
            .jobs
            .get_mut(&key)
            .filter(|job| job.phase == Phase::Open)
        else {
            return;
        };
        if job.unchecked.take().is_some() || self.queue.is_waiting(key) {
            let timings = job.timings_so_far();
            self.stop(key, Ending::Finished(Finish::Cancelled, timings));
        } else {
            job.cancel = Cancel::Wanted;
        }
    }

    fn replier(
        &self,
        id: &RequestId,
        op: Op,
        form: Form,
        attempt: u32,
        accepted_at_ms: u64,
    ) -> Replier {
        Replier {
            form,
            op,
            id: id.clone(),
            model: self.home_or_serving().to_owned(),
            node: self.settings.names.node().clone(),
            created_s: accepted_at_ms / 1000,
            attempt,
        }
    }
}

impl Job {
    /// Counts of a job that no worker will report on.
    pub(super) fn timings_so_far(&self) -> Timings {
        let count = |ids: &[Token]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        Timings {
            n_prompt: count(&self.prompt_ids),
            n_output: count(&self.output_ids),
            ..Timings::default()
        }
    }
}

/// Where a job stands in line, and how often it was begun.
#[derive(Clone, Copy)]
struct Place {
    order: Order,
    attempt: u32,
}

/// What a known id means.
enum Repeat {
    /// The same request; it runs.
    Open(JobKey),
    /// The same request; it was answered.
    Answered,
    /// Another request under the same id.
    Other,
}

pub(super) fn asked_of(job: &store::JobId) -> Option<Asked> {
    Some((Name::new(&job.user).ok()?, RequestId::new(&job.id).ok()?))
}

/// User property `accept` of MQTT 5.
fn accept_of(message: &Message) -> Option<String> {
    message
        .props
        .user
        .iter()
        .find(|(key, _)| key == "accept")
        .map(|(_, value)| value.clone())
}

fn random_seed() -> u64 {
    getrandom::u64().unwrap_or(0x5eed)
}
