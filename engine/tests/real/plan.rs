//! What is planned is what is taken, byte for byte; and what the proof of offload is made of.

use orinoco::frames::{Backend, BufferUse, Draft, KvType, LoadSpec, PlanAsk, Speculation, Switch};
use orinoco_engine::llama::plan::Outlined;
use orinoco_engine::model::Planner;

use super::common::{GEMMA, SMOLLM, real_spec};
use super::{backend, with_decoder};

/// Weights, KV cache and compute buffers, host and device apart: where a buffer's name depends on how the
/// file is read, its bytes do not.
fn sums(buffers: &[BufferUse]) -> [[u64; 3]; 2] {
    let mut sums = [[0; 3]; 2];
    for buffer in buffers {
        let sum = &mut sums[usize::from(buffer.host)];
        sum[0] += buffer.weights_bytes;
        sum[1] += buffer.kv_bytes;
        sum[2] += buffer.compute_bytes;
    }
    sums
}

fn planned(spec: &LoadSpec) -> orinoco::frames::Plan {
    let (_guard, _loader) = backend();
    let mut outlined = Outlined::open(spec).unwrap();
    outlined.plan(&PlanAsk::of(spec)).unwrap()
}

/// Shapes that differ in everything that counts: pool, sequences, batch, types, flash attention.
fn shapes(name: &str) -> Vec<LoadSpec> {
    let copied = LoadSpec {
        mmap: Switch::Off,
        ..real_spec(name)
    };
    vec![
        copied.clone(),
        LoadSpec {
            n_ctx: 4096,
            n_seq_max: 8,
            kv_type_k: KvType::Q8_0,
            kv_type_v: KvType::Q8_0,
            ..copied.clone()
        },
        LoadSpec {
            n_ctx: 1024,
            n_seq_max: 1,
            n_batch: 128,
            n_ubatch: 128,
            flash_attn: Switch::Off,
            ..copied.clone()
        },
        LoadSpec {
            speculation: Speculation::Always,
            draft: Some(Draft {
                name: name.to_owned(),
                path: copied.path.clone(),
            }),
            ..copied
        },
    ]
}

#[test]
fn a_plan_equals_the_load_byte_for_byte() {
    for spec in [SMOLLM, GEMMA].iter().flat_map(|name| shapes(name)) {
        let plan = planned(&spec);
        with_decoder(&spec, |_, loaded| {
            assert_eq!(sums(&plan.buffers), sums(&loaded.buffers), "{spec:?}");
            assert_eq!(plan.ask.n_ctx, loaded.n_ctx);
            assert_eq!(plan.mapped_bytes, 0);
        });
    }
}

#[test]
fn a_plan_equals_the_load_of_a_mapped_file_but_for_what_is_mapped_in_between() {
    for name in [SMOLLM, GEMMA] {
        let spec = LoadSpec {
            mmap: Switch::On,
            backend: Backend::Cpu,
            ..real_spec(name)
        };
        let plan = planned(&spec);
        assert!(plan.mapped_bytes > 0);
        with_decoder(&spec, |_, loaded| {
            let ([_, planned], [_, real]) = (sums(&plan.buffers), sums(&loaded.buffers));
            assert_eq!(
                planned[1..],
                real[1..],
                "{name}: KV cache and compute buffers"
            );
            let weights = |buffers: &[BufferUse], name: &str| -> u64 {
                let named = buffers.iter().filter(|b| b.buffer == name);
                named.map(|b| b.weights_bytes).sum()
            };
            // Gemma's Q4_K tensors are repacked into memory of their own; the range of the file in which
            // they lie stays mapped, and is not read again.
            let repacked = weights(&plan.buffers, "CPU_REPACK");
            assert_eq!(repacked, weights(&loaded.buffers, "CPU_REPACK"), "{name}");
            assert_eq!(
                plan.mapped_bytes + repacked,
                weights(&loaded.buffers, "CPU_Mapped"),
                "{name}"
            );
        });
    }
}

#[test]
fn one_outline_answers_for_many_shapes() {
    let (_guard, _loader) = backend();
    let spec = real_spec(GEMMA);
    let mut outlined = Outlined::open(&spec).unwrap();
    let outline = outlined.outline();
    assert_eq!(outline.n_ctx_train, 32_768);
    assert!(outline.size_bytes > 200_000_000 && outline.backends.contains(&"CPU".to_owned()));
    let mut ask = |n_ctx, kv_type_v, flash_attn| {
        outlined.plan(&PlanAsk {
            n_ctx,
            kv_type_v,
            flash_attn,
            ..PlanAsk::of(&spec)
        })
    };
    let kv =
        |plan: &orinoco::frames::Plan| -> u64 { plan.buffers.iter().map(|b| b.kv_bytes).sum() };
    let small = ask(1024, KvType::F16, Switch::Auto).unwrap();
    let large = ask(32_768, KvType::F16, Switch::Auto).unwrap();
    assert_eq!(kv(&large), 32 * kv(&small));
    assert_eq!(
        large.buffers[0].weights_bytes,
        small.buffers[0].weights_bytes
    );
    let error = ask(1024, KvType::Q8_0, Switch::Off).unwrap_err();
    assert!(error.0.contains("flash"), "{error}");
    // The worker is alive after a refusal.
    ask(2048, KvType::Q8_0, Switch::On).unwrap();
}

#[test]
fn a_canary_is_timed_and_leaves_nothing_in_the_cache() {
    let spec = LoadSpec {
        canary_tokens: 6,
        ..real_spec(SMOLLM)
    };
    with_decoder(&spec, |decoder, loaded| {
        let canary = loaded.canary.unwrap();
        assert_eq!(canary.n_tokens, 6);
        // 98 MB a token at less than 1 TB/s, and not slower than a token in ten seconds.
        assert!(
            canary.token_ms > 0.098 && canary.token_ms < 10_000.0,
            "{canary:?}"
        );
        assert!(
            canary.bytes_per_second > 1e8 && canary.bytes_per_second < 1e13,
            "{canary:?}"
        );
        assert_eq!(decoder.seq_pos_max(0), None);
        // token_embd.weight, looked up by rows: 49152 tokens of 576.
        assert!(loaded.input_bytes > 10_000_000 && loaded.input_bytes < 60_000_000);
    });
    with_decoder(&real_spec(SMOLLM), |_, loaded| {
        assert_eq!(loaded.canary, None);
    });
}
