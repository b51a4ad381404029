use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Root::new(dir.path());
    (dir, root)
}

#[test]
fn what_is_missing_is_none_and_what_is_there_is_read() {
    let (_dir, root) = tree(&[("sys/name", "ina3221\n"), ("sys/label", "\0")]);
    assert_eq!(root.line("/sys/name"), Ok(Some("ina3221".into())));
    assert_eq!(root.line("/sys/label"), Ok(Some(String::new())));
    assert_eq!(root.line("/sys/other"), Ok(None));
    assert_eq!(root.line("/sys/name/below"), Ok(None));
    assert!(root.exists("/sys/name") && !root.exists("/sys/other"));
}

#[test]
fn links_stay_inside_the_tree() {
    let (dir, root) = tree(&[("etc/conf.d/a", "inside"), ("etc/passwd", "ours")]);
    let link = |target: &str, name: &str| symlink(target, dir.path().join(name)).unwrap();
    link("conf.d/a", "etc/relative");
    link("/etc/conf.d", "etc/absolute");
    link("../../../../../../etc/passwd", "etc/climbing");
    link("turning", "etc/turning");
    let inside = Ok(Some("inside".into()));
    assert_eq!(root.line("/etc/relative"), inside);
    assert_eq!(root.line("/etc/absolute/a"), inside);
    assert_eq!(root.line("/etc/climbing"), Ok(Some("ours".into())));
    let error = root.line("/etc/turning").unwrap_err().to_string();
    assert!(error.starts_with("read /etc/turning: "), "{error}");
}

#[test]
fn neither_a_directory_nor_a_fifo_is_read_or_waited_for() {
    let (dir, root) = tree(&[("a/b", "")]);
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in ["/a", "/fifo"] {
        let error = root.bytes(path, 100).unwrap_err().to_string();
        assert_eq!(error, format!("read {path}: not a regular file"));
    }
}

#[test]
fn a_file_beyond_the_bound_is_an_error_and_one_at_it_is_not() {
    let (_dir, root) = tree(&[("four", "4444"), ("five", "55555")]);
    assert_eq!(root.bytes("/four", 4), Ok(Some(b"4444".to_vec())));
    let error = root.bytes("/five", 4).unwrap_err();
    assert_eq!(error.to_string(), "read /five: more than 4 bytes");

    let long = "1".repeat(FILE_BYTES_MAX + 1);
    let (_dir, root) = tree(&[("long", &long), ("full", &long[1..])]);
    let probe = |path: &str| Probe::new(&root, path).parse(|bytes| Ok(bytes.len()));
    assert_eq!(probe("/full"), Ok(Some(FILE_BYTES_MAX)));
    assert!(matches!(probe("/long"), Err(ReadError::TooLarge { .. })));
}

#[test]
fn errors_name_file_line_what_was_found_and_what_was_expected() {
    let (_dir, root) = tree(&[("n", "12 apples\n"), ("big", "1001")]);
    assert_eq!(
        root.number::<u32>("/n", 0..=9).unwrap_err().to_string(),
        "/n:1: found \"12 apples\", expected a number from 0 to 9"
    );
    let error = root.number::<u16>("/big", 0..=1000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/big:1: found \"1001\", expected a number from 0 to 1000"
    );
    assert_eq!(error.path(), "/big");
}

#[test]
fn names_are_in_the_order_of_their_numbers() {
    let (_dir, root) = tree(&[
        ("z/zone10", ""),
        ("z/zone2", ""),
        ("z/zonex", ""),
        ("z/a", ""),
    ]);
    assert_eq!(root.names("/z", "zone"), ["zone2", "zone10", "zonex"]);
    assert_eq!(root.names("/none", ""), [""; 0]);
}

#[test]
fn blocks_without_power_and_features_switched_off_count_as_missing() {
    for errno in [
        Errno::EAGAIN,
        Errno::ENODATA,
        Errno::EOPNOTSUPP,
        Errno::ENODEV,
    ] {
        assert!(is_absent(&errno.into()), "{errno}");
    }
    for errno in [Errno::EACCES, Errno::EIO, Errno::EMFILE] {
        assert!(!is_absent(&errno.into()), "{errno}");
    }
}

#[test]
fn a_probe_of_a_tree_sees_a_file_rewritten_replaced_and_gone() {
    let (dir, root) = tree(&[("n", "1\n")]);
    let mut probe = Probe::new(&root, "/n");
    let mut read = || probe.number::<u64>(0..=u64::MAX);
    assert_eq!(read(), Ok(Some(1)));
    fs::write(dir.path().join("n"), "22\n").unwrap();
    assert_eq!(read(), Ok(Some(22)));
    fs::write(dir.path().join("m"), "3\n").unwrap();
    fs::rename(dir.path().join("m"), dir.path().join("n")).unwrap();
    assert_eq!(read(), Ok(Some(3)));
    fs::remove_file(dir.path().join("n")).unwrap();
    assert_eq!(read(), Ok(None));
}

#[test]
fn a_kept_file_of_the_kernel_gives_new_values_at_each_read() {
    let mut probe = Probe::new(&Root::live(), "/proc/self/stat");
    let mut page_faults = || {
        let parse = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            Ok(text.split(' ').nth(9).unwrap().parse::<u64>().unwrap())
        };
        probe.parse(parse).unwrap().unwrap()
    };
    let before = page_faults();
    // Touches fresh pages, each of which is a fault.
    std::hint::black_box(vec![1u8; 8 << 20]);
    assert!(page_faults() > before);
}

#[test]
fn faults_keep_what_was_met_up_to_a_bound() {
    let mut faults = Faults::default();
    assert_eq!(faults.note(Ok(Some(1))), Some(1));
    assert!(faults.is_empty());
    for _ in 0..1000 {
        assert_eq!(faults.note::<u8>(Err(ReadError::missing("/x"))), None);
    }
    assert_eq!(faults.iter().count(), Faults::MAX);
}
