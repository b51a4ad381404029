//! Reads the merged tree key by key: types, allowed values, unknown keys, origins.
//!
//! A part asks its [`Section`] for each of its keys once; what is left over when the section ends is an
//! unknown key. A bad value is reported and a placeholder returned, so that reading goes on to the next
//! problem; the placeholders never leave [`super::load`].

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Map, Value, ValueKind};

use super::problem::{Entry, Problem, Report, Unknown, nearest, toml_of, toml_of_text};
use super::{Sources, layers, read_bounded};

/// The merged tree, sections taken one by one.
pub(super) struct Root<'r> {
    tree: Map<String, Value>,
    working_dir: PathBuf,
    credentials_dir: Option<PathBuf>,
    report: &'r mut Report,
}

impl<'r> Root<'r> {
    pub(super) fn new(tree: Map<String, Value>, sources: &Sources, report: &'r mut Report) -> Self {
        let credentials_dir = sources.environment.get("CREDENTIALS_DIRECTORY");
        Self {
            tree,
            working_dir: sources.working_dir.clone(),
            credentials_dir: credentials_dir.map(PathBuf::from),
            report,
        }
    }

    /// A section of the documented defaults.
    pub(super) fn section(&mut self, name: &'static str) -> Section<'_> {
        let own = match self.tree.remove(name).map(|v| v.kind) {
            Some(ValueKind::Table(table)) => table.into_iter().collect(),
            _ => BTreeMap::new(),
        };
        self.documented(name.to_owned(), own)
    }

    /// A section of which the defaults name each key, with what `own` says.
    fn documented(&mut self, name: String, own: BTreeMap<String, Value>) -> Section<'_> {
        Section {
            name,
            own,
            inherited: BTreeMap::new(),
            origin: layers::DEFAULT.into(),
            working_dir: &self.working_dir,
            credentials_dir: self.credentials_dir.as_deref(),
            report: self.report,
        }
    }

    /// A section that has tables below it, without those; they are read by [`Root::below`] afterwards.
    pub(super) fn own(&mut self, name: &'static str, tables: &[&str]) -> Section<'_> {
        let mut own = BTreeMap::new();
        if let Some(ValueKind::Table(table)) = self.tree.get_mut(name).map(|v| &mut v.kind) {
            let (below, mine) = std::mem::take(table)
                .into_iter()
                .partition(|(key, _)| tables.contains(&key.as_str()));
            *table = below;
            let mine: Map<String, Value> = mine;
            own = mine.into_iter().collect();
        }
        self.documented(name.to_owned(), own)
    }

    /// A table of the documented defaults below another: `[parent.name]`.
    pub(super) fn below(&mut self, parent: &'static str, name: &'static str) -> Section<'_> {
        let mut own = BTreeMap::new();
        if let Some(ValueKind::Table(tables)) = self.tree.get_mut(parent).map(|v| &mut v.kind) {
            if let Some(ValueKind::Table(table)) = tables.remove(name).map(|v| v.kind) {
                own = table.into_iter().collect();
            }
            // Whoever takes the last one takes the parent, unless that has keys of its own.
            if tables.is_empty() {
                self.tree.remove(parent);
            }
        }
        self.documented(format!("{parent}.{name}"), own)
    }

    /// The named tables below `name` (`[models.X]`, `[users.X]`). Tables with a bad name or no table at all
    /// are reported.
    pub(super) fn named(
        &mut self,
        name: &'static str,
        check_name: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<Named> {
        let Some(ValueKind::Table(tables)) = self.tree.remove(name).map(|v| v.kind) else {
            return Vec::new();
        };
        let tables: BTreeMap<String, Value> = tables.into_iter().collect();
        let mut named = Vec::new();
        for (child, value) in tables {
            let path = format!("{name}.{child}");
            let origin = origin_of(&value);
            let ValueKind::Table(own) = value.kind else {
                let expected = format!("a table: [{path}] with keys below it");
                self.report
                    .problem(Problem::value(&origin, &path, &value.kind, expected));
                continue;
            };
            if let Err(advice) = check_name(&child) {
                self.report.problem(Problem {
                    origin: origin.clone(),
                    key: path.clone(),
                    value: None,
                    advice,
                });
            }
            named.push(Named {
                name: child,
                path,
                own: own.into_iter().collect(),
                origin,
            });
        }
        named
    }

    /// A named table as a section that inherits the keys of `parent`, see [`Root::copy`].
    pub(super) fn heir(&mut self, named: &Named, parent: &Keys) -> Section<'_> {
        Section {
            name: named.path.clone(),
            own: named.own.clone(),
            inherited: parent.clone(),
            origin: named.origin.clone(),
            working_dir: &self.working_dir,
            credentials_dir: self.credentials_dir.as_deref(),
            report: self.report,
        }
    }

    /// The same once more under another parent, for its values alone: [`Root::heir`] has told what is wrong
    /// with it.
    pub(super) fn heir_again<T>(
        &self,
        named: &Named,
        parent: &Keys,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let mut report = Report::default();
        let mut section = Section {
            name: named.path.clone(),
            own: named.own.clone(),
            inherited: parent.clone(),
            origin: named.origin.clone(),
            working_dir: &self.working_dir,
            credentials_dir: self.credentials_dir.as_deref(),
            report: &mut report,
        };
        read(&mut section)
    }

    /// The values of a section, for [`Root::heir`] to inherit.
    pub(super) fn copy(&self, name: &str) -> Keys {
        match self.tree.get(name).map(|v| &v.kind) {
            Some(ValueKind::Table(table)) => table.clone().into_iter().collect(),
            _ => BTreeMap::new(),
        }
    }

    /// Nothing may be left: a section of `default.toml` that no part reads is our own mistake.
    pub(super) fn finish(self) {
        for (name, value) in self.tree {
            let origin = origin_of(&value);
            self.report.problem(Problem {
                origin,
                key: name,
                value: None,
                advice: "no part of the program reads this section".into(),
            });
        }
    }
}

/// Keys of a section, as merged.
pub(super) type Keys = BTreeMap<String, Value>;

/// One of several tables of a kind.
pub(super) struct Named {
    /// Its own name.
    pub(super) name: String,
    path: String,
    own: Keys,
    origin: String,
}

impl Named {
    /// The keys of `parent` under its own.
    pub(super) fn over(&self, parent: &Keys) -> Keys {
        let mut keys = parent.clone();
        keys.extend(self.own.clone());
        keys
    }
}

/// One section while a part reads it.
pub(super) struct Section<'r> {
    name: String,
    own: BTreeMap<String, Value>,
    inherited: BTreeMap<String, Value>,
    origin: String,
    working_dir: &'r Path,
    credentials_dir: Option<&'r Path>,
    report: &'r mut Report,
}

impl Section<'_> {
    /// An integer within `allowed`.
    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<i64>,
    ) -> T {
        let value = self.take(key);
        let number = match &value.kind {
            ValueKind::I64(number) => Some(*number),
            ValueKind::String(text) if value.is_text => text.replace('_', "").parse().ok(),
            _ => None,
        };
        let number: i64 = number.filter(|n| allowed.contains(n)).unwrap_or_else(|| {
            self.bad(
                key,
                &value,
                format!("an integer from {} to {}", allowed.start(), allowed.end()),
            );
            *allowed.start()
        });
        self.settle(number.to_string());
        // The range lies within T for every caller; the tests read each key at both ends.
        T::try_from(number)
            .unwrap_or_else(|_| unreachable!("{key}: the allowed range is wider than the type"))
    }

    /// Milliseconds within `allowed`.
    pub(super) fn milliseconds(
        &mut self,
        key: &'static str,
        allowed: RangeInclusive<i64>,
    ) -> Duration {
        Duration::from_millis(self.integer(key, allowed))
    }

    /// Seconds within `allowed`.
    pub(super) fn seconds(&mut self, key: &'static str, allowed: RangeInclusive<i64>) -> Duration {
        Duration::from_secs(self.integer(key, allowed))
    }

    /// A number within `allowed`; an integer is one too.
    pub(super) fn number(&mut self, key: &'static str, allowed: RangeInclusive<f32>) -> f32 {
        let value = self.take(key);
        let number = match &value.kind {
            ValueKind::Float(number) => Some(*number as f32),
            ValueKind::I64(number) => Some(*number as f32),
            ValueKind::String(text) if value.is_text => text.parse().ok(),
            _ => None,
        };
        let number = number.filter(|n| allowed.contains(n)).unwrap_or_else(|| {
            self.bad(
                key,
                &value,
                format!("a number from {:?} to {:?}", allowed.start(), allowed.end()),
            );
            *allowed.start()
        });
        self.settle(format!("{number:?}"));
        number
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str) -> bool {
        let value = self.take(key);
        let boolean = match &value.kind {
            ValueKind::Boolean(boolean) => Some(*boolean),
            ValueKind::String(text) if value.is_text => text.parse().ok(),
            _ => None,
        };
        let boolean = boolean.unwrap_or_else(|| {
            self.bad(key, &value, "true or false".into());
            false
        });
        self.settle(boolean.to_string());
        boolean
    }

    /// Text of at most `bytes_max` bytes, without NUL.
    pub(super) fn text(&mut self, key: &'static str, bytes_max: usize) -> String {
        self.checked(key, |text| match text {
            text if text.len() > bytes_max => Err(format!("at most {bytes_max} bytes")),
            text if text.contains('\0') => Err("text without NUL".into()),
            text => Ok(text.to_owned()),
        })
        .unwrap_or_default()
    }

    /// Text as above; `""` is none.
    pub(super) fn optional_text(&mut self, key: &'static str, bytes_max: usize) -> Option<String> {
        Some(self.text(key, bytes_max)).filter(|text| !text.is_empty())
    }

    /// Text that `check` understands; its error completes "expected ...". `None` after a problem.
    pub(super) fn checked<T>(
        &mut self,
        key: &'static str,
        check: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.take(key);
        let ValueKind::String(text) = &value.kind else {
            self.bad(key, &value, "text in quotes".into());
            return None;
        };
        check(text)
            .map_err(|expected| self.bad(key, &value, expected))
            .ok()
    }

    /// One of the named choices.
    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> T {
        self.checked(key, |text| {
            let found = choices.iter().find(|(name, _)| *name == text);
            found
                .map(|(_, choice)| *choice)
                .ok_or_else(|| one_of(text, choices))
        })
        .unwrap_or(choices[0].1)
    }

    /// A list of named choices, each at most once; from a flag or the environment separated by commas.
    pub(super) fn choices<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Vec<T> {
        let value = self.take(key);
        let Some(words) = self.list(&value) else {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            self.bad(key, &value, format!("a list of some of {}", quoted(&names)));
            return Vec::new();
        };
        let mut chosen = Vec::new();
        for word in words {
            match choices.iter().find(|(name, _)| *name == word) {
                Some((_, choice)) if !chosen.contains(choice) => chosen.push(*choice),
                Some(_) => {}
                None => self.bad(key, &value, one_of(&word, choices)),
            }
        }
        chosen
    }

    /// A list of at most `max` words, each at most once; the error of `check` completes "expected ...".
    pub(super) fn words(
        &mut self,
        key: &'static str,
        max: usize,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let mut words = self.words_in_order(key, max, check);
        words.sort();
        words.dedup();
        words
    }

    /// A list of at most `max` words whose order means something.
    pub(super) fn words_in_order(
        &mut self,
        key: &'static str,
        max: usize,
        check: impl Fn(&str) -> Result<(), String>,
    ) -> Vec<String> {
        let value = self.take(key);
        let words = self.list(&value).filter(|words| words.len() <= max);
        let Some(words) = words else {
            self.bad(key, &value, format!("a list of at most {max} words"));
            return Vec::new();
        };
        if let Some(expected) = words.iter().find_map(|word| check(word).err()) {
            self.bad(key, &value, expected);
            return Vec::new();
        }
        words
    }

    /// The words of a list, or of text from a flag or the environment, separated by commas.
    fn list(&mut self, value: &Taken) -> Option<Vec<String>> {
        let words: Vec<String> = match &value.kind {
            ValueKind::Array(items) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(word) => Some(word.clone()),
                    _ => None,
                })
                .collect::<Option<_>>()?,
            ValueKind::String(text) if value.is_text => text
                .split(',')
                .map(|word| word.trim().to_owned())
                .filter(|word| !word.is_empty())
                .collect(),
            _ => return None,
        };
        let listed: Vec<String> = words.iter().map(|word| toml_of_text(word)).collect();
        self.settle(format!("[{}]", listed.join(", ")));
        Some(words)
    }

    /// A list of at most `max` tables, in its order; each inherits the keys of `parent`.
    pub(super) fn tables<T>(
        &mut self,
        key: &'static str,
        max: usize,
        parent: &Keys,
        read: impl Fn(&mut Section<'_>) -> T,
    ) -> Vec<T> {
        let value = self.take(key);
        let ValueKind::Array(items) = &value.kind else {
            self.bad(key, &value, format!("a list of at most {max} tables"));
            return Vec::new();
        };
        if items.len() > max {
            let found = items.len();
            self.bad(key, &value, format!("at most {max} tables, found {found}"));
            return Vec::new();
        }
        let shown = Vec::from_iter(items.iter().map(|item| inline(&item.kind)));
        self.settle(format!("[{}]", shown.join(", ")));
        let mut all = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let path = format!("{key}[{at}]");
            let ValueKind::Table(own) = &item.kind else {
                self.bad(&path, &value, "a table".into());
                continue;
            };
            // Its entries are part of this one.
            let mut report = Report::default();
            all.push(read(&mut Section {
                name: format!("{}.{path}", self.name),
                own: own.clone().into_iter().collect(),
                inherited: parent.clone(),
                origin: value.origin.clone(),
                working_dir: self.working_dir,
                credentials_dir: self.credentials_dir,
                report: &mut report,
            }));
            let (_, problems) = report.into_parts();
            problems
                .into_iter()
                .for_each(|problem| self.report.problem(problem));
        }
        all
    }

    /// A path; `""` is none. In files it is absolute, so that it does not depend on where the daemon was
    /// started; from flags and the environment a relative one starts in the working directory.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let value = self.take(key);
        match &value.kind {
            ValueKind::String(text) if text.is_empty() => None,
            ValueKind::String(text) if text.contains('\0') => {
                self.bad(key, &value, "a path without NUL".into());
                None
            }
            ValueKind::String(text) if value.is_text => {
                let path = self.working_dir.join(text);
                self.settle(toml_of_text(&path.to_string_lossy()));
                Some(path)
            }
            ValueKind::String(text) if Path::new(text).is_absolute() => Some(PathBuf::from(text)),
            _ => {
                self.bad(key, &value, "an absolute path in quotes".into());
                None
            }
        }
    }

    /// A path; where the key names none, that of the systemd credential `name`, if the service was handed
    /// one (systemd.exec(5), LoadCredential=). One without any text is none: SetCredential= gives it to a unit
    /// whose file is missing, which could not start otherwise.
    pub(super) fn path_or_credential(&mut self, key: &'static str, name: &str) -> Option<PathBuf> {
        if let Some(path) = self.path(key) {
            return Some(path);
        }
        let path = self.credentials_dir?.join(name);
        if !path.exists() || is_blank(&path) {
            return None;
        }
        if let Some(entry) = self.report.entries.last_mut() {
            entry.value = toml_of_text(&path.to_string_lossy());
            entry.origin = format!("systemd credential {name}");
        }
        Some(path)
    }

    /// The text of the file that the key names, at most `bytes_max` bytes; `""` is none.
    pub(super) fn file_text(&mut self, key: &'static str, bytes_max: u64) -> Option<String> {
        let path = self.path(key)?;
        read_bounded(&path, bytes_max)
            .map_err(|e| {
                self.contradiction(key, "", format!("cannot read {}: {e}", path.display()))
            })
            .ok()
    }

    /// Reports at `key` a contradiction with the key `other` (`section.key`, or `""`), each fine alone.
    /// Where one of them has a problem already, that is the one to repair first.
    pub(super) fn contradiction(&mut self, key: &'static str, other: &str, advice: String) {
        let path = format!("{}.{key}", self.name);
        if self
            .report
            .problems
            .iter()
            .any(|p| p.key == path || p.key == other)
        {
            return;
        }
        let here = |key: &str| {
            let mut entries = self.report.entries.iter().rev();
            entries.find(|e| e.key == key && e.section == self.name)
        };
        let entry = here(key);
        let beside = other.rsplit('.').next().and_then(here);
        if [entry, beside]
            .into_iter()
            .flatten()
            .all(|e| e.is_inherited)
        {
            return; // Told where both come from.
        }
        let (origin, value) = entry
            .map(|e| (e.origin.clone(), e.value.clone()))
            .expect("contradictions are about keys that were read");
        self.report.problem(Problem {
            origin,
            key: path,
            value: Some(value),
            advice,
        });
    }

    /// Reports what is wrong with all of the table.
    pub(super) fn flaw(&mut self, advice: String) {
        self.report.problem(Problem {
            origin: self.origin.clone(),
            key: self.name.clone(),
            value: None,
            advice,
        });
    }

    /// Removes the value from the section, notes it as an entry, and says how to read it.
    fn take(&mut self, key: &'static str) -> Taken {
        let own = self.own.remove(key);
        let is_own = own.is_some();
        let Some(value) = own.or_else(|| self.inherited.remove(key)) else {
            let key = format!("{}.{key}", self.name);
            let missing = Problem {
                origin: self.origin.clone(),
                value: None,
                advice: "this key is required".into(),
                key,
            };
            self.report.problem(missing);
            return Taken {
                kind: ValueKind::Nil,
                origin: String::new(),
                is_text: false,
                is_reported: true,
            };
        };
        let origin = origin_of(&value);
        self.report.entries.push(Entry {
            section: self.name.clone(),
            key,
            value: toml_of(&value.kind),
            origin: origin.clone(),
            is_inherited: !is_own,
        });
        Taken {
            is_text: layers::is_text(&origin),
            kind: value.kind,
            origin,
            is_reported: !is_own,
        }
    }

    /// What the value just taken was read as; text from flags and the environment has a type only now.
    fn settle(&mut self, value: String) {
        if let Some(entry) = self.report.entries.last_mut() {
            entry.value = value;
        }
    }

    fn bad(&mut self, key: &str, value: &Taken, expected: String) {
        if value.is_reported {
            return;
        }
        let key = format!("{}.{key}", self.name);
        self.report
            .problem(Problem::value(&value.origin, &key, &value.kind, expected));
    }
}

impl Drop for Section<'_> {
    /// What the part did not ask for does not exist.
    fn drop(&mut self) {
        for (key, value) in std::mem::take(&mut self.own) {
            self.report.unknown.push(Unknown {
                section: self.name.clone(),
                origin: origin_of(&value),
                key,
            });
        }
    }
}

struct Taken {
    kind: ValueKind,
    origin: String,
    is_text: bool,
    /// Missing, or inherited: then the section it comes from has reported what is wrong with it.
    is_reported: bool,
}

/// A value as TOML on one line, tables with their keys in order.
fn inline(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Table(table) => {
            let sorted: BTreeMap<_, _> = table.iter().collect();
            let pairs = sorted.iter().map(|(key, value)| {
                let bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
                let value = inline(&value.kind);
                match !key.is_empty() && key.chars().all(bare) {
                    true => format!("{key} = {value}"),
                    false => format!("{} = {value}", toml_of_text(key)),
                }
            });
            format!("{{ {} }}", Vec::from_iter(pairs).join(", "))
        }
        other => toml_of(other),
    }
}

fn one_of<T>(word: &str, choices: &[(&str, T)]) -> String {
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    let mut expected = quoted(&names);
    if let Some(near) = nearest(word, names.iter().copied()) {
        expected.push_str(&format!("; did you mean {near:?}?"));
    }
    expected
}

fn quoted(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// Where a value comes from. Merging leaves tables without an origin: then that of the first value inside.
fn origin_of(value: &Value) -> String {
    if let Some(origin) = value.origin() {
        return origin.to_owned();
    }
    // A path of at most three levels by construction; deeper tables are unknown keys all the same.
    let mut here = value;
    while let ValueKind::Table(table) = &here.kind {
        match table.values().next() {
            Some(inner) => here = inner,
            None => break,
        }
        if let Some(origin) = here.origin() {
            return origin.to_owned();
        }
    }
    "configuration".to_owned()
}

/// Whether a file has nothing but white space, and little of that.
fn is_blank(path: &Path) -> bool {
    read_bounded(path, 64).is_ok_and(|text| text.trim().is_empty())
}
