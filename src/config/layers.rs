//! Fragments: each source as it stands, merged key by key by the crate `config`.
//!
//! Every value carries its origin as text: `default`, a file's path, `environment variable NAME` or the
//! flag. What comes from the environment or a flag is text; [`is_text`] tells the reader to parse it by the
//! type of its key.

use std::path::{Path, PathBuf};

use config::{Format, Map, Source, Value, ValueKind};

use super::problem::{Problem, Report};
use super::{DEFAULT_TOML, Environment, read_bounded, system_dir};

/// Largest configuration file, bytes. The documented default is a twentieth of it.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// Most drop-ins, so that a directory filled by mistake is an error and not a long start.
const DROP_INS_MAX: usize = 256;

/// Origin of values in the embedded file.
pub(super) const DEFAULT: &str = "default";
/// Origin of settings that the fleet signed.
pub(super) const FLEET: &str = "policy of the fleet";
const ENVIRONMENT: &str = "environment variable ";

/// Where configuration files are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `/etc/orinoco`; nothing there is fine.
    System,
    /// A directory with `config.toml`, `config.d/*.toml` or both; or one file.
    Path(PathBuf),
    /// No files: the embedded defaults, environment and flags alone.
    Defaults,
}

/// Everything that [`super::load`] reads.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Files.
    pub place: Place,
    /// Settings that the fleet signed for all its nodes: above the defaults, below the node's own files.
    pub fleet: Option<toml::Table>,
    /// Environment, captured.
    pub environment: Environment,
    /// Settings from the command line in their order: `section.key`, value, and the flag as typed.
    pub flags: Vec<Flag>,
    /// Relative paths from flags and environment start here.
    pub working_dir: PathBuf,
}

/// One setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// `section.key`, or `section.name.key` where the name may hold dots.
    pub key: String,
    /// As typed.
    pub value: String,
    /// What the operator typed, for messages, e.g. `--set mqtt.port`.
    pub label: String,
}

impl Sources {
    /// The system's files, with this environment.
    pub fn new(environment: Environment) -> Self {
        Self {
            place: Place::System,
            fleet: None,
            environment,
            flags: Vec::new(),
            // Only a deleted working directory has no name; then relative paths have no meaning either.
            working_dir: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }

    /// The embedded defaults alone: no files, no environment. For tests and tools.
    pub fn defaults() -> Self {
        Self {
            place: Place::Defaults,
            ..Self::new(Environment::default())
        }
    }

    /// Adds a setting that wins over everything before it.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.flags.push(Flag {
            key: key.to_owned(),
            value: value.to_string(),
            label: format!("--set {key}"),
        });
        self
    }
}

/// Whether values of this origin are text to be parsed by the type of their key.
pub(super) fn is_text(origin: &str) -> bool {
    origin.starts_with(ENVIRONMENT) || origin.starts_with('-')
}

/// One source: a table of sections, each with its origin inside.
#[derive(Debug, Clone)]
struct Fragment(Map<String, Value>);

impl Source for Fragment {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }
    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

/// All sources in one tree, the later over the earlier. Files that cannot be read or parsed are reported
/// and left out, so that the rest can be checked too.
pub(super) fn merge(sources: &Sources, report: &mut Report) -> Map<String, Value> {
    let default =
        parse(DEFAULT, DEFAULT_TOML).expect("configs/default.toml is TOML, a test reads it");
    let sections: Vec<String> = default
        .keys()
        .cloned()
        .chain(["models", "profiles", "templates", "users"].map(String::from))
        .collect();

    let mut builder = config::Config::builder().add_source(Fragment(default));
    if let Some(settings) = &sources.fleet {
        let text = toml::to_string(settings).map_err(Into::into);
        match text.and_then(|text| parse(FLEET, &text)) {
            Ok(table) => {
                let table = known_sections(FLEET, table, &sections, report);
                builder = builder.add_source(Fragment(table));
            }
            Err(error) => report.problem(Problem::file(FLEET, error.to_string())),
        }
    }
    for path in files(&sources.place, report) {
        let origin = path.display().to_string();
        let fragment = read_bounded(&path, FILE_BYTES_MAX)
            .and_then(|text| parse(&origin, &text).map_err(|e| e.to_string()));
        match fragment {
            Ok(table) => {
                builder =
                    builder.add_source(Fragment(known_sections(&origin, table, &sections, report)))
            }
            Err(what) => report.problem(Problem::file(&origin, what)),
        }
    }
    for (name, value) in sources.environment.settings() {
        let origin = format!("{ENVIRONMENT}ORINOCO__{name}");
        // Section and key are written in capitals as variables are; the name of a model or user between
        // them is taken as it stands.
        let parts = match name.split_once("__") {
            Some((section, rest)) => match rest.rsplit_once("__") {
                Some((middle, key)) => vec![
                    section.to_lowercase(),
                    middle.to_owned(),
                    key.to_lowercase(),
                ],
                None => vec![section.to_lowercase(), rest.to_lowercase()],
            },
            None => {
                report.problem(Problem::file(
                    &origin,
                    "expected ORINOCO__SECTION__KEY".into(),
                ));
                continue;
            }
        };
        let table = known_sections(&origin, nest(&parts, value, &origin), &sections, report);
        builder = builder.add_source(Fragment(table));
    }
    for flag in &sources.flags {
        let parts = match flag.key.split_once('.') {
            Some((section, rest)) => match rest.rsplit_once('.') {
                Some((middle, key)) => vec![section.to_owned(), middle.to_owned(), key.to_owned()],
                None => vec![section.to_owned(), rest.to_owned()],
            },
            None => {
                report.problem(Problem::file(
                    &flag.label,
                    "expected section.key=value".into(),
                ));
                continue;
            }
        };
        let table = known_sections(
            &flag.label,
            nest(&parts, &flag.value, &flag.label),
            &sections,
            report,
        );
        builder = builder.add_source(Fragment(table));
    }
    let merged = builder
        .build()
        .expect("fragments are in memory, collecting them cannot fail");
    match merged.cache.kind {
        ValueKind::Table(table) => table,
        _ => Map::new(),
    }
}

pub(super) fn parse(
    origin: &str,
    text: &str,
) -> Result<Map<String, Value>, Box<dyn std::error::Error + Send + Sync>> {
    config::FileFormat::Toml.parse(Some(&origin.to_owned()), text)
}

/// `["a", "b"]`, value: the table `{ a = { b = value } }`.
fn nest(parts: &[String], value: &str, origin: &str) -> Map<String, Value> {
    let mut inner = Value::new(Some(&origin.to_owned()), value);
    for part in parts.iter().skip(1).rev() {
        inner = Value::new(
            Some(&origin.to_owned()),
            Map::from_iter([(part.clone(), inner)]),
        );
    }
    Map::from_iter([(parts[0].clone(), inner)])
}

/// Drops, with a report, what is not a table under the name of a section. This also keeps the path
/// expressions of the crate `config` (`a[3].b`) out of the top level.
fn known_sections(
    origin: &str,
    table: Map<String, Value>,
    sections: &[String],
    report: &mut Report,
) -> Map<String, Value> {
    let (known, unknown): (Vec<_>, Vec<_>) = table.into_iter().partition(|(name, value)| {
        sections.contains(name) && matches!(value.kind, ValueKind::Table(_))
    });
    let mut unknown: Vec<_> = unknown.into_iter().collect();
    unknown.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in unknown {
        if sections.contains(&name) {
            report.problem(Problem::value(
                origin,
                &name,
                &value.kind,
                format!("a section: [{name}] with keys below it"),
            ));
        } else {
            report.problem(Problem::section(origin, &name, sections));
        }
    }
    known.into_iter().collect()
}

/// The files to read, in their order.
fn files(place: &Place, report: &mut Report) -> Vec<PathBuf> {
    let (dir, required) = match place {
        Place::Defaults => return Vec::new(),
        Place::System => (system_dir(), false),
        Place::Path(path) if path.is_dir() => (path.as_path(), true),
        Place::Path(file) => return vec![file.clone()],
    };
    let mut files = Vec::new();
    let main = dir.join("config.toml");
    // A dangling link counts as present: it is somebody's mistake, to be reported when it is opened.
    if main.symlink_metadata().is_ok() {
        files.push(main);
    }
    files.extend(drop_ins(&dir.join("config.d"), report));
    if required && files.is_empty() {
        report.problem(Problem::file(
            &dir.display().to_string(),
            "no config.toml and no config.d/*.toml here".into(),
        ));
    }
    files
}

fn drop_ins(dir: &Path, report: &mut Report) -> Vec<PathBuf> {
    let origin = dir.display().to_string();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            report.problem(Problem::file(&origin, e.to_string()));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| match entry {
            Ok(entry) => Some(entry.path()),
            Err(e) => {
                report.problem(Problem::file(&origin, e.to_string()));
                None
            }
        })
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .take(DROP_INS_MAX + 1)
        .collect();
    if files.len() > DROP_INS_MAX {
        report.problem(Problem::file(
            &origin,
            format!("more than {DROP_INS_MAX} files"),
        ));
    }
    files.sort();
    files
}
