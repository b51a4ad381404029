//! Connections: from the listening sockets to the crate's client handlers, and their end.
//!
//! The crate's own accept loop counts a connection only once it has said who it is, and waits ten seconds
//! for that; so anybody could take every file descriptor. This one keeps strangers few and brief
//! ([`Gate`]), notices dead peers by TCP keep-alive, and ends the connections of accounts that were removed
//! or changed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::config::BrokerConfig as Mqtt5Config;
use mqtt5::broker::resource_monitor::{ResourceLimits, ResourceMonitor};
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::{DynamicStorage, StorageBackend};
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::transport::BrokerTransport;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, warn};

use super::gate::Gate;
use super::guard::Guard;
use super::{BrokerError, PortChoice};

/// Ports tried by [`PortChoice::FirstFreeFrom`].
const PORTS_TRIED: u16 = 64;
/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;
/// A peer that is gone without a word is noticed after the first time and four of the second, in seconds.
const TCP_KEEP_ALIVE_S: (u32, u32) = (60, 15);
/// Wait before accepting again when the system gives no more sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often accounts are compared with the connections of their users.
const ACCOUNTS_LOOK: Duration = Duration::from_secs(1);
/// How often what has expired is deleted.
const CLEAN_EVERY: Duration = Duration::from_secs(600);
/// Longest wait for the connections to end; the storage still needs its time after that.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection that we end is still read from, and how much, so that our last word arrives.
const LAST_WORD_LIMIT: Duration = Duration::from_millis(500);
const LAST_WORD_BYTES_MAX: usize = 4 << 20;
/// File descriptors of a connection: the crate's, and ours for the last word.
const FILES_EACH: u64 = 2;
/// File descriptors beside the connections: storage, sockets to listen on, logs.
const OTHER_FILES: u64 = 128;

/// Strangers, and how to end each.
pub(super) type Strangers = Mutex<Gate<oneshot::Sender<()>>>;

/// What every connection needs.
pub(super) struct Server {
    pub(super) config: Arc<Mqtt5Config>,
    pub(super) router: Arc<MessageRouter>,
    pub(super) storage: Arc<DynamicStorage>,
    pub(super) guard: Arc<Guard>,
    pub(super) strangers: Arc<Strangers>,
    /// Longest time without saying who one is.
    pub(super) connecting_limit: Duration,
}

impl Server {
    /// Accepts and serves until `shutdown` completes; then ends every connection and writes what waits for
    /// the disk.
    pub(super) async fn run(
        self,
        listeners: Vec<TcpListener>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), BrokerError> {
        let (stop, _) = broadcast::channel(1);
        let stats = Arc::new(BrokerStats::new());
        let monitor = Arc::new(ResourceMonitor::new(no_limits()));
        let mut connections = JoinSet::new();
        let (mut accounts, mut clean) = (interval(ACCOUNTS_LOOK), interval(CLEAN_EVERY));
        accounts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        clean.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                (stream, client) = accept(&listeners) => {
                    prepare(&stream);
                    let last_word = stream.as_fd().try_clone_to_owned();
                    let handler = ClientHandler::new(
                        BrokerTransport::tcp(stream),
                        client,
                        self.config.clone(),
                        self.router.clone(),
                        self.guard.clone(),
                        Some(self.storage.clone()),
                        stats.clone(),
                        monitor.clone(),
                        stop.subscribe(),
                    );
                    connections.spawn(self.connection(client, handler, last_word));
                }
                Some(_) = connections.join_next() => {}
                _ = accounts.tick() => {
                    for client_id in self.guard.outdated_clients() {
                        warn!(%client_id, "connection ended: its account was changed or removed");
                        self.router.disconnect_client(&client_id).await;
                    }
                }
                _ = clean.tick() => self.clean().await,
            }
        }
        drop(listeners);
        // No receiver is no connection.
        let _ = stop.send(());
        let ended = async { while connections.join_next().await.is_some() {} };
        if timeout(STOP_LIMIT, ended).await.is_err() {
            warn!("connections did not end in time");
        }
        Ok(self.storage.shutdown().await?)
    }

    /// One connection, until it ends. A stranger ends when its time is over, or when it has to make room.
    fn connection(
        &self,
        client: SocketAddr,
        handler: ClientHandler,
        last_word: io::Result<OwnedFd>,
    ) -> impl Future<Output = ()> + use<> {
        let (end, ended) = oneshot::channel();
        if let Some(oldest) = self.strangers().enter(client, end) {
            debug!(%client, "too many strangers: the oldest makes room");
            let _ = oldest.send(()); // It may have ended just now.
        }
        let (strangers, limit) = (self.strangers.clone(), self.connecting_limit);
        async move {
            let serve = async {
                let outcome = handler.run().await;
                if let Ok(socket) = last_word {
                    let heard = let_last_word_arrive(socket);
                    let _ = timeout(LAST_WORD_LIMIT, heard).await; // It is gone, or will not listen.
                }
                outcome
            };
            tokio::pin!(serve);
            let is_stranger = async {
                tokio::select! {
                    told = ended => told.is_ok(),
                    () = sleep(limit) => true,
                }
            };
            let outcome = tokio::select! {
                outcome = &mut serve => outcome,
                // Dropping the handler closes the socket; before it knows the client it holds nothing else.
                true = is_stranger => Ok(()),
            };
            strangers
                .lock()
                .expect("no holder of this lock panics")
                .leave(client);
            if let Err(error) = outcome {
                debug!(%client, %error, "connection ended");
            }
        }
    }

    fn strangers(&self) -> std::sync::MutexGuard<'_, Gate<oneshot::Sender<()>>> {
        self.strangers
            .lock()
            .expect("no holder of this lock panics")
    }

    async fn clean(&self) {
        if let Err(error) = self.storage.cleanup_expired().await {
            warn!(%error, "what has expired was not deleted");
        }
        self.router.sweep_sessions().await;
        match self.storage.get_retained_messages("#").await {
            Ok(messages) => self.guard.retained_are(&messages),
            Err(error) => warn!(%error, "retained messages not counted"),
        }
    }
}

/// Ends a connection of which the crate has let go. A socket that is closed while the peer still sends is
/// reset, and the peer loses what it has not read: the DISCONNECT that says what it did wrong.
async fn let_last_word_arrive(socket: OwnedFd) -> io::Result<()> {
    let mut stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
    stream.shutdown().await?;
    let (mut scrap, mut left) = (vec![0; 4096], LAST_WORD_BYTES_MAX);
    while left > 0 {
        match stream.read(&mut scrap).await? {
            0 => break,
            n => left = left.saturating_sub(n),
        }
    }
    Ok(())
}

/// Ours are held by the guard and the gate: the crate's would count the daemon, too.
fn no_limits() -> ResourceLimits {
    ResourceLimits {
        max_connections: usize::MAX,
        max_connections_per_ip: usize::MAX,
        max_message_rate_per_client: 0,
        max_bandwidth_per_client: 0,
        max_connection_rate: u32::MAX,
        rate_limit_window: Duration::from_secs(1),
    }
}

/// The next connection on any of the sockets.
async fn accept(listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
    loop {
        let next = std::future::poll_fn(|context| {
            let ready = listeners
                .iter()
                .find_map(|listener| match listener.poll_accept(context) {
                    std::task::Poll::Ready(accepted) => Some(accepted),
                    std::task::Poll::Pending => None,
                });
            ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        });
        match next.await {
            Ok(accepted) => return accepted,
            // Out of file descriptors, or the client has gone already.
            Err(error) => {
                warn!(%error, "connection not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn prepare(stream: &TcpStream) {
    let (idle, interval) = TCP_KEEP_ALIVE_S;
    let set = || -> io::Result<()> {
        stream.set_nodelay(true)?;
        setsockopt(stream, sockopt::KeepAlive, &true)?;
        setsockopt(stream, sockopt::TcpKeepIdle, &idle)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &interval)?;
        setsockopt(stream, sockopt::TcpKeepCount, &4)?;
        Ok(())
    };
    if let Err(error) = set() {
        debug!(%error, "socket options not set");
    }
}

/// Lets this process have as many connections as it is configured for.
pub(super) fn allow_files(connections: usize) {
    let wanted = connections as u64 * FILES_EACH + OTHER_FILES;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return;
    };
    if soft >= wanted {
        return;
    }
    let raised = wanted.min(hard);
    if setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_err() || raised < wanted {
        warn!(
            wanted,
            allowed = raised.max(soft),
            "the system allows fewer files than the broker is configured for: raise LimitNOFILE, or lower broker.clients_max"
        );
    }
}

/// Sockets on every address, all with one port.
pub(super) fn listen(
    addresses: &[IpAddr],
    choice: PortChoice,
) -> Result<Vec<TcpListener>, BrokerError> {
    let (first, last) = match choice {
        PortChoice::Exactly(port) => (port, port),
        PortChoice::FirstFreeFrom(port) => (port, port.saturating_add(PORTS_TRIED)),
    };
    if addresses.is_empty() {
        return Err(BrokerError::NoAddress);
    }
    let mut refused = BrokerError::NoAddress;
    for port in first..=last {
        match listen_on(addresses, port) {
            Ok(listeners) => return Ok(listeners),
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

/// Port 0 is whatever the system gives to the first address.
fn listen_on(addresses: &[IpAddr], port: u16) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut port = port;
    let mut listeners = Vec::with_capacity(addresses.len());
    for ip in addresses {
        let address = SocketAddr::new(*ip, port);
        let listener = listen_at(address).map_err(|error| (address, error))?;
        port = listener
            .local_addr()
            .map_err(|error| (address, error))?
            .port();
        listeners.push(listener);
    }
    Ok(listeners)
}

fn listen_at(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restart must not wait for what the last life left in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
