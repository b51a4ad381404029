//! Attacks that both verifiers must judge alike.

use crate::repository::{Key, Repository, envelope};
use crate::verifiers::Verifiers;

const LOWER: [&str; 3] = ["timestamp", "snapshot", "targets"];

#[test]
fn both_read_what_was_published_and_its_successor() {
    let mut repository = Repository::new();
    let verifiers = Verifiers::of(&repository);
    verifiers.assert_accepted();
    repository.add("catalog.json", b"second");
    repository.publish();
    verifiers.serve(&repository);
    verifiers.assert_accepted();
}

#[test]
fn both_refuse_another_fleets_repository() {
    let verifiers = Verifiers::of(&Repository::new());
    verifiers.serve(&Repository::new());
    verifiers.assert_refused();
}

#[test]
fn both_refuse_an_older_version_of_any_role() {
    for role in LOWER {
        let mut repository = Repository::new();
        for role in LOWER {
            repository.versions.insert(role, 5);
        }
        repository.write();
        let verifiers = Verifiers::of(&repository);
        verifiers.assert_accepted();
        for role in LOWER {
            repository.versions.insert(role, 6);
        }
        repository.versions.insert(role, 4);
        repository.write();
        verifiers.serve(&repository);
        verifiers.assert_refused();
    }
}

#[test]
fn both_refuse_parts_of_two_days() {
    let mut repository = Repository::new();
    let first = repository.files.clone();
    repository.add("catalog.json", b"second");
    repository.publish();
    for (newer, older) in [
        ("metadata/2.targets.json", "metadata/1.targets.json"),
        ("metadata/2.snapshot.json", "metadata/1.snapshot.json"),
    ] {
        let verifiers = Verifiers::of(&repository);
        verifiers.put(newer, &first[older]);
        verifiers.assert_refused();
    }
}

#[test]
fn both_leave_a_thiefs_version_behind_with_their_keys() {
    let mut repository = Repository::new();
    for role in ["timestamp", "snapshot"] {
        repository.versions.insert(role, 1_000_000);
    }
    repository.write();
    let verifiers = Verifiers::of(&repository);
    verifiers.assert_accepted();
    for role in ["timestamp", "snapshot"] {
        repository.versions.insert(role, 3);
    }
    repository.write();
    verifiers.serve(&repository);
    verifiers.assert_refused();
    for role in ["timestamp", "snapshot"] {
        repository.rotate(role);
    }
    repository.write();
    verifiers.serve(&repository);
    verifiers.assert_accepted();
}

#[test]
fn both_want_a_new_root_signed_by_the_old_and_the_new_keys() {
    for (by_old, by_new) in [(true, true), (true, false), (false, true)] {
        let mut repository = Repository::new();
        let old = repository.keys.insert("root", vec![Key::new()]).unwrap();
        repository.versions.insert("root", 2);
        let signed = repository.body("root", repository.root_body());
        let mut signatures = Vec::new();
        if by_old {
            signatures.push(old[0].sign(&signed));
        }
        if by_new {
            signatures.push(repository.keys["root"][0].sign(&signed));
        }
        let root = envelope(&signed, signatures);
        repository.put_numbered("root", root);
        let verifiers = Verifiers::of(&repository);
        match by_old && by_new {
            true => verifiers.assert_accepted(),
            false => verifiers.assert_refused(),
        }
    }
}

#[test]
fn both_count_two_signatures_of_one_key_as_no_two() {
    let mut repository = Repository::new();
    repository.thresholds.insert("root", 2);
    let three = std::iter::repeat_with(Key::new).take(3).collect();
    let old = repository.keys.insert("root", three).unwrap();
    repository.versions.insert("root", 2);
    let signed = repository.body("root", repository.root_body());
    let keys = &repository.keys["root"];
    let signatures = |ids: &[usize]| {
        let by_new = ids.iter().map(|id| keys[*id].sign(&signed));
        std::iter::once(old[0].sign(&signed))
            .chain(by_new)
            .collect()
    };
    let cases = [(&[0, 0][..], false), (&[0], false), (&[0, 2], true)];
    let cases = cases.map(|(ids, is_fine)| (envelope(&signed, signatures(ids)), is_fine));
    for (root, is_fine) in cases {
        repository.put_numbered("root", root);
        let verifiers = Verifiers::of(&repository);
        match is_fine {
            true => verifiers.assert_accepted(),
            false => verifiers.assert_refused(),
        }
    }
}

#[test]
fn both_follow_five_roots_and_none_across_a_gap() {
    let mut repository = Repository::new();
    let verifiers = Verifiers::of(&repository);
    for role in ["root", "timestamp", "root", "targets", "snapshot"] {
        repository.rotate(role);
    }
    repository.publish();
    let third = repository.files.remove("metadata/3.root.json").unwrap();
    verifiers.serve(&repository);
    verifiers.assert_refused();
    repository
        .files
        .insert("metadata/3.root.json".into(), third);
    verifiers.serve(&repository);
    verifiers.assert_accepted();
}
