//! The machine around the daemon: its account, its secrets, the kernel, disks and clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::service::Service;
use crate::board::Root;
use crate::config::{BrokerMode, Config};
use crate::secret::{self, SecretError};

/// Largest list of accounts that is read, bytes.
const ACCOUNTS_BYTES_MAX: usize = 1 << 20;

/// Largest key or certificate, bytes.
const SECRET_BYTES_MAX: usize = 256 << 10;

/// The user that the daemon runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub user: String,
    /// Whether there is one of that name.
    pub exists: bool,
    /// Groups that it is a member of while the service runs.
    pub groups: BTreeSet<String>,
    /// All groups of the board.
    pub known_groups: BTreeSet<String>,
}

impl Account {
    /// The account that `service` names.
    pub fn read(root: &Root, service: &Service) -> Self {
        let user = service.last("User").unwrap_or("root").to_owned();
        let rows = |path: &str| -> Vec<Vec<String>> {
            let bytes = root.bytes(path, ACCOUNTS_BYTES_MAX).ok().flatten();
            let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
            let rows = text
                .lines()
                .map(|line| line.split(':').map(str::to_owned).collect());
            rows.collect()
        };
        let passwd = rows("/etc/passwd");
        let own = passwd.iter().find(|row| row.first() == Some(&user));
        let gid = own.and_then(|row| row.get(3));
        let mut account = Self {
            exists: own.is_some(),
            user,
            ..Self::default()
        };
        for row in rows("/etc/group") {
            let [name, _, id, members] = row.as_slice() else {
                continue;
            };
            let is_member = members.split(',').any(|member| member == account.user);
            if is_member || Some(id) == gid {
                account.groups.insert(name.clone());
            }
            account.known_groups.insert(name.clone());
        }
        let supplementary = service
            .all("SupplementaryGroups")
            .flat_map(str::split_whitespace);
        account.groups.extend(supplementary.map(str::to_owned));
        account
            .groups
            .extend(service.last("Group").map(str::to_owned));
        account
    }
}

/// A file with a secret that the daemon is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Who names it: a key of the configuration, or the unit.
    pub named_by: String,
    /// On the board.
    pub path: String,
    /// Whether it can be used.
    pub state: SecretState,
}

/// Whether a secret can be used. What is in it is forgotten at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretState {
    /// It can, and nobody else can read it.
    Fine,
    /// It is not there, and the unit has something in its place.
    AbsentByChoice,
    /// We are not allowed to look.
    Hidden,
    /// It cannot, or others can read it too: a sentence.
    Bad(String),
}

/// All secrets that configuration and unit name.
pub fn secrets(root: &Root, config: &Config, service: Option<&Service>) -> Vec<Secret> {
    let mut files: BTreeMap<String, (String, bool)> = BTreeMap::new();
    if config.broker.mode != BrokerMode::Child {
        let password = config.mqtt.password_file.as_ref();
        let key = (config.mqtt.tls.as_ref()).and_then(|tls| Some(&tls.identity.as_ref()?.1));
        for (named_by, path) in [("mqtt.password_file", password), ("mqtt.tls_key_file", key)] {
            if let Some(path) = path {
                files.insert(path.display().to_string(), (named_by.into(), false));
            }
        }
    }
    for service in service.into_iter() {
        for (name, path) in service.credentials() {
            let entry = (
                format!("LoadCredential={name}"),
                service.has_fallback(&name),
            );
            files.entry(path).or_insert(entry);
        }
    }
    let secret = |(path, (named_by, has_fallback)): (String, (String, bool))| Secret {
        state: secret_state(root, &path, has_fallback),
        named_by,
        path,
    };
    files.into_iter().map(secret).collect()
}

fn secret_state(root: &Root, path: &str, has_fallback: bool) -> SecretState {
    let at = root.resolve(path).unwrap_or_else(|_| path.into());
    match secret::read(&at, SECRET_BYTES_MAX) {
        Ok(bytes) if bytes.first().is_none_or(|first| *first == b'\n') => {
            SecretState::Bad("its first line is empty".into())
        }
        Ok(_) => SecretState::Fine,
        Err(SecretError::Io { source, .. }) => match source.kind() {
            std::io::ErrorKind::NotFound if has_fallback => SecretState::AbsentByChoice,
            std::io::ErrorKind::PermissionDenied => SecretState::Hidden,
            _ => SecretState::Bad(source.to_string()),
        },
        Err(SecretError::Open { mode, .. }) => SecretState::Bad(format!(
            "its mode is {mode:04o}, so that others can read it"
        )),
        Err(_) => SecretState::Bad("it is longer than any secret".into()),
    }
}

/// What the kernel has to hold the engine in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// Its release, e.g. `5.15.148-tegra`.
    pub release: Option<String>,
    /// Security modules that are on; `None` where the kernel does not show them.
    pub modules: Option<Vec<String>>,
    /// Whether system calls can be filtered.
    pub has_seccomp: bool,
}

impl Kernel {
    /// Reads it; what cannot be read is not there.
    pub fn read(root: &Root) -> Self {
        let line = |path: &str| {
            root.line(path)
                .ok()
                .flatten()
                .filter(|text| !text.is_empty())
        };
        let modules = line("/sys/kernel/security/lsm");
        Self {
            release: line("/proc/sys/kernel/osrelease"),
            modules: modules.map(|text| text.split(',').map(str::to_owned).collect()),
            has_seccomp: root.exists("/proc/sys/kernel/seccomp/actions_avail"),
        }
    }
}

/// Clocks. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clocks {
    /// Now; only of this machine.
    pub now: Option<SystemTime>,
    /// What the hardware clock says.
    pub hardware: Option<SystemTime>,
    /// Whether systemd-timesyncd has heard from a server since boot.
    pub is_synchronized: bool,
}

impl Clocks {
    /// Reads them.
    pub fn read(root: &Root) -> Self {
        let clocks = root.names("/sys/class/rtc", "rtc").into_iter();
        let mut seconds = clocks.filter_map(|name| {
            let path = format!("/sys/class/rtc/{name}/since_epoch");
            root.number(&path, 0..=1_u64 << 40).ok().flatten()
        });
        Self {
            now: root.is_live().then(SystemTime::now),
            hardware: seconds
                .next()
                .map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s)),
            is_synchronized: root.exists("/run/systemd/timesync/synchronized"),
        }
    }
}

/// A file system that the daemon writes to or reads models from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The key of the configuration that names the directory.
    pub named_by: &'static str,
    /// The directory, or the nearest above it that exists.
    pub path: PathBuf,
    /// For users without privilege.
    pub free_bytes: u64,
    /// Its size.
    pub size_bytes: u64,
    /// Mounted read-only.
    pub is_read_only: bool,
}

/// The disks of this machine; none for a tree.
pub fn disks(root: &Root, config: &Config) -> Vec<Disk> {
    if !root.is_live() {
        return Vec::new();
    }
    let dirs = [
        ("paths.state_dir", &config.paths.state_dir),
        ("paths.models_dir", &config.paths.models_dir),
    ];
    dirs.into_iter()
        .filter_map(|(named_by, dir)| disk(named_by, dir))
        .collect()
}

fn disk(named_by: &'static str, dir: &Path) -> Option<Disk> {
    let path = dir.ancestors().find(|dir| dir.exists())?;
    let stat = statvfs(path).ok()?;
    // Their types differ between platforms.
    #[allow(clippy::useless_conversion, reason = "u32 on some platforms")]
    let (free, size) = (u64::from(stat.blocks_available()), u64::from(stat.blocks()));
    let fragment = stat.fragment_size();
    Some(Disk {
        named_by,
        path: path.to_path_buf(),
        free_bytes: free.saturating_mul(fragment),
        size_bytes: size.saturating_mul(fragment),
        is_read_only: stat.flags().contains(FsFlags::ST_RDONLY),
    })
}
