//! Numbers that a node publishes every few seconds on `{r}/v1/{n}/tele/{host,gpu,llm,queue}`, retained.
//!
//! The unit stands in the key. What a board does not have is absent, never zero.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `tele/host`: the board.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeleHost {
    /// When it was read, unix milliseconds.
    pub at_ms: u64,
    /// MemTotal, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// MemAvailable, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// Swap in use, bytes; absent on a board without swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap_used_bytes: Option<u64>,
    /// Free contiguous memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cma_free_bytes: Option<u64>,
    /// Percent of the last ten seconds in which some task waited for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_stall_some_percent: Option<f32>,
    /// Percent of the last ten seconds in which all tasks waited for memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_stall_full_percent: Option<f32>,
    /// Memory of the supervisor, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supervisor_rss_bytes: Option<u64>,
    /// Name of the power mode whose clocks are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_mode: Option<String>,
    /// Degrees Celsius by thermal zone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub temperatures_c: BTreeMap<String, f32>,
    /// Milliwatts by power rail.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rails_mw: BTreeMap<String, i64>,
    /// Milliwatts of the whole module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module_mw: Option<i64>,
    /// Steps by which each cooling device slows the board down; those at 0 are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cooling_steps: BTreeMap<String, u64>,
    /// Events of over-current since boot by kind: under_voltage, average, instantaneous.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub over_current_count: BTreeMap<String, u64>,
    /// Revolutions of the fan a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fan_rpm: Option<u32>,
}

/// `tele/gpu`: the integrated GPU; not published where there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeleGpu {
    /// When it was read, unix milliseconds.
    pub at_ms: u64,
    /// Load, percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_percent: Option<f32>,
    /// Clock, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_mhz: Option<u64>,
    /// Highest clock allowed in this power mode, MHz.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_max_mhz: Option<u64>,
}

/// Three quantiles of a time, milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct QuantilesMs {
    /// Half of them are below this.
    pub p50: f64,
    /// 95 of 100 are.
    pub p95: f64,
    /// 99 of 100 are.
    pub p99: f64,
}

/// `tele/llm`: the model and its streams, since the telemetry before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeleLlm {
    /// When it was counted, unix milliseconds.
    pub at_ms: u64,
    /// The model that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Streams in the engine now, a count.
    pub streams_count: u64,
    /// Tokens made a second, all streams together.
    pub tok_s: f64,
    /// Tokens made since the daemon started, a count.
    pub tokens_count: u64,
    /// Prompt tokens read since the daemon started, a count.
    pub prompt_tokens_count: u64,
    /// Of those, found in the KV cache, a count.
    pub cached_tokens_count: u64,
    /// Tokens that were guessed and read along since the daemon started, a count; absent where none were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guessed_tokens_count: Option<u64>,
    /// Of those, chosen: each spared a step; a count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guessed_right_count: Option<u64>,
    /// Saved states on disk, of the model that serves, a count; absent where none are saved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_states_count: Option<u64>,
    /// What they take there, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_states_bytes: Option<u64>,
    /// Written for them since the daemon started, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_written_bytes: Option<u64>,
    /// Prompt tokens that came from disk since the daemon started, a count; they are among those found in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved_restored_tokens_count: Option<u64>,
    /// From acceptance to the first token, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<QuantilesMs>,
    /// Between two steps that gave a stream tokens, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub itl_ms: Option<QuantilesMs>,
    /// Millijoules that the module took a token, while tokens were made; absent without rails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy_mj_tok: Option<f64>,
    /// Times that another model had its turn than before, since the daemon started, a count; absent where none are
    /// loaded in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns_count: Option<u64>,
    /// Engines that ended without being told to, since the daemon started, a count.
    pub engine_deaths_count: u64,
}

/// `tele/queue`: requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeleQueue {
    /// When it was counted, unix milliseconds.
    pub at_ms: u64,
    /// Accepted requests that wait, a count.
    pub waiting_count: u64,
    /// Accepted requests in the engine, a count.
    pub running_count: u64,
    /// Bytes of the bodies of all of them.
    pub body_bytes: u64,
    /// How long the oldest that waits has waited, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_wait_ms: Option<u64>,
    /// Requests accepted since the daemon started, a count.
    pub accepted_count: u64,
    /// Requests refused since the daemon started, a count.
    pub refused_count: u64,
    /// Requests that ended with an answer since the daemon started, a count.
    pub answered_count: u64,
    /// Accepted requests that ended with an error since the daemon started, a count.
    pub failed_count: u64,
    /// Times that a stream made room for an alarm, or for want of room, since the daemon started, a count; from a
    /// node of 1.1 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parked_count: Option<u64>,
    /// By class: alarm, normal, batch; from a node of 1.1 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<BTreeMap<String, TeleClass>>,
}

/// Requests of one class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TeleClass {
    /// Requests that wait, a count.
    pub waiting_count: u64,
    /// Requests in the engine, a count.
    pub running_count: u64,
    /// From acceptance to the first entry into the engine, of those that entered since the telemetry before,
    /// milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<QuantilesMs>,
}
