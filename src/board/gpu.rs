//! The integrated GPU of a Tegra: load and clocks, through the kernel's devfreq.
//!
//! The node is the entry of `/sys/class/devfreq` whose device tree node is a GPU; where the class cannot
//! be followed, the paths of L4T R36 (`17000000.gpu`) and R35 (`17000000.ga10b`) are tried. It may appear
//! seconds after boot. Any other GPU is not read here and absent.

use super::root::{Faults, Probe, ReadError, Root};
use super::text::{ParseError, word_number, words};

const CLASS: &str = "/sys/class/devfreq";

/// Device directories with a devfreq directory of the same last name below them.
const KNOWN_DEVICES: &[&str] = &[
    "/sys/devices/platform/bus@0/17000000.gpu",
    "/sys/devices/platform/17000000.gpu",
    "/sys/devices/platform/17000000.ga10b",
    "/sys/devices/17000000.ga10b",
];

/// What the node of a Tegra's GPU is called in the device tree or in its name.
const NODE_NAMES: &[&str] = &["gpu", "gv11b", "gp10b", "ga10b", "gb10b"];

/// Highest clock that is believed, Hz.
const HZ_MAX: u64 = 10_000_000_000;

/// The GPU now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Share of time busy, in thousandths.
    pub load_permille: Option<u16>,
    /// Clock.
    pub hz: Option<u64>,
    /// Lowest clock that the governor may choose.
    pub hz_min: Option<u64>,
    /// Highest clock that the governor may choose: the power mode's cap, or what heat leaves of it.
    pub hz_max: Option<u64>,
}

/// Where the GPU of this board is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuNode {
    /// e.g. `17000000.gpu`.
    pub name: String,
    /// The devfreq directory.
    devfreq: String,
    /// The device's directory.
    device: String,
    /// Highest clock of the hardware, where the table of clocks is there.
    pub hz_limit: Option<u64>,
}

impl GpuNode {
    /// Looks for the GPU; `None` when there is no integrated one, or not yet.
    pub fn find(root: &Root, faults: &mut Faults) -> Option<Self> {
        let in_class = root.names(CLASS, "").into_iter().find_map(|name| {
            let devfreq = format!("{CLASS}/{name}");
            let device = format!("{devfreq}/device");
            // A broken or foreign node says nothing about our GPU: no fault.
            let node = root.line(&format!("{device}/of_node/name")).ok().flatten();
            let is_gpu = match &node {
                Some(node) => NODE_NAMES.iter().any(|known| node.contains(known)),
                None => NODE_NAMES
                    .iter()
                    .any(|known| name.split('.').next_back() == Some(known)),
            };
            is_gpu.then_some((name, devfreq, device))
        });
        let (name, devfreq, device) = in_class.or_else(|| {
            KNOWN_DEVICES.iter().find_map(|device| {
                let name = device.rsplit('/').next()?;
                let devfreq = format!("{device}/devfreq/{name}");
                let found = root.exists(&devfreq);
                found.then(|| (name.to_owned(), devfreq, (*device).to_owned()))
            })
        })?;
        let table = root.parse(&format!("{devfreq}/available_frequencies"), parse_clocks);
        Some(Self {
            hz_limit: faults.note(table),
            name,
            devfreq,
            device,
        })
    }

    /// The file with the cap that is in force.
    pub(super) fn hz_max_path(&self) -> String {
        format!("{}/max_freq", self.devfreq)
    }

    /// The file that says which texture processing clusters are switched off.
    pub(super) fn tpc_mask_path(&self) -> String {
        format!("{}/tpc_pg_mask", self.device)
    }
}

/// The highest of the clocks in `available_frequencies`, Hz.
///
/// # Errors
/// A word that is no clock, or none at all.
pub fn parse_clocks(bytes: &[u8]) -> Result<u64, ParseError> {
    let mut highest = None;
    for word in words(bytes) {
        highest = highest.max(Some(word_number(1, word, &(1..=HZ_MAX))?));
    }
    highest.ok_or_else(|| ParseError::at_end(1, "clocks in Hz"))
}

/// Reads the GPU again and again.
#[derive(Debug)]
pub struct GpuProbe {
    load: Probe,
    hz: Probe,
    hz_min: Probe,
    hz_max: Probe,
}

impl GpuProbe {
    /// Nothing is opened yet.
    pub fn new(root: &Root, node: &GpuNode) -> Self {
        let clock = |file| Probe::new(root, format!("{}/{file}", node.devfreq));
        Self {
            load: Probe::new(root, format!("{}/load", node.device)),
            hz: clock("cur_freq"),
            hz_min: clock("min_freq"),
            hz_max: clock("max_freq"),
        }
    }

    /// The GPU now. A suspended GPU answers some of the files with nothing: those are absent.
    pub fn read(&mut self, faults: &mut Faults) -> Gpu {
        let mut clock = |probe: &mut Probe| faults.note(probe.number(0..=HZ_MAX));
        Gpu {
            hz: clock(&mut self.hz),
            hz_min: clock(&mut self.hz_min),
            hz_max: clock(&mut self.hz_max),
            load_permille: faults.note(self.load.number(0..=1000)),
        }
    }
}

/// The cap in force, Hz.
pub(super) fn read_hz_max(probe: &mut Probe) -> Result<Option<u64>, ReadError> {
    probe.number(1..=HZ_MAX)
}
