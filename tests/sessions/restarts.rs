//! What of a conversation is on disk as KV states, and comes back after a restart instead of being read again.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use orinoco::frames::SavedStates;
use orinoco::kv_file::KvFile;
use orinoco::link::Props;
use orinoco::wire::report::Mode;
use serde_json::json;

use super::support::daemon::{Daemon, Engine, Site};
use super::support::requester::Client;
use super::{ask, body, n_prompt, serving, turns};

fn cached(client: &Client, id: &str) -> u64 {
    let end = client.answers[id].end().unwrap();
    let usage = end.outcome.as_ref().unwrap().usage.unwrap();
    usage.prompt_tokens_details.cached_tokens
}

/// Worth a place on disk: tokens of the scripted engine are bytes.
fn question() -> String {
    "the pump in hall two has stopped and the pressure rises. ".repeat(4)
}

/// The file of the one model, if there is one.
fn file(site: &Site) -> Option<PathBuf> {
    let kv = site.dir.path().join("state/kv");
    let entries = std::fs::read_dir(kv).ok()?;
    entries.flatten().map(|entry| entry.path()).next()
}

/// Whether the file holds this text, as ids of the scripted engine.
fn holds(site: &Site, text: &str) -> bool {
    let ids = Vec::from_iter(text.bytes().flat_map(|byte| i32::from(byte).to_le_bytes()));
    let Some(bytes) = file(site).and_then(|path| std::fs::read(path).ok()) else {
        return false;
    };
    bytes.windows(ids.len()).any(|part| part == ids)
}

/// Whether the file names a state with this text: then it is there after whatever ends the worker.
fn keeps(site: &Site, text: &str) -> bool {
    let ids = Vec::from_iter(text.bytes().map(i32::from));
    let file = file(site).and_then(|path| File::options().read(true).write(true).open(path).ok());
    let bounds = SavedStates {
        bytes_max: u64::MAX,
        reserve_bytes: 0,
        age_seconds_max: u64::MAX,
        quiet_ms: 0,
    };
    let known = file.and_then(|file| KvFile::of_anybody(file, bounds).known(0).ok());
    known.is_some_and(|known| {
        let mut tokens = known.iter().map(|known| &known.tokens);
        tokens.any(|tokens| tokens.windows(ids.len()).any(|part| part == ids))
    })
}

/// Files have no events to wait for; what the client has under way goes on meanwhile.
async fn until(client: &mut Client, done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        client.listen(Duration::from_millis(100)).await;
    }
    panic!("waited a minute in vain");
}

async fn begun(site: &Site) -> (Daemon, Client) {
    let (daemon, mut client) = serving(site).await;
    ask(&mut client, "a1", &body("s", &question())).await;
    (daemon, client)
}

/// The second turn finds all that was said.
async fn goes_on(client: &mut Client, n_first: u64) {
    ask(client, "a2", &body("s", "and now?")).await;
    assert_eq!(turns(client, "a2"), 2);
    let n_cached = cached(client, "a2");
    assert!(n_cached + 1 >= n_first, "{n_cached} of {n_first}");
}

#[tokio::test]
async fn an_orderly_restart_reads_nothing_again() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.saved_state_quiet_seconds=0");
    let (daemon, client) = begun(&site).await;
    let n_first = n_prompt(&client, "a1");
    drop(client);
    assert_eq!(daemon.stop(), 0);
    assert!(holds(&site, "has stopped"));
    let (_daemon, mut client) = serving(&site).await;
    goes_on(&mut client, n_first).await;
}

#[tokio::test]
async fn so_does_one_with_a_real_model() {
    let site = Site::with_own_broker(Engine::Smol);
    let asked = |text: &str| {
        json!({
            "session": "s", "session_history": true, "max_tokens": 4, "temperature": 0,
            "messages": [{"role": "user", "content": text}],
        })
        .to_string()
    };
    let (daemon, mut client) = serving(&site).await;
    ask(&mut client, "a1", &asked(&question().repeat(3))).await;
    let n_first = n_prompt(&client, "a1");
    assert_eq!(cached(&client, "a1"), 0);
    drop(client);
    assert_eq!(daemon.stop(), 0);
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a2", &asked("What is to be done first?")).await;
    // What the answer's text becomes as part of a prompt may begin otherwise than it was made.
    let (n_cached, n_second) = (cached(&client, "a2"), n_prompt(&client, "a2"));
    assert!(
        n_cached + 8 >= n_first,
        "{n_cached} of {n_first} of {n_second}"
    );
}

#[tokio::test]
async fn what_was_saved_in_a_quiet_time_outlives_a_kill_and_a_power_cut() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.saved_state_quiet_seconds=1");
    let (daemon, mut client) = begun(&site).await;
    let n_first = n_prompt(&client, "a1");
    until(&mut client, || keeps(&site, "has stopped")).await;
    assert!(daemon.kill_worker());
    goes_on(&mut client, n_first).await;
    drop(client);
    daemon.power_cut();
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a3", &body("s", "and then?")).await;
    assert!(cached(&client, "a3") + 1 >= n_first);
}

#[tokio::test]
async fn a_model_that_was_unloaded_comes_back_with_its_conversations() {
    let site = Site::with_own_broker(Engine::Scripted)
        .set("engine.saved_state_quiet_seconds=0")
        .set("engine.idle_unload_seconds=1");
    // Asked whatever its mode: a request wakes it, should it be idle already.
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    ask(&mut client, "a1", &body("s", &question())).await;
    let n_first = n_prompt(&client, "a1");
    client.until_mode(Mode::Idle).await;
    assert!(holds(&site, "has stopped"));
    goes_on(&mut client, n_first).await;
}

#[tokio::test]
async fn a_forgotten_conversation_is_out_of_the_file_whoever_has_it_open() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.saved_state_quiet_seconds=1");
    let (daemon, mut client) = begun(&site).await;
    ask(
        &mut client,
        "b1",
        &body("other", &"a valve is open. ".repeat(12)),
    )
    .await;
    until(&mut client, || {
        keeps(&site, "has stopped") && keeps(&site, "is open")
    })
    .await;
    let topic = format!("orinoco/v1/{}/req/local/forget/s", site.node);
    client.publish(topic, Bytes::new(), Props::default()).await;
    until(&mut client, || !holds(&site, "has stopped")).await;
    // Nor does it come back with what the worker still has.
    drop(client);
    assert_eq!(daemon.stop(), 0);
    assert!(!holds(&site, "has stopped") && holds(&site, "is open"));
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a2", &body("s", &question())).await;
    assert_eq!(turns(&client, "a2"), 1);
    assert!(cached(&client, "a2") < 8, "{}", cached(&client, "a2"));
}

#[tokio::test]
async fn a_worker_that_crashed_leaves_no_file() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.saved_state_quiet_seconds=1");
    let (_daemon, mut client) = begun(&site).await;
    until(&mut client, || keeps(&site, "has stopped")).await;
    let crash = json!({"messages": [{"role": "user", "content": "!crash at 3"}], "max_tokens": 8});
    ask(&mut client, "crash", &crash.to_string()).await;
    assert!(!holds(&site, "has stopped"));
    assert!(site.log().contains("since the engine crashed"));
}

#[tokio::test]
async fn a_node_that_saves_nothing_makes_no_file_and_is_told_so_in_telemetry() {
    let site = Site::with_own_broker(Engine::Scripted)
        .set("engine.saved_state_bytes=0")
        .set("telemetry.interval_seconds=1");
    let (daemon, mut client) = begun(&site).await;
    client
        .until("telemetry", |_, client| {
            client.documents.contains_key("llm")
        })
        .await;
    let llm: serde_json::Value = serde_json::from_slice(&client.documents["llm"]).unwrap();
    assert_eq!(llm.get("saved_states_count"), None);
    drop(client);
    assert_eq!(daemon.stop(), 0);
    assert_eq!(file(&site), None);
    let site = Site::with_own_broker(Engine::Scripted)
        .set("engine.saved_state_quiet_seconds=1")
        .set("telemetry.interval_seconds=1");
    let (_daemon, mut client) = begun(&site).await;
    client
        .until("a state on disk", |_, client| {
            let llm = client.documents.get("llm");
            let llm = llm.and_then(|bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok());
            llm.is_some_and(|llm| {
                llm["saved_states_count"] == 1 && llm["saved_written_bytes"].as_u64() > Some(1000)
            })
        })
        .await;
}
