//! The index of a file of saved states: bytes of whoever wrote the file.

use orinoco::kv_file::{DATA_BEGIN, ENTRIES_MAX, Index, TOKENS_MAX};

const BYTES_MAX: u64 = 1 << 30;

/// Nothing that is taken from it lies outside the file, or in something else.
pub fn check(data: &[u8]) {
    // As it stands, and as one whose digest is right.
    let sealed = Index::sealed(data).unwrap_or_default();
    for slot in [data, &sealed] {
        let Some(index) = Index::of_slot(slot, BYTES_MAX) else {
            continue;
        };
        assert!(index.entries.len() <= ENTRIES_MAX);
        let mut free = DATA_BEGIN;
        for entry in &index.entries {
            assert!(entry.at >= free && entry.n_tokens as usize <= TOKENS_MAX);
            assert!(entry.at + entry.tokens_bytes() + entry.state_bytes <= BYTES_MAX);
            free = entry.at + entry.room();
        }
        let gaps = index.gaps();
        assert!(
            gaps.iter()
                .all(|(at, n)| *at >= DATA_BEGIN && at + n <= free)
        );
        if let Some(slot) = index.to_slot() {
            assert_eq!(Index::of_slot(&slot, BYTES_MAX), Some(index));
        }
    }
}
