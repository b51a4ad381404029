//! `orinoco ota`: updates of models, from where the board is.

mod apply;
mod report;

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;

/// Take updates from a stick or a folder, and give reports back
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ota apply /media/stick                take the releases that lie there
  orinoco ota report /media/stick               write what this board did, signed, onto the stick")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Apply(apply::Args),
    Report(report::Args),
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Apply(args) => apply::run(args, config),
        Command::Report(args) => report::run(args, config),
    }
}
