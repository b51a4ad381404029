//! Two promises of the queue, measured on the real daemon: what one who floods costs others, and how soon an
//! alarm is answered on a node that is full of batch work.
//!
//!     cargo bench --bench scheduling --profile release [-- scripted|MODEL]
//!
//! **Fairness.** One of four users asks 100 prompts at once; the other three ask one after the other, ten each.
//! Printed is their wait from publishing to the first text; the goal is one mean job time divided by the
//! sequences, and a second.
//!
//! **Alarm.** Every sequence makes an answer of the class `batch`, and more of them wait. Then an alarm of 24
//! words comes, twenty times. Printed is the time to its first text; the goal is one decode step (of the node
//! as full as it is: the 95th percentile between two pieces of a running stream), its own prefill (of a like
//! prompt on the idle node, from publishing to the first text, so that the way through MQTT and disk is in it)
//! and 10 ms. The streams that made room must end with the text that they have without an alarm.
//!
//! `scripted` (default) is the engine whose steps take a known time, 20 ms; MODEL is a name in the models
//! folder, such as SmolLM2-135M-Instruct.Q4_1. Nothing else may run. `ORINOCO_BACKEND=auto` takes the GPU, where the
//! worker was built for it.
#![expect(clippy::print_stdout, reason = "a command-line tool")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use orinoco::wire::report::Mode;
use serde_json::json;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site, bench_backend};
use support::requester::Client;
use tokio::time::Instant;

const N_SEQ_MAX: usize = 4;
const N_FLOOD: usize = 100;
const N_QUIET: usize = 10;
const N_ALARMS: usize = 20;
const QUIET: [&str; 3] = ["q1", "q2", "q3"];

/// What is asked, by engine.
struct Work {
    engine: Engine,
    /// Tokens of a short answer.
    n_short: u32,
    /// Tokens of a batch answer.
    n_long: u32,
}

impl Work {
    fn prompt(&self, n: usize) -> String {
        match self.engine {
            Engine::Scripted => format!("!count !step 20 {n}"),
            _ => format!(
                "Report number {n}: the pump in hall two has stopped, the valve is closed and the pressure \
                 rises. Say in one sentence what to do first."
            ),
        }
    }
}

fn main() {
    let engine = std::env::args().skip(1).find(|arg| arg != "--bench");
    let work = match engine.as_deref() {
        None | Some("scripted") => Work {
            engine: Engine::Scripted,
            n_short: 50,
            n_long: 600,
        },
        Some(name) => Work {
            engine: match name.starts_with("SmolLM2") {
                true => Engine::Smol,
                false => Engine::Gemma,
            },
            n_short: 50,
            // A GPU would be through before twenty alarms.
            n_long: match bench_backend().as_str() {
                "cpu" => 400,
                _ => 1500,
            },
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        println!(
            "{N_SEQ_MAX} sequences, {}",
            engine.as_deref().unwrap_or("scripted")
        );
        fairness(&work).await;
        alarms(&work).await;
    });
}

async fn start(work: &Work) -> (Mosquitto, Site, Daemon) {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), work.engine)
        .set(format!("engine.n_seq_max={N_SEQ_MAX}"))
        .set("engine.n_threads=0")
        .set(format!("engine.backend={}", bench_backend()))
        // A like prompt must be read, not found.
        .set("engine.prefix_cache_bytes=0")
        .set("users.guard.priorities=alarm,normal,batch");
    let daemon = site.start();
    (broker, site, daemon)
}

async fn connect(broker: &Mosquitto, user: &str) -> Client {
    let mut client = Client::connect(broker.port(), "n1", user, None).await;
    client.until_mode(Mode::Serving).await;
    client
}

fn body(work: &Work, n: usize, n_tokens: u32, class: &str) -> String {
    // The first token goes out at once in any case; the rest together, or the clients of this program would be what
    // is measured. The steps are those of one stream alone.
    let coalesce_ms = if class == "batch" && n == 0 { 0 } else { 400 };
    json!({
        "messages": [{"role": "user", "content": work.prompt(n)}],
        "max_tokens": n_tokens, "temperature": 0, "ignore_eos": true, "coalesce_ms": coalesce_ms,
        "priority": class,
    })
    .to_string()
}

/// Publishes; the time to the first text.
async fn first_text(client: &mut Client, id: &str, body: &str) -> Duration {
    let asked = Instant::now();
    client.ask("chat", id, body).await;
    let id = id.to_owned();
    client
        .until("the first text", move |_, client| {
            let answer = client.answers.get(&id);
            answer.is_some_and(|answer| !answer.text().is_empty() || answer.end().is_some())
        })
        .await;
    asked.elapsed()
}

async fn fairness(work: &Work) {
    let (broker, _site, _daemon) = start(work).await;
    let mut flooder = connect(&broker, "flooder").await;
    let mut calm = Histogram::<u64>::new(3).unwrap();
    for n in 0..4 {
        let id = format!("calm{n}");
        let asked = Instant::now();
        first_text(&mut flooder, &id, &body(work, n, work.n_short, "normal")).await;
        flooder.until_ended(&[id]).await;
        calm.record(asked.elapsed().as_micros() as u64).unwrap();
    }
    for n in 0..N_FLOOD {
        let body = body(work, 100 + n, work.n_short, "normal");
        flooder.ask("chat", &format!("flood{n}"), &body).await;
    }
    let accepted = Vec::from_iter((0..N_FLOOD).map(|n| format!("flood{n}")));
    flooder.until_accepted(&accepted).await;
    let mut waits = Histogram::<u64>::new(3).unwrap();
    let began = Instant::now();
    let quiet = QUIET.map(|user| quiet_user(work, &broker, user));
    let [a, b, c] = quiet;
    // Who floods takes its answers meanwhile: a broker keeps so many for a client and no more.
    let began_flood = Instant::now();
    let flood = async {
        flooder.until_ended(&accepted).await;
        began_flood.elapsed()
    };
    let quiet = async {
        let (a, b, c) = tokio::join!(a, b, c);
        (a, b, c, began.elapsed())
    };
    let ((a, b, c, beside), flood) = tokio::join!(quiet, flood);
    for wait in a.into_iter().chain(b).chain(c) {
        waits.record(wait.as_micros() as u64).unwrap();
    }
    let ms = |histogram: &Histogram<u64>, q| histogram.value_at_quantile(q) as f64 / 1000.0;
    let job_ms = calm.mean() / 1000.0;
    let (found, goal) = (ms(&waits, 0.95), job_ms / N_SEQ_MAX as f64 + 1000.0);
    println!(
        "fairness: {N_FLOOD} prompts of one user in {:.1} s, {} of three others in {:.1} s beside them",
        flood.as_secs_f64(),
        waits.len(),
        beside.as_secs_f64()
    );
    println!(
        "  others' wait p50 {:.0} ms, p95 {found:.0} ms, max {:.0} ms; goal p95 {goal:.0} ms (job {job_ms:.0} ms): {}",
        ms(&waits, 0.5),
        ms(&waits, 1.0),
        verdict(found <= goal)
    );
}

async fn quiet_user(work: &Work, broker: &Mosquitto, user: &str) -> Vec<Duration> {
    let mut client = connect(broker, user).await;
    let mut waits = Vec::new();
    for n in 0..N_QUIET {
        let id = format!("{user}-{n}");
        let body = body(work, 1000 + n, work.n_short, "normal");
        waits.push(first_text(&mut client, &id, &body).await);
        client.until_ended(&[id]).await;
    }
    waits
}

async fn alarms(work: &Work) {
    let (broker, _site, _daemon) = start(work).await;
    let mut client = connect(&broker, "guard").await;
    // The texts that nobody interrupts, and the node's own times.
    let mut alone = Histogram::<u64>::new(3).unwrap();
    for n in 0..N_ALARMS {
        let id = format!("alone{n}");
        let took = first_text(&mut client, &id, &body(work, 500 + n, 1, "normal")).await;
        client.until_ended(&[id]).await;
        alone.record(took.as_micros() as u64).unwrap();
    }
    let jobs = Vec::from_iter((0..2 * N_SEQ_MAX).map(|n| format!("batch{n}")));
    for (n, id) in jobs.iter().enumerate() {
        client
            .ask("chat", id, &body(work, n, work.n_long, "batch"))
            .await;
    }
    let running = jobs[..N_SEQ_MAX].to_vec();
    let texts = |client: &Client, ids: &[String]| {
        let bytes = ids
            .iter()
            .map(|id| client.answers.get(id).map_or(0, |a| a.text().len()));
        Vec::from_iter(bytes)
    };
    client
        .until("all sequences", |_, client| {
            texts(client, &running).iter().all(|n| *n > 40)
        })
        .await;
    // Between two pieces of one stream, for two seconds.
    let mut steps = Histogram::<u64>::new(3).unwrap();
    let (mut last, end) = (None, Instant::now() + Duration::from_secs(2));
    let watched = &running[..1];
    let mut had = texts(&client, watched);
    while Instant::now() < end {
        let before = had.clone();
        client
            .until("the next piece", |_, client| {
                texts(client, watched) != before
            })
            .await;
        had = texts(&client, watched);
        if let Some(last) = last.replace(Instant::now()) {
            steps
                .record((Instant::now() - last).as_micros() as u64)
                .unwrap();
        }
    }
    let mut found = Histogram::<u64>::new(3).unwrap();
    let mut n_full = 0;
    for n in 0..N_ALARMS {
        let id = format!("alarm{n}");
        let open = jobs
            .iter()
            .filter(|id| client.answers.get(*id).is_none_or(|a| a.end().is_none()));
        n_full += usize::from(open.count() >= N_SEQ_MAX);
        let took = first_text(&mut client, &id, &body(work, 700 + n, 4, "alarm")).await;
        found.record(took.as_micros() as u64).unwrap();
        client.until_ended(std::slice::from_ref(&id)).await;
        client.text(&id); // A refusal is quick, too.
        client.listen(Duration::from_millis(137)).await;
    }
    client.until_ended(&jobs).await;
    let resumed: BTreeMap<&str, u32> = jobs
        .iter()
        .filter_map(|id| {
            let end = client.answers[id].end()?.outcome.as_ref().ok()?;
            Some((id.as_str(), end.details.resumed?))
        })
        .collect();
    let n_parked: u32 = resumed.values().sum();
    let ms = |histogram: &Histogram<u64>, q| histogram.value_at_quantile(q) as f64 / 1000.0;
    let (step, own) = (ms(&steps, 0.95), ms(&alone, 0.5));
    let (p50, p95, goal) = (ms(&found, 0.5), ms(&found, 0.95), step + own + 10.0);
    println!(
        "alarm: {N_ALARMS} on {N_SEQ_MAX} batch streams, {n_full} of them on a full node; {n_parked} streams made room"
    );
    println!(
        "  time to first text p50 {p50:.1} ms, p95 {p95:.1} ms; goal {goal:.1} ms (step {step:.1} + alone {own:.1} + 10): {}",
        verdict(p95 <= goal)
    );
    // Each takes as long as it did: a few of those that made room.
    let made_room = |id: &&String| resumed.get(id.as_str()).is_some_and(|n| *n > 0);
    let parked = Vec::from_iter(jobs.iter().filter(made_room).take(3));
    let mut n_same = 0;
    for id in &parked {
        let n = jobs.iter().position(|job| job == *id).unwrap();
        let again = format!("again{n}");
        client
            .ask("chat", &again, &body(work, n, work.n_long, "batch"))
            .await;
        client.until_ended(std::slice::from_ref(&again)).await;
        n_same += usize::from(client.text(id) == client.text(&again));
    }
    println!(
        "  {n_same} of {} streams that made room have the text that they have alone",
        parked.len()
    );
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}
