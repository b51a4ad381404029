//! Updates, as the board's own files tell them: the root of trust, the clock, the disk, the last result.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::board::Root;
use crate::config::Config;
use crate::ota::deploy::State;
use crate::ota::source::{Source, Terms};
use crate::ota::stick::kept_report;
use crate::ota::trust::root::{self, RootFacts};
use crate::ota::trust::{Clock, TrustedNow, clock};

/// A root of trust is no longer than this, bytes.
const ROOT_BYTES_MAX: u64 = 64 << 10;
/// Longest timestamp that a source may have, bytes.
const TIMESTAMP_BYTES_MAX: u64 = 16 << 10;
/// A source is waited for so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What there is to say about updates.
#[derive(Debug, Clone, PartialEq)]
pub struct Updates {
    /// The newest root that is trusted, or why there is none.
    pub root: Result<RootFacts, String>,
    /// How far the clock is believed.
    pub clock: Clock,
    /// The time that follows, seconds since 1970.
    pub now_s: u64,
    /// What the daemon told last; `None` before it told anything.
    pub told: Option<State>,
    /// The largest model file of a release here, bytes.
    pub largest_bytes: Option<u64>,
    /// Free on the disk of updates, bytes; only of this machine.
    pub free_bytes: Option<u64>,
    /// Sources, and what is wrong with each; asked on this machine alone.
    pub sources: Vec<(String, Result<(), String>)>,
}

impl Updates {
    /// Reads all of it; `None`: the board has no root of trust, and takes no updates.
    pub fn read(root: &Root, config: &Config) -> Option<Self> {
        let at = |path: &Path| {
            let path = path.to_string_lossy();
            root.resolve(&path).unwrap_or_else(|_| path.as_ref().into())
        };
        let shipped = at(&config.ota.root_file);
        if !shipped.exists() {
            return None;
        }
        let dir = at(&config.ota.deploy.dir);
        let followed = dir.join("trust/metadata/root.json");
        let newest = read_root(&followed).or_else(|_| read_root(&shipped));
        let told = kept_report(&dir).ok().flatten();
        let told: Option<State> = told.and_then(|json| serde_json::from_slice(&json).ok());
        let board = root.resolve("/").unwrap_or_else(|_| PathBuf::from("/"));
        let now = TrustedNow::judge(&clock::facts(&board));
        Some(Self {
            root: newest.map_err(|why| super::on_board(root, &why)),
            clock: now.clock(),
            now_s: now.at_s(),
            told,
            largest_bytes: largest_bytes(&dir.join("blobs")),
            free_bytes: match root.is_live() {
                true => free_bytes(&dir),
                false => None,
            },
            sources: match root.is_live() {
                true => ask(config),
                false => Vec::new(),
            },
        })
    }
}

fn read_root(path: &Path) -> Result<RootFacts, String> {
    use crate::ota::vfs::{Disk, Vfs as _};
    let shown = path.display();
    let bytes = Disk.read(path, ROOT_BYTES_MAX);
    let bytes = bytes.map_err(|error| format!("{shown}: {error}"))?;
    let bytes = bytes.ok_or_else(|| format!("{shown}: not there"))?;
    root::inspect(&bytes).map_err(|error| format!("{shown}: {error}"))
}

fn largest_bytes(dir: &Path) -> Option<u64> {
    let files = std::fs::read_dir(dir).ok()?;
    let lengths = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
    lengths.max()
}

fn free_bytes(dir: &Path) -> Option<u64> {
    let there = dir.ancestors().find(|dir| dir.exists())?;
    crate::disk::free_bytes(there).ok()
}

/// Whether each source has a repository. A stick that is not there is nothing wrong.
fn ask(config: &Config) -> Vec<(String, Result<(), String>)> {
    let terms = Terms {
        connect_timeout: PATIENCE,
        stall_timeout: PATIENCE,
        ca_file: config.ota.fetch.ca_file.clone(),
    };
    let ask = |address: &String| {
        let answer = Source::at(address, &terms)
            .map_err(|error| error.to_string())
            .and_then(|mut source| {
                let found = source.get("metadata/timestamp.json", TIMESTAMP_BYTES_MAX);
                match (found, source.is_local()) {
                    (Ok(Some(_)), _) | (Ok(None) | Err(_), true) => Ok(()),
                    (Ok(None), false) => Err("it has no metadata/timestamp.json".to_owned()),
                    (Err(error), false) => Err(error.to_string()),
                }
            });
        (address.clone(), answer)
    };
    config.ota.fetch.sources.iter().map(ask).collect()
}
