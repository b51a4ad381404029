//! Tokens that begin and end a tool call. In some vocabularies they are control tokens, which stand for no
//! text; where a call is to be read, they stand for their own.

use orinoco::frames::Token;

use crate::model::Decoder;

const TEXTS: [&str; 5] = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
];

/// Those of one vocabulary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Markers(Vec<(Token, &'static str)>);

impl Markers {
    /// The control tokens among them.
    pub fn of(decoder: &dyn Decoder) -> Self {
        let mut markers = Vec::new();
        let mut bytes = Vec::new();
        for text in TEXTS {
            let Ok(ids) = decoder.tokenize(text, false, true) else {
                continue;
            };
            if let [id] = ids[..] {
                bytes.clear();
                decoder.piece(id, &mut bytes);
                if bytes.is_empty() {
                    markers.push((id, text));
                }
            }
        }
        Self(markers)
    }

    /// Appends what `token` stands for.
    pub fn piece(&self, token: Token, decoder: &dyn Decoder, bytes: &mut Vec<u8>) {
        match self.0.iter().find(|(id, _)| *id == token) {
            Some((_, text)) => bytes.extend_from_slice(text.as_bytes()),
            None => decoder.piece(token, bytes),
        }
    }
}
