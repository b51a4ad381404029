//! Who goes first, who makes room, and what is too late: with the scripted engine, on the embedded broker.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use orinoco::link::Props;
use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::report::Mode;
use orinoco::wire::telemetry::TeleQueue;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

const LOCAL: &str = "local";

fn ids<const N: usize>(ids: [&str; N]) -> Vec<String> {
    ids.map(str::to_owned).to_vec()
}

fn site(engine: Engine, n_seq_max: u32) -> Site {
    Site::with_own_broker(engine)
        .set(format!("engine.n_seq_max={n_seq_max}"))
        .set("users.local.priorities=alarm,normal,batch")
        .set("requests.queue_notice_ms=100")
}

async fn serving(site: &Site) -> (Daemon, Client) {
    let daemon = site.start();
    let client = connect(&daemon, site).await;
    (daemon, client)
}

async fn connect(daemon: &Daemon, site: &Site) -> Client {
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client
}

fn chat(prompt: &str, keys: serde_json::Value) -> String {
    let mut body = serde_json::json!({"messages": [{"role": "user", "content": prompt}]});
    let keys = keys.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(keys);
    body.to_string()
}

async fn ask(client: &mut Client, id: &str, prompt: &str, keys: serde_json::Value) {
    client.ask("chat", id, &chat(prompt, keys)).await;
}

async fn until_text(client: &mut Client, id: &str, bytes: usize) {
    let id = id.to_owned();
    client
        .until("text", move |_, client| {
            let answer = client.answers.get(&id);
            answer.is_some_and(|answer| answer.text().len() >= bytes)
        })
        .await;
}

fn failure(client: &Client, id: &str) -> ApiError {
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap_err().clone()
}

fn has_ended(client: &Client, id: &str) -> bool {
    client
        .answers
        .get(id)
        .is_some_and(|answer| answer.end().is_some())
}

#[tokio::test]
async fn an_alarm_takes_a_batch_requests_place_and_both_end_whole() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    let batch = serde_json::json!({"priority": "batch", "max_tokens": 300});
    ask(&mut client, "long", "!count !step 30", batch).await;
    until_text(&mut client, "long", 20).await;
    ask(
        &mut client,
        "normal",
        "!count !tokens 5",
        serde_json::json!({}),
    )
    .await;
    let alarm = serde_json::json!({"priority": "alarm", "max_tokens": 20});
    ask(&mut client, "alarm", "!count", alarm).await;
    client.until_ended(&ids(["alarm"])).await;
    assert!(!has_ended(&client, "long") && !has_ended(&client, "normal"));
    client.until_ended(&ids(["long", "normal"])).await;
    assert_eq!(client.faults, Vec::<String>::new());
    let whole: String = (0..).map(|n| format!("{n} ")).take(200).collect();
    assert_eq!(client.text("long"), &whole[..300]);
    assert_eq!(client.text("alarm"), &whole[..20]);
    let end = client.answers["long"].end().unwrap();
    assert_eq!(end.outcome.as_ref().unwrap().details.resumed, Some(1));
    client
        .until("telemetry of the queue", |_, client| {
            let bytes = client.documents.get("queue");
            let told = bytes.and_then(|bytes| serde_json::from_slice::<TeleQueue>(bytes).ok());
            told.is_some_and(|queue| {
                queue.parked_count == Some(1) && queue.classes.is_some_and(|all| all.len() == 3)
            })
        })
        .await;
}

#[tokio::test]
async fn a_real_models_stream_that_made_room_has_the_uninterrupted_text() {
    // Nothing is found that an earlier round left: only what was parked.
    let site = site(Engine::Smol, 1).set("engine.prefix_cache_bytes=0");
    let (_daemon, mut client) = serving(&site).await;
    let batch = serde_json::json!({
        "priority": "batch", "max_tokens": 120, "temperature": 0, "ignore_eos": true, "coalesce_ms": 0,
    });
    let story = "Tell me a story about a lighthouse and a ship.";
    ask(&mut client, "alone", story, batch.clone()).await;
    client.until_ended(&ids(["alone"])).await;
    for round in 0..3 {
        let (id, alarm_id) = (format!("parked{round}"), format!("alarm{round}"));
        ask(&mut client, &id, story, batch.clone()).await;
        until_text(&mut client, &id, 20 + round * 90).await;
        let alarm = serde_json::json!({"priority": "alarm", "max_tokens": 12, "temperature": 0});
        ask(&mut client, &alarm_id, "Is the door open?", alarm).await;
        client.until_ended(&[id.clone(), alarm_id]).await;
        assert_eq!(client.text(&id), client.text("alone"), "round {round}");
        let end = client.answers[&id].end().unwrap();
        assert_eq!(end.outcome.as_ref().unwrap().details.resumed, Some(1));
    }
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_quiet_user_is_answered_at_once_beside_one_who_has_all_places() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted).set("engine.n_seq_max=2");
    let _daemon = site.start();
    let mut busy = Client::connect(broker.port(), site.node, "busy", None).await;
    busy.until_mode(Mode::Serving).await;
    let mut quiet = Client::connect(broker.port(), site.node, "quiet", None).await;
    let keys = || serde_json::json!({"max_tokens": 300});
    for id in ["long0", "long1", "long2"] {
        ask(&mut busy, id, "!count !step 30", keys()).await;
    }
    until_text(&mut busy, "long1", 20).await;
    ask(
        &mut quiet,
        "short",
        "!count",
        serde_json::json!({"max_tokens": 20}),
    )
    .await;
    quiet.until_ended(&ids(["short"])).await;
    let whole: String = (0..).map(|n| format!("{n} ")).take(200).collect();
    assert_eq!(quiet.text("short"), &whole[..20]);
    busy.until_ended(&ids(["long0", "long1", "long2"])).await;
    assert_eq!(busy.faults, Vec::<String>::new());
    let resumed = |id: &str| {
        let end = busy.answers[id].end().unwrap();
        end.outcome.as_ref().unwrap().details.resumed
    };
    assert_eq!(
        resumed("long1"),
        Some(1),
        "the younger of the two made room"
    );
    assert_eq!([resumed("long0"), resumed("long2")], [Some(0); 2]);
    for id in ["long0", "long1", "long2"] {
        assert_eq!(busy.text(id), &whole[..300]);
    }
}

#[tokio::test]
async fn only_who_may_claims_an_alarm() {
    let site = Site::with_own_broker(Engine::Scripted);
    let (_daemon, mut client) = serving(&site).await;
    ask(
        &mut client,
        "a",
        "x",
        serde_json::json!({"priority": "alarm"}),
    )
    .await;
    client.until_ended(&ids(["a"])).await;
    assert_eq!(failure(&client, "a").code, Code::NotAllowed);
}

#[tokio::test]
async fn what_cannot_be_in_time_is_refused_at_once_with_the_time_it_would_take() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    // Some 400 ms each: what requests take is known after the first.
    let prompt = "!count !tokens 40 !step 10";
    let began = std::time::Instant::now();
    client.ask("chat", "first", prompt).await;
    client.until_ended(&ids(["first"])).await;
    let took_ms = began.elapsed().as_millis() as u64;
    // One goes on until it is called off: the others are there when the next comes.
    let long = "!count !tokens 500 !step 20";
    for (id, prompt) in [("r1", long), ("r2", prompt), ("r3", prompt)] {
        client.ask("chat", id, prompt).await;
    }
    client.until_accepted(&ids(["r1", "r2", "r3"])).await;
    ask(
        &mut client,
        "late",
        prompt,
        serde_json::json!({"deadline_ms": 700}),
    )
    .await;
    ask(
        &mut client,
        "early",
        prompt,
        serde_json::json!({"deadline_ms": 600_000}),
    )
    .await;
    client.until_ended(&ids(["late"])).await;
    assert!(!has_ended(&client, "r2"), "it was refused at once");
    let error = failure(&client, "late");
    assert_eq!(error.code, Code::DeadlineExceeded);
    let eta_ms = error.eta_ms.unwrap();
    let most_ms = 15 * took_ms.max(400);
    assert!((900..most_ms).contains(&eta_ms), "{eta_ms} after {took_ms}");
    assert!(error.retry_after_ms.unwrap() >= eta_ms - 700);
    client.cancel("r1").await;
    client.until_ended(&ids(["r1", "r2", "r3", "early"])).await;
    client.text("early");
}

#[tokio::test]
async fn a_deadline_that_passes_ends_a_waiting_and_a_running_request() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    let soon = |ms: u64| serde_json::json!({"deadline_ms": ms, "max_tokens": 4000});
    let long = serde_json::json!({"max_tokens": 4000});
    ask(&mut client, "long", "!count !step 5", long).await;
    until_text(&mut client, "long", 5).await;
    ask(&mut client, "waits", "!count !step 5", soon(400)).await;
    client.until_ended(&ids(["waits"])).await;
    assert!(!has_ended(&client, "long"));
    client.cancel("long").await;
    client.until_ended(&ids(["long"])).await;
    ask(&mut client, "runs", "!count !step 5", soon(900)).await;
    client.until_ended(&ids(["runs"])).await;
    for (id, words) in [
        ("waits", "while it waited"),
        ("runs", "tokens of the answer"),
    ] {
        let error = failure(&client, id);
        assert_eq!(error.code, Code::DeadlineExceeded, "{id}");
        assert!(error.message.contains(words), "{}", error.message);
    }
    // Its sequence is free again.
    client.ask("chat", "next", "!count !tokens 10").await;
    client.until_ended(&ids(["next"])).await;
    client.text("next");
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn of_requests_with_one_key_only_the_newest_is_answered() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    let panel = serde_json::json!({"keep_latest": "panel", "max_tokens": 2000});
    ask(&mut client, "runs", "!count !step 5", panel.clone()).await;
    until_text(&mut client, "runs", 5).await;
    ask(
        &mut client,
        "other",
        "!count !tokens 9",
        serde_json::json!({"keep_latest": "other"}),
    )
    .await;
    for id in ["k1", "k2", "k3"] {
        ask(&mut client, id, "!count !tokens 9", panel.clone()).await;
    }
    let all = ids(["runs", "other", "k1", "k2", "k3"]);
    client.until_ended(&all).await;
    for id in ["runs", "k1", "k2"] {
        let error = failure(&client, id);
        assert_eq!(error.code, Code::Replaced, "{id}");
        assert!(error.message.contains("panel"), "{}", error.message);
    }
    assert_eq!(client.text("k3"), "0 1 2 3 4");
    client.text("other");
    // Asked again, it says the same again.
    let finals = client.finals["k1"].clone();
    client.answers.remove("k1");
    ask(&mut client, "k1", "!count !tokens 9", panel).await;
    client.until_ended(&ids(["k1"])).await;
    assert_eq!(client.finals["k1"], finals);
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn who_waits_is_told_when_it_moves_on() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    let prompt = "!count !tokens 60 !step 5";
    client.ask("chat", "known", prompt).await;
    client.until_ended(&ids(["known"])).await;
    // Two go on until they are called off: nobody moves on before it was told.
    let long = "!count !tokens 500 !step 20";
    for (id, prompt) in [("a", long), ("b", prompt), ("c", long), ("d", prompt)] {
        client.ask("chat", id, prompt).await;
    }
    client.until_accepted(&ids(["a", "b", "c", "d"])).await;
    assert_eq!(client.queued["d"], 3);
    client.cancel("a").await;
    client
        .until("the last to be next", |_, client| client.queued["d"] == 1)
        .await;
    client.cancel("c").await;
    client.until_ended(&ids(["a", "b", "c", "d"])).await;
    assert_eq!(client.text("d"), client.text("known"));
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn plain_text_has_its_class_and_deadline_in_user_properties() {
    let site = site(Engine::Scripted, 1);
    let (_daemon, mut client) = serving(&site).await;
    let with = |user: &[(&str, &str)], expiry_s| Props {
        user: user
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
        message_expiry_s: expiry_s,
        ..Props::default()
    };
    client
        .ask("chat", "long", "!count !tokens 4000 !step 5")
        .await;
    until_text(&mut client, "long", 5).await;
    let text = Bytes::from_static(b"!count !tokens 9");
    let asked = [
        ("batch", with(&[("priority", "batch")], None)),
        ("normal", with(&[], None)),
        ("late", with(&[("deadline_ms", "200")], None)),
        ("expired", with(&[], Some(1))),
        ("wrong", with(&[("priority", "urgent")], None)),
    ];
    for (id, props) in asked {
        client.ask_with("text", id, text.clone(), props).await;
    }
    let heard = |client: &Client, id: &str| {
        let last = client.bare.get(id).and_then(|said| said.last()).cloned();
        String::from_utf8(last.unwrap_or_default().to_vec()).unwrap()
    };
    client
        .until("what is late and wrong", |_, client| {
            ["late", "expired", "wrong"]
                .iter()
                .all(|id| client.bare.contains_key(*id))
        })
        .await;
    assert!(heard(&client, "late").starts_with("!deadline_exceeded "));
    assert!(heard(&client, "expired").starts_with("!deadline_exceeded "));
    assert!(heard(&client, "wrong").starts_with("!invalid_request priority "));
    client.cancel("long").await;
    client
        .until("the one of the class batch", |_, client| {
            client.bare.contains_key("batch")
        })
        .await;
    assert_eq!(heard(&client, "normal"), "0 1 2 3 4", "it came before");
}

#[tokio::test]
async fn class_deadline_and_key_survive_the_daemon() {
    let site = site(Engine::Scripted, 1);
    let (daemon, mut client) = serving(&site).await;
    let with = |user: &[(&str, &str)]| Props {
        user: user
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect(),
        ..Props::default()
    };
    client
        .ask("chat", "long", "!count !tokens 400 !step 20")
        .await;
    until_text(&mut client, "long", 5).await;
    let text = Bytes::from_static(b"!count !tokens 200 !step 5");
    let asked = [
        ("batch", with(&[("priority", "batch")])),
        ("late", with(&[("deadline_ms", "1500")])),
        ("old", with(&[("keep_latest", "k")])),
        (
            "alarm",
            with(&[("priority", "alarm"), ("keep_latest", "k2")]),
        ),
    ];
    for (id, props) in asked {
        client.ask_with("chat", id, text.clone(), props).await;
    }
    client
        .until_accepted(&ids(["batch", "late", "old", "alarm"]))
        .await;
    drop(client);
    daemon.power_cut();
    let (_daemon, mut client) = serving(&site).await;
    let new = with(&[("keep_latest", "k")]);
    client.ask_with("chat", "new", text.clone(), new).await;
    client.until_ended(&ids(["alarm"])).await;
    assert!(
        !has_ended(&client, "long"),
        "the alarm goes first, after a restart too"
    );
    let rest = ids(["long", "late", "old", "new"]);
    client.until_ended(&rest).await;
    assert!(!has_ended(&client, "batch"), "it is the last");
    assert_eq!(failure(&client, "late").code, Code::DeadlineExceeded);
    assert_eq!(failure(&client, "old").code, Code::Replaced);
    client.until_ended(&ids(["batch"])).await;
    for id in ["long", "alarm", "new", "batch"] {
        client.text(id);
    }
}

#[tokio::test]
async fn prompt_tokens_beyond_a_minutes_worth_are_paid_for_later() {
    let site = site(Engine::Scripted, 2).set("users.local.prompt_tokens_per_minute_max=600");
    let (_daemon, mut client) = serving(&site).await;
    let long = format!("!tokens 3 {}", "x".repeat(2000));
    client.ask("chat", "long", &long).await;
    client.until_ended(&ids(["long"])).await;
    client.text("long");
    client.ask("chat", "next", "!tokens 3 y").await;
    client.until_ended(&ids(["next"])).await;
    let error = failure(&client, "next");
    assert_eq!(error.code, Code::RateLimited);
    assert!(error.retry_after_ms.unwrap() > 1000, "{error:?}");
    client.listen(Duration::from_millis(1)).await;
}
