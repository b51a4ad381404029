//! Prompts that were read, and their answers, saved outside the KV pool.
//!
//! Pure. A job that ends leaves its sequence here as llama.cpp's bytes of it; a prompt that begins the same
//! way gets them back, which takes a thousandth of the time of reading it again. They are not left in the
//! pool, where they would be in the way of every decode: attention walks over all used cells, masked or not
//! (SmolLM2 135M on two cores: with 2048 more cells a step takes 10 % longer, of eight sequences with 512).
//! Bounded in bytes. What nobody came back to goes first, the oldest before others; then what was found again or is
//! part of a conversation, which may have three quarters of the room: one flood of questions that are asked once
//! forgets no conversation. What is pinned stays, and may have half. Knows nothing of the pool's cells.

use std::sync::Arc;

use orinoco::frames::{Leaves, Token};
use orinoco::kv_file::Kind;

/// Shorter sequences are read again.
const N_SAVED_MIN: usize = 32;
/// Shorter ones are not worth a place on disk.
const N_ON_DISK_MIN: usize = 128;

/// Saved sequences.
#[derive(Debug)]
pub struct Shelf {
    bytes_max: usize,
    n_swa: usize,
    is_open: bool,
    entries: Vec<Entry>,
    n_saved: u64,
    clock: u64,
    /// What the last copy took a token, milliseconds.
    token_ms: Option<f64>,
}

/// Nobody notices a copy that takes less, milliseconds.
const HOLD_UP_MS_MAX: f64 = 8.0;
/// Of what reading a sequence again takes, a copy of it may hold others up for this part.
const HOLD_UP_PART: f64 = 0.1;
/// A copy that would take too long is believed to take a little less each time it is not made, so that it is
/// tried again.
const DOUBT: f64 = 0.98;

#[derive(Debug)]
struct Entry {
    key: u64,
    tokens: Vec<Token>,
    /// Shared with who writes it to disk.
    state: Arc<Vec<u8>>,
    used_at: u64,
    leaves: Leaves,
    /// Found again, or part of a conversation.
    is_proven: bool,
    /// When it was made, unix milliseconds.
    made_ms: u64,
    /// It is on disk, or was judged not to go there.
    is_settled: bool,
}

impl Entry {
    fn is_pinned(&self) -> bool {
        self.leaves == Leaves::Pinned
    }

    fn bytes(&self) -> usize {
        bytes_of(self.tokens.len(), self.state.len())
    }

    /// What it would be for on disk; `None`: for nothing that is known yet.
    fn kind(&self) -> Option<Kind> {
        match self.leaves {
            Leaves::Session(number) => Some(Kind::Session(number)),
            Leaves::Pinned => Some(Kind::Pinned),
            Leaves::Usual => self.is_proven.then_some(Kind::Proven),
            Leaves::Nothing => None,
        }
    }
}

fn bytes_of(n_tokens: usize, state_bytes: usize) -> usize {
    n_tokens * size_of::<Token>() + state_bytes
}

/// A saved sequence on its way to disk.
#[derive(Debug, Clone)]
pub struct Unsettled {
    /// Its name here.
    pub key: u64,
    /// Its ids.
    pub tokens: Vec<Token>,
    /// llama.cpp's bytes of it.
    pub state: Arc<Vec<u8>>,
    /// What it is for.
    pub kind: Kind,
    /// When it was made, unix milliseconds.
    pub made_ms: u64,
}

/// A saved sequence that begins as a prompt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Its name here.
    pub key: u64,
    /// Tokens that both have in common; at least one of the prompt's is left to decode.
    pub n_common: usize,
    /// Tokens that it has.
    pub n_tokens: usize,
}

impl Shelf {
    /// Holds up to `bytes_max`; 0: nothing. `n_swa` is the width of the model's sliding window; 0: none.
    pub fn new(bytes_max: usize, n_swa: u32) -> Self {
        Self {
            bytes_max,
            n_swa: n_swa as usize,
            is_open: true,
            entries: Vec::new(),
            n_saved: 0,
            clock: 0,
            token_ms: None,
        }
    }

    /// Whether a sequence of `n_tokens` may be copied while others wait, by what copies took before: for a short
    /// time, or for a part of the `read_ms` for which reading it again would hold them up. The cells of sequences
    /// that were made side by side alternate, and out of a GPU each comes by itself: 128 tokens of SmolLM2 from an
    /// H200 take some 70 ms.
    pub fn may_hold_up(&mut self, n_tokens: usize, read_ms: f64) -> bool {
        let most_ms = HOLD_UP_MS_MAX.max(read_ms * HOLD_UP_PART);
        let Some(token_ms) = &mut self.token_ms else {
            return true;
        };
        let may = *token_ms * n_tokens as f64 <= most_ms;
        if !may {
            *token_ms *= DOUBT;
        }
        may
    }

    /// Whether a copy of `n_tokens` is over before anybody notices; nobody waits for it.
    pub fn is_quick(&self, n_tokens: usize) -> bool {
        (self.token_ms).is_none_or(|token_ms| token_ms * n_tokens as f64 <= HOLD_UP_MS_MAX)
    }

    /// A copy of `n_tokens` took `ms`.
    pub fn copied(&mut self, n_tokens: usize, ms: f64) {
        self.token_ms = Some(ms / n_tokens.max(1) as f64);
    }

    /// Whether a sequence of so many tokens would be saved at all.
    pub fn takes(&self, n_tokens: usize, leaves: Leaves) -> bool {
        self.is_open() && leaves != Leaves::Nothing && n_tokens >= N_SAVED_MIN
    }

    /// Bytes that it holds.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(Entry::bytes).sum()
    }

    /// What has most in common with `wanted`.
    pub fn best(&self, wanted: &[Token]) -> Option<Found> {
        let found = self.entries.iter().map(|entry| Found {
            key: entry.key,
            n_common: common(&entry.tokens, wanted),
            n_tokens: entry.tokens.len(),
        });
        // Of equals the shortest: it needs the fewest cells.
        found
            .filter(|found| self.is_whole(found.n_common, found.n_tokens))
            .max_by_key(|found| (found.n_common, std::cmp::Reverse(found.n_tokens)))
    }

    /// Whether the first `n_common` of `n_tokens` saved tokens can be had. llama.cpp saves no more than the last
    /// window of the layers that have one. So what is longer can be gone on with, and not be cut: the window before
    /// the cut would be missing.
    pub fn is_whole(&self, n_common: usize, n_tokens: usize) -> bool {
        self.n_swa == 0 || n_tokens <= self.n_swa || n_common + 1 >= n_tokens
    }

    /// Its bytes; it counts as used now.
    pub fn take(&mut self, key: u64) -> Option<&[u8]> {
        self.clock += 1;
        let entry = self.entries.iter_mut().find(|entry| entry.key == key)?;
        entry.used_at = self.clock;
        entry.is_proven = true;
        Some(&entry.state)
    }

    /// Whether a sequence of `tokens`, as `state_bytes`, is worth saving; makes room for it.
    pub fn wants(&mut self, tokens: &[Token], state_bytes: usize, leaves: Leaves) -> bool {
        let bytes = bytes_of(tokens.len(), state_bytes);
        if !self.takes(tokens.len(), leaves) || bytes > self.bytes_max {
            return false;
        }
        self.clock += 1;
        let clock = self.clock;
        let pins = leaves == Leaves::Pinned;
        let longer =
            |entry: &&mut Entry| entry.tokens.starts_with(tokens) && (!pins || entry.is_pinned());
        if let Some(longer) = self.entries.iter_mut().find(longer) {
            longer.used_at = clock;
            return false;
        }
        let pinned = self.entries.iter().filter(|entry| entry.is_pinned());
        let pinned_bytes: usize = pinned.map(Entry::bytes).sum();
        let most = if pins {
            self.bytes_max / 2
        } else {
            self.bytes_max
        };
        if pinned_bytes + bytes > most {
            return false;
        }
        // A head of it has nothing more to give; nor has what the conversation left before.
        let is_of_it =
            |entry: &Entry| matches!(leaves, Leaves::Session(_)) && entry.leaves == leaves;
        self.entries.retain(|entry| {
            entry.is_pinned() || !(tokens.starts_with(&entry.tokens) || is_of_it(entry))
        });
        while self.bytes() + bytes > self.bytes_max
            && let Some(goes) = self.goes_first()
        {
            self.entries.remove(goes);
        }
        true
    }

    /// Place of the entry that makes room.
    fn goes_first(&self) -> Option<usize> {
        let proven = self
            .entries
            .iter()
            .filter(|entry| entry.is_proven && !entry.is_pinned());
        let proven_bytes: usize = proven.map(Entry::bytes).sum();
        let is_spared = proven_bytes <= self.bytes_max / 4 * 3;
        let all = self.entries.iter().enumerate();
        let may_go = all.filter(|(_, entry)| !entry.is_pinned());
        let first = may_go.min_by_key(|(_, entry)| (is_spared && entry.is_proven, entry.used_at));
        first.map(|(at, _)| at)
    }

    /// Saves what [`Shelf::wants`]; made at `made_ms`, unix milliseconds.
    pub fn put(&mut self, tokens: Vec<Token>, state: Vec<u8>, leaves: Leaves, made_ms: u64) {
        self.n_saved += 1;
        self.entries.push(Entry {
            key: self.n_saved,
            tokens,
            state: Arc::new(state),
            used_at: self.clock,
            leaves,
            is_proven: matches!(leaves, Leaves::Session(_)),
            made_ms,
            is_settled: false,
        });
    }

    /// As [`Shelf::put`], of what came from disk as `kind`; nothing where there is no room.
    pub fn put_back(&mut self, tokens: &[Token], state: Vec<u8>, kind: Kind, made_ms: u64) {
        let leaves = match kind {
            Kind::Session(number) => Leaves::Session(number),
            Kind::Pinned => Leaves::Pinned,
            Kind::Proven => Leaves::Usual,
        };
        if !self.wants(tokens, state.len(), leaves) {
            return;
        }
        self.put(tokens.to_vec(), state, leaves, made_ms);
        if let Some(entry) = self.entries.last_mut() {
            entry.is_proven = true;
            entry.is_settled = true;
        }
    }

    /// What goes to disk next: conversations before others, the newest first.
    pub fn unsettled(&self) -> Option<Unsettled> {
        let worth = |entry: &&Entry| !entry.is_settled && entry.tokens.len() >= N_ON_DISK_MIN;
        let entries = self.entries.iter().filter(worth);
        let kinds = entries.filter_map(|entry| Some((entry.kind()?, entry)));
        let (kind, entry) = kinds.max_by_key(|(kind, entry)| {
            let is_named = matches!(kind, Kind::Session(_));
            (is_named, *kind != Kind::Pinned, entry.used_at)
        })?;
        Some(Unsettled {
            key: entry.key,
            tokens: entry.tokens.clone(),
            state: Arc::clone(&entry.state),
            kind,
            made_ms: entry.made_ms,
        })
    }

    /// It is on disk, or has no place there.
    pub fn settle(&mut self, key: u64) {
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.key == key) {
            entry.is_settled = true;
        }
    }

    /// Forgets a conversation.
    pub fn forget(&mut self, number: u64) {
        self.entries
            .retain(|entry| entry.leaves != Leaves::Session(number));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries = Vec::new();
    }

    /// Whether anything could be saved.
    pub fn is_open(&self) -> bool {
        self.is_open && self.bytes_max > 0
    }

    /// Whether memory is short, so that nothing more is to be kept.
    pub fn is_closed(&self) -> bool {
        !self.is_open
    }

    /// Whether it takes anything from now on.
    pub fn set_open(&mut self, is_open: bool) {
        self.is_open = is_open;
    }
}

/// Length of the longest common prefix, leaving at least one token of `wanted` to decode, because only
/// decoding gives logits.
pub fn common(cached: &[Token], wanted: &[Token]) -> usize {
    let pairs = cached.iter().zip(wanted);
    let n = pairs.take_while(|(a, b)| a == b).count();
    n.min(wanted.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(text: &str) -> Vec<Token> {
        Vec::from_iter(text.bytes().map(Token::from))
    }

    fn save(shelf: &mut Shelf, text: &str) -> bool {
        save_as(shelf, text, Leaves::Usual)
    }

    fn save_as(shelf: &mut Shelf, text: &str, leaves: Leaves) -> bool {
        let tokens = ids(text);
        let wanted = shelf.wants(&tokens, text.len(), leaves);
        if wanted {
            shelf.put(tokens, text.as_bytes().to_vec(), leaves, 0);
        }
        wanted
    }

    /// First letters of what is there, in the order of saving.
    fn kept(shelf: &Shelf) -> String {
        let letters = shelf.entries.iter().map(|entry| entry.tokens[0] as u8);
        letters.map(char::from).collect()
    }

    const TURN: &str = "system: be kind. user: hello. assistant: hi there";

    #[test]
    fn the_second_turn_finds_the_first_and_replaces_it() {
        let mut shelf = Shelf::new(10_000, 0);
        assert!(save(&mut shelf, TURN));
        let second = format!("{TURN}. user: and now?");
        let found = shelf.best(&ids(&second)).unwrap();
        assert_eq!((found.n_common, found.n_tokens), (TURN.len(), TURN.len()));
        assert_eq!(shelf.take(found.key), Some(TURN.as_bytes()));
        assert!(save(&mut shelf, &second));
        assert_eq!(shelf.entries.len(), 1);
    }

    #[test]
    fn at_least_one_token_is_left_to_decode() {
        let mut shelf = Shelf::new(10_000, 0);
        save(&mut shelf, TURN);
        assert_eq!(shelf.best(&ids(TURN)).unwrap().n_common, TURN.len() - 1);
    }

    #[test]
    fn who_was_used_longest_ago_makes_room() {
        let mut shelf = Shelf::new(3 * 5 * 40, 0);
        for name in ["a", "b", "c"] {
            assert!(save(&mut shelf, &name.repeat(40)));
        }
        let a = shelf.best(&ids(&"a".repeat(40))).unwrap();
        shelf.take(a.key);
        assert!(save(&mut shelf, &"d".repeat(40)));
        assert_eq!(kept(&shelf), "acd");
    }

    #[test]
    fn questions_asked_once_forget_no_conversation() {
        let mut shelf = Shelf::new(5 * 5 * 40, 0);
        for (n, name) in ["A", "B", "C"].into_iter().enumerate() {
            save_as(&mut shelf, &name.repeat(40), Leaves::Session(n as u64));
        }
        for name in 'a'..='z' {
            assert!(save(&mut shelf, &name.to_string().repeat(40)));
        }
        assert_eq!(kept(&shelf), "ABCyz");
        // Conversations have their bound, too: the one that rested longest goes.
        for (n, name) in ["D", "E"].into_iter().enumerate() {
            save_as(&mut shelf, &name.repeat(40), Leaves::Session(10 + n as u64));
        }
        save(&mut shelf, &"x".repeat(40));
        assert_eq!(kept(&shelf), "CzDEx");
    }

    #[test]
    fn a_conversation_leaves_one_thing_also_where_its_past_is_told_otherwise() {
        let mut shelf = Shelf::new(10_000, 0);
        save_as(&mut shelf, &"a".repeat(40), Leaves::Session(7));
        save_as(&mut shelf, &"b".repeat(40), Leaves::Session(8));
        save_as(&mut shelf, &"c".repeat(40), Leaves::Session(7));
        assert_eq!(kept(&shelf), "bc");
    }

    #[test]
    fn what_is_pinned_stays_and_has_half_of_the_room() {
        let mut shelf = Shelf::new(4 * 5 * 40, 0);
        assert!(save_as(&mut shelf, &"S".repeat(40), Leaves::Pinned));
        assert!(
            !save_as(&mut shelf, &"S".repeat(40), Leaves::Pinned),
            "once"
        );
        assert!(save_as(&mut shelf, &"T".repeat(40), Leaves::Pinned));
        assert!(!save_as(&mut shelf, &"U".repeat(40), Leaves::Pinned));
        let longer = format!("{}{}", "S".repeat(40), "x".repeat(5));
        assert!(save(&mut shelf, &longer));
        for name in 'a'..='z' {
            save(&mut shelf, &name.to_string().repeat(40));
        }
        assert_eq!(kept(&shelf), "STyz");
        shelf.clear();
        assert_eq!(kept(&shelf), "");
    }

    #[test]
    fn short_ones_and_those_beyond_the_budget_are_not_saved() {
        let mut shelf = Shelf::new(1000, 0);
        assert!(!save(&mut shelf, "short"));
        assert!(!save(&mut shelf, &"x".repeat(201)));
        assert!(!save(&mut Shelf::new(0, 0), TURN));
    }

    #[test]
    fn a_closed_one_takes_nothing_and_keeps_what_it_has() {
        let mut shelf = Shelf::new(10_000, 0);
        save(&mut shelf, TURN);
        shelf.set_open(false);
        assert!(!save(&mut shelf, &format!("{TURN} and more")));
        assert!(shelf.best(&ids(TURN)).is_some());
        shelf.clear();
        assert_eq!((shelf.bytes(), shelf.best(&ids(TURN))), (0, None));
    }

    #[test]
    fn a_copy_that_held_others_up_is_seldom_made_again_while_they_wait() {
        let mut shelf = Shelf::new(10_000, 0);
        assert!(shelf.may_hold_up(128, 0.0), "nothing is known yet");
        shelf.copied(128, 70.0);
        let skipped = (0..1000).take_while(|_| !shelf.may_hold_up(128, 0.0));
        let skipped = skipped.count();
        assert!((50..200).contains(&skipped), "{skipped}");
        shelf.copied(128, 2.0);
        assert!(shelf.may_hold_up(128, 0.0));
    }

    #[test]
    fn a_copy_may_hold_others_up_for_a_tenth_of_what_reading_it_again_would() {
        let mut shelf = Shelf::new(10_000, 0);
        shelf.copied(1000, 40.0);
        assert!(!shelf.is_quick(2000) && !shelf.may_hold_up(2000, 300.0));
        assert!(shelf.may_hold_up(2000, 2000.0));
    }

    #[test]
    fn conversations_go_to_disk_before_others_and_each_once() {
        let mut shelf = Shelf::new(100_000, 0);
        let next = |shelf: &mut Shelf| {
            let next = shelf.unsettled()?;
            shelf.settle(next.key);
            Some((char::from(next.tokens[0] as u8), next.kind))
        };
        save_as(&mut shelf, &"S".repeat(200), Leaves::Pinned);
        save_as(&mut shelf, &"a".repeat(200), Leaves::Session(1));
        save_as(&mut shelf, &"b".repeat(200), Leaves::Session(2));
        save_as(&mut shelf, &"c".repeat(100), Leaves::Session(3));
        save(&mut shelf, &"once".repeat(50));
        save(&mut shelf, &"twice".repeat(50));
        let again = shelf.best(&ids(&"twice".repeat(51))).unwrap();
        shelf.take(again.key);
        assert_eq!(next(&mut shelf), Some(('b', Kind::Session(2))));
        assert_eq!(next(&mut shelf), Some(('a', Kind::Session(1))));
        assert_eq!(next(&mut shelf), Some(('t', Kind::Proven)));
        assert_eq!(next(&mut shelf), Some(('S', Kind::Pinned)));
        assert_eq!(next(&mut shelf), None, "short, or asked once");
        // The next turn is something new; what came from disk is not.
        save_as(&mut shelf, &"b".repeat(300), Leaves::Session(2));
        shelf.put_back(&ids(&"d".repeat(200)), vec![1; 200], Kind::Session(4), 0);
        assert_eq!(next(&mut shelf), Some(('b', Kind::Session(2))));
        assert_eq!(next(&mut shelf), None);
        shelf.forget(4);
        assert_eq!(shelf.best(&ids(&"d".repeat(200))).unwrap().n_common, 0);
    }

    #[test]
    fn beyond_the_window_it_is_gone_on_with_but_not_cut() {
        let mut shelf = Shelf::new(10_000, 40);
        save(&mut shelf, TURN);
        assert!(TURN.len() > 40);
        assert!(shelf.best(&ids(&format!("{TURN} and more"))).is_some());
        assert!(shelf.best(&ids(TURN)).is_some(), "all but its last");
        assert_eq!(shelf.best(&ids(&TURN[..45])), None);
        let short = &TURN[..36];
        let mut shelf = Shelf::new(10_000, 40);
        save(&mut shelf, short);
        assert_eq!(shelf.best(&ids(&short[..20])).unwrap().n_common, 19);
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_it_may(texts in proptest::collection::vec("[ab]{20,120}", 0..40)) {
            let mut shelf = Shelf::new(1500, 0);
            for text in texts {
                let saved = save(&mut shelf, &text);
                prop_assert!(shelf.bytes() <= 1500);
                if saved {
                    prop_assert_eq!(shelf.best(&ids(&text)).unwrap().n_common, text.len() - 1);
                }
            }
        }
    }
}
