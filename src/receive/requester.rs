//! PURE: what a requester does so that its question is answered once: asks, asks again, follows one node,
//! calls the others off, and turns to another when its node is gone.
//!
//! ```text
//!            accepted (or any answer)                      final
//!   asking ──────────────────────────▶ following one node ───────▶ ended
//!     ▲ every 2 s, a little less often    │
//!     │ each time; after a refusal when   │ its last will said `offline` for 3 s, or it says nothing
//!     │ that says so                      │ for 10 s and does not answer a repeat within 4 s
//!     └───────────────────────────────────┘
//! ```
//!
//! Feed it with every message of the answer's topic ([`Requester::hear`]), with what nodes say of their
//! presence ([`Requester::presence`]) and with the time; do what [`Requester::poll`] says. All times are
//! those of one clock of the caller's that does not go back.
//!
//! A request to a node is the simple case: there is nobody to turn to, and each refusal is the end.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{HearError, Heard, Receiver};
use crate::wire::error::{ApiError, Code};
use crate::wire::report::Presence;
use crate::wire::topic::Name;

/// Without `accepted` the request is published again after this time ...
const ACCEPT_WAIT: Duration = Duration::from_secs(2);
/// ... and later each time by half, up to this.
const ACCEPT_WAIT_MAX: Duration = Duration::from_secs(5);
/// After a refusal: at least this, doubled with each further one in a row.
const REFUSED_WAIT: Duration = Duration::from_millis(100);
/// The longest wait that a node may ask for.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(30);
/// A node that is said to be offline may come back within this time: a lost connection, a quick restart.
const OFFLINE_GRACE: Duration = Duration::from_secs(3);
/// A node that says nothing for this long is asked whether it has the request.
const SILENCE: Duration = Duration::from_secs(10);
/// And is given up when it does not answer in this time.
const PROBE_WAIT: Duration = Duration::from_secs(4);
/// Nodes of which something is remembered.
const NODES_MAX: usize = 64;

/// Something to publish, with QoS 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The request, with its id and body, to where it was asked first: the pool, or the node.
    Ask,
    /// The same to this node's own topic.
    AskNode(Name),
    /// A cancel to where it was asked first.
    Cancel,
    /// A cancel to this node's own topic: it answers to nobody.
    CancelAt(Name),
}

/// One question until its answer has ended.
#[derive(Debug)]
pub struct Requester {
    receiver: Receiver,
    is_of_pool: bool,
    actions: VecDeque<Action>,
    /// While asking: when to ask next, and how long after that.
    ask_at: Duration,
    pause: Duration,
    n_refused: u32,
    refusal: Option<ApiError>,
    /// While following: the last sign of life, an unanswered question for one, and since when the node
    /// is said to be offline.
    heard_at: Duration,
    probed_at: Option<Duration>,
    offline_since: Option<Duration>,
    /// Messages of this answer are missing; a repeat brings them once it has ended.
    is_torn: bool,
    is_called_off: bool,
    offline: BTreeSet<Name>,
    /// Nodes that took the request, are not followed and were told so. What they still know of it may
    /// be that they were, and such a `cancelled` is no answer; once they have forgotten it they are as
    /// good as any.
    told: BTreeSet<Name>,
    /// The node that was given up, to be told when another takes over.
    given_up: Option<Name>,
}

impl Requester {
    /// A question to a pool. The first thing to do is [`Action::Ask`].
    pub fn of_pool(now: Duration) -> Self {
        Self::new(Receiver::of_pool(), true, now)
    }

    /// A question to one node.
    pub fn of_node(now: Duration) -> Self {
        Self::new(Receiver::default(), false, now)
    }

    fn new(receiver: Receiver, is_of_pool: bool, now: Duration) -> Self {
        Self {
            receiver,
            is_of_pool,
            actions: VecDeque::new(),
            ask_at: now,
            pause: ACCEPT_WAIT,
            n_refused: 0,
            refusal: None,
            heard_at: now,
            probed_at: None,
            offline_since: None,
            is_torn: false,
            is_called_off: false,
            offline: BTreeSet::new(),
            told: BTreeSet::new(),
            given_up: None,
        }
    }

    /// The answer so far.
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    /// The latest refusal, while nobody has taken the request.
    pub fn refusal(&self) -> Option<&ApiError> {
        self.refusal.as_ref()
    }

    /// The next thing to do now; to be asked until it says none.
    pub fn poll(&mut self, now: Duration) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        if self.receiver.end().is_some() || self.is_called_off {
            return None;
        }
        let Some(node) = self.receiver.node().cloned() else {
            if now < self.ask_at {
                return None;
            }
            self.ask_at = now + self.pause;
            self.pause = (self.pause * 3 / 2).min(ACCEPT_WAIT_MAX);
            return Some(Action::Ask);
        };
        if self.is_gone(now) {
            if self.told.contains(&node) {
                self.receiver.void();
            } else {
                self.receiver.release();
                self.given_up = Some(node);
            }
            self.ask_again(now);
            return self.poll(now);
        }
        if self.probe_at().is_some_and(|at| at <= now) {
            self.probed_at = Some(now);
            return Some(Action::AskNode(node));
        }
        None
    }

    /// When to ask [`Self::poll`] again, if nothing is heard before.
    pub fn wake(&self) -> Option<Duration> {
        if !self.actions.is_empty() {
            return Some(Duration::ZERO);
        }
        if self.receiver.end().is_some() || self.is_called_off {
            return None;
        }
        if self.receiver.node().is_none() {
            return Some(self.ask_at);
        }
        let times = [self.gone_at(), self.probe_at()];
        times.into_iter().flatten().min()
    }

    /// Takes the next message of the answer's topic. What is missing is asked for again, so a gap is
    /// no error here: its messages count as repeats.
    ///
    /// # Errors
    /// A message that breaks the contract.
    pub fn hear(&mut self, payload: &[u8], now: Duration) -> Result<Heard, HearError> {
        let was_following = self.receiver.node().is_some();
        let heard = match self.receiver.hear(payload) {
            Err(HearError::Gap { .. }) => {
                return Ok(match self.receiver.node().cloned() {
                    // The rest of what it was told to leave.
                    Some(node) if self.told.contains(&node) => self.void(&node, now),
                    Some(_) => {
                        self.is_torn = true;
                        self.alive(now);
                        Heard::Repeat
                    }
                    None => Heard::Repeat,
                });
            }
            heard => heard?,
        };
        if let Some(node) = self.receiver.node().cloned()
            && heard == Heard::End
            && self.is_void(&node)
        {
            return Ok(self.void(&node, now));
        }
        match &heard {
            Heard::Refused(error) => self.refused(error, now),
            Heard::OtherNode {
                node,
                is_first,
                is_final,
            } => {
                if *is_first || !(*is_final || self.told.contains(node)) {
                    self.tell(node.clone());
                }
            }
            Heard::Repeat => self.alive(now),
            Heard::Accepted | Heard::StartedOver | Heard::Text { .. } | Heard::End => {
                self.is_torn = false;
                self.refusal = None;
                self.alive(now);
            }
        }
        if !was_following && let Some(node) = self.receiver.node().cloned() {
            self.follow(node, now);
        }
        Ok(heard)
    }

    /// What a node says of itself on its status topic.
    pub fn presence(&mut self, node: &Name, presence: Presence, now: Duration) {
        let is_offline = presence == Presence::Offline;
        if is_offline && self.offline.len() < NODES_MAX {
            self.offline.insert(node.clone());
        } else if !is_offline {
            self.offline.remove(node);
        }
        if self.receiver.node() == Some(node) {
            self.offline_since = is_offline.then(|| self.offline_since.unwrap_or(now));
        }
    }

    /// The session with the broker was lost, and maybe messages with it: whoever has the request is
    /// asked to say again what it said.
    pub fn session_lost(&mut self, now: Duration) {
        match self.receiver.node().cloned() {
            Some(node) => {
                self.probed_at = Some(now);
                self.actions.push_back(Action::AskNode(node));
            }
            None => self.ask_again(now),
        }
    }

    /// The answer is not wanted any more. It still ends, as `cancelled`, where a node has it.
    pub fn cancel(&mut self) {
        if !std::mem::replace(&mut self.is_called_off, true) {
            self.actions.push_back(match self.receiver.node() {
                Some(node) => Action::CancelAt(node.clone()),
                None => Action::Cancel,
            });
        }
    }

    /// This node is the one whose answer counts.
    fn follow(&mut self, node: Name, now: Duration) {
        self.offline_since = self.offline.contains(&node).then_some(now);
        // A node that was told may only be about to say `cancelled` once more.
        if !self.told.contains(&node)
            && let Some(old) = self.given_up.take().filter(|old| *old != node)
        {
            // It may come back and go on with it.
            self.tell(old);
        }
        if self.is_called_off && self.receiver.end().is_none() {
            // It took the request after the cancel.
            self.actions.push_back(Action::CancelAt(node));
        }
    }

    /// That it works for nothing.
    fn tell(&mut self, node: Name) {
        if self.told.len() < NODES_MAX || self.told.contains(&node) {
            self.told.insert(node.clone());
            self.actions.push_back(Action::CancelAt(node));
        }
    }

    /// Whether the end is the `cancelled` that we asked a node for when another one was followed.
    fn is_void(&self, node: &Name) -> bool {
        let is_cancelled = match self.receiver.end().map(|end| &end.outcome) {
            Some(Ok(finished)) => finished.finish_reason == "cancelled",
            Some(Err(error)) => error.code == Code::Cancelled,
            None => false,
        };
        is_cancelled && !self.is_called_off && self.told.contains(node)
    }

    /// A node that was told has nothing for us but what it had before; it will forget that.
    fn void(&mut self, node: &Name, now: Duration) -> Heard {
        let text = format!("node {node} was told before not to answer");
        let error = ApiError::new(Code::Cancelled, text);
        self.receiver.void();
        self.refused(&error, now);
        Heard::Refused(error)
    }

    fn refused(&mut self, error: &ApiError, now: Duration) {
        let wanted = Duration::from_millis(error.retry_after_ms.unwrap_or(0));
        let least = REFUSED_WAIT * 2_u32.pow(self.n_refused.min(5));
        self.n_refused += 1;
        self.ask_at = now + wanted.max(least).min(REFUSED_WAIT_MAX);
        self.refusal = Some(error.clone());
    }

    fn ask_again(&mut self, now: Duration) {
        self.ask_at = now;
        self.pause = ACCEPT_WAIT;
        self.n_refused = 0;
    }

    fn alive(&mut self, now: Duration) {
        self.heard_at = now;
        self.probed_at = None;
    }

    /// When the node that is followed counts as gone; never for a question to one node.
    fn gone_at(&self) -> Option<Duration> {
        if !self.is_of_pool {
            return None;
        }
        let offline = self
            .offline_since
            .map(|since| since.max(self.heard_at) + OFFLINE_GRACE);
        let silent = self.probed_at.map(|at| at + PROBE_WAIT);
        offline.into_iter().chain(silent).min()
    }

    fn is_gone(&self, now: Duration) -> bool {
        self.gone_at().is_some_and(|at| at <= now)
    }

    /// When the node is to be asked whether it has the request.
    fn probe_at(&self) -> Option<Duration> {
        match self.probed_at {
            // In a pool it is given up instead.
            Some(at) => (!self.is_of_pool).then_some(at + SILENCE),
            None if self.is_torn => Some(self.heard_at + ACCEPT_WAIT),
            None => Some(self.heard_at + SILENCE),
        }
    }
}

#[cfg(test)]
mod tests;
