//! How fast a fetch goes, and when it stands aside.

use std::time::Instant;

use orinoco::ota::fetch::Phase;

use super::*;

#[test]
fn a_cap_of_one_megabit_is_kept_and_the_eta_fits() {
    let site = Site::with_bytes(noise(250_000));
    let mirror = site.mirror();
    let config = FetchConfig {
        bytes_per_second_max: Some(125_000),
        ..impatient()
    };
    let mut fetcher = site.fetcher(config);
    let mut progress = fetcher.progress();
    run(async {
        let start = Instant::now();
        let mut sources = [at(&mirror.address())];
        let told = until(&mut progress, |p| p.eta.is_some());
        let (blob, told) = tokio::join!(fetcher.bring(&site.file, &mut sources), told);
        let took = start.elapsed();
        site.assert_whole(&blob.unwrap());
        assert!(
            took >= Duration::from_millis(1700),
            "{took:?} for two seconds"
        );
        let rate = told.bytes_per_second.unwrap();
        assert!((1..=140_000).contains(&rate), "{rate}");
        let missing = told.bytes_total - told.bytes_done;
        let eta = Duration::from_secs(missing.div_ceil(rate));
        assert_eq!(told.eta, Some(eta), "{told:?}");
        assert_eq!((told.phase, told.bytes_total), (Phase::Fetching, 250_000));
    });
}

#[test]
fn while_the_board_is_busy_nothing_is_asked_for_and_afterwards_it_goes_on() {
    let site = Site::new();
    let mirror = site.mirror();
    mirror.allow(u64::from(PIECE) + 100);
    let (busy, hold) = watch::channel(false);
    let mut fetcher = Fetcher::new(site.store(), impatient(), hold);
    let mut progress = fetcher.progress();
    run(async {
        let mut sources = [Source::at(&mirror.address(), &Terms::default()).unwrap()];
        let play = async {
            until(&mut progress, |p| p.bytes_done >= u64::from(PIECE)).await;
            mirror.when_asked(2).await;
            busy.send_replace(true);
            mirror.allow(u64::MAX);
            // The piece under way is finished: it would have to be fetched again.
            let paused = until(&mut progress, |p| p.phase == Phase::Paused).await;
            assert_eq!(paused.bytes_done, 2 * u64::from(PIECE));
            let n_asked = mirror.requests().len();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(mirror.requests().len(), n_asked);
            busy.send_replace(false);
        };
        let (blob, ()) = tokio::join!(fetcher.bring(&site.file, &mut sources), play);
        site.assert_whole(&blob.unwrap());
    });
    assert_eq!(mirror.sent_bytes(), site.bytes.len() as u64);
}

#[test]
fn a_fetch_that_is_called_off_keeps_what_it_has() {
    let site = Site::new();
    let mirror = site.mirror();
    mirror.allow(3 * u64::from(PIECE) + 100);
    let mut fetcher = site.fetcher(impatient());
    let mut progress = fetcher.progress();
    run(async {
        let mut sources = [Source::at(&mirror.address(), &Terms::default()).unwrap()];
        tokio::select! {
            ended = fetcher.bring(&site.file, &mut sources) => panic!("{ended:?}"),
            () = async {
                until(&mut progress, |p| p.bytes_done >= 3 * u64::from(PIECE)).await;
                mirror.when_asked(4).await;
            } => {}
        }
    });
    mirror.allow(u64::MAX);
    let sent_bytes = mirror.sent_bytes();
    site.assert_whole(&site.bring(&mut [at(&mirror.address())]).unwrap());
    let rest = (FILE_BYTES - 3 * PIECE as usize) as u64;
    assert!(mirror.sent_bytes() - sent_bytes <= rest + u64::from(PIECE));
}
