//! Times as quantiles: microsecond resolution, three digits, fixed memory.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::figure;

/// Longest time told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// Collects durations of one kind.
#[derive(Debug, Clone)]
pub struct Quantiles {
    microseconds: Histogram<u64>,
}

impl Default for Quantiles {
    fn default() -> Self {
        Self::new()
    }
}

impl Quantiles {
    /// Nothing collected.
    pub fn new() -> Self {
        let longest = LONGEST.as_micros() as u64;
        Quantiles {
            microseconds: Histogram::new_with_bounds(1, longest, 3)
                .expect("bounds and digits are in range"),
        }
    }

    /// Adds one; more than an hour counts as an hour.
    pub fn record(&mut self, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.saturating_record(microseconds);
    }

    /// Adds all of another collection.
    pub fn add(&mut self, other: &Quantiles) {
        self.microseconds
            .add(&other.microseconds)
            .expect("both have the same bounds");
    }

    /// How many.
    pub fn n(&self) -> u64 {
        self.microseconds.len()
    }

    /// Milliseconds below which this share (0.0 to 1.0) of the times lies; nothing when there are none.
    pub fn ms(&self, quantile: f64) -> Option<f64> {
        if self.microseconds.is_empty() {
            return None;
        }
        figure(self.microseconds.value_at_quantile(quantile) as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(microseconds: impl IntoIterator<Item = u64>) -> Quantiles {
        let mut quantiles = Quantiles::new();
        for us in microseconds {
            quantiles.record(Duration::from_micros(us));
        }
        quantiles
    }

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let quantiles = of(1..=100_000);
        for (quantile, expected) in [
            (0.0, 0.001),
            (0.5, 50.0),
            (0.95, 95.0),
            (0.99, 99.0),
            (1.0, 100.0),
        ] {
            let ms = quantiles.ms(quantile).unwrap();
            assert!(
                (ms - expected).abs() <= expected / 1000.0,
                "p{quantile}: {ms}"
            );
        }
        assert_eq!(quantiles.n(), 100_000);
    }

    #[test]
    fn small_times_keep_their_microseconds() {
        assert_eq!(of([7, 7, 1234]).ms(0.5), Some(0.007));
        assert_eq!(of([7, 7, 1234]).ms(1.0), Some(1.234));
        assert_eq!(of([0]).ms(0.5), Some(0.0));
    }

    #[test]
    fn nothing_has_no_quantiles_and_eternity_is_an_hour() {
        assert_eq!(Quantiles::new().ms(0.5), None);
        let mut quantiles = of([]);
        quantiles.record(Duration::MAX);
        let ms = quantiles.ms(1.0).unwrap();
        assert!((ms - 3_600_000.0).abs() < 3600.0, "{ms}");
    }

    #[test]
    fn collections_add_up() {
        let mut all = of([1000]);
        all.add(&of([3000, 3000]));
        assert_eq!((all.n(), all.ms(0.5)), (3, of([3000]).ms(0.5)));
    }
}
