//! What a model would take, from llama.cpp itself and without taking it.
//!
//! llama.cpp can lay a model and a context out without memory behind them (`no_alloc`), and its
//! breakdown then names the very bytes of the real thing; tests hold both against each other. Decoding
//! on such a context ends the process, so it never becomes a [`Context`](super::context::Context).

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 hides the raw context, whose size is read here"
)]

use std::sync::atomic::AtomicBool;

use llama_cpp_sys_2 as sys;
use orinoco::frames::{BufferUse, LoadSpec, Outline, Plan, PlanAsk};

use super::context::ContextSpec;
use super::model::{Model, maps_file};
use super::raw::RawContext;
use super::{device, drafting, log};
use crate::model::{LoadError, Planner};
use crate::process::private_bytes;

/// Never set: a context that decodes nothing has nothing to abort.
static NEVER: AtomicBool = AtomicBool::new(false);

/// A model without memory behind its tensors.
pub struct Outlined {
    model: Model,
    load: LoadSpec,
    /// What drafts for it, if anything does.
    draft: Option<Model>,
}

impl Outlined {
    /// Reads the header and the vocabulary of `load`'s file.
    pub fn open(load: &LoadSpec) -> Result<Self, LoadError> {
        Ok(Self {
            model: Model::outline(load)?,
            load: load.clone(),
            // One that cannot be read is left aside by the load, too.
            draft: drafting::spec(load, 0, 1).and_then(|draft| Model::outline(&draft).ok()),
        })
    }
}

/// Pool, flash attention and buffers of a context on `model`.
fn lay_out(
    model: &Model,
    load: &LoadSpec,
) -> Result<(ContextSpec, u32, Vec<BufferUse>), LoadError> {
    let on_gpu = device::on_gpu(load.backend);
    let spec = ContextSpec::of(load, model.n_ctx_train(), on_gpu)?;
    log::take();
    let raw = RawContext::new(model, &spec, &NEVER).ok_or_else(|| {
        LoadError(format!(
            "no context of {} tokens for {} sequences: {}",
            spec.n_ctx,
            spec.n_seq_max,
            log::take().reason()
        ))
    })?;
    // SAFETY: the context is live; this only reads.
    let n_ctx = unsafe { sys::llama_n_ctx(raw.as_ptr()) };
    let buffers = raw.breakdown();
    Ok((spec, n_ctx, buffers))
}

impl Planner for Outlined {
    fn outline(&self) -> Outline {
        Outline {
            description: self.model.description(),
            size_bytes: self.model.size_bytes(),
            n_ctx_train: self.model.n_ctx_train(),
            devices: device::used(self.load.backend),
            backends: device::backends(),
        }
    }

    fn plan(&mut self, ask: &PlanAsk) -> Result<Plan, LoadError> {
        let load = ask.applied_to(&self.load);
        let (spec, n_ctx, mut buffers) = lay_out(&self.model, &load)?;
        if let Some(draft) = &self.draft
            && let Some(load) = drafting::spec(&load, n_ctx, spec.n_draft)
        {
            let (_, _, more) = lay_out(draft, &load)?;
            buffers = drafting::together(buffers, more);
        }
        let process_bytes = private_bytes();
        let mapped_bytes = if maps_file(&self.load) {
            // What stays in its plain form; repacked weights are a copy.
            let plain = buffers
                .iter()
                .filter(|buffer| matches!(buffer.buffer.as_str(), "CPU" | "CUDA_Host"));
            plain.map(|buffer| buffer.weights_bytes).sum()
        } else {
            0
        };
        Ok(Plan {
            ask: PlanAsk {
                n_ctx,
                flash_attn: spec.flash_attn,
                ..*ask
            },
            buffers,
            mapped_bytes,
            process_bytes,
        })
    }

    fn probe(&mut self, bytes: u64) -> bool {
        device::gives(self.load.backend, bytes)
    }
}
