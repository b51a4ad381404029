//! `[engine]`, `[model]` and `[models.NAME]`, and the [`LoadSpec`] that a worker gets from them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::frames::{
    Backend, KvType, LoadSpec, SandboxSpec, SavedStates, Speculation, Switch, Task,
};

use super::PathsConfig;
use super::layers;
use super::node::check_name;
use super::reader::{Root, Section};

const SPECULATION: &[(&str, Speculation)] = &[
    ("auto", Speculation::Auto),
    ("off", Speculation::Off),
    ("measured", Speculation::Measured),
    ("always", Speculation::Always),
];

const SWITCH: &[(&str, Switch)] = &[
    ("auto", Switch::Auto),
    ("on", Switch::On),
    ("off", Switch::Off),
];

pub(super) const KV_TYPE: &[(&str, KvType)] = &[
    ("f32", KvType::F32),
    ("f16", KvType::F16),
    ("q8_0", KvType::Q8_0),
    ("q4_0", KvType::Q4_0),
];

/// Largest chat template, bytes; the same bound as for one inside a GGUF.
const TEMPLATE_BYTES_MAX: u64 = 256 * 1024;

/// Bytes that saved states leave free on their disk: the job store has to write, whatever else there is.
const DISK_RESERVE_BYTES: u64 = 1 << 30;

/// Texts that share a batch.
const EMBED_TEXTS_MAX: u32 = 32;
/// Other names of one model.
const ALIASES_MAX: usize = 16;
/// In requests, whatever serves.
const DEFAULT: &str = "default";
/// Models that `model.in_turn` names.
const IN_TURN_MAX: usize = 16;
/// In `model.in_turn`: every model that can answer.
const ALL: &str = "all";

/// `[engine]`: the worker process and its loop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences side by side.
    pub n_seq_max: u32,
    /// Longest step while somebody decodes, milliseconds.
    pub step_ms: u32,
    /// Most prefill tokens in such a step.
    pub step_tokens: u32,
    /// What ended jobs may leave behind outside the KV pool, bytes.
    pub prefix_cache_bytes: u64,
    /// What they may leave on disk; `None`: nothing.
    pub saved_states: Option<SavedStates>,
    /// Whether tokens are guessed and read along.
    pub speculation: Speculation,
    /// Guessed tokens for each sequence and step, at most.
    pub draft_tokens: u32,
    /// Threads for decoding; 0: all cores.
    pub n_threads: u32,
    /// Threads for prefill; 0: `n_threads`.
    pub n_threads_batch: u32,
    /// GPU or CPU.
    pub backend: Backend,
    /// CUDA graphs.
    pub cuda_graphs: Switch,
    /// The worker's program; `None`: `orinoco-engine` beside this one.
    pub worker_path: Option<PathBuf>,
    /// What the worker may touch; `None`: everything, for debugging.
    pub sandbox: Option<SandboxSpec>,
    /// Percent of what memory allows that a token on the GPU must reach right after a load; 0: not judged.
    pub canary_percent_min: u32,
    /// A load without progress for this long is given up.
    pub load_stall: Duration,
    /// A step without end for this long has the worker killed.
    pub step_stall: Duration,
    /// First wait before a dead worker is started again.
    pub restart_backoff_min: Duration,
    /// Longest wait before a dead worker is started again.
    pub restart_backoff_max: Duration,
    /// The model is unloaded when nobody asked for so long; `None`: never.
    pub idle_unload: Option<Duration>,
    /// Time for running answers at shutdown.
    pub drain: Duration,
}

impl EngineConfig {
    pub(super) fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("engine");
        let config = Self {
            n_seq_max: section.integer("n_seq_max", 1..=64),
            step_ms: section.integer("step_ms", 10..=60_000),
            step_tokens: section.integer("step_tokens", 1..=65_536),
            prefix_cache_bytes: section.integer("prefix_cache_bytes", 0..=1 << 40),
            saved_states: saved_states(&mut section),
            speculation: section.choice("speculation", SPECULATION),
            draft_tokens: section.integer("draft_tokens", 1..=16),
            n_threads: section.integer("n_threads", 0..=512),
            n_threads_batch: section.integer("n_threads_batch", 0..=512),
            backend: section.choice("backend", &[("auto", Backend::Auto), ("cpu", Backend::Cpu)]),
            cuda_graphs: section.choice("cuda_graphs", SWITCH),
            worker_path: section.path("worker_path"),
            sandbox: sandbox(&mut section),
            canary_percent_min: section.integer("canary_percent_min", 0..=100),
            load_stall: section.seconds("load_stall_seconds", 1..=3600),
            step_stall: section.seconds("step_stall_seconds", 1..=3600),
            restart_backoff_min: section.milliseconds("restart_backoff_ms_min", 1..=60_000),
            restart_backoff_max: section.milliseconds("restart_backoff_ms_max", 1..=3_600_000),
            idle_unload: Some(section.seconds("idle_unload_seconds", 0..=604_800))
                .filter(|limit| !limit.is_zero()),
            drain: section.seconds("drain_seconds", 0..=3600),
        };
        if config.restart_backoff_max < config.restart_backoff_min {
            let min = config.restart_backoff_min.as_millis();
            section.contradiction(
                "restart_backoff_ms_max",
                "engine.restart_backoff_ms_min",
                format!("expected at least restart_backoff_ms_min = {min}"),
            );
        }
        if config.step_stall.as_millis() <= u128::from(config.step_ms) {
            let ms = config.step_ms;
            section.contradiction(
                "step_stall_seconds",
                "engine.step_ms",
                format!("expected more than step_ms = {ms}"),
            );
        }
        config
    }

    /// The worker's program: as configured, or `orinoco-engine` in the directory of `this_program`.
    pub fn worker_program(&self, this_program: &Path) -> PathBuf {
        match &self.worker_path {
            Some(path) => path.clone(),
            None => this_program.with_file_name("orinoco-engine"),
        }
    }
}

fn saved_states(section: &mut Section<'_>) -> Option<SavedStates> {
    let bytes_max = section.integer("saved_state_bytes", 0..=1 << 40);
    let quiet = section.seconds("saved_state_quiet_seconds", 0..=86_400);
    (bytes_max > 0).then_some(SavedStates {
        bytes_max,
        reserve_bytes: DISK_RESERVE_BYTES,
        // As long as conversations, which [sessions] says.
        age_seconds_max: 0,
        quiet_ms: quiet.as_millis() as u64,
    })
}

/// All three keys are read in any case, so that a mistake in one is told.
fn sandbox(section: &mut Section<'_>) -> Option<SandboxSpec> {
    let is_on = section.choice("sandbox", &[("on", true), ("off", false)]);
    let read = section.checked("sandbox_read", |text| {
        let paths = std::env::split_paths(text).filter(|_| !text.is_empty());
        let paths = Vec::from_iter(paths);
        match paths.iter().find(|path| !path.is_absolute()) {
            None => Ok(paths),
            Some(path) => Err(format!(
                "absolute paths, joined by colons ({path:?} is none)"
            )),
        }
    });
    let write = section.path("cuda_cache_dir");
    is_on.then(|| SandboxSpec {
        read: read.unwrap_or_default(),
        write,
    })
}

/// The name of a model; empty: none.
fn optional_name(name: &str) -> Result<Option<String>, String> {
    match name {
        "" => Ok(None),
        name => check_name(name).map(|()| Some(name.to_owned())),
    }
}

/// `[model]` and `[models.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelsConfig {
    /// Name of the model that serves; `None`: the only one there is.
    pub active: Option<String>,
    /// Those that are loaded in turn when requests name them.
    pub in_turn: InTurn,
    /// So long a model keeps its turn while it has work.
    pub turn: Duration,
    /// Models that stay loaded after their turn, at most.
    pub resident_max: usize,
    /// For models found in `models_dir` that have no table of their own.
    pub default: ModelConfig,
    /// Models with a table of their own.
    pub by_name: BTreeMap<String, ModelConfig>,
    /// The one that makes vectors.
    pub embeddings: EmbeddingsConfig,
}

/// `model.in_turn`: who is loaded because a request names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum InTurn {
    /// Nobody.
    #[default]
    Nobody,
    /// Every model that can answer.
    All,
    /// These models and lines of releases.
    These(BTreeSet<String>),
}

impl InTurn {
    fn of(words: &[String], aliases: &BTreeMap<String, String>) -> Self {
        match words {
            [] => Self::Nobody,
            [all] if all == ALL => Self::All,
            words => {
                let meant = |word: &String| aliases.get(word).unwrap_or(word).clone();
                Self::These(words.iter().map(meant).collect())
            }
        }
    }

    /// Whether a model or line of this name is one of them.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Nobody => false,
            Self::All => true,
            Self::These(names) => names.contains(name),
        }
    }
}

/// `[embeddings]`: the model for op `embed`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EmbeddingsConfig {
    /// Its name; `None`: there is none.
    pub model: Option<String>,
    /// It is unloaded when nobody asked for so long; `None`: never.
    pub idle: Option<Duration>,
}

impl EmbeddingsConfig {
    fn read(root: &mut Root<'_>) -> Self {
        let mut section = root.section("embeddings");
        let model = section.checked("model", optional_name);
        let idle = section.seconds("idle_seconds", 0..=86_400);
        Self {
            model: model.flatten(),
            idle: Some(idle).filter(|idle| !idle.is_zero()),
        }
    }
}

impl ModelsConfig {
    pub(super) fn read(root: &mut Root<'_>, paths: &PathsConfig) -> Self {
        let mut inherited = root.copy("model");
        for of_all in ["active", "in_turn", "turn_seconds", "resident_max"] {
            inherited.remove(of_all);
        }
        // Names of its own are what no model inherits, and most have none.
        let none = ::config::Value::new(Some(&layers::DEFAULT.to_owned()), Vec::<String>::new());
        inherited.insert("aliases".to_owned(), none);
        let mut section = root.section("model");
        let active = section.checked("active", optional_name);
        let in_turn = section.words("in_turn", IN_TURN_MAX, check_name);
        let turn = section.seconds("turn_seconds", 1..=3600);
        let resident_max = section.integer("resident_max", 0..=16);
        let default = ModelConfig::read(&mut section, None, Vec::new());
        drop(section);
        let mut by_name = BTreeMap::new();
        let tables = root.named("models", check_name);
        let names = Vec::from_iter(tables.iter().map(|named| named.name.clone()));
        for named in tables {
            let mut section = root.heir(&named, &inherited);
            let file = section.checked("file", |file| match file {
                "" => Err("the name of a GGUF file".to_owned()),
                file => Ok(paths.models_dir.join(file)),
            });
            let aliases = section.words("aliases", ALIASES_MAX, check_name);
            let taken = aliases.iter().find(|alias| {
                let of = |model: &ModelConfig| model.aliases.contains(alias);
                names.contains(alias) || *alias == DEFAULT || by_name.values().any(of)
            });
            if let Some(alias) = taken {
                let advice = format!("expected names that nothing else has: `{alias}` is taken");
                section.contradiction("aliases", "models", advice);
            }
            by_name.insert(
                named.name.clone(),
                ModelConfig::read(&mut section, file, aliases),
            );
        }
        let embeddings = EmbeddingsConfig::read(root);
        let mut config = Self {
            active: active.flatten(),
            in_turn: InTurn::Nobody,
            turn,
            resident_max,
            default,
            by_name,
            embeddings,
        };
        config.in_turn = InTurn::of(&in_turn, &config.aliases());
        let embeds = config.embeddings.model.as_deref();
        if let (InTurn::These(names), Some(embeds)) = (&config.in_turn, embeds)
            && names.contains(embeds)
        {
            let advice = format!("expected models that answer: `{embeds}` makes vectors");
            let mut section = root.section("model");
            section.contradiction("in_turn", "embeddings.model", advice);
        }
        config
    }

    /// The model that a request means by `name`, where that is an alias.
    pub fn aliases(&self) -> BTreeMap<String, String> {
        let of = |(name, model): (&String, &ModelConfig)| {
            let pairs = model.aliases.iter();
            Vec::from_iter(pairs.map(|alias| (alias.clone(), name.clone())))
        };
        self.by_name.iter().flat_map(of).collect()
    }

    /// How to load the model `name`: its own table or the defaults.
    pub fn get(&self, name: &str) -> &ModelConfig {
        self.by_name.get(name).unwrap_or(&self.default)
    }
}

/// How one model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// The GGUF file, absolute; `None` in [`ModelsConfig::default`].
    pub file: Option<PathBuf>,
    /// Other names that requests may use for it.
    pub aliases: Vec<String>,
    /// KV pool, tokens; 0: the largest that fits, at most `n_ctx_auto_max`.
    pub n_ctx: u32,
    /// Most tokens that `n_ctx = 0` becomes; 0: what the model was trained with.
    pub n_ctx_auto_max: u32,
    /// Tokens of one request; 0: `n_ctx`.
    pub n_ctx_seq: u32,
    /// Rows in one decode.
    pub n_batch: u32,
    /// Rows in one physical batch.
    pub n_ubatch: u32,
    /// Keys in the KV cache.
    pub kv_type_k: KvType,
    /// Values in the KV cache.
    pub kv_type_v: KvType,
    /// Flash attention.
    pub flash_attn: Switch,
    /// Mapping of the file.
    pub mmap: Switch,
    /// Layers on the GPU; -1: all.
    pub n_gpu_layers: i32,
    /// Model that drafts for this one; `None`: for a release what its publisher names, else none.
    pub draft: Option<String>,
    /// Text of `chat_template_file`, read while loading the configuration.
    pub chat_template: Option<String>,
}

impl ModelConfig {
    fn read(section: &mut Section<'_>, file: Option<PathBuf>, aliases: Vec<String>) -> Self {
        let config = Self {
            file,
            aliases,
            n_ctx: section.integer("n_ctx", 0..=16 << 20),
            n_ctx_auto_max: section.integer("n_ctx_auto_max", 0..=16 << 20),
            n_ctx_seq: section.integer("n_ctx_seq", 0..=16 << 20),
            n_batch: section.integer("n_batch", 1..=65_536),
            n_ubatch: section.integer("n_ubatch", 1..=65_536),
            kv_type_k: section.choice("kv_type_k", KV_TYPE),
            kv_type_v: section.choice("kv_type_v", KV_TYPE),
            flash_attn: section.choice("flash_attn", SWITCH),
            mmap: section.choice("mmap", SWITCH),
            n_gpu_layers: section.integer("n_gpu_layers", -1..=100_000),
            draft: section.checked("draft", optional_name).flatten(),
            chat_template: section.file_text("chat_template_file", TEMPLATE_BYTES_MAX),
        };
        if config.n_ctx != 0 && config.n_ctx_seq > config.n_ctx {
            section.contradiction(
                "n_ctx_seq",
                "model.n_ctx",
                format!("expected at most n_ctx = {}", config.n_ctx),
            );
        }
        if config.n_ubatch > config.n_batch {
            section.contradiction(
                "n_ubatch",
                "model.n_batch",
                format!("expected at most n_batch = {}", config.n_batch),
            );
        }
        let v_is_quantized = matches!(config.kv_type_v, KvType::Q8_0 | KvType::Q4_0);
        if v_is_quantized && config.flash_attn == Switch::Off {
            section.contradiction(
                "kv_type_v",
                "model.flash_attn",
                "expected \"f16\" or \"f32\": quantized values need flash_attn".into(),
            );
        }
        config
    }

    /// What a worker is told to load for op `embed`. A text is read in one piece, so that nothing is kept from
    /// one batch to the next.
    pub fn embed_spec(&self, engine: &EngineConfig, name: &str, path: &Path) -> LoadSpec {
        LoadSpec {
            task: Task::Embed,
            n_ctx: self.n_ubatch,
            n_ctx_seq: 0,
            n_batch: self.n_ubatch.max(EMBED_TEXTS_MAX),
            n_ubatch: self.n_ubatch.max(EMBED_TEXTS_MAX),
            n_seq_max: EMBED_TEXTS_MAX,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            prefix_cache_bytes: 0,
            saved_states: None,
            speculation: Speculation::Off,
            chat_template: None,
            ..self.load_spec(engine, name, path)
        }
    }

    /// What a worker is told to load: this model under `name` from `path`.
    pub fn load_spec(&self, engine: &EngineConfig, name: &str, path: &Path) -> LoadSpec {
        LoadSpec {
            name: name.to_owned(),
            path: path.to_owned(),
            task: Task::Generate,
            n_ctx: self.n_ctx,
            n_ctx_auto_max: self.n_ctx_auto_max,
            n_ctx_seq: self.n_ctx_seq,
            n_seq_max: engine.n_seq_max,
            n_batch: self.n_batch,
            n_ubatch: self.n_ubatch,
            step_ms: engine.step_ms,
            step_tokens: engine.step_tokens,
            prefix_cache_bytes: engine.prefix_cache_bytes,
            saved_states: engine.saved_states,
            speculation: engine.speculation,
            draft_tokens: engine.draft_tokens,
            draft: None,
            n_threads: engine.n_threads,
            n_threads_batch: engine.n_threads_batch,
            n_gpu_layers: self.n_gpu_layers,
            backend: engine.backend,
            kv_type_k: self.kv_type_k,
            kv_type_v: self.kv_type_v,
            flash_attn: self.flash_attn,
            mmap: self.mmap,
            cuda_graphs: engine.cuda_graphs,
            chat_template: self.chat_template.clone(),
            canary_tokens: 0,
            sandbox: engine.sandbox.clone(),
        }
    }
}
