//! The embedded MQTT broker, and the only home of the crate mqtt5.
//!
//! Meant for one machine: the quickstart, the tests and the development board. It runs in a process
//! of its own (`orinoco broker`), started and restarted by the supervisor, so that no fault of the
//! daemon drops the devices' connections and none of the broker's ends the daemon. Production uses
//! Mosquitto or a clustered broker with the same topics and the same rules; docs/broker.md says when.
//!
//! Owns its port, its storage folder and who may do what. It knows nothing of prompts.
//!
//! ```text
//! server ──accepts──▶ gate (strangers, few and brief) ──▶ the crate's client handler, router, storage
//!                                                             │ asks, for each CONNECT and message
//!                     accounts ◀── guard ◀────────────────────┘
//!                     access rules, rate, retained bytes
//! ```
//!
//! What mqtt5 0.49 does and we do otherwise:
//!
//! - It counts connections only after CONNECT and waits ten seconds for that; the accept loop is ours.
//! - Its default maximum packet of 268435456 bytes is one too many for paho-python, which refuses
//!   the CONNACK.
//! - Its rate limit by address would lock out the daemon after five wrong passwords of anybody on
//!   this machine; ours slows down the one who guesses.
//! - Its limit of messages a second would refuse the daemon's answers, too; ours spares the daemon.
//! - A clean start with another user's client id empties that user's session; refused (`guard`).
//! - A removed user keeps its connection and what it has subscribed to; ended within a second (`server`).
//! - It bounds the number of retained messages and the size of each, not their sum (`retained`).
//! - Queued messages reach the disk within 250 ms after their PUBACK, not before it: a broker that is
//!   killed loses what it took in that time. Retained messages and sessions are written at once.
//! - `CertificateAuthProvider` believes a client id; it is never used.

mod accounts;
mod gate;
mod guard;
mod rate;
mod retained;
mod server;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mqtt5::broker::config::BrokerConfig as Mqtt5Config;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::{DynamicStorage, FileBackend, QueueLimits, StorageBackend};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::info;

use crate::access::{Role, Rules};
use crate::notify::Notifier;
use crate::users::UsersError;
use accounts::Accounts;
use gate::Gate;
use guard::{Guard, Limits};
use server::Server;

/// Client ids that begin so belong to the daemon; see [`daemon_client_id`].
const DAEMON_CLIENT_ID: &str = "orinoco-daemon";

/// Longest wait for a lookup in the session store.
const STORAGE_ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Sessions and queues are on disk within this time of an order to end.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The client id for the daemon of a node. Nobody else may use it on the embedded broker.
pub fn daemon_client_id(node: &str) -> String {
    format!("{DAEMON_CLIENT_ID}-{node}")
}

/// Which port to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortChoice {
    /// This one, or fail. 0 lets the system choose.
    Exactly(u16),
    /// This one, or the next that nobody uses.
    FirstFreeFrom(u16),
}

/// Settings of the broker. Start from [`BrokerConfig::new`] and change what differs.
#[derive(Clone, Serialize, Deserialize)]
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
    /// Sessions of clients, there or away. The daemon's is not counted.
    pub clients_max: usize,
    /// Of those, how many one user may have.
    pub clients_per_user_max: usize,
    /// Connections that have not said who they are; for one more, the oldest goes.
    pub connecting_max: usize,
    /// How long each may take for that.
    pub connecting_limit: Duration,
    /// Messages queued for one client.
    pub queued_messages_max: usize,
    /// Bytes queued for one client.
    pub queued_bytes_max: usize,
    /// Retained messages.
    pub retained_messages_max: usize,
    /// Bytes of all of them together. The daemon's are counted, and never refused.
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
            clients_max: 250,
            clients_per_user_max: 50,
            connecting_max: 128,
            connecting_limit: Duration::from_secs(5),
            queued_messages_max: 1000,
            queued_bytes_max: 2 << 20,
            retained_messages_max: 1000,
            retained_bytes_max: 8 << 20,
            message_rate_max: 200,
            subscriptions_max: 256,
            session_expiry_max: Duration::from_secs(7 * 24 * 3600),
        }
    }

    /// For the crate's client handlers; what its server would read is not set.
    fn for_handlers(&self, guard: Arc<Guard>) -> Mqtt5Config {
        let mut config = Mqtt5Config::new()
            .with_session_expiry(self.session_expiry_max)
            .with_max_packet_size(self.packet_bytes_max as usize)
            .with_max_subscriptions_per_client(self.subscriptions_max)
            .with_server_receive_maximum(64)
            .with_event_handler(guard);
        // Messages in memory for one connected client; QoS 1 beyond it goes to the queue on disk.
        config.client_channel_capacity = 256;
        config.topic_alias_maximum = 16;
        config
    }

    fn queue_limits(&self) -> QueueLimits {
        QueueLimits {
            max_messages: self.queued_messages_max,
            max_bytes: self.queued_bytes_max,
        }
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
    let (users, roles) = (config.users.clone(), config.roles.clone());
    let accounts = Accounts::open(users, roles, config.daemon_password.as_deref())?;
    make_private_folder(&config.storage).map_err(|source| BrokerError::Storage {
        path: config.storage.clone(),
        source,
    })?;
    let listeners = server::listen(&config.listen, config.port)?;
    let address = listeners
        .first()
        .and_then(|listener: &TcpListener| listener.local_addr().ok())
        .ok_or(BrokerError::NoAddress)?;
    server::allow_files(config.clients_max + config.connecting_max);

    let backend = FileBackend::with_queue_limits(&config.storage, config.queue_limits()).await?;
    let storage = Arc::new(DynamicStorage::File(backend));
    let strangers = Arc::new(Mutex::new(Gate::new(config.connecting_max)));
    let limits = Limits {
        clients_max: config.clients_max,
        clients_per_user_max: config.clients_per_user_max,
        message_rate_max: config.message_rate_max,
        retained_bytes_max: config.retained_bytes_max,
    };
    let rules = Rules::new(&config.root);
    let guard = Guard::new(rules, accounts, limits, storage.clone(), strangers.clone());
    let guard = Arc::new(guard);
    let router = MessageRouter::with_storage(storage.clone())
        .with_fallback_queue_limits(config.queue_limits())
        .with_event_handler(guard.clone())
        .with_retained_limits(
            config.retained_messages_max,
            config.packet_bytes_max as usize,
        );
    let expiry_s = u32::try_from(config.session_expiry_max.as_secs()).unwrap_or(u32::MAX);
    router.recover_sessions(expiry_s).await?;
    storage.cleanup_expired().await?;
    router.initialize().await?;

    let server = Server {
        config: Arc::new(config.for_handlers(guard.clone())),
        router: Arc::new(router),
        storage,
        guard,
        strangers,
        connecting_limit: config.connecting_limit,
    };
    info!(%address, "broker listens");
    ready(address);
    server.run(listeners, shutdown).await
}

/// The whole of `orinoco broker`: a runtime, [`serve`], what systemd is told, and an end by SIGTERM or
/// SIGINT. Prints nothing; `ready` tells the address on.
pub fn run(config: BrokerConfig, ready: impl FnOnce(SocketAddr)) -> Result<(), BrokerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        // Files are read and written there, and each thread keeps some memory.
        .max_blocking_threads(8)
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
