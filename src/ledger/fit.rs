//! Whether something fits, and the sentence when it does not.

use std::fmt;

use super::memory;
use super::need::Need;
use crate::frames::{KvType, PlanAsk};

/// What there is to take from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// MemTotal, or the limit of our control group where that is less.
    pub total_bytes: u64,
    /// MemAvailable, within the same limit.
    pub available_bytes: u64,
    /// To be left alone.
    pub reserve_bytes: u64,
    /// What running models have mapped: MemAvailable counts it, and it is taken.
    pub mapped_bytes: u64,
}

impl Room {
    /// What may be taken now.
    pub fn takeable_bytes(&self) -> u64 {
        self.available_bytes
            .saturating_sub(self.mapped_bytes)
            .saturating_sub(self.reserve_bytes)
    }

    /// What could be taken if nothing else ran at all.
    pub fn takeable_bytes_max(&self) -> u64 {
        self.total_bytes.saturating_sub(self.reserve_bytes)
    }
}

/// Which memory is too small.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Short {
    /// Main memory.
    Main,
    /// A discrete GPU's own.
    Device {
        /// Its name.
        name: String,
        /// What it would have to hold.
        need_bytes: u64,
        /// What it has free.
        free_bytes: u64,
    },
    /// There is enough, but not in one piece.
    OnePiece {
        /// The piece.
        bytes: u64,
    },
}

/// Left free in a discrete GPU's own memory: its libraries take workspaces at the first decode.
const DEVICE_RESERVE_BYTES: u64 = 256 << 20;

/// Whether `need` fits into `room`.
///
/// # Errors
/// Which memory is short.
pub fn check(need: &Need, room: &Room) -> Result<(), Short> {
    if need.total_bytes() > room.takeable_bytes() {
        return Err(Short::Main);
    }
    for device in &need.devices {
        if device.bytes.saturating_add(DEVICE_RESERVE_BYTES) > device.free_bytes {
            return Err(Short::Device {
                name: device.name.clone(),
                need_bytes: device.bytes,
                free_bytes: device.free_bytes,
            });
        }
    }
    Ok(())
}

/// Looks for the largest n_ctx that fits, in few questions: the most, the least, then by halves.
///
/// What fits at some n_ctx fits at each smaller one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    least: u32,
    most: u32,
    /// The largest known to fit.
    fits: Option<u32>,
    /// The smallest known not to.
    too_large: Option<u32>,
}

/// Pools are this fine: llama.cpp pads them so.
const N_CTX_STEP: u32 = 256;

impl Search {
    /// Between `least` and `most`, both allowed.
    pub fn new(least: u32, most: u32) -> Self {
        Self {
            least: least.min(most),
            most,
            fits: None,
            too_large: None,
        }
    }

    /// What to try next; `None` when it is decided.
    pub fn next(&self) -> Option<u32> {
        match (self.fits, self.too_large) {
            (None, None) => Some(self.most),
            (Some(_), None) => None,
            (None, Some(too_large)) if too_large <= self.least => None,
            (None, Some(_)) => Some(self.least),
            (Some(fits), Some(too_large)) => {
                let middle = fits / 2 + too_large / 2;
                let middle = middle.next_multiple_of(N_CTX_STEP);
                [middle, middle.saturating_sub(N_CTX_STEP)]
                    .into_iter()
                    .find(|n_ctx| *n_ctx > fits && *n_ctx < too_large)
            }
        }
    }

    /// Notes whether `n_ctx` fits.
    pub fn learn(&mut self, n_ctx: u32, fits: bool) {
        let (known, closer): (_, fn(u32, u32) -> u32) = match fits {
            true => (&mut self.fits, u32::max),
            false => (&mut self.too_large, u32::min),
        };
        *known = Some(known.map_or(n_ctx, |old| closer(old, n_ctx)));
    }

    /// The largest that fits, once [`Search::next`] has nothing left to try.
    pub fn found(&self) -> Option<u32> {
        self.fits
    }
}

/// What would fit instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instead {
    /// The same model with its types, and the largest pool.
    pub n_ctx: Option<u32>,
    /// The same pool (or the largest below it) with smaller keys and values.
    pub kv_type: Option<(KvType, u32)>,
    /// The largest other model of the catalogue.
    pub model: Option<String>,
}

/// Why a model is not loaded: all numbers, and what would fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The model's name.
    pub model: String,
    /// What was asked for.
    pub ask: PlanAsk,
    /// What it would take.
    pub need: Need,
    /// What there is.
    pub room: Room,
    /// Which memory is short.
    pub short: Short,
    /// What would fit.
    pub instead: Instead,
}

impl Refusal {
    /// Whether it would fit once `bytes` of main memory are given back.
    pub fn fits_with(&self, bytes: u64) -> bool {
        matches!(self.short, Short::Main)
            && self.need.total_bytes() <= self.room.takeable_bytes().saturating_add(bytes)
    }

    /// Whether it may fit when others give memory back; otherwise never on this board.
    pub fn may_fit_later(&self) -> bool {
        match &self.short {
            Short::Main => self.need.total_bytes() <= self.room.takeable_bytes_max(),
            Short::Device { .. } => false,
            // Fragmentation stays until the next boot.
            Short::OnePiece { .. } => false,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (need, room) = (&self.need, &self.room);
        match &self.short {
            Short::Main => {
                write!(f, "{} needs {}", self.model, memory(need.total_bytes()))?;
                write!(f, " (weights {}", memory(need.weights_bytes))?;
                write!(
                    f,
                    ", KV cache {} for n_ctx = {} of {}",
                    memory(need.kv_bytes),
                    self.ask.n_ctx,
                    kv_names(&self.ask)
                )?;
                write!(f, ", compute {}", memory(need.compute_bytes))?;
                if need.gpu_context_bytes > 0 {
                    write!(f, ", GPU context {}", memory(need.gpu_context_bytes))?;
                }
                write!(f, ", process {})", memory(need.process_bytes))?;
                write!(
                    f,
                    ", but only {} may be taken: {} available",
                    memory(room.takeable_bytes()),
                    memory(room.available_bytes)
                )?;
                if room.mapped_bytes > 0 {
                    write!(f, " less {} that are mapped", memory(room.mapped_bytes))?;
                }
                write!(f, " less a reserve of {}", memory(room.reserve_bytes))?;
            }
            Short::Device {
                name,
                need_bytes,
                free_bytes,
            } => write!(
                f,
                "{} needs {} on {name} for n_ctx = {} of {}, which has {} free; {} of these are left alone",
                self.model,
                memory(*need_bytes),
                self.ask.n_ctx,
                kv_names(&self.ask),
                memory(*free_bytes),
                memory(DEVICE_RESERVE_BYTES)
            )?,
            Short::OnePiece { bytes } => {
                return write!(
                    f,
                    "{} needs {} of GPU memory in one piece, and the driver refuses it although {} are available: \
                     memory is fragmented (start the board anew and load the model early), or this is Jetson \
                     Linux 36.4.7, which refuses pieces of about 1 GiB (install 36.5)",
                    self.model,
                    memory(*bytes),
                    memory(room.available_bytes)
                );
            }
        }
        let mut ways = Vec::new();
        if let Some(n_ctx) = self.instead.n_ctx {
            ways.push(format!("n_ctx = {n_ctx}"));
        }
        if let Some((kv_type, n_ctx)) = self.instead.kv_type {
            let name = kv_type.name();
            ways.push(format!(
                "kv_type_k = kv_type_v = \"{name}\" with n_ctx = {n_ctx}"
            ));
        }
        if let Some(model) = &self.instead.model {
            ways.push(format!("the model {model}"));
        }
        match ways.split_last() {
            None => write!(f, "; nothing smaller was found that fits"),
            Some((only, [])) => write!(f, "; {only} would fit"),
            Some((last, rest)) => write!(f, "; {} or {last} would fit", rest.join(", ")),
        }
    }
}

fn kv_names(ask: &PlanAsk) -> String {
    match (ask.kv_type_k.name(), ask.kv_type_v.name()) {
        (k, v) if k == v => k.to_owned(),
        (k, v) => format!("{k}/{v}"),
    }
}
