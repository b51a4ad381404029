//! What an operator does and sees: the README as written, other readers of TUF, and a fleet behind a real broker.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and the fleet tells its figures"
)]

#[path = "operator/crash.rs"]
mod crash;
#[path = "operator/device.rs"]
mod device;
#[path = "operator/fleet.rs"]
mod fleet;
#[path = "../../tests/support/mirror.rs"]
mod mirror;
#[path = "../../tests/support/ports.rs"]
mod ports;

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use orinoco::ota::catalog::Catalog;
use orinoco::ota::manifest::Manifest;
use orinoco::ota::source::{Source, Terms};
use orinoco::ota::trust::{Client, Place, Trust as _, TrustedNow};
use orinoco::ota::{LineName, TargetName};
use orinoco_ota::{example, time};

pub(crate) fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A device's own client, with what it was provisioned with.
pub(crate) fn trust(folder: &Path, root: &Path) -> Client {
    Client::open(Place {
        folder: folder.to_owned(),
        root: fs::read(root).unwrap(),
    })
    .unwrap()
}

pub(crate) fn now() -> TrustedNow {
    TrustedNow::exactly(u64::try_from(time::now().as_second()).unwrap())
}

#[test]
fn readme_takes_an_operator_from_nothing_to_a_fleet_update_and_out_of_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let model = top().join("models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        model.exists(),
        "{}: scripts/fetch-models.sh",
        model.display()
    );
    for name in ["smol.gguf", "smol-2.gguf"] {
        symlink(model.canonicalize().unwrap(), dir.path().join(name)).unwrap();
    }
    let bin = Path::new(env!("CARGO_BIN_EXE_orinoco-ota"))
        .parent()
        .unwrap();
    let path = format!("{}:{}", bin.display(), env::var("PATH").unwrap());
    let readme = fs::read_to_string(top().join("ota/README.md")).unwrap();
    let blocks: Vec<&str> = readme
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(blocks.len() >= 10, "{} blocks", blocks.len());
    for block in blocks {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(dir.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{block}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // And a device that was provisioned at the beginning believes the end of it.
    let repo = dir.path().join("repo");
    let mut client = trust(
        &dir.path().join("trust"),
        &repo.join("metadata/1.root.json"),
    );
    let mut source = Source::at(repo.to_str().unwrap(), &Terms::default()).unwrap();
    assert_eq!(client.refresh(&mut source, now()).unwrap().root, 3);
}

#[test]
fn device_reads_catalogue_manifest_and_pieces_of_what_we_publish() {
    let dir = tempfile::tempdir().unwrap();
    let repository = example::make(dir.path(), time::now()).unwrap();
    let repo = repository.dir();
    let mut client = trust(
        &dir.path().join("trust"),
        &repo.join("metadata/1.root.json"),
    );
    let mut source = Source::at(repo.to_str().unwrap(), &Terms::default()).unwrap();
    client.refresh(&mut source, now()).unwrap();
    let mut read = |name: &TargetName| {
        let target = client.target(name, now()).unwrap().unwrap();
        let file = format!("targets/{}", name.file_name(&target.digest));
        let bytes = source.get(&file, target.bytes).unwrap().unwrap();
        assert_eq!(orinoco::ota::Digest::of(&bytes), target.digest);
        bytes
    };
    let catalog = Catalog::parse(&read(&TargetName::catalog())).unwrap();
    let line = catalog.line(&LineName::new("tiny").unwrap()).unwrap();
    let best = line.best("hall2", Some(1)).unwrap();
    assert_eq!(best.release_seq, 2);
    let manifest = Manifest::parse(&read(&best.manifest_target())).unwrap();
    let weights = manifest.weights();
    assert_eq!(
        read(&weights.pieces_target).len() as u64,
        weights.table_bytes()
    );
}

#[test]
fn repository_of_ours_is_read_by_python_tuf_after_all_keys_were_replaced() {
    let dir = tempfile::tempdir().unwrap();
    example::make(dir.path(), time::now()).unwrap();
    let ours = |args: &[&str]| {
        let status = Command::new(env!("CARGO_BIN_EXE_orinoco-ota"))
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{args:?}: {status:?}");
    };
    for role in ["online", "targets", "root"] {
        ours(&["rotate", "repo", "--role", role, "--new-keys", "keys"]);
        ours(&["sign", "repo", "--keys", "keys"]);
    }
    let mut python = Command::new("python3");
    if env::var_os("PYTHONPATH").is_none() {
        python.env("PYTHONPATH", top().join("target/test-deps/python"));
    }
    let read = python
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(top().join("tests/interop/tuf_client.py"))
        .arg(dir.path().join("repo"))
        .args([
            "catalog.json",
            "tiny-2.manifest.json",
            "tiny-2.pieces",
            "tiny-2.gguf",
        ])
        .output()
        .expect("python3 runs");
    let (out, err) = (
        String::from_utf8_lossy(&read.stdout),
        String::from_utf8_lossy(&read.stderr),
    );
    assert!(
        read.status.success(),
        "python-tuf is installed by scripts/test.sh\n{err}"
    );
    assert_eq!(out.trim(), "root 4, 4 targets", "{err}");
}
