//! Which time it is, as far as a board can know. Pure: facts in, an instant out.
//!
//! Boards come without a battery for their clock, start in 1970 and are offline for months. Two kinds of
//! evidence set a bound from below: *hard* evidence is the time at which this program was made and the signed
//! times in verified metadata; *soft* evidence is a clock that somebody set and that was seen before the power
//! went. A clock below the hard bound is wrong whatever it says of itself. Soft evidence counts for no more than
//! [`AHEAD_MAX_S`] beyond the hard, so that one bad time server cannot make a fleet refuse updates for ever.
//!
//! | clock | known by | `now` |
//! |---|---|---|
//! | synced | a time server, and not below the hard bound | the system's |
//! | unsynced | not below the bound, less than two years above it | the system's |
//! | behind | below the bound | the bound |
//! | suspect | two years or more above the bound | the bound |

use serde::{Deserialize, Serialize};

/// How far a clock that nobody set may be ahead of the evidence, seconds: two years.
pub const AHEAD_MAX_S: u64 = 2 * 365 * 86_400;

/// 2026-11-21T00:00:00Z: this file is no older, and so is every program that contains it.
const WRITTEN_S: u64 = 1_795_219_200;

/// Seconds since 1970 of the sources that this program was built from; what a reproducible build is told in
/// `SOURCE_DATE_EPOCH` counts if it is later.
pub const BUILT_S: u64 = later(WRITTEN_S, option_env!("SOURCE_DATE_EPOCH"));

/// What can be found out about the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// The system's clock, seconds since 1970; 0 if it is before.
    pub system_s: u64,
    /// Whether a time server has set it since the start.
    pub synced: bool,
    /// When the system's time service last saved a time, seconds since 1970.
    pub saved_s: Option<u64>,
    /// Highest signed time in metadata that was verified; see [`signed_time`].
    pub issued_s: Option<u64>,
    /// A synchronised time that we noted before.
    pub noted_s: Option<u64>,
}

/// How far the clock can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// Set by a time server.
    Synced,
    /// Set by nobody, and plausible.
    Unsynced,
    /// Certainly behind.
    Behind,
    /// Too far ahead to be true.
    Suspect,
}

/// The time that expiry is judged by, and how it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustedNow {
    at_s: u64,
    clock: Clock,
    accepts_expired: bool,
}

impl TrustedNow {
    /// Judges the facts.
    pub fn judge(facts: &Facts) -> Self {
        let hard = BUILT_S.max(facts.issued_s.unwrap_or(0));
        let soft = facts
            .saved_s
            .max(facts.noted_s)
            .unwrap_or(0)
            .min(hard.saturating_add(AHEAD_MAX_S));
        let bound = hard.max(soft);
        let system = facts.system_s;
        let (at_s, clock) = match () {
            () if facts.synced && system >= hard => (system, Clock::Synced),
            () if system < bound => (bound, Clock::Behind),
            () if system >= bound.saturating_add(AHEAD_MAX_S) => (bound, Clock::Suspect),
            () => (system, Clock::Unsynced),
        };
        Self {
            at_s,
            clock,
            accepts_expired: false,
        }
    }

    /// A time that needs no judging, as if a time server had set the clock.
    pub const fn exactly(at_s: u64) -> Self {
        Self {
            at_s,
            clock: Clock::Synced,
            accepts_expired: false,
        }
    }

    /// The same, but metadata that has expired is accepted and reported so. Only for a source that a person
    /// brought and put in: versions, floor and signatures hold as ever.
    #[must_use]
    pub const fn accepting_expired(self) -> Self {
        Self {
            accepts_expired: true,
            ..self
        }
    }

    /// Seconds since 1970.
    pub const fn at_s(self) -> u64 {
        self.at_s
    }

    /// How it is known.
    pub const fn clock(self) -> Clock {
        self.clock
    }

    /// Whether metadata may have expired.
    pub const fn accepts_expired(self) -> bool {
        self.accepts_expired
    }
}

/// The signed time that verified metadata proves: the latest in any role, but no later than the moment at which
/// root or targets expire. A thief of the keys of timestamp and snapshot, which lie on a server, so cannot sign
/// a time that makes what the offline keys signed look expired.
pub fn signed_time(
    issued_s: impl IntoIterator<Item = u64>,
    root_expires_s: u64,
    targets_expires_s: u64,
) -> Option<u64> {
    issued_s
        .into_iter()
        .max()
        .map(|latest| latest.min(root_expires_s).min(targets_expires_s))
}

/// The later of a time and the decimal text of one; a text that is none counts for nothing.
const fn later(known: u64, text: Option<&str>) -> u64 {
    let Some(text) = text else { return known };
    let digits = text.as_bytes();
    let mut value = 0u64;
    let mut at = 0;
    while at < digits.len() {
        if !digits[at].is_ascii_digit() || at >= 12 {
            return known;
        }
        value = value * 10 + (digits[at] - b'0') as u64;
        at += 1;
    }
    if value > known { value } else { known }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const YEAR_S: u64 = 365 * 86_400;

    fn at(system_s: u64) -> Facts {
        Facts {
            system_s,
            ..Facts::default()
        }
    }

    #[test]
    fn clock_in_1970_counts_as_the_time_of_the_last_signature() {
        let now = TrustedNow::judge(&Facts {
            issued_s: Some(BUILT_S + YEAR_S),
            ..at(0)
        });
        assert_eq!((now.at_s(), now.clock()), (BUILT_S + YEAR_S, Clock::Behind));
    }

    #[test]
    fn clock_in_2099_that_nobody_set_is_suspect_and_does_not_count() {
        let now = TrustedNow::judge(&at(4_070_908_800));
        assert_eq!((now.at_s(), now.clock()), (BUILT_S, Clock::Suspect));
    }

    #[test]
    fn clock_set_by_a_time_server_counts_in_2099_too() {
        let now = TrustedNow::judge(&Facts {
            synced: true,
            ..at(4_070_908_800)
        });
        assert_eq!((now.at_s(), now.clock()), (4_070_908_800, Clock::Synced));
    }

    #[test]
    fn clock_below_a_signed_time_is_behind_though_a_time_server_set_it() {
        let now = TrustedNow::judge(&Facts {
            synced: true,
            issued_s: Some(BUILT_S + YEAR_S),
            ..at(BUILT_S)
        });
        assert_eq!(now.clock(), Clock::Behind);
    }

    #[test]
    fn time_that_was_saved_before_the_power_went_is_kept() {
        let now = TrustedNow::judge(&Facts {
            saved_s: Some(BUILT_S + 1000),
            noted_s: Some(BUILT_S + 2000),
            ..at(0)
        });
        assert_eq!((now.at_s(), now.clock()), (BUILT_S + 2000, Clock::Behind));
    }

    #[test]
    fn one_bad_time_server_costs_two_years_at_most_and_nothing_once_repaired() {
        let spoofed = Facts {
            noted_s: Some(4_070_908_800),
            ..at(BUILT_S + 10)
        };
        assert_eq!(
            TrustedNow::judge(&spoofed).at_s(),
            BUILT_S + AHEAD_MAX_S,
            "no further than that"
        );
        let repaired = Facts {
            synced: true,
            ..spoofed
        };
        assert_eq!(TrustedNow::judge(&repaired).at_s(), BUILT_S + 10);
    }

    #[test]
    fn build_time_is_read_from_the_environment_only_if_it_is_one() {
        assert_eq!(later(100, Some("250")), 250);
        for text in ["50", "", "abc", "2 50", "-250", "99999999999999999999"] {
            assert_eq!(later(100, Some(text)), 100, "{text:?}");
        }
        assert_eq!(later(100, None), 100);
    }

    proptest! {
        #[test]
        fn now_is_never_below_the_hard_evidence(
            system_s: u64, synced: bool, saved_s: Option<u64>, issued_s: Option<u64>, noted_s: Option<u64>,
        ) {
            let facts = Facts { system_s, synced, saved_s, issued_s, noted_s };
            let hard = BUILT_S.max(issued_s.unwrap_or(0));
            prop_assert!(TrustedNow::judge(&facts).at_s() >= hard);
        }

        #[test]
        fn clock_that_nobody_set_moves_now_less_than_four_years_beyond_the_hard_evidence(
            system_s: u64, saved_s: Option<u64>, issued_s in proptest::option::of(0..u64::MAX / 2),
            noted_s: Option<u64>,
        ) {
            let facts = Facts { system_s, synced: false, saved_s, issued_s, noted_s };
            let hard = BUILT_S.max(issued_s.unwrap_or(0));
            prop_assert!(TrustedNow::judge(&facts).at_s() < hard + 2 * AHEAD_MAX_S);
        }

        #[test]
        fn nothing_but_a_person_accepts_what_has_expired(system_s: u64, synced: bool) {
            let now = TrustedNow::judge(&Facts { system_s, synced, ..Facts::default() });
            prop_assert!(!now.accepts_expired());
            prop_assert!(now.accepting_expired().accepts_expired());
            prop_assert_eq!(now.accepting_expired().at_s(), now.at_s());
        }

        #[test]
        fn no_signed_time_makes_root_or_targets_look_expired(
            issued in proptest::collection::vec(any::<u64>(), 0..4), root: u64, targets: u64,
        ) {
            let proven = signed_time(issued.iter().copied(), root, targets);
            prop_assert_eq!(proven.is_some(), !issued.is_empty());
            prop_assert!(proven.is_none_or(|proven| proven <= root && proven <= targets));
        }
    }
}
