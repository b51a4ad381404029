//! QoS 1 publishes that the broker has not acknowledged yet, in the order they were published.
//!
//! ```text
//!              next()              written(pkid)          acked(pkid)
//!   Waiting ───────────▶ Handed ────────────────▶ Sent ────────────────▶ gone
//!      ▲  connection_lost() │                      │
//!      └────────────────────┴──────────────────────┘   Sent keeps its packet id for a kept session
//! ```

use std::collections::VecDeque;

use rumqttc::v5::mqttbytes::v5 as packets;
use tokio::time::Instant;

use super::packet::Publish;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be handed to rumqttc; with a packet id when a kept session may know it.
    Waiting(Option<u16>),
    /// rumqttc has it and has not said under which packet id.
    Handed,
    /// On the wire under this packet id, since then.
    Sent(u16, Instant),
}

#[derive(Debug)]
struct Flight {
    /// Counts publishes of one connection; gaps show what was acknowledged out of order.
    seq: u64,
    publish: Publish,
    stage: Stage,
    /// Sent again under the packet id of an earlier connection.
    again: bool,
}

/// The window of unacknowledged publishes. It outlives connections.
#[derive(Debug, Default)]
pub(super) struct Flights {
    queue: VecDeque<Flight>,
    next_seq: u64,
}

impl Flights {
    /// Whether one more may be handed over. The span since the oldest counts, not the number:
    /// rumqttc deals packet ids round robin over its window, so an id cannot come round again
    /// before its first bearer was acknowledged.
    pub(super) fn room(&self, window: u16) -> bool {
        let span = self
            .queue
            .front()
            .map_or(0, |oldest| self.next_seq - oldest.seq);
        span < u64::from(window) && !self.resending()
    }

    /// True while what an earlier connection left is not settled. New publishes wait for it: for
    /// the order, and because its packet ids may be the next ones.
    pub(super) fn resending(&self) -> bool {
        let unsettled = |flight: &Flight| flight.again || matches!(flight.stage, Stage::Waiting(_));
        self.queue.iter().any(unsettled)
    }

    /// Takes a publish that is being handed to rumqttc.
    pub(super) fn hand(&mut self, publish: Publish) {
        let flight = Flight {
            seq: self.next_seq,
            publish,
            stage: Stage::Handed,
            again: false,
        };
        self.next_seq += 1;
        self.queue.push_back(flight);
    }

    /// rumqttc wrote the oldest handed publish under this packet id.
    pub(super) fn written(&mut self, pkid: u16, now: Instant) {
        if let Some(flight) = self
            .queue
            .iter_mut()
            .find(|flight| flight.stage == Stage::Handed)
        {
            flight.stage = Stage::Sent(pkid, now);
        }
    }

    /// The broker acknowledged this packet id.
    pub(super) fn acked(&mut self, pkid: u16) -> Option<Publish> {
        let sent = |flight: &Flight| matches!(flight.stage, Stage::Sent(id, _) if id == pkid);
        let index = self.queue.iter().position(sent)?;
        self.queue.remove(index).map(|flight| flight.publish)
    }

    /// The connection is gone, and with it what rumqttc knew.
    pub(super) fn connection_lost(&mut self) {
        for flight in &mut self.queue {
            flight.again = false;
            flight.stage = match flight.stage {
                Stage::Waiting(pkid) => Stage::Waiting(pkid),
                Stage::Handed => Stage::Waiting(None),
                Stage::Sent(pkid, _) => Stage::Waiting(Some(pkid)),
            };
        }
    }

    /// A new connection: without a kept session, packet ids mean nothing any more.
    pub(super) fn connected(&mut self, session_present: bool) {
        for flight in &mut self.queue {
            if let Stage::Waiting(pkid) = &mut flight.stage
                && !session_present
            {
                *pkid = None;
            }
        }
    }

    /// The next publish to send again, if the window has room, as packet.
    ///
    /// Those with a packet id come first, with DUP (MQTT 5, 4.4); the others follow when these are
    /// acknowledged, because the fresh event loop may deal them the same ids.
    pub(super) fn next_again(&mut self, window: u16) -> Option<packets::Publish> {
        let oldest_seq = self.queue.front()?.seq;
        let again = self.queue.iter().any(|flight| flight.again);
        let flight = self
            .queue
            .iter_mut()
            .find(|f| matches!(f.stage, Stage::Waiting(_)))?;
        let Stage::Waiting(pkid) = flight.stage else {
            return None;
        };
        if flight.seq - oldest_seq >= u64::from(window) || (again && pkid.is_none()) {
            return None;
        }
        let mut packet = flight.publish.packet();
        if let Some(pkid) = pkid {
            packet.pkid = pkid;
            packet.dup = true;
            flight.again = true;
        }
        flight.stage = Stage::Handed;
        Some(packet)
    }

    /// Removes what is larger than the broker takes now; it was checked against another broker.
    pub(super) fn remove_larger(&mut self, packet_bytes_max: u32) -> Vec<Publish> {
        let fits = |flight: &Flight| flight.publish.packet_bytes() <= packet_bytes_max as usize;
        if self.queue.iter().all(fits) {
            return Vec::new();
        }
        let (kept, removed) = self.queue.drain(..).partition(fits);
        self.queue = kept;
        removed
            .into_iter()
            .map(|flight: Flight| flight.publish)
            .collect()
    }

    /// Publishes that are not acknowledged yet; each may still be reported on once.
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether this is the packet id whose acknowledgement the broker has owed for longest.
    pub(super) fn is_due(&self, pkid: u16) -> bool {
        let oldest = self.queue.iter().find_map(|flight| match flight.stage {
            Stage::Sent(id, _) => Some(id),
            _ => None,
        });
        oldest == Some(pkid)
    }

    /// Since when the broker owes the oldest acknowledgement.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.queue.iter().find_map(|flight| match flight.stage {
            Stage::Sent(_, at) => Some(at),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(name: &str) -> Publish {
        Publish {
            topic: name.into(),
            at_least_once: true,
            ..Publish::default()
        }
    }

    fn three_sent() -> Flights {
        let mut flights = Flights::default();
        for (pkid, name) in [(1, "a"), (2, "b"), (3, "c")] {
            flights.hand(publish(name));
            flights.written(pkid, Instant::now());
        }
        flights
    }

    /// Topic, packet id and DUP of everything that may be sent again at once.
    fn again(flights: &mut Flights, window: u16) -> Vec<(String, u16, bool)> {
        std::iter::from_fn(|| flights.next_again(window))
            .map(|packet| {
                (
                    String::from_utf8(packet.topic.to_vec()).unwrap(),
                    packet.pkid,
                    packet.dup,
                )
            })
            .collect()
    }

    #[test]
    fn an_acknowledgement_out_of_order_leaves_no_room_for_an_id_that_comes_round() {
        let mut flights = three_sent();
        assert!(!flights.room(3));
        assert_eq!(flights.acked(2), Some(publish("b")));
        assert!(!flights.room(3), "id 1 is still out");
        flights.acked(1);
        assert!(flights.room(3));
    }

    #[test]
    fn a_kept_session_gets_them_again_under_their_ids_and_what_was_not_written_after_that() {
        let mut flights = three_sent();
        flights.hand(publish("d"));
        flights.connection_lost();
        flights.connected(true);
        let sent = vec![
            ("a".into(), 1, true),
            ("b".into(), 2, true),
            ("c".into(), 3, true),
        ];
        assert_eq!(again(&mut flights, 8), sent);
        for pkid in [1, 2, 3] {
            flights.written(pkid, Instant::now());
        }
        flights.acked(1);
        flights.acked(2);
        assert_eq!(again(&mut flights, 8), vec![], "id 3 is still out");
        assert!(!flights.room(8));
        flights.acked(3);
        assert_eq!(again(&mut flights, 8), vec![("d".into(), 0, false)]);
        assert!(flights.room(8));
    }

    #[test]
    fn a_lost_session_gets_them_as_new_messages_within_the_window() {
        let mut flights = three_sent();
        flights.connection_lost();
        flights.connected(false);
        assert_eq!(
            again(&mut flights, 2),
            vec![("a".into(), 0, false), ("b".into(), 0, false)]
        );
        flights.written(1, Instant::now());
        flights.acked(1);
        assert_eq!(again(&mut flights, 2), vec![("c".into(), 0, false)]);
    }

    #[test]
    fn a_connection_lost_while_sending_again_loses_nothing() {
        let mut flights = three_sent();
        flights.connection_lost();
        flights.connected(true);
        flights.next_again(8);
        flights.connection_lost();
        flights.connected(false);
        let names: Vec<_> = again(&mut flights, 8)
            .into_iter()
            .map(|(name, _, _)| name)
            .collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
