//! What a grammar costs: run alone with
//! `cargo test --release -p orinoco-engine --test real -- --ignored --nocapture mask_costs`.

use std::time::{Duration, Instant};

use orinoco::frames::{Constraint, JobKey};
use orinoco_engine::grammar::{Compiler, Grammars, Vocabulary};
use orinoco_engine::model::Decoder;
use serde_json::json;

use super::common::{GEMMA, SMOLLM, real_spec};
use super::with_decoder;

fn vocabulary(decoder: &dyn Decoder) -> Vocabulary {
    let n_vocab = decoder.limits().n_vocab as i32;
    let word = |token| {
        let mut bytes = Vec::new();
        if !decoder.is_eog(token) {
            decoder.piece(token, &mut bytes);
        }
        bytes
    };
    Vocabulary {
        words: (0..n_vocab).map(word).collect(),
        ends: (0..n_vocab)
            .filter(|token| decoder.is_eog(*token))
            .collect(),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement; scripts/test.sh --full runs it"]
fn mask_costs() {
    let order = json!({"type": "object", "required": ["action", "parts"], "additionalProperties": false, "properties": {
        "action": {"type": "string", "maxLength": 60},
        "parts": {"type": "array", "maxItems": 3, "items": {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}},
    }});
    let text = r#"{"action": "tighten the belt and check its wear", "parts": [{"name": "belt B-40", "n": 1}]}"#;
    let constraint = Constraint::JsonSchema(order.to_string());
    for name in [SMOLLM, GEMMA] {
        with_decoder(&real_spec(name), |decoder, _| {
            let began = Instant::now();
            let words = vocabulary(decoder);
            let listed = began.elapsed();
            let began = Instant::now();
            let compiler = Compiler::new(words.clone()).unwrap();
            let sorted = began.elapsed();
            let compile = median(Vec::from_iter((0..15).map(|_| {
                let began = Instant::now();
                compiler.compile(&constraint).unwrap();
                began.elapsed()
            })));
            let mut grammars = Grammars::default();
            grammars.compile(JobKey(1), &constraint, || words).unwrap();
            let mut matcher = loop {
                if let Some((_, matcher)) = grammars.compiled() {
                    break matcher.unwrap();
                }
                std::thread::yield_now();
            };
            let ids = decoder.tokenize(text, false, false).unwrap();
            let mut logits = vec![0.0_f32; decoder.limits().n_vocab as usize];
            let (mut masks, mut accepts) = (Vec::new(), Vec::new());
            for id in &ids {
                logits.fill(0.0);
                let began = Instant::now();
                matcher.forbid(&mut logits).unwrap();
                masks.push(began.elapsed());
                let began = Instant::now();
                matcher.accept(*id).unwrap();
                accepts.push(began.elapsed());
            }
            let worst = masks.iter().max().copied();
            println!(
                "{name}: {} tokens; vocabulary listed {listed:?}, sorted {sorted:?} (once a worker); compile {compile:?}; \
                 mask {:?} (worst of {}: {worst:?}), accept {:?}",
                decoder.limits().n_vocab,
                median(masks),
                ids.len(),
                median(accepts)
            );
        });
    }
}
