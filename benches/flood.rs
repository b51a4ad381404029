//! What others notice of a client that floods a node, and what it costs the node.
//!
//!     cargo bench --bench flood --profile release [-- SECONDS [RATE]]
//!
//! One user publishes RATE (1,000) prompts a second for SECONDS (60); three quiet users ask one thing after
//! the other. Once on Mosquitto, which passes everything on, so that the node has to refuse; once on the
//! embedded broker, which refuses most of it. Every limit is the product's default. The engine is the
//! scripted one, so that a job takes a known time: 50 steps of 20 ms, in four sequences.
//!
//! Printed: the quiet users' wait from publishing to the first text, without and beside the flood; the goal,
//! one mean job time divided by the sequences, and a second; memory of the daemon and of the broker.
#![expect(clippy::print_stdout, reason = "a command-line tool")]
#![allow(clippy::unwrap_used, reason = "a bench fails by panicking")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use hdrhistogram::Histogram;
use orinoco::link::{self, Credentials, Inbound, Inbox, Link, LinkConfig, Publish};
use orinoco::users;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site, embedded_broker_of, peak_memory_kib};
use support::requester::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

const N_SEQ_MAX: u32 = 4;
const QUIET: [&str; 3] = ["q1", "q2", "q3"];
const PROMPT: &str = "!count !tokens 50 !step 20";
/// Without a flood, for comparison.
const CALM: Duration = Duration::from_secs(15);

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let mut number = |default: u64| {
        args.next()
            .map_or(default, |arg| arg.parse().expect("a number"))
    };
    let (seconds, rate) = (number(60), number(1000));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        println!("{rate} prompts/s for {seconds} s; {N_SEQ_MAX} sequences; 3 quiet users");
        on_mosquitto(seconds, rate).await;
        on_embedded(seconds, rate).await;
    });
}

/// The product's limits, which tests lift.
fn as_shipped(site: Site) -> Site {
    site.set(format!("engine.n_seq_max={N_SEQ_MAX}"))
        .set("defaults.requests_per_minute_max=600")
        .set("defaults.queue_jobs_max=100")
}

/// As the page for installers has it: with the files that `orinoco acl` writes.
async fn on_mosquitto(seconds: u64, rate: u64) {
    let (conf, acl) = (acl("mosquitto-conf"), acl("mosquitto"));
    let accounts: Vec<&str> = QUIET.into_iter().chain(["flooder", "daemon"]).collect();
    let broker = Mosquitto::start_as_written(&conf, &acl, &accounts).await;
    let site = as_shipped(Site::with_broker_on(broker.port(), Engine::Scripted));
    let password = site.dir.path().join("mqtt.password");
    std::fs::write(&password, "daemon").unwrap();
    std::fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
    let site = site
        .set("mqtt.username=daemon")
        .set(format!("mqtt.password_file={}", password.display()));
    let daemon = site.start();
    println!("\nMosquitto");
    measure(&daemon, broker.port(), broker.pid(), seconds, rate).await;
}

fn acl(format: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orinoco"));
    let output = command.args(["acl", "--format", format]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

async fn on_embedded(seconds: u64, rate: u64) {
    let site = as_shipped(Site::with_own_broker(Engine::Scripted));
    let state = site.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    for user in QUIET.iter().chain(&["flooder"]) {
        users::add(&state.join("users.toml"), user, user, None).unwrap();
    }
    let daemon = site.start();
    let broker = embedded_broker_of(&daemon);
    println!("\nembedded broker");
    measure(&daemon, daemon.port, broker, seconds, rate).await;
}

async fn measure(daemon: &Daemon, port: u16, broker: i32, seconds: u64, rate: u64) {
    let mut client = Client::connect(port, "n1", QUIET[0], Some(QUIET[0])).await;
    client
        .until_mode(orinoco::wire::report::Mode::Serving)
        .await;
    drop(client);
    let daemon = daemon.pid();
    let memory = move || [daemon, broker].map(|pid| peak_memory_kib(pid) as f64 / 1024.0);
    let before = memory();
    let (calm, job) = quiet_users(port, CALM).await;
    let flood = Flood::start(port, rate);
    let in_the_middle = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(seconds) / 2).await;
        memory()
    });
    let (beside, _) = quiet_users(port, Duration::from_secs(seconds)).await;
    let flooded = flood.end().await;

    let show = |name: &str, waits: &Histogram<u64>| {
        let at = |quantile| waits.value_at_quantile(quantile);
        let (n, p50, p95, max) = (waits.len(), at(0.5), at(0.95), waits.max());
        println!(
            "  wait {name:<9} p50 {p50:>6} ms  p95 {p95:>6} ms  max {max:>6} ms  of {n} prompts"
        );
    };
    show("calm", &calm);
    show("flooded", &beside);
    let goal = job.as_millis() as u64 / u64::from(N_SEQ_MAX) + 1000;
    let verdict = match beside.value_at_quantile(0.95) <= goal {
        true => "met",
        false => "MISSED",
    };
    println!(
        "  goal p95 {goal} ms (job {} ms): {verdict}",
        job.as_millis()
    );
    println!("  flooder: {flooded:?}");
    let (middle, after) = (in_the_middle.await.unwrap(), memory());
    for (n, name) in ["daemon", "broker"].into_iter().enumerate() {
        println!(
            "  peak memory of the {name}: {:.1} MiB before, {:.1} in the middle, {:.1} at the end",
            before[n], middle[n], after[n]
        );
    }
}

/// Waits in milliseconds, and the mean time of a job that does not wait.
async fn quiet_users(port: u16, time: Duration) -> (Histogram<u64>, Duration) {
    let end = Instant::now() + time;
    let users: Vec<JoinHandle<_>> = QUIET
        .iter()
        .map(|user| tokio::spawn(quiet_user(connect(port, user), user, end)))
        .collect();
    let mut waits = Histogram::new(3).unwrap();
    let (mut jobs, mut n) = (Duration::ZERO, 0);
    for user in users {
        for (wait, job) in user.await.unwrap() {
            waits.record(wait.as_millis() as u64).unwrap();
            jobs += job;
            n += 1;
        }
    }
    (waits, jobs / n)
}

fn connect(port: u16, user: &str) -> (Link, Inbox) {
    let mut config = LinkConfig::new("127.0.0.1", port, format!("bench-{user}"));
    config.subscriptions = vec![format!("orinoco/v1/resp/{user}/#")];
    config.outbox_capacity = 8192;
    config.credentials = Some(Credentials {
        user: user.into(),
        password: user.into(),
    });
    link::spawn(config)
}

/// One prompt after the other, with a pause between; the wait for the first text and the time of each job.
async fn quiet_user(
    (link, mut inbox): (Link, Inbox),
    user: &str,
    end: Instant,
) -> Vec<(Duration, Duration)> {
    let mut measured = Vec::new();
    // Ids are new in each run: an old one would be answered from the store.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let run = now.unwrap().as_millis();
    for n in 0.. {
        if Instant::now() >= end {
            break;
        }
        let id = format!("{run}-{n}");
        let asked = Instant::now();
        link.publish(prompt(user, &id)).await.unwrap();
        let mut first = None;
        loop {
            let Inbound::Message(message) = inbox.recv().await.unwrap() else {
                continue;
            };
            link.try_ack(message.ack).unwrap();
            if !message.topic.ends_with(&id) {
                continue;
            }
            let document: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
            assert!(
                document["error"].is_null(),
                "a quiet user is served: {document}"
            );
            let text = document["choices"][0]["delta"]["content"].as_str();
            if text.is_some_and(|text| !text.is_empty()) {
                first.get_or_insert_with(|| asked.elapsed());
            }
            if document["final"] == true {
                break;
            }
        }
        let wait = first.unwrap();
        measured.push((wait, asked.elapsed() - wait));
        tokio::time::sleep(Duration::from_millis(200 + n % 5 * 70)).await;
    }
    measured
}

fn prompt(user: &str, id: &str) -> Publish {
    Publish {
        topic: format!("orinoco/v1/n1/req/{user}/chat/{id}"),
        payload: PROMPT.into(),
        at_least_once: true,
        ..Publish::default()
    }
}

/// One who asks at a rate, whatever it is told.
struct Flood {
    task: JoinHandle<Flooded>,
    stop: watch::Sender<bool>,
}

/// What it saw.
#[derive(Debug, Default)]
struct Flooded {
    sent: u64,
    not_sent: u64,
    refused_by_broker: u64,
    accepted: u64,
    told_429: u64,
    finals: u64,
}

impl Flood {
    fn start(port: u16, rate: u64) -> Self {
        let (link, mut inbox) = connect(port, "flooder");
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut seen = Flooded::default();
            let started = Instant::now();
            let mut tick = tokio::time::interval(Duration::from_millis(5));
            let mut n = 0;
            loop {
                tokio::select! {
                    _ = stopped.changed() => return seen,
                    _ = tick.tick() => {
                        let due = started.elapsed().as_millis() as u64 * rate / 1000;
                        while n < due {
                            n += 1;
                            match link.try_publish(prompt("flooder", &format!("f{n}"))) {
                                Ok(()) => seen.sent += 1,
                                Err(_) => seen.not_sent += 1,
                            }
                        }
                    }
                    event = inbox.recv() => match event.unwrap() {
                        Inbound::Undelivered { .. } => seen.refused_by_broker += 1,
                        Inbound::Message(message) => {
                            link.try_ack(message.ack).unwrap();
                            seen.hear(&message.payload);
                        }
                        _ => {}
                    },
                }
            }
        });
        Self { task, stop }
    }

    async fn end(self) -> Flooded {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

impl Flooded {
    fn hear(&mut self, payload: &[u8]) {
        let document: serde_json::Value = serde_json::from_slice(payload).unwrap();
        let is_final = document["final"] == true;
        self.told_429 += u64::from(!document["error"].is_null());
        self.finals += u64::from(is_final && document["error"].is_null());
        self.accepted += u64::from(!is_final && document["seq"] == 0);
    }
}
