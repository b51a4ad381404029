//! Tests of the journal on a disk whose power can be cut at any write, against a model of what it
//! promises, and of the store as a whole on real files.

mod faults;
mod faulty_disk;
mod files;
mod model;
mod rules;
mod sessions;

use bytes::Bytes;

use super::*;

pub(super) const NOW: u64 = 1_800_000_000_000;

pub(super) fn job(id: &str) -> JobId {
    JobId {
        user: "anna".into(),
        id: id.into(),
    }
}

pub(super) fn record(id: &str, body_bytes: usize) -> Record {
    // Every field is in use, and the body differs between jobs.
    Record {
        job: job(id),
        op: "chat".into(),
        digest: [id.bytes().last().unwrap_or(0); 32],
        body: id
            .bytes()
            .cycle()
            .take(body_bytes)
            .collect::<Vec<u8>>()
            .into(),
        response_topic: Some(format!("orinoco/v1/resp/anna/{id}")),
        correlation: Some(Bytes::from_static(b"\0\xff")),
        accept: Some("text/plain".into()),
        beside: Some(Bytes::from_static(b"{}")),
        model: Some("coder".into()),
        accepted_at_ms: NOW,
    }
}

pub(super) fn end(id: &str, payload_bytes: usize, at_ms: u64) -> Final {
    Final {
        replay: Bytes::from_static(b"replay"),
        messages: vec![FinalMessage {
            topic: format!("orinoco/v1/resp/anna/{id}"),
            payload: id
                .bytes()
                .rev()
                .cycle()
                .take(payload_bytes)
                .collect::<Vec<u8>>()
                .into(),
            content_type: Some("application/json".into()),
            correlation: Some(Bytes::from_static(b"\0\xff")),
            user: vec![
                ("final".into(), "1".into()),
                ("final".into(), "again".into()),
            ],
        }],
        finished_at_ms: at_ms,
        delivered: false,
    }
}

/// Small bounds, no waiting, for the faulty disk.
pub(super) fn config() -> StoreConfig {
    StoreConfig {
        pending_jobs_max: 6,
        pending_bytes_max: 40_000,
        final_bytes_max: 30_000,
        file_bytes_max: 64 << 20,
        reserve_bytes: 1000,
        full_retry: Duration::ZERO,
        ..StoreConfig::new("/nowhere")
    }
}
