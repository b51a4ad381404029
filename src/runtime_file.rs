//! `runtime.json` in the state directory: where the running daemon is to be reached.
//!
//! Written by the daemon once it takes requests, removed when it ends; read by `orinoco ask` and other
//! commands on the same machine. It holds no secret. A daemon that died leaves its file behind, so a
//! reader that finds nobody there says so.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Name of the file.
const NAME: &str = "runtime.json";
/// Largest file that is read.
const BYTES_MAX: u64 = 4096;

/// Where a daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Its node name.
    pub node: String,
    /// First level of its topics.
    pub root: String,
    /// Its broker's address.
    pub host: String,
    /// Its broker's port.
    pub port: u16,
    /// The broker is the one that comes with it.
    pub own_broker: bool,
    /// How its broker is spoken to; absent: in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Its process.
    pub pid: u32,
}

/// TLS to the daemon's broker, as far as it concerns others: not who the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// The authorities that may speak for the broker.
    pub ca_file: PathBuf,
    /// Name in the broker's certificate, when it is not the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeFileError {
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{path}: no runtime file of a daemon: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's reason.
        reason: String,
    },
}

/// The written file; removed when dropped.
#[derive(Debug)]
pub struct RuntimeFile(PathBuf);

impl RuntimeFile {
    /// Writes it, replacing what a dead daemon left.
    ///
    /// # Errors
    /// [`RuntimeFileError::Io`].
    pub fn write(state_dir: &Path, runtime: &Runtime) -> Result<Self, RuntimeFileError> {
        let path = state_dir.join(NAME);
        let io = |source| RuntimeFileError::Io {
            path: path.clone(),
            source,
        };
        let temporary = state_dir.join(format!("{NAME}.tmp"));
        let text = serde_json::to_vec(runtime).expect("strings and numbers");
        // A reader sees the old file or the new one, never half of one; lost with the power it is no loss.
        fs::write(&temporary, text).map_err(io)?;
        fs::rename(&temporary, &path).map_err(io)?;
        Ok(Self(path))
    }
}

impl Drop for RuntimeFile {
    fn drop(&mut self) {
        // Left behind, it only says what is no longer true, as after a power cut.
        let _ = fs::remove_file(&self.0);
    }
}

/// Reads the file; `None` when no daemon has written one.
///
/// # Errors
/// [`RuntimeFileError`].
pub fn read(state_dir: &Path) -> Result<Option<Runtime>, RuntimeFileError> {
    use io::Read as _;
    let path = state_dir.join(NAME);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RuntimeFileError::Io { path, source }),
    };
    let mut text = String::new();
    if let Err(source) = file.take(BYTES_MAX).read_to_string(&mut text) {
        return Err(RuntimeFileError::Io { path, source });
    }
    match serde_json::from_str(&text) {
        Ok(runtime) => Ok(Some(runtime)),
        Err(error) => Err(RuntimeFileError::Malformed {
            path,
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_there_while_the_daemon_is() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = Runtime {
            node: "n1".into(),
            root: "orinoco".into(),
            host: "127.0.0.1".into(),
            port: 1883,
            own_broker: true,
            tls: None,
            pid: 1,
        };
        assert_eq!(read(dir.path()).unwrap(), None);
        let file = RuntimeFile::write(dir.path(), &runtime).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(runtime));
        drop(file);
        assert_eq!(read(dir.path()).unwrap(), None);
    }

    #[test]
    fn what_is_no_runtime_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "{}").unwrap();
        assert!(matches!(
            read(dir.path()),
            Err(RuntimeFileError::Malformed { .. })
        ));
    }
}
