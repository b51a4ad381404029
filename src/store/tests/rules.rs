//! What is accepted, refused, remembered and forgotten.

use super::faulty_disk::FaultyDisk;
use super::*;
use crate::store::journal::{Answer, Journal, Op};

fn journal(config: StoreConfig) -> Journal {
    reopened(&FaultyDisk::new(), config, NOW).0
}

fn reopened(disk: &FaultyDisk, config: StoreConfig, now_ms: u64) -> (Journal, Recovered) {
    Journal::open(Box::new(disk.clone()), config, now_ms).unwrap()
}

fn one(journal: &mut Journal, op: Op) -> Result<Answer, StoreError> {
    journal.apply(&[op]).pop().unwrap()
}

fn swept(journal: &mut Journal, now_ms: u64) -> Swept {
    match one(journal, Op::Sweep(now_ms)) {
        Ok(Answer::Swept(swept)) => swept,
        other => panic!("{other:?}"),
    }
}

fn is_stored(journal: &mut Journal, id: &str) -> bool {
    matches!(
        one(journal, Op::Lookup(job(id))),
        Ok(Answer::Known(Some(_)))
    )
}

fn finish(journal: &mut Journal, id: &str, payload_bytes: usize, at_ms: u64, delivered: bool) {
    let end = Final {
        delivered,
        ..end(id, payload_bytes, at_ms)
    };
    one(journal, Op::Finish(job(id), end)).unwrap();
}

#[test]
fn a_repeated_job_is_told_apart_by_its_digest_also_when_the_store_is_full() {
    let mut journal = journal(StoreConfig {
        pending_jobs_max: 1,
        ..config()
    });
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    let Err(StoreError::Exists { digest, state, .. }) =
        one(&mut journal, Op::Accept(record("a", 99)))
    else {
        panic!("accepted twice");
    };
    assert_eq!((digest, state), (record("a", 10).digest, JobState::Pending));
}

#[test]
fn a_job_over_a_bound_is_refused_and_the_others_of_its_batch_are_not() {
    let mut journal = journal(config());
    let answers = journal.apply(&[
        Op::Accept(record("a", 10_000)),
        Op::Accept(record("b", 40_000)),
        Op::Accept(record("c", 10_000)),
    ]);
    assert!(matches!(answers[0], Ok(Answer::Order(0))));
    assert!(
        matches!(
            answers[1],
            Err(StoreError::Full(Full::PendingBytes { limit: 40_000, .. }))
        ),
        "{answers:?}"
    );
    assert!(matches!(answers[2], Ok(Answer::Order(1))));

    for name in ["d", "e", "f", "g"] {
        one(&mut journal, Op::Accept(record(name, 10))).unwrap();
    }
    let refused = one(&mut journal, Op::Accept(record("h", 10))).unwrap_err();
    assert!(
        matches!(refused, StoreError::Full(Full::PendingJobs { limit: 6 })),
        "{refused}"
    );
    finish(&mut journal, "a", 10, NOW, false);
    one(&mut journal, Op::Accept(record("h", 10))).unwrap();
}

#[test]
fn the_oldest_delivered_finals_make_room_and_undelivered_ones_stop_accepts() {
    let mut journal = journal(config());
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        one(&mut journal, Op::Accept(record(name, 10))).unwrap();
        // "a" is not delivered; the others are, "d" first.
        let at_ms = NOW + 10 - n as u64;
        finish(&mut journal, name, 8000, at_ms, name != "a");
    }
    let kept = ["a", "b", "c", "d"].map(|name| is_stored(&mut journal, name));
    // The one just written stays although it is the oldest.
    assert_eq!(kept, [true, true, false, true]);

    for name in ["e", "f", "g"] {
        one(&mut journal, Op::Accept(record(name, 10))).unwrap();
    }
    for name in ["e", "f", "g"] {
        finish(&mut journal, name, 8000, NOW, false);
    }
    let kept = ["a", "b", "d", "e", "f", "g"].map(|name| is_stored(&mut journal, name));
    assert_eq!(kept, [true, false, false, true, true, true]);
    let refused = one(&mut journal, Op::Accept(record("h", 10))).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::Full(Full::Undelivered { limit: 30_000, .. })
        ),
        "{refused}"
    );
    one(&mut journal, Op::Delivered(job("e"))).unwrap();
    one(&mut journal, Op::Accept(record("h", 10))).unwrap();
}

#[test]
fn a_delivered_final_is_remembered_for_its_retention() {
    let mut journal = journal(config());
    for name in ["a", "b", "c"] {
        one(&mut journal, Op::Accept(record(name, 10))).unwrap();
    }
    finish(&mut journal, "a", 10, NOW, true);
    finish(&mut journal, "b", 10, NOW, false);
    assert_eq!(swept(&mut journal, NOW + 599_999), Swept::default());
    assert_eq!(swept(&mut journal, NOW + 600_000).delivered, 1);
    assert_eq!(swept(&mut journal, NOW + 86_399_999), Swept::default());
    let last = swept(&mut journal, NOW + 86_400_000);
    let expected = Swept {
        delivered: 0,
        undelivered: 1,
        overdue: vec![job("c")],
    };
    assert_eq!(last, expected);
    assert!(
        is_stored(&mut journal, "c"),
        "a pending job ends by its final only"
    );
}

#[test]
fn a_clock_that_jumps_between_runs_deletes_nothing_early() {
    let disk = FaultyDisk::new();
    // A board without a clock, in 1970.
    let (mut first, _) = reopened(&disk, config(), 5000);
    let early = Record {
        accepted_at_ms: 6000,
        ..record("early", 10)
    };
    one(&mut first, Op::Accept(early)).unwrap();
    one(&mut first, Op::Accept(record("a", 10))).unwrap();
    finish(&mut first, "a", 10, 7000, true);
    drop(first);

    let (mut second, _) = reopened(&disk, config(), NOW);
    assert_eq!(swept(&mut second, NOW + 599_999), Swept::default());
    assert_eq!(swept(&mut second, NOW + 600_000).delivered, 1);
    drop(second);

    // And back again.
    let (mut third, recovered) = reopened(&disk, config(), 5000);
    assert_eq!(recovered.pending[0].attempt, 3);
    assert_eq!(swept(&mut third, 5000 + 86_399_999), Swept::default());
    assert_eq!(swept(&mut third, 5000 + 86_400_000).overdue, [job("early")]);
}

#[test]
fn finishing_again_with_the_same_messages_is_no_error() {
    let mut journal = journal(config());
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    finish(&mut journal, "a", 10, NOW, false);
    finish(&mut journal, "a", 10, NOW + 5, false);
    let other = one(&mut journal, Op::Finish(job("a"), end("a", 11, NOW)));
    assert!(
        matches!(other, Err(StoreError::AlreadyFinished(_))),
        "{other:?}"
    );
    let stored = one(&mut journal, Op::FinalOf(job("a"))).unwrap();
    assert_eq!(stored, Answer::Final(Some(end("a", 10, NOW))));
}

#[test]
fn operations_on_jobs_in_another_state_say_so() {
    let mut journal = journal(config());
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    let unknown = || job("nobody");
    for op in [
        Op::Finish(unknown(), end("nobody", 1, NOW)),
        Op::Delivered(unknown()),
        Op::Forget(unknown()),
        Op::BumpAttempt(unknown()),
    ] {
        assert!(matches!(one(&mut journal, op), Err(StoreError::Unknown(_))));
    }
    for op in [Op::Delivered(job("a")), Op::Forget(job("a"))] {
        let early = one(&mut journal, op);
        assert!(
            matches!(early, Err(StoreError::NotFinished(_))),
            "{early:?}"
        );
    }
    assert_eq!(
        one(&mut journal, Op::FinalOf(job("a"))).unwrap(),
        Answer::Final(None)
    );
    assert_eq!(
        one(&mut journal, Op::FinalOf(unknown())).unwrap(),
        Answer::Final(None)
    );
    finish(&mut journal, "a", 1, NOW, true);
    let late = one(&mut journal, Op::BumpAttempt(job("a")));
    assert!(
        matches!(late, Err(StoreError::AlreadyFinished(_))),
        "{late:?}"
    );
}

#[test]
fn recovery_gives_jobs_in_order_of_acceptance_and_bumps_the_attempt() {
    let disk = FaultyDisk::new();
    let (mut first, _) = reopened(&disk, config(), NOW);
    for name in ["z", "m", "a", "k"] {
        one(&mut first, Op::Accept(record(name, 700))).unwrap();
    }
    one(&mut first, Op::BumpAttempt(job("a"))).unwrap();
    finish(&mut first, "m", 10, NOW, false);
    drop(first);

    let (mut second, recovered) = reopened(&disk, config(), NOW + 1);
    let jobs: Vec<_> = recovered
        .pending
        .iter()
        .map(|p| (p.record.clone(), p.order, p.attempt))
        .collect();
    let expected = [("z", 0, 2), ("a", 2, 3), ("k", 3, 2)];
    assert_eq!(
        jobs,
        expected.map(|(name, order, attempt)| (record(name, 700), order, attempt))
    );
    assert_eq!(recovered.finals.len(), 1);
    assert_eq!(recovered.finals[0].digest, record("m", 1).digest);
    assert_eq!(
        one(&mut second, Op::Accept(record("new", 1))).unwrap(),
        Answer::Order(4)
    );
}

#[test]
fn a_batch_that_only_reads_writes_nothing() {
    let disk = FaultyDisk::new();
    let (mut journal, _) = reopened(&disk, config(), NOW);
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    let before = disk.n_changes();
    journal.apply(&[Op::Lookup(job("a")), Op::FinalOf(job("a")), Op::Sweep(NOW)]);
    assert_eq!(disk.n_changes(), before);
}

#[test]
fn debug_output_of_records_and_finals_has_no_text_of_prompts() {
    let mut secret = record("a", 0);
    secret.body = Bytes::from_static(b"my secret prompt");
    let mut answer = end("a", 0, NOW);
    answer.messages[0].payload = Bytes::from_static(b"my secret answer");
    let shown = format!("{secret:?} {answer:?} {:?}", Op::Accept(secret.clone()));
    assert!(
        !shown.contains("secret") && !shown.contains("115, 101"),
        "{shown}"
    );
}

#[test]
fn a_forgotten_job_leaves_its_name_free_for_another_request() {
    let mut journal = journal(config());
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    finish(&mut journal, "a", 10, NOW, false);
    one(&mut journal, Op::Forget(job("a"))).unwrap();
    let known = one(&mut journal, Op::Lookup(job("a"))).unwrap();
    assert_eq!(known, Answer::Known(None));
    one(&mut journal, Op::Accept(record("a", 20))).unwrap();
}
