//! Which source to ask next, and when: back-off after failures, bans after lies.
//!
//! Pure: the time and the randomness come from the caller. Sources are asked in the order of the
//! configuration; the first one that is not waiting is asked. A failure makes a source wait, twice as long each
//! time, until it delivers a piece again. A lie (bytes that are not the signed ones, an answer about other
//! bytes than those asked for) bans it for much longer, and after the third it is out for this file: a mirror
//! in the middle of being copied heals, a liar does not.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ota::source::Fault;

/// How patient we are with sources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Wait after the first failure.
    pub wait_min: Duration,
    /// Longest wait after failures.
    pub wait_max: Duration,
    /// Wait after the first lie; each further one waits [`BAN_GROWTH`] times as long.
    pub ban: Duration,
    /// A source that failed so often in a row is out for this file. `None`: it is asked for ever, since a site
    /// may be offline for months.
    pub faults_max: Option<u32>,
}

/// Lies until a source is out for the file.
pub const LIES_MAX: u32 = 3;
/// Each ban lasts so many times as long as the one before.
pub const BAN_GROWTH: u32 = 6;

impl Default for Patience {
    fn default() -> Self {
        Self {
            wait_min: Duration::from_secs(1),
            wait_max: Duration::from_secs(900),
            ban: Duration::from_secs(600),
            faults_max: None,
        }
    }
}

/// How one source has done. What is stored holds the rest of the wait, no point in time: boards have no clock
/// that can be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Failures since it last delivered a piece.
    #[serde(default)]
    pub n_faults: u32,
    /// Lies, which are not forgotten while the file is fetched.
    #[serde(default)]
    pub n_lies: u32,
    /// What the last failure was.
    #[serde(default)]
    pub last: Option<Fault>,
    /// When it may be asked again; in memory since the start of the fetch, stored as what is left of it.
    #[serde(default)]
    pub not_before: Duration,
}

impl Standing {
    fn is_out(&self, patience: &Patience) -> bool {
        self.n_lies >= LIES_MAX || patience.faults_max.is_some_and(|max| self.n_faults >= max)
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Ask this source, by its place in the list.
    Ask(usize),
    /// All wait; the first of them until then, because of this.
    Wait {
        /// Time since the start of the fetch.
        until: Duration,
        /// The last failure of the one that is ready first.
        fault: Fault,
    },
    /// None is left; this was the worst that they did.
    Out(Fault),
}

/// All sources of one fetch, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standings {
    patience: Patience,
    sources: Vec<Standing>,
}

impl Standings {
    /// As they were stored ([`Self::at`]) when the fetch before this one ended.
    pub fn new(patience: Patience, mut sources: Vec<Standing>) -> Self {
        let longest = patience.wait_max.max(patience.longest_ban());
        for source in &mut sources {
            // A damaged file must not lock a source out for ever.
            source.not_before = source.not_before.min(longest);
        }
        Self { patience, sources }
    }

    /// How they stand, with the waits that are left at `now`.
    pub fn at(&self, now: Duration) -> impl Iterator<Item = Standing> + '_ {
        self.sources.iter().map(move |source| Standing {
            not_before: source.not_before.saturating_sub(now),
            ..source.clone()
        })
    }

    /// Whom to ask at `now`.
    pub fn choose(&self, now: Duration) -> Choice {
        let mut first: Option<&Standing> = None;
        for (idx, source) in self.sources.iter().enumerate() {
            if source.is_out(&self.patience) {
                continue;
            }
            if source.not_before <= now {
                return Choice::Ask(idx);
            }
            if first.is_none_or(|first| source.not_before < first.not_before) {
                first = Some(source);
            }
        }
        match first {
            Some(first) => Choice::Wait {
                until: first.not_before,
                fault: first.last.unwrap_or(Fault::Unreachable),
            },
            None => Choice::Out(self.worst()),
        }
    }

    /// A source delivered a piece with the signed digest.
    pub fn delivered(&mut self, idx: usize) {
        let source = &mut self.sources[idx];
        source.n_faults = 0;
        source.not_before = Duration::ZERO;
    }

    /// A source failed. `random` in 0.0..1.0 spreads the wait over its upper half, so that a fleet does not
    /// come back in one moment.
    pub fn failed(&mut self, idx: usize, fault: Fault, now: Duration, random: f64) {
        let source = &mut self.sources[idx];
        source.last = Some(fault);
        let wait = match fault {
            Fault::Lied => {
                source.n_lies += 1;
                let growth = BAN_GROWTH.pow((source.n_lies - 1).min(LIES_MAX));
                self.patience.ban * growth
            }
            Fault::Absent | Fault::Unreachable | Fault::Stalled => {
                source.n_faults = source.n_faults.saturating_add(1);
                let growth = 1 << (source.n_faults - 1).min(20);
                let wait = self.patience.wait_min.saturating_mul(growth);
                wait.min(self.patience.wait_max)
            }
        };
        source.not_before = now + wait.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0);
    }

    /// A lie counts more than silence, and silence more than an empty shelf.
    fn worst(&self) -> Fault {
        let rank = |fault: &Fault| match fault {
            Fault::Absent => 0,
            Fault::Unreachable => 1,
            Fault::Stalled => 2,
            Fault::Lied => 3,
        };
        let faults = self.sources.iter().filter_map(|source| source.last);
        faults.max_by_key(rank).unwrap_or(Fault::Absent)
    }
}

impl Patience {
    fn longest_ban(&self) -> Duration {
        self.ban * BAN_GROWTH.pow(LIES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn standings(n: usize) -> Standings {
        Standings::new(Patience::default(), vec![Standing::default(); n])
    }

    const NOW: Duration = Duration::from_secs(5);

    #[test]
    fn the_first_source_is_asked_until_it_fails_and_again_after_its_wait() {
        let mut sources = standings(2);
        assert_eq!(sources.choose(NOW), Choice::Ask(0));
        sources.failed(0, Fault::Unreachable, NOW, 1.0);
        assert_eq!(sources.choose(NOW), Choice::Ask(1));
        assert_eq!(sources.choose(NOW + Duration::from_secs(1)), Choice::Ask(0));
    }

    #[test]
    fn a_liar_is_banned_for_longer_than_any_failure_and_out_after_its_third_lie() {
        let mut sources = standings(1);
        let mut now = NOW;
        for _ in 0..LIES_MAX - 1 {
            sources.failed(0, Fault::Lied, now, 0.0);
            let Choice::Wait { until, fault } = sources.choose(now) else {
                panic!("it waits");
            };
            assert!(until - now >= Duration::from_secs(300));
            assert_eq!(fault, Fault::Lied);
            now = until;
            assert_eq!(sources.choose(now), Choice::Ask(0));
            // One good piece between two lies makes no honest mirror.
            sources.delivered(0);
        }
        sources.failed(0, Fault::Lied, now, 0.0);
        assert_eq!(sources.choose(now), Choice::Out(Fault::Lied));
        assert_eq!(sources.choose(Duration::MAX), Choice::Out(Fault::Lied));
    }

    #[test]
    fn a_stick_that_is_gone_is_out_after_as_many_failures_as_were_asked_for() {
        let patience = Patience {
            faults_max: Some(2),
            ..Patience::default()
        };
        let mut sources = Standings::new(patience, vec![Standing::default()]);
        sources.failed(0, Fault::Unreachable, NOW, 0.5);
        assert!(matches!(sources.choose(NOW), Choice::Wait { .. }));
        sources.failed(0, Fault::Unreachable, NOW, 0.5);
        assert_eq!(sources.choose(NOW), Choice::Out(Fault::Unreachable));
    }

    #[test]
    fn nothing_configured_is_nothing_to_wait_for() {
        assert_eq!(standings(0).choose(NOW), Choice::Out(Fault::Absent));
    }

    #[test]
    fn a_stored_wait_of_a_thousand_years_is_cut() {
        let stored = Standing {
            not_before: Duration::from_secs(1 << 35),
            ..Standing::default()
        };
        let sources = Standings::new(Patience::default(), vec![stored]);
        let Choice::Wait { until, .. } = sources.choose(Duration::ZERO) else {
            panic!("it waits");
        };
        assert!(until <= Duration::from_secs(86_400 * 2));
    }

    fn fault() -> impl Strategy<Value = Fault> {
        prop_oneof![
            Just(Fault::Absent),
            Just(Fault::Unreachable),
            Just(Fault::Stalled),
            Just(Fault::Lied),
        ]
    }

    proptest! {
        /// Whatever sources do: nobody is asked before its time, failures never lock one out for good, and what
        /// is stored and read back waits as long as before.
        #[test]
        fn waits_are_kept_bounded_and_survive_a_restart(
            steps in proptest::collection::vec((fault(), 0.0f64..1.0, 0u64..2000, any::<bool>()), 1..60),
        ) {
            let mut sources = standings(3);
            let mut now = Duration::ZERO;
            for (fault, random, later, restarts) in steps {
                now += Duration::from_secs(later);
                match sources.choose(now) {
                    Choice::Ask(idx) => {
                        prop_assert!(sources.sources[idx].not_before <= now);
                        prop_assert!(sources.sources[idx].n_lies < LIES_MAX);
                        match random > 0.7 {
                            true => sources.delivered(idx),
                            false => sources.failed(idx, fault, now, random),
                        }
                    }
                    Choice::Wait { until, .. } => {
                        prop_assert!(until > now);
                        prop_assert!(until - now <= sources.patience.longest_ban());
                        prop_assert!(matches!(sources.choose(until), Choice::Ask(_)));
                    }
                    Choice::Out(fault) => {
                        prop_assert_eq!(fault, Fault::Lied);
                        break;
                    }
                }
                if restarts {
                    let before = sources.choose(now);
                    let json = serde_json::to_string(&sources.at(now).collect::<Vec<_>>()).unwrap();
                    let read = serde_json::from_str(&json).unwrap();
                    sources = Standings::new(Patience::default(), read);
                    let after = match sources.choose(Duration::ZERO) {
                        Choice::Wait { until, fault } => Choice::Wait { until: until + now, fault },
                        other => other,
                    };
                    prop_assert_eq!(before, after);
                    now = Duration::ZERO;
                }
            }
        }
    }
}
