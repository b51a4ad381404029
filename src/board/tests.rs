//! No bytes make a parser panic, and none give a value that cannot be.

use proptest::prelude::*;

use super::*;

/// Bytes that look like what a board writes: its own words, cut, mixed and damaged.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "MemTotal:",
        "MemAvailable:",
        "MemFree:",
        "SwapTotal:",
        "kB",
        "some",
        "full",
        "avg10=",
        "total=",
        "0",
        "1",
        "-1",
        "18446744073709551615",
        "9223372036854775808",
        "99999999999999999999",
        "0.5",
        "nan",
        "inf",
        "-0",
        "1e309",
        "<",
        ">",
        "POWER_MODEL",
        "PM_CONFIG",
        "ID=",
        "ID=1",
        "NAME=",
        "NAME=25W",
        "DEFAULT=1",
        "CPU_ONLINE",
        "CORE_0",
        "TPC_POWER_GATING",
        "TPC_PG_MASK",
        "GPU",
        "EMC",
        "CPU_A78_0",
        "MAX_FREQ",
        "pmode:",
        "pmode:0001",
        "NV Power Mode:",
        "# R36 (release), REVISION:",
        "4.7,",
        "#",
        "R",
        "/dev/zram0",
        "partition",
        "0::/",
        "4:memory:/a/../b",
        ":",
        "=",
        ",",
        "-",
        "0-7",
        "\r",
        "\0",
        "é",
        "nvidia,p3767-0005-super",
        "nvidia,p3767-é000",
        "nvidia,tegra234",
        "max",
    ];
    let word = prop::sample::select(WORDS).prop_map(|word| word.as_bytes().to_vec());
    let gap = prop::sample::select(&[" ", "\n", "", "\t", "\0"][..])
        .prop_map(|gap| gap.as_bytes().to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..8);
    let part = prop_oneof![6 => word, 5 => gap, 1 => noise];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in bytes()) {
        if let Ok(info) = memory::parse(&bytes) {
            prop_assert!(info.available_bytes <= info.total_bytes);
        }
        if let Ok(pressure) = pressure::parse(&bytes) {
            prop_assert!((0.0..=100.0).contains(&pressure.some.avg10_percent));
        }
        if let Ok(table) = nvpmodel::parse(&bytes) {
            for mode in &table.modes {
                let _ = (mode.watts(), mode.caps().rank());
            }
        }
        let _ = nvpmodel::parse_status(&bytes);
        let _ = nvpmodel::query::parse(&bytes);
        let _ = swap::parse(&bytes);
        let _ = swap::parse_mm_stat(&bytes);
        let _ = l4t::parse(&bytes);
        let _ = gpu::parse_clocks(&bytes);
        let _ = text::line(&bytes);
    }
}

proptest! {
    // Each case writes dozens of files.
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// The same through files, where directories, numbers and labels are made up too.
    #[test]
    fn no_tree_makes_a_reader_panic(contents in prop::collection::vec(bytes(), PATHS.len())) {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in PATHS.iter().zip(contents) {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let root = Root::new(dir.path());
        let mut faults = Faults::default();
        let identity = identity::read(&root, &mut faults);
        let _ = power::PowerProbe::new(&root, identity.module).read(None);
        let _ = sensors::Sensors::find(&root, &mut faults).read();
        let _ = swap::read(&root, &mut faults);
        let _ = cgroup::read(&root, &mut faults);
    }
}

const PATHS: &[&str] = &[
    "proc/meminfo",
    "proc/swaps",
    "proc/self/cgroup",
    "proc/1/cgroup",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "var/lib/nvpmodel/conf_file_path",
    "sys/block/zram0/mm_stat",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/present",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/17000000.gpu/tpc_pg_mask",
    "sys/devices/platform/17000000.gpu/devfreq/17000000.gpu/max_freq",
    "sys/devices/platform/17000000.gpu/devfreq/17000000.gpu/available_frequencies",
    "sys/kernel/nvpmodel_clk_cap/emc",
    "sys/class/thermal/thermal_zone0/type",
    "sys/class/thermal/thermal_zone0/temp",
    "sys/class/thermal/thermal_zone0/trip_point_0_type",
    "sys/class/thermal/thermal_zone0/trip_point_0_temp",
    "sys/class/thermal/cooling_device0/type",
    "sys/class/thermal/cooling_device0/max_state",
    "sys/class/thermal/cooling_device0/cur_state",
    "sys/class/hwmon/hwmon0/name",
];
