//! PURE: numbers that end. A schema bounds what a number is, not how long it is written, so a small model may
//! go on with digits until `max_tokens`. After as many as any reader keeps, a number ends wherever it may.
//!
//! A preference among what the grammar allows: where it allows digits only, digits stay. Knows JSON's strings
//! and numbers, and nothing of schemas or llguidance.

/// Digits before the point: every 64-bit integer.
pub(super) const WHOLE_DIGITS_MAX: usize = 19;
/// Digits behind the point: a double has no more that count.
pub(super) const FRACTION_DIGITS_MAX: usize = 17;
/// Digits of the exponent. A third could make a number that is infinite to most readers.
pub(super) const EXPONENT_DIGITS_MAX: usize = 2;

/// Where an answer stands in JSON, as far as its numbers go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Place {
    /// Neither in a string nor in a number.
    #[default]
    Outside,
    InString,
    /// Behind a backslash.
    Escaped,
    /// So many digits before the point.
    Whole(usize),
    /// So many behind it.
    Fraction(usize),
    /// So many of the exponent.
    Exponent(usize),
}

impl Place {
    /// Behind `bytes` more.
    #[must_use]
    pub(super) fn after(self, bytes: &[u8]) -> Self {
        bytes.iter().fold(self, |place, byte| place.step(*byte))
    }

    fn step(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Escaped, _) => Self::InString,
            (Self::InString, b'\\') => Self::Escaped,
            (Self::InString, b'"') => Self::Outside,
            (Self::InString, _) => Self::InString,
            (_, b'"') => Self::InString,
            (Self::Outside, b'0'..=b'9') => Self::Whole(1),
            (Self::Whole(n), b'0'..=b'9') => Self::Whole(n + 1),
            (Self::Fraction(n), b'0'..=b'9') => Self::Fraction(n + 1),
            (Self::Exponent(n), b'0'..=b'9') => Self::Exponent(n + 1),
            (Self::Whole(_), b'.') => Self::Fraction(0),
            (Self::Whole(_) | Self::Fraction(_), b'e' | b'E') => Self::Exponent(0),
            (Self::Exponent(0), b'+' | b'-') => Self::Exponent(0),
            _ => Self::Outside,
        }
    }

    /// How many more digits are worth writing here; `None`: that is no question here.
    pub(super) fn digits_left(self) -> Option<usize> {
        match self {
            Self::Whole(n) => Some(WHOLE_DIGITS_MAX.saturating_sub(n)),
            Self::Fraction(n) => Some(FRACTION_DIGITS_MAX.saturating_sub(n)),
            Self::Exponent(n) => Some(EXPONENT_DIGITS_MAX.saturating_sub(n)),
            Self::Outside | Self::InString | Self::Escaped => None,
        }
    }
}

/// Which tokens write on a number.
#[derive(Debug)]
pub(super) struct Digits {
    /// Of each token, by id: how many digits it begins with.
    leads: Vec<u8>,
    lead_max: usize,
    /// Tokens that are one digit.
    single: Vec<u32>,
    /// Tokens of which one follows a number in an object, in an array, or at the end of the answer.
    enders: Vec<u32>,
}

impl Digits {
    /// `words`: the bytes of each token, by id; `ends`: tokens that end an answer.
    pub(super) fn new(words: &[Vec<u8>], ends: impl IntoIterator<Item = u32>) -> Self {
        let lead = |word: &Vec<u8>| {
            let digits = word.iter().take_while(|byte| byte.is_ascii_digit());
            u8::try_from(digits.count()).unwrap_or(u8::MAX)
        };
        let leads = Vec::from_iter(words.iter().map(lead));
        let with = |is: fn(&[u8]) -> bool| {
            let found = (0..).zip(words).filter(move |(_, word)| is(word));
            found.map(|(id, _)| id)
        };
        Self {
            lead_max: leads.iter().copied().max().unwrap_or_default().into(),
            single: with(|word| matches!(word, [b'0'..=b'9'])).collect(),
            enders: with(|word| matches!(word, [b',' | b'}' | b']']))
                .chain(ends)
                .collect(),
            leads,
        }
    }

    /// Whether with `left` digits to go any token would write too many.
    pub(super) fn concern(&self, left: usize) -> bool {
        left < self.lead_max
    }

    /// Whether a token writes more than `left` digits.
    pub(super) fn exceed(&self, token: u32, left: usize) -> bool {
        self.leads
            .get(token as usize)
            .is_some_and(|lead| usize::from(*lead) > left)
    }

    pub(super) fn single(&self) -> &[u32] {
        &self.single
    }

    pub(super) fn enders(&self) -> &[u32] {
        &self.enders
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn digits_count_in_numbers_and_not_in_strings() {
        for (text, left) in [
            (r#"{"a": 12"#, Some(WHOLE_DIGITS_MAX - 2)),
            (r#"{"a": -12.345"#, Some(FRACTION_DIGITS_MAX - 3)),
            (r#"{"a": 1.5e-1"#, Some(EXPONENT_DIGITS_MAX - 1)),
            (r#"{"a": 1e"#, Some(EXPONENT_DIGITS_MAX)),
            (r#"{"a": 12, "#, None),
            (r#"{"a": "12"#, None),
            (r#"{"a": "\"12"#, None),
            (r#"{"a": "\\", "b": 12"#, Some(WHOLE_DIGITS_MAX - 2)),
            (r#"[true, 7"#, Some(WHOLE_DIGITS_MAX - 1)),
        ] {
            let place = Place::default().after(text.as_bytes());
            assert_eq!(place.digits_left(), left, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_cut_into_tokens_makes_no_difference(text in r#"[-0-9.eE+"\\, a{}]{0,40}"#, at in 0_usize..40) {
            let bytes = text.as_bytes();
            let (head, tail) = bytes.split_at(at.min(bytes.len()));
            prop_assert_eq!(Place::default().after(head).after(tail), Place::default().after(bytes));
        }

        /// A reader that knows JSON agrees where a text has an open string.
        #[test]
        fn strings_are_where_json_has_them(value in "[ -~]{0,20}") {
            let text = serde_json::json!([value, 5]).to_string();
            let number = text.len() - 1;
            prop_assert_eq!(Place::default().after(&text.as_bytes()[..number]), Place::Whole(1));
        }
    }
}
