//! PURE: connections that have not said who they are.
//!
//! Whoever reaches the port can open a connection and say nothing, thousands of times. At most so many are
//! kept; for one more, the oldest goes. An honest client says who it is in milliseconds, and is gone from
//! here before it is the oldest.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// Connections that have not said who they are, the oldest first, each with what ends it.
#[derive(Debug)]
pub(super) struct Gate<E> {
    strangers: VecDeque<(SocketAddr, E)>,
    max: usize,
}

impl<E> Gate<E> {
    /// At most `max`, and at least one.
    pub(super) fn new(max: usize) -> Self {
        Self {
            strangers: VecDeque::new(),
            max: max.max(1),
        }
    }

    /// A new connection; what is to end for it.
    pub(super) fn enter(&mut self, client: SocketAddr, end: E) -> Option<E> {
        let oldest = (self.strangers.len() >= self.max).then(|| self.strangers.pop_front());
        self.strangers.push_back((client, end));
        oldest.flatten().map(|(_, end)| end)
    }

    /// The client has said who it is, or is gone.
    pub(super) fn leave(&mut self, client: SocketAddr) -> Option<E> {
        let at = self.strangers.iter().position(|(c, _)| *c == client)?;
        self.strangers.remove(at).map(|(_, end)| end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_oldest_stranger_goes_for_the_newest() {
        let mut gate = Gate::new(2);
        assert_eq!(gate.enter(client(1), 1), None);
        assert_eq!(gate.enter(client(2), 2), None);
        assert_eq!(gate.enter(client(3), 3), Some(1));
        assert_eq!(gate.leave(client(1)), None);
        assert_eq!(gate.leave(client(2)), Some(2));
        assert_eq!(gate.enter(client(4), 4), None);
        assert_eq!(gate.enter(client(5), 5), Some(3));
    }
}
