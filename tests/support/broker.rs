//! Real brokers on free loopback ports: Mosquitto as a process, and the embedded one, in this
//! process or in its own. All end with the value that holds them.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orinoco::broker::{self, BrokerConfig, PortChoice};
use orinoco::process;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

#[path = "ports.rs"]
mod ports;
pub use ports::free_port;

/// The daemon's credential on embedded brokers of tests.
pub const DAEMON_PASSWORD: &str = "credential of the daemon";

/// The root of all topics in tests.
pub const ROOT: &str = "orinoco";

/// Longest wait for a broker to accept, on a machine that runs the other tests as well.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for a CONNACK: Mosquitto listens before it heeds signals.
async fn answers(port: u16) {
    const CONNECT: &[u8] = b"\x10\x0d\0\x04MQTT\x05\x02\0\x3c\0\0\0";
    let answered = async {
        loop {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await
                && stream.write_all(CONNECT).await.is_ok()
                && stream.read_u8().await.is_ok_and(|header| header == 0x20)
            {
                return;
            }
            // Nothing tells us when a process listens; trying costs nothing.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, answered)
        .await
        .expect("the broker answers in time");
}

/// Waits until this process listens on the port; `false` when it ended instead, as where somebody else does.
async fn listens(port: u16, process: &mut Child) -> bool {
    let listens = async {
        loop {
            if has_open(port, process.id()) {
                return true;
            }
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, listens)
        .await
        .expect("the broker listens in time")
}

/// Whether one of the sockets that listen on the port is this process's own.
fn has_open(port: u16, pid: u32) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{port:04X}");
    let sockets = Vec::from_iter(table.lines().filter_map(|line| {
        let columns = Vec::from_iter(line.split_whitespace());
        let [_, local, _, "0A", _, _, _, _, _, inode, ..] = columns[..] else {
            return None;
        };
        local.ends_with(&port).then(|| format!("socket:[{inode}]"))
    }));
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"));
    open.into_iter().flatten().flatten().any(|open| {
        let target = std::fs::read_link(open.path());
        target.is_ok_and(|target| sockets.iter().any(|socket| target.as_os_str() == &**socket))
    })
}

/// Mosquitto with persistence and TCP_NODELAY.
pub struct Mosquitto {
    port: u16,
    /// Whether it answers a client without TLS and name.
    is_plain: bool,
    folder: TempDir,
    process: Child,
}

impl Mosquitto {
    pub async fn start() -> Mosquitto {
        let mut mosquitto = Mosquitto::start_with("allow_anonymous true\n").await;
        mosquitto.is_plain = true;
        answers(mosquitto.port).await;
        mosquitto
    }

    /// With these lines after those of its listener. Returns when the port is open.
    pub async fn start_with(lines: &str) -> Mosquitto {
        for _ in 0..3 {
            if let Some(mosquitto) = Self::try_start(free_port(), lines).await {
                return mosquitto;
            }
        }
        panic!("mosquitto ends with these lines on three ports: {lines}");
    }

    /// `None` where it ended, because somebody else has the port.
    async fn try_start(port: u16, lines: &str) -> Option<Mosquitto> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display();
        let conf = format!(
            "listener {port} 127.0.0.1\n\
             set_tcp_nodelay true\n\
             persistence true\n\
             persistence_location {path}/\n\
             autosave_on_changes true\n\
             autosave_interval 1\n\
             user root\n\
             {lines}"
        );
        std::fs::write(folder.path().join("mosquitto.conf"), conf).unwrap();
        let mut process = Mosquitto::spawn(folder.path());
        let has_port = listens(port, &mut process).await;
        has_port.then_some(Mosquitto {
            port,
            is_plain: false,
            folder,
            process,
        })
    }

    /// Mosquitto by a configuration and access rules as `orinoco acl` writes them, with accounts whose
    /// passwords are their names. Only paths and the port are replaced.
    pub async fn start_as_written(conf: &str, acl: &str, accounts: &[&str]) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let conf = conf
            .replace("listener 1883", &format!("listener {port}"))
            .replace("/etc/mosquitto/orinoco.passwd", &path("passwd"))
            .replace("/etc/mosquitto/orinoco.acl", &path("acl"));
        let ours = format!(
            "persistence_location {}/\nuser root\n",
            folder.path().display()
        );
        std::fs::write(path("mosquitto.conf"), conf + &ours).unwrap();
        std::fs::write(path("acl"), acl).unwrap();
        let plain: String = accounts.iter().map(|a| format!("{a}:{a}\n")).collect();
        std::fs::write(path("passwd"), plain).unwrap();
        let hashed = Command::new("mosquitto_passwd")
            .args(["-U", &path("passwd")])
            .status();
        assert!(
            hashed.unwrap().success(),
            "mosquitto_passwd comes with mosquitto"
        );
        let process = Mosquitto::spawn(folder.path());
        let mosquitto = Mosquitto {
            port,
            is_plain: true,
            folder,
            process,
        };
        answers(port).await;
        mosquitto
    }

    fn spawn(folder: &Path) -> Child {
        // /usr/sbin is not in every PATH.
        let found = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
        let program = found
            .iter()
            .find(|path| Path::new(path).exists())
            .unwrap_or(&"mosquitto");
        Command::new(program)
            .arg("-c")
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed (apt install mosquitto)")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a pid")
    }

    /// Ends it by SIGTERM, as a package update does; it saves its state.
    pub fn stop(&mut self) {
        terminate(&self.process);
        self.process.wait().unwrap();
    }

    /// Ends it by SIGKILL: what it had not saved is gone.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops it in its tracks, connections and all, until [`Mosquitto::thaw`].
    pub fn freeze(&self) {
        signal(&self.process, nix::sys::signal::Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        signal(&self.process, nix::sys::signal::Signal::SIGCONT);
    }

    /// Starts it again on the same port with the same state.
    pub async fn restart(&mut self) {
        self.process = Mosquitto::spawn(self.folder.path());
        match self.is_plain {
            true => answers(self.port).await,
            false => assert!(listens(self.port, &mut self.process).await),
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn terminate(process: &Child) {
    signal(process, nix::sys::signal::Signal::SIGTERM);
}

fn signal(process: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(process.id() as i32);
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// The embedded broker in this process.
pub struct Embedded {
    pub address: SocketAddr,
    pub users: PathBuf,
    folder: TempDir,
    _stop: oneshot::Sender<()>,
}

impl Embedded {
    pub async fn start() -> Embedded {
        Embedded::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut BrokerConfig)) -> Embedded {
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("users.toml");
        let mut config = embedded_config(folder.path(), 0);
        change(&mut config);
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, ready) = oneshot::channel();
        tokio::spawn(async move {
            let ready = |address| tell.send(address).unwrap();
            let stopped = async { drop(stopped.await) };
            broker::serve(config, ready, stopped).await.unwrap();
        });
        let address = timeout(LIMIT, ready)
            .await
            .expect("the broker is ready in time")
            .unwrap();
        Embedded {
            address,
            users,
            folder,
            _stop: stop,
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Settings of an embedded broker with everything in one folder.
pub fn embedded_config(folder: &Path, port: u16) -> BrokerConfig {
    BrokerConfig {
        port: PortChoice::Exactly(port),
        users: Some(folder.join("users.toml")),
        daemon_password: Some(DAEMON_PASSWORD.into()),
        ..BrokerConfig::new(folder.join("broker"), ROOT)
    }
}

/// Where a helper process finds its settings.
pub const HELPER_FOLDER: &str = "ORINOCO_TEST_BROKER_FOLDER";
/// Its port.
pub const HELPER_PORT: &str = "ORINOCO_TEST_BROKER_PORT";

/// The embedded broker in a process of its own. The test program must have an ignored test named
/// `broker_process` that calls [`helper_main`].
pub struct EmbeddedProcess {
    pub address: SocketAddr,
    pub process: Child,
}

impl EmbeddedProcess {
    pub fn start(folder: &Path, port: u16) -> EmbeddedProcess {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut process = process::tie(&mut command)
            .args([
                "--exact",
                "broker_process",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(HELPER_FOLDER, folder)
            .env(HELPER_PORT, port.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let address = ready_address(&mut process);
        EmbeddedProcess { address, process }
    }

    /// SIGKILL: no goodbye.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// SIGTERM.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        terminate(&self.process);
        self.process.wait().unwrap()
    }
}

impl Drop for EmbeddedProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads where a helper process listens.
pub fn ready_address(process: &mut Child) -> SocketAddr {
    let parse = |line: String| {
        // libtest prints before the broker does, on the same line.
        let at = line.find("listening")?;
        broker::parse_ready_line(&line[at..])
    };
    let mut stdout = BufReader::new(process.stdout.take().unwrap());
    let address = stdout
        .by_ref()
        .lines()
        .map_while(Result::ok)
        .find_map(parse);
    // A closed pipe would end the helper when libtest prints its result.
    process.stdout = Some(stdout.into_inner());
    address.expect("the broker says where it listens")
}

/// What the helper process does; nothing when a person runs the ignored tests.
pub fn helper_main() {
    let Ok(folder) = std::env::var(HELPER_FOLDER) else {
        return;
    };
    let port = std::env::var(HELPER_PORT).unwrap().parse().unwrap();
    process::die_with_parent().unwrap();
    let config = embedded_config(Path::new(&folder), port);
    let ready = |address| {
        use std::io::Write;
        let mut stdout = std::io::stdout();
        stdout
            .write_all(broker::ready_line(address).as_bytes())
            .unwrap();
        stdout.flush().unwrap();
    };
    broker::run(config, ready).unwrap();
}
