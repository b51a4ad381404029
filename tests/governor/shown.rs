//! What a node shows of itself to Home Assistant and to `orinoco top`.

use super::support::board::Tree;
use super::*;

/// The retained discovery payload, as a broker would hand it to a Home Assistant that connects now.
async fn discovered(port: u16) -> Option<serde_json::Value> {
    let mut watcher = Client::watch(port, "homeassistant/#").await;
    watcher.listen(Duration::from_millis(300)).await;
    let payload = watcher.documents.get("config")?;
    serde_json::from_slice(payload).ok()
}

#[tokio::test]
async fn home_assistant_is_told_of_a_node_and_told_when_that_ends() {
    let tree = Tree::new("orin-nx-16gb");
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("telemetry.interval_seconds=1")
        .set(format!("paths.board_root={}", tree.path("").display()));
    let daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    assert_eq!(discovered(broker.port()).await, None, "it is opt-in");
    drop(daemon);

    let site = site.set("home_assistant.discovery=true");
    let daemon = site.start();
    let mut watcher = Client::watch(broker.port(), "homeassistant/#").await;
    // What is read from the board comes a moment later, and adds to it.
    watcher
        .until("the board's sensors", |_, watcher| {
            let payload = watcher.documents.get("config");
            payload.is_some_and(|payload| payload.windows(10).any(|part| part == b"rails_mw['"))
        })
        .await;
    let mut anew = Client::watch(broker.port(), "homeassistant/#").await;
    anew.until("it is retained", |_, anew| {
        anew.documents.contains_key("config")
    })
    .await;
    let device: serde_json::Value = serde_json::from_slice(&anew.documents["config"]).unwrap();
    assert_eq!(
        device["cmps"]["model"]["command_topic"],
        "orinoco/v1/n1/set/model"
    );
    let models = device["cmps"]["model"]["options"].as_array().unwrap();
    assert!(models.contains(&SMOL.into()), "{models:?}");
    drop(daemon);

    let site = site.set("home_assistant.discovery=false");
    let _daemon = site.start();
    until_serving(&mut client, SMOL).await;
    watcher
        .until("it is taken back", |_, watcher| {
            watcher
                .documents
                .get("config")
                .is_some_and(|it| it.is_empty())
        })
        .await;
    assert_eq!(discovered(broker.port()).await, None);
}

#[tokio::test]
async fn an_operator_calls_off_everything() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Smol);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    let ids: Vec<String> = (0..12).map(|n| format!("long{n}")).collect();
    let body = r#"{"prompt":"Once upon a time","max_tokens":4000,"ignore_eos":true}"#;
    for id in &ids {
        client.ask("complete", id, body).await;
    }
    client.until_accepted(&ids).await;
    let topic = format!("orinoco/v1/{}/set/cancel", site.node);
    client
        .publish(topic.clone(), "some".into(), Props::default())
        .await;
    client.publish(topic, "all".into(), Props::default()).await;
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    assert!(site.log().contains("the payload must be all"));
}

#[tokio::test]
async fn top_prints_a_frame_for_scripts() {
    let broker = Mosquitto::start().await;
    let site =
        Site::with_broker_on(broker.port(), Engine::Scripted).set("telemetry.interval_seconds=1");
    let top = async |more: &[&str]| {
        let port = broker.port().to_string();
        let at = [
            "top",
            "--once",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--node",
            site.node,
        ];
        let mut command = site.command(&[&at, more].concat());
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.unwrap().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, _, stderr) = top(&["--wait-seconds", "1"]).await;
    assert_eq!(code, 69);
    assert!(stderr.contains("nothing from n1 within 1 s"), "{stderr}");

    let _daemon = site.start();
    let (code, frame, stderr) = top(&["--width", "90", "--wait-seconds", "60"]).await;
    assert_eq!(code, 0, "{stderr}");
    for part in [
        "Orinoco n1",
        "online",
        "requests",
        "tok/s",
        "memory",
        "free ",
    ] {
        assert!(frame.contains(part), "{part} in\n{frame}");
    }
    assert!(
        frame.lines().all(|line| line.chars().count() <= 90),
        "{frame}"
    );
}
