//! What a root file says, for whoever is about to trust it for good.

use sigstore_tuf::TrustedMetadataSet;

use super::{TrustError, crypto, limit};

/// The beginning of trust, in figures that a person can compare with the ceremony's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFacts {
    /// Its version; 1 unless keys have changed since.
    pub version: u64,
    /// When it expires, e.g. `2029-11-20T00:00:00Z`. Devices follow newer roots before that.
    pub expires: String,
    /// The same in seconds since 1970.
    pub expires_s: u64,
    /// Keys that may sign the next one.
    pub n_keys: usize,
    /// How many of them must.
    pub threshold: usize,
}

/// Reads a root and checks that it is signed by enough of its own keys.
///
/// # Errors
/// It is none, is too long, or is not.
pub fn inspect(root: &[u8]) -> Result<RootFacts, TrustError> {
    crypto::install();
    if root.len() as u64 > limit::ROOT_BYTES {
        return Err(TrustError::Untrusted(format!(
            "{} bytes, a root has at most {}",
            root.len(),
            limit::ROOT_BYTES
        )));
    }
    let trusted = TrustedMetadataSet::from_root(root)
        .map_err(|error| TrustError::Untrusted(error.to_string()))?;
    let root = trusted.root();
    let role = root.roles.get("root");
    Ok(RootFacts {
        version: root.version,
        expires: root.expires.to_string(),
        expires_s: u64::try_from(root.expires.as_second()).unwrap_or(0),
        n_keys: role.map_or(0, |role| role.keyids.len()),
        threshold: role.map_or(0, |role| role.threshold),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &[u8] = include_bytes!("../../../tests/ota/1.root.json");

    #[test]
    fn a_root_of_the_publisher_tells_its_keys_and_threshold() {
        let facts = inspect(ROOT).unwrap();
        assert_eq!((facts.version, facts.n_keys, facts.threshold), (1, 3, 2));
        assert!(facts.expires.starts_with("20"), "{}", facts.expires);
    }

    #[test]
    fn a_root_with_a_changed_byte_or_none_at_all_is_refused() {
        let text = String::from_utf8(ROOT.to_vec()).unwrap();
        let changed = text.replacen("\"version\":1", "\"version\":2", 1);
        let changed = match changed == text {
            true => text.replacen("\"version\": 1", "\"version\": 2", 1),
            false => changed,
        };
        assert_ne!(changed, text);
        assert!(inspect(changed.as_bytes()).is_err());
        assert!(inspect(b"{}").is_err());
        assert!(inspect(&[b' '; 70_000]).is_err());
    }
}
