//! What the people around a node do: the publisher's rollout, a stick, two operators at once, an update of Orinoco.

use std::process::Output;

use orinoco::ota::LineName;
use orinoco::ota::waves::place;

use super::*;

fn publisher_says(args: &[&str]) -> Output {
    Command::new(beside_orinoco("orinoco-ota"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn rollout(broker: &Mosquitto, release_seq: u64, waves: &str) -> Output {
    publisher_says(&[
        "rollout",
        "--line",
        "assistant",
        "--release",
        &release_seq.to_string(),
        "--group",
        "default",
        "--port",
        &broker.port().to_string(),
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
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.release(GEMMA, "gemma-bad", ["Paris", "London"], "{}");
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
    let state = watcher
        .until("its group", |state| state.group.is_some())
        .await;
    assert_eq!(state.group.as_deref(), Some("default"));

    // Opened to the places before its own: it is told, and does nothing.
    let own = place(site.node, &LineName::new("assistant").unwrap(), 1);
    let percent = own * 100 / 2048;
    assert!(
        (2..98).contains(&percent),
        "{percent}: the wave before it is empty"
    );
    let wish = serde_json::json!({
        "desired_seq": 1, "deployment": "others", "line": "assistant", "release_seq": 1, "percent": percent,
    });
    client
        .publish_retained(
            "orinoco/v1/fleet/default/desired".into(),
            wish.to_string().into(),
        )
        .await;
    // An order that comes after it on the same way is answered after it.
    let topic = "orinoco/v1/n1/cmd/ota/c1";
    let mut answers = Client::watch(broker.port(), topic).await;
    client
        .publish_retained(topic.into(), r#"{"status":"init","action":"check"}"#.into())
        .await;
    answers
        .until("the answer", |_, client| {
            let document = client.documents.get("c1");
            document.is_some_and(|bytes| bytes.windows(10).any(|part| part == b"successful"))
        })
        .await;
    let state = watcher
        .until("what it has", |state| state.metadata.is_some())
        .await;
    assert_eq!((state.deployment.as_deref(), active(&state)), (None, None));

    let port = broker.port();
    let waves = format!("{percent},100");
    let (broker, done) = tokio::task::spawn_blocking(move || {
        let done = rollout(&broker, 1, &waves);
        (broker, done)
    })
    .await
    .unwrap();
    assert!(done.status.success(), "{}\n{}", said(&done), site.log());
    assert!(
        said(&done).contains("serves on 1 of 1 devices"),
        "{}",
        said(&done)
    );
    let state = watcher
        .until("it serves", |state| active(state).is_some())
        .await;
    assert_eq!(active(&state), Some((1, "smol-1")));

    let (_broker, stopped) = tokio::task::spawn_blocking(move || {
        let stopped = rollout(&broker, 2, "100");
        (broker, stopped)
    })
    .await
    .unwrap();
    assert!(!stopped.status.success(), "{}", said(&stopped));
    for words in ["probe_golden: n1", "stopped at 100 %: 1 of 1"] {
        assert!(said(&stopped).contains(words), "{}", said(&stopped));
    }
    let state = watcher
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
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let (old, new) = (
        publisher.dir.path().join("old"),
        publisher.dir.path().join("new"),
    );
    publisher.run(&["export", &text(&publisher.repo()), &text(&old)]);
    let Device {
        models: _models,
        board: _board,
        broker: _broker,
        site,
        daemon: _daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;

    // What the mirror says has expired: it may be an old copy, and nobody is there to say that it is not.
    desire(&mut client, 1, "d-1", 1).await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, state.reason),
        (Some(Phase::Failed), Some(Reason::MetadataExpired)),
        "{state:?}"
    );
    // The same from a stick, which somebody has put in.
    let (code, words) = apply(&site, &old).await;
    assert_eq!(code, 0, "{words}\n{}", site.log());
    let state = watcher
        .until("the release", |state| active(state).is_some())
        .await;
    assert_eq!(active(&state), Some((1, "smol-1")));
    assert_eq!(state.metadata.unwrap().freshness, "expired-accepted");

    // A key was replaced in the meantime, a release was made, and somebody brings it.
    publisher.now = None;
    let (repo, keys) = (text(&publisher.repo()), text(&publisher.keys()));
    publisher.run(&["rotate", &repo, "--role", "targets", "--new-keys", &keys]);
    publisher.run(&["sign", &repo, "--keys", &keys]);
    publisher.release(GEMMA, "gemma-2", ["Paris", "(?i)paris"], "{}");
    publisher.vanish();
    publisher.run(&["export", &repo, &text(&new)]);
    let (code, words) = apply(&site, &new).await;
    assert_eq!(code, 0, "{words}\n{}", site.log());
    let state = watcher
        .until("the next", |state| active(state) == Some((2, "gemma-2")))
        .await;
    let metadata = state.metadata.unwrap();
    assert_eq!((metadata.root, metadata.freshness.as_str()), (2, "fresh"));

    let (code, words) = apply(&site, &old).await;
    assert_ne!(code, 0, "{words}");
    assert!(words.contains("rollback_refused"), "{words}");
    let state = watcher
        .until("why not", |state| {
            state.reason == Some(Reason::RollbackRefused)
        })
        .await;
    assert_eq!(active(&state), Some((2, "gemma-2")));
}

#[tokio::test]
async fn of_wishes_and_commands_that_race_one_release_is_in_service_and_it_is_the_last_wish() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.release(GEMMA, "gemma-2", ["Paris", "(?i)paris"], "{}");
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
    let mut other = Client::connect(broker.port(), site.node, "plc9", None).await;
    let install = r#"{"status":"init","action":"install","line":"assistant","release_seq":1}"#;
    for (seq, id, release_seq) in [(1, "d-1", 1), (2, "d-2", 2), (3, "d-3", 1), (4, "d-4", 2)] {
        desire(&mut client, seq, id, release_seq).await;
        let topic = format!("orinoco/v1/n1/cmd/ota/c{seq}");
        other.publish_retained(topic, install.into()).await;
    }
    // A wish that was overtaken on its way counts for nothing.
    desire(&mut client, 2, "d-late", 1).await;
    desire(&mut client, 9, "d-last", 2).await;
    let state = watcher.until_over("d-last").await;
    assert_eq!(
        (state.state, active(&state), state.queued.as_deref()),
        (Some(Phase::Committed), Some((2, "gemma-2")), None),
        "{state:?}\n{}",
        site.log()
    );
}

#[tokio::test]
async fn an_update_of_orinoco_in_the_middle_of_a_deployment_keeps_it_waiting_and_it_goes_on() {
    let mut publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", ["Paris", "(?i)paris"], "{}");
    publisher.serve();
    let Device {
        models: _models,
        board: _board,
        broker,
        site,
        daemon,
        mut client,
        mut watcher,
    } = Device::of(&publisher).await;
    let wish = serde_json::json!({
        "desired_seq": 1, "deployment": "d-1", "line": "assistant", "release_seq": 1, "when": "staged-only",
    });
    client
        .publish_retained(
            "orinoco/v1/fleet/default/desired".into(),
            wish.to_string().into(),
        )
        .await;
    let waits = |state: &State| state.state == Some(Phase::Waiting);
    watcher.until("it waits", waits).await;
    // As a package manager restarts it; the network is gone meanwhile.
    publisher.vanish();
    assert_eq!(daemon.stop(), 0);
    let _daemon = site.start();
    let mut watcher = Watcher::new(broker.port()).await;
    watcher.until("it waits still", waits).await;
    client.until_mode(Mode::Serving).await;
    client
        .publish_retained(
            "orinoco/v1/n1/cmd/ota/c1".into(),
            r#"{"status":"init","action":"activate"}"#.into(),
        )
        .await;
    let state = watcher.until_over("d-1").await;
    assert_eq!(
        (state.state, active(&state)),
        (Some(Phase::Committed), Some((1, "smol-1"))),
        "{state:?}"
    );
}
