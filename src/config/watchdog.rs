//! `[watchdog]`: when memory is short, and how patiently it is judged.

use std::time::Duration;

use crate::pressure::Thresholds;

use super::reader::{Root, Section};

/// A threshold: bytes where they are given, else percent of all memory between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// 0: by percent.
    pub bytes: u64,
    /// Of MemTotal.
    pub percent: u32,
    /// Least and most that percent may come to, in bytes: a large board needs no larger reserve.
    pub bounds: (u64, u64),
}

impl Threshold {
    /// In bytes, on a board with so much memory.
    pub fn of(&self, total_bytes: u64) -> u64 {
        if self.bytes > 0 {
            return self.bytes;
        }
        let share = total_bytes / 100 * u64::from(self.percent);
        // A small machine has no more than a fifth to give.
        share
            .clamp(self.bounds.0, self.bounds.1)
            .min(total_bytes / 5)
    }
}

/// `[watchdog]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether memory is watched at all.
    pub enabled: bool,
    /// Drop caches.
    pub trim: Threshold,
    /// Take nothing new.
    pub park: Threshold,
    /// A smaller context or model.
    pub shrink: Threshold,
    /// End the worker.
    pub kill: Threshold,
    /// So much above a threshold ends its level.
    pub margin: Threshold,
    /// For so long.
    pub hold: Duration,
    /// Time for a step to work.
    pub settle: Duration,
    /// A reading older than this is none.
    pub stale: Duration,
}

const MIB: u64 = 1 << 20;

impl WatchdogConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("watchdog");
        let threshold = |section: &mut Section<'_>, bytes, percent, bounds| Threshold {
            bytes: section.integer(bytes, 0..=1 << 40),
            percent: section.integer(percent, 0..=90),
            bounds,
        };
        let config = Self {
            enabled: section.boolean("enabled"),
            trim: threshold(
                &mut section,
                "trim_bytes",
                "trim_percent",
                (512 * MIB, 1536 * MIB),
            ),
            park: threshold(
                &mut section,
                "park_bytes",
                "park_percent",
                (384 * MIB, 1280 * MIB),
            ),
            shrink: threshold(
                &mut section,
                "shrink_bytes",
                "shrink_percent",
                (288 * MIB, 1024 * MIB),
            ),
            kill: threshold(
                &mut section,
                "kill_bytes",
                "kill_percent",
                (192 * MIB, 640 * MIB),
            ),
            margin: threshold(
                &mut section,
                "margin_bytes",
                "margin_percent",
                (96 * MIB, 512 * MIB),
            ),
            hold: section.milliseconds("hold_ms", 100..=600_000),
            settle: section.milliseconds("settle_ms", 20..=60_000),
            stale: section.milliseconds("stale_ms", 500..=600_000),
        };
        let steps = [
            ("park_bytes", "trim_bytes", config.trim, config.park),
            ("shrink_bytes", "park_bytes", config.park, config.shrink),
            ("kill_bytes", "shrink_bytes", config.shrink, config.kill),
        ];
        for (key, above_key, above, below) in steps {
            // By percent they are compared on the board, where the total is known.
            if above.bytes > 0 && below.bytes > above.bytes {
                section.contradiction(
                    key,
                    above_key,
                    format!(
                        "each step's threshold is at most the one before it; at most {}",
                        above.bytes
                    ),
                );
            }
        }
        config
    }

    /// On a board with so much memory. Each threshold is at most the one before it.
    pub fn thresholds(&self, total_bytes: u64) -> Thresholds {
        let trim_bytes = self.trim.of(total_bytes);
        let park_bytes = self.park.of(total_bytes).min(trim_bytes);
        let shrink_bytes = self.shrink.of(total_bytes).min(park_bytes);
        Thresholds {
            trim_bytes,
            park_bytes,
            shrink_bytes,
            kill_bytes: self.kill.of(total_bytes).min(shrink_bytes),
            margin_bytes: self.margin.of(total_bytes),
            hold: self.hold,
            settle: self.settle,
            stale: self.stale,
        }
    }
}
