//! Files that hold a secret: a password on the first line, a private key.
//!
//! Owns the rules that such a file must follow, and says how to repair one that does not: it is a file of
//! bounded size that nobody but its readers can open. What is in it never reaches a log or an error.
//! Where the file is comes from the configuration or a flag; a secret itself never does, since the
//! arguments and the environment of a process can be read by others.
//!
//! Who may read it, after PostgreSQL's rule for its server key: the owner alone (0600, 0400); or, when root
//! owns it, a group as well (0640, 0440), which is how a service reads a file that it cannot change. So are
//! the credentials that systemd hands to a service.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Longest password, in bytes. Tokens that are used as passwords have a few thousand.
pub const PASSWORD_BYTES_MAX: usize = 16 << 10;

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system refused.
    #[error("read {path}: {source}{}", advice(.source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others could have read it, and may have.
    #[error(
        "{path} has the mode {mode:04o}, so that others can read it: chmod {} {path}, and consider a new secret",
        if *.is_root { "640" } else { "600" }
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Owned by root, whose files a group may read.
        is_root: bool,
    },
    /// More than a secret has.
    #[error("{path} has more than {allowed} bytes: is it the right file?")]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Most bytes read.
        allowed: usize,
    },
    /// A password is expected on the first line, and there is none.
    #[error("{path} has an empty first line, where a password is expected")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// MQTT clients send passwords of any bytes, ours sends text.
    #[error("{path} holds a password that is not UTF-8")]
    NotText {
        /// The file.
        path: PathBuf,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; it must be readable for the user of this process",
        _ => "",
    }
}

/// The password on the first line of a file, without the line's end. `-` is standard input.
///
/// # Errors
/// [`SecretError`]; none of them holds what was read.
pub fn password(path: &Path) -> Result<String, SecretError> {
    let bytes = match path.to_str() {
        Some("-") => first_line(path, io::stdin().lock())?,
        _ => first_line(path, open(path)?)?,
    };
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => Err(SecretError::Empty { path: path.into() }),
        Ok(text) => Ok(text),
        Err(_) => Err(SecretError::NotText { path: path.into() }),
    }
}

/// The whole file, of at most `bytes_max` bytes: a private key.
///
/// # Errors
/// [`SecretError`].
pub fn read(path: &Path, bytes_max: usize) -> Result<Vec<u8>, SecretError> {
    bounded(path, open(path)?, bytes_max)
}

fn open(path: &Path) -> Result<File, SecretError> {
    let io = |source| SecretError::Io {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let meta = file.metadata().map_err(io)?;
    // Only a file lies about for others to open: `--password-file <(pass show me)` is a pipe.
    if meta.is_file() && is_open(&meta) {
        return Err(SecretError::Open {
            path: path.into(),
            mode: meta.permissions().mode() & 0o7777,
            is_root: meta.uid() == 0,
        });
    }
    Ok(file)
}

/// Whether others than its owner, and for a file of root a group, have any right to it.
fn is_open(meta: &Metadata) -> bool {
    let others = if meta.uid() == 0 { 0o037 } else { 0o077 };
    meta.permissions().mode() & others != 0
}

/// Waits for no more than the line: whoever writes it may keep the other end open.
fn first_line(path: &Path, input: impl Read) -> Result<Vec<u8>, SecretError> {
    let mut line = Vec::new();
    // The line's end, of one byte or two, is not part of the password.
    let longest = PASSWORD_BYTES_MAX as u64 + 2;
    BufReader::new(input.take(longest))
        .read_until(b'\n', &mut line)
        .map_err(|source| SecretError::Io {
            path: path.into(),
            source,
        })?;
    for end in [b'\n', b'\r'] {
        if line.last() == Some(&end) {
            line.pop();
        }
    }
    if line.len() > PASSWORD_BYTES_MAX {
        return Err(SecretError::TooLong {
            path: path.into(),
            allowed: PASSWORD_BYTES_MAX,
        });
    }
    Ok(line)
}

fn bounded(path: &Path, input: impl Read, bytes_max: usize) -> Result<Vec<u8>, SecretError> {
    let mut bytes = Vec::new();
    let read = input.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| SecretError::Io {
        path: path.into(),
        source,
    })?;
    if bytes.len() > bytes_max {
        return Err(SecretError::TooLong {
            path: path.into(),
            allowed: bytes_max,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn file(bytes: &[u8], mode: u32) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (folder, path)
    }

    fn password_in(bytes: &[u8]) -> Result<String, String> {
        let (_folder, path) = file(bytes, 0o600);
        password(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_password_is_the_first_line_without_its_end() {
        assert_eq!(password_in(b"geheim"), Ok("geheim".into()));
        assert_eq!(password_in(b"geheim\nnote\n"), Ok("geheim".into()));
        assert_eq!(password_in(b"geheim\r\nnote"), Ok("geheim".into()));
        assert_eq!(
            password_in(" two words ".as_bytes()),
            Ok(" two words ".into())
        );
    }

    #[test]
    fn a_file_without_a_password_is_an_error() {
        assert!(password_in(b"").unwrap_err().contains("empty first line"));
        assert!(
            password_in(b"\ngeheim")
                .unwrap_err()
                .contains("empty first line")
        );
        assert!(
            password_in(b"\xff\xfe\n")
                .unwrap_err()
                .contains("not UTF-8")
        );
    }

    /// A password cut at a limit would be refused by the broker, and nobody would know why.
    #[test]
    fn a_line_beyond_the_limit_is_an_error_and_not_cut() {
        let longest = vec![b'x'; PASSWORD_BYTES_MAX];
        assert_eq!(password_in(&longest).unwrap().len(), PASSWORD_BYTES_MAX);
        let longer = vec![b'x'; PASSWORD_BYTES_MAX + 1];
        assert!(
            password_in(&longer)
                .unwrap_err()
                .contains("more than 16384 bytes")
        );
        let (_folder, path) = file(&[0; 11], 0o600);
        assert!(matches!(
            read(&path, 10),
            Err(SecretError::TooLong { allowed: 10, .. })
        ));
        assert_eq!(read(&path, 11).unwrap(), [0; 11]);
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_with_the_command_that_repairs_it() {
        for mode in [0o604, 0o644, 0o660, 0o620, 0o602, 0o601] {
            let (_folder, path) = file(b"geheim", mode);
            let error = password(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:04o}")), "{error}");
            assert!(error.contains("chmod 6"), "{error}");
            assert!(!error.contains("geheim"), "{error}");
        }
        for mode in [0o600, 0o400] {
            let (_folder, path) = file(b"geheim", mode);
            assert!(password(&path).is_ok(), "{mode:o}");
        }
    }

    #[test]
    fn a_group_may_read_only_what_root_owns() {
        let (_folder, path) = file(b"geheim", 0o640);
        let is_root = fs::metadata(&path).unwrap().uid() == 0;
        assert_eq!(password(&path).is_ok(), is_root);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = password(Path::new("/nowhere/x")).unwrap_err().to_string();
        assert!(error.contains("read /nowhere/x: No such file"), "{error}");
    }

    /// As `--password-file <(pass show me)` gives it: the mode of a pipe says nothing.
    #[test]
    fn a_pipe_is_read_up_to_the_end_of_the_line() {
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"geheim\n").unwrap();
        use std::os::fd::AsRawFd;
        let path = PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
        // The writer is still there: waiting for the end of the input would never end.
        assert_eq!(password(&path).unwrap(), "geheim");
        drop(writer);
    }
}
