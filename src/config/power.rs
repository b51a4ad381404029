//! `[power]`, `[profile]` and `[profiles.NAME]`: which model serves in which power mode.
//!
//! `configs/boards/*.toml` are files of `[profiles.NAME]` for three boards, compiled in and read by the
//! same rules; an operator may copy one to `config.d/` and change it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use config::{Map, ValueKind};

use crate::frames::KvType;

use super::engine::KV_TYPE;
use super::layers;
use super::node::check_name;
use super::problem::{Problem, Report};
use super::reader::{Root, Section};
use super::{PathsConfig, Sources};

/// Profiles that come with the program, by the name of their board.
const SHIPPED: &[(&str, &str)] = &[
    (
        "agx-orin-64gb",
        include_str!("../../configs/boards/agx-orin-64gb.toml"),
    ),
    (
        "orin-nano-8gb",
        include_str!("../../configs/boards/orin-nano-8gb.toml"),
    ),
    (
        "orin-nx-16gb",
        include_str!("../../configs/boards/orin-nx-16gb.toml"),
    ),
];

/// How the model is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choose {
    /// By profiles.
    Profiles,
    /// By the measured table, and by profiles where it says nothing.
    Auto,
    /// Not at all: `model.active`.
    Off,
}

/// `[power]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PowerConfig {
    /// By what the model is chosen.
    pub choose: Choose,
    /// The table that `orinoco bench --table` writes.
    pub table_file: PathBuf,
    /// Slowest stream that `auto` accepts, tokens a second.
    pub tok_s_min: f32,
    /// Longest wait for the first token that `auto` accepts.
    pub ttft_max: Duration,
    /// A new mode must stand for this long before the model follows.
    pub settle: Duration,
    /// After a switch nothing larger is loaded, and after heat nothing restored, for this long.
    pub hold: Duration,
    /// Temperature of the hottest junction from which less is done.
    pub celsius_high: f32,
    /// Temperature below which more is done again.
    pub celsius_low: f32,
    /// Time between two steps down.
    pub step: Duration,
    /// Instantaneous over-currents a second that are taken for normal.
    pub over_current_s_max: f32,
}

impl PowerConfig {
    pub(super) fn read(root: &mut Root<'_>, paths: &PathsConfig) -> Self {
        let mut section = root.section("power");
        let config = Self {
            choose: section.choice(
                "choose",
                &[
                    ("profiles", Choose::Profiles),
                    ("auto", Choose::Auto),
                    ("off", Choose::Off),
                ],
            ),
            table_file: section
                .path("table_file")
                .unwrap_or_else(|| paths.state_dir.join("bench-table.json")),
            tok_s_min: section.number("tok_s_min", 0.0..=10_000.0),
            ttft_max: section.milliseconds("ttft_ms_max", 1..=600_000),
            settle: section.milliseconds("settle_ms", 0..=60_000),
            hold: section.seconds("hold_seconds", 0..=86_400),
            celsius_high: section.number("celsius_high", 30.0..=110.0),
            celsius_low: section.number("celsius_low", 20.0..=110.0),
            step: section.seconds("step_seconds", 1..=3600),
            over_current_s_max: section.number("over_current_s_max", 0.0..=1_000_000.0),
        };
        if config.celsius_low >= config.celsius_high {
            let high = config.celsius_high;
            section.contradiction(
                "celsius_low",
                "power.celsius_high",
                format!("expected less than celsius_high = {high:?}"),
            );
        }
        config
    }
}

/// Where a figure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// By us, on such a board.
    Measured,
    /// By others, who said so in public.
    Published,
    /// Calculated.
    Estimated,
}

const BASIS: &[(&str, Basis)] = &[
    ("estimated", Basis::Estimated),
    ("published", Basis::Published),
    ("measured", Basis::Measured),
];

/// A figure and where it comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure<T> {
    /// In the unit of its key.
    pub value: T,
    /// How it is known.
    pub basis: Basis,
}

/// `[profiles.NAME]`: what a mode must allow, and what serves then.
#[derive(Debug, Clone, PartialEq)]
pub struct ProfileConfig {
    /// Place among the profiles whose demands are met; the lowest is taken.
    pub order: u32,
    /// Name of the power mode, exactly; `None`: any.
    pub mode: Option<String>,
    /// GPU clock in MHz times active clusters, at least.
    pub gpu_mhz_tpcs_min: u64,
    /// Memory clock, at least, MHz.
    pub emc_mhz_min: u64,
    /// Cores, at least.
    pub cores_min: u32,
    /// The model's name.
    pub model: String,
    /// Sequences side by side; 0: `engine.n_seq_max`.
    pub n_seq_max: u32,
    /// KV pool, tokens; 0: as the model's own table says.
    pub n_ctx: u32,
    /// Keys in the KV cache; `None`: as the model's own table says.
    pub kv_type_k: Option<KvType>,
    /// Values in the KV cache; `None`: as the model's own table says.
    pub kv_type_v: Option<KvType>,
    /// Everything it takes when loaded so, bytes.
    pub memory_bytes: Option<Figure<u64>>,
    /// One stream, tokens a second.
    pub tok_s: Option<Figure<f32>>,
    /// First token after a prompt of 512 tokens, milliseconds.
    pub ttft_ms: Option<Figure<u32>>,
}

impl ProfileConfig {
    /// `is_named`: a profile, not the keys that all of them inherit.
    fn read(section: &mut Section<'_>, is_named: bool) -> Self {
        let mut kv_types: Vec<(&str, Option<KvType>)> = vec![("", None)];
        kv_types.extend(
            KV_TYPE
                .iter()
                .map(|(name, kv_type)| (*name, Some(*kv_type))),
        );
        Self {
            order: section.integer("order", 0..=1_000_000),
            mode: section.optional_text("mode", 64),
            gpu_mhz_tpcs_min: section.integer("gpu_mhz_tpcs_min", 0..=1_000_000),
            emc_mhz_min: section.integer("emc_mhz_min", 0..=100_000),
            cores_min: section.integer("cores_min", 0..=1024),
            model: section
                .checked("model", |name| match name {
                    "" if !is_named => Ok(String::new()),
                    name => check_name(name).map(|()| name.to_owned()),
                })
                .unwrap_or_default(),
            n_seq_max: section.integer("n_seq_max", 0..=64),
            n_ctx: section.integer("n_ctx", 0..=16 << 20),
            kv_type_k: section.choice("kv_type_k", &kv_types),
            kv_type_v: section.choice("kv_type_v", &kv_types),
            memory_bytes: figure(
                section.integer("memory_bytes", 0..=1 << 50),
                section.choice("memory_bytes_basis", BASIS),
            ),
            tok_s: figure(
                section.number("tok_s", 0.0..=1_000_000.0),
                section.choice("tok_s_basis", BASIS),
            ),
            ttft_ms: figure(
                section.integer("ttft_ms", 0..=3_600_000),
                section.choice("ttft_ms_basis", BASIS),
            ),
        }
    }
}

/// Zero stands for "not known".
fn figure<T: Default + PartialEq>(value: T, basis: Basis) -> Option<Figure<T>> {
    (value != T::default()).then_some(Figure { value, basis })
}

/// `[profiles.NAME]`, with what `[profile]` says for all of them.
pub(super) fn read_profiles(root: &mut Root<'_>) -> BTreeMap<String, ProfileConfig> {
    let mut inherited = root.copy("profile");
    // One model may be for all of them; none is for nobody.
    let is_none = |kind: &ValueKind| matches!(kind, ValueKind::String(name) if name.is_empty());
    inherited.retain(|key, value| key != "model" || !is_none(&value.kind));
    ProfileConfig::read(&mut root.section("profile"), false);
    let mut profiles = BTreeMap::new();
    for named in root.named("profiles", check_name) {
        let profile = ProfileConfig::read(&mut root.heir(&named, &inherited), true);
        profiles.insert(named.name, profile);
    }
    profiles
}

/// The profiles that come with the program for a board; none for other names.
pub fn shipped_profiles(board: &str) -> BTreeMap<String, ProfileConfig> {
    let shipped = SHIPPED.iter().find(|(name, _)| *name == board);
    shipped
        .and_then(|(name, text)| read_shipped(name, text).ok())
        .unwrap_or_default()
}

/// Reads one of the shipped files as if it stood in `config.d/`, with the documented defaults below it.
fn read_shipped(name: &str, text: &str) -> Result<BTreeMap<String, ProfileConfig>, Vec<Problem>> {
    let mut report = Report::default();
    let origin = format!("configs/boards/{name}.toml");
    let parsed = [(layers::DEFAULT, super::DEFAULT_TOML), (&*origin, text)]
        .map(|(origin, text)| layers::parse(origin, text));
    let mut tree = Map::new();
    for (fragment, section) in parsed.into_iter().zip(["profile", "profiles"]) {
        match fragment {
            Ok(mut fragment) => tree.extend(fragment.remove_entry(section)),
            Err(e) => report.problem(Problem::file(&origin, e.to_string())),
        }
    }
    let nowhere = Sources {
        working_dir: PathBuf::from("/"),
        ..Sources::defaults()
    };
    let profiles = read_profiles(&mut Root::new(tree, &nowhere, &mut report));
    match report.into_parts().1 {
        problems if problems.is_empty() => Ok(profiles),
        problems => Err(problems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_profiles_are_valid_and_name_their_models() {
        for (board, text) in SHIPPED {
            let profiles = match read_shipped(board, text) {
                Ok(profiles) => profiles,
                Err(problems) => panic!("{problems:?}"),
            };
            assert!(profiles.len() > 5, "{board}");
            assert_eq!(profiles, shipped_profiles(board));
            let table: toml::Table = text.parse().unwrap();
            assert_eq!(table.keys().collect::<Vec<_>>(), ["profiles"], "{board}");
        }
        assert!(shipped_profiles("toaster").is_empty());
    }

    #[test]
    fn every_shipped_figure_says_where_it_comes_from() {
        for (board, text) in SHIPPED {
            let table: toml::Table = text.parse().unwrap();
            for (name, profile) in table["profiles"].as_table().unwrap() {
                for key in ["memory_bytes", "tok_s", "ttft_ms"] {
                    let has = |key: &str| profile.get(key).is_some();
                    assert_eq!(
                        has(key),
                        has(&format!("{key}_basis")),
                        "{board} {name} {key}"
                    );
                }
                assert!(profile.get("memory_bytes").is_some(), "{board} {name}");
            }
        }
    }
}
