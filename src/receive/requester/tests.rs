//! Facts about a question to a pool: single turns, then a pool that loses, repeats, dies and returns.

use sha2::{Digest, Sha256};

use super::*;
use crate::frames::{Finish, Timings};
use crate::wire::reply::{Accepted, End, Form, Outgoing, Replier};
use crate::wire::topic::{Op, RequestId};

mod pool;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn replier(node: &str, attempt: u32) -> Replier {
    Replier {
        form: Form::Chunks,
        op: Op::Chat,
        id: RequestId::new("q1").unwrap(),
        model: "m".into(),
        node: name(node),
        created_s: 1,
        attempt,
    }
}

fn accepted(node: &str, attempt: u32) -> Outgoing {
    let accepted = replier(node, attempt).accepted(&Accepted {
        queue: 0,
        eta_ms: None,
        loading: None,
    });
    accepted.expect("a chat in chunks has one")
}

fn piece(node: &str, attempt: u32, seq: u64, text: &str) -> Outgoing {
    replier(node, attempt)
        .piece(seq, text)
        .expect("a chat in chunks has pieces")
}

fn end(node: &str, attempt: u32, seq: u64, text: &str, finish: Finish) -> Outgoing {
    let end = End {
        finish,
        text: text.into(),
        timings: Timings::default(),
        ttft_ms: 1.0,
        total_ms: 2.0,
        n_chunks: seq - 1,
        resumed: 0,
        parts: Vec::new(),
        session: None,
        energy_j: None,
        logprobs: Vec::new(),
        include_text: false,
        text_sha256: Sha256::digest(text).into(),
        truncated: false,
        calls: Vec::new(),
    };
    replier(node, attempt).end(seq, &end)
}

fn refusal(node: &str, retry_after_ms: Option<u64>) -> Outgoing {
    let mut error = ApiError::new(Code::QueueFull, "full");
    error.retry_after_ms = retry_after_ms;
    replier(node, 1).error(0, &error)
}

/// Everything there is to do now.
fn actions(requester: &mut Requester, now: Duration) -> Vec<Action> {
    std::iter::from_fn(|| requester.poll(now)).collect()
}

/// A requester that asked at 0 and follows this node since 100 ms.
fn following(node: &str) -> Requester {
    let mut requester = Requester::of_pool(ms(0));
    assert_eq!(actions(&mut requester, ms(0)), [Action::Ask]);
    let heard = requester.hear(&accepted(node, 1).payload, ms(100));
    assert_eq!(heard, Ok(Heard::Accepted));
    assert_eq!(actions(&mut requester, ms(100)), []);
    requester
}

#[test]
fn it_asks_again_every_two_seconds_and_later_less_often() {
    let mut requester = Requester::of_pool(ms(0));
    let mut asked = Vec::new();
    let mut now = ms(0);
    while now < ms(30_000) {
        assert_eq!(actions(&mut requester, now), [Action::Ask]);
        asked.push(now.as_millis());
        now = requester.wake().unwrap();
    }
    assert_eq!(asked, [0, 2000, 5000, 9500, 14_500, 19_500, 24_500, 29_500]);
}

#[test]
fn text_of_another_node_is_ignored_and_that_node_is_told() {
    let mut requester = following("a");
    let heard = requester.hear(&accepted("b", 1).payload, ms(200)).unwrap();
    let (is_first, is_final) = (true, false);
    assert_eq!(
        heard,
        Heard::OtherNode {
            node: name("b"),
            is_first,
            is_final
        }
    );
    requester
        .hear(&piece("b", 1, 1, "from b").payload, ms(210))
        .unwrap();
    requester
        .hear(&piece("a", 1, 1, "from a").payload, ms(220))
        .unwrap();
    requester
        .hear(
            &end("b", 1, 2, "from b", Finish::Cancelled).payload,
            ms(230),
        )
        .unwrap();
    // Told once: its text and its end need no further word.
    assert_eq!(
        actions(&mut requester, ms(240)),
        [Action::CancelAt(name("b"))]
    );
    let last = end("a", 1, 2, "from a", Finish::Stop);
    assert_eq!(requester.hear(&last.payload, ms(250)), Ok(Heard::End));
    assert_eq!(requester.receiver().text(), "from a");
    assert_eq!(requester.receiver().node(), Some(&name("a")));
    assert_eq!(actions(&mut requester, ms(60_000)), []);
}

#[test]
fn a_late_node_is_told_even_after_the_end() {
    let mut requester = following("a");
    requester
        .hear(&end("a", 1, 1, "", Finish::Stop).payload, ms(200))
        .unwrap();
    requester.hear(&accepted("b", 1).payload, ms(300)).unwrap();
    assert_eq!(
        actions(&mut requester, ms(300)),
        [Action::CancelAt(name("b"))]
    );
    assert!(requester.receiver().end().is_some());
}

#[test]
fn a_refusal_that_may_be_repeated_is_no_end_and_any_other_is() {
    let mut requester = Requester::of_pool(ms(0));
    actions(&mut requester, ms(0));
    let heard = requester
        .hear(&refusal("a", Some(100)).payload, ms(10))
        .unwrap();
    assert!(matches!(heard, Heard::Refused(_)));
    assert_eq!(requester.wake(), Some(ms(110)));
    assert_eq!(actions(&mut requester, ms(110)), [Action::Ask]);
    // Another node takes it, and a late refusal of the first changes nothing.
    requester.hear(&accepted("b", 1).payload, ms(120)).unwrap();
    requester
        .hear(&refusal("a", Some(100)).payload, ms(130))
        .unwrap();
    assert_eq!(actions(&mut requester, ms(5000)), []);
    assert_eq!(requester.receiver().node(), Some(&name("b")));

    let mut requester = Requester::of_pool(ms(0));
    actions(&mut requester, ms(0));
    assert_eq!(
        requester.hear(&refusal("a", None).payload, ms(10)),
        Ok(Heard::End)
    );
}

#[test]
fn refusals_in_a_row_are_answered_more_and_more_slowly() {
    let mut requester = Requester::of_pool(ms(0));
    let (mut now, mut waits) = (ms(0), Vec::new());
    for _ in 0..8 {
        assert_eq!(actions(&mut requester, now), [Action::Ask]);
        requester
            .hear(&refusal("a", Some(100)).payload, now)
            .unwrap();
        let next = requester.wake().unwrap();
        waits.push((next - now).as_millis());
        now = next;
    }
    assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 3200, 3200]);
    requester
        .hear(&refusal("a", Some(u64::MAX)).payload, now)
        .unwrap();
    assert_eq!(requester.wake(), Some(now + ms(30_000)));
}

#[test]
fn a_node_said_to_be_offline_is_given_up_after_three_seconds() {
    let mut requester = following("a");
    requester
        .hear(&piece("a", 1, 1, "half").payload, ms(200))
        .unwrap();
    requester.presence(&name("a"), Presence::Offline, ms(1000));
    assert_eq!(actions(&mut requester, ms(3999)), []);
    assert_eq!(requester.wake(), Some(ms(4000)));
    assert_eq!(actions(&mut requester, ms(4000)), [Action::Ask]);
    let heard = requester.hear(&accepted("b", 1).payload, ms(4100));
    assert_eq!(heard, Ok(Heard::StartedOver), "the half is void");
    assert_eq!(requester.receiver().text(), "");
    // When a comes back, it is not to go on.
    assert_eq!(
        actions(&mut requester, ms(4100)),
        [Action::CancelAt(name("a"))]
    );
    requester.hear(&accepted("a", 2).payload, ms(5000)).unwrap();
    assert_eq!(
        actions(&mut requester, ms(5000)),
        [Action::CancelAt(name("a"))]
    );
}

#[test]
fn a_node_that_is_back_in_time_is_followed_on() {
    let mut requester = following("a");
    requester
        .hear(&piece("a", 1, 1, "half").payload, ms(200))
        .unwrap();
    requester.presence(&name("a"), Presence::Offline, ms(1000));
    requester.presence(&name("a"), Presence::Online, ms(3500));
    assert_eq!(actions(&mut requester, ms(4000)), []);
    // It began anew, from its disk.
    let heard = requester.hear(&accepted("a", 2).payload, ms(4500));
    assert_eq!(heard, Ok(Heard::StartedOver));
    requester
        .hear(&piece("a", 2, 1, "whole").payload, ms(4600))
        .unwrap();
    let last = end("a", 2, 2, "whole", Finish::Stop);
    assert_eq!(requester.hear(&last.payload, ms(4700)), Ok(Heard::End));
    assert_eq!(requester.receiver().text(), "whole");
}

#[test]
fn the_node_that_was_given_up_is_followed_again_when_it_is_the_first_to_speak() {
    let mut requester = following("a");
    requester
        .hear(&piece("a", 1, 1, "half").payload, ms(200))
        .unwrap();
    requester.presence(&name("a"), Presence::Offline, ms(1000));
    assert_eq!(actions(&mut requester, ms(4000)), [Action::Ask]);
    // It was not dead, only cut off; its text goes on where it was.
    let heard = requester.hear(&piece("a", 1, 2, " and half").payload, ms(4100));
    assert_eq!(heard, Ok(Heard::Text { from: 4 }));
    requester.hear(&accepted("b", 1).payload, ms(4200)).unwrap();
    assert_eq!(
        actions(&mut requester, ms(4200)),
        [Action::CancelAt(name("b"))]
    );
}

#[test]
fn a_silent_node_is_asked_and_then_given_up() {
    let mut requester = following("a");
    assert_eq!(requester.wake(), Some(ms(10_100)));
    assert_eq!(
        actions(&mut requester, ms(10_100)),
        [Action::AskNode(name("a"))]
    );
    // It waits in a long queue, and says so.
    assert_eq!(
        requester.hear(&accepted("a", 1).payload, ms(10_200)),
        Ok(Heard::Repeat)
    );
    assert_eq!(
        actions(&mut requester, ms(20_200)),
        [Action::AskNode(name("a"))]
    );
    assert_eq!(actions(&mut requester, ms(24_199)), []);
    assert_eq!(actions(&mut requester, ms(24_200)), [Action::Ask]);
}

#[test]
fn a_gap_is_healed_by_a_repeat_and_no_text_is_lost() {
    let mut requester = following("a");
    requester
        .hear(&piece("a", 1, 1, "one").payload, ms(200))
        .unwrap();
    let last = end("a", 1, 4, "one two three", Finish::Stop);
    for message in [piece("a", 1, 3, " three"), last.clone()] {
        assert_eq!(requester.hear(&message.payload, ms(300)), Ok(Heard::Repeat));
    }
    assert_eq!(
        actions(&mut requester, ms(2300)),
        [Action::AskNode(name("a"))]
    );
    let again = [
        accepted("a", 1),
        piece("a", 1, 1, "one"),
        piece("a", 1, 2, " two"),
        piece("a", 1, 3, " three"),
        last,
    ];
    for message in again {
        requester.hear(&message.payload, ms(2400)).unwrap();
    }
    assert!(requester.receiver().end().is_some());
    assert_eq!(requester.receiver().text(), "one two three");
}

#[test]
fn the_cancelled_of_a_node_that_was_told_is_no_answer() {
    let mut requester = following("a");
    requester.hear(&accepted("b", 1).payload, ms(200)).unwrap();
    assert_eq!(
        actions(&mut requester, ms(200)),
        [Action::CancelAt(name("b"))]
    );
    requester.presence(&name("a"), Presence::Offline, ms(300));
    assert_eq!(actions(&mut requester, ms(3300)), [Action::Ask]);
    // The pool gives it to b, which still knows that it was called off.
    requester.hear(&accepted("b", 1).payload, ms(3400)).unwrap();
    let stored = end("b", 1, 1, "", Finish::Cancelled);
    let heard = requester.hear(&stored.payload, ms(3400)).unwrap();
    assert!(matches!(heard, Heard::Refused(_)), "{heard:?}");
    assert_eq!(requester.receiver().end(), None);
    requester.hear(&accepted("a", 2).payload, ms(5000)).unwrap();
    let last = end("a", 2, 1, "", Finish::Stop);
    assert_eq!(requester.hear(&last.payload, ms(5100)), Ok(Heard::End));
}

#[test]
fn a_question_called_off_ends_and_is_not_asked_again() {
    let mut requester = Requester::of_pool(ms(0));
    actions(&mut requester, ms(0));
    requester.cancel();
    assert_eq!(actions(&mut requester, ms(10)), [Action::Cancel]);
    assert_eq!(actions(&mut requester, ms(60_000)), []);
    // The cancel was faster than the request.
    requester
        .hear(&accepted("a", 1).payload, ms(60_000))
        .unwrap();
    assert_eq!(
        actions(&mut requester, ms(60_000)),
        [Action::CancelAt(name("a"))]
    );
    let last = end("a", 1, 1, "", Finish::Cancelled);
    assert_eq!(requester.hear(&last.payload, ms(60_100)), Ok(Heard::End));

    let mut requester = following("a");
    requester.cancel();
    requester.cancel();
    assert_eq!(
        actions(&mut requester, ms(110)),
        [Action::CancelAt(name("a"))]
    );
}

#[test]
fn a_lost_session_asks_whoever_has_it() {
    let mut requester = following("a");
    requester.session_lost(ms(500));
    assert_eq!(
        actions(&mut requester, ms(500)),
        [Action::AskNode(name("a"))]
    );
    let mut requester = Requester::of_pool(ms(0));
    actions(&mut requester, ms(0));
    requester.session_lost(ms(500));
    assert_eq!(actions(&mut requester, ms(500)), [Action::Ask]);
}

#[test]
fn a_question_to_one_node_turns_to_nobody_else() {
    let mut requester = Requester::of_node(ms(0));
    assert_eq!(actions(&mut requester, ms(0)), [Action::Ask]);
    requester.hear(&accepted("a", 1).payload, ms(100)).unwrap();
    requester.presence(&name("a"), Presence::Offline, ms(200));
    let mut now = ms(200);
    for _ in 0..5 {
        now = requester.wake().unwrap();
        assert_eq!(actions(&mut requester, now), [Action::AskNode(name("a"))]);
    }
    assert!(now > ms(40_000));
    let mut requester = Requester::of_node(ms(0));
    let heard = requester.hear(&refusal("a", Some(100)).payload, ms(10));
    assert_eq!(heard, Ok(Heard::End));
}

#[test]
fn a_node_that_is_no_name_is_no_answer() {
    let mut requester = Requester::of_pool(ms(0));
    let text = String::from_utf8(accepted("a", 1).payload.to_vec()).unwrap();
    let forged = text.replace("\"node\":\"a\"", "\"node\":\"a/req/x/cancel\"");
    assert_ne!(text, forged);
    let heard = requester.hear(forged.as_bytes(), ms(10));
    assert!(
        matches!(heard, Err(HearError::Malformed { .. })),
        "{heard:?}"
    );
}
