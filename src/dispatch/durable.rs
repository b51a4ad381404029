//! The store's side of the jobs: `accepted` after the commit, the final on disk before it is published,
//! and said again, the same bytes, to whoever asks again.
//!
//! Part of the dispatcher's one task: it changes the dispatcher's state and waits for nothing. The work on
//! disk runs in the store; what it answers comes back as a [`StoreDone`].

use bytes::Bytes;
use tokio::time::Instant;
use tracing::warn;

use crate::frames::{Command, JobKey};
use crate::link::{AckToken, Message, Publish};
use crate::store::{self, StoreError};
use crate::wire::error::{ApiError, Code};
use crate::wire::reply;

use super::job::{Address, Cancel, Ending, Phase, Replay};
use super::{Answered, Asked, Dispatch, STORE_RETRY, intake};

/// What the store answered.
pub(super) enum StoreDone {
    Accepted {
        job: JobKey,
        outcome: Result<u64, StoreError>,
    },
    Finished {
        job: JobKey,
        publish: Box<Publish>,
        outcome: Result<(), StoreError>,
    },
    Read {
        asked: Asked,
        message: Option<Box<Message>>,
        outcome: Result<Option<store::Final>, StoreError>,
    },
    Delivered {
        asked: Asked,
        outcome: Result<(), StoreError>,
    },
    Forgotten {
        outcome: Result<(), StoreError>,
    },
    Swept {
        outcome: Result<store::Swept, StoreError>,
    },
    Recalled {
        job: JobKey,
        outcome: Result<Option<Bytes>, StoreError>,
    },
    SessionForgotten {
        ack: AckToken,
        outcome: Result<(), StoreError>,
        /// It is in no saved state any more.
        is_out: bool,
    },
}

impl Dispatch {
    pub(super) fn on_store(&mut self, done: StoreDone) {
        match done {
            StoreDone::Accepted { job, outcome } => self.on_committed(job, outcome),
            StoreDone::Finished {
                job,
                publish,
                outcome,
            } => self.on_finished(job, *publish, outcome),
            StoreDone::Read {
                asked,
                message,
                outcome,
            } => self.on_read(&asked, message, outcome),
            StoreDone::Delivered { asked, outcome } => match outcome {
                Ok(()) => {
                    if let Some(answered) = self.answered.get_mut(&asked) {
                        answered.delivered = true;
                    }
                }
                // It will be said once more after a restart; that is allowed.
                Err(error) => warn!(%error, "delivery not recorded"),
            },
            StoreDone::Forgotten { outcome } => {
                if let Err(error) = outcome {
                    warn!(%error, "a request that was called off is remembered");
                }
            }
            StoreDone::Swept { outcome } => match outcome {
                Ok(swept) => swept.overdue.iter().for_each(|job| self.on_overdue(job)),
                Err(error) => warn!(%error, "store not swept"),
            },
            StoreDone::Recalled { job, outcome } => self.on_recalled(job, outcome),
            StoreDone::SessionForgotten {
                ack,
                outcome,
                is_out,
            } => match outcome {
                Ok(()) if is_out => self.acknowledge(Some(ack)),
                Ok(()) => warn!("conversation not forgotten: it is among the saved states"),
                // Not acknowledged: the broker brings it again.
                Err(error) => warn!(%error, "conversation not forgotten"),
            },
        }
    }

    pub(super) fn on_committed(&mut self, key: JobKey, outcome: Result<u64, StoreError>) {
        let place = self.place_of(key);
        let Some(job) = self.jobs.get_mut(&key) else {
            return;
        };
        match outcome {
            Ok(_) => {
                job.committed = true;
                self.meters.n_accepted += 1;
                let accepted = job
                    .accepted(&place)
                    .map(|reply| job.address.publish(self.settings.names.node(), reply, None));
                let acks = std::mem::take(&mut job.acks);
                if let Some(accepted) = accepted {
                    self.send(accepted);
                }
                acks.into_iter().for_each(|ack| self.acknowledge(Some(ack)));
                self.keep_latest(key);
                self.recall(key);
            }
            Err(error) => {
                warn!(%error, "request not accepted: the job store refused it");
                let mut job = self.jobs.remove(&key).expect("looked up above");
                self.open
                    .remove(&(job.address.user.clone(), job.address.id.clone()));
                self.queue.remove(key);
                self.left(&job);
                if let Some(pools) = &mut self.pools {
                    pools.store_was_full();
                }
                let _ = self.commands.try_send(Command::Cancel(key));
                let error = ApiError::new(
                    Code::StorageFull,
                    format!("no room to keep the request safe: {error}"),
                );
                self.refuse(&job.address, &job.replier, &error.with_retry(10_000), None);
                let acks = std::mem::take(&mut job.acks);
                acks.into_iter().for_each(|ack| self.acknowledge(Some(ack)));
            }
        }
    }

    pub(super) fn on_finished(
        &mut self,
        key: JobKey,
        mut publish: Publish,
        outcome: Result<(), StoreError>,
    ) {
        match outcome {
            Ok(()) => {
                let Some(job) = self.jobs.remove(&key) else {
                    return;
                };
                self.left(&job);
                if job.cancel == Cancel::Wanted {
                    self.stops.push(key);
                }
                match job.ending {
                    Some(Ending::Failed(_)) => self.meters.n_failed += 1,
                    _ => self.meters.n_answered += 1,
                }
                let asked = (job.address.user, job.address.id);
                self.open.remove(&asked);
                self.answered.insert(
                    asked.clone(),
                    Answered {
                        digest: job.digest,
                        since: Instant::now(),
                        delivered: false,
                        called_off: is_called_off(&publish.props.user),
                    },
                );
                publish.token = Some(self.delivery_token(asked));
                self.send(publish);
            }
            Err(error) => {
                // The answer stays in memory, and the job on disk: nothing is lost but time.
                warn!(%error, "final not stored, trying again");
                if let Some(job) = self.jobs.get_mut(&key) {
                    job.phase = Phase::Ended;
                }
                self.retry_finals_at = Some(Instant::now() + STORE_RETRY);
            }
        }
    }

    /// A stored final is to be said again.
    pub(super) fn on_read(
        &mut self,
        asked: &Asked,
        message: Option<Box<Message>>,
        outcome: Result<Option<store::Final>, StoreError>,
    ) {
        match outcome {
            Ok(Some(stored)) => {
                let Some(address) = stored.messages.first().map(|message| Address {
                    user: asked.0.clone(),
                    id: asked.1.clone(),
                    topic: message.topic.clone(),
                    correlation: message.correlation.clone(),
                }) else {
                    return;
                };
                for reply in Replay::messages(&stored.replay, &asked.1).unwrap_or_default() {
                    self.send(address.publish(self.settings.names.node(), reply, None));
                }
                for said in stored.messages {
                    if let Some(answered) = self.answered.get_mut(asked) {
                        answered.called_off = is_called_off(&said.user);
                    }
                    let token = Some(self.delivery_token(asked.clone()));
                    self.send(said.into_publish(token));
                }
                self.acknowledge(message.map(|message| message.ack));
            }
            Ok(None) => {
                // Forgotten to make room, or expired just now: then it is a new request.
                self.answered.remove(asked);
                if let Some(message) = message {
                    self.on_message(*message);
                }
            }
            // Not acknowledged: the broker brings the question again.
            Err(error) => warn!(%error, "final not read"),
        }
    }

    /// The broker has a final. What was called off is then forgotten at once: whoever asks it again wants
    /// it answered, and in a pool the node may be asked again that was called off when another answered.
    pub(super) fn on_delivered(&mut self, asked: Asked) {
        let (store, job) = (self.store.clone(), stored_id(&asked));
        if self.answered.get(&asked).is_some_and(|job| job.called_off) {
            self.answered.remove(&asked);
            self.store_work.spawn(async move {
                StoreDone::Forgotten {
                    outcome: store.forget(job).await,
                }
            });
            return;
        }
        self.store_work.spawn(async move {
            StoreDone::Delivered {
                asked,
                outcome: store.delivered(job).await,
            }
        });
    }

    /// Writes the finals of jobs whose chunks have all left.
    pub(super) fn store_finals(&mut self, now: Instant) {
        if self.retry_finals_at.is_some_and(|at| at > now) {
            return;
        }
        self.retry_finals_at = None;
        let node = self.settings.names.node();
        let packet_bytes_max = self.link.packet_bytes_max() as usize;
        // What a smaller context leaves out now has room again later.
        let (drops, bounds) = (!self.small_context, &self.settings.sessions);
        for job in self.jobs.values_mut().filter(|job| job.ready_for_final()) {
            job.phase = Phase::Storing;
            let mut turn = job.turn(drops, bounds);
            let told = turn.as_ref().map(|(_, told)| told);
            let reply = job.final_reply(now, self.settings.limits.text_bytes, told);
            let mut publish = job.address.publish(node, reply, None);
            let found = publish.packet_bytes();
            if found > packet_bytes_max {
                job.ending = Some(Ending::Failed(too_large(found, packet_bytes_max)));
                turn = None;
                let reply = job.final_reply(now, self.settings.limits.text_bytes, None);
                publish = job.address.publish(node, reply, None);
            }
            let final_ = store::Final {
                messages: vec![store::FinalMessage::from(&publish)],
                replay: Replay::of(job).to_bytes(),
                finished_at_ms: self.clock.now_ms(),
                delivered: false,
            };
            let id = stored_id(&(job.address.user.clone(), job.address.id.clone()));
            let (key, store) = (job.key, self.store.clone());
            self.store_work.spawn(async move {
                StoreDone::Finished {
                    job: key,
                    publish: Box::new(publish),
                    outcome: match turn {
                        Some((kept, _)) => store.finish_keeping(id, final_, kept).await,
                        None => store.finish(id, final_).await,
                    },
                }
            });
        }
    }

    pub(super) fn resend_undelivered(&mut self) {
        while self.backlog.is_empty() && self.store_work.len() < 16 {
            let Some(asked) = self.undelivered.pop_front() else {
                return;
            };
            self.read_final(asked, None);
        }
    }

    /// Says a stored answer again, to the message that asked for it when there is one.
    pub(super) fn read_final(&mut self, asked: Asked, message: Option<Box<Message>>) {
        let (store, id) = (self.store.clone(), stored_id(&asked));
        self.store_work.spawn(async move {
            StoreDone::Read {
                asked,
                message,
                outcome: store.final_of(&id).await,
            }
        });
    }

    pub(super) fn sweep(&mut self) {
        let retention = self.settings.retention;
        self.answered
            .retain(|_, answered| !answered.delivered || answered.since.elapsed() < retention);
        let (store, now_ms) = (self.store.clone(), self.clock.now_ms());
        self.store_work.spawn(async move {
            StoreDone::Swept {
                outcome: store.sweep(now_ms).await,
            }
        });
    }

    /// A job that nobody could answer for a day still ends once.
    pub(super) fn on_overdue(&mut self, job: &store::JobId) {
        let Some(key) = intake::asked_of(job)
            .and_then(|asked| self.open.get(&asked))
            .copied()
        else {
            return;
        };
        if self.queue.is_waiting(key) {
            let error = ApiError::new(
                Code::DeadlineExceeded,
                "no model could answer in the time that requests are kept",
            );
            self.stop(key, Ending::Failed(error));
        }
    }
}

/// From the user properties of a final.
fn is_called_off(user: &[(String, String)]) -> bool {
    let status = Code::Cancelled.status().to_string();
    user.iter()
        .any(|(key, value)| key == "status" && *value == status)
}

/// An answer that the broker would not carry.
pub(super) fn too_large(found: usize, allowed: usize) -> ApiError {
    ApiError::new(
        Code::PayloadTooLarge,
        format!(
            "the answer makes a packet of {found} bytes, the broker takes {allowed}: ask for a stream, or for less"
        ),
    )
}

pub(super) fn stored_id(asked: &Asked) -> store::JobId {
    store::JobId {
        user: asked.0.to_string(),
        id: asked.1.to_string(),
    }
}

impl store::FinalMessage {
    fn into_publish(self, token: Option<u64>) -> Publish {
        Publish {
            topic: self.topic,
            payload: self.payload,
            at_least_once: true,
            retain: false,
            props: crate::link::Props {
                response_topic: None,
                correlation: self.correlation,
                content_type: self.content_type,
                message_expiry_s: Some(reply::EXPIRY_SECONDS),
                user: self.user,
                payload_utf8: true,
            },
            token,
        }
    }
}

impl From<&Publish> for store::FinalMessage {
    fn from(publish: &Publish) -> Self {
        Self {
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            content_type: publish.props.content_type.clone(),
            correlation: publish.props.correlation.clone(),
            user: publish.props.user.clone(),
        }
    }
}
