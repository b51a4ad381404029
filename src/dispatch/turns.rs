//! Several models in turn: which one each job waits for, whose turn it is, and what is said of it.
//!
//! Owns: which model is chosen and which came only because requests name it (a *guest*), since when one serves,
//! how long loads took, and which model could not be loaded lately. A job that names a model in turn is bound to
//! it; one that names none is for the model that is chosen, or for what serves in its place. Whose turn it is the
//! pure [`policy`] says; whether it may be done now is the governor's to decide: memory, updates, orders and heat
//! come first. Without `model.in_turn` nothing here does anything.

pub mod policy;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Dispatch;
use super::eta::Places;
use super::job::{Ending, Job, Phase};
use super::settings::Settings;
use crate::config::InTurn;
use crate::governor::Notice;
use crate::models::{Releases, release};
use crate::store;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::Loading;
use crate::wire::request::{Priority, Request};
use policy::{Claim, Holder, Rules, Step, Stint};

/// How soon a turn that was not given is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A model that could not be loaded is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(300);
/// A question in passing has its model loaded if it can be within this time.
const WISH_LASTS: Duration = Duration::from_secs(30);

/// The part of the configuration.
#[derive(Debug, Clone)]
pub struct TurnSettings {
    /// Who is loaded because requests name it.
    pub in_turn: InTurn,
    /// So long a model keeps its turn while it has work.
    pub turn: Duration,
}

/// Whose turn it is.
pub(super) struct Turns {
    started: Instant,
    /// The model that is chosen, by whoever chooses.
    home: Option<String>,
    /// The models that were asked for because requests name them.
    guests: BTreeSet<String>,
    /// The model that has its turn, and since when it serves.
    holder: Option<(String, Option<Instant>)>,
    /// The one that was asked for, and when.
    coming: Option<(String, Instant)>,
    /// Those that stay loaded and do not serve.
    pub(super) resting: Vec<String>,
    /// When the turn of each ended.
    left: BTreeMap<String, Instant>,
    /// What it took to have each serve.
    loads: BTreeMap<String, Duration>,
    /// What could not be loaded, why, and when.
    given_up: BTreeMap<String, (String, Instant)>,
    /// Questions in passing: they were told to come again.
    wishes: BTreeMap<String, Instant>,
    ask_at: Option<Instant>,
    /// Why the turn is not given that somebody waits for.
    pub(super) why_not: Option<String>,
    /// Turns of another model than before.
    pub(super) n_turns: u64,
}

/// What waits for a model, and what runs in it.
#[derive(Debug, Default)]
struct Demand {
    class: Option<Priority>,
    /// When the first of those that wait came.
    oldest: Option<Instant>,
    /// How long each takes; `None`: nothing is known.
    work: Option<Vec<Duration>>,
}

/// Which jobs the serving model is for.
pub(super) struct Gate {
    model: Option<String>,
    takes_unbound: bool,
    releases: Releases,
}

impl Gate {
    pub(super) fn lets(&self, job: &Job) -> bool {
        match &job.model {
            None => self.takes_unbound,
            Some(bound) => Some(release::resolve(&self.releases, bound)) == self.model.as_deref(),
        }
    }
}

impl Turns {
    pub(super) fn new(home: Option<String>) -> Self {
        Self {
            started: Instant::now(),
            holder: home.clone().map(|home| (home, None)),
            home,
            guests: BTreeSet::new(),
            coming: None,
            resting: Vec::new(),
            left: BTreeMap::new(),
            loads: BTreeMap::new(),
            given_up: BTreeMap::new(),
            wishes: BTreeMap::new(),
            ask_at: None,
            why_not: None,
            n_turns: 0,
        }
    }

    /// A worker serves.
    fn serves(&mut self, model: &str, load: Duration, now: Instant) {
        let asked = self.coming.take().filter(|(coming, _)| coming == model);
        let took = asked.map_or(load, |(_, at)| now - at);
        // One that rested tells nothing of a load.
        if !self.resting.iter().any(|resting| resting == model) {
            self.loads.insert(model.to_owned(), took);
        }
        self.given_up.remove(model);
        self.wishes.remove(model);
        self.why_not = None;
        match &mut self.holder {
            Some((held, since)) if held == model => *since = Some(now),
            holder => {
                let before = holder.replace((model.to_owned(), Some(now)));
                if let Some((before, Some(_))) = before {
                    self.left.insert(before, now);
                    self.n_turns += 1;
                }
            }
        }
    }

    /// What it takes to have this model serve; by the others where it never did.
    fn load_of(&self, model: &str) -> Duration {
        if self.resting.iter().any(|resting| resting == model) {
            return Duration::ZERO;
        }
        let known = self.loads.get(model).copied();
        known.unwrap_or_else(|| {
            let n = u32::try_from(self.loads.len().max(1)).unwrap_or(1);
            self.loads.values().sum::<Duration>() / n
        })
    }

    fn is_guest(&self, model: &str) -> bool {
        self.guests.contains(model) && self.home.as_deref() != Some(model)
    }

    fn at(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }
}

impl Settings {
    /// Whether any model is loaded in turn.
    pub(super) fn has_turns(&self) -> bool {
        self.turns.in_turn != InTurn::Nobody
    }

    /// What a model is called by the jobs that are bound to it: a line of releases has one model after the other.
    fn bound_as<'a>(&self, releases: &'a Releases, name: &'a str) -> &'a str {
        let release = releases.iter().find(|release| release.name == name);
        release.map_or(name, |release| release.line.as_str())
    }

    /// Whether a file or release of this name is here that answers prompts.
    fn is_here(&self, name: &str) -> bool {
        let files = self.models.iter();
        let mut files = files.filter(|model| model.embeds != Some(true));
        let releases = self.releases.borrow();
        let mut releases = releases.iter();
        files.any(|model| model.name == name)
            || releases.any(|release| release.name == name || release.line == name)
    }

    /// Whether requests that name it have it loaded.
    pub(super) fn is_in_turn(&self, name: &str) -> bool {
        let has = |name: &str| self.turns.in_turn.has(name);
        let releases = self.releases.borrow();
        let present = releases.iter().find(|r| r.name == name || r.line == name);
        let is_named = has(name) || present.is_some_and(|r| has(&r.name) || has(&r.line));
        is_named && self.is_here(name)
    }
}

impl Dispatch {
    /// The model that a request is bound to; `None`: it named none, or the one that is chosen and is not in turn.
    pub(super) fn bound(&self, request: &Request) -> Option<String> {
        let meant = self.settings.meant(request.model.as_deref()?);
        let releases = self.settings.releases.borrow();
        let bound = self.settings.bound_as(&releases, meant);
        self.settings.is_in_turn(bound).then(|| bound.to_owned())
    }

    /// Whether a request may name this model.
    ///
    /// # Errors
    /// Why not, and what could be done.
    pub(super) fn may_name(&self, name: &str) -> Result<(), ApiError> {
        let meant = self.settings.meant(name);
        let releases = self.settings.releases.borrow().clone();
        let is_home = |home: &String| *home == meant || *home == release::resolve(&releases, meant);
        // What there will be is not known before there was a model.
        if !self.node.had_model()
            || self.node.has_model(meant, &releases)
            || self.turns.home.as_ref().is_some_and(is_home)
        {
            return Ok(());
        }
        let not_found = |text| ApiError::new(Code::ModelNotFound, text).with_param("model");
        if self.settings.is_in_turn(meant) {
            let model = release::resolve(&releases, meant);
            return match self.turns.given_up.get(model) {
                None => Ok(()),
                Some((why, at)) => {
                    let again = TRY_AGAIN.saturating_sub(at.elapsed());
                    Err(cannot_load(model, why, again))
                }
            };
        }
        let serving = self.home_or_serving();
        let here = if name != meant {
            format!("`{name}` is `{meant}` here, which is not in service")
        } else if self.settings.is_here(meant) {
            format!("`{name}` is here, and not in service")
        } else {
            return Err(not_found(format!(
                "no model `{name}` here: this node serves `{serving}`"
            )));
        };
        Err(not_found(format!(
            "{here}: this node serves `{serving}`; model.in_turn in its configuration can have it loaded for those who ask"
        )))
    }

    /// What a stored job is bound to now.
    ///
    /// # Errors
    /// Its model is not loaded in turn any more.
    pub(super) fn still_bound(&self, record: &store::Record) -> Result<Option<String>, ApiError> {
        let Some(model) = &record.model else {
            return Ok(None);
        };
        if self.settings.is_in_turn(model) {
            return Ok(Some(model.clone()));
        }
        // Chosen now, it serves without a turn; and where nothing is known yet, what comes will do.
        self.may_name(model).map(|()| None)
    }

    /// Why a question about the tokens of a model cannot be answered now, where another serves.
    pub(super) fn other_serves(&mut self, bound: Option<&str>) -> Option<ApiError> {
        let (_, serving) = self.node.serving()?;
        let model = self.model_for(bound);
        if model == serving {
            return None;
        }
        let text = format!("`{serving}` has its turn: ask again when `{model}` serves");
        self.wish_for(model);
        Some(ApiError::new(Code::ModelLoading, text).with_retry(1000))
    }

    /// What a job without a model of its own is answered by.
    pub(super) fn home_or_serving(&self) -> &str {
        let serving = self.node.model();
        match &self.turns.home {
            Some(home) if self.turns.is_guest(serving) && !self.small_context => home,
            _ => serving,
        }
    }

    /// What a job is answered by, as things are.
    pub(super) fn model_for(&self, bound: Option<&str>) -> String {
        match bound {
            Some(bound) => release::resolve(&self.settings.releases.borrow(), bound).to_owned(),
            None => self.home_or_serving().to_owned(),
        }
    }

    /// Which jobs the model is for that serves now.
    pub(super) fn gate(&self) -> Gate {
        let model = self.node.serving().map(|(_, model)| model);
        Gate {
            takes_unbound: self.small_context
                || model
                    .as_ref()
                    .is_none_or(|model| !self.turns.is_guest(model)),
            model,
            releases: self.settings.releases.borrow().clone(),
        }
    }

    /// Another model is chosen from now on.
    pub(super) fn on_chosen(&mut self, model: String) {
        self.turns.home = Some(model);
    }

    /// A worker serves, after a load of this time.
    pub(super) fn on_turn(&mut self, model: &str, load: Duration) {
        let n_before = self.turns.n_turns;
        self.turns.serves(model, load, Instant::now());
        self.node.state_changed();
        if self.turns.n_turns > n_before && self.settings.has_turns() {
            info!(model, "it has its turn");
        }
    }

    /// The turn is not given. `is_lasting`: the model cannot be loaded, and who waits for it waits in vain.
    pub(super) fn on_no_turn(&mut self, model: &str, why: String, is_lasting: bool) {
        self.turns.coming = None;
        self.turns.ask_at = Some(Instant::now() + ASK_AGAIN);
        if is_lasting {
            self.give_up(model, &why);
        }
        if self.turns.why_not.as_ref() != Some(&why) {
            info!(model, why, "not its turn now");
            self.turns.why_not = Some(why);
            self.node.state_changed();
        }
    }

    fn give_up(&mut self, model: &str, why: &str) {
        warn!(model, why, "it cannot have its turn");
        let given_up = (why.to_owned(), Instant::now());
        self.turns.given_up.insert(model.to_owned(), given_up);
        self.turns.wishes.remove(model);
        if self.turns.home.as_deref() == Some(model) {
            // What serves has to do for those who named none.
            self.turns.guests.clear();
        }
        let releases = self.settings.releases.borrow().clone();
        let is_its = |job: &&Job| {
            let bound = job.model.as_deref();
            bound.is_some_and(|bound| release::resolve(&releases, bound) == model)
        };
        let its = self.jobs.values().filter(is_its);
        let waiting = Vec::from_iter(its.filter(|job| job.phase == Phase::Open).map(|j| j.key));
        for key in waiting {
            let error = cannot_load(model, why, TRY_AGAIN);
            self.stop(key, Ending::Failed(error));
        }
    }

    /// No model can be served: if that is a guest's doing, the one that is chosen comes back.
    pub(super) fn leave_hopeless_guest(&mut self) {
        let Some(no_model) = self.node.no_model() else {
            return;
        };
        let why = no_model.reason.clone();
        let coming = self.turns.coming.as_ref().map(|(coming, _)| coming);
        let held = self.turns.holder.as_ref().map(|(held, _)| held);
        let Some(guest) = coming.or(held).filter(|model| self.turns.is_guest(model)) else {
            return;
        };
        let guest = guest.clone();
        self.give_up(&guest, &why);
        if let Some(home) = self.turns.home.clone() {
            self.turns.holder = None;
            self.ask_turn(home, Instant::now());
        }
    }

    /// These stay loaded and do not serve.
    pub(super) fn on_resting(&mut self, models: Vec<String>, bytes: u64) {
        if models == self.turns.resting {
            return;
        }
        self.turns.resting = models;
        self.node.set_resting_bytes(bytes);
        self.notice(Notice::Resting(bytes));
    }

    /// The worker is gone because nobody asked: nobody holds the turn.
    pub(super) fn turn_is_free(&mut self) {
        self.turns.holder = None;
    }

    /// Somebody asks in passing about a model that does not serve.
    pub(super) fn wish_for(&mut self, model: String) {
        if self.settings.has_turns() {
            self.turns.wishes.insert(model, Instant::now());
        }
    }

    /// About how long the streams wait that leave with their model; `None`: it leaves for another reason.
    pub(super) fn turn_away(&self) -> Option<Duration> {
        let (coming, _) = self.turns.coming.as_ref()?;
        let back = self.turns.holder.as_ref()?;
        let both = self.turns.load_of(coming) + self.turns.load_of(&back.0);
        Some(self.settings.turns.turn + both)
    }

    /// Asks for the turn of whose it is; says when to look again.
    pub(super) fn take_turns(&mut self, now: Instant) -> Option<Instant> {
        if !self.settings.has_turns() || self.draining.is_some() {
            return None;
        }
        let turns = &mut self.turns;
        turns.given_up.retain(|_, (_, at)| now - *at < TRY_AGAIN);
        turns.wishes.retain(|_, at| now - *at < WISH_LASTS);
        if turns.coming.is_some() {
            return None;
        }
        if turns.holder.is_none()
            && self.node.no_model().is_some()
            && let Some(home) = turns.home.clone()
        {
            // A guest left the board without a model: who asks is refused until the one that is chosen is back.
            return match turns.ask_at.filter(|at| *at > now) {
                None => {
                    self.ask_turn(home, now);
                    None
                }
                at => at,
            };
        }
        let rules = self.rules();
        let (holder, claims) = self.claims();
        let claims_of = Vec::from_iter(claims.iter().map(|(_, claim, _)| *claim));
        let holder = holder.as_ref().map(|(holder, _)| holder);
        match policy::step(&rules, holder, &claims_of, self.turns.at(now)) {
            Step::Stay(at) => {
                if claims.is_empty() && self.turns.why_not.take().is_some() {
                    self.node.state_changed();
                }
                at.map(|at| self.turns.started + at)
            }
            Step::Turn(index) => match self.turns.ask_at.filter(|at| *at > now) {
                Some(at) => Some(at),
                None => {
                    let (model, ..) = claims.into_iter().nth(index)?;
                    self.ask_turn(model, now);
                    None
                }
            },
        }
    }

    fn ask_turn(&mut self, model: String, now: Instant) {
        info!(model, "its turn is asked for");
        if self.turns.home.as_ref() != Some(&model) {
            self.turns.guests.insert(model.clone());
        }
        self.turns.ask_at = None;
        self.turns.coming = Some((model.clone(), now));
        self.notice(Notice::Turn(model));
    }

    fn rules(&self) -> Rules {
        Rules {
            turn: self.settings.turns.turn,
        }
    }

    /// Who has the turn, and who waits for one.
    #[allow(clippy::type_complexity, reason = "named where they are taken apart")]
    fn claims(&self) -> (Option<(Holder, Stint)>, Vec<(String, Claim, Stint)>) {
        let mut demands = self.demands();
        for (model, at) in &self.turns.wishes {
            let demand = demands.entry(model.clone()).or_default();
            demand.class = demand.class.max(Some(Priority::Normal));
            demand.oldest = Some(demand.oldest.map_or(*at, |oldest| oldest.min(*at)));
        }
        let holder = self.turns.holder.as_ref().map(|(model, since)| {
            let demand = demands.remove(model).unwrap_or_default();
            let holder = Holder {
                since: since.map(|since| self.turns.at(since)),
                class: demand.class,
            };
            (holder, self.stint(model, &demand))
        });
        let claim = |(model, demand): (String, Demand)| {
            let came = demand.oldest?;
            let left = self.turns.left.get(&model).copied();
            let claim = Claim {
                class: demand.class?,
                since: self.turns.at(left.map_or(came, |left| left.max(came))),
            };
            let stint = self.stint(&model, &demand);
            (!self.turns.given_up.contains_key(&model)).then_some((model, claim, stint))
        };
        (holder, demands.into_iter().filter_map(claim).collect())
    }

    fn stint(&self, model: &str, demand: &Demand) -> Stint {
        let work = demand.work.as_ref().and_then(|work| {
            let mut places = Places::new(self.node.slots_soon()?, []);
            let ends = work.iter().map(|takes| places.take(*takes));
            ends.max()?
        });
        Stint {
            load: self.turns.load_of(model),
            work,
        }
    }

    /// What each model has to do.
    fn demands(&self) -> BTreeMap<String, Demand> {
        let mut demands = BTreeMap::<_, Demand>::new();
        let straits = self.straits();
        for job in self.jobs.values().filter(|job| job.phase == Phase::Open) {
            let waits = self.queue.is_waiting(job.key);
            let cannot = waits && (job.waits_for_turn() || straits.must_wait(job));
            if cannot || !waits && !self.queue.is_running(job.key) {
                continue;
            }
            let model = self.model_for(job.model.as_deref());
            let takes = self.rates.of(&model).takes(&job.work());
            let demand = demands.entry(model).or_default();
            if demand.class.is_none() {
                demand.work = Some(Vec::new());
            }
            demand.class = demand.class.max(Some(job.priority()));
            if waits {
                let came = job.arrived;
                demand.oldest = Some(demand.oldest.map_or(came, |oldest| oldest.min(came)));
            }
            match takes {
                Some(takes) => demand.work.iter_mut().for_each(|work| work.push(takes)),
                None => demand.work = None,
            }
        }
        demands
    }

    /// About how long until the model serves that such a job waits for; `None`: it does already, or turns are not
    /// taken. Inside: `None` where that is not known.
    pub(super) fn loading(&self, bound: Option<&str>, class: Priority) -> Option<Loading> {
        if !self.settings.has_turns() {
            return None;
        }
        let model = self.model_for(bound);
        if self
            .node
            .serving()
            .is_some_and(|(_, serving)| serving == model)
        {
            return None;
        }
        let now = Instant::now();
        let eta = match &self.turns.coming {
            Some((coming, at)) if *coming == model => {
                Some(self.turns.load_of(&model).saturating_sub(now - *at))
            }
            _ => self.serves_in(&model, class, now),
        };
        Some(Loading {
            eta_ms: eta.map(|eta| eta.as_millis() as u64),
        })
    }

    fn serves_in(&self, model: &str, class: Priority, now: Instant) -> Option<Duration> {
        if self.turns.loads.is_empty() {
            return None;
        }
        if let Some((held, None)) = &self.turns.holder
            && held == model
        {
            return Some(self.turns.load_of(model));
        }
        let (holder, mut claims) = self.claims();
        let index = match claims.iter().position(|(of, ..)| of == model) {
            Some(index) => index,
            None => {
                let claim = Claim {
                    class,
                    since: self.turns.at(now),
                };
                let stint = self.stint(model, &Demand::default());
                claims.push((model.to_owned(), claim, stint));
                claims.len() - 1
            }
        };
        claims[index].1.class = claims[index].1.class.max(class);
        let claims_of = Vec::from_iter(claims.iter().map(|(_, claim, _)| *claim));
        let stints = Vec::from_iter(claims.iter().map(|(.., stint)| *stint));
        let holder = holder.as_ref().map(|(holder, stint)| (holder, *stint));
        let now = self.turns.at(now);
        policy::serves_in(&self.rules(), holder, &claims_of, &stints, index, now)
    }
}

fn cannot_load(model: &str, why: &str, again: Duration) -> ApiError {
    let text = format!("`{model}` could not be loaded: {why}");
    let again_ms = again.as_millis() as u64;
    ApiError::new(Code::NoModel, text).with_retry(again_ms.max(1000))
}
