//! `orinoco models use` and `orinoco bench --table` as a person runs them.

use std::process::Output;

use super::support::board::Tree;
use super::support::daemon::{beside_orinoco, models_dir};
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
    let order = async |model: &str, node: &str, seconds: &str| {
        let at = ["--host", "127.0.0.1", "--port", &port, "--node", node];
        let order = ["models", "use", model, "--accept-seconds", seconds];
        orinoco(&[&order, &at[..]].concat()).await
    };

    let (code, stdout, stderr) = order(GEMMA, site.node, "60").await;
    assert_eq!(
        (code, stdout),
        (0, format!("{GEMMA} serves on n1\n")),
        "{stderr}"
    );
    until_serving(&mut client, GEMMA).await;
    // The configuration's own again.
    let (code, stdout, stderr) = order("auto", site.node, "60").await;
    assert_eq!(
        (code, stdout),
        (0, format!("{SMOL} serves on n1\n")),
        "{stderr}"
    );

    let (code, _, stderr) = order("nobody", site.node, "60").await;
    assert_eq!(code, 1);
    assert!(
        stderr.contains("there is no model \"nobody\" on this node"),
        "{stderr}"
    );
    let (code, _, stderr) = order(SMOL, "n9", "8").await;
    assert_eq!(code, 69);
    assert!(
        stderr.contains("n9 did not take the order within 8 s"),
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

#[tokio::test]
async fn the_measured_table_chooses_the_model_of_each_mode() {
    let tree = Tree::new("orin-nx-16gb");
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted)
        .set("model.active=")
        .set("power.choose=auto")
        // However slow the machine was while they were measured.
        .set("power.tok_s_min=0.01")
        .set("power.ttft_ms_max=600000")
        .set("power.settle_ms=0")
        .set("power.hold_seconds=0")
        .set(format!("paths.board_root={}", tree.path("").display()));
    let settings = [
        format!(
            "paths.state_dir={}",
            site.dir.path().join("state").display()
        ),
        format!("paths.models_dir={}", models_dir().display()),
        format!("paths.board_root={}", tree.path("").display()),
        format!(
            "engine.worker_path={}",
            beside_orinoco("orinoco-engine-scripted").display()
        ),
        "engine.backend=cpu".to_owned(),
        "engine.n_seq_max=2".to_owned(),
    ];
    let set: Vec<&str> = settings
        .iter()
        .flat_map(|s| ["--set", s.as_str()])
        .collect();
    let bench = async |models: &[&str]| {
        let args = [&["bench", "--table", "--runs", "1"], models, &set[..]].concat();
        let (code, stdout, stderr) = orinoco(&args).await;
        assert_eq!(code, 0, "{stderr}");
        stdout
    };
    // In the mode of 25 watts the GPU is slower than in that of 40, and only the small one is good enough.
    tree.set_mode("25W");
    let shown = bench(&[SMOL]).await;
    assert!(
        shown.starts_with("power mode 25W") && shown.contains("J/TOKEN"),
        "{shown}"
    );
    tree.set_mode("40W");
    bench(&[GEMMA]).await;

    let table = std::fs::read(site.dir.path().join("state/bench-table.json")).unwrap();
    let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
    assert_eq!(table["version"], 1);
    let rows = table["rows"].as_array().unwrap();
    let row = |row: &serde_json::Value| {
        for key in ["tok_s", "ttft_ms", "joules_per_token", "peak_bytes"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key} of {row}");
        }
        let model = row["model"].as_str().unwrap().to_owned();
        (
            row["caps"]["gpu_hz"].as_u64().unwrap() / 1_000_000,
            model,
            row["n_seq_max"].as_u64().unwrap(),
        )
    };
    let (small, large) = (SMOL.to_owned(), GEMMA.to_owned());
    assert_eq!(
        rows.iter().map(row).collect::<Vec<_>>(),
        [
            (408, small.clone(), 1),
            (408, small, 2),
            (1173, large.clone(), 1),
            (1173, large, 2)
        ]
    );

    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, GEMMA).await;
    tree.set_mode("25W");
    until_serving(&mut client, SMOL).await;
    let measured = |client: &Client| {
        let power = state(client).and_then(|state| state.power);
        power.is_some_and(|power| power.chosen_by == orinoco::wire::report::ChosenBy::Measured)
    };
    client
        .until("chosen by the table", |_, client| measured(client))
        .await;
}
