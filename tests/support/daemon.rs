//! A daemon of its own for each test: state in a temporary directory, ports that were free.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

pub use super::broker::free_port;

/// Which engine serves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// `orinoco-engine-scripted`: follows hooks in the prompt.
    Scripted,
    /// `orinoco-engine` with SmolLM2-135M-Instruct.
    Smol,
    /// `orinoco-engine` with Gemma-3-270M.
    Gemma,
}

/// Where a daemon lives; survives its restarts.
pub struct Site {
    pub dir: TempDir,
    pub node: &'static str,
    state_dir: PathBuf,
    settings: Vec<String>,
}

pub struct Daemon {
    child: Child,
    pub port: u16,
}

impl Site {
    /// A site whose daemon brings its own broker.
    pub fn with_own_broker(engine: Engine) -> Self {
        let port = free_port();
        Self::new(
            engine,
            &[
                "broker.mode=child".to_owned(),
                format!("broker.port={port}"),
            ],
        )
    }

    /// A site whose daemon uses a broker on this port.
    pub fn with_broker_on(port: u16, engine: Engine) -> Self {
        Self::new(
            engine,
            &["broker.mode=external".into(), format!("mqtt.port={port}")],
        )
    }

    fn new(engine: Engine, broker: &[String]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Nothing of the machine's own configuration counts.
        std::fs::write(dir.path().join("config.toml"), "").expect("an empty file");
        let mut settings = broker.to_vec();
        settings.push("node.name=n1".into());
        settings.push(format!(
            "paths.state_dir={}",
            dir.path().join("state").display()
        ));
        settings.push(format!("paths.models_dir={}", models_dir().display()));
        settings.push("mqtt.backoff_ms_max=500".into());
        // Tests ask hundreds of times at once, in the name of one user; limits have tests of their own.
        settings.push("defaults.requests_per_minute_max=0".into());
        settings.push("defaults.queue_jobs_max=1000".into());
        // Tests run side by side: threads that wait for one another would wait for other tests too.
        settings.push("engine.n_threads=1".into());
        // They test a CPU build, on machines with a GPU too.
        settings.push("engine.backend=cpu".into());
        let (worker, model) = match engine {
            Engine::Scripted => ("orinoco-engine-scripted", SMOL),
            Engine::Smol => ("orinoco-engine", SMOL),
            Engine::Gemma => ("orinoco-engine", GEMMA),
        };
        settings.push(format!(
            "engine.worker_path={}",
            beside_orinoco(worker).display()
        ));
        settings.push(format!("model.active={}", model.trim_end_matches(".gguf")));
        let state_dir = dir.path().join("state");
        Self {
            dir,
            node: "n1",
            state_dir,
            settings,
        }
    }

    /// Another name than `n1`.
    pub fn named(mut self, node: &'static str) -> Self {
        self.node = node;
        self.set(format!("node.name={node}"))
    }

    pub fn set(mut self, setting: impl Into<String>) -> Self {
        self.settings.push(setting.into());
        self
    }

    /// The job store elsewhere, on a small disk for instance.
    pub fn with_state_dir(mut self, dir: &Path) -> Self {
        self.state_dir = dir.to_owned();
        self
    }

    /// Starts the daemon; returns when it has written where it serves.
    pub fn start(&self) -> Daemon {
        self.start_with(|_| {})
    }

    /// As [`Self::start`], with the last word on how.
    pub fn start_with(&self, change: impl FnOnce(&mut Command)) -> Daemon {
        let file = self.state_dir.join("runtime.json");
        // A file of an earlier life would name an earlier port.
        let _ = std::fs::remove_file(&file);
        let mut command = Command::new(env!("CARGO_BIN_EXE_orinoco"));
        command.arg("run").arg("--config").arg(self.dir.path());
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("daemon.log"))
            .expect("a log file");
        change(&mut command);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("orinoco starts");
        let mut daemon = Daemon { child, port: 0 };
        let runtime = poll(|| {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                panic!("orinoco ended with {status}:\n{}", self.log());
            }
            serde_json::from_slice::<serde_json::Value>(&std::fs::read(&file).ok()?).ok()
        });
        daemon.port = runtime["port"].as_u64().expect("a port") as u16;
        daemon
    }

    /// Another command of the program, with the daemon's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orinoco"));
        command.arg("--config").arg(self.dir.path());
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }
}

pub const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// What computes in a bench: the processor, or what `ORINOCO_BACKEND` says.
pub fn bench_backend() -> String {
    std::env::var("ORINOCO_BACKEND").unwrap_or_else(|_| "cpu".to_owned())
}

/// Where the models are; `scripts/fetch-models.sh` brings them.
pub fn models_dir() -> PathBuf {
    let dir = std::env::var_os("ORINOCO_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        PathBuf::from,
    );
    assert!(
        dir.join(SMOL).exists(),
        "no {SMOL} in {}: run scripts/fetch-models.sh",
        dir.display()
    );
    dir
}

/// A binary of the workspace. Tests of the whole need `cargo build --release --workspace` first.
pub fn beside_orinoco(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_orinoco")).with_file_name(name);
    assert!(
        path.exists(),
        "no {}: run cargo build --release --workspace",
        path.display()
    );
    path
}

impl Daemon {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// The child of this daemon whose name starts so (the kernel keeps 15 letters).
    pub fn child_named(&self, name: &str) -> Option<i32> {
        children_of(self.pid()).into_iter().find(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end().starts_with(&name[..name.len().min(15)])
        })
    }

    /// Kills the worker as an operator or the kernel would; true when there was one.
    pub fn kill_worker(&self) -> bool {
        self.child_named("orinoco-engine")
            .is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok())
    }

    /// The embedded broker is a child with the daemon's own name.
    pub fn kill_broker(&self) -> bool {
        self.child_named("orinoco").is_some_and(|_| {
            children_of(self.pid()).into_iter().any(|pid| {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                comm.trim_end() == "orinoco" && kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok()
            })
        })
    }

    /// As a power cut: nothing is said, nothing is flushed.
    pub fn power_cut(mut self) {
        let children = children_of(self.pid());
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        // Every child ends with its parent.
        poll(|| children.iter().all(|pid| !alive(*pid)).then_some(()));
    }

    /// An orderly end; its exit code.
    pub fn stop(self) -> i32 {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).expect("it runs");
        self.wait()
    }

    /// Its exit code, once it has ended.
    pub fn wait(mut self) -> i32 {
        let status = poll(|| self.child.try_wait().expect("it is our child"));
        status.code().unwrap_or(-1)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn alive(pid: i32) -> bool {
    // A zombie has ended; its new parent has not read its status yet.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .trim_start()
            .starts_with('Z')
    })
}

pub fn children_of(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The most memory that a process has had so far, in KiB.
pub fn peak_memory_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("the kernel counts it")
}

/// The embedded broker's process.
pub fn embedded_broker_of(daemon: &Daemon) -> i32 {
    let is_broker = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"broker")
    };
    children_of(daemon.pid())
        .into_iter()
        .find(is_broker)
        .expect("it runs beside the daemon")
}

/// Asks until there is an answer; the files of /proc and of other processes have no events to wait for.
pub fn poll<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let end = std::time::Instant::now() + Duration::from_secs(180);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(
            std::time::Instant::now() < end,
            "waited three minutes in vain"
        );
        #[expect(clippy::disallowed_methods, reason = "polls another process")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A file system of a few MiB, so that a disk can be full.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` when this process may not mount.
    pub fn mount(size_mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until nothing fits any more.
    pub fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.path().join("filler")).expect("a file");
        while file.write_all(&[0; 1 << 16]).is_ok() {}
        while file.write_all(&[0; 1 << 10]).is_ok() {}
    }

    pub fn empty(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("the filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may still have files open.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
