//! A daemon, a requester and a broker on a bad network: every prompt ends, once, with the whole text.
//!
//! Both connections lead through proxies that cut, stall, lose, delay and reorder; the broker is killed and
//! forgets everything; other clients take the sessions. `ORINOCO_FULL=1` asks 1,000 prompts through three rounds of
//! every fault, otherwise 150 through one. `ORINOCO_CHAOS_SEED` repeats the faults of a run, in their order.

#![allow(clippy::print_stderr, reason = "a failed run says its seed")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/random.rs"]
mod random;
mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use orinoco::link::{self, Inbound, Inbox, Link, LinkConfig, Message, Publish, PublishError};
use orinoco::receive::{HearError, Heard, Receiver};
use orinoco::wire::report::Mode;
use proxy::{Proxy, Way};
use random::Random;
use support::broker::Mosquitto;
use support::daemon::{Engine, Site};
use support::requester::Client;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

/// Asked at a time.
const OPEN_MAX: usize = 24;
/// After the last fault everything ends within this time.
const CALM: Duration = Duration::from_secs(40);
/// The daemon's client id for a node named n1.
const DAEMON_ID: &str = "orinoco-n1";
const ASKER_ID: &str = "asker";

struct Size {
    prompts: usize,
    rounds: usize,
    /// Whether the daemon is left to notice each silent fault by itself, which takes it seconds.
    is_patient: bool,
}

fn size() -> Size {
    match std::env::var_os("ORINOCO_FULL") {
        Some(_) => Size {
            prompts: 1000,
            rounds: 3,
            is_patient: true,
        },
        None => Size {
            prompts: 150,
            rounds: 1,
            is_patient: false,
        },
    }
}

#[tokio::test]
async fn every_prompt_ends_once_on_a_bad_network() {
    let seed = match std::env::var("ORINOCO_CHAOS_SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => getrandom::u64().unwrap(),
    };
    eprintln!("ORINOCO_CHAOS_SEED={seed}");
    let size = size();
    // What it forgets when it is killed is everything.
    let mut broker = Mosquitto::start_with("allow_anonymous true\npersistence false\n").await;
    let (of_daemon, of_asker) = (
        Proxy::start(broker.port()).await,
        Proxy::start(broker.port()).await,
    );
    let site = Site::with_broker_on(of_daemon.port(), Engine::Scripted)
        .set("mqtt.keep_alive_seconds=5")
        .set("mqtt.stall_seconds=6")
        .set("mqtt.connect_timeout_seconds=1")
        .set("mqtt.backoff_ms_min=50");
    let daemon = site.start();
    let (calm, is_calm) = watch::channel(false);
    let started = Instant::now();
    let mut asker = Asker::connect(of_asker.port());
    let storm = async {
        let mut weather = Weather {
            random: Random(seed),
            is_patient: size.is_patient,
            broker: &mut broker,
            of_daemon: &of_daemon,
            of_asker: &of_asker,
        };
        for _ in 0..size.rounds {
            weather.round().await;
        }
        calm.send_replace(true);
    };
    let ((), ()) = tokio::join!(storm, asker.ask_all(size.prompts, is_calm));
    eprintln!(
        "{} prompts in {:?}: {} sent, {} connections of the daemon, {} of the requester, {} gaps",
        size.prompts,
        started.elapsed(),
        asker.n_sent,
        of_daemon.n_connections(),
        of_asker.n_connections(),
        asker.n_gaps,
    );

    // What comes late is known.
    asker.listen(Duration::from_secs(1)).await;
    assert_eq!(asker.faults, Vec::<String>::new());
    assert_eq!(asker.asks.len(), size.prompts);
    for (id, ask) in &asker.asks {
        assert_eq!(ask.n_ends, 1, "{id}");
        let end = ask.receiver.end().unwrap();
        assert!(end.outcome.is_ok(), "{id}: {:?}", end.outcome);
        assert_eq!(ask.receiver.text(), ask.expected, "{id}");
    }
    // The network was bad.
    assert!(of_daemon.n_connections() > 5 * size.rounds);
    assert!(of_asker.n_connections() > 5 * size.rounds);
    assert!(asker.n_sent > size.prompts);
    assert!(of_daemon.n_overtaken() + of_asker.n_overtaken() > 0);

    // The daemon is as it was: it serves at once, and leaves as it should.
    let mut client = Client::connect(broker.port(), site.node, "local", None).await;
    client.until_mode(Mode::Serving).await;
    client.until_status("online").await;
    client.ask("chat", "last", "!count !tokens 20").await;
    client.until_ended(&["last".to_owned()]).await;
    assert_eq!(
        client.queued["last"], 0,
        "nothing is left that it waits for"
    );
    // Beside us: the proxy that its last words go through is in this runtime.
    let stopped = tokio::task::spawn_blocking(|| daemon.stop()).await;
    assert_eq!(stopped.unwrap(), 0);
    client.until_status("offline").await;
    let log = site.log();
    assert!(
        !log.contains("panicked") && !log.contains("from the last will only"),
        "{log}"
    );
}

/// How often the daemon of a site was connected so far.
fn n_connections(site: &Site) -> usize {
    let log = site.log();
    log.matches("broker connected session_present").count()
}

/// A copied disk image, most likely. One of the two serves; the other says what is wrong and keeps away.
#[tokio::test]
async fn two_daemons_with_one_name_do_not_fight_and_one_says_so() {
    let broker = Mosquitto::start().await;
    let twin =
        || Site::with_broker_on(broker.port(), Engine::Scripted).set("mqtt.backoff_ms_max=60000");
    let sites = [twin(), twin()];
    let _daemons = sites.each_ref().map(Site::start);
    let complaint = "another daemon uses this node's name: give each its own node.name";
    let complains = async {
        while !sites.iter().any(|site| site.log().contains(complaint)) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(30), complains).await.unwrap();

    // Prompts are answered, and nobody is thrown out any more.
    let mut client = Client::connect(broker.port(), "n1", "local", None).await;
    client.until_status("online").await;
    client.until_mode(Mode::Serving).await;
    let connections = || sites.each_ref().map(n_connections);
    client.ask("chat", "t1", "!count !tokens 20").await;
    client.until_ended(&["t1".to_owned()]).await;
    let before = connections();
    assert!(before.iter().sum::<usize>() >= 2, "{before:?}");
    client.listen(Duration::from_secs(2)).await;
    assert_eq!(connections(), before);
    assert_eq!(client.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_lost_its_session_to_another_says_so_in_its_state() {
    let broker = Mosquitto::start().await;
    let site = Site::with_broker_on(broker.port(), Engine::Scripted);
    let _daemon = site.start();
    let mut client = Client::connect(broker.port(), "n1", "local", None).await;
    client.until_mode(Mode::Serving).await;
    // The first time may be a restart of the broker; and one that comes before it is back is none.
    for n in 1..=3 {
        while n_connections(&site) < n {
            sleep(Duration::from_millis(50)).await;
        }
        take_session(broker.port(), DAEMON_ID).await;
    }
    let told = |_: bool, client: &Client| {
        let state = client.documents.get("state").map(|bytes| &bytes[..]);
        String::from_utf8_lossy(state.unwrap_or_default())
            .contains(r#"another client: a second daemon with node.name = \"n1\"?"#)
    };
    client.until("the sentence in its state", told).await;
    assert_eq!(client.mode(), Some(Mode::Serving));
}

// ---- the requester ---------------------------------------------------------------------------------

/// Follows the contract: asks again with the same id until it is accepted, and when something was lost.
struct Asker {
    link: Link,
    inbox: Inbox,
    asks: BTreeMap<String, Ask>,
    faults: Vec<String>,
    n_sent: usize,
    n_gaps: usize,
}

struct Ask {
    op: &'static str,
    body: Bytes,
    expected: String,
    receiver: Receiver,
    n_ends: usize,
    /// When to ask again; none once it has ended.
    repeat_at: Option<Instant>,
}

/// Without `accepted`.
const REPEAT: Duration = Duration::from_secs(2);
/// When nothing more was heard of an accepted one: the broker may have lost what was on its way.
const SILENCE: Duration = Duration::from_secs(5);

impl Asker {
    fn connect(port: u16) -> Asker {
        let config = LinkConfig {
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            stall: Duration::from_millis(700),
            connect_timeout: Duration::from_millis(700),
            subscriptions: vec!["orinoco/v1/resp/local/#".into()],
            ..LinkConfig::new("127.0.0.1", port, ASKER_ID)
        };
        let (link, inbox) = link::spawn(config);
        Asker {
            link,
            inbox,
            asks: BTreeMap::new(),
            faults: Vec::new(),
            n_sent: 0,
            n_gaps: 0,
        }
    }

    /// Asks `n` prompts while the storm lasts, the rest when it is over, and waits for all ends.
    async fn ask_all(&mut self, n: usize, mut is_calm: watch::Receiver<bool>) {
        let mut limit = None;
        let mut next_ask = Instant::now();
        while self.asks.len() < n || self.n_open() > 0 {
            let now = Instant::now();
            let calm = *is_calm.borrow_and_update();
            if calm {
                let limit = *limit.get_or_insert(now + CALM);
                assert!(now < limit, "still open: {:#?}", self.open());
            }
            let may_ask = self.asks.len() < n && self.n_open() < OPEN_MAX;
            if may_ask && (calm || now >= next_ask) {
                self.ask(self.asks.len());
                next_ask = now + Duration::from_millis(80);
                continue;
            }
            let repeat = self.asks.values().filter_map(|ask| ask.repeat_at).min();
            let soon = now + Duration::from_millis(100);
            let wake = repeat.unwrap_or(soon).min(soon);
            tokio::select! {
                event = self.inbox.recv() => self.take(event.expect("the link lives")),
                () = sleep_until(wake) => self.repeat(),
                _ = is_calm.changed(), if !calm => {}
            }
        }
    }

    async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(event) = timeout_at(end, self.inbox.recv()).await {
            self.take(event.expect("the link lives"));
        }
    }

    fn n_open(&self) -> usize {
        self.asks
            .values()
            .filter(|ask| ask.receiver.end().is_none())
            .count()
    }

    fn open(&self) -> BTreeMap<&str, &Receiver> {
        let open = self
            .asks
            .iter()
            .filter(|(_, ask)| ask.receiver.end().is_none());
        open.map(|(id, ask)| (id.as_str(), &ask.receiver)).collect()
    }

    fn ask(&mut self, number: usize) {
        let n_tokens = 5 + number * 7 % 90;
        let prompt = format!("!count !tokens {n_tokens} !step {}", number % 3);
        let (op, body) = match number % 3 {
            0 => ("chat", prompt),
            1 => (
                "complete",
                format!(
                    r#"{{"prompt":{prompt:?},"stream_options":{{"include_text":true}},"coalesce_ms":0}}"#
                ),
            ),
            _ => (
                "chat",
                format!(
                    r#"{{"messages":[{{"role":"user","content":{prompt:?}}}],"stream":false}}"#
                ),
            ),
        };
        let counted: String = (0..n_tokens).map(|n| format!("{n} ")).collect();
        let ask = Ask {
            op,
            body: body.into(),
            expected: counted[..n_tokens].to_owned(),
            receiver: Receiver::default(),
            n_ends: 0,
            repeat_at: Some(Instant::now()),
        };
        self.asks.insert(format!("p{number}"), ask);
        self.repeat();
    }

    /// Sends what is due.
    fn repeat(&mut self) {
        let now = Instant::now();
        for (id, ask) in &mut self.asks {
            if ask.repeat_at.is_none_or(|at| at > now) {
                continue;
            }
            let publish = Publish {
                topic: format!("orinoco/v1/n1/req/local/{}/{id}", ask.op),
                payload: ask.body.clone(),
                at_least_once: true,
                ..Publish::default()
            };
            match self.link.try_publish(publish) {
                Ok(()) => self.n_sent += 1,
                // Asked often while nothing leaves; the next time then.
                Err(PublishError::Full(_)) => {}
                Err(error) => self.faults.push(error.to_string()),
            }
            ask.repeat_at = Some(now + REPEAT);
        }
    }

    fn take(&mut self, event: Inbound) {
        match event {
            Inbound::Up {
                session_present: false,
                ..
            } => {
                // Answers may have been lost with the session.
                for ask in self.asks.values_mut() {
                    ask.repeat_at = ask.repeat_at.map(|_| Instant::now());
                }
            }
            Inbound::Message(message) => self.hear(message),
            Inbound::Undelivered { topic, reason, .. } => {
                self.faults.push(format!("{topic}: {reason}"));
            }
            Inbound::SubscribeRefused { filter, reason } => {
                self.faults.push(format!("{filter}: {reason}"));
            }
            _ => {}
        }
    }

    fn hear(&mut self, message: Message) {
        self.link.try_ack(message.ack).unwrap();
        let id = message.topic.rsplit('/').next().unwrap();
        let Some(ask) = self.asks.get_mut(id) else {
            self.faults.push(format!("{}: not asked", message.topic));
            return;
        };
        match ask.receiver.hear(&message.payload) {
            Ok(Heard::End) => {
                ask.n_ends += 1;
                ask.repeat_at = None;
            }
            Ok(_) => ask.repeat_at = ask.repeat_at.map(|_| Instant::now() + SILENCE),
            // Lost with a session. The stored answer fills it, once there is one.
            Err(HearError::Gap { .. }) => {
                self.n_gaps += 1;
                let soon = Instant::now() + Duration::from_millis(500);
                ask.repeat_at = ask.repeat_at.map(|at| at.min(soon));
            }
            Err(error) => self.faults.push(format!("{id}: {error}")),
        }
    }
}

// ---- the weather -----------------------------------------------------------------------------------

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// On the way of the daemon, or of the requester.
    Way(Whose, Way),
    /// The broker dies, and comes back without a memory.
    Broker,
    /// Another client takes the session, and leaves none.
    Session(&'static str),
}

#[derive(Debug, Clone, Copy)]
enum Whose {
    Daemon,
    Asker,
}

struct Weather<'a> {
    random: Random,
    is_patient: bool,
    broker: &'a mut Mosquitto,
    of_daemon: &'a Proxy,
    of_asker: &'a Proxy,
}

impl Weather<'_> {
    /// Each fault once, in any order; two silent ones at least last until they are noticed.
    async fn round(&mut self) {
        let mut faults = vec![
            Fault::Broker,
            Fault::Session(DAEMON_ID),
            Fault::Session(ASKER_ID),
        ];
        for whose in [Whose::Daemon, Whose::Asker] {
            let slow = Duration::from_millis(self.random.within(5, 80));
            let ways = [
                Way::Slow(slow),
                Way::Crumbs(self.random.within(1, 7) as usize),
                Way::Stalled,
                Way::Deaf,
                Way::Mute,
                Way::HalfOpen,
                Way::CutAfter(self.random.within(1, 600) as usize),
                Way::CutAfter(self.random.within(1, 60) as usize),
                Way::Closed,
                Way::Shuffled,
            ];
            faults.extend(ways.map(|way| Fault::Way(whose, way)));
        }
        self.random.shuffle(&mut faults);
        // A hurried round leaves the daemon alone with one of its silent faults.
        let mut n_patient = if self.is_patient { usize::MAX } else { 1 };
        for fault in faults {
            eprintln!("{fault:?}");
            match fault {
                Fault::Way(whose, way) => self.spoil(whose, way, &mut n_patient).await,
                Fault::Broker => {
                    self.broker.kill();
                    sleep(Duration::from_millis(self.random.within(0, 300))).await;
                    self.broker.restart().await;
                }
                Fault::Session(id) => take_session(self.broker.port(), id).await,
            }
            sleep(Duration::from_millis(self.random.within(50, 300))).await;
        }
    }

    async fn spoil(&mut self, whose: Whose, way: Way, n_patient: &mut usize) {
        let proxy = match whose {
            Whose::Daemon => self.of_daemon,
            Whose::Asker => self.of_asker,
        };
        let n_before = proxy.n_connections();
        proxy.set(way);
        let is_silent = matches!(way, Way::Stalled | Way::Deaf | Way::Mute | Way::HalfOpen);
        let waits = match whose {
            Whose::Asker => true, // It gives up within a second.
            Whose::Daemon => {
                is_silent && std::mem::replace(n_patient, n_patient.saturating_sub(1)) > 0
            }
        };
        let held = Duration::from_millis(self.random.within(100, 400));
        if way == Way::Shuffled {
            // Those that came by it are in order.
            let again = async {
                while proxy.n_connections() == n_before {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(60), again).await.unwrap();
            sleep(2 * held).await;
        } else if is_silent && waits {
            // Keep-alive and stall limit, and a margin: noticed, or it is a wedge.
            let noticed = async {
                while proxy.n_connections() == n_before {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            let in_time = timeout(Duration::from_secs(20), noticed).await;
            assert!(in_time.is_ok(), "{whose:?} never noticed {way:?}");
        } else {
            sleep(held).await;
            if is_silent && way != Way::Stalled {
                // What was lost stays lost, so the connection is of no use any more.
                proxy.set(Way::Closed);
                sleep(Duration::from_millis(20)).await;
            }
        }
        proxy.set(Way::Open);
    }
}

/// Connects with this client id and no past, which ends the other's connection and session.
async fn take_session(port: u16, id: &str) {
    let (_link, mut inbox) = link::spawn(LinkConfig {
        clean_start: true,
        session_expiry: Duration::ZERO,
        ..LinkConfig::new("127.0.0.1", port, id)
    });
    let up = async { while !matches!(inbox.recv().await, Some(Inbound::Up { .. }) | None) {} };
    timeout(Duration::from_secs(10), up).await.unwrap();
}
