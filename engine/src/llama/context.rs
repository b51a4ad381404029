//! An owned `llama_context` with its batch: the real [`Decoder`].
//!
//! The context is always made with `kv_unified = true`: otherwise each sequence owns a fixed part of
//! the pool and a partial `seq_cp` between two of them aborts the process. There is deliberately no
//! way to ask for the other.

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 0.1.160 has no n_outputs_max or abort callback"
)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;
use orinoco::frames::{BufferUse, KvType, LoadSpec, Speculation, Switch, Task, Token};

use super::log;
use super::model::Model;
use super::raw::{Batch, RawContext};
use crate::model::{DecodeError, Decoder, Limits, LoadError, Row, SeqId, TemplateSource};

/// `LLAMA_MAX_SEQ`.
const N_SEQ_IDS_MAX: u32 = 256;

/// How a context is made; [`ContextSpec::of`] fills it from what the supervisor sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextSpec {
    /// Cells in the pool.
    pub n_ctx: u32,
    /// Tokens one request may use.
    pub n_ctx_seq: u32,
    /// Sequences that decode side by side.
    pub n_seq_max: u32,
    /// Guessed tokens that may be read along for each of them.
    pub n_draft: u32,
    /// Most rows in one batch.
    pub n_batch: u32,
    /// Most rows in one physical batch.
    pub n_ubatch: u32,
    /// Threads for one row a sequence.
    pub n_threads: u32,
    /// Threads for prefill.
    pub n_threads_batch: u32,
    /// Type of the keys.
    pub kv_type_k: KvType,
    /// Type of the values.
    pub kv_type_v: KvType,
    /// Flash attention.
    pub flash_attn: Switch,
    /// Whether sliding-window layers keep all positions. `true` costs memory and lets every prefix be
    /// reused; with `false` only what is still inside the window of the last position can be.
    pub swa_full: bool,
    /// For [`Task::Embed`]: vectors instead of logits.
    pub embeds: bool,
    /// Whether the model is on a GPU.
    pub on_gpu: bool,
}

impl ContextSpec {
    /// Zeros filled in, bounds checked; `on_gpu`: where the model is.
    pub fn of(spec: &LoadSpec, n_ctx_train: u32, on_gpu: bool) -> Result<Self, LoadError> {
        if spec.n_seq_max == 0 || spec.n_seq_max > N_SEQ_IDS_MAX / 2 {
            return Err(LoadError(format!(
                "n_seq_max is {}, 1 to {} are possible",
                spec.n_seq_max,
                N_SEQ_IDS_MAX / 2
            )));
        }
        if spec.n_ubatch == 0 || spec.n_batch < spec.n_ubatch || spec.n_batch < spec.n_seq_max {
            return Err(LoadError(format!(
                "n_batch is {} and n_ubatch {}; n_ubatch must be at least 1, and n_batch at least n_ubatch and n_seq_max ({})",
                spec.n_batch, spec.n_ubatch, spec.n_seq_max
            )));
        }
        let quantized_v = !matches!(spec.kv_type_v, KvType::F16 | KvType::F32);
        if quantized_v && spec.flash_attn == Switch::Off {
            return Err(LoadError(format!(
                "kv_type_v is {:?} and flash_attn is off; a quantized V cache needs flash attention: set flash_attn to on, or kv_type_v to f16",
                spec.kv_type_v
            )));
        }
        // AUTO may end without flash attention, and then there would be no context.
        let flash_attn = if quantized_v {
            Switch::On
        } else {
            spec.flash_attn
        };
        let n_ctx = match spec.n_ctx {
            0 => {
                let most = match spec.n_ctx_auto_max {
                    0 => u32::MAX,
                    most => most,
                };
                n_ctx_train.clamp(1, most)
            }
            n => n,
        };
        let n_ctx_seq = match spec.n_ctx_seq {
            0 => n_ctx.min(n_ctx_train.max(1)),
            n => n.min(n_ctx),
        };
        let n_draft = match spec.speculation {
            Speculation::Off => 0,
            Speculation::Auto if !on_gpu => 0,
            _ => spec.draft_tokens.min(spec.n_batch / spec.n_seq_max - 1),
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let n_threads = if spec.n_threads == 0 {
            cores
        } else {
            spec.n_threads
        };
        Ok(Self {
            n_ctx,
            n_ctx_seq,
            n_seq_max: spec.n_seq_max,
            n_draft,
            n_batch: spec.n_batch,
            n_ubatch: spec.n_ubatch,
            n_threads,
            n_threads_batch: if spec.n_threads_batch == 0 {
                n_threads
            } else {
                spec.n_threads_batch
            },
            kv_type_k: spec.kv_type_k,
            kv_type_v: spec.kv_type_v,
            flash_attn,
            swa_full: true,
            embeds: spec.task == Task::Embed,
            on_gpu,
        })
    }

    /// As llama.cpp takes it; a decode stops when `closed` is set.
    pub(super) fn params(&self, closed: &'static AtomicBool) -> sys::llama_context_params {
        // SAFETY: returns a plain struct.
        let mut params = unsafe { sys::llama_context_default_params() };
        params.n_ctx = self.n_ctx;
        params.n_batch = self.n_batch;
        params.n_ubatch = self.n_ubatch;
        params.n_seq_max = self.n_seq_max;
        // What a step can use: with the default the compute buffers hold n_batch rows of logits, which for a
        // vocabulary of 262k is half a GiB.
        params.n_outputs_max = self.n_seq_max * (1 + self.n_draft);
        if self.embeds {
            // How a text becomes one vector stands in the file, as does whether its tokens look ahead. All
            // tokens are outputs on the way to it.
            params.embeddings = true;
            params.n_outputs_max = self.n_batch;
        }
        params.n_threads = self.n_threads as i32;
        params.n_threads_batch = self.n_threads_batch as i32;
        params.flash_attn_type = match self.flash_attn {
            Switch::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
            Switch::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            Switch::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
        };
        params.type_k = ggml_type(self.kv_type_k);
        params.type_v = ggml_type(self.kv_type_v);
        params.kv_unified = true;
        params.swa_full = self.swa_full;
        params.abort_callback = Some(is_closed);
        params.abort_callback_data = std::ptr::from_ref(closed).cast_mut().cast::<c_void>();
        params
    }
}

/// A context on a model, with the one batch that it reads.
pub struct Context<'m> {
    raw: RawContext<'m>,
    memory: sys::llama_memory_t,
    batch: Batch,
    model: &'m Model,
    limits: Limits,
}

impl<'m> Context<'m> {
    /// `closed` stops a running decode (on a CPU at once, on a GPU after the current batch).
    pub fn new(
        model: &'m Model,
        spec: &ContextSpec,
        closed: &'static AtomicBool,
    ) -> Result<Self, LoadError> {
        let raw = RawContext::new(model, spec, closed).ok_or_else(|| {
            LoadError(format!(
                "no context of {} tokens for {} sequences: {}; a smaller n_ctx or n_ubatch needs less memory",
                spec.n_ctx,
                spec.n_seq_max,
                log::take().reason()
            ))
        })?;
        // SAFETY: the context is live; these only read. What it really has may differ from what was
        // asked for.
        let (memory, n_ctx, n_batch, n_ubatch) = unsafe {
            let raw = raw.as_ptr();
            (
                sys::llama_get_memory(raw),
                sys::llama_n_ctx(raw),
                sys::llama_n_batch(raw),
                sys::llama_n_ubatch(raw),
            )
        };
        let limits = Limits {
            n_ctx,
            n_ctx_seq: spec.n_ctx_seq.min(n_ctx),
            n_seq_max: spec.n_seq_max,
            // A state that is no cells cannot forget a wrong guess.
            n_draft: if model.is_recurrent() {
                0
            } else {
                spec.n_draft
            },
            shares_prefixes: !model.is_recurrent(),
            n_batch,
            n_ubatch: n_ubatch.min(n_batch),
            computes_aside: spec.on_gpu,
            n_vocab: model.n_vocab(),
            n_swa: model.n_swa(),
        };
        Ok(Self {
            raw,
            memory,
            batch: Batch::new(n_batch),
            model,
            limits,
        })
    }

    /// Bytes by buffer type, llama.cpp's own account.
    pub fn breakdown(&self) -> Vec<BufferUse> {
        self.raw.breakdown()
    }
}

impl Decoder for Context<'_> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, String> {
        self.model.tokenize(text, add_special, parse_special)
    }

    fn piece(&self, token: Token, bytes: &mut Vec<u8>) {
        self.model.piece(token, bytes);
    }

    fn control(&self, token: Token) -> Option<String> {
        self.model.control(token)
    }

    fn is_eog(&self, token: Token) -> bool {
        self.model.is_eog(token)
    }

    fn template(&self) -> TemplateSource {
        self.model.template()
    }

    fn decode(&mut self, rows: &[Row]) -> Result<(), DecodeError> {
        self.batch.fill(rows);
        self.raw.decode(&self.batch)
    }

    fn logits(&mut self, row: usize) -> &mut [f32] {
        let row = i32::try_from(row).expect("a batch has fewer rows than i32::MAX");
        // SAFETY: the context is live; NULL for a row without logits is checked below.
        let raw = unsafe { sys::llama_get_logits_ith(self.raw.as_ptr(), row) };
        assert!(!raw.is_null(), "row {row} was decoded without logits");
        // SAFETY: llama.cpp returns n_vocab floats in its own buffer, valid until the next decode, which
        // needs `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(raw, self.limits.n_vocab as usize) }
    }

    fn seq_rm(&mut self, seq: SeqId, from: u32) -> bool {
        // SAFETY: the memory belongs to the live context; ids are below LLAMA_MAX_SEQ.
        unsafe { sys::llama_memory_seq_rm(self.memory, seq as i32, from as i32, -1) }
    }

    fn seq_cp(&mut self, from: SeqId, to: SeqId, len: u32) {
        // SAFETY: as above; with a unified pool a partial copy only marks cells.
        unsafe { sys::llama_memory_seq_cp(self.memory, from as i32, to as i32, 0, len as i32) }
    }

    fn seq_pos_min(&self, seq: SeqId) -> Option<u32> {
        // SAFETY: as above; -1 means empty.
        u32::try_from(unsafe { sys::llama_memory_seq_pos_min(self.memory, seq as i32) }).ok()
    }

    fn seq_pos_max(&self, seq: SeqId) -> Option<u32> {
        // SAFETY: as above; -1 means empty.
        u32::try_from(unsafe { sys::llama_memory_seq_pos_max(self.memory, seq as i32) }).ok()
    }

    fn state_bytes(&mut self, seq: SeqId) -> usize {
        // SAFETY: the context is live; ids are below LLAMA_MAX_SEQ.
        unsafe { sys::llama_state_seq_get_size(self.raw.as_ptr(), seq as i32) }
    }

    fn state(&mut self, seq: SeqId) -> Option<Vec<u8>> {
        let size = self.state_bytes(seq);
        let mut state = Vec::with_capacity(size);
        // SAFETY: at most `size` bytes are written, for which there is room, and all up to the number that
        // is returned.
        unsafe {
            let raw = self.raw.as_ptr();
            let n = sys::llama_state_seq_get_data(raw, state.as_mut_ptr(), size, seq as i32);
            state.set_len(n.min(size));
        }
        (!state.is_empty() && state.len() == size).then_some(state)
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> bool {
        // It would take nothing and call that done.
        if state.is_empty() {
            return false;
        }
        // SAFETY: the bytes are passed with their length, which llama.cpp checks at each read, whoever wrote them;
        // it answers 0 where they will not do.
        let n = unsafe {
            let raw = self.raw.as_ptr();
            sys::llama_state_seq_set_data(raw, state.as_ptr(), state.len(), seq as i32)
        };
        n == state.len()
    }

    fn synchronize(&mut self) {
        // SAFETY: the context is live.
        unsafe { sys::llama_synchronize(self.raw.as_ptr()) }
    }
}

fn ggml_type(kv_type: KvType) -> sys::ggml_type {
    match kv_type {
        KvType::F32 => sys::GGML_TYPE_F32,
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}

unsafe extern "C" fn is_closed(flag: *mut c_void) -> bool {
    // SAFETY: `flag` is the static given to `ContextSpec::params`.
    unsafe { &*flag.cast::<AtomicBool>() }.load(Ordering::Relaxed)
}
