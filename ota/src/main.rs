//! `orinoco-ota`: the operator's program for fleet updates. ota/README.md takes through all of it.

use std::process::ExitCode;

use clap::Parser;
use orinoco_ota::cli;

fn main() -> ExitCode {
    cli::run(cli::Cli::parse())
}
