//! A directory as a source: a mirror on a disk, or a stick that somebody plugged in and may pull.
//!
//! Files are opened below the directory and nowhere else (openat2(2), RESOLVE_BENEATH): no `..`, no absolute
//! link, no link that leaves it, whatever stands on a foreign stick. A stick that was pulled may keep a reader
//! waiting for as long as the kernel likes, so pieces are read on a thread of their own, which is left behind.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, open, openat2, posix_fadvise};
use nix::sys::stat::Mode;
use tokio::time::timeout;

use super::{Fault, Flow, SourceError, Want};

/// Read at once, bytes; the rate is held back and a stall noticed between two of them.
const CHUNK_BYTES: u64 = 1 << 20;

/// A tree in a directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// As configured, for messages.
    name: String,
    pub(super) stall_timeout: Duration,
    /// The file that was read last. It keeps a stick from being unmounted only while a fetch runs.
    open: Option<(String, Arc<File>)>,
}

impl Directory {
    pub(super) fn new(path: PathBuf, stall_timeout: Duration) -> Self {
        Self {
            name: path.display().to_string(),
            path,
            stall_timeout,
            open: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn rest(&mut self) {
        self.open = None;
    }

    fn error(&self, file: &str, fault: Fault, what: impl Into<String>) -> SourceError {
        SourceError {
            source_name: self.name.clone(),
            file: file.to_owned(),
            fault,
            what: what.into(),
        }
    }

    /// Metadata.
    pub(super) fn get(
        &mut self,
        file: &str,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        // A directory that is gone is no answer about its files: a stick that was pulled must not look like one
        // without a newer root.
        let root = open_root(&self.path)
            .map_err(|error| self.error(file, Fault::Unreachable, error.to_string()))?;
        let opened = match open_below(&root, file) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // No fault of its length: what is no plain file below the directory is not there for us.
            Err(error) => {
                let fault = match fault_of(&error) {
                    Fault::Lied => Fault::Absent,
                    other => other,
                };
                return Err(self.error(file, fault, error.to_string()));
            }
        };
        let mut bytes = Vec::new();
        opened
            .take(limit_bytes.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.error(file, Fault::Unreachable, error.to_string()))?;
        match bytes.len() as u64 > limit_bytes {
            true => Err(self.error(
                file,
                Fault::Lied,
                format!("longer than the {limit_bytes} bytes that such a file may have"),
            )),
            false => Ok(Some(bytes)),
        }
    }

    /// A piece.
    pub(super) async fn read(
        &mut self,
        want: &Want<'_>,
        into: &mut Vec<u8>,
        flow: &mut dyn Flow,
    ) -> Result<(), SourceError> {
        let at_hand = self.open.take().filter(|(file, _)| file == want.file);
        let file = match at_hand {
            Some((_, file)) => file,
            None => {
                let (path, name) = (self.path.clone(), want.file.to_owned());
                let opened = self
                    .in_time(want.file, move || open_below(&open_root(&path)?, &name))
                    .await?;
                Arc::new(opened)
            }
        };
        let mut from = want.range.start;
        while from < want.range.end {
            let n_bytes = CHUNK_BYTES.min(want.range.end - from);
            let (source, file_bytes) = (file.clone(), want.file_bytes);
            let chunk = self
                .in_time(want.file, move || {
                    read_chunk(&source, file_bytes, from, n_bytes)
                })
                .await?;
            into.extend_from_slice(&chunk);
            from += n_bytes;
            let pause = flow.took(n_bytes);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        self.open = Some((want.file.to_owned(), file));
        Ok(())
    }

    async fn in_time<T: Send + 'static>(
        &self,
        file: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, SourceError> {
        let work = tokio::task::spawn_blocking(work);
        match timeout(self.stall_timeout, work).await {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(error))) => Err(self.error(file, fault_of(&error), error.to_string())),
            Ok(Err(join)) => Err(self.error(file, Fault::Unreachable, join.to_string())),
            Err(_) => Err(self.error(
                file,
                Fault::Stalled,
                format!("cannot be read for {} s", self.stall_timeout.as_secs()),
            )),
        }
    }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Opens a plain file below a directory. A pipe or a device is refused without waiting for it.
fn open_below(root: &OwnedFd, file: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = File::from(openat2(root, file, how)?);
    match opened.metadata()?.is_file() {
        true => Ok(opened),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "is no plain file",
        )),
    }
}

fn read_chunk(file: &File, file_bytes: u64, from: u64, n_bytes: u64) -> io::Result<Vec<u8>> {
    let found = file.metadata()?.len();
    if found != file_bytes {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("has {found} bytes, expected {file_bytes}"),
        ));
    }
    let mut chunk = vec![0; n_bytes as usize];
    file.read_exact_at(&mut chunk, from)?;
    // Nobody reads it twice, and the memory is wanted by models.
    let (offset, len) = (from as i64, n_bytes as i64);
    let _ = posix_fadvise(file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    Ok(chunk)
}

fn fault_of(error: &io::Error) -> Fault {
    // Links that leave the directory, and links in a circle.
    if matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EXDEV | Errno::ELOOP)
    ) {
        return Fault::Lied;
    }
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Fault::Absent,
        // Of another length, shorter in the middle of reading, no plain file.
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput => {
            Fault::Lied
        }
        _ => Fault::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("targets")).unwrap();
        std::fs::create_dir(tree.path().join("metadata")).unwrap();
        tree
    }

    fn directory(tree: &tempfile::TempDir) -> Directory {
        Directory::new(tree.path().to_owned(), Duration::from_secs(5))
    }

    #[test]
    fn a_link_on_a_stick_that_leaves_it_is_not_followed() {
        let tree = tree();
        let secret = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(secret.path(), "secret").unwrap();
        symlink(secret.path(), tree.path().join("targets/a")).unwrap();
        symlink("../../etc/passwd", tree.path().join("targets/b")).unwrap();
        symlink("/proc/self/root/etc/passwd", tree.path().join("targets/c")).unwrap();
        for file in ["targets/a", "targets/b", "targets/c"] {
            let refused = directory(&tree).get(file, 1000).unwrap_err();
            assert_eq!(refused.fault, Fault::Absent, "{refused}");
        }
        std::fs::write(tree.path().join("metadata/real.json"), "{}").unwrap();
        symlink("../metadata/real.json", tree.path().join("targets/d")).unwrap();
        let within = directory(&tree).get("targets/d", 1000).unwrap();
        assert_eq!(within.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_keeps_nobody_waiting() {
        let tree = tree();
        nix::unistd::mkfifo(&tree.path().join("targets/a"), Mode::S_IRWXU).unwrap();
        let refused = directory(&tree).get("targets/a", 1000).unwrap_err();
        assert_eq!(refused.fault, Fault::Absent, "{refused}");
    }

    #[test]
    fn a_file_that_is_not_there_is_none_and_a_stick_that_is_not_there_is_an_error() {
        let tree = tree();
        assert_eq!(directory(&tree).get("metadata/2.root.json", 1000), Ok(None));
        let mut pulled = Directory::new(tree.path().join("gone"), Duration::from_secs(5));
        let error = pulled.get("metadata/2.root.json", 1000).unwrap_err();
        assert_eq!(error.fault, Fault::Unreachable);
    }

    #[test]
    fn metadata_without_end_is_cut_at_its_limit() {
        let tree = tree();
        std::fs::write(tree.path().join("metadata/timestamp.json"), [b' '; 2000]).unwrap();
        let error = directory(&tree)
            .get("metadata/timestamp.json", 1999)
            .unwrap_err();
        assert_eq!(error.fault, Fault::Lied);
        let whole = directory(&tree)
            .get("metadata/timestamp.json", 2000)
            .unwrap();
        assert_eq!(whole.unwrap().len(), 2000);
    }
}
