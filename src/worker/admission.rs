//! Before a worker is started: does its model fit, and can it run where it should?
//!
//! ```text
//!  room now ──┐
//!             ├─▶ plan ──▶ GPU in sight? ──▶ fits? ──▶ one piece? ──▶ load with this n_ctx
//!  planning ──┘              │ no             │ no        │ no
//!  worker                    ▼                ▼           ▼
//!                         Unproven      NoRoom: all numbers, and what would fit
//! ```
//!
//! Plans are kept while the file stays what it is, so a worker that died is replaced without asking again;
//! only the room is read anew. An explicit `n_ctx` is taken or refused; `n_ctx = 0` becomes the largest that
//! fits.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{info, warn};

use super::plan::{PlanError, Planner};
use super::{Cause, WorkerConfig};
use crate::board::{Faults, Root, cgroup, memory};
use crate::config::Threshold;
use crate::frames::{Device, KvType, LoadSpec, Outline, Plan, PlanAsk, Switch};
use crate::ledger::fit::{self, Search};
use crate::ledger::{Instead, Need, Refusal, Room, Rules, Short};
use crate::offload::{self, Expected};

/// What the operator allows.
#[derive(Debug, Clone)]
pub struct AdmissionConfig {
    /// Where the board is read.
    pub root: PathBuf,
    /// To be left alone, of main memory.
    pub reserve: Threshold,
    /// And no more than this: less while memory is short and something smaller is to serve.
    pub reserve_bytes_max: u64,
    /// Beside what a plan says.
    pub rules: Rules,
    /// Share of the roofline that a token on the GPU must reach; 0: not judged.
    pub canary_share_min: f32,
    /// The models of the catalogue, the largest first: one of them may fit when another does not.
    pub models: Vec<LoadSpec>,
}

/// Least tokens that `n_ctx = 0` becomes: a conversation of a page or two.
const N_CTX_AUTO_MIN: u32 = 2048;
/// Least tokens that a refusal proposes.
const N_CTX_MIN: u32 = 512;
/// Buffers below this are given in one piece on every Jetson Linux that is known.
const PROBE_BYTES_MIN: u64 = 512 << 20;
/// Tokens that a canary sings.
const CANARY_TOKENS: u32 = 16;
/// Other models that a refusal looks into; each takes a fraction of a second.
const OTHERS_MAX: usize = 6;
/// Longest wait for one answer about another model.
const OTHER_STALL: Duration = Duration::from_secs(5);

/// What may be loaded.
#[derive(Debug, Clone)]
pub(super) struct Admitted {
    /// With `n_ctx` resolved.
    pub(super) load: LoadSpec,
    pub(super) plan: Plan,
    pub(super) need: Need,
    pub(super) room: Room,
    pub(super) expected: Expected,
}

/// What was asked and answered so far. Goes into each load and comes back with its outcome.
#[derive(Debug, Clone, Default)]
pub(super) struct Memo {
    known: Vec<Known>,
    /// What models would take with a small pool; asked once, when a refusal needs it.
    small: Option<Vec<(String, Need)>>,
}

/// What was asked and answered about one state of one file.
#[derive(Debug, Clone)]
struct Known {
    path: PathBuf,
    file: FileState,
    outline: Outline,
    plans: Vec<(PlanAsk, Result<Plan, String>)>,
    /// The largest piece that the GPU gave.
    gave_bytes: u64,
    /// The model was proven to run on the GPU: no canary again.
    is_proven: bool,
}

/// What changes when another file takes its place: device, inode, length, last write.
type FileState = (u64, u64, u64, i64, i64);

/// Files that a memo keeps plans of.
const KNOWN_MAX: usize = 8;

impl Memo {
    /// The canary need not sing again for this file.
    pub(super) fn proven(&mut self, path: &Path) {
        let known = self.known.iter_mut().find(|known| known.path == path);
        if let Some(known) = known {
            known.is_proven = true;
        }
    }

    fn take(&mut self, path: &Path, file: Option<FileState>) -> Option<Known> {
        let index = self.known.iter().position(|known| known.path == path)?;
        let known = self.known.remove(index);
        (Some(known.file) == file).then_some(known)
    }

    fn keep(&mut self, known: Option<Known>) {
        if let Some(known) = known {
            self.known.insert(0, known);
            self.known.truncate(KNOWN_MAX);
        }
    }
}

/// What to load for `spec` now, beside models that have `mapped_bytes` mapped; or why not.
pub(super) async fn admit(
    config: &WorkerConfig,
    spec: &LoadSpec,
    memo: &mut Memo,
    mapped_bytes: u64,
) -> Result<Admitted, PlanError> {
    let root = Root::new(&config.admission.root);
    // Before the planning worker starts: on unified memory it takes a GPU context for a moment.
    let room = room(&root, &config.admission, mapped_bytes).map_err(refused)?;
    let file = file_state(spec);
    let mut session = Session {
        config,
        spec,
        room,
        planner: None,
        known: memo.take(&spec.path, file),
        file: file.unwrap_or_default(),
    };
    let judged = match session.judge().await {
        Ok(Verdict::Short(mut refusal)) if !matches!(refusal.short, Short::OnePiece { .. }) => {
            let found = session.find_smaller(&mut refusal.instead).await;
            found.map(|()| Verdict::Short(refusal))
        }
        judged => judged,
    };
    memo.keep(session.known.take());
    let judged = match judged {
        Ok(judged) => judged,
        Err(failure) => return Err(session.bury(failure).await),
    };
    session.end().await;
    match judged {
        Verdict::Fits(admitted) => Ok(*admitted),
        Verdict::Short(mut refusal) => {
            refusal.instead.model = smaller_model(config, spec, memo, &room).await;
            Err(refused(Cause::NoRoom(refusal)))
        }
    }
}

/// The largest other model that fits.
async fn smaller_model(
    config: &WorkerConfig,
    spec: &LoadSpec,
    memo: &mut Memo,
    room: &Room,
) -> Option<String> {
    if memo.small.is_none() {
        let mut needs = Vec::new();
        let models = config.admission.models.iter();
        for load in models
            .filter(|load| load.name != spec.name)
            .take(OTHERS_MAX)
        {
            match need_of_other(config, load).await {
                Ok(need) => needs.push((load.name.clone(), need)),
                Err(reason) => warn!(model = load.name, reason, "no plan of another model"),
            }
        }
        memo.small = Some(needs);
    }
    let others = memo.small.iter().flatten();
    let mut others = others.filter(|(name, _)| *name != spec.name);
    let fits = others.find(|(_, need)| fit::check(need, room).is_ok());
    fits.map(|(name, _)| name.clone())
}

enum Verdict {
    Fits(Box<Admitted>),
    Short(Box<Refusal>),
}

/// One judgement, with a planning worker that starts when a question is new.
struct Session<'a> {
    config: &'a WorkerConfig,
    spec: &'a LoadSpec,
    room: Room,
    planner: Option<Planner>,
    known: Option<Known>,
    file: FileState,
}

impl Session<'_> {
    async fn judge(&mut self) -> Result<Verdict, Failure> {
        let (load, rules) = (self.spec, &self.config.admission);
        let expected = Expected::new(
            gpu_sign(&Root::new(&rules.root)),
            load.backend,
            load.n_gpu_layers,
            rules.canary_share_min,
        );
        let outline = self.outline().await?;
        offload::before_load(&expected, &outline.backends, &outline.devices)
            .map_err(|unproven| Failure::Cause(Cause::Unproven(unproven.to_string())))?;

        let ask = PlanAsk::of(load);
        let found = match load.n_ctx {
            0 => {
                let most = n_ctx_auto(load, &outline);
                self.largest(ask, N_CTX_AUTO_MIN, most).await?
            }
            _ => Some(ask),
        };
        // Where nothing fits, the least is what the refusal is about.
        let ask = found.unwrap_or(PlanAsk {
            n_ctx: N_CTX_AUTO_MIN.min(outline.n_ctx_train.max(1)),
            ..ask
        });
        let (plan, need) = self.plan(ask).await?;
        let short = match fit::check(&need, &self.room) {
            Err(short) => Some(short),
            Ok(()) => self.probe(&need, &outline.devices).await?,
        };
        let is_proven = self.known.as_ref().is_some_and(|known| known.is_proven);
        let needs_proof = expected.is_strict(&outline.devices) && !is_proven;
        match short {
            None => Ok(Verdict::Fits(Box::new(Admitted {
                load: LoadSpec {
                    n_ctx: plan.ask.n_ctx,
                    canary_tokens: if needs_proof { CANARY_TOKENS } else { 0 },
                    ..load.clone()
                },
                plan,
                need,
                room: self.room,
                expected,
            }))),
            Some(short) => Ok(Verdict::Short(Box::new(Refusal {
                model: load.name.clone(),
                ask: plan.ask,
                need,
                room: self.room,
                short,
                instead: Instead::default(),
            }))),
        }
    }

    /// What of this very model would fit.
    async fn find_smaller(&mut self, instead: &mut Instead) -> Result<(), Failure> {
        let load = self.spec;
        let most = match load.n_ctx {
            0 => n_ctx_auto(load, &self.outline().await?),
            n_ctx => n_ctx,
        };
        let ask = PlanAsk::of(load);
        instead.n_ctx = self.largest(ask, N_CTX_MIN, most).await?.map(|a| a.n_ctx);
        let is_full = matches!(load.kv_type_k, KvType::F16 | KvType::F32);
        if is_full && load.flash_attn != Switch::Off {
            let ask = PlanAsk {
                kv_type_k: KvType::Q8_0,
                kv_type_v: KvType::Q8_0,
                ..ask
            };
            let found = match self.largest(ask, N_CTX_MIN, most).await {
                Ok(found) => found.map(|ask| ask.n_ctx),
                // Not for this model's heads.
                Err(Failure::Cause(_)) => None,
                Err(failure) => return Err(failure),
            };
            instead.kv_type = found
                .filter(|n_ctx| Some(*n_ctx) > instead.n_ctx)
                .map(|n_ctx| (KvType::Q8_0, n_ctx));
        }
        Ok(())
    }

    /// The ask with the largest pool between `least` and `most` that fits.
    async fn largest(
        &mut self,
        ask: PlanAsk,
        least: u32,
        most: u32,
    ) -> Result<Option<PlanAsk>, Failure> {
        let mut search = Search::new(least, most);
        while let Some(n_ctx) = search.next() {
            let (_, need) = self.plan(PlanAsk { n_ctx, ..ask }).await?;
            search.learn(n_ctx, fit::check(&need, &self.room).is_ok());
        }
        Ok(search.found().map(|n_ctx| PlanAsk { n_ctx, ..ask }))
    }

    async fn plan(&mut self, ask: PlanAsk) -> Result<(Plan, Need), Failure> {
        let devices = self.outline().await?.devices;
        let known = self.known.as_ref().expect("outline() has made it");
        let known = known.plans.iter().find(|(asked, _)| *asked == ask);
        let plan = match known {
            Some((_, plan)) => plan.clone(),
            None => {
                let plan = self.planner().await?.ask(ask).await?;
                let known = self.known.as_mut().expect("outline() has made it");
                known.plans.push((ask, plan.clone()));
                plan
            }
        };
        let plan = plan.map_err(|reason| Failure::Cause(Cause::LoadFailed(reason)))?;
        let need = Need::of(&plan, &devices, self.config.admission.rules);
        Ok((plan, need))
    }

    /// Whether the GPU gives the largest buffer in one piece: Jetson Linux 36.4.7 does not, and no Jetson
    /// does when its memory is fragmented.
    async fn probe(&mut self, need: &Need, devices: &[Device]) -> Result<Option<Short>, Failure> {
        let bytes = need.largest_buffer_bytes;
        let gave_bytes = self.known.as_ref().map_or(0, |known| known.gave_bytes);
        let is_integrated = devices.iter().any(|device| device.is_integrated);
        if !is_integrated || bytes < PROBE_BYTES_MIN || bytes <= gave_bytes {
            return Ok(None);
        }
        if !self.planner().await?.probe(bytes).await? {
            return Ok(Some(Short::OnePiece { bytes }));
        }
        if let Some(known) = self.known.as_mut() {
            known.gave_bytes = bytes;
        }
        Ok(None)
    }

    async fn outline(&mut self) -> Result<Outline, Failure> {
        if self.known.is_none() {
            let outline = self.planner().await?.outline.clone();
            self.known = Some(Known {
                path: self.spec.path.clone(),
                file: self.file,
                outline,
                plans: Vec::new(),
                gave_bytes: 0,
                is_proven: false,
            });
        }
        let known = self.known.as_ref().expect("made above");
        Ok(known.outline.clone())
    }

    async fn planner(&mut self) -> Result<&mut Planner, Failure> {
        if self.planner.is_none() {
            let config = self.config;
            info!(model = self.spec.name, "planning worker starts");
            let planner = Planner::start(&config.program, self.spec, config.load_stall).await;
            self.planner = Some(planner.map_err(Failure::Started)?);
        }
        Ok(self.planner.as_mut().expect("made above"))
    }

    async fn end(self) {
        if let Some(planner) = self.planner {
            planner.end().await;
        }
    }

    async fn bury(mut self, failure: Failure) -> PlanError {
        match (failure, self.planner.take()) {
            (Failure::Started(error), _) => error,
            (Failure::Ended(verdict), Some(planner)) => planner.bury(verdict).await,
            (Failure::Ended(verdict), None) => {
                refused(verdict.unwrap_or(Cause::Protocol("a planning worker is gone".into())))
            }
            (Failure::Cause(cause), planner) => {
                if let Some(planner) = planner {
                    planner.end().await;
                }
                refused(cause)
            }
        }
    }
}

/// Why a judgement ended early.
enum Failure {
    /// The planning worker did not start.
    Started(PlanError),
    /// It ended, with our verdict or with its own exit status.
    Ended(Option<Cause>),
    /// It lives, and the answer is no.
    Cause(Cause),
}

impl From<Option<Cause>> for Failure {
    fn from(verdict: Option<Cause>) -> Self {
        match verdict {
            Some(Cause::LoadFailed(reason)) => Self::Cause(Cause::LoadFailed(reason)),
            verdict => Self::Ended(verdict),
        }
    }
}

fn refused(cause: Cause) -> PlanError {
    PlanError {
        cause,
        stderr_tail: Vec::new(),
    }
}

/// What there is to take from, now. Without it nothing is loaded: a board that freezes is worse.
fn room(root: &Root, rules: &AdmissionConfig, mapped_bytes: u64) -> Result<Room, Cause> {
    let info = memory::read(root).map_err(|error| {
        Cause::NoReading(format!(
            "how much memory is left is not known: failed to {error}"
        ))
    })?;
    let limit = cgroup::read(root, &mut Faults::default()).and_then(|group| group.limit_bytes);
    let total_bytes = limit.map_or(info.total_bytes, |limit| limit.min(info.total_bytes));
    Ok(Room {
        total_bytes,
        available_bytes: info.available_bytes.min(total_bytes),
        reserve_bytes: (rules.reserve.of(total_bytes)).min(rules.reserve_bytes_max),
        mapped_bytes,
    })
}

/// MemAvailable; 0 where it cannot be read.
pub(super) fn available_bytes(root: &Path) -> u64 {
    memory::read(&Root::new(root)).map_or(0, |info| info.available_bytes)
}

/// A sign that an NVIDIA GPU is in this machine, whether or not its driver works.
fn gpu_sign(root: &Root) -> Option<String> {
    let nodes = ["/dev/nvgpu", "/dev/nvhost-gpu"];
    if let Some(node) = nodes.into_iter().find(|node| root.exists(node)) {
        return Some(node.to_owned());
    }
    // /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm
    if let Some(name) = root.names("/dev", "nvidia").into_iter().next() {
        return Some(format!("/dev/{name}"));
    }
    // NUL-separated, e.g. "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0".
    let bytes = root.bytes("/proc/device-tree/compatible", 4096).ok()??;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let chip = text
        .split('\0')
        .find(|name| name.starts_with("nvidia,tegra"))?;
    Some(format!("device tree {chip}"))
}

/// Most tokens that `n_ctx = 0` becomes.
fn n_ctx_auto(load: &LoadSpec, outline: &Outline) -> u32 {
    let most = match load.n_ctx_auto_max {
        0 => u32::MAX,
        most => most,
    };
    outline.n_ctx_train.clamp(1, most)
}

fn file_state(load: &LoadSpec) -> Option<FileState> {
    let meta = std::fs::metadata(&load.path).ok()?;
    let written = (meta.mtime(), meta.mtime_nsec());
    Some((meta.dev(), meta.ino(), meta.len(), written.0, written.1))
}

/// What another model takes at the least.
async fn need_of_other(config: &WorkerConfig, load: &LoadSpec) -> Result<Need, String> {
    let start = Planner::start(&config.program, load, OTHER_STALL);
    let mut planner = start.await.map_err(|error| error.to_string())?;
    let n_ctx = N_CTX_AUTO_MIN.min(planner.outline.n_ctx_train.max(1));
    let ask = PlanAsk {
        n_ctx: if load.n_ctx == 0 { n_ctx } else { load.n_ctx },
        ..PlanAsk::of(load)
    };
    let answer = planner.ask(ask).await;
    let devices = planner.outline.devices.clone();
    match answer {
        Ok(plan) => {
            planner.end().await;
            Ok(Need::of(&plan?, &devices, config.admission.rules))
        }
        Err(verdict) => Err(planner.bury(verdict).await.to_string()),
    }
}
