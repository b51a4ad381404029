//! An owned `llama_context`, and the batch that is decoded on it.
//!
//! Owns: that a context is freed once, before its model, and that a batch is never longer than its arrays. What a
//! context is asked and what its answers mean is for who has it: [`Context`](super::context::Context) decodes,
//! [`EncoderContext`](super::encoder::EncoderContext) makes vectors, and a [plan](super::plan) only looks.

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 hides the raw model that a context is made from, and has no breakdown"
)]

use std::ffi::{CStr, c_char, c_int};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;
use orinoco::frames::BufferUse;

use super::context::ContextSpec;
use super::model::Model;
use crate::model::{DecodeError, Row};

/// A live context on a live model.
pub(super) struct RawContext<'m> {
    raw: NonNull<sys::llama_context>,
    _model: PhantomData<&'m Model>,
    /// Not `Send`: CUDA state and the backend belong to the thread that made them.
    _here: PhantomData<*mut ()>,
}

impl<'m> RawContext<'m> {
    /// `closed` stops a running batch. `None`: llama.cpp made none, and its log says why.
    pub(super) fn new(
        model: &'m Model,
        spec: &ContextSpec,
        closed: &'static AtomicBool,
    ) -> Option<Self> {
        // SAFETY: the model is live and outlives the context (`'m`); `closed` is static.
        let raw = unsafe { sys::llama_init_from_model(model.raw(), spec.params(closed)) };
        Some(Self {
            raw: NonNull::new(raw)?,
            _model: PhantomData,
            _here: PhantomData,
        })
    }

    /// For calls into llama.cpp; live as long as this is.
    pub(super) fn as_ptr(&self) -> *mut sys::llama_context {
        self.raw.as_ptr()
    }

    /// Computes what the batch was filled with last.
    pub(super) fn decode(&mut self, batch: &Batch) -> Result<(), DecodeError> {
        // SAFETY: context and batch are live; every field up to n_tokens was written by `fill`.
        match unsafe { sys::llama_decode(self.as_ptr(), batch.raw) } {
            0 => Ok(()),
            1 => Err(DecodeError::NoCells),
            2 => Err(DecodeError::Aborted),
            code => Err(DecodeError::Failed(code)),
        }
    }

    /// Bytes by buffer type, llama.cpp's own account, with memory behind it or without.
    pub(super) fn breakdown(&self) -> Vec<BufferUse> {
        const CAP: usize = 32;
        let mut found = [const { RawBufferUse::EMPTY }; CAP];
        // SAFETY: the context is live; at most CAP entries are written.
        let n =
            unsafe { orinoco_memory_breakdown(self.as_ptr(), found.as_mut_ptr(), CAP as c_int) };
        let n = usize::try_from(n).unwrap_or(0).min(CAP);
        Vec::from_iter(found[..n].iter().map(|entry| {
            BufferUse {
                // SAFETY: ggml's buffer type names are C strings that live as long as the process.
                buffer: unsafe { CStr::from_ptr(entry.name) }
                    .to_string_lossy()
                    .into_owned(),
                host: entry.host != 0,
                weights_bytes: entry.model as u64,
                kv_bytes: entry.context as u64,
                compute_bytes: entry.compute as u64,
            }
        }))
    }
}

impl Drop for RawContext<'_> {
    fn drop(&mut self) {
        // SAFETY: made by llama_init_from_model, freed once, while the model is alive.
        unsafe { sys::llama_free(self.as_ptr()) }
    }
}

/// An owned `llama_batch` of tokens with one sequence a row.
pub(super) struct Batch {
    raw: sys::llama_batch,
    n_rows_max: usize,
}

impl Batch {
    pub(super) fn new(n_rows_max: u32) -> Self {
        // SAFETY: allocates; the fields are written before they are read.
        let raw = unsafe { sys::llama_batch_init(n_rows_max as i32, 0, 1) };
        Self {
            raw,
            n_rows_max: n_rows_max as usize,
        }
    }

    pub(super) fn fill(&mut self, rows: &[Row]) {
        assert!(
            rows.len() <= self.n_rows_max,
            "{} rows in a batch of {}: llama.cpp would abort",
            rows.len(),
            self.n_rows_max
        );
        self.raw.n_tokens = rows.len() as i32;
        for (i, row) in rows.iter().enumerate() {
            // SAFETY: i < n_rows_max, the length of each array; seq_id[i] has room for one.
            unsafe {
                *self.raw.token.add(i) = row.token;
                *self.raw.pos.add(i) = row.pos as i32;
                *self.raw.n_seq_id.add(i) = 1;
                **self.raw.seq_id.add(i) = row.seq as i32;
                *self.raw.logits.add(i) = i8::from(row.wants_logits);
            }
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: made by llama_batch_init, freed once.
        unsafe { sys::llama_batch_free(self.raw) }
    }
}

#[repr(C)]
struct RawBufferUse {
    name: *const c_char,
    model: usize,
    context: usize,
    compute: usize,
    host: c_int,
}

impl RawBufferUse {
    const EMPTY: Self = Self {
        name: std::ptr::null(),
        model: 0,
        context: 0,
        compute: 0,
        host: 0,
    };
}

unsafe extern "C" {
    /// `shim.cpp`.
    fn orinoco_memory_breakdown(
        context: *const sys::llama_context,
        out: *mut RawBufferUse,
        cap: c_int,
    ) -> c_int;
}
