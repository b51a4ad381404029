//! Files of a release come onto the disk whole and once, whatever sources, cables, disks and kills do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]
#![allow(unreachable_pub, missing_docs, reason = "modules of one test program")]

#[path = "../support/mirror.rs"]
mod mirror;
#[path = "../support/mod.rs"]
mod support;

mod blobs;
mod disk;
mod kills;
mod lies;
mod pace;
mod stick;

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orinoco::ota::blobs::BlobStore;
use orinoco::ota::fetch::standing::Patience;
use orinoco::ota::fetch::{FetchConfig, FetchError, Fetcher, FileToFetch, Progress};
use orinoco::ota::name::{Digest, TargetName};
use orinoco::ota::pieces::PieceTable;
use orinoco::ota::source::{Source, Terms};
use tempfile::TempDir;
use tokio::sync::watch;

use mirror::Mirror;

pub const PIECE: u32 = 16 << 10;
/// Six pieces, the last one short.
pub const FILE_BYTES: usize = 5 * PIECE as usize + 1000;
const NAME: &str = "tiny-q4.gguf";

/// A repository with one file, its signed table, and a store to bring it to.
pub struct Site {
    pub tree: TempDir,
    pub state: TempDir,
    pub file: FileToFetch,
    pub bytes: Vec<u8>,
}

impl Site {
    #[expect(clippy::new_without_default, reason = "a play begins with a new site")]
    pub fn new() -> Self {
        Self::with_bytes(noise(FILE_BYTES))
    }

    pub fn with_bytes(bytes: Vec<u8>) -> Self {
        Self::with_pieces(bytes, PIECE)
    }

    pub fn with_pieces(bytes: Vec<u8>, piece_bytes: u32) -> Self {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("targets")).unwrap();
        std::fs::create_dir(tree.path().join("metadata")).unwrap();
        let file = FileToFetch {
            name: TargetName::new(NAME).unwrap(),
            digest: Digest::of(&bytes),
            pieces: PieceTable::of(&bytes, piece_bytes).unwrap(),
        };
        let site = Self {
            tree,
            state: tempfile::tempdir().unwrap(),
            file,
            bytes,
        };
        std::fs::write(site.target(), &site.bytes).unwrap();
        site
    }

    /// The file in the repository.
    pub fn target(&self) -> PathBuf {
        let name = self.file.name.file_name(&self.file.digest);
        self.tree.path().join("targets").join(name)
    }

    pub fn mirror(&self) -> Mirror {
        Mirror::of(self.tree.path())
    }

    pub fn store(&self) -> BlobStore {
        BlobStore::open(self.state.path()).unwrap()
    }

    pub fn partial(&self, suffix: &str) -> PathBuf {
        let name = format!("{}{suffix}", self.file.digest);
        self.state.path().join("partial").join(name)
    }

    pub fn fetcher(&self, config: FetchConfig) -> Fetcher {
        Fetcher::new(self.store(), config, at_once())
    }

    /// Fetches to the end or to the error.
    pub fn bring(&self, sources: &mut [Source]) -> Result<PathBuf, FetchError> {
        self.bring_with(impatient(), sources)
    }

    pub fn bring_with(
        &self,
        config: FetchConfig,
        sources: &mut [Source],
    ) -> Result<PathBuf, FetchError> {
        let mut fetcher = self.fetcher(config);
        run(async { fetcher.bring(&self.file, sources).await })
    }

    /// The blob is there, whole, read-only, and nothing else is left of its making.
    pub fn assert_whole(&self, blob: &Path) {
        assert_eq!(blob, self.store().path(&self.file.digest));
        assert!(std::fs::read(blob).unwrap() == self.bytes, "other bytes");
        let mode = std::fs::metadata(blob).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        assert_eq!(names_in(&self.state.path().join("partial")), [""; 0]);
    }
}

pub fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bytes that no two pieces share.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Gives a source up after three failures, and waits for milliseconds between them.
pub fn impatient() -> FetchConfig {
    FetchConfig {
        bytes_per_second_max: None,
        reserve_bytes: 0,
        patience: Patience {
            wait_min: Duration::from_millis(1),
            wait_max: Duration::from_millis(4),
            ban: Duration::from_millis(1),
            faults_max: Some(3),
        },
    }
}

/// Nobody is silent for so long, on a machine that stands still either.
const PATIENCE: Duration = Duration::from_secs(30);

fn terms(stall_timeout: Duration) -> Terms {
    Terms {
        connect_timeout: PATIENCE,
        stall_timeout,
        ca_file: None,
    }
}

pub fn at(address: &str) -> Source {
    Source::at(address, &terms(PATIENCE)).unwrap()
}

/// For servers that fall silent in the play.
pub fn at_for(way: &mirror::Way, address: &str) -> Source {
    use mirror::Way::{Drip, StallAfter};
    match way {
        StallAfter(_) | Drip(_) => Source::at(address, &terms(Duration::from_secs(2))).unwrap(),
        _ => at(address),
    }
}

pub fn at_dir(dir: &Path) -> Source {
    at(dir.to_str().unwrap())
}

/// Nothing holds it back.
fn at_once() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// On a runtime like that of the thread `ota`.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let limit = Duration::from_secs(60);
            tokio::time::timeout(limit, work)
                .await
                .expect("it ends in time")
        })
}

/// Waits for a state of a fetch.
pub async fn until(
    progress: &mut watch::Receiver<Progress>,
    is_so: impl FnMut(&Progress) -> bool,
) -> Progress {
    progress.wait_for(is_so).await.unwrap().clone()
}
