//! PURE: which model has its turn, where one serves at a time and requests name several.
//!
//! The model that serves holds the turn. Each other model that somebody waits for has a *claim*. A holder that
//! has nothing left to do gives way at once. One that has work keeps its turn for a while, by the classes of what
//! it does and of what waits elsewhere:
//!
//! | waits elsewhere | the turn lasts |
//! |---|---|
//! | the same class | [`Rules::turn`] |
//! | a more urgent one | an eighth of it |
//! | a less urgent one | four of it; one, once that has waited for four |
//!
//! The next is the model of the most urgent class, of equals the one that has waited longest since its own last
//! turn. A claim that has waited for four turns goes before all that came later, whatever their class. So of `k`
//! models, each loaded in a time `l`, nobody waits longer than `4 turn + k (turn + l)` for a turn; and the time
//! between two changes is at least an eighth of a turn wherever there is work.

use std::cmp::{Ordering, Reverse};
use std::time::Duration;

use crate::wire::request::Priority;

/// Turns that a less urgent class waits.
pub const PATIENCE: u32 = 4;
/// A more urgent class waits for one part in so many of a turn.
pub const HASTE: u32 = 8;

/// How long turns are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A turn, while as much waits elsewhere.
    pub turn: Duration,
}

/// The model whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Since when it serves, on the caller's clock; `None`: it is being loaded.
    pub since: Option<Duration>,
    /// The most urgent class of what waits for it or runs in it; `None`: nothing does.
    pub class: Option<Priority>,
}

/// Another model that somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The most urgent class of what waits.
    pub class: Priority,
    /// Since when: its oldest request came, or its own last turn ended, whichever was later.
    pub since: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The holder stays; to be looked at again at this time.
    Stay(Option<Duration>),
    /// It is the turn of this claim.
    Turn(usize),
}

/// Whose turn it is now. Without a holder nothing serves, nor is about to.
pub fn step(rules: &Rules, holder: Option<&Holder>, claims: &[Claim], now: Duration) -> Step {
    let Some(first) = order(rules, claims, now).first().copied() else {
        return Step::Stay(None);
    };
    let Some((holder, class)) = holder.and_then(|holder| Some((holder, holder.class?))) else {
        return Step::Turn(first);
    };
    let Some(since) = holder.since else {
        return Step::Stay(None);
    };
    let ends = claims.iter().map(|claim| end(rules, since, class, claim));
    match ends.min() {
        Some(end) if end <= now => Step::Turn(first),
        end => Step::Stay(end),
    }
}

/// What is known about the time that a model takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stint {
    /// Until it serves.
    pub load: Duration,
    /// Until what waits for it or runs in it has ended; `None`: not known, or beyond its turn.
    pub work: Option<Duration>,
}

/// About how long until the model of this claim serves, if nobody else comes. `stints` are those of the claims.
pub fn serves_in(
    rules: &Rules,
    holder: Option<(&Holder, Stint)>,
    claims: &[Claim],
    stints: &[Stint],
    index: usize,
    now: Duration,
) -> Option<Duration> {
    let (own, stint) = (claims.get(index)?, stints.get(index)?);
    let held = match holder {
        Some((holder, stint)) => match (holder.class, holder.since) {
            (None, _) => Duration::ZERO,
            (Some(class), since) => {
                let serves = since.unwrap_or(now + stint.load);
                let left = end(rules, serves, class, own).saturating_sub(now);
                stint.work.map_or(left, |work| work.min(left))
            }
        },
        None => Duration::ZERO,
    };
    let order = order(rules, claims, now);
    let before = order.into_iter().take_while(|other| *other != index);
    let before = before.filter_map(|other| {
        let stint = stints.get(other)?;
        let work = stint.work.unwrap_or(rules.turn).min(rules.turn);
        Some(stint.load + work)
    });
    Some(held + before.sum::<Duration>() + stint.load)
}

/// When the turn of a holder with work ends for the sake of this claim.
fn end(rules: &Rules, since: Duration, class: Priority, claim: &Claim) -> Duration {
    let one = since + rules.turn;
    match claim.class.cmp(&class) {
        Ordering::Greater => since + rules.turn / HASTE,
        Ordering::Equal => one,
        Ordering::Less => {
            let patience = rules.turn * PATIENCE;
            (since + patience).min(one.max(claim.since + patience))
        }
    }
}

/// The claims, whose turn is next first.
fn order(rules: &Rules, claims: &[Claim], now: Duration) -> Vec<usize> {
    let mut order = Vec::from_iter(0..claims.len());
    order.sort_by_key(|index| {
        let claim = &claims[*index];
        let has_waited = now.saturating_sub(claim.since) >= rules.turn * PATIENCE;
        let class = match has_waited {
            true => Priority::Alarm,
            false => claim.class,
        };
        (Reverse(class), claim.since, *index)
    });
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        turn: Duration::from_secs(16),
    };

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn claim(class: Priority, since: u64) -> Claim {
        Claim {
            class,
            since: s(since),
        }
    }

    fn holder(class: Option<Priority>, since: Option<u64>) -> Holder {
        Holder {
            since: since.map(s),
            class,
        }
    }

    #[test]
    fn nobody_gives_way_where_nobody_waits() {
        let idle = holder(None, Some(0));
        assert_eq!(step(&RULES, Some(&idle), &[], s(9999)), Step::Stay(None));
        assert_eq!(step(&RULES, None, &[], s(0)), Step::Stay(None));
    }

    #[test]
    fn who_has_nothing_to_do_gives_way_at_once() {
        let idle = holder(None, Some(100));
        let claims = [claim(Priority::Batch, 100)];
        assert_eq!(step(&RULES, Some(&idle), &claims, s(100)), Step::Turn(0));
        assert_eq!(step(&RULES, None, &claims, s(100)), Step::Turn(0));
        // Also while it is still being loaded.
        let idle = holder(None, None);
        assert_eq!(step(&RULES, Some(&idle), &claims, s(100)), Step::Turn(0));
    }

    #[test]
    fn a_turn_lasts_by_what_waits_elsewhere() {
        let busy = holder(Some(Priority::Normal), Some(100));
        let ends = |class| step(&RULES, Some(&busy), &[claim(class, 100)], s(100));
        assert_eq!(ends(Priority::Alarm), Step::Stay(Some(s(102))));
        assert_eq!(ends(Priority::Normal), Step::Stay(Some(s(116))));
        assert_eq!(ends(Priority::Batch), Step::Stay(Some(s(164))));
        // One that has waited long needs one turn more.
        let old = [claim(Priority::Batch, 30)];
        assert_eq!(
            step(&RULES, Some(&busy), &old, s(110)),
            Step::Stay(Some(s(116)))
        );
        assert_eq!(step(&RULES, Some(&busy), &old, s(116)), Step::Turn(0));
        // A model that is being loaded is not called off.
        let loading = holder(Some(Priority::Batch), None);
        let alarm = [claim(Priority::Alarm, 0)];
        assert_eq!(
            step(&RULES, Some(&loading), &alarm, s(50)),
            Step::Stay(None)
        );
    }

    #[test]
    fn the_most_urgent_is_next_and_of_equals_who_has_waited_longest() {
        let claims = [
            claim(Priority::Normal, 95),
            claim(Priority::Normal, 90),
            claim(Priority::Batch, 80),
        ];
        assert_eq!(step(&RULES, None, &claims, s(100)), Step::Turn(1));
        let alarm = [claims[0], claims[1], claim(Priority::Alarm, 99)];
        assert_eq!(step(&RULES, None, &alarm, s(100)), Step::Turn(2));
        assert_eq!(
            step(&RULES, None, &claims, s(144)),
            Step::Turn(2),
            "four turns"
        );
    }

    #[test]
    fn a_wait_is_foretold_by_what_is_before_it() {
        let busy = holder(Some(Priority::Normal), Some(100));
        let claims = [claim(Priority::Normal, 101), claim(Priority::Normal, 102)];
        let stint = Stint {
            load: s(3),
            work: Some(s(5)),
        };
        let wait = |held, index| {
            serves_in(
                &RULES,
                Some((&busy, held)),
                &claims,
                &[stint; 2],
                index,
                s(104),
            )
        };
        // Twelve seconds of the turn are left, or what is left to do.
        assert_eq!(wait(Stint::default(), 0), Some(s(12 + 3)));
        assert_eq!(wait(stint, 0), Some(s(5 + 3)));
        assert_eq!(wait(stint, 1), Some(s(5 + 3 + 5 + 3)));
        assert_eq!(wait(stint, 2), None);
    }

    /// A model in a play: when its requests come, their class, and seconds that each takes.
    type Part = Vec<(u64, Priority, u64)>;

    fn part() -> impl Strategy<Value = Part> {
        let class = prop_oneof![
            Just(Priority::Alarm),
            Just(Priority::Normal),
            Just(Priority::Batch)
        ];
        prop::collection::vec((0u64..400, class, 1u64..40), 1..12)
    }

    /// Plays a second at a time; one request is served at a time. Each change of models: when, whose turn it
    /// became, how long it had waited, how long the turn before had lasted, what its holder had left to do, and the
    /// claims of that moment.
    #[allow(clippy::type_complexity, reason = "named above")]
    fn play(
        mut parts: Vec<Part>,
        load: u64,
    ) -> Vec<(u64, usize, u64, u64, Option<Priority>, Vec<Claim>)> {
        let mut changes = Vec::new();
        let (mut held, mut since, mut loaded_at) = (None::<usize>, None, 0);
        let mut left = vec![0; parts.len()];
        let mut now = 0;
        while parts.iter().any(|part| !part.is_empty()) {
            assert!(now < 100_000, "it comes to an end");
            if held.is_some() && since.is_none() && now >= loaded_at {
                since = Some(now);
            }
            let class_of = |part: &Part| {
                let here = part.iter().filter(|(at, ..)| *at <= now);
                here.map(|(_, class, _)| *class).max()
            };
            let oldest = |part: &Part| part.iter().map(|(at, ..)| *at).min();
            let mut of = Vec::new();
            let mut claims = Vec::new();
            for (model, part) in parts.iter().enumerate() {
                if Some(model) != held
                    && let (Some(class), Some(at)) = (class_of(part), oldest(part))
                {
                    of.push(model);
                    claims.push(claim(class, at.max(left[model])));
                }
            }
            let holder_now = held.map(|model| holder(class_of(&parts[model]), since));
            match step(&RULES, holder_now.as_ref(), &claims, s(now)) {
                Step::Turn(index) => {
                    let lasted = since.map_or(0, |since| now - since);
                    let waited = now - claims[index].since.as_secs();
                    let class = holder_now.and_then(|holder| holder.class);
                    changes.push((now, of[index], waited, lasted, class, claims.clone()));
                    if let Some(before) = held {
                        left[before] = now;
                    }
                    (held, since, loaded_at) = (Some(of[index]), None, now + load);
                }
                Step::Stay(wake) => {
                    assert!(wake.is_none_or(|wake| wake > s(now)), "nothing is put off");
                    if let (Some(model), Some(_)) = (held, since) {
                        let part = &mut parts[model];
                        let here = part.iter_mut().filter(|(at, ..)| *at <= now);
                        if let Some(next) = here.min_by_key(|(at, class, _)| (Reverse(*class), *at))
                        {
                            next.2 -= 1;
                        }
                        part.retain(|(.., takes)| *takes > 0);
                    }
                }
            }
            now += 1;
        }
        changes
    }

    proptest! {
        /// Nobody waits for ever, turns are kept while there is work, and nothing changes without a reason.
        #[test]
        fn everybody_has_a_turn_in_time_and_nobody_loses_one_early(
            parts in prop::collection::vec(part(), 2..5), load in 0u64..8
        ) {
            let (k, turn) = (parts.len() as u64, RULES.turn.as_secs());
            for (_, _, waited, lasted, class, claims) in play(parts, load) {
                prop_assert!(waited <= 4 * turn + k * (turn + load + 1), "waited {waited} s");
                prop_assert!(!claims.is_empty());
                let Some(class) = class else { continue };
                prop_assert!(lasted >= turn / u64::from(HASTE), "a turn of {lasted} s");
                if claims.iter().all(|claim| claim.class <= class) {
                    prop_assert!(lasted >= turn, "a turn of {lasted} s");
                }
                if claims.iter().all(|claim| claim.class < class) && lasted < 4 * turn {
                    prop_assert!(waited >= 4 * turn, "less urgent after {waited} s");
                }
            }
        }
    }
}
