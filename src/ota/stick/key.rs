//! The key of a device: Ed25519, made on it and never leaving it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

/// Longest key file, bytes; one of ours has 85.
const KEY_BYTES_MAX: u64 = 1024;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file holds something else.
    #[error(
        "{path}: no key of a device (PKCS #8, Ed25519): {what}; delete it to have a new one made"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system gave no random bytes.
    #[error("no random bytes for a new key")]
    Random,
}

/// Signs what this device reports.
#[derive(Debug)]
pub struct DeviceKey {
    pair: Ed25519KeyPair,
}

impl DeviceKey {
    /// Reads the key; makes one where there is none.
    ///
    /// # Errors
    /// The file cannot be read or made, or holds something else.
    pub fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        let io = |error| KeyError::Io {
            path: path.to_owned(),
            error,
        };
        match fs::metadata(path) {
            Ok(meta) if meta.len() > KEY_BYTES_MAX => {
                return Err(KeyError::Content {
                    path: path.to_owned(),
                    what: format!("{} bytes", meta.len()),
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
            Err(error) => return Err(io(error)),
        }
        let pkcs8 = fs::read(path).map_err(io)?;
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|error| KeyError::Content {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
        Ok(Self { pair })
    }

    /// A signature of 64 bytes (RFC 8032).
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let signature = self.pair.sign(bytes);
        signature
            .as_ref()
            .try_into()
            .expect("Ed25519 signatures have 64 bytes")
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        let public = self.pair.public_key().as_ref();
        public.try_into().expect("Ed25519 keys have 32 bytes")
    }

    /// The public half as a file that other tools read (RFC 8410).
    pub fn public_pem(&self) -> String {
        // SubjectPublicKeyInfo of an Ed25519 key, up to the key itself.
        const HEAD: [u8; 12] = [
            0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
        ];
        let der = [&HEAD[..], &self.public()].concat();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der)
        )
    }

    /// Whether the holder of a key has signed these bytes.
    pub fn is_signed(public: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, public)
            .verify(bytes, signature)
            .is_ok()
    }
}

fn make(path: &Path) -> Result<(), KeyError> {
    let pkcs8 =
        Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Random)?;
    let new = path.with_extension("key.new");
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(pkcs8.as_ref())?;
        file.sync_all()?;
        super::give_to_owner_above(&new)?;
        // Not by rename: of two processes that make one, both shall have the same afterwards.
        match fs::hard_link(&new, path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::remove_file(&new)?;
        match path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|error| KeyError::Io {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("device.key");
        let first = DeviceKey::load_or_make(&path).unwrap();
        let again = DeviceKey::load_or_make(&path).unwrap();
        assert_eq!(first.public(), again.public());
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&path, "garbage").unwrap();
        assert!(matches!(
            DeviceKey::load_or_make(&path),
            Err(KeyError::Content { .. })
        ));
    }
}
