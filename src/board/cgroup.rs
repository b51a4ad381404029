//! The memory limit of the control group that this process is in, as of a systemd unit or a container.
//!
//! On a Jetson it does not see GPU memory, so it protects nothing; but where it is set, the kernel kills at
//! it long before memory is short, and the watchdog must know.
//!
//! ```text
//!     /proc/self/cgroup:   0::/system.slice/orinoco.service       version 2
//!                          4:memory:/docker/5f0e                  version 1
//! ```

use super::root::{Faults, Root};
use super::text::{ParseError, lines, word_number};

/// Limits at or above this stand for "none" in version 1.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// Most groups between ours and the top.
const DEPTH_MAX: usize = 32;

/// The group of this process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its name below the top.
    pub name: String,
    /// The lowest hard limit of it and of those above it; `None`: no limit.
    pub limit_bytes: Option<u64>,
    /// The lowest limit at which the kernel slows the group down; `None`: no limit.
    pub high_bytes: Option<u64>,
    /// Memory charged to it now.
    pub current_bytes: Option<u64>,
}

/// Where the controller stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    V2(String),
    V1(String),
}

/// Finds the group of the memory controller in `/proc/self/cgroup`. A group that lies outside of what the
/// process may see, or no controller, is the top.
fn parse(bytes: &[u8]) -> Result<Hierarchy, ParseError> {
    let mut v2 = None;
    for (number, line) in lines(bytes).filter(|(_, line)| !line.is_empty()) {
        let text = std::str::from_utf8(line).ok();
        let parts = text.and_then(|text| {
            let (_, rest) = text.split_once(':')?;
            rest.split_once(':')
        });
        let Some((controllers, name)) = parts.filter(|(_, name)| name.starts_with('/')) else {
            return Err(ParseError::new(number, line, "ID:CONTROLLERS:/GROUP"));
        };
        let name = match name.split('/').any(|part| part == "..") {
            true => "/",
            false => name.trim_end_matches('/'),
        };
        let name = name.trim_end_matches('/').to_owned();
        if controllers.split(',').any(|one| one == "memory") {
            return Ok(Hierarchy::V1(name));
        }
        if controllers.is_empty() {
            v2 = Some(name);
        }
    }
    v2.map(Hierarchy::V2)
        .ok_or_else(|| ParseError::at_end(super::text::n_lines(bytes), "a line `0::/GROUP`"))
}

/// `max`, or bytes.
fn parse_limit(bytes: &[u8]) -> Result<Option<u64>, ParseError> {
    match bytes.trim_ascii() {
        b"max" => Ok(None),
        word => word_number(1, word, &(0..=u64::MAX))
            .map(|bytes| Some(bytes).filter(|bytes| *bytes < UNLIMITED_BYTES)),
    }
}

/// The group of this process; `None` on kernels without control groups.
pub fn read(root: &Root, faults: &mut Faults) -> Option<Cgroup> {
    let (top, name, files) = match faults.note(root.parse("/proc/self/cgroup", parse))? {
        Hierarchy::V2(name) => (
            "/sys/fs/cgroup",
            name,
            ["memory.max", "memory.high", "memory.current"],
        ),
        Hierarchy::V1(name) => (
            "/sys/fs/cgroup/memory",
            name,
            [
                "memory.limit_in_bytes",
                "memory.soft_limit_in_bytes",
                "memory.usage_in_bytes",
            ],
        ),
    };
    let mut lowest = |file: &str| {
        let mut lowest = None;
        let mut group = name.as_str();
        for _ in 0..DEPTH_MAX {
            let limit = faults.note(root.parse(&format!("{top}{group}/{file}"), parse_limit));
            lowest = [lowest, limit.flatten()].into_iter().flatten().min();
            match group.rfind('/') {
                Some(parent) => group = &group[..parent],
                None => break,
            }
        }
        lowest
    };
    let (limit_bytes, high_bytes) = (lowest(files[0]), lowest(files[1]));
    let current = root.number(&format!("{top}{name}/{}", files[2]), 0..=u64::MAX);
    Some(Cgroup {
        limit_bytes,
        high_bytes,
        current_bytes: faults.note(current),
        name: if name.is_empty() { "/".into() } else { name },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_the_memory_controller_is_found_in_both_versions() {
        let v2 = |name: &str| Ok(Hierarchy::V2(name.to_owned()));
        assert_eq!(parse(b"0::/\n"), v2(""));
        assert_eq!(
            parse(b"0::/system.slice/orinoco.service\n"),
            v2("/system.slice/orinoco.service")
        );
        assert_eq!(parse(b"0::/../outside\n"), v2(""));
        let mixed = b"5:cpu,memory:/box/7\n1:name=systemd:/\n0::/\n";
        assert_eq!(parse(mixed), Ok(Hierarchy::V1("/box/7".into())));
    }

    #[test]
    fn a_line_that_names_no_group_is_shown() {
        let error = parse(b"0::/\nhello\n")
            .unwrap_err()
            .in_file("/proc/self/cgroup");
        assert_eq!(
            error.to_string(),
            "/proc/self/cgroup:2: found \"hello\", expected ID:CONTROLLERS:/GROUP"
        );
        assert!(parse(b"").is_err());
    }

    #[test]
    fn no_limit_is_written_as_a_word_or_as_an_absurd_number() {
        assert_eq!(parse_limit(b"max\n"), Ok(None));
        assert_eq!(parse_limit(b"9223372036854771712\n"), Ok(None));
        assert_eq!(parse_limit(b"2147483648\n"), Ok(Some(2 << 30)));
        assert!(parse_limit(b"plenty\n").is_err());
    }
}
