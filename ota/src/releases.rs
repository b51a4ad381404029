//! Changes of the catalogue: recalls, waves, what a device may go back to, and the policy.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use orinoco::ota::catalog::{Catalog, Line, Release, ReleaseState};
use orinoco::ota::policy::{POLICY_BYTES_MAX, Policy};
use orinoco::ota::waves::Wave;
use orinoco::ota::{GroupName, LineName};

use crate::disk;
use crate::repository::Repository;

/// Recalls a release: devices leave it at their next check. `fallback` is a lower release that they may take
/// instead. Staged until the next signature.
///
/// # Errors
/// There is no such release, or nothing is left that devices could take.
pub fn withdraw(
    repository: &Repository,
    name: &LineName,
    release_seq: u64,
    fallback: Option<u64>,
) -> Result<Option<u64>> {
    let mut catalog = repository.catalog()?;
    release(&mut catalog, name, release_seq)?.state = ReleaseState::Withdrawn;
    let line = line(&mut catalog, name)?;
    if let Some(seq) = fallback {
        let there = line.release(seq).map(|release| release.state);
        ensure!(
            there == Some(ReleaseState::Active),
            "release {seq} of {name} is not there or withdrawn itself, so devices cannot go back to it"
        );
        ensure!(
            seq >= line.min_seq,
            "release {seq} of {name} is below min_seq {}, to which no device goes back",
            line.min_seq
        );
        if !line.allow_downgrade_to.contains(&seq) {
            line.allow_downgrade_to.push(seq);
        }
    }
    let best = line.releases.iter().rev().find(|release| {
        release.state == ReleaseState::Active && line.allows(Some(release_seq), release.release_seq)
    });
    let best = best.map(|release| release.release_seq);
    repository.stage_catalog(&catalog)?;
    Ok(best)
}

/// Sets when devices take a release of themselves. Staged until the next signature.
///
/// # Errors
/// There is no such release, or the waves do not follow each other.
pub fn set_waves(
    repository: &Repository,
    name: &LineName,
    release_seq: u64,
    waves: Vec<Wave>,
    groups: Option<Vec<GroupName>>,
) -> Result<()> {
    let mut catalog = repository.catalog()?;
    let release = release(&mut catalog, name, release_seq)?;
    release.waves = waves;
    if let Some(groups) = groups {
        release.groups = groups;
    }
    repository.stage_catalog(&catalog)
}

/// Sets the number below which no device goes, whoever asks. Staged until the next signature.
///
/// # Errors
/// There is no such line, or the number would fall.
pub fn set_min_seq(repository: &Repository, name: &LineName, min_seq: u64) -> Result<()> {
    let mut catalog = repository.catalog()?;
    let line = line(&mut catalog, name)?;
    ensure!(
        min_seq >= line.min_seq,
        "min_seq of {name} is {}; it does not fall",
        line.min_seq
    );
    line.min_seq = min_seq;
    line.allow_downgrade_to.retain(|seq| *seq >= min_seq);
    repository.stage_catalog(&catalog)
}

/// Stages settings for the fleet.
///
/// # Errors
/// A section may not be set, or the number does not rise.
pub fn set_policy(repository: &Repository, path: &Path) -> Result<u64> {
    let bytes = disk::read_bounded(path, POLICY_BYTES_MAX as u64)?;
    let policy = Policy::parse(&bytes).with_context(|| format!("read {}", path.display()))?;
    if let Some(before) = published_policy(repository)? {
        ensure!(
            policy.policy_seq > before.policy_seq,
            "policy_seq: found {}, expected more than {}, which is published",
            policy.policy_seq,
            before.policy_seq
        );
    }
    disk::write_whole(&repository.staged_dir().join("policy.toml"), &bytes, 0o644)?;
    Ok(policy.policy_seq)
}

fn published_policy(repository: &Repository) -> Result<Option<Policy>> {
    let name = orinoco::ota::TargetName::policy();
    let Some(file) = repository.known_targets()?.remove(&name) else {
        return Ok(None);
    };
    let path = repository.target_path(&name, &file.sha256);
    let bytes = disk::read_bounded(&path, POLICY_BYTES_MAX as u64)?;
    let policy = Policy::parse(&bytes).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(policy))
}

/// A wave as people write it: `5%`, `5%@24h`, `100%@7d`.
///
/// # Errors
/// It is written in another way.
pub fn parse_wave(text: &str) -> Result<Wave> {
    let parse = || -> Option<Wave> {
        let (percent, after) = match text.split_once('@') {
            Some((percent, after)) => (percent, after),
            None => (text, "0s"),
        };
        let percent = percent.strip_suffix('%')?.parse().ok()?;
        let unit = match after.chars().last()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        let count: u64 = after[..after.len() - 1].parse().ok()?;
        Some(Wave {
            start_after_s: count.checked_mul(unit)?,
            percent,
        })
    };
    parse().with_context(|| {
        format!("wave {text:?}, expected a share and when it begins: 5%, 25%@12h or 100%@7d")
    })
}

fn line<'a>(catalog: &'a mut Catalog, name: &LineName) -> Result<&'a mut Line> {
    let known: Vec<String> = catalog.lines.iter().map(|l| l.line.to_string()).collect();
    let line = catalog.lines.iter_mut().find(|line| line.line == *name);
    line.with_context(|| format!("no line {name}, there are: {}", known.join(", ")))
}

fn release<'a>(
    catalog: &'a mut Catalog,
    name: &LineName,
    release_seq: u64,
) -> Result<&'a mut Release> {
    let line = line(catalog, name)?;
    let known: Vec<String> = line
        .releases
        .iter()
        .map(|release| release.release_seq.to_string())
        .collect();
    let release = line
        .releases
        .iter_mut()
        .find(|release| release.release_seq == release_seq);
    release.with_context(|| {
        format!(
            "no release {release_seq} of {name}, there are: {}",
            known.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_are_a_share_and_a_time() {
        let wave = |text| parse_wave(text).map(|w| (w.percent, w.start_after_s)).ok();
        assert_eq!(wave("5%"), Some((5, 0)));
        assert_eq!(wave("25%@12h"), Some((25, 43_200)));
        assert_eq!(wave("100%@7d"), Some((100, 604_800)));
        for wrong in [
            "5",
            "%",
            "5%@",
            "5%@h",
            "5%@1w",
            "-1%",
            "300%",
            "5%@99999999999999999999d",
            "5%@é",
        ] {
            assert_eq!(wave(wrong), None, "{wrong}");
        }
    }
}
