//! `orinoco bench`: what this board makes of its model, alone and through MQTT.

use std::process::ExitCode;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use super::output;
use crate::bench::run::{self, Plan};
use crate::config::Config;

/// Measure the model: the engine alone, the same through MQTT, and the memory it reads
///
/// Runs an engine and a daemon of its own beside whatever serves; for figures that count, nothing else
/// should be busy. Takes about a minute for a small model.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco bench
  orinoco bench --json > today.json
  orinoco bench --runs 5 --set model.active=SmolLM2-135M-Instruct.Q4_1")]
pub(super) struct Args {
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
    let plan = Plan {
        n_runs: args.runs.into(),
        ..Plan::default()
    };
    // One thread, the main one: the engine is its child.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let report = runtime.block_on(run::run(config, plan, |what, done| {
        bar.set_message(what.to_owned());
        bar.set_position((done * 100.0) as u64);
    }));
    bar.finish_and_clear();
    let report = report?;
    let text = match args.json {
        true => {
            serde_json::to_string_pretty(&report).context("failed to encode the report")? + "\n"
        }
        false => report.to_string(),
    };
    output::answer(&text)
}
