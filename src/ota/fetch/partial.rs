//! A file that is being fetched, on the disk, and which of its pieces are there.
//!
//! ```text
//! piece: verified in memory ─▶ written ─▶ fdatasync ─▶ its bit in <sha256>.have
//! ```
//!
//! A bit is set only after its piece is on the disk, so a bit that is set is true whatever was killed or lost
//! power in between. The bits themselves are not synced: one that is lost is found again when the file is
//! opened, by hashing the pieces that have none. And nothing rests on them: [`Partial::commit`] hashes the
//! whole file as the disk gives it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use tracing::{info, warn};

use super::held::Held;
use super::{FetchError, FileToFetch};
use crate::ota::blobs::{BlobStore, HAVE_SUFFIX, digest_of, forget_pages};
use crate::ota::crash;
use crate::ota::name::{DIGEST_BYTES, Digest};

/// First bytes of a bitmap file, then the SHA-256 of the table of pieces, then the bits.
const MAGIC: &[u8; 8] = b"orihave1";
const HEAD_BYTES: usize = MAGIC.len() + DIGEST_BYTES;

/// A partial file, locked against every other process.
#[derive(Debug)]
pub struct Partial {
    store: BlobStore,
    wanted: FileToFetch,
    file: Flock<File>,
    have: File,
    held: Held,
}

/// What [`Partial::commit`] found.
#[derive(Debug)]
pub(super) enum Commit {
    /// It is a blob now.
    Done,
    /// The disk does not give what was written to it; some pieces are to be fetched once more.
    Rotten,
}

impl Partial {
    /// Opens what an earlier try has left, or a file that was set aside for repair, or a new one; then looks
    /// which pieces are there.
    ///
    /// # Errors
    /// Another process fetches this file, or the disk cannot be read or written.
    pub async fn open(store: &BlobStore, wanted: &FileToFetch) -> Result<Self, FetchError> {
        let path = store.partial_path(&wanted.digest, "");
        let at = |error| FetchError::disk(&path, error);
        store.reclaim(&wanted.digest).map_err(at)?;
        let file = open_rw(&path).map_err(at)?;
        let file =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    Errno::EWOULDBLOCK => FetchError::Busy {
                        digest: wanted.digest,
                    },
                    errno => at(errno.into()),
                },
            )?;
        // Longer than the file can be: damaged, or tampered with. The rest is judged piece by piece.
        if file.metadata().map_err(at)?.len() > wanted.bytes() {
            file.set_len(wanted.bytes()).map_err(at)?;
        }
        let have_path = store.partial_path(&wanted.digest, HAVE_SUFFIX);
        let have_bytes = HEAD_BYTES as u64 + u64::from(wanted.pieces.n_pieces().div_ceil(8));
        let at_have = |error: io::Error| match is_full(&error) {
            true => FetchError::NoSpace {
                needed_bytes: have_bytes,
                free_bytes: store.free_bytes().unwrap_or(0),
                path: have_path.clone(),
            },
            false => FetchError::disk(&have_path, error),
        };
        let have = open_rw(&have_path).map_err(at_have)?;
        let held = read_bits(&have, wanted).map_err(at_have)?;
        store.sync_partial().map_err(at)?;
        let mut partial = Self {
            store: store.clone(),
            wanted: wanted.clone(),
            file,
            have,
            held,
        };
        partial.recount().await?;
        Ok(partial)
    }

    /// What is being fetched.
    pub fn wanted(&self) -> &FileToFetch {
        &self.wanted
    }

    /// Which pieces are there.
    pub fn held(&self) -> &Held {
        &self.held
    }

    /// Where it lies until it is whole.
    pub fn path(&self) -> std::path::PathBuf {
        self.store.partial_path(&self.wanted.digest, "")
    }

    /// Bytes of the pieces that are there.
    pub fn held_bytes(&self) -> u64 {
        let last_idx = self.held.n_pieces() - 1;
        let whole_bytes = u64::from(self.wanted.pieces.piece_bytes());
        let all_bytes = u64::from(self.held.n_held()) * whole_bytes;
        match self.held.has(last_idx) {
            true => all_bytes - whole_bytes + self.piece_bytes(last_idx),
            false => all_bytes,
        }
    }

    /// Sets the space aside for all that is missing, so that a disk that is too full shows now and not after
    /// hours. `reserve_bytes` must stay free beside it.
    ///
    /// # Errors
    /// [`FetchError::NoSpace`], with what is needed and what there is.
    pub fn make_room(&self, reserve_bytes: u64) -> Result<(), FetchError> {
        if self.held.next().is_none() {
            return Ok(());
        }
        let at = |error| FetchError::disk(&self.path(), error);
        let on_disk = self.file.metadata().map_err(at)?.blocks() * 512;
        let missing_bytes = self.wanted.bytes().saturating_sub(on_disk);
        let free_bytes = self.store.free_bytes().map_err(at)?;
        let needed_bytes = missing_bytes.saturating_add(reserve_bytes);
        let no_space = || FetchError::NoSpace {
            needed_bytes,
            free_bytes,
            path: self.path(),
        };
        if free_bytes < needed_bytes {
            return Err(no_space());
        }
        // At most FILE_BYTES_MAX, far from the end of i64.
        let len = self.wanted.bytes() as i64;
        match fallocate(&*self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, len) {
            Ok(()) => Ok(()),
            // Not every file system can; then a disk that others fill shows when it is full.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
            Err(Errno::ENOSPC | Errno::EDQUOT) => {
                self.give_room_back();
                Err(no_space())
            }
            Err(errno) => Err(at(errno.into())),
        }
    }

    /// What was set aside and not written goes back: others need it more than a fetch that cannot run.
    fn give_room_back(&self) {
        if let Ok(meta) = self.file.metadata() {
            // Cutting a file at its end frees what was set aside behind it.
            let _ = self.file.set_len(meta.len());
        }
    }

    /// Keeps a piece that was verified.
    ///
    /// # Errors
    /// The disk is full, or broken. The piece is then not there.
    pub fn keep(&mut self, piece_idx: u32, bytes: &[u8]) -> Result<(), FetchError> {
        let range = self
            .wanted
            .pieces
            .range(piece_idx)
            .expect("a piece of this file");
        let full = |error: io::Error| self.disk_error(error, bytes.len() as u64);
        self.file.write_all_at(bytes, range.start).map_err(full)?;
        crash::point("piece:written");
        self.file.sync_data().map_err(full)?;
        crash::point("piece:synced");
        forget_pages(&self.file, range.start, bytes.len() as u64);
        self.mark(piece_idx, true)?;
        crash::point("piece:kept");
        Ok(())
    }

    /// Sets or clears the bit of a piece.
    fn mark(&mut self, piece_idx: u32, is_held: bool) -> Result<(), FetchError> {
        let (at, byte) = self.held.set(piece_idx, is_held);
        self.have
            .write_all_at(&[byte], (HEAD_BYTES + at) as u64)
            .map_err(|error| self.disk_error(error, 1))
    }

    /// Hashes the whole file and makes it a blob.
    ///
    /// # Errors
    /// All pieces are the signed ones and the whole is not: the table does not belong to the file. Everything
    /// of it is deleted then. Or the disk fails.
    pub(super) async fn commit(
        mut self,
        mut hashed: impl FnMut(u64) -> std::time::Duration,
    ) -> Result<Commit, FetchError> {
        assert!(self.held.next().is_none(), "all pieces are there");
        let found = digest_of(&self.file, self.wanted.bytes(), &mut hashed).await;
        match found {
            Ok(found) if found == self.wanted.digest => {
                crash::point("file:hashed");
                self.store
                    .admit(&self.wanted.digest, &self.file)
                    .map_err(|error| FetchError::disk(&self.path(), error))?;
                return Ok(Commit::Done);
            }
            Ok(found) => {
                warn!(expected = %self.wanted.digest, %found, "a fetched file is not what was written")
            }
            Err(error) => warn!(%error, "a fetched file cannot be read back"),
        }
        for piece_idx in 0..self.held.n_pieces() {
            if !self.is_sound(piece_idx).await? {
                self.mark(piece_idx, false)?;
            }
        }
        if self.held.next().is_some() {
            return Ok(Commit::Rotten);
        }
        let digest = self.wanted.digest;
        self.store
            .discard(&digest)
            .map_err(|error| FetchError::disk(&self.path(), error))?;
        Err(FetchError::Table { digest })
    }

    /// Looks for pieces without a bit whose bytes are there all the same, and for bits behind the end.
    async fn recount(&mut self) -> Result<(), FetchError> {
        let len = self
            .file
            .metadata()
            .map_err(|error| FetchError::disk(&self.path(), error))?
            .len();
        let mut n_found = 0;
        for piece_idx in 0..self.held.n_pieces() {
            let end = self
                .wanted
                .pieces
                .range(piece_idx)
                .map_or(u64::MAX, |range| range.end);
            match (self.held.has(piece_idx), end <= len) {
                (true, false) => self.mark(piece_idx, false)?,
                (false, true) if self.is_sound(piece_idx).await? => {
                    // What was found in memory may never have reached the disk.
                    self.file
                        .sync_data()
                        .map_err(|error| self.disk_error(error, 0))?;
                    self.mark(piece_idx, true)?;
                    n_found += 1;
                }
                _ => {}
            }
        }
        if self.held.n_held() > 0 {
            info!(
                digest = %self.wanted.digest,
                n_held = self.held.n_held(),
                n_found,
                n_pieces = self.held.n_pieces(),
                "a fetch goes on where it was"
            );
        }
        Ok(())
    }

    /// Whether the disk gives the signed bytes of a piece. One that cannot be read is not sound.
    async fn is_sound(&self, piece_idx: u32) -> Result<bool, FetchError> {
        let mut bytes = vec![0; self.piece_bytes(piece_idx) as usize];
        let from = self
            .wanted
            .pieces
            .range(piece_idx)
            .map_or(0, |range| range.start);
        let is_sound = match self.file.read_exact_at(&mut bytes, from) {
            Ok(()) => self.wanted.pieces.is_piece(piece_idx, &bytes),
            Err(error) => {
                warn!(%error, piece_idx, "a piece cannot be read back");
                false
            }
        };
        tokio::task::yield_now().await;
        Ok(is_sound)
    }

    fn piece_bytes(&self, piece_idx: u32) -> u64 {
        let range = self.wanted.pieces.range(piece_idx);
        range.map_or(0, |range| range.end - range.start)
    }

    fn disk_error(&self, error: io::Error, needed_bytes: u64) -> FetchError {
        match is_full(&error) {
            true => FetchError::NoSpace {
                needed_bytes,
                free_bytes: self.store.free_bytes().unwrap_or(0),
                path: self.path(),
            },
            false => FetchError::disk(&self.path(), error),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn open_rw(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
}

/// The bits, when they are of this table; else none, written anew.
fn read_bits(have: &File, wanted: &FileToFetch) -> io::Result<Held> {
    let n_pieces = wanted.pieces.n_pieces();
    let table = Digest::of(&wanted.pieces.to_bytes());
    let expected_bytes = HEAD_BYTES + n_pieces.div_ceil(8) as usize;
    // One more byte than there should be shows a longer file.
    let mut found = vec![0; expected_bytes + 1];
    let n = read_up_to(have, &mut found)?;
    let is_of_this_table = n == expected_bytes
        && found.starts_with(MAGIC)
        && found[MAGIC.len()..HEAD_BYTES] == table.0;
    let stored = is_of_this_table
        .then(|| Held::from_bits(n_pieces, &found[HEAD_BYTES..expected_bytes]))
        .flatten();
    if let Some(held) = stored {
        return Ok(held);
    }
    let none = Held::none(n_pieces);
    have.set_len(0)?;
    let bytes = [&MAGIC[..], &table.0, none.bits()].concat();
    have.write_all_at(&bytes, 0)?;
    have.sync_all()?;
    Ok(none)
}

fn read_up_to(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < into.len() {
        match file.read_at(&mut into[n..], n as u64)? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}
