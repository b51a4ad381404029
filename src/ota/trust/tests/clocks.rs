//! Boards whose clock is behind, ahead or jumps, and that are offline for a year.

use super::time::{BUILT_S, Facts};
use super::*;

const IN_2099_S: u64 = 4_070_908_800;

fn clock_at(system_s: u64) -> Facts {
    Facts {
        system_s,
        ..Facts::default()
    }
}

#[test]
fn an_update_works_in_1970_and_what_had_expired_by_the_last_signature_is_refused() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    let now = client.now(clock_at(0));
    assert_eq!((now.at_s(), now.clock()), (BUILT_S, Clock::Behind));
    client.refresh(&mut repository, now).unwrap();
    let now = client.now(clock_at(0));
    assert_eq!(now.at_s(), START_S, "signed time is time");
    repository.expires_s.insert("timestamp", START_S - DAY_S);
    repository.publish();
    let refused = client.refresh(&mut repository, now);
    assert_eq!(reason(refused), Some(Reason::MetadataExpired));
}

#[test]
fn an_update_works_on_a_board_that_believes_in_2099_and_says_so() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    let now = client.now(clock_at(IN_2099_S));
    assert_eq!(now.clock(), Clock::Suspect);
    client.refresh(&mut repository, now).unwrap();
    assert!(catalog(&mut client, now).unwrap().is_some());
}

#[test]
fn a_clock_that_steps_back_a_second_between_check_and_download_changes_nothing() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    client.refresh(&mut repository, NOW).unwrap();
    let earlier = TrustedNow::exactly(NOW.at_s() - 1);
    assert!(catalog(&mut client, earlier).unwrap().is_some());
    assert!(client.refresh(&mut repository, earlier).is_ok());
}

#[test]
fn a_download_of_six_hours_is_not_cut_off_by_an_expiry_in_the_middle() {
    let mut repository = Repository::new();
    repository.expires_s.insert("timestamp", START_S + DAY_S);
    repository.publish();
    let device = Device::new(&repository);
    let mut client = device.open();
    let began = TrustedNow::exactly(START_S + DAY_S - 3600);
    client.refresh(&mut repository, began).unwrap();
    assert!(
        catalog(&mut client, began).unwrap().is_some(),
        "the deployment asks as of its start"
    );
    let ends = TrustedNow::exactly(began.at_s() + 6 * 3600);
    assert_eq!(
        reason(catalog(&mut client, ends)),
        Some(Reason::MetadataExpired),
        "a new one does not"
    );
}

#[test]
fn after_fourteen_months_offline_a_newer_stick_is_accepted_and_an_older_one_refused() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    device.refresh(&mut repository).unwrap();
    let month_s = 30 * DAY_S;

    // A stick that was made after nine months, and lay in a drawer.
    repository.issued_s = Some(START_S + 9 * month_s);
    repository.add("catalog.json", b"of month nine");
    repository.publish();
    let mut older_stick = Repository::new();
    older_stick.files = repository.files.clone();

    // A stick of month fourteen, after a change of keys; it lies two years before somebody comes.
    repository.issued_s = Some(START_S + 14 * month_s);
    for role in ROLES {
        repository.expires_s.insert(role, START_S + 20 * month_s);
        repository.rotate(role);
    }
    repository.add("catalog.json", b"of month fourteen");
    repository.publish();

    let mut client = device.open();
    let now = client.now(clock_at(0));
    assert_eq!(now.clock(), Clock::Behind);
    client
        .refresh(&mut repository, now.accepting_expired())
        .unwrap();
    let info = catalog(&mut client, now).unwrap().unwrap();
    assert_eq!(info.digest, Digest::of(b"of month fourteen"));
    let now = client.now(clock_at(0));
    assert_eq!(now.at_s(), START_S + 14 * month_s);
    let standing = client.standing(now).unwrap();
    assert_eq!(
        (standing.versions.root, standing.freshness),
        (5, Freshness::Fresh)
    );

    let refused = client.refresh(&mut older_stick, now.accepting_expired());
    assert!(
        matches!(
            reason(refused),
            Some(Reason::RollbackRefused | Reason::Signature)
        ),
        "older, though a person put it in"
    );
    drop(client);
    let mut client = device.open();
    let info = catalog(&mut client, now).unwrap().unwrap();
    assert_eq!(info.digest, Digest::of(b"of month fourteen"));
}

#[test]
fn a_signed_time_of_2099_does_not_make_a_fleet_refuse_what_the_offline_keys_signed() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    // A thief has the keys of snapshot and timestamp, which lie on a server.
    repository.issued_s = Some(IN_2099_S);
    for role in ["snapshot", "timestamp"] {
        repository.expires_s.insert(role, IN_2099_S + DAY_S);
    }
    repository.write();
    client.refresh(&mut repository, NOW).unwrap();
    let now = client.now(clock_at(0));
    assert_eq!(
        now.at_s(),
        START_S + 365 * DAY_S,
        "no later than the targets expire"
    );
    assert!(catalog(&mut client, now).unwrap().is_some());
    // The owner comes back with new keys, and the thief's time is gone.
    repository.issued_s = Some(START_S + DAY_S);
    for role in ["snapshot", "timestamp"] {
        repository.expires_s.insert(role, START_S + 365 * DAY_S);
        repository.rotate(role);
    }
    repository.publish();
    client.refresh(&mut repository, now).unwrap();
    assert_eq!(client.now(clock_at(0)).at_s(), START_S + DAY_S);
}

#[test]
fn a_synchronised_time_is_noted_for_the_next_start_without_a_clock() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    let synced = client.now(Facts {
        synced: true,
        ..clock_at(START_S + 50 * DAY_S)
    });
    client.refresh(&mut repository, synced).unwrap();
    drop(client);
    let now = device.open().now(clock_at(0));
    assert_eq!(
        (now.at_s(), now.clock()),
        (START_S + 50 * DAY_S, Clock::Behind)
    );
}
