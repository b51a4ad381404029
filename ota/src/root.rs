//! Which keys speak for which role: the ceremony at the beginning, and every change after it.
//!
//! Root 2-of-3 and targets 1-of-2 stay offline. Snapshot and timestamp have one key on the release host, since
//! they are signed each month; it can be replaced by the root keys when it is stolen.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use orinoco::ota::ISSUED_FIELD;
use orinoco::ota::catalog::{Catalog, SCHEMA};
use tough::schema::{RoleKeys, RoleType, Root, Signed};

use crate::disk;
use crate::keys::{KeyFile, KeyId, short};
use crate::repository::{METADATA_BYTES_MAX, Repository, json};
use crate::sign::{self, Expiry};
use crate::time;

/// Days that a root is good for: devices may be in a store for years.
pub const ROOT_DAYS: i64 = 3 * 365;

/// Roles with keys of their own; snapshot and timestamp share theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRole {
    /// Says which keys count.
    Root,
    /// Says what is genuine.
    Targets,
    /// Says what is newest: snapshot and timestamp.
    Online,
}

impl KeyRole {
    /// As the files of its keys are named.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Targets => "targets",
            Self::Online => "online",
        }
    }

    /// TUF's roles that it speaks for.
    pub const fn types(self) -> &'static [RoleType] {
        match self {
            Self::Root => &[RoleType::Root],
            Self::Targets => &[RoleType::Targets],
            Self::Online => &[RoleType::Snapshot, RoleType::Timestamp],
        }
    }
}

/// How many keys, and how many of them must sign.
#[derive(Debug, Clone, Copy)]
pub struct Ceremony {
    /// Root keys.
    pub n_root: u32,
    /// Root signatures needed.
    pub root_threshold: u32,
    /// Targets keys, of which one must sign.
    pub n_targets: u32,
    /// When it happens.
    pub now: Timestamp,
}

impl Default for Ceremony {
    fn default() -> Self {
        Self {
            n_root: 3,
            root_threshold: 2,
            n_targets: 2,
            now: time::now(),
        }
    }
}

/// Makes all keys in `keys_dir` and an empty, signed repository in `dir`.
///
/// # Errors
/// There is a repository or a key already, or nothing can be written.
pub fn init(dir: &Path, keys_dir: &Path, ceremony: Ceremony) -> Result<Repository> {
    let is_fine = (1..=ceremony.n_root).contains(&ceremony.root_threshold);
    ensure!(
        is_fine && ceremony.n_root <= 16 && (1..=16).contains(&ceremony.n_targets),
        "{} of {} root keys and 1 of {} targets keys, expected 1 to 16 keys and no more signatures than keys",
        ceremony.root_threshold,
        ceremony.n_root,
        ceremony.n_targets
    );
    ensure!(
        !dir.join("metadata").exists(),
        "{} has a repository already; a new one takes another folder",
        dir.display()
    );
    let make = |role: KeyRole, count: u32| -> Result<Vec<KeyFile>> {
        let path = |n| keys_dir.join(format!("{}-{n}.p8", role.name()));
        (1..=count).map(|n| KeyFile::generate(&path(n))).collect()
    };
    let root_keys = make(KeyRole::Root, ceremony.n_root)?;
    let targets_keys = make(KeyRole::Targets, ceremony.n_targets)?;
    let online_keys = make(KeyRole::Online, 1)?;
    let mut root = Root {
        spec_version: sign::SPEC_VERSION.into(),
        consistent_snapshot: true,
        version: NonZeroU64::MIN,
        expires: time::days_after(ceremony.now, ROOT_DAYS)?,
        keys: HashMap::new(),
        roles: HashMap::new(),
        _extra: issued(ceremony.now),
    };
    set_keys(
        &mut root,
        KeyRole::Root,
        &root_keys,
        ceremony.root_threshold,
    )?;
    set_keys(&mut root, KeyRole::Targets, &targets_keys, 1)?;
    set_keys(&mut root, KeyRole::Online, &online_keys, 1)?;
    let signed = sign::role(root.clone(), &[&root], &root_keys)?;
    root.verify_role(&signed).context("the root just signed")?;
    disk::write_whole(&dir.join("metadata/1.root.json"), &json(&signed)?, 0o644)?;

    let repository = Repository::open(dir)?;
    repository.stage_catalog(&Catalog {
        schema: SCHEMA,
        catalog_seq: 1,
        issued: ceremony.now.to_string(),
        lines: Vec::new(),
    })?;
    let keys: Vec<KeyFile> = targets_keys.into_iter().chain(online_keys).collect();
    sign::sign(&repository, &keys, ceremony.now, Expiry::default())?;
    Ok(repository)
}

/// `x-issued`, for the extra fields of a role.
pub fn issued(now: Timestamp) -> HashMap<String, serde_json::Value> {
    HashMap::from([(ISSUED_FIELD.to_owned(), now.to_string().into())])
}

fn threshold(count: u32) -> Result<NonZeroU64> {
    NonZeroU64::new(count.into()).context("a threshold of 0")
}

/// Gives a role these keys and no others.
fn set_keys(root: &mut Root, role: KeyRole, keys: &[KeyFile], count: u32) -> Result<()> {
    for key in keys {
        root.keys.insert(key.id.clone(), key.public.clone());
    }
    for kind in role.types() {
        let role_keys = RoleKeys {
            keyids: keys.iter().map(|key| key.id.clone()).collect(),
            threshold: threshold(count)?,
            _extra: HashMap::new(),
        };
        root.roles.insert(*kind, role_keys);
    }
    forget_unused(root);
    Ok(())
}

fn forget_unused(root: &mut Root) {
    let used: Vec<KeyId> = root
        .roles
        .values()
        .flat_map(|role| role.keyids.clone())
        .collect();
    root.keys.retain(|id, _| used.contains(id));
}

/// What a change of root is to do.
#[derive(Debug, Clone)]
pub enum RootChange {
    /// The same keys, good for longer.
    Renew,
    /// New keys of a role in the place of some.
    Rotate {
        /// Whose.
        role: KeyRole,
        /// First digits of the keys to go; empty: all of the role.
        replaced: Vec<String>,
        /// Where the new ones are put.
        new_dir: PathBuf,
    },
}

/// Stages the next root. It becomes valid by `sign`, with enough keys of the old and of the new root.
///
/// # Errors
/// A root is staged already, a key to be replaced is not one of the role's, or nothing can be written.
pub fn stage(repository: &Repository, change: &RootChange, now: Timestamp) -> Result<Vec<KeyFile>> {
    if let Some((path, _)) = staged(repository)? {
        bail!(
            "{} waits for signatures already; `orinoco-ota sign` it, or remove the file",
            path.display()
        );
    }
    let mut root = repository.root()?.signed;
    root.version = root
        .version
        .checked_add(1)
        .context("no higher version of root")?;
    root.expires = time::days_after(now, ROOT_DAYS)?;
    root._extra.extend(issued(now));
    let mut made = Vec::new();
    if let RootChange::Rotate {
        role,
        replaced,
        new_dir,
    } = change
    {
        let old = root.roles[&role.types()[0]].clone();
        let gone = chosen(&old, replaced, *role)?;
        for (n, _) in gone.iter().enumerate() {
            let path = new_dir.join(format!("{}-v{}-{}.p8", role.name(), root.version, n + 1));
            made.push(KeyFile::generate(&path)?);
        }
        for key in &made {
            root.keys.insert(key.id.clone(), key.public.clone());
        }
        for kind in role.types() {
            let role_keys = root.roles.get_mut(kind).context("a root without a role")?;
            role_keys.keyids.retain(|id| !gone.contains(id));
            role_keys
                .keyids
                .extend(made.iter().map(|key| key.id.clone()));
        }
        forget_unused(&mut root);
    }
    let path = staged_path(repository, root.version.get());
    let unsigned = Signed {
        signed: root,
        signatures: Vec::new(),
    };
    disk::write_whole(&path, &json(&unsigned)?, 0o644)?;
    Ok(made)
}

/// The keys of a role that begin with these digits; all without any.
fn chosen(keys: &RoleKeys, replaced: &[String], role: KeyRole) -> Result<Vec<KeyId>> {
    if replaced.is_empty() {
        return Ok(keys.keyids.clone());
    }
    let full = |id: &KeyId| -> String { id.iter().map(|byte| format!("{byte:02x}")).collect() };
    let mut gone: Vec<KeyId> = Vec::new();
    for digits in replaced {
        let mut matching = keys.keyids.iter().filter(|id| full(id).starts_with(digits));
        let known = || keys.keyids.iter().map(short).collect::<Vec<_>>().join(", ");
        match (matching.next(), matching.next()) {
            (Some(id), None) => gone.push(id.clone()),
            (None, _) => bail!(
                "no {} key begins with {digits}, there are {}",
                role.name(),
                known()
            ),
            _ => bail!(
                "several {} keys begin with {digits}: {}",
                role.name(),
                known()
            ),
        }
    }
    gone.dedup();
    Ok(gone)
}

fn staged_path(repository: &Repository, version: u64) -> PathBuf {
    repository.staged_dir().join(format!("{version}.root.json"))
}

/// The root that waits for signatures, if there is one.
///
/// # Errors
/// It cannot be read.
pub fn staged(repository: &Repository) -> Result<Option<(PathBuf, Signed<Root>)>> {
    let next = repository.root()?.signed.version.get() + 1;
    let path = staged_path(repository, next);
    let Some(bytes) = disk::read_if_there(&path, METADATA_BYTES_MAX)? else {
        return Ok(None);
    };
    let root =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(Some((path, root)))
}
