//! `orinoco broker`: the embedded MQTT broker as a process of its own.

use std::process::ExitCode;

use super::output;
use crate::access;
use crate::broker::{self, BrokerConfig};
use crate::config::{BrokerMode, Config};
use crate::{daemon, secret};

/// Run the embedded MQTT broker alone (broker.mode = "unit")
///
/// With broker.mode = "child" the daemon starts it by itself.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco broker
  orinoco broker --set broker.listen=0.0.0.0 --set broker.port=1884

The daemon connects as the user \"daemon\", with the password in mqtt.password_file:
  orinoco broker --set broker.mode=unit --set mqtt.password_file=/etc/orinoco/mqtt.password")]
pub(super) struct Args {
    /// As the daemon's child: its settings come on standard input, whose end is its order to leave
    #[arg(long, hide = true)]
    pub(super) settings_from_stdin: bool,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    if args.settings_from_stdin {
        daemon::serve_broker_child()?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = settings(config)?;
    broker::run(settings, |address| {
        // To whom it may concern; a closed stdout is nobody.
        let _ = output::answer(&broker::ready_line(address));
    })?;
    Ok(ExitCode::SUCCESS)
}

fn settings(config: &Config) -> anyhow::Result<BrokerConfig> {
    let is_unit = config.broker.mode == BrokerMode::Unit;
    let username = config.mqtt.username.as_deref();
    let daemon_password = match (username, &config.mqtt.password_file) {
        _ if is_unit => Some(daemon::unit_password(config)?),
        (Some(access::DAEMON), Some(file)) => Some(secret::password(file)?),
        // Then the daemon is refused; users can still connect, e.g. to try out their rules.
        _ => None,
    };
    daemon::broker_config(config, daemon_password)
}
