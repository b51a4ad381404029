//! PURE: whether systemd may believe that the daemon is well, as far as the worker is concerned.
//!
//! | the worker is | systemd is fed while |
//! |---|---|
//! | loading | frames come: within `engine.load_stall_seconds` and [`GRACE`] |
//! | serving or idle | frames come, answers to pings among them: within `engine.step_stall_seconds` and [`GRACE`] |
//! | being ended | its burial takes no longer than it may, and [`GRACE`] |
//! | waiting to be started again | the pause takes no longer than it was to be, and [`GRACE`] |
//! | absent by decision | always |
//!
//! The keeper has the same limits and acts at each of them: it kills a stuck worker and starts another. So
//! this says no only when the keeper does not do its work, or when the kernel does not end a killed process,
//! as under a GPU driver that hangs. Then the death of all of us is what remains, and systemd sees to it.
//! That the supervisor's own loop turns is not judged here: a loop that does not turn feeds nobody.

use std::fmt;
use std::time::{Duration, Instant};

use crate::worker::{Doing, Pulse};

/// What the keeper has beyond its own limit, on a board whose cores are all busy, before we doubt it.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Remembers when the worker moved last.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    last: Option<(Pulse, Instant)>,
}

/// Nothing moves, and nobody does anything about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stuck {
    /// What the keeper says that it is at.
    pub(super) doing: Doing,
    /// Since when nothing moves.
    pub(super) for_: Duration,
}

impl Vigil {
    /// Takes one look. Called a few times in each interval of the watchdog.
    ///
    /// # Errors
    /// [`Stuck`]: systemd must not be fed.
    pub(super) fn judge(&mut self, pulse: Pulse, now: Instant) -> Result<(), Stuck> {
        let since = match self.last {
            Some((last, since)) if last.beat == pulse.beat => since,
            _ => now,
        };
        self.last = Some((pulse, since));
        let for_ = now.saturating_duration_since(since);
        match pulse.patience {
            Some(patience) if for_ > patience.saturating_add(GRACE) => Err(Stuck {
                doing: pulse.doing,
                for_,
            }),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.doing {
            Doing::Loading => "loading shows no progress",
            Doing::Serving => "the worker is silent",
            Doing::Ending => "the worker does not end",
            Doing::Pausing => "the worker is not started again",
            Doing::Resting => "the worker rests",
        };
        let seconds = self.for_.as_secs();
        write!(
            f,
            "{what} for {seconds} s and nobody does anything about it"
        )
    }
}

#[cfg(test)]
mod tests;
