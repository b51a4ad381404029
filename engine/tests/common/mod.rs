//! A worker process with its socket, and small jobs.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "compiled into each test binary, which uses a part"
)]

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitStatus, Stdio};
use std::time::Duration;

use orinoco::frames::codec::{FrameError, read_frame, write_frame};
use orinoco::frames::{
    Command, Done, Event, Finish, Input, Job, JobKey, LoadSpec, Loaded, Resume, Sandbox, Token,
};
use orinoco_engine::scripted;

pub const SMOLLM: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
pub const MINILM: &str = "all-MiniLM-L6-v2.F16.gguf";
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// Nothing a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A real model's file.
pub fn model(name: &str) -> PathBuf {
    let dir = std::env::var_os("ORINOCO_MODELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../models"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run scripts/fetch-models.sh, or set ORINOCO_MODELS",
        path.display()
    );
    path
}

/// A spec for a real model. One thread: several would wait for each other at every barrier while other
/// tests have their cores.
pub fn real_spec(name: &str) -> LoadSpec {
    LoadSpec {
        path: model(name),
        n_ctx: 2048,
        n_batch: 512,
        n_ubatch: 512,
        n_threads: 1,
        prefix_cache_bytes: 1 << 28,
        draft: None,
        ..scripted::load_spec()
    }
}

/// A running worker. Killed on drop.
pub struct Worker {
    pub child: Child,
    pub socket: UnixStream,
}

impl Worker {
    pub fn spawn(program: &str) -> Self {
        Self::spawn_with(program, None)
    }

    /// With the file that it may write.
    pub fn spawn_with(program: &str, states: Option<File>) -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = Process::new(program)
            .args(["--socket-fd", "0"])
            .stdin(OwnedFd::from(theirs))
            .stdout(states.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    /// The scripted worker with a model file that has this text.
    pub fn scripted(spec: &LoadSpec) -> Self {
        let mut worker = Self::spawn(env!("CARGO_BIN_EXE_orinoco-engine-scripted"));
        worker.load(spec);
        worker
    }

    /// The product with a real model, loaded.
    pub fn real(spec: &LoadSpec) -> (Self, Loaded) {
        let mut worker = Self::spawn(env!("CARGO_BIN_EXE_orinoco-engine"));
        worker.load(spec);
        let loaded = worker.loaded();
        (worker, loaded)
    }

    pub fn hello(&mut self) {
        let Some(Event::Hello(hello)) = self.next() else {
            panic!("Hello comes first")
        };
        assert_eq!(hello.protocol, orinoco::frames::PROTOCOL);
    }

    /// Hears Hello, asks for a load, and hears what holds the worker in.
    pub fn load(&mut self, spec: &LoadSpec) -> Sandbox {
        self.first(&Command::Load(Box::new(spec.clone())))
    }

    /// As [`Self::load`], with any first command.
    pub fn first(&mut self, command: &Command) -> Sandbox {
        self.hello();
        self.send(command);
        let Some(Event::Sandboxed(sandbox)) = self.next() else {
            panic!("Sandboxed comes before anything of the model")
        };
        sandbox
    }

    pub fn send(&mut self, command: &Command) {
        write_frame(&mut self.socket, command).unwrap();
    }

    /// The next event but for what saved sequences take; `None` when the worker is gone.
    pub fn next(&mut self) -> Option<Event> {
        loop {
            match self.any() {
                Some(Event::Cached { .. } | Event::OnDisk(_)) => {}
                event => return event,
            }
        }
    }

    /// The next event.
    pub fn any(&mut self) -> Option<Event> {
        match read_frame(&mut self.socket) {
            Ok(event) => event,
            Err(FrameError::Io(error)) if error.kind() == ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no event: {error}"),
        }
    }

    pub fn loaded(&mut self) -> Loaded {
        loop {
            match self.next() {
                Some(Event::LoadProgress { fraction }) => {
                    assert!((0.0..=1.0).contains(&fraction));
                }
                Some(Event::Loaded(loaded)) => return *loaded,
                other => panic!("Loaded was expected, not {other:?}"),
            }
        }
    }

    /// Everything about the jobs of `keys` until each is done, in the order of `keys`.
    pub fn answers(&mut self, keys: &[JobKey]) -> Vec<Answer> {
        let mut answers = Vec::from_iter(keys.iter().map(|_| Answer::default()));
        let at = |job: JobKey| keys.iter().position(|key| *key == job).expect("our job");
        while answers.iter().any(|answer| answer.done.is_none()) {
            match self.next().expect("the worker died") {
                Event::Started {
                    job,
                    prompt_ids,
                    n_cached,
                    ..
                } => {
                    let answer = &mut answers[at(job)];
                    answer.prompt_ids = prompt_ids;
                    answer.n_cached = n_cached;
                }
                Event::Step { pieces, .. } => {
                    for piece in pieces {
                        let answer = &mut answers[at(piece.job)];
                        assert!(answer.done.is_none(), "a piece after Done");
                        answer.ids.extend(piece.ids);
                        answer.text.push_str(&piece.text);
                    }
                }
                Event::Done(done) => {
                    let answer = &mut answers[at(done.job)];
                    assert!(answer.done.is_none(), "a second Done");
                    answer.ids.extend(&done.ids);
                    answer.text.push_str(&done.text);
                    answer.done = Some(*done);
                }
                other => panic!("{other:?}"),
            }
        }
        answers
    }

    /// One job from begin to end.
    pub fn ask(&mut self, job: Job) -> Answer {
        let key = job.job;
        self.send(&Command::Submit(Box::new(job)));
        self.answers(&[key]).remove(0)
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What came of a job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    pub prompt_ids: Vec<Token>,
    pub n_cached: u32,
    pub ids: Vec<Token>,
    pub text: String,
    pub done: Option<Done>,
}

impl Answer {
    pub fn finish(&self) -> Finish {
        let done = self.done.as_ref().expect("done");
        done.end.clone().expect("a good end")
    }
}

pub fn job(key: u64, text: &str, max_tokens: u32) -> Job {
    Job::plain(JobKey(key), Input::Text(text.to_owned()), max_tokens)
}

pub fn chat(key: u64, user: &str, max_tokens: u32) -> Job {
    let messages = format!(
        r#"[{{"role":"user","content":{}}}]"#,
        serde_json::Value::String(user.to_owned())
    );
    Job {
        input: Input::Chat {
            messages,
            tools: None,
        },
        ..job(key, "", max_tokens)
    }
}

pub fn resumed(job: Job, prompt_ids: &[Token], output_ids: &[Token], text_bytes: usize) -> Job {
    Job {
        resume: Some(Resume {
            prompt_ids: prompt_ids.to_vec(),
            output_ids: output_ids.to_vec(),
            text_bytes: text_bytes as u64,
        }),
        ..job
    }
}
