//! The few things that updates do to a file system, so that tests can lose what a power cut loses.
//!
//! A write that was not synced may be gone after a power cut, wholly or in part; a rename whose folder was not
//! synced may not have happened. [`Disk`] is the real thing; `Unsynced` keeps both views in memory, the one a
//! running program sees and the one that is left when the power goes, and can cut it at any step.
//!
//! [`replace`] is the one way in which a state is written: the old one or the new one is there afterwards,
//! whatever happens in between.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::crash;

#[cfg(test)]
mod unsynced;

#[cfg(test)]
pub use unsynced::{Cut, Keeps, Unsynced};

/// Files and folders of updates.
pub trait Vfs: Send + Sync {
    /// The whole of a file; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read, or is larger than `bytes_max`.
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>>;

    /// Makes the file, or empties it, and writes this.
    ///
    /// # Errors
    /// The disk is full, read-only or broken.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Writes this behind what is there; makes the file if need be.
    ///
    /// # Errors
    /// As [`Vfs::write`].
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Has the file's content on the disk.
    ///
    /// # Errors
    /// It cannot be said that it is there.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name; one that has that name already is gone.
    ///
    /// # Errors
    /// It keeps its name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// It stays.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Has the names in a folder on the disk.
    ///
    /// # Errors
    /// It cannot be said that they are there.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a folder, and those above it, for this user only.
    ///
    /// # Errors
    /// It cannot be made.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names and lengths of the files in a folder, sorted; none when there is no such folder.
    ///
    /// # Errors
    /// It cannot be read.
    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>>;

    /// A step between two others was reached. Tests cut the power here; the product does nothing ([`crash`]).
    fn reached(&self, _point: &str) {}
}

/// Has `path` hold exactly `bytes`, for good: afterwards it is the old content or the new one.
///
/// # Errors
/// The old one is there still, or the new one already; nothing in between.
pub fn replace(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    vfs.write(&new, bytes)?;
    vfs.reached(&format!("{name}:written"));
    vfs.sync(&new)?;
    vfs.reached(&format!("{name}:synced"));
    vfs.rename(&new, path)?;
    vfs.reached(&format!("{name}:renamed"));
    vfs.sync_dir(dir)
}

/// The file system of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Vfs for Disk {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(bytes_max + 1).read_to_end(&mut bytes)?;
        within(&bytes, bytes_max)?;
        Ok(Some(bytes))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o640);
        file.open(path)?.write_all(bytes)
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(0o640);
        file.open(path)?.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o750).create(dir)
    }

    fn reached(&self, point: &str) {
        crash::point(point);
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_file() {
                files.push((entry.path(), meta.len()));
            }
        }
        files.sort();
        Ok(files)
    }
}

fn within(bytes: &[u8], bytes_max: u64) -> io::Result<()> {
    match bytes.len() as u64 <= bytes_max {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {bytes_max} bytes"),
        )),
    }
}

#[cfg(test)]
mod tests;
