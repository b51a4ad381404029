//! Two daemons in one pool, and the reference client (examples/pool_client.rs): work is spread, and every
//! prompt ends once at the receiver, whatever happens to either.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../examples/pool_client.rs"]
#[allow(unreachable_pub, reason = "it is a program of its own")]
mod pool_client;
mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use orinoco::wire::report::State;
use orinoco::wire::topic::Name;
use pool_client::PoolClient;
use support::broker::Mosquitto;
use support::daemon::{Daemon, Engine, Site};
use support::requester::Client;

const POOL: &str = "hall2";
const LIMIT: Duration = Duration::from_secs(60);

fn member(site: Site, node: &'static str) -> Site {
    site.named(node)
        .set(format!("pools.names={POOL}"))
        .set("pools.settle_ms=100")
        .set("engine.n_seq_max=2")
}

/// A started member, and an eye on what it says of itself.
struct Member {
    site: Site,
    daemon: Option<Daemon>,
    eye: Client,
}

impl Member {
    /// On a broker of the test's with this port, or with a broker of its own.
    async fn start(site: Site, port: Option<u16>) -> Self {
        let daemon = site.start();
        // Each eye is a user of its own; without accounts the embedded broker knows one only.
        let (port, user) = match port {
            Some(port) => (port, format!("eye-{}", site.node)),
            None => (daemon.port, "local".to_owned()),
        };
        let eye = Client::connect(port, site.node, &user, None).await;
        let mut member = Self {
            site,
            daemon: Some(daemon),
            eye,
        };
        member.until_taking(true).await;
        member
    }

    /// Waits until the node says that it takes from its pools, or not.
    async fn until_taking(&mut self, taking: bool) {
        let says = move |_: bool, eye: &Client| {
            let state = eye.documents.get("state");
            let state = state.and_then(|bytes| serde_json::from_slice::<State>(bytes).ok());
            state
                .and_then(|state| state.pools)
                .is_some_and(|pools| pools.taking == taking)
        };
        self.eye.until("the node's part in its pools", says).await;
    }
}

/// Two members on one Mosquitto, and a client of their pool.
async fn pool_of_two() -> (Mosquitto, Member, Member, PoolClient) {
    let broker = Mosquitto::start().await;
    let on = |node| member(Site::with_broker_on(broker.port(), Engine::Scripted), node);
    let a = Member::start(on("a"), Some(broker.port())).await;
    let b = Member::start(on("b"), Some(broker.port())).await;
    let client = client(broker.port(), "plc4");
    (broker, a, b, client)
}

fn client(port: u16, user: &str) -> PoolClient {
    let name = |text| Name::new(text).unwrap();
    PoolClient::connect(port, "orinoco", name(POOL), name(user))
}

async fn until(client: &mut PoolClient, what: &str, done: impl Fn(&PoolClient) -> bool) {
    let wait = async {
        while !done(client) {
            client.step().await;
        }
    };
    assert!(
        tokio::time::timeout(LIMIT, wait).await.is_ok(),
        "waited for: {what}"
    );
}

async fn until_done(client: &mut PoolClient) {
    until(client, "all answers", PoolClient::is_done).await;
}

/// Each of these questions ended once, with so many bytes of `0 1 2 3 …`.
fn assert_whole(client: &PoolClient, ids: &[String], bytes: usize) {
    for id in ids {
        let answer = client.answer(id);
        let outcome = &answer.end().unwrap().outcome;
        assert!(outcome.is_ok(), "{id}: {outcome:?}");
        assert_eq!(answer.text().len(), bytes, "{id}: {:?}", answer.text());
        assert!(answer.text().starts_with("0 1 2 "), "{id}");
        assert_eq!(client.ends[id], 1, "{id}");
    }
    assert!(client.faults.is_empty(), "{:?}", client.faults);
}

fn nodes(client: &PoolClient, ids: &[String]) -> BTreeSet<String> {
    let node = |id: &String| client.answer(id).node().unwrap().to_string();
    ids.iter().map(node).collect()
}

async fn ask(client: &mut PoolClient, prefix: &str, n: usize, body: &str) -> Vec<String> {
    let ids: Vec<String> = (0..n).map(|at| format!("{prefix}{at}")).collect();
    for id in &ids {
        client.ask(id, body).await;
    }
    ids
}

#[tokio::test]
async fn work_is_spread_and_each_prompt_ends_once() {
    let (_broker, _a, _b, mut client) = pool_of_two().await;
    let ids = ask(&mut client, "s", 12, "!count !tokens 60 !step 5").await;
    until_done(&mut client).await;
    assert_whole(&client, &ids, 60);
    assert_eq!(
        nodes(&client, &ids),
        ["a".to_owned(), "b".to_owned()].into()
    );
}

#[tokio::test]
async fn a_full_node_leaves_its_pool_the_other_takes_and_it_returns() {
    let (broker, mut a, _b, mut client) = pool_of_two().await;
    // Direct questions fill node a: two run, two wait.
    let mut other = Client::connect(broker.port(), "a", "scada", None).await;
    for n in 0..4 {
        other
            .ask("chat", &format!("d{n}"), "!count !tokens 4000 !step 5")
            .await;
    }
    a.until_taking(false).await;
    let ids = ask(&mut client, "f", 3, "!count !tokens 20").await;
    until_done(&mut client).await;
    assert_whole(&client, &ids, 20);
    assert_eq!(nodes(&client, &ids), ["b".to_owned()].into());
    for n in 0..4 {
        other.cancel(&format!("d{n}")).await;
    }
    a.until_taking(true).await;
}

#[tokio::test]
async fn a_node_that_stops_finishes_what_it_has_and_gets_nothing_more() {
    let (_broker, mut a, _b, mut client) = pool_of_two().await;
    let before = ask(&mut client, "b", 4, "!count !tokens 200 !step 5").await;
    until(&mut client, "all accepted", |client| {
        before.iter().all(|id| client.answer(id).node().is_some())
    })
    .await;
    let daemon = a.daemon.take().unwrap();
    let stopped = tokio::task::spawn_blocking(move || daemon.stop());
    a.until_taking(false).await;
    let after = ask(&mut client, "n", 4, "!count !tokens 20").await;
    until_done(&mut client).await;
    assert_eq!(stopped.await.unwrap(), 0);
    assert_whole(&client, &before, 200);
    assert_whole(&client, &after, 20);
    assert_eq!(nodes(&client, &after), ["b".to_owned()].into());
}

#[tokio::test]
async fn a_node_killed_in_the_middle_loses_no_prompt_whether_it_returns_or_not() {
    let (_broker, mut a, _b, mut client) = pool_of_two().await;
    let ids = ask(&mut client, "k", 4, "!count !tokens 300 !step 20").await;
    until(&mut client, "text of all", |client| {
        ids.iter().all(|id| client.answer(id).text().len() > 20)
    })
    .await;
    let of_a = |client: &PoolClient, id: &String| client.answer(id).node().unwrap().as_str() == "a";
    assert!(ids.iter().any(|id| of_a(&client, id)), "a has some of them");
    a.daemon.take().unwrap().power_cut();
    // Nobody restarts it until the other has taken over.
    until_done(&mut client).await;
    assert_whole(&client, &ids, 300);
    assert_eq!(nodes(&client, &ids), ["b".to_owned()].into());
    // It returns with what it accepted, hears that it was called off, and takes part again.
    a.daemon = Some(a.site.start());
    a.until_taking(false).await;
    a.until_taking(true).await;
    let more = ask(&mut client, "m", 4, "!count !tokens 20").await;
    until_done(&mut client).await;
    assert_whole(&client, &more, 20);
    assert_whole(&client, &ids, 300);
}

#[tokio::test]
async fn a_question_to_a_pool_is_called_off_wherever_it_is() {
    let (_broker, _a, _b, mut client) = pool_of_two().await;
    let ids = ask(&mut client, "c", 6, "!count !tokens 4000 !step 5").await;
    until(&mut client, "all accepted", |client| {
        ids.iter().all(|id| client.answer(id).node().is_some())
    })
    .await;
    for id in &ids {
        client.cancel(id).await;
    }
    // This one before anybody accepted it.
    client.ask("early", "!count !tokens 4000 !step 5").await;
    client.cancel("early").await;
    until_done(&mut client).await;
    for id in ids.iter().chain(&["early".to_owned()]) {
        let outcome = client.answer(id).end().unwrap().outcome.as_ref().unwrap();
        assert_eq!(outcome.finish_reason, "cancelled", "{id}");
    }
}

#[tokio::test]
async fn on_the_embedded_broker_it_is_the_same() {
    let first = member(Site::with_own_broker(Engine::Scripted), "a");
    let mut a = Member::start(first, None).await;
    let mut client = client(a.daemon.as_ref().unwrap().port, "local");
    let ids = ask(&mut client, "e", 6, "!count !tokens 60 !step 2").await;
    until_done(&mut client).await;
    assert_whole(&client, &ids, 60);
    client.ask("long", "!count !tokens 4000 !step 5").await;
    until(&mut client, "text", |client| {
        !client.answer("long").text().is_empty()
    })
    .await;
    client.cancel("long").await;
    until_done(&mut client).await;
    a.until_taking(true).await;
}

/// `orinoco ask` as a person runs it, with none of this machine's configuration.
async fn orinoco_ask(port: u16, args: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_orinoco"));
    command
        .env_clear()
        .args(["ask", "--host", "127.0.0.1", "--port", &port.to_string()])
        .args(args);
    let output = tokio::task::spawn_blocking(move || command.output());
    output.await.unwrap().expect("the program starts")
}

#[tokio::test]
async fn a_person_asks_a_pool_from_a_terminal() {
    let (broker, _a, _b, _client) = pool_of_two().await;
    let output = orinoco_ask(broker.port(), &["--pool", POOL, "!count !tokens 20"]).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(output.stdout, b"0 1 2 3 4 5 6 7 8 9 \n");

    let nobody = ["--pool", "empty", "--accept-seconds", "1", "Hello"];
    let output = orinoco_ask(broker.port(), &nobody).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(69), "{said}");
    assert!(said.contains("nobody in the pool empty"), "{said}");
}

#[tokio::test]
async fn a_person_is_told_when_another_node_takes_over() {
    let (broker, a, b, _client) = pool_of_two().await;
    let mut eye = Client::watch(broker.port(), "orinoco/v1/resp/#").await;
    let args = ["--pool", POOL, "!count !tokens 400 !step 20"];
    let asking = orinoco_ask(broker.port(), &args);
    let kill = async {
        eye.until("some text", |_, eye| {
            eye.answers.values().any(|answer| answer.text().len() > 20)
        })
        .await;
        let answer = eye.answers.values().next().unwrap();
        let asked = answer.node().unwrap().to_string();
        let [mut killed, lives] = if asked == "a" { [a, b] } else { [b, a] };
        killed.daemon.take().unwrap().power_cut();
        (asked, lives)
    };
    let (output, (asked, _lives)) = tokio::join!(asking, kill);
    let (said, text) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    assert_eq!(output.status.code(), Some(0), "{said}");
    let gone = format!("the node {asked} is gone; asking the pool again");
    assert!(said.contains(&gone) && said.contains("is void"), "{said}");
    let (void, whole) = text.trim_end().rsplit_once('\n').unwrap();
    assert!(whole.starts_with("0 1 2 ") && whole.len() == 400, "{text}");
    assert!(whole.starts_with(void), "{text}");
}
