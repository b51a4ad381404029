//! Preflight of a GGUF file: reads its header, and nothing else, as bytes of a stranger.
//!
//! A model file is opened by a parser written in C++ that has had its share of overflows, so the file is
//! judged here first, in memory-safe code, by rules narrower than the format:
//!
//! ```text
//!   "GGUF" | version 2..=3 | n_tensors | n_kv            24 bytes
//!   n_kv     x  key, type, value                         arrays of arrays refused
//!   n_tensors x name, n_dims, dims, type, offset         offsets as llama.cpp wants them: back to back
//!   padding to the alignment | tensor data               never read here, only measured
//! ```
//!
//! Bounded in everything: no recursion, at most [`limits::HEADER_BYTES_MAX`] read, and memory for names
//! only (a few MiB in the worst case). A file that passes is well formed, which is not the same as
//! harmless: it is still opened by a sandboxed worker only.

pub mod limits;
mod reader;
mod reason;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use reader::Bounded;
pub use reason::{GgufError, Reason};
use tensors::Tensors;

/// What a technician wants to know of a model file, checked and harmless to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// `general.architecture`, e.g. `llama`.
    pub arch: String,
    /// `general.name` without control characters, at most 100 of them.
    pub name: Option<String>,
    /// Elements of all tensors.
    pub n_params: u64,
    /// Quantization, e.g. `Q4_K_M`: from `general.file_type`, else the type that holds most bytes.
    pub quant: String,
    /// Context length that the model was trained with, tokens.
    pub n_ctx_train: u32,
    /// Transformer blocks.
    pub n_blocks: u32,
    /// Entries of the vocabulary.
    pub n_vocab: u32,
    /// Whether the file carries a chat template.
    pub has_chat_template: bool,
    /// Tensors.
    pub n_tensors: u32,
    /// Length of the file.
    pub file_bytes: u64,
}

impl Header {
    /// Whether it makes vectors of texts, and no text.
    pub fn makes_vectors(&self) -> bool {
        is_encoder(self.arch.as_bytes())
    }
}

/// Judges the header of the file at `path`.
///
/// # Errors
/// [`GgufError`] with the byte at which reading stopped.
pub fn preflight(path: &Path) -> Result<Header, GgufError> {
    let io = |source| GgufError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    preflight_file(&file, path)
}

/// As [`preflight`], of a file that is open already and is called `path`. It is read from its beginning.
///
/// # Errors
/// [`GgufError`] with the byte at which reading stopped.
pub fn preflight_file(mut file: &File, path: &Path) -> Result<Header, GgufError> {
    let io = |source| GgufError::Io {
        path: path.to_owned(),
        source,
    };
    let meta = file.metadata().map_err(io)?;
    if !meta.is_file() {
        return Err(io(std::io::Error::other("not a regular file")));
    }
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    read_header(file, meta.len()).map_err(|(reason, at)| GgufError::Refused {
        path: path.to_owned(),
        at,
        reason,
    })
}

/// Judges a header; `file_bytes` is the length of the file it begins. On refusal also says how far it came.
///
/// # Errors
/// The first rule that the bytes break.
pub fn read_header(input: impl Read, file_bytes: u64) -> Result<Header, (Reason, u64)> {
    let mut bytes = Bounded::new(input, limits::HEADER_BYTES_MAX);
    let judged = header(&mut bytes, file_bytes, Metadata::default());
    match judged {
        Ok((header, _)) => Ok(header),
        Err(reason) => Err((reason, bytes.position())),
    }
}

/// Judges the file at `path` as [`preflight`] does, and digests its vocabulary: two models whose digests are
/// the same have the same tokens under the same numbers, so that one can draft for the other.
///
/// # Errors
/// [`GgufError`] with the byte at which reading stopped.
pub fn vocabulary_digest(path: &Path) -> Result<[u8; 32], GgufError> {
    let io = |source| GgufError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let mut bytes = Bounded::new(&file, limits::HEADER_BYTES_MAX);
    let empty = Metadata {
        vocabulary: Some(Sha256::new()),
        ..Metadata::default()
    };
    match header(&mut bytes, file_bytes, empty) {
        Ok((_, meta)) => Ok(meta.vocabulary.unwrap_or_default().finalize().into()),
        Err(reason) => Err(GgufError::Refused {
            path: path.to_owned(),
            at: bytes.position(),
            reason,
        }),
    }
}

/// Whether the file at `path` makes vectors of texts, and no text: by its architecture alone, which files name
/// first, so that this may be asked of a folder again and again. One that does not come so far makes none.
pub fn makes_vectors(path: &Path) -> bool {
    let read = |file: File| -> Result<bool, Reason> {
        let mut bytes = Bounded::new(file, limits::HEADER_BYTES_MAX);
        let (_, n_kv) = opening(&mut bytes)?;
        let mut meta = Metadata::default();
        for _ in 0..n_kv {
            meta.pair(&mut bytes)?;
            if let Some(arch) = &meta.arch {
                return Ok(is_encoder(arch));
            }
        }
        Ok(false)
    };
    // A pipe would be waited for.
    path.is_file() && File::open(path).is_ok_and(|file| read(file).unwrap_or(false))
}

fn is_encoder(arch: &[u8]) -> bool {
    limits::ENCODERS.iter().any(|name| name.as_bytes() == arch)
}

/// The header and its metadata, which begins as `meta`.
fn header(
    bytes: &mut Bounded<impl Read>,
    file_bytes: u64,
    meta: Metadata,
) -> Result<(Header, Metadata), Reason> {
    let (n_tensors, n_kv) = opening(bytes)?;
    let meta = meta.read(bytes, n_kv)?;
    let alignment = meta.alignment()?;
    let tensors = Tensors::read(bytes, n_tensors, alignment)?;
    let data_at = bytes.position().next_multiple_of(alignment);
    match data_at.checked_add(tensors.data_bytes) {
        Some(end) if end <= file_bytes => {}
        end => {
            return Err(Reason::PastTheEnd {
                end: end.unwrap_or(u64::MAX),
                file_bytes,
            });
        }
    }

    meta.check_kind()?;
    let arch = meta.architecture()?;
    meta.check_tokenizer()?;
    let header = Header {
        n_ctx_train: meta.u32_within(
            &format!("{arch}.context_length"),
            1,
            limits::CONTEXT_TOKENS_MAX,
        )?,
        n_blocks: meta.u32_within(&format!("{arch}.block_count"), 1, limits::BLOCKS_MAX)?,
        n_vocab: meta.vocabulary()?,
        arch,
        name: meta.name.as_deref().and_then(printable),
        n_params: tensors.n_params,
        quant: match meta
            .integers
            .get("general.file_type")
            .map(|value| limits::file_type(*value))
        {
            Some(Some(name)) => name.to_owned(),
            _ => tensors.most_used_type.to_uppercase(),
        },
        has_chat_template: meta.has_chat_template,
        // n_tensors <= TENSORS_MAX, which fits.
        n_tensors: n_tensors as u32,
        file_bytes,
    };
    Ok((header, meta))
}

/// What every file begins with; how many tensors and how many metadata keys follow.
fn opening(bytes: &mut Bounded<impl Read>) -> Result<(u64, u64), Reason> {
    let magic = bytes.array()?;
    if &magic != b"GGUF" {
        return Err(Reason::Magic { found: magic });
    }
    match bytes.u32()? {
        2 | 3 => {}
        swapped if matches!(swapped.swap_bytes(), 2 | 3) => return Err(Reason::BigEndian),
        found => return Err(Reason::Version { found }),
    }
    let n_tensors = count("tensors", bytes.u64()?, 1, limits::TENSORS_MAX)?;
    let n_kv = count("metadata keys", bytes.u64()?, 1, limits::KEYS_MAX)?;
    Ok((n_tensors, n_kv))
}

fn count(what: &'static str, found: u64, min: u64, max: u64) -> Result<u64, Reason> {
    match (min..=max).contains(&found) {
        true => Ok(found),
        false => Err(Reason::Count {
            what,
            found,
            min,
            max,
        }),
    }
}

/// Text for a terminal or a topic: no control characters, not endless, `None` when nothing is left.
fn printable(bytes: &[u8]) -> Option<String> {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect();
    let text = text.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// GGUF value types, by their numbers.
pub(crate) const STRING: u32 = 8;
const ARRAY: u32 = 9;
const VALUE_TYPES: [(&str, u64); 13] = [
    ("u8", 1),
    ("i8", 1),
    ("u16", 2),
    ("i16", 2),
    ("u32", 4),
    ("i32", 4),
    ("f32", 4),
    ("bool", 1),
    ("a string", 0),
    ("an array", 0),
    ("u64", 8),
    ("i64", 8),
    ("f64", 8),
];
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;

/// The keys and values that matter here; of the others only the name is kept, to find duplicates.
#[derive(Default)]
struct Metadata {
    types: HashMap<String, u32>,
    /// Scalar integers that are not negative.
    integers: HashMap<String, u64>,
    arch: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    kind: Option<Vec<u8>>,
    tokenizer: Option<Vec<u8>>,
    has_chat_template: bool,
    n_tokens: Option<u64>,
    n_scores: Option<u64>,
    n_token_types: Option<u64>,
    /// By token: written as `<0xNN>`; marked as a byte.
    written_as_byte: Vec<bool>,
    marked_as_byte: Vec<bool>,
    /// Of all tokens, where somebody asked for it.
    vocabulary: Option<Sha256>,
}

impl Metadata {
    fn read(self, bytes: &mut Bounded<impl Read>, n_kv: u64) -> Result<Self, Reason> {
        let mut meta = self;
        for _ in 0..n_kv {
            meta.pair(bytes)?;
        }
        Ok(meta)
    }

    fn pair(&mut self, bytes: &mut Bounded<impl Read>) -> Result<(), Reason> {
        let key = bytes.string("a key", limits::KEY_BYTES_MAX)?;
        let key = ascii("the key", key)?;
        let value_type = bytes.u32()?;
        if self.types.insert(key.clone(), value_type).is_some() {
            return Err(Reason::DuplicateKey { key });
        }
        match value_type {
            STRING => self.string(bytes, &key),
            ARRAY => self.array(bytes, &key),
            other => self.scalar(bytes, &key, other),
        }
    }

    fn string(&mut self, bytes: &mut Bounded<impl Read>, key: &str) -> Result<(), Reason> {
        let kept = match key {
            "general.architecture" => &mut self.arch,
            "general.name" => &mut self.name,
            "general.type" => &mut self.kind,
            "tokenizer.ggml.model" => &mut self.tokenizer,
            key if key.starts_with("tokenizer.chat_template") => {
                self.has_chat_template |= key == "tokenizer.chat_template";
                return bytes.skip_string("a chat template", limits::TEMPLATE_BYTES_MAX);
            }
            _ => return bytes.skip_string("a string", limits::STRING_BYTES_MAX),
        };
        *kept = Some(bytes.string("a name", limits::NAME_BYTES_MAX)?);
        Ok(())
    }

    fn scalar(
        &mut self,
        bytes: &mut Bounded<impl Read>,
        key: &str,
        value_type: u32,
    ) -> Result<(), Reason> {
        let size = value_size(key, value_type)?;
        let mut raw = [0_u8; 8];
        bytes.fill(&mut raw[..size as usize])?;
        let unsigned = u64::from_le_bytes(raw);
        let integer = match value_type {
            0 | 2 | 4 | 10 => Some(unsigned),
            1 | 3 | 5 | 11 => {
                let shift = 64 - 8 * size;
                u64::try_from((unsigned << shift).cast_signed() >> shift).ok()
            }
            7 if unsigned > 1 => {
                return Err(Reason::Value {
                    key: key.to_owned(),
                    found: unsigned.to_string(),
                    expected: "a bool of 0 or 1".into(),
                });
            }
            _ => None,
        };
        self.integers
            .extend(integer.map(|value| (key.to_owned(), value)));
        Ok(())
    }

    fn array(&mut self, bytes: &mut Bounded<impl Read>, key: &str) -> Result<(), Reason> {
        let element = bytes.u32()?;
        if element == ARRAY {
            return Err(Reason::NestedArray {
                key: key.to_owned(),
            });
        }
        let size = value_size(key, element)?;
        let n = count(
            "array elements",
            bytes.u64()?,
            0,
            limits::ARRAY_ELEMENTS_MAX,
        )?;
        let expect = |wanted: u32, expected: &'static str| match element == wanted {
            true => Ok(()),
            false => Err(Reason::WrongType {
                key: key.to_owned(),
                found: VALUE_TYPES[element as usize].0,
                expected,
            }),
        };
        match key {
            "tokenizer.ggml.tokens" => {
                expect(STRING, "strings")?;
                self.n_tokens = Some(n);
                // In one piece: a small one, whatever `n` is. A key that comes twice was refused.
                self.written_as_byte.reserve_exact(n as usize);
                if let Some(hash) = &mut self.vocabulary {
                    for _ in 0..n {
                        let token = bytes.string("a token", limits::TOKEN_BYTES_MAX)?;
                        hash.update((token.len() as u64).to_le_bytes());
                        hash.update(&token);
                        self.written_as_byte.push(is_byte_token(&token));
                    }
                    return Ok(());
                }
                bytes.strings(n, "a token", limits::TOKEN_BYTES_MAX, |token| {
                    self.written_as_byte.push(is_byte_token(token));
                })?;
            }
            "tokenizer.ggml.token_type" => {
                const BYTE: u32 = 6; // LLAMA_TOKEN_TYPE_BYTE
                expect(I32, "i32")?;
                self.n_token_types = Some(n);
                self.marked_as_byte.reserve_exact(n as usize);
                bytes.u32s(n, |kind| self.marked_as_byte.push(kind == BYTE))?;
            }
            "tokenizer.ggml.scores" => {
                expect(F32, "f32")?;
                self.n_scores = Some(n);
                bytes.skip(n * size)?;
            }
            "tokenizer.ggml.merges" => {
                expect(STRING, "strings")?;
                bytes.skip_strings(n)?;
            }
            _ if element == STRING => bytes.skip_strings(n)?,
            _ => bytes.skip(n * size)?,
        }
        Ok(())
    }

    /// Bytes between the starts of tensors: 32 unless the file says otherwise.
    fn alignment(&self) -> Result<u64, Reason> {
        const KEY: &str = "general.alignment";
        let Some(value_type) = self.types.get(KEY) else {
            return Ok(32);
        };
        if *value_type != U32 {
            return Err(Reason::WrongType {
                key: KEY.into(),
                found: VALUE_TYPES[*value_type as usize].0,
                expected: "u32",
            });
        }
        match self.integers.get(KEY) {
            Some(value) if value.is_power_of_two() && limits::ALIGNMENT.contains(value) => {
                Ok(*value)
            }
            found => Err(Reason::Value {
                key: KEY.into(),
                found: found.copied().unwrap_or_default().to_string(),
                expected: "a power of two from 8 to 4096".into(),
            }),
        }
    }

    /// Adapters, projectors, calibration data and parts of split models are GGUF files too.
    fn check_kind(&self) -> Result<(), Reason> {
        let refuse = |found: String| Err(Reason::Kind { found });
        match self.kind.as_deref() {
            None | Some(b"model") => {}
            Some(other) => {
                return refuse(printable(other).unwrap_or_else(|| "file of no kind".into()));
            }
        }
        if self.arch.as_deref() == Some(b"clip") {
            return refuse("projector (mmproj)".into());
        }
        match self.integers.get("split.count") {
            Some(n) if *n > 1 => refuse(format!(
                "part of a model in {n} files (llama-gguf-split --merge joins them)"
            )),
            _ => Ok(()),
        }
    }

    fn architecture(&self) -> Result<String, Reason> {
        const KEY: &str = "general.architecture";
        let arch = self
            .arch
            .clone()
            .ok_or_else(|| Reason::Missing { key: KEY.into() })?;
        let fine =
            |c: &u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_');
        if arch.is_empty() || arch.len() > 64 || !arch.iter().all(fine) {
            return Err(Reason::Value {
                key: KEY.into(),
                found: printable(&arch).unwrap_or_default(),
                expected: "1 to 64 of a-z 0-9 - _".into(),
            });
        }
        let arch = ascii(KEY, arch)?;
        let known = [limits::ARCHITECTURES, limits::ENCODERS];
        match known.iter().any(|list| list.contains(&arch.as_str())) {
            true => Ok(arch),
            false => Err(Reason::Unserved {
                key: KEY,
                found: arch,
                served: "decoders of text and embedding models in wide use are",
            }),
        }
    }

    fn check_tokenizer(&self) -> Result<(), Reason> {
        const KEY: &str = "tokenizer.ggml.model";
        match self.tokenizer.as_deref().and_then(printable) {
            None => Err(Reason::Missing { key: KEY.into() }),
            Some(found) if limits::TOKENIZERS.contains(&found.as_str()) => Ok(()),
            Some(found) => Err(Reason::Unserved {
                key: KEY,
                found,
                served: "\"bert\", \"gemma4\", \"gpt2\" and \"llama\" are",
            }),
        }
    }

    fn u32_within(&self, key: &str, min: u64, max: u64) -> Result<u32, Reason> {
        let Some(value_type) = self.types.get(key) else {
            return Err(Reason::Missing {
                key: key.to_owned(),
            });
        };
        match self.integers.get(key) {
            // Both bounds are constants that fit.
            Some(value) if (min..=max).contains(value) => Ok(*value as u32),
            Some(value) => Err(Reason::Value {
                key: key.to_owned(),
                found: value.to_string(),
                expected: format!("{min} to {max}"),
            }),
            None => Err(Reason::WrongType {
                key: key.to_owned(),
                found: VALUE_TYPES[*value_type as usize].0,
                expected: "a positive integer",
            }),
        }
    }

    /// Length of the vocabulary, after checks of the arrays that llama.cpp indexes by token.
    fn vocabulary(&self) -> Result<u32, Reason> {
        let n_vocab = self.n_tokens.unwrap_or(0);
        if n_vocab == 0 {
            return Err(Reason::Missing {
                key: "tokenizer.ggml.tokens".into(),
            });
        }
        for (array, found) in [
            ("scores", self.n_scores),
            ("token_type", self.n_token_types),
        ] {
            if let Some(found) = found.filter(|n| *n != n_vocab) {
                return Err(Reason::VocabLength {
                    array,
                    found,
                    n_vocab,
                });
            }
        }
        let mut pairs = self.marked_as_byte.iter().zip(&self.written_as_byte);
        match pairs.position(|(marked, written)| *marked && !written) {
            Some(index) => Err(Reason::ByteToken {
                index: index as u64,
            }),
            // At most ARRAY_ELEMENTS_MAX, which fits.
            None => Ok(n_vocab as u32),
        }
    }
}

/// Size of one value in bytes; 0 for a string.
fn value_size(key: &str, value_type: u32) -> Result<u64, Reason> {
    match VALUE_TYPES.get(value_type as usize) {
        Some((_, size)) => Ok(*size),
        None => Err(Reason::ValueType {
            key: key.to_owned(),
            found: value_type,
        }),
    }
}

fn ascii(what: &'static str, bytes: Vec<u8>) -> Result<String, Reason> {
    // A plain loop: this package is compiled for size, and a header may have four million of these bytes.
    let mut is_fine = !bytes.is_empty();
    for byte in &bytes {
        is_fine &= matches!(*byte, b'!'..=b'~');
    }
    match String::from_utf8(bytes) {
        Ok(text) if is_fine => Ok(text),
        Ok(text) => Err(Reason::Characters { what, found: text }),
        Err(e) => Err(Reason::Characters {
            what,
            found: String::from_utf8_lossy(e.as_bytes()).into_owned(),
        }),
    }
}

/// `<0x0A>`: llama.cpp turns the two digits into a byte without looking at them (llama.cpp#25969).
fn is_byte_token(token: &[u8]) -> bool {
    matches!(token, [b'<', b'0', b'x', a, b, b'>'] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
}
