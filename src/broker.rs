//! The embedded MQTT broker, and the only home of the crate mqtt5.
//!
//! Meant for one machine: the quickstart, the tests and the development board. It runs in a process
//! of its own (`orinoco broker`), started and restarted by the supervisor, so that no fault of the
//! daemon drops the devices' connections and none of the broker's ends the daemon. Production uses
//! Mosquitto or a clustered broker with the same topics and the same rules.
//!
//! Owns its port, its storage folder and who may do what. It knows nothing of prompts.
//!
//! What mqtt5 0.49 does and we configure around:
//!
//! - Its defaults bind 0.0.0.0 and write `./mqtt_storage`; here both are always given.
//! - Its default maximum packet of 268435456 bytes is one too many for paho-python, which refuses
//!   the CONNACK.
//! - Its rate limit by address would lock out the daemon after five wrong passwords of anybody on
//!   this machine; ours slows down the one who guesses.
//! - Its limit of messages a second would refuse the daemon's answers, too; ours spares the daemon.
//! - A clean start with another user's client id empties that user's session; refused (`guard`).
//! - Queued messages reach the disk within 250 ms after their PUBACK, not before it: a broker that is
//!   killed loses what it took in that time. Retained messages and sessions are written at once.
//! - `CertificateAuthProvider` believes a client id; it is never used.
//!
//! TCP_NODELAY is set by the crate on every accepted socket.

mod guard;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mqtt5::broker::config::{BrokerConfig as Mqtt5Config, StorageConfig};
use mqtt5::broker::server::MqttBroker;
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::access::{Role, Rules};
use crate::notify::Notifier;
use crate::users::UsersError;
use guard::{Accounts, Filter, Guard};

/// Client ids that begin so belong to the daemon; see [`daemon_client_id`].
const DAEMON_CLIENT_ID: &str = "orinoco-daemon";

/// Longest wait for a lookup in the session store.
const STORAGE_ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Sessions and queues are on disk within this time of an order to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Ports tried by [`PortChoice::FirstFreeFrom`].
const PORTS_TRIED: u16 = 64;

/// The client id for the daemon of a node. Nobody else may use it on the embedded broker.
pub fn daemon_client_id(node: &str) -> String {
    format!("{DAEMON_CLIENT_ID}-{node}")
}

/// Which port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortChoice {
    /// This one, or fail. 0 lets the system choose.
    Exactly(u16),
    /// This one, or the next that nobody uses.
    FirstFreeFrom(u16),
}

/// Settings of the broker. Start from [`BrokerConfig::new`] and change what differs.
#[derive(Clone)]
pub struct BrokerConfig {
    /// Addresses to listen on, all with one port. Clients that do not come from loopback always need
    /// credentials.
    pub listen: Vec<IpAddr>,
    /// The port.
    pub port: PortChoice,
    /// Folder for sessions, queues and retained messages; made with mode 0700. They hold prompts.
    pub storage: PathBuf,
    /// First levels of all topics.
    pub root: String,
    /// The users file; None or a missing file is no users.
    pub users: Option<PathBuf>,
    /// What users are for, where the configuration says so; it wins over the users file.
    pub roles: BTreeMap<String, Role>,
    /// The daemon's credential; None refuses the daemon.
    pub daemon_password: Option<String>,
    /// Largest packet, in bytes.
    pub packet_bytes_max: u32,
    /// Connections at a time.
    pub clients_max: usize,
    /// Messages queued for one client that is away.
    pub queued_messages_max: usize,
    /// Bytes queued for one client that is away.
    pub queued_bytes_max: usize,
    /// Retained messages.
    pub retained_messages_max: usize,
    /// Bytes of one retained message.
    pub retained_bytes_max: usize,
    /// Messages a second that one user may publish; more are refused (0x87). The daemon is free:
    /// what it has queued after a pause comes at once, and none of it may be lost.
    pub message_rate_max: u32,
    /// Subscriptions of one client.
    pub subscriptions_max: usize,
    /// Longest time that a session is kept for a client that is away.
    pub session_expiry_max: Duration,
}

impl BrokerConfig {
    /// Loopback only, on 1883 or the next free port.
    pub fn new(storage: impl Into<PathBuf>, root: impl Into<String>) -> BrokerConfig {
        BrokerConfig {
            listen: vec![IpAddr::V4(Ipv4Addr::LOCALHOST)],
            port: PortChoice::FirstFreeFrom(1883),
            storage: storage.into(),
            root: root.into(),
            users: None,
            roles: BTreeMap::new(),
            daemon_password: None,
            packet_bytes_max: 1 << 20,
            clients_max: 256,
            queued_messages_max: 1000,
            queued_bytes_max: 8 << 20,
            retained_messages_max: 1000,
            retained_bytes_max: 256 << 10,
            message_rate_max: 200,
            subscriptions_max: 64,
            session_expiry_max: Duration::from_secs(7 * 24 * 3600),
        }
    }

    fn for_mqtt5(&self, port: u16, filter: Filter) -> Mqtt5Config {
        let storage = StorageConfig::new()
            .with_base_dir(self.storage.clone())
            .with_cleanup_interval(Duration::from_secs(600))
            .with_max_queued_messages_per_client(self.queued_messages_max)
            .with_max_queued_bytes_per_client(self.queued_bytes_max);
        let addresses = self
            .listen
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect();
        let mut config = Mqtt5Config::new()
            .with_bind_addresses(addresses)
            .with_storage(storage)
            .with_max_clients(self.clients_max)
            .with_session_expiry(self.session_expiry_max)
            .with_max_packet_size(self.packet_bytes_max as usize)
            .with_max_retained_messages(self.retained_messages_max)
            .with_max_retained_message_size(self.retained_bytes_max)
            .with_max_subscriptions_per_client(self.subscriptions_max)
            .with_server_receive_maximum(64)
            // Its topics tell every client about the others, and write to the log each ten seconds.
            .with_sys_topics_enabled(false)
            .with_event_handler(Arc::new(filter));
        // Messages in memory for one connected client; QoS 1 beyond it goes to the queue on disk.
        config.client_channel_capacity = 256;
        config.topic_alias_maximum = 16;
        // Ours replaces the crate's before the first connection.
        config.auth_config.allow_anonymous = true;
        config.auth_config.rate_limit.enabled = false;
        config
    }
}

impl fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BrokerConfig")
            .field("listen", &self.listen)
            .field("port", &self.port)
            .field("storage", &self.storage)
            .field("root", &self.root)
            .field("users", &self.users)
            .finish_non_exhaustive()
    }
}

/// Why the broker does not serve.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No address to listen on.
    #[error("broker: no listen address given")]
    NoAddress,
    /// The address or port is taken, or not ours.
    #[error("broker: listen on {address}: {source}")]
    Listen {
        /// What was tried last.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The storage folder cannot be made.
    #[error("broker: storage {path}: {source}")]
    Storage {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The users file cannot be used.
    #[error("broker: {0}")]
    Users(#[from] UsersError),
    /// The runtime or its signal handlers could not be made.
    #[error("broker: runtime: {0}")]
    Runtime(io::Error),
    /// The crate's reason.
    #[error("broker: {0}")]
    Mqtt5(#[from] mqtt5::error::MqttError),
}

/// Serves until `shutdown` completes. `ready` is called once, with the first address, when clients
/// can connect.
pub async fn serve(
    config: BrokerConfig,
    ready: impl FnOnce(SocketAddr),
    shutdown: impl Future<Output = ()>,
) -> Result<(), BrokerError> {
    let rules = Arc::new(Rules::new(&config.root));
    let accounts = Arc::new(Accounts::open(config.users.clone(), config.roles.clone())?);
    let guard = Guard::new(
        rules.clone(),
        accounts.clone(),
        config.daemon_password.as_deref(),
        config.message_rate_max,
    );
    make_private_folder(&config.storage).map_err(|source| BrokerError::Storage {
        path: config.storage.clone(),
        source,
    })?;
    let port = free_port(&config.listen, config.port)?;
    let broker =
        MqttBroker::with_config(config.for_mqtt5(port, Filter { rules, accounts })).await?;
    let storage = broker.storage();
    let mut broker = broker.with_auth_provider(Arc::new(guard.with_storage(storage)));
    let address = broker.local_addr().ok_or(BrokerError::NoAddress)?;
    let mut accepting = broker.ready_receiver();
    let stop = broker.shutdown_handle();

    let run = broker.run();
    tokio::pin!(run, shutdown);
    tokio::select! {
        ended = &mut run => return Ok(ended?),
        _ = accepting.wait_for(|ready| *ready) => {}
    }
    info!(%address, "broker listens");
    ready(address);
    tokio::select! {
        ended = &mut run => return Ok(ended?),
        () = shutdown => stop.shutdown(),
    }
    Ok(run.await?)
}

/// The whole of `orinoco broker`: a runtime, [`serve`], what systemd is told, and an end by SIGTERM or
/// SIGINT. Prints nothing; `ready` tells the address on.
pub fn run(config: BrokerConfig, ready: impl FnOnce(SocketAddr)) -> Result<(), BrokerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::Runtime)?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(BrokerError::Runtime)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(BrokerError::Runtime)?;
        let mut notifier = Notifier::from_environment();
        let (say_where, listening) = oneshot::channel();
        let shutdown = async {
            if let Ok(address) = listening.await {
                notifier.ready();
                notifier.status(&format!("listening on {address}"));
            }
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                never = feed(&notifier) => match never {},
            }
            notifier.stopping(STOP_LIMIT);
        };
        let ready = |address| {
            ready(address);
            // It is polled until the broker ends.
            let _ = say_where.send(address);
        };
        serve(config, ready, shutdown).await
    })
}

/// Tells systemd that this loop turns, by which all connections are served.
async fn feed(notifier: &Notifier) -> Infallible {
    let Some(period) = notifier.period() else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notifier.well();
    }
}

/// The line by which a broker process tells its parent where it listens.
pub fn ready_line(address: SocketAddr) -> String {
    format!("listening {address}\n")
}

/// Reads [`ready_line`].
pub fn parse_ready_line(line: &str) -> Option<SocketAddr> {
    line.trim_end().strip_prefix("listening ")?.parse().ok()
}

fn make_private_folder(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// A port that is free on every address. The crate would go on with the addresses that it got.
fn free_port(listen: &[IpAddr], choice: PortChoice) -> Result<u16, BrokerError> {
    let (first, last) = match choice {
        PortChoice::Exactly(port) => (port, port),
        PortChoice::FirstFreeFrom(port) => (port, port.saturating_add(PORTS_TRIED)),
    };
    if listen.is_empty() {
        return Err(BrokerError::NoAddress);
    }
    let mut refused = BrokerError::NoAddress;
    for port in first..=last {
        match bind_all(listen, port) {
            Ok(()) => return Ok(port),
            Err((address, source)) => {
                if source.kind() == io::ErrorKind::AddrInUse && port != last {
                    warn!(%address, "port is taken, trying the next");
                }
                refused = BrokerError::Listen { address, source };
            }
        }
    }
    Err(refused)
}

/// Binds and lets go again.
fn bind_all(listen: &[IpAddr], port: u16) -> Result<(), (SocketAddr, io::Error)> {
    for ip in listen {
        let address = SocketAddr::new(*ip, port);
        TcpListener::bind(address).map_err(|error| (address, error))?;
    }
    Ok(())
}
