//! How often something may happen in a second.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::access::Who;

const SECOND: Duration = Duration::from_secs(1);

/// Messages of each user in the running second. Only known users get in, so that it stays
/// small. The daemon is free: what it has queued after a pause comes at once, and none of it may be lost.
pub(super) struct Rate {
    max: u32,
    windows: Mutex<HashMap<String, Window>>,
}

struct Window {
    since: Instant,
    n: u32,
}

impl Rate {
    pub(super) fn new(max: u32) -> Rate {
        Rate {
            max,
            windows: Mutex::default(),
        }
    }

    /// Counts one.
    pub(super) fn allows(&self, who: Who<'_>, now: Instant) -> bool {
        let Who::User { name, .. } = who else {
            return true;
        };
        let mut windows = self.windows.lock().expect("no holder of this lock panics");
        let window = match windows.get_mut(name) {
            Some(window) => window,
            None => windows
                .entry(name.to_owned())
                .or_insert(Window { since: now, n: 0 }),
        };
        if now.saturating_duration_since(window.since) >= SECOND {
            *window = Window { since: now, n: 0 };
        }
        window.n = window.n.saturating_add(1);
        if window.n == self.max.saturating_add(1) {
            warn!(
                user = name,
                max = self.max,
                "too many messages in one second, the rest is refused"
            );
        }
        window.n <= self.max
    }
}

/// Lines in the log about what anybody can do any number of times: one a second.
#[derive(Default)]
pub(super) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// How many were passed over since the last line, when there may be one now.
    pub(super) fn allows(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().expect("no holder of this lock panics");
        let (last, n) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < SECOND) {
            *n += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Role;

    #[test]
    fn each_user_has_its_own_second_and_the_daemon_none() {
        let (rate, now) = (Rate::new(3), Instant::now());
        let user = |name| Who::User {
            name,
            role: Role::Device,
        };
        let allowed = |who, at| (0..10).filter(|_| rate.allows(who, now + at)).count();
        assert_eq!(allowed(user("ann"), Duration::ZERO), 3);
        assert_eq!(allowed(user("bob"), Duration::ZERO), 3);
        assert_eq!(allowed(user("ann"), SECOND / 2), 0);
        assert_eq!(allowed(user("ann"), SECOND), 3);
        assert_eq!(allowed(Who::Daemon, SECOND), 10);
    }

    #[test]
    fn the_log_gets_a_line_a_second_with_the_number_of_those_left_out() {
        let (log, now) = (Throttle::default(), Instant::now());
        assert_eq!(log.allows(now), Some(0));
        assert_eq!(log.allows(now), None);
        assert_eq!(log.allows(now + SECOND / 2), None);
        assert_eq!(log.allows(now + SECOND), Some(2));
        assert_eq!(log.allows(now + 2 * SECOND), Some(0));
    }
}
