//! A static web server as a source.
//!
//! One request for each piece: a server has then never sent more than one piece that we do not have yet,
//! whenever the cable is pulled, and the connection stays open between them. A server that knows no ranges
//! answers 200 with the whole file; then that one answer is read on from piece to piece, and what is there
//! already is passed over.
//!
//! | answer | meaning here |
//! |---|---|
//! | 206 with exactly the range asked for, of a file of the signed length | the piece |
//! | 206 about anything else | a lie |
//! | 200 with the signed length, or none | the whole file |
//! | 416, or another length | the file there is not the signed one: a lie |
//! | any `Content-Encoding` | a lie: we ask for none, and lengths would mean something else |
//! | 3xx | absent: no redirect is followed, to nowhere |
//! | 404, 410, 401, 403 | absent |
//! | 408, 425, 429, 5xx | unreachable for now |
//!
//! `ETag` and dates are not looked at: digests say whether a file changed.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, HeaderMap, RANGE};
use reqwest::{Client, Response, StatusCode, Url, redirect};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{AddressError, Fault, Flow, PROGRESS_BYTES, SourceError, Terms, Want};

/// Slowest that metadata may come over the whole file, bytes a second: a server that drips just fast enough
/// for the stall timeout could otherwise keep a device from looking elsewhere for hours.
const METADATA_BYTES_PER_SECOND_MIN: u64 = 4 << 10;

/// Longest file of authorities, bytes.
const CA_BYTES_MAX: u64 = 1 << 20;

/// A static web server.
#[derive(Debug)]
pub struct HttpMirror {
    /// As configured, for messages.
    name: String,
    /// Ends with a slash.
    base: Url,
    tls: ClientConfig,
    pub(super) terms: Terms,
    pieces: Client,
    /// For metadata, which is asked for by blocking code, whatever runtime that runs in.
    metadata: Option<Blocking>,
    /// The answer of a server that knows no ranges.
    whole: Option<Whole>,
}

/// A client with a runtime of its own.
#[derive(Debug)]
struct Blocking {
    client: Client,
    /// Taken by `drop` alone.
    runtime: Option<Runtime>,
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // A runtime may not be waited for within another one, and nothing of this one is worth waiting for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A file that comes whole.
#[derive(Debug)]
struct Whole {
    file: String,
    /// Bytes that were taken out of it.
    position: u64,
    body: Body,
}

/// What still comes of an answer.
#[derive(Debug)]
struct Body {
    response: Response,
    /// Received and not taken yet.
    rest: Bytes,
}

impl HttpMirror {
    /// A mirror whose tree begins at `address`.
    pub(super) fn new(address: &str, terms: &Terms) -> Result<Self, AddressError> {
        let unknown = || AddressError::Unknown {
            found: address.to_owned(),
        };
        let mut base = Url::parse(address).map_err(|_| unknown())?;
        let extra = match () {
            () if !base.username().is_empty() || base.password().is_some() => {
                Some("a name or password, which would end up in logs")
            }
            () if base.query().is_some() => {
                Some("a query, and only a path can be the start of a tree")
            }
            () if base.fragment().is_some() => Some("a fragment (#), which no server sees"),
            () => None,
        };
        if let Some(what) = extra {
            let _ = base.set_username("");
            let _ = base.set_password(None);
            base.set_query(None);
            return Err(AddressError::Extra {
                found: base.to_string(),
                what,
            });
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let tls_error = |what| AddressError::Tls {
            found: address.to_owned(),
            what,
        };
        let tls = match (base.scheme(), &terms.ca_file) {
            ("https", None) => {
                return Err(tls_error(
                    "ota.fetch.ca_file names no authorities; what comes is signed in any case, so a mirror on the \
                     site may be http"
                        .into(),
                ));
            }
            ("https", Some(ca_file)) => tls_config(authorities(ca_file).map_err(tls_error)?),
            _ => tls_config(RootCertStore::empty()),
        };
        let pieces = client(&tls, terms, 1).map_err(|error| tls_error(sentence(&error)))?;
        Ok(Self {
            name: address.trim_end_matches('/').to_owned(),
            base,
            tls,
            terms: terms.clone(),
            pieces,
            metadata: None,
            whole: None,
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn rest(&mut self) {
        self.whole = None;
    }

    fn url(&self, file: &str) -> Url {
        // The name was checked, so it is one path below the base.
        self.base
            .join(file)
            .expect("a file of the tree is a relative URL")
    }

    fn error(&self, file: &str, fault: Fault, what: impl Into<String>) -> SourceError {
        SourceError {
            source_name: self.name.clone(),
            file: file.to_owned(),
            fault,
            what: what.into(),
        }
    }

    /// Metadata. In a thread of its own, since blocking on a runtime within a runtime is not possible.
    pub(super) fn get(
        &mut self,
        file: &str,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        if self.metadata.is_none() {
            // Nobody watches its connections between two looks: one that the server has closed meanwhile would
            // fail the next look.
            let made = client(&self.tls, &self.terms, 0).map_err(|error| sentence(&error));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| error.to_string());
            let (client, runtime) = made
                .and_then(|client| Ok((client, runtime?)))
                .map_err(|what| self.error(file, Fault::Unreachable, what))?;
            self.metadata = Some(Blocking {
                client,
                runtime: Some(runtime),
            });
        }
        let blocking = self.metadata.as_ref().expect("made above");
        let runtime = blocking.runtime.as_ref().expect("taken by drop alone");
        let seconds = limit_bytes / METADATA_BYTES_PER_SECOND_MIN;
        let limit = self.terms.stall_timeout + Duration::from_secs(seconds);
        let got = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                runtime.block_on(async {
                    let get = self.get_in_time(&blocking.client, file, limit_bytes);
                    timeout(limit, get).await
                })
            });
            asking.join()
        });
        match got {
            Ok(Ok(got)) => got,
            Ok(Err(_)) => Err(self.error(
                file,
                Fault::Stalled,
                format!("not whole after {} s", limit.as_secs()),
            )),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn get_in_time(
        &self,
        client: &Client,
        file: &str,
        limit_bytes: u64,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        let response = self.ask(client, file, None).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            status => return Err(self.refused(file, status, response.headers())),
        }
        self.check_encoding(file, response.headers(), Fault::Absent)?;
        let too_long = || {
            self.error(
                file,
                Fault::Lied,
                format!("longer than the {limit_bytes} bytes that such a file may have"),
            )
        };
        if response
            .content_length()
            .is_some_and(|length| length > limit_bytes)
        {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        let mut body = Body {
            response,
            rest: Bytes::new(),
        };
        let mut patience = Stall::new(self.terms.stall_timeout);
        while let Some(chunk) = self.chunk(file, &mut body, &mut patience).await? {
            if bytes.len() as u64 + chunk.len() as u64 > limit_bytes {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    /// A piece.
    pub(super) async fn read(
        &mut self,
        want: &Want<'_>,
        into: &mut Vec<u8>,
        flow: &mut dyn Flow,
    ) -> Result<(), SourceError> {
        let whole = self.whole.take();
        let at_hand = whole.filter(|w| w.file == want.file && w.position <= want.range.start);
        let mut patience = Stall::new(self.terms.stall_timeout);
        let mut whole = match at_hand {
            Some(whole) => whole,
            None => {
                let response = self.ask(&self.pieces, want.file, Some(want)).await?;
                self.check_encoding(want.file, response.headers(), Fault::Lied)?;
                let mut body = Body {
                    rest: Bytes::new(),
                    response,
                };
                match body.response.status() {
                    StatusCode::PARTIAL_CONTENT => {
                        self.check_range(want, body.response.headers())?;
                        self.check_length(want, &body.response, want.n_bytes())?;
                        let n_bytes = want.n_bytes();
                        self.take(
                            want.file,
                            &mut body,
                            n_bytes,
                            Some(into),
                            flow,
                            &mut patience,
                        )
                        .await?;
                        return match body.rest.is_empty() {
                            true => Ok(()),
                            false => Err(self.error(
                                want.file,
                                Fault::Lied,
                                format!("sends more than the {n_bytes} bytes asked for"),
                            )),
                        };
                    }
                    StatusCode::OK => {
                        self.check_length(want, &body.response, want.file_bytes)?;
                    }
                    status => {
                        return Err(self.refused(want.file, status, body.response.headers()));
                    }
                }
                Whole {
                    file: want.file.to_owned(),
                    position: 0,
                    body,
                }
            }
        };
        let passed_over = want.range.start - whole.position;
        self.take(
            want.file,
            &mut whole.body,
            passed_over,
            None,
            flow,
            &mut patience,
        )
        .await?;
        self.take(
            want.file,
            &mut whole.body,
            want.n_bytes(),
            Some(into),
            flow,
            &mut patience,
        )
        .await?;
        whole.position = want.range.end;
        // Only kept while all goes well: after an error the next request starts afresh.
        self.whole = (whole.position < want.file_bytes).then_some(whole);
        Ok(())
    }

    async fn ask(
        &self,
        client: &Client,
        file: &str,
        want: Option<&Want<'_>>,
    ) -> Result<Response, SourceError> {
        // Whatever stands between us and the files (caches, proxies) shall not change their lengths.
        let mut request = client
            .get(self.url(file))
            .header(ACCEPT_ENCODING, "identity");
        if let Some(want) = want {
            let range = format!("bytes={}-{}", want.range.start, want.range.end - 1);
            request = request.header(RANGE, range);
        }
        match timeout(self.terms.stall_timeout, request.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.error(file, Fault::Unreachable, sentence(&error))),
            Err(_) => Err(self.error(
                file,
                Fault::Stalled,
                format!("no answer for {} s", self.terms.stall_timeout.as_secs()),
            )),
        }
    }

    /// Takes exactly `n_bytes` out of an answer.
    async fn take(
        &self,
        file: &str,
        body: &mut Body,
        n_bytes: u64,
        mut into: Option<&mut Vec<u8>>,
        flow: &mut dyn Flow,
        patience: &mut Stall,
    ) -> Result<(), SourceError> {
        let mut missing = n_bytes;
        while missing > 0 {
            if body.rest.is_empty() {
                body.rest = match self.chunk(file, body, patience).await? {
                    Some(chunk) => chunk,
                    None => {
                        return Err(self.error(
                            file,
                            Fault::Unreachable,
                            format!("ended {missing} bytes before the end of what was asked for"),
                        ));
                    }
                };
                let pause = flow.took(body.rest.len() as u64);
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            let n = missing.min(body.rest.len() as u64);
            // At most the length of `rest`, which is a usize.
            let taken = body.rest.split_to(n as usize);
            if let Some(into) = &mut into {
                into.extend_from_slice(&taken);
            }
            missing -= n;
        }
        Ok(())
    }

    async fn chunk(
        &self,
        file: &str,
        body: &mut Body,
        patience: &mut Stall,
    ) -> Result<Option<Bytes>, SourceError> {
        let asked = Instant::now();
        match timeout(patience.left(), body.response.chunk()).await {
            Ok(Ok(chunk)) => {
                patience.came(chunk.as_ref().map_or(0, Bytes::len), asked.elapsed());
                Ok(chunk)
            }
            Ok(Err(error)) => Err(self.error(file, Fault::Unreachable, sentence(&error))),
            Err(_) => Err(self.error(
                file,
                Fault::Stalled,
                format!(
                    "fewer than {PROGRESS_BYTES} bytes in {} s",
                    self.terms.stall_timeout.as_secs()
                ),
            )),
        }
    }

    fn check_encoding(
        &self,
        file: &str,
        headers: &HeaderMap,
        fault: Fault,
    ) -> Result<(), SourceError> {
        match headers.get(CONTENT_ENCODING) {
            Some(encoding) if encoding != "identity" => Err(self.error(
                file,
                fault,
                format!("comes with Content-Encoding {encoding:?}, and none was asked for"),
            )),
            _ => Ok(()),
        }
    }

    fn check_range(&self, want: &Want<'_>, headers: &HeaderMap) -> Result<(), SourceError> {
        let (first, last) = (want.range.start, want.range.end - 1);
        let sent = headers
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        match sent.and_then(content_range) {
            Some((from, to, total))
                if (from, to) == (first, last)
                    && total.is_none_or(|total| total == want.file_bytes) =>
            {
                Ok(())
            }
            _ => Err(self.error(
                want.file,
                Fault::Lied,
                format!(
                    "Content-Range {}, expected bytes {first}-{last}/{}",
                    sent.unwrap_or("is missing"),
                    want.file_bytes
                ),
            )),
        }
    }

    fn check_length(
        &self,
        want: &Want<'_>,
        response: &Response,
        expected: u64,
    ) -> Result<(), SourceError> {
        match response.content_length() {
            Some(length) if length != expected => Err(self.error(
                want.file,
                Fault::Lied,
                format!("announces {length} bytes, expected {expected}"),
            )),
            _ => Ok(()),
        }
    }

    /// Any answer without the file.
    fn refused(&self, file: &str, status: StatusCode, headers: &HeaderMap) -> SourceError {
        let fault = match status.as_u16() {
            408 | 425 | 429 | 500..=599 => Fault::Unreachable,
            206 | 416 => Fault::Lied,
            _ => Fault::Absent,
        };
        let what = match status.as_u16() {
            300..=399 => {
                format!("answers {status}: redirects are not followed, name the place itself")
            }
            416 => {
                let sent = headers.get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
                format!(
                    "answers {status}: the file there is shorter ({})",
                    sent.unwrap_or("no length told")
                )
            }
            _ => format!("answers {status}"),
        };
        self.error(file, fault, what)
    }
}

/// How long nothing may come, counted while we wait for bytes and not while we hold back by ourselves.
struct Stall {
    timeout: Duration,
    waited: Duration,
    n_bytes: u64,
}

impl Stall {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            waited: Duration::ZERO,
            n_bytes: 0,
        }
    }

    fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.waited)
    }

    fn came(&mut self, n_bytes: usize, after: Duration) {
        self.waited += after;
        self.n_bytes += n_bytes as u64;
        if self.n_bytes >= PROGRESS_BYTES {
            *self = Self::new(self.timeout);
        }
    }
}

/// `bytes 0-99/1000` or `bytes 0-99/*` (RFC 9110, 14.4).
fn content_range(value: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    };
    let total = match total {
        "*" => None,
        total => Some(number(total)?),
    };
    Some((number(first)?, number(last)?, total))
}

/// `n_idle`: connections that are kept for the next request.
fn client(tls: &ClientConfig, terms: &Terms, n_idle: usize) -> Result<Client, reqwest::Error> {
    Client::builder()
        .user_agent(concat!("orinoco/", env!("CARGO_PKG_VERSION")))
        .tls_backend_preconfigured(tls.clone())
        .redirect(redirect::Policy::none())
        // The environment of a service is no place where somebody would look for a proxy.
        .no_proxy()
        .referer(false)
        .http1_only()
        .connect_timeout(terms.connect_timeout)
        .pool_max_idle_per_host(n_idle)
        .build()
}

fn tls_config(roots: RootCertStore) -> ClientConfig {
    // Named, not the process-wide default, which panics when nobody has installed it.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let shown = path.display();
    let mut pem = Vec::new();
    File::open(path)
        .and_then(|file| file.take(CA_BYTES_MAX).read_to_end(&mut pem))
        .map_err(|error| format!("read {shown}: {error}"))?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{shown}: {error:?}, expected PEM"))?;
    let mut roots = RootCertStore::empty();
    match roots.add_parsable_certificates(found) {
        (0, _) => Err(format!(
            "{shown}: no certificate of an authority, expected PEM with -----BEGIN CERTIFICATE-----"
        )),
        _ => Ok(roots),
    }
}

/// An error with its causes; the innermost one is the one that helps.
fn sentence(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_connection_that_the_server_closed_between_two_looks_is_no_fault() {
        use std::io::Write as _;
        use std::net::TcpListener;

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (gone, is_gone) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                // It promises to stay, and goes.
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                stream.write_all(answer).unwrap();
                drop(stream);
                let _ = gone.send(());
            }
        });
        let mut mirror = HttpMirror::new(&address, &Terms::default()).unwrap();
        for _ in 0..3 {
            let got = mirror.get("metadata/timestamp.json", 100).unwrap();
            assert_eq!(got.as_deref(), Some(&b"hi"[..]));
            is_gone.recv().unwrap();
        }
    }

    #[test]
    fn a_content_range_is_read_strictly() {
        assert_eq!(content_range("bytes 0-99/1000"), Some((0, 99, Some(1000))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, 5, None)));
        for wrong in [
            "",
            "bytes",
            "bytes */5",
            "0-99/1000",
            "bytes 0-99",
            "bytes -1/5",
            "bytes 1-/5",
            "bytes +1-2/5",
            "bytes 0-99999999999999999999/1",
            "items 0-1/2",
        ] {
            assert_eq!(content_range(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_server_writes_there_never_panics(value in "(bytes )?[0-9*+ -]{0,30}/?[0-9*]{0,25}") {
            let _ = content_range(&value);
        }
    }

    #[test]
    fn a_drip_of_bytes_is_no_progress_and_a_steady_stream_is() {
        let second = Duration::from_secs(1);
        let mut drip = Stall::new(second * 30);
        for _ in 0..30 {
            drip.came(100, second);
        }
        assert_eq!(drip.left(), Duration::ZERO);
        let mut stream = Stall::new(second * 30);
        for _ in 0..300 {
            stream.came(1000, second);
            assert!(stream.left() > second * 20);
        }
    }
}
