//! What begins without an order: a stick that was brought, a recall, a release whose wave has come.

use tracing::{info, warn};

use super::{Deploy, World};
use crate::ota::catalog::{Catalog, Line, ReleaseState};
use crate::ota::name::LineName;
use crate::ota::reason::Reason;
use crate::ota::state::{DeploymentId, Origin, Want, When};
use crate::ota::stick::Request;
use crate::ota::waves;

impl<W: World> Deploy<W> {
    /// Somebody stands at the device and says: take what lies there. The best release of one line; the line that
    /// serves comes first.
    pub(super) async fn apply(&mut self, request: Request) {
        info!(id = request.id, path = %request.path.display(), "a stick, or a folder, was brought");
        self.world.use_stick(Some(&request.path));
        let record = &self.book.record;
        let nothing = LineName::new("stick").expect("it has the characters of a line");
        let first = record.first.clone().unwrap_or(nothing);
        let Ok(deployment) = DeploymentId::new(&request.id) else {
            warn!(
                id = request.id,
                "a request without the name of a deployment"
            );
            return;
        };
        let mut want = Want {
            deployment,
            release_seq: None,
            force: true,
            ..want("stick", &first, 0, Origin::Stick)
        };
        // Where it cannot be read, the deployment says so: it looks again.
        if let Ok(catalog) = self.world.check(Some(&want)).await {
            let active = |line: &LineName| {
                let installed = self.book.record.lines.get(line);
                installed.map(|installed| installed.active.release_seq)
            };
            let is_news = |line: &&Line| {
                let active = active(&line.line);
                let best = line.best(&self.policy.group, active);
                best.is_some_and(|best| active != Some(best.release_seq))
            };
            let news = || catalog.lines.iter().filter(is_news);
            let line = news()
                .find(|line| line.line == first)
                .or_else(|| news().next());
            let line = line.or_else(|| catalog.lines.first());
            if let Some(line) = line {
                want.line = line.line.clone();
            }
        }
        self.book.record.want(want);
        self.save().await;
    }

    /// Reads the catalogue without being asked: a recall, or a release whose wave has come, begins.
    pub(super) async fn look(&mut self) {
        let catalog = match self.world.check(None).await {
            Ok(catalog) => catalog,
            Err(no) => {
                info!(reason = %no.reason, no.detail, "no look at the sources");
                self.failed_check = Some(no);
                return;
            }
        };
        self.failed_check = None;
        self.hear_policy().await;
        let want = self.recall(&catalog).or_else(|| self.turn(&catalog));
        self.catalog = Some(catalog);
        match want {
            Some(want) => {
                self.book.record.want(want);
                self.save().await;
            }
            None => {
                // When releases were seen first.
                self.save().await;
            }
        }
    }

    /// A release in service that was recalled is left: for the best that may be taken, else for the one before.
    fn recall(&mut self, catalog: &Catalog) -> Option<Want> {
        let record = &mut self.book.record;
        for (line, installed) in &record.lines {
            let seq = installed.active.release_seq;
            let Some(known) = catalog.line(line) else {
                continue;
            };
            let state = known.release(seq).map(|release| release.state);
            if state != Some(ReleaseState::Withdrawn) && seq >= known.min_seq {
                continue;
            }
            let best = known.best(&self.policy.group, Some(seq));
            let best = best.filter(|best| !record.has_failed(line, best.release_seq));
            if let Some(best) = best {
                let id = format!("recall-{line}-{seq}-{}", best.release_seq);
                return Some(want(&id, line, best.release_seq, Origin::Recall));
            }
            let is_fine = |seq: u64| {
                let state = known.release(seq).map(|release| release.state);
                state == Some(ReleaseState::Active) && seq >= known.min_seq
            };
            let previous = installed.previous.as_ref();
            if previous.is_some_and(|previous| is_fine(previous.release_seq)) {
                let line = line.clone();
                record.take_back(&line, Reason::Withdrawn, "the release was recalled");
                return None;
            }
            warn!(%line, seq, "the release in service was recalled, and there is none to go to");
        }
        None
    }

    /// A release whose turn has come for this device.
    fn turn(&mut self, catalog: &Catalog) -> Option<Want> {
        let now_s = self.world.now_s();
        let record = &mut self.book.record;
        let lines: Vec<_> = record
            .lines
            .iter()
            .map(|(line, i)| (line.clone(), i.active.release_seq))
            .collect();
        for (name, active) in lines {
            let line = catalog.line(&name)?;
            let Some(best) = line.best(&self.policy.group, Some(active)) else {
                continue;
            };
            let seq = best.release_seq;
            if seq <= active || best.waves.is_empty() || record.has_failed(&name, seq) {
                continue;
            }
            let seen_s = record.seen_for(&name, seq, now_s);
            let place = waves::place(&self.policy.device, &name, seq);
            if waves::starts_after_s(&best.waves, place).is_some_and(|after_s| seen_s >= after_s) {
                return Some(want(
                    &format!("wave-{name}-{seq}"),
                    &name,
                    seq,
                    Origin::Wave,
                ));
            }
        }
        None
    }
}

/// A release that is wanted without being asked for by a person.
pub(super) fn want(id: &str, line: &LineName, release_seq: u64, origin: Origin) -> Want {
    let text: String = id.chars().take(64).collect();
    Want {
        deployment: DeploymentId::new(&text).expect("lines have the characters of ids"),
        line: line.clone(),
        release_seq: Some(release_seq),
        when: When::Asap,
        window: None,
        max_kbit_s: 0,
        force: false,
        origin,
    }
}
