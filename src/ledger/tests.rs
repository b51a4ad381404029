use proptest::prelude::*;

use super::fit::{Search, check};
use super::need::DeviceNeed;
use super::*;
use crate::frames::{BufferUse, Device, KvType, Loaded, Plan, PlanAsk, Switch};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RULES: Rules = Rules {
    gpu_context_bytes: 400 * MIB,
};

fn ask(n_ctx: u32) -> PlanAsk {
    PlanAsk {
        n_ctx,
        n_seq_max: 8,
        n_batch: 512,
        n_ubatch: 512,
        kv_type_k: KvType::F16,
        kv_type_v: KvType::F16,
        flash_attn: Switch::Auto,
    }
}

fn buffer(name: &str, [weights, kv, compute]: [u64; 3]) -> BufferUse {
    BufferUse {
        buffer: name.to_owned(),
        host: !name.starts_with("CUDA0"),
        weights_bytes: weights,
        kv_bytes: kv,
        compute_bytes: compute,
    }
}

fn gpu(is_integrated: bool) -> Device {
    Device {
        name: "CUDA0".to_owned(),
        description: "Orin".to_owned(),
        is_integrated,
        free_bytes: 4 * GIB,
        total_bytes: 8 * GIB,
    }
}

/// A 3B model, all of it on a GPU but the embedding.
fn plan_of_3b() -> Plan {
    Plan {
        ask: ask(8192),
        buffers: vec![
            buffer("CUDA0", [1900 * MIB, 896 * MIB, 256 * MIB]),
            buffer("CUDA_Host", [300 * MIB, 0, 20 * MIB]),
        ],
        mapped_bytes: 0,
        process_bytes: 68 * MIB,
    }
}

/// An Orin Nano 8 GB, idle without a desktop.
fn nano() -> Room {
    Room {
        total_bytes: 7_802_736 * 1024,
        available_bytes: 6_245_596 * 1024,
        reserve_bytes: 768 * MIB,
        mapped_bytes: 0,
    }
}

#[test]
fn on_unified_memory_everything_counts_against_the_board() {
    let need = Need::of(&plan_of_3b(), &[gpu(true)], RULES);
    assert_eq!(need.weights_bytes, 2200 * MIB);
    assert_eq!(need.kv_bytes, 896 * MIB);
    assert_eq!(need.compute_bytes, 276 * MIB);
    assert_eq!(need.gpu_context_bytes, 400 * MIB);
    assert_eq!(need.process_bytes, 100 * MIB);
    assert_eq!(need.total_bytes(), 3872 * MIB);
    assert_eq!(need.devices, []);
    assert_eq!(need.largest_buffer_bytes, 1900 * MIB);
    assert_eq!(check(&need, &nano()), Ok(()));
}

#[test]
fn a_discrete_gpu_has_memory_of_its_own() {
    let need = Need::of(&plan_of_3b(), &[gpu(false)], RULES);
    assert_eq!((need.weights_bytes, need.kv_bytes), (300 * MIB, 0));
    assert_eq!(need.gpu_context_bytes, 0);
    let on_gpu = DeviceNeed {
        name: "CUDA0".to_owned(),
        bytes: 3052 * MIB,
        free_bytes: 4 * GIB,
    };
    assert_eq!(need.devices, [on_gpu]);
    assert_eq!(check(&need, &nano()), Ok(()));
    let full = Device {
        free_bytes: 3200 * MIB,
        ..gpu(false)
    };
    let need = Need::of(&plan_of_3b(), &[full], RULES);
    assert!(matches!(
        check(&need, &nano()),
        Err(Short::Device { free_bytes, .. }) if free_bytes == 3200 * MIB
    ));
}

#[test]
fn mapped_weights_are_taken_although_the_kernel_calls_them_available() {
    let room = Room {
        total_bytes: 8 * GIB,
        available_bytes: 6 * GIB,
        reserve_bytes: GIB,
        mapped_bytes: 2 * GIB,
    };
    assert_eq!(room.takeable_bytes(), 3 * GIB);
}

fn refusal(short: Short, room: Room) -> Refusal {
    Refusal {
        model: "llama-3.2-3b".to_owned(),
        ask: ask(8192),
        need: Need::of(&plan_of_3b(), &[gpu(true)], RULES),
        room,
        short,
        instead: Instead {
            n_ctx: Some(4096),
            kv_type: Some((KvType::Q8_0, 8192)),
            model: Some("qwen3-1.7b".to_owned()),
        },
    }
}

#[test]
fn a_refusal_names_every_number_and_what_would_fit() {
    let room = Room {
        available_bytes: 4 * GIB,
        ..nano()
    };
    let refusal = refusal(Short::Main, room);
    assert!(refusal.may_fit_later());
    assert!(refusal.fits_with(550 * MIB) && !refusal.fits_with(500 * MIB));
    assert_eq!(
        refusal.to_string(),
        "llama-3.2-3b needs 3.78 GiB (weights 2.15 GiB, KV cache 896 MiB for n_ctx = 8192 of f16, compute 276 MiB, \
         GPU context 400 MiB, process 100 MiB), but only 3.25 GiB may be taken: 4.00 GiB available less a reserve of \
         768 MiB; n_ctx = 4096, kv_type_k = kv_type_v = \"q8_0\" with n_ctx = 8192 or the model qwen3-1.7b would fit"
    );
}

#[test]
fn a_refusal_says_when_nothing_would_help() {
    let small = Room {
        total_bytes: 3 * GIB,
        available_bytes: 2 * GIB,
        reserve_bytes: 768 * MIB,
        mapped_bytes: 512 * MIB,
    };
    let hopeless = Refusal {
        instead: Instead::default(),
        ..refusal(Short::Main, small)
    };
    assert!(!hopeless.may_fit_later());
    let text = hopeless.to_string();
    assert!(
        text.contains("less 512 MiB that are mapped less a reserve of 768 MiB; nothing smaller"),
        "{text}"
    );
    let piece = refusal(Short::OnePiece { bytes: 1900 * MIB }, nano()).to_string();
    assert!(
        piece.contains("1.86 GiB of GPU memory in one piece"),
        "{piece}"
    );
    assert!(piece.contains("36.4.7"), "{piece}");
}

fn loaded(buffers: Vec<BufferUse>, devices: Vec<Device>) -> Loaded {
    Loaded {
        name: "m".to_owned(),
        arch: "llama".to_owned(),
        description: String::new(),
        n_params: 0,
        size_bytes: 0,
        n_vocab: 0,
        n_dims: 0,
        n_ctx_train: 8192,
        n_ctx: 8192,
        n_ctx_seq: 8192,
        n_seq_max: 8,
        chat_template: String::new(),
        tool_syntax: Default::default(),
        n_layers: 29,
        n_layers_gpu: 29,
        n_graph_splits: 2,
        buffers,
        devices,
        input_bytes: 0,
        canary: None,
        load_ms: 1,
    }
}

#[test]
fn what_a_mapped_load_took_is_compared_without_the_range_in_between() {
    let plan = Plan {
        ask: ask(8192),
        buffers: vec![
            buffer("CPU", [200 * MIB, 100 * MIB, 20 * MIB]),
            buffer("CPU_REPACK", [50 * MIB, 0, 0]),
        ],
        mapped_bytes: 200 * MIB,
        process_bytes: 48 * MIB,
    };
    let planned = Need::of(&plan, &[], RULES);
    let buffers = vec![
        buffer("CPU_Mapped", [250 * MIB, 0, 0]),
        buffer("CPU", [0, 100 * MIB, 20 * MIB]),
        buffer("CPU_REPACK", [50 * MIB, 0, 0]),
    ];
    let readings = Readings {
        available_before_bytes: 6 * GIB,
        available_after_bytes: 6 * GIB - 230 * MIB,
        private_bytes: Some(230 * MIB),
    };
    let taken = Taken::of(&loaded(buffers, vec![]), &planned, readings);
    assert_eq!(taken.weights_bytes, planned.weights_bytes);
    assert_eq!(taken.process_bytes, 60 * MIB);
    let comparison = Comparison { planned, taken };
    assert_eq!(comparison.difference_bytes(), -20 * MIB as i64);
    let account = comparison.account();
    assert_eq!(account.mapped_bytes(), 200 * MIB);
    assert_eq!(account.worker_bytes(), taken.total_bytes());
    assert_eq!(account.caches_bytes(), 0);
}

#[test]
fn on_unified_memory_what_nothing_explains_is_the_gpus_context() {
    let planned = Need::of(&plan_of_3b(), &[gpu(true)], RULES);
    let taken_with = |fell: u64| {
        let readings = Readings {
            available_before_bytes: 6 * GIB,
            available_after_bytes: 6 * GIB - fell,
            private_bytes: Some(400 * MIB),
        };
        Taken::of(
            &loaded(plan_of_3b().buffers, vec![gpu(true)]),
            &planned,
            readings,
        )
    };
    // Buffers of 3372 MiB and 80 MiB of process.
    assert_eq!(taken_with(4000 * MIB).gpu_context_bytes, 548 * MIB);
    // Somebody gave memory back meanwhile: the rule counts.
    assert_eq!(taken_with(1000 * MIB).gpu_context_bytes, 400 * MIB);
}

#[test]
fn the_account_knows_what_each_way_out_gives_back() {
    let mut account = Account::of(&Need::of(&plan_of_3b(), &[gpu(true)], RULES));
    account.set(Kind::Supervisor, 20 * MIB);
    account.set(Kind::Parked, 30 * MIB);
    account.set(Kind::Embedding, 100 * MIB);
    assert_eq!(account.caches_bytes(), 30 * MIB);
    assert_eq!(account.worker_bytes(), 3902 * MIB);
    assert_eq!(account.total_bytes(), 4022 * MIB);
    account.set(Kind::Parked, 0);
    assert_eq!(account.caches_bytes(), 0);
}

/// Up to what a large board has; now and then absurd.
fn bytes(most_gib: u64) -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..most_gib * GIB, 1 => any::<u64>()]
}

fn any_need() -> impl Strategy<Value = Need> {
    let [a, b, c, d, e, f] = [8, 4, 2, 1, 1, 8].map(bytes);
    (a, b, c, d, e, f).prop_map(|(a, b, c, d, e, f)| Need {
        weights_bytes: a,
        kv_bytes: b,
        compute_bytes: c,
        gpu_context_bytes: d,
        process_bytes: e,
        mapped_bytes: f,
        devices: vec![],
        largest_buffer_bytes: 0,
    })
}

fn any_room() -> impl Strategy<Value = Room> {
    let [total, available, reserve, mapped] = [64, 64, 4, 8].map(bytes);
    (total, available, reserve, mapped).prop_map(|(total, available, reserve, mapped)| Room {
        total_bytes: total,
        available_bytes: available,
        reserve_bytes: reserve,
        mapped_bytes: mapped,
    })
}

proptest! {
    #[test]
    fn what_fits_leaves_the_reserve_alone(need in any_need(), room in any_room()) {
        let fits = check(&need, &room).is_ok();
        let left = i128::from(room.available_bytes) - i128::from(room.mapped_bytes) - i128::from(need.total_bytes());
        if fits && need.total_bytes() > 0 {
            prop_assert!(left >= i128::from(room.reserve_bytes));
        }
    }

    #[test]
    fn more_room_and_less_need_never_unfit(need in any_need(), room in any_room(), more in any::<u64>()) {
        prop_assume!(check(&need, &room).is_ok());
        let wider = Room { available_bytes: room.available_bytes.saturating_add(more), ..room };
        prop_assert_eq!(check(&need, &wider), Ok(()));
        let less = Need { kv_bytes: need.kv_bytes.saturating_sub(more), ..need };
        prop_assert_eq!(check(&less, &room), Ok(()));
    }

    #[test]
    fn the_search_finds_the_largest_that_fits_in_few_steps(
        least in 1_u32..4096, most in 1_u32..1_000_000, limit in 0_u32..1_200_000
    ) {
        let mut search = Search::new(least, most);
        let mut n_steps = 0;
        while let Some(n_ctx) = search.next() {
            prop_assert!(n_ctx <= most && n_ctx >= least.min(most));
            search.learn(n_ctx, n_ctx <= limit);
            n_steps += 1;
            prop_assert!(n_steps < 20, "{search:?}");
        }
        match search.found() {
            // As close as the steps of a pool allow.
            Some(found) => prop_assert!(found <= limit && (found == most || found.saturating_add(512) > limit.min(most))),
            None => prop_assert!(limit < least.min(most)),
        }
    }

    #[test]
    fn no_sentence_and_no_sum_panics(need in any_need(), room in any_room()) {
        let refusal = Refusal { need: need.clone(), room, ..refusal(Short::Main, room) };
        prop_assert!(refusal.to_string().len() > 100);
        let account = Account::of(&need);
        prop_assert!(account.mapped_bytes() <= account.total_bytes());
        let taken = Taken::of(&loaded(vec![buffer("CPU_Mapped", [u64::MAX; 3]), buffer("CPU", [u64::MAX; 3])], vec![]), &need, Readings::default());
        let _ = Comparison { planned: need, taken }.difference_bytes();
    }
}
