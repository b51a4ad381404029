//! The client against repositories that attack it, clocks that lie and disks that lose.

mod attacks;
mod clocks;
mod cuts;
mod disks;
mod hostile;
mod repository;
mod roots;

use std::path::Path;

use tempfile::TempDir;

use super::*;
use repository::{DAY_S, ROLES, Repository, START_S};

/// A day after the first signature.
const NOW: TrustedNow = TrustedNow::exactly(START_S + DAY_S);

/// A device of its own with the repository's first root.
struct Device {
    dir: TempDir,
    root: Vec<u8>,
}

impl Device {
    fn new(repository: &Repository) -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            root: repository.shipped_root(),
        }
    }

    fn open(&self) -> Client {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Client, TrustError> {
        Client::open(Place {
            folder: self.path().into(),
            root: self.root.clone(),
        })
    }

    /// One life: opens, refreshes, ends.
    fn refresh(&self, repository: &mut Repository) -> Result<Versions, TrustError> {
        self.open().refresh(repository, NOW)
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn catalog(client: &mut Client, now: TrustedNow) -> Result<Option<TargetInfo>, TrustError> {
    client.target(&TargetName::catalog(), now)
}

/// The reason of an error.
fn reason<T>(result: Result<T, TrustError>) -> Option<Reason> {
    result.err().map(|error| error.reason())
}
