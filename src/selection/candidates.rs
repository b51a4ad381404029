//! What could serve in a power mode, best first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::SMALLER_SHARE;
use super::table::Row;
use crate::board::caps::Caps;
use crate::config::{Choose, PowerConfig, ProfileConfig};
use crate::frames::KvType;

/// A model and how it is loaded. `None`: as the model's own table in the configuration says.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The model's name.
    pub model: String,
    /// Sequences that it is loaded for.
    pub n_seq_max: u32,
    /// KV pool, tokens.
    pub n_ctx: Option<u32>,
    /// Keys in the KV cache.
    pub kv_type_k: Option<KvType>,
    /// Values in the KV cache.
    pub kv_type_v: Option<KvType>,
    /// All memory that it takes, as far as it is known before a load.
    pub memory_bytes: Option<u64>,
    /// Why it is a candidate.
    pub source: Source,
}

/// Why a line is a candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Somebody asked for this model.
    Pinned,
    /// A profile, by its name.
    Profile(String),
    /// A row of the measured table, by the mode that it was measured in.
    Measured(String),
    /// The fleet deployed it last, and no profile has a word to say.
    Deployed,
    /// Nothing else was to be had.
    Fallback,
}

impl Line {
    /// Whether a worker that has one loaded need not be changed for the other.
    pub fn loads_like(&self, other: &Line) -> bool {
        self.model == other.model
            && self.n_seq_max == other.n_seq_max
            && self.n_ctx == other.n_ctx
            && self.kv_type_k == other.kv_type_k
            && self.kv_type_v == other.kv_type_v
    }

    /// Whether it takes clearly less memory. What is not known is not smaller.
    pub(super) fn is_smaller_than(&self, other: &Line) -> bool {
        match (self.memory_bytes, other.memory_bytes) {
            (Some(own), Some(other)) => (own as f64) < other as f64 * SMALLER_SHARE,
            _ => false,
        }
    }

    fn plain(model: &str, site: &Site<'_>, source: Source) -> Self {
        Self {
            model: model.to_owned(),
            n_seq_max: site.n_seq_max,
            n_ctx: None,
            kv_type_k: None,
            kv_type_v: None,
            memory_bytes: None,
            source,
        }
    }
}

/// The board and its models at this moment.
pub struct Site<'a> {
    /// What the power mode allows, within the board's limits ([`crate::board::power::Present::caps`]).
    pub caps: Caps,
    /// The mode's name.
    pub mode: Option<&'a str>,
    /// Models whose files are here.
    pub models: &'a BTreeSet<String>,
    /// `engine.n_seq_max`.
    pub n_seq_max: u32,
    /// Whether a line fits in memory, by the plan of the engine or by its own figure.
    pub fits: &'a dyn Fn(&Line) -> bool,
    /// The model that somebody asked for: `model.active`, or a command.
    pub pinned: Option<&'a str>,
    /// The model that serves where nobody says otherwise.
    pub first: Option<&'a str>,
}

/// What could serve, best first; empty when no model is here.
///
/// A pinned model is the only candidate, loaded as its best profile says. Else the measured table where it
/// is to be used and has something, then profiles by `order` and name, then, if nothing qualifies, the
/// models that are here, by name: a board with a model never refuses to serve for want of a profile.
pub fn candidates(
    config: &PowerConfig,
    profiles: &BTreeMap<String, ProfileConfig>,
    rows: &[Row],
    site: &Site<'_>,
) -> Vec<Line> {
    let by_profile = || by_profile(profiles, site);
    if let Some(model) = site.pinned {
        let profiled = match config.choose {
            Choose::Off => Vec::new(),
            Choose::Profiles | Choose::Auto => by_profile(),
        };
        let same = profiled.into_iter().find(|line| line.model == model);
        let line = same.unwrap_or_else(|| Line::plain(model, site, Source::Pinned));
        return vec![Line {
            source: Source::Pinned,
            ..line
        }];
    }
    let mut lines = match config.choose {
        Choose::Auto => by_table(config, rows, site),
        Choose::Profiles | Choose::Off => Vec::new(),
    };
    if lines.is_empty() && config.choose != Choose::Off {
        lines = by_profile();
    }
    if lines.is_empty() {
        let plain = |model: &String| Line::plain(model, site, Source::Fallback);
        lines = site.models.iter().map(plain).collect();
        // Those that fit first; if none does, the plan before the load says so in numbers.
        lines.sort_by_key(|line| !(site.fits)(line));
        let first = lines
            .iter()
            .position(|line| Some(line.model.as_str()) == site.first);
        if let Some(first) = first {
            lines[..=first].rotate_right(1);
            lines[0].source = Source::Deployed;
        }
    }
    lines
}

fn by_profile(profiles: &BTreeMap<String, ProfileConfig>, site: &Site<'_>) -> Vec<Line> {
    let mut met: Vec<(&String, &ProfileConfig)> = profiles
        .iter()
        .filter(|(_, profile)| site.models.contains(&profile.model) && is_met(profile, site))
        .collect();
    met.sort_by_key(|(name, profile)| (profile.order, *name));
    met.into_iter()
        .map(|(name, profile)| Line {
            model: profile.model.clone(),
            n_seq_max: match profile.n_seq_max {
                0 => site.n_seq_max,
                n => n,
            },
            n_ctx: Some(profile.n_ctx).filter(|n_ctx| *n_ctx > 0),
            kv_type_k: profile.kv_type_k,
            kv_type_v: profile.kv_type_v,
            memory_bytes: profile.memory_bytes.map(|figure| figure.value),
            source: Source::Profile(name.clone()),
        })
        .filter(|line| (site.fits)(line))
        .collect()
}

/// Whether the mode is the one and allows what the profile demands. What the board does not say is taken
/// for enough, as on machines without power modes.
fn is_met(profile: &ProfileConfig, site: &Site<'_>) -> bool {
    let is_mode = |name: &String| site.mode == Some(name.as_str());
    let caps = &site.caps;
    let gpu_mhz_tpcs = caps
        .gpu_hz
        .map(|hz| hz / 1_000_000)
        .zip(caps.n_tpcs)
        .map(|(mhz, n_tpcs)| mhz.saturating_mul(n_tpcs.into()));
    profile.mode.as_ref().is_none_or(is_mode)
        && gpu_mhz_tpcs.is_none_or(|has| has >= profile.gpu_mhz_tpcs_min)
        && caps
            .emc_hz
            .is_none_or(|hz| hz / 1_000_000 >= profile.emc_mhz_min)
        && caps.n_cores.is_none_or(|n| n >= profile.cores_min)
}

/// The models that were measured fast enough, the largest first, each with as many sequences as keep every
/// stream fast enough.
///
/// Rows of this mode count: those whose caps are the caps in force. Where this mode was never measured,
/// rows of the next slower one do, since this one is no slower.
fn by_table(config: &PowerConfig, rows: &[Row], site: &Site<'_>) -> Vec<Line> {
    let is_same = |row: &&Row| row.caps.differences(&site.caps).is_empty();
    let mut measured: Vec<&Row> = rows.iter().filter(is_same).collect();
    if measured.is_empty() {
        let slower = |row: &&Row| row.caps.rank() < site.caps.rank();
        let nearest = rows.iter().filter(slower).map(|row| row.caps.rank()).max();
        let of_nearest = |row: &&Row| Some(row.caps.rank()) == nearest;
        measured = rows.iter().filter(of_nearest).collect();
    }
    let mut best: BTreeMap<&str, (&Row, Line)> = BTreeMap::new();
    for row in measured {
        let is_fast = row.tok_s_stream() >= f64::from(config.tok_s_min)
            && row.ttft_ms <= config.ttft_max.as_secs_f64() * 1000.0;
        let line = row.line();
        if !is_fast || !site.models.contains(&row.model) || !(site.fits)(&line) {
            continue;
        }
        // More sequences, then more tokens a second, then more room; the last words make it total.
        let merit = |row: &Row| {
            (
                row.n_seq_max,
                row.tok_s.to_bits(),
                row.n_ctx,
                row.peak_bytes,
            )
        };
        let is_better = |(other, _): &(&Row, Line)| merit(row) > merit(other);
        if best.get(row.model.as_str()).is_none_or(is_better) {
            best.insert(&row.model, (row, line));
        }
    }
    let mut lines: Vec<(&Row, Line)> = best.into_values().collect();
    lines.sort_by_key(|(row, _)| (Reverse((row.n_params, row.peak_bytes)), row.model.clone()));
    lines.into_iter().map(|(_, line)| line).collect()
}
