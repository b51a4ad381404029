//! CUDA: its libraries, toolkits and switches, and the daemon's way to the device nodes.

use crate::board::identity::Kind;
use crate::doctor::facts::libraries::LIBCUDA;
use crate::doctor::{Facts, Finding};

const NO_GPU: &str = "no GPU that the engine could use";

/// Groups to which L4T and udev give the device nodes.
const GROUPS: [&str; 2] = ["video", "render"];

pub(super) fn groups(facts: &Facts) -> Finding {
    if !facts.identity.kind.is_orin() {
        return Finding::skipped("not an Orin");
    }
    let Some(account) = &facts.account else {
        return Finding::skipped("no unit says which user the daemon runs as: see service.unit");
    };
    let user = &account.user;
    if user == "root" {
        return Finding::warn(
            "the daemon runs as root",
            "a user of its own in the groups video and render",
            "set User= in the unit; the one that comes with Orinoco does",
        );
    }
    if !account.exists {
        return Finding::fail(
            format!("no user {user} in /etc/passwd, and the unit starts the daemon as it"),
            format!("the user {user}"),
            "`sudo systemd-sysusers`, with the file that comes with Orinoco",
        );
    }
    let missing = GROUPS
        .into_iter()
        .filter(|group| !account.groups.contains(*group));
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        return Finding::fail(
            format!("the user {user} is not in {}", missing.join(" and ")),
            "video and render, to which the device nodes belong",
            format!(
                "SupplementaryGroups=video render in the unit, or `sudo usermod -aG video,render {user}`"
            ),
        );
    }
    let unknown = GROUPS
        .into_iter()
        .filter(|group| !account.known_groups.contains(*group));
    let unknown: Vec<&str> = unknown.collect();
    if !unknown.is_empty() {
        return Finding::fail(
            format!(
                "the unit names the group {}, which does not exist",
                unknown.join(" and ")
            ),
            "the groups video and render",
            "`sudo systemd-sysusers`; without the group the daemon does not start",
        );
    }
    Finding::ok(format!("{user} is in video and render"))
}

pub(super) fn libcuda(facts: &Facts) -> Finding {
    if !facts.identity.kind.has_gpu() {
        return Finding::skipped(NO_GPU);
    }
    let libraries = &facts.libraries;
    let reinstall = match facts.identity.kind {
        Kind::NvidiaPc => "install the NVIDIA driver",
        _ => {
            "`sudo apt install --reinstall nvidia-l4t-cuda`; in a container, --runtime nvidia; on Yocto, \
              tegra-libraries-cuda"
        }
    };
    let Some(first) = libraries.libcuda.first() else {
        return match &libraries.stray_libcuda {
            Some(path) => Finding::fail(
                format!("{path} is there, and the loader does not look there"),
                "its folder in /etc/ld.so.conf.d",
                "write the folder into /etc/ld.so.conf.d/nvidia-tegra.conf, then `sudo ldconfig`",
            ),
            None => Finding::fail(
                format!("no {LIBCUDA}"),
                "the driver's library, which CUDA opens by that name",
                reinstall,
            ),
        };
    };
    // The toolkit's stub has all names of the driver, and does nothing.
    if first.contains("/stubs/") {
        return Finding::fail(
            format!("{first} is found first: a stub for compilers"),
            "the driver's own library",
            "take the stubs folder out of /etc/ld.so.conf.d and LD_LIBRARY_PATH, then `sudo ldconfig`",
        );
    }
    if libraries.libcuda.len() > 1 {
        return Finding::warn(
            libraries.libcuda.join(", "),
            "one driver's library",
            "keep the one of this Jetson Linux; the first is taken, and one of another release does not work",
        );
    }
    Finding::ok(first.clone())
}

pub(super) fn libraries(facts: &Facts) -> Finding {
    let header = match &facts.engine.header {
        Ok(Some(header)) => header,
        _ => return Finding::skipped("no engine to look into: see engine.program"),
    };
    let missing = header.needed.iter().filter(|(_, at)| at.is_none());
    let missing: Vec<&str> = missing.map(|(name, _)| name.as_str()).collect();
    if !missing.is_empty() {
        let is_cuda = missing.iter().any(|name| is_of_cuda(name));
        return Finding::fail(
            format!("not found: {}", missing.join(", ")),
            format!(
                "all {} libraries that {} needs",
                header.needed.len(),
                facts.engine.path
            ),
            match is_cuda {
                true => {
                    "install the CUDA libraries of this JetPack (`sudo apt install cuda-libraries-12-6`), \
                         or put their folder into /etc/ld.so.conf.d; then `sudo ldconfig`"
                }
                false => {
                    "install the packages that have them (`apt-file search NAME`), then `sudo ldconfig`"
                }
            },
        );
    }
    let cuda = header.needed.iter().filter(|(name, _)| is_of_cuda(name));
    let cuda: Vec<&str> = cuda.map(|(name, _)| name.as_str()).collect();
    let all = format!(
        "all {} libraries of the engine are found",
        header.needed.len()
    );
    Finding::ok(match cuda.is_empty() {
        true => format!("{all}; CUDA's are inside it, or it has none"),
        false => format!("{all}; of CUDA {}", cuda.join(", ")),
    })
}

fn is_of_cuda(name: &str) -> bool {
    ["libcuda", "libcudart", "libcublas", "libnv"]
        .iter()
        .any(|start| name.starts_with(start))
}

/// The CUDA that the engine was linked with against the one that this Jetson Linux has.
pub(super) fn version(facts: &Facts) -> Finding {
    let Some(l4t) = facts.identity.l4t.filter(|_| facts.identity.kind.is_orin()) else {
        return Finding::skipped("no Jetson Linux");
    };
    let header = match &facts.engine.header {
        Ok(Some(header)) => header,
        _ => return Finding::skipped("no engine to look into: see engine.program"),
    };
    // libcudart.so.12, libcublas.so.12
    let majors = header.needed.iter().filter_map(|(name, _)| {
        let (library, major) = name.split_once(".so.")?;
        let major: u32 = major.split('.').next()?.parse().ok()?;
        matches!(library, "libcudart" | "libcublas").then_some((name, major))
    });
    let majors: Vec<_> = majors.collect();
    let brought = match l4t.release {
        36 => 12,
        38.. => 13,
        _ => 11,
    };
    let wrong: Vec<&str> = (majors.iter())
        .filter(|(_, major)| *major != brought)
        .map(|(name, _)| name.as_str())
        .collect();
    if !wrong.is_empty() {
        return Finding::fail(
            format!(
                "the engine needs {}, and L4T {l4t} has CUDA {brought}",
                wrong.join(", ")
            ),
            format!("an engine built for CUDA {brought}"),
            "install the package of Orinoco for this JetPack",
        );
    }
    match majors.is_empty() {
        true => Finding::ok(format!(
            "L4T {l4t} has CUDA {brought}; the engine brings its own or none"
        )),
        false => Finding::ok(format!("CUDA {brought}, as L4T {l4t} has it")),
    }
}

pub(super) fn toolkits(facts: &Facts) -> Finding {
    let toolkits = &facts.libraries.toolkits;
    match toolkits.as_slice() {
        [] => Finding::ok("no CUDA toolkit: only compiling needs one"),
        [one] => Finding::ok(one.clone()),
        several => Finding::warn(
            format!("more than one CUDA: {}", several.join(", ")),
            "the one of this JetPack",
            "`sudo apt purge` the others: each takes gigabytes, and the loader may take libraries of the \
             wrong one",
        ),
    }
}

/// A check that never complains: its line is the answer to a question that everybody asks.
pub(super) fn nvcc(facts: &Facts) -> Finding {
    Finding::ok(match &facts.libraries.nvcc {
        Some(path) => {
            format!("{path}; whether it is in PATH does not matter, nothing is compiled here")
        }
        None => "no nvcc, and none is needed: nothing is compiled here".into(),
    })
}

fn is_set(facts: &Facts, name: &str) -> bool {
    facts
        .variables
        .get(name)
        .is_some_and(|value| !matches!(value.as_str(), "" | "0"))
}

pub(super) fn environment(facts: &Facts) -> Finding {
    let remedy = "take it out of the unit (`systemctl edit orinoco`), or out of the shell that starts the daemon";
    // An empty value hides them too, and is told apart from no value only in a unit.
    let hidden = facts.variables.get("CUDA_VISIBLE_DEVICES");
    if let Some(value) = hidden.filter(|value| matches!(value.as_str(), "" | "-1")) {
        return Finding::fail(
            format!("CUDA_VISIBLE_DEVICES={value:?}: CUDA sees no GPU"),
            "no such variable",
            remedy,
        );
    }
    let odd = [
        (
            "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
            "managed memory, which a Jetson does not need and which is slower",
        ),
        (
            "GGML_CUDA_FORCE_CUBLAS",
            "cuBLAS in place of kernels for quantized weights",
        ),
    ];
    let set = odd
        .iter()
        .filter(|(name, _)| facts.variables.contains_key(*name));
    let set: Vec<String> = set.map(|(name, what)| format!("{name}: {what}")).collect();
    if !set.is_empty() {
        return Finding::warn(set.join("; "), "none of them set", remedy);
    }
    if let Some(path) = facts.variables.get("LD_LIBRARY_PATH") {
        return Finding::warn(
            format!("LD_LIBRARY_PATH={path}"),
            "the loader's own paths (/etc/ld.so.conf.d): a list in one place, for every program",
            remedy,
        );
    }
    Finding::ok("nothing in the environment changes what CUDA does")
}

pub(super) fn jit(facts: &Facts) -> Finding {
    let forced = ["CUDA_FORCE_PTX_JIT", "CUDA_CACHE_DISABLE"];
    let set: Vec<&str> = forced
        .into_iter()
        .filter(|name| is_set(facts, name))
        .collect();
    if set.is_empty() {
        return Finding::ok("nothing forces kernels to be compiled at each start");
    }
    Finding::warn(
        format!(
            "{} is set: kernels that are not in the engine are compiled at each start",
            set.join(" and ")
        ),
        "neither: an engine for this GPU has all its kernels, and for another one a cache saves minutes",
        "take it out of the unit or the shell; where the first load takes minutes, engine.cuda_cache_dir",
    )
}
