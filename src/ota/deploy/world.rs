//! The seam between the engine and everything that it has done by others.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::sync::watch;

use super::report::State;
use crate::ota::catalog::{self, Catalog};
use crate::ota::fetch::Progress;
use crate::ota::name::{Digest, LineName};
use crate::ota::policy::Policy;
use crate::ota::probe::No;
use crate::ota::state::{Policies, Record, Release, Want};

/// How a trial ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Tried {
    /// The release works.
    Passed {
        /// It serves now.
        serves: bool,
        /// What it showed, for people.
        detail: String,
    },
    /// It does not.
    No(No),
    /// Nothing was found out, for a reason that passes.
    NotNow(String),
}

/// What is done outside of the record. Everything may be done again after a cut.
pub trait World {
    /// Metadata and catalogue, as far as they may be believed.
    fn check(&mut self, want: Option<&Want>) -> impl Future<Output = Result<Catalog, No>>;

    /// The release's manifest, kept on the disk; whether it suits this board; its bytes.
    fn plan(
        &mut self,
        line: &LineName,
        release: &catalog::Release,
    ) -> impl Future<Output = Result<(Release, u64), No>>;

    /// Fetches its files. Dropped where it is called off; what is on the disk stays.
    fn download(
        &mut self,
        release: &Release,
        max_kbit_s: u32,
    ) -> impl Future<Output = Result<(), No>>;

    /// Reads them again, whole, and judges them; afterwards they are blobs.
    fn verify(
        &mut self,
        line: &LineName,
        release: &Release,
    ) -> impl Future<Output = Result<(), No>>;

    /// Has it loaded beside or after what serves; `None` as soon as it is loaded and shows that it works.
    fn begin_trial(
        &mut self,
        line: &LineName,
        release: &Release,
    ) -> impl Future<Output = Option<Tried>>;

    /// How that ended.
    fn end_trial(&mut self) -> impl Future<Output = Tried>;

    /// Whether what passed is written down; else what served before is put back.
    fn settle(&mut self, is_written: bool);

    /// These releases are in service. `at_once`: what serves is chosen anew.
    fn in_service(&mut self, record: &Record, at_once: bool);

    /// Whether its files are here.
    fn is_intact(&self, release: &Release) -> bool;

    /// Deletes all files but these.
    fn sweep(&mut self, kept: &BTreeSet<Digest>);

    /// Reads all files again; names those that are damaged, which are set aside. Dropped where something else
    /// comes first.
    fn scrub(&mut self) -> impl Future<Output = Result<Vec<Digest>, String>>;

    /// What is here of its files.
    fn bytes_here(&self, release: &Release) -> u64;

    /// Seconds since 1970, as far as the device can know.
    fn now_s(&self) -> u64;

    /// Minutes after midnight, local time.
    fn minute_of_day(&self) -> u32;

    /// How far a download is.
    fn progress(&self) -> watch::Receiver<Progress>;

    /// Adds what only the world knows: metadata, clock, disk.
    fn describe(&self, state: &mut State);

    /// What lies there is asked first, and by a deployment from a stick alone; `None`: no more.
    fn use_stick(&mut self, _path: Option<&Path>) {}

    /// Keeps what is told for a stick that may come.
    fn keep_report(&mut self, _state: &State) {}

    /// The signed settings of the source that was looked at last, with their digest; `None`: there are none.
    fn policy(&mut self) -> impl Future<Output = Result<Option<(Digest, Vec<u8>)>, No>> {
        async { Ok(None) }
    }

    /// Whether this device can have them. Then they are kept on the disk.
    fn judge_policy(&mut self, _policy: &Policy, _bytes: &[u8]) -> Result<(), No> {
        Ok(())
    }

    /// Puts those in force that are kept as such.
    fn apply_policy(&mut self, _policies: &Policies) {}

    /// A step between two others; tests cut the power here.
    fn reached(&self, _point: &str) {}
}
