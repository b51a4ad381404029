//! Power rails, measured by INA3221 chips on the module.
//!
//! ```text
//!     hwmonN/name            ina3221
//!     hwmonN/in1_label       VDD_IN
//!     hwmonN/in1_input       5024      mV
//!     hwmonN/curr1_input     904       mA     4541 mW
//!     hwmonN/curr1_crit      4984      mA
//! ```
//!
//! Each reading is a transfer on a slow bus (about a millisecond): these belong on a thread that may wait.
//! Idle rails read slightly below zero. Channels that are off, not connected (`NC`), or sums of others are
//! left out.

use super::hwmon;
use super::root::{Faults, Probe, Root};

/// Largest reading that is believed, mV or mA: 1 kV, 1 kA.
const MILLI_MAX: i32 = 1_000_000;

/// What a rail feeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feeds {
    /// The whole module: all other rails are parts of it.
    Module,
    /// CPU, GPU and vision accelerators together (Nano and NX).
    CpuGpu,
    /// GPU and the rest of the chip (AGX).
    GpuSoc,
    /// CPU and vision accelerators (AGX).
    Cpu,
    /// The chip but CPU and GPU.
    Soc,
    /// The module's 5 V supply (AGX).
    System,
    /// Memory (AGX).
    Memory,
    /// A label that is not known.
    Other,
}

impl Feeds {
    fn of(label: &str) -> Self {
        match label {
            "VDD_IN" => Feeds::Module,
            "VDD_CPU_GPU_CV" => Feeds::CpuGpu,
            "VDD_GPU_SOC" => Feeds::GpuSoc,
            "VDD_CPU_CV" => Feeds::Cpu,
            "VDD_SOC" => Feeds::Soc,
            "VIN_SYS_5V0" => Feeds::System,
            "VDDQ_VDD2_1V8AO" => Feeds::Memory,
            _ => Feeds::Other,
        }
    }

    /// Whether the GPU's power is in it.
    pub fn has_gpu(self) -> bool {
        matches!(self, Feeds::CpuGpu | Feeds::GpuSoc)
    }
}

/// One rail now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rail {
    /// The board's label, e.g. `VDD_IN`.
    pub name: String,
    /// What it feeds.
    pub feeds: Feeds,
    /// mV.
    pub millivolts: Option<i32>,
    /// mA, below zero by the chip's offset when idle.
    pub milliamps: Option<i32>,
    /// mA at which the board's firmware slows clocks, average and instantaneous.
    pub milliamps_warn: Option<i32>,
    /// See `milliamps_warn`.
    pub milliamps_crit: Option<i32>,
}

impl Rail {
    /// mW; absent when one of its readings is.
    pub fn milliwatts(&self) -> Option<i64> {
        Some(i64::from(self.millivolts?) * i64::from(self.milliamps?) / 1000)
    }
}

/// Power of the module, mW: its input rail, else the sum of all rails. Absent as soon as one reading that
/// belongs to it is, for a sum without a rail would look like a saving.
///
/// On AGX the 5 V supply feeds the memory rail too, so the sum is high by at most that rail.
pub fn module_milliwatts(rails: &[Rail]) -> Option<i64> {
    match rails.iter().find(|rail| rail.feeds == Feeds::Module) {
        Some(input) => input.milliwatts(),
        None if rails.is_empty() => None,
        None => rails.iter().map(Rail::milliwatts).sum(),
    }
}

/// Reads the rails again and again.
#[derive(Debug, Default)]
pub struct RailsProbe(Vec<Channel>);

#[derive(Debug)]
struct Channel {
    rail: Rail,
    volts: Probe,
    amps: Probe,
}

impl RailsProbe {
    /// Looks for the chips and their channels; none on boards without them.
    pub fn find(root: &Root, faults: &mut Faults) -> Self {
        let mut channels = Vec::new();
        for chip in hwmon::chips(root, &["ina3221"], faults) {
            for n in 1..=3 {
                channels.extend(channel(root, &chip, n, faults));
            }
        }
        Self(channels)
    }

    /// Whether the board has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All rails as they are now.
    pub fn read(&mut self, faults: &mut Faults) -> Vec<Rail> {
        let mut milli = |probe: &mut Probe| faults.note(probe.number(-MILLI_MAX..=MILLI_MAX));
        let read = |channel: &mut Channel| Rail {
            millivolts: milli(&mut channel.volts),
            milliamps: milli(&mut channel.amps),
            ..channel.rail.clone()
        };
        self.0.iter_mut().map(read).collect()
    }
}

fn channel(root: &Root, chip: &str, n: u32, faults: &mut Faults) -> Option<Channel> {
    let name = faults.note(root.line(&format!("{chip}/in{n}_label")))?;
    let is_on = faults.note(root.number(&format!("{chip}/in{n}_enable"), 0..=1));
    if matches!(name.as_str(), "" | "NC" | "sum of shunt voltages") || is_on == Some(0) {
        return None;
    }
    let mut limit = |file: &str| {
        let limit = root.number(&format!("{chip}/curr{n}_{file}"), 0..=MILLI_MAX);
        faults.note(limit)
    };
    Some(Channel {
        rail: Rail {
            feeds: Feeds::of(&name),
            name,
            millivolts: None,
            milliamps: None,
            milliamps_warn: limit("max"),
            milliamps_crit: limit("crit"),
        },
        volts: Probe::new(root, format!("{chip}/in{n}_input")),
        amps: Probe::new(root, format!("{chip}/curr{n}_input")),
    })
}
