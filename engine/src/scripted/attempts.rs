//! What a worker that was taken over would try, for tests of the sandbox: each attempt is real.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, execv};

/// Tries `what` on `target` and says how it went: `ok`, the name of an errno, or `unknown`.
pub(super) fn attempt(what: &str, target: &str) -> String {
    let outcome = match what {
        "connect" => TcpStream::connect(target).map(drop),
        "listen" => TcpListener::bind(target).map(drop),
        "datagram" => UdpSocket::bind(target).map(drop),
        "unix" => UnixStream::connect(target).map(drop),
        "read" => fs::read(target).map(drop),
        "list" => fs::read_dir(target).map(drop),
        "create" => fs::write(target, "x"),
        "append" => OpenOptions::new().append(true).open(target).map(drop),
        "truncate" => OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(target)
            .map(drop),
        "remove" => fs::remove_file(target),
        "rename" => fs::rename(target, format!("{target}.moved")),
        "folder" => fs::create_dir(target),
        "chmod" => fs::set_permissions(target, Permissions::from_mode(0o777)),
        "run" => Command::new(target).status().map(drop),
        "become" => become_program(target),
        "ptrace" => pid(target).and_then(|pid| Ok(ptrace::attach(pid)?)),
        "kill" => pid(target).and_then(|pid| Ok(kill(pid, Signal::SIGTERM)?)),
        "thread" => std::thread::Builder::new().spawn(|| ()).map(drop),
        _ => return "unknown".to_owned(),
    };
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => error.to_string(),
        },
    }
}

fn pid(text: &str) -> io::Result<Pid> {
    let number: i32 = text.parse().map_err(io::Error::other)?;
    Ok(Pid::from_raw(number))
}

fn become_program(path: &str) -> io::Result<()> {
    let path = std::ffi::CString::new(path)?;
    match execv(&path, &[&path]) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}
