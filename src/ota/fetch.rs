//! Brings files of a release onto the disk, from whichever source has them, whatever is killed in between.
//!
//! ```text
//!  sources (in their order)                                        disk
//!  mirror ─┐             piece by piece                 ┌─▶ partial/<sha256>, .have     every piece verified,
//!  stick ──┴─▶ standing ───▶ read ───▶ SHA-256 = signed? ┤                               written, synced
//!              back-off, ban    │                       └─no: the source lied
//!                           pace: cap, speed, ETA
//!                                                     all there ─▶ hash the whole ─▶ blobs/<sha256>
//! ```
//!
//! Owns the order of these steps and the file while it is partial. It trusts the signed table of pieces and
//! nothing that a source says. It decides neither what to fetch nor what becomes of it.
//!
//! A [`Fetcher`] is called off by dropping the future of its call; what is on the disk stays and is gone on
//! with. At most one piece is fetched twice, whenever a process is killed. Blocking reads and writes of the disk
//! are done in place, so it runs on a thread that nobody else waits for.

pub mod held;
pub mod pace;
mod partial;
pub mod standing;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::blobs::{BlobStore, SOURCES_NEW_SUFFIX, SOURCES_SUFFIX};
use super::name::{Digest, TargetName};
use super::pieces::PieceTable;
use super::reason::Reason;
use super::source::{Fault, Flow, Source, SourceError, Want};
use pace::{Cap, Speed};
use partial::Commit;
pub use partial::Partial;
use standing::{Choice, Patience, Standing, Standings};

/// A file that a release needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileToFetch {
    /// Its name in the repository.
    pub name: TargetName,
    /// The signed digest of the whole.
    pub digest: Digest,
    /// The signed digests of its pieces, and its length.
    pub pieces: PieceTable,
}

impl FileToFetch {
    /// Length of the file.
    pub fn bytes(&self) -> u64 {
        self.pieces.file_bytes()
    }
}

/// How files are fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FetchConfig {
    /// Most bytes a second that are taken from sources.
    pub bytes_per_second_max: Option<u64>,
    /// Must stay free on the disk beside the file.
    pub reserve_bytes: u64,
    /// With sources that fail.
    pub patience: Patience,
}

/// What a fetch does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    #[default]
    Idle,
    /// Looks which pieces are there.
    Looking,
    /// Takes pieces from a source.
    Fetching,
    /// Waits until the board is less busy.
    Paused,
    /// No source can be asked now.
    Waiting {
        /// For so long.
        retry: Duration,
        /// Since this happened.
        fault: Fault,
    },
    /// All is there and is hashed as a whole.
    Verifying,
}

/// How far a fetch is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What it does.
    pub phase: Phase,
    /// Bytes that are there, in `Verifying` bytes that were hashed.
    pub bytes_done: u64,
    /// Bytes of the file.
    pub bytes_total: u64,
    /// Bytes that came from sources since the fetch began, also in vain.
    pub bytes_received: u64,
    /// Over the last quarter of a minute.
    pub bytes_per_second: Option<u64>,
    /// Time until all is there at this speed.
    pub eta: Option<Duration>,
    /// Where it comes from.
    pub source: Option<String>,
    /// What was last wrong with a source.
    pub trouble: Option<String>,
}

/// Why a file did not come.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The disk has too little room.
    #[error("{path}: needs {needed_bytes} bytes, {free_bytes} are free")]
    NoSpace {
        /// What is missing, with what must stay free.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
        /// The file.
        path: PathBuf,
    },
    /// No source is left.
    #[error("no source has {file}: {trouble}")]
    Sources {
        /// The file in the tree.
        file: String,
        /// The worst that they did.
        fault: Fault,
        /// The last of it.
        trouble: String,
    },
    /// All pieces are as signed, and the whole is not.
    #[error("{digest}: the signed pieces do not make up the signed file; publish it again")]
    Table {
        /// The file.
        digest: Digest,
    },
    /// The disk forgets what is written to it.
    #[error("{digest}: the disk gave other bytes back than were written, {n_times} times")]
    Forgetful {
        /// The file.
        digest: Digest,
        /// So often all was fetched again that was lost.
        n_times: u32,
    },
    /// Another process fetches it.
    #[error("{digest}: another process fetches it")]
    Busy {
        /// The file.
        digest: Digest,
    },
    /// The disk cannot be read or written.
    #[error("{path}: {error}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl FetchError {
    fn disk(path: &Path, error: io::Error) -> Self {
        Self::Disk {
            path: path.to_owned(),
            error,
        }
    }

    /// The word for states and reports.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoSpace { .. } => Reason::NoSpace,
            Self::Sources { fault, .. } => match fault {
                Fault::Absent | Fault::Unreachable => Reason::SourceUnreachable,
                Fault::Stalled => Reason::Stalled,
                Fault::Lied => Reason::PieceMismatch,
            },
            Self::Table { .. } => Reason::DigestMismatch,
            Self::Forgetful { .. } | Self::Busy { .. } | Self::Disk { .. } => Reason::DeviceError,
        }
    }
}

/// A file of which all pieces were there.
#[derive(Debug)]
pub enum Collected {
    /// It is a blob already.
    Blob(PathBuf),
    /// It is to be committed.
    Whole(Box<Partial>),
}

/// After so many rounds of fetching again what the disk has lost, it is given up.
const ROUNDS_MAX: u32 = 3;

/// Progress is told this often, and at each piece and change of the phase.
const TELL_EVERY: Duration = Duration::from_millis(200);

/// Fetches files into a store, one at a time.
#[derive(Debug)]
pub struct Fetcher {
    store: BlobStore,
    config: FetchConfig,
    progress: watch::Sender<Progress>,
    hold: watch::Receiver<bool>,
}

impl Fetcher {
    /// `hold` is true while the board is too busy, or somebody said `pause`: then no further piece is asked for.
    pub fn new(store: BlobStore, config: FetchConfig, hold: watch::Receiver<bool>) -> Self {
        let (progress, _) = watch::channel(Progress::default());
        Self {
            store,
            config,
            progress,
            hold,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Another cap, from the next file on.
    pub fn set_bytes_per_second_max(&mut self, cap: Option<u64>) {
        self.config.bytes_per_second_max = cap;
    }

    /// Collects and commits. Where a disk loses pieces in between, they are fetched again.
    ///
    /// # Errors
    /// As [`Self::collect`] and [`Self::commit`].
    pub async fn bring(
        &mut self,
        file: &FileToFetch,
        sources: &mut [Source],
    ) -> Result<PathBuf, FetchError> {
        for _ in 0..ROUNDS_MAX {
            let collected = self.collect(file, sources).await?;
            if let Some(path) = self.commit(collected).await? {
                return Ok(path);
            }
        }
        Err(FetchError::Forgetful {
            digest: file.digest,
            n_times: ROUNDS_MAX,
        })
    }

    /// Brings all pieces of a file onto the disk, each verified. Waits for sources as long as the patience says.
    ///
    /// # Errors
    /// No source is left, or the disk is full or broken. What came is kept.
    pub async fn collect(
        &mut self,
        file: &FileToFetch,
        sources: &mut [Source],
    ) -> Result<Collected, FetchError> {
        if self.store.has(&file.digest, file.bytes()) {
            // A kill between the last two steps of a commit leaves the bitmap behind.
            let discarded = self.store.discard(&file.digest);
            discarded.map_err(|error| FetchError::disk(&self.store.path(&file.digest), error))?;
            return Ok(Collected::Blob(self.store.path(&file.digest)));
        }
        let mut gauge = Gauge::new(self.progress.clone(), &self.config, file.bytes());
        gauge.phase(Phase::Looking);
        let mut partial = Partial::open(&self.store, file).await?;
        partial.make_room(self.config.reserve_bytes)?;
        gauge.held(partial.held_bytes());
        let ended = self
            .collect_missing(&mut partial, sources, &mut gauge)
            .await;
        // A stick may be pulled now, and a server need not hold a connection.
        sources.iter_mut().for_each(Source::rest);
        gauge.phase(Phase::Idle);
        ended?;
        Ok(Collected::Whole(Box::new(partial)))
    }

    async fn collect_missing(
        &mut self,
        partial: &mut Partial,
        sources: &mut [Source],
        gauge: &mut Gauge,
    ) -> Result<(), FetchError> {
        let file = partial.wanted().clone();
        let path = format!("targets/{}", file.name.file_name(&file.digest));
        let mut ledger = SourceLedger::open(&self.store, &file.digest, sources, &self.config);
        let mut piece = Vec::with_capacity(file.pieces.piece_bytes() as usize);
        let mut trouble = String::from("no source is configured");
        while let Some(piece_idx) = partial.held().next() {
            self.while_held(sources, gauge).await;
            let idx = match ledger.standings.choose(gauge.now()) {
                Choice::Ask(idx) => idx,
                Choice::Wait { until, fault } => {
                    let retry = until.saturating_sub(gauge.now());
                    gauge.phase(Phase::Waiting { retry, fault });
                    sleep(retry).await;
                    continue;
                }
                Choice::Out(fault) => {
                    // The next try begins with a clean slate: somebody has asked for it.
                    ledger.forget();
                    return Err(FetchError::Sources {
                        file: path,
                        fault,
                        trouble,
                    });
                }
            };
            let source = &mut sources[idx];
            gauge.from(source.name());
            let want = Want {
                file: &path,
                file_bytes: file.bytes(),
                range: file
                    .pieces
                    .range(piece_idx)
                    .expect("a missing piece of this file"),
            };
            piece.clear();
            let read = source.read(&want, &mut piece, gauge).await;
            let read = read.and_then(|()| match file.pieces.is_piece(piece_idx, &piece) {
                true => Ok(()),
                false => Err(SourceError {
                    source_name: source.name().to_owned(),
                    file: path.clone(),
                    fault: Fault::Lied,
                    what: format!(
                        "piece {piece_idx} of {} has SHA-256 {}, signed is {}",
                        file.pieces.n_pieces(),
                        Digest::of(&piece),
                        file.pieces.digest(piece_idx).expect("a piece of this file"),
                    ),
                }),
            });
            match read {
                Ok(()) => {
                    partial.keep(piece_idx, &piece)?;
                    ledger.delivered(idx, gauge.now());
                }
                Err(error) => {
                    source.rest();
                    warn!(%error, fault = ?error.fault, "a source did not deliver");
                    trouble = error.to_string();
                    gauge.trouble(&trouble);
                    ledger.failed(idx, error.fault, gauge.now());
                }
            }
            gauge.held(partial.held_bytes());
        }
        Ok(())
    }

    /// Returns at once when nothing holds us back.
    async fn while_held(&mut self, sources: &mut [Source], gauge: &mut Gauge) {
        if !*self.hold.borrow_and_update() {
            return;
        }
        gauge.phase(Phase::Paused);
        sources.iter_mut().for_each(Source::rest);
        // Whoever could have said "go on" is gone: then nobody is busy either.
        let _ = self.hold.wait_for(|hold| !hold).await;
        gauge.speed.rest();
    }

    /// Hashes a collected file as a whole, as the disk gives it, and makes it a blob. `None`: the disk has lost
    /// pieces, collect them again.
    ///
    /// # Errors
    /// It is not the signed file, or the disk fails.
    pub async fn commit(&mut self, collected: Collected) -> Result<Option<PathBuf>, FetchError> {
        let partial = match collected {
            Collected::Blob(path) => return Ok(Some(path)),
            Collected::Whole(partial) => *partial,
        };
        let digest = partial.wanted().digest;
        let bytes = partial.wanted().bytes();
        let mut gauge = Gauge::new(self.progress.clone(), &FetchConfig::default(), bytes);
        gauge.phase(Phase::Verifying);
        let committed = partial.commit(|n_bytes| gauge.took(n_bytes)).await;
        gauge.phase(Phase::Idle);
        match committed? {
            Commit::Done => {
                info!(%digest, bytes, "a model file is there and verified");
                Ok(Some(self.store.path(&digest)))
            }
            Commit::Rotten => Ok(None),
        }
    }
}

/// How the sources of one file stand, in memory and on the disk. A board that starts again and again must not
/// ask a tired mirror again and again.
struct SourceLedger {
    standings: Standings,
    names: Vec<Option<String>>,
    path: PathBuf,
    new_path: PathBuf,
    is_stored: bool,
}

/// Longest stored ledger, bytes; a longer one is not ours.
const LEDGER_BYTES_MAX: u64 = 64 << 10;

impl SourceLedger {
    fn open(store: &BlobStore, digest: &Digest, sources: &[Source], config: &FetchConfig) -> Self {
        let path = store.partial_path(digest, SOURCES_SUFFIX);
        let stored = read_ledger(&path);
        // What is in a directory now may be another stick than the one that failed.
        let name = |source: &Source| (!source.is_local()).then(|| source.name().to_owned());
        let names: Vec<Option<String>> = sources.iter().map(name).collect();
        let standing = |name: &Option<String>| {
            let known = name.as_ref().and_then(|name| stored.get(name));
            known.cloned().unwrap_or_default()
        };
        let standings = names.iter().map(standing).collect();
        Self {
            standings: Standings::new(config.patience.clone(), standings),
            names,
            path,
            new_path: store.partial_path(digest, SOURCES_NEW_SUFFIX),
            is_stored: !stored.is_empty(),
        }
    }

    fn delivered(&mut self, idx: usize, now: Duration) {
        let had_faults = self
            .standings
            .at(now)
            .nth(idx)
            .is_some_and(|s| s.n_faults > 0);
        self.standings.delivered(idx);
        if had_faults && self.is_stored {
            self.store(now);
        }
    }

    fn failed(&mut self, idx: usize, fault: Fault, now: Duration) {
        self.standings.failed(idx, fault, now, random());
        self.store(now);
    }

    fn store(&mut self, now: Duration) {
        let named = self.names.iter().zip(self.standings.at(now));
        let ledger: BTreeMap<&str, Standing> = named
            .filter_map(|(name, standing)| Some((name.as_deref()?, standing)))
            .collect();
        if ledger.is_empty() {
            return;
        }
        let json = serde_json::to_vec(&ledger).expect("texts and numbers");
        let stored = std::fs::write(&self.new_path, json)
            .and_then(|()| std::fs::rename(&self.new_path, &self.path));
        match stored {
            Ok(()) => self.is_stored = true,
            // It costs a mirror some requests, nothing else.
            Err(error) => warn!(%error, "how the sources did could not be stored"),
        }
    }

    fn forget(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn read_ledger(path: &Path) -> BTreeMap<String, Standing> {
    let is_ours = std::fs::metadata(path).is_ok_and(|meta| meta.len() <= LEDGER_BYTES_MAX);
    match is_ours {
        true => std::fs::read(path)
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default(),
        false => BTreeMap::new(),
    }
}

/// Uniform in 0.0..1.0.
fn random() -> f64 {
    // Without a random source the spread is lost, not the fetch.
    let value = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(value) / (f64::from(u32::MAX) + 1.0)
}

/// Counts bytes: for the cap, for the speed, for whoever watches.
struct Gauge {
    start: Instant,
    cap: Cap,
    speed: Speed,
    progress: watch::Sender<Progress>,
    state: Progress,
    held_bytes: u64,
    /// Of the piece that is being read.
    piece_bytes: u64,
    told: Option<Duration>,
}

impl Gauge {
    fn new(progress: watch::Sender<Progress>, config: &FetchConfig, bytes_total: u64) -> Self {
        Self {
            start: Instant::now(),
            cap: Cap::new(config.bytes_per_second_max),
            speed: Speed::default(),
            state: Progress {
                bytes_total,
                ..Progress::default()
            },
            progress,
            held_bytes: 0,
            piece_bytes: 0,
            told: None,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn phase(&mut self, phase: Phase) {
        self.state.phase = phase;
        self.tell();
    }

    fn from(&mut self, source: &str) {
        let is_news =
            self.state.phase != Phase::Fetching || self.state.source.as_deref() != Some(source);
        if is_news {
            self.state.source = Some(source.to_owned());
            self.phase(Phase::Fetching);
        }
    }

    fn trouble(&mut self, trouble: &str) {
        self.state.trouble = Some(trouble.to_owned());
        self.tell();
    }

    /// So many bytes are there for good.
    fn held(&mut self, bytes: u64) {
        self.held_bytes = bytes;
        self.piece_bytes = 0;
        self.tell();
    }

    fn tell(&mut self) {
        let now = self.now();
        self.told = Some(now);
        let done = self.held_bytes.saturating_add(self.piece_bytes);
        self.state.bytes_done = done.min(self.state.bytes_total);
        self.state.bytes_per_second = self.speed.bytes_per_second(now);
        self.state.eta = match self.state.phase {
            Phase::Fetching | Phase::Verifying => {
                let missing = self.state.bytes_total - self.state.bytes_done;
                self.speed.eta(missing, now)
            }
            _ => None,
        };
        self.progress.send_replace(self.state.clone());
    }
}

impl Flow for Gauge {
    fn took(&mut self, n_bytes: u64) -> Duration {
        let now = self.now();
        self.state.bytes_received += n_bytes;
        self.piece_bytes += n_bytes;
        self.speed.took(n_bytes, now);
        let wait = self.cap.took(n_bytes, now);
        if self
            .told
            .is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY)
        {
            self.tell();
        }
        wait
    }
}
