//! Conversations that the node keeps: who is in line for each, and what each request goes on with.
//!
//! Part of the dispatcher's one task: it changes the dispatcher's state and waits for nothing. A request of a
//! conversation waits until all before it have ended. Then what was said is read from the store; and with its
//! final its own turn is kept, both or neither. So whatever dies in between, a conversation has all of a turn or
//! nothing of it, and no two requests ever answer to the same past. What is kept of a turn, and what goes when it
//! grows too long, is `wire::request::history`'s.

use std::collections::{HashMap, VecDeque};

use tracing::{debug, warn};

use super::durable::StoreDone;
use super::job::{Ending, Job, Phase, number_of};
use super::{Dispatch, STORE_RETRY};
use crate::frames::{Command, Finish, Input, JobKey};
use crate::link::AckToken;
use crate::store::{self, StoreError};
use crate::wire::error::{ApiError, Code};
use crate::wire::reply;
use crate::wire::request::history::{Answer, Bounds, Call, History};
use crate::wire::tools;
use crate::wire::topic::Name;
use crate::worker::kv_files;

/// A user, and its name for a conversation.
type Session = (Name, Name);

/// A request's part in a conversation.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) name: Name,
    /// For one in which nobody gave a system message.
    system_prompt: Option<String>,
    state: State,
    /// Oldest turns that the model had no room for.
    pub(super) n_left_out: u32,
    /// It was forgotten in the meantime.
    is_forgotten: bool,
}

#[derive(Debug)]
enum State {
    /// Others are before it, or it is not on disk itself.
    InLine,
    /// What was said is being read.
    Reading,
    /// What was said before.
    Ready(History),
}

impl Conversation {
    fn new(name: Name, system_prompt: Option<String>) -> Self {
        Self {
            name,
            system_prompt,
            state: State::InLine,
            n_left_out: 0,
            is_forgotten: false,
        }
    }

    /// Whether it is its turn, and known what was said before.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// The request behind what was said before, and the messages of each earlier turn.
    pub(super) fn continued(&self, asked: &Input) -> (Input, Vec<u32>) {
        match &self.state {
            State::Ready(history) => history.continued(asked, self.system_prompt.as_deref()),
            State::InLine | State::Reading => (asked.clone(), Vec::new()),
        }
    }

    /// What is kept when it has been answered, and what its final tells. `drops`: turns that were left out go for
    /// good. `None`: it was forgotten.
    pub(super) fn kept(
        &self,
        asked: &Input,
        answer: Answer,
        drops: bool,
        bounds: &Bounds,
    ) -> Option<(store::Kept, reply::Session)> {
        let State::Ready(history) = &self.state else {
            return None;
        };
        if self.is_forgotten {
            return None;
        }
        let n_left_out = if drops { self.n_left_out as usize } else { 0 };
        let next = history.with(asked, answer, n_left_out, bounds);
        let told = reply::Session {
            name: self.name.to_string(),
            turns: next.n_turns() as u64,
            dropped_turns: (history.n_turns() + 1 - next.n_turns()) as u64,
            left_out_turns: u64::from(self.n_left_out),
        };
        let kept = store::Kept {
            name: self.name.to_string(),
            bytes: next.to_bytes().into(),
        };
        Some((kept, told))
    }
}

/// Who is in line for each conversation, in the order of acceptance.
#[derive(Debug, Default)]
pub(super) struct Lines(HashMap<Session, VecDeque<JobKey>>);

impl Lines {
    fn join(&mut self, session: Session, job: JobKey) {
        self.0.entry(session).or_default().push_back(job);
    }

    fn leave(&mut self, session: &Session, job: JobKey) {
        if let Some(line) = self.0.get_mut(session) {
            line.retain(|other| *other != job);
            if line.is_empty() {
                self.0.remove(session);
            }
        }
    }

    fn first(&self, session: &Session) -> Option<JobKey> {
        self.0.get(session)?.front().copied()
    }

    fn all(&self, session: &Session) -> Vec<JobKey> {
        let line = self.0.get(session);
        line.map_or_else(Vec::new, |line| line.iter().copied().collect())
    }
}

impl Job {
    fn session(&self) -> Option<Session> {
        let conversation = self.conversation.as_ref()?;
        Some((self.address.user.clone(), conversation.name.clone()))
    }

    /// Whether others of its conversation are before it, or what was said is not known yet.
    pub(super) fn waits_for_turn(&self) -> bool {
        (self.conversation.as_ref()).is_some_and(|conversation| !conversation.is_ready())
    }
}

impl Dispatch {
    /// A job takes its place in the line for its conversation, if it has one.
    pub(super) fn join(&mut self, job: &mut Job) {
        let name = job.request.conversation().map(Name::new);
        let Some(Ok(name)) = name else {
            return;
        };
        let defaults = &self.settings.user(&job.address.user).defaults;
        let conversation = Conversation::new(name, defaults.system_prompt.clone());
        job.conversation = Some(conversation);
        if let Some(session) = job.session() {
            self.lines.join(session, job.key);
        }
    }

    /// A job is gone, and its turn kept if it had one: the next in line has its own.
    pub(super) fn leave_line(&mut self, job: &Job) {
        if let Some(session) = job.session() {
            self.lines.leave(&session, job.key);
            if let Some(next) = self.lines.first(&session) {
                self.recall(next);
            }
        }
    }

    /// Reads what was said, where the job is on disk and the first in line.
    pub(super) fn recall(&mut self, key: JobKey) {
        let now_ms = self.clock.now_ms();
        let Some(job) = self.jobs.get_mut(&key).filter(|job| job.committed) else {
            return;
        };
        let Some(session) = job.session() else {
            return;
        };
        let is_first = self.lines.first(&session) == Some(key);
        let Some(conversation) = job.conversation.as_mut().filter(|_| is_first) else {
            return;
        };
        if !matches!(conversation.state, State::InLine) {
            return;
        }
        conversation.state = State::Reading;
        let store = self.store.clone();
        let session = stored(&session);
        self.store_work.spawn(async move {
            StoreDone::Recalled {
                job: key,
                outcome: store.kept(session, now_ms).await,
            }
        });
    }

    /// What was said is known.
    pub(super) fn on_recalled(
        &mut self,
        key: JobKey,
        outcome: Result<Option<bytes::Bytes>, StoreError>,
    ) {
        let Some(job) = self.jobs.get_mut(&key) else {
            return;
        };
        let Some(conversation) = job.conversation.as_mut() else {
            return;
        };
        match outcome {
            Ok(None) => conversation.state = State::Ready(History::default()),
            Ok(Some(bytes)) => {
                let history = History::from_bytes(&bytes).unwrap_or_else(|| {
                    let (user, session) = (&job.address.user, &conversation.name);
                    warn!(%user, %session, "what was kept of a conversation cannot be read: it begins anew");
                    History::default()
                });
                conversation.state = State::Ready(history);
            }
            Err(error) => {
                warn!(%error, "conversation not read");
                let text = format!("what was said before could not be read: {error}");
                let retry_ms = STORE_RETRY.as_millis() as u64;
                let error = ApiError::new(Code::StorageFull, text).with_retry(retry_ms);
                self.stop(key, Ending::Failed(error));
            }
        }
    }

    /// A user has a conversation forgotten, what is being answered in it included; acknowledged when that is on
    /// disk.
    pub(super) fn forget(&mut self, user: Name, name: Name, ack: AckToken) {
        debug!(%user, session = %name, "conversation forgotten");
        let session = (user, name);
        for key in self.lines.all(&session) {
            let job = self.jobs.get_mut(&key);
            if let Some(conversation) = job.and_then(|job| job.conversation.as_mut()) {
                conversation.is_forgotten = true;
            }
        }
        let number = number_of(&session.0, session.1.as_str());
        // What a worker has of it goes first; one that is not there has nothing.
        let _ = self.commands.try_send(Command::Forget(number));
        let (store, session) = (self.store.clone(), stored(&session));
        let kv_dir = self.settings.kv_dir.clone();
        self.store_work.spawn(async move {
            let outcome = store.forget_session(session).await;
            let forgotten = tokio::task::spawn_blocking(move || {
                kv_dir.is_none_or(|dir| kv_files::forget(&dir, number).is_ok())
            });
            StoreDone::SessionForgotten {
                ack,
                outcome,
                is_out: forgotten.await.unwrap_or(false),
            }
        });
    }
}

impl Job {
    /// What is kept of its conversation with its final, and what that tells; nothing of one that was called off or
    /// failed.
    pub(super) fn turn(
        &self,
        drops: bool,
        bounds: &Bounds,
    ) -> Option<(store::Kept, reply::Session)> {
        let is_answered = matches!(
            self.ending,
            Some(Ending::Finished(Finish::Stop | Finish::Length, _))
        );
        debug_assert!(self.phase != Phase::Open);
        let conversation = self.conversation.as_ref().filter(|_| is_answered)?;
        conversation.kept(&self.request.input, self.said(), drops, bounds)
    }

    fn said(&self) -> Answer {
        let whole = self.output.text();
        let Some(calls) = &self.calls else {
            return whole.into();
        };
        let answer = calls.answer(whole);
        let (request, attempt) = (self.address.id.as_str(), self.replier.attempt);
        let call = |(index, (name, arguments))| Call {
            id: tools::call_id(request, attempt, index),
            name,
            arguments,
        };
        Answer {
            text: answer.content,
            calls: (0..).zip(answer.calls).map(call).collect(),
        }
    }
}

fn stored((user, name): &Session) -> store::SessionId {
    store::SessionId {
        user: user.to_string(),
        name: name.to_string(),
    }
}
