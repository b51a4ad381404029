//! The one path below which a board is read: `/`, or a tree of another board in tests and for support.
//!
//! Every file is opened without waiting (a FIFO in a tree is refused, not waited for), read up to a bound,
//! and handed to a parser as bytes. What a board does not have is `None`; what cannot be understood is a
//! [`ReadError`] that names file, line, what was found and what was expected. Links of a tree stay inside
//! the tree, as after `chroot`: a report about another board never shows this one.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::text::{ParseError, line, number};

/// Largest file, bytes, where a reader names no other bound. A complete /proc/meminfo has 2 KiB, the
/// largest nvpmodel.conf that is known 20 KiB.
pub const FILE_BYTES_MAX: usize = 256 * 1024;

/// Most entries of a directory; further ones are not seen.
const ENTRIES_MAX: usize = 1024;

/// Most links on the way to a file, as in the kernel.
const LINKS_MAX: usize = 40;

/// Where a board is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    dir: Arc<Path>,
}

impl Root {
    /// The board that this program runs on.
    pub fn live() -> Self {
        Self::new("/")
    }

    /// The tree below `dir`.
    pub fn new(dir: impl AsRef<Path>) -> Self {
        Self {
            dir: dir.as_ref().into(),
        }
    }

    /// Whether this is the machine's own root, where files are nodes of the kernel.
    pub fn is_live(&self) -> bool {
        &*self.dir == Path::new("/")
    }

    /// Where the absolute `path` of the board lies on this machine, links followed inside the tree. The
    /// last component need not exist.
    ///
    /// # Errors
    /// Too many links.
    pub fn resolve(&self, path: &str) -> io::Result<PathBuf> {
        if self.is_live() {
            return Ok(Path::new("/").join(path));
        }
        let mut inside = PathBuf::new();
        let mut open: Vec<PathBuf> = components(Path::new(path));
        let mut n_links = 0;
        while let Some(part) = open.pop() {
            match part.components().next() {
                Some(Component::RootDir) => inside = PathBuf::new(),
                Some(Component::ParentDir) => {
                    inside.pop();
                }
                Some(Component::Normal(name)) => {
                    inside.push(name);
                    if let Ok(target) = std::fs::read_link(self.dir.join(&inside)) {
                        n_links += 1;
                        if n_links > LINKS_MAX {
                            return Err(Errno::ELOOP.into());
                        }
                        inside.pop();
                        open.extend(components(&target));
                    }
                }
                Some(Component::CurDir | Component::Prefix(_)) | None => {}
            }
        }
        Ok(self.dir.join(inside))
    }

    /// Whether something stands at `path`, whatever it is.
    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path)
            .is_ok_and(|path| path.symlink_metadata().is_ok())
    }

    /// Whether a file stands at `path`, links followed.
    pub fn is_file(&self, path: &str) -> bool {
        self.resolve(path).is_ok_and(|path| path.is_file())
    }

    /// The bytes of a file, at most `bytes_max`; `None` when the board does not have it.
    ///
    /// # Errors
    /// It is there and cannot be read, or is larger.
    pub fn bytes(&self, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, ReadError> {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            // One byte more tells a file of the full size from a longer one.
            let bound = u64::try_from(bytes_max).unwrap_or(u64::MAX);
            self.open(path)?
                .take(bound.saturating_add(1))
                .read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if bytes.len() > bytes_max => Err(ReadError::TooLarge {
                path: path.to_owned(),
                bytes_max,
            }),
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(ReadError::unreadable(path, &e)),
        }
    }

    /// What `parse` makes of a file.
    ///
    /// # Errors
    /// As [`Root::bytes`], and what `parse` says.
    pub fn parse<T>(
        &self,
        path: &str,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, ReadError> {
        self.bytes(path, FILE_BYTES_MAX)?
            .map(|bytes| parse(&bytes).map_err(|e| e.in_file(path)))
            .transpose()
    }

    /// A file of one line: a name, a label.
    ///
    /// # Errors
    /// As [`Root::parse`].
    pub fn line(&self, path: &str) -> Result<Option<String>, ReadError> {
        self.parse(path, line)
    }

    /// A file of one number.
    ///
    /// # Errors
    /// As [`Root::parse`].
    pub fn number<T: FromStr + Display + PartialOrd>(
        &self,
        path: &str,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, ReadError> {
        self.parse(path, |bytes| number(bytes, &allowed))
    }

    /// The names in a directory that start with `prefix`, by the number behind it, then by name:
    /// `zone2` before `zone10`. None when there is no such directory.
    pub fn names(&self, dir: &str, prefix: &str) -> Vec<String> {
        let Ok(entries) = self.resolve(dir).and_then(std::fs::read_dir) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .take(ENTRIES_MAX)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort_by_cached_key(|name| {
            let number = name[prefix.len()..].parse::<u64>().unwrap_or(u64::MAX);
            (number, name.clone())
        });
        names
    }

    fn open(&self, path: &str) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(self.resolve(path)?)?;
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::other("not a regular file")),
        }
    }
}

/// The components of `path`, the first one last, each as a path of its own.
fn components(path: &Path) -> Vec<PathBuf> {
    let parts: Vec<PathBuf> = path.components().map(|c| c.as_os_str().into()).collect();
    parts.into_iter().rev().collect()
}

/// What the kernel answers where a board has no such thing: no file, no device behind it, a block without
/// power (`EAGAIN` from a thermal zone), a channel without data, a feature switched off at boot.
fn is_absent(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EAGAIN
                | Errno::ENODATA
                | Errno::ENODEV
                | Errno::ENXIO
                | Errno::EOPNOTSUPP
        )
    )
}

/// A file of the board that is there and cannot be used. Paths are those on the board.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Rights, a broken disk, a loop of links.
    #[error("read {path}: {what}")]
    Unreadable {
        /// The file.
        path: String,
        /// In the system's words.
        what: String,
    },
    /// More than the bound of its reader.
    #[error("read {path}: more than {bytes_max} bytes")]
    TooLarge {
        /// The file.
        path: String,
        /// The bound.
        bytes_max: usize,
    },
    /// It says something else than it should.
    #[error("{path}:{line}: found {found:?}, expected {expected}")]
    Malformed {
        /// The file.
        path: String,
        /// From 1.
        line: usize,
        /// The line or word, shortened.
        found: String,
        /// In words.
        expected: String,
    },
}

impl ReadError {
    fn unreadable(path: &str, e: &io::Error) -> Self {
        ReadError::Unreadable {
            path: path.to_owned(),
            what: e.to_string(),
        }
    }

    /// A file without which its reader has nothing to say.
    pub(super) fn missing(path: &str) -> Self {
        ReadError::unreadable(path, &Errno::ENOENT.into())
    }

    /// The file, as a path on the board.
    pub fn path(&self) -> &str {
        match self {
            ReadError::Unreadable { path, .. }
            | ReadError::TooLarge { path, .. }
            | ReadError::Malformed { path, .. } => path,
        }
    }
}

/// Errors met while many files were read; each leaves one value absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Faults(Vec<ReadError>);

impl Faults {
    /// Most that are kept.
    const MAX: usize = 64;

    /// The value, or nothing and a note.
    pub fn note<T>(&mut self, read: Result<Option<T>, ReadError>) -> Option<T> {
        read.unwrap_or_else(|e| {
            if self.0.len() < Self::MAX {
                self.0.push(e);
            }
            None
        })
    }

    /// In the order in which they were met.
    pub fn iter(&self) -> std::slice::Iter<'_, ReadError> {
        self.0.iter()
    }

    /// Whether everything that is there could be read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a ReadError;
    type IntoIter = std::slice::Iter<'a, ReadError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A file that is read again and again: its descriptor and buffer are kept.
///
/// Kept only on the live root, where the kernel answers anew at each read; a file of a tree may have been
/// replaced and is opened each time.
#[derive(Debug)]
pub struct Probe {
    root: Root,
    path: String,
    file: Option<File>,
    buffer: Vec<u8>,
}

impl Probe {
    /// First size of the buffer, bytes. Most files hold one number, and there are a hundred of them; a
    /// longer file has the buffer grow once and stay so.
    const BUFFER_BYTES: usize = 128;

    /// Nothing is opened yet.
    pub fn new(root: &Root, path: impl Into<String>) -> Self {
        Self {
            root: root.clone(),
            path: path.into(),
            file: None,
            buffer: Vec::new(),
        }
    }

    /// The path on the board.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What `parse` makes of the file as it is now; `None` when it is not there.
    ///
    /// # Errors
    /// As [`Root::parse`].
    pub fn parse<T>(
        &mut self,
        parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
    ) -> Result<Option<T>, ReadError> {
        match self.fill() {
            Ok(n) if n > FILE_BYTES_MAX => Err(ReadError::TooLarge {
                path: self.path.clone(),
                bytes_max: FILE_BYTES_MAX,
            }),
            Ok(n) => parse(&self.buffer[..n])
                .map(Some)
                .map_err(|e| e.in_file(&self.path)),
            Err(e) => {
                // A device that went away and came back has a new file.
                self.file = None;
                match is_absent(&e) {
                    true => Ok(None),
                    false => Err(ReadError::unreadable(&self.path, &e)),
                }
            }
        }
    }

    /// A number.
    ///
    /// # Errors
    /// As [`Root::parse`].
    pub fn number<T: FromStr + Display + PartialOrd>(
        &mut self,
        allowed: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, ReadError> {
        self.parse(|bytes| number(bytes, &allowed))
    }

    /// Reads the file from its start into the buffer; how many bytes it has, at most one beyond the bound.
    fn fill(&mut self) -> io::Result<usize> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.root.open(&self.path)?,
        };
        if self.buffer.is_empty() {
            self.buffer.resize(Self::BUFFER_BYTES, 0);
        }
        let mut n = 0;
        loop {
            if n == self.buffer.len() {
                if n > FILE_BYTES_MAX {
                    break;
                }
                self.buffer.resize((2 * n).min(FILE_BYTES_MAX + 1), 0);
            }
            match file.read_at(&mut self.buffer[n..], n as u64) {
                Ok(0) => break,
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        if self.root.is_live() {
            self.file = Some(file);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
