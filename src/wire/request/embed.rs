//! Bodies of op embed: OpenAI's shape for embeddings, or plain text, which is one input.

use super::{Limits, fields::Fields, invalid, json, keys};
use crate::wire::error::{ApiError, Code};

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// Arrays of numbers.
    #[default]
    Float,
    /// Base64 of 32-bit floats, little endian.
    Base64,
}

/// A checked request for vectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedRequest {
    /// The model asked for; `None`: the node's.
    pub model: Option<String>,
    /// At least one, none is empty.
    pub texts: Vec<String>,
    /// Length of the vectors wanted; `None`: the model's.
    pub dimensions: Option<u32>,
    /// How they are written.
    pub encoding: Encoding,
    /// A text that is too long is cut instead of refused.
    pub truncate: bool,
}

/// Reads the payload of op embed.
///
/// # Errors
/// [`Code::PayloadTooLarge`] or [`Code::InvalidRequest`].
pub fn parse_embed(payload: &[u8], limits: &Limits) -> Result<EmbedRequest, ApiError> {
    if payload.len() > limits.payload_bytes {
        let (found, allowed) = (payload.len(), limits.payload_bytes);
        return Err(ApiError::new(
            Code::PayloadTooLarge,
            format!("payload of {found} bytes, at most {allowed} are allowed"),
        ));
    }
    let text = std::str::from_utf8(payload).map_err(|error| {
        let at = error.valid_up_to();
        invalid(format!("payload is not UTF-8 at byte {at}"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if !text.trim_ascii_start().starts_with('{') {
        super::fields::check_text(text, "payload")?;
        if text.trim().is_empty() {
            return Err(invalid("payload has no text, expected a text to embed"));
        }
        return Ok(EmbedRequest {
            model: None,
            texts: vec![text.to_owned()],
            dimensions: None,
            encoding: Encoding::default(),
            truncate: false,
        });
    }
    json::check_bounds(text, limits)?;
    let body = json::parse(text)?;
    let fields = Fields::new(&body, limits);
    Ok(EmbedRequest {
        model: fields.text(&keys::MODEL)?,
        texts: fields.inputs(&keys::INPUTS)?,
        dimensions: fields.integer_u32(&keys::DIMENSIONS)?,
        encoding: match fields.word(&keys::ENCODING_FORMAT)? {
            Some("base64") => Encoding::Base64,
            _ => Encoding::Float,
        },
        truncate: fields.boolean(&keys::TRUNCATE)?.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<EmbedRequest, ApiError> {
        parse_embed(body.as_bytes(), &Limits::default())
    }

    fn refused(body: &str) -> String {
        let error = read(body).unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest, "{body}");
        error.message
    }

    #[test]
    fn one_text_many_texts_and_plain_text() {
        assert_eq!(read(r#"{"input":"a"}"#).unwrap().texts, ["a"]);
        assert_eq!(read("plain words").unwrap().texts, ["plain words"]);
        let all = r#"{"input":["a"," "],"model":"m","dimensions":8,"encoding_format":"base64","truncate":true,"user":"x"}"#;
        let expected = EmbedRequest {
            model: Some("m".to_owned()),
            texts: vec!["a".to_owned(), " ".to_owned()],
            dimensions: Some(8),
            encoding: Encoding::Base64,
            truncate: true,
        };
        assert_eq!(read(all), Ok(expected));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(
            refused("{}"),
            "input is missing, expected a string or an array of strings"
        );
        assert_eq!(
            refused(r#"{"input":[]}"#),
            "input has 0 texts, allowed are 1 to 256"
        );
        assert_eq!(
            refused(r#"{"input":["a",""]}"#),
            "input[1] has 0 bytes, allowed are 1 to 131072"
        );
        assert_eq!(
            refused(r#"{"input":[[1,2]]}"#),
            "input[0] is an array, expected a string"
        );
        assert_eq!(
            refused(r#"{"input":7}"#),
            "input is a number, expected a string or an array of strings"
        );
        assert_eq!(
            refused(r#"{"input":"a","dimensions":0}"#),
            "dimensions is 0, allowed are 1 to 65536"
        );
        assert!(refused(r#"{"input":"a","encoding_format":"int8"}"#).contains("float and base64"));
        assert!(refused(" \n").contains("no text"));
        assert!(refused("a\0").contains("NUL"));
        let many = format!(r#"{{"input":[{}"a"]}}"#, r#""a","#.repeat(256));
        assert_eq!(refused(&many), "input has 257 texts, allowed are 1 to 256");
        let large = vec![b'a'; (128 << 10) + 1];
        let error = parse_embed(&large, &Limits::default()).unwrap_err();
        assert_eq!(error.code, Code::PayloadTooLarge);
    }
}
