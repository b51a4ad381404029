//! What the broker asks us: who somebody is, what they may do, and whether a message may pass.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{BrokerEventHandler, ClientPublishEvent, PublishAction};
use mqtt5::broker::storage::{DynamicStorage, StorageBackend};
use mqtt5::error::Result;
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::warn;

use super::{DAEMON_CLIENT_ID, STORAGE_ANSWER_LIMIT};
use crate::access::{DAEMON, Role, Rules, Who};
use crate::users::{UsersError, WatchedUsers};
use crate::wire::topic::LOCAL_USER;

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How often the users file is looked at for messages, at most.
const USERS_LOOK: Duration = Duration::from_millis(250);

/// Passwords hashed at a time: each takes 19 MiB.
const HASHES_MAX: usize = 2;

/// What a wrong password costs its sender.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_millis(250);

/// Who there is, and what each is for.
pub(super) struct Accounts {
    file: WatchedUsers,
    /// From the configuration; they win over those of the file.
    roles: BTreeMap<String, Role>,
}

impl Accounts {
    pub(super) fn open(
        file: Option<PathBuf>,
        roles: BTreeMap<String, Role>,
    ) -> std::result::Result<Accounts, UsersError> {
        Ok(Accounts {
            file: WatchedUsers::open(file)?,
            roles,
        })
    }

    /// Who may still act: a user that was removed, or `local` once there are users, may not.
    fn who<'a>(&self, user: Option<&'a str>) -> Option<Who<'a>> {
        let name = user?;
        if name == DAEMON {
            return Some(Who::Daemon);
        }
        let users = self.file.users(USERS_LOOK);
        let role = match name {
            LOCAL_USER if users.is_empty() => Role::Device,
            LOCAL_USER => return None,
            name => users.role(name)?,
        };
        let role = self.roles.get(name).copied().unwrap_or(role);
        Some(Who::User { name, role })
    }
}

/// Authentication and authorization of every client.
pub(super) struct Guard {
    rules: Arc<Rules>,
    accounts: Arc<Accounts>,
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
        rules: Arc<Rules>,
        accounts: Arc<Accounts>,
        daemon_password: Option<&str>,
        message_rate_max: u32,
    ) -> Guard {
        Guard {
            rules,
            accounts,
            daemon: daemon_password.map(|password| Sha256::digest(password).into()),
            hashes: Semaphore::new(HASHES_MAX),
            storage: None,
            rate: Rate {
                max: message_rate_max,
                windows: Mutex::default(),
            },
        }
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
                if !self.accounts.file.users(Duration::ZERO).is_empty() {
                    return Err("no credentials, and there are users");
                }
                return Ok(LOCAL_USER.to_owned());
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
        let users = self.accounts.file.users(Duration::ZERO);
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
        let who = match self.accounts.who(Some(user)) {
            Some(Who::Daemon) => return Ok(()),
            Some(who) => who,
            None => return Err("the user was removed just now"),
        };
        if connect.client_id.starts_with(DAEMON_CLIENT_ID) {
            return Err("the client id is the daemon's");
        }
        if let Some(will) = &connect.will {
            if !self.rules.may_write(who, &will.topic) {
                return Err("the will's topic is not the user's");
            }
            if will.retain && !self.rules.may_retain(who, &will.topic) {
                return Err("a will with RETAIN would be a request that comes back for ever");
            }
            let response_topic = will.properties.response_topic.as_deref();
            if response_topic.is_some_and(|topic| !self.rules.may_be_answered_on(who, topic)) {
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
        let allowed = self.accounts.who(user).is_some_and(|who| {
            self.rules.may_write(who, topic)
                && match who {
                    Who::Daemon => true,
                    Who::User { name, .. } => self.rate.allows(name),
                }
        });
        Box::pin(std::future::ready(allowed))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        let who = self.accounts.who(user);
        let allowed = who.is_some_and(|who| self.rules.may_read(who, filter));
        Box::pin(std::future::ready(allowed))
    }
}

/// Swallows messages that are allowed by topic and harmful by their properties.
pub(super) struct Filter {
    pub(super) rules: Arc<Rules>,
    pub(super) accounts: Arc<Accounts>,
}

impl Filter {
    fn harm(&self, event: &ClientPublishEvent) -> Option<&'static str> {
        let Some(who) = self.accounts.who(event.user_id.as_deref()) else {
            return Some("a user that was removed just now");
        };
        if event.retain && !self.rules.may_retain(who, &event.topic) {
            // It would be done again at every start of the daemon, and fill the retained store.
            return Some("RETAIN on a topic where nothing is to stay");
        }
        let foreign = |topic: &str| !self.rules.may_be_answered_on(who, topic);
        if event.response_topic.as_deref().is_some_and(foreign) {
            return Some("a response topic that is not the user's");
        }
        None
    }
}

impl BrokerEventHandler for Filter {
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        let action = match self.harm(&event) {
            Some(reason) => {
                let user = event.user_id.as_deref().unwrap_or_default();
                warn!(user, topic = &*event.topic, reason, "message swallowed");
                PublishAction::Handled
            }
            None => PublishAction::Continue,
        };
        Box::pin(std::future::ready(action))
    }
}
