//! Who takes a release when: a fresh order of all devices for each release, and shares of it.
//!
//! A device's place among 2048 follows from its name and the release, so that no list is kept anywhere, and
//! the same device is not first each time. A wave takes in the places below its percentage. Time is counted
//! from the moment at which the device itself saw the release first: boards without a clock, and those that
//! were away for a month, take it a while after they came back, which is no flood either.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::{Check, FileError};
use super::name::LineName;

/// Places among which devices are spread.
pub const PLACES: u32 = 2048;
/// Most waves of one release.
pub const WAVES_MAX: usize = 32;
/// Longest wait for a wave, seconds: 90 days.
pub const START_AFTER_SECONDS_MAX: u64 = 90 * 86_400;

/// One step of a release into the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// Seconds after a device saw the release first.
    pub start_after_s: u64,
    /// Devices that have it then, of all; the waves before are counted in.
    pub percent: u8,
}

/// Place of a device in the order of a release, below [`PLACES`].
pub fn place(device: &str, line: &LineName, release_seq: u64) -> u32 {
    let mut hash = Sha256::new();
    // Names have no NUL, so different triples are different texts.
    for part in [device, line.as_str(), &release_seq.to_string()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    u32::from(u16::from_be_bytes([digest[0], digest[1]])) % PLACES
}

/// Whether the first `percent` of all devices have this place among them.
pub fn is_within(place: u32, percent: u8) -> bool {
    u64::from(place) * 100 < u64::from(PLACES) * u64::from(percent)
}

/// Share of the devices whose turn it is, in percent, `seen_s` seconds after the release was seen first.
/// Without waves all.
pub fn percent_open(waves: &[Wave], seen_s: u64) -> u8 {
    if waves.is_empty() {
        return 100;
    }
    let open = waves.iter().filter(|wave| wave.start_after_s <= seen_s);
    open.map(|wave| wave.percent).max().unwrap_or(0)
}

/// Seconds after the release was seen first at which the turn of this place comes; `None` when no wave takes it.
pub fn starts_after_s(waves: &[Wave], place: u32) -> Option<u64> {
    if waves.is_empty() {
        return Some(0);
    }
    let taken = waves.iter().filter(|wave| is_within(place, wave.percent));
    taken.map(|wave| wave.start_after_s).min()
}

/// That waves come one after the other and take in more each time.
pub(super) fn check(check: Check, key: &str, waves: &[Wave]) -> Result<(), FileError> {
    check.count(key, waves.len(), WAVES_MAX)?;
    for (idx, wave) in waves.iter().enumerate() {
        let key = |part: &str| format!("{key}[{idx}].{part}");
        check.within(key("percent"), wave.percent.into(), 1..=100)?;
        check.within(
            key("start_after_s"),
            wave.start_after_s,
            0..=START_AFTER_SECONDS_MAX,
        )?;
        let before = idx.checked_sub(1).map(|before| waves[before]);
        let is_later = before.is_none_or(|before| {
            before.percent < wave.percent && before.start_after_s <= wave.start_after_s
        });
        check.that(
            is_later,
            key("percent"),
            wave.percent,
            "more than the wave before, and not earlier",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line() -> LineName {
        LineName::new("assistant-s").unwrap()
    }

    #[test]
    fn each_release_orders_the_fleet_anew_and_a_percentage_is_about_that_many() {
        let fleet: Vec<String> = (0..3000).map(|n| format!("press-{n}")).collect();
        let first = |seq: u64| -> Vec<&String> {
            let is_first = |device: &&String| is_within(place(device, &line(), seq), 5);
            fleet.iter().filter(is_first).collect()
        };
        let (one, two) = (first(1), first(2));
        assert!((100..=200).contains(&one.len()), "{}", one.len());
        let both = one.iter().filter(|device| two.contains(device)).count();
        assert!(both < 30, "{both} of {} are first again", one.len());
    }

    proptest! {
        #[test]
        fn everybody_is_within_all_and_nobody_within_none(device in "[a-z0-9-]{1,20}", seq: u64) {
            let place = place(&device, &line(), seq);
            prop_assert!(place < PLACES);
            prop_assert!(is_within(place, 100));
            prop_assert!(!is_within(place, 0));
        }

        #[test]
        fn a_device_starts_when_its_share_opens(
            place in 0..PLACES,
            mut steps in prop::collection::btree_map(1u8..=100, 0u64..10_000, 0..6),
        ) {
            let mut times: Vec<u64> = steps.values().copied().collect();
            times.sort_unstable();
            for (time, sorted) in steps.values_mut().zip(times) {
                *time = sorted;
            }
            let waves: Vec<Wave> = steps
                .into_iter()
                .map(|(percent, start_after_s)| Wave { start_after_s, percent })
                .collect();
            prop_assert!(check(Check("test"), "waves", &waves).is_ok());
            match starts_after_s(&waves, place) {
                Some(at) => {
                    prop_assert!(is_within(place, percent_open(&waves, at)));
                    prop_assert!(at == 0 || !is_within(place, percent_open(&waves, at - 1)));
                }
                None => prop_assert!(!is_within(place, percent_open(&waves, u64::MAX))),
            }
        }

        #[test]
        fn waves_that_shrink_or_go_back_in_time_are_refused(
            a in 1u8..=100, b in 1u8..=100, from in 0u64..100, to in 0u64..100,
        ) {
            let waves = [
                Wave { start_after_s: from, percent: a },
                Wave { start_after_s: to, percent: b },
            ];
            prop_assert_eq!(check(Check("test"), "waves", &waves).is_ok(), a < b && from <= to);
        }
    }
}
