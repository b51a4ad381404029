//! PURE: whether this node takes requests from its pools, and what becomes of one that comes all the same.
//!
//! A shared subscription is a router and no balancer: it deals requests round, and what a busy member was
//! dealt stays with it. So a member leaves while it has enough to do, and returns when it has less:
//!
//! ```text
//!                 waiting >= leave, or something stands against it
//!        ┌────────┐ ───────────────────────────────────────────▶ ┌──────┐
//!        │ taking │                                              │ away │
//!        └────────┘ ◀─────────────────────────────────────────── └──────┘
//!                 waiting <= return and nothing against it, for `settle`
//! ```
//!
//! It leaves at once, since each request dealt to a full node is one that waits for nothing. It returns
//! only after `settle` without interruption, so that it comes back at most once in that time.
//!
//! What arrives while it is away was under way when it left. Up to `leave` more of these are taken: they
//! are here already, and asking again costs more than the short wait. The rest is refused, to be asked
//! again at once: by then this node is out of the group.

use std::fmt;
use std::time::Duration;

/// When to leave and when to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait at which the node leaves; `None`: as many as run side by side.
    pub waiting_max: Option<usize>,
    /// How long there must be room before it returns.
    pub settle: Duration,
    /// The queue's bounds: jobs, and bytes of their bodies. It leaves at three quarters of either and
    /// returns at half.
    pub jobs_max: usize,
    /// See above.
    pub bytes_max: usize,
}

/// What speaks for and against taking more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// The daemon is about to stop.
    pub is_draining: bool,
    /// Requests that run side by side; `None` while no model serves.
    pub n_slots: Option<usize>,
    /// Requests that wait for a slot.
    pub n_waiting: usize,
    /// Accepted requests, waiting, running or about to end.
    pub n_jobs: usize,
    /// Bytes of their bodies.
    pub n_bytes: usize,
    /// The board is short of memory.
    pub is_memory_short: bool,
    /// The job store refused a request a moment ago.
    pub is_store_full: bool,
    /// Messages wait because the broker does not take them.
    pub is_broker_slow: bool,
}

/// Why a node takes nothing from its pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The daemon is about to stop.
    Draining,
    /// No model serves.
    NoModel,
    /// Enough wait already.
    Waiting {
        /// So many.
        found: usize,
        /// It leaves at so many.
        limit: usize,
    },
    /// The queue is nearly full of jobs, or of their bytes.
    QueueNearlyFull,
    /// The board is short of memory.
    MemoryShort,
    /// The job store is full.
    StoreFull,
    /// Answers pile up.
    BrokerSlow,
    /// There is room again, but not for long enough.
    Settling,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => write!(f, "the node is about to stop"),
            Self::NoModel => write!(f, "no model serves"),
            Self::Waiting { found, limit } => {
                let back = limit / 2;
                write!(
                    f,
                    "{found} requests wait: it leaves its pools at {limit} and returns at {back}"
                )
            }
            Self::QueueNearlyFull => write!(f, "the queue is nearly full"),
            Self::MemoryShort => write!(f, "the board is short of memory"),
            Self::StoreFull => write!(f, "the job store is full"),
            Self::BrokerSlow => write!(f, "the broker takes answers too slowly"),
            Self::Settling => write!(f, "there is room again; it returns in a moment"),
        }
    }
}

/// Where the node stands. Begins away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// It takes requests.
    pub is_taking: bool,
    /// While away: since when there has been room, on the caller's clock.
    calm_since: Option<Duration>,
}

/// What [`step`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The new state.
    pub state: State,
    /// What stands against taking; `None` exactly when it takes.
    pub obstacle: Option<Obstacle>,
    /// When to look again even if nothing changes.
    pub look_at: Option<Duration>,
}

impl Limits {
    /// Requests that wait at which a node with so many slots leaves; at least one.
    fn leave(&self, n_slots: usize) -> usize {
        self.waiting_max.unwrap_or(n_slots).max(1)
    }

    /// What keeps a node away that takes (`is_taking`), or would keep one away that wants to return.
    fn obstacle(&self, load: &Load, is_taking: bool) -> Option<Obstacle> {
        if load.is_draining {
            return Some(Obstacle::Draining);
        }
        let Some(n_slots) = load.n_slots else {
            return Some(Obstacle::NoModel);
        };
        if load.is_memory_short {
            return Some(Obstacle::MemoryShort);
        }
        if load.is_store_full {
            return Some(Obstacle::StoreFull);
        }
        if load.is_broker_slow {
            return Some(Obstacle::BrokerSlow);
        }
        let limit = self.leave(n_slots);
        let (waiting_room, quarters) = match is_taking {
            true => (load.n_waiting < limit, 3),
            false => (load.n_waiting <= limit / 2, 2),
        };
        if !waiting_room {
            let found = load.n_waiting;
            return Some(Obstacle::Waiting { found, limit });
        }
        // In u128: the products of any two sizes fit.
        let is_below = |found: usize, max: usize| (found as u128) * 4 < (max as u128) * quarters;
        let is_roomy =
            is_below(load.n_jobs, self.jobs_max) && is_below(load.n_bytes, self.bytes_max);
        (!is_roomy).then_some(Obstacle::QueueNearlyFull)
    }

    /// Whether a request that was dealt to this node is taken, though it may have left; otherwise why
    /// not. To be asked only about requests that this node does not know.
    ///
    /// # Errors
    /// What stands against it. The request can be asked again at once.
    pub fn admit(&self, load: &Load) -> Result<(), Obstacle> {
        if load.is_draining {
            return Err(Obstacle::Draining);
        }
        let n_slots = load.n_slots.ok_or(Obstacle::NoModel)?;
        if load.is_memory_short {
            return Err(Obstacle::MemoryShort);
        }
        let limit = self.leave(n_slots);
        match load.n_waiting < limit.saturating_mul(2) {
            true => Ok(()),
            false => Err(Obstacle::Waiting {
                found: load.n_waiting,
                limit,
            }),
        }
    }
}

/// The state after this moment. `now` is any clock that does not go back.
pub fn step(state: State, load: &Load, limits: &Limits, now: Duration) -> Step {
    let obstacle = limits.obstacle(load, state.is_taking);
    if state.is_taking && obstacle.is_none() {
        return Step {
            state,
            obstacle: None,
            look_at: None,
        };
    }
    if obstacle.is_some() {
        return Step {
            state: State::default(),
            obstacle,
            look_at: None,
        };
    }
    let since = state.calm_since.unwrap_or(now);
    let until = since + limits.settle;
    if now >= until {
        let state = State {
            is_taking: true,
            calm_since: None,
        };
        return Step {
            state,
            obstacle: None,
            look_at: None,
        };
    }
    Step {
        state: State {
            is_taking: false,
            calm_since: Some(since),
        },
        obstacle: Some(Obstacle::Settling),
        look_at: Some(until),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTLE: Duration = Duration::from_millis(500);
    const LIMITS: Limits = Limits {
        waiting_max: None,
        settle: SETTLE,
        jobs_max: 100,
        bytes_max: 1000,
    };
    const IDLE: Load = Load {
        is_draining: false,
        n_slots: Some(4),
        n_waiting: 0,
        n_jobs: 0,
        n_bytes: 0,
        is_memory_short: false,
        is_store_full: false,
        is_broker_slow: false,
    };

    fn waiting(n_waiting: usize) -> Load {
        Load { n_waiting, ..IDLE }
    }

    /// Steps through loads that last a while each; whether it takes, after each.
    fn play(limits: &Limits, loads: &[(Load, u64)]) -> Vec<bool> {
        let (mut state, mut now) = (State::default(), Duration::ZERO);
        let mut taking = Vec::new();
        for (load, ms) in loads {
            state = step(state, load, limits, now).state;
            taking.push(state.is_taking);
            now += Duration::from_millis(*ms);
        }
        taking
    }

    #[test]
    fn it_leaves_when_as_many_wait_as_run_and_returns_when_half_of_them_are_gone() {
        let loads = [
            (IDLE, 500),
            (IDLE, 0),       // settled: takes
            (waiting(3), 0), // below the limit
            (waiting(4), 0), // leaves
            (waiting(3), 1000),
            (waiting(3), 0), // more than half: stays away, however long
            (waiting(2), 499),
            (waiting(2), 1), // not settled yet
            (waiting(2), 0), // returns
        ];
        assert_eq!(
            play(&LIMITS, &loads),
            [false, true, true, false, false, false, false, false, true]
        );
    }

    #[test]
    fn one_slot_leaves_with_one_that_waits() {
        let one = |n_waiting| Load {
            n_slots: Some(1),
            n_waiting,
            ..IDLE
        };
        let loads = [
            (one(0), 500),
            (one(0), 0),
            (one(1), 500),
            (one(0), 500),
            (one(0), 0),
        ];
        assert_eq!(play(&LIMITS, &loads), [false, true, false, false, true]);
    }

    #[test]
    fn every_obstacle_ends_it_at_once_and_says_why() {
        let taking = State {
            is_taking: true,
            calm_since: None,
        };
        let cases = [
            (
                Load {
                    is_draining: true,
                    ..IDLE
                },
                Obstacle::Draining,
            ),
            (
                Load {
                    n_slots: None,
                    ..IDLE
                },
                Obstacle::NoModel,
            ),
            (waiting(9), Obstacle::Waiting { found: 9, limit: 4 }),
            (Load { n_jobs: 75, ..IDLE }, Obstacle::QueueNearlyFull),
            (
                Load {
                    n_bytes: 750,
                    ..IDLE
                },
                Obstacle::QueueNearlyFull,
            ),
            (
                Load {
                    is_memory_short: true,
                    ..IDLE
                },
                Obstacle::MemoryShort,
            ),
            (
                Load {
                    is_store_full: true,
                    ..IDLE
                },
                Obstacle::StoreFull,
            ),
            (
                Load {
                    is_broker_slow: true,
                    ..IDLE
                },
                Obstacle::BrokerSlow,
            ),
        ];
        for (load, obstacle) in cases {
            let step = step(taking, &load, &LIMITS, Duration::ZERO);
            assert_eq!(
                (step.state.is_taking, step.obstacle),
                (false, Some(obstacle))
            );
        }
    }

    #[test]
    fn what_was_under_way_is_taken_up_to_twice_the_limit() {
        assert_eq!(LIMITS.admit(&waiting(7)), Ok(()));
        let full = Obstacle::Waiting { found: 8, limit: 4 };
        assert_eq!(LIMITS.admit(&waiting(8)), Err(full));
        let down = Load {
            n_slots: None,
            ..IDLE
        };
        assert_eq!(LIMITS.admit(&down), Err(Obstacle::NoModel));
        let draining = Load {
            is_draining: true,
            ..IDLE
        };
        assert_eq!(LIMITS.admit(&draining), Err(Obstacle::Draining));
    }

    fn rarely() -> impl Strategy<Value = bool> {
        proptest::bool::weighted(0.1)
    }

    prop_compose! {
        fn load()(
            is_draining in rarely(), is_down in rarely(), n_slots in 1_usize..9,
            n_waiting in 0_usize..20, n_jobs in 0_usize..110, n_bytes in 0_usize..1100,
            is_memory_short in rarely(), is_store_full in rarely(), is_broker_slow in rarely(),
        ) -> Load {
            let n_slots = Some(n_slots).filter(|_| !is_down);
            Load { is_draining, n_slots, n_waiting, n_jobs, n_bytes, is_memory_short, is_store_full, is_broker_slow }
        }
    }

    fn limits() -> impl Strategy<Value = Limits> {
        (proptest::option::of(1_usize..12), 0_u64..2000).prop_map(|(waiting_max, ms)| Limits {
            waiting_max,
            settle: Duration::from_millis(ms),
            ..LIMITS
        })
    }

    proptest! {
        #[test]
        fn it_never_flaps_never_takes_against_an_obstacle_and_always_returns(
            limits in limits(),
            loads in prop::collection::vec((load(), 0_u64..700), 1..80),
        ) {
            let (mut state, mut now) = (State::default(), Duration::ZERO);
            let mut left_at = None;
            for (load, ms) in &loads {
                let was_taking = state.is_taking;
                let found = step(state, load, &limits, now);
                state = found.state;
                prop_assert_eq!(state.is_taking, found.obstacle.is_none());
                if state.is_taking {
                    prop_assert!(!load.is_draining && load.n_slots.is_some());
                    prop_assert!(load.n_waiting < limits.leave(load.n_slots.unwrap()));
                    prop_assert!(load.n_jobs < limits.jobs_max && load.n_bytes < limits.bytes_max);
                    // Who takes also admits: nothing is dealt to it only to be refused.
                    prop_assert_eq!(limits.admit(load), Ok(()));
                }
                if was_taking && !state.is_taking {
                    left_at = Some(now);
                }
                if !was_taking && state.is_taking {
                    prop_assert!(left_at.is_none_or(|left| now - left >= limits.settle), "it flaps");
                }
                // A wake that never comes would keep it away for ever.
                prop_assert_eq!(found.look_at.is_some(), found.obstacle == Some(Obstacle::Settling));
                if let Some(at) = found.look_at {
                    prop_assert!(at > now && at <= now + limits.settle);
                }
                now += Duration::from_millis(*ms);
            }
            // With nothing to do it returns by its own wake-up, whatever went before.
            let wake = step(state, &IDLE, &limits, now);
            let last = step(wake.state, &IDLE, &limits, wake.look_at.unwrap_or(now));
            prop_assert!(last.state.is_taking);
        }
    }
}
