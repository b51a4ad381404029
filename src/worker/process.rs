//! One child process: started with a socketpair as its standard input, read and written by two tasks.

use std::collections::VecDeque;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::Cause;
use crate::frames::codec::{body_length, decode, encode};
use crate::frames::{Command, Event, SandboxSpec};
use crate::process::spawn_with_socket;

/// Frames read ahead of the keeper; when full, the socket fills and the worker joins text.
const EVENTS: usize = 64;
/// Commands queued for the socket writer.
const OUTGOING: usize = 256;
/// Lines of standard error kept for a report.
const STDERR_LINES: usize = 20;
/// Longest line kept; llama.cpp's stay far below it.
const STDERR_LINE_BYTES: usize = 1000;
/// How long llama.cpp's OpenMP threads on a CPU spin at a barrier before they sleep.
///
/// libgomp's default keeps a core busy for milliseconds while the thread that is waited for has none.
/// On two cores beside compilers at low priority (nice), SmolLM2-135M made 6 tokens a second with the
/// default and 169 with this; on an idle machine both are the same within the noise, while
/// OMP_WAIT_POLICY=passive costs three quarters of the speed. Beside a process that keeps one core busy
/// at normal priority this is not enough: then `engine.n_threads` has to leave it a core.
const SPIN_COUNT: &str = "5000";
/// After its socket closed, a worker must be gone within this time.
const EXIT_GRACE: Duration = Duration::from_secs(2);

/// A worker that saves says so a moment after the time for it is over, at the end of a step.
const SAVE_GRACE: Duration = Duration::from_millis(500);

/// Bytes that are no frame.
#[derive(Debug)]
pub(super) struct ReadError(pub(super) String);

pub(super) struct Child {
    process: tokio::process::Child,
    pub(super) events: mpsc::Receiver<Result<Event, ReadError>>,
    outgoing: mpsc::Sender<Command>,
    stderr: JoinHandle<Vec<String>>,
    /// It may leave something on disk.
    saves: bool,
}

impl Child {
    /// Starts the worker on the calling thread; `states` is the one file that it may write.
    pub(super) fn start(
        program: &Path,
        sandbox: Option<&SandboxSpec>,
        states: Option<File>,
    ) -> io::Result<Self> {
        let mut command = tokio::process::Command::new(program);
        let saves = states.is_some();
        if let Some(sandbox) = sandbox {
            keep_cuda_cache(&mut command, sandbox.write.as_deref());
        }
        command
            // Set before the program starts, since libgomp reads it then.
            .env("GOMP_SPINCOUNT", SPIN_COUNT)
            .args(["--socket-fd", "0"])
            .stdout(states.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped());
        let (mut process, socket) = spawn_with_socket(&mut command)?;
        let (read, write) = socket.into_split();
        let stderr = process.stderr.take().expect("stderr is piped");
        let (event_queue, events) = mpsc::channel(EVENTS);
        let (outgoing, command_queue) = mpsc::channel(OUTGOING);
        tokio::spawn(read_events(read, event_queue));
        tokio::spawn(write_commands(write, command_queue));
        Ok(Self {
            process,
            events,
            outgoing,
            stderr: tokio::spawn(read_stderr(stderr)),
            saves,
        })
    }

    /// Queues a command; `false` when the socket is closed.
    pub(super) async fn send(&self, command: Command) -> bool {
        self.outgoing.send(command).await.is_ok()
    }

    /// Queues a command if there is room; `false` when not.
    pub(super) fn try_send(&self, command: Command) -> bool {
        self.outgoing.try_send(command).is_ok()
    }

    /// Has it leave on disk what is worth it, before it is ended; nobody waits longer than `limit`. What else it
    /// says meanwhile is lost.
    pub(super) async fn save(&mut self, limit: Duration) {
        let limit_ms = limit.as_millis() as u32;
        if !self.saves || !self.send(Command::Save { limit_ms }).await {
            return;
        }
        let saved = async {
            while let Some(Ok(event)) = self.events.recv().await {
                if event == Event::Saved {
                    return;
                }
            }
        };
        if tokio::time::timeout(limit + SAVE_GRACE, saved)
            .await
            .is_err()
        {
            warn!("the engine did not save its states in time");
        }
    }

    /// Resident bytes that belong to it alone (RssAnon and RssShmem; proc_pid_status(5)), `None` where
    /// /proc is hidden. On a Jetson, memory of the GPU is not among them.
    pub(super) fn private_bytes(&self) -> Option<u64> {
        let path = format!("/proc/{}/status", self.process.id()?);
        private_bytes(&std::fs::read_to_string(path).ok()?)
    }

    /// Waits for the end, or brings it about; gives the cause and the last words.
    ///
    /// A worker whose socket closed is usually a dead one, and its exit status says more than we know.
    pub(super) async fn bury(mut self, verdict: Option<Cause>) -> (Cause, Vec<String>) {
        let waited = if verdict.is_none() || matches!(verdict, Some(Cause::LoadFailed(_))) {
            tokio::time::timeout(EXIT_GRACE, self.process.wait())
                .await
                .ok()
        } else {
            None
        };
        let status = match waited {
            Some(status) => status.ok(),
            None => {
                // It may have ended meanwhile; killing the dead is harmless.
                let _ = self.process.start_kill();
                self.process.wait().await.ok()
            }
        };
        let tail = tokio::time::timeout(EXIT_GRACE, self.stderr).await;
        let tail = tail.ok().and_then(Result::ok).unwrap_or_default();
        (verdict.unwrap_or_else(|| cause_of(status)), tail)
    }

    /// Ends it without asking.
    pub(super) async fn kill(mut self) {
        let _ = self.process.kill().await; // it may have ended by itself
    }

    /// Ends the worker on our own shutdown: closing the socket is its signal to leave.
    pub(super) async fn end(mut self) {
        drop(self.outgoing);
        drop(self.events);
        if tokio::time::timeout(EXIT_GRACE, self.process.wait())
            .await
            .is_err()
        {
            let _ = self.process.kill().await;
        }
    }
}

/// CUDA's cache is in the home directory unless told otherwise, where a sandboxed worker may not write.
fn keep_cuda_cache(command: &mut tokio::process::Command, dir: Option<&Path>) {
    let Some(dir) = dir else {
        command.env("CUDA_CACHE_DISABLE", "1");
        return;
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    if let Err(error) = made {
        warn!(path = %dir.display(), %error, "no folder for CUDA's cache: kernels may be compiled at each start");
    }
    command.env("CUDA_CACHE_PATH", dir);
}

fn private_bytes(status: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let kib = kib("RssAnon:")?.checked_add(kib("RssShmem:")?)?;
    kib.checked_mul(1024)
}

fn cause_of(status: Option<ExitStatus>) -> Cause {
    use std::os::unix::process::ExitStatusExt;
    let Some(status) = status else {
        return Cause::Protocol("socket closed, but the process stayed".into());
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => Cause::Exited(code),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(
                Signal::SIGSEGV
                | Signal::SIGABRT
                | Signal::SIGBUS
                | Signal::SIGILL
                | Signal::SIGFPE
                | Signal::SIGSYS,
            ) => Cause::Crashed(signal),
            _ => Cause::Killed(signal),
        },
        (None, None) => Cause::Exited(-1),
    }
}

async fn read_events(read: OwnedReadHalf, events: mpsc::Sender<Result<Event, ReadError>>) {
    let mut read = BufReader::with_capacity(64 << 10, read);
    loop {
        let event = match read_event(&mut read).await {
            Ok(None) => return,
            Ok(Some(event)) => Ok(event),
            Err(reason) => Err(ReadError(reason)),
        };
        let broken = event.is_err();
        if events.send(event).await.is_err() || broken {
            return;
        }
    }
}

/// `None` on the end of the stream: the process is gone, inside a frame or not.
async fn read_event(read: &mut BufReader<OwnedReadHalf>) -> Result<Option<Event>, String> {
    let mut prefix = [0; 4];
    if read.read_exact(&mut prefix).await.is_err() {
        return Ok(None);
    }
    let mut body = vec![0; body_length(prefix).map_err(|error| error.to_string())?];
    if read.read_exact(&mut body).await.is_err() {
        return Ok(None);
    }
    decode(&body).map(Some).map_err(|error| error.to_string())
}

async fn write_commands(mut write: OwnedWriteHalf, mut commands: mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        let Ok(frame) = encode(&command) else {
            debug!("command does not fit a frame");
            continue;
        };
        if write.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Passes the worker's lines on to our log and keeps the last ones.
async fn read_stderr(stderr: tokio::process::ChildStderr) -> Vec<String> {
    let mut tail = VecDeque::with_capacity(STDERR_LINES);
    let mut read = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = STDERR_LINE_BYTES as u64;
        match (&mut read).take(limit).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return tail.into(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if text.is_empty() {
            continue;
        }
        tracing::info!(target: "orinoco::engine", "{text}");
        if tail.len() == STDERR_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_memory_is_read_in_bytes_and_absent_when_odd() {
        let status = "Name:\tx\nRssAnon:\t   12340 kB\nRssFile:\t 9 kB\nRssShmem:\t       4 kB\n";
        assert_eq!(private_bytes(status), Some(12_344 * 1024));
        assert_eq!(private_bytes("RssAnon:\t 1 kB\n"), None);
        assert_eq!(private_bytes("RssAnon:\t x kB\nRssShmem:\t 1 kB\n"), None);
    }
}
