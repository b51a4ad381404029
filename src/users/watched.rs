//! The users file as somebody else keeps changing it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use tracing::{error, info};

use super::{Users, UsersError};

/// Time of change, length and inode: it differs whenever the file was replaced.
type Stamp = Option<(SystemTime, u64, u64)>;

/// The users of a file that is read again when it changes.
///
/// A file that becomes unusable while we look changes nothing: who was known stays known, and nobody
/// becomes anonymous.
#[derive(Debug)]
pub struct WatchedUsers {
    path: Option<PathBuf>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    users: Arc<Users>,
    stamp: Stamp,
    looked: Instant,
}

impl WatchedUsers {
    /// Reads the file; without one, or where it does not exist, there are no users.
    ///
    /// # Errors
    /// A file that is there and cannot be used.
    pub fn open(path: Option<PathBuf>) -> Result<WatchedUsers, UsersError> {
        // The stamp first: a change between the two is then read once more.
        let stamp = stamp(path.as_deref());
        let users = match &path {
            Some(path) => Users::read(path)?,
            None => Users::default(),
        };
        let seen = Seen {
            users: Arc::new(users),
            stamp,
            looked: Instant::now(),
        };
        Ok(WatchedUsers {
            path,
            seen: Mutex::new(seen),
        })
    }

    /// The users as of a look at the file at most `age_max` ago. A look is one stat(2), and a read of the
    /// file (at most 1 MiB) where it has changed.
    pub fn users(&self, age_max: Duration) -> Arc<Users> {
        let mut seen = self.seen.lock().expect("no holder of this lock panics");
        if let Some(path) = &self.path
            && seen.looked.elapsed() >= age_max
        {
            seen.looked = Instant::now();
            let now = stamp(Some(path));
            if now != seen.stamp {
                seen.stamp = now;
                match Users::read(path) {
                    Ok(users) => {
                        info!(n_users = users.names().count(), "users file read again");
                        seen.users = Arc::new(users);
                    }
                    Err(error) => error!(%error, "users file unusable, the users read before stay"),
                }
            }
        }
        seen.users.clone()
    }
}

fn stamp(path: Option<&Path>) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path?).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}
