//! The small sections: `[node]`, `[paths]`, `[store]`, `[log]`.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::wire::topic::{Name, Names};

use super::reader::Root;

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of this board on MQTT, never empty.
    pub name: String,
    /// First level, or levels, of every topic.
    pub root: String,
}

impl NodeConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("node");
        let name = section.checked("name", |name| match name {
            "" => Ok(derived_name()),
            name => check_name(name).map(|()| name.to_owned()),
        });
        let topic_root = section.checked("root", |root| {
            let anyone = Name::new("x").expect("a letter is a name");
            match Names::new(root, anyone) {
                Ok(_) => Ok(root.to_owned()),
                Err(e) => Err(format!("a name, or names joined by /: {e}")),
            }
        });
        Self {
            name: name.unwrap_or_default(),
            root: topic_root.unwrap_or_default(),
        }
    }
}

/// `[paths]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathsConfig {
    /// What the daemon writes.
    pub state_dir: PathBuf,
    /// GGUF files.
    pub models_dir: PathBuf,
    /// What the board is read below.
    pub board_root: PathBuf,
}

impl PathsConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("paths");
        let state_dir = section.path("state_dir").unwrap_or_default();
        if state_dir.as_os_str().is_empty() {
            section.contradiction(
                "state_dir",
                "",
                "expected an absolute path: the daemon must write somewhere".into(),
            );
        }
        let models_dir = section
            .path("models_dir")
            .unwrap_or_else(|| state_dir.join("models"));
        let board_root = section.path("board_root");
        Self {
            state_dir,
            models_dir,
            board_root: board_root.unwrap_or_else(|| PathBuf::from("/")),
        }
    }

    /// Model files that updates brought, metadata, and what is known of deployments.
    pub fn ota_dir(&self) -> PathBuf {
        self.state_dir.join("ota")
    }

    /// The users of the embedded broker, kept by `orinoco user`.
    pub fn users_file(&self) -> PathBuf {
        self.state_dir.join("users.toml")
    }
}

/// `[store]`: the job store, below `state_dir`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Most bytes on disk.
    pub bytes_max: u64,
    /// Page cache.
    pub cache_bytes: usize,
}

impl StoreConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("store");
        Self {
            bytes_max: section.integer("bytes_max", 16 << 20..=1 << 40),
            cache_bytes: section.integer("cache_bytes", 64 << 10..=1 << 30),
        }
    }
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or levels by target (`info,orinoco::link=debug`).
    pub level: String,
    /// Where lines go.
    pub format: LogFormat,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// The journal under systemd, text elsewhere.
    Auto,
    /// Lines on stderr.
    Text,
    /// The journal, or an error.
    Journal,
}

impl LogFormat {
    /// Its word in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Journal => "journal",
        }
    }
}

impl LogConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("log");
        let level = section.checked("level", |level| {
            check_log_filter(level).map(|()| level.to_owned())
        });
        Self {
            level: level.unwrap_or_default(),
            format: section.choice(
                "format",
                &[
                    ("auto", LogFormat::Auto),
                    ("text", LogFormat::Text),
                    ("journal", LogFormat::Journal),
                ],
            ),
        }
    }
}

/// Checks a filter: a level, or `target=level`, separated by commas. The error completes "expected ...".
///
/// # Errors
/// What is allowed.
///
/// Stricter than the parser of `tracing-subscriber`, to which `wran` is the name of a target.
pub fn check_log_filter(filter: &str) -> Result<(), String> {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    let expected = || {
        format!(
            "one of {}, or target=level, separated by commas",
            LEVELS.join(", ")
        )
    };
    for directive in filter.split(',') {
        let (target, level) = directive.split_once('=').unwrap_or(("orinoco", directive));
        let is_target = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-');
        if !LEVELS.contains(&level) || target.is_empty() || !target.chars().all(is_target) {
            return Err(expected());
        }
    }
    Ok(())
}

/// A name of a node, user or model: one level of a topic, no reserved word.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let fine = Name::new(name).map_err(|_| "1 to 64 of A-Z a-z 0-9 _ . -".to_owned())?;
    match fine.is_reserved() {
        true => Err(format!(
            "another name: {name:?} has a place of its own in topics"
        )),
        false => Ok(()),
    }
}

/// `node-` and eight hexadecimal digits, from the machine id. machine-id(5) asks not to show the id itself,
/// so it is hashed with our own prefix. A board without one (first boot, containers) gives its host name.
fn derived_name() -> String {
    let read = |path: &str| super::read_bounded(Path::new(path), 4096).ok();
    let machine = read("/etc/machine-id").filter(|id| id.trim().len() == 32);
    let host = || read("/proc/sys/kernel/hostname");
    name_from(&machine.or_else(host).unwrap_or_default())
}

pub(super) fn name_from(machine: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(b"orinoco node name\0");
    hash.update(machine.trim().as_bytes());
    let digest = hash.finalize();
    format!(
        "node-{:02x}{:02x}{:02x}{:02x}",
        digest[0], digest[1], digest[2], digest[3]
    )
}
