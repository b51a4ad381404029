//! Where a copy takes long: what ended jobs leave in the pool until its moment comes.

use super::*;

const SAID: &str = "a conversation that begins with many words";

fn n_copies(play: &Play) -> usize {
    play.n_copies.load(Ordering::Relaxed)
}

fn of_session(key: u64, user: &str, max_tokens: u32) -> Job {
    Job {
        leaves: Leaves::Session(7),
        ..chat(key, user, max_tokens)
    }
}

/// A stream that goes on all the while.
fn beside(play: &Play) {
    play.submit(&chat(1, "beside !step 2", 4000));
    assert_eq!(play.started().0, JobKey(1));
}

/// Its end is told before its slot is cleared; the answer to this comes after.
fn until_settled(play: &Play) {
    for n in 0..2 {
        play.send(Command::Ping(n));
        while play.next() != Event::Pong(n) {}
    }
}

fn roomy() -> LoadSpec {
    LoadSpec {
        n_ctx: 16_384,
        ..spec()
    }
}

#[test]
fn who_waits_finds_the_very_cells_and_a_copy_is_made_when_it_is_quiet() {
    let one = LoadSpec {
        n_seq_max: 1,
        ..spec()
    };
    let jobs = [measured(), chat(2, SAID, 10), chat(3, SAID, 10)];
    let play = Play::begin(&one, 1024, SLOW, &jobs);
    let mut n_told = 0;
    let second = loop {
        match play.any() {
            Event::Cached { .. } => n_told += 1,
            Event::Done(done) if done.job == JobKey(3) => break done,
            _ => {}
        }
    };
    assert_eq!(second.timings.n_cached as usize, SAID.len() + 2);
    assert_eq!(
        n_told, 1,
        "that which is measured: neither waited for a copy"
    );
    // Both are the same text; one copy has all there is.
    play.cached();
    assert_eq!(n_copies(&play), 2);
    let third = play.ask(&chat(4, SAID, 10));
    assert_eq!(third.n_cached as usize, SAID.len() + 2);
}

#[test]
fn a_node_that_is_never_quiet_keeps_a_conversation_in_the_pool() {
    let play = Play::with_slow_copies(&roomy());
    beside(&play);
    let before = n_copies(&play);
    play.ask(&of_session(2, SAID, 10));
    until_settled(&play);
    let second = play.ask(&of_session(3, SAID, 10));
    assert_eq!(second.n_cached as usize, SAID.len() + 2);
    assert_eq!(n_copies(&play), before, "the stream was not held up");
}

#[test]
fn a_conversation_that_is_forgotten_is_not_kept_in_the_pool() {
    let play = Play::with_slow_copies(&roomy());
    beside(&play);
    play.ask(&of_session(2, SAID, 10));
    until_settled(&play);
    play.send(Command::Forget(7));
    let second = play.ask(&of_session(3, SAID, 10));
    assert_eq!(second.n_cached, 0);
}

#[test]
fn cells_of_what_is_kept_go_to_whoever_needs_them() {
    let tight = LoadSpec {
        n_ctx: 512,
        ..spec()
    };
    let play = Play::with_slow_copies(&tight);
    play.submit(&chat(1, "beside !step 2", 250));
    play.started();
    play.ask(&of_session(2, SAID, 100));
    until_settled(&play);
    // Free are some 90 cells without those that are kept.
    let other = play.ask(&chat(3, "other words, and more of them than fit", 100));
    assert_eq!((other.n_cached, other.end), (0, Some(Ok(Finish::Length))));
}

#[test]
fn what_would_take_more_than_half_the_pool_is_not_kept() {
    let tight = LoadSpec {
        n_ctx: 512,
        ..spec()
    };
    let play = Play::with_slow_copies(&tight);
    play.submit(&chat(1, "!count !step 20", 150));
    play.started();
    let long = SAID.repeat(6);
    play.ask(&of_session(2, &long, 10));
    until_settled(&play);
    let second = play.ask(&of_session(3, &long, 10));
    assert_eq!(second.n_cached, 0);
}

#[test]
fn a_beginning_that_is_read_ahead_gets_the_cells_of_what_is_kept() {
    let tight = LoadSpec {
        n_ctx: 256,
        n_seq_max: 2,
        ..spec()
    };
    let play = Play::with_slow_copies(&tight);
    let mut beside = chat(1, "!count !step 40", 40);
    beside.leaves = Leaves::Nothing;
    play.submit(&beside);
    play.started();
    play.ask(&of_session(2, &SAID.repeat(2), 20));
    until_settled(&play);
    // It needs more cells than are free beside what is kept.
    let mut ahead = chat(3, &"read ahead ".repeat(14), 1);
    ahead.leaves = Leaves::Pinned;
    play.submit(&ahead);
    // Nothing else is copied.
    play.cached();
    let found = play.ask(&chat(4, &"read ahead ".repeat(14), 4));
    assert!(found.n_cached > 100, "{found:?}");
}
