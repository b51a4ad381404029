//! Answers with a grammar, beside others.

use orinoco::frames::Constraint;

use super::*;

const DIGITS: &str = "start: /[1-9]{5}/";

fn constrained(key: u64, user: &str, grammar: &str) -> Job {
    Job {
        constraint: Some(Constraint::Lark(grammar.to_owned())),
        ..chat(key, user, 100)
    }
}

#[test]
fn the_script_is_followed_where_the_grammar_lets_it() {
    let play = Play::new(&spec());
    let answer = play.ask(&constrained(1, "24x68y", DIGITS));
    // Where the script's token may not come, the first that may.
    assert_eq!(answer.text, "24168");
    assert_eq!(answer.end, Some(Ok(Finish::Stop)));
    assert_eq!((answer.ids.len(), answer.n_output), (5, 5));
    play.end();
}

/// A beginning whose answers have a form.
fn expected() -> Job {
    Job {
        leaves: Leaves::Pinned,
        ..constrained(999, "", DIGITS)
    }
}

#[test]
fn a_worker_that_rests_reads_its_vocabulary_before_a_form_that_is_expected() {
    let play = Play::new(&spec());
    play.submit(&expected());
    let n_vocab = scripted::limits(&spec()).n_vocab as usize;
    let deadline = Instant::now() + Duration::from_secs(60);
    // Its end of an answer has no bytes to ask for.
    while play.n_pieces.load(Ordering::Relaxed) < n_vocab - 1 {
        assert!(Instant::now() < deadline, "it rests and reads nothing");
        std::thread::yield_now();
    }
    let before = play.n_pieces.load(Ordering::Relaxed);
    assert_eq!(play.ask(&constrained(1, "24x68y", DIGITS)).text, "24168");
    let after = play.n_pieces.load(Ordering::Relaxed);
    assert!(after - before < n_vocab / 2, "it was read again");
    play.end();
}

#[test]
fn a_worker_that_is_short_of_memory_reads_its_vocabulary_when_a_form_is_wanted() {
    let play = Play::new(&spec());
    play.send(Command::Trim);
    play.submit(&expected());
    play.ask(&chat(1, "hello", 5));
    let n_vocab = scripted::limits(&spec()).n_vocab as usize;
    let before = play.n_pieces.load(Ordering::Relaxed);
    assert!(before < n_vocab, "{before}");
    assert_eq!(play.ask(&constrained(2, "24x68y", DIGITS)).text, "24168");
    assert!(play.n_pieces.load(Ordering::Relaxed) - before >= n_vocab - 1);
    play.end();
}

#[test]
fn sequences_with_and_without_grammars_ride_in_one_batch() {
    let play = Play::new(&spec());
    let jobs = [
        constrained(1, "!step 1 11111", DIGITS),
        chat(2, "!step 1 abcdefgh", 20),
        constrained(3, "!step 1 987654321", DIGITS),
        constrained(4, "!step 1 zz", "start: /[a-z]{3,4}/"),
    ];
    for job in &jobs {
        play.submit(job);
    }
    let mut answers = std::collections::BTreeMap::<u64, Answer>::new();
    while answers
        .values()
        .filter(|answer| answer.end.is_some())
        .count()
        < jobs.len()
    {
        match play.next() {
            Event::Step { pieces, .. } => {
                for piece in pieces {
                    answers.entry(piece.job.0).or_default().add(piece);
                }
            }
            Event::Done(done) => {
                let key = done.job.0;
                let answer = answers.remove(&key).unwrap_or_default().done(*done);
                answers.insert(key, answer);
            }
            _ => {}
        }
    }
    let texts = Vec::from_iter(answers.values().map(|answer| answer.text.as_str()));
    assert_eq!(texts[0], "11111");
    assert_eq!(texts[1].len(), 20);
    assert_eq!(texts[2], "98765");
    assert!(
        texts[3].starts_with("zz") && texts[3].len() <= 4,
        "{}",
        texts[3]
    );
    play.end();
}

#[test]
fn a_grammar_that_does_not_compile_ends_its_job_alone() {
    let play = Play::new(&spec());
    let answer = play.ask(&constrained(1, "x", "start: nothing"));
    assert!(
        matches!(answer.end, Some(Err(JobError::Constraint(_)))),
        "{answer:?}"
    );
    assert_eq!(play.ask(&chat(2, "hello", 5)).text, "hello");
    play.end();
}

#[test]
fn an_answer_that_is_cut_by_its_length_says_so() {
    let play = Play::new(&spec());
    let short = Job {
        max_tokens: 3,
        ..constrained(1, "12345", DIGITS)
    };
    let answer = play.ask(&short);
    assert_eq!(
        (answer.text.as_str(), answer.end),
        ("123", Some(Ok(Finish::Length)))
    );
    let whole = Job {
        max_tokens: 5,
        ..constrained(2, "12345", DIGITS)
    };
    assert_eq!(
        play.ask(&whole).end,
        Some(Ok(Finish::Stop)),
        "it is complete"
    );
    play.end();
}

#[test]
fn ignore_eos_does_not_go_on_behind_the_end_of_a_grammar() {
    let play = Play::new(&spec());
    let job = Job {
        ignore_eos: true,
        ..constrained(1, "12345", DIGITS)
    };
    assert_eq!(play.ask(&job).end, Some(Ok(Finish::Stop)));
    play.end();
}

#[test]
fn a_stream_goes_on_in_the_next_worker_with_the_same_grammar() {
    let schema = r#"{"type":"array","minItems":9,"maxItems":9,"items":{"type":"integer","minimum":10,"maximum":99}}"#;
    let job = Job {
        constraint: Some(Constraint::JsonSchema(schema.to_owned())),
        ..chat(1, "12 99", 100)
    };
    let first = Play::new(&spec());
    first.submit(&job);
    let (_, prompt_ids, _) = first.started();
    let whole = first.answer(1);
    assert_eq!(whole.end, Some(Ok(Finish::Stop)));
    first.end();
    for at in 0..whole.ids.len() {
        let next = Play::new(&spec());
        let text_bytes = at.min(whole.text.len());
        let rest = next.ask(&Job {
            resume: Some(Resume {
                prompt_ids: prompt_ids.clone(),
                output_ids: whole.ids[..at].to_vec(),
                text_bytes: text_bytes as u64,
            }),
            ..job.clone()
        });
        assert_eq!(
            format!("{}{}", &whole.text[..text_bytes], rest.text),
            whole.text,
            "from {at}"
        );
        assert_eq!(rest.end, Some(Ok(Finish::Stop)));
        next.end();
    }
}

#[test]
fn another_models_part_counts_for_the_grammar() {
    let play = Play::new(&spec());
    let job = Job {
        head: Some(orinoco::frames::Head {
            text: "123".to_owned(),
            n_output: 2,
        }),
        ..constrained(1, "78", DIGITS)
    };
    let answer = play.ask(&job);
    assert_eq!((answer.text.len(), answer.end), (2, Some(Ok(Finish::Stop))));
    let over = Job {
        head: Some(orinoco::frames::Head {
            text: "12345".to_owned(),
            n_output: 2,
        }),
        ..constrained(2, "78", DIGITS)
    };
    let answer = play.ask(&over);
    assert_eq!(
        (answer.text.as_str(), answer.end),
        ("", Some(Ok(Finish::Stop)))
    );
    play.end();
}

#[test]
fn a_job_is_called_off_while_its_grammar_is_compiled() {
    let play = Play::new(&spec());
    for key in 0..20 {
        play.submit(&constrained(key, "!step 1 12345", DIGITS));
        play.send(Command::Cancel(JobKey(key)));
    }
    let mut ends = 0;
    while ends < 20 {
        if let Event::Done(done) = play.next() {
            assert!(
                matches!(done.end, Ok(Finish::Cancelled | Finish::Stop)),
                "{done:?}"
            );
            ends += 1;
        }
    }
    assert_eq!(play.ask(&constrained(99, "12345", DIGITS)).text, "12345");
    play.end();
}

#[test]
fn under_a_grammar_nothing_is_guessed_and_others_go_on_guessing() {
    let play = Play::new(&speculation::guessing());
    let digits = "start: /([1-9]{3} ){8}/";
    let job = constrained(1, "123 123 123 123 123 123 123 123 123 ", digits);
    play.submit(&job);
    play.submit(&chat(2, "valve seven is open", 100));
    let mut ends = std::collections::BTreeMap::new();
    while ends.len() < 2 {
        if let Event::Done(done) = play.next() {
            ends.insert(done.job.0, done);
        }
    }
    assert_eq!(
        (&ends[&1].end, ends[&1].timings.n_output),
        (&Ok(Finish::Stop), 32)
    );
    assert_eq!(ends[&1].timings.n_guessed, 0);
    assert!(ends[&2].timings.n_guessed > 0, "{:?}", ends[&2]);
    play.end();
}

#[test]
fn min_tokens_holds_as_far_as_the_grammar_lets_it() {
    let play = Play::new(&spec());
    let short = constrained(1, "12 !tokens 2", "start: /[1-9 ]{2,9}/");
    assert_eq!(play.ask(&short).n_output, 2);
    // The script ends at its second token and nowhere else.
    for (key, grammar, n) in [
        (2, "start: /[1-9 ]{2,9}/", 9),
        (3, "start: /[1-9 ]{3}/", 3),
        (4, "start: \"\"", 0),
    ] {
        let job = Job {
            min_tokens: 4,
            ..constrained(key, "12 !tokens 2", grammar)
        };
        let answer = play.ask(&job);
        assert_eq!((answer.end, answer.n_output), (Some(Ok(Finish::Stop)), n));
    }
    let later = Job {
        min_tokens: 4,
        ..constrained(5, "12 !tokens 6", "start: /[1-9 ]{2,9}/")
    };
    assert_eq!(play.ask(&later).n_output, 6);
    play.end();
}
