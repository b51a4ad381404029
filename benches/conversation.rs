//! What a turn of a conversation costs: warm, cold, and after each kind of end.
//!
//!     cargo bench --bench conversation --profile release [-- SmolLM2|gemma [ROUNDS]]
//!
//! Ten turns to about 2,000 tokens, in a conversation that the node keeps, through MQTT. Printed is the time from
//! publishing to the first text, the median of the rounds (default 3):
//!
//! - *warm*: of each turn;
//! - *cold*: of the same messages with another first word, so that nothing of them is found;
//! - then of one more turn after the worker was killed (kill -9) with its states saved in a quiet time, after an
//!   orderly restart of the daemon, and after one for which the saved states were taken away;
//!
//! and what the file takes, and what saving and reading it back took, as the worker logs it. `ORINOCO_BACKEND=auto`
//! takes the GPU, where the worker was built for it.
#![expect(clippy::print_stdout, reason = "a command-line tool")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use orinoco::wire::report::Mode;
use serde_json::{Value, json};
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site, bench_backend, poll};
use support::requester::Client;
use tokio::time::Instant;

const TURNS: usize = 10;
const ANSWER_TOKENS: usize = 40;
const WORDS: [&str; 8] = [
    "pump", "valve", "pressure", "hall", "motor", "sensor", "alarm", "tank",
];

/// Some 150 tokens that differ from turn to turn.
fn question(turn: usize) -> String {
    let words = (0..130).map(|n| WORDS[(n * 7 + turn * 3 + n * n / 5) % WORDS.len()]);
    let words = Vec::from_iter(words).join(" ");
    format!("Report {turn}: {words}. What is to be done first?")
}

/// By name: one time for each round, milliseconds.
type Times = BTreeMap<String, Vec<f64>>;

struct Play {
    client: Client,
    n_asked: usize,
    messages: Vec<Value>,
}

impl Play {
    async fn on(broker: &Mosquitto, messages: Vec<Value>) -> Self {
        let mut client = Client::connect(broker.port(), "n1", "ann", None).await;
        client.until_mode(Mode::Serving).await;
        Self {
            client,
            n_asked: 0,
            messages,
        }
    }

    /// Milliseconds to the first text, prompt tokens, and those of them that were found.
    async fn ask(&mut self, body: &Value, round: usize) -> (f64, u64, u64) {
        self.n_asked += 1;
        let id = format!("r{round}-{}-{}", self.n_asked, self.messages.len());
        let asked = Instant::now();
        self.client.ask("chat", &id, &body.to_string()).await;
        self.client.until_text(&id).await;
        let ms = asked.elapsed().as_secs_f64() * 1e3;
        self.client.until_ended(std::slice::from_ref(&id)).await;
        let end = self.client.answers[&id].end().unwrap();
        let usage = end.outcome.as_ref().unwrap().usage.unwrap();
        let answer = self.client.text(&id).to_owned();
        if body.get("session").is_some() {
            self.messages
                .push(json!({"role": "assistant", "content": answer}));
        }
        let n_cached = usage.prompt_tokens_details.cached_tokens;
        (ms, usage.prompt_tokens, n_cached)
    }

    async fn turn(&mut self, turn: usize, round: usize) -> (f64, u64, u64) {
        let message = json!({"role": "user", "content": question(turn)});
        self.messages.push(message.clone());
        let body = json!({
            "session": format!("s{round}"), "session_history": true, "messages": [message],
            "max_tokens": ANSWER_TOKENS, "temperature": 0, "ignore_eos": true,
        });
        self.ask(&body, round).await
    }

    /// The same messages as the next turn will have, with another beginning.
    async fn cold(&mut self, turn: usize, round: usize) -> f64 {
        let mut messages = self.messages.clone();
        messages.push(json!({"role": "user", "content": question(turn)}));
        let text = messages[0]["content"].as_str().unwrap();
        messages[0]["content"] = format!("{round}.{turn} {text}").into();
        let body = json!({"messages": messages, "max_tokens": 1, "temperature": 0});
        self.ask(&body, round).await.0
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let name = args.next().unwrap_or_else(|| "SmolLM2".into());
    let engine = match name.starts_with("SmolLM2") {
        true => Engine::Smol,
        false => Engine::Gemma,
    };
    let rounds = args.next().map_or(3, |n| n.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut times = Times::new();
    let mut facts = Times::new();
    for round in 0..rounds {
        runtime.block_on(play(engine, round, &mut times, &mut facts));
    }
    let median = |of: &Vec<f64>| {
        let mut of = of.clone();
        of.sort_by(f64::total_cmp);
        of[of.len() / 2]
    };
    println!("{name}, {rounds} rounds, medians");
    println!("turn   tokens   found   warm ms   cold ms   warm ÷ cold");
    for turn in 1..=TURNS {
        let of = |what: &str| median(&times[&format!("{what} {turn:02}")]);
        let (warm, cold) = (of("warm"), of("cold"));
        println!(
            "{turn:4} {:8.0} {:7.0} {warm:9.0} {cold:9.0} {:13.3}",
            of("tokens"),
            of("found"),
            warm / cold
        );
    }
    let cold = median(&times[&format!("cold {TURNS:02}")]);
    for (what, ms) in times.iter().filter(|(what, _)| what.starts_with("after")) {
        let ms = median(ms);
        println!("{what}: {ms:.0} ms, ÷ cold {:.3}", ms / cold);
    }
    for (what, value) in &facts {
        println!("{what}: {:.1}", median(value));
    }
}

fn start(site: &Site) -> Daemon {
    site.start_with(|command| {
        command.env("ORINOCO_LOG", "orinoco_engine::archive=debug,info");
    })
}

async fn play(engine: Engine, round: usize, times: &mut Times, facts: &mut Times) {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), engine)
        .set("engine.n_threads=0")
        .set(format!("engine.backend={}", bench_backend()))
        .set("engine.saved_state_quiet_seconds=1")
        .set("model.n_ctx=8192");
    let daemon = start(&site);
    let mut play = Play::on(&broker, Vec::new()).await;
    let note =
        |times: &mut Times, what: String, value: f64| times.entry(what).or_default().push(value);
    for turn in 1..=TURNS {
        let cold = match turn {
            1 => None,
            _ => Some(play.cold(turn, round).await),
        };
        let (ms, n_prompt, n_found) = play.turn(turn, round).await;
        // The first turn is cold.
        note(times, format!("cold {turn:02}"), cold.unwrap_or(ms));
        note(times, format!("warm {turn:02}"), ms);
        note(times, format!("tokens {turn:02}"), n_prompt as f64);
        note(times, format!("found {turn:02}"), n_found as f64);
    }
    let kv = site.dir.path().join("state/kv");
    let saves = |site: &Site| site.log().matches("a state for disk").count();
    let n_saves = saves(&site);
    poll(|| (saves(&site) > n_saves).then_some(()));
    play.client.listen(Duration::from_secs(2)).await;
    let files = std::fs::read_dir(&kv).unwrap().flatten();
    let bytes: u64 = files
        .map(|file| file.metadata().unwrap().blocks() * 512)
        .sum();
    note(facts, "file, MiB".into(), bytes as f64 / f64::from(1 << 20));
    // The worker alone.
    assert!(daemon.kill_worker());
    play.client
        .until("another engine", |_, client| {
            client.mode() != Some(Mode::Serving)
        })
        .await;
    play.client.until_mode(Mode::Serving).await;
    let (ms, ..) = play.turn(TURNS + 1, round).await;
    note(
        times,
        "after kill -9 of the worker, states saved".into(),
        ms,
    );
    // All of it, in order.
    let messages = play.messages.clone();
    drop(play);
    let began = Instant::now();
    assert_eq!(daemon.stop(), 0);
    note(
        facts,
        "orderly stop, ms".into(),
        began.elapsed().as_secs_f64() * 1e3,
    );
    let daemon = start(&site);
    let mut play = Play::on(&broker, messages).await;
    let (ms, ..) = play.turn(TURNS + 2, round).await;
    note(times, "after an orderly restart, states saved".into(), ms);
    let messages = play.messages.clone();
    drop(play);
    assert_eq!(daemon.stop(), 0);
    std::fs::remove_dir_all(&kv).unwrap();
    let _daemon = start(&site);
    let mut play = Play::on(&broker, messages).await;
    let (ms, ..) = play.turn(TURNS + 3, round).await;
    note(times, "after an orderly restart, nothing saved".into(), ms);
    let log = site.log();
    for (mark, what) in [
        ("a state for disk", "largest save, ms"),
        ("a state from disk", "largest read, ms"),
    ] {
        let logged = log.lines().filter(|line| line.contains(mark));
        let ms = logged.filter_map(|line| {
            let rest = line.split(" ms=").nth(1)?;
            rest.split_whitespace().next()?.parse::<f64>().ok()
        });
        note(facts, what.into(), ms.fold(0.0, f64::max));
    }
}
