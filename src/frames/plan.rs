//! What a model would take before it is loaded, and what shows where it runs afterwards.

use serde::{Deserialize, Serialize};

use super::{BufferUse, KvType, LoadSpec, Switch};

/// Settings whose bytes are wanted; zeros as in [`LoadSpec`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanAsk {
    /// Tokens in the KV pool.
    pub n_ctx: u32,
    /// Sequences that decode side by side.
    pub n_seq_max: u32,
    /// Most rows in one decode.
    pub n_batch: u32,
    /// Most rows in one physical batch.
    pub n_ubatch: u32,
    /// Type of the keys in the KV cache.
    pub kv_type_k: KvType,
    /// Type of the values in the KV cache.
    pub kv_type_v: KvType,
    /// Flash attention.
    pub flash_attn: Switch,
}

impl PlanAsk {
    /// What `load` itself asks for.
    pub fn of(load: &LoadSpec) -> Self {
        Self {
            n_ctx: load.n_ctx,
            n_seq_max: load.n_seq_max,
            n_batch: load.n_batch,
            n_ubatch: load.n_ubatch,
            kv_type_k: load.kv_type_k,
            kv_type_v: load.kv_type_v,
            flash_attn: load.flash_attn,
        }
    }

    /// `load` with these settings.
    pub fn applied_to(&self, load: &LoadSpec) -> LoadSpec {
        LoadSpec {
            n_ctx: self.n_ctx,
            n_seq_max: self.n_seq_max,
            n_batch: self.n_batch,
            n_ubatch: self.n_ubatch,
            kv_type_k: self.kv_type_k,
            kv_type_v: self.kv_type_v,
            flash_attn: self.flash_attn,
            ..load.clone()
        }
    }
}

/// A model and the machine, as a planning worker sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outline {
    /// llama.cpp's one-line description.
    pub description: String,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// Context the model was trained with.
    pub n_ctx_train: u32,
    /// GPUs that the model would be put on.
    pub devices: Vec<Device>,
    /// Compute backends that were found at run time, e.g. `CPU`, `CUDA`.
    pub backends: Vec<String>,
}

/// A GPU as llama.cpp sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// llama.cpp's name, also that of its buffers, e.g. `CUDA0`.
    pub name: String,
    /// Its maker's name for it, e.g. `Orin`.
    pub description: String,
    /// It shares main memory with the processor.
    pub is_integrated: bool,
    /// Bytes free, its context already made.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// What a context would take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// As asked, zeros resolved.
    pub ask: PlanAsk,
    /// Bytes by buffer type.
    pub buffers: Vec<BufferUse>,
    /// Of the weights in host memory: bytes that will be mapped from the file instead of copied.
    pub mapped_bytes: u64,
    /// Private memory of the process beside all buffers: vocabulary, graphs, libraries.
    pub process_bytes: u64,
}

/// What [`LoadSpec::canary_tokens`] showed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Tokens decoded, one at a time.
    pub n_tokens: u32,
    /// Median time of one.
    pub token_ms: f64,
    /// Bytes a second that the memory under most weights takes up, measured by filling a buffer;
    /// 0: not measured.
    pub bytes_per_second: f64,
}
