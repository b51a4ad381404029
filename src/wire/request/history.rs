//! PURE: what a node keeps of a conversation, and how a request goes on with it.
//!
//! A turn is what one request said and what was answered, whole: it is kept whole and dropped whole, since a
//! question without its answer, or the other way round, is no conversation that a model knows. Where one turn is
//! too much more than one goes, down to three quarters of the bound, so that the prompts of the next turns begin
//! as the one before did and are not read again.

use serde::{Deserialize, Serialize};

use super::messages::{self, Message};
use crate::frames::Input;

/// What may be kept of one conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Turns.
    pub turns_max: usize,
    /// Bytes of all messages, as JSON.
    pub bytes_max: usize,
}

/// What the model answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Beside its calls.
    pub text: String,
    /// Tools that it called.
    pub calls: Vec<Call>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// As the requester knows it.
    pub id: String,
    /// Which tool.
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

impl From<&str> for Answer {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            calls: Vec::new(),
        }
    }
}

/// What was said before.
// Kept as JSON: keys that are not known are skipped, missing ones are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// The system messages that were given last.
    system: Vec<Message<'static>>,
    /// The oldest first.
    turns: Vec<Vec<Message<'static>>>,
}

impl History {
    /// Turns.
    pub fn n_turns(&self) -> usize {
        self.turns.len()
    }

    /// As it is kept.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings always serialise")
    }

    /// What [`History::to_bytes`] gave; `None` for what is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The messages of a request behind what was said before, and how many messages each earlier turn has, the
    /// oldest first; they stand behind the system messages at the beginning. Those are the request's own, else
    /// those that were given last, else `system_prompt`.
    pub fn continued(&self, asked: &Input, system_prompt: Option<&str>) -> (Input, Vec<u32>) {
        let Input::Chat { messages, tools } = asked else {
            return (asked.clone(), Vec::new());
        };
        let (system, new) = split(messages);
        let configured = system_prompt.map(|prompt| Message::of("system", prompt));
        let configured = Vec::from_iter(configured);
        let first = [&system, &self.system, &configured];
        let system = first.into_iter().find(|messages| !messages.is_empty());
        let all = system.into_iter().chain(&self.turns).chain([&new]);
        let all = Vec::from_iter(all.flatten());
        let input = Input::Chat {
            messages: messages::to_json(&all),
            tools: tools.clone(),
        };
        let turns = self.turns.iter().map(|turn| turn.len() as u32);
        (input, turns.collect())
    }

    /// This with one more turn: `asked` and its answer. The `n_left_out` oldest are dropped first, then as many as
    /// the bounds want.
    #[must_use]
    pub fn with(&self, asked: &Input, answer: Answer, n_left_out: usize, bounds: &Bounds) -> Self {
        let Input::Chat { messages, .. } = asked else {
            return self.clone();
        };
        let (system, mut said) = split(messages);
        said.push(Message::answer(answer));
        let mut next = self.clone();
        if !system.is_empty() {
            next.system = system;
        }
        next.turns.drain(..n_left_out.min(next.turns.len()));
        next.turns.push(said);
        next.trim(bounds);
        next
    }

    fn trim(&mut self, bounds: &Bounds) {
        let sizes = Vec::from_iter(self.turns.iter().map(|turn| messages::to_json(turn).len()));
        let mut bytes = messages::to_json(&self.system).len() + sizes.iter().sum::<usize>();
        let mut n = sizes.len();
        if n <= bounds.turns_max && bytes <= bounds.bytes_max {
            return;
        }
        let (n_max, bytes_max) = (bounds.turns_max / 4 * 3, bounds.bytes_max / 4 * 3);
        // One that is alone may use all of the bounds.
        for size in &sizes {
            if n == 1 || (n <= n_max && bytes <= bytes_max) {
                break;
            }
            (n, bytes) = (n - 1, bytes - size);
        }
        if bounds.turns_max == 0 || bytes > bounds.bytes_max {
            *self = Self::default();
        } else {
            self.turns.drain(..sizes.len() - n);
        }
    }
}

/// System messages, and the others.
fn split(messages: &str) -> (Vec<Message<'static>>, Vec<Message<'static>>) {
    let all = messages::parsed(messages).into_iter();
    all.partition(Message::is_system)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDE: Bounds = Bounds {
        turns_max: 100,
        bytes_max: 1 << 20,
    };

    fn chat(messages: &[(&str, &str)]) -> Input {
        let messages = messages.iter().map(|(role, text)| Message::of(role, text));
        messages::to_input(&Vec::from_iter(messages))
    }

    fn said(input: &Input) -> Vec<(String, String)> {
        let Input::Chat { messages, .. } = input else {
            panic!("a chat");
        };
        let value: serde_json::Value = serde_json::from_str(messages).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let all = value.as_array().unwrap().iter();
        all.map(|message| (text(&message["role"]), text(&message["content"])))
            .collect()
    }

    fn roles(input: &Input) -> String {
        let first = |(role, _): &(String, String)| role.chars().next().unwrap();
        said(input).iter().map(first).collect()
    }

    #[test]
    fn a_request_goes_on_with_what_was_said() {
        let first = chat(&[("user", "My name is Ann.")]);
        let none = History::default();
        assert_eq!(none.continued(&first, None), (first.clone(), vec![]));
        let one = none.with(&first, "Hello Ann.".into(), 0, &WIDE);
        let (input, turns) = one.continued(&chat(&[("user", "Who am I?")]), None);
        assert_eq!(roles(&input), "uau");
        assert_eq!(said(&input)[1].1, "Hello Ann.");
        assert_eq!((turns, one.n_turns()), (vec![2], 1));
    }

    #[test]
    fn the_system_prompt_is_the_requests_or_the_last_one_given_or_the_configured() {
        let plain = chat(&[("user", "x")]);
        let with = |text| chat(&[("system", text), ("user", "x")]);
        let first_of = |history: &History, asked: &Input| {
            let (input, _) = history.continued(asked, Some("configured"));
            said(&input)[0].1.clone()
        };
        let none = History::default();
        assert_eq!(first_of(&none, &plain), "configured");
        assert_eq!(first_of(&none, &with("own")), "own");
        let told = none.with(&with("own"), "y".into(), 0, &WIDE);
        assert_eq!(first_of(&told, &plain), "own");
        assert_eq!(first_of(&told, &with("other")), "other");
        // It stands once, at the beginning.
        let (input, _) = told.continued(&with("other"), Some("configured"));
        assert_eq!(roles(&input), "suau");
    }

    #[test]
    fn what_has_no_room_goes_in_whole_turns_the_oldest_first() {
        let narrow = Bounds {
            turns_max: 8,
            ..WIDE
        };
        let mut history = History::default();
        let mut counts = Vec::new();
        for n in 0..12 {
            let asked = chat(&[("user", &format!("q{n}"))]);
            history = history.with(&asked, format!("a{n}").as_str().into(), 0, &narrow);
            counts.push(history.n_turns());
        }
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 6]);
        let (input, _) = history.continued(&chat(&[("user", "q")]), None);
        assert_eq!(said(&input)[0], ("user".to_owned(), "q6".to_owned()));
        let left = history.with(&chat(&[("user", "q12")]), "a12".into(), 4, &narrow);
        let (input, turns) = left.continued(&chat(&[("user", "q")]), None);
        assert_eq!((turns.len(), said(&input)[0].1.as_str()), (3, "q10"));
    }

    #[test]
    fn calls_of_tools_are_part_of_a_turn_and_their_answers_of_the_next() {
        let asked = chat(&[("user", "How warm is it?")]);
        let call = Call {
            id: "call_1".into(),
            name: "thermometer".into(),
            arguments: r#"{"room":"hall"}"#.into(),
        };
        let answer = Answer {
            text: String::new(),
            calls: vec![call],
        };
        let history = History::default().with(&asked, answer, 0, &WIDE);
        let (input, _) = history.continued(&chat(&[("tool", "21")]), None);
        let Input::Chat { messages, .. } = input else {
            panic!("a chat");
        };
        let value: serde_json::Value = serde_json::from_str(&messages).unwrap();
        let told = &value[1]["tool_calls"][0];
        assert_eq!(
            (&told["id"], &told["function"]["name"]),
            (&"call_1".into(), &"thermometer".into())
        );
        assert_eq!(value[2]["content"], "21");
    }

    #[test]
    fn a_turn_that_is_too_large_alone_is_not_kept() {
        let narrow = Bounds {
            turns_max: 8,
            bytes_max: 200,
        };
        let small = History::default().with(&chat(&[("user", "x")]), "y".into(), 0, &narrow);
        assert_eq!(small.n_turns(), 1);
        let large = small.with(&chat(&[("user", &"x".repeat(300))]), "y".into(), 0, &narrow);
        assert_eq!(large.n_turns(), 0);
    }

    #[test]
    fn it_is_kept_and_read_again_and_other_bytes_are_none() {
        let history = History::default().with(&chat(&[("user", "x")]), "y".into(), 0, &WIDE);
        assert_eq!(History::from_bytes(&history.to_bytes()), Some(history));
        let later = br#"{"turns":[],"mood":"good"}"#;
        assert_eq!(History::from_bytes(later), Some(History::default()));
        assert_eq!(History::from_bytes(b""), None);
        assert_eq!(
            History::from_bytes(br#"{"turns":[[{"role":"user"}]]}"#),
            None
        );
    }

    proptest! {
        #[test]
        fn it_stays_inside_its_bounds_and_begins_with_a_question(
            texts in prop::collection::vec(("[a-z\"\n]{1,80}", "[a-zé]{0,80}", 0_usize..3), 1..30),
            turns_max in 0_usize..10,
            bytes_max in 0_usize..2000,
        ) {
            let bounds = Bounds { turns_max, bytes_max };
            let mut history = History::default();
            for (question, answer, n_left_out) in &texts {
                history = history.with(&chat(&[("user", question)]), answer.as_str().into(), *n_left_out, &bounds);
                prop_assert!(history.n_turns() <= turns_max);
                let sizes = history.turns.iter().map(|turn| messages::to_json(turn).len());
                prop_assert!(sizes.sum::<usize>() <= bytes_max);
                let (input, turns) = history.continued(&chat(&[("user", "?")]), None);
                prop_assert_eq!(roles(&input), "ua".repeat(history.n_turns()) + "u");
                prop_assert_eq!(turns, vec![2; history.n_turns()]);
                prop_assert_eq!(History::from_bytes(&history.to_bytes()), Some(history.clone()));
            }
            if let (Some((question, answer, _)), true) = (texts.last(), history.n_turns() > 0) {
                let (input, _) = history.continued(&chat(&[("user", "?")]), None);
                let all = said(&input);
                let last = &all[all.len() - 3..all.len() - 1];
                prop_assert_eq!(&last[0].1, question);
                prop_assert_eq!(&last[1].1, answer);
            }
        }
    }
}
