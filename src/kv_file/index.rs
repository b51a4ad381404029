//! PURE: what stands in a file of saved states: the index's bytes, who goes where, and who makes room.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of each of the two places for an index, at the file's beginning.
pub const SLOT_BYTES: usize = 64 << 10;
/// Where entries begin.
pub const DATA_BEGIN: u64 = 2 * SLOT_BYTES as u64;
/// Entries begin at multiples of this, which is what file systems give and take back.
const BLOCK_BYTES: u64 = 4096;
/// Entries in one file: an index of so many fits its place.
pub const ENTRIES_MAX: usize = 128;
/// Tokens of one entry.
pub const TOKENS_MAX: usize = 1 << 20;
/// Conversations whose forgetting is remembered.
const FORGOTTEN_MAX: usize = 256;
/// So often may the whole file be written in a day, on the average.
const WRITES_A_DAY: u64 = 8;
/// What was not written for a while may be written at once: so often the whole file.
const WRITES_AT_ONCE: u64 = 2;
/// No file is longer, whatever it says; sums of what is below do not overflow.
const FILE_BYTES_MAX: u64 = 1 << 45;
const DAY_MS: u64 = 24 * 3600 * 1000;
/// Version of the format; another one is begun anew.
const MAGIC: [u8; 8] = *b"orikv\0\0\x01";
const HEAD_BYTES: usize = MAGIC.len() + size_of::<u32>() + 32;

/// What a file's states belong to. They mean nothing to any other model or build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The model's file.
    pub path: String,
    /// Its length.
    pub model_bytes: u64,
    /// Its last write, nanoseconds since 1970.
    pub modified_ns: u64,
    /// Digest of parts of it from the beginning to the end.
    pub sample: String,
    /// Everything else that decides what the bytes of a state mean.
    pub layout: String,
}

/// What an entry is for, the least first: who makes room, and who is saved before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// A beginning that the configuration names.
    Pinned,
    /// Found again at least once.
    Proven,
    /// The conversation with this number.
    Session(u64),
}

impl Kind {
    fn rank(self) -> u8 {
        match self {
            Self::Pinned => 0,
            Self::Proven => 1,
            Self::Session(_) => 2,
        }
    }
}

/// One saved state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name; never used again in the same file.
    pub id: u64,
    /// Where its bytes begin: ids of its tokens, four bytes each, then its state.
    pub at: u64,
    /// Tokens in it.
    pub n_tokens: u32,
    /// Bytes of its state.
    pub state_bytes: u64,
    /// Digest of its tokens' bytes.
    pub tokens_digest: String,
    /// Digest of its state.
    pub state_digest: String,
    /// What it is for.
    pub kind: Kind,
    /// When it was written, unix milliseconds.
    pub saved_ms: u64,
}

impl Entry {
    /// Bytes of its tokens.
    pub fn tokens_bytes(&self) -> u64 {
        u64::from(self.n_tokens) * 4
    }

    /// Where its bytes end; `None`: nowhere.
    fn end(&self) -> Option<u64> {
        let bytes = self.tokens_bytes().checked_add(self.state_bytes)?;
        self.at.checked_add(bytes)
    }

    /// Bytes that it takes of the file.
    pub fn room(&self) -> u64 {
        room_for(self.tokens_bytes() + self.state_bytes)
    }

    fn is_sound(&self, bytes_max: u64) -> bool {
        (1..=TOKENS_MAX).contains(&(self.n_tokens as usize))
            && self.state_bytes > 0
            && self.at >= DATA_BEGIN
            && self.at.is_multiple_of(BLOCK_BYTES)
            && self
                .end()
                .is_some_and(|end| end <= bytes_max.min(FILE_BYTES_MAX))
    }
}

/// Bytes that `bytes` take of the file.
pub(super) fn room_for(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

/// Bytes that were written lately: a bucket that runs empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spent {
    bytes: u64,
    at_ms: u64,
}

impl Spent {
    /// As it is now. A clock that was set back takes nothing out.
    fn at(self, now_ms: u64, bytes_max: u64) -> Self {
        let past_ms = now_ms.saturating_sub(self.at_ms).min(DAY_MS);
        let gone = u128::from(bytes_max) * u128::from(WRITES_A_DAY) * u128::from(past_ms)
            / u128::from(DAY_MS);
        Self {
            bytes: self.bytes.saturating_sub(gone as u64),
            at_ms: now_ms,
        }
    }
}

/// All that the file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Rises with each index that is written.
    pub generation: u64,
    /// Whose states these are.
    pub owner: Owner,
    /// What wears flash.
    pub spent: Spent,
    /// Conversations that were forgotten, and when, unix milliseconds: what was made before is not saved again.
    pub forgotten: BTreeMap<u64, u64>,
    /// The states.
    pub entries: Vec<Entry>,
}

/// Where something goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The place.
    pub at: u64,
    /// Entries that have to go before.
    pub goes: Vec<u64>,
}

impl Index {
    /// As it stands in one of the two places; `None`: it is too long for one.
    pub fn to_slot(&self) -> Option<Vec<u8>> {
        let body = serde_json::to_vec(self).ok()?;
        let slot = Self::sealed(&body)?;
        (slot.len() <= SLOT_BYTES).then_some(slot)
    }

    /// A body with its head: what it is, how long, and its digest.
    pub fn sealed(body: &[u8]) -> Option<Vec<u8>> {
        let body_bytes = u32::try_from(body.len()).ok()?;
        let digest = Sha256::digest(body);
        Some([&MAGIC[..], &body_bytes.to_le_bytes(), &digest[..], body].concat())
    }

    /// Reads what stands in a place; `None`: nothing whole. Entries that would reach beyond `bytes_max`, or
    /// into each other, are left out.
    pub fn of_slot(slot: &[u8], bytes_max: u64) -> Option<Self> {
        let (head, rest) = slot.split_at_checked(HEAD_BYTES)?;
        let (magic, head) = head.split_at(MAGIC.len());
        let (body_bytes, digest) = head.split_first_chunk()?;
        let body = rest.get(..u32::from_le_bytes(*body_bytes) as usize)?;
        if magic != MAGIC || Sha256::digest(body)[..] != *digest {
            return None;
        }
        let mut index: Self = serde_json::from_slice(body).ok()?;
        index.entries.truncate(ENTRIES_MAX);
        index.entries.retain(|entry| entry.is_sound(bytes_max));
        index.entries.sort_by_key(|entry| entry.at);
        let (mut free, mut ids) = (DATA_BEGIN, Vec::new());
        index.entries.retain(|entry| {
            let is_own = entry.at >= free && !ids.contains(&entry.id);
            if is_own {
                free = entry.at + entry.room();
                ids.push(entry.id);
            }
            is_own
        });
        Some(index)
    }

    /// Bytes that entries take.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(Entry::room).sum()
    }

    /// Where the last entry ends.
    pub fn end(&self) -> u64 {
        let ends = self.entries.iter().map(|entry| entry.at + entry.room());
        ends.max().unwrap_or(DATA_BEGIN)
    }

    /// What lies between the entries: where it begins and how long it is.
    pub fn gaps(&self) -> Vec<(u64, u64)> {
        let mut taken = Vec::from_iter(self.entries.iter().map(|entry| (entry.at, entry.room())));
        taken.sort_unstable();
        let (mut free, mut gaps) = (DATA_BEGIN, Vec::new());
        for (at, room) in taken {
            if at > free {
                gaps.push((free, at - free));
            }
            free = at + room;
        }
        gaps
    }

    /// Where `bytes` for `kind` go in a file of `bytes_max`, and who makes room: first `superseded`, which go in
    /// any case, then what is worth no more, the oldest first. `None`: there is no such place.
    pub fn place(
        &self,
        bytes: u64,
        kind: Kind,
        superseded: &[u64],
        bytes_max: u64,
    ) -> Option<Place> {
        let room = room_for(bytes);
        let mut left = self.clone();
        let mut goes = Vec::new();
        let mut others =
            Vec::from_iter(left.entries.iter().filter(|entry| {
                entry.kind.rank() <= kind.rank() && !superseded.contains(&entry.id)
            }));
        others.sort_by_key(|entry| (entry.kind.rank(), entry.saved_ms));
        let mut others = Vec::from_iter(others.into_iter().map(|entry| entry.id)).into_iter();
        let mut is_first = true;
        loop {
            let gaps = left.gaps();
            let gap = gaps.into_iter().find(|(_, free)| *free >= room);
            let at = gap.map_or(left.end(), |(at, _)| at);
            let fits = at.checked_add(room).is_some_and(|end| end <= bytes_max);
            if fits && left.entries.len() < ENTRIES_MAX {
                return Some(Place { at, goes });
            }
            let more = match std::mem::take(&mut is_first) {
                true => superseded.to_vec(),
                false => vec![others.next()?],
            };
            left.entries.retain(|entry| !more.contains(&entry.id));
            goes.extend(more);
        }
    }

    /// Counts `bytes` as written, unless that is more than flash is to bear; whether they may be.
    pub fn may_write(&mut self, bytes: u64, now_ms: u64, bytes_max: u64) -> bool {
        let spent = self.spent.at(now_ms, bytes_max);
        let after = spent.bytes.saturating_add(bytes);
        let may = after <= bytes_max.saturating_mul(WRITES_AT_ONCE);
        self.spent = Spent {
            bytes: if may { after } else { spent.bytes },
            ..spent
        };
        may
    }

    /// Remembers that a conversation was forgotten.
    pub fn forget(&mut self, session: u64, now_ms: u64) {
        self.forgotten.insert(session, now_ms);
        while self.forgotten.len() > FORGOTTEN_MAX
            && let Some(oldest) = self.forgotten.iter().min_by_key(|(_, at)| **at)
        {
            let oldest = *oldest.0;
            self.forgotten.remove(&oldest);
        }
    }
}

/// A digest as it stands in the index: enough of SHA-256 to know damage from what was written.
pub(super) fn digest_of(hasher: Sha256) -> String {
    hasher.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
