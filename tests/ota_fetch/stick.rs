//! Sticks and mirrors in a directory.

use std::process::Command;

use orinoco::ota::Reason;
use orinoco::ota::fetch::Phase;
use orinoco::ota::source::Fault;

use super::*;

#[test]
fn a_file_comes_from_a_directory_and_from_the_mirror_what_the_directory_lacks() {
    let site = Site::new();
    site.assert_whole(&site.bring(&mut [at_dir(site.tree.path())]).unwrap());

    let site = Site::new();
    let mirror = site.mirror();
    let empty = tempfile::tempdir().unwrap();
    let mut sources = [at_dir(empty.path()), at(&mirror.address())];
    site.assert_whole(&site.bring(&mut sources).unwrap());
}

#[test]
fn the_stick_is_pulled_and_comes_back_and_the_copy_goes_on_where_it_was() {
    let site = Site::new();
    let away = site.tree.path().with_extension("away");
    let (word, hold) = watch::channel(false);
    let config = FetchConfig {
        // Slow enough that the play below comes in between.
        bytes_per_second_max: Some(100_000),
        patience: Patience {
            faults_max: None,
            ..impatient().patience
        },
        ..impatient()
    };
    let mut fetcher = Fetcher::new(site.store(), config, hold);
    let mut progress = fetcher.progress();
    run(async {
        let mut sources = [at_dir(site.tree.path())];
        let play = async {
            until(&mut progress, |p| p.bytes_done >= u64::from(PIECE)).await;
            word.send_replace(true);
            until(&mut progress, |p| p.phase == Phase::Paused).await;
            std::fs::rename(site.tree.path(), &away).unwrap();
            word.send_replace(false);
            let gone = |p: &Progress| matches!(p.phase, Phase::Waiting { .. });
            let seen = until(&mut progress, gone).await;
            assert!(matches!(
                seen.phase,
                Phase::Waiting {
                    fault: Fault::Absent | Fault::Unreachable,
                    ..
                }
            ));
            assert!(seen.bytes_done >= u64::from(PIECE));
            std::fs::rename(&away, site.tree.path()).unwrap();
        };
        let (blob, ()) = tokio::join!(fetcher.bring(&site.file, &mut sources), play);
        site.assert_whole(&blob.unwrap());
    });
}

/// A file system on a loop device whose file is cut away: the kernel then answers as for a stick that is gone.
struct LoopStick {
    dir: TempDir,
}

impl LoopStick {
    fn with(tree: &Path) -> Option<Self> {
        let stick = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let image = stick.dir.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(8 << 20).unwrap();
        std::fs::create_dir(stick.path()).unwrap();
        let did = |program: &str, args: &[&str]| {
            let ran = Command::new(program).args(args).output();
            ran.is_ok_and(|ran| ran.status.success())
        };
        let (image, path) = (image.to_str()?.to_owned(), stick.path());
        let is_there = did("mkfs.ext2", &["-q", "-d", tree.to_str()?, &image])
            && did("mount", &["-o", "loop,ro", &image, path.to_str()?]);
        is_there.then_some(stick)
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn pull(&self) {
        let image = std::fs::OpenOptions::new()
            .write(true)
            .open(self.dir.path().join("image"));
        image.unwrap().set_len(0).unwrap();
    }
}

impl Drop for LoopStick {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).output();
    }
}

#[test]
fn a_stick_that_is_pulled_while_it_is_read_is_a_source_that_is_gone() {
    // Larger than what the kernel reads ahead.
    const LARGE_PIECE: u32 = 256 << 10;
    let site = Site::with_pieces(noise(4 << 20), LARGE_PIECE);
    let Some(stick) = LoopStick::with(site.tree.path()) else {
        eprintln!("SKIPPED: mounting a loop device needs root and mkfs.ext2");
        return;
    };
    let config = FetchConfig {
        bytes_per_second_max: Some(2 << 20),
        ..impatient()
    };
    let mut fetcher = site.fetcher(config);
    let mut progress = fetcher.progress();
    let error = run(async {
        let mut sources = [at_dir(&stick.path())];
        let play = async {
            until(&mut progress, |p| p.bytes_done >= u64::from(LARGE_PIECE)).await;
            stick.pull();
        };
        let (ended, ()) = tokio::join!(fetcher.bring(&site.file, &mut sources), play);
        ended.unwrap_err()
    });
    assert_eq!(error.reason(), Reason::SourceUnreachable, "{error}");
    let kept = run(async {
        let partial = orinoco::ota::fetch::Partial::open(&site.store(), &site.file).await;
        partial.unwrap().held_bytes()
    });
    assert!(kept >= u64::from(LARGE_PIECE));
    // The same stick in another socket, or the mirror: it goes on.
    let mirror = site.mirror();
    site.assert_whole(
        &site
            .bring(&mut [at_dir(&stick.path()), at(&mirror.address())])
            .unwrap(),
    );
    assert_eq!(mirror.sent_bytes(), site.bytes.len() as u64 - kept);
}

/// The bytes that were verified are the ones that are installed: the copy, not what the stick holds by then.
#[test]
fn a_file_swapped_on_the_stick_after_it_was_verified_changes_nothing() {
    let site = Site::new();
    let mut fetcher = site.fetcher(impatient());
    run(async {
        let collected = fetcher
            .collect(&site.file, &mut [at_dir(site.tree.path())])
            .await;
        std::fs::write(site.target(), noise(FILE_BYTES + 3)).unwrap();
        let blob = fetcher.commit(collected.unwrap()).await.unwrap().unwrap();
        site.assert_whole(&blob);
        assert!(!blob.starts_with(site.tree.path()));
    });
}

#[test]
fn a_file_swapped_on_the_stick_midway_is_refused() {
    let site = Site::new();
    let mut other = site.bytes.clone();
    other[4 * PIECE as usize] ^= 1;
    let (word, hold) = watch::channel(false);
    let config = FetchConfig {
        bytes_per_second_max: Some(100_000),
        ..impatient()
    };
    let mut fetcher = Fetcher::new(site.store(), config, hold);
    let mut progress = fetcher.progress();
    let error = run(async {
        let mut sources = [at_dir(site.tree.path())];
        let play = async {
            until(&mut progress, |p| p.bytes_done >= u64::from(PIECE)).await;
            word.send_replace(true);
            until(&mut progress, |p| p.phase == Phase::Paused).await;
            std::fs::write(site.target(), &other).unwrap();
            word.send_replace(false);
        };
        let (ended, ()) = tokio::join!(fetcher.bring(&site.file, &mut sources), play);
        ended.unwrap_err()
    });
    assert_eq!(error.reason(), Reason::PieceMismatch, "{error}");
    assert_eq!(site.store().list().unwrap(), []);
}

#[test]
fn a_file_of_another_length_on_the_stick_is_refused_before_it_is_read() {
    for len in [FILE_BYTES - 1, FILE_BYTES + 1, 0] {
        let site = Site::new();
        std::fs::write(site.target(), &noise(FILE_BYTES + 1)[..len]).unwrap();
        let error = site.bring(&mut [at_dir(site.tree.path())]).unwrap_err();
        assert_eq!(error.reason(), Reason::PieceMismatch);
        assert!(
            error
                .to_string()
                .contains(&format!("has {len} bytes, expected {FILE_BYTES}")),
            "{error}"
        );
    }
}
