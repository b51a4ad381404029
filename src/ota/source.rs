//! Where updates come from: one tree of static files, on an HTTP server or in a directory.
//!
//! ```text
//! metadata/timestamp.json            small, read whole with a limit:  Source::get
//! targets/<sha256>.<name>            large, read piece by piece:      Source::read
//! ```
//!
//! A source is believed nothing. Metadata is signed and every piece has a signed digest, so all that is checked
//! here is what would cost us time, memory or traffic: answers to another question than ours, bytes without
//! end, and silence. What is wrong is told as a [`Fault`] with a sentence; whether to ask again is decided by
//! the caller.

mod directory;
mod http;

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::trust::{self, MetadataSource};

pub use directory::Directory;
pub use http::HttpMirror;

/// What a source did instead of sending what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// It does not have the file, or does not give it to us.
    Absent,
    /// No connection, or it broke off; a stick that was pulled.
    Unreachable,
    /// It sent nothing for too long.
    Stalled,
    /// It sent other bytes than the signed ones, or other ones than were asked for.
    Lied,
}

/// A source did not send what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}: {file}: {what}")]
pub struct SourceError {
    /// The source, as configured.
    pub source_name: String,
    /// The file in the tree.
    pub file: String,
    /// The kind, for whoever decides what to do.
    pub fault: Fault,
    /// What was found, and what was expected.
    pub what: String,
}

/// Why a source cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// Neither an address on the web nor an absolute path.
    #[error("{found:?}: expected http://HOST/PATH, https://HOST/PATH or an absolute path")]
    Unknown {
        /// As configured.
        found: String,
    },
    /// An address with more than host, port and path.
    #[error("{found:?}: {what}")]
    Extra {
        /// As configured, without what may be a password.
        found: String,
        /// What does not belong there.
        what: &'static str,
    },
    /// TLS cannot be set up.
    #[error("{found}: {what}")]
    Tls {
        /// The source.
        found: String,
        /// What is wrong, and with which file.
        what: String,
    },
}

/// How long silence may last, and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// For a connection to come up.
    pub connect_timeout: Duration,
    /// For the next [`PROGRESS_BYTES`] to come. There is no limit on the whole: 20 GB over a slow line take days.
    pub stall_timeout: Duration,
    /// Authorities that may have issued the certificate of an `https` mirror, PEM.
    pub ca_file: Option<PathBuf>,
}

/// Fewer bytes than this in a stall timeout are no progress: a server that drips one byte a second is stalled.
pub const PROGRESS_BYTES: u64 = 8 << 10;

impl Default for Terms {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            ca_file: None,
        }
    }
}

/// Part of a file of the tree.
#[derive(Debug, Clone)]
pub struct Want<'a> {
    /// Name in the tree: `targets/<sha256>.<name>`.
    pub file: &'a str,
    /// Length of the whole file, as signed.
    pub file_bytes: u64,
    /// The bytes wanted; not empty, within the file, at most one piece.
    pub range: Range<u64>,
}

impl Want<'_> {
    fn n_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// Told of every chunk as it is read.
pub trait Flow {
    /// So many bytes came; how long to wait before more are read.
    fn took(&mut self, n_bytes: u64) -> Duration;
}

/// One place that has the tree.
#[derive(Debug)]
pub enum Source {
    /// A static web server.
    Http(Box<HttpMirror>),
    /// A mirror on a disk, or a stick.
    Directory(Directory),
}

impl Source {
    /// From an address: `http://…`, `https://…` or an absolute path. Nothing is opened yet.
    ///
    /// # Errors
    /// It is none of them, or the authorities for `https` cannot be read.
    pub fn at(address: &str, terms: &Terms) -> Result<Self, AddressError> {
        match address {
            http if http.starts_with("http://") || http.starts_with("https://") => {
                Ok(Self::Http(Box::new(HttpMirror::new(http, terms)?)))
            }
            path if path.starts_with('/') => {
                let directory = Directory::new(PathBuf::from(path), terms.stall_timeout);
                Ok(Self::Directory(directory))
            }
            _ => Err(AddressError::Unknown {
                found: address.to_owned(),
            }),
        }
    }

    /// The address, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::Http(mirror) => mirror.name(),
            Self::Directory(directory) => directory.name(),
        }
    }

    fn stall_timeout(&self) -> Duration {
        match self {
            Self::Http(mirror) => mirror.terms.stall_timeout,
            Self::Directory(directory) => directory.stall_timeout,
        }
    }

    /// Whether it is a directory: what is there now may be another stick than yesterday's.
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Directory(_))
    }

    /// Reads a small file whole. `None`: it is certainly not there. Blocks until it is here, at most as long as
    /// the limit allows: a server that drips is given up.
    ///
    /// # Errors
    /// Anything else: nobody can say whether the file is there. [`Fault::Lied`]: it is longer than `limit_bytes`.
    pub fn get(&mut self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        if !is_file_of_the_tree(file) {
            return Err(self.error(file, Fault::Absent, "no name of a file in a repository"));
        }
        match self {
            Self::Http(mirror) => mirror.get(file, limit_bytes),
            Self::Directory(directory) => directory.get(file, limit_bytes),
        }
    }

    /// Reads part of a file to the end of `into`, which is cut to its former length on an error.
    ///
    /// # Errors
    /// Not all of it came. Bytes that came are not checked here.
    pub async fn read(
        &mut self,
        want: &Want<'_>,
        into: &mut Vec<u8>,
        flow: &mut dyn Flow,
    ) -> Result<(), SourceError> {
        if !is_file_of_the_tree(want.file) {
            return Err(self.error(
                want.file,
                Fault::Absent,
                "no name of a file in a repository",
            ));
        }
        let len = into.len();
        let read = match self {
            Self::Http(mirror) => mirror.read(want, into, flow).await,
            Self::Directory(directory) => directory.read(want, into, flow).await,
        };
        if read.is_err() {
            into.truncate(len);
        }
        read
    }

    /// Closes what is open: a connection, or a file that keeps a stick from being unmounted.
    pub fn rest(&mut self) {
        match self {
            Self::Http(mirror) => mirror.rest(),
            Self::Directory(directory) => directory.rest(),
        }
    }

    fn error(&self, file: &str, fault: Fault, what: &str) -> SourceError {
        SourceError {
            source_name: self.name().to_owned(),
            // It is no name: shortened, and without what could move a terminal's cursor.
            file: file.chars().filter(|c| !c.is_control()).take(60).collect(),
            fault,
            what: what.to_owned(),
        }
    }
}

impl MetadataSource for Source {
    fn get(&mut self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, trust::SourceError> {
        Source::get(self, file, limit_bytes).map_err(|error| {
            let file = error.file.clone();
            match error.fault {
                Fault::Lied => trust::SourceError::TooLong { file, limit_bytes },
                Fault::Stalled => trust::SourceError::Stalled {
                    file,
                    seconds: self.stall_timeout().as_secs(),
                },
                Fault::Absent | Fault::Unreachable => trust::SourceError::Unreachable {
                    file,
                    why: format!("{}: {}", error.source_name, error.what),
                },
            }
        })
    }
}

/// `metadata/NAME` or `targets/NAME`, the name of `a-z 0-9 . _ -` and not hidden: nothing that could be another
/// path on anybody's disk.
fn is_file_of_the_tree(file: &str) -> bool {
    let Some((dir, name)) = file.split_once('/') else {
        return false;
    };
    let is_fine = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    matches!(dir, "metadata" | "targets")
        && !name.starts_with('.')
        && (1..=200).contains(&name.len())
        && name.chars().all(is_fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_a_flat_name_in_one_of_both_directories_is_a_file_of_the_tree() {
        for file in ["metadata/1.root.json", "targets/00ff.a-b_c.gguf"] {
            assert!(is_file_of_the_tree(file), "{file}");
        }
        let long = format!("targets/{}", "a".repeat(201));
        for file in [
            "",
            "timestamp.json",
            "/etc/passwd",
            "targets/",
            "targets/..",
            "targets/../metadata/x",
            "targets/a/b",
            "targets/.hidden",
            "other/a",
            "targets/a\0b",
            "targets/A",
            "targets/a\\b",
            "targets/%2e%2e",
            &long,
        ] {
            assert!(!is_file_of_the_tree(file), "{file:?}");
        }
    }

    #[test]
    fn an_address_that_holds_more_than_a_place_is_refused_with_what_is_wrong() {
        let terms = Terms::default();
        let why = |address| Source::at(address, &terms).unwrap_err().to_string();
        assert!(why("ftp://mirror/").contains("expected http://"));
        assert!(why("mirror.lan").contains("absolute path"));
        assert!(why("http://anna:secret@mirror/").contains("password"));
        assert!(!why("http://anna:secret@mirror/").contains("secret"));
        assert!(why("http://mirror/?a=b").contains("query"));
        assert!(why("https://mirror/").contains("ca_file"));
        assert!(Source::at("http://mirror.lan:8080/fleet", &terms).is_ok());
        assert!(Source::at("/run/orinoco/usb", &terms).unwrap().is_local());
    }
}
