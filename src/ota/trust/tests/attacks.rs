//! A mirror that serves what is old, mixed or foreign.

use std::fs;

use super::*;

/// The three roles below root.
const LOWER: [&str; 3] = ["timestamp", "snapshot", "targets"];

/// What the mirror can serve of an earlier day: its files as they were.
fn two_days() -> (Repository, Repository, Device) {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let old = repository.files.clone();
    repository.add("catalog.json", b"second");
    repository.publish();
    let mut before = Repository::new();
    before.files = old;
    (repository, before, device)
}

#[test]
fn a_genuine_catalogue_is_named_by_length_and_digest() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    assert_eq!(client.standing(NOW), None);
    assert!(matches!(
        catalog(&mut client, NOW),
        Err(TrustError::NotRefreshed)
    ));
    let versions = client.refresh(&mut repository, NOW).unwrap();
    assert_eq!(
        versions.to_string(),
        "root 1, timestamp 1, snapshot 1, targets 1"
    );
    let info = catalog(&mut client, NOW).unwrap().unwrap();
    assert_eq!(info.digest, Digest::of(b"first"));
    let read = read_target(&mut repository, &TargetName::catalog(), &info, 1000);
    assert_eq!(read.unwrap(), b"first");
    let unknown = TargetName::new("unknown.gguf").unwrap();
    assert_eq!(client.target(&unknown, NOW).unwrap(), None);
}

#[test]
fn what_was_trusted_is_trusted_again_after_a_start_without_any_source() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    let mut client = device.open();
    assert!(catalog(&mut client, NOW).unwrap().is_some());
    let standing = client.standing(NOW).unwrap();
    assert_eq!(standing.age_days, Some(1));
    assert_eq!(standing.freshness, Freshness::Fresh);
    let later = TrustedNow::exactly(START_S + 400 * DAY_S);
    assert_eq!(
        reason(catalog(&mut client, later)),
        Some(Reason::MetadataExpired)
    );
    assert_eq!(
        client.standing(later).unwrap().freshness,
        Freshness::Expired
    );
}

#[test]
fn another_fleets_repository_is_refused() {
    let device = Device::new(&Repository::new());
    let mut other = Repository::new();
    assert_eq!(reason(device.refresh(&mut other)), Some(Reason::Signature));
    assert_eq!(device.open().standing(NOW), None);
}

#[test]
fn a_root_that_no_key_of_it_signed_is_no_root_of_a_device() {
    let mut repository = Repository::new();
    let mut device = Device::new(&repository);
    repository.keys.insert("root", vec![repository::Key::new()]);
    let signed = repository.body("root", repository.root_body());
    let stranger = repository::Key::new();
    device.root = repository::envelope(&signed, vec![stranger.sign(&signed)]);
    assert_eq!(reason(device.try_open()), Some(Reason::Signature));
}

#[test]
fn an_older_version_of_any_role_is_refused() {
    for role in LOWER {
        let mut repository = Repository::new();
        let device = Device::new(&repository);
        for role in LOWER {
            repository.versions.insert(role, 5);
        }
        repository.write();
        device.refresh(&mut repository).unwrap();
        repository.versions = LOWER.map(|role| (role, 6)).into();
        repository.versions.insert("root", 1);
        repository.versions.insert(role, 4);
        repository.write();
        let refused = device.refresh(&mut repository);
        assert_eq!(reason(refused), Some(Reason::RollbackRefused), "{role}");
    }
}

#[test]
fn metadata_lost_in_a_power_cut_does_not_open_the_way_back() {
    for lost in [
        "timestamp.json",
        "snapshot.json",
        "targets.json",
        "root.json",
        "",
    ] {
        let (mut repository, mut before, device) = two_days();
        device.refresh(&mut repository).unwrap();
        for entry in fs::read_dir(device.path().join("metadata")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() && (lost.is_empty() || path.ends_with(lost)) {
                fs::write(path, b"{").unwrap();
            }
        }
        let refused = device.refresh(&mut before);
        assert_eq!(
            reason(refused),
            Some(Reason::RollbackRefused),
            "{lost:?} lost"
        );
        assert!(
            device.refresh(&mut repository).is_ok(),
            "the truth is welcome"
        );
    }
}

#[test]
fn one_slot_of_the_floor_is_enough_and_none_is_refused() {
    let (mut repository, mut before, device) = two_days();
    device.refresh(&mut repository).unwrap();
    let empty = |path: &str| fs::write(device.path().join(path), b"").unwrap();
    for slot in ["floor.a", "floor.b"] {
        for lost in ["timestamp.json", "snapshot.json", "targets.json"] {
            empty(&format!("metadata/{lost}"));
        }
        empty(slot);
        assert_eq!(
            reason(device.refresh(&mut before)),
            Some(Reason::RollbackRefused)
        );
        assert!(
            fs::metadata(device.path().join(slot)).unwrap().len() > 0,
            "repaired"
        );
    }
    empty("floor.a");
    empty("floor.b");
    assert_eq!(reason(device.try_open()), Some(Reason::FloorCorrupt));
    fs::remove_file(device.path().join("floor.a")).unwrap();
    fs::remove_file(device.path().join("floor.b")).unwrap();
    assert_eq!(reason(device.try_open()), Some(Reason::FloorCorrupt));
}

#[test]
fn an_old_timestamp_is_refused_after_its_key_was_rotated_and_the_device_starts_from_its_first_root()
{
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    repository.rotate("timestamp");
    repository.publish();
    let rotated = repository.files["metadata/timestamp.json"].clone();
    repository.publish();
    device.refresh(&mut repository).unwrap();
    repository
        .files
        .insert("metadata/timestamp.json".into(), rotated);
    let refused = device.refresh(&mut repository);
    assert_eq!(reason(refused), Some(Reason::RollbackRefused));
}

#[test]
fn frozen_metadata_is_refused_when_any_role_has_expired() {
    for role in ROLES {
        let mut repository = Repository::new();
        repository.expires_s.insert(role, START_S + 10 * DAY_S);
        if role == "root" {
            repository.versions.insert("root", 0);
            repository.publish_root();
        }
        repository.publish();
        let device = Device::new(&repository);
        device.refresh(&mut repository).unwrap();
        let later = TrustedNow::exactly(START_S + 11 * DAY_S);
        let mut client = device.open();
        match client.refresh(&mut repository, later) {
            Err(TrustError::Expired { role: expired, .. }) => assert_eq!(expired, role),
            other => panic!("{role}: {other:?}"),
        }
        assert!(catalog(&mut client, later).is_err(), "{role}");
    }
}

#[test]
fn expired_metadata_is_accepted_from_a_stick_that_a_person_put_in_and_is_flagged() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let late = TrustedNow::exactly(START_S + 900 * DAY_S);
    let mut client = device.open();
    assert!(client.refresh(&mut repository, late).is_err());
    let confirmed = late.accepting_expired();
    client.refresh(&mut repository, confirmed).unwrap();
    assert!(catalog(&mut client, confirmed).unwrap().is_some());
    assert!(
        catalog(&mut client, late).is_err(),
        "for that deployment only"
    );
    let standing = client.standing(late).unwrap();
    assert_eq!(standing.freshness, Freshness::ExpiredAccepted);
    assert_eq!(standing.age_days, Some(900));
    drop(client);
    let standing = device.open().standing(late).unwrap();
    assert_eq!(
        standing.freshness,
        Freshness::ExpiredAccepted,
        "after a start too"
    );
}

#[test]
fn confirmation_on_the_spot_forgives_nothing_but_expiry() {
    let (mut repository, mut before, device) = two_days();
    device.refresh(&mut repository).unwrap();
    let confirmed = NOW.accepting_expired();
    let mut client = device.open();
    let refused = client.refresh(&mut before, confirmed);
    assert_eq!(reason(refused), Some(Reason::RollbackRefused));
    let refused = client.refresh(&mut Repository::new(), confirmed);
    assert_eq!(reason(refused), Some(Reason::Signature));
}

#[test]
fn parts_of_two_days_are_refused_together() {
    for (newer, older) in [
        ("metadata/2.targets.json", "metadata/1.targets.json"),
        ("metadata/2.snapshot.json", "metadata/1.snapshot.json"),
    ] {
        let (mut repository, _, device) = two_days();
        let mixed = repository.files[older].clone();
        repository.files.insert(newer.into(), mixed);
        let refused = device.refresh(&mut repository);
        assert_eq!(reason(refused), Some(Reason::Signature), "{older}");
    }
}

#[test]
fn a_version_raised_by_a_thief_is_left_behind_with_their_keys() {
    for role in LOWER {
        let mut repository = Repository::new();
        let device = Device::new(&repository);
        repository.versions.insert(role, u64::from(u32::MAX));
        repository.write();
        device.refresh(&mut repository).unwrap();
        let next = |repository: &mut Repository, version| {
            repository.publish();
            repository.versions.insert(role, version);
            repository.write();
        };
        next(&mut repository, 2);
        let refused = device.refresh(&mut repository);
        assert_eq!(reason(refused), Some(Reason::RollbackRefused), "{role}");
        // The specification has snapshot and timestamp replaced together, since one pins the other.
        for rotated in [role, "snapshot", "timestamp"] {
            repository.rotate(rotated);
        }
        repository.write();
        let versions = device.refresh(&mut repository).unwrap();
        assert!(versions.timestamp < 9 && versions.snapshot < 9 && versions.targets < 9);
        next(&mut repository, 1);
        let refused = device.refresh(&mut repository);
        assert_eq!(
            reason(refused),
            Some(Reason::RollbackRefused),
            "{role} again"
        );
    }
}

#[test]
fn what_a_source_serves_as_a_target_is_held_against_what_was_signed() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    client.refresh(&mut repository, NOW).unwrap();
    let info = catalog(&mut client, NOW).unwrap().unwrap();
    let file = format!("targets/{}.catalog.json", info.digest);
    for served in [&b"First"[..], b"firs", b"first "] {
        repository.files.insert(file.clone(), served.to_vec());
        let read = read_target(&mut repository, &TargetName::catalog(), &info, 1000);
        assert!(read.is_err(), "{served:?}");
    }
    let read = read_target(&mut repository, &TargetName::catalog(), &info, 4);
    assert!(matches!(
        read,
        Err(TrustError::Source(SourceError::TooLong { .. }))
    ));
}
