//! Which board, which Jetson Linux, and whether its GPU can be reached.

use crate::board::identity::{Kind, Unsupported};
use crate::board::l4t::L4t;
use crate::doctor::{Facts, Finding};

/// Releases whose kernel refuses single GPU allocations of about a GiB (llama.cpp pull request 23732).
const NVMAP_FAULT: (L4t, L4t) = (version(36, 4, 7), version(36, 5, 0));

/// The first with CUDA 12, for which the engine is built.
const L4T_MIN: L4t = version(36, 0, 0);

/// The first that came after the newest tried.
const L4T_UNTRIED: L4t = version(38, 0, 0);

const fn version(release: u32, major: u32, minor: u32) -> L4t {
    L4t {
        release,
        major,
        minor,
    }
}

pub(super) fn module(facts: &Facts) -> Finding {
    let identity = &facts.identity;
    let model = identity
        .model
        .as_deref()
        .unwrap_or("no model in the device tree");
    let number = identity.module.as_ref().map_or(String::new(), |module| {
        format!(", p{}-{:04}", module.family, module.sku)
    });
    let named = |name: &str| format!("{name} ({model}{number})");
    const EXPECTED: &str = "a Jetson Orin Nano, Orin NX or AGX Orin";
    match identity.kind {
        Kind::Unsupported(kind) => Finding::fail(
            format!("{model}; {}", kind.reason()),
            EXPECTED,
            unsupported_remedy(kind),
        ),
        Kind::OrinOther => Finding::warn(
            named("an Orin whose module is not known here"),
            "p3767-0000 to -0005 or p3701-0000 to -0008 in /proc/device-tree/compatible",
            "it runs, without shipped profiles: write [profiles.NAME] of your own, and report the module",
        ),
        Kind::NoGpu => Finding::warn(
            "no NVIDIA GPU in sight: models run on the CPU",
            EXPECTED,
            "nothing, when that is meant; on a Jetson, look at /proc/device-tree/compatible and /dev",
        ),
        Kind::NvidiaPc => Finding::ok(format!(
            "a PC with {}",
            identity.gpu.as_deref().unwrap_or("an NVIDIA GPU")
        )),
        kind if is_slow_configuration(facts) => Finding::warn(
            format!("{}, flashed without \"super\"", named(kind_name(kind))),
            "the \"super\" configuration: memory 1.5 times as fast, and a faster GPU",
            "flash JetPack 6.2 or later with the configuration jetson-orin-nano-devkit-super, if supply and \
             cooling of the carrier allow it",
        ),
        kind => Finding::ok(named(kind_name(kind))),
    }
}

/// A Nano or NX that was flashed without "super", though its Jetson Linux has it.
fn is_slow_configuration(facts: &Facts) -> bool {
    let module = facts.identity.module.as_ref();
    let is_plain = module.is_some_and(|module| module.family == 3767 && !module.is_super);
    let has_super = facts
        .identity
        .l4t
        .is_some_and(|l4t| l4t >= version(36, 4, 3));
    is_plain && has_super
}

fn unsupported_remedy(kind: Unsupported) -> &'static str {
    match kind {
        Unsupported::NanoTx1 | Unsupported::Tx2 => {
            "use an Orin; on this board only a program of its time, on the CPU, will do"
        }
        Unsupported::Xavier | Unsupported::Thor | Unsupported::Other => {
            "use an Orin, or set engine.backend = \"cpu\" and take its speed"
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::OrinNano8 => "Jetson Orin Nano 8 GB",
        Kind::OrinNano4 => "Jetson Orin Nano 4 GB",
        Kind::OrinNx8 => "Jetson Orin NX 8 GB",
        Kind::OrinNx16 => "Jetson Orin NX 16 GB",
        Kind::Agx32 => "Jetson AGX Orin 32 GB",
        Kind::Agx64 => "Jetson AGX Orin 64 GB",
        Kind::OrinOther => "Jetson Orin",
        Kind::Unsupported(_) => "unsupported",
        Kind::NvidiaPc => "PC",
        Kind::NoGpu => "no GPU",
    }
}

pub(super) fn l4t(facts: &Facts) -> Finding {
    if !is_tegra(facts) {
        return Finding::skipped("not a Jetson");
    }
    let Some(l4t) = facts.identity.l4t else {
        return Finding::warn(
            "no version in /etc/nv_tegra_release",
            "L4T 36.5 (JetPack 6.2.2)",
            "on a Yocto image, install the package nv-tegra-release",
        );
    };
    let found = match l4t.jetpack() {
        Some(jetpack) => format!("L4T {l4t} (JetPack {jetpack})"),
        None => format!("L4T {l4t}"),
    };
    if l4t < L4T_MIN {
        return Finding::fail(
            format!("{found}, whose CUDA is older than 12"),
            "L4T 36 (JetPack 6), whose CUDA the engine is built for",
            "flash JetPack 6.2.2",
        );
    }
    if (NVMAP_FAULT.0..NVMAP_FAULT.1).contains(&l4t) {
        return Finding::warn(
            format!(
                "{found}: its NvMap refuses single allocations of about 1 GiB though memory is free (\
                 \"NvMapMemAllocInternalTagged … error 12\"), often until the next boot"
            ),
            "L4T 36.5 (JetPack 6.2.2)",
            "update to 36.5; until then load models early after boot, and prefer smaller ones",
        );
    }
    if l4t >= L4T_UNTRIED {
        return Finding::warn(
            format!("{found}: newer than what was tried"),
            "L4T 36.5 (JetPack 6.2.2)",
            "use an engine built for its CUDA, and report how it goes",
        );
    }
    Finding::ok(found)
}

pub(super) fn container(facts: &Facts) -> Finding {
    let identity = &facts.identity;
    match &identity.container {
        None => Finding::ok("not in a container"),
        Some(sign) if identity.lacks_container_runtime() => Finding::fail(
            format!("a container ({sign}) without a device node of the GPU"),
            "the board's GPU inside",
            "run it with --runtime nvidia (\"default-runtime\": \"nvidia\" in /etc/docker/daemon.json), or \
             outside of a container",
        ),
        Some(sign) if identity.kind.has_gpu() => {
            Finding::ok(format!("in a container ({sign}), with the GPU"))
        }
        Some(sign) => Finding::ok(format!("in a container ({sign})")),
    }
}

/// Files that telemetry and the governor need.
pub(super) fn sensors(facts: &Facts) -> Finding {
    let faults: Vec<String> = (facts.faults.iter().chain(facts.sensors.faults.iter()))
        // The memory has a check of its own.
        .filter(|fault| fault.path() != "/proc/meminfo")
        .map(ToString::to_string)
        .collect();
    if !faults.is_empty() {
        return Finding::warn(
            faults.join("; "),
            "files that can be read and understood",
            "those values are absent from telemetry; if it lasts after a reboot, report the file's content",
        );
    }
    let sensors = &facts.sensors;
    let n_zones = sensors
        .zones
        .iter()
        .filter(|zone| zone.millicelsius.is_some())
        .count();
    let found = format!(
        "{n_zones} temperatures, {} rails, {}",
        sensors.rails.len(),
        match &sensors.over_current {
            Some(_) => "over-current counters",
            None => "no over-current counters",
        }
    );
    Finding::ok(found)
}

pub(super) fn nodes(facts: &Facts) -> Finding {
    let identity = &facts.identity;
    if !identity.kind.has_gpu() {
        return Finding::skipped("no GPU that the engine could use");
    }
    if identity.lacks_container_runtime() {
        return Finding::skipped("a container without the GPU: see board.container");
    }
    let nodes = &identity.nodes;
    let all = nodes.present.len() + nodes.denied.len() + nodes.missing.len();
    if !nodes.missing.is_empty() {
        let is_dead = nodes
            .missing
            .iter()
            .any(|node| node == "/dev/nvgpu/igpu0/ctrl");
        let is_pc = identity.kind == Kind::NvidiaPc;
        let remedy = match is_dead {
            _ if is_pc => "`sudo nvidia-modprobe -u -c 0`; look for the driver with `nvidia-smi`",
            true => {
                "the GPU's driver did not start: reboot; if it stays so, look for nvgpu in `dmesg`"
            }
            false => {
                "look for the driver in `lsmod` and `dmesg`; in a container, use --runtime nvidia"
            }
        };
        return Finding::fail(
            format!("missing: {}", nodes.missing.join(", ")),
            format!("all {all} device nodes that CUDA opens"),
            remedy,
        );
    }
    if !nodes.denied.is_empty() {
        return Finding::fail(
            format!("not ours to open: {}", nodes.denied.join(", ")),
            "read and write for this user",
            "run doctor as root or as the daemon's user; that one must be in the groups video and render",
        );
    }
    Finding::ok(format!("{all} of {all} device nodes that CUDA opens"))
}

pub(super) fn gpu_clocks(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped("not an Orin");
    }
    match &facts.sensors.gpu {
        Some(gpu) => {
            let part = |name: &str, hz: Option<u64>| Some(format!("{name} {}", super::mhz(hz?)));
            let parts = [part("now", gpu.hz), part("at most", gpu.hz_max)];
            let parts: Vec<String> = parts.into_iter().flatten().collect();
            match parts.is_empty() {
                true => Finding::ok("the GPU sleeps"),
                false => Finding::ok(parts.join(", ")),
            }
        }
        None => Finding::warn(
            "no GPU in /sys/class/devfreq",
            "17000000.gpu, with its clocks and load",
            "it appears seconds after boot: look again; without it the power mode is judged by its name, and \
             telemetry has no GPU load",
        ),
    }
}

fn is_tegra(facts: &Facts) -> bool {
    facts.identity.kind.is_orin() || matches!(facts.identity.kind, Kind::Unsupported(_))
}
