//! TLS to the broker: which certificates, the handshake, and in words what went wrong.
//!
//! The stream that comes out of here is handed to rumqttc by `relay`; docs/decisions/0008 says why it is
//! not rumqttc's own TLS. Whom to trust is always named: there is no fallback to a list of public
//! authorities, each of which could then speak for a plant's broker.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject, SectionKind};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, SignatureScheme,
};
use tracing::warn;

use crate::secret::{self, SecretError};

/// Largest file of certificates or keys, in bytes: four times a distribution's bundle of authorities.
const PEM_BYTES_MAX: usize = 1 << 20;

/// Where the certificates are, all of them PEM. They are read again for each connection: renewed ones are
/// taken without a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that may have issued the broker's certificate.
    pub ca_file: PathBuf,
    /// Who we are; `None` when the broker asks for no certificate.
    pub identity: Option<IdentityFiles>,
    /// Name or address that the broker's certificate must be for; `None`: the host connected to.
    pub server_name: Option<String>,
}

/// A client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// Our certificate, and after it those between it and the authority, if any.
    pub cert_file: PathBuf,
    /// Its private key, without a passphrase; readable by us alone.
    pub key_file: PathBuf,
}

/// Why TLS cannot be set up with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates cannot be read.
    #[error("read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The key cannot be read, or others can.
    #[error(transparent)]
    Key(#[from] SecretError),
    /// What is wanted is not in the file.
    #[error("{path}: expected {expected}, found {found}")]
    Content {
        /// The file.
        path: PathBuf,
        /// In PEM's words.
        expected: &'static str,
        /// What is there instead.
        found: String,
    },
    /// They are of two pairs.
    #[error("the key in {key} is not that of the certificate in {cert}")]
    Mismatch {
        /// File of the key.
        key: PathBuf,
        /// File of the certificate.
        cert: PathBuf,
    },
    /// Neither a host name nor an address.
    #[error("{name:?} is no name that a certificate could be for")]
    ServerName {
        /// As configured.
        name: String,
    },
}

const CERTIFICATES: &str = "PEM with -----BEGIN CERTIFICATE-----";
const KEY: &str = "PEM with -----BEGIN PRIVATE KEY-----";

impl TlsFiles {
    /// Reads and checks all files.
    ///
    /// # Errors
    /// The first file that cannot be used, with what is wrong with it.
    pub fn check(&self, host: &str) -> Result<(), TlsError> {
        Tls::load(self, host).map(drop)
    }
}

/// TLS as one connection uses it.
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    identity: Arc<Identity>,
    ca_file: PathBuf,
}

/// Our certificate, for the broker that asks for one.
#[derive(Debug)]
struct Identity {
    key: Option<Arc<CertifiedKey>>,
    /// The broker asked. In TLS 1.3 it says only later, and then by closing the connection, that it did
    /// not like the answer.
    was_asked: AtomicBool,
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        self.key.is_some()
    }
}

impl Tls {
    pub(super) fn load(files: &TlsFiles, host: &str) -> Result<Tls, TlsError> {
        // Named, not the process-wide default, which panics when nobody has installed it.
        let provider = Arc::new(ring::default_provider());
        let name = files.server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| TlsError::ServerName { name: name.into() })?;
        let roots = roots(&files.ca_file)?;
        let key = match &files.identity {
            Some(files) => Some(Arc::new(certified_key(files, &provider)?)),
            None => None,
        };
        let identity = Arc::new(Identity {
            key,
            was_asked: AtomicBool::new(false),
        });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_client_cert_resolver(identity.clone());
        Ok(Tls {
            config: Arc::new(config),
            name,
            identity,
            ca_file: files.ca_file.clone(),
        })
    }

    /// TCP, then TLS. The error is a sentence for a person.
    pub(super) async fn connect(
        &self,
        host: &str,
        port: u16,
    ) -> Result<TlsStream<TcpStream>, String> {
        let tcp = TcpStream::connect((host, port))
            .await
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| format!("connect to {host}:{port}: {error}"))?;
        let connector = TlsConnector::from(self.config.clone());
        connector
            .connect(self.name.clone(), tcp)
            .await
            .map_err(|error| {
                self.explain(&error).unwrap_or_else(|| match error.kind() {
                    io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => format!(
                        "{host}:{port} closed the connection during the TLS handshake; is it a port for TLS?"
                    ),
                    _ => format!("TLS handshake with {host}:{port}: {error}"),
                })
            })
    }

    /// What a TLS error means for whoever set up this connection; `None` when it is not one of TLS.
    pub(super) fn explain(&self, error: &io::Error) -> Option<String> {
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        let ca_file = self.ca_file.display();
        Some(match error {
            Error::InvalidCertificate(bad) => match bad {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                    "the broker's certificate was not issued by an authority in {ca_file}"
                ),
                CertificateError::ExpiredContext { time, not_after } => format!(
                    "the broker's certificate expired {} ago, by the clock of this machine",
                    span(time.as_secs().abs_diff(not_after.as_secs()))
                ),
                CertificateError::NotValidYetContext { time, not_before } => format!(
                    "the broker's certificate begins to be valid in {}, by the clock of this machine: is it set?",
                    span(time.as_secs().abs_diff(not_before.as_secs()))
                ),
                CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
                    "the broker shows the certificate of an authority as its own: give it one with CA:FALSE, issued by that authority".into()
                }
                CertificateError::Other(other) if other.to_string().contains("UnsupportedCertVersion") => {
                    "the broker's certificate is of X.509 version 1, which has no names: issue one of version 3 with subjectAltName".into()
                }
                // Its own words name both sides.
                other => format!("the broker's {other}"),
            },
            Error::AlertReceived(alert) => self.explain_alert(*alert),
            Error::InvalidMessage(_) => {
                "the broker does not answer in TLS; is it a port for TLS?".into()
            }
            other => format!("TLS: {other}"),
        })
    }

    fn explain_alert(&self, alert: AlertDescription) -> String {
        use AlertDescription as Alert;
        match alert {
            Alert::CertificateRequired | Alert::NoCertificate => NO_CERTIFICATE.into(),
            Alert::CertificateExpired => "the broker says that our certificate has expired".into(),
            Alert::CertificateRevoked => "the broker says that our certificate was revoked".into(),
            Alert::UnknownCA => {
                "the broker does not trust the authority that issued our certificate".into()
            }
            Alert::ProtocolVersion => {
                "the broker offers no version of TLS that is safe; we take 1.2 and 1.3".into()
            }
            other => match self.after_handshake() {
                Some(guess) => format!("{guess} ({other:?})"),
                None => format!("the broker broke off TLS: {other:?}"),
            },
        }
    }

    /// What a connection may have ended of that ended after the handshake and before CONNACK. In TLS 1.3
    /// the broker judges our certificate when for us the handshake is over, and its alert may be lost
    /// when it closes the connection on what we have sent since.
    pub(super) fn after_handshake(&self) -> Option<&'static str> {
        let was_asked = self.identity.was_asked.load(Ordering::Relaxed);
        match &self.identity.key {
            _ if !was_asked => None,
            Some(_) => Some("the broker refused our certificate"),
            None => Some(NO_CERTIFICATE),
        }
    }
}

const NO_CERTIFICATE: &str = "the broker asks for a client certificate, and none is configured";

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let certificates = certificates(path, &read(path)?)?;
    let mut roots = RootCertStore::empty();
    let (n_used, n_unusable) = roots.add_parsable_certificates(certificates);
    if n_used == 0 {
        return Err(TlsError::Content {
            path: path.into(),
            expected: "certificates of authorities",
            found: format!("{n_unusable} that are none"),
        });
    }
    if n_unusable > 0 {
        warn!(path = %path.display(), n_used, n_unusable, "some certificates of authorities cannot be used");
    }
    Ok(roots)
}

fn certified_key(
    files: &IdentityFiles,
    provider: &tokio_rustls::rustls::crypto::CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let (cert_file, key_file) = (&files.cert_file, &files.key_file);
    let chain = certificates(cert_file, &read(cert_file)?)?;
    let key = private_key(key_file, &secret::read(key_file, PEM_BYTES_MAX)?)?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        Error::InconsistentKeys(_) => TlsError::Mismatch {
            key: key_file.clone(),
            cert: cert_file.clone(),
        },
        Error::InvalidCertificate(bad) => TlsError::Content {
            path: cert_file.clone(),
            expected: "an X.509 certificate",
            found: bad.to_string(),
        },
        other => TlsError::Content {
            path: key_file.clone(),
            expected: "an RSA (2048 bits or more), ECDSA (P-256, P-384) or Ed25519 key",
            found: other.to_string(),
        },
    })
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |found| TlsError::Content {
        path: path.into(),
        expected: CERTIFICATES,
        found,
    };
    let certificates = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(broken(&error)))?;
    match certificates.is_empty() {
        true => Err(wrong(instead(bytes))),
        false => Ok(certificates),
    }
}

fn private_key(path: &Path, bytes: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(bytes).map_err(|error| TlsError::Content {
        path: path.into(),
        expected: KEY,
        found: match error {
            pem::Error::NoItemsFound => instead(bytes),
            error => broken(&error),
        },
    })
}

fn broken(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a block without its -----END line".into(),
        pem::Error::Base64Decode(_) => "a block that is not base64".into(),
        _ => "a broken block".into(),
    }
}

/// What a file holds that is not what was wanted: the mistakes that people make.
fn instead(bytes: &[u8]) -> String {
    const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    if bytes.is_empty() {
        return "nothing: the file is empty".into();
    }
    if bytes.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED) {
        return "a key with a passphrase, which nobody could type in: openssl pkey -in KEY -out PLAIN".into();
    }
    // DER, and PKCS #12 too, begin with the tag of a SEQUENCE and a length of two bytes.
    if bytes.starts_with(&[0x30, 0x82]) {
        return "binary DER: convert it with openssl (x509, pkey or pkcs12)".into();
    }
    let mut sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes);
    match sections.next() {
        Some(Ok((SectionKind::Certificate, _))) => "a certificate".into(),
        Some(Ok((
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey,
            _,
        ))) => "a private key".into(),
        Some(Ok((SectionKind::Csr, _))) => "a request for a certificate".into(),
        _ => "something else".into(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |reason| TlsError::Read {
        path: path.into(),
        reason,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(error.to_string()))?;
    match bytes.len() > PEM_BYTES_MAX {
        true => Err(wrong(format!("more than {PEM_BYTES_MAX} bytes"))),
        false => Ok(bytes),
    }
}

/// A span of time in its largest unit: a clock that is wrong is wrong by decades.
fn span(seconds: u64) -> String {
    let (number, unit) = match Duration::from_secs(seconds).as_secs() {
        s @ 0..120 => (s, "seconds"),
        s @ 120..7200 => (s / 60, "minutes"),
        s @ 7200..172_800 => (s / 3600, "hours"),
        s => (s / 86_400, "days"),
    };
    format!("{number} {unit}")
}
