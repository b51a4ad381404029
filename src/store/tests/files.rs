//! The whole store, thread and file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use redb::{Database, TableDefinition};

use super::*;

/// A runtime as the daemon has it.
fn block_on<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(future)
}

fn real(dir: &Path) -> StoreConfig {
    StoreConfig {
        reserve_bytes: 0,
        ..StoreConfig::new(dir.join("jobs"))
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_job_lives_through_restarts_until_its_final_is_delivered_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, recovered) = open(real(dir.path()), NOW).unwrap();
        assert!(recovered.pending.is_empty() && recovered.set_aside.is_none());
        assert_eq!(store.accept(record("a", 3000)).await.unwrap(), 0);
        store.close().await;

        let (store, recovered) = open(real(dir.path()), NOW).unwrap();
        assert_eq!(recovered.pending[0].record, record("a", 3000));
        assert_eq!(recovered.pending[0].attempt, 2);
        assert_eq!(store.bump_attempt(job("a")).await.unwrap(), 3);
        store.finish(job("a"), end("a", 2000, NOW)).await.unwrap();
        store.close().await;

        let (store, recovered) = open(real(dir.path()), NOW).unwrap();
        assert!(recovered.pending.is_empty());
        assert_eq!(recovered.finals[0].job, job("a"));
        assert_eq!(
            store.final_of(&job("a")).await.unwrap(),
            Some(end("a", 2000, NOW))
        );
        store.delivered(job("a")).await.unwrap();
        assert_eq!(store.sweep(NOW + 600_000).await.unwrap().delivered, 1);
        assert_eq!(store.lookup(&job("a")).await.unwrap(), None);
        assert!(store.timings().syncs >= store.timings().commits);
        store.close().await;
    });
}

#[test]
fn concurrent_accepts_share_commits() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = open(real(dir.path()), NOW).unwrap();
        let names: Vec<String> = (0..64).map(|n| format!("job-{n}")).collect();
        let local = tokio::task::LocalSet::new();
        let tasks: Vec<_> = names
            .iter()
            .map(|name| {
                let (store, record) = (store.clone(), record(name, 100));
                local.spawn_local(async move { store.accept(record).await })
            })
            .collect();
        local
            .run_until(async {
                for task in tasks {
                    task.await.unwrap().unwrap();
                }
            })
            .await;
        // All 64 are queued before the thread can take the second batch.
        let commits = store.timings().commits;
        assert!(commits < 32, "{commits} commits for 64 accepts");
    });
}

#[test]
fn a_second_instance_is_refused_and_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(real(dir.path()), NOW).unwrap();
    let refused = open(real(dir.path()), NOW).unwrap_err();
    assert!(matches!(refused, StoreError::InUse { .. }), "{refused}");
    let told = refused.to_string();
    assert!(
        told.contains("jobs.redb") && told.contains("only one orinoco daemon"),
        "{told}"
    );
    block_on(first.close());
    open(real(dir.path()), NOW).unwrap();
}

#[test]
fn prompts_are_private_to_the_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(real(dir.path()), NOW).unwrap();
    let jobs = dir.path().join("jobs");
    assert_eq!(mode(&jobs), 0o700);
    assert_eq!(mode(&jobs.join("jobs.redb")), 0o600);
    block_on(store.close());

    fs::set_permissions(jobs.join("jobs.redb"), fs::Permissions::from_mode(0o644)).unwrap();
    let (_store, _) = open(real(dir.path()), NOW).unwrap();
    assert_eq!(mode(&jobs.join("jobs.redb")), 0o600);
}

#[test]
fn a_damaged_file_is_moved_aside_and_two_of_them_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jobs/jobs.redb");
    for n in 0..4 {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("rubbish {n}")).unwrap();
        let (store, recovered) = open(real(dir.path()), NOW).unwrap();
        let aside = recovered.set_aside.unwrap().path;
        assert_eq!(fs::read_to_string(aside).unwrap(), format!("rubbish {n}"));
        block_on(store.accept(record("a", 10))).unwrap();
        block_on(store.close());
    }
    let mut kept: Vec<String> = fs::read_dir(file.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| *path != file)
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    kept.sort();
    assert_eq!(kept, ["rubbish 2", "rubbish 3"]);
}

#[test]
fn a_newer_format_of_ours_is_refused_and_its_jobs_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = open(real(dir.path()), NOW).unwrap();
    block_on(store.accept(record("a", 10))).unwrap();
    block_on(store.close());
    let set_format = |format: u64| {
        let database = Database::open(dir.path().join("jobs/jobs.redb")).unwrap();
        let txn = database.begin_write().unwrap();
        let meta: TableDefinition<&str, u64> = TableDefinition::new("meta");
        txn.open_table(meta)
            .unwrap()
            .insert("format", format)
            .unwrap();
        txn.commit().unwrap();
    };

    set_format(2);
    let refused = open(real(dir.path()), NOW).unwrap_err();
    assert!(
        matches!(
            refused,
            StoreError::NewerFormat {
                found: 2,
                known: 1,
                ..
            }
        ),
        "{refused}"
    );
    set_format(1);
    let (_store, recovered) = open(real(dir.path()), NOW).unwrap();
    assert_eq!(recovered.pending.len(), 1);
}

#[test]
fn a_file_at_its_limit_refuses_the_job_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let small = StoreConfig {
        file_bytes_max: 4 << 20,
        full_retry: Duration::ZERO,
        ..real(dir.path())
    };
    let (store, _) = open(small, NOW).unwrap();
    block_on(async {
        let refused = store.accept(record("big", 8 << 20)).await.unwrap_err();
        assert!(
            matches!(refused, StoreError::Full(Full::File { limit }) if limit == 4 << 20),
            "{refused}"
        );
        store.accept(record("small", 10)).await.unwrap();
        store.close().await;
    });
    assert!(
        fs::metadata(dir.path().join("jobs/jobs.redb"))
            .unwrap()
            .len()
            <= 4 << 20
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("jobs"), "a file").unwrap();
    let refused = open(real(dir.path()), NOW).unwrap_err().to_string();
    assert!(refused.contains("jobs"), "{refused}");
}

#[test]
fn a_closed_store_says_so() {
    let dir = tempfile::tempdir().unwrap();
    block_on(async {
        let (store, _) = open(real(dir.path()), NOW).unwrap();
        let other = store.clone();
        store.close().await;
        let refused = other.accept(record("a", 1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Closed), "{refused}");
    });
}
