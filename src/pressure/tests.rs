use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn thresholds() -> Thresholds {
    Thresholds {
        trim_bytes: 4 * GIB,
        park_bytes: 3 * GIB,
        shrink_bytes: 2 * GIB,
        kill_bytes: GIB,
        margin_bytes: GIB / 2,
        hold: Duration::from_secs(5),
        settle: Duration::from_millis(500),
        stale: Duration::from_secs(2),
    }
}

/// Every step gives something back.
const ALL: Relief = Relief {
    trim_bytes: 1,
    park_bytes: 1,
    shrink_bytes: 1,
    kill_bytes: 1,
    regrowth_bytes: 0,
};

/// A ladder that is read every 100 ms.
struct Play {
    ladder: Ladder,
    now: Duration,
    relief: Relief,
}

impl Play {
    fn new() -> Self {
        Self {
            ladder: Ladder::new(thresholds(), Duration::ZERO),
            now: Duration::ZERO,
            relief: ALL,
        }
    }

    fn read(&mut self, available: impl Into<Option<u64>>) -> Option<Change> {
        self.now += Duration::from_millis(100);
        self.ladder.step(available.into(), &self.relief, self.now)
    }

    /// The levels entered while the same is read for a while.
    fn hold(&mut self, available: impl Into<Option<u64>> + Copy, seconds: u64) -> Vec<Level> {
        let n = seconds * 10;
        (0..n)
            .filter_map(|_| self.read(available))
            .map(|change| change.to)
            .collect()
    }
}

#[test]
fn a_slow_fall_and_rise_visits_every_level_in_order_and_back() {
    let mut play = Play::new();
    let down: Vec<Level> = [3.5, 2.5, 1.5, 0.5]
        .into_iter()
        .flat_map(|gib| play.hold((gib * GIB as f64) as u64, 2))
        .collect();
    assert_eq!(down, [Level::Trim, Level::Park, Level::Shrink, Level::Kill]);
    assert_eq!(
        play.hold(8 * GIB, 60),
        [Level::Shrink, Level::Park, Level::Trim, Level::Ok]
    );
}

#[test]
fn a_single_low_reading_does_nothing() {
    let mut play = Play::new();
    for _ in 0..50 {
        assert_eq!(play.read(8 * GIB), None);
        assert_eq!(play.read(2 * GIB + 1), None);
    }
}

#[test]
fn below_the_lowest_threshold_the_worker_goes_at_the_first_reading() {
    let mut play = Play::new();
    let change = play.read(GIB - 1).unwrap();
    assert_eq!((change.from, change.to), (Level::Ok, Level::Kill));
    assert_eq!(change.available_bytes, Some(GIB - 1));
}

#[test]
fn a_step_has_time_to_work_before_the_next() {
    let mut play = Play::new();
    let mut at = Vec::new();
    for _ in 0..20 {
        if let Some(change) = play.read(GIB + 1) {
            at.push((change.to, play.now.as_millis()));
        }
    }
    assert_eq!(
        at,
        [
            (Level::Trim, 200),
            (Level::Park, 700),
            (Level::Shrink, 1200)
        ]
    );
}

#[test]
fn a_step_that_gives_nothing_back_is_passed_over() {
    let mut play = Play::new();
    play.relief.trim_bytes = 0;
    play.relief.park_bytes = 0;
    assert_eq!(play.hold(GIB + 1, 3), [Level::Shrink]);
}

#[test]
fn the_level_that_is_wanted_is_entered_for_what_it_forbids_even_when_it_gives_nothing_back() {
    let mut play = Play::new();
    play.relief = Relief::default();
    assert_eq!(play.hold(3 * GIB - 1, 3), [Level::Park]);
}

/// Another program keeps what it took. The worker's memory, once given back, is above every threshold; loaded
/// again it would be short again at once.
#[test]
fn what_a_step_gave_back_is_not_taken_again_where_it_would_be_short_again() {
    let mut play = Play::new();
    assert_eq!(play.read(GIB / 2).unwrap().to, Level::Kill);
    play.relief.regrowth_bytes = 6 * GIB;
    assert_eq!(
        play.hold(13 * GIB / 2, 60),
        [],
        "1 + 0.5 + 6 GiB are needed"
    );
    play.relief.regrowth_bytes = 3 * GIB;
    assert_eq!(
        play.hold(13 * GIB / 2, 6),
        [Level::Shrink],
        "a smaller one fits"
    );
}

#[test]
fn memory_at_a_threshold_does_not_flap() {
    let mut play = Play::new();
    let mut n_changes = 0;
    for turn in 0..6000 {
        let wobble = if turn % 2 == 0 { GIB / 4 } else { 0 };
        n_changes += usize::from(play.read(4 * GIB - GIB / 8 + wobble).is_some());
    }
    assert!(n_changes <= 1, "{n_changes} changes in ten minutes");
}

#[test]
fn without_readings_the_node_takes_nothing_new_and_recovers_when_they_come_again() {
    let mut play = Play::new();
    assert_eq!(play.read(8 * GIB), None);
    assert_eq!(play.hold(None, 2), []);
    assert_eq!(play.hold(None, 2), [Level::Park]);
    assert!(play.ladder.is_stale(play.now));
    assert_eq!(play.hold(8 * GIB, 12), [Level::Trim, Level::Ok]);
}

#[test]
fn readings_come_faster_the_nearer_the_first_threshold_is() {
    let t = thresholds();
    assert_eq!(t.next_reading(64 * GIB), SLOWEST);
    assert_eq!(t.next_reading(4 * GIB), QUICKEST);
    assert_eq!(t.next_reading(0), QUICKEST);
    assert!(t.next_reading(5 * GIB) < t.next_reading(6 * GIB));
}

fn readings() -> impl Strategy<Value = Vec<Option<u64>>> {
    let one = prop_oneof![9 => (0..10 * GIB).prop_map(Some), 1 => Just(None)];
    prop::collection::vec(one, 1..400)
}

proptest! {
    #[test]
    fn changes_form_a_chain_up_by_one_and_down_by_need(readings in readings(), relief in prop::array::uniform4(0..2u64)) {
        let mut play = Play::new();
        play.relief = Relief { trim_bytes: relief[0], park_bytes: relief[1], shrink_bytes: relief[2], kill_bytes: relief[3], regrowth_bytes: 0 };
        let mut level = Level::Ok;
        for reading in readings {
            if let Some(change) = play.read(reading) {
                prop_assert_eq!(change.from, level);
                prop_assert_ne!(change.to, level);
                match reading {
                    // Down, never deeper than the reading asks for.
                    Some(available) if change.to > level => prop_assert!(available < thresholds().of(change.to)),
                    Some(available) => {
                        prop_assert_eq!(change.to, level.above());
                        prop_assert!(available >= thresholds().of(level) + thresholds().margin_bytes);
                    }
                    None => prop_assert_eq!(change.to, Level::Park),
                }
                level = change.to;
            }
            if reading.is_some_and(|available| available < thresholds().kill_bytes) {
                prop_assert_eq!(play.ladder.level(), Level::Kill);
            }
        }
    }

    #[test]
    fn plenty_for_long_enough_always_ends_at_ok(readings in readings()) {
        let mut play = Play::new();
        for reading in readings {
            play.read(reading);
        }
        play.hold(64 * GIB, 30);
        prop_assert_eq!(play.ladder.level(), Level::Ok);
    }

    #[test]
    fn no_two_changes_up_come_sooner_than_the_hold(readings in readings()) {
        let mut play = Play::new();
        let mut last: Option<Duration> = None;
        for reading in readings {
            if let Some(change) = play.read(reading) {
                if change.to < change.from && let Some(last) = last {
                    prop_assert!(play.now - last >= thresholds().hold);
                }
                last = Some(play.now);
            }
        }
    }
}
