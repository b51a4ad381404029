//! What the broker asks us: who somebody is, what they may do, and whether a message may pass.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{BrokerEventHandler, ClientPublishEvent, PublishAction};
use mqtt5::broker::storage::{DynamicStorage, StorageBackend};
use mqtt5::error::Result;
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::{error, info, warn};

use super::access::{DAEMON, LOCAL, Rules};
use super::{DAEMON_CLIENT_ID, STORAGE_ANSWER_LIMIT};
use crate::users::{Users, UsersError};

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How often the users file is looked at for messages, at most.
const USERS_LOOK: Duration = Duration::from_millis(250);

/// Passwords hashed at a time: each takes 19 MiB.
const HASHES_MAX: usize = 2;

/// What a wrong password costs its sender.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_millis(250);

/// Time of change, length and inode.
type FileStamp = Option<(SystemTime, u64, u64)>;

/// The users file as last read.
struct UsersFile {
    path: Option<PathBuf>,
    seen: Mutex<Seen>,
}

struct Seen {
    users: Arc<Users>,
    stamp: FileStamp,
    looked: Instant,
}

impl UsersFile {
    fn open(path: Option<PathBuf>) -> std::result::Result<UsersFile, UsersError> {
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
        Ok(UsersFile {
            path,
            seen: Mutex::new(seen),
        })
    }

    /// For each message: as of the last look, which is at most [`USERS_LOOK`] ago.
    fn users(&self) -> Arc<Users> {
        self.look(USERS_LOOK)
    }

    /// For each connection: as of now.
    fn users_now(&self) -> Arc<Users> {
        self.look(Duration::ZERO)
    }

    fn look(&self, age_max: Duration) -> Arc<Users> {
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
                    // Fail closed: who was known stays known, and nobody becomes anonymous.
                    Err(error) => error!(%error, "users file unusable, the users read before stay"),
                }
            }
        }
        seen.users.clone()
    }
}

/// Changes whenever the file is replaced.
fn stamp(path: Option<&std::path::Path>) -> FileStamp {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path?).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Authentication and authorization of every client.
pub(super) struct Guard {
    rules: Rules,
    users: UsersFile,
    /// SHA-256 of the daemon's credential: it is random, so nothing slower is needed.
    daemon: Option<[u8; 32]>,
    hashes: Semaphore,
    storage: Option<Arc<DynamicStorage>>,
    rate: Rate,
}

/// Messages of each user in the running second. Only known users get in, so that it stays small.
struct Rate {
    max: u32,
    windows: Mutex<HashMap<String, (Instant, u32)>>,
}

impl Rate {
    /// Counts one message.
    fn allows(&self, user: &str) -> bool {
        let mut windows = self.windows.lock().expect("no holder of this lock panics");
        let now = Instant::now();
        let (since, n) = match windows.get_mut(user) {
            Some(window) => window,
            None => windows.entry(user.to_owned()).or_insert((now, 0)),
        };
        if now - *since >= Duration::from_secs(1) {
            (*since, *n) = (now, 0);
        }
        *n = n.saturating_add(1);
        if *n == self.max.saturating_add(1) {
            warn!(
                user,
                max = self.max,
                "too many messages in one second, the rest is refused"
            );
        }
        *n <= self.max
    }
}

impl Guard {
    pub(super) fn new(
        rules: Rules,
        users: Option<PathBuf>,
        daemon_password: Option<&str>,
        message_rate_max: u32,
    ) -> std::result::Result<Guard, UsersError> {
        Ok(Guard {
            rules,
            users: UsersFile::open(users)?,
            daemon: daemon_password.map(|password| Sha256::digest(password).into()),
            hashes: Semaphore::new(HASHES_MAX),
            storage: None,
            rate: Rate {
                max: message_rate_max,
                windows: Mutex::default(),
            },
        })
    }

    /// Lets the guard see whose session a client id names.
    pub(super) fn with_storage(mut self, storage: Option<Arc<DynamicStorage>>) -> Guard {
        self.storage = storage;
        self
    }

    /// The user, or why there is none.
    async fn user(
        &self,
        connect: &ConnectPacket,
        client: SocketAddr,
    ) -> std::result::Result<String, &'static str> {
        let (name, password) = match (&connect.username, &connect.password) {
            (None, None) => {
                if !client.ip().is_loopback() {
                    return Err("no credentials, and the client is not on this machine");
                }
                if !self.users.users_now().is_empty() {
                    return Err("no credentials, and there are users");
                }
                return Ok(LOCAL.to_owned());
            }
            (Some(name), Some(password)) => (name.clone(), password.clone()),
            _ => return Err("a user name without a password, or the reverse"),
        };
        if name == DAEMON {
            let found: [u8; 32] = Sha256::digest(&password).into();
            // Digests of a secret: comparing them tells nothing about it.
            let equal = self.daemon.is_some_and(|expected| expected == found);
            return if equal {
                Ok(name)
            } else {
                Err("wrong credential for the daemon")
            };
        }
        let users = self.users.users_now();
        let permit = self.hashes.acquire().await.expect("never closed");
        let candidate = name.clone();
        let verified =
            tokio::task::spawn_blocking(move || users.verify(&candidate, &password)).await;
        drop(permit);
        match verified {
            Ok(true) => Ok(name),
            _ => Err("unknown user or wrong password"),
        }
    }

    /// Refuses a CONNECT whose client id or will reaches for what is not the user's.
    async fn check_connect(
        &self,
        user: &str,
        connect: &ConnectPacket,
    ) -> std::result::Result<(), &'static str> {
        if user == DAEMON {
            return Ok(());
        }
        if connect.client_id.starts_with(DAEMON_CLIENT_ID) {
            return Err("the client id is the daemon's");
        }
        if let Some(will) = &connect.will {
            if will.retain {
                return Err("a will with RETAIN would be a request that comes back for ever");
            }
            if !self.rules.may_write(user, &will.topic) {
                return Err("the will's topic is not the user's");
            }
            let response_topic = will.properties.response_topic.as_deref();
            if response_topic.is_some_and(|topic| !self.rules.may_be_answered_on(user, topic)) {
                return Err("the will's response topic is not the user's");
            }
        }
        // The crate compares the owner only when a session is resumed; a clean start by another
        // user would throw the owner out and empty its queue.
        if let Some(storage) = &self.storage {
            let session = storage.get_session(&connect.client_id);
            let session = tokio::time::timeout(STORAGE_ANSWER_LIMIT, session).await;
            return match session {
                Ok(Ok(Some(session))) if session.user_id.as_deref() != Some(user) => {
                    Err("the client id names another user's session")
                }
                Ok(Ok(_)) => Ok(()),
                Ok(Err(_)) | Err(_) => Err("the session store does not answer"),
            };
        }
        Ok(())
    }

    /// Who may still act: a user that was removed, or `local` once there are users, may not.
    fn known(&self, user: Option<&str>) -> bool {
        match user {
            None => false,
            Some(DAEMON) => true,
            Some(LOCAL) => self.users.users().is_empty(),
            Some(name) => self.users.users().contains(name),
        }
    }
}

impl AuthProvider for Guard {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client: SocketAddr,
    ) -> Answer<'a, Result<AuthResult>> {
        Box::pin(async move {
            let user = match self.user(connect, client).await {
                Ok(user) => user,
                Err(reason) => {
                    warn!(%client, user = ?connect.username, reason, "connection refused");
                    tokio::time::sleep(WRONG_PASSWORD_PAUSE).await;
                    return Ok(AuthResult::fail(ReasonCode::BadUsernameOrPassword));
                }
            };
            if let Err(reason) = self.check_connect(&user, connect).await {
                warn!(%client, user, client_id = connect.client_id, reason, "connection refused");
                return Ok(AuthResult::fail(ReasonCode::NotAuthorized));
            }
            Ok(AuthResult::success_with_user(user))
        })
    }

    fn authorize_publish<'a>(
        &'a self,
        _client_id: &str,
        user: Option<&'a str>,
        topic: &'a str,
    ) -> Answer<'a, bool> {
        let allowed = self.known(user)
            && user.is_some_and(|user| {
                self.rules.may_write(user, topic) && (user == DAEMON || self.rate.allows(user))
            });
        Box::pin(std::future::ready(allowed))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        let allowed =
            self.known(user) && user.is_some_and(|user| self.rules.may_read(user, filter));
        Box::pin(std::future::ready(allowed))
    }
}

/// Swallows messages that are allowed by topic and harmful by their properties.
pub(super) struct Filter {
    pub(super) rules: Rules,
}

impl BrokerEventHandler for Filter {
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        let user = event.user_id.as_deref().unwrap_or("");
        let response_topic = event.response_topic.as_deref();
        let reason = if user == DAEMON {
            None
        } else if event.retain {
            // It would come back at every start of the daemon, and fill the retained store.
            Some("a request with RETAIN")
        } else if response_topic.is_some_and(|topic| !self.rules.may_be_answered_on(user, topic)) {
            Some("a response topic that is not the user's")
        } else {
            None
        };
        let action = match reason {
            Some(reason) => {
                warn!(user, topic = &*event.topic, reason, "message swallowed");
                PublishAction::Handled
            }
            None => PublishAction::Continue,
        };
        Box::pin(std::future::ready(action))
    }
}
