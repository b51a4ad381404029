//! How fast bytes may come, how fast they do come, and when the last of them will be there.
//!
//! Pure: times are durations since the start of the fetch.

use std::collections::VecDeque;
use std::time::Duration;

/// A cap on bytes a second.
///
/// Bytes are counted when they were read, so the kernel's receive window is what slows the sender down.
#[derive(Debug, Clone)]
pub struct Cap {
    bytes_per_second: Option<u64>,
    /// When all bytes so far would have come at exactly the cap.
    due: Duration,
}

/// So much may come ahead of the cap, since chunks of a socket come at once.
const AHEAD: Duration = Duration::from_millis(100);

impl Cap {
    /// `None` or 0: no cap.
    pub fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            due: Duration::ZERO,
        }
    }

    /// So many bytes were read at `now`; how long to wait before the next read.
    pub fn took(&mut self, n_bytes: u64, now: Duration) -> Duration {
        let Some(rate) = self.bytes_per_second else {
            return Duration::ZERO;
        };
        let nanos = u128::from(n_bytes) * 1_000_000_000 / u128::from(rate);
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        // A time without reading is not made up for by a burst.
        self.due = self.due.max(now).saturating_add(cost);
        match self.due.saturating_sub(now) {
            wait if wait > AHEAD => wait,
            _ => Duration::ZERO,
        }
    }
}

/// The speed of the last quarter of a minute, and what follows from it.
#[derive(Debug, Clone, Default)]
pub struct Speed {
    /// (when, all bytes until then), at most one in [`SAMPLE`].
    samples: VecDeque<(Duration, u64)>,
    bytes: u64,
}

/// The span that is looked at.
const WINDOW: Duration = Duration::from_secs(15);
/// Distance of two samples: 60 of them are kept.
const SAMPLE: Duration = Duration::from_millis(250);

impl Speed {
    /// So many bytes came at `now`.
    pub fn took(&mut self, n_bytes: u64, now: Duration) {
        if self.samples.is_empty() {
            self.samples.push_back((now, self.bytes));
        }
        self.bytes = self.bytes.saturating_add(n_bytes);
        if self
            .samples
            .back()
            .is_some_and(|(last, _)| now.saturating_sub(*last) >= SAMPLE)
        {
            self.samples.push_back((now, self.bytes));
        }
        while self.samples.len() > 2 && now.saturating_sub(self.samples[1].0) >= WINDOW {
            self.samples.pop_front();
        }
    }

    /// Nothing comes for a while on purpose: what follows is measured afresh.
    pub fn rest(&mut self) {
        self.samples.clear();
    }

    /// Bytes a second; `None` before a second has passed.
    pub fn bytes_per_second(&self, now: Duration) -> Option<u64> {
        let (since, bytes_then) = *self.samples.front()?;
        let span = now.saturating_sub(since);
        if span < Duration::from_secs(1) {
            return None;
        }
        let rate = u128::from(self.bytes - bytes_then) * 1000 / span.as_millis();
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// Time until so many more bytes are there at this speed; `None` when nobody can say.
    pub fn eta(&self, missing_bytes: u64, now: Duration) -> Option<Duration> {
        match self.bytes_per_second(now)? {
            0 => None,
            rate => Some(Duration::from_secs(missing_bytes.div_ceil(rate))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_eighth_of_a_megabyte_a_second_is_one_megabit() {
        let mut cap = Cap::new(Some(125_000));
        let mut now = Duration::ZERO;
        for _ in 0..100 {
            now += cap.took(16_384, now);
        }
        let expected = Duration::from_micros(100 * 16_384 * 1000 / 125);
        assert!(now <= expected && now >= expected - AHEAD * 2, "{now:?}");
    }

    #[test]
    fn no_cap_never_waits() {
        let mut cap = Cap::new(Some(0));
        assert_eq!(cap.took(u64::MAX, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn speed_and_eta_follow_the_last_seconds_only() {
        let mut speed = Speed::default();
        let mut now = Duration::ZERO;
        let seconds = |n| Duration::from_secs(n);
        speed.took(1_000_000, now);
        assert_eq!(speed.bytes_per_second(now), None);
        for _ in 0..60 {
            now += seconds(1);
            speed.took(1_000, now);
        }
        let rate = speed.bytes_per_second(now).unwrap();
        assert!((900..=1100).contains(&rate), "{rate}");
        let eta = speed.eta(10_000, now).unwrap();
        assert!((seconds(9)..=seconds(12)).contains(&eta), "{eta:?}");
        speed.rest();
        assert_eq!(speed.eta(10_000, now), None);
    }

    proptest! {
        #[test]
        fn over_any_reads_the_mean_keeps_the_cap(
            rate in 1_000u64..100_000_000,
            reads in proptest::collection::vec((1u64..500_000, 0u64..200), 1..100),
        ) {
            let mut cap = Cap::new(Some(rate));
            let (mut now, mut bytes) = (Duration::ZERO, 0);
            for (n_bytes, took_ms) in reads {
                now += Duration::from_millis(took_ms);
                now += cap.took(n_bytes, now);
                bytes += n_bytes;
            }
            let allowed = rate as f64 * (now + AHEAD).as_secs_f64();
            prop_assert!(bytes as f64 <= allowed + 1.0, "{bytes} in {now:?}");
        }

        #[test]
        fn memory_of_the_speed_is_bounded(
            reads in proptest::collection::vec((any::<u32>(), 0u64..5_000), 1..2_000),
        ) {
            let mut speed = Speed::default();
            let mut now = Duration::ZERO;
            for (n_bytes, later_ms) in reads {
                now += Duration::from_millis(later_ms);
                speed.took(u64::from(n_bytes), now);
                prop_assert!(speed.samples.len() <= 64);
                let _ = speed.eta(u64::MAX, now);
            }
        }
    }
}
