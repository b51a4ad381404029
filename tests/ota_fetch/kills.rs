//! The process that fetches is killed, wherever that hurts.

use std::process::{Child, Command, Stdio};

use super::*;

/// Set for the process that is to be killed: the state directory, the repository, the mirror.
const CHILD: &str = "ORINOCO_FETCH_CHILD";

/// Not a test of its own: the killed process.
#[test]
fn child_fetches_until_it_is_killed() {
    let Ok(given) = std::env::var(CHILD) else {
        return;
    };
    let [state, table, digest, bytes, address] = given.split('|').collect::<Vec<_>>()[..] else {
        panic!("{given}");
    };
    let table = std::fs::read(table).unwrap();
    let file = FileToFetch {
        name: TargetName::new(NAME).unwrap(),
        digest: Digest::from_hex(digest).unwrap(),
        pieces: PieceTable::parse(&table, bytes.parse().unwrap(), PIECE).unwrap(),
    };
    let store = BlobStore::open(Path::new(state)).unwrap();
    let mut fetcher = Fetcher::new(store, impatient(), at_once());
    // The mirror is silent at the point where the parent kills: no timeout may come first.
    let terms = Terms::default();
    let mut sources = [Source::at(address, &terms).unwrap()];
    run(async { fetcher.bring(&file, &mut sources).await }).unwrap();
}

fn start(site: &Site, mirror: &Mirror) -> Child {
    let table = site.tree.path().join("table");
    std::fs::write(&table, site.file.pieces.to_bytes()).unwrap();
    let given = [
        site.state.path().to_str().unwrap(),
        table.to_str().unwrap(),
        &site.file.digest.to_string(),
        &site.bytes.len().to_string(),
        &mirror.address(),
    ];
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "kills::child_fetches_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD, given.join("|"))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The last byte of each piece missing, all of it sent, and one byte of the next.
fn points() -> Vec<u64> {
    let piece = u64::from(PIECE);
    let ends = (0..)
        .map(|i| i * piece)
        .take_while(|end| *end < FILE_BYTES as u64);
    let all = FILE_BYTES as u64;
    let points = ends
        .chain([all])
        .flat_map(|end| [end.saturating_sub(1), end, end + 1]);
    let mut points: Vec<u64> = points.filter(|point| *point <= all).collect();
    points.dedup();
    points
}

#[test]
fn killed_at_any_piece_boundary_a_fetch_gets_at_most_one_piece_twice() {
    for point in points() {
        let site = Site::new();
        let mirror = site.mirror();
        mirror.allow(point);
        let mut child = start(&site, &mirror);
        mirror.until_sent(point);
        // Mid-request for the first point, where nothing may be sent.
        mirror.until_asked(1);
        child.kill().unwrap();
        child.wait().unwrap();
        mirror.allow(u64::MAX);
        assert!(start(&site, &mirror).wait().unwrap().success());
        site.assert_whole(&site.store().path(&site.file.digest));
        let twice = mirror.sent_bytes() - site.bytes.len() as u64;
        assert!(
            twice <= u64::from(PIECE),
            "killed at {point}: {twice} bytes twice"
        );
    }
}

#[test]
fn one_fetch_killed_at_every_boundary_in_turn_ends_whole() {
    let site = Site::new();
    let mirror = site.mirror();
    let mut n_kills = 0;
    for point in points() {
        // What an earlier kill has cost is sent again before this point is reached.
        let point = point + mirror.sent_bytes().saturating_sub(point);
        mirror.allow(point);
        let n_asked = mirror.requests().len();
        let mut child = start(&site, &mirror);
        mirror.until_asked(n_asked + 1);
        mirror.until_sent(point);
        child.kill().unwrap();
        child.wait().unwrap();
        n_kills += 1;
        let twice_max = n_kills * u64::from(PIECE);
        mirror.allow(u64::MAX);
        assert!(mirror.sent_bytes() <= site.bytes.len() as u64 + twice_max);
        if site.store().has(&site.file.digest, site.bytes.len() as u64) {
            break;
        }
    }
    assert!(start(&site, &mirror).wait().unwrap().success());
    site.assert_whole(&site.store().path(&site.file.digest));
}

/// The moments between two system calls are hit by chance; the promise is the same.
#[test]
fn a_fetch_killed_at_random_moments_ends_whole() {
    let site = Site::new();
    let mirror = site.mirror();
    let n_kills = 25;
    for n in 0..n_kills {
        let mut child = start(&site, &mirror);
        let n_asked = mirror.requests().len();
        // From before the first request until long after the commit, denser where a fetch is.
        let end = std::time::Instant::now() + Duration::from_micros(1500 * n + 200);
        while std::time::Instant::now() < end && mirror.requests().len() < n_asked + 6 {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let blob = site.store().path(&site.file.digest);
        if blob.exists() {
            assert!(
                std::fs::read(&blob).unwrap() == site.bytes,
                "a blob that is not whole"
            );
            std::fs::remove_file(&blob).unwrap();
        }
    }
    assert!(start(&site, &mirror).wait().unwrap().success());
    site.assert_whole(&site.store().path(&site.file.digest));
}
