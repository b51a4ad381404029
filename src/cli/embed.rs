//! `orinoco embed`: vectors of texts by a running daemon, over MQTT.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use super::target::{Reach, Target};
use super::{exit, output};
use crate::config::Config;
use crate::link::{self, Inbound, LinkConfig, Publish};
use crate::wire::topic::{Op, RequestId};

/// The question is repeated as often, as the contract has it.
const REPEAT: Duration = Duration::from_secs(2);
/// For the goodbye to the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// Turn texts into vectors
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco embed \"Pump 3 vibrates\"
  orinoco embed \"Pump 3 vibrates\" \"Belt is loose\"      one line for each text
  orinoco embed --json --dimensions 128 \"Pump 3 vibrates\"")]
pub(super) struct Args {
    /// What to turn into vectors
    #[arg(required = true)]
    texts: Vec<String>,
    #[command(flatten)]
    reach: Reach,
    /// Model to ask [default: the node's embedding model]
    #[arg(long)]
    model: Option<String>,
    /// Length of the vectors [default: the model's]
    #[arg(long)]
    dimensions: Option<u32>,
    /// Cut texts that are too long for the model, instead of refusing them
    #[arg(long)]
    truncate: bool,
    /// Print the answer as it came
    #[arg(long)]
    json: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Target::find(&args.reach, None, config)?;
    let mut body = json!({"input": args.texts, "truncate": args.truncate});
    if let Some(model) = &args.model {
        body["model"] = model.as_str().into();
    }
    if let Some(dimensions) = args.dimensions {
        body["dimensions"] = dimensions.into();
    }
    let runtime = super::runtime()?;
    let limit = Duration::from_secs(args.timeout);
    let Some(answer) = runtime.block_on(ask(&target, &body.to_string(), limit))? else {
        output::say(&format!(
            "orinoco: no answer from {} at {}:{} ({})",
            target.names.node(),
            target.host,
            target.port,
            target.found
        ));
        return Ok(ExitCode::from(exit::UNAVAILABLE));
    };
    let parsed: Value = serde_json::from_slice(&answer).context("the answer is no JSON")?;
    if let Some(error) = parsed.get("error") {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let line = format!("orinoco: {}: {}", text("code"), text("message"));
        output::say(&super::ask::harmless(&line));
        return Ok(ExitCode::from(exit::FAILURE));
    }
    if args.json {
        return output::answer(&format!("{parsed}\n"));
    }
    let data = parsed["data"]
        .as_array()
        .context("the answer has no data")?;
    let lines = data.iter().map(|one| format!("{}\n", one["embedding"]));
    output::answer(&String::from_iter(lines))
}

/// Asks, and asks again, until the answer comes; `None` when none did in time.
async fn ask(target: &Target, body: &str, limit: Duration) -> anyhow::Result<Option<Vec<u8>>> {
    let id = format!(
        "cli-{:016x}",
        getrandom::u64().context("failed to make an id")?
    );
    let id = RequestId::new(&id).context("an id of our own")?;
    let request = target.names.req(&target.user, Op::Embed, &id);
    let answers = target.names.resp(&target.user, &id);
    let (link, mut inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions: vec![answers],
        ..LinkConfig::new(&target.host, target.port, format!("orinoco-{id}"))
    });
    let question = || Publish {
        topic: request.clone(),
        payload: body.to_owned().into(),
        at_least_once: true,
        ..Publish::default()
    };
    let give_up = Instant::now() + limit;
    let (mut is_up, mut again) = (false, Instant::now());
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to listen for signals")?;
    let answer = loop {
        let inbound = tokio::select! {
            inbound = inbox.recv() => inbound,
            () = sleep_until(again), if is_up => {
                // A full outbox has the question already.
                let _ = link.try_publish(question());
                again = Instant::now() + REPEAT;
                continue;
            }
            _ = interrupt.recv() => break None,
            () = sleep_until(give_up) => break None,
        };
        match inbound.context("the link ended by itself")? {
            Inbound::Up { .. } => is_up = true,
            Inbound::Down { .. } => is_up = false,
            Inbound::Message(message) => {
                let payload = message.payload.to_vec();
                let _ = link.try_ack(message.ack);
                break Some(payload);
            }
            Inbound::Undelivered { reason, .. } => {
                anyhow::bail!("the broker refused the request: {reason}")
            }
            Inbound::SubscribeRefused { filter, reason } => {
                anyhow::bail!("the broker refused the answers ({filter}): {reason}")
            }
            Inbound::Delivered { .. } | Inbound::Listening { .. } => {}
        }
    };
    let _ = link.close(None, CLOSE_LIMIT).await;
    Ok(answer)
}
