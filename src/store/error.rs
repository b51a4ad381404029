//! What can go wrong in the store.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use super::{JobId, JobState};

/// Why an operation failed. Cheap to clone: one failed transaction answers many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No room for another job; the store itself is well.
    #[error("job store is full: {0}")]
    Full(#[from] Full),
    /// Another process holds the file.
    #[error(
        "{path} is in use by another process: only one orinoco daemon may run on this directory"
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The file was written by a newer Orinoco; it was not touched.
    #[error(
        "{path} has format {found}, this version knows up to {known}: install the newer version again, \
         or move the file away (its jobs are then lost)"
    )]
    NewerFormat {
        /// The database.
        path: PathBuf,
        /// Its format: ours, or redb's where `what` says so.
        found: u64,
        /// Newest known.
        known: u64,
    },
    /// A job of this name is stored.
    #[error("job {job} is already stored")]
    Exists {
        /// Its name.
        job: JobId,
        /// Digest of what is stored: the same digest means a repeated request.
        digest: [u8; 32],
        /// Where it stands.
        state: JobState,
    },
    /// No such job.
    #[error("job {0} is not stored")]
    Unknown(JobId),
    /// The job has ended otherwise.
    #[error("job {0} has already ended")]
    AlreadyFinished(JobId),
    /// The job has not ended.
    #[error("job {0} has not ended")]
    NotFinished(JobId),
    /// The disk failed, or the file is damaged.
    #[error("failed to {doing}: {source}")]
    Disk {
        /// What was being done, and where.
        doing: String,
        /// The cause.
        source: Arc<dyn Error + Send + Sync>,
    },
    /// The store was closed.
    #[error("job store is closed")]
    Closed,
}

impl StoreError {
    pub(super) fn disk(
        doing: impl Into<String>,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        StoreError::Disk {
            doing: doing.into(),
            source: Arc::new(source),
        }
    }
}

/// Which bound was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Too many jobs wait.
    #[error("{limit} jobs are pending, the most that are allowed")]
    PendingJobs {
        /// [`pending_jobs_max`](super::StoreConfig::pending_jobs_max).
        limit: u64,
    },
    /// Too many bytes wait.
    #[error("{wanted} bytes wanted, pending jobs hold {used} of {limit}")]
    PendingBytes {
        /// What the job would take.
        wanted: u64,
        /// In use.
        used: u64,
        /// [`pending_bytes_max`](super::StoreConfig::pending_bytes_max).
        limit: u64,
    },
    /// Finals pile up because the broker does not take them.
    #[error("finals that the broker has not taken hold {used} bytes of {limit}")]
    Undelivered {
        /// In use.
        used: u64,
        /// [`final_bytes_max`](super::StoreConfig::final_bytes_max).
        limit: u64,
    },
    /// The filesystem is nearly full.
    #[error(
        "{free} bytes are free on the disk, {reserve} are kept for the answers of accepted jobs"
    )]
    Reserve {
        /// Free for this process.
        free: u64,
        /// [`reserve_bytes`](super::StoreConfig::reserve_bytes).
        reserve: u64,
    },
    /// The file may not grow further.
    #[error("the file has reached its limit of {limit} bytes")]
    File {
        /// [`file_bytes_max`](super::StoreConfig::file_bytes_max).
        limit: u64,
    },
    /// The disk refused a write for want of space or quota.
    #[error("no space left on the disk")]
    Disk,
}
