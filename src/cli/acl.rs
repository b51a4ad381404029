//! `orinoco acl`: the access rules that the contract needs, as a file for another broker.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::ValueEnum;

use super::output;
use crate::access::{self, MosquittoConf, Role, Rules};
use crate::config::{BrokerMode, Config};
use crate::users::Users;

/// Write the access rules for a broker: who may use which topics
///
/// Root, the daemon's account and what users are for come from the configuration ([users.NAME], role), and
/// from `orinoco user add --role`. The embedded broker needs no file: it holds the same rules.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco acl --format mosquitto > /etc/mosquitto/orinoco.acl
  orinoco acl --format mosquitto-conf > /etc/mosquitto/conf.d/orinoco.conf
  orinoco acl --format mosquitto --set users.hmi.role=operator
  orinoco acl --format mqtt5")]
pub(super) struct Args {
    /// For which broker
    #[arg(long, value_enum)]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// acl_file of Mosquitto 2.0 or newer
    Mosquitto,
    /// The configuration of Mosquitto that goes with it
    MosquittoConf,
    /// ACL file of the broker in the Rust crate mqtt5
    Mqtt5,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let rules = Rules::new(&config.node.root);
    // On an external broker the daemon has the account that [mqtt] names.
    let daemon = config.mqtt.username.as_deref().unwrap_or(access::DAEMON);
    let text = match args.format {
        Format::Mosquitto => access::mosquitto_acl(&rules, daemon, &users(config)?),
        Format::Mqtt5 => access::mqtt5_acl(&rules, daemon, &users(config)?),
        Format::MosquittoConf => access::mosquitto_conf(&MosquittoConf {
            port: config.mqtt.port,
            daemon,
            packet_bytes_max: config.mqtt.packet_bytes_max,
            inflight_max: config.mqtt.receive_max,
            queue_messages_max: config.broker.queue_messages_max,
            queue_bytes_max: config.broker.queue_bytes_max,
        }),
    };
    output::answer(&text)
}

/// Those with a role in the configuration, and the accounts of the embedded broker where it is used.
fn users(config: &Config) -> anyhow::Result<BTreeMap<String, Role>> {
    let mut users = BTreeMap::new();
    if config.broker.mode != BrokerMode::External {
        let accounts = Users::read(&config.paths.users_file())?;
        users.extend(accounts.roles().map(|(name, role)| (name.to_owned(), role)));
    }
    for (name, user) in &config.users.by_name {
        let role = user.role.or_else(|| users.get(name).copied());
        users.insert(name.clone(), role.unwrap_or_default());
    }
    Ok(users)
}
