//! What the plays have in common: a publisher with a web server, a board, a device of its fleet, and who watches.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use orinoco::link::{self, Inbound, LinkConfig};
use orinoco::ota::deploy::State;
use orinoco::ota::state::Phase;
use orinoco::wire::report::Mode;

use super::support::broker::Mosquitto;
use super::support::daemon::{Daemon, Engine, Site, beside_orinoco, free_port, models_dir, poll};
use super::support::requester::Client;

/// A golden prompt that the scripted engine passes, and one that it fails.
pub(crate) const PASSES: [&str; 2] = ["Paris", "(?i)paris"];
pub(crate) const FAILS: [&str; 2] = ["Paris", "London"];

pub(crate) const MIB: u64 = 1 << 20;

/// A publisher with its keys, and a web server for its repository.
pub(crate) struct Publisher {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Option<Child>,
    pub(crate) port: u16,
    /// Its clock, when that is another than ours.
    pub(crate) now: Option<&'static str>,
}

impl Publisher {
    pub(crate) fn new() -> Self {
        Self::with_clock(None)
    }

    /// With these models as releases 1, 2, … of the line, all of them good, on its web server.
    pub(crate) fn with_releases(releases: &[(&str, &str)]) -> Self {
        let mut publisher = Self::new();
        for (model, id) in releases {
            publisher.release(model, id, PASSES, "{}");
        }
        publisher.serve();
        publisher
    }

    /// Somebody who signed at that time.
    pub(crate) fn at(now: &'static str) -> Self {
        Self::with_clock(Some(now))
    }

    pub(crate) fn with_clock(now: Option<&'static str>) -> Self {
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

    pub(crate) fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.dir.path().join("keys")
    }

    pub(crate) fn run(&self, args: &[&str]) {
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
    pub(crate) fn release(&self, model: &str, id: &str, golden: [&str; 2], health: &str) {
        let health: serde_json::Value = serde_json::from_str(health).unwrap();
        let manifest = serde_json::json!({"model": {"licence": "Apache-2.0"}, "health": health});
        self.release_as(model, id, golden, &manifest);
    }

    /// The same, with what the publisher says of it.
    pub(crate) fn release_as(
        &self,
        model: &str,
        id: &str,
        golden: [&str; 2],
        said: &serde_json::Value,
    ) {
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
    pub(crate) fn policy(&self, settings: &str) {
        let path = self.dir.path().join("policy.toml");
        std::fs::write(&path, format!("schema = 1\n{settings}")).unwrap();
        self.run(&["policy", &text(&self.repo()), &text(&path)]);
        self.run(&["sign", &text(&self.repo()), "--keys", &text(&self.keys())]);
    }

    pub(crate) fn serve(&mut self) {
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

    pub(crate) fn vanish(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// A device of this publisher's fleet.
    pub(crate) fn provision(&self, site: Site) -> Site {
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

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A board with so much memory; only that can be read of it.
pub(crate) struct Board(tempfile::TempDir);

impl Board {
    pub(crate) fn with_memory(total_mib: u64, available_mib: u64) -> Self {
        let board = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(board.0.path().join("proc")).unwrap();
        board.set_memory(total_mib, available_mib);
        board
    }

    pub(crate) fn set_memory(&self, total_mib: u64, available_mib: u64) {
        let path = self.0.path().join("proc/meminfo");
        let (total, available) = (total_mib * 1024, available_mib * 1024);
        let text = format!("MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {available} kB\n");
        // Replaced as a whole: a reader sees the old or the new.
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// What a node tells of its updates.
pub(crate) struct Watcher(Client);

impl Watcher {
    pub(crate) async fn new(port: u16) -> Self {
        Self(Client::watch(port, "orinoco/v1/n1/ota/state").await)
    }

    pub(crate) async fn until(&mut self, what: &str, is_it: impl Fn(&State) -> bool) -> State {
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

    pub(crate) async fn until_over(&mut self, deployment: &str) -> State {
        self.until(deployment, |state| {
            state.deployment.as_deref() == Some(deployment)
                && state.state.is_some_and(Phase::is_over)
        })
        .await
    }
}

pub(crate) async fn desire(client: &mut Client, seq: u64, deployment: &str, release_seq: u64) {
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

pub(crate) fn active(state: &State) -> Option<(u64, &str)> {
    let line = state.lines.first()?;
    Some((line.active.release_seq, line.active.model.as_str()))
}

/// A message to a user, or what the node said of its deployment.
pub(crate) struct Said {
    pub(crate) id: String,
    pub(crate) payload: String,
}

impl Said {
    /// Where the deployment is.
    pub(crate) fn phase(&self) -> Option<Phase> {
        let state: State = serde_json::from_str(&self.payload).ok()?;
        state.state.filter(|_| self.id == "state")
    }

    /// It says that its stream is parked.
    pub(crate) fn is_parked(&self) -> bool {
        self.payload.contains("\"parked\":{")
    }
}

/// One stream was parked, for an update, and was told when it goes on.
pub(crate) fn told_once_that_it_waits(heard: &[Said]) {
    let told: Vec<_> = heard.iter().filter(|said| said.is_parked()).collect();
    let payloads: Vec<_> = told.iter().map(|said| &said.payload).collect();
    assert_eq!(told.len(), 1, "{payloads:?}");
    let told: serde_json::Value = serde_json::from_str(&told[0].payload).unwrap();
    let parked = &told["orinoco"]["parked"];
    assert_eq!(parked["reason"], "update");
    assert!(parked["eta_ms"].as_u64().unwrap() > 0);
}

/// All messages to users, and what is said of deployments, as they come, until the answer to `over` begins.
pub(crate) async fn overhear(port: u16) -> tokio::task::JoinHandle<Vec<Said>> {
    let mut config = LinkConfig::new("127.0.0.1", port, "overhears");
    // By one connection, so in the order in which the node said it.
    config.subscriptions = vec!["orinoco/v1/resp/#".into(), "orinoco/v1/n1/ota/state".into()];
    let (link, mut inbox) = link::spawn(config);
    let (up, is_up) = tokio::sync::oneshot::channel();
    let mut up = Some(up);
    let task = tokio::spawn(async move {
        let mut found = Vec::new();
        while let Some(inbound) = inbox.recv().await {
            match inbound {
                Inbound::Up { .. } => drop(up.take().map(|up| up.send(()))),
                Inbound::Message(message) => {
                    let (_, id) = message.topic.rsplit_once('/').unwrap();
                    let said = Said {
                        id: id.to_owned(),
                        payload: String::from_utf8_lossy(&message.payload).into_owned(),
                    };
                    link.try_ack(message.ack).unwrap();
                    if said.id == "over" {
                        break;
                    }
                    found.push(said);
                }
                _ => {}
            }
        }
        found
    });
    is_up.await.unwrap();
    task
}

pub(crate) async fn stream(client: &mut Client, id: &str, n_tokens: u32) {
    let ask = format!("!count !step 8 !tokens {n_tokens}");
    client.ask("chat", id, &serde_json::json!({"messages": [{"role": "user", "content": ask}], "max_tokens": n_tokens + 10}).to_string()).await;
    client.until_text(id).await;
}

pub(crate) fn is_whole(client: &Client, id: &str, n_tokens: usize) {
    let text = client.text(id);
    assert_eq!(client.faults, Vec::<String>::new());
    assert_eq!(text.len(), n_tokens, "{id}");
    let numbers: String = (0..n_tokens).map(|n| format!("{n} ")).collect();
    assert!(
        numbers.starts_with(text),
        "{id}: nothing is missing and nothing repeated"
    );
}

/// How a device is before its daemon starts.
pub(crate) struct Start {
    pub(crate) engine: Engine,
    pub(crate) board: Board,
    /// The file of a model that somebody put on it.
    pub(crate) own: Option<Vec<u8>>,
}

impl Start {
    /// Without a model, with so many MiB of memory, of which so many are available.
    pub(crate) fn empty(engine: Engine, (total_mib, available_mib): (u64, u64)) -> Self {
        Self {
            engine,
            board: Board::with_memory(total_mib, available_mib),
            own: None,
        }
    }
}

/// A running device of the fleet, somebody who asks it, and somebody who watches its updates.
pub(crate) struct Device {
    pub(crate) board: Board,
    pub(crate) broker: Mosquitto,
    pub(crate) site: Site,
    pub(crate) daemon: Daemon,
    pub(crate) client: Client,
    pub(crate) watcher: Watcher,
    pub(crate) models: tempfile::TempDir,
}

impl Device {
    /// With a scripted model of its own in service, which has 600 of 8192 MiB mapped; 1200 are available, and a pool
    /// takes 256.
    pub(crate) async fn of(publisher: &Publisher) -> Self {
        Self::with(publisher, |site| site).await
    }

    /// The same, with other settings.
    pub(crate) async fn with(publisher: &Publisher, change: impl FnOnce(Site) -> Site) -> Self {
        let broker = Mosquitto::start().await;
        Self::on(broker, publisher, change).await
    }

    /// The same, on that broker.
    pub(crate) async fn on(
        broker: Mosquitto,
        publisher: &Publisher,
        change: impl FnOnce(Site) -> Site,
    ) -> Self {
        let own = format!("!weights-bytes {}\n!mapped\n", 600 * MIB).into_bytes();
        let start = Start {
            own: Some(own),
            ..Start::empty(Engine::Scripted, (8192, 1200))
        };
        Self::start(broker, publisher, start, change).await
    }

    /// Any other device.
    pub(crate) async fn start(
        broker: Mosquitto,
        publisher: &Publisher,
        start: Start,
        change: impl FnOnce(Site) -> Site,
    ) -> Self {
        let (models, board) = (tempfile::tempdir().unwrap(), start.board);
        let serves = match &start.own {
            Some(_) => Mode::Serving,
            None => Mode::NoModel,
        };
        if let Some(bytes) = start.own {
            std::fs::write(models.path().join("own.gguf"), bytes).unwrap();
        }
        let n_ctx = match start.engine {
            Engine::Scripted => 262_144,
            Engine::Smol | Engine::Gemma => 2048,
        };
        let site = Site::with_broker_on(broker.port(), start.engine)
            .set(format!("paths.board_root={}", board.path().display()))
            .set(format!("paths.models_dir={}", models.path().display()))
            .set("model.active=")
            .set(format!("model.n_ctx={n_ctx}"))
            .set("watchdog.enabled=false")
            .set("memory.reserve_bytes=268435456")
            .set("defaults.max_tokens_max=5000");
        let site = change(publisher.provision(site));
        let daemon = site.start();
        let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
        let watcher = Watcher::new(broker.port()).await;
        client.until_mode(serves).await;
        Self {
            board,
            broker,
            site,
            daemon,
            client,
            watcher,
            models,
        }
    }

    /// A wish of the fleet.
    pub(crate) async fn wish(&mut self, wish: &serde_json::Value) {
        let topic = "orinoco/v1/fleet/default/desired".to_owned();
        let wish = wish.to_string().into();
        self.client.publish_retained(topic, wish).await;
    }

    /// The fleet wishes for a release; how that ended.
    pub(crate) async fn deploy(&mut self, seq: u64, deployment: &str, release_seq: u64) -> State {
        desire(&mut self.client, seq, deployment, release_seq).await;
        self.watcher.until_over(deployment).await
    }

    /// The same, where it has to succeed.
    pub(crate) async fn takes(&mut self, seq: u64, deployment: &str, release_seq: u64) -> State {
        let state = self.deploy(seq, deployment, release_seq).await;
        self.has_committed(state)
    }

    fn has_committed(&self, state: State) -> State {
        assert_eq!(
            (state.state, state.reason),
            (Some(Phase::Committed), None),
            "{state:?}\n{}",
            self.site.log()
        );
        state
    }

    /// The fleet wishes for a release; all of it is here and waits.
    pub(crate) async fn stages(&mut self, seq: u64, deployment: &str, release_seq: u64) {
        let wish = serde_json::json!({
            "desired_seq": seq, "deployment": deployment, "line": "assistant",
            "release_seq": release_seq, "when": "staged-only",
        });
        self.wish(&wish).await;
        let waits = |state: &State| state.state == Some(Phase::Waiting);
        self.watcher.until("all of it", waits).await;
    }

    /// What was staged goes into service.
    pub(crate) async fn activates(&mut self, deployment: &str) -> State {
        let answer = self.order("c1", "activate").await;
        assert_eq!(answer["status"], "successful", "{answer}");
        let state = self.watcher.until_over(deployment).await;
        self.has_committed(state)
    }

    /// Asks, and waits for the end of the answer.
    pub(crate) async fn ask(&mut self, op: &str, id: &str, body: &str) {
        self.client.ask(op, id, body).await;
        self.client.until_ended(&[id.to_owned()]).await;
    }

    /// An operator's order, and what became of it.
    pub(crate) async fn order(&mut self, id: &str, action: &str) -> serde_json::Value {
        let topic = format!("orinoco/v1/n1/cmd/ota/{id}");
        let mut answers = Client::watch(self.broker.port(), &topic).await;
        let asked = format!(r#"{{"status":"init","action":"{action}"}}"#);
        self.client.publish_retained(topic, asked.into()).await;
        let answer = |client: &Client| -> Option<serde_json::Value> {
            let answer = serde_json::from_slice(client.documents.get(id)?).ok()?;
            let answer: serde_json::Value = answer;
            (answer["status"] != "init").then_some(answer)
        };
        let is_there = |_: bool, client: &Client| answer(client).is_some();
        answers.until("the answer", is_there).await;
        answer(&answers).unwrap()
    }

    /// Until the node says that this model serves.
    pub(crate) async fn until_serves(&mut self, model: &str) {
        let serves = |_: bool, client: &Client| {
            node(client).is_some_and(|state| {
                state.model.as_deref() == Some(model) && state.mode == Mode::Serving
            })
        };
        self.client.until(model, serves).await;
    }
}

/// What the node says of itself.
pub(crate) fn node(client: &Client) -> Option<orinoco::wire::report::State> {
    serde_json::from_slice(client.documents.get("state")?).ok()
}
