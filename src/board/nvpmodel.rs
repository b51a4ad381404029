//! NVIDIA's power modes, as `nvpmodel` keeps them: the table, the mode in use, and what its tool prints.
//!
//! ```text
//!     < PARAM TYPE=CLOCK NAME=GPU >              which file a line below sets; not used here
//!     MAX_FREQ /sys/devices/.../max_freq
//!     < POWER_MODEL ID=3 NAME=25W >              one mode
//!     CPU_ONLINE CORE_4 1
//!     TPC_POWER_GATING TPC_PG_MASK 252           set bits are clusters of the GPU switched off
//!     CPU_A78_0 MAX_FREQ 1497600                 kHz
//!     GPU MAX_FREQ 408000000                     Hz; -1: no cap
//!     EMC MAX_FREQ 3199000000                    Hz; 0 and -1: no cap
//!     < PM_CONFIG DEFAULT=4 >                    the mode of a board that was never told otherwise
//! ```
//!
//! Ids have gaps and names carry watts, but neither says how fast a mode is: on an NX, `25W` has a slower
//! GPU than `15W`. [`super::caps`] ranks modes by what they allow. This module never sets a mode:
//! `nvpmodel -m` asks to reboot for some, and inside a mount namespace it changes the status file alone.

pub mod query;
mod table;

pub(super) use table::n_tpcs;
pub use table::{Mode, Table, parse};

use super::identity::Module;
use super::root::{Faults, ReadError, Root};
use super::text::{ParseError, word_number, words};

/// The directory that nvpmodel keeps the mode in.
pub const STATUS_DIR: &str = "/var/lib/nvpmodel";

/// The mode in use.
pub const STATUS: &str = "/var/lib/nvpmodel/status";

/// Which table nvpmodel was last run with.
const CONF_IN_USE: &str = "/var/lib/nvpmodel/conf_file_path";

/// Where tables stand otherwise, in this order.
const CONFS: &[&str] = &[
    "/etc/nvpmodel.conf",
    "/odm/etc/nvpmodel.conf",
    "/vendor/etc/nvpmodel.conf",
];

/// The id in `/var/lib/nvpmodel/status`: `pmode:0002`, in JetPack 4 followed by `fmode:quiet`.
///
/// # Errors
/// Anything else; an empty file is one that is being written at this moment.
pub fn parse_status(bytes: &[u8]) -> Result<u32, ParseError> {
    let line = bytes.trim_ascii();
    let digits = words(line)
        .find_map(|word| word.strip_prefix(b"pmode:"))
        .filter(|digits| digits.iter().all(u8::is_ascii_digit) && !digits.is_empty());
    match digits {
        // Decimal, padded with zeros.
        Some(digits) => word_number(1, digits, &(0..=u32::MAX)),
        None => Err(ParseError::new(1, line, "pmode: and a number")),
    }
}

/// Reads the status; `None` on a board that was never told a mode, or has no nvpmodel.
///
/// # Errors
/// As [`parse_status`].
pub fn read_status(root: &Root) -> Result<Option<u32>, ReadError> {
    root.parse(STATUS, parse_status)
}

/// Where the table of this board stands: the one nvpmodel was run with, else `/etc/nvpmodel.conf`, else the
/// one of this module among `/etc/nvpmodel/nvpmodel_*.conf` (the link to it is made at boot).
pub fn find_conf(root: &Root, module: Option<&Module>, faults: &mut Faults) -> Option<String> {
    let in_use = faults
        .note(root.line(CONF_IN_USE))
        .filter(|path| path.starts_with('/'));
    in_use
        .into_iter()
        .chain(CONFS.iter().map(|path| (*path).to_owned()))
        .chain(module.into_iter().flat_map(module_confs))
        .find(|path| root.is_file(path))
}

/// `nvpmodel_p3767_0003_super.conf` before `nvpmodel_p3767_0003.conf` when the board calls itself "super".
fn module_confs(module: &Module) -> Vec<String> {
    let Some(stem) = module.conf_stem() else {
        return Vec::new();
    };
    let plain = format!("/etc/nvpmodel/{stem}.conf");
    let better = format!("/etc/nvpmodel/{stem}_super.conf");
    match module.is_super {
        true => vec![better, plain],
        false => vec![plain, better],
    }
}

/// Reads the table at `path`.
///
/// # Errors
/// As [`parse`].
pub fn read_table(root: &Root, path: &str) -> Result<Option<Table>, ReadError> {
    root.parse(path, parse)
}

#[cfg(test)]
mod tests;
