//! The preflight against real models, and what the worst header costs in time and memory.
//!
//! Counting memory takes an allocator of our own, in this test program only; hence `unsafe`, which passes
//! every call on to the system's allocator unchanged.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use orinoco::models::gguf::{limits, preflight, read_header};

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
    let mut lengths = head(1, 1);
    lengths.extend(text(b"general.name"));
    lengths.extend(8_u32.to_le_bytes());
    lengths.extend(u64::MAX.to_le_bytes());
    vec![
        ("keys", keys),
        ("tensors", tensors),
        ("tokens", tokens),
        ("lengths", lengths),
    ]
}

/// One test, so that nothing of weight is allocated beside it while it counts.
#[test]
fn the_worst_headers_are_judged_quickly_and_in_little_memory_and_real_models_pass() {
    for (name, header) in worst_headers() {
        // Whatever comes after the header would go on for ever.
        let endless = header.as_slice().chain(std::io::repeat(0));
        let before = HELD.load(Relaxed);
        PEAK.store(before, Relaxed);
        let start = Instant::now();
        let _ = read_header(endless, u64::MAX);
        let (took, peak) = (start.elapsed(), PEAK.load(Relaxed) - before);
        assert!(peak < 24 << 20, "{name}: {peak} bytes");
        assert!(took < Duration::from_secs(2), "{name}: {took:?}");
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
        let start = Instant::now();
        let header = preflight(&path).unwrap();
        assert_eq!((header.arch.as_str(), header.quant.as_str()), (arch, quant));
        assert_eq!((header.n_params, header.n_vocab), (n_params, n_vocab));
        assert!(start.elapsed() < Duration::from_secs(2));
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
