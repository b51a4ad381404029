//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Writes a file next to its place, syncs it, renames it, and syncs the directory.
///
/// # Errors
/// The disk is full, read-only or gone; what stood there before still does.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().context("file without a folder")?;
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .prefix(".part-")
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        // The umask may have taken bits that were asked for. A stick with FAT has no modes, and says so.
        match (file.as_file()).set_permissions(fs::Permissions::from_mode(mode)) {
            Err(e) if e.kind() != io::ErrorKind::PermissionDenied => return Err(e),
            _ => {}
        }
        file.persist(path).map_err(|e| e.error)?;
        sync_dir(dir)
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Makes renames in a directory survive a power cut.
///
/// # Errors
/// As the system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// It is not there, or longer.
pub fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > max {
        bail!("{}: longer than {max} bytes", path.display());
    }
    Ok(bytes)
}

/// As [`read_bounded`], `None` when there is no such file.
///
/// # Errors
/// It is longer, or cannot be read.
pub fn read_if_there(path: &Path, max: u64) -> Result<Option<Vec<u8>>> {
    match path.try_exists() {
        Ok(false) => Ok(None),
        _ => read_bounded(path, max).map(Some),
    }
}
