use proptest::prelude::*;

use super::*;

/// `job` as it goes on in another worker after `n` tokens of `whole`.
fn cut(play: &Play, job: &Job, whole: &Answer, n: usize) -> (String, Job) {
    // The text of the first n ids is what the first worker would have handed out.
    let mut first = job.clone();
    first.max_tokens = n as u32;
    first.job = JobKey(1000 + n as u64);
    play.submit(&first);
    let (_, prompt_ids, _) = play.started();
    let mut text = String::new();
    // Without the text that only the end of the job releases.
    let mut seen = 0;
    while seen < n {
        match play.next() {
            Event::Step { pieces, .. } => {
                seen += pieces[0].ids.len();
                text.push_str(&pieces[0].text);
            }
            Event::Done(_) => break,
            other => panic!("{other:?}"),
        }
    }
    let mut rest = job.clone();
    rest.job = JobKey(2000 + n as u64);
    rest.resume = Some(Resume {
        prompt_ids,
        output_ids: whole.ids[..n].to_vec(),
        text_bytes: text.len() as u64,
    });
    (text, rest)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_resumed_stream_goes_on_where_it_was(n in 1_usize..60, prompt in prop_oneof![Just("!count"), Just("!utf8"), Just("one two stop three")], stop: bool) {
        let play = Play::new(&spec());
        let mut job = chat(1, prompt, 60);
        if stop {
            job.stop = vec!["stop".into(), "9 1".into(), "€𝄞 é€𝄞 é€𝄞 é€𝄞 é".into()];
        }
        let whole = play.ask(&job);
        let n = n.min(whole.ids.len().saturating_sub(1));
        let (delivered, rest) = cut(&play, &job, &whole, n);
        play.send(Command::Drain);
        let second = Play::new(&spec());
        let rest = second.ask(&rest);
        prop_assert_eq!(delivered + &rest.text, whole.text);
        prop_assert_eq!(rest.end, whole.end);
        prop_assert_eq!(rest.n_output, whole.n_output);
    }
}

#[test]
fn prompt_and_delivered_tokens_never_share_a_batch() {
    let play = Play::new(&spec());
    let job = chat(1, &"prompt ".repeat(60), 200);
    let whole = play.ask(&job);
    let (_, rest) = cut(&play, &job, &whole, 100);
    let n_prompt = rest.resume.as_ref().unwrap().prompt_ids.len() as u32;
    let second = Play::new(&spec());
    second.ask(&rest);
    let batches = second.end().batches;
    for batch in &batches {
        let in_prompt = batch.iter().filter(|row| row.pos < n_prompt).count();
        assert!(in_prompt == 0 || in_prompt == batch.len());
    }
    let n_replayed = batches
        .iter()
        .map(Vec::len)
        .filter(|n| *n > 1)
        .sum::<usize>();
    assert_eq!(
        n_replayed,
        n_prompt as usize + 100,
        "delivered tokens are read as a batch"
    );
}

#[test]
fn a_stream_that_was_over_when_its_worker_died_is_done_at_once() {
    let play = Play::new(&spec());
    let mut job = chat(1, "one two", 7);
    job.resume = Some(Resume {
        prompt_ids: vec![256, 260, 97, 258],
        output_ids: Vec::from_iter("one two".bytes().map(Token::from)),
        text_bytes: 4,
    });
    let answer = play.ask(&job);
    assert_eq!(answer.text, "two");
    assert_eq!(answer.end, Some(Ok(Finish::Length)));
    assert_eq!((answer.ids.len(), answer.n_output), (0, 7));
    job.job = JobKey(2);
    job.stop = vec!["tw".into()];
    let answer = play.ask(&job);
    assert_eq!(
        (answer.text.as_str(), answer.end),
        ("", Some(Ok(Finish::Stop)))
    );
}

#[test]
fn a_seeded_draw_goes_on_in_another_worker() {
    let sampled = |key, n| {
        let mut job = chat(key, "x", n);
        job.sampling = Sampling {
            temperature: 1.0,
            seed: 42,
            // Flattens the script: every byte is as likely as the next.
            logit_bias: Vec::from_iter(
                (0..256).map(|t| (t, if t == 120 || t == 32 { -100.0 } else { 0.0 })),
            ),
            ..scripted::greedy()
        };
        job
    };
    let play = Play::new(&spec());
    let mut whole = sampled(1, 40);
    whole.ignore_eos = true;
    let answer = play.ask(&whole);
    assert!(
        answer
            .ids
            .iter()
            .collect::<std::collections::HashSet<_>>()
            .len()
            > 10,
        "it is random"
    );
    let mut rest = whole.clone();
    rest.job = JobKey(2);
    rest.resume = Some(Resume {
        prompt_ids: vec![256, 260, 120, 258],
        output_ids: answer.ids[..15].to_vec(),
        text_bytes: 0,
    });
    let second = Play::new(&spec());
    assert_eq!(second.ask(&rest).ids, answer.ids[15..]);
}
