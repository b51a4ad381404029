//! One request on the wire: sent until it is accepted, followed until it ends, cancelled by Ctrl-C or SIGTERM.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::target::Target;
use super::{Page, output};
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::receive::{Finished, Heard, Receiver};
use crate::wire::error::{ApiError, Code};
use crate::wire::report::{Presence, Status};
use crate::wire::topic::{Op, RequestId};

/// The same request, with the same id, is sent again when it was not accepted in this time.
const REPEAT_EVERY: Duration = Duration::from_secs(2);
/// After Ctrl-C the final is waited for this long.
const CANCEL_LIMIT: Duration = Duration::from_secs(3);
/// The broker keeps answers for us over a short break.
const SESSION_EXPIRY: Duration = Duration::from_secs(60);
/// For the goodbye to the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What is asked, and whom.
pub(super) struct Asked {
    pub(super) target: Target,
    pub(super) body: Vec<u8>,
    pub(super) accept_limit: Duration,
}

/// How it ended.
pub(super) enum End {
    /// All of the text came, and its digest is right.
    Answered {
        finished: Box<Finished>,
        /// From sending to the first text, as seen here.
        ttft: Option<Duration>,
    },
    /// The node said no.
    Refused(ApiError),
    /// Nobody said anything.
    Unreachable(String),
    /// By Ctrl-C.
    Cancelled,
    /// Stdout was closed by its reader.
    ReaderGone,
}

/// Asks, and writes the answer to `page` as it comes.
pub(super) async fn ask(asked: Asked, page: &mut Page) -> anyhow::Result<End> {
    let suffix = getrandom::u64().context("failed to make a request id")?;
    let id =
        RequestId::new(&format!("ask-{suffix:016x}")).context("failed to make a request id")?;
    let target = &asked.target;
    let answers = target.names.resp(&target.user, &id);
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        clean_start: false,
        session_expiry: SESSION_EXPIRY,
        subscriptions: vec![answers.clone(), target.names.status()],
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    let request = Publish {
        topic: target.names.req(&target.user, Op::Chat, &id),
        payload: Bytes::from(asked.body),
        at_least_once: true,
        retain: false,
        props: Props {
            content_type: Some("application/json".into()),
            ..Props::default()
        },
        token: None,
    };
    let cancel = Publish {
        topic: target.names.cancel(&target.user, &id),
        payload: Bytes::new(),
        props: Props::default(),
        ..request.clone()
    };
    let mut session = Session {
        link,
        inbox,
        target,
        answers,
        request,
        cancel,
        page,
        receiver: Receiver::default(),
        sent_at: None,
        first_text_at: None,
        is_accepted: false,
        node: None,
        last_down: None,
    };
    let end = session.follow(asked.accept_limit).await;
    // The request has ended one way or the other; a broker that does not say goodbye changes nothing.
    let _ = session.link.close(None, CLOSE_LIMIT).await;
    end
}

struct Session<'a> {
    link: Link,
    inbox: Inbox,
    target: &'a Target,
    answers: String,
    request: Publish,
    cancel: Publish,
    page: &'a mut Page,
    receiver: Receiver,
    sent_at: Option<Instant>,
    first_text_at: Option<Instant>,
    is_accepted: bool,
    /// What the node said of itself.
    node: Option<Presence>,
    last_down: Option<String>,
}

impl Session<'_> {
    async fn follow(&mut self, accept_limit: Duration) -> anyhow::Result<End> {
        let give_up = Instant::now() + accept_limit;
        let mut repeat = give_up;
        let mut cancelled_until = None;
        let listen = |kind| signal(kind).context("failed to listen for signals");
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        loop {
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => inbound,
                () = either(&mut interrupt, &mut terminate) => {
                    // Before the request was sent there is nothing to cancel; a second Ctrl-C is impatience.
                    if self.sent_at.is_none() || cancelled_until.is_some() {
                        return Ok(End::Cancelled);
                    }
                    self.publish(self.cancel.clone())?;
                    cancelled_until = Some(Instant::now() + CANCEL_LIMIT);
                    continue;
                }
                () = sleep_until(cancelled_until.unwrap_or(give_up)), if cancelled_until.is_some() => {
                    return Ok(End::Cancelled);
                }
                () = sleep_until(repeat), if self.sent_at.is_some() && !self.is_accepted && repeat < give_up => {
                    self.publish(self.request.clone())?;
                    repeat += REPEAT_EVERY;
                    continue;
                }
                () = sleep_until(give_up), if !self.is_accepted => {
                    return Ok(End::Unreachable(self.why_nobody(accept_limit)));
                }
            };
            match inbound.context("the link ended by itself")? {
                Inbound::Up {
                    session_present, ..
                } => {
                    // Without a session, messages may have been lost; the node answers a repeated request
                    // from its store.
                    if !session_present {
                        self.publish(self.request.clone())?;
                        self.sent_at.get_or_insert_with(Instant::now);
                        repeat = Instant::now() + REPEAT_EVERY;
                    }
                }
                Inbound::Down { reason, .. } => {
                    let Target { host, port, .. } = self.target;
                    if self.sent_at.is_some() {
                        output::say(&format!("connection lost: {reason}; connecting again"));
                    } else if self.last_down.is_none() {
                        output::say(&format!("waiting for a broker at {host}:{port}: {reason}"));
                    }
                    self.last_down = Some(reason);
                }
                Inbound::Message(message) => {
                    let payload = message.payload.clone();
                    let is_answer = message.topic == self.answers;
                    self.link
                        .try_ack(message.ack)
                        .context("failed to acknowledge a message")?;
                    if is_answer {
                        match self.hear(&payload) {
                            Ok(Some(outcome)) => return Ok(self.end(outcome)),
                            Ok(None) => {}
                            Err(e) if is_closed(&e) => {
                                // `| head` has had enough; the model need not go on.
                                self.publish(self.cancel.clone())?;
                                return Ok(End::ReaderGone);
                            }
                            Err(e) => return Err(e),
                        }
                    } else if let Ok(status) = serde_json::from_slice::<Status>(&payload) {
                        self.node = Some(status.state);
                    }
                }
                Inbound::Undelivered { reason, .. } => {
                    anyhow::bail!("the broker refused the request: {reason}")
                }
                Inbound::SubscribeRefused { filter, reason } if filter == self.answers => {
                    anyhow::bail!(
                        "the broker refused to hand out the answers ({reason}); is --user right?"
                    )
                }
                Inbound::SubscribeRefused { .. }
                | Inbound::Delivered { .. }
                | Inbound::Listening { .. } => {}
            }
        }
    }

    /// Takes a message of the answer; the outcome, when it was the last.
    fn hear(&mut self, payload: &[u8]) -> anyhow::Result<Option<Result<Finished, ApiError>>> {
        let had = self.receiver.text().len();
        let heard = self
            .receiver
            .hear(payload)
            .context("the answer is broken")?;
        if heard == Heard::Repeat {
            return Ok(None);
        }
        self.is_accepted = true;
        self.page.message(payload)?;
        let from = match heard {
            Heard::StartedOver => {
                self.page.start_over();
                0
            }
            Heard::Text { from } => {
                self.first_text_at.get_or_insert_with(Instant::now);
                from
            }
            _ => had.min(self.receiver.text().len()),
        };
        self.page.text(&self.receiver.text()[from..])?;
        Ok(self.receiver.end().map(|end| end.outcome.clone()))
    }

    fn end(&self, outcome: Result<Finished, ApiError>) -> End {
        let ttft = self
            .first_text_at
            .zip(self.sent_at)
            .map(|(first, sent)| first - sent);
        match outcome {
            // By us, or by an operator.
            Ok(finished) if finished.finish_reason == "cancelled" => End::Cancelled,
            Ok(finished) => End::Answered {
                finished: Box::new(finished),
                ttft,
            },
            Err(error) if error.code == Code::Cancelled => End::Cancelled,
            Err(error) => End::Refused(error),
        }
    }

    fn publish(&self, publish: Publish) -> anyhow::Result<()> {
        self.link
            .try_publish(publish)
            .context("failed to send the request")
    }

    fn why_nobody(&self, limit: Duration) -> String {
        let Target {
            host,
            port,
            names,
            found,
            ..
        } = self.target;
        let node = names.node();
        match (self.sent_at, &self.last_down, self.node) {
            (None, down, _) => format!(
                "no broker at {host}:{port} ({found}): {}",
                down.as_deref().unwrap_or("no answer")
            ),
            (_, _, None) => {
                format!("the broker at {host}:{port} knows no node {node}; --node names another")
            }
            (_, _, Some(Presence::Offline)) => format!("the node {node} is offline"),
            _ => format!(
                "the node {node} did not accept the request within {} s",
                limit.as_secs()
            ),
        }
    }
}

async fn either(interrupt: &mut Signal, terminate: &mut Signal) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn is_closed(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
