//! How long to wait before the next connection.

use std::time::Duration;

/// Doubles from `min` to `max`; a connection that lasted starts it over.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff {
            min,
            max,
            next: min,
        }
    }

    /// The wait after a connection that served for `served` (zero: it never came up). `random` in
    /// 0.0..1.0 spreads it over the upper half, so that a fleet does not come back in one moment.
    pub(super) fn after(&mut self, served: Duration, random: f64) -> Duration {
        // A broker that takes a connection and drops it at once must not reset us to `min`.
        if served > self.next * 2 {
            self.next = self.min;
        }
        let wait = self.next;
        self.next = (self.next * 2).min(self.max);
        wait.mul_f64(0.5 + random / 2.0)
    }

    /// The wait after a takeover: the longest, and it stays so until a connection lasted.
    pub(super) fn after_takeover(&mut self) -> Duration {
        self.next = self.max;
        self.max
    }
}

/// Uniform in 0.0..1.0.
pub(super) fn random() -> f64 {
    // Without a random source the spread is lost, not the connection.
    let value = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(value) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIN: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn it_doubles_up_to_the_maximum_and_starts_over_after_a_connection_that_lasted() {
        let mut backoff = Backoff::new(MIN, MAX);
        let mut last = Duration::ZERO;
        for _ in 0..9 {
            last = backoff.after(Duration::ZERO, 1.0);
        }
        assert_eq!(last, MAX);
        assert_eq!(
            backoff.after(Duration::from_secs(10), 1.0),
            MAX,
            "10 s are not lasting"
        );
        assert_eq!(backoff.after(Duration::from_secs(61), 1.0), MIN);
    }

    #[test]
    fn jitter_stays_in_the_upper_half() {
        let mut backoff = Backoff::new(MIN, MAX);
        assert_eq!(backoff.after(Duration::ZERO, 0.0), MIN / 2);
        assert!((0.0..1.0).contains(&random()));
    }

    proptest! {
        /// Whatever happens, nobody hammers a broker and nobody stays away for longer than was configured.
        #[test]
        fn every_wait_is_within_half_the_minimum_and_the_maximum(
            lives in proptest::collection::vec((0u64..200, 0.0f64..1.0, any::<bool>()), 1..50),
        ) {
            let mut backoff = Backoff::new(MIN, MAX);
            let mut least = MIN / 2;
            for (served_seconds, random, taken_over) in lives {
                let served = Duration::from_secs(served_seconds);
                let wait = match taken_over {
                    true => backoff.after_takeover(),
                    false => backoff.after(served, random),
                };
                // Failures in a row wait longer and longer.
                least = if served.is_zero() { least } else { MIN / 2 };
                prop_assert!(wait >= least && wait <= MAX, "{wait:?}, least {least:?}");
                least = least.max(wait / 2);
            }
        }
    }

    #[test]
    fn a_takeover_waits_the_maximum() {
        let mut backoff = Backoff::new(MIN, MAX);
        assert_eq!(backoff.after_takeover(), MAX);
        assert_eq!(backoff.after(Duration::from_secs(1), 1.0), MAX);
    }
}
