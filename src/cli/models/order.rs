//! `orinoco models use`: an order as a command on MQTT, followed to its end.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::super::ask::harmless;
use super::super::target::Target;
use super::{exit, output};
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::wire::report::{CommandStatus, Mode, ModelCommand, State};

/// For the goodbye to the broker, with the order cleared.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What is ordered, and where.
pub(super) struct Order {
    pub(super) target: Target,
    pub(super) model: String,
    pub(super) accept_limit: Duration,
}

/// How it ended.
enum End {
    /// The model serves.
    Served,
    /// It does not, and why.
    Failed(String),
    /// Nobody took the order; it was taken back.
    Unreachable(String),
    /// Ctrl-C after the node had begun: it goes on.
    Left,
    /// Ctrl-C before that: the order was taken back.
    Cancelled,
}

pub(super) fn run(order: &Order) -> anyhow::Result<ExitCode> {
    let runtime = crate::cli::runtime()?;
    let ticket = getrandom::u64().context("failed to make an id")?;
    let topic = (order.target.names).command("model", &format!("cli-{ticket:016x}"));
    let (end, model) = runtime.block_on(give(order, &topic))?;
    let node = order.target.names.node();
    Ok(match end {
        End::Served => return output::answer(&format!("{} serves on {node}\n", harmless(&model))),
        End::Failed(reason) => {
            output::say(&format!("orinoco: {}", harmless(&reason)));
            ExitCode::from(exit::FAILURE)
        }
        End::Unreachable(reason) => {
            output::say(&format!("orinoco: {reason}"));
            ExitCode::from(exit::UNAVAILABLE)
        }
        End::Left => {
            output::say(&format!("{node} goes on; the outcome will be on {topic}"));
            ExitCode::from(exit::INTERRUPTED)
        }
        End::Cancelled => {
            output::say("cancelled");
            ExitCode::from(exit::INTERRUPTED)
        }
    })
}

/// Gives the order and follows it; how it ended, and the model that serves as far as that is known.
async fn give(order: &Order, topic: &str) -> anyhow::Result<(End, String)> {
    let target = &order.target;
    let (_, id) = topic.rsplit_once('/').context("a topic has levels")?;
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions: vec![topic.to_owned(), target.names.state()],
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    // Drawn on a terminal only.
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}")
            .context("the template is a constant")?,
    );
    let mut session = Session {
        link,
        inbox,
        order,
        topic,
        bar,
        has_begun: false,
        is_sent: false,
        model: order.model.clone(),
        last_down: None,
    };
    let end = session.follow().await;
    session.bar.finish_and_clear();
    // An order that nobody began must not be done by a node that comes back tomorrow; one that is over need
    // not be kept.
    let is_kept = matches!(end, Ok(End::Left));
    let clear = (!is_kept && session.is_sent).then(|| publish(topic, Vec::new()));
    if session.link.close(clear, CLOSE_LIMIT).await.is_err() && session.is_sent && !is_kept {
        output::say(&format!("the broker may still have the order, on {topic}"));
    }
    Ok((end?, session.model))
}

struct Session<'a> {
    link: Link,
    inbox: Inbox,
    order: &'a Order,
    topic: &'a str,
    bar: ProgressBar,
    /// The node said that it does it.
    has_begun: bool,
    is_sent: bool,
    /// What serves, by the node's last word.
    model: String,
    last_down: Option<String>,
}

impl Session<'_> {
    async fn follow(&mut self) -> anyhow::Result<End> {
        let give_up = Instant::now() + self.order.accept_limit;
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
                    let asked = ModelCommand {
                        status: CommandStatus::Init,
                        model: self.order.model.clone(),
                        reason: None,
                    };
                    let payload =
                        serde_json::to_vec(&asked).context("failed to write the order")?;
                    let sent = self.link.try_publish(publish(self.topic, payload));
                    sent.context("failed to send the order")?;
                    self.is_sent = true;
                }
                Inbound::Message(message) => {
                    let is_command = message.topic == self.topic;
                    let payload = message.payload.clone();
                    let acknowledged = self.link.try_ack(message.ack);
                    acknowledged.context("failed to acknowledge a message")?;
                    match is_command {
                        true => {
                            if let Some(end) = self.hear(&payload) {
                                return Ok(end);
                            }
                        }
                        false => self.see(&payload),
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

    /// What became of the order.
    fn hear(&mut self, payload: &[u8]) -> Option<End> {
        // Our own order comes back to us, and an empty message when somebody cleared it.
        let command: ModelCommand = serde_json::from_slice(payload).ok()?;
        match command.status {
            CommandStatus::Init => None,
            CommandStatus::Executing => {
                self.has_begun = true;
                self.bar
                    .set_message(format!("{} takes over", harmless(&command.model)));
                None
            }
            CommandStatus::Successful => Some(End::Served),
            CommandStatus::Failed => {
                let reason = command
                    .reason
                    .unwrap_or_else(|| "no reason given".to_owned());
                Some(End::Failed(reason))
            }
        }
    }

    /// What the node says of itself.
    fn see(&mut self, payload: &[u8]) {
        let Ok(state) = serde_json::from_slice::<State>(payload) else {
            return;
        };
        if let Some(model) = state.model.filter(|_| state.mode == Mode::Serving) {
            self.model = model;
        }
        if let Some(fraction) = state.load_progress.filter(|_| self.has_begun) {
            self.bar.set_position((fraction * 100.0) as u64);
        }
    }

    fn why_nobody(&self) -> String {
        let Target {
            host,
            port,
            names,
            found,
            ..
        } = &self.order.target;
        match (self.is_sent, &self.last_down) {
            (false, down) => format!(
                "no broker at {host}:{port} ({found}): {}",
                down.as_deref().unwrap_or("no answer")
            ),
            (true, _) => format!(
                "the node {} did not take the order within {} s, and it was taken back; --node names another",
                names.node(),
                self.order.accept_limit.as_secs()
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
