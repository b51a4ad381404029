//! Who there is, what each is for, and whether a password is right.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use super::BrokerError;
use crate::access::{DAEMON, Role, Who};
use crate::users::{Hasher, Users, UsersError, WatchedUsers};
use crate::wire::topic::LOCAL_USER;

/// How often the users file is looked at for messages, at most.
const LOOK: Duration = Duration::from_millis(250);

/// Passwords hashed at a time: each takes 19 MiB.
const HASHERS: usize = 2;

/// The accounts, and the daemon's credential.
pub(super) struct Accounts {
    file: WatchedUsers,
    /// From the configuration; they win over those of the file.
    roles: BTreeMap<String, Role>,
    /// SHA-256 of the daemon's credential: it is random, so nothing slower is needed.
    daemon: Option<[u8; 32]>,
    hashing: mpsc::Sender<Hashing>,
    verified: Verified,
}

/// A password to be hashed, and who waits for it.
struct Hashing {
    users: Arc<Users>,
    name: String,
    password: Vec<u8>,
    answer: oneshot::Sender<bool>,
}

/// Threads of their own, each with the memory of a hash; they end with the sender.
fn start_hashers() -> io::Result<mpsc::Sender<Hashing>> {
    let (sender, receiver) = mpsc::channel::<Hashing>(1);
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..HASHERS {
        let receiver = receiver.clone();
        let next = move || receiver.lock().ok()?.blocking_recv();
        let hash = move || {
            let mut hasher = Hasher::default();
            while let Some(job) = next() {
                let is_right = hasher.verify(&job.users, &job.name, &job.password);
                let _ = job.answer.send(is_right); // The client may have gone.
            }
        };
        thread::Builder::new()
            .name("passwords".into())
            .spawn(hash)?;
    }
    Ok(sender)
}

/// What was found right before, so that known devices come back without a hash: all of them at once after
/// a restart, and also while somebody keeps every hash busy with wrong passwords. Only known users are in
/// it, each once; no password can be had from it, since its key goes with the process.
struct Verified {
    key: [u8; 32],
    digests: Mutex<HashMap<String, [u8; 32]>>,
}

impl Accounts {
    pub(super) fn open(
        file: Option<PathBuf>,
        roles: BTreeMap<String, Role>,
        daemon_password: Option<&str>,
    ) -> Result<Accounts, BrokerError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(UsersError::Salt)?;
        Ok(Accounts {
            file: WatchedUsers::open(file)?,
            roles,
            daemon: daemon_password.map(|password| Sha256::digest(password).into()),
            hashing: start_hashers().map_err(BrokerError::Runtime)?,
            verified: Verified {
                key,
                digests: Mutex::default(),
            },
        })
    }

    /// Who may act now: a user that was removed, or `local` once there are users, may not.
    pub(super) fn who<'a>(&self, user: Option<&'a str>) -> Option<Who<'a>> {
        let name = user?;
        if name == DAEMON {
            return Some(Who::Daemon);
        }
        let users = self.file.users(LOOK);
        let role = match name {
            LOCAL_USER if users.is_empty() => Role::Device,
            LOCAL_USER => return None,
            name => users.role(name)?,
        };
        let role = self.roles.get(name).copied().unwrap_or(role);
        Some(Who::User { name, role })
    }

    /// The users as they are now.
    pub(super) fn users(&self) -> Arc<Users> {
        self.file.users(Duration::ZERO)
    }

    /// Whether somebody who gives this name knows its password.
    pub(super) async fn verify(&self, name: &str, password: &[u8]) -> bool {
        if name == DAEMON {
            let found: [u8; 32] = Sha256::digest(password).into();
            // Digests of a secret: comparing them tells nothing about it.
            return self.daemon.is_some_and(|expected| expected == found);
        }
        let users = self.users();
        if self.verified.knows(&users, name, password) {
            return true;
        }
        let (answer, is_right) = oneshot::channel();
        let hashing = Hashing {
            users: users.clone(),
            name: name.to_owned(),
            password: password.to_vec(),
            answer,
        };
        // A hasher that is gone lets nobody in.
        let is_right = match self.hashing.send(hashing).await {
            Ok(()) => is_right.await.unwrap_or(false),
            Err(_) => false,
        };
        if is_right {
            self.verified.learn(&users, name, password);
        }
        is_right
    }
}

impl Verified {
    fn knows(&self, users: &Users, name: &str, password: &[u8]) -> bool {
        let known = self.digests().get(name).copied();
        known.is_some() && known == self.digest(users, name, password)
    }

    fn learn(&self, users: &Users, name: &str, password: &[u8]) {
        if let Some(digest) = self.digest(users, name, password) {
            self.digests().insert(name.to_owned(), digest);
        }
    }

    /// Of the stored hash, too: a changed password is another account.
    fn digest(&self, users: &Users, name: &str, password: &[u8]) -> Option<[u8; 32]> {
        let mut digest = Sha256::new();
        digest.update(self.key);
        digest.update(Sha256::digest(users.stored_hash(name)?));
        digest.update(password);
        Some(digest.finalize().into())
    }

    fn digests(&self) -> std::sync::MutexGuard<'_, HashMap<String, [u8; 32]>> {
        self.digests.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users;

    #[tokio::test]
    async fn a_password_that_was_right_once_is_right_until_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("users.toml");
        users::add(&file, "ann", "first", None).unwrap();
        let accounts = Accounts::open(Some(file.clone()), BTreeMap::new(), None).unwrap();
        assert!(!accounts.verify("ann", b"second").await);
        assert!(accounts.verify("ann", b"first").await);
        assert!(accounts.verified.knows(&accounts.users(), "ann", b"first"));
        assert!(!accounts.verify("ann", b"second").await);
        assert!(!accounts.verify("bob", b"first").await);

        users::add(&file, "ann", "second", None).unwrap();
        assert!(!accounts.verify("ann", b"first").await);
        assert!(accounts.verify("ann", b"second").await);
        users::remove(&file, "ann").unwrap();
        assert!(!accounts.verify("ann", b"second").await);
    }
}
