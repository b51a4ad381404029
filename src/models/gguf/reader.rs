//! Little-endian values from a stream that ends where the limit is.

use std::io::{BufRead, BufReader, Read};

use super::{Reason, limits};

/// Strings that are not longer are always shown by [`Bounded::strings`].
const SHORT_BYTES: usize = 8;

/// Reads at most a given number of bytes; every method fails instead of going beyond it.
pub(super) struct Bounded<R> {
    input: BufReader<R>,
    position: u64,
    max: u64,
}

impl<R: Read> Bounded<R> {
    pub(super) fn new(input: R, max: u64) -> Self {
        Self {
            input: BufReader::with_capacity(64 << 10, input),
            position: 0,
            max,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Reason> {
        self.claim(buffer.len() as u64)?;
        self.input.read_exact(buffer).map_err(end)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Reason> {
        let mut array = [0; N];
        self.fill(&mut array)?;
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Reason> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Reason> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string of at most `max` bytes; memory is taken only after its length was checked.
    pub(super) fn string(&mut self, what: &'static str, max: u64) -> Result<Vec<u8>, Reason> {
        let length = self.length(what, max)?;
        let mut text = vec![0; length as usize];
        self.fill(&mut text)?;
        Ok(text)
    }

    /// Passes over `n` strings, and shows each to `see`; of one longer than [`SHORT_BYTES`], maybe nothing.
    pub(super) fn strings(
        &mut self,
        n: u64,
        what: &'static str,
        max: u64,
        mut see: impl FnMut(&[u8]),
    ) -> Result<(), Reason> {
        let mut left = n;
        loop {
            // Those that have been read already, which is nearly all. A header may have millions, and this
            // package is compiled without inlining: no calls that can be spared.
            let here = self.input.buffer();
            let mut at = 0;
            while left > 0 && here.len() - at >= 8 {
                let length = u64::from_le_bytes([
                    here[at],
                    here[at + 1],
                    here[at + 2],
                    here[at + 3],
                    here[at + 4],
                    here[at + 5],
                    here[at + 6],
                    here[at + 7],
                ]);
                if length > max || length > (here.len() - at - 8) as u64 {
                    break;
                }
                let end = at + 8 + length as usize;
                see(&here[at + 8..end]);
                at = end;
                left -= 1;
            }
            self.claim(at as u64)?;
            self.input.consume(at);
            if left == 0 {
                return Ok(());
            }
            let length = self.length(what, max)?;
            let mut short = [0; SHORT_BYTES];
            let short = short.get_mut(..length as usize).unwrap_or_default();
            self.fill(short)?;
            see(short);
            self.skip(length - short.len() as u64)?;
            left -= 1;
        }
    }

    /// Gives `see` each of `n` numbers.
    pub(super) fn u32s(&mut self, n: u64, mut see: impl FnMut(u32)) -> Result<(), Reason> {
        let mut left = n;
        while left > 0 {
            let here = self.input.fill_buf().map_err(end)?;
            let whole = left.min(here.len() as u64 / 4);
            if whole == 0 {
                see(self.u32()?);
                left -= 1;
                continue;
            }
            for number in here[..whole as usize * 4].as_chunks().0 {
                see(u32::from_le_bytes(*number));
            }
            self.claim(whole * 4)?;
            self.input.consume(whole as usize * 4);
            left -= whole;
        }
        Ok(())
    }

    pub(super) fn skip_string(&mut self, what: &'static str, max: u64) -> Result<(), Reason> {
        let length = self.length(what, max)?;
        self.skip(length)
    }

    pub(super) fn skip_strings(&mut self, n: u64) -> Result<(), Reason> {
        self.strings(n, "a string", limits::STRING_BYTES_MAX, |_| {})
    }

    pub(super) fn skip(&mut self, length: u64) -> Result<(), Reason> {
        self.claim(length)?;
        let mut left = length;
        while left > 0 {
            let here = self.input.fill_buf().map_err(end)?.len();
            if here == 0 {
                return Err(Reason::Truncated);
            }
            let taken = left.min(here as u64);
            self.input.consume(taken as usize);
            left -= taken;
        }
        Ok(())
    }

    fn length(&mut self, what: &'static str, max: u64) -> Result<u64, Reason> {
        match self.u64()? {
            found if found > max => Err(Reason::StringTooLong { what, found, max }),
            length => Ok(length),
        }
    }

    fn claim(&mut self, length: u64) -> Result<(), Reason> {
        // No overflow: every length was checked against a limit far below 2^63.
        let position = self.position.saturating_add(length);
        if position > self.max {
            return Err(Reason::HeaderTooLong { max: self.max });
        }
        self.position = position;
        Ok(())
    }
}

fn end(error: std::io::Error) -> Reason {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Reason::Truncated,
        _ => Reason::Io(error),
    }
}
