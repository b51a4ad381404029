//! Writes small GGUF files: one that passes, and one for each rule that a file can break. The list of what
//! is broken follows llama.cpp's own `tests/test-gguf.cpp`, and the holes that its parsers had since.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test uses its own part of this module"
)]

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Writes small GGUF files, right or wrong.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_kv: Option<u64>,
    pub kv: Vec<(Vec<u8>, u32, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: u64,
    pub data_missing: u64,
    /// The length that the first key claims.
    pub key_length: Option<u64>,
}

#[derive(Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    pub dims: Vec<u64>,
    pub number: u32,
    pub offset: Option<u64>,
}

pub fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

pub fn array(element: u32, n: u64, items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut raw = [element.to_le_bytes().as_slice(), &n.to_le_bytes()].concat();
    raw.extend(items.into_iter().flatten());
    raw
}

pub fn tensor(name: &str, dims: &[u64], number: u32) -> Tensor {
    Tensor {
        name: name.into(),
        dims: dims.to_vec(),
        number,
        offset: None,
    }
}

impl Gguf {
    /// A model that passes: three tokens, two tensors.
    pub fn good() -> Self {
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
            key_length: None,
        };
        gguf.set("general.architecture", STRING, text("llama"));
        gguf.set("general.name", STRING, text("Tiny\u{7} One"));
        gguf.set("general.file_type", U32, 3_u32.to_le_bytes());
        gguf.set("llama.context_length", U32, 2048_u32.to_le_bytes());
        gguf.set("llama.block_count", U32, 2_u32.to_le_bytes());
        gguf.set("tokenizer.ggml.model", STRING, text("llama"));
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
    pub fn set(&mut self, key: &str, value_type: u32, value: impl Into<Vec<u8>>) {
        self.kv.retain(|(k, _, _)| k != key.as_bytes());
        self.kv.push((key.into(), value_type, value.into()));
    }

    pub fn with(mut self, key: &str, value_type: u32, value: impl Into<Vec<u8>>) -> Self {
        self.set(key, value_type, value);
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.kv.retain(|(k, _, _)| k != key.as_bytes());
        self
    }

    pub fn tensors(mut self, tensors: Vec<Tensor>) -> Self {
        self.tensors = tensors;
        self
    }

    pub fn change(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The header, and the length of the whole file.
    pub fn bytes(&self) -> (Vec<u8>, u64) {
        let n_tensors = self.n_tensors.unwrap_or(self.tensors.len() as u64);
        let n_kv = self.n_kv.unwrap_or(self.kv.len() as u64);
        let mut raw = self.magic.to_vec();
        raw.extend(self.version.to_le_bytes());
        raw.extend(n_tensors.to_le_bytes());
        raw.extend(n_kv.to_le_bytes());
        for (i, (key, value_type, value)) in self.kv.iter().enumerate() {
            let length = self.key_length.filter(|_| i == 0);
            raw.extend(length.unwrap_or(key.len() as u64).to_le_bytes());
            raw.extend(key);
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
            if let Some((block, size)) = block(tensor.number) {
                end = offset
                    .saturating_add((n / block).saturating_mul(size))
                    .min(1 << 60);
            }
        }
        let data_at = (raw.len() as u64).next_multiple_of(self.alignment);
        (raw, data_at + end - self.data_missing)
    }

    /// The whole file; of a large one only the beginning, as `file_bytes` says how long it would be.
    pub fn file(&self) -> Vec<u8> {
        let (mut raw, file_bytes) = self.bytes();
        raw.resize(raw.len().max(file_bytes.min(1 << 20) as usize), 0);
        raw
    }
}

/// Elements and bytes of a block of the few types used here.
fn block(number: u32) -> Option<(u64, u64)> {
    match number {
        0 => Some((1, 4)),
        3 => Some((32, 20)),
        15 => Some((256, 292)),
        24 => Some((1, 1)),
        _ => None,
    }
}

/// Files that are refused: what is wrong, the file, and what the refusal says.
pub fn malformed() -> Vec<(&'static str, Gguf, &'static str)> {
    let good = Gguf::good;
    let one = |t: Tensor| good().tensors(vec![t]);
    vec![
        (
            "magic",
            good().change(|g| g.magic = *b"GGML"),
            "it begins with \"GGML\", a GGUF file begins with \"GGUF\"",
        ),
        (
            "version 0",
            good().change(|g| g.version = 0),
            "GGUF version 0, expected 2 or 3",
        ),
        (
            "version 1",
            good().change(|g| g.version = 1),
            "GGUF version 1, expected 2 or 3",
        ),
        (
            "future version",
            good().change(|g| g.version = 4),
            "GGUF version 4, expected 2 or 3",
        ),
        (
            "version -1",
            good().change(|g| g.version = u32::MAX),
            "GGUF version 4294967295, expected 2 or 3",
        ),
        (
            "big-endian",
            good().change(|g| g.version = 3_u32.swap_bytes()),
            "big-endian GGUF, this machine is little-endian",
        ),
        (
            "no tensors",
            good().tensors(vec![]),
            "0 tensors, expected 1 to 65536",
        ),
        (
            "-1 tensors",
            good().change(|g| g.n_tensors = Some(u64::MAX)),
            "18446744073709551615 tensors, expected 1 to 65536",
        ),
        (
            "65,537 tensors",
            good().change(|g| g.n_tensors = Some(65_537)),
            "65537 tensors, expected 1 to 65536",
        ),
        (
            "-1 keys",
            good().change(|g| g.n_kv = Some(u64::MAX)),
            "18446744073709551615 metadata keys, expected 1 to 4096",
        ),
        (
            "4,097 keys",
            good().change(|g| g.n_kv = Some(4097)),
            "4097 metadata keys, expected 1 to 4096",
        ),
        (
            "more keys than there are",
            good().change(|g| g.n_kv = Some(4096)),
            "a key of 844424930131968 bytes, at most 256 are taken",
        ),
        (
            "more tensors than there are",
            good().change(|g| g.n_tensors = Some(3)),
            "the file ends inside its header: the copy is incomplete",
        ),
        (
            "key of -1 bytes",
            good().change(|g| g.key_length = Some(u64::MAX)),
            "a key of 18446744073709551615 bytes, at most 256 are taken",
        ),
        (
            "empty key",
            good().with("", U32, [0; 4]),
            "the key \"\" holds other characters than printable ASCII, or none",
        ),
        (
            "key of 257 bytes",
            good().with(&"k".repeat(257), U32, [0; 4]),
            "a key of 257 bytes, at most 256 are taken",
        ),
        (
            "control character in a key",
            good().with("a\u{1b}[2J", U32, [0; 4]),
            "holds other characters",
        ),
        (
            "duplicate key",
            good().change(|g| g.kv.push(g.kv[0].clone())),
            "two values for the key general.architecture",
        ),
        (
            "value type 13",
            good().with("x", 13, [0; 4]),
            "x has value type 13, GGUF has 0 to 12",
        ),
        (
            "value type -1",
            good().with("x", u32::MAX, [0; 4]),
            "x has value type 4294967295, GGUF has 0 to 12",
        ),
        (
            "bool of 2",
            good().with("x", 7, [2]),
            "x = 2, expected a bool of 0 or 1",
        ),
        (
            "string over 1 MiB",
            good().with("x", STRING, (1_u64 + (1 << 20)).to_le_bytes()),
            "a string of 1048577 bytes, at most 1048576 are taken",
        ),
        (
            "string of 2^63",
            good().with("x", STRING, (1_u64 << 63).to_le_bytes()),
            "a string of 9223372036854775808 bytes, at most 1048576 are taken",
        ),
        (
            "template over 256 KiB",
            good().with("tokenizer.chat_template", STRING, text([b' '; 262_145])),
            "a chat template of 262145 bytes, at most 262144 are taken",
        ),
        (
            "named template over 256 KiB",
            good().with("tokenizer.chat_template.rag", STRING, text([b' '; 262_145])),
            "a chat template of 262145 bytes, at most 262144 are taken",
        ),
        (
            "array of arrays",
            good().with("x", ARRAY, array(ARRAY, 1, [])),
            "x is an array of arrays",
        ),
        (
            "array of type 13",
            good().with("x", ARRAY, array(13, 1, [])),
            "x has value type 13, GGUF has 0 to 12",
        ),
        (
            "array of 2^60",
            good().with("x", ARRAY, array(0, 1 << 60, [])),
            "1152921504606846976 array elements, expected 0 to 1048576",
        ),
        (
            "array count times size beyond 2^64",
            good().with("x", ARRAY, array(10, u64::MAX / 4, [])),
            "4611686018427387903 array elements, expected 0 to 1048576",
        ),
        (
            "array longer than the file",
            good().with("x", ARRAY, array(10, 1 << 20, [])),
            "the file ends inside its header: the copy is incomplete",
        ),
        (
            "alignment 0",
            good().with("general.alignment", U32, [0; 4]),
            "general.alignment = 0, expected a power of two from 8 to 4096",
        ),
        (
            "alignment 48",
            good().with("general.alignment", U32, 48_u32.to_le_bytes()),
            "general.alignment = 48, expected a power of two from 8 to 4096",
        ),
        (
            "alignment 8192",
            good().with("general.alignment", U32, 8192_u32.to_le_bytes()),
            "general.alignment = 8192, expected a power of two from 8 to 4096",
        ),
        (
            "alignment 0x80000000",
            good().with("general.alignment", U32, 0x8000_0000_u32.to_le_bytes()),
            "general.alignment = 2147483648, expected a power of two from 8 to 4096",
        ),
        (
            "alignment as u64",
            good().with("general.alignment", 10, 32_u64.to_le_bytes()),
            "general.alignment is u64, expected u32",
        ),
        (
            "alignment other than the offsets'",
            good().with("general.alignment", U32, 4096_u32.to_le_bytes()),
            "tensor output_norm.weight lies at offset 128, expected 4096",
        ),
        (
            "tensor name of 64 bytes",
            one(tensor(&"n".repeat(64), &[32], 0)),
            "a tensor's name of 64 bytes, at most 63 are taken",
        ),
        (
            "empty tensor name",
            one(tensor("", &[32], 0)),
            "the tensor name \"\" holds other characters than printable ASCII, or none",
        ),
        (
            "tensor name not UTF-8",
            good().change(|g| g.tensors[0].name = vec![0xff]),
            "the tensor name",
        ),
        (
            "0 dimensions",
            one(tensor("t", &[], 0)),
            "tensor t has 0 dimensions, expected 1 to 4",
        ),
        (
            "5 dimensions",
            one(tensor("t", &[1; 5], 0)),
            "tensor t has 5 dimensions, expected 1 to 4",
        ),
        (
            "dimension of 0",
            one(tensor("t", &[32, 0], 0)),
            "tensor t: dimension of length 0",
        ),
        (
            "dimension of -1",
            one(tensor("t", &[u64::MAX], 0)),
            "tensor t is larger than any file",
        ),
        (
            "product wraps to 0",
            one(tensor("t", &[1 << 32, 1 << 32], 24)),
            "tensor t is larger than any file",
        ),
        (
            "product wraps to 32",
            one(tensor("t", &[32, (1 << 59) + 1, 1 << 5, 1], 24)),
            "tensor t is larger than any file",
        ),
        (
            "bytes wrap",
            one(tensor("t", &[1 << 62], 0)),
            "tensor t is larger than any file",
        ),
        (
            "quantized bytes wrap",
            one(tensor("t", &[0x7fff_ffff_ffff_ff00], 15)),
            "tensor t is larger than any file",
        ),
        (
            "sum of sizes wraps",
            good()
                .tensors(vec![
                    tensor("a", &[0x7fff_ffff_ffff_ffc0], 24),
                    tensor("b", &[0x7fff_ffff_ffff_ffc0], 24),
                ])
                .change(|g| g.tensors[1].offset = Some(0x7fff_ffff_ffff_ffc0)),
            "tensor b is larger than any file",
        ),
        (
            "removed type",
            one(tensor("t", &[32], 4)),
            "tensor t has type 4, which this version of llama.cpp does not know",
        ),
        (
            "unknown type",
            one(tensor("t", &[32], 43)),
            "tensor t has type 43, which this version of llama.cpp does not know",
        ),
        (
            "half a block",
            one(tensor("t", &[48, 2], 3)),
            "tensor t: rows of 48 elements do not divide into blocks of 32 (q4_1)",
        ),
        (
            "offset not aligned",
            good().change(|g| g.tensors[0].offset = Some(1)),
            "tensor token_embd.weight lies at offset 1, expected 0",
        ),
        (
            "offset goes back",
            good().change(|g| g.tensors[1].offset = Some(0)),
            "tensor output_norm.weight lies at offset 0, expected 128",
        ),
        (
            "offset leaves a hole",
            good().change(|g| g.tensors[1].offset = Some(4096)),
            "tensor output_norm.weight lies at offset 4096, expected 128",
        ),
        (
            "offset beyond the file",
            good().change(|g| g.tensors[1].offset = Some(u64::MAX)),
            "tensor output_norm.weight lies at offset 18446744073709551615, expected",
        ),
        (
            "duplicate tensor",
            good().tensors(vec![tensor("t", &[8], 0), tensor("t", &[8], 0)]),
            "two tensors named t",
        ),
        (
            "one byte missing",
            good().change(|g| g.data_missing = 1),
            "the tensors end at byte 732, the file at byte 731: the copy is",
        ),
        (
            "no architecture",
            good().without("general.architecture"),
            "no general.architecture",
        ),
        (
            "architecture is a number",
            good().with("general.architecture", U32, [0; 4]),
            "no general.architecture",
        ),
        (
            "architecture with a path",
            good().with("general.architecture", STRING, text("../llama")),
            "general.architecture = ../llama, expected 1 to 64 of a-z 0-9 - _",
        ),
        (
            "no context length",
            good().without("llama.context_length"),
            "no llama.context_length",
        ),
        (
            "context length as text",
            good().with("llama.context_length", STRING, text("1")),
            "llama.context_length is a string, expected a positive integer",
        ),
        (
            "context length -1",
            good().with("llama.context_length", I32, (-1_i32).to_le_bytes()),
            "llama.context_length is i32, expected a positive integer",
        ),
        (
            "0 blocks",
            good().with("llama.block_count", U32, [0; 4]),
            "llama.block_count = 0, expected 1 to 512",
        ),
        (
            "513 blocks",
            good().with("llama.block_count", U32, 513_u32.to_le_bytes()),
            "llama.block_count = 513, expected 1 to 512",
        ),
        (
            "no vocabulary",
            good().without("tokenizer.ggml.tokens"),
            "no tokenizer.ggml.tokens",
        ),
        (
            "empty vocabulary",
            good().with("tokenizer.ggml.tokens", ARRAY, array(STRING, 0, [])),
            "no tokenizer.ggml.tokens",
        ),
        (
            "tokens are numbers",
            good().with("tokenizer.ggml.tokens", ARRAY, array(U32, 1, [vec![0; 4]])),
            "tokenizer.ggml.tokens is u32, expected strings",
        ),
        (
            "scores are strings",
            good().with(
                "tokenizer.ggml.scores",
                ARRAY,
                array(STRING, 3, ["", "", ""].map(text)),
            ),
            "tokenizer.ggml.scores is a string, expected f32",
        ),
        (
            "too few scores",
            good().with(
                "tokenizer.ggml.scores",
                ARRAY,
                array(F32, 2, [[0_u8; 4]; 2].map(Vec::from)),
            ),
            "tokenizer.ggml.scores has 2 entries, the vocabulary has 3",
        ),
        (
            "too few token types",
            good().with(
                "tokenizer.ggml.token_type",
                ARRAY,
                array(I32, 1, [vec![1, 0, 0, 0]]),
            ),
            "tokenizer.ggml.token_type has 1 entries, the vocabulary has 3",
        ),
        (
            "token types as u32",
            good().with(
                "tokenizer.ggml.token_type",
                ARRAY,
                array(U32, 3, [[0_u8; 4]; 3].map(Vec::from)),
            ),
            "tokenizer.ggml.token_type is u32, expected i32",
        ),
        (
            "byte token <0x-1>",
            good().with(
                "tokenizer.ggml.tokens",
                ARRAY,
                array(STRING, 3, ["a", "b", "<0x-1>"].map(text)),
            ),
            "token 2 is marked as a byte but is not written as <0xNN>",
        ),
        (
            "merges are numbers",
            good().with("tokenizer.ggml.merges", ARRAY, array(0, 1, [vec![0]])),
            "tokenizer.ggml.merges is u8, expected strings",
        ),
        (
            "adapter",
            good().with("general.type", STRING, text("adapter")),
            "not a whole text model, but: adapter",
        ),
        (
            "architecture without text",
            good().with("general.architecture", STRING, text("t5encoder")),
            "general.architecture is \"t5encoder\", which this version does not serve;",
        ),
        (
            "architecture with known holes",
            good().with("general.architecture", STRING, text("plamo2")),
            "general.architecture is \"plamo2\", which this version does not serve;",
        ),
        (
            "no tokenizer",
            good().without("tokenizer.ggml.model"),
            "no tokenizer.ggml.model",
        ),
        (
            "tokenizer that is not served",
            good().with("tokenizer.ggml.model", STRING, text("plamo2")),
            "tokenizer.ggml.model is \"plamo2\", which this version does not serve;",
        ),
        (
            "tokenizer is a number",
            good().with("tokenizer.ggml.model", U32, [0; 4]),
            "no tokenizer.ggml.model",
        ),
        (
            "projector",
            good().with("general.architecture", STRING, text("clip")),
            "not a whole text model, but: projector (mmproj)",
        ),
        (
            "one of three parts",
            good().with("split.count", 2, [3, 0]),
            "not a whole text model, but: part of a model in 3 files",
        ),
    ]
}
