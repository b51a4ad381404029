//! What a fetch costs: verifying beside `sha256sum`, bytes fetched twice when it is killed, and the way from a
//! server on this machine to a blob.
//!
//!     cargo bench --bench ota_fetch --profile release [-- DIR [MIB]]
//!
//! DIR is on the disk to be measured (default: the current directory), MIB the length of the file (default 1024).
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a command-line tool for developers"
)]

#[path = "../tests/support/mirror.rs"]
mod mirror;

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mirror::Mirror;
use orinoco::ota::blobs::{BlobStore, digest_of};
use orinoco::ota::fetch::{FetchConfig, Fetcher, FileToFetch};
use orinoco::ota::name::{Digest, TargetName};
use orinoco::ota::pieces::{PIECE_BYTES, PieceTable};
use orinoco::ota::source::{Source, Terms};
use tokio::sync::watch;

/// Set for the process that is to be killed: the state directory, the table, digest and bytes, the server.
const CHILD: &str = "ORINOCO_FETCH_CHILD";
const N_ROUNDS: usize = 5;

fn main() {
    if let Ok(given) = std::env::var(CHILD) {
        return child(&given);
    }
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let base = args.next().unwrap_or_else(|| ".".into());
    let n_mib: u64 = args
        .next()
        .map_or(1024, |mib| mib.parse().expect("MIB is a number"));
    let dir = tempfile::tempdir_in(base).expect("DIR is a writable directory");
    verify(&dir.path().join("whole"), n_mib << 20);
    println!();
    through_http(dir.path(), n_mib << 20);
    println!();
    kills(dir.path());
}

/// The hash that a commit and a scrub take, and the one of coreutils, in turn, the file in memory.
fn verify(path: &Path, bytes: u64) {
    write_noise(path, bytes);
    let file = File::open(path).unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=N_ROUNDS {
        let start = Instant::now();
        let found = run(digest_of(&file, bytes, |_| Duration::ZERO)).unwrap();
        let our_time = start.elapsed();
        let start = Instant::now();
        let said = Command::new("sha256sum").arg(path).output().unwrap();
        let their_time = start.elapsed();
        assert!(said.stdout.starts_with(found.to_string().as_bytes()));
        // The first round brings the file into memory.
        if round > 0 {
            ours.push(our_time);
            theirs.push(their_time);
        }
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let rate = |took: Duration| bytes as f64 / took.as_secs_f64() / 1e6;
    println!(
        "verify {} MiB, medians of {N_ROUNDS} rounds in turn:",
        bytes >> 20
    );
    println!("    Orinoco    {ours:>8.1?}  {:>6.0} MB/s", rate(ours));
    println!("    sha256sum  {theirs:>8.1?}  {:>6.0} MB/s", rate(theirs));
    println!(
        "    ratio of speeds {:.2}",
        theirs.as_secs_f64() / ours.as_secs_f64()
    );
}

/// Every piece hashed, written and synced; then the whole hashed again and renamed.
fn through_http(dir: &Path, bytes: u64) {
    let file = publish(dir, &dir.join("whole"), bytes);
    let server = Mirror::of(&dir.join("tree"));
    let store = BlobStore::open(&dir.join("state")).unwrap();
    let mut fetcher = Fetcher::new(store, FetchConfig::default(), watch::channel(false).1);
    let start = Instant::now();
    run(async {
        let mut sources = [Source::at(&server.address(), &Terms::default()).unwrap()];
        let collected = fetcher.collect(&file, &mut sources).await.unwrap();
        let fetched = start.elapsed();
        fetcher.commit(collected).await.unwrap().unwrap();
        let committed = start.elapsed() - fetched;
        let rate = |took: Duration| bytes as f64 / took.as_secs_f64() / 1e6;
        println!(
            "from a server on this machine, {} pieces:",
            file.pieces.n_pieces()
        );
        println!("    fetch   {fetched:>8.1?}  {:>6.0} MB/s", rate(fetched));
        println!(
            "    commit  {committed:>8.1?}  {:>6.0} MB/s",
            rate(committed)
        );
    });
}

/// A process is killed at the end of each piece, and one byte before and after it; another one goes on.
fn kills(dir: &Path) {
    const N_PIECES: u64 = 8;
    let piece = u64::from(PIECE_BYTES);
    let bytes = (N_PIECES - 1) * piece + 1000;
    let path = dir.join("small");
    write_noise(&path, bytes);
    let file = publish(dir, &path, bytes);
    let table = dir.join("table");
    std::fs::write(&table, file.pieces.to_bytes()).unwrap();
    let ends = (1..N_PIECES).map(|i| i * piece).chain([bytes]);
    let points = ends
        .flat_map(|end| [end - 1, end, end + 1])
        .filter(|point| *point <= bytes);
    let mut twice = Vec::new();
    for point in points {
        let server = Mirror::of(&dir.join("tree"));
        let state = dir.join(format!("killed-{point}"));
        let given = [
            state.to_str().unwrap(),
            table.to_str().unwrap(),
            &file.digest.to_string(),
            &bytes.to_string(),
            &server.address(),
        ]
        .join("|");
        let start = || {
            Command::new(std::env::current_exe().unwrap())
                .env(CHILD, &given)
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        };
        server.allow(point);
        let mut child = start();
        server.until_sent(point);
        child.kill().unwrap();
        child.wait().unwrap();
        server.allow(u64::MAX);
        assert!(start().wait().unwrap().success());
        let store = BlobStore::open(&state).unwrap();
        assert!(store.has(&file.digest, bytes));
        twice.push(server.sent_bytes() - bytes);
        std::fs::remove_dir_all(&state).unwrap();
    }
    twice.sort_unstable();
    println!(
        "killed at {} points of {N_PIECES} pieces of {piece} bytes, bytes fetched twice:",
        twice.len()
    );
    println!(
        "    median {}, most {} ({:.2} pieces)",
        twice[twice.len() / 2],
        twice[twice.len() - 1],
        twice[twice.len() - 1] as f64 / piece as f64
    );
}

fn child(given: &str) {
    let [state, table, digest, bytes, address] = given.split('|').collect::<Vec<_>>()[..] else {
        panic!("{given}");
    };
    let table = std::fs::read(table).unwrap();
    let file = FileToFetch {
        name: name(),
        digest: Digest::from_hex(digest).unwrap(),
        pieces: PieceTable::parse(&table, bytes.parse().unwrap(), PIECE_BYTES).unwrap(),
    };
    let store = BlobStore::open(Path::new(state)).unwrap();
    let mut fetcher = Fetcher::new(store, FetchConfig::default(), watch::channel(false).1);
    let mut sources = [Source::at(address, &Terms::default()).unwrap()];
    run(fetcher.bring(&file, &mut sources)).unwrap();
}

fn publish(dir: &Path, from: &Path, bytes: u64) -> FileToFetch {
    let content = std::fs::read(from).unwrap();
    assert_eq!(content.len() as u64, bytes);
    let file = FileToFetch {
        name: name(),
        digest: Digest::of(&content),
        pieces: PieceTable::of(&content, PIECE_BYTES).unwrap(),
    };
    let targets = dir.join("tree/targets");
    std::fs::create_dir_all(&targets).unwrap();
    std::fs::hard_link(from, targets.join(file.name.file_name(&file.digest))).unwrap();
    file
}

fn name() -> TargetName {
    TargetName::new("bench.gguf").unwrap()
}

fn write_noise(path: &Path, bytes: u64) {
    let mut file = File::create(path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut block = vec![0u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        let n = left.min(block.len() as u64);
        file.write_all(&block[..n as usize]).unwrap();
        left -= n;
    }
    file.sync_all().unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// On a runtime like that of the thread `ota`.
fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}
