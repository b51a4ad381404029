//! From a submitted job to a slot: tokens, prefix, cells; and back when it ends. `park` is what lies between.

use std::rc::Rc;

use orinoco::frames::{Event, Finish, Input, Job, JobError, Leaves, Token};

use super::aside::{Cut, Prompt};
use super::{Run, WAITING_MAX};
use crate::controls::{Hidden, Part};
use crate::model::SeqId;
use crate::prefix::Source;
use crate::shelf::Found;
use crate::slot::{Slot, Taken, refused};

impl Run<'_> {
    /// Tokenizes a job, at once or while the next step is computed, and puts it at the end of the queue, or ends it.
    pub(super) fn submit(&mut self, job: Box<Job>) {
        if job.leaves == Leaves::Pinned {
            return self.pin(&job);
        }
        if self.waiting.len() + self.aside.len() >= WAITING_MAX {
            let error = JobError::Decode(format!("{WAITING_MAX} jobs already wait in the worker"));
            return self.refuse(&job, error);
        }
        if let Some(job) = self.set_aside(job) {
            let prompt = self.cut(&job);
            self.line_up_cut(&job, prompt);
        }
    }

    /// The tokens of a job.
    pub(super) fn cut(&self, job: &Job) -> Prompt {
        // Another model's words: no special token is read out of them.
        let head = match &job.head {
            Some(head) => self.decoder.tokenize(&head.text, false, false),
            None => Ok(Vec::new()),
        };
        let head = head.map_err(JobError::Input)?;
        let (prompt, n_left_out) = match &job.resume {
            // Ids, never text again: tokenizing the text could cut it differently.
            Some(resume) => (resume.prompt_ids.clone(), 0),
            None => {
                let (prompt, n_left_out) = self.prompt_of(job)?;
                ([prompt, head.clone()].concat(), n_left_out)
            }
        };
        Ok(Cut {
            n_head: head.len().min(prompt.len()),
            prompt,
            n_left_out,
        })
    }

    /// A job that has its tokens.
    pub(super) fn line_up_cut(&mut self, job: &Job, prompt: Prompt) {
        let has_tools = matches!(&job.input, Input::Chat { tools: Some(_), .. });
        let markers = match has_tools || job.constraint.is_some() {
            true => Rc::clone(&self.markers),
            false => Rc::default(),
        };
        let slot = prompt.and_then(|cut| {
            let (mut slot, taken) = Slot::new(job, cut.prompt, cut.n_head, markers, self.decoder)?;
            slot.n_left_out = cut.n_left_out;
            Ok((slot, taken))
        });
        match slot {
            Ok((slot, Taken::More)) => match &job.constraint {
                Some(constraint) => self.constrain(slot, constraint),
                None => self.wait(slot),
            },
            Ok((slot, Taken::Over(finish))) => self.say_done(slot, Ok(finish)),
            Err(error) => self.refuse(job, error),
        }
    }

    /// Takes its place in the queue; first it waits for what is on disk of it, where that is worth it.
    pub(super) fn wait(&mut self, slot: Slot) {
        if let Some(slot) = self.fetch(slot) {
            self.line_up(slot);
        }
    }

    /// Urgent ones before others, in their order; what nobody asked for behind all.
    pub(super) fn line_up(&mut self, slot: Slot) {
        let goes_before = |other: &Slot| other.is_pinned() || (slot.urgent && !other.urgent);
        let place = self.waiting.iter().position(goes_before);
        self.may_admit |= place.is_some();
        self.waiting
            .insert(place.unwrap_or(self.waiting.len()), slot);
    }

    fn refuse(&mut self, job: &Job, error: JobError) {
        self.outbox
            .push_back(Event::Done(Box::new(refused(job.job, error))));
    }

    /// The ids of an input.
    pub(super) fn tokens_of(&self, input: &Input) -> Result<Vec<Token>, JobError> {
        let (messages, tools) = match input {
            Input::Text(text) => return self.tokens_of_parts(&[Part::Rendered(text)], true),
            Input::Chat { messages, tools } => (messages, tools.as_deref()),
        };
        let mut hidden = Hidden::default();
        let kept = self.controls.hide(messages, &mut hidden);
        let kept_tools = tools.and_then(|tools| self.controls.hide(tools, &mut hidden));
        let text = self
            .template
            .render(
                kept.as_deref().unwrap_or(messages),
                kept_tools.as_deref().or(tools),
            )
            .map_err(|error| JobError::Template(format!("failed to {error}")))?;
        // Most templates write the BOS text themselves; two BOS tokens harm some models.
        let has_bos = self.add_bos && !self.bos.is_empty() && text.starts_with(&self.bos);
        self.tokens_of_parts(&hidden.parts(&text), !has_bos)
    }

    /// `add_special` is for the first part.
    fn tokens_of_parts(
        &self,
        parts: &[Part<'_>],
        add_special: bool,
    ) -> Result<Vec<Token>, JobError> {
        let mut ids = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let (text, parse_special) = match part {
                Part::Rendered(text) => (text, true),
                Part::Said(text) => (text, false),
            };
            let of_part = self
                .decoder
                .tokenize(text, add_special && n == 0, parse_special)
                .map_err(JobError::Input)?;
            match n {
                0 => ids = of_part,
                _ => ids.extend(of_part),
            }
        }
        Ok(ids)
    }

    /// Gives slots to waiting jobs, first come first served, as far as cells and slots go.
    pub(super) fn admit(&mut self) {
        while self.may_admit
            && let Some(slot) = self.waiting.front()
        {
            let decoder = &*self.decoder;
            let n_swa = decoder.limits().n_swa;
            // Where a sliding window has let go of positions, llama.cpp would take a rollback into them
            // and answer wrongly without an error; the window of the next token must be whole.
            let whole = |seq: SeqId, n: usize| {
                decoder
                    .seq_pos_min(seq)
                    .is_some_and(|min| min == 0 || (min + n_swa) < n as u32)
            };
            let reserved = slot.n_reserved();
            let saved = self.shelf.best(slot.tokens());
            let admission = self.pool.admit(slot.tokens(), reserved, saved, whole);
            let Some(admission) = admission else {
                if self.make_room() {
                    continue;
                }
                self.may_admit = false;
                return;
            };
            let mut slot = self.waiting.pop_front().expect("it was at the front");
            self.pool.begin(&admission, reserved);
            match admission.source {
                Some(Source::Live(from, n)) => self.decoder.seq_cp(from, admission.seq, n as u32),
                Some(Source::Saved(found)) => self.restore(admission.seq, found, &slot),
                None => {}
            }
            self.forget(slot.job);
            slot.begin(self.pool.tokens(admission.seq).len());
            if slot.is_pinned() {
                self.slots[admission.seq as usize] = Some(slot);
                continue;
            }
            self.outbox.push_back(Event::Started {
                job: slot.job,
                prompt_ids: slot.prompt().to_vec(),
                n_cached: slot.n_cached(),
                n_left_out: slot.n_left_out,
            });
            self.slots[admission.seq as usize] = Some(slot);
        }
    }

    /// Brings a saved sequence back, cut to what `slot` has in common with it. Where llama.cpp does not take
    /// it, the prompt is read again.
    fn restore(&mut self, seq: SeqId, found: Found, slot: &Slot) {
        let n = found.n_common;
        let state = self.shelf.take(found.key);
        let n_swa = self.decoder.limits().n_swa;
        let is_back = state.is_some_and(|state| self.decoder.restore(seq, state))
            // As long as its tokens say, whoever wrote it.
            && self.decoder.seq_pos_max(seq).map(|max| max as usize + 1) == Some(found.n_tokens)
            && self.decoder.seq_rm(seq, n as u32)
            && (self.decoder.seq_pos_min(seq))
                .is_some_and(|min| min == 0 || min + n_swa <= n as u32 + 1);
        if is_back {
            self.pool.push(seq, &slot.tokens()[..n]);
        } else {
            tracing::warn!(
                seq,
                "a saved prefix does not come back; the prompt is read again"
            );
            self.decoder.seq_rm(seq, 0);
        }
    }

    /// Forgets all saved sequences, saves none until told to, and gives back what the heap has free.
    pub(super) fn trim(&mut self) {
        self.forget_parked();
        self.shelf.clear();
        self.shelf.set_open(false);
        if let Some(archive) = &self.archive {
            // What is on its way holds memory.
            archive.stop();
        }
        crate::process::give_heap_back();
    }

    /// Ends the job in slot `seq`. That is told at once; its sequence is left for [`Run::settle`], unless
    /// decoding failed.
    pub(super) fn end(&mut self, seq: usize, end: Result<Finish, JobError>) {
        let Some(slot) = self.slots[seq].take() else {
            return;
        };
        let seq = seq as SeqId;
        if end.is_ok() {
            self.leave(seq, slot.leaves);
        } else {
            self.release(seq);
        }
        if !slot.is_pinned() {
            self.say_done(slot, end);
        }
    }

    pub(super) fn release(&mut self, seq: SeqId) {
        self.pool.end(seq);
        self.decoder.seq_rm(seq, 0);
        self.may_admit = true;
    }
}
