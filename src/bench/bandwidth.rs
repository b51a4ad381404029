//! Memory bandwidth of the processor, measured on the spot.
//!
//! Decoding one token reads every weight once, so tokens a second times bytes a token can reach, but not
//! exceed, what memory delivers. Two loops of the STREAM kind (McCalpin) run on all cores over buffers far
//! larger than any cache: a sum (reads only, like decoding) and a triad `a = b + s*c` (bytes counted as
//! STREAM does, three a row). GB are 10^9 bytes. The memory of a discrete GPU is not measured here.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::time::Instant;

use super::figure;

/// Least size of all buffers together, in bytes.
const BUFFER_BYTES_MIN: usize = 256 << 20;
/// Most, so that the measurement itself does not press an 8 GB board.
const BUFFER_BYTES_MAX: usize = 1 << 30;
/// Times the last-level cache that the buffers must exceed.
const CACHE_FACTOR: usize = 4;

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    /// Threads, each with buffers of its own.
    pub n_threads: usize,
    /// Bytes of all buffers together.
    pub buffer_bytes: usize,
    /// Runs; the median counts.
    pub n_runs: usize,
}

impl Spec {
    /// For this machine: all cores, buffers of four times the last-level cache within 256 MiB to
    /// 1 GiB, nine runs. `root` is where `sys` lies, `/` but in tests.
    pub fn for_machine(root: &Path) -> Self {
        let cache_bytes = last_level_cache_bytes(root).unwrap_or(0);
        Spec {
            n_threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            buffer_bytes: cache_bytes
                .saturating_mul(CACHE_FACTOR)
                .clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX),
            n_runs: 9,
        }
    }
}

/// What was measured, in GB/s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bandwidth {
    /// Median of the sum.
    pub read_gb_s: f64,
    /// Median of the triad.
    pub triad_gb_s: f64,
}

impl Bandwidth {
    /// The better of the two: what memory surely delivers.
    pub fn gb_s(&self) -> f64 {
        self.read_gb_s.max(self.triad_gb_s)
    }
}

/// Measures; takes a fraction of a second on an idle machine and blocks. Nothing when the clock or the buffers are too small to tell.
pub fn measure(spec: Spec) -> Option<Bandwidth> {
    let n_threads = spec.n_threads.max(1);
    // Three arrays for each thread.
    let n_words = spec.buffer_bytes / n_threads / 3 / 8;
    if n_words == 0 || spec.n_runs == 0 {
        return None;
    }
    let barrier = Barrier::new(n_threads);
    let threads: Vec<Vec<Run>> = std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..n_threads)
            .map(|_| scope.spawn(|| thread_runs(n_words, spec.n_runs, &barrier)))
            .collect();
        spawned
            .into_iter()
            .map(|thread| thread.join().expect("the loops do not panic"))
            .collect()
    });
    let array_bytes = (n_threads * n_words * 8) as f64;
    // The sum reads all three arrays, the triad reads two and writes one.
    let gb_s = |part: fn(&Run) -> Span| {
        let seconds = (0..spec.n_runs).map(|run| {
            let spans = threads.iter().map(|runs| part(&runs[run]));
            wall_seconds(spans)
        });
        figure(3.0 * array_bytes / median(seconds.collect())? / 1e9).filter(|gb_s| *gb_s > 0.0)
    };
    Some(Bandwidth {
        read_gb_s: gb_s(|run| run.read)?,
        triad_gb_s: gb_s(|run| run.triad)?,
    })
}

type Span = (Instant, Instant);

struct Run {
    read: Span,
    triad: Span,
}

/// One thread's part. Its arrays are first touched here, so they lie in its own NUMA node.
fn thread_runs(n_words: usize, n_runs: usize, barrier: &Barrier) -> Vec<Run> {
    let mut a = vec![1u64; n_words];
    let mut b = vec![2u64; n_words];
    let mut c = vec![3u64; n_words];
    (0..n_runs as u64)
        .map(|run| {
            let read = timed(barrier, || {
                black_box(sum(&a).wrapping_add(sum(&b)).wrapping_add(sum(&c)));
            });
            let triad = timed(barrier, || triad(&mut a, &b, &c, black_box(run)));
            // The next triad writes another array, lest one stay in the cache.
            std::mem::swap(&mut a, &mut b);
            std::mem::swap(&mut b, &mut c);
            black_box(&a);
            Run { read, triad }
        })
        .collect()
}

fn timed(barrier: &Barrier, work: impl FnOnce()) -> Span {
    barrier.wait();
    let start = Instant::now();
    work();
    (start, Instant::now())
}

/// One plain fold: the compiler makes independent vector sums of it. Written with sums by hand it was
/// ten times slower and measured the adder.
fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |all, word| all.wrapping_add(*word))
}

fn triad(a: &mut [u64], b: &[u64], c: &[u64], scale: u64) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b.wrapping_add(scale.wrapping_mul(*c));
    }
}

/// From the first start to the last end.
fn wall_seconds(spans: impl Iterator<Item = Span>) -> f64 {
    spans
        .reduce(|(start, end), (s, e)| (start.min(s), end.max(e)))
        .map_or(0.0, |(start, end)| (end - start).as_secs_f64())
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (n, mid) = (values.len(), values.len() / 2);
    match n {
        0 => None,
        _ if n % 2 == 1 => Some(values[mid]),
        _ => Some((values[mid - 1] + values[mid]) / 2.0),
    }
}

/// Size of the largest cache of the first core, from `sys/devices/system/cpu/cpu0/cache/index*/size`
/// (`32K`, `4M`; sysfs-devices-system-cpu of the kernel). Nothing when the files are not there.
fn last_level_cache_bytes(root: &Path) -> Option<usize> {
    let caches = fs::read_dir(root.join("sys/devices/system/cpu/cpu0/cache")).ok()?;
    caches
        .filter_map(|cache| fs::read_to_string(cache.ok()?.path().join("size")).ok())
        .filter_map(|size| cache_bytes(size.trim()))
        .max()
}

fn cache_bytes(size: &str) -> Option<usize> {
    let (digits, shift) = match size.as_bytes().last()? {
        b'K' => (&size[..size.len() - 1], 10),
        b'M' => (&size[..size.len() - 1], 20),
        b'G' => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_median_ignores_one_disturbed_run() {
        for (values, expected) in [
            (vec![], None),
            (vec![2.0], Some(2.0)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![4.0, 1.0, 100.0, 2.0], Some(3.0)),
        ] {
            assert_eq!(median(values.clone()), expected, "{values:?}");
        }
    }

    #[test]
    fn a_run_lasts_from_the_first_start_to_the_last_end() {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let spans = [(at(5), at(20)), (at(2), at(9)), (at(4), at(32))];
        assert_eq!(wall_seconds(spans.into_iter()), 0.03);
    }

    #[test]
    fn cache_sizes_are_read_as_the_kernel_writes_them() {
        for (size, expected) in [
            ("32K", Some(32 << 10)),
            ("4M", Some(4 << 20)),
            ("512", Some(512)),
            ("", None),
            ("K", None),
            ("-1K", None),
            ("99999999999999999999K", None),
            ("18446744073709551615K", None),
            ("é", None),
        ] {
            assert_eq!(cache_bytes(size), expected, "{size:?}");
        }
    }

    #[test]
    fn buffers_are_four_caches_within_bounds() {
        let root = tempfile::tempdir().unwrap();
        let spec = |size: &str| {
            for (index, size) in ["48K", size].iter().enumerate() {
                let cache = format!("sys/devices/system/cpu/cpu0/cache/index{index}");
                let cache = root.path().join(cache);
                fs::create_dir_all(&cache).unwrap();
                fs::write(cache.join("size"), format!("{size}\n")).unwrap();
            }
            Spec::for_machine(root.path()).buffer_bytes
        };
        assert_eq!(Spec::for_machine(root.path()).buffer_bytes, 256 << 20);
        assert_eq!(spec("4M"), 256 << 20);
        assert_eq!(spec("100M"), 400 << 20);
        assert_eq!(spec("1G"), 1 << 30);
    }

    #[test]
    fn the_loops_do_their_work() {
        let b: Vec<u64> = (0..64).collect();
        let c: Vec<u64> = (100..164).collect();
        let mut a = vec![0; 64];
        triad(&mut a, &b, &c, 3);
        assert_eq!(a[63], 63 + 3 * 163);
        assert_eq!(sum(&b), 63 * 64 / 2);
    }

    #[test]
    fn this_machine_has_some_bandwidth_and_nothing_has_none() {
        let small = Spec {
            n_threads: 2,
            buffer_bytes: 24 << 20,
            n_runs: 3,
        };
        let found = measure(small).unwrap();
        // Wide enough for caches and for an emulator; a wrong unit is off by a thousand.
        assert!(
            found.read_gb_s > 0.1 && found.read_gb_s < 5000.0,
            "{found:?}"
        );
        assert!(
            found.triad_gb_s > 0.1 && found.triad_gb_s < 5000.0,
            "{found:?}"
        );
        assert!(found.gb_s() >= found.read_gb_s && found.gb_s() >= found.triad_gb_s);
        for nothing in [
            Spec { n_runs: 0, ..small },
            Spec {
                buffer_bytes: 40,
                ..small
            },
        ] {
            assert_eq!(measure(nothing), None);
        }
    }
}
