//! The client of a repository: one refresh from the first root to the targets, and what is kept of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use sigstore_tuf::{Error, Role, Root, TrustedMetadataSet, Updater, UpdaterConfig};

use super::exchange::{Exchange, drive};
use super::floor::{self, Floor, Found, Keys, Verified};
use super::store::{Store, Stored};
use super::time::{Facts, signed_time};
use super::{
    Clock, Freshness, MetadataSource, SourceError, Standing, TargetInfo, Trust, TrustError,
    TrustedNow, Versions, crypto, limit,
};
use crate::ota::vfs::{Disk, Vfs};
use crate::ota::{Digest, ISSUED_FIELD, TargetName};

/// A synchronised time is noted again when it is this much later than the last one noted, seconds.
const NOTED_EVERY_S: u64 = 3600;

/// Where trust begins and where it is kept.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of its own: the lock, the two slots of the floor, and `metadata/`.
    pub folder: PathBuf,
    /// The root that came with the device; every later one must follow from it.
    pub root: Vec<u8>,
}

/// A client; the only one of its folder, in this process and in all others.
pub struct Client {
    place: Place,
    vfs: Arc<dyn Vfs>,
    floor: Floor,
    store: Store,
    exchange: Exchange,
    /// What the last refresh verified; none if it failed.
    updater: Option<Updater>,
    /// Held to the end.
    _lock: Option<Flock<File>>,
}

impl Client {
    /// Opens the folder and trusts again what was trusted at the end of the last life, as far as it is there.
    ///
    /// # Errors
    /// The folder is in use or cannot be written, the root is none, or the floor is lost.
    pub fn open(place: Place) -> Result<Self, TrustError> {
        let lock = lock(&place.folder)?;
        Self::open_locked(place, lock)
    }

    /// Forgets floor and metadata, and with them all protection against older metadata, as on a new board. For
    /// provisioning alone, where somebody with rights on the board stands for it.
    ///
    /// # Errors
    /// Somebody has the folder, or it cannot be written.
    pub fn forget(folder: &Path) -> Result<(), TrustError> {
        if !folder.exists() {
            return Ok(());
        }
        let _lock = lock(folder)?;
        // The floor goes last: a cut before that leaves a device that trusts less, not more.
        let metadata = folder.join("metadata");
        for folder in [&metadata.join("root_history"), &metadata] {
            for (file, _) in Disk.list(folder).map_err(failed("read", folder))? {
                Disk.remove(&file).map_err(failed("remove", &file))?;
            }
        }
        for slot in floor::SLOTS {
            let slot = folder.join(slot);
            Disk.remove(&slot).map_err(failed("remove", &slot))?;
        }
        Disk.sync_dir(folder).map_err(failed("write", folder))
    }

    fn open_locked(place: Place, lock: Flock<File>) -> Result<Self, TrustError> {
        let client = Self::open_on(place, Arc::new(Disk))?;
        Ok(Self {
            _lock: Some(lock),
            ..client
        })
    }

    /// The same on a file system of a test's own, where nobody else is.
    pub(super) fn open_on(place: Place, vfs: Arc<dyn Vfs>) -> Result<Self, TrustError> {
        let shipped = shipped(&place.root)?;
        let folder = &place.folder;
        let metadata = folder.join("metadata");
        vfs.make_dir(&metadata)
            .map_err(failed("create", &metadata))?;
        let store = Store::new(Arc::clone(&vfs), metadata);
        // The first floor is on the disk before the first metadata, so metadata without a floor means that
        // the floor was lost.
        let (floor, write) = match floor::read(&*vfs, folder) {
            Found::Floor { floor, repair } => (floor, repair),
            Found::Corrupt(why) => return Err(TrustError::FloorCorrupt(why)),
            Found::Nothing if !store.is_empty() => {
                return Err(TrustError::FloorCorrupt("both are missing".into()));
            }
            Found::Nothing => {
                let root = shipped.root();
                (Floor::first(root.version, keys(root)), true)
            }
        };
        let mut client = Self {
            place,
            vfs,
            floor,
            store,
            exchange: Exchange::default(),
            updater: None,
            _lock: None,
        };
        if write {
            client.write_floor(client.floor.clone())?;
        }
        let stored = client.store.clone();
        match client.run(&mut Stored(&stored), Timestamp::MIN) {
            Ok(updater) => client.updater = Some(updater),
            Err(TrustError::Store { what, source }) => {
                return Err(TrustError::Store { what, source });
            }
            Err(error) => {
                tracing::info!(%error, "nothing stored is trusted; the next refresh will tell")
            }
        }
        Ok(client)
    }

    /// Judges what the system says about the time by what signatures have proven and by what was noted.
    pub fn now(&self, facts: Facts) -> TrustedNow {
        TrustedNow::judge(&Facts {
            issued_s: self.floor.issued_s,
            noted_s: self.floor.noted_s,
            ..facts
        })
    }

    /// [`Trust::target`] by a path that need not be one of our names, with delegated roles read from a source.
    /// Repositories of ours have neither; this is for tests of conformance.
    ///
    /// # Errors
    /// See [`Trust::target`].
    pub fn find(
        &mut self,
        path: &str,
        source: &mut dyn MetadataSource,
        now: TrustedNow,
    ) -> Result<Option<TargetInfo>, TrustError> {
        let updater = self.updater.as_mut().ok_or(TrustError::NotRefreshed)?;
        let work = updater.get_target_info(path, expiry_judged_at(now));
        let (found, failure) = drive(&self.exchange, source, work);
        let kept = self.store.write();
        let found = answered(found, failure);
        if let Err((what, source)) = kept {
            self.updater = None;
            return Err(TrustError::Store { what, source });
        }
        let Some(found) = found? else { return Ok(None) };
        let digest = found
            .hashes
            .get("sha256")
            .and_then(|text| Digest::from_hex(&text.to_ascii_lowercase()).ok())
            .ok_or_else(|| TrustError::Untrusted(format!("{path:?} is signed without SHA-256")))?;
        Ok(Some(TargetInfo {
            bytes: found.length,
            digest,
        }))
    }

    /// One walk from the shipped root to the targets. Whatever of it was verified is kept, also when a later
    /// step fails; but nothing if it is below the floor.
    fn run(
        &mut self,
        source: &mut dyn MetadataSource,
        at: Timestamp,
    ) -> Result<Updater, TrustError> {
        self.updater = None;
        self.store.discard();
        let mut updater = Updater::new(self.exchange.clone(), &self.place.root)
            .map_err(|error| from_library(error, None))?
            .with_config(config())
            .with_store(self.store.clone());
        let (done, failure) = drive(&self.exchange, source, updater.refresh(at));
        let floor = match self.floor.raised_by(&verified(updater.trusted())) {
            Ok(floor) => floor,
            Err(error) => {
                self.store.discard();
                return Err(error);
            }
        };
        self.store
            .write()
            .map_err(|(what, source)| TrustError::Store { what, source })?;
        self.keep_floor(floor)?;
        answered(done, failure).map(|()| updater)
    }

    /// Writes the floor if it says something new.
    fn keep_floor(&mut self, floor: Floor) -> Result<(), TrustError> {
        match floor == self.floor {
            true => Ok(()),
            false => self.write_floor(floor),
        }
    }

    fn write_floor(&mut self, floor: Floor) -> Result<(), TrustError> {
        let floor = Floor {
            sequence: self.floor.sequence.saturating_add(1),
            ..floor
        };
        let folder = &self.place.folder;
        floor::write(&*self.vfs, folder, &floor).map_err(failed("write the floor in", folder))?;
        self.floor = floor;
        Ok(())
    }
}

impl Trust for Client {
    fn refresh(
        &mut self,
        source: &mut dyn MetadataSource,
        now: TrustedNow,
    ) -> Result<Versions, TrustError> {
        let updater = self.run(source, expiry_judged_at(now))?;
        let is_later = |noted: u64| now.at_s() >= noted.saturating_add(NOTED_EVERY_S);
        let noted_s = match now.clock() {
            Clock::Synced if self.floor.noted_s.is_none_or(is_later) => Some(now.at_s()),
            // A clock that was wrong and is right again takes its note along.
            Clock::Synced => self.floor.noted_s.map(|noted| noted.min(now.at_s())),
            Clock::Unsynced | Clock::Behind | Clock::Suspect => self.floor.noted_s,
        };
        self.keep_floor(Floor {
            noted_s,
            expired_accepted: is_expired(updater.trusted(), now),
            ..self.floor.clone()
        })?;
        self.updater = Some(updater);
        Ok(self.floor.versions)
    }

    fn target(
        &mut self,
        name: &TargetName,
        now: TrustedNow,
    ) -> Result<Option<TargetInfo>, TrustError> {
        self.find(name.as_str(), &mut Nowhere, now)
    }

    fn standing(&self, now: TrustedNow) -> Option<Standing> {
        let trusted = self.updater.as_ref()?.trusted();
        let issued_s = issued(trusted).max();
        let is_expired = is_expired(trusted, now);
        Some(Standing {
            versions: self.floor.versions,
            issued_s,
            age_days: issued_s.map(|issued| now.at_s().saturating_sub(issued) / 86_400),
            expires_s: first_expiry_s(trusted),
            freshness: match is_expired {
                false => Freshness::Fresh,
                true if self.floor.expired_accepted => Freshness::ExpiredAccepted,
                true => Freshness::Expired,
            },
        })
    }
}

fn shipped(root: &[u8]) -> Result<TrustedMetadataSet, TrustError> {
    crypto::install();
    if root.len() as u64 > limit::ROOT_BYTES {
        return Err(TrustError::Untrusted(format!(
            "the root of this device has {} bytes, expected at most {}",
            root.len(),
            limit::ROOT_BYTES
        )));
    }
    TrustedMetadataSet::from_root(root).map_err(|error| {
        TrustError::Untrusted(format!("the root of this device: {}", with_causes(&error)))
    })
}

/// Makes the folder if need be, and takes it.
fn lock(folder: &Path) -> Result<Flock<File>, TrustError> {
    Disk.make_dir(folder).map_err(failed("create", folder))?;
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(failed("lock", folder))?;
    match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(TrustError::Busy(folder.display().to_string())),
        Err((_, error)) => Err(failed("lock", folder)(error.into())),
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let what = format!("{what} {}", path.display());
    |source| TrustError::Store { what, source }
}

/// Where delegated roles would be, if our repositories had any.
struct Nowhere;

impl MetadataSource for Nowhere {
    fn get(&mut self, file: &str, _limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        Err(SourceError::Unreachable {
            file: file.to_owned(),
            why: "targets of delegated roles are not for this device".into(),
        })
    }
}

fn config() -> UpdaterConfig {
    let mut config = UpdaterConfig::default();
    config.root_max_length = limit::ROOT_BYTES;
    config.timestamp_max_length = limit::TIMESTAMP_BYTES;
    config.snapshot_max_length = limit::SNAPSHOT_BYTES;
    config.targets_max_length = limit::TARGETS_BYTES;
    config.max_root_rotations = limit::ROOT_ROTATIONS;
    config
}

/// The instant that the library compares expiry with: long ago where expired metadata is accepted.
fn expiry_judged_at(now: TrustedNow) -> Timestamp {
    if now.accepts_expired() {
        return Timestamp::MIN;
    }
    i64::try_from(now.at_s())
        .ok()
        .and_then(|at_s| Timestamp::from_second(at_s).ok())
        .unwrap_or(Timestamp::MAX)
}

fn verified(trusted: &TrustedMetadataSet) -> Verified {
    let root = trusted.root();
    let targets = trusted.targets_role("targets");
    Verified {
        root: root.version,
        timestamp: trusted.timestamp().map(|role| role.version),
        snapshot: trusted.snapshot().map(|role| role.version),
        targets: targets.map(|role| role.version),
        keys: keys(root),
        issued_s: targets.and_then(|targets| {
            signed_time(
                issued(trusted),
                seconds(root.expires),
                seconds(targets.expires),
            )
        }),
    }
}

/// A digest of the keys of each role: of what they are, not of the names that the root gives them.
fn keys(root: &Root) -> Keys {
    let of = |name: &str| {
        let role = root.role(name);
        let mut keys: Vec<_> = role
            .iter()
            .flat_map(|role| &role.keyids)
            .filter_map(|id| root.keys.get(id))
            .map(|key| {
                format!(
                    "{:?} {:?} {:?}\n",
                    key.keytype, key.scheme, key.keyval.public
                )
            })
            .collect();
        keys.sort();
        keys.dedup();
        Digest::of(keys.concat().as_bytes())
    };
    Keys {
        timestamp: of("timestamp"),
        snapshot: of("snapshot"),
        targets: of("targets"),
    }
}

/// The signed times of the roles that say one, seconds since 1970.
fn issued(trusted: &TrustedMetadataSet) -> impl Iterator<Item = u64> {
    let signed = |extra: &BTreeMap<String, Value>| {
        let text = extra.get(ISSUED_FIELD)?.as_str()?;
        text.parse().ok().map(seconds)
    };
    [
        signed(&trusted.root().extra),
        trusted.timestamp().and_then(|role| signed(&role.extra)),
        trusted.snapshot().and_then(|role| signed(&role.extra)),
        trusted
            .targets_role("targets")
            .and_then(|role| signed(&role.extra)),
    ]
    .into_iter()
    .flatten()
}

fn first_expiry_s(trusted: &TrustedMetadataSet) -> u64 {
    [
        Some(trusted.root().expires()),
        trusted.timestamp().map(Role::expires),
        trusted.snapshot().map(Role::expires),
        trusted.targets_role("targets").map(Role::expires),
    ]
    .into_iter()
    .flatten()
    .map(seconds)
    .min()
    .unwrap_or(0)
}

fn is_expired(trusted: &TrustedMetadataSet, now: TrustedNow) -> bool {
    first_expiry_s(trusted) < now.at_s()
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}

/// What the library said, in our words.
fn answered<T>(
    done: Option<sigstore_tuf::Result<T>>,
    failure: Option<SourceError>,
) -> Result<T, TrustError> {
    match done {
        Some(Ok(done)) => Ok(done),
        Some(Err(error)) => Err(from_library(error, failure)),
        None => Err(TrustError::Untrusted(
            "the library waits for nothing that it asked for".into(),
        )),
    }
}

fn from_library(error: Error, failure: Option<SourceError>) -> TrustError {
    match error {
        Error::Expired { role, expires } => TrustError::Expired {
            role,
            expires: expires.to_string(),
        },
        Error::Rollback { role, trusted, new } => TrustError::Rollback {
            role,
            found: new,
            known: trusted,
        },
        Error::NotRefreshed => TrustError::NotRefreshed,
        Error::Io { context, source } => TrustError::Store {
            what: context,
            source,
        },
        Error::Transport { message, .. } => match (failure, message.strip_suffix(" not found")) {
            (Some(failure), _) => failure.into(),
            (None, Some(file)) => TrustError::Missing(file.to_owned()),
            (None, None) => TrustError::Untrusted(message),
        },
        other => TrustError::Untrusted(with_causes(&other)),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
