//! The embedded broker as a child process (`broker.mode = "child"`): started, watched, restarted.
//!
//! Its settings go in over standard input, so that no credential stands in an argument list; the end of
//! standard input is its order to leave, so it ends with us whatever happens. It says on standard output
//! where it listens. A broker that dies is started again on the same address, and devices and our own
//! link reconnect to where they were.

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::settings;
use crate::broker::{self, BrokerConfig, PortChoice};
use crate::config::{Config, LogConfig};
use crate::logging;
use crate::process::{die_with_parent, tie};
use crate::worker::Backoff;

/// A broker must listen within this time.
const START_LIMIT: Duration = Duration::from_secs(10);
/// After its standard input closed, it must be gone within this time.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// The running broker and its keeper.
pub(super) struct BrokerChild {
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// The daemon's account on it, made anew at each start of the daemon.
    pub(super) password: String,
    keeper: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// A broker process, and the pipe whose end tells it to leave.
struct Running {
    process: Child,
    stdin: ChildStdin,
}

/// The child's side: `orinoco broker --settings-from-stdin`. Returns when standard input ends.
///
/// # Errors
/// Unreadable settings, or what the broker says.
pub fn serve_child() -> anyhow::Result<()> {
    die_with_parent().context("failed to tie the broker to the daemon")?;
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .context("failed to read the broker's settings")?;
    let settings: BrokerConfig =
        serde_json::from_str(&line).context("failed to parse the broker's settings")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(async {
        let say = |address| {
            use std::io::Write as _;
            // The daemon reads it; when it cannot, it has gone, and so do we.
            let _ = std::io::stdout().write_all(broker::ready_line(address).as_bytes());
        };
        let gone = async {
            let mut rest = [0; 64];
            let mut stdin = tokio::io::stdin();
            while matches!(stdin.read(&mut rest).await, Ok(1..)) {}
        };
        broker::serve(settings, say, gone)
            .await
            .context("the broker ended")
    })?;
    // The thread that reads standard input cannot be stopped; leaving main ends it.
    runtime.shutdown_background();
    Ok(())
}

impl BrokerChild {
    /// Starts the broker; returns once it listens.
    pub(super) async fn start(config: &Config) -> anyhow::Result<Self> {
        let mut password = [0; 32];
        getrandom::fill(&mut password).context("failed to make the daemon's password")?;
        let password: String = password.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut settings = settings::broker(config, Some(password.clone()))?;
        let log = config.log.clone();
        let (child, address) = launch(&settings, &log).await?;
        // From now on this port and no other: clients know it.
        settings.port = PortChoice::Exactly(address.port());
        let (stop, stopped) = oneshot::channel();
        let keeper = tokio::spawn(keep(settings, log, child, stopped));
        Ok(Self {
            address,
            password,
            keeper,
            stop,
        })
    }

    /// Ends the broker and waits for it.
    pub(super) async fn stop(self) {
        drop(self.stop);
        if let Err(error) = self.keeper.await {
            warn!(%error, "the broker's keeper failed");
        }
    }
}

async fn keep(
    settings: BrokerConfig,
    log: LogConfig,
    mut child: Running,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let started = tokio::time::Instant::now();
        tokio::select! {
            _ = &mut stopped => {
                drop(child.stdin);
                if tokio::time::timeout(STOP_LIMIT, child.process.wait()).await.is_err() {
                    let _ = child.process.kill().await; // It may have ended just now.
                }
                return;
            }
            status = child.process.wait() => match status {
                Ok(status) => error!(%status, "broker ended, starting it again"),
                Err(error) => error!(%error, "broker lost, starting it again"),
            },
        }
        let mut served = started.elapsed();
        child = loop {
            tokio::select! {
                _ = &mut stopped => return,
                () = tokio::time::sleep(backoff.after_life_of(served)) => {}
            }
            served = Duration::ZERO;
            match launch(&settings, &log).await {
                Ok((child, _)) => break child,
                Err(error) => error!(error = format!("{error:#}"), "broker does not start"),
            }
        };
    }
}

async fn launch(settings: &BrokerConfig, log: &LogConfig) -> anyhow::Result<(Running, SocketAddr)> {
    let program = std::env::current_exe().context("failed to find this program's own file")?;
    let mut command = Command::new(&program);
    tie(command.as_std_mut());
    let mut child = command
        .args(["broker", "--settings-from-stdin"])
        // It logs where and as much as we do.
        .arg(format!("--set=log.format={}", log.format.as_str()))
        .env(logging::LEVEL_VARIABLE, &log.level)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("failed to start {} broker", program.display()))?;
    let mut settings =
        serde_json::to_vec(settings).context("failed to encode the broker's settings")?;
    settings.push(b'\n');
    // Taken out: waiting for a child closes the standard input that it still has.
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(&settings)
        .await
        .context("failed to hand the broker its settings")?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut line = String::new();
    let mut lines = BufReader::new(stdout);
    match tokio::time::timeout(START_LIMIT, lines.read_line(&mut line)).await {
        Err(_) => bail!("the broker did not listen within {START_LIMIT:?}"),
        Ok(Err(error)) => return Err(error).context("failed to read the broker's address"),
        Ok(Ok(_)) => {}
    }
    let Some(address) = broker::parse_ready_line(&line) else {
        let status = tokio::time::timeout(STOP_LIMIT, child.wait()).await;
        bail!("the broker ended before it listened ({status:?}); its log lines are above");
    };
    Ok((
        Running {
            process: child,
            stdin,
        },
        address,
    ))
}
