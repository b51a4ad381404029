//! `[ota]` and what is below it: whom updates are believed from, what is taken and when, where it comes from, how
//! gently, and how often it is read again.

use std::path::PathBuf;
use std::time::Duration;

use super::PathsConfig;
use super::reader::Root;

/// Where `orinoco provision` puts it.
const ROOT_FILE: &str = "/etc/orinoco/root.json";

/// Longest name of a group, bytes: as long as other names on MQTT.
const GROUP_BYTES_MAX: usize = 64;

/// Most sources.
const SOURCES_MAX: usize = 8;

/// `[ota.…]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtaConfig {
    /// Where trust begins. Without the file there are no updates.
    pub root_file: PathBuf,
    /// Which releases are for this node.
    pub group: Option<String>,
    /// What is taken, and when.
    pub deploy: OtaDeployConfig,
    /// How files come.
    pub fetch: OtaFetchConfig,
    /// How they are looked after.
    pub scrub: OtaScrubConfig,
}

/// `[ota.deploy]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtaDeployConfig {
    /// Where updates keep their files.
    pub dir: PathBuf,
    /// Time between two looks at the sources; zero: only by command.
    pub check: Duration,
    /// How long a new release must stay up.
    pub probation: Duration,
}

/// `[ota.fetch]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtaFetchConfig {
    /// Addresses and directories, in the order in which they are asked.
    pub sources: Vec<String>,
    /// Authorities for `https` sources.
    pub ca_file: Option<PathBuf>,
    /// `None`: as fast as it comes.
    pub bytes_per_second_max: Option<u64>,
    /// Whether a fetch stands still while requests run.
    pub pause_while_busy: bool,
    /// Must stay free on the disk.
    pub reserve_bytes: u64,
    /// For a connection to come up.
    pub connect_timeout: Duration,
    /// How long nothing may come.
    pub stall_timeout: Duration,
    /// Longest time between two tries.
    pub retry_max: Duration,
}

/// `[ota.scrub]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtaScrubConfig {
    /// `None`: never.
    pub interval: Option<Duration>,
    /// Reading rate.
    pub bytes_per_second_max: u64,
}

impl OtaConfig {
    pub(super) fn read(root: &mut Root<'_>, paths: &PathsConfig) -> Self {
        let mut section = root.own("ota", &["deploy", "fetch", "scrub"]);
        let root_file = section.path("root_file");
        let group = section.optional_text("group", GROUP_BYTES_MAX);
        drop(section);
        Self {
            root_file: root_file.unwrap_or_else(|| ROOT_FILE.into()),
            group,
            deploy: OtaDeployConfig::read(root, paths),
            fetch: OtaFetchConfig::read(root),
            scrub: OtaScrubConfig::read(root),
        }
    }
}

impl OtaDeployConfig {
    fn read(root: &mut Root<'_>, paths: &PathsConfig) -> Self {
        let mut section = root.below("ota", "deploy");
        let dir = section.path("dir");
        let minutes: u64 = section.integer("check_minutes", 0..=100_000);
        let probation: u64 = section.integer("probation_minutes", 0..=100_000);
        Self {
            dir: dir.unwrap_or_else(|| paths.state_dir.join("ota")),
            check: Duration::from_secs(minutes * 60),
            probation: Duration::from_secs(probation * 60),
        }
    }
}

impl OtaFetchConfig {
    fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.below("ota", "fetch");
        let sources = section.words_in_order("sources", SOURCES_MAX, check_source);
        let ca_file = section.path("ca_file");
        let bytes_per_second_max: u64 = section.integer("bytes_per_second_max", 0..=1 << 40);
        let config = Self {
            sources,
            ca_file,
            bytes_per_second_max: Some(bytes_per_second_max).filter(|rate| *rate > 0),
            pause_while_busy: section.boolean("pause_while_busy"),
            reserve_bytes: section.integer("reserve_bytes", 0..=1 << 40),
            connect_timeout: section.seconds("connect_timeout_seconds", 1..=300),
            stall_timeout: section.seconds("stall_timeout_seconds", 1..=3600),
            retry_max: section.seconds("retry_seconds_max", 1..=86_400),
        };
        if config.ca_file.is_none()
            && config
                .sources
                .iter()
                .any(|source| source.starts_with("https://"))
        {
            section.contradiction(
                "ca_file",
                "ota.fetch.sources",
                "an https source needs the authorities that may have issued its certificate; what comes is \
                 signed in any case, so a mirror on the site may be http"
                    .into(),
            );
        }
        config
    }
}

impl OtaScrubConfig {
    fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.below("ota", "scrub");
        let hours: u64 = section.integer("interval_hours", 0..=87_600);
        Self {
            interval: Some(Duration::from_secs(hours * 3600))
                .filter(|interval| !interval.is_zero()),
            bytes_per_second_max: section.integer("bytes_per_second_max", 1 << 16..=1 << 40),
        }
    }
}

/// What the program that opens it checks again in full.
fn check_source(source: &str) -> Result<(), String> {
    let host = source
        .strip_prefix("http://")
        .or_else(|| source.strip_prefix("https://"));
    let is_place = match host {
        Some(rest) => {
            let host = rest.split('/').next().unwrap_or_default();
            !host.is_empty() && !host.contains('@') && !rest.contains(['?', '#'])
        }
        None => source.starts_with('/'),
    };
    let is_short = source.len() <= 1000 && !source.contains(|c: char| c.is_control() || c == ' ');
    match is_place && is_short {
        true => Ok(()),
        false => Err(
            "sources like \"http://HOST/PATH\", \"https://HOST/PATH\" without a password, or an absolute path".into(),
        ),
    }
}
