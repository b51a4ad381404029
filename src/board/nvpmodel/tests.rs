use proptest::prelude::*;

use super::query::Answer;
use super::*;

const TABLE: &str = "\
# comment
< PARAM TYPE=CLOCK NAME=GPU >
MAX_FREQ /sys/devices/platform/17000000.gpu/devfreq_dev/max_freq

< POWER_MODEL ID=3 NAME=25W >
CPU_ONLINE CORE_0 1
CPU_ONLINE CORE_1 1
CPU_ONLINE CORE_2 0
TPC_POWER_GATING TPC_PG_MASK 252
CPU_A78_0 MIN_FREQ 729600
CPU_A78_0 MAX_FREQ 1497600
GPU MIN_FREQ 0
GPU MAX_FREQ 408000000
EMC MAX_FREQ 3199000000
GPU_POWER_CONTROL_DISABLE GPU_PWR_CNTL_DIS auto
< POWER_MODEL ID=0 NAME=MAXN_SUPER >
CPU_A78_0 MAX_FREQ -1
CPU_A78_1 MAX_FREQ 1497600
GPU MAX_FREQ -1
EMC MAX_FREQ 0
< PM_CONFIG DEFAULT=3 >
";

fn shown(table: &str) -> String {
    let error = parse(table.as_bytes()).unwrap_err();
    error.in_file("/etc/nvpmodel.conf").to_string()
}

#[test]
fn modes_have_cores_clocks_and_clusters_and_the_file_a_default() {
    let table = parse(TABLE.as_bytes()).unwrap();
    let [slow, free] = &table.modes[..] else {
        panic!("{table:?}")
    };
    assert_eq!(table.default_mode(), Some(slow));
    assert_eq!(
        (slow.id, slow.name.as_str(), slow.n_cores),
        (3, "25W", Some(2))
    );
    assert_eq!(slow.gpu_hz_max, Some(408_000_000));
    assert_eq!(slow.emc_hz_max, Some(3_199_000_000));
    assert_eq!(slow.caps().n_tpcs, Some(2));
    assert_eq!(slow.caps().cpu_khz, Some(1_497_600));
    let no_caps = (free.gpu_hz_max, free.emc_hz_max, free.caps().cpu_khz);
    assert_eq!(no_caps, (None, None, None));
}

#[test]
fn watts_come_from_the_end_of_a_name_that_has_them() {
    for (name, watts) in [
        ("25W", Some(25)),
        ("MODE_30W", Some(30)),
        ("MAXN_SUPER", None),
        ("W", None),
        ("99999999999W", None),
    ] {
        let mode = Mode {
            name: name.into(),
            ..Mode::default()
        };
        assert_eq!(mode.watts(), watts, "{name}");
    }
}

#[test]
fn errors_in_a_table_name_the_line() {
    let cases = [
        (
            TABLE.replace("ID=0", "ID=3"),
            "/etc/nvpmodel.conf:16: found \"< POWER_MODEL ID=3 NAME=MAXN_SUPER >\", \
             expected at most 64 modes, each id once",
        ),
        (
            TABLE.replace("DEFAULT=3", "DEFAULT=7"),
            "/etc/nvpmodel.conf:21: found \"DEFAULT=7\", expected the id of a mode in this file",
        ),
        (
            TABLE.replace("NAME=25W >", "NAME=25W"),
            "/etc/nvpmodel.conf:5: found \"< POWER_MODEL ID=3 NAME=25W\", \
             expected a heading that ends with >",
        ),
        (
            TABLE.replace("ID=0 NAME", "ID=zero NAME"),
            "/etc/nvpmodel.conf:16: found \"zero\", expected a number from 0 to 4294967295",
        ),
        (
            TABLE.replace("408000000", "408MHz"),
            "/etc/nvpmodel.conf:13: found \"408MHz\", expected a number from -1 to 9223372036854775807",
        ),
        (
            TABLE.replace("CORE_0 1", "CORE_0"),
            "/etc/nvpmodel.conf:6: found \"CPU_ONLINE CORE_0\", expected PARAM ARGUMENT VALUE",
        ),
    ];
    for (table, expected) in cases {
        assert_eq!(shown(&table), expected);
    }
}

#[test]
fn a_status_is_decimal_and_may_be_followed_by_a_fan_mode() {
    for (status, id) in [
        ("pmode:0002\n", 2),
        ("pmode:0010", 10),
        ("pmode:0000 fmode:quiet\n", 0),
    ] {
        assert_eq!(parse_status(status.as_bytes()), Ok(id), "{status}");
    }
    for status in [
        "",
        "pmode:\n",
        "pmode:-1",
        "pmode:0x2",
        "2",
        "pmode:99999999999",
    ] {
        assert!(parse_status(status.as_bytes()).is_err(), "{status}");
    }
}

#[test]
fn the_tool_is_understood_with_warnings_and_verbose() {
    let maxn = Answer {
        name: "MAXN_SUPER".into(),
        id: Some(2),
    };
    for output in [
        "NV Power Mode: MAXN_SUPER\n2\n",
        "NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN_SUPER\n2\n",
        "NVPM VERB: parsing done for /etc/nvpmodel.conf\nNVPM VERB: Current mode: NV Power Mode: MAXN_SUPER\n2\n\
         NVPM VERB: PARAM GPU: ARG MAX_FREQ: PATH /sys/x: REAL_VAL: 1020000000 CONF_VAL: 9223372036854775807\n",
    ] {
        assert_eq!(
            query::parse(output.as_bytes()),
            Ok(maxn.clone()),
            "{output}"
        );
    }
    let no_id = query::parse(b"NV Power Mode: 25W\nNVPM VERB: x\n").unwrap();
    assert_eq!((no_id.name.as_str(), no_id.id), ("25W", None));
    assert!(query::parse(b"command not found\n").is_err());
    assert!(query::parse(b"NV Power Mode:\n2\n").is_err());
}

/// What a generated mode says; written as a table and read again.
#[derive(Debug, Clone)]
struct Written {
    caps: [i64; 3],
    n_on: usize,
    mask: u64,
}

fn written() -> impl Strategy<Value = Written> {
    let cap = prop_oneof![Just(-1i64), Just(0), 1..5_000_000_000i64];
    ([cap.clone(), cap.clone(), cap], 1..12usize, 0..=255u64)
        .prop_map(|(caps, n_on, mask)| Written { caps, n_on, mask })
}

proptest! {
    #[test]
    fn what_is_written_in_a_table_is_read_from_it(
        modes in prop::collection::vec(written(), 1..9),
        is_crlf: bool,
    ) {
        let mut text = String::new();
        for (id, mode) in modes.iter().enumerate() {
            text += &format!("< POWER_MODEL ID={id} NAME=M{id} >\n");
            for core in 0..12 {
                text += &format!("CPU_ONLINE CORE_{core} {}\n", i32::from(core < mode.n_on));
            }
            let [gpu, emc, cpu] = mode.caps;
            text += &format!("TPC_POWER_GATING TPC_PG_MASK {}\n", mode.mask);
            text += &format!("GPU MAX_FREQ {gpu}\nEMC MAX_FREQ {emc}\nCPU_A78_0 MAX_FREQ {cpu}\n");
        }
        let text = if is_crlf { text.replace('\n', "\r\n") } else { text };
        let table = parse(text.as_bytes()).unwrap();
        for (mode, read) in modes.iter().zip(&table.modes) {
            let [gpu_hz, emc_hz, cpu_khz] = mode.caps.map(|cap| u64::try_from(cap).ok().filter(|cap| *cap > 0 && *cap != 2147483647));
            let expected = crate::board::caps::Caps {
                gpu_hz,
                emc_hz,
                cpu_khz,
                n_tpcs: Some(8 - mode.mask.count_ones()),
                n_cores: Some(mode.n_on as u32),
            };
            prop_assert_eq!(read.caps(), expected);
        }
        prop_assert_eq!(table.modes.len(), modes.len());
    }
}
