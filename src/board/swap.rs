//! Swap from `/proc/swaps`, and what zram takes for it.
//!
//! ```text
//!     Filename      Type        Size     Used   Priority
//!     /dev/zram0    partition   650224   48874  5
//! ```
//!
//! zram keeps swapped pages compressed in the same memory: it makes room only by pushing out what other
//! programs hold, and GPU memory cannot go there. JetPack sets it up, Yocto images of meta-tegra do not.

use super::root::{Faults, Root};
use super::text::{ParseError, lines, word_number, words};

/// One swap device or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// As the kernel names it, e.g. `/dev/zram0`.
    pub name: String,
    /// Its size.
    pub size_bytes: u64,
    /// Swapped out to it, before compression.
    pub used_bytes: u64,
    /// Memory that a zram device takes for it; absent for others.
    pub memory_bytes: Option<u64>,
}

impl Swap {
    /// Whether it lies in memory.
    pub fn is_zram(&self) -> bool {
        self.name.starts_with("/dev/zram")
    }
}

/// Parses `/proc/swaps`; no lines below the heading: no swap.
///
/// # Errors
/// A line without name, type, and sizes in kB.
pub fn parse(bytes: &[u8]) -> Result<Vec<Swap>, ParseError> {
    let mut swaps = Vec::new();
    for (number, line) in lines(bytes).skip(1).filter(|(_, line)| !line.is_empty()) {
        let mut parts = words(line);
        let (Some(name), Some(_), Some(size), Some(used)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(ParseError::new(number, line, "name, type, size and used"));
        };
        let kib = |word| word_number::<u64>(number, word, &(0..=u64::MAX / 1024));
        swaps.push(Swap {
            name: String::from_utf8_lossy(name).into_owned(),
            size_bytes: kib(size)? * 1024,
            used_bytes: kib(used)? * 1024,
            memory_bytes: None,
        });
    }
    Ok(swaps)
}

/// `mem_used_total`, the third number of a zram device's `mm_stat`, bytes.
///
/// # Errors
/// Fewer numbers.
pub fn parse_mm_stat(bytes: &[u8]) -> Result<u64, ParseError> {
    let line = bytes.trim_ascii();
    let word = words(line)
        .nth(2)
        .ok_or_else(|| ParseError::new(1, line, "at least three numbers"))?;
    word_number(1, word, &(0..=u64::MAX))
}

/// The swap of the board; empty where there is none.
pub fn read(root: &Root, faults: &mut Faults) -> Vec<Swap> {
    let mut swaps = faults
        .note(root.parse("/proc/swaps", parse))
        .unwrap_or_default();
    for swap in swaps.iter_mut().filter(|swap| swap.is_zram()) {
        let device = swap.name.trim_start_matches("/dev/");
        let stat = format!("/sys/block/{device}/mm_stat");
        swap.memory_bytes = faults.note(root.parse(&stat, parse_mm_stat));
    }
    swaps
}
