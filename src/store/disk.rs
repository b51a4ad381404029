//! Where the bytes lie: the seam under redb, so that tests can cut the power at any write.
//!
//! [`FileDisk`] is the real one. [`Guarded`] wraps whatever backend is used: it caps the file's length,
//! remembers that the disk was full (redb latches the first error and reports later ones without their
//! cause), measures fsync, and keeps redb from closing the file cleanly (see [`Met::closing`]).

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use tracing::warn;

use super::StoreTimings;

/// Bytes of redb's header that [`Disk::head`] returns: the file header and both commit slots.
pub(super) const HEAD_BYTES: usize = 320;

/// Damaged databases that are kept; they hold prompts and space.
const SET_ASIDE_MAX: usize = 2;

const FILE: &str = "jobs.redb";
const ASIDE: &str = "jobs.redb.corrupt-";

/// A place for one database.
pub(super) trait Disk: Send {
    /// Name for messages.
    fn path(&self) -> PathBuf;
    /// First [`HEAD_BYTES`] bytes, fewer when there are fewer.
    fn head(&self) -> io::Result<Vec<u8>>;
    /// Opens, or creates empty.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;
    /// Bytes that this process may still write to the filesystem.
    fn free_bytes(&self) -> io::Result<u64>;
    /// Moves the database out of the way; nobody has it open. Returns its new name.
    fn set_aside(&self, unix_s: u64) -> io::Result<PathBuf>;
    /// Length that the database may not exceed to take jobs.
    fn bytes_max(&self) -> u64;
}

/// A file in a directory.
#[derive(Debug)]
pub(super) struct FileDisk {
    dir: PathBuf,
    bytes_max: u64,
}

impl FileDisk {
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        FileDisk { dir, bytes_max }
    }
}

impl Disk for FileDisk {
    fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    fn head(&self) -> io::Result<Vec<u8>> {
        let mut head = Vec::new();
        match File::open(self.path()) {
            Ok(file) => {
                file.take(HEAD_BYTES as u64).read_to_end(&mut head)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(head)
    }

    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        private_dir(&self.dir)?;
        let path = self.path();
        let created = !path.try_exists()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        // The mode above is for a new file, and the umask may only take away from it.
        file.set_permissions(Permissions::from_mode(0o600))?;
        if created {
            // Without this a power cut may take the file's name together with acknowledged jobs.
            sync_dir(&self.dir)?;
        }
        let backend = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Box::new(backend))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        crate::disk::free_bytes(&self.dir)
    }

    fn set_aside(&self, unix_s: u64) -> io::Result<PathBuf> {
        let mut aside = self.dir.join(format!("{ASIDE}{unix_s}"));
        // A clock that stands still must not overwrite the first damaged file by the second.
        let mut n = 1;
        while aside.try_exists()? {
            aside = self.dir.join(format!("{ASIDE}{unix_s}-{n}"));
            n += 1;
        }
        fs::rename(self.path(), &aside)?;
        if let Err(error) = forget_oldest_aside(&self.dir) {
            warn!(%error, "old damaged job stores were not deleted");
        }
        sync_dir(&self.dir)?;
        Ok(aside)
    }

    fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
}

fn private_dir(dir: &Path) -> io::Result<()> {
    match fs::metadata(dir) {
        Ok(meta) if !meta.is_dir() => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a directory", dir.display()),
        )),
        Ok(meta) => {
            // Not changed: the directory may be shared on purpose, and the file is 0600 anyway. The group may
            // look: under systemd that is the broker's user, who reads the accounts.
            if meta.mode() & 0o027 != 0 {
                warn!(dir = %dir.display(), mode = format!("{:o}", meta.mode() & 0o777),
                    "job store directory is open to other users, 0750 at most is expected");
            }
            Ok(())
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            match dir.parent() {
                Some(parent) if parent != Path::new("") => sync_dir(parent),
                _ => Ok(()),
            }
        }
        Err(e) => Err(e),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn forget_oldest_aside(dir: &Path) -> io::Result<()> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(ASIDE) {
            // Age by the file's change, which the rename has just set, not by a name from a clock
            // that may have been wrong.
            let meta = entry.metadata()?;
            found.push(((meta.ctime(), meta.ctime_nsec()), entry.path()));
        }
    }
    found.sort();
    let surplus = found.len().saturating_sub(SET_ASIDE_MAX);
    for (_, path) in found.into_iter().take(surplus) {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Counts of one store, shared with its handles.
#[derive(Debug, Default)]
pub(super) struct Meter {
    commits: AtomicU64,
    syncs: AtomicU64,
    sync_ns: AtomicU64,
    total_ns: AtomicU64,
}

impl Meter {
    pub(super) fn transaction(&self, took: Duration, committed: bool) {
        self.commits
            .fetch_add(u64::from(committed), Ordering::Relaxed);
        self.total_ns
            .fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(super) fn timings(&self) -> StoreTimings {
        StoreTimings {
            commits: self.commits.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
            sync: Duration::from_nanos(self.sync_ns.load(Ordering::Relaxed)),
            total: Duration::from_nanos(self.total_ns.load(Ordering::Relaxed)),
        }
    }
}

/// What a backend has met since it was opened.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// The disk or a quota was full.
    pub(super) no_space: AtomicBool,
    /// The file wanted to outgrow its bound.
    pub(super) over_bound: AtomicBool,
    /// The running transaction takes no jobs: the finals of accepted ones may outgrow the bound.
    pub(super) unbounded: AtomicBool,
    /// Set before the database is dropped: nothing is written any more.
    ///
    /// redb ends a file cleanly by writing its allocator state, and the next open trusts it without
    /// looking at checksums: redb 4.4 panics when a byte of it is damaged, for ever, at every start.
    /// A file that was not closed cleanly is verified in full and rebuilt from its trees, which takes
    /// milliseconds at our sizes, and the way after a power cut is then the way of every start.
    pub(super) closing: AtomicBool,
}

/// A backend under observation.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) inner: Box<dyn StorageBackend>,
    pub(super) bytes_max: u64,
    pub(super) met: Arc<Met>,
    pub(super) meter: Arc<Meter>,
}

impl Guarded {
    fn unless_closing(&self) -> io::Result<()> {
        match self.met.closing.load(Ordering::Relaxed) {
            true => Err(io::Error::other("the job store is closing")),
            false => Ok(()),
        }
    }

    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|e| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            if matches!(e.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
                self.met.no_space.store(true, Ordering::Relaxed);
            }
        })
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out).map_err(|e| {
            // A sector that cannot be read today will not be readable tomorrow. A failed write says
            // nothing about what is stored.
            match e.raw_os_error() == Some(Errno::EIO as i32) {
                true => io::Error::new(io::ErrorKind::InvalidData, e),
                false => e,
            }
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.unless_closing()?;
        let bounded = !self.met.unbounded.load(Ordering::Relaxed);
        if bounded && len > self.bytes_max && len > self.inner.len()? {
            self.met.over_bound.store(true, Ordering::Relaxed);
            return Err(io::Error::other(format!(
                "the file would grow to {len} bytes, at most {} are allowed",
                self.bytes_max
            )));
        }
        self.watch(self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.unless_closing()?;
        let start = Instant::now();
        let result = self.watch(self.inner.sync_data());
        self.meter.syncs.fetch_add(1, Ordering::Relaxed);
        self.meter
            .sync_ns
            .fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.unless_closing()?;
        self.watch(self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
