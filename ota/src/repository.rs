//! The repository as files: what is published, and what is staged for the next signature.
//!
//! ```text
//! REPO/metadata/  1.root.json … timestamp.json      what clients read
//! REPO/targets/   <sha256>.<name>                   never changed, only added
//! REPO/staged/    catalog.json  policy.toml         the next ones, unsigned
//!                 targets.json                      digests of new targets
//!                 3.root.json                       the next root, signed by some
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use orinoco::ota::catalog::{CATALOG_BYTES_MAX, Catalog};
use orinoco::ota::manifest::{MANIFEST_BYTES_MAX, Manifest};
use orinoco::ota::{Digest, ModelId, TargetName};
use serde::{Deserialize, Serialize};
use tough::schema::{Root, Signed, Snapshot, Targets, Timestamp};

use crate::disk;

/// Longest metadata file that is read, bytes.
pub const METADATA_BYTES_MAX: u64 = 4 << 20;
/// Most roots that follow each other.
pub const ROOTS_MAX: u64 = 1000;

/// Length and digest of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetFile {
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
}

/// A repository on disk. Held while it is open: two writers would lose each other's work.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    _lock: Option<File>,
}

/// The published metadata that the next signature builds on.
#[derive(Debug, Clone)]
pub struct Published {
    /// The newest root.
    pub root: Signed<Root>,
    /// The targets that the timestamp leads to.
    pub targets: Option<Signed<Targets>>,
    /// The snapshot that the timestamp leads to.
    pub snapshot: Option<Signed<Snapshot>>,
    /// What clients read first.
    pub timestamp: Option<Signed<Timestamp>>,
}

impl Repository {
    /// Opens a repository, to change it.
    ///
    /// # Errors
    /// There is none, or somebody else changes it.
    pub fn open(dir: &Path) -> Result<Self> {
        let repository = Self::look(dir)?;
        let path = repository.staged_dir().join(".lock");
        fs::create_dir_all(repository.staged_dir())
            .with_context(|| format!("make {}", repository.staged_dir().display()))?;
        let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "another orinoco-ota works on {}; try again when it is done",
                    dir.display()
                )
            }
            Err(TryLockError::Error(e)) => {
                return Err(e).with_context(|| format!("lock {}", path.display()));
            }
        }
        Ok(Self {
            _lock: Some(lock),
            ..repository
        })
    }

    /// Opens a repository, to read it; a stick may be read-only.
    ///
    /// # Errors
    /// There is none.
    pub fn look(dir: &Path) -> Result<Self> {
        let repository = Self {
            dir: dir.to_owned(),
            _lock: None,
        };
        if !repository.metadata_dir().join("1.root.json").is_file() {
            bail!(
                "{} is no repository: there is no metadata/1.root.json in it (orinoco-ota init makes one)",
                dir.display()
            );
        }
        Ok(repository)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What clients read of it.
    pub fn metadata_dir(&self) -> PathBuf {
        self.dir.join("metadata")
    }

    /// Its targets.
    pub fn targets_dir(&self) -> PathBuf {
        self.dir.join("targets")
    }

    /// What is not published yet.
    pub fn staged_dir(&self) -> PathBuf {
        self.dir.join("staged")
    }

    /// Where a target of this digest is.
    pub fn target_path(&self, name: &TargetName, digest: &Digest) -> PathBuf {
        self.targets_dir().join(name.file_name(digest))
    }

    /// The newest published root.
    ///
    /// # Errors
    /// A root cannot be read.
    pub fn root(&self) -> Result<Signed<Root>> {
        let mut newest = None;
        for version in 1..=ROOTS_MAX {
            let path = self.metadata_dir().join(format!("{version}.root.json"));
            let Some(bytes) = disk::read_if_there(&path, METADATA_BYTES_MAX)? else {
                break;
            };
            newest = Some(metadata(&path, &bytes)?);
        }
        newest.context("no root, although 1.root.json was there")
    }

    /// What is published.
    ///
    /// # Errors
    /// A file is missing or cannot be read.
    pub fn published(&self) -> Result<Published> {
        let mut published = Published {
            root: self.root()?,
            targets: None,
            snapshot: None,
            timestamp: None,
        };
        let path = self.metadata_dir().join("timestamp.json");
        let Some(bytes) = disk::read_if_there(&path, METADATA_BYTES_MAX)? else {
            return Ok(published);
        };
        let timestamp: Signed<Timestamp> = metadata(&path, &bytes)?;
        let version = version_of(&timestamp.signed.meta, "snapshot.json")?;
        let snapshot: Signed<Snapshot> = self.role(version, "snapshot.json")?;
        let version = version_of(&snapshot.signed.meta, "targets.json")?;
        published.targets = Some(self.role(version, "targets.json")?);
        published.snapshot = Some(snapshot);
        published.timestamp = Some(timestamp);
        Ok(published)
    }

    fn role<T: serde::de::DeserializeOwned>(&self, version: u64, file: &str) -> Result<Signed<T>> {
        let path = self.metadata_dir().join(format!("{version}.{file}"));
        metadata(&path, &disk::read_bounded(&path, METADATA_BYTES_MAX)?)
    }

    /// The digests of what was staged.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn staged_targets(&self) -> Result<BTreeMap<TargetName, TargetFile>> {
        let path = self.staged_dir().join("targets.json");
        let Some(bytes) = disk::read_if_there(&path, METADATA_BYTES_MAX)? else {
            return Ok(BTreeMap::new());
        };
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    }

    /// Notes new targets for the next signature; their files are in place.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn stage_targets(
        &self,
        new: impl IntoIterator<Item = (TargetName, TargetFile)>,
    ) -> Result<()> {
        let mut staged = self.staged_targets()?;
        staged.extend(new);
        let path = self.staged_dir().join("targets.json");
        disk::write_whole(&path, &json(&staged)?, 0o644)
    }

    /// Stages a file that is made here, and puts it among the targets.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_target(&self, name: &TargetName, bytes: &[u8]) -> Result<TargetFile> {
        let sha256 = Digest::of(bytes);
        disk::write_whole(&self.target_path(name, &sha256), bytes, 0o644)?;
        Ok(TargetFile {
            bytes: bytes.len() as u64,
            sha256,
        })
    }

    /// All targets that are known: the published ones, and above them the staged.
    ///
    /// # Errors
    /// Metadata cannot be read.
    pub fn known_targets(&self) -> Result<BTreeMap<TargetName, TargetFile>> {
        let mut known = match self.published()?.targets {
            Some(targets) => targets_of(&targets.signed)?,
            None => BTreeMap::new(),
        };
        known.extend(self.staged_targets()?);
        Ok(known)
    }

    /// Whether something waits for a signature of targets.
    pub fn is_staged(&self) -> bool {
        let staged = self.staged_dir();
        ["catalog.json", "policy.toml"]
            .iter()
            .any(|file| staged.join(file).exists())
    }

    /// The catalogue as it is to be: the staged one, else the published, else an empty one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn catalog(&self) -> Result<Catalog> {
        let path = self.staged_dir().join("catalog.json");
        if let Some(bytes) = disk::read_if_there(&path, CATALOG_BYTES_MAX as u64)? {
            return Catalog::parse(&bytes).with_context(|| format!("read {}", path.display()));
        }
        match self.published_catalog()? {
            Some(catalog) => Ok(catalog),
            None => bail!("{}: no catalogue is published", self.dir.display()),
        }
    }

    /// The catalogue that clients see.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn published_catalog(&self) -> Result<Option<Catalog>> {
        let Some(targets) = self.published()?.targets else {
            return Ok(None);
        };
        let known = targets_of(&targets.signed)?;
        let Some(file) = known.get(&TargetName::catalog()) else {
            return Ok(None);
        };
        let path = self.target_path(&TargetName::catalog(), &file.sha256);
        let bytes = disk::read_bounded(&path, CATALOG_BYTES_MAX as u64)?;
        let catalog = Catalog::parse(&bytes).with_context(|| format!("read {}", path.display()))?;
        Ok(Some(catalog))
    }

    /// Stages a catalogue for the next signature.
    ///
    /// # Errors
    /// It breaks a rule, or cannot be written.
    pub fn stage_catalog(&self, catalog: &Catalog) -> Result<()> {
        catalog.check().context("the catalogue would be refused")?;
        let path = self.staged_dir().join("catalog.json");
        disk::write_whole(&path, &catalog.to_bytes(), 0o644)
    }

    /// The manifest of a model that is known.
    ///
    /// # Errors
    /// It is not known or cannot be read.
    pub fn manifest(&self, id: &ModelId) -> Result<Manifest> {
        let name = TargetName::manifest(id);
        let known = self.known_targets()?;
        let file = known
            .get(&name)
            .with_context(|| format!("no model {id} in {}", self.dir.display()))?;
        let path = self.target_path(&name, &file.sha256);
        let bytes = disk::read_bounded(&path, MANIFEST_BYTES_MAX as u64)?;
        Manifest::parse(&bytes).with_context(|| format!("read {}", path.display()))
    }
}

/// Targets with names and digests as devices accept them.
///
/// # Errors
/// A name or a digest is none.
pub fn targets_of(targets: &Targets) -> Result<BTreeMap<TargetName, TargetFile>> {
    let one = |(name, target): (&tough::TargetName, &tough::schema::Target)| {
        let name = TargetName::new(name.raw())?;
        let digest: [u8; 32] = target.hashes.sha256.as_ref().try_into()?;
        let file = TargetFile {
            bytes: target.length,
            sha256: Digest(digest),
        };
        Ok((name, file))
    };
    let all: Result<_> = targets.targets.iter().map(one).collect();
    all.context("a target in targets.json")
}

/// Pretty JSON with sorted keys, so that two runs give the same bytes.
///
/// # Errors
/// Never for what this crate writes.
pub fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let value = serde_json::to_value(value).context("write JSON")?;
    let mut bytes = serde_json::to_vec_pretty(&value).context("write JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn metadata<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Signed<T>> {
    serde_json::from_slice(bytes).with_context(|| format!("read {}", path.display()))
}

fn version_of(
    meta: &std::collections::HashMap<String, tough::schema::Metafile>,
    file: &str,
) -> Result<u64> {
    let entry = meta.get(file);
    let entry = entry.with_context(|| format!("metadata names no {file}"))?;
    Ok(entry.version.get())
}
