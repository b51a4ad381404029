//! A requester that follows the contract, over the product's own link.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use orinoco::link::{self, Credentials, Inbound, Inbox, Link, LinkConfig, Props, Publish};
use orinoco::receive::{Heard, Receiver};
use orinoco::wire::report::{Mode, State};
use tokio::time::{Instant, timeout_at};

/// Nothing here is silent for longer, on a slow machine either.
const SILENCE: Duration = Duration::from_secs(60);
/// No wait takes longer, however much is said meanwhile.
const PATIENCE: Duration = Duration::from_secs(600);

pub struct Client {
    pub link: Link,
    inbox: Inbox,
    user: String,
    node: String,
    /// Answers by request id.
    pub answers: BTreeMap<String, Receiver>,
    /// Bare messages by request id, for ops text and text-stream.
    pub bare: BTreeMap<String, Vec<Bytes>>,
    /// Finals by request id: every different payload that said `final`.
    pub finals: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// Requests before each one, as `accepted` said.
    pub queued: BTreeMap<String, u64>,
    /// Why each one paused, in order.
    pub pauses: BTreeMap<String, Vec<String>>,
    /// Those that were told that another model serves than their own.
    pub loading: BTreeSet<String>,
    /// What broke the contract.
    pub faults: Vec<String>,
    /// Correlation data of all answers.
    pub correlations: Vec<Bytes>,
    /// Latest retained documents by the last level of their topic.
    pub documents: BTreeMap<String, Bytes>,
    /// All events, in their order; nobody is subscribed to them but who watches them.
    pub events: Vec<Bytes>,
}

impl Client {
    /// Connects and is subscribed on return.
    pub async fn connect(port: u16, node: &str, user: &str, password: Option<&str>) -> Self {
        let mut config = LinkConfig::new("127.0.0.1", port, format!("test-{user}-{port}"));
        config.backoff_max = Duration::from_millis(500);
        config.credentials = password.map(|password| Credentials {
            user: user.into(),
            password: password.into(),
        });
        Self::connect_with(config, node, user).await
    }

    /// Connects in a way of its own; the subscriptions are those of a requester.
    pub async fn connect_with(mut config: LinkConfig, node: &str, user: &str) -> Self {
        config.subscriptions = vec![
            format!("orinoco/v1/resp/{user}/#"),
            format!("orinoco/v1/{node}/status"),
            format!("orinoco/v1/{node}/info"),
            format!("orinoco/v1/{node}/models"),
            format!("orinoco/v1/{node}/state"),
            format!("orinoco/v1/{node}/tele/#"),
        ];
        Self::with(config, user, node).await
    }

    /// The same user, when the broker is back: what it has heard of answers so far goes with it, and the broker has
    /// kept the rest.
    pub async fn again(self, port: u16) -> Self {
        let Self {
            link,
            inbox,
            user,
            node,
            answers,
            ..
        } = self;
        drop((link, inbox));
        let mut again = Self::connect(port, &node, &user, None).await;
        again.answers = answers;
        again
    }

    /// Connects to see what is said on a filter of one's own.
    pub async fn watch(port: u16, filter: &str) -> Self {
        // Two with one name would throw each other out, and share what the broker keeps for it.
        static WATCHERS: AtomicU32 = AtomicU32::new(0);
        let number = WATCHERS.fetch_add(1, Ordering::Relaxed);
        let client_id = format!("watch-{number}-{}", filter.replace('/', "-"));
        let mut config = LinkConfig::new("127.0.0.1", port, client_id);
        config.subscriptions = vec![filter.to_owned()];
        Self::with(config, "", "").await
    }

    async fn with(config: LinkConfig, user: &str, node: &str) -> Self {
        let (link, inbox) = link::spawn(config);
        let mut client = Self {
            link,
            inbox,
            user: user.into(),
            node: node.into(),
            answers: BTreeMap::new(),
            bare: BTreeMap::new(),
            finals: BTreeMap::new(),
            queued: BTreeMap::new(),
            pauses: BTreeMap::new(),
            loading: BTreeSet::new(),
            faults: Vec::new(),
            correlations: Vec::new(),
            documents: BTreeMap::new(),
            events: Vec::new(),
        };
        client.until("connected", |up, _| up).await;
        client
    }

    /// Publishes a request; the broker has it when this returns only as far as QoS 1 goes.
    pub async fn ask(&mut self, op: &str, id: &str, body: &str) {
        self.ask_with(op, id, body.as_bytes().to_vec().into(), Props::default())
            .await;
    }

    pub async fn ask_with(&mut self, op: &str, id: &str, payload: Bytes, props: Props) {
        let topic = format!("orinoco/v1/{}/req/{}/{op}/{id}", self.node, self.user);
        self.publish(topic, payload, props).await;
    }

    pub async fn cancel(&mut self, id: &str) {
        let topic = format!("orinoco/v1/{}/req/{}/cancel/{id}", self.node, self.user);
        self.publish(topic, Bytes::new(), Props::default()).await;
    }

    pub async fn publish(&mut self, topic: String, payload: Bytes, props: Props) {
        let publish = Publish {
            topic,
            payload,
            at_least_once: true,
            retain: false,
            props,
            token: None,
        };
        self.link.publish(publish).await.expect("the link is open");
    }

    pub async fn publish_retained(&mut self, topic: String, payload: Bytes) {
        let props = Props::default();
        let publish = Publish {
            topic,
            payload,
            at_least_once: true,
            retain: true,
            props,
            token: None,
        };
        self.link.publish(publish).await.expect("the link is open");
    }

    pub async fn until_status(&mut self, state: &str) {
        let says = |client: &Self| {
            let document: Option<serde_json::Value> = client
                .documents
                .get("status")
                .and_then(|bytes| serde_json::from_slice(bytes).ok());
            document.is_some_and(|document| document["state"] == state)
        };
        if !says(self) {
            self.until("the node's status", move |_, client| says(client))
                .await;
        }
    }

    /// Takes events until all these answers have ended.
    pub async fn until_ended(&mut self, ids: &[String]) {
        let ids = ids.to_vec();
        self.until("all answers ended", move |_, client| {
            ids.iter().all(|id| {
                client
                    .answers
                    .get(id)
                    .is_some_and(|answer| answer.end().is_some())
            })
        })
        .await;
    }

    pub async fn until_accepted(&mut self, ids: &[String]) {
        let ids = ids.to_vec();
        self.until("all accepted", move |_, client| {
            ids.iter().all(|id| client.answers.contains_key(id))
        })
        .await;
    }

    /// Until the answer's first text.
    pub async fn until_text(&mut self, id: &str) {
        self.until("some text", |_, client| client.has_text(id))
            .await;
    }

    pub async fn until_mode(&mut self, mode: Mode) {
        if self.mode() == Some(mode) {
            return;
        }
        self.until("the node's mode", move |_, client| {
            client.mode() == Some(mode)
        })
        .await;
    }

    pub fn mode(&self) -> Option<Mode> {
        self.documents
            .get("state")
            .and_then(|bytes| serde_json::from_slice::<State>(bytes).ok())
            .map(|state| state.mode)
    }

    /// Takes events until the condition holds: as long as answers go on, on a machine however busy.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(bool, &Self) -> bool) {
        // What an earlier wait took may have been all there is.
        if done(false, self) {
            return;
        }
        let began = Instant::now();
        let mut last_word = began;
        let last_moment = began + PATIENCE;
        while let Ok(event) =
            timeout_at(last_moment.min(last_word + SILENCE), self.inbox.recv()).await
        {
            let event = event.expect("the link is open");
            let up = matches!(event, Inbound::Up { .. });
            if matches!(&event, Inbound::Message(message) if message.topic.contains("/resp/")) {
                last_word = Instant::now();
            }
            self.take(event);
            if done(up, self) {
                return;
            }
        }
        let answers = self.answers.iter();
        let open = Vec::from_iter(answers.filter(|(_, answer)| answer.end().is_none()));
        panic!(
            "waited {:?} for: {what}, the last {:?} without a word of an answer; faults {:?}; open answers {open:#?}",
            began.elapsed(),
            last_word.elapsed(),
            self.faults
        );
    }

    /// Takes what comes for this long: to show that nothing more does.
    pub async fn listen(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while let Ok(Some(event)) = timeout_at(end, self.inbox.recv()).await {
            self.take(event);
        }
    }

    fn take(&mut self, event: Inbound) {
        let Inbound::Message(message) = event else {
            return;
        };
        self.link.try_ack(message.ack).expect("the link is open");
        let last = message
            .topic
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        if message.topic.contains("/evt/") {
            self.events.push(message.payload);
            return;
        }
        if !message.topic.contains("/resp/") {
            self.documents.insert(last, message.payload.clone());
            return;
        }
        self.correlations.extend(message.props.correlation.clone());
        if !message.payload.starts_with(b"{") {
            self.bare.entry(last).or_default().push(message.payload);
            return;
        }
        let is_final = message
            .props
            .user
            .iter()
            .any(|(key, value)| key == "final" && value == "1");
        if is_final {
            self.finals
                .entry(last.clone())
                .or_default()
                .insert(message.payload.to_vec());
        }
        let document: Option<serde_json::Value> = serde_json::from_slice(&message.payload).ok();
        if let Some(queue) = document
            .as_ref()
            .and_then(|d| d["orinoco"]["queue"].as_u64())
        {
            self.queued.insert(last.clone(), queue);
        }
        let orinoco = document.as_ref().map(|document| &document["orinoco"]);
        if let Some(reason) = orinoco.and_then(|o| o["parked"]["reason"].as_str()) {
            let pauses = self.pauses.entry(last.clone()).or_default();
            pauses.push(reason.to_owned());
        }
        if orinoco.is_some_and(|orinoco| orinoco["loading"].is_object()) {
            self.loading.insert(last.clone());
        }
        let answer = self.answers.entry(last.clone()).or_default();
        match answer.hear(&message.payload) {
            Ok(
                Heard::Accepted
                | Heard::Text { .. }
                | Heard::StartedOver
                | Heard::End
                | Heard::Repeat,
            ) => {}
            Ok(other) => self.faults.push(format!("{last}: {other:?}")),
            Err(fault) => self.faults.push(format!("{last}: {fault}")),
        }
    }

    /// Whether an answer has begun.
    pub fn has_text(&self, id: &str) -> bool {
        let answer = self.answers.get(id);
        answer.is_some_and(|answer| !answer.text().is_empty())
    }

    /// Text of an answer that ended well.
    pub fn text(&self, id: &str) -> &str {
        let answer = &self.answers[id];
        let end = answer.end().unwrap_or_else(|| panic!("{id} has not ended"));
        assert!(end.outcome.is_ok(), "{id} ended with {:?}", end.outcome);
        answer.text()
    }
}
