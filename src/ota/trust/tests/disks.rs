//! Disks that are full or read-only, and two who want the same folder.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::ota::vfs::{Unsynced, Vfs};

fn open_on(vfs: &Unsynced, repository: &Repository) -> Result<Client, TrustError> {
    let place = Place {
        folder: "/ota/trust".into(),
        root: repository.shipped_root(),
    };
    Client::open_on(place, Arc::new(vfs.clone()))
}

#[test]
fn on_a_full_disk_no_target_is_named_until_there_is_room_again() {
    let mut repository = Repository::new();
    let disk = Unsynced::new();
    let mut client = open_on(&disk, &repository).unwrap();
    client.refresh(&mut repository, NOW).unwrap();
    repository.publish();
    let mut refused = 0;
    for room_bytes in (0..6000).step_by(200) {
        disk.set_room(Some(room_bytes));
        if client.refresh(&mut repository, NOW).is_err() {
            refused += 1;
            assert!(
                catalog(&mut client, NOW).is_err(),
                "room for {room_bytes} bytes"
            );
            assert_eq!(client.standing(NOW), None);
        }
    }
    assert!(refused > 5);
    disk.set_room(None);
    client.refresh(&mut repository, NOW).unwrap();
    assert!(catalog(&mut client, NOW).unwrap().is_some());
}

#[test]
fn on_a_full_disk_a_new_device_trusts_nothing_and_begins_when_there_is_room() {
    let mut repository = Repository::new();
    let disk = Unsynced::new();
    disk.set_room(Some(100));
    assert_eq!(
        reason(open_on(&disk, &repository)),
        Some(Reason::TrustStore)
    );
    disk.set_room(None);
    let mut client = open_on(&disk, &repository).unwrap();
    assert!(client.refresh(&mut repository, NOW).is_ok());
}

/// A disk that can turn read-only, as one does after errors.
struct ReadOnly {
    disk: Unsynced,
    is_on: Arc<AtomicBool>,
}

impl ReadOnly {
    fn check(&self) -> io::Result<()> {
        match self.is_on.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
            false => Ok(()),
        }
    }
}

impl Vfs for ReadOnly {
    fn read(&self, path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        self.disk.read(path, bytes_max)
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.check().and_then(|()| self.disk.write(path, bytes))
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.check().and_then(|()| self.disk.append(path, bytes))
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        self.check().and_then(|()| self.disk.sync(path))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check().and_then(|()| self.disk.rename(from, to))
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check().and_then(|()| self.disk.remove(path))
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.check().and_then(|()| self.disk.sync_dir(dir))
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        self.check().and_then(|()| self.disk.make_dir(dir))
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<(std::path::PathBuf, u64)>> {
        self.disk.list(dir)
    }
}

#[test]
fn on_a_read_only_disk_nothing_new_is_trusted() {
    let mut repository = Repository::new();
    let is_on = Arc::new(AtomicBool::new(false));
    let vfs = ReadOnly {
        disk: Unsynced::new(),
        is_on: Arc::clone(&is_on),
    };
    let place = Place {
        folder: "/ota/trust".into(),
        root: repository.shipped_root(),
    };
    let mut client = Client::open_on(place, Arc::new(vfs)).unwrap();
    client.refresh(&mut repository, NOW).unwrap();
    is_on.store(true, Ordering::Relaxed);
    repository.publish();
    let refused = client.refresh(&mut repository, NOW);
    assert_eq!(reason(refused), Some(Reason::TrustStore));
    assert!(catalog(&mut client, NOW).is_err());
    is_on.store(false, Ordering::Relaxed);
    assert_eq!(client.refresh(&mut repository, NOW).unwrap().timestamp, 2);
}

#[test]
fn of_two_who_want_the_folder_one_is_told_that_it_is_taken() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut first = device.open();
    assert!(matches!(device.try_open(), Err(TrustError::Busy(_))));
    first.refresh(&mut repository, NOW).unwrap();
    drop(first);
    assert!(device.try_open().is_ok());
}

#[test]
fn a_refresh_that_brings_nothing_new_writes_nothing() {
    let mut repository = Repository::new();
    let disk = Unsynced::new();
    let mut client = open_on(&disk, &repository).unwrap();
    client.refresh(&mut repository, NOW).unwrap();
    disk.set_room(Some(0));
    client.refresh(&mut repository, NOW).unwrap();
}

#[test]
fn a_device_that_lost_its_floor_begins_again_once_it_was_made_to_forget() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut client = device.open();
    client.refresh(&mut repository, NOW).unwrap();
    let taken = Client::forget(device.path());
    assert!(
        matches!(taken, Err(TrustError::Busy(_))),
        "not while it runs"
    );
    drop(client);
    for slot in ["floor.a", "floor.b"] {
        std::fs::write(device.path().join(slot), b"").unwrap();
    }
    assert_eq!(reason(device.try_open()), Some(Reason::FloorCorrupt));
    Client::forget(device.path()).unwrap();
    let mut client = device.open();
    assert_eq!(client.standing(NOW), None);
    assert!(client.refresh(&mut repository, NOW).is_ok());
    assert!(Client::forget(&device.path().join("never")).is_ok());
}
