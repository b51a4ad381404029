//! `orinoco models use` as a person runs it.

use std::process::Output;

use super::*;

/// With none of this machine's configuration.
async fn orinoco(args: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_orinoco"));
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("config.toml"), "").unwrap();
    command
        .env_clear()
        .arg("--config")
        .arg(empty.path())
        .args(args);
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

#[tokio::test]
async fn models_use_waits_until_the_model_serves_or_says_why_not() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, SMOL).await;
    let port = broker.port().to_string();
    let order = async |model: &str, node: &str| {
        let at = ["--host", "127.0.0.1", "--port", &port, "--node", node];
        orinoco(&[&["models", "use", model, "--accept-seconds", "2"], &at[..]].concat()).await
    };

    let (code, stdout, stderr) = order(GEMMA, site.node).await;
    assert_eq!(
        (code, stdout),
        (0, format!("{GEMMA} serves on n1\n")),
        "{stderr}"
    );
    until_serving(&mut client, GEMMA).await;
    // The configuration's own again.
    let (code, stdout, stderr) = order("auto", site.node).await;
    assert_eq!(
        (code, stdout),
        (0, format!("{SMOL} serves on n1\n")),
        "{stderr}"
    );

    let (code, _, stderr) = order("nobody", site.node).await;
    assert_eq!(code, 1);
    assert!(
        stderr.contains("there is no model \"nobody\" on this node"),
        "{stderr}"
    );
    let (code, _, stderr) = order(SMOL, "n9").await;
    assert_eq!(code, 69);
    assert!(
        stderr.contains("n9 did not take the order within 2 s"),
        "{stderr}"
    );

    // Nothing is left to be done by a node that comes later.
    let mut watcher = Client::watch(broker.port(), "orinoco/v1/+/cmd/#").await;
    watcher.listen(std::time::Duration::from_millis(300)).await;
    assert!(watcher.documents.is_empty(), "{:?}", watcher.documents);
}

#[tokio::test]
async fn on_the_embedded_broker_only_operators_order() {
    let site = Site::with_own_broker(Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    let state_dir = site.dir.path().join("state");
    let state_dir = state_dir.to_str().unwrap();
    let (code, _, stderr) = orinoco(&["models", "use", GEMMA, "--state-dir", state_dir]).await;
    assert_eq!(code, 1);
    assert!(
        stderr.contains("orinoco user add NAME --role operator"),
        "{stderr}"
    );
}
