//! PURE: how many bytes the retained messages have together.

use std::collections::HashMap;

/// Bytes of each retained message, topic and payload.
#[derive(Debug)]
pub(super) struct Retained {
    bytes: HashMap<String, usize>,
    total: usize,
    max: usize,
}

impl Retained {
    pub(super) fn new(max: usize) -> Self {
        Self {
            bytes: HashMap::new(),
            total: 0,
            max,
        }
    }

    /// What is there, all of it.
    pub(super) fn are<'a>(&mut self, messages: impl Iterator<Item = (&'a str, usize)>) {
        self.bytes.clear();
        self.total = 0;
        for (topic, payload_bytes) in messages {
            self.set(topic, payload_bytes);
        }
    }

    /// Whether a message would fit in place of the one on its topic. None would always.
    pub(super) fn fits(&self, topic: &str, payload_bytes: usize) -> bool {
        let now = self.bytes.get(topic).copied().unwrap_or(0);
        payload_bytes == 0 || self.total - now + topic.len() + payload_bytes <= self.max
    }

    /// A message is retained now, or with 0 bytes no longer.
    pub(super) fn set(&mut self, topic: &str, payload_bytes: usize) {
        let before = if payload_bytes == 0 {
            self.bytes.remove(topic)
        } else {
            let bytes = topic.len() + payload_bytes;
            self.total += bytes;
            self.bytes.insert(topic.to_owned(), bytes)
        };
        self.total -= before.unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_in_place_of_another_counts_once() {
        let mut retained = Retained::new(30);
        retained.set("a", 19);
        assert!(retained.fits("a", 29));
        assert!(!retained.fits("b", 10));
        assert!(retained.fits("b", 9));
        retained.set("a", 0);
        assert!(retained.fits("b", 29));
        assert!(!retained.fits("b", 30));
        assert!(retained.fits("b", 0));
    }

    proptest! {
        #[test]
        fn the_total_is_the_sum_and_stays_within_the_limit(
            sets in prop::collection::vec((0usize..5, 0usize..60), 0..100),
        ) {
            let mut retained = Retained::new(100);
            for (topic, bytes) in sets {
                let topic = ["a", "bb", "ccc", "dddd", "eeeee"][topic];
                if retained.fits(topic, bytes) {
                    retained.set(topic, bytes);
                }
                prop_assert_eq!(retained.total, retained.bytes.values().sum::<usize>());
                prop_assert!(retained.total <= 100);
            }
        }
    }
}
