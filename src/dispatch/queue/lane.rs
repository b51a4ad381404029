//! PURE: whose turn it is among the users of one class.
//!
//! Each user has a *tag*, which a turn moves on by a stride: the shorter, the greater its weight. The lowest
//! tag is next, so that of two users who both have jobs waiting one gets as many more turns as its weight says.
//! Who comes with nothing waiting starts at the tag that was served last: quiet users save nothing up, and are
//! next all the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::Order;
use crate::frames::JobKey;
use crate::wire::topic::Name;

/// What a turn of a user of weight 1 moves its tag on.
const STRIDE: u64 = 1 << 20;

/// A job's place among those of its user.
pub(super) type Seat = (Order, JobKey);

/// What waits in one class.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// What ran and waits again: before all that never did.
    begun: BTreeSet<Seat>,
    /// Users with a job that waits here and never ran, and those who had one lately.
    users: BTreeMap<Name, User>,
    /// The tag that was served last.
    now: u64,
    /// Rises with each turn.
    n_turns: u64,
    n_fresh: usize,
}

#[derive(Debug)]
struct User {
    fresh: BTreeSet<Seat>,
    stride: u64,
    turn: Turn,
}

/// When a user's next turn is: the lowest tag goes first, of equals who had its last turn longest ago.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    tag: u64,
    last: u64,
}

impl Lane {
    pub(super) fn waiting(&self) -> usize {
        self.begun.len() + self.n_fresh
    }

    /// A job that never ran. `weight` is its user's from now on, at least 1.
    pub(super) fn push(&mut self, seat: Seat, user: &Name, weight: u32) {
        let now = self.now;
        let user = self.users.entry(user.clone()).or_insert_with(|| User {
            fresh: BTreeSet::new(),
            stride: STRIDE,
            turn: Turn::default(),
        });
        user.stride = STRIDE / u64::from(weight.max(1));
        if user.fresh.is_empty() {
            user.turn.tag = user.turn.tag.max(now);
        }
        self.n_fresh += usize::from(user.fresh.insert(seat));
    }

    /// A job that ran, and is to run again.
    pub(super) fn push_begun(&mut self, seat: Seat) {
        self.begun.insert(seat);
    }

    /// A job that ran and gave its place to another user's: it waits before its user's others, which has the turn
    /// back.
    pub(super) fn push_returned(&mut self, seat: Seat, user: &Name, weight: u32) {
        self.push(seat, user, weight);
        if let Some(user) = self.users.get_mut(user) {
            user.turn.tag = user.turn.tag.saturating_sub(user.stride);
        }
    }

    /// A job leaves without a turn.
    pub(super) fn remove(&mut self, seat: Seat, user: &Name) {
        if self.begun.remove(&seat) {
            return;
        }
        if let Some(user) = self.users.get_mut(user) {
            self.n_fresh -= usize::from(user.fresh.remove(&seat));
        }
        self.forget_idle();
    }

    /// A job leaves by its user's turn; what the turn was. `None`: it ran before, and that was its turn.
    pub(super) fn enter(&mut self, seat: Seat, user: &Name) -> Option<Turn> {
        if self.begun.remove(&seat) {
            return None;
        }
        let user = self.users.get_mut(user)?;
        self.n_fresh -= usize::from(user.fresh.remove(&seat));
        self.n_turns += 1;
        self.now = self.now.max(user.turn.tag);
        let turn = Turn {
            tag: user.turn.tag + user.stride,
            last: self.n_turns,
        };
        let before = std::mem::replace(&mut user.turn, turn);
        self.forget_idle();
        Some(before)
    }

    /// As if it had not entered.
    pub(super) fn put_back(&mut self, seat: Seat, user: &Name, weight: u32, turn: Option<Turn>) {
        let Some(turn) = turn else {
            return self.push_begun(seat);
        };
        self.push(seat, user, weight);
        if let Some(user) = self.users.get_mut(user) {
            user.turn = turn;
        }
    }

    /// What ran and may go on, the oldest first.
    pub(super) fn begun(&self) -> impl Iterator<Item = JobKey> + Clone {
        self.begun.iter().map(|(_, job)| *job)
    }

    /// Of each user that may the oldest job that may, with the user's turn.
    pub(super) fn firsts(
        &self,
        may_user: impl Fn(&Name) -> bool,
        may_job: impl Fn(JobKey) -> bool,
    ) -> impl Iterator<Item = (Turn, Seat)> {
        let users = self.users.iter().filter(move |(name, _)| may_user(name));
        users.filter_map(move |(_, user)| {
            let first = user.fresh.iter().find(|(_, job)| may_job(*job))?;
            Some((user.turn, *first))
        })
    }

    /// All that waits, in the order in which it would enter if nobody else came.
    pub(super) fn line(&self) -> impl Iterator<Item = JobKey> {
        let mut n_turns = self.n_turns;
        let mut users = Vec::from_iter(self.users.values().map(|user| (user, user.fresh.iter())));
        let mut turns = BinaryHeap::new();
        for (n, (user, fresh)) in users.iter_mut().enumerate() {
            if let Some(seat) = fresh.next() {
                turns.push(Reverse((user.turn, *seat, n)));
            }
        }
        let fresh = std::iter::from_fn(move || {
            let Reverse((turn, (_, job), n)) = turns.pop()?;
            n_turns += 1;
            let (user, fresh) = &mut users[n];
            if let Some(seat) = fresh.next() {
                let turn = Turn {
                    tag: turn.tag + user.stride,
                    last: n_turns,
                };
                turns.push(Reverse((turn, *seat, n)));
            }
            Some(job)
        });
        self.begun().chain(fresh)
    }

    /// Forgets users who have nothing here, but for those whose turn is not before that of who would come now:
    /// coming back must not put them before others who wait.
    fn forget_idle(&mut self) {
        let (now, is_empty) = (self.now, self.n_fresh == 0);
        let is_ahead = |user: &User| user.turn.tag >= now && !is_empty;
        self.users
            .retain(|_, user| !user.fresh.is_empty() || is_ahead(user));
    }

    #[cfg(test)]
    pub(super) fn is_clean(&self) -> bool {
        self.users.is_empty() && self.begun.is_empty() && self.n_fresh == 0
    }

    #[cfg(test)]
    pub(super) fn has_waiting(&self, user: &str) -> bool {
        let mut users = self.users.iter();
        users.any(|(name, of)| name.as_str() == user && !of.fresh.is_empty())
    }
}
