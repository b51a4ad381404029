//! `orinoco models add`: judge, copy, verify, and only then let the file in.
//!
//! ```text
//!   preflight the source → room on the disk? → copy to .NAME.gguf.part, SHA-256 on the way → fsync
//!     → preflight the copy → record (NAME.gguf.json) → rename → fsync the directory
//! ```
//!
//! The rename is the moment at which the model exists; whatever happens before it leaves the catalogue as
//! it was, and the next [`add`] clears a part that was left. A lock keeps two of them apart.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Record;
use super::gguf::{GgufError, Header, preflight};

/// Bytes that stay free on the disk beyond the model: the job store and the journal live there too.
const RESERVE_BYTES: u64 = 64 << 20;

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

const LOCK: &str = ".orinoco-models.lock";

/// What happens when a model of that name is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExisting {
    /// [`AddError::Exists`].
    Refuse,
    /// The new file takes its place.
    Replace,
}

/// What was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its file.
    pub path: PathBuf,
    /// What it is.
    pub header: Header,
    /// What was noted beside it.
    pub record: Record,
}

/// Why a model was not let in. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The file, or its copy, does not pass the preflight.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A model of that name is there.
    #[error(
        "{path} exists; --replace puts the new file in its place, --name gives it another name"
    )]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// Not enough room.
    #[error(
        "{dir} has {free_bytes} bytes free, the model needs {needed_bytes} ({RESERVE_BYTES} of them as a reserve)"
    )]
    NoRoom {
        /// The directory for models.
        dir: PathBuf,
        /// Free for us.
        free_bytes: u64,
        /// Length of the file and the reserve.
        needed_bytes: u64,
    },
    /// Somebody else adds a model now.
    #[error("another `orinoco models add` works in {dir}; try again when it is done")]
    Busy {
        /// The directory for models.
        dir: PathBuf,
    },
    /// The source shrank or grew while it was copied.
    #[error("{path} changed while it was copied: {copied} bytes of {expected}")]
    Changed {
        /// The source.
        path: PathBuf,
        /// Bytes read.
        copied: u64,
        /// Bytes it had at first.
        expected: u64,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Copies the model file `source` into `dir` as the model `name`, a valid name. `progress` hears of the
/// bytes copied.
///
/// # Errors
/// [`AddError`]; the directory is then as before.
pub fn add(
    source: &Path,
    dir: &Path,
    name: &str,
    on_existing: OnExisting,
    mut progress: impl FnMut(u64),
) -> Result<Added, AddError> {
    let header = preflight(source)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
        .map_err(at(dir))?;
    let _lock = lock(dir)?;
    let target = dir.join(format!("{name}.gguf"));
    if on_existing == OnExisting::Refuse && target.symlink_metadata().is_ok() {
        return Err(AddError::Exists { path: target });
    }
    check_room(dir, header.file_bytes)?;

    let part = Part::create(dir.join(format!(".{name}.gguf.part")))?;
    let sha256 = copy(source, &part, header.file_bytes, &mut progress)?;
    part.file.sync_all().map_err(at(&part.path))?;
    // The source may have become another file between judgement and copy; the copy is what counts.
    let header = preflight(&part.path)?;
    let record = Record {
        origin: "local".into(),
        signed: false,
        sha256,
        file_bytes: header.file_bytes,
    };
    write_record(&record, &target)?;
    part.become_file(&target)?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(at(dir))?;
    Ok(Added {
        path: target,
        header,
        record,
    })
}

/// A file in the making, removed unless it becomes the model.
struct Part {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl Part {
    fn create(path: PathBuf) -> Result<Self, AddError> {
        // The lock is ours, so a part that is there belongs to nobody.
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&path)(e)),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .map_err(at(&path))?;
        Ok(Self {
            path,
            file,
            is_kept: false,
        })
    }

    fn become_file(mut self, target: &Path) -> Result<(), AddError> {
        std::fs::rename(&self.path, target).map_err(at(target))?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_kept {
            // If it stays, the next one removes it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Copies exactly `expected` bytes; returns their SHA-256 in hexadecimal.
fn copy(
    source: &Path,
    part: &Part,
    expected: u64,
    progress: &mut impl FnMut(u64),
) -> Result<String, AddError> {
    // One byte more than expected, to notice a file that grows.
    let mut from = File::open(source)
        .map_err(at(source))?
        .take(expected.saturating_add(1));
    let mut to = &part.file;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut copied = 0_u64;
    loop {
        let n = match from.read(&mut piece) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(at(source)(e)),
        };
        hash.update(&piece[..n]);
        to.write_all(&piece[..n]).map_err(at(&part.path))?;
        copied += n as u64;
        progress(copied);
    }
    match copied == expected {
        true => Ok(hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()),
        false => Err(AddError::Changed {
            path: source.to_owned(),
            copied,
            expected,
        }),
    }
}

fn write_record(record: &Record, target: &Path) -> Result<(), AddError> {
    let path = Record::path(target);
    let part = Part::create(path.with_extension("json.part"))?;
    let text = serde_json::to_vec_pretty(record).expect("a record is plain JSON");
    (&part.file)
        .write_all(&text)
        .and_then(|()| part.file.sync_all())
        .map_err(at(&part.path))?;
    part.become_file(&path)
}

/// Held until the file is dropped.
fn lock(dir: &Path) -> Result<File, AddError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(at(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AddError::Busy {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(at(&path)(source)),
    }
}

fn check_room(dir: &Path, file_bytes: u64) -> Result<(), AddError> {
    let free_bytes = crate::disk::free_bytes(dir).map_err(at(dir))?;
    let needed_bytes = file_bytes.saturating_add(RESERVE_BYTES);
    match free_bytes >= needed_bytes {
        true => Ok(()),
        false => Err(AddError::NoRoom {
            dir: dir.to_owned(),
            free_bytes,
            needed_bytes,
        }),
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> AddError {
    let path = path.to_owned();
    move |source| AddError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests;
