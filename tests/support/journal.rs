//! A stand-in for journald: its socket, in a mount namespace of the daemon's own, and what came on it.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// One entry: its fields by name.
pub type Entry = BTreeMap<String, String>;

pub struct Journal {
    dir: PathBuf,
    incoming: mpsc::Receiver<Entry>,
    pub entries: Vec<Entry>,
}

impl Journal {
    /// `None` when this process may not mount.
    pub fn open(dir: &Path) -> Option<Self> {
        let may = Command::new("unshare")
            .args(["-m", "mount", "-t", "tmpfs", "tmpfs", "/run"])
            .stderr(Stdio::null())
            .status();
        if !may.is_ok_and(|status| status.success()) {
            return None;
        }
        let dir = dir.join("journal");
        std::fs::create_dir(&dir).expect("a folder");
        let socket = UnixDatagram::bind(dir.join("socket")).expect("a socket");
        let (sender, incoming) = mpsc::channel();
        // A thread of its own: a journal that is not read holds up whoever writes. It ends with the test.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 18];
            while let Ok(n) = socket.recv(&mut buffer) {
                // The first datagram of a program is empty: it asks whether somebody is there.
                if n > 0 && sender.send(parse(&buffer[..n])).is_err() {
                    return;
                }
            }
        });
        Some(Self {
            dir,
            incoming,
            entries: Vec::new(),
        })
    }

    /// Lets the command find this journal where every program looks for journald.
    pub fn wrap(&self, command: &mut Command) {
        let mut wrapped = Command::new("unshare");
        let there = "/run/systemd/journal";
        let script = format!(
            "mount -t tmpfs tmpfs /run && mkdir -p {there} && mount --bind '{}' {there} && exec \"$0\" \"$@\"",
            self.dir.display()
        );
        wrapped.args(["-m", "sh", "-c", &script]);
        wrapped.arg(command.get_program()).args(command.get_args());
        *command = wrapped;
    }

    /// Waits for an entry with this message.
    pub fn until(&mut self, message: &str) -> Entry {
        loop {
            let entry = self.incoming.recv_timeout(Duration::from_secs(60));
            let entry = entry.unwrap_or_else(|_| panic!("no {message:?} within a minute"));
            self.entries.push(entry.clone());
            if entry.get("MESSAGE").is_some_and(|found| found == message) {
                return entry;
            }
        }
    }
}

/// `NAME=value`, or `NAME`, a length of eight bytes, and the value; each ends with a line break.
/// See systemd.io/JOURNAL_NATIVE_PROTOCOL.
fn parse(mut rest: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|c| *c == b'\n').expect("a line break");
        let line = std::str::from_utf8(&rest[..end]).expect("UTF-8");
        let after = &rest[end + 1..];
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => {
                rest = after;
                (name, value.to_owned())
            }
            None => {
                let (length, after) = after.split_at(8);
                let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
                let (value, after) = after.split_at(length as usize);
                assert_eq!(after[0], b'\n', "{line} ends with its value");
                rest = &after[1..];
                (line, String::from_utf8(value.to_vec()).expect("UTF-8"))
            }
        };
        entry.insert(name.to_owned(), value);
    }
    entry
}
