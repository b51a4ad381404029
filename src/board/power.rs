//! The power mode in use, and what is really in force.
//!
//! The status file can lie: nvpmodel may have failed at boot (a mode that changes GPU clusters wants a
//! reboot) and left other clocks in place, and heat lowers clocks that the mode allows. So the clocks in
//! force are read beside it, they win where they can be read, and what differs is said.
//!
//! No status file means the table's default mode, not an error: freshly flashed boards and read-only
//! images have none.

use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use super::caps::{Caps, Difference};
use super::gpu::{self, GpuNode};
use super::identity::Module;
use super::nvpmodel::{self, Mode, Table, query::Answer};
use super::root::{Faults, Probe, ReadError, Root};
use super::text::{ParseError, word_number};

mod cores;

const CPU: &str = "/sys/devices/system/cpu";

/// Caps of the memory clock: L4T R36, and R35.
const EMC_CAPS: &[&str] = &[
    "/sys/kernel/nvpmodel_clk_cap/emc",
    "/sys/kernel/nvpmodel_emc_cap/emc_iso_cap",
];

/// Highest memory clock that is believed, Hz; the kernel writes larger numbers for "no cap".
const EMC_HZ_MAX: u64 = 20_000_000_000;

/// Highest CPU clock that is believed, kHz.
const CPU_KHZ_MAX: u64 = 10_000_000;

/// Who says which mode it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// `/var/lib/nvpmodel/status`.
    Status,
    /// `nvpmodel -q`.
    Query,
    /// No status: the default of the table.
    Default,
    /// Nobody: no table, or a status that it does not know.
    Nobody,
}

/// The power mode now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// The mode that is named; `None` on boards without modes.
    pub mode: Option<Mode>,
    /// By whom.
    pub named_by: NamedBy,
    /// What is allowed: the clocks in force where they can be read, else the mode's.
    pub caps: Caps,
    /// What the hardware has at most.
    pub limits: Caps,
    /// Where the clocks in force are not those of the named mode.
    pub differences: Vec<Difference>,
    /// When they differ: the mode of the table whose clocks they are.
    pub looks_like: Option<Mode>,
    /// Files that could not be used.
    pub faults: Faults,
}

impl Present {
    /// The mode to choose by: the one whose clocks are in force, else the named one.
    pub fn effective_mode(&self) -> Option<&Mode> {
        self.looks_like.as_ref().or(self.mode.as_ref())
    }

    /// Whether the status file is there and does not name a mode.
    pub fn is_status_bad(&self) -> bool {
        self.named_by != NamedBy::Status
            && self
                .faults
                .iter()
                .any(|fault| fault.path() == nvpmodel::STATUS)
    }
}

impl Default for Present {
    /// Nothing is known yet.
    fn default() -> Self {
        Self {
            mode: None,
            named_by: NamedBy::Nobody,
            caps: Caps::default(),
            limits: Caps::default(),
            differences: Vec::new(),
            looks_like: None,
            faults: Faults::default(),
        }
    }
}

/// Reads the mode again and again. The table is parsed anew only when its file changed.
#[derive(Debug)]
pub struct PowerProbe {
    root: Root,
    module: Option<Module>,
    table: Option<Cached>,
    status: Probe,
    clocks: Clocks,
}

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    table: Result<Table, ReadError>,
}

/// Changes when a file is written or replaced.
type Stamp = (String, u64, u64, Option<SystemTime>, i64, i64);

impl PowerProbe {
    /// `module`: from [`super::identity`], to find the table of a board that has not made its link yet.
    pub fn new(root: &Root, module: Option<Module>) -> Self {
        Self {
            root: root.clone(),
            module,
            table: None,
            status: Probe::new(root, nvpmodel::STATUS),
            clocks: Clocks::new(root),
        }
    }

    /// The mode as files tell it. `answer`: of `nvpmodel -q`, used only where the status does not help.
    pub fn read(&mut self, answer: Option<&Answer>) -> Present {
        let mut faults = Faults::default();
        self.refresh_table(&mut faults);
        let no_table = Table::default();
        let table = match &self.table {
            Some(Cached {
                table: Ok(table), ..
            }) => table,
            Some(Cached { table: Err(e), .. }) => {
                faults.note::<()>(Err(e.clone()));
                &no_table
            }
            None => &no_table,
        };
        let live = self.clocks.read(&mut faults);
        let limits = self.clocks.limits;
        let (mode, named_by) = named(
            table,
            self.status.parse(nvpmodel::parse_status),
            answer,
            &mut faults,
        );
        present(table, mode, named_by, live, limits, faults)
    }

    fn refresh_table(&mut self, faults: &mut Faults) {
        let Some(path) = nvpmodel::find_conf(&self.root, self.module.as_ref(), faults) else {
            self.table = None;
            return;
        };
        let stamp = stamp(&self.root, &path);
        if let (Some(cached), Some(stamp)) = (&self.table, &stamp)
            && cached.stamp == *stamp
        {
            return;
        }
        let table = nvpmodel::read_table(&self.root, &path).transpose();
        self.table = stamp
            .zip(table)
            .map(|(stamp, table)| Cached { stamp, table });
    }
}

fn stamp(root: &Root, path: &str) -> Option<Stamp> {
    let meta = root.resolve(path).ok()?.metadata().ok()?;
    Some((
        path.to_owned(),
        meta.ino(),
        meta.len(),
        meta.modified().ok(),
        meta.ctime(),
        meta.ctime_nsec(),
    ))
}

/// The mode that is named, and by whom.
fn named(
    table: &Table,
    status: Result<Option<u32>, ReadError>,
    answer: Option<&Answer>,
    faults: &mut Faults,
) -> (Option<Mode>, NamedBy) {
    let is_absent = matches!(status, Ok(None));
    if let Some(id) = faults.note(status) {
        if let Some(mode) = table.get(id) {
            return (Some(mode.clone()), NamedBy::Status);
        }
        // Without a table an id is just a number, and no fault of its file.
        if !table.modes.is_empty() {
            let ids: Vec<String> = table.modes.iter().map(|mode| mode.id.to_string()).collect();
            let found = format!("pmode:{id:04}");
            let expected = format!("the id of a mode in the table: {}", ids.join(", "));
            let error = ParseError::new(1, found.as_bytes(), expected);
            faults.note::<()>(Err(error.in_file(nvpmodel::STATUS)));
        }
    }
    if let Some(answer) = answer {
        let by_id = answer.id.and_then(|id| table.get(id));
        let mode = by_id.or_else(|| table.named(&answer.name)).cloned();
        let unlisted = || Mode {
            id: answer.id.unwrap_or_default(),
            name: answer.name.clone(),
            ..Mode::default()
        };
        return (Some(mode.unwrap_or_else(unlisted)), NamedBy::Query);
    }
    match table.default_mode() {
        Some(mode) if is_absent => (Some(mode.clone()), NamedBy::Default),
        _ => (None, NamedBy::Nobody),
    }
}

/// Puts together what is named and what is in force.
fn present(
    table: &Table,
    mode: Option<Mode>,
    named_by: NamedBy,
    live: Caps,
    limits: Caps,
    faults: Faults,
) -> Present {
    let named = mode.as_ref().map(Mode::caps).unwrap_or_default();
    let differences = named.within(&limits).differences(&live);
    let looks_like = match differences.is_empty() {
        true => None,
        false => table
            .modes
            .iter()
            .find(|other| other.caps().within(&limits).differences(&live).is_empty())
            .cloned(),
    };
    Present {
        caps: live.or(&named).within(&limits),
        mode,
        named_by,
        limits,
        differences,
        looks_like,
        faults,
    }
}

/// The clocks in force and the hardware's own.
#[derive(Debug)]
struct Clocks {
    root: Root,
    limits: Caps,
    gpu: Option<GpuClocks>,
    emc: Vec<Probe>,
    online: Probe,
    present: Probe,
    /// By policy: its cap, and its limit in kHz.
    cpu: Vec<(String, Probe)>,
}

#[derive(Debug)]
struct GpuClocks {
    hz_max: Probe,
    tpc_mask: Probe,
}

impl Clocks {
    fn new(root: &Root) -> Self {
        Self {
            root: root.clone(),
            limits: Caps::default(),
            gpu: None,
            emc: EMC_CAPS
                .iter()
                .map(|path| Probe::new(root, *path))
                .collect(),
            online: Probe::new(root, format!("{CPU}/online")),
            present: Probe::new(root, format!("{CPU}/present")),
            cpu: Vec::new(),
        }
    }

    fn read(&mut self, faults: &mut Faults) -> Caps {
        let root = self.root.clone();
        if self.gpu.is_none()
            && let Some(node) = GpuNode::find(&root, faults)
        {
            self.limits.gpu_hz = node.hz_limit;
            self.gpu = Some(GpuClocks {
                hz_max: Probe::new(&root, node.hz_max_path()),
                tpc_mask: Probe::new(&root, node.tpc_mask_path()),
            });
        }
        self.limits.n_cores = faults.note(self.present.parse(cores::parse));
        let n_cores = faults.note(self.online.parse(cores::parse));
        let emc = self
            .emc
            .iter_mut()
            .find_map(|probe| faults.note(probe.parse(parse_emc)));
        let (gpu_hz, n_tpcs) = match &mut self.gpu {
            Some(gpu) => (
                faults.note(gpu::read_hz_max(&mut gpu.hz_max)),
                faults
                    .note(gpu.tpc_mask.number(0..=u64::MAX))
                    .map(nvpmodel::n_tpcs),
            ),
            None => (None, None),
        };
        Caps {
            gpu_hz,
            n_tpcs,
            emc_hz: emc.flatten(),
            n_cores,
            cpu_khz: self.cpu_khz(faults),
        }
    }

    /// The highest cap of all policies; a policy is gone while its cores are off.
    fn cpu_khz(&mut self, faults: &mut Faults) -> Option<u64> {
        let dir = format!("{CPU}/cpufreq");
        let policies = self.root.names(&dir, "policy");
        if !policies.iter().eq(self.cpu.iter().map(|(name, _)| name)) {
            let limits = policies.iter().filter_map(|policy| {
                let path = format!("{dir}/{policy}/cpuinfo_max_freq");
                faults.note(self.root.number(&path, 1..=CPU_KHZ_MAX))
            });
            // The limit of clusters that went away still holds.
            self.limits.cpu_khz = limits.chain(self.limits.cpu_khz).max();
            self.cpu = policies
                .into_iter()
                .map(|policy| {
                    let path = format!("{dir}/{policy}/scaling_max_freq");
                    (policy, Probe::new(&self.root, path))
                })
                .collect();
        }
        self.cpu
            .iter_mut()
            .filter_map(|(_, probe)| faults.note(probe.number(1..=CPU_KHZ_MAX)))
            .max()
    }
}

/// A cap of the memory clock, Hz; `None`: no cap.
fn parse_emc(bytes: &[u8]) -> Result<Option<u64>, ParseError> {
    let hz = word_number(1, bytes.trim_ascii(), &(0..=u64::MAX))?;
    Ok(Some(hz).filter(|hz| (1..=EMC_HZ_MAX).contains(hz)))
}

#[cfg(test)]
mod tests;
