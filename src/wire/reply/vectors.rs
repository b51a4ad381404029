//! The answer to op embed, in OpenAI's shape.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::body::{EmbedUsage, Embedding, Embeddings, Orinoco, Values};
use super::{OK, Outgoing, Replier, json};
use crate::wire::request::Encoding;

/// What an embedding model made of the texts of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Vectors {
    /// Length of each vector, as the model makes them.
    pub n_dims: usize,
    /// All of them, one after the other, each of length 1.
    pub values: Vec<f32>,
    /// Length that was asked for, at most `n_dims`.
    pub dimensions: Option<u32>,
    /// How they are written.
    pub encoding: Encoding,
    /// Tokens of all texts.
    pub n_tokens: u32,
    /// A text was cut, as the request allowed.
    pub truncated: bool,
}

impl Replier {
    /// The answer to `embed`, the only message of its request.
    pub fn vectors(&self, vectors: &Vectors) -> Outgoing {
        let wanted = vectors.dimensions.map_or(vectors.n_dims, |n| n as usize);
        let chunks = vectors.values.chunks(vectors.n_dims.max(1));
        let data = chunks.zip(0..).map(|(vector, index)| Embedding {
            object: "embedding".into(),
            index,
            embedding: match (shortened(vector, wanted), vectors.encoding) {
                (values, Encoding::Float) => Values::Float(values),
                (values, Encoding::Base64) => Values::Base64(base64(&values)),
            },
        });
        let answer = Embeddings {
            id: self.id.as_str().into(),
            object: "list".into(),
            created: self.created_s,
            model: self.model.as_str().into(),
            data: data.collect(),
            usage: EmbedUsage {
                prompt_tokens: vectors.n_tokens.into(),
                total_tokens: vectors.n_tokens.into(),
            },
            seq: 0,
            is_final: true,
            attempt: self.attempt,
            orinoco: Orinoco {
                truncated: vectors.truncated.then_some(true),
                ..self.orinoco()
            },
        };
        json(&answer, 0, true, Some(OK))
    }
}

/// The first `wanted` numbers, of length 1 again: models that were trained for it keep the meaning there.
fn shortened(vector: &[f32], wanted: usize) -> Vec<f32> {
    let mut values = vector[..wanted.min(vector.len())].to_vec();
    if values.len() < vector.len() {
        let square: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        let length = square.sqrt();
        if length > 0.0 {
            for x in &mut values {
                *x = (f64::from(*x) / length) as f32;
            }
        }
    }
    values
}

/// 32-bit floats, little endian.
fn base64(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_the_length_one_again() {
        let vector = [0.6, 0.0, 0.8];
        assert_eq!(shortened(&vector, 3), vector);
        assert_eq!(shortened(&vector, 2), [1.0, 0.0]);
        assert_eq!(shortened(&[0.0, 1.0], 1), [0.0]);
    }

    #[test]
    fn base64_is_that_of_openai() {
        // struct.pack("<2f", 1.0, -0.5) in Python.
        assert_eq!(base64(&[1.0, -0.5]), "AACAPwAAAL8=");
    }
}
