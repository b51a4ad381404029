//! PURE: what `orinoco top` shows of one node, and how it is drawn.
//!
//! [`View`] takes the node's documents as they come and remembers the last of each; [`draw`] puts a view on a
//! buffer of any size. Neither opens anything: the connection and the terminal are `cli::top`'s.
//!
//! Every byte of a document is a stranger's: it is bounded, parsed by the wire's own types, and no control
//! character of it reaches the terminal.

mod draw;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wire::report::{Info, PressureEvent, State, Status, SwitchEvent};
use crate::wire::telemetry::{TeleGpu, TeleHost, TeleLlm, TeleQueue};

pub use draw::draw;

/// Largest document that is looked at, in bytes.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Events that are remembered.
const EVENTS_MAX: usize = 100;
/// Values of tokens a second that are remembered, one for each telemetry.
const HISTORY_MAX: usize = 240;
/// Longest text taken from a document, in characters.
const TEXT_MAX: usize = 200;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, unix milliseconds, by the node's clock.
    pub at_ms: u64,
    /// Whether it is good news.
    pub is_good: bool,
    /// A short sentence.
    pub text: String,
}

/// What `ota/state` tells of updates. A state of a later version is shown by its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// What is done, or how the last one ended; empty before the first.
    pub state: String,
    /// Line and number of the release that this is about.
    pub release: Option<String>,
    /// Of a download, 0.0 to 1.0.
    pub fraction: Option<f64>,
    /// Seconds until the download is whole.
    pub eta_seconds: Option<u64>,
    /// The model of the release in service.
    pub installed: Option<String>,
    /// A newer one that may be taken.
    pub newer: Option<String>,
    /// Whether the release in service has yet to show that it stays up.
    pub is_on_probation: bool,
    /// Why it ended so, or why the last look at the sources gave nothing.
    pub reason: Option<String>,
}

impl Update {
    /// Whether it ended without success, or goes back.
    pub fn is_bad(&self) -> bool {
        is_bad(&self.state)
    }
}

/// States of an update that are no good news.
fn is_bad(state: &str) -> bool {
    matches!(state, "failed" | "rolling_back" | "rolled_back")
}

/// What is known of a node.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Its name.
    pub node: String,
    /// The broker's connection, `None` while it is up, else why it is not.
    pub down: Option<String>,
    status: Option<Status>,
    info: Option<Info>,
    state: Option<State>,
    host: Option<TeleHost>,
    gpu: Option<TeleGpu>,
    llm: Option<TeleLlm>,
    queue: Option<TeleQueue>,
    update: Option<Update>,
    events: VecDeque<Event>,
    history: VecDeque<u64>,
}

impl View {
    /// Of a node of which nothing is known yet.
    pub fn new(node: &str) -> Self {
        Self {
            node: plain(node),
            ..Self::default()
        }
    }

    /// Whether enough has come for a frame that tells something.
    pub fn is_complete(&self) -> bool {
        self.status.is_some()
            && self.state.is_some()
            && self.llm.is_some()
            && self.queue.is_some()
            && self.host.is_some()
    }

    /// Takes a document; `rest` is its topic below the node. What is none is left out.
    pub fn hear(&mut self, rest: &str, payload: &[u8]) {
        if payload.len() > DOCUMENT_BYTES_MAX {
            return;
        }
        match rest {
            "status" => self.presence(payload),
            "info" => take(&mut self.info, payload),
            "state" => take(&mut self.state, payload),
            "tele/host" => take(&mut self.host, payload),
            "tele/gpu" => take(&mut self.gpu, payload),
            "tele/queue" => take(&mut self.queue, payload),
            "tele/llm" => {
                let before = self.llm.as_ref().map(|llm| llm.at_ms);
                take(&mut self.llm, payload);
                if let Some(llm) = self.llm.as_ref().filter(|llm| Some(llm.at_ms) != before) {
                    push(&mut self.history, llm.tok_s.max(0.0) as u64, HISTORY_MAX);
                }
            }
            "ota/state" => {
                self.update = serde_json::from_slice(payload)
                    .ok()
                    .map(|value| update(&value));
            }
            _ => {
                if let Some(kind) = rest.strip_prefix("evt/") {
                    self.event(kind, payload);
                }
            }
        }
    }

    fn presence(&mut self, payload: &[u8]) {
        let before = self.status.as_ref().map(|status| status.state);
        take(&mut self.status, payload);
        if let (Some(before), Some(now)) = (before, &self.status)
            && before != now.state
        {
            let event = Event {
                at_ms: now.since_ms,
                is_good: draw::word(&now.state) == "online",
                text: format!("the node is {}", draw::word(&now.state)),
            };
            push(&mut self.events, event, EVENTS_MAX);
        }
    }

    fn event(&mut self, kind: &str, payload: &[u8]) {
        let event = match kind {
            "switch" => serde_json::from_slice::<SwitchEvent>(payload)
                .ok()
                .map(|it| Event {
                    at_ms: it.at_ms,
                    is_good: it.served,
                    text: if it.served {
                        format!("{} serves: {}", it.model, it.reason)
                    } else {
                        format!("{} could not serve: {}", it.model, it.reason)
                    },
                }),
            "pressure" => serde_json::from_slice::<PressureEvent>(payload)
                .ok()
                .map(|it| Event {
                    at_ms: it.at_ms,
                    is_good: it.to < it.from,
                    text: format!(
                        "memory {} to {}: {}",
                        draw::word(&it.from),
                        draw::word(&it.to),
                        it.action
                    ),
                }),
            "ota" => step(payload),
            _ => None,
        };
        // An event of a later version is shown by its name.
        let event = event.or_else(|| {
            let value: Value = serde_json::from_slice(payload).ok()?;
            let told = ["state", "status", "reason", "message"]
                .iter()
                .find_map(|key| value.get(key)?.as_str());
            Some(Event {
                at_ms: value.get("at_ms").and_then(Value::as_u64).unwrap_or(0),
                is_good: true,
                text: format!("{kind} {}", told.unwrap_or_default()),
            })
        });
        if let Some(mut event) = event {
            event.text = plain(&event.text);
            push(&mut self.events, event, EVENTS_MAX);
        }
    }
}

fn take<T: DeserializeOwned>(place: &mut Option<T>, payload: &[u8]) {
    // An empty one means that it was cleared; one that cannot be read leaves what is known.
    if payload.is_empty() {
        *place = None;
    } else if let Ok(document) = serde_json::from_slice(payload) {
        *place = Some(document);
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, max: usize) {
    queue.push_back(item);
    while queue.len() > max {
        queue.pop_front();
    }
}

/// Without control characters, and not too long.
fn plain(text: &str) -> String {
    text.chars()
        .take(TEXT_MAX)
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key).and_then(Value::as_str).map(plain)
}

/// Line and number of a release, as `ota/state` and `evt/ota` have them.
fn release(value: &Value) -> Option<String> {
    let line = text(value, "line")?;
    Some(match value.get("release_seq").and_then(Value::as_u64) {
        Some(seq) => format!("{line} {seq}"),
        None => line,
    })
}

/// A step of an update.
fn step(payload: &[u8]) -> Option<Event> {
    let value: Value = serde_json::from_slice(payload).ok()?;
    let state = text(&value, "state")?;
    let release = release(&value).unwrap_or_default();
    let why = text(&value, "detail").or_else(|| text(&value, "reason"));
    Some(Event {
        at_ms: value.get("at_ms").and_then(Value::as_u64).unwrap_or(0),
        is_good: !is_bad(&state),
        text: match why {
            Some(why) => format!("{release} {}: {why}", state.replace('_', " ")),
            None => format!("{release} {}", state.replace('_', " ")),
        },
    })
}

fn update(value: &Value) -> Update {
    let text = |key: &str| text(value, key);
    let number = |key: &str| value.get(key).and_then(Value::as_f64);
    let fraction = match (number("bytes_done"), number("bytes_total")) {
        (Some(done), Some(total)) if total > 0.0 => Some((done / total).clamp(0.0, 1.0)),
        _ => None,
    };
    let installed = text("installed_version");
    let lines = value.get("lines").and_then(Value::as_array);
    let on_probation = |line: &Value| line.get("probation").and_then(Value::as_bool) == Some(true);
    let state = text("state").unwrap_or_default();
    Update {
        state: state.clone(),
        release: release(value),
        fraction,
        eta_seconds: value.get("eta_s").and_then(Value::as_u64),
        newer: text("latest_version").filter(|latest| Some(latest) != installed.as_ref()),
        installed,
        is_on_probation: lines.is_some_and(|lines| lines.iter().any(on_probation)),
        reason: (text("detail").or_else(|| text("reason")))
            // What a release showed is told by its event.
            .filter(|_| state != "committed")
            .or_else(|| text("check_detail"))
            .or_else(|| text("check_reason")),
    }
}
