//! The model files.

use crate::doctor::facts::models::{ModelFile, RecordState};
use crate::doctor::{Facts, Finding};
use crate::ota::deploy::report::Line;

/// Names told in one line.
const NAMES_MAX: usize = 8;

pub(super) fn present(facts: &Facts) -> Finding {
    let dir = facts.config.paths.models_dir.display();
    let models = match &facts.models {
        Ok(models) => models,
        Err(error) => {
            return Finding::fail(
                format!("{dir}: {error}"),
                "a directory that the daemon can read",
                "`sudo chown -R orinoco: DIR`, or another paths.models_dir",
            );
        }
    };
    let add = "`orinoco models add FILE` lets a GGUF file in";
    let told = facts
        .updates
        .as_ref()
        .and_then(|updates| updates.told.as_ref());
    let releases = told.map_or(&[][..], |told| &told.lines);
    let by_line = |name: &str| {
        let is_it = |line: &&Line| line.line == name || line.active.model == name;
        releases.iter().find(is_it)
    };
    let active = facts.config.models.active.as_deref();
    if let Some(release) = active.map_or(releases.first(), by_line) {
        let (seq, line) = (release.active.release_seq, &release.line);
        return Finding::ok(format!("release {seq} of {line}: {}", release.active.model));
    }
    if models.is_empty() && facts.updates.is_some() {
        return Finding::warn(
            format!("no model in {dir}, and no release yet"),
            "the first release, which will serve",
            format!("`orinoco ota status` says how far it is; or {add}"),
        );
    }
    if models.is_empty() {
        return Finding::fail(format!("no model in {dir}"), "at least one", add);
    }
    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    if let Some(active) = active.filter(|active| !names.contains(active)) {
        return Finding::fail(
            format!("model.active = {active:?} is none of {}", listed(&names)),
            "the name of a model that is here",
            format!("{add}; or take model.active out of the configuration"),
        );
    }
    Finding::ok(match active {
        Some(active) => format!("{active} of {}", listed(&names)),
        None => listed(&names),
    })
}

fn listed(names: &[&str]) -> String {
    match names.len() {
        n if n > NAMES_MAX => format!(
            "{} and {} more",
            names[..NAMES_MAX].join(", "),
            n - NAMES_MAX
        ),
        _ => names.join(", "),
    }
}

pub(super) fn intact(facts: &Facts) -> Finding {
    let models = match &facts.models {
        Ok(models) if !models.is_empty() => models,
        _ => return Finding::skipped("no models: see models.present"),
    };
    let broken: Vec<String> = models.iter().filter_map(broken).collect();
    if !broken.is_empty() {
        return Finding::fail(
            broken.join("; "),
            "files that pass the preflight and are what they were when they were added",
            "`orinoco models add FILE --name NAME --replace` with a whole copy; if it happens again, test the disk",
        );
    }
    let count = |state: &RecordState| models.iter().filter(|model| model.record == *state).count();
    let parts = [
        (
            count(&RecordState::Digest),
            "with the SHA-256 that was noted",
        ),
        (
            count(&RecordState::Length),
            "with the length that was noted (--digests reads them whole)",
        ),
        (
            count(&RecordState::None),
            "without a record, as they were not added by `orinoco models add`",
        ),
    ];
    let parts = parts.into_iter().filter(|(n, _)| *n > 0);
    let parts: Vec<String> = parts.map(|(n, what)| format!("{n} {what}")).collect();
    Finding::ok(format!(
        "{} pass the preflight: {}",
        models.len(),
        parts.join(", ")
    ))
}

fn broken(model: &ModelFile) -> Option<String> {
    if let Err(error) = &model.header {
        return Some(format!("{}: {error}", model.path));
    }
    match &model.record {
        RecordState::Differs(how) => Some(format!("{}: {how}", model.path)),
        _ => None,
    }
}
