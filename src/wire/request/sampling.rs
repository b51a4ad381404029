//! Keys of a body that choose how tokens are drawn, with their ranges.

use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{Limits, fields::Fields};
use crate::{
    frames::{Sampling, Token},
    wire::error::ApiError,
};

/// What a request says about sampling; `None`: the defaults decide. Meaning of each key: [`Sampling`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    missing_docs,
    reason = "the names are those of Sampling, documented there"
)]
pub struct SamplingOverrides {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<u32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<u64>,
    /// By token id, each once; empty: the defaults'.
    pub logit_bias: Vec<(Token, f32)>,
}

// Ranges of OpenAI's API where it has the key; elsewhere what llama.cpp makes sense of.
const TEMPERATURE: RangeInclusive<f32> = 0.0..=2.0;
const SHARE: RangeInclusive<f32> = 0.0..=1.0;
const REPEAT_PENALTY: RangeInclusive<f32> = 0.1..=10.0;
const ADDED_PENALTY: RangeInclusive<f32> = -2.0..=2.0;
const LOGIT_BIAS: RangeInclusive<f32> = -100.0..=100.0;
const TOP_K: RangeInclusive<u64> = 0..=1_000_000;
/// Penalties walk over this many tokens at each draw.
const REPEAT_LAST_N: RangeInclusive<u64> = 0..=4096;

/// The chain of llama.cpp's server where nobody says otherwise.
pub(super) fn builtin() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        seed: 0,
        logit_bias: Vec::new(),
    }
}

impl SamplingOverrides {
    /// These values over `base`.
    pub(super) fn over(&self, base: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(base.temperature),
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(base.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(base.repeat_last_n),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            seed: self.seed.unwrap_or(base.seed),
            logit_bias: match self.logit_bias.as_slice() {
                [] => base.logit_bias,
                own => own.to_vec(),
            },
        }
    }
}

/// Reads the sampling keys of a body.
pub(super) fn read(fields: &Fields<'_>, limits: &Limits) -> Result<SamplingOverrides, ApiError> {
    let count = |key, range| {
        let found = fields.integer(key, range)?;
        Ok::<_, ApiError>(found.map(|n| u32::try_from(n).expect("both ranges end below 2^32")))
    };
    Ok(SamplingOverrides {
        temperature: fields.real("temperature", &TEMPERATURE)?,
        top_k: count("top_k", TOP_K)?,
        top_p: fields.real("top_p", &SHARE)?,
        min_p: fields.real("min_p", &SHARE)?,
        repeat_penalty: fields.real("repeat_penalty", &REPEAT_PENALTY)?,
        repeat_last_n: count("repeat_last_n", REPEAT_LAST_N)?,
        frequency_penalty: fields.real("frequency_penalty", &ADDED_PENALTY)?,
        presence_penalty: fields.real("presence_penalty", &ADDED_PENALTY)?,
        seed: fields.integer("seed", 0..=u64::MAX)?,
        logit_bias: logit_bias(fields, limits)?,
    })
}

/// `{"15043": -100}`: token ids as strings, as OpenAI has it. Sorted by id.
fn logit_bias(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<(Token, f32)>, ApiError> {
    let Some(biases) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let biases = biases.entries();
    if biases.len() > limits.logit_bias {
        let (found, allowed) = (biases.len(), limits.logit_bias);
        return Err(fields.error(
            "logit_bias",
            format_args!("has {found} tokens, at most {allowed} are allowed"),
        ));
    }
    let mut list = Vec::with_capacity(biases.len());
    for (key, value) in biases {
        // A sign or a leading zero would make two spellings of one id.
        let id = key
            .parse::<Token>()
            .ok()
            .filter(|id| *id >= 0 && id.to_string() == *key);
        let id = id.ok_or_else(|| {
            let found = super::fields::quoted(key);
            fields.error(
                "logit_bias",
                format_args!("has key {found}, expected a token id"),
            )
        })?;
        list.push((
            id,
            fields.real_of(&format!("logit_bias.{key}"), value, &LOGIT_BIAS)?,
        ));
    }
    list.sort_unstable_by_key(|&(id, _)| id);
    Ok(list)
}

/// For configuration: any subset of the keys over [`builtin`], inside the ranges of requests.
pub(super) fn over_builtin<'de, D: Deserializer<'de>>(from: D) -> Result<Sampling, D::Error> {
    let overrides = SamplingOverrides::deserialize(from)?;
    let sampling = overrides.over(builtin());
    let reals = [
        ("temperature", sampling.temperature, TEMPERATURE),
        ("top_p", sampling.top_p, SHARE),
        ("min_p", sampling.min_p, SHARE),
        ("repeat_penalty", sampling.repeat_penalty, REPEAT_PENALTY),
        (
            "frequency_penalty",
            sampling.frequency_penalty,
            ADDED_PENALTY,
        ),
        ("presence_penalty", sampling.presence_penalty, ADDED_PENALTY),
    ];
    let biases = sampling
        .logit_bias
        .iter()
        .map(|&(_, bias)| ("logit_bias", bias, LOGIT_BIAS));
    // TOML has NaN, which no range contains.
    for (key, found, allowed) in reals.into_iter().chain(biases) {
        if !allowed.contains(&found) {
            let (low, high) = (allowed.start(), allowed.end());
            return Err(D::Error::custom(format_args!(
                "{key} is {found}, allowed are {low} to {high}"
            )));
        }
    }
    let counts = [
        ("top_k", sampling.top_k, TOP_K),
        ("repeat_last_n", sampling.repeat_last_n, REPEAT_LAST_N),
    ];
    for (key, found, allowed) in counts {
        if !allowed.contains(&found.into()) {
            let (low, high) = (allowed.start(), allowed.end());
            return Err(D::Error::custom(format_args!(
                "{key} is {found}, allowed are {low} to {high}"
            )));
        }
    }
    Ok(sampling)
}
