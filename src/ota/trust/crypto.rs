//! Signatures and digests for the library, by ring, which TLS has brought into the product already.
//!
//! Verification only: Ed25519, ECDSA on P-256 and P-384, RSA-PSS. What ring or TUF has no use for is refused as
//! not supported, which counts as a signature that is not there.

use ring::digest;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use sigstore_crypto::{
    CryptoProvider, Error, HashContext, Result, SigningScheme, install_default_provider,
};
use sigstore_types::HashAlgorithm;

/// Makes the library use ring. To be called before the library is; calling it again does nothing.
pub(super) fn install() {
    // The only other answer is that a provider is installed already: this one, nobody else installs any.
    let _ = install_default_provider(&Ring);
}

#[derive(Debug)]
struct Ring;

impl CryptoProvider for Ring {
    fn hash(&self, algorithm: HashAlgorithm) -> Result<Box<dyn HashContext>> {
        let algorithm = match algorithm {
            HashAlgorithm::Sha2256 => &digest::SHA256,
            HashAlgorithm::Sha2384 => &digest::SHA384,
            HashAlgorithm::Sha2512 => &digest::SHA512,
            other => {
                return Err(Error::UnsupportedAlgorithm(format!("digest {other}")));
            }
        };
        Ok(Box::new(Hash(digest::Context::new(algorithm))))
    }

    fn verify_raw(
        &self,
        scheme: SigningScheme,
        key: &[u8],
        data: &[u8],
        signature: &[u8],
    ) -> Result<()> {
        UnparsedPublicKey::new(algorithm(scheme)?, key)
            .verify(data, signature)
            .map_err(|_| Error::Verification(format!("{} signature is wrong", scheme.name())))
    }

    fn verify_prehashed(
        &self,
        scheme: SigningScheme,
        _key: &[u8],
        _digest: &[u8],
        _signature: &[u8],
    ) -> Result<()> {
        Err(Error::UnsupportedAlgorithm(format!(
            "{} over a digest; TUF signs whole files",
            scheme.name()
        )))
    }
}

fn algorithm(scheme: SigningScheme) -> Result<&'static dyn VerificationAlgorithm> {
    Ok(match scheme {
        SigningScheme::Ed25519 => &signature::ED25519,
        SigningScheme::EcdsaP256Sha256 => &signature::ECDSA_P256_SHA256_ASN1,
        SigningScheme::EcdsaP384Sha384 => &signature::ECDSA_P384_SHA384_ASN1,
        SigningScheme::RsaPssSha256 => &signature::RSA_PSS_2048_8192_SHA256,
        SigningScheme::RsaPssSha384 => &signature::RSA_PSS_2048_8192_SHA384,
        SigningScheme::RsaPssSha512 => &signature::RSA_PSS_2048_8192_SHA512,
        other => {
            return Err(Error::UnsupportedAlgorithm(format!(
                "signature scheme {}",
                other.name()
            )));
        }
    })
}

struct Hash(digest::Context);

impl HashContext for Hash {
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn finalize(self: Box<Self>) -> Vec<u8> {
        self.0.finish().as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ota::Digest;
    use ring::rand::SystemRandom;
    use ring::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    };

    #[test]
    fn digests_of_the_library_are_ours() {
        install();
        assert_eq!(
            sigstore_crypto::sha256(b"abc").as_bytes(),
            &Digest::of(b"abc").0
        );
        assert_eq!(sigstore_crypto::sha512(b"").to_hex().len(), 128);
    }

    #[test]
    fn good_signatures_hold_and_changed_bytes_break_them() {
        let random = SystemRandom::new();
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let ed25519 = Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).unwrap();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let p256 =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, p256.as_ref(), &random)
                .unwrap();
        for (scheme, key, signature) in [
            (
                SigningScheme::Ed25519,
                ed25519.public_key().as_ref(),
                ed25519.sign(b"signed").as_ref().to_vec(),
            ),
            (
                SigningScheme::EcdsaP256Sha256,
                p256.public_key().as_ref(),
                p256.sign(&random, b"signed").unwrap().as_ref().to_vec(),
            ),
        ] {
            let verify = |data: &[u8], signature: &[u8]| {
                Ring.verify_raw(scheme, key, data, signature).is_ok()
            };
            assert!(verify(b"signed", &signature));
            assert!(!verify(b"Signed", &signature));
            assert!(!verify(b"signed", &signature[1..]));
            assert!(!verify(b"signed", b""));
        }
    }

    #[test]
    fn schemes_that_metadata_must_not_have_are_no_signatures() {
        for scheme in [SigningScheme::RsaPkcs1Sha256, SigningScheme::MlDsa65] {
            assert!(matches!(
                Ring.verify_raw(scheme, b"", b"", b""),
                Err(Error::UnsupportedAlgorithm(_))
            ));
        }
    }
}
