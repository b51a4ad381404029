//! What a device keeps: its model files as they were signed, and events until somebody has heard them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use orinoco::link::{self, Inbound, LinkConfig};
use orinoco::ota::deploy::report::Event;
use orinoco::ota::name::Digest;
use orinoco::ota::state::Phase;
use orinoco::ota::stick::{Request, Told};

use super::proxy::{Proxy, Way};
use super::setup::*;
use super::support::broker::Mosquitto;
use super::support::daemon::{SMOL, Site, models_dir};
use super::support::requester::Client;

#[tokio::test]
async fn a_model_file_that_rots_is_found_fetched_again_and_loaded_while_streams_go_on() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1")]);
    let ota = tempfile::tempdir().unwrap();
    let dir = ota.path().display().to_string();
    let mut device =
        Device::with(&publisher, |site| site.set(format!("ota.deploy.dir={dir}"))).await;
    device.takes(1, "d-1", 1).await;

    let blobs = std::fs::read_dir(ota.path().join("blobs")).unwrap();
    let blob = blobs.map(|blob| blob.unwrap().path()).next().unwrap();
    rot(&blob);
    stream(&mut device.client, "through", 400).await;
    assert_eq!(device.order("c1", "scrub").await["status"], "successful");
    let state = device
        .watcher
        .until("the repair", |state| {
            let is_repair = |id: &str| id.starts_with("repair-assistant-1");
            state.deployment.as_deref().is_some_and(is_repair)
                && state.state.is_some_and(Phase::is_over)
        })
        .await;
    assert_eq!(
        (state.state, active(&state)),
        (Some(Phase::Committed), Some((1, "smol-1"))),
        "{state:?}"
    );
    let name = blob.file_name().unwrap().to_str().unwrap();
    let found = Digest::of(&std::fs::read(&blob).unwrap());
    assert_eq!(found.to_string(), name, "it is as it was signed");
    device.client.until_ended(&["through".into()]).await;
    is_whole(&device.client, "through", 400);
}

/// Turns a bit in the middle of a file, as disks do.
fn rot(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// All events about updates until one that a deployment is in service.
async fn events(port: u16) -> tokio::task::JoinHandle<Vec<Event>> {
    let mut config = LinkConfig::new("127.0.0.1", port, "events");
    config.subscriptions = vec!["orinoco/v1/n1/evt/ota".into()];
    let (link, mut inbox) = link::spawn(config);
    let (up, is_up) = tokio::sync::oneshot::channel();
    let mut up = Some(up);
    let task = tokio::spawn(async move {
        let mut found: Vec<Event> = Vec::new();
        while let Some(inbound) = inbox.recv().await {
            match inbound {
                Inbound::Up { .. } => drop(up.take().map(|up| up.send(()))),
                Inbound::Message(message) => {
                    found.push(serde_json::from_slice(&message.payload).unwrap());
                    link.try_ack(message.ack).unwrap();
                    if found.last().unwrap().state == Phase::Committed {
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

#[tokio::test]
async fn what_happened_while_the_broker_was_away_is_told_on_its_return_after_a_power_cut_too() {
    let publisher = Publisher::new();
    publisher.release(SMOL, "smol-1", PASSES, "{}");
    let broker = Mosquitto::start().await;
    let proxy = Proxy::start(broker.port()).await;
    let ota = tempfile::tempdir().unwrap();
    let through_proxy = |site: Site| {
        site.set(format!("mqtt.port={}", proxy.port()))
            .set(format!("ota.deploy.dir={}", ota.path().display()))
    };
    let mut device = Device::on(broker, &publisher, through_proxy).await;
    let heard = events(device.broker.port()).await;

    proxy.set(Way::Closed);
    let request = Request::new("stick-1", &publisher.repo()).unwrap();
    request.leave(ota.path()).unwrap();
    let is_over = || {
        let told = Told::read(ota.path()).unwrap();
        told.is_some_and(|told| told.deployment.as_deref() == Some("stick-1") && told.is_over())
    };
    while !is_over() {
        device.client.listen(Duration::from_millis(100)).await;
    }
    device.daemon.power_cut();
    device.daemon = device.site.start();
    proxy.set(Way::Open);

    let heard = heard.await.unwrap();
    let last = heard.last().unwrap();
    assert_eq!(
        (last.deployment.as_str(), last.release_seq),
        ("stick-1", Some(1))
    );
    let seqs: Vec<u64> = heard.iter().filter_map(|event| event.event_seq).collect();
    assert!(
        seqs.is_sorted() && seqs[0] == 1,
        "in order, from the first: {seqs:?}"
    );
    assert!(heard.iter().any(|event| event.state == Phase::Downloading));
    device.watcher.until_over("stick-1").await;
    // Confirmed: it is not kept any more.
    let kept = ota.path().join("events.json");
    while std::fs::read_to_string(&kept).unwrap().contains("stick-1") {
        device.client.listen(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn what_the_publisher_says_of_draft_and_stop_reaches_loading_and_requests() {
    let mut publisher = Publisher::new();
    let model = models_dir().join(SMOL);
    let (repo, keys) = (publisher.repo(), publisher.keys());
    let manifest = repo.with_extension("json");
    std::fs::write(&manifest, r#"{"runtime":{"stop":["7"]}}"#).unwrap();
    for (line, id, more) in [
        ("drafter", "drafter-1", &[][..]),
        ("assistant", "smol-1", &["--draft", "drafter"]),
    ] {
        let (repo, model, manifest) = (text(&repo), text(&model), text(&manifest));
        let mut args = vec!["add", &repo, &model, "--line", line, "--id", id];
        args.extend(["--licence", "Apache-2.0", "--manifest", &manifest]);
        args.extend(["--golden", "Paris", "(?i)paris"]);
        args.extend(more);
        publisher.run(&args);
    }
    publisher.run(&["sign", &text(&repo), "--keys", &text(&keys)]);
    publisher.serve();
    let mut device = Device::of(&publisher).await;
    for (seq, line) in [(1, "drafter"), (2, "assistant")] {
        let id = format!("d-{line}");
        let wish = serde_json::json!({"desired_seq": seq, "deployment": id, "line": line});
        device.wish(&wish).await;
        let state = device.watcher.until_over(&id).await;
        assert_eq!(state.state, Some(Phase::Committed), "{state:?}");
    }
    let told = |_: bool, client: &Client| {
        let models = client.documents.get("models");
        let models: Option<orinoco::wire::report::Models> =
            models.and_then(|bytes| serde_json::from_slice(bytes).ok());
        let models = models.map(|models| models.models).unwrap_or_default();
        let drafts = |model: &orinoco::wire::report::Model| {
            model.name == "smol-1" && model.draft.as_deref() == Some("drafter-1")
        };
        models.iter().any(drafts)
    };
    device.client.until("the draft of smol-1", told).await;
    let body =
        r#"{"model":"assistant","messages":[{"role":"user","content":"!count !tokens 20"}]}"#;
    device.ask("chat", "stops", body).await;
    assert_eq!(device.client.text("stops"), "0 1 2 3 4 5 6 ");
}
