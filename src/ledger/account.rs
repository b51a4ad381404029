//! What is taken now, and how it compares with what was planned.

use std::collections::BTreeMap;

use super::need::Need;
use crate::frames::{Device, Loaded};

/// What memory is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Weights of the model that serves.
    Weights,
    /// Its KV pool.
    Kv,
    /// Its compute buffers.
    Compute,
    /// The GPU's context.
    GpuContext,
    /// The worker's process beside its buffers.
    Process,
    /// Saved prompt states outside the KV pool.
    PromptCache,
    /// Parked sequences saved outside the KV pool.
    Parked,
    /// The embedding model with all that belongs to it.
    Embedding,
    /// This supervisor.
    Supervisor,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Weights,
        Self::Kv,
        Self::Compute,
        Self::GpuContext,
        Self::Process,
        Self::PromptCache,
        Self::Parked,
        Self::Embedding,
        Self::Supervisor,
    ];
}

/// Bytes by kind. What was never set takes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    bytes: BTreeMap<Kind, u64>,
    mapped_bytes: u64,
}

impl Account {
    /// A worker that serves a model which takes `need`.
    pub fn of(need: &Need) -> Self {
        let mut account = Self::default();
        for (kind, bytes) in [
            (Kind::Weights, need.weights_bytes),
            (Kind::Kv, need.kv_bytes),
            (Kind::Compute, need.compute_bytes),
            (Kind::GpuContext, need.gpu_context_bytes),
            (Kind::Process, need.process_bytes),
        ] {
            account.set(kind, bytes);
        }
        account.mapped_bytes = need.mapped_bytes;
        account
    }

    /// Notes what `kind` takes from now on.
    pub fn set(&mut self, kind: Kind, bytes: u64) {
        match bytes {
            0 => self.bytes.remove(&kind),
            bytes => self.bytes.insert(kind, bytes),
        };
    }

    /// What `kind` takes.
    pub fn get(&self, kind: Kind) -> u64 {
        self.bytes.get(&kind).copied().unwrap_or(0)
    }

    /// Everything.
    pub fn total_bytes(&self) -> u64 {
        self.sum(&Kind::ALL)
    }

    /// What dropping caches and parked sequences gives back.
    pub fn caches_bytes(&self) -> u64 {
        self.sum(&[Kind::PromptCache, Kind::Parked])
    }

    /// What ending the worker gives back.
    pub fn worker_bytes(&self) -> u64 {
        self.sum(&[
            Kind::Weights,
            Kind::Kv,
            Kind::Compute,
            Kind::GpuContext,
            Kind::Process,
            Kind::PromptCache,
            Kind::Parked,
        ])
    }

    /// Of the weights, what MemAvailable counts as available: see [`super::fit::Room::mapped_bytes`].
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes.min(self.get(Kind::Weights))
    }

    fn sum(&self, kinds: &[Kind]) -> u64 {
        kinds
            .iter()
            .map(|kind| self.get(*kind))
            .fold(0, u64::saturating_add)
    }
}

/// What a load really took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// Weights by llama.cpp's breakdown. Where other tensors lie between mapped ones, no more of the mapped
    /// range is counted than was planned: the rest is not read again.
    pub weights_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// The GPU's context: what MemAvailable fell by and nothing else explains; by rule where that is less
    /// than nothing.
    pub gpu_context_bytes: u64,
    /// Private resident memory beyond the buffers in it.
    pub process_bytes: u64,
}

/// What was read around a load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Readings {
    /// MemAvailable before it.
    pub available_before_bytes: u64,
    /// MemAvailable after it.
    pub available_after_bytes: u64,
    /// Private resident memory of the worker after it (RssAnon and RssShmem); `None`: not readable.
    pub private_bytes: Option<u64>,
}

impl Taken {
    /// From the worker's own words and the kernel's.
    pub fn of(loaded: &Loaded, planned: &Need, readings: Readings) -> Self {
        let device = |name: &str| -> Option<&Device> {
            loaded.devices.iter().find(|device| device.name == name)
        };
        let mut taken = Self::default();
        let mut mapped_bytes: u64 = 0;
        // Buffers that lie in the process' own resident memory.
        let mut private_bytes: u64 = 0;
        for buffer in &loaded.buffers {
            let on = device(&buffer.buffer);
            if on.is_some_and(|device| !device.is_integrated) {
                continue; // a discrete GPU's own memory
            }
            let others = buffer.kv_bytes.saturating_add(buffer.compute_bytes);
            if buffer.buffer.ends_with("_Mapped") {
                mapped_bytes = mapped_bytes.saturating_add(buffer.weights_bytes);
            } else {
                taken.weights_bytes = taken.weights_bytes.saturating_add(buffer.weights_bytes);
                if on.is_none() {
                    private_bytes = private_bytes
                        .saturating_add(buffer.weights_bytes)
                        .saturating_add(others);
                }
            }
            taken.kv_bytes = taken.kv_bytes.saturating_add(buffer.kv_bytes);
            taken.compute_bytes = taken.compute_bytes.saturating_add(buffer.compute_bytes);
        }
        let mapped_bytes = mapped_bytes.min(planned.mapped_bytes);
        taken.weights_bytes = taken.weights_bytes.saturating_add(mapped_bytes);
        taken.process_bytes = match readings.private_bytes {
            // Compute buffers are touched as they are needed, so this may be a little low.
            Some(resident) => resident.saturating_sub(private_bytes),
            None => planned.process_bytes,
        };
        if planned.gpu_context_bytes > 0 {
            let fell = readings
                .available_before_bytes
                .saturating_sub(readings.available_after_bytes);
            let explained = taken.total_bytes().saturating_sub(mapped_bytes);
            taken.gpu_context_bytes = match fell.saturating_sub(explained) {
                0 => planned.gpu_context_bytes,
                rest => rest,
            };
        }
        taken
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        [
            self.weights_bytes,
            self.kv_bytes,
            self.compute_bytes,
            self.gpu_context_bytes,
            self.process_bytes,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

/// Planned and taken side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Before the load.
    pub planned: Need,
    /// After it.
    pub taken: Taken,
}

impl Comparison {
    /// Taken less planned: positive when the plan was too small.
    pub fn difference_bytes(&self) -> i64 {
        let difference =
            i128::from(self.taken.total_bytes()) - i128::from(self.planned.total_bytes());
        difference.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// The account after the load: what was measured where it was, and the plan's mapped weights.
    pub fn account(&self) -> Account {
        Account::of(&Need {
            weights_bytes: self.taken.weights_bytes,
            kv_bytes: self.taken.kv_bytes,
            compute_bytes: self.taken.compute_bytes,
            gpu_context_bytes: self.taken.gpu_context_bytes,
            process_bytes: self.taken.process_bytes,
            ..self.planned.clone()
        })
    }
}
