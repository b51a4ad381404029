//! A repository of signed updates in memory, made and broken as a test needs it, and read as a source.

use std::collections::BTreeMap;

use crate::ota::Digest;
use crate::ota::trust::time::BUILT_S;
use crate::ota::trust::{MetadataSource, SourceError};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

pub(super) const DAY_S: u64 = 86_400;
/// When the repository is first signed, seconds since 1970.
pub(super) const START_S: u64 = BUILT_S + 30 * DAY_S;

/// The four roles in the order in which a client meets them.
pub(super) const ROLES: [&str; 4] = ["root", "timestamp", "snapshot", "targets"];

/// An Ed25519 key.
pub(super) struct Key {
    pair: Ed25519KeyPair,
    public: String,
}

impl Key {
    pub(super) fn new() -> Self {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
        let public = hex(pair.public_key().as_ref());
        Self { pair, public }
    }

    fn json(&self) -> Value {
        json!({"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": self.public}})
    }

    pub(super) fn id(&self) -> String {
        Digest::of(canonical(&self.json()).as_bytes()).to_string()
    }

    pub(super) fn sign(&self, signed: &Value) -> Value {
        let signature = self.pair.sign(canonical(signed).as_bytes());
        json!({"keyid": self.id(), "sig": hex(signature.as_ref())})
    }
}

/// What the publisher has: keys, numbers and times of each role, and the tree of files.
pub(super) struct Repository {
    pub(super) keys: BTreeMap<&'static str, Vec<Key>>,
    pub(super) thresholds: BTreeMap<&'static str, u64>,
    pub(super) versions: BTreeMap<&'static str, u64>,
    /// When a role expires, seconds since 1970.
    pub(super) expires_s: BTreeMap<&'static str, u64>,
    /// The signed time in each role.
    pub(super) issued_s: Option<u64>,
    pub(super) targets: BTreeMap<String, Value>,
    /// `metadata/1.root.json` …
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// What was asked for.
    pub(super) asked: Vec<String>,
}

impl Repository {
    /// With one target, `catalog.json`, and version 1 of everything.
    pub(super) fn new() -> Self {
        let of_each = |value| ROLES.map(|role| (role, value)).into();
        let mut repository = Self {
            keys: ROLES.map(|role| (role, vec![Key::new()])).into(),
            thresholds: of_each(1),
            versions: of_each(0),
            expires_s: of_each(START_S + 365 * DAY_S),
            issued_s: Some(START_S),
            targets: BTreeMap::new(),
            files: BTreeMap::new(),
            asked: Vec::new(),
        };
        repository.publish_root();
        repository.add("catalog.json", b"first");
        repository.publish();
        repository
    }

    pub(super) fn shipped_root(&self) -> Vec<u8> {
        self.files["metadata/1.root.json"].clone()
    }

    /// Names a file in the next targets, and puts it into the tree.
    pub(super) fn add(&mut self, name: &str, bytes: &[u8]) {
        let digest = Digest::of(bytes);
        self.targets.insert(
            name.into(),
            json!({"length": bytes.len(), "hashes": {"sha256": digest.to_string()}}),
        );
        self.files
            .insert(format!("targets/{digest}.{name}"), bytes.to_vec());
    }

    /// The next version of targets, snapshot and timestamp.
    pub(super) fn publish(&mut self) {
        for role in ["targets", "snapshot", "timestamp"] {
            *self.versions.get_mut(role).unwrap() += 1;
        }
        self.write();
    }

    /// Targets, snapshot and timestamp as they are numbered.
    pub(super) fn write(&mut self) {
        let targets = json!(self.targets);
        let targets = self.sign("targets", json!({"targets": targets}));
        self.write_snapshot(&targets.clone());
        self.put_numbered("targets", targets);
    }

    /// Snapshot and timestamp for some targets.
    pub(super) fn write_snapshot(&mut self, targets: &[u8]) {
        let meta = json!({"targets.json": self.pin("targets", targets)});
        let snapshot = self.sign("snapshot", json!({"meta": meta}));
        self.write_timestamp(&snapshot.clone());
        self.put_numbered("snapshot", snapshot);
    }

    /// The timestamp for a snapshot.
    pub(super) fn write_timestamp(&mut self, snapshot: &[u8]) {
        let meta = json!({"snapshot.json": self.pin("snapshot", snapshot)});
        let timestamp = self.sign("timestamp", json!({"meta": meta}));
        self.files
            .insert("metadata/timestamp.json".into(), timestamp);
    }

    /// The next root, with the keys as they are, signed by the root's.
    pub(super) fn publish_root(&mut self) {
        *self.versions.get_mut("root").unwrap() += 1;
        let root = self.sign("root", self.root_body());
        self.put_numbered("root", root);
    }

    /// New keys for a role and a root that says so, signed by the old and the new keys of root.
    pub(super) fn rotate(&mut self, role: &'static str) {
        let count = self.keys[role].len();
        let fresh = std::iter::repeat_with(Key::new).take(count).collect();
        let old = self.keys.insert(role, fresh).unwrap();
        *self.versions.get_mut("root").unwrap() += 1;
        let signed = self.body("root", self.root_body());
        let others = if role == "root" { old } else { Vec::new() };
        let signatures = self.keys["root"].iter().chain(&others);
        let root = envelope(&signed, signatures.map(|key| key.sign(&signed)).collect());
        self.put_numbered("root", root);
    }

    pub(super) fn root_body(&self) -> Value {
        let keys: BTreeMap<_, _> = self
            .keys
            .values()
            .flatten()
            .map(|key| (key.id(), key.json()))
            .collect();
        let roles: BTreeMap<_, _> = ROLES
            .iter()
            .map(|role| {
                let ids: Vec<_> = self.keys[role].iter().map(Key::id).collect();
                (
                    *role,
                    json!({"keyids": ids, "threshold": self.thresholds[role]}),
                )
            })
            .collect();
        json!({"consistent_snapshot": true, "keys": keys, "roles": roles})
    }

    /// The signed part of a role.
    pub(super) fn body(&self, role: &'static str, own: Value) -> Value {
        let mut body = own;
        body["_type"] = json!(role);
        body["spec_version"] = json!("1.0.34");
        body["version"] = json!(self.versions[role]);
        body["expires"] = json!(date(self.expires_s[role]));
        if let Some(issued_s) = self.issued_s {
            body["x-issued"] = json!(date(issued_s));
        }
        body
    }

    pub(super) fn sign(&self, role: &'static str, own: Value) -> Vec<u8> {
        let signed = self.body(role, own);
        envelope(
            &signed,
            self.keys[role]
                .iter()
                .map(|key| key.sign(&signed))
                .collect(),
        )
    }

    pub(super) fn put_numbered(&mut self, role: &'static str, bytes: Vec<u8>) {
        let name = format!("metadata/{}.{role}.json", self.versions[role]);
        self.files.insert(name, bytes);
    }

    fn pin(&self, role: &'static str, bytes: &[u8]) -> Value {
        json!({
            "version": self.versions[role],
            "length": bytes.len(),
            "hashes": {"sha256": Digest::of(bytes).to_string()},
        })
    }
}

impl MetadataSource for Repository {
    fn get(&mut self, file: &str, _limit_bytes: u64) -> Result<Option<Vec<u8>>, SourceError> {
        self.asked.push(file.into());
        Ok(self.files.get(file).cloned())
    }
}

pub(super) fn envelope(signed: &Value, signatures: Vec<Value>) -> Vec<u8> {
    json!({"signatures": signatures, "signed": signed})
        .to_string()
        .into_bytes()
}

pub(super) fn date(at_s: u64) -> String {
    jiff::Timestamp::from_second(at_s.try_into().unwrap())
        .unwrap()
        .to_string()
}

/// Canonical JSON as TUF has it: sorted keys, no spaces, and only quotes and backslashes escaped.
pub(super) fn canonical(value: &Value) -> String {
    let text = |text: &str| {
        let escaped = text.replace('\\', r"\\").replace('"', r#"\""#);
        format!("\"{escaped}\"")
    };
    match value {
        Value::String(string) => text(string),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(entries) => {
            let sorted: BTreeMap<_, _> = entries.iter().collect();
            let entries: Vec<_> = sorted
                .iter()
                .map(|(key, value)| format!("{}:{}", text(key), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        other => other.to_string(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
