//! What a power mode, or the clocks in force, allow; and which of two allows more.
//!
//! Modes are ranked by GPU clock × active GPU clusters first, which is how fast prompts are read, then by
//! memory clock, which bounds how fast tokens are made, then by cores, then by CPU clock. Ids and the watts
//! in names take no part: on an NX the mode `25W` has a GPU of 408 MHz and `15W` one of 612.

use serde::{Deserialize, Serialize};

/// Clusters counted where nothing says how many there are, so that products compare by clock alone.
const N_TPCS_UNKNOWN: u32 = 8;

/// What is allowed; `None`: no cap, or not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Caps {
    /// GPU clock, Hz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_hz: Option<u64>,
    /// Texture processing clusters of the GPU (256 CUDA cores each on Orin) that are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_tpcs: Option<u32>,
    /// Memory clock, Hz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emc_hz: Option<u64>,
    /// CPU cores that are on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_cores: Option<u32>,
    /// Highest CPU clock of any cluster, kHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_khz: Option<u64>,
}

impl Caps {
    /// These caps, and where they are silent those of `other`.
    pub fn or(&self, other: &Caps) -> Caps {
        Caps {
            gpu_hz: self.gpu_hz.or(other.gpu_hz),
            n_tpcs: self.n_tpcs.or(other.n_tpcs),
            emc_hz: self.emc_hz.or(other.emc_hz),
            n_cores: self.n_cores.or(other.n_cores),
            cpu_khz: self.cpu_khz.or(other.cpu_khz),
        }
    }

    /// These caps on hardware that has no more than `limits`: no cap becomes the hardware's own.
    pub fn within(&self, limits: &Caps) -> Caps {
        fn lower<T: Ord>(cap: Option<T>, limit: Option<T>) -> Option<T> {
            match (cap, limit) {
                (Some(cap), Some(limit)) => Some(cap.min(limit)),
                (cap, limit) => cap.or(limit),
            }
        }
        Caps {
            gpu_hz: lower(self.gpu_hz, limits.gpu_hz),
            n_tpcs: lower(self.n_tpcs, limits.n_tpcs),
            emc_hz: lower(self.emc_hz, limits.emc_hz),
            n_cores: lower(self.n_cores, limits.n_cores),
            cpu_khz: lower(self.cpu_khz, limits.cpu_khz),
        }
    }

    /// Their place among all caps of a board. Put them [`Caps::within`] the board's limits first, lest "no
    /// cap" and a cap at the hardware's own limit differ.
    pub fn rank(&self) -> Rank {
        let n_tpcs = u128::from(self.n_tpcs.unwrap_or(N_TPCS_UNKNOWN));
        Rank {
            gpu: u128::from(self.gpu_hz.unwrap_or(u64::MAX)) * n_tpcs,
            emc_hz: self.emc_hz.unwrap_or(u64::MAX),
            n_cores: self.n_cores.unwrap_or(u32::MAX),
            cpu_khz: self.cpu_khz.unwrap_or(u64::MAX),
        }
    }

    /// Where the clocks in force, `live`, are others than these. Only what both know is compared, and
    /// clocks only beyond the step of the hardware's table of clocks.
    pub fn differences(&self, live: &Caps) -> Vec<Difference> {
        let clock = |what, named: Option<u64>, live: Option<u64>| {
            let (named, live) = (named?, live?);
            let step = named / CLOCK_STEP_SHARE;
            (named.abs_diff(live) > step).then_some(Difference { what, named, live })
        };
        let count = |what, named: Option<u32>, live: Option<u32>| {
            let (named, live) = (u64::from(named?), u64::from(live?));
            (named != live).then_some(Difference { what, named, live })
        };
        [
            clock(Cap::GpuHz, self.gpu_hz, live.gpu_hz),
            count(Cap::Tpcs, self.n_tpcs, live.n_tpcs),
            clock(Cap::EmcHz, self.emc_hz, live.emc_hz),
            count(Cap::Cores, self.n_cores, live.n_cores),
            clock(Cap::CpuKhz, self.cpu_khz, live.cpu_khz),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A cap in a table may lie between two clocks of the hardware: a thirtieth is taken as the same. The
/// closest two modes that are known differ by a tenth.
const CLOCK_STEP_SHARE: u64 = 30;

/// A place in the order of what caps allow; greater allows more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    // The order of the fields is the order of comparison.
    gpu: u128,
    emc_hz: u64,
    n_cores: u32,
    cpu_khz: u64,
}

/// Which cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// GPU clock, Hz.
    GpuHz,
    /// GPU clusters that are on.
    Tpcs,
    /// Memory clock, Hz.
    EmcHz,
    /// Cores that are on.
    Cores,
    /// CPU clock, kHz.
    CpuKhz,
}

/// One cap that is in force with another value than the mode's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub what: Cap,
    /// As the mode says.
    pub named: u64,
    /// As the kernel says.
    pub live: u64,
}

#[cfg(test)]
mod tests;
