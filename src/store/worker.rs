//! The store thread: takes all that waits, applies it at once, answers.

use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::journal::{Answer, Journal, Op};

/// What the handles send.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "Close is sent once")]
pub(super) enum Message {
    /// An operation and where its answer goes.
    Do {
        op: Op,
        reply: oneshot::Sender<Result<Answer, StoreError>>,
    },
    /// Close the file, then say so.
    Close(oneshot::Sender<()>),
}

/// Runs until [`Message::Close`] or until the last handle is gone. At most `batch_max` operations
/// share a transaction.
pub(super) fn run(mut journal: Journal, mut waiting: mpsc::Receiver<Message>, batch_max: usize) {
    let mut messages = Vec::with_capacity(batch_max);
    while waiting.blocking_recv_many(&mut messages, batch_max) > 0 {
        let mut ops = Vec::with_capacity(messages.len());
        let mut replies = Vec::with_capacity(messages.len());
        let mut close = None;
        for message in messages.drain(..) {
            match message {
                Message::Do { op, reply } if close.is_none() => {
                    ops.push(op);
                    replies.push(reply);
                }
                // Behind a Close: dropping the reply tells the caller that the store is closed.
                Message::Do { .. } => {}
                Message::Close(reply) => close = Some(reply),
            }
        }
        for (reply, answer) in replies.into_iter().zip(journal.apply(&ops)) {
            // A caller that went away does not take its operation back.
            let _ = reply.send(answer);
        }
        if let Some(reply) = close {
            drop(journal);
            let _ = reply.send(());
            return;
        }
    }
}
