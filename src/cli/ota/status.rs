//! `orinoco ota status`: what a node tells of its updates, in words.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::cli::ask::harmless;
use crate::cli::target::{Reach, Target};
use crate::cli::{exit, output};
use crate::config::Config;
use crate::link::{self, Inbound, Inbox, Link, LinkConfig};
use crate::ota::deploy::State;
use crate::ota::state::Phase;

/// For the goodbye to the broker.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What a node does about updates: its release, progress, and why the last one failed
///
/// Exit codes: 0 all is well or under way, 1 the last update failed or went back, 69 nobody tells.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ota status
  orinoco ota status --watch                    follows a download and a switch to their end
  orinoco ota status --json --host broker.lan --node press-7 | jq .reason")]
pub(super) struct Args {
    #[command(flatten)]
    reach: Reach,
    /// Follow the update under way until it is over
    #[arg(long)]
    watch: bool,
    /// Print the document as it is on the broker
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Longest wait for the node's word
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait_seconds: u64,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Target::find(&args.reach, None, config)?;
    let runtime = crate::cli::runtime()?;
    runtime.block_on(tell(args, &target))
}

async fn tell(args: &Args, target: &Target) -> anyhow::Result<ExitCode> {
    let ticket = getrandom::u64().context("failed to make an id")?;
    let (link, inbox) = link::spawn(LinkConfig {
        credentials: target.credentials.clone(),
        tls: target.tls.clone(),
        subscriptions: vec![target.names.ota_state()],
        ..LinkConfig::new(
            &target.host,
            target.port,
            format!("orinoco-ota-{ticket:016x}"),
        )
    });
    let mut session = Session {
        link,
        inbox,
        last_down: None,
    };
    let told = session.follow(args, target).await;
    // Nothing is owed to anybody.
    let _ = session.link.close(None, CLOSE_LIMIT).await;
    told
}

struct Session {
    link: Link,
    inbox: Inbox,
    last_down: Option<String>,
}

impl Session {
    async fn follow(&mut self, args: &Args, target: &Target) -> anyhow::Result<ExitCode> {
        let node = target.names.node().as_str();
        let give_up = Instant::now() + Duration::from_secs(args.wait_seconds);
        let mut interrupt =
            signal(SignalKind::interrupt()).context("failed to listen for signals")?;
        // Drawn on a terminal only.
        let bar = ProgressBar::new(100).with_style(
            ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}")
                .context("the template is a constant")?,
        );
        let mut last: Option<State> = None;
        loop {
            let inbound = tokio::select! {
                inbound = self.inbox.recv() => inbound.context("the link ended by itself")?,
                _ = interrupt.recv() => return Ok(ExitCode::from(exit::INTERRUPTED)),
                () = sleep_until(give_up), if last.is_none() => {
                    output::say(&format!("orinoco: {}", self.why_nothing(target, args.wait_seconds)));
                    return Ok(ExitCode::from(exit::UNAVAILABLE));
                }
            };
            let message = match inbound {
                Inbound::Message(message) => message,
                Inbound::Down { reason, .. } => {
                    self.last_down = Some(reason);
                    continue;
                }
                Inbound::Up { .. } => {
                    self.last_down = None;
                    continue;
                }
                Inbound::SubscribeRefused { reason, .. } => {
                    anyhow::bail!("the broker does not let us see updates: {reason}")
                }
                _ => continue,
            };
            let payload = message.payload.clone();
            let acknowledged = self.link.try_ack(message.ack);
            acknowledged.context("failed to acknowledge a message")?;
            if args.json {
                return output::answer(&format!(
                    "{}\n",
                    harmless(&String::from_utf8_lossy(&payload))
                ));
            }
            let Ok(state) = serde_json::from_slice::<State>(&payload) else {
                continue;
            };
            let is_over = !state.in_progress && state.queued.is_none();
            if !args.watch || is_over {
                bar.finish_and_clear();
                let answered = output::answer(&harmless_lines(&in_words(node, &state)))?;
                return Ok(match ended_badly(&state) {
                    true => ExitCode::from(exit::FAILURE),
                    false => answered,
                });
            }
            let is_news = |last: &State| last.state != state.state || last.detail != state.detail;
            if last.as_ref().is_none_or(is_news) {
                bar.suspend(|| output::say(&harmless(&headline(node, &state))));
            }
            if let Some(percent) = state.update_percentage {
                bar.set_position(percent.into());
                bar.set_message(progress(&state).unwrap_or_default());
            }
            last = Some(state);
        }
    }

    fn why_nothing(&self, target: &Target, seconds: u64) -> String {
        match &self.last_down {
            Some(down) => target.no_broker(Some(down)),
            None => format!(
                "{} told nothing about updates within {seconds} s: it takes none without a root of trust (orinoco \
                 provision), or was never here; --node names another",
                target.names.node()
            ),
        }
    }
}

/// Lines of a stranger's words, without what could move a terminal's cursor.
fn harmless_lines(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        all.push_str(&harmless(line));
        all.push('\n');
        all
    })
}

fn ended_badly(state: &State) -> bool {
    matches!(state.state, Some(Phase::Failed | Phase::RolledBack))
}

/// One line: what it is at.
fn headline(node: &str, state: &State) -> String {
    let Some(phase) = state.state else {
        return format!("{node}: no update so far");
    };
    let what = match (&state.line, state.release_seq) {
        (Some(line), Some(seq)) => format!(" release {seq} of {line}"),
        (Some(line), None) => format!(" {line}"),
        (None, _) => String::new(),
    };
    let deployment = state.deployment.as_deref().unwrap_or("unnamed");
    format!("{node}: {}{what} (deployment {deployment})", words(phase))
}

const fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Checking => "looking for",
        Phase::Planned => "about to fetch",
        Phase::Downloading => "downloading",
        Phase::Paused => "paused, with part of",
        Phase::Verifying => "verifying",
        Phase::Staged => "all is here of",
        Phase::Waiting => "waiting to put into service",
        Phase::Switching => "loading",
        Phase::Probing => "trying",
        Phase::Committed => "put into service",
        Phase::RollingBack => "going back from",
        Phase::RolledBack => "went back from",
        Phase::Failed => "could not take",
    }
}

/// Bytes, rate and the time that is left.
fn progress(state: &State) -> Option<String> {
    let (done, total) = (state.bytes_done?, state.bytes_total?);
    let mut text = format!("{} of {}", output::bytes(done), output::bytes(total));
    if let Some(percent) = state.update_percentage {
        let _ = write!(text, " ({percent} %)");
    }
    if let Some(rate) = state.rate_kbit_s {
        let _ = write!(text, ", {}.{} Mbit/s", rate / 1000, rate % 1000 / 100);
    }
    if let Some(eta_s) = state.eta_s {
        let _ = write!(text, ", {} left", time(eta_s));
    }
    Some(text)
}

fn time(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// All of it.
fn in_words(node: &str, state: &State) -> String {
    let mut text = headline(node, state);
    let mut line = |words: String| {
        text.push_str("\n  ");
        text.push_str(&words);
    };
    let is_fetching = matches!(state.state, Some(Phase::Downloading | Phase::Paused));
    if let Some(progress) = progress(state).filter(|_| is_fetching) {
        line(progress);
    }
    if let Some(reason) = state.reason {
        line(format!("{reason}: {}", reason.meaning()));
    }
    if let Some(detail) = &state.detail {
        line(detail.clone());
    }
    if let Some(queued) = &state.queued {
        line(format!("next: {queued}"));
    }
    if state.lines.is_empty() {
        line("no release on the node".to_owned());
    }
    for on_node in &state.lines {
        let mut words = format!(
            "{}: release {}, {}",
            on_node.line, on_node.active.release_seq, on_node.active.model
        );
        if on_node.probation {
            words.push_str(", on probation");
        }
        if on_node.withdrawn {
            words.push_str(", RECALLED, and there is nothing to go to");
        }
        match &on_node.previous {
            Some(previous) => {
                let (seq, model) = (previous.release_seq, &previous.model);
                let _ = write!(words, "; can go back to {seq}, {model}");
            }
            None => words.push_str("; nothing to go back to"),
        }
        line(words);
    }
    if let Some(policy) = &state.policy {
        let mut words = match policy.policy_seq {
            Some(seq) => format!("settings of the fleet: policy {seq}"),
            None => "settings of the fleet: none in force".to_owned(),
        };
        if !policy.at_next_start.is_empty() {
            let _ = write!(
                words,
                "; at the next start: {}",
                policy.at_next_start.join(", ")
            );
        }
        if let (Some(seq), Some(reason)) = (policy.refused_seq, policy.reason) {
            let detail = policy.detail.as_deref().unwrap_or(reason.meaning());
            let _ = write!(words, "; policy {seq} was refused: {reason}: {detail}");
        }
        line(words);
    }
    if let Some(metadata) = &state.metadata {
        let age = match metadata.age_days {
            Some(days) => format!("signed {days} days ago"),
            None => "of unknown age".to_owned(),
        };
        line(format!(
            "metadata: {age}, {} (root {}, timestamp {}, snapshot {}, targets {})",
            metadata.freshness,
            metadata.root,
            metadata.timestamp,
            metadata.snapshot,
            metadata.targets
        ));
    }
    if let Some(reason) = state.check_reason {
        let detail = state.check_detail.as_deref().unwrap_or(reason.meaning());
        line(format!("last look at the sources: {reason}: {detail}"));
    }
    if let Some(clock) = &state.clock {
        line(format!("clock: {clock}"));
    }
    if let Some(mib) = state.disk_free_mib {
        line(format!("disk: {} free", output::bytes(mib << 20)));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ota::Reason;
    use crate::ota::deploy::report::{Line, Metadata, Version};

    fn version(release_seq: u64, model: &str) -> Version {
        Version {
            release_seq,
            model: model.into(),
        }
    }

    #[test]
    fn a_download_is_told_with_bytes_rate_and_time_and_with_what_serves_meanwhile() {
        let state = State {
            deployment: Some("d-3".into()),
            state: Some(Phase::Downloading),
            line: Some("assistant".into()),
            release_seq: Some(12),
            bytes_done: Some(1_073_741_824),
            bytes_total: Some(2_497_281_120),
            rate_kbit_s: Some(84_050),
            eta_s: Some(136),
            update_percentage: Some(43),
            in_progress: true,
            lines: vec![Line {
                line: "assistant".into(),
                active: version(11, "qwen3-4b"),
                previous: Some(version(10, "qwen3-4b-old")),
                probation: true,
                ..Line::default()
            }],
            metadata: Some(Metadata {
                root: 3,
                timestamp: 41,
                snapshot: 40,
                targets: 39,
                age_days: Some(19),
                freshness: "fresh".into(),
            }),
            clock: Some("synced".into()),
            disk_free_mib: Some(51_200),
            ..State::default()
        };
        assert_eq!(
            in_words("press-7", &state),
            "press-7: downloading release 12 of assistant (deployment d-3)\n  \
             1.1 GB of 2.5 GB (43 %), 84.0 Mbit/s, 2 min left\n  \
             assistant: release 11, qwen3-4b, on probation; can go back to 10, qwen3-4b-old\n  \
             metadata: signed 19 days ago, fresh (root 3, timestamp 41, snapshot 40, targets 39)\n  \
             clock: synced\n  \
             disk: 53.7 GB free\n"
        );
    }

    #[test]
    fn a_failure_is_told_by_its_word_its_meaning_and_its_detail() {
        let state = State {
            deployment: Some("d-4".into()),
            state: Some(Phase::RolledBack),
            reason: Some(Reason::ProbeGolden),
            detail: Some("\"Paris\" was answered without London".into()),
            line: Some("assistant".into()),
            release_seq: Some(13),
            ..State::default()
        };
        let text = in_words("press-7", &state);
        assert!(text.starts_with("press-7: went back from release 13 of assistant"));
        assert!(text.contains("probe_golden: Probe: a golden prompt was answered wrong."));
        assert!(text.contains("without London"));
        assert!(text.contains("no release on the node"));
        assert!(ended_badly(&state));
    }

    #[test]
    fn words_of_a_stranger_move_no_cursor() {
        let state = State {
            deployment: Some("d\u{1b}[2J".into()),
            state: Some(Phase::Failed),
            detail: Some("one\u{7}".into()),
            ..State::default()
        };
        let text = harmless_lines(&in_words("press-7", &state));
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
    }
}
