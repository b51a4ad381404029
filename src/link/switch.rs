//! Filters that come and go while a connection lasts: a member of a shared subscription leaves its group
//! while it has enough to do.
//!
//! One change at a time, the next one after its acknowledgement, so that the last word of the caller and
//! the broker's table always agree in the end.

use rumqttc::v5::AsyncClient;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, SubscribeReasonCode};
use tokio::sync::watch;
use tokio::time::timeout;

use super::ended::Ended;
use super::flow::Flow;
use super::inbox::{NoRoom, Outlet};
use super::poll::{Poll, refusals};
use super::{Inbound, LinkConfig};

/// A filter as this client subscribes to it.
pub(super) fn filter(filter: &String) -> Filter {
    let mut filter = Filter::new(filter, QoS::AtLeastOnce);
    // RETAIN as published: a retained request must be recognised also when it is live.
    filter.preserve_retain = true;
    filter
}

/// Subscribes and unsubscribes as `wanted` says. Returns when the broker does not answer.
pub(super) async fn follow(
    client: &AsyncClient,
    flow: &Flow,
    outlet: &Outlet,
    config: &LinkConfig,
    wanted: &mut watch::Receiver<bool>,
) -> Ended {
    let filters = &config.switched;
    if filters.is_empty() {
        return std::future::pending().await;
    }
    while !flow.state().open {
        flow.switched.notified().await;
    }
    let mut on = false; // The session is a clean one.
    loop {
        while *wanted.borrow_and_update() == on {
            if wanted.changed().await.is_err() {
                return std::future::pending().await; // Every Link is gone; only the inbox is read.
            }
        }
        // The reports on one change: a refusal for each filter, and the outcome.
        while !outlet.room_for_reply(filters.len() + 1) {
            outlet.taken().await;
        }
        on = !on;
        let handed = match on {
            true => {
                flow.state().switching(1);
                client.subscribe_many(filters.iter().map(filter)).await
            }
            false => {
                flow.state().switching(filters.len());
                let mut handed = Ok(());
                for filter in filters {
                    handed = handed.and(client.unsubscribe(filter).await);
                }
                handed
            }
        };
        if let Err(error) = handed {
            return Ended::lost(format!("a filter that cannot be subscribed: {error}"));
        }
        let confirmed = async {
            while flow.state().n_switching > 0 {
                flow.switched.notified().await;
            }
        };
        if timeout(config.stall, confirmed).await.is_err() {
            let stall = config.stall;
            return Ended::lost(format!(
                "the broker does not confirm a subscription for {stall:?}"
            ));
        }
    }
}

impl Poll<'_> {
    /// SUBACK of a change.
    pub(super) fn switched_on(&mut self, codes: &[SubscribeReasonCode]) -> Result<(), Ended> {
        if self.flow.state().n_switching == 0 {
            return Ok(()); // Nobody asked. There is no room in the inbox for answers to nothing.
        }
        refusals(self.outlet, &self.config.switched, codes)?;
        let on = codes
            .iter()
            .any(|code| matches!(code, SubscribeReasonCode::Success(_)));
        self.switched(on)
    }

    /// UNSUBACK of a change. That there was no such subscription is as good.
    pub(super) fn switched_off(&mut self) -> Result<(), Ended> {
        if self.flow.state().n_switching == 0 {
            return Ok(());
        }
        self.switched(false)
    }

    fn switched(&mut self, on: bool) -> Result<(), Ended> {
        let left = {
            let mut state = self.flow.state();
            state.n_switching = state.n_switching.saturating_sub(1);
            state.n_switching
        };
        if left > 0 {
            return Ok(());
        }
        self.flow.switched.notify_one();
        self.outlet
            .send(Inbound::Listening { on })
            .map_err(|NoRoom| Ended::Unread)
    }
}
