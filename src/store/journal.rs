//! The store without its thread: one database, batches of operations, and what to do when it fails.
//!
//! A failed commit may have happened or not. Each transaction therefore writes its number (`batch` in
//! `meta`), and after reopening the number tells: what was committed is not applied twice.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use redb::{Database, WriteTransaction};
use tracing::{error, info, warn};

use super::database::{Opened, Refusal, begin, damage};
use super::disk::{Disk, Meter};
use super::tables::{FORMAT, Numbers, Rules, Tables, Totals};
use super::{
    Final, Full, JobId, JobState, Kept, Known, Pending, Record, Recovered, SessionId, SetAside,
    StoreConfig, StoreError, Swept,
};

/// One operation.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Accept(Record),
    Finish(JobId, Final),
    /// With what is kept of the conversation that it is part of.
    FinishKeeping(JobId, Final, Kept),
    Delivered(JobId),
    Forget(JobId),
    BumpAttempt(JobId),
    FinalOf(JobId),
    Lookup(JobId),
    Sweep(u64),
    Kept(SessionId, u64),
    ForgetSession(SessionId),
}

impl Op {
    fn job(&self) -> Option<&JobId> {
        match self {
            Op::Accept(record) => Some(&record.job),
            Op::Finish(job, _) | Op::FinishKeeping(job, ..) => Some(job),
            Op::Delivered(job)
            | Op::Forget(job)
            | Op::BumpAttempt(job)
            | Op::FinalOf(job)
            | Op::Lookup(job) => Some(job),
            Op::Sweep(_) | Op::Kept(..) | Op::ForgetSession(_) => None,
        }
    }
}

/// What an operation returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Order(u64),
    Done,
    Attempt(u32),
    Final(Option<Final>),
    Known(Option<Known>),
    Swept(Swept),
    Kept(Option<Bytes>),
}

pub(super) struct Journal {
    disk: Box<dyn Disk>,
    config: StoreConfig,
    meter: Arc<Meter>,
    /// Nothing after a fault from which reopening has not helped yet.
    database: Option<Opened>,
    /// Nothing after a fault: to be counted in the next transaction, which also takes back what the
    /// failed one may have left.
    totals: Option<Totals>,
    /// Order of the next accepted job. Jobs at or above it were never acknowledged.
    next_order: u64,
    /// Number of the last transaction known to be on the disk.
    batch: u64,
    run: u64,
    opened_at_ms: u64,
    /// When the disk was last found full, and how.
    full: Option<(Instant, Full)>,
}

/// A transaction that failed.
struct Failed {
    fault: redb::Error,
    /// Its answers, when it failed in the commit and so may have happened.
    answers: Option<Answers>,
}

impl<E: Into<redb::Error>> From<E> for Failed {
    fn from(e: E) -> Self {
        Failed {
            fault: e.into(),
            answers: None,
        }
    }
}

type Answers = Vec<Result<Answer, StoreError>>;

impl Journal {
    /// Opens the database, moving a damaged one aside, and recovers what it holds.
    pub(super) fn open(
        disk: Box<dyn Disk>,
        config: StoreConfig,
        now_ms: u64,
    ) -> Result<(Self, Recovered), StoreError> {
        let mut journal = Journal {
            disk,
            config,
            meter: Arc::default(),
            database: None,
            totals: None,
            next_order: 0,
            batch: 0,
            run: 0,
            opened_at_ms: now_ms,
            full: None,
        };
        let mut set_aside = None;
        loop {
            match journal.try_open() {
                Ok(mut recovered) => {
                    recovered.set_aside = set_aside;
                    info!(
                        pending = recovered.pending.len(),
                        finals = recovered.finals.len(),
                        run = journal.run,
                        "job store opened"
                    );
                    return Ok((journal, recovered));
                }
                Err(Refusal::Damaged(reason)) if set_aside.is_none() => {
                    set_aside = Some(journal.set_aside(reason)?);
                }
                Err(Refusal::Damaged(reason)) => {
                    return Err(StoreError::disk(
                        "begin a new job store",
                        io::Error::other(reason),
                    ));
                }
                Err(Refusal::Other(e)) => return Err(e),
            }
        }
    }

    pub(super) fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// Applies all operations in one transaction; returns an answer to each, in order.
    pub(super) fn apply(&mut self, ops: &[Op]) -> Answers {
        if self.database.is_none()
            && let Err(e) = self.reopen()
        {
            return vec![Err(e); ops.len()];
        }
        let room = self.room(ops);
        match self.transaction(ops, &room, None) {
            Ok(answers) => answers,
            Err(failed) => self.recover_from(failed, ops),
        }
    }

    /// Whether jobs may be accepted, as far as the disk is concerned.
    fn room(&mut self, ops: &[Op]) -> Result<(), StoreError> {
        if !ops.iter().any(|op| matches!(op, Op::Accept(_))) {
            return Ok(());
        }
        if let Some((since, full)) = self.full {
            if since.elapsed() < self.config.full_retry {
                return Err(full.into());
            }
            self.full = None;
        }
        match self.disk.free_bytes() {
            Ok(free) if free < self.config.reserve_bytes => Err(Full::Reserve {
                free,
                reserve: self.config.reserve_bytes,
            }
            .into()),
            Ok(_) => Ok(()),
            Err(error) => {
                warn!(%error, "free space of the job store's disk is unknown");
                Ok(())
            }
        }
    }

    /// `unsure`: answers of the same operations in a transaction that may have happened.
    fn transaction(
        &mut self,
        ops: &[Op],
        room: &Result<(), StoreError>,
        unsure: Option<Answers>,
    ) -> Result<Answers, Failed> {
        let start = Instant::now();
        let opened = self.database.as_ref().expect("opened by the caller");
        let takes_jobs = room.is_ok() && ops.iter().any(|op| matches!(op, Op::Accept(_)));
        opened.met.unbounded.store(!takes_jobs, Ordering::Relaxed);
        let txn = begin(&opened.database)?;
        let rules = Rules {
            config: &self.config,
            run: self.run,
            opened_at_ms: self.opened_at_ms,
            room,
        };
        let mut batch = self.batch;
        let (answers, totals, changed) = {
            let mut tables = Tables::open(&txn, self.totals.unwrap_or_default())?;
            let mut happened = None;
            if self.totals.is_none() {
                // After a fault. The file may also be a new one.
                let on_disk = Numbers::read(&txn)?.batch.unwrap_or(0);
                happened = unsure.filter(|_| on_disk == batch + 1);
                batch = on_disk;
                for (_, row) in tables.all()? {
                    tables.totals.add(&row);
                }
                tables.count_sessions()?;
                tables.take_back(self.next_order..)?;
                tables.totals.next_order = self.next_order;
                tables.changed = true;
            }
            let answers = match happened {
                Some(answers) => answers,
                None => {
                    let mut answers = Vec::with_capacity(ops.len());
                    for op in ops {
                        answers.push(tables.apply(op, &rules)?);
                    }
                    answers
                }
            };
            (answers, tables.totals, tables.changed)
        };
        if changed {
            batch += 1;
            Numbers::write(&txn, self.run, batch)?;
            if let Err(e) = txn.commit() {
                return Err(Failed {
                    fault: e.into(),
                    answers: Some(answers),
                });
            }
        } else {
            txn.abort()?;
        }
        self.totals = Some(totals);
        self.next_order = totals.next_order;
        self.batch = batch;
        self.meter.transaction(start.elapsed(), changed);
        Ok(answers)
    }

    /// A transaction failed. Its accepts are refused; everything else is tried again, unless it is
    /// found to have happened.
    fn recover_from(&mut self, failed: Failed, ops: &[Op]) -> Answers {
        let mut refused = self.describe(failed.fault);
        let mut unsure = failed.answers.map(|mut answers| {
            // Taken back even if they happened: after a failed fsync they may only seem to be there.
            // Others of the batch may have been refused, or judged, because of them.
            let mut taken_back = HashSet::new();
            for (op, answer) in ops.iter().zip(&mut answers) {
                let is_accept = matches!(op, Op::Accept(_));
                if is_accept && answer.is_ok() {
                    taken_back.extend(op.job());
                }
                if is_accept || op.job().is_some_and(|job| taken_back.contains(job)) {
                    *answer = Err(refused.clone());
                }
            }
            answers
        });
        // Once in the same file, once more in a new one if that turns out to be damaged.
        for _ in 0..2 {
            if let Err(e) = self.reopen() {
                refused = e;
                break;
            }
            match self.transaction(ops, &Err(refused.clone()), unsure.take()) {
                Ok(answers) => return answers,
                Err(again) => match damage(&again.fault) {
                    Some(reason) => {
                        if let Err(e) = self.set_aside(reason) {
                            refused = e;
                            break;
                        }
                    }
                    None => {
                        refused = self.describe(again.fault);
                        break;
                    }
                },
            }
        }
        self.close();
        vec![Err(refused); ops.len()]
    }

    /// The caller's error for a failed transaction; remembers that the disk is full.
    fn describe(&mut self, fault: redb::Error) -> StoreError {
        let described = match &self.database {
            Some(opened) => opened.describe("write to", fault, &*self.disk),
            None => StoreError::disk("write to the job store", fault),
        };
        if let StoreError::Full(full) = described {
            self.full = Some((Instant::now(), full));
        }
        error!(error = %described, "job store transaction failed, its accepts are refused");
        described
    }

    fn close(&mut self) {
        self.totals = None;
        self.database = None;
    }

    /// Opens the database again within this run; a damaged one is moved aside.
    fn reopen(&mut self) -> Result<(), StoreError> {
        self.close();
        let opened = match self.open_database() {
            Err(Refusal::Damaged(reason)) => {
                self.set_aside(reason)?;
                self.open_database()
            }
            result => result,
        };
        match opened {
            Ok(opened) => {
                self.database = Some(opened);
                Ok(())
            }
            Err(Refusal::Other(e)) => {
                error!(error = %e, "job store cannot be reopened");
                Err(e)
            }
            Err(Refusal::Damaged(reason)) => {
                error!(error = reason, "job store cannot be reopened");
                Err(StoreError::disk(
                    "reopen the job store",
                    io::Error::other(reason),
                ))
            }
        }
    }

    fn set_aside(&mut self, reason: String) -> Result<SetAside, StoreError> {
        self.close();
        let unix_s = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let path = self
            .disk
            .set_aside(unix_s)
            .map_err(|e| StoreError::disk("move the damaged job store aside", e))?;
        error!(path = %path.display(), reason, "job store is damaged: moved aside, its jobs are lost");
        Ok(SetAside { path, reason })
    }

    fn open_database(&self) -> Result<Opened, Refusal> {
        Opened::open(&*self.disk, self.config.cache_bytes, &self.meter)
    }

    /// First opening of a run: raises run and attempts, durably.
    fn try_open(&mut self) -> Result<Recovered, Refusal> {
        let opened = self.open_database()?;
        let (recovered, totals, run, batch) = match self.recover(&opened.database) {
            Ok(done) => done,
            Err(Recovery::Refused(e)) => return Err(Refusal::Other(e)),
            Err(Recovery::Failed(e)) => return Err(opened.refusal("recover", e, &*self.disk)),
        };
        self.database = Some(opened);
        self.totals = Some(totals);
        self.next_order = totals.next_order;
        self.run = run;
        self.batch = batch;
        Ok(recovered)
    }

    fn recover(&self, database: &Database) -> Result<(Recovered, Totals, u64, u64), Recovery> {
        let txn = begin(database)?;
        let (run, batch) = self.next_run(&txn)?;
        let (mut pending, mut finals) = (Vec::new(), Vec::new());
        let totals = {
            let mut tables = Tables::open(&txn, Totals::default())?;
            tables.count_sessions()?;
            for (job, mut row) in tables.all()? {
                tables.totals.add(&row);
                if row.state == JobState::Pending {
                    row.attempt = row.attempt.saturating_add(1);
                    tables.put(&job, &row)?;
                    pending.push(Pending {
                        record: tables.record(&job, &row)?,
                        order: row.order,
                        attempt: row.attempt,
                    });
                } else {
                    finals.push((row.order, row.known(job)));
                }
            }
            tables.totals
        };
        txn.commit().map_err(redb::Error::from)?;
        pending.sort_by_key(|job: &Pending| job.order);
        finals.sort_by_key(|(order, _)| *order);
        let recovered = Recovered {
            pending,
            finals: finals.into_iter().map(|(_, known)| known).collect(),
            set_aside: None,
        };
        Ok((recovered, totals, run, batch))
    }

    /// Checks the format and writes the numbers of this run and transaction.
    fn next_run(&self, txn: &WriteTransaction) -> Result<(u64, u64), Recovery> {
        let found = Numbers::read(txn)?;
        match found.format {
            None | Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(Recovery::Refused(StoreError::NewerFormat {
                    path: self.disk.path(),
                    found,
                    known: FORMAT,
                }));
            }
            Some(found) => Err(redb::Error::Corrupted(format!(
                "format {found} never existed"
            )))?,
        }
        let run = found.run.unwrap_or(0).saturating_add(1);
        let batch = found.batch.unwrap_or(0).saturating_add(1);
        Numbers::write(txn, run, batch)?;
        Ok((run, batch))
    }

    /// Everything stored, for comparison with a model; nothing while the database is closed.
    #[cfg(test)]
    pub(super) fn dump(&self) -> Option<Vec<super::tables::Stored>> {
        let opened = self.database.as_ref()?;
        let txn = redb::ReadableDatabase::begin_read(&opened.database).ok()?;
        Some(Tables::dump(&txn))
    }
}

/// Why recovery stopped.
enum Recovery {
    Refused(StoreError),
    Failed(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Recovery {
    fn from(e: E) -> Self {
        Recovery::Failed(e.into())
    }
}
