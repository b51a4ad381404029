//! The files of releases on this board, by their SHA-256.
//!
//! ```text
//! blobs/<sha256>            whole, verified, synced, 0444; never written again
//! partial/<sha256>          being fetched            (fetch::partial)
//! partial/<sha256>.have     which pieces are there
//! partial/<sha256>.sources  how the sources did
//! quarantine/<sha256>       was whole once, and its disk has lost some of it since
//! ```
//!
//! Owns these three directories: what is in them, how much that is, what goes. Each file is named after the
//! bytes that it shall hold, so a retry finds what an earlier try has left and nothing else can be taken for
//! it. A name in `blobs` is a promise: it appears by rename when everything in it is on the disk.
//!
//! It does not know what a release is; [`Keep`] says which digests are wanted.

mod scrub;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use super::crash;
use super::name::Digest;

pub use scrub::{Finding, Scrubbed};

/// Read and hashed at once, bytes; in between the thread looks at what else there is to do.
const HASH_CHUNK_BYTES: usize = 1 << 20;

const BLOBS: &str = "blobs";
const PARTIAL: &str = "partial";
const QUARANTINE: &str = "quarantine";

/// Files by digest below one directory.
#[derive(Debug, Clone)]
pub struct BlobStore {
    dir: PathBuf,
}

/// A file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length.
    pub bytes: u64,
}

/// What may not be deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keep {
    /// Files of the release in service, of the one before it, and of pinned ones.
    pub blobs: BTreeSet<Digest>,
    /// Files of the deployment that is under way, whole or in part.
    pub deployment: BTreeSet<Digest>,
}

/// What was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Whole files.
    pub blobs: Vec<Digest>,
    /// Bytes on the disk that came back, those of partial files included.
    pub bytes: u64,
}

/// How much the store takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of whole files, on the disk.
    pub blob_bytes: u64,
    /// Of partial and quarantined ones, including space that is set aside for the rest.
    pub partial_bytes: u64,
    /// What may still be written to that disk.
    pub free_bytes: u64,
}

impl Keep {
    /// Whether a whole file stays.
    pub fn keeps_blob(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest) || self.deployment.contains(digest)
    }

    /// Whether the pieces of a file stay: those that a deployment fetches, and those that a repair needs.
    pub fn keeps_partial(&self, digest: &Digest) -> bool {
        self.keeps_blob(digest)
    }
}

impl BlobStore {
    /// Opens the store, and makes its directories where there are none.
    ///
    /// # Errors
    /// They cannot be made, or synced.
    pub fn open(dir: &Path) -> io::Result<Self> {
        for name in [BLOBS, PARTIAL, QUARANTINE] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(dir.join(name))?;
        }
        sync_dir(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Where a whole file is, or would be.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(BLOBS).join(digest.to_string())
    }

    /// Whether a whole file is there. Of its bytes only the length is looked at; [`Self::scrub`] reads them.
    pub fn has(&self, digest: &Digest, bytes: u64) -> bool {
        let found = fs::symlink_metadata(self.path(digest));
        found.is_ok_and(|found| found.is_file() && found.len() == bytes)
    }

    /// All whole files, in the order of their digests.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<Blob>> {
        self.listed(BLOBS)
    }

    /// Files that were found damaged and wait for repair. Fetching one takes the pieces of it that are sound.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn quarantined(&self) -> io::Result<Vec<Blob>> {
        self.listed(QUARANTINE)
    }

    fn listed(&self, dir: &str) -> io::Result<Vec<Blob>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join(dir))? {
            let entry = entry?;
            // What has no name of ours is not ours: it is neither counted nor deleted.
            let Some(digest) = named(&entry.file_name(), "") else {
                continue;
            };
            let meta = entry.metadata()?;
            if meta.is_file() {
                found.push(Blob {
                    digest,
                    bytes: meta.len(),
                });
            }
        }
        found.sort();
        Ok(found)
    }

    /// Bytes held and bytes free.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn usage(&self) -> io::Result<Usage> {
        let on_disk = |dir: &str| -> io::Result<u64> {
            let mut bytes = 0;
            for entry in fs::read_dir(self.dir.join(dir))? {
                bytes += entry?.metadata()?.blocks() * 512;
            }
            Ok(bytes)
        };
        Ok(Usage {
            blob_bytes: on_disk(BLOBS)?,
            partial_bytes: on_disk(PARTIAL)? + on_disk(QUARANTINE)?,
            free_bytes: self.free_bytes()?,
        })
    }

    /// What this process may still write to the disk of the store.
    ///
    /// # Errors
    /// statvfs(3) fails.
    pub fn free_bytes(&self) -> io::Result<u64> {
        crate::disk::free_bytes(&self.dir)
    }

    /// Deletes what `keep` does not name. Call it when no fetch runs.
    ///
    /// # Errors
    /// A directory cannot be read, or a file not be deleted; what was deleted before that stays so.
    pub fn sweep(&self, keep: &Keep) -> io::Result<Swept> {
        let mut swept = Swept::default();
        for dir in [BLOBS, PARTIAL, QUARANTINE] {
            let path = self.dir.join(dir);
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let name = entry.file_name();
                let suffixes = if dir == PARTIAL {
                    PARTIAL_SUFFIXES
                } else {
                    &[""]
                };
                let Some(digest) = suffixes.iter().find_map(|suffix| named(&name, suffix)) else {
                    continue;
                };
                let is_kept = match dir {
                    BLOBS => keep.keeps_blob(&digest),
                    _ => keep.keeps_partial(&digest),
                };
                if is_kept {
                    continue;
                }
                swept.bytes += entry.metadata()?.blocks() * 512;
                fs::remove_file(entry.path())?;
                if dir == BLOBS {
                    swept.blobs.push(digest);
                }
            }
            sync_dir(&path)?;
        }
        swept.blobs.sort();
        if swept.bytes > 0 {
            info!(
                n_blobs = swept.blobs.len(),
                bytes = swept.bytes,
                "model files that nobody needs were deleted"
            );
        }
        Ok(swept)
    }

    /// Takes a damaged file out of service. Whoever has it open keeps it.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn quarantine(&self, digest: &Digest) -> io::Result<()> {
        let to = self.dir.join(QUARANTINE).join(digest.to_string());
        fs::rename(self.path(digest), to)?;
        sync_dir(&self.dir.join(QUARANTINE))?;
        sync_dir(&self.dir.join(BLOBS))?;
        warn!(%digest, "a model file is damaged and was set aside");
        Ok(())
    }

    pub(super) fn partial_path(&self, digest: &Digest, suffix: &str) -> PathBuf {
        self.dir.join(PARTIAL).join(format!("{digest}{suffix}"))
    }

    /// Moves a quarantined file to where it can be repaired, if there is one and nothing stands there.
    pub(super) fn reclaim(&self, digest: &Digest) -> io::Result<()> {
        let from = self.dir.join(QUARANTINE).join(digest.to_string());
        let to = self.partial_path(digest, "");
        if from.try_exists()? && !to.try_exists()? {
            fs::set_permissions(&from, Permissions::from_mode(0o640))?;
            fs::rename(&from, &to)?;
            sync_dir(&self.dir.join(PARTIAL))?;
            sync_dir(&self.dir.join(QUARANTINE))?;
        }
        Ok(())
    }

    /// Makes a verified partial file a blob: read-only, on the disk, then under its name.
    pub(super) fn admit(&self, digest: &Digest, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_all()?;
        crash::point("blob:sealed");
        fs::rename(self.partial_path(digest, ""), self.path(digest))?;
        crash::point("blob:renamed");
        sync_dir(&self.dir.join(BLOBS))?;
        crash::point("blob:synced");
        for suffix in &PARTIAL_SUFFIXES[1..] {
            remove_if_there(&self.partial_path(digest, suffix))?;
        }
        sync_dir(&self.dir.join(PARTIAL))
    }

    /// Deletes all of a file that is being fetched.
    pub(super) fn discard(&self, digest: &Digest) -> io::Result<()> {
        for suffix in PARTIAL_SUFFIXES {
            remove_if_there(&self.partial_path(digest, suffix))?;
        }
        sync_dir(&self.dir.join(PARTIAL))
    }

    pub(super) fn sync_partial(&self) -> io::Result<()> {
        sync_dir(&self.dir.join(PARTIAL))
    }
}

/// The bitmap of a partial file.
pub(super) const HAVE_SUFFIX: &str = ".have";
/// How the sources of a partial file did.
pub(super) const SOURCES_SUFFIX: &str = ".sources";
/// The same while it is written.
pub(super) const SOURCES_NEW_SUFFIX: &str = ".sources.new";
const PARTIAL_SUFFIXES: &[&str] = &["", HAVE_SUFFIX, SOURCES_SUFFIX, SOURCES_NEW_SUFFIX];

fn named(name: &std::ffi::OsStr, suffix: &str) -> Option<Digest> {
    let text = name.to_str()?.strip_suffix(suffix)?;
    Digest::from_hex(text).ok()
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// SHA-256 of the first `bytes` of a file, and of fewer when there are fewer. `hashed` is told of each chunk and
/// says how long to wait before the next one; other tasks of this thread run in between.
///
/// # Errors
/// The disk cannot read it.
pub async fn digest_of(
    file: &File,
    bytes: u64,
    mut hashed: impl FnMut(u64) -> std::time::Duration,
) -> io::Result<Digest> {
    let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK_BYTES];
    let mut from = 0;
    while from < bytes {
        let len = usize::try_from(bytes - from)
            .map_or(HASH_CHUNK_BYTES, |rest| rest.min(HASH_CHUNK_BYTES));
        let n = file.read_at(&mut chunk[..len], from)?;
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
        from += n as u64;
        let pause = hashed(n as u64);
        match pause.is_zero() {
            true => tokio::task::yield_now().await,
            false => tokio::time::sleep(pause).await,
        }
    }
    Ok(Digest(hash.finalize().into()))
}

/// The pages of a file need not stay in memory: it was written or looked through, not used.
pub(super) fn forget_pages(file: &File, offset: u64, bytes: u64) {
    if let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) {
        // Advice: what the kernel does with it is its own business.
        let _ = posix_fadvise(file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    /// Files of digests 0 to 9 in each directory that has them.
    fn store_with(blobs: &[u8], partials: &[u8], rotten: &[u8]) -> (tempfile::TempDir, BlobStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        for n in blobs {
            fs::write(store.path(&digest(*n)), "x").unwrap();
        }
        for n in partials {
            for suffix in PARTIAL_SUFFIXES {
                fs::write(store.partial_path(&digest(*n), suffix), "x").unwrap();
            }
        }
        for n in rotten {
            fs::write(
                dir.path().join(QUARANTINE).join(digest(*n).to_string()),
                "x",
            )
            .unwrap();
        }
        (dir, store)
    }

    #[test]
    fn foreign_files_are_neither_listed_nor_deleted() {
        let (dir, store) = store_with(&[1], &[], &[]);
        fs::write(dir.path().join("blobs/README"), "of an operator").unwrap();
        store.sweep(&Keep::default()).unwrap();
        assert_eq!(store.list().unwrap(), []);
        assert!(dir.path().join("blobs/README").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever lies there: what is in service, before it, pinned or under way stays, everything else goes.
        #[test]
        fn garbage_collection_never_takes_what_is_kept_and_leaves_nothing_else(
            blobs in proptest::collection::btree_set(0u8..10, 0..8),
            partials in proptest::collection::btree_set(0u8..10, 0..8),
            rotten in proptest::collection::btree_set(0u8..10, 0..8),
            kept in proptest::collection::btree_set(0u8..10, 0..4),
            under_way in proptest::collection::btree_set(0u8..10, 0..4),
        ) {
            let list = |set: &BTreeSet<u8>| set.iter().copied().collect::<Vec<_>>();
            let (dir, store) = store_with(&list(&blobs), &list(&partials), &list(&rotten));
            let keep = Keep {
                blobs: kept.iter().copied().map(digest).collect(),
                deployment: under_way.iter().copied().map(digest).collect(),
            };
            let swept = store.sweep(&keep).unwrap();
            let stays = |n: &u8| kept.contains(n) || under_way.contains(n);
            for n in 0u8..10 {
                prop_assert_eq!(store.path(&digest(n)).exists(), blobs.contains(&n) && stays(&n));
                for suffix in PARTIAL_SUFFIXES {
                    let there = store.partial_path(&digest(n), suffix).exists();
                    prop_assert_eq!(there, partials.contains(&n) && stays(&n));
                }
                let there = dir.path().join(QUARANTINE).join(digest(n).to_string()).exists();
                prop_assert_eq!(there, rotten.contains(&n) && stays(&n));
            }
            let gone: Vec<Digest> = blobs.iter().filter(|n| !stays(n)).copied().map(digest).collect();
            prop_assert_eq!(swept.blobs, gone);
        }
    }
}
