//! llama.cpp's and ggml's log lines: forwarded to `tracing`, and read for the facts of a load.
//!
//! llama.cpp has no API for how many layers went to a GPU or into how many parts the graph was cut;
//! it only says so in its log:
//!
//! ```text
//! load_tensors: offloaded 29/29 layers to GPU
//! sched_reserve: graph (pp bs=512, tg bs=8): nodes = 1 / 2, splits = 2 / 1, input objects = ...
//! ```
//!
//! A test pins both lines to the sources of the llama.cpp version in use.

#![allow(
    unsafe_code,
    reason = "the log callback is called from C with a C string"
)]

use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, PoisonError};

use llama_cpp_sys_2 as sys;

/// What the log said since the last [`take`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// Layers on a GPU and layers in all; absent in builds without a GPU backend.
    pub offloaded: Option<(u32, u32)>,
    /// Parts of the token-generation graph.
    pub n_graph_splits: Option<u32>,
    /// The last error lines, oldest first.
    pub errors: VecDeque<String>,
}

/// Enough to hold a failed load's whole chain of reasons.
const ERRORS_MAX: usize = 8;
/// A hostile file's strings end up in log lines.
const LINE_BYTES_MAX: usize = 1024;

struct State {
    facts: LogFacts,
    /// Text of a line whose end has not come yet, and its level.
    partial: String,
    level: sys::ggml_log_level,
}

static STATE: Mutex<State> = Mutex::new(State {
    facts: LogFacts {
        offloaded: None,
        n_graph_splits: None,
        errors: VecDeque::new(),
    },
    partial: String::new(),
    level: sys::GGML_LOG_LEVEL_NONE,
});

/// Sends llama.cpp's log to `tracing` from now on.
pub fn install() {
    // SAFETY: `on_log` fits the callback's type, uses no user data and never unwinds into C: it only
    // formats, and a poisoned lock is taken over.
    unsafe { sys::llama_log_set(Some(on_log), std::ptr::null_mut()) }
}

/// The facts gathered so far; starts a new gathering.
pub fn take() -> LogFacts {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut state.facts)
}

unsafe extern "C" fn on_log(level: sys::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: ggml passes a NUL-terminated string that lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    if level != sys::GGML_LOG_LEVEL_CONT {
        state.level = level;
        state.partial.clear();
    }
    let room = LINE_BYTES_MAX.saturating_sub(state.partial.len());
    let mut end = room.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    state.partial.push_str(&text[..end]);
    if !text.ends_with('\n') && end == text.len() {
        return;
    }
    let line = std::mem::take(&mut state.partial);
    let line = line.trim_end();
    let level = state.level;
    state.facts.read(line, level);
    drop(state);
    if line.is_empty() || line == "." {
        return;
    }
    match level {
        sys::GGML_LOG_LEVEL_ERROR => tracing::error!(target: "llama", "{line}"),
        sys::GGML_LOG_LEVEL_WARN => tracing::warn!(target: "llama", "{line}"),
        _ => tracing::debug!(target: "llama", "{line}"),
    }
}

impl LogFacts {
    fn read(&mut self, line: &str, level: sys::ggml_log_level) {
        if let Some(found) = offloaded(line) {
            self.offloaded = Some(found);
        }
        if let Some(found) = graph_splits(line) {
            self.n_graph_splits = Some(found);
        }
        if level == sys::GGML_LOG_LEVEL_ERROR && !line.is_empty() {
            if self.errors.len() == ERRORS_MAX {
                self.errors.pop_front();
            }
            self.errors.push_back(line.to_owned());
        }
    }

    /// The last error lines as half a sentence, for a message to a technician.
    pub fn reason(&self) -> String {
        if self.errors.is_empty() {
            return "llama.cpp gave no reason".to_owned();
        }
        Vec::from_iter(self.errors.iter().map(String::as_str)).join("; ")
    }
}

/// `… offloaded 29/29 layers to GPU` → (29, 29).
fn offloaded(line: &str) -> Option<(u32, u32)> {
    let (_, rest) = line.split_once("offloaded ")?;
    let (pair, _) = rest.split_once(" layers to GPU")?;
    let (on_gpu, all) = pair.split_once('/')?;
    Some((on_gpu.parse().ok()?, all.parse().ok()?))
}

/// `… graph (pp bs=512, tg bs=8): nodes = 1 / 2, splits = 2 / 1, …` → 1; `… splits = 1, …` → 1.
fn graph_splits(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(": graph")?;
    let (_, rest) = rest.split_once("splits = ")?;
    let (value, _) = rest.split_once(',')?;
    let decode = value.rsplit(" / ").next()?;
    decode.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_this_version_are_understood() {
        assert_eq!(
            offloaded("load_tensors: offloaded 28/29 layers to GPU"),
            Some((28, 29))
        );
        assert_eq!(
            graph_splits(
                "sched_reserve: graph: nodes = 943, splits = 1, input objects = 9, input tensors = 12"
            ),
            Some(1)
        );
        assert_eq!(
            graph_splits(
                "sched_reserve: graph (pp bs=512, tg bs=8): nodes = 943 / 940, splits = 61 / 2, input objects = 9, input tensors = 12"
            ),
            Some(2)
        );
        assert_eq!(graph_splits("load: splits = 3, x"), None);
        assert_eq!(offloaded("offloaded many layers to GPU"), None);
    }

    #[test]
    fn only_the_last_error_lines_are_kept() {
        let mut facts = LogFacts::default();
        for i in 0..20 {
            facts.read(&format!("error {i}"), sys::GGML_LOG_LEVEL_ERROR);
        }
        assert_eq!(facts.errors.len(), ERRORS_MAX);
        assert_eq!(facts.errors.back().map(String::as_str), Some("error 19"));
        assert!(facts.reason().starts_with("error 12; error 13"));
    }
}
