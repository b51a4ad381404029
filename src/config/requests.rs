//! `[requests]`.

use std::time::Duration;

use super::MqttConfig;
use super::reader::Root;

/// Room for topic and properties in a packet, beside the body.
const PACKET_OVERHEAD_BYTES: u64 = 4096;

/// `[requests]`: limits and timing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestsConfig {
    /// Largest request body.
    pub payload_bytes_max: usize,
    /// Accepted jobs that wait.
    pub queue_jobs_max: usize,
    /// Sum of their bodies.
    pub queue_bytes_max: usize,
    /// Text is gathered for this long; zero: a message for each token.
    pub coalesce: Duration,
    /// Text is gathered up to this many bytes.
    pub coalesce_bytes: usize,
    /// Cap of the answer to op `text`.
    pub text_bytes_max: usize,
    /// Text of one stream that may wait for the network.
    pub output_pending_bytes_max: usize,
    /// How long finished requests are remembered.
    pub retention: Duration,
    /// How often streams that wait are told of their place, at most; `None`: never.
    pub queue_notice: Option<Duration>,
}

impl RequestsConfig {
    pub(super) fn read(root: &mut Root<'_>, mqtt: &MqttConfig) -> Self {
        let mut section = root.section("requests");
        let config = Self {
            payload_bytes_max: section.integer("payload_bytes_max", 256..=64 << 20),
            queue_jobs_max: section.integer("queue_jobs_max", 1..=100_000),
            queue_bytes_max: section.integer("queue_bytes_max", 64 << 10..=1 << 30),
            coalesce: section.milliseconds("coalesce_ms", 0..=1000),
            coalesce_bytes: section.integer("coalesce_bytes", 1..=65_536),
            text_bytes_max: section.integer("text_bytes_max", 16..=65_536),
            output_pending_bytes_max: section.integer("output_pending_bytes_max", 4096..=64 << 20),
            retention: section.seconds("retention_seconds", 10..=86_400),
            queue_notice: Some(section.milliseconds("queue_notice_ms", 0..=60_000))
                .filter(|every| !every.is_zero()),
        };
        let room = u64::from(mqtt.packet_bytes_max).saturating_sub(PACKET_OVERHEAD_BYTES);
        if config.payload_bytes_max as u64 > room {
            section.contradiction(
                "payload_bytes_max",
                "mqtt.packet_bytes_max",
                format!(
                    "expected at most {room}: mqtt.packet_bytes_max less {PACKET_OVERHEAD_BYTES} for topic and properties"
                ),
            );
        }
        if config.queue_bytes_max < config.payload_bytes_max {
            let payload = config.payload_bytes_max;
            section.contradiction(
                "queue_bytes_max",
                "requests.payload_bytes_max",
                format!("expected at least payload_bytes_max = {payload}, or the largest request never fits"),
            );
        }
        config
    }
}
