//! What a check says, and the report of all of them: as lines for a person, as JSON for a program.
//!
//! ```text
//!     ok    board.module  Jetson Orin Nano 8 GB: NVIDIA Jetson Orin Nano Engineering Reference …
//!     warn  power.mode    15W (GPU 612 MHz × 4 clusters); expected: MAXN_SUPER (…); do: sudo nvpmodel -m 2
//! ```
//!
//! Ids are part of the contract with scripts: they stay, and docs/doctor.md lists them.

use std::fmt;

use serde::Serialize;

/// How a check ended. The order is that of gravity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Could not be told here; `found` says why.
    Skipped,
    /// As it should be.
    Ok,
    /// Works, and not as well or as safely as it could.
    Warn,
    /// Does not work, or will not.
    Fail,
}

impl Status {
    /// As it is printed and encoded.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What one check found. Made by [`Finding::ok`] and the like, so that whatever is not well says what was
/// expected and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it ended.
    pub status: Status,
    /// What was found; for [`Status::Skipped`] why nothing was looked for.
    pub found: String,
    /// What would be well; absent where all is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What a technician does about it; absent where all is well.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(found: impl Into<String>) -> Self {
        Self {
            status: Status::Ok,
            found: found.into(),
            expected: None,
            remedy: None,
        }
    }

    /// Not as good as it could be.
    pub fn warn(
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warn,
            found: found.into(),
            expected: Some(expected.into()),
            remedy: Some(remedy.into()),
        }
    }

    /// Does not work.
    pub fn fail(
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Fail,
            ..Self::warn(found, expected, remedy)
        }
    }

    /// Not looked for, and why.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self {
            status: Status::Skipped,
            ..Self::ok(why)
        }
    }
}

/// A check's finding under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Stable, e.g. `power.mode`.
    pub id: &'static str,
    /// What it found.
    #[serde(flatten)]
    pub finding: Finding,
}

/// All checks in the order in which a technician should read them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of the program that examined.
    pub version: &'static str,
    /// The root that was examined; `/` is the machine itself.
    pub root: String,
    /// The worst of all lines.
    pub status: Status,
    /// One for each check.
    pub checks: Vec<Line>,
}

impl Report {
    /// Puts the lines under their worst status.
    pub fn new(root: String, checks: Vec<Line>) -> Self {
        let worst = checks.iter().map(|line| line.finding.status).max();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            root,
            status: worst.unwrap_or(Status::Skipped),
            checks,
        }
    }

    /// Whether something does not work.
    pub fn has_failed(&self) -> bool {
        self.status == Status::Fail
    }

    fn count(&self, status: Status) -> usize {
        let lines = self.checks.iter();
        lines.filter(|line| line.finding.status == status).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|line| line.id.len()).max();
        for Line { id, finding } in &self.checks {
            let width = width.unwrap_or(0);
            let status = finding.status.as_str();
            write!(f, "{status:7}  {id:width$}  {}", one_line(&finding.found))?;
            if let Some(expected) = &finding.expected {
                write!(f, "; expected: {}", one_line(expected))?;
            }
            if let Some(remedy) = &finding.remedy {
                write!(f, "; do: {}", one_line(remedy))?;
            }
            writeln!(f)?;
        }
        let [fail, warn, ok, skipped] =
            [Status::Fail, Status::Warn, Status::Ok, Status::Skipped].map(|s| self.count(s));
        writeln!(f, "{fail} fail, {warn} warn, {ok} ok, {skipped} skipped")
    }
}

/// Words of files and of other programs may hold line ends and control characters; a line stays one line.
fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(clean).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_one_line_for_each_check_and_the_worst_status() {
        let lines = vec![
            Line {
                id: "a.short",
                finding: Finding::ok("all\nis \u{1b}[31mwell"),
            },
            Line {
                id: "b.longer",
                finding: Finding::warn("x", "y", "z"),
            },
            Line {
                id: "c",
                finding: Finding::skipped("no daemon runs"),
            },
        ];
        let report = Report::new("/".into(), lines);
        assert_eq!(
            report.to_string(),
            "ok       a.short   all is [31mwell\n\
             warn     b.longer  x; expected: y; do: z\n\
             skipped  c         no daemon runs\n\
             0 fail, 1 warn, 1 ok, 1 skipped\n"
        );
        assert_eq!((report.status, report.has_failed()), (Status::Warn, false));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][1]["do"], "z");
        assert_eq!(json["checks"][2]["status"], "skipped");
        assert_eq!(json["checks"][0].get("expected"), None);
    }
}
