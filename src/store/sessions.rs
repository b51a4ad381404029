//! Conversations: what is kept of each to go on with, as bytes that only the caller understands.
//!
//! A small row for each in `sessions`, its bytes in `turns`. What is kept is bounded by who keeps it: a user who
//! begins one conversation too many loses the one that rested longest, and where all together are too much,
//! the user who holds most gives. So nobody's conversation goes because of somebody who keeps few.

use std::collections::HashMap;

use redb::{AccessGuard, ReadableTable, StorageError, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::rows::{self, ROW_BYTES};
use super::tables::Rules;
use super::{Kept, SessionId};

// Tables of their own, so that versions without them can read all the others.
const SESSIONS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("sessions");
const TURNS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("turns");

/// Value in `sessions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SessionRow {
    /// When it was last gone on with, Unix milliseconds.
    at_ms: u64,
    /// In which run that was.
    run: u64,
    /// Charged for it: its bytes and [`ROW_BYTES`].
    bytes: u64,
}

/// The open tables of a write transaction.
pub(super) struct Sessions<'txn> {
    sessions: Table<'txn, (&'static str, &'static str), &'static [u8]>,
    turns: Table<'txn, (&'static str, &'static str), &'static [u8]>,
}

impl<'txn> Sessions<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            sessions: txn.open_table(SESSIONS)?,
            turns: txn.open_table(TURNS)?,
        })
    }

    /// What all of them are charged.
    pub(super) fn bytes(&self) -> Result<u64, redb::Error> {
        let all = self.all()?;
        Ok(all.iter().map(|(_, row)| row.bytes).sum())
    }

    /// What is kept of one, unless it rested too long.
    pub(super) fn get(
        &self,
        session: &SessionId,
        now_ms: u64,
        rules: &Rules<'_>,
    ) -> Result<Option<Vec<u8>>, redb::Error> {
        let key = (&*session.user, &*session.name);
        let Some(row) = self.sessions.get(key)? else {
            return Ok(None);
        };
        let row: SessionRow = rows::decode("sessions", row.value())?;
        if is_over(&row, now_ms, rules) {
            return Ok(None);
        }
        Ok(self.turns.get(key)?.map(|bytes| bytes.value().to_vec()))
    }

    /// Keeps `kept` in the place of what was kept before; returns what all are charged then, of `total`.
    pub(super) fn put(
        &mut self,
        session: &SessionId,
        kept: &Kept,
        at_ms: u64,
        mut total: u64,
        rules: &Rules<'_>,
    ) -> Result<u64, redb::Error> {
        total = total.saturating_sub(self.remove(session)?);
        let bounds = &rules.config.sessions;
        let row = SessionRow {
            at_ms,
            run: rules.run,
            bytes: kept.bytes.len() as u64 + ROW_BYTES,
        };
        if bounds.per_user_max == 0 || row.bytes > bounds.total_bytes_max {
            return Ok(total);
        }
        let mut own = self.of_user(&session.user)?;
        while own.len() as u64 >= bounds.per_user_max
            && let Some(oldest) = oldest(&own)
        {
            total = total.saturating_sub(self.remove(&oldest)?);
            own.retain(|(one, _)| *one != oldest);
        }
        if total.saturating_add(row.bytes) > bounds.total_bytes_max {
            let mut all = self.all()?;
            while total.saturating_add(row.bytes) > bounds.total_bytes_max
                && let Some(gives) = heaviest(&all, &session.user, row.bytes)
            {
                total = total.saturating_sub(self.remove(&gives)?);
                all.retain(|(one, _)| *one != gives);
            }
        }
        let key = (&*session.user, &*session.name);
        self.sessions.insert(key, &*rows::encode(&row))?;
        self.turns.insert(key, &*kept.bytes)?;
        Ok(total.saturating_add(row.bytes))
    }

    /// Forgets one; what it was charged.
    pub(super) fn remove(&mut self, session: &SessionId) -> Result<u64, redb::Error> {
        let key = (&*session.user, &*session.name);
        let bytes = match self.sessions.remove(key)? {
            Some(row) => rows::decode::<SessionRow>("sessions", row.value())?.bytes,
            None => return Ok(0),
        };
        self.turns.remove(key)?;
        Ok(bytes)
    }

    /// Forgets those that rested too long; what they were charged.
    pub(super) fn sweep(&mut self, now_ms: u64, rules: &Rules<'_>) -> Result<u64, redb::Error> {
        let mut freed = 0;
        for (session, row) in self.all()? {
            if is_over(&row, now_ms, rules) {
                freed += self.remove(&session)?;
            }
        }
        Ok(freed)
    }

    /// Rows are small; what was said stays on the disk.
    fn all(&self) -> Result<Vec<Entry>, redb::Error> {
        self.sessions.iter()?.map(read).collect()
    }

    fn of_user(&self, user: &str) -> Result<Vec<Entry>, redb::Error> {
        let from = self.sessions.range((user, "")..)?.map(read);
        let is_theirs = |entry: &Result<Entry, redb::Error>| {
            entry.as_ref().map_or(true, |(one, _)| one.user == user)
        };
        from.take_while(is_theirs).collect()
    }
}

type Entry = (SessionId, SessionRow);
type Pair<'a> = (
    AccessGuard<'a, (&'static str, &'static str)>,
    AccessGuard<'a, &'static [u8]>,
);

fn read(entry: Result<Pair<'_>, StorageError>) -> Result<Entry, redb::Error> {
    let (key, value) = entry?;
    let (user, name) = key.value();
    let session = SessionId {
        user: user.to_owned(),
        name: name.to_owned(),
    };
    Ok((session, rows::decode("sessions", value.value())?))
}

fn is_over(row: &SessionRow, now_ms: u64, rules: &Rules<'_>) -> bool {
    let rested_ms = rules.since_ms(row.run, row.at_ms, now_ms);
    u128::from(rested_ms) >= rules.config.sessions.idle_max.as_millis()
}

/// The one that rested longest. Earlier runs first, whatever their clock said.
fn oldest<'a>(all: impl IntoIterator<Item = &'a Entry>) -> Option<SessionId> {
    let oldest = all.into_iter().min_by(|(one, row), (other, others)| {
        let rested = (row.run, row.at_ms, &one.name);
        rested.cmp(&(others.run, others.at_ms, &other.name))
    });
    oldest.map(|(one, _)| one.clone())
}

/// The oldest one of whoever holds most, `bytes` more of `user`'s counted.
fn heaviest(all: &[Entry], user: &str, bytes: u64) -> Option<SessionId> {
    let mut held = HashMap::from([(user, bytes)]);
    for (one, row) in all {
        *held.entry(&*one.user).or_default() += row.bytes;
    }
    let (holder, _) = all.iter().max_by_key(|(one, _)| held[&*one.user])?;
    oldest(all.iter().filter(|(one, _)| one.user == holder.user))
}
