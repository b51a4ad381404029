//! Attacks that a decent client library does not let anybody do: bytes on a socket.

use crate::arena::{Arena, LIMIT, Record, message, try_to};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection of alice's, MQTT 5.
struct Raw(TcpStream);

/// A last will, QoS 1.
#[derive(Default)]
struct Will<'a> {
    topic: &'a str,
    payload: &'a str,
    response_topic: Option<&'a str>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

/// With its length before it, of one byte or two.
fn packet(header: u8, body: &[u8]) -> Vec<u8> {
    let length = match body.len() {
        short @ ..128 => vec![short as u8],
        long => vec![long as u8 | 0x80, (long >> 7) as u8],
    };
    [&[header][..], &length, body].concat()
}

/// Properties of a few bytes.
fn properties(properties: &[u8]) -> Vec<u8> {
    [&[properties.len() as u8][..], properties].concat()
}

impl Raw {
    /// None is a refusal.
    async fn connect(port: u16, client_id: &str, will: Option<Will<'_>>) -> Option<Self> {
        const USER_AND_PASSWORD: u8 = 0b1100_0000;
        const WILL_AT_LEAST_ONCE: u8 = 0b0000_1100;
        const CLEAN_START: u8 = 0b0000_0010;
        let mut flags = USER_AND_PASSWORD | CLEAN_START;
        let mut fields = text(client_id);
        if let Some(will) = will {
            flags |= WILL_AT_LEAST_ONCE;
            let response_topic = will
                .response_topic
                .map_or_else(Vec::new, |topic| [&[0x08][..], &text(topic)].concat());
            fields.extend(properties(&response_topic));
            fields.extend(text(will.topic));
            fields.extend(text(will.payload));
        }
        fields.extend([text("alice"), text("alice")].concat());
        let start = [&text("MQTT")[..], &[5, flags, 0, 60], &properties(&[])].concat();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connect = packet(0x10, &[start, fields].concat());
        stream.write_all(&connect).await.unwrap();
        let mut raw = Self(stream);
        let (header, body) = raw.packet().await?;
        assert_eq!(header, 0x20, "CONNACK");
        (body[1] == 0).then_some(raw)
    }

    /// The next packet, or the end.
    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let header = self.0.read_u8().await.ok()?;
            let low = self.0.read_u8().await.ok()?;
            let mut length = usize::from(low & 0x7f);
            if low & 0x80 != 0 {
                length |= usize::from(self.0.read_u8().await.ok()?) << 7;
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.ok()?;
            Some((header, body))
        };
        timeout(LIMIT, read).await.unwrap()
    }

    /// PUBLISH of QoS 1 with a topic alias; returns after its PUBACK, whatever that says.
    async fn publish(&mut self, topic: &str, alias: u8, payload: &str) {
        self.send(topic, alias, payload).await;
        let (header, _) = self.packet().await.expect("a PUBACK, not the end");
        assert_eq!(header, 0x40, "PUBACK");
    }

    async fn send(&mut self, topic: &str, alias: u8, payload: &str) {
        let topic_alias = properties(&[0x23, 0, alias]);
        let head = [text(topic), vec![0, 7], topic_alias].concat();
        let publish = packet(0x32, &[&head, payload.as_bytes()].concat());
        self.0.write_all(&publish).await.unwrap();
    }
}

/// A last will is a message, too, and comes when nobody asks any more.
pub(crate) async fn a_last_will_reaches_no_further_than_its_owner(arena: &Arena) {
    let (_bob, bob) = arena
        .join("bob", "bob-inherits", &["orinoco/v1/resp/bob/#"])
        .await;
    let filters = [
        "orinoco/v1/n1/set/#",
        "orinoco/v1/n1/cmd/#",
        "orinoco/v1/n1/req/#",
    ];
    let (node, node_seen) = arena
        .join("daemon", "orinoco-daemon-inherits", &filters)
        .await;
    for (n, topic) in [
        "orinoco/v1/resp/bob/w",
        "orinoco/v1/n1/set/model",
        "orinoco/v1/n1/cmd/restart/w",
        "orinoco/v1/n1/req/bob/cancel/w",
    ]
    .into_iter()
    .enumerate()
    {
        let will = Will {
            topic,
            payload: "last will",
            ..Will::default()
        };
        // Refused, or let in; then the connection ends without a goodbye.
        drop(Raw::connect(arena.port, &format!("dying-{n}"), Some(will)).await);
    }
    // An honest will arrives, and so would those before it have.
    let will = Will {
        topic: "orinoco/v1/n1/req/alice/cancel/w",
        payload: "honest will",
        ..Will::default()
    };
    let dying = Raw::connect(arena.port, "dying-honestly", Some(will)).await;
    drop(dying.expect("who leaves an honest will is let in"));
    node_seen.until_payload("honest will").await;
    let honest = message("orinoco/v1/resp/bob/w2", "honest");
    try_to(&node, &node_seen, honest).await;
    bob.until_payload("honest").await;
    assert_eq!(bob.with("last will"), []);
    assert_eq!(node_seen.with("last will"), []);
}

/// A last will that is a request, to be answered to somebody else.
pub(crate) async fn a_last_will_has_no_deputy(arena: &Arena) {
    let (_bob, bob) = arena
        .join("bob", "bob-mourns", &["orinoco/v1/resp/bob/#"])
        .await;
    let (_alice, alice) = arena
        .join("alice", "alice-mourns", &["orinoco/v1/resp/alice/#"])
        .await;
    let will = Will {
        topic: "orinoco/v1/n1/req/alice/chat/mourned",
        payload: "!count !tokens 5",
        response_topic: Some("orinoco/v1/resp/bob/mourned"),
    };
    if let Some(dying) = Raw::connect(arena.port, "dying-slyly", Some(will)).await {
        drop(dying);
        // The node refuses it, to who has asked.
        let refused = |record: &Record| {
            record
                .messages
                .iter()
                .any(|(_, payload)| payload.contains("response_topic_denied"))
        };
        alice.until("the refusal of the will", refused).await;
    }
    arena.answers("bob", "after-the-will").await;
    bob.until_topic("/after-the-will").await;
    assert_eq!(bob.with("mourned"), []);
}

/// A topic alias of 0 is a breach of the protocol, and not a way to leave out the topic.
pub(crate) async fn there_is_no_alias_0(arena: &Arena) {
    let mut alice = Raw::connect(arena.port, "alice-alias-0", None)
        .await
        .expect("alice is let in");
    let own = "orinoco/v1/n1/req/alice/cancel/alias0";
    alice.send(own, 0, "alias 0").await;
    // The end, with or without a DISCONNECT that says why.
    while let Some((header, _)) = alice.packet().await {
        assert_eq!(header, 0xe0, "DISCONNECT");
    }
}

/// The rules hold for the topic that an alias stands for, not for the empty one that is sent.
pub(crate) async fn an_alias_opens_no_topic(arena: &Arena) {
    let (_bob, bob) = arena
        .join("bob", "bob-knows-no-alias", &["orinoco/v1/resp/bob/#"])
        .await;
    let (node, node_seen) = arena
        .join("daemon", "orinoco-daemon-aliased", &["orinoco/v1/n1/req/#"])
        .await;
    let mut alice = Raw::connect(arena.port, "alice-by-alias", None)
        .await
        .expect("alice is let in");
    let (theirs, own) = (
        "orinoco/v1/resp/bob/alias",
        "orinoco/v1/n1/req/alice/cancel/alias",
    );
    alice.publish(theirs, 1, "attack by name").await;
    alice.publish("", 1, "attack by alias").await;
    alice.publish(own, 2, "honest name").await;
    alice.publish("", 2, "honest alias").await;
    alice.publish(theirs, 2, "attack by another name").await;
    alice.publish("", 2, "attack by the alias of another").await;
    node_seen.until_payload("honest name").await;
    node_seen.until_payload("honest alias").await;
    let honest = message("orinoco/v1/resp/bob/alias", "honest answer");
    try_to(&node, &node_seen, honest).await;
    bob.until_payload("honest answer").await;
    assert_eq!(bob.with("attack"), []);
    assert_eq!(node_seen.with("attack"), []);
}
