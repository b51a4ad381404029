//! The header of a model file: first byte how the file's length lies, the rest the header.

use std::io::Read;

use orinoco::models::gguf::{limits, read_header};

/// Judges the header; one that passes is within every limit.
pub fn check(data: &[u8]) {
    let Some((how, header)) = data.split_first() else {
        return;
    };
    let length = header.len() as u64;
    let file_bytes = match how % 4 {
        0 => length,
        1 => length * 2 + 4096,
        2 => 1 << 40,
        _ => u64::MAX,
    };
    // Behind the header comes data; here an endless one.
    let judged = match how & 4 {
        0 => read_header(header, file_bytes),
        _ => read_header(header.chain(std::io::repeat(0)), file_bytes),
    };
    match judged {
        Ok(header) => {
            assert!(limits::ARCHITECTURES.contains(&header.arch.as_str()));
            assert!(header.n_params <= i64::MAX as u64);
            assert!((1..=limits::BLOCKS_MAX).contains(&u64::from(header.n_blocks)));
            assert!((1..=limits::ARRAY_ELEMENTS_MAX).contains(&u64::from(header.n_vocab)));
            assert!((1..=limits::TENSORS_MAX).contains(&u64::from(header.n_tensors)));
            assert!((1..=limits::CONTEXT_TOKENS_MAX).contains(&u64::from(header.n_ctx_train)));
            let name = header.name.unwrap_or_default();
            assert!(!name.contains(char::is_control) && name.chars().count() <= 100);
        }
        Err((reason, at)) => {
            assert!(at <= limits::HEADER_BYTES_MAX);
            let reason = reason.to_string();
            assert!(reason.len() < 8192, "a sentence, not the file");
            assert!(!reason.contains(['\n', '\u{1b}']), "{reason:?}");
        }
    }
}
