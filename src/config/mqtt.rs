//! `[mqtt]` and `[broker]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::reader::{Root, Section};
use super::{NodeConfig, PathsConfig};

/// `[mqtt]`: how the daemon reaches its broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttConfig {
    /// Read with [`BrokerMode::External`] only.
    pub host: String,
    /// Never 0. Read with [`BrokerMode::External`] only.
    pub port: u16,
    /// `None`: in clear. Read with [`BrokerMode::External`] only.
    pub tls: Option<TlsConfig>,
    /// Never empty.
    pub client_id: String,
    /// Account on the broker; `None`: none, or the one in the client certificate. Read with
    /// [`BrokerMode::External`] only.
    pub username: Option<String>,
    /// File with the password on its first line; `None` without a `username` on an external broker. Not read
    /// with [`BrokerMode::Child`].
    pub password_file: Option<PathBuf>,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
    /// MQTT session expiry.
    pub session_expiry: Duration,
    /// Largest packet in either direction.
    pub packet_bytes_max: u32,
    /// Our unacknowledged QoS 1 messages.
    pub inflight_max: u16,
    /// The broker's unacknowledged QoS 1 messages.
    pub receive_max: u16,
    /// Limit of one attempt to connect.
    pub connect_timeout: Duration,
    /// A connection without any progress for this long is taken down; longer than `keep_alive`.
    pub stall: Duration,
    /// First wait before connecting again.
    pub backoff_min: Duration,
    /// Longest wait before connecting again.
    pub backoff_max: Duration,
    /// Capacity of the channel of received messages.
    pub inbound_messages_max: usize,
    /// Capacity of the channel of messages to send.
    pub outbox_messages_max: usize,
}

/// `mqtt.tls = "on"`: certificates as PEM files, which this module does not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The authorities that may have issued the broker's certificate.
    pub ca_file: PathBuf,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Name in the broker's certificate; `None`: `host`.
    pub server_name: Option<String>,
}

impl MqttConfig {
    pub(super) fn read(root: &mut Root<'_>, node: &NodeConfig, broker: BrokerMode) -> Self {
        let mut section = root.section("mqtt");
        let mut config = Self {
            host: section.checked("host", check_host).unwrap_or_default(),
            port: section.integer("port", 0..=65535),
            client_id: section
                .optional_text("client_id", 256)
                .unwrap_or_else(|| format!("orinoco-{}", node.name)),
            username: section.optional_text("username", 256),
            password_file: section.path_or_credential("password_file", "mqtt.password"),
            tls: read_tls(&mut section),
            // The client library panics below 5 seconds.
            keep_alive: section.seconds("keep_alive_seconds", 5..=3600),
            session_expiry: section.seconds("session_expiry_seconds", 0..=i64::from(u32::MAX)),
            packet_bytes_max: section.integer("packet_bytes_max", 16 << 10..=64 << 20),
            inflight_max: section.integer("inflight_max", 1..=1024),
            receive_max: section.integer("receive_max", 1..=1024),
            connect_timeout: section.seconds("connect_timeout_seconds", 1..=300),
            stall: section.seconds("stall_seconds", 6..=7200),
            backoff_min: section.milliseconds("backoff_ms_min", 10..=60_000),
            backoff_max: section.milliseconds("backoff_ms_max", 10..=3_600_000),
            inbound_messages_max: section.integer("inbound_messages_max", 1..=65536),
            outbox_messages_max: section.integer("outbox_messages_max", 16..=65536),
        };
        if config.stall <= config.keep_alive {
            section.contradiction(
                "stall_seconds",
                "mqtt.keep_alive_seconds",
                format!(
                    "expected more than keep_alive_seconds = {}",
                    config.keep_alive.as_secs()
                ),
            );
        }
        if config.backoff_max < config.backoff_min {
            section.contradiction(
                "backoff_ms_max",
                "mqtt.backoff_ms_min",
                format!(
                    "expected at least backoff_ms_min = {}",
                    config.backoff_min.as_millis()
                ),
            );
        }
        // To our own broker the daemon is always "daemon".
        let names_nobody = broker == BrokerMode::External && config.username.is_none();
        if names_nobody && config.password_file.is_some() {
            section.contradiction(
                "password_file",
                "mqtt.username",
                "expected a username beside it, or no file".into(),
            );
        }
        if config.port == 0 {
            // As registered with IANA: mqtt and secure-mqtt.
            config.port = if config.tls.is_some() { 8883 } else { 1883 };
        }
        config
    }
}

/// The keys of TLS. Those that only TLS would read are mistakes without it: somebody believes that the
/// connection is encrypted.
fn read_tls(section: &mut Section<'_>) -> Option<TlsConfig> {
    let is_on = section.choice("tls", &[("off", false), ("on", true)]);
    let ca_file = section.path_or_credential("tls_ca_file", "mqtt.ca.pem");
    let cert_file = section.path_or_credential("tls_cert_file", "mqtt.cert.pem");
    let key_file = section.path_or_credential("tls_key_file", "mqtt.key.pem");
    let server_name = section
        .checked("tls_server_name", |name| match name {
            "" => Ok(None),
            name => check_host(name).map(Some),
        })
        .flatten();
    if !is_on {
        let given = [
            ("tls_ca_file", ca_file.is_some()),
            ("tls_cert_file", cert_file.is_some()),
            ("tls_key_file", key_file.is_some()),
            ("tls_server_name", server_name.is_some()),
        ];
        for (key, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
            section.contradiction(key, "mqtt.tls", "expected tls = \"on\" beside it".into());
        }
        return None;
    }
    for (key, other, is_alone) in [
        (
            "tls_cert_file",
            "tls_key_file",
            cert_file.is_some() && key_file.is_none(),
        ),
        (
            "tls_key_file",
            "tls_cert_file",
            key_file.is_some() && cert_file.is_none(),
        ),
    ] {
        if is_alone {
            section.contradiction(key, "", format!("expected {other} beside it"));
        }
    }
    if ca_file.is_none() {
        let advice = "expected the authorities that may speak for the broker, as PEM; those of the \
                      public internet are in /etc/ssl/certs/ca-certificates.crt";
        section.contradiction("tls_ca_file", "mqtt.tls", advice.into());
    }
    Some(TlsConfig {
        ca_file: ca_file?,
        identity: cert_file.zip(key_file),
        server_name,
    })
}

/// `[broker]`: the broker that comes with Orinoco.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Who runs the broker.
    pub mode: BrokerMode,
    /// Address to listen on.
    pub listen: IpAddr,
    /// Port to listen on, or the first to try.
    pub port: u16,
    /// Whether the next free port is taken when it is in use.
    pub port_search: bool,
    /// What survives a restart of the broker.
    pub storage: BrokerStorage,
    /// Where [`BrokerStorage::File`] writes.
    pub storage_dir: PathBuf,
    /// Clients, there or away with a session.
    pub clients_max: usize,
    /// Of those, of one user.
    pub clients_per_user_max: usize,
    /// Connections that have not said who they are.
    pub connecting_max: usize,
    /// How long they may take for that.
    pub connecting: Duration,
    /// Longest time that the session of an absent client is kept.
    pub session_expiry_max: Duration,
    /// Messages kept for one client.
    pub queue_messages_max: usize,
    /// Bytes kept for one client.
    pub queue_bytes_max: usize,
    /// Retained messages.
    pub retained_messages_max: usize,
    /// Their bytes together.
    pub retained_bytes_max: usize,
    /// Messages a second of one user.
    pub message_rate_max: u32,
    /// Subscriptions of one client.
    pub subscriptions_max: usize,
}

/// Who runs the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerMode {
    /// The daemon, as its child.
    Child,
    /// systemd, as a service of its own.
    Unit,
    /// Somebody else; `[mqtt]` says where.
    External,
}

/// What survives a restart of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerStorage {
    /// Retained messages and sessions.
    File,
    /// Nothing.
    Memory,
}

impl BrokerConfig {
    pub(super) fn read(root: &mut Root<'_>, paths: &PathsConfig) -> Self {
        let mut section = root.section("broker");
        Self {
            mode: section.choice(
                "mode",
                &[
                    ("child", BrokerMode::Child),
                    ("unit", BrokerMode::Unit),
                    ("external", BrokerMode::External),
                ],
            ),
            listen: section
                .checked("listen", |text| {
                    text.parse()
                        .map_err(|_| "an IP address, e.g. \"127.0.0.1\" or \"0.0.0.0\"".to_owned())
                })
                .unwrap_or(IpAddr::from([127, 0, 0, 1])),
            // 0 is left to tests and tools: the system picks a free port.
            port: section.integer("port", 0..=65535),
            port_search: section.boolean("port_search"),
            storage: section.choice(
                "storage",
                &[
                    ("file", BrokerStorage::File),
                    ("memory", BrokerStorage::Memory),
                ],
            ),
            storage_dir: section
                .path("storage_dir")
                .unwrap_or_else(|| paths.state_dir.join("broker")),
            clients_max: section.integer("clients_max", 1..=100_000),
            clients_per_user_max: section.integer("clients_per_user_max", 1..=100_000),
            connecting_max: section.integer("connecting_max", 1..=10_000),
            connecting: section.seconds("connecting_seconds", 1..=60),
            session_expiry_max: section
                .seconds("session_expiry_seconds_max", 60..=i64::from(u32::MAX)),
            queue_messages_max: section.integer("queue_messages_max", 1..=1_000_000),
            queue_bytes_max: section.integer("queue_bytes_max", 4096..=1 << 30),
            retained_messages_max: section.integer("retained_messages_max", 16..=1_000_000),
            retained_bytes_max: section.integer("retained_bytes_max", 64 << 10..=1 << 30),
            message_rate_max: section.integer("message_rate_max", 1..=1_000_000),
            subscriptions_max: section.integer("subscriptions_max", 1..=10_000),
        }
    }
}

/// A host name or an IP address; anything with a scheme, port or space in it is a URL by mistake.
fn check_host(host: &str) -> Result<String, String> {
    let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let is_name = (1..=253).contains(&host.len()) && host.bytes().all(name);
    match is_name || host.parse::<IpAddr>().is_ok() {
        true => Ok(host.to_owned()),
        false => Err("a host name or IP address alone; the port has a key of its own".into()),
    }
}
