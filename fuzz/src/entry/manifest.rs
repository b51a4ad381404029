//! The manifest of a release, by somebody who has stolen a key, or made a mistake.

use orinoco::ota::manifest::{LIST_MAX, MANIFEST_BYTES_MAX, Manifest, TEMPLATE_BYTES_MAX};
use orinoco::ota::pieces::{FILE_BYTES_MAX, PIECES_MAX, n_pieces};
use orinoco::ota::probe::Probe;

/// One that is read is within every bound, survives being written, and can be tried.
pub fn check(data: &[u8]) {
    let manifest = match Manifest::parse(data) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(error.to_string().len() < 8192, "a sentence, not the file");
            return;
        }
    };
    assert!(data.len() <= MANIFEST_BYTES_MAX);
    let again = Manifest::parse(&manifest.to_bytes()).expect("we wrote it");
    assert_eq!(again, manifest);
    let weights = manifest.weights();
    assert!((1..=FILE_BYTES_MAX).contains(&weights.bytes));
    let n = n_pieces(weights.bytes, weights.piece_bytes).expect("it was checked");
    assert!((1..=PIECES_MAX).contains(&u64::from(n)));
    assert!(weights.table_bytes() == u64::from(n) * 32);
    let template = manifest.runtime.chat_template.as_ref();
    assert!(template.is_none_or(|text| text.len() <= TEMPLATE_BYTES_MAX));
    let lists = [
        manifest.runtime.stop.len(),
        manifest.health.golden.len(),
        manifest.needs.boards.len(),
        manifest.needs.power_modes.len(),
    ];
    assert!(lists.into_iter().all(|n| n <= LIST_MAX));
    assert!(manifest.needs.memory_mib(4096).is_none_or(|mib| mib > 0));
    if let Ok(probe) = Probe::new(&manifest.health, "orin-nano-8", "15W") {
        assert_eq!(probe.trial().asks.len(), manifest.health.golden.len() + 1);
    }
}
