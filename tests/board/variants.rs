//! Golden values of what is different or broken.

use std::time::Duration;

use orinoco::board::identity::{self, Kind, Unsupported};
use orinoco::board::memory;
use orinoco::board::power::{NamedBy, PowerProbe};
use orinoco::board::pressure::PressureProbe;
use orinoco::board::rails::module_milliwatts;
use orinoco::board::sensors::Sensors;
use orinoco::board::{Faults, Root, cgroup};

use crate::reading::*;
use crate::support::board::Tree;

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
