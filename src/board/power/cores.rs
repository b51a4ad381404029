//! How many CPUs a list of the kernel names: `0-3,6,8-11` are nine.

use crate::board::text::{ParseError, word_number};

/// Highest CPU number.
const CPU_MAX: u32 = 8191;

/// Counts the CPUs; the empty list has none.
///
/// # Errors
/// A part that is no number and no rising range, or one that starts before the last ended.
pub(super) fn parse(bytes: &[u8]) -> Result<u32, ParseError> {
    let list = bytes.trim_ascii();
    let (mut n_cores, mut next_free) = (0, 0);
    for part in list
        .split(|byte| *byte == b',')
        .filter(|part| !part.is_empty())
    {
        let mut ends = part.splitn(2, |byte| *byte == b'-');
        let first = word_number(1, ends.next().unwrap_or_default(), &(next_free..=CPU_MAX))?;
        let last = match ends.next() {
            Some(last) => word_number(1, last, &(first..=CPU_MAX))?,
            None => first,
        };
        n_cores += last - first + 1;
        next_free = last + 1;
    }
    Ok(n_cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_single_cpus_are_counted() {
        for (list, n_cores) in [("0-7\n", 8), ("0", 1), ("0-3,6,8-11", 9), ("\n", 0)] {
            assert_eq!(parse(list.as_bytes()), Ok(n_cores), "{list}");
        }
        for list in ["7-0", "0-3,2", "a", "0-", "0-99999", "-1"] {
            assert!(parse(list.as_bytes()).is_err(), "{list}");
        }
    }
}
