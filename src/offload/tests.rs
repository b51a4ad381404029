use proptest::prelude::*;

use super::*;
use crate::frames::{BufferUse, Canary, KvType, PlanAsk, Switch};

const MIB: u64 = 1 << 20;

fn orin() -> Device {
    Device {
        name: "CUDA0".to_owned(),
        description: "Orin".to_owned(),
        is_integrated: true,
        free_bytes: 6 << 30,
        total_bytes: 8 << 30,
    }
}

fn buffer(name: &str, [weights, kv, compute]: [u64; 3]) -> BufferUse {
    BufferUse {
        buffer: name.to_owned(),
        host: name != "CUDA0",
        weights_bytes: weights * MIB,
        kv_bytes: kv * MIB,
        compute_bytes: compute * MIB,
    }
}

/// Llama-3.2-3B Q4_K_M on an Orin NX at 80 GB/s, as it should be.
fn good() -> Loaded {
    Loaded {
        name: "llama-3.2-3b".to_owned(),
        arch: "llama".to_owned(),
        description: "llama 3B Q4_K - Medium".to_owned(),
        n_params: 3_212_749_888,
        size_bytes: 1918 * MIB,
        n_vocab: 128_256,
        n_dims: 0,
        n_ctx_train: 131_072,
        n_ctx: 8192,
        n_ctx_seq: 8192,
        n_seq_max: 8,
        chat_template: "llama3".to_owned(),
        tool_syntax: Default::default(),
        n_layers: 29,
        n_layers_gpu: 29,
        n_graph_splits: 2,
        buffers: vec![
            buffer("CUDA0", [1918, 896, 256]),
            buffer("CUDA_Host", [309, 0, 22]),
        ],
        devices: vec![orin()],
        input_bytes: 308 * MIB,
        canary: Some(Canary {
            n_tokens: 16,
            token_ms: 36.0,
            bytes_per_second: 80e9,
        }),
        load_ms: 4000,
    }
}

fn strict() -> Expected {
    Expected::new(Some("/dev/nvgpu".to_owned()), Backend::Auto, -1, 0.25)
}

fn cuda() -> Vec<String> {
    vec!["CPU".to_owned(), "CUDA".to_owned()]
}

fn verdict(change: impl FnOnce(&mut Loaded)) -> Result<Proof, Unproven> {
    let mut loaded = good();
    change(&mut loaded);
    after_load(&strict(), &cuda(), &loaded, None)
}

#[test]
fn a_model_that_is_all_on_the_gpu_is_proven_with_its_speed() {
    let Ok(Proof::OnGpu(Some(speed))) = verdict(|_| {}) else {
        panic!("proven: {:?}", verdict(|_| {}))
    };
    assert!((speed.tok_s - 27.8).abs() < 0.1);
    // 25.1 ms for the weights, 3.9 ms for launches.
    assert!((speed.roofline_tok_s - 34.4).abs() < 0.2, "{speed:?}");
    assert!((speed.share() - 0.81).abs() < 0.01);
}

/// What was found, and what the sentence must say.
#[test]
fn each_part_fails_alone_with_what_was_found_and_what_to_do() {
    type Change = fn(&mut Loaded);
    let table: [(&str, Change, &[&str]); 8] = [
        (
            "llama.cpp sees no device",
            |loaded| loaded.devices.clear(),
            &["/dev/nvgpu", "CUDA finds no device", "libcuda.so.1"],
        ),
        (
            "load_tensors: offloaded 28/29 layers to GPU",
            |loaded| loaded.n_layers_gpu = 28,
            &["28 of 29", "CUDA0", "n_gpu_layers = -1"],
        ),
        (
            "a tensor without kernels fell back to the CPU",
            |loaded| loaded.buffers.push(buffer("CPU_REPACK", [40, 0, 0])),
            &["349 MiB of weights", "CUDA_Host, CPU_REPACK", "308 MiB"],
        ),
        (
            "KV cache on the CPU (--no-kv-offload)",
            |loaded| {
                loaded.buffers[0].kv_bytes = 0;
                loaded.buffers.push(buffer("CPU", [0, 896, 0]));
            },
            &["896 MiB of KV cache", "(CPU)", "expected on CUDA0"],
        ),
        (
            "half of the KV cache on the CPU",
            |loaded| loaded.buffers.push(buffer("CPU", [0, 448, 0])),
            &["448 MiB of KV cache"],
        ),
        (
            "graph: nodes = 943, splits = 58",
            |loaded| loaded.n_graph_splits = 58,
            &["58 parts", "at most 2", "flash_attn"],
        ),
        (
            "no line about splits",
            |loaded| loaded.n_graph_splits = 0,
            &["did not say", "one package"],
        ),
        (
            "the speed of a CPU",
            |loaded| {
                loaded.canary = Some(Canary {
                    n_tokens: 4,
                    token_ms: 190.0,
                    bytes_per_second: 80e9,
                });
            },
            &[
                "190.0 ms (5.3 tokens/s)",
                "116.",
                "25 %",
                "80.0 GB/s",
                "power mode",
            ],
        ),
    ];
    for (case, change, words) in table {
        let sentence = verdict(change).expect_err(case).to_string();
        for word in words {
            assert!(sentence.contains(word), "{case}: no {word:?} in {sentence}");
        }
        let is_packaging = sentence.contains("package");
        assert!(
            is_packaging || sentence.contains("engine.backend = \"cpu\""),
            "{case}: {sentence}"
        );
    }
}

#[test]
fn a_build_without_cuda_is_refused_where_there_is_a_gpu() {
    let cpu_build = vec!["CPU".to_owned()];
    let refused = before_load(&strict(), &cpu_build, &[]).unwrap_err();
    assert!(refused.to_string().contains("built without CUDA"));
    assert!(refused.to_string().contains("(/dev/nvgpu)"));
    let no_driver = before_load(&strict(), &cuda(), &[]).unwrap_err();
    assert!(no_driver.to_string().contains("finds no device"));
    assert_eq!(before_load(&strict(), &cuda(), &[orin()]), Ok(()));
    let without_gpu = Expected {
        gpu_sign: None,
        ..strict()
    };
    assert_eq!(before_load(&without_gpu, &cpu_build, &[]), Ok(()));
}

#[test]
fn the_cpu_must_be_asked_for_and_then_nothing_is_proven() {
    let chosen = Expected::new(Some("/dev/nvgpu".to_owned()), Backend::Cpu, -1, 0.25);
    let mut loaded = good();
    loaded.devices.clear();
    loaded.n_layers_gpu = 0;
    let on_cpu = after_load(&chosen, &["CPU".to_owned()], &loaded, None);
    assert_eq!(on_cpu, Ok(Proof::CpuChosen));
    assert!(!chosen.is_strict(&[orin()]));
    let without_gpu = Expected {
        gpu_sign: None,
        ..strict()
    };
    let nothing = after_load(&without_gpu, &["CPU".to_owned()], &loaded, None);
    assert_eq!(nothing, Ok(Proof::NoGpu));
    // A device that llama.cpp has is a GPU, whatever else was found.
    assert!(without_gpu.is_strict(&[orin()]));
}

#[test]
fn what_lies_between_mapped_tensors_is_not_held_against_a_discrete_gpu() {
    let plan = Plan {
        ask: PlanAsk {
            n_ctx: 8192,
            n_seq_max: 8,
            n_batch: 512,
            n_ubatch: 512,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
            flash_attn: Switch::Auto,
        },
        buffers: vec![],
        mapped_bytes: 308 * MIB,
        process_bytes: 0,
    };
    let mut loaded = good();
    loaded.buffers[1] = buffer("CPU_Mapped", [1900, 0, 0]);
    let with_plan = after_load(&strict(), &cuda(), &loaded, Some(&plan));
    assert!(matches!(with_plan, Ok(Proof::OnGpu(_))), "{with_plan:?}");
    let without = after_load(&strict(), &cuda(), &loaded, None);
    assert!(matches!(without, Err(Unproven::Weights { .. })));
}

#[test]
fn two_gpus_cut_the_graph_once_more() {
    let two = |n_graph_splits| {
        verdict(|loaded| {
            let second = Device {
                name: "CUDA1".to_owned(),
                ..orin()
            };
            loaded.devices.push(second);
            loaded.buffers.push(buffer("CUDA1", [900, 400, 200]));
            loaded.n_graph_splits = n_graph_splits;
        })
    };
    assert!(matches!(two(3), Ok(Proof::OnGpu(_))));
    assert!(matches!(two(4), Err(Unproven::Splits { expected: 3, .. })));
}

/// Launch times decide where weights are small and memory is fast: SmolLM2 on an H200.
#[test]
fn a_small_model_on_a_fast_gpu_is_not_called_slow() {
    let on_h200 = |token_ms| {
        verdict(|loaded| {
            loaded.n_layers = 31;
            loaded.n_layers_gpu = 31;
            loaded.buffers[0].weights_bytes = 96 * MIB;
            loaded.canary = Some(Canary {
                n_tokens: 16,
                token_ms,
                bytes_per_second: 3.9e12,
            });
        })
    };
    assert!(matches!(on_h200(1.3), Ok(Proof::OnGpu(Some(_)))));
    assert!(matches!(on_h200(30.0), Err(Unproven::Slow { .. })));
}

#[test]
fn without_a_canary_or_a_speed_of_memory_the_rest_is_the_proof() {
    assert_eq!(
        verdict(|loaded| loaded.canary = None),
        Ok(Proof::OnGpu(None))
    );
    for bytes_per_second in [0.0, f64::NAN, f64::INFINITY, -1.0] {
        let judged = verdict(|loaded| {
            loaded.canary = Some(Canary {
                n_tokens: 1,
                token_ms: 1e9,
                bytes_per_second,
            });
        });
        assert_eq!(judged, Ok(Proof::OnGpu(None)), "{bytes_per_second}");
    }
    let not_judged = Expected {
        canary_share_min: 0.0,
        ..strict()
    };
    let mut loaded = good();
    loaded.canary.as_mut().unwrap().token_ms = 1e6;
    let proof = after_load(&not_judged, &cuda(), &loaded, None);
    assert!(matches!(proof, Ok(Proof::OnGpu(Some(_)))));
}

proptest! {
    #[test]
    fn no_facts_panic_and_what_is_proven_has_nothing_on_the_host(
        layers in any::<[u32; 3]>(), host in any::<[u64; 3]>(), device in any::<[u64; 3]>(), input in any::<u64>(), speeds in any::<[f64; 2]>()
    ) {
        let mut loaded = good();
        [loaded.n_layers, loaded.n_layers_gpu, loaded.n_graph_splits] = layers;
        for (buffer, [weights, kv, compute]) in loaded.buffers.iter_mut().zip([device, host]) {
            (buffer.weights_bytes, buffer.kv_bytes, buffer.compute_bytes) = (weights, kv, compute);
        }
        loaded.input_bytes = input;
        loaded.canary = Some(Canary { n_tokens: 1, token_ms: speeds[0], bytes_per_second: speeds[1] });
        match after_load(&strict(), &cuda(), &loaded, None) {
            Ok(_) => {
                prop_assert!(layers[1] >= layers[0] && host[1] == 0);
                prop_assert!(host[0] <= input.saturating_add(MIB));
            }
            Err(unproven) => prop_assert!(unproven.to_string().len() > 50),
        }
    }
}
