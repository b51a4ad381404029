//! Which model's file a state belongs to.

use std::fs::{File, Metadata};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::index::{Owner, digest_of};

/// Parts of a model's file that are looked at, and bytes of each: a file of gigabytes is not read whole at each
/// start, and two models of one family differ in nothing but their weights, in all of them.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 64 << 10;

impl Owner {
    /// The model in this file, with what else decides what states mean.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(path: &Path, layout: String) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        let last = metadata.len().saturating_sub(SAMPLE_BYTES);
        let mut hasher = Sha256::new();
        for n in 0..SAMPLES {
            file.seek(SeekFrom::Start(last / (SAMPLES - 1) * n))?;
            let mut part = Vec::new();
            (&mut file).take(SAMPLE_BYTES).read_to_end(&mut part)?;
            hasher.update(&part);
        }
        Ok(Self {
            path: path.to_string_lossy().into_owned(),
            model_bytes: metadata.len(),
            modified_ns: modified_ns(&metadata),
            sample: digest_of(hasher),
            layout,
        })
    }

    /// Whether the model is still there, and was not changed since.
    pub fn is_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| {
            metadata.len() == self.model_bytes && modified_ns(&metadata) == self.modified_ns
        })
    }
}

fn modified_ns(metadata: &Metadata) -> u64 {
    let seconds = metadata.mtime() as u64;
    seconds
        .wrapping_mul(1_000_000_000)
        .wrapping_add(metadata.mtime_nsec() as u64)
}
