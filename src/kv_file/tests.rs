//! The file on a medium whose power is cut at any moment, and bytes of a stranger in it.

use std::cell::RefCell;
use std::fs::File;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

static GO: AtomicBool = AtomicBool::new(false);

fn bounds() -> SavedStates {
    SavedStates {
        bytes_max: 4 << 20,
        reserve_bytes: 0,
        age_seconds_max: 3600,
        quiet_ms: 0,
    }
}

fn owner() -> Owner {
    Owner {
        path: "/models/m.gguf".into(),
        ..Owner::default()
    }
}

/// Bytes that follow from a number, so that a test knows what it should read.
fn state_of(seed: u8, n_bytes: usize) -> Vec<u8> {
    Vec::from_iter((0..n_bytes).map(|i| (i as u8).wrapping_mul(31) ^ seed))
}

fn tokens_of(seed: u8, n: usize) -> Vec<Token> {
    Vec::from_iter((0..n as Token).map(|i| i * 7 + Token::from(seed) * 1000))
}

fn new<'a>(tokens: &'a [Token], state: &'a [u8], kind: Kind) -> New<'a> {
    New {
        tokens,
        state,
        kind,
        made_ms: 5, // No clock in these plays goes back before it.
    }
}

fn file() -> File {
    tempfile::tempfile().unwrap()
}

fn opened(file: &File) -> KvFile<File> {
    KvFile::new(file.try_clone().unwrap(), owner(), bounds())
}

/// Saves the state that follows from `seed`.
fn save<M: Medium>(kv: &mut KvFile<M>, seed: u8, kind: Kind) -> Outcome {
    let (tokens, state) = (tokens_of(seed, 200), state_of(seed, 9000));
    kv.save(&new(&tokens, &state, kind), 10, &GO).unwrap()
}

fn kinds<M: Medium>(kv: &mut KvFile<M>) -> Vec<Kind> {
    let known = kv.known(10).unwrap();
    known.iter().map(|known| known.kind).collect()
}

#[test]
fn what_is_saved_is_read_by_the_next_process() {
    let file = file();
    let mut first = opened(&file);
    assert_eq!(save(&mut first, 1, Kind::Session(7)), Outcome::Saved(9800));
    assert_eq!(save(&mut first, 2, Kind::Pinned), Outcome::Saved(9800));
    assert_eq!(
        save(&mut first, 1, Kind::Session(7)),
        Outcome::There,
        "once"
    );
    let mut second = opened(&file);
    let known = second.known(20).unwrap();
    assert_eq!(known.len(), 2);
    assert_eq!(&known[0].tokens[..], tokens_of(1, 200));
    let state = second.read(known[0].id, 20).unwrap();
    assert_eq!(state.unwrap(), state_of(1, 9000));
    // And what the second does, the first sees.
    assert_eq!(second.forget(7, 30).unwrap(), 1);
    assert_eq!(kinds(&mut first), [Kind::Pinned]);
    assert_eq!(first.read(known[0].id, 30).unwrap(), None);
}

#[test]
fn the_next_turn_takes_the_place_of_the_last() {
    let file = file();
    let mut kv = opened(&file);
    save(&mut kv, 1, Kind::Session(7));
    let longer = [tokens_of(1, 200), tokens_of(2, 50)].concat();
    let state = state_of(9, 20_000);
    let saved = kv.save(&new(&longer, &state, Kind::Session(7)), 10, &GO);
    assert_eq!(saved.unwrap(), Outcome::Saved(21_000));
    // Told otherwise it is the same conversation.
    save(&mut kv, 3, Kind::Session(7));
    save(&mut kv, 4, Kind::Session(8));
    assert_eq!(kinds(&mut kv), [Kind::Session(7), Kind::Session(8)]);
    // What another conversation has in common with it is its own.
    save(&mut kv, 4, Kind::Session(9));
    assert_eq!(kv.list().len(), 3);
}

#[test]
fn nothing_of_what_is_forgotten_or_replaced_is_left_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kv");
    let options = || {
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap()
    };
    let mut kv = KvFile::new(options(), owner(), bounds());
    let mark = |n: u8| vec![0xa0 + n; 6000];
    let has = |n: u8| {
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(64).any(|part| part == &mark(n)[..64])
    };
    for n in 0..3 {
        let tokens = tokens_of(n, 100);
        let state = mark(n);
        let new = new(&tokens, &state, Kind::Session(n.into()));
        assert!(matches!(kv.save(&new, 10, &GO).unwrap(), Outcome::Saved(_)));
    }
    assert!(has(0) && has(1) && has(2));
    // Another process: the supervisor, which knows no owner.
    let mut supervisor = KvFile::of_anybody(options(), bounds());
    assert_eq!(supervisor.forget(1, 20).unwrap(), 1);
    assert!(has(0) && !has(1) && has(2));
    let tokens = tokens_of(9, 100);
    kv.save(&new(&tokens, &mark(9), Kind::Session(2)), 30, &GO)
        .unwrap();
    assert!(has(0) && !has(2) && has(9));
    assert_eq!(supervisor.forget(0, 40).unwrap(), 1);
    assert_eq!(supervisor.forget(2, 40).unwrap(), 1);
    assert!(!has(0) && !has(9));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), DATA_BEGIN);
}

#[test]
fn what_was_made_before_it_was_forgotten_is_not_saved_any_more() {
    let file = file();
    let mut worker = opened(&file);
    KvFile::of_anybody(file.try_clone().unwrap(), bounds())
        .forget(7, 100)
        .unwrap();
    let (tokens, state) = (tokens_of(1, 100), state_of(1, 100));
    let mut new = new(&tokens, &state, Kind::Session(7));
    new.made_ms = 99;
    assert_eq!(worker.save(&new, 200, &GO).unwrap(), Outcome::Forgotten);
    new.made_ms = 101;
    assert_eq!(worker.save(&new, 200, &GO).unwrap(), Outcome::Saved(500));
}

#[test]
fn states_of_another_model_or_build_are_begun_anew() {
    let file = file();
    save(&mut opened(&file), 1, Kind::Session(7));
    let other = Owner {
        layout: "another llama.cpp".into(),
        ..owner()
    };
    let mut other = KvFile::new(file.try_clone().unwrap(), other, bounds());
    assert_eq!(kinds(&mut other), []);
    assert_eq!(save(&mut other, 2, Kind::Pinned), Outcome::Saved(9800));
    assert_eq!(kinds(&mut opened(&file)), [], "and back again");
}

#[test]
fn what_is_old_goes() {
    let file = file();
    save(&mut opened(&file), 1, Kind::Session(7));
    let mut kv = opened(&file);
    assert_eq!(kv.known(3600 * 1000).unwrap().len(), 1);
    assert_eq!(kv.known(3600 * 1000 + 11).unwrap().len(), 0);
    assert_eq!(Medium::len(&file).unwrap(), DATA_BEGIN);
}

#[test]
fn room_is_made_by_what_is_worth_no_more_and_the_oldest_first() {
    let file = file();
    let mut bounds = bounds();
    bounds.bytes_max = DATA_BEGIN + 3 * room_for(9800);
    let mut kv = KvFile::new(file, owner(), bounds);
    let mut put = |seed, kind| {
        let (tokens, state) = (tokens_of(seed, 200), state_of(seed, 9000));
        let now_ms = u64::from(seed) * 1000;
        kv.save(&new(&tokens, &state, kind), now_ms, &GO).unwrap();
        let mut kinds = Vec::from_iter(kv.list().iter().map(|known| known.kind));
        kinds.sort_unstable();
        kinds
    };
    use Kind::{Pinned, Proven, Session};
    put(1, Pinned);
    put(2, Proven);
    assert_eq!(put(3, Session(3)).len(), 3);
    assert_eq!(put(4, Session(4)), [Proven, Session(3), Session(4)]);
    assert_eq!(put(5, Pinned), [Proven, Session(3), Session(4)]);
    assert_eq!(put(6, Proven), [Proven, Session(3), Session(4)]);
    assert_eq!(put(7, Session(7)), [Session(3), Session(4), Session(7)]);
    assert_eq!(put(8, Session(8)), [Session(4), Session(7), Session(8)]);
    assert_eq!(put(9, Proven), [Session(4), Session(7), Session(8)]);
}

#[test]
fn flash_is_written_so_often_a_day_and_no_more() {
    let mut kv = opened(&file());
    let bytes_max = bounds().bytes_max;
    let state = vec![1; 1 << 20];
    let (mut written, mut spared) = (0, 0);
    // A conversation that changes each ten minutes, two days long.
    for turn in 0..2 * 24 * 6 {
        let (tokens, now_ms) = (tokens_of(turn as u8, 100), turn * 600_000);
        let new = New {
            made_ms: now_ms,
            ..new(&tokens, &state, Kind::Session(1))
        };
        match kv.save(&new, now_ms, &GO).unwrap() {
            Outcome::Saved(bytes) => written += bytes,
            Outcome::Spared => spared += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(spared > 0);
    let most = bytes_max * (2 * 8 + 2);
    assert!(written <= most, "{written} of {most}");
    assert!(written > bytes_max * 14, "{written}");
}

#[test]
fn a_full_disk_is_left_alone() {
    let mut bounds = bounds();
    bounds.reserve_bytes = u64::MAX / 2;
    let file = file();
    let mut kv = KvFile::new(file.try_clone().unwrap(), owner(), bounds);
    assert_eq!(save(&mut kv, 1, Kind::Pinned), Outcome::NoRoom);
    assert_eq!(Medium::len(&file).unwrap(), 0);
}

#[test]
fn a_save_that_is_stopped_leaves_nothing() {
    let file = file();
    let mut kv = opened(&file);
    save(&mut kv, 1, Kind::Pinned);
    let len = Medium::len(&file).unwrap();
    let (tokens, state) = (tokens_of(2, 10), state_of(2, 100));
    let stop = AtomicBool::new(true);
    let stopped = kv.save(&new(&tokens, &state, Kind::Pinned), 10, &stop);
    assert_eq!(stopped.unwrap(), Outcome::Stopped);
    assert_eq!(Medium::len(&file).unwrap(), len);
    assert_eq!(kv.list().len(), 1);
}

#[test]
fn a_flipped_bit_costs_its_entry_and_no_other() {
    for (at, n_left) in [(0, 2), (1700, 1), (7000, 1)] {
        let file = file();
        let mut kv = opened(&file);
        save(&mut kv, 1, Kind::Session(1));
        save(&mut kv, 2, Kind::Session(2));
        let at = if at == 0 { 20 } else { DATA_BEGIN + at - 1000 };
        let mut byte = [0];
        file.read_at(at, &mut byte).unwrap();
        Medium::write_at(&file, at, &[byte[0] ^ 4]).unwrap();
        let mut kv = opened(&file);
        let known = kv.known(20).unwrap();
        let whole = known.iter().filter(|known| {
            let state = kv.read(known.id, 20).unwrap();
            state.inspect(|state| {
                let seed = (known.tokens[0] / 1000) as u8;
                assert_eq!(*state, state_of(seed, 9000));
            });
            kv.list().iter().any(|left| left.id == known.id)
        });
        let n = whole.count();
        // The one of the two indexes that is whole names the first entry at least.
        assert!(n >= 1 && n <= n_left.max(1), "{n} after {at}");
    }
}

/// Written but not synced: any part of it may be there after a power cut.
#[derive(Debug, Clone)]
enum Pending {
    Write(u64, Vec<u8>),
    Clear(u64, u64),
    Len(u64),
}

/// A disk whose power is cut after so many calls.
#[derive(Debug, Default)]
struct Torn {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Pending>,
    calls_left: Option<usize>,
}

fn apply(bytes: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::Write(at, written) => {
            let at = *at as usize;
            let end = at + written.len();
            bytes.resize(bytes.len().max(end), 0);
            bytes[at..end].copy_from_slice(written);
        }
        Pending::Clear(at, n) => {
            let len = bytes.len();
            let range = (*at as usize).min(len)..((at + n) as usize).min(len);
            bytes[range].fill(0);
        }
        Pending::Len(n) => bytes.resize(bytes.len().min(*n as usize), 0),
    }
}

impl Torn {
    fn call(&mut self) -> io::Result<()> {
        match &mut self.calls_left {
            Some(0) => return Err(io::Error::other("the power is gone")),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn change(&mut self, change: Pending) -> io::Result<()> {
        self.call()?;
        apply(&mut self.now, &change);
        self.pending.push(change);
        Ok(())
    }

    /// The power comes back: of what was not synced, what `keeps` says is there, and of writes a part.
    fn back(&mut self, keeps: &[(bool, u8)]) {
        let mut keeps = keeps.iter().cycle();
        for change in std::mem::take(&mut self.pending) {
            let Some((true, part)) = keeps.next() else {
                continue;
            };
            let change = match change {
                Pending::Write(at, bytes) => {
                    let n = bytes.len() * usize::from(*part) / 255;
                    Pending::Write(at, bytes[..n].to_vec())
                }
                other => other,
            };
            apply(&mut self.durable, &change);
        }
        self.now = self.durable.clone();
        self.calls_left = None;
    }
}

impl Medium for &RefCell<Torn> {
    fn lock(&self) -> io::Result<()> {
        Ok(())
    }
    fn unlock(&self) {}
    fn len(&self) -> io::Result<u64> {
        Ok(self.borrow().now.len() as u64)
    }
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let disk = self.borrow();
        let from = disk.now.get(at as usize..at as usize + bytes.len());
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.borrow_mut().change(Pending::Write(at, bytes.to_vec()))
    }
    fn sync(&self) -> io::Result<()> {
        let mut disk = self.borrow_mut();
        disk.call()?;
        disk.durable = disk.now.clone();
        disk.pending.clear();
        Ok(())
    }
    fn clear(&self, at: u64, n_bytes: u64) -> io::Result<()> {
        self.borrow_mut().change(Pending::Clear(at, n_bytes))
    }
    fn set_len(&self, n_bytes: u64) -> io::Result<()> {
        self.borrow_mut().change(Pending::Len(n_bytes))
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

#[derive(Debug, Clone)]
enum Step {
    Save {
        seed: u8,
        n_tokens: usize,
        session: u64,
    },
    Forget(u64),
    /// The power is cut after so many calls to the disk.
    Cut(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..6, 1_usize..60, 0_u64..4).prop_map(|(seed, n_tokens, session)| Step::Save {
            seed,
            n_tokens,
            session
        }),
        1 => (0_u64..4).prop_map(Step::Forget),
        3 => (0_usize..14).prop_map(Step::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is torn, and whenever: what was saved is there unless something took its place, what is there is
    /// what was saved, and what was forgotten is not.
    #[test]
    fn a_power_cut_costs_at_most_what_was_being_written(
        steps in proptest::collection::vec(step(), 1..24),
        keeps in proptest::collection::vec((any::<bool>(), any::<u8>()), 1..9),
    ) {
        let disk = RefCell::new(Torn::default());
        let small = SavedStates { bytes_max: DATA_BEGIN + 40_000, ..bounds() };
        let mut kv = KvFile::new(&disk, owner(), small);
        // By conversation: what it left that is surely on disk, and what may be.
        let mut sure: BTreeMap<u64, Vec<Token>> = BTreeMap::new();
        let mut now_ms = 1000;
        for step in steps {
            now_ms += 1000;
            match step {
                Step::Cut(calls) => disk.borrow_mut().calls_left = Some(calls),
                Step::Forget(session) => {
                    let was = sure.remove(&session);
                    match kv.forget(session, now_ms) {
                        Ok(n) => prop_assert!(was.is_none() || n == 1),
                        Err(_) => disk.borrow_mut().back(&keeps),
                    }
                }
                Step::Save { seed, n_tokens, session } => {
                    let (tokens, state) = (tokens_of(seed, n_tokens), state_of(seed, n_tokens * 150));
                    let new = New { made_ms: now_ms, ..new(&tokens, &state, Kind::Session(session)) };
                    match kv.save(&new, now_ms, &GO) {
                        Ok(Outcome::Saved(_) | Outcome::There) => {
                            let known = kv.list();
                            let is_left = |session: &u64| known.iter().any(|known| known.kind == Kind::Session(*session));
                            sure.insert(session, tokens);
                            prop_assert!(is_left(&session));
                            // Others may have made room.
                            sure.retain(|session, _| is_left(session));
                        }
                        Ok(_) => {
                            let known = kv.list();
                            sure.retain(|session, _| known.iter().any(|known| known.kind == Kind::Session(*session)));
                        }
                        Err(_) => {
                            // What was to take its place may have made room for itself.
                            sure.clear();
                            disk.borrow_mut().back(&keeps);
                        }
                    }
                }
            }
            if disk.borrow().calls_left.is_some() {
                continue;
            }
            let mut next = KvFile::new(&disk, owner(), small);
            let known = next.known(now_ms).unwrap();
            prop_assert_eq!(next.n_bad(), 0, "what is named is whole");
            for known in &known {
                let Kind::Session(session) = known.kind else { unreachable!() };
                let seed = (known.tokens[0] / 1000) as u8;
                let n = known.tokens.len();
                prop_assert_eq!(&known.tokens[..], tokens_of(seed, n));
                prop_assert_eq!(next.read(known.id, now_ms).unwrap(), Some(state_of(seed, n * 150)));
                if let Some(sure) = sure.get(&session) {
                    prop_assert!(known.tokens.starts_with(sure), "an older turn came back");
                }
            }
            for session in sure.keys() {
                prop_assert!(known.iter().any(|known| known.kind == Kind::Session(*session)), "{} is lost", session);
            }
        }
    }

    /// A stranger's index with a digest that is right: whatever it says, nothing is read beyond the file, nothing
    /// large is allocated, and what is dropped is dropped in peace.
    #[test]
    fn an_index_that_lies_is_survived(
        lies in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u32>(), 0_u64..4), 0..200),
        generation in any::<u64>(),
        n_bytes in 0_u64..(1 << 18),
    ) {
        let entry = |(at, state_bytes, n_tokens, small): (u64, u64, u32, u64)| Entry {
            id: at % 5,
            // Half of them plausible.
            at: if small > 1 { DATA_BEGIN + at % 32 * 4096 } else { at },
            n_tokens: if small > 1 { n_tokens % 3000 } else { n_tokens },
            state_bytes: if small > 1 { state_bytes % 20_000 } else { state_bytes },
            tokens_digest: "0".repeat(32),
            state_digest: "0".repeat(32),
            kind: Kind::Session(small),
            saved_ms: at,
        };
        let index = Index {
            generation: generation / 2,
            owner: owner(),
            entries: lies.into_iter().map(entry).take(ENTRIES_MAX).collect(),
            ..Index::default()
        };
        let slot = index.to_slot().unwrap();
        let read = Index::of_slot(&slot, bounds().bytes_max).unwrap();
        let mut free = DATA_BEGIN;
        for entry in &read.entries {
            prop_assert!(entry.at >= free && entry.at + entry.room() <= bounds().bytes_max + 4096);
            free = entry.at + entry.room();
        }
        let mut disk = Torn { now: slot, ..Torn::default() };
        disk.now.resize((n_bytes as usize).max(disk.now.len()), 7);
        disk.durable = disk.now.clone();
        let disk = RefCell::new(disk);
        let mut kv = KvFile::new(&disk, owner(), bounds());
        kv.known(10).unwrap();
        for known in kv.list() {
            kv.read(known.id, 10).unwrap();
        }
        prop_assert!(matches!(save(&mut kv, 1, Kind::Session(9)), Outcome::Saved(_)));
    }
}
