//! The support archive: what is in it, and above all what is not.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use orinoco::config::{Environment, Sources};
use orinoco::doctor::{self, Question, Report};

use crate::support::daemon::{Engine, Site};
use crate::{board, orinoco};

/// Stands wherever something private is planted.
const PRIVATE: &str = "hunter2";

/// Files of an archive by name, below its one top directory.
fn unpacked(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (
            name.strip_prefix("orinoco-support/").unwrap().to_owned(),
            bytes,
        )
    });
    files.collect()
}

#[track_caller]
fn assert_nothing_private(files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        let text = String::from_utf8_lossy(bytes);
        assert!(!text.contains(PRIVATE), "{name}:\n{text}");
    }
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Secrets and prompts everywhere where a board has them: state directory, credentials, configuration,
/// unit, environment, journal.
#[test]
fn no_prompt_no_answer_and_no_secret_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::with_broker_on(1, Engine::Scripted)
        .set("mqtt.username=daemon")
        .set(format!(
            "mqtt.password_file={}",
            dir.path().join("password").display()
        ))
        .set(format!("defaults.system_prompt=You are {PRIVATE}."))
        .set(format!("users.ann.system_prompt=You are {PRIVATE}."));
    write(dir.path().join("password"), PRIVATE);
    fs::set_permissions(dir.path().join("password"), Permissions::from_mode(0o600)).unwrap();
    let state = site.dir.path().join("state");
    for name in [
        "jobs/jobs.redb",
        "users.toml",
        "prompts.log",
        "broker/retained.json",
        "etc/x",
    ] {
        write(state.join(name), PRIVATE);
    }
    // A journal with prompts at the level trace, as lines and as an entry with fields.
    let entry = |transport: &str, message: &str| {
        serde_json::json!({
            "MESSAGE": message, "_TRANSPORT": transport, "__REALTIME_TIMESTAMP": "1700000000000001",
            "F_PROMPT": PRIVATE,
        })
    };
    let journal = [
        entry("journal", "model loaded"),
        entry(
            "stdout",
            &format!("2026-01-01T00:00:00Z TRACE orinoco: prompt {PRIVATE}"),
        ),
        entry("stdout", &format!("{PRIVATE} is the second line of it")),
    ];
    let journal: Vec<String> = journal.iter().map(ToString::to_string).collect();
    let program = dir.path().join("journalctl");
    write(
        program.clone(),
        &format!("#!/bin/sh\ncat <<'END'\n{}\nEND\n", journal.join("\n")),
    );
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();

    let path = dir.path().join("support.tar.gz");
    let path_list = format!("{}:/usr/bin:/bin", dir.path().display());
    let output = site
        .command(&["doctor", "--bundle", path.to_str().unwrap()])
        .env("PATH", path_list)
        .env("MQTT_TOKEN", PRIVATE)
        .env("ORINOCO_PRIVATE", PRIVATE)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("support.tar.gz written"), "{said}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

    let files = unpacked(&path);
    assert_nothing_private(&files);
    let text = |name: &str| String::from_utf8(files[name].clone()).unwrap();
    assert_eq!(text("report.txt").as_bytes(), output.stdout);
    assert!(
        text("log.txt").contains("model loaded"),
        "{}",
        text("log.txt")
    );
    let config = text("config.toml");
    assert!(
        config.contains("system_prompt = \"(left out)\""),
        "{config}"
    );
    assert!(config.contains("password_file = \"/"), "{config}");
    assert!(
        text("versions.txt").contains("orinoco-engine"),
        "{}",
        text("versions.txt")
    );
    assert!(files.contains_key("tree/proc/meminfo"));
    for name in files.keys() {
        let known = ["report.", "versions.txt", "config.toml", "log.txt", "tree/"];
        assert!(known.iter().any(|start| name.starts_with(start)), "{name}");
    }
}

/// People write passwords where the path of a file belongs, and then ask for help.
#[test]
fn a_password_in_the_wrong_place_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    for (n, text) in [
        format!("[mqtt]\npassword_file = \"{PRIVATE}\"\n"),
        format!("[mqtt]\npassword = \"{PRIVATE}\"\n"),
        format!("[mqtt]\npassword = \"{PRIVATE}\n"),
        format!("[defaults]\nsystem_prompt = [\"{PRIVATE}\"]\n"),
    ]
    .iter()
    .enumerate()
    {
        let tree = board("orin-nano-8gb");
        tree.write("/etc/orinoco/config.d/10.toml", text);
        let path = dir.path().join(format!("{n}.tar.gz"));
        let root = tree.path("/");
        let output = orinoco(&[
            "doctor",
            "--root",
            root.to_str().unwrap(),
            "--bundle",
            path.to_str().unwrap(),
        ]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("config.valid"), "{said}");
        assert!(!said.contains(PRIVATE), "{said}");
        assert_nothing_private(&unpacked(&path));
    }
}

#[test]
fn units_are_left_out_as_their_environment_may_hold_anything() {
    let tree = board("orin-nano-8gb");
    let unit = format!(
        "[Service]\nEnvironment=TOKEN={PRIVATE} LD_LIBRARY_PATH=/opt/x\nSetCredential=a:{PRIVATE}\n"
    );
    tree.write("/etc/systemd/system/orinoco.service.d/10.conf", &unit);
    tree.write("/var/lib/orinoco/prompts", PRIVATE);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar.gz");
    let root = tree.path("/");
    orinoco(&[
        "doctor",
        "--root",
        root.to_str().unwrap(),
        "--bundle",
        path.to_str().unwrap(),
    ]);
    assert_nothing_private(&unpacked(&path));
}

#[test]
fn nothing_is_overwritten() {
    let tree = board("orin-nano-8gb");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar.gz");
    fs::write(&path, "mine").unwrap();
    let root = tree.path("/");
    let arguments = [
        "doctor",
        "--root",
        root.to_str().unwrap(),
        "--bundle",
        path.to_str().unwrap(),
    ];
    let output = orinoco(&arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing is overwritten"));
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

/// Whoever gets the archive can ask the doctor again, and hears the same about the board.
#[test]
fn the_tree_in_it_is_examined_as_the_board_itself() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "orin-nx-16gb",
        "status-lies",
        "heat-throttled",
        "supply-weak",
        "l4t-newer",
    ] {
        let tree = board(name);
        let question = |root: PathBuf| Question {
            root: Some(root),
            sources: Sources::new(Environment::default()),
            with_digests: false,
            asker: None,
        };
        let asked = question(tree.path("/"));
        let facts = doctor::gather(&asked);
        let report = doctor::judge(&facts);
        let path = dir.path().join(format!("{name}.tar.gz"));
        doctor::bundle::write(&path, &asked.root(), &facts, &report).unwrap();
        let again = dir.path().join(name);
        for (file, bytes) in unpacked(&path) {
            let path = again.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let again = doctor::examine(&question(again.join("tree")));
        let of_board = |report: &Report| -> Vec<String> {
            let starts = [
                "board.",
                "power.",
                "heat.",
                "memory.",
                "gpu.clocks",
                "system.clock",
            ];
            let lines = report.checks.iter();
            let lines = lines.filter(|line| starts.iter().any(|start| line.id.starts_with(start)));
            lines.map(|line| format!("{line:?}")).collect()
        };
        // Control groups are of processes, and not in the archive.
        let differ = |id: &str| !id.contains("memory.cgroup") && !id.contains("board.container");
        let [before, after] = [&report, &again].map(|report| {
            let mut lines = of_board(report);
            lines.retain(|line| differ(line));
            lines
        });
        assert_eq!(before, after, "{name}");
    }
}
