//! A smaller model of the same vocabulary that guesses what sequences say next.
//!
//! Owns what is in that model's cache, and knows nothing of jobs: it is shown a sequence's tokens, reads those that
//! it has not read, and goes on greedily. What it guessed wrong it forgets when it is asked again. A cache that is
//! full or a decode that fails costs guesses, never an answer.

use orinoco::frames::Token;

use crate::model::{Decoder, Row, SeqId};

/// Rows of prompts that are read at once, at most: the streams wait meanwhile.
const N_READ_MAX: usize = 256;

/// A token is guessed when the draft model thinks it more likely than all others together: each wrong one costs a
/// row of the large model.
const P_MIN: f32 = 0.5;

/// One sequence that is to be guessed.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Its number; the draft's cache has the same sequences.
    pub seq: SeqId,
    /// What was said, prompt and answer.
    pub tokens: &'a [Token],
    /// Most tokens to guess.
    pub n_max: usize,
    /// Where they go; empty.
    pub guess: &'a mut Vec<Token>,
}

/// The draft model at work.
pub struct Draft<'d> {
    decoder: &'d mut dyn Decoder,
    /// By sequence: the tokens in the cache.
    read: Vec<Vec<Token>>,
    // Kept between steps so that a step costs no allocations.
    rows: Vec<Row>,
    /// By ask: the row with its next logits.
    at: Vec<Option<usize>>,
}

impl<'d> Draft<'d> {
    /// With an empty cache.
    pub fn new(decoder: &'d mut dyn Decoder) -> Self {
        let n_seq_max = decoder.limits().n_seq_max as usize;
        let mut draft = Self {
            decoder,
            read: vec![Vec::new(); n_seq_max],
            rows: Vec::new(),
            at: Vec::new(),
        };
        draft.forget();
        draft
    }

    /// Guesses for all of `asks` side by side. A sequence of which much is unread is read a part each time, and
    /// guessed when it is whole.
    pub fn guess(&mut self, asks: &mut [Ask<'_>]) {
        self.catch_up(asks);
        let n_most = asks.iter().map(|ask| ask.n_max).max().unwrap_or(0);
        for n in 0..n_most {
            if self.rows.is_empty() {
                return;
            }
            if let Err(error) = self.decoder.decode(&self.rows) {
                tracing::debug!(%error, "the draft model forgets all that it has read");
                return self.forget();
            }
            for row in self.rows.drain(..) {
                self.read[row.seq as usize].push(row.token);
            }
            for (ask, at) in asks.iter_mut().zip(&mut self.at) {
                let Some(row) = at.take() else { continue };
                let Some(token) = likely(self.decoder.logits(row)) else {
                    continue;
                };
                // An end is for the large model alone to say.
                if self.decoder.is_eog(token) {
                    continue;
                }
                ask.guess.push(token);
                if n + 1 < ask.n_max {
                    *at = Some(self.rows.len());
                    self.rows.push(Row {
                        seq: ask.seq,
                        token,
                        pos: self.read[ask.seq as usize].len() as u32,
                        wants_logits: true,
                    });
                }
            }
        }
    }

    /// Takes out of the cache what was not said after all, and lays out the rows of what it lacks.
    fn catch_up(&mut self, asks: &[Ask<'_>]) {
        self.rows.clear();
        self.at.clear();
        let mut n_left = N_READ_MAX.min(self.decoder.limits().n_batch as usize);
        for ask in asks {
            let read = &mut self.read[ask.seq as usize];
            let pairs = read.iter().zip(ask.tokens);
            let n_common = pairs.take_while(|(read, said)| read == said).count();
            // The last one is read again where need be: its logits are gone.
            let n_kept = n_common.min(ask.tokens.len().saturating_sub(1));
            if n_kept < read.len() {
                // Where only a part cannot be forgotten, all is.
                let n_kept = match self.decoder.seq_rm(ask.seq, n_kept as u32) {
                    true => n_kept,
                    false => {
                        self.decoder.seq_rm(ask.seq, 0);
                        0
                    }
                };
                read.truncate(n_kept);
            }
            let lacking = &ask.tokens[read.len()..];
            let n = lacking.len().min(n_left);
            n_left -= n;
            let is_whole = n == lacking.len() && n > 0 && ask.n_max > 0;
            for (i, token) in lacking[..n].iter().enumerate() {
                self.rows.push(Row {
                    seq: ask.seq,
                    token: *token,
                    pos: (read.len() + i) as u32,
                    wants_logits: is_whole && i + 1 == n,
                });
            }
            self.at.push(is_whole.then(|| self.rows.len() - 1));
        }
    }

    fn forget(&mut self) {
        for (seq, read) in self.read.iter_mut().enumerate() {
            read.clear();
            self.decoder.seq_rm(seq as SeqId, 0);
        }
        self.rows.clear();
        self.at.clear();
    }
}

/// Whether a token of `small` means the same to `large`; the error is a sentence.
pub fn same_vocabulary(large: &dyn Decoder, small: &dyn Decoder) -> Result<(), String> {
    let (n_large, n_small) = (large.limits().n_vocab, small.limits().n_vocab);
    if n_large != n_small {
        return Err(format!(
            "it has {n_small} tokens, and the model it would draft for {n_large}: both must have one vocabulary"
        ));
    }
    let piece = |of: &dyn Decoder, token| {
        let mut bytes = Vec::new();
        of.piece(token, &mut bytes);
        (bytes, of.is_eog(token))
    };
    match (0..n_large as Token).find(|token| piece(large, *token) != piece(small, *token)) {
        None => Ok(()),
        Some(token) => Err(format!(
            "its token {token} is another one than in the model it would draft for: both must have one vocabulary"
        )),
    }
}

/// The likeliest token, where it is likelier than [`P_MIN`].
fn likely(logits: &[f32]) -> Option<Token> {
    let numbers = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| !logit.is_nan());
    let (best, most) = numbers.max_by(|a, b| a.1.total_cmp(b.1))?;
    let all: f32 = logits.iter().map(|logit| (logit - most).exp()).sum();
    // Not true of a NaN either.
    (1.0 / all >= P_MIN).then_some(best as Token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scripted::{Scripted, limits, load_spec};

    fn model() -> Scripted {
        let mut model = Scripted::new(limits(&load_spec()));
        model.keeps_batches = true;
        model
    }

    /// Ids of a prompt, as they stand before an answer.
    fn said(text: &str) -> Vec<Token> {
        model().tokenize(text, true, true).unwrap()
    }

    fn guess(draft: &mut Draft<'_>, seq: SeqId, tokens: &[Token], n_max: usize) -> Vec<Token> {
        let mut guess = Vec::new();
        draft.guess(&mut [Ask {
            seq,
            tokens,
            n_max,
            guess: &mut guess,
        }]);
        guess
    }

    fn text(ids: &[Token]) -> String {
        ids.iter().map(|id| *id as u8 as char).collect()
    }

    #[test]
    fn it_says_what_its_model_would_and_reads_each_token_once() {
        let mut model = model();
        let mut draft = Draft::new(&mut model);
        let mut tokens = said("valve seven");
        let first = guess(&mut draft, 0, &tokens, 4);
        assert_eq!(text(&first), "valv");
        tokens.extend(first);
        tokens.push(Token::from(b'e'));
        assert_eq!(text(&guess(&mut draft, 0, &tokens, 3)), " se");
        // The last of a guess is never read while it is one: nobody asks what follows it.
        let n_rows: Vec<_> = model.batches.iter().map(Vec::len).collect();
        assert_eq!(n_rows, [13, 1, 1, 1, 2, 1, 1]);
    }

    #[test]
    fn what_was_guessed_wrong_is_forgotten() {
        let mut model = model();
        let mut draft = Draft::new(&mut model);
        let mut tokens = said("!count");
        assert_eq!(text(&guess(&mut draft, 0, &tokens, 4)), "0 1 ");
        // Another word was said; the script goes by the number of tokens alone.
        tokens.extend(b"0,".map(Token::from));
        assert_eq!(text(&guess(&mut draft, 0, &tokens, 2)), "1 ");
        let last = draft.read[0].clone();
        assert_eq!(last[..tokens.len()], tokens[..]);
    }

    #[test]
    fn several_sequences_are_guessed_in_the_same_batches() {
        let mut model = model();
        let mut draft = Draft::new(&mut model);
        let (one, two) = (said("abc"), said("xyz xyz"));
        let mut guesses = [Vec::new(), Vec::new()];
        let [first, second] = &mut guesses;
        let asks = [(0, &one, 2, first), (3, &two, 5, second)];
        let mut asks = asks.map(|(seq, tokens, n_max, guess)| Ask {
            seq,
            tokens,
            n_max,
            guess,
        });
        draft.guess(&mut asks);
        assert_eq!(guesses.map(|guess| text(&guess)), ["ab", "xyz x"]);
        assert_eq!(model.batches.len(), 5);
    }

    #[test]
    fn a_long_prompt_is_read_in_parts_and_guessed_when_it_is_whole() {
        let mut model = model();
        let mut draft = Draft::new(&mut model);
        let tokens = said(&"word ".repeat(110));
        assert!(guess(&mut draft, 0, &tokens, 4).is_empty());
        assert!(guess(&mut draft, 0, &tokens, 4).is_empty());
        assert_eq!(text(&guess(&mut draft, 0, &tokens, 4)), "word");
        assert!(model.batches.iter().all(|rows| rows.len() <= N_READ_MAX));
    }

    #[test]
    fn an_end_is_not_guessed_and_a_full_cache_costs_guesses_alone() {
        let mut model = model();
        let mut draft = Draft::new(&mut model);
        let short = said("ab !tokens 2");
        assert_eq!(text(&guess(&mut draft, 1, &short, 4)), "ab");
        // 2,048 cells: eight prompts of 250 fit and something is left, a ninth does not.
        for n in 0..12_u8 {
            let tokens = said(&format!("{}{}", char::from(b'a' + n), "x".repeat(600)));
            for _ in 0..3 {
                let seq = SeqId::from(n) % 4;
                let found = guess(&mut draft, seq, &tokens, 2);
                assert!(found.is_empty() || text(&found) == text(&tokens[1..3]));
            }
        }
        assert_eq!(text(&guess(&mut draft, 1, &short, 4)), "ab");
    }

    #[test]
    fn a_guess_is_more_likely_right_than_wrong() {
        assert_eq!(likely(&[0.0, 3.0, 0.0]), Some(1));
        assert_eq!(likely(&[1.0, 1.1, 1.0]), None);
        assert_eq!(likely(&[f32::NAN, 9.0]), None);
        assert_eq!(likely(&[f32::NEG_INFINITY, 0.0]), Some(1));
        assert_eq!(likely(&[]), None);
    }

    proptest! {
        /// Whatever the large model says instead, its cache holds what was said, and no call panics: the scripted
        /// decoder does when a rule of llama.cpp is broken.
        #[test]
        fn its_cache_follows_what_was_said(
            turns in prop::collection::vec((0_u32..4, 0_usize..6, 0_usize..4, 0_i32..3), 1..40),
        ) {
            let mut model = model();
            let mut draft = Draft::new(&mut model);
            let mut all = vec![said("abc abd abe"); 4];
            for (seq, n_max, n_taken, other) in turns {
                let tokens = &mut all[seq as usize];
                let found = guess(&mut draft, seq, tokens, n_max);
                prop_assert!(found.len() <= n_max);
                let read = &draft.read[seq as usize];
                prop_assert!(n_max == 0 || read.starts_with(tokens));
                tokens.extend(found.iter().take(n_taken));
                tokens.push(Token::from(b'x') + other);
            }
        }
    }
}
