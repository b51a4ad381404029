//! A release on its way into service: whether it would serve, its trial, and the moment in which it takes over.
//!
//! ```text
//! updates ──Offer──▶ would it serve now? ──Try──▶ worker ──Tried──▶ dispatch ──▶ here ──Verdict──▶ updates
//!                                                                                   ◀──settled──┘
//! ```
//!
//! A release that passed serves already while its owner writes down that it is the active one. Until that is
//! told, nothing else is chosen; where it could not be written, what served before is put back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::follow::Before;
use super::{Closed, Errand, FindThresholds, Governor, Word};
use crate::config::{PowerConfig, ProfileConfig};
use crate::frames::LoadSpec;
use crate::models::Release;
use crate::pressure::Level;
use crate::selection::Line;
use crate::worker::trial::{Then, Trial, TrialEnd};
use crate::worker::{Order, Placing};

/// What the owner of the releases says.
pub enum Update {
    /// A release is to be tried, and to serve if it is its turn.
    Offer(Box<Offer>),
    /// Which releases are in service has changed without a trial: what should serve is chosen anew, at once.
    Changed,
    /// Other settings, from the next look on.
    Tuned(Box<Tuned>),
}

/// Settings that change while the governor runs.
pub struct Tuned {
    /// How patiently the power mode and heat are followed.
    pub power: PowerConfig,
    /// What serves in which power mode.
    pub profiles: BTreeMap<String, ProfileConfig>,
    /// When memory is short; nothing changes where memory is not watched.
    pub thresholds: FindThresholds,
}

/// A release to be tried.
pub struct Offer {
    /// The release.
    pub release: Release,
    /// What it has to show.
    pub trial: Trial,
    /// About how long that takes.
    pub takes: Duration,
    /// Judging speed means nothing on a hot board.
    pub needs_cool: bool,
    /// Told when it is loaded and shows that it works.
    pub trying: oneshot::Sender<()>,
    /// Told how it went.
    pub verdict: oneshot::Sender<Verdict>,
    /// Waited for after a pass: whether it is now written down as the active one.
    pub settled: oneshot::Receiver<bool>,
}

/// How it went.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing was tried, or nothing came out of it, for a reason that passes.
    NotNow(String),
    /// It was tried.
    Tried {
        /// How it ended.
        end: TrialEnd,
        /// It serves now.
        serves: bool,
    },
}

pub(super) struct UnderTrial {
    load: LoadSpec,
    line: Option<Line>,
    release: Release,
    trying: Option<oneshot::Sender<()>>,
    verdict: Option<oneshot::Sender<Verdict>>,
    settled: oneshot::Receiver<bool>,
    /// What served before, while it is not settled.
    before: Option<(Option<LoadSpec>, Before)>,
}

/// The next word of the releases' owner; never, where there is none.
pub(super) async fn next(updates: &mut Option<mpsc::Receiver<Update>>) -> Update {
    if let Some(queue) = updates {
        if let Some(update) = queue.recv().await {
            return update;
        }
        *updates = None;
    }
    std::future::pending().await
}

/// Whether what passed its trial was written down; never, while nothing waits for it.
pub(super) async fn settled(trial: &mut Option<UnderTrial>) -> bool {
    match trial {
        // An owner that has ended wrote nothing down.
        Some(trial) if trial.verdict.is_none() => (&mut trial.settled).await.unwrap_or(false),
        _ => std::future::pending().await,
    }
}

impl Governor {
    pub(super) async fn update(&mut self, update: Update) -> Result<(), Closed> {
        match update {
            Update::Offer(offer) => self.offered(*offer).await,
            Update::Changed => self.renew().await,
            Update::Tuned(tuned) => self.tune(*tuned).await,
        }
    }

    async fn tune(&mut self, tuned: Tuned) -> Result<(), Closed> {
        info!(
            profiles = tuned.profiles.len(),
            "other settings are in force"
        );
        self.follow.tune(tuned.power, &tuned.profiles);
        if self.find_thresholds.is_some() {
            self.find_thresholds = Some(tuned.thresholds);
            // Found anew at the next reading, which knows how much memory there is.
            self.thresholds = None;
        }
        self.look().await
    }

    async fn offered(&mut self, offer: Offer) -> Result<(), Closed> {
        if let Err(why) = self.may_try(&offer) {
            // Who asked may have gone.
            let _ = offer.verdict.send(Verdict::NotNow(why));
            return Ok(());
        }
        let (now, own_bytes) = (self.started.elapsed(), self.own_bytes());
        let best = self.follow.with(&offer.release, now, own_bytes);
        let line = best.filter(|line| line.model == offer.release.name);
        let serves = line.is_some();
        let tried = line.clone();
        let tried = tried.unwrap_or_else(|| self.follow.plain(&offer.release.name));
        let Some(load) = self.follow.load_release(&offer.release, &tried) else {
            let why = "its file is not on this node any more".to_owned();
            let _ = offer.verdict.send(Verdict::NotNow(why));
            return Ok(());
        };
        info!(
            model = load.name,
            line = offer.release.line,
            release_seq = offer.release.release_seq,
            serves,
            "release is tried"
        );
        let trial = Trial {
            then: match serves {
                true => Then::Serve,
                false => Then::Return,
            },
            ..offer.trial
        };
        self.trial = Some(UnderTrial {
            load: load.clone(),
            line,
            release: offer.release,
            trying: Some(offer.trying),
            verdict: Some(offer.verdict),
            settled: offer.settled,
            before: None,
        });
        self.say(Word::Trial(Some(offer.takes))).await?;
        self.order(Order::Try {
            load: Box::new(load),
            trial: trial.into(),
            placing: Placing::Beside,
        })
        .await
    }

    fn may_try(&self, offer: &Offer) -> Result<(), String> {
        if self.trial.is_some() {
            return Err("another release is being tried".into());
        }
        if self.errand.is_some() {
            return Err("another model is being loaded".into());
        }
        if self.level() >= Level::Park {
            return Err("memory is short".into());
        }
        if offer.needs_cool && self.follow.is_hot() {
            return Err("the board is hot, so its speed says nothing".into());
        }
        Ok(())
    }

    /// The worker on trial is loaded.
    pub(super) fn trying(&mut self, name: &str) {
        let trial = self.trial.as_mut().filter(|trial| trial.load.name == name);
        if let Some(trying) = trial.and_then(|trial| trial.trying.take()) {
            let _ = trying.send(());
        }
    }

    pub(super) async fn tried(&mut self, name: &str, end: TrialEnd) -> Result<(), Closed> {
        let trial = self.trial.as_mut().filter(|trial| trial.load.name == name);
        let Some(verdict) = trial.and_then(|trial| trial.verdict.take()) else {
            return Ok(());
        };
        let is_called_off = matches!(&end, TrialEnd::Ended(cause) if cause.on_purpose());
        let has_passed = matches!(end, TrialEnd::Passed(_));
        let trial = self.trial.as_mut().expect("it has just been looked at");
        let serves = has_passed && trial.line.is_some();
        if let (true, Some(line)) = (serves, trial.line.clone()) {
            self.guest = None;
            let before = self.follow.before();
            let why = format!(
                "release {} of {} was deployed",
                trial.release.release_seq, trial.release.line
            );
            trial.before = Some((self.wanted.clone(), before.clone()));
            let errand = Errand {
                model: line.model.clone(),
                why,
                wish: None,
            };
            self.errand = Some((errand, self.wanted.clone(), before));
            self.wanted = Some(trial.load.clone());
            self.follow.adopt(line);
        }
        let told = match is_called_off {
            true => Verdict::NotNow("something else had to be loaded".into()),
            false => Verdict::Tried { end, serves },
        };
        let is_heard = verdict.send(told).is_ok();
        if !has_passed {
            self.trial = None;
        }
        self.say(Word::Trial(None)).await?;
        if has_passed && !is_heard {
            return self.settle(false).await;
        }
        Ok(())
    }

    /// What passed is written down as the active one, or could not be.
    pub(super) async fn settle(&mut self, is_settled: bool) -> Result<(), Closed> {
        let Some(trial) = self.trial.take() else {
            return Ok(());
        };
        match trial.before {
            Some((wanted, before)) if !is_settled => {
                let errand = self
                    .errand
                    .take_if(|(errand, ..)| errand.model == trial.load.name);
                if let Some((errand, ..)) = errand {
                    let reason = "the update could not be written down".to_owned();
                    self.switched(errand, Err(reason)).await?;
                }
                self.wanted = wanted.clone();
                self.follow.failed(before, self.started.elapsed());
                match wanted {
                    Some(wanted) if self.level() < Level::Shrink => {
                        self.serve(wanted, Placing::Beside).await?;
                    }
                    Some(_) => {}
                    None => {
                        let why = "served a release that could not be written down".to_owned();
                        self.order(Order::Rest { why }).await?;
                    }
                }
                self.tell_power().await
            }
            _ => self.look().await,
        }
    }

    /// Chooses anew.
    async fn renew(&mut self) -> Result<(), Closed> {
        if self.trial.is_some() {
            return Ok(()); // It is looked at when that is settled.
        }
        self.models = (self.find_models)();
        let before = self.follow.before();
        let change = self.follow.renew(self.started.elapsed(), self.own_bytes());
        let Some(change) = change else {
            return Ok(());
        };
        let choice = change.choice();
        let errand = Errand {
            model: choice.line.model.clone(),
            why: "the releases in service changed".to_owned(),
            wish: None,
        };
        self.follow_to(choice, before, errand).await
    }
}
