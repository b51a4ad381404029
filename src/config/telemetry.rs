//! `[telemetry]`: how often numbers are published.

use std::time::Duration;

use super::reader::Root;

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetryConfig {
    /// Time between two publications; `None`: never.
    pub interval: Option<Duration>,
}

impl TelemetryConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("telemetry");
        let seconds = section.seconds("interval_seconds", 0..=3600);
        Self {
            interval: Some(seconds).filter(|interval| !interval.is_zero()),
        }
    }
}
