//! Which Jetson Linux (L4T) is installed, from `/etc/nv_tegra_release`.
//!
//! ```text
//!     # R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: …
//! ```
//!
//! Yocto images have this one line, in a package that is not installed by itself.

use std::fmt;

use super::text::{ParseError, lines};

/// The file.
pub const PATH: &str = "/etc/nv_tegra_release";

/// A version, e.g. 36.4.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct L4t {
    /// 36 for JetPack 6.
    pub release: u32,
    /// 4 of 36.4.7.
    pub major: u32,
    /// 7 of 36.4.7.
    pub minor: u32,
}

impl L4t {
    /// The JetPack that it belongs to, where that is known.
    pub fn jetpack(&self) -> Option<&'static str> {
        Some(match (self.release, self.major, self.minor) {
            (36, 2, _) => "6.0 DP",
            (36, 3, _) => "6.0",
            (36, 4, 0) => "6.1",
            (36, 4, 3) => "6.2",
            (36, 4, 4 | 7) => "6.2.1",
            (36, 5, 0) => "6.2.2",
            (32, _, _) => "4",
            (35, _, _) => "5",
            (36, _, _) => "6",
            (38 | 39, _, _) => "7",
            _ => return None,
        })
    }
}

impl fmt::Display for L4t {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.release, self.major, self.minor)
    }
}

/// Parses the file.
///
/// # Errors
/// The first line is another one.
pub fn parse(bytes: &[u8]) -> Result<L4t, ParseError> {
    let (number, line) = lines(bytes).next().unwrap_or((1, b""));
    version(line).ok_or_else(|| ParseError::new(number, line, "# R36 (release), REVISION: 4.7, …"))
}

fn version(line: &[u8]) -> Option<L4t> {
    let text = std::str::from_utf8(line).ok()?;
    let rest = text.strip_prefix('#')?.trim_start().strip_prefix('R')?;
    let (release, rest) = rest.split_once([' ', ','])?;
    let (_, rest) = rest.split_once("REVISION:")?;
    let revision = rest.split(',').next()?.trim();
    let (major, minor) = revision.split_once('.').unwrap_or((revision, "0"));
    Some(L4t {
        release: release.parse().ok()?,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_first_line_and_names_its_jetpack() {
        let line = "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic\nX=1\n";
        let l4t = parse(line.as_bytes()).unwrap();
        assert_eq!(
            (l4t.to_string(), l4t.jetpack()),
            ("36.4.7".into(), Some("6.2.1"))
        );
        let newer = parse(b"# R36 (release), REVISION: 5.0, GCID: 00000000\n").unwrap();
        assert!(newer > l4t);
        let short = parse(b"# R38 (release), REVISION: 2, GCID: 1").unwrap();
        assert_eq!(short.to_string(), "38.2.0");
    }

    #[test]
    fn another_first_line_is_shown() {
        let error = parse(b"Ubuntu 22.04\n").unwrap_err().in_file(PATH);
        assert_eq!(
            error.to_string(),
            "/etc/nv_tegra_release:1: found \"Ubuntu 22.04\", expected # R36 (release), REVISION: 4.7, …"
        );
        assert!(parse(b"").is_err());
    }
}
