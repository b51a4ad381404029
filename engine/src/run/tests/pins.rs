//! System prompts that are read before anybody asks.

use super::*;

const SYSTEM: &str = "you look after a pump and answer in one short sentence";

fn with_system(key: u64, user: &str, n: u32) -> Job {
    let messages = serde_json::json!([
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": user},
    ]);
    Job {
        input: Input::Chat {
            messages: messages.to_string(),
            tools: None,
        },
        ..chat(key, "", n)
    }
}

fn pinned() -> Job {
    Job {
        leaves: Leaves::Pinned,
        ..with_system(999, "-", 1)
    }
}

fn pin(play: &Play) {
    play.submit(&pinned());
}

/// Its marks, its text, and the mark of the user.
const N_BEGINNING: usize = SYSTEM.len() + 3;

#[test]
fn the_first_question_finds_it_and_nobody_is_told_of_it() {
    let play = Play::new(&spec());
    pin(&play);
    assert!(play.cached() > 0, "no other event comes before");
    let answer = play.ask(&with_system(1, "is it on?", 6));
    assert_eq!(answer.n_cached as usize, N_BEGINNING);
    assert_eq!(answer.text, "is it ");
}

#[test]
fn it_stays_when_others_need_the_room() {
    let mut spec = spec();
    spec.prefix_cache_bytes = 4000;
    let play = Play::new(&spec);
    pin(&play);
    play.cached();
    for key in 1..20 {
        play.ask(&chat(
            key,
            &format!("{key} is a prompt that is asked once and never again"),
            9,
        ));
    }
    let answer = play.ask(&with_system(50, "is it on?", 6));
    assert_eq!(answer.n_cached as usize, N_BEGINNING);
}

#[test]
fn it_gives_way_to_whatever_comes() {
    let slow = LoadSpec {
        n_seq_max: 1,
        n_batch: 8,
        n_ubatch: 8,
        ..spec()
    };
    // All at once, so that the question is there before the beginning is read.
    let play = Play::of(&slow, &[pinned(), chat(1, "a question", 5)]);
    assert_eq!(play.started().0, JobKey(1));
    assert_eq!(play.answer(1).text, "a que");
    play.cached();
    let answer = play.ask(&with_system(2, "is it on?", 6));
    assert_eq!(
        answer.n_cached as usize, N_BEGINNING,
        "it was read after all"
    );
}

#[test]
fn nothing_is_read_where_nothing_is_kept() {
    let mut spec = spec();
    spec.prefix_cache_bytes = 0;
    let play = Play::new(&spec);
    pin(&play);
    assert_eq!(play.ask(&with_system(1, "is it on?", 6)).n_cached, 0);
    let batches = play.end().batches;
    let n_read: usize = batches.iter().map(Vec::len).sum();
    assert!(n_read < 2 * N_BEGINNING, "{n_read}");
}

#[test]
fn a_closed_loop_ends_with_beginnings_unread() {
    let play = Play::new(&spec());
    for _ in 0..3 {
        pin(&play);
    }
    play.send(Command::Drain);
    play.end();
}
