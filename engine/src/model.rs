//! The seam between the loop and llama.cpp: [`Loader`] lends a [`Decoder`] to a closure.
//!
//! The loop knows only these traits, so it is tested with `scripted` and again with real models.
//! Lending instead of returning keeps the model alive exactly as long as its context and frees both,
//! in order, on the thread that made them; no implementor has to be `Send`.

use orinoco::frames::{LoadSpec, Loaded, Outline, Plan, PlanAsk, Token};

/// Number of a sequence in the KV cache.
///
/// Below [`Limits::n_seq_max`] for those that decode, below twice that for those that are parked.
pub type SeqId = u32;

/// One row of a decode batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose row it is; below [`Limits::n_seq_max`].
    pub seq: SeqId,
    /// The token to read.
    pub token: Token,
    /// Its position, one above the last position of `seq`.
    pub pos: u32,
    /// Whether [`Decoder::logits`] will be asked for this row.
    pub wants_logits: bool,
}

/// What a decoder can hold and do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Cells in the KV pool, shared by all sequences.
    pub n_ctx: u32,
    /// Tokens one request may use, prompt and answer.
    pub n_ctx_seq: u32,
    /// Sequences that decode side by side.
    pub n_seq_max: u32,
    /// Guessed tokens that may be read along for each of them; 0: none.
    pub n_draft: u32,
    /// Whether a sequence can begin with part of another; not where the model's memory is a state instead of
    /// cells (recurrent and hybrid models).
    pub shares_prefixes: bool,
    /// Most rows in one batch.
    pub n_batch: u32,
    /// Most rows in one physical batch; at most `n_batch`.
    pub n_ubatch: u32,
    /// Whether [`Decoder::decode`] returns before the batch is computed, as on a GPU: until its logits are asked for,
    /// the calling thread has nothing to do.
    pub computes_aside: bool,
    /// Tokens in the vocabulary.
    pub n_vocab: u32,
    /// Width of the sliding window; 0: every layer sees all positions.
    pub n_swa: u32,
}

impl Limits {
    /// Most rows with logits in one batch.
    pub fn n_outputs_max(&self) -> u32 {
        self.n_seq_max * (1 + self.n_draft)
    }
}

/// Why a batch was not decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Nothing was changed: the pool has no room for the batch.
    #[error("no free cells in the KV pool for this batch")]
    NoCells,
    /// The socket was closed during the decode.
    #[error("decode was aborted because the supervisor is gone")]
    Aborted,
    /// llama.cpp refused or failed; some rows may be in the cache.
    #[error("llama_decode returned {0}")]
    Failed(i32),
}

/// What a chat template needs from the model's file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSource {
    /// The Jinja text, if the file has one.
    pub source: Option<String>,
    /// Another that the file has for conversations with tools.
    pub for_tools: Option<String>,
    /// Text of the begin-of-sequence token, empty if there is none.
    pub bos: String,
    /// Text of the end-of-sequence token, empty if there is none.
    pub eos: String,
    /// Whether tokenizing with `add_special` puts the BOS token in front.
    pub add_bos: bool,
}

/// A loaded model and its context. Lives and dies on one thread.
pub trait Decoder {
    /// What it can hold; constant.
    fn limits(&self) -> Limits;

    /// Ids of `text`. `add_special` adds BOS (and what else the model wants), `parse_special` reads
    /// the texts of control tokens as those tokens. The error is a sentence.
    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, String>;

    /// Appends the bytes that `token` stands for; control tokens stand for none.
    fn piece(&self, token: Token, bytes: &mut Vec<u8>);

    /// The text that [`Decoder::tokenize`] reads this token out of only where it parses control tokens; `None` for
    /// tokens that stand for text.
    fn control(&self, token: Token) -> Option<String>;

    /// Whether `token` ends an answer.
    fn is_eog(&self, token: Token) -> bool;

    /// Template, BOS and EOS of the model's file.
    fn template(&self) -> TemplateSource;

    /// Reads `rows`, at most `n_batch` of them, at most [`Limits::n_outputs_max`] with logits.
    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError>;

    /// Logits of row `row` of the last batch, `n_vocab` long. They may be changed in place (that saves
    /// a copy of the vocabulary for each token) and are gone after the next `decode`.
    fn logits(&mut self, row: usize) -> &mut [f32];

    /// Forgets positions `from..` of `seq`; `false` if the model's memory cannot forget only a part.
    fn seq_rm(&mut self, seq: SeqId, from: u32) -> bool;

    /// Makes positions `0..len` of `from` also those of the empty sequence `to`, in the same cells.
    fn seq_cp(&mut self, from: SeqId, to: SeqId, len: u32);

    /// Lowest position still in the cache; above 0 only where a sliding window has let go of some.
    fn seq_pos_min(&self, seq: SeqId) -> Option<u32>;

    /// Highest position in the cache.
    fn seq_pos_max(&self, seq: SeqId) -> Option<u32>;

    /// Bytes of [`Decoder::state`]; 0 for an empty sequence.
    fn state_bytes(&mut self, seq: SeqId) -> usize;

    /// Everything in the cache for `seq`, to be given to [`Decoder::restore`]; `None` where there is nothing
    /// or it cannot be copied.
    fn state(&mut self, seq: SeqId) -> Option<Vec<u8>>;

    /// Puts a [`Decoder::state`] of this decoder into the empty sequence `seq`. `false`: there is no room, and
    /// the sequence may hold part of it.
    fn restore(&mut self, seq: SeqId, state: &[u8]) -> bool;

    /// Waits until the last batch is computed, so that it can be timed.
    fn synchronize(&mut self);
}

/// What an encoder can take; constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Length of a vector.
    pub n_dims: u32,
    /// Tokens of one text, at most `n_batch`.
    pub n_tokens_max: u32,
    /// Tokens of all texts in one batch.
    pub n_batch: u32,
    /// Texts in one batch.
    pub n_seq_max: u32,
}

/// A loaded embedding model. Lives and dies on one thread.
pub trait Encoder {
    /// What it can take.
    fn shape(&self) -> Shape;

    /// Ids of `text` with the marks of its begin and end; nothing in it is read as a control token. The error
    /// is a sentence.
    fn tokenize(&self, text: &str) -> Result<Vec<Token>, String>;

    /// One vector for each of `texts`, one after the other; not normalised.
    fn encode(&mut self, texts: &[&[Token]]) -> Result<Vec<f32>, DecodeError>;
}

/// Why a model cannot be served; the text goes to a technician.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// What is done with a loaded model, and with its draft model if it has one.
pub type Serve<'a> = dyn FnMut(&mut dyn Decoder, Option<&mut dyn Decoder>, Loaded) + 'a;

/// Loads a model and lends it out.
pub trait Loader {
    /// Loads `spec`, hands the decoder, that of its draft model where guesses are made and it has one, and the
    /// description to `serve`, and frees all after it.
    ///
    /// `progress` is called with 0.0 to 1.0 while bytes move; when it returns `false` loading stops.
    fn with_model(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut Serve<'_>,
    ) -> Result<(), LoadError>;

    /// As [`Loader::with_model`], of a model that makes vectors ([`Task::Embed`](orinoco::frames::Task)).
    fn with_encoder(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut dyn FnMut(&mut dyn Encoder, Loaded),
    ) -> Result<(), LoadError>;

    /// Lays the model of `spec` out without memory behind it and lends it to `answer`.
    fn with_outline(
        &mut self,
        spec: &LoadSpec,
        answer: &mut dyn FnMut(&mut dyn Planner),
    ) -> Result<(), LoadError>;
}

/// A model that takes no memory and knows what it would take.
pub trait Planner {
    /// The model and the devices it would be put on.
    fn outline(&self) -> Outline;

    /// What a context for `ask` takes, the model included.
    fn plan(&mut self, ask: &PlanAsk) -> Result<Plan, LoadError>;

    /// Whether the first GPU gives `bytes` in one piece; true where there is no GPU.
    fn probe(&mut self, bytes: u64) -> bool;
}
