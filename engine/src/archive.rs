//! Saved sequences on disk, for the next worker with this model: a thread of its own, so that no decode waits for a
//! disk.
//!
//! Owns the file ([`orinoco::kv_file`]) and what is being written or read. What is worth it and when is the loop's
//! to say (`run::disk`): one thing is saved at a time, and what is asked for is answered in order.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use orinoco::frames::{LoadSpec, Loaded, SavedStates};
use orinoco::kv_file::{Known, KvFile, New, Outcome, Owner};

use crate::shelf::Unsettled;

/// Questions to the thread; a full channel is as a state that is not there.
const ASKS: usize = 64;
/// The first look at the file takes no longer, or nothing is there.
const FIRST_LOOK: Duration = Duration::from_secs(2);

enum Ask {
    Save(Unsettled),
    Read(u64),
}

/// What the thread has done.
#[derive(Debug)]
pub enum Told {
    /// The entry of the shelf with this name is on disk, or why not; `None`: the disk refused.
    Saved(u64, Option<Outcome>),
    /// The state with this name; `None`: it is gone.
    Read(u64, Option<Vec<u8>>),
}

/// The loop's end of the thread.
#[derive(Debug)]
pub struct Archive {
    asks: SyncSender<Ask>,
    told: Receiver<(Told, Inventory)>,
    stop: Arc<AtomicBool>,
    /// What is being saved.
    saving: Option<u64>,
    inventory: Inventory,
    /// What a byte took to be read, the last time.
    byte_ms: Option<f64>,
    reading: Option<(Instant, u64)>,
    /// When a state that nobody came for is saved.
    pub quiet: Option<Duration>,
}

/// What is on disk.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// All states.
    pub known: Vec<Known>,
    /// Bytes that they take.
    pub bytes: u64,
}

/// What the states of this worker belong to.
///
/// # Errors
/// The model's file cannot be read.
pub fn owner(spec: &LoadSpec, loaded: &Loaded, build: &str) -> io::Result<Owner> {
    let devices = Vec::from_iter(loaded.devices.iter().map(|device| device.name.as_str()));
    let layout = format!(
        "{build}; {}, {:?} and {:?}, flash attention {:?}, {} of {} layers on {devices:?}",
        loaded.arch,
        spec.kv_type_k,
        spec.kv_type_v,
        spec.flash_attn,
        loaded.n_layers_gpu,
        loaded.n_layers,
    );
    Owner::of(&spec.path, layout)
}

/// Milliseconds since 1970, as this machine has it.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Archive {
    /// Starts the thread for `file`, and waits for its first look at it.
    ///
    /// # Errors
    /// There are no more threads.
    pub fn start(file: File, owner: Owner, bounds: SavedStates) -> io::Result<Self> {
        let (asks, questions) = sync_channel(ASKS);
        let (answers, told) = sync_channel(ASKS + 1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::Builder::new()
            .name("archive".into())
            .spawn(move || {
                let file = KvFile::new(file, owner, bounds);
                serve(file, &questions, &answers, &stopped);
            })?;
        let quiet = Duration::from_millis(bounds.quiet_ms);
        let mut archive = Self {
            asks,
            told,
            stop,
            saving: None,
            inventory: Inventory::default(),
            byte_ms: None,
            reading: None,
            quiet: Some(quiet).filter(|quiet| !quiet.is_zero()),
        };
        if let Ok((_, inventory)) = archive.told.recv_timeout(FIRST_LOOK) {
            archive.inventory = inventory;
        }
        Ok(archive)
    }

    /// What is on disk.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// What is being saved: an entry of the shelf.
    pub fn saving(&self) -> Option<u64> {
        self.saving
    }

    /// Saves one thing; only when nothing is being saved.
    pub fn save(&mut self, what: Unsettled) {
        debug_assert!(self.saving.is_none(), "one at a time");
        self.stop.store(false, Ordering::Relaxed);
        let key = what.key;
        if self.asks.try_send(Ask::Save(what)).is_ok() {
            self.saving = Some(key);
        }
    }

    /// What is being saved is left, between two pieces.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Has a state read; whether it will be.
    pub fn read(&mut self, known: &Known) -> bool {
        // It does not wait behind what can wait.
        self.stop();
        let is_asked = self.asks.try_send(Ask::Read(known.id)).is_ok();
        if is_asked && self.saving.is_none() {
            self.reading = Some((Instant::now(), known.state_bytes));
        }
        is_asked
    }

    /// How long reading so many bytes takes, milliseconds; 0 while nothing is known.
    pub fn read_ms(&self, n_bytes: u64) -> f64 {
        self.byte_ms.unwrap_or(0.0) * n_bytes as f64
    }

    /// A conversation is not looked for any more.
    pub fn forget(&mut self, is_it: impl Fn(&Known) -> bool) {
        self.inventory.known.retain(|known| !is_it(known));
    }

    /// What was done since.
    pub fn told(&mut self) -> Option<Told> {
        let (told, inventory) = self.told.try_recv().ok()?;
        self.inventory = inventory;
        match &told {
            Told::Saved(..) => self.saving = None,
            Told::Read(_, state) => {
                if let (Some((since, n_bytes)), Some(_)) = (self.reading.take(), state) {
                    let ms = since.elapsed().as_secs_f64() * 1e3;
                    self.byte_ms = Some(ms / n_bytes.max(1) as f64);
                }
            }
        }
        Some(told)
    }
}

fn serve(
    mut file: KvFile<File>,
    asks: &Receiver<Ask>,
    told: &SyncSender<(Told, Inventory)>,
    stop: &AtomicBool,
) {
    let mut n_bad = 0;
    let mut tell = |what: Told, file: &KvFile<File>| {
        if file.n_bad() > n_bad {
            n_bad = file.n_bad();
            tracing::warn!(
                n_bad,
                "saved states are not what was written: they are dropped, and prompts are read again"
            );
        }
        let inventory = Inventory {
            known: file.list(),
            bytes: file.bytes(),
        };
        told.send((what, inventory)).is_ok()
    };
    if let Err(error) = file.known(now_ms()) {
        tracing::warn!(%error, "the file of saved states cannot be read; there are none");
    }
    // Nobody asked for it: only what comes with it counts.
    let mut is_heard = tell(Told::Read(0, None), &file);
    while is_heard && let Ok(ask) = asks.recv() {
        let done = match ask {
            Ask::Save(what) => {
                let new = New {
                    tokens: &what.tokens,
                    state: &what.state,
                    kind: what.kind,
                    made_ms: what.made_ms,
                };
                let began = Instant::now();
                let saved = file.save(&new, now_ms(), stop);
                let saved = saved.inspect_err(|error| {
                    tracing::warn!(%error, "a state cannot be saved");
                });
                let ms = began.elapsed().as_millis() as u64;
                tracing::debug!(n_tokens = what.tokens.len(), ms, ?saved, "a state for disk");
                Told::Saved(what.key, saved.ok())
            }
            Ask::Read(id) => {
                let began = Instant::now();
                let state = file.read(id, now_ms()).unwrap_or_else(|error| {
                    tracing::warn!(%error, "a saved state cannot be read; its prompt is");
                    None
                });
                let (ms, n_bytes) = (
                    began.elapsed().as_millis() as u64,
                    state.as_ref().map(Vec::len),
                );
                tracing::debug!(ms, n_bytes, "a state from disk");
                Told::Read(id, state)
            }
        };
        is_heard = tell(done, &file);
    }
}
