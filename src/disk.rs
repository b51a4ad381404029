//! How much room a file system has. Owns nothing and writes nothing.

use std::fs::File;
use std::io;
use std::path::Path;

use nix::sys::statvfs::{Statvfs, fstatvfs, statvfs};

/// Bytes that this process may still write to the file system of `dir`.
///
/// # Errors
/// statvfs(3) fails.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    Ok(free(statvfs(dir)?))
}

/// As [`free_bytes`], of the file system of an open file.
///
/// # Errors
/// fstatvfs(3) fails.
pub fn free_bytes_of(file: &File) -> io::Result<u64> {
    Ok(free(fstatvfs(file)?))
}

// Their widths differ between targets.
#[allow(
    clippy::useless_conversion,
    clippy::unnecessary_cast,
    reason = "u32 on 32-bit targets"
)]
fn free(stat: Statvfs) -> u64 {
    let (blocks, size) = (stat.blocks_available() as u64, stat.fragment_size() as u64);
    blocks.saturating_mul(size)
}
