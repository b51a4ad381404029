//! Over-current events that Tegra's `soctherm` counted since boot.
//!
//! ```text
//!     hwmonN/name            soctherm_oc
//!     hwmonN/oc1_event_cnt   0        under-voltage
//!     hwmonN/oc2_event_cnt   0        average over-current
//!     hwmonN/oc3_event_cnt   1342     instantaneous over-current
//!     hwmonN/oc3_throt_en    1        whether it slows the clocks
//! ```
//!
//! The throttling itself lasts about a millisecond and shows in no clock. The third counter rises
//! steadily in the uncapped modes of a healthy board; what it means is its rate, which the caller takes.

use super::hwmon;
use super::root::{Faults, Probe, Root};

/// Counters since boot; absent where the board has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OverCurrent {
    /// The supply sagged.
    pub under_voltage: Option<u64>,
    /// The average current was above its limit.
    pub average: Option<u64>,
    /// The current was above its limit for an instant.
    pub instantaneous: Option<u64>,
}

impl OverCurrent {
    /// What was counted since `earlier`. A counter that fell started again, and counts from zero.
    pub fn since(&self, earlier: &OverCurrent) -> OverCurrent {
        let rise = |now: Option<u64>, before: Option<u64>| {
            Some(now?.checked_sub(before?).or(now).unwrap_or(0))
        };
        OverCurrent {
            under_voltage: rise(self.under_voltage, earlier.under_voltage),
            average: rise(self.average, earlier.average),
            instantaneous: rise(self.instantaneous, earlier.instantaneous),
        }
    }
}

/// Reads the counters again and again.
#[derive(Debug)]
pub struct OverCurrentProbe([Probe; 3]);

impl OverCurrentProbe {
    /// Looks for the counters; `None` on boards without them.
    pub fn find(root: &Root, faults: &mut Faults) -> Option<Self> {
        let chip = hwmon::chips(root, &["soctherm_oc"], faults)
            .into_iter()
            .next()?;
        Some(Self([1, 2, 3].map(|n| {
            Probe::new(root, format!("{chip}/oc{n}_event_cnt"))
        })))
    }

    /// The counters now.
    pub fn read(&mut self, faults: &mut Faults) -> OverCurrent {
        let [under_voltage, average, instantaneous] = self
            .0
            .each_mut()
            .map(|probe| faults.note(probe.number(0..=u64::MAX)));
        OverCurrent {
            under_voltage,
            average,
            instantaneous,
        }
    }
}
