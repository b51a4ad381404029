//! This node's part in its pools: its own link for what the broker deals it, and when it takes part.
//!
//! Owns that link and the state of the policy (`policy`, which decides). Pools have a session of their own
//! because theirs must be a clean one: what a member was dealt and never took is the requester's to ask
//! again, while the node's own session keeps its requests for a day. Answers leave by the node's link.
//!
//! The broker is told by leaving and joining the shared subscription; everybody else by `state`.

pub mod policy;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{BACKLOG_MAX, Dispatch, earliest};
use crate::link::{AckToken, Inbound, Link, Message};
use crate::wire::error::{ApiError, Code};
use crate::wire::report;
use policy::{Load, Obstacle, State};

/// A request that came too late is refused with this time to ask again: the broker knows by then that
/// this node has left.
const RETRY_AFTER_MS: u64 = 100;
/// A full job store is not asked by pools again before this time has passed.
const STORE_PAUSE: std::time::Duration = std::time::Duration::from_secs(10);
/// Messages that may wait for the broker before it counts as slow.
const SLOW_BACKLOG: usize = BACKLOG_MAX / 16;

/// The pools of a node that is in some.
pub(super) struct Pools {
    link: Link,
    started: Instant,
    state: State,
    obstacle: Option<Obstacle>,
    is_up: bool,
    /// The broker confirmed it.
    is_listening: bool,
    /// Filters that it refused, with its reasons, on this connection.
    refused: Vec<String>,
    store_full_until: Option<Instant>,
    said: report::PoolIntake,
}

impl Pools {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link,
            started: Instant::now(),
            state: State::default(),
            obstacle: Some(Obstacle::NoModel),
            is_up: false,
            is_listening: false,
            refused: Vec::new(),
            store_full_until: None,
            said: report::PoolIntake::default(),
        }
    }

    /// Whether the broker may deal this node more.
    pub(super) fn is_listening(&self) -> bool {
        self.is_listening
    }

    /// The job store had no room.
    pub(super) fn store_was_full(&mut self) {
        self.store_full_until = Some(Instant::now() + STORE_PAUSE);
    }

    /// What `state` says.
    pub(super) fn report(&self) -> report::PoolIntake {
        self.said.clone()
    }

    /// What it would say now; `None` while the broker's word is awaited.
    fn to_say(&self) -> Option<report::PoolIntake> {
        let mut reasons = self.refused.clone();
        if !self.is_up {
            reasons.push("the session for pools has no connection".to_owned());
        }
        reasons.extend(self.obstacle.map(|obstacle| obstacle.to_string()));
        if self.is_listening && self.obstacle.is_none() {
            return Some(report::PoolIntake {
                taking: true,
                reasons,
            });
        }
        (!reasons.is_empty()).then_some(report::PoolIntake {
            taking: false,
            reasons,
        })
    }
}

impl Dispatch {
    /// Whether the message of this token was dealt by a pool.
    pub(super) fn is_of_pool(&self, ack: &AckToken) -> bool {
        self.pools
            .as_ref()
            .is_some_and(|pools| pools.link.brought(ack))
    }

    /// Acknowledges on the link that the message came by.
    pub(super) fn link_of(&self, ack: &AckToken) -> &Link {
        match &self.pools {
            Some(pools) if pools.link.brought(ack) => &pools.link,
            _ => &self.link,
        }
    }

    /// A link lost its connection: what came by it and waits cannot be acknowledged any more.
    pub(super) fn forget_waiting(&mut self, of_pool: bool) {
        let waiting = std::mem::take(&mut self.waiting);
        let is_kept = |message: &Message| self.is_of_pool(&message.ack) != of_pool;
        self.waiting = waiting.into_iter().filter(is_kept).collect();
    }

    pub(super) fn on_pool_inbound(&mut self, inbound: Inbound) {
        if let Inbound::Down { .. } = inbound {
            self.forget_waiting(true);
        }
        let Some(pools) = &mut self.pools else {
            return;
        };
        match inbound {
            Inbound::Up { .. } => {
                pools.is_up = true;
                pools.refused.clear();
            }
            Inbound::Down { reason, taken_over } => {
                (pools.is_up, pools.is_listening) = (false, false);
                if taken_over {
                    error!(
                        reason,
                        "another daemon takes this node's place in its pools: give each its own node.name"
                    );
                } else {
                    warn!(reason, "the connection for pools is lost");
                }
            }
            Inbound::Listening { on } => {
                pools.is_listening = on;
                info!(on, "pools");
            }
            Inbound::SubscribeRefused { filter, reason } => {
                error!(
                    filter,
                    reason, "the broker refused a subscription for pools; check its ACL"
                );
                pools
                    .refused
                    .push(format!("the broker refused {filter}: {reason}"));
            }
            Inbound::Message(message) => self.on_message(message),
            // Nothing is published by that link.
            Inbound::Delivered { .. } | Inbound::Undelivered { .. } => {}
        }
    }

    /// Joins or leaves as the policy says; says when to look again.
    pub(super) fn steer_pools(&mut self, now: Instant) -> Option<Instant> {
        let load = self.load(now);
        let pools = self.pools.as_mut()?;
        let step = policy::step(
            pools.state,
            &load,
            &self.settings.pools,
            now - pools.started,
        );
        if pools.state.is_taking != step.state.is_taking {
            pools.link.listen(step.state.is_taking);
        }
        (pools.state, pools.obstacle) = (step.state, step.obstacle);
        let is_other = |said: &report::PoolIntake| {
            // A number in a reason is no news.
            said.taking != pools.said.taking || said.reasons.len() != pools.said.reasons.len()
        };
        if let Some(said) = pools.to_say().filter(is_other) {
            pools.said = said;
            self.node.state_changed();
        }
        let pools = self.pools.as_ref()?;
        earliest(
            step.look_at.map(|at| pools.started + at),
            pools.store_full_until.filter(|until| *until > now),
        )
    }

    fn load(&self, now: Instant) -> Load {
        let store_full_until = self.pools.as_ref().and_then(|pools| pools.store_full_until);
        Load {
            is_draining: self.draining.is_some(),
            n_slots: self.node.slots_soon(),
            n_waiting: self.queue.waiting(),
            n_jobs: self.jobs.len(),
            n_bytes: self.queued_bytes,
            is_memory_short: !self.level.admits(),
            is_store_full: store_full_until.is_some_and(|until| until > now),
            is_broker_slow: self.backlog.len() >= SLOW_BACKLOG,
        }
    }

    /// Why a request that a pool dealt to this node, which does not know it, is not taken.
    pub(super) fn pool_refusal(&self) -> Option<ApiError> {
        let load = self.load(Instant::now());
        let obstacle = self.settings.pools.admit(&load).err()?;
        let code = match obstacle {
            Obstacle::Draining => Code::Draining,
            Obstacle::NoModel => Code::ModelLoading,
            Obstacle::MemoryShort => Code::OutOfMemory,
            _ => Code::QueueFull,
        };
        let text = format!("{obstacle}: ask the pool again");
        Some(ApiError::new(code, text).with_retry(RETRY_AFTER_MS))
    }
}
