//! An order to a node, as a retained command on MQTT: given, followed to its end, and taken back where nobody took
//! it. What is ordered, and what its answers mean, is the [`Order`]'s.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::ask::harmless;
use super::target::Target;
use super::{exit, output};
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};

/// For the goodbye to the broker, with the order cleared.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What is ordered.
pub(super) trait Order {
    /// The level of its topic: `model`, `ota`.
    const KIND: &'static str;

    /// The order itself, JSON.
    fn payload(&self) -> serde_json::Result<Vec<u8>>;

    /// What the node says of it; `None`: nothing new, as when our own order comes back to us.
    fn hear(&mut self, payload: &[u8]) -> Option<Heard>;

    /// Topics that are worth seeing meanwhile.
    fn watches(&self, _target: &Target) -> Vec<String> {
        Vec::new()
    }

    /// What comes on those.
    fn see(&mut self, _payload: &[u8]) {}

    /// It has ended: the last words are said next.
    fn over(&mut self) {}
}

/// What a node says of an order.
pub(super) enum Heard {
    /// It does it now: from here on it is waited for without a limit.
    Begun,
    /// It is done.
    Done,
    /// It is not, and why.
    Refused(String),
}

/// How it ended.
enum End {
    Done,
    Refused(String),
    /// Nobody took the order; it was taken back.
    Unreachable(String),
    /// Ctrl-C after the node had begun: it goes on.
    Left,
    /// Ctrl-C before that: the order was taken back.
    Cancelled,
}

/// Gives the order and follows it; `None` when it was done, else the exit code, and it was said why.
///
/// # Errors
/// What keeps it from being given.
pub(super) fn give<O: Order>(
    order: &mut O,
    target: &Target,
    limit: Duration,
) -> anyhow::Result<Option<ExitCode>> {
    let ticket = getrandom::u64().context("failed to make an id")?;
    let id = format!("cli-{ticket:016x}");
    let topic = target.names.command(O::KIND, &id);
    let node = target.names.node();
    let runtime = super::runtime()?;
    let end = runtime.block_on(follow(order, target, &topic, limit));
    order.over();
    let (words, code) = match end? {
        End::Done => return Ok(None),
        End::Refused(reason) => {
            let words = format!("orinoco: {node}: {}", harmless(&reason));
            (words, exit::FAILURE)
        }
        End::Unreachable(reason) => (format!("orinoco: {reason}"), exit::UNAVAILABLE),
        End::Left => {
            let words = format!("{node} goes on; the outcome will be on {topic}");
            (words, exit::INTERRUPTED)
        }
        End::Cancelled => ("the order was taken back".to_owned(), exit::INTERRUPTED),
    };
    output::say(&words);
    Ok(Some(ExitCode::from(code)))
}

async fn follow(
    order: &mut impl Order,
    target: &Target,
    topic: &str,
    limit: Duration,
) -> anyhow::Result<End> {
    let (_, id) = topic.rsplit_once('/').context("a topic has levels")?;
    let mut subscriptions = vec![topic.to_owned()];
    subscriptions.extend(order.watches(target));
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions,
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    let mut session = Session {
        link,
        inbox,
        target,
        topic,
        limit,
        is_sent: false,
        has_begun: false,
        last_down: None,
    };
    let end = session.follow(order).await;
    // An order that nobody took must not be done by a node that comes back tomorrow; one that is over need not be
    // kept.
    let is_kept = matches!(end, Ok(End::Left));
    let clear = (!is_kept && session.is_sent).then(|| publish(topic, Vec::new()));
    let is_cleared = session.link.close(clear, CLOSE_LIMIT).await.is_ok();
    if session.is_sent && !is_kept && !is_cleared {
        output::say(&format!("the broker may still have the order, on {topic}"));
    }
    end
}

struct Session<'a> {
    link: Link,
    inbox: Inbox,
    target: &'a Target,
    topic: &'a str,
    /// For the node to take the order.
    limit: Duration,
    is_sent: bool,
    has_begun: bool,
    last_down: Option<String>,
}

impl Session<'_> {
    async fn follow(&mut self, order: &mut impl Order) -> anyhow::Result<End> {
        let give_up = Instant::now() + self.limit;
        let mut interrupt =
            signal(SignalKind::interrupt()).context("failed to listen for signals")?;
        loop {
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => inbound,
                _ = interrupt.recv() => return Ok(match self.has_begun {
                    true => End::Left,
                    false => End::Cancelled,
                }),
                () = sleep_until(give_up), if !self.has_begun => return Ok(End::Unreachable(self.why_nobody())),
            };
            match inbound.context("the link ended by itself")? {
                // After a short break it is the same order: its topic is its name.
                Inbound::Up { .. } if !self.has_begun => {
                    let payload = order.payload().context("failed to write the order")?;
                    let sent = self.link.try_publish(publish(self.topic, payload));
                    sent.context("failed to send the order")?;
                    self.is_sent = true;
                }
                Inbound::Message(message) => {
                    let is_answer = message.topic == self.topic;
                    let payload = message.payload.clone();
                    let acknowledged = self.link.try_ack(message.ack);
                    acknowledged.context("failed to acknowledge a message")?;
                    if !is_answer {
                        order.see(&payload);
                        continue;
                    }
                    match order.hear(&payload) {
                        None => {}
                        Some(Heard::Begun) => self.has_begun = true,
                        Some(Heard::Done) => return Ok(End::Done),
                        Some(Heard::Refused(reason)) => return Ok(End::Refused(reason)),
                    }
                }
                Inbound::Down { reason, .. } => self.last_down = Some(reason),
                Inbound::Undelivered { reason, .. } => anyhow::bail!(
                    "the broker refused the order: {reason}; only operators may give orders (orinoco user add NAME \
                     --role operator)"
                ),
                Inbound::SubscribeRefused { filter, reason } if filter == self.topic => {
                    anyhow::bail!(
                        "the broker refused to tell what becomes of the order: {reason}; only operators may give \
                         orders (orinoco user add NAME --role operator)"
                    )
                }
                Inbound::Up { .. }
                | Inbound::SubscribeRefused { .. }
                | Inbound::Delivered { .. }
                | Inbound::Listening { .. } => {}
            }
        }
    }

    fn why_nobody(&self) -> String {
        match self.is_sent {
            false => self.target.no_broker(self.last_down.as_deref()),
            true => format!(
                "the node {} did not take the order within {} s, and it was taken back; --node names another",
                self.target.names.node(),
                self.limit.as_secs()
            ),
        }
    }
}

fn publish(topic: &str, payload: Vec<u8>) -> Publish {
    Publish {
        topic: topic.to_owned(),
        payload: payload.into(),
        at_least_once: true,
        retain: true,
        props: Props::default(),
        token: None,
    }
}
