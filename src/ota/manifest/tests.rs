use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn example() -> Value {
    json!({
        "schema": 1, "id": "qwen3-4b", "line": "assistant-s", "release_seq": 12, "title": "Qwen3 4B",
        "model": {"arch": "qwen3", "format": "gguf", "n_params": 4_022_000_000u64, "quant": "Q4_K_M",
                  "n_ctx_train": 40960, "n_vocab": 151_936, "licence": "Apache-2.0", "languages": ["en"]},
        "files": [
            {"role": "weights", "target": "qwen3-4b.gguf", "bytes": 2_497_281_120u64, "sha256": "a".repeat(64),
             "pieces_target": "qwen3-4b.pieces", "piece_bytes": 4_194_304},
            {"role": "draft", "line": "drafter", "min_release_seq": 3},
        ],
        "runtime": {"n_ctx": 8192, "kv_type_k": "q8_0", "chat_template": "{{ messages }}", "stop": ["</s>"],
                    "sampling_milli": {"temperature": 700, "top_p": 900}},
        "needs": {"memory_mib": [{"n_ctx": 4096, "mib": 3310}, {"n_ctx": 8192, "mib": 3760}], "disk_mib": 2400,
                  "min_l4t": "36.4.0", "min_engine_build": 9100, "boards": ["orin-nx-16gb"], "power_modes": ["25W"]},
        "tier": {"min_power_w": 10, "rank": 2},
        "health": {"load_ms_max": 45000, "peak_mib_max": 4100,
                   "speed_milli_tok_s": [{"board": "orin-nx-16gb", "mode": "25W", "decode_min": 14000}, {"decode_min": 1000}],
                   "golden": [
                       {"kind": "match", "prompt": "Capital of France?", "must_match": "(?i)paris", "max_tokens": 16},
                       {"kind": "likelihood", "text": "The cat sat on the mat.", "mean_nll_micro_max": 2_450_000},
                   ]},
    })
}

fn parse(value: &Value) -> Result<Manifest, FileError> {
    Manifest::parse(value.to_string().as_bytes())
}

fn with(pointer: &str, value: Value) -> Value {
    let mut manifest = example();
    *manifest.pointer_mut(pointer).expect(pointer) = value;
    manifest
}

#[test]
fn full_manifest_survives_being_written_and_read() {
    let manifest = parse(&example()).unwrap();
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    assert_eq!(manifest.weights().table_bytes(), 596 * 32);
    assert_eq!(manifest.draft().unwrap().1, 3);
}

#[test]
fn short_manifest_needs_a_model_and_its_file_only() {
    let mut short = example();
    for key in ["title", "runtime", "needs", "tier", "health"] {
        short.as_object_mut().unwrap().remove(key);
    }
    assert_eq!(parse(&short).unwrap().runtime, Runtime::default());
}

#[test]
fn each_value_out_of_bounds_is_refused_by_its_key() {
    for (pointer, value, key) in [
        ("/release_seq", json!(0), "release_seq"),
        ("/release_seq", json!(1u64 << 53), "release_seq"),
        ("/model/format", json!("pth"), "model.format"),
        ("/model/n_ctx_train", json!(0), "model.n_ctx_train"),
        ("/files/0/bytes", json!(0), "file_bytes"),
        ("/files/0/bytes", json!(u64::MAX), "file_bytes"),
        ("/files/0/piece_bytes", json!(3), "piece_bytes"),
        ("/files/0/target", json!("other.gguf"), "files[0].target"),
        (
            "/files/0/pieces_target",
            json!("qwen3-4b.gguf"),
            "files[0].pieces_target",
        ),
        ("/files/1/line", json!("assistant-s"), "files[1].line"),
        (
            "/files/1/min_release_seq",
            json!(0),
            "files[1].min_release_seq",
        ),
        ("/runtime/n_ctx", json!(u32::MAX), "runtime.n_ctx"),
        (
            "/runtime/chat_template",
            json!("x".repeat(TEMPLATE_BYTES_MAX + 1)),
            "runtime.chat_template",
        ),
        ("/runtime/stop", json!(["", ""]), "runtime.stop[0]"),
        (
            "/runtime/sampling_milli/top_p",
            json!(1001),
            "runtime.sampling_milli.top_p",
        ),
        (
            "/needs/memory_mib/1/n_ctx",
            json!(4096),
            "needs.memory_mib[1].n_ctx",
        ),
        (
            "/needs/memory_mib/0/mib",
            json!(0),
            "needs.memory_mib[0].mib",
        ),
        ("/health/load_ms_max", json!(u64::MAX), "health.load_ms_max"),
        (
            "/health/golden/0/max_tokens",
            json!(100_000),
            "health.golden[0].max_tokens",
        ),
        (
            "/health/golden/0/must_match",
            json!(""),
            "health.golden[0].must_match",
        ),
        (
            "/health/golden/0/must_match",
            json!("(paris"),
            "health.golden[0].must_match",
        ),
        (
            "/health/golden/0/must_match",
            json!("((a{900}){900}){900}"),
            "health.golden[0].must_match",
        ),
        (
            "/health/golden/1/mean_nll_micro_max",
            json!(0),
            "health.golden[1].mean_nll_micro_max",
        ),
    ] {
        let error = parse(&with(pointer, value)).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{key}: found")),
            "{pointer}: {error}"
        );
    }
}

#[test]
fn fractions_negative_numbers_and_names_that_are_paths_are_refused() {
    for (pointer, value) in [
        ("/model/n_params", json!(1.5)),
        ("/runtime/sampling_milli/temperature", json!(0.7)),
        ("/needs/disk_mib", json!(-1)),
        ("/id", json!("../etc/passwd")),
        ("/files/0/target", json!("/abs/x.gguf")),
        ("/files/0/sha256", json!("A".repeat(64))),
        ("/files/0/role", json!("mmproj")),
        ("/runtime/kv_type_k", json!("q2_k")),
        ("/needs/min_l4t", json!("36.4")),
        ("/needs/min_l4t", json!("36.+4.0")),
    ] {
        assert!(
            matches!(parse(&with(pointer, value)), Err(FileError::Json { .. })),
            "{pointer}"
        );
    }
}

#[test]
fn there_is_one_weights_file() {
    let none = with("/files", json!([]));
    assert!(parse(&none).unwrap_err().to_string().contains("0 weights"));
    let weights = example()["files"][0].clone();
    let two = with("/files", json!([weights, weights]));
    assert!(parse(&two).unwrap_err().to_string().contains("2 weights"));
}

#[test]
fn newer_schema_is_told_before_anything_else_and_unknown_keys_are_passed_over() {
    let newer = json!({"schema": 2, "everything": "else"});
    assert!(matches!(
        parse(&newer),
        Err(FileError::Schema {
            found: 2,
            known: 1,
            ..
        })
    ));
    let mut more = example();
    more["colour"] = json!({"deep": [1.5]});
    assert!(parse(&more).is_ok());
}

#[test]
fn duplicate_key_deep_nesting_and_too_many_bytes_are_refused() {
    let text = example()
        .to_string()
        .replacen('{', r#"{"line":"other","#, 1);
    assert!(Manifest::parse(text.as_bytes()).is_err());
    let deep = format!(r#"{{"schema":1,"x":{}"#, "[".repeat(100_000));
    assert!(Manifest::parse(deep.as_bytes()).is_err());
    let long = vec![b' '; MANIFEST_BYTES_MAX + 1];
    assert!(matches!(
        Manifest::parse(&long),
        Err(FileError::TooLarge { .. })
    ));
}

#[test]
fn memory_is_that_of_the_context_measured_next_above() {
    let needs = parse(&example()).unwrap().needs;
    let memory = [1, 4096, 4097, 8192, 100_000].map(|n_ctx| needs.memory_mib(n_ctx).unwrap());
    assert_eq!(memory, [3310, 3310, 3760, 3760, 3760]);
    assert_eq!(Needs::default().memory_mib(1), None);
}

#[test]
fn speed_is_that_of_the_first_line_that_fits() {
    let health = parse(&example()).unwrap().health;
    let decode = |board, mode| health.speed(board, mode).unwrap().decode_min;
    assert_eq!(decode("orin-nx-16gb", "25W"), 14000);
    assert_eq!(decode("orin-nx-16gb", "15W"), 1000);
    assert_eq!(decode("other", "25W"), 1000);
}

proptest! {
    #[test]
    fn any_bytes_give_a_manifest_within_bounds_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Manifest::parse(&bytes).is_err());
    }

    /// Whatever single bytes are changed, what is accepted is within bounds and can be written again.
    #[test]
    fn a_flipped_byte_gives_a_manifest_within_bounds_or_an_error(at: prop::sample::Index, byte: u8) {
        let mut bytes = example().to_string().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert!(manifest.check().is_ok());
            prop_assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
        }
    }
}
