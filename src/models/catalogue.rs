//! Names of models and where their files are.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::gguf;
use crate::config::ModelsConfig;
use crate::wire::topic::{NAME_BYTES_MAX, Name};

/// Most GGUF files that are listed; a directory with more is a mistake that should not cost a start.
const FILES_MAX: usize = 1000;

/// Largest record beside a model file, bytes.
const RECORD_BYTES_MAX: u64 = 4096;

/// The models of this board, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name on the wire and in the configuration.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// Length of the file; `None` when it is not there or no file.
    pub file_bytes: Option<u64>,
    /// Whether it has a `[models.NAME]`.
    pub is_configured: bool,
    /// What was noted when it was added; `None` for files that came another way.
    pub record: Option<Record>,
}

/// Noted beside a model file when it is added, as `FILE.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `local`: copied in by a person on this board.
    pub origin: String,
    /// Whether a signature was checked. Local files have none.
    pub signed: bool,
    /// SHA-256 of the file, 64 hexadecimal digits.
    pub sha256: String,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Catalogue {
    /// The `[models.*]` of the configuration, and what else ends in `.gguf` in `dir`. A file that a
    /// `[models.NAME]` names is listed under that name only. A directory that does not exist is empty.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(config: &ModelsConfig, dir: &Path) -> io::Result<Self> {
        let mut by_name = BTreeMap::new();
        let mut configured = BTreeSet::new();
        for (name, model) in &config.by_name {
            let Some(path) = &model.file else { continue };
            configured.insert(path.clone());
            by_name.insert(name.clone(), Entry::of(name.clone(), path.clone(), true));
        }
        for path in gguf_files(dir)? {
            if configured.contains(&path) {
                continue;
            }
            let name = free_name(&name_of(&path), &by_name);
            by_name.insert(name.clone(), Entry::of(name, path, false));
        }
        let entries = by_name.into_values().collect();
        Ok(Self { entries })
    }

    /// As [`Catalogue::read`], without those that make vectors: what prompts can be answered with.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of_answers(config: &ModelsConfig, dir: &Path) -> io::Result<Self> {
        let mut catalogue = Self::read(config, dir)?;
        let embeds = config.embeddings.model.as_deref();
        catalogue.entries.retain(|entry| {
            Some(entry.name.as_str()) != embeds && !gguf::makes_vectors(&entry.path)
        });
        Ok(catalogue)
    }

    /// All of them, sorted by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

impl Entry {
    fn of(name: String, path: PathBuf, is_configured: bool) -> Self {
        let meta = path.metadata().ok().filter(std::fs::Metadata::is_file);
        let file_bytes = meta.map(|meta| meta.len());
        // A record of another file of that name says nothing.
        let record = Record::read(&path).filter(|record| Some(record.file_bytes) == file_bytes);
        Self {
            name,
            path,
            file_bytes,
            is_configured,
            record,
        }
    }
}

impl Record {
    /// Where the record of a model file is.
    pub(super) fn path(model: &Path) -> PathBuf {
        let mut path = model.as_os_str().to_owned();
        path.push(".json");
        path.into()
    }

    /// The record beside a model file; one that cannot be understood is none.
    fn read(model: &Path) -> Option<Self> {
        let file = std::fs::File::open(Self::path(model)).ok()?;
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }
}

/// The model name that a file name gives: without `.gguf`, and each character that names cannot have as
/// a hyphen.
pub fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') => c,
            _ => '-',
        })
        .take(NAME_BYTES_MAX)
        .collect();
    match Name::new(&name) {
        Ok(fine) if !fine.is_reserved() => name,
        _ => format!("model-{name}")
            .chars()
            .take(NAME_BYTES_MAX)
            .collect(),
    }
}

/// The name itself, or with a number behind it when another file has it.
fn free_name(name: &str, taken: &BTreeMap<String, Entry>) -> String {
    let numbered = (2..).map(|n| {
        let suffix = format!("-{n}");
        // Names are ASCII, so any byte is a boundary.
        let kept = name.len().min(NAME_BYTES_MAX - suffix.len());
        format!("{}{suffix}", &name[..kept])
    });
    std::iter::once(name.to_owned())
        .chain(numbered)
        .find(|name| !taken.contains_key(name))
        .expect("there are more numbers than files")
}

/// Paths of the GGUF files in a directory, sorted; hidden ones are somebody's work in progress.
fn gguf_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let is_hidden = entry.file_name().to_string_lossy().starts_with('.');
        let is_gguf = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        if is_gguf && !is_hidden && path.is_file() {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            return Err(io::Error::other(format!(
                "more than {FILES_MAX} GGUF files"
            )));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use crate::models::gguf::STRING;
    use crate::models::gguf::tests::writer::{Gguf, text};

    fn dir_with(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            std::fs::write(dir.path().join(file), b"GGUF").unwrap();
        }
        dir
    }

    fn names(dir: &Path, settings: &[(&str, &str)]) -> Vec<String> {
        let sources = Sources::defaults().set("paths.models_dir", dir.display());
        let sources = settings
            .iter()
            .fold(sources, |s, (key, value)| s.set(key, value));
        let config = load(&sources).unwrap();
        let catalogue = Catalogue::read(&config.models, dir).unwrap();
        catalogue.entries().iter().map(|e| e.name.clone()).collect()
    }

    #[test]
    fn files_are_known_by_their_names_and_other_files_are_not_models() {
        let dir = dir_with(&[
            "b.GGUF",
            "a.Q4_1.gguf",
            ".part.gguf",
            "notes.txt",
            "a.Q4_1.gguf.json",
        ]);
        std::fs::create_dir(dir.path().join("folder.gguf")).unwrap();
        assert_eq!(names(dir.path(), &[]), ["a.Q4_1", "b"]);
    }

    #[test]
    fn a_configured_file_is_listed_once_under_its_configured_name() {
        let dir = dir_with(&["a.gguf", "b.gguf"]);
        assert_eq!(
            names(dir.path(), &[("models.small.file", "a.gguf")]),
            ["b", "small"]
        );
    }

    #[test]
    fn a_configured_file_that_is_missing_is_listed_without_a_size() {
        let dir = dir_with(&[]);
        let sources = Sources::defaults()
            .set("paths.models_dir", dir.path().display())
            .set("models.small.file", "gone.gguf");
        let config = load(&sources).unwrap();
        let catalogue = Catalogue::read(&config.models, dir.path()).unwrap();
        assert_eq!(catalogue.get("small").unwrap().file_bytes, None);
    }

    #[test]
    fn prompts_are_answered_by_models_that_make_text_whatever_else_is_in_the_folder() {
        let dir = dir_with(&["unreadable.gguf"]);
        for (name, arch) in [
            ("chat", "llama"),
            ("vectors", "bert"),
            ("other", "nomic-bert"),
        ] {
            let (raw, _) = Gguf::good()
                .with("general.architecture", STRING, text(arch))
                .bytes();
            std::fs::write(dir.path().join(format!("{name}.gguf")), raw).unwrap();
        }
        let config = load(&Sources::defaults()).unwrap();
        let answers = Catalogue::of_answers(&config.models, dir.path()).unwrap();
        let names: Vec<_> = answers.entries().iter().map(|e| &e.name).collect();
        assert_eq!(names, ["chat", "unreadable"]);
        let all = Catalogue::read(&config.models, dir.path()).unwrap();
        assert_eq!(all.entries().len(), 4);
    }

    #[test]
    fn two_files_never_share_a_name() {
        let dir = dir_with(&["a b.gguf", "a c.gguf", "a+b.gguf"]);
        assert_eq!(names(dir.path(), &[]), ["a-b", "a-b-2", "a-c"]);
    }

    #[test]
    fn every_file_name_gives_a_valid_name() {
        let long = "x".repeat(200);
        for stem in ["status", "", "größe", "../..", "a/b", long.as_str()] {
            let name = name_of(Path::new(&format!("{stem}.gguf")));
            assert!(
                Name::new(&name).is_ok_and(|n| !n.is_reserved()),
                "{stem:?} gave {name:?}"
            );
        }
    }

    #[test]
    fn a_directory_that_does_not_exist_is_empty_and_one_that_is_a_file_is_an_error() {
        let config = load(&Sources::defaults()).unwrap();
        let read = |dir: &str| Catalogue::read(&config.models, Path::new(dir));
        assert_eq!(read("/nowhere").unwrap().entries(), []);
        assert!(read("/dev/null").is_err());
    }
}
