//! One fault at every write and every sync of a short life, and disks that are full or damaged.

use nix::errno::Errno;

use super::faulty_disk::{Failure, FaultyDisk};
use super::model::Checked;
use super::*;
use crate::store::journal::{Answer, Journal, Op};

fn open(disk: &FaultyDisk) -> (Journal, Recovered) {
    Journal::open(Box::new(disk.clone()), config(), NOW).unwrap()
}

/// The answer to a single operation.
fn one(journal: &mut Journal, op: Op) -> Result<Answer, StoreError> {
    journal.apply(&[op]).pop().unwrap()
}

fn names(recovered: &Recovered) -> Vec<&str> {
    let pending = recovered.pending.iter();
    pending
        .map(|pending| pending.record.job.id.as_str())
        .collect()
}

/// A short life, in batches.
fn script() -> Vec<Vec<Op>> {
    vec![
        vec![Op::Accept(record("a", 100)), Op::Accept(record("b", 9000))],
        vec![Op::Accept(record("c", 0))],
        vec![
            Op::Finish(job("a"), end("a", 300, NOW)),
            Op::Accept(record("d", 20)),
        ],
        vec![Op::Delivered(job("a")), Op::BumpAttempt(job("b"))],
        vec![
            Op::Finish(job("b"), end("b", 5000, NOW)),
            Op::FinalOf(job("a")),
        ],
        vec![Op::Sweep(NOW + 700_000)],
        vec![Op::Accept(record("a", 50))],
    ]
}

fn run_script_with(n: u64, failure: Failure, cut: Option<u64>) {
    let mut store = Checked::new();
    store.disk.fail_in(n, failure);
    for ops in script() {
        store.apply(&ops);
        store.check();
    }
    store.reopen(cut);
    // The clean close may have met the fault; then a power cut is the only way on.
    if store.journal.is_none() {
        store.reopen(Some(n));
    }
    store.check();
}

fn n_changes_of_script() -> u64 {
    let mut store = Checked::new();
    let before = store.disk.n_changes();
    for ops in script() {
        store.apply(&ops);
    }
    store.reopen(None);
    store.disk.n_changes() - before
}

#[test]
fn one_error_at_any_change_leaves_the_state_before_or_after() {
    for n in 0..n_changes_of_script() {
        for kind in [Errno::ENOSPC, Errno::EIO] {
            run_script_with(n, Failure::Once(kind), None);
        }
    }
}

#[test]
fn a_power_cut_at_any_change_leaves_the_state_before_or_after() {
    for n in 0..n_changes_of_script() {
        for seed in 0..3 {
            run_script_with(n, Failure::Dead, Some(n * 31 + seed));
        }
    }
}

#[test]
fn a_power_cut_while_the_file_is_created_leaves_a_file_that_opens() {
    let healthy = FaultyDisk::new();
    drop(open(&healthy));
    for n in 0..healthy.n_changes() {
        for seed in 0..4 {
            let disk = FaultyDisk::new();
            disk.fail_in(n, Failure::Dead);
            drop(Journal::open(Box::new(disk.clone()), config(), NOW));
            disk.power_cut(n * 31 + seed);
            let (mut journal, recovered) = open(&disk);
            assert!(recovered.pending.is_empty());
            assert!(one(&mut journal, Op::Accept(record("a", 10))).is_ok());
        }
    }
}

#[test]
fn an_accept_answered_with_an_error_is_taken_back() {
    for n in 0..20 {
        let disk = FaultyDisk::new();
        let (mut journal, _) = open(&disk);
        one(&mut journal, Op::Accept(record("kept", 10))).unwrap();
        disk.fail_in(n, Failure::Once(Errno::ENOSPC));
        let answer = one(&mut journal, Op::Accept(record("lost", 10)));
        drop(journal);
        disk.power_cut(n);
        let (_, recovered) = open(&disk);
        match answer {
            Ok(_) => assert_eq!(names(&recovered), ["kept", "lost"]),
            Err(_) => assert_eq!(names(&recovered), ["kept"]),
        }
    }
}

#[test]
fn a_finish_in_the_batch_of_a_failed_accept_is_kept() {
    let disk = FaultyDisk::new();
    let (mut journal, _) = open(&disk);
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    disk.fail_in(0, Failure::Once(Errno::ENOSPC));
    let answers = journal.apply(&[
        Op::Accept(record("b", 10)),
        Op::Finish(job("a"), end("a", 10, NOW)),
    ]);
    assert!(
        matches!(answers[0], Err(StoreError::Full(Full::Disk))),
        "{answers:?}"
    );
    assert!(matches!(answers[1], Ok(Answer::Done)), "{answers:?}");
}

/// Bounds far away, so that the disk is what ends first.
fn wide() -> StoreConfig {
    StoreConfig {
        pending_jobs_max: 10_000,
        pending_bytes_max: 64 << 20,
        final_bytes_max: 64 << 20,
        reserve_bytes: 0,
        ..config()
    }
}

/// Accepts until refused; returns the names of the accepted jobs, and why it ended.
fn fill(journal: &mut Journal, body_bytes: usize) -> (Vec<String>, StoreError) {
    let mut accepted = Vec::new();
    loop {
        let name = format!("job-{}", accepted.len());
        match one(journal, Op::Accept(record(&name, body_bytes))) {
            Ok(_) => accepted.push(name),
            Err(e) => return (accepted, e),
        }
    }
}

#[test]
fn a_full_disk_keeps_every_accepted_job_and_accepts_again_when_there_is_room() {
    let disk = FaultyDisk::new();
    let (mut journal, _) = Journal::open(Box::new(disk.clone()), wide(), NOW).unwrap();
    disk.leave(Some(2 << 20));
    let (mut accepted, refused) = fill(&mut journal, 20_000);
    assert!(matches!(refused, StoreError::Full(Full::Disk)), "{refused}");
    assert!(accepted.len() > 20);

    disk.leave(None);
    one(&mut journal, Op::Accept(record("later", 20_000))).unwrap();
    accepted.push("later".into());
    drop(journal);
    let (_, recovered) = open(&disk);
    assert_eq!(names(&recovered), accepted);
}

#[test]
fn finals_of_all_accepted_jobs_find_room_on_a_disk_that_refuses_jobs() {
    let disk = FaultyDisk::new();
    let reserve = StoreConfig {
        reserve_bytes: 1 << 20,
        ..wide()
    };
    let (mut journal, _) = Journal::open(Box::new(disk.clone()), reserve, NOW).unwrap();
    disk.leave(Some(3 << 20));
    let (accepted, refused) = fill(&mut journal, 10_000);
    assert!(
        matches!(refused, StoreError::Full(Full::Reserve { .. })),
        "{refused}"
    );
    for name in &accepted {
        one(&mut journal, Op::Finish(job(name), end(name, 10_000, NOW))).unwrap();
    }
}

#[test]
fn finals_of_all_accepted_jobs_find_room_in_a_file_at_its_limit() {
    let disk = FaultyDisk::new();
    disk.set_bytes_max(4 << 20);
    let (mut journal, _) = Journal::open(Box::new(disk.clone()), wide(), NOW).unwrap();
    let (accepted, refused) = fill(&mut journal, 10_000);
    assert!(
        matches!(refused, StoreError::Full(Full::File { .. })),
        "{refused}"
    );
    for name in &accepted {
        one(&mut journal, Op::Finish(job(name), end(name, 40_000, NOW))).unwrap();
    }
}

#[test]
fn after_a_full_disk_accepts_are_refused_without_touching_it_for_a_while() {
    let disk = FaultyDisk::new();
    let patient = StoreConfig {
        full_retry: Duration::from_secs(3600),
        ..config()
    };
    let (mut journal, _) = Journal::open(Box::new(disk.clone()), patient, NOW).unwrap();
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    disk.fail_in(0, Failure::Once(Errno::ENOSPC));
    one(&mut journal, Op::Accept(record("b", 10))).unwrap_err();

    let before = disk.n_changes();
    let refused = one(&mut journal, Op::Accept(record("b", 10))).unwrap_err();
    assert!(matches!(refused, StoreError::Full(Full::Disk)), "{refused}");
    assert_eq!(disk.n_changes(), before);
    // What is already promised is still written.
    one(&mut journal, Op::Finish(job("a"), end("a", 10, NOW))).unwrap();
}

#[test]
fn little_free_space_refuses_accepts_but_not_finals() {
    let disk = FaultyDisk::new();
    let reserve = StoreConfig {
        reserve_bytes: 1 << 20,
        ..config()
    };
    let (mut journal, _) = Journal::open(Box::new(disk.clone()), reserve, NOW).unwrap();
    one(&mut journal, Op::Accept(record("a", 10))).unwrap();
    disk.set_free((1 << 20) - 1);
    let refused = one(&mut journal, Op::Accept(record("b", 10))).unwrap_err();
    let expected = Full::Reserve {
        free: (1 << 20) - 1,
        reserve: 1 << 20,
    };
    assert!(
        matches!(refused, StoreError::Full(full) if full == expected),
        "{refused}"
    );
    one(&mut journal, Op::Finish(job("a"), end("a", 10, NOW))).unwrap();
    disk.set_free(1 << 20);
    one(&mut journal, Op::Accept(record("b", 10))).unwrap();
}

#[test]
fn an_unreadable_sector_sets_the_file_aside_and_a_failed_write_does_not() {
    let mut n_set_aside = 0;
    for at in (0..populated().len()).step_by(4096) {
        let disk = FaultyDisk::with(populated());
        disk.break_sector(at);
        let (mut journal, recovered) = open(&disk);
        n_set_aside += u32::from(recovered.set_aside.is_some());
        one(&mut journal, Op::Accept(record("new", 10))).unwrap();
    }
    assert!(n_set_aside > 0);

    let disk = FaultyDisk::with(populated());
    let (_, before) = open(&FaultyDisk::with(populated()));
    disk.fail_in(0, Failure::Once(Errno::EIO));
    assert!(matches!(
        Journal::open(Box::new(disk.clone()), config(), NOW),
        Err(StoreError::Disk { .. })
    ));
    let (_, recovered) = open(&disk);
    assert_eq!(
        (names(&recovered), recovered.set_aside.as_ref()),
        (names(&before), None)
    );
}

/// A closed database with three jobs.
fn populated() -> Vec<u8> {
    let disk = FaultyDisk::new();
    let (mut journal, _) = open(&disk);
    for ops in script() {
        journal.apply(&ops);
    }
    drop(journal);
    disk.bytes()
}

#[test]
fn a_damaged_byte_anywhere_never_stops_the_start() {
    let healthy = populated();
    let (_, before) = open(&FaultyDisk::with(healthy.clone()));
    // Every byte of the headers, then every 97th: each page is hit in several places.
    let places = (0..512).chain((512..healthy.len()).step_by(97));
    let (mut n_set_aside, mut n_intact) = (0, 0);
    for at in places {
        let mut bytes = healthy.clone();
        bytes[at] ^= 0x55;
        let disk = FaultyDisk::with(bytes);
        match Journal::open(Box::new(disk.clone()), config(), NOW) {
            Ok((mut journal, recovered)) => {
                if recovered.set_aside.is_some() {
                    assert!(recovered.pending.is_empty() && recovered.finals.is_empty());
                    assert_eq!(disk.n_set_aside(), 1);
                    n_set_aside += 1;
                } else if names(&recovered) == names(&before) {
                    n_intact += 1;
                }
                one(&mut journal, Op::Accept(record("new", 10))).unwrap();
            }
            Err(e) => panic!("byte {at}: {e}"),
        }
    }
    assert!(
        n_set_aside > 10 && n_intact > 100,
        "{n_set_aside} aside, {n_intact} intact"
    );
}

#[test]
fn a_lost_page_anywhere_never_stops_the_start() {
    let healthy = populated();
    let mut n_set_aside = 0;
    for at in (0..healthy.len()).step_by(4096) {
        // Never written, written elsewhere, and erased flash.
        for fill in [vec![0; 4096], healthy[..4096].to_vec(), vec![0xff; 4096]] {
            let mut bytes = healthy.clone();
            let page = at..healthy.len().min(at + 4096);
            bytes[page.clone()].copy_from_slice(&fill[..page.len()]);
            let (mut journal, recovered) = open(&FaultyDisk::with(bytes));
            n_set_aside += u32::from(recovered.set_aside.is_some());
            one(&mut journal, Op::Accept(record("new", 10))).unwrap();
        }
    }
    assert!(n_set_aside > 0);
}

#[test]
fn rubbish_and_cut_files_are_set_aside() {
    let healthy = populated();
    let mut cases = vec![
        b"not a database".to_vec(),
        vec![0xff; 10_000],
        vec![0; 10_000],
    ];
    cases.extend([1, 64, 319, 4096, 8191, healthy.len() / 2].map(|len| healthy[..len].to_vec()));
    for bytes in cases {
        let disk = FaultyDisk::with(bytes.clone());
        let (mut journal, recovered) = open(&disk);
        assert!(recovered.set_aside.is_some(), "{} bytes", bytes.len());
        one(&mut journal, Op::Accept(record("new", 10))).unwrap();
        assert_eq!(disk.n_set_aside(), 1);
    }
}

#[test]
fn a_newer_redb_file_is_refused_and_left_alone() {
    let mut bytes = populated();
    bytes[64] = 4;
    bytes[192] = 4;
    let disk = FaultyDisk::with(bytes.clone());
    let Err(refused) = Journal::open(Box::new(disk.clone()), config(), NOW) else {
        panic!("opened");
    };
    assert!(
        matches!(
            refused,
            StoreError::NewerFormat {
                found: 4,
                known: 3,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(disk.bytes(), bytes);
}
