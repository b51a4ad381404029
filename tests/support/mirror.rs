//! A static web server that does exactly what a test says, and counts what it sent.
//!
//! It serves the files of a directory as they are at that moment. Threads and blocking sockets: a test may then
//! wait for child processes, whatever runtime it has itself.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test program uses a part"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// As RFC 9110 says.
    Honest,
    /// 200 with the whole file, whatever was asked for.
    NoRange,
    /// Honest bytes under a Content-Range that is so many bytes later.
    RangeShifted(u64),
    /// 206 about a file that is so much longer.
    LongerFile(u64),
    /// 206 without Content-Range.
    RangeUntold,
    /// 416, whatever was asked for.
    Unsatisfiable,
    /// The bytes asked for, called gzip.
    Gzip,
    /// Announces so many bytes more than it sends, then closes.
    LengthTooLong(u64),
    /// Announces so many bytes fewer.
    LengthTooShort(u64),
    /// To another address.
    Redirect(String),
    /// This status, and no body.
    Status(u16),
    /// TCP reset after so many bytes of the body.
    ResetAfter(u64),
    /// Closed in order after so many bytes of the body, the length untold.
    EndAfter(u64),
    /// Silent after so many bytes of the body, the connection stays open.
    StallAfter(u64),
    /// One byte at a time, with this in between.
    Drip(Duration),
    /// The bit at this place of the file is flipped.
    Flip(u64),
    /// Closes the connection instead of an answer.
    Hangup,
    /// Bytes without end, the length untold.
    Endless,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub path: String,
    /// `bytes=` was in front of it.
    pub range: Option<String>,
    pub accept_encoding: Option<String>,
}

/// A server on a port of its own. Ends with the value.
pub struct Mirror {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    changed: Condvar,
    is_over: AtomicBool,
}

struct State {
    way: Way,
    once: VecDeque<Way>,
    requests: Vec<Request>,
    /// Bytes of bodies below `targets/`.
    sent_bytes: u64,
    /// After so many of them it is silent.
    budget_bytes: u64,
}

/// Longest that anybody waits here.
const LIMIT: Duration = Duration::from_secs(60);

impl Mirror {
    pub fn of(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            state: Mutex::new(State {
                way: Way::Honest,
                once: VecDeque::new(),
                requests: Vec::new(),
                sent_bytes: 0,
                budget_bytes: u64::MAX,
            }),
            changed: Condvar::new(),
            is_over: AtomicBool::new(false),
        });
        let server = shared.clone();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if server.is_over.load(Ordering::SeqCst) {
                    return;
                }
                let (connection, server) = (connection.unwrap(), server.clone());
                // Whoever is gone is gone: that is what these tests are about.
                std::thread::spawn(move || serve(connection, &server));
            }
        });
        Self { port, shared }
    }

    /// Address of the tree.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on.
    pub fn behave(&self, way: Way) {
        self.shared.state().way = way;
        self.shared.changed.notify_all();
    }

    /// For the next request that comes, and after the ones said before.
    pub fn behave_once(&self, way: Way) {
        self.shared.state().once.push_back(way);
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Bytes of bodies below `targets/` that were sent so far.
    pub fn sent_bytes(&self) -> u64 {
        self.shared.state().sent_bytes
    }

    /// Sends no more than so many of them in all, then nothing, until the next word.
    pub fn allow(&self, budget_bytes: u64) {
        self.shared.state().budget_bytes = budget_bytes;
        self.shared.changed.notify_all();
    }

    /// Blocks until so many were sent.
    pub fn until_sent(&self, bytes: u64) {
        self.until(|state| state.sent_bytes >= bytes);
    }

    /// Blocks until so many requests came.
    pub fn until_asked(&self, n_requests: usize) {
        self.until(|state| state.requests.len() >= n_requests);
    }

    /// The same for a task whose thread has others to run.
    pub async fn when_asked(&self, n_requests: usize) {
        while self.requests().len() < n_requests {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn until(&self, mut is_so: impl FnMut(&State) -> bool) {
        let end = Instant::now() + LIMIT;
        let mut state = self.shared.state();
        while !is_so(&state) {
            let left = end.checked_duration_since(Instant::now());
            let left = left.expect("the mirror waited in vain");
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until at least one byte may be sent, and takes up to `n_bytes` of what may be.
    fn take(&self, n_bytes: u64) -> Option<u64> {
        let mut state = self.state();
        loop {
            if self.is_over.load(Ordering::SeqCst) {
                return None;
            }
            let left = state.budget_bytes.saturating_sub(state.sent_bytes);
            if left > 0 {
                let taken = n_bytes.min(left);
                state.sent_bytes += taken;
                return Some(taken);
            }
            state = self.changed.wait_timeout(state, LIMIT).unwrap().0;
        }
    }
}

fn serve(connection: TcpStream, shared: &Shared) -> Option<()> {
    // Head and body are written one after the other: the second is not to wait for the first one's ACK.
    connection.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(connection.try_clone().ok()?);
    let mut out = connection;
    loop {
        let request = head(&mut reader)?;
        let way = {
            let mut state = shared.state();
            state.requests.push(request.clone());
            let once = state.once.pop_front();
            once.unwrap_or_else(|| state.way.clone())
        };
        shared.changed.notify_all();
        answer(&mut out, shared, &request, &way)?;
    }
}

fn head(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.trim_start_matches('/').to_owned();
    let mut request = Request {
        path,
        range: None,
        accept_encoding: None,
    };
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        match line.trim_end().split_once(": ") {
            None => return Some(request),
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                request.range = Some(value.trim_start_matches("bytes=").to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("accept-encoding") => {
                request.accept_encoding = Some(value.to_owned());
            }
            Some(_) => {}
        }
    }
}

/// `None`: the connection has ended.
fn answer(out: &mut TcpStream, shared: &Shared, request: &Request, way: &Way) -> Option<()> {
    let simple = |out: &mut TcpStream, status: u16, more: &str| {
        write!(
            out,
            "HTTP/1.1 {status} x\r\n{more}Content-Length: 0\r\n\r\n"
        )
        .ok()
    };
    match way {
        Way::Hangup => {
            let _ = out.shutdown(Shutdown::Both);
            return None;
        }
        Way::Status(status) => return simple(out, *status, ""),
        Way::Redirect(to) => return simple(out, 302, &format!("Location: {to}\r\n")),
        _ => {}
    }
    let Ok(file) = File::open(shared.dir.join(&request.path)) else {
        return simple(out, 404, "");
    };
    let total = file.metadata().ok()?.len();
    let asked = request.range.as_deref().filter(|_| *way != Way::NoRange);
    let range = match asked {
        None => 0..total,
        Some(range) => {
            let (first, last) = range.split_once('-')?;
            let first: u64 = first.parse().ok()?;
            let last = last.parse().map_or(total, |last: u64| total.min(last + 1));
            if first >= total || *way == Way::Unsatisfiable {
                return simple(out, 416, &format!("Content-Range: bytes */{total}\r\n"));
            }
            first..last
        }
    };
    let len = range.end - range.start;
    let shift = if let Way::RangeShifted(shift) = way {
        *shift
    } else {
        0
    };
    let longer = if let Way::LongerFile(longer) = way {
        *longer
    } else {
        0
    };
    let mut head = match asked {
        None => String::from("HTTP/1.1 200 OK\r\n"),
        Some(_) if *way == Way::RangeUntold => String::from("HTTP/1.1 206 Partial Content\r\n"),
        Some(_) => format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{}\r\n",
            range.start + shift,
            range.end - 1 + shift,
            total + longer
        ),
    };
    if *way == Way::Gzip {
        head.push_str("Content-Encoding: gzip\r\n");
    }
    match way {
        Way::LengthTooLong(more) => head.push_str(&format!("Content-Length: {}\r\n", len + more)),
        Way::LengthTooShort(less) => head.push_str(&format!("Content-Length: {}\r\n", len - less)),
        Way::EndAfter(_) | Way::Endless => head.push_str("Connection: close\r\n"),
        _ => head.push_str(&format!("Content-Length: {len}\r\n")),
    }
    write!(out, "{head}\r\n").ok()?;
    let end = match way {
        Way::ResetAfter(n) | Way::EndAfter(n) | Way::StallAfter(n) => len.min(*n),
        Way::LengthTooShort(less) => len - less,
        Way::Endless => u64::MAX,
        _ => len,
    };
    let step = if matches!(way, Way::Drip(_)) {
        1
    } else {
        1 << 16
    };
    let is_counted = request.path.starts_with("targets/");
    let mut sent = 0;
    while sent < end {
        let n = step.min(end - sent);
        let n = if is_counted { shared.take(n)? } else { n };
        let mut bytes = vec![0; n as usize];
        let from = range.start + sent;
        // Behind the end of the file there are zeros, and so there are when it shrinks meanwhile.
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], from + read as u64) {
                Ok(0) | Err(_) => break,
                Ok(more) => read += more,
            }
        }
        if let Way::Flip(at) = way
            && (from..from + n).contains(at)
        {
            bytes[(at - from) as usize] ^= 1;
        }
        out.write_all(&bytes).ok()?;
        sent += n;
        shared.changed.notify_all();
        if let Way::Drip(between) = way {
            #[expect(clippy::disallowed_methods, reason = "a slow server is slow")]
            std::thread::sleep(*between);
        }
    }
    match way {
        Way::ResetAfter(_) => {
            // Closed with a linger of nothing, a connection is reset.
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(out, sockopt::Linger, &at_once).ok()?;
            None
        }
        Way::StallAfter(_) => {
            let mut state = shared.state();
            while state.way == *way && !shared.is_over.load(Ordering::SeqCst) {
                state = shared.changed.wait_timeout(state, LIMIT).unwrap().0;
            }
            None
        }
        Way::EndAfter(_) | Way::LengthTooLong(_) => {
            let _ = out.shutdown(Shutdown::Both);
            None
        }
        _ => Some(()),
    }
}
