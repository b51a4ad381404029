//! Between rumqttc and the TLS stream.
//!
//! ```text
//!   rumqttc ── Unix socket ── relay ══ TLS ══ broker
//! ```
//!
//! rumqttc takes no stream that somebody else opened, but it connects to a Unix socket. The relay gives it
//! one for each connection: in the abstract namespace, so that no file is left behind; under a random name;
//! for one connection, which must come from this process. Each side's end becomes the other's, so that
//! rumqttc and the broker see what they would see without it.

use std::io;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// After rumqttc's end, what it wrote must reach the broker within this time.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);

/// A relay at work. Dropped, both sides are closed.
pub(super) struct Relay {
    address: String,
    /// The error that ended it, if one did.
    task: JoinHandle<io::Result<()>>,
}

impl Relay {
    /// Waits for rumqttc at [`Relay::address`].
    pub(super) fn start(tls: TlsStream<TcpStream>) -> io::Result<Relay> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let address = format!("\0orinoco-link-{:032x}", u128::from_ne_bytes(random));
        let listener = UnixListener::bind(&address)?;
        let task = tokio::spawn(relay(listener, tls));
        Ok(Relay { address, task })
    }

    /// Where rumqttc is to connect: a name in the abstract namespace, with its leading NUL.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Call it when rumqttc's side is closed: hands on what rumqttc wrote last, and says what ended the
    /// relay, if it was an error.
    pub(super) async fn end(mut self) -> Option<io::Error> {
        match timeout(FLUSH_LIMIT, &mut self.task).await {
            Ok(Ok(ended)) => ended.err(),
            // It took too long, and is dropped with the rest of it; or it was dropped already.
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(listener: UnixListener, mut tls: TlsStream<TcpStream>) -> io::Result<()> {
    let mut local = accept_own(listener).await?;
    copy_bidirectional(&mut local, &mut tls).await.map(drop)
}

/// The connection from this process; others are none of ours.
async fn accept_own(listener: UnixListener) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let pid = stream.peer_cred()?.pid();
        if pid.and_then(|pid| u32::try_from(pid).ok()) == Some(std::process::id()) {
            return Ok(stream);
        }
    }
}
