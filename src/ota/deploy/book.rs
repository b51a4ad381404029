//! The record on the disk: one small file, replaced whole, and a journal of what happened.
//!
//! ```text
//! ota/state.json        the record
//! ota/events.json      events that nobody has confirmed
//! ota/journal.jsonl     one line for each step; the last lines also say what is on the device
//! ota/journal.1.jsonl   the half megabyte before it
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tracing::{error, warn};

use super::report::{Event, word};
use super::unsent::Unsent;
use super::{Taken, Told};
use crate::ota::probe::No;
use crate::ota::reason::Reason;
use crate::ota::state::{Origin, Phase, Record, Release, SCHEMA};
use crate::ota::vfs::{Vfs, replace};

/// Longest state file: 64 lines with two releases each are far below.
const STATE_BYTES_MAX: u64 = 1 << 20;
/// A journal of this length gives way to a new one.
const JOURNAL_BYTES_MAX: u64 = 512 << 10;

/// The record, and where it is.
pub struct Book {
    /// As it is now; on the disk after [`Book::save`].
    pub record: Record,
    saved: Record,
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    events: Vec<Event>,
    /// Why it could not be written last.
    unwritten: Option<std::io::Error>,
    unsent: Unsent,
}

/// What was found on the disk.
pub enum Opened {
    /// The record, with what the restart means for it done and written.
    Ready(Box<Book>),
    /// It was written by a newer version: nothing is changed, and there are no updates.
    Newer {
        /// Its schema.
        schema: u32,
        /// What can be read of it: what is on the device.
        record: Box<Record>,
    },
}

#[derive(Deserialize)]
struct Head {
    schema: u32,
}

/// One line of the journal.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    event: Event,
    /// What was on the device after it.
    record: Option<Record>,
}

/// Reads the record and does what a start of the daemon means for it, before any model is chosen: a release
/// that takes the daemon down again and again is taken back here, if the one before it is intact.
pub fn open(
    vfs: Arc<dyn Vfs>,
    dir: &Path,
    now_s: u64,
    is_intact: &dyn Fn(&Release) -> bool,
) -> Opened {
    let path = dir.join("state.json");
    if let Err(error) = vfs.make_dir(dir) {
        error!(%error, dir = %dir.display(), "no folder for updates");
    }
    let record = match vfs.read(&path, STATE_BYTES_MAX) {
        Ok(None) => Record::default(),
        Ok(Some(bytes)) => match serde_json::from_slice::<Head>(&bytes) {
            Ok(Head { schema }) if schema > SCHEMA => {
                let record = serde_json::from_slice(&bytes).unwrap_or_default();
                error!(schema, known = SCHEMA, "updates are off: a newer Orinoco has written their state");
                return Opened::Newer {
                    schema,
                    record: Box::new(record),
                };
            }
            _ => serde_json::from_slice(&bytes).unwrap_or_else(|why| {
                error!(%why, path = %path.display(), "the state of updates is damaged; the journal is asked");
                from_journal(&*vfs, dir)
            }),
        },
        Err(why) => {
            error!(%why, path = %path.display(), "the state of updates cannot be read; the journal is asked");
            from_journal(&*vfs, dir)
        }
    };
    let unsent = Unsent::open(Arc::clone(&vfs), dir);
    let mut book = Book {
        saved: record.clone(),
        record,
        vfs,
        dir: dir.to_owned(),
        events: unsent.all(),
        unsent,
        unwritten: None,
    };
    let is_watched = book.record.probation.is_some() || book.record.policies.n_starts.is_some();
    let needs_save = book.record.deployment.is_some() || is_watched;
    book.record.restarted();
    book.record.started();
    if let Some(now) = &book.record.deployment
        && matches!(
            now.want.origin,
            Origin::Rollback {
                reason: Some(Reason::CrashLoop)
            }
        )
        && book.record.previous(&now.want.line).is_some_and(is_intact)
    {
        book.record.rolled_back();
    }
    if needs_save {
        // One that cannot be written is what it was; the engine tries again.
        book.save(0, now_s);
    }
    Opened::Ready(Box::new(book))
}

/// What was on the device when the journal last said so. Nothing, where that is lost too.
fn from_journal(vfs: &dyn Vfs, dir: &Path) -> Record {
    for name in ["journal.jsonl", "journal.1.jsonl"] {
        let Ok(Some(bytes)) = vfs.read(&dir.join(name), 2 * JOURNAL_BYTES_MAX) else {
            continue;
        };
        let lines = bytes.split(|byte| *byte == b'\n').rev();
        let mut records =
            lines.filter_map(|line| serde_json::from_slice::<Entry>(line).ok()?.record);
        if let Some(record) = records.next() {
            return Record {
                deployment: None,
                queued: None,
                ..record
            };
        }
    }
    Record::default()
}

impl Book {
    /// Has the record on the disk; notes a step in the journal. False: it could not be written, and the record
    /// is again what was written last.
    pub fn save(&mut self, bytes: u64, now_s: u64) -> bool {
        if self.record == self.saved && self.record.deployment.is_none() {
            return true;
        }
        self.record.saving(bytes);
        let json = serde_json::to_vec(&self.record).expect("maps have text keys only");
        let phase = word(&self.record.told_phase());
        self.vfs.reached(&format!("state:{phase}:before"));
        if let Err(why) = replace(&*self.vfs, &self.dir.join("state.json"), &json) {
            warn!(%why, "the state of updates cannot be written");
            self.record = self.saved.clone();
            self.unwritten = Some(why);
            return false;
        }
        self.vfs.reached(&format!("state:{phase}:after"));
        let mut events = Event::between(&self.saved, &self.record, now_s);
        self.unsent.keep(&mut events);
        self.saved = self.record.clone();
        for event in events {
            self.note(&event);
            self.events.push(event);
        }
        true
    }

    /// Why a step is not taken that could not be written down.
    pub(super) fn unwritten(&self) -> No {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        let Some(why) = &self.unwritten else {
            return No {
                reason: Reason::DeviceError,
                detail: "a phase that no step leads to".to_owned(),
            };
        };
        No {
            reason: match why.kind() {
                StorageFull | QuotaExceeded => Reason::NoSpace,
                _ => Reason::DeviceError,
            },
            detail: format!("that it works could not be written down: {why}"),
        }
    }

    /// What happened since it was last asked; at first also what nobody confirmed in earlier lives.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The broker has that event.
    pub fn heard(&mut self, event_seq: u64) {
        self.unsent.heard(event_seq);
    }

    /// A journal that cannot be written costs history, and nothing else.
    fn note(&self, event: &Event) {
        let is_over = event.state.is_over();
        let entry = Entry {
            record: (is_over || event.state == Phase::Checking).then(|| self.record.clone()),
            event: event.clone(),
        };
        let mut line = serde_json::to_vec(&entry).expect("maps have text keys only");
        line.push(b'\n');
        let path = self.dir.join("journal.jsonl");
        let noted = self.turn_over(&path).and_then(|()| {
            self.vfs.append(&path, &line)?;
            self.vfs.reached("journal:written");
            match is_over {
                true => self.vfs.sync(&path),
                false => Ok(()),
            }
        });
        if let Err(why) = noted {
            warn!(%why, "the journal of updates cannot be written");
        }
    }

    fn turn_over(&self, path: &Path) -> std::io::Result<()> {
        let files = self.vfs.list(&self.dir)?;
        let is_full = |(file, bytes): &(PathBuf, u64)| file == path && *bytes > JOURNAL_BYTES_MAX;
        match files.iter().any(is_full) {
            true => self.vfs.rename(path, &self.dir.join("journal.1.jsonl")),
            false => Ok(()),
        }
    }

    /// Tells what became of a command.
    pub(super) async fn answer(
        &self,
        told: &mpsc::Sender<Told>,
        ticket: Option<String>,
        outcome: Taken,
    ) {
        if let Err(why) = &outcome {
            warn!(why, "order about updates refused");
        }
        if let Some(ticket) = ticket {
            // The dispatcher's end is the daemon's.
            let _ = told.send(Told::Answer { ticket, outcome }).await;
        }
    }
}
