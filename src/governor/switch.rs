//! What is wanted: an operator's order, or what the power mode and heat ask for; and having it served.

use tracing::info;

use super::follow::Before;
use super::{AUTO, Closed, Errand, Governor, Wish, Word};
use crate::pressure::Level;
use crate::selection::{Change, Choice};
use crate::worker::Placing;

impl Governor {
    pub(super) async fn wished(&mut self, wish: Wish) -> Result<(), Closed> {
        self.models = (self.find_models)();
        if let Err(reason) = self.may_follow(&wish) {
            return self.switched(Errand::ordered(wish), Err(reason)).await;
        }
        self.say(Word::Switching(wish.clone())).await?;
        let model = Some(wish.model.as_str()).filter(|model| *model != AUTO);
        let before = self.follow.before();
        let own_bytes = self.own_bytes();
        let change = self.follow.order(model, self.started.elapsed(), own_bytes);
        match change {
            Some(change) => {
                self.follow_to(change.choice(), before, Errand::ordered(wish))
                    .await
            }
            None => {
                let reason = "nothing fits that could serve".to_owned();
                self.switched(Errand::ordered(wish), Err(reason)).await
            }
        }
    }

    /// Whether an order may be done now.
    fn may_follow(&self, wish: &Wish) -> Result<(), String> {
        let mut names = self.models.iter().map(|model| model.load.name.as_str());
        let is_known = |name: &str| self.follow.knows(name);
        if wish.model != AUTO
            && !names.clone().any(|name| name == wish.model)
            && !is_known(&wish.model)
        {
            let names: Vec<_> = names.by_ref().collect();
            return Err(format!(
                "there is no model {:?} on this node; there are: {}",
                wish.model,
                names.join(", ")
            ));
        }
        if self.trial.is_some() {
            return Err("an update is being put into service: try again in a minute".to_owned());
        }
        if self.level() >= Level::Shrink {
            return Err("memory is short: the model in service was made smaller or ended; try again when state.pressure.level is below shrink".to_owned());
        }
        Ok(())
    }

    /// One look at power mode and heat.
    pub(super) async fn look(&mut self) -> Result<(), Closed> {
        if self.trial.is_some() {
            // What serves is about to be decided; the mode and heat are looked at right after it.
            return Ok(());
        }
        let before = self.follow.before();
        let n_steps_before = self.follow.n_steps_down();
        let change = self.follow.step(self.started.elapsed(), self.own_bytes());
        if let Some(change) = change {
            let choice = change.choice();
            let why = self.follow.reason(&change, n_steps_before);
            info!(
                model = choice.line.model,
                n_seq = choice.n_seq,
                why,
                "chosen"
            );
            if let Change::Switch(choice) = &change {
                let model = choice.line.model.clone();
                let wish = None;
                self.follow_to(choice, before, Errand { model, why, wish })
                    .await?;
            }
        }
        self.tell_power().await
    }

    /// Has what was chosen served, as soon as memory allows.
    pub(super) async fn follow_to(
        &mut self,
        choice: &Choice,
        before: Before,
        mut errand: Errand,
    ) -> Result<(), Closed> {
        errand.model.clone_from(&choice.line.model);
        self.tell_power().await?;
        let Some(load) = self.follow.load(&choice.line) else {
            self.follow.failed(before, self.started.elapsed());
            let reason = format!("{} is not on this node any more", choice.line.model);
            return self.switched(errand, Err(reason)).await;
        };
        let is_wanted = self.wanted.as_ref() == Some(&load);
        let is_served =
            is_wanted && self.errand.is_none() && self.guest.is_none() && self.serving.is_some();
        if !is_served {
            self.end_turn("another model was chosen").await?;
        }
        let earlier = self.errand.take();
        let (wanted, before) = match earlier {
            None => (self.wanted.clone(), before),
            // That one never served: what was before it still does.
            Some((earlier, wanted, before)) => {
                let reason = format!("{} was chosen meanwhile", load.name);
                self.switched(earlier, Err(reason)).await?;
                (wanted, before)
            }
        };
        self.wanted = Some(load.clone());
        if is_served {
            return match errand.wish {
                Some(_) => self.switched(errand, Ok(())).await,
                None => Ok(()),
            };
        }
        let is_back = wanted.as_ref() == Some(&load) && self.serves(&load);
        self.errand = Some((errand, wanted, before));
        if self.level() < Level::Shrink {
            self.serve(load, Placing::Beside).await?;
        }
        match self.errand.take_if(|_| is_back) {
            // The worker has it: it only has to forget the other one.
            Some((errand, ..)) => self.switched(errand, Ok(())).await,
            None => Ok(()),
        }
    }

    pub(super) async fn switched(
        &self,
        errand: Errand,
        outcome: Result<(), String>,
    ) -> Result<(), Closed> {
        self.say(Word::Switched { errand, outcome }).await
    }

    pub(super) async fn tell_power(&mut self) -> Result<(), Closed> {
        let power = self.follow.report();
        match power {
            Some(power) if self.told_power.as_ref() != Some(&power) => {
                self.told_power = Some(power.clone());
                self.say(Word::Power(power)).await
            }
            _ => Ok(()),
        }
    }
}

impl Errand {
    pub(super) fn ordered(wish: Wish) -> Self {
        Self {
            model: wish.model.clone(),
            why: "ordered".to_owned(),
            wish: Some(wish),
        }
    }
}
