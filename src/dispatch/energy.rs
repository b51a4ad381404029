//! PURE: what a request takes of the module's energy.
//!
//! The module's power is integrated while requests run, and each moment's energy is shared evenly among
//! those that run then. Idle power is in it: it is what the rails measure. Where power is not known for more
//! than a tenth of a request's time, nothing is said.

use std::time::Duration;

use tokio::time::Instant;

/// A sample counts for this long.
const SAMPLE_LASTS: Duration = Duration::from_secs(2);
/// Of a request's time, how much must be known.
const KNOWN_SHARE_MIN: f64 = 0.9;

/// The integral so far.
#[derive(Debug)]
pub(super) struct Energy {
    sample: Option<(f64, Instant)>,
    at: Instant,
    now: Mark,
}

/// A point of the integral.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Mark {
    /// One request's share, had it run all the time, millijoules.
    share_mj: f64,
    /// Time with requests running, and of it with power known, seconds.
    ran_seconds: f64,
    known_seconds: f64,
}

/// What one request took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Spent {
    since: Option<Mark>,
    total: Mark,
}

impl Energy {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            sample: None,
            at: now,
            now: Mark::default(),
        }
    }

    /// Comes up to `now`, since when `n_running` requests have run; before that number changes.
    pub(super) fn advance(&mut self, now: Instant, n_running: usize) {
        let since = std::mem::replace(&mut self.at, now);
        if n_running == 0 {
            return;
        }
        let seconds = (now - since).as_secs_f64();
        self.now.ran_seconds += seconds;
        if let Some((milliwatts, sampled)) = self.sample
            && now - sampled <= SAMPLE_LASTS
        {
            self.now.known_seconds += seconds;
            self.now.share_mj += milliwatts * seconds / n_running as f64;
        }
    }

    /// The module's power, just read; `None` where it could not be. Call [`Energy::advance`] first.
    pub(super) fn sampled(&mut self, milliwatts: Option<i64>, now: Instant) {
        self.sample = milliwatts.map(|milliwatts| (milliwatts as f64, now));
    }
}

impl Spent {
    /// The request runs from now on. Call [`Energy::advance`] first.
    pub(super) fn begins(&mut self, energy: &Energy) {
        self.ends(energy);
        self.since = Some(energy.now);
    }

    /// It runs no more.
    pub(super) fn ends(&mut self, energy: &Energy) {
        if let Some(since) = self.since.take() {
            self.total.share_mj += energy.now.share_mj - since.share_mj;
            self.total.ran_seconds += energy.now.ran_seconds - since.ran_seconds;
            self.total.known_seconds += energy.now.known_seconds - since.known_seconds;
        }
    }

    /// Joules.
    pub(super) fn joules(&self) -> Option<f64> {
        let Mark {
            share_mj,
            ran_seconds,
            known_seconds,
        } = self.total;
        let is_known = known_seconds > 0.0 && known_seconds >= KNOWN_SHARE_MIN * ran_seconds;
        is_known.then_some(share_mj / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn energy_is_shared_among_those_who_run() {
        let start = Instant::now();
        let mut energy = Energy::new(start);
        let (mut first, mut second) = (Spent::default(), Spent::default());
        energy.sampled(Some(10_000), start);
        first.begins(&energy);
        energy.advance(start + SECOND, 1);
        second.begins(&energy);
        energy.advance(start + 2 * SECOND, 2);
        first.ends(&energy);
        energy.sampled(Some(6_000), start + 2 * SECOND);
        energy.advance(start + 3 * SECOND, 1);
        second.ends(&energy);
        assert_eq!(first.joules(), Some(15.0));
        assert_eq!(second.joules(), Some(11.0));
    }

    #[test]
    fn without_rails_or_with_old_samples_nothing_is_said() {
        let start = Instant::now();
        let mut energy = Energy::new(start);
        let mut spent = Spent::default();
        spent.begins(&energy);
        energy.advance(start + SECOND, 1);
        energy.sampled(Some(10_000), start + SECOND);
        energy.advance(start + 5 * SECOND, 1);
        spent.ends(&energy);
        assert_eq!(spent.joules(), None);
        assert_eq!(Spent::default().joules(), None);
    }

    proptest! {
        /// Nothing is lost: the shares of all are the module's energy while any of them ran.
        #[test]
        fn shares_add_up(turns in proptest::collection::vec((0_usize..4, 1_u64..1500, 1_i64..60_000), 1..40)) {
            let mut now = Instant::now();
            let mut energy = Energy::new(now);
            let mut spent = [Spent::default(); 4];
            let mut total = 0.0;
            for (n_running, ms, milliwatts) in turns {
                energy.sampled(Some(milliwatts), now);
                spent[..n_running].iter_mut().for_each(|spent| spent.begins(&energy));
                now += Duration::from_millis(ms);
                energy.advance(now, n_running);
                spent.iter_mut().for_each(|spent| spent.ends(&energy));
                total += if n_running > 0 { milliwatts as f64 * ms as f64 / 1e6 } else { 0.0 };
            }
            let shares: f64 = spent.iter().filter_map(Spent::joules).sum();
            prop_assert!((shares - total).abs() < 1e-6 * total.max(1.0));
        }
    }
}
