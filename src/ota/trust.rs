//! What may be believed: the client of a TUF repository, and everything that keeps it honest on a board that
//! loses power, has no clock and is offline for months.
//!
//! ```text
//! time ── TrustedNow ──┐
//!                      ▼
//! MetadataSource ──▶ Client ── signatures, versions, expiry: sigstore-tuf, with ring as its cryptography
//!  (any; hostile)      │
//!                      ├─▶ floor     two slots: versions that are never gone below
//!                      └─▶ store     verified metadata, kept for the next time
//! ```
//!
//! [`Trust`] is the seam: the rest of the product knows neither TUF nor the library. A target is named to it
//! only after root, timestamp, snapshot and targets were verified, are not below the floor, and both floor and
//! store are on the disk. What a source sends is bounded before it is read, and checked before it is kept.
//!
//! Nothing here opens a socket, waits, or reads the clock: sources and [`TrustedNow`] come from the caller.
//! docs/ota/trust.md says what this protects against, and what it cannot.

mod client;
pub mod clock;
mod crypto;
mod exchange;
mod floor;
pub mod root;
mod store;
pub mod time;

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::{Digest, Reason, TargetName};

pub use client::{Client, Place};
pub use time::{Clock, TrustedNow};

/// Longest files that are read, bytes.
pub mod limit {
    /// Of the root role.
    pub const ROOT_BYTES: u64 = 64 << 10;
    /// Of the timestamp role.
    pub const TIMESTAMP_BYTES: u64 = 16 << 10;
    /// Of the snapshot role.
    pub const SNAPSHOT_BYTES: u64 = 64 << 10;
    /// Of the targets role.
    pub const TARGETS_BYTES: u64 = 4 << 20;
    /// How many newer roots are followed in one refresh; the next one goes on from there.
    pub const ROOT_ROTATIONS: u32 = 32;
}

/// Where metadata and small targets come from: a server, a stick, a folder. Not trusted with anything.
pub trait MetadataSource {
    /// A file of the repository, `metadata/7.snapshot.json` or `targets/<sha256>.catalog.json`, or `None` if it
    /// certainly is not there, as a server says with 404.
    ///
    /// # Errors
    /// Anything else that kept the file from being read, and a file of more than `limit_bytes`.
    fn get(&mut self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError>;
}

/// Why a source did not answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It cannot be reached, or broke off.
    #[error("{file}: {why}")]
    Unreachable {
        /// The file wanted.
        file: String,
        /// What happened.
        why: String,
    },
    /// It sends too slowly, or nothing any more.
    #[error("{file}: nothing came for {seconds} s")]
    Stalled {
        /// The file wanted.
        file: String,
        /// How long nothing came.
        seconds: u64,
    },
    /// It sends more than such a file ever has.
    #[error("{file}: more than {limit_bytes} bytes")]
    TooLong {
        /// The file wanted.
        file: String,
        /// The most that is read.
        limit_bytes: u64,
    },
}

/// The versions of the four roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versions {
    /// Root.
    pub root: u64,
    /// Timestamp.
    pub timestamp: u64,
    /// Snapshot.
    pub snapshot: u64,
    /// Targets.
    pub targets: u64,
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            root,
            timestamp,
            snapshot,
            targets,
        } = self;
        write!(
            f,
            "root {root}, timestamp {timestamp}, snapshot {snapshot}, targets {targets}"
        )
    }
}

/// Whether what is trusted is fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Freshness {
    /// Not expired.
    Fresh,
    /// Expired, and accepted since a person stood beside the device.
    ExpiredAccepted,
    /// Accepted when it was fresh, and expired since.
    Expired,
}

/// What is trusted at present, for reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Versions of the roles.
    pub versions: Versions,
    /// When the newest of them was signed, seconds since 1970; `None` where a publisher does not say.
    pub issued_s: Option<u64>,
    /// Whole days since then.
    pub age_days: Option<u64>,
    /// When the first of the four roles expires, seconds since 1970.
    pub expires_s: u64,
    /// Whether it has expired.
    pub freshness: Freshness,
}

/// A file that is genuine: its length and digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetInfo {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256.
    pub digest: Digest,
}

/// What is genuine; the seam between fleet updates and TUF.
pub trait Trust {
    /// Brings trust up to what a source has. On success everything verified is on the disk.
    ///
    /// # Errors
    /// Why what the source has is not trusted, or could not be kept. Then no target is named until a refresh
    /// has succeeded; what was trusted before is still on the disk.
    fn refresh(
        &mut self,
        source: &mut dyn MetadataSource,
        now: TrustedNow,
    ) -> Result<Versions, TrustError>;

    /// What a target has to be, or `None` if there is none of that name.
    ///
    /// A deployment that began with one `now` asks with the same one to its end: it is not cut off by an expiry
    /// during a download of hours, nor by a clock that steps.
    ///
    /// # Errors
    /// Nothing is trusted yet, or it has expired.
    fn target(
        &mut self,
        name: &TargetName,
        now: TrustedNow,
    ) -> Result<Option<TargetInfo>, TrustError>;

    /// What is trusted, seen from `now`; `None` before the first success.
    fn standing(&self, now: TrustedNow) -> Option<Standing>;
}

/// Why nothing is trusted.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A role is older than it may be.
    #[error("{role} expired at {expires}")]
    Expired {
        /// `root`, `timestamp` …
        role: String,
        /// Its expiry, e.g. `2026-11-21T13:30:00Z`.
        expires: String,
    },
    /// Not signed by enough of the right keys, or not what the signed parts say, or not metadata at all.
    #[error("not trusted: {0}")]
    Untrusted(String),
    /// Older than what was trusted before.
    #[error("{role} {found} is older than {known}, which was trusted before")]
    Rollback {
        /// `root`, `timestamp` …
        role: String,
        /// The version offered.
        found: u64,
        /// The version known.
        known: u64,
    },
    /// Neither slot of the floor is readable though there is metadata.
    #[error("neither slot of the version floor is readable: {0}")]
    FloorCorrupt(String),
    /// The files of trust cannot be read or written.
    #[error("{what}: {source}")]
    Store {
        /// What was being done.
        what: String,
        /// What the system says.
        source: io::Error,
    },
    /// Another process has the files of trust.
    #[error("{0} is held by another process")]
    Busy(String),
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The source lacks a file that it must have.
    #[error("the source has no {0}")]
    Missing(String),
    /// No refresh has succeeded yet, or the last one failed.
    #[error("nothing is trusted before a refresh has succeeded")]
    NotRefreshed,
}

impl TrustError {
    /// The word for it in states and reports.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Expired { .. } => Reason::MetadataExpired,
            Self::Untrusted(_) => Reason::Signature,
            Self::Rollback { .. } => Reason::RollbackRefused,
            Self::FloorCorrupt(_) => Reason::FloorCorrupt,
            Self::Store { .. } | Self::Busy(_) => Reason::TrustStore,
            Self::Source(SourceError::Stalled { .. }) => Reason::Stalled,
            // More than any such file has is no genuine file.
            Self::Source(SourceError::TooLong { .. }) => Reason::Signature,
            Self::Source(SourceError::Unreachable { .. })
            | Self::Missing(_)
            | Self::NotRefreshed => Reason::SourceUnreachable,
        }
    }
}

/// Reads a small target: catalogue, manifest, policy, table of pieces.
///
/// # Errors
/// The source lacks it or fails, it is longer than `limit_bytes`, or is not what was signed.
pub fn read_target(
    source: &mut dyn MetadataSource,
    name: &TargetName,
    info: &TargetInfo,
    limit_bytes: u64,
) -> Result<Vec<u8>, TrustError> {
    let file = format!("targets/{}", name.file_name(&info.digest));
    if info.bytes > limit_bytes {
        return Err(SourceError::TooLong { file, limit_bytes }.into());
    }
    let bytes = source
        .get(&file, info.bytes)?
        .ok_or_else(|| TrustError::Missing(file.clone()))?;
    let found = Digest::of(&bytes);
    match bytes.len() as u64 == info.bytes && found == info.digest {
        true => Ok(bytes),
        false => Err(TrustError::Untrusted(format!(
            "{file}: {} bytes with SHA-256 {found}, signed are {} bytes",
            bytes.len(),
            info.bytes
        ))),
    }
}

#[cfg(test)]
mod tests;
