//! To the terminal and not beyond it.
#![expect(
    clippy::print_stderr,
    reason = "the command line speaks to a person on stderr"
)]

use std::io::{self, Write};
use std::process::ExitCode;

/// Writes an answer to stdout. A reader that went away (`| head`) has had enough, which is no failure.
///
/// # Errors
/// Stdout cannot be written for another reason.
pub(super) fn answer(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(anyhow::Error::new(e).context("failed to write to stdout")),
    }
}

/// One line, or several, for a person.
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}

/// A failure in one sentence.
pub(super) fn complain(error: &dyn std::error::Error) {
    eprintln!("orinoco: {error}");
}

/// A failure with its causes.
pub(super) fn complain_of(error: &anyhow::Error) {
    eprintln!("orinoco: {error:#}");
}

/// Bytes for a person: `98.4 MB`.
pub(super) fn bytes(n: u64) -> String {
    scaled(n, &["B", "kB", "MB", "GB", "TB"])
}

/// A count for a person: `134.5 M`.
pub(super) fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "B", "T"])
}

fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{n} {}", units[0]).trim_end().to_owned(),
        _ => format!("{value:.1} {}", units[unit]),
    }
}

/// Rows with aligned columns; the first row is the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_a_thousand_of_the_smaller_unit() {
        let sizes = [0, 999, 1000, 98_362_432, 999_949_999, 999_950_000, u64::MAX];
        let shown = sizes.map(bytes);
        assert_eq!(
            shown,
            [
                "0 B",
                "999 B",
                "1.0 kB",
                "98.4 MB",
                "999.9 MB",
                "1.0 GB",
                "18446744.1 TB"
            ]
        );
        assert_eq!([count(7), count(134_515_008)], ["7", "134.5 M"]);
    }

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let rows = [
            vec!["NAME".into(), "SIZE".into()],
            vec!["größe".into(), String::new()],
        ];
        assert_eq!(table(&rows), "NAME   SIZE\ngröße\n");
    }
}
