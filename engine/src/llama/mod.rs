//! llama.cpp: the only folder that names `llama_cpp_2` or `llama_cpp_sys_2`.
//!
//! llama-cpp-2 serves for the life of the backend and the list of devices. Model, context and batch
//! are owned here through llama-cpp-sys-2, because llama-cpp-2 0.1.160 hides its raw pointers and
//! lacks the memory breakdown, `n_outputs_max` and the abort callback. Never used from two threads.

mod canary;
pub mod context;
pub mod device;
mod drafting;
pub mod encoder;
mod judged;
pub mod log;
pub mod model;
pub mod plan;
mod raw;
#[doc(hidden)]
pub mod reference;

use std::sync::atomic::AtomicBool;
use std::time::Instant;

use llama_cpp_2::llama_backend::LlamaBackend;
use orinoco::frames::{Backend, BufferUse, LoadSpec, Loaded, ToolSyntax};

use self::context::{Context, ContextSpec};
use self::encoder::EncoderContext;
use self::model::Model;
use self::plan::Outlined;
use crate::model::{Decoder, Encoder, LoadError, Loader, Planner, Row, Serve};

/// The llama.cpp that is linked, for [`orinoco::frames::Hello`].
pub const VERSION: &str = "llama-cpp-sys-2 0.1.161";

/// Compute backends of this build, by ggml's names.
pub fn backends() -> Vec<String> {
    let mut names = vec!["CPU".to_owned()];
    if cfg!(feature = "cuda") || links_cuda() {
        names.push("CUDA".to_owned());
    }
    names
}

/// Whether the shared ggml that this program found has CUDA. Asking ggml itself would start the driver, and
/// with it threads, before the sandbox is closed.
#[cfg(feature = "dynamic-link")]
#[expect(unsafe_code, reason = "the linker's table has no other door")]
fn links_cuda() -> bool {
    let symbol = c"ggml_backend_cuda_reg";
    // SAFETY: looks a NUL-terminated name up in what is loaded already; nothing is called.
    let found = unsafe { nix::libc::dlsym(nix::libc::RTLD_DEFAULT, symbol.as_ptr()) };
    !found.is_null()
}

#[cfg(not(feature = "dynamic-link"))]
fn links_cuda() -> bool {
    false
}

/// Loads GGUF files. Holds the backend, so make it on the main thread and keep it there.
pub struct LlamaLoader {
    _backend: LlamaBackend,
    closed: &'static AtomicBool,
}

impl LlamaLoader {
    /// Starts the backend. `closed` is set when the supervisor is gone and stops decodes.
    ///
    /// `GGML_CUDA_DISABLE_GRAPHS` must be in the environment before this, if it is wanted.
    pub fn new(closed: &'static AtomicBool) -> Result<Self, LoadError> {
        log::install();
        let backend = LlamaBackend::init()
            .map_err(|error| LoadError(format!("start llama.cpp's backend: {error}")))?;
        Ok(Self {
            _backend: backend,
            closed,
        })
    }
}

impl Loader for LlamaLoader {
    fn with_model(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut Serve<'_>,
    ) -> Result<(), LoadError> {
        let start = Instant::now();
        log::take();
        let model = Model::load(spec, progress)?;
        let context_spec =
            ContextSpec::of(spec, model.n_ctx_train(), device::on_gpu(spec.backend))?;
        let mut context = Context::new(&model, &context_spec, self.closed)?;
        let facts = log::take();
        warm_up(&mut context)?;
        let limits = context.limits();
        let draft_spec = drafting::spec(spec, limits.n_ctx, limits.n_draft);
        let draft_model = draft_spec
            .as_ref()
            .and_then(|spec| drafting::model(spec, progress));
        let mut draft = (draft_spec.as_ref().zip(draft_model.as_ref()))
            .and_then(|(spec, model)| drafting::context(spec, model, &context, self.closed));
        let load_ms = start.elapsed().as_millis() as u64;
        let canary = canary::sing(&mut context, spec)?;
        let loaded = Loaded {
            n_ctx: limits.n_ctx,
            n_ctx_seq: limits.n_ctx_seq,
            n_seq_max: limits.n_seq_max,
            canary,
            load_ms,
            ..loaded(spec, &model, &facts, {
                let draft = draft.as_ref().map(Context::breakdown);
                drafting::together(context.breakdown(), draft.unwrap_or_default())
            })
        };
        let draft = draft.as_mut().map(|draft| draft as &mut dyn Decoder);
        serve(&mut context, draft, loaded);
        Ok(())
    }

    fn with_encoder(
        &mut self,
        spec: &LoadSpec,
        progress: &mut dyn FnMut(f32) -> bool,
        serve: &mut dyn FnMut(&mut dyn Encoder, Loaded),
    ) -> Result<(), LoadError> {
        let start = Instant::now();
        log::take();
        let model = Model::load(spec, progress)?;
        let context_spec = ContextSpec::of(spec, model.n_ctx_train(), false)?;
        let mut context = EncoderContext::new(&model, &context_spec, self.closed)?;
        let facts = log::take();
        // The first batch, so that lazily loaded kernels and pages are there.
        let first = (context.tokenize("a"))
            .map_err(|reason| LoadError(format!("load {}: {reason}", spec.path.display())))?;
        context.encode(&[&first]).map_err(|error| {
            LoadError(format!("first batch: {error}; {}", log::take().reason()))
        })?;
        let shape = context.shape();
        let loaded = Loaded {
            n_dims: shape.n_dims,
            n_ctx: shape.n_batch,
            n_ctx_seq: shape.n_tokens_max,
            n_seq_max: shape.n_seq_max,
            chat_template: "none".to_owned(),
            load_ms: start.elapsed().as_millis() as u64,
            ..loaded(spec, &model, &facts, context.breakdown())
        };
        serve(&mut context, loaded);
        Ok(())
    }

    fn with_outline(
        &mut self,
        spec: &LoadSpec,
        answer: &mut dyn FnMut(&mut dyn Planner),
    ) -> Result<(), LoadError> {
        log::take();
        answer(&mut Outlined::open(spec)?);
        Ok(())
    }
}

/// What is known of any loaded model; the sizes of its context are still to be filled in.
fn loaded(
    spec: &LoadSpec,
    model: &Model,
    facts: &log::LogFacts,
    buffers: Vec<BufferUse>,
) -> Loaded {
    let (n_layers_gpu, n_layers) = match (spec.backend, facts.offloaded) {
        (Backend::Auto, Some(pair)) => pair,
        (Backend::Cpu, _) | (_, None) => (0, model.n_layers()),
    };
    Loaded {
        name: spec.name.clone(),
        arch: model.arch(),
        description: model.description(),
        n_params: model.n_params(),
        size_bytes: model.size_bytes(),
        n_vocab: model.n_vocab(),
        n_dims: 0,
        n_ctx_train: model.n_ctx_train(),
        n_ctx: 0,
        n_ctx_seq: 0,
        n_seq_max: 0,
        chat_template: String::new(), // filled by the loop, which compiles the template
        tool_syntax: ToolSyntax::default(), // as well
        n_layers,
        n_layers_gpu,
        n_graph_splits: facts.n_graph_splits.unwrap_or(0),
        buffers,
        devices: device::used(spec.backend),
        input_bytes: device::input_bytes(model.file()),
        canary: None,
        load_ms: 0,
    }
}

/// One decode before the first job, so that lazily loaded kernels and pages are there.
fn warm_up(context: &mut Context<'_>) -> Result<(), LoadError> {
    let row = Row {
        seq: 0,
        token: 0,
        pos: 0,
        wants_logits: true,
    };
    context
        .decode(&[row])
        .map_err(|error| LoadError(format!("first decode: {error}; {}", log::take().reason())))?;
    context.synchronize();
    context.seq_rm(0, 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_cargo_links() {
        let version = VERSION.split_once(' ').expect("name and version").1;
        let line = format!("llama-cpp-sys-2 = {{ version = \"={version}\"");
        assert!(include_str!("../../Cargo.toml").contains(&line), "{line}");
    }
}
