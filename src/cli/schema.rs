//! `orinoco schema`: the wire contract for machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use serde_json::Value;

use super::output;
use crate::contract;

/// Print the wire contract: topics and messages as AsyncAPI, bodies as JSON Schema
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco schema                              the AsyncAPI 3 document
  orinoco schema --format json-schema         all bodies, as one JSON Schema (2020-12)
  orinoco schema --out contract               both, as files: asyncapi.json and schemas/*.json")]
pub(super) struct Args {
    /// One of them only [default: asyncapi on stdout, both with --out]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write files into this folder, made where it is missing, instead of printing
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Topics, operations, messages, examples
    Asyncapi,
    /// The bodies alone
    JsonSchema,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(dir) = &args.out else {
        return output::answer(&pretty(&match args.format {
            Some(Format::JsonSchema) => contract::json_schema_bundle(),
            Some(Format::Asyncapi) | None => contract::asyncapi(),
        }));
    };
    if args.format != Some(Format::JsonSchema) {
        write(&dir.join(contract::ASYNCAPI_FILE), &contract::asyncapi())?;
    }
    if args.format != Some(Format::Asyncapi) {
        for (name, schema) in contract::json_schemas() {
            let file = format!("{name}.json");
            write(&dir.join(contract::SCHEMAS_DIR).join(file), &schema)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, document: &Value) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    }
    fs::write(path, pretty(document)).with_context(|| format!("failed to write {}", path.display()))
}

fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}
