//! The task of a link: one connection after the other, and the futures that serve each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5::{ConnAck, Packet};
use rumqttc::v5::{AsyncClient, Event, EventLoop};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::backoff::{Backoff, random};
use super::ended::{Cause, Ended};
use super::excess::Excess;
use super::flight::Flights;
use super::flow::{Flow, Limits, feed, forward_acks, too_large, watch};
use super::inbox::{NoRoom, Outlet};
use super::packet::Publish;
use super::poll::{Poll, Subscribing};
use super::relay::Relay;
use super::switch::follow;
use super::tls::{Tls, TlsFiles};
use super::{AckToken, Close, Inbound, LinkConfig, Shared};

/// Requests that wait between our futures and rumqttc. Small: what is here is lost to QoS 0.
const HANDOVER: usize = 16;

/// A connection that the broker closes sooner than this may have been taken over. rumqttc cannot
/// tell: a DISCONNECT of three bytes, reason without properties (MQTT 5, 3.14.2.2.1), which is what
/// Mosquitto sends, is to it an incomplete packet, and is dropped.
const THROWN_OUT: Duration = Duration::from_secs(10);

/// So many of them in a row are reported as a takeover. One can be a broker's restart.
const THROWN_OUT_TIMES: u32 = 2;

/// So many packets in a row that are larger than announced are the same one, from the session: MQTT asks a
/// broker to discard it (MQTT 5, 3.1.2.11.4), and this one does not.
const TOO_LARGE_TIMES: u32 = 2;

/// Everything that outlives a connection.
pub(super) struct Session {
    pub(super) config: LinkConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) outbox: mpsc::Receiver<Publish>,
    pub(super) acks: mpsc::Receiver<AckToken>,
    pub(super) close: mpsc::Receiver<Close>,
    /// Whether the switched filters are wanted.
    pub(super) wanted: watch::Receiver<bool>,
    pub(super) outlet: Outlet,
    /// Taken from the outbox and not handed over yet.
    pub(super) held: Option<Publish>,
    pub(super) closing: Option<Close>,
    pub(super) flights: Flights,
    /// The broker confirmed our subscriptions once; a kept session has them still.
    pub(super) subscribed: bool,
}

/// What became of one connection.
#[derive(Debug, Default)]
struct Life {
    /// CONNACK.
    since: Option<Instant>,
    /// Reported as up.
    up: bool,
}

impl Session {
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(self.config.backoff_min, self.config.backoff_max);
        let mut reported: Option<String> = None;
        let mut n_thrown_out = 0u32;
        let mut n_too_large = 0u32;
        loop {
            let replies = self.flights.len();
            tokio::select! {
                () = self.outlet.room_for_connection(replies) => {}
                () = self.outlet.closed() => return,
            }
            let mut life = Life::default();
            let fresh = n_too_large >= TOO_LARGE_TIMES;
            let ended = self.connect_and_serve(&mut life, fresh).await;
            self.flights.connection_lost();
            let (mut reason, cause) = match ended {
                Ended::Lost { reason, cause } => (reason, cause),
                Ended::Closed => {
                    if let Some(closing) = self.closing {
                        // The caller may have stopped waiting.
                        let _ = closing.done.send(());
                    }
                    return;
                }
                Ended::Unread => return,
            };
            let served = life.since.map_or(Duration::ZERO, |since| since.elapsed());
            let by_broker = cause == Cause::ByBroker;
            let thrown_out = by_broker && life.since.is_some() && served < THROWN_OUT;
            n_thrown_out = if thrown_out { n_thrown_out + 1 } else { 0 };
            let mut taken_over = cause == Cause::TakenOver;
            if n_thrown_out >= THROWN_OUT_TIMES {
                taken_over = true;
                reason = format!(
                    "the broker closed {n_thrown_out} connections in a row soon after it took \
                     them; is another client running with the client id {:?}?",
                    self.config.client_id
                );
            }
            n_too_large = match cause {
                Cause::TooLarge => n_too_large + 1,
                // An attempt that found nobody changes nothing about the session.
                _ if life.since.is_none() => n_too_large,
                _ => 0,
            };
            if n_too_large >= TOO_LARGE_TIMES {
                reason.push_str("; its session is given up, or it would send it for ever");
            }
            let wait = if taken_over {
                backoff.after_takeover()
            } else {
                backoff.after(served, random())
            };
            if life.up || reported.as_ref() != Some(&reason) {
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

    /// Ends only with the connection. `fresh`: without the session that the broker may have.
    async fn connect_and_serve(&mut self, life: &mut Life, fresh: bool) -> Ended {
        let opening = Opened::open(&self.config, fresh);
        let opened = tokio::select! {
            opened = timeout(self.config.connect_timeout, opening) => opened,
            () = self.outlet.closed() => return Ended::Unread,
        };
        let Opened {
            client,
            mut event_loop,
            connack,
            secured,
        } = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(ended)) => return ended,
            Err(_) => {
                return Ended::lost(format!(
                    "no CONNACK from {}:{} within {:?}",
                    self.config.host, self.config.port, self.config.connect_timeout
                ));
            }
        };
        life.since = Some(Instant::now());
        let limits = match Limits::of(&connack, &self.config) {
            Ok(limits) => limits,
            Err(reason) => return Ended::lost(reason),
        };
        let number = self.shared.connection.fetch_add(1, Ordering::Relaxed) + 1;
        // A broker that keeps what it was told to forget is not believed.
        let session_present = connack.session_present && !fresh && !self.config.clean_start;
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
        self.flights.connected(session_present);
        let subscribing = match self.config.subscriptions.is_empty() {
            true => Subscribing::Not,
            false if session_present && self.subscribed => Subscribing::Later,
            false => Subscribing::First,
        };

        let flow = Flow::new(
            std::mem::take(&mut self.flights),
            limits,
            event_loop.options.keep_alive(),
        );
        let mut poll = Poll {
            config: &self.config,
            shared: &self.shared,
            outlet: &self.outlet,
            flow: &flow,
            number,
            session_present,
            subscribing,
            up: false,
            early: Vec::new(),
            excess: Excess::default(),
        };
        let tls = secured.is_some();
        info!(session_present, tls, number, "broker connected");
        let ended = tokio::select! {
            biased;
            never = feed(&client, &flow, &self.outlet, &mut self.outbox, &mut self.close,
                         &mut self.held, &mut self.closing) => match never {},
            never = forward_acks(&client, &flow, &mut self.acks, number) => match never {},
            ended = watch(&flow, self.config.stall) => ended,
            ended = follow(&client, &flow, &self.outlet, &self.config, &mut self.wanted) => ended,
            () = self.outlet.closed() => Ended::Unread,
            ended = poll.run(&mut event_loop) => ended,
        };
        life.up = poll.up;
        self.subscribed |= poll.up;
        poll.rest(&mut event_loop);
        self.flights = flow.into_flights();
        drop(event_loop);
        match secured {
            Some(secured) => secured.end(ended).await,
            None => ended,
        }
    }
}

/// A connection with its CONNACK.
struct Opened {
    client: AsyncClient,
    event_loop: EventLoop,
    connack: ConnAck,
    secured: Option<Secured>,
}

impl Opened {
    async fn open(config: &LinkConfig, fresh: bool) -> Result<Opened, Ended> {
        let secured = match &config.tls {
            Some(files) => Some(Secured::open(config, files).await.map_err(Ended::lost)?),
            None => None,
        };
        let relay = secured.as_ref().map(|secured| secured.relay.address());
        let mut options = config.options(relay);
        options.set_clean_start(config.clean_start || fresh);
        let (client, mut event_loop) = AsyncClient::new(options, HANDOVER);
        let ended = match event_loop.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(connack))) => {
                return Ok(Opened {
                    client,
                    event_loop,
                    connack,
                    secured,
                });
            }
            Ok(event) => return Err(Ended::lost(format!("expected CONNACK, found {event:?}"))),
            Err(error) => Ended::from(error),
        };
        drop(event_loop);
        Err(match secured {
            Some(secured) => secured.end_without_connack(ended).await,
            None => in_clear(ended, config.port),
        })
    }
}

/// TLS below rumqttc.
struct Secured {
    tls: Tls,
    relay: Relay,
}

impl Secured {
    async fn open(config: &LinkConfig, files: &TlsFiles) -> Result<Secured, String> {
        let (files, host) = (files.clone(), config.host.clone());
        let tls = tokio::task::spawn_blocking(move || Tls::load(&files, &host))
            .await
            .map_err(|error| format!("read the TLS files: {error}"))?
            .map_err(|error| error.to_string())?;
        let stream = tls.connect(&config.host, config.port).await?;
        let relay = Relay::start(stream).map_err(|error| format!("local socket: {error}"))?;
        Ok(Secured { tls, relay })
    }

    /// Sends what rumqttc wrote last, and says what TLS knows of the end. rumqttc's side is closed.
    async fn end(self, ended: Ended) -> Ended {
        match ended {
            Ended::Closed => {
                self.relay.end().await;
                Ended::Closed
            }
            Ended::Lost {
                reason,
                cause: Cause::ByBroker,
            } => {
                let error = self.relay.end().await;
                let by_tls = error.and_then(|error| self.tls.explain(&error));
                Ended::Lost {
                    reason: by_tls.unwrap_or(reason),
                    cause: Cause::ByBroker,
                }
            }
            // Nothing to wait for: the broker is silent, or the inbox was dropped.
            ended => ended,
        }
    }

    /// As [`Secured::end`]; the broker may have closed the connection for our certificate's sake.
    async fn end_without_connack(self, ended: Ended) -> Ended {
        let is_unexplained = matches!(
            &ended,
            Ended::Lost {
                cause: Cause::ByBroker,
                ..
            }
        );
        let Some(guess) = self.tls.after_handshake().filter(|_| is_unexplained) else {
            return self.end(ended).await;
        };
        let error = self.relay.end().await;
        let by_tls = error.and_then(|error| self.tls.explain(&error));
        Ended::lost(by_tls.unwrap_or_else(|| guess.into()))
    }
}

/// A port for TLS closes a connection that begins with CONNECT, or answers it with an alert.
fn in_clear(ended: Ended, port: u16) -> Ended {
    match ended {
        Ended::Lost {
            reason,
            cause: Cause::ByBroker,
        } => Ended::lost(format!(
            "{reason}, without CONNACK; is {port} a port for TLS?"
        )),
        ended => ended,
    }
}
