//! The durable job store: what was promised with `accepted` survives a power cut.
//!
//! It owns one redb database, `jobs.redb`, and the std thread `store` that alone touches it. The
//! dispatcher calls it through [`Store`]; it knows nothing of MQTT beyond bytes and strings, starts
//! no job, publishes nothing, and never logs a prompt or an answer.
//!
//! ```text
//!             accept                    finish                delivered, then sweep; forget
//!   (nothing) ------> pending (attempt) ------> final (undelivered) -----> (nothing)
//!                       |      ^
//!                       +------+ every open, and bump_attempt: attempt + 1
//! ```
//!
//! **Group commit.** Operations wait in a bounded channel. The thread takes all that wait, applies
//! them in one transaction with one fsync, and then answers each caller. An operation refused by a
//! rule (store full, unknown job) does not disturb the others.
//!
//! **Tables** (format 1). Rows are postcard; `order` is the order of acceptance.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | u64: `format`; `run`, which rises with every open; `batch`, with every transaction |
//! | `jobs` | (user, id) | order, digest, attempt, state, time and run of its last change, bytes charged |
//! | `bodies` | order | a pending job: its name, op, body and what its answer needs |
//! | `beside` | order | of a pending job: what its requester said beside the body; not of all |
//! | `bound` | order | of a pending job: the model that it waits for; not of all |
//! | `finals` | order | a finished job: its messages, byte for byte |
//! | `sessions`, `turns` | (user, name) | a conversation: when it was last gone on with; what is kept of it |
//!
//! A file of a newer format is refused and left as it is. A damaged file is moved aside as
//! `jobs.redb.corrupt-<unix seconds>` (the newest two are kept) and a new one is begun, because nobody
//! is at the board to do it; [`Recovered::set_aside`] tells. The checksums of the whole file are
//! verified at every open, because it is never closed "cleanly": each start goes the way of a start
//! after a power cut.
//!
//! **Faults.** When a transaction fails, the database is reopened on the store thread: accepts of that
//! transaction are answered with the error and taken back should they have reached the disk; everything
//! else is tried once more, unless it is found to have happened. While the disk stays full, accepts are refused with [`Full`] and the next
//! operation tries again. Accepts are refused early enough that the finals of accepted jobs find room.
//! Two limits remain: between the answer to a failed accept and the next successful transaction, a
//! power cut may bring that job back as pending; and after a failed fsync Linux does not say which
//! pages reached the disk.
//!
//! **Time.** Ages are counted inside one run, from the later of the event and the open: a board without
//! a clock that starts in 1970 and later learns the date loses nothing. Callers pass Unix milliseconds
//! that do not jump within a run (the wall clock at the start plus the monotonic time since).

mod database;
mod disk;
mod error;
mod journal;
mod rows;
mod sessions;
mod tables;
mod worker;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use error::{Full, StoreError};

use disk::{FileDisk, Meter};
use journal::{Answer, Journal, Op};
use worker::Message;

/// Attempt number of a job that was never interrupted.
pub const FIRST_ATTEMPT: u32 = 1;

/// Operations that may wait for the store thread; a further caller waits for its turn to queue.
const WAITING_MAX: usize = 256;

/// Names one job. The caller has validated both parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobId {
    /// The authenticated user.
    pub user: String,
    /// The request id, unique for the user while the store remembers it.
    pub id: String,
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.id)
    }
}

/// A request as it was accepted: enough to run and answer it after a restart.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub job: JobId,
    /// Operation, as in the topic.
    pub op: String,
    /// SHA-256 of operation and body.
    pub digest: [u8; 32],
    /// The body as it arrived.
    pub body: Bytes,
    /// MQTT 5 Response Topic, already allowed.
    pub response_topic: Option<String>,
    /// MQTT 5 Correlation Data.
    pub correlation: Option<Bytes>,
    /// Form of answer that was asked for.
    pub accept: Option<String>,
    /// What else its requester said beside the body; kept as it is.
    pub beside: Option<Bytes>,
    /// The model that it waits for; `None`: whichever serves where nobody names one.
    pub model: Option<String>,
    /// Unix milliseconds.
    pub accepted_at_ms: u64,
}

impl fmt::Debug for Record {
    /// Without the body: a record may end up in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("job", &self.job)
            .field("op", &self.op)
            .field("body_bytes", &self.body.len())
            .field("accepted_at_ms", &self.accepted_at_ms)
            .finish_non_exhaustive()
    }
}

/// An accepted job without a final, found at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The request.
    pub record: Record,
    /// Rises with every accepted job.
    pub order: u64,
    /// Which attempt now begins; already committed.
    pub attempt: u32,
}

/// What must be published, and published again, to end a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Final {
    /// In the order of publishing.
    pub messages: Vec<FinalMessage>,
    /// Whatever the caller needs to say again what came before them; kept as it is.
    pub replay: Bytes,
    /// Unix milliseconds.
    pub finished_at_ms: u64,
    /// Whether the broker has taken all messages.
    pub delivered: bool,
}

/// One message of a [`Final`].
#[derive(Clone, PartialEq, Eq)]
pub struct FinalMessage {
    /// Where to.
    pub topic: String,
    /// The payload, byte for byte.
    pub payload: Bytes,
    /// MQTT 5 Content Type.
    pub content_type: Option<String>,
    /// MQTT 5 Correlation Data.
    pub correlation: Option<Bytes>,
    /// MQTT 5 user properties, in order.
    pub user: Vec<(String, String)>,
}

impl fmt::Debug for FinalMessage {
    /// Without the payload: an answer may end up in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FinalMessage")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// Names a conversation of one user. The caller has validated both parts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The authenticated user.
    pub user: String,
    /// As the user calls it.
    pub name: String,
}

/// What is kept of a conversation.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// As its user calls it.
    pub name: String,
    /// The caller's; kept as they are.
    pub bytes: Bytes,
}

impl Kept {
    fn session_of(&self, user: &str) -> SessionId {
        SessionId {
            user: user.to_owned(),
            name: self.name.clone(),
        }
    }
}

impl fmt::Debug for Kept {
    /// Without the bytes: a conversation may end up in a log line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("name", &self.name)
            .field("bytes", &self.bytes.len())
            .finish()
    }
}

/// What may be kept of conversations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionBounds {
    /// Conversations of one user; 0: none is kept.
    pub per_user_max: u64,
    /// Bytes of all together, 512 a conversation charged for its rows.
    pub total_bytes_max: u64,
    /// How long one may rest before it is forgotten.
    pub idle_max: Duration,
}

/// What the store knows of a job, without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub job: JobId,
    /// SHA-256 of operation and body.
    pub digest: [u8; 32],
    /// Attempts begun.
    pub attempt: u32,
    /// Where it stands.
    pub state: JobState,
}

/// Where a stored job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Accepted, not ended.
    Pending,
    /// Ended.
    Finished {
        /// Unix milliseconds.
        at_ms: u64,
        /// Whether the broker has taken all messages.
        delivered: bool,
    },
}

/// What [`open`] found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Jobs to run again, in order of acceptance.
    pub pending: Vec<Pending>,
    /// Jobs that have ended and are remembered, in order of acceptance; undelivered ones are to be
    /// published again, from [`Store::final_of`].
    pub finals: Vec<Known>,
    /// Where a damaged file was moved, and what was wrong with it. Its jobs are lost to the daemon.
    pub set_aside: Option<SetAside>,
}

/// A damaged database that was moved out of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its new name.
    pub path: PathBuf,
    /// What was wrong.
    pub reason: String,
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Delivered finals deleted after [`StoreConfig::retention`].
    pub delivered: u64,
    /// Undelivered finals deleted after [`StoreConfig::undelivered_max`].
    pub undelivered: u64,
    /// Pending jobs older than [`StoreConfig::pending_max`], in order of name. They are not deleted:
    /// each accepted job ends with a final, so the caller finishes them with an error.
    pub overdue: Vec<JobId>,
}

/// Where the store lives and what it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// Directory of `jobs.redb`; made with mode 0700 when missing.
    pub dir: PathBuf,
    /// Memory for redb's page cache, in bytes (default 2 MiB).
    pub cache_bytes: usize,
    /// Most pending jobs (default 4096).
    pub pending_jobs_max: u64,
    /// Most bytes of pending jobs, 512 a job charged for its rows (default 32 MiB).
    pub pending_bytes_max: u64,
    /// Bytes of finals, 512 a job charged for its rows, above which the oldest delivered ones are
    /// deleted; accepts are refused when undelivered ones alone reach it (default 32 MiB).
    pub final_bytes_max: u64,
    /// Length above which the file does not grow to take jobs, in bytes (default 512 MiB). redb grows a
    /// file by doubling and copies on write, so it is far above the two bounds before. Finals of
    /// accepted jobs may exceed it.
    pub file_bytes_max: u64,
    /// Free bytes of the filesystem below which no job is accepted, so that finals of accepted jobs
    /// can still be written (default 64 MiB).
    pub reserve_bytes: u64,
    /// How long a delivered final is remembered (default 10 min).
    pub retention: Duration,
    /// How long an undelivered final is kept (default 24 h).
    pub undelivered_max: Duration,
    /// Age at which a sweep reports a pending job as overdue (default 24 h).
    pub pending_max: Duration,
    /// How long accepts are refused without touching the disk after it was full (default 1 s).
    pub full_retry: Duration,
    /// Conversations (default: 16 a user, 8 MiB, a day).
    pub sessions: SessionBounds,
}

impl StoreConfig {
    /// The defaults, in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        const MIB: u64 = 1 << 20;
        StoreConfig {
            dir: dir.into(),
            cache_bytes: 2 * MIB as usize,
            pending_jobs_max: 4096,
            pending_bytes_max: 32 * MIB,
            final_bytes_max: 32 * MIB,
            file_bytes_max: 512 * MIB,
            reserve_bytes: 64 * MIB,
            retention: Duration::from_secs(600),
            undelivered_max: Duration::from_secs(24 * 3600),
            pending_max: Duration::from_secs(24 * 3600),
            full_retry: Duration::from_secs(1),
            sessions: SessionBounds {
                per_user_max: 16,
                total_bytes_max: 8 * MIB,
                idle_max: Duration::from_secs(24 * 3600),
            },
        }
    }
}

/// Where the store's time went, since the open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreTimings {
    /// Transactions committed.
    pub commits: u64,
    /// fsyncs, a growing file's included.
    pub syncs: u64,
    /// Time inside fsync.
    pub sync: Duration,
    /// Time inside transactions, fsync included.
    pub total: Duration,
}

/// Opens the store, recovers what it holds and starts its thread. Blocks on the disk.
///
/// `now_ms`: Unix milliseconds. Each pending job's attempt is raised by one, durably, before it is
/// returned. Errors: [`StoreError::InUse`] when another daemon has the file, [`StoreError::NewerFormat`],
/// [`StoreError::Disk`] when the directory cannot be used.
pub fn open(config: StoreConfig, now_ms: u64) -> Result<(Store, Recovered), StoreError> {
    let disk = FileDisk::new(config.dir.clone(), config.file_bytes_max);
    let (journal, recovered) = Journal::open(Box::new(disk), config, now_ms)?;
    let meter = journal.meter();
    // When the channel is full, callers wait in `send`.
    let (commands, waiting) = mpsc::channel(WAITING_MAX);
    std::thread::Builder::new()
        .name("store".into())
        .spawn(move || worker::run(journal, waiting, WAITING_MAX))
        .map_err(|e| StoreError::disk("start the store thread", e))?;
    Ok((Store { commands, meter }, recovered))
}

/// Handle to the store thread. The thread ends, and the file is closed, with [`Store::close`] or with
/// the last handle.
///
/// Dropping one of these futures does not take the operation back.
#[derive(Debug, Clone)]
pub struct Store {
    commands: mpsc::Sender<Message>,
    meter: Arc<Meter>,
}

impl Store {
    /// Stores a request; durable when it returns. Returns its order of acceptance.
    ///
    /// Errors: [`StoreError::Exists`] with what is known, [`StoreError::Full`] (answer 507, the
    /// requester may repeat), [`StoreError::Disk`]. With an error the job is not accepted.
    pub async fn accept(&self, record: Record) -> Result<u64, StoreError> {
        match self.ask(Op::Accept(record)).await? {
            Answer::Order(order) => Ok(order),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// Stores the end of a pending job and drops its body; durable when it returns.
    ///
    /// May be repeated with the same messages. Bounds never refuse it, only a failing disk does:
    /// then repeat it. Errors: [`StoreError::Unknown`], [`StoreError::AlreadyFinished`].
    pub async fn finish(&self, job: JobId, end: Final) -> Result<(), StoreError> {
        self.ask(Op::Finish(job, end)).await.map(drop)
    }

    /// As [`Store::finish`], and keeps what its conversation goes on with: both or neither.
    pub async fn finish_keeping(
        &self,
        job: JobId,
        end: Final,
        kept: Kept,
    ) -> Result<(), StoreError> {
        let op = Op::FinishKeeping(job, end, kept);
        self.ask(op).await.map(drop)
    }

    /// What is kept of a conversation; nothing when it is unknown or rested too long. `now_ms` is from the same
    /// clock as in [`open`].
    pub async fn kept(&self, session: SessionId, now_ms: u64) -> Result<Option<Bytes>, StoreError> {
        match self.ask(Op::Kept(session, now_ms)).await? {
            Answer::Kept(kept) => Ok(kept),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// Forgets a conversation, known or not; durable when it returns.
    pub async fn forget_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.ask(Op::ForgetSession(session)).await.map(drop)
    }

    /// Notes that the broker has taken all messages of the final.
    ///
    /// Errors: [`StoreError::Unknown`], [`StoreError::NotFinished`].
    pub async fn delivered(&self, job: JobId) -> Result<(), StoreError> {
        self.ask(Op::Delivered(job)).await.map(drop)
    }

    /// Deletes a finished job before its time, so that its name is free again.
    ///
    /// Errors: [`StoreError::Unknown`], [`StoreError::NotFinished`].
    pub async fn forget(&self, job: JobId) -> Result<(), StoreError> {
        self.ask(Op::Forget(job)).await.map(drop)
    }

    /// Raises the attempt of a pending job that starts again from its prompt; returns the new one.
    ///
    /// Errors: [`StoreError::Unknown`], [`StoreError::AlreadyFinished`].
    pub async fn bump_attempt(&self, job: JobId) -> Result<u32, StoreError> {
        match self.ask(Op::BumpAttempt(job)).await? {
            Answer::Attempt(attempt) => Ok(attempt),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// The final of a job, or nothing when the job is unknown or pending.
    pub async fn final_of(&self, job: &JobId) -> Result<Option<Final>, StoreError> {
        match self.ask(Op::FinalOf(job.clone())).await? {
            Answer::Final(end) => Ok(end),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// What is known of a job.
    pub async fn lookup(&self, job: &JobId) -> Result<Option<Known>, StoreError> {
        match self.ask(Op::Lookup(job.clone())).await? {
            Answer::Known(known) => Ok(known),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// Deletes what is no longer to be remembered and reports overdue jobs. To be called every few
    /// seconds; `now_ms` is from the same clock as in [`open`].
    pub async fn sweep(&self, now_ms: u64) -> Result<Swept, StoreError> {
        match self.ask(Op::Sweep(now_ms)).await? {
            Answer::Swept(swept) => Ok(swept),
            other => unreachable!("answer of another operation: {other:?}"),
        }
    }

    /// Where the time went so far.
    pub fn timings(&self) -> StoreTimings {
        self.meter.timings()
    }

    /// Finishes what waits and closes the file cleanly. Later calls on other handles fail with
    /// [`StoreError::Closed`].
    pub async fn close(self) {
        let (reply, closed) = oneshot::channel();
        if self.commands.send(Message::Close(reply)).await.is_ok() {
            // An error means that the thread has ended already.
            let _ = closed.await;
        }
    }

    async fn ask(&self, op: Op) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Message::Do { op, reply })
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}
