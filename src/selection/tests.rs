use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::{Index, subsequence};

use super::*;
use crate::board::caps::Caps;
use crate::board::throttle::OverCurrent;
use crate::config::{Choose, Config, Place, ProfileConfig, Sources, load};
use crate::frames::KvType;

const COOL: HeatReading = HeatReading {
    celsius: Some(50.0),
    is_throttling: false,
    over_current: None,
};
const HOT: HeatReading = HeatReading {
    celsius: Some(95.0),
    ..COOL
};

fn config() -> PowerConfig {
    load(&Sources::defaults()).unwrap().power
}

fn auto() -> PowerConfig {
    PowerConfig {
        choose: Choose::Auto,
        ..config()
    }
}

fn line(model: &str, n_seq_max: u32, gib: u64) -> Line {
    Line {
        model: model.into(),
        n_seq_max,
        n_ctx: Some(4096),
        kv_type_k: None,
        kv_type_v: None,
        memory_bytes: Some(gib << 30),
        source: Source::Profile(model.into()),
    }
}

/// Plays a timeline: from each second on these candidates and this reading, one step each half second;
/// what changed, when.
fn play(scenes: &[(u64, &[Line], HeatReading)], end_s: u64) -> Vec<(f64, Change)> {
    let mut selection = Selection::new(&config());
    let mut changes = Vec::new();
    for half in 0..end_s * 2 {
        let now = Duration::from_millis(half * 500);
        let begun = scenes.iter().rev().find(|(from_s, ..)| *from_s * 2 <= half);
        let (_, candidates, reading) = begun.unwrap();
        let change = selection.step(now, candidates, reading);
        changes.extend(change.map(|change| (now.as_secs_f64(), change)));
    }
    changes
}

/// `12.5 switch small x1`, as one reads it.
fn told(changes: &[(f64, Change)]) -> Vec<String> {
    let tell = |(at_s, change): &(f64, Change)| {
        let kind = match change {
            Change::Switch(_) => "switch to",
            Change::Concurrency(_) => "run",
        };
        let choice = change.choice();
        format!("{at_s} s: {kind} {} x{}", choice.line.model, choice.n_seq)
    };
    changes.iter().map(tell).collect()
}

#[test]
fn the_first_choice_is_made_at_once() {
    let large = [line("large", 4, 6)];
    assert_eq!(
        told(&play(&[(0, &large, COOL)], 10)),
        ["0 s: switch to large x4"]
    );
    let nothing: [Line; 0] = [];
    assert_eq!(play(&[(0, &nothing, COOL)], 10), []);
}

#[test]
fn the_model_follows_a_slower_mode_soon_and_a_faster_one_later() {
    let fast = [line("large", 4, 6), line("small", 4, 2)];
    let slow = [line("small", 4, 2)];
    let scenes: &[(u64, &[Line], HeatReading)] =
        &[(0, &fast, COOL), (10, &slow, COOL), (20, &fast, COOL)];
    assert_eq!(
        told(&play(scenes, 100)),
        [
            "0 s: switch to large x4",
            "12 s: switch to small x4",
            "72 s: switch to large x4",
        ]
    );
}

#[test]
fn a_mode_that_does_not_stand_moves_nothing() {
    let fast = [line("large", 4, 6)];
    let slow = [line("small", 4, 2)];
    let scenes: Vec<(u64, &[Line], HeatReading)> = (0..60)
        .map(|s| (s, if s % 2 == 0 { &fast[..] } else { &slow[..] }, COOL))
        .collect();
    assert_eq!(told(&play(&scenes, 60)), ["0 s: switch to large x4"]);
}

#[test]
fn heat_lowers_concurrency_then_the_model_and_gives_back_in_the_same_steps() {
    let lines = [
        line("large", 4, 6),
        line("alike", 4, 5),
        line("small", 4, 2),
    ];
    assert_eq!(
        told(&play(
            &[(0, &lines, COOL), (60, &lines, HOT), (120, &lines, COOL)],
            420
        )),
        [
            "0 s: switch to large x4",
            "60 s: run large x2",
            "70 s: run large x1",
            "80 s: switch to small x1",
            "182 s: switch to large x1",
            "240 s: run large x2",
            "300 s: run large x4",
        ]
    );
}

#[test]
fn between_high_and_low_nothing_moves() {
    let warm = HeatReading {
        celsius: Some(87.0),
        ..COOL
    };
    let lines = [line("large", 4, 6)];
    assert_eq!(
        told(&play(
            &[(0, &lines, COOL), (5, &lines, HOT), (6, &lines, warm)],
            1000
        )),
        ["0 s: switch to large x4", "5 s: run large x2"]
    );
}

#[test]
fn over_current_counts_as_heat_and_the_normal_rate_of_it_does_not() {
    let lines = [line("large", 4, 6)];
    let counted = |average, instantaneous| HeatReading {
        over_current: Some(OverCurrent {
            under_voltage: Some(0),
            average: Some(average),
            instantaneous: Some(instantaneous),
        }),
        ..COOL
    };
    let mut selection = Selection::new(&config());
    let mut step = |at_s: u64, reading: HeatReading| {
        let change = selection.step(Duration::from_secs(at_s), &lines, &reading);
        change.map(|change| change.choice().n_seq)
    };
    assert_eq!(
        step(0, counted(7, 1000)),
        Some(4),
        "what was counted before says nothing"
    );
    assert_eq!(step(10, counted(7, 1300)), None, "30 a second are normal");
    assert_eq!(step(11, counted(7, 1400)), Some(2), "100 are not");
    assert_eq!(
        step(30, counted(8, 1400)),
        Some(1),
        "average over-current never is"
    );
}

#[test]
fn another_model_that_is_asked_for_comes_at_once_and_heat_never_replaces_it() {
    let asked = [Line {
        source: Source::Pinned,
        ..line("asked", 2, 6)
    }];
    let lines = [line("large", 4, 6), line("small", 4, 2)];
    assert_eq!(
        told(&play(
            &[(0, &lines, COOL), (1, &asked, COOL), (5, &asked, HOT)],
            60
        )),
        [
            "0 s: switch to large x4",
            "1 s: switch to asked x2",
            "5 s: run asked x1"
        ]
    );
}

#[test]
fn a_load_that_failed_is_not_tried_again_at_once() {
    let lines = [line("large", 4, 6), line("small", 4, 2)];
    let mut selection = Selection::new(&config());
    let large = selection.step(Duration::ZERO, &lines, &COOL).unwrap();
    let small = Choice {
        line: lines[1].clone(),
        n_seq: 4,
        n_steps_down: 0,
    };
    selection.correct(Some(small));
    for at_s in 1..60 {
        assert_eq!(
            selection.step(Duration::from_secs(at_s), &lines, &COOL),
            None
        );
    }
    let again = selection.step(Duration::from_secs(60), &lines, &COOL);
    assert_eq!(again, Some(large));
}

// ---- candidates ------------------------------------------------------------------------------------

fn nx(gpu_mhz: u64, emc_mhz: u64) -> Caps {
    Caps {
        gpu_hz: Some(gpu_mhz * 1_000_000),
        n_tpcs: Some(4),
        emc_hz: Some(emc_mhz * 1_000_000),
        n_cores: Some(8),
        cpu_khz: Some(1_497_600),
    }
}

/// The operator's `[profiles.*]` in this text.
fn profiles(text: &str) -> BTreeMap<String, ProfileConfig> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("profiles.toml");
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        place: Place::Path(file),
        ..Sources::defaults()
    };
    let Config { profiles, .. } = load(&sources).unwrap();
    profiles
}

const PROFILES: &str = "
[profiles.a-fast]
gpu_mhz_tpcs_min = 3600
model = \"large\"
n_ctx = 16384
kv_type_k = \"q8_0\"
memory_bytes = 6000000000
[profiles.b-named]
order = 5
mode = \"QUIET\"
model = \"small\"
n_seq_max = 1
[profiles.c-any]
order = 20
model = \"small\"
memory_bytes = 2000000000
";

struct Here<'a> {
    models: BTreeSet<String>,
    fits: &'a dyn Fn(&Line) -> bool,
    mode: Option<&'a str>,
    pinned: Option<&'a str>,
}

impl Here<'_> {
    fn with(models: &[&str]) -> Self {
        Here {
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            fits: &|_| true,
            mode: None,
            pinned: None,
        }
    }

    fn best(&self, config: &PowerConfig, rows: &[Row], caps: Caps) -> Vec<(String, Source)> {
        let lines = self.lines(config, &profiles(PROFILES), rows, caps);
        lines
            .into_iter()
            .map(|line| (line.model, line.source))
            .collect()
    }

    fn lines(
        &self,
        config: &PowerConfig,
        profiles: &BTreeMap<String, ProfileConfig>,
        rows: &[Row],
        caps: Caps,
    ) -> Vec<Line> {
        let site = Site {
            caps,
            mode: self.mode,
            models: &self.models,
            n_seq_max: 8,
            fits: self.fits,
            pinned: self.pinned,
            first: None,
        };
        candidates(config, profiles, rows, &site)
    }
}

fn by(profile: &str) -> Source {
    Source::Profile(profile.into())
}

#[test]
fn profiles_are_taken_by_what_the_mode_allows_in_their_order() {
    let here = Here::with(&["large", "small"]);
    let best = |here: &Here<'_>, caps| here.best(&config(), &[], caps);
    let (large, small) = (
        ("large".into(), by("a-fast")),
        ("small".into(), by("c-any")),
    );
    assert_eq!(best(&here, nx(1173, 3199)), [large, small.clone()]);
    assert_eq!(
        &best(&here, nx(408, 3199))[..],
        std::slice::from_ref(&small)
    );
    let quiet = Here {
        mode: Some("QUIET"),
        ..Here::with(&["large", "small"])
    };
    assert_eq!(
        best(&quiet, nx(408, 3199)),
        [("small".into(), by("b-named")), small]
    );
}

#[test]
fn what_is_not_here_or_does_not_fit_is_passed_over() {
    let small_only = Here::with(&["small"]);
    let caps = nx(1173, 3199);
    let small = [("small".to_owned(), by("c-any"))];
    assert_eq!(small_only.best(&config(), &[], caps), small);
    let tight = Here {
        fits: &|line: &Line| line.memory_bytes.is_some_and(|bytes| bytes < 4 << 30),
        ..Here::with(&["large", "small"])
    };
    assert_eq!(tight.best(&config(), &[], caps), small);
}

#[test]
fn without_a_profile_the_models_that_are_here_serve() {
    let here = Here::with(&["other"]);
    let fallback = [("other".to_owned(), Source::Fallback)];
    assert_eq!(here.best(&config(), &[], nx(1173, 3199)), fallback);
    assert_eq!(Here::with(&[]).best(&config(), &[], nx(1173, 3199)), []);
}

#[test]
fn a_pinned_model_is_loaded_as_its_profile_says() {
    let here = Here {
        pinned: Some("large"),
        ..Here::with(&["large", "small"])
    };
    let lines = here.lines(&config(), &profiles(PROFILES), &[], nx(1173, 3199));
    let [line] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (line.n_ctx, line.kv_type_k),
        (Some(16384), Some(KvType::Q8_0))
    );
    assert_eq!((line.n_seq_max, &line.source), (8, &Source::Pinned));
    // In a mode without a profile for it, as it is configured.
    let lines = here.lines(&config(), &profiles(PROFILES), &[], nx(408, 3199));
    assert_eq!((lines.len(), lines[0].n_ctx), (1, None));
}

fn row(model: &str, caps: Caps, n_seq_max: u32, tok_s: f64) -> Row {
    Row {
        mode: "25W".into(),
        caps,
        model: model.into(),
        n_params: 1_000_000_000 * model.len() as u64,
        n_seq_max,
        n_ctx: 4096,
        kv_type_k: KvType::F16,
        kv_type_v: KvType::F16,
        tok_s,
        ttft_ms: 500.0,
        joules_per_token: None,
        peak_bytes: 1 << 30,
    }
}

#[test]
fn auto_takes_the_largest_model_whose_streams_are_fast_enough() {
    let here = Here::with(&["large", "small"]);
    let mode = nx(1173, 3199);
    let rows = [
        row("small", mode, 1, 60.0),
        row("small", mode, 8, 200.0),
        row("large", mode, 1, 9.0),
        row("large", mode, 4, 24.0),
        row("large", mode, 8, 30.0),
    ];
    let lines = here.lines(&auto(), &BTreeMap::new(), &rows, mode);
    let shown: Vec<_> = lines
        .iter()
        .map(|line| (line.model.as_str(), line.n_seq_max))
        .collect();
    // Eight streams of the large one would have 3.75 tokens a second each.
    assert_eq!(shown, [("large", 4), ("small", 8)]);
}

#[test]
fn auto_goes_by_the_next_slower_mode_where_this_one_was_never_measured() {
    let here = Here::with(&["large", "small"]);
    let rows = [
        row("small", nx(408, 3199), 1, 20.0),
        row("small", nx(306, 2133), 1, 6.0),
    ];
    let best = |caps| here.best(&auto(), &rows, caps);
    assert_eq!(
        best(nx(612, 3199)),
        [("small".into(), Source::Measured("25W".into()))]
    );
    // Slower than everything measured: profiles.
    assert_eq!(best(nx(204, 2133)), [("small".into(), by("c-any"))]);
}

#[test]
fn auto_ranks_modes_by_clocks_memory_and_cores_and_not_by_watts() {
    // As on an NX: the mode of 25 watts has a slower GPU than that of 15.
    let (watts_25, watts_15) = (nx(408, 3199), nx(612, 3199));
    let here = Here::with(&["large", "small"]);
    let of = |mode: &str, row: Row| Row {
        mode: mode.into(),
        ..row
    };
    let rows = [
        of("15W", row("large", watts_15, 1, 9.0)),
        of("25W", row("small", watts_25, 1, 20.0)),
    ];
    let best = |caps| here.best(&auto(), &rows, caps);
    assert_eq!(
        best(watts_15),
        [("large".into(), Source::Measured("15W".into()))]
    );
    assert_eq!(
        best(watts_25),
        [("small".into(), Source::Measured("25W".into()))]
    );
    // A mode that was never measured goes by the next slower one: by its GPU, then memory, then cores.
    let between = best(nx(510, 3199));
    assert_eq!(between, [("small".into(), Source::Measured("25W".into()))]);
    let fewer_cores = Caps {
        n_cores: Some(4),
        ..watts_15
    };
    for slower in [nx(612, 2133), fewer_cores] {
        assert_eq!(
            best(slower)[0].1,
            Source::Measured("25W".into()),
            "{slower:?}"
        );
    }
    assert_eq!(best(nx(1173, 3199))[0].1, Source::Measured("15W".into()));
}

#[test]
fn a_table_is_written_and_read_again_and_errors_name_the_row() {
    let mut rows = vec![row("small", nx(408, 3199), 1, 20.0)];
    rows[0].joules_per_token = Some(0.4);
    let text = to_json(&rows).unwrap();
    assert_eq!(parse_table(text.as_bytes()).unwrap(), rows);
    let none = parse_table(b"{\"version\": 1, \"rows\": [\n\n]}");
    assert!(none.unwrap().is_empty());
    let newer = parse_table(b"{\"version\": 2, \"rows\": []}").unwrap_err();
    assert!(
        newer.to_string().contains("version 2, expected 1"),
        "{newer}"
    );
    rows.push(row("large", nx(408, 3199), 0, 20.0));
    let error = parse_table(to_json(&rows).unwrap().as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 1 of the table (large in 25W): n_seq_max: expected 1 to 64"
    );
    assert!(parse_table(b"[]").is_err());
    assert!(parse_table(&vec![b' '; TABLE_BYTES_MAX + 1]).is_err());
}

// ---- properties ------------------------------------------------------------------------------------

fn lines() -> impl Strategy<Value = Vec<Line>> {
    let one = (0..5u8, 1..=8u32, prop::option::of(1..8u64)).prop_map(|(name, n_seq, gib)| Line {
        memory_bytes: gib.map(|gib| gib << 30),
        ..line(&format!("m{name}"), n_seq, 0)
    });
    prop::collection::vec(one, 0..5)
}

fn reading() -> impl Strategy<Value = HeatReading> {
    (
        prop::option::of(40.0..100.0f32),
        prop::bool::weighted(0.1),
        prop::option::of((0..3u64, 0..1000u64)),
    )
        .prop_map(|(celsius, is_throttling, counted)| HeatReading {
            celsius,
            is_throttling,
            over_current: counted.map(|(average, instantaneous)| OverCurrent {
                under_voltage: None,
                average: Some(average),
                instantaneous: Some(instantaneous),
            }),
        })
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let one = (
        0..4usize,
        0..3u64,
        1..=8u32,
        1.0..100.0f64,
        100.0..5000.0f64,
        1..9u64,
    );
    let one = one.prop_map(|(model, speed, n_seq, tok_s, ttft_ms, gib)| Row {
        ttft_ms,
        peak_bytes: gib << 30,
        ..row(
            ["a", "bb", "ccc", "dddd"][model],
            nx(306 * (speed + 1), 3199),
            n_seq,
            tok_s,
        )
    });
    prop::collection::vec(one, 0..30)
}

proptest! {
    #[test]
    fn each_step_of_the_ladder_has_fewer_sequences_or_a_smaller_model(lines in lines()) {
        for pair in ladder(&lines).windows(2) {
            let [(before, n_before), (after, n_after)] = pair else { unreachable!() };
            prop_assert!(n_after <= n_before);
            prop_assert!(n_after < n_before || after.is_smaller_than(before));
        }
        if let Some(best) = lines.first() {
            prop_assert_eq!(ladder(&lines)[0], (best, best.n_seq_max));
        }
    }

    #[test]
    fn nothing_larger_is_loaded_soon_after_a_switch(
        scenes in prop::collection::vec((lines(), reading(), 1..40u64), 1..30),
    ) {
        let config = config();
        let mut selection = Selection::new(&config);
        let mut now = Duration::ZERO;
        let mut switched_at: Option<Duration> = None;
        for (lines, reading, seconds) in &scenes {
            for _ in 0..*seconds {
                now += Duration::from_secs(1);
                let before = selection.current().cloned();
                let change = selection.step(now, lines, reading);
                if let Some(change) = &change {
                    let choice = change.choice();
                    prop_assert!((1..=choice.line.n_seq_max).contains(&choice.n_seq));
                    prop_assert_eq!(selection.current(), Some(choice));
                    let loads = before.as_ref().is_none_or(|before| !before.line.loads_like(&choice.line));
                    prop_assert_eq!(matches!(change, Change::Switch(_)), loads);
                }
                if let Some(Change::Switch(choice)) = change {
                    prop_assert!(lines.contains(&choice.line));
                    if let Some((at, before)) = switched_at.zip(before) {
                        let is_smaller = choice.line.is_smaller_than(&before.line);
                        prop_assert!(is_smaller || now - at >= config.hold);
                    }
                    switched_at = Some(now);
                }
            }
        }
    }

    #[test]
    fn what_stays_the_same_comes_to_rest(
        before in prop::collection::vec((lines(), reading()), 0..20),
        lines in lines(),
        celsius in 0.0..110.0f32,
    ) {
        let mut selection = Selection::new(&config());
        let mut now = Duration::ZERO;
        for (lines, reading) in &before {
            now += Duration::from_secs(7);
            selection.step(now, lines, reading);
        }
        let reading = HeatReading { celsius: Some(celsius), ..COOL };
        let mut last_change = now;
        for _ in 0..2000 {
            now += Duration::from_secs(1);
            if selection.step(now, &lines, &reading).is_some() {
                last_change = now;
            }
        }
        // At most eight steps of a minute each, and a switch.
        prop_assert!(now - last_change > Duration::from_secs(1000));
        if let (Some(best), true) = (lines.first(), celsius <= 82.0) {
            let current = selection.current().unwrap();
            prop_assert!(current.line.loads_like(best));
            prop_assert_eq!(current.n_seq, best.n_seq_max);
        }
    }

    #[test]
    fn auto_never_takes_what_is_slow_absent_or_too_large(
        rows in rows(),
        models in subsequence(vec!["a", "bb", "ccc", "dddd"], 0..=4),
        speed in 0..4u64,
        gib_max in 1..9u64,
        at in any::<Index>(),
    ) {
        let config = auto();
        let fits = |line: &Line| line.memory_bytes.is_some_and(|bytes| bytes <= gib_max << 30);
        let here = Here { fits: &fits, ..Here::with(&models) };
        let caps = nx(306 * (speed + 1), 3199);
        let none = BTreeMap::new();
        let lines = here.lines(&config, &none, &rows, caps);
        let measured: Vec<&Line> = lines.iter().filter(|line| line.source != Source::Fallback).collect();
        for line in &measured {
            prop_assert!(fits(line) && here.models.contains(&line.model));
            let is_row = |row: &&Row| row.line() == **line && row.caps.rank() <= caps.rank();
            let row = rows.iter().filter(is_row).max_by(|a, b| a.tok_s.total_cmp(&b.tok_s)).unwrap();
            prop_assert!(row.tok_s_stream() >= f64::from(config.tok_s_min));
        }
        // One line for each model, the largest first, whatever the order of the rows.
        prop_assert!(measured.windows(2).all(|pair| pair[0].model.len() > pair[1].model.len()));
        let mut turned = rows.clone();
        if !turned.is_empty() {
            let middle = at.index(turned.len());
            turned.rotate_left(middle);
        }
        prop_assert_eq!(here.lines(&config, &none, &turned, caps), lines);
    }

    #[test]
    fn no_bytes_make_the_table_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_table(&bytes);
    }
}
