use proptest::prelude::*;

use super::*;
use crate::ota::name::ModelId;

fn line() -> LineName {
    LineName::new("assistant").unwrap()
}

fn digest(seq: u64, what: u8) -> Digest {
    Digest::of(&[what, seq as u8])
}

fn release(seq: u64) -> Release {
    Release {
        release_seq: seq,
        id: ModelId::new(&format!("m{seq}")).unwrap(),
        manifest: digest(seq, 0),
        weights: digest(seq, 1),
        weights_bytes: 100,
        others: Vec::new(),
        title: String::new(),
    }
}

fn want(id: &str) -> Want {
    Want {
        origin: Origin::Operator,
        ..Want::rollback(id, line(), None)
    }
}

/// A device with release 1 in service, and 2 asked for.
fn updating() -> Record {
    let mut record = Record::default();
    record.lines.insert(
        line(),
        Installed {
            active: release(1),
            previous: None,
        },
    );
    assert_eq!(record.want(want("d2")), Heard::Begun);
    record.deployment.as_mut().unwrap().release = Some(release(2));
    record
}

fn walk(record: &mut Record, phases: &[Phase]) {
    for phase in phases {
        assert!(record.enter(*phase), "{:?} to {phase:?}", record.phase());
    }
}

const TO_STAGED: [Phase; 4] = [
    Phase::Planned,
    Phase::Downloading,
    Phase::Verifying,
    Phase::Staged,
];

fn at(phase: Phase) -> Record {
    let mut record = updating();
    let path: &[Phase] = match phase {
        Phase::Checking => &[],
        Phase::Paused => &[Phase::Planned, Phase::Downloading, Phase::Paused],
        Phase::Waiting | Phase::Switching => &[
            Phase::Planned,
            Phase::Downloading,
            Phase::Verifying,
            Phase::Staged,
            phase,
        ],
        Phase::Probing => &[
            Phase::Planned,
            Phase::Downloading,
            Phase::Verifying,
            Phase::Staged,
            Phase::Switching,
            phase,
        ],
        _ => &TO_STAGED[..=TO_STAGED.iter().position(|p| *p == phase).unwrap()],
    };
    walk(&mut record, path);
    record
}

const OPEN: [Phase; 7] = [
    Phase::Checking,
    Phase::Planned,
    Phase::Downloading,
    Phase::Paused,
    Phase::Verifying,
    Phase::Staged,
    Phase::Waiting,
];

fn active(record: &Record) -> u64 {
    record.lines[&line()].active.release_seq
}

#[test]
fn a_release_is_active_after_its_probe_and_not_before() {
    for phase in OPEN.into_iter().chain([Phase::Switching, Phase::Probing]) {
        assert_eq!(active(&at(phase)), 1, "{phase:?}");
    }
    let mut record = at(Phase::Probing);
    record.commit(true);
    assert_eq!(active(&record), 2);
    assert_eq!(record.previous(&line()), Some(&release(1)));
    assert_eq!(record.last.unwrap().phase, Phase::Committed);
    assert_eq!(record.first, Some(line()));
}

#[test]
fn a_newer_command_supersedes_before_switching_and_comes_after_it_later() {
    for phase in OPEN {
        let mut record = at(phase);
        assert_eq!(record.want(want("d3")), Heard::Begun, "{phase:?}");
        let last = record.last.as_ref().unwrap();
        assert_eq!(last.reason, Some(Reason::Superseded));
        assert_eq!(record.phase(), Some(Phase::Checking));
        assert!(record.failed.is_empty(), "it is nobody's fault");
    }
    for phase in [Phase::Switching, Phase::Probing] {
        let mut record = at(phase);
        assert_eq!(record.want(want("d3")), Heard::Queued);
        if phase == Phase::Switching {
            record.enter(Phase::Probing);
        }
        record.commit(true);
        assert_eq!(active(&record), 2);
        assert_eq!(
            record.deployment.as_ref().unwrap().want.deployment.as_str(),
            "rollback-d3"
        );
    }
}

#[test]
fn a_queued_command_supersedes_as_soon_as_the_one_before_it_waits_again() {
    let mut record = at(Phase::Probing);
    record.want(want("d3"));
    walk(&mut record, &[Phase::Waiting]);
    assert_eq!(record.phase(), Some(Phase::Checking));
    assert_eq!(record.last.unwrap().reason, Some(Reason::Superseded));
}

#[test]
fn the_same_deployment_again_changes_nothing() {
    for phase in OPEN.into_iter().chain([Phase::Switching, Phase::Probing]) {
        let mut record = at(phase);
        let before = record.clone();
        assert_eq!(record.want(want("d2")), Heard::Same);
        assert_eq!(record, before);
    }
    let mut over = at(Phase::Probing);
    over.commit(true);
    assert_eq!(over.want(want("d2")), Heard::Same);
}

#[test]
fn a_wish_of_the_fleet_that_was_heard_before_is_old() {
    let mut record = Record::default();
    let fleet = |id: &str, desired_seq| Want {
        origin: Origin::Fleet { desired_seq },
        ..want(id)
    };
    assert_eq!(record.want(fleet("a", 4)), Heard::Begun);
    assert_eq!(record.want(fleet("b", 4)), Heard::Old);
    assert_eq!(record.want(fleet("b", 3)), Heard::Old);
    assert_eq!(record.want(fleet("b", 5)), Heard::Begun);
}

#[test]
fn cancel_is_honoured_up_to_staged_and_not_after() {
    for phase in OPEN {
        let mut record = at(phase);
        assert!(record.cancel(), "{phase:?}");
        assert_eq!(record.last.unwrap().reason, Some(Reason::Cancelled));
        assert_eq!(record.deployment, None);
    }
    for phase in [Phase::Switching, Phase::Probing] {
        let mut record = at(phase);
        assert!(!record.cancel());
        assert_eq!(record.phase(), Some(phase));
    }
}

#[test]
fn a_second_end_of_the_daemon_while_a_release_is_put_into_service_rolls_back() {
    for phase in [Phase::Switching, Phase::Probing] {
        let mut record = at(phase);
        record.restarted();
        assert_eq!(record.phase(), Some(Phase::Staged));
        walk(&mut record, &[Phase::Switching, Phase::Probing]);
        record.restarted();
        assert_eq!(record.phase(), Some(Phase::RollingBack));
        record.restarted();
        assert!(record.rolled_back());
        assert_eq!(active(&record), 1);
        let last = record.last.as_ref().unwrap();
        assert_eq!(
            (last.phase, last.reason),
            (Phase::RolledBack, Some(Reason::ProbeCrash))
        );
        assert!(record.has_failed(&line(), 2));
    }
}

#[test]
fn what_a_release_has_no_part_in_is_no_attempt() {
    let mut record = at(Phase::Probing);
    record.uncount();
    walk(&mut record, &[Phase::Waiting, Phase::Switching]);
    record.restarted();
    assert_eq!(record.phase(), Some(Phase::Staged), "the first that counts");
}

#[test]
fn a_deployment_that_goes_round_is_ended_by_the_counter() {
    let mut record = at(Phase::Staged);
    let mut n_saves = 0;
    while record.phase().is_some() {
        record.saving(100);
        n_saves += 1;
        assert!(n_saves < 100);
        if record.phase() == Some(Phase::Staged) {
            record.enter(Phase::Waiting);
        } else {
            record.enter(Phase::Staged);
        }
    }
    assert_eq!(n_saves, 1 + SAVES_MAX + 1, "staged, waiting, and the limit");
    assert_eq!(record.last.unwrap().reason, Some(Reason::StateLoop));
    assert_eq!(record.lines[&line()].active, release(1));
}

#[test]
fn a_download_that_gets_further_each_night_goes_on_for_months() {
    let mut record = at(Phase::Downloading);
    for night in 0..200 {
        record.restarted();
        record.saving(night);
        record.saving(night);
    }
    assert_eq!(record.phase(), Some(Phase::Downloading));
    for _ in 0..SAVES_MAX {
        record.saving(200);
    }
    assert_eq!(record.phase(), Some(Phase::Downloading));
    record.saving(200);
    assert_eq!(record.phase(), None);
}

fn committed() -> Record {
    let mut record = at(Phase::Probing);
    record.commit(true);
    record
}

#[test]
fn starts_again_and_again_after_the_commit_roll_back_and_one_that_stays_up_does_not() {
    let mut record = committed();
    for _ in 0..STARTS_MAX {
        record.started();
        assert_eq!(record.phase(), None);
    }
    record.started();
    assert_eq!(record.phase(), Some(Phase::RollingBack));
    assert!(record.rolled_back());
    assert_eq!(active(&record), 1);
    assert_eq!(
        record.last.as_ref().unwrap().reason,
        Some(Reason::CrashLoop)
    );
    assert!(record.has_failed(&line(), 2));

    let mut steady = committed();
    for _ in 0..20 {
        steady.started();
        steady.stayed_up(false);
    }
    steady.started();
    steady.stayed_up(true);
    for _ in 0..20 {
        steady.started();
    }
    assert_eq!(active(&steady), 2);
}

#[test]
fn without_a_previous_release_nothing_is_rolled_back_and_it_is_told() {
    let mut record = committed();
    record.lines.get_mut(&line()).unwrap().previous = None;
    record.want(Want::rollback("now", line(), None));
    assert!(!record.rolled_back());
    record.fail(Reason::PreviousMissing, "");
    assert_eq!(active(&record), 2);
    let last = record.last.unwrap();
    assert_eq!(
        (last.phase, last.reason),
        (Phase::Failed, Some(Reason::PreviousMissing))
    );
}

#[test]
fn files_of_active_previous_and_unfinished_releases_are_kept_and_of_no_other() {
    let mut record = committed();
    record.want(want("d3"));
    record.deployment.as_mut().unwrap().release = Some(release(3));
    let all = |seqs: &[u64]| -> BTreeSet<Digest> {
        let both = |seq: &u64| [digest(*seq, 0), digest(*seq, 1)];
        seqs.iter().flat_map(both).collect()
    };
    assert_eq!(record.kept(), all(&[1, 2, 3]));
    record.cancel();
    assert_eq!(record.kept(), all(&[1, 2]));
    record.want(Want::rollback("now", line(), None));
    record.rolled_back();
    assert_eq!(record.kept(), all(&[1]));
}

#[test]
fn windows_open_and_close_over_midnight_too() {
    let night = Window::parse("22:00-05:00").unwrap();
    assert!(night.is_open(22 * 60) && night.is_open(0) && night.is_open(299));
    assert!(!night.is_open(300) && !night.is_open(21 * 60));
    assert_eq!(night.opens_in(21 * 60), 60);
    assert_eq!(night.opens_in(23 * 60), 0);
    assert_eq!(night.to_string(), "22:00-05:00");
    assert!(Window::parse("00:00-00:00").unwrap().is_open(700));
    for text in [
        "",
        "22-05",
        "24:00-05:00",
        "22:60-05:00",
        "2:00-05:00",
        "22:00",
        "22:00-05:00-06:00",
        "+2:00-05:00",
    ] {
        assert!(Window::parse(text).is_err(), "{text:?}");
    }
}

#[derive(Debug, Clone)]
enum Act {
    Want(u8),
    Rollback(u8),
    Enter(Phase),
    GiveUp,
    Commit,
    RolledBack,
    Cancel,
    Restart,
    StayUp,
    Fail,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0u8..20).prop_map(Act::Want),
        1 => (0u8..20).prop_map(Act::Rollback),
        4 => prop::sample::select(Phase::ALL.to_vec()).prop_map(Act::Enter),
        1 => Just(Act::GiveUp),
        2 => Just(Act::Commit),
        1 => Just(Act::RolledBack),
        1 => Just(Act::Cancel),
        1 => Just(Act::Restart),
        1 => Just(Act::StayUp),
        1 => Just(Act::Fail),
    ]
}

proptest! {
    /// Whatever comes in whatever order: one active release, which passed its probe; what serves and what it can
    /// go back to are kept; and no command is lost without a word.
    #[test]
    fn any_order_of_commands_leaves_one_active_release_that_was_probed(acts in prop::collection::vec(act(), 0..200)) {
        let mut record = updating();
        let mut probed = vec![1];
        for act in acts {
            let before = record.clone();
            match act {
                Act::Want(n) => {
                    record.want(want(&format!("w{n}")));
                    if let Some(now) = record.deployment.as_mut()
                        && now.release.is_none()
                        && now.phase == Phase::Checking
                    {
                        now.release = Some(release(u64::from(n)));
                    }
                }
                Act::Rollback(n) => {
                    record.want(Want::rollback(&format!("r{n}"), line(), None));
                }
                Act::Enter(phase) => {
                    let was = record.phase();
                    let entered = record.enter(phase);
                    prop_assert_eq!(
                        entered,
                        !phase.is_over() && was.is_some_and(|was| was.may_become(phase))
                    );
                }
                Act::GiveUp => record.give_up(Reason::ProbeGolden, ""),
                Act::Commit => {
                    let passes = record.deployment.as_ref().filter(|now| now.phase == Phase::Probing);
                    probed.extend(passes.and_then(|now| Some(now.release.as_ref()?.release_seq)));
                    record.commit(true);
                }
                Act::RolledBack => { record.rolled_back(); }
                Act::Cancel => { record.cancel(); }
                Act::Restart => { record.restarted(); record.started(); }
                Act::StayUp => record.stayed_up(true),
                Act::Fail => record.fail(Reason::NoSpace, ""),
            }
            record.saving(0);
            let installed = &record.lines[&line()];
            prop_assert!(probed.contains(&installed.active.release_seq));
            if let Some(previous) = &installed.previous {
                prop_assert!(probed.contains(&previous.release_seq));
                prop_assert!(record.kept().contains(&previous.weights));
            }
            prop_assert!(record.kept().contains(&installed.active.weights));
            if let Some(now) = &record.deployment {
                prop_assert!(!now.phase.is_over());
                prop_assert!(record.queued.is_none() || !now.phase.is_open());
            }
            if before.deployment.is_some() && record.deployment.is_none() {
                let last = record.last.as_ref().unwrap();
                prop_assert!(last.phase.is_over());
                prop_assert_eq!(last.reason.is_none(), last.phase == Phase::Committed);
            }
            let json = serde_json::to_vec(&record).unwrap();
            prop_assert_eq!(serde_json::from_slice::<Record>(&json).unwrap(), record.clone());
        }
    }
}
