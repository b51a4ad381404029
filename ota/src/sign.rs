//! Puts signatures under what is staged, and publishes it.
//!
//! New root first (clients look for it by number), then targets and snapshot under their new numbers, and
//! `timestamp.json` last, the only file that is replaced. A cut before it leaves the old repository to clients;
//! the next `sign` writes the same numbers again.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::rand::SystemRandom;
use jiff::Timestamp as Time;
use orinoco::ota::catalog::{Catalog, ReleaseState};
use orinoco::ota::manifest::{File, Manifest};
use orinoco::ota::policy::Policy;
use orinoco::ota::{Digest, TargetName};
use tough::editor::signed::SignedRole;
use tough::key_source::KeySource;
use tough::schema::{
    Hashes, KeyHolder, Metafile, Role, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp,
};

use crate::disk;
use crate::keys::{KeyFile, short};
use crate::repository::{METADATA_BYTES_MAX, Published, Repository, TargetFile, json, targets_of};
use crate::root;
use crate::time;

/// Of the TUF specification.
pub const SPEC_VERSION: &str = "1.0.0";

/// Days for which signatures are good. Long on purpose: devices are offline for months, and freshness is
/// watched by the age that they report.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// Of targets.
    pub targets_days: i64,
    /// Of snapshot and timestamp.
    pub online_days: i64,
}

impl Default for Expiry {
    fn default() -> Self {
        Self {
            targets_days: 365,
            online_days: 180,
        }
    }
}

/// What a signature did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Published: versions of root, targets, snapshot and timestamp.
    Published(Versions),
    /// The next root has some signatures and needs more.
    RootWaits {
        /// Its version.
        version: u64,
        /// What is missing, as a sentence.
        missing: String,
    },
}

/// Versions of the roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// Of root.
    pub root: u64,
    /// Of targets.
    pub targets: u64,
    /// Of snapshot.
    pub snapshot: u64,
    /// Of timestamp.
    pub timestamp: u64,
}

/// Signs a role with the keys that any of `holders` accepts for it.
///
/// # Errors
/// A key cannot be used.
pub fn role<T: Role + serde::Serialize + Clone>(
    role: T,
    holders: &[&Root],
    keys: &[KeyFile],
) -> Result<Signed<T>> {
    let mut signed = Signed {
        signed: role.clone(),
        signatures: Vec::new(),
    };
    for holder in holders {
        let accepted = holder
            .roles
            .get(&T::TYPE)
            .context("a root without a role")?;
        let usable: Vec<&KeyFile> = keys
            .iter()
            .filter(|key| accepted.keyids.contains(&key.id))
            .collect();
        // tough wants all keys that it is given to be in this root.
        if usable.is_empty() || (T::TYPE != RoleType::Root && !is_enough(accepted, &usable)) {
            continue;
        }
        let sources: Vec<Box<dyn KeySource>> = usable.iter().map(|key| key.source()).collect();
        let key_holder = KeyHolder::Root((*holder).clone());
        let rng = SystemRandom::new();
        let one = block_on(SignedRole::new(role.clone(), &key_holder, &sources, &rng))?
            .with_context(|| format!("sign {}", T::TYPE))?;
        for signature in &one.signed().signatures {
            if signed.signatures.iter().all(|s| s.keyid != signature.keyid) {
                signed.signatures.push(signature.clone());
            }
        }
    }
    signed
        .signatures
        .sort_by(|a, b| a.keyid.as_ref().cmp(b.keyid.as_ref()));
    Ok(signed)
}

fn is_enough(role: &tough::schema::RoleKeys, keys: &[&KeyFile]) -> bool {
    keys.len() as u64 >= role.threshold.get()
}

/// tough is asynchronous, and nothing here waits for anything.
fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("start a runtime")?;
    Ok(runtime.block_on(future))
}

/// Signs and publishes: a staged root as soon as it has enough signatures, staged targets, and in any case
/// fresh snapshot and timestamp.
///
/// # Errors
/// A key is missing, what is staged does not fit together, or nothing can be written.
pub fn sign(
    repository: &Repository,
    keys: &[KeyFile],
    now: Time,
    expiry: Expiry,
) -> Result<Outcome> {
    let published = repository.published()?;
    let mut current = published.root.signed.clone();
    let mut new_root = None;
    if let Some((path, staged)) = root::staged(repository)? {
        let signed = countersign(&current, staged, keys)?;
        if let Some(missing) = missing(&current, &signed) {
            disk::write_whole(&path, &json(&signed)?, 0o644)?;
            return Ok(Outcome::RootWaits {
                version: signed.signed.version.get(),
                missing,
            });
        }
        current = signed.signed.clone();
        new_root = Some((path, signed));
    }

    let next = Next::build(repository, &published, &current, keys, now, expiry)?;
    let dir = repository.metadata_dir();
    if let Some((_, signed)) = &new_root {
        let name = format!("{}.root.json", signed.signed.version);
        disk::write_whole(&dir.join(name), &json(signed)?, 0o644)?;
    }
    for (name, bytes) in &next.files {
        disk::write_whole(&dir.join(name), bytes, 0o644)?;
    }
    clear_staged(repository, new_root.map(|(path, _)| path))?;
    Ok(Outcome::Published(Versions {
        root: current.version.get(),
        ..next.versions
    }))
}

/// What was published is staged no longer.
fn clear_staged(repository: &Repository, root: Option<std::path::PathBuf>) -> Result<()> {
    let staged = repository.staged_dir();
    let files = ["catalog.json", "policy.toml", "targets.json"].map(|name| staged.join(name));
    for path in files.into_iter().chain(root) {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Adds the signatures of these keys to a root that is staged.
fn countersign(current: &Root, staged: Signed<Root>, keys: &[KeyFile]) -> Result<Signed<Root>> {
    let next = staged.signed.clone();
    let mut signed = role(next.clone(), &[current, &next], keys)?;
    for signature in staged.signatures {
        if signed.signatures.iter().all(|s| s.keyid != signature.keyid) {
            signed.signatures.push(signature);
        }
    }
    signed
        .signatures
        .sort_by(|a, b| a.keyid.as_ref().cmp(b.keyid.as_ref()));
    Ok(signed)
}

/// Which signatures a new root lacks, for people.
fn missing(current: &Root, next: &Signed<Root>) -> Option<String> {
    let lacks = |holder: &Root, which: &str| {
        holder.verify_role(next).err().map(|_| {
            let keys = &holder.roles[&RoleType::Root];
            let has = |id: &crate::keys::KeyId| next.signatures.iter().any(|s| s.keyid == *id);
            let there = keys.keyids.iter().filter(|id| has(id)).count();
            let others: Vec<String> = keys
                .keyids
                .iter()
                .filter(|id| !has(id))
                .map(short)
                .collect();
            format!(
                "{there} of {} signatures of the {which} root; keys that have not signed: {}",
                keys.threshold,
                others.join(", ")
            )
        })
    };
    let missing: Vec<String> = [(current, "present"), (&next.signed, "next")]
        .into_iter()
        .filter_map(|(holder, which)| lacks(holder, which))
        .collect();
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// The metadata to be written, in the order of writing.
struct Next {
    files: Vec<(String, Vec<u8>)>,
    versions: Versions,
}

impl Next {
    fn build(
        repository: &Repository,
        published: &Published,
        root: &Root,
        keys: &[KeyFile],
        now: Time,
        expiry: Expiry,
    ) -> Result<Self> {
        let mut files = Vec::new();
        // Targets are signed anew when something is staged, when the root changed their keys, and when they would
        // expire before the timestamp that leads to them and their key is at hand.
        let kept = published.targets.as_ref().filter(|targets| {
            let days_left = time::days_between(now, targets.signed.expires);
            let is_due = days_left < expiry.online_days && has_keys(root, RoleType::Targets, keys);
            !repository.is_staged() && root.verify_role(targets).is_ok() && !is_due
        });
        let (targets_version, targets_bytes) = match kept {
            Some(targets) => {
                let version = targets.signed.version;
                let path = repository
                    .metadata_dir()
                    .join(format!("{version}.targets.json"));
                (version, disk::read_bounded(&path, METADATA_BYTES_MAX)?)
            }
            None => {
                let old = published.targets.as_ref();
                let signed = next_targets(repository, old, root, keys, now, expiry)?;
                let (version, bytes) = (signed.signed.version, json(&signed)?);
                files.push((format!("{version}.targets.json"), bytes.clone()));
                (version, bytes)
            }
        };
        let expires = time::days_after(now, expiry.online_days)?;

        let version = after(published.snapshot.as_ref().map(|s| s.signed.version));
        let mut snapshot = Snapshot::new(SPEC_VERSION.into(), version, expires);
        snapshot._extra = root::issued(now);
        let entry = metafile(targets_version, &targets_bytes);
        snapshot.meta.insert("targets.json".into(), entry);
        let snapshot = signed_by(snapshot, root, keys)?;
        let snapshot_bytes = json(&snapshot)?;
        files.push((format!("{version}.snapshot.json"), snapshot_bytes.clone()));

        let timestamp_version = after(published.timestamp.as_ref().map(|t| t.signed.version));
        let mut timestamp = Timestamp::new(SPEC_VERSION.into(), timestamp_version, expires);
        timestamp._extra = root::issued(now);
        let entry = metafile(version, &snapshot_bytes);
        timestamp.meta.insert("snapshot.json".into(), entry);
        let timestamp = signed_by(timestamp, root, keys)?;
        files.push(("timestamp.json".into(), json(&timestamp)?));
        Ok(Self {
            files,
            versions: Versions {
                root: root.version.get(),
                targets: targets_version.get(),
                snapshot: version.get(),
                timestamp: timestamp_version.get(),
            },
        })
    }
}

/// One more than the last, or 1.
fn after(version: Option<NonZeroU64>) -> NonZeroU64 {
    version.map_or(NonZeroU64::MIN, |version| version.saturating_add(1))
}

fn metafile(version: NonZeroU64, bytes: &[u8]) -> Metafile {
    Metafile {
        length: Some(bytes.len() as u64),
        hashes: Some(hashes(&Digest::of(bytes))),
        version,
        _extra: HashMap::new(),
    }
}

fn hashes(digest: &Digest) -> Hashes {
    Hashes {
        sha256: digest.0.to_vec().into(),
        _extra: HashMap::new(),
    }
}

fn has_keys(root: &Root, kind: RoleType, keys: &[KeyFile]) -> bool {
    let role = &root.roles[&kind];
    let n = keys.iter().filter(|key| role.keyids.contains(&key.id));
    n.count() as u64 >= role.threshold.get()
}

/// Signs, and makes sure that clients will accept it.
fn signed_by<T: Role + serde::Serialize + Clone>(
    unsigned: T,
    root: &Root,
    keys: &[KeyFile],
) -> Result<Signed<T>> {
    if !has_keys(root, T::TYPE, keys) {
        let role = &root.roles[&T::TYPE];
        let wanted: Vec<String> = role.keyids.iter().map(short).collect();
        bail!(
            "sign {}: {} of these keys needed, and not in the folders given: {}",
            T::TYPE,
            role.threshold,
            wanted.join(", ")
        );
    }
    let signed = role(unsigned, &[root], keys)?;
    root.verify_role(&signed)
        .with_context(|| format!("{} just signed", T::TYPE))?;
    Ok(signed)
}

/// The next list of targets: the catalogue, the policy, and the files of each release.
fn next_targets(
    repository: &Repository,
    old: Option<&Signed<Targets>>,
    root: &Root,
    keys: &[KeyFile],
    now: Time,
    expiry: Expiry,
) -> Result<Signed<Targets>> {
    let version = after(old.map(|targets| targets.signed.version));
    let mut known = match old {
        Some(targets) => targets_of(&targets.signed)?,
        None => BTreeMap::new(),
    };
    known.extend(repository.staged_targets()?);

    let catalog = next_catalog(repository, now)?;
    let mut wanted = BTreeMap::new();
    let name = TargetName::catalog();
    wanted.insert(
        name.clone(),
        repository.put_target(&name, &catalog.to_bytes())?,
    );
    let name = TargetName::policy();
    let staged = repository.staged_dir().join("policy.toml");
    let max = orinoco::ota::policy::POLICY_BYTES_MAX as u64;
    match disk::read_if_there(&staged, max)? {
        Some(bytes) => {
            Policy::parse(&bytes).with_context(|| format!("read {}", staged.display()))?;
            wanted.insert(name.clone(), repository.put_target(&name, &bytes)?);
        }
        None => {
            wanted.extend(known.get(&name).map(|file| (name, *file)));
        }
    }
    wanted.extend(release_targets(repository, &catalog, &known)?);

    let mut targets = Targets::new(
        SPEC_VERSION.into(),
        version,
        time::days_after(now, expiry.targets_days)?,
    );
    targets.delegations = None;
    targets._extra = root::issued(now);
    for (name, file) in &wanted {
        let target = Target {
            length: file.bytes,
            hashes: hashes(&file.sha256),
            custom: HashMap::new(),
            _extra: HashMap::new(),
        };
        let name = tough::TargetName::new(name.as_str()).context("name of a target")?;
        targets.targets.insert(name, target);
    }
    signed_by(targets, root, keys)
}

/// The staged catalogue with the next number, or the published one as it is.
fn next_catalog(repository: &Repository, now: Time) -> Result<Catalog> {
    let mut catalog = repository.catalog()?;
    if repository.staged_dir().join("catalog.json").exists() {
        let published = repository.published_catalog()?;
        catalog.catalog_seq = published.map_or(1, |catalog| catalog.catalog_seq + 1);
        catalog.issued = now.to_string();
        catalog.check().context("the catalogue would be refused")?;
    }
    Ok(catalog)
}

/// The files of each release. Of a withdrawn one only its manifest stays: nobody is to fetch the model.
fn release_targets(
    repository: &Repository,
    catalog: &Catalog,
    known: &BTreeMap<TargetName, TargetFile>,
) -> Result<BTreeMap<TargetName, TargetFile>> {
    let mut wanted = BTreeMap::new();
    let mut want = |name: &TargetName| -> Result<TargetFile> {
        let file = known
            .get(name)
            .with_context(|| format!("target {name} is in the catalogue, and nobody added it"))?;
        let path = repository.target_path(name, &file.sha256);
        let found = std::fs::metadata(&path)
            .with_context(|| format!("open {}", path.display()))?
            .len();
        ensure!(
            found == file.bytes,
            "{} has {found} bytes, expected {}",
            path.display(),
            file.bytes
        );
        wanted.insert(name.clone(), *file);
        Ok(*file)
    };
    for line in &catalog.lines {
        for release in &line.releases {
            let name = release.manifest_target();
            let file = want(&name)?;
            let path = repository.target_path(&name, &file.sha256);
            let bytes = disk::read_bounded(&path, file.bytes)?;
            ensure!(
                Digest::of(&bytes) == file.sha256,
                "{} is not what was added: its digest differs",
                path.display()
            );
            let manifest = Manifest::parse(&bytes).with_context(|| path.display().to_string())?;
            ensure!(
                manifest.line == line.line
                    && manifest.release_seq == release.release_seq
                    && manifest.id == release.id,
                "{}: manifest of {} {} {}, the catalogue says {} {} {}",
                path.display(),
                manifest.line,
                manifest.release_seq,
                manifest.id,
                line.line,
                release.release_seq,
                release.id
            );
            if release.state == ReleaseState::Withdrawn {
                continue;
            }
            for file in &manifest.files {
                match file {
                    File::Weights(weights) => {
                        let found = want(&weights.target)?;
                        ensure!(
                            found.bytes == weights.bytes && found.sha256 == weights.sha256,
                            "{}: not the file that the manifest of {} names",
                            weights.target,
                            manifest.id
                        );
                        want(&weights.pieces_target)?;
                    }
                    File::Licence { target, .. } => {
                        want(target)?;
                    }
                    File::Draft { .. } => {}
                }
            }
        }
    }
    Ok(wanted)
}
