//! `orinoco doctor` on boards as trees: what it says about each, and what it makes of what is broken.
//!
//! Each tree has Orinoco installed as a package does (`tests/boards/installed`); the programs and models in
//! it are made from the words in their files. `tests/doctor/NAME.txt` is the whole report of each board and variant. `ORINOCO_GOLDEN=write` writes them
//! anew, to be read before they are committed; the table [`FAULTS`] stays, so that no fault is lost then.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "doctor/bundle.rs"]
mod bundle;
#[path = "support/elf.rs"]
mod elf;
#[path = "support/gguf.rs"]
mod gguf;
#[path = "doctor/live.rs"]
mod live;
#[path = "support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use orinoco::config::{Environment, Sources};
use orinoco::doctor::{self, Question, Report, Status};
use support::board::Tree;

const BOARDS: [&str; 3] = ["orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb"];

/// What each variant's report must say, whatever its golden file says: status and check, and words found.
const FAULTS: &[(&str, &str, &str)] = &[
    ("agx-r35", "fail board.l4t", "L4T 35.4.1"),
    ("cgroup-limit", "warn memory.cgroup", "2.00 GiB"),
    (
        "conf-before-super-nano",
        "warn board.module",
        "without \"super\"",
    ),
    ("conf-before-super-nano", "warn power.mode", "7W"),
    ("conf-cut", "warn power.table", "nvpmodel.conf:64"),
    ("conf-duplicate-id", "warn power.table", "nvpmodel.conf:84"),
    (
        "conf-no-default",
        "warn power.table",
        "none of them the default",
    ),
    ("conf-no-link", "warn power.table", "no /etc/nvpmodel.conf"),
    ("container", "fail board.container", "/.dockerenv"),
    ("gpu-dead", "fail gpu.nodes", "/dev/nvgpu/igpu0/ctrl"),
    ("load-absurd", "warn board.sensors", "/load"),
    ("memory-absurd", "fail memory.available", "at most MemTotal"),
    ("memory-low", "fail memory.available", "198 MiB"),
    ("memory-missing", "fail memory.available", "/proc/meminfo"),
    (
        "memory-truncated",
        "fail memory.available",
        "/proc/meminfo:2",
    ),
    ("nano-2019", "fail board.module", "CUDA 10.2"),
    ("no-gpu-node", "warn gpu.clocks", "no GPU in /sys"),
    ("pc", "fail gpu.nodes", "/dev/nvidia-uvm"),
    ("pressure", "warn memory.pressure", "12.5 %"),
    ("rail-unreadable", "warn board.sensors", "curr2_input"),
    ("status-empty", "warn power.status", "found \"\""),
    ("status-garbage", "warn power.status", "found \"pmode:\""),
    ("status-lies", "warn power.clocks", "clocks of MAXN_SUPER"),
    ("status-unknown-id", "warn power.status", "pmode:0099"),
    ("tx2", "fail board.module", "TX2"),
    ("xavier-nx", "fail board.module", "Xavier"),
    // Setups.
    (
        "broker-unit-missing",
        "fail service.broker",
        "no orinoco-broker.service",
    ),
    ("clock-1970", "warn system.clock", "says 1970"),
    ("config-wrong", "fail config.valid", "mqtt.prot"),
    ("config-wrong", "fail config.valid", "log.level"),
    (
        "cpu-chosen",
        "warn engine.backend",
        "engine.backend = \"cpu\"",
    ),
    ("cublas-missing", "fail gpu.libraries", "libcublas.so.12"),
    ("cuda-two", "warn gpu.toolkits", "/usr/local/cuda-11.4"),
    ("engine-cuda-11", "fail gpu.cuda", "libcudart.so.11.0"),
    (
        "engine-missing",
        "fail engine.program",
        "no /usr/bin/orinoco-engine",
    ),
    ("engine-no-program", "fail engine.program", "no ELF program"),
    ("engine-x86", "fail engine.program", "x86_64"),
    ("graphs-off", "warn engine.graphs", "engine.cuda_graphs"),
    ("groups-missing", "fail gpu.groups", "video and render"),
    ("heat-high", "warn heat.junction", "95.5 °C"),
    ("heat-throttled", "fail heat.junction", "99.5 °C"),
    (
        "heat-throttled",
        "warn heat.throttling",
        "devfreq-17000000.gpu at 3 of 8",
    ),
    ("kernel-no-landlock", "warn engine.sandbox", "no Landlock"),
    ("l4t-missing", "warn board.l4t", "/etc/nv_tegra_release"),
    ("l4t-newer", "warn board.l4t", "39.2.0"),
    ("l4t-newer", "fail gpu.cuda", "CUDA 13"),
    ("l4t-nvmap-fault", "warn board.l4t", "36.4.7"),
    ("layers-some", "fail engine.backend", "n_gpu_layers = 20"),
    ("libcuda-missing", "fail gpu.libcuda", "no libcuda.so.1"),
    ("libcuda-stray", "fail gpu.libcuda", "does not look there"),
    ("libcuda-stub", "fail gpu.libcuda", "/stubs/"),
    ("libcuda-two", "warn gpu.libcuda", "/opt/old/libcuda.so.1"),
    ("model-absent", "fail models.present", "Hermes-3"),
    ("model-changed", "fail models.intact", "length"),
    ("model-cut", "fail models.intact", "tiny.gguf"),
    (
        "models-none",
        "fail models.present",
        "no model in /var/lib/orinoco/models",
    ),
    ("module-unknown", "warn board.module", "p3767-0009"),
    (
        "password-missing",
        "fail config.credentials",
        "/etc/orinoco/mqtt.password",
    ),
    ("password-open", "fail config.credentials", "0644"),
    ("sandbox-off", "warn engine.sandbox", "engine.sandbox"),
    ("supply-weak", "warn power.over_current", "7 under-voltages"),
    ("swap-disk", "warn memory.swap", "/swapfile"),
    ("swap-zram-full", "warn memory.swap", "2.96 GiB"),
    (
        "threads-many",
        "warn engine.threads",
        "12 threads, and 6 cores",
    ),
    (
        "unit-gpu-closed",
        "fail service.devices",
        "PrivateDevices=yes, ProcSubset=pid",
    ),
    (
        "unit-gpu-hidden",
        "fail gpu.environment",
        "CUDA_VISIBLE_DEVICES",
    ),
    ("unit-jit", "warn engine.graphs", "GGML_CUDA_DISABLE_GRAPHS"),
    ("unit-jit", "warn gpu.jit", "CUDA_CACHE_DISABLE"),
    (
        "unit-library-path",
        "warn gpu.environment",
        "LD_LIBRARY_PATH",
    ),
    (
        "unit-managed-memory",
        "warn gpu.environment",
        "UNIFIED_MEMORY",
    ),
    ("unit-missing", "warn service.unit", "no orinoco.service"),
    ("unit-no-restart", "warn service.unit", "Restart=no"),
    ("unit-no-watchdog", "warn service.watchdog", "Type=simple"),
    ("unit-root", "warn gpu.groups", "root"),
    ("user-missing", "fail gpu.groups", "no user orinoco"),
    ("watchdog-off", "warn memory.watchdog", "enabled = false"),
];

/// Variants that are other boards, or files in another form, and not broken.
const SOUND: &[&str] = &[
    "agx-negative-rail",
    "conf-before-super-nx",
    "conf-crlf",
    "memory-nvmap",
    "status-jetpack-4",
    "status-missing",
    "yocto",
    "zone-off",
];

/// A board with Orinoco installed: programs and models are made from the words in their files, and rights
/// are set, which git does not keep.
fn board(name: &str) -> Tree {
    let tree = Tree::installed(name);
    let remake = |path: &str, make: fn(&str) -> Vec<u8>| {
        if let Ok(recipe) = fs::read_to_string(tree.path(path)) {
            fs::write(tree.path(path), make(&recipe)).unwrap();
        }
    };
    remake(ENGINE, elf::program);
    remake(MODEL, model);
    let mode = if name == "password-open" {
        0o644
    } else {
        0o600
    };
    if tree.path(PASSWORD).exists() {
        fs::set_permissions(tree.path(PASSWORD), Permissions::from_mode(mode)).unwrap();
    }
    tree
}

const ENGINE: &str = "usr/bin/orinoco-engine";
const MODEL: &str = "var/lib/orinoco/models/tiny.gguf";
const PASSWORD: &str = "etc/orinoco/mqtt.password";

fn model(recipe: &str) -> Vec<u8> {
    let file = gguf::Gguf::good().file();
    match recipe.trim() {
        "cut" => file[..file.len() / 2].to_vec(),
        _ => file,
    }
}

fn examine(tree: &Tree) -> Report {
    doctor::examine(&Question {
        root: Some(tree.path("/")),
        sources: Sources::new(Environment::default()),
        with_digests: false,
        asker: None,
    })
}

/// The report of each board, variant and setup, by name.
static REPORTS: LazyLock<BTreeMap<String, Report>> = LazyLock::new(|| {
    let report = |name: String| (name.clone(), examine(&board(&name)));
    names().into_iter().map(report).collect()
});

/// Boards, variants and setups.
fn names() -> Vec<String> {
    let boards = BOARDS.map(String::from).into_iter();
    boards
        .chain(Tree::variants())
        .chain(Tree::setups())
        .collect()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/doctor/{name}.txt"))
}

#[test]
fn each_board_and_each_variant_has_its_report() {
    let is_writing = std::env::var("ORINOCO_GOLDEN").is_ok_and(|what| what == "write");
    let mut wrong = Vec::new();
    for (name, report) in REPORTS.iter() {
        let report = report.to_string();
        if is_writing {
            fs::write(golden(name), &report).unwrap();
        }
        let expected = fs::read_to_string(golden(name)).unwrap_or_default();
        for (found, expected) in report.lines().zip(expected.lines()) {
            if found != expected {
                wrong.push(format!(
                    "{name}\n  found:    {found}\n  expected: {expected}"
                ));
            }
        }
        if report.lines().count() != expected.lines().count() {
            wrong.push(format!("{name}: another number of lines"));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn no_golden_report_is_left_without_its_board() {
    let names = names();
    let known = |name: &str| names.iter().any(|known| known == name);
    for entry in fs::read_dir(golden("x").parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if let Some(board) = name.strip_suffix(".txt") {
            assert!(known(board), "{name}");
        }
    }
}

#[test]
fn each_broken_variant_has_its_fault_named() {
    for name in Tree::variants().into_iter().chain(Tree::setups()) {
        let faults: Vec<_> = FAULTS.iter().filter(|fault| fault.0 == name).collect();
        assert_eq!(
            faults.is_empty(),
            SOUND.contains(&name.as_str()),
            "{name} stands in exactly one of FAULTS and SOUND"
        );
        let report = &REPORTS[&name];
        for (_, status_and_id, words) in faults {
            let line = report.checks.iter().find(|line| {
                format!("{} {}", line.finding.status.as_str(), line.id) == *status_and_id
            });
            let line = line.unwrap_or_else(|| panic!("{name}: no {status_and_id} in\n{report}"));
            assert!(line.finding.found.contains(words), "{name}: {line:?}");
        }
    }
}

#[test]
fn no_board_and_no_sound_variant_fails() {
    for name in BOARDS.into_iter().chain(SOUND.iter().copied()) {
        let report = &REPORTS[name];
        assert!(!report.has_failed(), "{name}:\n{report}");
    }
}

/// A technician who reads only one line must know what to do.
#[test]
fn whatever_is_not_well_says_what_is_expected_and_what_to_do() {
    for (name, report) in REPORTS.iter() {
        for line in &report.checks {
            let finding = &line.finding;
            let is_well = matches!(finding.status, Status::Ok | Status::Skipped);
            assert_eq!(finding.expected.is_none(), is_well, "{name}: {line:?}");
            assert_eq!(finding.remedy.is_none(), is_well, "{name}: {line:?}");
            assert!(!finding.found.is_empty(), "{name}: {line:?}");
        }
    }
}

#[test]
fn every_check_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
    let page = fs::read_to_string(path).unwrap();
    let listed: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(id, _)| id))
        .filter(|id| id.contains('.'))
        .collect();
    let ids: Vec<&str> = doctor::checks::CHECKS
        .iter()
        .map(|check| check.id)
        .collect();
    assert_eq!(listed, ids);
}

fn orinoco(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_orinoco");
    Command::new(program)
        .env_clear()
        .args(args)
        .output()
        .unwrap()
}

#[test]
fn the_exit_code_says_whether_something_fails() {
    let run = |name: &str| {
        let tree = board(name);
        orinoco(&["doctor", "--root", tree.path("/").to_str().unwrap()])
    };
    let well = run("orin-nano-8gb");
    assert_eq!(well.status.code(), Some(0), "{well:?}");
    let broken = run("gpu-dead");
    assert_eq!(broken.status.code(), Some(1), "{broken:?}");
    let absent = orinoco(&["doctor", "--root", "/nowhere/at/all"]);
    assert_eq!(absent.status.code(), Some(1));
    let said = String::from_utf8(absent.stderr).unwrap();
    assert!(said.contains("/nowhere/at/all"), "{said}");
}

#[test]
fn json_has_the_same_lines() {
    let tree = board("status-lies");
    let report = examine(&tree);
    let output = orinoco(&[
        "doctor",
        "--json",
        "--root",
        tree.path("/").to_str().unwrap(),
    ]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["checks"],
        serde_json::to_value(&report.checks).unwrap()
    );
    assert_eq!(json["status"], "warn");
}

/// The units that are shipped are what the doctor asks for.
#[test]
fn the_units_that_come_with_orinoco_pass() {
    let tree = board("orin-nano-8gb");
    for unit in ["orinoco.service", "orinoco-broker.service"] {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("systemd")
            .join(unit);
        let text = fs::read_to_string(shipped).unwrap();
        tree.write(&format!("/usr/lib/systemd/system/{unit}"), &text);
    }
    tree.write(
        "/etc/orinoco/config.d/50.toml",
        "[broker]\nmode = \"unit\"\n",
    );
    let report = examine(&tree);
    let asked = [
        "service.",
        "gpu.groups",
        "gpu.environment",
        "gpu.jit",
        "config.credentials",
    ];
    let lines = report.checks.iter();
    let lines: Vec<_> = lines
        .filter(|l| asked.iter().any(|id| l.id.starts_with(id)))
        .collect();
    assert_eq!(lines.len(), 8);
    for line in lines {
        assert_eq!(line.finding.status, Status::Ok, "{line:?}");
    }
}

/// A wrong configuration is what somebody asks the doctor about, not a reason to say nothing.
#[test]
fn a_wrong_configuration_is_a_finding() {
    let tree = board("orin-nano-8gb");
    tree.write("/etc/orinoco/config.toml", "[mqtt]\nprot = 1\n");
    let report = examine(&tree);
    let line = report
        .checks
        .iter()
        .find(|line| line.id == "config.valid")
        .unwrap();
    assert_eq!(line.finding.status, Status::Fail);
    assert!(line.finding.found.contains("mqtt.prot"), "{line:?}");
    assert!(
        !report
            .to_string()
            .contains(tree.path("/").to_str().unwrap()),
        "{report}"
    );
}
