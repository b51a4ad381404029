//! The files of saved states: one for each model, in a folder of the state directory.
//!
//! Owns: their names, who may open them, how much room they may take, and that they go: with their model, with their
//! age, with a worker that crashed. A worker gets its file open, as its standard output, since it may open nothing
//! itself. What is in a file is [`crate::kv_file`]'s.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::libc;
use sha2::{Digest as _, Sha256};
use tracing::{info, warn};

use crate::disk;
use crate::frames::{LoadSpec, SavedStates};
use crate::kv_file::{DATA_BEGIN, KvFile};

/// Less room than this is none: a conversation of a small model.
const BYTES_MIN: u64 = 16 << 20;

/// For files of anybody's: nothing in them is too large or too old to be forgotten.
const ANY: SavedStates = SavedStates {
    bytes_max: u64::MAX,
    reserve_bytes: 0,
    age_seconds_max: u64::MAX,
    quiet_ms: 0,
};

/// The file for a load, open; `load` is told how long it may become. `None`: nothing is saved, and `load` says so.
pub(super) fn open(dir: Option<&Path>, load: &mut LoadSpec) -> Option<File> {
    let asked = load.saved_states.take();
    let (dir, bounds) = dir.zip(asked)?;
    sweep(dir, bounds.age_seconds_max);
    match open_for(dir, load, bounds) {
        Ok((file, bounds)) if bounds.bytes_max >= BYTES_MIN.min(asked?.bytes_max) => {
            load.saved_states = Some(bounds);
            Some(file)
        }
        Ok(_) => {
            let reserve_bytes = bounds.reserve_bytes;
            info!(dir = %dir.display(), reserve_bytes, "the disk is nearly full: no states are saved");
            None
        }
        Err(error) => {
            warn!(dir = %dir.display(), %error, "states cannot be saved");
            None
        }
    }
}

fn open_for(dir: &Path, load: &LoadSpec, bounds: SavedStates) -> io::Result<(File, SavedStates)> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let file = open_file(&dir.join(file_name(load)), true)?;
    let own_bytes = file.metadata()?.blocks() * 512;
    let room = disk::free_bytes(dir)?.saturating_add(own_bytes);
    let bytes_max = bounds
        .bytes_max
        .min(room.saturating_sub(bounds.reserve_bytes));
    Ok((
        file,
        SavedStates {
            bytes_max: bytes_max.max(DATA_BEGIN),
            ..bounds
        },
    ))
}

/// Of a regular file that nobody else has a name for.
fn open_file(path: &Path, creates: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(creates)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        let text = format!("{} is no file of ours", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(file)
}

/// Of a model: its name, and where it lies.
fn file_name(load: &LoadSpec) -> String {
    let digest = Sha256::digest(load.path.as_os_str().as_encoded_bytes());
    let digest = digest[..8].iter().map(|byte| format!("{byte:02x}"));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name = load.name.replace(|c| !is_plain(c), "_");
    format!("{name}-{}.kv", digest.collect::<String>())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "kv"))
        .collect()
}

/// Removes what nobody will come back to: files of models that are gone or others now, and old ones.
pub(super) fn sweep(dir: &Path, age_seconds_max: u64) {
    let age_max = Duration::from_secs(age_seconds_max);
    for path in files(dir) {
        let Ok(file) = open_file(&path, false) else {
            warn!(path = %path.display(), "not a file of saved states: it is left alone");
            continue;
        };
        let written = file.metadata().and_then(|metadata| metadata.modified());
        let age = written.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        let is_old = age.is_ok_and(|age| age > age_max);
        let owner = KvFile::of_anybody(file, ANY).whose();
        let is_gone =
            matches!(&owner, Ok(Some(owner)) if !owner.path.is_empty() && !owner.is_there());
        if is_old || is_gone {
            info!(path = %path.display(), is_old, "saved states removed");
            remove_file(&path);
        }
    }
}

/// A worker with this model crashed: what it left may be why.
pub(super) fn remove(dir: Option<&Path>, load: &LoadSpec) {
    let Some(path) = dir.map(|dir| dir.join(file_name(load))) else {
        return;
    };
    if path.exists() {
        info!(path = %path.display(), "saved states removed, since the engine crashed");
        remove_file(&path);
    }
}

fn remove_file(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        warn!(path = %path.display(), %error, "saved states not removed");
    }
}

/// Takes the conversation with this number out of all files, those of running workers included. Waits while one
/// of these is being written.
///
/// # Errors
/// A file could not be changed.
pub fn forget(dir: &Path, session: u64) -> io::Result<()> {
    // As the worker has it, which says when a state was made.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_ms = since.map_or(0, |since| since.as_millis() as u64);
    let mut done = Ok(());
    for path in files(dir) {
        let file = match open_file(&path, false) {
            Ok(file) => file,
            Err(error) => {
                // No worker has it either.
                warn!(path = %path.display(), %error, "not a file of saved states");
                continue;
            }
        };
        let forgotten = KvFile::of_anybody(file, ANY).forget(session, now_ms);
        if let Err(error) = forgotten {
            warn!(path = %path.display(), %error, "a conversation cannot be taken out of it");
            done = Err(error);
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::kv_file::{Kind, New, Outcome, Owner};

    struct Place {
        dir: tempfile::TempDir,
        load: LoadSpec,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("m.gguf");
            std::fs::write(&path, "a model").unwrap();
            let config = crate::config::load(&crate::config::Sources::defaults()).unwrap();
            let model = config.models.get("m");
            let mut load = model.load_spec(&config.engine, "m", &path);
            load.saved_states.as_mut().unwrap().reserve_bytes = 0;
            Self { dir, load }
        }

        fn kv(&self) -> PathBuf {
            self.dir.path().join("kv")
        }

        fn open(&self) -> Option<(File, SavedStates)> {
            let mut load = self.load.clone();
            let file = open(Some(&self.kv()), &mut load);
            file.zip(load.saved_states)
        }

        fn save(&self, session: u64) {
            let (file, bounds) = self.open().unwrap();
            let owner = Owner::of(&self.load.path, "layout".into()).unwrap();
            let new = New {
                tokens: &[session as i32; 200],
                state: &[session as u8; 5000],
                kind: Kind::Session(session),
                made_ms: 1,
            };
            let saved = KvFile::new(file, owner, bounds).save(&new, 2, &AtomicBool::new(false));
            assert!(matches!(saved, Ok(Outcome::Saved(_))));
        }

        fn files(&self) -> usize {
            files(&self.kv()).len()
        }
    }

    #[test]
    fn only_its_owner_may_open_it_and_no_link_is_followed() {
        let place = Place::new();
        place.save(1);
        let path = files(&place.kv()).remove(0);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&place.kv())), (0o600, 0o700));
        for link in [
            std::os::unix::fs::symlink,
            std::fs::hard_link::<PathBuf, PathBuf> as fn(PathBuf, PathBuf) -> io::Result<()>,
        ] {
            std::fs::remove_file(&path).unwrap();
            link(place.load.path.clone(), path.clone()).unwrap();
            assert!(place.open().is_none());
        }
        assert_eq!(std::fs::read(&place.load.path).unwrap(), b"a model");
    }

    #[test]
    fn a_conversation_is_forgotten_also_where_no_worker_runs() {
        let place = Place::new();
        place.save(1);
        place.save(2);
        forget(&place.kv(), 1).unwrap();
        let bytes = std::fs::read(&files(&place.kv())[0]).unwrap();
        let has = |n: u8| bytes.windows(100).any(|part| part == [n; 100]);
        assert!(!has(1) && has(2));
    }

    #[test]
    fn it_goes_with_its_model_with_its_age_and_with_a_crash() {
        let place = Place::new();
        let age = place.load.saved_states.unwrap().age_seconds_max;
        place.save(1);
        sweep(&place.kv(), age);
        assert_eq!(place.files(), 1);
        std::fs::write(&place.load.path, "another").unwrap();
        sweep(&place.kv(), age);
        assert_eq!(place.files(), 0, "another model by that name");
        place.save(1);
        std::fs::remove_file(&place.load.path).unwrap();
        sweep(&place.kv(), age);
        assert_eq!(place.files(), 0, "no model");
        std::fs::write(&place.load.path, "a model").unwrap();
        place.save(1);
        let file = File::open(&files(&place.kv())[0]).unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(age + 60);
        file.set_modified(long_ago).unwrap();
        sweep(&place.kv(), age);
        assert_eq!(place.files(), 0, "old");
        place.save(1);
        remove(Some(&place.kv()), &place.load);
        assert_eq!(place.files(), 0, "a crash");
    }

    #[test]
    fn a_disk_without_room_and_a_setting_of_nothing_save_nothing() {
        let mut place = Place::new();
        place.load.saved_states.as_mut().unwrap().reserve_bytes = u64::MAX / 2;
        assert!(place.open().is_none());
        place.load.saved_states = None;
        assert!(place.open().is_none());
    }
}
