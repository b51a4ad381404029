//! Tells the dispatcher what each account of the embedded broker is for, also when that changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::dispatch::Accounts;
use crate::users::{Users, UsersError, WatchedUsers};

/// How often the users file is looked at: an operator's new role counts within this time.
const LOOK: Duration = Duration::from_secs(1);

/// The roles in the users file, now and later. `None`: another broker keeps the accounts, and the
/// configuration says what they are for.
///
/// # Errors
/// A users file that cannot be used.
pub(super) fn watch(file: Option<PathBuf>) -> Result<watch::Receiver<Arc<Accounts>>, UsersError> {
    let is_ours = file.is_some();
    let users = WatchedUsers::open(file)?;
    let mut known = users.users(Duration::ZERO);
    let (tell, accounts) = watch::channel(Arc::new(roles(&known)));
    if is_ours {
        // Ends with the dispatcher, which holds the other end.
        tokio::spawn(async move {
            let users = Arc::new(users);
            loop {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = tell.closed() => return,
                }
                let users = users.clone();
                let looked = tokio::task::spawn_blocking(move || users.users(Duration::ZERO)).await;
                let Ok(now) = looked else { return };
                if !Arc::ptr_eq(&now, &known) {
                    tell.send_replace(Arc::new(roles(&now)));
                    known = now;
                }
            }
        });
    }
    Ok(accounts)
}

fn roles(users: &Users) -> Accounts {
    users
        .roles()
        .map(|(name, role)| (name.to_owned(), role))
        .collect()
}
