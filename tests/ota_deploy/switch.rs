//! A release goes into service beside what serves or after it, and out of it again, with streams in flight.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orinoco::ota::Reason;
use orinoco::ota::deploy::State;
use orinoco::ota::state::Phase;
use orinoco::wire::report::Mode;

use super::setup::*;
use super::support::broker::Mosquitto;
use super::support::daemon::{Engine, GEMMA, SMOL, Site, poll};
use super::support::requester::Client;

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
    publisher.release(SMOL, "smol-1", FAILS, "{}");
    publisher.serve();
    // The line is what is to serve, before there is anything of it.
    let (broker, bare) = (
        Mosquitto::start().await,
        Start::empty(Engine::Scripted, (8192, 1200)),
    );
    let by_line = |site: Site| site.set("model.active=assistant");
    let mut device = Device::start(broker, &publisher, bare, by_line).await;
    let state = node(&device.client).unwrap();
    assert_eq!(state.model, None);
    assert!(state.reasons[0].contains("assistant"), "{state:?}");
    let by_name = r#"{"model":"assistant","messages":[{"role":"user","content":"hi"}]}"#;
    for (op, id, body) in [
        ("chat", "early", "hi !tokens 2"),
        ("chat", "named", by_name),
        ("tokenize", "count", r#"{"prompt":"hi"}"#),
    ] {
        device.ask(op, id, body).await;
        assert_eq!(refused(&device.client, id), "no_model");
    }

    // One that does not work leaves the board as it was.
    let state = device.deploy(1, "d-1", 1).await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::RolledBack), Some(Reason::ProbeGolden)),
        "{}",
        device.site.log()
    );
    device.ask("chat", "still", "hi !tokens 2").await;
    assert_eq!(refused(&device.client, "still"), "no_model");

    publisher.release(SMOL, "smol-2", PASSES, "{}");
    device.takes(2, "d-2", 2).await;
    device.client.until_mode(Mode::Serving).await;
    device.ask("chat", "first", "hi !tokens 2").await;
    assert_eq!(device.client.text("first"), "hi");

    // The next start finds it.
    publisher.vanish();
    device.daemon.power_cut();
    device.daemon = device.site.start();
    device.ask("chat", "again", "here !tokens 4").await;
    assert_eq!(device.client.text("again"), "here");
}

#[tokio::test]
async fn streams_go_on_beside_an_update_that_memory_has_room_for() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let mut device = Device::of(&publisher).await;
    let heard = overhear(device.broker.port()).await;

    // 1200 less 600 that are mapped less 256: 344, and 292 are needed. Nobody waits.
    device.stages(1, "d-1", 1).await;
    stream(&mut device.client, "beside", 1000).await;
    let state = device.activates("d-1").await;
    assert_eq!(active(&state), Some((1, "smol-1")));
    assert_eq!(state.installed_version.as_deref(), Some("smol-1"));
    device.client.until_ended(&["beside".into()]).await;
    is_whole(&device.client, "beside", 1000);

    // Requests name the line, whichever release serves.
    let body = r#"{"model":"assistant","messages":[{"role":"user","content":"hi !tokens 2"}]}"#;
    device.ask("chat", "by-line", body).await;
    assert_eq!(device.client.text("by-line"), "hi");

    device.ask("chat", "over", "bye !tokens 3").await;
    let heard = heard.await.unwrap();
    assert!(!heard.iter().any(Said::is_parked), "nobody was parked");
}

#[tokio::test]
async fn where_memory_does_not_hold_both_streams_are_parked_with_an_eta_and_go_on() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let mut device = Device::of(&publisher).await;
    // 1100 less 600 less 256: 244, and 292 are needed. After the old one there is room.
    device.board.set_memory(8192, 1100);
    let heard = overhear(device.broker.port()).await;
    device.stages(1, "d-1", 1).await;
    stream(&mut device.client, "waits", 1000).await;
    device.activates("d-1").await;
    device.client.until_ended(&["waits".into()]).await;
    is_whole(&device.client, "waits", 1000);
    device.ask("chat", "over", "bye !tokens 3").await;
    told_once_that_it_waits(&heard.await.unwrap());
}

#[tokio::test]
async fn a_release_that_fails_or_crashes_goes_back_by_itself_and_tells_why() {
    let mut publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let mut device = Device::of(&publisher).await;
    device.takes(1, "d-1", 1).await;

    stream(&mut device.client, "through", 800).await;
    let bad = [
        ("wrong", FAILS, Reason::ProbeGolden),
        ("crash", ["!abort at 2", "x"], Reason::ProbeCrash),
        ("broken", ["!fail at 2", "x"], Reason::ProbeGolden),
    ];
    for (number, (name, golden, reason)) in (2..).zip(bad) {
        publisher.release(GEMMA, &format!("gemma-{name}"), golden, "{}");
        let state = device.deploy(number, &format!("d-{name}"), number).await;
        assert_eq!(
            (state.state, state.reason),
            (Some(Phase::RolledBack), Some(reason)),
            "{state:?}"
        );
        assert_eq!(active(&state), Some((1, "smol-1")));
    }
    device.client.until_ended(&["through".into()]).await;
    is_whole(&device.client, "through", 800);

    // A power cut, and no mirror any more: what was in service is.
    publisher.vanish();
    device.daemon.power_cut();
    device.daemon = device.site.start();
    let body = r#"{"model":"smol-1","messages":[{"role":"user","content":"here !tokens 4"}]}"#;
    device.ask("chat", "after", body).await;
    assert_eq!(device.client.text("after"), "here");
}

#[tokio::test]
async fn a_trial_beside_a_worker_that_dies_is_called_off_and_can_be_had_again() {
    let mut publisher = Publisher::new();
    // Answered after nine seconds, in which the other worker can die.
    let slow = ["Paris !step 300 !tokens 30", "(?i)paris"];
    publisher.release(SMOL, "smol-1", slow, "{}");
    publisher.serve();
    let mut device = Device::of(&publisher).await;
    stream(&mut device.client, "through", 400).await;
    let serving = poll(|| device.daemon.child_named("orinoco-engine"));
    desire(&mut device.client, 1, "d-1", 1).await;
    let is_tried = |state: &State| state.state == Some(Phase::Probing);
    device.watcher.until("the trial", is_tried).await;
    kill(Pid::from_raw(serving), Signal::SIGKILL).unwrap();

    let waits = |state: &State| state.state == Some(Phase::Waiting);
    let state = device.watcher.until("a better moment", waits).await;
    let why = state.detail.clone().unwrap_or_default();
    assert!(why.contains("had to be loaded"), "{state:?}");
    device.client.until_ended(&["through".into()]).await;
    is_whole(&device.client, "through", 400);

    let answer = device.order("c1", "activate").await;
    assert_eq!(answer["status"], "successful", "{answer}");
    let state = device.watcher.until_over("d-1").await;
    assert_eq!(state.state, Some(Phase::Committed), "{state:?}");
    device.until_serves("smol-1").await;
}

#[tokio::test]
async fn an_operator_rolls_back_with_the_network_gone_and_asks_by_command() {
    let mut publisher = Publisher::with_releases(&[(SMOL, "smol-1"), (GEMMA, "gemma-2")]);
    let mut device = Device::of(&publisher).await;
    for (seq, id) in [(1, "d-1"), (2, "d-2")] {
        device.takes(seq, id, seq).await;
    }
    publisher.vanish();
    device.until_serves("gemma-2").await;
    let answer = device.order("c1", "rollback").await;
    assert_eq!(answer["status"], "successful", "{answer}");
    let is_back = |state: &_| active(state) == Some((1, "smol-1"));
    let state = device.watcher.until("the release before", is_back).await;
    assert_eq!(state.state, Some(Phase::RolledBack));
    device.until_serves("smol-1").await;
}

#[tokio::test]
async fn a_release_for_another_board_system_or_more_memory_is_refused_before_anything_is_fetched() {
    let mut publisher = Publisher::new();
    publisher.serve();
    let ota = tempfile::tempdir().unwrap();
    let in_dir = |site: Site| site.set(format!("ota.deploy.dir={}", ota.path().display()));
    let mut device = Device::with(&publisher, in_dir).await;
    let needs = [
        (r#"{"boards":["orin-nx-16gb"]}"#, Reason::IncompatibleBoard),
        (r#"{"power_modes":["25W"]}"#, Reason::IncompatibleBoard),
        (r#"{"min_l4t":"36.4.0"}"#, Reason::IncompatibleL4t),
        (r#"{"min_engine_build":99999}"#, Reason::IncompatibleEngine),
        (
            r#"{"memory_mib":[{"n_ctx":4096,"mib":8000}]}"#,
            Reason::IncompatibleMemory,
        ),
    ];
    for (seq, (needs, reason)) in (1..).zip(needs) {
        let needs: serde_json::Value = serde_json::from_str(needs).unwrap();
        let manifest = serde_json::json!({
            "model": {"licence": "Apache-2.0"}, "runtime": {"n_ctx": 4096}, "needs": needs,
        });
        publisher.release_as(SMOL, &format!("smol-{seq}"), PASSES, &manifest);
        let state = device.deploy(seq, &format!("d-{seq}"), seq).await;
        assert_eq!(
            (state.state, state.reason, active(&state)),
            (Some(Phase::Failed), Some(reason), None),
            "{state:?}"
        );
    }
    for folder in ["blobs", "partial"] {
        let files = std::fs::read_dir(ota.path().join(folder)).unwrap();
        assert_eq!(files.count(), 0, "{folder}");
    }
}
