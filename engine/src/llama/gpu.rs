//! Whether this machine has a GPU, whether this build can use it, and whether the model is on it.
//!
//! Serving a model from the CPU of a board that has a GPU looks healthy and is ten times too slow, so
//! anything less than all layers on the GPU is a failed load, until the operator sets `backend = "cpu"`.

use std::path::Path;

use orinoco::frames::{Backend, LoadSpec};

use crate::model::LoadError;

/// What was found on this machine and in this build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Why the machine is taken to have an NVIDIA GPU, e.g. `/dev/nvhost-gpu`.
    pub machine: Option<String>,
    /// GPU devices that llama.cpp can use, e.g. `CUDA0`.
    pub devices: Vec<String>,
}

impl Found {
    /// Looks at device nodes and the device tree below `root`, and at llama.cpp's devices.
    pub fn here(root: &Path) -> Self {
        let devices = llama_cpp_2::list_llama_ggml_backend_devices()
            .into_iter()
            .filter(|device| {
                use llama_cpp_2::LlamaBackendDeviceType as Type;
                // Orin's GPU shows as an integrated one.
                matches!(device.device_type, Type::Gpu | Type::IntegratedGpu)
            })
            .map(|device| device.name)
            .collect();
        Self {
            machine: machine_gpu(root),
            devices,
        }
    }

    /// Before a load: a machine with a GPU and a build without one.
    pub fn check_build(&self, spec: &LoadSpec) -> Result<(), LoadError> {
        match &self.machine {
            Some(sign) if self.devices.is_empty() && spec.backend == Backend::Auto => {
                let build = if cfg!(feature = "cuda") {
                    "but CUDA found no device: check the driver and libcuda"
                } else {
                    "but this orinoco-engine was built without CUDA: install the CUDA build"
                };
                Err(LoadError(format!(
                    "this machine has a GPU ({sign}), {build}, or set backend = \"cpu\""
                )))
            }
            _ => Ok(()),
        }
    }

    /// After a load: less than all layers on the GPU.
    pub fn check_offload(
        &self,
        spec: &LoadSpec,
        n_layers_gpu: u32,
        n_layers: u32,
    ) -> Result<(), LoadError> {
        if self.devices.is_empty() || spec.backend == Backend::Cpu || n_layers_gpu >= n_layers {
            return Ok(());
        }
        Err(LoadError(format!(
            "only {n_layers_gpu} of {n_layers} layers are on {}; all are expected: set n_gpu_layers = -1 (it is {}), choose a smaller model, or set backend = \"cpu\"",
            self.devices.join(", "),
            spec.n_gpu_layers
        )))
    }
}

/// A sign that an NVIDIA GPU is in this machine, whether or not its driver works.
fn machine_gpu(root: &Path) -> Option<String> {
    for node in ["dev/nvhost-gpu", "dev/nvgpu", "dev/nvidia0"] {
        if root.join(node).exists() {
            return Some(format!("/{node}"));
        }
    }
    // NUL-separated strings, e.g. "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0".
    let compatible = std::fs::read(root.join("proc/device-tree/compatible")).ok()?;
    let compatible = String::from_utf8_lossy(&compatible).into_owned();
    let tegra = compatible
        .split('\0')
        .find(|name| name.starts_with("nvidia,tegra"))?;
    Some(format!("device tree {tegra}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::load_spec;

    fn board(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        root
    }

    #[test]
    fn an_orin_is_known_by_its_nodes_or_its_device_tree() {
        let nodes = board(&[("dev/nvgpu", b"")]);
        assert_eq!(machine_gpu(nodes.path()).as_deref(), Some("/dev/nvgpu"));
        let tree = board(&[(
            "proc/device-tree/compatible",
            b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0",
        )]);
        assert_eq!(
            machine_gpu(tree.path()).as_deref(),
            Some("device tree nvidia,tegra234")
        );
        let other = board(&[("proc/device-tree/compatible", b"raspberrypi,5\0")]);
        assert_eq!(machine_gpu(other.path()), None);
    }

    #[test]
    fn a_gpu_without_a_build_for_it_is_refused_until_the_cpu_is_asked_for() {
        let found = Found {
            machine: Some("/dev/nvhost-gpu".into()),
            devices: Vec::new(),
        };
        let mut spec = load_spec();
        let error = found.check_build(&spec).unwrap_err();
        assert!(
            error.0.contains("/dev/nvhost-gpu") && error.0.contains("backend = \"cpu\""),
            "{error}"
        );
        spec.backend = Backend::Cpu;
        assert_eq!(found.check_build(&spec), Ok(()));
    }

    #[test]
    fn a_part_of_the_layers_on_the_gpu_is_refused() {
        let found = Found {
            machine: Some("/dev/nvidia0".into()),
            devices: vec!["CUDA0".into()],
        };
        let spec = load_spec();
        assert_eq!(found.check_offload(&spec, 31, 31), Ok(()));
        let error = found.check_offload(&spec, 30, 31).unwrap_err();
        assert!(error.0.contains("30 of 31") && error.0.contains("CUDA0"));
        assert_eq!(Found::default().check_offload(&spec, 0, 31), Ok(()));
    }
}
