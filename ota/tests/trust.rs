//! Repositories of three makers, read by three verifiers; and attacks, judged by two of them.
//!
//! The device's own client is held against `tough`, whose parsers, canonical form and cryptography are others.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and says what it saw; a server that drips has to wait"
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
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use orinoco::ota::source::{Source, Terms};
use orinoco::ota::trust::{Client, Place, Trust as _, TrustedNow, read_target};
use orinoco::ota::{Digest, Reason, TargetName};
use orinoco_ota::root::{Ceremony, init};
use orinoco_ota::time;
use tough::editor::RepositoryEditor;
use tough::editor::signed::PathExists;
use tough::key_source::{KeySource, LocalKeySource};

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

/// tuftool is a command line over this editor and adds nothing to the files.
#[test]
fn a_repository_made_by_the_editor_of_tuftool_is_read_by_the_device_and_by_python_tuf() {
    let dir = tempfile::tempdir().unwrap();
    let [keys, files, tree] = ["keys", "files", "tree"].map(|name| dir.path().join(name));
    let ceremony = Ceremony {
        now: time::now(),
        ..Ceremony::default()
    };
    let made = init(&dir.path().join("made"), &keys, ceremony).unwrap();
    let root = made.metadata_dir().join("1.root.json");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("catalog.json"), b"{\"schema\":1}").unwrap();
    fs::write(files.join("small.gguf"), b"GGUF".repeat(1000)).unwrap();
    let keys: Vec<Box<dyn KeySource>> = fs::read_dir(keys)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "p8"))
        .map(|path| Box::new(LocalKeySource { path }) as Box<dyn KeySource>)
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut editor = RepositoryEditor::new(&root).await.unwrap();
        let (expires, version) = (time::days_after(time::now(), 90).unwrap(), NonZeroU64::MIN);
        editor.targets_version(version).unwrap();
        editor.targets_expires(expires).unwrap();
        editor.snapshot_version(version).snapshot_expires(expires);
        editor.timestamp_version(version).timestamp_expires(expires);
        for name in ["catalog.json", "small.gguf"] {
            editor.add_target_path(files.join(name)).await.unwrap();
        }
        let signed = editor.sign(&keys).await.unwrap();
        signed.write(tree.join("metadata")).await.unwrap();
        let targets = tree.join("targets");
        signed
            .copy_targets(&files, targets, PathExists::Fail)
            .await
            .unwrap();
    });

    let mut source = Source::at(text(&tree), &Terms::default()).unwrap();
    let mut client = Client::open(Place {
        folder: dir.path().join("trust"),
        root: fs::read(&root).unwrap(),
    })
    .unwrap();
    client.refresh(&mut source, now()).unwrap();
    let name = TargetName::new("small.gguf").unwrap();
    let info = client.target(&name, now()).unwrap().unwrap();
    let read = read_target(&mut source, &name, &info, 10_000).unwrap();
    assert_eq!(read, b"GGUF".repeat(1000));
    let read = python()
        .arg(top().join("tests/interop/tuf_client.py"))
        .args([text(&tree), "catalog.json", "small.gguf"])
        .output()
        .expect("python3 runs");
    let words = String::from_utf8_lossy(&read.stdout).into_owned();
    assert_eq!(
        words.trim(),
        "root 1, 2 targets",
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
}

#[test]
fn a_server_that_drips_metadata_is_given_up() {
    let repository = repository::Repository::new();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", server.local_addr().unwrap());
    thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let n_bytes = stream.read(&mut request).unwrap();
            if request[..n_bytes].starts_with(b"GET /metadata/timestamp.json") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
                while stream.write_all(b" ").is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
                return;
            }
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let terms = Terms {
        stall_timeout: Duration::from_millis(400),
        ..Terms::default()
    };
    let mut source = Source::at(&address, &terms).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut client = Client::open(Place {
        folder: dir.path().into(),
        root: repository.shipped_root(),
    })
    .unwrap();
    let began = Instant::now();
    let refused = client.refresh(&mut source, now()).unwrap_err();
    assert_eq!(refused.reason(), Reason::Stalled, "{refused}");
    assert!(
        began.elapsed() < Duration::from_secs(40),
        "{:?}",
        began.elapsed()
    );
}
