//! What goes out: the futures that hand publishes and acknowledgements to rumqttc as far as the broker
//! allows, and the one that notices when nothing goes out any more.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{self as packets, ConnAck};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use super::ended::Ended;
use super::flight::Flights;
use super::inbox::Outlet;
use super::packet::{PACKET_BYTES_MAX, Publish};
use super::{AckToken, Close, Inbound, LinkConfig};

/// What the broker allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) packet_bytes_max: u32,
    /// QoS 1 publishes unacknowledged at a time.
    pub(super) window: u16,
}

impl Limits {
    /// # Errors
    /// A limit within which nothing can be sent, in a sentence. rumqttc would take the connection for good
    /// and stop reading its queue.
    pub(super) fn of(connack: &ConnAck, config: &LinkConfig) -> Result<Limits, String> {
        let properties = connack.properties.as_ref();
        let receive_max = properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX);
        let packet_bytes_max = properties.and_then(|p| p.max_packet_size);
        let packet_bytes_max = packet_bytes_max.unwrap_or(PACKET_BYTES_MAX);
        for (name, value) in [
            ("Receive Maximum", u32::from(receive_max)),
            ("Maximum Packet Size", packet_bytes_max),
        ] {
            if value == 0 {
                return Err(format!(
                    "the broker announces {name} 0, which no broker may"
                ));
            }
        }
        if properties.and_then(|p| p.max_qos) == Some(0) {
            return Err("the broker takes no QoS 1, without which messages get lost".into());
        }
        Ok(Limits {
            packet_bytes_max,
            // One less than rumqttc would use: at its own limit it reads no request any more, not
            // even an acknowledgement.
            window: config.inflight.min(receive_max.saturating_sub(1).max(1)),
        })
    }
}

/// What the futures of one connection share.
pub(super) struct Flow {
    state: Mutex<FlowState>,
    /// The window or the gate opened, or the last acknowledgement came.
    pub(super) changed: Notify,
    /// The gate opened, or the last acknowledgement of a change of filters came.
    pub(super) switched: Notify,
    pub(super) limits: Limits,
    keep_alive: Duration,
}

pub(super) struct FlowState {
    pub(super) flights: Flights,
    /// Subscribed: publishes may go.
    pub(super) open: bool,
    /// QoS 1 messages given to the reader and not acknowledged by it.
    pub(super) n_unacked: usize,
    /// Acknowledgements that a change of filters still waits for.
    pub(super) n_switching: usize,
    /// Requests handed to rumqttc and not yet written, by our count.
    n_unwritten: usize,
    /// When we subscribed, until the broker confirms it.
    pub(super) subscribing: Option<Instant>,
    /// When rumqttc last wrote something, or began to owe it.
    progress: Instant,
    /// When poll last returned.
    pub(super) polled: Instant,
    /// When the ping that is not answered yet was sent.
    pub(super) pinged: Option<Instant>,
    /// When the broker last acknowledged the publish whose turn it was.
    pub(super) acked: Instant,
}

impl Flow {
    pub(super) fn new(flights: Flights, limits: Limits, keep_alive: Duration) -> Flow {
        let now = Instant::now();
        let state = FlowState {
            flights,
            open: false,
            n_unacked: 0,
            n_switching: 0,
            n_unwritten: 0,
            subscribing: None,
            progress: now,
            polled: now,
            pinged: None,
            acked: now,
        };
        Flow {
            state: Mutex::new(state),
            changed: Notify::new(),
            switched: Notify::new(),
            limits,
            keep_alive,
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().expect("no holder of this lock panics")
    }

    pub(super) fn into_flights(self) -> Flights {
        self.state
            .into_inner()
            .expect("no holder of this lock panics")
            .flights
    }
}

impl FlowState {
    pub(super) fn handing(&mut self) {
        if self.n_unwritten == 0 {
            self.progress = Instant::now();
        }
        self.n_unwritten += 1;
    }

    /// `n` requests of a change of filters are being handed over.
    pub(super) fn switching(&mut self, n: usize) {
        self.n_switching = n;
        (0..n).for_each(|_| self.handing());
    }

    pub(super) fn wrote(&mut self) {
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
        if let Some(subscribing) = self.subscribing {
            let reason = "the broker does not confirm our subscriptions";
            first = first.min((subscribing + stall, reason));
        }
        if let Some(pinged) = self.pinged {
            // rumqttc would find a missing answer only when the next ping is due.
            first = first.min((pinged + stall, "the broker does not answer a ping"));
        }
        if let Some(sent) = self.flights.oldest_sent() {
            first = first.min((
                sent.max(self.acked) + stall,
                "the broker does not acknowledge",
            ));
        }
        first
    }
}

/// Never returns; an uninhabited result says so to the compiler.
pub(super) enum Never {}

/// Hands publishes to rumqttc, as far as the window allows; then, when closing, the last one.
pub(super) async fn feed(
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
            while !outlet.room_for_reply(flow.state().flights.len()) {
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
pub(super) async fn forward_acks(
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
pub(super) async fn watch(flow: &Flow, stall: Duration) -> Ended {
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

pub(super) fn too_large(publish: Publish, allowed: u32) -> Inbound {
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
