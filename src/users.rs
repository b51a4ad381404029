//! The users that the embedded broker knows, in one TOML file that only its owner may read:
//!
//! ```toml
//! [users.press-7]
//! password = "$argon2id$v=19$m=19456,t=2,p=1$…"
//! role = "device"
//! ```
//!
//! Names, Argon2id hashes (PHC strings) and roles; passwords are never stored. [`add`] and [`remove`]
//! replace the whole file at once, so that a reader sees the old or the new one; [`WatchedUsers`] is that
//! reader. A file that does not exist is a file without users.

mod watched;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use argon2::password_hash::{self, Output, PasswordHash, PasswordHasher, Salt, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use crate::access::Role;
use crate::wire::topic::Name;

pub use watched::WatchedUsers;

/// Largest file read, in bytes: some thousand users.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Longest password, in bytes; Argon2 would take more, at an attacker's pleasure.
const PASSWORD_BYTES_MAX: usize = 1024;

/// Why the users could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file or its folder cannot be read or written.
    #[error("users file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is too large to be one of ours.
    #[error("users file {path}: {found} bytes, at most {FILE_BYTES_MAX} are read")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        found: u64,
    },
    /// Others could read it.
    #[error("users file {path}: mode {mode:03o} lets others in; run `chmod 600 {path}`")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Not the format above.
    #[error("users file {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where TOML knows them.
        reason: String,
    },
    /// Not a name.
    #[error("user name {found:?}: expected 1 to 64 of A-Z a-z 0-9 _ . -")]
    Name {
        /// What was given.
        found: String,
    },
    /// A word that topics need.
    #[error("user name {found:?} is reserved, choose another")]
    Reserved {
        /// What was given.
        found: String,
    },
    /// No such user.
    #[error("user {name:?} is not in {path}")]
    Unknown {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
    },
    /// Empty, or too long.
    #[error("password of {found} bytes, expected 1 to {PASSWORD_BYTES_MAX}")]
    Password {
        /// Its length.
        found: usize,
    },
    /// Argon2 failed.
    #[error("hash password: {0}")]
    Hash(password_hash::Error),
    /// No random numbers for the salt.
    #[error("hash password: no salt: {0}")]
    Salt(getrandom::Error),
}

/// The users of one file, as read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    #[serde(default)]
    users: BTreeMap<String, User>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct User {
    /// PHC string.
    password: String,
    #[serde(default)]
    role: Role,
}

/// An account at some time.
#[derive(Clone, PartialEq, Eq)]
pub struct Account(User);

/// What [`add`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// A new user.
    New,
    /// The user existed; the password is another one now, and the role too if one was given.
    Replaced,
}

/// Checks the shape of a user name.
pub fn check_name(name: &str) -> Result<(), UsersError> {
    let Ok(shaped) = Name::new(name) else {
        return Err(UsersError::Name {
            found: name.to_owned(),
        });
    };
    if shaped.is_reserved() {
        return Err(UsersError::Reserved {
            found: name.to_owned(),
        });
    }
    Ok(())
}

impl Users {
    /// Reads and checks the file. One that does not exist has no users.
    pub fn read(path: &Path) -> Result<Users, UsersError> {
        let io = |source| UsersError::Io {
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Users::default()),
            Err(error) => return Err(io(error)),
        };
        let metadata = file.metadata().map_err(io)?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(UsersError::TooLarge {
                path: path.to_owned(),
                found: metadata.len(),
            });
        }
        // Group may read, for a broker under another account; nobody may write, others nothing.
        let mode = metadata.mode() & 0o777;
        if mode & 0o037 != 0 {
            return Err(UsersError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(io)?;
        let malformed = |reason| UsersError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let users: Users = toml::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        for (name, user) in &users.users {
            check_name(name).map_err(|error| malformed(error.to_string()))?;
            PasswordHash::new(&user.password)
                .map_err(|error| malformed(format!("password of {name}: {error}")))?;
        }
        Ok(users)
    }

    /// Names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// Names with their roles, sorted.
    pub fn roles(&self) -> impl Iterator<Item = (&str, Role)> {
        self.users
            .iter()
            .map(|(name, user)| (name.as_str(), user.role))
    }

    /// What a user is for; `None` for an unknown one.
    pub fn role(&self, name: &str) -> Option<Role> {
        self.users.get(name).map(|user| user.role)
    }

    /// An account as it stands, to notice that it was changed. It can be compared, and nothing else.
    pub fn account(&self, name: &str) -> Option<Account> {
        self.users.get(name).cloned().map(Account)
    }

    /// The hash of a user's password, as a PHC string.
    pub fn stored_hash(&self, name: &str) -> Option<&str> {
        self.users.get(name).map(|user| user.password.as_str())
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// Whether this user is in it.
    pub fn contains(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }
}

/// Compares passwords with stored hashes, in memory that it keeps: 19 MiB after the first. Taken anew for each,
/// such memory would leave the allocator with hundreds of MiB in pieces, at the pleasure of who guesses.
#[derive(Default)]
pub struct Hasher {
    memory: Vec<Block>,
}

impl Hasher {
    /// Takes tens of milliseconds: call it on a thread that may block. An unknown name takes as long as a
    /// wrong password.
    pub fn verify(&mut self, users: &Users, name: &str, password: &[u8]) -> bool {
        // Hash of a random password that nobody kept.
        const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$b3Jpbm9jby1ub2JvZHk$tKTJKrH3jVuTOwZ2KyIfvoj1RtI+Tz8Gj0f2b1WyHmU";
        if password.len() > PASSWORD_BYTES_MAX {
            return false;
        }
        let stored = users.stored_hash(name);
        let equal = self.equals(password, stored.unwrap_or(NOBODY));
        equal.unwrap_or(false) && stored.is_some()
    }

    fn equals(&mut self, password: &[u8], stored: &str) -> password_hash::Result<bool> {
        let stored = PasswordHash::new(stored)?;
        let (Some(salt), Some(expected)) = (stored.salt, stored.hash) else {
            return Ok(false);
        };
        let version = stored.version.map(Version::try_from).transpose()?;
        let params = Params::try_from(&stored)?;
        let n_blocks = params.block_count();
        if self.memory.len() < n_blocks {
            self.memory.resize(n_blocks, Block::default());
        }
        let algorithm = Algorithm::try_from(stored.algorithm)?;
        let argon2 = Argon2::new(algorithm, version.unwrap_or_default(), params);
        let mut salt_bytes = [0; Salt::MAX_LENGTH];
        let salt = salt.decode_b64(&mut salt_bytes)?;
        let found = Output::init_with(expected.len(), |out| {
            let memory = &mut self.memory[..n_blocks];
            Ok(argon2.hash_password_into_with_memory(password, salt, out, memory)?)
        })?;
        // In a time that does not depend on where they differ.
        Ok(found == expected)
    }
}

/// Adds a user, or replaces the password of one. Without a `role` a new user is a device, and a known one
/// stays what it was.
pub fn add(
    path: &Path,
    name: &str,
    password: &str,
    role: Option<Role>,
) -> Result<Added, UsersError> {
    check_name(name)?;
    if password.is_empty() || password.len() > PASSWORD_BYTES_MAX {
        return Err(UsersError::Password {
            found: password.len(),
        });
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(UsersError::Salt)?;
    let salt = SaltString::encode_b64(&salt).map_err(UsersError::Hash)?;
    let hash = Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map_err(UsersError::Hash)?
        .to_string();
    change(path, |users| {
        let role = role.or_else(|| users.role(name)).unwrap_or_default();
        let user = User {
            password: hash,
            role,
        };
        Ok(match users.users.insert(name.to_owned(), user) {
            Some(_) => Added::Replaced,
            None => Added::New,
        })
    })
}

/// Removes a user.
pub fn remove(path: &Path, name: &str) -> Result<(), UsersError> {
    change(path, |users| match users.users.remove(name) {
        Some(_) => Ok(()),
        None => Err(UsersError::Unknown {
            name: name.to_owned(),
            path: path.to_owned(),
        }),
    })
}

/// Reads, changes and replaces the file, alone among processes.
fn change<T>(
    path: &Path,
    edit: impl FnOnce(&mut Users) -> Result<T, UsersError>,
) -> Result<T, UsersError> {
    let io = |source| UsersError::Io {
        path: path.to_owned(),
        source,
    };
    // The lock is a file of its own: the users file itself is replaced.
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(io)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| io(io::Error::from(error)))?;
    let mut users = Users::read(path)?;
    let done = edit(&mut users)?;
    let text = format!(
        "# Written by `orinoco user`; the broker reads it again when it changes.\n\n{}",
        toml::to_string(&users).expect("names and strings are always TOML")
    );
    replace(path, text.as_bytes()).map_err(io)?;
    Ok(done)
}

/// Gives a new file to the owner of the one that it replaces, or else of the folder: root changes what the
/// services go on to read.
fn keep_owner(new: &File, path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let old = fs::metadata(path).or_else(|_| fs::metadata(folder))?;
    std::os::unix::fs::fchown(new, Some(old.uid()), Some(old.gid()))
}

/// Writes a new file beside the old one and renames it over that, durably.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    // Left by a crash; the lock says that nobody else is writing it.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&beside)?;
    if let Ok(old) = fs::metadata(path) {
        // A packager may have given the group read access.
        file.set_permissions(old.permissions())?;
    }
    if Uid::effective().is_root() {
        keep_owner(&file, path)?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.toml");
        (folder, path)
    }

    #[test]
    fn a_user_is_added_verified_replaced_and_removed() {
        let (_folder, path) = file();
        assert!(Users::read(&path).unwrap().is_empty());
        assert_eq!(add(&path, "press-7", "first", None).unwrap(), Added::New);
        assert_eq!(add(&path, "a.b_c", "other", None).unwrap(), Added::New);
        assert_eq!(
            add(&path, "press-7", "second", None).unwrap(),
            Added::Replaced
        );

        let users = Users::read(&path).unwrap();
        assert_eq!(users.names().collect::<Vec<_>>(), ["a.b_c", "press-7"]);
        let mut hasher = Hasher::default();
        assert!(hasher.verify(&users, "press-7", b"second"));
        assert!(!hasher.verify(&users, "press-7", b"first"));
        assert!(!hasher.verify(&users, "nobody", b"second"));
        assert!(
            hasher.verify(&users, "press-7", b"second"),
            "again, in used memory"
        );

        remove(&path, "press-7").unwrap();
        assert!(!Users::read(&path).unwrap().contains("press-7"));
        assert!(matches!(
            remove(&path, "press-7"),
            Err(UsersError::Unknown { .. })
        ));
    }

    #[test]
    fn a_role_is_kept_until_another_is_given() {
        let (_folder, path) = file();
        let role = || Users::read(&path).unwrap().role("hmi");
        add(&path, "hmi", "pw", None).unwrap();
        assert_eq!(role(), Some(Role::Device));
        add(&path, "hmi", "pw", Some(Role::Operator)).unwrap();
        add(&path, "hmi", "another", None).unwrap();
        assert_eq!(role(), Some(Role::Operator));
        assert_eq!(Users::read(&path).unwrap().role("nobody"), None);
    }

    #[test]
    fn a_file_of_the_time_before_roles_has_devices() {
        let (_folder, path) = file();
        add(&path, "hmi", "pw", Some(Role::Monitor)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let older = text.replace("role = \"monitor\"\n", "");
        assert_ne!(text, older);
        fs::write(&path, older).unwrap();
        assert_eq!(Users::read(&path).unwrap().role("hmi"), Some(Role::Device));
    }

    #[test]
    fn the_file_is_private_and_holds_no_password() {
        let (_folder, path) = file();
        add(&path, "press-7", "correct horse", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains("correct horse"));
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let (_folder, path) = file();
        add(&path, "press-7", "pw", None).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            Users::read(&path),
            Err(UsersError::Mode { mode: 0o644, .. })
        ));
    }

    #[test]
    fn names_that_would_reach_other_topics_are_refused() {
        let (_folder, path) = file();
        for name in ["", "a/b", "+", "#", "a b", "ä", &"x".repeat(65)] {
            assert!(
                matches!(add(&path, name, "pw", None), Err(UsersError::Name { .. })),
                "{name:?}"
            );
        }
        for name in crate::wire::topic::RESERVED {
            assert!(
                matches!(
                    add(&path, name, "pw", None),
                    Err(UsersError::Reserved { .. })
                ),
                "{name}"
            );
        }
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_our_format_is_refused_and_left_as_it_is() {
        let (_folder, path) = file();
        let hostile = [
            "users = 3",
            "[users.x]\npassword = \"plain\"",
            "[users.x]\npasswort = \"$argon2id$v=19$m=8,t=1,p=1$YWFhYWFhYWE$aaaaaaaaaaaaaaaaaaaaaa\"",
            "[users.\"a/b\"]\npassword = \"$argon2id$v=19$m=8,t=1,p=1$YWFhYWFhYWE$aaaaaaaaaaaaaaaaaaaaaa\"",
        ];
        for text in hostile {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(
                add(&path, "press-7", "pw", None),
                Err(UsersError::Malformed { .. })
            ));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn an_unknown_name_takes_the_time_of_a_hash() {
        // The stand-in must be a hash that parses, or unknown names would answer at once.
        let started = std::time::Instant::now();
        Hasher::default().verify(&Users::default(), "nobody", b"pw");
        assert!(started.elapsed() > std::time::Duration::from_millis(2));
    }
}
