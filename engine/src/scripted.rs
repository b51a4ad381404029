//! A decoder without a model: deterministic, byte by byte, with hooks in the prompt.
//!
//! For tests of the loop, and as `orinoco-engine-scripted` for tests of the supervisor: the same loop,
//! frames and process as the product, only the [`Decoder`] differs. The product has none of the hooks.
//!
//! **Vocabulary**: tokens 0 to 255 are bytes; `<s>` (BOS), `</s>` (end of generation), `<|end|>` (end of
//! the prompt), `<|system|>`, `<|user|>`, `<|assistant|>`, `<|tool|>` follow. With `add_special` a text
//! becomes `<s>` text `<|end|>`; the chat template writes both itself.
//!
//! **Answer**: a pure function of the prompt and of how many tokens were made. The text of the last
//! user message (or of the whole prompt) is repeated, with a space between, until `max_tokens`. A run
//! of words that begins with `!` is a hook, taken out of the echoed text:
//!
//! | hook | effect |
//! |---|---|
//! | `!tokens N` | the end-of-generation token comes after N tokens |
//! | `!count` | the answer is `0 1 2 3 …`, so that a reader sees what is missing or repeated |
//! | `!utf8` | the answer is `é€𝄞 ` repeated: characters of two to four tokens |
//! | `!step MS` | each decode with a row of this prompt takes MS milliseconds |
//! | `!abort at N` | the process aborts when it makes its N-th token |
//! | `!crash at N` | the same, but only where the stream began: not in a worker that resumes it |
//! | `!hang at N` | the process decodes for ever when it makes its N-th token |
//! | `!fail at N` | decoding of this sequence fails at its N-th token |
//! | `!try WHAT TARGET` | does what a worker that was taken over would try, once for each prompt; the answer is `WHAT: ` and `ok` or the error's name. The rest of the prompt is not read |
//!
//! **Loading** (of the binary only): the file of the spec must exist. If its text begins with `!`, lines
//! are hooks: `!load-ms N` takes that long, `!load-fail MESSAGE` fails, `!load-abort` aborts. Planning heeds
//! `!weights-bytes N`, `!mapped` (these weights are), `!plan-fail MESSAGE` and `!plan-abort`.

mod attempts;
mod encoder;
mod script;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use orinoco::frames::{
    Backend, BufferUse, KvType, LoadSpec, Loaded, Outline, Plan, PlanAsk, Sampling, SandboxSpec,
    Speculation, Switch, Task, Token, ToolSyntax,
};

pub use self::encoder::ScriptedEncoder;
use self::script::Script;
use crate::model::{
    DecodeError, Decoder, Encoder, Limits, LoadError, Loader, Planner, Row, SeqId, Serve,
    TemplateSource,
};

const BOS: Token = 256;
const EOG: Token = 257;
/// End of the prompt: what comes after it is the answer.
const END: Token = 258;
const SPECIAL: [&str; 7] = [
    "<s>",
    "</s>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool|>",
];
const USER: Token = 260;
const N_CTX_TRAIN: u32 = 8192;
const N_VOCAB: usize = 256 + SPECIAL.len();

const TEMPLATE: &str =
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|end|>";

/// One row in the cache: the token, and the cell it shares with other sequences or not.
#[derive(Debug, Clone, Copy)]
struct Cell {
    token: Token,
    id: u64,
}

/// One of the calls whose order matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// A text of so many bytes was tokenized.
    Tokenize(usize),
    /// A batch was begun.
    Decode,
    /// Its logits were asked for.
    Logits,
}

/// The decoder. Panics when the loop breaks a rule that llama.cpp would answer with an abort or with
/// silently wrong logits.
#[derive(Debug)]
pub struct Scripted {
    limits: Limits,
    seqs: BTreeMap<SeqId, Vec<Cell>>,
    scripts: BTreeMap<SeqId, Script>,
    next_cell: u64,
    logits: Vec<Option<Vec<f32>>>,
    /// Batches decoded so far, for tests.
    pub batches: Vec<Vec<Row>>,
    /// What was asked of it, in order.
    pub calls: RefCell<Vec<Call>>,
    /// Whether batches and calls are kept.
    pub keeps_batches: bool,
    /// Decodes so far, to be watched from another thread.
    pub n_decodes: Arc<AtomicUsize>,
    /// Tokens whose bytes were asked for so far, likewise.
    pub n_pieces: Arc<AtomicUsize>,
    /// Sequences that were copied so far, likewise.
    pub n_copies: Arc<AtomicUsize>,
    /// What a copy takes.
    pub copy: Duration,
}

impl Scripted {
    /// An empty cache with these limits; `n_vocab` is set.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits: Limits {
                n_vocab: N_VOCAB as u32,
                ..limits
            },
            seqs: BTreeMap::new(),
            scripts: BTreeMap::new(),
            next_cell: 0,
            logits: Vec::new(),
            batches: Vec::new(),
            calls: RefCell::default(),
            keeps_batches: false,
            n_decodes: Arc::default(),
            n_pieces: Arc::default(),
            n_copies: Arc::default(),
            copy: Duration::ZERO,
        }
    }

    fn note(&self, call: Call) {
        if self.keeps_batches {
            self.calls.borrow_mut().push(call);
        }
    }

    fn n_cells(&self) -> usize {
        let mut ids = Vec::from_iter(self.seqs.values().flatten().map(|cell| cell.id));
        ids.sort_unstable();
        ids.dedup();
        ids.len()
    }

    fn check(&self, rows: &[Row]) {
        assert!(!rows.is_empty(), "an empty batch");
        assert!(
            rows.len() <= self.limits.n_batch as usize,
            "{} rows in a batch of {}",
            rows.len(),
            self.limits.n_batch
        );
        let n_outputs = rows.iter().filter(|row| row.wants_logits).count();
        assert!(
            n_outputs <= self.limits.n_outputs_max() as usize,
            "{n_outputs} rows with logits"
        );
        let mut ends: BTreeMap<SeqId, usize> = BTreeMap::new();
        for row in rows {
            assert!(
                row.seq < self.limits.n_seq_max,
                "row of sequence {}",
                row.seq
            );
            assert!(
                (0..N_VOCAB as Token).contains(&row.token),
                "token {}",
                row.token
            );
            let end = ends
                .entry(row.seq)
                .or_insert_with(|| self.seqs.get(&row.seq).map_or(0, Vec::len));
            assert_eq!(row.pos as usize, *end, "position in sequence {}", row.seq);
            *end += 1;
        }
    }

    /// The token that follows the whole of `seq`.
    fn next(&mut self, seq: SeqId) -> Result<Token, DecodeError> {
        let cells = &self.seqs[&seq];
        let tokens = Vec::from_iter(cells.iter().map(|cell| cell.token));
        let n_made = tokens.iter().rev().take_while(|t| **t != END).count();
        let n_made = if n_made == tokens.len() { 0 } else { n_made };
        // The first token that a worker makes is not the answer's first: another worker began it.
        let script = self.scripts.entry(seq).or_insert_with(|| {
            let prompt = &tokens[..tokens.len() - n_made];
            Script::of(prompt, n_made > 0)
        });
        script.make(n_made)
    }
}

impl Decoder for Scripted {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, String> {
        self.note(Call::Tokenize(text.len()));
        let mut ids = Vec::new();
        if add_special {
            ids.push(BOS);
        }
        let mut rest = text;
        while let Some(first) = rest.bytes().next() {
            let special = SPECIAL
                .iter()
                .position(|mark| parse_special && rest.starts_with(mark));
            if let Some(special) = special {
                ids.push(256 + special as Token);
                rest = &rest[SPECIAL[special].len()..];
            } else {
                let length = rest.chars().next().map_or(1, char::len_utf8);
                ids.extend(rest.bytes().take(length).map(Token::from));
                debug_assert_eq!(
                    ids.last().copied(),
                    rest.as_bytes().get(length - 1).map(|b| Token::from(*b)),
                    "{first}"
                );
                rest = &rest[length..];
            }
        }
        if add_special {
            ids.push(END);
        }
        Ok(ids)
    }

    fn piece(&self, token: Token, bytes: &mut Vec<u8>) {
        self.n_pieces.fetch_add(1, Ordering::Relaxed);
        bytes.extend(u8::try_from(token));
    }

    fn control(&self, token: Token) -> Option<String> {
        let special = usize::try_from(token).ok()?.checked_sub(256)?;
        SPECIAL.get(special).map(|text| (*text).to_owned())
    }

    fn is_eog(&self, token: Token) -> bool {
        token == EOG
    }

    fn template(&self) -> TemplateSource {
        TemplateSource {
            source: Some(TEMPLATE.to_owned()),
            for_tools: None,
            bos: SPECIAL[0].to_owned(),
            eos: SPECIAL[1].to_owned(),
            add_bos: true,
        }
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        self.check(rows);
        self.note(Call::Decode);
        self.n_decodes.fetch_add(1, Ordering::Relaxed);
        if self.keeps_batches {
            self.batches.push(rows.to_vec());
        }
        if self.n_cells() + rows.len() > self.limits.n_ctx as usize {
            return Err(DecodeError::NoCells);
        }
        self.logits.clear();
        let mut pause = Duration::ZERO;
        for row in rows {
            let id = self.next_cell;
            self.next_cell += 1;
            let cells = self.seqs.entry(row.seq).or_default();
            cells.push(Cell {
                token: row.token,
                id,
            });
            let logits = if row.wants_logits {
                let token = self.next(row.seq)?;
                let mut logits = vec![0.0; N_VOCAB];
                // exp(-100) is no weight at all, so that any temperature up to 1 gives the script.
                logits[token as usize] = 100.0;
                Some(logits)
            } else {
                None
            };
            self.logits.push(logits);
            if let Some(script) = self.scripts.get(&row.seq) {
                pause = pause.max(script.step);
            }
        }
        if !pause.is_zero() {
            #[expect(
                clippy::disallowed_methods,
                reason = "being slow is what it is asked for"
            )]
            std::thread::sleep(pause);
        }
        Ok(())
    }

    fn logits(&mut self, row: usize) -> &mut [f32] {
        self.note(Call::Logits);
        self.logits[row]
            .as_mut()
            .expect("logits were wanted for this row")
    }

    fn seq_rm(&mut self, seq: SeqId, from: u32) -> bool {
        if let Some(cells) = self.seqs.get_mut(&seq) {
            cells.truncate(from as usize);
        }
        self.scripts.remove(&seq);
        true
    }

    fn seq_cp(&mut self, from: SeqId, to: SeqId, len: u32) {
        assert!(
            self.seqs.get(&to).is_none_or(Vec::is_empty),
            "seq_cp into sequence {to}, which is not empty"
        );
        let cells = self.seqs.get(&from).cloned().unwrap_or_default();
        assert!(cells.len() >= len as usize, "seq_cp of more than there is");
        self.seqs.insert(to, cells[..len as usize].to_vec());
    }

    fn seq_pos_min(&self, seq: SeqId) -> Option<u32> {
        self.seqs.get(&seq).filter(|cells| !cells.is_empty())?;
        Some(0)
    }

    fn seq_pos_max(&self, seq: SeqId) -> Option<u32> {
        Some(self.seqs.get(&seq)?.len().checked_sub(1)? as u32)
    }

    fn state_bytes(&mut self, seq: SeqId) -> usize {
        self.seqs.get(&seq).map_or(0, Vec::len) * size_of::<Token>()
    }

    #[expect(clippy::disallowed_methods, reason = "it is the time of a copy")]
    fn state(&mut self, seq: SeqId) -> Option<Vec<u8>> {
        let cells = self.seqs.get(&seq)?.iter();
        std::thread::sleep(self.copy);
        self.n_copies.fetch_add(1, Ordering::Relaxed);
        Some(cells.flat_map(|cell| cell.token.to_le_bytes()).collect())
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> bool {
        let tokens = state.as_chunks().0;
        if self.n_cells() + tokens.len() > self.limits.n_ctx as usize {
            return false;
        }
        let first = self.next_cell;
        self.next_cell += tokens.len() as u64;
        let cells = tokens.iter().zip(first..).map(|(token, id)| Cell {
            token: Token::from_le_bytes(*token),
            id,
        });
        let cells = cells.collect();
        self.seqs.insert(seq, cells);
        true
    }

    fn synchronize(&mut self) {}
}

/// Lends a [`Scripted`].
#[derive(Debug, Default)]
pub struct ScriptedLoader {
    reads_file: bool,
}

impl ScriptedLoader {
    /// As the binary has it: the file must exist and may hold hooks.
    pub fn for_process() -> Self {
        Self { reads_file: true }
    }
}

impl Loader for ScriptedLoader {
    fn with_model(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut Serve<'_>,
    ) -> Result<(), LoadError> {
        if self.reads_file {
            script::load(&spec.path, progress)?;
        }
        let limits = limits(spec);
        let mut loaded = loaded(spec, limits);
        if self.reads_file {
            loaded.buffers = script::PlanHooks::read(&spec.path)?.loaded();
        }
        let mut decoder = Scripted::new(limits);
        // Where a prompt goes on is the same for both.
        let mut draft = (spec.draft.as_ref())
            .filter(|_| limits.n_draft > 0)
            .map(|_| Scripted::new(limits));
        let draft = draft.as_mut().map(|draft| draft as &mut dyn Decoder);
        serve(&mut decoder, draft, loaded);
        Ok(())
    }

    fn with_encoder(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut dyn FnMut(&mut dyn Encoder, Loaded),
    ) -> Result<(), LoadError> {
        let mut encoder = ScriptedEncoder::new(spec);
        let mut loaded = encoder.loaded(spec);
        if self.reads_file {
            script::load(&spec.path, progress)?;
            loaded.buffers = script::PlanHooks::read(&spec.path)?.loaded();
        }
        serve(&mut encoder, loaded);
        Ok(())
    }

    fn with_outline(
        &mut self,
        spec: &LoadSpec,
        answer: &mut dyn FnMut(&mut dyn Planner),
    ) -> Result<(), LoadError> {
        let hooks = match self.reads_file {
            true => script::PlanHooks::read(&spec.path)?,
            false => script::PlanHooks::default(),
        };
        answer(&mut ScriptedPlanner {
            spec: spec.clone(),
            hooks,
        });
        Ok(())
    }
}

/// Takes what the file says, and 1 KiB for each cell of the pool.
struct ScriptedPlanner {
    spec: LoadSpec,
    hooks: script::PlanHooks,
}

impl Planner for ScriptedPlanner {
    fn outline(&self) -> Outline {
        Outline {
            description: "scripted, no model".to_owned(),
            size_bytes: self.hooks.weights_bytes,
            n_ctx_train: N_CTX_TRAIN,
            devices: Vec::new(),
            backends: vec!["CPU".to_owned()],
        }
    }

    fn plan(&mut self, ask: &PlanAsk) -> Result<Plan, LoadError> {
        let n_ctx = limits(&ask.applied_to(&self.spec)).n_ctx;
        let kv_cell_bytes = match ask.kv_type_k {
            KvType::F32 => 2048,
            KvType::F16 => 1024,
            KvType::Q8_0 => 544,
            KvType::Q4_0 => 288,
        };
        Ok(Plan {
            ask: PlanAsk { n_ctx, ..*ask },
            buffers: vec![BufferUse {
                buffer: "CPU".to_owned(),
                host: true,
                weights_bytes: self.hooks.weights_bytes,
                kv_bytes: u64::from(n_ctx) * kv_cell_bytes,
                compute_bytes: 0,
            }],
            mapped_bytes: match self.hooks.is_mapped {
                true => self.hooks.weights_bytes,
                false => 0,
            },
            process_bytes: 4 << 20,
        })
    }

    fn probe(&mut self, _bytes: u64) -> bool {
        true
    }
}

/// The limits that `spec` asks for.
pub(crate) fn limits(spec: &LoadSpec) -> Limits {
    let n_ctx = if spec.n_ctx == 0 { 8192 } else { spec.n_ctx };
    Limits {
        n_ctx,
        n_ctx_seq: match spec.n_ctx_seq {
            0 => n_ctx,
            n => n.min(n_ctx),
        },
        n_seq_max: spec.n_seq_max,
        n_draft: match spec.speculation {
            Speculation::Off | Speculation::Auto => 0,
            Speculation::Measured | Speculation::Always => spec.draft_tokens,
        },
        shares_prefixes: true,
        n_batch: spec.n_batch,
        n_ubatch: spec.n_ubatch.min(spec.n_batch),
        computes_aside: false,
        n_vocab: N_VOCAB as u32,
        n_swa: 0,
    }
}

/// What a worker says of the scripted decoder.
pub(crate) fn loaded(spec: &LoadSpec, limits: Limits) -> Loaded {
    Loaded {
        name: spec.name.clone(),
        arch: "scripted".to_owned(),
        description: "scripted, no model".to_owned(),
        n_params: 0,
        size_bytes: 0,
        n_vocab: limits.n_vocab,
        n_dims: 0,
        n_ctx_train: N_CTX_TRAIN,
        n_ctx: limits.n_ctx,
        n_ctx_seq: limits.n_ctx_seq,
        n_seq_max: limits.n_seq_max,
        chat_template: String::new(),
        tool_syntax: ToolSyntax::default(),
        n_layers: 1,
        n_layers_gpu: 0,
        n_graph_splits: 1,
        buffers: Vec::new(),
        devices: Vec::new(),
        input_bytes: 0,
        canary: None,
        load_ms: 0,
    }
}

/// A small spec, for tests to change.
pub fn load_spec() -> LoadSpec {
    LoadSpec {
        name: "test".to_owned(),
        path: "test.gguf".into(),
        task: Task::Generate,
        n_ctx: 2048,
        n_ctx_auto_max: 8192,
        n_ctx_seq: 0,
        n_seq_max: 4,
        n_batch: 256,
        n_ubatch: 256,
        step_ms: 400,
        step_tokens: 64,
        n_threads: 0,
        n_threads_batch: 0,
        n_gpu_layers: -1,
        backend: Backend::Auto,
        kv_type_k: KvType::F16,
        kv_type_v: KvType::F16,
        flash_attn: Switch::Auto,
        mmap: Switch::Auto,
        cuda_graphs: Switch::Auto,
        chat_template: None,
        canary_tokens: 0,
        prefix_cache_bytes: 1 << 20,
        saved_states: None,
        speculation: Speculation::Off,
        draft_tokens: 4,
        draft: None,
        sandbox: Some(SandboxSpec::default()),
    }
}

/// Sampling that always takes the best token, for tests to change.
pub fn greedy() -> Sampling {
    Sampling::greedy()
}
