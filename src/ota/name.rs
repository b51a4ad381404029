//! Names and digests in a repository, checked once at the edge.
//!
//! A name of a target is one level: `..`, slashes, capitals and everything beyond ASCII are no names, so
//! that none of them can become a path. On disk a target is called by its digest anyway.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a target, bytes.
pub const TARGET_NAME_BYTES_MAX: usize = 100;
/// Longest other name, bytes; short enough for `<id>.manifest.json`, and as long as names on MQTT are.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a SHA-256.
pub const DIGEST_BYTES: usize = 32;

/// Why a text is no name or digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty or too long.
    #[error("{what} of {found} bytes, expected 1 to {max}")]
    Length {
        /// `name of a target`, `model id` …
        what: &'static str,
        /// Bytes found.
        found: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// A character that no name has, or that none begins with.
    #[error("{what} has {found:?} at byte {at}, expected a-z 0-9 . _ - and the first of a-z 0-9")]
    Character {
        /// `name of a target`, `model id` …
        what: &'static str,
        /// The first wrong character.
        found: char,
        /// Its position in bytes.
        at: usize,
    },
    /// No digest.
    #[error("digest of {found} characters, expected 64 of 0-9 a-f")]
    Digest {
        /// Characters found.
        found: usize,
    },
}

/// `[a-z0-9][a-z0-9._-]{0,max-1}`
fn check(what: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if !(1..=max).contains(&text.len()) {
        return Err(NameError::Length {
            what,
            found: text.len(),
            max,
        });
    }
    let is_fine = |at: usize, c: char| match c {
        'a'..='z' | '0'..='9' => true,
        '.' | '_' | '-' => at > 0,
        _ => false,
    };
    match text.char_indices().find(|(at, c)| !is_fine(*at, *c)) {
        None => Ok(()),
        Some((at, found)) => Err(NameError::Character { what, found, at }),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Checks a text.
            ///
            /// # Errors
            /// Its length or its first wrong character.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check($what, text, $max)?;
                Ok(Self(text.to_owned()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check($what, &text, $max)?;
                Ok(Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A target in the repository, e.g. `catalog.json`.
    TargetName, "name of a target", TARGET_NAME_BYTES_MAX
);
name!(
    /// One version of a model, e.g. `qwen3-4b-instruct-q4km`. Its files are named after it.
    ModelId, "model id", NAME_BYTES_MAX
);
name!(
    /// A line of releases that follow each other, e.g. `assistant-s`: the name under which requests and
    /// profiles know the model, whichever release serves.
    LineName, "name of a line", NAME_BYTES_MAX
);
name!(
    /// A group of devices, e.g. `hall2`.
    GroupName, "name of a group", NAME_BYTES_MAX
);
name!(
    /// A kind of board, e.g. `orin-nx-16gb`: the files of configs/boards/ are named so.
    BoardName, "name of a board", NAME_BYTES_MAX
);

impl TargetName {
    /// The catalogue.
    pub fn catalog() -> Self {
        Self("catalog.json".into())
    }

    /// The settings for the fleet.
    pub fn policy() -> Self {
        Self("policy.toml".into())
    }

    /// The manifest of a model.
    pub fn manifest(id: &ModelId) -> Self {
        Self(format!("{id}.manifest.json"))
    }

    /// The table of a model's pieces.
    pub fn pieces(id: &ModelId) -> Self {
        Self(format!("{id}.pieces"))
    }

    /// The model file.
    pub fn weights(id: &ModelId) -> Self {
        Self(format!("{id}.gguf"))
    }

    /// The text of a model's licence.
    pub fn licence(id: &ModelId) -> Self {
        Self(format!("{id}.licence.txt"))
    }

    /// What the file is called in `targets/`: `<sha256>.<name>`.
    pub fn file_name(&self, digest: &Digest) -> String {
        format!("{digest}.{self}")
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; DIGEST_BYTES]);

impl Digest {
    /// Of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// From 64 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// The text is something else.
    pub fn from_hex(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Digest {
            found: text.chars().count(),
        };
        let nibble = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(wrong()),
        };
        if text.len() != 2 * DIGEST_BYTES {
            return Err(wrong());
        }
        let mut digest = [0; DIGEST_BYTES];
        for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = (nibble(pair[0])? << 4) | nibble(pair[1])?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::from_hex(text)
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::from_hex(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_be_a_path_or_looks_alike_is_no_name() {
        let long = "a".repeat(101);
        for text in [
            "",
            ".",
            "..",
            "../a",
            "/abs",
            "a/../b",
            "a/b",
            "a\\b",
            "a\0b",
            "A",
            "é",
            "аbc",
            "-a",
            "_a",
            ".a",
            "a b",
            "a\n",
            "a:b",
            long.as_str(),
        ] {
            assert!(TargetName::new(text).is_err(), "{text:?}");
        }
        for text in ["a", "0", "a..b", "qwen3-4b_q4.gguf", &"a".repeat(100)] {
            assert!(TargetName::new(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn every_file_of_the_longest_model_id_is_a_name() {
        let id = ModelId::new(&"m".repeat(NAME_BYTES_MAX)).unwrap();
        for name in [
            TargetName::manifest(&id),
            TargetName::pieces(&id),
            TargetName::weights(&id),
            TargetName::licence(&id),
            TargetName::catalog(),
            TargetName::policy(),
        ] {
            assert_eq!(TargetName::new(name.as_str()), Ok(name.clone()));
        }
    }

    #[test]
    fn digest_in_capitals_or_of_another_length_is_refused() {
        let digest = Digest::of(b"abc").to_string();
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(Digest::from_hex(&digest.to_uppercase()).is_err());
        assert!(Digest::from_hex(&digest[1..]).is_err());
        assert!(Digest::from_hex(&"é".repeat(32)).is_err());
    }

    proptest! {
        #[test]
        fn names_are_exactly_the_pattern(text in "[a-z0-9._/A-Zé-]{0,105}") {
            let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let rest = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
            prop_assert_eq!(TargetName::new(&text).is_ok(), first && rest && text.len() <= 100);
        }

        #[test]
        fn digest_survives_its_text(bytes: [u8; 32]) {
            let digest = Digest(bytes);
            prop_assert_eq!(Digest::from_hex(&digest.to_string()), Ok(digest));
            let json = serde_json::to_string(&digest).unwrap();
            prop_assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
        }
    }
}
