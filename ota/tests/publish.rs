//! The publisher's promises, each over a repository made on the spot with tiny models.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use orinoco::ota::catalog::ReleaseState;
use orinoco::ota::{LineName, ModelId, TargetName};
use orinoco_ota::example::tiny_gguf;
use orinoco_ota::intake::{Intake, add};
use orinoco_ota::keys::{self, KeyFile, short};
use orinoco_ota::repository::{Repository, targets_of};
use orinoco_ota::root::{self, KeyRole, RootChange};
use orinoco_ota::sign::{Expiry, Outcome, sign};
use orinoco_ota::{disk, example, export, releases, time, verify};
use serde_json::json;
use tempfile::TempDir;
use tough::{ExpirationEnforcement, FilesystemTransport, RepositoryLoader};
use url::Url;

#[path = "../../tests/support/gguf.rs"]
mod gguf;

/// A repository of the example, and its keys.
struct Stage {
    dir: TempDir,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = time::now();
        example::make(dir.path(), now).unwrap();
        Self { dir, now }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn repository(&self) -> Repository {
        Repository::open(&self.path("repo")).unwrap()
    }

    fn keys(&self, prefix: &str) -> Vec<KeyFile> {
        let all = keys::in_folders(&[self.path("keys")]).unwrap();
        let is_chosen = |key: &KeyFile| {
            let name = key.path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(prefix)
        };
        all.into_iter().filter(is_chosen).collect()
    }

    fn sign(&self, keys: &[KeyFile]) -> anyhow::Result<Outcome> {
        sign(&self.repository(), keys, self.now, Expiry::default())
    }

    fn verify(&self) -> anyhow::Result<verify::Report> {
        verify::verify(&self.path("repo"), None, self.now)
    }

    fn intake(&self, id: &str) -> Intake {
        let path = self.path("next.gguf");
        fs::write(&path, tiny_gguf(7)).unwrap();
        let mut intake = Intake::new(&path, ModelId::new(id).unwrap(), line());
        intake.licence = Some("CC0-1.0".into());
        intake.piece_bytes = 1024;
        intake
    }

    /// The error of an intake that must be refused, and that nothing is staged after it.
    fn refusal(&self, intake: &Intake) -> String {
        let repository = self.repository();
        let error = add(&repository, intake).unwrap_err();
        assert!(!repository.is_staged(), "{error:#}");
        assert!(repository.staged_targets().unwrap().is_empty(), "{error:#}");
        format!("{error:#}")
    }
}

fn line() -> LineName {
    LineName::new("tiny").unwrap()
}

/// What a client of the first root accepts, by tough: its versions of root and targets.
fn tough_reads(repo: &Path, first_root: &[u8]) -> Result<(u64, u64), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let url = |name: &str| Url::from_directory_path(repo.join(name)).unwrap();
    let root = first_root.to_vec();
    let load = RepositoryLoader::new(&root, url("metadata"), url("targets"))
        .transport(FilesystemTransport)
        .expiration_enforcement(ExpirationEnforcement::Safe);
    let loaded = runtime.block_on(load.load()).map_err(|e| e.to_string())?;
    let (root, targets) = (loaded.root(), loaded.targets());
    Ok((root.signed.version.get(), targets.signed.version.get()))
}

#[test]
fn new_repository_is_whole_and_every_role_says_when_it_was_signed() {
    let stage = Stage::new();
    let report = stage.verify().unwrap();
    assert_eq!(report.releases, (2, 0));
    let metadata = stage.path("repo/metadata");
    for file in [
        "1.root.json",
        "2.targets.json",
        "2.snapshot.json",
        "timestamp.json",
    ] {
        let role: serde_json::Value =
            serde_json::from_slice(&fs::read(metadata.join(file)).unwrap()).unwrap();
        let signed = &role["signed"];
        assert_eq!(signed["x-issued"], stage.now.to_string(), "{file}");
        assert_eq!(
            signed["expires"].as_str().unwrap().len(),
            20,
            "{file}: whole seconds"
        );
    }
}

#[test]
fn keys_of_every_role_can_be_replaced_and_clients_of_the_first_root_follow() {
    let stage = Stage::new();
    let first_root = fs::read(stage.path("repo/metadata/1.root.json")).unwrap();
    let mut keys = stage.keys("");
    for (n, role) in [KeyRole::Online, KeyRole::Targets, KeyRole::Root]
        .into_iter()
        .enumerate()
    {
        let change = RootChange::Rotate {
            role,
            replaced: Vec::new(),
            new_dir: stage.path(&format!("keys-{n}")),
        };
        keys.extend(root::stage(&stage.repository(), &change, stage.now).unwrap());
        stage.sign(&keys).unwrap();
        stage.verify().unwrap();
    }
    assert_eq!(tough_reads(&stage.path("repo"), &first_root).unwrap().0, 4);
    // Those who were replaced sign nothing any more.
    let error = stage.sign(&stage.keys("")).unwrap_err();
    assert!(
        format!("{error:#}").contains("1 of these keys needed"),
        "{error:#}"
    );
}

#[test]
fn lost_root_key_is_replaced_by_the_two_others_one_person_after_the_other() {
    let stage = Stage::new();
    let root_keys = stage.keys("root");
    let lost = short(&root_keys[2].id);
    let change = RootChange::Rotate {
        role: KeyRole::Root,
        replaced: vec![lost.clone()],
        new_dir: stage.path("keys-2"),
    };
    root::stage(&stage.repository(), &change, stage.now).unwrap();
    let online = stage.keys("online");
    let by = |key: &KeyFile| [std::slice::from_ref(key), &online].concat();

    let first = stage.sign(&by(&root_keys[0])).unwrap();
    let Outcome::RootWaits {
        version: 2,
        missing,
    } = first
    else {
        panic!("{first:?}");
    };
    assert!(
        missing.contains("1 of 2 signatures of the present root"),
        "{missing}"
    );
    assert!(!stage.path("repo/metadata/2.root.json").exists());
    stage.verify().unwrap();

    // The lost key counts for the old root, and not for the new one.
    let found = stage.sign(&by(&root_keys[2])).unwrap();
    assert!(matches!(found, Outcome::RootWaits { .. }), "{found:?}");

    let second = stage.sign(&by(&root_keys[1])).unwrap();
    assert!(
        matches!(second, Outcome::Published(versions) if versions.root == 2),
        "{second:?}"
    );
    stage.verify().unwrap();
    let root = stage.repository().root().unwrap().signed;
    assert!(root.keys.keys().all(|id| short(id) != lost));
}

#[test]
fn cut_before_the_timestamp_leaves_the_old_repository_and_signing_again_repairs() {
    let stage = Stage::new();
    let timestamp = stage.path("repo/metadata/timestamp.json");
    let old = fs::read(&timestamp).unwrap();
    releases::withdraw(&stage.repository(), &line(), 2, Some(1)).unwrap();
    let staged = fs::read(stage.path("repo/staged/catalog.json")).unwrap();
    stage.sign(&stage.keys("")).unwrap();
    // As after a cut: everything but the last file, and what was staged still is.
    fs::write(&timestamp, old).unwrap();
    fs::write(stage.path("repo/staged/catalog.json"), staged).unwrap();
    assert_eq!(stage.verify().unwrap().releases, (2, 0));
    stage.sign(&stage.keys("")).unwrap();
    let report = stage.verify().unwrap();
    assert_eq!((report.releases, report.versions.targets), ((1, 1), 3));
}

#[test]
fn without_changes_the_online_key_alone_makes_the_repository_good_for_longer() {
    let mut stage = Stage::new();
    stage.now = time::days_after(stage.now, 170).unwrap();
    assert!(stage.verify().unwrap().expires_days < 11);
    stage.sign(&stage.keys("online")).unwrap();
    assert!(stage.verify().unwrap().expires_days > 170);
    stage.now = time::days_after(stage.now, 400).unwrap();
    let error = stage.verify().unwrap_err().to_string();
    assert!(
        error.contains("expired on") && error.contains("orinoco-ota sign"),
        "{error}"
    );
}

#[test]
fn releases_wait_for_a_targets_key() {
    let stage = Stage::new();
    add(&stage.repository(), &stage.intake("tiny-3")).unwrap();
    let error = format!("{:#}", stage.sign(&stage.keys("online")).unwrap_err());
    assert!(
        error.contains("sign targets: 1 of these keys needed"),
        "{error}"
    );
    assert_eq!(stage.verify().unwrap().releases, (2, 0));
    stage
        .sign(&[stage.keys("targets-2"), stage.keys("online")].concat())
        .unwrap();
    assert_eq!(stage.verify().unwrap().releases, (3, 0));
}

#[test]
fn recalled_model_is_no_target_any_more_and_its_manifest_still_is() {
    let stage = Stage::new();
    let best = releases::withdraw(&stage.repository(), &line(), 2, Some(1)).unwrap();
    assert_eq!(best, Some(1));
    stage.sign(&stage.keys("")).unwrap();
    let repository = stage.repository();
    let targets = repository.published().unwrap().targets.unwrap();
    let targets = targets_of(&targets.signed).unwrap();
    let id = ModelId::new("tiny-2").unwrap();
    assert!(!targets.contains_key(&TargetName::weights(&id)));
    assert!(targets.contains_key(&TargetName::manifest(&id)));
    let catalog = repository.catalog().unwrap();
    assert_eq!(
        catalog.release(&line(), 2).unwrap().state,
        ReleaseState::Withdrawn
    );
    assert!(catalog.line(&line()).unwrap().allows(Some(2), 1));
}

#[test]
fn recall_back_to_a_release_that_may_not_run_is_refused() {
    let stage = Stage::new();
    releases::withdraw(&stage.repository(), &line(), 1, None).unwrap();
    let error = releases::withdraw(&stage.repository(), &line(), 2, Some(1)).unwrap_err();
    assert!(
        error.to_string().contains("cannot go back to it"),
        "{error}"
    );
    let error = releases::withdraw(&stage.repository(), &line(), 9, None).unwrap_err();
    assert!(error.to_string().contains("there are: 1, 2"), "{error}");
}

#[test]
fn each_malformed_model_is_refused_before_anything_is_staged() {
    let stage = Stage::new();
    let intake = stage.intake("bad");
    for (name, gguf, expected) in gguf::malformed() {
        let (raw, file_bytes) = gguf.bytes();
        fs::write(&intake.model, raw).unwrap();
        if !expected.contains("ends inside its header") {
            // As long as the header says, and mostly a hole.
            let file = fs::File::options().write(true).open(&intake.model).unwrap();
            file.set_len(file_bytes.min(1 << 40)).unwrap();
        }
        let error = stage.refusal(&intake);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn model_of_a_foreign_architecture_is_refused() {
    let stage = Stage::new();
    let intake = stage.intake("foreign");
    let mut raw = tiny_gguf(1);
    let at = raw.windows(5).position(|w| w == b"llama").unwrap();
    raw[at..at + 5].copy_from_slice(b"plamo");
    fs::write(&intake.model, raw).unwrap();
    let error = stage.refusal(&intake);
    assert!(
        error.contains("plamo") && error.contains("general.architecture"),
        "{error}"
    );
}

#[test]
fn draft_model_of_another_vocabulary_is_refused_and_one_of_the_same_is_fine() {
    let stage = Stage::new();
    let mut intake = stage.intake("pair");
    intake.line = LineName::new("big").unwrap();
    intake.draft = Some((line(), 1));
    let same = fs::read(&intake.model).unwrap();
    let mut other = same.clone();
    // The token "c".
    let at = other
        .windows(9)
        .position(|w| w == [1, 0, 0, 0, 0, 0, 0, 0, b'c'])
        .unwrap();
    other[at + 8] = b'x';
    fs::write(&intake.model, other).unwrap();
    let error = stage.refusal(&intake);
    assert!(error.contains("cannot draft for pair"), "{error}");

    fs::write(&intake.model, same).unwrap();
    let manifest = add(&stage.repository(), &intake).unwrap();
    assert_eq!(manifest.draft(), Some((&line(), 1)));
}

#[test]
fn draft_line_without_a_release_is_refused() {
    let stage = Stage::new();
    let mut intake = stage.intake("pair");
    intake.line = LineName::new("big").unwrap();
    intake.draft = Some((line(), 3));
    assert!(stage.refusal(&intake).contains("add the draft model first"));
}

#[test]
fn manifest_that_contradicts_the_file_or_means_nothing_is_refused() {
    let stage = Stage::new();
    let mut intake = stage.intake("wrong");
    intake.manifest = Some(stage.path("manifest.json"));
    for (manifest, expected) in [
        (
            json!({"model": {"arch": "qwen3"}}),
            "arch: the manifest says \"qwen3\"",
        ),
        (
            json!({"model": {"n_params": 1}}),
            "n_params: the manifest says 1",
        ),
        (
            json!({"model": {"quant": "Q4_K_M"}}),
            "quant: the manifest says",
        ),
        (
            json!({"release_seq": 9}),
            "release_seq: the manifest says 9",
        ),
        (
            json!({"line": "other"}),
            "line: the manifest says \"other\"",
        ),
        (json!({"files": []}), "files: found"),
        (
            json!({"runtime": {"n_ctx": 4096}}),
            "at most 2048, with which the model was trained",
        ),
        (
            json!({"helth": {"load_ms_max": 1}}),
            "helth, which means nothing",
        ),
        (
            json!({"health": {"load_ms": 1}}),
            "health.load_ms, which means nothing",
        ),
        (
            json!({"needs": {"memory_mib": [{"n_ctx": 1, "mib": 1, "gib": 1}]}}),
            "memory_mib.[0].gib",
        ),
        (
            json!({"runtime": {"sampling_milli": {"temperature": 0.7}}}),
            "invalid type: floating point",
        ),
        (
            json!({"health": {"golden": [{"kind": "match", "prompt": "x", "must_match": "(", "max_tokens": 1}]}}),
            "must_match: found",
        ),
        (json!([]), "expected a JSON object"),
    ] {
        fs::write(stage.path("manifest.json"), manifest.to_string()).unwrap();
        let error = stage.refusal(&intake);
        assert!(error.contains(expected), "{manifest}: {error}");
    }
    fs::write(stage.path("manifest.json"), r#"{"a": 1"#).unwrap();
    assert!(stage.refusal(&intake).contains("read "));
}

#[test]
fn name_that_was_used_and_number_that_does_not_rise_are_refused() {
    let stage = Stage::new();
    assert!(
        stage
            .refusal(&stage.intake("tiny-2"))
            .contains("never used for another file")
    );
    let mut intake = stage.intake("tiny-3");
    intake.release_seq = Some(2);
    assert!(
        stage
            .refusal(&intake)
            .contains("the last one is 2, expected a higher number")
    );
    intake.release_seq = None;
    intake.licence = None;
    assert!(stage.refusal(&intake).contains("--licence"));
}

#[test]
fn target_that_was_changed_on_the_disk_is_not_signed_and_does_not_verify() {
    let stage = Stage::new();
    let repository = stage.repository();
    let id = ModelId::new("tiny-1").unwrap();
    let weights = repository.manifest(&id).unwrap().weights().clone();
    let path = repository.target_path(&weights.target, &weights.sha256);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = format!("{:#}", stage.verify().unwrap_err());
    assert!(error.contains("signed is"), "{error}");
    bytes.pop();
    fs::write(&path, &bytes).unwrap();
    drop(repository);
    releases::set_min_seq(&stage.repository(), &line(), 1).unwrap();
    let error = format!("{:#}", stage.sign(&stage.keys("")).unwrap_err());
    assert!(error.contains("bytes, expected"), "{error}");
}

#[test]
fn policy_is_published_beside_the_models_and_only_with_a_rising_number() {
    let stage = Stage::new();
    let policy = stage.path("policy.toml");
    fs::write(
        &policy,
        "schema = 1\npolicy_seq = 1\n[requests]\nqueue_jobs_max = 200\n",
    )
    .unwrap();
    releases::set_policy(&stage.repository(), &policy).unwrap();
    stage.sign(&stage.keys("")).unwrap();
    stage.verify().unwrap();
    let known = stage.repository().known_targets().unwrap();
    assert!(known.contains_key(&TargetName::policy()));
    let error = releases::set_policy(&stage.repository(), &policy)
        .unwrap_err()
        .to_string();
    assert!(error.contains("expected more than 1"), "{error}");
    // It stays when only a model is added.
    add(&stage.repository(), &stage.intake("tiny-3")).unwrap();
    stage.sign(&stage.keys("")).unwrap();
    assert!(
        stage
            .repository()
            .known_targets()
            .unwrap()
            .contains_key(&TargetName::policy())
    );
}

#[test]
fn copy_on_a_stick_is_read_back_and_a_bad_file_on_it_is_written_again() {
    let stage = Stage::new();
    let stick = stage.path("stick");
    let first_root = fs::read(stage.path("repo/metadata/1.root.json")).unwrap();
    export::export(&stage.repository(), &stick, stage.now).unwrap();
    assert_eq!(tough_reads(&stick, &first_root), Ok((1, 2)));
    assert!(!stick.join("staged").exists());
    let model = fs::read_dir(stick.join("targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "gguf"))
        .unwrap();
    let good = fs::read(&model).unwrap();
    fs::write(&model, vec![0; good.len()]).unwrap();
    assert!(verify::verify(&stick, None, stage.now).is_err());
    export::export(&stage.repository(), &stick, stage.now).unwrap();
    assert_eq!(fs::read(&model).unwrap(), good);
}

#[test]
fn tree_of_another_fleet_is_refused_with_the_root_of_this_one() {
    let (ours, theirs) = (Stage::new(), Stage::new());
    let root = ours.path("repo/metadata/1.root.json");
    let error = verify::verify(&theirs.path("repo"), Some(&root), ours.now).unwrap_err();
    assert!(format!("{error:#}").contains("metadata"), "{error:#}");
}

#[test]
fn two_publishers_at_once_are_kept_apart() {
    let stage = Stage::new();
    let _first = stage.repository();
    let error = Repository::open(&stage.path("repo")).unwrap_err();
    assert!(
        error.to_string().contains("another orinoco-ota works on"),
        "{error}"
    );
}

#[test]
fn folder_that_is_no_repository_says_how_to_make_one() {
    let dir = tempfile::tempdir().unwrap();
    let error = Repository::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("orinoco-ota init makes one"), "{error}");
    disk::write_whole(&dir.path().join("metadata/1.root.json"), b"{}", 0o644).unwrap();
    let error = Repository::open(dir.path()).unwrap().root().unwrap_err();
    assert!(error.to_string().contains("1.root.json"), "{error}");
}
