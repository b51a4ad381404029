//! From the text of a schema or grammar to a matcher at its begin.

use std::fmt::Write as _;
use std::sync::Arc;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use orinoco::frames::{Constraint, Token};
use serde_json::Value;

use super::first_line;
use super::numbers::Digits;

/// Bounds of what is compiled and of each mask. Work is counted and not timed, so that the same grammar ends
/// the same way on each machine.
const LIMITS: ParserLimits = ParserLimits {
    max_items_in_row: 2_000,
    // About 20 ms on one core of 2020.
    initial_lexer_fuel: 1_000_000,
    // About 15 ms for the worst mask.
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // One or two KiB each.
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    // It would run over the whole vocabulary, which the check does not have: then that would bound nothing.
    precompute_large_lexemes: false,
    // Answers and grammars of requesters belong in no log.
    verbose_errors: false,
};

/// What the tokens of a model stand for.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Bytes of each token, by id; none for those that stand for no text.
    pub words: Vec<Vec<u8>>,
    /// Tokens that end an answer; at least one.
    pub ends: Vec<Token>,
}

impl Vocabulary {
    /// Each byte is a token, and one ends the answer.
    pub fn of_bytes() -> Self {
        let mut words = Vec::from_iter((0..=u8::MAX).map(|byte| vec![byte]));
        words.push(Vec::new());
        Self {
            words,
            ends: vec![256],
        }
    }

    pub(super) fn digits(&self) -> Digits {
        Digits::new(&self.words, self.end_ids())
    }

    fn end_ids(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().filter_map(|id| u32::try_from(*id).ok())
    }
}

/// Compiles for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
}

impl Compiler {
    /// Sorts the vocabulary; tens of milliseconds for a large one.
    pub fn new(vocabulary: Vocabulary) -> Result<Self, String> {
        let ends = Vec::from_iter(vocabulary.end_ids());
        let Some(first) = ends
            .first()
            .filter(|id| (**id as usize) < vocabulary.words.len())
        else {
            return Err("no token of this model's vocabulary ends an answer".to_owned());
        };
        let info = TokRxInfo::new(vocabulary.words.len() as u32, *first);
        let built = catch_unwind(std::panic::AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &vocabulary.words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new(
                &env,
                InferenceCapabilities::default(),
                &SlicedBiasComputer::json_slices(),
            )?;
            factory.quiet();
            *factory.limits_mut() = LIMITS.clone();
            Ok(factory)
        }));
        let factory = built.map_err(|error| first_line(&error))?;
        Ok(Self { factory })
    }

    /// A matcher at its begin; or why there is none, a sentence without its end.
    pub fn compile(&self, constraint: &Constraint) -> Result<Matcher, String> {
        let grammar = grammar(constraint)?;
        let built = catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.factory.create_parser(grammar)
        }));
        let mut matcher = Matcher::new(built);
        match matcher.get_error() {
            Some(error) => Err(brief(&error)),
            None => {
                // Warnings name what would be ignored: an answer could then break the schema.
                match matcher.grammar_warnings().first() {
                    Some(warning) => Err(brief(warning)),
                    None => Ok(matcher),
                }
            }
        }
    }
}

fn brief(error: &str) -> String {
    let line = error
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.');
    line.chars().take(300).collect()
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, String> {
    match constraint {
        Constraint::Lark(text) => Ok(TopLevelGrammar::from_lark(text.clone())),
        Constraint::JsonSchema(text) => Ok(TopLevelGrammar::from_json_schema(schema(text)?)),
        Constraint::Calls { lark, arguments } => {
            let mut lark = lark.clone();
            for (n, text) in arguments.iter().enumerate() {
                // Writing to a String does not fail.
                let _ = write!(lark, "\na{n}: %json {}\n", schema(text)?);
            }
            Ok(TopLevelGrammar::from_lark(lark))
        }
    }
}

fn schema(text: &str) -> Result<Value, String> {
    let schema = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
    super::schema::prepared(schema)
}
