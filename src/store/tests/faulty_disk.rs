//! A disk in memory with a page cache: what was written after the last sync survives a power cut in
//! parts, sector by sector. It can fail at the n-th change, for once or for good, and it can be full.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use nix::errno::Errno;
use redb::StorageBackend;

use crate::store::disk::Disk;

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;
/// What a file system allocates at once, when it is first written; a longer file alone takes nothing.
const BLOCK_BYTES: usize = 4096;

/// What happens at the chosen change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// Half of the change is done, then it fails with this error; later ones succeed.
    Once(Errno),
    /// The power goes: nothing works until [`FaultyDisk::power_cut`].
    Dead,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

#[derive(Debug, Default)]
struct Image {
    /// Survives.
    synced: Vec<u8>,
    /// What the program sees.
    current: Vec<u8>,
    since_sync: Vec<Change>,
    /// Changes so far, syncs and lengths counted.
    n_changes: u64,
    failure: Option<(u64, Failure)>,
    dead: bool,
    /// Where reading fails.
    bad_sector: Option<usize>,
    blocks: BTreeSet<usize>,
    /// Bytes of blocks that the file system has.
    capacity: Option<usize>,
    free: u64,
    bytes_max: u64,
    aside: Vec<Vec<u8>>,
}

/// The disk; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct FaultyDisk(Arc<Mutex<Image>>);

impl FaultyDisk {
    pub(super) fn new() -> Self {
        FaultyDisk(Arc::new(Mutex::new(Image {
            free: u64::MAX,
            bytes_max: u64::MAX,
            ..Image::default()
        })))
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.0.lock().unwrap()
    }

    /// Another disk with these bytes.
    pub(super) fn with(bytes: Vec<u8>) -> Self {
        let disk = FaultyDisk::new();
        disk.image().synced = bytes.clone();
        disk.image().current = bytes;
        disk
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.image().current.clone()
    }

    pub(super) fn n_changes(&self) -> u64 {
        self.image().n_changes
    }

    /// Fails at the n-th change from now, the next being 0.
    pub(super) fn fail_in(&self, n: u64, failure: Failure) {
        let mut image = self.image();
        image.failure = Some((image.n_changes + n, failure));
    }

    /// Leaves room for so many more bytes, or for any number.
    pub(super) fn leave(&self, bytes: Option<usize>) {
        let mut image = self.image();
        image.capacity = bytes.map(|bytes| image.blocks.len() * BLOCK_BYTES + bytes);
    }

    pub(super) fn break_sector(&self, at: usize) {
        self.image().bad_sector = Some(at);
    }

    pub(super) fn set_free(&self, bytes: u64) {
        self.image().free = bytes;
    }

    /// Takes effect with the next opening of the file.
    pub(super) fn set_bytes_max(&self, bytes: u64) {
        self.image().bytes_max = bytes;
    }

    pub(super) fn n_set_aside(&self) -> usize {
        self.image().aside.len()
    }

    /// Cuts the power and restores it: each sector written since the last sync survives or not, as the
    /// seed has it.
    pub(super) fn power_cut(&self, seed: u64) {
        let mut image = self.image();
        let mut coin = Coin(seed | 1);
        let mut bytes = std::mem::take(&mut image.synced);
        for change in std::mem::take(&mut image.since_sync) {
            match change {
                Change::Length(len) => {
                    if coin.toss() {
                        bytes.resize(len, 0);
                    }
                }
                Change::Write { offset, data } => {
                    for (n, sector) in data.chunks(SECTOR_BYTES).enumerate() {
                        if coin.toss() {
                            let at = offset + n * SECTOR_BYTES;
                            if bytes.len() < at + sector.len() {
                                bytes.resize(at + sector.len(), 0);
                            }
                            bytes[at..at + sector.len()].copy_from_slice(sector);
                        }
                    }
                }
            }
        }
        image.synced = bytes.clone();
        image.current = bytes;
        image.dead = false;
        image.failure = None;
    }
}

/// Splitmix64; the low bit of each draw is a coin.
struct Coin(u64);

impl Coin {
    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) & 1 == 1
    }
}

impl Image {
    /// Counts a change; an error means that it fails, after `part` was done.
    fn change(&mut self, part: Option<Change>) -> io::Result<()> {
        if self.dead {
            return Err(io::Error::other("no power"));
        }
        let now = self.n_changes;
        self.n_changes += 1;
        match self.failure {
            Some((at, failure)) if at == now => {
                self.failure = None;
                if let Some(part) = part {
                    self.apply(part);
                }
                match failure {
                    Failure::Once(errno) => Err(errno.into()),
                    Failure::Dead => {
                        self.dead = true;
                        Err(io::Error::other("power cut"))
                    }
                }
            }
            _ => Ok(()),
        }
    }

    fn allocate(&mut self, offset: usize, len: usize) -> io::Result<()> {
        for block in offset / BLOCK_BYTES..(offset + len).div_ceil(BLOCK_BYTES) {
            if self.blocks.contains(&block) {
                continue;
            }
            if self.free() < BLOCK_BYTES as u64 {
                return Err(Errno::ENOSPC.into());
            }
            self.blocks.insert(block);
        }
        Ok(())
    }

    fn free(&self) -> u64 {
        match self.capacity {
            Some(capacity) => capacity.saturating_sub(self.blocks.len() * BLOCK_BYTES) as u64,
            None => self.free,
        }
    }

    fn apply(&mut self, change: Change) {
        match &change {
            Change::Length(len) => {
                self.current.resize(*len, 0);
                self.blocks.split_off(&len.div_ceil(BLOCK_BYTES));
            }
            Change::Write { offset, data } => {
                self.current[*offset..*offset + data.len()].copy_from_slice(data);
            }
        }
        self.since_sync.push(change);
    }
}

#[derive(Debug)]
struct Backend(FaultyDisk);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.image().current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let image = self.0.image();
        if image.dead {
            return Err(io::Error::other("no power"));
        }
        let at = offset as usize;
        if image
            .bad_sector
            .is_some_and(|bad| (at..at + out.len()).contains(&bad))
        {
            return Err(Errno::EIO.into());
        }
        let bytes = image.current.get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut image = self.0.image();
        image.change(None)?;
        let len = len as usize;
        image.apply(Change::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.0.image();
        image.change(None)?;
        image.synced = image.current.clone();
        image.since_sync.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut image = self.0.image();
        let write = |data: &[u8]| Change::Write {
            offset: offset as usize,
            data: data.to_vec(),
        };
        image.change(Some(write(&data[..data.len() / 2])))?;
        image.allocate(offset as usize, data.len())?;
        image.apply(write(data));
        Ok(())
    }
}

impl Disk for FaultyDisk {
    fn path(&self) -> PathBuf {
        "memory".into()
    }

    fn head(&self) -> io::Result<Vec<u8>> {
        let image = self.image();
        let head = image.current.len().min(crate::store::disk::HEAD_BYTES);
        Ok(image.current[..head].to_vec())
    }

    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Backend(self.clone())))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.image().free())
    }

    fn set_aside(&self, unix_s: u64) -> io::Result<PathBuf> {
        let mut image = self.image();
        if image.dead {
            return Err(io::Error::other("no power"));
        }
        let damaged = std::mem::take(&mut image.current);
        image.bad_sector = None;
        image.aside.push(damaged);
        image.synced.clear();
        image.since_sync.clear();
        Ok(format!("memory.corrupt-{unix_s}").into())
    }

    fn bytes_max(&self) -> u64 {
        self.image().bytes_max
    }
}
