//! The model files, judged as `orinoco models list` judges them; on request read whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::board::Root;
use crate::config::Config;
use crate::models::gguf::{GgufError, Header, preflight};
use crate::models::{Catalogue, Entry};

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its name.
    pub name: String,
    /// On the board.
    pub path: String,
    /// What it is, or why it would not be opened.
    pub header: Result<Header, String>,
    /// Whether it is what its record says.
    pub record: RecordState,
}

/// A model file against what was noted when it was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordState {
    /// Nothing was noted: it came another way.
    None,
    /// Of the length that was noted; not read whole.
    Length,
    /// Of the digest that was noted.
    Digest,
    /// Something else: a sentence.
    Differs(String),
}

/// All models, or why they cannot be listed. `with_digests`: read whole, seconds for each gigabyte.
pub fn read(root: &Root, config: &Config, with_digests: bool) -> Result<Vec<ModelFile>, String> {
    let on_disk = |path: &Path| {
        let path = path.to_string_lossy();
        root.resolve(&path).unwrap_or_else(|_| path.as_ref().into())
    };
    let mut models = config.models.clone();
    for model in models.by_name.values_mut() {
        model.file = model.file.as_deref().map(on_disk);
    }
    let dir = on_disk(&config.paths.models_dir);
    let catalogue = Catalogue::read(&models, &dir).map_err(|e| e.to_string())?;
    let file = |entry: &Entry| ModelFile {
        name: entry.name.clone(),
        path: super::on_board(root, &entry.path.to_string_lossy()),
        header: preflight(&entry.path).map_err(|error| match error {
            GgufError::Refused { reason, .. } => reason.to_string(),
            other => super::on_board(root, &other.to_string()),
        }),
        record: record(entry, with_digests),
    };
    Ok(catalogue.entries().iter().map(file).collect())
}

fn record(entry: &Entry, with_digests: bool) -> RecordState {
    let Some(record) = &entry.record else {
        let mut beside = entry.path.clone().into_os_string();
        beside.push(".json");
        return match Path::new(&beside).exists() {
            true => {
                RecordState::Differs("its length is not the one noted when it was added".into())
            }
            false => RecordState::None,
        };
    };
    if !with_digests {
        return RecordState::Length;
    }
    match sha256(&entry.path) {
        Ok(found) if found == record.sha256 => RecordState::Digest,
        Ok(found) => RecordState::Differs(format!(
            "its SHA-256 is {found}, and was {} when it was added",
            record.sha256
        )),
        Err(error) => RecordState::Differs(error.to_string()),
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => break,
            n => hash.update(&piece[..n]),
        }
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
