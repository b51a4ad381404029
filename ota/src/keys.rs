//! Signing keys: Ed25519, one file each, DER PKCS#8, readable by their owner alone.
//!
//! A folder of keys is a stick in a safe, a token's mount or a folder on the release host. Which of them a
//! role accepts stands in `root.json`; the names of the files are for people.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use tough::key_source::{KeySource, LocalKeySource};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::Key;
use tough::sign::parse_keypair;

use crate::disk;

/// Most key files that are looked at in one folder.
const FILES_MAX: usize = 100;
/// Longest key file, bytes.
const KEY_BYTES_MAX: u64 = 16 << 10;

/// Identity of a key: SHA-256 of its public part.
pub type KeyId = Decoded<Hex>;

/// A signing key in a file.
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its identity.
    pub id: KeyId,
    /// Its public part.
    pub public: Key,
}

impl KeyFile {
    /// Makes a new key; its file gets mode 0600.
    ///
    /// # Errors
    /// There is a file of that name, or it cannot be written.
    pub fn generate(path: &Path) -> Result<Self> {
        if path.exists() {
            bail!("{} exists; a key is never overwritten", path.display());
        }
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
        disk::write_whole(path, document.as_ref(), 0o600)?;
        Self::read(path)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Others can read the file, or it is no key.
    pub fn read(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).with_context(|| format!("open {}", path.display()))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 && !is_on_a_filesystem_without_modes(mode) {
            bail!(
                "{} has mode {mode:o}, expected 600: others on this machine can read the key (chmod 600 it)",
                path.display()
            );
        }
        let bytes = disk::read_bounded(path, KEY_BYTES_MAX)?;
        let pair = parse_keypair(&bytes).map_err(|_| {
            anyhow::anyhow!(
                "{}: no signing key, expected an Ed25519 key as DER PKCS#8 (openssl genpkey -algorithm ed25519 \
                 -outform DER makes one)",
                path.display()
            )
        })?;
        use tough::sign::Sign as _;
        let public = pair.tuf_key();
        Ok(Self {
            path: path.to_owned(),
            id: public.key_id().context("identity of a key")?,
            public,
        })
    }

    /// For tough.
    pub(crate) fn source(&self) -> Box<dyn KeySource> {
        Box::new(LocalKeySource {
            path: self.path.clone(),
        })
    }
}

/// A FAT stick shows every file with one mode for all; there is nothing that chmod could do.
fn is_on_a_filesystem_without_modes(mode: u32) -> bool {
    mode & 0o111 != 0
}

/// The keys in some folders: `*.p8`, each once.
///
/// # Errors
/// A folder cannot be read, has no keys, or a file in it is no key.
pub fn in_folders(dirs: &[PathBuf]) -> Result<Vec<KeyFile>> {
    let mut keys: Vec<KeyFile> = Vec::new();
    for dir in dirs {
        let entries =
            fs::read_dir(dir).with_context(|| format!("open keys in {}", dir.display()))?;
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry
                .with_context(|| format!("read {}", dir.display()))?
                .path();
            if path.extension().is_some_and(|e| e == "p8") {
                paths.push(path);
            }
            if paths.len() > FILES_MAX {
                bail!("{}: more than {FILES_MAX} keys", dir.display());
            }
        }
        if paths.is_empty() {
            bail!(
                "{}: no keys in it, expected files that end in .p8",
                dir.display()
            );
        }
        paths.sort();
        for path in paths {
            let key = KeyFile::read(&path)?;
            if keys.iter().all(|known| known.id != key.id) {
                keys.push(key);
            }
        }
    }
    Ok(keys)
}

/// The first eight digits of a key's identity, as people compare them.
pub fn short(id: &KeyId) -> String {
    id.iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_key_is_readable_by_its_owner_alone_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-1.p8");
        let key = KeyFile::generate(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(KeyFile::read(&path).unwrap().id, key.id);
        let error = KeyFile::generate(&path).unwrap_err();
        assert!(error.to_string().contains("never overwritten"), "{error}");
    }

    #[test]
    fn key_that_others_can_read_or_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root-1.p8");
        KeyFile::generate(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = in_folders(&[dir.path().to_owned()]).unwrap_err();
        assert!(
            error.to_string().contains("mode 644, expected 600"),
            "{error}"
        );
        disk::write_whole(&path, b"-----BEGIN PRIVATE KEY-----", 0o600).unwrap();
        let error = in_folders(&[dir.path().to_owned()]).unwrap_err();
        assert!(error.to_string().contains("no signing key"), "{error}");
    }
}
