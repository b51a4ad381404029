//! Takes a model in: judges the file, copies it among the targets, and writes its manifest.
//!
//! The operator says what the device must have and how the model shows that it works; what stands in the file
//! is read from the file, and where both say something they must agree. Nothing is signed here.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use orinoco::models::gguf::{self, Header};
use orinoco::ota::catalog::{Catalog, Line, Release, ReleaseState};
use orinoco::ota::manifest::{MANIFEST_BYTES_MAX, Manifest, SCHEMA};
use orinoco::ota::pieces::{PIECE_BYTES, PieceTable, n_pieces};
use orinoco::ota::waves::Wave;
use orinoco::ota::{Digest, GroupName, LineName, ModelId, TargetName};
use serde_json::{Map, Value, json};
use sha2::Digest as _;

use crate::disk;
use crate::progress;
use crate::repository::{Repository, TargetFile};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// Longest licence, bytes.
const LICENCE_BYTES_MAX: u64 = 1 << 20;

/// A model to be taken in.
#[derive(Debug, Clone)]
pub struct Intake {
    /// The GGUF file.
    pub model: PathBuf,
    /// Its name in the repository; it is never used again for another file.
    pub id: ModelId,
    /// The line that it continues.
    pub line: LineName,
    /// Its number; none: one more than the last of the line.
    pub release_seq: Option<u64>,
    /// For people.
    pub title: String,
    /// SPDX expression.
    pub licence: Option<String>,
    /// Text of the licence.
    pub licence_file: Option<PathBuf>,
    /// What the operator knows: any part of a manifest, as JSON.
    pub manifest: Option<PathBuf>,
    /// Prompts and the patterns of their answers.
    pub golden: Vec<(String, String)>,
    /// Line and oldest release of the model that drafts for it.
    pub draft: Option<(LineName, u64)>,
    /// Groups that may take it; empty: all.
    pub groups: Vec<GroupName>,
    /// When devices take it of themselves; empty: not before a command.
    pub waves: Vec<Wave>,
    /// Length of a piece.
    pub piece_bytes: u32,
}

impl Intake {
    /// The least that must be said.
    pub fn new(model: &Path, id: ModelId, line: LineName) -> Self {
        Self {
            model: model.to_owned(),
            id,
            line,
            release_seq: None,
            title: String::new(),
            licence: None,
            licence_file: None,
            manifest: None,
            golden: Vec::new(),
            draft: None,
            groups: Vec::new(),
            waves: Vec::new(),
            piece_bytes: PIECE_BYTES,
        }
    }
}

/// Stages a release: its files are among the targets, and it is in the next catalogue.
///
/// # Errors
/// The file does not pass the preflight, says something else than the operator, its draft model has another
/// vocabulary, the name is taken, or nothing can be written. Nothing is staged then.
pub fn add(repository: &Repository, intake: &Intake) -> Result<Manifest> {
    let mut catalog = repository.catalog()?;
    let known = repository.known_targets()?;
    ensure!(
        !known.contains_key(&TargetName::manifest(&intake.id)),
        "model {} is in {} already: a name is never used for another file, choose a new one",
        intake.id,
        repository.dir().display()
    );
    let release_seq = next_seq(&catalog, intake)?;
    let header = gguf::preflight(&intake.model).context("the model is not taken in")?;
    let mut manifest = said_by_operator(intake)?;
    fill(&mut manifest, intake, release_seq, &header)?;
    if let Some((line, min_seq)) = &intake.draft {
        check_draft(repository, &catalog, intake, line, *min_seq)?;
    }

    let (weights, table) = copy_model(repository, intake, &header)?;
    let pieces = repository.put_target(&TargetName::pieces(&intake.id), &table.to_bytes())?;
    let mut staged = vec![
        (TargetName::weights(&intake.id), weights),
        (TargetName::pieces(&intake.id), pieces),
    ];
    let mut files = vec![json!({
        "role": "weights", "target": TargetName::weights(&intake.id), "bytes": weights.bytes,
        "sha256": weights.sha256, "pieces_target": TargetName::pieces(&intake.id), "piece_bytes": intake.piece_bytes,
    })];
    if let Some(path) = &intake.licence_file {
        let name = TargetName::licence(&intake.id);
        let bytes = disk::read_bounded(path, LICENCE_BYTES_MAX)?;
        let file = repository.put_target(&name, &bytes)?;
        files.push(json!({
            "role": "licence", "target": name, "bytes": file.bytes, "sha256": file.sha256,
        }));
        staged.push((name, file));
    }
    if let Some((line, min_seq)) = &intake.draft {
        files.push(json!({"role": "draft", "line": line, "min_release_seq": min_seq}));
    }
    manifest.insert("files".into(), files.into());

    let manifest = strict(Value::Object(manifest))?;
    let name = TargetName::manifest(&intake.id);
    let file = repository.put_target(&name, &manifest.to_bytes())?;
    staged.push((name, file));
    enter(&mut catalog, intake, release_seq)?;
    repository.stage_targets(staged)?;
    repository.stage_catalog(&catalog)?;
    Ok(manifest)
}

fn next_seq(catalog: &Catalog, intake: &Intake) -> Result<u64> {
    let line = catalog.line(&intake.line);
    let last = line.and_then(|line| line.releases.last());
    let last = last.map_or(0, |release| release.release_seq);
    match intake.release_seq {
        None => Ok(last + 1),
        Some(seq) if seq > last => Ok(seq),
        Some(seq) => bail!(
            "release {seq} of {}: the last one is {last}, expected a higher number",
            intake.line
        ),
    }
}

/// The operator's part of the manifest.
fn said_by_operator(intake: &Intake) -> Result<Map<String, Value>> {
    let Some(path) = &intake.manifest else {
        return Ok(Map::new());
    };
    let bytes = disk::read_bounded(path, MANIFEST_BYTES_MAX as u64)?;
    let value: Value =
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?;
    match value {
        Value::Object(object) => Ok(object),
        _ => bail!("{}: expected a JSON object", path.display()),
    }
}

/// Puts in what the file and the command line say.
fn fill(
    manifest: &mut Map<String, Value>,
    intake: &Intake,
    release_seq: u64,
    header: &Header,
) -> Result<()> {
    set(manifest, "schema", SCHEMA.into())?;
    set(manifest, "id", intake.id.as_str().into())?;
    set(manifest, "line", intake.line.as_str().into())?;
    set(manifest, "release_seq", release_seq.into())?;
    if !intake.title.is_empty() {
        set(manifest, "title", intake.title.clone().into())?;
    } else if let Some(name) = &header.name {
        manifest
            .entry("title")
            .or_insert_with(|| name.clone().into());
    }
    ensure!(
        !manifest.contains_key("files"),
        "files: found in the operator's manifest, expected none: they are filled in here"
    );
    let model = object(manifest, "model")?;
    set(model, "arch", header.arch.clone().into())?;
    set(model, "format", "gguf".into())?;
    set(model, "n_params", header.n_params.into())?;
    set(model, "quant", header.quant.clone().into())?;
    set(model, "n_ctx_train", header.n_ctx_train.into())?;
    set(model, "n_vocab", header.n_vocab.into())?;
    if let Some(licence) = &intake.licence {
        set(model, "licence", licence.clone().into())?;
    }
    ensure!(
        model.contains_key("licence"),
        "the licence of the model is not said; --licence Apache-2.0, for instance"
    );
    let n_ctx = manifest
        .get("runtime")
        .and_then(|runtime| runtime.get("n_ctx"));
    if let Some(n_ctx) = n_ctx.and_then(Value::as_u64) {
        ensure!(
            n_ctx <= header.n_ctx_train.into(),
            "runtime.n_ctx: found {n_ctx}, expected at most {}, with which the model was trained",
            header.n_ctx_train
        );
    }
    if !intake.golden.is_empty() {
        let health = object(manifest, "health")?;
        let golden = health.entry("golden").or_insert_with(|| json!([]));
        let Value::Array(golden) = golden else {
            bail!("health.golden: expected a list");
        };
        golden.extend(intake.golden.iter().map(|(prompt, pattern)| {
            json!({"kind": "match", "prompt": prompt, "must_match": pattern, "max_tokens": 48})
        }));
    }
    // Room for the file itself, where nobody said more.
    let disk_mib = header.file_bytes.div_ceil(1 << 20);
    object(manifest, "needs")?
        .entry("disk_mib")
        .or_insert_with(|| disk_mib.into());
    Ok(())
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>> {
    match parent.entry(key).or_insert_with(|| json!({})) {
        Value::Object(object) => Ok(object),
        other => bail!("{key}: found {other}, expected an object"),
    }
}

/// Sets a value; one that was said must be the same.
fn set(object: &mut Map<String, Value>, key: &str, value: Value) -> Result<()> {
    match object.get(key) {
        Some(said) if *said != value => {
            bail!("{key}: the manifest says {said}, the model file and the command say {value}")
        }
        _ => {
            object.insert(key.into(), value);
            Ok(())
        }
    }
}

/// A manifest in which every key means something: a device would pass over a misspelt one.
fn strict(value: Value) -> Result<Manifest> {
    let bytes = serde_json::to_vec(&value).context("write JSON")?;
    let manifest = Manifest::parse(&bytes).context("the manifest would be refused")?;
    let understood = serde_json::to_value(&manifest).context("write JSON")?;
    match unknown(&value, &understood) {
        None => Ok(manifest),
        Some(path) => bail!("the manifest has {path}, which means nothing; is it misspelt?"),
    }
}

/// Path of the first key that was passed over. A default may be left out, so its absence alone says nothing.
fn unknown(said: &Value, understood: &Value) -> Option<String> {
    match (said, understood) {
        (Value::Object(said), Value::Object(understood)) => said.iter().find_map(|(key, value)| {
            let path = |rest: &str| match rest {
                "" => key.clone(),
                rest => format!("{key}.{rest}"),
            };
            match understood.get(key) {
                Some(other) => unknown(value, other).map(|rest| path(&rest)),
                None if is_empty(value) => None,
                None => Some(path("")),
            }
        }),
        (Value::Array(said), Value::Array(understood)) => said
            .iter()
            .zip(understood)
            .enumerate()
            .find_map(|(idx, (a, b))| unknown(a, b).map(|rest| format!("[{idx}].{rest}"))),
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A draft model must number the same tokens in the same way.
fn check_draft(
    repository: &Repository,
    catalog: &Catalog,
    intake: &Intake,
    line: &LineName,
    min_seq: u64,
) -> Result<()> {
    let releases = catalog.line(line).map(|line| &line.releases);
    let usable = releases
        .into_iter()
        .flatten()
        .filter(|release| release.release_seq >= min_seq && release.state == ReleaseState::Active);
    let ours = gguf::vocabulary_digest(&intake.model)?;
    let mut n_checked = 0;
    for release in usable {
        let manifest = repository.manifest(&release.id)?;
        let weights = manifest.weights();
        let path = repository.target_path(&weights.target, &weights.sha256);
        ensure!(
            gguf::vocabulary_digest(&path)? == ours,
            "{} of line {line} cannot draft for {}: its vocabulary of {} tokens is another one",
            release.id,
            intake.id,
            manifest.model.n_vocab
        );
        n_checked += 1;
    }
    ensure!(
        n_checked > 0,
        "line {line} has no release from {min_seq} on; add the draft model first"
    );
    Ok(())
}

/// Copies the model among the targets, with its digest and those of its pieces, and judges the copy: what is
/// signed is what was judged.
fn copy_model(
    repository: &Repository,
    intake: &Intake,
    header: &Header,
) -> Result<(TargetFile, PieceTable)> {
    let dir = repository.targets_dir();
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let n = n_pieces(header.file_bytes, intake.piece_bytes)?;
    let source =
        File::open(&intake.model).with_context(|| format!("open {}", intake.model.display()))?;
    let mut part = tempfile::Builder::new()
        .prefix(".part-")
        .tempfile_in(&dir)
        .with_context(|| format!("write in {}", dir.display()))?;

    let bar = progress::bytes("copy and hash", header.file_bytes);
    let mut source = bar.wrap_read(source).take(header.file_bytes + 1);
    let mut whole = sha2::Sha256::new();
    let mut digests = Vec::with_capacity(n as usize);
    let (mut piece, mut left) = (sha2::Sha256::new(), intake.piece_bytes as usize);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut copied = 0;
    loop {
        let wanted = buffer.len().min(left);
        let got = source
            .read(&mut buffer[..wanted])
            .with_context(|| format!("read {}", intake.model.display()))?;
        let bytes = &buffer[..got];
        part.write_all(bytes)
            .with_context(|| format!("write in {}", dir.display()))?;
        whole.update(bytes);
        piece.update(bytes);
        copied += got as u64;
        left -= got;
        if left == 0 || got == 0 {
            let digest = Digest(std::mem::take(&mut piece).finalize().into());
            if left < intake.piece_bytes as usize {
                digests.push(digest);
            }
            left = intake.piece_bytes as usize;
        }
        if got == 0 {
            break;
        }
    }
    bar.finish_and_clear();
    ensure!(
        copied == header.file_bytes,
        "{} changed while it was copied: {copied} bytes of {}",
        intake.model.display(),
        header.file_bytes
    );
    part.as_file().sync_all().context("sync the copy")?;
    let again = gguf::preflight(part.path()).context("the copy of the model")?;
    ensure!(
        again == *header,
        "{} changed while it was copied",
        intake.model.display()
    );
    let sha256 = Digest(whole.finalize().into());
    let path = repository.target_path(&TargetName::weights(&intake.id), &sha256);
    part.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))
        .context("mode of the copy")?;
    part.persist(&path)
        .with_context(|| format!("rename to {}", path.display()))?;
    disk::sync_dir(&dir).with_context(|| format!("sync {}", dir.display()))?;
    let table = PieceTable::new(copied, intake.piece_bytes, digests)?;
    let file = TargetFile {
        bytes: copied,
        sha256,
    };
    Ok((file, table))
}

/// The release at the end of its line.
fn enter(catalog: &mut Catalog, intake: &Intake, release_seq: u64) -> Result<()> {
    let release = Release {
        release_seq,
        id: intake.id.clone(),
        state: ReleaseState::Active,
        groups: intake.groups.clone(),
        waves: intake.waves.clone(),
    };
    match catalog
        .lines
        .iter_mut()
        .find(|line| line.line == intake.line)
    {
        Some(line) => line.releases.push(release),
        None => catalog.lines.push(Line {
            line: intake.line.clone(),
            min_seq: 0,
            allow_downgrade_to: Vec::new(),
            releases: vec![release],
        }),
    }
    catalog.check().context("the catalogue would be refused")
}
