//! PURE: how probable the tokens of a stream were, and which chunk tells which of them.
//!
//! A chunk tells of the tokens whose first byte is in its text: the worker reports a token at once, while its
//! text may be held back as the beginning of a stop string. Tokens of a stop string are never told of.

use crate::frames::Logprob;

/// What the worker has reported of one job.
#[derive(Debug, Default)]
pub(super) struct Logprobs {
    is_wanted: bool,
    tokens: Vec<Logprob>,
    /// Where in the text each begins, in bytes.
    starts: Vec<usize>,
    /// Where the next one will.
    end: usize,
    /// How many were told with each chunk, all before it counted.
    cuts: Vec<u32>,
}

impl Logprobs {
    pub(super) fn new(is_wanted: bool) -> Self {
        Self {
            is_wanted,
            ..Self::default()
        }
    }

    pub(super) fn receive(&mut self, tokens: Vec<Logprob>) {
        for token in tokens {
            self.starts.push(self.end);
            self.end += token.chosen.bytes.len();
            self.tokens.push(token);
        }
    }

    /// Those to be told with text up to `text_end`.
    pub(super) fn due(&self, text_end: usize) -> &[Logprob] {
        let n_told = self.cuts.last().map_or(0, |n| *n as usize);
        &self.tokens[n_told..self.n_until(text_end).max(n_told)]
    }

    /// A chunk with text up to `text_end` has left.
    pub(super) fn told(&mut self, text_end: usize) {
        if self.is_wanted {
            let n_told = self.cuts.last().map_or(0, |n| *n as usize);
            self.cuts.push(self.n_until(text_end).max(n_told) as u32);
        }
    }

    /// All with text up to `text_end`.
    pub(super) fn until(&self, text_end: usize) -> &[Logprob] {
        &self.tokens[..self.n_until(text_end)]
    }

    /// Another model goes on behind `text_bytes`: what was held back behind them is made again.
    pub(super) fn rewind(&mut self, text_bytes: usize) {
        let n = self.n_until(text_bytes);
        self.tokens.truncate(n);
        self.starts.truncate(n);
        self.end = text_bytes;
    }

    /// As they were told, chunk by chunk; nothing where nobody asked.
    pub(super) fn by_chunk(&self) -> Vec<Vec<Logprob>> {
        let begins = std::iter::once(0).chain(self.cuts.iter().copied());
        let pairs = begins.zip(&self.cuts);
        let part = |(begin, end): (u32, &u32)| self.tokens[begin as usize..*end as usize].to_vec();
        pairs.map(part).collect()
    }

    fn n_until(&self, text_end: usize) -> usize {
        // A token without bytes goes with the text before it.
        let is_told = |at: usize| {
            let start = self.starts[at];
            start < text_end || (start == text_end && self.tokens[at].chosen.bytes.is_empty())
        };
        (0..self.tokens.len()).take_while(|at| is_told(*at)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::TokenLogprob;

    fn tokens(texts: &[&str]) -> Vec<Logprob> {
        let token = |text: &&str| Logprob {
            chosen: TokenLogprob {
                bytes: text.as_bytes().to_vec(),
                logprob: -1.0,
            },
            top: Vec::new(),
        };
        texts.iter().map(token).collect()
    }

    fn texts(logprobs: &[Logprob]) -> Vec<String> {
        let text = |l: &Logprob| String::from_utf8(l.chosen.bytes.clone()).unwrap();
        logprobs.iter().map(text).collect()
    }

    #[test]
    fn a_token_is_told_with_its_text_and_those_of_a_stop_string_never_are() {
        let mut logprobs = Logprobs::new(true);
        logprobs.receive(tokens(&["One", " two", " E"]));
        assert_eq!(texts(logprobs.due("One two".len())), ["One", " two"]);
        logprobs.told("One two".len());
        // The space before the stop string END came out, the rest never does.
        logprobs.receive(tokens(&["ND"]));
        assert_eq!(texts(logprobs.due("One two ".len())), [" E"]);
        logprobs.told("One two ".len());
        assert_eq!(
            texts(logprobs.until("One two ".len())),
            ["One", " two", " E"]
        );
        let by_chunk = logprobs.by_chunk();
        assert_eq!(by_chunk.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn what_another_model_makes_again_is_told_once() {
        let mut logprobs = Logprobs::new(true);
        logprobs.receive(tokens(&["a", "b", "held"]));
        logprobs.rewind(2);
        logprobs.receive(tokens(&["c"]));
        assert_eq!(texts(logprobs.until(3)), ["a", "b", "c"]);
    }
}
