//! The chain of roots: the only way in which keys change.

use super::repository::{Key, envelope};
use super::*;

#[test]
fn a_new_root_needs_signatures_of_the_old_and_of_the_new_keys() {
    for (by_old, by_new) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut repository = Repository::new();
        let device = Device::new(&repository);
        let old = repository.keys.insert("root", vec![Key::new()]).unwrap();
        repository.versions.insert("root", 2);
        let signed = repository.body("root", repository.root_body());
        let signatures = [(&old[0], by_old), (&repository.keys["root"][0], by_new)];
        let signatures = signatures
            .iter()
            .filter(|(_, signs)| *signs)
            .map(|(key, _)| key.sign(&signed));
        let root = envelope(&signed, signatures.collect());
        repository.put_numbered("root", root);
        let refreshed = device.refresh(&mut repository);
        assert_eq!(
            refreshed.is_ok(),
            by_old && by_new,
            "old {by_old}, new {by_new}"
        );
    }
}

#[test]
fn two_of_three_keys_of_root_are_two_different_keys() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    repository.thresholds.insert("root", 2);
    let three = std::iter::repeat_with(Key::new).take(3).collect();
    let old = repository.keys.insert("root", three).unwrap();
    repository.versions.insert("root", 2);
    let signed = repository.body("root", repository.root_body());
    let [a, b, _] = &repository.keys["root"][..] else {
        panic!("three keys")
    };
    let by_old = old[0].sign(&signed);
    let twice = envelope(
        &signed,
        vec![by_old.clone(), a.sign(&signed), a.sign(&signed)],
    );
    let once = envelope(&signed, vec![by_old.clone(), a.sign(&signed)]);
    let both = envelope(&signed, vec![by_old, a.sign(&signed), b.sign(&signed)]);
    for (root, is_fine) in [(twice, false), (once, false), (both, true)] {
        repository.put_numbered("root", root);
        let refreshed = device.refresh(&mut repository);
        assert_eq!(refreshed.is_ok(), is_fine);
    }
}

#[test]
fn a_gap_in_the_chain_hides_what_lies_behind_it_and_a_renamed_root_does_not_fill_it() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    repository.rotate("root");
    repository.rotate("root");
    let third = repository.files["metadata/3.root.json"].clone();
    let second = repository.files.remove("metadata/2.root.json").unwrap();
    assert_eq!(device.refresh(&mut repository).unwrap().root, 1);
    repository
        .files
        .insert("metadata/2.root.json".into(), third);
    assert_eq!(
        reason(device.refresh(&mut repository)),
        Some(Reason::Signature)
    );
    repository
        .files
        .insert("metadata/2.root.json".into(), second);
    assert_eq!(device.refresh(&mut repository).unwrap().root, 3);
}

#[test]
fn a_device_that_missed_five_roots_follows_them_one_by_one() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    for role in ["root", "timestamp", "root", "targets", "snapshot"] {
        repository.rotate(role);
    }
    repository.publish();
    assert_eq!(device.refresh(&mut repository).unwrap().root, 6);
    repository.asked.clear();
    device.refresh(&mut repository).unwrap();
    assert_eq!(
        repository.asked,
        ["metadata/7.root.json", "metadata/timestamp.json"],
        "what is stored is not fetched again"
    );
}

#[test]
fn thirty_three_roots_take_two_refreshes() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    for _ in 0..33 {
        repository.rotate("root");
    }
    let error = device.refresh(&mut repository).unwrap_err();
    assert!(error.to_string().contains("32"), "{error}");
    assert_eq!(device.refresh(&mut repository).unwrap().root, 34);
}

#[test]
fn a_lost_chain_of_roots_is_fetched_again_but_not_shortened() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    repository.rotate("timestamp");
    repository.publish();
    device.refresh(&mut repository).unwrap();
    std::fs::remove_dir_all(device.path().join("metadata")).unwrap();
    let second = repository.files.remove("metadata/2.root.json").unwrap();
    assert!(
        device.refresh(&mut repository).is_err(),
        "a mirror hides the second root"
    );
    repository
        .files
        .insert("metadata/2.root.json".into(), second);
    assert_eq!(device.refresh(&mut repository).unwrap().root, 2);
}

#[test]
fn a_software_update_with_a_newer_root_keeps_the_floor() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.publish();
    repository.rotate("root");
    device.refresh(&mut repository).unwrap();
    device.root = repository.files["metadata/2.root.json"].clone();
    assert!(device.refresh(&mut repository).is_ok());
    repository.versions.insert("timestamp", 1);
    repository.write();
    assert_eq!(
        reason(device.refresh(&mut repository)),
        Some(Reason::RollbackRefused)
    );
}
