//! The devices that llama.cpp found, and how fast the memory of one is.

#![allow(
    unsafe_code,
    reason = "llama-cpp-2 tells nothing of buffers, and the device of a model is known by its type"
)]

use std::ffi::CStr;
use std::ptr::NonNull;
use std::time::Instant;

use llama_cpp_2::{LlamaBackendDevice, LlamaBackendDeviceType as Type};
use llama_cpp_sys_2 as sys;
use orinoco::frames::{Backend, Device};

use super::judged::Judged;

/// Buffer that is filled to time the memory: larger than the caches of a discrete GPU (H200: 50 MB), and
/// small beside what an integrated one shares with everybody (Orin's caches: 4 MB).
const FILL_BYTES: usize = 256 << 20;
const FILL_BYTES_INTEGRATED: usize = 64 << 20;
/// Fills; the quickest counts, since the first ones wake the clocks.
const N_FILLS: usize = 8;

/// Compute backends that are there at run time, by ggml's names, e.g. `CPU`, `CUDA`; also those that found
/// no device.
pub fn backends() -> Vec<String> {
    // SAFETY: takes nothing and counts.
    let n = unsafe { sys::ggml_backend_reg_count() };
    let name = |index| {
        // SAFETY: the index is below the count; a registry entry and its name live as long as the process.
        let name =
            unsafe { CStr::from_ptr(sys::ggml_backend_reg_name(sys::ggml_backend_reg_get(index))) };
        name.to_string_lossy().into_owned()
    };
    (0..n).map(name).collect()
}

/// GPUs that a model is put on: the discrete ones, else the integrated ones (Orin's is one), as
/// llama.cpp chooses. None when the CPU was asked for.
pub fn used(backend: Backend) -> Vec<Device> {
    if backend == Backend::Cpu {
        return Vec::new();
    }
    chosen().iter().map(to_frame).collect()
}

/// Whether a model that is loaded with `backend` is on a GPU.
pub fn on_gpu(backend: Backend) -> bool {
    backend == Backend::Auto && !chosen().is_empty()
}

fn chosen() -> Vec<LlamaBackendDevice> {
    let all = llama_cpp_2::list_llama_ggml_backend_devices();
    let of = |wanted: Type| {
        let found = all.iter().filter(|device| device.device_type == wanted);
        Vec::from_iter(found.cloned())
    };
    let discrete = of(Type::Gpu);
    if discrete.is_empty() {
        of(Type::IntegratedGpu)
    } else {
        discrete
    }
}

fn to_frame(device: &LlamaBackendDevice) -> Device {
    Device {
        name: device.name.clone(),
        description: device.description.clone(),
        is_integrated: device.device_type == Type::IntegratedGpu,
        free_bytes: device.memory_free as u64,
        total_bytes: device.memory_total as u64,
    }
}

/// Bytes a second that the memory of the first GPU in use takes up; that of the CPU when there is none.
/// `None` when there is no room for the buffer, or no time passed.
pub fn fill_bytes_per_second(backend: Backend) -> Option<f64> {
    let gpu = first(backend);
    let bytes = match gpu.as_ref().map(|gpu| gpu.device_type) {
        Some(Type::Gpu) => FILL_BYTES,
        _ => FILL_BYTES_INTEGRATED,
    };
    let buffer = Buffer::on(gpu.as_ref(), bytes)?;
    let seconds = (0..N_FILLS).map(|i| {
        let start = Instant::now();
        buffer.fill(i as u8);
        start.elapsed().as_secs_f64()
    });
    let quickest = seconds.fold(f64::INFINITY, f64::min);
    (quickest > 0.0).then(|| bytes as f64 / quickest)
}

/// Whether the first GPU in use gives `bytes` in one piece; true where there is none.
pub fn gives(backend: Backend, bytes: u64) -> bool {
    let Some(gpu) = first(backend) else {
        return true;
    };
    usize::try_from(bytes).is_ok_and(|bytes| Buffer::on(Some(&gpu), bytes).is_some())
}

fn first(backend: Backend) -> Option<LlamaBackendDevice> {
    match backend {
        Backend::Auto => chosen().into_iter().next(),
        Backend::Cpu => None,
    }
}

/// An owned buffer in the memory of a device.
struct Buffer(NonNull<sys::ggml_backend_buffer>);

impl Buffer {
    /// In the memory of `gpu`, or of the CPU; `None` when it gives none.
    fn on(gpu: Option<&LlamaBackendDevice>, bytes: usize) -> Option<Self> {
        // SAFETY: the registry lives as long as the process, and the index is one that it listed; NULL is
        // checked.
        let device = unsafe {
            match gpu {
                Some(gpu) => sys::ggml_backend_dev_get(gpu.index),
                None => sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU),
            }
        };
        if device.is_null() {
            return None;
        }
        // SAFETY: the device is one of the registry; NULL is checked.
        let raw = unsafe {
            let kind = sys::ggml_backend_dev_buffer_type(device);
            sys::ggml_backend_buft_alloc_buffer(kind, bytes)
        };
        NonNull::new(raw).map(Self)
    }

    /// Returns when every byte is written.
    fn fill(&self, value: u8) {
        // SAFETY: the buffer is live.
        unsafe { sys::ggml_backend_buffer_clear(self.0.as_ptr(), value) };
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `on`, freed once.
        unsafe { sys::ggml_backend_buffer_free(self.0.as_ptr()) };
    }
}

/// Whether weights may be mapped from their file for this device; an integrated GPU copies them.
pub(super) fn can_map(backend: Backend) -> bool {
    if backend == Backend::Cpu {
        return true;
    }
    chosen()
        .iter()
        .all(|device| device.device_type != Type::IntegratedGpu)
}

/// Bytes of the tensors that llama.cpp keeps on the host whatever the number of layers on a GPU: it only
/// looks rows of them up (`LLM_TENSOR_LAYER_INPUT` in its `llama-arch.cpp`).
pub(super) fn input_bytes(file: &Judged) -> u64 {
    let path = file.path_of_descriptor();
    const NAMES: [&CStr; 4] = [
        c"token_embd.weight",
        c"per_layer_token_embd.weight",
        c"position_embd.weight",
        c"token_types.weight",
    ];
    let params = sys::gguf_init_params {
        no_alloc: true,
        ctx: std::ptr::null_mut(),
    };
    // SAFETY: the path is NUL-terminated; the context is checked for NULL and freed below; an index is
    // only used when it was found.
    unsafe {
        let file = sys::gguf_init_from_file(path.as_ptr(), params);
        if file.is_null() {
            return 0;
        }
        let mut bytes = 0;
        for name in NAMES {
            let index = sys::gguf_find_tensor(file, name.as_ptr());
            if index >= 0 {
                bytes += sys::gguf_get_tensor_size(file, index) as u64;
            }
        }
        sys::gguf_free(file);
        bytes
    }
}
