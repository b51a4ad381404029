//! What crosses the socketpair between the supervisor and its worker: [`Command`] down, [`Event`] up.
//!
//! Pure types, no I/O; `codec` turns them into length-prefixed postcard frames. Both binaries are built
//! from one commit, so there is no version negotiation: [`Event::Hello`] carries [`PROTOCOL`] and a
//! mismatch is a packaging fault that the supervisor reports.
//!
//! The worker knows nothing of MQTT, users, JSON bodies or configuration files; the supervisor knows
//! nothing of tokens beyond their ids, which it keeps to resume a stream in another worker.

pub mod codec;
mod grammar;
mod plan;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use grammar::{CheckSpec, Constraint, Refused, ToolSyntax};
pub use plan::{Canary, Device, Outline, Plan, PlanAsk};

/// Version of this file's types. Raised with every change.
pub const PROTOCOL: u32 = 12;

/// A token id of the loaded model's vocabulary.
pub type Token = i32;

/// Names one job on the socketpair; never reused within one supervisor's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobKey(pub u64);

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Load this model. The first command, or else [`Command::Plan`]; exactly one for each worker process.
    Load(Box<LoadSpec>),
    /// Lay this model out without memory behind it, to be asked what it would take. The first command,
    /// instead of [`Command::Load`]; answered by [`Event::Outline`] or [`Event::LoadFailed`]. Such a worker
    /// decodes nothing and is thrown away.
    Plan(Box<LoadSpec>),
    /// What would a context with these settings take? Only after [`Command::Plan`]; answered in order by
    /// [`Event::Planned`].
    Ask(PlanAsk),
    /// Does the first GPU give so many bytes in one piece? Only after [`Command::Plan`]; answered by
    /// [`Event::Probed`]. They are given back at once.
    Probe(u64),
    /// Judge grammars. The first command, instead of [`Command::Load`]: such a worker opens no model, and is
    /// thrown away.
    Check(CheckSpec),
    /// Does this compile within the limits? Only after [`Command::Check`]; answered by [`Event::Compiled`].
    Compile(Constraint),
    /// Take this job. The supervisor never has more than [`Loaded::n_seq_max`] jobs in the worker.
    Submit(Box<Job>),
    /// Turn these texts into vectors. Only to a worker that loaded a model for [`Task::Embed`]; answered by
    /// [`Event::Embedded`], unless it is cancelled.
    Embed(Box<EmbedJob>),
    /// Stop this job between two decodes; it still ends with [`Event::Done`]. Unknown jobs are ignored; of a
    /// parked one what was kept is dropped.
    Cancel(JobKey),
    /// Take this job out of its sequence between two decodes, and keep what it has in the KV pool while nobody
    /// needs the room; answered by [`Event::Parked`], unless the job was over by then. It comes back with
    /// [`Command::Submit`] and [`Job::resume`].
    Park(JobKey),
    /// Count and return the ids of a text; answered by [`Event::Tokenized`].
    Tokenize {
        /// Echoed in the answer.
        job: JobKey,
        /// What to tokenize.
        input: Input,
    },
    /// Raw measurement without MQTT; answered by [`Event::Bench`]. Only sent to an idle worker.
    Bench(BenchSpec),
    /// How likely the model finds a text; answered by [`Event::Scored`]. Only sent to an idle worker.
    Score(String),
    /// Forget saved sequences, save no more, and give free heap back to the system. Running jobs are not
    /// touched.
    Trim,
    /// Sequences may be saved again.
    Grow,
    /// Leave on disk what is worth it and is not there yet; answered by [`Event::Saved`], after `limit_ms` at the
    /// latest. Jobs go on meanwhile.
    Save {
        /// Longest time for it, milliseconds.
        limit_ms: u32,
    },
    /// Forget what is saved of the conversation with this number ([`Leaves::Session`]), in memory; on disk the
    /// supervisor does.
    Forget(u64),
    /// Proof of life wanted; answered by [`Event::Pong`] between two decodes.
    Ping(u64),
    /// Take no more jobs, finish the running ones, then exit 0. Closing the socket ends them at once.
    Drain,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// First event of every worker, before any model is opened.
    Hello(Hello),
    /// What holds the worker in from now on. After [`Command::Load`] or
    /// [`Command::Plan`], and before the model is opened.
    Sandboxed(Sandbox),
    /// Loading goes on; at most ten a second, and one at least every second while bytes move.
    LoadProgress {
        /// 0.0 to 1.0.
        fraction: f32,
    },
    /// The model serves.
    Loaded(Box<Loaded>),
    /// Answer to [`Command::Plan`]: the model and the devices.
    Outline(Box<Outline>),
    /// Answer to [`Command::Ask`]: what it takes; or why there is no such context, a sentence.
    Planned(Result<Box<Plan>, String>),
    /// Answer to [`Command::Probe`]: whether it did. True where there is no GPU.
    Probed(bool),
    /// Answer to [`Command::Compile`]. Where a limit was exceeded the worker then exits 0.
    Compiled(Result<(), Refused>),
    /// The model cannot be served by this worker; the worker then exits 0.
    LoadFailed {
        /// A sentence for a technician: what was found, what was expected, what to do.
        message: String,
    },
    /// The job has its sequence; its prompt is tokenized and prefill begins.
    Started {
        /// Which job.
        job: JobKey,
        /// Ids of the whole prompt, kept by the supervisor for resuming.
        prompt_ids: Vec<Token>,
        /// How many of them were found in the KV cache.
        n_cached: u32,
        /// Of [`Job::turns`], the oldest that found no room.
        n_left_out: u32,
    },
    /// What one decode step made. One event a step, all sequences together.
    Step {
        /// Rises by one with each decode.
        step: u64,
        /// Sequences that gained tokens or text.
        pieces: Vec<Piece>,
    },
    /// The job is over. The last event that names it.
    Done(Box<Done>),
    /// The job has left its sequence: as [`Command::Park`] said, or because an urgent one had no cells. Nothing
    /// more names it until it is submitted again.
    Parked(Box<Parked>),
    /// What saved sequences take, outside the KV pool, has changed.
    Cached {
        /// All of them together.
        bytes: u64,
    },
    /// What was left on disk, or taken back from there, has changed.
    OnDisk(OnDisk),
    /// Answer to [`Command::Save`].
    Saved,
    /// Answer to [`Command::Tokenize`].
    Tokenized {
        /// As asked.
        job: JobKey,
        /// The ids, or why not.
        ids: Result<Vec<Token>, JobError>,
    },
    /// Answer to [`Command::Embed`].
    Embedded {
        /// As asked.
        job: JobKey,
        /// The vectors, or the first text that would not do.
        outcome: Box<Result<Embedded, TextError>>,
    },
    /// Answer to [`Command::Bench`].
    Bench(BenchReport),
    /// Answer to [`Command::Score`].
    Scored(Result<Scored, JobError>),
    /// Answer to [`Command::Ping`].
    Pong(u64),
}

/// Who the worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the worker.
    pub protocol: u32,
    /// Package version of the worker.
    pub version: String,
    /// Which llama.cpp, e.g. `llama-cpp-sys-2 0.1.161`.
    pub llama: String,
    /// Compute backends compiled in, e.g. `["CPU", "CUDA"]`.
    pub backends: Vec<String>,
}

/// Which model to load and how. Zero means "as the model says" where the field allows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadSpec {
    /// Name under which the model is known on the wire.
    pub name: String,
    /// The GGUF file.
    pub path: std::path::PathBuf,
    /// What it is loaded for. With [`Task::Embed`] a text has at most `n_ubatch` tokens, and `n_ctx` and
    /// `n_batch` are the same number.
    pub task: Task,
    /// Tokens in the KV pool, shared by all sequences; 0: the model's training context, at most
    /// `n_ctx_auto_max`. The supervisor replaces 0 by the largest that fits.
    pub n_ctx: u32,
    /// Most tokens that `n_ctx = 0` becomes; 0: no limit.
    pub n_ctx_auto_max: u32,
    /// Tokens that one request may use, prompt and answer; 0: `n_ctx`.
    pub n_ctx_seq: u32,
    /// Sequences that decode side by side.
    pub n_seq_max: u32,
    /// Most rows in one decode.
    pub n_batch: u32,
    /// Most rows in one physical batch.
    pub n_ubatch: u32,
    /// Longest step while somebody decodes, in milliseconds: the rest of the prefill waits for the next step.
    pub step_ms: u32,
    /// Most prefill tokens in a step while somebody decodes.
    pub step_tokens: u32,
    /// Threads for decoding; 0: the number of cores.
    pub n_threads: u32,
    /// Threads for prefill; 0: `n_threads`.
    pub n_threads_batch: u32,
    /// Layers on the GPU; -1: all.
    pub n_gpu_layers: i32,
    /// Use the CPU although this build and this machine could use a GPU, or because nothing else is there.
    pub backend: Backend,
    /// Type of the keys in the KV cache.
    pub kv_type_k: KvType,
    /// Type of the values in the KV cache; anything but F16 and F32 needs flash attention.
    pub kv_type_v: KvType,
    /// Flash attention.
    pub flash_attn: Switch,
    /// How the file is read.
    pub mmap: Switch,
    /// CUDA graphs; `Off` sets `GGML_CUDA_DISABLE_GRAPHS` before the backend starts.
    pub cuda_graphs: Switch,
    /// Jinja template that replaces the one in the GGUF.
    pub chat_template: Option<String>,
    /// Tokens to decode and time after the load, as proof of where the model runs; 0: none.
    pub canary_tokens: u32,
    /// What sequences of ended jobs may take outside the KV pool, bytes; 0: none is saved.
    pub prefix_cache_bytes: u64,
    /// What may be left on disk; `None`: nothing.
    pub saved_states: Option<SavedStates>,
    /// Whether tokens are guessed and read along.
    pub speculation: Speculation,
    /// Guessed tokens for each sequence and step, at most.
    pub draft_tokens: u32,
    /// What the worker may still touch once the sandbox is closed; `None`: no sandbox, for debugging.
    pub sandbox: Option<SandboxSpec>,
    /// A smaller model of the same vocabulary that drafts for this one, where guesses are made. One that does
    /// not load, or has another vocabulary, is left aside.
    pub draft: Option<Draft>,
}

/// What a worker may leave on disk for the next one with the same model: saved sequences, in the file that is its
/// standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedStates {
    /// The file's length, at most.
    pub bytes_max: u64,
    /// To be left free on its file system, bytes.
    pub reserve_bytes: u64,
    /// What is older is forgotten, seconds.
    pub age_seconds_max: u64,
    /// What a conversation left is saved when nobody asked for so long, milliseconds; 0: only by
    /// [`Command::Save`].
    pub quiet_ms: u64,
}

/// A model that drafts for another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    /// Its name.
    pub name: String,
    /// Its GGUF file.
    pub path: std::path::PathBuf,
}

/// Whether what a sequence says next is guessed from what it said before and read along in the same batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculation {
    /// Never.
    Off,
    /// On a GPU, where a few rows cost hardly more than one; and there as far as it is measured to pay.
    Auto,
    /// Everywhere, as far as it is measured to pay.
    Measured,
    /// In each step; for measurements.
    Always,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// To make text.
    Generate,
    /// To make one vector of each text.
    Embed,
}

/// What the operator adds to the few things that every worker needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Files and folders that may be read: libraries in unusual places.
    pub read: Vec<std::path::PathBuf>,
    /// The one folder that may be written: CUDA's cache of compiled kernels. `None`: nothing may.
    pub write: Option<std::path::PathBuf>,
}

/// What holds a worker in, as the kernel confirmed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// ABI of the Landlock rules for files; `None`: none are in force.
    pub landlock_abi: Option<u32>,
    /// System calls are filtered.
    pub seccomp: bool,
    /// No program that this process could start would gain rights.
    pub no_new_privs: bool,
    /// What is not held in and why, a sentence each for a technician; empty when nothing is missing.
    pub gaps: Vec<String>,
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The GPU when there is one; with a GPU present, anything less than all layers on it is an error.
    Auto,
    /// The CPU, asked for by the operator.
    Cpu,
}

/// Three-way switch: the operator's word, or llama.cpp's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Decided by llama.cpp for this device.
    Auto,
    /// On, or an error.
    On,
    /// Off.
    Off,
}

/// Element type of a KV cache half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are ggml's own")]
pub enum KvType {
    F32,
    F16,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl KvType {
    /// ggml's name, as the configuration has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// As in [`LoadSpec::name`].
    pub name: String,
    /// `general.architecture`.
    pub arch: String,
    /// llama.cpp's one-line description, e.g. `llama 135M Q4_1`.
    pub description: String,
    /// Parameters.
    pub n_params: u64,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// Vocabulary size.
    pub n_vocab: u32,
    /// Length of the vectors of a model for [`Task::Embed`]; 0: it makes text.
    pub n_dims: u32,
    /// Context the model was trained with.
    pub n_ctx_train: u32,
    /// KV pool, tokens.
    pub n_ctx: u32,
    /// Limit of one request, tokens.
    pub n_ctx_seq: u32,
    /// Sequences side by side.
    pub n_seq_max: u32,
    /// Name of the chat template family, or `gguf` for the model's own, or `none`.
    pub chat_template: String,
    /// How this model writes that it calls a tool.
    pub tool_syntax: ToolSyntax,
    /// Layers of the model, the output layer counted.
    pub n_layers: u32,
    /// Layers found on a GPU in llama.cpp's log.
    pub n_layers_gpu: u32,
    /// Parts of the compute graph; 1 when one device runs all of it.
    pub n_graph_splits: u32,
    /// Bytes by buffer type, from llama.cpp's own breakdown.
    pub buffers: Vec<BufferUse>,
    /// GPUs that the model was put on.
    pub devices: Vec<Device>,
    /// Bytes of tensors that llama.cpp keeps in host memory in any case: only rows of them are looked up.
    pub input_bytes: u64,
    /// Timed decoding right after the load, if it was asked for.
    pub canary: Option<Canary>,
    /// Milliseconds from opening the file to serving, the canary not counted.
    pub load_ms: u64,
}

/// Bytes that llama.cpp holds in one kind of buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BufferUse {
    /// llama.cpp's name, e.g. `CPU`, `CUDA0`.
    pub buffer: String,
    /// Whether it is host memory.
    pub host: bool,
    /// Weights of the model, bytes.
    pub weights_bytes: u64,
    /// KV cache, bytes.
    pub kv_bytes: u64,
    /// Compute buffers, bytes.
    pub compute_bytes: u64,
}

/// One prompt to answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its name on the socketpair.
    pub job: JobKey,
    /// The prompt.
    pub input: Input,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; not part of it.
    pub stop: Vec<String>,
    /// Most tokens to make; 0: as many as the context allows.
    pub max_tokens: u32,
    /// Fewest tokens to make: before them no end-of-generation token is chosen, unless a [`Constraint`] has
    /// nothing else to go on with.
    pub min_tokens: u32,
    /// Go on after an end-of-generation token (for measurements). Nothing goes on after the end of a
    /// [`Constraint`].
    pub ignore_eos: bool,
    /// Report how probable each token was, beside so many of the most probable ones.
    pub logprobs: Option<u8>,
    /// What the answer must be, from its first byte to its last.
    pub constraint: Option<Constraint>,
    /// Least time between two pieces of its text, milliseconds; 0: a piece each step. Each frame wakes threads
    /// on both sides, and on a small machine decoding waits for them.
    pub pace_ms: u32,
    /// Where another worker left off.
    pub resume: Option<Resume>,
    /// What another model made of the answer.
    pub head: Option<Head>,
    /// Messages of each earlier turn of a conversation, the oldest first; they stand behind the system messages
    /// at the beginning of [`Input::Chat`]. Where the prompt is too long, the oldest turns are left out.
    pub turns: Vec<u32>,
    /// What is kept of it for those that begin as it does.
    pub leaves: Leaves,
    /// Its prompt is read before those of others, and jobs that yield make room for it.
    pub urgent: bool,
    /// It may be parked where an urgent job finds no room.
    pub yields: bool,
}

impl Job {
    /// The likeliest answer, with nothing else asked for.
    pub fn plain(job: JobKey, input: Input, max_tokens: u32) -> Self {
        Self {
            job,
            input,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            logprobs: None,
            constraint: None,
            pace_ms: 0,
            resume: None,
            head: None,
            turns: Vec::new(),
            leaves: Leaves::default(),
            urgent: false,
            yields: false,
        }
    }
}

/// What a job leaves behind outside the KV pool ([`LoadSpec::prefix_cache_bytes`]).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaves {
    /// Until something newer needs the room.
    #[default]
    Usual,
    /// The same for the conversation with this number, in the place of what it left before; what nobody came back
    /// to goes first.
    Session(u64),
    /// Nothing at all.
    Nothing,
    /// For as long as there is room at all. The job is not answered: of its prompt the part is read that does not
    /// depend on how the last message goes on. It gives way to every other. With a constraint it also says that
    /// answers with a form will be wanted, whichever: the worker prepares for them when it rests.
    Pinned,
}

/// What a worker has on disk, and what it did there since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDisk {
    /// States that are there.
    pub n_states: u32,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Tokens that were read back instead of being computed.
    pub n_restored: u64,
}

/// Texts to turn into vectors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbedJob {
    /// Its name on the socketpair.
    pub job: JobKey,
    /// At least one.
    pub texts: Vec<String>,
    /// Cut what is too long, instead of refusing all.
    pub truncate: bool,
}

/// Outcome of an [`EmbedJob`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// Length of each vector.
    pub n_dims: u32,
    /// All vectors, one after the other, in the order of the texts; each has the length 1.
    pub vectors: Vec<f32>,
    /// Tokens of all texts, as far as they were read.
    pub n_tokens: u32,
    /// Texts that were cut.
    pub n_truncated: u32,
}

/// What is wrong with a text of an [`EmbedJob`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextError {
    /// Which one, from 0.
    pub index: u32,
    /// Why.
    pub error: JobError,
}

/// What a prompt is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Input {
    /// Rendered with the chat template, then tokenized. `messages` and `tools` are JSON texts (arrays).
    Chat {
        /// OpenAI messages as a JSON array.
        messages: String,
        /// OpenAI tools as a JSON array, if any.
        tools: Option<String>,
    },
    /// Tokenized as it stands.
    Text(String),
}

/// State of a stream when its worker ended.
///
/// The text of `output_ids` is a function of the ids and the stop strings, so the bytes already
/// delivered are all that a new worker must skip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// Ids of the prompt, as the first worker reported them.
    pub prompt_ids: Vec<Token>,
    /// Ids made so far.
    pub output_ids: Vec<Token>,
    /// Bytes of text already handed out.
    pub text_bytes: u64,
}

/// The answer so far, when another model takes it over. Ids of one vocabulary mean nothing in another, so the
/// text is tokenized behind the prompt; in [`Resume::prompt_ids`] it is part of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Text already handed out. It is not made again.
    pub text: String,
    /// Tokens that it took, of [`Job::max_tokens`].
    pub n_output: u32,
}

/// The sampling chain, in this order: logit bias, penalties, top_k, top_p, min_p, temperature, draw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the best token always.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1.0: off.
    pub top_p: f32,
    /// 0.0: off.
    pub min_p: f32,
    /// 1.0: off.
    pub repeat_penalty: f32,
    /// Tokens that the penalties look back on; 0: none.
    pub repeat_last_n: u32,
    /// 0.0: off.
    pub frequency_penalty: f32,
    /// 0.0: off.
    pub presence_penalty: f32,
    /// The draw of output token `i` depends on `(seed, i)` alone, so that a stream resumes exactly.
    pub seed: u64,
    /// Added to the logit of a token; -infinity forbids it.
    pub logit_bias: Vec<(Token, f32)>,
}

impl Sampling {
    /// Always the likeliest token: the same answer each time, as far as kernels allow.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
        }
    }
}

/// What one step gave one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Which job.
    pub job: JobKey,
    /// Ids made since the last piece.
    pub ids: Vec<Token>,
    /// One for each of these ids, where [`Job::logprobs`] asks for them.
    pub logprobs: Vec<Logprob>,
    /// Whole UTF-8 text released since the last piece; may be empty while a stop string or a split
    /// character is held back.
    pub text: String,
}

/// How probable a token of the answer was to the model, before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// The token that was chosen.
    pub chosen: TokenLogprob,
    /// The most probable ones in its place, best first; the chosen one is among them or is not.
    pub top: Vec<TokenLogprob>,
}

/// A token and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// The bytes that it stands for; none for control tokens. They may be part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Which job.
    pub job: JobKey,
    /// Why, or what went wrong.
    pub end: Result<Finish, JobError>,
    /// Last ids, not yet in a [`Piece`].
    pub ids: Vec<Token>,
    /// As [`Piece::logprobs`].
    pub logprobs: Vec<Logprob>,
    /// Last text, not yet in a [`Piece`].
    pub text: String,
    /// Counts and times of this worker's part of the job.
    pub timings: Timings,
}

/// A job that is to go on later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Parked {
    /// Which job.
    pub job: JobKey,
    /// Last ids, not yet in a [`Piece`].
    pub ids: Vec<Token>,
    /// As in a [`Piece`].
    pub logprobs: Vec<Logprob>,
    /// Last text, not yet in a [`Piece`]; what may be the begin of a stop string is still held back.
    pub text: String,
    /// Counts and times of this stay in the worker.
    pub timings: Timings,
}

/// Why generation stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// End-of-generation token or a stop string.
    Stop,
    /// `max_tokens` or the context limit.
    Length,
    /// [`Command::Cancel`].
    Cancelled,
}

/// Counts and times of one job in one worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Of those, found in the cache.
    pub n_cached: u32,
    /// Tokens made, by all workers of this job.
    pub n_output: u32,
    /// Tokens that were guessed and read along, by this worker.
    pub n_guessed: u32,
    /// Of those, chosen.
    pub n_right: u32,
    /// From the first prefill batch to the first logits, milliseconds.
    pub prefill_ms: f64,
    /// From the first token to the last, milliseconds.
    pub decode_ms: f64,
}

/// Why a job could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobError {
    /// The prompt alone is longer than one request may be.
    TooLong {
        /// Tokens of the prompt.
        n_prompt: u32,
        /// The limit.
        n_ctx_seq: u32,
    },
    /// The messages do not fit the chat template, or the template failed.
    Template(String),
    /// Tokenizing failed, or an id is out of range.
    Input(String),
    /// Decoding failed for this job.
    Decode(String),
    /// There is no next token by the [`Constraint`], or none could be found within the limits.
    Constraint(String),
}

/// A raw measurement, after llama-bench (`pp`, `tg`) and llama-batched-bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BenchSpec {
    /// Prompt tokens of each sequence; 0: none.
    pub n_prompt: u32,
    /// Tokens to decode in each sequence; 0: none.
    pub n_gen: u32,
    /// Sequences side by side.
    pub n_parallel: u32,
}

/// Outcome of a [`BenchSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// As asked.
    pub spec: BenchSpec,
    /// Wall time of the prompt part, milliseconds.
    pub prompt_ms: f64,
    /// Wall time of the decoding part, milliseconds.
    pub gen_ms: f64,
}

/// Outcome of [`Command::Score`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// Tokens that were foretold: all but the first.
    pub n_tokens: u32,
    /// Mean negative logarithm of their probabilities, nats; infinite when the model computes no numbers.
    pub mean_nll: f64,
}

#[cfg(test)]
mod tests;
