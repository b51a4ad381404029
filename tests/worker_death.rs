//! A worker may die at any time: streams go on in the next one, and a poison job takes nobody with it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use orinoco::wire::error::Code;
use orinoco::wire::report::Mode;
use support::daemon::{Engine, Site, poll};
use support::requester::Client;

const LOCAL: &str = "local";

fn ids(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("s{i}")).collect()
}

/// "0 1 2 … " up to what fits in this many characters: what `!count` answers.
fn counted(bytes: usize) -> String {
    let mut text = String::new();
    for n in 0.. {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&format!("{n} "));
    }
    text.truncate(bytes);
    text
}

#[tokio::test]
async fn twenty_streams_survive_five_kills_of_the_worker() {
    let site = Site::with_own_broker(Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let ids = ids(20);
    for id in &ids {
        client.ask("chat", id, "!count !tokens 300 !step 4").await;
    }
    for _ in 1..=5 {
        // Each kill falls into running streams: some text has come since the last one.
        let before: usize = client
            .answers
            .values()
            .map(|answer| answer.text().len())
            .sum();
        client
            .until("more text", |_, client| {
                client
                    .answers
                    .values()
                    .map(|answer| answer.text().len())
                    .sum::<usize>()
                    > before + 100
            })
            .await;
        poll(|| daemon.kill_worker().then_some(()));
    }
    client.until_ended(&ids).await;
    assert_eq!(client.faults, Vec::<String>::new());
    for id in &ids {
        assert_eq!(
            client.text(id),
            counted(300),
            "{id}: nothing missing, nothing twice"
        );
        assert_eq!(client.finals[id].len(), 1);
        assert_eq!(client.answers[id].attempt(), 1);
    }
    let resumed = client.answers.values().filter(|answer| {
        answer
            .end()
            .unwrap()
            .outcome
            .as_ref()
            .unwrap()
            .details
            .resumed
            .unwrap_or(0)
            > 0
    });
    assert!(resumed.count() > 0);
}

#[tokio::test]
async fn split_characters_are_whole_again_after_a_kill() {
    let site = Site::with_own_broker(Engine::Scripted);
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "u1", "!utf8 !tokens 240 !step 5").await;
    client.ask("chat", "u2", "!utf8 !tokens 240").await;
    client
        .until("some text", |_, client| {
            client
                .answers
                .get("u1")
                .is_some_and(|answer| answer.text().len() > 20)
        })
        .await;
    poll(|| daemon.kill_worker().then_some(()));
    client.until_ended(&["u1".into(), "u2".into()]).await;
    assert_eq!(client.faults, Vec::<String>::new());
    assert_eq!(client.text("u1"), client.text("u2"));
    assert!(!client.text("u1").contains('\u{fffd}'));
}

#[tokio::test]
async fn one_poison_job_among_eight_ends_alone() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.restart_backoff_ms_min=10");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let ids = ids(8);
    for (n, id) in ids.iter().enumerate() {
        let hook = if n == 3 { "!abort at 20" } else { "" };
        client
            .ask("chat", id, &format!("!count !tokens 200 !step 2 {hook}"))
            .await;
    }
    client.until_ended(&ids).await;
    for (n, id) in ids.iter().enumerate() {
        let outcome = &client.answers[id].end().unwrap().outcome;
        match outcome {
            Err(error) => assert_eq!((n, error.code), (3, Code::Poison)),
            Ok(_) => assert_eq!(client.text(id), counted(200)),
        }
        assert_eq!(client.finals[id].len(), 1);
    }
    assert!(client.answers[&ids[3]].end().unwrap().outcome.is_err());
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_decode_that_never_returns_is_noticed_and_the_others_go_on() {
    let site = Site::with_own_broker(Engine::Scripted)
        .set("engine.step_stall_seconds=3")
        .set("engine.restart_backoff_ms_min=10");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    client
        .ask("chat", "good", "!count !tokens 100 !step 2")
        .await;
    client
        .ask("chat", "bad", "!count !tokens 100 !hang at 10")
        .await;
    client.until_ended(&["good".into(), "bad".into()]).await;
    assert_eq!(client.text("good"), counted(100));
    let error = client.answers["bad"]
        .end()
        .unwrap()
        .outcome
        .as_ref()
        .unwrap_err();
    assert_eq!(error.code, Code::Poison);
}

#[tokio::test]
async fn a_stopped_idle_worker_is_replaced() {
    let site = Site::with_own_broker(Engine::Scripted).set("engine.step_stall_seconds=1");
    let daemon = site.start();
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let pid = daemon.child_named("orinoco-engine").expect("a worker");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGSTOP,
    )
    .unwrap();
    client
        .until("a new worker", |_, client| {
            client.mode() != Some(Mode::Serving)
        })
        .await;
    client.until_mode(Mode::Serving).await;
    client.ask("chat", "a", "!count !tokens 30").await;
    client.until_ended(&["a".into()]).await;
    assert_eq!(client.text("a"), counted(30));
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_ends_daemon_broker_and_worker_in_order() {
    use std::os::unix::process::CommandExt as _;
    let site = Site::with_own_broker(Engine::Scripted);
    // A shell puts what it starts into a group of its own, and Ctrl-C goes to the whole group.
    let daemon = site.start_with(|command| {
        command.process_group(0);
    });
    let mut client = Client::connect(daemon.port, site.node, LOCAL, None).await;
    client.until_mode(Mode::Serving).await;
    let group = nix::unistd::Pid::from_raw(-daemon.pid());
    nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(daemon.wait(), 0);
    let log = site.log();
    assert!(
        !log.contains("starting it again") && !log.contains("ERROR"),
        "{log}"
    );
}
