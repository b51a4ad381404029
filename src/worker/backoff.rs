//! PURE: how long to wait before a worker is started again.

use std::time::Duration;

/// First restart at once, then `min`, doubling up to `max`; a long life forgives.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

/// A worker that served this long was healthy: the next death is a first one again.
const HEALTHY: Duration = Duration::from_secs(10);

impl Backoff {
    /// `min` must not exceed `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            next: Duration::ZERO,
        }
    }

    /// Pause after a worker that served for `served`.
    pub fn after_life_of(&mut self, served: Duration) -> Duration {
        if served >= HEALTHY {
            self.next = Duration::ZERO;
        }
        let pause = self.next;
        self.next = (self.next * 2).clamp(self.min, self.max);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_restart_is_immediate_and_later_ones_double_up_to_the_limit() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let pauses: Vec<_> = (0..6)
            .map(|_| backoff.after_life_of(Duration::ZERO).as_millis())
            .collect();
        assert_eq!(pauses, [0, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn a_worker_that_served_long_is_restarted_at_once() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        for _ in 0..4 {
            backoff.after_life_of(Duration::ZERO);
        }
        assert_eq!(
            backoff.after_life_of(Duration::from_secs(60)),
            Duration::ZERO
        );
    }
}
