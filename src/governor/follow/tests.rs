//! Modes, heat and orders on a board that is made up.

use super::*;
use crate::board::nvpmodel::Mode;
use crate::board::throttle::OverCurrent;
use crate::config::{Sources, load};

/// What a test changes.
pub(in crate::governor) struct Fakes {
    mode: watch::Sender<Present>,
    heat: watch::Sender<HeatReading>,
}

impl Fakes {
    pub(in crate::governor) fn mode(&self, name: &str) {
        self.mode.send_replace(present(name));
    }

    fn celsius(&self, celsius: f32) {
        self.heat.send_replace(HeatReading {
            celsius: Some(celsius),
            ..HeatReading::default()
        });
    }
}

fn present(mode: &str) -> Present {
    Present {
        mode: Some(Mode {
            name: mode.to_owned(),
            ..Mode::default()
        }),
        ..Present::default()
    }
}

/// `large` and `small` in the mode `fast`, `small` alone in every other.
struct Two;

fn line(model: &str) -> Line {
    let gib = if model == "large" { 6 } else { 2 };
    Line {
        model: model.to_owned(),
        n_seq_max: 4,
        n_ctx: None,
        kv_type_k: None,
        kv_type_v: None,
        memory_bytes: Some(gib << 30),
        source: Source::Profile(model.to_owned()),
    }
}

impl Lineup for Two {
    fn candidates(&mut self, moment: &Moment<'_>) -> Vec<Line> {
        let names = match (moment.pinned, mode_of(moment.present)) {
            (Some(model), _) => {
                return vec![Line {
                    source: Source::Pinned,
                    ..line(model)
                }];
            }
            (None, Some("fast")) => &["large", "small"][..],
            (None, _) => &["small"],
        };
        names.iter().map(|name| line(name)).collect()
    }

    fn load(&self, line: &Line) -> Option<LoadSpec> {
        Some(LoadSpec {
            name: line.model.clone(),
            ..crate::governor::tests::spec()
        })
    }

    fn plain(&self, model: &str) -> Line {
        line(model)
    }
}

/// Serves `large` in the mode `fast`; follows at once.
pub(in crate::governor) fn following(pinned: Option<&str>) -> (Following, Fakes) {
    let (mode, present) = watch::channel(present("fast"));
    let (heat, reading) = watch::channel(HeatReading::default());
    let following = Following {
        config: PowerConfig {
            settle: Duration::ZERO,
            hold: Duration::from_secs(60),
            step: Duration::from_secs(10),
            ..load(&Sources::defaults()).unwrap().power
        },
        lineup: Box::new(Two),
        present,
        heat: reading,
        first: Some(line("large")),
        pinned: pinned.map(str::to_owned),
    };
    (following, Fakes { mode, heat })
}

/// A step at this second; what was chosen.
fn at(follow: &mut Follow, second: u64) -> Option<(String, u32)> {
    let change = follow.step(Duration::from_secs(second), 0)?;
    let choice = change.choice();
    Some((choice.line.model.clone(), choice.n_seq))
}

fn chosen(model: &str, n_seq: u32) -> Option<(String, u32)> {
    Some((model.to_owned(), n_seq))
}

#[test]
fn an_order_holds_until_auto() {
    let (following, _fakes) = following(None);
    let mut follow = Follow::new(following);
    let order = |follow: &mut Follow, model, second| {
        let change = follow.order(model, Duration::from_secs(second), 0);
        change.unwrap().choice().line.model.clone()
    };
    assert_eq!(order(&mut follow, Some("small"), 10), "small");
    assert_eq!(follow.report().unwrap().chosen_by, ChosenBy::Operator);
    for second in 11..300 {
        assert_eq!(at(&mut follow, second), None);
    }
    // At once, although something larger was not to be loaded for a minute.
    assert_eq!(order(&mut follow, Some("small"), 300), "small");
    assert_eq!(order(&mut follow, None, 301), "large");
    assert_eq!(follow.report().unwrap().chosen_by, ChosenBy::Profile);
}

#[test]
fn an_order_ends_with_the_next_change_of_the_mode() {
    let (following, fakes) = following(None);
    let mut follow = Follow::new(following);
    fakes.mode("slow");
    assert_eq!(at(&mut follow, 0), chosen("small", 4));
    follow.order(Some("large"), Duration::from_secs(100), 0);
    assert_eq!(follow.report().unwrap().chosen_by, ChosenBy::Operator);
    // The same mode is told again: nothing changed.
    fakes.mode("slow");
    assert_eq!(at(&mut follow, 200), None);
    fakes.mode("slower");
    assert_eq!(at(&mut follow, 300), chosen("small", 4));
}

#[test]
fn with_a_model_in_the_configuration_an_order_outlasts_modes() {
    let (following, fakes) = following(Some("large"));
    let mut follow = Follow::new(following);
    at(&mut follow, 0);
    assert_eq!(follow.report().unwrap().chosen_by, ChosenBy::Configuration);
    fakes.mode("slow");
    assert_eq!(at(&mut follow, 100), None);
    follow.order(Some("small"), Duration::from_secs(200), 0);
    fakes.mode("fast");
    assert_eq!(at(&mut follow, 300), None);
    let change = follow.order(None, Duration::from_secs(400), 0).unwrap();
    assert_eq!(change.choice().line.model, "large");
}

#[test]
fn heat_lowers_concurrency_then_the_model_and_an_order_keeps_its_model() {
    let (following, fakes) = following(None);
    let mut follow = Follow::new(following);
    assert_eq!(at(&mut follow, 0), None);
    fakes.celsius(95.0);
    assert_eq!(at(&mut follow, 10), chosen("large", 2));
    assert!(follow.report().unwrap().hot);
    assert_eq!(at(&mut follow, 20), chosen("large", 1));
    assert_eq!(at(&mut follow, 30), chosen("small", 1));
    assert_eq!(at(&mut follow, 40), None);

    let change = follow.order(Some("large"), Duration::from_secs(50), 0);
    assert_eq!(change.unwrap().choice().n_seq, 1);
    fakes.celsius(50.0);
    let n_seq: Vec<_> = (60..400)
        .filter_map(|s| Some(at(&mut follow, s)?.1))
        .collect();
    assert_eq!(n_seq, [2, 4]);
}

#[test]
fn what_could_not_be_loaded_is_tried_again_in_another_mode_or_later() {
    let (following, fakes) = following(None);
    let mut follow = Follow::new(following);
    fakes.mode("slow");
    let before = follow.before();
    assert_eq!(at(&mut follow, 0), chosen("small", 4));
    follow.failed(before, Duration::ZERO);
    assert_eq!(at(&mut follow, 299), None);
    let before = follow.before();
    assert_eq!(at(&mut follow, 300), chosen("small", 4));
    follow.failed(before, Duration::from_secs(300));
    fakes.mode("slower");
    assert_eq!(at(&mut follow, 301), chosen("small", 4));
}

#[test]
fn an_over_current_counts_once_however_often_it_is_looked_at() {
    let (following, fakes) = following(None);
    let mut follow = Follow::new(following);
    let counted = |n| HeatReading {
        over_current: Some(OverCurrent {
            instantaneous: Some(n),
            ..OverCurrent::default()
        }),
        ..HeatReading::default()
    };
    // 40 a second are normal. Looks in between see no counters at all.
    for second in 0..100 {
        fakes.heat.send_replace(counted(40 * second));
        for part in 0..4 {
            let now = Duration::from_millis(second * 1000 + part * 250);
            assert_eq!(follow.step(now, 0), None);
        }
    }
    fakes.heat.send_replace(counted(8000));
    assert_eq!(at(&mut follow, 100), chosen("large", 2));
}
