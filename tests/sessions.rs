//! Conversations that the node keeps: with the scripted engine, on the embedded broker.
//!
//! The scripted engine answers with what the last user said, which says nothing of what came before. So what a
//! model was given is read from the count of prompt tokens: this engine makes one of each byte.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "sessions/restarts.rs"]
mod restarts;
mod support;

use std::time::Duration;

use bytes::Bytes;
use orinoco::link::Props;
use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::reply::Session;
use orinoco::wire::report::Mode;
use serde_json::json;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

async fn serving(site: &Site) -> (Daemon, Client) {
    let daemon = site.start();
    let client = connect(&daemon, site, "local").await;
    (daemon, client)
}

async fn connect(daemon: &Daemon, site: &Site, user: &str) -> Client {
    let mut client = Client::connect(daemon.port, site.node, user, None).await;
    client.until_mode(Mode::Serving).await;
    client
}

fn body(session: &str, text: &str) -> String {
    json!({
        "session": session, "session_history": true, "max_tokens": 8,
        "messages": [{"role": "user", "content": text}],
    })
    .to_string()
}

/// Asks and waits for the end.
async fn ask(client: &mut Client, id: &str, body: &str) {
    client.ask("chat", id, body).await;
    client.until_ended(&[id.to_owned()]).await;
}

fn session(client: &Client, id: &str) -> Option<Session> {
    let end = client.answers[id].end().unwrap();
    let finished = end
        .outcome
        .as_ref()
        .unwrap_or_else(|error| panic!("{id}: {error:?}"));
    finished.details.session.clone()
}

fn turns(client: &Client, id: &str) -> u64 {
    session(client, id).unwrap().turns
}

fn n_prompt(client: &Client, id: &str) -> u64 {
    let end = client.answers[id].end().unwrap();
    let usage = end.outcome.as_ref().unwrap().usage.unwrap();
    usage.prompt_tokens
}

fn failure(client: &Client, id: &str) -> ApiError {
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap_err().clone()
}

/// Tokens that a turn of `question` and its answer of eight letters adds to a prompt.
async fn added_by_a_turn(client: &mut Client, question: &str) -> u64 {
    ask(client, "m1", &body("measure", question)).await;
    ask(client, "m2", &body("measure", question)).await;
    n_prompt(client, "m2") - n_prompt(client, "m1")
}

#[tokio::test]
async fn a_conversation_goes_on_and_is_nobody_elses() {
    let site = Site::with_own_broker(Engine::Scripted);
    let (_daemon, mut client) = serving(&site).await;
    let question = "what is the pressure?";
    let turn = added_by_a_turn(&mut client, question).await;
    assert!(turn > question.len() as u64 + 8);
    for n in 0..4 {
        let id = format!("a{n}");
        ask(&mut client, &id, &body("kitchen", question)).await;
        assert_eq!(turns(&client, &id), n + 1);
        let first = n_prompt(&client, "a0");
        assert_eq!(n_prompt(&client, &id), first + n * turn, "turn {n}");
    }
    // What stands in the cache is found: all but what is new.
    let end = client.answers["a3"].end().unwrap();
    let usage = end.outcome.as_ref().unwrap().usage.unwrap();
    let n_new = usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens;
    assert!(n_new < 2 * turn, "{usage:?}");
    // Another name, none at all, and one that keeps nothing.
    ask(&mut client, "other", &body("cellar", question)).await;
    assert_eq!(turns(&client, "other"), 1);
    let alone = json!({"messages": [{"role": "user", "content": question}], "max_tokens": 8});
    ask(&mut client, "alone", &alone.to_string()).await;
    assert_eq!(session(&client, "alone"), None);
    let mut named = alone.clone();
    named["session"] = json!("kitchen");
    ask(&mut client, "named", &named.to_string()).await;
    assert_eq!(session(&client, "named"), None);
    assert_eq!(n_prompt(&client, "named"), n_prompt(&client, "alone"));
    // Without a name there is nothing to keep; nor has a prompt turns.
    named["session"] = json!(null);
    named["session_history"] = json!(true);
    ask(&mut client, "nameless", &named.to_string()).await;
    let error = failure(&client, "nameless");
    assert_eq!(
        (error.code, error.param.as_deref()),
        (Code::InvalidRequest, Some("session"))
    );
    let prompt = json!({"prompt": "x", "session": "kitchen", "session_history": true}).to_string();
    client.ask("complete", "prompt", &prompt).await;
    client.until_ended(&["prompt".to_owned()]).await;
    assert_eq!(
        failure(&client, "prompt").param.as_deref(),
        Some("session_history")
    );
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn plain_text_holds_a_conversation_by_a_property_or_by_the_users_default() {
    let site = Site::with_own_broker(Engine::Scripted).set("users.local.session=main");
    let (_daemon, mut client) = serving(&site).await;
    let text = Bytes::from_static(b"hello there !tokens 6");
    let with = |session: Option<&str>| Props {
        user: session
            .iter()
            .map(|s| ("session".into(), (*s).into()))
            .collect(),
        ..Props::default()
    };
    for id in ["t1", "t2"] {
        client.ask_with("text", id, text.clone(), with(None)).await;
        client
            .until("its answer", |_, client| client.bare.contains_key(id))
            .await;
    }
    client
        .ask_with("text", "p1", text.clone(), with(Some("porch")))
        .await;
    client
        .until("its answer", |_, client| client.bare.contains_key("p1"))
        .await;
    // Of JSON the default is the name alone; what it says of a session holds.
    ask(&mut client, "third", &body("main", "x")).await;
    assert_eq!(turns(&client, "third"), 3);
    ask(&mut client, "second", &body("porch", "x")).await;
    assert_eq!(turns(&client, "second"), 2);
}

#[tokio::test]
async fn two_requests_of_one_conversation_come_one_after_the_other_in_any_class() {
    let site = Site::with_own_broker(Engine::Scripted)
        .set("engine.n_seq_max=4")
        .set("users.local.priorities=alarm,normal,batch");
    let (_daemon, mut client) = serving(&site).await;
    let slow = |priority: &str| {
        json!({
            "session": "s", "session_history": true, "max_tokens": 60, "priority": priority,
            "messages": [{"role": "user", "content": "!count !step 10"}],
        })
        .to_string()
    };
    // It is called off, and so leaves no turn; until then the others wait.
    let zero = json!({
        "session": "s", "session_history": true, "max_tokens": 1000,
        "messages": [{"role": "user", "content": "!count !step 20"}],
    });
    client.ask("chat", "zero", &zero.to_string()).await;
    for (id, class) in [("first", "batch"), ("second", "normal"), ("third", "alarm")] {
        client.ask("chat", id, &slow(class)).await;
    }
    ask(&mut client, "aside", &body("other", "x")).await;
    let ended = |id: &str| {
        client
            .answers
            .get(id)
            .is_some_and(|answer| answer.end().is_some())
    };
    let is_waited_for = !ended("zero") && !ended("first");
    assert!(is_waited_for, "another conversation waits for nobody");
    client.cancel("zero").await;
    client.until_ended(&["third".to_owned()]).await;
    for (n, id) in ["first", "second", "third"].into_iter().enumerate() {
        assert_eq!(turns(&client, id), n as u64 + 1, "{id}");
    }
    assert!(n_prompt(&client, "first") < n_prompt(&client, "second"));
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn what_was_called_off_or_refused_leaves_no_turn_and_stops_nobody() {
    let site = Site::with_own_broker(Engine::Scripted).set("model.n_ctx=2000");
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a", &body("s", "one")).await;
    let long = json!({
        "session": "s", "session_history": true, "max_tokens": 1000,
        "messages": [{"role": "user", "content": "!count !step 20"}],
    });
    client.ask("chat", "runs", &long.to_string()).await;
    client.ask("chat", "waits", &long.to_string()).await;
    client
        .ask("chat", "large", &body("s", &"x".repeat(3000)))
        .await;
    client.ask("chat", "b", &body("s", "two")).await;
    client.until_text("runs").await;
    client.cancel("waits").await;
    client.cancel("runs").await;
    client.until_ended(&["b".to_owned()]).await;
    assert_eq!(failure(&client, "large").code, Code::ContextLengthExceeded);
    assert_eq!(session(&client, "runs"), None);
    assert_eq!(turns(&client, "b"), 2);
}

#[tokio::test]
async fn a_power_cut_loses_no_turn_and_makes_none_twice() {
    let site = Site::with_own_broker(Engine::Scripted);
    let (daemon, mut client) = serving(&site).await;
    let turn = added_by_a_turn(&mut client, "one").await;
    ask(&mut client, "a", &body("s", "one")).await;
    let n_first = n_prompt(&client, "a");
    let slow = json!({
        "session": "s", "session_history": true, "max_tokens": 200,
        "messages": [{"role": "user", "content": "!count !step 30"}],
    });
    client.ask("chat", "cut", &slow.to_string()).await;
    client.ask("chat", "next", &body("s", "two")).await;
    client
        .until_accepted(&["cut".to_owned(), "next".to_owned()])
        .await;
    client.until_text("cut").await;
    drop(client);
    daemon.power_cut();
    let (daemon, mut client) = serving(&site).await;
    client
        .until_ended(&["cut".to_owned(), "next".to_owned()])
        .await;
    assert_eq!((turns(&client, "cut"), turns(&client, "next")), (2, 3));
    let whole: String = (0..).map(|n| format!("{n} ")).take(100).collect();
    assert_eq!(client.text("cut"), &whole[..200]);
    drop(client);
    daemon.power_cut();
    let (_daemon, mut client) = serving(&site).await;
    // Asked again, it is answered from the store, and no turn of its own again.
    ask(&mut client, "next", &body("s", "two")).await;
    assert_eq!(turns(&client, "next"), 3);
    ask(&mut client, "last", &body("s", "one")).await;
    assert_eq!(turns(&client, "last"), 4);
    let n_slow = "!count !step 30".len() as u64 - 3 + 200 - 8;
    assert_eq!(n_prompt(&client, "last"), n_first + 3 * turn + n_slow);
}

#[tokio::test]
async fn the_oldest_turns_go_whole_where_the_context_is_full_and_the_answer_says_so() {
    let site = Site::with_own_broker(Engine::Scripted)
        .set("model.n_ctx=600")
        .set("engine.n_seq_max=1");
    let (_daemon, mut client) = serving(&site).await;
    let question = "x".repeat(60);
    let (mut dropped, mut told) = (0, 0);
    for n in 0..20 {
        let id = format!("q{n}");
        ask(&mut client, &id, &body("s", &question)).await;
        let session = session(&client, &id).unwrap();
        dropped += session.dropped_turns;
        told += u64::from(session.dropped_turns > 0);
        assert_eq!(session.left_out_turns, session.dropped_turns);
        assert_eq!(session.turns, n + 1 - dropped, "none goes in silence");
        assert!(n_prompt(&client, &id) < 600);
    }
    assert!(dropped > 10, "{dropped}");
    assert!(told * 2 <= dropped, "several at once: {dropped} in {told}");
}

#[tokio::test]
async fn forgotten_means_all_of_it_also_what_is_being_answered() {
    let site = Site::with_own_broker(Engine::Scripted);
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a", &body("s", "one")).await;
    ask(&mut client, "kept", &body("other", "one")).await;
    let slow = json!({
        "session": "s", "session_history": true, "max_tokens": 100,
        "messages": [{"role": "user", "content": "!count !step 40"}],
    });
    client.ask("chat", "runs", &slow.to_string()).await;
    client.until_text("runs").await;
    let topic = |name: &str| format!("orinoco/v1/{}/req/local/forget/{name}", site.node);
    client
        .publish(topic("s"), Bytes::new(), Props::default())
        .await;
    client
        .publish(topic("never-known"), Bytes::new(), Props::default())
        .await;
    ask(&mut client, "anew", &body("s", "one")).await;
    assert_eq!(
        client.text("runs").len(),
        100,
        "it is answered all the same"
    );
    assert_eq!(session(&client, "runs"), None);
    assert_eq!(turns(&client, "anew"), 1);
    assert_eq!(n_prompt(&client, "anew"), n_prompt(&client, "a"));
    ask(&mut client, "more", &body("other", "one")).await;
    assert_eq!(turns(&client, "more"), 2);
}

#[tokio::test]
async fn a_node_that_keeps_none_says_so() {
    let site = Site::with_own_broker(Engine::Scripted).set("sessions.per_user_max=0");
    let (_daemon, mut client) = serving(&site).await;
    ask(&mut client, "a", &body("s", "one")).await;
    assert_eq!(failure(&client, "a").code, Code::NotSupported);
}

#[tokio::test]
async fn a_system_message_is_remembered_and_stands_once() {
    let site = Site::with_own_broker(Engine::Scripted);
    let (_daemon, mut client) = serving(&site).await;
    let turn = added_by_a_turn(&mut client, "one").await;
    let with_system = |session: &str| {
        json!({
            "session": session, "session_history": true, "max_tokens": 8,
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"}],
        })
        .to_string()
    };
    ask(&mut client, "a", &with_system("s")).await;
    ask(&mut client, "b", &body("s", "one")).await;
    ask(&mut client, "c", &with_system("s")).await;
    let n = |id| n_prompt(&client, id);
    assert_eq!((n("b"), n("c")), (n("a") + turn, n("a") + 2 * turn));
}

#[tokio::test]
async fn the_same_name_of_another_user_is_another_conversation() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let daemon = site.start();
    let mut ann = connect(&daemon, &site, "ann").await;
    let mut bob = connect(&daemon, &site, "bob").await;
    ask(&mut ann, "a1", &body("s", "one")).await;
    ask(&mut ann, "a2", &body("s", "one")).await;
    ask(&mut bob, "b1", &body("s", "one")).await;
    assert_eq!((turns(&ann, "a2"), turns(&bob, "b1")), (2, 1));
    assert_eq!(n_prompt(&bob, "b1"), n_prompt(&ann, "a1"));
    let forget = format!("orinoco/v1/{}/req/bob/forget/s", site.node);
    bob.publish(forget, Bytes::new(), Props::default()).await;
    ask(&mut bob, "b2", &body("s", "one")).await;
    ask(&mut ann, "a3", &body("s", "one")).await;
    assert_eq!((turns(&bob, "b2"), turns(&ann, "a3")), (1, 3));
}

#[tokio::test]
async fn the_operators_system_prompt_is_read_before_anybody_asks() {
    let prompt = "you look after the pumps of a small plant and answer in one sentence";
    let site =
        Site::with_own_broker(Engine::Scripted).set(format!("users.local.system_prompt={prompt}"));
    // How long it takes is the machine's to say; nobody is told when it is read.
    for patience_ms in [200, 2000, 10_000] {
        let (daemon, mut client) = serving(&site).await;
        client.listen(Duration::from_millis(patience_ms)).await;
        let asked =
            json!({"messages": [{"role": "user", "content": "is it on?"}], "max_tokens": 8});
        let id = format!("first{patience_ms}");
        ask(&mut client, &id, &asked.to_string()).await;
        let end = client.answers[&id].end().unwrap();
        let usage = end.outcome.as_ref().unwrap().usage.unwrap();
        if usage.prompt_tokens_details.cached_tokens >= prompt.len() as u64 {
            return;
        }
        daemon.power_cut();
    }
    panic!("it was never read before");
}
