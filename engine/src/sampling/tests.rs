use proptest::prelude::*;

use super::*;

fn spec() -> Sampling {
    crate::scripted::greedy()
}

fn warm() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        ..spec()
    }
}

/// Many logits with many ties, some absent.
fn logits(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    let logit = prop_oneof![
        8 => (-400_i32..400).prop_map(|x| x as f32 / 16.0),
        1 => Just(f32::NEG_INFINITY),
        1 => Just(f32::NAN),
    ];
    proptest::collection::vec(logit, n)
}

fn reference_top_k(logits: &[f32], k: usize) -> Vec<Token> {
    let mut order = Vec::from_iter((0..logits.len()).filter(|i| logits[*i] > f32::NEG_INFINITY));
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order.truncate(k);
    Vec::from_iter(order.into_iter().map(|i| i as Token))
}

proptest! {
    #[test]
    fn top_k_equals_sorting(logits in logits(1..600), k in 1_usize..80) {
        let mut found = Vec::new();
        top_k(&logits, k, &mut found, &mut Vec::new());
        let found = Vec::from_iter(found.iter().map(|c| c.token));
        prop_assert_eq!(found, reference_top_k(&logits, k));
    }

    #[test]
    fn greedy_is_the_first_maximum(logits in logits(1..600)) {
        let mut sampler = Sampler::new(spec());
        let best = reference_top_k(&logits, 1).first().copied();
        prop_assert_eq!(sampler.sample(&mut logits.clone(), 0), best);
    }

    #[test]
    fn what_is_drawn_survives_the_chain(logits in logits(1..600), seed: u64, index: u64, k in 0_u32..50, p in 0.05_f32..1.1, min_p in 0.0_f32..0.5) {
        let mut sampler = Sampler::new(Sampling { seed, top_k: k, top_p: p, min_p, ..warm() });
        let drawn = sampler.sample(&mut logits.clone(), index);
        let again = sampler.sample(&mut logits.clone(), index);
        prop_assert_eq!(drawn, again, "the draw depends on seed and index alone");
        match drawn {
            None => prop_assert!(logits.iter().all(|l| !l.is_finite())),
            Some(token) => {
                let logit = logits[token as usize];
                prop_assert!(logit.is_finite());
                let max = maximum(&logits);
                prop_assert!(min_p == 0.0 || logit >= max + min_p.ln());
                if k > 0 {
                    prop_assert!(reference_top_k(&logits, k as usize).contains(&token));
                }
            }
        }
    }

    #[test]
    fn top_p_keeps_the_smallest_head_that_reaches_it(logits in logits(200..2000), p in 0.05_f32..0.999) {
        let mut sampler = Sampler::new(Sampling { top_k: 0, top_p: p, min_p: 0.0, ..warm() });
        prop_assume!(sampler.sample(&mut logits.clone(), 0).is_some());
        let max = f64::from(maximum(&logits));
        let order = reference_top_k(&logits, logits.len());
        let weights = Vec::from_iter(order.iter().map(|t| (f64::from(logits[*t as usize]) - max).exp()));
        let total: f64 = weights.iter().sum();
        let kept = sampler.candidates.len();
        let mass = |n: usize| weights[..n].iter().sum::<f64>() / total;
        prop_assert!(mass(kept) >= f64::from(p) - 1e-5);
        prop_assert!(kept == 1 || mass(kept - 1) <= f64::from(p) + 1e-5);
    }

    #[test]
    fn a_forbidden_token_is_never_drawn(seed: u64, index: u64, temperature in 0.0_f32..3.0, forbidden in 0_i32..8) {
        let mut logits = vec![0.0; 8];
        logits[forbidden as usize] = 50.0;
        let bias = vec![(forbidden, f32::NEG_INFINITY), (99, 1.0), (-1, 1.0)];
        let mut sampler = Sampler::new(Sampling { seed, temperature, logit_bias: bias, top_k: 0, top_p: 1.0, min_p: 0.0, ..warm() });
        prop_assert_ne!(sampler.sample(&mut logits, index), Some(forbidden));
    }

    #[test]
    fn exp_is_close(x in -90.0_f32..=0.0) {
        let wanted = f64::from(x).exp();
        let found = f64::from(exp(x));
        prop_assert!((found - wanted).abs() <= 4e-7 * wanted + 2e-38, "exp({x}) = {found}, {wanted} expected");
    }
}

#[test]
fn everything_forbidden_is_no_token() {
    for temperature in [0.0, 1.0] {
        let mut sampler = Sampler::new(Sampling {
            temperature,
            ..warm()
        });
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 100], 0), None);
        assert_eq!(sampler.sample(&mut [f32::NAN; 100], 0), None);
    }
}

#[test]
fn draws_follow_the_probabilities() {
    // p = 1/2, 1/4, 1/8, 1/8
    let logits = [4.0_f32.ln(), 2.0_f32.ln(), 0.0, 0.0];
    let plain = Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..warm()
    };
    for top_k in [0, 3, 4] {
        let mut sampler = Sampler::new(Sampling {
            top_k,
            ..plain.clone()
        });
        let mut counts = [0_f64; 4];
        for index in 0..40_000 {
            counts[sampler.sample(&mut logits.clone(), index).unwrap() as usize] += 1.0;
        }
        let weights = [4.0, 2.0, 1.0, if top_k == 3 { 0.0 } else { 1.0 }];
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            assert!(
                (count / 40_000.0 - weight / total).abs() < 0.01,
                "{counts:?}"
            );
        }
    }
}

#[test]
fn seeds_differ_and_indices_differ() {
    let mut seen = std::collections::HashSet::new();
    for seed in 0..32 {
        for index in 0..32 {
            let u = uniform(seed, index);
            assert!((0.0..1.0).contains(&u));
            assert!(seen.insert(u.to_bits()));
        }
    }
}

#[test]
fn penalties_follow_llama_cpp() {
    let mut sampler = Sampler::new(Sampling {
        repeat_penalty: 2.0,
        repeat_last_n: 3,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        ..spec()
    });
    for token in [3, 0, 1, 1] {
        sampler.accept(token); // 3 falls out of the window
    }
    let mut logits = [4.0, -4.0, 1.0, 1.0];
    sampler.adjust(&mut logits);
    assert_eq!(logits, [4.0 / 2.0 - 0.75, -8.0 - 1.25, 1.0, 1.0]);
}
