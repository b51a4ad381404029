//! What one step decodes.
//!
//! Pure. Every decoding sequence rides in each step with its one row, so nobody's stream stops because
//! somebody else's prompt is read. What is left of the step goes to prefill, job by job in turn: the
//! first place moves on with each step; while an urgent prompt is read, the others wait. While somebody
//! decodes the step is held to a time (`step_ms`, by the rate measured at that depth) and to `step_tokens`;
//! otherwise to one physical batch.

/// Bounds of a step; from the model's limits and the operator's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Most rows in a step.
    pub n_batch: usize,
    /// Most prefill rows while nobody decodes.
    pub n_ubatch: usize,
    /// Longest step while somebody decodes, milliseconds.
    pub step_ms: f64,
    /// Most prefill rows while somebody decodes.
    pub step_tokens: usize,
}

/// One slot's wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// Rows that may go into one batch: 1 for a decoding sequence, and what is guessed to follow; of a resumed
    /// one the prompt and the delivered tokens are separate, because mixing them in one batch changes the text.
    pub n_rows: usize,
    /// Tokens already in the cache.
    pub n_past: usize,
    /// Whether it makes a token a step; then it is never left out.
    pub decodes: bool,
    /// Its prefill goes before that of others.
    pub urgent: bool,
}

/// Chooses the rows of each step. Owns whose turn it is and the measured rates.
#[derive(Debug)]
pub struct Schedule {
    bounds: Bounds,
    turn: usize,
    rates: Rates,
}

/// Prefill while somebody decodes is never less than this, so that it ends.
const N_PREFILL_MIN: usize = 8;
/// Prefill rows of a step at a depth of which no rate is known.
const N_PREFILL_UNKNOWN: usize = 64;

impl Schedule {
    /// `step_ms` 0 is 400, `step_tokens` 0 is 256.
    pub fn new(bounds: Bounds) -> Self {
        let bounds = Bounds {
            n_batch: bounds.n_batch.max(1),
            n_ubatch: bounds.n_ubatch.clamp(1, bounds.n_batch.max(1)),
            step_ms: if bounds.step_ms > 0.0 {
                bounds.step_ms
            } else {
                400.0
            },
            step_tokens: if bounds.step_tokens > 0 {
                bounds.step_tokens
            } else {
                256
            },
        };
        Self {
            bounds,
            turn: 0,
            rates: Rates::default(),
        }
    }

    /// Rows of each slot in the next step, written to `shares` beside `wants`; `None` is an empty slot.
    pub fn plan(&mut self, wants: &[Option<Want>], shares: &mut Vec<usize>) {
        shares.clear();
        shares.resize(wants.len(), 0);
        let (mut n_decoding, mut n_rows) = (0, 0);
        for (share, want) in shares.iter_mut().zip(wants) {
            if let Some(want) = want.filter(|want| want.decodes) {
                *share = want.n_rows;
                n_decoding += 1;
                n_rows += want.n_rows;
            }
        }
        let is_prefill = |want: &Want| !want.decodes && want.n_rows > 0;
        let is_urgent = wants.iter().flatten().any(|w| is_prefill(w) && w.urgent);
        let prefills = |slot: &usize| {
            wants[*slot].is_some_and(|want| is_prefill(&want) && want.urgent == is_urgent)
        };
        let first = (0..wants.len())
            .map(|i| (self.turn + i) % wants.len())
            .find(prefills);
        let Some(first) = first else { return };
        self.turn = first + 1;
        let want = wants[first].expect("filtered");
        let mut left = self
            .budget(n_decoding, want.n_past)
            .min(self.bounds.n_batch.saturating_sub(n_rows));
        for i in 0..wants.len() {
            let slot = (first + i) % wants.len();
            if prefills(&slot) {
                let share = wants[slot].expect("filtered").n_rows.min(left);
                shares[slot] = share;
                left -= share;
            }
        }
    }

    fn budget(&self, n_decoding: usize, n_past: usize) -> usize {
        if n_decoding == 0 {
            return self.bounds.n_ubatch;
        }
        let most = self.bounds.step_tokens;
        let left_ms = self.bounds.step_ms - self.rates.decode_ms.unwrap_or(0.0);
        match self.rates.cost(n_past) {
            Some(cost) => cost.rows_in(left_ms).clamp(N_PREFILL_MIN.min(most), most),
            None => most.min(N_PREFILL_UNKNOWN),
        }
    }

    /// What a prompt's token takes at this depth, milliseconds, as far as it was measured.
    pub fn row_ms(&self, n_past: usize) -> Option<f64> {
        self.rates.cost(n_past).map(Cost::mean_row_ms)
    }

    /// A step with `n_decoding` single rows and `n_prefill` others, the first at `n_past`, took `ms`.
    pub fn measured(&mut self, n_decoding: usize, n_prefill: usize, n_past: usize, ms: f64) {
        self.rates.measured(n_decoding, n_prefill, n_past, ms);
    }
}

/// Milliseconds of a step that only decodes, a moving average; and what prefill rows cost beside it, by depth.
#[derive(Debug, Default)]
struct Rates {
    decode_ms: Option<f64>,
    costs: [Option<Cost>; 20],
}

/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;

impl Rates {
    fn measured(&mut self, n_decoding: usize, n_prefill: usize, n_past: usize, ms: f64) {
        if n_prefill == 0 {
            if n_decoding > 0 {
                average(&mut self.decode_ms, ms);
            }
        } else if n_prefill >= N_PREFILL_MIN {
            let own = if n_decoding > 0 {
                self.decode_ms.unwrap_or(0.0)
            } else {
                0.0
            };
            // Rows of others ride along nearly free, so at least half of the time is the prefill's.
            let ms = (ms - own).max(ms / 2.0);
            let cost = self.costs[depth(n_past)].get_or_insert_default();
            cost.measured(n_prefill as f64, ms);
        }
    }

    /// What rows cost at this depth, or at the nearest depth above the start that was measured.
    fn cost(&self, n_past: usize) -> Option<&Cost> {
        let depth = depth(n_past);
        self.costs[..=depth]
            .iter()
            .rev()
            .chain(&self.costs[depth..])
            .find_map(Option::as_ref)
    }
}

/// What a number of prefill rows takes: a part that any number costs, and a part for each row. Kernels fill small
/// batches up, so that half of the rows may take nearly as long as all: whoever thinks that time is in proportion
/// takes fewer and fewer and gains nothing.
///
/// A line through the measurements by least squares, older ones fading.
#[derive(Debug, Default)]
struct Cost {
    weight: f64,
    n: f64,
    ms: f64,
    nn: f64,
    n_ms: f64,
    last_n: f64,
}

/// The part of the mean time for a row that a further row is taken to cost at least, and the most that a step may
/// grow over the last one: a line says little of what lies far beyond its points.
const ROW_PART_MIN: f64 = 0.1;
const GROWTH_MAX: f64 = 2.0;
/// Sizes that differ by less say nothing of what a further row costs: standard deviation, as a part of the mean.
const SPREAD_MIN: f64 = 0.05;

/// How far a step may go beyond what any number of rows costs, where that alone is too long.
const OVERRUN: f64 = 1.25;

impl Cost {
    fn measured(&mut self, n: f64, ms: f64) {
        let sums = [
            (&mut self.weight, 1.0),
            (&mut self.n, n),
            (&mut self.ms, ms),
            (&mut self.nn, n * n),
            (&mut self.n_ms, n * ms),
        ];
        for (sum, newest) in sums {
            *sum = (1.0 - NEWEST) * *sum + newest;
        }
        self.last_n = n;
    }

    fn mean_row_ms(&self) -> f64 {
        self.ms / self.n
    }

    /// How many rows fit into so many milliseconds; 0 where not even one does, though others would.
    fn rows_in(&self, left_ms: f64) -> usize {
        let (n, ms) = (self.n / self.weight, self.ms / self.weight);
        let mean_row_ms = self.mean_row_ms();
        let variance = self.nn / self.weight - n * n;
        let row_ms = match variance.sqrt() > SPREAD_MIN * n {
            true => (self.n_ms / self.weight - n * ms) / variance,
            false => mean_row_ms,
        };
        let row_ms = row_ms.clamp(ROW_PART_MIN * mean_row_ms, mean_row_ms);
        // Fewer rows cannot help where any number takes too long.
        let limit_ms = left_ms.max(OVERRUN * (ms - row_ms * n));
        let rows = n + (limit_ms - ms) / row_ms;
        rows.clamp(0.0, GROWTH_MAX * self.last_n) as usize
    }
}

fn average(of: &mut Option<f64>, newest: f64) {
    *of = Some(of.map_or(newest, |old| old + NEWEST * (newest - old)));
}

/// Attention costs more the more is in the cache: one rate for each doubling above 256 tokens.
fn depth(n_past: usize) -> usize {
    ((n_past / 256 + 1).ilog2() as usize).min(19)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds {
        n_batch: 512,
        n_ubatch: 256,
        step_ms: 100.0,
        step_tokens: 128,
    };

    fn decoding() -> Option<Want> {
        Some(Want {
            n_rows: 1,
            n_past: 50,
            decodes: true,
            urgent: false,
        })
    }

    fn prefill(n_rows: usize, n_past: usize) -> Option<Want> {
        Some(Want {
            n_rows,
            n_past,
            decodes: false,
            urgent: false,
        })
    }

    fn urgent(n_rows: usize) -> Option<Want> {
        prefill(n_rows, 0).map(|want| Want {
            urgent: true,
            ..want
        })
    }

    fn plan(schedule: &mut Schedule, wants: &[Option<Want>]) -> Vec<usize> {
        let mut shares = Vec::new();
        schedule.plan(wants, &mut shares);
        shares
    }

    #[test]
    fn alone_a_prompt_gets_whole_physical_batches() {
        let mut schedule = Schedule::new(BOUNDS);
        assert_eq!(plan(&mut schedule, &[None, prefill(1000, 0)]), [0, 256]);
        assert_eq!(
            plan(&mut schedule, &[prefill(100, 0), prefill(1000, 0)]),
            [100, 156]
        );
    }

    #[test]
    fn the_measured_rate_bounds_the_step_while_somebody_decodes() {
        let mut schedule = Schedule::new(BOUNDS);
        let wants = [decoding(), prefill(1000, 0)];
        assert_eq!(plan(&mut schedule, &wants), [1, N_PREFILL_UNKNOWN]);
        schedule.measured(1, 0, 0, 20.0);
        schedule.measured(1, 64, 0, 20.0 + 64.0 * 2.0); // 2 ms a row
        assert_eq!(plan(&mut schedule, &wants), [1, 40]); // (100 - 20) / 2
        for _ in 0..50 {
            schedule.measured(1, 64, 0, 20.0 + 64.0 * 0.1);
        }
        assert_eq!(plan(&mut schedule, &wants)[1], BOUNDS.step_tokens);
    }

    #[test]
    fn an_urgent_prompt_is_read_before_all_others() {
        let mut schedule = Schedule::new(BOUNDS);
        let mut wants = [prefill(1000, 0), decoding(), urgent(40), urgent(30)];
        for _ in 0..4 {
            let shares = plan(&mut schedule, &wants);
            assert_eq!((shares[0], shares[1]), (0, 1));
            assert_eq!(shares[2] + shares[3], N_PREFILL_UNKNOWN);
        }
        wants[2] = decoding();
        wants[3] = None;
        assert_eq!(plan(&mut schedule, &wants)[0], N_PREFILL_UNKNOWN);
    }

    #[test]
    fn deeper_positions_have_their_own_rate() {
        let mut schedule = Schedule::new(BOUNDS);
        schedule.measured(1, 0, 0, 20.0);
        schedule.measured(1, 64, 0, 20.0 + 64.0);
        schedule.measured(1, 64, 8000, 20.0 + 64.0 * 4.0);
        assert_eq!(
            plan(&mut schedule, &[decoding(), prefill(1000, 8100)]),
            [1, 20]
        );
        assert_eq!(
            plan(&mut schedule, &[decoding(), prefill(1000, 10)]),
            [1, 80]
        );
    }

    #[test]
    fn a_slow_machine_still_prefills() {
        let mut schedule = Schedule::new(BOUNDS);
        schedule.measured(1, 0, 0, 5000.0);
        schedule.measured(1, 64, 0, 90_000.0);
        assert_eq!(
            plan(&mut schedule, &[decoding(), prefill(1000, 0)]),
            [1, N_PREFILL_MIN]
        );
    }

    /// Reads one long prompt beside a stream, on a machine on which `n` rows take `ms_of(n)`; the rows of the last
    /// 100 of 200 steps, and the longest of them.
    fn read(bounds: Bounds, ms_of: impl Fn(usize) -> f64) -> (usize, f64) {
        let mut schedule = Schedule::new(bounds);
        let (mut n_read, mut longest_ms) = (0, 0.0_f64);
        for step in 0..200 {
            schedule.measured(1, 0, 0, 5.0);
            let n = plan(&mut schedule, &[decoding(), prefill(1_000_000, 100)])[1];
            schedule.measured(1, n, 100, 5.0 + ms_of(n));
            if step >= 100 {
                n_read += n;
                longest_ms = longest_ms.max(5.0 + ms_of(n));
            }
        }
        (n_read / 100, longest_ms)
    }

    #[test]
    fn a_kernel_that_fills_small_batches_up_is_given_large_ones() {
        let bounds = Bounds {
            n_batch: 512,
            step_tokens: 256,
            ..BOUNDS
        };
        // Below 128 rows it takes as long as for 128, a little less than the limit or a little more.
        for least_ms in [90.0_f64, 110.0] {
            let filled = |n: usize| least_ms.max(n as f64 * least_ms / 128.0);
            let (rows, longest_ms) = read(bounds, filled);
            assert!(rows >= 64, "{rows} rows a step of {least_ms} ms");
            assert!(longest_ms <= 1.7 * least_ms, "{longest_ms} ms");
        }
    }

    proptest! {
        /// Whatever a step costs in itself, and a row: what fits is soon found, and kept.
        #[test]
        fn what_fits_is_found(fixed_ms in 0.0_f64..60.0, row_ms in 0.05_f64..4.0) {
            let (rows, longest_ms) = read(BOUNDS, |n| fixed_ms + row_ms * n as f64);
            let fits = ((BOUNDS.step_ms - 5.0 - fixed_ms) / row_ms).min(BOUNDS.step_tokens as f64);
            prop_assert!(rows as f64 >= 0.8 * fits - 1.0, "{rows} of {fits}");
            prop_assert!(longest_ms <= 1.1 * BOUNDS.step_ms || rows == N_PREFILL_MIN, "{longest_ms}");
        }
    }

    fn wants() -> impl Strategy<Value = Vec<Option<Want>>> {
        let want = prop_oneof![
            Just(None),
            (0_usize..5000).prop_map(|n_past| Some(Want {
                n_rows: 1,
                n_past,
                decodes: true,
                urgent: false,
            })),
            (1_usize..5000, 0_usize..5000).prop_map(|(rows, past)| prefill(rows, past)),
            (1_usize..5000).prop_map(urgent),
        ];
        proptest::collection::vec(want, 1..16)
    }

    proptest! {
        #[test]
        fn every_step_keeps_its_bounds(wants in wants(), steps in proptest::collection::vec((0.1_f64..2000.0, any::<bool>()), 0..8), n_batch in 16_usize..600) {
            let mut schedule = Schedule::new(Bounds { n_batch, ..BOUNDS });
            for (ms, pure_decode) in steps {
                schedule.measured(3, if pure_decode { 0 } else { 64 }, 300, ms);
            }
            let shares = plan(&mut schedule, &wants);
            prop_assert!(shares.iter().sum::<usize>() <= n_batch);
            let n_decoding = wants.iter().flatten().filter(|w| w.decodes).count();
            let mut n_prefill = 0;
            for (share, want) in shares.iter().zip(&wants) {
                match want {
                    None => prop_assert_eq!(*share, 0),
                    Some(want) if want.decodes => prop_assert_eq!(*share, 1, "a decoding sequence is in each step"),
                    Some(want) => {
                        prop_assert!(*share <= want.n_rows);
                        n_prefill += share;
                    }
                }
            }
            let wants_prefill = wants.iter().flatten().any(|w| !w.decodes);
            prop_assert_eq!(n_prefill > 0, wants_prefill && n_decoding < n_batch);
            prop_assert!(n_decoding == 0 || n_prefill <= BOUNDS.step_tokens);
        }

        #[test]
        fn no_prefill_starves(n in 1_usize..12, decoding_too: bool) {
            let mut schedule = Schedule::new(BOUNDS);
            let mut wants = vec![prefill(100_000, 0); n];
            if decoding_too {
                wants.push(decoding());
            }
            let mut served = vec![0; n];
            for _ in 0..n {
                let shares = plan(&mut schedule, &wants);
                for (served, share) in served.iter_mut().zip(&shares) {
                    *served += share;
                }
            }
            prop_assert!(served.iter().all(|rows| *rows > 0), "{served:?}");
        }
    }
}
