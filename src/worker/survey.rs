//! What each model would take with each pool and type of KV cache, asked of planning workers one after the
//! other. Nothing is loaded.

use std::path::Path;
use std::time::Duration;

use super::plan::Planner;
use crate::frames::{Device, KvType, LoadSpec, PlanAsk};
use crate::ledger::fit::{self, Search};
use crate::ledger::{Need, Room, Rules};

/// KV types that are asked about, the best first.
pub const KV_TYPES: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];
/// Smallest pool of a survey; doubled until the model's own context.
const N_CTX_MIN: u32 = 2048;
/// Longest wait for one answer.
const STALL: Duration = Duration::from_secs(30);

/// What models are to fit into.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// What there is.
    pub room: Room,
    /// Beside what plans say.
    pub rules: Rules,
    /// A board that is not here, whose GPU shares main memory.
    pub is_elsewhere: bool,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surveyed {
    /// Its name.
    pub name: String,
    /// llama.cpp's line about it.
    pub description: String,
    /// Context it was trained with.
    pub n_ctx_train: u32,
    /// By pool, then by KV type.
    pub rows: Vec<Row>,
    /// For each of [`KV_TYPES`]: the largest pool that fits.
    pub largest: [Option<u32>; KV_TYPES.len()],
}

/// One pool with one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Tokens.
    pub n_ctx: u32,
    /// Of keys and values.
    pub kv_type: KvType,
    /// What it takes, on GPUs with memory of their own too; or why there is no such context.
    pub taken: Result<Bytes, String>,
}

/// What a row takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes {
    /// Weights.
    pub weights_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Compute buffers.
    pub compute_bytes: u64,
    /// The process, and the GPU's context.
    pub other_bytes: u64,
    /// Whether it fits.
    pub fits: bool,
}

impl Bytes {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        [
            self.weights_bytes,
            self.kv_bytes,
            self.compute_bytes,
            self.other_bytes,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }
}

/// Asks about one model; `progress` is told the part that is done, 0.0 to 1.0.
///
/// # Errors
/// Why there is no plan, a sentence.
pub async fn survey(
    program: &Path,
    load: &LoadSpec,
    site: &Site,
    mut progress: impl FnMut(f64),
) -> Result<Surveyed, String> {
    let start = Planner::start(program, load, STALL).await;
    let planner = start.map_err(|error| match error.stderr_tail.last() {
        Some(last) if !error.cause.is_decision() => format!("{error}; it said: {last}"),
        _ => error.to_string(),
    })?;
    let mut asking = Asking {
        devices: devices(&planner.outline.devices, site),
        planner,
        site,
    };
    match asking.all(load, &mut progress).await {
        Ok(surveyed) => {
            asking.planner.end().await;
            Ok(surveyed)
        }
        Err(verdict) => Err(asking.planner.bury(verdict).await.to_string()),
    }
}

/// The devices as they count there: every Jetson's GPU shares main memory.
fn devices(here: &[Device], site: &Site) -> Vec<Device> {
    let there = here.iter().cloned().map(|device| Device {
        is_integrated: device.is_integrated || site.is_elsewhere,
        ..device
    });
    there.collect()
}

struct Asking<'a> {
    planner: Planner,
    devices: Vec<Device>,
    site: &'a Site,
}

type Verdict = Option<super::Cause>;

impl Asking<'_> {
    async fn all(
        &mut self,
        load: &LoadSpec,
        progress: &mut impl FnMut(f64),
    ) -> Result<Surveyed, Verdict> {
        let n_ctx_train = self.planner.outline.n_ctx_train.max(1);
        let pools = pools(n_ctx_train);
        let n_rows = pools.len() * KV_TYPES.len();
        let mut rows = Vec::new();
        for n_ctx in pools {
            for kv_type in KV_TYPES {
                let taken = self.bytes(ask(load, n_ctx, kv_type)).await?;
                rows.push(Row {
                    n_ctx,
                    kv_type,
                    taken,
                });
                progress(rows.len() as f64 / n_rows as f64);
            }
        }
        let mut largest = [None; KV_TYPES.len()];
        for (largest, kv_type) in largest.iter_mut().zip(KV_TYPES) {
            let mut search = Search::new(N_CTX_MIN.min(n_ctx_train), n_ctx_train);
            while let Some(n_ctx) = search.next() {
                let taken = self.bytes(ask(load, n_ctx, kv_type)).await?;
                search.learn(n_ctx, taken.is_ok_and(|bytes| bytes.fits));
            }
            *largest = search.found();
        }
        Ok(Surveyed {
            name: load.name.clone(),
            description: self.planner.outline.description.clone(),
            n_ctx_train,
            rows,
            largest,
        })
    }

    async fn bytes(&mut self, ask: PlanAsk) -> Result<Result<Bytes, String>, Verdict> {
        let plan = match self.planner.ask(ask).await? {
            Ok(plan) => plan,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut need = Need::of(&plan, &self.devices, self.site.rules);
        if self.site.is_elsewhere {
            need.gpu_context_bytes = self.site.rules.gpu_context_bytes;
        }
        let sum = |part: fn(&crate::frames::BufferUse) -> u64| {
            plan.buffers.iter().map(part).fold(0, u64::saturating_add)
        };
        Ok(Ok(Bytes {
            weights_bytes: sum(|buffer| buffer.weights_bytes),
            kv_bytes: sum(|buffer| buffer.kv_bytes),
            compute_bytes: sum(|buffer| buffer.compute_bytes),
            other_bytes: need.process_bytes.saturating_add(need.gpu_context_bytes),
            fits: fit::check(&need, &self.site.room).is_ok(),
        }))
    }
}

fn ask(load: &LoadSpec, n_ctx: u32, kv_type: KvType) -> PlanAsk {
    PlanAsk {
        n_ctx,
        kv_type_k: kv_type,
        kv_type_v: kv_type,
        ..PlanAsk::of(load)
    }
}

/// 2048 and its doubles below the model's own context, then that.
fn pools(n_ctx_train: u32) -> Vec<u32> {
    let doubles = std::iter::successors(Some(N_CTX_MIN), |n_ctx| n_ctx.checked_mul(2));
    let mut pools: Vec<u32> = doubles.take_while(|n_ctx| *n_ctx < n_ctx_train).collect();
    pools.push(n_ctx_train);
    pools
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_double_up_to_the_models_own_context() {
        assert_eq!(pools(8192), [2048, 4096, 8192]);
        assert_eq!(pools(10_000), [2048, 4096, 8192, 10_000]);
        assert_eq!(pools(512), [512]);
        assert_eq!(pools(1 << 20).len(), 10);
        assert_eq!(pools(u32::MAX).last(), Some(&u32::MAX));
    }
}
