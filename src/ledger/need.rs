//! What a model will take, by kind, from the worker's plan.

use crate::frames::{Device, Plan};

/// Beside what the plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The GPU's context, its libraries' workspaces and kernels, on a GPU that shares main memory: the
    /// driver takes them, and no breakdown names them.
    pub gpu_context_bytes: u64,
}

/// What a worker's process takes beyond a planning one: rows of candidates of each slot, threads' stacks,
/// prompts and answers under way. Measured with Gemma-3 and eight slots: 21 MiB.
pub const PROCESS_ALLOWANCE_BYTES: u64 = 32 << 20;

/// Bytes by kind. Main memory, which on unified memory is the GPU's too; what lies in a discrete GPU's
/// own memory is in [`Need::devices`] and nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Weights, copied or mapped.
    pub weights_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// By [`Rules::gpu_context_bytes`].
    pub gpu_context_bytes: u64,
    /// The process itself: vocabulary, graphs, libraries.
    pub process_bytes: u64,
    /// Of the weights, what is mapped from the file.
    pub mapped_bytes: u64,
    /// Discrete GPUs with memory of their own.
    pub devices: Vec<DeviceNeed>,
    /// The largest buffer on a GPU, asked for in one piece.
    pub largest_buffer_bytes: u64,
}

/// What one discrete GPU must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNeed {
    /// llama.cpp's name, e.g. `CUDA0`.
    pub name: String,
    /// Weights, KV cache and compute buffers on it.
    pub bytes: u64,
    /// What it had free when it was asked.
    pub free_bytes: u64,
}

impl Need {
    /// Sorts the buffers of a plan by the memory that they lie in.
    pub fn of(plan: &Plan, devices: &[Device], rules: Rules) -> Self {
        let mut need = Self {
            process_bytes: plan.process_bytes.saturating_add(PROCESS_ALLOWANCE_BYTES),
            mapped_bytes: plan.mapped_bytes,
            ..Self::default()
        };
        for buffer in &plan.buffers {
            let parts = [buffer.weights_bytes, buffer.kv_bytes, buffer.compute_bytes];
            let device = devices.iter().find(|device| device.name == buffer.buffer);
            if device.is_some() {
                let largest = parts.into_iter().max().unwrap_or(0);
                need.largest_buffer_bytes = need.largest_buffer_bytes.max(largest);
            }
            match device {
                Some(device) if !device.is_integrated => need.devices.push(DeviceNeed {
                    name: device.name.clone(),
                    bytes: parts.into_iter().fold(0, u64::saturating_add),
                    free_bytes: device.free_bytes,
                }),
                _ => {
                    need.weights_bytes = need.weights_bytes.saturating_add(parts[0]);
                    need.kv_bytes = need.kv_bytes.saturating_add(parts[1]);
                    need.compute_bytes = need.compute_bytes.saturating_add(parts[2]);
                }
            }
        }
        if devices.iter().any(|device| device.is_integrated) {
            need.gpu_context_bytes = rules.gpu_context_bytes;
        }
        need.mapped_bytes = need.mapped_bytes.min(need.weights_bytes);
        need
    }

    /// All of main memory.
    pub fn total_bytes(&self) -> u64 {
        [
            self.weights_bytes,
            self.kv_bytes,
            self.compute_bytes,
            self.gpu_context_bytes,
            self.process_bytes,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}
