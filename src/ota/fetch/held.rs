//! Which pieces of a file are on the disk: one bit for each, and what is to be fetched next.
//!
//! Pure. The bits lie in a file beside the partial one ([`super::partial`]), a bit of which is set only after
//! its piece was verified, written and synced.

/// Bits of one file's pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    n_pieces: u32,
    bits: Vec<u8>,
}

impl Held {
    /// None of so many pieces.
    pub fn none(n_pieces: u32) -> Self {
        Self {
            n_pieces,
            bits: vec![0; n_pieces.div_ceil(8) as usize],
        }
    }

    /// As it was stored; `None` when it is not the bitmap of so many pieces.
    pub fn from_bits(n_pieces: u32, bits: &[u8]) -> Option<Self> {
        let held = Self {
            n_pieces,
            bits: bits.to_vec(),
        };
        let spare_bits = held.bits.len() as u32 * 8 - n_pieces.min(held.bits.len() as u32 * 8);
        let is_right = bits.len() == n_pieces.div_ceil(8) as usize
            && bits
                .last()
                .is_none_or(|last| last.leading_zeros() >= spare_bits);
        is_right.then_some(held)
    }

    /// The bitmap, piece 0 in the lowest bit of the first byte.
    pub fn bits(&self) -> &[u8] {
        &self.bits
    }

    /// How many pieces the file has.
    pub fn n_pieces(&self) -> u32 {
        self.n_pieces
    }

    /// Whether the piece is there. One behind the last is not.
    pub fn has(&self, piece_idx: u32) -> bool {
        piece_idx < self.n_pieces && self.bits[piece_idx as usize / 8] & mask(piece_idx) != 0
    }

    /// Sets the bit of a piece, or clears it; returns where its byte lies in the bitmap, and the byte.
    pub fn set(&mut self, piece_idx: u32, is_held: bool) -> (usize, u8) {
        assert!(piece_idx < self.n_pieces, "a piece of this file");
        let at = piece_idx as usize / 8;
        match is_held {
            true => self.bits[at] |= mask(piece_idx),
            false => self.bits[at] &= !mask(piece_idx),
        }
        (at, self.bits[at])
    }

    /// Pieces that are not there, in order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.n_pieces).filter(|piece_idx| !self.has(*piece_idx))
    }

    /// The piece to fetch next. In order of the file: a server that knows no ranges then sends it once.
    pub fn next(&self) -> Option<u32> {
        self.missing().next()
    }

    /// How many are there.
    pub fn n_held(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }
}

fn mask(piece_idx: u32) -> u8 {
    1 << (piece_idx % 8)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bitmap_of_another_file_is_none() {
        assert!(Held::from_bits(9, &[0xff]).is_none(), "too short");
        assert!(Held::from_bits(9, &[0xff, 1, 0]).is_none(), "too long");
        assert!(
            Held::from_bits(9, &[0xff, 2]).is_none(),
            "a piece behind the last"
        );
        assert_eq!(Held::from_bits(9, &[0xff, 1]).unwrap().next(), None);
    }

    proptest! {
        /// A set of numbers is the model.
        #[test]
        fn it_holds_exactly_the_pieces_that_were_set(
            n_pieces in 1u32..200,
            steps in proptest::collection::vec((any::<u32>(), any::<bool>()), 0..300),
        ) {
            let mut held = Held::none(n_pieces);
            let mut model = BTreeSet::new();
            for (piece, is_held) in steps {
                let piece = piece % n_pieces;
                let (at, byte) = held.set(piece, is_held);
                prop_assert_eq!(held.bits()[at], byte);
                match is_held {
                    true => model.insert(piece),
                    false => model.remove(&piece),
                };
            }
            let missing: Vec<u32> = (0..n_pieces).filter(|i| !model.contains(i)).collect();
            prop_assert_eq!(held.next(), missing.first().copied());
            prop_assert_eq!(held.missing().collect::<Vec<_>>(), missing);
            prop_assert_eq!(held.n_held() as usize, model.len());
            prop_assert_eq!(Held::from_bits(n_pieces, held.bits()), Some(held));
        }

        #[test]
        fn no_bytes_of_a_damaged_disk_are_more_pieces_than_there_are(
            n_pieces in 0u32..100,
            bits in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            if let Some(held) = Held::from_bits(n_pieces, &bits) {
                prop_assert!(held.n_held() <= n_pieces);
                prop_assert!(!held.has(n_pieces));
            }
        }
    }
}
