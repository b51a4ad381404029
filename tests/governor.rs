//! What serves follows the memory that is left and an operator's orders, and no stream is lost by it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "governor/commands.rs"]
mod commands;
#[path = "governor/idle.rs"]
mod idle;
#[path = "governor/power.rs"]
mod power;
#[path = "governor/shown.rs"]
mod shown;
mod support;
#[path = "governor/turns.rs"]
mod turns;

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orinoco::link::Props;
use orinoco::wire::error::Code;
use orinoco::wire::report::{CommandStatus, Level, Mode, ModelCommand, PressureEvent, State};
use sha2::Digest as _;
use support::broker::Mosquitto;
use support::daemon::{Engine, Site, poll};
use support::requester::Client;

const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1";
const GEMMA: &str = "gemma-3-270m-q4_k_m";

fn state(client: &Client) -> Option<State> {
    let bytes = client.documents.get("state")?;
    serde_json::from_slice(bytes).ok()
}

async fn until_serving(client: &mut Client, model: &str) {
    client
        .until("the model serves", |_, client| {
            state(client).is_some_and(|state| {
                state.mode == Mode::Serving && state.model.as_deref() == Some(model)
            })
        })
        .await;
}

async fn until_level(client: &mut Client, level: Level) {
    client
        .until("the level of the memory watchdog", |_, client| {
            let pressure = state(client).and_then(|state| state.pressure);
            pressure.is_some_and(|pressure| pressure.level == level)
        })
        .await;
}

async fn set_model(client: &mut Client, node: &str, model: &str) {
    let topic = format!("orinoco/v1/{node}/set/model");
    client
        .publish(topic, model.to_owned().into(), Props::default())
        .await;
}

/// Each stream ended once, nothing missing and nothing repeated, and its digest is that of its text.
fn all_whole(client: &Client, ids: &[String]) {
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ids {
        assert_eq!(client.finals[id].len(), 1, "{id} has one final");
        let end: serde_json::Value =
            serde_json::from_slice(client.finals[id].first().unwrap()).unwrap();
        let digest = sha2::Sha256::digest(client.text(id));
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(end["orinoco"]["text_sha256"], digest.as_str(), "{id}");
    }
}

#[tokio::test]
async fn eight_streams_go_on_in_the_model_that_an_operator_orders_and_in_the_one_after_it() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Gemma)
        .set("model.n_ctx=4096")
        .set("engine.n_seq_max=8");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, GEMMA).await;
    let ids = ask_eight(&mut client).await;
    go_on_through(&mut client, &ids, async |client, model| {
        set_model(client, site.node, model).await;
    })
    .await;
}

/// Long enough for two models to follow the first.
const STORY_TOKENS: u64 = 250;

/// Asks for eight stories.
async fn ask_eight(client: &mut Client) -> Vec<String> {
    let ids: Vec<String> = (0..8).map(|n| format!("w{n}")).collect();
    for id in &ids {
        let body = serde_json::json!({
            "messages": [{"role": "user", "content": format!("Tell a story about {id}.")}],
            "max_tokens": STORY_TOKENS, "ignore_eos": true, "seed": 7,
        });
        client.ask("chat", id, &body.to_string()).await;
    }
    ids
}

/// Streams that Gemma-3 began go on in SmolLM2, and end in Gemma-3: what was sent stays, nothing is missing,
/// and all tokens that were asked for are made.
async fn go_on_through(
    client: &mut Client,
    ids: &[String],
    mut order: impl AsyncFnMut(&mut Client, &'static str),
) {
    let bytes_of =
        |client: &Client, id: &String| client.answers.get(id).map_or(0, |a| a.text().len());
    client
        .until("text of each", |_, client| {
            ids.iter().all(|id| bytes_of(client, id) > 20)
        })
        .await;
    let before: Vec<String> = ids
        .iter()
        .map(|id| client.answers[id].text().to_owned())
        .collect();

    order(client, SMOL).await;
    until_serving(client, SMOL).await;
    // Of each its own: the streams are not equally long.
    let at_switch = Vec::from_iter(ids.iter().map(|id| bytes_of(client, id)));
    client
        .until("text by the second model", |_, client| {
            let mut each = ids.iter().zip(&at_switch);
            each.all(|(id, before)| bytes_of(client, id) > before + 20)
        })
        .await;
    order(client, GEMMA).await;
    until_serving(client, GEMMA).await;
    client.until_ended(ids).await;

    all_whole(client, ids);
    for (id, before) in ids.iter().zip(before) {
        assert!(client.text(id).starts_with(&before), "{id}");
        let end: serde_json::Value =
            serde_json::from_slice(client.finals[id].first().unwrap()).unwrap();
        let parts = end["orinoco"]["parts"].as_array().unwrap();
        let models: Vec<_> = parts
            .iter()
            .map(|part| part["model"].as_str().unwrap())
            .collect();
        assert!(models.starts_with(&[GEMMA, SMOL]), "{models:?}");
        let bytes: u64 = parts
            .iter()
            .map(|part| part["text_bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(bytes, client.text(id).len() as u64);
        assert_eq!(
            end["usage"]["completion_tokens"], STORY_TOKENS,
            "{id} has as many tokens as it asked for"
        );
    }
}

#[tokio::test]
async fn an_order_is_followed_though_the_worker_that_serves_dies_while_the_other_model_loads() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let models = site.dir.path().join("models");
    std::fs::create_dir(&models).unwrap();
    for (name, load_ms) in [("quick", 0), ("slow", 6000)] {
        let hooks = format!("!load-ms {load_ms}\n");
        std::fs::write(models.join(format!("{name}.gguf")), hooks).unwrap();
    }
    let site = site
        .set(format!("paths.models_dir={}", models.display()))
        .set("model.active=quick");
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, "quick").await;
    let ask = serde_json::json!({
        "messages": [{"role": "user", "content": "!count !step 8"}], "max_tokens": 600, "ignore_eos": true,
    });
    client.ask("chat", "through", &ask.to_string()).await;
    client.until_text("through").await;
    let serving = poll(|| daemon.child_named("orinoco-engine"));

    set_model(&mut client, site.node, "slow").await;
    // The stream goes on meanwhile, and each piece is a moment to look.
    client
        .until("the other model's worker", |_, _| {
            site.log().matches("worker started").count() == 2
        })
        .await;
    kill(Pid::from_raw(serving), Signal::SIGKILL).unwrap();
    until_serving(&mut client, "slow").await;
    client.until_ended(&["through".into()]).await;
    all_whole(&client, &["through".into()]);
}

#[tokio::test]
async fn a_command_tells_what_became_of_it_on_its_own_topic() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    let mut order = async |ticket: &str, model: &str| {
        let topic = format!("orinoco/v1/{}/cmd/model/{ticket}", site.node);
        let filter = topic.clone();
        let asked = format!(r#"{{"status":"init","model":"{model}"}}"#);
        let mut watcher = Client::watch(broker.port(), &filter).await;
        client.publish_retained(topic, asked.into()).await;
        let over = |client: &Client| {
            let command: ModelCommand =
                serde_json::from_slice(client.documents.get(ticket)?).ok()?;
            matches!(
                command.status,
                CommandStatus::Successful | CommandStatus::Failed
            )
            .then_some(command)
        };
        watcher
            .until("the end of the command", |_, client| over(client).is_some())
            .await;
        over(&watcher).unwrap()
    };
    let done = order("c1", GEMMA).await;
    assert_eq!(
        (done.status, done.reason),
        (CommandStatus::Successful, None)
    );
    let refused = order("c2", "nobody").await;
    assert_eq!(refused.status, CommandStatus::Failed);
    assert!(
        refused.reason.unwrap().contains(SMOL),
        "it names what there is"
    );
    until_serving(&mut client, GEMMA).await;
}

/// A root tree with a meminfo that a test rewrites.
struct Meminfo<'a>(&'a Path);

impl<'a> Meminfo<'a> {
    fn new(root: &'a Path) -> Self {
        std::fs::create_dir_all(root.join("proc")).unwrap();
        Self(root)
    }

    fn available(&self, mib: u64) {
        let path = self.0.join("proc/meminfo");
        let text = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", 8 << 20, mib << 10);
        std::fs::write(path.with_extension("new"), text).unwrap();
        std::fs::rename(path.with_extension("new"), path).unwrap();
    }
}

/// Thresholds 200 MiB apart, judged faster than an operator would want, on a board where a worker is loaded as
/// soon as there is room for it.
fn quick_watchdog(site: Site) -> Site {
    let mut site = site
        .set("memory.reserve_bytes=1048576")
        // Five of them have room in a quarter of the pool, so that none waits for another.
        .set("defaults.max_tokens=300");
    for (key, value) in [
        ("trim_bytes", 800_u64 << 20),
        ("park_bytes", 600 << 20),
        ("shrink_bytes", 400 << 20),
        ("kill_bytes", 200 << 20),
        ("margin_bytes", 50 << 20),
        ("hold_ms", 100),
        ("settle_ms", 50),
        ("stale_ms", 500),
    ] {
        site = site.set(format!("watchdog.{key}={value}"));
    }
    site
}

async fn refused_for_memory(client: &mut Client, id: &str) {
    client.ask("chat", id, "!count !tokens 3").await;
    client.until_ended(&[id.to_owned()]).await;
    let outcome = &client.answers[id].end().unwrap().outcome;
    let error = outcome.as_ref().unwrap_err();
    assert_eq!(error.code, Code::OutOfMemory);
    assert!(error.retry_after_ms.is_some());
}

async fn answered(client: &mut Client, id: &str) {
    client.ask("chat", id, "!count !tokens 3").await;
    client.until_ended(&[id.to_owned()]).await;
    let outcome = &client.answers[id].end().unwrap().outcome;
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test]
async fn memory_walks_the_ladder_down_and_up_and_streams_survive_every_step() {
    let root = tempfile::tempdir().unwrap();
    let meminfo = Meminfo::new(root.path());
    meminfo.available(6000);
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set(format!("paths.board_root={}", root.path().display()));
    let site = quick_watchdog(site);
    let daemon = site.start();
    let mut watcher = Client::watch(broker.port(), "orinoco/v1/n1/evt/pressure").await;
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    client.until_mode(Mode::Serving).await;
    let ids: Vec<String> = (0..4).map(|n| format!("s{n}")).collect();
    for id in &ids {
        client.ask("chat", id, "!count !tokens 300 !step 40").await;
    }
    client.until_accepted(&ids).await;

    let down = [
        (700, Level::Trim),
        (500, Level::Park),
        (300, Level::Shrink),
        (100, Level::Kill),
    ];
    for (available, level) in down {
        meminfo.available(available);
        until_level(&mut client, level).await;
        let late = format!("down{available}");
        match level.admits() {
            true => answered(&mut client, &late).await,
            false => refused_for_memory(&mut client, &late).await,
        }
        // Around the threshold, above it and below, on the near side of the margin.
        let threshold = 200 * (available / 200 + 1);
        for turn in 0..10 {
            meminfo.available(threshold - 10 + turn % 2 * 40);
            client.listen(Duration::from_millis(25)).await;
        }
        meminfo.available(available);
    }
    // The level is told first, the worker ended next.
    poll(|| {
        let worker = daemon.child_named("orinoco-engine-scripted");
        worker.is_none().then_some(())
    });
    let said = |client: &Client| -> Vec<usize> {
        let text = |id: &String| client.answers[id].text().len();
        ids.iter().map(text).collect()
    };
    let before = said(&client);
    assert!(
        before.iter().all(|bytes| (1..300).contains(bytes)),
        "all under way: {before:?}"
    );

    let up = [
        (300, Level::Shrink),
        (500, Level::Park),
        (700, Level::Trim),
        (6000, Level::Ok),
    ];
    for (available, level) in up {
        meminfo.available(available);
        until_level(&mut client, level).await;
        client.until_mode(Mode::Serving).await;
        let before = said(&client);
        client
            .until("the streams go on", |_, client| {
                let now = said(client);
                let mut both = now.iter().zip(&before);
                both.all(|(now, before)| *now == 300 || now > before)
            })
            .await;
        let late = format!("up{available}");
        match level.admits() {
            true => answered(&mut client, &late).await,
            false => refused_for_memory(&mut client, &late).await,
        }
    }
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for id in &ids {
        assert_eq!(client.text(id).len(), 300, "{id}");
        let end = client.answers[id].end().unwrap();
        assert!(end.outcome.is_ok(), "{id}: {:?}", end.outcome);
    }

    let expected: Vec<Level> = [Level::Ok]
        .into_iter()
        .chain(down.map(|(_, level)| level))
        .chain(up.map(|(_, level)| level))
        .collect();
    let steps = expected.len() - 1;
    watcher
        .until("an event for each step", |_, watcher| {
            watcher.events.len() >= steps
        })
        .await;
    let events: Vec<PressureEvent> = watcher
        .events
        .iter()
        .map(|bytes| serde_json::from_slice(bytes).unwrap())
        .collect();
    let walked: Vec<(Level, Level)> = events.iter().map(|event| (event.from, event.to)).collect();
    let wanted: Vec<(Level, Level)> = expected.windows(2).map(|two| (two[0], two[1])).collect();
    assert_eq!(walked, wanted, "each step once, in order");
    for event in &events {
        let is_down = event.to > event.from;
        let read = event.available_bytes.unwrap();
        assert_eq!(is_down, read < event.threshold_bytes, "{event:?}");
        assert!(!event.action.is_empty() && event.returned_bytes.is_some());
        // The scripted worker takes nothing that it could give back.
        assert_eq!(event.relief_bytes, 0);
    }
    assert!(events.is_sorted_by_key(|event| event.at_ms));
}

#[tokio::test]
async fn a_node_that_cannot_see_its_memory_goes_on_and_takes_nothing_new() {
    let root = tempfile::tempdir().unwrap();
    let meminfo = Meminfo::new(root.path());
    meminfo.available(6000);
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("paths.board_root={}", root.path().display()));
    let site = quick_watchdog(site);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "s", "!count !tokens 300 !step 10").await;
    client.until_accepted(&["s".to_owned()]).await;

    std::fs::remove_file(root.path().join("proc/meminfo")).unwrap();
    until_level(&mut client, Level::Park).await;
    let pressure = state(&client).unwrap().pressure.unwrap();
    assert!(pressure.stale);
    assert_eq!(
        pressure.available_bytes,
        Some(6000 << 20),
        "the last that it saw"
    );
    refused_for_memory(&mut client, "a").await;
    client.until_ended(&["s".to_owned()]).await;
    all_whole(&client, &["s".to_owned()]);
    meminfo.available(6000);
    until_level(&mut client, Level::Ok).await;
    assert!(!state(&client).unwrap().pressure.unwrap().stale);
    answered(&mut client, "b").await;
}

#[tokio::test]
async fn a_stream_that_outgrows_a_smaller_context_waits_for_the_larger_one() {
    let root = tempfile::tempdir().unwrap();
    let meminfo = Meminfo::new(root.path());
    meminfo.available(6000);
    let mut site = Site::with_own_broker(Engine::Scripted)
        .set(format!("paths.board_root={}", root.path().display()))
        .set("model.n_ctx=8192");
    for (key, value) in [
        ("trim_bytes", 800_u64 << 20),
        ("park_bytes", 600 << 20),
        ("shrink_bytes", 400 << 20),
        ("kill_bytes", 200 << 20),
        ("margin_bytes", 50 << 20),
        ("hold_ms", 100),
        ("settle_ms", 50),
    ] {
        site = site.set(format!("watchdog.{key}={value}"));
    }
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    // Some 4,100 of 8,192 tokens: beyond the half of it.
    let prompt = format!("!count !tokens 300 !step 25 {}", "x".repeat(4080));
    let ids = ["long".to_owned(), "short".to_owned()];
    client.ask("chat", "long", &prompt).await;
    client
        .ask("chat", "short", "!count !tokens 300 !step 25")
        .await;
    client
        .until("text of each", |_, client| {
            client.has_text(&ids[0]) && client.has_text(&ids[1])
        })
        .await;

    meminfo.available(300);
    until_level(&mut client, Level::Shrink).await;
    client.until_ended(&ids[1..]).await;
    assert!(
        !client.finals.contains_key("long") && site.log().contains("waits for a larger context"),
        "{}",
        site.log()
    );

    meminfo.available(6000);
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for (id, n_tokens) in [("long", 300), ("short", 300)] {
        let end = client.answers[id].end().unwrap().outcome.as_ref().unwrap();
        assert_eq!(end.finish_reason, "stop", "{id}");
        assert_eq!(
            end.usage.as_ref().unwrap().completion_tokens,
            n_tokens,
            "{id}"
        );
    }
}

#[tokio::test]
async fn telemetry_counts_what_was_done_and_leaves_out_what_the_board_does_not_have() {
    let root = tempfile::tempdir().unwrap();
    Meminfo::new(root.path()).available(6000);
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("paths.board_root={}", root.path().display()))
        .set("telemetry.interval_seconds=1")
        .set("requests.payload_bytes_max=256");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "a", "!count !tokens 40 !step 2").await;
    client.ask("chat", "b", &"x".repeat(300)).await;
    client.until_ended(&["a".to_owned(), "b".to_owned()]).await;

    let read = |client: &Client, kind: &str| -> Option<serde_json::Value> {
        serde_json::from_slice(client.documents.get(kind)?).ok()
    };
    client
        .until("telemetry of both requests", |_, client| {
            let queue = read(client, "queue");
            queue.is_some_and(|queue| queue["answered_count"] == 1 && queue["refused_count"] == 1)
        })
        .await;
    let (host, llm) = (
        read(&client, "host").unwrap(),
        read(&client, "llm").unwrap(),
    );
    assert_eq!(host["memory_available_bytes"], 6000_u64 << 20);
    for absent in [
        "swap_used_bytes",
        "power_mode",
        "module_mw",
        "fan_rpm",
        "temperatures_c",
    ] {
        assert!(host.get(absent).is_none(), "{absent}");
    }
    assert_eq!(llm["tokens_count"], 40);
    assert_eq!(llm["streams_count"], 0);
    assert!(llm.get("energy_mj_tok").is_none(), "a board without rails");
    assert!(!client.documents.contains_key("gpu"));
}

#[tokio::test]
async fn a_final_says_what_energy_the_request_took() {
    let root = tempfile::tempdir().unwrap();
    Meminfo::new(root.path()).available(6000);
    let rail = root.path().join("sys/class/hwmon/hwmon1");
    std::fs::create_dir_all(&rail).unwrap();
    for (file, text) in [
        ("name", "ina3221"),
        ("in1_label", "VDD_IN"),
        ("in1_input", "5000"),
        ("curr1_input", "2000"),
    ] {
        std::fs::write(rail.join(file), text).unwrap();
    }
    let site = Site::with_own_broker(Engine::Scripted)
        .set(format!("paths.board_root={}", root.path().display()))
        .set("telemetry.interval_seconds=60");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    // Of a request in which the machine stood still nothing is said: one of a few is measured whole.
    let mut said = serde_json::Value::Null;
    for id in (0..20).map(|n| format!("a{n}")) {
        client.ask("chat", &id, "!count !tokens 200 !step 5").await;
        client.until_ended(std::slice::from_ref(&id)).await;
        said = serde_json::from_slice(client.finals[&id].first().unwrap()).unwrap();
        if said["orinoco"]["energy_j"].is_number() {
            break;
        }
    }
    let seconds = said["orinoco"]["total_ms"].as_f64().unwrap() / 1000.0;
    let joules = said["orinoco"]["energy_j"].as_f64().expect("energy_j");
    // Ten watts, for as long as it ran.
    assert!(
        (5.0 * seconds..=10.0 * seconds + 0.1).contains(&joules),
        "{said}"
    );
}
