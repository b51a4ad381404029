//! Clients that we did not write, against the whole daemon with a real model: mosquitto_pub and _sub,
//! paho-mqtt (MQTT 5 and 3.1.1), MQTT.js. What they check stands in `tests/interop/`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use support::broker::free_port;

/// Loading a small model from a cold disk, on a machine that runs the other tests as well.
const START_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn foreign_clients_are_served_through_the_embedded_broker() {
    let daemon = Daemon::start(&[
        ("broker.mode", "child"),
        ("broker.port", &free_port().to_string()),
    ])
    .await;
    daemon.run_clients("local", None);
}

#[tokio::test]
async fn foreign_clients_are_served_through_mosquitto_with_our_access_rules() {
    let mosquitto = Mosquitto::start(&[("daemon", "daemon-secret"), ("plc-3", "plc-secret")]).await;
    let password_file = mosquitto.dir.path().join("daemon.password");
    fs::write(&password_file, "daemon-secret\n").expect("a temporary folder takes a file");
    fs::set_permissions(&password_file, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let daemon = Daemon::start(&[
        ("broker.mode", "external"),
        ("mqtt.host", "127.0.0.1"),
        ("mqtt.port", &mosquitto.port.to_string()),
        ("mqtt.username", "daemon"),
        ("mqtt.password_file", text(&password_file)),
    ])
    .await;
    daemon.run_clients("plc-3", Some("plc-secret"));
}

/// `orinoco run` with SmolLM2 and a state of its own.
struct Daemon {
    child: Child,
    /// Of `runtime.json`.
    runtime: serde_json::Value,
    _state_dir: TempDir,
}

impl Daemon {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let models = repository().join("models");
        let model = "SmolLM2-135M-Instruct.Q4_1";
        assert!(
            models.join(format!("{model}.gguf")).exists(),
            "models/{model}.gguf is missing: scripts/fetch-models.sh"
        );
        let state_dir = TempDir::new().expect("a temporary folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_orinoco"));
        command.arg("run");
        let own = [
            ("paths.state_dir", text(state_dir.path())),
            ("paths.models_dir", text(&models)),
            ("model.active", model),
            ("engine.backend", "cpu"),
            // Two daemons side by side: threads that wait for one another would wait for the other too.
            ("engine.n_threads", "1"),
        ];
        for (key, value) in own.iter().chain(settings) {
            command.args(["--set", &format!("{key}={value}")]);
        }
        let mut child = command.stdin(Stdio::null()).spawn().expect("orinoco runs");
        let note = state_dir.path().join("runtime.json");
        let written = async {
            while !note.exists() {
                let ended = child.try_wait().expect("our own child");
                assert_eq!(ended, None, "orinoco ended while starting");
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START_LIMIT, written)
            .await
            .expect("orinoco takes requests");
        let runtime = fs::read(&note).expect("the file was just there");
        Self {
            child,
            runtime: serde_json::from_slice(&runtime).expect("JSON"),
            _state_dir: state_dir,
        }
    }

    /// All clients, one after the other, as this user.
    fn run_clients(&self, user: &str, password: Option<&str>) {
        let value = |key: &str| match &self.runtime[key] {
            serde_json::Value::String(value) => value.clone(),
            value => value.to_string(),
        };
        let output = Command::new(repository().join("tests/interop/run.sh"))
            .args([&value("host"), &value("port"), &value("node"), user])
            .env("ORINOCO_TEST_PASSWORD", password.unwrap_or_default())
            .output()
            .expect("bash runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let complained = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "\n{said}{complained}");
        for client in ["mosquitto", "paho5", "paho311", "mqttjs"] {
            assert!(
                said.contains(&format!("ok      {client}: cancel")),
                "{client} did not run:\n{said}"
            );
        }
        for example in ["python", "node", "shell", "c", "esp32"] {
            assert!(
                said.contains(&format!("ok      examples: {example}")),
                "the example in {example} did not run:\n{said}"
            );
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its children end with it.
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

/// Mosquitto with the access rules of `configs/mosquitto`.
struct Mosquitto {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Mosquitto {
    async fn start(users: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().expect("a temporary folder");
        let (passwords, conf) = (dir.path().join("passwd"), dir.path().join("conf"));
        fs::write(&passwords, "").expect("a temporary folder takes a file");
        for (user, password) in users {
            let made = Command::new("mosquitto_passwd")
                .args(["-b", text(&passwords), user, password])
                .status();
            assert!(
                made.is_ok_and(|status| status.success()),
                "mosquitto_passwd comes with mosquitto: scripts/test.sh installs it"
            );
        }
        let port = free_port();
        let shipped = repository().join("configs/mosquitto");
        let conf_text = fs::read_to_string(shipped.join("orinoco.conf"))
            .expect("shipped")
            .replace("listener 1883", &format!("listener {port}"))
            .replace("/etc/mosquitto/orinoco.passwd", text(&passwords))
            .replace(
                "/etc/mosquitto/orinoco.acl",
                text(&shipped.join("orinoco.acl")),
            );
        let rest = format!("persistence_location {}/\nuser root\n", text(dir.path()));
        fs::write(&conf, conf_text + &rest).expect("a temporary folder takes a file");
        // Debian keeps it out of the PATH of users.
        let program = ["/usr/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|program| !program.starts_with('/') || Path::new(program).exists())
            .expect("the last one is a name");
        let child = Command::new(program)
            .args(["-c", text(&conf)])
            .stderr(Stdio::null())
            .spawn()
            .expect("scripts/test.sh installs mosquitto");
        let listening = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_err()
            {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START_LIMIT, listening)
            .await
            .expect("mosquitto listens");
        Self { child, port, dir }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("paths here are UTF-8")
}
