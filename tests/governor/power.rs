//! The model follows the power mode and heat of a board: trees of real boards whose files a test rewrites.

use orinoco::wire::report::{ChosenBy, Power};

use super::support::board::Tree;
use super::*;

/// What serves in which mode, at once.
fn site(port: u16, engine: Engine, tree: &Tree, profiles: &str) -> Site {
    let site = Site::with_broker_on(port, engine)
        .set("model.active=")
        .set("power.settle_ms=0")
        .set("power.hold_seconds=0")
        .set("power.step_seconds=1")
        .set(format!("paths.board_root={}", tree.path("").display()));
    std::fs::write(site.dir.path().join("config.toml"), profiles).unwrap();
    site
}

async fn until_power(client: &mut Client, wanted: impl Fn(&Power) -> bool) -> Power {
    let power = |client: &Client| state(client)?.power.filter(&wanted);
    client
        .until("what the model follows", |_, client| {
            power(client).is_some()
        })
        .await;
    power(client).unwrap()
}

#[tokio::test]
async fn eight_streams_go_on_in_the_smaller_model_of_a_slower_mode_and_back() {
    let tree = Tree::new("orin-nx-16gb");
    tree.set_mode("40W");
    let broker = Mosquitto::start().await;
    let profiles = format!(
        "[profiles.fast]\ngpu_mhz_tpcs_min = 3600\nmodel = \"{GEMMA}\"\nn_ctx = 4096\nmemory_bytes = 900000000\n\
         [profiles.slow]\norder = 20\nmodel = \"{SMOL}\"\nn_ctx = 4096\nmemory_bytes = 500000000\n"
    );
    let site = site(broker.port(), Engine::Gemma, &tree, &profiles);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, GEMMA).await;
    let power = until_power(&mut client, |_| true).await;
    assert_eq!(
        (power.mode.as_deref(), power.profile.as_deref()),
        (Some("40W"), Some("fast"))
    );

    let ids = ask_eight(&mut client).await;
    go_on_through(&mut client, &ids, async |_, model| {
        // The GPU goes from 1173 to 408 MHz, and the watts to 25.
        tree.set_mode(if model == SMOL { "25W" } else { "40W" });
    })
    .await;
    let power = until_power(&mut client, |power| power.mode.as_deref() == Some("40W")).await;
    assert_eq!(power.chosen_by, ChosenBy::Profile);
}

#[tokio::test]
async fn an_order_holds_until_auto_or_the_next_mode() {
    let tree = Tree::new("orin-nx-16gb");
    tree.set_mode("40W");
    let broker = Mosquitto::start().await;
    let profiles = format!(
        "[profiles.fast]\ngpu_mhz_tpcs_min = 3600\nmodel = \"{GEMMA}\"\n\
         [profiles.slow]\norder = 20\nmodel = \"{SMOL}\"\n"
    );
    let site = site(broker.port(), Engine::Scripted, &tree, &profiles);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, GEMMA).await;
    let chosen_by = |chosen_by| move |power: &Power| power.chosen_by == chosen_by;

    set_model(&mut client, site.node, SMOL).await;
    until_serving(&mut client, SMOL).await;
    until_power(&mut client, chosen_by(ChosenBy::Operator)).await;
    set_model(&mut client, site.node, "auto").await;
    until_serving(&mut client, GEMMA).await;
    until_power(&mut client, chosen_by(ChosenBy::Profile)).await;

    set_model(&mut client, site.node, SMOL).await;
    until_power(&mut client, chosen_by(ChosenBy::Operator)).await;
    until_serving(&mut client, SMOL).await;
    tree.set_mode("25W");
    until_power(&mut client, chosen_by(ChosenBy::Profile)).await;
    tree.set_mode("40W");
    until_serving(&mut client, GEMMA).await;
}

#[tokio::test]
async fn heat_lowers_concurrency_then_the_model_and_gives_both_back() {
    let tree = Tree::new("orin-nx-16gb");
    let zone = "sys/class/thermal/thermal_zone8/temp";
    tree.write(zone, "50000\n");
    let broker = Mosquitto::start().await;
    let profiles = format!(
        "[profiles.large]\nmodel = \"{GEMMA}\"\nn_seq_max = 2\nmemory_bytes = 900000000\n\
         [profiles.small]\norder = 20\nmodel = \"{SMOL}\"\nmemory_bytes = 500000000\n"
    );
    let site = site(broker.port(), Engine::Scripted, &tree, &profiles)
        .set("power.celsius_high=90")
        .set("power.celsius_low=80")
        .set("power.hold_seconds=1");
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, "plc4", None).await;
    until_serving(&mut client, GEMMA).await;
    let ids: Vec<String> = (0..2).map(|n| format!("s{n}")).collect();
    for id in &ids {
        // Fifteen seconds: an answer has 512 tokens at most.
        client.ask("chat", id, "!count !tokens 900 !step 30").await;
    }
    client.until_accepted(&ids).await;

    tree.write(zone, "93000\n");
    let power = until_power(&mut client, |power| power.n_seq == 1).await;
    assert!(power.hot && power.n_steps_down == 1);
    until_serving(&mut client, SMOL).await;
    // Between the two thresholds nothing moves; hysteresis is played second by second in `selection`.
    tree.write(zone, "85000\n");
    until_power(&mut client, |power| !power.hot && power.n_steps_down == 2).await;
    tree.write(zone, "70000\n");
    until_serving(&mut client, GEMMA).await;
    until_power(&mut client, |power| {
        power.n_seq == 2 && power.n_steps_down == 0
    })
    .await;
    client.until_ended(&ids).await;
    all_whole(&client, &ids);
    for id in &ids {
        let end = client.answers[id].end().unwrap().outcome.as_ref().unwrap();
        let details = &end.details;
        assert!(
            details.resumed >= Some(1),
            "{id} was moved: {details:?}\n{}",
            site.log()
        );
    }
}
