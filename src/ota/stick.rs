//! Updates that a person carries in, and the report that they carry out.
//!
//! ```text
//! orinoco ota apply PATH ──▶ <state_dir>/ota/apply.json ──▶ the daemon takes it, and goes by Origin::Stick
//!   (udev, or a person)                                        │
//! orinoco ota report PATH ◀── <state_dir>/ota/report.json ◀────┘ what it did, at each change
//!        └─▶ PATH/reports/<node>.json, .json.sig, .pub.pem       signed with the device's own key
//! ```
//!
//! Being on the machine is the confirmation: the request is a file in a directory that only the daemon's user
//! and root can write, so no message over MQTT can claim that a person stands there. The report is a file as
//! well, and its signature one that any tool can check:
//!
//! ```text
//! openssl pkeyutl -verify -pubin -inkey NODE.pub.pem -rawin -in NODE.json -sigfile NODE.json.sig
//! ```
//!
//! The device's key says which device wrote a report, and nothing else: devices sign no updates.

mod key;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use serde::{Deserialize, Serialize};

pub use key::{DeviceKey, KeyError};

/// Makes the directory of updates where there is none, for whom the one above belongs to.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(ota_dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o750).create(ota_dir) {
        Ok(()) => give_to_owner_above(ota_dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// What root makes here is the daemon's: it belongs to whom the directory around it belongs to.
fn give_to_owner_above(path: &Path) -> io::Result<()> {
    let Some(above) = path.parent() else {
        return Ok(());
    };
    let (own, above) = (fs::metadata(path)?, fs::metadata(above)?);
    match own.uid() == above.uid() {
        true => Ok(()),
        false => chown(path, Some(above.uid()), Some(above.gid())),
    }
}

/// Name of the request below the directory of updates.
const REQUEST: &str = "apply.json";
/// Name of the daemon's own report there.
const REPORT: &str = "report.json";
/// Directory of reports on a stick.
const REPORTS: &str = "reports";
/// Longest request, bytes.
const REQUEST_BYTES_MAX: u64 = 8 << 10;
/// Longest report, bytes.
pub const REPORT_BYTES_MAX: u64 = 256 << 10;

/// Somebody on this machine says: take the releases in this directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Names the deployment; the report names it too.
    pub id: String,
    /// The root of a repository: `metadata` and `targets` are in it.
    pub path: PathBuf,
}

/// Why a request cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The path is none that the daemon could use.
    #[error("{path}: {what}")]
    Path {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory of updates cannot be written.
    #[error("{path}: {error}; run it as root, or as the daemon's user")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl Request {
    /// Checks that there is a repository at the path.
    ///
    /// # Errors
    /// There is none.
    pub fn new(id: &str, path: &Path) -> Result<Self, RequestError> {
        let wrong = |what: String| RequestError::Path {
            path: path.to_owned(),
            what,
        };
        let path = fs::canonicalize(path).map_err(|error| wrong(error.to_string()))?;
        for dir in ["metadata", "targets"] {
            if !path.join(dir).is_dir() {
                return Err(wrong(format!(
                    "no directory {dir}, expected a repository as `orinoco-ota export` makes it"
                )));
            }
        }
        Ok(Self {
            id: id.to_owned(),
            path,
        })
    }

    /// Leaves the request for the daemon; one that it has not taken yet is replaced.
    ///
    /// # Errors
    /// The directory of updates cannot be written.
    pub fn leave(&self, ota_dir: &Path) -> Result<(), RequestError> {
        let path = ota_dir.join(REQUEST);
        let json = serde_json::to_vec(self).expect("two texts");
        // Root may have written it, and the daemon's user reads it; it holds no secret.
        replace(&path, &json, 0o644).map_err(|error| RequestError::Io { path, error })
    }

    /// Takes the request, if there is one. What is none is dropped with an error: nobody would ever take it.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn take(ota_dir: &Path) -> io::Result<Option<Self>> {
        let path = ota_dir.join(REQUEST);
        let json = match read_bounded(&path, REQUEST_BYTES_MAX) {
            Ok(None) => return Ok(None),
            Ok(Some(json)) => json,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                fs::remove_file(&path)?;
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        fs::remove_file(&path)?;
        let request: Self = serde_json::from_slice(&json)?;
        match request.path.is_absolute() {
            true => Ok(Some(request)),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a request with a relative path",
            )),
        }
    }

    /// Whether the daemon has not taken it yet.
    pub fn is_waiting(ota_dir: &Path) -> bool {
        ota_dir.join(REQUEST).exists()
    }
}

/// What a report says of a deployment; there is more in it, which is for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Told {
    /// Which one.
    #[serde(default)]
    pub deployment: Option<String>,
    /// Where it is: `downloading`, `committed` …
    #[serde(default, alias = "phase")]
    pub state: Option<String>,
    /// Why, when it did not succeed.
    #[serde(default)]
    pub reason: Option<String>,
}

impl Told {
    /// From the daemon's report; `None` when there is none yet.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(ota_dir: &Path) -> io::Result<Option<Self>> {
        let report = kept_report(ota_dir)?;
        Ok(report.and_then(|json| serde_json::from_slice(&json).ok()))
    }

    /// Whether nothing follows for this deployment.
    pub fn is_over(&self) -> bool {
        let state = self.state.as_deref();
        self.reason.is_some() && state == Some("idle")
            || matches!(state, Some("committed" | "rolled_back" | "failed"))
    }
}

/// Keeps what the daemon has to tell about its updates, for a stick that may come: what it publishes as
/// `ota/state`, with at least the keys of [`Told`].
///
/// # Errors
/// The disk is full or broken; the report before this one is still there.
pub fn keep_report(ota_dir: &Path, report: &[u8]) -> io::Result<()> {
    replace(&ota_dir.join(REPORT), report, 0o644)
}

/// What the daemon has told last.
///
/// # Errors
/// It cannot be read, or is longer than [`REPORT_BYTES_MAX`].
pub fn kept_report(ota_dir: &Path) -> io::Result<Option<Vec<u8>>> {
    read_bounded(&ota_dir.join(REPORT), REPORT_BYTES_MAX)
}

/// Writes a report onto a stick, with its signature and the key to check it with. Nothing is written anywhere
/// else, whatever links stand on the stick.
///
/// # Errors
/// The stick is full, read-only or gone, or holds something else where reports go.
pub fn write_report(stick: &Path, node: &str, report: &[u8], key: &DeviceKey) -> io::Result<()> {
    assert!(
        !node.starts_with('.') && !node.contains('/'),
        "names of nodes are checked when they are configured"
    );
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(stick, flags, Mode::empty())?;
    match mkdirat(&root, REPORTS, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let reports = open_beneath(&root, REPORTS, OFlag::O_DIRECTORY | OFlag::O_RDONLY)?;
    // The signature is last: a report with one is whole.
    for (suffix, bytes) in [
        (".pub.pem", key.public_pem().as_bytes()),
        (".json", report),
        (".json.sig", &key.sign(report)),
    ] {
        let (name, new) = (format!("{node}{suffix}"), format!("{node}{suffix}.new"));
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let mut file = File::from(open_beneath(&reports, &new, flags)?);
        file.write_all(bytes)?;
        file.sync_all()?;
        renameat(&reports, new.as_str(), &reports, name.as_str())?;
    }
    File::from(reports).sync_all()
}

fn open_beneath(dir: &OwnedFd, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(match flags.contains(OFlag::O_CREAT) {
            true => Mode::from_bits_truncate(0o644),
            false => Mode::empty(),
        })
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(dir, name, how)?)
}

/// The old content or the new one is there afterwards, and readable for others as `mode` says.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let new = path.with_extension("json.new");
    // Root may have left one behind that we cannot write.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&new)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    give_to_owner_above(&new)?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > bytes_max {
        true => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {bytes_max} bytes"),
        )),
        false => Ok(Some(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("metadata")).unwrap();
        fs::create_dir(dir.path().join("targets")).unwrap();
        dir
    }

    #[test]
    fn a_request_is_taken_once_and_a_later_one_takes_its_place() {
        let (ota, stick) = (tempfile::tempdir().unwrap(), repository());
        assert_eq!(Request::take(ota.path()).unwrap(), None);
        Request::new("a", stick.path())
            .unwrap()
            .leave(ota.path())
            .unwrap();
        let second = Request::new("b", stick.path()).unwrap();
        second.leave(ota.path()).unwrap();
        assert!(Request::is_waiting(ota.path()));
        assert_eq!(Request::take(ota.path()).unwrap(), Some(second));
        assert_eq!(Request::take(ota.path()).unwrap(), None);
    }

    #[test]
    fn a_directory_that_is_no_repository_is_no_request() {
        let dir = tempfile::tempdir().unwrap();
        let refused = Request::new("a", dir.path()).unwrap_err().to_string();
        assert!(refused.contains("no directory metadata"), "{refused}");
        assert!(Request::new("a", &dir.path().join("gone")).is_err());
    }

    #[test]
    fn garbage_in_the_place_of_a_request_is_dropped_with_an_error() {
        let ota = tempfile::tempdir().unwrap();
        let long = vec![b' '; 9000];
        for garbage in [&b"{"[..], br#"{"id":"a","path":"relative"}"#, &long] {
            fs::write(ota.path().join(REQUEST), garbage).unwrap();
            assert!(Request::take(ota.path()).is_err());
            assert_eq!(Request::take(ota.path()).unwrap(), None);
        }
    }

    #[test]
    fn any_tool_can_check_a_report_and_sees_a_changed_byte() {
        let (ota, stick) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = DeviceKey::load_or_make(&ota.path().join("device.key")).unwrap();
        let report = br#"{"phase":"committed"}"#;
        keep_report(ota.path(), report).unwrap();
        let kept = kept_report(ota.path()).unwrap().unwrap();
        write_report(stick.path(), "node-1", &kept, &key).unwrap();
        // A second one takes the place of the first.
        write_report(stick.path(), "node-1", &kept, &key).unwrap();
        let reports = stick.path().join(REPORTS);
        assert_eq!(fs::read_dir(&reports).unwrap().count(), 3);
        assert_eq!(fs::read(reports.join("node-1.json")).unwrap(), report);
        let verified = || {
            let ran = Command::new("openssl")
                .args([
                    "pkeyutl",
                    "-verify",
                    "-pubin",
                    "-inkey",
                    "node-1.pub.pem",
                    "-rawin",
                ])
                .args(["-in", "node-1.json", "-sigfile", "node-1.json.sig"])
                .current_dir(&reports)
                .output();
            ran.ok().map(|ran| ran.status.success())
        };
        let signature = fs::read(reports.join("node-1.json.sig")).unwrap();
        assert!(DeviceKey::is_signed(&key.public(), report, &signature));
        assert!(!DeviceKey::is_signed(&key.public(), b"other", &signature));
        if let Some(verified_by_openssl) = verified() {
            assert!(verified_by_openssl);
            fs::write(reports.join("node-1.json"), br#"{"phase":"failed   "}"#).unwrap();
            assert_eq!(verified(), Some(false));
        }
    }

    #[test]
    fn links_on_a_stick_lead_no_report_out_of_it() {
        let (ota, stick) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outside = tempfile::tempdir().unwrap();
        let key = DeviceKey::load_or_make(&ota.path().join("device.key")).unwrap();
        symlink(outside.path(), stick.path().join(REPORTS)).unwrap();
        write_report(stick.path(), "n", b"{}", &key).unwrap_err();
        fs::remove_file(stick.path().join(REPORTS)).unwrap();
        fs::create_dir(stick.path().join(REPORTS)).unwrap();
        let victim = outside.path().join("victim");
        symlink(&victim, stick.path().join("reports/n.json.new")).unwrap();
        write_report(stick.path(), "n", b"{}", &key).unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
