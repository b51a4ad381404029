//! Which board this is: module, Jetson Linux, GPU, device nodes, container. Serial numbers are never read.
//!
//! ```text
//!     /proc/device-tree/model        NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super
//!     /proc/device-tree/compatible   nvidia,p3768-0000+p3767-0000-super NUL nvidia,tegra234 NUL
//! ```
//!
//! Carrier boards differ and call the whole by other names; the module's number (`p3767-000N`,
//! `p3701-000N`), wherever in the list it stands, is what decides.

use std::time::{Duration, SystemTime};

use nix::unistd::{AccessFlags, access};

use super::l4t::{self, L4t};
use super::memory;
use super::root::{Faults, Root};
use super::text::ParseError;

/// Longest list of compatible strings, bytes.
const COMPATIBLE_BYTES_MAX: usize = 4096;

/// What stands between a 32 GB and a 64 GB AGX, whose first developer kits share a number.
const AGX_64_BYTES_MIN: u64 = 40 << 30;

/// 2024-01-01. A clock before it was never set: this program is younger.
const CLOCK_MIN: Duration = Duration::from_secs(1_704_067_200);

/// Kinds of boards, as far as they differ for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Jetson Orin Nano 8 GB.
    OrinNano8,
    /// Jetson Orin Nano 4 GB.
    OrinNano4,
    /// Jetson Orin NX 8 GB.
    OrinNx8,
    /// Jetson Orin NX 16 GB.
    OrinNx16,
    /// Jetson AGX Orin 32 GB.
    Agx32,
    /// Jetson AGX Orin 64 GB, industrial included.
    Agx64,
    /// An Orin whose module has no number that is known here.
    OrinOther,
    /// A Tegra that this software is not built for.
    Unsupported(Unsupported),
    /// A machine with a discrete NVIDIA GPU.
    NvidiaPc,
    /// No NVIDIA GPU that can be seen.
    NoGpu,
}

impl Kind {
    /// The board whose shipped profiles serve here: its own, or those of the next larger one of the same
    /// speed, of which what does not fit in memory is passed over. `None`: no profiles are shipped.
    pub fn profiles(self) -> Option<&'static str> {
        match self {
            Kind::OrinNano8 | Kind::OrinNano4 => Some("orin-nano-8gb"),
            Kind::OrinNx16 | Kind::OrinNx8 => Some("orin-nx-16gb"),
            Kind::Agx32 | Kind::Agx64 => Some("agx-orin-64gb"),
            Kind::OrinOther | Kind::Unsupported(_) | Kind::NvidiaPc | Kind::NoGpu => None,
        }
    }

    /// Whether it is a Tegra of the Orin family.
    pub fn is_orin(self) -> bool {
        !matches!(self, Kind::Unsupported(_) | Kind::NvidiaPc | Kind::NoGpu)
    }

    /// Whether there is a GPU that the engine could use, so that running on the CPU must be asked for.
    pub fn has_gpu(self) -> bool {
        self.is_orin() || self == Kind::NvidiaPc
    }
}

/// Tegras that are named, and why they are not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// Jetson Nano of 2019 and TX1.
    NanoTx1,
    /// Jetson TX2.
    Tx2,
    /// Jetson Xavier NX and AGX Xavier.
    Xavier,
    /// Jetson Thor.
    Thor,
    /// Any other.
    Other,
}

impl Unsupported {
    /// One sentence for a technician.
    pub fn reason(self) -> &'static str {
        match self {
            Unsupported::NanoTx1 => {
                "Jetson Nano (2019) and TX1: JetPack 4 is their last, with CUDA 10.2, which llama.cpp no \
                 longer compiles for"
            }
            Unsupported::Tx2 => {
                "Jetson TX2: JetPack 4 is its last, with CUDA 10.2, which llama.cpp no longer compiles for"
            }
            Unsupported::Xavier => {
                "Jetson Xavier: JetPack 5 is its last, with CUDA 11.4; this build holds GPU code for \
                 Orin (compute capability 8.7) only"
            }
            Unsupported::Thor => {
                "Jetson Thor: JetPack 7; this build holds GPU code for Orin (compute capability 8.7) only"
            }
            Unsupported::Other => {
                "a Tegra other than Orin: this build holds GPU code for Orin only"
            }
        }
    }
}

/// A module's number in the device tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// `3767` for Nano and NX, `3701` for AGX.
    pub family: u32,
    /// Its variant: `0` of `p3767-0000`.
    pub sku: u32,
    /// Whether the board was flashed with the faster "super" configuration.
    pub is_super: bool,
}

impl Module {
    /// How the files of its power modes start: `nvpmodel_p3767_0003`.
    pub(super) fn conf_stem(&self) -> Option<String> {
        // Developer kits use the files of the module that they carry.
        let sku = match (self.family, self.sku) {
            (3767, 5) => 3,
            (3701, 5) => 0,
            (3767 | 3701, sku) => sku,
            _ => return None,
        };
        Some(format!("nvpmodel_p{}_{sku:04}", self.family))
    }

    fn kind(&self, memory_bytes: Option<u64>) -> Kind {
        match (self.family, self.sku) {
            (3767, 0) => Kind::OrinNx16,
            (3767, 1) => Kind::OrinNx8,
            (3767, 3 | 5) => Kind::OrinNano8,
            (3767, 4) => Kind::OrinNano4,
            (3701, 0) if memory_bytes.is_some_and(|bytes| bytes < AGX_64_BYTES_MIN) => Kind::Agx32,
            (3701, 4) => Kind::Agx32,
            (3701, 0 | 5 | 8) => Kind::Agx64,
            _ => Kind::OrinOther,
        }
    }
}

/// The board, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it is for us.
    pub kind: Kind,
    /// The device tree's words.
    pub model: Option<String>,
    /// The device tree's list; empty on a PC.
    pub compatible: Vec<String>,
    /// The module's number, where the list has one.
    pub module: Option<Module>,
    /// Jetson Linux; absent on a PC and on images without its file.
    pub l4t: Option<L4t>,
    /// The GPU's name, as CUDA says it.
    pub gpu: Option<String>,
    /// MemTotal.
    pub memory_bytes: Option<u64>,
    /// The files through which CUDA reaches the GPU.
    pub nodes: Nodes,
    /// How it is known that we run in a container; `None`: we do not.
    pub container: Option<String>,
}

impl Identity {
    /// Whether this is a container that was not given the GPU of the board it runs on: the kernel shows
    /// the board, but no device node is there.
    pub fn lacks_container_runtime(&self) -> bool {
        self.container.is_some() && self.kind.is_orin() && self.nodes.present.is_empty()
    }
}

/// Device nodes that CUDA needs on this board.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// There, and ours to open.
    pub present: Vec<String>,
    /// There, and not ours to open: a group is missing.
    pub denied: Vec<String>,
    /// Not there.
    pub missing: Vec<String>,
}

/// L4T R36 and later.
const NODES_R36: &[&str] = &[
    "/dev/nvmap",
    "/dev/host1x-fence",
    "/dev/dri/renderD128",
    "/dev/nvgpu/igpu0/ctrl",
    "/dev/nvgpu/igpu0/power",
    "/dev/nvgpu/igpu0/as",
    "/dev/nvgpu/igpu0/channel",
    "/dev/nvgpu/igpu0/tsg",
    "/dev/nvgpu/igpu0/sched",
];

/// L4T R35.
const NODES_R35: &[&str] = &[
    "/dev/nvmap",
    "/dev/nvhost-ctrl-gpu",
    "/dev/nvhost-as-gpu",
    "/dev/nvhost-gpu",
    "/dev/nvhost-tsg-gpu",
];

const NODES_PC: &[&str] = &["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"];

/// Reads who this board is.
pub fn read(root: &Root, faults: &mut Faults) -> Identity {
    let model = faults.note(root.line("/proc/device-tree/model"));
    let compatible = faults
        .note(root.parse("/proc/device-tree/compatible", parse_compatible))
        .unwrap_or_default();
    let l4t = faults.note(root.parse(l4t::PATH, l4t::parse));
    let memory_bytes = match memory::read(root) {
        Ok(info) => Some(info.total_bytes),
        Err(e) => faults.note(Err(e)),
    };
    let module = compatible.iter().find_map(|entry| module(entry));
    let kind = match chip(&compatible) {
        Some("tegra234") => match &module {
            Some(module) => module.kind(memory_bytes),
            None => Kind::OrinOther,
        },
        Some("tegra210") => Kind::Unsupported(Unsupported::NanoTx1),
        Some("tegra186") => Kind::Unsupported(Unsupported::Tx2),
        Some("tegra194") => Kind::Unsupported(Unsupported::Xavier),
        Some("tegra264") => Kind::Unsupported(Unsupported::Thor),
        Some(_) => Kind::Unsupported(Unsupported::Other),
        None if NODES_PC.iter().any(|node| root.exists(node)) => Kind::NvidiaPc,
        None => Kind::NoGpu,
    };
    let needed = match (kind, l4t) {
        (Kind::NvidiaPc, _) => NODES_PC,
        (kind, Some(l4t)) if kind.is_orin() && l4t.release < 36 => NODES_R35,
        (kind, _) if kind.is_orin() => NODES_R36,
        _ => &[],
    };
    let gpu = match kind {
        Kind::NvidiaPc => pc_gpu(root, faults),
        kind if kind.is_orin() => Some("Orin".to_owned()),
        _ => None,
    };
    Identity {
        kind,
        model: model.filter(|model| !model.is_empty()),
        compatible,
        module,
        l4t,
        gpu,
        memory_bytes,
        nodes: nodes(root, needed),
        container: container(root, faults),
    }
}

/// Splits the strings, each ended by NUL.
fn parse_compatible(bytes: &[u8]) -> Result<Vec<String>, ParseError> {
    if bytes.len() > COMPATIBLE_BYTES_MAX {
        let expected = format!("at most {COMPATIBLE_BYTES_MAX} bytes");
        return Err(ParseError::new(1, bytes, expected));
    }
    bytes
        .split(|byte| *byte == 0)
        .map(<[u8]>::trim_ascii)
        .filter(|entry| !entry.is_empty())
        .map(|entry| match std::str::from_utf8(entry) {
            Ok(text) if entry.iter().all(u8::is_ascii_graphic) => Ok(text.to_owned()),
            _ => Err(ParseError::new(1, entry, "strings of ASCII ended by NUL")),
        })
        .collect()
}

/// `nvidia,tegra234`: the chip.
fn chip(compatible: &[String]) -> Option<&str> {
    let mut chips = compatible
        .iter()
        .filter_map(|entry| entry.strip_prefix("nvidia,"))
        .filter(|entry| entry.starts_with("tegra"));
    chips.next()
}

/// `nvidia,p3768-0000+p3767-0005-super`: the module p3767-0005.
fn module(entry: &str) -> Option<Module> {
    for family in [3767, 3701] {
        let mark = format!("p{family}-");
        let Some((_, rest)) = entry.split_once(&mark) else {
            continue;
        };
        let digits = rest.get(..4)?;
        return Some(Module {
            family,
            sku: digits.parse().ok()?,
            is_super: rest.ends_with("-super"),
        });
    }
    None
}

/// `Model: \t NVIDIA H200` of the first GPU.
fn pc_gpu(root: &Root, faults: &mut Faults) -> Option<String> {
    const GPUS: &str = "/proc/driver/nvidia/gpus";
    let first = root.names(GPUS, "").into_iter().next()?;
    let information = root.parse(&format!("{GPUS}/{first}/information"), |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"));
        Ok(model.map(|model| model.trim().to_owned()))
    });
    faults.note(information).flatten()
}

fn nodes(root: &Root, needed: &[&str]) -> Nodes {
    let mut nodes = Nodes::default();
    for path in needed {
        let list = match root.exists(path) {
            false => &mut nodes.missing,
            // Rights in a tree of another board say nothing.
            true if root.is_live() && !is_ours(path) => &mut nodes.denied,
            true => &mut nodes.present,
        };
        list.push((*path).to_owned());
    }
    nodes
}

fn is_ours(path: &str) -> bool {
    access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok()
}

/// How it shows that this is a container: the marks of Docker, Podman, systemd-nspawn, and the groups that
/// Kubernetes and LXC put the first process in.
fn container(root: &Root, faults: &mut Faults) -> Option<String> {
    for mark in [
        "/.dockerenv",
        "/run/.containerenv",
        "/run/systemd/container",
    ] {
        if root.exists(mark) {
            return Some(mark.to_owned());
        }
    }
    let groups = root.parse("/proc/1/cgroup", |bytes| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let runtimes = ["docker", "kubepods", "containerd", "libpod", "/lxc"];
        Ok(runtimes.into_iter().find(|runtime| text.contains(runtime)))
    });
    faults
        .note(groups)
        .flatten()
        .map(|runtime| format!("/proc/1/cgroup: {}", runtime.trim_start_matches('/')))
}

/// Whether the clock shows a time that can be: a Jetson without battery starts in 1970 or at the date of
/// its kernel, and then certificates, expiries and schedules mean nothing.
pub fn is_clock_set(now: SystemTime) -> bool {
    now.duration_since(SystemTime::UNIX_EPOCH)
        .is_ok_and(|since| since >= CLOCK_MIN)
}

#[cfg(test)]
mod tests;
