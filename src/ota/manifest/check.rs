//! The bounds of every value in a manifest.

use super::{
    CHECK, CONTEXT_TOKENS_MAX, File, Golden, LIST_MAX, MIB_MAX, Manifest, Model, Needs, PiecedFile,
    RELEASE_SEQ_MAX, Runtime, TEMPLATE_BYTES_MAX,
};
use crate::models::gguf::limits;
use crate::ota::error::FileError;
use crate::ota::manifest::Health;
use crate::ota::name::TargetName;
use crate::ota::pieces::{PieceTable, n_pieces};

/// Longest short text, bytes.
const TEXT_BYTES_MAX: usize = 200;
/// Longest golden prompt, bytes.
const PROMPT_BYTES_MAX: usize = 16 << 10;
/// Most golden prompts: each costs seconds on a small board.
const GOLDEN_MAX: usize = 16;
/// Longest answer to a golden prompt, tokens.
const GOLDEN_TOKENS_MAX: u64 = 512;
/// Longest time to load, milliseconds: 30 minutes.
const LOAD_MS_MAX: u64 = 1_800_000;

pub(super) fn manifest(manifest: &Manifest) -> Result<(), FileError> {
    CHECK.schema(manifest.schema, super::SCHEMA)?;
    CHECK.within("release_seq", manifest.release_seq, 1..=RELEASE_SEQ_MAX)?;
    CHECK.text("title", &manifest.title, 0, TEXT_BYTES_MAX)?;
    model(&manifest.model)?;
    files(manifest)?;
    runtime(&manifest.runtime)?;
    needs(&manifest.needs)?;
    if let Some(tier) = &manifest.tier {
        CHECK.within("tier.min_power_w", tier.min_power_w.into(), 0..=1000)?;
    }
    health(&manifest.health)
}

fn model(model: &Model) -> Result<(), FileError> {
    CHECK.text("model.arch", &model.arch, 1, 64)?;
    CHECK.that(
        model.format == "gguf",
        "model.format",
        &model.format,
        "gguf",
    )?;
    CHECK.within("model.n_params", model.n_params, 1..=1 << 50)?;
    CHECK.text("model.quant", &model.quant, 1, 32)?;
    CHECK.within(
        "model.n_ctx_train",
        model.n_ctx_train.into(),
        1..=limits::CONTEXT_TOKENS_MAX,
    )?;
    CHECK.within("model.n_vocab", model.n_vocab.into(), 1..=1 << 24)?;
    CHECK.text("model.licence", &model.licence, 1, TEXT_BYTES_MAX)?;
    for (key, text) in [
        ("model.family", &model.family),
        ("model.base_model", &model.base_model),
        ("model.source_url", &model.source_url),
        ("model.revision", &model.revision),
    ] {
        CHECK.text(key, text.as_deref().unwrap_or("-"), 1, TEXT_BYTES_MAX)?;
    }
    texts("model.languages", &model.languages, LIST_MAX, 32)?;
    texts("model.capabilities", &model.capabilities, LIST_MAX, 32)
}

fn texts(key: &str, list: &[String], max: usize, bytes_max: usize) -> Result<(), FileError> {
    CHECK.count(key, list.len(), max)?;
    for (idx, text) in list.iter().enumerate() {
        CHECK.text(format!("{key}[{idx}]"), text, 1, bytes_max)?;
    }
    Ok(())
}

fn files(manifest: &Manifest) -> Result<(), FileError> {
    CHECK.count("files", manifest.files.len(), 3)?;
    let (mut n_weights, mut n_drafts, mut n_licences) = (0, 0, 0);
    for (idx, file) in manifest.files.iter().enumerate() {
        let key = |part: &str| format!("files[{idx}].{part}");
        match file {
            File::Weights(weights) => {
                n_weights += 1;
                pieced(&key, manifest, weights)?;
            }
            File::Licence { target, bytes, .. } => {
                n_licences += 1;
                CHECK.within(key("bytes"), *bytes, 1..=1 << 20)?;
                target_is(&key("target"), target, &TargetName::licence(&manifest.id))?;
            }
            File::Draft {
                line,
                min_release_seq,
            } => {
                n_drafts += 1;
                CHECK.within(
                    key("min_release_seq"),
                    *min_release_seq,
                    1..=RELEASE_SEQ_MAX,
                )?;
                CHECK.that(
                    *line != manifest.line,
                    key("line"),
                    line,
                    "another line than the model's own",
                )?;
            }
        }
    }
    CHECK.that(
        n_weights == 1 && n_drafts <= 1 && n_licences <= 1,
        "files",
        format_args!("{n_weights} weights, {n_drafts} drafts, {n_licences} licences"),
        "one file of role weights, at most one draft and one licence",
    )
}

fn pieced(
    key: &dyn Fn(&str) -> String,
    manifest: &Manifest,
    file: &PiecedFile,
) -> Result<(), FileError> {
    n_pieces(file.bytes, file.piece_bytes)?;
    PieceTable::table_bytes(file.bytes, file.piece_bytes)?;
    target_is(
        &key("target"),
        &file.target,
        &TargetName::weights(&manifest.id),
    )?;
    target_is(
        &key("pieces_target"),
        &file.pieces_target,
        &TargetName::pieces(&manifest.id),
    )
}

/// Files are named after the model, so that no manifest claims another's.
fn target_is(key: &str, found: &TargetName, expected: &TargetName) -> Result<(), FileError> {
    CHECK.that(found == expected, key, found, expected.as_str())
}

fn runtime(runtime: &Runtime) -> Result<(), FileError> {
    CHECK.within(
        "runtime.n_ctx",
        runtime.n_ctx.into(),
        0..=CONTEXT_TOKENS_MAX.into(),
    )?;
    if let Some(template) = &runtime.chat_template {
        CHECK.text("runtime.chat_template", template, 1, TEMPLATE_BYTES_MAX)?;
    }
    texts("runtime.stop", &runtime.stop, 8, 64)?;
    let sampling = &runtime.sampling_milli;
    for (key, value, max) in [
        ("temperature", sampling.temperature, 5000),
        ("top_k", sampling.top_k, 100_000),
        ("top_p", sampling.top_p, 1000),
        ("min_p", sampling.min_p, 1000),
        ("repeat_penalty", sampling.repeat_penalty, 5000),
    ] {
        let key = format!("runtime.sampling_milli.{key}");
        CHECK.within(key, value.unwrap_or(0).into(), 0..=max)?;
    }
    Ok(())
}

fn needs(needs: &Needs) -> Result<(), FileError> {
    CHECK.count("needs.memory_mib", needs.memory_mib.len(), LIST_MAX)?;
    let mut before = 0;
    for (idx, need) in needs.memory_mib.iter().enumerate() {
        let key = |part: &str| format!("needs.memory_mib[{idx}].{part}");
        CHECK.within(key("mib"), need.mib, 1..=MIB_MAX)?;
        CHECK.that(
            need.n_ctx > before && need.n_ctx <= CONTEXT_TOKENS_MAX,
            key("n_ctx"),
            need.n_ctx,
            format!("more than the one before, at most {CONTEXT_TOKENS_MAX}"),
        )?;
        before = need.n_ctx;
    }
    CHECK.within("needs.disk_mib", needs.disk_mib, 0..=MIB_MAX)?;
    CHECK.within(
        "needs.min_engine_build",
        needs.min_engine_build.into(),
        0..=10_000_000,
    )?;
    CHECK.count("needs.boards", needs.boards.len(), LIST_MAX)?;
    texts("needs.power_modes", &needs.power_modes, LIST_MAX, 64)
}

fn health(health: &Health) -> Result<(), FileError> {
    CHECK.within("health.load_ms_max", health.load_ms_max, 0..=LOAD_MS_MAX)?;
    CHECK.within("health.peak_mib_max", health.peak_mib_max, 0..=MIB_MAX)?;
    CHECK.count(
        "health.speed_milli_tok_s",
        health.speed_milli_tok_s.len(),
        LIST_MAX,
    )?;
    for (idx, floor) in health.speed_milli_tok_s.iter().enumerate() {
        let key = |part: &str| format!("health.speed_milli_tok_s[{idx}].{part}");
        CHECK.text(key("mode"), floor.mode.as_deref().unwrap_or("-"), 1, 64)?;
        CHECK.within(key("decode_min"), floor.decode_min, 0..=1_000_000_000)?;
        CHECK.within(key("prefill_min"), floor.prefill_min, 0..=1_000_000_000)?;
    }
    CHECK.count("health.golden", health.golden.len(), GOLDEN_MAX)?;
    for (idx, golden) in health.golden.iter().enumerate() {
        let key = |part: &str| format!("health.golden[{idx}].{part}");
        match golden {
            Golden::Match {
                prompt,
                must_match,
                max_tokens,
            } => {
                CHECK.text(key("prompt"), prompt, 1, PROMPT_BYTES_MAX)?;
                CHECK.text(key("must_match"), must_match, 1, 1000)?;
                let pattern = golden.pattern().err();
                CHECK.that(
                    pattern.is_none(),
                    key("must_match"),
                    pattern.unwrap_or_default(),
                    "a regular expression",
                )?;
                CHECK.within(
                    key("max_tokens"),
                    (*max_tokens).into(),
                    1..=GOLDEN_TOKENS_MAX,
                )?;
            }
            Golden::Likelihood {
                text,
                mean_nll_micro_max,
            } => {
                CHECK.text(key("text"), text, 1, PROMPT_BYTES_MAX)?;
                CHECK.within(
                    key("mean_nll_micro_max"),
                    *mean_nll_micro_max,
                    1..=1_000_000_000,
                )?;
            }
        }
    }
    Ok(())
}
