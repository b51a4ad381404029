//! `orinoco models`: what is there, letting a file in, and which one serves.

mod fit;
mod order;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::target::{Reach, Target};
use super::{exit, output};
use crate::config::Config;
use crate::models::gguf::{GgufError, preflight};
use crate::models::{AddError, Catalogue, Entry, OnExisting, add, name_of};
use crate::wire::topic::Name;

/// List the models on this board, let one in, see which would fit, or have one served
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco models list
  orinoco models add /media/usb/qwen2.5-3b-instruct-q4_k_m.gguf --name qwen2.5-3b
  orinoco models fit --board orin-nano-8gb
  orinoco models use qwen2.5-3b")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the models: architecture, quantization, size, and whether each may be opened
    #[command(after_help = "\
EXAMPLES
  orinoco models list
  orinoco models list --json | jq")]
    List {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Judge a GGUF file and copy it in; it is then known as local and unsigned
    #[command(after_help = "\
EXAMPLES
  orinoco models add SmolLM2-135M-Instruct.Q4_1.gguf
  orinoco models add new.gguf --name small --replace")]
    Add {
        /// The GGUF file
        file: PathBuf,
        /// Name of the model [default: the file name without .gguf]
        #[arg(long)]
        name: Option<String>,
        /// Take the place of a model of that name
        #[arg(long)]
        replace: bool,
    },
    /// What each model would take in memory, by context and KV type, and whether it fits
    ///
    /// The engine plans each of them without loading anything. For another board it plans with the backend of
    /// this machine and adds the GPU's context; compute buffers differ a little between CPU and CUDA.
    #[command(after_help = "\
EXAMPLES
  orinoco models fit
  orinoco models fit qwen2.5-3b --board orin-nano-8gb
  orinoco models fit --mem 6GiB --set engine.n_seq_max=4
  orinoco models fit --board agx-orin-64gb --json

BOARDS
  orin-nano-4gb, orin-nano-8gb, orin-nx-8gb, orin-nx-16gb, agx-orin-32gb, agx-orin-64gb")]
    Fit {
        /// Only this model
        model: Option<String>,
        /// A board that is not here
        #[arg(long, conflicts_with = "mem")]
        board: Option<String>,
        /// A machine with so much memory available, e.g. 6GiB
        #[arg(long, value_name = "BYTES", value_parser = fit::parse_bytes)]
        mem: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a node serve a model; running streams go on in it
    ///
    /// The order holds until another one, until `auto` is ordered, or, where the power mode chooses the model,
    /// until the mode changes. Waits until the model serves. The broker lets operators order (`orinoco user add
    /// NAME --role operator`). Exit codes: 0 it serves, 1 the node could not, 69 nobody answers, 130 Ctrl-C.
    #[command(after_help = "\
EXAMPLES
  orinoco models use qwen2.5-3b --user me --password-file me.password
  orinoco models use auto --user me --password-file me.password   the power mode chooses again
  orinoco models use qwen2.5-3b --host broker.lan --node press-7 --user me --password-file -")]
    Use {
        /// The model, by its name; auto: the one for the power mode
        model: String,
        #[command(flatten)]
        reach: Reach,
        /// Give up, and take the order back, when the node has not begun by then
        #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
        accept_seconds: u64,
    },
}

pub(super) fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List { json } => list(config, json),
        Command::Add {
            file,
            name,
            replace,
        } => {
            let name = name.unwrap_or_else(|| name_of(&file));
            let on_existing = match replace {
                true => OnExisting::Replace,
                false => OnExisting::Refuse,
            };
            let_in(config, &file, &name, on_existing)
        }
        Command::Fit {
            model,
            board,
            mem,
            json,
        } => {
            let question = fit::Question {
                model,
                board,
                memory_bytes: mem,
                as_json: json,
            };
            fit::run(&question, config)
        }
        Command::Use {
            model,
            reach,
            accept_seconds,
        } => {
            let target = Target::find(&reach, None, config)?;
            order::run(model, &target, Duration::from_secs(accept_seconds))
        }
    }
}

fn list(config: &Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let dir = &config.paths.models_dir;
    let catalogue = Catalogue::read(&config.models, dir)
        .with_context(|| format!("failed to list the models in {}", dir.display()))?;
    let is_active = |entry: &Entry| match &config.models.active {
        Some(name) => *name == entry.name,
        None => catalogue.entries().len() == 1,
    };
    if as_json {
        let models: Vec<_> = catalogue
            .entries()
            .iter()
            .map(|entry| describe(entry, is_active(entry)))
            .collect();
        return output::answer(&format!("{:#}\n", serde_json::Value::from(models)));
    }
    if catalogue.entries().is_empty() {
        output::say(&format!(
            "no models in {}; `orinoco models add FILE` lets one in",
            dir.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let heading = [
        "", "NAME", "ARCH", "QUANT", "PARAMS", "SIZE", "CONTEXT", "ORIGIN",
    ];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for entry in catalogue.entries() {
        rows.push(row(entry, is_active(entry)));
    }
    output::answer(&output::table(&rows))
}

fn row(entry: &Entry, is_active: bool) -> Vec<String> {
    let mark = if is_active { "*" } else { "" };
    let mut row = vec![mark.to_owned(), entry.name.clone()];
    match preflight(&entry.path) {
        Ok(header) => row.extend([
            header.arch,
            header.quant,
            output::count(header.n_params),
            output::bytes(header.file_bytes),
            header.n_ctx_train.to_string(),
            origin(entry).to_owned(),
        ]),
        Err(GgufError::Refused { reason, .. }) => row.push(format!("refused: {reason}")),
        Err(error) => row.push(error.to_string()),
    }
    row
}

fn describe(entry: &Entry, is_active: bool) -> serde_json::Value {
    let mut model = json!({
        "name": entry.name,
        "path": entry.path,
        "active": is_active,
        "origin": origin(entry),
        "signed": entry.record.as_ref().is_some_and(|record| record.signed),
        "sha256": entry.record.as_ref().map(|record| &record.sha256),
    });
    match preflight(&entry.path) {
        Ok(header) => {
            model["arch"] = json!(header.arch);
            model["title"] = json!(header.name);
            model["quant"] = json!(header.quant);
            model["n_params"] = json!(header.n_params);
            model["file_bytes"] = json!(header.file_bytes);
            model["n_ctx_train"] = json!(header.n_ctx_train);
            model["has_chat_template"] = json!(header.has_chat_template);
        }
        Err(error) => model["error"] = json!(error.to_string()),
    }
    model
}

fn origin(entry: &Entry) -> &'static str {
    match &entry.record {
        Some(record) if record.signed => "signed",
        Some(_) => "local, unsigned",
        None => "unrecorded",
    }
}

fn let_in(
    config: &Config,
    file: &std::path::Path,
    name: &str,
    on_existing: OnExisting,
) -> anyhow::Result<ExitCode> {
    match Name::new(name) {
        Ok(fine) if !fine.is_reserved() => {}
        Ok(_) => anyhow::bail!(
            "the name {name:?} has a meaning of its own in topics; choose another with --name"
        ),
        Err(e) => anyhow::bail!("{e}; choose another with --name"),
    }
    let file_bytes = file.metadata().map_or(0, |meta| meta.len());
    // Drawn on a terminal only; a log file gets the last line.
    let bar = ProgressBar::new(file_bytes).with_style(
        ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
            .expect("the template is a constant"),
    );
    let added = add(
        file,
        &config.paths.models_dir,
        name,
        on_existing,
        |copied| bar.set_position(copied),
    );
    bar.finish_and_clear();
    match added {
        Ok(added) => {
            let header = &added.header;
            output::answer(&format!(
                "{name}: {} {}, {} parameters, {}, local and unsigned\n{}\nsha256 {}\n",
                header.arch,
                header.quant,
                output::count(header.n_params),
                output::bytes(header.file_bytes),
                added.path.display(),
                added.record.sha256,
            ))
        }
        Err(error @ (AddError::Gguf(GgufError::Refused { .. }) | AddError::Changed { .. })) => {
            output::complain(&error);
            Ok(ExitCode::from(exit::DATA))
        }
        Err(error) => Err(error.into()),
    }
}
