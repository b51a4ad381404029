//! The MQTT client, and the only home of rumqttc.
//!
//! Owns one session with one broker for as long as the process lives: connecting, subscribing,
//! keeping what was published until the broker acknowledged it, and reconnecting. Callers publish
//! through a bounded outbox ([`Link`]) and read a bounded [`Inbox`]; both ends stay valid across
//! every loss of the connection. It never looks into payloads, never retries what a broker refused,
//! and never makes its caller wait for the network.
//!
//! ```text
//!   Link::try_publish ─▶ outbox ─▶ feed ─▶ rumqttc ─▶ broker      feed, poll and watchdog are three
//!                                    ▲        │                   futures of one task, so that poll
//!   Inbox::recv ◀── bounded ◀────── poll ◀────┘                   waits for nothing but the network
//! ```
//!
//! rumqttc 0.25.1 (`v5`) loses, wedges or hangs in ways that tests/link_defects.rs shows. The repairs:
//!
//! - Each connection gets a fresh event loop. What is unacknowledged lives in `flight`, not in
//!   rumqttc, which forgets its queue when the broker has no session and keeps a packet id collision
//!   for ever (rumqttc issue 1056). It is sent again in order: with its packet id and DUP when the
//!   broker kept the session, as a new message otherwise.
//! - At most `inflight` messages are handed over, and never two whose packet ids could collide.
//! - A watchdog ends a connection whose peer stopped reading, acknowledging or answering; v5 has no
//!   timeout on writing.
//! - The size of a packet is checked against the broker's maximum before it is handed over. rumqttc
//!   finds out while encoding, drops the connection, and sends the same packet after reconnecting.
//! - The largest packet taken is announced, so that a broker withholds larger ones. rumqttc defaults
//!   to 10 KiB unannounced, and drops the connection.
//! - A broker that sends larger ones all the same sends them again after each reconnect. After the second
//!   the session is given up.
//! - Filters are subscribed at each connection, also when the broker says that it kept the session: it may
//!   be one that another client with our id left behind. A SUBSCRIBE that is not confirmed ends the
//!   connection.
//! - Limits in a CONNACK within which rumqttc would take a connection for good and send nothing are told.
//! - Acknowledgements are manual and name the connection they belong to; late ones are dropped.
//! - A DISCONNECT with a reason and no property length is dropped by rumqttc, and with it the news of
//!   a takeover. Connections that the broker closes again and again are taken for one.
//! - TCP_NODELAY. No topic aliases (an alias arrives as an empty topic), no QoS 2 (a refusal leaks
//!   a place in the window, rumqttc issue 1060).

mod backoff;
mod config;
mod connection;
mod ended;
mod excess;
mod flight;
mod flow;
mod inbox;
mod packet;
mod poll;
mod relay;
mod switch;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;

pub use config::{Credentials, LinkConfig};
pub use inbox::Inbox;
pub use packet::{Invalid, Message, PACKET_BYTES_MAX, Props, Publish};
pub use tls::{IdentityFiles, TlsError, TlsFiles};

/// What a link reports. The order is that of the events.
#[derive(Debug)]
pub enum Inbound {
    /// Connected and subscribed; what was published meanwhile is being sent.
    Up {
        /// The broker kept this client's session: subscriptions and queued messages.
        session_present: bool,
        /// Largest packet the broker takes, in bytes.
        packet_bytes_max: u32,
    },
    /// The connection is gone, or could not be made; the link tries again by itself. Reported once
    /// for each loss and for each new reason.
    Down {
        /// Why, for a person.
        reason: String,
        /// Another client connected with this client id: the broker says so, or closed several
        /// connections in a row soon after it took them. The link then waits `backoff_max`, so that
        /// two daemons with one identity do not throw each other out in a loop.
        taken_over: bool,
    },
    /// A message. QoS 1 ones must be acknowledged with [`Link::try_ack`].
    Message(Message),
    /// The broker acknowledged a publish that carried a token.
    Delivered {
        /// [`Publish::token`].
        token: u64,
    },
    /// A QoS 1 publish ended without being accepted: refused by the broker, or too large for the
    /// broker that the link is connected to now. It is not sent again.
    Undelivered {
        /// [`Publish::token`].
        token: Option<u64>,
        /// Where it was to go.
        topic: String,
        /// Why, for a person.
        reason: String,
    },
    /// The broker did what [`Link::listen`] asked for: from now on it does, or does not, send what the
    /// switched filters match. What was under way still comes. After a lost connection it is off.
    Listening {
        /// On only if the broker took at least one of the filters.
        on: bool,
    },
    /// The broker refused a subscription.
    SubscribeRefused {
        /// The filter.
        filter: String,
        /// The broker's reason code.
        reason: String,
    },
}

/// Names one QoS 1 message to acknowledge, within the connection it came by.
#[derive(Debug, PartialEq, Eq)]
pub struct AckToken {
    link: u64,
    connection: u64,
    /// 0 for QoS 0, which needs no acknowledgement.
    pkid: u16,
}

/// Why a publish was not queued.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The outbox is full; the message is handed back.
    #[error("publish to {topic}: the outbox is full", topic = .0.topic)]
    Full(Box<Publish>),
    /// The packet would be larger than the broker takes.
    #[error("publish to {topic}: packet of {found} bytes, the broker takes at most {allowed}")]
    TooLarge {
        /// Where it was to go.
        topic: String,
        /// Size of the packet, in bytes.
        found: usize,
        /// Largest the broker takes, in bytes.
        allowed: usize,
    },
    /// The message cannot be expressed in MQTT.
    #[error("publish to {topic:?}: {reason}")]
    Invalid {
        /// Where it was to go.
        topic: String,
        /// What is wrong.
        reason: Invalid,
    },
    /// A link with [`LinkConfig::switched`] filters publishes nothing.
    #[error("publish to {topic}: this link only receives")]
    ReceivesOnly {
        /// Where it was to go.
        topic: String,
    },
    /// The link was closed.
    #[error("publish to {topic}: the link is closed")]
    Closed {
        /// Where it was to go.
        topic: String,
    },
}

/// Why an acknowledgement was not queued.
#[derive(Debug, thiserror::Error)]
pub enum AckError {
    /// More acknowledgements wait than messages were delivered; cannot happen to a caller that
    /// acknowledges each message once.
    #[error("acknowledge: {waiting} acknowledgements wait already")]
    Full {
        /// Capacity of the queue.
        waiting: usize,
    },
    /// The message came by another link.
    #[error("acknowledge: the message came by another link")]
    OtherLink,
    /// The link was closed.
    #[error("acknowledge: the link is closed")]
    Closed,
}

/// Why a link did not close cleanly. It is gone all the same.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The broker did not acknowledge everything in time.
    #[error("close: the broker did not acknowledge everything within {0:?}")]
    TimedOut(Duration),
    /// The link had already ended.
    #[error("close: the link had already ended")]
    Ended,
}

/// Totals since the link was spawned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// QoS 0 messages dropped because the inbox was full.
    pub n_dropped: u64,
    /// Messages that cannot be used: empty or non-UTF-8 topic, QoS 2.
    pub n_rejected: u64,
    /// Connections made.
    pub n_connections: u64,
}

/// The sending half of a link. Clones share one session.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Arc<Shared>,
    outbox: mpsc::Sender<Publish>,
    acks: mpsc::Sender<AckToken>,
    close: mpsc::Sender<Close>,
    wanted: watch::Sender<bool>,
    task: AbortHandle,
}

/// What the task and the [`Link`]s both see.
#[derive(Debug, Default)]
struct Shared {
    /// Tells the links of this process apart.
    link: u64,
    /// Nothing is published.
    receives_only: bool,
    /// Number of the connection that serves; 0 before the first.
    connection: AtomicU64,
    /// Largest packet the broker takes; [`PACKET_BYTES_MAX`] until one said otherwise.
    packet_bytes_max: AtomicU32,
    n_dropped: AtomicU64,
    n_rejected: AtomicU64,
}

/// Asks the task to end.
#[derive(Debug)]
struct Close {
    last: Option<Publish>,
    done: oneshot::Sender<()>,
}

/// Starts a link on the current tokio runtime. It ends by [`Link::close`] or when the [`Inbox`] is
/// dropped (the broker then publishes the will).
pub fn spawn(config: LinkConfig) -> (Link, Inbox) {
    let config = config.within_bounds();
    static LINKS: AtomicU64 = AtomicU64::new(1);
    let shared = Arc::new(Shared {
        link: LINKS.fetch_add(1, Ordering::Relaxed),
        receives_only: !config.switched.is_empty(),
        packet_bytes_max: AtomicU32::new(PACKET_BYTES_MAX),
        ..Shared::default()
    });
    // Full: try_publish hands the message back.
    let (outbox, outbox_rx) = mpsc::channel(config.outbox_capacity);
    // Cannot fill: the broker has at most `receive_max` messages unacknowledged.
    let (acks, acks_rx) = mpsc::channel(usize::from(config.receive_max) * 2);
    let (close, close_rx) = mpsc::channel(1);
    let (wanted, wanted_rx) = watch::channel(false);
    let (outlet, inbox) = inbox::inbox(&config);
    let task = connection::Session {
        config,
        shared: shared.clone(),
        outbox: outbox_rx,
        acks: acks_rx,
        close: close_rx,
        wanted: wanted_rx,
        outlet,
        held: None,
        closing: None,
        flights: Default::default(),
        subscribed: false,
    };
    let task = tokio::spawn(task.run()).abort_handle();
    let link = Link {
        shared,
        outbox,
        acks,
        close,
        wanted,
        task,
    };
    (link, inbox)
}

impl Link {
    /// Queues a message. QoS 1 messages are kept until the broker acknowledges them, in order,
    /// across lost connections; QoS 0 messages wait for the connection and are then sent once.
    pub fn try_publish(&self, publish: Publish) -> Result<(), PublishError> {
        let publish = self.check(publish)?;
        self.outbox.try_send(publish).map_err(|error| match error {
            mpsc::error::TrySendError::Full(publish) => PublishError::Full(Box::new(publish)),
            mpsc::error::TrySendError::Closed(publish) => PublishError::Closed {
                topic: publish.topic,
            },
        })
    }

    /// As [`Link::try_publish`], but waits for room. Never call it from the task that reads the
    /// [`Inbox`]: with an unread inbox the link takes no more publishes that carry a token.
    pub async fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        let publish = self.check(publish)?;
        self.outbox
            .send(publish)
            .await
            .map_err(|error| PublishError::Closed {
                topic: error.0.topic,
            })
    }

    fn check(&self, publish: Publish) -> Result<Publish, PublishError> {
        if self.shared.receives_only {
            return Err(PublishError::ReceivesOnly {
                topic: publish.topic,
            });
        }
        if let Err(reason) = publish.check() {
            return Err(PublishError::Invalid {
                topic: publish.topic,
                reason,
            });
        }
        let found = publish.packet_bytes();
        let allowed = self.packet_bytes_max() as usize;
        if found > allowed {
            return Err(PublishError::TooLarge {
                topic: publish.topic,
                found,
                allowed,
            });
        }
        Ok(publish)
    }

    /// Acknowledges a message. Tokens of QoS 0 messages and of earlier connections do nothing: the
    /// broker delivers the latter again.
    pub fn try_ack(&self, ack: AckToken) -> Result<(), AckError> {
        if !self.brought(&ack) {
            return Err(AckError::OtherLink);
        }
        if ack.pkid == 0 || ack.connection != self.shared.connection.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.acks.try_send(ack).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => AckError::Full {
                waiting: self.acks.max_capacity(),
            },
            mpsc::error::TrySendError::Closed(_) => AckError::Closed,
        })
    }

    /// Whether the message of this token came by this link.
    pub fn brought(&self, ack: &AckToken) -> bool {
        ack.link == self.shared.link
    }

    /// Has the [`LinkConfig::switched`] filters subscribed, or not; also on later connections. The
    /// broker's confirmation is [`Inbound::Listening`].
    pub fn listen(&self, on: bool) {
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, on) != on);
    }

    /// Free places in the outbox.
    pub fn free(&self) -> usize {
        self.outbox.capacity()
    }

    /// Largest packet the broker takes, in bytes; [`PACKET_BYTES_MAX`] before the first connection.
    pub fn packet_bytes_max(&self) -> u32 {
        self.shared.packet_bytes_max.load(Ordering::Relaxed)
    }

    /// Totals since [`spawn`].
    pub fn counters(&self) -> Counters {
        Counters {
            n_dropped: self.shared.n_dropped.load(Ordering::Relaxed),
            n_rejected: self.shared.n_rejected.load(Ordering::Relaxed),
            n_connections: self.shared.connection.load(Ordering::Relaxed),
        }
    }

    /// Sends what is queued, then `last`; waits until the broker acknowledged all of it, and
    /// disconnects (the broker then drops the will). `last` is none on a link that only receives. After `limit` the link ends anyhow, and the
    /// broker publishes the will. Other clones can publish no more.
    pub async fn close(self, last: Option<Publish>, limit: Duration) -> Result<(), CloseError> {
        let (done, wait) = oneshot::channel();
        if self.close.try_send(Close { last, done }).is_err() {
            return Err(CloseError::Ended);
        }
        match tokio::time::timeout(limit, wait).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(CloseError::Ended),
            Err(_) => {
                self.task.abort();
                Err(CloseError::TimedOut(limit))
            }
        }
    }
}
