//! The measured table: one row for each model, number of sequences and power mode that was tried.
//!
//! ```json
//! {"version": 1, "rows": [{"mode": "25W", "caps": {"gpu_hz": 408000000, "n_tpcs": 4, "emc_hz": 3199000000, "n_cores": 8,
//!   "cpu_khz": 1497600}, "model": "small", "n_params": 134515008, "n_seq_max": 4, "n_ctx": 8192,
//!   "kv_type_k": "f16", "kv_type_v": "f16", "tok_s": 61.5, "ttft_ms": 140.0, "joules_per_token": 0.4,
//!   "peak_bytes": 1500000000}]}
//! ```
//!
//! Written by `orinoco bench --table`, a model's rows replacing the older ones of the same mode. Keys that
//! are not known are passed over; another version means other units or rules, and such a table is not used.

use serde::{Deserialize, Serialize};

use super::candidates::{Line, Source};
use crate::board::caps::Caps;
use crate::frames::KvType;

/// Largest table, bytes.
pub const TABLE_BYTES_MAX: usize = 1 << 20;

/// Of the table's meaning.
const VERSION: u32 = 1;

/// Most rows.
const ROWS_MAX: usize = 2000;

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The power mode's name, for people; the caps are what counts.
    pub mode: String,
    /// What the mode allowed while it was measured, within the board's limits.
    pub caps: Caps,
    /// The model's name.
    pub model: String,
    /// Parameters.
    pub n_params: u64,
    /// Streams that ran side by side.
    pub n_seq_max: u32,
    /// KV pool, tokens.
    pub n_ctx: u32,
    /// Keys in the KV cache.
    pub kv_type_k: KvType,
    /// Values in the KV cache.
    pub kv_type_v: KvType,
    /// Tokens a second, all streams together.
    pub tok_s: f64,
    /// First token after a prompt of 512 tokens on an idle worker, milliseconds.
    pub ttft_ms: f64,
    /// Joules a token, all streams together; absent on boards without rails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joules_per_token: Option<f64>,
    /// The most memory that it took, bytes.
    pub peak_bytes: u64,
}

impl Row {
    /// Tokens a second of each stream.
    pub fn tok_s_stream(&self) -> f64 {
        self.tok_s / f64::from(self.n_seq_max.max(1))
    }

    pub(super) fn line(&self) -> Line {
        Line {
            model: self.model.clone(),
            n_seq_max: self.n_seq_max,
            n_ctx: Some(self.n_ctx),
            kv_type_k: Some(self.kv_type_k),
            kv_type_v: Some(self.kv_type_v),
            memory_bytes: Some(self.peak_bytes),
            source: Source::Measured(self.mode.clone()),
        }
    }

    /// What is wrong with it.
    fn fault(&self) -> Option<&'static str> {
        let is_rate = |value: f64| value.is_finite() && value > 0.0;
        if !is_rate(self.tok_s) {
            return Some("tok_s: expected a number above 0");
        }
        if !is_rate(self.ttft_ms) {
            return Some("ttft_ms: expected a number above 0");
        }
        if self.joules_per_token.is_some_and(|joules| !is_rate(joules)) {
            return Some("joules_per_token: expected a number above 0, or no such key");
        }
        if !(1..=64).contains(&self.n_seq_max) {
            return Some("n_seq_max: expected 1 to 64");
        }
        if self.n_ctx == 0 || self.peak_bytes == 0 {
            return Some("n_ctx and peak_bytes: expected more than 0");
        }
        None
    }
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Larger than any table.
    #[error("table of {bytes} bytes, expected at most {TABLE_BYTES_MAX}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Other JSON.
    #[error("table: {0}")]
    Json(#[from] serde_json::Error),
    /// A row that says something impossible.
    #[error("row {index} of the table ({model} in {mode}): {fault}")]
    Row {
        /// From 0.
        index: usize,
        /// Its model.
        model: String,
        /// Its mode.
        mode: String,
        /// What was expected.
        fault: &'static str,
    },
    /// Written by another program.
    #[error(
        "table of version {found}, expected {VERSION}: measure again with `orinoco bench --table`"
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// More rows than a board has cases.
    #[error("table of {rows} rows, expected at most {ROWS_MAX}")]
    TooMany {
        /// How many.
        rows: usize,
    },
}

#[derive(Serialize, Deserialize)]
struct File<T> {
    version: u32,
    rows: T,
}

/// Parses a table.
///
/// # Errors
/// It is no table, or a row says something impossible: then nothing of it is used.
pub fn parse_table(bytes: &[u8]) -> Result<Vec<Row>, TableError> {
    if bytes.len() > TABLE_BYTES_MAX {
        return Err(TableError::TooLarge { bytes: bytes.len() });
    }
    let File { version, rows } = serde_json::from_slice::<File<Vec<Row>>>(bytes)?;
    if version != VERSION {
        return Err(TableError::Version { found: version });
    }
    if rows.len() > ROWS_MAX {
        return Err(TableError::TooMany { rows: rows.len() });
    }
    for (index, row) in rows.iter().enumerate() {
        if let Some(fault) = row.fault() {
            return Err(TableError::Row {
                index,
                model: row.model.clone(),
                mode: row.mode.clone(),
                fault,
            });
        }
    }
    Ok(rows)
}

/// The table as JSON, one row a line.
///
/// # Errors
/// A number that JSON has no word for.
pub fn to_json(rows: &[Row]) -> Result<String, serde_json::Error> {
    let rows: Vec<String> = rows
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    Ok(format!(
        "{{\"version\": {VERSION}, \"rows\": [\n{}\n]}}\n",
        rows.join(",\n")
    ))
}
