//! Guessed tokens read along: the same answers in fewer steps.

use orinoco::frames::Draft;

use super::*;

pub(super) fn guessing() -> LoadSpec {
    LoadSpec {
        speculation: Speculation::Always,
        ..spec()
    }
}

/// What the same job is answered without guesses and with them, and the decodes each took.
fn both(job: &Job) -> ([Answer; 2], [usize; 2]) {
    let mut decodes = [0; 2];
    let answers = [spec(), guessing()].map(|spec| {
        let play = Play::new(&spec);
        let answer = play.ask(job);
        let n = play.end().batches.len();
        decodes[usize::from(spec.speculation == Speculation::Always)] = n;
        answer
    });
    (answers, decodes)
}

#[test]
fn an_answer_that_repeats_itself_takes_fewer_steps_and_stays_the_same() {
    let ([plain, guessed], [n_plain, n_guessed]) = both(&chat(1, "valve seven is open", 100));
    assert_eq!(guessed.text, plain.text);
    assert_eq!(guessed.ids, plain.ids);
    assert_eq!(guessed.end, Some(Ok(Finish::Length)));
    // Each step that guessed right made five tokens.
    assert!(
        n_guessed * 3 < n_plain,
        "{n_guessed} steps against {n_plain}"
    );
}

#[test]
fn wrong_guesses_leave_nothing_behind() {
    // 19 20 21 …: what followed `1 2` before is seldom what follows now.
    let ([plain, guessed], _) = both(&chat(1, "!count", 400));
    assert_eq!(guessed.text, plain.text);
    let play = Play::new(&guessing());
    play.submit(&chat(1, "!count", 400));
    let done = loop {
        if let Event::Done(done) = play.next() {
            break done;
        }
    };
    let wrong = done.timings.n_guessed - done.timings.n_right;
    assert!(wrong > 0 && done.timings.n_right > 0, "{:?}", done.timings);
}

#[test]
fn an_answer_ends_where_it_ends_also_in_the_middle_of_a_guess() {
    for max_tokens in 20..30 {
        let ([plain, guessed], _) = both(&chat(1, "abc ", max_tokens));
        assert_eq!(guessed, plain);
    }
    for n in 20..30 {
        let ([plain, guessed], _) = both(&chat(1, &format!("abc !tokens {n}"), 100));
        assert_eq!(guessed, plain);
        assert_eq!((guessed.n_output, guessed.end), (n, Some(Ok(Finish::Stop))));
    }
    let mut job = chat(1, "one two three", 100);
    job.stop = vec!["three one two three one".into()];
    let ([plain, guessed], _) = both(&job);
    assert_eq!(guessed.text, "one two ");
    assert_eq!(guessed.text, plain.text);
}

#[test]
fn what_is_saved_of_an_answer_holds_no_guess() {
    let play = Play::new(&guessing());
    let prompt = "abc ".repeat(20);
    let first = play.ask(&chat(1, &prompt, 41));
    play.cached();
    let mut job = chat(2, "", 1);
    job.input = Input::Text(format!("<|user|>{prompt}<|end|>{} and more", first.text));
    // Three marks; the last token of an answer is chosen and never read.
    let n_read = 3 + prompt.len() + 40;
    assert_eq!(play.ask(&job).n_cached as usize, n_read);
}

#[test]
fn nobody_guesses_while_a_prompt_is_read() {
    let play = Play::new(&guessing());
    play.submit(&chat(1, "abc !step 30", 300));
    play.started();
    assert!(matches!(play.next(), Event::Step { .. }));
    let long = "another, much longer prompt ".repeat(30);
    play.submit(&chat(2, &long, 2));
    play.answer(2);
    play.answer(1);
    for batch in play.end().batches {
        let reads = batch.iter().any(|row| row.seq == 1 && !row.wants_logits);
        let n_first = batch.iter().filter(|row| row.seq == 0).count();
        assert!(!reads || n_first == 1, "{n_first} rows beside a prefill");
    }
}

/// With a draft model that goes on as the large one does.
fn drafting() -> LoadSpec {
    LoadSpec {
        draft: Some(Draft {
            name: "small".into(),
            path: "small.gguf".into(),
        }),
        ..guessing()
    }
}

#[test]
fn a_draft_model_guesses_what_was_never_said() {
    // 0 1 2 …: nothing of it was said before.
    let job = chat(1, "!count", 300);
    let plain = Play::new(&spec());
    let drafted = Play::new(&drafting());
    let (expected, found) = (plain.ask(&job), drafted.ask(&job));
    assert_eq!((&found.text, &found.ids), (&expected.text, &expected.ids));
    let (n_plain, n_drafted) = (plain.end().batches.len(), drafted.end().batches.len());
    assert!(
        n_drafted * 4 < n_plain,
        "{n_drafted} steps against {n_plain}"
    );
}

#[test]
fn streams_side_by_side_are_drafted_each_for_itself() {
    let play = Play::new(&drafting());
    let jobs: Vec<_> = (1..=4)
        .map(|n| chat(n, &format!("!count !tokens {}", 100 * n), 400))
        .collect();
    jobs.iter().for_each(|job| play.submit(job));
    for n in [1, 2, 3, 4] {
        let alone = Play::new(&spec()).ask(&jobs[n - 1]);
        let drafted = play.answer(n as u64);
        // The first of them end while the others are heard.
        let is_end = !drafted.text.is_empty() && alone.text.ends_with(&drafted.text);
        assert!(is_end, "{n}: {}", drafted.text);
    }
}
