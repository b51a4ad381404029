//! The real world: trust, sources, blobs, the board, and the governor that has releases tried.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::report::{Metadata, State, word};
use super::world::{Tried, World};
use crate::board::l4t::L4t;
use crate::board::power::PowerProbe;
use crate::board::{Faults, Root, identity, memory};
use crate::frames::Draft;
use crate::governor::{Offer, Update, Verdict};
use crate::models::Releases;
use crate::models::gguf;
use crate::models::release::{Release as Served, Runtime, Sampling};
use crate::ota::blobs::{BlobStore, Finding, Keep};
use crate::ota::catalog::{self, CATALOG_BYTES_MAX, Catalog};
use crate::ota::crash;
use crate::ota::fetch::{Collected, FetchConfig, Fetcher, FileToFetch, Progress};
use crate::ota::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ota::name::{Digest, LineName, TargetName};
use crate::ota::pieces::PieceTable;
use crate::ota::policy::{POLICY_BYTES_MAX, Policy};
use crate::ota::probe::{No, Probe};
use crate::ota::reason::Reason;
use crate::ota::source::{Source, Terms};
use crate::ota::state::{Accepted, Origin, Policies, Record, Release, Want};
use crate::ota::stick;
use crate::ota::trust::{Client, Place, Trust, TrustError, TrustedNow, clock, read_target};
use crate::ota::vfs::{Disk, Vfs, replace};
use crate::worker::trial::TrialEnd;

/// Small files that are kept: manifests and tables of pieces.
const MANIFESTS: &str = "manifests";
/// What a load and a probe take, where nothing is known: for the ETA that streams are told.
const TRIAL_TAKES: Duration = Duration::from_secs(20);
/// Longest table of pieces: of a file of 1 TiB.
const TABLE_BYTES_MAX: u64 = 8 << 20;

/// Where things are and how they are done.
#[derive(Debug, Clone)]
pub struct SiteConfig {
    /// Folder of updates: record, trust, manifests, blobs.
    pub dir: PathBuf,
    /// The root of trust that came with the device.
    pub root: Vec<u8>,
    /// Where the board is read.
    pub board_root: PathBuf,
    /// Sources, in their order.
    pub sources: Vec<String>,
    /// How patient with them.
    pub terms: Terms,
    /// How files are fetched.
    pub fetch: FetchConfig,
    /// How fast files are read again.
    pub scrub_bytes_per_second: u64,
    /// Bytes to be left alone by models, of main memory.
    pub reserve_bytes: u64,
    /// Build of llama.cpp in this product.
    pub engine_build: u32,
}

/// Who judges the fleet's settings, and puts them in force.
pub trait Tuning: Send {
    /// Whether they are settings that this device can have.
    ///
    /// # Errors
    /// All that is wrong with them.
    fn judge(&self, settings: &toml::Table) -> Result<(), String>;

    /// These are in force, or with `None` the device's own alone. Says which keys wait for the next start.
    fn apply(&mut self, settings: Option<&toml::Table>) -> Vec<String>;
}

/// A device without settings that could change.
impl Tuning for () {
    fn judge(&self, _settings: &toml::Table) -> Result<(), String> {
        Ok(())
    }

    fn apply(&mut self, _settings: Option<&toml::Table>) -> Vec<String> {
        Vec::new()
    }
}

/// The real world of the engine.
pub struct Site {
    config: SiteConfig,
    trust: Client,
    blobs: BlobStore,
    fetcher: Fetcher,
    sources: Vec<Source>,
    /// The first source is what somebody brought.
    has_stick: bool,
    /// The report as it was kept last.
    reported: Vec<u8>,
    /// The source that answered last.
    at: usize,
    /// The time by which the deployment under way is judged to its end.
    now: Option<TrustedNow>,
    collected: Option<(Digest, Collected)>,
    board: String,
    l4t: Option<L4t>,
    releases: watch::Sender<Releases>,
    updates: mpsc::Sender<Update>,
    trial: Option<OnTrial>,
    tuning: Box<dyn Tuning>,
    /// Settings of the fleet that wait for the next start.
    at_next_start: Vec<String>,
}

struct OnTrial {
    probe: Probe,
    verdict: oneshot::Receiver<Verdict>,
    settled: Option<oneshot::Sender<bool>>,
}

/// Where manifests are kept.
pub fn manifests_dir(dir: &Path) -> PathBuf {
    dir.join(MANIFESTS)
}

/// The releases in service, as the rest of the product needs them: those whose files are here. One whose
/// manifest cannot be read is left out and told.
pub fn releases(record: &Record, dir: &Path) -> Vec<Served> {
    let Ok(blobs) = BlobStore::open(dir) else {
        warn!(dir = %dir.display(), "the files of releases cannot be opened");
        return Vec::new();
    };
    let mut drafts = Vec::new();
    let served = record.lines.iter().filter_map(|(line, installed)| {
        let release = &installed.active;
        let manifest = match manifest(dir, release) {
            Ok(manifest) => manifest,
            Err(no) => {
                warn!(%line, no.detail, "a release in service is left out");
                return None;
            }
        };
        if !blobs.has(&release.weights, release.weights_bytes) {
            warn!(%line, release = %release.id, "the model of the release in service is gone");
            return None;
        }
        let is_first = record.first.as_ref() == Some(line);
        if let Some((of, min_seq)) = manifest.draft() {
            drafts.push((line.to_string(), of.to_string(), min_seq));
        }
        Some(served(&blobs, line, release, &manifest, is_first))
    });
    let mut served: Vec<_> = served.collect();
    for (line, of, min_seq) in drafts {
        let draft = draft(&served, &of, min_seq);
        if let Some(release) = served.iter_mut().find(|release| release.line == line) {
            release.draft = draft;
        }
    }
    served
}

/// The release of a line that drafts for another, if it is here and new enough.
fn draft(served: &[Served], line: &str, min_seq: u64) -> Option<Draft> {
    let is_it = |release: &&Served| release.line == line && release.release_seq >= min_seq;
    let release = served.iter().find(is_it)?;
    Some(Draft {
        name: release.name.clone(),
        path: release.path.clone(),
    })
}

fn served(
    blobs: &BlobStore,
    line: &LineName,
    release: &Release,
    manifest: &Manifest,
    is_first: bool,
) -> Served {
    let runtime = &manifest.runtime;
    let milli = |value: Option<u32>| value.map(|milli| milli as f32 / 1000.0);
    let sampling = &runtime.sampling_milli;
    Served {
        name: release.id.to_string(),
        line: line.to_string(),
        release_seq: release.release_seq,
        sha256: release.weights.to_string(),
        path: blobs.path(&release.weights),
        file_bytes: release.weights_bytes,
        is_first,
        draft: None,
        runtime: Runtime {
            n_ctx: (runtime.n_ctx > 0).then_some(runtime.n_ctx),
            kv_type_k: runtime.kv_type_k,
            kv_type_v: runtime.kv_type_v,
            chat_template: runtime.chat_template.clone(),
            stop: runtime.stop.clone(),
            sampling: Sampling {
                temperature: milli(sampling.temperature),
                top_k: sampling.top_k,
                top_p: milli(sampling.top_p),
                min_p: milli(sampling.min_p),
                repeat_penalty: milli(sampling.repeat_penalty),
            },
        },
    }
}

/// Kept settings of the fleet, checked again.
///
/// # Errors
/// They are not there, changed on the disk, or are none.
pub fn kept_policy(dir: &Path, accepted: &Accepted) -> Result<Policy, String> {
    let path = manifests_dir(dir).join(accepted.digest.to_string());
    let wrong = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let bytes = Disk.read(&path, POLICY_BYTES_MAX as u64);
    let bytes = bytes.map_err(|error| wrong(&error))?;
    let bytes = bytes.ok_or_else(|| wrong(&"not there"))?;
    if Digest::of(&bytes) != accepted.digest {
        return Err(wrong(&"changed on the disk"));
    }
    Policy::parse(&bytes).map_err(|error| wrong(&error))
}

/// The kept manifest of a release, checked again.
fn manifest(dir: &Path, release: &Release) -> Result<Manifest, No> {
    let path = manifests_dir(dir).join(release.manifest.to_string());
    let bytes =
        (Disk.read(&path, MANIFEST_BYTES_MAX as u64)).map_err(|error| device(&path, &error))?;
    let bytes = bytes.ok_or_else(|| No {
        reason: Reason::DeviceError,
        detail: format!("{}: not there", path.display()),
    })?;
    if Digest::of(&bytes) != release.manifest {
        return Err(No {
            reason: Reason::DigestMismatch,
            detail: format!("{}: changed on the disk", path.display()),
        });
    }
    Manifest::parse(&bytes).map_err(|error| bad(&error))
}

fn device(path: &Path, error: &std::io::Error) -> No {
    No {
        reason: match error.kind() {
            std::io::ErrorKind::StorageFull => Reason::NoSpace,
            _ => Reason::DeviceError,
        },
        detail: format!("{}: {error}", path.display()),
    }
}

fn bad(error: &dyn std::fmt::Display) -> No {
    No {
        reason: Reason::BadCatalog,
        detail: error.to_string(),
    }
}

fn untrusted(error: &TrustError) -> No {
    No {
        reason: error.reason(),
        detail: error.to_string(),
    }
}

fn no(reason: Reason, detail: String) -> No {
    No { reason, detail }
}

impl Site {
    /// Opens trust and the blobs. `hold` is true while downloads have to wait.
    ///
    /// # Errors
    /// What cannot be opened, and why.
    pub fn open(
        config: SiteConfig,
        releases: watch::Sender<Releases>,
        updates: mpsc::Sender<Update>,
        hold: watch::Receiver<bool>,
        tuning: Box<dyn Tuning>,
    ) -> Result<Self, String> {
        let place = Place {
            folder: config.dir.join("trust"),
            root: config.root.clone(),
        };
        let trust = Client::open(place).map_err(|error| error.to_string())?;
        let blobs = BlobStore::open(&config.dir)
            .map_err(|error| format!("{}: {error}", config.dir.display()))?;
        let sources: Result<Vec<_>, _> = (config.sources.iter())
            .map(|address| Source::at(address, &config.terms))
            .collect();
        let root = Root::new(&config.board_root);
        let identity = identity::read(&root, &mut Faults::default());
        let manifests = manifests_dir(&config.dir);
        Disk.make_dir(&manifests)
            .map_err(|error| format!("{}: {error}", manifests.display()))?;
        Ok(Self {
            fetcher: Fetcher::new(blobs.clone(), config.fetch.clone(), hold),
            sources: sources.map_err(|error| error.to_string())?,
            has_stick: false,
            reported: Vec::new(),
            at: 0,
            now: None,
            collected: None,
            board: identity.kind.profiles().unwrap_or_default().to_owned(),
            l4t: identity.l4t,
            trust,
            blobs,
            releases,
            updates,
            trial: None,
            tuning,
            at_next_start: Vec::new(),
            config,
        })
    }

    fn clock(&self) -> TrustedNow {
        self.trust.now(clock::facts(&self.config.board_root))
    }

    fn small(&mut self, name: &TargetName, bytes_max: u64) -> Result<(Digest, Vec<u8>), No> {
        let now = self.now.unwrap_or_else(|| self.clock());
        let info = self
            .trust
            .target(name, now)
            .map_err(|error| untrusted(&error))?;
        let info = info.ok_or_else(|| no(Reason::NotInCatalog, format!("{name} is not signed")))?;
        let source = self.sources.get_mut(self.at);
        let source = source.ok_or_else(|| no(Reason::SourceUnreachable, "no sources".into()))?;
        let bytes =
            read_target(source, name, &info, bytes_max).map_err(|error| untrusted(&error))?;
        Ok((info.digest, bytes))
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), No> {
        let path = manifests_dir(&self.config.dir).join(name);
        replace(&Disk, &path, bytes).map_err(|error| device(&path, &error))
    }

    /// Whether the board is one that the release is made for.
    fn gate(&self, manifest: &Manifest) -> Result<(), No> {
        let needs = &manifest.needs;
        let is_board = |name: &&crate::ota::BoardName| name.as_str() == self.board;
        if !needs.boards.is_empty() && needs.boards.iter().find(is_board).is_none() {
            let board = match self.board.as_str() {
                "" => "no board that is known",
                board => board,
            };
            let made_for: Vec<_> = needs.boards.iter().map(ToString::to_string).collect();
            return Err(no(
                Reason::IncompatibleBoard,
                format!(
                    "this is {board}, the release is for {}",
                    made_for.join(", ")
                ),
            ));
        }
        let mode = self.mode();
        if !needs.power_modes.is_empty() && !needs.power_modes.contains(&mode) {
            return Err(no(
                Reason::IncompatibleBoard,
                format!(
                    "power mode {mode:?}, the release is for {}",
                    needs.power_modes.join(", ")
                ),
            ));
        }
        if let Some(min) = needs.min_l4t
            && self.l4t.is_none_or(|l4t| l4t < min.0)
        {
            let found = self.l4t.map_or("none".to_owned(), |l4t| l4t.to_string());
            return Err(no(
                Reason::IncompatibleL4t,
                format!(
                    "Jetson Linux {found}, the release needs {}: update the system first",
                    min.0
                ),
            ));
        }
        if needs.min_engine_build > self.config.engine_build {
            return Err(no(
                Reason::IncompatibleEngine,
                format!(
                    "llama.cpp build {}, the release needs {}: update Orinoco first",
                    self.config.engine_build, needs.min_engine_build
                ),
            ));
        }
        if !gguf::limits::ARCHITECTURES.contains(&manifest.model.arch.as_str()) {
            return Err(no(
                Reason::IncompatibleEngine,
                format!(
                    "architecture {:?} is none that this Orinoco opens",
                    manifest.model.arch
                ),
            ));
        }
        let root = Root::new(&self.config.board_root);
        if let (Some(mib), Ok(memory)) = (
            needs.memory_mib(manifest.runtime.n_ctx),
            memory::read(&root),
        ) {
            let room = memory.total_bytes.saturating_sub(self.config.reserve_bytes) >> 20;
            if mib > room {
                return Err(no(
                    Reason::IncompatibleMemory,
                    format!("the board has {room} MiB for models, the release needs {mib}"),
                ));
            }
        }
        Ok(())
    }

    /// The draft model that the release works with: on the device, and of the same vocabulary.
    fn pair(&self, record: &[Served], manifest: &Manifest, n_vocab: u32) -> Result<(), No> {
        let Some((line, min_seq)) = manifest.draft() else {
            return Ok(());
        };
        let draft = record.iter().find(|release| release.line == line.as_str());
        let draft = draft.filter(|draft| draft.release_seq >= min_seq).ok_or_else(|| {
            no(
                Reason::IncompatibleEngine,
                format!("its draft model, release {min_seq} of {line} or later, is not on the device"),
            )
        })?;
        let header = gguf::preflight(&draft.path)
            .map_err(|error| no(Reason::GgufRejected, error.to_string()))?;
        match header.n_vocab == n_vocab {
            true => Ok(()),
            false => Err(no(
                Reason::GgufRejected,
                format!(
                    "its draft model {} has {} tokens, it has {n_vocab}",
                    draft.name, header.n_vocab
                ),
            )),
        }
    }

    fn mode(&self) -> String {
        let root = Root::new(&self.config.board_root);
        let identity = identity::read(&root, &mut Faults::default());
        let present = PowerProbe::new(&root, identity.module).read(None);
        let mode = present.effective_mode();
        mode.map(|mode| mode.name.clone()).unwrap_or_default()
    }

    fn wanted(&self, release: &Release) -> Result<FileToFetch, No> {
        let manifest = manifest(&self.config.dir, release)?;
        let weights = manifest.weights();
        let path = manifests_dir(&self.config.dir).join(format!("{}.pieces", release.manifest));
        let bytes = Disk
            .read(&path, TABLE_BYTES_MAX)
            .map_err(|error| device(&path, &error))?;
        let bytes = bytes.ok_or_else(|| {
            no(
                Reason::DeviceError,
                format!("{}: not there", path.display()),
            )
        })?;
        let pieces = PieceTable::parse(&bytes, weights.bytes, weights.piece_bytes)
            .map_err(|error| bad(&error))?;
        Ok(FileToFetch {
            name: weights.target.clone(),
            digest: weights.sha256,
            pieces,
        })
    }
}

impl World for Site {
    async fn check(&mut self, want: Option<&Want>) -> Result<Catalog, No> {
        let is_stick = want.is_some_and(|want| want.origin == Origin::Stick);
        let mut trouble = no(
            Reason::SourceUnreachable,
            "ota.fetch.sources is empty".into(),
        );
        for at in 0..self.sources.len() {
            // What a stick lacks is told, and not hidden by what a server has.
            if at > 0 && is_stick && self.has_stick {
                break;
            }
            let mut now = self.clock();
            // A person brought a directory, not a server.
            if is_stick && self.sources[at].is_local() {
                now = now.accepting_expired();
            }
            let source = &mut self.sources[at];
            match self.trust.refresh(source, now) {
                Ok(versions) => {
                    info!(%versions, source = source.name(), "metadata is trusted");
                    (self.at, self.now) = (at, Some(now));
                    crash::point("check:trusted");
                    let (_, bytes) =
                        self.small(&TargetName::catalog(), CATALOG_BYTES_MAX as u64)?;
                    return Catalog::parse(&bytes).map_err(|error| bad(&error));
                }
                Err(error) => trouble = untrusted(&error),
            }
        }
        Err(trouble)
    }

    async fn plan(
        &mut self,
        line: &LineName,
        release: &catalog::Release,
    ) -> Result<(Release, u64), No> {
        let name = release.manifest_target();
        let (digest, bytes) = self.small(&name, MANIFEST_BYTES_MAX as u64)?;
        let manifest = Manifest::parse(&bytes).map_err(|error| bad(&error))?;
        let is_it = manifest.id == release.id
            && manifest.line == *line
            && manifest.release_seq == release.release_seq;
        if !is_it {
            return Err(bad(&format!(
                "{name} is of release {} of {}, the catalogue has {} of {line} there",
                manifest.release_seq, manifest.line, release.release_seq
            )));
        }
        let weights = manifest.weights();
        let now = self.now.unwrap_or_else(|| self.clock());
        let info = self
            .trust
            .target(&weights.target, now)
            .map_err(|error| untrusted(&error))?;
        if info.is_none_or(|info| info.digest != weights.sha256 || info.bytes != weights.bytes) {
            return Err(bad(&format!(
                "{} is signed with another digest",
                weights.target
            )));
        }
        self.gate(&manifest)?;
        let planned = Release {
            release_seq: release.release_seq,
            id: release.id.clone(),
            manifest: digest,
            weights: weights.sha256,
            weights_bytes: weights.bytes,
            others: Vec::new(),
            title: manifest.title.clone(),
        };
        if !self.blobs.has(&weights.sha256, weights.bytes) {
            let free = self
                .blobs
                .free_bytes()
                .map_err(|error| device(&self.config.dir, &error))?;
            let missing = weights.bytes.saturating_sub(self.bytes_here(&planned));
            let needed = missing.saturating_add(self.config.fetch.reserve_bytes);
            if needed > free {
                return Err(no(
                    Reason::NoSpace,
                    format!("needs {} MiB, {} are free", needed >> 20, free >> 20),
                ));
            }
        }
        let (_, table) = self.small(&weights.pieces_target, TABLE_BYTES_MAX)?;
        PieceTable::parse(&table, weights.bytes, weights.piece_bytes)
            .map_err(|error| bad(&error))?;
        self.keep(&digest.to_string(), &bytes)?;
        crash::point("plan:manifest");
        self.keep(&format!("{digest}.pieces"), &table)?;
        crash::point("plan:pieces");
        Ok((planned, weights.bytes))
    }

    async fn download(&mut self, release: &Release, max_kbit_s: u32) -> Result<(), No> {
        let file = self.wanted(release)?;
        let own = self.config.fetch.bytes_per_second_max;
        let asked = (max_kbit_s > 0).then_some(u64::from(max_kbit_s) * 125);
        self.fetcher
            .set_bytes_per_second_max(own.into_iter().chain(asked).min());
        let collected = self.fetcher.collect(&file, &mut self.sources).await;
        let collected = collected.map_err(|error| no(error.reason(), error.to_string()))?;
        crash::point("download:over");
        self.collected = Some((file.digest, collected));
        Ok(())
    }

    async fn verify(&mut self, _line: &LineName, release: &Release) -> Result<(), No> {
        let file = self.wanted(release)?;
        let failed = |error: crate::ota::fetch::FetchError| no(error.reason(), error.to_string());
        let collected = self
            .collected
            .take()
            .filter(|(digest, _)| *digest == file.digest);
        let path = match collected {
            Some((_, collected)) => self.fetcher.commit(collected).await.map_err(failed)?,
            None => None,
        };
        let path = match path {
            Some(path) => path,
            None => self
                .fetcher
                .bring(&file, &mut self.sources)
                .await
                .map_err(failed)?,
        };
        let header =
            gguf::preflight(&path).map_err(|error| no(Reason::GgufRejected, error.to_string()))?;
        let manifest = manifest(&self.config.dir, release)?;
        let model = &manifest.model;
        let figures = [
            ("n_params", header.n_params, model.n_params),
            ("n_vocab", header.n_vocab.into(), model.n_vocab.into()),
            (
                "n_ctx_train",
                header.n_ctx_train.into(),
                model.n_ctx_train.into(),
            ),
        ];
        for (what, found, said) in figures {
            if found != said {
                return Err(no(
                    Reason::GgufRejected,
                    format!("{what} of the file is {found}, of the manifest {said}"),
                ));
            }
        }
        if header.arch != model.arch {
            return Err(no(
                Reason::GgufRejected,
                format!(
                    "the file is {:?}, the manifest says {:?}",
                    header.arch, model.arch
                ),
            ));
        }
        crash::point("verify:judged");
        self.pair(&self.releases.borrow(), &manifest, header.n_vocab)
    }

    async fn begin_trial(&mut self, line: &LineName, release: &Release) -> Option<Tried> {
        let manifest = match manifest(&self.config.dir, release) {
            Ok(manifest) => manifest,
            Err(no) => return Some(Tried::No(no)),
        };
        // Judged again: Orinoco, the system or the power mode may be others than when it was planned.
        if let Err(no) = self.gate(&manifest) {
            return Some(Tried::No(no));
        }
        let probe = match Probe::new(&manifest.health, &self.board, &self.mode()) {
            Ok(probe) => probe,
            Err(no) => return Some(Tried::No(no)),
        };
        let (trying, loaded) = oneshot::channel();
        let (verdict, mut judged) = oneshot::channel();
        let (settled, is_settled) = oneshot::channel();
        let offer = Offer {
            release: Served {
                draft: manifest
                    .draft()
                    .and_then(|(of, min_seq)| draft(&self.releases.borrow(), of.as_str(), min_seq)),
                ..served(&self.blobs, line, release, &manifest, true)
            },
            trial: probe.trial(),
            takes: match manifest.health.load_ms_max {
                0 => TRIAL_TAKES,
                ms => Duration::from_millis(ms).min(TRIAL_TAKES),
            },
            needs_cool: probe.needs_cool(),
            trying,
            verdict,
            settled: is_settled,
        };
        if self
            .updates
            .send(Update::Offer(Box::new(offer)))
            .await
            .is_err()
        {
            return Some(Tried::NotNow("the daemon ends".into()));
        }
        crash::point("trial:offered");
        let early = tokio::select! {
            biased;
            verdict = &mut judged => Some(verdict),
            Ok(()) = loaded => None,
        };
        match early {
            Some(verdict) => {
                self.trial = Some(OnTrial {
                    probe,
                    verdict: judged,
                    settled: Some(settled),
                });
                Some(self.tried(verdict.ok()))
            }
            None => {
                crash::point("trial:loaded");
                self.trial = Some(OnTrial {
                    probe,
                    verdict: judged,
                    settled: Some(settled),
                });
                None
            }
        }
    }

    async fn end_trial(&mut self) -> Tried {
        let verdict = match &mut self.trial {
            Some(trial) => (&mut trial.verdict).await.ok(),
            None => None,
        };
        crash::point("trial:judged");
        self.tried(verdict)
    }

    fn settle(&mut self, is_written: bool) {
        if let Some(settled) = self.trial.take().and_then(|trial| trial.settled) {
            // The governor's end is the daemon's.
            let _ = settled.send(is_written);
            crash::point("trial:settled");
        }
    }

    fn in_service(&mut self, record: &Record, at_once: bool) {
        self.releases
            .send_replace(releases(record, &self.config.dir).into());
        crash::point("service:told");
        if at_once && self.updates.try_send(Update::Changed).is_err() {
            warn!("the governor is behind: what should serve is chosen at its next look");
        }
    }

    fn is_intact(&self, release: &Release) -> bool {
        self.blobs.has(&release.weights, release.weights_bytes)
            && manifest(&self.config.dir, release).is_ok()
    }

    fn sweep(&mut self, kept: &BTreeSet<Digest>) {
        let keep = Keep {
            blobs: kept.clone(),
            deployment: BTreeSet::new(),
        };
        if let Err(error) = self.blobs.sweep(&keep) {
            warn!(%error, "files of old releases stay");
        }
        crash::point("sweep:blobs");
        let dir = manifests_dir(&self.config.dir);
        let files = Disk.list(&dir).unwrap_or_default();
        for (path, _) in files {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let is_kept = Digest::from_hex(&stem).is_ok_and(|digest| kept.contains(&digest));
            if !is_kept && let Err(error) = Disk.remove(&path) {
                warn!(%error, path = %path.display(), "an old manifest stays");
            }
        }
    }

    async fn scrub(&mut self) -> Result<Vec<Digest>, String> {
        let blobs = self.blobs.list().map_err(|error| error.to_string())?;
        let mut rotten = Vec::new();
        for blob in blobs {
            let rate = Some(self.config.scrub_bytes_per_second);
            let scrubbed = self
                .blobs
                .scrub(blob, rate)
                .await
                .map_err(|error| error.to_string())?;
            if !matches!(scrubbed.finding, Finding::Sound | Finding::Gone) {
                rotten.push(blob.digest);
            }
        }
        Ok(rotten)
    }

    fn bytes_here(&self, release: &Release) -> u64 {
        if self.blobs.has(&release.weights, release.weights_bytes) {
            return release.weights_bytes;
        }
        self.fetcher.progress().borrow().bytes_done
    }

    fn now_s(&self) -> u64 {
        self.clock().at_s()
    }

    fn minute_of_day(&self) -> u32 {
        let now = jiff::Zoned::now();
        u32::from(now.hour().unsigned_abs()) * 60 + u32::from(now.minute().unsigned_abs())
    }

    fn progress(&self) -> watch::Receiver<Progress> {
        self.fetcher.progress()
    }

    fn reached(&self, point: &str) {
        crash::point(point);
    }

    async fn policy(&mut self) -> Result<Option<(Digest, Vec<u8>)>, No> {
        let now = self.now.unwrap_or_else(|| self.clock());
        let found = self.trust.target(&TargetName::policy(), now);
        match found.map_err(|error| untrusted(&error))? {
            None => Ok(None),
            Some(_) => self
                .small(&TargetName::policy(), POLICY_BYTES_MAX as u64)
                .map(Some),
        }
    }

    fn judge_policy(&mut self, policy: &Policy, bytes: &[u8]) -> Result<(), No> {
        let judged = self.tuning.judge(&policy.settings);
        judged.map_err(|why| no(Reason::BadCatalog, why))?;
        self.keep(&Digest::of(bytes).to_string(), bytes)
    }

    fn apply_policy(&mut self, policies: &Policies) {
        let kept = policies
            .active
            .map(|active| kept_policy(&self.config.dir, &active));
        self.at_next_start = match kept {
            None => self.tuning.apply(None),
            Some(Ok(policy)) => self.tuning.apply(Some(&policy.settings)),
            Some(Err(why)) => return warn!(why, "the fleet's settings are not in force"),
        };
    }

    fn use_stick(&mut self, path: Option<&Path>) {
        if std::mem::take(&mut self.has_stick) {
            self.sources.remove(0);
            self.at = self.at.saturating_sub(1);
        }
        let stick = path.and_then(Path::to_str);
        let stick = stick.and_then(|path| Source::at(path, &self.config.terms).ok());
        if let Some(stick) = stick {
            self.sources.insert(0, stick);
            (self.has_stick, self.at) = (true, 0);
        }
    }

    fn keep_report(&mut self, state: &State) {
        let report = serde_json::to_vec_pretty(state).expect("a state is JSON");
        if report == self.reported {
            return;
        }
        match stick::keep_report(&self.config.dir, &report) {
            Ok(()) => self.reported = report,
            Err(error) => warn!(%error, "the report for a stick could not be kept"),
        }
    }

    fn describe(&self, state: &mut State) {
        let now = self.clock();
        if let Some(standing) = self.trust.standing(now) {
            state.metadata = Some(Metadata {
                root: standing.versions.root,
                timestamp: standing.versions.timestamp,
                snapshot: standing.versions.snapshot,
                targets: standing.versions.targets,
                age_days: standing.age_days,
                freshness: word(&standing.freshness),
            });
        }
        if let Some(policy) = &mut state.policy {
            policy.at_next_start.clone_from(&self.at_next_start);
        }
        state.clock = Some(word(&now.clock()));
        state.disk_free_mib = self.blobs.free_bytes().ok().map(|bytes| bytes >> 20);
    }
}

impl Site {
    fn tried(&self, verdict: Option<Verdict>) -> Tried {
        let (end, serves) = match verdict {
            None => return Tried::NotNow("the daemon ends".into()),
            Some(Verdict::NotNow(why)) => return Tried::NotNow(why),
            Some(Verdict::Tried { end, serves }) => (end, serves),
        };
        let Some(trial) = &self.trial else {
            return Tried::NotNow("nothing was on trial".into());
        };
        match (trial.probe.verdict(&end), &end) {
            (None, _) => Tried::NotNow("something else had to be loaded".into()),
            (Some(Err(no)), _) => Tried::No(no),
            (Some(Ok(())), TrialEnd::Passed(shown)) => Tried::Passed {
                serves,
                detail: format!(
                    "loaded in {:.1} s, {} prompts answered, {} MiB",
                    shown.load.as_secs_f64(),
                    shown.answers.len(),
                    shown.peak_bytes >> 20
                ),
            },
            (Some(Ok(())), _) => Tried::NotNow("no verdict".into()),
        }
    }
}
