//! Which model serves now, with how many sequences: a decision, and nothing but a decision.
//!
//! ```text
//!     power mode (caps in force) ─┐
//!     [profiles.*], shipped ones ─┤                     heat, over-current
//!     measured table ─────────────┼─▶ candidates ─▶ ladder ─┴─▶ Selection::step ─▶ Choice
//!     models here, what fits ─────┘   (best first)   4 2 1 sequences,
//!                                                    then a smaller model
//! ```
//!
//! [`candidates`] lists what could serve in this mode, best first. [`Selection`] follows the first of them,
//! but slowly: a mode must stand before the model follows, and nothing larger is loaded soon after a
//! switch. Heat lowers concurrency first and the model second, a step at a time, and gives back in the same
//! steps. Time is an argument, so a night of changes is a test of a millisecond.
//!
//! This module loads nothing, switches nothing and reads nothing.

mod candidates;
mod heat;
mod table;

pub use candidates::{Line, Site, Source, candidates};
pub use heat::HeatReading;
pub use table::{Row, TABLE_BYTES_MAX, TableError, parse_table, to_json};

use std::time::Duration;

use crate::config::PowerConfig;
use heat::Heat;

/// A candidate is smaller than another when it takes less than this share of its memory; alternatives of
/// the same size would only cost a load.
const SMALLER_SHARE: f64 = 0.75;

/// What should serve now.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The model and how it is loaded.
    pub line: Line,
    /// Sequences that may run side by side, at most [`Line::n_seq_max`]; lowered by heat without a load.
    pub n_seq: u32,
    /// Steps down that heat has taken.
    pub n_steps_down: u32,
}

/// What to do about a [`Choice`].
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Load another model, or the same one in another way.
    Switch(Choice),
    /// Let fewer or more sequences run.
    Concurrency(Choice),
}

impl Change {
    /// The choice in either case.
    pub fn choice(&self) -> &Choice {
        match self {
            Change::Switch(choice) | Change::Concurrency(choice) => choice,
        }
    }
}

/// The decision as it stands, and the patience with which it changes.
#[derive(Debug, Clone)]
pub struct Selection {
    config: PowerConfig,
    current: Option<Choice>,
    /// What should serve instead, and since when.
    pending: Option<(Line, Duration)>,
    switched_at: Option<Duration>,
    heat: Heat,
}

impl Selection {
    /// Nothing is chosen yet.
    pub fn new(config: &PowerConfig) -> Self {
        Self {
            config: config.clone(),
            current: None,
            pending: None,
            switched_at: None,
            heat: Heat::default(),
        }
    }

    /// Other patience and limits, from the next step on.
    pub fn tune(&mut self, config: &PowerConfig) {
        self.config = config.clone();
    }

    /// What serves now, as far as this module was told.
    pub fn current(&self) -> Option<&Choice> {
        self.current.as_ref()
    }

    /// Takes note of what else knows: a load that failed and what serves in its place.
    pub fn correct(&mut self, choice: Option<Choice>) {
        self.current = choice;
        self.pending = None;
    }

    /// The next change, if it is time for one. `now` never falls; `candidates` are those of this moment, best
    /// first. Without candidates everything stays as it is.
    pub fn step(
        &mut self,
        now: Duration,
        candidates: &[Line],
        reading: &HeatReading,
    ) -> Option<Change> {
        let best = candidates.first()?;
        let ladder = ladder(candidates);
        let n_steps_max = u32::try_from(ladder.len() - 1).unwrap_or(u32::MAX);
        let (before, n_steps_down) = self.heat.step(now, &self.config, reading, n_steps_max);
        let (line, n_seq) = ladder[n_steps_down as usize];
        let target = Choice {
            line: line.clone(),
            n_seq,
            n_steps_down,
        };
        let Some(current) = &self.current else {
            return Some(self.switch(now, target));
        };
        if current.line.loads_like(&target.line) {
            self.pending = None;
            if *current == target {
                return None;
            }
            // The same model: more or fewer sequences, or another reason for it.
            let is_felt = current.n_seq != target.n_seq;
            self.current = Some(target.clone());
            return is_felt.then_some(Change::Concurrency(target));
        }
        let is_asked = best.source == Source::Pinned && current.line.model != target.line.model;
        let is_relief = n_steps_down > before && target.line.is_smaller_than(&current.line);
        let relieved = current.n_seq.min(target.n_seq);
        if is_asked || is_relief || self.is_due(now, &target.line) {
            return Some(self.switch(now, target));
        }
        // The model may not follow yet, but what runs can do less at once.
        self.current
            .as_mut()
            .filter(|current| n_steps_down > before && relieved < current.n_seq)
            .map(|current| {
                current.n_seq = relieved;
                current.n_steps_down = n_steps_down;
                Change::Concurrency(current.clone())
            })
    }

    /// Whether the model may follow to `line` now.
    fn is_due(&mut self, now: Duration, line: &Line) -> bool {
        let since = match &self.pending {
            Some((pending, since)) if pending.loads_like(line) => *since,
            _ => {
                self.pending = Some((line.clone(), now));
                now
            }
        };
        let has_settled = now.saturating_sub(since) >= self.config.settle;
        let current = self.current.as_ref().map(|choice| &choice.line);
        let is_smaller = current.is_some_and(|current| line.is_smaller_than(current));
        let has_held = self
            .switched_at
            .is_none_or(|at| now.saturating_sub(at) >= self.config.hold);
        has_settled && (is_smaller || has_held)
    }

    fn switch(&mut self, now: Duration, target: Choice) -> Change {
        self.pending = None;
        self.switched_at = Some(now);
        self.current = Some(target.clone());
        Change::Switch(target)
    }
}

/// The steps that heat goes down: the best candidate with half the sequences each time, then smaller models
/// with one. Never more sequences than the step before, never a larger model.
fn ladder(candidates: &[Line]) -> Vec<(&Line, u32)> {
    let mut steps: Vec<(&Line, u32)> = Vec::new();
    for line in candidates {
        match steps.last() {
            None => {
                let halves = std::iter::successors(Some(line.n_seq_max.max(1)), |n| {
                    (*n > 1).then_some(n / 2)
                });
                steps.extend(halves.map(|n_seq| (line, n_seq)));
            }
            Some((last, _)) if line.is_smaller_than(last) => steps.push((line, 1)),
            Some(_) => {}
        }
    }
    steps
}

#[cfg(test)]
mod tests;
