//! Reads whole files again, slowly, and sets aside those whose disk has lost some of them.

use std::fs::File;
use std::io;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Blob, BlobStore, digest_of, forget_pages};
use crate::ota::fetch::pace::Cap;
use crate::ota::name::Digest;

/// What was found of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Its bytes are the signed ones.
    Sound,
    /// Its bytes hash to something else; it was set aside.
    Rotten {
        /// To this.
        found: Digest,
    },
    /// The disk cannot read it; it was set aside.
    Unreadable {
        /// What the disk says.
        error: String,
    },
    /// It was deleted meanwhile.
    Gone,
}

/// One file that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scrubbed {
    /// Which one.
    pub blob: Blob,
    /// How it is.
    pub finding: Finding,
}

impl BlobStore {
    /// Reads one whole file at no more than `bytes_per_second`; sets it aside when it is damaged. A fetch of
    /// it then takes the sound pieces and asks the sources for the others alone.
    ///
    /// # Errors
    /// It could not be set aside.
    pub async fn scrub(&self, blob: Blob, bytes_per_second: Option<u64>) -> io::Result<Scrubbed> {
        let finding = match self.read_again(&blob, bytes_per_second).await {
            Ok(found) if found == blob.digest => Finding::Sound,
            Ok(found) => Finding::Rotten { found },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::Gone,
            Err(error) => Finding::Unreadable {
                error: error.to_string(),
            },
        };
        match &finding {
            Finding::Sound => {
                info!(digest = %blob.digest, bytes = blob.bytes, "a model file is still as signed")
            }
            Finding::Gone => {}
            Finding::Rotten { found } => {
                warn!(digest = %blob.digest, %found, "a model file has changed on the disk");
                self.quarantine(&blob.digest)?;
            }
            Finding::Unreadable { error } => {
                warn!(digest = %blob.digest, error, "a model file cannot be read from the disk");
                self.quarantine(&blob.digest)?;
            }
        }
        Ok(Scrubbed { blob, finding })
    }

    async fn read_again(&self, blob: &Blob, bytes_per_second: Option<u64>) -> io::Result<Digest> {
        let file = File::open(self.path(&blob.digest))?;
        // What memory holds of it says nothing about the disk. Pages that a worker has mapped stay.
        forget_pages(&file, 0, 0);
        let start = Instant::now();
        let mut cap = Cap::new(bytes_per_second);
        let mut at = 0;
        // One byte more than there should be is one too many.
        digest_of(&file, blob.bytes.saturating_add(1), |n_bytes| {
            forget_pages(&file, at, n_bytes);
            at += n_bytes;
            cap.took(n_bytes, start.elapsed())
        })
        .await
    }
}
