//! The way from the poll future to the reader: bounded, and never waited for.
//!
//! QoS 1 messages always find room: the broker has at most `receive_max` of them unacknowledged, and
//! a link connects only when that many places are free. Reports do too: their number is bounded by
//! what was handed over. QoS 0 messages take what is left, and are dropped when nothing is.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::{Inbound, LinkConfig};

/// Places for Up, Down and their like, besides one for each subscription.
const REPORTS: usize = 16;

/// The receiving half of a link.
#[derive(Debug)]
pub struct Inbox {
    receiver: mpsc::Receiver<Inbound>,
    taken: Arc<Notify>,
}

impl Inbox {
    /// The next event; None after [`super::Link::close`]. Cancel safe.
    pub async fn recv(&mut self) -> Option<Inbound> {
        let inbound = self.receiver.recv().await;
        self.taken.notify_one();
        inbound
    }

    /// The next event, if one is there.
    pub fn try_recv(&mut self) -> Option<Inbound> {
        let inbound = self.receiver.try_recv().ok();
        self.taken.notify_one();
        inbound
    }
}

/// No room: where room was certain, the reader is gone.
#[derive(Debug)]
pub(super) struct NoRoom;

/// The sending half, owned by the task.
#[derive(Debug)]
pub(super) struct Outlet {
    sender: mpsc::Sender<Inbound>,
    taken: Arc<Notify>,
    receive_max: usize,
    reports: usize,
}

pub(super) fn inbox(config: &LinkConfig) -> (Outlet, Inbox) {
    let receive_max = usize::from(config.receive_max);
    let reports = REPORTS + config.subscriptions.len() + config.switched.len();
    let certain = receive_max + reports + usize::from(config.inflight);
    let (sender, receiver) = mpsc::channel(certain + config.inbound_capacity);
    let taken = Arc::new(Notify::new());
    (
        Outlet {
            sender,
            taken: taken.clone(),
            receive_max,
            reports,
        },
        Inbox { receiver, taken },
    )
}

impl Outlet {
    /// A report or a QoS 1 message.
    pub(super) fn send(&self, inbound: Inbound) -> Result<(), NoRoom> {
        self.sender.try_send(inbound).map_err(|_| NoRoom)
    }

    /// A QoS 0 message; dropped when it would take a place that is kept for the others.
    pub(super) fn send_droppable(&self, inbound: Inbound, inflight: u16) -> Result<(), NoRoom> {
        if self.sender.capacity() <= self.receive_max + self.reports + usize::from(inflight) {
            return Err(NoRoom);
        }
        self.send(inbound)
    }

    /// Whether a reply to one more publish is certain to find room.
    pub(super) fn room_for_reply(&self, n_replies_owed: usize) -> bool {
        self.sender.capacity() > self.receive_max + self.reports + n_replies_owed
    }

    /// Waits until the reader has taken enough for another connection to begin.
    pub(super) async fn room_for_connection(&self, n_replies_owed: usize) {
        while self.sender.capacity() < self.receive_max + self.reports + n_replies_owed {
            self.taken.notified().await;
        }
    }

    /// Waits until the reader takes something.
    pub(super) async fn taken(&self) {
        self.taken.notified().await;
    }

    /// Waits until the reader is gone.
    pub(super) async fn closed(&self) {
        self.sender.closed().await;
    }
}
