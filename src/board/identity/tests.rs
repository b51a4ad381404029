use super::*;

fn compatible(text: &str) -> Vec<String> {
    parse_compatible(text.as_bytes()).unwrap()
}

#[test]
fn the_module_is_found_behind_any_carrier_board() {
    let module_of = |text: &str| compatible(text).iter().find_map(|entry| module(entry));
    let nano = Module {
        family: 3767,
        sku: 5,
        is_super: true,
    };
    let devkit = "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0";
    assert_eq!(module_of(devkit), Some(nano));
    let other = "acme,box-7\0acme,box+p3767-0001\0nvidia,tegra234\0";
    assert_eq!(
        module_of(other).map(|m| (m.sku, m.is_super)),
        Some((1, false))
    );
    assert_eq!(
        module_of("nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0"),
        None
    );
    assert_eq!(module_of("nvidia,p3767-0"), None);
}

#[test]
fn numbers_of_modules_are_kinds_of_boards() {
    let kind = |family, sku, gib: u64| {
        let module = Module {
            family,
            sku,
            is_super: false,
        };
        module.kind(Some(gib << 30))
    };
    for (family, sku, gib, expected) in [
        (3767, 0, 15, Kind::OrinNx16),
        (3767, 1, 7, Kind::OrinNx8),
        (3767, 3, 7, Kind::OrinNano8),
        (3767, 5, 7, Kind::OrinNano8),
        (3767, 4, 3, Kind::OrinNano4),
        (3767, 9, 7, Kind::OrinOther),
        (3701, 4, 30, Kind::Agx32),
        (3701, 0, 30, Kind::Agx32),
        (3701, 0, 61, Kind::Agx64),
        (3701, 5, 61, Kind::Agx64),
    ] {
        assert_eq!(kind(family, sku, gib), expected, "p{family}-{sku:04}");
    }
}

#[test]
fn files_of_modes_are_named_after_the_module() {
    let stem = |family, sku| {
        let module = Module {
            family,
            sku,
            is_super: true,
        };
        module.conf_stem().unwrap()
    };
    assert_eq!(stem(3767, 5), "nvpmodel_p3767_0003");
    assert_eq!(stem(3767, 0), "nvpmodel_p3767_0000");
    assert_eq!(stem(3701, 5), "nvpmodel_p3701_0000");
    assert_eq!(stem(3701, 4), "nvpmodel_p3701_0004");
}

#[test]
fn a_device_tree_that_is_no_text_is_refused() {
    assert!(parse_compatible(b"nvidia,\xff\xfe\0").is_err());
    assert!(parse_compatible(&[b'a'; COMPATIBLE_BYTES_MAX + 1]).is_err());
    assert_eq!(parse_compatible(b""), Ok(vec![]));
}

#[test]
fn a_clock_before_this_software_was_never_set() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert!(!is_clock_set(at(0)));
    assert!(!is_clock_set(at(1_704_067_199)));
    assert!(is_clock_set(at(1_704_067_200)));
    assert!(!is_clock_set(
        SystemTime::UNIX_EPOCH - Duration::from_secs(1)
    ));
}

#[test]
fn this_machine_is_read_without_complaint() {
    let mut faults = Faults::default();
    let identity = read(&Root::live(), &mut faults);
    assert!(identity.memory_bytes.unwrap() > 0);
    assert!(faults.is_empty(), "{faults:?}");
}
