//! `[pools]`: groups of nodes that share requests.

use std::time::Duration;

use crate::wire::topic::POOLS_MAX;

use super::node::check_name;
use super::reader::Root;

/// `[pools]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolsConfig {
    /// Pools that this node takes requests from, each once.
    pub names: Vec<String>,
    /// Waiting requests at which the node leaves its pools; `None`: as many as run side by side.
    pub waiting_jobs_max: Option<usize>,
    /// How long there must be room before it returns.
    pub settle: Duration,
}

impl PoolsConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("pools");
        let names = section.words("names", POOLS_MAX, check_name);
        let waiting_jobs_max: usize = section.integer("waiting_jobs_max", 0..=100_000);
        Self {
            names,
            waiting_jobs_max: Some(waiting_jobs_max).filter(|jobs| *jobs > 0),
            settle: section.milliseconds("settle_ms", 0..=60_000),
        }
    }
}
