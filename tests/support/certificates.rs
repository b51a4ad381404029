//! A plant's own authority, and what it issues, as PEM files in a folder.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use orinoco::link::{IdentityFiles, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// An authority and a folder with everything that it issued.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// When a certificate holds.
#[derive(Clone, Copy)]
pub enum Validity {
    Now,
    Past,
    Future,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = params(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        fs::write(folder.path().join("ca.key"), key.serialize_pem()).unwrap();
        let issuer = Issuer::new(params, key);
        Authority { folder, issuer }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file of this authority.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Issues `{file}.pem` and `{file}.key` for these names.
    pub fn server(&self, file: &str, names: &[&str], validity: Validity) {
        self.issue(
            file,
            params("broker", names),
            ExtendedKeyUsagePurpose::ServerAuth,
            validity,
        );
    }

    /// Issues `{file}.pem` and `{file}.key` for a client whose name is `name`.
    pub fn client(&self, file: &str, name: &str, validity: Validity) -> IdentityFiles {
        self.issue(
            file,
            params(name, &[]),
            ExtendedKeyUsagePurpose::ClientAuth,
            validity,
        );
        IdentityFiles {
            cert_file: self.path(&format!("{file}.pem")),
            key_file: self.path(&format!("{file}.key")),
        }
    }

    fn issue(
        &self,
        file: &str,
        mut params: CertificateParams,
        purpose: ExtendedKeyUsagePurpose,
        validity: Validity,
    ) {
        let (from, until) = match validity {
            Validity::Now => (2020, 2120),
            Validity::Past => (2010, 2011),
            Validity::Future => (2120, 2121),
        };
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![purpose];
        params.is_ca = IsCa::ExplicitNoCa;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        write_key(
            &self.path(&format!("{file}.key")),
            &key.serialize_pem(),
            0o600,
        );
    }

    /// Trusts this authority, as nobody.
    pub fn trusted(&self) -> TlsFiles {
        TlsFiles {
            ca_file: self.ca_file(),
            identity: None,
            server_name: None,
        }
    }
}

pub fn write_key(path: &Path, pem: &str, mode: u32) {
    fs::write(path, pem).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn params(name: &str, alternative_names: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternative_names.iter().map(|&n| n.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
