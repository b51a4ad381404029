//! What is on the device.

use serde::{Deserialize, Serialize};

use crate::ota::name::{Digest, LineName, ModelId};

/// One release, as it stands in the state file: enough to serve it without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its number in the line.
    pub release_seq: u64,
    /// Its model.
    pub id: ModelId,
    /// Its manifest, kept beside the models under its digest.
    pub manifest: Digest,
    /// Its weights.
    pub weights: Digest,
    /// Their length.
    pub weights_bytes: u64,
    /// Other files that are kept with it.
    #[serde(default)]
    pub others: Vec<Digest>,
    /// For people.
    #[serde(default)]
    pub title: String,
}

impl Release {
    /// Digests of all its files.
    pub fn files(&self) -> impl Iterator<Item = Digest> + '_ {
        [self.manifest, self.weights]
            .into_iter()
            .chain(self.others.iter().copied())
    }
}

/// What a line has on this device. There is always exactly one active release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// What serves when the line is asked for.
    pub active: Release,
    /// What served before it, kept to go back to.
    pub previous: Option<Release>,
}

/// A release that was put into service and has yet to show that it stays up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probation {
    /// Its line.
    pub line: LineName,
    /// Starts of the daemon since.
    pub n_starts: u32,
    /// Deaths of the worker since.
    #[serde(default)]
    pub n_deaths: u32,
}
