//! Durable accepts a second, and where their time goes.
//!
//!     cargo bench --bench store_accepts --profile release [-- DIR [SECONDS]]
//!
//! DIR is on the disk to be measured (default: the current directory). For each number of concurrent
//! callers it prints accepts a second, latency quantiles, accepts a commit, and the shares of fsync and of
//! the rest of the transaction; beforehand the disk's own fdatasync of a 4 KiB overwrite, which no store
//! can beat with one caller.
#![expect(clippy::print_stdout, reason = "a command-line tool")]

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use orinoco::store::{JobId, Record, StoreConfig, open};

/// A prompt of a device: a paragraph and its JSON.
const BODY_BYTES: usize = 1024;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let base = args.next().unwrap_or_else(|| ".".into());
    let seconds: f64 = args
        .next()
        .map_or(3.0, |s| s.parse().expect("SECONDS is a number"));
    let dir = tempfile::tempdir_in(base).expect("DIR is a writable directory");
    bare_fdatasync(dir.path());
    println!(
        "callers  accepts/s  p50 ms  p99 ms  max ms  accepts/commit  fsync %  redb %  waiting %"
    );
    for n_callers in [1, 8, 64] {
        measure(&dir.path().join(n_callers.to_string()), n_callers, seconds);
    }
    reopening(&dir.path().join("64"));
}

fn bare_fdatasync(dir: &Path) {
    let file = File::create(dir.join("bare")).expect("a file can be created");
    file.write_all_at(&[0; 1 << 16], 0)
        .expect("it can be written");
    file.sync_all().expect("it can be synced");
    let mut took = Vec::new();
    for n in 0..200u64 {
        let start = Instant::now();
        file.write_all_at(&[n as u8; 4096], n % 16 * 4096)
            .expect("it can be written");
        file.sync_data().expect("it can be synced");
        took.push(start.elapsed());
    }
    took.sort();
    println!(
        "fdatasync of one overwritten page: p50 {:?}, p99 {:?}",
        took[100], took[198]
    );
}

fn measure(dir: &Path, n_callers: usize, seconds: f64) {
    let config = StoreConfig {
        pending_jobs_max: u64::MAX,
        pending_bytes_max: 4 << 30,
        file_bytes_max: 16 << 30,
        reserve_bytes: 0,
        ..StoreConfig::new(dir)
    };
    let (store, _) = open(config, 0).expect("the store opens");
    let before = store.timings();
    let latency = Rc::new(RefCell::new(
        Histogram::<u64>::new(3).expect("three digits are allowed"),
    ));
    let n_accepted = Rc::new(Cell::new(0u64));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime starts");
    let callers = tokio::task::LocalSet::new();
    let start = Instant::now();
    for caller in 0..n_callers {
        let (store, latency, n_accepted) = (store.clone(), latency.clone(), n_accepted.clone());
        callers.spawn_local(async move {
            while start.elapsed().as_secs_f64() < seconds {
                let n = n_accepted.replace(n_accepted.get() + 1);
                let asked = Instant::now();
                store
                    .accept(record(caller, n))
                    .await
                    .expect("there is room");
                let us = asked.elapsed().as_micros() as u64;
                latency
                    .borrow_mut()
                    .record(us)
                    .expect("the histogram grows");
            }
        });
    }
    runtime.block_on(callers);
    let took = start.elapsed();
    let after = store.timings();
    runtime.block_on(store.close());

    let latency = latency.borrow();
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    let n = latency.len() as f64;
    let share = |part: Duration| 100.0 * part.as_secs_f64() / took.as_secs_f64();
    let sync = share(after.sync - before.sync);
    let total = share(after.total - before.total);
    println!(
        "{n_callers:7}  {:9.0}  {:6.2}  {:6.2}  {:6.2}  {:14.1}  {sync:7.0}  {:6.0}  {:9.0}  {:7.1}",
        n / took.as_secs_f64(),
        ms(0.5),
        ms(0.99),
        ms(1.0),
        n / (after.commits - before.commits) as f64,
        total - sync,
        100.0 - total,
        resident_mib(),
    );
}

/// Of this whole process, callers and histogram included.
fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(f64::NAN);
    pages * 4096.0 / (1 << 20) as f64
}

fn reopening(dir: &Path) {
    let config = StoreConfig {
        file_bytes_max: 16 << 30,
        reserve_bytes: 0,
        ..StoreConfig::new(dir)
    };
    let bytes = std::fs::metadata(dir.join("jobs.redb")).map_or(0, |meta| meta.len());
    let start = Instant::now();
    let (_store, recovered) = open(config, 0).expect("the store opens");
    println!(
        "reopening with {} pending jobs, file of {} MiB: {:?}",
        recovered.pending.len(),
        bytes >> 20,
        start.elapsed()
    );
}

fn record(caller: usize, n: u64) -> Record {
    Record {
        job: JobId {
            user: format!("device-{caller}"),
            id: format!("{n}"),
        },
        op: "chat".into(),
        digest: [n as u8; 32],
        body: vec![b'x'; BODY_BYTES].into(),
        response_topic: None,
        correlation: None,
        accept: None,
        beside: None,
        model: None,
        accepted_at_ms: 1_800_000_000_000,
    }
}
