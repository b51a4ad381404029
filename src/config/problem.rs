//! What reading finds out: the keys in force, and everything that is wrong, in words for an operator.

use std::fmt;

use config::ValueKind;

/// One mistake, with all that is needed to repair it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File, environment variable or flag.
    pub origin: String,
    /// `section.key`; empty when the whole file is the problem.
    pub key: String,
    /// The value found, as TOML, when it is the value that is wrong. Never that of an unknown key, which
    /// may be a password in the wrong place.
    pub value: Option<String>,
    /// What was expected, or what to do.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}", self.key)?;
            if let Some(value) = &self.value {
                write!(f, " = {value}")?;
            }
            write!(f, ": ")?;
        }
        f.write_str(&self.advice)
    }
}

impl Problem {
    /// The whole source cannot be used.
    pub(super) fn file(origin: &str, advice: String) -> Self {
        Self {
            origin: origin.into(),
            key: String::new(),
            value: None,
            advice: advice.trim_end().replace('\n', "\n      "),
        }
    }

    /// A value that is not what the key takes; `expected` completes "expected ...".
    pub(super) fn value(origin: &str, key: &str, found: &ValueKind, expected: String) -> Self {
        const SHOWN_CHARS_MAX: usize = 100;
        let mut value = toml_of(found);
        if let Some((cut, _)) = value.char_indices().nth(SHOWN_CHARS_MAX) {
            value.truncate(cut);
            value.push_str("...");
        }
        Self {
            origin: origin.into(),
            key: key.into(),
            value: Some(value),
            advice: format!("expected {expected}"),
        }
    }

    /// No such section.
    pub(super) fn section(origin: &str, name: &str, sections: &[String]) -> Self {
        let advice = match nearest(name, sections.iter().map(String::as_str)) {
            Some(near) => format!("no such section; did you mean [{near}]?"),
            None => format!("no such section; there are {}", sections.join(", ")),
        };
        Self {
            origin: origin.into(),
            key: name.into(),
            value: None,
            advice,
        }
    }
}

/// A key in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `mqtt`, or `users.plc-3`.
    pub section: String,
    /// The key inside the section.
    pub key: &'static str,
    /// The value as TOML.
    pub value: String,
    /// `default`, a file, an environment variable or a flag.
    pub origin: String,
    /// It stands in another section, from which this one takes it.
    pub is_inherited: bool,
}

/// What reading found out.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) entries: Vec<Entry>,
    pub(super) problems: Vec<Problem>,
    pub(super) unknown: Vec<Unknown>,
}

/// A key that nobody asked for.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) section: String,
    pub(super) key: String,
    pub(super) origin: String,
}

impl Report {
    pub(super) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Entries, and problems with the unknown keys among them: only now all known keys are known.
    pub(super) fn into_parts(mut self) -> (Vec<Entry>, Vec<Problem>) {
        for unknown in std::mem::take(&mut self.unknown) {
            let advice = self.advise(&unknown);
            self.problems.push(Problem {
                origin: unknown.origin,
                key: format!("{}.{}", unknown.section, unknown.key),
                value: None,
                advice,
            });
        }
        (self.entries, self.problems)
    }

    fn advise(&self, unknown: &Unknown) -> String {
        let here = |e: &&Entry| e.section == unknown.section;
        if unknown.key == "password" {
            return "no such key: passwords are read from files, use password_file".into();
        }
        if let Some(near) = nearest(
            &unknown.key,
            self.entries.iter().filter(here).map(|e| e.key),
        ) {
            return format!("no such key; did you mean {near}?");
        }
        if let Some(elsewhere) = self.entries.iter().find(|e| e.key == unknown.key) {
            return format!("no such key here; it belongs in [{}]", elsewhere.section);
        }
        let keys: Vec<&str> = self.entries.iter().filter(here).map(|e| e.key).collect();
        format!("no such key; [{}] has {}", unknown.section, keys.join(", "))
    }
}

/// The known name that was probably meant. A name without its unit counts as near.
pub(super) fn nearest<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    const NEAR: f64 = 0.7;
    let name = name.to_lowercase().replace('-', "_");
    known
        .clone()
        .map(|k| (strsim::normalized_damerau_levenshtein(&name, k), k))
        .filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
        .or_else(|| {
            let mut longer =
                known.filter(|k| name.len() >= 3 && (k.starts_with(&name) || name.starts_with(*k)));
            longer.next()
        })
}

/// A value as TOML on one line.
pub(super) fn toml_of(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Nil => "nothing".into(),
        ValueKind::String(text) => toml_of_text(text),
        ValueKind::Float(number) => toml::Value::Float(*number).to_string(),
        ValueKind::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| toml_of(&item.kind)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Table(_) => "a table".into(),
        other => other.to_string(),
    }
}

/// Text as a TOML string on one line: JSON's escapes are TOML's too, but for DEL, which TOML wants escaped.
pub(super) fn toml_of_text(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}
