//! A model file that passed the preflight: the only kind that llama.cpp gets to open.
//!
//! Between the judgement and the load somebody may put another file under the same name. So the file stays
//! open here, and llama.cpp opens the same one again through its descriptor. Who writes into the very file
//! meanwhile is noticed after the load, while the sandbox holds.

use std::ffi::CString;
use std::fs::{File, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use orinoco::models::gguf::{GgufError, preflight_file};

use crate::model::LoadError;

/// Open, a regular file, and judged.
#[derive(Debug)]
pub(super) struct Judged {
    file: File,
    path: PathBuf,
    state: State,
}

/// What changes with the content: the length, and the second and nanosecond of the last write.
type State = (u64, i64, i64);

fn state(meta: &Metadata) -> State {
    (meta.len(), meta.mtime(), meta.mtime_nsec())
}

impl Judged {
    /// Opens the file and judges its header.
    pub(super) fn open(path: &Path) -> Result<Self, LoadError> {
        let failed = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        let opened = || -> Result<Self, GgufError> {
            let file = File::open(path).map_err(failed)?;
            let state = state(&file.metadata().map_err(failed)?);
            let header = preflight_file(&file, path)?;
            tracing::debug!(?header, "preflight passed");
            let path = path.to_owned();
            Ok(Self { file, path, state })
        };
        opened().map_err(|error| LoadError(format!("failed to load: {error}")))
    }

    /// A name that leads to this very file, whatever now stands under its own.
    pub(super) fn path_of_descriptor(&self) -> CString {
        CString::new(self.descriptor()).expect("digits and slashes")
    }

    fn descriptor(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// llama.cpp's words with the file's own name.
    pub(super) fn with_its_name(&self, text: &str) -> String {
        text.replace(&self.descriptor(), &self.path.to_string_lossy())
    }

    /// Its bytes were copied: the kernel may drop its own copy, which on unified memory stands in the way of
    /// the next large GPU buffer. Pages that another process maps stay. Best effort.
    pub(super) fn drop_from_page_cache(&self) {
        let whole = posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        if let Err(error) = whole {
            tracing::debug!(%error, "the file stays in the page cache");
        }
    }

    /// Nobody wrote to the file since it was judged.
    pub(super) fn check_unchanged(&self) -> Result<(), LoadError> {
        match self.file.metadata() {
            Ok(meta) if state(&meta) == self.state => Ok(()),
            Ok(_) => Err(LoadError(format!(
                "load {}: the file was written to while it was loaded; nothing may write to a model in use",
                self.path.display()
            ))),
            Err(error) => Err(LoadError(format!("load {}: {error}", self.path.display()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};

    use super::*;

    /// A header with the least that passes, written by hand.
    fn good() -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let key = |key: &str, kind: u32, value: &[u8]| {
            [&text(key)[..], &kind.to_le_bytes(), value].concat()
        };
        let tokens = [&8_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &text("a")].concat();
        [
            b"GGUF".as_slice(),
            &3_u32.to_le_bytes(),
            &1_u64.to_le_bytes(),
            &5_u64.to_le_bytes(),
            &key("general.architecture", 8, &text("llama")),
            &key("llama.context_length", 4, &64_u32.to_le_bytes()),
            &key("llama.block_count", 4, &1_u32.to_le_bytes()),
            &key("tokenizer.ggml.model", 8, &text("llama")),
            &key("tokenizer.ggml.tokens", 9, &tokens),
            &text("t"),
            &1_u32.to_le_bytes(),
            &8_u64.to_le_bytes(),
            &0_u32.to_le_bytes(),
            &0_u64.to_le_bytes(),
            &[0; 96],
        ]
        .concat()
    }

    fn judged() -> (tempfile::TempDir, PathBuf, Judged) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, good()).unwrap();
        let file = Judged::open(&path).unwrap();
        (dir, path, file)
    }

    #[test]
    fn a_file_that_breaks_a_rule_is_refused_with_its_name_and_the_rule() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, "this is not a model").unwrap();
        let LoadError(message) = Judged::open(&path).unwrap_err();
        assert!(
            message.contains("m.gguf") && message.contains("begins with"),
            "{message}"
        );
        assert!(
            Judged::open(dir.path())
                .unwrap_err()
                .0
                .contains("regular file")
        );
    }

    #[test]
    fn a_file_replaced_under_its_name_is_not_the_one_that_is_loaded() {
        let (dir, path, file) = judged();
        let other = dir.path().join("other");
        fs::write(&other, "another").unwrap();
        fs::rename(&other, &path).unwrap();
        let mut read = Vec::new();
        let name = file.path_of_descriptor().into_string().unwrap();
        File::open(&name).unwrap().read_to_end(&mut read).unwrap();
        assert_eq!(read, good());
        let told = file.with_its_name(&format!("cannot read {name}: no"));
        assert_eq!(told, format!("cannot read {}: no", path.display()));
    }

    #[test]
    fn a_write_between_judgement_and_load_is_noticed() {
        let (_dir, path, file) = judged();
        file.check_unchanged().unwrap();
        let mut writer = File::options().write(true).open(path).unwrap();
        writer.write_all(b"XXXX").unwrap();
        drop(writer);
        let LoadError(message) = file.check_unchanged().unwrap_err();
        assert!(message.contains("was written to"), "{message}");
    }
}
