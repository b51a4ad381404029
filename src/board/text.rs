//! Words of parsers: lines with their numbers, numbers within bounds, and errors that show what was found.
//! Bytes in, values out.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::root::ReadError;

/// Most characters of the input that an error repeats.
const FOUND_CHARS_MAX: usize = 60;

/// Most bytes of a name or label.
const LINE_BYTES_MAX: usize = 256;

/// What a parser found wrong; [`ParseError::in_file`] adds where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    line: usize,
    found: String,
    expected: String,
}

impl ParseError {
    /// `found` in line `line` (from 1), where `expected` should be.
    pub fn new(line: usize, found: &[u8], expected: impl Into<String>) -> Self {
        let found = String::from_utf8_lossy(found);
        let mut shown: String = found.chars().take(FOUND_CHARS_MAX).collect();
        if shown.len() < found.len() {
            shown.push('…');
        }
        Self {
            line,
            found: shown,
            expected: expected.into(),
        }
    }

    /// The input of `n_lines` lines ended, and `expected` did not come.
    pub fn at_end(n_lines: usize, expected: impl Into<String>) -> Self {
        Self {
            line: n_lines.max(1),
            found: "end of file".into(),
            expected: expected.into(),
        }
    }

    /// As an error about the file at `path` on the board.
    pub fn in_file(self, path: &str) -> ReadError {
        ReadError::Malformed {
            path: path.to_owned(),
            line: self.line,
            found: self.found,
            expected: self.expected,
        }
    }
}

/// The lines with their numbers from 1, without line ends and spaces around them.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    bytes
        .split(|byte| *byte == b'\n')
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim_ascii()))
}

/// How many lines there are; an empty rest after the last line end is none.
pub fn n_lines(bytes: &[u8]) -> usize {
    let n_ends = bytes.iter().filter(|byte| **byte == b'\n').count();
    n_ends + usize::from(!bytes.is_empty() && !bytes.ends_with(b"\n"))
}

/// The words of a line.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
}

/// One line of text, as names and labels are. The device tree ends its strings with NUL.
///
/// # Errors
/// Not one line of UTF-8, or longer than a label is.
pub fn line(bytes: &[u8]) -> Result<String, ParseError> {
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0 && !byte.is_ascii_whitespace())
        .map_or(0, |last| last + 1);
    let trimmed = bytes[..end].trim_ascii_start();
    let is_line = trimmed.len() <= LINE_BYTES_MAX && !trimmed.iter().any(u8::is_ascii_control);
    match std::str::from_utf8(trimmed) {
        Ok(text) if is_line => Ok(text.to_owned()),
        _ => Err(ParseError::new(1, trimmed, "one line of text")),
    }
}

/// One number within `allowed`, alone in a file.
///
/// # Errors
/// Something else.
pub fn number<T: FromStr + Display + PartialOrd>(
    bytes: &[u8],
    allowed: &RangeInclusive<T>,
) -> Result<T, ParseError> {
    word_number(1, bytes.trim_ascii_end(), allowed)
}

/// A decimal number within `allowed` in line `line`.
///
/// # Errors
/// Something else.
pub fn word_number<T: FromStr + Display + PartialOrd>(
    line: usize,
    word: &[u8],
    allowed: &RangeInclusive<T>,
) -> Result<T, ParseError> {
    std::str::from_utf8(word)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|number| allowed.contains(number))
        .ok_or_else(|| {
            let (low, high) = (allowed.start(), allowed.end());
            ParseError::new(line, word, format!("a number from {low} to {high}"))
        })
}
