//! What could serve on this board now: configuration, shipped profiles, measured table, files and memory
//! brought together as the input of [`crate::selection`].

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::warn;

use crate::board::identity::{self, Identity};
use crate::board::{Faults, Root, memory};
use crate::config::{
    Choose, Config, EngineConfig, ModelConfig, ModelsConfig, PowerConfig, ProfileConfig, Threshold,
    shipped_profiles,
};
use crate::frames::{Draft, KvType, LoadSpec, Switch};
use crate::governor::{self, Moment};
use crate::models::release;
use crate::models::{Catalogue, Entry, Release, Releases};
use crate::selection::{self, Line, Row, Site, Source, TABLE_BYTES_MAX};

/// Files that came or went, and a new table, are seen after this time.
const FRESH_FOR: Duration = Duration::from_secs(10);

/// All that a choice is made from, but the power mode of the moment.
pub(super) struct Lineup {
    power: PowerConfig,
    engine: EngineConfig,
    models: ModelsConfig,
    models_dir: PathBuf,
    reserve: Threshold,
    profiles: BTreeMap<String, ProfileConfig>,
    root: Root,
    identity: Identity,
    rows: Vec<Row>,
    /// Models whose files are here, and these files.
    here: BTreeMap<String, (PathBuf, u64)>,
    releases: watch::Receiver<Releases>,
    /// Taken for the one of its line that is in service.
    considered: Option<Release>,
    read_at: Instant,
}

impl Lineup {
    pub(super) fn read(
        config: &Config,
        catalogue: &Catalogue,
        releases: watch::Receiver<Releases>,
    ) -> Self {
        let root = Root::new(&config.paths.board_root);
        let identity = identity::read(&root, &mut Faults::default());
        let profiles = all_profiles(&identity, &config.profiles);
        Self {
            rows: rows(&config.power),
            here: here(catalogue),
            releases,
            considered: None,
            power: config.power.clone(),
            engine: config.engine.clone(),
            models: config.models.clone(),
            models_dir: config.paths.models_dir.clone(),
            reserve: config.memory.reserve,
            profiles,
            root,
            identity,
            read_at: Instant::now(),
        }
    }

    /// The board, as it was when this was read.
    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// How a line is loaded from this file.
    pub(super) fn load_from(&self, line: &Line, path: &Path) -> LoadSpec {
        let config = loaded_as(self.config_of(&line.model), line);
        LoadSpec {
            n_seq_max: line.n_seq_max,
            draft: self.draft_of(&line.model),
            ..config.load_spec(&self.engine, &line.model, path)
        }
    }

    /// What drafts for a model: what its table names, or its publisher.
    fn draft_of(&self, model: &str) -> Option<Draft> {
        let releases = self.releases();
        let release = releases.iter().find(|release| release.name == model);
        let of_publisher = release.and_then(|release| release.draft.clone());
        let config = self.config_of(model);
        let file_of = |name: &str| self.file_of(name).map(|(path, _)| path);
        let draft = draft(&config, of_publisher, file_of);
        if let (Some(name), None) = (config.draft, &draft) {
            warn!(
                model,
                draft = name,
                "the draft model is not here; the model serves without"
            );
        }
        draft
    }

    /// A model's own table; of a release that of its line, with what its publisher says.
    fn config_of(&self, model: &str) -> ModelConfig {
        let releases = self.releases();
        match releases.iter().find(|release| release.name == model) {
            Some(release) => release_config(&self.models, release),
            None => self.models.get(model).clone(),
        }
    }

    /// The releases in service, with the one that is considered in its place.
    fn releases(&self) -> Vec<Release> {
        let mut releases = self.releases.borrow().to_vec();
        if let Some(considered) = &self.considered {
            releases.retain(|release| release.line != considered.line);
            if considered.is_first {
                releases.iter_mut().for_each(|other| other.is_first = false);
            }
            releases.push(considered.clone());
        }
        releases
    }

    fn refresh(&mut self) {
        if self.read_at.elapsed() < FRESH_FOR {
            return;
        }
        self.read_at = Instant::now();
        self.rows = rows(&self.power);
        match Catalogue::of_answers(&self.models, &self.models_dir) {
            Ok(catalogue) => self.here = here(&catalogue),
            Err(error) => warn!(%error, "the models cannot be listed"),
        }
    }

    /// What a line takes, as far as it is known: all of it, or at least its weights.
    fn known_bytes(&self, line: &Line) -> Option<u64> {
        let file = self.file_of(&line.model);
        line.memory_bytes.or(file.map(|(_, bytes)| bytes))
    }

    /// The file of a model, and its length.
    fn file_of(&self, model: &str) -> Option<(PathBuf, u64)> {
        let releases = self.releases();
        let release = releases.iter().find(|release| release.name == model);
        let release = release.map(|release| (release.path.clone(), release.file_bytes));
        release.or_else(|| self.here.get(model).cloned())
    }
}

impl governor::Lineup for Lineup {
    fn candidates(&mut self, moment: &Moment<'_>) -> Vec<Line> {
        self.refresh();
        let releases = self.releases();
        // An order for a version that has a successor is one for the successor.
        let line_of = |name: &str| {
            let known = self.releases.borrow();
            let release = known.iter().find(|release| release.name == name);
            release.map(|release| release.line.clone())
        };
        let resolve = |name: &str| {
            let line = line_of(name);
            let name = line.as_deref().unwrap_or(name);
            release::resolve(&releases, name).to_owned()
        };
        let pinned = moment.pinned.map(resolve);
        let room_bytes = memory::read(&self.root).ok().map(|memory| {
            memory
                .available_bytes
                .saturating_add(moment.own_bytes)
                .saturating_sub(self.reserve.of(memory.total_bytes))
        });
        // The plan of the engine judges each load; this only passes over what has no chance.
        let fits = |line: &Line| {
            let is_there = |current: &Line| current.loads_like(line);
            match (self.known_bytes(line), room_bytes) {
                (Some(needs), Some(room)) => needs <= room || moment.current.is_some_and(is_there),
                _ => true,
            }
        };
        let first = releases.iter().find(|release| release.is_first);
        let mut models: BTreeSet<String> = self.here.keys().cloned().collect();
        models.extend(releases.iter().map(|release| release.name.clone()));
        // A model that is to come one day is nothing to be loaded today.
        if pinned.as_ref().is_some_and(|name| !models.contains(name)) && moment.current.is_none() {
            return Vec::new();
        }
        // Profiles name lines; they have the memory of what is in service.
        let mut profiles = self.profiles.clone();
        for profile in profiles.values_mut() {
            profile.model = release::resolve(&releases, &profile.model).to_owned();
        }
        let site = Site {
            caps: moment.present.caps,
            mode: moment
                .present
                .effective_mode()
                .map(|mode| mode.name.as_str()),
            models: &models,
            n_seq_max: self.engine.n_seq_max,
            fits: &fits,
            pinned: pinned.as_deref(),
            first: first.map(|release| release.name.as_str()),
        };
        let mut lines = selection::candidates(&self.power, &profiles, &self.rows, &site);
        for line in &mut lines {
            line.memory_bytes = self.known_bytes(line);
        }
        lines
    }

    fn load(&self, line: &Line) -> Option<LoadSpec> {
        let (path, _) = self.file_of(&line.model)?;
        Some(self.load_from(line, &path))
    }

    fn plain(&self, model: &str) -> Line {
        Line {
            model: model.to_owned(),
            n_seq_max: self.engine.n_seq_max,
            n_ctx: None,
            kv_type_k: None,
            kv_type_v: None,
            memory_bytes: None,
            source: Source::Fallback,
        }
    }

    fn consider(&mut self, release: Option<&Release>) {
        self.considered = release.cloned();
    }

    fn tune(&mut self, power: &PowerConfig, profiles: &BTreeMap<String, ProfileConfig>) {
        // Who chooses is decided at the start.
        self.power = PowerConfig {
            choose: self.power.choose,
            ..power.clone()
        };
        self.profiles = all_profiles(&self.identity, profiles);
    }

    fn knows(&self, name: &str) -> bool {
        let releases = self.releases.borrow();
        let is_it = |release: &Release| release.line == name || release.name == name;
        self.here.contains_key(name) || releases.iter().any(is_it)
    }
}

fn here(catalogue: &Catalogue) -> BTreeMap<String, (PathBuf, u64)> {
    let is_here =
        |entry: &Entry| Some((entry.name.clone(), (entry.path.clone(), entry.file_bytes?)));
    catalogue.entries().iter().filter_map(is_here).collect()
}

/// How a release is loaded: as its line is configured, where its publisher says nothing.
pub(super) fn release_config(models: &ModelsConfig, release: &Release) -> ModelConfig {
    let runtime = &release.runtime;
    let config = models.get(&release.line).clone();
    let mut config = with_context(config, runtime.n_ctx, runtime.kv_type_k, runtime.kv_type_v);
    if let Some(template) = &runtime.chat_template {
        config.chat_template = Some(template.clone());
    }
    config
}

/// What drafts for a model: what its table names, if that is here; else what its publisher names.
pub(super) fn draft(
    config: &ModelConfig,
    of_publisher: Option<Draft>,
    file_of: impl Fn(&str) -> Option<PathBuf>,
) -> Option<Draft> {
    let Some(name) = config.draft.clone() else {
        return of_publisher;
    };
    file_of(&name).map(|path| Draft { name, path })
}

/// The configured profiles over those that are shipped for the board.
fn all_profiles(
    identity: &Identity,
    configured: &BTreeMap<String, ProfileConfig>,
) -> BTreeMap<String, ProfileConfig> {
    let shipped = identity.kind.profiles();
    let mut profiles = shipped.map_or_else(BTreeMap::new, shipped_profiles);
    profiles.extend(configured.clone());
    profiles
}

/// A model's own table, with what the choice says instead.
fn loaded_as(config: ModelConfig, line: &Line) -> ModelConfig {
    with_context(config, line.n_ctx, line.kv_type_k, line.kv_type_v)
}

/// A table with another context, where one is given.
fn with_context(
    mut config: ModelConfig,
    n_ctx: Option<u32>,
    kv_type_k: Option<KvType>,
    kv_type_v: Option<KvType>,
) -> ModelConfig {
    if let Some(n_ctx) = n_ctx {
        config.n_ctx = n_ctx;
        config.n_ctx_seq = config.n_ctx_seq.min(n_ctx);
    }
    config.kv_type_k = kv_type_k.unwrap_or(config.kv_type_k);
    // Quantized values need flash attention, which somebody may have switched off for a reason.
    let can_quantize = config.flash_attn != Switch::Off;
    if let Some(kv_type_v) = kv_type_v.filter(|_| can_quantize) {
        config.kv_type_v = kv_type_v;
    }
    config
}

/// The measured table, where it is asked for. One that cannot be used is as good as none.
fn rows(power: &PowerConfig) -> Vec<Row> {
    if power.choose != Choose::Auto {
        return Vec::new();
    }
    let path = power.table_file.display().to_string();
    // The path is one of this machine, not of the board's tree.
    match Root::live().bytes(&path, TABLE_BYTES_MAX) {
        Ok(Some(bytes)) => selection::parse_table(&bytes).unwrap_or_else(|e| {
            warn!(path, error = &e as &dyn Error, "measured table not used");
            Vec::new()
        }),
        Ok(None) => Vec::new(),
        Err(e) => {
            warn!(path, error = &e as &dyn Error, "measured table not used");
            Vec::new()
        }
    }
}
