//! Long prompts are cut into tokens while a step is computed.
//!
//! Cutting takes the loop's thread milliseconds, in which the streams that run would stand still. A GPU computes a step
//! while this thread only waits for the logits, so a long prompt that comes while streams run waits for that moment:
//! one a step, after the step has begun and before its logits are asked for. Nothing of a slot changes there.

use std::collections::VecDeque;

use orinoco::frames::{Input, Job, JobError, JobKey, Token};

use super::Run;

/// Shorter ones take less than half a millisecond, and then a step is more.
const BYTES_MIN: usize = 2048;

/// The tokens of a job.
#[derive(Debug, PartialEq)]
pub(super) struct Cut {
    pub(super) prompt: Vec<Token>,
    /// Those at its end that another model wrote.
    pub(super) n_head: usize,
    /// Turns that they leave out.
    pub(super) n_left_out: u32,
}

/// What became of cutting one.
pub(super) type Prompt = Result<Cut, JobError>;

/// Jobs that wait for the next step, and those that have their tokens since the last.
#[derive(Debug, Default)]
pub(super) struct Aside {
    uncut: VecDeque<Box<Job>>,
    cut: Vec<(Box<Job>, Prompt)>,
    n_cut: u64,
}

impl Aside {
    pub(super) fn len(&self) -> usize {
        self.uncut.len() + self.cut.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were ever cut.
    pub(super) fn n_cut(&self) -> u64 {
        self.n_cut
    }

    fn take(&mut self, job: JobKey) -> Option<(Box<Job>, Option<Prompt>)> {
        if let Some(at) = self.uncut.iter().position(|other| other.job == job) {
            return Some((self.uncut.remove(at)?, None));
        }
        let at = self.cut.iter().position(|(other, _)| other.job == job)?;
        let (job, cut) = self.cut.remove(at);
        Some((job, Some(cut)))
    }
}

impl Run<'_> {
    /// The job, unless it is worth waiting for the next step.
    pub(super) fn set_aside(&mut self, job: Box<Job>) -> Option<Box<Job>> {
        let n_bytes = match (&job.input, &job.resume) {
            (_, Some(_)) => 0,
            (Input::Text(text), _) => text.len(),
            (Input::Chat { messages, tools }, _) => {
                messages.len() + tools.as_ref().map_or(0, String::len)
            }
        };
        let somebody_runs = self.slots.iter().any(Option::is_some);
        if !self.decoder.limits().computes_aside || !somebody_runs || n_bytes < BYTES_MIN {
            return Some(job);
        }
        self.aside.uncut.push_back(job);
        None
    }

    /// Cuts the next one; called while the device computes.
    pub(super) fn cut_aside(&mut self) {
        if let Some(job) = self.aside.uncut.pop_front() {
            let cut = self.cut(&job);
            self.aside.cut.push((job, cut));
            self.aside.n_cut += 1;
        }
    }

    /// Those that have their tokens line up; all do where there is no step to wait for.
    pub(super) fn collect_from_aside(&mut self) {
        for (job, cut) in std::mem::take(&mut self.aside.cut) {
            self.line_up_cut(&job, cut);
        }
        while self.slots.iter().all(Option::is_none)
            && let Some(job) = self.aside.uncut.pop_front()
        {
            let cut = self.cut(&job);
            self.line_up_cut(&job, cut);
        }
    }

    /// This one waits no longer: something is to be done with it.
    pub(super) fn cut_now(&mut self, job: JobKey) {
        if let Some((job, cut)) = self.aside.take(job) {
            let cut = cut.unwrap_or_else(|| self.cut(&job));
            self.line_up_cut(&job, cut);
        }
    }
}
