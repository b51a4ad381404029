use orinoco::frames::Constraint;
use proptest::prelude::*;

use super::*;

/// What a job has said so far, and how it is asked to go on.
struct Stream {
    job: Job,
    prompt_ids: Vec<Token>,
    n_cached: u32,
    ids: Vec<Token>,
    logprobs: Vec<Logprob>,
    text: String,
    is_done: bool,
}

impl Stream {
    fn begin(play: &Play, job: Job) -> Self {
        play.submit(&job);
        Self {
            job,
            prompt_ids: Vec::new(),
            n_cached: 0,
            ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            is_done: false,
        }
    }

    fn add(&mut self, ids: &[Token], logprobs: &[Logprob], text: &str) {
        self.ids.extend(ids);
        self.logprobs.extend_from_slice(logprobs);
        self.text.push_str(text);
    }

    /// Reads on until it has `n` tokens, is parked or is done; the event that ended it.
    fn until(&mut self, play: &Play, n: usize) -> Option<Event> {
        while self.ids.len() < n {
            match play.next() {
                Event::Started {
                    job,
                    prompt_ids,
                    n_cached,
                    ..
                } if job == self.job.job => {
                    (self.prompt_ids, self.n_cached) = (prompt_ids, n_cached);
                }
                Event::Step { pieces, .. } => {
                    let job = self.job.job;
                    for piece in pieces.iter().filter(|piece| piece.job == job) {
                        self.add(&piece.ids, &piece.logprobs, &piece.text);
                    }
                }
                Event::Parked(parked) if parked.job == self.job.job => {
                    self.add(&parked.ids, &parked.logprobs, &parked.text);
                    return Some(Event::Parked(parked));
                }
                Event::Done(done) if done.job == self.job.job => {
                    self.add(&done.ids, &done.logprobs, &done.text);
                    self.is_done = true;
                    return Some(Event::Done(done));
                }
                _ => {}
            }
        }
        None
    }

    fn park(&mut self, play: &Play) {
        play.send(Command::Park(self.job.job));
        assert!(matches!(
            self.until(play, usize::MAX),
            Some(Event::Parked(_))
        ));
    }

    fn come_back(&mut self, play: &Play) {
        self.job.resume = (!self.prompt_ids.is_empty()).then(|| Resume {
            prompt_ids: self.prompt_ids.clone(),
            output_ids: self.ids.clone(),
            text_bytes: self.text.len() as u64,
        });
        play.submit(&self.job);
    }

    fn end(&mut self, play: &Play) -> Result<Finish, JobError> {
        match self.until(play, usize::MAX) {
            Some(Event::Done(done)) => done.end,
            other => panic!("{other:?}"),
        }
    }
}

/// A long answer, slow enough to be interrupted.
fn slow(key: u64, n: u32) -> Job {
    let mut job = chat(key, "!count !step 15", n);
    job.yields = true;
    job
}

fn urgent(key: u64, user: &str, n: u32) -> Job {
    let mut job = chat(key, user, n);
    job.urgent = true;
    job
}

#[test]
fn a_parked_job_goes_on_where_it_was_and_reads_nothing_again() {
    let play = Play::new(&spec());
    let whole = play.ask(&chat(1, "!count", 60));
    let mut stream = Stream::begin(&play, slow(2, 60));
    stream.until(&play, 20);
    stream.park(&play);
    assert_eq!(
        play.ask(&urgent(3, "stop the press", 14)).text,
        "stop the press"
    );
    let n_made = stream.ids.len();
    stream.come_back(&play);
    assert_eq!(stream.end(&play), Ok(Finish::Length));
    assert_eq!(stream.text, whole.text);
    // All but the last token, which is decoded for its logits.
    assert_eq!(stream.n_cached as usize, stream.prompt_ids.len());
    let batches = play.end().batches;
    let n_made_before = n_made + stream.prompt_ids.len();
    let is_again = |row: &Row| (row.pos as usize) < n_made_before - 1;
    let coming_back = batches.iter().rev().take(60 - n_made);
    assert!(coming_back.flatten().all(|row| !is_again(row)));
}

#[test]
fn an_urgent_job_has_the_slot_of_a_parked_one_at_the_next_decode() {
    let play = Play::new(&LoadSpec {
        n_seq_max: 1,
        ..spec()
    });
    let mut stream = Stream::begin(&play, slow(1, 400));
    stream.until(&play, 5);
    play.send(Command::Park(JobKey(1)));
    play.submit(&urgent(2, "help", 4));
    assert!(matches!(
        stream.until(&play, usize::MAX),
        Some(Event::Parked(_))
    ));
    let n_before = stream.ids.len();
    assert_eq!(play.answer(2).text, "help");
    stream.come_back(&play);
    assert_eq!(stream.end(&play), Ok(Finish::Length));
    let batches = play.end().batches;
    let n_prompt = stream.prompt_ids.len();
    let first_of_urgent = batches.iter().rposition(|batch| batch[0].pos == 0).unwrap();
    let decodes = batches[..first_of_urgent].len();
    // One decode for the prompt and the first token, one for each token after it.
    assert_eq!(decodes, n_before, "{n_prompt}");
}

#[test]
fn guesses_probabilities_and_the_fewest_tokens_go_on_after_a_pause() {
    let mut spec = spec();
    spec.speculation = Speculation::Always;
    let play = Play::new(&spec);
    let mut job = chat(1, "valve seven is open !tokens 12 !step 1", 80);
    (job.min_tokens, job.logprobs) = (40, Some(1));
    let whole = play.ask(&job);
    assert!(whole.n_output >= 40);
    for cut in [1, 5, 11, 12, 30, 39] {
        job.job = JobKey(100 + cut);
        let mut stream = Stream::begin(&play, job.clone());
        stream.until(&play, cut as usize);
        play.send(Command::Park(job.job));
        if let Some(Event::Parked(_)) = stream.until(&play, usize::MAX) {
            stream.come_back(&play);
            let Some(Event::Done(done)) = stream.until(&play, usize::MAX) else {
                panic!("it comes to its end");
            };
            assert_eq!(done.timings.n_output, whole.n_output);
            let n_left = stream.ids.len() - cut as usize;
            assert!(n_left < 20 || done.timings.n_right > 0, "it guesses again");
        }
        assert_eq!(stream.ids, whole.ids, "{cut}");
        assert_eq!(stream.text, whole.text, "{cut}");
        assert_eq!(stream.logprobs, whole.logprobs, "{cut}");
    }
}

#[test]
fn a_grammar_is_kept_over_a_pause_also_while_it_is_compiled() {
    let schema = r#"{"type":"array","minItems":9,"maxItems":9,"items":{"type":"integer","minimum":10,"maximum":99}}"#;
    let play = Play::new(&spec());
    let mut job = Job {
        constraint: Some(Constraint::JsonSchema(schema.to_owned())),
        yields: true,
        ..chat(1, "12 99 !step 1", 100)
    };
    let whole = play.ask(&job);
    assert_eq!(whole.end, Some(Ok(Finish::Stop)));
    for cut in [0, 1, 5, 12] {
        job.job = JobKey(10 + cut as u64);
        let mut stream = Stream::begin(&play, job.clone());
        stream.until(&play, cut);
        play.send(Command::Park(job.job));
        if let Some(Event::Parked(_)) = stream.until(&play, usize::MAX) {
            stream.come_back(&play);
            assert_eq!(stream.end(&play), Ok(Finish::Stop));
        }
        assert_eq!(stream.text, whole.text, "{cut}");
    }
}

#[test]
fn what_is_parked_makes_room_and_comes_back_from_the_shelf() {
    let play = Play::new(&LoadSpec {
        n_ctx: 256,
        n_seq_max: 2,
        ..spec()
    });
    let whole = play.ask(&chat(1, "!count", 150));
    let mut stream = Stream::begin(&play, slow(2, 150));
    stream.until(&play, 60);
    stream.park(&play);
    let large = play.ask(&urgent(3, "large", 240));
    assert_eq!(large.end, Some(Ok(Finish::Length)));
    stream.come_back(&play);
    assert_eq!(stream.end(&play), Ok(Finish::Length));
    assert_eq!(stream.text, whole.text);
    assert!(stream.n_cached > 0);
}

#[test]
fn for_want_of_cells_an_urgent_job_parks_the_youngest_that_yields() {
    let play = Play::new(&LoadSpec {
        n_ctx: 512,
        n_seq_max: 4,
        ..spec()
    });
    let mut normal = chat(1, "!count !step 15", 140);
    normal.yields = false;
    play.submit(&normal);
    let mut older = Stream::begin(&play, slow(2, 140));
    older.until(&play, 3);
    let mut younger = Stream::begin(&play, slow(3, 140));
    younger.until(&play, 3);
    play.submit(&urgent(4, "now", 120));
    assert!(matches!(
        younger.until(&play, usize::MAX),
        Some(Event::Parked(_))
    ));
    assert_eq!(play.answer(4).text.len(), 120);
    younger.come_back(&play);
    assert_eq!(younger.end(&play), Ok(Finish::Length));
    assert_eq!(younger.text.len(), 140);
}

#[test]
fn a_waiting_job_is_parked_and_a_gone_one_is_not() {
    let play = Play::new(&LoadSpec {
        n_seq_max: 1,
        ..spec()
    });
    play.submit(&chat(1, "!count !step 20", 1500));
    play.started();
    play.submit(&chat(2, "waits", 5));
    play.send(Command::Park(JobKey(2)));
    play.send(Command::Park(JobKey(77)));
    play.send(Command::Ping(9));
    let mut parked = Vec::new();
    loop {
        match play.next() {
            Event::Parked(of) => parked.push(of.job),
            Event::Pong(9) => break,
            _ => {}
        }
    }
    assert_eq!(parked, [JobKey(2)]);
}

#[test]
fn what_was_kept_for_a_cancelled_job_is_dropped() {
    let play = Play::new(&LoadSpec {
        n_ctx: 256,
        ..spec()
    });
    let mut stream = Stream::begin(&play, slow(1, 200));
    stream.until(&play, 150);
    stream.park(&play);
    play.send(Command::Trim); // The shelf would take it too.
    play.send(Command::Cancel(JobKey(1)));
    let all = play.ask(&chat(2, "all of the pool", 230));
    assert_eq!(all.end, Some(Ok(Finish::Length)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn however_often_it_is_parked_the_text_is_the_same(
        cuts in prop::collection::vec(0_usize..30, 1..6),
        prompt in prop_oneof![Just("!count !step 1"), Just("!utf8 !step 1"), Just("one two stop three !step 1")],
        others: bool, stop: bool, trims: bool,
    ) {
        let play = Play::new(&LoadSpec { n_ctx: 400, n_seq_max: 2, ..spec() });
        let mut job = chat(1, prompt, 70);
        if stop {
            job.stop = vec!["stop".into(), "9 1".into()];
        }
        let whole = play.ask(&job);
        let mut stream = Stream::begin(&play, Job { job: JobKey(2), ..job });
        for (n, cut) in cuts.into_iter().enumerate() {
            if stream.until(&play, stream.ids.len() + cut).is_some() {
                break; // It was over.
            }
            play.send(Command::Park(JobKey(2)));
            stream.until(&play, usize::MAX);
            if stream.is_done {
                break;
            }
            if trims {
                play.send(Command::Trim);
            }
            if others {
                play.ask(&urgent(10 + n as u64, "and now something else", 300));
            }
            stream.come_back(&play);
        }
        if !stream.is_done {
            stream.until(&play, usize::MAX);
        }
        prop_assert_eq!(&stream.text, &whole.text);
        prop_assert_eq!(&stream.ids, &whole.ids);
        // Every cell is free again.
        prop_assert_eq!(play.ask(&chat(99, "x", 390)).n_output, 390);
    }
}
