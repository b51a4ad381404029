//! The board, as `info` names it. What cannot be read is absent.

use std::fs;

use crate::wire::report::Hardware;

/// Reads the device tree and `/proc/meminfo` once.
pub(super) fn read() -> Hardware {
    Hardware {
        board: fs::read_to_string("/proc/device-tree/model")
            .ok()
            .map(|text| text.trim_end_matches('\0').trim().to_owned()),
        arch: std::env::consts::ARCH.to_owned(),
        n_cores: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: fs::read_to_string("/proc/meminfo")
            .ok()
            .as_deref()
            .and_then(mem_total_bytes),
        gpu: None,
    }
}

/// `MemTotal:       15660608 kB`
fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_read_in_bytes_and_absent_when_odd() {
        assert_eq!(
            mem_total_bytes("MemTotal:       15660608 kB\nMemFree: 1 kB\n"),
            Some(15_660_608 * 1024)
        );
        assert_eq!(mem_total_bytes("MemTotal: many kB\n"), None);
        assert_eq!(mem_total_bytes(""), None);
    }
}
