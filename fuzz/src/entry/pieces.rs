//! A table of pieces: eight bytes of the file's length, four of a piece's, the rest the table.

use orinoco::ota::pieces::{
    FILE_BYTES_MAX, PIECE_BYTES_MAX, PIECE_BYTES_MIN, PIECES_MAX, PieceTable,
};

/// One that is read covers its file without gap or overlap, and is written as it was.
pub fn check(data: &[u8]) {
    let Some((file_bytes, rest)) = data.split_first_chunk::<8>() else {
        return;
    };
    let Some((piece_bytes, table)) = rest.split_first_chunk::<4>() else {
        return;
    };
    let file_bytes = u64::from_le_bytes(*file_bytes);
    let piece_bytes = u32::from_le_bytes(*piece_bytes);
    let read = match PieceTable::parse(table, file_bytes, piece_bytes) {
        Ok(read) => read,
        Err(error) => {
            assert!(error.to_string().len() < 2048);
            return;
        }
    };
    assert!((1..=FILE_BYTES_MAX).contains(&file_bytes));
    assert!((PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&piece_bytes));
    assert!((1..=PIECES_MAX).contains(&u64::from(read.n_pieces())));
    assert_eq!(read.to_bytes(), table);
    let mut at = 0;
    for idx in 0..read.n_pieces() {
        let range = read.range(idx).expect("a piece of this file");
        assert!(range.start == at && range.end > at && range.end - at <= u64::from(piece_bytes));
        at = range.end;
    }
    assert_eq!(at, file_bytes);
    assert_eq!(read.range(read.n_pieces()), None);
    assert!(read.digest(read.n_pieces()).is_none() && !read.is_piece(read.n_pieces(), table));
}
