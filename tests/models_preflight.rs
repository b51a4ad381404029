//! The preflight against real models, malformed ones, and what the worst header costs in time and memory.
//!
//! Counting memory takes an allocator of our own, in this test program only; hence `unsafe`, which passes
//! every call on to the system's allocator unchanged.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use orinoco::models::gguf::{limits, preflight, read_header};

#[path = "support/gguf.rs"]
mod gguf;

/// A refusal takes at most this much of one core, whatever else runs on it.
const CPU_TIME_MAX: Duration = Duration::from_millis(100);

/// Time that this thread has had a core.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this is Linux");
    let times = [usage.user_time(), usage.system_time()];
    let micros = times.map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
    Duration::from_micros(micros.iter().sum::<i64>() as u64)
}

struct Counting;
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to `System` with the layout it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(held, Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn model(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("models")
        .join(name);
    path.exists().then_some(path)
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

fn head(n_tensors: u64, n_kv: u64) -> Vec<u8> {
    [
        b"GGUF".as_slice(),
        &3_u32.to_le_bytes(),
        &n_tensors.to_le_bytes(),
        &n_kv.to_le_bytes(),
    ]
    .concat()
}

/// Parts of headers that make the preflight read, keep and compare as much as its limits allow.
fn worst_headers() -> Vec<(&'static str, Vec<u8>)> {
    let mut keys = head(1, limits::KEYS_MAX);
    for i in 0..limits::KEYS_MAX {
        keys.extend(text(format!("{i:0>256}").as_bytes()));
        keys.extend(10_u32.to_le_bytes());
        keys.extend(i.to_le_bytes());
    }
    let mut tensors = head(limits::TENSORS_MAX, 1);
    tensors.extend([text(b"x"), vec![0, 0, 0, 0, 1]].concat());
    for i in 0..limits::TENSORS_MAX {
        tensors.extend(text(format!("{i:0>63}").as_bytes()));
        tensors.extend(1_u32.to_le_bytes());
        tensors.extend(8_u64.to_le_bytes());
        tensors.extend(0_u32.to_le_bytes());
        tensors.extend((i * 32).to_le_bytes());
    }
    let mut tokens = head(1, 3);
    for (key, element, item) in [
        ("tokens", 8_u32, text(b"<0x41>")),
        ("token_type", 5, vec![6, 0, 0, 0]),
    ] {
        tokens.extend(text(format!("tokenizer.ggml.{key}").as_bytes()));
        tokens.extend(9_u32.to_le_bytes());
        tokens.extend(element.to_le_bytes());
        tokens.extend(limits::ARRAY_ELEMENTS_MAX.to_le_bytes());
        tokens.extend(std::iter::repeat_n(item, limits::ARRAY_ELEMENTS_MAX as usize).flatten());
    }
    let n_arrays = limits::HEADER_BYTES_MAX / 8 / limits::ARRAY_ELEMENTS_MAX;
    let mut strings = head(1, n_arrays);
    for i in 0..n_arrays {
        strings.extend(text(format!("{i}").as_bytes()));
        strings.extend([9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat());
        strings.extend(limits::ARRAY_ELEMENTS_MAX.to_le_bytes());
        strings.resize(strings.len() + 8 * limits::ARRAY_ELEMENTS_MAX as usize, 0);
    }
    let mut lengths = head(1, 1);
    lengths.extend(text(b"general.name"));
    lengths.extend(8_u32.to_le_bytes());
    lengths.extend(u64::MAX.to_le_bytes());
    vec![
        ("keys", keys),
        ("tensors", tensors),
        ("tokens", tokens),
        ("strings", strings),
        ("lengths", lengths),
    ]
}

/// The other tests of this program hold less than a MiB while it counts.
#[test]
fn the_worst_headers_are_judged_quickly_and_in_little_memory_and_real_models_pass() {
    for (name, header) in worst_headers() {
        // Whatever comes after the header would go on for ever.
        let endless = header.as_slice().chain(std::io::repeat(0));
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = cpu_time();
        let _ = read_header(endless, u64::MAX);
        let (took, peak) = (cpu_time() - start, PEAK.load(Relaxed) - before);
        assert!(peak < 24 << 20, "{name}: {peak} bytes");
        // 20 to 85 ms alone on a core; twice the limit on one that others share.
        assert!(took < 2 * CPU_TIME_MAX, "{name}: {took:?}");
    }

    let real = [
        (
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "llama",
            "Q4_1",
            134_515_008,
            49_152,
        ),
        (
            "gemma-3-270m-q4_k_m.gguf",
            "gemma3",
            "Q4_K_M",
            268_098_176,
            262_144,
        ),
    ];
    for (file, arch, quant, n_params, n_vocab) in real {
        let Some(path) = model(file) else {
            continue; // models are not part of the repository
        };
        let start = cpu_time();
        let header = preflight(&path).unwrap();
        assert_eq!((header.arch.as_str(), header.quant.as_str()), (arch, quant));
        assert_eq!((header.n_params, header.n_vocab), (n_params, n_vocab));
        assert!(cpu_time() - start < CPU_TIME_MAX);
    }
}

#[test]
fn what_is_no_model_file_is_refused_with_its_path() {
    for (path, expected) in [
        ("/dev/zero", "not a regular file"),
        ("/nowhere.gguf", "No such file"),
        (
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
            "a GGUF file begins with \"GGUF\"",
        ),
    ] {
        let error = preflight(Path::new(path)).unwrap_err().to_string();
        assert!(error.contains(path) && error.contains(expected), "{error}");
    }
}

/// The address space of the program ends at 64 MiB, which is less than any header may claim to need.
#[test]
fn each_malformed_file_is_refused_by_the_program_in_64_mib_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "").unwrap();
    let path = dir.path().join("m.gguf");
    for (name, gguf, expected) in gguf::malformed() {
        let (header, file_bytes) = gguf.bytes();
        std::fs::write(&path, &header).unwrap();
        if !expected.contains("ends inside its header") {
            // As long as the header says, and mostly a hole.
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file_bytes.min(1 << 40)).unwrap();
        }
        let start = cpu_time();
        let reason = preflight(&path).expect_err(name).to_string();
        let took = cpu_time() - start;
        assert!(took < CPU_TIME_MAX, "{name}: {took:?}");
        assert!(reason.contains(expected), "{name}: {reason}");

        let output = Command::new("sh")
            .args(["-c", r#"ulimit -v 65536 && exec "$@""#, "sh"])
            .args([env!("CARGO_BIN_EXE_orinoco"), "--config"])
            .arg(&config)
            .args(["models", "add"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(65), "{name}: {said}");
        assert!(said.contains(expected), "{name}: {said}");
    }
}
