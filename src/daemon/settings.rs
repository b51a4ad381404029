//! From the operator's configuration to what each part takes. Each part gets its own and never the whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::sync::watch;
use tracing::{info, warn};

use super::lineup::{Lineup, draft, release_config};
use super::{credentials, hardware};
use crate::access::Role;
use crate::board::Root;
use crate::board::power::PowerProbe;
use crate::board::watch::{PowerWatch, WatchConfig};
use crate::broker::{BrokerConfig, PortChoice};
use crate::config::{
    BrokerMode, BrokerStorage, Choose, Config, InTurn, UserConfig, UserPolicy, UsersConfig,
};
use crate::dispatch::{
    self, Accounts, Discovery, EmbedSettings, Settings, UserEntry, UserSettings, UsersSettings,
};
use crate::frames::LoadSpec;
use crate::governor::{self, Lineup as _, Moment};
use crate::ledger::Rules;
use crate::link::{Credentials, LinkConfig};
use crate::models::release;
use crate::models::{Catalogue, Entry, Releases};
use crate::selection::{Line, Source};
use crate::store::{SessionBounds, StoreConfig};
use crate::wire::report::{Model, Presence, Status};
use crate::wire::request::history::Bounds;
use crate::wire::request::{Defaults, Limits, Priority};
use crate::wire::topic::{Names, Op};
use crate::worker::{AdmissionConfig, WorkerConfig};

pub(super) fn store(config: &Config) -> StoreConfig {
    let defaults = StoreConfig::new(&config.paths.state_dir);
    StoreConfig {
        cache_bytes: config.store.cache_bytes,
        file_bytes_max: config.store.bytes_max,
        // The queue's own bounds come first; these hold whatever else goes wrong.
        pending_jobs_max: (config.requests.queue_jobs_max as u64)
            .saturating_mul(2)
            .max(64),
        pending_bytes_max: defaults
            .pending_bytes_max
            .max(config.requests.queue_bytes_max as u64 * 2),
        retention: config.requests.retention,
        sessions: SessionBounds {
            per_user_max: config.sessions.per_user_max,
            total_bytes_max: config.sessions.total_bytes_max,
            idle_max: config.sessions.idle,
        },
        ..defaults
    }
}

/// The embedded broker, as a child or as a service of its own.
///
/// # Errors
/// A storage that this mode cannot have.
pub fn broker(config: &Config, daemon_password: Option<String>) -> anyhow::Result<BrokerConfig> {
    let own = &config.broker;
    let storage = match (own.storage, own.mode) {
        (BrokerStorage::File, _) => own.storage_dir.clone(),
        // mqtt5 keeps its sessions in files; a memory file system forgets them with the power.
        (BrokerStorage::Memory, BrokerMode::Child) => {
            PathBuf::from("/dev/shm").join(format!("orinoco-broker-{}", config.node.name))
        }
        (BrokerStorage::Memory, _) => bail!(
            "broker.storage = \"memory\" is for broker.mode = \"child\"; a unit keeps sessions in files"
        ),
    };
    Ok(BrokerConfig {
        listen: vec![own.listen],
        // The daemon of a unit looks for it at the port of the configuration.
        port: match own.port_search && own.mode != BrokerMode::Unit {
            true => PortChoice::FirstFreeFrom(own.port),
            false => PortChoice::Exactly(own.port),
        },
        storage,
        root: config.node.root.clone(),
        users: Some(config.paths.users_file()),
        roles: config.users.roles(),
        daemon_password,
        packet_bytes_max: config.mqtt.packet_bytes_max,
        clients_max: own.clients_max,
        clients_per_user_max: own.clients_per_user_max,
        connecting_max: own.connecting_max,
        connecting_limit: own.connecting,
        queued_messages_max: own.queue_messages_max,
        queued_bytes_max: own.queue_bytes_max,
        retained_messages_max: own.retained_messages_max,
        retained_bytes_max: own.retained_bytes_max,
        message_rate_max: own.message_rate_max,
        subscriptions_max: own.subscriptions_max,
        session_expiry_max: own.session_expiry_max,
    })
}

/// The broker of `broker.mode = "unit"`: where it listens, and the daemon's password on it.
///
/// # Errors
/// There is no such password.
pub(super) fn unit_broker(config: &Config) -> anyhow::Result<(SocketAddr, String)> {
    let listen = match config.broker.listen {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    let password = credentials::unit_password(config)?;
    Ok((SocketAddr::new(listen, config.broker.port), password))
}

/// The link to the broker: our own at `broker`, or the one in the configuration.
pub(super) fn link(
    config: &Config,
    names: &Names,
    boot: &str,
    now_ms: u64,
    broker: Option<(SocketAddr, String)>,
) -> anyhow::Result<LinkConfig> {
    let mqtt = &config.mqtt;
    let (host, port, client_id, credentials, tls) = match broker {
        Some((address, password)) => {
            let credentials = Credentials {
                user: crate::access::DAEMON.into(),
                password,
            };
            let client_id = crate::broker::daemon_client_id(&config.node.name);
            (
                address.ip().to_string(),
                address.port(),
                client_id,
                Some(credentials),
                None,
            )
        }
        None => (
            mqtt.host.clone(),
            mqtt.port,
            mqtt.client_id.clone(),
            credentials::credentials(mqtt)?,
            credentials::tls(mqtt)?,
        ),
    };
    let offline = Status {
        state: Presence::Offline,
        boot: boot.into(),
        since_ms: now_ms,
    };
    Ok(LinkConfig {
        credentials,
        tls,
        keep_alive: mqtt.keep_alive,
        packet_bytes_max: mqtt.packet_bytes_max,
        inflight: mqtt.inflight_max,
        receive_max: mqtt.receive_max,
        session_expiry: mqtt.session_expiry,
        connect_timeout: mqtt.connect_timeout,
        stall: mqtt.stall,
        backoff_min: mqtt.backoff_min,
        backoff_max: mqtt.backoff_max,
        subscriptions: names.subscriptions(),
        will: Some(dispatch::retained(names.status(), &offline)),
        inbound_capacity: mqtt.inbound_messages_max,
        outbox_capacity: mqtt.outbox_messages_max,
        ..LinkConfig::new(host, port, client_id)
    })
}

/// What serves first, among what.
pub struct Choice {
    first: Result<First, String>,
    /// How each model of the catalogue would be loaded, the largest file first.
    loads: Vec<LoadSpec>,
    /// What came as signed releases.
    pub(super) releases: Releases,
    pub(super) all: Vec<Model>,
}

/// A model to serve.
struct First {
    line: Line,
    load: LoadSpec,
}

impl Choice {
    fn first(&self) -> Option<&First> {
        self.first.as_ref().ok()
    }
}

/// The model that the configuration names, else the one for the power mode, else the only one there is.
///
/// # Errors
/// Nothing to choose, or too much, with what there is.
pub fn choose(config: &Config) -> anyhow::Result<Choice> {
    choose_with(config, None)
}

/// As [`choose`], with these releases beside the files. A board that takes updates may have no model, or not the
/// one that its configuration names: it is to come.
pub(super) fn choose_with(config: &Config, releases: Option<Releases>) -> anyhow::Result<Choice> {
    let takes_updates = releases.is_some();
    let releases = releases.unwrap_or_default();
    let dir = &config.paths.models_dir;
    let catalogue = catalogue(config)?;
    let entries = catalogue.entries();
    let known = || {
        let names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
        names.join(", ")
    };
    let (_, watched) = watch::channel(releases.clone());
    let mut lineup = Lineup::read(config, &catalogue, watched);
    let active = config.models.active.as_deref();
    let active = active.map(|name| release::resolve(&releases, name));
    let is_release = |name: &str| releases.iter().any(|release| release.name == name);
    let line = for_power_mode(config, &mut lineup, active);
    let to_come = "the first signed release that arrives will serve";
    let line = match (active, entries) {
        (None, []) if releases.is_empty() => {
            let found = format!("no model in {}", dir.display());
            match takes_updates {
                true => Err(format!("{found}: {to_come}")),
                false => bail!("{found}: add one with `orinoco models add FILE`"),
            }
        }
        (Some(name), _) if catalogue.get(name).is_none() && is_here(config, name) => bail!(
            "model.active is `{name}`, which makes vectors and no text: name it in embeddings.model instead; \
             those that talk are: {}",
            known()
        ),
        (Some(name), _) if catalogue.get(name).is_none() && !is_release(name) => {
            let found = format!(
                "model.active is `{name}`, but {} has: {}",
                dir.display(),
                known()
            );
            match takes_updates {
                true => Err(format!("{found}; {to_come}, if it is one of `{name}`")),
                false => bail!("{found}; add it with `orinoco models add FILE`"),
            }
        }
        (Some(name), _) => Ok(line.unwrap_or_else(|| lineup.plain(name))),
        (None, [only]) if releases.is_empty() => {
            Ok(line.unwrap_or_else(|| lineup.plain(&only.name)))
        }
        (None, _) => match line.filter(|line| line.source != Source::Fallback) {
            Some(line) => Ok(line),
            None => bail!(
                "{} has several models and no profile chooses one: name one in model.active, or in a \
                 [profiles.NAME]; there are: {}",
                dir.display(),
                known()
            ),
        },
    };
    let first = match line {
        Err(why) => {
            warn!(why, "no model serves yet");
            Err(why)
        }
        Ok(line) => {
            let load = lineup.load(&line);
            let load = load.context("a model that was here a moment ago is gone")?;
            Ok(First { line, load })
        }
    };
    let all = entries
        .iter()
        .map(|entry| Model {
            name: entry.name.clone(),
            file_bytes: entry.file_bytes,
            aliases: config.models.get(&entry.name).aliases.clone(),
            ..Model::default()
        })
        .collect();
    let mut by_size: Vec<_> = (entries.iter())
        .filter_map(|entry| Some((entry.file_bytes?, entry)))
        .collect();
    by_size.sort_by_key(|(file_bytes, _)| std::cmp::Reverse(*file_bytes));
    let load_of = |(_, entry): (u64, &Entry)| {
        let model = config.models.get(&entry.name);
        model.load_spec(&config.engine, &entry.name, &entry.path)
    };
    Ok(Choice {
        first,
        releases,
        loads: by_size.into_iter().map(load_of).collect(),
        all,
    })
}

fn catalogue(config: &Config) -> anyhow::Result<Catalogue> {
    let dir = &config.paths.models_dir;
    Catalogue::of_answers(&config.models, dir)
        .with_context(|| format!("failed to list the models in {}", dir.display()))
}

/// Whether a file of this name is here, also one that answers no prompts.
fn is_here(config: &Config, name: &str) -> bool {
    let all = Catalogue::read(&config.models, &config.paths.models_dir);
    all.is_ok_and(|all| all.get(name).is_some())
}

/// What serves best in the power mode of this moment; `None` when no model's file is here.
fn for_power_mode(config: &Config, lineup: &mut Lineup, pinned: Option<&str>) -> Option<Line> {
    let root = Root::new(&config.paths.board_root);
    let module = lineup.identity().module.clone();
    let present = PowerProbe::new(&root, module).read(None);
    let moment = Moment {
        present: &present,
        pinned,
        own_bytes: 0,
        current: None,
    };
    let line = lineup.candidates(&moment).into_iter().next()?;
    let mode = present.effective_mode().map(|mode| mode.name.as_str());
    info!(model = line.model, mode, source = ?line.source, "model chosen");
    Some(line)
}

/// Where workers leave states for the next.
fn kv_dir(config: &Config) -> Option<PathBuf> {
    let saves = config.engine.saved_states.is_some();
    saves.then(|| config.paths.state_dir.join("kv"))
}

/// How the worker is started for this model.
///
/// # Errors
/// This program's own file cannot be found.
pub fn worker(config: &Config, choice: &Choice) -> anyhow::Result<WorkerConfig> {
    let engine = &config.engine;
    let this = std::env::current_exe().context("failed to find this program's own file")?;
    Ok(WorkerConfig {
        program: engine.worker_program(&this),
        load: choice.first().map(|first| first.load.clone()),
        admission: admission(config, choice),
        load_stall: engine.load_stall,
        step_stall: engine.step_stall,
        backoff_min: engine.restart_backoff_min,
        backoff_max: engine.restart_backoff_max,
        resident_max: config.models.resident_max,
        kv_dir: kv_dir(config),
    })
}

/// How the embedding model's worker is started, when somebody asks for it; `None` where none is configured.
///
/// # Errors
/// The model is not here.
pub(super) fn embedder(config: &Config, choice: &Choice) -> anyhow::Result<Option<EmbedSettings>> {
    let Some(name) = &config.models.embeddings.model else {
        return Ok(None);
    };
    let dir = &config.paths.models_dir;
    let all = Catalogue::read(&config.models, dir)
        .with_context(|| format!("failed to list the models in {}", dir.display()))?;
    let entry = all.get(name).with_context(|| {
        format!(
            "embeddings.model is `{name}`, which is not in {}; add it with `orinoco models add FILE`",
            dir.display()
        )
    })?;
    let model = config.models.get(name);
    let load = model.embed_spec(&config.engine, name, &entry.path);
    let mut worker = worker(config, choice)?;
    worker.load = Some(load);
    // None of those that talk would do instead.
    worker.admission.models.clear();
    worker.resident_max = 0;
    Ok(Some(EmbedSettings {
        name: name.clone(),
        worker,
        idle: config.models.embeddings.idle,
    }))
}

/// The session for pools, beside `own`; `None` for a node that is in none.
pub(super) fn pool_link(own: &LinkConfig, names: &Names) -> Option<LinkConfig> {
    if names.pools().is_empty() {
        return None;
    }
    Some(LinkConfig {
        // No name of a node has a colon, so no other daemon's id is like this one.
        client_id: format!("{}:pools", own.client_id),
        subscriptions: names.pool_cancels(),
        switched: names.pool_shares(),
        will: None,
        ..own.clone()
    })
}

/// What the governor goes by. Starts watching the power mode and heat; must be called in the runtime.
///
/// # Errors
/// The models cannot be listed.
pub(super) fn governor(
    config: &Config,
    choice: &Choice,
    releases: watch::Receiver<Releases>,
) -> anyhow::Result<governor::Settings> {
    let (models, engine) = (config.models.clone(), config.engine.clone());
    let dir = config.paths.models_dir.clone();
    let known = releases.clone();
    let candidates = move || {
        let catalogue = match Catalogue::of_answers(&models, &dir) {
            Ok(catalogue) => catalogue,
            Err(error) => {
                warn!(%error, "the models cannot be listed");
                return Vec::new();
            }
        };
        let entries = catalogue.entries().iter();
        let known = known.borrow();
        let file_of = |name: &str| {
            let release = known.iter().find(|release| release.name == name);
            let here = || {
                catalogue
                    .get(name)
                    .filter(|entry| entry.file_bytes.is_some())
            };
            let release = release.map(|release| release.path.clone());
            release.or_else(|| here().map(|entry| entry.path.clone()))
        };
        let candidate = |entry: &crate::models::Entry| {
            let config = models.get(&entry.name);
            Some(governor::Candidate {
                load: LoadSpec {
                    draft: draft(config, None, file_of),
                    ..config.load_spec(&engine, &entry.name, &entry.path)
                },
                file_bytes: entry.file_bytes?,
            })
        };
        let release = |release: &crate::models::Release| {
            let config = release_config(&models, release);
            governor::Candidate {
                load: LoadSpec {
                    draft: draft(&config, release.draft.clone(), file_of),
                    ..config.load_spec(&engine, &release.name, &release.path)
                },
                file_bytes: release.file_bytes,
            }
        };
        let files = entries.filter_map(candidate);
        files.chain(known.iter().map(release)).collect()
    };
    Ok(governor::Settings {
        root: Root::new(&config.paths.board_root),
        thresholds: config.watchdog.enabled.then(|| thresholds(config)),
        first: choice.first().map(|first| first.load.clone()),
        models: Box::new(candidates),
        following: following(config, choice, releases)?,
    })
}

fn thresholds(config: &Config) -> governor::FindThresholds {
    let watchdog = config.watchdog.clone();
    Box::new(move |total_bytes| watchdog.thresholds(total_bytes))
}

/// What the governor takes while it runs.
pub(super) fn tuned(config: &Config) -> governor::Tuned {
    governor::Tuned {
        power: config.power.clone(),
        profiles: config.profiles.clone(),
        thresholds: thresholds(config),
    }
}

fn following(
    config: &Config,
    choice: &Choice,
    releases: watch::Receiver<Releases>,
) -> anyhow::Result<governor::Following> {
    let root = Root::new(&config.paths.board_root);
    let lineup = Lineup::read(config, &catalogue(config)?, releases);
    let module = lineup.identity().module.clone();
    let (watch, present) = PowerWatch::new(&root, module, WatchConfig::new(&root));
    tokio::spawn(watch.run());
    let pinned = match config.power.choose {
        Choose::Off => {
            let first = choice.first().map(|first| first.line.model.clone());
            first.or_else(|| config.models.active.clone())
        }
        Choose::Profiles | Choose::Auto => config.models.active.clone(),
    };
    Ok(governor::Following {
        config: config.power.clone(),
        lineup: Box::new(lineup),
        present,
        heat: governor::watch_heat(root),
        first: choice.first().map(|first| first.line.clone()),
        pinned,
    })
}

fn admission(config: &Config, choice: &Choice) -> AdmissionConfig {
    AdmissionConfig {
        root: config.paths.board_root.clone(),
        reserve: config.memory.reserve,
        reserve_bytes_max: u64::MAX,
        rules: Rules {
            gpu_context_bytes: config.memory.gpu_context_bytes,
        },
        canary_share_min: config.engine.canary_percent_min as f32 / 100.0,
        models: choice.loads.clone(),
    }
}

pub(super) fn dispatcher(
    config: &Config,
    names: Names,
    boot: &str,
    choice: &Choice,
    accounts: watch::Receiver<Arc<Accounts>>,
    releases: watch::Receiver<Releases>,
) -> Settings {
    let requests = &config.requests;
    Settings {
        names,
        boot: boot.to_owned(),
        model: match &choice.first {
            Ok(first) => Ok(first.line.model.clone()),
            Err(why) => Err(why.clone()),
        },
        models: with_embeddings(config, choice),
        aliases: config.models.aliases(),
        turns: turns(config, choice),
        releases,
        backend: config.engine.backend,
        hardware: hardware::read(&config.paths.board_root),
        discovery: discovery(config),
        limits: Limits {
            payload_bytes: requests.payload_bytes_max,
            text_bytes: requests.text_bytes_max,
            ..Limits::default()
        },
        users: users(&config.users, accounts),
        templates: config.templates.clone(),
        pools: dispatch::pools::policy::Limits {
            waiting_max: config.pools.waiting_jobs_max,
            settle: config.pools.settle,
            jobs_max: requests.queue_jobs_max,
            bytes_max: requests.queue_bytes_max,
        },
        queue_jobs_max: requests.queue_jobs_max,
        queue_bytes_max: requests.queue_bytes_max,
        output_pending_bytes_max: requests.output_pending_bytes_max,
        idle_unload: config.engine.idle_unload,
        retention: requests.retention,
        queue_notice: requests.queue_notice,
        sessions: Bounds {
            turns_max: config.sessions.turns_max,
            bytes_max: config.sessions.bytes_max,
        },
        keeps_sessions: config.sessions.per_user_max > 0,
        kv_dir: kv_dir(config),
        coalesce: requests.coalesce,
        coalesce_bytes: requests.coalesce_bytes,
    }
}

fn turns(config: &Config, choice: &Choice) -> dispatch::TurnSettings {
    let models = &config.models;
    if let InTurn::These(names) = &models.in_turn {
        let is_known = |name: &&String| {
            let releases = choice.releases.iter();
            let mut releases = releases.flat_map(|release| [&release.name, &release.line]);
            choice.all.iter().any(|model| model.name == **name) || releases.any(|of| of == *name)
        };
        for name in names.iter().filter(|name| !is_known(name)) {
            let text = "model.in_turn names a model that is not here: requests for it are refused until it comes";
            warn!(model = name, "{text}");
        }
    }
    dispatch::TurnSettings {
        in_turn: models.in_turn.clone(),
        turn: models.turn,
    }
}

/// The models that answer, and the one that makes vectors.
fn with_embeddings(config: &Config, choice: &Choice) -> Vec<Model> {
    let mut models = choice.all.clone();
    let name = config.models.embeddings.model.as_ref();
    models.extend(name.map(|name| Model {
        name: name.clone(),
        aliases: config.models.get(name).aliases.clone(),
        embeds: Some(true),
        ..Model::default()
    }));
    models
}

/// What the dispatcher takes while it runs.
pub(super) fn tuning(config: &Config) -> dispatch::Tuning {
    let requests = &config.requests;
    dispatch::Tuning {
        payload_bytes: requests.payload_bytes_max,
        text_bytes: requests.text_bytes_max,
        queue_jobs_max: requests.queue_jobs_max,
        queue_bytes_max: requests.queue_bytes_max,
        output_pending_bytes_max: requests.output_pending_bytes_max,
        queue_notice: requests.queue_notice,
        coalesce: requests.coalesce,
        coalesce_bytes: requests.coalesce_bytes,
    }
}

/// Where it is remembered that Home Assistant was told of this node, and has to be told when that ends.
const SHOWN_FILE: &str = "home-assistant";

fn discovery(config: &Config) -> Discovery {
    let file = config.paths.state_dir.join(SHOWN_FILE);
    if config.home_assistant.discovery {
        if let Err(error) = std::fs::write(&file, "shown\n") {
            let text = "switched off later, Home Assistant will not be told";
            warn!(%error, file = %file.display(), "{text}");
        }
        return Discovery::Shown;
    }
    // The file stays: the message may not reach the broker this time.
    match file.exists() {
        true => Discovery::TakenBack,
        false => Discovery::Never,
    }
}

fn users(config: &UsersConfig, accounts: watch::Receiver<Arc<Accounts>>) -> UsersSettings {
    let all = |by_role: &BTreeMap<Role, UserPolicy>| {
        let settings = by_role.iter().map(|(role, policy)| (*role, user(policy)));
        settings.collect()
    };
    let entry = |config: &UserConfig| UserEntry {
        role: config.role,
        by_role: all(&config.by_role),
    };
    let by_name = config.by_name.iter();
    UsersSettings {
        by_role: all(&config.by_role),
        by_name: by_name
            .map(|(name, user)| (name.clone(), entry(user)))
            .collect(),
        accounts,
    }
}

fn user(policy: &UserPolicy) -> UserSettings {
    UserSettings {
        defaults: Defaults {
            system_prompt: policy.system_prompt.clone(),
            max_tokens: policy.max_tokens,
            model: policy.model.clone(),
            priority: policy.priority.parse().ok(),
            deadline_ms: policy.deadline_ms,
            keep_latest: policy.keep_latest.clone(),
            session: policy.session.clone(),
            sampling: policy.sampling.clone(),
        },
        max_tokens_max: policy.max_tokens_max,
        ops: policy
            .ops
            .iter()
            .filter_map(|op| Op::from_level(op))
            .collect(),
        priorities: policy
            .priorities
            .iter()
            .filter_map(|word| word.parse::<Priority>().ok())
            .collect(),
        limits: policy.limits,
    }
}
