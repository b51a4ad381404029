//! `orinoco broker`: the embedded MQTT broker as a process of its own.

use std::process::ExitCode;

use anyhow::bail;

use super::output;
use crate::access;
use crate::broker::{self, PortChoice};
use crate::config::{BrokerMode, BrokerStorage, Config};
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

fn settings(config: &Config) -> anyhow::Result<broker::BrokerConfig> {
    let own = &config.broker;
    let storage = match own.storage {
        BrokerStorage::File => own.storage_dir.clone(),
        BrokerStorage::Memory => bail!(
            "broker.storage = \"memory\" is for broker.mode = \"child\"; a unit keeps sessions in files"
        ),
    };
    let is_unit = own.mode == BrokerMode::Unit;
    let username = config.mqtt.username.as_deref();
    let daemon_password = match (username, &config.mqtt.password_file) {
        _ if is_unit => Some(daemon::unit_password(config)?),
        (Some(access::DAEMON), Some(file)) => Some(secret::password(file)?),
        // Then the daemon is refused; users can still connect, e.g. to try out their rules.
        _ => None,
    };
    Ok(broker::BrokerConfig {
        listen: vec![own.listen],
        // The daemon of a unit looks for it at the port of the configuration.
        port: match own.port_search && !is_unit {
            true => PortChoice::FirstFreeFrom(own.port),
            false => PortChoice::Exactly(own.port),
        },
        users: Some(config.paths.users_file()),
        roles: config.users.roles(),
        daemon_password,
        packet_bytes_max: config.mqtt.packet_bytes_max,
        clients_max: own.clients_max,
        queued_messages_max: own.queue_messages_max,
        queued_bytes_max: own.queue_bytes_max,
        ..broker::BrokerConfig::new(storage, &config.node.root)
    })
}
