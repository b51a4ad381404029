//! A client of a pool, small enough to be written again in another language.
//!
//! ```sh
//! cargo run --release --example pool_client -- 1883 hall2 local "Name three rivers." "What is 2 bar in psi?"
//! ```
//!
//! It asks all questions at once and prints each answer when it has ended. What to do next, for each
//! question, is decided by `Requester` (src/receive/requester.rs), which opens no socket; here it is only
//! carried out. The rules are those of docs/protocol.md, "Pools".

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use orinoco::link::{self, Inbound, Inbox, Link, LinkConfig, Publish};
use orinoco::receive::{Action, HearError, Heard, Receiver, Requester};
use orinoco::wire::report::Status;
use orinoco::wire::topic::{Name, Names, Op, RequestId};
use tokio::time::{Instant, sleep};

/// Questions of one user to one pool.
pub struct PoolClient {
    link: Link,
    inbox: Inbox,
    names: Names,
    pool: Name,
    user: Name,
    started: Instant,
    /// By request id: what was asked, and how far it is.
    questions: BTreeMap<RequestId, (Bytes, Requester)>,
    /// Finals heard for each question; the contract promises one.
    pub ends: BTreeMap<String, usize>,
    /// Messages that broke the contract.
    pub faults: Vec<HearError>,
}

impl PoolClient {
    /// Connects to a broker on this machine. Asks may follow at once: they wait for the connection.
    pub fn connect(port: u16, root: &str, pool: Name, user: Name) -> Self {
        // Only the root counts: a client is no node.
        let anyone = Name::new("client").expect("letters are a name");
        let names = Names::new(root, anyone).expect("the root of the topics");
        let (link, inbox) = link::spawn(LinkConfig {
            // Answers, subscribed before anything is asked, and the last wills of nodes.
            subscriptions: vec![names.resp_filter(&user), names.statuses()],
            // What is said while we reconnect is kept for us.
            session_expiry: Duration::from_secs(600),
            ..LinkConfig::new(
                "127.0.0.1",
                port,
                format!("pool-client-{user}-{}", std::process::id()),
            )
        });
        Self {
            link,
            inbox,
            names,
            pool,
            user,
            started: Instant::now(),
            questions: BTreeMap::new(),
            ends: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// Asks the pool. The id is new for each question, and the same for each repeat.
    pub async fn ask(&mut self, id: &str, body: &str) {
        let id = RequestId::new(id).expect("letters, digits, _ and -");
        let requester = Requester::of_pool(self.started.elapsed());
        self.questions
            .insert(id, (Bytes::from(body.to_owned()), requester));
        self.act().await;
    }

    /// Calls a question off; its answer ends as `cancelled`.
    pub async fn cancel(&mut self, id: &str) {
        if let Some((_, requester)) = self.questions.get_mut(id) {
            requester.cancel();
        }
        self.act().await;
    }

    /// The answer to a question, as far as it has come.
    pub fn answer(&self, id: &str) -> &Receiver {
        self.questions[id].1.receiver()
    }

    /// Whether all questions have ended.
    pub fn is_done(&self) -> bool {
        let mut questions = self.questions.values();
        questions.all(|(_, requester)| requester.receiver().end().is_some())
    }

    /// Waits for the next event, or for the time to repeat, and does what follows from it.
    pub async fn step(&mut self) {
        let wakes = self
            .questions
            .values()
            .filter_map(|(_, requester)| requester.wake());
        let wait = wakes
            .min()
            .map(|at| at.saturating_sub(self.started.elapsed()));
        tokio::select! {
            event = self.inbox.recv() => self.on_event(event.expect("the link is ours")),
            () = sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => {}
        }
        self.act().await;
    }

    fn on_event(&mut self, event: Inbound) {
        let now = self.started.elapsed();
        match event {
            // The broker has forgotten us, and what it had for us.
            Inbound::Up {
                session_present: false,
                ..
            } => {
                for (_, requester) in self.questions.values_mut() {
                    requester.session_lost(now);
                }
            }
            Inbound::Message(message) => {
                if let Some(node) = self.names.node_of_status(&message.topic) {
                    if let Ok(status) = serde_json::from_slice::<Status>(&message.payload) {
                        for (_, requester) in self.questions.values_mut() {
                            requester.presence(&node, status.state, now);
                        }
                    }
                } else if let Some((_, id)) = message.topic.rsplit_once('/')
                    && let Some((_, requester)) = self.questions.get_mut(id)
                {
                    match requester.hear(&message.payload, now) {
                        Ok(Heard::End) => *self.ends.entry(id.to_owned()).or_default() += 1,
                        Ok(_) => {} // Heard::Text is where a display would show what is new.
                        Err(fault) => self.faults.push(fault),
                    }
                }
                self.link.try_ack(message.ack).expect("the link is ours");
            }
            _ => {}
        }
    }

    /// Publishes whatever is to be published now.
    async fn act(&mut self) {
        let now = self.started.elapsed();
        let (names, user) = (&self.names, &self.user);
        let of = |node: Name| names.of(node).expect("the node said its name itself");
        for (id, (body, requester)) in &mut self.questions {
            while let Some(action) = requester.poll(now) {
                let (topic, payload) = match action {
                    Action::Ask => (names.pool_req(&self.pool, user, Op::Chat, id), body.clone()),
                    Action::AskNode(node) => (of(node).req(user, Op::Chat, id), body.clone()),
                    Action::Cancel => (names.pool_cancel(&self.pool, user, id), Bytes::new()),
                    Action::CancelAt(node) => (of(node).cancel(user, id), Bytes::new()),
                };
                let publish = Publish {
                    topic,
                    payload,
                    at_least_once: true,
                    ..Publish::default()
                };
                self.link.publish(publish).await.expect("the link is ours");
            }
        }
    }
}

#[allow(
    dead_code,
    reason = "tests/pools.rs uses the client and not the program"
)]
#[allow(clippy::print_stdout, reason = "the answers")]
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [port, pool, user, questions @ ..] = args.as_slice() else {
        panic!("usage: pool_client PORT POOL USER QUESTION...");
    };
    let name = |text: &str| Name::new(text).expect("a name of letters, digits, _ . -");
    let port = port.parse().expect("a port");
    let mut client = PoolClient::connect(port, "orinoco", name(pool), name(user));
    let ids = |n: usize| format!("example-{}-{n}", std::process::id());
    for (n, question) in questions.iter().enumerate() {
        client.ask(&ids(n), question).await;
    }
    while !client.is_done() {
        client.step().await;
    }
    for (n, question) in questions.iter().enumerate() {
        let answer = client.answer(&ids(n));
        let node = answer.node().map(Name::to_string).unwrap_or_default();
        match &answer.end().expect("all are done").outcome {
            Ok(_) => println!("{question}\n  {node}: {}", answer.text()),
            Err(error) => println!("{question}\n  {node}: {error}"),
        }
    }
}
