//! The daemon itself dies in the middle of an update, with its worker and a stream in flight, and comes through.

use orinoco::ota::crash;

use super::setup::*;
use super::support::daemon::{GEMMA, SMOL, Site};

/// Forward, then back: where the daemon dies.
const PAIRS: &[(&str, &str)] = &[
    ("trial:loaded", "state:rolled_back:after"),
    ("state:committed:before", "rolling_back:before"),
    ("state:committed:after", "state:rolling_back:after"),
    ("piece:synced#2", "state:rolled_back:before"),
    // Those above run each time; see `pairs`.
    ("state:checking:before", "state:rolling_back:before"),
    ("state:checking:after", "state.json:written"),
    ("state:planned:after", "state.json:synced"),
    ("state:downloading:after", "state.json:renamed"),
    ("state:verifying:after", "journal:written"),
    ("state:staged:after", "service:told#2"),
    ("state:switching:before", "sweep:before#2"),
    ("state:switching:after", "sweep:blobs#2"),
    ("state:probing:before", "rolling_back:before"),
    ("state:probing:after", "state:rolled_back:after"),
    ("trial:offered", "state:rolled_back:after"),
    ("trial:judged", "state:rolled_back:after"),
    ("trial:settled", "state:rolled_back:after"),
    ("blob:renamed", "state:rolled_back:after"),
    ("blob:synced", "state:rolled_back:after"),
    ("verify:judged", "state:rolled_back:after"),
    ("plan:manifest", "state:rolled_back:after"),
];
const N_QUICK: usize = 4;

/// A few, or all with `ORINOCO_FULL`: the same places, and more, are gone through without a worker in
/// `ota/tests/operator/crash.rs`.
fn pairs() -> &'static [(&'static str, &'static str)] {
    match std::env::var_os("ORINOCO_FULL") {
        Some(_) => PAIRS,
        None => &PAIRS[..N_QUICK],
    }
}

async fn dies_at(site: &Site, place: &str, order: impl AsyncFnOnce()) {
    let daemon = site.start_with(|command| _ = command.env(crash::ENV, place));
    order().await;
    let Ok(ended) = tokio::task::spawn_blocking(move || daemon.wait()).await else {
        panic!("{place}: it never came there\n{}", site.log());
    };
    assert_eq!(ended, -1, "{place}: by a signal\n{}", site.log());
}

#[tokio::test]
async fn a_daemon_that_dies_in_an_update_or_on_the_way_back_comes_through_with_its_streams() {
    let publisher = Publisher::with_releases(&[(SMOL, "smol-1"), (GEMMA, "gemma-2")]);
    let mut device = Device::of(&publisher).await;
    let state = device.takes(1, "d-0", 1).await;
    assert_eq!(active(&state), Some((1, "smol-1")), "{state:?}");
    stream(&mut device.client, "through", 800).await;
    let Device {
        board: _board,
        broker: _broker,
        site,
        daemon,
        mut client,
        mut watcher,
        models: _models,
    } = device;
    daemon.power_cut();

    for (n, (forward, back)) in (1_u64..).zip(pairs()) {
        let deployment = format!("d-{n}");
        dies_at(&site, forward, async || {
            desire(&mut client, n + 1, &deployment, 2).await
        })
        .await;
        let daemon = site.start();
        let state = watcher
            .until(forward, |state| active(state) == Some((2, "gemma-2")))
            .await;
        assert_eq!(state.reason, None, "{forward}: {state:?}");
        daemon.power_cut();

        // A command is no wish: it is taken back once it has been heard.
        let topic = format!("orinoco/v1/n1/cmd/ota/back-{n}");
        let init = r#"{"status":"init","action":"rollback"}"#;
        dies_at(&site, back, async || {
            client.publish_retained(topic.clone(), init.into()).await;
        })
        .await;
        let daemon = site.start();
        watcher
            .until(back, |state| active(state) == Some((1, "smol-1")))
            .await;
        client.publish_retained(topic, Default::default()).await;
        daemon.power_cut();
    }
    let _daemon = site.start();
    client.until_ended(&["through".into()]).await;
    is_whole(&client, "through", 800);
}
