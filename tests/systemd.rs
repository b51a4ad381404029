//! The daemon as a service of systemd: what it says and when, under a stand-in on a real NOTIFY_SOCKET.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a skipped test says so")]

mod support;

use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site, beside_orinoco, free_port, poll};
use support::journal::Journal;
use support::requester::Client;
use support::systemd::Manager;

const LOCAL: &str = "local";
/// Short, so that a test can last thrice as long; a service has half a minute.
const WATCHDOG: Duration = Duration::from_secs(2);

/// A site whose one model loads as its hooks say.
fn site_with_model(hooks: &str) -> Site {
    let site = Site::with_own_broker(Engine::Scripted);
    let models = site.dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    let site = site
        .set(format!("paths.models_dir={}", models.display()))
        .set("model.active=hooked");
    hook_model(&site, hooks);
    site
}

fn hook_model(site: &Site, hooks: &str) {
    std::fs::write(site.dir.path().join("models/hooked.gguf"), hooks).unwrap();
}

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s{i}")).collect()
}

/// "0 1 2 … " up to what fits in this many characters: what `!count` answers.
fn counted(bytes: usize) -> String {
    let mut text: String = (0..bytes).map(|n| format!("{n} ")).collect();
    text.truncate(bytes);
    text
}

fn all_whole(client: &Client, ids: &[String], bytes: usize) {
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ids {
        assert_eq!(client.text(id), counted(bytes), "{id}");
        assert_eq!(client.finals[id].len(), 1, "{id} has one final");
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

#[tokio::test]
async fn fifty_stored_jobs_and_a_load_of_thrice_the_watchdog_miss_no_beat() {
    let site = site_with_model("!load-ms 600000").set("engine.load_stall_seconds=3");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    // It is subscribed; before, nobody would hear the requests.
    client.until_mode(Mode::Loading).await;
    let ids = ids(50);
    for id in &ids {
        client.ask("chat", id, "!count !tokens 40").await;
    }
    client.until_accepted(&ids).await;
    drop(client);
    daemon.power_cut();

    hook_model(&site, "!load-ms 6000");
    let mut systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let daemon = site.start_with(|command| systemd.wrap(command));
    let ready = systemd.until("READY=1").at;
    let loading = systemd
        .until("STATUS=broker connected; loading hooked (")
        .line;
    assert!(loading.ends_with("; 0 running, 50 waiting"), "{loading}");
    let serving = systemd.until("STATUS=broker connected; serving hooked").at;
    assert!(serving - ready > WATCHDOG * 2, "ready before the model is");
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_ended(&ids).await;
    all_whole(&client, &ids, 40);
    let silence = systemd.longest_silence();
    assert!(silence < WATCHDOG, "silent for {silence:?}");
}

#[tokio::test]
async fn a_stopped_worker_is_replaced_and_systemd_hears_that_all_is_well() {
    // The worker may be silent for longer than systemd's patience: it is the supervisor's to judge.
    let site = Site::with_own_broker(Engine::Scripted).set("engine.step_stall_seconds=5");
    let mut systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let daemon = site.start_with(|command| systemd.wrap(command));
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let ids = ids(4);
    for id in &ids {
        client.ask("chat", id, "!count !tokens 200 !step 30").await;
    }
    client.until_text("s0").await;
    let stopped = daemon.child_named("orinoco-engine").unwrap();
    signal(stopped, Signal::SIGSTOP);
    client.until_ended(&ids).await;
    all_whole(&client, &ids, 200);
    let successor = daemon.child_named("orinoco-engine");
    assert!(successor.is_some_and(|pid| pid != stopped));
    let silence = systemd.longest_silence();
    assert!(silence < WATCHDOG, "silent for {silence:?}");
}

/// Nobody reads what the daemon logs, so that its loop hangs in the middle of a write, as it might on a disk
/// or a bus that does not answer. The threads go on; one of them feeding systemd would hide it.
#[tokio::test]
async fn a_hung_loop_is_not_fed_and_what_systemd_then_does_loses_no_job() {
    let site = Site::with_own_broker(Engine::Scripted);
    let pipe = site.dir.path().join("log");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let unread = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    nix::fcntl::fcntl(unread.as_fd(), nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let to_pipe = format!("exec 2>'{}'", pipe.display());
    let daemon = site.start_with(|command| systemd.wrap_with(command, &to_pipe));
    systemd.until("WATCHDOG=1");
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let ids = ids(6);
    for id in &ids {
        client.ask("chat", id, "!count !tokens 400 !step 10").await;
    }
    client.until_accepted(&ids).await;
    // What the worker logs goes through the supervisor; it fills the pipe.
    fill(&unread);
    poll(|| daemon.kill_worker().then_some(()));

    systemd.until_silent();
    signal(daemon.pid(), Signal::SIGABRT);
    daemon.wait();
    drop(unread);
    let systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let daemon = site.start_with(|command| systemd.wrap(command));
    let mut client = client.again(daemon.port).await;
    client.until_ended(&ids).await;
    all_whole(&client, &ids, 400);
}

/// Fills a pipe to the last byte.
fn fill(pipe: &std::fs::File) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::io::Write as _;
    fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut pipe = pipe;
    while pipe.write_all(&[b'x'; 512]).is_ok() {}
    while pipe.write_all(b"x").is_ok() {}
}

#[tokio::test]
async fn the_end_is_told_comes_in_time_and_loses_no_stream() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted).set("engine.drain_seconds=1");
    let mut systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let daemon = site.start_with(|command| systemd.wrap(command));
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    client.until_mode(Mode::Serving).await;
    let ids = ids(8);
    for id in &ids {
        client.ask("chat", id, "!count !tokens 500 !step 20").await;
    }
    client
        .until("text of all", |_, client| {
            ids.iter().all(|id| client.has_text(id))
        })
        .await;
    let from = Instant::now();
    let code = stop(daemon).await;
    assert_eq!(code, 0);
    systemd.until("STOPPING=1");
    let usec = systemd.until("EXTEND_TIMEOUT_USEC=").line;
    let usec: u64 = usec.split_once('=').unwrap().1.parse().unwrap();
    assert!(from.elapsed() < Duration::from_micros(usec), "{usec} µs");
    client.until_status("offline").await;

    let _daemon = site.start_with(|command| systemd.wrap(command));
    client.until_ended(&ids).await;
    all_whole(&client, &ids, 500);
    for id in &ids {
        assert_eq!(client.answers[id].attempt(), 2, "{id} starts again");
    }
}

/// An orderly end, while the client goes on.
async fn stop(daemon: Daemon) -> i32 {
    tokio::task::spawn_blocking(|| daemon.stop()).await.unwrap()
}

#[tokio::test]
async fn the_children_have_nothing_that_systemd_gave_to_the_daemon() {
    let site = Site::with_own_broker(Engine::Scripted);
    let mut systemd = Manager::new(site.dir.path(), Some(WATCHDOG));
    let daemon = site.start_with(|command| {
        systemd.wrap(command);
        command.env("CREDENTIALS_DIRECTORY", site.dir.path());
    });
    // Whoever plans a model is gone by then.
    systemd.until("STATUS=broker connected; serving");
    let environment = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment(daemon.pid()).contains("NOTIFY_SOCKET="));
    let command = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let children = poll(|| {
        let children = support::daemon::children_of(daemon.pid());
        // One that has not become its program yet is still the daemon, with all that this has.
        let own = command(daemon.pid());
        let are_there = children.len() == 2 && children.iter().all(|pid| command(*pid) != own);
        are_there.then_some(children)
    });
    for child in children {
        let environment = environment(child);
        for name in ["NOTIFY_SOCKET=", "WATCHDOG_", "CREDENTIALS_DIRECTORY="] {
            assert!(!environment.contains(name), "{name} in {environment}");
        }
    }
}

// ---- the broker as a service of its own ----------------------------------------------------------------

/// The two services share a credential and a configuration, and each has a socket to say how it goes.
struct Unit {
    site: Site,
    port: u16,
}

/// Ends with the test.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Unit {
    fn new() -> Self {
        let port = free_port();
        let site = Site::with_own_broker(Engine::Scripted)
            .set("broker.mode=unit")
            .set(format!("broker.port={port}"));
        let unit = Self { site, port };
        let state = unit.site.dir.path().join("state");
        std::fs::create_dir(state).unwrap();
        for service in ["daemon", "broker"] {
            std::fs::create_dir(unit.credentials(service)).unwrap();
            let file = unit.credentials(service).join("mqtt.password");
            std::fs::write(&file, "0123456789abcdef\n").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o400)).unwrap();
        }
        unit
    }

    fn credentials(&self, service: &str) -> std::path::PathBuf {
        self.site.dir.path().join(format!("credentials-{service}"))
    }

    fn broker_command(&self) -> Command {
        let dir = self.site.dir.path();
        let mut command = Command::new(beside_orinoco("orinoco"));
        command.args(["broker", "--config"]).arg(dir);
        for setting in [
            "broker.mode=unit".to_owned(),
            format!("broker.port={}", self.port),
            format!("broker.storage_dir={}", dir.join("sessions").display()),
            format!("paths.state_dir={}", dir.join("state").display()),
        ] {
            command.args(["--set", &setting]);
        }
        command
    }

    /// Returns when it says that it is ready.
    fn start_broker(&self) -> (Broker, Manager) {
        let dir = self.site.dir.path().join("broker-notify");
        std::fs::create_dir_all(&dir).unwrap();
        let mut systemd = Manager::new(&dir, Some(WATCHDOG));
        let mut command = self.broker_command();
        systemd.wrap(&mut command);
        command.env("CREDENTIALS_DIRECTORY", self.credentials("broker"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let broker = Broker(command.spawn().unwrap());
        systemd.until("READY=1");
        (broker, systemd)
    }

    fn start_daemon(&self) -> (Daemon, Manager) {
        let systemd = Manager::new(self.site.dir.path(), Some(WATCHDOG));
        let daemon = self.site.start_with(|command| {
            systemd.wrap(command);
            command.env("CREDENTIALS_DIRECTORY", self.credentials("daemon"));
        });
        (daemon, systemd)
    }
}

#[tokio::test]
async fn broker_and_daemon_are_services_of_their_own_and_each_outlives_the_other() {
    let unit = Unit::new();
    let (broker, mut of_broker) = unit.start_broker();
    let listening = of_broker.until("STATUS=listening on ").line;
    assert!(
        listening.ends_with(&format!(":{}", unit.port)),
        "{listening}"
    );
    of_broker.until("WATCHDOG=1");
    let (daemon, mut of_daemon) = unit.start_daemon();
    assert_eq!(daemon.port, unit.port);
    of_daemon.until("STATUS=broker connected; serving");
    assert!(
        daemon.child_named("orinoco").is_none_or(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .unwrap()
                .trim()
                != "orinoco"
        }),
        "it has no broker of its own"
    );
    let mut client = Client::connect(unit.port, unit.site.node, LOCAL, None).await;
    client.ask("chat", "a", "!count !tokens 30").await;
    client.until_ended(&["a".into()]).await;

    // The broker dies under a stream: the daemon stays, and the stream ends in the broker's next life.
    client.ask("chat", "b", "!count !tokens 300 !step 5").await;
    client.until_text("b").await;
    drop(broker);
    of_daemon.until("STATUS=no broker");
    let (mut broker, mut of_broker) = unit.start_broker();
    client.until_ended(&["b".into()]).await;
    all_whole(&client, &["b".into()], 300);

    // The daemon ends: the broker stays, and tells who asks that the node is gone.
    assert_eq!(stop(daemon).await, 0);
    client.until_status("offline").await;
    let silence = of_broker.longest_silence();
    assert!(silence < WATCHDOG, "silent for {silence:?}");
    signal(broker.0.id() as i32, Signal::SIGTERM);
    of_broker.until("STOPPING=1");
    assert!(broker.0.wait().unwrap().success());
}

#[test]
fn a_unit_without_the_password_of_the_daemon_says_where_it_comes_from() {
    let unit = Unit::new();
    let Output { status, stderr, .. } = unit.broker_command().output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success());
    assert!(stderr.contains("orinoco-password.service"), "{stderr}");
}

// ---- the journal ---------------------------------------------------------------------------------------

/// With all that is logged below `trace`: what a prompt says, what was answered and what opens the broker
/// stays out, and what an operator looks for is a field.
#[tokio::test]
async fn the_journal_has_fields_and_neither_prompts_nor_secrets() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let Some(mut journal) = Journal::open(site.dir.path()) else {
        eprintln!("skipped: mount namespaces are not allowed here");
        return;
    };
    let password = site.dir.path().join("password");
    std::fs::write(&password, "opensesame\n").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    let site = site
        .set("log.format=journal")
        .set("log.level=debug")
        .set("mqtt.username=daemon")
        .set(format!("mqtt.password_file={}", password.display()));
    let daemon = site.start_with(|command| journal.wrap(command));
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    client.until_mode(Mode::Serving).await;
    // Answered (with an echo), refused, cancelled, and interrupted by a death of the worker.
    client.ask("chat", "a", "sesquipedalian !tokens 40").await;
    client.ask("chat", "b", "{\"sesquipedalian\": 1}").await;
    client
        .ask("chat", "c", "sesquipedalian !tokens 4000 !step 5")
        .await;
    client.until_text("c").await;
    assert!(daemon.kill_worker());
    client.cancel("c").await;
    client
        .until_ended(&["a".into(), "b".into(), "c".into()])
        .await;
    assert_eq!(stop(daemon).await, 0);
    journal.until("orinoco ended");

    let serves = journal
        .entries
        .iter()
        .find(|entry| entry["MESSAGE"] == "model serves")
        .unwrap();
    let field = |name: &str| serves.get(name).map(String::as_str);
    assert_eq!(field("SYSLOG_IDENTIFIER"), Some("orinoco"));
    assert_eq!(field("PRIORITY"), Some("5"));
    assert_eq!(field("ORINOCO_MODEL"), Some("SmolLM2-135M-Instruct.Q4_1"));
    assert!(field("ORINOCO_N_CTX").is_some_and(|n| n.parse::<u32>().is_ok()));
    let ended = |entry: &&support::journal::Entry| entry["MESSAGE"] == "worker ended";
    let died = journal.entries.iter().find(ended).unwrap();
    assert_eq!(died["PRIORITY"], "4");
    assert_eq!(died["ORINOCO_CAUSE"], "was killed with SIGKILL");
    for entry in &journal.entries {
        let text = format!("{entry:?}");
        for secret in ["sesquipedalian", "opensesame"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

// ---- the unit files ------------------------------------------------------------------------------------

const SERVICES: [&str; 4] = [
    "orinoco",
    "orinoco-broker",
    "orinoco-password",
    "orinoco-usb",
];
const USB_MOUNT: &str = "run-orinoco-usb.mount";

/// The services, with programs that exist here. `None` without systemd's tools.
fn unit_files() -> Option<tempfile::TempDir> {
    let found = Command::new("systemd-analyze").arg("--version").output();
    if found.is_err() {
        eprintln!("skipped: systemd-analyze is not installed");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = beside_orinoco("orinoco");
    for service in SERVICES {
        let name = format!("{service}.service");
        let text = std::fs::read_to_string(units().join(&name)).unwrap();
        let text = text.replace("/usr/bin/orinoco", program.to_str().unwrap());
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    std::fs::copy(units().join(USB_MOUNT), dir.path().join(USB_MOUNT)).unwrap();
    Some(dir)
}

fn units() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn analyze(dir: &Path, args: &[&str]) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.args(args);
    for service in SERVICES {
        command.arg(dir.join(format!("{service}.service")));
    }
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let said = [stdout, stderr].concat();
    (status.success(), String::from_utf8(said).unwrap())
}

/// It ends with success for keys that it does not know, so that any word of it counts.
#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let Some(dir) = unit_files() else { return };
    let (is_fine, said) = analyze(dir.path(), &["verify"]);
    assert!(is_fine && said.is_empty(), "{said}");
    // The same check on a unit that is wrong, or it would show nothing.
    let path = dir.path().join("orinoco.service");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("KillMode=", "KilMode=")).unwrap();
    let (_, said) = analyze(dir.path(), &["verify"]);
    assert!(said.contains("KilMode"), "{said}");
}

#[test]
fn the_exposure_of_each_service_is_at_most_two() {
    let Some(dir) = unit_files() else { return };
    let args = ["security", "--offline=true", "--threshold=20", "--no-pager"];
    let (is_fine, said) = analyze(dir.path(), &args);
    assert!(is_fine, "{said}");
    let lower = ["security", "--offline=true", "--threshold=5", "--no-pager"];
    assert!(!analyze(dir.path(), &lower).0, "a threshold that holds");
}

/// What the comments of the units promise about the configuration.
#[test]
fn the_times_of_the_unit_leave_room_for_those_of_the_daemon() {
    let unit = std::fs::read_to_string(units().join("orinoco.service")).unwrap();
    let seconds = |key: &str| -> u64 {
        let line = unit.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap().parse().unwrap()
    };
    let config = orinoco::config::load(&orinoco::config::Sources::defaults()).unwrap();
    let drain = config.engine.drain.as_secs();
    assert!(seconds("TimeoutStopSec=") >= drain + 20);
    assert!(unit.contains("RestartPreventExitStatus=78 64\n"));
    assert_eq!(orinoco::cli::exit::CONFIG, 78);
    assert_eq!(orinoco::cli::exit::USAGE, 64);
}

/// What stands on a stick is a stranger's: it is read, and nothing else is done with it.
#[test]
fn a_stick_is_mounted_read_only_without_devices_programs_and_other_users() {
    let mount = std::fs::read_to_string(units().join(USB_MOUNT)).unwrap();
    let options = mount
        .lines()
        .find_map(|line| line.strip_prefix("Options="))
        .unwrap();
    let options: Vec<&str> = options.split(',').collect();
    for wanted in ["ro", "nosuid", "nodev", "noexec", "umask=0077"] {
        assert!(options.contains(&wanted), "{wanted} is not in {options:?}");
    }
    let service = std::fs::read_to_string(units().join("orinoco-usb.service")).unwrap();
    let remounts: Vec<&str> = service
        .lines()
        .filter(|line| line.contains("remount"))
        .collect();
    assert_eq!(remounts.len(), 2);
    for remount in remounts {
        assert!(remount.contains(",nosuid,nodev,noexec "), "{remount}");
    }
    if let Some(dir) = unit_files() {
        let mount = dir.path().join(USB_MOUNT);
        let output = Command::new("systemd-analyze")
            .arg("verify")
            .arg(mount)
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
}

/// Names that must be the same in three files that no program reads together.
#[test]
fn the_rule_the_mount_and_the_service_speak_of_the_same_stick() {
    let read = |name: &str| std::fs::read_to_string(units().join(name)).unwrap();
    let rule = read("orinoco-usb.rules");
    let rule = rule.lines().find(|line| !line.starts_with('#')).unwrap();
    for part in [
        r#"ENV{ID_FS_LABEL}=="ORINOCO""#,
        r#"ENV{ID_BUS}=="usb""#,
        r#"ENV{ID_FS_TYPE}=="vfat|exfat""#,
        r#"ENV{SYSTEMD_WANTS}+="orinoco-usb.service""#,
    ] {
        assert!(rule.contains(part), "{part} is not in {rule}");
    }
    let (mount, service) = (read(USB_MOUNT), read("orinoco-usb.service"));
    assert!(mount.contains("What=/dev/disk/by-label/ORINOCO\n"));
    assert!(mount.contains("Where=/run/orinoco/usb\n"));
    assert!(service.contains("BindsTo=run-orinoco-usb.mount\n"));
    assert!(service.contains("orinoco ota apply /run/orinoco/usb\n"));
    assert!(service.contains("orinoco ota report /run/orinoco/usb\n"));
}
