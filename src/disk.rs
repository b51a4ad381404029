//! How much room a file system has. Owns nothing and writes nothing.

use std::io;
use std::path::Path;

/// Bytes that this process may still write to the file system of `dir`.
///
/// # Errors
/// statvfs(3) fails.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    // Their widths differ between targets.
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "u32 on 32-bit targets"
    )]
    let (blocks, size) = (stat.blocks_available() as u64, stat.fragment_size() as u64);
    Ok(blocks.saturating_mul(size))
}
