//! `[memory]`: what is left alone, and what no plan says.

use super::reader::Root;
use super::watchdog::Threshold;

/// `[memory]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Left free whatever is loaded.
    pub reserve: Threshold,
    /// The GPU's context and libraries, on a GPU that shares main memory.
    pub gpu_context_bytes: u64,
}

/// Least and most that a reserve by percent may come to: above the watchdog's first step everywhere.
const RESERVE_BOUNDS_BYTES: (u64, u64) = (768 << 20, 2 << 30);

impl MemoryConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("memory");
        Self {
            reserve: Threshold {
                bytes: section.integer("reserve_bytes", 0..=1 << 40),
                percent: section.integer("reserve_percent", 1..=90),
                bounds: RESERVE_BOUNDS_BYTES,
            },
            gpu_context_bytes: section.integer("gpu_context_bytes", 0..=8 << 30),
        }
    }
}
