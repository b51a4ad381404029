//! The versions below which nothing is trusted any more, kept apart from the metadata in two slots.
//!
//! The library compares new metadata with the metadata that it stored. When a power cut has emptied those files
//! it has nothing to compare with, and takes an old repository for news. The floor has. It is written to
//! `floor.a` and then to `floor.b`, each replaced durably, so a cut leaves one of them whole; the one written
//! last wins. With both unreadable there is no protection left, so nothing is trusted and a person must look.
//!
//! The floor of a role sinks in one case alone, that of recovery: keys were stolen, the thief signed version
//! 4,000,000,000, and the owner made a new root with new keys and goes on where they were. So it may sink if the
//! root's version rose and the keys of the role were replaced; for targets also if those of snapshot were, since
//! the specification (5.3.11) lets owners recover that way.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{TrustError, Versions};
use crate::ota::Digest;
use crate::ota::vfs::{Vfs, replace};

/// Names of the slots.
pub(super) const SLOTS: [&str; 2] = ["floor.a", "floor.b"];
/// Longest slot that is read.
const SLOT_BYTES_MAX: u64 = 4096;

/// Digests of the keys that may sign for a role, so that a replacement is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keys {
    pub(super) timestamp: Digest,
    pub(super) snapshot: Digest,
    pub(super) targets: Digest,
}

/// What one slot says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Floor {
    /// Counts the writings.
    pub(super) sequence: u64,
    pub(super) versions: Versions,
    pub(super) keys: Keys,
    /// See [`super::time::signed_time`].
    pub(super) issued_s: Option<u64>,
    /// The last synchronised time that we noted.
    pub(super) noted_s: Option<u64>,
    /// Whether what is trusted had expired when it was accepted.
    pub(super) expired_accepted: bool,
}

/// What was verified: a version for each role that there is, and the root's keys.
#[derive(Debug, Clone)]
pub(super) struct Verified {
    pub(super) root: u64,
    pub(super) timestamp: Option<u64>,
    pub(super) snapshot: Option<u64>,
    pub(super) targets: Option<u64>,
    pub(super) keys: Keys,
    /// See [`super::time::signed_time`].
    pub(super) issued_s: Option<u64>,
}

impl Floor {
    /// Of a device that has seen nothing but the root that it came with.
    pub(super) fn first(root: u64, keys: Keys) -> Self {
        Self {
            sequence: 0,
            versions: Versions {
                root,
                ..Versions::default()
            },
            keys,
            issued_s: None,
            noted_s: None,
            expired_accepted: false,
        }
    }

    /// The floor after something was verified; roles that were not verified keep theirs.
    ///
    /// # Errors
    /// A role is below its floor, and no replacement of keys allows that.
    pub(super) fn raised_by(&self, verified: &Verified) -> Result<Self, TrustError> {
        let known = self.versions;
        let root_rose = verified.root > known.root;
        let rotated =
            |role: fn(&Keys) -> &Digest| root_rose && role(&verified.keys) != role(&self.keys);
        let snapshot_rotated = rotated(|keys| &keys.snapshot);
        let next = |role, found: Option<u64>, known, may_sink| match found {
            None if may_sink => Ok(0),
            None => Ok(known),
            Some(found) if found < known && !may_sink => Err(TrustError::Rollback {
                role: String::from(role),
                found,
                known,
            }),
            Some(found) => Ok(found),
        };
        Ok(Self {
            versions: Versions {
                root: next("root", Some(verified.root), known.root, false)?,
                timestamp: next(
                    "timestamp",
                    verified.timestamp,
                    known.timestamp,
                    rotated(|keys| &keys.timestamp),
                )?,
                snapshot: next(
                    "snapshot",
                    verified.snapshot,
                    known.snapshot,
                    snapshot_rotated,
                )?,
                targets: next(
                    "targets",
                    verified.targets,
                    known.targets,
                    snapshot_rotated || rotated(|keys| &keys.targets),
                )?,
            },
            keys: verified.keys.clone(),
            // A time that a thief signed goes with the stolen keys.
            issued_s: match snapshot_rotated || rotated(|keys| &keys.timestamp) {
                true => verified.issued_s,
                false => self.issued_s.max(verified.issued_s),
            },
            ..self.clone()
        })
    }

    /// The text of a slot: JSON, and its SHA-256 in a line of its own.
    fn to_text(&self) -> Result<String, serde_json::Error> {
        let body = serde_json::to_string(self)?;
        let digest = Digest::of(body.as_bytes());
        Ok(format!("{body}\n{digest}\n"))
    }

    fn from_text(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, digest) = text.strip_suffix('\n')?.split_once('\n')?;
        (Digest::from_hex(digest).ok()? == Digest::of(body.as_bytes())).then_some(())?;
        serde_json::from_str(body).ok()
    }
}

/// What the slots say.
pub(super) enum Found {
    /// No slot was ever written.
    Nothing,
    /// The one written last; whether the other has to be repaired.
    Floor { floor: Floor, repair: bool },
    /// There are slots, and none is readable.
    Corrupt(String),
}

/// Reads the slots in a folder.
pub(super) fn read(vfs: &dyn Vfs, folder: &Path) -> Found {
    let slots = SLOTS.map(|name| vfs.read(&folder.join(name), SLOT_BYTES_MAX));
    if slots.iter().all(|slot| matches!(slot, Ok(None))) {
        return Found::Nothing;
    }
    let whole = slots.each_ref().map(|slot| {
        let bytes = slot.as_ref().ok()?.as_ref()?;
        Floor::from_text(bytes)
    });
    let repair = whole[0] != whole[1];
    match whole
        .into_iter()
        .flatten()
        .max_by_key(|floor| floor.sequence)
    {
        Some(floor) => Found::Floor { floor, repair },
        None => Found::Corrupt(
            SLOTS
                .iter()
                .zip(slots)
                .map(|(name, slot)| match slot {
                    Ok(Some(bytes)) => {
                        format!("{name} has {} bytes that are no floor", bytes.len())
                    }
                    Ok(None) => format!("{name} is missing"),
                    Err(error) => format!("{name}: {error}"),
                })
                .collect::<Vec<_>>()
                .join(", "),
        ),
    }
}

/// Writes both slots, one after the other.
///
/// # Errors
/// Of the disk; one slot is whole all the same.
pub(super) fn write(vfs: &dyn Vfs, folder: &Path, floor: &Floor) -> io::Result<()> {
    let text = floor.to_text().map_err(io::Error::other)?;
    SLOTS
        .iter()
        .map(|name| -> PathBuf { folder.join(name) })
        .try_for_each(|path| replace(vfs, &path, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ota::vfs::Disk;
    use proptest::prelude::*;
    use std::fs;

    fn keys(timestamp: u8, snapshot: u8, targets: u8) -> Keys {
        let digest = |byte| Digest([byte; 32]);
        Keys {
            timestamp: digest(timestamp),
            snapshot: digest(snapshot),
            targets: digest(targets),
        }
    }

    fn floor(root: u64, versions: [u64; 3]) -> Floor {
        let [timestamp, snapshot, targets] = versions;
        let mut floor = Floor::first(root, keys(1, 1, 1));
        floor.versions = Versions {
            root,
            timestamp,
            snapshot,
            targets,
        };
        floor
    }

    fn verified(root: u64, versions: [u64; 3], keys: Keys) -> Verified {
        let [timestamp, snapshot, targets] = versions.map(Some);
        Verified {
            root,
            timestamp,
            snapshot,
            targets,
            keys,
            issued_s: None,
        }
    }

    #[test]
    fn no_role_sinks_under_the_same_keys_though_the_root_rose() {
        let floor = floor(1, [5, 5, 5]);
        for lower in [[4, 5, 5], [5, 4, 5], [5, 5, 4]] {
            let found = verified(2, lower, keys(1, 1, 1));
            assert!(matches!(
                floor.raised_by(&found),
                Err(TrustError::Rollback { .. })
            ));
        }
    }

    #[test]
    fn no_role_sinks_under_new_keys_without_a_new_root() {
        let found = verified(1, [1, 1, 1], keys(2, 2, 2));
        assert!(floor(1, [5, 5, 5]).raised_by(&found).is_err());
    }

    #[test]
    fn a_role_whose_keys_a_new_root_replaced_starts_again() {
        let floor = floor(1, [900, 900, 900]);
        let recovered = |versions, keys| floor.raised_by(&verified(2, versions, keys)).is_ok();
        assert!(recovered([1, 900, 900], keys(2, 1, 1)));
        assert!(recovered([900, 1, 900], keys(1, 2, 1)));
        assert!(recovered([900, 900, 1], keys(1, 1, 2)));
        assert!(recovered([900, 900, 1], keys(1, 2, 1)), "by the snapshot's");
        assert!(!recovered([900, 1, 900], keys(2, 1, 2)));
        assert!(!recovered([1, 900, 900], keys(1, 2, 2)));
    }

    #[test]
    fn the_root_never_sinks() {
        let found = verified(4, [9, 9, 9], keys(2, 2, 2));
        assert!(matches!(
            floor(5, [1, 1, 1]).raised_by(&found),
            Err(TrustError::Rollback { ref role, found: 4, known: 5 }) if role == "root"
        ));
    }

    #[test]
    fn one_lost_slot_is_repaired_from_the_other_and_two_are_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(&Disk, dir.path()), Found::Nothing));
        let floor = floor(3, [7, 6, 5]);
        write(&Disk, dir.path(), &floor).unwrap();
        for (slot, damage) in [(0, &b""[..]), (1, &b"{}\n"[..])] {
            fs::write(dir.path().join(SLOTS[slot]), damage).unwrap();
            match read(&Disk, dir.path()) {
                Found::Floor {
                    floor: found,
                    repair: true,
                } => assert_eq!(found, floor),
                _ => panic!("one slot is whole"),
            }
            write(&Disk, dir.path(), &floor).unwrap();
        }
        for slot in SLOTS {
            fs::write(dir.path().join(slot), b"").unwrap();
        }
        assert!(matches!(read(&Disk, dir.path()), Found::Corrupt(_)));
    }

    proptest! {
        #[test]
        fn floor_survives_its_text_and_no_changed_byte_does(
            root: u64, versions: [u64; 3], issued_s: Option<u64>, at in 0usize..1000, to: u8,
        ) {
            let floor = Floor { issued_s, ..floor(root, versions) };
            let mut bytes = floor.to_text().unwrap().into_bytes();
            prop_assert_eq!(Floor::from_text(&bytes), Some(floor));
            let at = at % bytes.len();
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            prop_assert_eq!(Floor::from_text(&bytes), None);
        }

        #[test]
        fn a_floor_once_raised_refuses_all_that_is_lower_under_the_same_keys(
            before: [u64; 3], after: [u64; 3], later: [u64; 3], root in 1u64..9,
        ) {
            if let Ok(raised) = floor(1, before).raised_by(&verified(root, after, keys(1, 1, 1))) {
                let lower = later.iter().zip(after).any(|(later, after)| *later < after);
                let found = verified(root, later, keys(1, 1, 1));
                prop_assert_eq!(raised.raised_by(&found).is_err(), lower);
            }
        }
    }
}
