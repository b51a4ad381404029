//! Time in whole seconds: python-tuf cannot read fractions in `expires`.

use anyhow::{Context, Result};
use jiff::Timestamp;

/// Seconds of a day.
const DAY_SECONDS: i64 = 86_400;

/// Now, without fractions.
pub fn now() -> Timestamp {
    whole(Timestamp::now())
}

/// Without fractions.
pub fn whole(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a time without its fraction is a time")
}

/// Reads a time such as `2026-11-21T13:30:00Z`.
///
/// # Errors
/// It is another text.
pub fn parse(text: &str) -> Result<Timestamp> {
    let time: Timestamp = text
        .parse()
        .with_context(|| format!("time {text:?}, expected one like 2026-11-21T13:30:00Z"))?;
    Ok(whole(time))
}

/// Some days later.
///
/// # Errors
/// That is beyond the year 9999.
pub fn days_after(time: Timestamp, days: i64) -> Result<Timestamp> {
    let seconds = time
        .as_second()
        .saturating_add(days.saturating_mul(DAY_SECONDS));
    Timestamp::from_second(seconds).with_context(|| format!("{days} days after {time}"))
}

/// Days from one to the other, rounded down.
pub fn days_between(from: Timestamp, to: Timestamp) -> i64 {
    (to.as_second() - from.as_second()).div_euclid(DAY_SECONDS)
}
