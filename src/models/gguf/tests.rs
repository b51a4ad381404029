use std::io::Read;

use super::*;

#[path = "../../../tests/support/gguf.rs"]
pub(crate) mod writer;
use writer::{Gguf, array, malformed, text};

fn judge(gguf: &Gguf) -> Result<Header, Reason> {
    let (raw, file_bytes) = gguf.bytes();
    read_header(raw.as_slice(), file_bytes).map_err(|(reason, _)| reason)
}

#[test]
fn a_good_header_is_summed_up() {
    let gguf = Gguf::good().with("tokenizer.chat_template", STRING, text("{{ x }}"));
    let (_, file_bytes) = gguf.bytes();
    assert_eq!(
        judge(&gguf).unwrap(),
        Header {
            arch: "llama".into(),
            name: Some("Tiny One".into()),
            n_params: 64 * 3 + 7,
            quant: "Q4_1".into(),
            n_ctx_train: 2048,
            n_blocks: 2,
            n_vocab: 3,
            has_chat_template: true,
            n_tensors: 2,
            file_bytes,
        }
    );
}

#[test]
fn vocabulary_digest_is_that_of_the_tokens_and_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let digest = |gguf: Gguf| {
        let path = dir.path().join("m.gguf");
        let (raw, file_bytes) = gguf.bytes();
        std::fs::write(&path, raw).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(file_bytes).unwrap();
        vocabulary_digest(&path).unwrap()
    };
    let with = |second| {
        let tokens = array(STRING, 3, ["a", second, "<0x0A>"].map(text));
        Gguf::good().with("tokenizer.ggml.tokens", ARRAY, tokens)
    };
    let moved = with("b").with(
        "general.name",
        STRING,
        text("A longer name, so that all moves"),
    );
    assert_eq!(digest(with("b")), digest(moved));
    assert_ne!(digest(with("b")), digest(with("c")));
}

#[test]
fn version_2_other_alignments_and_an_unnamed_quantization_are_fine() {
    let gguf = Gguf::good()
        .with("general.alignment", U32, 64_u32.to_le_bytes())
        .without("general.file_type")
        .without("general.name")
        .change(|g| (g.version, g.alignment) = (2, 64));
    let header = judge(&gguf).unwrap();
    assert_eq!((header.quant.as_str(), header.name), ("Q4_1", None));
    assert!(!header.has_chat_template);
}

#[test]
fn each_malformed_header_is_refused_for_its_own_reason() {
    for (name, gguf, expected) in malformed() {
        let reason = judge(&gguf).expect_err(name).to_string();
        assert!(reason.contains(expected), "{name}: {reason}");
    }
}

#[test]
fn every_prefix_of_a_good_header_is_an_incomplete_copy() {
    let (raw, file_bytes) = Gguf::good().bytes();
    for length in 0..raw.len() {
        match read_header(&raw[..length], file_bytes) {
            Err((Reason::Truncated, at)) => assert!(at <= raw.len() as u64),
            other => panic!("{length} bytes: {other:?}"),
        }
    }
}

#[test]
fn a_header_without_end_is_cut_at_its_limit() {
    let strings = Gguf::good()
        .with("x", ARRAY, array(STRING, 1 << 20, []))
        .tensors(vec![])
        .change(|g| g.n_tensors = Some(1));
    let (raw, _) = strings.bytes();
    let endless = std::iter::repeat_n(text([b'z'; 64]), 1 << 20)
        .flatten()
        .collect::<Vec<u8>>();
    let (reason, at) = read_header(raw.chain(endless.as_slice()), u64::MAX).unwrap_err();
    assert!(matches!(reason, Reason::HeaderTooLong { .. }), "{reason}");
    assert!(at <= limits::HEADER_BYTES_MAX);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_bytes_are_judged_without_a_panic(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_header(raw.as_slice(), raw.len() as u64);
            // And again with a head that lets the rest be looked at.
            let head = [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &2_u64.to_le_bytes(), &3_u64.to_le_bytes()].concat();
            let _ = read_header(head.chain(raw.as_slice()), 1 << 20);
        }

        #[test]
        fn a_changed_header_is_refused_or_still_within_every_limit(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
        ) {
            let (mut raw, file_bytes) = Gguf::good().bytes();
            for (index, byte) in changes {
                let at = index.index(raw.len());
                raw[at] = byte;
            }
            if let Ok(header) = read_header(raw.as_slice(), file_bytes) {
                prop_assert!(header.n_params <= i64::MAX as u64);
                prop_assert!(u64::from(header.n_blocks) <= limits::BLOCKS_MAX);
                prop_assert!(header.arch.bytes().all(|c| c.is_ascii_graphic()));
                prop_assert!(header.name.iter().all(|n| !n.contains(char::is_control)));
            }
        }

        /// A number in the header replaced by a famous one.
        #[test]
        fn a_famous_number_anywhere_is_judged_without_a_panic(
            at in any::<prop::sample::Index>(),
            number in prop::sample::select(vec![0_u64, 1, 31, 1 << 20, 1 << 31, 1 << 32, 1 << 60, 1 << 63, u64::MAX])
        ) {
            let (mut raw, file_bytes) = Gguf::good().bytes();
            let at = at.index(raw.len() - 8);
            raw[at..at + 8].copy_from_slice(&number.to_le_bytes());
            let _ = read_header(raw.as_slice(), file_bytes);
        }
    }
}
