//! Golden values of the three boards, and of this machine.

use orinoco::board::identity::Kind;
use orinoco::board::memory::{self, MemInfo, MemoryProbe};
use orinoco::board::power::{NamedBy, PowerProbe};
use orinoco::board::rails::module_milliwatts;
use orinoco::board::thermal::junction_millicelsius;
use orinoco::board::throttle::OverCurrent;
use orinoco::board::{Faults, Root, cgroup, swap};

use crate::reading::*;
use crate::support::board::Tree;

#[test]
fn orin_nano_8gb() {
    let tree = Tree::new("orin-nano-8gb");
    let identity = identity(&tree);
    assert_eq!(identity.kind, Kind::OrinNano8);
    assert_eq!(identity.l4t.unwrap().to_string(), "36.4.3");
    assert_eq!(identity.gpu.as_deref(), Some("Orin"));
    assert_eq!(
        (identity.nodes.present.len(), identity.nodes.missing.len()),
        (9, 0)
    );
    assert_eq!(
        memory::read(&tree.root()),
        Ok(MemInfo {
            total_bytes: 7_802_736 * KIB,
            available_bytes: 6_245_596 * KIB,
            free_bytes: Some(3_668_508 * KIB),
            buffers_bytes: Some(633_812 * KIB),
            cached_bytes: Some(2_193_460 * KIB),
            shmem_bytes: Some(156_444 * KIB),
            slab_reclaimable_bytes: Some(144_568 * KIB),
            swap_total_bytes: Some(3_901_344 * KIB),
            swap_free_bytes: Some(3_608_100 * KIB),
            cma_total_bytes: Some(262_144 * KIB),
            cma_free_bytes: Some(0),
            nvmap_used_bytes: None,
            nvmap_free_bytes: None,
        })
    );
    let page_cache = memory::read(&tree.root()).unwrap().page_cache_bytes();
    assert_eq!(page_cache, Some((633_812 + 2_193_460 - 156_444) * KIB));

    let present = present(&tree);
    assert_eq!(mode(&present), Some(("MAXN_SUPER", NamedBy::Status)));
    assert_eq!(
        (&present.differences[..], faults(&present.faults).len()),
        (&[][..], 0)
    );
    let caps = present.caps;
    assert_eq!((caps.gpu_hz, caps.n_tpcs), (Some(1_020_000_000), Some(4)));
    assert_eq!((caps.emc_hz, caps.n_cores), (Some(3_199_000_000), Some(6)));
    assert_eq!(ranking(&tree), ["7W", "15W", "25W", "MAXN_SUPER"]);

    let snapshot = snapshot(&tree);
    let gpu = snapshot.gpu.unwrap();
    assert_eq!((gpu.load_permille, gpu.hz), (Some(620), Some(612_000_000)));
    assert_eq!(
        (gpu.hz_min, gpu.hz_max),
        (Some(306_000_000), Some(1_020_000_000))
    );
    assert_eq!(
        rails(&snapshot),
        [
            ("VDD_IN", Some(4541)),
            ("VDD_CPU_GPU_CV", Some(521)),
            ("VDD_SOC", Some(1446))
        ]
    );
    assert_eq!(module_milliwatts(&snapshot.rails), Some(4541));
    assert_eq!(snapshot.rails[0].milliamps_crit, Some(4984));
    assert!(!snapshot.rails[0].feeds.has_gpu() && snapshot.rails[1].feeds.has_gpu());
    assert_eq!(celsius(&snapshot)[0], ("cpu-thermal", Some(47.75)));
    assert_eq!(celsius(&snapshot)[2], ("cv0-thermal", None));
    assert_eq!(junction_millicelsius(&snapshot.zones), Some(50_000));
    let trips: Vec<_> = snapshot.zones[8]
        .trips
        .iter()
        .map(|t| (t.kind.as_str(), t.millicelsius))
        .collect();
    assert_eq!(
        trips,
        [
            ("active", 51_000),
            ("passive", 99_000),
            ("critical", 104_500)
        ]
    );
    assert!(
        !snapshot
            .cooling
            .iter()
            .any(|cooling| cooling.is_throttling())
    );
    let counted = OverCurrent {
        under_voltage: Some(0),
        average: Some(0),
        instantaneous: Some(1342),
    };
    assert_eq!(snapshot.over_current, Some(counted));
    let fan = snapshot.fan.unwrap();
    assert_eq!((fan.pwm, fan.rpm), (Some(88), Some(1687)));

    let mut none = Faults::default();
    let swaps = swap::read(&tree.root(), &mut none);
    assert_eq!(swaps.iter().filter(|swap| swap.is_zram()).count(), 6);
    assert_eq!(swaps[0].used_bytes, 48_874 * KIB);
    assert_eq!(swaps[0].memory_bytes, Some(15_204_352));
    let group = cgroup::read(&tree.root(), &mut none).unwrap();
    assert_eq!(
        (group.name.as_str(), group.limit_bytes),
        ("/system.slice/orinoco.service", None)
    );
    assert_eq!(group.current_bytes, Some(27_262_976));
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn orin_nx_16gb() {
    let tree = Tree::new("orin-nx-16gb");
    let identity = identity(&tree);
    assert_eq!(identity.kind, Kind::OrinNx16);
    assert_eq!(identity.l4t.unwrap().jetpack(), Some("6.2.1"));
    assert_eq!(identity.memory_bytes, Some(16_032_112 * KIB));

    let present = present(&tree);
    assert_eq!(mode(&present), Some(("MAXN_SUPER", NamedBy::Status)));
    assert_eq!(present.differences, []);
    assert_eq!(present.caps.gpu_hz, Some(1_173_000_000));
    // By what they allow: 25W is slower in clock than 15W, and has twice the clusters.
    assert_eq!(ranking(&tree), ["10W", "15W", "25W", "40W", "MAXN_SUPER"]);

    let snapshot = snapshot(&tree);
    assert_eq!(snapshot.gpu.unwrap().load_permille, Some(70));
    assert_eq!(
        rails(&snapshot),
        [
            ("VDD_IN", Some(12_673)),
            ("VDD_CPU_GPU_CV", Some(7050)),
            ("VDD_SOC", Some(2121))
        ]
    );
    assert_eq!(junction_millicelsius(&snapshot.zones), Some(58_937));
    assert!(
        celsius(&snapshot)
            .iter()
            .all(|(_, celsius)| celsius.is_some())
    );
}

#[test]
fn agx_orin_64gb() {
    let tree = Tree::new("agx-orin-64gb");
    assert_eq!(identity(&tree).kind, Kind::Agx64);
    let present = present(&tree);
    assert_eq!(mode(&present), Some(("MODE_30W", NamedBy::Status)));
    assert_eq!(present.differences, []);
    let caps = present.caps;
    assert_eq!((caps.gpu_hz, caps.n_tpcs), (Some(612_000_000), Some(4)));
    assert_eq!((caps.n_cores, caps.cpu_khz), (Some(8), Some(1_728_000)));
    assert_eq!(ranking(&tree), ["MODE_15W", "MODE_30W", "MODE_50W", "MAXN"]);

    // No input rail: the sum. Channels that are not connected are no rails. The idle GPU has no sensor.
    let snapshot = snapshot(&tree);
    assert_eq!(
        rails(&snapshot),
        [
            ("VDD_GPU_SOC", Some(2388)),
            ("VDD_CPU_CV", Some(397)),
            ("VIN_SYS_5V0", Some(3824)),
            ("VDDQ_VDD2_1V8AO", Some(402)),
        ]
    );
    assert_eq!(module_milliwatts(&snapshot.rails), Some(7011));
    assert_eq!(celsius(&snapshot)[1], ("gpu-thermal", None));
    assert_eq!(celsius(&snapshot)[10], ("tdiode-thermal", Some(36.0)));
}

#[test]
fn modes_set_as_nvpmodel_sets_them_are_in_force_on_every_board() {
    for board in ["orin-nano-8gb", "orin-nx-16gb", "agx-orin-64gb"] {
        let tree = Tree::new(board);
        let mut probe = PowerProbe::new(&tree.root(), None);
        for name in ranking(&tree) {
            tree.set_mode(&name);
            let present = probe.read(None);
            assert_eq!(
                mode(&present),
                Some((name.as_str(), NamedBy::Status)),
                "{board}"
            );
            assert_eq!(present.differences, [], "{board} {name}");
            assert_eq!(present.looks_like, None, "{board} {name}");
        }
    }
}

#[test]
fn the_memory_of_this_machine_is_read_again_and_again() {
    let mut probe = MemoryProbe::new(&Root::live());
    let first = probe.read().unwrap();
    for _ in 0..100 {
        assert_eq!(probe.read().unwrap().total_bytes, first.total_bytes);
    }
}
