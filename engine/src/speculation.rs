//! Guessing what a sequence says next, so that one decode can yield several tokens.
//!
//! Pure. A guess is read along in the same batch as the token before it; each of its tokens is then
//! chosen anew from the logits, and the guess counts as far as both agree. So what is said, and how it is
//! drawn, stays as without guesses; only the number of decodes changes. Reading more rows takes longer, so
//! guesses are made where that was measured to pay, and tried again now and then where it did not.

use std::collections::HashMap;

use orinoco::frames::Token;

/// Tokens that must have come in this order before, for what followed them to be the guess.
const N_GRAM: usize = 3;

/// Finds what followed, the last time when the newest tokens were said: answers repeat their prompt
/// (names, numbers, code) and themselves (lists, JSON).
#[derive(Debug, Default)]
pub struct Lookup {
    /// Where it went on after each run of tokens, the newest place of each.
    after: HashMap<[Token; N_GRAM], u32>,
    /// Tokens whose runs are known.
    n_seen: usize,
}

impl Lookup {
    /// Puts at most `n_max` tokens that may follow `tokens` into the empty `guess`. `tokens` only ever
    /// grows between two calls.
    pub fn guess(&mut self, tokens: &[Token], n_max: usize, guess: &mut Vec<Token>) {
        let Some(newest) = tokens.last_chunk::<N_GRAM>() else {
            return;
        };
        // The newest run itself is left out: nothing has followed it yet.
        for end in self.n_seen.max(N_GRAM)..tokens.len() {
            if let Some(run) = tokens[..end].last_chunk::<N_GRAM>() {
                self.after.insert(*run, end as u32);
            }
        }
        self.n_seen = tokens.len();
        let Some(&at) = self.after.get(newest) else {
            return;
        };
        for at in at as usize..at as usize + n_max {
            // Past the end it goes on with what was guessed: a text that repeats itself in short turns.
            let token = match at.checked_sub(tokens.len()) {
                None => tokens[at],
                Some(at) => guess[at],
            };
            guess.push(token);
        }
    }
}

/// Whether one sequence's guesses were right lately: text that only looks like a repetition is left alone,
/// for longer each time.
#[derive(Debug, Default)]
pub struct Luck {
    n_misses: u32,
    /// Steps to sit out.
    n_rest: u32,
}

/// Most steps that a sequence sits out after a wrong guess.
const N_REST_MAX: u32 = 64;

impl Luck {
    /// Whether it may guess in this step.
    pub fn allows(&mut self) -> bool {
        match self.n_rest.checked_sub(1) {
            None => true,
            Some(left) => {
                self.n_rest = left;
                false
            }
        }
    }

    /// So many tokens of a guess were right.
    pub fn told(&mut self, n_right: usize) {
        if n_right > 0 {
            *self = Self::default();
        } else {
            self.n_rest = (1 << self.n_misses.min(31)).min(N_REST_MAX);
            self.n_misses += 1;
        }
    }
}

/// Whether reading guesses along pays, by the number of sequences that decode side by side: the more there
/// are, the less is left of the hardware that one row does not use.
#[derive(Debug)]
pub struct Gain {
    by_decoding: [Measured; N_DECODING_MAX],
}

/// With more sequences than this nobody guesses.
const N_DECODING_MAX: usize = 8;
/// Steps without guesses before the first with them.
const N_PLAIN_FIRST: u32 = 4;
/// Steps of the better kind before one of the other: contexts grow, clocks change.
const N_TRY_AGAIN: u32 = 64;
/// Weight of the newest step.
const NEWEST: f64 = 0.1;

#[derive(Debug, Clone, Copy, Default)]
struct Measured {
    plain_ms_token: Option<f64>,
    guessed_ms_token: Option<f64>,
    n_plain: u32,
    /// Steps since the worse kind was last tried.
    n_same: u32,
}

impl Default for Gain {
    fn default() -> Self {
        Self {
            by_decoding: [Measured::default(); N_DECODING_MAX],
        }
    }
}

impl Gain {
    /// Whether guesses are to be read along in a step with so many decoding sequences.
    pub fn pays(&self, n_decoding: usize) -> bool {
        let Some(measured) = n_decoding
            .checked_sub(1)
            .and_then(|n| self.by_decoding.get(n))
        else {
            return false;
        };
        if measured.n_plain < N_PLAIN_FIRST {
            return false;
        }
        let is_better = match (measured.plain_ms_token, measured.guessed_ms_token) {
            (Some(plain), Some(guessed)) => guessed < plain,
            _ => true,
        };
        is_better == (measured.n_same < N_TRY_AGAIN)
    }

    /// A step without prefill: of `n_decoding` sequences, with `n_guessed` tokens read along, `n_made` tokens
    /// in `ms` milliseconds.
    pub fn measured(&mut self, n_decoding: usize, n_guessed: usize, n_made: usize, ms: f64) {
        let Some(measured) = n_decoding
            .checked_sub(1)
            .and_then(|n| self.by_decoding.get_mut(n))
        else {
            return;
        };
        let was_better = match (measured.plain_ms_token, measured.guessed_ms_token) {
            (Some(plain), Some(guessed)) => (guessed < plain) == (n_guessed > 0),
            _ => true,
        };
        measured.n_same = if was_better { measured.n_same + 1 } else { 0 };
        let each = ms / n_made.max(1) as f64;
        let average = match n_guessed {
            0 => {
                measured.n_plain = measured.n_plain.saturating_add(1);
                &mut measured.plain_ms_token
            }
            _ => &mut measured.guessed_ms_token,
        };
        *average = Some(average.map_or(each, |old| old + NEWEST * (each - old)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn guess(tokens: &[Token], n_max: usize) -> Vec<Token> {
        let mut guess = Vec::new();
        Lookup::default().guess(tokens, n_max, &mut guess);
        guess
    }

    #[test]
    fn what_followed_the_last_time_is_the_guess() {
        assert_eq!(guess(&[1, 2, 3, 7, 8, 9, 1, 2, 3], 2), [7, 8]);
        assert_eq!(guess(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1), [8]);
        assert!(guess(&[1, 2, 3, 4], 4).is_empty());
        assert!(guess(&[1, 2], 4).is_empty());
    }

    #[test]
    fn a_text_that_turns_in_a_circle_is_guessed_beyond_its_end() {
        assert_eq!(guess(&[5, 6, 5, 6, 5, 6], 5), [5, 6, 5, 6, 5]);
        assert_eq!(guess(&[4, 4, 4, 4], 3), [4, 4, 4]);
    }

    #[test]
    fn a_wrong_guess_costs_longer_and_longer_rests_and_a_right_one_ends_them() {
        let mut luck = Luck::default();
        let rest = |luck: &mut Luck| (0..1000).take_while(|_| !luck.allows()).count();
        let mut rests = Vec::new();
        for _ in 0..8 {
            luck.told(0);
            rests.push(rest(&mut luck));
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 64, 64]);
        luck.told(1);
        assert!(luck.allows());
        luck.told(0);
        assert_eq!(rest(&mut luck), 1);
    }

    /// Steps with guesses among 1,000, where a plain one takes 10 ms and one with guesses `ms` for `n_made`.
    fn share(ms: f64, n_made: usize) -> usize {
        let mut gain = Gain::default();
        let mut n = 0;
        for _ in 0..1000 {
            if gain.pays(1) {
                n += 1;
                gain.measured(1, 4, n_made, ms);
            } else {
                gain.measured(1, 0, 1, 10.0);
            }
        }
        n
    }

    #[test]
    fn guesses_are_made_where_they_pay_and_seldom_where_they_do_not() {
        let pays = share(15.0, 3);
        assert!(pays > 950, "{pays}");
        let pays_not = share(30.0, 2);
        assert!((5..30).contains(&pays_not), "{pays_not}");
        assert!(!Gain::default().pays(0));
        assert!(!Gain::default().pays(N_DECODING_MAX + 1));
    }

    proptest! {
        #[test]
        fn a_guess_is_a_run_that_was_said(tokens in prop::collection::vec(0..4, 0..60), n_max in 0_usize..9) {
            let mut lookup = Lookup::default();
            for n in 0..=tokens.len() {
                let mut guess = Vec::new();
                lookup.guess(&tokens[..n], n_max, &mut guess);
                prop_assert!(guess.len() <= n_max);
                if !guess.is_empty() {
                    prop_assert_eq!(guess.len(), n_max);
                    let said = [&tokens[..n], &guess[..]].concat();
                    let run = &said[n - N_GRAM..n + 1];
                    prop_assert!(said[..n].windows(run.len()).any(|window| window == run), "{run:?}");
                }
            }
        }
    }
}
