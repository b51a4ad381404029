//! A stick that a stranger has filled: names of files on it, one a line. It has links that lead out of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::OnceLock;

use orinoco::ota::source::{Source, Terms};
use orinoco::ota::stick::Request;
use orinoco::ota::{Digest, GroupName, LineName, ModelId, TargetName};

const SECRET: &[u8] = b"what lies beside the stick";

/// A stick beside a secret.
fn stick() -> &'static PathBuf {
    static STICK: OnceLock<PathBuf> = OnceLock::new();
    STICK.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("orinoco-fuzz-stick-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let stick = dir.join("stick");
        for folder in ["metadata", "targets"] {
            fs::create_dir_all(stick.join(folder)).expect("a folder");
            symlink("../../secret", stick.join(folder).join("a")).expect("a link");
            symlink(dir.join("secret"), stick.join(folder).join("b")).expect("a link");
            symlink("..", stick.join(folder).join("c")).expect("a link");
            fs::write(stick.join(folder).join("d"), b"its own").expect("a file");
        }
        fs::write(dir.join("secret"), SECRET).expect("a file");
        dir
    })
}

/// No name reads what is not on the stick; none that is taken is a path; a request that is left is whole or none.
pub fn check(data: &[u8]) {
    let dir = stick();
    let root = dir.join("stick");
    let root = root.to_str().expect("it is made of a number");
    let mut source = Source::at(root, &Terms::default()).expect("an absolute path");
    let text = String::from_utf8_lossy(data);
    for name in text.lines().take(64) {
        for file in [
            name.to_owned(),
            format!("metadata/{name}"),
            format!("targets/{name}"),
        ] {
            match source.get(&file, 100) {
                Ok(Some(bytes)) => assert_eq!(bytes, b"its own", "{file:?}"),
                Ok(None) => {}
                Err(error) => assert!(error.to_string().len() < 2048, "{file:?}"),
            }
        }
        let is_plain =
            |text: &str| !text.contains(['/', '\\', '\0', ' ']) && !text.starts_with('.');
        if let Ok(name) = TargetName::new(name) {
            assert!(is_plain(name.as_str()) && name.as_str().len() <= 100);
            assert!(is_plain(&name.file_name(&Digest::of(data))));
        }
        assert!(ModelId::new(name).is_err() || is_plain(name));
        assert!(LineName::new(name).is_err() || is_plain(name));
        assert!(GroupName::new(name).is_err() || is_plain(name));
        if let Ok(digest) = Digest::from_hex(name) {
            assert_eq!(digest.to_string(), name);
        }
    }
    let left = dir.join("left");
    fs::create_dir_all(&left).expect("a folder");
    fs::write(left.join("apply.json"), data).expect("a file");
    if let Ok(Some(request)) = Request::take(&left) {
        assert!(request.path.is_absolute());
    }
    assert!(!Request::is_waiting(&left), "taken or dropped");
}
