//! The doctor on this machine: what it hears from a running daemon, from brokers, and from the engine.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::broker::{Mosquitto, free_port};
use crate::support::daemon::{Engine, Site};

/// Status and words of each line.
struct Lines(BTreeMap<String, (String, String)>);

impl Lines {
    fn status(&self, id: &str) -> &str {
        &self.0[id].0
    }

    fn found(&self, id: &str) -> &str {
        &self.0[id].1
    }

    #[track_caller]
    fn assert(&self, id: &str, status: &str, words: &str) {
        let (found_status, found) = &self.0[id];
        assert!(
            found_status == status && found.contains(words),
            "{id}: {found_status} {found}"
        );
    }
}

fn doctor(site: &Site, args: &[&str]) -> Lines {
    let output = site
        .command(&[&["doctor", "--json"], args].concat())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    let lines = report["checks"].as_array().unwrap().iter().map(|line| {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("id"), (text("status"), text("found")))
    });
    Lines(lines.collect())
}

#[test]
fn a_running_daemon_is_asked_what_it_does() {
    let site = Site::with_own_broker(Engine::Scripted);
    let daemon = site.start();
    // A look takes about 70 ms; a busy machine has needed fifty of them until the model serves.
    let give_up = Instant::now() + Duration::from_secs(60);
    let lines = std::iter::from_fn(|| (Instant::now() < give_up).then(|| doctor(&site, &[])))
        .find(|lines| {
            let serves = lines.found("daemon.state").contains("(serving)");
            serves && lines.status("broker.acl") == "ok"
        })
        .expect("a daemon that serves says so");
    lines.assert("daemon.running", "ok", &format!("process {}", daemon.pid()));
    lines.assert("broker.reachable", "ok", "without an account");
    lines.assert("broker.acl", "ok", "4 publishes");
    lines.assert("engine.hello", "ok", "orinoco-engine-scripted");
    // Beside a GPU it warns of the CPU, which this site has chosen.
    assert!(matches!(lines.status("engine.offload"), "ok" | "warn"));
    lines.assert("engine.splits", "skipped", "CPU");
}

#[test]
fn a_daemon_that_died_is_told_from_one_that_was_never_started() {
    let site = Site::with_own_broker(Engine::Scripted);
    doctor(&site, &[]).assert("daemon.running", "warn", "no daemon has written");
    site.start().power_cut();
    let lines = doctor(&site, &[]);
    lines.assert("daemon.running", "fail", "is gone");
    lines.assert("daemon.state", "skipped", "no daemon runs");
    lines.assert("broker.reachable", "skipped", "child of the daemon");
}

/// Mosquitto with the daemon's account, and these lines about rules.
async fn mosquitto(dir: &Path, rules: &str) -> Mosquitto {
    let passwords = dir.join("passwords");
    let made = Command::new("mosquitto_passwd")
        .args(["-b", "-c"])
        .arg(&passwords)
        .args(["daemon", "of the daemon"])
        .status();
    assert!(made.unwrap().success());
    let conf = format!(
        "allow_anonymous false\npassword_file {}\n{rules}",
        passwords.display()
    );
    Mosquitto::start_with(&conf).await
}

fn site_of(dir: &Path, port: u16, password: &str) -> Site {
    let file = dir.join("mqtt.password");
    fs::write(&file, password).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    Site::with_broker_on(port, Engine::Scripted)
        .set("mqtt.username=daemon")
        .set(format!("mqtt.password_file={}", file.display()))
}

#[tokio::test]
async fn the_rules_of_a_broker_are_tried_with_the_daemons_account() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("acl");
    let written = Site::with_broker_on(1, Engine::Scripted)
        .set("mqtt.username=daemon")
        .command(&["acl", "--format", "mosquitto"])
        .output()
        .unwrap();
    fs::write(&file, written.stdout).unwrap();
    let broker = mosquitto(dir.path(), &format!("acl_file {}\n", file.display())).await;
    let site = site_of(dir.path(), broker.port(), "of the daemon");
    let lines = doctor(&site, &[]);
    lines.assert("config.credentials", "ok", "mqtt.password");
    lines.assert("broker.reachable", "ok", "as daemon");
    lines.assert("broker.anonymous", "ok", "not let in");
    lines.assert("broker.acl", "ok", "3 publishes");

    let wrong = site_of(dir.path(), broker.port(), "of somebody else");
    doctor(&wrong, &[]).assert("broker.reachable", "fail", "as daemon");
}

#[tokio::test]
async fn a_broker_without_our_rules_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let open = mosquitto(dir.path(), "").await;
    let lines = doctor(&site_of(dir.path(), open.port(), "of the daemon"), &[]);
    lines.assert("broker.acl", "fail", "publishing is not refused to orinoco");

    let file = dir.path().join("acl");
    fs::write(&file, "user daemon\ntopic read #\n").unwrap();
    let closed = mosquitto(dir.path(), &format!("acl_file {}\n", file.display())).await;
    let lines = doctor(&site_of(dir.path(), closed.port(), "of the daemon"), &[]);
    lines.assert("broker.acl", "fail", "publishing to orinoco/v1/resp/");
}

#[tokio::test]
async fn a_broker_that_lets_anybody_in_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Mosquitto::start().await;
    let lines = doctor(&site_of(dir.path(), broker.port(), "anything"), &[]);
    lines.assert("broker.anonymous", "warn", "without an account");
}

#[test]
fn a_broker_that_is_not_there_is_a_failure_and_so_is_an_engine_that_says_nothing() {
    let site =
        Site::with_broker_on(free_port(), Engine::Scripted).set("engine.worker_path=/bin/true");
    let lines = doctor(&site, &[]);
    lines.assert("broker.reachable", "fail", "refused");
    lines.assert("broker.acl", "skipped", "broker.reachable");
    lines.assert("engine.hello", "fail", "/bin/true");
}

#[test]
fn each_model_is_planned_by_the_engine_against_what_memory_has() {
    let site = Site::with_own_broker(Engine::Smol);
    let lines = doctor(&site, &[]);
    lines.assert("models.fit", "ok", "SmolLM2-135M-Instruct.Q4_1 ");
    lines.assert("models.fit", "ok", "with 2048 tokens");
    // Whatever a machine has, nothing fits beside a reserve of all of it.
    let site = site.set("memory.reserve_bytes=1000000000000");
    doctor(&site, &[]).assert("models.fit", "warn", "does not fit");
}
