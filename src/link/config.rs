//! How a link connects.

use std::fmt;
use std::time::Duration;

use rumqttc::v5::MqttOptions;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, LastWill, LastWillProperties};
use rumqttc::{NetworkOptions, Transport};

use super::packet::Publish;
use super::tls::TlsFiles;

/// Name and password for CONNECT.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The MQTT user name.
    pub user: String,
    /// Its password; never printed.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Settings of one link. Start from [`LinkConfig::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// Name or address of the broker.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Names the session on the broker. Two clients with one id throw each other out.
    pub client_id: String,
    /// None connects without a user name.
    pub credentials: Option<Credentials>,
    /// None speaks in clear.
    pub tls: Option<TlsFiles>,
    /// At least 5 s (rumqttc's minimum).
    pub keep_alive: Duration,
    /// Largest packet taken; announced to the broker, which then withholds larger ones.
    pub packet_bytes_max: u32,
    /// QoS 1 publishes that may be unacknowledged at a time; the broker's Receive Maximum lowers it.
    pub inflight: u16,
    /// QoS 1 messages that the broker may have unacknowledged at a time.
    pub receive_max: u16,
    /// True: the broker forgets the session at every connect.
    pub clean_start: bool,
    /// How long the broker keeps the session without a connection.
    pub session_expiry: Duration,
    /// Limit for TCP connect, TLS handshake and CONNACK together.
    pub connect_timeout: Duration,
    /// Longest time that a write, an acknowledgement or a ping may take before the connection is
    /// given up. Longer than the largest packet needs on the slowest network.
    pub stall: Duration,
    /// First wait after a lost connection; doubled up to `backoff_max`, with jitter.
    pub backoff_min: Duration,
    /// Longest wait; also the one after a takeover.
    pub backoff_max: Duration,
    /// Filters, subscribed with QoS 1 at the first connection and whenever the session was lost.
    pub subscriptions: Vec<String>,
    /// Filters, subscribed with QoS 1 while [`super::Link::listen`] says so; not at first. Such a link
    /// has a clean session, so that the broker keeps nothing for a member that left, and publishes
    /// nothing: rumqttc deals the packet ids of SUBSCRIBE out of the same round as those of PUBLISH.
    pub switched: Vec<String>,
    /// What the broker publishes when this client vanishes. Its token is not used.
    pub will: Option<Publish>,
    /// How long the broker waits before it publishes the will.
    pub will_delay: Duration,
    /// QoS 0 messages that may wait in the inbox; more are dropped and counted.
    pub inbound_capacity: usize,
    /// Messages that may wait in the outbox.
    pub outbox_capacity: usize,
}

impl LinkConfig {
    /// A persistent session (24 h) with the defaults of the daemon.
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>) -> LinkConfig {
        LinkConfig {
            host: host.into(),
            port,
            client_id: client_id.into(),
            credentials: None,
            tls: None,
            keep_alive: Duration::from_secs(20),
            packet_bytes_max: 1 << 20,
            inflight: 64,
            receive_max: 64,
            clean_start: false,
            session_expiry: Duration::from_secs(24 * 3600),
            connect_timeout: Duration::from_secs(5),
            stall: Duration::from_secs(15),
            backoff_min: Duration::from_millis(200),
            backoff_max: Duration::from_secs(30),
            subscriptions: Vec::new(),
            switched: Vec::new(),
            will: None,
            will_delay: Duration::ZERO,
            inbound_capacity: 256,
            outbox_capacity: 256,
        }
    }

    /// The nearest values that MQTT and rumqttc accept: rumqttc panics on a keep-alive below 5 s,
    /// and zero is no value for Receive Maximum or Maximum Packet Size (MQTT 5, 3.1.2.11).
    pub(super) fn within_bounds(mut self) -> LinkConfig {
        self.keep_alive = self
            .keep_alive
            .clamp(Duration::from_secs(5), Duration::from_secs(65_535));
        self.packet_bytes_max = self.packet_bytes_max.clamp(1024, super::PACKET_BYTES_MAX);
        self.inflight = self.inflight.clamp(1, 1024);
        self.receive_max = self.receive_max.max(1);
        self.outbox_capacity = self.outbox_capacity.max(1);
        if !self.switched.is_empty() {
            (self.clean_start, self.session_expiry) = (true, Duration::ZERO);
        }
        self.stall = self.stall.max(Duration::from_millis(10));
        self.backoff_min = self.backoff_min.max(Duration::from_millis(1));
        self.backoff_max = self.backoff_max.max(self.backoff_min);
        self
    }

    /// `relay`: the local socket that leads to the broker, when the way there is not plain TCP.
    pub(super) fn options(&self, relay: Option<&str>) -> MqttOptions {
        let host = relay.unwrap_or(&self.host);
        let mut options = MqttOptions::new(&self.client_id, host, self.port);
        if relay.is_some() {
            options.set_transport(Transport::Unix);
        }
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval =
            Some(u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX));
        properties.receive_maximum = Some(self.receive_max);
        properties.max_packet_size = Some(self.packet_bytes_max);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        options
            .set_keep_alive(self.keep_alive)
            .set_connect_properties(properties)
            .set_network_options(network)
            .set_manual_acks(true)
            // One more than we ever use: rumqttc stops reading its queue, acknowledgements
            // included, when its window is full.
            .set_outgoing_inflight_upper_limit(self.inflight + 1)
            // Ours is the one that counts; it has a finer unit.
            .set_connection_timeout(self.connect_timeout.as_secs() + 1);
        if let Some(credentials) = &self.credentials {
            options.set_credentials(&credentials.user, &credentials.password);
        }
        if let Some(will) = &self.will {
            options.set_last_will(self.last_will(will));
        }
        options
    }

    fn last_will(&self, will: &Publish) -> LastWill {
        let qos = if will.at_least_once {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        };
        let props = will.props.clone();
        let properties = LastWillProperties {
            delay_interval: Some(u32::try_from(self.will_delay.as_secs()).unwrap_or(u32::MAX)),
            payload_format_indicator: props.payload_utf8.then_some(1),
            message_expiry_interval: props.message_expiry_s,
            content_type: props.content_type,
            response_topic: props.response_topic,
            correlation_data: props.correlation,
            user_properties: props.user,
        };
        LastWill::new(
            &will.topic,
            will.payload.to_vec(),
            qos,
            will.retain,
            Some(properties),
        )
    }
}
