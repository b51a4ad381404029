//! What a device says of itself, as far as a rollout needs it. Anybody on the broker may send anything.

use std::collections::BTreeMap;

use orinoco::ota::waves::{is_within, place};
use orinoco::ota::{LineName, Reason};
use serde::Deserialize;

use super::policy::Tally;

/// Longest state that is read, bytes.
const STATE_BYTES_MAX: usize = 64 << 10;
/// Most devices of one rollout.
const DEVICES_MAX: usize = 10_000;

/// The retained `ota/state` of a device; keys that are not known are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Seen {
    /// The deployment that it speaks of.
    #[serde(default)]
    pub deployment: Option<String>,
    /// What the deployment is doing.
    #[serde(default)]
    pub state: Option<String>,
    /// Why it came to a bad end.
    #[serde(default)]
    pub reason: Option<String>,
    /// The group that the device is in.
    #[serde(default)]
    pub group: Option<String>,
    /// What is on it.
    #[serde(default)]
    pub lines: Vec<Line>,
}

/// What a device has of a line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Line {
    /// Its name.
    pub line: String,
    /// The release in service.
    pub active: Active,
}

/// A release in service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Active {
    /// Its number.
    pub release_seq: u64,
}

impl Seen {
    /// Reads a state; `None` for what is none.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > STATE_BYTES_MAX {
            return None;
        }
        serde_json::from_slice(bytes).ok()
    }
}

/// What is being rolled out.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) deployment: String,
    pub(super) line: LineName,
    pub(super) release_seq: u64,
    pub(super) group: String,
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Done,
    Failed,
    Open,
}

/// The devices of a group, by their last word.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    devices: BTreeMap<String, Seen>,
}

impl Fleet {
    /// Takes note; a device that is no longer told of is forgotten. Whether it is one of the group.
    pub(super) fn hear(&mut self, device: &str, seen: Option<Seen>, group: &str) -> bool {
        let is_ours = |seen: &Seen| seen.group.as_deref().is_none_or(|name| name == group);
        match seen.filter(is_ours) {
            Some(seen) if self.devices.len() < DEVICES_MAX => {
                self.devices.insert(device.to_owned(), seen);
                true
            }
            _ => {
                self.devices.remove(device);
                false
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Counts the devices to which the release is open at `percent`.
    pub(super) fn tally(&self, wanted: &Wanted, percent: u8) -> Tally {
        let mut tally = Tally::default();
        for (device, seen) in &self.devices {
            if !is_within(place(device, &wanted.line, wanted.release_seq), percent) {
                continue;
            }
            tally.targeted += 1;
            match standing(seen, wanted) {
                Standing::Done => tally.done += 1,
                Standing::Failed => tally.failed += 1,
                Standing::Open => {}
            }
        }
        tally
    }

    /// Devices that failed, by reason: for people, at most `max` of each.
    pub(super) fn failures(&self, wanted: &Wanted, max: usize) -> Vec<(String, Vec<String>)> {
        let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (device, seen) in &self.devices {
            if standing(seen, wanted) != Standing::Failed {
                continue;
            }
            let mut known = Reason::ALL.iter().map(|reason| reason.text());
            let reason = known
                .find(|text| seen.reason.as_deref() == Some(text))
                .unwrap_or("no reason that is known");
            let devices = by_reason.entry(reason.to_owned()).or_default();
            if devices.len() < max {
                devices.push(device.clone());
            }
        }
        by_reason.into_iter().collect()
    }
}

fn standing(seen: &Seen, wanted: &Wanted) -> Standing {
    let has_it = seen.lines.iter().any(|line| {
        line.line == wanted.line.as_str() && line.active.release_seq == wanted.release_seq
    });
    let is_this = seen.deployment.as_deref() == Some(wanted.deployment.as_str());
    match seen.state.as_deref() {
        // Called off or replaced by somebody is no fault of the release.
        Some("failed")
            if is_this && matches!(seen.reason.as_deref(), Some("cancelled" | "superseded")) =>
        {
            Standing::Open
        }
        Some("failed" | "rolled_back") if is_this => Standing::Failed,
        // Still to be probed, or already being taken back.
        Some("switching" | "probing" | "rolling_back") if is_this => Standing::Open,
        _ if has_it => Standing::Done,
        _ => Standing::Open,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted() -> Wanted {
        Wanted {
            deployment: "d-1".into(),
            line: LineName::new("tiny").unwrap(),
            release_seq: 2,
            group: "hall2".into(),
        }
    }

    fn stands(state: serde_json::Value) -> Standing {
        standing(
            &Seen::parse(state.to_string().as_bytes()).unwrap(),
            &wanted(),
        )
    }

    #[test]
    fn device_has_a_release_when_it_serves_it_and_failed_when_this_deployment_did() {
        let active =
            |seq: u64| json!([{"line": "tiny", "active": {"release_seq": seq, "model": "x"}}]);
        assert_eq!(
            stands(json!({"state": "idle", "lines": active(2)})),
            Standing::Done
        );
        assert_eq!(
            stands(json!({"state": "idle", "lines": active(1)})),
            Standing::Open
        );
        let of = |state: &str, reason: &str| json!({"deployment": "d-1", "state": state, "reason": reason, "lines": active(1)});
        assert_eq!(stands(of("rolled_back", "probe_golden")), Standing::Failed);
        assert_eq!(stands(of("failed", "no_space")), Standing::Failed);
        assert_eq!(stands(of("failed", "cancelled")), Standing::Open);
        assert_eq!(stands(of("probing", "")), Standing::Open);
        let other = json!({"deployment": "d-0", "state": "failed", "reason": "no_space", "lines": active(1)});
        assert_eq!(stands(other), Standing::Open);
    }

    #[test]
    fn words_of_a_device_are_read_as_it_writes_them() {
        use orinoco::ota::deploy::report;
        use orinoco::ota::state::Phase;
        let told = report::State {
            group: Some("hall2".into()),
            deployment: Some("d-1".into()),
            state: Some(Phase::RolledBack),
            reason: Some(Reason::ProbeGolden),
            lines: vec![report::Line {
                line: "tiny".into(),
                active: report::Version {
                    release_seq: 1,
                    model: "tiny-1".into(),
                },
                ..report::Line::default()
            }],
            ..report::State::default()
        };
        let mut fleet = Fleet::default();
        let seen = Seen::parse(&serde_json::to_vec(&told).unwrap());
        assert!(fleet.hear("n1", seen.clone(), "hall2") && !fleet.hear("n2", seen, "hall3"));
        assert_eq!(fleet.tally(&wanted(), 100).failed, 1);
        assert_eq!(
            fleet.failures(&wanted(), 5),
            [("probe_golden".to_owned(), vec!["n1".to_owned()])]
        );
        let mut before = wanted();
        before.release_seq = 1;
        before.deployment = "d-0".into();
        assert_eq!(fleet.tally(&before, 100).done, 1);
    }

    #[test]
    fn state_of_another_group_of_no_shape_or_too_long_counts_for_nothing() {
        let mut fleet = Fleet::default();
        assert!(!fleet.hear("a", Seen::parse(br#"{"group": "hall9"}"#), "hall2"));
        assert!(!fleet.hear("b", Seen::parse(b"[[["), "hall2"));
        assert!(!fleet.hear("c", Seen::parse(&vec![b' '; STATE_BYTES_MAX + 1]), "hall2"));
        assert!(fleet.hear("d", Seen::parse(b"{}"), "hall2"));
        assert_eq!(fleet.tally(&wanted(), 100).targeted, 1);
        // An empty retained message takes a device away.
        assert!(!fleet.hear("d", Seen::parse(b""), "hall2"));
        assert_eq!(fleet.len(), 0);
    }
}
