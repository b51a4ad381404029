//! What the people around a node do: the publisher's rollout, a stick, two operators at once, an update of Orinoco.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use orinoco::ota::deploy::State;
use orinoco::ota::state::Phase;
use orinoco::ota::waves::place;
use orinoco::ota::{LineName, Reason};
use orinoco::wire::report::Mode;

use super::setup::*;
use super::support::daemon::{GEMMA, SMOL, Site, beside_orinoco};
use super::support::requester::Client;

fn publisher_says(args: &[&str]) -> Output {
    Command::new(beside_orinoco("orinoco-ota"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn rollout(port: u16, release_seq: u64, waves: &str) -> Output {
    publisher_says(&[
        "rollout",
        "--line",
        "assistant",
        "--release",
        &release_seq.to_string(),
        "--group",
        "default",
        "--port",
        &port.to_string(),
        "--waves",
        waves,
        "--settle-seconds",
        "0",
        "--limit-seconds",
        "60",
    ])
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    [String::from_utf8_lossy(out), String::from_utf8_lossy(err)].concat()
}

#[tokio::test]
async fn the_publishers_rollout_reads_what_a_node_says_and_the_node_waits_for_its_wave() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    publisher.release(GEMMA, "gemma-bad", FAILS, "{}");
    let mut device = Device::of(&publisher).await;
    let state = device
        .watcher
        .until("its group", |state| state.group.is_some())
        .await;
    assert_eq!(state.group.as_deref(), Some("default"));

    // Opened to the places before its own: it is told, and does nothing.
    let own = place(device.site.node, &LineName::new("assistant").unwrap(), 1);
    let percent = own * 100 / 2048;
    assert!(
        (2..98).contains(&percent),
        "{percent}: the wave before it is empty"
    );
    let wish = serde_json::json!({
        "desired_seq": 1, "deployment": "others", "line": "assistant", "release_seq": 1, "percent": percent,
    });
    device.wish(&wish).await;
    // An order that comes after it on the same way is answered after it.
    let answer = device.order("c1", "check").await;
    assert_eq!(answer["status"], "successful", "{answer}");
    let state = device
        .watcher
        .until("what it has", |state| state.metadata.is_some())
        .await;
    assert_eq!((state.deployment.as_deref(), active(&state)), (None, None));

    let port = device.broker.port();
    let waves = format!("{percent},100");
    let done = tokio::task::spawn_blocking(move || rollout(port, 1, &waves));
    let done = done.await.unwrap();
    assert!(
        done.status.success(),
        "{}\n{}",
        said(&done),
        device.site.log()
    );
    assert!(
        said(&done).contains("serves on 1 of 1 devices"),
        "{}",
        said(&done)
    );
    let state = device
        .watcher
        .until("it serves", |state| active(state).is_some())
        .await;
    assert_eq!(active(&state), Some((1, "smol-1")));

    let stopped = tokio::task::spawn_blocking(move || rollout(port, 2, "100"));
    let stopped = stopped.await.unwrap();
    assert!(!stopped.status.success(), "{}", said(&stopped));
    for words in ["probe_golden: n1", "stopped at 100 %: 1 of 1"] {
        assert!(said(&stopped).contains(words), "{}", said(&stopped));
    }
    let state = device
        .watcher
        .until("it is back", |state| state.reason.is_some())
        .await;
    assert_eq!(active(&state), Some((1, "smol-1")));
    // What is retained keeps everybody else from beginning.
    let mut desired = Client::watch(port, "orinoco/v1/fleet/default/desired").await;
    desired
        .until("the wish", |_, client| {
            client.documents.contains_key("desired")
        })
        .await;
    let wish: serde_json::Value = serde_json::from_slice(&desired.documents["desired"]).unwrap();
    assert_eq!(
        (&wish["percent"], &wish["release_seq"]),
        (&0.into(), &2.into())
    );
}

/// `orinoco ota apply`, as the udev rule and the operator call it.
async fn apply(site: &Site, stick: &Path) -> (i32, String) {
    let mut command = site.command(&["ota", "apply", &text(stick)]);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = output.await.unwrap();
    (output.status.code().unwrap(), said(&output))
}

/// A board that was away for fourteen months; the mirror of its plant was as well. Then two sticks come, the newer
/// one first.
#[tokio::test]
async fn after_fourteen_months_a_newer_stick_is_taken_and_an_older_one_refused() {
    const LONG_AGO: &str = "2025-09-21T12:00:00Z";
    let mut publisher = Publisher::at(LONG_AGO);
    publisher.release(SMOL, "smol-1", PASSES, "{}");
    publisher.serve();
    let (old, new) = (
        publisher.dir.path().join("old"),
        publisher.dir.path().join("new"),
    );
    publisher.run(&["export", &text(&publisher.repo()), &text(&old)]);
    let mut device = Device::of(&publisher).await;

    // What the mirror says has expired: it may be an old copy, and nobody is there to say that it is not.
    let state = device.deploy(1, "d-1", 1).await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Failed), Some(Reason::MetadataExpired)),
        "{state:?}"
    );
    // The same from a stick, which somebody has put in.
    let (code, words) = apply(&device.site, &old).await;
    assert_eq!(code, 0, "{words}\n{}", device.site.log());
    let state = device
        .watcher
        .until("the release", |state| active(state).is_some())
        .await;
    assert_eq!(active(&state), Some((1, "smol-1")));
    assert_eq!(state.metadata.unwrap().freshness, "expired-accepted");

    // A key was replaced in the meantime, a release was made, and somebody brings it.
    publisher.now = None;
    let (repo, keys) = (text(&publisher.repo()), text(&publisher.keys()));
    publisher.run(&["rotate", &repo, "--role", "targets", "--new-keys", &keys]);
    publisher.run(&["sign", &repo, "--keys", &keys]);
    publisher.release(GEMMA, "gemma-2", PASSES, "{}");
    publisher.vanish();
    publisher.run(&["export", &repo, &text(&new)]);
    let (code, words) = apply(&device.site, &new).await;
    assert_eq!(code, 0, "{words}\n{}", device.site.log());
    let state = device
        .watcher
        .until("the next", |state| active(state) == Some((2, "gemma-2")))
        .await;
    let metadata = state.metadata.unwrap();
    assert_eq!((metadata.root, metadata.freshness.as_str()), (2, "fresh"));

    let (code, words) = apply(&device.site, &old).await;
    assert_ne!(code, 0, "{words}");
    assert!(words.contains("rollback_refused"), "{words}");
    let state = device
        .watcher
        .until("why not", |state| {
            state.reason == Some(Reason::RollbackRefused)
        })
        .await;
    assert_eq!(active(&state), Some((2, "gemma-2")));
}

#[tokio::test]
async fn of_wishes_and_commands_that_race_one_release_is_in_service_and_it_is_the_last_wish() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1"), (GEMMA, "gemma-2")]);
    let mut device = Device::of(&publisher).await;
    let mut other = Client::connect(device.broker.port(), device.site.node, "plc9", None).await;
    let install = r#"{"status":"init","action":"install","line":"assistant","release_seq":1}"#;
    for (seq, id, release_seq) in [(1, "d-1", 1), (2, "d-2", 2), (3, "d-3", 1), (4, "d-4", 2)] {
        desire(&mut device.client, seq, id, release_seq).await;
        let topic = format!("orinoco/v1/n1/cmd/ota/c{seq}");
        other.publish_retained(topic, install.into()).await;
    }
    // The last wish comes after all of them: each command has its answer.
    let topic = "orinoco/v1/n1/cmd/ota/+";
    let mut answers = Client::watch(device.broker.port(), topic).await;
    let has_answer = |client: &Client, ticket: &str| {
        let answer = client.documents.get(ticket);
        let answer = answer.and_then(|bytes| serde_json::from_slice(bytes).ok());
        answer.is_some_and(|answer: serde_json::Value| answer["status"] != "init")
    };
    answers
        .until("an answer to each", |_, client| {
            ["c1", "c2", "c3", "c4"]
                .iter()
                .all(|ticket| has_answer(client, ticket))
        })
        .await;
    // A wish that was overtaken on its way counts for nothing.
    desire(&mut device.client, 2, "d-late", 1).await;
    desire(&mut device.client, 9, "d-last", 2).await;
    let state = device.watcher.until_over("d-last").await;
    assert_eq!(
        (state.state, active(&state), state.queued.as_deref()),
        (Some(Phase::Committed), Some((2, "gemma-2")), None),
        "{state:?}\n{}",
        device.site.log()
    );
}

#[tokio::test]
async fn an_update_of_orinoco_in_the_middle_of_a_deployment_keeps_it_waiting_and_it_goes_on() {
    let mut publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let mut device = Device::of(&publisher).await;
    let wish = serde_json::json!({
        "desired_seq": 1, "deployment": "d-1", "line": "assistant", "release_seq": 1, "when": "staged-only",
    });
    device.wish(&wish).await;
    let waits = |state: &State| state.state == Some(Phase::Waiting);
    device.watcher.until("it waits", waits).await;
    // As a package manager restarts it; the network is gone meanwhile.
    publisher.vanish();
    assert_eq!(device.daemon.stop(), 0);
    device.daemon = device.site.start();
    device.watcher = Watcher::new(device.broker.port()).await;
    device.watcher.until("it waits still", waits).await;
    device.client.until_mode(Mode::Serving).await;
    let answer = device.order("c1", "activate").await;
    assert_eq!(answer["status"], "successful", "{answer}");
    let state = device.watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, active(&state)),
        (Some(Phase::Committed), Some((1, "smol-1"))),
        "{state:?}"
    );
}
