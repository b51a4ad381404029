//! From token bytes to text that may be handed out.
//!
//! Pure. Text is held back while its last bytes may be the head of a split UTF-8 character, or its end
//! may be the head of a stop string. What is released is a function of the bytes alone, however they
//! are cut into tokens; so a resumed stream replays its ids and skips what was delivered.

/// The text of one answer, as it grows.
#[derive(Debug)]
pub struct TextOut {
    stops: Vec<String>,
    /// Bytes of a character whose rest has not come.
    split: Vec<u8>,
    /// Decoded text that may be the head of a stop string.
    held: String,
    /// Bytes of released text still to be swallowed, because another worker delivered them.
    skip: u64,
    stopped: bool,
}

impl TextOut {
    /// `skip` bytes of text were already delivered. Empty stop strings are ignored.
    pub fn new(stops: &[String], skip: u64) -> Self {
        Self {
            stops: Vec::from_iter(stops.iter().filter(|stop| !stop.is_empty()).cloned()),
            split: Vec::new(),
            held: String::new(),
            skip,
            stopped: false,
        }
    }

    /// Adds a token's bytes; what may be handed out is appended to `out`. `true` once a stop string is
    /// complete: nothing more will come.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) -> bool {
        if self.stopped {
            return true;
        }
        if self.stops.is_empty() && self.split.is_empty() && self.skip == 0 {
            // The usual case: no stop strings, whole characters.
            if let Ok(text) = std::str::from_utf8(bytes) {
                out.push_str(text);
                return false;
            }
        }
        self.split.extend_from_slice(bytes);
        let searched = self.held.len();
        decode(&mut self.split, &mut self.held);
        let release = match self.first_stop(searched) {
            Some(at) => {
                self.stopped = true;
                at
            }
            None => self.held.len() - self.tail_to_hold(),
        };
        self.release(release, out);
        if self.stopped {
            self.held.clear();
            self.split.clear();
        }
        self.stopped
    }

    /// The answer is over: what was held back comes out, an unfinished character as U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        if !self.split.is_empty() {
            self.split.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        self.release(self.held.len(), out);
    }

    /// Start of the stop string that is complete first, reading on from `searched` bytes of `held`;
    /// of several that end together, the longest.
    fn first_stop(&self, searched: usize) -> Option<usize> {
        let found = self.stops.iter().filter_map(|stop| {
            let mut from = (searched + 1).saturating_sub(stop.len());
            while !self.held.is_char_boundary(from) {
                from -= 1;
            }
            let at = from + self.held[from..].find(stop.as_str())?;
            Some((at + stop.len(), at))
        });
        found.min().map(|(_, at)| at)
    }

    /// Length of the longest end of `held` that is the head of a stop string.
    fn tail_to_hold(&self) -> usize {
        let held = self.held.as_bytes();
        let heads = self.stops.iter().map(|stop| {
            let stop = stop.as_bytes();
            let longest = held.len().min(stop.len() - 1);
            (1..=longest)
                .rev()
                .find(|n| held.ends_with(&stop[..*n]))
                .unwrap_or(0)
        });
        // A head of whole characters ends at a boundary; a longer one may begin inside a character only
        // if the stop string did, which it cannot.
        heads.max().unwrap_or(0)
    }

    fn release(&mut self, length: usize, out: &mut String) {
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(length);
        // A count that was no boundary came from elsewhere; the rest of that character is skipped too.
        let mut from = skipped;
        while !self.held.is_char_boundary(from) {
            from += 1;
        }
        self.skip -= skipped as u64;
        out.push_str(&self.held[from..length]);
        self.held.drain(..length);
    }
}

/// Moves whole characters from `bytes` to `text`, invalid ones as U+FFFD; the head of an unfinished
/// character stays. The same as `String::from_utf8_lossy` on the whole.
fn decode(bytes: &mut Vec<u8>, text: &mut String) {
    let mut start = 0;
    loop {
        match std::str::from_utf8(&bytes[start..]) {
            Ok(rest) => {
                text.push_str(rest);
                start = bytes.len();
                break;
            }
            Err(error) => {
                let valid = start + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[start..valid]).expect("checked above"));
                start = valid;
                let Some(invalid) = error.error_len() else {
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                start += invalid;
            }
        }
    }
    bytes.drain(..start);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(pieces: &[&[u8]], stops: &[&str], skip: u64) -> (String, bool) {
        let stops = Vec::from_iter(stops.iter().map(|stop| (*stop).to_owned()));
        let mut text = TextOut::new(&stops, skip);
        let mut out = String::new();
        let mut stopped = false;
        for piece in pieces {
            stopped = text.push(piece, &mut out);
        }
        text.finish(&mut out);
        (out, stopped)
    }

    #[test]
    fn a_split_character_waits_for_its_rest() {
        let mut text = TextOut::new(&[], 0);
        let mut out = String::new();
        let bytes = "é€𝄞".as_bytes();
        text.push(&bytes[..1], &mut out);
        assert_eq!(out, "");
        text.push(&bytes[1..4], &mut out);
        assert_eq!(out, "é");
        text.push(&bytes[4..], &mut out);
        assert_eq!(out, "é€𝄞");
    }

    #[test]
    fn invalid_bytes_become_replacement_characters() {
        assert_eq!(
            run(&[b"a\xff", b"b\xc3"], &[], 0),
            ("a\u{fffd}b\u{fffd}".into(), false)
        );
    }

    #[test]
    fn a_stop_string_and_what_follows_are_dropped() {
        assert_eq!(
            run(&[b"one tw", b"o three"], &["two"], 0),
            ("one ".into(), true)
        );
        assert_eq!(
            run(&[b"one tw", b"in"], &["two"], 0),
            ("one twin".into(), false)
        );
    }

    #[test]
    fn the_head_of_a_stop_string_is_held_back() {
        let mut text = TextOut::new(&["END".into()], 0);
        let mut out = String::new();
        text.push(b"abcEN", &mut out);
        assert_eq!(out, "abc");
        text.push(b"E", &mut out);
        assert_eq!(out, "abcEN");
        assert!(text.push(b"ND", &mut out));
        assert_eq!(out, "abcEN");
    }

    #[test]
    fn of_two_stop_strings_the_one_complete_first_ends_the_text() {
        assert_eq!(run(&[b"xabcd"], &["abcd", "bc"], 0), ("xa".into(), true));
        assert_eq!(run(&[b"xabc"], &["abc", "bc"], 0), ("x".into(), true));
    }

    fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let text = prop_oneof![
            "[ab]{0,4}".prop_map(String::into_bytes),
            "[aé€𝄞]{0,3}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..4),
        ];
        proptest::collection::vec(text, 0..24)
    }

    fn stops() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[abé]{1,4}", 0..3)
    }

    proptest! {
        #[test]
        fn without_stop_strings_nothing_is_lost(pieces in pieces()) {
            let slices = Vec::from_iter(pieces.iter().map(Vec::as_slice));
            let all = pieces.concat();
            prop_assert_eq!(run(&slices, &[], 0).0, String::from_utf8_lossy(&all));
        }

        #[test]
        fn the_cut_into_tokens_does_not_matter(pieces in pieces(), stops in stops()) {
            let stops = Vec::from_iter(stops.iter().map(String::as_str));
            let slices = Vec::from_iter(pieces.iter().map(Vec::as_slice));
            let all = pieces.concat();
            let bytes = Vec::from_iter(all.chunks(1));
            let whole = run(&[&all], &stops, 0);
            prop_assert_eq!(&run(&slices, &stops, 0), &whole);
            prop_assert_eq!(&run(&bytes, &stops, 0), &whole);
            for stop in stops {
                prop_assert!(!whole.0.contains(stop));
            }
        }

        #[test]
        fn a_resumed_text_begins_where_the_first_ended(pieces in pieces(), stops in stops(), cut in 0_usize..24) {
            let cut = cut.min(pieces.len());
            let mut first = TextOut::new(&stops, 0);
            let mut delivered = String::new();
            for piece in &pieces[..cut] {
                first.push(piece, &mut delivered);
            }
            let mut second = TextOut::new(&stops, delivered.len() as u64);
            let mut rest = String::new();
            for piece in &pieces {
                second.push(piece, &mut rest);
            }
            second.finish(&mut rest);
            let borrowed = Vec::from_iter(stops.iter().map(String::as_str));
            let slices = Vec::from_iter(pieces.iter().map(Vec::as_slice));
            prop_assert_eq!(delivered + &rest, run(&slices, &borrowed, 0).0);
        }
    }
}
