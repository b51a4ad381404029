//! What a device is doing about updates, and what may come next: pure, so that a power cut at every step and
//! every order of commands are tests of milliseconds.
//!
//! ```text
//! idle → checking → planned → downloading ⇄ paused → verifying → staged → waiting
//!                                                                   │  ▲     │
//!                                                                   ▼  └─────┤ too hot, too little memory
//!        committed ◀── probing ◀── switching ◀──────────────────────┴────────┘
//!                          └──────────┴─────▶ rolling_back → rolled_back
//!        any → failed
//! ```
//!
//! Each phase is on disk before anything is done in it. **The active release changes in one write**, the one
//! that says `committed` or `rolled_back`, and only after the probe: whatever is cut before that starts with the
//! old model. Until then the old release is simply never touched.
//!
//! After a restart ([`Record::restarted`]): a check, a download or a verification goes on; `switching` and
//! `probing` count as a failed attempt, since the release may be what took the board down, and the second such
//! attempt rolls back; `rolling_back` is done again, for which neither network nor download are needed.
//! A deployment that goes round without getting further is ended by a counter. A release in service that has
//! the daemon start again and again is taken back by another ([`Record::started`]).

mod installed;
mod policies;
#[cfg(test)]
mod tests;
mod want;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::name::{Digest, LineName};
use super::reason::Reason;

pub use installed::{Installed, Probation, Release};
pub use policies::{Accepted, Offered, Policies, Refused};
pub use want::{DeploymentId, Origin, Want, When, Window};

/// Of the meaning of the state file.
pub const SCHEMA: u32 = 1;
/// Attempts to put a release into service before it is given up.
pub const ATTEMPTS_MAX: u32 = 2;
/// Writes of the state without getting further before a deployment is given up (after Mender's limit).
pub const SAVES_MAX: u32 = 28;
/// Starts of the daemon in a release's first minutes before it is taken back.
pub const STARTS_MAX: u32 = 3;
/// Deaths of the worker in a release's first minutes before it is taken back: one more than a request has that
/// is known as poison, and one more.
pub const DEATHS_MAX: u32 = 3;
/// Releases that are remembered as having failed here.
const FAILED_MAX: usize = 32;
/// Releases whose first sight is remembered.
const SEEN_MAX: usize = 256;

/// What a deployment is doing.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Metadata and catalogue are read.
    Checking,
    /// The release is known and suits the board.
    Planned,
    /// Its files are fetched.
    Downloading,
    /// An operator holds the download.
    Paused,
    /// Its files are read again, whole, and judged.
    Verifying,
    /// It is here and right; nothing has changed yet.
    Staged,
    /// For its window, for approval, or for a cooler moment.
    Waiting,
    /// It is being loaded.
    Switching,
    /// It shows that it works.
    Probing,
    /// It is in service.
    Committed,
    /// The release before it is put back.
    RollingBack,
    /// The release before it is in service again.
    RolledBack,
    /// Nothing has changed.
    Failed,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Checking,
        Self::Planned,
        Self::Downloading,
        Self::Paused,
        Self::Verifying,
        Self::Staged,
        Self::Waiting,
        Self::Switching,
        Self::Probing,
        Self::Committed,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
    ];

    /// Whether nothing follows.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Committed | Self::RolledBack | Self::Failed)
    }

    /// Whether a command may still end it: nothing has changed for those who ask the model.
    pub const fn is_open(self) -> bool {
        matches!(
            self,
            Self::Checking
                | Self::Planned
                | Self::Downloading
                | Self::Paused
                | Self::Verifying
                | Self::Staged
                | Self::Waiting
        )
    }

    /// Whether `next` may follow.
    pub const fn may_become(self, next: Self) -> bool {
        use Phase::{
            Checking, Committed, Downloading, Failed, Paused, Planned, Probing, RolledBack,
            RollingBack, Staged, Switching, Verifying, Waiting,
        };
        match (self, next) {
            (Committed | RolledBack | Failed, _) => false,
            (_, Failed) => true,
            // What is in service already, and a policy, need no more.
            (Checking, Planned | Committed)
            | (Planned, Downloading | Verifying)
            | (Downloading, Paused | Verifying)
            | (Paused, Downloading)
            // A file that rotted since it was fetched is fetched again.
            | (Verifying, Staged | Downloading)
            | (Staged, Waiting | Switching | Verifying)
            | (Waiting, Staged | Switching)
            | (Switching, Probing | Staged | Waiting | RollingBack)
            | (Probing, Committed | Staged | Waiting | RollingBack)
            | (RollingBack, RolledBack) => true,
            _ => false,
        }
    }
}

/// One update under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// What was asked for.
    pub want: Want,
    /// Where it is.
    pub phase: Phase,
    /// The release, once the catalogue has said which.
    pub release: Option<Release>,
    /// Bytes to have, once known.
    pub bytes_total: u64,
    /// Attempts to put it into service.
    pub attempt: u32,
    /// An operator said yes, where one has to.
    pub is_approved: bool,
    /// Why it goes back.
    pub reason: Option<Reason>,
    /// The same for people.
    pub detail: String,
    /// Writes since it last got further.
    pub n_saves: u32,
    /// The furthest that it got, and with how many bytes.
    pub furthest: (Phase, u64),
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What was asked for.
    pub want: Want,
    /// [`Phase::Committed`], [`Phase::RolledBack`] or [`Phase::Failed`].
    pub phase: Phase,
    /// The release, if it came so far.
    pub release: Option<Release>,
    /// Why, unless it is in service.
    pub reason: Option<Reason>,
    /// The same for people.
    pub detail: String,
}

/// All that is kept: one small file, replaced whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What is on the device, by line.
    pub lines: BTreeMap<LineName, Installed>,
    /// The line that serves where nobody says otherwise: the one deployed last.
    pub first: Option<LineName>,
    /// Under way.
    pub deployment: Option<Deployment>,
    /// To come after it.
    pub queued: Option<Want>,
    /// The one before.
    pub last: Option<Outcome>,
    /// Highest number of the fleet's wish that was heard.
    pub desired_seq: u64,
    /// Releases that did not work here; they are not taken again without a command.
    pub failed: Vec<(LineName, u64)>,
    /// When a release was seen first, in seconds of the device's trusted time.
    pub seen: Vec<(LineName, u64, u64)>,
    /// The release that was put into service last has yet to show that it stays up.
    pub probation: Option<Probation>,
    /// The fleet's settings.
    #[serde(default)]
    pub policies: Policies,
    /// When all files were read again, in seconds of the device's trusted time.
    #[serde(default)]
    pub scrubbed_s: u64,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            lines: BTreeMap::new(),
            first: None,
            deployment: None,
            queued: None,
            last: None,
            desired_seq: 0,
            failed: Vec::new(),
            seen: Vec::new(),
            probation: None,
            policies: Policies::default(),
            scrubbed_s: 0,
        }
    }
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is under way; the one before it was called off.
    Begun,
    /// It is, or was, this very deployment: nothing to do but to tell where it is.
    Same,
    /// It comes when the one under way has ended.
    Queued,
    /// Older than what was heard already.
    Old,
}

impl Record {
    /// A command, of whoever may give one. A new one takes the place of one that has changed nothing yet.
    pub fn want(&mut self, want: Want) -> Heard {
        let is_same = |other: &Want| other.deployment == want.deployment;
        let known = [
            self.deployment.as_ref().map(|now| &now.want),
            self.queued.as_ref(),
            self.last.as_ref().map(|last| &last.want),
        ];
        if known.into_iter().flatten().any(is_same) {
            return Heard::Same;
        }
        if let Origin::Fleet { desired_seq } = want.origin {
            if desired_seq <= self.desired_seq {
                return Heard::Old;
            }
            self.desired_seq = desired_seq;
        }
        match &self.deployment {
            Some(now) if !now.phase.is_open() => {
                self.queued = Some(want);
                Heard::Queued
            }
            _ => {
                self.queued = None;
                self.fail(Reason::Superseded, &format!("by {}", want.deployment));
                self.begin(want);
                Heard::Begun
            }
        }
    }

    fn begin(&mut self, want: Want) {
        let phase = match want.origin {
            Origin::Rollback { .. } => Phase::RollingBack,
            _ => Phase::Checking,
        };
        let reason = match want.origin {
            Origin::Rollback { reason } => reason,
            _ => None,
        };
        self.deployment = Some(Deployment {
            want,
            phase,
            release: None,
            bytes_total: 0,
            attempt: 0,
            is_approved: false,
            reason,
            detail: String::new(),
            n_saves: 0,
            furthest: (phase, 0),
        });
    }

    /// The phase that is told: of the deployment under way, else of the last one; for the names of steps.
    pub(super) fn told_phase(&self) -> Phase {
        let last = self.last.as_ref().map(|last| last.phase);
        self.phase().or(last).unwrap_or(Phase::Committed)
    }

    /// The phase of the deployment under way.
    pub fn phase(&self) -> Option<Phase> {
        self.deployment.as_ref().map(|now| now.phase)
    }

    /// Goes on to `next`. False, and no change, where the machine does not allow it.
    pub fn enter(&mut self, next: Phase) -> bool {
        let Some(now) = &mut self.deployment else {
            return false;
        };
        if !now.phase.may_become(next) || next.is_over() {
            return false;
        }
        now.phase = next;
        if next == Phase::Switching {
            now.attempt += 1;
        }
        self.give_way();
        true
    }

    /// What is queued takes the place of what can be superseded again.
    fn give_way(&mut self) {
        if let (Some(next), true) = (&self.queued, self.phase().is_some_and(Phase::is_open)) {
            let detail = format!("by {}", next.deployment);
            self.fail(Reason::Superseded, &detail);
        }
    }

    /// The attempt under way does not count: the release had nothing to do with its end.
    pub fn uncount(&mut self) {
        if let Some(now) = &mut self.deployment {
            now.attempt = now.attempt.saturating_sub(1);
        }
    }

    /// Ends the deployment without a change. Nothing, where none is under way.
    pub fn fail(&mut self, reason: Reason, detail: &str) {
        let Some(mut now) = self.deployment.take() else {
            return;
        };
        self.blame(&now.want.line.clone(), now.release.as_ref(), reason);
        let is_rollback = matches!(now.want.origin, Origin::Rollback { .. });
        let phase = match now.phase {
            // What was to be put back was never gone.
            Phase::RollingBack if !is_rollback => Phase::RolledBack,
            _ => Phase::Failed,
        };
        detail.clone_into(&mut now.detail);
        self.over(now, phase, Some(reason));
    }

    /// The release did not show that it works: the one before it is to be put back.
    pub fn give_up(&mut self, reason: Reason, detail: &str) {
        if let Some(now) = &mut self.deployment
            && now.phase.may_become(Phase::RollingBack)
        {
            now.phase = Phase::RollingBack;
            now.reason = Some(reason);
            detail.clone_into(&mut now.detail);
        }
    }

    /// The release works: from now on it is the one that serves. `serves`: its line is the one that serves where
    /// nobody says otherwise. Nothing, where none is being put into service.
    pub fn commit(&mut self, serves: bool) {
        let Some(now) = self.deployment.take_if(|now| now.phase == Phase::Probing) else {
            return;
        };
        let line = now.want.line.clone();
        if let Some(release) = &now.release {
            let before = self.lines.remove(&line);
            let previous = match before {
                // The same release again: what was kept stays kept.
                Some(before) if before.active == *release => before.previous,
                before => before.map(|before| before.active),
            };
            self.lines.insert(
                line.clone(),
                Installed {
                    active: release.clone(),
                    previous,
                },
            );
            self.probation = Some(Probation {
                line: line.clone(),
                n_starts: 0,
                n_deaths: 0,
            });
            self.failed
                .retain(|(failed, seq)| (failed, *seq) != (&line, release.release_seq));
            if serves {
                self.first = Some(line);
            }
        }
        self.over(now, Phase::Committed, None);
    }

    /// What was asked for is so already, or needs no probe.
    pub fn done(&mut self) {
        if let Some(now) = self.deployment.take_if(|now| now.phase == Phase::Checking) {
            self.over(now, Phase::Committed, None);
        }
    }

    /// The release before is in service again. Where the one under way never was active, that is so already;
    /// else the previous one becomes the active one. False, and the active one stays, where there is none.
    pub fn rolled_back(&mut self) -> bool {
        let Some(mut now) = self
            .deployment
            .take_if(|now| now.phase == Phase::RollingBack)
        else {
            return false;
        };
        let line = now.want.line.clone();
        if let Origin::Rollback { .. } = now.want.origin {
            let installed = self.lines.get_mut(&line);
            let Some((installed, previous)) =
                installed.and_then(|line| line.previous.take().map(|previous| (line, previous)))
            else {
                self.deployment = Some(now);
                return false;
            };
            now.release = Some(std::mem::replace(&mut installed.active, previous));
            self.probation = None;
        }
        let reason = now.reason.unwrap_or(Reason::Cancelled);
        self.blame(&line, now.release.as_ref(), reason);
        self.over(now, Phase::RolledBack, Some(reason));
        true
    }

    fn blame(&mut self, line: &LineName, release: Option<&Release>, reason: Reason) {
        if let Some(release) = release.filter(|_| blames_release(reason)) {
            let failed = (line.clone(), release.release_seq);
            self.failed.retain(|known| *known != failed);
            self.failed.push(failed);
            let n_over = self.failed.len().saturating_sub(FAILED_MAX);
            self.failed.drain(..n_over);
        }
    }

    fn over(&mut self, now: Deployment, phase: Phase, reason: Option<Reason>) {
        self.last = Some(Outcome {
            want: now.want,
            phase,
            release: now.release,
            reason,
            detail: now.detail,
        });
        if let Some(next) = self.queued.take() {
            self.begin(next);
        }
    }

    /// Calls off what is under way or queued. False where nothing can be called off any more.
    pub fn cancel(&mut self) -> bool {
        let had_queued = self.queued.take().is_some();
        let is_open = self.phase().is_some_and(Phase::is_open);
        if is_open {
            self.fail(Reason::Cancelled, "by an operator");
        }
        is_open || had_queued
    }

    /// Before each write: counts it, and ends a deployment that goes round in circles. `bytes`: what is here of
    /// its files.
    pub fn saving(&mut self, bytes: u64) {
        let Some(now) = &mut self.deployment else {
            return;
        };
        let here = (now.phase, bytes);
        // Rolling back is not further than probing: it is another way.
        if now.phase != Phase::RollingBack && here > now.furthest {
            now.furthest = here;
            now.n_saves = 0;
        }
        now.n_saves += 1;
        if now.n_saves <= SAVES_MAX {
            return;
        }
        let detail = format!("{SAVES_MAX} writes of the state without getting further");
        match now.phase {
            // What is active is right; only the way back had not ended.
            Phase::RollingBack if !matches!(now.want.origin, Origin::Rollback { .. }) => {
                now.reason = Some(Reason::StateLoop);
                now.detail = detail;
                self.rolled_back();
            }
            _ => self.fail(Reason::StateLoop, &detail),
        }
    }

    /// The daemon starts again: where does the deployment go on?
    pub fn restarted(&mut self) {
        let Some(now) = &mut self.deployment else {
            return;
        };
        match now.phase {
            Phase::Switching | Phase::Probing if now.attempt >= ATTEMPTS_MAX => {
                let detail = format!(
                    "the daemon ended {} times while the release was put into service",
                    now.attempt
                );
                self.give_up(Reason::ProbeCrash, &detail);
            }
            Phase::Switching | Phase::Probing => {
                now.phase = Phase::Staged;
                self.give_way();
            }
            _ => {}
        }
    }

    /// Counts a start of the daemon with a release on probation; takes the release back after too many.
    pub fn started(&mut self) {
        self.policies.started();
        let Some(probation) = &mut self.probation else {
            return;
        };
        probation.n_starts += 1;
        let (line, n_starts) = (probation.line.clone(), probation.n_starts);
        if n_starts <= STARTS_MAX {
            return;
        }
        self.probation = None;
        let detail = format!("{n_starts} starts of the daemon in the release's first minutes");
        self.take_back(&line, Reason::CrashLoop, &detail);
    }

    /// A worker with this model died by itself. Takes the release back when that happens again and again in its
    /// first minutes; a single request that kills whatever model it meets is not enough for that.
    pub fn worker_died(&mut self, model: &str) {
        let Some(probation) = &mut self.probation else {
            return;
        };
        let installed = self.lines.get(&probation.line);
        if installed.is_none_or(|installed| installed.active.id.as_str() != model) {
            return;
        }
        probation.n_deaths += 1;
        let (line, n_deaths) = (probation.line.clone(), probation.n_deaths);
        if n_deaths <= DEATHS_MAX {
            return;
        }
        self.probation = None;
        let detail = format!("{n_deaths} deaths of the worker in the release's first minutes");
        self.take_back(&line, Reason::CrashLoop, &detail);
    }

    /// The daemon ends in order, or the release has been up for long enough.
    pub fn stayed_up(&mut self, for_good: bool) {
        self.policies.stayed_up(for_good);
        match for_good {
            true => self.probation = None,
            false => {
                if let Some(probation) = &mut self.probation {
                    probation.n_starts = probation.n_starts.saturating_sub(1);
                }
            }
        }
    }

    /// The active release of a line is to go, without being asked for by anybody.
    pub fn take_back(&mut self, line: &LineName, reason: Reason, detail: &str) {
        if self.phase().is_some_and(Phase::is_open) {
            self.fail(Reason::Superseded, "the release in service is taken back");
        }
        if self.deployment.is_some() {
            return; // Being put back already, or about to be replaced.
        }
        let Some(installed) = self.lines.get(line) else {
            return;
        };
        let id = format!("{}-{reason}", installed.active.release_seq);
        self.begin(Want::rollback(&id, line.clone(), Some(reason)));
        if let Some(now) = &mut self.deployment {
            detail.clone_into(&mut now.detail);
        }
    }

    /// A file was found damaged: the release that it belongs to is fetched again. It begins with what is known of
    /// it, and needs no catalogue.
    pub fn damaged(&mut self, digest: &Digest) {
        let found = self.lines.iter().find_map(|(line, installed)| {
            let both = [Some(&installed.active), installed.previous.as_ref()];
            let mut both = both.into_iter().flatten();
            let release = both.find(|release| release.weights == *digest)?;
            Some((line.clone(), release.clone()))
        });
        let Some((line, release)) = found else {
            return; // It belonged to nothing that is in use.
        };
        let id: String = format!("repair-{line}-{}-{}", release.release_seq, self.scrubbed_s);
        let Ok(deployment) = DeploymentId::new(&id.chars().take(64).collect::<String>()) else {
            return;
        };
        let mut want = Want::rollback("", line, None);
        (want.deployment, want.origin) = (deployment, Origin::Repair);
        want.release_seq = Some(release.release_seq);
        if self.want(want) == Heard::Begun
            && let Some(now) = &mut self.deployment
        {
            now.phase = Phase::Planned;
            now.furthest = (Phase::Planned, 0);
            now.bytes_total = release.weights_bytes;
            now.reason = Some(Reason::FileDamaged);
            now.release = Some(release);
        }
    }

    /// A repair of a release that does not serve is over when its file is whole. False for every other deployment.
    pub fn mended(&mut self) -> bool {
        let is_kept = self.deployment.as_ref().is_some_and(|now| {
            let installed = self.lines.get(&now.want.line);
            let previous = installed.and_then(|installed| installed.previous.as_ref());
            now.want.origin == Origin::Repair && now.release.as_ref() == previous
        });
        match self.deployment.take_if(|_| is_kept) {
            Some(now) => {
                self.over(now, Phase::Committed, None);
                true
            }
            None => false,
        }
    }

    /// Digests of all files that must stay: of what is active, of what it can go back to, and of what is under
    /// way.
    pub fn kept(&self) -> BTreeSet<Digest> {
        let installed = self.lines.values();
        let installed = installed.flat_map(|line| [Some(&line.active), line.previous.as_ref()]);
        let under_way = self
            .deployment
            .as_ref()
            .and_then(|now| now.release.as_ref());
        let releases = installed.chain([under_way]).flatten();
        let policies = self.policies.kept();
        releases.flat_map(Release::files).chain(policies).collect()
    }

    /// Seconds since a release was seen first; notes the time where that is now.
    pub fn seen_for(&mut self, line: &LineName, release_seq: u64, now_s: u64) -> u64 {
        let is_it = |(seen, seq, _): &&(LineName, u64, u64)| (seen, *seq) == (line, release_seq);
        if let Some((.., at_s)) = self.seen.iter().find(is_it) {
            return now_s.saturating_sub(*at_s);
        }
        self.seen.push((line.clone(), release_seq, now_s));
        let n_over = self.seen.len().saturating_sub(SEEN_MAX);
        self.seen.drain(..n_over);
        0
    }

    /// Whether a release did not work here.
    pub fn has_failed(&self, line: &LineName, release_seq: u64) -> bool {
        let is_it = |(failed, seq): &(LineName, u64)| (failed, *seq) == (line, release_seq);
        self.failed.iter().any(is_it)
    }

    /// Whether a rollback of this line is possible.
    pub fn previous(&self, line: &LineName) -> Option<&Release> {
        self.lines.get(line)?.previous.as_ref()
    }
}

/// Whether the release itself is to blame, so that it must not be tried again and again.
fn blames_release(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::DigestMismatch
            | R::GgufRejected
            | R::ProbeLoad
            | R::ProbeGolden
            | R::ProbeSpeed
            | R::ProbeMemory
            | R::ProbeCrash
            | R::ProbeTimeout
            | R::ProbeTemplate
            | R::CrashLoop
            | R::StateLoop
            | R::Withdrawn
    )
}
