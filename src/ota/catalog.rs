//! Which releases there are, for whom, and which are recalled.
//!
//! ```json
//! {"schema": 1, "catalog_seq": 41, "issued": "2026-11-21T13:30:00Z",
//!  "lines": [{"line": "assistant-s", "min_seq": 9, "allow_downgrade_to": [],
//!             "releases": [{"release_seq": 11, "id": "qwen3-4b", "state": "withdrawn"},
//!                          {"release_seq": 12, "id": "qwen3-4b-v2", "state": "active", "groups": ["hall2"],
//!                           "waves": [{"start_after_s": 0, "percent": 5}, {"start_after_s": 86400, "percent": 100}]}]}]}
//! ```
//!
//! A command can only choose a release that stands here. `withdrawn`: whoever runs it leaves it at the next
//! check, for the highest release of the line that may be taken. A device does not go below its committed
//! release, nor ever below `min_seq`; `allow_downgrade_to` lifts the first rule for the numbers in it.
//!
//! A release with `waves` is taken by devices of themselves when their turn comes; one without waits for a
//! command (`orinoco-ota rollout` gives it, wave by wave).

use serde::{Deserialize, Serialize};

use super::error::{Check, FileError};
use super::manifest::RELEASE_SEQ_MAX;
use super::name::{GroupName, LineName, ModelId, TargetName};
use super::waves::{self, Wave};

/// Longest catalogue, bytes.
pub const CATALOG_BYTES_MAX: usize = 1 << 20;
/// Of the meaning of a catalogue.
pub const SCHEMA: u32 = 1;
/// Most lines.
pub const LINES_MAX: usize = 64;
/// Most releases of one line.
pub const RELEASES_MAX: usize = 256;
/// Most groups of one release.
pub const GROUPS_MAX: usize = 64;

const CHECK: Check = Check("catalogue");

/// All releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Rises with each catalogue.
    pub catalog_seq: u64,
    /// When it was made, in the form of TUF's `expires`.
    pub issued: String,
    /// The lines, each once.
    pub lines: Vec<Line>,
}

/// Releases that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its name.
    pub line: LineName,
    /// No device goes below this number, whoever asks.
    #[serde(default)]
    pub min_seq: u64,
    /// Numbers that a device may go back to, by command or because of a recall.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_downgrade_to: Vec<u64>,
    /// Ascending.
    pub releases: Vec<Release>,
}

/// One release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its number.
    pub release_seq: u64,
    /// Its model; the manifest is [`TargetName::manifest`] of it.
    pub id: ModelId,
    /// Whether it may run.
    pub state: ReleaseState,
    /// Groups that may take it; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupName>,
    /// When devices take it of themselves; empty: not before a command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waves: Vec<Wave>,
}

/// Whether a release may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// It may.
    Active,
    /// It was recalled: whoever runs it leaves it.
    Withdrawn,
}

impl Release {
    /// Whether devices of this group may take it.
    pub fn is_for(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|name| name.as_str() == group)
    }

    /// Target of its manifest.
    pub fn manifest_target(&self) -> TargetName {
        TargetName::manifest(&self.id)
    }
}

impl Line {
    /// The release of this number.
    pub fn release(&self, release_seq: u64) -> Option<&Release> {
        let is_it = |release: &&Release| release.release_seq == release_seq;
        self.releases.iter().find(is_it)
    }

    /// Whether a device whose committed release is `from` may go to `to`, as far as numbers go.
    pub fn allows(&self, from: Option<u64>, to: u64) -> bool {
        let is_forward = from.is_none_or(|from| to >= from);
        to >= self.min_seq && (is_forward || self.allow_downgrade_to.contains(&to))
    }

    /// The highest release that a device of `group` may take from `from`, and is not recalled.
    pub fn best(&self, group: &str, from: Option<u64>) -> Option<&Release> {
        self.releases.iter().rev().find(|release| {
            release.state == ReleaseState::Active
                && release.is_for(group)
                && self.allows(from, release.release_seq)
        })
    }
}

impl Catalog {
    /// Reads a catalogue.
    ///
    /// # Errors
    /// It is too long, no JSON of this shape, of another schema, or a value is out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let catalog: Self = CHECK.json(bytes, CATALOG_BYTES_MAX, SCHEMA)?;
        catalog.check()?;
        Ok(catalog)
    }

    /// That each value is within its bounds, lines are named once and releases ascend.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), FileError> {
        CHECK.schema(self.schema, SCHEMA)?;
        CHECK.within("catalog_seq", self.catalog_seq, 1..=RELEASE_SEQ_MAX)?;
        CHECK.text("issued", &self.issued, 20, 20)?;
        CHECK.count("lines", self.lines.len(), LINES_MAX)?;
        for (idx, line) in self.lines.iter().enumerate() {
            let is_first = self.lines[..idx]
                .iter()
                .all(|other| other.line != line.line);
            let key = format!("lines[{idx}]");
            CHECK.that(
                is_first,
                format!("{key}.line"),
                &line.line,
                "each line once",
            )?;
            line.check(&key)?;
        }
        Ok(())
    }

    /// The catalogue as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("maps have text keys only");
        bytes.push(b'\n');
        bytes
    }

    /// The line of this name.
    pub fn line(&self, name: &LineName) -> Option<&Line> {
        self.lines.iter().find(|line| line.line == *name)
    }

    /// The release of this line and number.
    pub fn release(&self, line: &LineName, release_seq: u64) -> Option<&Release> {
        self.line(line)?.release(release_seq)
    }
}

impl Line {
    fn check(&self, key: &str) -> Result<(), FileError> {
        CHECK.within(format!("{key}.min_seq"), self.min_seq, 0..=RELEASE_SEQ_MAX)?;
        CHECK.count(
            format!("{key}.allow_downgrade_to"),
            self.allow_downgrade_to.len(),
            RELEASES_MAX,
        )?;
        CHECK.count(format!("{key}.releases"), self.releases.len(), RELEASES_MAX)?;
        let mut before = 0;
        for (idx, release) in self.releases.iter().enumerate() {
            let key = format!("{key}.releases[{idx}]");
            CHECK.that(
                release.release_seq > before && release.release_seq <= RELEASE_SEQ_MAX,
                format!("{key}.release_seq"),
                release.release_seq,
                format!("more than {before}, at most {RELEASE_SEQ_MAX}"),
            )?;
            before = release.release_seq;
            CHECK.count(format!("{key}.groups"), release.groups.len(), GROUPS_MAX)?;
            waves::check(CHECK, &format!("{key}.waves"), &release.waves)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn release(seq: u64, state: &str) -> Value {
        json!({"release_seq": seq, "id": format!("m{seq}"), "state": state})
    }

    fn catalog(line: Value) -> Value {
        json!({"schema": 1, "catalog_seq": 1, "issued": "2026-11-21T13:30:00Z", "lines": [line]})
    }

    fn parse(value: &Value) -> Result<Catalog, FileError> {
        Catalog::parse(value.to_string().as_bytes())
    }

    fn best(line: Value, from: Option<u64>) -> Option<u64> {
        let catalog = parse(&catalog(line)).unwrap();
        let best = catalog.lines[0].best("hall2", from);
        best.map(|release| release.release_seq)
    }

    #[test]
    fn recalled_release_is_never_the_best_and_lower_ones_only_where_allowed() {
        let releases = [
            release(9, "active"),
            release(11, "active"),
            release(12, "withdrawn"),
        ];
        let line = |more: Value| {
            let mut line = json!({"line": "s", "releases": releases});
            line.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            line
        };
        assert_eq!(best(line(json!({})), None), Some(11));
        assert_eq!(best(line(json!({})), Some(12)), None);
        assert_eq!(
            best(line(json!({"allow_downgrade_to": [9]})), Some(12)),
            Some(9)
        );
        assert_eq!(
            best(
                line(json!({"allow_downgrade_to": [9], "min_seq": 10})),
                Some(12)
            ),
            None
        );
    }

    #[test]
    fn release_for_other_groups_is_passed_over() {
        let mut other = release(2, "active");
        other["groups"] = json!(["hall9"]);
        let line = json!({"line": "s", "releases": [release(1, "active"), other]});
        assert_eq!(best(line, None), Some(1));
    }

    #[test]
    fn lines_twice_and_releases_that_do_not_ascend_are_refused() {
        let line = json!({"line": "s", "releases": [release(1, "active")]});
        let mut twice = catalog(line.clone());
        twice["lines"] = json!([line, line]);
        assert!(
            parse(&twice)
                .unwrap_err()
                .to_string()
                .contains("lines[1].line")
        );
        let same = json!({"line": "s", "releases": [release(1, "active"), release(1, "active")]});
        let error = parse(&catalog(same)).unwrap_err().to_string();
        assert!(
            error.contains("lines[0].releases[1].release_seq: found 1, expected more than 1"),
            "{error}"
        );
    }

    #[test]
    fn more_lines_or_releases_than_bounds_are_refused() {
        let releases: Vec<Value> = (1..=257).map(|seq| release(seq, "active")).collect();
        assert!(parse(&catalog(json!({"line": "s", "releases": releases}))).is_err());
        assert!(parse(&catalog(json!({"line": "s", "releases": releases[..256]}))).is_ok());
        assert!(Catalog::parse(&vec![b' '; CATALOG_BYTES_MAX + 1]).is_err());
        assert!(
            parse(&json!({"schema": 7}))
                .unwrap_err()
                .to_string()
                .contains("schema 7")
        );
    }

    prop_compose! {
        fn lines()(
            seqs in prop::collection::btree_set(1u64..20, 0..8),
            withdrawn in prop::collection::btree_set(1u64..20, 0..8),
            allowed in prop::collection::vec(1u64..20, 0..4),
            min_seq in 0u64..10,
        ) -> Line {
            let release = |seq: &u64| Release {
                release_seq: *seq,
                id: ModelId::new(&format!("m{seq}")).unwrap(),
                state: match withdrawn.contains(seq) {
                    true => ReleaseState::Withdrawn,
                    false => ReleaseState::Active,
                },
                groups: Vec::new(),
                waves: Vec::new(),
            };
            Line {
                line: LineName::new("s").unwrap(),
                min_seq,
                allow_downgrade_to: allowed,
                releases: seqs.iter().map(release).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn best_is_never_recalled_below_the_minimum_or_a_downgrade_that_nobody_allowed(
            line in lines(), from in prop::option::of(1u64..20),
        ) {
            if let Some(best) = line.best("g", from) {
                let seq = best.release_seq;
                prop_assert_eq!(best.state, ReleaseState::Active);
                prop_assert!(seq >= line.min_seq);
                prop_assert!(from.is_none_or(|from| seq >= from) || line.allow_downgrade_to.contains(&seq));
                // Nothing higher would have been allowed.
                let higher = line.releases.iter().filter(|r| r.release_seq > seq && r.state == ReleaseState::Active);
                prop_assert!(higher.into_iter().all(|r| !line.allows(from, r.release_seq)));
            }
        }

        #[test]
        fn catalogue_survives_being_written_and_read(line in lines(), catalog_seq in 1u64..100) {
            let catalog = Catalog {
                schema: SCHEMA, catalog_seq, issued: "2026-11-21T13:30:00Z".into(), lines: vec![line],
            };
            prop_assert_eq!(Catalog::parse(&catalog.to_bytes()).unwrap(), catalog);
        }
    }
}
