//! The pure parts of `orinoco bench`: measuring memory, collecting times, and the report.
//!
//! What runs through the worker and through MQTT is driven by the command; this module turns its
//! counts and times into figures and never talks to either. Figures are ratios of one run: MQTT against the
//! same worker without MQTT, and decoding against the memory bandwidth measured at the same time.
//! A figure that was not measured is absent, never zero.

pub mod bandwidth;
mod client;
pub mod quantiles;
pub mod report;
pub mod run;
pub mod seeds;
pub mod table;

use std::time::Duration;

/// Tokens a second, for all sequences together; nothing for an empty measurement.
pub fn tokens_per_second(n_tokens: u64, took: Duration) -> Option<f64> {
    figure(n_tokens as f64 / took.as_secs_f64()).filter(|rate| *rate > 0.0)
}

/// `part / whole`; nothing when either is missing or the whole is zero.
pub fn ratio(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    figure(part? / whole?)
}

/// A number fit for the report: finite, not negative, four decimals.
fn figure(value: f64) -> Option<f64> {
    let rounded = (value * 10_000.0).round() / 10_000.0;
    (rounded.is_finite() && rounded >= 0.0).then_some(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_ratios_are_absent_when_nothing_was_measured() {
        let second = Duration::from_secs(1);
        assert_eq!(tokens_per_second(128, second / 2), Some(256.0));
        assert_eq!(tokens_per_second(1, second * 3), Some(0.3333));
        assert_eq!(tokens_per_second(128, Duration::ZERO), None);
        assert_eq!(tokens_per_second(0, second), None);
        for (part, whole, expected) in [
            (Some(97.0), Some(100.0), Some(0.97)),
            (Some(2.0), Some(3.0), Some(0.6667)),
            (Some(0.0), Some(3.0), Some(0.0)),
            (Some(1.0), Some(0.0), None),
            (Some(0.0), Some(0.0), None),
            (None, Some(1.0), None),
            (Some(1.0), None, None),
            (Some(f64::NAN), Some(1.0), None),
        ] {
            assert_eq!(ratio(part, whole), expected, "{part:?} / {whole:?}");
        }
    }
}
