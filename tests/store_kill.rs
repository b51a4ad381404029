//! A daemon that is killed while it accepts: what it acknowledged is on the disk, once.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use orinoco::store::{Final, FinalMessage, JobId, Record, StoreConfig, open};

/// Set for the process that is to be killed.
const CHILD_DIR: &str = "ORINOCO_STORE_CHILD_DIR";
const CHILD_ROUND: &str = "ORINOCO_STORE_CHILD_ROUND";
const N_ROUNDS: u64 = 10;
const N_CALLERS: u64 = 8;

fn config(dir: &str) -> StoreConfig {
    StoreConfig {
        reserve_bytes: 0,
        pending_jobs_max: 1_000_000,
        pending_bytes_max: 1 << 30,
        ..StoreConfig::new(dir)
    }
}

fn job(name: &str) -> JobId {
    JobId {
        user: "anna".into(),
        id: name.into(),
    }
}

fn record(name: &str) -> Record {
    Record {
        job: job(name),
        op: "chat".into(),
        digest: [7; 32],
        body: name.repeat(60).into(),
        response_topic: None,
        correlation: None,
        accept: None,
        beside: None,
        model: None,
        accepted_at_ms: 1_800_000_000_000,
    }
}

fn end(name: &str) -> Final {
    Final {
        messages: vec![FinalMessage {
            topic: format!("orinoco/v1/resp/anna/{name}"),
            payload: name.repeat(30).into(),
            content_type: None,
            correlation: None,
            user: Vec::new(),
        }],
        replay: name.to_owned().into(),
        finished_at_ms: 1_800_000_000_000,
        delivered: false,
    }
}

/// Not a test of its own: the killed process. Accepts without end, finishes every third job, and writes
/// a line after each acknowledgement.
#[test]
fn child_accepts_until_it_is_killed() {
    let (Ok(dir), Ok(round)) = (std::env::var(CHILD_DIR), std::env::var(CHILD_ROUND)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let (store, _) = open(config(&dir), 0).unwrap();
    let callers = tokio::task::LocalSet::new();
    for caller in 0..N_CALLERS {
        let (store, round) = (store.clone(), round.clone());
        callers.spawn_local(async move {
            for n in 0u64.. {
                let name = format!("{round}-{caller}-{n}");
                store.accept(record(&name)).await.unwrap();
                acknowledge("accepted", &name);
                if n % 3 == 0 {
                    store.finish(job(&name), end(&name)).await.unwrap();
                    acknowledge("finished", &name);
                }
            }
        });
    }
    runtime.block_on(callers);
}

/// In one write, so that a kill leaves whole lines.
fn acknowledge(what: &str, name: &str) {
    let line = format!("{what} {name}\n");
    std::io::stdout()
        .write_all(line.as_bytes())
        .expect("the parent reads until the end");
}

#[test]
fn ten_kills_lose_no_acknowledged_job_and_double_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("jobs").to_str().unwrap().to_owned();
    let mut accepted = BTreeSet::new();
    let mut finished = BTreeSet::new();
    let mut seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64;
    for round in 0..N_ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_accepts_until_it_is_killed", "--nocapture"])
            .env(CHILD_DIR, &dir)
            .env(CHILD_ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let kill_after = 1 + (seed >> 33) % 300;
        let mut n_lines = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            // The test harness of the child writes lines of its own.
            let line = line.unwrap();
            let Some((what, name)) = line.split_once(' ') else {
                continue;
            };
            match what {
                "accepted" => assert!(accepted.insert(name.to_owned())),
                "finished" => assert!(finished.insert(name.to_owned())),
                _ => continue,
            }
            n_lines += 1;
            if n_lines == kill_after {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success());
        assert!(
            n_lines >= kill_after,
            "the child ended by itself after {n_lines} lines"
        );

        let (store, recovered) = open(config(&dir), 0).unwrap();
        assert_eq!(recovered.set_aside, None);
        let pending: Vec<&str> = recovered
            .pending
            .iter()
            .map(|p| &*p.record.job.id)
            .collect();
        let finals: Vec<&str> = recovered
            .finals
            .iter()
            .map(|known| &*known.job.id)
            .collect();
        let stored: BTreeSet<&str> = pending.iter().chain(&finals).copied().collect();
        assert_eq!(
            stored.len(),
            pending.len() + finals.len(),
            "a job is there twice"
        );
        let lost: Vec<_> = accepted
            .iter()
            .filter(|name| !stored.contains(&***name))
            .collect();
        assert!(
            lost.is_empty(),
            "round {round}, {n_lines} lines: lost {lost:?}"
        );
        let finals: BTreeSet<&str> = finals.into_iter().collect();
        let undone: Vec<_> = finished
            .iter()
            .filter(|name| !finals.contains(&***name))
            .collect();
        assert!(undone.is_empty(), "round {round}: finals lost {undone:?}");
        for known in &recovered.pending {
            assert_eq!(known.record, record(&known.record.job.id));
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            for name in &finals {
                assert_eq!(store.final_of(&job(name)).await.unwrap(), Some(end(name)));
            }
            store.close().await;
        });
    }
}
