//! What happens to files after they were fetched.

use std::os::unix::fs::FileExt;

use orinoco::ota::blobs::{Blob, Finding, Keep};

use super::*;

fn blob_of(site: &Site) -> Blob {
    Blob {
        digest: site.file.digest,
        bytes: FILE_BYTES as u64,
    }
}

/// As a disk does it, behind everybody's back.
fn flip(path: &Path, at: u64) {
    let mut byte = [0];
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn a_bit_that_rots_in_a_staged_file_is_found_and_repaired_by_its_piece_alone() {
    let site = Site::new();
    let mirror = site.mirror();
    let blob = site.bring(&mut [at(&mirror.address())]).unwrap();
    let store = site.store();
    let sound = run(async { store.scrub(blob_of(&site), None).await.unwrap() });
    assert_eq!(sound.finding, Finding::Sound);
    let serving = std::fs::File::open(&blob).unwrap();

    flip(&blob, 2 * u64::from(PIECE) + 9);
    let rotten = run(async { store.scrub(blob_of(&site), None).await.unwrap() });
    assert!(matches!(rotten.finding, Finding::Rotten { .. }));
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.quarantined().unwrap(), [blob_of(&site)]);

    let sent_bytes = mirror.sent_bytes();
    site.assert_whole(&site.bring(&mut [at(&mirror.address())]).unwrap());
    assert_eq!(mirror.sent_bytes() - sent_bytes, u64::from(PIECE));
    assert_eq!(store.quarantined().unwrap(), []);
    // Whoever had it open sees the repair.
    let mut seen = vec![0; FILE_BYTES];
    serving.read_exact_at(&mut seen, 0).unwrap();
    assert!(seen == site.bytes);
}

#[test]
fn a_file_that_grew_or_shrank_is_as_rotten_as_one_with_a_flipped_bit() {
    for len in [FILE_BYTES as u64 - 1, FILE_BYTES as u64 + 1] {
        let site = Site::new();
        let mirror = site.mirror();
        let blob = site.bring(&mut [at(&mirror.address())]).unwrap();
        std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o644)).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&blob).unwrap();
        file.set_len(len).unwrap();
        let store = site.store();
        assert!(!store.has(&site.file.digest, FILE_BYTES as u64));
        let found = run(async { store.scrub(blob_of(&site), None).await.unwrap() });
        assert!(matches!(found.finding, Finding::Rotten { .. }), "{len}");
        site.assert_whole(&site.bring(&mut [at(&mirror.address())]).unwrap());
    }
}

#[test]
fn a_scrub_is_as_slow_as_it_is_told() {
    let site = Site::new();
    site.bring(&mut [at_dir(site.tree.path())]).unwrap();
    let start = std::time::Instant::now();
    run(async {
        site.store()
            .scrub(blob_of(&site), Some(200_000))
            .await
            .unwrap()
    });
    let expected = Duration::from_millis(FILE_BYTES as u64 / 200);
    let took = start.elapsed();
    assert!(
        took >= expected - Duration::from_millis(150),
        "{took:?} of {expected:?}"
    );
}

#[test]
fn garbage_collection_leaves_the_partial_file_of_the_deployment_and_what_serves() {
    let site = Site::new();
    let other = Site::with_bytes(noise(1000));
    site.bring(&mut [at_dir(site.tree.path())]).unwrap();
    let store = site.store();
    // A fetch of another file into the same store has only begun.
    let mut fetcher = Fetcher::new(store.clone(), impatient(), at_once());
    let collected = run(async {
        fetcher
            .collect(&other.file, &mut [at_dir(other.tree.path())])
            .await
    });
    drop(collected.unwrap());
    let mut keep = Keep::default();
    keep.blobs.insert(site.file.digest);
    keep.deployment.insert(other.file.digest);
    let swept = store.sweep(&keep).unwrap();
    assert_eq!(swept.bytes, 0);
    assert_eq!(store.list().unwrap(), [blob_of(&site)]);
    let used = store.usage().unwrap();
    assert!(
        used.blob_bytes >= FILE_BYTES as u64 && used.partial_bytes >= 1000,
        "{used:?}"
    );

    let swept = store.sweep(&Keep::default()).unwrap();
    assert_eq!(swept.blobs, [site.file.digest]);
    assert!(swept.bytes >= FILE_BYTES as u64);
    assert_eq!(store.usage().unwrap().blob_bytes, 0);
    assert_eq!(names_in(&site.state.path().join("partial")), [""; 0]);
}
