//! What a file of saved states is written on: a file, or in tests one whose power is cut.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes that keep what was synced.
pub trait Medium {
    /// Waits until no other process has it locked.
    ///
    /// # Errors
    /// The disk refuses; so for all of these.
    fn lock(&self) -> io::Result<()>;
    /// Lets others have it.
    fn unlock(&self);
    /// Length.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn len(&self) -> io::Result<u64>;
    /// Whether nothing was ever written.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills `bytes`, all of which must be there.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes`.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// What was written before survives a power cut.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn sync(&self) -> io::Result<()>;
    /// From now on these bytes are zeros, and take no room.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn clear(&self, at: u64, n_bytes: u64) -> io::Result<()>;
    /// Cuts it, or makes it longer.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn set_len(&self, n_bytes: u64) -> io::Result<()>;
    /// What is free beside it.
    #[expect(clippy::missing_errors_doc, reason = "said above")]
    fn free_bytes(&self) -> io::Result<u64>;
}

impl Medium for File {
    fn lock(&self) -> io::Result<()> {
        File::lock(self)
    }

    fn unlock(&self) {
        // It can only fail where there is no lock; closing the file lets go of it in any case.
        let _ = File::unlock(self);
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn clear(&self, at: u64, n_bytes: u64) -> io::Result<()> {
        let end = Medium::len(self)?;
        let n_bytes = n_bytes.min(end.saturating_sub(at));
        if n_bytes == 0 {
            return Ok(());
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(self, hole, at as i64, n_bytes as i64) {
            Ok(()) => Ok(()),
            // A file system without holes.
            Err(Errno::EOPNOTSUPP) => {
                let zeros = [0; 64 << 10];
                for done in (0..n_bytes).step_by(zeros.len()) {
                    let n = (n_bytes - done).min(zeros.len() as u64);
                    self.write_all_at(&zeros[..n as usize], at + done)?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn set_len(&self, n_bytes: u64) -> io::Result<()> {
        // Not to be longer: then it would be written for nothing.
        match Medium::len(self)? > n_bytes {
            true => File::set_len(self, n_bytes),
            false => Ok(()),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        crate::disk::free_bytes_of(self)
    }
}
