use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn pulse(doing: Doing, beat: u64) -> Pulse {
    Pulse {
        doing,
        beat,
        patience: (doing != Doing::Resting).then_some(PATIENCE),
    }
}

/// Verdicts of looks once a second; `beat_at` gives the counter at each second.
fn looks(doing: Doing, seconds: u64, beat_at: impl Fn(u64) -> u64) -> Vec<bool> {
    let (mut vigil, start) = (Vigil::default(), Instant::now());
    (0..seconds)
        .map(|s| {
            let now = start + Duration::from_secs(s);
            vigil.judge(pulse(doing, beat_at(s)), now).is_ok()
        })
        .collect()
}

#[test]
fn a_counter_that_moves_is_enough_however_long_it_takes() {
    for doing in [Doing::Loading, Doing::Serving] {
        assert!(looks(doing, 3600, |s| s / 30).iter().all(|fed| *fed));
    }
}

#[test]
fn a_counter_that_stands_still_is_believed_as_long_as_the_keeper_may_take_to_act() {
    for doing in [
        Doing::Loading,
        Doing::Serving,
        Doing::Ending,
        Doing::Pausing,
    ] {
        let fed = looks(doing, 60, |_| 7);
        let limit = (PATIENCE + GRACE).as_secs() as usize;
        assert!(fed[..=limit].iter().all(|fed| *fed), "{doing:?}");
        assert!(fed[limit + 1..].iter().all(|fed| !*fed), "{doing:?}");
    }
}

#[test]
fn a_worker_that_is_absent_by_decision_needs_no_counter() {
    assert!(looks(Doing::Resting, 3600, |_| 7).iter().all(|fed| *fed));
}

#[test]
fn what_moves_again_is_believed_again() {
    let fed = looks(Doing::Serving, 60, |s| u64::from(s >= 50));
    assert!(!fed[49] && fed[50]);
}

#[test]
fn a_worker_that_a_kill_does_not_end_is_told_as_that() {
    let (mut vigil, start) = (Vigil::default(), Instant::now());
    vigil.judge(pulse(Doing::Ending, 1), start).unwrap();
    let stuck = vigil
        .judge(pulse(Doing::Ending, 1), start + Duration::from_secs(40))
        .unwrap_err();
    assert_eq!(
        stuck.to_string(),
        "the worker does not end for 40 s and nobody does anything about it"
    );
}

proptest! {
    /// Whatever happens, silence beyond the limit is never fed, and anything shorter always is.
    #[test]
    fn fed_exactly_while_the_last_movement_is_near_enough(
        steps in prop::collection::vec((0u64..50, any::<bool>()), 1..60),
    ) {
        let (mut vigil, start) = (Vigil::default(), Instant::now());
        let (mut now, mut beat, mut moved) = (0, 0, 0);
        for (n, (seconds, moves)) in steps.into_iter().enumerate() {
            now += seconds;
            if moves || n == 0 {
                beat += 1;
                moved = now;
            }
            let verdict = vigil.judge(pulse(Doing::Serving, beat), start + Duration::from_secs(now));
            prop_assert_eq!(verdict.is_ok(), now - moved <= (PATIENCE + GRACE).as_secs());
        }
    }
}
