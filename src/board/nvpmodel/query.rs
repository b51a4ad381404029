//! `nvpmodel -q`, for boards whose status file is missing or cannot be understood.
//!
//! ```text
//!     NVPM WARN: fan mode is not set!        on some boards
//!     NV Power Mode: MAXN_SUPER
//!     2
//! ```

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::board::text::{ParseError, lines, n_lines, word_number};

/// Where NVIDIA's tool is.
pub const PROGRAM: &str = "/usr/sbin/nvpmodel";

/// Most output that is read, bytes.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

const MARK: &str = "NV Power Mode:";

/// The mode that the tool names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// e.g. `MAXN_SUPER`.
    pub name: String,
    /// Its id, where the next line has one.
    pub id: Option<u32>,
}

/// Why the tool gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// It is not there, or may not be run.
    #[error("run {program} -q: {what}")]
    NotRun {
        /// Its path.
        program: String,
        /// In the system's words.
        what: String,
    },
    /// It did not end in time and was killed.
    #[error("run {program} -q: no answer within {limit_ms} ms")]
    TimedOut {
        /// Its path.
        program: String,
        /// The limit.
        limit_ms: u128,
    },
    /// It said something else.
    #[error("output of {0}")]
    NotUnderstood(crate::board::root::ReadError),
}

/// Parses the output of `nvpmodel -q`, also with `--verbose`.
///
/// # Errors
/// No line that names a mode.
pub fn parse(bytes: &[u8]) -> Result<Answer, ParseError> {
    let mut found: Option<Answer> = None;
    for (number, line) in lines(bytes) {
        if let Some(answer) = &mut found {
            // An id or something else, e.g. the first line of verbose output.
            answer.id = word_number(number, line, &(0..=u32::MAX)).ok();
            break;
        }
        let text = String::from_utf8_lossy(line);
        if let Some((_, name)) = text.split_once(MARK) {
            let name = name.trim();
            if name.is_empty() || name.len() > 64 {
                return Err(ParseError::new(number, line, "the name of a mode"));
            }
            found = Some(Answer {
                name: name.to_owned(),
                id: None,
            });
        }
    }
    found.ok_or_else(|| ParseError::at_end(n_lines(bytes), format!("a line `{MARK} NAME`")))
}

/// Asks `program` (normally [`PROGRAM`]) for the mode: `-q` and nothing else, ever.
///
/// # Errors
/// It cannot be run, does not end within `limit`, or says something else. It is killed in each case.
pub async fn ask(program: &Path, limit: Duration) -> Result<Answer, QueryError> {
    let name = || program.display().to_string();
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .arg("-q")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            let mut bounded = stdout.take(OUTPUT_BYTES_MAX);
            bounded.read_to_end(&mut output).await?;
        }
        // What it prints counts, whatever it ends with: R36 ends with an error after a warning.
        child.wait().await?;
        Ok::<_, std::io::Error>(output)
    };
    let output = tokio::time::timeout(limit, run)
        .await
        .map_err(|_| QueryError::TimedOut {
            program: name(),
            limit_ms: limit.as_millis(),
        })?
        .map_err(|e| QueryError::NotRun {
            program: name(),
            what: e.to_string(),
        })?;
    parse(&output).map_err(|e| QueryError::NotUnderstood(e.in_file(&format!("{} -q", name()))))
}
