//! Landlock: which files the worker may still reach.
//!
//! Rules hold on to files and not to names: a model that is replaced under its name after this is not the
//! model that may be opened. A process inside may not trace, or read the memory of, one outside.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use orinoco::frames::{Backend, LoadSpec, SandboxSpec};

/// Rights up to this version are handled, each where the kernel knows it; the newest that this was tested
/// with. L4T's 5.15 has version 1, whose gaps (truncating, sockets, signals) the filter of system calls
/// closes.
pub(super) const ABI_USED: ABI = ABI::V7;

/// Libraries, their data, and how the dynamic linker and the CUDA driver find them.
const SYSTEM: &[&str] = &[
    "/usr",
    "/lib",
    "/lib64",
    "/opt/nvidia",
    "/etc/ld.so.cache",
    "/etc/nv_tegra_release",
    "/etc/nvidia",
];

/// What describes this machine. Landlock keeps other processes' memory, files and environment there out
/// of reach.
const MACHINE: &[&str] = &["/proc", "/sys"];

/// Device nodes that every program may use.
const PLAIN_NODES: &[&str] = &["/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"];

/// How the names of the GPU's device nodes in /dev begin: discrete cards, and Jetson (`nvhost-gpu`,
/// `nvgpu/`, `nvmap`, `nvsciipc`, `dri/`).
const GPU_NODES: &[&str] = &["nvidia", "nvhost", "nvgpu", "nvmap", "nvsci", "dri"];

/// The CUDA driver names its threads (`task/TID/comm`), threads that do not exist yet, and gives up where it
/// cannot. What else can be written there concerns this process alone: its memory, which it may write anyhow,
/// and how soon the kernel ends it when memory is short, no sooner than its user could say.
const OWN_THREADS: &str = "/proc/self/task";

/// Files and folders, and what may be done with them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Allowed {
    /// Read, with everything below them.
    pub(super) read: BTreeSet<PathBuf>,
    /// Listed only: libraries are looked for in them.
    pub(super) list: BTreeSet<PathBuf>,
    /// Device nodes: opened, read, written, controlled.
    pub(super) nodes: BTreeSet<PathBuf>,
    /// Whether a GPU is among the nodes.
    pub(super) has_gpu: bool,
    /// Files that are there may be read and written, with everything below.
    pub(super) rewrite: BTreeSet<PathBuf>,
    /// The folder that may be written.
    pub(super) write: Option<PathBuf>,
}

impl Allowed {
    /// What a worker for `spec` needs.
    pub(super) fn of(spec: &LoadSpec, rules: &SandboxSpec) -> Self {
        let mut allowed = Self::without_model(rules);
        allowed.read.insert(spec.path.clone());
        let draft = spec.draft.iter().map(|draft| draft.path.clone());
        // Landlock wants files that are there; without it the model serves alone.
        allowed.read.extend(draft.filter(|path| path.exists()));
        if spec.backend != Backend::Cpu {
            let is_gpu = |name: &str| GPU_NODES.iter().any(|begin| name.starts_with(begin));
            let gpu = entries(Path::new("/dev"), is_gpu);
            if !gpu.is_empty() {
                allowed.open_gpu(gpu);
            }
        }
        allowed
    }

    /// What every worker needs, and the operator's additions.
    pub(super) fn without_model(rules: &SandboxSpec) -> Self {
        let mut allowed = Self {
            read: SYSTEM.iter().chain(MACHINE).map(PathBuf::from).collect(),
            list: library_folders(),
            nodes: PLAIN_NODES.iter().map(PathBuf::from).collect(),
            has_gpu: false,
            rewrite: BTreeSet::new(),
            write: rules.write.clone(),
        };
        allowed.read.extend(rules.read.iter().cloned());
        // Folders of libraries may hold other things too: those of a program that was unpacked somewhere
        // hold the program, and perhaps its state.
        for folder in &allowed.list {
            allowed.read.extend(entries(folder, is_library));
        }
        allowed
    }

    /// For the driver of a GPU with these nodes.
    pub(super) fn open_gpu(&mut self, nodes: Vec<PathBuf>) {
        self.has_gpu = true;
        self.nodes.extend(nodes);
        self.rewrite.insert(PathBuf::from(OWN_THREADS));
    }
}

/// Where the libraries are that are loaded already, where this program is, and where the environment says
/// that others are: CUDA's and ggml's own are opened when they are needed.
fn library_folders() -> BTreeSet<PathBuf> {
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let program = std::env::current_exe().ok();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mapped = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    mapped
        .chain(program.as_deref())
        .filter_map(Path::parent)
        .map(Path::to_owned)
        .chain(std::env::split_paths(&named))
        .filter(|folder| folder.is_absolute() && folder.parent().is_some())
        .collect()
}

/// `libcublas.so.12`, `libggml-cpu.so`.
fn is_library(name: &str) -> bool {
    name.starts_with("lib") && (name.ends_with(".so") || name.contains(".so."))
}

/// Paths in `folder` whose names are `wanted`; none where it cannot be read.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect()
}

/// Restricts this thread to `allowed` with the rights of `abi`: the ABI of the kernel, or why no rule is
/// in force.
pub(super) fn restrict(
    allowed: &Allowed,
    abi: ABI,
) -> Result<Result<u32, &'static str>, RulesetError> {
    let handled = AccessFs::from_all(abi);
    let mut ruleset = Ruleset::default().handle_access(handled)?;
    // An empty set is an error to the library.
    if abi >= ABI::V4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi))?;
    }
    if abi >= ABI::V6 {
        ruleset = ruleset.scope(Scope::from_all(abi))?;
    }
    let mut ruleset = ruleset.create()?;

    let list: BitFlags<AccessFs> = AccessFs::ReadDir.into();
    let read = list | AccessFs::ReadFile;
    let node = read | AccessFs::WriteFile | AccessFs::IoctlDev;
    let rewrite = read | AccessFs::WriteFile | AccessFs::Truncate;
    let write = rewrite
        | AccessFs::Refer
        | AccessFs::MakeDir
        | AccessFs::MakeReg
        | AccessFs::RemoveDir
        | AccessFs::RemoveFile;
    let rules = allowed.list.iter().map(|path| (path, list));
    let rules = rules.chain(allowed.read.iter().map(|path| (path, read)));
    let rules = rules.chain(allowed.nodes.iter().map(|path| (path, node)));
    let rules = rules.chain(allowed.rewrite.iter().map(|path| (path, rewrite)));
    let rules = rules.chain(allowed.write.iter().map(|path| (path, write)));
    for (path, rights) in rules {
        // What is not there cannot be opened, and says so by itself.
        let Ok(file) = PathFd::new(path) else {
            continue;
        };
        let fitting = match path.is_dir() {
            true => handled,
            false => handled & AccessFs::from_file(abi),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(file.as_fd(), rights & fitting))?;
        // A folder of /proc is another one after the kernel has dropped it from its cache, and no rule fits
        // that: it stays open, and so in the cache.
        if rights == rewrite {
            std::mem::forget(file);
        }
    }
    let status = ruleset.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            Err("Landlock is switched off in this kernel (lsm= on its command line)")
        }
        (RulesetStatus::NotEnforced, _) => Err("this kernel has no Landlock"),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(effective_abi as u32),
        (_, _) => Err("this kernel has no Landlock"),
    })
}
