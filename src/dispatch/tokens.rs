//! Op `tokenize`: answered by the worker beside its jobs, without the queue and the store.

use super::Dispatch;
use super::durable::too_large;
use super::job::Address;
use super::serve::api_error;
use crate::frames::{self, Command, JobError, JobKey, Token};
use crate::link::AckToken;
use crate::wire::error::{ApiError, Code};
use crate::wire::reply::Replier;
use crate::wire::topic::Name;

/// Tokenizations under way; more are refused, they are cheap to repeat.
const TOKENIZING_MAX: usize = 64;
/// Of one user: nobody takes all places.
const TOKENIZING_PER_USER_MAX: usize = 16;

/// A question about tokens, answered without the store: asking again costs nothing.
pub(super) struct Tokenizing {
    pub(super) address: Address,
    pub(super) replier: Replier,
    pub(super) ack: AckToken,
}

impl Dispatch {
    pub(super) fn tokenize(&mut self, tokenizing: Tokenizing, input: frames::Input) {
        let error = if !self.node.had_model() {
            self.no_model()
        } else if self.node.slots().is_none() {
            self.idle.want();
            Some(ApiError::new(Code::ModelLoading, "the model is being loaded").with_retry(1000))
        } else if self.tokenizing.len() >= TOKENIZING_MAX
            || self.tokenizing_of(&tokenizing.address.user) >= TOKENIZING_PER_USER_MAX
        {
            Some(ApiError::new(Code::QueueFull, "too many tokenizations at once").with_retry(100))
        } else {
            None
        };
        if let Some(error) = error {
            return self.refuse(
                &tokenizing.address,
                &tokenizing.replier,
                &error,
                Some(tokenizing.ack),
            );
        }
        let job = self.new_key();
        if self
            .commands
            .try_send(Command::Tokenize { job, input })
            .is_err()
        {
            let error = ApiError::new(Code::QueueFull, "the engine is busy").with_retry(100);
            return self.refuse(
                &tokenizing.address,
                &tokenizing.replier,
                &error,
                Some(tokenizing.ack),
            );
        }
        self.tokenizing.insert(job, tokenizing);
    }

    fn tokenizing_of(&self, user: &Name) -> usize {
        let of_user = |tokenizing: &&Tokenizing| tokenizing.address.user == *user;
        self.tokenizing.values().filter(of_user).count()
    }

    pub(super) fn on_tokenized(&mut self, job: JobKey, ids: Result<Vec<Token>, JobError>) {
        let Some(Tokenizing {
            address,
            replier,
            ack,
        }) = self.tokenizing.remove(&job)
        else {
            return;
        };
        match ids {
            Ok(ids) => {
                let reply = replier.tokens(&ids);
                let publish = address.publish(self.settings.names.node(), reply, None);
                let (found, allowed) = (
                    publish.packet_bytes(),
                    self.link.packet_bytes_max() as usize,
                );
                if found > allowed {
                    return self.refuse(&address, &replier, &too_large(found, allowed), Some(ack));
                }
                self.send(publish);
                self.acknowledge(Some(ack));
            }
            Err(error) => self.refuse(&address, &replier, &api_error(&error, false), Some(ack)),
        }
    }
}
