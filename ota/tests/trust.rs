//! Repositories of three makers, read by three verifiers; and attacks, judged by two of them.
//!
//! The device's own client is held against `tough`, whose parsers, canonical form and cryptography are others.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

#[path = "trust/attacks.rs"]
mod attacks;
#[path = "trust/differential.rs"]
mod differential;
#[path = "../../src/ota/trust/tests/repository.rs"]
mod repository;
#[path = "trust/verifiers.rs"]
mod verifiers;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use orinoco::ota::source::{Source, Terms};
use orinoco::ota::trust::{Client, MetadataSource, Place, Trust as _, TrustedNow, read_target};
use orinoco::ota::{Digest, TargetName};

use verifiers::Verifiers;

/// What the maker of repositories takes from the crate that it was written for.
mod ota {
    pub(crate) use orinoco::ota::Digest;
    pub(crate) use orinoco::ota::trust;
}

/// The test programs for Python, as scripts/test.sh installs them.
fn python() -> Command {
    let mut python = Command::new("python3");
    if env::var_os("PYTHONPATH").is_none() {
        python.env("PYTHONPATH", top().join("target/test-deps/python"));
    }
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn now() -> TrustedNow {
    let since_1970 = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    TrustedNow::exactly(since_1970.as_secs())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn repositories_made_by_python_tuf_are_read_by_the_device_and_by_tough() {
    for kind in ["ed25519", "ecdsa", "rsa"] {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let made = python()
            .arg(top().join("tests/interop/tuf_repository.py"))
            .args([text(&tree), kind])
            .status()
            .expect("python3 runs");
        assert!(
            made.success(),
            "{kind}: python-tuf is installed by scripts/test.sh"
        );

        let mut source = Source::at(text(&tree), &Terms::default()).unwrap();
        let root = fs::read(tree.join("root.json")).unwrap();
        let mut client = Client::open(Place {
            folder: dir.path().join("trust"),
            root: root.clone(),
        })
        .unwrap();
        let versions = client.refresh(&mut source, now()).unwrap();
        assert_eq!(
            versions.to_string(),
            "root 2, timestamp 2, snapshot 2, targets 2",
            "{kind}"
        );
        for (name, content) in [
            ("catalog.json", b"{\"schema\":1}".to_vec()),
            ("small.gguf", b"GGUF".repeat(1000)),
        ] {
            let name = TargetName::new(name).unwrap();
            let info = client.target(&name, now()).unwrap().unwrap();
            let read = read_target(&mut source, &name, &info, 10_000).unwrap();
            assert_eq!(read, content, "{kind}");
        }
        let standing = client.standing(now()).unwrap();
        assert_eq!(
            standing.age_days,
            Some(0),
            "{kind}: the signed time is read"
        );

        let tough = Verifiers::of_tree(&root, &tree).tough().unwrap();
        assert_eq!(tough.targets["catalog.json"], Digest::of(b"{\"schema\":1}"));
    }
}

#[test]
fn a_tree_without_metadata_is_not_a_repository() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Source::at(text(dir.path()), &Terms::default()).unwrap();
    let found = MetadataSource::get(&mut source, "metadata/timestamp.json", 1000);
    assert!(matches!(found, Ok(None)));
}
