//! A stand-in for systemd: it starts a service as a unit of Type=notify would, and hears what it says.

use std::net::Shutdown;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One variable that a service told, and when.
#[derive(Debug, Clone)]
pub struct Told {
    pub at: Instant,
    pub line: String,
}

/// The socket that services tell their state, and everything that they told.
pub struct Manager {
    path: PathBuf,
    watchdog: Option<Duration>,
    incoming: mpsc::Receiver<Told>,
    pub told: Vec<Told>,
    socket: UnixDatagram,
    reader: Option<JoinHandle<()>>,
    /// When this machine let somebody run who asks to be woken each [`TICK`].
    ticks: Arc<Mutex<Vec<Instant>>>,
}

const TICK: Duration = Duration::from_millis(20);
/// Ticks that are this far apart are a machine that stood still.
const STANDSTILL: Duration = TICK.saturating_mul(5);

impl Manager {
    /// `watchdog` is what WatchdogSec= would be.
    pub fn new(dir: &Path, watchdog: Option<Duration>) -> Self {
        let path = dir.join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).expect("a socket");
        let heard = socket.try_clone().expect("a second handle");
        let (sender, incoming) = mpsc::channel();
        // A thread of its own, so that the time is that of arrival, whatever the test is doing.
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let n = heard.recv(&mut buffer).expect("a datagram");
                let at = Instant::now();
                // Nobody tells nothing: the socket was shut down.
                if n == 0 {
                    return;
                }
                let text = String::from_utf8(buffer[..n].to_vec()).expect("UTF-8");
                for line in text.lines() {
                    let line = line.to_owned();
                    if sender.send(Told { at, line }).is_err() {
                        return;
                    }
                }
            }
        });
        let ticks = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::downgrade(&ticks);
        std::thread::spawn(move || {
            while let Some(ticks) = kept.upgrade() {
                ticks.lock().expect("no panic").push(Instant::now());
                drop(ticks);
                #[expect(clippy::disallowed_methods, reason = "it measures the machine")]
                std::thread::sleep(TICK);
            }
        });
        Self {
            path,
            watchdog,
            ticks,
            incoming,
            told: Vec::new(),
            socket,
            reader: Some(reader),
        }
    }

    /// Lets the command see what systemd gives to a service. WATCHDOG_PID is that of the service itself, so
    /// a shell becomes it.
    pub fn wrap(&self, command: &mut Command) {
        self.wrap_with(command, "");
    }

    /// As [`Self::wrap`]; the shell does `first` before.
    pub fn wrap_with(&self, command: &mut Command, first: &str) {
        let mut wrapped = Command::new("sh");
        let become_it = format!("{first}\nWATCHDOG_PID=$$ exec \"$0\" \"$@\"");
        wrapped.arg("-c").arg(become_it);
        wrapped.arg(command.get_program()).args(command.get_args());
        wrapped.env("NOTIFY_SOCKET", &self.path);
        if let Some(watchdog) = self.watchdog {
            wrapped.env("WATCHDOG_USEC", watchdog.as_micros().to_string());
        }
        *command = wrapped;
    }

    /// Waits until a line begins so; gives that line and its time.
    pub fn until(&mut self, prefix: &str) -> Told {
        let end = Instant::now() + Duration::from_secs(60);
        let mut seen = 0;
        loop {
            if let Some(told) = self.told[seen..]
                .iter()
                .find(|told| told.line.starts_with(prefix))
            {
                return told.clone();
            }
            seen = self.told.len();
            let left = end.saturating_duration_since(Instant::now());
            match self.incoming.recv_timeout(left) {
                Ok(told) => self.told.push(told),
                Err(_) => panic!("no {prefix} within a minute; told: {:?}", self.lines()),
            }
        }
    }

    /// What was told so far.
    pub fn lines(&mut self) -> Vec<String> {
        self.told.extend(self.incoming.try_iter());
        self.told.iter().map(|told| told.line.clone()).collect()
    }

    /// The longest time without WATCHDOG=1, from READY=1 until now; less what nobody ran in, which is nobody's silence.
    pub fn longest_silence(&mut self) -> Duration {
        self.lines();
        let ready = self.until("READY=1").at;
        let mut marks: Vec<Instant> = vec![ready];
        let fed = self.told.iter().filter(|told| told.line == "WATCHDOG=1");
        marks.extend(fed.map(|told| told.at));
        marks.push(Instant::now());
        let ticks = self.ticks.lock().expect("no panic");
        let stood_still = |from: Instant, to: Instant| -> Duration {
            let pairs = ticks.windows(2).map(|pair| {
                let (from, to) = (pair[0].max(from), pair[1].min(to));
                to.saturating_duration_since(from)
            });
            pairs.map(|time| time.saturating_sub(STANDSTILL)).sum()
        };
        let gaps = marks.windows(2).map(|pair| {
            let gap = pair[1] - pair[0];
            gap.saturating_sub(stood_still(pair[0], pair[1]))
        });
        gaps.max().expect("two marks")
    }

    /// As systemd does: waits until the service was silent for the whole interval of its watchdog.
    pub fn until_silent(&mut self) {
        let interval = self.watchdog.expect("a watchdog");
        let end = Instant::now() + Duration::from_secs(60);
        let mut fed = Instant::now();
        while Instant::now() < fed + interval {
            assert!(Instant::now() < end, "it is fed for a minute");
            if let Ok(told) = self.incoming.recv_timeout(fed + interval - Instant::now()) {
                if told.line == "WATCHDOG=1" {
                    fed = told.at;
                }
                self.told.push(told);
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // By its handle: another manager may have taken the path over.
        let _ = self.socket.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
