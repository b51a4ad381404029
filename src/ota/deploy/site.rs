//! The real world: trust, sources, blobs, the board, and the governor that has releases tried.
//!
//! Whether a release suits the board is in `suits`, its trial in `trial`, small files that are kept in `kept`.

mod kept;
mod suits;
mod trial;
mod tuning;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use super::report::{Metadata, State, word};
use super::world::{Tried, World};
use crate::board::l4t::L4t;
use crate::board::{Faults, Root, identity};
use crate::governor::Update;
use crate::models::Releases;
use crate::models::gguf;
use crate::ota::blobs::{BlobStore, Finding, Keep};
use crate::ota::catalog::{self, CATALOG_BYTES_MAX, Catalog};
use crate::ota::crash;
use crate::ota::fetch::{Collected, FetchConfig, Fetcher, Progress};
use crate::ota::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::ota::name::{Digest, LineName, TargetName};
use crate::ota::pieces::PieceTable;
use crate::ota::policy::{POLICY_BYTES_MAX, Policy};
use crate::ota::probe::No;
use crate::ota::reason::Reason;
use crate::ota::source::{Source, Terms};
use crate::ota::state::{Origin, Policies, Record, Release, Want};
use crate::ota::stick;
use crate::ota::trust::{Client, Place, Trust, TrustError, TrustedNow, clock, read_target};
use crate::ota::vfs::{Disk, Vfs};
use kept::{TABLE_BYTES_MAX, manifest};
pub use kept::{kept_policy, manifests_dir, releases};
use trial::OnTrial;
pub use tuning::Tuning;

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
        suits::check_header(&header, &manifest)?;
        crash::point("verify:judged");
        self.pair(&self.releases.borrow(), &manifest, header.n_vocab)
    }

    async fn begin_trial(&mut self, line: &LineName, release: &Release) -> Option<Tried> {
        self.offer(line, release).await
    }

    async fn end_trial(&mut self) -> Tried {
        self.judged().await
    }

    fn settle(&mut self, is_written: bool) {
        self.settled(is_written);
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
