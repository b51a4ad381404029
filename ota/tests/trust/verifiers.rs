//! The device's client and tough, each with a state of its own, before the same tree of files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orinoco::ota::Digest;
use orinoco::ota::TargetName;
use orinoco::ota::source::{Source, Terms};
use orinoco::ota::trust::{Client, Place, Trust as _};
use tempfile::TempDir;
use tough::{ExpirationEnforcement, FilesystemTransport, RepositoryLoader};

use crate::repository::{DAY_S, Repository, START_S};

/// What a verifier believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Believed {
    /// Of root, timestamp, snapshot, targets.
    pub(crate) versions: [u64; 4],
    pub(crate) targets: BTreeMap<String, Digest>,
}

/// Both, and the tree that they look at.
pub(crate) struct Verifiers {
    dir: TempDir,
    tree: PathBuf,
    root: Vec<u8>,
}

impl Verifiers {
    /// Before a repository in memory, with its first root. In memory too where there is a place for that: what
    /// is durable is not under test here.
    pub(crate) fn of(repository: &Repository) -> Self {
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        }
        .unwrap();
        let tree = dir.path().join("tree");
        for folder in ["metadata", "targets"] {
            fs::create_dir_all(tree.join(folder)).unwrap();
        }
        let verifiers = Self {
            dir,
            tree,
            root: repository.shipped_root(),
        };
        verifiers.serve(repository);
        verifiers
    }

    /// Before a tree on the disk.
    pub(crate) fn of_tree(root: &[u8], tree: &Path) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            tree: tree.into(),
            root: root.into(),
        }
    }

    /// The tree has these files from now on.
    pub(crate) fn serve(&self, repository: &Repository) {
        for entry in fs::read_dir(self.tree.join("metadata")).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (name, bytes) in &repository.files {
            self.put(name, bytes);
        }
    }

    /// The tree has this file from now on.
    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.tree.join(name), bytes).unwrap();
    }

    /// Forgets what both have seen.
    pub(crate) fn forget(&self) {
        for folder in ["ours", "tough"] {
            let _ = fs::remove_dir_all(self.dir.path().join(folder));
        }
    }

    /// What the device believes after a refresh.
    pub(crate) fn ours(&self) -> Result<Believed, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let mut client = Client::open(Place {
            folder: self.dir.path().join("ours"),
            root: self.root.clone(),
        })
        .map_err(|error| words(&error))?;
        let now = orinoco::ota::trust::TrustedNow::exactly(START_S + DAY_S).accepting_expired();
        let mut source = Source::at(self.tree.to_str().unwrap(), &Terms::default()).unwrap();
        let versions = client
            .refresh(&mut source, now)
            .map_err(|error| words(&error))?;
        let name = TargetName::catalog();
        let info = client.target(&name, now).map_err(|error| words(&error))?;
        Ok(Believed {
            versions: [
                versions.root,
                versions.timestamp,
                versions.snapshot,
                versions.targets,
            ],
            targets: info
                .map(|info| (name.to_string(), info.digest))
                .into_iter()
                .collect(),
        })
    }

    /// What tough believes after a load. It judges expiry by the system's clock, which is not what is compared.
    pub(crate) fn tough(&self) -> Result<Believed, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let datastore = self.dir.path().join("tough");
        fs::create_dir_all(&datastore).unwrap();
        let at = |folder: &str| {
            let url = format!("file://{}/{folder}", self.tree.display());
            url.parse().unwrap()
        };
        let load = RepositoryLoader::new(&self.root, at("metadata"), at("targets"))
            .transport(FilesystemTransport)
            .datastore(datastore)
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .load();
        let repository = runtime.block_on(load).map_err(|error| {
            let mut words = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                words = format!("{words}: {error}");
                cause = error.source();
            }
            words
        })?;
        let targets = repository.targets().signed.targets.iter();
        let targets = targets.filter_map(|(name, target)| {
            let digest = <[u8; 32]>::try_from(target.hashes.sha256.as_ref()).ok()?;
            Some((name.raw().to_owned(), Digest(digest)))
        });
        Ok(Believed {
            versions: [
                repository.root().signed.version.get(),
                repository.timestamp().signed.version.get(),
                repository.snapshot().signed.version.get(),
                repository.targets().signed.version.get(),
            ],
            targets: targets.collect(),
        })
    }

    /// Both accept; they agree on the versions.
    #[track_caller]
    pub(crate) fn assert_accepted(&self) {
        let (ours, tough) = (self.ours().unwrap(), self.tough().unwrap());
        assert_eq!(ours.versions, tough.versions);
        assert_eq!(
            ours.targets.get("catalog.json"),
            tough.targets.get("catalog.json")
        );
    }

    /// Both refuse.
    #[track_caller]
    pub(crate) fn assert_refused(&self) {
        let (ours, tough) = (self.ours(), self.tough());
        assert!(ours.is_err(), "the device believes {ours:?}");
        assert!(tough.is_err(), "tough believes {tough:?}");
    }
}
