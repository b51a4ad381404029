//! How much one user may ask for, and what others notice of one who asks for more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use orinoco::link::{Credentials, Inbound, LinkConfig, Publish};
use orinoco::wire::error::{ApiError, Code};
use orinoco::wire::report::Mode;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site, embedded_broker_of, peak_memory_kib};
use support::requester::Client;

fn ids<const N: usize>(ids: [&str; N]) -> Vec<String> {
    ids.map(str::to_owned).to_vec()
}

async fn on_mosquitto(settings: &[&str]) -> (Mosquitto, Site, Daemon) {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let site = settings
        .iter()
        .fold(site, |site, setting| site.set(*setting));
    let daemon = site.start();
    (broker, site, daemon)
}

async fn client(port: u16, user: &str) -> Client {
    client_with(port, user, None).await
}

async fn client_with(port: u16, user: &str, password: Option<&str>) -> Client {
    let mut client = Client::connect(port, "n1", user, password).await;
    client.until_mode(Mode::Serving).await;
    client
}

fn refusal(client: &Client, id: &str) -> ApiError {
    let end = client.answers[id].end().unwrap();
    end.outcome.as_ref().unwrap_err().clone()
}

#[tokio::test]
async fn who_sends_too_much_is_told_when_to_ask_again_and_that_is_true() {
    let (broker, _site, _daemon) =
        on_mosquitto(&["users.plc.prompt_bytes_per_minute_max=12000"]).await;
    let mut plc = client(broker.port(), "plc").await;
    let long = format!("!count !tokens 3 {}", "x".repeat(11_900));
    plc.ask("complete", "long", &long).await;
    plc.until_ended(&ids(["long"])).await;
    // Each is a second's worth: the first that is asked sooner than that after the one before is too much.
    let body = format!("!tokens 3 {}", "y".repeat(190));
    let mut n = 0;
    let (next, error) = loop {
        n += 1;
        assert!(n < 30, "nothing is too much");
        let id = format!("next{n}");
        plc.ask("complete", &id, &body).await;
        plc.until_ended(std::slice::from_ref(&id)).await;
        if let Err(error) = &plc.answers[&id].end().unwrap().outcome {
            break (id, error.clone());
        }
    };
    assert_eq!(error.code, Code::RateLimited);
    let wait_ms = error.retry_after_ms.unwrap();
    assert!((1..=1001).contains(&wait_ms), "{wait_ms}");
    // The bucket of another user is another.
    let mut other = client(broker.port(), "other").await;
    other.ask("complete", "o1", "!count !tokens 3").await;
    other.until_ended(&ids(["o1"])).await;
    other.text("o1");

    plc.listen(Duration::from_millis(wait_ms)).await;
    plc.answers.remove(&next);
    plc.ask("complete", &next, &body).await;
    plc.until_ended(std::slice::from_ref(&next)).await;
    plc.text(&next);
}

#[tokio::test]
async fn a_user_has_its_share_of_the_queue_and_of_the_engine_and_no_more() {
    let (broker, _site, _daemon) = on_mosquitto(&[
        "engine.n_seq_max=2",
        "users.plc.queue_jobs_max=3",
        "users.plc.running_jobs_max=1",
    ])
    .await;
    let mut plc = client(broker.port(), "plc").await;
    let mut other = client(broker.port(), "other").await;
    for id in ["p1", "p2", "p3", "p4"] {
        plc.ask("chat", id, "!count !tokens 500 !step 20").await;
    }
    // A refusal waits for no disk: it may come before the first three are told that they wait.
    plc.until_ended(&ids(["p4"])).await;
    plc.until_accepted(&ids(["p1", "p2", "p3"])).await;
    let error = refusal(&plc, "p4");
    assert_eq!(error.code, Code::QueueFull);
    assert!(error.retry_after_ms.is_some());
    assert!(error.message.contains("this user"), "{error}");
    // A second sequence is free all the time, and nobody else's while the first user's jobs wait.
    other.ask("chat", "o1", "!count !tokens 10").await;
    other.until_ended(&ids(["o1"])).await;
    assert_eq!(other.text("o1").len(), 10);
    let until_now = plc.answers["p1"].text().len();
    plc.until("p1 goes on", |_, plc| {
        plc.answers["p1"].text().len() > until_now + 20
    })
    .await;
    assert!(plc.answers["p1"].end().is_none(), "p2 may run now");
    assert!(!plc.has_text("p2"), "it ran beside p1");
    for id in ["p1", "p2", "p3"] {
        plc.cancel(id).await;
    }
    plc.until_ended(&ids(["p1", "p2", "p3"])).await;
}

#[tokio::test]
async fn a_repeat_beyond_the_rate_is_not_answered_by_another_final() {
    let (broker, _site, _daemon) =
        on_mosquitto(&["users.plc.prompt_bytes_per_minute_max=1100"]).await;
    let mut plc = client(broker.port(), "plc").await;
    let body = format!("!count !tokens 300 !step 3 {}", "x".repeat(1000));
    plc.ask("complete", "r", &body).await;
    plc.until_accepted(&ids(["r"])).await;
    plc.ask("complete", "r", &body).await;
    plc.until_ended(&ids(["r"])).await;
    assert_eq!(plc.text("r").len(), 300);
    plc.ask("complete", "r", &body).await;
    plc.ask("complete", "new", &"z".repeat(500)).await;
    plc.until_ended(&ids(["new"])).await;
    assert_eq!(refusal(&plc, "new").code, Code::RateLimited);
    assert_eq!(plc.faults, Vec::<String>::new());
    assert_eq!(plc.finals["r"].len(), 1);
}

/// Users without an account on a broker that lets anybody in.
#[tokio::test]
async fn a_role_in_the_configuration_says_what_a_user_may_ask() {
    let (broker, _site, _daemon) = on_mosquitto(&[
        "users.hall.role=monitor",
        "users.boss.role=operator",
        "roles.operator.max_tokens=7",
    ])
    .await;
    let mut hall = client(broker.port(), "hall").await;
    let mut boss = client(broker.port(), "boss").await;
    hall.ask("chat", "h1", "!count").await;
    boss.ask("chat", "b1", "!count").await;
    hall.until_ended(&ids(["h1"])).await;
    boss.until_ended(&ids(["b1"])).await;
    assert_eq!(refusal(&hall, "h1").code, Code::NotAllowed);
    assert_eq!(boss.text("b1").len(), 7);
}

/// One who asks as fast as it can, in the background, until it is dropped.
struct Flood {
    task: tokio::task::JoinHandle<Flooded>,
    stop: tokio::sync::oneshot::Sender<()>,
}

/// What a flooder saw.
#[derive(Debug, Default)]
struct Flooded {
    n_sent: u64,
    n_refused_by_broker: u64,
    n_refused_by_node: u64,
    open: std::collections::BTreeSet<String>,
    n_open_max: usize,
}

impl Flood {
    /// About a thousand requests a second in the name of `user`. Returns when it is felt: something was refused.
    async fn start(port: u16, user: &'static str, password: Option<&str>) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let (tell, felt) = tokio::sync::oneshot::channel();
        let mut config = LinkConfig::new("127.0.0.1", port, format!("flood-{user}"));
        config.subscriptions = vec![format!("orinoco/v1/resp/{user}/#")];
        config.outbox_capacity = 4096;
        config.credentials = password.map(|password| Credentials {
            user: user.into(),
            password: password.into(),
        });
        let task = tokio::spawn(async move {
            let (link, mut inbox) = orinoco::link::spawn(config);
            let mut seen = Flooded::default();
            let mut tell = Some(tell);
            let mut tick = tokio::time::interval(Duration::from_millis(10));
            loop {
                tokio::select! {
                    _ = &mut stopped => return seen,
                    _ = tick.tick() => for _ in 0..10 {
                        let id = format!("f{}", seen.n_sent);
                        let publish = Publish {
                            topic: format!("orinoco/v1/n1/req/{user}/chat/{id}"),
                            payload: "!count !tokens 20 !step 5".into(),
                            at_least_once: true,
                            token: Some(seen.n_sent),
                            ..Publish::default()
                        };
                        // What the broker is too slow for is not asked.
                        seen.n_sent += u64::from(link.try_publish(publish).is_ok());
                    },
                    event = inbox.recv() => match event.expect("the link is open") {
                        Inbound::Undelivered { .. } => seen.n_refused_by_broker += 1,
                        Inbound::Message(message) => {
                            link.try_ack(message.ack).unwrap();
                            seen.hear(&message.topic, &message.payload);
                        }
                        _ => {}
                    },
                }
                if seen.n_refused_by_broker + seen.n_refused_by_node > 0
                    && let Some(tell) = tell.take()
                {
                    tell.send(()).unwrap();
                }
            }
        });
        let felt = tokio::time::timeout(Duration::from_secs(60), felt).await;
        felt.expect("a flood is refused").unwrap();
        Self { task, stop }
    }

    async fn end(self) -> Flooded {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

impl Flooded {
    fn hear(&mut self, topic: &str, payload: &[u8]) {
        let id = topic.rsplit('/').next().unwrap().to_owned();
        let document: serde_json::Value = serde_json::from_slice(payload).unwrap();
        if document["error"]["code"] == "rate_limited" || document["error"]["code"] == "queue_full"
        {
            assert!(document["error"]["retry_after_ms"].is_u64(), "{document}");
            self.n_refused_by_node += 1;
        } else if document["final"] == true {
            self.open.remove(&id);
        } else {
            self.open.insert(id);
            self.n_open_max = self.n_open_max.max(self.open.len());
        }
    }
}

/// The product's own limits, which the other tests lift.
const LIMITS: [&str; 3] = [
    "engine.n_seq_max=2",
    "defaults.requests_per_minute_max=600",
    "defaults.queue_jobs_max=50",
];

/// What a flood may cost the daemon, or the broker.
const MEMORY_MAX_KIB: u64 = 32 << 10;

/// Quiet users ask one thing after the other beside a flood: each is served after at most one job of each
/// other user. Neither the node nor the broker keeps what it cannot do.
async fn quiet_users_are_served_beside_a_flood(
    daemon: &Daemon,
    (port, broker): (u16, i32),
    password: Option<&str>,
) -> Flooded {
    let mut quiet = [
        client_with(port, "q1", password).await,
        client_with(port, "q2", password).await,
    ];
    let memory_kib = || [daemon.pid(), broker].map(peak_memory_kib);
    let before = memory_kib();
    let flood = Flood::start(port, "flooder", password).await;
    for round in 0..5 {
        for client in &mut quiet {
            let id = format!("r{round}");
            client.ask("chat", &id, "!count !tokens 10 !step 5").await;
            client.until_ended(std::slice::from_ref(&id)).await;
            assert_eq!(client.text(&id).len(), 10);
            let before = client.queued[&id];
            assert!(before <= 2, "{before} before {id}");
            assert_eq!(client.faults, Vec::<String>::new());
        }
    }
    let seen = flood.end().await;
    assert!(seen.n_open_max <= 50, "{seen:?}");
    for (before, after) in before.into_iter().zip(memory_kib()) {
        assert!(after - before < MEMORY_MAX_KIB, "{before} -> {after} KiB");
    }
    seen
}

#[tokio::test]
async fn a_flood_on_mosquitto_is_refused_by_the_node_and_others_are_served() {
    let (broker, _site, daemon) = on_mosquitto(&LIMITS).await;
    let at = (broker.port(), broker.pid());
    let seen = quiet_users_are_served_beside_a_flood(&daemon, at, None).await;
    assert!(seen.n_sent > 500, "no flood: {seen:?}");
    assert!(seen.n_refused_by_node > 0, "{seen:?}");
    // It hears of some refusals, not of each: answering a flood is half of its harm.
    assert!(seen.n_refused_by_node < 300, "{seen:?}");
}

#[tokio::test]
async fn a_flood_on_the_embedded_broker_is_refused_by_the_broker_and_others_are_served() {
    let site = Site::with_own_broker(Engine::Scripted);
    let site = LIMITS.iter().fold(site, |site, setting| site.set(*setting));
    let state = site.dir.path().join("state");
    std::fs::create_dir(&state).unwrap();
    for user in ["flooder", "q1", "q2"] {
        orinoco::users::add(&state.join("users.toml"), user, "secret", None).unwrap();
    }
    let daemon = site.start();
    let at = (daemon.port, embedded_broker_of(&daemon));
    let seen = quiet_users_are_served_beside_a_flood(&daemon, at, Some("secret")).await;
    assert!(seen.n_refused_by_broker > 0, "{seen:?}");
}
