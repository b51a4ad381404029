use proptest::prelude::*;

use super::*;

fn limits(n_ctx: u32) -> Limits {
    Limits {
        n_ctx,
        n_ctx_seq: n_ctx,
        n_seq_max: 3,
        n_parked_max: 4,
        n_batch: 64,
        n_ubatch: 64,
        n_vocab: 256,
        n_swa: 0,
    }
}

fn ids(text: &str) -> Vec<Token> {
    Vec::from_iter(text.bytes().map(Token::from))
}

/// What the loop does, without a decoder.
fn run_job(pool: &mut Pool, prompt: &str, answer: &str) -> Option<Admission> {
    let all = ids(&format!("{prompt}{answer}"));
    let admission = begin(pool, prompt, all.len())?;
    let cached = pool.tokens(admission.seq).len();
    pool.push(admission.seq, &all[cached..]);
    finish(pool, admission.seq);
    Some(admission)
}

fn begin(pool: &mut Pool, prompt: &str, reserve: usize) -> Option<Admission> {
    let admission = pool.admit(&ids(prompt), reserve, |_, _| true)?;
    pool.begin(&admission, reserve);
    while let Some(seq) = pool.to_evict() {
        pool.truncate(seq, 0);
    }
    Some(admission)
}

fn finish(pool: &mut Pool, seq: SeqId) {
    if let Some(parking) = pool.parking_for(seq) {
        pool.truncate(parking, 0);
        let n = pool.tokens(seq).len();
        pool.share(seq, parking, n);
    }
    pool.end(seq);
}

#[test]
fn the_second_turn_finds_the_first() {
    let mut pool = Pool::new(limits(200));
    run_job(&mut pool, "system: be kind. user: hello ", "hi there");
    let second = run_job(
        &mut pool,
        "system: be kind. user: hello hi there and now?",
        "x",
    )
    .unwrap();
    assert_eq!(
        second.source.map(|(_, n)| n),
        Some("system: be kind. user: hello hi there".len())
    );
    assert_eq!(
        pool.parked().len(),
        1,
        "the longer conversation replaces its own head"
    );
}

#[test]
fn at_least_one_token_is_left_to_decode() {
    let mut pool = Pool::new(limits(200));
    run_job(&mut pool, "the very same prompt", "");
    let again = run_job(&mut pool, "the very same prompt", "").unwrap();
    assert_eq!(
        again.source.map(|(_, n)| n),
        Some("the very same prompt".len() - 1)
    );
}

#[test]
fn running_jobs_share_their_prefix_in_the_same_cells() {
    let mut pool = Pool::new(limits(100));
    let first = begin(&mut pool, "a long common system prompt, 1", 40).unwrap();
    pool.push(first.seq, &ids("a long common system prompt, 1"));
    let free = pool.n_free();
    let second = begin(&mut pool, "a long common system prompt, 2", 40).unwrap();
    assert_eq!(second.source, Some((first.seq, 29)));
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
fn the_least_recently_used_prefix_makes_room() {
    let mut pool = Pool::new(limits(100));
    for name in ["aaaaaaaa", "bbbbbbbb", "cccccccc"] {
        run_job(&mut pool, &name.repeat(3), "");
    }
    run_job(&mut pool, &"aaaaaaaa".repeat(3), "!").unwrap();
    begin(&mut pool, "something else", 70).unwrap();
    let kept = Vec::from_iter(pool.parked().into_iter().map(|seq| pool.tokens(seq)[0]));
    assert_eq!(kept, [Token::from(b'a')], "b and c went, a was used last");
}

#[test]
fn parked_prefixes_keep_to_their_share_but_for_the_last() {
    let mut pool = Pool::new(limits(100));
    run_job(&mut pool, &"a".repeat(20), "");
    assert_eq!(pool.over_share(), None);
    run_job(&mut pool, &"b".repeat(60), "");
    let old = pool.over_share().unwrap();
    assert_eq!(pool.tokens(old)[0], Token::from(b'a'));
    pool.truncate(old, 0);
    assert_eq!(
        pool.over_share(),
        None,
        "sixty of a hundred cells, but used last"
    );
}

#[test]
fn a_prefix_with_holes_is_not_used() {
    let mut pool = Pool::new(limits(100));
    run_job(&mut pool, "a prompt whose head is gone", "");
    let admission = pool.admit(&ids("a prompt whose head is gone!"), 40, |_, _| false);
    assert_eq!(admission.unwrap().source, None);
}

#[derive(Debug, Clone)]
enum Step {
    Begin { prompt: String, n_output: usize },
    Grow(usize),
    Finish(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        ("[ab]{1,40}", 0_usize..30).prop_map(|(prompt, n_output)| Step::Begin { prompt, n_output }),
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
                Step::Begin { prompt, n_output } => {
                    let reserve = prompt.len() + n_output;
                    if let Some(admission) = begin(&mut pool, &prompt, reserve) {
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
                    finish(&mut pool, slot as SeqId);
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
