//! Fleet updates: who is believed, by which clock, from where, onto which disk, and how the last one ended.

use crate::doctor::facts::updates::Updates;
use crate::doctor::{Facts, Finding};
use crate::ledger::memory as bytes;
use crate::ota::state::Phase;
use crate::ota::trust::Clock;

/// A root that expires sooner than this should have had a successor.
const ROOT_DAYS_MIN: u64 = 90;
const DAY_S: u64 = 86_400;

fn of(facts: &Facts) -> Result<&Updates, Finding> {
    let none = || {
        let file = facts.config.ota.root_file.display();
        Finding::skipped(format!(
            "this board takes no updates: {file} is not there (`orinoco provision`)"
        ))
    };
    facts.updates.as_ref().ok_or_else(none)
}

pub(super) fn root(facts: &Facts) -> Finding {
    let updates = match of(facts) {
        Ok(updates) => updates,
        Err(skipped) => return skipped,
    };
    let root = match &updates.root {
        Ok(root) => root,
        Err(why) => {
            return Finding::fail(
                why.clone(),
                "a root file signed by enough of its own keys",
                "`sudo orinoco provision --root FILE --replace-root` with the file of the fleet",
            );
        }
    };
    let found = format!("root {} until {}", root.version, root.expires);
    let days = root.expires_s.saturating_sub(updates.now_s) / DAY_S;
    let newer = "a newer root on a source or a stick: `orinoco-ota rotate` makes it, boards follow it by themselves";
    match (root.expires_s <= updates.now_s, days < ROOT_DAYS_MIN) {
        (true, _) => Finding::fail(
            format!("{found}: it has expired"),
            "a root that has not",
            newer,
        ),
        (false, true) => Finding::warn(
            format!("{found}, which is in {days} days"),
            format!("more than {ROOT_DAYS_MIN} days"),
            newer,
        ),
        (false, false) => Finding::ok(found),
    }
}

pub(super) fn clock(facts: &Facts) -> Finding {
    let updates = match of(facts) {
        Ok(updates) => updates,
        Err(skipped) => return skipped,
    };
    let expected = "a clock that a time server has set, or that can be right";
    let remedy = "NTP on the site (`timedatectl`); updates go by signed times meanwhile";
    match updates.clock {
        Clock::Synced => Finding::ok("set by a time server"),
        Clock::Unsynced => Finding::ok("set by nobody, and plausible"),
        Clock::Behind => Finding::warn(
            "behind the time at which this program was made: not believed",
            expected,
            remedy,
        ),
        Clock::Suspect => Finding::warn(
            "years ahead of all that is known: not believed",
            expected,
            remedy,
        ),
    }
}

pub(super) fn sources(facts: &Facts) -> Finding {
    let updates = match of(facts) {
        Ok(updates) => updates,
        Err(skipped) => return skipped,
    };
    if facts.config.ota.fetch.sources.is_empty() {
        return Finding::ok("none: updates come by `orinoco ota apply`");
    }
    if updates.sources.is_empty() {
        return Finding::skipped("asked on the board alone");
    }
    let bad = |(name, answer): &(String, Result<(), String>)| {
        let why = answer.as_ref().err()?;
        Some(format!("{name}: {why}"))
    };
    let bad: Vec<String> = updates.sources.iter().filter_map(bad).collect();
    let n_good = updates.sources.len() - bad.len();
    let remedy = "the address in ota.fetch.sources, the server, the way to it";
    match (n_good, bad.is_empty()) {
        (_, true) => Finding::ok(format!("{n_good} can be asked")),
        (0, false) => Finding::fail(bad.join("; "), "a source that answers", remedy),
        (_, false) => Finding::warn(bad.join("; "), "all sources answer", remedy),
    }
}

pub(super) fn disk(facts: &Facts) -> Finding {
    let updates = match of(facts) {
        Ok(updates) => updates,
        Err(skipped) => return skipped,
    };
    let Some(free_bytes) = updates.free_bytes else {
        return Finding::skipped("asked on the board alone");
    };
    let dir = facts.config.ota.deploy.dir.display();
    let room = free_bytes.saturating_sub(facts.config.ota.fetch.reserve_bytes);
    let found = format!(
        "{} free in {dir} beside ota.fetch.reserve_bytes",
        bytes(room)
    );
    match updates.largest_bytes {
        Some(largest) if largest > room => Finding::warn(
            found,
            format!(
                "{}, as large as the largest release here: the next one may be no smaller",
                bytes(largest)
            ),
            "a larger disk for ota.deploy.dir, or fewer models and logs",
        ),
        _ => Finding::ok(found),
    }
}

pub(super) fn last(facts: &Facts) -> Finding {
    let updates = match of(facts) {
        Ok(updates) => updates,
        Err(skipped) => return skipped,
    };
    let Some(told) = &updates.told else {
        return Finding::ok("no update so far");
    };
    let remedy =
        "docs/ota/states.md says what to do about each reason; `orinoco ota status` has all of it";
    let because = |reason: Option<crate::ota::Reason>, detail: &Option<String>| {
        let reason = reason.map(|reason| format!("{reason}: {}", reason.meaning()));
        let parts = [reason, detail.clone()];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    };
    let release = match (&told.line, told.release_seq) {
        (Some(line), Some(seq)) => format!("release {seq} of {line}"),
        (Some(line), None) => line.clone(),
        (None, _) => "an update".to_owned(),
    };
    if let Some(recalled) = told.lines.iter().find(|line| line.withdrawn) {
        return Finding::fail(
            format!(
                "{} of {} was recalled",
                recalled.active.model, recalled.line
            ),
            "a release that may be run, or one to go to",
            "publish one: `orinoco-ota add`, or `withdraw --fallback`",
        );
    }
    match told.state {
        Some(Phase::Failed | Phase::RolledBack) => Finding::warn(
            format!(
                "{release} did not come into service: {}",
                because(told.reason, &told.detail)
            ),
            "the last update in service",
            remedy,
        ),
        _ if told.check_reason.is_some() => Finding::warn(
            format!(
                "the last look at the sources: {}",
                because(told.check_reason, &told.check_detail)
            ),
            "a look that reads the catalogue",
            remedy,
        ),
        Some(Phase::Committed) => Finding::ok(format!("{release} is in service")),
        Some(_) => Finding::ok(format!("{release} is under way")),
        None => Finding::ok("no update so far"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::Root;
    use crate::config::Sources;
    use crate::doctor::Status;
    use crate::ota::Reason;
    use crate::ota::deploy::State;
    use crate::ota::trust::root::RootFacts;

    const NOW_S: u64 = 1_800_000_000;

    fn facts(updates: Option<Updates>) -> Facts {
        let tree = tempfile::tempdir().unwrap();
        let mut facts = Facts::read(&Root::new(tree.path()), &Sources::defaults(), false);
        facts.updates = updates;
        facts
    }

    fn updates(days: u64) -> Updates {
        Updates {
            root: Ok(RootFacts {
                version: 2,
                expires: "soon".into(),
                expires_s: NOW_S + days * DAY_S,
                n_keys: 3,
                threshold: 2,
            }),
            clock: Clock::Synced,
            now_s: NOW_S,
            told: None,
            largest_bytes: Some(2 << 30),
            free_bytes: Some(40 << 30),
            sources: vec![("http://mirror".into(), Ok(()))],
        }
    }

    #[test]
    fn a_board_without_a_root_of_trust_is_not_blamed_for_anything() {
        let facts = facts(None);
        for check in [root, clock, sources, disk, last] {
            assert_eq!(check(&facts).status, Status::Skipped);
        }
    }

    #[test]
    fn a_root_is_told_of_before_it_expires_and_after() {
        for (days, status) in [(400, Status::Ok), (30, Status::Warn), (0, Status::Fail)] {
            assert_eq!(root(&facts(Some(updates(days)))).status, status, "{days}");
        }
        let broken = Updates {
            root: Err("/etc/orinoco/root.json: no".into()),
            ..updates(1)
        };
        assert_eq!(root(&facts(Some(broken))).status, Status::Fail);
    }

    #[test]
    fn clock_disk_and_the_last_update_are_told_when_they_are_not_well() {
        let bad = Updates {
            clock: Clock::Behind,
            free_bytes: Some(3 << 30),
            told: Some(State {
                state: Some(Phase::RolledBack),
                reason: Some(Reason::ProbeGolden),
                line: Some("assistant".into()),
                release_seq: Some(3),
                ..State::default()
            }),
            ..updates(400)
        };
        let mut facts = facts(Some(bad));
        facts.config.ota.fetch.reserve_bytes = 2 << 30;
        for check in [clock, disk, last] {
            assert_eq!(check(&facts).status, Status::Warn);
        }
        let told = last(&facts).found;
        assert!(
            told.contains("probe_golden") && told.contains("release 3 of assistant"),
            "{told}"
        );
    }
}
