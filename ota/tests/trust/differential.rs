//! Random damage and random edits to a signed repository: the device and tough give the same verdict.
//!
//! Edits are signed again with the right keys and pinned again, so that they get past the signatures to the
//! rules behind them. Where the two may differ stands in two tables, each entry with its reason.

use std::collections::BTreeMap;
use std::env;

use serde_json::{Value, json};

use crate::repository::{ROLES, Repository, envelope};
use crate::verifiers::{Believed, Verifiers};

/// Small, fast and the same on every machine (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How many of each kind; more in the full run.
fn rounds() -> u64 {
    match env::var_os("ORINOCO_FULL") {
        Some(_) => 3000,
        None => 400,
    }
}

fn repository() -> Repository {
    let mut repository = Repository::new();
    repository.rotate("timestamp");
    repository.add("catalog.json", b"second");
    repository.add("small.gguf", b"GGUF");
    repository.publish();
    repository
}

/// The current file of a role.
fn file(repository: &Repository, role: &str) -> String {
    match role {
        "timestamp" => "metadata/timestamp.json".into(),
        _ => format!("metadata/{}.{role}.json", repository.versions[role]),
    }
}

/// Judges the tree as it is, afresh, and compares.
fn compare(verifiers: &Verifiers, what: &str) -> Option<&'static str> {
    verifiers.forget();
    let (ours, tough) = (verifiers.ours(), verifiers.tough());
    let same = match (&ours, &tough) {
        (Ok(ours), Ok(tough)) => same(ours, tough),
        (Err(_), Err(_)) => true,
        _ => false,
    };
    if same {
        return None;
    }
    let known = known(what, &ours, &tough);
    assert!(
        known.is_some(),
        "{what}:\n  the device: {ours:?}\n  tough: {tough:?}"
    );
    known
}

fn same(ours: &Believed, tough: &Believed) -> bool {
    ours.versions == tough.versions
        && ours.targets.get("catalog.json") == tough.targets.get("catalog.json")
}

/// The device refuses, tough accepts: part of the device's words, and why.
const DEVICE_IS_STRICTER: &[(&str, &str)] = &[
    (
        "unsupported TUF spec_version",
        "the device wants version 1.x of the specification",
    ),
    (
        "expected _type",
        "tough verifies over the type that it expects, not the one that is claimed",
    ),
    (
        "threshold not met",
        "tough takes hexadecimal digits in any case, the device takes the signed text",
    ),
    (
        "!= pinned",
        "a pinned length is an upper bound to tough, and the length to the device",
    ),
    (
        "is signed without SHA-256",
        "a digest of no digits is one to tough",
    ),
];

/// The device accepts, tough refuses: part of what was done, part of tough's words, and why that is sound.
const TOUGH_IS_STRICTER: &[(&str, &str, &str)] = &[
    (
        "root: ",
        "Invalid key ID",
        "to the specification the ID of a key is any text; to tough its digest",
    ),
    (
        "root: ",
        "unknown variant",
        "the scheme says how a key signs; tough wants to know its type as well",
    ),
    (
        "set to null",
        "threshold of 1 not met",
        "length and digest of a role are optional; tough verifies over what it kept",
    ),
    (
        "/targets/small.gguf",
        "Failed to parse targets",
        "the device refuses that one target and reads the others",
    ),
    (
        "/version set to 0",
        "nonzero",
        "a version of 0 is below all others to the device",
    ),
];

/// Why the two may differ.
fn known(
    what: &str,
    ours: &Result<Believed, String>,
    tough: &Result<Believed, String>,
) -> Option<&'static str> {
    match (ours, tough) {
        (Err(words), Ok(_)) => DEVICE_IS_STRICTER
            .iter()
            .find(|(part, _)| words.contains(part))
            .map(|(_, reason)| *reason),
        (Ok(_), Err(words)) => TOUGH_IS_STRICTER
            .iter()
            .find(|(done, part, _)| what.contains(done) && words.contains(part))
            .map(|(_, _, reason)| *reason),
        _ => None,
    }
}

#[test]
fn flipped_lost_and_added_bytes_get_the_same_verdict() {
    let repository = repository();
    let verifiers = Verifiers::of(&repository);
    verifiers.assert_accepted();
    let mut random = Random(1);
    let mut differ = BTreeMap::<_, u64>::new();
    for round in 0..rounds() {
        let role: &str = random.pick::<&str>(&ROLES);
        let name = file(&repository, role);
        let mut bytes = repository.files[&name].clone();
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, bytes[at]),
            _ => bytes[at] ^= 1 << random.below(8),
        }
        verifiers.put(&name, &bytes);
        let what = format!("round {round}: {name} damaged at byte {at}");
        if let Some(reason) = compare(&verifiers, &what) {
            *differ.entry(reason).or_default() += 1;
        }
        verifiers.put(&name, &repository.files[&name]);
    }
    eprintln!("known differences: {differ:#?}");
}

#[test]
fn edited_fields_that_are_signed_again_get_the_same_verdict() {
    let mut random = Random(2);
    let mut differ = BTreeMap::<_, u64>::new();
    let mut accepted = 0;
    let mut repository = repository();
    let files = repository.files.clone();
    let verifiers = Verifiers::of(&repository);
    for round in 0..rounds() {
        let role = *random.pick(&ROLES);
        let name = file(&repository, role);
        let mut whole: Value = serde_json::from_slice(&files[&name]).unwrap();
        let signed = &mut whole["signed"];
        let edit = edit(signed, &mut random);
        sign_again(&mut repository, role, signed);
        for (name, bytes) in &repository.files {
            if name.starts_with("metadata/") {
                verifiers.put(name, bytes);
            }
        }
        if let Some(reason) = compare(&verifiers, &format!("round {round}: {role}: {edit}")) {
            *differ.entry(reason).or_default() += 1;
        }
        accepted += u64::from(verifiers.ours().is_ok());
        repository.files.clone_from(&files);
    }
    eprintln!("{accepted} accepted; known differences: {differ:#?}");
    assert!(
        accepted * 20 > rounds(),
        "edits that are fine are among them"
    );
    assert!(accepted < rounds(), "and such that are not");
}

/// Signs a role with its own keys, and everything that pins it.
fn sign_again(repository: &mut Repository, role: &'static str, signed: &Value) {
    let signatures = repository.keys[role].iter().map(|key| key.sign(signed));
    let bytes = envelope(signed, signatures.collect());
    match role {
        "targets" => repository.write_snapshot(&bytes),
        "snapshot" => repository.write_timestamp(&bytes),
        _ => {}
    }
    let name = file(repository, role);
    repository.files.insert(name, bytes);
}

/// Changes one thing somewhere, and says what.
fn edit(signed: &mut Value, random: &mut Random) -> String {
    let mut paths = Vec::new();
    collect(signed, String::new(), &mut paths);
    let path = random.pick(&paths).clone();
    let (above, last) = path.rsplit_once('/').unwrap();
    let key = last.replace("~1", "/").replace("~0", "~");
    match random.below(4) {
        0 => {
            match signed.pointer_mut(above) {
                Some(Value::Object(entries)) => drop(entries.remove(&key)),
                Some(Value::Array(items)) => drop(items.remove(key.parse().unwrap())),
                _ => {}
            }
            format!("{path} removed")
        }
        1 => {
            match signed.pointer_mut(above) {
                Some(Value::Object(entries)) => {
                    entries.insert("x-unknown".into(), json!("a word of a newer publisher"));
                }
                Some(Value::Array(items)) => items.push(items[0].clone()),
                _ => {}
            }
            format!("something added beside {path}")
        }
        _ => {
            let value = signed.pointer_mut(&path).unwrap();
            *value = other(value, random);
            format!("{path} set to {value}")
        }
    }
}

fn other(value: &Value, random: &mut Random) -> Value {
    match value {
        Value::Number(number) => {
            let number = number.as_u64().unwrap_or(0);
            let choices = [
                json!(number + 1),
                json!(number.saturating_sub(1)),
                json!(0),
                json!(-1),
                json!(1.5),
                json!(number.to_string()),
                Value::Null,
            ];
            random.pick(&choices).clone()
        }
        Value::String(string) => {
            let choices = [
                json!(""),
                json!(format!("{string}0")),
                json!(string.to_uppercase()),
                json!(string.replace('0', "1")),
                json!(7),
                Value::Null,
            ];
            random.pick(&choices).clone()
        }
        Value::Bool(is_on) => json!(!is_on),
        Value::Object(_) => random.pick(&[json!({}), json!([]), Value::Null]).clone(),
        Value::Array(_) => random.pick(&[json!([]), json!({}), Value::Null]).clone(),
        Value::Null => json!(0),
    }
}

/// The JSON pointers of everything below the top.
fn collect(value: &Value, at: String, paths: &mut Vec<String>) {
    let below: Vec<(String, &Value)> = match value {
        Value::Object(entries) => entries
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(index, value)| (index.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in below {
        let path = format!("{at}/{key}");
        paths.push(path.clone());
        collect(value, path, paths);
    }
}
