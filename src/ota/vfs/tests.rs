use std::panic::{AssertUnwindSafe, catch_unwind};

use super::unsynced::{Cut, Keeps, Unsynced};
use super::*;

const FILE: &str = "/s/state.json";

fn read(vfs: &dyn Vfs) -> Option<Vec<u8>> {
    vfs.read(Path::new(FILE), 100).unwrap()
}

#[test]
fn whatever_a_power_cut_keeps_the_old_state_or_the_new_one_is_there() {
    let mut n_cuts = 0;
    for at in 0.. {
        let disk = Unsynced::new();
        replace(&disk, Path::new(FILE), b"old").unwrap();
        disk.cut_after(at);
        let done = catch_unwind(AssertUnwindSafe(|| replace(&disk, Path::new(FILE), b"new")));
        for keeps in [Keeps::Everything, Keeps::Synced, Keeps::NamesOnly] {
            let left = read(&disk.cut(keeps)).unwrap();
            assert!(left == b"old" || left == b"new", "{at} {keeps:?}: {left:?}");
        }
        match done {
            Ok(done) => {
                done.unwrap();
                assert_eq!(read(&disk.cut(Keeps::Synced)).unwrap(), b"new");
                break;
            }
            Err(panic) => assert!(panic.downcast::<Cut>().is_ok()),
        }
        n_cuts += 1;
    }
    assert_eq!(n_cuts, 7);
}

#[test]
fn a_rename_before_the_sync_is_what_the_worst_cut_finds_out() {
    let disk = Unsynced::new();
    replace(&disk, Path::new(FILE), b"old").unwrap();
    let new = Path::new("/s/new");
    disk.write(new, b"new").unwrap();
    disk.rename(new, Path::new(FILE)).unwrap();
    assert_eq!(read(&disk).unwrap(), b"new");
    assert_eq!(read(&disk.cut(Keeps::Synced)).unwrap(), b"old");
    assert_eq!(read(&disk.cut(Keeps::NamesOnly)).unwrap(), b"");
}

#[test]
fn a_full_disk_leaves_the_old_state() {
    let disk = Unsynced::new();
    replace(&disk, Path::new(FILE), b"old").unwrap();
    disk.set_room(Some(2));
    assert!(replace(&disk, Path::new(FILE), b"new").is_err());
    assert_eq!(read(&disk).unwrap(), b"old");
}

#[test]
fn the_real_disk_does_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/state.json");
    Disk.make_dir(path.parent().unwrap()).unwrap();
    assert_eq!(Disk.read(&path, 10).unwrap(), None);
    replace(&Disk, &path, b"old").unwrap();
    replace(&Disk, &path, b"new").unwrap();
    Disk.append(&path, b"er").unwrap();
    assert_eq!(Disk.read(&path, 5).unwrap().unwrap(), b"newer");
    assert!(Disk.read(&path, 4).is_err(), "longer than allowed");
    assert_eq!(
        Disk.list(path.parent().unwrap()).unwrap(),
        [(path.clone(), 5)]
    );
    Disk.remove(&path).unwrap();
    Disk.remove(&path).unwrap();
    assert_eq!(Disk.list(path.parent().unwrap()).unwrap(), []);
}
