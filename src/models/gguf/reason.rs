//! Why a model file is refused, in sentences.

use std::path::PathBuf;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error("read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a model that may be opened.
    #[error("{path} is refused: {reason} (at byte {at})")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// How far it was read.
        at: u64,
        /// What was found, and what was expected.
        reason: Reason,
    },
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[expect(
    missing_docs,
    reason = "each message says what the variant and its fields are"
)]
pub enum Reason {
    #[error("read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file ends inside its header: the copy is incomplete")]
    Truncated,
    #[error("the header is longer than {max} bytes")]
    HeaderTooLong { max: u64 },
    #[error("it begins with {:?}, a GGUF file begins with \"GGUF\"", String::from_utf8_lossy(.found))]
    Magic { found: [u8; 4] },
    #[error("GGUF version {found}, expected 2 or 3")]
    Version { found: u32 },
    #[error("big-endian GGUF, this machine is little-endian")]
    BigEndian,
    #[error("{found} {what}, expected {min} to {max}")]
    Count {
        what: &'static str,
        found: u64,
        min: u64,
        max: u64,
    },
    #[error("{what} of {found} bytes, at most {max} are taken")]
    StringTooLong {
        what: &'static str,
        found: u64,
        max: u64,
    },
    #[error("{what} {found:?} holds other characters than printable ASCII, or none")]
    Characters { what: &'static str, found: String },
    #[error("two values for the key {key}")]
    DuplicateKey { key: String },
    #[error("two tensors named {name}")]
    DuplicateTensor { name: String },
    #[error("{key} has value type {found}, GGUF has 0 to 12")]
    ValueType { key: String, found: u32 },
    #[error("{key} is an array of arrays")]
    NestedArray { key: String },
    #[error("{key} is {found}, expected {expected}")]
    WrongType {
        key: String,
        found: &'static str,
        expected: &'static str,
    },
    #[error("{key} = {found}, expected {expected}")]
    Value {
        key: String,
        found: String,
        expected: String,
    },
    #[error("no {key}")]
    Missing { key: String },
    #[error("{key} is {found:?}, which this version does not serve; {served}")]
    Unserved {
        key: &'static str,
        found: String,
        served: &'static str,
    },
    #[error("tokenizer.ggml.{array} has {found} entries, the vocabulary has {n_vocab}")]
    VocabLength {
        array: &'static str,
        found: u64,
        n_vocab: u64,
    },
    #[error("token {index} is marked as a byte but is not written as <0xNN>")]
    ByteToken { index: u64 },
    #[error("tensor {name} has {found} dimensions, expected 1 to 4")]
    Dimensions { name: String, found: u32 },
    #[error("tensor {name}: dimension of length 0")]
    ZeroDimension { name: String },
    #[error("tensor {name} is larger than any file")]
    TooLarge { name: String },
    #[error("tensor {name} has type {found}, which this version of llama.cpp does not know")]
    TensorType { name: String, found: u32 },
    #[error("tensor {name}: rows of {row} elements do not divide into blocks of {block} ({quant})")]
    Blocks {
        name: String,
        row: u64,
        block: u64,
        quant: &'static str,
    },
    #[error("tensor {name} lies at offset {found}, expected {expected}")]
    Offset {
        name: String,
        found: u64,
        expected: u64,
    },
    #[error("the tensors end at byte {end}, the file at byte {file_bytes}: the copy is incomplete")]
    PastTheEnd { end: u64, file_bytes: u64 },
    #[error("not a whole text model, but: {found}")]
    Kind { found: String },
}
