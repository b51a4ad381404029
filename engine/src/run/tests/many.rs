use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Submit {
        word: String,
        n_words: usize,
        n_tokens: u32,
    },
    Cancel(u64),
    Ping,
    Read(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => ("[a-d]{1,6}", 1_usize..40, 1_u32..80)
            .prop_map(|(word, n_words, n_tokens)| Act::Submit { word, n_words, n_tokens }),
        1 => (0_u64..30).prop_map(Act::Cancel),
        1 => Just(Act::Ping),
        2 => (0_usize..20).prop_map(Act::Read),
    ];
    proptest::collection::vec(act, 1..40)
}

/// What was heard of each job.
#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Answer>,
    n_pongs: usize,
    last_step: u64,
}

impl Heard {
    fn event(&mut self, event: Event) {
        match event {
            Event::Started { job, .. } => {
                let before = self.answers.insert(job.0, Answer::default());
                assert_eq!(before, None, "started once, and before anything else");
            }
            Event::Step { step, pieces } => {
                assert!(step > self.last_step || self.last_step == 0);
                self.last_step = step;
                for piece in pieces {
                    let answer = self.answers.get_mut(&piece.job.0).expect("started");
                    assert_eq!(answer.end, None, "nothing after Done");
                    answer.add(piece);
                }
            }
            Event::Done(done) => {
                let answer = self.answers.entry(done.job.0).or_default();
                assert_eq!(answer.end, None, "one Done");
                *answer = std::mem::take(answer).done(*done);
            }
            Event::Pong(_) => self.n_pongs += 1,
            Event::Cached { bytes } => assert!(bytes <= 1 << 20, "it keeps to its budget"),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever is submitted, cancelled and not read: one Done each, the script's text, no broken batch
    /// (the scripted decoder checks rows, outputs and positions). The smallest pool holds the longest prompt
    /// with its answer: 39 words of 6 letters, 4 marks, 79 tokens.
    #[test]
    fn every_job_gets_its_text_and_one_done(acts in acts(), n_events in 1_usize..6, n_seq_max in 1_u32..5, n_ctx in 360_u32..900, draft_tokens in 0_u32..5, copy_ms in prop_oneof![Just(0), Just(9)]) {
        let small = LoadSpec { n_ctx, n_seq_max, n_batch: 32, n_ubatch: 32, step_tokens: 16, speculation: Speculation::Always, draft_tokens, ..spec() };
        let play = Play::with(&small, n_events, Duration::from_millis(copy_ms));
        let mut heard = Heard::default();
        let mut wanted = BTreeMap::new();
        let mut n_pings = 0;
        for act in acts {
            match act {
                Act::Submit { word, n_words, n_tokens } => {
                    let key = wanted.len() as u64;
                    let text = Vec::from_iter(std::iter::repeat_n(word.as_str(), n_words)).join(" ");
                    play.submit(&chat(key, &text, n_tokens));
                    let echo = format!("{text} ").repeat(1 + n_tokens as usize / (text.len() + 1));
                    wanted.insert(key, echo[..n_tokens as usize].to_owned());
                }
                Act::Cancel(key) => play.send(Command::Cancel(JobKey(key))),
                Act::Ping => {
                    n_pings += 1;
                    play.send(Command::Ping(1));
                }
                Act::Read(n) => play.events.try_iter().take(n).for_each(|event| heard.event(event)),
            }
        }
        play.send(Command::Drain);
        while let Ok(event) = play.events.recv() {
            heard.event(event);
        }
        play.thread.join().expect("the decoder found nothing wrong");
        prop_assert_eq!(heard.n_pongs, n_pings);
        prop_assert_eq!(heard.answers.len(), wanted.len());
        for (key, text) in wanted {
            let answer = &heard.answers[&key];
            prop_assert_eq!(answer.ids.len(), answer.text.len());
            match answer.end.clone().expect("done") {
                Ok(Finish::Cancelled) => prop_assert!(text.starts_with(&answer.text)),
                end => {
                    prop_assert_eq!(end, Ok(Finish::Length));
                    prop_assert_eq!(&answer.text, &text);
                }
            }
        }
    }
}
