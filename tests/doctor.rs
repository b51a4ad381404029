//! `orinoco doctor` on boards as trees: what it says about each, and what it makes of what is broken.
//!
//! `tests/doctor/NAME.txt` is the whole report of each board and variant. `ORINOCO_GOLDEN=write` writes them
//! anew, to be read before they are committed; the table [`FAULTS`] stays, so that no fault is lost then.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

fn examine(tree: &Tree) -> Report {
    doctor::examine(&Question {
        root: Some(tree.path("/")),
        sources: Sources::new(Environment::default()),
    })
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/doctor/{name}.txt"))
}

#[test]
fn each_board_and_each_variant_has_its_report() {
    let is_writing = std::env::var("ORINOCO_GOLDEN").is_ok_and(|what| what == "write");
    let variants = Tree::variants();
    let mut wrong = Vec::new();
    for name in BOARDS
        .into_iter()
        .chain(variants.iter().map(String::as_str))
    {
        let report = examine(&Tree::new(name)).to_string();
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
    let variants = Tree::variants();
    let known = |name: &str| BOARDS.contains(&name) || variants.iter().any(|v| v == name);
    for entry in fs::read_dir(golden("x").parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known(name.trim_end_matches(".txt")), "{name}");
    }
}

#[test]
fn each_broken_variant_has_its_fault_named() {
    for name in Tree::variants() {
        let faults: Vec<_> = FAULTS.iter().filter(|fault| fault.0 == name).collect();
        assert_eq!(
            faults.is_empty(),
            SOUND.contains(&name.as_str()),
            "{name} stands in exactly one of FAULTS and SOUND"
        );
        let report = examine(&Tree::new(&name));
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
        let report = examine(&Tree::new(name));
        assert!(!report.has_failed(), "{name}:\n{report}");
    }
}

/// A technician who reads only one line must know what to do.
#[test]
fn whatever_is_not_well_says_what_is_expected_and_what_to_do() {
    for name in Tree::variants() {
        for line in examine(&Tree::new(&name)).checks {
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
        let tree = Tree::new(name);
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
    let tree = Tree::new("status-lies");
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
    assert_eq!(json["checks"][8]["id"], "power.clocks");
}

/// A wrong configuration is what somebody asks the doctor about, not a reason to say nothing.
#[test]
fn a_wrong_configuration_is_a_finding() {
    let tree = Tree::new("orin-nano-8gb");
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
