//! An owned `llama_context` that makes one vector of each text: the real [`Encoder`].
//!
//! Each batch is computed from nothing, in one piece, since the tokens of a text look at those behind them
//! too. So a text is at most one physical batch long, and what memory the model has is cleared before each.

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 hides the raw context, whose vectors are read here"
)]

use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;
use orinoco::frames::{BufferUse, Token};

use super::context::ContextSpec;
use super::log;
use super::model::Model;
use super::raw::{Batch, RawContext};
use crate::model::{DecodeError, Encoder, LoadError, Row, Shape};

/// A context on an embedding model, with the one batch that it reads.
pub struct EncoderContext<'m> {
    raw: RawContext<'m>,
    batch: Batch,
    rows: Vec<Row>,
    model: &'m Model,
    shape: Shape,
}

impl<'m> EncoderContext<'m> {
    /// `closed` stops a running batch.
    pub fn new(
        model: &'m Model,
        spec: &ContextSpec,
        closed: &'static AtomicBool,
    ) -> Result<Self, LoadError> {
        let raw = RawContext::new(model, spec, closed).ok_or_else(|| {
            LoadError(format!(
                "no context for texts of {} tokens: {}; a smaller n_ubatch needs less memory",
                spec.n_ubatch,
                log::take().reason()
            ))
        })?;
        // SAFETY: the context is live; these only read.
        let (pooling, n_dims, n_ubatch) = unsafe {
            (
                sys::llama_pooling_type(raw.as_ptr()),
                sys::llama_model_n_embd_out(model.raw()),
                sys::llama_n_ubatch(raw.as_ptr()),
            )
        };
        let context = Self {
            raw,
            batch: Batch::new(n_ubatch),
            rows: Vec::new(),
            model,
            shape: Shape {
                n_dims: n_dims.max(0) as u32,
                n_tokens_max: n_ubatch.min(model.n_ctx_train()),
                n_batch: n_ubatch,
                n_seq_max: spec.n_seq_max,
            },
        };
        let makes_one = matches!(
            pooling,
            sys::LLAMA_POOLING_TYPE_MEAN
                | sys::LLAMA_POOLING_TYPE_CLS
                | sys::LLAMA_POOLING_TYPE_LAST
        );
        match makes_one && context.shape.n_dims > 0 {
            true => Ok(context),
            false => Err(LoadError(format!(
                "the model does not make one vector of a text (pooling type {pooling}): mean, cls or last is needed"
            ))),
        }
    }

    /// Bytes by buffer type, llama.cpp's own account.
    pub fn breakdown(&self) -> Vec<BufferUse> {
        self.raw.breakdown()
    }
}

impl Encoder for EncoderContext<'_> {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn tokenize(&self, text: &str) -> Result<Vec<Token>, String> {
        // Nobody's text is read as control tokens: a mark in it means no more than other words.
        self.model.tokenize(text, true, false)
    }

    fn encode(&mut self, texts: &[&[Token]]) -> Result<Vec<f32>, DecodeError> {
        self.rows.clear();
        for (seq, tokens) in texts.iter().enumerate() {
            self.rows
                .extend(tokens.iter().enumerate().map(|(pos, token)| Row {
                    seq: seq as u32,
                    token: *token,
                    pos: pos as u32,
                    wants_logits: true,
                }));
        }
        self.batch.fill(&self.rows);
        // SAFETY: the context is live. A model without memory has none to clear.
        unsafe {
            let memory = sys::llama_get_memory(self.raw.as_ptr());
            if !memory.is_null() {
                sys::llama_memory_clear(memory, false);
            }
        }
        self.raw.decode(&self.batch)?;
        let n_dims = self.shape.n_dims as usize;
        let mut vectors = Vec::with_capacity(texts.len() * n_dims);
        for seq in 0..texts.len() {
            // SAFETY: the context is live; NULL for a sequence without a vector is checked below.
            let vector = unsafe { sys::llama_get_embeddings_seq(self.raw.as_ptr(), seq as i32) };
            if vector.is_null() {
                return Err(DecodeError::Failed(0));
            }
            // SAFETY: llama.cpp keeps n_embd_out floats for each sequence until the next batch, which
            // needs `&mut self`.
            vectors.extend_from_slice(unsafe { std::slice::from_raw_parts(vector, n_dims) });
        }
        match vectors.iter().all(|x| x.is_finite()) {
            true => Ok(vectors),
            false => Err(DecodeError::Failed(0)),
        }
    }
}
