//! A model that requests name has its turn in place of the one that is wanted.
//!
//! The dispatcher knows the jobs and asks; here it is decided whether that can be done now. What the mode, memory,
//! an update or an operator want goes before any turn, and ends one: it is asked for again when there is room.

use tracing::info;

use super::{Closed, Errand, Governor, Word};
use crate::pressure::Level;
use crate::worker::Order;

/// Why turns are taken, for people.
const WHY: &str = "requests for it wait";

impl Governor {
    /// Requests wait for this model, and it is its turn.
    pub(super) async fn turn(&mut self, model: String) -> Result<(), Closed> {
        let wanted = self.wanted.as_ref().filter(|wanted| wanted.name == model);
        let is_guest = wanted.is_none();
        if let Err(why) = self.may_turn(is_guest) {
            return self.no_turn(model, why, false).await;
        }
        let load = match wanted {
            Some(wanted) => Some(wanted.clone()),
            None => self.follow.load(&self.follow.plain(&model)),
        };
        let Some(load) = load else {
            let why = "its file is not on this node any more".to_owned();
            return self.no_turn(model, why, true).await;
        };
        self.guest = is_guest.then(|| load.clone());
        self.turning = Some(model);
        self.is_idle = false;
        info!(model = load.name, "turn ordered");
        let (load, rests) = (Box::new(load), self.level() == Level::Ok);
        self.order(Order::Turn { load, rests }).await
    }

    /// Whether another model may be loaded for those who wait.
    fn may_turn(&self, is_guest: bool) -> Result<(), String> {
        if self.trial.is_some() {
            return Err("an update is being put into service".into());
        }
        if self.errand.is_some() {
            return Err("another model is being put into service".into());
        }
        if self.level() >= Level::Park {
            return Err("memory is short".into());
        }
        if is_guest && self.follow.is_hot() {
            return Err("the board is hot".into());
        }
        Ok(())
    }

    /// Something goes before whoever has its turn, or is about to.
    pub(super) async fn end_turn(&mut self, why: &str) -> Result<(), Closed> {
        if let Some(guest) = self.guest.take() {
            info!(model = guest.name, why, "its turn ends");
        }
        match self.turning.take() {
            Some(model) => self.no_turn(model, why.to_owned(), false).await,
            None => Ok(()),
        }
    }

    /// A worker serves: the turn that was asked for has begun.
    pub(super) async fn turned(&mut self, name: &str) -> Result<(), Closed> {
        match self.turning.take_if(|model| model == name) {
            Some(model) => self.switched(errand(model), Ok(())).await,
            None => Ok(()),
        }
    }

    /// A model could not be loaded: if it was for its turn, nobody need wait for it.
    pub(super) async fn turn_failed(&mut self, name: &str, reason: &str) -> Result<(), Closed> {
        let Some(model) = self.turning.take_if(|model| model == name) else {
            return Ok(());
        };
        self.guest.take_if(|guest| guest.name == name);
        self.no_turn(model.clone(), reason.to_owned(), true).await?;
        self.switched(errand(model), Err(reason.to_owned())).await
    }

    async fn no_turn(&self, model: String, why: String, is_lasting: bool) -> Result<(), Closed> {
        let word = Word::NoTurn {
            model,
            why,
            is_lasting,
        };
        self.say(word).await
    }

    /// Tells which model is wanted, where that is new.
    pub(super) async fn tell_chosen(&mut self) -> Result<(), Closed> {
        let Some(wanted) = &self.wanted else {
            return Ok(());
        };
        if self.told_chosen.as_ref() == Some(&wanted.name) {
            return Ok(());
        }
        self.told_chosen = Some(wanted.name.clone());
        self.say(Word::Chosen(wanted.name.clone())).await
    }
}

fn errand(model: String) -> Errand {
    Errand {
        model,
        why: WHY.to_owned(),
        wish: None,
    }
}
