//! A file system in memory that forgets what was not synced.
//!
//! It knows two views. The one that a program sees has every write and rename. The one that is left after a
//! power cut has the content of files as last synced, under the names that their folder had when it was last
//! synced. A cut may also keep more than it must: a file system writes back when it likes, so
//! [`Unsynced::cut`] can keep everything, which is what a killed process leaves.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Vfs, within};

/// The disk, shared by its clones. Panics with [`Cut`] at the step where the power goes.
#[derive(Debug, Clone, Default)]
pub struct Unsynced {
    shared: Arc<Mutex<Shared>>,
}

/// The payload of the panic that stands for a power cut; its text is the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut(pub String);

#[derive(Debug, Default)]
struct Shared {
    /// Content by inode: as seen, and as synced.
    inodes: BTreeMap<u64, Inode>,
    /// Names as seen.
    names: BTreeMap<PathBuf, u64>,
    /// Names as synced.
    synced_names: BTreeMap<PathBuf, u64>,
    next_inode: u64,
    /// Steps so far.
    n_steps: u64,
    /// The power goes at this step.
    cut_at: Option<u64>,
    /// The names of all steps, in order.
    steps: Vec<String>,
    /// Bytes that can be written in all; writes beyond fail.
    room_bytes: Option<u64>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    seen: Vec<u8>,
    synced: Vec<u8>,
}

/// What a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// All that was written: a process was killed, the machine went on.
    Everything,
    /// Only what was synced.
    Synced,
    /// What was synced, and names as renamed, over content that was not written: the worst that a file system
    /// may do to who forgets to sync a file before its rename.
    NamesOnly,
}

impl Unsynced {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The power goes at this step from now, the first being 0.
    pub fn cut_after(&self, n_steps: u64) {
        let mut shared = self.lock();
        shared.cut_at = Some(shared.n_steps + n_steps);
    }

    /// No cut any more.
    pub fn cut_never(&self) {
        self.lock().cut_at = None;
    }

    /// The names of the steps so far.
    pub fn steps(&self) -> Vec<String> {
        self.lock().steps.clone()
    }

    /// Only so many bytes more can be written; `None`: as many as one likes.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room_bytes = bytes;
    }

    /// The disk as it is found after a power cut.
    #[must_use]
    pub fn cut(&self, keeps: Keeps) -> Self {
        let shared = self.lock();
        let names = match keeps {
            Keeps::Everything | Keeps::NamesOnly => shared.names.clone(),
            Keeps::Synced => shared.synced_names.clone(),
        };
        let content = |inode: &Inode| match keeps {
            Keeps::Everything => inode.seen.clone(),
            Keeps::Synced | Keeps::NamesOnly => inode.synced.clone(),
        };
        let inodes = names.values().filter_map(|number| {
            let content = content(shared.inodes.get(number)?);
            let inode = Inode {
                seen: content.clone(),
                synced: content,
            };
            Some((*number, inode))
        });
        let left = Shared {
            inodes: inodes.collect(),
            synced_names: names.clone(),
            names,
            next_inode: shared.next_inode,
            ..Shared::default()
        };
        Self {
            shared: Arc::new(Mutex::new(left)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // A cut is a panic, and the disk is looked at after it.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn step(&self, name: String) {
        let mut shared = self.lock();
        shared.n_steps += 1;
        shared.steps.push(name.clone());
        if shared.cut_at.is_some_and(|at| shared.n_steps > at) {
            drop(shared);
            std::panic::panic_any(Cut(name));
        }
    }
}

impl Shared {
    fn file(&mut self, path: &Path) -> &mut Inode {
        let next = &mut self.next_inode;
        let number = *self.names.entry(path.to_owned()).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.inodes.entry(number).or_default()
    }

    fn take_room(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(room) = &mut self.room_bytes {
            *room = room
                .checked_sub(bytes.len() as u64)
                .ok_or(io::ErrorKind::StorageFull)?;
        }
        Ok(())
    }
}

fn label(what: &str, path: &Path) -> String {
    format!(
        "{what} {}",
        path.file_name().unwrap_or_default().to_string_lossy()
    )
}

impl Vfs for Unsynced {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        let shared = self.lock();
        let Some(inode) = shared.names.get(path) else {
            return Ok(None);
        };
        let bytes = shared.inodes.get(inode).map(|inode| inode.seen.clone());
        let bytes = bytes.unwrap_or_default();
        within(&bytes, bytes_max)?;
        Ok(Some(bytes))
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(label("write", path));
        let mut shared = self.lock();
        shared.file(path).seen.clear();
        shared.take_room(bytes)?;
        shared.file(path).seen.extend_from_slice(bytes);
        Ok(())
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(label("append", path));
        let mut shared = self.lock();
        shared.take_room(bytes)?;
        shared.file(path).seen.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step(label("sync", path));
        let mut shared = self.lock();
        let inode = *shared.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        if let Some(inode) = shared.inodes.get_mut(&inode) {
            inode.synced = inode.seen.clone();
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(label("rename", to));
        let mut shared = self.lock();
        let inode = shared.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        shared.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(label("remove", path));
        self.lock().names.remove(path);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step(label("sync folder", dir));
        let mut shared = self.lock();
        let is_in = |path: &PathBuf| path.parent() == Some(dir);
        let seen: Vec<_> = (shared.names.iter().filter(|(path, _)| is_in(path)))
            .map(|(path, inode)| (path.clone(), *inode))
            .collect();
        shared.synced_names.retain(|path, _| !is_in(path));
        shared.synced_names.extend(seen);
        Ok(())
    }

    fn make_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(()) // Folders are there as soon as a file is in them.
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let shared = self.lock();
        let length = |inode: &u64| {
            let inode = shared.inodes.get(inode);
            inode.map_or(0, |inode| inode.seen.len() as u64)
        };
        let is_in = |path: &PathBuf| path.parent() == Some(dir);
        let files = shared.names.iter().filter(|(path, _)| is_in(path));
        Ok(files
            .map(|(path, inode)| (path.clone(), length(inode)))
            .collect())
    }

    fn reached(&self, point: &str) {
        self.step(point.to_owned());
    }
}
