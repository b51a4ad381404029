//! `[sessions]`.

use std::time::Duration;

use super::StoreConfig;
use super::reader::Root;

/// `[sessions]`: conversations that the node keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionsConfig {
    /// Turns of one.
    pub turns_max: usize,
    /// Bytes of their messages.
    pub bytes_max: usize,
    /// Conversations of one user; 0: none is kept.
    pub per_user_max: u64,
    /// Bytes of all together.
    pub total_bytes_max: u64,
    /// How long one may rest before it is forgotten.
    pub idle: Duration,
}

impl SessionsConfig {
    pub(super) fn read(root: &mut Root<'_>, store: &StoreConfig) -> Self {
        let mut section = root.section("sessions");
        let mut config = Self {
            turns_max: section.integer("turns_max", 1..=1000),
            bytes_max: section.integer("bytes_max", 1024..=16 << 20),
            per_user_max: section.integer("per_user_max", 0..=10_000),
            total_bytes_max: section.integer("total_bytes_max", 4096..=1 << 32),
            idle: section.seconds("idle_seconds", 60..=31_536_000),
        };
        if config.total_bytes_max < config.bytes_max as u64 {
            let one = config.bytes_max;
            section.contradiction(
                "total_bytes_max",
                "sessions.bytes_max",
                format!(
                    "expected at least bytes_max = {one}, or the longest conversation is never kept"
                ),
            );
        }
        // redb copies what it changes, and requests need room too.
        config.total_bytes_max = config.total_bytes_max.min(store.bytes_max / 4);
        config
    }
}
