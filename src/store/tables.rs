//! What one operation does inside a transaction, and what the store holds in sum.
//!
//! The outer error of each function is the disk's and fails the whole transaction; the inner one is a
//! rule's and concerns one caller.

use std::ops::RangeFrom;

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::journal::{Answer, Op};
use super::rows::{self, BodyRow, JobRow, MessageRow, ROW_BYTES};
use super::sessions::Sessions;
use super::{FIRST_ATTEMPT, Final, Full, JobId, JobState, Record, StoreConfig, StoreError, Swept};

/// Version of the layout of these tables. Raised with every change that an older version would misread.
pub(super) const FORMAT: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const JOBS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("jobs");
const BODIES: TableDefinition<u64, &[u8]> = TableDefinition::new("bodies");
/// A table of its own, so that versions without it can read all the others.
const BESIDE: TableDefinition<u64, &[u8]> = TableDefinition::new("beside");
/// As [`BESIDE`].
const BOUND: TableDefinition<u64, &str> = TableDefinition::new("bound");
const FINALS: TableDefinition<u64, &[u8]> = TableDefinition::new("finals");

/// Outer: the disk. Inner: the rules.
type Outcome<T> = Result<Result<T, StoreError>, redb::Error>;

/// What the store holds in sum. Saturating: the numbers come from a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Above every order in use.
    pub(super) next_order: u64,
    pub(super) pending_jobs: u64,
    pub(super) pending_bytes: u64,
    pub(super) final_bytes: u64,
    /// Part of `final_bytes`.
    pub(super) undelivered_bytes: u64,
    /// Of conversations.
    pub(super) session_bytes: u64,
}

impl Totals {
    pub(super) fn add(&mut self, row: &JobRow) {
        self.next_order = self.next_order.max(row.order.saturating_add(1));
        match row.state {
            JobState::Pending => {
                self.pending_jobs = self.pending_jobs.saturating_add(1);
                self.pending_bytes = self.pending_bytes.saturating_add(row.bytes);
            }
            JobState::Finished { delivered, .. } => {
                self.final_bytes = self.final_bytes.saturating_add(row.bytes);
                if !delivered {
                    self.undelivered_bytes = self.undelivered_bytes.saturating_add(row.bytes);
                }
            }
        }
    }

    fn remove(&mut self, row: &JobRow) {
        match row.state {
            JobState::Pending => {
                self.pending_jobs = self.pending_jobs.saturating_sub(1);
                self.pending_bytes = self.pending_bytes.saturating_sub(row.bytes);
            }
            JobState::Finished { delivered, .. } => {
                self.final_bytes = self.final_bytes.saturating_sub(row.bytes);
                if !delivered {
                    self.undelivered_bytes = self.undelivered_bytes.saturating_sub(row.bytes);
                }
            }
        }
    }
}

/// The rows of `meta`; nothing in a new file.
pub(super) struct Numbers {
    pub(super) format: Option<u64>,
    pub(super) run: Option<u64>,
    pub(super) batch: Option<u64>,
}

impl Numbers {
    pub(super) fn read(txn: &WriteTransaction) -> Result<Self, redb::Error> {
        let meta = txn.open_table(META)?;
        let number = |key| -> Result<Option<u64>, redb::Error> {
            Ok(meta.get(key)?.map(|value| value.value()))
        };
        Ok(Numbers {
            format: number("format")?,
            run: number("run")?,
            batch: number("batch")?,
        })
    }

    pub(super) fn write(txn: &WriteTransaction, run: u64, batch: u64) -> Result<(), redb::Error> {
        let mut meta = txn.open_table(META)?;
        meta.insert("format", FORMAT)?;
        meta.insert("run", run)?;
        meta.insert("batch", batch)?;
        Ok(())
    }
}

/// What an operation may consult.
pub(super) struct Rules<'a> {
    pub(super) config: &'a StoreConfig,
    /// Number of this run.
    pub(super) run: u64,
    pub(super) opened_at_ms: u64,
    /// Whether jobs may be accepted now, and why not.
    pub(super) room: &'a Result<(), StoreError>,
}

impl Rules<'_> {
    /// Age of a row's last change. Times of earlier runs may come from another clock.
    fn age_ms(&self, row: &JobRow, now_ms: u64) -> u64 {
        self.since_ms(row.run, row.at_ms, now_ms)
    }

    /// How long ago something of this run or an earlier one was.
    pub(super) fn since_ms(&self, run: u64, at_ms: u64, now_ms: u64) -> u64 {
        let since_ms = if run == self.run {
            at_ms
        } else {
            self.opened_at_ms
        };
        now_ms.saturating_sub(since_ms)
    }
}

/// The open tables of a write transaction.
pub(super) struct Tables<'txn> {
    jobs: Table<'txn, (&'static str, &'static str), &'static [u8]>,
    bodies: Table<'txn, u64, &'static [u8]>,
    beside: Table<'txn, u64, &'static [u8]>,
    bound: Table<'txn, u64, &'static str>,
    finals: Table<'txn, u64, &'static [u8]>,
    sessions: Sessions<'txn>,
    pub(super) totals: Totals,
    /// Whether there is anything to commit.
    pub(super) changed: bool,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction, totals: Totals) -> Result<Self, redb::Error> {
        Ok(Tables {
            jobs: txn.open_table(JOBS)?,
            bodies: txn.open_table(BODIES)?,
            beside: txn.open_table(BESIDE)?,
            bound: txn.open_table(BOUND)?,
            finals: txn.open_table(FINALS)?,
            sessions: Sessions::open(txn)?,
            totals,
            changed: false,
        })
    }

    pub(super) fn apply(&mut self, op: &Op, rules: &Rules<'_>) -> Outcome<Answer> {
        Ok(match op {
            Op::Accept(record) => self.accept(record, rules)?.map(Answer::Order),
            Op::Finish(job, end) => self.finish(job, end, rules)?.map(|()| Answer::Done),
            Op::FinishKeeping(job, end, kept) => match self.finish(job, end, rules)? {
                Ok(()) => {
                    let session = kept.session_of(&job.user);
                    let (at_ms, total) = (end.finished_at_ms, self.totals.session_bytes);
                    let total = self.sessions.put(&session, kept, at_ms, total, rules)?;
                    self.totals.session_bytes = total;
                    self.changed = true;
                    Ok(Answer::Done)
                }
                Err(error) => Err(error),
            },
            Op::Kept(session, now_ms) => {
                let kept = self.sessions.get(session, *now_ms, rules)?;
                Ok(Answer::Kept(kept.map(Bytes::from)))
            }
            Op::ForgetSession(session) => {
                let freed = self.sessions.remove(session)?;
                self.free_sessions(freed);
                Ok(Answer::Done)
            }
            Op::Delivered(job) => self.delivered(job)?.map(|()| Answer::Done),
            Op::Forget(job) => self.forget_final(job)?.map(|()| Answer::Done),
            Op::BumpAttempt(job) => self.bump_attempt(job)?.map(Answer::Attempt),
            Op::FinalOf(job) => Ok(Answer::Final(self.final_of(job)?)),
            Op::Lookup(job) => Ok(Answer::Known(
                self.row(job)?.map(|row| row.known(job.clone())),
            )),
            Op::Sweep(now_ms) => Ok(Answer::Swept(self.sweep(*now_ms, rules)?)),
        })
    }

    /// Counts what conversations take; once, behind [`Tables::open`] with totals that do not know it.
    pub(super) fn count_sessions(&mut self) -> Result<(), redb::Error> {
        self.totals.session_bytes = self.sessions.bytes()?;
        Ok(())
    }

    fn free_sessions(&mut self, freed: u64) {
        self.changed |= freed > 0;
        self.totals.session_bytes = self.totals.session_bytes.saturating_sub(freed);
    }

    fn accept(&mut self, record: &Record, rules: &Rules<'_>) -> Outcome<u64> {
        // First, so that a repeated request is recognised also when the store is full.
        if let Some(row) = self.row(&record.job)? {
            return Ok(Err(StoreError::Exists {
                job: record.job.clone(),
                digest: row.digest,
                state: row.state,
            }));
        }
        let body = rows::encode(&BodyRow::from(record));
        let n_beside = record.beside.as_ref().map_or(0, Bytes::len);
        let n_model = record.model.as_ref().map_or(0, String::len);
        let bytes = (body.len() + n_beside + n_model) as u64 + ROW_BYTES;
        if let Err(refused) = self.admit(bytes, rules) {
            return Ok(Err(refused));
        }
        let row = JobRow {
            order: self.totals.next_order,
            digest: record.digest,
            attempt: FIRST_ATTEMPT,
            state: JobState::Pending,
            at_ms: record.accepted_at_ms,
            run: rules.run,
            bytes,
        };
        self.bodies.insert(row.order, &*body)?;
        match &record.beside {
            Some(beside) => self.beside.insert(row.order, &**beside)?,
            // A version without this table may have left some of an order that is used again.
            None => self.beside.remove(row.order)?,
        };
        match &record.model {
            Some(model) => self.bound.insert(row.order, &**model)?,
            None => self.bound.remove(row.order)?,
        };
        self.put(&record.job, &row)?;
        self.totals.add(&row);
        Ok(Ok(row.order))
    }

    fn admit(&self, bytes: u64, rules: &Rules<'_>) -> Result<(), StoreError> {
        rules.room.clone()?;
        let (totals, config) = (&self.totals, rules.config);
        if totals.pending_jobs >= config.pending_jobs_max {
            Err(Full::PendingJobs {
                limit: config.pending_jobs_max,
            })?;
        }
        if totals.pending_bytes.saturating_add(bytes) > config.pending_bytes_max {
            Err(Full::PendingBytes {
                wanted: bytes,
                used: totals.pending_bytes,
                limit: config.pending_bytes_max,
            })?;
        }
        if totals.undelivered_bytes >= config.final_bytes_max {
            Err(Full::Undelivered {
                used: totals.undelivered_bytes,
                limit: config.final_bytes_max,
            })?;
        }
        Ok(())
    }

    fn finish(&mut self, job: &JobId, end: &Final, rules: &Rules<'_>) -> Outcome<()> {
        let Some(mut row) = self.row(job)? else {
            return Ok(Err(StoreError::Unknown(job.clone())));
        };
        let messages: Vec<MessageRow<'_>> = end.messages.iter().map(MessageRow::from).collect();
        let messages = rows::encode(&(rows::Raw(&end.replay), messages));
        if let JobState::Finished { .. } = row.state {
            // Repeated after a fault whose outcome the caller could not know.
            let stored = self.finals.get(row.order)?;
            return Ok(match stored.is_some_and(|s| s.value() == messages) {
                true => Ok(()),
                false => Err(StoreError::AlreadyFinished(job.clone())),
            });
        }
        self.totals.remove(&row);
        self.bodies.remove(row.order)?;
        self.beside.remove(row.order)?;
        self.bound.remove(row.order)?;
        row.state = JobState::Finished {
            at_ms: end.finished_at_ms,
            delivered: end.delivered,
        };
        row.at_ms = end.finished_at_ms;
        row.run = rules.run;
        row.bytes = messages.len() as u64 + ROW_BYTES;
        self.finals.insert(row.order, &*messages)?;
        self.put(job, &row)?;
        self.totals.add(&row);
        if self.totals.final_bytes > rules.config.final_bytes_max {
            self.forget_delivered(job, rules)?;
        }
        Ok(Ok(()))
    }

    /// Deletes the oldest delivered finals down to seven eighths of the bound, so that this walk
    /// through all jobs is rare. Never the one just written.
    fn forget_delivered(&mut self, just: &JobId, rules: &Rules<'_>) -> Result<(), redb::Error> {
        let mut oldest = Vec::new();
        for (job, row) in self.all()? {
            if matches!(
                row.state,
                JobState::Finished {
                    delivered: true,
                    ..
                }
            ) && job != *just
            {
                // Earlier runs first, whatever their clock said.
                oldest.push((row.run, row.at_ms, row.order, job, row));
            }
        }
        oldest.sort_by_key(|(run, at_ms, order, ..)| (*run, *at_ms, *order));
        let goal = rules.config.final_bytes_max / 8 * 7;
        for (.., job, row) in oldest {
            if self.totals.final_bytes <= goal {
                break;
            }
            self.forget(&job, &row)?;
        }
        Ok(())
    }

    fn delivered(&mut self, job: &JobId) -> Outcome<()> {
        let Some(mut row) = self.row(job)? else {
            return Ok(Err(StoreError::Unknown(job.clone())));
        };
        match row.state {
            JobState::Pending => Ok(Err(StoreError::NotFinished(job.clone()))),
            JobState::Finished {
                delivered: true, ..
            } => Ok(Ok(())),
            JobState::Finished { at_ms, .. } => {
                self.totals.remove(&row);
                row.state = JobState::Finished {
                    at_ms,
                    delivered: true,
                };
                self.put(job, &row)?;
                self.totals.add(&row);
                Ok(Ok(()))
            }
        }
    }

    fn forget_final(&mut self, job: &JobId) -> Outcome<()> {
        let Some(row) = self.row(job)? else {
            return Ok(Err(StoreError::Unknown(job.clone())));
        };
        if row.state == JobState::Pending {
            return Ok(Err(StoreError::NotFinished(job.clone())));
        }
        self.forget(job, &row)?;
        Ok(Ok(()))
    }

    fn bump_attempt(&mut self, job: &JobId) -> Outcome<u32> {
        let Some(mut row) = self.row(job)? else {
            return Ok(Err(StoreError::Unknown(job.clone())));
        };
        if row.state != JobState::Pending {
            return Ok(Err(StoreError::AlreadyFinished(job.clone())));
        }
        row.attempt = row.attempt.saturating_add(1);
        self.put(job, &row)?;
        Ok(Ok(row.attempt))
    }

    pub(super) fn final_of(&self, job: &JobId) -> Result<Option<Final>, redb::Error> {
        let Some(row) = self.row(job)? else {
            return Ok(None);
        };
        let JobState::Finished { at_ms, delivered } = row.state else {
            return Ok(None);
        };
        let stored = self.finals.get(row.order)?;
        let stored = stored.ok_or_else(|| missing("finals", row.order))?;
        let (replay, messages): (rows::Raw<'_>, Vec<MessageRow<'_>>) =
            rows::decode("finals", stored.value())?;
        Ok(Some(Final {
            messages: messages.iter().map(MessageRow::message).collect(),
            replay: Bytes::copy_from_slice(replay.0),
            finished_at_ms: at_ms,
            delivered,
        }))
    }

    fn sweep(&mut self, now_ms: u64, rules: &Rules<'_>) -> Result<Swept, redb::Error> {
        let mut swept = Swept::default();
        for (job, row) in self.all()? {
            let age_ms = u128::from(rules.age_ms(&row, now_ms));
            match row.state {
                JobState::Pending if age_ms >= rules.config.pending_max.as_millis() => {
                    swept.overdue.push(job);
                }
                JobState::Finished {
                    delivered: true, ..
                } if age_ms >= rules.config.retention.as_millis() => {
                    self.forget(&job, &row)?;
                    swept.delivered += 1;
                }
                JobState::Finished {
                    delivered: false, ..
                } if age_ms >= rules.config.undelivered_max.as_millis() => {
                    self.forget(&job, &row)?;
                    swept.undelivered += 1;
                }
                JobState::Pending | JobState::Finished { .. } => {}
            }
        }
        let freed = self.sessions.sweep(now_ms, rules)?;
        self.free_sessions(freed);
        Ok(swept)
    }

    /// Every job, in order of name. Rows are small; payloads stay on the disk.
    pub(super) fn all(&self) -> Result<Vec<(JobId, JobRow)>, redb::Error> {
        let mut all = Vec::new();
        for entry in self.jobs.iter()? {
            let (key, value) = entry?;
            let (user, id) = key.value();
            let job = JobId {
                user: user.to_owned(),
                id: id.to_owned(),
            };
            all.push((job, rows::decode("jobs", value.value())?));
        }
        Ok(all)
    }

    /// The request of a pending job.
    pub(super) fn record(&self, job: &JobId, row: &JobRow) -> Result<Record, redb::Error> {
        let body = self.bodies.get(row.order)?;
        let body = body.ok_or_else(|| missing("bodies", row.order))?;
        let body: BodyRow<'_> = rows::decode("bodies", body.value())?;
        if body.job() != *job {
            return Err(redb::Error::Corrupted(format!(
                "body {} belongs to {}, not to {job}",
                row.order,
                body.job()
            )));
        }
        let beside = self.beside.get(row.order)?;
        let model = self.bound.get(row.order)?;
        Ok(Record {
            beside: beside.map(|bytes| Bytes::copy_from_slice(bytes.value())),
            model: model.map(|name| name.value().to_owned()),
            ..body.record(row.digest)
        })
    }

    /// Deletes what a failed transaction may have left behind: every job of these orders.
    pub(super) fn take_back(&mut self, orders: RangeFrom<u64>) -> Result<(), redb::Error> {
        for (job, row) in self.all()? {
            if orders.contains(&row.order) {
                self.forget(&job, &row)?;
            }
        }
        Ok(())
    }

    fn row(&self, job: &JobId) -> Result<Option<JobRow>, redb::Error> {
        match self.jobs.get((&*job.user, &*job.id))? {
            Some(row) => rows::decode("jobs", row.value()).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn put(&mut self, job: &JobId, row: &JobRow) -> Result<(), redb::Error> {
        self.changed = true;
        self.jobs
            .insert((&*job.user, &*job.id), &*rows::encode(row))?;
        Ok(())
    }

    fn forget(&mut self, job: &JobId, row: &JobRow) -> Result<(), redb::Error> {
        self.changed = true;
        self.jobs.remove((&*job.user, &*job.id))?;
        match row.state {
            JobState::Pending => {
                self.beside.remove(row.order)?;
                self.bound.remove(row.order)?;
                self.bodies.remove(row.order)?
            }
            JobState::Finished { .. } => self.finals.remove(row.order)?,
        };
        self.totals.remove(row);
        Ok(())
    }
}

fn missing(table: &str, order: u64) -> redb::Error {
    redb::Error::Corrupted(format!("row {order} of {table} is missing"))
}

/// A job as it is stored.
#[cfg(test)]
pub(super) type Stored = (super::Known, Option<Record>, Option<Final>);

#[cfg(test)]
impl Tables<'_> {
    /// Everything stored, payloads included, by a reader that shares no code with the operations.
    pub(super) fn dump(txn: &redb::ReadTransaction) -> Vec<Stored> {
        let jobs = txn.open_table(JOBS).unwrap();
        let bodies = txn.open_table(BODIES).unwrap();
        let besides = txn.open_table(BESIDE).unwrap();
        let bound = txn.open_table(BOUND).unwrap();
        let finals = txn.open_table(FINALS).unwrap();
        let mut all = Vec::new();
        let mut n_bodies = 0;
        for entry in jobs.iter().unwrap() {
            let (key, value) = entry.unwrap();
            let (user, id) = key.value();
            let (user, id) = (user.to_owned(), id.to_owned());
            let row: JobRow = rows::decode("jobs", value.value()).unwrap();
            let (mut record, mut end) = (None, None);
            match row.state {
                JobState::Pending => {
                    let body = bodies.get(row.order).unwrap().unwrap();
                    let body: BodyRow<'_> = rows::decode("bodies", body.value()).unwrap();
                    let beside = besides.get(row.order).unwrap();
                    let model = bound.get(row.order).unwrap();
                    record = Some(Record {
                        beside: beside.map(|bytes| Bytes::copy_from_slice(bytes.value())),
                        model: model.map(|name| name.value().to_owned()),
                        ..body.record(row.digest)
                    });
                    n_bodies += 1;
                }
                JobState::Finished { at_ms, delivered } => {
                    let stored = finals.get(row.order).unwrap().unwrap();
                    let (replay, messages): (rows::Raw<'_>, Vec<MessageRow<'_>>) =
                        rows::decode("finals", stored.value()).unwrap();
                    end = Some(Final {
                        replay: Bytes::copy_from_slice(replay.0),
                        messages: messages.iter().map(MessageRow::message).collect(),
                        finished_at_ms: at_ms,
                        delivered,
                    });
                }
            }
            all.push((row.known(JobId { user, id }), record, end));
        }
        // No payload without its job.
        use redb::ReadableTableMetadata;
        assert_eq!(bodies.len().unwrap(), n_bodies);
        assert_eq!(finals.len().unwrap(), all.len() as u64 - n_bodies);
        all
    }
}
