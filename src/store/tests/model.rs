//! What the store promises, in a map; and random histories of operations, crashes and faults.
//!
//! A failed operation may have happened or not, so the checker keeps the set of states that the answers
//! so far allow, and the store must be in one of them.

use std::collections::BTreeMap;

use nix::errno::Errno;
use proptest::prelude::*;

use super::faulty_disk::{Failure, FaultyDisk};
use super::*;
use crate::store::journal::{Answer, Journal, Op};
use crate::store::rows::{BodyRow, ROW_BYTES, encode};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    /// `None` once the job has a final.
    record: Option<Record>,
    end: Option<Final>,
    digest: [u8; 32],
    attempt: u32,
    order: u64,
    /// Since when its age counts.
    since_ms: u64,
}

/// One possible state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    entries: BTreeMap<JobId, Entry>,
    next_order: u64,
}

/// An answer without its wording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    Answer(Answer),
    Exists,
    Full,
    Unknown,
    AlreadyFinished,
    NotFinished,
    /// The disk failed: anything may have happened.
    Fault,
}

impl Seen {
    fn of(answer: &Result<Answer, StoreError>) -> Self {
        match answer {
            // Orders are not reused after a fault, so they are only compared with each other.
            Ok(answer) => Seen::Answer(answer.clone()),
            Err(StoreError::Exists { .. }) => Seen::Exists,
            Err(StoreError::Full(Full::Disk | Full::File { .. })) => Seen::Fault,
            Err(StoreError::Full(_)) => Seen::Full,
            Err(StoreError::Unknown(_)) => Seen::Unknown,
            Err(StoreError::AlreadyFinished(_)) => Seen::AlreadyFinished,
            Err(StoreError::NotFinished(_)) => Seen::NotFinished,
            Err(StoreError::Disk { .. }) => Seen::Fault,
            Err(other) => panic!("unexpected error: {other}"),
        }
    }
}

/// What a pending job is charged.
fn bytes_of(record: &Record) -> u64 {
    let n_beside = record.beside.as_ref().map_or(0, Bytes::len);
    let n_model = record.model.as_ref().map_or(0, String::len);
    (encode(&BodyRow::from(record)).len() + n_beside + n_model) as u64 + ROW_BYTES
}

impl Model {
    fn pending_bytes(&self) -> u64 {
        let rows = self.entries.values().filter_map(|e| e.record.as_ref());
        rows.map(bytes_of).sum()
    }

    fn n_pending(&self) -> u64 {
        self.entries.values().filter(|e| e.record.is_some()).count() as u64
    }

    /// What a healthy store answers, and how it changes.
    fn apply(&mut self, op: &Op) -> Seen {
        let config = config();
        match op {
            Op::Accept(record) => {
                if self.entries.contains_key(&record.job) {
                    return Seen::Exists;
                }
                let bytes = bytes_of(record);
                if self.n_pending() >= config.pending_jobs_max
                    || self.pending_bytes() + bytes > config.pending_bytes_max
                {
                    return Seen::Full;
                }
                let order = self.next_order;
                self.next_order += 1;
                let entry = Entry {
                    record: Some(record.clone()),
                    end: None,
                    digest: record.digest,
                    attempt: FIRST_ATTEMPT,
                    order,
                    since_ms: record.accepted_at_ms,
                };
                self.entries.insert(record.job.clone(), entry);
                Seen::Answer(Answer::Order(order))
            }
            Op::Finish(job, end) => match self.entries.get_mut(job) {
                None => Seen::Unknown,
                Some(entry) => match &entry.end {
                    Some(stored) if stored.messages == end.messages => Seen::Answer(Answer::Done),
                    Some(_) => Seen::AlreadyFinished,
                    None => {
                        entry.record = None;
                        entry.end = Some(end.clone());
                        entry.since_ms = end.finished_at_ms;
                        Seen::Answer(Answer::Done)
                    }
                },
            },
            Op::Delivered(job) => match self.entries.get_mut(job) {
                None => Seen::Unknown,
                Some(Entry { end: None, .. }) => Seen::NotFinished,
                Some(Entry { end: Some(end), .. }) => {
                    end.delivered = true;
                    Seen::Answer(Answer::Done)
                }
            },
            Op::Forget(job) => match self.entries.get(job) {
                None => Seen::Unknown,
                Some(Entry { end: None, .. }) => Seen::NotFinished,
                Some(_) => {
                    self.entries.remove(job);
                    Seen::Answer(Answer::Done)
                }
            },
            Op::BumpAttempt(job) => match self.entries.get_mut(job) {
                None => Seen::Unknown,
                Some(entry) if entry.end.is_some() => Seen::AlreadyFinished,
                Some(entry) => {
                    entry.attempt += 1;
                    Seen::Answer(Answer::Attempt(entry.attempt))
                }
            },
            Op::FinalOf(job) => {
                let end = self.entries.get(job).and_then(|entry| entry.end.clone());
                Seen::Answer(Answer::Final(end))
            }
            Op::Lookup(job) => {
                let known = self.entries.get(job).map(|entry| entry.known(job));
                Seen::Answer(Answer::Known(known))
            }
            Op::Sweep(now_ms) => {
                let mut swept = Swept::default();
                self.entries.retain(|job, entry| {
                    let age = Duration::from_millis(now_ms.saturating_sub(entry.since_ms));
                    match &entry.end {
                        Some(end) if end.delivered && age >= config.retention => {
                            swept.delivered += 1;
                            false
                        }
                        Some(end) if !end.delivered && age >= config.undelivered_max => {
                            swept.undelivered += 1;
                            false
                        }
                        None if age >= config.pending_max => {
                            swept.overdue.push(job.clone());
                            true
                        }
                        _ => true,
                    }
                });
                Seen::Answer(Answer::Swept(swept))
            }
            Op::FinishKeeping(..) | Op::Kept(..) | Op::ForgetSession(_) => {
                unreachable!("conversations have tests of their own")
            }
        }
    }

    /// A new run begins.
    fn restart(&mut self, now_ms: u64) {
        for entry in self.entries.values_mut() {
            entry.since_ms = now_ms;
            if entry.record.is_some() {
                entry.attempt += 1;
            }
        }
        self.next_order = self
            .entries
            .values()
            .map(|e| e.order + 1)
            .max()
            .unwrap_or(0);
    }

    fn dump(&self) -> Vec<crate::store::tables::Stored> {
        let entries = self.entries.iter();
        entries
            .map(|(job, entry)| (entry.known(job), entry.record.clone(), entry.end.clone()))
            .collect()
    }

    fn recovered(&self) -> (Vec<Pending>, Vec<Known>) {
        let mut by_order: Vec<_> = self.entries.iter().collect();
        by_order.sort_by_key(|(_, entry)| entry.order);
        let (mut pending, mut finals) = (Vec::new(), Vec::new());
        for (job, entry) in by_order {
            match &entry.record {
                Some(record) => pending.push(Pending {
                    record: record.clone(),
                    order: entry.order,
                    attempt: entry.attempt,
                }),
                None => finals.push(entry.known(job)),
            }
        }
        (pending, finals)
    }
}

impl Entry {
    fn known(&self, job: &JobId) -> Known {
        let state = self
            .end
            .as_ref()
            .map_or(JobState::Pending, |end| JobState::Finished {
                at_ms: end.finished_at_ms,
                delivered: end.delivered,
            });
        Known {
            job: job.clone(),
            digest: self.digest,
            attempt: self.attempt,
            state,
        }
    }
}

/// A journal beside the states that its answers allow.
pub(super) struct Checked {
    pub(super) disk: FaultyDisk,
    pub(super) journal: Option<Journal>,
    states: Vec<Model>,
    now_ms: u64,
}

impl Checked {
    pub(super) fn new() -> Self {
        let mut checked = Checked {
            disk: FaultyDisk::new(),
            journal: None,
            states: vec![Model::default()],
            now_ms: NOW,
        };
        checked.open();
        checked
    }

    /// One batch; its answers must be those of an allowed state.
    pub(super) fn apply(&mut self, ops: &[Op]) {
        let Some(journal) = self.journal.as_mut() else {
            return;
        };
        let answers = journal.apply(ops);
        let seen: Vec<Seen> = answers.iter().map(Seen::of).collect();
        assert_eq!(seen.len(), ops.len());
        let mut next = Vec::new();
        for state in &self.states {
            explore(state.clone(), ops, &seen, &mut next);
        }
        assert!(
            !next.is_empty(),
            "answers {seen:?} to {ops:?} fit none of {:#?}",
            self.states
        );
        next.dedup();
        self.states = next;
    }

    /// Ends the run, cleanly or by a power cut, and begins another.
    pub(super) fn reopen(&mut self, cut: Option<u64>) {
        if let Some(seed) = cut {
            // The drop must not write what a power cut would not have written.
            self.disk.fail_in(0, Failure::Dead);
            self.journal = None;
            self.disk.power_cut(seed);
        }
        self.journal = None;
        self.open();
    }

    pub(super) fn open(&mut self) {
        // Before an attempt that fails, or that dies unseen, attempts may or may not have risen.
        match Journal::open(Box::new(self.disk.clone()), config(), self.now_ms) {
            Ok((journal, recovered)) => {
                assert_eq!(recovered.set_aside, None, "nothing was damaged");
                let mut allowed = Vec::new();
                for mut state in std::mem::take(&mut self.states) {
                    state.restart(self.now_ms);
                    let (pending, finals) = state.recovered();
                    if pending == recovered.pending && finals == recovered.finals {
                        allowed.push(state);
                    }
                }
                assert!(
                    !allowed.is_empty(),
                    "recovered {recovered:#?} is no allowed state"
                );
                self.states = allowed;
                self.journal = Some(journal);
            }
            Err(_) => {
                let unknown = self.states.clone().into_iter().map(|mut state| {
                    state.restart(self.now_ms);
                    state
                });
                self.states.extend(unknown.collect::<Vec<_>>());
                self.states.dedup();
            }
        }
    }

    /// What is stored is an allowed state.
    pub(super) fn check(&self) {
        if let Some(stored) = self.journal.as_ref().and_then(Journal::dump) {
            assert!(
                self.states.iter().any(|state| state.dump() == stored),
                "stored {stored:#?} is none of {:#?}",
                self.states
            );
        }
    }

    pub(super) fn n_states(&self) -> usize {
        self.states.len()
    }
}

/// All states after the batch in which each answer is what the model says; a faulted operation has two.
fn explore(state: Model, ops: &[Op], seen: &[Seen], found: &mut Vec<Model>) {
    let (Some((op, ops)), Some((first, seen))) = (ops.split_first(), seen.split_first()) else {
        found.push(state);
        return;
    };
    let mut after = state.clone();
    let answer = after.apply(op);
    match (first, op) {
        (Seen::Fault, Op::Accept(_)) => {
            // It may come back only if the power goes before the next transaction.
            explore(state, ops, seen, found);
            explore(after, ops, seen, found);
        }
        (Seen::Fault, _) => {
            explore(state, ops, seen, found);
            if answer != Seen::Fault {
                explore(after, ops, seen, found);
            }
        }
        (Seen::Answer(Answer::Order(order)), Op::Accept(record)) => {
            if matches!(answer, Seen::Answer(Answer::Order(_))) {
                // A taken-back job leaves no gap, so the order is exact in the right state; in the
                // others it is corrected and they fall out by their entries.
                if let Some(entry) = after.entries.get_mut(&record.job) {
                    entry.order = *order;
                }
                after.next_order = order + 1;
                explore(after, ops, seen, found);
            }
        }
        _ if answer == *first => explore(after, ops, seen, found),
        _ => {}
    }
}

/// A step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Batch(Vec<Choice>),
    Reopen,
    PowerCut(u64),
    Fail(u64, Failure),
    Later(u64),
}

/// An operation whose clock is filled in later.
#[derive(Debug, Clone)]
enum Choice {
    Accept(u8, usize),
    Finish(u8, usize, bool),
    Delivered(u8),
    Forget(u8),
    Bump(u8),
    FinalOf(u8),
    Lookup(u8),
    Sweep,
}

fn choice() -> impl Strategy<Value = Choice> {
    let id = 0u8..8;
    prop_oneof![
        4 => (id.clone(), prop_oneof![Just(0), 1usize..600, 5000usize..30_000])
            .prop_map(|(id, bytes)| Choice::Accept(id, bytes)),
        3 => (id.clone(), prop_oneof![0usize..600, 2000usize..3000], any::<bool>())
            .prop_map(|(id, bytes, delivered)| Choice::Finish(id, bytes, delivered)),
        2 => id.clone().prop_map(Choice::Delivered),
        1 => id.clone().prop_map(Choice::Forget),
        1 => id.clone().prop_map(Choice::Bump),
        1 => id.clone().prop_map(Choice::FinalOf),
        1 => id.prop_map(Choice::Lookup),
        1 => Just(Choice::Sweep),
    ]
}

fn step(faults: bool) -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        Just(Failure::Once(Errno::ENOSPC)),
        Just(Failure::Once(Errno::EIO)),
        Just(Failure::Dead),
    ];
    prop_oneof![
        12 => proptest::collection::vec(choice(), 1..5).prop_map(Step::Batch),
        1 => Just(Step::Reopen),
        1 => any::<u64>().prop_map(Step::PowerCut),
        1 => prop_oneof![Just(1_000u64), Just(601_000), Just(86_500_000)].prop_map(Step::Later),
        if faults { 2 } else { 0 } => (0u64..30, kind).prop_map(|(n, kind)| Step::Fail(n, kind)),
    ]
}

fn play(steps: Vec<Step>) {
    let mut store = Checked::new();
    for step in steps {
        match step {
            Step::Batch(choices) => {
                let ops: Vec<Op> = choices.iter().map(|c| c.op(store.now_ms)).collect();
                store.apply(&ops);
            }
            Step::Reopen => store.reopen(None),
            Step::PowerCut(seed) => store.reopen(Some(seed)),
            Step::Fail(n, failure) => store.disk.fail_in(n, failure),
            Step::Later(ms) => store.now_ms += ms,
        }
        store.check();
        // Each fault may double the states; a power cut settles them.
        if store.n_states() > 64 {
            store.reopen(Some(7));
        }
    }
    store.reopen(Some(3));
    store.check();
}

impl Choice {
    fn op(&self, now_ms: u64) -> Op {
        let name = |id: &u8| format!("job-{id}");
        match self {
            Choice::Accept(id, bytes) => Op::Accept(Record {
                accepted_at_ms: now_ms,
                ..record(&name(id), *bytes)
            }),
            Choice::Finish(id, bytes, delivered) => {
                let end = Final {
                    delivered: *delivered,
                    ..end(&name(id), *bytes, now_ms)
                };
                Op::Finish(job(&name(id)), end)
            }
            Choice::Delivered(id) => Op::Delivered(job(&name(id))),
            Choice::Forget(id) => Op::Forget(job(&name(id))),
            Choice::Bump(id) => Op::BumpAttempt(job(&name(id))),
            Choice::FinalOf(id) => Op::FinalOf(job(&name(id))),
            Choice::Lookup(id) => Op::Lookup(job(&name(id))),
            Choice::Sweep => Op::Sweep(now_ms),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_history_with_power_cuts_keeps_what_was_acknowledged(
        steps in proptest::collection::vec(step(false), 1..40)
    ) {
        play(steps);
    }

    #[test]
    fn any_history_with_disk_faults_stays_in_an_allowed_state(
        steps in proptest::collection::vec(step(true), 1..40)
    ) {
        play(steps);
    }
}
