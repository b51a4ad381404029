//! A TCP proxy that misbehaves as networks do. What TCP promises it keeps: bytes come in order, and once
//! some are lost nothing after them arrives on that connection. What MQTT does not promise it breaks:
//! packets may overtake one another.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// How the way is at the moment, for every connection there is and comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All passes.
    Open,
    /// All passes, each piece so much later.
    Slow(Duration),
    /// All passes, in pieces of so many bytes.
    Crumbs(usize),
    /// Nothing passes and nothing closes; afterwards it goes on where it stopped, and what was under way
    /// arrives late.
    Stalled,
    /// What the broker sends is lost, for good.
    Deaf,
    /// What the client sends is lost, for good.
    Mute,
    /// The broker's side is closed; the client is told nothing, for good.
    HalfOpen,
    /// After so many more bytes from the client both sides end, most likely within a packet.
    CutAfter(usize),
    /// All connections end, and new ones at once.
    Closed,
    /// All connections end; on new ones messages of different topics and acknowledgements overtake one
    /// another.
    Shuffled,
}

/// A packet waits so long for others to overtake it ...
const HELD: Duration = Duration::from_millis(40);
/// ... and at most so many.
const OVERTAKEN_MAX: u32 = 4;

/// A proxy on a port of its own. Ends with the value.
pub struct Proxy {
    port: u16,
    way: watch::Sender<Way>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Counts {
    connections: AtomicUsize,
    overtaken: AtomicUsize,
}

impl Proxy {
    /// To a broker on this port.
    pub async fn start(broker: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, ways) = watch::channel(Way::Open);
        let counts = Arc::new(Counts::default());
        let task = tokio::spawn(serve(listener, broker, ways, counts.clone()));
        Proxy {
            port,
            way,
            counts,
            task,
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Connections that clients have made so far.
    pub fn n_connections(&self) -> usize {
        self.counts.connections.load(Ordering::Relaxed)
    }

    /// Packets that others have overtaken so far.
    pub fn n_overtaken(&self) -> usize {
        self.counts.overtaken.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    broker: u16,
    ways: watch::Receiver<Way>,
    counts: Arc<Counts>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let number = counts.connections.fetch_add(1, Ordering::Relaxed);
        // Every other connection that ends is reset, which throws away what was under way.
        if number % 2 == 1 {
            client.set_zero_linger().unwrap();
        }
        connections.spawn(carry(client, broker, ways.clone(), counts.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(
    client: TcpStream,
    broker: u16,
    mut ways: watch::Receiver<Way>,
    counts: Arc<Counts>,
) {
    let way = *ways.borrow_and_update();
    if way == Way::Closed {
        return;
    }
    let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)).await else {
        return;
    };
    for stream in [&client, &broker] {
        stream.set_nodelay(true).unwrap();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    if way == Way::Shuffled {
        let shuffled = tokio::try_join!(
            shuffle(&mut from_client, &mut to_broker, ways.clone(), &counts),
            shuffle(&mut from_broker, &mut to_client, ways.clone(), &counts),
        );
        if shuffled.is_err() {
            return;
        }
    }
    // Both end with the first error, and so do both sides.
    let _ = tokio::try_join!(
        pump(from_client, to_broker, Direction::ToBroker, ways.clone()),
        pump(from_broker, to_client, Direction::ToClient, ways),
    );
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToBroker,
    ToClient,
}

/// Ends well with the sender's side, and otherwise with an error.
async fn pump(
    mut from: OwnedReadHalf,
    to: OwnedWriteHalf,
    direction: Direction,
    mut ways: watch::Receiver<Way>,
) -> Result<(), ()> {
    let mut to = Some(to);
    let mut buffer = [0; 4096];
    let mut n_until_cut = None;
    loop {
        let way = *ways.borrow_and_update();
        match (way, direction) {
            (Way::Stalled, _) => {
                ways.changed().await.map_err(drop)?;
                continue;
            }
            (Way::Closed | Way::Shuffled, _) => return Err(()),
            (Way::HalfOpen, Direction::ToBroker) => to = None,
            (Way::HalfOpen, Direction::ToClient) => {
                drop(from);
                // The other direction notices when the client leaves.
                return std::future::pending().await;
            }
            (Way::CutAfter(n), Direction::ToBroker) => {
                n_until_cut.get_or_insert(n);
            }
            _ => n_until_cut = None,
        }
        let longest = match way {
            Way::Crumbs(n) => n,
            _ => buffer.len(),
        };
        let n = tokio::select! {
            changed = ways.changed() => {
                changed.map_err(drop)?;
                continue;
            }
            n = from.read(&mut buffer[..longest]) => n.map_err(drop)?,
        };
        if n == 0 {
            // Without another side there is nobody to tell.
            return match to {
                Some(mut to) => to.shutdown().await.map_err(drop),
                None => Err(()),
            };
        }
        if matches!(
            (way, direction),
            (Way::Deaf, Direction::ToClient) | (Way::Mute, Direction::ToBroker)
        ) {
            // Nothing after a lost byte arrives.
            return lose_the_rest(from, to, ways).await;
        }
        if let Way::Slow(time) = way {
            tokio::time::sleep(time).await;
        }
        let Some(to) = &mut to else { continue };
        match n_until_cut {
            Some(left) if n >= left => {
                let _ = to.write_all(&buffer[..left]).await;
                return Err(());
            }
            Some(left) => n_until_cut = Some(left - n),
            None => {}
        }
        to.write_all(&buffer[..n]).await.map_err(drop)?;
    }
}

/// Reads and drops until one side ends, holding `to` open.
async fn lose_the_rest(
    mut from: OwnedReadHalf,
    to: Option<OwnedWriteHalf>,
    mut ways: watch::Receiver<Way>,
) -> Result<(), ()> {
    let mut lost = [0; 4096];
    loop {
        tokio::select! {
            closed = ways.wait_for(|way| *way == Way::Closed) => {
                closed.map(drop).map_err(drop)?;
                return Err(());
            }
            n = from.read(&mut lost) => match n {
                Ok(1..) => {}
                _ => break,
            }
        }
    }
    drop(to);
    Err(())
}

/// Lets packets overtake one another until the way changes.
async fn shuffle(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut ways: watch::Receiver<Way>,
    counts: &Counts,
) -> Result<(), ()> {
    let mut read = Vec::new();
    let mut held: Option<Held> = None;
    loop {
        while let Some(packet) = take_packet(&mut read) {
            let subject = Subject::of(&packet);
            match &mut held {
                Some(held) if held.lets_pass(&subject) => {
                    held.n_overtaken += 1;
                    counts.overtaken.fetch_add(1, Ordering::Relaxed);
                    to.write_all(&packet).await.map_err(drop)?;
                    continue;
                }
                _ => {}
            }
            if let Some(held) = held.take() {
                to.write_all(&held.packet).await.map_err(drop)?;
            }
            if subject == Subject::Session {
                to.write_all(&packet).await.map_err(drop)?;
            } else {
                held = Some(Held {
                    packet,
                    subject,
                    n_overtaken: 0,
                    until: Instant::now() + HELD,
                });
            }
        }
        let until = held.as_ref().map(|held| held.until);
        tokio::select! {
            changed = ways.changed() => {
                changed.map_err(drop)?;
                break;
            }
            () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                if let Some(held) = held.take() {
                    to.write_all(&held.packet).await.map_err(drop)?;
                }
            }
            n = from.read_buf(&mut read) => {
                n.ok().filter(|n| *n > 0).ok_or(())?;
            }
        }
    }
    if let Some(held) = held {
        to.write_all(&held.packet).await.map_err(drop)?;
    }
    // The rest of this packet passes as all others.
    to.write_all(&read).await.map_err(drop)
}

struct Held {
    packet: Vec<u8>,
    subject: Subject,
    n_overtaken: u32,
    until: Instant,
}

impl Held {
    fn lets_pass(&self, other: &Subject) -> bool {
        *other != Subject::Session && *other != self.subject && self.n_overtaken < OVERTAKEN_MAX
    }
}

/// What a packet is about. MQTT promises order within a topic (MQTT 5, 4.6), and so between a
/// message and another of its topic.
#[derive(PartialEq, Eq)]
enum Subject {
    Topic(Vec<u8>),
    /// The acknowledgement of a packet id.
    Acknowledged([u8; 2]),
    /// Anything else: its place matters.
    Session,
}

impl Subject {
    fn of(packet: &[u8]) -> Subject {
        let begin = 1 + length_of(packet).map_or(0, |(_, n)| n);
        let number = |at: usize| Some([*packet.get(at)?, *packet.get(at + 1)?]);
        match (packet[0] >> 4, number(begin)) {
            (3, Some(length)) => {
                let topic = begin + 2..begin + 2 + usize::from(u16::from_be_bytes(length));
                packet
                    .get(topic)
                    .map_or(Subject::Session, |topic| Subject::Topic(topic.to_vec()))
            }
            (4, Some(id)) => Subject::Acknowledged(id),
            _ => Subject::Session,
        }
    }
}

/// Takes the first packet, if all of it is there.
fn take_packet(read: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (length, n) = length_of(read)?;
    let end = 1 + n + length;
    (read.len() >= end).then(|| read.drain(..end).collect())
}

/// The remaining length of the packet that begins here, and in how many bytes it is written.
fn length_of(packet: &[u8]) -> Option<(usize, usize)> {
    let mut length = 0;
    for (at, byte) in packet.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((length, at + 1));
        }
    }
    None
}
