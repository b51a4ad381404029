//! `orinoco models fit`: what each model would take here, or on another board, and whether it fits.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::board::{Root, memory};
use crate::cli::output;
use crate::config::Config;
use crate::frames::LoadSpec;
use crate::ledger::{self, BOARDS, Room, Rules};
use crate::models::Catalogue;
use crate::worker::survey::{KV_TYPES, Row, Site, Surveyed, survey};

/// What is asked.
pub(super) struct Question {
    /// This model only.
    pub(super) model: Option<String>,
    /// A board that is not here.
    pub(super) board: Option<String>,
    /// So much memory, all of it available.
    pub(super) memory_bytes: Option<u64>,
    /// JSON instead of tables.
    pub(super) as_json: bool,
}

/// `6.5GiB`, `6500M`, `8g`, or bytes. `G` and `GiB` are 2^30, `GB` is 10^9.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1_048_576.0,
        "g" | "gib" => 1_073_741_824.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        unit => return Err(format!("{unit:?} is no unit of bytes; use MiB or GiB")),
    };
    match digits.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 && number * unit < 1e15 => {
            Ok((number * unit) as u64)
        }
        _ => Err("expected a number of bytes such as 6.5GiB".to_owned()),
    }
}

pub(super) fn run(question: &Question, config: &Config) -> anyhow::Result<ExitCode> {
    let (site, assumption) = site(question, config)?;
    let loads = loads(question, config)?;
    if loads.is_empty() {
        output::say(&format!(
            "no models in {}; `orinoco models add FILE` lets one in",
            config.paths.models_dir.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let this = std::env::current_exe().context("failed to find this program's own file")?;
    let program = config.engine.worker_program(&this);
    let answers = ask(&program, &loads, &site)?;
    if question.as_json {
        let models = answers.iter().map(|(name, answer)| to_json(name, answer));
        let document = json!({
            "assumption": assumption,
            "total_bytes": site.room.total_bytes,
            "available_bytes": site.room.available_bytes,
            "reserve_bytes": site.room.reserve_bytes,
            "n_seq_max": config.engine.n_seq_max,
            "models": models.collect::<Vec<_>>(),
        });
        return output::answer(&format!("{document:#}\n"));
    }
    let mut text = format!(
        "{} may be taken: {} available less a reserve of {} ({assumption})\n",
        ledger::memory(site.room.takeable_bytes()),
        ledger::memory(site.room.available_bytes),
        ledger::memory(site.room.reserve_bytes),
    );
    for (name, answer) in &answers {
        text.push('\n');
        match answer {
            Ok(surveyed) => text.push_str(&to_text(surveyed, config.engine.n_seq_max)),
            Err(reason) => text.push_str(&format!("{name}: {reason}\n")),
        }
    }
    output::answer(&text)
}

/// The memory in question, and what is assumed about it.
fn site(question: &Question, config: &Config) -> anyhow::Result<(Site, String)> {
    let reserve = config.memory.reserve;
    let (room, assumption) = match (&question.board, question.memory_bytes) {
        (Some(name), _) => {
            let Some(board) = BOARDS.iter().find(|board| board.name == name) else {
                let names: Vec<_> = BOARDS.iter().map(|board| board.name).collect();
                bail!(
                    "there is no board {name:?}; there are: {}",
                    names.join(", ")
                );
            };
            let assumption = format!(
                "{name} with {} of memory, of which {} are usually used; {}",
                ledger::memory(board.total_bytes),
                ledger::memory(board.used_bytes),
                board.basis
            );
            (board.room(reserve.of(board.total_bytes)), assumption)
        }
        (None, Some(bytes)) => {
            let room = Room {
                total_bytes: bytes,
                available_bytes: bytes,
                reserve_bytes: reserve.of(bytes),
                mapped_bytes: 0,
            };
            (room, "as given, all of it available".to_owned())
        }
        (None, None) => {
            let info = memory::read(&Root::new(&config.paths.board_root))
                .context("failed to learn how much memory is left")?;
            let room = Room {
                total_bytes: info.total_bytes,
                available_bytes: info.available_bytes,
                reserve_bytes: reserve.of(info.total_bytes),
                mapped_bytes: 0,
            };
            let assumption = "this machine now; a model that serves has its memory already";
            (room, assumption.to_owned())
        }
    };
    let site = Site {
        room,
        rules: Rules {
            gpu_context_bytes: config.memory.gpu_context_bytes,
        },
        is_elsewhere: question.board.is_some() || question.memory_bytes.is_some(),
    };
    Ok((site, assumption))
}

fn loads(question: &Question, config: &Config) -> anyhow::Result<Vec<LoadSpec>> {
    let dir = &config.paths.models_dir;
    let catalogue = Catalogue::read(&config.models, dir)
        .with_context(|| format!("failed to list the models in {}", dir.display()))?;
    if let Some(name) = &question.model
        && catalogue.get(name).is_none()
    {
        bail!(
            "no model {name:?} in {}; see `orinoco models list`",
            dir.display()
        );
    }
    let wanted = |name: &str| question.model.as_deref().is_none_or(|model| model == name);
    let entries = catalogue.entries().iter();
    let loads = entries.filter(|entry| wanted(&entry.name)).map(|entry| {
        let model = config.models.get(&entry.name);
        model.load_spec(&config.engine, &entry.name, &entry.path)
    });
    Ok(loads.collect())
}

type Answer = (String, Result<Surveyed, String>);

fn ask(program: &Path, loads: &[LoadSpec], site: &Site) -> anyhow::Result<Vec<Answer>> {
    // Drawn on a terminal only.
    let bar = ProgressBar::new(loads.len() as u64 * 100).with_style(
        ProgressStyle::with_template("{bar:32} {percent:>3} % {msg}")
            .expect("the template is a constant"),
    );
    // One thread, the main one: the engine is its child.
    let runtime = crate::cli::runtime()?;
    let mut answers = Vec::new();
    for (n, load) in loads.iter().enumerate() {
        bar.set_message(load.name.clone());
        let progress = |done: f64| bar.set_position(n as u64 * 100 + (done * 100.0) as u64);
        let answer = runtime.block_on(survey(program, load, site, progress));
        answers.push((load.name.clone(), answer));
    }
    bar.finish_and_clear();
    Ok(answers)
}

fn to_text(surveyed: &Surveyed, n_seq_max: u32) -> String {
    let heading = [
        "CONTEXT", "KV TYPE", "WEIGHTS", "KV CACHE", "COMPUTE", "OTHER", "TOTAL", "FITS",
    ];
    let mut table = vec![heading.map(String::from).to_vec()];
    table.extend(surveyed.rows.iter().map(cells));
    let largest = surveyed.largest.iter().zip(KV_TYPES);
    let largest = largest.map(|(n_ctx, kv_type)| match n_ctx {
        Some(n_ctx) => format!("{n_ctx} ({})", kv_type.name()),
        None => format!("none ({})", kv_type.name()),
    });
    format!(
        "{}: {}, trained with {} tokens; {n_seq_max} sequences\n{}largest context that fits: {}\n",
        surveyed.name,
        surveyed.description,
        surveyed.n_ctx_train,
        output::table(&table),
        largest.collect::<Vec<_>>().join(", ")
    )
}

fn cells(row: &Row) -> Vec<String> {
    let mut cells = vec![row.n_ctx.to_string(), row.kv_type.name().to_owned()];
    match &row.taken {
        Ok(bytes) => {
            let figures = [
                bytes.weights_bytes,
                bytes.kv_bytes,
                bytes.compute_bytes,
                bytes.other_bytes,
                bytes.total_bytes(),
            ];
            cells.extend(figures.map(ledger::memory));
            cells.push(if bytes.fits { "yes" } else { "no" }.to_owned());
        }
        Err(reason) => cells.push(reason.clone()),
    }
    cells
}

fn to_json(name: &str, answer: &Result<Surveyed, String>) -> serde_json::Value {
    let surveyed = match answer {
        Ok(surveyed) => surveyed,
        Err(reason) => return json!({"name": name, "error": reason}),
    };
    let row = |row: &Row| match &row.taken {
        Ok(bytes) => json!({
            "n_ctx": row.n_ctx,
            "kv_type": row.kv_type,
            "weights_bytes": bytes.weights_bytes,
            "kv_bytes": bytes.kv_bytes,
            "compute_bytes": bytes.compute_bytes,
            "other_bytes": bytes.other_bytes,
            "total_bytes": bytes.total_bytes(),
            "fits": bytes.fits,
        }),
        Err(reason) => json!({
            "n_ctx": row.n_ctx, "kv_type": row.kv_type, "fits": false, "error": reason,
        }),
    };
    let largest = surveyed.largest.iter().zip(KV_TYPES);
    let largest: serde_json::Map<_, _> = largest
        .map(|(n_ctx, kv_type)| (kv_type.name().to_owned(), json!(n_ctx)))
        .collect();
    json!({
        "name": name,
        "description": surveyed.description,
        "n_ctx_train": surveyed.n_ctx_train,
        "n_ctx_max": largest,
        "rows": surveyed.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("6442450944", 6_442_450_944),
            ("6GiB", 6 << 30),
            ("6g", 6 << 30),
            ("1.5G", 3 << 29),
            ("512 MiB", 512 << 20),
            ("8GB", 8_000_000_000),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1G", "6 lumps", "1e40", "nan", "0"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
