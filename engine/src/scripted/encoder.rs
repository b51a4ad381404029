//! An [`Encoder`] without a model: the vector of a text counts its bytes, in eight numbers.
//!
//! A text with `!abort` aborts the process, `!fail` fails its batch.

use orinoco::frames::{LoadSpec, Loaded, Token};

use super::{END, limits, loaded};
use crate::model::{DecodeError, Encoder, Shape};

const N_DIMS: usize = 8;

/// The scripted encoder.
#[derive(Debug)]
pub struct ScriptedEncoder {
    shape: Shape,
}

impl ScriptedEncoder {
    /// With the limits that `spec` asks for.
    pub fn new(spec: &LoadSpec) -> Self {
        Self {
            shape: Shape {
                n_dims: N_DIMS as u32,
                n_tokens_max: spec.n_ubatch,
                n_batch: spec.n_ubatch,
                n_seq_max: spec.n_seq_max,
            },
        }
    }

    /// What a worker says of it.
    pub fn loaded(&self, spec: &LoadSpec) -> Loaded {
        Loaded {
            n_dims: self.shape.n_dims,
            n_ctx_seq: self.shape.n_tokens_max,
            chat_template: "none".to_owned(),
            ..loaded(spec, limits(spec))
        }
    }
}

impl Encoder for ScriptedEncoder {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn tokenize(&self, text: &str) -> Result<Vec<Token>, String> {
        let bytes = text.bytes().map(Token::from);
        Ok(std::iter::once(super::BOS)
            .chain(bytes)
            .chain([END])
            .collect())
    }

    fn encode(&mut self, texts: &[&[Token]]) -> Result<Vec<f32>, DecodeError> {
        let n_tokens: usize = texts.iter().map(|tokens| tokens.len()).sum();
        assert!(!texts.is_empty() && texts.len() <= self.shape.n_seq_max as usize);
        assert!(n_tokens <= self.shape.n_batch as usize, "{n_tokens} tokens");
        let mut vectors = vec![0.0; texts.len() * N_DIMS];
        for (tokens, vector) in texts.iter().zip(vectors.chunks_mut(N_DIMS)) {
            let bytes = tokens.iter().filter_map(|token| u8::try_from(*token).ok());
            let text = String::from_utf8_lossy(&Vec::from_iter(bytes)).into_owned();
            if text.contains("!abort") {
                std::process::abort();
            }
            if text.contains("!fail") {
                return Err(DecodeError::Failed(-1));
            }
            vector[0] = 1.0;
            for byte in text.bytes() {
                vector[byte as usize % N_DIMS] += 1.0;
            }
        }
        Ok(vectors)
    }
}
