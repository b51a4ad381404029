//! `orinoco models use`: the order, and what the node says while it loads.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::ask::harmless;
use crate::cli::order::{self, Heard};
use crate::cli::output;
use crate::cli::target::Target;
use crate::wire::report::{CommandStatus, Mode, ModelCommand, State};

/// A model that is to serve.
struct Order {
    model: String,
    /// What serves, by the node's last word.
    serves: String,
    has_begun: bool,
    bar: ProgressBar,
}

/// Has it serve, and waits until it does. `accept_limit`: for the node to begin.
pub(super) fn run(
    model: String,
    target: &Target,
    accept_limit: Duration,
) -> anyhow::Result<ExitCode> {
    // Drawn on a terminal only.
    let bar = ProgressBar::new(100).with_style(
        ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}")
            .context("the template is a constant")?,
    );
    let mut order = Order {
        serves: model.clone(),
        model,
        has_begun: false,
        bar,
    };
    match order::give(&mut order, target, accept_limit)? {
        None => {
            let node = target.names.node();
            output::answer(&format!("{} serves on {node}\n", harmless(&order.serves)))
        }
        Some(code) => Ok(code),
    }
}

impl order::Order for Order {
    const KIND: &'static str = "model";

    fn payload(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&ModelCommand {
            status: CommandStatus::Init,
            model: self.model.clone(),
            reason: None,
        })
    }

    fn hear(&mut self, payload: &[u8]) -> Option<Heard> {
        let command: ModelCommand = serde_json::from_slice(payload).ok()?;
        match command.status {
            CommandStatus::Init => None,
            CommandStatus::Executing => {
                self.has_begun = true;
                let words = format!("{} takes over", harmless(&command.model));
                self.bar.set_message(words);
                Some(Heard::Begun)
            }
            CommandStatus::Successful => Some(Heard::Done),
            CommandStatus::Failed => {
                let reason = command.reason;
                let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
                Some(Heard::Refused(reason))
            }
        }
    }

    fn watches(&self, target: &Target) -> Vec<String> {
        vec![target.names.state()]
    }

    fn see(&mut self, payload: &[u8]) {
        let Ok(state) = serde_json::from_slice::<State>(payload) else {
            return;
        };
        if let Some(model) = state.model.filter(|_| state.mode == Mode::Serving) {
            self.serves = model;
        }
        if let Some(fraction) = state.load_progress.filter(|_| self.has_begun) {
            self.bar.set_position((fraction * 100.0) as u64);
        }
    }

    fn over(&mut self) {
        self.bar.finish_and_clear();
    }
}
