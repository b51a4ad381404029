//! How many steps heat and over-current have taken away.

use std::time::Duration;

use crate::board::throttle::OverCurrent;
use crate::config::PowerConfig;

/// What the board feels now. Absent values say nothing, neither hot nor cool.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HeatReading {
    /// The hottest junction, degrees Celsius.
    pub celsius: Option<f32>,
    /// Whether the kernel holds clocks down.
    pub is_throttling: bool,
    /// Over-current counters since boot.
    pub over_current: Option<OverCurrent>,
}

/// Steps down, and since when it has been cool.
#[derive(Debug, Clone, Default)]
pub(super) struct Heat {
    n_steps_down: u32,
    stepped_at: Option<Duration>,
    cool_since: Option<Duration>,
    counted: Option<(OverCurrent, Duration)>,
}

impl Heat {
    /// Steps down before and after this reading, at most `n_steps_max`.
    pub(super) fn step(
        &mut self,
        now: Duration,
        config: &PowerConfig,
        reading: &HeatReading,
        n_steps_max: u32,
    ) -> (u32, u32) {
        // Fewer candidates make a shorter ladder.
        self.n_steps_down = self.n_steps_down.min(n_steps_max);
        let before = self.n_steps_down;
        let is_over = self.is_over_current(now, config, reading);
        let is_hot = reading.is_throttling
            || is_over
            || reading.celsius.is_some_and(|c| c >= config.celsius_high);
        let is_cool = !is_hot && reading.celsius.is_none_or(|c| c <= config.celsius_low);
        let since_step = self.stepped_at.map(|at| now.saturating_sub(at));
        if is_hot {
            self.cool_since = None;
            // The last step needs time to be felt.
            if before < n_steps_max && since_step.is_none_or(|since| since >= config.step) {
                self.n_steps_down += 1;
                self.stepped_at = Some(now);
            }
        } else if !is_cool {
            self.cool_since = None;
        } else {
            let since = *self.cool_since.get_or_insert(now);
            if before > 0 && now.saturating_sub(since) >= config.hold {
                self.n_steps_down -= 1;
                self.cool_since = Some(now);
            }
        }
        (before, self.n_steps_down)
    }

    /// Whether the counters rose beyond what is normal since they were last looked at.
    fn is_over_current(
        &mut self,
        now: Duration,
        config: &PowerConfig,
        reading: &HeatReading,
    ) -> bool {
        let Some(over_current) = reading.over_current else {
            return false;
        };
        let Some((earlier, at)) = self.counted.replace((over_current, now)) else {
            return false;
        };
        let rise = over_current.since(&earlier);
        let seconds = now.saturating_sub(at).as_secs_f64();
        // Two looks in the same instant: a rate would be infinite, and the next look has it.
        if seconds <= 0.0 {
            self.counted = Some((earlier, at));
            return false;
        }
        let per_second = rise.instantaneous.unwrap_or(0) as f64 / seconds;
        let is_serious = |events: Option<u64>| events.is_some_and(|n| n > 0);
        is_serious(rise.under_voltage)
            || is_serious(rise.average)
            || per_second > f64::from(config.over_current_s_max)
    }
}
