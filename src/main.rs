//! The `orinoco` command: arguments, configuration, logging, command, exit code.

use std::process::ExitCode;

use orinoco::cli::Cli;
use orinoco::config::Environment;

fn main() -> ExitCode {
    steps().unwrap_or_else(|early| early)
}

/// An early end is an end all the same: help, a mistake on the command line or in the configuration.
fn steps() -> Result<ExitCode, ExitCode> {
    let environment = Environment::capture();
    let cli = Cli::from_args(std::env::args_os())?;
    let config = cli.load(&environment)?;
    cli.start_logging(&config, &environment)?;
    Ok(cli.run(config, &environment))
}
