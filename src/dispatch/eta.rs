//! PURE: how long requests take, from those that ended, and when those that wait will have ended.
//!
//! A request takes the time of reading its prompt and that of making its answer. Rates are moving averages over
//! what ended lately, at the concurrency that it met; a prompt that was not counted yet is judged by its bytes,
//! an answer by the usual length, at most what was asked for. Until something has ended nothing is known, and
//! nothing is refused for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::frames::Timings;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.2;
/// The longest time told; what takes longer is not to be foretold.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// What requests took lately, by the model that answered them.
#[derive(Debug, Default)]
pub struct ByModel(BTreeMap<String, Rates>);

/// Models that are remembered; a device has fewer, but names of releases change.
const MODELS_MAX: usize = 64;

impl ByModel {
    /// Those of this model; of one that never answered nothing is known.
    pub fn of(&self, model: &str) -> &Rates {
        const UNKNOWN: &Rates = &Rates {
            row_ms: None,
            token_ms: None,
            n_output: None,
            token_bytes: None,
        };
        self.0.get(model).unwrap_or(UNKNOWN)
    }

    /// The same, to be told of what ended.
    pub fn of_mut(&mut self, model: &str) -> &mut Rates {
        if self.0.len() >= MODELS_MAX && !self.0.contains_key(model) {
            self.0.clear();
        }
        self.0.entry(model.to_owned()).or_default()
    }
}

/// What requests took lately.
#[derive(Debug, Default)]
pub struct Rates {
    /// Milliseconds to read a token of a prompt.
    row_ms: Option<f64>,
    /// Milliseconds to make a token of one stream.
    token_ms: Option<f64>,
    /// Tokens of an answer.
    n_output: Option<f64>,
    /// Bytes of a body for a token of its prompt.
    token_bytes: Option<f64>,
}

/// A request, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bytes of its body.
    pub body_bytes: usize,
    /// Tokens of its prompt; 0: not counted yet.
    pub n_prompt: u32,
    /// The prompt has been read.
    pub is_read: bool,
    /// Tokens made.
    pub n_made: u32,
    /// Most tokens to make.
    pub n_output_max: u32,
    /// It makes that many whatever comes.
    pub ignores_eos: bool,
}

impl Rates {
    /// A request ended.
    pub fn ended(&mut self, body_bytes: usize, timings: &Timings) {
        let n_read = timings.n_prompt.saturating_sub(timings.n_cached);
        if n_read > 0 && timings.prefill_ms > 0.0 {
            average(&mut self.row_ms, timings.prefill_ms / f64::from(n_read));
        }
        if timings.n_output > 1 && timings.decode_ms > 0.0 {
            let n_gaps = f64::from(timings.n_output - 1);
            average(&mut self.token_ms, timings.decode_ms / n_gaps);
        }
        if timings.n_output > 0 {
            average(&mut self.n_output, timings.n_output.into());
        }
        if timings.n_prompt > 0 {
            let bytes = body_bytes as f64 / f64::from(timings.n_prompt);
            average(&mut self.token_bytes, bytes);
        }
    }

    /// How long the rest of it takes from its place in the worker on; `None` while nothing is known.
    pub fn takes(&self, work: &Work) -> Option<Duration> {
        let token_ms = self.token_ms?;
        let most = f64::from(work.n_output_max);
        let n_output = match self.n_output {
            Some(usual) if !work.ignores_eos => usual.min(most),
            _ => most,
        };
        // One that is longer than usual may end at each token.
        let n_left = (n_output - f64::from(work.n_made)).max(1.0);
        let n_rows = match (work.is_read, work.n_prompt, self.token_bytes) {
            (true, _, _) => 0.0,
            (_, 0, Some(bytes)) if bytes > 0.0 => work.body_bytes as f64 / bytes,
            (_, n, _) => f64::from(n) + f64::from(work.n_made),
        };
        let ms = n_rows * self.row_ms.unwrap_or(0.0) + n_left * token_ms;
        Some(Duration::from_secs_f64(ms / 1000.0).min(LONGEST))
    }
}

fn average(of: &mut Option<f64>, newest: f64) {
    *of = Some(of.map_or(newest, |old| old + NEWEST * (newest - old)));
}

/// When the places in the worker are free: who is next takes the first.
#[derive(Debug)]
pub struct Places(BinaryHeap<Reverse<Duration>>);

impl Places {
    /// So many places, of which these are busy for so long.
    pub fn new(n: usize, busy: impl IntoIterator<Item = Duration>) -> Self {
        let mut free = BinaryHeap::from_iter(busy.into_iter().map(Reverse));
        while free.len() < n {
            free.push(Reverse(Duration::ZERO));
        }
        // After a change to fewer places those that end first are not filled again.
        while free.len() > n {
            free.pop();
        }
        Self(free)
    }

    /// The next takes so long; when it has ended. `None` where there is no place.
    pub fn take(&mut self, takes: Duration) -> Option<Duration> {
        let Reverse(free) = self.0.pop()?;
        let end = (free + takes).min(LONGEST);
        self.0.push(Reverse(end));
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORK: Work = Work {
        body_bytes: 400,
        n_prompt: 0,
        is_read: false,
        n_made: 0,
        n_output_max: 1000,
        ignores_eos: false,
    };

    /// 100 tokens of 4 bytes read in 50 ms, 41 made in 400.
    fn rates() -> Rates {
        let mut rates = Rates::default();
        let timings = Timings {
            n_prompt: 100,
            n_cached: 0,
            n_output: 41,
            prefill_ms: 50.0,
            decode_ms: 400.0,
            ..Timings::default()
        };
        rates.ended(400, &timings);
        rates
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn nothing_is_foretold_before_anything_ended() {
        assert_eq!(Rates::default().takes(&WORK), None);
    }

    #[test]
    fn a_request_takes_its_prompt_and_the_usual_answer() {
        assert_eq!(rates().takes(&WORK), Some(ms(50 + 410)));
        let short = Work {
            n_output_max: 10,
            ..WORK
        };
        assert_eq!(rates().takes(&short), Some(ms(50 + 100)));
        let exact = Work {
            ignores_eos: true,
            n_output_max: 100,
            ..WORK
        };
        assert_eq!(rates().takes(&exact), Some(ms(50 + 1000)));
    }

    #[test]
    fn what_is_done_is_not_done_again() {
        let half = Work {
            is_read: true,
            n_prompt: 100,
            n_made: 21,
            ..WORK
        };
        assert_eq!(rates().takes(&half), Some(ms(200)));
        let long = Work {
            n_made: 500,
            ..half
        };
        assert_eq!(rates().takes(&long), Some(ms(10)));
    }

    #[test]
    fn who_is_next_takes_the_first_free_place() {
        let mut places = Places::new(2, [ms(300)]);
        assert_eq!(places.take(ms(100)), Some(ms(100)));
        assert_eq!(places.take(ms(100)), Some(ms(200)));
        assert_eq!(places.take(ms(500)), Some(ms(700)));
        assert_eq!(places.take(ms(100)), Some(ms(400)));
        assert_eq!(Places::new(0, []).take(ms(1)), None);
        assert_eq!(Places::new(1, [ms(5), ms(9)]).take(ms(1)), Some(ms(10)));
    }

    proptest! {
        #[test]
        fn no_place_idles_and_none_is_shared(n in 1usize..6, takes in prop::collection::vec(1u64..1000, 1..50)) {
            let mut places = Places::new(n, []);
            let ends = Vec::from_iter(takes.iter().map(|t| places.take(ms(*t)).unwrap()));
            let starts = Vec::from_iter(ends.iter().zip(&takes).map(|(end, t)| *end - ms(*t)));
            prop_assert!(starts.is_sorted(), "who is before starts before");
            for start in &starts {
                let running = starts.iter().zip(&ends).filter(|(s, e)| **s <= *start && *start < **e);
                prop_assert!(running.count() <= n);
            }
            let all: u64 = takes.iter().sum();
            let last = ends.iter().max().unwrap();
            prop_assert!(*last >= ms(all) / n as u32);
            prop_assert!(*last <= ms(all / n as u64 + takes.iter().max().unwrap() + 1));
        }

        #[test]
        fn rates_stay_inside_what_was_measured(sizes in prop::collection::vec((1u32..2000, 2u32..500, 0.1f64..5.0, 0.1f64..50.0), 1..30)) {
            let mut rates = Rates::default();
            for (n_prompt, n_output, row_ms, token_ms) in &sizes {
                rates.ended(1, &Timings {
                    n_prompt: *n_prompt,
                    n_cached: 0,
                    n_output: *n_output,
                    prefill_ms: row_ms * f64::from(*n_prompt),
                    decode_ms: token_ms * f64::from(n_output - 1),
                    ..Timings::default()
                });
            }
            let takes = rates.takes(&Work { n_prompt: 100, n_output_max: 10, ignores_eos: true, ..WORK }).unwrap();
            let bound = |pick: fn(f64, f64) -> f64| {
                let row = sizes.iter().map(|s| s.2).reduce(pick).unwrap();
                let token = sizes.iter().map(|s| s.3).reduce(pick).unwrap();
                row * 100.0 + token * 10.0
            };
            let ms = takes.as_secs_f64() * 1000.0;
            prop_assert!(ms >= bound(f64::min) - 0.01 && ms <= bound(f64::max) + 0.01);
        }
    }
}
