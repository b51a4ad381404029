//! `orinoco bench`: what this board makes of its model, alone and through MQTT.

use std::fmt::Display;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{exit, output};
use crate::bench::run::{self, Plan};
use crate::bench::seeds;
use crate::bench::table::{self, Outcome};
use crate::config::Config;
use crate::models::Catalogue;
use crate::selection::{self, Row, TABLE_BYTES_MAX};

/// Measure the model: the engine alone, the same through MQTT, and the memory it reads
///
/// Runs an engine and a daemon of its own beside whatever serves; for figures that count, nothing else
/// should be busy. Takes about a minute for a small model.
///
/// With --table: what each model makes of the power mode in force (tokens a second, time to the first token,
/// joules a token where the board measures power, memory), written to power.table_file, which `power.choose =
/// "auto"` chooses by. Run it once in each mode. Rows of other modes and models stay. Stop the daemon first:
/// a model that does not fit beside it is passed over. Exit codes: 0 all measured, 1 not all.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco bench
  orinoco bench --json > today.json
  orinoco bench --runs 5 --set model.active=SmolLM2-135M-Instruct.Q4_1
  orinoco bench --seed-report
  orinoco bench --table
  orinoco bench --table qwen2.5-3b --runs 1 --json")]
pub(super) struct Args {
    /// With --table: only these models [default: all]
    #[arg(requires = "table", value_name = "MODEL")]
    models: Vec<String>,
    /// Measure every model in this power mode, and write the table for power.choose = "auto"
    #[arg(long)]
    table: bool,
    /// Instead: a greeting, a tool call, a coding question and five questions at once, as people ask them
    #[arg(long, conflicts_with = "table")]
    seed_report: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Runs of each figure; the median is shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    // Drawn on a terminal only.
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}")
            .expect("the template is a constant"),
    );
    if args.table {
        return write_table(args, config, &bar);
    }
    let progress = |what: &str, done: f64| {
        bar.set_message(what.to_owned());
        bar.set_position((done * 100.0) as u64);
    };
    let n_runs = args.runs.into();
    // One thread, the main one: the engine is its child.
    let runtime = super::runtime()?;
    if args.seed_report {
        let seeds = runtime.block_on(seeds::run(config, n_runs, progress));
        bar.finish_and_clear();
        return show(args, &seeds?);
    }
    let plan = Plan {
        n_runs,
        ..Plan::default()
    };
    let report = runtime.block_on(run::run(config, plan, progress));
    bar.finish_and_clear();
    show(args, &report?)
}

fn show(args: &Args, report: &(impl Serialize + Display)) -> anyhow::Result<ExitCode> {
    let text = match args.json {
        true => serde_json::to_string_pretty(report).context("failed to encode the report")? + "\n",
        false => report.to_string(),
    };
    output::answer(&text)
}

fn write_table(args: &Args, config: &Config, bar: &ProgressBar) -> anyhow::Result<ExitCode> {
    let path = &config.power.table_file;
    // Before a measurement of minutes: can what is there be added to?
    let known = read_table(path)?;
    let models = models(args, config)?;
    let runtime = super::runtime()?;
    let measuring = table::measure_models(config, &models, args.runs.into(), |model, done| {
        bar.set_message(model.to_owned());
        bar.set_position((done * 100.0) as u64);
    });
    let outcomes = runtime.block_on(measuring);
    bar.finish_and_clear();
    let (mut rows, mut failures) = (Vec::new(), 0);
    for Outcome { model, rows: found } in outcomes {
        match found {
            Ok(found) => rows.extend(found),
            Err(error) => {
                failures += 1;
                output::say(&format!("{model} not measured: {error:#}"));
            }
        }
    }
    if rows.is_empty() {
        bail!("nothing was measured; {} is as it was", path.display());
    }
    let text = match args.json {
        true => selection::to_json(&rows).context("failed to encode the rows")?,
        false => format!("{}\n{}\n", heading(&rows), output::table(&cells(&rows))),
    };
    save_table(path, &table::merge(known, rows))?;
    output::say(&format!("written to {}", path.display()));
    let code = output::answer(&text)?;
    Ok(match failures {
        0 => code,
        _ => ExitCode::from(exit::FAILURE),
    })
}

/// Those that were named, else all that are here.
fn models(args: &Args, config: &Config) -> anyhow::Result<Vec<String>> {
    let dir = &config.paths.models_dir;
    let catalogue = Catalogue::read(&config.models, dir)
        .with_context(|| format!("failed to list the models in {}", dir.display()))?;
    if let Some(model) = args
        .models
        .iter()
        .find(|model| catalogue.get(model).is_none())
    {
        bail!(
            "no model {model:?} in {}; see `orinoco models list`",
            dir.display()
        );
    }
    let entries = catalogue.entries().iter();
    let all = entries.filter(|entry| entry.file_bytes.is_some());
    let names: Vec<String> = match args.models.is_empty() {
        true => all.map(|entry| entry.name.clone()).collect(),
        false => args.models.clone(),
    };
    if names.is_empty() {
        bail!(
            "no models in {}; `orinoco models add FILE` lets one in",
            dir.display()
        );
    }
    Ok(names)
}

fn read_table(path: &Path) -> anyhow::Result<Vec<Row>> {
    use std::io::Read as _;
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file.with_context(|| format!("failed to open {}", path.display()))?,
    };
    let mut bytes = Vec::new();
    file.take(TABLE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("failed to read {}", path.display()))?;
    selection::parse_table(&bytes)
        .with_context(|| format!("{} cannot be added to; move it away", path.display()))
}

/// Replaced as a whole: a reader sees the old one or the new one, after a power cut too.
fn save_table(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let text = selection::to_json(rows).context("failed to encode the table")?;
    selection::parse_table(text.as_bytes())
        .context("the table has become too large; move it away")?;
    let dir = path.parent().context("power.table_file is no file name")?;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("failed to write {}", path.display()))
}

fn heading(rows: &[Row]) -> String {
    match rows.first().map(|row| row.mode.as_str()) {
        None | Some("") => {
            "this machine has no power modes; one row for each number of streams".to_owned()
        }
        Some(mode) => format!("power mode {mode}; one row for each number of streams"),
    }
}

fn cells(rows: &[Row]) -> Vec<Vec<String>> {
    let heading = [
        "MODEL",
        "STREAMS",
        "TOK/S",
        "EACH",
        "FIRST TOKEN",
        "J/TOKEN",
        "MEMORY",
        "CONTEXT",
    ];
    let mut cells = vec![heading.map(String::from).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            row.model.clone(),
            row.n_seq_max.to_string(),
            format!("{:.1}", row.tok_s),
            format!("{:.1}", row.tok_s_stream()),
            format!("{:.0} ms", row.ttft_ms),
            row.joules_per_token
                .map_or_else(|| "-".to_owned(), |joules| format!("{joules:.2}")),
            crate::ledger::memory(row.peak_bytes),
            row.n_ctx.to_string(),
        ]
    }));
    cells
}
