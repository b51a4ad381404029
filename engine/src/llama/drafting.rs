//! The draft model of a model: how it is loaded, and what it takes.
//!
//! It makes answers sooner and is never needed for one. So whatever is wrong with it is said in the log, and the
//! model serves without.

use std::sync::atomic::AtomicBool;

use orinoco::frames::{BufferUse, KvType, LoadSpec, Speculation};

use super::context::{Context, ContextSpec};
use super::model::Model;
use super::{device, log, warm_up};
use crate::draft::same_vocabulary;
use crate::model::LoadError;

/// How the draft model of `spec` is loaded beside a pool of `n_ctx` tokens with `n_draft` guessed ones for each
/// sequence; `None` where nothing is guessed.
pub(super) fn spec(spec: &LoadSpec, n_ctx: u32, n_draft: u32) -> Option<LoadSpec> {
    let draft = spec.draft.as_ref().filter(|_| n_draft > 0)?;
    Some(LoadSpec {
        name: draft.name.clone(),
        path: draft.path.clone(),
        // The same sequences, each as long.
        n_ctx,
        n_ctx_seq: 0,
        kv_type_k: KvType::F16,
        kv_type_v: KvType::F16,
        speculation: Speculation::Off,
        draft: None,
        chat_template: None,
        canary_tokens: 0,
        ..spec.clone()
    })
}

/// Its weights; `None` where they do not load.
pub(super) fn model(spec: &LoadSpec, progress: &mut dyn FnMut(f32) -> bool) -> Option<Model> {
    // The large one is there: what is still to come is told as its last step.
    let loaded = Model::load(spec, &mut |_| progress(1.0));
    loaded.map_err(|error| left_aside(spec, &error)).ok()
}

/// Its context; `None` where it has another vocabulary than `large`, or no memory.
pub(super) fn context<'m>(
    spec: &LoadSpec,
    model: &'m Model,
    large: &Context<'_>,
    closed: &'static AtomicBool,
) -> Option<Context<'m>> {
    let made = || {
        let on_gpu = device::on_gpu(spec.backend);
        let context_spec = ContextSpec::of(spec, model.n_ctx_train(), on_gpu)?;
        let mut context = Context::new(model, &context_spec, closed)?;
        same_vocabulary(large, &context).map_err(LoadError)?;
        log::take();
        warm_up(&mut context)?;
        Ok(context)
    };
    let made: Result<_, LoadError> = made();
    made.map_err(|error| left_aside(spec, &error)).ok()
}

fn left_aside(spec: &LoadSpec, error: &LoadError) {
    tracing::warn!(draft = spec.name, %error, "the draft model is left aside");
}

/// What both take, by type of buffer.
pub(super) fn together(mut buffers: Vec<BufferUse>, more: Vec<BufferUse>) -> Vec<BufferUse> {
    for buffer in more {
        match buffers
            .iter_mut()
            .find(|known| known.buffer == buffer.buffer)
        {
            Some(known) => {
                known.weights_bytes += buffer.weights_bytes;
                known.kv_bytes += buffer.kv_bytes;
                known.compute_bytes += buffer.compute_bytes;
            }
            None => buffers.push(buffer),
        }
    }
    buffers
}
