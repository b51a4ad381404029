//! What is told: the retained state, and an event for each step. The keys that Home Assistant's `update` entity
//! reads are among them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ota::catalog::Catalog;
use crate::ota::fetch::Progress;
use crate::ota::reason::Reason;
use crate::ota::state::{Phase, Policies, Record, Release, Want};

/// `{r}/v1/{n}/ota/state`: what the node runs, and what it is doing about updates.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaState")]
pub struct State {
    /// The group that the node hears.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The deployment under way, or the last one; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment: Option<String>,
    /// Where it is, or how it ended; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Phase>,
    /// Why it ended without success, or goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Why the last look at the sources gave nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_reason: Option<Reason>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_detail: Option<String>,
    /// Line of the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Release of the deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_seq: Option<u64>,
    /// Bytes that are here; in a download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_done: Option<u64>,
    /// Bytes to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Kilobits a second, over the last quarter of a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_kbit_s: Option<u64>,
    /// Seconds until all is here, at this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// Attempts to put it into service.
    #[serde(default)]
    pub attempt: u32,
    /// What is on the device, by line.
    pub lines: Vec<Line>,
    /// The next deployment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<String>,
    /// The fleet's settings; absent before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyState>,
    /// The metadata that is trusted; absent before there is some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
    /// How far the clock is believed: `synced`, `unsynced`, `behind` or `suspect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<String>,
    /// Free on the disk of the models, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_free_mib: Option<u64>,
    /// The model in service, for Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed_version: Option<String>,
    /// The newest that may be taken, for Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_version: Option<String>,
    /// An update is under way, for Home Assistant.
    #[serde(default)]
    pub in_progress: bool,
    /// Percent of the download, for Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_percentage: Option<u8>,
    /// The line, for Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What the newest release is, for Home Assistant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_summary: Option<String>,
}

/// What a line has on the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaLine")]
pub struct Line {
    /// Its name.
    pub line: String,
    /// The release in service.
    pub active: Version,
    /// The release to go back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Version>,
    /// The release is on probation: it has yet to show that it stays up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probation: bool,
    /// The release was recalled, and there is none to go to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
}

/// One release.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaVersion")]
pub struct Version {
    /// Its number in the line.
    pub release_seq: u64,
    /// Its model.
    pub model: String,
}

impl Version {
    fn of(release: &Release) -> Self {
        Self {
            release_seq: release.release_seq,
            model: release.id.to_string(),
        }
    }
}

/// The fleet's settings on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaPolicy")]
pub struct PolicyState {
    /// Number of those in force; absent: the node's own settings are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_seq: Option<u64>,
    /// Number of those to go back to; absent: to the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_seq: Option<u64>,
    /// They have yet to show that the daemon stays up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probation: bool,
    /// Keys that differ and come into force at the daemon's next start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at_next_start: Vec<String>,
    /// Number of the last that were refused or taken back; 0 where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_seq: Option<u64>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl PolicyState {
    fn of(policies: &Policies) -> Option<Self> {
        if *policies == Policies::default() {
            return None;
        }
        let refused = policies.refused.as_ref();
        Some(Self {
            policy_seq: policies.active.map(|active| active.policy_seq),
            previous_seq: policies.previous.map(|previous| previous.policy_seq),
            probation: policies.n_starts.is_some(),
            at_next_start: Vec::new(),
            refused_seq: refused.map(|refused| refused.policy_seq),
            reason: refused.map(|refused| refused.reason),
            detail: refused.map(|refused| refused.detail.clone()),
        })
    }
}

/// The metadata that is trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaMetadata")]
pub struct Metadata {
    /// Version of the root role.
    pub root: u64,
    /// Version of the timestamp role.
    pub timestamp: u64,
    /// Version of the snapshot role.
    pub snapshot: u64,
    /// Version of the targets role.
    pub targets: u64,
    /// Days since the newest of them was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_days: Option<u64>,
    /// `fresh`, `expired-accepted` or `expired`.
    pub freshness: String,
}

impl State {
    /// Adds how far a download is.
    pub fn take_progress(&mut self, progress: &Progress) {
        self.bytes_done = Some(progress.bytes_done);
        self.bytes_total = Some(progress.bytes_total);
        self.rate_kbit_s = progress.bytes_per_second.map(|rate| rate * 8 / 1000);
        self.eta_s = progress.eta.map(|eta| eta.as_secs());
        let percent = progress
            .bytes_done
            .saturating_mul(100)
            .checked_div(progress.bytes_total);
        self.update_percentage = percent.map(|percent| percent.min(100) as u8);
    }
}

/// The state of a device of `group`, as the record and the catalogue have it.
pub fn of(record: &Record, catalog: Option<&Catalog>, group: &str) -> State {
    let mut state = State {
        group: text(group),
        policy: PolicyState::of(&record.policies),
        ..State::default()
    };
    if let Some(last) = &record.last {
        state.deployment = Some(last.want.deployment.to_string());
        state.state = Some(last.phase);
        state.reason = last.reason;
        state.detail = text(&last.detail);
        state.line = Some(last.want.line.to_string());
        let release = last.release.as_ref();
        state.release_seq = release
            .map(|release| release.release_seq)
            .or(last.want.release_seq);
    }
    if let Some(now) = &record.deployment {
        state.deployment = Some(now.want.deployment.to_string());
        state.state = Some(now.phase);
        state.reason = now.reason;
        state.detail = text(&now.detail);
        state.line = Some(now.want.line.to_string());
        let release = now.release.as_ref();
        state.release_seq = release
            .map(|release| release.release_seq)
            .or(now.want.release_seq);
        state.bytes_total = (now.bytes_total > 0).then_some(now.bytes_total);
        state.attempt = now.attempt;
        state.in_progress = true;
    }
    state.queued = record
        .queued
        .as_ref()
        .map(|want| want.deployment.to_string());
    let is_withdrawn = |line, seq| {
        let release = catalog.and_then(|catalog| catalog.release(line, seq));
        release.is_some_and(|release| release.state == crate::ota::catalog::ReleaseState::Withdrawn)
    };
    state.lines = (record.lines.iter())
        .map(|(line, installed)| Line {
            line: line.to_string(),
            active: Version::of(&installed.active),
            previous: installed.previous.as_ref().map(Version::of),
            probation: record
                .probation
                .as_ref()
                .is_some_and(|probation| probation.line == *line),
            withdrawn: is_withdrawn(line, installed.active.release_seq),
        })
        .collect();
    let first = record.first.as_ref().or_else(|| record.lines.keys().next());
    if let Some(first) = first {
        let active = record.lines.get(first).map(|installed| &installed.active);
        let best = catalog.and_then(|catalog| {
            catalog
                .line(first)?
                .best(group, active.map(|active| active.release_seq))
        });
        state.title = Some(first.to_string());
        state.installed_version = active.map(|active| active.id.to_string());
        let latest = best.map(|best| best.id.to_string());
        state.latest_version = latest.or_else(|| state.installed_version.clone());
        state.release_summary = active.and_then(|active| text(&active.title));
    }
    state
}

/// A unit variant as it stands in JSON.
pub(super) fn word(value: &impl Serialize) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// `{r}/v1/{n}/evt/ota`: one step of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "OtaEvent")]
pub struct Event {
    /// Which deployment.
    pub deployment: String,
    /// Its line.
    pub line: String,
    /// Its release, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release_seq: Option<u64>,
    /// Where it is now.
    pub state: Phase,
    /// Why it ended without success, or goes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The same as a sentence; after a pass what the release showed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When, unix milliseconds, as far as the device can know.
    pub at_ms: u64,
    /// Rises with each event of this node. The same number is the same event, said again after a restart. Nodes of
    /// earlier versions gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_seq: Option<u64>,
}

impl Event {
    /// What happened between two records.
    pub(super) fn between(before: &Record, after: &Record, now_s: u64) -> Vec<Self> {
        let at_ms = now_s.saturating_mul(1000);
        let event = |want: &Want, release: Option<&Release>, state, reason, detail: &String| Self {
            deployment: want.deployment.to_string(),
            line: want.line.to_string(),
            release_seq: release
                .map(|release| release.release_seq)
                .or(want.release_seq),
            state,
            reason,
            detail: text(detail),
            at_ms,
            event_seq: None, // Given when it is kept.
        };
        let mut events = Vec::new();
        let policies = (&before.policies, &after.policies);
        events.extend(super::policy::event(policies.0, policies.1, at_ms));
        if let Some(last) = after.last.as_ref().filter(|_| before.last != after.last) {
            let release = last.release.as_ref();
            events.push(event(
                &last.want,
                release,
                last.phase,
                last.reason,
                &last.detail,
            ));
        }
        let key = |record: &Record| {
            let now = record.deployment.as_ref()?;
            Some((now.want.deployment.clone(), now.phase))
        };
        if let Some(now) = after
            .deployment
            .as_ref()
            .filter(|_| key(before) != key(after))
        {
            let release = now.release.as_ref();
            events.push(event(
                &now.want,
                release,
                now.phase,
                now.reason,
                &now.detail,
            ));
        }
        events
    }
}
