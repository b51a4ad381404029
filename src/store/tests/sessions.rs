//! Conversations: kept with the final of each turn or not at all, bounded, and forgotten in time.

use super::faulty_disk::{Failure, FaultyDisk};
use super::*;
use crate::store::journal::{Answer, Journal, Op};

const DAY_MS: u64 = 86_400_000;

fn bounded(per_user_max: u64, total_bytes_max: u64) -> StoreConfig {
    StoreConfig {
        pending_jobs_max: 1000,
        final_bytes_max: 1 << 20,
        sessions: SessionBounds {
            per_user_max,
            total_bytes_max,
            idle_max: Duration::from_millis(DAY_MS),
        },
        ..config()
    }
}

fn open(disk: &FaultyDisk, config: StoreConfig, now_ms: u64) -> Journal {
    Journal::open(Box::new(disk.clone()), config, now_ms)
        .unwrap()
        .0
}

fn one(journal: &mut Journal, op: Op) -> Result<Answer, StoreError> {
    journal.apply(&[op]).pop().unwrap()
}

fn session(user: &str, name: &str) -> SessionId {
    SessionId {
        user: user.into(),
        name: name.into(),
    }
}

fn kept(journal: &mut Journal, user: &str, name: &str, now_ms: u64) -> Option<Bytes> {
    match one(journal, Op::Kept(session(user, name), now_ms)) {
        Ok(Answer::Kept(kept)) => kept,
        other => panic!("{other:?}"),
    }
}

/// One turn of a conversation, with a job of its own.
fn turn(journal: &mut Journal, user: &str, name: &str, bytes: usize, at_ms: u64) {
    let id = format!("{name}{at_ms}");
    let job = JobId {
        user: user.into(),
        id: id.clone(),
    };
    let record = Record {
        job: job.clone(),
        ..record(&id, 10)
    };
    one(journal, Op::Accept(record)).unwrap();
    let kept = Kept {
        name: name.into(),
        bytes: vec![b'k'; bytes].into(),
    };
    let end = Final {
        delivered: true,
        ..end(&id, 10, at_ms)
    };
    one(journal, Op::FinishKeeping(job, end, kept)).unwrap();
}

fn names_of(journal: &mut Journal, user: &str, names: &[&str]) -> String {
    let there = |name: &&&str| kept(journal, user, name, NOW + 100).is_some();
    names.iter().filter(there).copied().collect()
}

#[test]
fn what_was_kept_is_found_by_its_user_alone_also_after_a_restart() {
    let disk = FaultyDisk::new();
    let mut journal = open(&disk, bounded(4, 10_000), NOW);
    turn(&mut journal, "anna", "kitchen", 100, NOW);
    turn(&mut journal, "bert", "kitchen", 7, NOW + 1);
    drop(journal);
    let mut journal = open(&disk, bounded(4, 10_000), NOW);
    let len = |kept: Option<Bytes>| kept.map(|bytes| bytes.len());
    assert_eq!(len(kept(&mut journal, "anna", "kitchen", NOW)), Some(100));
    assert_eq!(len(kept(&mut journal, "bert", "kitchen", NOW)), Some(7));
    assert_eq!(kept(&mut journal, "carl", "kitchen", NOW), None);
    let forget = Op::ForgetSession(session("anna", "kitchen"));
    one(&mut journal, forget.clone()).unwrap();
    one(&mut journal, forget).unwrap();
    assert_eq!(kept(&mut journal, "anna", "kitchen", NOW), None);
    assert_eq!(len(kept(&mut journal, "bert", "kitchen", NOW)), Some(7));
}

#[test]
fn one_too_many_takes_the_place_of_the_one_that_rested_longest() {
    let mut journal = open(&FaultyDisk::new(), bounded(3, 100_000), NOW);
    for (n, name) in ["a", "b", "c", "a", "d"].into_iter().enumerate() {
        turn(&mut journal, "anna", name, 10, NOW + n as u64);
    }
    assert_eq!(names_of(&mut journal, "anna", &["a", "b", "c", "d"]), "acd");
}

#[test]
fn who_holds_most_gives_where_all_are_too_much() {
    let mut journal = open(&FaultyDisk::new(), bounded(100, 6000), NOW);
    turn(&mut journal, "bert", "x", 100, NOW);
    for n in 0..20 {
        let name = ["a", "b", "c", "d"][n as usize % 4];
        turn(&mut journal, "anna", name, 1000, NOW + n);
    }
    assert_eq!(names_of(&mut journal, "bert", &["x"]), "x");
    assert_eq!(names_of(&mut journal, "anna", &["a", "b", "c", "d"]), "bcd");
    // What is too much alone is not kept, and costs nobody anything.
    turn(&mut journal, "carl", "y", 7000, NOW + 50);
    assert_eq!(names_of(&mut journal, "carl", &["y"]), "");
    assert_eq!(names_of(&mut journal, "anna", &["b", "c", "d"]), "bcd");
}

#[test]
fn what_rests_too_long_is_forgotten_and_a_restart_is_no_rest() {
    let disk = FaultyDisk::new();
    let mut journal = open(&disk, bounded(4, 10_000), NOW);
    turn(&mut journal, "anna", "old", 10, NOW);
    turn(&mut journal, "anna", "new", 10, NOW + 1000);
    assert!(kept(&mut journal, "anna", "old", NOW + DAY_MS).is_none());
    assert!(kept(&mut journal, "anna", "new", NOW + DAY_MS).is_some());
    one(&mut journal, Op::Sweep(NOW + DAY_MS)).unwrap();
    assert!(kept(&mut journal, "anna", "old", NOW).is_none(), "swept");
    drop(journal);
    // A board whose clock begins at 1970 again.
    let mut journal = open(&disk, bounded(4, 10_000), 5);
    assert!(kept(&mut journal, "anna", "new", 5 + DAY_MS - 1).is_some());
    assert!(kept(&mut journal, "anna", "new", 5 + DAY_MS).is_none());
}

#[test]
fn a_power_cut_leaves_the_final_and_its_turn_or_neither() {
    let life = |disk: &FaultyDisk, journal: &mut Journal| {
        for n in 0..3_u64 {
            let name = format!("j{n}");
            one(journal, Op::Accept(record(&name, 10)))?;
            let kept = Kept {
                name: "k".into(),
                bytes: vec![n as u8; 3000].into(),
            };
            let end = end(&name, 10, NOW + n);
            one(journal, Op::FinishKeeping(job(&name), end, kept))?;
        }
        Ok::<_, StoreError>(disk.n_changes())
    };
    let healthy = FaultyDisk::new();
    let mut journal = open(&healthy, bounded(4, 100_000), NOW);
    let before = healthy.n_changes();
    let n_changes = life(&healthy, &mut journal).unwrap() - before;
    for n in 0..n_changes {
        let disk = FaultyDisk::new();
        let mut journal = open(&disk, bounded(4, 100_000), NOW);
        disk.fail_in(n, Failure::Dead);
        let _ = life(&disk, &mut journal);
        drop(journal);
        disk.power_cut(n * 31);
        let mut journal = open(&disk, bounded(4, 100_000), NOW);
        let is_final = |journal: &mut Journal, n: u64| {
            let state = one(journal, Op::FinalOf(job(&format!("j{n}"))));
            matches!(state, Ok(Answer::Final(Some(_))))
        };
        let n_finals = (0..3).take_while(|n| is_final(&mut journal, *n)).count();
        let turn = kept(&mut journal, "anna", "k", NOW + 10).map(|bytes| bytes[0]);
        assert_eq!(turn, n_finals.checked_sub(1).map(|last| last as u8), "{n}");
    }
}
