//! Sources that answer wrong, late, or not at all.

use orinoco::ota::Reason;
use orinoco::ota::source::Fault;

use super::*;
use mirror::Way;

/// A mirror behaves so once, and honestly afterwards: the file comes all the same, each piece but the failed one
/// once.
#[test]
fn a_mirror_that_fails_once_in_any_way_costs_one_piece() {
    let half = u64::from(PIECE) / 2;
    for way in [
        Way::RangeShifted(u64::from(PIECE)),
        Way::RangeShifted(1),
        Way::LongerFile(1),
        Way::RangeUntold,
        Way::Unsatisfiable,
        Way::Gzip,
        Way::LengthTooLong(100),
        Way::LengthTooShort(100),
        Way::Redirect("/targets/other".into()),
        Way::Status(503),
        Way::Status(404),
        Way::ResetAfter(half),
        Way::ResetAfter(0),
        Way::EndAfter(half),
        Way::StallAfter(u64::from(PIECE) * 99 / 100),
        Way::Drip(Duration::from_millis(1)),
        Way::Flip(u64::from(PIECE) + 77),
        Way::Hangup,
    ] {
        let site = Site::new();
        let mirror = site.mirror();
        mirror.behave_once(Way::Honest);
        mirror.behave_once(way.clone());
        let blob = site.bring(&mut [at_for(&way, &mirror.address())]);
        site.assert_whole(&blob.unwrap_or_else(|error| panic!("{way:?}: {error}")));
        let twice = mirror.sent_bytes() - site.bytes.len() as u64;
        assert!(twice <= u64::from(PIECE), "{way:?}: {twice} bytes in vain");
        assert_eq!(
            mirror.requests().len(),
            7,
            "{way:?}: one request for each piece, one failed"
        );
    }
}

/// Always so: it is given up after three tries, with what is wrong in words and the reason in one word.
#[test]
fn a_mirror_that_never_delivers_is_given_up_with_the_reason() {
    for (way, reason, words) in [
        (
            Way::RangeShifted(1),
            Reason::PieceMismatch,
            "Content-Range bytes 1-16384/82920, expected bytes 0-16383/82920",
        ),
        (
            Way::RangeUntold,
            Reason::PieceMismatch,
            "Content-Range is missing",
        ),
        (
            Way::LongerFile(7),
            Reason::PieceMismatch,
            "82927, expected bytes 0-16383/82920",
        ),
        (Way::Unsatisfiable, Reason::PieceMismatch, "416"),
        (Way::Gzip, Reason::PieceMismatch, "Content-Encoding"),
        (
            Way::LengthTooShort(1),
            Reason::PieceMismatch,
            "announces 16383 bytes, expected 16384",
        ),
        (
            Way::Flip(5),
            Reason::PieceMismatch,
            "piece 0 of 6 has SHA-256",
        ),
        (
            Way::Redirect("http://127.0.0.1:1/".into()),
            Reason::SourceUnreachable,
            "redirects are not followed",
        ),
        (Way::Status(404), Reason::SourceUnreachable, "404"),
        (Way::Status(401), Reason::SourceUnreachable, "401"),
        (Way::Status(500), Reason::SourceUnreachable, "500"),
        (Way::Hangup, Reason::SourceUnreachable, ""),
        (Way::ResetAfter(10), Reason::SourceUnreachable, ""),
        (
            Way::EndAfter(10),
            Reason::SourceUnreachable,
            "16374 bytes before the end",
        ),
        (
            Way::StallAfter(10),
            Reason::Stalled,
            "fewer than 8192 bytes in",
        ),
    ] {
        let site = Site::new();
        let mirror = site.mirror();
        mirror.behave(way.clone());
        let error = site
            .bring(&mut [at_for(&way, &mirror.address())])
            .unwrap_err();
        assert_eq!(error.reason(), reason, "{way:?}: {error}");
        assert!(error.to_string().contains(words), "{way:?}: {error}");
        assert_eq!(mirror.requests().len(), 3, "{way:?}");
        assert_eq!(site.store().list().unwrap(), []);
    }
}

#[test]
fn nobody_listening_is_a_source_that_cannot_be_reached() {
    let site = Site::new();
    let port = support::daemon::free_port();
    let error = site
        .bring(&mut [at(&format!("http://127.0.0.1:{port}"))])
        .unwrap_err();
    assert_eq!(error.reason(), Reason::SourceUnreachable);
    assert!(error.to_string().contains("refused"), "{error}");
}

#[test]
fn a_server_without_ranges_sends_the_file_once() {
    let site = Site::new();
    let mirror = site.mirror();
    mirror.behave(Way::NoRange);
    let blob = site.bring(&mut [at(&mirror.address())]).unwrap();
    site.assert_whole(&blob);
    assert_eq!(mirror.requests().len(), 1);
    assert_eq!(mirror.sent_bytes(), site.bytes.len() as u64);
}

#[test]
fn what_is_there_already_is_passed_over_in_the_answer_of_a_server_without_ranges() {
    let site = Site::new();
    let mirror = site.mirror();
    mirror.behave_once(Way::Honest);
    mirror.behave_once(Way::Honest);
    mirror.behave(Way::Status(503));
    site.bring(&mut [at(&mirror.address())]).unwrap_err();
    mirror.behave(Way::NoRange);
    let n_before = mirror.requests().len();
    site.assert_whole(&site.bring(&mut [at(&mirror.address())]).unwrap());
    assert_eq!(mirror.requests().len(), n_before + 1);
}

/// The mirror is being copied to while we read: its file is another one in the middle.
#[test]
fn a_file_that_changes_midway_is_noticed_at_the_next_piece_and_taken_when_it_is_right_again() {
    let site = Site::new();
    let mirror = site.mirror();
    mirror.allow(2 * u64::from(PIECE));
    let mut sources = [at(&mirror.address())];
    let (go_on, hold) = watch::channel(false);
    let config = FetchConfig {
        patience: Patience {
            ban: Duration::from_millis(300),
            ..impatient().patience
        },
        ..impatient()
    };
    let mut fetcher = Fetcher::new(site.store(), config, hold);
    let mut progress = fetcher.progress();
    run(async {
        let play = async {
            let done = |p: &Progress| p.bytes_done >= 2 * u64::from(PIECE);
            until(&mut progress, done).await;
            std::fs::write(site.target(), noise(FILE_BYTES + 1)).unwrap();
            mirror.allow(u64::MAX);
            let seen = until(&mut progress, |p| p.trouble.is_some()).await;
            assert!(seen.trouble.unwrap().contains("bytes"));
            std::fs::write(site.target(), &site.bytes).unwrap();
            drop(go_on);
        };
        let (blob, ()) = tokio::join!(fetcher.bring(&site.file, &mut sources), play);
        site.assert_whole(&blob.unwrap());
    });
}

#[test]
fn a_corrupted_piece_comes_from_the_next_source_and_the_first_is_asked_no_more() {
    let site = Site::new();
    let (bad, good) = (site.mirror(), site.mirror());
    bad.behave_once(Way::Honest);
    bad.behave(Way::Flip(u64::from(PIECE) + 3));
    let patience = Patience {
        ban: Duration::from_secs(3600),
        ..impatient().patience
    };
    let config = FetchConfig {
        patience,
        ..impatient()
    };
    let mut sources = [at(&bad.address()), at(&good.address())];
    site.assert_whole(&site.bring_with(config, &mut sources).unwrap());
    assert_eq!(bad.requests().len(), 2);
    let from_good: Vec<_> = good
        .requests()
        .iter()
        .map(|r| r.range.clone().unwrap())
        .collect();
    assert_eq!(from_good[0], "16384-32767");
    assert_eq!(from_good.len(), 5);
}

#[test]
fn a_ban_outlives_the_process() {
    let site = Site::new();
    let bad = site.mirror();
    bad.behave(Way::Flip(3));
    let patience = Patience {
        ban: Duration::from_secs(3600),
        ..impatient().patience
    };
    let config = FetchConfig {
        patience,
        ..impatient()
    };
    let mut fetcher = site.fetcher(config.clone());
    let mut progress = fetcher.progress();
    let waits = |p: &Progress| {
        matches!(
            p.phase,
            orinoco::ota::fetch::Phase::Waiting {
                fault: Fault::Lied,
                ..
            }
        )
    };
    run(async {
        let mut sources = [at(&bad.address())];
        tokio::select! {
            ended = fetcher.bring(&site.file, &mut sources) => panic!("{ended:?}"),
            _ = until(&mut progress, waits) => {}
        }
    });
    drop(fetcher);
    let mut fetcher = site.fetcher(config);
    let mut progress = fetcher.progress();
    run(async {
        let mut sources = [at(&bad.address())];
        tokio::select! {
            ended = fetcher.bring(&site.file, &mut sources) => panic!("{ended:?}"),
            waiting = until(&mut progress, waits) => {
                let orinoco::ota::fetch::Phase::Waiting { retry, .. } = waiting.phase else { unreachable!() };
                assert!(retry > Duration::from_secs(1000), "{retry:?}");
            }
        }
    });
    assert_eq!(bad.requests().len(), 1);
}

#[test]
fn no_request_asks_for_compression_and_each_is_for_one_piece() {
    let site = Site::new();
    let mirror = site.mirror();
    site.bring(&mut [at(&mirror.address())]).unwrap();
    let requests = mirror.requests();
    assert_eq!(requests.len(), 6);
    for (i, request) in requests.iter().enumerate() {
        assert_eq!(request.accept_encoding.as_deref(), Some("identity"));
        let range = site.file.pieces.range(i as u32).unwrap();
        let expected = format!("{}-{}", range.start, range.end - 1);
        assert_eq!(request.range.as_deref(), Some(&*expected));
    }
}

#[test]
fn metadata_is_whole_or_absent_or_an_error_and_never_longer_than_its_limit() {
    let site = Site::new();
    std::fs::write(
        site.tree.path().join("metadata/timestamp.json"),
        vec![b' '; 5000],
    )
    .unwrap();
    let mirror = site.mirror();
    let mut source = at(&mirror.address());
    let file = "metadata/timestamp.json";
    let got = source.get(file, 5000).unwrap();
    assert_eq!(got.unwrap().len(), 5000);
    assert_eq!(source.get("metadata/2.root.json", 100).unwrap(), None);
    assert_eq!(source.get(file, 4999).unwrap_err().fault, Fault::Lied);
    for (way, fault) in [
        (Way::Endless, Fault::Lied),
        (Way::Gzip, Fault::Absent),
        (Way::Status(500), Fault::Unreachable),
        (Way::Status(403), Fault::Absent),
        (Way::Redirect("/".into()), Fault::Absent),
        (Way::EndAfter(0), Fault::Unreachable),
        (Way::LengthTooLong(10), Fault::Unreachable),
        (Way::StallAfter(100), Fault::Stalled),
        (Way::Drip(Duration::from_millis(2)), Fault::Stalled),
        (Way::Hangup, Fault::Unreachable),
    ] {
        mirror.behave(way.clone());
        let mut source = at_for(&way, &mirror.address());
        match source.get(file, 6000) {
            // Without a length, an end is an end; what is signed says whether it is whole.
            Ok(Some(bytes)) => assert!(way == Way::EndAfter(0) && bytes.is_empty(), "{way:?}"),
            Ok(None) => panic!("{way:?}: certainly not there?"),
            Err(error) => assert_eq!(error.fault, fault, "{way:?}: {error}"),
        }
    }
}

/// The thread that asks for metadata may well be one of a runtime's.
#[test]
fn metadata_can_be_asked_for_within_a_runtime() {
    let site = Site::new();
    std::fs::write(site.tree.path().join("metadata/timestamp.json"), "{}").unwrap();
    let mirror = site.mirror();
    run(async {
        let mut source = at(&mirror.address());
        for _ in 0..3 {
            let got = source.get("metadata/timestamp.json", 100).unwrap();
            assert_eq!(got.as_deref(), Some(&b"{}"[..]));
        }
    });
}
