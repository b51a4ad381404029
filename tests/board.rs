//! What is read from the three boards, from each broken variant, and while the power mode changes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use orinoco::board::identity::{self, Identity, Kind, Unsupported};
use orinoco::board::memory::{self, MemInfo, MemoryProbe};
use orinoco::board::nvpmodel::{self, query};
use orinoco::board::power::{NamedBy, PowerProbe, Present};
use orinoco::board::pressure::PressureProbe;
use orinoco::board::rails::module_milliwatts;
use orinoco::board::sensors::{Sensors, Snapshot};
use orinoco::board::thermal::junction_millicelsius;
use orinoco::board::throttle::OverCurrent;
use orinoco::board::watch::{PowerWatch, WatchConfig};
use orinoco::board::{Faults, Root, cgroup, swap};
use orinoco::config::{Sources, load, shipped_profiles};
use orinoco::selection::{Site, candidates};
use support::board::Tree;
use tokio::sync::watch;

const KIB: u64 = 1024;

fn identity(tree: &Tree) -> Identity {
    let mut faults = Faults::default();
    let identity = identity::read(&tree.root(), &mut faults);
    assert!(faults.is_empty(), "{faults:?}");
    identity
}

fn snapshot(tree: &Tree) -> Snapshot {
    let mut faults = Faults::default();
    let snapshot = Sensors::find(&tree.root(), &mut faults).read();
    assert!(faults.is_empty(), "{faults:?}");
    snapshot
}

fn present(tree: &Tree) -> Present {
    let mut faults = Faults::default();
    let module = identity::read(&tree.root(), &mut faults).module;
    PowerProbe::new(&tree.root(), module).read(None)
}

fn mode(present: &Present) -> Option<(&str, NamedBy)> {
    let mode = present.mode.as_ref()?;
    Some((&mode.name, present.named_by))
}

fn faults(faults: &Faults) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// Names of the modes of a board, the slowest first.
fn ranking(tree: &Tree) -> Vec<String> {
    let limits = present(tree).limits;
    let table = nvpmodel::read_table(&tree.root(), "/etc/nvpmodel.conf");
    let mut modes = table.unwrap().unwrap().modes;
    modes.sort_by_key(|mode| mode.caps().within(&limits).rank());
    modes.into_iter().map(|mode| mode.name).collect()
}

/// Label and milliwatts of each rail.
fn rails(snapshot: &Snapshot) -> Vec<(&str, Option<i64>)> {
    let rails = snapshot.rails.iter();
    rails
        .map(|rail| (rail.name.as_str(), rail.milliwatts()))
        .collect()
}

fn celsius(snapshot: &Snapshot) -> Vec<(&str, Option<f32>)> {
    let zones = snapshot.zones.iter();
    zones
        .map(|zone| (zone.name.as_str(), zone.celsius()))
        .collect()
}

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
fn memory_variants() {
    let read = |name: &str| memory::read(&Tree::new(name).root());
    assert_eq!(read("memory-low").unwrap().available_bytes, 203_116 * KIB);
    let nvmap = read("memory-nvmap").unwrap();
    assert_eq!(
        (nvmap.nvmap_used_bytes, nvmap.nvmap_free_bytes),
        (Some(1_894_208 * KIB), Some(262_144 * KIB))
    );
    let yocto = read("yocto").unwrap();
    assert_eq!(
        (yocto.swap_total_bytes, yocto.swap_used_bytes()),
        (Some(0), Some(0))
    );
    let error = |name: &str| read(name).unwrap_err().to_string();
    assert_eq!(
        error("memory-truncated"),
        "/proc/meminfo:2: found \"MemFree:\", expected a number and kB"
    );
    assert_eq!(
        error("memory-missing"),
        "read /proc/meminfo: No such file or directory (os error 2)"
    );
    assert_eq!(
        error("memory-absurd"),
        "/proc/meminfo:1: found \"MemAvailable 102399999998976 bytes\", \
         expected at most MemTotal, 7990001664 bytes, and that more than 0"
    );
}

#[test]
fn pressure_is_read_where_the_kernel_has_it() {
    let read = |name: &str| PressureProbe::new(&Tree::new(name).root()).read().unwrap();
    assert_eq!(read("orin-nano-8gb"), None);
    let pressure = read("pressure").unwrap();
    assert_eq!(pressure.some.avg10_percent, 12.5);
    assert_eq!(pressure.some.total, Duration::from_micros(8_124_412));
    assert_eq!(pressure.full.unwrap().avg60_percent, 1.0);
}

#[test]
fn the_lowest_limit_of_all_groups_above_holds() {
    let tree = Tree::new("cgroup-limit");
    let group = cgroup::read(&tree.root(), &mut Faults::default()).unwrap();
    assert_eq!(group.limit_bytes, Some(2 << 30));
    assert_eq!(group.high_bytes, None);
}

#[test]
fn status_variants() {
    let named = |name: &str| {
        let present = present(&Tree::new(name));
        let shown = mode(&present).map(|(name, by)| (name.to_owned(), by));
        (shown, faults(&present.faults))
    };
    let maxn = Some(("MAXN_SUPER".to_owned(), NamedBy::Status));
    assert_eq!(named("status-jetpack-4"), (maxn, vec![]));
    let default = Some(("40W".to_owned(), NamedBy::Default));
    assert_eq!(named("status-missing"), (default, vec![]));
    let expected = "expected pmode: and a number";
    for (name, found) in [("status-empty", ""), ("status-garbage", "pmode:")] {
        let fault = format!("/var/lib/nvpmodel/status:1: found {found:?}, {expected}");
        assert_eq!(named(name), (None, vec![fault]), "{name}");
    }
    let fault = "/var/lib/nvpmodel/status:1: found \"pmode:0099\", \
                 expected the id of a mode in the table: 0, 1, 2, 3, 4";
    assert_eq!(named("status-unknown-id"), (None, vec![fault.to_owned()]));
}

#[test]
fn clocks_in_force_decide_when_the_status_lies() {
    let present = present(&Tree::new("status-lies"));
    assert_eq!(mode(&present), Some(("25W", NamedBy::Status)));
    assert_eq!(present.differences.len(), 2);
    assert_eq!(present.effective_mode().unwrap().name, "MAXN_SUPER");
    assert_eq!(present.caps.gpu_hz, Some(1_173_000_000));
}

#[test]
fn table_variants() {
    let named = |name: &str| {
        let present = present(&Tree::new(name));
        assert_eq!(faults(&present.faults), [""; 0], "{name}");
        let shown = mode(&present).map(|(name, by)| (name.to_owned(), by));
        shown.unwrap_or_default_for(name)
    };
    assert_eq!(named("conf-crlf"), ("MAXN_SUPER".into(), NamedBy::Status));
    // No link in /etc yet: the file of this module, "super" because the board says so.
    assert_eq!(
        named("conf-no-link"),
        ("MAXN_SUPER".into(), NamedBy::Status)
    );
    assert_eq!(
        named("conf-before-super-nano"),
        ("7W".into(), NamedBy::Status)
    );
    assert_eq!(
        named("conf-before-super-nx"),
        ("MAXN".into(), NamedBy::Status)
    );
    assert_eq!(named("yocto"), ("25W".into(), NamedBy::Default));

    let fault = |name: &str| faults(&present(&Tree::new(name)).faults);
    assert_eq!(
        fault("conf-duplicate-id"),
        [
            "/etc/nvpmodel.conf:84: found \"< POWER_MODEL ID=0 NAME=7W >\", \
          expected at most 64 modes, each id once"
        ]
    );
    assert_eq!(
        fault("conf-cut"),
        ["/etc/nvpmodel.conf:64: found \"91x\", expected a number from -1 to 9223372036854775807"]
    );
    let no_default = present(&Tree::new("conf-no-default"));
    assert_eq!(
        (no_default.mode, no_default.named_by),
        (None, NamedBy::Nobody)
    );
    // What is in force is known all the same.
    assert_eq!(no_default.caps.gpu_hz, Some(1_020_000_000));
}

trait Named {
    fn unwrap_or_default_for(self, name: &str) -> (String, NamedBy);
}

impl Named for Option<(String, NamedBy)> {
    fn unwrap_or_default_for(self, name: &str) -> (String, NamedBy) {
        self.unwrap_or_else(|| panic!("{name}: no mode"))
    }
}

#[test]
fn an_agx_on_jetpack_5_is_read_at_its_other_paths() {
    let tree = Tree::new("agx-r35");
    let identity = identity(&tree);
    assert_eq!(identity.l4t.unwrap().jetpack(), Some("5"));
    assert_eq!(
        (identity.nodes.present.len(), identity.nodes.missing.len()),
        (5, 0)
    );
    let present = present(&tree);
    assert_eq!(mode(&present), Some(("MODE_30W", NamedBy::Status)));
    assert_eq!((present.differences, present.caps.emc_hz), (vec![], None));
    assert_eq!(present.caps.gpu_hz, Some(624_750_000));
    assert_eq!(snapshot(&tree).gpu.unwrap().load_permille, Some(12));
}

#[test]
fn sensor_variants() {
    let negative = snapshot(&Tree::new("agx-negative-rail"));
    assert_eq!(rails(&negative)[1], ("VDD_CPU_CV", Some(-398)));

    // A sum without one of its parts would look like a saving.
    let broken = snapshot(&Tree::new("rail-unreadable"));
    assert_eq!(rails(&broken)[1], ("VDD_CPU_CV", None));
    assert_eq!(module_milliwatts(&broken.rails), None);
    assert_eq!(
        faults(&broken.faults),
        [
            "/sys/class/hwmon/hwmon1/curr2_input:1: found \"\", expected a number from -1000000 to 1000000"
        ]
    );

    let absurd = snapshot(&Tree::new("load-absurd"));
    assert_eq!(absurd.gpu.unwrap().load_permille, None);
    assert_eq!(
        faults(&absurd.faults),
        [
            "/sys/class/devfreq/17000000.gpu/device/load:1: found \"1700\", expected a number from 0 to 1000"
        ]
    );

    let off = snapshot(&Tree::new("zone-off"));
    assert_eq!(celsius(&off)[1], ("gpu-thermal", None));
    assert!(off.faults.is_empty());
}

#[test]
fn a_gpu_node_that_appears_after_boot_is_found_later() {
    let tree = Tree::new("no-gpu-node");
    let mut none = Faults::default();
    let mut sensors = Sensors::find(&tree.root(), &mut none);
    assert_eq!(sensors.read().gpu, None);
    let dir = "sys/devices/platform/17000000.gpu";
    tree.write(&format!("{dir}/load"), "5\n");
    tree.write(
        &format!("{dir}/devfreq/17000000.gpu/cur_freq"),
        "306000000\n",
    );
    sensors.find_missing(&mut none);
    let gpu = sensors.read().gpu.unwrap();
    assert_eq!(
        (gpu.load_permille, gpu.hz, gpu.hz_max),
        (Some(5), Some(306_000_000), None)
    );
}

#[test]
fn boards_that_are_not_served_say_why() {
    for (name, why) in [
        ("nano-2019", Unsupported::NanoTx1),
        ("tx2", Unsupported::Tx2),
        ("xavier-nx", Unsupported::Xavier),
    ] {
        let kind = identity(&Tree::new(name)).kind;
        assert_eq!(kind, Kind::Unsupported(why), "{name}");
        assert!(!kind.has_gpu() && why.reason().contains("CUDA"));
    }
}

#[test]
fn machines_around_the_board() {
    let pc = identity(&Tree::new("pc"));
    assert_eq!((pc.kind, pc.kind.has_gpu()), (Kind::NvidiaPc, true));
    assert_eq!(pc.gpu.as_deref(), Some("NVIDIA GeForce RTX 3070 Ti"));
    assert_eq!(pc.nodes.missing, ["/dev/nvidia-uvm"]);

    let container = identity(&Tree::new("container"));
    assert_eq!(container.container.as_deref(), Some("/.dockerenv"));
    assert!(container.lacks_container_runtime());

    let dead = identity(&Tree::new("gpu-dead"));
    assert!(
        dead.nodes
            .missing
            .contains(&"/dev/nvgpu/igpu0/ctrl".to_owned())
    );
    assert!(!dead.lacks_container_runtime());

    let yocto = identity(&Tree::new("yocto"));
    assert_eq!(
        (yocto.kind, yocto.l4t.unwrap().to_string()),
        (Kind::OrinNano8, "36.5.0".into())
    );

    let empty = identity::read(&Root::new("/nonexistent"), &mut Faults::default());
    assert_eq!((empty.kind, empty.memory_bytes), (Kind::NoGpu, None));
}

#[test]
fn every_variant_can_be_read_as_a_whole() {
    for name in Tree::variants() {
        let tree = Tree::new(&name);
        let mut faults = Faults::default();
        let identity = identity::read(&tree.root(), &mut faults);
        let present = PowerProbe::new(&tree.root(), identity.module).read(None);
        let snapshot = Sensors::find(&tree.root(), &mut faults).read();
        let n_faults = [&faults, &present.faults, &snapshot.faults].map(|f| f.iter().count());
        assert!(
            n_faults.iter().sum::<usize>() <= 1,
            "{name}: one thing is broken at most"
        );
    }
}

/// Model and sequences in each mode, with every model of the profiles at hand and all of it fitting.
fn choices(board: &str) -> Vec<String> {
    let tree = Tree::new(board);
    let profiles = shipped_profiles(board);
    let models = profiles
        .values()
        .map(|profile| profile.model.clone())
        .collect();
    let config = load(&Sources::defaults()).unwrap().power;
    let mut shown = Vec::new();
    for name in ranking(&tree) {
        tree.set_mode(&name);
        let site = Site {
            caps: present(&tree).caps,
            mode: Some(&name),
            models: &models,
            n_seq_max: 8,
            fits: &|_| true,
            pinned: None,
        };
        let best = candidates(&config, &profiles, &[], &site).remove(0);
        shown.push(format!("{name}: {} x{}", best.model, best.n_seq_max));
    }
    shown
}

#[test]
fn shipped_profiles_give_every_mode_its_model() {
    assert_eq!(
        choices("orin-nano-8gb"),
        [
            "7W: Qwen3-1.7B-Q4_K_M x2",
            "15W: Qwen3-1.7B-Q4_K_M x4",
            "25W: Llama-3.2-3B-Instruct-Q4_K_M x4",
            "MAXN_SUPER: Llama-3.2-3B-Instruct-Q4_K_M x4",
        ]
    );
    assert_eq!(
        choices("orin-nx-16gb"),
        [
            "10W: Qwen3-1.7B-Q4_K_M x4",
            "15W: Qwen3-1.7B-Q4_K_M x4",
            "25W: Llama-3.2-3B-Instruct-Q4_K_M x2",
            "40W: Hermes-3-Llama-3.1-8B.Q4_K_M x4",
            "MAXN_SUPER: Hermes-3-Llama-3.1-8B.Q4_K_M x4",
        ]
    );
    assert_eq!(
        choices("agx-orin-64gb"),
        [
            "MODE_15W: Qwen3-1.7B-Q4_K_M x8",
            "MODE_30W: Llama-3.2-3B-Instruct-Q4_K_M x8",
            "MODE_50W: Hermes-3-Llama-3.1-8B.Q4_K_M x8",
            "MAXN: Hermes-3-Llama-3.1-8B.Q4_K_M x8",
        ]
    );
}

#[test]
fn shipped_profiles_fit_their_board() {
    // What the board has to give less what must stay free (7 % of memory, at least 512 MiB).
    for board in ["orin-nano-8gb", "agx-orin-64gb"] {
        let memory = memory::read(&Tree::new(board).root()).unwrap();
        let reserve = (memory.total_bytes / 100 * 7).max(512 << 20);
        for (name, profile) in shipped_profiles(board) {
            let needs = profile.memory_bytes.unwrap().value;
            assert!(needs + reserve <= memory.available_bytes, "{board} {name}");
        }
    }
}

// ---- while the mode changes ------------------------------------------------------------------------

/// Far beyond what the watch promises, so that a loaded machine fails no test, and an endless wait does.
const PATIENCE: Duration = Duration::from_secs(20);

/// An hour between looks: what is noticed is noticed by inotify.
fn by_notice(tree: &Tree) -> watch::Receiver<Present> {
    spawn(tree, |config| config.poll = Duration::from_secs(3600))
}

/// No inotify: what is noticed is noticed by looking.
fn by_polling(tree: &Tree) -> watch::Receiver<Present> {
    spawn(tree, |config| config.is_notified = false)
}

fn spawn(tree: &Tree, change: impl FnOnce(&mut WatchConfig)) -> watch::Receiver<Present> {
    let mut config = WatchConfig::new(&tree.root());
    assert_eq!(
        (config.poll, config.query.is_none()),
        (Duration::from_millis(500), true)
    );
    change(&mut config);
    let (watch, receiver) = PowerWatch::new(&tree.root(), None, config);
    tokio::spawn(watch.run());
    receiver
}

async fn named(receiver: &mut watch::Receiver<Present>, name: &str, by: NamedBy) -> Duration {
    let start = Instant::now();
    let is_there = |present: &Present| mode(present) == Some((name, by));
    let waited = tokio::time::timeout(PATIENCE, receiver.wait_for(is_there)).await;
    match waited {
        Ok(present) => drop(present.unwrap()),
        Err(_) => panic!("waited for {name}"),
    }
    start.elapsed()
}

/// Lets the watch place its first inotify watch: it runs on this same thread.
async fn is_watching() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_rewritten_status_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        let mut present = watch(&tree);
        assert_eq!(
            mode(&present.borrow()),
            Some(("MAXN_SUPER", NamedBy::Status))
        );
        is_watching().await;
        tree.set_mode("25W");
        named(&mut present, "25W", NamedBy::Status).await;
        tree.set_mode("40W");
        let took = named(&mut present, "40W", NamedBy::Status).await;
        // Promised within a second; the rest is for a loaded machine.
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_eq!(present.borrow().caps.gpu_hz, Some(1_173_000_000));
    }
}

#[tokio::test]
async fn a_replaced_removed_and_returning_status_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        let mut present = watch(&tree);
        is_watching().await;
        tree.replace(nvpmodel::STATUS, "pmode:0003\n");
        named(&mut present, "25W", NamedBy::Status).await;
        tree.remove(nvpmodel::STATUS);
        named(&mut present, "40W", NamedBy::Default).await;
        tree.replace(nvpmodel::STATUS, "pmode:0002\n");
        named(&mut present, "15W", NamedBy::Status).await;
    }
}

#[tokio::test]
async fn a_directory_that_comes_later_is_noticed_both_ways() {
    for watch in [by_notice, by_polling] {
        let tree = Tree::new("orin-nx-16gb");
        tree.remove("var/lib");
        let mut present = watch(&tree);
        assert_eq!(mode(&present.borrow()), Some(("40W", NamedBy::Default)));
        is_watching().await;
        tree.write(nvpmodel::STATUS, "pmode:0001\n");
        named(&mut present, "10W", NamedBy::Status).await;
        tree.remove("var/lib/nvpmodel");
        named(&mut present, "40W", NamedBy::Default).await;
        tree.write(nvpmodel::STATUS, "pmode:0003\n");
        named(&mut present, "25W", NamedBy::Status).await;
    }
}

#[tokio::test]
async fn clocks_that_change_alone_are_noticed_by_polling() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_polling(&tree);
    tree.write("sys/devices/system/cpu/online", "0-3\n");
    let changed = present.wait_for(|present| present.caps.n_cores == Some(4));
    tokio::time::timeout(PATIENCE, changed)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(present.borrow().differences.len(), 1);
}

#[tokio::test]
async fn a_status_caught_half_written_is_not_believed_at_once() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_notice(&tree);
    is_watching().await;
    tree.write(nvpmodel::STATUS, "pmo");
    // Nothing must happen, which only time can show.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!present.has_changed().unwrap(), "{:?}", present.borrow());
    tree.write(nvpmodel::STATUS, "pmode:0003\n");
    named(&mut present, "25W", NamedBy::Status).await;
}

#[tokio::test]
async fn a_status_that_stays_broken_is_told() {
    let tree = Tree::new("orin-nx-16gb");
    let mut present = by_polling(&tree);
    tree.write(nvpmodel::STATUS, "broken\n");
    let is_told = present.wait_for(|present| present.is_status_bad());
    tokio::time::timeout(PATIENCE, is_told)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(present.borrow().named_by, NamedBy::Nobody);
    // What is in force is known all the same.
    assert_eq!(present.borrow().caps.gpu_hz, Some(1_173_000_000));
}

#[tokio::test]
async fn the_tool_is_asked_when_the_status_does_not_help() {
    let tree = Tree::new("status-garbage");
    let mut present = spawn(&tree, |config| config.query = Some(tool("answers")));
    named(&mut present, "15W", NamedBy::Query).await;
    tree.write(nvpmodel::STATUS, "pmode:0003\n");
    named(&mut present, "25W", NamedBy::Status).await;
}

#[tokio::test]
async fn a_tool_that_hangs_floods_or_is_missing_is_given_up() {
    let ask = async |name: &str, limit_ms| {
        let asked = query::ask(&tool(name), Duration::from_millis(limit_ms)).await;
        asked.unwrap_err().to_string()
    };
    let error = ask("missing", 5000).await;
    assert!(
        error.ends_with("No such file or directory (os error 2)"),
        "{error}"
    );
    let error = ask("hangs", 50).await;
    assert!(error.ends_with("no answer within 50 ms"), "{error}");
    let error = ask("floods", 5000).await;
    assert!(error.contains("found \"end of file\""), "{error}");
}

/// Stands in for NVIDIA's nvpmodel.
fn tool(name: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boards/tools");
    tools.join(name)
}

// ---- the machine itself ----------------------------------------------------------------------------

#[test]
fn the_memory_of_this_machine_is_read_again_and_again() {
    let mut probe = MemoryProbe::new(&Root::live());
    let first = probe.read().unwrap();
    for _ in 0..100 {
        assert_eq!(probe.read().unwrap().total_bytes, first.total_bytes);
    }
}
