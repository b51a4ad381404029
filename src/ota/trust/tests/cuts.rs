//! The power goes at every step, and the disk forgets what it likes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::*;
use crate::ota::vfs::{Cut, Keeps, Unsynced};

fn open(disk: &Unsynced, repository: &Repository) -> Result<Client, TrustError> {
    let place = Place {
        folder: "/ota/trust".into(),
        root: repository.shipped_root(),
    };
    Client::open_on(place, Arc::new(disk.clone()))
}

/// Runs it until the power goes; whether it came to its end.
fn until_cut(work: impl FnOnce()) -> bool {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => true,
        Err(panic) if panic.is::<Cut>() => false,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// A life: start, refresh. Then, after a cut at each of its steps and under each idea of what is left, the
/// device comes up, does not go below what it had acted on, and converges. `old` is a day that is over once the
/// refresh has come to its end. Returns the number of steps.
fn cut_everywhere(disk: &Unsynced, old: &mut Repository, repository: &mut Repository) -> u64 {
    let acted_on = open(&disk.cut(Keeps::Synced), repository)
        .unwrap()
        .standing(NOW);
    let mut steps = 0;
    for keeps in [Keeps::Everything, Keeps::Synced, Keeps::NamesOnly] {
        for n_steps in 0.. {
            let disk = disk.cut(keeps);
            disk.cut_after(n_steps);
            let ended = until_cut(|| {
                let mut client = open(&disk, repository).unwrap();
                client.refresh(repository, NOW).unwrap();
            });
            let disk = disk.cut(keeps);
            let at = format!("{keeps:?}, step {n_steps}");
            let mut client =
                open(&disk, repository).unwrap_or_else(|error| panic!("{at}: {error}"));
            if let (Some(acted_on), Some(found)) = (acted_on, client.standing(NOW)) {
                assert!(
                    found.versions.timestamp >= acted_on.versions.timestamp,
                    "{at}"
                );
            }
            if ended {
                assert!(client.refresh(old, NOW).is_err(), "{at}: that day is over");
            }
            let versions = client.refresh(repository, NOW).unwrap();
            assert_eq!(versions.timestamp, repository.versions["timestamp"], "{at}");
            assert!(catalog(&mut client, NOW).unwrap().is_some(), "{at}");
            if ended {
                steps = n_steps;
                break;
            }
        }
    }
    steps
}

#[test]
fn a_power_cut_at_any_step_of_the_first_refresh_leaves_a_device_that_starts_and_catches_up() {
    let mut repository = Repository::new();
    let mut old = Repository::new();
    old.files = repository.files.clone();
    repository.publish();
    let steps = cut_everywhere(&Unsynced::new(), &mut old, &mut repository);
    assert!(steps > 40, "{steps} steps");
}

#[test]
fn a_power_cut_at_any_step_of_a_later_refresh_never_opens_the_way_back() {
    let mut repository = Repository::new();
    let disk = Unsynced::new();
    open(&disk, &repository)
        .unwrap()
        .refresh(&mut repository, NOW)
        .unwrap();
    let mut old = Repository::new();
    old.files = repository.files.clone();
    repository.rotate("targets");
    repository.add("catalog.json", b"second");
    repository.publish();
    let steps = cut_everywhere(&disk, &mut old, &mut repository);
    assert!(steps > 40, "{steps} steps");
}

#[test]
fn a_power_cut_while_keys_are_recovered_leaves_a_device_that_recovers() {
    let mut repository = Repository::new();
    let disk = Unsynced::new();
    repository.versions.insert("timestamp", 4_000_000_000);
    repository.write();
    open(&disk, &repository)
        .unwrap()
        .refresh(&mut repository, NOW)
        .unwrap();
    repository.rotate("timestamp");
    repository.versions.insert("timestamp", 2);
    repository.write();
    for keeps in [Keeps::Everything, Keeps::Synced, Keeps::NamesOnly] {
        for n_steps in 0.. {
            let disk = disk.cut(keeps);
            disk.cut_after(n_steps);
            let ended = until_cut(|| {
                let mut client = open(&disk, &repository).unwrap();
                client.refresh(&mut repository, NOW).unwrap();
            });
            let disk = disk.cut(keeps);
            let mut client = open(&disk, &repository).unwrap();
            let versions = client.refresh(&mut repository, NOW).unwrap();
            assert_eq!(versions.timestamp, 2, "{keeps:?}, step {n_steps}");
            if ended {
                break;
            }
        }
    }
}
