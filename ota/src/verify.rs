//! Looks at a repository as a careful device would, and at every byte of it.
//!
//! Metadata is judged by tough from `1.root.json` or a given root on; then every target by its length and digest,
//! the catalogue and the manifests by the rules of the devices, and models by their pieces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use jiff::Timestamp as Time;
use orinoco::ota::catalog::{CATALOG_BYTES_MAX, Catalog, ReleaseState};
use orinoco::ota::manifest::{MANIFEST_BYTES_MAX, Manifest};
use orinoco::ota::pieces::PieceTable;
use orinoco::ota::policy::{POLICY_BYTES_MAX, Policy};
use orinoco::ota::{Digest, TargetName};
use sha2::Digest as _;
use tough::{ExpirationEnforcement, FilesystemTransport, RepositoryLoader};
use url::Url;

use crate::disk;
use crate::progress;
use crate::repository::{METADATA_BYTES_MAX, Repository, TargetFile, targets_of};
use crate::sign::Versions;
use crate::time;

/// What was found to be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Versions of the roles.
    pub versions: Versions,
    /// Targets.
    pub n_targets: usize,
    /// Their length, all together.
    pub bytes: u64,
    /// Releases that may run, and those that were recalled.
    pub releases: (usize, usize),
    /// Days until the first signature expires.
    pub expires_days: i64,
}

/// Checks everything. `root` is what devices were provisioned with; none: `1.root.json` of the tree itself, which
/// shows that the tree is whole, and not that it is yours.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(dir: &Path, root: Option<&Path>, now: Time) -> Result<Report> {
    let repository = Repository::look(dir)?;
    let shipped = repository.metadata_dir().join("1.root.json");
    let root = disk::read_bounded(root.unwrap_or(&shipped), METADATA_BYTES_MAX)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("start a runtime")?;
    let loaded = runtime.block_on(async {
        RepositoryLoader::new(
            &root,
            folder_url(&repository.metadata_dir())?,
            folder_url(&repository.targets_dir())?,
        )
        .transport(FilesystemTransport)
        // Expiry is judged below, at the time that was asked for.
        .expiration_enforcement(ExpirationEnforcement::Unsafe)
        .load()
        .await
        .context("metadata")
    })?;
    let expires = [
        ("root", loaded.root().signed.expires),
        ("targets", loaded.targets().signed.expires),
        ("snapshot", loaded.snapshot().signed.expires),
        ("timestamp", loaded.timestamp().signed.expires),
    ];
    let first = expires.into_iter().min_by_key(|(_, expires)| *expires);
    let (role, expires) = first.expect("there are four");
    ensure!(
        expires > now,
        "{role} expired on {expires}: `orinoco-ota {}` makes it good for longer",
        if role == "root" { "renew" } else { "sign" }
    );

    let targets = targets_of(&loaded.targets().signed)?;
    let bytes = targets.values().map(|file| file.bytes).sum();
    let bar = progress::bytes("verify", bytes);
    for (name, file) in &targets {
        let path = repository.target_path(name, &file.sha256);
        check_file(&path, file, &bar)?;
    }
    bar.finish_and_clear();
    let releases = check_contents(&repository, &targets)?;
    Ok(Report {
        versions: Versions {
            root: loaded.root().signed.version.get(),
            targets: loaded.targets().signed.version.get(),
            snapshot: loaded.snapshot().signed.version.get(),
            timestamp: loaded.timestamp().signed.version.get(),
        },
        n_targets: targets.len(),
        bytes,
        releases,
        expires_days: time::days_between(now, expires),
    })
}

fn folder_url(dir: &Path) -> Result<Url> {
    let whole = dir
        .canonicalize()
        .with_context(|| format!("open {}", dir.display()))?;
    Url::from_directory_path(&whole)
        .ok()
        .with_context(|| format!("{} as a URL", whole.display()))
}

/// Length and digest of a file.
///
/// # Errors
/// One of them is another.
pub(crate) fn check_file(path: &Path, expected: &TargetFile, bar: &ProgressBar) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let mut file = file.take(expected.bytes + 1);
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let got = file
            .read(&mut buffer)
            .with_context(|| format!("read {}", path.display()))?;
        if got == 0 {
            break;
        }
        hash.update(&buffer[..got]);
        length += got as u64;
        bar.inc(got as u64);
    }
    ensure!(
        length == expected.bytes,
        "{} is of another length than the {} bytes that were signed",
        path.display(),
        expected.bytes
    );
    let found = Digest(hash.finalize().into());
    ensure!(
        found == expected.sha256,
        "{}: digest {found}, signed is {}",
        path.display(),
        expected.sha256
    );
    Ok(())
}

/// The catalogue and all it leads to, by the rules of the devices.
fn check_contents(
    repository: &Repository,
    targets: &BTreeMap<TargetName, TargetFile>,
) -> Result<(usize, usize)> {
    let read = |name: &TargetName, max: usize| -> Result<Vec<u8>> {
        let file = targets
            .get(name)
            .with_context(|| format!("{name} is not among the signed targets"))?;
        disk::read_bounded(&repository.target_path(name, &file.sha256), max as u64)
    };
    if targets.contains_key(&TargetName::policy()) {
        Policy::parse(&read(&TargetName::policy(), POLICY_BYTES_MAX)?).context("policy.toml")?;
    }
    let catalog = Catalog::parse(&read(&TargetName::catalog(), CATALOG_BYTES_MAX)?)?;
    let mut count = (0, 0);
    for line in &catalog.lines {
        for release in &line.releases {
            let name = release.manifest_target();
            let manifest = Manifest::parse(&read(&name, MANIFEST_BYTES_MAX)?)
                .with_context(|| name.to_string())?;
            if manifest.line != line.line || manifest.release_seq != release.release_seq {
                bail!(
                    "{name} is of {} {}, the catalogue has it as {} {}",
                    manifest.line,
                    manifest.release_seq,
                    line.line,
                    release.release_seq
                );
            }
            if release.state == ReleaseState::Withdrawn {
                count.1 += 1;
                continue;
            }
            count.0 += 1;
            check_model(repository, targets, &manifest)?;
        }
    }
    Ok(count)
}

/// The model's file by its pieces: a wrong table would make every download fail.
fn check_model(
    repository: &Repository,
    targets: &BTreeMap<TargetName, TargetFile>,
    manifest: &Manifest,
) -> Result<()> {
    let weights = manifest.weights();
    let signed = targets
        .get(&weights.target)
        .with_context(|| format!("{} is not among the signed targets", weights.target))?;
    ensure!(
        signed.bytes == weights.bytes && signed.sha256 == weights.sha256,
        "{}: the manifest says {} bytes with digest {}, signed are {} with {}",
        weights.target,
        weights.bytes,
        weights.sha256,
        signed.bytes,
        signed.sha256
    );
    let pieces = targets
        .get(&weights.pieces_target)
        .with_context(|| format!("{} is not among the signed targets", weights.pieces_target))?;
    let path = repository.target_path(&weights.pieces_target, &pieces.sha256);
    let table = disk::read_bounded(&path, weights.table_bytes())?;
    let table = PieceTable::parse(&table, weights.bytes, weights.piece_bytes)
        .with_context(|| path.display().to_string())?;
    let path = repository.target_path(&weights.target, &weights.sha256);
    let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let bar = progress::bytes("pieces", weights.bytes);
    for idx in 0..table.n_pieces() {
        let range = table.range(idx).expect("below the number of pieces");
        let length = usize::try_from(range.end - range.start).expect("at most 16 MiB");
        let mut piece = vec![0; length];
        file.read_exact(&mut piece)
            .with_context(|| format!("read {}", path.display()))?;
        ensure!(
            table.is_piece(idx, &piece),
            "{}: piece {idx} is not the one in {}",
            path.display(),
            weights.pieces_target
        );
        bar.inc(length as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
