//! Events that nobody has confirmed yet, kept over restarts: a device is offline for months, and what it did
//! meanwhile is told when the broker is back.
//!
//! ```text
//! ota/events.json     the last events without a confirmation, replaced whole
//! ```

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::report::Event;
use crate::ota::vfs::{Vfs, replace};

/// Most events that are kept: what some twenty deployments tell. The oldest go first.
const EVENTS_MAX: usize = 256;
/// Longest file, bytes.
const BYTES_MAX: u64 = 1 << 20;

/// The events, and where they are.
pub(super) struct Unsent {
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    kept: Kept,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// Of the event before.
    seq: u64,
    events: VecDeque<Event>,
}

impl Unsent {
    /// Those of earlier lives. A file that cannot be used costs them, and nothing else.
    pub(super) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Self {
        let path = dir.join("events.json");
        let kept = match vfs.read(&path, BYTES_MAX) {
            Ok(None) => Kept::default(),
            Ok(Some(bytes)) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(%error, "events that nobody heard are lost");
                Kept::default()
            }),
            Err(error) => {
                warn!(%error, "events that nobody heard are lost");
                Kept::default()
            }
        };
        Self { vfs, path, kept }
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Event> {
        self.kept.events.iter().cloned().collect()
    }

    /// Numbers these and keeps them.
    pub(super) fn keep(&mut self, events: &mut [Event]) {
        if events.is_empty() {
            return;
        }
        for event in events {
            self.kept.seq += 1;
            event.event_seq = Some(self.kept.seq);
            self.kept.events.push_back(event.clone());
        }
        let n_over = self.kept.events.len().saturating_sub(EVENTS_MAX);
        if n_over > 0 {
            warn!(n_over, "the oldest events that nobody heard go");
            self.kept.events.drain(..n_over);
        }
        self.write();
    }

    /// The broker has it.
    pub(super) fn heard(&mut self, event_seq: u64) {
        let before = self.kept.events.len();
        self.kept
            .events
            .retain(|event| event.event_seq != Some(event_seq));
        if self.kept.events.len() != before {
            self.write();
        }
    }

    /// One that cannot be written is told in this life only.
    fn write(&self) {
        let json = serde_json::to_vec(&self.kept).expect("events have text keys only");
        if let Err(error) = replace(&*self.vfs, &self.path, &json) {
            warn!(%error, "events cannot be kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ota::state::Phase;
    use crate::ota::vfs::{Keeps, Unsynced};

    fn event() -> Event {
        Event {
            deployment: "d".into(),
            line: "assistant".into(),
            release_seq: Some(1),
            state: Phase::Committed,
            reason: None,
            detail: None,
            at_ms: 0,
            event_seq: None,
        }
    }

    fn open(disk: &Unsynced) -> Unsent {
        Unsent::open(Arc::new(disk.clone()), Path::new("/ota"))
    }

    fn seqs(unsent: &Unsent) -> Vec<u64> {
        let all = unsent.all();
        all.iter().filter_map(|event| event.event_seq).collect()
    }

    #[test]
    fn what_nobody_confirmed_is_there_after_a_power_cut_under_its_number() {
        let disk = Unsynced::new();
        disk.make_dir(Path::new("/ota")).unwrap();
        let mut unsent = open(&disk);
        unsent.keep(&mut [event(), event(), event()]);
        unsent.heard(2);
        let disk = disk.cut(Keeps::Synced);
        let mut unsent = open(&disk);
        assert_eq!(seqs(&unsent), [1, 3]);
        unsent.keep(&mut [event()]);
        assert_eq!(seqs(&unsent), [1, 3, 4]);
    }

    #[test]
    fn years_without_a_broker_cost_the_oldest_events_only() {
        let disk = Unsynced::new();
        disk.make_dir(Path::new("/ota")).unwrap();
        let mut unsent = open(&disk);
        for _ in 0..EVENTS_MAX + 10 {
            unsent.keep(&mut [event()]);
        }
        let seqs = seqs(&unsent);
        assert_eq!((seqs.len(), seqs[0]), (EVENTS_MAX, 11));
    }

    #[test]
    fn a_damaged_file_is_no_reason_not_to_start() {
        let disk = Unsynced::new();
        disk.make_dir(Path::new("/ota")).unwrap();
        replace(&disk, Path::new("/ota/events.json"), b"{").unwrap();
        assert!(open(&disk).all().is_empty());
    }
}
