//! Children that cannot outlive us.
//!
//! A child asks the kernel itself to be told of its parent's death ([`die_with_parent`]), so that no
//! code has to run between fork and exec. Spawn children from the main thread: the kernel signals
//! when the *thread* that forked ends (prctl(2), PR_SET_PDEATHSIG).

use std::env::VarError;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command as StdCommand, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// Tells the child who its parent is; see [`die_with_parent`].
const PARENT_PID: &str = "ORINOCO_PARENT_PID";

/// Why a child could not be tied to its parent.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The parent died before the child could ask for the signal.
    #[error("tie to parent {expected}: it is gone already")]
    ParentGone {
        /// The parent's process id.
        expected: i32,
    },
    /// The variable set by [`tie`] is no process id.
    #[error("tie to parent: {PARENT_PID} is {found:?}, expected a process id")]
    ParentPid {
        /// Its value.
        found: String,
    },
    /// prctl(2) failed.
    #[error("tie to parent: {0}")]
    Prctl(#[from] nix::Error),
}

/// What systemd gave to us and to nobody else: its socket, its watchdog, our secrets.
const OURS_ALONE: [&str; 4] = [
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// Prepares a command whose program calls [`die_with_parent`]. It inherits nothing that systemd meant for us.
///
/// It gets a process group of its own: Ctrl-C at a terminal and signals to a whole group reach the
/// parent alone, which ends its children in its own order.
pub fn tie(command: &mut StdCommand) -> &mut StdCommand {
    for name in OURS_ALONE {
        command.env_remove(name);
    }
    command
        .process_group(0)
        .env(PARENT_PID, std::process::id().to_string())
}

/// Asks for SIGTERM at the parent's death. To be called first thing in a child spawned with [`tie`];
/// does nothing in a program that a person or systemd started.
pub fn die_with_parent() -> Result<(), ProcessError> {
    let expected = match std::env::var(PARENT_PID) {
        Ok(found) => found
            .parse()
            .map_err(|_| ProcessError::ParentPid { found })?,
        Err(VarError::NotPresent) => return Ok(()),
        Err(VarError::NotUnicode(found)) => {
            return Err(ProcessError::ParentPid {
                found: found.to_string_lossy().into_owned(),
            });
        }
    };
    prctl::set_pdeathsig(Signal::SIGTERM)?;
    // The parent may have died before that line; we then belong to init or a subreaper.
    if getppid().as_raw() != expected {
        return Err(ProcessError::ParentGone { expected });
    }
    Ok(())
}

/// Both ends of a stream between us and a child. Neither survives an exec by accident: give the
/// child's end to it as standard input ([`spawn_with_socket`]).
pub fn socketpair_for_child() -> io::Result<(UnixStream, OwnedFd)> {
    // std sets CLOEXEC on both.
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}

/// Spawns a child whose standard input is one end of a socketpair; the other end is returned. File
/// descriptor 0 is the only one that a child inherits besides 1 and 2, without any unsafe code and
/// without a moment in which another child could inherit it too.
pub fn spawn_with_socket(command: &mut Command) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = socketpair_for_child()?;
    tie(command.as_std_mut());
    let child = command
        .stdin(Stdio::from(theirs))
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, ours))
}

/// Asks a child to end in order (SIGTERM). One that has ended already is left in peace.
pub fn terminate(child: &Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM); // It may end between the two.
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_child_talks_over_its_standard_input_and_ends_with_it() {
        // cat reads fd 0 and writes to the same socket.
        let mut command = Command::new("sh");
        command.args(["-c", "exec cat >&0"]);
        let (mut child, mut socket) = spawn_with_socket(&mut command).unwrap();
        socket.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        drop(socket);
        assert!(child.wait().await.unwrap().success());
    }

    #[test]
    fn a_program_that_was_not_tied_is_left_alone() {
        die_with_parent().unwrap();
        assert_eq!(prctl::get_pdeathsig().unwrap(), None);
    }
}
