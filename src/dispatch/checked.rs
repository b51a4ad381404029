//! What was found out around a load, in the words of the contract.

use crate::ledger::{Need, Refusal, Room};
use crate::wire::error::Code;
use crate::wire::report::Memory;
use crate::worker::{Cause, Checked, Down};

/// Why requests are refused instead of waiting.
#[derive(Debug, Clone)]
pub(super) struct NoModel {
    /// For `state` and for each requester.
    pub(super) reason: String,
    /// `out_of_memory` while others hold what the model needs, otherwise `no_model`.
    pub(super) code: Code,
    /// When the model is tried again.
    pub(super) retry_ms: u64,
}

/// Sooner than this no requester is told to come back.
const RETRY_MS_MIN: u64 = 1000;
/// Where a person has to do something, they are told to come back after this time at the earliest.
const RETRY_MS_BY_HAND: u64 = 10_000;

impl NoModel {
    /// The board waits for its first model.
    pub(super) fn not_yet(reason: String) -> Self {
        Self {
            reason,
            code: Code::NoModel,
            retry_ms: RETRY_MS_BY_HAND,
        }
    }

    pub(super) fn new(down: &Down, reason: String) -> Self {
        let retry_ms = u64::try_from(down.retry_in.as_millis()).unwrap_or(u64::MAX);
        match &down.cause {
            Cause::NoRoom(refusal) if refusal.may_fit_later() => Self {
                reason,
                code: Code::OutOfMemory,
                retry_ms: retry_ms.max(RETRY_MS_MIN),
            },
            _ => Self {
                reason,
                code: Code::NoModel,
                retry_ms: retry_ms.max(RETRY_MS_BY_HAND),
            },
        }
    }
}

/// After a load.
pub(super) fn memory(checked: &Checked) -> Memory {
    let comparison = &checked.comparison;
    Memory {
        taken_bytes: Some(comparison.taken.total_bytes()),
        difference_bytes: Some(comparison.difference_bytes()),
        available_after_bytes: Some(checked.available_after_bytes),
        ..planned(&comparison.planned, &checked.room)
    }
}

/// Instead of one.
pub(super) fn memory_refused(refusal: &Refusal) -> Memory {
    planned(&refusal.need, &refusal.room)
}

fn planned(need: &Need, room: &Room) -> Memory {
    Memory {
        planned_bytes: need.total_bytes(),
        weights_bytes: need.weights_bytes,
        kv_bytes: need.kv_bytes,
        compute_bytes: need.compute_bytes,
        gpu_context_bytes: need.gpu_context_bytes,
        process_bytes: need.process_bytes,
        available_bytes: room.available_bytes,
        reserve_bytes: room.reserve_bytes,
        ..Memory::default()
    }
}
