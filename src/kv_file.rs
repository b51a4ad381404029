//! One file of saved KV states: what a worker leaves on disk for the next one with the same model.
//!
//! Owns the format and its rules. The worker reads and writes through it, by the one descriptor that it inherits;
//! the supervisor has conversations forgotten in it. Never owns: which states are worth saving (the worker's
//! shelf), where files are and who opens them (`worker::kv_files`).
//!
//! ```text
//! 0         64 KiB     128 KiB
//! | index A | index B  | entry | free | entry | …
//! ```
//!
//! An index has a generation and a digest; the newest whole one counts, and the next is written over the other.
//! An entry is written where the newest index names nothing, then synced, then named by the next index. So
//! whatever is torn in the middle, all that was named before still is. What no index names is taken out of the
//! file (a hole), which gives its room back and leaves nothing to read.
//!
//! Every byte counts as a stranger's until it is checked: bounds before anything is allocated, a digest over the
//! index, over each entry's tokens when they are read, and over its state when that is. A file of another model,
//! build or layout is begun anew; an entry that is not what was written is dropped.
//!
//! Each operation holds the file's lock (flock(2)) and looks first whether another process wrote an index since.

mod index;
mod medium;
mod owner;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256};

use crate::frames::{SavedStates, Token};
pub use index::{DATA_BEGIN, ENTRIES_MAX, Entry, Index, Kind, Owner, SLOT_BYTES, TOKENS_MAX};
use index::{digest_of, room_for};
pub use medium::Medium;

/// Written and read in pieces of this, between which it can be stopped; each is on disk before the next, so that
/// others who sync wait for one piece at most.
pub const PIECE_BYTES: usize = 4 << 20;

/// What is to be saved.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Ids of the sequence.
    pub tokens: &'a [Token],
    /// llama.cpp's bytes of it.
    pub state: &'a [u8],
    /// What it is for.
    pub kind: Kind,
    /// When the state was made, unix milliseconds.
    pub made_ms: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is on disk: so many bytes were written.
    Saved(u64),
    /// It was there, or a longer one.
    There,
    /// Enough was written lately.
    Spared,
    /// There is no room for it.
    NoRoom,
    /// Somebody said stop.
    Stopped,
    /// Its conversation was forgotten in the meantime.
    Forgotten,
}

/// A saved state, to be read with [`KvFile::read`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub id: u64,
    /// Ids of the sequence.
    pub tokens: Arc<[Token]>,
    /// Bytes of its state.
    pub state_bytes: u64,
    /// What it is for.
    pub kind: Kind,
}

/// The file.
#[derive(Debug)]
pub struct KvFile<M> {
    medium: M,
    /// `None`: whoever's it is.
    owner: Option<Owner>,
    bounds: SavedStates,
    index: Index,
    is_read: bool,
    tokens: BTreeMap<u64, Arc<[Token]>>,
    /// Entries that were not what was written, since it was opened.
    n_bad: u32,
}

impl<M: Medium> KvFile<M> {
    /// For states of `owner`. Nothing is read yet.
    pub fn new(medium: M, owner: Owner, bounds: SavedStates) -> Self {
        Self {
            medium,
            owner: Some(owner),
            bounds,
            index: Index::default(),
            is_read: false,
            tokens: BTreeMap::new(),
            n_bad: 0,
        }
    }

    /// For states of anybody, to look at them and to forget.
    pub fn of_anybody(medium: M, bounds: SavedStates) -> Self {
        Self {
            owner: None,
            ..Self::new(medium, Owner::default(), bounds)
        }
    }

    /// What is there now.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn known(&mut self, now_ms: u64) -> io::Result<Vec<Known>> {
        self.locked(now_ms, |file| Ok(file.list()))
    }

    /// Whose states these are; `None` where nothing whole is there.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn whose(&self) -> io::Result<Option<Owner>> {
        self.medium.lock()?;
        let newest = self.newest();
        self.medium.unlock();
        Ok(newest?.map(|index| index.owner))
    }

    /// As of the last operation.
    pub fn list(&self) -> Vec<Known> {
        let known = self.index.entries.iter().filter_map(|entry| {
            Some(Known {
                id: entry.id,
                tokens: Arc::clone(self.tokens.get(&entry.id)?),
                state_bytes: entry.state_bytes,
                kind: entry.kind,
            })
        });
        known.collect()
    }

    /// Bytes that saved states take, as of the last operation.
    pub fn bytes(&self) -> u64 {
        self.index.bytes()
    }

    /// Entries that were found damaged so far.
    pub fn n_bad(&self) -> u32 {
        self.n_bad
    }

    /// The state of an entry; `None`: it is gone, or is not what was written, and is dropped.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn read(&mut self, id: u64, now_ms: u64) -> io::Result<Option<Vec<u8>>> {
        self.locked(now_ms, |file| {
            let entry = file.index.entries.iter().find(|entry| entry.id == id);
            let Some(entry) = entry.cloned() else {
                return Ok(None);
            };
            let at = entry.at + entry.tokens_bytes();
            match file.checked(at, entry.state_bytes, &entry.state_digest)? {
                Some(state) => Ok(Some(state)),
                None => {
                    file.n_bad += 1;
                    file.drop_entries(&[id])?;
                    Ok(None)
                }
            }
        })
    }

    /// Saves a state in the place of what it continues, and of what its conversation left before. `stop` ends it
    /// between two pieces.
    ///
    /// # Errors
    /// The disk refuses; what was there before still is.
    pub fn save(&mut self, new: &New<'_>, now_ms: u64, stop: &AtomicBool) -> io::Result<Outcome> {
        self.locked(now_ms, |file| file.write(new, now_ms, stop))
    }

    /// Takes a conversation out, and remembers that; how many entries it had.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn forget(&mut self, session: u64, now_ms: u64) -> io::Result<usize> {
        self.locked(now_ms, |file| {
            let ids = file.ids(|entry| entry.kind == Kind::Session(session));
            file.index.forget(session, now_ms);
            file.drop_entries(&ids)?;
            // What was taken out is out also after a power cut.
            file.medium.sync()?;
            Ok(ids.len())
        })
    }

    fn locked<T>(
        &mut self,
        now_ms: u64,
        work: impl FnOnce(&mut Self) -> io::Result<T>,
    ) -> io::Result<T> {
        self.medium.lock()?;
        let done = self.refresh(now_ms).and_then(|()| work(self));
        self.medium.unlock();
        if done.is_err() {
            // What the file says now is looked at anew.
            self.is_read = false;
        }
        done
    }

    /// The newest index that is whole.
    fn newest(&self) -> io::Result<Option<Index>> {
        let file_bytes = self.medium.len()?;
        let bytes_max = self.bounds.bytes_max;
        let mut newest: Option<Index> = None;
        for slot in 0..2 {
            let at = slot * SLOT_BYTES as u64;
            let n = file_bytes.saturating_sub(at).min(SLOT_BYTES as u64);
            let mut bytes = vec![0; n as usize];
            self.medium.read_at(at, &mut bytes)?;
            let index = Index::of_slot(&bytes, bytes_max);
            let is_newer = |index: &Index| {
                (newest.as_ref()).is_none_or(|newest| newest.generation < index.generation)
            };
            if let Some(index) = index.filter(is_newer) {
                newest = Some(index);
            }
        }
        Ok(newest)
    }

    /// Knows what the file says now.
    fn refresh(&mut self, now_ms: u64) -> io::Result<()> {
        let newest = self.newest()?;
        let is_ours = |index: &Index| (self.owner.as_ref()).is_none_or(|own| *own == index.owner);
        let index = match newest {
            Some(index) if is_ours(&index) => index,
            other => return self.begin_anew(other, now_ms),
        };
        let is_first = !std::mem::replace(&mut self.is_read, true);
        if is_first || index.generation != self.index.generation {
            self.index = index;
            self.read_tokens()?;
        }
        let age_max_ms = self.bounds.age_seconds_max.saturating_mul(1000);
        let goes = self.ids(|entry| {
            let is_old = now_ms.saturating_sub(entry.saved_ms) > age_max_ms;
            is_old || !self.tokens.contains_key(&entry.id)
        });
        if !goes.is_empty() {
            self.drop_entries(&goes)?;
        }
        if is_first {
            // What was being written when somebody died.
            for (at, bytes) in self.index.gaps() {
                self.medium.clear(at, bytes)?;
            }
            self.medium.set_len(self.index.end())?;
        }
        Ok(())
    }

    /// Nothing in the file is of use, but what is remembered of forgetting and of wear.
    fn begin_anew(&mut self, found: Option<Index>, now_ms: u64) -> io::Result<()> {
        self.is_read = true;
        self.tokens.clear();
        let found = found.unwrap_or_default();
        let next = Index {
            // Higher than any that another process may know.
            generation: found.generation.max(self.index.generation).max(now_ms),
            owner: self.owner.clone().unwrap_or_default(),
            entries: Vec::new(),
            ..found
        };
        if self.medium.is_empty()? {
            self.index = next;
            return Ok(());
        }
        self.medium.set_len(0)?;
        self.commit(next)
    }

    /// Of those entries that are new; what is damaged has none.
    fn read_tokens(&mut self) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.tokens);
        for entry in self.index.entries.clone() {
            let tokens = match before.remove(&entry.id) {
                Some(tokens) => Some(tokens),
                None => self.tokens_of(&entry)?,
            };
            match tokens {
                Some(tokens) => drop(self.tokens.insert(entry.id, tokens)),
                None => self.n_bad += 1,
            }
        }
        Ok(())
    }

    fn tokens_of(&self, entry: &Entry) -> io::Result<Option<Arc<[Token]>>> {
        let bytes = self.checked(entry.at, entry.tokens_bytes(), &entry.tokens_digest)?;
        Ok(bytes.map(|bytes| {
            let ids = bytes.as_chunks().0.iter();
            ids.map(|id| Token::from_le_bytes(*id)).collect()
        }))
    }

    /// Reads `n` bytes; `None`: they are not what was written.
    fn checked(&self, at: u64, n: u64, digest: &str) -> io::Result<Option<Vec<u8>>> {
        // Before anything of this length is allocated.
        let is_there = at
            .checked_add(n)
            .is_some_and(|end| self.medium.len().is_ok_and(|len| end <= len));
        let Some(n) = usize::try_from(n).ok().filter(|_| is_there) else {
            return Ok(None);
        };
        let mut bytes = vec![0; n];
        let mut hasher = Sha256::new();
        for (piece, at) in bytes
            .chunks_mut(PIECE_BYTES)
            .zip((at..).step_by(PIECE_BYTES))
        {
            self.medium.read_at(at, piece)?;
            hasher.update(&*piece);
        }
        Ok((digest_of(hasher) == digest).then_some(bytes))
    }

    fn ids(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let entries = self.index.entries.iter().filter(|entry| wanted(entry));
        entries.map(|entry| entry.id).collect()
    }

    fn write(&mut self, new: &New<'_>, now_ms: u64, stop: &AtomicBool) -> io::Result<Outcome> {
        let is_forgotten = |session| {
            let forgotten = self.index.forgotten.get(session);
            forgotten.is_some_and(|at| new.made_ms <= *at)
        };
        if matches!(&new.kind, Kind::Session(session) if is_forgotten(session)) {
            return Ok(Outcome::Forgotten);
        }
        // A conversation is forgotten by its own entry, so it has one.
        let is_named = matches!(new.kind, Kind::Session(_));
        let covers = self.ids(|entry| {
            let tokens = self.tokens.get(&entry.id);
            tokens.is_some_and(|tokens| tokens.starts_with(new.tokens))
                && (!is_named || entry.kind == new.kind)
        });
        if !covers.is_empty() {
            return Ok(Outcome::There);
        }
        let (n_tokens, state_bytes) = (new.tokens.len(), new.state.len() as u64);
        let bytes = n_tokens as u64 * 4 + state_bytes;
        if n_tokens == 0 || n_tokens > TOKENS_MAX || state_bytes == 0 {
            return Ok(Outcome::NoRoom);
        }
        let is_of_it = |entry: &Entry| {
            is_named && entry.kind == new.kind
                || entry.kind == Kind::Proven
                    && (self.tokens.get(&entry.id))
                        .is_some_and(|tokens| new.tokens.starts_with(tokens))
        };
        let superseded = self.ids(is_of_it);
        let bytes_max = self.bounds.bytes_max;
        let place = self.index.place(bytes, new.kind, &superseded, bytes_max);
        let Some(place) = place else {
            return Ok(Outcome::NoRoom);
        };
        let leaves_bytes = self.medium.free_bytes()?.checked_sub(room_for(bytes));
        if leaves_bytes.is_none_or(|left| left < self.bounds.reserve_bytes) {
            return Ok(Outcome::NoRoom);
        }
        if !self.index.may_write(bytes, now_ms, bytes_max) {
            return Ok(Outcome::Spared);
        }
        if !place.goes.is_empty() {
            self.drop_entries(&place.goes)?;
        }
        let tokens = Vec::from_iter(new.tokens.iter().flat_map(|token| token.to_le_bytes()));
        let mut digests = Vec::new();
        let mut at = place.at;
        for bytes in [&tokens[..], new.state] {
            let mut hasher = Sha256::new();
            for piece in bytes.chunks(PIECE_BYTES) {
                if stop.load(Ordering::Relaxed) {
                    self.medium.clear(place.at, at - place.at)?;
                    self.medium.set_len(self.index.end())?;
                    return Ok(Outcome::Stopped);
                }
                self.medium.write_at(at, piece)?;
                // The last one with the index.
                if piece.len() == PIECE_BYTES {
                    self.medium.sync()?;
                }
                hasher.update(piece);
                at += piece.len() as u64;
            }
            digests.push(digest_of(hasher));
        }
        self.medium.sync()?;
        let [tokens_digest, state_digest] = digests.try_into().expect("one for each of the two");
        let mut next = self.index.clone();
        let id = next.generation + 1;
        let gone = Vec::from_iter(
            next.entries
                .extract_if(.., |entry| superseded.contains(&entry.id)),
        );
        next.entries.push(Entry {
            id,
            at: place.at,
            n_tokens: n_tokens as u32,
            state_bytes,
            tokens_digest,
            state_digest,
            kind: new.kind,
            saved_ms: now_ms,
        });
        self.commit(next)?;
        self.tokens.insert(id, new.tokens.into());
        self.clear(&gone)?;
        Ok(Outcome::Saved(bytes))
    }

    /// Names these no more, then takes them out.
    fn drop_entries(&mut self, ids: &[u64]) -> io::Result<()> {
        let mut next = self.index.clone();
        let gone = Vec::from_iter(next.entries.extract_if(.., |entry| ids.contains(&entry.id)));
        self.commit(next)?;
        self.clear(&gone)
    }

    /// Takes out what is named no more.
    fn clear(&mut self, gone: &[Entry]) -> io::Result<()> {
        for entry in gone {
            self.tokens.remove(&entry.id);
            self.medium.clear(entry.at, entry.room())?;
        }
        self.medium.set_len(self.index.end())
    }

    /// Writes the next index over the older one. On disk when this returns.
    fn commit(&mut self, mut next: Index) -> io::Result<()> {
        next.generation += 1;
        let slot = next.to_slot();
        let slot = slot.ok_or_else(|| io::Error::other("the index is too long"))?;
        let at = next.generation % 2 * SLOT_BYTES as u64;
        self.medium.write_at(at, &slot)?;
        self.medium.sync()?;
        self.index = next;
        Ok(())
    }
}
