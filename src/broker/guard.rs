//! What the broker asks us: who somebody is, what they may do, and whether a message may pass.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{
    BrokerEventHandler, ClientConnectEvent, ClientDisconnectEvent, ClientPublishEvent,
    PublishAction, RetainedSetEvent,
};
use mqtt5::broker::storage::{DynamicStorage, RetainedMessage, StorageBackend};
use mqtt5::error::Result;
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::protocol::v5::reason_codes::ReasonCode;
use tracing::warn;

use super::accounts::Accounts;
use super::rate::{Rate, Throttle};
use super::retained::Retained;
use super::server::Strangers;
use super::{DAEMON_CLIENT_ID, STORAGE_ANSWER_LIMIT};
use crate::access::{DAEMON, Rules, Who};
use crate::users::Account;
use crate::wire::topic::LOCAL_USER;

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a wrong password costs its sender.
const WRONG_PASSWORD_PAUSE: Duration = Duration::from_millis(250);

/// How much users may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) clients_max: usize,
    pub(super) clients_per_user_max: usize,
    pub(super) message_rate_max: u32,
    pub(super) retained_bytes_max: usize,
}

/// Authentication and authorization of every client, and of every message.
pub(super) struct Guard {
    rules: Rules,
    accounts: Accounts,
    limits: Limits,
    storage: Arc<DynamicStorage>,
    strangers: Arc<Strangers>,
    rate: Rate,
    retained: Mutex<Retained>,
    /// Connected clients: the user of each, and its account when it came.
    clients: Mutex<HashMap<Arc<str>, Client>>,
    log: Throttle,
}

struct Client {
    user: String,
    account: Option<Account>,
    /// Two while one takes over from the other.
    n_connections: usize,
}

/// Why a client is not let in.
struct Refused(ReasonCode, &'static str);

impl Guard {
    pub(super) fn new(
        rules: Rules,
        accounts: Accounts,
        limits: Limits,
        storage: Arc<DynamicStorage>,
        strangers: Arc<Strangers>,
    ) -> Guard {
        Guard {
            rules,
            accounts,
            limits,
            storage,
            strangers,
            rate: Rate::new(limits.message_rate_max),
            retained: Mutex::new(Retained::new(limits.retained_bytes_max)),
            clients: Mutex::default(),
            log: Throttle::default(),
        }
    }

    /// All retained messages, counted anew.
    pub(super) fn retained_are(&self, messages: &[(String, RetainedMessage)]) {
        let messages = messages.iter();
        self.retained()
            .are(messages.map(|(topic, message)| (topic.as_str(), message.payload.len())));
    }

    /// Connected clients whose account is not what it was when they came: removed, or with another
    /// password or role.
    pub(super) fn outdated_clients(&self) -> Vec<Arc<str>> {
        let users = self.accounts.users();
        let is_outdated = |client: &Client| match client.user.as_str() {
            DAEMON => false,
            LOCAL_USER => !users.is_empty(),
            name => users.account(name) != client.account,
        };
        let clients = self.clients();
        let outdated = clients.iter().filter(|(_, client)| is_outdated(client));
        outdated.map(|(client_id, _)| client_id.clone()).collect()
    }

    async fn admit(
        &self,
        connect: &ConnectPacket,
        client: SocketAddr,
    ) -> std::result::Result<String, Refused> {
        let unknown = |reason| Refused(ReasonCode::BadUsernameOrPassword, reason);
        let user = match (&connect.username, &connect.password) {
            (None, None) => {
                if !client.ip().is_loopback() {
                    return Err(unknown(
                        "no credentials, and the client is not on this machine",
                    ));
                }
                if !self.accounts.users().is_empty() {
                    return Err(unknown("no credentials, and there are users"));
                }
                LOCAL_USER
            }
            (Some(name), Some(password)) => {
                if !self.accounts.verify(name, password).await {
                    return Err(unknown("unknown user or wrong password"));
                }
                name
            }
            _ => return Err(unknown("a user name without a password, or the reverse")),
        };
        self.check_connect(user, connect).await?;
        Ok(user.to_owned())
    }

    /// Refuses a CONNECT whose client id or will reaches for what is not the user's, or that is one too many.
    async fn check_connect(
        &self,
        user: &str,
        connect: &ConnectPacket,
    ) -> std::result::Result<(), Refused> {
        let denied = |reason| Refused(ReasonCode::NotAuthorized, reason);
        let who = match self.accounts.who(Some(user)) {
            Some(Who::Daemon) => return Ok(()),
            Some(who) => who,
            None => return Err(denied("the user was removed just now")),
        };
        if connect.client_id.starts_with(DAEMON_CLIENT_ID) {
            return Err(denied("the client id is the daemon's"));
        }
        if let Some(will) = &connect.will {
            if !self.rules.may_write(who, &will.topic) {
                return Err(denied("the will's topic is not the user's"));
            }
            if will.retain && !self.rules.may_retain(who, &will.topic) {
                return Err(denied(
                    "a will with RETAIN on a topic where nothing is to stay",
                ));
            }
            let response_topic = will.properties.response_topic.as_deref();
            if response_topic.is_some_and(|topic| !self.rules.may_be_answered_on(who, topic)) {
                return Err(denied("the will's response topic is not the user's"));
            }
        }
        let sessions = self.sessions_beside(user, &connect.client_id);
        let sessions = tokio::time::timeout(STORAGE_ANSWER_LIMIT, sessions).await;
        let Ok(Ok((all, own))) = sessions else {
            return Err(Refused(
                ReasonCode::ServerUnavailable,
                "the session store does not answer",
            ));
        };
        match (all, own) {
            // The crate compares the owner only when a session is resumed; a clean start by another user
            // would throw the owner out and empty its queue.
            (Sessions::OfAnother, _) => Err(denied("the client id names another user's session")),
            (Sessions::Beside(all), _) if all >= self.limits.clients_max => {
                Err(Refused(ReasonCode::QuotaExceeded, "too many clients"))
            }
            (_, own) if own >= self.limits.clients_per_user_max => Err(Refused(
                ReasonCode::QuotaExceeded,
                "too many clients of this user",
            )),
            _ => Ok(()),
        }
    }

    /// Sessions, of clients that are there or away, besides that of a client id: all, and those of a user.
    async fn sessions_beside(&self, user: &str, client_id: &str) -> Result<(Sessions, usize)> {
        let is_of = |owner: Option<&str>| owner == Some(user);
        if let Some(session) = self.storage.get_session(client_id).await? {
            return Ok(match is_of(session.user_id.as_deref()) {
                // It takes no new place.
                true => (Sessions::Beside(0), 0),
                false => (Sessions::OfAnother, 0),
            });
        }
        let client_ids = self.storage.session_client_ids().await?;
        let (all, mut own) = (client_ids.len(), 0);
        for client_id in client_ids {
            let session = self.storage.get_session(&client_id).await?;
            own += usize::from(session.is_some_and(|session| is_of(session.user_id.as_deref())));
        }
        Ok((Sessions::Beside(all), own))
    }

    /// Why a message that is allowed by its topic would do harm by its properties.
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
        if event.retain
            && who != Who::Daemon
            && !self.retained().fits(&event.topic, event.payload.len())
        {
            return Some("too many bytes are retained");
        }
        None
    }

    fn retained(&self) -> MutexGuard<'_, Retained> {
        self.retained.lock().expect("no holder of this lock panics")
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Arc<str>, Client>> {
        self.clients.lock().expect("no holder of this lock panics")
    }
}

/// Sessions besides that of a client id.
enum Sessions {
    /// This many.
    Beside(usize),
    /// The client id's own is another user's.
    OfAnother,
}

impl AuthProvider for Guard {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        client: SocketAddr,
    ) -> Answer<'a, Result<AuthResult>> {
        Box::pin(async move {
            match self.admit(connect, client).await {
                Ok(user) => {
                    let mut strangers = self
                        .strangers
                        .lock()
                        .expect("no holder of this lock panics");
                    strangers.leave(client);
                    Ok(AuthResult::success_with_user(user))
                }
                Err(Refused(code, reason)) => {
                    if let Some(n_before) = self.log.allows(Instant::now()) {
                        let (user, client_id) = (&connect.username, &connect.client_id);
                        warn!(%client, ?user, client_id, reason, n_before, "connection refused");
                    }
                    tokio::time::sleep(WRONG_PASSWORD_PAUSE).await;
                    Ok(AuthResult::fail(code))
                }
            }
        })
    }

    fn authorize_publish<'a>(
        &'a self,
        _client_id: &str,
        user: Option<&'a str>,
        topic: &'a str,
    ) -> Answer<'a, bool> {
        let who = self.accounts.who(user);
        let allowed = who.is_some_and(|who| {
            self.rate.allows(who, Instant::now()) && self.rules.may_write(who, topic)
        });
        Box::pin(std::future::ready(allowed))
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        user: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        // Not counted: a session that is resumed would lose its subscriptions.
        let who = self.accounts.who(user);
        let allowed = who.is_some_and(|who| self.rules.may_read(who, filter));
        Box::pin(std::future::ready(allowed))
    }
}

impl BrokerEventHandler for Guard {
    fn on_client_connect<'a>(&'a self, event: ClientConnectEvent) -> Answer<'a, ()> {
        let user = event.user_id.as_deref().unwrap_or_default().to_owned();
        let account = self.accounts.users().account(&user);
        let mut clients = self.clients();
        let before = clients.remove(&event.client_id);
        let n_connections = 1 + before.map_or(0, |client| client.n_connections);
        let client = Client {
            user,
            account,
            n_connections,
        };
        clients.insert(event.client_id, client);
        Box::pin(std::future::ready(()))
    }

    fn on_client_disconnect<'a>(&'a self, event: ClientDisconnectEvent) -> Answer<'a, ()> {
        let mut clients = self.clients();
        if let Some(client) = clients.get_mut(&event.client_id) {
            client.n_connections -= 1;
            if client.n_connections == 0 {
                clients.remove(&event.client_id);
            }
        }
        Box::pin(std::future::ready(()))
    }

    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        let action = match self.harm(&event) {
            Some(reason) => {
                if let Some(n_before) = self.log.allows(Instant::now()) {
                    let user = event.user_id.as_deref().unwrap_or_default();
                    warn!(
                        user,
                        topic = &*event.topic,
                        reason,
                        n_before,
                        "message swallowed"
                    );
                }
                PublishAction::Handled
            }
            None => PublishAction::Continue,
        };
        Box::pin(std::future::ready(action))
    }

    fn on_retained_set<'a>(&'a self, event: RetainedSetEvent) -> Answer<'a, ()> {
        let bytes = if event.cleared {
            0
        } else {
            event.payload.len()
        };
        self.retained().set(&event.topic, bytes);
        Box::pin(std::future::ready(()))
    }
}
