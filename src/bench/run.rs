//! Drives `orinoco bench`: the worker alone, then the same worker behind a daemon and a broker.
//!
//! Both parts run the same model file with the same settings, one after the other, so that their ratio is
//! the cost of everything between a device and a decode. The MQTT part is a real daemon with its own
//! broker in a temporary directory, and a client that follows the contract.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use super::bandwidth::{self, Spec};
use super::quantiles::Quantiles;
use super::report::{About, Mqtt, Raw, Report};
use super::tokens_per_second;
use crate::board::identity::{self, Kind};
use crate::board::power::PowerProbe;
use crate::board::{self, Faults};
use crate::config::Config;
use crate::daemon::{choose_model, worker_config};
use crate::frames::{self, BenchSpec, Event, Hello, Loaded};
use crate::link::{self, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use crate::process::{terminate, tie};
use crate::receive::{Heard, Receiver};
use crate::runtime_file;
use crate::wire::report::Proof;
use crate::worker::{self, Checked, Worker, WorkerConfig};

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Runs of each figure; the median is reported.
    pub n_runs: usize,
    /// Requests for the time to first token.
    pub n_ttft: usize,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            n_runs: 3,
            n_ttft: 20,
        }
    }
}

/// A model must serve within this time.
const LOAD_LIMIT: Duration = Duration::from_secs(600);
/// One measurement must end within this time.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(600);
/// Tokens that each stream makes.
const N_GEN: u32 = 128;
/// Prompt tokens of each sequence in the batches, as llama-batched-bench is usually run.
const N_BATCH_PROMPT: u32 = 128;
/// The user that asks.
const USER: &str = "local";

/// Measures everything; `progress` is told what begins, and the part that is done.
///
/// # Errors
/// What kept a part from being measured: a model that does not load, a daemon that does not start.
pub async fn run(
    config: &Config,
    plan: Plan,
    mut progress: impl FnMut(&str, f64),
) -> anyhow::Result<Report> {
    progress("memory bandwidth", 0.0);
    let bandwidth = bandwidth::measure(Spec::for_machine(Path::new("/")));
    progress("the worker alone", 0.05);
    let (served, raw) = raw(config, plan, &mut progress).await?;
    let loaded = &served.loaded;
    let mqtt = through_mqtt(config, plan, &mut progress).await?;
    progress("done", 1.0);
    let about = About {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: option_env!("ORINOCO_COMMIT").map(str::to_owned),
        llama: served.hello.llama,
        hardware: hardware(config),
        proof: Some(Proof::of(&served.checked.proof)),
    };
    // What the processor gets out of memory is not what a GPU gets out of its own.
    let gb_s = match loaded.devices.is_empty() {
        true => bandwidth.map(|measured| measured.gb_s()),
        false => loaded.canary.map(|canary| canary.bytes_per_second / 1e9),
    };
    let bytes = bytes_per_token(loaded);
    Ok(Report::new(about, loaded, raw, mqtt, gb_s, Some(bytes)))
}

/// Weights, and the KV cache up to the middle of the generation.
fn bytes_per_token(loaded: &Loaded) -> u64 {
    let kv: u64 = loaded.buffers.iter().map(|buffer| buffer.kv_bytes).sum();
    loaded.size_bytes + kv / u64::from(loaded.n_ctx.max(1)) * u64::from(N_GEN / 2)
}

/// Board or processor, GPU, power mode, cores: what the figures below hold for.
fn hardware(config: &Config) -> String {
    let root = board::Root::new(&config.paths.board_root);
    let identity = identity::read(&root, &mut Faults::default());
    let processor = || {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .unwrap_or_default();
        name.trim_start_matches([' ', '\t', ':']).to_owned()
    };
    let gpu = identity.gpu.filter(|_| identity.kind == Kind::NvidiaPc);
    let mode = PowerProbe::new(&root, identity.module).read(None);
    let mode = mode.effective_mode().map(|mode| mode.name.clone());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let what = identity.model.unwrap_or_else(processor);
    let parts = [Some(what), gpu, mode, Some(format!("{cores} cores"))];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    format!("{}, {}", parts.join(", "), std::env::consts::ARCH)
}

pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

// ---- the worker alone ------------------------------------------------------------------------------

async fn raw(
    config: &Config,
    plan: Plan,
    progress: &mut impl FnMut(&str, f64),
) -> anyhow::Result<(Served, Raw)> {
    let choice = choose_model(config)?;
    // A measurement is one long silence.
    let settings = WorkerConfig {
        step_stall: STEP_LIMIT,
        ..worker_config(config, &choice)?
    };
    let (mut worker, keeper) = worker::spawn(settings);
    let served = serving(&mut worker).await?;
    let commands = served.commands.clone();
    let mut raw = Raw::default();
    let one = |n_prompt, n_gen, n_parallel| BenchSpec {
        n_prompt,
        n_gen,
        n_parallel,
    };
    // A first run warms caches and is not counted.
    measure(&mut worker, &commands, one(64, 16, 1)).await?;
    let figures: [(&str, BenchSpec, &mut Option<f64>); 5] = [
        ("raw pp512", one(512, 0, 1), &mut raw.pp512_tok_s),
        ("raw tg128", one(0, N_GEN, 1), &mut raw.tg128_tok_s),
        (
            "raw batch 1",
            one(N_BATCH_PROMPT, N_GEN, 1),
            &mut raw.batch1_tok_s,
        ),
        (
            "raw batch 4",
            one(N_BATCH_PROMPT, N_GEN, 4),
            &mut raw.batch4_tok_s,
        ),
        (
            "raw batch 8",
            one(N_BATCH_PROMPT, N_GEN, 8),
            &mut raw.batch8_tok_s,
        ),
    ];
    for (n, (name, spec, figure)) in figures.into_iter().enumerate() {
        progress(name, 0.05 + 0.08 * n as f64);
        if spec.n_parallel > served.loaded.n_seq_max {
            continue; // Absent: this configuration has fewer sequences.
        }
        let mut rates = Vec::new();
        for _ in 0..plan.n_runs {
            let report = measure(&mut worker, &commands, spec).await?;
            let (tokens, ms) = if spec.n_gen == 0 {
                (spec.n_prompt * spec.n_parallel, report.prompt_ms)
            } else {
                (spec.n_gen * spec.n_parallel, report.gen_ms)
            };
            rates.extend(tokens_per_second(
                tokens.into(),
                Duration::from_secs_f64(ms / 1e3),
            ));
        }
        *figure = median(rates);
    }
    drop(worker);
    keeper.await.context("the worker's keeper failed")?;
    Ok((served, raw))
}

/// A worker's words when it serves, and what was found out about it.
pub(super) struct Served {
    pub(super) loaded: Loaded,
    hello: Hello,
    pub(super) checked: Checked,
    pub(super) commands: Commands,
}

type Commands = tokio::sync::mpsc::Sender<frames::Command>;

pub(super) async fn serving(worker: &mut Worker) -> anyhow::Result<Served> {
    let wait = async {
        loop {
            match worker.reports.recv().await {
                Some(worker::Report::Serving {
                    loaded,
                    hello,
                    checked,
                    commands,
                    ..
                }) => {
                    return Ok(Served {
                        loaded: *loaded,
                        hello: *hello,
                        checked: *checked,
                        commands,
                    });
                }
                Some(worker::Report::Down(down)) if down.cause.is_decision() => {
                    bail!("the engine {}", down.cause)
                }
                Some(worker::Report::Down(down)) => {
                    bail!(
                        "the engine {}; it said: {}",
                        down.cause,
                        down.stderr_tail.join(" | ")
                    )
                }
                Some(_) => {}
                None => bail!("the worker's keeper ended"),
            }
        }
    };
    timeout(LOAD_LIMIT, wait)
        .await
        .context("the model did not load in time")?
}

pub(super) async fn measure(
    worker: &mut Worker,
    commands: &Commands,
    spec: BenchSpec,
) -> anyhow::Result<frames::BenchReport> {
    commands
        .send(frames::Command::Bench(spec))
        .await
        .context("the worker is gone")?;
    let wait = async {
        loop {
            match worker.reports.recv().await {
                Some(worker::Report::Event(Event::Bench(report))) => return Ok(report),
                Some(worker::Report::Down(down)) => {
                    bail!("the engine {} while measuring", down.cause)
                }
                Some(_) => {}
                None => bail!("the worker's keeper ended"),
            }
        }
    };
    timeout(STEP_LIMIT, wait)
        .await
        .context("a measurement did not end in time")?
}

// ---- through MQTT ----------------------------------------------------------------------------------

async fn through_mqtt(
    config: &Config,
    plan: Plan,
    progress: &mut impl FnMut(&str, f64),
) -> anyhow::Result<Mqtt> {
    let scratch = Scratch::new()?;
    let mut daemon = start_daemon(config, scratch.path())?;
    let mut client = connect(&mut daemon, scratch.path()).await?;
    client.streams(1, 16, "warm up").await?;

    let mut mqtt = Mqtt::default();
    let mut itl = Quantiles::new();
    progress("MQTT tg128", 0.5);
    let mut rates = Vec::new();
    for _ in 0..plan.n_runs {
        let measured = client.streams(1, N_GEN, &words(24)).await?;
        rates.extend(measured.tok_s);
        measured.gaps.iter().for_each(|gap| itl.record(*gap));
    }
    mqtt.tg128_tok_s = median(rates);
    let figures = [
        (1, &mut mqtt.batch1_tok_s),
        (4, &mut mqtt.batch4_tok_s),
        (8, &mut mqtt.batch8_tok_s),
    ];
    for (n, (n_streams, figure)) in figures.into_iter().enumerate() {
        progress(&format!("MQTT batch {n_streams}"), 0.6 + 0.1 * n as f64);
        if n_streams > config.engine.n_seq_max {
            continue;
        }
        let mut rates = Vec::new();
        for _ in 0..plan.n_runs {
            rates.extend(client.streams(n_streams, N_GEN, &words(100)).await?.tok_s);
        }
        *figure = median(rates);
    }
    progress("MQTT time to first token", 0.9);
    let (mut ttft, mut overhead) = (Quantiles::new(), Quantiles::new());
    for _ in 0..plan.n_ttft {
        let measured = client.streams(1, 2, &words(24)).await?;
        ttft.record(measured.ttft);
        overhead.record(measured.ttft.saturating_sub(measured.prefill));
    }
    drop(client);
    stop(daemon).await;
    Ok(mqtt.with_times(&ttft, &overhead, &itl))
}

/// A directory of our own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let name = format!(
            "orinoco-bench-{}-{:08x}",
            std::process::id(),
            getrandom::u32().unwrap_or(0)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("failed to make {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is a few files in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The same settings as ours, but a place and a broker of its own.
fn start_daemon(config: &Config, scratch: &Path) -> anyhow::Result<Child> {
    let settings = scratch.join("config.toml");
    std::fs::write(&settings, config.to_toml(false))
        .context("failed to write the settings of the daemon")?;
    let this = std::env::current_exe().context("failed to find this program's own file")?;
    let mut command = Command::new(this);
    command.arg("run").arg("--config").arg(&settings);
    for (key, value) in [
        (
            "paths.state_dir",
            scratch.join("state").display().to_string(),
        ),
        (
            "paths.models_dir",
            config.paths.models_dir.display().to_string(),
        ),
        ("broker.mode", "child".into()),
        ("broker.listen", "127.0.0.1".into()),
        ("broker.port", "18830".into()),
        ("broker.port_search", "true".into()),
        (
            "broker.storage_dir",
            scratch.join("broker").display().to_string(),
        ),
        ("log.level", "warn".into()),
    ] {
        command.arg("--set").arg(format!("{key}={value}"));
    }
    tie(command.as_std_mut());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("failed to start a daemon to measure")
}

async fn stop(mut daemon: Child) {
    terminate(&daemon);
    if timeout(Duration::from_secs(15), daemon.wait())
        .await
        .is_err()
    {
        let _ = daemon.kill().await;
    }
}

async fn connect(daemon: &mut Child, scratch: &Path) -> anyhow::Result<Client> {
    let state_dir = scratch.join("state");
    let give_up = Instant::now() + Duration::from_secs(30);
    let runtime = loop {
        if let Some(runtime) = runtime_file::read(&state_dir)? {
            break runtime;
        }
        if let Some(status) = daemon
            .try_wait()
            .context("failed to look after the daemon")?
        {
            bail!("the daemon to measure ended with {status}; its log lines are above");
        }
        if Instant::now() > give_up {
            bail!("the daemon to measure did not start in time");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut link_config = LinkConfig::new(runtime.host, runtime.port, "orinoco-bench");
    link_config.clean_start = true;
    let (root, node) = (runtime.root, runtime.node);
    link_config.subscriptions = vec![
        format!("{root}/v1/resp/{USER}/#"),
        format!("{root}/v1/{node}/state"),
    ];
    let (link, inbox) = link::spawn(link_config);
    let mut client = Client {
        link,
        inbox,
        root,
        node,
        next_id: 0,
    };
    timeout(LOAD_LIMIT, client.until_serving())
        .await
        .context("the model did not load in time")??;
    Ok(client)
}

struct Client {
    link: Link,
    inbox: Inbox,
    root: String,
    node: String,
    next_id: u64,
}

/// What one or more streams side by side showed.
struct Measured {
    /// All streams together, while all were decoding.
    tok_s: Option<f64>,
    /// Between the texts of the first stream.
    gaps: Vec<Duration>,
    /// From publishing to the first text, of the first stream.
    ttft: Duration,
    /// The worker's prefill of the first stream.
    prefill: Duration,
}

/// One stream while it runs.
struct Stream {
    topic: String,
    receiver: Receiver,
    /// When text came, and how many bytes there were then.
    heard: Vec<(Instant, usize)>,
    ended: Option<Instant>,
}

impl Client {
    async fn until_serving(&mut self) -> anyhow::Result<()> {
        use crate::wire::report::{Mode, State};
        loop {
            let Some(event) = self.inbox.recv().await else {
                bail!("the link ended")
            };
            let Inbound::Message(message) = event else {
                continue;
            };
            self.link.try_ack(message.ack)?;
            let Ok(state) = serde_json::from_slice::<State>(&message.payload) else {
                continue;
            };
            match state.mode {
                Mode::Serving => return Ok(()),
                Mode::NoModel => bail!("no model serves: {}", state.reasons.join("; ")),
                _ => {}
            }
        }
    }

    /// Runs streams of `n_gen` greedy tokens side by side, each with a prompt of its own.
    async fn streams(
        &mut self,
        n_streams: u32,
        n_gen: u32,
        prompt: &str,
    ) -> anyhow::Result<Measured> {
        let mut streams = Vec::new();
        let asked = Instant::now();
        for _ in 0..n_streams {
            self.next_id += 1;
            let (id, root, node) = (format!("b{}", self.next_id), &self.root, &self.node);
            // Numbered at its beginning, so that no prefix of an earlier prompt is found in the cache.
            let body = serde_json::json!({
                "messages": [{"role": "user", "content": format!("{} {prompt}", self.next_id)}],
                "max_tokens": n_gen, "temperature": 0, "ignore_eos": true, "coalesce_ms": 0,
            });
            let publish = Publish {
                topic: format!("{root}/v1/{node}/req/{USER}/chat/{id}"),
                payload: Bytes::from(body.to_string()),
                at_least_once: true,
                retain: false,
                props: Props::default(),
                token: None,
            };
            streams.push(Stream {
                topic: format!("{root}/v1/resp/{USER}/{id}"),
                receiver: Receiver::default(),
                heard: Vec::new(),
                ended: None,
            });
            self.link.publish(publish).await?;
        }
        timeout(STEP_LIMIT, self.until_ended(&mut streams))
            .await
            .context("streams did not end in time")??;
        judge(&streams, n_gen, asked)
    }

    async fn until_ended(&mut self, streams: &mut [Stream]) -> anyhow::Result<()> {
        while streams.iter().any(|stream| stream.ended.is_none()) {
            let Some(event) = self.inbox.recv().await else {
                bail!("the link ended")
            };
            let Inbound::Message(message) = event else {
                continue;
            };
            let now = Instant::now();
            self.link.try_ack(message.ack)?;
            let Some(stream) = streams
                .iter_mut()
                .find(|stream| stream.topic == message.topic)
            else {
                continue;
            };
            match stream.receiver.hear(&message.payload)? {
                Heard::Text { from } if from < stream.receiver.text().len() => {
                    stream.heard.push((now, stream.receiver.text().len()));
                }
                // News of the queue.
                Heard::Text { .. } => {}
                Heard::End => {
                    // Tokens may spell no text at all, as those of a model with random weights.
                    if stream.heard.is_empty() {
                        stream.heard.push((now, stream.receiver.text().len()));
                    }
                    stream.ended = Some(now);
                }
                Heard::Accepted | Heard::StartedOver | Heard::Repeat => {}
                // One node alone answers here.
                Heard::Refused(_) | Heard::OtherNode { .. } => {}
            }
        }
        Ok(())
    }
}

/// Bytes of text that came after `begin` and until `end`; none when one stream was over before another began,
/// as happens when a short stream waits for the disk.
fn bytes_between(heard: &[(Instant, usize)], begin: Instant, end: Instant) -> usize {
    let bytes_at = |at: Instant| {
        let last = heard.iter().rev().find(|(then, _)| *then <= at);
        last.map_or(0, |(_, bytes)| *bytes)
    };
    bytes_at(end).saturating_sub(bytes_at(begin))
}

/// Tokens come as text, so tokens inside a window are counted by their share of the stream's bytes.
fn judge(streams: &[Stream], n_gen: u32, asked: Instant) -> anyhow::Result<Measured> {
    let first = &streams[0];
    for stream in streams {
        let end = stream.receiver.end().context("a stream has not ended")?;
        let finished = end
            .outcome
            .as_ref()
            .map_err(|error| anyhow::anyhow!("a stream failed: {}", error.message))?;
        let made = finished.usage.map_or(0, |usage| usage.completion_tokens);
        if made != u64::from(n_gen) {
            bail!("a stream made {made} tokens, {n_gen} were asked for");
        }
    }
    let begin = streams
        .iter()
        .map(|stream| stream.heard[0].0)
        .max()
        .context("no stream")?;
    let end = streams
        .iter()
        .filter_map(|stream| stream.heard.last())
        .map(|(at, _)| *at)
        .min()
        .context("no stream")?;
    let tokens: f64 = streams
        .iter()
        .map(|stream| {
            let all = stream.receiver.text().len().max(1);
            let n_bytes = bytes_between(&stream.heard, begin, end);
            n_bytes as f64 / all as f64 * f64::from(n_gen)
        })
        .sum();
    let window = end.saturating_duration_since(begin).as_secs_f64();
    let prefill_ms = first
        .receiver
        .end()
        .and_then(|end| end.outcome.as_ref().ok())
        .and_then(|ok| ok.details.prefill_ms);
    Ok(Measured {
        tok_s: (window > 0.0 && tokens > 0.0).then(|| tokens / window),
        gaps: first
            .heard
            .windows(2)
            .map(|pair| pair[1].0 - pair[0].0)
            .collect(),
        ttft: first.heard[0].0 - asked,
        prefill: Duration::from_secs_f64(prefill_ms.unwrap_or(0.0) / 1e3),
    })
}

/// A prompt of this many plain words.
fn words(n: usize) -> String {
    const WORDS: [&str; 12] = [
        "pump",
        "pressure",
        "valve",
        "reports",
        "the",
        "line",
        "is",
        "warm",
        "and",
        "slow",
        "after",
        "maintenance",
    ];
    (0..n)
        .map(|i| WORDS[(i * 7 + i / 12) % WORDS.len()])
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_while_all_streams_run_and_none_when_one_came_too_late() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let heard = [(at(10), 4), (at(20), 9), (at(30), 20)];
        for (begin, end, expected) in [
            (10, 30, 16),
            (15, 25, 5),
            (0, 5, 0),
            (30, 30, 0),
            // The other stream had ended before this one began, and the other way round.
            (30, 5, 0),
            (25, 15, 0),
        ] {
            let found = bytes_between(&heard, at(begin), at(end));
            assert_eq!(found, expected, "{begin} to {end} ms");
        }
    }
}
