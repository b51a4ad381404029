//! When the next wave opens, and when nothing opens any more: pure.
//!
//! A wave has shown itself when nearly all of its devices came to an end and stood for a while. Devices that are
//! off do not hold up the others for ever, hence "nearly all". Failures are counted among the devices to which the
//! release was opened, so that one failure in a small first wave is a large share, as it should be.

use std::time::Duration;

/// How a release is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Shares of the devices, in percent, ascending; the last is as far as it goes.
    pub waves: Vec<u8>,
    /// Failures among the devices of the open waves at which it stops, in thousandths.
    pub failures_milli_max: u32,
    /// Devices of the open waves that must have come to an end before the next opens, in percent.
    pub finished_percent_min: u8,
    /// How long a wave then stands before the next opens.
    pub settle: Duration,
}

/// What is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No waves, or not ascending from 1 to 100.
    #[error("waves {found:?}, expected ascending shares from 1 to 100, e.g. 5,25,100")]
    Waves {
        /// As given.
        found: Vec<u8>,
    },
    /// A share of more than all.
    #[error("{what} of {found}, expected at most {max}")]
    Share {
        /// Which.
        what: &'static str,
        /// As given.
        found: u32,
        /// All.
        max: u32,
    },
}

impl Plan {
    /// That it makes sense.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), PlanError> {
        let ascends = self.waves.windows(2).all(|pair| pair[0] < pair[1]);
        let in_bounds = self.waves.iter().all(|percent| (1..=100).contains(percent));
        if self.waves.is_empty() || !ascends || !in_bounds {
            return Err(PlanError::Waves {
                found: self.waves.clone(),
            });
        }
        for (what, found, max) in [
            ("failures", self.failures_milli_max, 1000),
            ("finished devices", self.finished_percent_min.into(), 100),
        ] {
            if found > max {
                return Err(PlanError::Share { what, found, max });
            }
        }
        Ok(())
    }
}

/// Where the devices stand to which the release was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub targeted: usize,
    /// It is in service.
    pub done: usize,
    /// It failed or was taken back.
    pub failed: usize,
}

impl Tally {
    /// Came to an end.
    pub fn finished(&self) -> usize {
        self.done + self.failed
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Wait.
    Hold,
    /// Open the release to this share of the devices, in percent.
    Open(u8),
    /// Open it to nobody else.
    Stop,
    /// All that it was meant for have it.
    Done,
}

/// Decides. `open` is the share to which it is open, 0 at first; `stood` for how long enough devices of it have
/// come to an end.
pub fn decide(plan: &Plan, open: u8, tally: Tally, stood: Duration) -> Decision {
    if is_too_bad(plan, tally) {
        return Decision::Stop;
    }
    let next = plan.waves.iter().copied().find(|percent| *percent > open);
    if open == 0 {
        return next.map_or(Decision::Done, Decision::Open);
    }
    if !is_settled(plan, tally) || stood < plan.settle {
        return Decision::Hold;
    }
    next.map_or(Decision::Done, Decision::Open)
}

/// Whether enough devices of the open waves came to an end.
pub fn is_settled(plan: &Plan, tally: Tally) -> bool {
    tally.finished() * 100 >= tally.targeted * usize::from(plan.finished_percent_min)
}

/// Whether as many failed as may not.
fn is_too_bad(plan: &Plan, tally: Tally) -> bool {
    tally.failed > 0
        && tally.failed as u64 * 1000 >= tally.targeted as u64 * u64::from(plan.failures_milli_max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> Plan {
        Plan {
            waves: vec![5, 25, 100],
            failures_milli_max: 20,
            finished_percent_min: 90,
            settle: Duration::from_secs(60),
        }
    }

    fn tally(targeted: usize, done: usize, failed: usize) -> Tally {
        Tally {
            targeted,
            done,
            failed,
        }
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn first_wave_opens_at_once_and_the_next_when_the_last_stood() {
        assert_eq!(
            decide(&plan(), 0, tally(0, 0, 0), Duration::ZERO),
            Decision::Open(5)
        );
        assert_eq!(decide(&plan(), 5, tally(15, 13, 0), LONG), Decision::Hold);
        assert_eq!(
            decide(&plan(), 5, tally(15, 14, 0), Duration::ZERO),
            Decision::Hold
        );
        assert_eq!(
            decide(&plan(), 5, tally(15, 14, 0), LONG),
            Decision::Open(25)
        );
        assert_eq!(
            decide(&plan(), 100, tally(300, 295, 0), LONG),
            Decision::Done
        );
    }

    #[test]
    fn two_percent_of_failures_stop_it_and_fewer_do_not() {
        assert_eq!(
            decide(&plan(), 100, tally(300, 280, 5), LONG),
            Decision::Done
        );
        assert_eq!(
            decide(&plan(), 100, tally(300, 280, 6), LONG),
            Decision::Stop
        );
        assert_eq!(
            decide(&plan(), 5, tally(15, 0, 1), Duration::ZERO),
            Decision::Stop
        );
    }

    #[test]
    fn plan_that_goes_back_or_beyond_all_is_refused() {
        for waves in [vec![], vec![0, 5], vec![5, 5], vec![25, 5], vec![101]] {
            assert!(Plan { waves, ..plan() }.check().is_err());
        }
        assert!(
            Plan {
                failures_milli_max: 1001,
                ..plan()
            }
            .check()
            .is_err()
        );
        assert!(plan().check().is_ok());
    }

    prop_compose! {
        fn plans()(
            waves in prop::collection::btree_set(1u8..=100, 1..6),
            failures_milli_max in 0u32..=1000,
            finished_percent_min in 0u8..=100,
            settle_s in 0u64..100,
        ) -> Plan {
            Plan {
                waves: waves.into_iter().collect(),
                failures_milli_max,
                finished_percent_min,
                settle: Duration::from_secs(settle_s),
            }
        }
    }

    prop_compose! {
        fn tallies()(targeted in 0usize..400)(
            done in 0..=targeted, rest in 0..=targeted, targeted in Just(targeted),
        ) -> Tally {
            Tally { targeted, done, failed: rest.min(targeted - done) }
        }
    }

    proptest! {
        #[test]
        fn nothing_opens_at_or_above_the_threshold(plan in plans(), tally in tallies(), open in 0u8..=100, s in 0u64..200) {
            let decision = decide(&plan, open, tally, Duration::from_secs(s));
            let share = tally.failed as u64 * 1000;
            let is_bad = tally.failed > 0 && share >= tally.targeted as u64 * u64::from(plan.failures_milli_max);
            prop_assert_eq!(decision == Decision::Stop, is_bad);
        }

        #[test]
        fn what_opens_is_the_next_wave_of_the_plan_after_enough_came_to_an_end(
            plan in plans(), tally in tallies(), open in 0u8..=100, s in 0u64..200,
        ) {
            let stood = Duration::from_secs(s);
            if let Decision::Open(percent) = decide(&plan, open, tally, stood) {
                prop_assert!(percent > open && plan.waves.contains(&percent));
                prop_assert!(plan.waves.iter().all(|wave| *wave <= open || *wave >= percent));
                prop_assert!(open == 0 || (is_settled(&plan, tally) && stood >= plan.settle));
            }
        }

        /// A fleet in which nothing fails gets the release, wave by wave.
        #[test]
        fn healthy_fleet_gets_all_waves_in_order(plan in plans(), n in 1usize..400) {
            let (mut open, mut opened) = (0, Vec::new());
            loop {
                let targeted = n * usize::from(open) / 100;
                match decide(&plan, open, tally(targeted, targeted, 0), plan.settle) {
                    Decision::Open(percent) => { opened.push(percent); open = percent; }
                    Decision::Done => break,
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(opened, plan.waves);
        }
    }
}
