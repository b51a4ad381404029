//! PURE: the calls in one stream's text. The text itself stays what is counted, cut, resumed and sent again;
//! this says how much of it may leave, and what a cut of it says.

use serde::{Deserialize, Serialize};

use crate::frames::ToolSyntax;
use crate::wire::reply::{Outgoing, Replier};
use crate::wire::tools::{Answer, Parser, Tools};

/// In which syntax, and by which names, calls are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sought {
    pub(super) syntax: ToolSyntax,
    pub(super) names: Vec<String>,
}

impl Sought {
    pub(super) fn of(tools: &Tools, syntax: ToolSyntax) -> Self {
        let names = tools.functions.iter().map(|function| function.name.clone());
        Self {
            syntax,
            names: names.collect(),
        }
    }

    fn parser(&self) -> Parser {
        Parser::new(self.syntax, self.names.iter().cloned())
    }
}

/// The calls of one stream.
#[derive(Debug)]
pub(super) struct Calls {
    sought: Sought,
    /// Has read all text that came.
    ahead: Parser,
    /// Has read all text that left.
    told: Parser,
}

impl Calls {
    pub(super) fn new(sought: Sought) -> Self {
        Self {
            ahead: sought.parser(),
            told: sought.parser(),
            sought,
        }
    }

    pub(super) fn sought(&self) -> &Sought {
        &self.sought
    }

    /// New text came; how many bytes at the end of all text are to wait. `None`: nothing is worth a chunk.
    pub(super) fn read(&mut self, text: &str) -> Option<usize> {
        let mut parts = Vec::new();
        self.ahead.push(text, &mut parts);
        (!parts.is_empty()).then(|| self.ahead.held_bytes())
    }

    /// The text is over; whether what was held back says anything.
    pub(super) fn end(&mut self) -> bool {
        let mut parts = Vec::new();
        self.ahead.finish(&mut parts);
        !parts.is_empty()
    }

    /// What the next cut says; the same each time until [`Calls::sent`].
    pub(super) fn chunk(&self, replier: &Replier, seq: u64, cut: &str, is_last: bool) -> Outgoing {
        let mut told = self.told.clone();
        reply(&mut told, replier, seq, cut, is_last)
    }

    /// That cut has left.
    pub(super) fn sent(&mut self, cut: &str) {
        self.told.push(cut, &mut Vec::new());
    }

    /// Content and calls of the whole text.
    pub(super) fn answer(&self, text: &str) -> Answer {
        Answer::of(self.sought.parser(), text)
    }
}

fn reply(told: &mut Parser, replier: &Replier, seq: u64, cut: &str, is_last: bool) -> Outgoing {
    let n_calls = told.n_calls();
    let mut parts = Vec::new();
    told.push(cut, &mut parts);
    if is_last {
        told.finish(&mut parts);
    }
    replier.calls_piece(seq, n_calls, &parts)
}

/// Chunks that were sent before, again: `cuts` are their ends in `text`. `None` where they do not fit it.
pub(super) fn replayed(
    sought: &Sought,
    replier: &Replier,
    text: &str,
    cuts: &[u32],
) -> Option<Vec<Outgoing>> {
    let mut told = sought.parser();
    let mut start = 0;
    let mut messages = Vec::with_capacity(cuts.len());
    for (n, end) in cuts.iter().enumerate() {
        let end = *end as usize;
        let cut = text.get(start..end)?;
        messages.push(reply(
            &mut told,
            replier,
            n as u64 + 1,
            cut,
            end == text.len(),
        ));
        start = end;
    }
    Some(messages)
}

/// For tests of the parts alone.
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::reply::Form;
    use crate::wire::topic::{Name, Op, RequestId};

    fn replier() -> Replier {
        Replier {
            form: Form::Chunks,
            op: Op::Chat,
            id: RequestId::new("r1").unwrap(),
            model: "m".to_owned(),
            node: Name::new("n").unwrap(),
            created_s: 1,
            attempt: 1,
        }
    }

    fn text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just(
                "<tool_call>\n{\"name\": \"lamp\", \"arguments\": {\"on\": true}}\n</tool_call>"
                    .to_owned()
            ),
            Just("<tool_call>{\"name\": \"lam".to_owned()),
            Just("<tool_".to_owned()),
            "[ a-z\n]{0,6}",
        ];
        proptest::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn what_is_sent_again_is_what_was_sent(text in text(), sizes in proptest::collection::vec(1_usize..9, 1..40)) {
            let sought = Sought { syntax: ToolSyntax::Hermes, names: vec!["lamp".to_owned()] };
            let (mut calls, replier) = (Calls::new(sought.clone()), replier());
            let (mut sent, mut cuts, mut at, mut ready, mut read) = (Vec::new(), Vec::new(), 0, 0, 0);
            for size in sizes.iter().cycle() {
                if read == text.len() {
                    break;
                }
                let end = (read + size).min(text.len());
                if let Some(held) = calls.read(&text[read..end]) {
                    ready = end - held;
                }
                read = end;
                if ready > at {
                    sent.push(calls.chunk(&replier, sent.len() as u64 + 1, &text[at..ready], false));
                    calls.sent(&text[at..ready]);
                    at = ready;
                    cuts.push(at as u32);
                }
            }
            if calls.end() {
                sent.push(calls.chunk(&replier, sent.len() as u64 + 1, &text[at..], true));
                cuts.push(text.len() as u32);
            }
            prop_assert_eq!(replayed(&sought, &replier, &text, &cuts), Some(sent));
        }
    }
}
