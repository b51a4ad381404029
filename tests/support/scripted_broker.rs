//! A broker that does exactly what a test says: hand-written MQTT 5 packets over TCP.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Longest wait for the client.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for connections.
pub struct ScriptedBroker {
    listener: TcpListener,
}

/// One client's connection.
pub struct Peer {
    stream: TcpStream,
    /// The client's CONNECT, without its fixed header.
    pub connect: Vec<u8>,
}

/// A packet as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Publish {
        topic: String,
        id: u16,
        dup: bool,
        payload: String,
    },
    Subscribe {
        id: u16,
    },
    Unsubscribe {
        id: u16,
    },
    PubAck {
        id: u16,
    },
    Ping,
    Disconnect,
    Other(u8),
}

impl ScriptedBroker {
    pub async fn start() -> ScriptedBroker {
        ScriptedBroker {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// The next connection, answered with CONNACK.
    pub async fn accept(&self, session_present: bool) -> Peer {
        self.accept_with(session_present, &[]).await
    }

    /// As [`Self::accept`], with CONNACK properties.
    pub async fn accept_with(&self, session_present: bool, properties: &[u8]) -> Peer {
        let mut peer = self.connect().await;
        let mut connack = vec![
            0x20,
            3 + properties.len() as u8,
            u8::from(session_present),
            0,
        ];
        connack.push(properties.len() as u8);
        connack.extend_from_slice(properties);
        peer.write(&connack).await;
        peer
    }

    /// The next connection, answered with nothing.
    pub async fn connect(&self) -> Peer {
        let accepted = timeout(LIMIT, self.listener.accept()).await;
        let (stream, _) = accepted.expect("a connection comes in time").unwrap();
        let mut peer = Peer {
            stream,
            connect: Vec::new(),
        };
        let (header, body) = packet(&mut peer.stream).await.expect("a CONNECT");
        assert_eq!(header, 0x10);
        peer.connect = body;
        peer
    }

    /// Whether nobody connects for so long.
    pub async fn nobody_for(&self, time: Duration) -> bool {
        timeout(time, self.listener.accept()).await.is_err()
    }
}

impl Peer {
    /// Whether CONNECT asked for a session without a past (MQTT 5, 3.1.2.4).
    pub fn wants_clean_start(&self) -> bool {
        // After protocol name (6 bytes) and level.
        self.connect[7] & 2 != 0
    }

    /// Makes the kernel wait before it acknowledges what arrived, as it does on slow networks.
    pub fn delay_tcp_acks(&self) {
        self.stream.set_quickack(false).unwrap();
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet; None when the client is gone.
    pub async fn next(&mut self) -> Option<Received> {
        let (header, body) = packet(&mut self.stream).await?;
        Some(parse(header, &body))
    }

    /// The next publish, pings answered and anything else skipped.
    pub async fn next_publish(&mut self) -> Option<(String, u16, bool)> {
        loop {
            match self.next().await? {
                Received::Publish {
                    id, dup, payload, ..
                } => return Some((payload, id, dup)),
                Received::Ping => self.write(&[0xd0, 0]).await,
                _ => {}
            }
        }
    }

    /// Reads publishes without acknowledging them.
    pub async fn publishes(&mut self, n: usize) -> Vec<(String, u16, bool)> {
        let mut found = Vec::new();
        while found.len() < n {
            let next = timeout(LIMIT, self.next_publish())
                .await
                .expect("a publish comes in time");
            found.push(next.expect("the client is there"));
        }
        found
    }

    /// Reads and acknowledges `n` publishes, and what else comes before it is quiet; their payloads.
    pub async fn drain(&mut self, n: usize, quiet: Duration) -> Vec<String> {
        let mut found = Vec::new();
        loop {
            let limit = if found.len() < n { LIMIT } else { quiet };
            let Ok(Some((payload, id, _))) = timeout(limit, self.next_publish()).await else {
                return found;
            };
            found.push(payload);
            if id != 0 {
                self.puback(id, 0).await;
            }
        }
    }

    /// Reads until the packet comes.
    pub async fn expect(&mut self, wanted: impl Fn(&Received) -> bool) -> Received {
        let find = async {
            loop {
                let packet = self.next().await.expect("the client is there");
                if wanted(&packet) {
                    return packet;
                }
                if packet == Received::Ping {
                    self.write(&[0xd0, 0]).await;
                }
            }
        };
        timeout(LIMIT, find)
            .await
            .expect("the packet comes in time")
    }

    /// Whether the client closes the connection.
    pub async fn is_left(&mut self) -> bool {
        let gone = async { while self.next().await.is_some() {} };
        timeout(LIMIT, gone).await.is_ok()
    }

    pub async fn puback(&mut self, id: u16, reason: u8) {
        let [high, low] = id.to_be_bytes();
        self.write(&[0x40, 4, high, low, reason, 0]).await;
    }

    pub async fn suback(&mut self, id: u16, codes: &[u8]) {
        let [high, low] = id.to_be_bytes();
        let mut packet = vec![0x90, 3 + codes.len() as u8, high, low, 0];
        packet.extend_from_slice(codes);
        self.write(&packet).await;
    }

    pub async fn unsuback(&mut self, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.write(&[0xb0, 4, high, low, 0, 0]).await;
    }

    /// Sends a PUBLISH; `id` 0 is QoS 0.
    pub async fn publish(&mut self, topic: &str, id: u16, payload: &[u8]) {
        let qos = if id == 0 { 0 } else { 1 };
        self.publish_with_qos(topic, id, qos, payload).await;
    }

    pub async fn publish_with_qos(&mut self, topic: &str, id: u16, qos: u8, payload: &[u8]) {
        let mut body = (topic.len() as u16).to_be_bytes().to_vec();
        body.extend_from_slice(topic.as_bytes());
        if id != 0 {
            body.extend_from_slice(&id.to_be_bytes());
        }
        body.push(0);
        body.extend_from_slice(payload);
        let mut packet = vec![0x30 | qos << 1];
        let mut length = body.len();
        loop {
            let byte = (length & 0x7f) as u8;
            length >>= 7;
            packet.push(if length > 0 { byte | 0x80 } else { byte });
            if length == 0 {
                break;
            }
        }
        packet.extend_from_slice(&body);
        self.write(&packet).await;
    }

    /// DISCONNECT with a reason and an empty property list.
    pub async fn disconnect(&mut self, reason: u8) {
        self.write(&[0xe0, 2, reason, 0]).await;
    }

    /// DISCONNECT with a reason and nothing after it, as Mosquitto sends it; then the end.
    pub async fn disconnect_in_short(mut self, reason: u8) {
        self.write(&[0xe0, 1, reason]).await;
    }
}

/// The sending half of a split [`Peer`].
pub struct Writer(tokio::net::tcp::OwnedWriteHalf);

impl Writer {
    /// False when the client is gone.
    pub async fn write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }
}

/// The receiving half of a split [`Peer`].
pub struct Reader(tokio::net::tcp::OwnedReadHalf);

impl Peer {
    /// For a test that sends and receives at the same time.
    pub fn split(self) -> (Reader, Writer) {
        let (reader, writer) = self.stream.into_split();
        (Reader(reader), Writer(writer))
    }
}

impl Reader {
    /// The next publish, anything else skipped.
    pub async fn next_publish(&mut self) -> Option<(String, u16, bool)> {
        loop {
            let (header, body) = packet(&mut self.0).await?;
            if let Received::Publish {
                id, dup, payload, ..
            } = parse(header, &body)
            {
                return Some((payload, id, dup));
            }
        }
    }
}

async fn packet(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, Vec<u8>)> {
    let header = stream.read_u8().await.ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((header, body))
}

fn parse(header: u8, body: &[u8]) -> Received {
    let id_at = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    match header >> 4 {
        3 => {
            let length = usize::from(id_at(0));
            let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
            let mut at = 2 + length;
            let mut id = 0;
            if header & 0b0110 != 0 {
                id = id_at(at);
                at += 2;
            }
            // Properties of tests are shorter than 128 bytes.
            at += 1 + usize::from(body[at]);
            let payload = String::from_utf8_lossy(&body[at..]).into_owned();
            Received::Publish {
                topic,
                id,
                dup: header & 8 != 0,
                payload,
            }
        }
        4 => Received::PubAck { id: id_at(0) },
        8 => Received::Subscribe { id: id_at(0) },
        10 => Received::Unsubscribe { id: id_at(0) },
        12 => Received::Ping,
        14 => Received::Disconnect,
        other => Received::Other(other),
    }
}
