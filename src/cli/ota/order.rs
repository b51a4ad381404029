//! Orders about updates, over MQTT: given to a node, and followed until it says what became of them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::ask::harmless;
use crate::cli::target::{Reach, Target};
use crate::cli::{exit, output};
use crate::config::Config;
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::ota::deploy::orders::{Action, OtaCommand, Status};

/// For the goodbye to the broker, with the order cleared.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How every order reaches its node.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    reach: Reach,
    /// Give up, and take the order back, when the node has not answered by then
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait_seconds: u64,
}

/// What is ordered.
pub(super) struct Order {
    pub(super) action: Action,
    pub(super) line: Option<String>,
    pub(super) release_seq: Option<u64>,
    /// What to say when it was taken.
    pub(super) taken: &'static str,
}

/// How it ended.
enum End {
    /// The node does it, or has done it.
    Taken,
    /// It does not, and why.
    Refused(String),
    /// Nobody answered; the order was taken back.
    Unreachable(String),
    /// Ctrl-C; the order was taken back.
    Cancelled,
}

pub(super) fn run(order: &Order, common: &Common, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Target::find(&common.reach, None, config)?;
    let limit = Duration::from_secs(common.wait_seconds);
    let runtime = crate::cli::runtime()?;
    let node = target.names.node();
    Ok(match runtime.block_on(give(order, &target, limit))? {
        End::Taken => return output::answer(&format!("{node}: {}\n", order.taken)),
        End::Refused(reason) => {
            output::say(&format!("orinoco: {node}: {}", harmless(&reason)));
            ExitCode::from(exit::FAILURE)
        }
        End::Unreachable(reason) => {
            output::say(&format!("orinoco: {reason}"));
            ExitCode::from(exit::UNAVAILABLE)
        }
        End::Cancelled => {
            output::say("the order was taken back");
            ExitCode::from(exit::INTERRUPTED)
        }
    })
}

async fn give(order: &Order, target: &Target, limit: Duration) -> anyhow::Result<End> {
    let ticket = getrandom::u64().context("failed to make an id")?;
    let id = format!("cli-{ticket:016x}");
    let topic = target.names.command("ota", &id);
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions: vec![topic.clone()],
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    let mut session = Session {
        link,
        inbox,
        topic: &topic,
        is_sent: false,
        last_down: None,
    };
    let end = session.follow(order, target, limit).await;
    // An order that nobody took must not be taken by a node that comes back tomorrow; one that is over need not
    // be kept.
    let clear = session.is_sent.then(|| publish(&topic, Vec::new()));
    let is_cleared = session.link.close(clear, CLOSE_LIMIT).await.is_ok();
    if session.is_sent && !is_cleared {
        output::say(&format!("the broker may still have the order, on {topic}"));
    }
    end
}

struct Session<'a> {
    link: Link,
    inbox: Inbox,
    topic: &'a str,
    is_sent: bool,
    last_down: Option<String>,
}

impl Session<'_> {
    async fn follow(
        &mut self,
        order: &Order,
        target: &Target,
        limit: Duration,
    ) -> anyhow::Result<End> {
        let give_up = Instant::now() + limit;
        let mut interrupt =
            signal(SignalKind::interrupt()).context("failed to listen for signals")?;
        loop {
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => inbound,
                _ = interrupt.recv() => return Ok(End::Cancelled),
                () = sleep_until(give_up) => return Ok(End::Unreachable(self.why_nobody(target, limit))),
            };
            match inbound.context("the link ended by itself")? {
                // After a short break it is the same order: its topic is its name.
                Inbound::Up { .. } => {
                    let asked = OtaCommand {
                        status: Status::Init,
                        action: Some(order.action),
                        line: order.line.clone(),
                        release_seq: order.release_seq,
                        deployment: None,
                        reason: None,
                    };
                    let payload =
                        serde_json::to_vec(&asked).context("failed to write the order")?;
                    let sent = self.link.try_publish(publish(self.topic, payload));
                    sent.context("failed to send the order")?;
                    self.is_sent = true;
                }
                Inbound::Message(message) => {
                    let payload = message.payload.clone();
                    let acknowledged = self.link.try_ack(message.ack);
                    acknowledged.context("failed to acknowledge a message")?;
                    if let Some(end) = hear(&payload) {
                        return Ok(end);
                    }
                }
                Inbound::Down { reason, .. } => self.last_down = Some(reason),
                Inbound::Undelivered { reason, .. } | Inbound::SubscribeRefused { reason, .. } => {
                    anyhow::bail!(
                        "the broker refused the order: {reason}; only operators may give orders (orinoco user add \
                         NAME --role operator)"
                    )
                }
                Inbound::Delivered { .. } | Inbound::Listening { .. } => {}
            }
        }
    }

    fn why_nobody(&self, target: &Target, limit: Duration) -> String {
        let Target {
            host,
            port,
            names,
            found,
            ..
        } = target;
        match (self.is_sent, &self.last_down) {
            (false, down) => format!(
                "no broker at {host}:{port} ({found}): {}",
                down.as_deref().unwrap_or("no answer")
            ),
            (true, _) => format!(
                "the node {} did not answer within {} s, and the order was taken back; --node names another",
                names.node(),
                limit.as_secs()
            ),
        }
    }
}

/// What became of the order. Our own comes back to us, and an empty message when somebody cleared it.
fn hear(payload: &[u8]) -> Option<End> {
    let command: OtaCommand = serde_json::from_slice(payload).ok()?;
    match command.status {
        Status::Init | Status::Executing => None,
        Status::Successful => Some(End::Taken),
        Status::Failed => {
            let reason = command.reason;
            Some(End::Refused(
                reason.unwrap_or_else(|| "no reason given".to_owned()),
            ))
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
