//! What the node says about itself on retained topics, and when.
//!
//! Documents are rebuilt when something changed and sent when the link has room, so the broker always
//! ends up with the latest; intermediate states may be skipped. Load progress is thinned out.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::checked::{self, NoModel};
use super::pools::Pools;
use super::{Clock, Discovery, Dispatch, Settings, earliest};
use crate::frames::{Hello, Loaded, Sandbox, ToolSyntax};
use crate::home_assistant::{self, Sensed};
use crate::link::{Props, Publish};
use crate::models::{Release, release};
use crate::telemetry::Reading;
use crate::wire::report::{
    Engine, Info, Mode, Model, Models, Power, Presence, Pressure, Proof, State, Status,
    TemplateInfo,
};
use crate::wire::topic::{Name, Op};
use crate::worker::{Cause, Checked, Down, Report};

/// Load progress is published at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// So long after Home Assistant was told of other models `state` is told again.
const DISCOVERY_SETTLES: Duration = Duration::from_secs(2);
/// Failed starts in a row after which prompts are refused instead of waiting.
const HOPELESS_AFTER: u32 = 3;

/// What requests may call the model, whichever serves.
const DEFAULT: &str = "default";

/// So long after the broker gave our session to somebody else `state` tells it.
const TWIN_REMEMBERED: Duration = Duration::from_secs(600);

/// What is known about the worker and the model, and which documents wait to be sent.
pub(super) struct Node {
    hello: Option<Hello>,
    loaded: Option<Loaded>,
    sandbox: Option<Sandbox>,
    failures: u32,
    /// Sequences of the worker that was unloaded.
    idle_slots: Option<usize>,
    checked: Option<Checked>,
    no_model: Option<NoModel>,
    state: State,
    presence: Presence,
    presence_since_ms: u64,
    dirty: Dirty,
    progress_due: Option<Instant>,
    /// The models that Home Assistant was told of.
    announced: Vec<String>,
    twin_until: Option<Instant>,
    /// What serves, or did last; `None` before the first.
    model: Option<String>,
    /// What the embedding model takes.
    embedding_bytes: u64,
    /// What models at rest take.
    resting_bytes: u64,
    /// What the board was seen to have, for Home Assistant.
    sensed: Sensed,
    clock: Clock,
}

#[derive(Default, Clone, Copy)]
struct Dirty {
    status: bool,
    info: bool,
    models: bool,
    state: bool,
    discovery: bool,
}

impl Node {
    pub(super) fn new(settings: &Settings, clock: Clock) -> Self {
        Self {
            hello: None,
            loaded: None,
            sandbox: None,
            failures: 0,
            idle_slots: None,
            checked: None,
            no_model: settings.model.clone().err().map(NoModel::not_yet),
            state: State {
                mode: match settings.model {
                    Ok(_) => Mode::Starting,
                    Err(_) => Mode::NoModel,
                },
                model: None,
                reasons: settings.model.clone().err().into_iter().collect(),
                load_progress: None,
                since_ms: clock.now_ms(),
                pressure: None,
                pools: None,
                memory: None,
                power: None,
            },
            presence: Presence::Online,
            presence_since_ms: clock.now_ms(),
            clock,
            dirty: Dirty::default(),
            progress_due: None,
            announced: Vec::new(),
            twin_until: None,
            model: settings.model.clone().ok(),
            embedding_bytes: 0,
            resting_bytes: 0,
            sensed: Sensed::default(),
        }
    }

    /// What the board was seen to have: Home Assistant is told of what is new.
    pub(super) fn sensed(&mut self, reading: &Reading) {
        self.dirty.discovery |= self.sensed.add(&reading.host, reading.gpu.as_ref());
    }

    /// Sequences of the serving worker; `None` while none serves.
    pub(super) fn slots(&self) -> Option<usize> {
        self.loaded.as_ref().map(|loaded| loaded.n_seq_max as usize)
    }

    /// As [`Node::slots`], and while the model is unloaded those that the next request finds.
    pub(super) fn slots_soon(&self) -> Option<usize> {
        let is_idle = self.state.mode == Mode::Idle;
        self.slots().or(self.idle_slots.filter(|_| is_idle))
    }

    /// How many jobs may be in the serving worker, and its model's name; `None` while none serves.
    pub(super) fn serving(&self) -> Option<(usize, String)> {
        let loaded = self.loaded.as_ref()?;
        let allowed = (self.state.power.as_ref()).map_or(u32::MAX, |power| power.n_seq);
        Some((loaded.n_seq_max.min(allowed) as usize, loaded.name.clone()))
    }

    /// How the serving model writes calls.
    pub(super) fn tool_syntax(&self) -> ToolSyntax {
        self.loaded
            .as_ref()
            .map_or_else(ToolSyntax::default, |loaded| loaded.tool_syntax)
    }

    /// Tokens that one request may use in the serving worker.
    pub(super) fn n_ctx_seq(&self) -> Option<u32> {
        self.loaded.as_ref().map(|loaded| loaded.n_ctx_seq)
    }

    /// What the model follows.
    pub(super) fn set_power(&mut self, power: Power) {
        self.state.power = Some(power);
        self.dirty.state = true;
    }

    /// Whether a request may name this model: as it is called, or by the line that it is a release of.
    pub(super) fn has_model(&self, name: &str, releases: &[Release]) -> bool {
        let is_it = |model: &String| *model == name || *model == release::resolve(releases, name);
        name == DEFAULT || self.model.as_ref().is_some_and(is_it)
    }

    /// Whether a model ever served here, or was to.
    pub(super) fn had_model(&self) -> bool {
        self.model.is_some()
    }

    /// The model that serves, or did last; before the first what requests call whichever serves.
    pub(super) fn model(&self) -> &str {
        self.model.as_deref().unwrap_or(DEFAULT)
    }

    /// What models at rest take from now on, and that others rest.
    pub(super) fn set_resting_bytes(&mut self, bytes: u64) {
        self.resting_bytes = bytes;
        self.dirty.state = true;
        self.dirty.models = true;
    }

    /// What the embedding model takes from now on; whether that is new.
    pub(super) fn set_embedding_bytes(&mut self, bytes: u64) -> bool {
        let is_new = std::mem::replace(&mut self.embedding_bytes, bytes) != bytes;
        self.dirty.state |= is_new;
        self.dirty.models |= is_new;
        is_new
    }

    /// Why no model will serve soon, if so.
    pub(super) fn no_model(&self) -> Option<&NoModel> {
        self.no_model.as_ref()
    }

    /// What the memory watchdog last said.
    pub(super) fn pressure(&self) -> Option<Pressure> {
        self.state.pressure
    }

    pub(super) fn set_pressure(&mut self, pressure: Pressure) {
        self.state.pressure = Some(pressure);
        self.dirty.state = true;
    }

    /// Something that `state` tells and this does not know.
    pub(super) fn state_changed(&mut self) {
        self.dirty.state = true;
    }

    /// Something that `models` tells and this does not know.
    pub(super) fn models_changed(&mut self) {
        self.dirty.models = true;
    }

    /// Something that `info` tells and this does not know.
    pub(super) fn info_changed(&mut self) {
        self.dirty.info = true;
    }

    /// A new session: everything is said again.
    pub(super) fn publish_all(&mut self) {
        self.dirty = Dirty {
            status: true,
            info: true,
            models: true,
            state: true,
            discovery: true,
        };
    }

    /// Another client has our session, most likely a daemon with this node's name.
    pub(super) fn taken_over(&mut self, now: Instant) {
        self.twin_until = Some(now + TWIN_REMEMBERED);
        self.dirty.state = true;
    }

    pub(super) fn drain(&mut self) {
        self.presence = Presence::Draining;
        self.presence_since_ms = self.clock.now_ms();
        self.dirty.status = true;
        self.set_mode(Mode::Draining, vec![]);
    }

    pub(super) fn on_report(&mut self, report: &Report) {
        match report {
            Report::Loading { fraction } => {
                if self.no_model.is_none()
                    && self.state.mode != Mode::Restarting
                    && self.state.mode != Mode::Loading
                {
                    self.set_mode(Mode::Loading, vec![]);
                }
                self.state.load_progress = Some(*fraction);
                self.progress_due
                    .get_or_insert_with(|| Instant::now() + PROGRESS_EVERY);
            }
            Report::Serving {
                loaded,
                hello,
                sandbox,
                checked,
                ..
            } => {
                info!(
                    model = loaded.name,
                    n_ctx = loaded.n_ctx,
                    n_seq_max = loaded.n_seq_max,
                    layers_on_gpu = loaded.n_layers_gpu,
                    layers = loaded.n_layers,
                    load_ms = loaded.load_ms,
                    "model serves"
                );
                self.failures = 0;
                self.no_model = None;
                self.model = Some(loaded.name.clone());
                self.hello = Some((**hello).clone());
                self.loaded = Some((**loaded).clone());
                self.sandbox = Some((**sandbox).clone());
                self.state.memory = Some(checked::memory(checked));
                self.checked = Some((**checked).clone());
                self.dirty.info = true;
                self.dirty.models = true;
                self.set_mode(Mode::Serving, vec![]);
            }
            // A release was not good enough for a board without a model: nothing is loaded any more.
            Report::Tried { .. } if self.loaded.is_none() && self.no_model.is_some() => {
                self.state.load_progress = None;
                self.dirty.state = true;
            }
            Report::Event(_)
            | Report::Resting { .. }
            | Report::SwitchFailed { .. }
            | Report::Trying { .. }
            | Report::Tried { .. } => {}
            Report::Down(down) => self.on_down(down),
        }
    }

    fn on_down(&mut self, down: &Down) {
        let loaded = self.loaded.take();
        self.dirty.models = true;
        if down.cause == Cause::Idle {
            info!("the model is unloaded: nobody asked");
            self.idle_slots = loaded.map(|loaded| loaded.n_seq_max as usize);
            return self.set_mode(Mode::Idle, vec![]);
        }
        self.failures = if down.had_served {
            0
        } else {
            self.failures + 1
        };
        let mut reason = format!("the engine {}", down.cause);
        // Its own words say more than an exit code: a missing library, an allocation that failed.
        if !down.cause.is_decision()
            && let Some(last) = down.stderr_tail.last()
        {
            reason = format!("{reason}; it said: {last}");
        }
        if down.cause.on_purpose() {
            info!(reason, "streams wait for the next engine");
        } else if down.had_served {
            warn!(reason, "streams wait for the next engine");
        } else {
            error!(
                reason,
                retry_ms = down.retry_in.as_millis() as u64,
                "no engine serves"
            );
        }
        if let Cause::NoRoom(refusal) = &down.cause {
            self.state.memory = Some(checked::memory_refused(refusal));
        }
        if down.cause.is_decision() || self.failures >= HOPELESS_AFTER {
            self.no_model = Some(NoModel::new(down, reason.clone()));
            self.dirty.info = true;
            self.set_mode(Mode::NoModel, vec![reason]);
        } else {
            self.set_mode(Mode::Restarting, vec![reason]);
        }
    }

    fn set_mode(&mut self, mode: Mode, reasons: Vec<String>) {
        let changed = self.state.mode != mode;
        let since_ms = if changed {
            self.clock.now_ms()
        } else {
            self.state.since_ms
        };
        let draining = self.presence == Presence::Draining;
        let mode = if draining { Mode::Draining } else { mode };
        self.state = State {
            mode,
            model: self.model.clone(),
            reasons,
            load_progress: None,
            since_ms,
            pressure: self.state.pressure,
            pools: None, // Filled in when it is sent.
            memory: self.state.memory,
            power: self.state.power.take(),
        };
        self.dirty.state = true;
    }
}

/// How it goes, in short: for whoever watches the process.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// The broker's connection is up.
    pub is_connected: bool,
    /// As published.
    pub mode: Mode,
    /// The model that serves, or is to.
    pub model: Option<String>,
    /// 0.0 to 1.0, while a model loads.
    pub load_progress: Option<f32>,
    /// What an operator should know first.
    pub reason: Option<String>,
    /// Jobs in the worker.
    pub n_running: usize,
    /// Jobs that wait for it.
    pub n_waiting: usize,
}

fn names_of(models: &Models) -> Vec<String> {
    models
        .models
        .iter()
        .map(|model| model.name.clone())
        .collect()
}

impl Dispatch {
    pub(super) fn overview(&self) -> Overview {
        let state = &self.node.state;
        Overview {
            is_connected: self.is_connected,
            mode: state.mode,
            model: state.model.clone(),
            load_progress: state.load_progress,
            reason: state.reasons.first().cloned(),
            n_running: self.queue.running(),
            n_waiting: self.queue.waiting(),
        }
    }

    /// Sends the documents that changed; says when to look again.
    pub(super) fn flush_reports(&mut self, now: Instant) -> Option<Instant> {
        let mut wake = None;
        if let Some(due) = self.node.progress_due {
            if due <= now {
                self.node.progress_due = None;
                self.node.dirty.state = true;
            } else {
                wake = earliest(wake, Some(due));
            }
        }
        match self.node.twin_until {
            Some(until) if until <= now => {
                self.node.twin_until = None;
                self.node.dirty.state = true;
            }
            until => wake = earliest(wake, until),
        }
        let mut dirty = std::mem::take(&mut self.node.dirty);
        if dirty.info {
            let backend = self.settings.backend;
            let mut info = Info::new(
                self.settings.names.node(),
                env!("CARGO_PKG_VERSION"),
                self.settings.limits.clone(),
                self.settings.hardware.clone(),
            );
            let pools = self.settings.names.pools().iter();
            info.pools = pools.map(Name::to_string).collect();
            if self.embedder.is_some() {
                info.ops.push(Op::Embed);
            }
            info.engine = self.node.hello.as_ref().map(|hello| {
                Engine::of(
                    hello,
                    self.node.sandbox.as_ref(),
                    self.node.loaded.as_ref().map(|loaded| (backend, loaded)),
                )
            });
            let offload = info.engine.as_mut().and_then(|e| e.offload.as_mut());
            if let (Some(offload), Some(checked)) = (offload, &self.node.checked) {
                offload.proof = Some(Proof::of(&checked.proof));
            }
            info.policy_seq = self.policy_seq();
            info.templates = TemplateInfo::all(&self.settings.templates);
            info.no_model = self.node.no_model().map(|why| why.reason.clone());
            self.retain(self.settings.names.info(), &info);
        }
        if dirty.models {
            let models = self.models();
            let names = names_of(&models);
            dirty.discovery |= self.node.announced != names;
            self.node.announced = names;
            self.retain(self.settings.names.models(), &models);
        }
        if dirty.discovery {
            self.discover();
            if self.settings.discovery == Discovery::Shown {
                // Home Assistant takes a while to know a new model, and refuses one that it does not know.
                let again = now + DISCOVERY_SETTLES;
                let due = self.node.progress_due.map_or(again, |due| due.max(again));
                self.node.progress_due = Some(due);
                wake = earliest(wake, Some(due));
            }
        }
        if dirty.state {
            let mut state = self.node.state.clone();
            state.pools = self.pools.as_ref().map(Pools::report);
            let embedding_bytes = self.node.embedding_bytes;
            if let (Some(memory), 1..) = (&mut state.memory, embedding_bytes) {
                memory.embedding_bytes = Some(embedding_bytes);
            }
            let resting_bytes = self.node.resting_bytes;
            if let (Some(memory), 1..) = (&mut state.memory, resting_bytes) {
                memory.resting_bytes = Some(resting_bytes);
            }
            if let Some(why) = &self.turns.why_not {
                let text = format!("requests for another model wait: {why}");
                state.reasons.push(text);
            }
            if self.node.twin_until.is_some() {
                state.reasons.push(format!(
                    "the broker gave this node's connection to another client: a second daemon with \
                     node.name = {:?}? Give each its own",
                    self.settings.names.node().as_str()
                ));
            }
            self.retain(self.settings.names.state(), &state);
        }
        if dirty.status {
            let status = Status {
                state: self.node.presence,
                boot: self.settings.boot.clone(),
                since_ms: self.node.presence_since_ms,
            };
            self.retain(self.settings.names.status(), &status);
        }
        wake
    }

    /// Tells Home Assistant of this node, or that it is told no more.
    fn discover(&mut self) {
        let topic = home_assistant::topic(self.settings.names.node());
        match self.settings.discovery {
            Discovery::Never => {}
            Discovery::TakenBack => {
                let nothing = Publish {
                    payload: Bytes::new(),
                    props: Props::default(),
                    ..retained(topic, &())
                };
                self.send(nothing);
            }
            Discovery::Shown => {
                let models = names_of(&self.models());
                let device = home_assistant::device(
                    &self.settings.names,
                    env!("CARGO_PKG_VERSION"),
                    &self.settings.hardware,
                    &models,
                    &self.node.sensed,
                );
                self.retain(topic, &device);
            }
        }
    }

    fn models(&self) -> Models {
        let mut models = self.settings.models.clone();
        let releases = self.settings.releases.borrow();
        models.retain(|model| releases.iter().all(|release| release.name != model.name));
        models.extend(releases.iter().map(|release| Model {
            name: release.name.clone(),
            file_bytes: Some(release.file_bytes),
            sha256: Some(release.sha256.clone()),
            line: Some(release.line.clone()),
            aliases: self.settings.aliases_of(&release.name, &release.line),
            release_seq: Some(release.release_seq),
            draft: release.draft.as_ref().map(|draft| draft.name.clone()),
            ..Model::default()
        }));
        let loaded = self.node.loaded.as_ref().map(Model::of);
        let embeds = self.embedder.as_ref().and_then(|it| it.loaded());
        for loaded in loaded.iter().chain(embeds.map(Model::of).as_ref()) {
            match models.iter_mut().find(|model| model.name == loaded.name) {
                Some(model) => {
                    let known = std::mem::take(model);
                    *model = Model {
                        file_bytes: known.file_bytes,
                        sha256: known.sha256,
                        line: known.line,
                        release_seq: known.release_seq,
                        aliases: known.aliases,
                        draft: known.draft,
                        ..loaded.clone()
                    };
                }
                None => models.push(loaded.clone()),
            }
        }
        let is_loaded = |name: &String| {
            let serves = loaded.as_ref().is_some_and(|loaded| loaded.name == *name);
            serves || self.turns.resting.contains(name)
        };
        for model in &mut models {
            model.in_turn = self.settings.is_in_turn(&model.name);
            model.loaded = is_loaded(&model.name);
        }
        Models {
            active: loaded.map(|loaded| loaded.name),
            models,
        }
    }

    fn retain<T: Serialize>(&mut self, topic: String, document: &T) {
        self.send(retained(topic, document));
    }
}

/// A retained JSON document.
pub fn retained<T: Serialize>(topic: String, document: &T) -> Publish {
    Publish {
        topic,
        payload: Bytes::from(
            serde_json::to_vec(document).expect("reports hold no maps with odd keys"),
        ),
        at_least_once: true,
        retain: true,
        props: Props {
            content_type: Some("application/json".to_owned()),
            payload_utf8: true,
            ..Props::default()
        },
        token: None,
    }
}
