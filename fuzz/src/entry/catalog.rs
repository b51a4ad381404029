//! The catalogue: which releases there are, for whom, and which were recalled.

use orinoco::ota::catalog::{CATALOG_BYTES_MAX, Catalog, LINES_MAX, RELEASES_MAX, ReleaseState};
use orinoco::ota::waves::{PLACES, is_within, percent_open, starts_after_s};

/// One that is read is within every bound, and nothing that it says leads to a release that may not run.
pub fn check(data: &[u8]) {
    let catalog = match Catalog::parse(data) {
        Ok(catalog) => catalog,
        Err(error) => {
            assert!(error.to_string().len() < 8192, "a sentence, not the file");
            return;
        }
    };
    assert!(data.len() <= CATALOG_BYTES_MAX && catalog.lines.len() <= LINES_MAX);
    let again = Catalog::parse(&catalog.to_bytes()).expect("we wrote it");
    assert_eq!(again, catalog);
    for line in &catalog.lines {
        assert!(line.releases.len() <= RELEASES_MAX);
        let seqs: Vec<u64> = line.releases.iter().map(|r| r.release_seq).collect();
        assert!(seqs.is_sorted_by(|a, b| a < b));
        for from in [None, Some(0), seqs.first().copied(), seqs.last().copied()] {
            for group in ["", "all", "hall2"] {
                let Some(best) = line.best(group, from) else {
                    continue;
                };
                assert_eq!(best.state, ReleaseState::Active);
                assert!(best.is_for(group) && line.allows(from, best.release_seq));
                assert!(best.release_seq >= line.min_seq);
            }
        }
        for release in &line.releases {
            // Who may have it early may have it late.
            for place in [0, PLACES / 2, PLACES - 1] {
                if let Some(after_s) = starts_after_s(&release.waves, place) {
                    assert!(is_within(place, percent_open(&release.waves, after_s)));
                }
            }
        }
    }
}
