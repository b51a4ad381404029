//! Drives `orinoco bench --table`: what each model makes of the power mode in force, as rows that
//! `power.choose = "auto"` chooses by.
//!
//! Each model is loaded once, as its own table in the configuration says, in an engine of its own, and asked
//! for one stream, two, four, and so on up to `engine.n_seq_max`. Energy is the module's mean power while
//! tokens are made; on boards without rails it is absent.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::run::{STEP_LIMIT, Served, measure, median, serving};
use super::tokens_per_second;
use crate::board::identity;
use crate::board::power::{PowerProbe, Present};
use crate::board::rails::{RailsProbe, module_milliwatts};
use crate::board::{Faults, Root};
use crate::config::{Choose, Config, ModelsConfig, PowerConfig};
use crate::daemon::{choose_model, worker_config};
use crate::frames::BenchSpec;
use crate::selection::Row;
use crate::worker::{self, Worker, WorkerConfig};

/// Prompt that the first token is timed after, as the table's key says.
const N_PROMPT: u32 = 512;
/// Prompt before each measured generation, and tokens of it.
const N_BEFORE: u32 = 128;
const N_GEN: u32 = 64;
/// Between two readings of the rails; one takes some milliseconds.
const POWER_EVERY: Duration = Duration::from_millis(100);

/// What one model gave.
#[derive(Debug)]
pub struct Outcome {
    /// The model.
    pub model: String,
    /// Its rows; or why there are none, for people.
    pub rows: Result<Vec<Row>, anyhow::Error>,
}

/// Measures these models, the median of `n_runs` for each figure; `progress` is told what begins and the part
/// that is done.
pub async fn measure_models(
    config: &Config,
    models: &[String],
    n_runs: usize,
    mut progress: impl FnMut(&str, f64),
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (n, model) in models.iter().enumerate() {
        progress(model, n as f64 / models.len() as f64);
        outcomes.push(Outcome {
            model: model.clone(),
            rows: measure_model(config, model, n_runs).await,
        });
    }
    outcomes
}

/// The rows of a table with those of a new measurement in it: what was known of the same models in the same
/// mode, loaded with the same KV types, is replaced.
pub fn merge(known: Vec<Row>, new: Vec<Row>) -> Vec<Row> {
    let is_again = |old: &Row| {
        let same = |row: &Row| {
            (&row.model, row.caps) == (&old.model, old.caps)
                && (row.kv_type_k, row.kv_type_v) == (old.kv_type_k, old.kv_type_v)
        };
        new.iter().any(same)
    };
    let mut rows: Vec<Row> = known.into_iter().filter(|old| !is_again(old)).collect();
    rows.extend(new);
    rows
}

async fn measure_model(config: &Config, model: &str, n_runs: usize) -> anyhow::Result<Vec<Row>> {
    // As its own table says: profiles are what a row competes with.
    let own = Config {
        models: ModelsConfig {
            active: Some(model.to_owned()),
            ..config.models.clone()
        },
        power: PowerConfig {
            choose: Choose::Off,
            ..config.power.clone()
        },
        ..config.clone()
    };
    let root = Root::new(&own.paths.board_root);
    let module = identity::read(&root, &mut Faults::default()).module;
    let mut power = PowerProbe::new(&root, module);
    let before = power.read(None);
    let choice = choose_model(&own)?;
    // A measurement is one long silence.
    let settings = WorkerConfig {
        step_stall: STEP_LIMIT,
        kv_dir: None,
        ..worker_config(&own, &choice)?
    };
    let load = settings.load.as_ref().context("no model was chosen")?;
    let kv_types = (load.kv_type_k, load.kv_type_v);
    let (mut worker, keeper) = worker::spawn(settings);
    let measured = match serving(&mut worker).await {
        Ok(served) => figures(&mut worker, &served, &root, n_runs)
            .await
            .map(|f| (f, served)),
        Err(error) => Err(error),
    };
    drop(worker);
    keeper.await.context("the worker's keeper failed")?;
    let (figures, served) = measured?;
    let after = power.read(None);
    if !before.caps.differences(&after.caps).is_empty() {
        bail!(
            "the power mode changed from {} to {} meanwhile: measure again",
            mode_of(&before),
            mode_of(&after)
        );
    }
    let comparison = &served.checked.comparison;
    let peak_bytes = comparison
        .planned
        .total_bytes()
        .max(comparison.taken.total_bytes());
    let row = |figure: &Figure| Row {
        mode: mode_of(&before),
        caps: before.caps,
        model: model.to_owned(),
        n_params: served.loaded.n_params,
        n_seq_max: figure.n_parallel,
        n_ctx: served.loaded.n_ctx,
        kv_type_k: kv_types.0,
        kv_type_v: kv_types.1,
        tok_s: figure.tok_s,
        ttft_ms: figures.ttft_ms,
        joules_per_token: figure.joules_per_token,
        peak_bytes,
    };
    Ok(figures.by_streams.iter().map(row).collect())
}

fn mode_of(present: &Present) -> String {
    let mode = present.effective_mode().map(|mode| mode.name.clone());
    mode.unwrap_or_default()
}

struct Figures {
    ttft_ms: f64,
    by_streams: Vec<Figure>,
}

struct Figure {
    n_parallel: u32,
    tok_s: f64,
    joules_per_token: Option<f64>,
}

async fn figures(
    worker: &mut Worker,
    served: &Served,
    root: &Root,
    n_runs: usize,
) -> anyhow::Result<Figures> {
    let commands = &served.commands;
    let spec = |n_prompt, n_gen, n_parallel| BenchSpec {
        n_prompt,
        n_gen,
        n_parallel,
    };
    // A first run warms caches and is not counted.
    measure(worker, commands, spec(64, 8, 1)).await?;
    let mut prompts_ms = Vec::new();
    for _ in 0..n_runs {
        let report = measure(worker, commands, spec(N_PROMPT, 0, 1)).await?;
        if report.spec.n_prompt < N_PROMPT {
            bail!("its context is smaller than the {N_PROMPT} tokens of the measurement");
        }
        prompts_ms.push(report.prompt_ms);
    }
    let mut by_streams = Vec::new();
    let doubles = std::iter::successors(Some(1_u32), |n| n.checked_mul(2));
    for n_parallel in doubles.take_while(|n| *n <= served.loaded.n_seq_max) {
        if n_parallel.saturating_mul(N_BEFORE + N_GEN) > served.loaded.n_ctx {
            break; // No room for so many streams: no row.
        }
        let (mut rates, mut milliwatts) = (Vec::new(), Vec::new());
        for _ in 0..n_runs {
            let meter = PowerMeter::start(root);
            let report = measure(worker, commands, spec(N_BEFORE, N_GEN, n_parallel)).await?;
            milliwatts.extend(meter.milliwatts());
            let took = Duration::try_from_secs_f64(report.gen_ms / 1e3);
            let took = took.context("the engine failed while measuring; its log says why")?;
            rates.extend(tokens_per_second((N_GEN * n_parallel).into(), took));
        }
        let tok_s = median(rates).context("nothing was measured")?;
        by_streams.push(Figure {
            n_parallel,
            tok_s,
            joules_per_token: median(milliwatts)
                .map(|milliwatts| milliwatts / 1000.0 / tok_s)
                .filter(|joules| *joules > 0.0),
        });
    }
    let one_ms = by_streams.first().map(|one| 1000.0 / one.tok_s);
    let prompt_ms = median(prompts_ms).filter(|ms| ms.is_finite());
    let (Some(one_ms), Some(prompt_ms)) = (one_ms, prompt_ms) else {
        bail!(
            "its context has no room for a stream of {} tokens",
            N_BEFORE + N_GEN
        );
    };
    Ok(Figures {
        ttft_ms: prompt_ms + one_ms,
        by_streams,
    })
}

/// The module's mean power while it lives, read on a thread of its own.
struct PowerMeter {
    /// Dropped to end it.
    end: Sender<()>,
    thread: Option<JoinHandle<Option<f64>>>,
}

impl PowerMeter {
    fn start(root: &Root) -> Self {
        let (end, ended) = channel();
        let root = root.clone();
        let read = move || {
            let mut rails = RailsProbe::find(&root, &mut Faults::default());
            let (mut sum, mut n) = (0.0, 0_u32);
            loop {
                if let Some(milliwatts) = module_milliwatts(&rails.read(&mut Faults::default())) {
                    sum += milliwatts as f64;
                    n += 1;
                }
                if ended.recv_timeout(POWER_EVERY) != Err(RecvTimeoutError::Timeout) {
                    return (n > 0).then(|| sum / f64::from(n));
                }
            }
        };
        Self {
            end,
            // Without it energy is absent, which is no reason to measure nothing.
            thread: Builder::new().name("power".into()).spawn(read).ok(),
        }
    }

    fn milliwatts(self) -> Option<f64> {
        drop(self.end);
        self.thread?.join().ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::caps::Caps;
    use crate::frames::KvType;

    fn row(model: &str, gpu_hz: u64, n_seq_max: u32) -> Row {
        Row {
            mode: "25W".into(),
            caps: Caps {
                gpu_hz: Some(gpu_hz),
                ..Caps::default()
            },
            model: model.into(),
            n_params: 1,
            n_seq_max,
            n_ctx: 4096,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            tok_s: 1.0,
            ttft_ms: 1.0,
            joules_per_token: None,
            peak_bytes: 1,
        }
    }

    #[test]
    fn a_new_measurement_replaces_the_old_one_of_the_same_model_and_mode_alone() {
        let known = vec![
            row("a", 408, 1),
            row("a", 408, 2),
            row("a", 612, 1),
            row("b", 408, 1),
        ];
        let new = Row {
            tok_s: 2.0,
            n_ctx: 2048,
            ..row("a", 408, 4)
        };
        let rows = merge(known.clone(), vec![new.clone()]);
        assert_eq!(rows, [known[2].clone(), known[3].clone(), new]);
    }
}
