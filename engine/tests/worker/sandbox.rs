//! What a worker that was taken over gets, with the sandbox of the product: each attempt is real, and the
//! same attempts succeed without it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process};

use orinoco::frames::{LoadSpec, Sandbox, SandboxSpec};
use orinoco_engine::scripted;

use crate::common::{SMOLLM, Worker, chat, real_spec};

/// Things to attack: files, services, and a process of the same user.
struct Victims {
    dir: tempfile::TempDir,
    tcp: TcpListener,
    _unix: UnixListener,
    process: Child,
}

impl Victims {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["model.gguf", "store.redb", "script"] {
            std::fs::write(dir.path().join(name), "#!/bin/true\n").unwrap();
        }
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            _unix: UnixListener::bind(dir.path().join("service")).unwrap(),
            process: Process::new("sleep").arg("600").spawn().unwrap(),
            dir,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, sandbox: Option<SandboxSpec>) -> LoadSpec {
        LoadSpec {
            path: self.at("model.gguf"),
            sandbox,
            ..scripted::load_spec()
        }
    }

    /// Every attempt with its target. Those that destroy something come last.
    fn attempts(&self) -> Vec<(&'static str, String)> {
        let at = |name: &str| self.at(name).display().to_string();
        let pid = self.process.id();
        vec![
            ("connect", self.tcp.local_addr().unwrap().to_string()),
            ("connect", "[::1]:9".into()),
            ("listen", "127.0.0.1:0".into()),
            ("datagram", "127.0.0.1:0".into()),
            ("unix", at("service")),
            ("read", "/etc/passwd".into()),
            ("read", at("store.redb")),
            ("read", format!("/proc/{pid}/environ")),
            ("list", at("")),
            ("list", "/etc".into()),
            ("run", "/bin/true".into()),
            ("run", at("script")),
            ("become", "/bin/true".into()),
            ("create", at("new")),
            ("folder", at("folder")),
            ("append", at("store.redb")),
            ("append", at("model.gguf")),
            ("truncate", at("store.redb")),
            ("truncate", at("model.gguf")),
            ("rename", at("model.gguf")),
            ("chmod", at("store.redb")),
            ("remove", at("store.redb")),
            ("create", "/tmp/orinoco-was-here".into()),
            ("ptrace", pid.to_string()),
            ("kill", pid.to_string()),
            ("kill", std::process::id().to_string()),
            ("kill", "-1".into()),
        ]
    }
}

impl Drop for Victims {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn started(program: &str, spec: &LoadSpec) -> (Worker, Sandbox) {
    let mut worker = Worker::spawn(program);
    let sandbox = worker.load(spec);
    (worker, sandbox)
}

const SCRIPTED: &str = env!("CARGO_BIN_EXE_orinoco-engine-scripted");

fn try_it(worker: &mut Worker, what: &str, target: &str) -> String {
    let answer = worker.ask(chat(1, &format!("!try {what} {target}"), 200));
    answer
        .text
        .trim_start_matches(what)
        .trim_start_matches(": ")
        .to_owned()
}

#[test]
fn each_attempt_of_a_worker_that_was_taken_over_fails_and_it_lives_on() {
    let mut victims = Victims::new();
    let (mut worker, sandbox) = started(SCRIPTED, &victims.spec(Some(SandboxSpec::default())));
    worker.loaded();
    assert!(sandbox.seccomp && sandbox.no_new_privs, "{sandbox:?}");
    if sandbox.landlock_abi.is_none() {
        eprintln!("this kernel has no Landlock: attempts to read are not judged");
    }
    for (what, target) in victims.attempts() {
        let outcome = try_it(&mut worker, what, &target);
        let reads = matches!(what, "read" | "list" | "append");
        if reads && sandbox.landlock_abi.is_none() {
            continue;
        }
        let denied = matches!(outcome.as_str(), "EPERM" | "EACCES");
        assert!(denied, "{what} {target}: {outcome}");
    }
    assert_eq!(
        victims.process.try_wait().unwrap(),
        None,
        "the other process lives"
    );
    assert!(!Path::new("/tmp/orinoco-was-here").exists());
    // It computes on, with more threads too.
    assert_eq!(try_it(&mut worker, "thread", ""), "ok");
    assert_eq!(worker.ask(chat(2, "still there", 11)).text, "still there");
}

/// Without this the test above might fail for other reasons than the sandbox, and nobody would know.
#[test]
fn without_the_sandbox_the_same_attempts_succeed() {
    let victims = Victims::new();
    let (mut worker, sandbox) = started(SCRIPTED, &victims.spec(None));
    worker.loaded();
    assert_eq!((sandbox.landlock_abi, sandbox.seccomp), (None, false));
    assert!(sandbox.gaps[0].contains("engine.sandbox"), "{sandbox:?}");
    let outcomes: BTreeMap<_, _> = victims
        .attempts()
        .into_iter()
        .filter(|(what, target)| match *what {
            // Nobody there, the end of this test itself, or of everything.
            "connect" => !target.contains("::1"),
            "become" | "kill" => false,
            "ptrace" => false, // the one attached to would stop
            "create" => !target.starts_with("/tmp/orinoco"),
            "run" => target == "/bin/true",
            _ => true,
        })
        .map(|(what, target)| {
            let outcome = try_it(&mut worker, what, &target);
            ((what, target), outcome)
        })
        .collect();
    assert!(outcomes.len() > 15);
    for ((what, target), outcome) in outcomes {
        assert_eq!(outcome, "ok", "{what} {target}");
    }
}

#[test]
fn the_product_is_held_in_before_it_opens_a_model_and_serves() {
    let (mut worker, sandbox) = started(env!("CARGO_BIN_EXE_orinoco-engine"), &real_spec(SMOLLM));
    worker.loaded();
    assert!(sandbox.seccomp && sandbox.no_new_privs, "{sandbox:?}");
    assert_eq!(sandbox.gaps.is_empty(), sandbox.landlock_abi.is_some());
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    assert!(
        status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"),
        "{status}"
    );
    // Each of its threads, not the first alone.
    for task in std::fs::read_dir(format!("/proc/{}/task", worker.child.id())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("Seccomp:\t2"), "{status}");
    }
    let answer = worker.ask(chat(1, "What is 2+2?", 24));
    assert!(answer.text.contains('4'), "{}", answer.text);
}

#[test]
fn nothing_that_the_supervisor_has_open_comes_along() {
    let victims = Victims::new();
    let (mut worker, _) = started(SCRIPTED, &victims.spec(Some(SandboxSpec::default())));
    worker.loaded();
    let open = std::fs::read_dir(format!("/proc/{}/fd", worker.child.id())).unwrap();
    let open = Vec::from_iter(open.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()));
    // Standard input is the socket, the thread that writes has it twice.
    let sockets = open
        .iter()
        .filter(|to| to.to_string_lossy().starts_with("socket:"));
    let sockets = Vec::from_iter(sockets);
    assert!(
        sockets.windows(2).all(|pair| pair[0] == pair[1]),
        "{open:?}"
    );
    let files = open.iter().filter(|to| to.starts_with(victims.dir.path()));
    assert_eq!(files.count(), 0, "{open:?}");
}

/// A kernel without Landlock answers its first call with ENOSYS; so does a filter that the worker inherits.
#[test]
fn on_a_kernel_without_landlock_the_filter_holds_and_the_gap_is_told() {
    on_a_kernel_without(nix::libc::SYS_landlock_create_ruleset, || {
        let victims = Victims::new();
        let (mut worker, sandbox) = started(SCRIPTED, &victims.spec(Some(SandboxSpec::default())));
        worker.loaded();
        assert_eq!((sandbox.landlock_abi, sandbox.seccomp), (None, true));
        assert!(sandbox.gaps[0].contains("no Landlock"), "{sandbox:?}");
        for (what, target) in victims.attempts() {
            let outcome = try_it(&mut worker, what, &target);
            // What exists can be read and overwritten; nothing is made, emptied or removed.
            let is_told = matches!(what, "read" | "list" | "append");
            let is_process = target.starts_with("/proc");
            let expected = match is_told && !is_process {
                true => &["ok"][..],
                false => &["EPERM", "EACCES"],
            };
            assert!(
                expected.contains(&outcome.as_str()) || is_process,
                "{what} {target}: {outcome}"
            );
        }
    });
}

#[test]
fn on_a_kernel_without_filters_the_rules_for_files_hold_and_the_gap_is_told() {
    on_a_kernel_without(nix::libc::SYS_seccomp, || {
        let victims = Victims::new();
        let (mut worker, sandbox) = started(SCRIPTED, &victims.spec(Some(SandboxSpec::default())));
        if sandbox.landlock_abi.is_none() {
            eprintln!("SKIPPED: this kernel has no Landlock");
            return;
        }
        worker.loaded();
        assert!(
            !sandbox.seccomp && sandbox.gaps[0].contains("seccomp"),
            "{sandbox:?}"
        );
        let store = victims.at("store.redb").display().to_string();
        for (what, target) in [
            ("read", "/etc/passwd"),
            ("become", "/bin/true"),
            ("create", &store),
        ] {
            assert_eq!(
                try_it(&mut worker, what, target),
                "EACCES",
                "{what} {target}"
            );
        }
    });
}

/// Plays on a thread for which this system call does not exist, nor for the processes that it starts. They
/// end with the thread.
fn on_a_kernel_without(call: nix::libc::c_long, play: impl FnOnce() + Send) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let filter = SeccompFilter::new(
        [(call, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(nix::libc::ENOSYS as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let filter: BpfProgram = filter.unwrap().try_into().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            apply_filter(&filter).unwrap();
            play();
        });
        thread.join().unwrap();
    });
}
