use proptest::prelude::*;

use super::*;

fn caps() -> impl Strategy<Value = Caps> {
    let clock = || prop::option::of(0..4u64);
    let count = || prop::option::of(0..4u32);
    (clock(), count(), clock(), count(), clock()).prop_map(
        |(gpu_hz, n_tpcs, emc_hz, n_cores, cpu_khz)| Caps {
            gpu_hz: gpu_hz.map(|n| n * 306_000_000),
            n_tpcs: n_tpcs.map(|n| n * 2),
            emc_hz: emc_hz.map(|n| n * 1_000_000_000),
            n_cores: n_cores.map(|n| n * 4),
            cpu_khz: cpu_khz.map(|n| n * 700_000),
        },
    )
}

fn nx(gpu_mhz: u64, n_tpcs: u32, emc_mhz: u64, n_cores: u32) -> Caps {
    Caps {
        gpu_hz: Some(gpu_mhz * 1_000_000),
        n_tpcs: Some(n_tpcs),
        emc_hz: Some(emc_mhz * 1_000_000),
        n_cores: Some(n_cores),
        cpu_khz: Some(1_497_600),
    }
}

#[test]
fn clock_times_clusters_decides_then_memory_then_cores() {
    let order = [
        nx(306, 3, 3199, 8),
        nx(612, 2, 2133, 8),
        nx(612, 2, 3199, 4),
        nx(612, 2, 3199, 8),
        nx(408, 4, 3199, 8),
        nx(1173, 4, 3199, 8),
    ];
    for pair in order.windows(2) {
        assert!(pair[0].rank() < pair[1].rank(), "{pair:?}");
    }
}

#[test]
fn no_cap_is_the_hardwares_own_limit() {
    let limits = nx(1173, 4, 3199, 8);
    let no_cap = Caps::default().within(&limits);
    assert_eq!(no_cap, limits);
    assert_eq!(no_cap.rank(), limits.rank());
    let beyond = nx(9999, 8, 9999, 12).within(&limits);
    assert_eq!(
        beyond,
        Caps {
            cpu_khz: limits.cpu_khz,
            ..limits
        }
    );
}

#[test]
fn clocks_beside_the_grid_are_the_same_and_other_modes_are_not() {
    let named = nx(624, 4, 3199, 8);
    assert_eq!(named.differences(&nx(612, 4, 3199, 8)), []);
    let difference = Difference {
        what: Cap::GpuHz,
        named: 624_000_000,
        live: 510_000_000,
    };
    assert_eq!(named.differences(&nx(510, 4, 3199, 8)), [difference]);
    let what: Vec<Cap> = named
        .differences(&nx(1173, 2, 2133, 4))
        .iter()
        .map(|difference| difference.what)
        .collect();
    assert_eq!(what, [Cap::GpuHz, Cap::Tpcs, Cap::EmcHz, Cap::Cores]);
    assert_eq!(named.differences(&Caps::default()), []);
}

proptest! {
    #[test]
    fn ranking_is_a_total_order(a in caps(), b in caps(), c in caps()) {
        let [a, b, c] = [a.rank(), b.rank(), c.rank()];
        prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
        if a <= b && b <= c {
            prop_assert!(a <= c);
        }
    }

    #[test]
    fn raising_one_cap_never_lowers_the_rank(caps in caps(), which in 0..5usize) {
        let mut raised = caps;
        match which {
            0 => raised.gpu_hz = caps.gpu_hz.map(|hz| hz + 1),
            1 => raised.n_tpcs = caps.n_tpcs.map(|n| n + 1),
            2 => raised.emc_hz = caps.emc_hz.map(|hz| hz + 1),
            3 => raised.n_cores = caps.n_cores.map(|n| n + 1),
            _ => raised.cpu_khz = caps.cpu_khz.map(|khz| khz + 1),
        }
        prop_assert!(raised.rank() >= caps.rank());
    }

    #[test]
    fn limits_never_raise_a_rank_and_hold_once_for_all(caps in caps(), limits in caps()) {
        let within = caps.within(&limits);
        prop_assert_eq!(within.within(&limits), within);
        prop_assert!(within.rank() <= caps.rank() || caps.n_tpcs.is_none());
    }

    #[test]
    fn caps_do_not_differ_from_themselves(caps in caps()) {
        prop_assert_eq!(caps.differences(&caps), vec![]);
    }
}
