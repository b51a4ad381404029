//! Drives `orinoco bench`: the worker alone, then the same worker behind a daemon and a broker.
//!
//! Both parts run the same model file with the same settings, one after the other, so that their ratio is
//! the cost of everything between a device and a decode.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::timeout;

use super::bandwidth::{self, Spec};
use super::client::Daemon;
use super::quantiles::Quantiles;
use super::report::{About, Mqtt, Raw, Report};
use super::tokens_per_second;
use crate::board::identity::{self, Kind};
use crate::board::power::PowerProbe;
use crate::board::{self, Faults};
use crate::config::Config;
use crate::daemon::{choose_model, worker_config};
use crate::frames::{self, BenchSpec, Event, Hello, Loaded};
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
pub(super) const LOAD_LIMIT: Duration = Duration::from_secs(600);
/// One measurement must end within this time.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(600);
/// Tokens that each stream makes.
const N_GEN: u32 = 128;
/// Prompt tokens of each sequence in the batches, as llama-batched-bench is usually run.
const N_BATCH_PROMPT: u32 = 128;
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
pub(super) fn hardware(config: &Config) -> String {
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
        kv_dir: None, // A measurement leaves nothing behind.
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
    let mut daemon = Daemon::start(config)?;
    let mut client = daemon.client().await?;
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
    daemon.stop().await;
    Ok(mqtt.with_times(&ttft, &overhead, &itl))
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
