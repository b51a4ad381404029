//! What comes in: the future that polls rumqttc, and waits for nothing but the network.

use std::sync::atomic::Ordering;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    self as packets, Packet, PubAckReason, RetainForwardRule, Subscribe, SubscribeReasonCode,
};
use rumqttc::v5::{Event, EventLoop, Request};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::ended::Ended;
use super::excess::{self, Excess};
use super::flow::Flow;
use super::inbox::{NoRoom, Outlet};
use super::packet::Message;
use super::switch::filter;
use super::{Inbound, LinkConfig, Shared};

/// When the filters are subscribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subscribing {
    /// There are none, or it is done.
    Not,
    /// Before anything else.
    First,
    /// The broker kept the session and should have them, so that nothing waits for it. Asked again all
    /// the same: the session may be one that another client with our id left, without our filters.
    Later,
}

/// The state of one connection's poll future.
pub(super) struct Poll<'a> {
    pub(super) config: &'a LinkConfig,
    pub(super) shared: &'a Shared,
    pub(super) outlet: &'a Outlet,
    pub(super) flow: &'a Flow,
    pub(super) number: u64,
    pub(super) session_present: bool,
    pub(super) subscribing: Subscribing,
    /// Subscribed, and reported as up.
    pub(super) up: bool,
    /// Came before the subscriptions were confirmed: a kept session sends at once. At most
    /// `receive_max` of QoS 1 and `inbound_capacity` of QoS 0.
    pub(super) early: Vec<Message>,
    /// QoS 1 messages beyond `receive_max`.
    pub(super) excess: Excess,
}

impl Poll<'_> {
    pub(super) async fn run(&mut self, event_loop: &mut EventLoop) -> Ended {
        if self.subscribing == Subscribing::First {
            self.subscribe(event_loop);
        } else if let Err(ended) = self.report_up() {
            return ended;
        }
        loop {
            if self.up {
                self.send_again(event_loop);
                // SUBSCRIBE takes the first packet id, which one of those may still bear.
                let is_settled = !self.flow.state().flights.resending();
                if self.subscribing == Subscribing::Later && is_settled {
                    self.subscribe(event_loop);
                }
            }
            let event = event_loop.poll().await;
            self.flow.state().polled = Instant::now();
            let handled = match event {
                Ok(Event::Incoming(Packet::SubAck(suback))) => match self.is_subscribing() {
                    true => self.subscribed(&suback.return_codes),
                    false => self.switched_on(&suback.return_codes),
                },
                Ok(Event::Incoming(Packet::UnsubAck(_))) => self.switched_off(),
                Ok(Event::Incoming(packet)) => self.incoming(event_loop, packet),
                Ok(Event::Outgoing(outgoing)) => self.outgoing(outgoing),
                Err(error) => return error.into(),
            };
            // Each acknowledgement that we write comes by here.
            let handled = handled.and_then(|()| match self.up && self.excess.in_use() {
                true => self.take_excess(),
                false => Ok(()),
            });
            if let Err(ended) = handled {
                return ended;
            }
        }
    }

    /// What rumqttc had read when the connection ended: acknowledgements save sending again.
    pub(super) fn rest(&mut self, event_loop: &mut EventLoop) {
        while let Some(event) = event_loop.state.events.pop_front() {
            match event {
                Event::Outgoing(Outgoing::Publish(pkid)) if pkid != 0 => {
                    self.flow.state().flights.written(pkid, Instant::now());
                }
                Event::Incoming(Packet::PubAck(puback)) => {
                    let _ = self.acknowledged(puback.pkid, puback.reason);
                }
                _ => {}
            }
        }
    }

    /// Subscribes, all filters at once. The one SUBSCRIBE of a connection, but for switched filters, which
    /// are not on links that keep a session.
    fn subscribe(&mut self, event_loop: &mut EventLoop) {
        let filters = self.config.subscriptions.iter().map(|name| {
            let mut filter = filter(name);
            if self.subscribing == Subscribing::Later {
                // What is retained was sent when the subscription was made.
                filter.retain_forward_rule = RetainForwardRule::OnNewSubscribe;
            }
            filter
        });
        let subscribe = Subscribe::new_many(filters, None);
        event_loop.pending.push_back(Request::Subscribe(subscribe));
        let mut state = self.flow.state();
        state.handing();
        state.subscribing = Some(Instant::now());
        drop(state);
        self.subscribing = Subscribing::Not;
    }

    fn is_subscribing(&self) -> bool {
        self.flow.state().subscribing.is_some()
    }

    fn subscribed(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), Ended> {
        self.flow.state().subscribing = None;
        refusals(self.outlet, &self.config.subscriptions, codes)?;
        self.report_up()
    }

    fn report_up(&mut self) -> Result<(), Ended> {
        if std::mem::replace(&mut self.up, true) {
            return Ok(());
        }
        self.flow.state().open = true;
        self.flow.changed.notify_one();
        self.flow.switched.notify_one();
        let packet_bytes_max = self.flow.limits.packet_bytes_max;
        let up = Inbound::Up {
            session_present: self.session_present,
            packet_bytes_max,
        };
        self.outlet.send(up).map_err(|NoRoom| Ended::Unread)?;
        for message in std::mem::take(&mut self.early) {
            self.pass_on(message)?;
        }
        Ok(())
    }

    /// Puts what an earlier connection left unacknowledged before everything new.
    fn send_again(&mut self, event_loop: &mut EventLoop) {
        let mut state = self.flow.state();
        while let Some(packet) = state.flights.next_again(self.flow.limits.window) {
            state.handing();
            event_loop.pending.push_back(Request::Publish(packet));
        }
    }

    fn outgoing(&mut self, outgoing: Outgoing) -> Result<(), Ended> {
        let mut state = self.flow.state();
        match outgoing {
            Outgoing::Publish(pkid) => {
                state.wrote();
                if pkid != 0 {
                    state.flights.written(pkid, Instant::now());
                }
            }
            Outgoing::Subscribe(_) | Outgoing::Unsubscribe(_) | Outgoing::PubAck(_) => {
                state.wrote();
            }
            Outgoing::PingReq => state.pinged = Some(Instant::now()),
            Outgoing::Disconnect => return Err(Ended::Closed),
            _ => {}
        }
        Ok(())
    }

    fn incoming(&mut self, event_loop: &mut EventLoop, packet: Packet) -> Result<(), Ended> {
        match packet {
            Packet::Publish(publish) => self.message(event_loop, publish),
            Packet::PubAck(puback) => self.acknowledged(puback.pkid, puback.reason),
            Packet::PingResp(_) => {
                self.flow.state().pinged = None;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn message(
        &mut self,
        event_loop: &mut EventLoop,
        publish: packets::Publish,
    ) -> Result<(), Ended> {
        let (pkid, qos) = (publish.pkid, publish.qos);
        let Some(message) = Message::from_packet(publish, self.shared.link, self.number) else {
            warn!(
                ?qos,
                "message without a usable topic, or with QoS 2, rejected"
            );
            self.shared.n_rejected.fetch_add(1, Ordering::Relaxed);
            if qos == QoS::AtLeastOnce {
                // Otherwise it takes a place in the broker's window for ever.
                let ack = packets::PubAck::new(pkid, None);
                self.flow.state().handing();
                event_loop.pending.push_back(Request::PubAck(ack));
            }
            return Ok(());
        };
        if message.qos > 0 {
            let mut state = self.flow.state();
            if self.excess.in_use() || state.n_unacked >= usize::from(self.config.receive_max) {
                self.excess.push(message);
                return Ok(());
            }
            state.n_unacked += 1;
        }
        if self.up {
            return self.pass_on(message);
        }
        if message.qos == 0 && self.early.len() >= self.config.inbound_capacity {
            self.dropped();
        } else {
            self.early.push(message);
        }
        Ok(())
    }

    /// Gives the reader what waited for a place in our window, as far as there are places.
    fn take_excess(&mut self) -> Result<(), Ended> {
        let receive_max = usize::from(self.config.receive_max);
        while self.flow.state().n_unacked < receive_max
            && let Some(message) = self.excess.pop()
        {
            self.flow.state().n_unacked += 1;
            self.pass_on(message)?;
        }
        if self.excess.needs_connection() && self.flow.state().n_unacked == 0 {
            return Err(Ended::lost(format!(
                "the broker sent {} bytes more than {receive_max} messages without \
                 acknowledgement; it is asked for the rest again",
                excess::BYTES_MAX
            )));
        }
        Ok(())
    }

    fn pass_on(&mut self, message: Message) -> Result<(), Ended> {
        if message.qos > 0 {
            let message = Inbound::Message(message);
            return self.outlet.send(message).map_err(|NoRoom| Ended::Unread);
        }
        let message = Inbound::Message(message);
        if let Err(NoRoom) = self.outlet.send_droppable(message, self.config.inflight) {
            self.dropped();
        }
        Ok(())
    }

    fn dropped(&self) {
        self.shared.n_dropped.fetch_add(1, Ordering::Relaxed);
        debug!("inbox full, QoS 0 message dropped");
    }

    fn acknowledged(&mut self, pkid: u16, reason: PubAckReason) -> Result<(), Ended> {
        let publish = {
            let mut state = self.flow.state();
            // One that comes out of turn says nothing about the one that is due.
            if state.flights.is_due(pkid) {
                state.acked = Instant::now();
            }
            state.flights.acked(pkid)
        };
        self.flow.changed.notify_one();
        let Some(publish) = publish else {
            return Ok(());
        };
        let report = match (reason, publish.token) {
            (PubAckReason::Success | PubAckReason::NoMatchingSubscribers, None) => return Ok(()),
            (PubAckReason::Success | PubAckReason::NoMatchingSubscribers, Some(token)) => {
                Inbound::Delivered { token }
            }
            (reason, token) => {
                let reason = format!("{reason:?}");
                warn!(topic = publish.topic, reason, "broker refused a publish");
                Inbound::Undelivered {
                    token,
                    topic: publish.topic,
                    reason,
                }
            }
        };
        self.outlet.send(report).map_err(|NoRoom| Ended::Unread)
    }
}

/// Reports the filters that the broker refused.
pub(super) fn refusals(
    outlet: &Outlet,
    filters: &[String],
    codes: &[SubscribeReasonCode],
) -> Result<(), Ended> {
    for (filter, code) in filters.iter().zip(codes) {
        if !matches!(code, SubscribeReasonCode::Success(_)) {
            let reason = format!("{code:?}");
            warn!(filter, reason, "broker refused a subscription");
            let refused = Inbound::SubscribeRefused {
                filter: filter.clone(),
                reason,
            };
            outlet.send(refused).map_err(|NoRoom| Ended::Unread)?;
        }
    }
    Ok(())
}
