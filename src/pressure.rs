//! The ladder of the memory watchdog: what to do about the memory that is left, and when to stop doing it.
//!
//! ```text
//!          available falls below            returns
//!   ok ──▶ trim ──▶ park ──▶ shrink ──▶ kill      one step at a time, each after it had time to work;
//!      ◀──      ◀──      ◀──        ◀──           a step that would give nothing back is passed over
//! ```
//!
//! Going down is quick: two readings that agree, then the step, then [`Thresholds::settle`] for its effect.
//! Below the lowest threshold there is no waiting at all: the worker goes at once, since the kernel's OOM
//! killer would take whatever it likes. Going up is slow: [`Thresholds::margin_bytes`] above a threshold for
//! [`Thresholds::hold`], and room for what the step takes again; then one step.
//!
//! A reading that failed changes nothing but its age: the last one counts until it is older than
//! [`Thresholds::stale`]; then the ladder stands on `park` at least, because a node that cannot see its
//! memory must not take on more.
//!
//! Pure: readings and times in, at most one [`Change`] out.

use std::time::Duration;

pub use crate::wire::report::Level;

impl Level {
    /// All, from the top.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Trim, Self::Park, Self::Shrink, Self::Kill];

    /// Whether new requests are taken.
    pub fn admits(self) -> bool {
        self < Self::Park
    }

    fn above(self) -> Self {
        Self::ALL[(self as usize).saturating_sub(1)]
    }

    fn below(self) -> Self {
        Self::ALL[(self as usize + 1).min(Self::ALL.len() - 1)]
    }
}

/// When to take which step; the four thresholds fall from `trim` to `kill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Below this many available bytes: [`Level::Trim`].
    pub trim_bytes: u64,
    /// As above, [`Level::Park`].
    pub park_bytes: u64,
    /// As above, [`Level::Shrink`].
    pub shrink_bytes: u64,
    /// As above, [`Level::Kill`], without waiting.
    pub kill_bytes: u64,
    /// So much above a threshold ends its level.
    pub margin_bytes: u64,
    /// For so long.
    pub hold: Duration,
    /// How long a step may take to work before the next one down.
    pub settle: Duration,
    /// A last reading older than this is none.
    pub stale: Duration,
}

impl Thresholds {
    /// The threshold below which a level begins; nothing for [`Level::Ok`].
    pub fn of(&self, level: Level) -> u64 {
        match level {
            Level::Ok => u64::MAX,
            Level::Trim => self.trim_bytes,
            Level::Park => self.park_bytes,
            Level::Shrink => self.shrink_bytes,
            Level::Kill => self.kill_bytes,
        }
    }

    /// Whether they fall from step to step, as the ladder needs.
    pub fn fall(&self) -> bool {
        self.trim_bytes >= self.park_bytes
            && self.park_bytes >= self.shrink_bytes
            && self.shrink_bytes >= self.kill_bytes
    }

    /// How soon to read again: slow far from a threshold, quick near one or below one.
    pub fn next_reading(&self, available_bytes: u64) -> Duration {
        // Twice the first threshold is far: a model load takes seconds to eat that.
        let far = self.trim_bytes.saturating_mul(2);
        if available_bytes >= far {
            return SLOWEST;
        }
        let span = far.saturating_sub(self.trim_bytes).max(1);
        let over = available_bytes.saturating_sub(self.trim_bytes);
        let share = over as f64 / span as f64;
        QUICKEST + SLOWEST.saturating_sub(QUICKEST).mul_f64(share)
    }
}

/// Readings far from any threshold: 4 Hz.
pub const SLOWEST: Duration = Duration::from_millis(250);
/// Readings near a threshold: 50 Hz.
pub const QUICKEST: Duration = Duration::from_millis(20);

/// What each step would give back, from the ledger, in bytes. A step with zero is passed over.
///
/// What a step gave back is taken again when it ends. So that this does not lead straight down again, the way
/// up is open when there is room for it beside the margin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Relief {
    /// By dropping saved sequences.
    pub trim_bytes: u64,
    /// By letting jobs of the class `batch` wait.
    pub park_bytes: u64,
    /// By a smaller context or model.
    pub shrink_bytes: u64,
    /// By ending the worker.
    pub kill_bytes: u64,
    /// What the next step up takes again.
    pub regrowth_bytes: u64,
}

impl Relief {
    /// What entering this level gives back.
    pub fn of(&self, level: Level) -> u64 {
        match level {
            Level::Ok => 0,
            Level::Trim => self.trim_bytes,
            Level::Park => self.park_bytes,
            Level::Shrink => self.shrink_bytes,
            Level::Kill => self.kill_bytes,
        }
    }
}

/// One step, and what it rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Where the node was.
    pub from: Level,
    /// Where it is.
    pub to: Level,
    /// What was read; `None` when readings stopped coming.
    pub available_bytes: Option<u64>,
    /// The threshold that was crossed, in bytes; for a way up, the one that was left behind, with the margin and
    /// what the step takes again.
    pub threshold_bytes: u64,
    /// What the step is to give back, by the ledger.
    pub relief_bytes: u64,
}

/// The ladder's memory between readings. Times are since any fixed moment, and never run back.
#[derive(Debug, Clone)]
pub struct Ladder {
    thresholds: Thresholds,
    level: Level,
    /// When the level was entered.
    since: Duration,
    /// The last good reading and its time.
    last: Option<(u64, Duration)>,
    /// Readings in a row that ask for a deeper level.
    n_low: u32,
    /// Since when readings are above what this level needs, margin included.
    high_since: Option<Duration>,
}

/// Readings in a row before a step down, [`Level::Kill`] excepted.
const N_LOW: u32 = 2;

impl Ladder {
    /// Starts at [`Level::Ok`].
    pub fn new(thresholds: Thresholds, now: Duration) -> Self {
        Self {
            thresholds,
            level: Level::Ok,
            since: now,
            // Never read counts as read now: a node does not start its life on `park`.
            last: None,
            n_low: 0,
            high_since: None,
        }
    }

    /// Goes by others from now on, as when the board's memory becomes known.
    pub fn set_thresholds(&mut self, thresholds: Thresholds) {
        self.thresholds = thresholds;
    }

    /// Where the node is.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether the last reading is too old to count.
    pub fn is_stale(&self, now: Duration) -> bool {
        let read = self.last.map_or(self.since, |(_, at)| at);
        now.saturating_sub(read) > self.thresholds.stale
    }

    /// Takes a reading, `None` when it failed; says what to do.
    pub fn step(
        &mut self,
        available_bytes: Option<u64>,
        relief: &Relief,
        now: Duration,
    ) -> Option<Change> {
        let Some(available) = available_bytes else {
            let blind = self.is_stale(now) && self.level < Level::Park;
            return blind.then(|| self.enter(Level::Park, None, relief, now));
        };
        self.last = Some((available, now));
        let wanted = self.wanted(available);
        if wanted > self.level {
            self.high_since = None;
            self.n_low += 1;
            return self.down(wanted, available, relief, now);
        }
        self.n_low = 0;
        self.up(available, relief, now)
    }

    /// The deepest level whose threshold the reading is below.
    fn wanted(&self, available: u64) -> Level {
        let below = |level: &Level| available < self.thresholds.of(*level);
        let deepest = Level::ALL.into_iter().skip(1).rev().find(below);
        deepest.unwrap_or(Level::Ok)
    }

    fn down(
        &mut self,
        wanted: Level,
        available: u64,
        relief: &Relief,
        now: Duration,
    ) -> Option<Change> {
        if wanted == Level::Kill {
            return Some(self.enter(Level::Kill, Some(available), relief, now));
        }
        let settled =
            self.level == Level::Ok || now.saturating_sub(self.since) >= self.thresholds.settle;
        if self.n_low < N_LOW || !settled {
            return None;
        }
        // The next step that gives something back; the last one wanted in any case, for what it forbids.
        let mut next = self.level.below();
        while next < wanted && relief.of(next) == 0 {
            next = next.below();
        }
        Some(self.enter(next, Some(available), relief, now))
    }

    fn up(&mut self, available: u64, relief: &Relief, now: Duration) -> Option<Change> {
        if self.level == Level::Ok {
            return None;
        }
        let needed = self.needed_to_rise(relief);
        if available < needed {
            self.high_since = None;
            return None;
        }
        let high_since = *self.high_since.get_or_insert(now);
        if now.saturating_sub(high_since) < self.thresholds.hold {
            return None;
        }
        let from = self.level;
        self.set(from.above(), now);
        Some(Change {
            from,
            to: self.level,
            available_bytes: Some(available),
            threshold_bytes: needed,
            relief_bytes: 0,
        })
    }

    fn needed_to_rise(&self, relief: &Relief) -> u64 {
        let threshold = self.thresholds.of(self.level);
        threshold
            .saturating_add(self.thresholds.margin_bytes)
            .saturating_add(relief.regrowth_bytes)
    }

    fn enter(
        &mut self,
        to: Level,
        available_bytes: Option<u64>,
        relief: &Relief,
        now: Duration,
    ) -> Change {
        let from = self.level;
        self.set(to, now);
        Change {
            from,
            to,
            available_bytes,
            threshold_bytes: self.thresholds.of(to),
            relief_bytes: relief.of(to),
        }
    }

    fn set(&mut self, level: Level, now: Duration) {
        self.level = level;
        self.since = now;
        self.n_low = 0;
        self.high_since = None;
    }
}

#[cfg(test)]
mod tests;
