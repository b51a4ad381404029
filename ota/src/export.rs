//! Copies what clients need to a stick, a mirror or a folder, and reads the copy back.
//!
//! Targets first, then the roots, then the numbered metadata, and `timestamp.json` last: a device that looks
//! meanwhile, or a stick that is pulled, sees the older repository or the newer one. What is there already is
//! kept when its digest is right, so that the second export of 20 GB takes as long as reading them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp as Time;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use crate::disk;
use crate::progress;
use crate::repository::{METADATA_BYTES_MAX, Repository, targets_of};
use crate::verify::{Report, check_file, verify};

/// Room that is left on the medium, bytes: devices write their reports there.
const RESERVE_BYTES: u64 = 16 << 20;

/// Copies the current repository to `dest` and verifies the copy.
///
/// # Errors
/// The repository is not whole, the medium has no room, or the copy reads other than it was written.
pub fn export(repository: &Repository, dest: &Path, now: Time) -> Result<Report> {
    let published = repository.published()?;
    let targets = published
        .targets
        .context("nothing is published; `orinoco-ota sign` does it")?;
    let targets = targets_of(&targets.signed)?;
    let (metadata, files) = (dest.join("metadata"), dest.join("targets"));
    for dir in [&metadata, &files] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }

    let quiet = indicatif::ProgressBar::hidden();
    let mut missing = Vec::new();
    for (name, file) in &targets {
        let to = files.join(name.file_name(&file.sha256));
        if check_file(&to, file, &quiet).is_err() {
            missing.push((name, file, to));
        }
    }
    let needed: u64 = missing.iter().map(|(_, file, _)| file.bytes).sum();
    let free = free_bytes(dest)?;
    ensure!(
        needed + RESERVE_BYTES <= free,
        "{} has {free} bytes free, the copy needs {needed} and {RESERVE_BYTES} as a reserve",
        dest.display()
    );
    let bar = progress::bytes("copy", needed);
    for (name, file, to) in &missing {
        copy(&repository.target_path(name, &file.sha256), to, &bar)?;
    }
    bar.finish_and_clear();
    disk::sync_dir(&files).with_context(|| format!("sync {}", files.display()))?;

    for name in metadata_files(repository)? {
        let bytes = disk::read_bounded(&repository.metadata_dir().join(&name), METADATA_BYTES_MAX)?;
        disk::write_whole(&metadata.join(&name), &bytes, 0o644)?;
    }
    for (_, _, to) in &missing {
        forget_cached(to)?;
    }
    verify(dest, None, now).context("the copy")
}

/// The metadata that clients need, in the order in which it may appear.
fn metadata_files(repository: &Repository) -> Result<Vec<String>> {
    let published = repository.published()?;
    let newest = published.root.signed.version.get();
    let mut names: Vec<String> = (1..=newest).map(|n| format!("{n}.root.json")).collect();
    if let Some(targets) = &published.targets {
        names.push(format!("{}.targets.json", targets.signed.version));
    }
    if let Some(snapshot) = &published.snapshot {
        names.push(format!("{}.snapshot.json", snapshot.signed.version));
    }
    names.push("timestamp.json".into());
    Ok(names)
}

fn copy(from: &Path, to: &Path, bar: &indicatif::ProgressBar) -> Result<()> {
    let dir = to.parent().context("file without a folder")?;
    let mut part = tempfile::Builder::new()
        .prefix(".part-")
        .tempfile_in(dir)
        .with_context(|| format!("write in {}", dir.display()))?;
    let source = File::open(from).with_context(|| format!("open {}", from.display()))?;
    std::io::copy(&mut bar.wrap_read(source), &mut part)
        .with_context(|| format!("copy to {}", to.display()))?;
    part.as_file().sync_all().context("sync the copy")?;
    // A stick with FAT has no modes, and says so.
    let _ = part
        .as_file()
        .set_permissions(fs::Permissions::from_mode(0o644));
    part.persist(to)
        .with_context(|| format!("rename to {}", to.display()))?;
    Ok(())
}

/// The next read comes from the medium: otherwise verifying a bad stick would read memory.
fn forget_cached(path: &PathBuf) -> Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
        .with_context(|| format!("forget the cached pages of {}", path.display()))
}

fn free_bytes(dir: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)
        .with_context(|| format!("free space of {}", dir.display()))?;
    Ok(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}
