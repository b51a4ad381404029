//! Two daemons in one pool: work is spread, and every prompt ends once at a receiver that follows the
//! contract, whatever happens to either.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use orinoco::link::Props;
use orinoco::wire::report::{Mode, State};
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

const POOL: &str = "hall2";

fn member(port: u16, node: &'static str) -> Site {
    Site::with_broker_on(port, Engine::Scripted)
        .named(node)
        .set(format!("pools.names={POOL}"))
        .set("pools.settle_ms=100")
}

/// Waits until the node says that it takes from its pools, or not.
async fn until_taking(client: &mut Client, taking: bool) {
    client
        .until("the node's part in its pools", move |_, client| {
            let state = client.documents.get("state");
            let state = state.and_then(|bytes| serde_json::from_slice::<State>(bytes).ok());
            state.is_some_and(|state| state.pools.is_some_and(|pools| pools.taking == taking))
        })
        .await;
}

#[tokio::test]
async fn a_pool_of_one_answers() {
    let broker = Mosquitto::start().await;
    let site = member(broker.port(), "a");
    let _daemon: Daemon = site.start();
    let mut client = Client::connect(broker.port(), "a", "plc4", None).await;
    client.until_mode(Mode::Serving).await;
    until_taking(&mut client, true).await;
    let topic = format!("orinoco/v1/pool/{POOL}/req/plc4/chat/p1");
    client
        .publish(topic, "!count !tokens 20".into(), Props::default())
        .await;
    client.until_ended(&["p1".to_owned()]).await;
    assert_eq!(client.text("p1").len(), 20);
}
