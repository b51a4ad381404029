//! What a worker leaves on disk for the next: with the product, real models and real ends.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use orinoco::frames::{Command, Event, Finish, Job, JobKey, Leaves, LoadSpec, OnDisk, SavedStates};
use orinoco::kv_file::{Known, KvFile};

use super::common::{Answer, GEMMA, SMOLLM, Worker, job, model, real_spec};

/// Quiet times never come, unless a play wants them.
const BOUNDS: SavedStates = SavedStates {
    bytes_max: 256 << 20,
    reserve_bytes: 0,
    age_seconds_max: 3600,
    quiet_ms: 0,
};

struct Place {
    dir: tempfile::TempDir,
    spec: LoadSpec,
}

impl Place {
    fn new(name: &str, quiet_ms: u64) -> Self {
        let spec = LoadSpec {
            saved_states: Some(SavedStates { quiet_ms, ..BOUNDS }),
            ..real_spec(name)
        };
        let dir = tempfile::tempdir().unwrap();
        Self { dir, spec }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("kv")
    }

    fn file(&self) -> File {
        open(&self.path())
    }

    fn start(&self) -> Worker {
        let mut worker =
            Worker::spawn_with(env!("CARGO_BIN_EXE_orinoco-engine"), Some(self.file()));
        worker.load(&self.spec);
        worker.loaded();
        worker
    }

    fn known(&self) -> Vec<Known> {
        KvFile::of_anybody(self.file(), BOUNDS).known(0).unwrap()
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    options.open(path).unwrap()
}

/// All that was said, with a story of some 300 tokens at the beginning.
fn said(more: &str) -> String {
    let story = "The river carried the boats past the old mill and the children waved. ";
    format!("{}{more}", story.repeat(20))
}

fn turn(key: u64, text: &str, session: u64) -> Job {
    Job {
        leaves: Leaves::Session(session),
        ignore_eos: true,
        ..job(key, text, 24)
    }
}

/// Ends it as the supervisor does.
fn save_and_end(mut worker: Worker) -> Option<OnDisk> {
    worker.send(&Command::Save { limit_ms: 20_000 });
    let mut on_disk = None;
    loop {
        match worker.any().expect("it saves") {
            Event::OnDisk(now) => on_disk = Some(now),
            Event::Saved => break,
            _ => {}
        }
    }
    drop(worker);
    on_disk
}

/// Two turns of a conversation, with an end in between or not.
fn second_turn(place: &Place, ends: bool) -> (Answer, Option<OnDisk>) {
    let mut worker = place.start();
    let first = worker.ask(turn(1, &said("Once"), 7));
    let mut on_disk = None;
    if ends {
        on_disk = save_and_end(worker);
        worker = place.start();
    }
    let goes_on = turn(2, &said(&format!("Once{} And then", first.text)), 7);
    (worker.ask(goes_on), on_disk)
}

fn a_conversation_goes_on_after_a_restart(name: &str) {
    let unbroken = second_turn(&Place::new(name, 0), false).0;
    let place = Place::new(name, 0);
    let (restarted, on_disk) = second_turn(&place, true);
    let on_disk = on_disk.expect("it says what it left");
    assert_eq!(on_disk.n_states, 1);
    assert!(on_disk.written_bytes > 1 << 20 && on_disk.bytes >= on_disk.written_bytes);
    let n_prompt = restarted.prompt_ids.len() as u32;
    assert!(
        restarted.n_cached + 12 > n_prompt && restarted.n_cached > 280,
        "{} of {n_prompt}",
        restarted.n_cached
    );
    assert_eq!(restarted.n_cached, unbroken.n_cached);
    assert_eq!(restarted.text, unbroken.text, "the cells are the same");
}

#[test]
fn a_conversation_goes_on_after_a_restart_as_if_there_was_none() {
    a_conversation_goes_on_after_a_restart(SMOLLM);
}

#[test]
fn so_does_one_with_a_sliding_window() {
    a_conversation_goes_on_after_a_restart(GEMMA);
}

#[test]
fn in_a_quiet_time_it_is_saved_once_and_a_kill_does_not_lose_it() {
    let place = Place::new(SMOLLM, 50);
    let mut worker = place.start();
    let first = worker.ask(turn(1, &said("Once"), 7));
    let on_disk = loop {
        if let Event::OnDisk(now) = worker.any().unwrap() {
            break now;
        }
    };
    // A second time there is nothing to do, also when it is asked for.
    assert_eq!(save_and_end(worker), None);
    assert_eq!(place.known().len(), 1);
    let mut worker = place.start();
    let second = worker.ask(turn(2, &said(&format!("Once{} So", first.text)), 7));
    assert!(second.n_cached > 280);
    worker.child.kill().unwrap();
    assert!(on_disk.written_bytes > 0);
}

#[test]
fn a_kill_in_the_middle_of_a_save_breaks_nothing() {
    let place = Place::new(SMOLLM, 0);
    let mut n_found = 0;
    for round in 0..4_u64 {
        let mut worker = place.start();
        let own = format!("In the year {round} ");
        let asked = turn(1, &format!("{own}{}", said("Once")), round);
        worker.ask(asked);
        worker.send(&Command::Save { limit_ms: 20_000 });
        // From before the first byte to after the last: the state has some 8 MB.
        let after = std::time::Duration::from_millis(round * round * 6);
        worker
            .socket
            .set_read_timeout(Some(after.max(std::time::Duration::from_millis(1))))
            .unwrap();
        let _ = std::io::Read::read(&mut worker.socket, &mut [0; 4096]);
        worker.child.kill().unwrap();
        worker.child.wait().unwrap();
        let mut file = KvFile::of_anybody(place.file(), BOUNDS);
        let known = file.known(0).unwrap();
        for known in &known {
            assert!(
                file.read(known.id, 0).unwrap().is_some(),
                "what is named is whole"
            );
        }
        assert_eq!(file.n_bad(), 0);
        assert!(known.len() >= n_found, "what was there still is");
        n_found = known.len();
    }
    let mut worker = place.start();
    assert!(worker.ask(turn(9, &said("Once"), 99)).text.len() > 10);
}

#[test]
fn another_models_file_and_bytes_of_a_stranger_are_begun_anew() {
    let place = Place::new(SMOLLM, 0);
    let mut worker = place.start();
    worker.ask(turn(1, &said("Once"), 7));
    save_and_end(worker);
    let copy = place.dir.path().join("copy.gguf");
    std::fs::copy(model(SMOLLM), &copy).unwrap();
    let other = Place {
        spec: LoadSpec {
            path: copy,
            ..place.spec.clone()
        },
        dir: place.dir,
    };
    let mut worker = other.start();
    assert_eq!(worker.ask(turn(1, &said("Once"), 7)).n_cached, 0);
    save_and_end(worker);
    // All of it noise, from the first byte on.
    let n_bytes = other.file().metadata().unwrap().len() as usize;
    let noise = Vec::from_iter((0..n_bytes).map(|i| ((i * 7919) >> 3) as u8));
    std::fs::write(other.path(), noise).unwrap();
    let mut worker = other.start();
    assert_eq!(worker.ask(turn(1, &said("Once"), 7)).n_cached, 0);
    assert_eq!(save_and_end(worker).unwrap().n_states, 1);
}

#[test]
fn a_bit_that_flipped_costs_the_state_and_not_the_answer() {
    let unbroken = second_turn(&Place::new(SMOLLM, 0), false).0;
    let place = Place::new(SMOLLM, 0);
    let mut worker = place.start();
    let first = worker.ask(turn(1, &said("Once"), 7));
    save_and_end(worker);
    let mut bytes = std::fs::read(place.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(place.path(), bytes).unwrap();
    let mut worker = place.start();
    let second = worker.ask(turn(2, &said(&format!("Once{} And then", first.text)), 7));
    assert_eq!(second.n_cached, 0);
    // Read again, a close choice may fall the other way; the first is no close one.
    assert_eq!(second.ids[0], unbroken.ids[0]);
    worker.send(&Command::Ping(1));
    assert_eq!(worker.next(), Some(Event::Pong(1)));
    assert_eq!(place.known().len(), 0, "it is dropped");
}

#[test]
fn what_is_forgotten_is_not_saved_even_while_it_is_answered() {
    let place = Place::new(SMOLLM, 0);
    let mut worker = place.start();
    let mut long = turn(1, &said("Once"), 7);
    long.max_tokens = 200;
    worker.send(&Command::Submit(Box::new(long)));
    worker.send(&Command::Submit(Box::new(turn(2, &said("Twice"), 8))));
    assert!(matches!(worker.next(), Some(Event::Started { .. })));
    worker.send(&Command::Forget(7));
    let mut n_done = 0;
    while n_done < 2 {
        n_done += usize::from(matches!(worker.next().unwrap(), Event::Done(_)));
    }
    save_and_end(worker);
    let kinds = Vec::from_iter(place.known().iter().map(|known| known.kind));
    assert_eq!(kinds, [orinoco::kv_file::Kind::Session(8)]);
}

#[test]
fn a_prompt_that_waits_for_its_state_can_be_cancelled() {
    let place = Place::new(SMOLLM, 0);
    let mut worker = place.start();
    worker.ask(turn(1, &said("Once"), 7));
    save_and_end(worker);
    let mut worker = place.start();
    let long = Job {
        max_tokens: 1500,
        ..turn(2, &said("Once more"), 7)
    };
    worker.send(&Command::Submit(Box::new(long)));
    worker.send(&Command::Cancel(JobKey(2)));
    worker.send(&Command::Submit(Box::new(turn(3, &said("Once more"), 7))));
    let answers = worker.answers(&[JobKey(2), JobKey(3)]);
    assert_eq!(answers[0].finish(), Finish::Cancelled);
    assert!(answers[1].n_cached > 280);
}
