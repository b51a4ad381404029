//! What can be asked for: a release of a line, by its number, when, and by whom.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ota::name::LineName;
use crate::ota::reason::Reason;

/// Longest id of a deployment, bytes.
const ID_BYTES_MAX: usize = 64;
/// Minutes of a day.
const DAY_MINUTES: u32 = 24 * 60;

/// Names a deployment: `[A-Za-z0-9_.-]{1,64}`. The same id is the same deployment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeploymentId(String);

impl DeploymentId {
    /// Checks a text.
    ///
    /// # Errors
    /// What is allowed.
    pub fn new(text: &str) -> Result<Self, String> {
        let is_fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        match (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_fine) {
            true => Ok(Self(text.to_owned())),
            false => Err(format!(
                "a deployment's id has 1 to {ID_BYTES_MAX} of A-Z a-z 0-9 _ . -"
            )),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for DeploymentId {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text)
    }
}

impl From<DeploymentId> for String {
    fn from(id: DeploymentId) -> String {
        id.0
    }
}

/// When a release is put into service, once it is here.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum When {
    /// At once.
    #[default]
    Asap,
    /// In the window.
    Window,
    /// When an operator says so (`activate`).
    StagedOnly,
}

/// Hours of the day, local time, `22:00-05:00`; the end does not belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    /// Minutes after midnight.
    from: u32,
    /// Minutes after midnight; at or before `from` it is on the next day.
    to: u32,
}

impl Window {
    /// From a text such as `22:00-05:00`.
    ///
    /// # Errors
    /// What it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let minutes = |part: &str| -> Option<u32> {
            let (hours, minutes) = part.split_once(':')?;
            let number = |text: &str| {
                let is_fine = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
                is_fine.then(|| text.parse::<u32>().ok()).flatten()
            };
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
        };
        let both = text.split_once('-');
        match both.map(|(from, to)| (minutes(from), minutes(to))) {
            Some((Some(from), Some(to))) => Ok(Self { from, to }),
            _ => Err("a window is two times of day, e.g. 22:00-05:00".into()),
        }
    }

    /// Whether it is open, `minute` minutes after midnight. From a time to the same time is the whole day.
    pub fn is_open(self, minute: u32) -> bool {
        match self.from < self.to {
            true => (self.from..self.to).contains(&minute),
            false => minute >= self.from || minute < self.to,
        }
    }

    /// Minutes until it opens; 0 while it is open.
    pub fn opens_in(self, minute: u32) -> u32 {
        match self.is_open(minute) {
            true => 0,
            false => (self.from + DAY_MINUTES - minute % DAY_MINUTES) % DAY_MINUTES,
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to } = self;
        write!(
            f,
            "{:02}:{:02}-{:02}:{:02}",
            from / 60,
            from % 60,
            to / 60,
            to % 60
        )
    }
}

impl TryFrom<String> for Window {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Window> for String {
    fn from(window: Window) -> String {
        window.to_string()
    }
}

/// Who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Origin {
    /// The fleet's retained wish, which only rises.
    Fleet {
        /// Its number.
        desired_seq: u64,
    },
    /// A command of an operator.
    Operator,
    /// A stick, or a folder that somebody named on the device: being there is the confirmation.
    Stick,
    /// The catalogue: the device's turn has come.
    Wave,
    /// The release in service was recalled.
    Recall,
    /// A file of a release that is here was found damaged.
    Repair,
    /// Back to the release before: by an operator, or because the one in service does not stay up.
    Rollback {
        /// Why; none: by an operator.
        reason: Option<Reason>,
    },
}

/// A release that somebody wants. It can only be one that the signed catalogue has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Its name.
    pub deployment: DeploymentId,
    /// The line.
    pub line: LineName,
    /// The release; none: the best that may be taken.
    pub release_seq: Option<u64>,
    /// When it is put into service.
    pub when: When,
    /// For [`When::Window`].
    pub window: Option<Window>,
    /// Most kilobits a second for its download; 0: as configured.
    pub max_kbit_s: u32,
    /// Also a release that failed here before.
    pub force: bool,
    /// Who wants it.
    pub origin: Origin,
}

impl Want {
    /// Back to the release before.
    pub fn rollback(id: &str, line: LineName, reason: Option<Reason>) -> Self {
        let text: String = format!("rollback-{id}")
            .chars()
            .take(ID_BYTES_MAX)
            .collect();
        Self {
            deployment: DeploymentId(text),
            line,
            release_seq: None,
            when: When::Asap,
            window: None,
            max_kbit_s: 0,
            force: false,
            origin: Origin::Rollback { reason },
        }
    }
}
