//! Why one of the signed files cannot be used.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What is wrong with a catalogue, a manifest, a policy or a table of pieces.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Larger than any such file.
    #[error("{what} of {found} bytes, expected at most {max}")]
    TooLarge {
        /// `manifest`, `catalogue` …
        what: &'static str,
        /// Its length.
        found: u64,
        /// The longest that is read.
        max: u64,
    },
    /// Not the JSON that it should be.
    #[error("{what}: {source}")]
    Json {
        /// `manifest`, `catalogue` …
        what: &'static str,
        /// Line, column and what was expected.
        source: serde_json::Error,
    },
    /// Not the TOML that it should be.
    #[error("{what}: {message}")]
    Toml {
        /// `policy`.
        what: &'static str,
        /// Line and what was expected.
        message: String,
    },
    /// Made for a newer device.
    #[error(
        "{what} of schema {found}, this program knows {known}: update Orinoco on the device first"
    )]
    Schema {
        /// `manifest`, `catalogue` …
        what: &'static str,
        /// Its schema.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A value that no such file has.
    #[error("{what}: {key}: found {found}, expected {expected}")]
    Value {
        /// `manifest`, `catalogue` …
        what: &'static str,
        /// Where: `files[0].bytes`.
        key: String,
        /// What stands there, shortened.
        found: String,
        /// What would be right.
        expected: String,
    },
}

/// One file under test: names it in every error.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    /// The length, before anything is allocated for the content.
    pub(super) fn length(self, found: usize, max: usize) -> Result<(), FileError> {
        match found <= max {
            true => Ok(()),
            false => Err(FileError::TooLarge {
                what: self.0,
                found: found as u64,
                max: max as u64,
            }),
        }
    }

    /// A JSON file of a schema. The schema is read first: in another one the rest may mean something else.
    pub(super) fn json<T: DeserializeOwned>(
        self,
        bytes: &[u8],
        bytes_max: usize,
        schema: u32,
    ) -> Result<T, FileError> {
        #[derive(Deserialize)]
        struct OfSchema {
            schema: u32,
        }
        self.length(bytes.len(), bytes_max)?;
        let wrong = |source| FileError::Json {
            what: self.0,
            source,
        };
        let found: OfSchema = serde_json::from_slice(bytes).map_err(wrong)?;
        self.schema(found.schema, schema)?;
        serde_json::from_slice(bytes).map_err(wrong)
    }

    pub(super) fn schema(self, found: u32, known: u32) -> Result<(), FileError> {
        match found == known {
            true => Ok(()),
            false => Err(FileError::Schema {
                what: self.0,
                found,
                known,
            }),
        }
    }

    /// That a value is right.
    pub(super) fn that(
        self,
        is_right: bool,
        key: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Result<(), FileError> {
        if is_right {
            return Ok(());
        }
        // What a stranger wrote is shown in part, and without control characters.
        let found: String = found.to_string();
        let shown: String = found.chars().filter(|c| !c.is_control()).take(60).collect();
        Err(FileError::Value {
            what: self.0,
            key: key.into(),
            found: shown,
            expected: expected.into(),
        })
    }

    /// That a number lies within bounds.
    pub(super) fn within(
        self,
        key: impl Into<String>,
        found: u64,
        bounds: std::ops::RangeInclusive<u64>,
    ) -> Result<(), FileError> {
        let expected = format!("{} to {}", bounds.start(), bounds.end());
        self.that(bounds.contains(&found), key, found, expected)
    }

    /// That a text has no more bytes than `max`, and at least `min`.
    pub(super) fn text(
        self,
        key: impl Into<String>,
        found: &str,
        min: usize,
        max: usize,
    ) -> Result<(), FileError> {
        self.that(
            (min..=max).contains(&found.len()),
            key,
            format_args!("{} bytes", found.len()),
            format!("{min} to {max} bytes"),
        )
    }

    /// That a list is no longer than `max`.
    pub(super) fn count(
        self,
        key: impl Into<String>,
        found: usize,
        max: usize,
    ) -> Result<(), FileError> {
        self.that(
            found <= max,
            key,
            format_args!("{found} entries"),
            format!("at most {max}"),
        )
    }
}
