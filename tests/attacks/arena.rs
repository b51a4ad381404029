//! A broker with accounts and the product's access rules, a daemon that serves on it, and connections that
//! remember all they are sent.

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::broker::{DAEMON_PASSWORD, Embedded, Mosquitto};
use crate::support::daemon::{Daemon, Engine, Site};
use crate::support::requester::Client;
use orinoco::access::Role;
use orinoco::broker::daemon_client_id;
use orinoco::link::{self, Credentials, Inbound, Link, LinkConfig, Publish};
use orinoco::users;
use orinoco::wire::report::Mode;
use tokio::time::timeout;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Accounts on both brokers.
pub(crate) const USERS: [(&str, Role); 4] = [
    ("alice", Role::Device),
    ("bob", Role::Device),
    ("boss", Role::Operator),
    ("hall", Role::Monitor),
];

/// Names that stand for something else in topics. Only Mosquitto lets anybody make such an account.
pub(crate) const MISNAMED: [&str; 3] = ["tele", "req", "cmd"];

/// Ends with the arena.
#[expect(dead_code, reason = "held, not looked into")]
pub(crate) enum Broker {
    Embedded(Embedded),
    Mosquitto(Mosquitto),
}

/// A broker with accounts and the product's access rules, and a daemon that serves on it.
pub(crate) struct Arena {
    pub(crate) broker: Broker,
    pub(crate) port: u16,
    pub(crate) site: Site,
    pub(crate) daemon: Option<Daemon>,
    /// What alice has been sent since before the daemon came.
    pub(crate) early: Option<(Link, Seen)>,
}

fn acl(format: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_orinoco"))
        .env_clear()
        .args(["acl", "--format", format])
        .args(["--set", "users.boss.role=operator"])
        .args(["--set", "users.hall.role=monitor"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Arena {
    pub(crate) async fn with_mosquitto() -> Arena {
        let accounts: Vec<&str> = USERS
            .iter()
            .map(|(name, _)| *name)
            .chain(MISNAMED)
            .chain(["daemon"])
            .collect();
        let (conf, acl) = (acl("mosquitto-conf"), acl("mosquitto"));
        let broker = Mosquitto::start_as_written(&conf, &acl, &accounts).await;
        let port = broker.port();
        Arena::start(Broker::Mosquitto(broker), port).await
    }

    pub(crate) async fn with_embedded() -> Arena {
        let broker = Embedded::start().await;
        for (name, role) in USERS {
            users::add(&broker.users, name, name, Some(role)).unwrap();
        }
        for name in MISNAMED {
            users::add(&broker.users, name, name, None).unwrap_err();
        }
        let port = broker.port();
        Arena::start(Broker::Embedded(broker), port).await
    }

    async fn start(broker: Broker, port: u16) -> Arena {
        let site = Site::with_broker_on(port, Engine::Scripted);
        let password = site.dir.path().join("mqtt.password");
        std::fs::write(&password, "").unwrap();
        std::fs::set_permissions(
            &password,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        let mut arena = Arena {
            broker,
            port,
            site: site
                .set("mqtt.username=daemon")
                .set(format!("mqtt.client_id={}", daemon_client_id("n1")))
                .set(format!("mqtt.password_file={}", password.display()))
                .set("users.boss.role=operator")
                .set("users.hall.role=monitor"),
            daemon: None,
            early: None,
        };
        std::fs::write(&password, arena.password("daemon")).unwrap();
        // Asked again at each start of the daemon, if it were heeded.
        let (alice, seen) = arena
            .join("alice", "early", &["orinoco/v1/resp/alice/#"])
            .await;
        let again = Publish {
            retain: true,
            ..asking("alice", "chat", "again", "!count !tokens 5")
        };
        try_to(&alice, &seen, again).await;
        arena.early = Some((alice, seen));
        arena.daemon = Some(arena.site.start());
        arena
    }

    pub(crate) fn password(&self, user: &str) -> String {
        match (&self.broker, user) {
            (Broker::Embedded(_), "daemon") => DAEMON_PASSWORD.to_owned(),
            _ => user.to_owned(),
        }
    }

    /// Accounts that are there although no daemon would answer them.
    pub(crate) fn misnamed(&self) -> &'static [&'static str] {
        match self.broker {
            Broker::Embedded(_) => &[],
            Broker::Mosquitto(_) => &MISNAMED,
        }
    }

    pub(crate) fn config(&self, user: &str, client_id: &str, filters: &[&str]) -> LinkConfig {
        LinkConfig {
            credentials: Some(Credentials {
                user: user.into(),
                password: self.password(user),
            }),
            subscriptions: filters.iter().map(|&filter| filter.to_owned()).collect(),
            ..LinkConfig::new("127.0.0.1", self.port, client_id)
        }
    }

    /// A connection, and all that it is sent.
    pub(crate) async fn join(&self, user: &str, client_id: &str, filters: &[&str]) -> (Link, Seen) {
        let (link, mut inbox) = link::spawn(self.config(user, client_id, filters));
        let seen = Seen::default();
        let up = Arc::new(tokio::sync::Notify::new());
        let (taking, told, acks) = (seen.clone(), up.clone(), link.clone());
        tokio::spawn(async move {
            while let Some(event) = inbox.recv().await {
                match event {
                    Inbound::Up { .. } => told.notify_one(),
                    Inbound::Message(message) => {
                        let _ = acks.try_ack(message.ack); // The test may have ended.
                        taking.add(&message.topic, &message.payload);
                    }
                    Inbound::Delivered { token } => taking.settle(token),
                    Inbound::Undelivered {
                        token: Some(token), ..
                    } => taking.settle(token),
                    _ => {}
                }
            }
        });
        timeout(LIMIT, up.notified())
            .await
            .unwrap_or_else(|_| panic!("{user} is let in"));
        (link, seen)
    }

    /// Somebody who follows the contract.
    pub(crate) async fn requester(&self, user: &str) -> Client {
        let password = self.password(user);
        let mut client = Client::connect(self.port, "n1", user, Some(&password)).await;
        client.until_mode(Mode::Serving).await;
        client
    }

    /// A prompt is answered, whatever was tried before.
    pub(crate) async fn answers(&self, user: &str, id: &str) {
        let mut client = self.requester(user).await;
        client.ask("chat", id, "!count !tokens 7").await;
        client.until_ended(&[id.to_owned()]).await;
        assert_eq!(client.text(id).len(), 7);
        // The final of an earlier connection may come once more: its acknowledgement can be lost in closing.
        let of_this = format!("{id}:");
        let faults: Vec<_> = client
            .faults
            .iter()
            .filter(|fault| fault.starts_with(&of_this))
            .collect();
        assert!(faults.is_empty(), "{faults:?}");
        client.link.close(None, LIMIT).await.unwrap();
    }
}

pub(crate) fn asking(user: &str, op: &str, id: &str, body: &str) -> Publish {
    message(&format!("orinoco/v1/n1/req/{user}/{op}/{id}"), body)
}

pub(crate) fn message(topic: &str, payload: &str) -> Publish {
    Publish {
        topic: topic.to_owned(),
        payload: payload.to_owned().into(),
        at_least_once: true,
        ..Publish::default()
    }
}

/// What came over one connection, in its order.
#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<(Mutex<Record>, tokio::sync::Notify)>);

#[derive(Default)]
pub(crate) struct Record {
    pub(crate) messages: Vec<(String, String)>,
    settled: Vec<u64>,
}

impl Seen {
    fn add(&self, topic: &str, payload: &[u8]) {
        let payload = String::from_utf8_lossy(payload).into_owned();
        let mut record = self.0.0.lock().unwrap();
        record.messages.push((topic.to_owned(), payload));
        self.0.1.notify_one();
    }

    fn settle(&self, token: u64) {
        self.0.0.lock().unwrap().settled.push(token);
        self.0.1.notify_one();
    }

    /// Waits until the record says so; whoever asks is the only one.
    pub(crate) async fn until(&self, what: &str, done: impl Fn(&Record) -> bool) {
        let wait = async {
            while !done(&self.0.0.lock().unwrap()) {
                self.0.1.notified().await;
            }
        };
        if timeout(LIMIT, wait).await.is_err() {
            panic!("waited in vain for: {what}");
        }
    }

    pub(crate) async fn until_payload(&self, payload: &str) {
        self.until(payload, |record| {
            record.messages.iter().any(|(_, found)| found == payload)
        })
        .await;
    }

    /// Waits for a message whose topic ends so.
    pub(crate) async fn until_topic(&self, end: &str) {
        self.until(end, |record| {
            record
                .messages
                .iter()
                .any(|(topic, _)| topic.ends_with(end))
        })
        .await;
    }

    /// What has this in its payload.
    pub(crate) fn with(&self, part: &str) -> Vec<(String, String)> {
        let record = self.0.0.lock().unwrap();
        let messages = record.messages.iter();
        messages
            .filter(|(_, payload)| payload.contains(part))
            .cloned()
            .collect()
    }
}

/// Publishes, and waits for the broker's verdict, whatever it is.
pub(crate) async fn try_to(link: &Link, seen: &Seen, publish: Publish) {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let token = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let topic = publish.topic.clone();
    let publish = Publish {
        token: Some(token),
        ..publish
    };
    link.publish(publish).await.unwrap();
    seen.until(&topic, |record| record.settled.contains(&token))
        .await;
}
