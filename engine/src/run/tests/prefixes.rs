use super::*;

#[test]
fn the_second_turn_reads_only_what_is_new() {
    let play = Play::new(&spec());
    let first = play.ask(&chat(1, "a conversation begins", 22));
    assert_eq!(first.n_cached, 0);
    let messages = serde_json::json!([
        {"role": "user", "content": "a conversation begins"},
    ]);
    let mut again = chat(2, "", 5);
    again.input = Input::Chat {
        messages: messages.to_string(),
        tools: None,
    };
    let second = play.ask(&again);
    assert_eq!(
        second.n_cached as usize,
        "a conversation begins".len() + 2,
        "all but the last token"
    );
    assert_eq!(second.text, "a con");
}

#[test]
fn a_system_prompt_is_shared_with_a_running_stream() {
    let play = Play::new(&spec());
    let with_system = |key, user: &str, n| {
        let messages = serde_json::json!([
            {"role": "system", "content": "a long system prompt for everyone"},
            {"role": "user", "content": user},
        ]);
        let mut job = chat(key, "", n);
        job.input = Input::Chat {
            messages: messages.to_string(),
            tools: None,
        };
        job
    };
    play.submit(&with_system(1, "first !step 2", 300));
    play.started();
    assert!(matches!(play.next(), Event::Step { .. }));
    let second = play.ask(&with_system(2, "second", 6));
    assert_eq!(
        second.n_cached as usize,
        "a long system prompt for everyone".len() + 3
    );
    assert_eq!(second.text, "second");
}

#[test]
fn of_jobs_that_end_together_all_are_told_before_the_first_copy_and_each_copy_lets_commands_in() {
    let jobs = [1, 2, 3].map(|key| chat(key, &format!("{key} is a prompt worth saving"), 40));
    let play = Play::of(&spec(), &jobs);
    let (mut n_done, mut grown) = (0, Vec::new());
    while grown.len() < 3 {
        match play.any() {
            Event::Done(_) => n_done += 1,
            Event::Cached { bytes } => {
                assert_eq!(n_done, 3, "all are told first");
                grown.push(bytes);
            }
            _ => {}
        }
    }
    assert!(grown.is_sorted_by(|a, b| a < b), "one at a time: {grown:?}");
}

#[test]
fn jobs_wait_for_cells_and_saved_prefixes_take_none() {
    let tight = LoadSpec {
        n_ctx: 256,
        ..spec()
    };
    let play = Play::new(&tight);
    for key in 0..6 {
        let answer = play.ask(&chat(key, &format!("{key} prefix to cache"), 60));
        assert_eq!(answer.end, Some(Ok(Finish::Length)));
    }
    play.submit(&chat(10, "x !step 1", 150));
    play.submit(&chat(11, "y", 150));
    assert_eq!(play.started().0, JobKey(10));
    loop {
        match play.next() {
            Event::Done(done) => break assert_eq!(done.job, JobKey(10)),
            Event::Started { .. } => panic!("there are no cells for both"),
            _ => {}
        }
    }
    assert_eq!(play.answer(11).text, "y ".repeat(75));
}

#[test]
fn a_saved_prefix_that_does_not_fit_whole_is_read_again() {
    let tight = LoadSpec {
        n_ctx: 256,
        ..spec()
    };
    let play = Play::new(&tight);
    let long = "a prefix that many ask with, and then a long end of its own";
    play.ask(&chat(1, long, 120));
    play.submit(&chat(2, "x !step 20", 90));
    play.started();
    // Free are about 150 cells; the saved sequence has some 180.
    let third = play.ask(&chat(3, &long[..40], 5));
    assert_eq!((third.n_cached, third.text.as_str()), (0, "a pre"));
}

#[test]
fn trimming_forgets_and_saves_nothing_until_it_may_grow_again() {
    let play = Play::new(&spec());
    let ask = |key| {
        let answer = play.ask(&chat(key, "the same question for everyone", 10));
        // Its end is told before its cells are given back; the answer to this comes after.
        play.send(Command::Ping(key));
        while play.next() != Event::Pong(key) {}
        answer.n_cached
    };
    let first = play.ask(&chat(1, "the same question for everyone", 10));
    assert_eq!(first.n_cached, 0);
    assert!(play.cached() > 0);
    play.send(Command::Trim);
    assert_eq!(play.cached(), 0);
    assert_eq!((ask(2), ask(3)), (0, 0));
    play.send(Command::Grow);
    let fourth = play.ask(&chat(4, "the same question for everyone", 10));
    assert_eq!(fourth.n_cached, 0);
    assert!(play.cached() > 0);
    assert!(ask(5) > 30);
}
