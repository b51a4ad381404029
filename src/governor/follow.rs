//! What is to serve by the power mode, by heat and by order: [`Selection`], fed with this moment.
//!
//! Owns: the operator's order and how long it holds, and what could not be loaded lately. An order holds
//! until another one or `auto`; where the power mode chooses the model, also until the mode changes: who
//! changes the mode wants what goes with it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;

use crate::board::caps::Caps;
use crate::board::power::Present;
use crate::config::{PowerConfig, ProfileConfig};
use crate::frames::LoadSpec;
use crate::models::Release;
use crate::selection::{Change, Choice, HeatReading, Line, Selection, Source};
use crate::wire::report::{ChosenBy, Power};

/// What could not be loaded is tried again after this time, or in another mode.
const RETRY_AFTER: Duration = Duration::from_secs(300);

/// What could serve on this board, from the configuration and the models that are here.
pub trait Lineup: Send + Sync {
    /// What could serve now, best first.
    fn candidates(&mut self, moment: &Moment<'_>) -> Vec<Line>;
    /// How a line is loaded; `None` when its model is gone.
    fn load(&self, line: &Line) -> Option<LoadSpec>;
    /// How a model is loaded that nobody has a word to say about.
    fn plain(&self, model: &str) -> Line;
    /// From now on candidates are as if this release were the one in service; or, with `None`, no more.
    fn consider(&mut self, _release: Option<&Release>) {}
    /// Other settings, from the next look on.
    fn tune(&mut self, _power: &PowerConfig, _profiles: &BTreeMap<String, ProfileConfig>) {}
    /// Whether there is a model, or a line of releases, of this name.
    fn knows(&self, _name: &str) -> bool {
        false
    }
}

/// What candidates depend on, besides the configuration.
pub struct Moment<'a> {
    /// The power mode.
    pub present: &'a Present,
    /// The only model that may serve.
    pub pinned: Option<&'a str>,
    /// What our worker has, and gives back when another model takes its place.
    pub own_bytes: u64,
    /// What serves, or is about to: it has its memory.
    pub current: Option<&'a Line>,
}

/// What the model follows.
pub struct Following {
    /// How patiently.
    pub config: PowerConfig,
    /// What there is to choose from.
    pub lineup: Box<dyn Lineup>,
    /// The power mode, as it changes.
    pub present: watch::Receiver<Present>,
    /// Heat and over-current, a reading a second.
    pub heat: watch::Receiver<HeatReading>,
    /// What the worker was started with; `None`: no model is here yet.
    pub first: Option<Line>,
    /// The model of the configuration: no mode changes it.
    pub pinned: Option<String>,
}

pub(super) struct Follow {
    parts: Following,
    selection: Selection,
    present: Present,
    ordered: Option<String>,
    /// Could not be loaded, and when.
    failed: Vec<(Line, Duration)>,
    is_hot: bool,
}

/// What was decided before a switch, to come back to when it fails.
#[derive(Debug, Clone)]
pub(super) struct Before {
    choice: Option<Choice>,
    ordered: Option<String>,
}

impl Follow {
    pub(super) fn new(mut parts: Following) -> Self {
        let mut selection = Selection::new(&parts.config);
        selection.correct(parts.first.clone().map(|line| Choice {
            n_seq: line.n_seq_max,
            line,
            n_steps_down: 0,
        }));
        let present = parts.present.borrow_and_update().clone();
        Self {
            present,
            selection,
            ordered: None,
            failed: Vec::new(),
            is_hot: false,
            parts,
        }
    }

    /// Waits for another power mode; for ever when nobody watches it.
    pub(super) async fn changed(&mut self) {
        if self.parts.present.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// The next change, if it is time for one. `own_bytes`: what the worker has taken.
    pub(super) fn step(&mut self, now: Duration, own_bytes: u64) -> Option<Change> {
        self.look_at_mode();
        let reading = self.reading();
        self.is_hot = reading.is_throttling
            || (reading.celsius).is_some_and(|c| c >= self.parts.config.celsius_high);
        let candidates = self.candidates(now, own_bytes);
        self.selection.step(now, &candidates, &reading)
    }

    /// An operator orders a model, or with `None` that the mode chooses again. The change that follows is
    /// made at once; none: nothing could serve, and everything stays as it is.
    pub(super) fn order(
        &mut self,
        model: Option<&str>,
        now: Duration,
        own_bytes: u64,
    ) -> Option<Change> {
        let before = self.before();
        self.ordered = model.map(str::to_owned);
        self.anew(before, now, own_bytes)
    }

    /// What would serve, at once, if this release were the one in service.
    pub(super) fn with(
        &mut self,
        release: &Release,
        now: Duration,
        own_bytes: u64,
    ) -> Option<Line> {
        self.parts.lineup.consider(Some(release));
        let best = self.candidates(now, own_bytes).into_iter().next();
        self.parts.lineup.consider(None);
        best
    }

    /// How a release is loaded.
    pub(super) fn load_release(&mut self, release: &Release, line: &Line) -> Option<LoadSpec> {
        self.parts.lineup.consider(Some(release));
        let load = self.parts.lineup.load(line);
        self.parts.lineup.consider(None);
        load
    }

    /// How a model is loaded that was not chosen to serve.
    pub(super) fn plain(&self, model: &str) -> Line {
        let plain = self.parts.lineup.plain(model);
        let current = self.selection.current();
        let n_seq_max = current.map_or(plain.n_seq_max, |choice| choice.line.n_seq_max);
        Line { n_seq_max, ..plain }
    }

    /// This is what serves from now on.
    pub(super) fn adopt(&mut self, line: Line) {
        let n_steps_down = self.n_steps_down();
        let allowed = self
            .selection
            .current()
            .map_or(u32::MAX, |choice| choice.n_seq);
        if let (Some(ordered), Some(current)) = (&mut self.ordered, self.selection.current())
            && *ordered == current.line.model
        {
            ordered.clone_from(&line.model);
        }
        let n_seq = match n_steps_down {
            0 => line.n_seq_max,
            _ => line.n_seq_max.min(allowed),
        };
        self.selection.correct(Some(Choice {
            line,
            n_seq,
            n_steps_down,
        }));
    }

    /// What should serve now is chosen anew, without patience.
    pub(super) fn renew(&mut self, now: Duration, own_bytes: u64) -> Option<Change> {
        let before = self.before();
        self.anew(before, now, own_bytes)
    }

    /// The next choice, as if none had been made or had failed; where it changes nothing, `before` holds.
    fn anew(&mut self, before: Before, now: Duration, own_bytes: u64) -> Option<Change> {
        self.failed.clear();
        self.selection.correct(None);
        let change = self.step(now, own_bytes);
        if change.is_none() {
            self.go_back(before);
        }
        change
    }

    /// Other settings, from the next look on.
    pub(super) fn tune(&mut self, power: PowerConfig, profiles: &BTreeMap<String, ProfileConfig>) {
        self.selection.tune(&power);
        self.parts.lineup.tune(&power, profiles);
        self.parts.config = power;
        self.failed.clear();
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.parts.lineup.knows(name)
    }

    pub(super) fn is_hot(&self) -> bool {
        self.is_hot
    }

    /// What is decided now.
    pub(super) fn before(&self) -> Before {
        Before {
            choice: self.selection.current().cloned(),
            ordered: self.ordered.clone(),
        }
    }

    /// What was decided could not be loaded: what was before it holds again.
    pub(super) fn failed(&mut self, before: Before, now: Duration) {
        let choice = self.selection.current().cloned();
        self.failed.extend(choice.map(|choice| (choice.line, now)));
        self.go_back(before);
    }

    fn go_back(&mut self, before: Before) {
        self.ordered = before.ordered;
        self.selection.correct(before.choice);
    }

    pub(super) fn load(&self, line: &Line) -> Option<LoadSpec> {
        self.parts.lineup.load(line)
    }

    /// The name of the mode that counts.
    pub(super) fn mode(&self) -> Option<&str> {
        mode_of(&self.present)
    }

    /// Why a change is made, for people.
    pub(super) fn reason(&self, change: &Change, n_steps_before: u32) -> String {
        let choice = change.choice();
        let mode = match self.mode() {
            Some(mode) => format!("power mode {mode}"),
            None => "no power mode".to_owned(),
        };
        match &choice.line.source {
            _ if choice.n_steps_down > n_steps_before => {
                format!("heat or over-current, step {} down", choice.n_steps_down)
            }
            _ if choice.n_steps_down < n_steps_before => {
                format!("cool again, {} steps down are left", choice.n_steps_down)
            }
            Source::Profile(profile) => format!("{mode}, profile {profile}"),
            Source::Measured(_) => format!("{mode}, by the measured table"),
            Source::Pinned if self.ordered.is_some() => "ordered".to_owned(),
            Source::Deployed => "deployed".to_owned(),
            Source::Pinned | Source::Fallback => mode,
        }
    }

    pub(super) fn n_steps_down(&self) -> u32 {
        (self.selection.current()).map_or(0, |choice| choice.n_steps_down)
    }

    /// As the node tells it.
    pub(super) fn report(&self) -> Option<Power> {
        let choice = self.selection.current()?;
        let (chosen_by, profile) = match &choice.line.source {
            Source::Pinned if self.ordered.is_some() => (ChosenBy::Operator, None),
            Source::Pinned => (ChosenBy::Configuration, None),
            Source::Profile(profile) => (ChosenBy::Profile, Some(profile.clone())),
            Source::Measured(_) => (ChosenBy::Measured, None),
            Source::Deployed => (ChosenBy::Fleet, None),
            Source::Fallback => (ChosenBy::Default, None),
        };
        Some(Power {
            mode: self.mode().map(str::to_owned),
            chosen_by,
            profile,
            n_seq: choice.n_seq,
            n_steps_down: choice.n_steps_down,
            hot: self.is_hot,
        })
    }

    fn look_at_mode(&mut self) {
        let present = self.parts.present.borrow_and_update();
        if *present == self.present {
            return;
        }
        let is_same = match (mode_of(&present), mode_of(&self.present)) {
            (None, None) => same_caps(&present.caps, &self.present.caps),
            (now, before) => now == before,
        };
        self.present = present.clone();
        if is_same {
            return;
        }
        self.failed.clear();
        if self.parts.pinned.is_none() {
            self.ordered = None;
        }
    }

    /// A reading counts its over-currents once: looked at again it would make a rate of nothing.
    fn reading(&mut self) -> HeatReading {
        match self.parts.heat.has_changed() {
            Ok(true) => *self.parts.heat.borrow_and_update(),
            _ => HeatReading {
                over_current: None,
                ..*self.parts.heat.borrow()
            },
        }
    }

    fn candidates(&mut self, now: Duration, own_bytes: u64) -> Vec<Line> {
        let current = self.selection.current().map(|choice| &choice.line);
        let mut lines = self.parts.lineup.candidates(&Moment {
            present: &self.present,
            pinned: (self.ordered.as_deref()).or(self.parts.pinned.as_deref()),
            own_bytes,
            current,
        });
        self.failed
            .retain(|(_, at)| now.saturating_sub(*at) < RETRY_AFTER);
        let has_failed = |line: &Line| {
            self.failed
                .iter()
                .any(|(failed, _)| failed.loads_like(line))
        };
        lines.retain(|line| !has_failed(line));
        // Nobody has a word to say about this mode: what serves is as good as anything.
        if let (Some(first), Some(current)) = (lines.first(), current)
            && first.source == Source::Fallback
            && let Some(place) = lines.iter().position(|line| line.model == current.model)
        {
            lines.remove(place);
            lines.insert(
                0,
                Line {
                    source: Source::Fallback,
                    ..current.clone()
                },
            );
        }
        lines
    }
}

fn mode_of(present: &Present) -> Option<&str> {
    present.effective_mode().map(|mode| mode.name.as_str())
}

fn same_caps(a: &Caps, b: &Caps) -> bool {
    a.differences(b).is_empty()
}

#[cfg(test)]
pub(super) mod tests;
