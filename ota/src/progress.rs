//! A bar for what takes long, on a terminal only.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over so many bytes.
pub fn bytes(what: &str, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template(
        "{msg:<28!} [{bar:30}] {bytes:>10} of {total_bytes} {bytes_per_sec:>12} {eta:>4}",
    );
    bar.set_style(style.expect("a template that is tested"));
    bar.set_message(what.to_owned());
    bar
}
