//! What a node tells about itself in retained documents: [`Status`], [`Info`], [`Models`], [`State`].
//!
//! Readers ignore keys they do not know. What a board does not have is absent, never zero. The comments
//! on types and fields are published with their schemas, for the programmer of a device.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    PROTOCOL, SHA256_PATTERN,
    request::Limits,
    request::template::{Kind, Template, Templates, Var, Without},
    topic::{NAME_PATTERN, Op},
};
use crate::frames::{self, Backend, BufferUse, Hello, Loaded};
use crate::offload;

/// Whether the node is there; offline is also its last will.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// Whether it takes requests.
    pub state: Presence,
    /// Differs after each start of the daemon.
    pub boot: String,
    /// When this state began, unix milliseconds; in a last will, when the daemon connected.
    pub since_ms: u64,
}

/// Whether a node takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Presence {
    /// It does.
    Online,
    /// It finishes what it has and refuses the rest.
    Draining,
    /// It is gone; what was accepted is on its disk.
    Offline,
}

/// What the node is. Changes with its software and its model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Info {
    /// Version of this contract: the number before the dot is the one in the topics, the one after it counts additions.
    #[schemars(regex(pattern = r"^1\.[0-9]+$"))]
    pub protocol: String,
    /// Version of the daemon.
    pub version: String,
    /// The node's name.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub node: String,
    /// Pools that it takes requests from; absent when in none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<String>,
    /// Ops that are served.
    pub ops: Vec<Op>,
    /// Bounds of requests on this node.
    pub limits: Limits,
    /// The board that it runs on.
    pub hardware: Hardware,
    /// The engine that runs the model; absent until a worker said hello.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// Why no model can be served, a sentence; absent while one can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_model: Option<String>,
    /// Number of the fleet's settings that are in force; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_seq: Option<u64>,
    /// Values for `template` in requests, with their variables; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateInfo>,
}

impl Info {
    /// What every node can say before its engine runs.
    pub fn new(node: &super::Name, version: &str, limits: Limits, hardware: Hardware) -> Self {
        Self {
            protocol: PROTOCOL.to_owned(),
            version: version.to_owned(),
            node: node.to_string(),
            pools: Vec::new(),
            ops: Op::ALL.into_iter().filter(|op| *op != Op::Embed).collect(),
            limits,
            hardware,
            engine: None,
            no_model: None,
            policy_seq: None,
            templates: Vec::new(),
        }
    }
}

/// A wording that the node has. What it says is not told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TemplateInfo {
    /// The value for `template`.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// In the order of their lines; absent where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vars: Vec<VarInfo>,
}

/// A variable of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VarInfo {
    /// The key in `vars`.
    #[schemars(regex(pattern = NAME_PATTERN))]
    pub name: String,
    /// What it takes; a later version may have other words.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Most bytes of a value as text.
    pub bytes_max: u64,
    /// Whether a request must say it.
    pub required: bool,
}

impl TemplateInfo {
    /// Those of a node.
    pub fn all(templates: &Templates) -> Vec<Self> {
        let var = |var: &Var| VarInfo {
            name: var.name.clone(),
            kind: var.kind,
            bytes_max: var.bytes_max as u64,
            required: var.without == Without::Refused,
        };
        let one = |(name, template): (&String, &Template)| Self {
            name: name.clone(),
            vars: template.vars.iter().map(var).collect(),
        };
        templates.0.iter().map(one).collect()
    }
}

/// The board, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hardware {
    /// From the device tree, e.g. `NVIDIA Jetson Orin NX`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// `aarch64`, `x86_64`.
    pub arch: String,
    /// Cores that may be used.
    pub n_cores: u32,
    /// Memory of the board, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Name of the GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<String>,
}

/// The worker program, and the proof of where its model runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Engine {
    /// Version of the worker.
    pub version: String,
    /// Version of llama.cpp in it.
    pub llama: String,
    /// Compute backends compiled in.
    pub backends: Vec<String>,
    /// What holds it in; absent in versions before it was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Where the model runs; absent while none is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<Offload>,
}

impl Engine {
    /// From the worker's own words.
    pub fn of(
        hello: &Hello,
        sandbox: Option<&frames::Sandbox>,
        loaded: Option<(Backend, &Loaded)>,
    ) -> Self {
        Self {
            version: hello.version.clone(),
            llama: hello.llama.clone(),
            backends: hello.backends.clone(),
            sandbox: sandbox.map(Sandbox::of),
            offload: loaded.map(|(backend, loaded)| Offload {
                backend,
                n_layers: loaded.n_layers,
                n_layers_gpu: loaded.n_layers_gpu,
                n_graph_splits: loaded.n_graph_splits,
                buffers: loaded.buffers.clone(),
                proof: None,
            }),
        }
    }
}

/// What holds the worker in, so that a hostile model or prompt that takes it over gets nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Sandbox {
    /// How much of it there is, in one word.
    pub state: Held,
    /// ABI of Landlock, which rules over files; absent where no rule is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub landlock_abi: Option<u32>,
    /// System calls are filtered.
    pub seccomp: bool,
    /// No program that it could start would gain rights.
    pub no_new_privs: bool,
    /// What is not held in and why, a sentence each; empty when nothing is missing.
    pub gaps: Vec<String>,
}

/// How much of a sandbox there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// Files and system calls.
    Full,
    /// One of the two: the kernel lacks the other.
    Partial,
    /// Neither: switched off, or the kernel lacks both.
    #[default]
    Off,
}

impl Sandbox {
    /// From the worker's own words.
    pub fn of(sandbox: &frames::Sandbox) -> Self {
        Self {
            state: match (sandbox.landlock_abi, sandbox.seccomp) {
                (Some(_), true) => Held::Full,
                (None, false) => Held::Off,
                _ => Held::Partial,
            },
            landlock_abi: sandbox.landlock_abi,
            seccomp: sandbox.seccomp,
            no_new_privs: sandbox.no_new_privs,
            gaps: sandbox.gaps.clone(),
        }
    }
}

/// Where the loaded model runs, measured and not assumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Offload {
    /// Which device was asked for.
    pub backend: Backend,
    /// Layers of the model.
    pub n_layers: u32,
    /// Of those, layers on a GPU.
    pub n_layers_gpu: u32,
    /// Parts that the compute graph was split into; 1 when one device runs all of it.
    pub n_graph_splits: u32,
    /// Memory held, by type of buffer.
    pub buffers: Vec<BufferUse>,
    /// What was proven; absent in versions before there was a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// Where the model runs, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Proof {
    /// In one word.
    pub verdict: Verdict,
    /// Tokens a second right after the load, one stream; absent where it was not timed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_tok_s: Option<f64>,
    /// Tokens a second that the memory's speed and the launch of kernels would allow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roofline_tok_s: Option<f64>,
}

impl Proof {
    /// From the verdict on a load.
    pub fn of(proof: &offload::Proof) -> Self {
        let (verdict, speed) = match proof {
            offload::Proof::OnGpu(speed) => (Verdict::Gpu, *speed),
            offload::Proof::NoGpu => (Verdict::CpuNoGpu, None),
            offload::Proof::CpuChosen => (Verdict::CpuChosen, None),
        };
        Self {
            verdict,
            canary_tok_s: speed.map(|speed| speed.tok_s),
            roofline_tok_s: speed.map(|speed| speed.roofline_tok_s),
        }
    }
}

/// What a model runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// All of it on the GPU.
    Gpu,
    /// The CPU: there is no GPU.
    CpuNoGpu,
    /// The CPU, although there may be a GPU: the operator said so.
    CpuChosen,
}

/// Which models can be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Models {
    /// The model that is loaded; absent when none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// All models on this node.
    pub models: Vec<Model>,
}

/// One model. Keys beyond the name are known once it was loaded or looked into.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// The value for `model` in requests.
    pub name: String,
    /// Size of the file, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// SHA-256 of the file, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = SHA256_PATTERN))]
    pub sha256: Option<String>,
    /// Also a value for `model` in requests: the line of signed releases that it is the present one of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Its number in that line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_seq: Option<u64>,
    /// True of the model for op embed, which answers no prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeds: Option<bool>,
    /// Length of its vectors, of the model for op embed; known once it was loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Further values for `model` in requests, as the node's configuration has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// A request that names it has it loaded in its turn, whichever serves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_turn: bool,
    /// It is in memory and answers prompts: it serves, or rests until its next turn.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loaded: bool,
    /// The model on this node that its publisher means to draft for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
    /// Architecture, size and quantization in llama.cpp's words, e.g. `llama 135M Q4_1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Number of parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_params: Option<u64>,
    /// Tokens that one request may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_ctx_seq: Option<u32>,
    /// Requests that are answered side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_seq_max: Option<u32>,
    /// Chat template family, `gguf` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
}

impl Model {
    /// The loaded one.
    pub fn of(loaded: &Loaded) -> Self {
        Self {
            name: loaded.name.clone(),
            file_bytes: None,
            sha256: None,
            line: None,
            release_seq: None,
            embeds: (loaded.n_dims > 0).then_some(true),
            dimensions: (loaded.n_dims > 0).then_some(loaded.n_dims),
            aliases: Vec::new(),
            in_turn: false,
            loaded: false,
            draft: None,
            description: Some(loaded.description.clone()),
            n_params: Some(loaded.n_params),
            n_ctx_seq: Some(loaded.n_ctx_seq),
            n_seq_max: Some(loaded.n_seq_max),
            chat_template: Some(loaded.chat_template.clone()),
        }
    }
}

/// What the node does now, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// What it does, in one word.
    pub mode: Mode,
    /// The model that is loaded or being loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Sentences for a technician that say why; empty while all is well.
    pub reasons: Vec<String>,
    /// How far loading is, 0 to 1; absent unless something is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub load_progress: Option<f32>,
    /// When the mode began, unix milliseconds.
    pub since_ms: u64,
    /// The memory watchdog; absent while it is off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Whether it takes requests from its pools; absent when in none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pools: Option<PoolIntake>,
    /// What the model takes, or would take; absent before it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What the model follows; absent before it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
}

/// The board's power mode and heat, and what they led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Power {
    /// The power mode that is in force; absent on boards without modes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Who chose the model.
    pub chosen_by: ChosenBy,
    /// The profile that was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Requests that are answered side by side now.
    pub n_seq: u32,
    /// Steps down for heat or over-current: fewer requests side by side first, then a smaller model.
    pub n_steps_down: u32,
    /// The hottest junction is too hot, or the board holds its clocks down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hot: bool,
}

/// Who chose the model that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChosenBy {
    /// An operator, until the power mode changes or `auto` is ordered.
    Operator,
    /// `model.active`.
    Configuration,
    /// A profile whose demands the power mode meets.
    Profile,
    /// The table that was measured on this board.
    Measured,
    /// The fleet: the release that was deployed last.
    Fleet,
    /// Nobody: it was there.
    Default,
}

/// Whether a node takes requests from its pools. Requests to the node itself are another matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolIntake {
    /// The broker deals requests to it.
    pub taking: bool,
    /// What stands against it, in sentences for a technician; or what is wrong although it takes some.
    pub reasons: Vec<String>,
}

/// How short memory is, and with it how far down the watchdog's ladder the node is. Each level includes what
/// those before it do.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Enough memory.
    Ok,
    /// Saved prompts and answers were dropped, and none are saved.
    Trim,
    /// Nothing new is taken; jobs of the class `batch` wait.
    Park,
    /// The context was made smaller, or a smaller model serves.
    Shrink,
    /// No worker runs.
    Kill,
}

/// The memory watchdog, in `state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// Where the node is.
    pub level: Level,
    /// When it came there, unix milliseconds.
    pub since_ms: u64,
    /// MemAvailable at that moment, bytes, or as last read; absent when it never could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// True while /proc/meminfo cannot be read, so that what it said is too old to count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stale: bool,
}

/// `{r}/v1/{n}/evt/pressure`: one step of the memory watchdog, told when it had time to work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PressureEvent {
    /// Where the node was.
    pub from: Level,
    /// Where it is.
    pub to: Level,
    /// When, unix milliseconds.
    pub at_ms: u64,
    /// MemAvailable that led to it, bytes; absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// The threshold that it crossed, bytes; on the way up with its margin and what the step takes again.
    pub threshold_bytes: u64,
    /// What was done, a sentence.
    pub action: String,
    /// What the ledger promised of it, bytes; 0 on the way up.
    pub relief_bytes: u64,
    /// How far MemAvailable rose meanwhile, bytes, negative where it fell; absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_bytes: Option<i64>,
}

/// `{r}/v1/{n}/evt/switch`: another model serves, or could not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchEvent {
    /// The model that was asked for.
    pub model: String,
    /// When it served, or was given up, unix milliseconds.
    pub at_ms: u64,
    /// Whether it serves.
    pub served: bool,
    /// Why it was asked for, or why it could not be served.
    pub reason: String,
}

/// `{r}/v1/{n}/cmd/model/{cid}`: an order to serve another model, retained, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelCommand {
    /// `init` is written by the operator, the rest by the node.
    pub status: CommandStatus,
    /// The model.
    pub model: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CommandStatus {
    /// Asked for.
    Init,
    /// Under way.
    Executing,
    /// Done.
    Successful,
    /// Not done; nothing changed.
    Failed,
}

/// What a model takes of main memory, which on a Jetson is the GPU's too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Memory {
    /// Bytes planned before the load, in all.
    pub planned_bytes: u64,
    /// Bytes planned for the weights.
    pub weights_bytes: u64,
    /// Bytes planned for the KV cache.
    pub kv_bytes: u64,
    /// Bytes planned for compute buffers.
    pub compute_bytes: u64,
    /// Bytes planned for the context of a GPU that shares main memory.
    pub gpu_context_bytes: u64,
    /// Bytes planned for the process beside all buffers.
    pub process_bytes: u64,
    /// Bytes taken by the load; absent when the model was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_bytes: Option<u64>,
    /// Bytes taken less bytes planned: positive when the plan was too small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difference_bytes: Option<i64>,
    /// Bytes available to all programs before the load (MemAvailable of Linux).
    pub available_bytes: u64,
    /// Bytes available to all programs after the load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_after_bytes: Option<u64>,
    /// Bytes left free whatever is loaded.
    pub reserve_bytes: u64,
    /// Bytes taken by models that rest until their next turn, beside all this; absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resting_bytes: Option<u64>,
    /// Bytes taken by the embedding model beside all this; absent while it is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_bytes: Option<u64>,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The daemon has just started.
    Starting,
    /// A model is being loaded; requests are accepted and wait.
    Loading,
    /// Requests are answered.
    Serving,
    /// The worker ended and is being replaced; streams go on afterwards.
    Restarting,
    /// The model was unloaded since nobody asked; the next request loads it, and waits for that.
    Idle,
    /// No model can be served; `reasons` says why.
    NoModel,
    /// What was accepted is finished, the rest is refused.
    Draining,
}
