//! Configuration: the one place that reads configuration files and the environment.
//!
//! Three layers of meaning:
//!
//! 1. **fragments** (`layers`): each source as it stands, values with their origin, merged key by key:
//!
//! ```text
//!    default.toml (embedded) < policy of the fleet < /etc/orinoco/config.toml < config.d/*.toml < ORINOCO__SECTION__KEY < --set, flags
//! ```
//!
//! 2. **reading** (`reader`): every key is asked for once, with its type and what is allowed. What nobody
//!    asked for is an unknown key. Problems are gathered, so an operator sees all of them at once.
//! 3. **settings**: [`Config`] and its part structs, valid by construction: durations instead of numbers,
//!    absolute paths, resolved defaults. The rest of the program sees nothing else, and each part gets its
//!    own struct, never the whole.
//!
//! Secrets are never configuration values, only paths of files that hold them.
//!
//! This module never starts anything, never writes, and is never consulted again after [`load`].

mod engine;
mod environment;
mod home_assistant;
mod layers;
mod memory;
mod mqtt;
mod node;
mod ota;
mod pools;
mod power;
mod problem;
mod reader;
mod requests;
mod sessions;
mod show;
mod telemetry;
mod templates;
#[cfg(test)]
mod tests;
mod users;
mod watchdog;

use std::collections::BTreeMap;
use std::path::Path;

pub use engine::{EmbeddingsConfig, EngineConfig, InTurn, ModelConfig, ModelsConfig};
pub use environment::{Environment, OF_THE_ENGINE};
pub use home_assistant::HomeAssistantConfig;
pub use layers::{Flag, Place, Sources};
pub use memory::MemoryConfig;
pub use mqtt::{BrokerConfig, BrokerMode, BrokerStorage, MqttConfig, TlsConfig};
pub use node::{LogConfig, LogFormat, NodeConfig, PathsConfig, StoreConfig, check_log_filter};
pub use ota::{OtaConfig, OtaDeployConfig, OtaFetchConfig, OtaScrubConfig};
pub use pools::PoolsConfig;
pub use power::{Basis, Choose, Figure, PowerConfig, ProfileConfig, shipped_profiles};
pub use problem::{Entry, Problem};
pub use requests::RequestsConfig;
pub use sessions::SessionsConfig;
pub use telemetry::TelemetryConfig;
pub use users::{UserConfig, UserLimits, UserPolicy, UsersConfig};
pub use watchdog::{Threshold, WatchdogConfig};

use crate::wire::request::template::Templates;
use problem::Report;

/// The documented defaults, as compiled in. Every key that exists stands there.
pub const DEFAULT_TOML: &str = include_str!("../configs/default.toml");

/// Everything that an operator can decide, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Who this board is.
    pub node: NodeConfig,
    /// Where it writes.
    pub paths: PathsConfig,
    /// How it reaches the broker.
    pub mqtt: MqttConfig,
    /// The broker that comes with it.
    pub broker: BrokerConfig,
    /// Which models there are, and how they are loaded.
    pub models: ModelsConfig,
    /// The worker process and its loop.
    pub engine: EngineConfig,
    /// When memory is short.
    pub watchdog: WatchdogConfig,
    /// Numbers that are published.
    pub telemetry: TelemetryConfig,
    /// Whether Home Assistant is told of this node.
    pub home_assistant: HomeAssistantConfig,
    /// How the model follows the power mode.
    pub power: PowerConfig,
    /// What serves in which power mode: the operator's own, before those of [`shipped_profiles`].
    pub profiles: BTreeMap<String, ProfileConfig>,
    /// What a model must fit into.
    pub memory: MemoryConfig,
    /// Limits and timing of requests.
    pub requests: RequestsConfig,
    /// Groups of nodes that share requests.
    pub pools: PoolsConfig,
    /// Updates of models.
    pub ota: OtaConfig,
    /// The job store.
    pub store: StoreConfig,
    /// Conversations that it keeps.
    pub sessions: SessionsConfig,
    /// What users get by default and what they may ask for.
    pub users: UsersConfig,
    /// Wordings for requests that bring what varies alone.
    pub templates: Templates,
    /// What is logged and how.
    pub log: LogConfig,
    /// Every key in force with its value and origin, for `config show`.
    pub entries: Vec<Entry>,
}

/// Why a configuration was refused: all of it, not the first mistake only.
#[derive(Debug, thiserror::Error)]
#[error("{}", summary(.problems))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// Reads, merges and validates all sources.
///
/// # Errors
/// [`ConfigError`] with every unknown key, bad value, unreadable file and contradiction found.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let mut report = Report::default();
    let tree = layers::merge(sources, &mut report);
    let mut root = reader::Root::new(tree, sources, &mut report);

    let node = NodeConfig::read(&mut root);
    let paths = PathsConfig::read(&mut root);
    let broker = BrokerConfig::read(&mut root, &paths);
    let mqtt = MqttConfig::read(&mut root, &node, broker.mode);
    let models = ModelsConfig::read(&mut root, &paths);
    let mut engine = EngineConfig::read(&mut root);
    let watchdog = WatchdogConfig::read(&mut root);
    let telemetry = TelemetryConfig::read(&mut root);
    let home_assistant = HomeAssistantConfig::read(&mut root);
    let power = PowerConfig::read(&mut root, &paths);
    let profiles = power::read_profiles(&mut root);
    let memory = MemoryConfig::read(&mut root);
    let requests = RequestsConfig::read(&mut root, &mqtt);
    let pools = PoolsConfig::read(&mut root);
    let ota = OtaConfig::read(&mut root, &paths);
    let store = StoreConfig::read(&mut root);
    let sessions = SessionsConfig::read(&mut root, &store);
    if let Some(saved) = &mut engine.saved_states {
        saved.age_seconds_max = sessions.idle.as_secs();
    }
    let users = UsersConfig::read(&mut root);
    let templates = templates::read(&mut root);
    let log = LogConfig::read(&mut root);
    root.finish();

    let (entries, problems) = report.into_parts();
    if !problems.is_empty() {
        return Err(ConfigError { problems });
    }
    Ok(Config {
        node,
        paths,
        mqtt,
        broker,
        models,
        engine,
        watchdog,
        telemetry,
        home_assistant,
        power,
        profiles,
        memory,
        requests,
        pools,
        ota,
        store,
        sessions,
        users,
        templates,
        log,
        entries,
    })
}

impl Config {
    /// The values in force as TOML, one section after the other; `origin` adds where each was set.
    pub fn to_toml(&self, origin: bool) -> String {
        show::to_toml(&self.entries, origin)
    }
}

/// `/etc/orinoco`, where [`Place::System`] looks.
pub fn system_dir() -> &'static Path {
    Path::new("/etc/orinoco")
}

fn summary(problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => String::from("the configuration has a problem"),
        n => format!("the configuration has {n} problems"),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}

/// A file that belongs to the configuration and is read while loading: at most `bytes_max` bytes of UTF-8.
fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("not a regular file".into());
    }
    let mut text = String::new();
    file.take(bytes_max + 1)
        .read_to_string(&mut text)
        .map_err(|e| e.to_string())?;
    if text.len() as u64 > bytes_max {
        return Err(format!("larger than {bytes_max} bytes"));
    }
    Ok(text)
}
