//! What lies on the device beside the model files: manifests, tables of pieces and settings, each checked again
//! when it is read; and with them the releases in service as the rest of the product needs them.

use std::path::{Path, PathBuf};

use tracing::warn;

use super::{Site, bad, device, no};
use crate::frames::Draft;
use crate::models::release::{Release as Served, Runtime, Sampling};
use crate::ota::blobs::BlobStore;
use crate::ota::fetch::FileToFetch;
use crate::ota::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ota::name::{Digest, LineName};
use crate::ota::pieces::PieceTable;
use crate::ota::policy::{POLICY_BYTES_MAX, Policy};
use crate::ota::probe::No;
use crate::ota::reason::Reason;
use crate::ota::state::{Accepted, Record, Release};
use crate::ota::vfs::{Disk, Vfs, replace};

/// Small files that are kept: manifests and tables of pieces.
const MANIFESTS: &str = "manifests";
/// Longest table of pieces: of a file of 1 TiB.
pub(super) const TABLE_BYTES_MAX: u64 = 8 << 20;

/// Where manifests are kept.
pub fn manifests_dir(dir: &Path) -> PathBuf {
    dir.join(MANIFESTS)
}

/// The releases in service, as the rest of the product needs them: those whose files are here. One whose
/// manifest cannot be read is left out and told.
pub fn releases(record: &Record, dir: &Path) -> Vec<Served> {
    let Ok(blobs) = BlobStore::open(dir) else {
        warn!(dir = %dir.display(), "the files of releases cannot be opened");
        return Vec::new();
    };
    let mut drafts = Vec::new();
    let served = record.lines.iter().filter_map(|(line, installed)| {
        let release = &installed.active;
        let manifest = match manifest(dir, release) {
            Ok(manifest) => manifest,
            Err(no) => {
                warn!(%line, no.detail, "a release in service is left out");
                return None;
            }
        };
        if !blobs.has(&release.weights, release.weights_bytes) {
            warn!(%line, release = %release.id, "the model of the release in service is gone");
            return None;
        }
        let is_first = record.first.as_ref() == Some(line);
        if let Some((of, min_seq)) = manifest.draft() {
            drafts.push((line.to_string(), of.to_string(), min_seq));
        }
        Some(served(&blobs, line, release, &manifest, is_first))
    });
    let mut served: Vec<_> = served.collect();
    for (line, of, min_seq) in drafts {
        let draft = draft(&served, &of, min_seq);
        if let Some(release) = served.iter_mut().find(|release| release.line == line) {
            release.draft = draft;
        }
    }
    served
}

/// The release of a line that drafts for another, if it is here and new enough.
pub(super) fn draft(served: &[Served], line: &str, min_seq: u64) -> Option<Draft> {
    let is_it = |release: &&Served| release.line == line && release.release_seq >= min_seq;
    let release = served.iter().find(is_it)?;
    Some(Draft {
        name: release.name.clone(),
        path: release.path.clone(),
    })
}

pub(super) fn served(
    blobs: &BlobStore,
    line: &LineName,
    release: &Release,
    manifest: &Manifest,
    is_first: bool,
) -> Served {
    let runtime = &manifest.runtime;
    let milli = |value: Option<u32>| value.map(|milli| milli as f32 / 1000.0);
    let sampling = &runtime.sampling_milli;
    Served {
        name: release.id.to_string(),
        line: line.to_string(),
        release_seq: release.release_seq,
        sha256: release.weights.to_string(),
        path: blobs.path(&release.weights),
        file_bytes: release.weights_bytes,
        is_first,
        draft: None,
        runtime: Runtime {
            n_ctx: (runtime.n_ctx > 0).then_some(runtime.n_ctx),
            kv_type_k: runtime.kv_type_k,
            kv_type_v: runtime.kv_type_v,
            chat_template: runtime.chat_template.clone(),
            stop: runtime.stop.clone(),
            sampling: Sampling {
                temperature: milli(sampling.temperature),
                top_k: sampling.top_k,
                top_p: milli(sampling.top_p),
                min_p: milli(sampling.min_p),
                repeat_penalty: milli(sampling.repeat_penalty),
            },
        },
    }
}

/// Kept settings of the fleet, checked again.
///
/// # Errors
/// They are not there, changed on the disk, or are none.
pub fn kept_policy(dir: &Path, accepted: &Accepted) -> Result<Policy, String> {
    let path = manifests_dir(dir).join(accepted.digest.to_string());
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let bytes = Disk.read(&path, POLICY_BYTES_MAX as u64);
    let bytes = bytes.map_err(|error| wrong(&error))?;
    let bytes = bytes.ok_or_else(|| wrong(&"not there"))?;
    if Digest::of(&bytes) != accepted.digest {
        return Err(wrong(&"changed on the disk"));
    }
    Policy::parse(&bytes).map_err(|error| wrong(&error))
}

/// The kept manifest of a release, checked again.
pub(super) fn manifest(dir: &Path, release: &Release) -> Result<Manifest, No> {
    let path = manifests_dir(dir).join(release.manifest.to_string());
    let bytes =
        (Disk.read(&path, MANIFEST_BYTES_MAX as u64)).map_err(|error| device(&path, &error))?;
    let bytes = bytes.ok_or_else(|| No {
        reason: Reason::DeviceError,
        detail: format!("{}: not there", path.display()),
    })?;
    if Digest::of(&bytes) != release.manifest {
        return Err(No {
            reason: Reason::DigestMismatch,
            detail: format!("{}: changed on the disk", path.display()),
        });
    }
    Manifest::parse(&bytes).map_err(|error| bad(&error))
}

impl Site {
    /// Keeps a small file, for good.
    pub(super) fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), No> {
        let path = manifests_dir(&self.config.dir).join(name);
        replace(&Disk, &path, bytes).map_err(|error| device(&path, &error))
    }

    /// The model file of a planned release, with its table of pieces.
    pub(super) fn wanted(&self, release: &Release) -> Result<FileToFetch, No> {
        let manifest = manifest(&self.config.dir, release)?;
        let weights = manifest.weights();
        let path = manifests_dir(&self.config.dir).join(format!("{}.pieces", release.manifest));
        let bytes = Disk
            .read(&path, TABLE_BYTES_MAX)
            .map_err(|error| device(&path, &error))?;
        let bytes = bytes.ok_or_else(|| {
            no(
                Reason::DeviceError,
                format!("{}: not there", path.display()),
            )
        })?;
        let pieces = PieceTable::parse(&bytes, weights.bytes, weights.piece_bytes)
            .map_err(|error| bad(&error))?;
        Ok(FileToFetch {
            name: weights.target.clone(),
            digest: weights.sha256,
            pieces,
        })
    }
}
