//! `orinoco top`: a node on the terminal, over MQTT, from any machine.

use std::io::{IsTerminal as _, stdout};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use ratatui::Terminal;
use ratatui::backend::{TermionBackend, TestBackend};
use ratatui::termion::event::Key;
use ratatui::termion::input::{Keys, TermRead as _};
use ratatui::termion::raw::IntoRawMode as _;
use ratatui::termion::screen::IntoAlternateScreen as _;
use ratatui::termion::{AsyncReader, async_stdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::target::{Reach, Target};
use super::{exit, output};
use crate::config::Config;
use crate::link::{self, Inbound, Inbox, Link, LinkConfig};
use crate::top::{View, draw};

/// Ages on the screen move, and keys are looked for, this often.
const REDRAW: Duration = Duration::from_millis(200);
/// For the goodbye to the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Show a node: requests, speed, memory, heat, power, update, events
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco top                                       the daemon on this machine
  orinoco top --host 10.0.0.7 --node press-7 --user anna --password-file anna.password
  orinoco top --once                                one frame, for scripts and tickets

q or Ctrl-C ends it. An update is shown to users with the role operator or monitor.")]
pub(super) struct Args {
    #[command(flatten)]
    reach: Reach,
    /// Print one frame and end
    #[arg(long)]
    once: bool,
    /// With --once: columns of the frame
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(40..=400), requires = "once")]
    width: u16,
    /// With --once: seconds to wait for a node's figures
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600), requires = "once")]
    wait_seconds: u64,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Target::find(&args.reach, None, config)?;
    let runtime = super::runtime()?;
    if !args.once && !stdout().is_terminal() {
        anyhow::bail!("standard output is no terminal: use --once for one frame");
    }
    runtime.block_on(watch(args, &target))
}

async fn watch(args: &Args, target: &Target) -> anyhow::Result<ExitCode> {
    let node = target.names.node().as_str();
    let base = format!("{}/v1/{node}/", target.names.root());
    // One by one: broker rules allow these, and not all that is below a node.
    let subscriptions = ["status", "info", "state", "tele/+", "evt/+", "ota/state"]
        .map(|rest| format!("{base}{rest}"))
        .to_vec();
    let ticket = getrandom::u64().context("failed to make an id")?;
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions,
        ..LinkConfig::new(
            &target.host,
            target.port,
            format!("orinoco-top-{ticket:016x}"),
        )
    });
    let mut session = Session {
        link,
        inbox,
        base,
        view: View::new(node),
    };
    let done = if args.once {
        session.once(args, target).await
    } else {
        session.live().await
    };
    // Nothing is owed to anybody.
    let _ = session.link.close(None, CLOSE_LIMIT).await;
    done
}

struct Session {
    link: Link,
    inbox: Inbox,
    base: String,
    view: View,
}

impl Session {
    fn take(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Up { .. } => self.view.down = None,
            Inbound::Down { reason, .. } => self.view.down = Some(reason),
            Inbound::Message(message) => {
                if let Some(rest) = message.topic.strip_prefix(&self.base) {
                    self.view.hear(rest, &message.payload);
                }
                // What cannot be acknowledged now comes again, and is the same.
                let _ = self.link.try_ack(message.ack);
            }
            // A role that may not see updates sees the rest.
            Inbound::SubscribeRefused { .. }
            | Inbound::Undelivered { .. }
            | Inbound::Delivered { .. }
            | Inbound::Listening { .. } => {}
        }
    }

    async fn once(&mut self, args: &Args, target: &Target) -> anyhow::Result<ExitCode> {
        let give_up = Instant::now() + Duration::from_secs(args.wait_seconds);
        while !self.view.is_complete() {
            tokio::select! {
                inbound = self.inbox.recv() => self.take(inbound.context("the link ended by itself")?),
                () = sleep_until(give_up) => {
                    let why = self.view.down.clone().map_or_else(
                        || "it has not told its figures; is it running, with telemetry.interval_seconds above 0?".to_owned(),
                        |reason| format!("{}:{} ({}): {reason}", target.host, target.port, target.found),
                    );
                    output::say(&format!("orinoco: nothing from {} within {} s: {why}", self.view.node, args.wait_seconds));
                    return Ok(ExitCode::from(exit::UNAVAILABLE));
                }
            }
        }
        output::answer(&frame(&self.view, args.width)?)
    }

    async fn live(&mut self) -> anyhow::Result<ExitCode> {
        // Given back when it is dropped, also by an error.
        let screen = (stdout().into_raw_mode())
            .and_then(|raw| raw.into_alternate_screen())
            .context("failed to take the terminal")?;
        let mut terminal =
            Terminal::new(TermionBackend::new(screen)).context("failed to take the terminal")?;
        terminal.hide_cursor().context("failed to draw")?;
        let mut keys = async_stdin().keys();
        let mut ticks = interval(REDRAW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut terminate =
            signal(SignalKind::terminate()).context("failed to listen for signals")?;
        loop {
            tokio::select! {
                inbound = self.inbox.recv() => self.take(inbound.context("the link ended by itself")?),
                _ = terminate.recv() => break,
                _ = ticks.tick() => {
                    if wants_to_leave(&mut keys) {
                        break;
                    }
                    let view = &self.view;
                    terminal
                        .draw(|frame| draw(view, now_ms(), frame.area(), frame.buffer_mut()))
                        .context("failed to draw")?;
                }
            }
        }
        terminal.show_cursor().context("failed to draw")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// q, Escape or Ctrl-C, which a raw terminal hands over as a key.
fn wants_to_leave(keys: &mut Keys<AsyncReader>) -> bool {
    keys.any(|key| matches!(key, Ok(Key::Char('q') | Key::Esc | Key::Ctrl('c'))))
}

/// As text without colours, without the empty rows at its end.
fn frame(view: &View, width: u16) -> anyhow::Result<String> {
    // Room for the events that a ticket is about.
    const ROWS: u16 = 28;
    let mut terminal = Terminal::new(TestBackend::new(width, ROWS)).context("failed to draw")?;
    terminal
        .draw(|frame| draw(view, now_ms(), frame.area(), frame.buffer_mut()))
        .context("failed to draw")?;
    let buffer = terminal.backend().buffer();
    let mut lines: Vec<String> = buffer
        .content
        .chunks(usize::from(width))
        .map(|row| {
            let line: String = row.iter().map(|cell| cell.symbol()).collect();
            line.trim_end().to_owned()
        })
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    Ok(lines.join("\n") + "\n")
}

fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
