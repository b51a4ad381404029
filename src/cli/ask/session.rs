//! One request on the wire: sent until it is accepted, followed until it ends, cancelled by Ctrl-C or SIGTERM.

use std::io;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::{Page, Target, output};
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::receive::{Action, Finished, Heard, Requester};
use crate::wire::error::{ApiError, Code};
use crate::wire::report::{Presence, Status};
use crate::wire::topic::{Name, Op, RequestId};

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
    /// A conversation that is to be forgotten first.
    pub(super) forget: Option<Name>,
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
    let statuses = match &target.pool {
        Some(_) => target.names.statuses(),
        None => target.names.status(),
    };
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        clean_start: false,
        session_expiry: SESSION_EXPIRY,
        subscriptions: vec![answers.clone(), statuses],
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    let mut session = Session {
        link,
        inbox,
        target,
        answers,
        id,
        body: Bytes::from(asked.body),
        forget: asked.forget,
        page,
        requester: None,
        started: Instant::now(),
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
    id: RequestId,
    body: Bytes,
    /// Before the request.
    forget: Option<Name>,
    page: &'a mut Page,
    /// None before the first connection: there is nothing to repeat, and nothing to cancel.
    requester: Option<Requester>,
    /// The requester's clock.
    started: Instant,
    sent_at: Option<Instant>,
    first_text_at: Option<Instant>,
    is_accepted: bool,
    /// What the node that was asked said of itself; none of a pool.
    node: Option<Presence>,
    last_down: Option<String>,
}

impl Session<'_> {
    async fn follow(&mut self, accept_limit: Duration) -> anyhow::Result<End> {
        let give_up = Instant::now() + accept_limit;
        let mut cancelled_until = None;
        let listen = |kind| signal(kind).context("failed to listen for signals");
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        loop {
            self.act()?;
            let wake = self.requester.as_ref().and_then(Requester::wake);
            let wake = wake.map(|at| self.started + at);
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => inbound,
                () = either(&mut interrupt, &mut terminate) => {
                    // Before the request was sent there is nothing to cancel; a second Ctrl-C is impatience.
                    if self.sent_at.is_none() || cancelled_until.is_some() {
                        return Ok(End::Cancelled);
                    }
                    self.cancel()?;
                    cancelled_until = Some(Instant::now() + CANCEL_LIMIT);
                    continue;
                }
                () = sleep_until(cancelled_until.unwrap_or(give_up)), if cancelled_until.is_some() => {
                    return Ok(End::Cancelled);
                }
                () = sleep_until(wake.unwrap_or(give_up)), if wake.is_some() => continue,
                () = sleep_until(give_up), if !self.is_accepted => {
                    let refusal = self.requester.as_ref().and_then(Requester::refusal).cloned();
                    if self.target.pool.is_some() {
                        // It may still be on its way to a node.
                        self.cancel()?;
                    }
                    return Ok(match refusal {
                        Some(error) => End::Refused(error),
                        None => End::Unreachable(self.why_nobody(accept_limit)),
                    });
                }
            };
            match inbound.context("the link ended by itself")? {
                Inbound::Up {
                    session_present, ..
                } => {
                    let now = self.started.elapsed();
                    self.sent_at.get_or_insert_with(Instant::now);
                    match &mut self.requester {
                        // Without a session, messages may have been lost.
                        Some(requester) if !session_present => requester.session_lost(now),
                        Some(_) => {}
                        none => {
                            *none = Some(match &self.target.pool {
                                Some(_) => Requester::of_pool(now),
                                None => Requester::of_node(now),
                            });
                        }
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
                    let node = self.target.names.node_of_status(&message.topic);
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
                                self.cancel()?;
                                return Ok(End::ReaderGone);
                            }
                            Err(e) => return Err(e),
                        }
                    } else if let Ok(status) = serde_json::from_slice::<Status>(&payload)
                        && let Some(node) = node
                    {
                        let now = self.started.elapsed();
                        if let Some(requester) = &mut self.requester {
                            requester.presence(&node, status.state, now);
                        }
                        self.node = Some(status.state).filter(|_| self.target.pool.is_none());
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
        let now = self.started.elapsed();
        let Some(requester) = &mut self.requester else {
            return Ok(None);
        };
        let had = requester.receiver().text().len();
        let heard = requester
            .hear(payload, now)
            .context("the answer is broken")?;
        if let Heard::Repeat | Heard::Refused(_) | Heard::OtherNode { .. } = heard {
            return Ok(None);
        }
        let receiver = requester.receiver();
        self.is_accepted = true;
        self.page.message(payload)?;
        let from = match heard {
            Heard::StartedOver => {
                self.page.start_over();
                0
            }
            Heard::Text { from } => {
                // News of the queue has none.
                if from < receiver.text().len() {
                    self.first_text_at.get_or_insert_with(Instant::now);
                }
                from
            }
            _ => had.min(receiver.text().len()),
        };
        self.page.text(&receiver.text()[from..])?;
        Ok(receiver.end().map(|end| end.outcome.clone()))
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

    fn cancel(&mut self) -> anyhow::Result<()> {
        if let Some(requester) = &mut self.requester {
            requester.cancel();
        }
        self.act()
    }

    fn next_action(&mut self, now: Duration) -> Option<Action> {
        let requester = self.requester.as_mut()?;
        let followed = requester.receiver().node().cloned();
        let action = requester.poll(now);
        if let Some(gone) = followed
            && requester.receiver().node().is_none()
        {
            output::say(&format!("the node {gone} is gone; asking the pool again"));
        }
        action
    }

    /// Publishes what is to be published now.
    fn act(&mut self) -> anyhow::Result<()> {
        let now = self.started.elapsed();
        let Target {
            names, user, pool, ..
        } = self.target;
        while let Some(action) = self.next_action(now) {
            if let Some(session) = self.forget.take() {
                let publish = Publish {
                    topic: names.forget(user, &session),
                    at_least_once: true,
                    ..Publish::default()
                };
                self.link
                    .try_publish(publish)
                    .context("failed to have the conversation forgotten")?;
            }
            let to = match &action {
                Action::AskNode(node) | Action::CancelAt(node) => names
                    .of(node.clone())
                    .context("a node with a reserved name answered")?,
                Action::Ask | Action::Cancel => names.clone(),
            };
            let (topic, is_request) = match (action, pool) {
                (Action::Ask, Some(pool)) => (to.pool_req(pool, user, Op::Chat, &self.id), true),
                (Action::Cancel, Some(pool)) => (to.pool_cancel(pool, user, &self.id), false),
                (Action::Ask | Action::AskNode(_), _) => (to.req(user, Op::Chat, &self.id), true),
                (Action::Cancel | Action::CancelAt(_), _) => (to.cancel(user, &self.id), false),
            };
            let publish = Publish {
                topic,
                payload: if is_request {
                    self.body.clone()
                } else {
                    Bytes::new()
                },
                at_least_once: true,
                props: Props {
                    content_type: is_request.then(|| "application/json".into()),
                    ..Props::default()
                },
                ..Publish::default()
            };
            self.link
                .try_publish(publish)
                .context("failed to send the request")?;
        }
        Ok(())
    }

    fn why_nobody(&self, limit: Duration) -> String {
        let Target {
            host,
            port,
            names,
            pool,
            ..
        } = self.target;
        if let (Some(pool), Some(_)) = (pool, self.sent_at) {
            let seconds = limit.as_secs();
            return format!(
                "nobody in the pool {pool} at {host}:{port} accepted the request within {seconds} s"
            );
        }
        let node = names.node();
        match (self.sent_at, &self.last_down, self.node) {
            (None, down, _) => self.target.no_broker(down.as_deref()),
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
