use std::io::Read;

use super::*;

/// Writes small GGUF files, right or wrong.
#[derive(Clone)]
pub(crate) struct Gguf {
    magic: [u8; 4],
    version: u32,
    n_tensors: Option<u64>,
    n_kv: Option<u64>,
    kv: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
    alignment: u64,
    data_missing: u64,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    number: u32,
    offset: Option<u64>,
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn array(element: u32, n: u64, items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut raw = [element.to_le_bytes().as_slice(), &n.to_le_bytes()].concat();
    raw.extend(items.into_iter().flatten());
    raw
}

fn tensor(name: &str, dims: &[u64], number: u32) -> Tensor {
    Tensor {
        name: name.into(),
        dims: dims.to_vec(),
        number,
        offset: None,
    }
}

impl Gguf {
    /// A model that passes: three tokens, two tensors.
    pub(crate) fn good() -> Self {
        let mut gguf = Self {
            magic: *b"GGUF",
            version: 3,
            n_tensors: None,
            n_kv: None,
            kv: Vec::new(),
            tensors: vec![
                tensor("token_embd.weight", &[64, 3], 3),
                tensor("output_norm.weight", &[7], 0),
            ],
            alignment: 32,
            data_missing: 0,
        };
        gguf.set("general.architecture", STRING, text("llama"));
        gguf.set("general.name", STRING, text("Tiny\u{7} One"));
        gguf.set("general.file_type", U32, 3_u32.to_le_bytes());
        gguf.set("llama.context_length", U32, 2048_u32.to_le_bytes());
        gguf.set("llama.block_count", U32, 2_u32.to_le_bytes());
        gguf.set(
            "tokenizer.ggml.tokens",
            ARRAY,
            array(STRING, 3, ["a", "b", "<0x0A>"].map(text)),
        );
        gguf.set(
            "tokenizer.ggml.scores",
            ARRAY,
            array(F32, 3, [[0_u8; 4]; 3].map(Vec::from)),
        );
        let types = [1_i32, 1, 6].map(|t| t.to_le_bytes().to_vec());
        gguf.set("tokenizer.ggml.token_type", ARRAY, array(I32, 3, types));
        gguf
    }

    /// Sets a key, in place of an older value.
    fn set(&mut self, key: &str, value_type: u32, value: impl Into<Vec<u8>>) {
        self.kv.retain(|(k, _, _)| k != key.as_bytes());
        self.kv.push((key.into(), value_type, value.into()));
    }

    fn with(mut self, key: &str, value_type: u32, value: impl Into<Vec<u8>>) -> Self {
        self.set(key, value_type, value);
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.kv.retain(|(k, _, _)| k != key.as_bytes());
        self
    }

    fn tensors(mut self, tensors: Vec<Tensor>) -> Self {
        self.tensors = tensors;
        self
    }

    fn change(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The header, and the length of the whole file.
    pub(crate) fn bytes(&self) -> (Vec<u8>, u64) {
        let n_tensors = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        let n_kv = self.n_kv.unwrap_or(self.kv.len() as u64);
        let mut raw = self.magic.to_vec();
        raw.extend(self.version.to_le_bytes());
        raw.extend(n_tensors.to_le_bytes());
        raw.extend(n_kv.to_le_bytes());
        for (key, value_type, value) in &self.kv {
            raw.extend(text(key));
            raw.extend(value_type.to_le_bytes());
            raw.extend(value);
        }
        let mut end = 0_u64;
        for tensor in &self.tensors {
            raw.extend(text(&tensor.name));
            raw.extend((tensor.dims.len() as u32).to_le_bytes());
            raw.extend(tensor.dims.iter().flat_map(|d| d.to_le_bytes()));
            raw.extend(tensor.number.to_le_bytes());
            let offset = tensor
                .offset
                .unwrap_or(end.next_multiple_of(self.alignment));
            raw.extend(offset.to_le_bytes());
            let n: u64 = tensor.dims.iter().fold(1, |n, d| n.saturating_mul(*d));
            if let Some((_, block, size)) = limits::tensor_type(tensor.number) {
                end = offset
                    .saturating_add((n / block).saturating_mul(size))
                    .min(1 << 60);
            }
        }
        let data_at = (raw.len() as u64).next_multiple_of(self.alignment);
        (raw, data_at + end - self.data_missing)
    }

    fn judge(&self) -> Result<Header, Reason> {
        let (raw, file_bytes) = self.bytes();
        read_header(raw.as_slice(), file_bytes).map_err(|(reason, _)| reason)
    }
}

#[test]
fn a_good_header_is_summed_up() {
    let gguf = Gguf::good().with("tokenizer.chat_template", STRING, text("{{ x }}"));
    let (_, file_bytes) = gguf.bytes();
    assert_eq!(
        gguf.judge().unwrap(),
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
fn version_2_other_alignments_and_an_unnamed_quantization_are_fine() {
    let gguf = Gguf::good()
        .with("general.alignment", U32, 64_u32.to_le_bytes())
        .without("general.file_type")
        .without("general.name")
        .change(|g| (g.version, g.alignment) = (2, 64));
    let header = gguf.judge().unwrap();
    assert_eq!((header.quant.as_str(), header.name), ("Q4_1", None));
    assert!(!header.has_chat_template);
}

/// Asserts that each file is refused for the reason given, not for another.
macro_rules! refused {
    ($($name:literal: $gguf:expr => $reason:pat $(if $guard:expr)?,)+) => {
        $(match $gguf.judge() {
            Err($reason) $(if $guard)? => {}
            other => panic!("{}: {other:?}", $name),
        })+
    };
}

#[test]
fn each_malformed_header_is_refused_for_its_own_reason() {
    let good = Gguf::good;
    let one = |t: Tensor| good().tensors(vec![t]);
    refused! {
        "magic": good().change(|g| g.magic = *b"GGML") => Reason::Magic { found: [b'G', b'G', b'M', b'L'] },
        "version 0": good().change(|g| g.version = 0) => Reason::Version { found: 0 },
        "version 1": good().change(|g| g.version = 1) => Reason::Version { found: 1 },
        "future version": good().change(|g| g.version = 4) => Reason::Version { found: 4 },
        "version -1": good().change(|g| g.version = u32::MAX) => Reason::Version { .. },
        "big-endian": good().change(|g| g.version = 3_u32.swap_bytes()) => Reason::BigEndian,
        "no tensors": good().tensors(vec![]) => Reason::Count { what: "tensors", found: 0, .. },
        "-1 tensors": good().change(|g| g.n_tensors = Some(u64::MAX)) => Reason::Count { what: "tensors", .. },
        "65,537 tensors": good().change(|g| g.n_tensors = Some(65_537)) => Reason::Count { what: "tensors", .. },
        "-1 keys": good().change(|g| g.n_kv = Some(u64::MAX)) => Reason::Count { what: "metadata keys", .. },
        "4,097 keys": good().change(|g| g.n_kv = Some(4097)) => Reason::Count { what: "metadata keys", .. },
        "more keys than there are": good().change(|g| g.n_kv = Some(4096)) => Reason::StringTooLong { .. } | Reason::Truncated,
        "more tensors than there are": good().change(|g| g.n_tensors = Some(3)) => Reason::Truncated,
        "empty key": good().with("", U32, [0; 4]) => Reason::Characters { what: "the key", .. },
        "key of 257 bytes": good().with(&"k".repeat(257), U32, [0; 4]) => Reason::StringTooLong { found: 257, .. },
        "control character in a key": good().with("a\u{1b}[2J", U32, [0; 4]) => Reason::Characters { .. },
        "duplicate key": good().change(|g| g.kv.push(g.kv[0].clone())) => Reason::DuplicateKey { key } if key == "general.architecture",
        "value type 13": good().with("x", 13, [0; 4]) => Reason::ValueType { found: 13, .. },
        "value type -1": good().with("x", u32::MAX, [0; 4]) => Reason::ValueType { .. },
        "bool of 2": good().with("x", 7, [2]) => Reason::Value { .. },
        "string over 1 MiB": good().with("x", STRING, (1_u64 + (1 << 20)).to_le_bytes()) => Reason::StringTooLong { .. },
        "string of 2^63": good().with("x", STRING, (1_u64 << 63).to_le_bytes()) => Reason::StringTooLong { .. },
        "template over 256 KiB": good().with("tokenizer.chat_template", STRING, text([b' '; 262_145])) => Reason::StringTooLong { what: "a chat template", .. },
        "named template over 256 KiB": good().with("tokenizer.chat_template.rag", STRING, text([b' '; 262_145])) => Reason::StringTooLong { what: "a chat template", .. },
        "array of arrays": good().with("x", ARRAY, array(ARRAY, 1, [])) => Reason::NestedArray { .. },
        "array of type 13": good().with("x", ARRAY, array(13, 1, [])) => Reason::ValueType { found: 13, .. },
        "array of 2^60": good().with("x", ARRAY, array(0, 1 << 60, [])) => Reason::Count { what: "array elements", .. },
        "array count times size beyond 2^64": good().with("x", ARRAY, array(10, u64::MAX / 4, [])) => Reason::Count { .. },
        "array longer than the file": good().with("x", ARRAY, array(10, 1 << 20, [])) => Reason::Truncated,
        "alignment 0": good().with("general.alignment", U32, [0; 4]) => Reason::Value { .. },
        "alignment 48": good().with("general.alignment", U32, 48_u32.to_le_bytes()) => Reason::Value { .. },
        "alignment 8192": good().with("general.alignment", U32, 8192_u32.to_le_bytes()) => Reason::Value { .. },
        "alignment 0x80000000": good().with("general.alignment", U32, 0x8000_0000_u32.to_le_bytes()) => Reason::Value { .. },
        "alignment as u64": good().with("general.alignment", 10, 32_u64.to_le_bytes()) => Reason::WrongType { found: "u64", expected: "u32", .. },
        "alignment other than the offsets'": good().with("general.alignment", U32, 4096_u32.to_le_bytes()) => Reason::Offset { .. },
        "tensor name of 64 bytes": one(tensor(&"n".repeat(64), &[32], 0)) => Reason::StringTooLong { .. },
        "empty tensor name": one(tensor("", &[32], 0)) => Reason::Characters { what: "the tensor name", .. },
        "tensor name not UTF-8": good().change(|g| g.tensors[0].name = vec![0xff]) => Reason::Characters { .. },
        "0 dimensions": one(tensor("t", &[], 0)) => Reason::Dimensions { found: 0, .. },
        "5 dimensions": one(tensor("t", &[1; 5], 0)) => Reason::Dimensions { found: 5, .. },
        "dimension of 0": one(tensor("t", &[32, 0], 0)) => Reason::ZeroDimension { .. },
        "dimension of -1": one(tensor("t", &[u64::MAX], 0)) => Reason::TooLarge { .. },
        "product wraps to 0": one(tensor("t", &[1 << 32, 1 << 32], 24)) => Reason::TooLarge { .. },
        "product wraps to 32": one(tensor("t", &[32, (1 << 59) + 1, 1 << 5, 1], 24)) => Reason::TooLarge { .. },
        "bytes wrap": one(tensor("t", &[1 << 62], 0)) => Reason::TooLarge { .. },
        "quantized bytes wrap": one(tensor("t", &[0x7fff_ffff_ffff_ff00], 15)) => Reason::TooLarge { .. },
        "sum of sizes wraps": good().tensors(vec![
            tensor("a", &[0x7fff_ffff_ffff_ffc0], 24), tensor("b", &[0x7fff_ffff_ffff_ffc0], 24)
        ]).change(|g| g.tensors[1].offset = Some(0x7fff_ffff_ffff_ffc0)) => Reason::TooLarge { .. },
        "removed type": one(tensor("t", &[32], 4)) => Reason::TensorType { found: 4, .. },
        "unknown type": one(tensor("t", &[32], 43)) => Reason::TensorType { found: 43, .. },
        "half a block": one(tensor("t", &[48, 2], 3)) => Reason::Blocks { row: 48, block: 32, .. },
        "offset not aligned": good().change(|g| g.tensors[0].offset = Some(1)) => Reason::Offset { found: 1, expected: 0, .. },
        "offset goes back": good().change(|g| g.tensors[1].offset = Some(0)) => Reason::Offset { found: 0, .. },
        "offset leaves a hole": good().change(|g| g.tensors[1].offset = Some(4096)) => Reason::Offset { found: 4096, .. },
        "offset beyond the file": good().change(|g| g.tensors[1].offset = Some(u64::MAX)) => Reason::Offset { .. },
        "duplicate tensor": good().tensors(vec![tensor("t", &[8], 0), tensor("t", &[8], 0)]) => Reason::DuplicateTensor { name } if name == "t",
        "one byte missing": good().change(|g| g.data_missing = 1) => Reason::PastTheEnd { .. },
        "no architecture": good().without("general.architecture") => Reason::Missing { .. },
        "architecture is a number": good().with("general.architecture", U32, [0; 4]) => Reason::Missing { .. },
        "architecture with a path": good().with("general.architecture", STRING, text("../llama")) => Reason::Value { .. },
        "no context length": good().without("llama.context_length") => Reason::Missing { .. },
        "context length as text": good().with("llama.context_length", STRING, text("1")) => Reason::WrongType { .. },
        "context length -1": good().with("llama.context_length", I32, (-1_i32).to_le_bytes()) => Reason::WrongType { .. },
        "0 blocks": good().with("llama.block_count", U32, [0; 4]) => Reason::Value { .. },
        "513 blocks": good().with("llama.block_count", U32, 513_u32.to_le_bytes()) => Reason::Value { found, .. } if found == "513",
        "no vocabulary": good().without("tokenizer.ggml.tokens") => Reason::Missing { .. },
        "empty vocabulary": good().with("tokenizer.ggml.tokens", ARRAY, array(STRING, 0, [])) => Reason::Missing { .. },
        "tokens are numbers": good().with("tokenizer.ggml.tokens", ARRAY, array(U32, 1, [vec![0; 4]])) => Reason::WrongType { .. },
        "scores are strings": good().with("tokenizer.ggml.scores", ARRAY, array(STRING, 3, ["", "", ""].map(text))) => Reason::WrongType { .. },
        "too few scores": good().with("tokenizer.ggml.scores", ARRAY, array(F32, 2, [[0_u8; 4]; 2].map(Vec::from))) => Reason::VocabLength { array: "scores", found: 2, n_vocab: 3 },
        "too few token types": good().with("tokenizer.ggml.token_type", ARRAY, array(I32, 1, [vec![1, 0, 0, 0]])) => Reason::VocabLength { array: "token_type", .. },
        "token types as u32": good().with("tokenizer.ggml.token_type", ARRAY, array(U32, 3, [[0_u8; 4]; 3].map(Vec::from))) => Reason::WrongType { .. },
        "byte token <0x-1>": good().with("tokenizer.ggml.tokens", ARRAY, array(STRING, 3, ["a", "b", "<0x-1>"].map(text))) => Reason::ByteToken { index: 2 },
        "merges are numbers": good().with("tokenizer.ggml.merges", ARRAY, array(0, 1, [vec![0]])) => Reason::WrongType { .. },
        "adapter": good().with("general.type", STRING, text("adapter")) => Reason::Kind { found } if found == "adapter",
        "projector": good().with("general.architecture", STRING, text("clip")) => Reason::Kind { .. },
        "one of three parts": good().with("split.count", 2, [3, 0]) => Reason::Kind { .. },
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
