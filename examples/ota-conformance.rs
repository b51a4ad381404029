//! The device's TUF client with the command line that the official conformance tests drive
//! (<https://github.com/theupdateframework/tuf-conformance>, CLIENT-CLI.md):
//!
//! ```text
//! ota-conformance --metadata-dir DIR init ROOT
//! ota-conformance --metadata-dir DIR --metadata-url URL refresh
//! ota-conformance --metadata-dir DIR --metadata-url URL --target-name PATH \
//!     --target-base-url URL --target-dir DIR download
//! ```
//!
//! What is under test is the product's own: `ota::trust::Client` with its store, its floor and its limits. The
//! tests bring repositories from the past and set the clock to fit, so the system's clock counts here as one
//! that a time server set; which time the product believes has tests of its own. `docs/ota/conformance.md`
//! keeps the last result.
#![allow(clippy::print_stderr, reason = "the tests' log shows why a run failed")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use clap::{Parser, Subcommand};
use orinoco::ota::Digest;
use orinoco::ota::trust::{Client, MetadataSource, Place, SourceError, Trust as _, TrustedNow};

/// Beside the folder of metadata: the root that `init` was given.
const SHIPPED_ROOT: &str = "shipped-root.json";

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    metadata_dir: PathBuf,
    #[arg(long)]
    metadata_url: Option<String>,
    #[arg(long)]
    target_name: Vec<String>,
    #[arg(long)]
    target_base_url: Option<String>,
    #[arg(long)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init { root: PathBuf },
    Refresh,
    Download,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ota-conformance: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // The client keeps its metadata in a folder of this name, which is the one that the tests look into.
    ensure!(
        arguments.metadata_dir.ends_with("metadata"),
        "--metadata-dir {}: expected a folder called metadata",
        arguments.metadata_dir.display()
    );
    let folder = arguments.metadata_dir.parent().unwrap_or(Path::new("."));
    if let Command::Init { root } = &arguments.command {
        fs::copy(root, folder.join(SHIPPED_ROOT)).context("copy the root")?;
        open(folder)?;
        return Ok(());
    }
    let mut client = open(folder)?;
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let now = TrustedNow::exactly(since_1970.as_secs());
    let mut server = Server {
        metadata: base(arguments.metadata_url.as_ref())?,
        targets: arguments.target_base_url.clone().unwrap_or_default(),
    };
    client.refresh(&mut server, now)?;
    if matches!(arguments.command, Command::Refresh) {
        return Ok(());
    }
    let target_dir = arguments
        .target_dir
        .as_ref()
        .context("--target-dir is missing")?;
    for path in &arguments.target_name {
        let info = client
            .find(path, &mut server, now)?
            .with_context(|| format!("{path}: no such target"))?;
        // A path of a stranger's is no file name of ours; its digest is.
        let kept = target_dir.join(Digest::of(path.as_bytes()).to_string());
        if fs::read(&kept).is_ok_and(|bytes| Digest::of(&bytes) == info.digest) {
            continue;
        }
        let name = match path.rsplit_once('/') {
            Some((folders, name)) => format!("{folders}/{}.{name}", info.digest),
            None => format!("{}.{path}", info.digest),
        };
        let file = match consistent(&arguments.metadata_dir)? {
            true => format!("targets/{name}"),
            false => format!("targets/{path}"),
        };
        let bytes = server
            .get(&file, info.bytes)?
            .with_context(|| format!("{file}: not there"))?;
        ensure!(
            bytes.len() as u64 == info.bytes && Digest::of(&bytes) == info.digest,
            "{file}: not what was signed"
        );
        fs::write(kept, bytes).context("write the target")?;
    }
    Ok(())
}

fn open(folder: &Path) -> anyhow::Result<Client> {
    let root = fs::read(folder.join(SHIPPED_ROOT)).context("no root: init comes first")?;
    Ok(Client::open(Place {
        folder: folder.into(),
        root,
    })?)
}

/// Whether files carry their digest in their name; in our own repositories they always do.
fn consistent(metadata_dir: &Path) -> anyhow::Result<bool> {
    let root: serde_json::Value =
        serde_json::from_slice(&fs::read(metadata_dir.join("root.json"))?)?;
    Ok(root["signed"]["consistent_snapshot"] == true)
}

fn base(url: Option<&String>) -> anyhow::Result<String> {
    Ok(url.context("--metadata-url is missing")?.clone())
}

/// The tests' server, which has metadata and targets at two addresses.
struct Server {
    metadata: String,
    targets: String,
}

impl MetadataSource for Server {
    fn get(&mut self, file: &str, limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        let url = match file.split_once('/') {
            Some(("metadata", name)) => format!("{}/{name}", self.metadata.trim_end_matches('/')),
            Some((_, name)) => format!("{}/{name}", self.targets.trim_end_matches('/')),
            None => file.to_owned(),
        };
        get(&url, limit_bytes).map_err(|error| SourceError::Unreachable {
            file: file.into(),
            why: format!("{error:#}"),
        })
    }
}

/// One file by HTTP/1.0; `None` for 403 and 404.
fn get(url: &str, limit_bytes: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let (host, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("{url}: expected http://HOST:PORT/PATH"))?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(limit_bytes + 16_384).read_to_end(&mut answer)?;
    let end = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .context("no end of the header")?;
    let header = String::from_utf8_lossy(&answer[..end]).into_owned();
    match header.split_whitespace().nth(1) {
        Some("200") => Ok(Some(answer.split_off(end + 4))),
        Some("403" | "404") => Ok(None),
        other => bail!("{url}: status {other:?}"),
    }
}
