//! The dispatcher's side of updates: orders go to their owner, its state and events are published.

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::Dispatch;
use super::report::retained;
use crate::link::Message;
use crate::ota::deploy::orders::{self, OtaCommand, Status};
use crate::ota::deploy::{Command, Order, State, Told};
use crate::wire::topic::Ordered;

/// Bytes of an order that are looked at.
const ORDER_BYTES_MAX: usize = 4096;
/// Events on their way to the broker that are remembered: as many as are kept on the disk.
const OTA_EVENTS_MAX: usize = 256;

/// Ends of the channels to the owner of updates.
pub struct Updates {
    /// The retained state.
    pub state: watch::Receiver<State>,
    /// Events, and what became of orders.
    pub told: mpsc::Receiver<Told>,
    /// Orders; one that finds it full is refused.
    pub orders: mpsc::Sender<Order>,
}

/// Waits for another value; for ever where nobody gives one, or gives one any more.
pub(super) async fn changed<T>(value: &mut Option<watch::Receiver<T>>) {
    if let Some(receiver) = value {
        if receiver.changed().await.is_ok() {
            return;
        }
        *value = None;
    }
    std::future::pending().await
}

impl Dispatch {
    pub(super) fn publish_ota_state(&mut self) {
        let Some((state, _)) = &self.updates else {
            return;
        };
        let document = retained(self.settings.names.ota_state(), &*state.borrow());
        if self.told_policy != self.policy_seq() {
            self.told_policy = self.policy_seq();
            self.node.info_changed();
        }
        if self.is_connected {
            self.send(document);
        }
    }

    /// The number of the fleet's settings in force.
    pub(super) fn policy_seq(&self) -> Option<u64> {
        let (state, _) = self.updates.as_ref()?;
        state.borrow().policy.as_ref()?.policy_seq
    }

    /// The broker has an event: it need not be said again.
    pub(super) fn on_event_delivered(&mut self, token: u64) {
        let event_seq = self.ota_events.remove(&token);
        if let (Some(event_seq), Some((_, orders))) = (event_seq, &self.updates) {
            // Where it finds no room, the event is said again after the next start, under the same number.
            let _ = orders.try_send(Order {
                command: Command::Heard(event_seq),
                ticket: None,
            });
        }
    }

    /// A worker died by itself: a release that has yet to show that it stays up may be the cause.
    pub(super) fn tell_updates_of_death(&self) {
        if let Some((_, orders)) = &self.updates {
            let command = Command::WorkerDied(self.node.model().to_owned());
            // With so many orders waiting, one death more or less decides nothing.
            let _ = orders.try_send(Order {
                command,
                ticket: None,
            });
        }
    }

    pub(super) fn on_ota_told(&mut self, told: Told) {
        match told {
            Told::Event(event) => {
                let token = self.next_token;
                self.next_token += 1;
                if let Some(event_seq) = event.event_seq {
                    self.ota_events.insert(token, event_seq);
                }
                if self.ota_events.len() > OTA_EVENTS_MAX {
                    self.ota_events.pop_first();
                }
                self.event_with_token("ota", &*event, Some(token));
            }
            Told::Answer { ticket, outcome } => {
                let (status, deployment, reason) = match outcome {
                    Ok(deployment) => (Status::Successful, deployment, None),
                    Err(reason) => (Status::Failed, None, Some(reason)),
                };
                let answer = OtaCommand {
                    status,
                    action: None,
                    line: None,
                    release_seq: None,
                    deployment: deployment.map(|deployment| deployment.to_string()),
                    reason,
                };
                self.send(retained(
                    self.settings.names.command("ota", &ticket),
                    &answer,
                ));
            }
        }
    }

    /// An order about updates. The broker's rules say who may give one; what it can name is in the signed
    /// catalogue.
    pub(super) fn on_ota_order(&mut self, ordered: &Ordered, message: &Message) {
        let payload = &message.payload;
        let (ticket, read) = match ordered {
            _ if payload.len() > ORDER_BYTES_MAX => (
                None,
                Err(format!(
                    "{} bytes, at most {ORDER_BYTES_MAX} are read",
                    payload.len()
                )),
            ),
            Ordered::Desired => (None, orders::desired(payload)),
            Ordered::Command { ticket, .. } => {
                (Some(ticket.clone()), orders::command(payload, ticket))
            }
            Ordered::Set { .. } => (None, set(payload).map(Some)),
        };
        let outcome = match (read, &self.updates) {
            (Ok(None), _) => return,
            (Err(reason), _) => Err(reason),
            (Ok(Some(_)), None) => Err(
                "this node takes no updates: it has no root of trust (orinoco doctor)".to_owned(),
            ),
            (Ok(Some(command)), Some((_, orders))) => {
                let ticket = ticket.clone();
                let sent = orders.try_send(Order { command, ticket });
                sent.map_err(|_| "too many orders at once: try again".to_owned())
            }
        };
        if let Err(reason) = outcome {
            warn!(topic = message.topic, reason, "order about updates ignored");
            if let Some(ticket) = ticket {
                self.on_ota_told(Told::Answer {
                    ticket,
                    outcome: Err(reason),
                });
            }
        }
    }
}

/// The payload of `set/update`: the word that Home Assistant sends, or a line's name.
fn set(payload: &[u8]) -> Result<Command, String> {
    match payload {
        b"install" => Ok(Command::Update(None)),
        b"check" => Ok(Command::Check),
        b"cancel" => Ok(Command::Cancel),
        b"rollback" => Ok(Command::Rollback(None)),
        _ => Err("expected install, check, cancel or rollback".to_owned()),
    }
}
