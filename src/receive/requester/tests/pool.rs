//! A simulated pool: nodes that take, refuse, die and return with what they accepted, a broker that deals
//! requests round and loses some, and messages that are slow, repeated and out of order between nodes.
//! Whatever happens, the requester ends once, with the whole text of one attempt of one node.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NODES: [&str; 3] = ["a", "b", "c"];
const TICK: Duration = Duration::from_millis(50);
/// What can go wrong ends here; then everything must come to an end by itself.
const CALM_AFTER: Duration = Duration::from_secs(40);
const LIMIT: Duration = Duration::from_secs(300);

/// Chances in a thousand, for each tick or message.
#[derive(Debug, Clone)]
struct Weather {
    seed: u64,
    dies: u64,
    refuses: u64,
    loses_request: u64,
    repeats: u64,
    /// Longest delay of a message, in ticks.
    delay_ticks: u64,
    /// Longest absence of a dead node, in ticks.
    absent_ticks: u64,
    n_chunks: u64,
}

/// xorshift64*: the same weather each time for one seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n.max(1)
    }

    fn hits(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Job {
    Running {
        attempt: u32,
        seq: u64,
    },
    Done {
        attempt: u32,
        n_chunks: u64,
        finish: Finish,
    },
}

#[derive(Debug, Default)]
struct Node {
    job: Option<Job>,
    back_at: Option<Duration>,
    /// A job that was called off is forgotten when the broker has its final.
    forgets_at: Option<Duration>,
    /// Messages to this node that wait at the broker: (when, is a cancel).
    inbox: Vec<(Duration, bool)>,
}

struct Pool {
    weather: Weather,
    dice: Dice,
    nodes: BTreeMap<&'static str, Node>,
    turn: usize,
    /// To the requester, in order for each node: (when, node, what).
    under_way: Vec<(Duration, &'static str, Said)>,
    last_of: BTreeMap<&'static str, Duration>,
}

#[derive(Debug, Clone)]
enum Said {
    Message(Outgoing),
    Presence(Presence),
}

fn chunk(node: &str, attempt: u32, seq: u64) -> String {
    format!("{node}{attempt}.{seq} ")
}

fn text(node: &str, attempt: u32, n_chunks: u64) -> String {
    (1..=n_chunks)
        .map(|seq| chunk(node, attempt, seq))
        .collect()
}

impl Pool {
    fn new(weather: Weather) -> Self {
        Self {
            dice: Dice(weather.seed | 1),
            nodes: NODES.map(|node| (node, Node::default())).into(),
            turn: 0,
            under_way: Vec::new(),
            last_of: BTreeMap::new(),
            weather,
        }
    }

    fn node(&mut self, node: &str) -> &mut Node {
        self.nodes.get_mut(node).unwrap()
    }

    fn say(&mut self, now: Duration, node: &'static str, said: Said) {
        let copies = 1 + u64::from(self.dice.hits(self.weather.repeats));
        for _ in 0..copies {
            let delay = TICK * self.dice.below(self.weather.delay_ticks + 1) as u32;
            // One connection keeps its order.
            let last = self.last_of.entry(node).or_default();
            *last = (*last).max(now + delay);
            self.under_way.push((*last, node, said.clone()));
        }
    }

    fn message(&mut self, now: Duration, node: &'static str, message: Outgoing) {
        self.say(now, node, Said::Message(message));
    }

    /// The broker deals a request to the pool round, or keeps one for its node.
    fn ask(&mut self, now: Duration, node: Option<&Name>) {
        if let Some(node) = node {
            let known = NODES.into_iter().find(|known| node.as_str() == *known);
            return self.deliver(now, known.unwrap(), false);
        }
        if now < CALM_AFTER && self.dice.hits(self.weather.loses_request) {
            return;
        }
        self.turn += 1;
        let is_up = |node: &&str| self.nodes[node].back_at.is_none();
        let up: Vec<_> = NODES.into_iter().filter(is_up).collect();
        if !up.is_empty() {
            self.deliver(now, up[self.turn % up.len()], false);
        }
    }

    fn cancel(&mut self, now: Duration, node: Option<&Name>) {
        for known in NODES {
            if node.is_none_or(|node| node.as_str() == known) {
                self.deliver(now, known, true);
            }
        }
    }

    fn deliver(&mut self, now: Duration, node: &'static str, is_cancel: bool) {
        let at = now + TICK * self.dice.below(self.weather.delay_ticks + 1) as u32;
        let inbox = &mut self.node(node).inbox;
        let last = inbox.last().map_or(at, |(last, _)| *last);
        inbox.push((at.max(last), is_cancel));
    }

    fn tick(&mut self, now: Duration) {
        for node in NODES {
            let is_up = self.nodes[node].back_at.is_none();
            if is_up && now < CALM_AFTER && self.dice.hits(self.weather.dies) {
                let absent = TICK * (1 + self.dice.below(self.weather.absent_ticks)) as u32;
                self.node(node).back_at = Some(now + absent);
                self.say(now, node, Said::Presence(Presence::Offline));
            }
            if self.nodes[node].back_at.is_some_and(|at| at <= now) {
                self.node(node).back_at = None;
                self.say(now, node, Said::Presence(Presence::Online));
                if let Some(Job::Running { attempt, .. }) = self.nodes[node].job {
                    // From its disk, anew.
                    let attempt = attempt + 1;
                    self.node(node).job = Some(Job::Running { attempt, seq: 0 });
                    self.message(now, node, accepted(node, attempt));
                }
            }
            if self.nodes[node].back_at.is_none() {
                self.serve(now, node);
            }
        }
    }

    fn serve(&mut self, now: Duration, node: &'static str) {
        if self.nodes[node].forgets_at.is_some_and(|at| at <= now) {
            self.node(node).forgets_at = None;
            self.node(node).job = None;
        }
        while let Some(&(at, is_cancel)) = self.nodes[node].inbox.first()
            && at <= now
        {
            self.node(node).inbox.remove(0);
            match (self.nodes[node].job, is_cancel) {
                (None, false) => self.requested(now, node),
                (Some(Job::Running { attempt, .. }), false) => {
                    self.message(now, node, accepted(node, attempt));
                }
                (Some(Job::Done { .. }), false) => self.say_again(now, node),
                (Some(Job::Running { attempt, seq }), true) => {
                    self.end(now, node, attempt, seq, Finish::Cancelled);
                }
                (None | Some(Job::Done { .. }), true) => {}
            }
        }
        if let Some(Job::Running { attempt, seq }) = self.nodes[node].job {
            if seq == self.weather.n_chunks {
                return self.end(now, node, attempt, seq, Finish::Stop);
            }
            let seq = seq + 1;
            self.node(node).job = Some(Job::Running { attempt, seq });
            let text = chunk(node, attempt, seq);
            self.message(now, node, piece(node, attempt, seq, &text));
        }
    }

    fn requested(&mut self, now: Duration, node: &'static str) {
        if now < CALM_AFTER && self.dice.hits(self.weather.refuses) {
            return self.message(now, node, refusal(node, Some(100)));
        }
        self.node(node).job = Some(Job::Running { attempt: 1, seq: 0 });
        self.message(now, node, accepted(node, 1));
    }

    fn say_again(&mut self, now: Duration, node: &'static str) {
        let Some(Job::Done {
            attempt,
            n_chunks,
            finish,
        }) = self.nodes[node].job
        else {
            return;
        };
        self.message(now, node, accepted(node, attempt));
        for seq in 1..=n_chunks {
            let text = chunk(node, attempt, seq);
            self.message(now, node, piece(node, attempt, seq, &text));
        }
        self.end(now, node, attempt, n_chunks, finish);
    }

    fn end(
        &mut self,
        now: Duration,
        node: &'static str,
        attempt: u32,
        n_chunks: u64,
        finish: Finish,
    ) {
        self.node(node).job = Some(Job::Done {
            attempt,
            n_chunks,
            finish,
        });
        if finish == Finish::Cancelled {
            let delay = TICK * self.dice.below(self.weather.delay_ticks + 1) as u32;
            self.node(node).forgets_at = Some(now + delay);
        }
        let whole = text(node, attempt, n_chunks);
        let last = end(node, attempt, n_chunks + 1, &whole, finish);
        self.message(now, node, last);
    }

    /// What has arrived by now, in order of arrival.
    fn arrived(&mut self, now: Duration) -> Vec<(&'static str, Said)> {
        let under_way = std::mem::take(&mut self.under_way);
        let (mut here, rest): (Vec<_>, Vec<_>) =
            under_way.into_iter().partition(|(at, ..)| *at <= now);
        self.under_way = rest;
        here.sort_by_key(|(at, ..)| *at);
        here.into_iter()
            .map(|(_, node, said)| (node, said))
            .collect()
    }
}

/// Lets it rain. The text is as somebody sees it who is only told what is new and what is void.
fn play(weather: Weather) -> Result<(String, Requester, Pool), TestCaseError> {
    let mut pool = Pool::new(weather);
    let mut requester = Requester::of_pool(Duration::ZERO);
    let (mut now, mut seen, mut n_ends) = (Duration::ZERO, String::new(), 0);
    let mut ended_at = None;
    while now < LIMIT {
        for (node, said) in pool.arrived(now) {
            let message = match said {
                Said::Presence(presence) => {
                    requester.presence(&name(node), presence, now);
                    continue;
                }
                Said::Message(message) => message,
            };
            match requester.hear(&message.payload, now) {
                Ok(Heard::StartedOver) => seen.clear(),
                Ok(Heard::Text { from }) => {
                    prop_assert_eq!(seen.len(), from);
                    seen.push_str(&requester.receiver().text()[from..]);
                }
                Ok(Heard::End) => n_ends += 1,
                Ok(_) => {}
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
        while let Some(action) = requester.poll(now) {
            match action {
                Action::Ask => pool.ask(now, None),
                Action::AskNode(node) => pool.ask(now, Some(&node)),
                Action::Cancel => pool.cancel(now, None),
                Action::CancelAt(node) => pool.cancel(now, Some(&node)),
            }
        }
        if let Some(wake) = requester.wake() {
            prop_assert!(wake > now, "it would spin");
        }
        pool.tick(now);
        now += TICK;
        // A while after the end, so that what is late can do its worst.
        if requester.receiver().end().is_some() && now > CALM_AFTER {
            let since = *ended_at.get_or_insert(now);
            if now - since > Duration::from_secs(20) {
                break;
            }
        }
    }
    prop_assert_eq!(n_ends, 1, "at {:?}: {:#?}", now, requester);
    Ok((seen, requester, pool))
}

prop_compose! {
    fn weather()(
        seed: u64, dies in 0_u64..30, refuses in 0_u64..700, loses_request in 0_u64..700,
        repeats in 0_u64..300, delay_ticks in 0_u64..60, absent_ticks in 1_u64..200,
        n_chunks in 1_u64..60,
    ) -> Weather {
        Weather { seed, dies, refuses, loses_request, repeats, delay_ticks, absent_ticks, n_chunks }
    }
}

proptest! {
    #[test]
    fn every_question_ends_once_with_the_text_of_one_attempt_of_one_node(weather in weather()) {
        let n_chunks = weather.n_chunks;
        let (seen, requester, pool) = play(weather)?;
        let receiver = requester.receiver();
        let node = receiver.node().unwrap().as_str();
        let expected = text(node, receiver.attempt(), n_chunks);
        prop_assert_eq!(receiver.text(), &expected);
        prop_assert_eq!(seen, expected, "what was shown is what counts");
        let outcome = &receiver.end().unwrap().outcome;
        prop_assert_eq!(&outcome.as_ref().unwrap().finish_reason, "stop");
        // Nobody works on for nothing.
        for (node, it) in pool.nodes {
            prop_assert!(!matches!(it.job, Some(Job::Running { .. })), "{} still works", node);
        }
    }
}
