//! Whom to ask: flags first, then the daemon on this machine, then the configuration.

use anyhow::Context as _;

use super::Args;
use crate::cli::user::password_from;
use crate::config::Config;
use crate::link::Credentials;
use crate::runtime_file;
use crate::wire::topic::{LOCAL_USER, Name, Names};

/// A node behind a broker, and who asks.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) names: Names,
    pub(super) user: Name,
    pub(super) credentials: Option<Credentials>,
    /// How the address was found, for the message that nobody is there.
    pub(super) found: String,
}

impl Target {
    pub(super) fn find(args: &Args, config: &Config) -> anyhow::Result<Self> {
        // With an address on the command line nothing on this machine matters.
        let daemon = match args.host {
            Some(_) => None,
            None => runtime_file::read(&config.paths.state_dir)
                .context("failed to look for the daemon on this machine")?,
        };
        let found = match &daemon {
            Some(daemon) => format!("a daemon on this machine (process {}) said so", daemon.pid),
            None if args.host.is_some() => "as given".into(),
            None => format!(
                "from mqtt.host, as no daemon runs with the state directory {}",
                config.paths.state_dir.display()
            ),
        };
        let (host, port, node, root) = match daemon {
            Some(daemon) => (daemon.host, daemon.port, daemon.node, daemon.root),
            None => {
                let mqtt = &config.mqtt;
                (
                    mqtt.host.clone(),
                    mqtt.port,
                    config.node.name.clone(),
                    config.node.root.clone(),
                )
            }
        };
        let node = args.node.clone().unwrap_or(node);
        let node = Name::new(&node).with_context(|| format!("failed to ask the node {node:?}"))?;
        let user = args.user.as_deref().unwrap_or(LOCAL_USER);
        let credentials = match (&args.user, &args.password_file) {
            (Some(user), Some(file)) => Some(Credentials {
                user: user.clone(),
                password: password_from(file)?,
            }),
            _ => None,
        };
        Ok(Self {
            host: args.host.clone().unwrap_or(host),
            port: args.port.unwrap_or(port),
            names: Names::new(&root, node).context("failed to name the topics")?,
            user: Name::new(user).with_context(|| format!("failed to ask as the user {user:?}"))?,
            credentials,
            found,
        })
    }
}
