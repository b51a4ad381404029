//! The task of a link: one connection after the other, and the futures that serve each.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    self as packets, ConnAck, DisconnectReasonCode, Filter, Packet, PubAckReason, Subscribe,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, Request, StateError};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, random};
use super::flight::Flights;
use super::inbox::{NoRoom, Outlet};
use super::packet::{Message, PACKET_BYTES_MAX, Publish};
use super::{AckToken, Close, Inbound, LinkConfig, Shared};

/// Requests that wait between our futures and rumqttc. Small: what is here is lost to QoS 0.
const HANDOVER: usize = 16;

/// A connection that the broker closes sooner than this may have been taken over. rumqttc cannot
/// tell: a DISCONNECT of three bytes, reason without properties (MQTT 5, 3.14.2.2.1), which is what
/// Mosquitto sends, is to it an incomplete packet, and is dropped.
const THROWN_OUT: Duration = Duration::from_secs(10);

/// So many of them in a row are reported as a takeover. One can be a broker's restart.
const THROWN_OUT_TIMES: u32 = 2;

/// Everything that outlives a connection.
pub(super) struct Session {
    pub(super) config: LinkConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) outbox: mpsc::Receiver<Publish>,
    pub(super) acks: mpsc::Receiver<AckToken>,
    pub(super) close: mpsc::Receiver<Close>,
    pub(super) outlet: Outlet,
    /// Taken from the outbox and not handed over yet.
    pub(super) held: Option<Publish>,
    pub(super) closing: Option<Close>,
    pub(super) flights: Flights,
}

/// How a connection, or the attempt at one, ended.
#[derive(Debug)]
enum Ended {
    Lost {
        reason: String,
        /// The broker said so.
        taken_over: bool,
        /// The broker closed the connection, as far as rumqttc knows without a reason.
        by_broker: bool,
    },
    /// We sent DISCONNECT.
    Closed,
    /// The inbox was dropped.
    Unread,
}

impl Ended {
    fn lost(reason: impl Into<String>) -> Ended {
        Ended::Lost {
            reason: reason.into(),
            taken_over: false,
            by_broker: false,
        }
    }
}

impl From<ConnectionError> for Ended {
    fn from(error: ConnectionError) -> Ended {
        let taken_over = matches!(
            error,
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            })
        );
        let by_broker = matches!(
            error,
            ConnectionError::MqttState(
                StateError::ConnectionAborted | StateError::Io(_) | StateError::Deserialization(_)
            )
        );
        let reason = if taken_over {
            "another client connected with the same client id".to_owned()
        } else {
            error.to_string()
        };
        Ended::Lost {
            reason,
            taken_over,
            by_broker,
        }
    }
}

impl Session {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.backoff_min, self.config.backoff_max);
        let mut subscribed = false;
        let mut reported: Option<String> = None;
        let mut n_thrown_out = 0u32;
        loop {
            let replies = self.flights.n_tokens();
            tokio::select! {
                () = self.outlet.room_for_connection(replies) => {}
                () = self.outlet.closed() => return,
            }
            let mut up_since = None;
            let ended = self.connect_and_serve(&mut subscribed, &mut up_since).await;
            self.flights.connection_lost();
            let (mut reason, mut taken_over, by_broker) = match ended {
                Ended::Lost {
                    reason,
                    taken_over,
                    by_broker,
                } => (reason, taken_over, by_broker),
                Ended::Closed => {
                    if let Some(closing) = self.closing {
                        // The caller may have stopped waiting.
                        let _ = closing.done.send(());
                    }
                    return;
                }
                Ended::Unread => return,
            };
            let served = up_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
            let thrown_out = by_broker && up_since.is_some() && served < THROWN_OUT;
            n_thrown_out = if thrown_out { n_thrown_out + 1 } else { 0 };
            if n_thrown_out >= THROWN_OUT_TIMES {
                taken_over = true;
                reason = format!(
                    "the broker closed {n_thrown_out} connections in a row soon after it took \
                     them; is another client running with the client id {:?}?",
                    self.config.client_id
                );
            }
            let wait = if taken_over {
                backoff.after_takeover()
            } else {
                backoff.after(served, random())
            };
            if up_since.is_some() || reported.as_ref() != Some(&reason) {
                let retry_ms = wait.as_millis() as u64;
                warn!(reason, taken_over, retry_ms, "broker connection lost");
                reported = Some(reason.clone());
                if let Err(NoRoom) = self.outlet.send(Inbound::Down { reason, taken_over }) {
                    return;
                }
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.outlet.closed() => return,
            }
        }
    }

    /// Ends only with the connection.
    async fn connect_and_serve(
        &mut self,
        subscribed: &mut bool,
        up_since: &mut Option<Instant>,
    ) -> Ended {
        let (client, mut event_loop) = AsyncClient::new(self.config.options(), HANDOVER);
        let connected = tokio::select! {
            connected = timeout(self.config.connect_timeout, event_loop.poll()) => connected,
            () = self.outlet.closed() => return Ended::Unread,
        };
        let connack = match connected {
            Ok(Ok(Event::Incoming(Packet::ConnAck(connack)))) => connack,
            Ok(Ok(event)) => return Ended::lost(format!("expected CONNACK, found {event:?}")),
            Ok(Err(error)) => return error.into(),
            Err(_) => {
                return Ended::lost(format!(
                    "no CONNACK from {}:{} within {:?}",
                    self.config.host, self.config.port, self.config.connect_timeout
                ));
            }
        };
        let number = self.shared.connection.fetch_add(1, Ordering::Relaxed) + 1;
        let limits = Limits::of(&connack, &self.config);
        self.shared
            .packet_bytes_max
            .store(limits.packet_bytes_max, Ordering::Relaxed);
        // A broker that announces 0 turns keep-alive off (MQTT 5, 3.2.2.3.14); rumqttc would ping
        // without pause and give up at once.
        if event_loop.options.keep_alive().is_zero() {
            event_loop.options.set_keep_alive(self.config.keep_alive);
        }
        // Tokens of earlier connections would acknowledge other messages now.
        while self.acks.try_recv().is_ok() {}

        for publish in self.flights.remove_larger(limits.packet_bytes_max) {
            if let Err(NoRoom) = self
                .outlet
                .send(too_large(publish, limits.packet_bytes_max))
            {
                return Ended::Unread;
            }
        }
        self.flights.connected(connack.session_present);
        let kept = connack.session_present && *subscribed;
        let subscribing = !kept && !self.config.subscriptions.is_empty();
        if subscribing {
            let filters = self.config.subscriptions.iter().map(|filter| {
                let mut filter = Filter::new(filter, QoS::AtLeastOnce);
                // RETAIN as published: a retained request must be recognised also when it is live.
                filter.preserve_retain = true;
                filter
            });
            event_loop
                .pending
                .push_back(Request::Subscribe(Subscribe::new_many(filters, None)));
        }

        let now = Instant::now();
        let flow = Flow {
            state: Mutex::new(FlowState {
                flights: std::mem::take(&mut self.flights),
                open: false,
                n_unacked: 0,
                n_unwritten: usize::from(subscribing),
                progress: now,
                polled: now,
                pinged: None,
            }),
            changed: Notify::new(),
            limits,
            keep_alive: event_loop.options.keep_alive(),
        };
        let mut poll = Poll {
            config: &self.config,
            shared: &self.shared,
            outlet: &self.outlet,
            flow: &flow,
            number,
            session_present: connack.session_present,
        };
        info!(
            session_present = connack.session_present,
            number, "broker connected"
        );
        let ended = tokio::select! {
            biased;
            never = feed(&client, &flow, &self.outlet, &mut self.outbox, &mut self.close,
                         &mut self.held, &mut self.closing) => match never {},
            never = forward_acks(&client, &flow, &mut self.acks, number) => match never {},
            ended = watch(&flow, self.config.stall) => ended,
            () = self.outlet.closed() => Ended::Unread,
            ended = poll.run(&mut event_loop, subscribing, up_since) => ended,
        };
        if up_since.is_some() && subscribing {
            *subscribed = true;
        }
        poll.rest(&mut event_loop);
        self.flights = flow.into_flights();
        ended
    }
}

/// What the broker allows.
#[derive(Debug, Clone, Copy)]
struct Limits {
    packet_bytes_max: u32,
    /// QoS 1 publishes unacknowledged at a time.
    window: u16,
}

impl Limits {
    fn of(connack: &ConnAck, config: &LinkConfig) -> Limits {
        let properties = connack.properties.as_ref();
        let receive_max = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        let packet_bytes_max = properties.and_then(|p| p.max_packet_size);
        Limits {
            packet_bytes_max: packet_bytes_max.unwrap_or(PACKET_BYTES_MAX),
            // One less than rumqttc would use: at its own limit it reads no request any more, not
            // even an acknowledgement.
            window: config.inflight.min(receive_max.saturating_sub(1).max(1)),
        }
    }
}

/// What the futures of one connection share.
struct Flow {
    state: Mutex<FlowState>,
    /// The window or the gate opened, or the last acknowledgement came.
    changed: Notify,
    limits: Limits,
    keep_alive: Duration,
}

struct FlowState {
    flights: Flights,
    /// Subscribed: publishes may go.
    open: bool,
    /// QoS 1 messages given to the reader and not acknowledged by it.
    n_unacked: usize,
    /// Requests handed to rumqttc and not yet written, by our count.
    n_unwritten: usize,
    /// When rumqttc last wrote something, or began to owe it.
    progress: Instant,
    /// When poll last returned.
    polled: Instant,
    /// When the ping that is not answered yet was sent.
    pinged: Option<Instant>,
}

impl Flow {
    fn state(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn into_flights(self) -> Flights {
        self.state
            .into_inner()
            .expect("no holder of this lock panics")
            .flights
    }
}

impl FlowState {
    fn handing(&mut self) {
        if self.n_unwritten == 0 {
            self.progress = Instant::now();
        }
        self.n_unwritten += 1;
    }

    fn wrote(&mut self) {
        self.n_unwritten = self.n_unwritten.saturating_sub(1);
        self.progress = Instant::now();
    }

    /// When the connection is to be given up if nothing changes, and why.
    fn deadline(&self, stall: Duration, keep_alive: Duration) -> (Instant, &'static str) {
        // rumqttc pings after each keep-alive, so that poll returns at least that often.
        let mut first = (self.polled + keep_alive + stall, "the broker is silent");
        if self.n_unwritten > 0 {
            first = first.min((self.progress + stall, "the broker does not read"));
        }
        if let Some(pinged) = self.pinged {
            // rumqttc would find a missing answer only when the next ping is due.
            first = first.min((pinged + stall, "the broker does not answer a ping"));
        }
        if let Some(sent) = self.flights.oldest_sent() {
            first = first.min((
                sent.max(self.progress) + stall,
                "the broker does not acknowledge",
            ));
        }
        first
    }
}

/// Never returns; an uninhabited result says so to the compiler.
enum Never {}

/// Hands publishes to rumqttc, as far as the window allows; then, when closing, the last one.
async fn feed(
    client: &AsyncClient,
    flow: &Flow,
    outlet: &Outlet,
    outbox: &mut mpsc::Receiver<Publish>,
    close: &mut mpsc::Receiver<Close>,
    held: &mut Option<Publish>,
    closing: &mut Option<Close>,
) -> Never {
    while !flow.state().open {
        flow.changed.notified().await;
    }
    loop {
        if held.is_none() {
            *held = tokio::select! {
                biased;
                publish = outbox.recv() => publish,
                request = close.recv(), if closing.is_none() => {
                    *closing = request;
                    // What is queued still comes; then recv gives None.
                    outbox.close();
                    continue;
                }
            };
        }
        let publish = match held {
            Some(publish) => publish,
            None => match closing.as_mut().and_then(|close| close.last.take()) {
                Some(last) => held.insert(last),
                None => break,
            },
        };
        if publish.packet_bytes() > flow.limits.packet_bytes_max as usize {
            // Queued while another broker, or none, was connected.
            let publish = held.take().expect("held is Some, matched above");
            while !outlet.room_for_reply(flow.state().flights.n_tokens()) {
                outlet.taken().await;
            }
            let _ = outlet.send(too_large(publish, flow.limits.packet_bytes_max));
            continue;
        }
        if publish.at_least_once {
            while !flow.state().flights.room(flow.limits.window) {
                flow.changed.notified().await;
            }
            // A refusal is reported even without a token.
            while !outlet.room_for_reply(usize::from(flow.limits.window)) {
                outlet.taken().await;
            }
        }
        let publish = held.take().expect("held is Some, matched above");
        let (topic, qos, retain) = (publish.topic.clone(), publish.qos(), publish.retain);
        let (payload, properties) = (publish.payload.clone(), publish.properties());
        {
            let mut state = flow.state();
            state.handing();
            if publish.at_least_once {
                state.flights.hand(publish);
            }
        }
        let handed = client.publish_bytes_with_properties(topic, qos, retain, payload, properties);
        handed
            .await
            .expect("the topic was checked, and the event loop lives as long as we do");
    }
    // Closing, or all Links are gone and only the inbox is wanted.
    if closing.is_none() {
        return std::future::pending().await;
    }
    while !flow.state().flights.is_empty() {
        flow.changed.notified().await;
    }
    client
        .disconnect()
        .await
        .expect("the event loop lives as long as we do");
    std::future::pending().await
}

/// Hands acknowledgements to rumqttc.
async fn forward_acks(
    client: &AsyncClient,
    flow: &Flow,
    acks: &mut mpsc::Receiver<AckToken>,
    number: u64,
) -> Never {
    while let Some(ack) = acks.recv().await {
        if ack.connection == number {
            {
                let mut state = flow.state();
                state.handing();
                state.n_unacked = state.n_unacked.saturating_sub(1);
            }
            let packet = packets::Publish {
                pkid: ack.pkid,
                qos: QoS::AtLeastOnce,
                ..packets::Publish::default()
            };
            client
                .ack(&packet)
                .await
                .expect("the event loop lives as long as we do");
        }
    }
    std::future::pending().await
}

/// Returns when the connection makes no progress.
async fn watch(flow: &Flow, stall: Duration) -> Ended {
    loop {
        let now = Instant::now();
        let (deadline, reason) = flow.state().deadline(stall, flow.keep_alive);
        if deadline <= now {
            return Ended::lost(format!("{reason} for {stall:?}"));
        }
        // A nearer deadline may arise while we sleep; it is found at most half a stall late.
        sleep_until(deadline.min(now + stall / 2)).await;
    }
}

/// The poll future: waits for nothing but the network.
struct Poll<'a> {
    config: &'a LinkConfig,
    shared: &'a Shared,
    outlet: &'a Outlet,
    flow: &'a Flow,
    number: u64,
    session_present: bool,
}

impl Poll<'_> {
    async fn run(
        &mut self,
        event_loop: &mut EventLoop,
        subscribing: bool,
        up_since: &mut Option<Instant>,
    ) -> Ended {
        if !subscribing && let Err(ended) = self.up(up_since) {
            return ended;
        }
        loop {
            if up_since.is_some() {
                self.send_again(event_loop);
            }
            let event = event_loop.poll().await;
            self.flow.state().polled = Instant::now();
            let handled = match event {
                Ok(Event::Incoming(Packet::SubAck(suback))) => self
                    .subscribed(&suback.return_codes)
                    .and_then(|()| self.up(up_since)),
                Ok(Event::Incoming(packet)) => self.incoming(event_loop, packet),
                Ok(Event::Outgoing(outgoing)) => self.outgoing(outgoing),
                Err(error) => return error.into(),
            };
            if let Err(ended) = handled {
                return ended;
            }
        }
    }

    /// What rumqttc had read when the connection ended: acknowledgements save sending again.
    fn rest(&mut self, event_loop: &mut EventLoop) {
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

    fn up(&mut self, up_since: &mut Option<Instant>) -> Result<(), Ended> {
        if up_since.is_some() {
            return Ok(());
        }
        *up_since = Some(Instant::now());
        self.flow.state().open = true;
        self.flow.changed.notify_one();
        let packet_bytes_max = self.flow.limits.packet_bytes_max;
        let up = Inbound::Up {
            session_present: self.session_present,
            packet_bytes_max,
        };
        self.outlet.send(up).map_err(|NoRoom| Ended::Unread)
    }

    /// Puts what an earlier connection left unacknowledged before everything new.
    fn send_again(&mut self, event_loop: &mut EventLoop) {
        let mut state = self.flow.state();
        while let Some(packet) = state.flights.next_again(self.flow.limits.window) {
            state.handing();
            event_loop.pending.push_back(Request::Publish(packet));
        }
    }

    fn subscribed(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), Ended> {
        for (filter, code) in self.config.subscriptions.iter().zip(codes) {
            if !matches!(code, SubscribeReasonCode::Success(_)) {
                let reason = format!("{code:?}");
                warn!(filter, reason, "broker refused a subscription");
                let refused = Inbound::SubscribeRefused {
                    filter: filter.clone(),
                    reason,
                };
                self.outlet.send(refused).map_err(|NoRoom| Ended::Unread)?;
            }
        }
        Ok(())
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
            Outgoing::Subscribe(_) | Outgoing::PubAck(_) => state.wrote(),
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
        let Some(message) = Message::from_packet(publish, self.number) else {
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
            let receive_max = self.config.receive_max;
            {
                let mut state = self.flow.state();
                if state.n_unacked >= usize::from(receive_max) {
                    return Err(Ended::lost(format!(
                        "the broker sent more than {receive_max} messages without acknowledgement"
                    )));
                }
                state.n_unacked += 1;
            }
            return self
                .outlet
                .send(Inbound::Message(message))
                .map_err(|NoRoom| Ended::Unread);
        }
        let message = Inbound::Message(message);
        if let Err(NoRoom) = self.outlet.send_droppable(message, self.config.inflight) {
            self.shared.n_dropped.fetch_add(1, Ordering::Relaxed);
            debug!("inbox full, QoS 0 message dropped");
        }
        Ok(())
    }

    fn acknowledged(&mut self, pkid: u16, reason: PubAckReason) -> Result<(), Ended> {
        let publish = {
            let mut state = self.flow.state();
            state.progress = Instant::now();
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

fn too_large(publish: Publish, allowed: u32) -> Inbound {
    let found = publish.packet_bytes();
    warn!(
        topic = publish.topic,
        found, allowed, "publish larger than this broker takes, dropped"
    );
    Inbound::Undelivered {
        token: publish.token,
        topic: publish.topic,
        reason: format!("packet of {found} bytes, the broker takes at most {allowed}"),
    }
}
