//! A link as tests use it: impatient, and read event by event.

#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    reason = "each test program uses a part"
)]

use std::time::Duration;

use orinoco::link::{self, Inbound, Inbox, LinkConfig, Message, Publish};
use tokio::time::timeout;

/// Longest wait of a test for something that must come.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Long enough for loopback to stay quiet, short enough for a test.
pub const QUIET: Duration = Duration::from_millis(300);

/// Reconnects at once. A machine that pauses is no silent broker: who tests that takes [`impatient`].
pub fn config(port: u16, client_id: &str) -> LinkConfig {
    LinkConfig {
        backoff_min: Duration::from_millis(10),
        backoff_max: Duration::from_millis(50),
        stall: Duration::from_secs(5),
        ..LinkConfig::new("127.0.0.1", port, client_id)
    }
}

/// Leaves a broker that is silent for half a second.
pub fn impatient(port: u16, client_id: &str) -> LinkConfig {
    LinkConfig {
        stall: Duration::from_millis(500),
        ..config(port, client_id)
    }
}

/// A QoS 1 message.
pub fn message(topic: &str, payload: impl Into<String>) -> Publish {
    let payload = payload.into().into();
    Publish {
        topic: topic.into(),
        payload,
        at_least_once: true,
        ..Publish::default()
    }
}

/// Why a connection was refused or ended.
pub async fn refusal(config: LinkConfig) -> String {
    let (_link, mut inbox) = link::spawn(config);
    match next(&mut inbox).await {
        Inbound::Down { reason, .. } => reason,
        other => panic!("expected a refusal, found {other:?}"),
    }
}

pub async fn next(inbox: &mut Inbox) -> Inbound {
    timeout(LIMIT, inbox.recv())
        .await
        .expect("an event comes in time")
        .expect("the link lives")
}

/// The next event of a kind, others skipped.
macro_rules! wait_for {
    ($inbox:expr, $pattern:pat) => {
        while !matches!(client::next($inbox).await, $pattern) {}
    };
    ($inbox:expr, $pattern:pat => $value:expr) => {
        loop {
            if let $pattern = client::next($inbox).await {
                break $value;
            }
        }
    };
}
pub(crate) use wait_for;

/// Waits for the connection; whether the broker kept the session.
pub async fn up(inbox: &mut Inbox) -> bool {
    loop {
        if let Inbound::Up {
            session_present, ..
        } = next(inbox).await
        {
            return session_present;
        }
    }
}

/// The next message.
pub async fn received(inbox: &mut Inbox) -> Message {
    loop {
        if let Inbound::Message(message) = next(inbox).await {
            return message;
        }
    }
}

/// Whether no message comes for a while; other events do not count.
pub async fn nothing_received(inbox: &mut Inbox) -> bool {
    let message = async { while !matches!(inbox.recv().await, Some(Inbound::Message(_))) {} };
    timeout(QUIET, message).await.is_err()
}
