//! What makes this a worker process: it dies with its parent, the kernel kills it first, and its
//! socket is the one it was told.

#![allow(
    unsafe_code,
    reason = "an inherited file descriptor can only be adopted by number"
)]

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::prctl;
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::time::{TimeVal, TimeValLike as _};

/// Why the process cannot be a worker; fragments that complete "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Unknown or incomplete arguments.
    #[error("read the arguments: {0}; usage: {USAGE}")]
    Arguments(String),
    /// The descriptor is not an open socket.
    #[error("use file descriptor {fd} as the socket: {reason}")]
    Socket {
        /// Its number.
        fd: RawFd,
        /// What was wrong.
        reason: std::io::Error,
    },
    /// A system call failed.
    #[error("{what}: {reason}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        reason: std::io::Error,
    },
}

/// How a worker is started.
pub const USAGE: &str = "orinoco-engine --socket-fd N (started by orinoco, not by hand)";

/// What the arguments ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arguments {
    /// Serve over this descriptor.
    Serve(RawFd),
    /// Print version and backends.
    Version,
}

/// Reads the arguments, program name excluded.
pub fn arguments(arguments: impl Iterator<Item = String>) -> Result<Arguments, ProcessError> {
    let wrong = |what: String| ProcessError::Arguments(what);
    let arguments = Vec::from_iter(arguments);
    match Vec::from_iter(arguments.iter().map(String::as_str)).as_slice() {
        ["--version"] => Ok(Arguments::Version),
        ["--socket-fd", fd] => match fd.parse::<RawFd>() {
            // The socket may be standard input, which no other child of the parent inherits by accident;
            // standard output and error are not for it.
            Ok(fd) if fd == 0 || fd > 2 => Ok(Arguments::Serve(fd)),
            _ => Err(wrong(format!(
                "--socket-fd {fd}: 0 or a number above 2 is expected"
            ))),
        },
        [] => Err(wrong("--socket-fd is missing".to_owned())),
        other => Err(wrong(format!("{other:?} is not understood"))),
    }
}

/// Asks to be killed when the parent dies. A parent that died before this is noticed by the end of
/// the socket, which only it holds open.
pub fn die_with_parent() -> Result<(), ProcessError> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|error| ProcessError::System {
        what: "ask for a signal at the parent's death",
        reason: error.into(),
    })
}

/// The file that the supervisor handed over as standard output, if it did. From then on standard output goes
/// nowhere, so that nothing that a library prints ends up in that file.
pub fn take_output_file() -> Option<File> {
    let output = std::io::stdout().as_fd().try_clone_to_owned().ok()?;
    let file = File::from(output);
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return None;
    }
    let nowhere = File::options().write(true).open("/dev/null").ok()?;
    nix::unistd::dup2_stdout(&nowhere).ok()?;
    Some(file)
}

/// Makes this the process that the kernel kills first when memory runs out. Best effort: raising the
/// value needs no privilege, but /proc may be hidden.
pub fn offer_to_oom_killer() {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "800") {
        tracing::warn!(%error, "oom_score_adj was not raised");
    }
}

/// What this process has computed so far.
pub fn cpu_time() -> Duration {
    let of = |time: TimeVal| {
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default())
    };
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| of(usage.user_time()) + of(usage.system_time()))
        .unwrap_or_default()
}

/// Leaves the cores to whoever decodes, and bounds what all work here may take at once: several times
/// `bytes`, as a second fence behind the budget of each piece of work. Best effort, and before the sandbox.
pub fn hold_back(bytes: u64) {
    let fence = bytes.saturating_mul(4).saturating_add(256 << 20);
    if let Err(error) = setrlimit(Resource::RLIMIT_DATA, fence, fence) {
        tracing::warn!(%error, "no limit on this process's memory");
    }
    unsafe extern "C" {
        /// nice(2); the threads to come inherit it.
        safe fn nice(inc: std::ffi::c_int) -> std::ffi::c_int;
    }
    nice(10);
}

/// Resident bytes that belong to this process alone, as the kernel counts them; 0 where /proc is hidden.
///
/// Mapped files are not among them, and on a Jetson neither is memory of the GPU.
pub fn private_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.trim().strip_suffix("kB"));
        value.and_then(|value| value.trim().parse::<u64>().ok())
    };
    (kib("RssAnon:").unwrap_or(0) + kib("RssShmem:").unwrap_or(0)) * 1024
}

/// Adopts the inherited socket.
pub fn adopt(fd: RawFd) -> Result<UnixStream, ProcessError> {
    let failed = |reason| ProcessError::Socket { fd, reason };
    // SAFETY: the descriptor is only asked for its flags; a closed one gives EBADF.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|e| failed(e.into()))?;
    // SAFETY: it is open, and nothing else in this process owns it: the supervisor passed it to us by
    // this number.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    stream.peer_addr().map_err(failed)?;
    Ok(stream)
}

/// Hands free heap pages back to the system; says whether there were any.
pub fn give_heap_back() -> bool {
    unsafe extern "C" {
        /// malloc_trim(3), of glibc.
        safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    malloc_trim(0) == 1
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::IntoRawFd;

    use super::*;

    fn read(text: &str) -> Result<Arguments, ProcessError> {
        arguments(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn arguments_are_exact() {
        assert_eq!(read("--socket-fd 3").unwrap(), Arguments::Serve(3));
        assert_eq!(read("--version").unwrap(), Arguments::Version);
        for wrong in [
            "",
            "--socket-fd",
            "--socket-fd 2",
            "--socket-fd x",
            "--model x",
        ] {
            assert!(
                read(wrong).unwrap_err().to_string().contains("usage"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_inherited_socket_is_adopted_and_anything_else_refused() {
        let (mut supervisor, worker) = UnixStream::pair().unwrap();
        let mut adopted = adopt(worker.into_raw_fd()).unwrap();
        supervisor.write_all(b"x").unwrap();
        let mut byte = [0];
        adopted.read_exact(&mut byte).unwrap();
        let file = tempfile::tempfile().unwrap().into_raw_fd();
        assert!(adopt(file).unwrap_err().to_string().contains("socket"));
        assert!(adopt(1_000_000).is_err());
    }
}
