//! `orinoco run`: the daemon.

use std::process::ExitCode;

use crate::config::{Config, Sources};
use crate::{daemon, process};

/// Run the daemon: take prompts from MQTT and answer them, until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco run                                                  as configured in /etc/orinoco
  orinoco run --state-dir ./state --models-dir ./models        without installing anything
  orinoco run --model SmolLM2-135M-Instruct.Q4_1 --port 1884")]
pub(super) struct Args {
    /// Same as --set model.active=NAME
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Address of the broker that comes with it; same as --set broker.listen=ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Port of the broker that comes with it; same as --set broker.port=PORT
    #[arg(long, value_name = "PORT")]
    port: Option<String>,
}

impl Args {
    /// Keys that flags of this command set, with the flag's name.
    pub(super) fn settings(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        let settings = [
            ("model.active", "--model", &self.model),
            ("broker.listen", "--listen", &self.listen),
            ("broker.port", "--port", &self.port),
        ];
        settings
            .into_iter()
            .filter_map(|(key, flag, value)| Some((key, flag, value.as_deref()?)))
    }
}

pub(super) fn run(config: Config, sources: &Sources) -> anyhow::Result<ExitCode> {
    // `orinoco bench` starts daemons; started by systemd or a person, this does nothing.
    process::die_with_parent()?;
    daemon::run(config, sources)
}
