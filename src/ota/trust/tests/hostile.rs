//! Sources that send too much, too deep, or names that want to be paths.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::repository::envelope;
use super::*;

#[test]
fn a_file_without_end_is_cut_off_at_the_limit_of_its_role() {
    for (file, limit_bytes) in [
        ("metadata/2.root.json", limit::ROOT_BYTES),
        ("metadata/timestamp.json", limit::TIMESTAMP_BYTES),
        ("metadata/1.snapshot.json", limit::SNAPSHOT_BYTES),
        ("metadata/1.targets.json", limit::TARGETS_BYTES),
    ] {
        let mut repository = Repository::new();
        let device = Device::new(&repository);
        let mut bytes = repository.files.get(file).cloned().unwrap_or_default();
        bytes.resize(usize::try_from(limit_bytes).unwrap() + 1, b' ');
        repository.files.insert(file.into(), bytes);
        match device.refresh(&mut repository) {
            Err(TrustError::Source(SourceError::TooLong {
                file: found,
                limit_bytes: found_limit,
            })) => {
                assert_eq!((found.as_str(), found_limit), (file, limit_bytes));
            }
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn a_source_that_fails_is_told_by_its_own_error() {
    struct Broken;
    impl MetadataSource for Broken {
        fn get(&mut self, file: &str, _: u64) -> Result<Option<Vec<u8>>, SourceError> {
            Err(SourceError::Stalled {
                file: file.into(),
                seconds: 30,
            })
        }
    }
    let device = Device::new(&Repository::new());
    let stalled = device.open().refresh(&mut Broken, NOW);
    assert_eq!(reason(stalled), Some(Reason::Stalled));
    let mut empty = Repository::new();
    empty.files = BTreeMap::new();
    match device.refresh(&mut empty) {
        Err(TrustError::Missing(file)) => assert_eq!(file, "timestamp.json"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn targets_whose_names_want_to_be_paths_harm_nobody_and_are_never_named() {
    let mut repository = Repository::new();
    let long = "a".repeat(300);
    let names = [
        "..",
        "../../etc/passwd",
        "/abs/x",
        "a/../b",
        "con\0x",
        "C:\\x",
        "еvil.gguf",
        long.as_str(),
        "",
        "a//b",
    ];
    for name in names {
        repository.add(name, b"x");
    }
    repository.publish();
    let device = Device::new(&repository);
    let mut client = device.open();
    client.refresh(&mut repository, NOW).unwrap();
    assert!(
        catalog(&mut client, NOW).unwrap().is_some(),
        "the others are"
    );
    for name in names {
        assert!(TargetName::new(name).is_err(), "{name:?}");
    }
}

#[test]
fn numbers_that_are_no_integers_are_not_metadata() {
    for value in [json!(15.5), json!(1e300), json!(1.0)] {
        let mut repository = Repository::new();
        let device = Device::new(&repository);
        repository.targets.get_mut("catalog.json").unwrap()["custom"] = json!({"tok_s": value});
        repository.publish();
        let refused = device.refresh(&mut repository);
        assert_eq!(reason(refused), Some(Reason::Signature), "{value}");
    }
}

#[test]
fn of_a_doubled_key_the_one_that_was_signed_counts() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let mut timestamp: Value =
        serde_json::from_slice(&repository.files["metadata/timestamp.json"]).unwrap();
    let version = timestamp["signed"]
        .as_object_mut()
        .unwrap()
        .remove("version");
    assert_eq!(version, Some(1.into()));
    let timestamp = timestamp.to_string();
    let of_role = r#""_type":"timestamp""#;
    let before = timestamp.replace(of_role, &format!(r#"{of_role},"version":999,"version":1"#));
    let after = timestamp.replace(of_role, &format!(r#"{of_role},"version":1,"version":999"#));
    for (doubled, is_trusted) in [(before, true), (after, false)] {
        assert!(doubled.contains("999"), "{doubled}");
        repository
            .files
            .insert("metadata/timestamp.json".into(), doubled.into_bytes());
        let refreshed = device.refresh(&mut repository);
        assert_eq!(refreshed.is_ok(), is_trusted, "{refreshed:?}");
        assert!(refreshed.is_err() || refreshed.is_ok_and(|versions| versions.timestamp == 1));
    }
}

#[test]
fn nesting_without_end_is_an_error_and_not_the_end() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    for deep in [
        "[".repeat(15_000),
        r#"{"a":"#.repeat(3_000),
        r#"{"signed":"#.repeat(1_500),
    ] {
        repository
            .files
            .insert("metadata/timestamp.json".into(), deep.into_bytes());
        assert_eq!(
            reason(device.refresh(&mut repository)),
            Some(Reason::Signature)
        );
    }
}

#[test]
fn a_hundred_thousand_targets_are_too_many_and_ten_thousand_are_fine() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let entry = repository.targets["catalog.json"].clone();
    for (count, is_fine) in [(10_000, true), (100_000, false)] {
        for number in 0..count {
            repository
                .targets
                .insert(format!("m{number}.gguf"), entry.clone());
        }
        repository.publish();
        let refreshed = device.refresh(&mut repository);
        assert_eq!(refreshed.is_ok(), is_fine, "{count}");
    }
}

#[test]
fn signatures_of_other_roles_and_empty_ones_do_not_count() {
    let mut repository = Repository::new();
    let device = Device::new(&repository);
    let meta = json!({"snapshot.json": {"version": 1}});
    let signed = repository.body("timestamp", json!({"meta": meta}));
    let of = |role: &str| repository.keys[role][0].sign(&signed);
    let mut empty = of("timestamp");
    empty["sig"] = json!("");
    let mut foreign = of("snapshot");
    foreign["keyid"] = of("timestamp")["keyid"].clone();
    let cases = [
        vec![],
        vec![of("snapshot")],
        vec![of("targets"), of("root")],
        vec![empty],
        vec![foreign],
    ];
    for signatures in cases {
        let forged = envelope(&signed, signatures);
        repository
            .files
            .insert("metadata/timestamp.json".into(), forged);
        assert_eq!(
            reason(device.refresh(&mut repository)),
            Some(Reason::Signature)
        );
    }
}
