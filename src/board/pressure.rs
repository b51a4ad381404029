//! Pressure stall information of memory: how much time is lost waiting for it.
//!
//! ```text
//!     some avg10=0.12 avg60=0.05 avg300=0.01 total=81244
//!     full avg10=0.00 avg60=0.00 avg300=0.00 total=40213
//! ```
//!
//! L4T's kernels are built without it, Yocto images may have it switched on: it is read where it is there.

use std::time::Duration;

use super::root::{Probe, ReadError, Root};
use super::text::{ParseError, lines, n_lines, word_number, words};

const MEMORY: &str = "/proc/pressure/memory";

/// Both lines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stalled,
    /// All tasks waited; absent on kernels that do not count it.
    pub full: Option<Stalled>,
}

/// Share of time stalled, over three windows, and its sum.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stalled {
    /// Over the last 10 seconds, percent.
    pub avg10_percent: f32,
    /// Over the last minute, percent.
    pub avg60_percent: f32,
    /// Over the last five minutes, percent.
    pub avg300_percent: f32,
    /// Since boot.
    pub total: Duration,
}

/// Parses `/proc/pressure/memory`.
///
/// # Errors
/// No `some` line, a key without number, a share beyond 100 %.
pub fn parse(bytes: &[u8]) -> Result<Pressure, ParseError> {
    let (mut some, mut full) = (None, None);
    for (number, line) in lines(bytes) {
        let mut parts = words(line);
        let stalled = match parts.next() {
            Some(b"some") => &mut some,
            Some(b"full") => &mut full,
            _ => continue,
        };
        *stalled = Some(self::stalled(number, line, parts)?);
    }
    let some = some.ok_or_else(|| ParseError::at_end(n_lines(bytes), "a line `some avg10=…`"))?;
    Ok(Pressure { some, full })
}

fn stalled<'a>(
    number: usize,
    line: &[u8],
    parts: impl Iterator<Item = &'a [u8]>,
) -> Result<Stalled, ParseError> {
    let mut stalled = Stalled::default();
    let mut is_complete = [false; 2];
    for part in parts {
        let Some(equals) = part.iter().position(|byte| *byte == b'=') else {
            return Err(ParseError::new(number, part, "key=value"));
        };
        let (key, value) = (&part[..equals], &part[equals + 1..]);
        let percent = || word_number::<f32>(number, value, &(0.0..=100.0));
        match key {
            b"avg10" => (stalled.avg10_percent, is_complete[0]) = (percent()?, true),
            b"avg60" => stalled.avg60_percent = percent()?,
            b"avg300" => stalled.avg300_percent = percent()?,
            b"total" => {
                let micros = word_number::<u64>(number, value, &(0..=u64::MAX))?;
                (stalled.total, is_complete[1]) = (Duration::from_micros(micros), true);
            }
            _ => {}
        }
    }
    match is_complete {
        [true, true] => Ok(stalled),
        _ => Err(ParseError::new(number, line, "avg10= and total=")),
    }
}

/// Reads the pressure again and again.
#[derive(Debug)]
pub struct PressureProbe(Probe);

impl PressureProbe {
    /// Nothing is opened yet.
    pub fn new(root: &Root) -> Self {
        Self(Probe::new(root, MEMORY))
    }

    /// The pressure now; `None` on kernels without it.
    ///
    /// # Errors
    /// As [`parse`].
    pub fn read(&mut self) -> Result<Option<Pressure>, ReadError> {
        self.0.parse(parse)
    }
}
