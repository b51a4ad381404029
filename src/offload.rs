//! The proof that a model runs on the GPU.
//!
//! A model that a board with a GPU serves from its CPU looks healthy and is ten times too slow, so where
//! there is a GPU everything short of proof is "no model" with the reason and the fix, until the operator
//! sets `engine.backend = "cpu"`. The proof has five parts, and each fails alone:
//!
//! 1. llama.cpp has a device at all ([`before_load`]); a build without CUDA has none.
//! 2. All layers are on devices, by llama.cpp's log line.
//! 3. All weights but the input embedding, and the whole KV cache, are in the devices' buffers, by its
//!    breakdown.
//! 4. The graph is cut once, behind the input embedding, and once more for each further device.
//! 5. A token takes no longer than the memory's speed and the launch of its kernels explain, times a
//!    margin.
//!
//! Pure: the worker found the facts, `worker` asks for the verdict.

use std::fmt;

use crate::frames::{Backend, Device, Loaded, Plan};

/// What the operator and the board say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expected {
    /// Why the machine is taken to have a GPU, e.g. `/dev/nvgpu`.
    pub gpu_sign: Option<String>,
    /// As configured.
    pub is_cpu_chosen: bool,
    /// As configured; -1: all.
    pub n_gpu_layers: i32,
    /// Share of the roofline that a token must reach; 0: not judged.
    pub canary_share_min: f32,
}

impl Expected {
    /// For one load.
    pub fn new(
        gpu_sign: Option<String>,
        backend: Backend,
        n_gpu_layers: i32,
        canary_share_min: f32,
    ) -> Self {
        Self {
            gpu_sign,
            is_cpu_chosen: backend == Backend::Cpu,
            n_gpu_layers,
            canary_share_min,
        }
    }

    /// Whether anything has to be proven, with these devices in llama.cpp's sight.
    pub fn is_strict(&self, devices: &[Device]) -> bool {
        !self.is_cpu_chosen && (self.gpu_sign.is_some() || !devices.is_empty())
    }
}

/// Where the model runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Proof {
    /// On the GPU, all five parts proven; with the token's speed, where it could be judged.
    OnGpu(Option<Speed>),
    /// On the CPU: there is no GPU.
    NoGpu,
    /// On the CPU, as the operator asked.
    CpuChosen,
}

/// A canary against its roofline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed {
    /// Tokens a second, one stream.
    pub tok_s: f64,
    /// Tokens a second that memory and kernel launches would allow.
    pub roofline_tok_s: f64,
}

impl Speed {
    /// Reached of what is possible; may exceed 1 where a model reads only some of its weights (MoE).
    pub fn share(&self) -> f64 {
        self.tok_s / self.roofline_tok_s
    }
}

/// What is not proven. Each sentence has what was found and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each message says what the variant and its fields are"
)]
pub enum Unproven {
    #[error(
        "this machine has a GPU ({sign}), but orinoco-engine was built without CUDA: install the CUDA build, or set engine.backend = \"cpu\""
    )]
    BuiltWithoutCuda { sign: String },
    #[error(
        "this machine has a GPU ({sign}), but CUDA finds no device: check the driver, libcuda.so.1 and the groups video and render, or set engine.backend = \"cpu\""
    )]
    NoDevice { sign: String },
    #[error(
        "only {on_gpu} of {all} layers are on {devices}, all are expected: set model.n_gpu_layers = -1 (it is {n_gpu_layers}), choose a smaller model, or set engine.backend = \"cpu\""
    )]
    Layers {
        on_gpu: u32,
        all: u32,
        devices: String,
        n_gpu_layers: i32,
    },
    #[error(
        "{} of weights are in host memory ({buffers}), at most the input embedding of {} is expected there: the GPU build lacks kernels for this model's tensors; use another quantization, or set engine.backend = \"cpu\"",
        crate::ledger::memory(*.found_bytes), crate::ledger::memory(*.input_bytes)
    )]
    Weights {
        found_bytes: u64,
        input_bytes: u64,
        buffers: String,
    },
    #[error(
        "{} of KV cache are in host memory ({buffers}), all of it is expected on {devices}: choose other types for model.kv_type_k and kv_type_v, or set engine.backend = \"cpu\"",
        crate::ledger::memory(*.found_bytes)
    )]
    KvCache {
        found_bytes: u64,
        buffers: String,
        devices: String,
    },
    #[error(
        "the graph of a token is cut into {found} parts, at most {expected} are expected: parts of each token run on the CPU, as the GPU build lacks operations of this model or flash attention for these KV types; set model.flash_attn = \"off\" with f16 types, use another model, or set engine.backend = \"cpu\""
    )]
    Splits { found: u32, expected: u32 },
    #[error(
        "llama.cpp did not say into how many parts the graph of a token is cut: install daemon and engine from one package"
    )]
    SplitsUnknown,
    #[error(
        "one token takes {token_ms:.1} ms ({:.1} tokens/s), and {:.1} ms would be {} % of what memory of {gb_s:.1} GB/s allows: the clocks are low or held down (power mode, temperature), another program uses the GPU, or its code is being compiled (CUDA_CACHE_DISABLE); correct that, lower engine.canary_percent_min, or set engine.backend = \"cpu\"",
        1e3 / .token_ms, .allowed_ms, (.share_min * 100.0).round()
    )]
    Slow {
        token_ms: f64,
        allowed_ms: f64,
        share_min: f32,
        gb_s: f64,
    },
}

/// Whether a load makes sense, from what a planning worker saw: `backends` were compiled in.
///
/// # Errors
/// There is a GPU, and llama.cpp has none.
pub fn before_load(
    expected: &Expected,
    backends: &[String],
    devices: &[Device],
) -> Result<(), Unproven> {
    let Some(sign) = &expected.gpu_sign else {
        return Ok(());
    };
    if expected.is_cpu_chosen || !devices.is_empty() {
        return Ok(());
    }
    let sign = sign.clone();
    // A device of its own, or the name that the build gave: both are "CUDA".
    match backends.iter().any(|name| name.starts_with("CUDA")) {
        true => Err(Unproven::NoDevice { sign }),
        false => Err(Unproven::BuiltWithoutCuda { sign }),
    }
}

/// Weights beside the input embedding that may lie on the host: norms and tables of a few kilobytes, and
/// the ends of mapped pages.
const HOST_WEIGHTS_SLACK_BYTES: u64 = 1 << 20;
/// Launching the kernels of one layer takes about this long where it takes longest, on a slow processor
/// without CUDA graphs; a small model on a fast GPU does little else. Measured on an H200, 3B: 75 µs.
const LAUNCH_MS_PER_LAYER: f64 = 0.1;
/// Sampling's copy of the logits, and the start of a graph.
const LAUNCH_MS: f64 = 1.0;

/// The verdict on a loaded model. `plan` knows mapped bytes without what lies between them.
///
/// # Errors
/// The first part that is not proven.
pub fn after_load(
    expected: &Expected,
    backends: &[String],
    loaded: &Loaded,
    plan: Option<&Plan>,
) -> Result<Proof, Unproven> {
    if expected.is_cpu_chosen {
        return Ok(Proof::CpuChosen);
    }
    before_load(expected, backends, &loaded.devices)?;
    if loaded.devices.is_empty() {
        return Ok(Proof::NoGpu);
    }
    let devices = Names(loaded.devices.iter().map(|device| device.name.as_str()));
    if loaded.n_layers_gpu < loaded.n_layers {
        return Err(Unproven::Layers {
            on_gpu: loaded.n_layers_gpu,
            all: loaded.n_layers,
            devices: devices.to_string(),
            n_gpu_layers: expected.n_gpu_layers,
        });
    }
    let is_device = |name: &str| loaded.devices.iter().any(|device| device.name == name);
    let on_host = || {
        loaded
            .buffers
            .iter()
            .filter(|use_| !is_device(&use_.buffer))
    };

    let mapped: u64 = (on_host().filter(|buffer| buffer.buffer.ends_with("_Mapped")))
        .map(|buffer| buffer.weights_bytes)
        .fold(0, u64::saturating_add);
    let copied: u64 = (on_host().filter(|buffer| !buffer.buffer.ends_with("_Mapped")))
        .map(|buffer| buffer.weights_bytes)
        .fold(0, u64::saturating_add);
    let mapped = plan.map_or(mapped, |plan| mapped.min(plan.mapped_bytes));
    let found_bytes = mapped.saturating_add(copied);
    if found_bytes > loaded.input_bytes.saturating_add(HOST_WEIGHTS_SLACK_BYTES) {
        let with_weights = on_host().filter(|buffer| buffer.weights_bytes > 0);
        return Err(Unproven::Weights {
            found_bytes,
            input_bytes: loaded.input_bytes,
            buffers: Names(with_weights.map(|buffer| buffer.buffer.as_str())).to_string(),
        });
    }
    let kv_bytes = on_host()
        .map(|buffer| buffer.kv_bytes)
        .fold(0, u64::saturating_add);
    if kv_bytes > 0 {
        let with_kv = on_host().filter(|buffer| buffer.kv_bytes > 0);
        return Err(Unproven::KvCache {
            found_bytes: kv_bytes,
            buffers: Names(with_kv.map(|buffer| buffer.buffer.as_str())).to_string(),
            devices: devices.to_string(),
        });
    }
    let n_devices = loaded
        .buffers
        .iter()
        .filter(|buffer| is_device(&buffer.buffer) && buffer.weights_bytes > 0)
        .count();
    let expected_splits = 1 + n_devices.max(1) as u32;
    match loaded.n_graph_splits {
        0 => return Err(Unproven::SplitsUnknown),
        found if found > expected_splits => {
            return Err(Unproven::Splits {
                found,
                expected: expected_splits,
            });
        }
        _ => {}
    }
    speed(expected, loaded).map(Proof::OnGpu)
}

/// Judges the canary, where there is one and the memory's speed is known.
fn speed(expected: &Expected, loaded: &Loaded) -> Result<Option<Speed>, Unproven> {
    let Some(canary) = loaded.canary else {
        return Ok(None);
    };
    let is_device = |name: &str| loaded.devices.iter().any(|device| device.name == name);
    let weights_bytes = (loaded.buffers.iter())
        .filter(|buffer| is_device(&buffer.buffer))
        .map(|buffer| buffer.weights_bytes)
        .fold(0, u64::saturating_add);
    let is_figure = |value: f64| value.is_finite() && value > 0.0;
    if !is_figure(canary.bytes_per_second) || !is_figure(canary.token_ms) {
        return Ok(None);
    }
    let roofline_ms = weights_bytes as f64 / canary.bytes_per_second * 1e3
        + LAUNCH_MS
        + f64::from(loaded.n_layers) * LAUNCH_MS_PER_LAYER;
    let speed = Speed {
        tok_s: 1e3 / canary.token_ms,
        roofline_tok_s: 1e3 / roofline_ms,
    };
    if speed.share() < f64::from(expected.canary_share_min) {
        return Err(Unproven::Slow {
            token_ms: canary.token_ms,
            allowed_ms: roofline_ms / f64::from(expected.canary_share_min),
            share_min: expected.canary_share_min,
            gb_s: canary.bytes_per_second / 1e9,
        });
    }
    Ok(Some(speed))
}

/// Joined by commas.
struct Names<I>(I);

impl<'a, I: Iterator<Item = &'a str> + Clone> fmt::Display for Names<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.0.clone().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
