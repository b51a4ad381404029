//! Nothing that was accepted is lost: not by a power cut of the board, not by a broker that dies.
//!
//! `ORINOCO_FULL=1` runs ten rounds of each with 200 prompts to a real model; otherwise fewer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use orinoco::wire::report::Mode;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

const LOCAL: &str = "local";

struct Size {
    rounds: usize,
    prompts: usize,
}

fn size() -> Size {
    match std::env::var_os("ORINOCO_FULL") {
        Some(_) => Size {
            rounds: 10,
            prompts: 200,
        },
        None => Size {
            rounds: 2,
            prompts: 60,
        },
    }
}

fn ids(round: usize, n: usize) -> Vec<String> {
    (0..n).map(|i| format!("r{round}-{i}")).collect()
}

/// A moment that differs from round to round, within what a round takes.
fn moment() -> Duration {
    let random = getrandom::u64().unwrap();
    Duration::from_millis(50 + random % 3000)
}

fn body(n: usize) -> String {
    format!(
        r#"{{"messages":[{{"role":"user","content":"Tell me a fact about the number {n}."}}],"max_tokens":12,"temperature":1.0}}"#
    )
}

fn check(client: &Client, ids: &[String]) {
    assert_eq!(client.faults, Vec::<String>::new());
    for id in ids {
        // The text's digest was compared with the final's when the final came.
        assert!(client.answers[id].end().unwrap().outcome.is_ok(), "{id}");
        assert_eq!(
            client.finals[id].len(),
            1,
            "{id} has one final, whatever happened"
        );
    }
}

async fn ask_all(client: &mut Client, ids: &[String]) {
    for (n, id) in ids.iter().enumerate() {
        client.ask("chat", id, &body(n)).await;
    }
    client.until_accepted(ids).await;
}

#[tokio::test]
async fn a_power_cut_at_a_random_moment_loses_no_accepted_prompt() {
    let broker = support::broker::Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Smol);
    let mut daemon: Daemon = site.start();
    let mut client = Client::connect(broker.port(), site.node, LOCAL, None).await;
    let Size { rounds, prompts } = size();
    for round in 0..rounds {
        client.until_mode(Mode::Serving).await;
        let ids = ids(round, prompts);
        ask_all(&mut client, &ids).await;
        client.listen(moment()).await;
        daemon.power_cut();
        daemon = site.start();
        client.until_ended(&ids).await;
        check(&client, &ids);
    }
}

#[tokio::test]
async fn a_broker_that_dies_in_the_middle_loses_no_accepted_prompt() {
    let site = Site::with_own_broker(Engine::Smol);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    let Size { rounds, prompts } = size();
    for round in 0..rounds {
        client.until_mode(Mode::Serving).await;
        let ids = ids(round, prompts);
        ask_all(&mut client, &ids).await;
        client.listen(moment()).await;
        assert!(daemon.kill_broker());
        client.until_ended(&ids).await;
        check(&client, &ids);
    }
}

#[tokio::test]
async fn an_orderly_stop_leaves_unfinished_jobs_for_the_next_start() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.drain_seconds=1");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let ids: Vec<String> = ["quick".to_owned(), "slow".to_owned()].into();
    client
        .ask("chat", "quick", "!count !tokens 20 !step 2")
        .await;
    client
        .ask("chat", "slow", "!count !tokens 400 !step 25")
        .await;
    client.until_accepted(&ids).await;
    assert_eq!(daemon.stop(), 0);
    let daemon = site.start();
    client.until_ended(&ids).await;
    assert_eq!(client.faults, Vec::<String>::new());
    assert_eq!(client.answers["slow"].attempt(), 2);
    assert_eq!(client.text("slow").len(), 400);
    drop(daemon);
}
