//! Whom to talk to: flags first, then the daemon on this machine, then the configuration.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::config::Config;
use crate::link::{Credentials, IdentityFiles, TlsFiles};
use crate::runtime_file::{self, Runtime};
use crate::secret;
use crate::wire::topic::{LOCAL_USER, Name, Names};

/// How a node is reached, for every command that talks to one.
#[derive(Debug, Default, clap::Args)]
#[command(group(clap::ArgGroup::new("proof").multiple(true)))]
pub(super) struct Reach {
    /// Node to talk to [default: the daemon on this machine]
    #[arg(long)]
    pub(super) node: Option<String>,
    /// Host of the broker [default: the daemon's, or mqtt.host]
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Port of the broker [default: the daemon's, or mqtt.port]; with TLS usually 8883
    #[arg(long)]
    pub(super) port: Option<u16>,
    /// MQTT user [default: none, which works on loopback while no users were added]
    #[arg(long, requires = "proof")]
    pub(super) user: Option<String>,
    /// File with the password on its first line; - is standard input
    #[arg(long, requires = "user", value_name = "FILE", group = "proof")]
    pub(super) password_file: Option<PathBuf>,
    /// Speak TLS, and trust the authorities in this PEM file [default: as the daemon does, or mqtt.tls_ca_file]
    #[arg(long, value_name = "FILE")]
    pub(super) ca_file: Option<PathBuf>,
    /// Your certificate, for a broker that asks for one; --user is the name in it
    #[arg(long, requires_all = ["key_file", "user"], value_name = "FILE", group = "proof")]
    pub(super) cert_file: Option<PathBuf>,
    /// The key of your certificate
    #[arg(long, requires = "cert_file", value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

/// A node behind a broker, and who asks.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) names: Names,
    /// Any node of this pool, instead of the node in `names`.
    pub(super) pool: Option<Name>,
    pub(super) user: Name,
    pub(super) credentials: Option<Credentials>,
    pub(super) tls: Option<TlsFiles>,
    /// How the address was found, for the message that nobody is there.
    pub(super) found: String,
}

impl Target {
    pub(super) fn find(args: &Reach, pool: Option<&str>, config: &Config) -> anyhow::Result<Self> {
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
        let tls = tls(args, config, daemon.as_ref())?;
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
        let pool = pool
            .map(|pool| Name::new(pool).with_context(|| format!("failed to ask the pool {pool:?}")))
            .transpose()?;
        let user = args.user.as_deref().unwrap_or(LOCAL_USER);
        let credentials = match (&args.user, &args.password_file) {
            (Some(user), Some(file)) => Some(Credentials {
                user: user.clone(),
                password: secret::password(file)?,
            }),
            _ => None,
        };
        let host = args.host.clone().unwrap_or(host);
        if let Some(tls) = &tls {
            tls.check(&host).context("failed to set up TLS")?;
        }
        Ok(Self {
            host,
            port: args.port.unwrap_or(port),
            names: Names::new(&root, node).context("failed to name the topics")?,
            pool,
            user: Name::new(user).with_context(|| format!("failed to ask as the user {user:?}"))?,
            credentials,
            tls,
            found,
        })
    }

    /// That nobody is at the address, and who said that it would be. `why`: what the last try met.
    pub(super) fn no_broker(&self, why: Option<&str>) -> String {
        let (host, port, found) = (&self.host, self.port, &self.found);
        let why = why.unwrap_or("no answer");
        format!("no broker at {host}:{port} ({found}): {why}")
    }
}

/// TLS as the flags say, then as the daemon on this machine has it, then as configured. The certificate is
/// the asker's own: the daemon's would be the daemon.
fn tls(
    args: &Reach,
    config: &Config,
    daemon: Option<&Runtime>,
) -> anyhow::Result<Option<TlsFiles>> {
    let of_daemon = match daemon {
        Some(daemon) => daemon
            .tls
            .as_ref()
            .map(|tls| (&tls.ca_file, &tls.server_name)),
        None => config
            .mqtt
            .tls
            .as_ref()
            .map(|tls| (&tls.ca_file, &tls.server_name)),
    };
    let (ca_file, server_name) = match (&args.ca_file, of_daemon) {
        (Some(file), _) => (file, None),
        (None, Some((file, name))) => (file, name.clone()),
        (None, None) if args.cert_file.is_some() => {
            anyhow::bail!("--cert-file needs --ca-file: no TLS is configured here")
        }
        (None, None) => return Ok(None),
    };
    let identity = args.cert_file.clone().zip(args.key_file.clone());
    Ok(Some(TlsFiles {
        ca_file: ca_file.clone(),
        identity: identity.map(|(cert_file, key_file)| IdentityFiles {
            cert_file,
            key_file,
        }),
        // A host named on the command line has a name of its own.
        server_name: server_name.filter(|_| args.host.is_none()),
    }))
}
