//! One redb file: opening it, and reading redb's errors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Builder, Database, Durability, WriteTransaction};

use super::disk::{Disk, Guarded, Met, Meter};
use super::{Full, StoreError};

/// Newest file format of the redb in use; redb calls a newer one corrupt, and we must not move it aside.
const REDB_FORMAT_MAX: u8 = 3;
const REDB_MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";
/// Where the two commit slots of a redb file begin, each with its format version.
const REDB_SLOTS: [usize; 2] = [64, 192];

/// An open database. Dropping it writes nothing.
pub(super) struct Opened {
    pub(super) database: Database,
    pub(super) met: Arc<Met>,
}

/// Why a database could not be opened.
pub(super) enum Refusal {
    /// Its bytes are wrong; another file may do better.
    Damaged(String),
    Other(StoreError),
}

impl Opened {
    /// Opens and verifies, or creates.
    pub(super) fn open(
        disk: &dyn Disk,
        cache_bytes: usize,
        meter: &Arc<Meter>,
    ) -> Result<Self, Refusal> {
        let failed = |e| {
            let doing = format!("open {}", disk.path().display());
            Refusal::Other(StoreError::disk(doing, e))
        };
        if let Some(found) = newer_redb(&disk.head().map_err(failed)?) {
            return Err(Refusal::Other(StoreError::NewerFormat {
                path: disk.path(),
                found: found.into(),
                known: REDB_FORMAT_MAX.into(),
            }));
        }
        let met = Arc::new(Met::default());
        // Recovery takes no jobs.
        met.unbounded.store(true, Ordering::Relaxed);
        let backend = Guarded {
            inner: disk.open().map_err(failed)?,
            bytes_max: disk.bytes_max(),
            met: met.clone(),
            meter: meter.clone(),
        };
        // The file was never closed cleanly, so this verifies every checksum.
        Builder::new()
            .set_cache_size(cache_bytes)
            .create_with_backend(backend)
            .map(|database| Opened {
                database,
                met: met.clone(),
            })
            .map_err(|e| refusal("open", e.into(), &met, disk))
    }

    /// Whether an error during recovery is the file's fault.
    pub(super) fn refusal(&self, doing: &str, e: redb::Error, disk: &dyn Disk) -> Refusal {
        refusal(doing, e, &self.met, disk)
    }

    /// The caller's error for redb's.
    pub(super) fn describe(&self, doing: &str, e: redb::Error, disk: &dyn Disk) -> StoreError {
        describe(doing, e, &self.met, disk)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.met.closing.store(true, Ordering::Relaxed);
    }
}

/// Begins a durable write transaction.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, redb::Error> {
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    Ok(txn)
}

/// The redb format of a file's head when it is newer than ours. Both slots must agree: a single one
/// is rather a damaged byte.
fn newer_redb(head: &[u8]) -> Option<u8> {
    if !head.starts_with(REDB_MAGIC) {
        return None;
    }
    let [first, second] = REDB_SLOTS.map(|slot| head.get(slot).copied().unwrap_or(0));
    (first == second && first > REDB_FORMAT_MAX).then_some(first)
}

/// Whether an error means that the bytes of the file are wrong, and in which way.
pub(super) fn damage(e: &redb::Error) -> Option<String> {
    match e {
        redb::Error::Io(io)
            if matches!(
                io.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
            ) =>
        {
            Some(io.to_string())
        }
        redb::Error::Corrupted(reason) => Some(reason.clone()),
        redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => Some(e.to_string()),
        _ => None,
    }
}

fn refusal(doing: &str, e: redb::Error, met: &Met, disk: &dyn Disk) -> Refusal {
    match damage(&e) {
        Some(reason) => Refusal::Damaged(reason),
        None => Refusal::Other(describe(doing, e, met, disk)),
    }
}

fn describe(doing: &str, e: redb::Error, met: &Met, disk: &dyn Disk) -> StoreError {
    if matches!(e, redb::Error::DatabaseAlreadyOpen) {
        StoreError::InUse { path: disk.path() }
    } else if met.over_bound.load(Ordering::Relaxed) {
        let limit = disk.bytes_max();
        Full::File { limit }.into()
    } else if met.no_space.load(Ordering::Relaxed) {
        Full::Disk.into()
    } else {
        StoreError::disk(format!("{doing} {}", disk.path().display()), e)
    }
}
