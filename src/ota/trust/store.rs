//! Verified metadata on the disk, for the next time.
//!
//! What the library verifies is collected in memory first. It is written, durably and file by file, after the
//! floor had no objection; the library's own store does not bring files to the disk, and when one cannot be
//! written only a log line says so. What is read back is verified anew each time, so a damaged file costs a
//! download, no more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sigstore_tuf::MetadataStore;

use super::{MetadataSource, SourceError, limit};
use crate::ota::vfs::{Vfs, replace};

/// Folder of the old roots, below that of the metadata.
const HISTORY: &str = "root_history";
/// Longest name of a file that is kept; those of the four roles are shorter, those of delegated roles are
/// made by strangers.
const NAME_BYTES_MAX: usize = 120;

/// The folder `metadata`, and what is not yet written to it.
#[derive(Clone)]
pub(super) struct Store {
    vfs: Arc<dyn Vfs>,
    folder: PathBuf,
    /// By name. The lock is never contended: it is there because the library wants to store by `&self`.
    verified: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
}

impl Store {
    pub(super) fn new(vfs: Arc<dyn Vfs>, folder: PathBuf) -> Self {
        Self {
            vfs,
            folder,
            verified: Arc::default(),
        }
    }

    /// Whether anything was ever written.
    pub(super) fn is_empty(&self) -> bool {
        let root = self
            .vfs
            .read(&self.folder.join("root.json"), limit::ROOT_BYTES);
        matches!(root, Ok(None))
    }

    /// Forgets what was verified and not written.
    pub(super) fn discard(&self) {
        self.verified().clear();
    }

    /// Writes what was verified: the old roots first, then the roles from the most lasting to the freshest.
    ///
    /// # Errors
    /// Of the disk, with the file.
    pub(super) fn write(&self) -> Result<(), (String, io::Error)> {
        let mut verified: Vec<_> = std::mem::take(&mut *self.verified()).into_iter().collect();
        verified.sort_by_key(|(name, _)| rank(name));
        for (name, bytes) in verified {
            let path = self.folder.join(&name);
            let same = self.vfs.read(&path, limit::TARGETS_BYTES);
            if same.is_ok_and(|found| found.is_some_and(|found| found == bytes)) {
                continue;
            }
            let folder = path.parent().unwrap_or(&self.folder);
            self.vfs
                .make_dir(folder)
                .and_then(|()| replace(&*self.vfs, &path, &bytes))
                .map_err(|error| (format!("write {}", path.display()), error))?;
        }
        Ok(())
    }

    fn verified(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        if let Some(bytes) = self.verified().get(name) {
            return Ok(Some(bytes.clone()));
        }
        self.vfs.read(&self.folder.join(name), limit::TARGETS_BYTES)
    }
}

/// Roots by their number, then what changes more and more often.
fn rank(name: &str) -> (u8, u64) {
    match name.strip_prefix("root_history/") {
        Some(root) => (0, leading_number(root).unwrap_or(0)),
        None => match name {
            "root.json" => (1, 0),
            "snapshot.json" => (3, 0),
            "timestamp.json" => (4, 0),
            _ => (2, 0),
        },
    }
}

fn leading_number(name: &str) -> Option<u64> {
    name.split_once('.')?.0.parse().ok()
}

/// Whether a file is kept. The library also stores snapshots under their number, which would pile up.
fn is_kept(name: &str) -> bool {
    let is_plain = |name: &str| {
        (1..=NAME_BYTES_MAX).contains(&name.len())
            && name.ends_with(".json")
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"%._~-".contains(&byte))
    };
    match Path::new(name).strip_prefix(HISTORY) {
        Ok(root) => root.to_str().is_some_and(is_plain),
        Err(_) => is_plain(name) && leading_number(name).is_none(),
    }
}

impl MetadataStore for Store {
    fn load(&self, name: &str) -> sigstore_tuf::Result<Option<Vec<u8>>> {
        if !is_kept(name) {
            return Ok(None);
        }
        self.read(name).map_err(|error| {
            sigstore_tuf::Error::transport_with_source(format!("read {name}"), error)
        })
    }

    fn store(&self, name: &str, bytes: &[u8]) -> sigstore_tuf::Result<()> {
        if is_kept(name) {
            self.verified().insert(name.to_owned(), bytes.to_owned());
        }
        Ok(())
    }
}

/// The stored metadata as a source, to trust again after a start what was trusted before it.
pub(super) struct Stored<'a>(pub(super) &'a Store);

impl MetadataSource for Stored<'_> {
    fn get(&mut self, file: &str, _limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let name = file.strip_prefix("metadata/").unwrap_or(file);
        let plain = match name.split_once('.') {
            Some((number, plain)) if number.parse::<u64>().is_ok() => plain,
            _ => name,
        };
        // The chain of roots was walked from the history already.
        if plain == "root.json" {
            return Ok(None);
        }
        self.0
            .read(plain)
            .map_err(|error| SourceError::Unreachable {
                file: plain.to_owned(),
                why: error.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_kept_under_plain_names_only() {
        for name in [
            "root.json",
            "timestamp.json",
            "root_history/12.root.json",
            "role%2F1.json",
        ] {
            assert!(is_kept(name), "{name}");
        }
        let long = format!("{}.json", "a".repeat(200));
        for name in [
            "7.snapshot.json",
            "../root.json",
            "/etc/x.json",
            "a/b.json",
            "root_history/../x.json",
            "targets/model.gguf",
            "",
            long.as_str(),
        ] {
            assert!(!is_kept(name), "{name}");
        }
    }

    #[test]
    fn old_roots_are_written_first_and_the_timestamp_last() {
        let mut names = vec![
            "timestamp.json",
            "root.json",
            "root_history/10.root.json",
            "targets.json",
            "root_history/9.root.json",
            "snapshot.json",
        ];
        names.sort_by_key(|name| rank(name));
        assert_eq!(
            names,
            [
                "root_history/9.root.json",
                "root_history/10.root.json",
                "root.json",
                "targets.json",
                "snapshot.json",
                "timestamp.json",
            ]
        );
    }
}
