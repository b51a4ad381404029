//! What a broker sends beyond our Receive Maximum, kept in order until its turn comes.
//!
//! It should not exist (MQTT 5, 3.3.4), but Mosquitto 2.0.11, which Debian 12 and JetPack 6 ship, forgets
//! the limit in a burst: 790 of 1,000 messages were under way with a limit of 64. Leaving such a broker
//! helps nobody, since it starts again with the same burst. So the excess is kept, by bytes; what is beyond
//! those stays with the broker, which brings it on the next connection.
//!
//! Pure: values in, values out.

use std::collections::VecDeque;

use super::packet::Message;

/// Payload and topic bytes kept; some thousand requests.
pub(super) const BYTES_MAX: usize = 4 << 20;

/// Messages that wait for a place in our window.
#[derive(Debug, Default)]
pub(super) struct Excess {
    waiting: VecDeque<Message>,
    bytes: usize,
    /// Something was left with the broker; so is all that comes after it, or the order would change.
    skipping: bool,
}

impl Excess {
    /// Keeps the message, or leaves it with the broker.
    pub(super) fn push(&mut self, message: Message) {
        let bytes = cost(&message);
        if self.skipping || self.bytes + bytes > BYTES_MAX {
            self.skipping = true;
            return;
        }
        self.bytes += bytes;
        self.waiting.push_back(message);
    }

    /// The next message, for a place that became free.
    pub(super) fn pop(&mut self) -> Option<Message> {
        let message = self.waiting.pop_front()?;
        self.bytes -= cost(&message);
        Some(message)
    }

    /// Whether a new message has to queue up here, also when our window has room.
    pub(super) fn in_use(&self) -> bool {
        self.skipping || !self.waiting.is_empty()
    }

    /// Whether only a new connection brings more: all that was kept is gone, and something was not kept.
    pub(super) fn needs_connection(&self) -> bool {
        self.skipping && self.waiting.is_empty()
    }
}

fn cost(message: &Message) -> usize {
    message.payload.len() + message.topic.len() + size_of::<Message>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::AckToken;
    use proptest::prelude::*;

    fn message(pkid: u16, bytes: usize) -> Message {
        Message {
            topic: "t".into(),
            payload: vec![0; bytes].into(),
            retain: false,
            dup: false,
            qos: 1,
            props: crate::link::Props::default(),
            ack: AckToken {
                link: 1,
                connection: 1,
                pkid,
            },
        }
    }

    proptest! {
        #[test]
        fn what_is_kept_is_a_prefix_in_order_and_within_the_bytes(sizes in prop::collection::vec(0usize..(2 << 20), 0..40)) {
            let mut excess = Excess::default();
            for (pkid, bytes) in sizes.iter().enumerate() {
                excess.push(message(pkid as u16, *bytes));
                prop_assert!(excess.bytes <= BYTES_MAX);
            }
            let skipped = excess.skipping;
            let kept: Vec<u16> = std::iter::from_fn(|| excess.pop()).map(|m| m.ack.pkid).collect();
            prop_assert_eq!(&kept, &(0..kept.len() as u16).collect::<Vec<_>>());
            prop_assert_eq!(skipped, kept.len() < sizes.len());
            prop_assert_eq!(excess.needs_connection(), skipped);
            prop_assert_eq!(excess.bytes, 0);
        }
    }
}
