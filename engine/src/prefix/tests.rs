use proptest::prelude::*;

use super::*;

fn limits(n_ctx: u32) -> Limits {
    Limits {
        n_ctx,
        n_ctx_seq: n_ctx,
        n_seq_max: 3,
        n_draft: 0,
        shares_prefixes: true,
        n_batch: 64,
        n_ubatch: 64,
        computes_aside: false,
        n_vocab: 256,
        n_swa: 0,
    }
}

fn ids(text: &str) -> Vec<Token> {
    Vec::from_iter(text.bytes().map(Token::from))
}

fn begin(pool: &mut Pool, prompt: &str, reserve: usize) -> Option<Admission> {
    begin_with(pool, prompt, reserve, None)
}

/// What the loop does, without a decoder.
fn begin_with(
    pool: &mut Pool,
    prompt: &str,
    reserve: usize,
    saved: Option<Found>,
) -> Option<Admission> {
    let prompt = ids(prompt);
    let admission = pool.admit(&prompt, reserve, saved, |_, _| true)?;
    pool.begin(&admission, reserve);
    if let Some(Source::Saved(found)) = admission.source {
        pool.push(admission.seq, &prompt[..found.n_common]);
    }
    Some(admission)
}

fn found(n_common: usize, n_tokens: usize) -> Option<Found> {
    Some(Found {
        key: 1,
        n_common,
        n_tokens,
    })
}

#[test]
fn a_job_that_is_over_lends_its_cells_until_its_sequence_ends() {
    let mut pool = Pool::new(limits(100));
    let first = begin(&mut pool, "a conversation begins", 90).unwrap();
    pool.push(first.seq, &ids("a conversation begins"));
    assert_eq!(begin(&mut pool, "another", 40), None, "it may still grow");
    pool.over(first.seq);
    let next = begin(&mut pool, "a conversation begins, goes on", 60).unwrap();
    assert_ne!(next.seq, first.seq);
    assert_eq!(next.source, Some(Source::Live(first.seq, 21)));
    pool.end(first.seq);
    assert_eq!(pool.n_free(), 100 - 21, "the next holds them now");
    pool.end(next.seq);
    assert_eq!(pool.n_free(), 100);
}

#[test]
fn what_is_saved_is_taken_when_it_has_more_than_a_running_sequence() {
    let mut pool = Pool::new(limits(400));
    let prompt = "a long common system prompt, and a first question of many";
    let alone = begin_with(&mut pool, prompt, 80, found(20, 60)).unwrap();
    assert_eq!(alone.source, found(20, 60).map(Source::Saved));
    pool.push(alone.seq, &ids(prompt)[20..29]);
    let little_more = begin_with(&mut pool, prompt, 80, found(40, 60)).unwrap();
    assert_eq!(little_more.source, Some(Source::Live(alone.seq, 29)));
    pool.end(little_more.seq);
    let much_more = begin_with(&mut pool, &format!("{prompt}{prompt}"), 140, found(61, 61));
    assert_eq!(much_more.unwrap().source, found(61, 61).map(Source::Saved));
}

#[test]
fn what_is_saved_needs_cells_for_all_of_it() {
    let mut pool = Pool::new(limits(100));
    let admission = begin_with(&mut pool, "first prompt", 40, found(11, 101)).unwrap();
    assert_eq!(admission.source, None);
    let admission = begin_with(&mut pool, "second prompt", 40, found(11, 60)).unwrap();
    assert_eq!(admission.source, found(11, 60).map(Source::Saved));
}

#[test]
fn running_jobs_share_their_prefix_in_the_same_cells() {
    let mut pool = Pool::new(limits(100));
    let first = begin(&mut pool, "a long common system prompt, 1", 40).unwrap();
    pool.push(first.seq, &ids("a long common system prompt, 1"));
    let free = pool.n_free();
    let second = begin(&mut pool, "a long common system prompt, 2", 40).unwrap();
    assert_eq!(second.source, Some(Source::Live(first.seq, 29)));
    assert_eq!(pool.n_free(), free, "shared cells cost nothing");
    pool.end(first.seq);
    assert_eq!(pool.tokens(second.seq).len(), 29, "the other keeps them");
    pool.end(second.seq);
    assert_eq!(pool.n_free(), 100);
}

#[test]
fn a_job_waits_while_running_jobs_need_the_cells() {
    let mut pool = Pool::new(limits(100));
    let first = begin(&mut pool, "first prompt", 60).unwrap();
    assert_eq!(begin(&mut pool, "second prompt", 60), None);
    assert!(
        begin(&mut pool, "third prompt", 40).is_some(),
        "a smaller one fits"
    );
    pool.end(first.seq);
    assert!(begin(&mut pool, "second prompt", 60).is_some());
}

#[test]
fn a_prefix_with_holes_is_not_used() {
    let mut pool = Pool::new(limits(100));
    let first = begin(&mut pool, "a prompt whose head is gone", 40).unwrap();
    pool.push(first.seq, &ids("a prompt whose head is gone"));
    let admission = pool.admit(&ids("a prompt whose head is gone!"), 40, None, |_, _| false);
    assert_eq!(admission.unwrap().source, None);
}

#[derive(Debug, Clone)]
enum Step {
    Begin {
        prompt: String,
        n_output: usize,
        saved: (usize, usize),
    },
    Grow(usize),
    Finish(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        ("[ab]{1,40}", 0_usize..30, (0_usize..60, 0_usize..60)).prop_map(
            |(prompt, n_output, saved)| Step::Begin {
                prompt,
                n_output,
                saved
            }
        ),
        (0_usize..3).prop_map(Step::Grow),
        (0_usize..3).prop_map(Step::Finish),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// `push` panics when a reserved token finds no cell, so this also shows that admission holds.
    #[test]
    fn every_admitted_job_finds_its_cells(steps in steps()) {
        let mut pool = Pool::new(limits(90));
        let mut running: Vec<Option<(Vec<Token>, usize)>> = vec![None; 3];
        for step in steps {
            match step {
                Step::Begin { prompt, n_output, saved: (n_common, more) } => {
                    let reserve = prompt.len() + n_output;
                    let n_common = n_common.min(prompt.len() - 1);
                    let saved = found(n_common, n_common + more);
                    if let Some(admission) = begin_with(&mut pool, &prompt, reserve, saved) {
                        let cached = pool.tokens(admission.seq).len();
                        prop_assert_eq!(pool.tokens(admission.seq), &ids(&prompt)[..cached]);
                        running[admission.seq as usize] = Some((ids(&prompt), reserve));
                    } else {
                        prop_assert!(running.iter().any(Option::is_some), "an empty pool takes any job");
                    }
                }
                Step::Grow(slot) => if let Some((prompt, reserve)) = &running[slot] {
                    let n = pool.tokens(slot as SeqId).len();
                    if n < *reserve {
                        let token = prompt.get(n).copied().unwrap_or(0);
                        pool.push(slot as SeqId, &[token]);
                    }
                },
                Step::Finish(slot) => if running[slot].take().is_some() {
                    pool.end(slot as SeqId);
                },
            }
            let mut cells = std::collections::HashSet::new();
            for seq in &pool.seqs {
                prop_assert_eq!(seq.cells.len(), seq.tokens.len());
                cells.extend(seq.cells.iter().copied());
            }
            prop_assert_eq!(cells.len() + pool.n_free(), 90, "no cell is lost or counted twice");
        }
    }
}
