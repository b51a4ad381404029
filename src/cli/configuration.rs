//! `orinoco config`: look at the configuration without starting anything.

use std::process::ExitCode;

use clap::Subcommand;

use super::{exit, output};
use crate::config::{Config, DEFAULT_TOML};
use crate::daemon;

/// Check the configuration, or show what is in force
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco config check                        every mistake at once; exit code 78 if there is one
  orinoco config show --origin                what is in force, and where each value was set")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Name every mistake; exit code 78 when there is one
    ///
    /// Files of passwords and certificates are read too: run it as the user of the daemon.
    #[command(after_help = "\
EXAMPLES
  orinoco config check
  orinoco config check --config ./site       before copying it to /etc/orinoco")]
    Check,
    /// Print the values in force as TOML
    #[command(after_help = "\
EXAMPLES
  orinoco config show --origin
  orinoco config show --documented > config.toml")]
    Show {
        /// Say beside each value where it was set
        #[arg(long)]
        origin: bool,
        /// Print the defaults with their comments instead
        #[arg(long, conflicts_with = "origin")]
        documented: bool,
    },
}

/// The configuration was read without a mistake when this is called.
pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Check => {
            let unusable = daemon::unusable_files(config);
            if !unusable.is_empty() {
                unusable.iter().for_each(output::complain_of);
                return Ok(ExitCode::from(exit::CONFIG));
            }
            let own = || config.entries.iter().filter(|entry| !entry.is_inherited);
            let changed = own().filter(|entry| entry.origin != "default").count();
            output::answer(&format!(
                "the configuration is valid: {changed} of {} values are not the default\n",
                own().count()
            ))
        }
        Command::Show {
            documented: true, ..
        } => output::answer(DEFAULT_TOML),
        Command::Show { origin, .. } => output::answer(&config.to_toml(origin)),
    }
}
