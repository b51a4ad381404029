//! Conversations that do not fit any more.

use super::*;

/// `n` turns of `letters` letters each way, and a question.
fn conversation(key: u64, n: usize, letters: usize, max_tokens: u32) -> Job {
    let mut messages = vec![serde_json::json!({"role": "system", "content": "be kind"})];
    for turn in 0..n {
        let letter = char::from(b'a' + turn as u8).to_string().repeat(letters);
        messages.push(serde_json::json!({"role": "user", "content": letter}));
        messages.push(serde_json::json!({"role": "assistant", "content": letter}));
    }
    messages.push(serde_json::json!({"role": "user", "content": "and now?"}));
    Job {
        input: Input::Chat {
            messages: serde_json::Value::from(messages).to_string(),
            tools: None,
        },
        turns: vec![2; n],
        ..chat(key, "", max_tokens)
    }
}

/// The text of the prompt that was read, what was left out of it, and the answer.
fn asked(play: &Play, job: &Job) -> (String, u32, Answer) {
    play.submit(job);
    match play.next() {
        Event::Started {
            prompt_ids,
            n_left_out,
            ..
        } => {
            let bytes = prompt_ids
                .iter()
                .map(|id| u8::try_from(*id).unwrap_or(b'|'));
            let text = String::from_utf8(bytes.collect()).unwrap();
            (text, n_left_out, play.answer(job.job.0))
        }
        Event::Done(done) => panic!("{:?}", done.end),
        other => panic!("{other:?}"),
    }
}

fn small() -> LoadSpec {
    LoadSpec {
        n_ctx: 400,
        n_seq_max: 1,
        ..spec()
    }
}

#[test]
fn a_conversation_that_fits_is_read_whole() {
    let play = Play::new(&small());
    let (text, n_left_out, _) = asked(&play, &conversation(1, 4, 20, 10));
    assert_eq!(n_left_out, 0);
    assert!(text.contains("be kind") && text.contains(&"a".repeat(20)));
}

#[test]
fn the_oldest_turns_are_left_out_whole_and_the_system_message_never() {
    let play = Play::new(&small());
    let (text, n_left_out, answer) = asked(&play, &conversation(1, 9, 20, 10));
    assert!(n_left_out > 0 && n_left_out < 9, "{n_left_out}");
    assert!(text.len() <= 200, "{}", text.len());
    assert!(text.contains("be kind") && text.contains("and now?"));
    let letter = |turn: u32| char::from(b'a' + turn as u8).to_string().repeat(20);
    assert!(!text.contains(&letter(n_left_out - 1)));
    assert_eq!(text.matches(&letter(n_left_out)).count(), 2);
    assert_eq!(answer.end, Some(Ok(Finish::Length)));
    // The answer has room as well: with more to come, more is left out.
    let (_, fits, _) = asked(&play, &conversation(2, 8, 20, 1));
    let (_, short, _) = asked(&play, &conversation(3, 8, 20, 100));
    assert!(fits == 0 && short > 0, "{fits}, {short}");
}

#[test]
fn what_is_too_long_without_any_turn_is_refused_as_ever() {
    let play = Play::new(&small());
    let mut job = conversation(1, 3, 50, 10);
    let Input::Chat { messages, .. } = &mut job.input else {
        panic!("a chat");
    };
    *messages = messages.replace("and now?", &"?".repeat(500));
    assert!(matches!(
        play.ask(&job).end,
        Some(Err(JobError::TooLong {
            n_prompt: 500..,
            ..
        }))
    ));
}
