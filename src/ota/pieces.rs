//! The signed table of a file's pieces: SHA-256 of each, one after the other, 32 bytes each.
//!
//! The table itself is a target, so its digests are as good as the file's own. Each piece can be checked when
//! it arrives, whoever sent it, and a flipped bit costs one piece. 20 GB are 4,769 pieces of 4 MiB in a table
//! of 149 KiB. All pieces but the last are of the same length.

use std::ops::Range;

use super::error::{Check, FileError};
use super::name::{DIGEST_BYTES, Digest};

/// Piece length that the publisher uses, bytes: 4 MiB.
pub const PIECE_BYTES: u32 = 4 << 20;
/// Shortest piece, bytes; the tests' files are small.
pub const PIECE_BYTES_MIN: u32 = 1 << 10;
/// Longest piece, bytes: one is held in memory.
pub const PIECE_BYTES_MAX: u32 = 16 << 20;
/// Longest file, bytes: 256 GiB.
pub const FILE_BYTES_MAX: u64 = 256 << 30;
/// Most pieces of one file: a table of 2 MiB.
pub const PIECES_MAX: u64 = 65_536;

const CHECK: Check = Check("table of pieces");

/// Digests of all pieces of one file.
#[derive(Clone, PartialEq, Eq)]
pub struct PieceTable {
    file_bytes: u64,
    piece_bytes: u32,
    digests: Vec<Digest>,
}

impl std::fmt::Debug for PieceTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PieceTable")
            .field("file_bytes", &self.file_bytes)
            .field("piece_bytes", &self.piece_bytes)
            .field("n_pieces", &self.digests.len())
            .finish()
    }
}

/// Pieces that a file has.
///
/// # Errors
/// The file is empty or longer than [`FILE_BYTES_MAX`], the piece length is no power of two within its bounds,
/// or there would be more pieces than [`PIECES_MAX`].
pub fn n_pieces(file_bytes: u64, piece_bytes: u32) -> Result<u32, FileError> {
    CHECK.within("file_bytes", file_bytes, 1..=FILE_BYTES_MAX)?;
    CHECK.that(
        (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes) && piece_bytes.is_power_of_two(),
        "piece_bytes",
        piece_bytes,
        format!("a power of two from {PIECE_BYTES_MIN} to {PIECE_BYTES_MAX}"),
    )?;
    let n = file_bytes.div_ceil(u64::from(piece_bytes));
    CHECK.within("pieces", n, 1..=PIECES_MAX)?;
    Ok(u32::try_from(n).expect("at most PIECES_MAX"))
}

impl PieceTable {
    /// Length of the table of such a file, bytes; ask before reading one.
    ///
    /// # Errors
    /// As [`n_pieces`].
    pub fn table_bytes(file_bytes: u64, piece_bytes: u32) -> Result<u64, FileError> {
        let n = n_pieces(file_bytes, piece_bytes)?;
        Ok(u64::from(n) * DIGEST_BYTES as u64)
    }

    /// Reads a table; it must have exactly the pieces of a file of `file_bytes`.
    ///
    /// # Errors
    /// As [`n_pieces`], or the table is of another length.
    pub fn parse(bytes: &[u8], file_bytes: u64, piece_bytes: u32) -> Result<Self, FileError> {
        let expected = Self::table_bytes(file_bytes, piece_bytes)?;
        CHECK.that(
            bytes.len() as u64 == expected,
            "length",
            format_args!("{} bytes", bytes.len()),
            format!("{expected} for a file of {file_bytes} bytes in pieces of {piece_bytes}"),
        )?;
        let digests = bytes
            .chunks_exact(DIGEST_BYTES)
            .map(|digest| Digest(digest.try_into().expect("chunks of exactly that length")))
            .collect();
        Ok(Self {
            file_bytes,
            piece_bytes,
            digests,
        })
    }

    /// From digests that were calculated.
    ///
    /// # Errors
    /// As [`n_pieces`], or it is another number of digests.
    pub fn new(file_bytes: u64, piece_bytes: u32, digests: Vec<Digest>) -> Result<Self, FileError> {
        let n = n_pieces(file_bytes, piece_bytes)?;
        CHECK.that(
            digests.len() == n as usize,
            "pieces",
            digests.len(),
            n.to_string(),
        )?;
        Ok(Self {
            file_bytes,
            piece_bytes,
            digests,
        })
    }

    /// Of bytes in memory.
    ///
    /// # Errors
    /// As [`n_pieces`].
    pub fn of(bytes: &[u8], piece_bytes: u32) -> Result<Self, FileError> {
        n_pieces(bytes.len() as u64, piece_bytes)?;
        let digests = bytes.chunks(piece_bytes as usize).map(Digest::of).collect();
        Self::new(bytes.len() as u64, piece_bytes, digests)
    }

    /// The table as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.digests.iter().flat_map(|digest| digest.0).collect()
    }

    /// Length of the file.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Length of each piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.piece_bytes
    }

    /// How many pieces.
    pub fn n_pieces(&self) -> u32 {
        u32::try_from(self.digests.len()).expect("at most PIECES_MAX")
    }

    /// Digest of a piece, `None` behind the last.
    pub fn digest(&self, piece_idx: u32) -> Option<&Digest> {
        self.digests.get(piece_idx as usize)
    }

    /// The bytes of the file that a piece has; `None` behind the last.
    pub fn range(&self, piece_idx: u32) -> Option<Range<u64>> {
        self.digest(piece_idx)?;
        let start = u64::from(piece_idx) * u64::from(self.piece_bytes);
        Some(start..(start + u64::from(self.piece_bytes)).min(self.file_bytes))
    }

    /// Whether these are the bytes of that piece.
    pub fn is_piece(&self, piece_idx: u32, bytes: &[u8]) -> bool {
        let range = self.range(piece_idx);
        range.is_some_and(|range| range.end - range.start == bytes.len() as u64)
            && self.digest(piece_idx) == Some(&Digest::of(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn twenty_gigabytes_are_4769_pieces_in_a_table_of_149_kib() {
        assert_eq!(n_pieces(20_000_000_000, PIECE_BYTES).unwrap(), 4769);
        let table = PieceTable::table_bytes(20_000_000_000, PIECE_BYTES).unwrap();
        assert_eq!(table, 152_608);
    }

    #[test]
    fn ranges_beyond_four_gigabytes_do_not_wrap() {
        let file_bytes = (20 << 30) + 1;
        let n = n_pieces(file_bytes, PIECE_BYTES).unwrap();
        let table = PieceTable::new(file_bytes, PIECE_BYTES, vec![Digest([0; 32]); n as usize]);
        let table = table.unwrap();
        assert_eq!(table.range(n - 1), Some(20 << 30..(20 << 30) + 1));
        assert_eq!(table.range(n), None);
    }

    #[test]
    fn files_without_bytes_and_odd_pieces_are_refused() {
        assert!(n_pieces(0, PIECE_BYTES).is_err());
        assert!(n_pieces(u64::MAX, PIECE_BYTES).is_err());
        assert!(n_pieces(1, PIECE_BYTES - 1).is_err());
        assert!(n_pieces(1, 0).is_err());
        assert!(n_pieces(FILE_BYTES_MAX, PIECE_BYTES_MIN).is_err());
    }

    proptest! {
        #[test]
        fn pieces_cover_the_file_without_gap_and_know_their_bytes(
            bytes in prop::collection::vec(any::<u8>(), 1..9000),
        ) {
            let table = PieceTable::of(&bytes, PIECE_BYTES_MIN).unwrap();
            let read = PieceTable::parse(&table.to_bytes(), bytes.len() as u64, PIECE_BYTES_MIN).unwrap();
            prop_assert_eq!(&read, &table);
            let mut end = 0;
            for idx in 0..table.n_pieces() {
                let range = table.range(idx).unwrap();
                prop_assert_eq!(range.start, end);
                end = range.end;
                let piece = &bytes[range.start as usize..range.end as usize];
                prop_assert!(table.is_piece(idx, piece));
                prop_assert!(!table.is_piece(idx, &piece[1..]));
                prop_assert!(!table.is_piece(idx + 1, piece) || table.digest(idx) == table.digest(idx + 1));
            }
            prop_assert_eq!(end, bytes.len() as u64);
        }

        #[test]
        fn table_of_another_length_is_refused(
            table in prop::collection::vec(any::<u8>(), 0..200), file_bytes in 0u64..10_000,
        ) {
            let right = file_bytes.div_ceil(1024) * 32;
            let is_right = file_bytes > 0 && table.len() as u64 == right;
            prop_assert_eq!(PieceTable::parse(&table, file_bytes, 1024).is_ok(), is_right);
        }
    }
}
