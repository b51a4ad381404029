//! Where the device computes by itself: long prompts are cut into tokens meanwhile.

use super::*;
use crate::scripted::Call;

fn roomy() -> LoadSpec {
    LoadSpec {
        n_ctx: 32_768,
        ..spec()
    }
}

/// Some 2,500 bytes, and as many tokens.
fn long(key: u64) -> Job {
    chat(key, &format!("{key} {}", "long ".repeat(500)), 4)
}

fn is_long(call: &Call) -> bool {
    matches!(call, Call::Tokenize(n) if *n > 2048)
}

#[test]
fn while_a_stream_runs_a_long_prompt_is_cut_after_a_step_has_begun_and_before_its_end_is_waited_for()
 {
    let play = Play::on_a_device(&roomy());
    play.submit(&chat(1, "!count !step 10", 400));
    play.started();
    assert!(matches!(play.next(), Event::Step { .. }));
    play.submit(&long(2));
    assert_eq!(play.answer(2).text, "2 lo");
    assert_eq!(play.answer(1).n_output, 400);
    let calls = play.end().calls.into_inner();
    let at = calls.iter().position(is_long).unwrap();
    assert_eq!((calls[at - 1], calls[at + 1]), (Call::Decode, Call::Logits));
}

#[test]
fn where_nothing_runs_or_the_prompt_is_short_it_is_cut_at_once() {
    let play = Play::on_a_device(&roomy());
    assert_eq!(play.ask(&long(1)).text, "1 lo");
    play.submit(&chat(2, "!count !step 10", 400));
    play.started();
    assert!(matches!(play.next(), Event::Step { .. }));
    assert_eq!(play.ask(&chat(3, "short", 4)).text, "shor");
    let calls = play.end().calls.into_inner();
    let in_a_step = |pair: &[Call]| pair[0] == Call::Decode && matches!(pair[1], Call::Tokenize(_));
    assert!(!calls.windows(2).any(in_a_step), "{calls:?}");
}

#[test]
fn of_several_one_is_cut_in_each_step() {
    let play = Play::on_a_device(&roomy());
    play.submit(&chat(1, "!count !step 50", 60));
    play.started();
    for key in 2..=13 {
        play.submit(&long(key));
    }
    let mut n_done = 0;
    while n_done < 13 {
        n_done += usize::from(matches!(play.next(), Event::Done(done) if done.end.is_ok()));
    }
    let calls = play.end().calls.into_inner();
    assert_eq!(calls.iter().filter(|call| is_long(call)).count(), 12);
    let in_steps = calls
        .windows(2)
        .filter(|pair| pair[0] == Call::Decode && is_long(&pair[1]));
    assert!(in_steps.count() > 1);
    for three in calls.windows(3).filter(|three| three[0] == Call::Decode) {
        assert!(!(is_long(&three[1]) && is_long(&three[2])), "two in a step");
    }
}

#[test]
fn what_waits_to_be_cut_can_be_cancelled_and_parked() {
    let play = Play::on_a_device(&roomy());
    play.submit(&chat(1, "!count !step 200", 10));
    play.started();
    assert!(matches!(play.next(), Event::Step { .. }));
    for key in [2, 3, 4] {
        play.submit(&long(key));
    }
    play.send(Command::Cancel(JobKey(3)));
    play.send(Command::Park(JobKey(4)));
    let (mut cancelled, mut parked) = (None, None);
    while cancelled.is_none() || parked.is_none() {
        match play.next() {
            Event::Done(done) if done.job == JobKey(3) => cancelled = Some(done.end),
            Event::Parked(of) => parked = Some(of.job),
            _ => {}
        }
    }
    assert_eq!(
        (cancelled, parked),
        (Some(Ok(Finish::Cancelled)), Some(JobKey(4)))
    );
    assert_eq!(play.answer(2).text, "2 lo");
    play.send(Command::Drain);
    play.end();
}
