//! Keys of a body that choose how tokens are drawn, with their ranges.

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    Limits,
    fields::Fields,
    keys::{self, Integer, Key, Real},
};
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
pub(super) fn read(fields: &Fields<'_>) -> Result<SamplingOverrides, ApiError> {
    Ok(SamplingOverrides {
        temperature: fields.real(&keys::TEMPERATURE)?,
        top_k: fields.integer_u32(&keys::TOP_K)?,
        top_p: fields.real(&keys::TOP_P)?,
        min_p: fields.real(&keys::MIN_P)?,
        repeat_penalty: fields.real(&keys::REPEAT_PENALTY)?,
        repeat_last_n: fields.integer_u32(&keys::REPEAT_LAST_N)?,
        frequency_penalty: fields.real(&keys::FREQUENCY_PENALTY)?,
        presence_penalty: fields.real(&keys::PRESENCE_PENALTY)?,
        seed: fields.integer(&keys::SEED)?,
        logit_bias: logit_bias(fields)?,
    })
}

/// `{"15043": -100}`: token ids as strings, as OpenAI has it. Sorted by id.
fn logit_bias(fields: &Fields<'_>) -> Result<Vec<(Token, f32)>, ApiError> {
    let Some(biases) = fields.object(&keys::LOGIT_BIAS)? else {
        return Ok(Vec::new());
    };
    let biases = biases.entries();
    let allowed = fields.limits().logit_bias;
    if biases.len() > allowed {
        let found = biases.len();
        return Err(fields.error(
            "logit_bias",
            format_args!("has {found} tokens, at most {allowed} are allowed"),
        ));
    }
    let mut list = Vec::with_capacity(biases.len());
    for (key, value) in biases.iter() {
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
            fields.real_of(
                &format!("logit_bias.{key}"),
                value,
                &keys::LOGIT_BIAS.takes().0,
            )?,
        ));
    }
    list.sort_unstable_by_key(|&(id, _)| id);
    Ok(list)
}

/// For configuration: any subset of the keys over [`builtin`], inside the ranges of requests.
pub(super) fn over_builtin<'de, D: Deserializer<'de>>(from: D) -> Result<Sampling, D::Error> {
    let overrides = SamplingOverrides::deserialize(from)?;
    let sampling = overrides.over(builtin());
    let reals: [(&Key<Real>, f32); 6] = [
        (&keys::TEMPERATURE, sampling.temperature),
        (&keys::TOP_P, sampling.top_p),
        (&keys::MIN_P, sampling.min_p),
        (&keys::REPEAT_PENALTY, sampling.repeat_penalty),
        (&keys::FREQUENCY_PENALTY, sampling.frequency_penalty),
        (&keys::PRESENCE_PENALTY, sampling.presence_penalty),
    ];
    let reals = reals.map(|(key, found)| (key.name(), found, &key.takes().0));
    let bias = &keys::LOGIT_BIAS;
    let biases = sampling
        .logit_bias
        .iter()
        .map(|&(_, found)| (bias.name(), found, &bias.takes().0));
    // TOML has NaN, which no range contains.
    for (key, found, allowed) in reals.into_iter().chain(biases) {
        if !allowed.contains(&found.into()) {
            let (low, high) = (allowed.start(), allowed.end());
            return Err(D::Error::custom(format_args!(
                "{key} is {found}, allowed are {low} to {high}"
            )));
        }
    }
    let counts: [(&Key<Integer>, u32); 2] = [
        (&keys::TOP_K, sampling.top_k),
        (&keys::REPEAT_LAST_N, sampling.repeat_last_n),
    ];
    for (key, found) in counts {
        // Neither range depends on the limits.
        let allowed = key.takes().0(&Limits::default());
        if !allowed.contains(&found.into()) {
            let (key, low, high) = (key.name(), allowed.start(), allowed.end());
            return Err(D::Error::custom(format_args!(
                "{key} is {found}, allowed are {low} to {high}"
            )));
        }
    }
    Ok(sampling)
}
