//! How much memory boards have that are not here.

use super::fit::Room;

/// A board's memory, headless and idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoardMemory {
    /// As in configs/boards/.
    pub name: &'static str,
    /// MemTotal: less than the label by what firmware keeps.
    pub total_bytes: u64,
    /// What Jetson Linux and its services usually have taken of it.
    pub used_bytes: u64,
    /// Where both figures come from.
    pub basis: &'static str,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Usual use of a headless Jetson Linux: MemTotal less MemAvailable of an idle Orin Nano.
const USED_BYTES: u64 = 1_557_140 * KIB;

/// The boards that are known, the smallest first.
pub const BOARDS: &[BoardMemory] = &[
    BoardMemory {
        name: "orin-nano-4gb",
        total_bytes: 3600 * MIB,
        used_bytes: USED_BYTES,
        basis: "both estimated from the Orin Nano 8 GB",
    },
    BoardMemory {
        name: "orin-nano-8gb",
        total_bytes: 7_802_736 * KIB,
        used_bytes: USED_BYTES,
        basis: "both read from an idle board, headless, L4T R36",
    },
    BoardMemory {
        name: "orin-nx-8gb",
        total_bytes: 7_802_736 * KIB,
        used_bytes: USED_BYTES,
        basis: "both as of the Orin Nano 8 GB",
    },
    BoardMemory {
        name: "orin-nx-16gb",
        total_bytes: 16_032_112 * KIB,
        used_bytes: USED_BYTES,
        basis: "MemTotal from tegrastats, use as of the Orin Nano 8 GB",
    },
    BoardMemory {
        name: "agx-orin-32gb",
        total_bytes: 31_400 * MIB,
        used_bytes: 2048 * MIB,
        basis: "both estimated from the AGX Orin 64 GB",
    },
    BoardMemory {
        name: "agx-orin-64gb",
        total_bytes: 64_349_376 * KIB,
        used_bytes: 2048 * MIB,
        basis: "MemTotal read from a board, use estimated",
    },
];

impl BoardMemory {
    /// What there is to take from, with this much left alone.
    pub fn room(&self, reserve_bytes: u64) -> Room {
        Room {
            total_bytes: self.total_bytes,
            available_bytes: self.total_bytes - self.used_bytes,
            reserve_bytes,
            mapped_bytes: 0,
        }
    }
}
