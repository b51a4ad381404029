//! Decides what serves: by the memory that is left, the power mode, heat, and by order of an operator.
//!
//! Owns: the level of the memory ladder, the model that is wanted, and what the worker is told to serve. Never
//! does: jobs, MQTT or processes; it sends orders to `worker`, tells `dispatch` what to refuse and to say, and
//! hears from `dispatch` what serves.
//!
//! ```text
//!  /proc/meminfo ──4 to 50 Hz──▶ ladder (pressure) ──▶ Trim, Pressure ──▶ dispatch ──▶ state, evt
//!                                                 └──▶ shrink, kill ─┐
//!  power mode, heat ──▶ selection (follow) ──▶ wanted ───────────────┼──Order──▶ worker
//!  operator ──Wish──────────▲             └──▶ Power (concurrency) ──│─────────▶ dispatch
//! ```
//!
//! Memory has the last word: while it is short, what the mode or an operator wants waits until it is back.

mod follow;
mod heat;
mod shrink;
mod switch;
mod trial;
mod turn;

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use crate::board::Root;
use crate::board::memory::MemoryProbe;
use crate::frames::LoadSpec;
use crate::pressure::{Change, Ladder, Level, Relief, SLOWEST, Thresholds};
use crate::wire::report::Power;
use crate::worker::trial::TrialEnd;
use crate::worker::{Order, Placing};
use follow::{Before, Follow};
pub use follow::{Following, Lineup, Moment};
pub use heat::watch_heat;
pub use shrink::{Candidate, Serving};
pub use trial::{Offer, Tuned, Update, Verdict};

/// How often power and heat are looked at; a change of the mode is looked at when it comes.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// Said of a step on a board that no model has come to yet.
const NOTHING_SERVES: &str = "no model was to serve";
/// An order to let the power mode choose, instead of a model's name.
pub const AUTO: &str = "auto";

/// From all memory that the board has, in bytes, to when something is done.
pub type FindThresholds = Box<dyn Fn(u64) -> Thresholds + Send + Sync>;

/// What the governor hears.
#[derive(Debug)]
pub enum Notice {
    /// A worker serves.
    Serving(Serving),
    /// None does, for whatever reason.
    NotServing,
    /// A model that was ordered cannot be served; the one before it is.
    SwitchFailed {
        /// The model.
        name: String,
        /// Why.
        reason: String,
    },
    /// Saved sequences take so many bytes now.
    Cached(u64),
    /// The embedding model takes so many bytes now; it is unloaded when memory is short and nobody uses it.
    Embedding(u64),
    /// Models at rest take so many bytes now; they are ended before anything else is done for memory.
    Resting(u64),
    /// The embedding model does not fit, and models rest.
    Crowded,
    /// Nobody has asked for long: the model may be unloaded.
    Idle,
    /// Somebody asks.
    Needed,
    /// Requests wait for this model, and it is its turn.
    Turn(String),
    /// An operator wants this model.
    Wish(Wish),
    /// A worker on trial is loaded, and shows that it works.
    Trying(String),
    /// A trial ended.
    Tried {
        /// The model.
        name: String,
        /// How.
        end: TrialEnd,
    },
}

/// An order of an operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The model's name, or [`AUTO`].
    pub model: String,
    /// Where the outcome is told, beside the event.
    pub ticket: Option<String>,
}

/// What the dispatcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// How short memory is.
    Pressure {
        /// Where the node is.
        level: Level,
        /// What was read last, if ever.
        available_bytes: Option<u64>,
        /// Whether that is too old to count.
        stale: bool,
    },
    /// Caches and saved sequences are to be dropped, and to stay so.
    Trim,
    /// They may grow again.
    Grow,
    /// A step, after it had time to work.
    Stepped {
        /// The step.
        change: Change,
        /// What was done.
        action: String,
        /// How far MemAvailable rose meanwhile.
        returned_bytes: Option<i64>,
        /// How long ago.
        ago: Duration,
    },
    /// An operator's order is being done.
    Switching(Wish),
    /// A switch ended.
    Switched {
        /// What was to be done.
        errand: Errand,
        /// Why it was not done.
        outcome: Result<(), String>,
    },
    /// A release is being loaded and looked at; requests may have to wait about so long. `None`: that is over.
    Trial(Option<Duration>),
    /// This model is wanted, for all requests that name none.
    Chosen(String),
    /// A model does not have its turn that was asked for.
    NoTurn {
        /// The model.
        model: String,
        /// Why, for people.
        why: String,
        /// It cannot be loaded: waiting is of no use.
        is_lasting: bool,
    },
    /// What the model follows, and how many requests may run side by side.
    Power(Power),
    /// Whether a smaller context or model serves for want of memory, until the one that is wanted does.
    SmallContext(bool),
}

/// Another model is to serve, or the same one in another way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Errand {
    /// The model.
    pub model: String,
    /// Why, for people.
    pub why: String,
    /// Who waits for it.
    pub wish: Option<Wish>,
}

/// What the governor works with.
pub struct Parts {
    /// To the worker's keeper.
    pub orders: mpsc::Sender<Order>,
    /// To the dispatcher.
    pub words: mpsc::Sender<Word>,
    /// From the dispatcher.
    pub notices: mpsc::Receiver<Notice>,
    /// From who owns the releases; none: there are no updates.
    pub updates: Option<mpsc::Receiver<Update>>,
}

/// What the governor goes by.
pub struct Settings {
    /// Where /proc/meminfo is read.
    pub root: Root,
    /// When to do what; `None`: memory is not watched.
    pub thresholds: Option<FindThresholds>,
    /// What the worker was started with; `None`: no model is here yet.
    pub first: Option<LoadSpec>,
    /// Reads which models there are.
    pub models: Box<dyn Fn() -> Vec<Candidate> + Send + Sync>,
    /// Power mode, heat, and what could serve by them.
    pub following: Following,
}

struct Governor {
    parts: Parts,
    probe: MemoryProbe,
    started: Instant,
    find_thresholds: Option<FindThresholds>,
    find_models: Box<dyn Fn() -> Vec<Candidate> + Send + Sync>,
    /// `None`: memory is not watched.
    ladder: Option<Ladder>,
    /// What the ladder goes by, once it is known how much memory there is.
    thresholds: Option<Thresholds>,
    /// As last read.
    available_bytes: Option<u64>,
    /// The last reading failed.
    is_blind: bool,
    was_stale: bool,
    /// What is to serve when memory allows; `None`: no model is here yet.
    wanted: Option<LoadSpec>,
    /// What has its turn instead, because requests name it.
    guest: Option<LoadSpec>,
    /// A turn that was asked for and has not begun.
    turning: Option<String>,
    /// What was last told of what is wanted.
    told_chosen: Option<String>,
    /// What is to serve now, below `shrink`.
    shrunk: Option<LoadSpec>,
    /// What the wanted one had taken when it served last.
    wanted_bytes: u64,
    /// About what the shrunk one takes.
    shrunk_bytes: u64,
    /// Something smaller than wanted serves, or is about to.
    is_small: bool,
    /// The model was unloaded since nobody asked.
    is_idle: bool,
    serving: Option<Serving>,
    /// What saved sequences take.
    cached_bytes: u64,
    /// What models at rest take.
    resting_bytes: u64,
    /// What the embedding model takes.
    embedding_bytes: u64,
    /// What there was when a worker last served, or an order last came.
    models: Vec<Candidate>,
    follow: Follow,
    /// What was last told of it.
    told_power: Option<Power>,
    /// A switch under way, and what was before it.
    errand: Option<(Errand, Option<LoadSpec>, Before)>,
    /// A release on its way into service.
    trial: Option<trial::UnderTrial>,
    /// A step whose effect is awaited.
    pending: Option<Pending>,
}

struct Pending {
    change: Change,
    action: String,
    at: Instant,
}

/// The part of the dispatcher has ended: so do we.
struct Closed;

/// Runs until the dispatcher ends.
pub async fn run(settings: Settings, parts: Parts) {
    let Settings {
        root,
        thresholds,
        first,
        models,
        following,
    } = settings;
    let governor = Governor {
        probe: MemoryProbe::new(&root),
        started: Instant::now(),
        // Without a size there is no threshold; that nothing can be read is judged all the same.
        ladder: thresholds
            .as_ref()
            .map(|thresholds| Ladder::new(thresholds(0), Duration::ZERO)),
        find_thresholds: thresholds,
        thresholds: None,
        available_bytes: None,
        is_blind: false,
        was_stale: false,
        told_chosen: first.as_ref().map(|first| first.name.clone()),
        wanted: first,
        guest: None,
        turning: None,
        shrunk: None,
        wanted_bytes: 0,
        shrunk_bytes: 0,
        is_small: false,
        is_idle: false,
        serving: None,
        cached_bytes: 0,
        resting_bytes: 0,
        embedding_bytes: 0,
        models: models(),
        find_models: models,
        follow: Follow::new(following),
        told_power: None,
        errand: None,
        trial: None,
        pending: None,
        parts,
    };
    let Err(Closed) = governor.watch().await;
}

impl Governor {
    async fn watch(mut self) -> Result<std::convert::Infallible, Closed> {
        let mut next = Instant::now();
        let mut looks = tokio::time::interval(FOLLOW_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next), if self.find_thresholds.is_some() => {
                    next = Instant::now() + self.read().await?;
                }
                _ = looks.tick() => self.look().await?,
                () = self.follow.changed() => self.look().await?,
                update = trial::next(&mut self.parts.updates) => self.update(update).await?,
                is_settled = trial::settled(&mut self.trial) => self.settle(is_settled).await?,
                notice = self.parts.notices.recv() => match notice {
                    Some(notice) => self.hear(notice).await?,
                    None => return Err(Closed),
                },
            }
            self.tell_chosen().await?;
        }
    }

    async fn say(&self, word: Word) -> Result<(), Closed> {
        self.parts.words.send(word).await.map_err(|_| Closed)
    }

    async fn order(&self, order: Order) -> Result<(), Closed> {
        self.parts.orders.send(order).await.map_err(|_| Closed)
    }

    /// One look at memory; says when to look again.
    async fn read(&mut self) -> Result<Duration, Closed> {
        let now = self.started.elapsed();
        let reading = self.probe.read();
        match &reading {
            Ok(_) => self.is_blind = false,
            Err(error) => {
                if !std::mem::replace(&mut self.is_blind, true) {
                    warn!(%error, "memory cannot be read");
                }
            }
        }
        let reading = reading.ok();
        let relief = self.relief(self.level());
        let (Some(ladder), Some(thresholds)) = (&mut self.ladder, &self.find_thresholds) else {
            return Ok(SLOWEST);
        };
        let is_first = self.thresholds.is_none() && reading.is_some();
        if let (None, Some(reading)) = (self.thresholds, &reading) {
            let thresholds = thresholds(reading.total_bytes);
            info!(?thresholds, "memory is watched");
            ladder.set_thresholds(thresholds);
            self.thresholds = Some(thresholds);
        }
        let available = reading.map(|reading| reading.available_bytes);
        if available.is_some() {
            self.available_bytes = available;
        }
        let change = ladder.step(available, &relief, now);
        let (level, stale) = (ladder.level(), ladder.is_stale(now));
        if change.is_some() || self.was_stale != stale || is_first {
            self.was_stale = stale;
            self.say(Word::Pressure {
                level,
                available_bytes: self.available_bytes,
                stale,
            })
            .await?;
        }
        if let Some(change) = change {
            self.told(true).await?;
            let action = self.act(&change).await?;
            info!(from = ?change.from, to = ?change.to, available_bytes = available, relief_bytes = change.relief_bytes, action, "memory watchdog");
            self.pending = Some(Pending {
                change,
                action,
                at: Instant::now(),
            });
        }
        self.told(false).await?;
        Ok(match (self.thresholds, self.available_bytes) {
            (Some(thresholds), Some(available)) => thresholds.next_reading(available),
            _ => SLOWEST,
        })
    }

    /// Tells of the last step when it had time to work, or at once when another follows.
    async fn told(&mut self, at_once: bool) -> Result<(), Closed> {
        let settle = self.thresholds.map_or(Duration::ZERO, |t| t.settle);
        let Some(pending) = self
            .pending
            .take_if(|pending| at_once || pending.at.elapsed() >= settle)
        else {
            return Ok(());
        };
        let before = pending.change.available_bytes;
        let returned_bytes = match (before, self.available_bytes) {
            (Some(before), Some(now)) => Some(now as i64 - before as i64),
            _ => None,
        };
        self.say(Word::Stepped {
            change: pending.change,
            action: pending.action,
            returned_bytes,
            ago: pending.at.elapsed(),
        })
        .await
    }

    /// Does what a step asks for; says what, in words.
    async fn act(&mut self, change: &Change) -> Result<String, Closed> {
        if change.to > change.from {
            return self.step_down(change).await;
        }
        Ok(match change.from {
            Level::Kill => {
                let Some(load) = self.shrunk.clone().or_else(|| self.wanted.clone()) else {
                    return Ok(NOTHING_SERVES.to_owned());
                };
                let said = format!("{} is loaded again with n_ctx {}", load.name, load.n_ctx);
                self.serve(load, self.straitened()).await?;
                said
            }
            Level::Shrink => {
                let Some(wanted) = self.wanted.clone() else {
                    return Ok(NOTHING_SERVES.to_owned());
                };
                self.end_turn("memory is back, and what is wanted comes")
                    .await?;
                let said = match self.shrunk.take() {
                    None => {
                        self.small(false).await?;
                        "nothing had been made smaller".to_owned()
                    }
                    Some(_) => format!("{} is loaded as configured", wanted.name),
                };
                if self.serves(&wanted) {
                    self.small(false).await?;
                }
                // Also what was decided meanwhile; what serves already is not loaded again.
                self.serve(wanted, Placing::Beside).await?;
                said
            }
            Level::Park => "new requests are taken again".to_owned(),
            Level::Trim | Level::Ok => {
                self.say(Word::Grow).await?;
                "caches may grow again".to_owned()
            }
        })
    }

    async fn step_down(&mut self, change: &Change) -> Result<String, Closed> {
        if change.from < Level::Trim {
            self.say(Word::Trim).await?;
            if std::mem::take(&mut self.resting_bytes) > 0 {
                self.order(Order::Dismiss).await?;
            }
        }
        let shrunk = match change.to {
            Level::Kill | Level::Shrink => {
                // Now, while it is known what serves.
                let shrunk = self.shrink();
                self.end_turn("memory is short").await?;
                shrunk
            }
            Level::Park | Level::Trim | Level::Ok => None,
        };
        Ok(match change.to {
            Level::Kill => {
                self.small(self.shrunk.is_some()).await?;
                self.serving = None;
                let why = "was ended to give its memory back".to_owned();
                self.order(Order::Rest { why }).await?;
                "the worker was ended; its streams wait".to_owned()
            }
            Level::Shrink => match shrunk {
                None => "nothing smaller can serve".to_owned(),
                Some(load) => {
                    let said = format!("{} is loaded with n_ctx {}", load.name, load.n_ctx);
                    self.small(true).await?;
                    self.serve(load, self.straitened()).await?;
                    said
                }
            },
            Level::Park => "new requests are refused, batch jobs wait".to_owned(),
            Level::Trim | Level::Ok => {
                "saved sequences are dropped, and models at rest ended".to_owned()
            }
        })
    }

    /// After the old one, and with less of a reserve: below `shrink` all of it is never there. What would not
    /// even leave the worker alone afterwards is not loaded.
    fn straitened(&self) -> Placing {
        let reserve = |t: Thresholds| t.kill_bytes.saturating_add(t.margin_bytes);
        Placing::Straitened {
            reserve_bytes: self.thresholds.map_or(u64::MAX, reserve),
        }
    }

    async fn small(&mut self, is_small: bool) -> Result<(), Closed> {
        if std::mem::replace(&mut self.is_small, is_small) == is_small {
            return Ok(());
        }
        self.say(Word::SmallContext(is_small)).await
    }

    /// Decides on something smaller than what serves, if there is such a thing.
    fn shrink(&mut self) -> Option<LoadSpec> {
        let serving = self.serving.as_ref()?;
        self.shrunk_bytes = serving.worker_bytes;
        let (load, bytes) = self.smaller()?;
        self.shrunk_bytes = self.shrunk_bytes.saturating_sub(bytes);
        self.shrunk = Some(load.clone());
        Some(load)
    }

    /// The next smaller thing than what serves, and what it gives back.
    fn smaller(&self) -> Option<(LoadSpec, u64)> {
        let serving = self.serving.as_ref()?;
        let guest = self
            .guest
            .as_ref()
            .filter(|guest| guest.name == serving.name);
        if let (Some(_), Some(wanted)) = (guest, &self.wanted) {
            let gives_bytes = serving.worker_bytes.saturating_sub(self.wanted_bytes);
            if self.wanted_bytes > 0 && shrink::is_worth(serving, gives_bytes) {
                return Some((wanted.clone(), gives_bytes));
            }
        }
        let now = self.shrunk.as_ref().or(guest).or(self.wanted.as_ref())?;
        shrink::smaller(serving, now, &self.models)
    }

    fn level(&self) -> Level {
        self.ladder.as_ref().map_or(Level::Ok, Ladder::level)
    }

    /// What each step would give back at this level, and what the next one up takes again.
    fn relief(&self, level: Level) -> Relief {
        let served_bytes = self.serving.as_ref().map_or(0, |now| now.worker_bytes);
        Relief {
            trim_bytes: (self.cached_bytes.saturating_add(self.embedding_bytes))
                .saturating_add(self.resting_bytes),
            // What runs lives inside the KV pool, which is taken when the model is loaded.
            park_bytes: 0,
            shrink_bytes: self.smaller().map_or(0, |(_, bytes)| bytes),
            kill_bytes: served_bytes,
            regrowth_bytes: match level {
                Level::Kill if self.shrunk.is_some() => self.shrunk_bytes,
                Level::Kill => self.wanted_bytes,
                Level::Shrink if self.shrunk.is_some() => {
                    self.wanted_bytes.saturating_sub(served_bytes)
                }
                _ => 0,
            },
        }
    }

    async fn serve(&self, load: LoadSpec, placing: Placing) -> Result<(), Closed> {
        info!(
            model = load.name,
            n_ctx = load.n_ctx,
            ?placing,
            "model ordered"
        );
        let load = Box::new(load);
        self.order(Order::Serve { load, placing }).await
    }

    async fn hear(&mut self, notice: Notice) -> Result<(), Closed> {
        match notice {
            Notice::Serving(serving) => {
                self.cached_bytes = 0;
                self.is_idle = false;
                let done = (self.errand).take_if(|(errand, ..)| errand.model == serving.name);
                let is_wanted = |load: &LoadSpec| load.name == serving.name;
                if self.shrunk.is_none() && self.wanted.as_ref().is_some_and(is_wanted) {
                    self.wanted_bytes = serving.worker_bytes;
                }
                let name = serving.name.clone();
                self.serving = Some(serving);
                self.turned(&name).await?;
                self.models = (self.find_models)();
                let is_served = self.wanted.as_ref().is_some_and(|load| self.serves(load));
                if self.shrunk.is_none() && is_served {
                    self.small(false).await?;
                }
                match done {
                    Some((errand, ..)) => self.switched(errand, Ok(())).await,
                    None => Ok(()),
                }
            }
            Notice::Cached(bytes) => {
                self.cached_bytes = bytes;
                Ok(())
            }
            Notice::Resting(bytes) => {
                self.resting_bytes = bytes;
                Ok(())
            }
            Notice::Crowded => self.order(Order::Dismiss).await,
            Notice::Embedding(bytes) => {
                self.embedding_bytes = bytes;
                Ok(())
            }
            Notice::NotServing => {
                self.serving = None;
                self.cached_bytes = 0;
                Ok(())
            }
            Notice::SwitchFailed { name, reason } => {
                if self.shrunk.is_none() {
                    // What is wanted will not come; what serves has to do.
                    self.small(false).await?;
                }
                self.turn_failed(&name, &reason).await?;
                let failed = self.errand.take_if(|(errand, ..)| errand.model == name);
                let Some((errand, wanted, before)) = failed else {
                    return Ok(());
                };
                self.wanted = wanted;
                self.follow.failed(before, self.started.elapsed());
                self.tell_power().await?;
                self.switched(errand, Err(reason)).await
            }
            Notice::Idle => self.unload().await,
            Notice::Needed => self.wake().await,
            Notice::Turn(model) => self.turn(model).await,
            Notice::Wish(wish) => self.wished(wish).await,
            Notice::Trying(name) => {
                self.trying(&name);
                Ok(())
            }
            Notice::Tried { name, end } => self.tried(&name, end).await,
        }
    }

    /// Ends the worker that nobody asks, unless something is being done with it.
    async fn unload(&mut self) -> Result<(), Closed> {
        let is_free = self.errand.is_none() && self.trial.is_none();
        if self.serving.is_none() || !is_free || self.level() >= Level::Shrink {
            return Ok(());
        }
        self.end_turn("nobody asks").await?;
        self.serving = None;
        self.is_idle = true;
        self.order(Order::Unload).await
    }

    /// Has what is wanted served again. What else was ordered meanwhile serves already, or comes.
    async fn wake(&mut self) -> Result<(), Closed> {
        if !std::mem::take(&mut self.is_idle) || self.level() == Level::Kill {
            return Ok(()); // The ladder loads it when there is memory.
        }
        let load = self.shrunk.clone().or_else(|| self.wanted.clone());
        match load {
            Some(load) => self.serve(load, Placing::Beside).await,
            None => Ok(()),
        }
    }

    /// Whether that is what serves; a pool of any size is as good as another.
    fn serves(&self, load: &LoadSpec) -> bool {
        let is_it = |serving: &Serving| {
            serving.name == load.name && (load.n_ctx == 0 || load.n_ctx == serving.n_ctx)
        };
        self.serving.as_ref().is_some_and(is_it)
    }

    /// What our workers have that another model could have.
    fn own_bytes(&self) -> u64 {
        let serving = self.serving.as_ref();
        let served_bytes = serving.map_or(0, |serving| serving.worker_bytes);
        served_bytes.saturating_add(self.resting_bytes)
    }
}

#[cfg(test)]
mod tests;
