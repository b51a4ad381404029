//! The worker: its program, and how it is told to compute.

use crate::board::identity::Kind;
use crate::doctor::{Facts, Finding};
use crate::frames::{Backend, Switch};

pub(super) fn program(facts: &Facts) -> Finding {
    let path = &facts.engine.path;
    let header = match &facts.engine.header {
        Ok(Some(header)) => header,
        Ok(None) => {
            return Finding::fail(
                format!("no {path}"),
                "the engine's program, beside the daemon's",
                "install Orinoco anew, or set engine.worker_path",
            );
        }
        Err(error) => {
            return Finding::fail(
                format!("{path}: {error}"),
                "a program",
                "install Orinoco anew, or set engine.worker_path",
            );
        }
    };
    let kind = facts.identity.kind;
    let expected = match kind {
        _ if facts.arch.is_some() => facts.arch,
        kind if kind.is_orin() || matches!(kind, Kind::Unsupported(_)) => Some("aarch64"),
        _ => None,
    };
    match expected.filter(|expected| *expected != header.machine) {
        Some(expected) => Finding::fail(
            format!("{path} is for {}", header.machine),
            format!("a program for {expected}"),
            "install the package for this board",
        ),
        None => Finding::ok(format!("{path}, for {}", header.machine)),
    }
}

pub(super) fn backend(facts: &Facts) -> Finding {
    let has_gpu = facts.identity.kind.has_gpu();
    if facts.config.engine.backend == Backend::Cpu {
        return match has_gpu {
            true => Finding::warn(
                "engine.backend = \"cpu\", and there is a GPU",
                "\"auto\": the GPU, or an error that says why not",
                "take engine.backend out of the configuration, unless the GPU is meant for something else",
            ),
            false => Finding::ok("the CPU, as configured"),
        };
    }
    let models = &facts.config.models;
    let all = models.by_name.values().chain([&models.default]);
    let fewest = all
        .map(|model| model.n_gpu_layers)
        .filter(|n| *n >= 0)
        .min();
    match fewest.filter(|_| has_gpu) {
        Some(n) => Finding::fail(
            format!("n_gpu_layers = {n}: some of a model would be on the CPU, and it is refused"),
            "-1: all layers",
            "take n_gpu_layers out of the configuration, and choose a smaller model where memory is short",
        ),
        None if has_gpu => Finding::ok("the GPU with all layers, or an error that says why not"),
        None => Finding::ok("the CPU: there is no GPU"),
    }
}

pub(super) fn graphs(facts: &Facts) -> Finding {
    if !facts.identity.kind.has_gpu() {
        return Finding::skipped("no GPU that the engine could use");
    }
    let by_variable = facts.variables.contains_key("GGML_CUDA_DISABLE_GRAPHS");
    let graphs = facts.config.engine.cuda_graphs;
    if graphs == Switch::Off || by_variable {
        return Finding::warn(
            match by_variable {
                true => "CUDA graphs are off: GGML_CUDA_DISABLE_GRAPHS is set",
                false => "CUDA graphs are off: engine.cuda_graphs = \"off\"",
            },
            "\"auto\": each kernel is launched from the CPU without them, which small models feel most",
            "switch them on, unless this board failed with them; `orinoco bench` says what they are worth",
        );
    }
    Finding::ok(match graphs {
        Switch::On => "CUDA graphs are on",
        _ => {
            "CUDA graphs are left to llama.cpp, which uses them from compute capability 8.0 on (Orin: 8.7)"
        }
    })
}

pub(super) fn threads(facts: &Facts) -> Finding {
    let cores = facts.n_cores;
    let engine = &facts.config.engine;
    let most = engine.n_threads.max(engine.n_threads_batch);
    match (most, cores) {
        (0, Some(cores)) => Finding::ok(format!("one for each of {cores} cores that are on")),
        (0, None) => Finding::ok("one for each core that is on"),
        (most, Some(cores)) if most > cores => Finding::warn(
            format!("{most} threads, and {cores} cores are on in this power mode"),
            format!(
                "at most {cores}: threads that wait for each other on one core make each token slow"
            ),
            "engine.n_threads = 0 follows the cores that are on",
        ),
        (most, Some(cores)) => Finding::ok(format!("{most} threads on {cores} cores")),
        (most, None) => Finding::ok(format!("{most} threads")),
    }
}

pub(super) fn sandbox(facts: &Facts) -> Finding {
    const EXPECTED: &str =
        "files by Landlock, system calls by seccomp: a hostile model gets nowhere";
    if facts.config.engine.sandbox.is_none() {
        return Finding::warn(
            "engine.sandbox = \"off\"",
            EXPECTED,
            "take engine.sandbox out of the configuration",
        );
    }
    let kernel = &facts.kernel;
    let landlock = kernel
        .modules
        .as_ref()
        .map(|modules| modules.iter().any(|name| name == "landlock"));
    let mut missing = Vec::new();
    if landlock == Some(false) {
        missing.push("Landlock");
    }
    if !kernel.has_seccomp {
        missing.push("seccomp");
    }
    if !missing.is_empty() {
        return Finding::warn(
            format!(
                "the kernel {} has no {}",
                kernel.release.as_deref().unwrap_or("here"),
                missing.join(" and no ")
            ),
            EXPECTED,
            "a kernel with CONFIG_SECURITY_LANDLOCK and CONFIG_SECCOMP_FILTER, and landlock in lsm= of its \
             command line; until then the other layer holds",
        );
    }
    match landlock {
        Some(_) => Finding::ok("the kernel has Landlock and seccomp"),
        None => Finding::ok(
            "the kernel has seccomp; whether it has Landlock, `info` says when a model runs",
        ),
    }
}
