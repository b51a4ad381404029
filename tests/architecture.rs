//! The import rules of ARCHITECTURE.md, held by a test: who may name whom, and where each outside crate lives.
//!
//! Comments and string literals are taken out first, so that only code counts. A module or a dependency
//! that is in no table fails the test: whoever adds one decides here what it may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Module of `src/` → the modules that it may name as `crate::…`. The lower ones come first.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("board", &[]),
    ("frames", &[]),
    ("ledger", &["frames"]),
    ("offload", &["frames", "ledger"]),
    ("notify", &[]),
    ("disk", &[]),
    ("kv_file", &["disk", "frames"]),
    ("process", &[]),
    ("secret", &[]),
    ("link", &["secret"]),
    ("runtime_file", &[]),
    ("wire", &["frames", "offload"]),
    ("pressure", &["wire"]),
    ("access", &["wire"]),
    ("users", &["access", "wire"]),
    ("receive", &["frames", "wire"]),
    ("store", &["disk", "wire"]),
    ("contract", &["ota", "wire"]),
    ("config", &["access", "frames", "pressure", "wire"]),
    ("logging", &["config"]),
    ("models", &["config", "disk", "frames", "wire"]),
    ("selection", &["board", "config", "frames"]),
    (
        "broker",
        &["access", "config", "notify", "process", "users", "wire"],
    ),
    // What it starts must fit the board and run where it should: it asks both pure parts.
    (
        "worker",
        &[
            "board", "config", "disk", "frames", "kv_file", "ledger", "offload", "process",
        ],
    ),
    ("telemetry", &["board", "wire"]),
    ("home_assistant", &["wire"]),
    ("top", &["wire"]),
    (
        "governor",
        &[
            "board",
            "config",
            "frames",
            // Which releases there are.
            "models",
            "pressure",
            "selection",
            "wire",
            "worker",
        ],
    ),
    // The signed files are pure and know the board's words; what deploys them is above, and has releases tried
    // by the governor.
    (
        "ota",
        &[
            "board", "config", "disk", "frames", "governor", "models", "worker",
        ],
    ),
    (
        "dispatch",
        &[
            "access",
            "config",
            "frames",
            "governor",
            "home_assistant",
            "ledger",
            "link",
            "models",
            "ota",
            "pressure",
            "store",
            "telemetry",
            "users",
            "wire",
            "worker",
        ],
    ),
    ("daemon", ANY),
    // Starts an engine of its own as the daemon would, and a daemon.
    (
        "bench",
        &[
            "board",
            "config",
            "daemon",
            "frames",
            "link",
            "process",
            "receive",
            "runtime_file",
            "selection",
            "wire",
            "worker",
        ],
    ),
    // Looks at everything that can go wrong, and owns none of it.
    (
        "doctor",
        &[
            "access",
            "board",
            "config",
            "disk",
            "frames",
            "ledger",
            "link",
            "models",
            "ota",
            "runtime_file",
            "secret",
            "users",
            "wire",
            "worker",
        ],
    ),
    ("cli", ANY),
    ("main", ANY),
];

/// Modules and files that take values and return values. Nothing in them opens, waits, logs or asks the time.
const PURE: &[&str] = &[
    "src/access",
    "src/board/caps",
    "src/board/l4t",
    "src/board/nvpmodel/table",
    "src/board/power/cores",
    "src/board/text",
    "src/contract",
    "src/daemon/vigil.rs",
    "src/dispatch/calls.rs",
    "src/dispatch/eta.rs",
    "src/dispatch/pools/policy.rs",
    "src/dispatch/queue",
    "src/dispatch/quotas",
    "src/dispatch/turns/policy",
    "src/doctor/checks",
    "src/doctor/report.rs",
    "src/home_assistant",
    "src/frames.rs",
    "src/kv_file/index.rs",
    "src/ledger",
    "src/offload",
    "src/ota/probe.rs",
    "src/ota/state",
    "src/ota/trust/time.rs",
    "src/ota/catalog.rs",
    "src/ota/error.rs",
    "src/ota/fetch/held.rs",
    "src/ota/fetch/pace.rs",
    "src/ota/fetch/standing.rs",
    "src/ota/manifest",
    "src/ota/name.rs",
    "src/ota/pieces.rs",
    "src/ota/policy.rs",
    "src/ota/reason.rs",
    "src/ota/waves.rs",
    "src/pressure",
    "src/receive",
    "src/selection",
    "src/top",
    "src/wire",
    "engine/src/controls",
    "engine/src/prefix",
    "engine/src/sampling",
    "engine/src/schedule",
    "engine/src/shelf",
    "engine/src/speculation",
    "engine/src/text",
];

/// What a pure file may not name.
const IMPURE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::sync::mpsc",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "tokio",
    "tracing",
];

/// Dependency → the only places that may name it. Each dependency of a package is in here.
const HOMES: &[(&str, &[&str])] = &[
    (
        "anyhow",
        &["ota/src", "src/main", "src/bench", "src/cli", "src/daemon"],
    ),
    ("argon2", &["src/users"]),
    // The publisher makes keys with it; tough brings it along. It is not in the daemon.
    ("aws_lc_rs", &["ota/src/keys.rs", "ota/src/sign.rs"]),
    ("bytes", ANY),
    ("caps", &["engine/src/sandbox"]),
    ("clap", &["ota/src", "src/cli", "src/main.rs"]),
    ("clap_complete", &["src/cli"]),
    (
        "getrandom",
        &[
            "src/bench/client.rs",
            "src/broker",
            "src/cli",
            "src/daemon",
            "src/dispatch",
            "src/doctor/live.rs",
            "src/link",
            "src/ota/fetch.rs",
            "src/users",
        ],
    ),
    ("base64", &["src/ota/stick/key", "src/wire/reply"]),
    ("flate2", &["src/doctor/bundle.rs"]),
    ("hdrhistogram", &["src/bench", "src/dispatch/tele"]),
    // Instants of expiry, as the TUF library has them.
    ("jiff", &["ota/src", "src/ota"]),
    ("indicatif", &["ota/src", "src/cli"]),
    ("landlock", &["engine/src/sandbox"]),
    ("llguidance", &["engine/src/grammar"]),
    ("llama_cpp_2", &["engine/src/llama"]),
    ("llama_cpp_sys_2", &["engine/src/llama"]),
    ("minijinja", &["engine/src/template"]),
    ("minijinja_contrib", &["engine/src/template"]),
    ("mqtt5", &["src/broker"]),
    // The system calls that std has no word for; each in the file of the thing that it acts on.
    (
        "nix",
        &[
            "engine/src",
            "ota/src/export.rs",
            "src/board",
            "src/broker",
            "src/disk",
            "src/doctor/facts/host.rs",
            "src/kv_file/medium.rs",
            "src/logging",
            "src/models",
            "src/ota",
            "src/process",
            "src/store",
            "src/users",
            "src/worker",
        ],
    ),
    // A word that JSON has made ours too, so the text cannot tell them apart; the crate is named in
    // src/doctor/facts/libraries.rs.
    ("object", ANY),
    // Frames, rows of the store, and what a final needs to be said again.
    (
        "postcard",
        &["src/dispatch/job", "src/frames/codec", "src/store"],
    ),
    ("redb", &["src/store"]),
    ("regex_lite", &["src/ota"]),
    ("reqwest", &["src/ota"]),
    // The link names it as the provider of rustls, the trust code by itself.
    ("ring", &["src/link/tls.rs", "src/ota"]),
    ("ratatui", &["src/top", "src/cli"]),
    ("rumqttc", &["src/link"]),
    ("sigstore_crypto", &["src/ota/trust/crypto.rs"]),
    ("sigstore_tuf", &["src/ota/trust"]),
    ("sigstore_types", &["src/ota/trust/crypto.rs"]),
    ("seccompiler", &["engine/src/sandbox"]),
    (
        "schemars",
        &["src/contract", "src/frames.rs", "src/ota", "src/wire"],
    ),
    ("sd_notify", &["src/notify"]),
    ("serde", ANY),
    ("serde_json", ANY),
    ("sha2", ANY),
    ("strsim", &["src/cli", "src/config"]),
    ("tar", &["src/doctor/bundle.rs"]),
    ("tempfile", &["ota/src"]),
    ("thiserror", ANY),
    ("tokio", &["ota/src", "src"]),
    ("tokio_rustls", &["src/link", "src/ota/source/http.rs"]),
    ("toml", &["src/cli", "src/config", "src/ota", "src/users"]),
    ("tough", &["ota/src"]),
    ("tracing", ANY),
    ("tracing_journald", &["src/logging"]),
    ("tracing_subscriber", &["engine/src/worker", "src/logging"]),
    // Our own library, in the worker (the frames and the preflight, see the test of its own) and in the publisher.
    ("orinoco", &["engine/src", "ota/src", "src/main.rs"]),
    ("url", &["ota/src"]),
    // The crate `config` has the name of our own module, so the text cannot tell them apart; it is named
    // in src/config/layers.rs.
    ("config", ANY),
];

const ANY: &[&str] = &["*"];

#[test]
fn modules_import_only_what_the_architecture_allows() {
    let mut broken = Vec::new();
    for source in sources("src") {
        let module = source.module();
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            if module != "lib" {
                broken.push(format!(
                    "{source}: module {module} has no row in MAY_IMPORT"
                ));
            }
            continue;
        };
        let known = MAY_IMPORT.iter().map(|(name, _)| *name);
        for named in known.filter(|named| *named != module && *allowed != ANY) {
            if source.imports(named) && !allowed.contains(&named) {
                broken.push(format!("{source}: {module} may not import {named}"));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn each_dependency_is_named_at_home_only() {
    let mut broken = Vec::new();
    for (manifest, dir) in [
        ("Cargo.toml", "src"),
        ("engine/Cargo.toml", "engine/src"),
        ("ota/Cargo.toml", "ota/src"),
    ] {
        let sources = sources(dir);
        for name in dependencies(manifest) {
            let Some((_, homes)) = HOMES.iter().find(|(known, _)| *known == name) else {
                broken.push(format!("{manifest}: {name} has no row in HOMES"));
                continue;
            };
            for source in sources.iter().filter(|source| !source.is_test()) {
                if source.names(&name) && *homes != ANY && !source.is_in(homes) {
                    broken.push(format!("{source}: {name} belongs in {}", homes.join(", ")));
                }
            }
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn pure_files_do_no_input_or_output() {
    let mut broken = Vec::new();
    for source in sources("src").iter().chain(&sources("engine/src")) {
        if !source.is_in(PURE) || source.is_test() {
            continue;
        }
        for impure in IMPURE.iter().filter(|impure| source.names(impure)) {
            broken.push(format!("{source}: pure, and names {impure}"));
        }
    }
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn worker_knows_nothing_of_the_daemon_but_its_frames_and_the_preflight() {
    let broken: Vec<String> = sources("engine/src")
        .iter()
        .filter(|source| {
            let allowed = [
                "orinoco::frames",
                "orinoco::kv_file",
                "orinoco::models::gguf",
            ];
            let rest = allowed
                .iter()
                .fold(source.code.clone(), |code, name| code.replace(name, ""));
            mentions(&rest, "orinoco::")
        })
        .map(|source| format!("{source}: names more of orinoco than its frames and the preflight"))
        .collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

/// `orinoco doctor` must start where CUDA or llama.cpp is broken.
#[test]
fn daemon_needs_neither_llama_nor_cuda() {
    let output = Command::new("readelf")
        .args(["-d", env!("CARGO_BIN_EXE_orinoco")])
        .output()
        .expect("readelf comes with binutils: apt install binutils");
    let text = String::from_utf8(output.stdout).unwrap();
    let needed: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .collect();
    assert!(
        needed.iter().any(|line| line.contains("libc.so")),
        "no libc among the needed libraries, so readelf was misread:\n{text}"
    );
    for word in [
        "llama", "ggml", "cuda", "cublas", "nvidia", "nvrm", "stdc++", "gomp",
    ] {
        assert!(
            !needed.iter().any(|line| line.contains(word)),
            "{word} in {needed:?}"
        );
    }
}

/// A signed model may ask for a newer llama.cpp, and no program of ours can ask the crate which one it carries.
#[test]
fn build_of_llama_that_models_are_told_is_that_of_the_crate() {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock"))
        .unwrap()
        .parse()
        .unwrap();
    let packages = lock["package"].as_array().unwrap();
    let crate_of_llama = packages
        .iter()
        .find(|package| package["name"].as_str() == Some("llama-cpp-sys-2"))
        .unwrap();
    assert_eq!(
        (
            crate_of_llama["version"].as_str(),
            orinoco::ota::ENGINE_BUILD
        ),
        (Some("0.1.161"), 11434),
        "the crate changed: look up the build of its llama.cpp, and say it here and in src/ota.rs"
    );
}

/// The same for what is linked statically: the lock file's closure of the package.
#[test]
fn daemon_depends_on_neither_llama_nor_the_worker() {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock"))
        .unwrap()
        .parse()
        .unwrap();
    let mut below: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let listed = package.get("dependencies").and_then(|list| list.as_array());
        let dependencies = listed.into_iter().flatten().map(|dependency| {
            // "name", or "name version" where there are several.
            dependency
                .as_str()
                .unwrap()
                .split(' ')
                .next()
                .expect("never empty")
        });
        below
            .entry(package["name"].as_str().unwrap())
            .or_default()
            .extend(dependencies);
    }
    let closure = |top: &'static str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![top]);
        while let Some(name) = open.pop() {
            if seen.insert(name) {
                open.extend(&below[name]);
            }
        }
        seen
    };
    let is_engine = |name: &&&str| name.starts_with("llama-cpp") || **name == "orinoco-engine";
    assert_eq!(closure("orinoco").iter().find(is_engine), None);
    assert!(
        closure("orinoco-engine")
            .iter()
            .any(|name| is_engine(&name)),
        "llama-cpp is not among the worker's dependencies, so the lock file was misread"
    );
}

/// One file of Rust, without comments and literals.
struct Source {
    /// Relative to the repository.
    path: String,
    code: String,
}

impl Source {
    /// First part of the path below `src/`: `link` of `src/link/session.rs` and of `src/link.rs`.
    fn module(&self) -> &str {
        let file = self.path.strip_prefix("src/").unwrap_or(&self.path);
        file.split(['/', '.'])
            .next()
            .expect("split gives at least one part")
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| {
            self.path
                .strip_prefix(place)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
        })
    }

    fn is_test(&self) -> bool {
        self.path.ends_with("tests.rs") || self.path.contains("/tests/")
    }

    fn names(&self, name: &str) -> bool {
        mentions(&self.code, name)
    }

    /// `crate::name`, alone or in a group: `use crate::{frames, wire::topic}`. In a file right below
    /// `src/`, `super` is the crate as well; in main.rs it is `orinoco`.
    fn imports(&self, name: &str) -> bool {
        let is_top = self.path.matches('/').count() == 1;
        let roots: &[&str] = match is_top {
            true => &["crate::", "orinoco::", "super::"],
            false => &["crate::", "orinoco::", "super::super::"],
        };
        roots.iter().any(|root| {
            self.code.match_indices(root).any(|(at, _)| {
                let rest = &self.code[at + root.len()..];
                match rest.strip_prefix('{') {
                    Some(group) => group_heads(group).contains(&name),
                    None => leading_word(rest) == name,
                }
            })
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)
    }
}

/// Whether the path `name` stands in `code` as whole words.
fn mentions(code: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let after = &code[at + name.len()..];
        !code[..at].ends_with(is_word) && (name.ends_with("::") || !after.starts_with(is_word))
    })
}

fn leading_word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// First words of the entries of a `use` group, from behind its opening brace.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut heads, mut depth, mut is_entry) = (Vec::new(), 1, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => is_entry = true,
            c if is_entry && !c.is_whitespace() => {
                heads.push(leading_word(&group[at..]));
                is_entry = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

/// The code without comments and without what stands in string and character literals.
fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string_start(rest).filter(|_| !ends_in_word(&code)) {
            let close = format!("\"{}", "#".repeat(hashes));
            let open = 1 + hashes + 1;
            rest[open..]
                .find(&close)
                .map_or(rest.len(), |end| open + end + close.len())
        } else if c == '"' {
            string_len(rest)
        } else if c == '\'' {
            char_len(rest)
        } else {
            0
        };
        match skipped {
            0 => {
                code.push(c);
                rest = &rest[c.len_utf8()..];
            }
            n => {
                code.push(' ');
                rest = &rest[n..];
            }
        }
    }
    code
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Number of hashes of a raw string that begins here.
fn raw_string_start(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

fn string_len(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Length of a character literal; 0 for a lifetime.
fn char_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[3..].find('\'').map_or(0, |end| 3 + end + 1),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 0,
        },
        None => 0,
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(dir)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .expect("readable folder")
                    .map(|entry| entry.expect("readable folder").path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root()).expect("below the root");
            found.push(Source {
                path: relative.to_str().expect("paths here are UTF-8").to_owned(),
                code: code_only(&fs::read_to_string(&path).expect("UTF-8")),
            });
        }
    }
    assert!(!found.is_empty(), "no Rust files below {dir}");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Names of the dependencies as code writes them. Those for tests and build scripts are left out.
fn dependencies(manifest: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(manifest)).expect("manifest");
    let table: toml::Table = text.parse().expect("TOML");
    let Some(dependencies) = table.get("dependencies") else {
        return Vec::new();
    };
    dependencies
        .as_table()
        .expect("dependencies are a table")
        .keys()
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// The reading of code, on made-up pieces: a rule that cannot fail holds nothing.
mod reading {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            code: code_only(text),
        }
    }

    #[test]
    fn imports_are_found_alone_in_groups_and_inline() {
        for text in [
            "use crate::link::Link;",
            "use crate::{\n    frames::Job,\n    link::{Link, Props},\n};",
            "fn f() { crate::link::spawn(); }",
            "pub(crate) use crate::link;",
        ] {
            assert!(source("src/store/disk.rs", text).imports("link"), "{text}");
        }
        let inner = "use crate::{wire::{link, topic}, frames};";
        assert!(!source("src/store.rs", inner).imports("link"));
        assert!(source("src/store.rs", "use super::link;").imports("link"));
        assert!(!source("src/store/disk.rs", "use super::link;").imports("link"));
        assert!(source("src/main.rs", "use orinoco::link;").imports("link"));
    }

    #[test]
    fn comments_and_literals_do_not_count() {
        for text in [
            "// use crate::link;",
            "/// [`crate::link::Link`]\nfn f() {}",
            "/* crate::link */",
            r#"let s = "crate::link \" crate::link";"#,
            "let s = r#\"crate::link \" crate::link\"#;",
            "let c = ['\"', '\\'', '\\u{22}']; let s = \"crate::link\";",
        ] {
            assert!(!source("src/store.rs", text).imports("link"), "{text}");
        }
        let code = "fn f<'a>(x: &'a str) { let q = '\"'; crate::link::g(x) } // \"";
        assert!(source("src/store.rs", code).imports("link"));
    }

    #[test]
    fn names_are_whole_words() {
        assert!(source("src/a.rs", "use redb::Database;").names("redb"));
        assert!(!source("src/a.rs", "let predb = my_redb;").names("redb"));
        assert!(!source("src/a.rs", "use clap_complete::Shell;").names("clap"));
    }

    #[test]
    fn places_are_whole_parts_of_paths() {
        assert!(source("src/link.rs", "").is_in(&["src/link"]));
        assert!(source("src/link/poll.rs", "").is_in(&["src/link"]));
        assert!(!source("src/linker.rs", "").is_in(&["src/link"]));
    }
}
