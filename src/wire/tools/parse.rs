//! Calls in the text of a model, found while it is written.
//!
//! Each byte is looked at once. What could still become a call is held back; what turns out to be none is
//! content, to the last byte. A call is told only when its tool is one of the request's, and only from the
//! point on where its name and the begin of its arguments are known; then its arguments leave as they come.
//! White space that touches a call is not content.

use std::sync::Arc;

use crate::frames::ToolSyntax;

/// What came of the text, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Said beside the calls.
    Content(String),
    /// A call begins.
    Call {
        /// One of the tools.
        name: String,
    },
    /// More of the arguments of the last call: JSON text.
    Arguments(String),
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub struct Parser {
    syntax: ToolSyntax,
    names: Arc<[String]>,
    at: At,
    /// Text not told yet, whole, so that it can still be content.
    held: String,
    n_calls: usize,
    /// Nothing but white space came since the last call.
    is_behind_call: bool,
    /// The rest is content: what came is no call, and this syntax has nothing but calls or none.
    is_plain: bool,
}

#[derive(Debug, Clone)]
enum At {
    /// Nothing but white space, so far or since a call; or content.
    Text,
    /// Behind what opens a list of calls.
    List,
    /// Inside the object of a call.
    Object(Object),
    /// Behind that object.
    Behind,
}

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const LIST: &str = "[TOOL_CALLS]";
const TAG: &str = "<|python_tag|>";

impl Parser {
    /// For an answer in this syntax, to a request with tools of these names.
    pub fn new(syntax: ToolSyntax, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            syntax,
            names: names.into_iter().collect(),
            at: At::Text,
            held: String::new(),
            n_calls: 0,
            is_behind_call: false,
            is_plain: false,
        }
    }

    /// Calls told so far.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Bytes that were read and not told yet.
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }

    /// Reads on.
    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        for c in text.chars() {
            self.step(c, parts);
        }
    }

    /// The text is over: what was held back is content, or nothing.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        match std::mem::replace(&mut self.at, At::Text) {
            At::Object(object) if object.is_told => {}
            At::Object(_) => self.give_up(parts),
            At::Behind if CLOSE.starts_with(self.held.trim()) => self.held.clear(),
            At::Text | At::List | At::Behind => {
                let is_rest = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | '}' | ';');
                if self.n_calls > 0 && self.held.chars().all(is_rest) {
                    self.held.clear();
                }
                self.flush(parts);
            }
        }
    }

    fn step(&mut self, c: char, parts: &mut Vec<Part>) {
        if self.is_plain {
            return say(c, parts);
        }
        match &mut self.at {
            At::Text => self.in_text(c, parts),
            At::List => {
                let is_list = matches!(self.syntax, ToolSyntax::Mistral | ToolSyntax::Generic);
                self.held.push(c);
                match c {
                    '{' => self.begin(),
                    ' ' | '\t' | '\n' | '\r' => {}
                    '[' if self.held.trim_end_matches('[').trim_end().ends_with(LIST)
                        && self.held.matches('[').count() == 2 => {}
                    ',' if is_list && self.n_calls > 0 => {}
                    ']' if is_list => {
                        // The end of the list; a list without calls is content.
                        self.at = At::Behind;
                        if self.n_calls > 0 {
                            self.held.clear();
                        }
                    }
                    _ => self.give_up(parts),
                }
            }
            At::Object(object) => {
                let was_told = object.is_told;
                if !was_told {
                    self.held.push(c);
                }
                let names = &self.names;
                let known = |name: &str| names.iter().any(|known| known == name);
                match object.step(c, known, parts) {
                    Step::More => {
                        if !was_told && object.is_told {
                            self.held.clear();
                            self.n_calls += 1;
                        }
                    }
                    Step::Done => {
                        if !was_told {
                            self.held.clear();
                            self.n_calls += 1;
                        }
                        self.at = match self.syntax {
                            ToolSyntax::Mistral | ToolSyntax::Generic => At::List,
                            ToolSyntax::Hermes | ToolSyntax::Llama3 => At::Behind,
                        };
                    }
                    Step::Broken if was_told => {
                        // Its head is told; its tail is nobody's.
                        self.at = At::Behind;
                    }
                    Step::Broken => self.give_up(parts),
                }
            }
            At::Behind => self.behind(c, parts),
        }
    }

    /// What opens a call, or content.
    fn in_text(&mut self, c: char, parts: &mut Vec<Part>) {
        self.held.push(c);
        let is_first = self.n_calls == 0;
        match self.syntax {
            ToolSyntax::Hermes => {
                if self.held.ends_with(OPEN) {
                    let n = self.held.len() - OPEN.len();
                    self.open(n, parts, At::List);
                } else {
                    self.flush_but_prefix_of(OPEN, parts);
                }
            }
            ToolSyntax::Mistral => {
                if self.held.ends_with(LIST) {
                    let n = self.held.len() - LIST.len();
                    self.open(n, parts, At::List);
                } else {
                    self.flush_but_prefix_of(LIST, parts);
                }
            }
            ToolSyntax::Llama3 => {
                let trimmed = self.held.trim_start();
                if trimmed == "{" {
                    self.begin();
                } else if trimmed == TAG && is_first {
                    self.held.clear();
                } else if !(TAG.starts_with(trimmed) && is_first || trimmed.is_empty()) {
                    self.plain(parts);
                }
            }
            ToolSyntax::Generic => {
                let trimmed = self.held.trim_start();
                match is_opening(trimmed) {
                    Some(true) => self.at = At::List,
                    Some(false) => {}
                    None => self.plain(parts),
                }
            }
        }
    }

    /// Text up to `n` is content, unless it is white space; then a marker opened `next`.
    fn open(&mut self, n: usize, parts: &mut Vec<Part>, next: At) {
        // Should no call follow, white space and marker are content.
        let kept = self.held[..n].trim_end().len();
        let rest = self.held.split_off(kept);
        self.flush(parts);
        self.held = rest;
        self.at = next;
    }

    fn begin(&mut self) {
        let key = match self.syntax {
            ToolSyntax::Llama3 => ["parameters", "arguments"],
            _ => ["arguments", "parameters"],
        };
        // Without a marker around it, an object with a name can be anything.
        let needs_arguments = self.syntax == ToolSyntax::Llama3;
        self.at = At::Object(Object::new(key, needs_arguments));
    }

    fn behind(&mut self, c: char, parts: &mut Vec<Part>) {
        self.held.push(c);
        match self.syntax {
            // Nothing between the object and its end tag is of use.
            ToolSyntax::Hermes => {
                if self.held.ends_with(CLOSE) {
                    self.held.clear();
                    self.is_behind_call = true;
                    self.at = At::Text;
                } else if self.held.ends_with(OPEN) {
                    // An end tag was forgotten.
                    self.held = OPEN.to_owned();
                    self.at = At::List;
                } else if self.held.len() > 4 * CLOSE.len() {
                    // No end tag: what follows the call is content.
                    self.at = At::Text;
                    self.flush_but_prefix_of(OPEN, parts);
                }
            }
            ToolSyntax::Llama3 => match c {
                ' ' | '\t' | '\n' | '\r' | ';' | ',' => {}
                '{' => self.begin(),
                _ => self.plain(parts),
            },
            ToolSyntax::Mistral | ToolSyntax::Generic => {
                let rest = self.held.trim();
                if !(rest.is_empty() || rest == "}") {
                    self.plain(parts);
                }
            }
        }
    }

    /// Not a call after all.
    fn give_up(&mut self, parts: &mut Vec<Part>) {
        match self.syntax {
            // Another may follow.
            ToolSyntax::Hermes => {
                self.at = At::Text;
                self.flush(parts);
            }
            _ => self.plain(parts),
        }
    }

    fn plain(&mut self, parts: &mut Vec<Part>) {
        self.is_plain = true;
        self.at = At::Text;
        if self.n_calls > 0 {
            let start = self.held.len() - self.held.trim_start().len();
            self.held.drain(..start);
        }
        self.flush(parts);
    }

    /// Tells what is held, but white space at its end and what could be the begin of `marker`.
    fn flush_but_prefix_of(&mut self, marker: &str, parts: &mut Vec<Part>) {
        let starts = (1..=marker.len().min(self.held.len())).rev();
        let mut kept = starts
            .filter(|n| self.held.is_char_boundary(self.held.len() - n))
            .find(|n| marker.starts_with(&self.held[self.held.len() - n..]))
            .map_or(self.held.len(), |n| self.held.len() - n);
        kept = self.held[..kept].trim_end().len();
        let rest = self.held.split_off(kept);
        self.flush(parts);
        self.held = rest;
    }

    fn flush(&mut self, parts: &mut Vec<Part>) {
        let mut text = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.is_behind_call) {
            text.drain(..text.len() - text.trim_start().len());
            self.is_behind_call = text.is_empty();
        }
        if text.is_empty() {
            return;
        }
        match parts.last_mut() {
            Some(Part::Content(content)) => content.push_str(&text),
            _ => parts.push(Part::Content(text)),
        }
    }
}

fn say(c: char, parts: &mut Vec<Part>) {
    match parts.last_mut() {
        Some(Part::Content(content)) => content.push(c),
        _ => parts.push(Part::Content(c.to_string())),
    }
}

/// Whether `text` is `{"tool_calls": [`, white space aside; `None` when it cannot become that.
fn is_opening(text: &str) -> Option<bool> {
    const TOKENS: [&str; 4] = ["{", "\"tool_calls\"", ":", "["];
    let mut rest = text;
    for token in TOKENS {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(false);
        }
        match rest.strip_prefix(token) {
            Some(behind) => rest = behind,
            None => return token.starts_with(rest).then_some(false),
        }
    }
    rest.is_empty().then_some(true)
}

/// The object of a call: `{"name": …, "arguments": …}`, in any order, with other keys too.
#[derive(Debug, Clone)]
struct Object {
    /// The key of the arguments, and another that means the same.
    keys: [&'static str; 2],
    needs_arguments: bool,
    place: Place,
    key: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    value: Value,
    /// The call is told.
    is_told: bool,
    has_arguments: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before a key, or the end of an object without more.
    Key,
    InKey {
        escaped: bool,
    },
    Colon,
    /// Before or in a value.
    Value,
    /// Behind a value.
    Comma,
}

enum Step {
    More,
    Done,
    Broken,
}

impl Object {
    fn new(keys: [&'static str; 2], needs_arguments: bool) -> Self {
        Self {
            keys,
            needs_arguments,
            place: Place::Key,
            key: String::new(),
            name: None,
            early: None,
            value: Value::default(),
            is_told: false,
            has_arguments: false,
        }
    }

    fn step(&mut self, c: char, known: impl Fn(&str) -> bool, parts: &mut Vec<Part>) -> Step {
        let is_space = matches!(c, ' ' | '\t' | '\n' | '\r');
        match self.place {
            Place::Key => match c {
                _ if is_space => {}
                '"' => {
                    self.key.clear();
                    self.place = Place::InKey { escaped: false };
                }
                '}' => return self.end(known, parts),
                _ => return Step::Broken,
            },
            Place::InKey { escaped } => match c {
                '"' if !escaped => self.place = Place::Colon,
                _ => {
                    self.key.push(c);
                    let escaped = c == '\\' && !escaped;
                    self.place = Place::InKey { escaped };
                }
            },
            Place::Colon => match c {
                _ if is_space => {}
                ':' => {
                    self.value = Value::default();
                    self.place = Place::Value;
                }
                _ => return Step::Broken,
            },
            Place::Value => return self.in_value(c, is_space, known, parts),
            Place::Comma => match c {
                _ if is_space => {}
                ',' => self.place = Place::Key,
                '}' => return self.end(known, parts),
                _ => return Step::Broken,
            },
        }
        Step::More
    }

    fn is_arguments(&self) -> bool {
        self.keys.contains(&self.key.as_str())
    }

    fn in_value(
        &mut self,
        c: char,
        is_space: bool,
        known: impl Fn(&str) -> bool,
        parts: &mut Vec<Part>,
    ) -> Step {
        if is_space && !self.value.has_begun() {
            return Step::More;
        }
        let is_arguments = self.is_arguments() && !self.has_arguments;
        if is_arguments && !self.value.has_begun() {
            if c != '{' {
                return Step::Broken;
            }
            if let Some(name) = &self.name {
                if !known(name) {
                    return Step::Broken;
                }
                parts.push(Part::Call { name: name.clone() });
                self.is_told = true;
            }
        }
        match self.value.step(c) {
            // A number or a word ends before this character.
            Over::Before => {
                self.take_value();
                self.place = Place::Comma;
                self.step(c, known, parts)
            }
            over => {
                if is_arguments {
                    match (self.is_told, parts.last_mut()) {
                        (true, Some(Part::Arguments(text))) => text.push(c),
                        (true, _) => parts.push(Part::Arguments(c.to_string())),
                        (false, _) => self.early.get_or_insert_default().push(c),
                    }
                } else if !self.is_told {
                    self.value.text.push(c);
                }
                if over == Over::With {
                    self.take_value();
                    self.place = Place::Comma;
                }
                Step::More
            }
        }
    }

    fn take_value(&mut self) {
        let text = std::mem::take(&mut self.value.text);
        if self.is_arguments() {
            self.has_arguments = true;
        } else if self.key == "name" && self.name.is_none() {
            self.name = serde_json::from_str(&text).ok();
        }
    }

    fn end(&mut self, known: impl Fn(&str) -> bool, parts: &mut Vec<Part>) -> Step {
        if self.is_told {
            return Step::Done;
        }
        let arguments = match self.early.take() {
            None if self.needs_arguments => return Step::Broken,
            None => "{}".to_owned(),
            Some(arguments) => arguments,
        };
        match &self.name {
            Some(name) if known(name) => {
                parts.push(Part::Call { name: name.clone() });
                parts.push(Part::Arguments(arguments));
                Step::Done
            }
            _ => Step::Broken,
        }
    }
}

/// A JSON value as it comes: where it ends, and no more than that.
#[derive(Debug, Clone, Default)]
struct Value {
    depth: u32,
    in_string: bool,
    escaped: bool,
    is_word: bool,
    has_begun: bool,
    /// Of a value that is not the arguments.
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    No,
    /// This character is its last.
    With,
    /// The character before was its last.
    Before,
}

impl Value {
    fn has_begun(&self) -> bool {
        self.has_begun
    }

    fn step(&mut self, c: char) -> Over {
        self.has_begun = true;
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => {
                    self.in_string = false;
                    if self.depth == 0 {
                        return Over::With;
                    }
                }
                _ => {}
            }
            return Over::No;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' if self.depth == 0 => return Over::Before,
            '}' | ']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    return Over::With;
                }
            }
            ',' | ' ' | '\t' | '\n' | '\r' if self.depth == 0 && self.is_word => {
                return Over::Before;
            }
            _ if self.depth == 0 => self.is_word = true,
            _ => {}
        }
        Over::No
    }
}
