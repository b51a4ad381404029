//! Signed releases go into service while streams run, and come out of it again by themselves when they do not
//! work: with the publisher's own tool, a plain static web server, a real broker and real processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "ota_deploy/crash.rs"]
mod crash;
#[path = "ota_deploy/fleet.rs"]
mod fleet;
#[path = "ota_deploy/health.rs"]
mod health;
#[path = "ota_deploy/hostile.rs"]
mod hostile;
#[path = "ota_deploy/kept.rs"]
mod kept;
#[path = "support/proxy.rs"]
mod proxy;
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use orinoco::link::{self, Inbound, LinkConfig};
use orinoco::ota::Reason;
use orinoco::ota::deploy::State;
use orinoco::ota::state::Phase;
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{
    Daemon, Engine, GEMMA, SMOL, Site, beside_orinoco, free_port, models_dir, poll,
};
use support::requester::Client;

const MIB: u64 = 1 << 20;

/// A publisher with its keys, and a web server for its repository.
struct Publisher {
    dir: tempfile::TempDir,
    server: Option<Child>,
    port: u16,
    /// Its clock, when that is another than ours.
    now: Option<&'static str>,
}

impl Publisher {
    fn new() -> Self {
        Self::with_clock(None)
    }

    /// Somebody who signed at that time.
    fn at(now: &'static str) -> Self {
        Self::with_clock(Some(now))
    }

    fn with_clock(now: Option<&'static str>) -> Self {
        let publisher = Self {
            dir: tempfile::tempdir().unwrap(),
            server: None,
            port: free_port(),
            now,
        };
        let (repo, keys) = (publisher.repo(), publisher.keys());
        publisher.run(&["init", &text(&repo), "--keys", &text(&keys)]);
        publisher
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    fn run(&self, args: &[&str]) {
        let now = self.now.map(|now| ["--now", now]);
        let output = Command::new(beside_orinoco("orinoco-ota"))
            .args(now.iter().flatten())
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "orinoco-ota {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Takes a model in as the next release of the line, and signs.
    fn release(&self, model: &str, id: &str, golden: [&str; 2], health: &str) {
        let health: serde_json::Value = serde_json::from_str(health).unwrap();
        let manifest = serde_json::json!({"model": {"licence": "Apache-2.0"}, "health": health});
        self.release_as(model, id, golden, &manifest);
    }

    /// The same, with what the publisher says of it.
    fn release_as(&self, model: &str, id: &str, golden: [&str; 2], said: &serde_json::Value) {
        let manifest = self.dir.path().join(format!("{id}.json"));
        std::fs::write(&manifest, said.to_string()).unwrap();
        self.run(&[
            "add",
            &text(&self.repo()),
            &text(&models_dir().join(model)),
            "--line",
            "assistant",
            "--id",
            id,
            "--licence",
            "Apache-2.0",
            "--manifest",
            &text(&manifest),
            "--golden",
            golden[0],
            golden[1],
        ]);
        self.run(&["sign", &text(&self.repo()), "--keys", &text(&self.keys())]);
    }

    /// Publishes settings for the fleet.
    fn policy(&self, settings: &str) {
        let path = self.dir.path().join("policy.toml");
        std::fs::write(&path, format!("schema = 1\n{settings}")).unwrap();
        self.run(&["policy", &text(&self.repo()), &text(&path)]);
        self.run(&["sign", &text(&self.repo()), "--keys", &text(&self.keys())]);
    }

    fn serve(&mut self) {
        let child = Command::new("python3")
            .args([
                "-m",
                "http.server",
                "--bind",
                "127.0.0.1",
                &self.port.to_string(),
                "-d",
            ])
            .arg(self.repo())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.server = Some(child);
        poll(|| std::net::TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    fn vanish(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// A device of this publisher's fleet.
    fn provision(&self, site: Site) -> Site {
        let root = self.repo().join("metadata/1.root.json");
        site.set(format!("ota.fetch.sources=http://127.0.0.1:{}", self.port))
            .set(format!("ota.root_file={}", root.display()))
            .set("ota.group=default")
            .set("ota.fetch.reserve_bytes=0")
            .set("ota.deploy.check_minutes=0")
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.vanish();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A board with so much memory; only that can be read of it.
struct Board(tempfile::TempDir);

impl Board {
    fn with_memory(total_mib: u64, available_mib: u64) -> Self {
        let board = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(board.0.path().join("proc")).unwrap();
        board.set_memory(total_mib, available_mib);
        board
    }

    fn set_memory(&self, total_mib: u64, available_mib: u64) {
        let path = self.0.path().join("proc/meminfo");
        let (total, available) = (total_mib * 1024, available_mib * 1024);
        let text = format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
        // Replaced as a whole: a reader sees the old or the new.
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// What a node tells of its updates.
struct Watcher(Client);

impl Watcher {
    async fn new(port: u16) -> Self {
        Self(Client::watch(port, "orinoco/v1/n1/ota/state").await)
    }

    async fn until(&mut self, what: &str, is_it: impl Fn(&State) -> bool) -> State {
        let state = |client: &Client| {
            let bytes = client.documents.get("state")?;
            Some(serde_json::from_slice::<State>(bytes).unwrap())
        };
        self.0
            .until(what, |_, client| {
                state(client).is_some_and(|state| is_it(&state))
            })
            .await;
        state(&self.0).unwrap()
    }

    async fn until_over(&mut self, deployment: &str) -> State {
        self.until(deployment, |state| {
            state.deployment.as_deref() == Some(deployment)
                && state.state.is_some_and(Phase::is_over)
        })
        .await
    }
}

async fn desire(client: &mut Client, seq: u64, deployment: &str, release_seq: u64) {
    let wish = serde_json::json!({
        "desired_seq": seq, "deployment": deployment, "line": "assistant", "release_seq": release_seq,
    });
    client
        .publish_retained(
            "orinoco/v1/fleet/default/desired".into(),
            wish.to_string().into(),
        )
        .await;
}

fn active(state: &State) -> Option<(u64, &str)> {
    let line = state.lines.first()?;
    Some((line.active.release_seq, line.active.model.as_str()))
}

/// All messages to a user that say that its stream is parked.
async fn parked(port: u16) -> tokio::task::JoinHandle<Vec<String>> {
    let mut config = LinkConfig::new("127.0.0.1", port, "parked");
    config.subscriptions = vec!["orinoco/v1/resp/#".into()];
    let (link, mut inbox) = link::spawn(config);
    let (up, is_up) = tokio::sync::oneshot::channel();
    let mut up = Some(up);
    let task = tokio::spawn(async move {
        let mut found = Vec::new();
        while let Some(inbound) = inbox.recv().await {
            match inbound {
                Inbound::Up { .. } => drop(up.take().map(|up| up.send(()))),
                Inbound::Message(message) => {
                    let payload = String::from_utf8_lossy(&message.payload).into_owned();
                    let is_last = message.topic.ends_with("/over");
                    link.try_ack(message.ack).unwrap();
                    if payload.contains("\"parked\":{") {
                        found.push(payload);
                    }
                    if is_last {
                        break;
                    }
                }
                _ => {}
            }
        }
        found
    });
    is_up.await.unwrap();
    task
}

async fn stream(client: &mut Client, id: &str, n_tokens: u32) {
    let ask = format!("!count !step 8 !tokens {n_tokens}");
    client.ask("chat", id, &serde_json::json!({"messages": [{"role": "user", "content": ask}], "max_tokens": n_tokens + 10}).to_string()).await;
    let id = id.to_owned();
    client
        .until("its first text", |_, client| {
            client
                .answers
                .get(&id)
                .is_some_and(|answer| !answer.text().is_empty())
        })
        .await;
}

fn is_whole(client: &Client, id: &str, n_tokens: usize) {
    let text = client.text(id);
    assert_eq!(client.faults, Vec::<String>::new());
    assert_eq!(text.len(), n_tokens, "{id}");
    let numbers: String = (0..n_tokens).map(|n| format!("{n} ")).collect();
    assert!(
        numbers.starts_with(text),
        "{id}: nothing is missing and nothing repeated"
    );
}

/// A device whose own model has 600 MiB mapped, and whose pool takes 256 MiB.
fn scripted(publisher: &Publisher, broker: &Mosquitto, board: &Board, models: &Path) -> Site {
    std::fs::write(
        models.join("own.gguf"),
        format!("!weights-bytes {}\n!mapped\n", 600 * MIB),
    )
    .unwrap();
    empty(publisher, broker, board, models)
}

/// A device without a model.
fn empty(publisher: &Publisher, broker: &Mosquitto, board: &Board, models: &Path) -> Site {
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set(format!("paths.board_root={}", board.path().display()))
        .set(format!("paths.models_dir={}", models.display()))
        .set("model.active=")
        .set("model.n_ctx=262144")
        .set("watchdog.enabled=false")
        .set("memory.reserve_bytes=268435456")
        .set("defaults.max_tokens_max=5000");
    publisher.provision(site)
}

/// A device of the fleet with its own model in service, somebody who asks it, and somebody who watches its updates.
struct Device {
    models: tempfile::TempDir,
    board: Board,
    broker: Mosquitto,
    site: Site,
    daemon: Daemon,
    client: Client,
    watcher: Watcher,
}

impl Device {
    async fn of(publisher: &Publisher) -> Self {
        Self::with(publisher, |site| site).await
    }

    async fn with(publisher: &Publisher, change: impl FnOnce(Site) -> Site) -> Self {
        let (board, models) = (Board::with_memory(8192, 1200), tempfile::tempdir().unwrap());
        let broker = Mosquitto::start().await;
        let site = change(scripted(publisher, &broker, &board, models.path()));
        let daemon = site.start();
        let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
        let watcher = Watcher::new(broker.port()).await;
        client.until_mode(Mode::Serving).await;
        Self {
            models,
            board,
            broker,
            site,
            daemon,
            client,
            watcher,
        }
    }
}

/// The code of an error that tells what is to come.
fn refused(client: &Client, id: &str) -> String {
    let end: serde_json::Value =
        serde_json::from_slice(client.finals[id].first().unwrap()).unwrap();
    let code = end["error"]["code"].as_str().unwrap_or_default();
    let text = end["error"]["message"].as_str().unwrap_or_default();
    assert!(text.contains("release"), "it says what is to come: {text}");
    code.to_owned()
}

#[tokio::test]
async fn a_board_without_a_model_says_so_and_serves_the_first_release_that_arrives() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "London"], "{}");
    publisher.serve();
    let (board, models) = (Board::with_memory(8192, 1200), tempfile::tempdir().unwrap());
    let broker = Mosquitto::start().await;
    // The line is what is to serve, before there is anything of it.
    let site = empty(&publisher, &broker, &board, models.path()).set("model.active=assistant");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    let mut watcher = Watcher::new(broker.port()).await;
    client.until_mode(Mode::NoModel).await;
    let state: orinoco::wire::report::State =
        serde_json::from_slice(&client.documents["state"]).unwrap();
    assert_eq!(state.model, None);
    assert!(state.reasons[0].contains("assistant"), "{state:?}");
    let ask = async |client: &mut Client, op: &str, id: &str, body: &str| {
        client.ask(op, id, body).await;
        client.until_ended(&[id.into()]).await;
    };
    ask(&mut client, "chat", "early", "hi !tokens 2").await;
    assert_eq!(refused(&client, "early"), "no_model");
    ask(
        &mut client,
        "chat",
        "named",
        r#"{"model":"assistant","messages":[{"role":"user","content":"hi"}]}"#,
    )
    .await;
    assert_eq!(refused(&client, "named"), "no_model");
    ask(&mut client, "tokenize", "count", r#"{"prompt":"hi"}"#).await;
    assert_eq!(refused(&client, "count"), "no_model");

    // One that does not work leaves the board as it was.
    desire(&mut client, 1, "d-1", 1).await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::RolledBack), Some(Reason::ProbeGolden)),
        "{}",
        site.log()
    );
    ask(&mut client, "chat", "still", "hi !tokens 2").await;
    assert_eq!(refused(&client, "still"), "no_model");

    publisher.release(SMOL, "smol-2", ["Paris", "(?i)paris"], "{}");
    desire(&mut client, 2, "d-2", 2).await;
    let state = watcher.until_over("d-2").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Committed), None),
        "{}",
        site.log()
    );
    client.until_mode(Mode::Serving).await;
    ask(&mut client, "chat", "first", "hi !tokens 2").await;
    assert_eq!(client.text("first"), "hi");

    // The next start finds it.
    publisher.vanish();
    daemon.power_cut();
    let _daemon = site.start();
    ask(&mut client, "chat", "again", "here !tokens 4").await;
    assert_eq!(client.text("again"), "here");
}

#[tokio::test]
async fn streams_go_on_beside_an_update_or_are_parked_told_and_go_on() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let Device {
        models: _models,
        board: _board,
        broker,
        site,
        daemon: _daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;
    let told = parked(broker.port()).await;

    // 1200 less 600 that are mapped less 256: 344, and 292 are needed. Nobody waits.
    stream(&mut client, "beside", 600).await;
    desire(&mut client, 1, "d-1", 1).await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Committed), None),
        "{}",
        site.log()
    );
    assert_eq!(active(&state), Some((1, "smol-1")));
    assert_eq!(state.installed_version.as_deref(), Some("smol-1"));
    client.until_ended(&["beside".into()]).await;
    is_whole(&client, "beside", 600);

    // Requests name the line, whichever release serves.
    let body = r#"{"model":"assistant","messages":[{"role":"user","content":"hi !tokens 2"}]}"#;
    client.ask("chat", "by-line", body).await;
    client.until_ended(&["by-line".into()]).await;
    assert_eq!(client.text("by-line"), "hi");

    client.ask("chat", "over", "bye !tokens 3").await;
    client.until_ended(&["over".into()]).await;
    assert_eq!(
        told.await.unwrap(),
        Vec::<String>::new(),
        "nobody was parked"
    );
}

#[tokio::test]
async fn where_memory_does_not_hold_both_streams_are_parked_with_an_eta_and_go_on() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let Device {
        models: _models,
        board,
        broker,
        site,
        daemon: _daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;
    // 1100 less 600 less 256: 244, and 292 are needed. After the old one there is room.
    board.set_memory(8192, 1100);
    let told = parked(broker.port()).await;
    stream(&mut client, "waits", 1000).await;
    desire(&mut client, 1, "d-1", 1).await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Committed), None),
        "{}",
        site.log()
    );
    client.until_ended(&["waits".into()]).await;
    is_whole(&client, "waits", 1000);
    client.ask("chat", "over", "bye !tokens 3").await;
    client.until_ended(&["over".into()]).await;
    let told = told.await.unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    let told: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!(told["orinoco"]["parked"]["reason"], "update");
    assert!(told["orinoco"]["parked"]["eta_ms"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_release_that_fails_or_crashes_goes_back_by_itself_and_tells_why() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let Device {
        models: _models,
        board: _board,
        broker: _broker,
        site,
        daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;
    desire(&mut client, 1, "d-1", 1).await;
    assert_eq!(
        watcher.until_over("d-1").await.state,
        Some(Phase::Committed)
    );

    stream(&mut client, "through", 800).await;
    let bad = [
        ("wrong", ["Paris", "London"], Reason::ProbeGolden),
        ("crash", ["!abort at 2", "x"], Reason::ProbeCrash),
        ("broken", ["!fail at 2", "x"], Reason::ProbeGolden),
    ];
    for (number, (name, golden, reason)) in (2..).zip(bad) {
        publisher.release(GEMMA, &format!("gemma-{name}"), golden, "{}");
        desire(&mut client, number, &format!("d-{name}"), number).await;
        let state = watcher.until_over(&format!("d-{name}")).await;
        assert_eq!(
            (state.state, state.reason),
            (Some(Phase::RolledBack), Some(reason)),
            "{state:?}"
        );
        assert_eq!(active(&state), Some((1, "smol-1")));
    }
    client.until_ended(&["through".into()]).await;
    is_whole(&client, "through", 800);

    // A power cut, and no mirror any more: what was in service is.
    publisher.vanish();
    daemon.power_cut();
    let _daemon = site.start();
    client
        .ask(
            "chat",
            "after",
            r#"{"model":"smol-1","messages":[{"role":"user","content":"here !tokens 4"}]}"#,
        )
        .await;
    client.until_ended(&["after".into()]).await;
    assert_eq!(client.text("after"), "here");
}

#[tokio::test]
async fn an_operator_rolls_back_with_the_network_gone_and_asks_by_command() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.release(GEMMA, "gemma-2", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let Device {
        models: _models,
        board: _board,
        broker,
        site: _site,
        daemon: _daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;
    for (seq, id) in [(1, "d-1"), (2, "d-2")] {
        desire(&mut client, seq, id, seq).await;
        assert_eq!(watcher.until_over(id).await.state, Some(Phase::Committed));
    }
    publisher.vanish();
    let topic = "orinoco/v1/n1/cmd/ota/c1";
    let mut answers = Client::watch(broker.port(), topic).await;
    client
        .publish_retained(
            topic.into(),
            r#"{"status":"init","action":"rollback"}"#.into(),
        )
        .await;
    answers
        .until("the answer", |_, client| {
            let document = client.documents.get("c1");
            document.is_some_and(|bytes| bytes.windows(10).any(|part| part == b"successful"))
        })
        .await;
    let state = watcher
        .until("the release before", |state| {
            active(state) == Some((1, "smol-1"))
        })
        .await;
    assert_eq!(state.state, Some(Phase::RolledBack));
    client
        .until("the release before serves", |_, client| {
            let state: Option<orinoco::wire::report::State> = client
                .documents
                .get("state")
                .and_then(|bytes| serde_json::from_slice(bytes).ok());
            state.is_some_and(|state| {
                state.model.as_deref() == Some("smol-1") && state.mode == Mode::Serving
            })
        })
        .await;
}

/// The real thing: SmolLM2, then Gemma-3 as its successor with streams in flight, then one whose golden prompt
/// fails.
#[tokio::test]
async fn real_models_follow_each_other_with_streams_in_flight() {
    let mut publisher = Publisher::new();
    let health = r#"{"load_ms_max":60000,"golden":[
        {"kind":"likelihood","text":"The sun rises in the east and sets in the west.","mean_nll_micro_max":4500000}]}"#;
    // It knows this one; of France's capital it is not sure.
    let golden = ["What is 2+2?", "4"];
    publisher.release(SMOL, "smol-1", golden, health);
    publisher.serve();
    let models = tempfile::tempdir().unwrap();
    std::fs::copy(models_dir().join(GEMMA), models.path().join("own.gguf")).unwrap();
    let broker = Mosquitto::start().await;
    let site = publisher.provision(
        Site::with_broker_on(broker.port(), Engine::Smol)
            .set(format!("paths.models_dir={}", models.path().display()))
            .set("model.active=")
            .set("model.n_ctx=2048"),
    );
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    let mut watcher = Watcher::new(broker.port()).await;
    client.until_mode(Mode::Serving).await;
    let ask = async |client: &mut Client, id: &str| {
        let body = serde_json::json!({
            "messages": [{"role": "user", "content": "Tell a story about a ship."}],
            "max_tokens": 200, "ignore_eos": true, "seed": 7,
        });
        client.ask("chat", id, &body.to_string()).await;
    };
    ask(&mut client, "one").await;
    desire(&mut client, 1, "d-1", 1).await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Committed), None),
        "{state:?}\n{}",
        site.log()
    );

    publisher.release(GEMMA, "gemma-2", ["Say hello.", "."], health);
    ask(&mut client, "two").await;
    desire(&mut client, 2, "d-2", 2).await;
    let state = watcher.until_over("d-2").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Committed), None),
        "{state:?}"
    );
    assert_eq!(active(&state), Some((2, "gemma-2")));

    publisher.release(
        SMOL,
        "smol-3",
        ["What is the capital of France?", "xyzzy"],
        health,
    );
    ask(&mut client, "three").await;
    desire(&mut client, 3, "d-3", 3).await;
    let state = watcher.until_over("d-3").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::RolledBack), Some(Reason::ProbeGolden))
    );
    assert!(state.detail.as_deref().unwrap().contains("xyzzy"));
    assert_eq!(active(&state), Some((2, "gemma-2")));

    client
        .until_ended(&["one".into(), "two".into(), "three".into()])
        .await;
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ["one", "two", "three"] {
        let end: serde_json::Value =
            serde_json::from_slice(client.finals[id].first().unwrap()).unwrap();
        assert_eq!(end["usage"]["completion_tokens"], 200, "{id}");
    }
}
