//! Little-endian values from a stream that ends where the limit is.

use std::io::{BufRead, BufReader, Read};

use super::{Reason, limits};

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

    /// A string of exactly `N` bytes; `None` for one of another length, which is skipped.
    pub(super) fn short<const N: usize>(
        &mut self,
        what: &'static str,
        max: u64,
    ) -> Result<Option<[u8; N]>, Reason> {
        let length = self.length(what, max)?;
        if length == N as u64 {
            return self.array().map(Some);
        }
        self.skip(length)?;
        Ok(None)
    }

    pub(super) fn skip_string(&mut self, what: &'static str, max: u64) -> Result<(), Reason> {
        let length = self.length(what, max)?;
        self.skip(length)
    }

    pub(super) fn skip_strings(&mut self, n: u64) -> Result<(), Reason> {
        (0..n).try_for_each(|_| self.skip_string("a string", limits::STRING_BYTES_MAX))
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
