//! A release on trial: offered to the governor, which has it loaded beside or after what serves, and judged by what
//! it shows.

use std::time::Duration;

use tokio::sync::oneshot;

use super::kept::{draft, manifest, served};
use super::{Site, Tried};
use crate::governor::{Offer, Update, Verdict};
use crate::models::release::Release as Served;
use crate::ota::crash;
use crate::ota::name::LineName;
use crate::ota::probe::Probe;
use crate::ota::state::Release;
use crate::worker::trial::TrialEnd;

/// What a load and a probe take, where nothing is known: for the ETA that streams are told.
const TRIAL_TAKES: Duration = Duration::from_secs(20);

/// What the governor has of us, and we of it.
pub(super) struct OnTrial {
    probe: Probe,
    verdict: oneshot::Receiver<Verdict>,
    settled: Option<oneshot::Sender<bool>>,
}

/// What is heard first of a release on trial.
#[derive(Debug, PartialEq)]
enum Early {
    /// It is loaded, and its verdict is still to come.
    Loaded,
    /// It never came so far; `None`: the governor has ended.
    Judged(Option<Verdict>),
}

/// A release that is loaded and judged between two looks was loaded first: each step is gone through, and told.
async fn loaded_or_judged(
    loaded: oneshot::Receiver<()>,
    judged: &mut oneshot::Receiver<Verdict>,
) -> Early {
    tokio::select! {
        biased;
        Ok(()) = loaded => Early::Loaded,
        verdict = judged => Early::Judged(verdict.ok()),
    }
}

impl Site {
    /// Has it tried; `None` as soon as it is loaded.
    pub(super) async fn offer(&mut self, line: &LineName, release: &Release) -> Option<Tried> {
        let manifest = match manifest(&self.config.dir, release) {
            Ok(manifest) => manifest,
            Err(no) => return Some(Tried::No(no)),
        };
        // Judged again: Orinoco, the system or the power mode may be others than when it was planned.
        if let Err(no) = self.gate(&manifest) {
            return Some(Tried::No(no));
        }
        let probe = match Probe::new(&manifest.health, &self.board, &self.mode()) {
            Ok(probe) => probe,
            Err(no) => return Some(Tried::No(no)),
        };
        let (trying, loaded) = oneshot::channel();
        let (verdict, mut judged) = oneshot::channel();
        let (settled, is_settled) = oneshot::channel();
        let offer = Offer {
            release: Served {
                draft: manifest
                    .draft()
                    .and_then(|(of, min_seq)| draft(&self.releases.borrow(), of.as_str(), min_seq)),
                ..served(&self.blobs, line, release, &manifest, true)
            },
            trial: probe.trial(),
            takes: match manifest.health.load_ms_max {
                0 => TRIAL_TAKES,
                ms => Duration::from_millis(ms).min(TRIAL_TAKES),
            },
            needs_cool: probe.needs_cool(),
            trying,
            verdict,
            settled: is_settled,
        };
        if self
            .updates
            .send(Update::Offer(Box::new(offer)))
            .await
            .is_err()
        {
            return Some(Tried::NotNow("the daemon ends".into()));
        }
        crash::point("trial:offered");
        let early = loaded_or_judged(loaded, &mut judged).await;
        self.trial = Some(OnTrial {
            probe,
            verdict: judged,
            settled: Some(settled),
        });
        match early {
            Early::Loaded => {
                crash::point("trial:loaded");
                None
            }
            Early::Judged(verdict) => Some(self.tried(verdict)),
        }
    }

    /// How that ended.
    pub(super) async fn judged(&mut self) -> Tried {
        let verdict = match &mut self.trial {
            Some(trial) => (&mut trial.verdict).await.ok(),
            None => None,
        };
        crash::point("trial:judged");
        self.tried(verdict)
    }

    /// Whether what passed is written down.
    pub(super) fn settled(&mut self, is_written: bool) {
        if let Some(settled) = self.trial.take().and_then(|trial| trial.settled) {
            // The governor's end is the daemon's.
            let _ = settled.send(is_written);
            crash::point("trial:settled");
        }
    }

    fn tried(&self, verdict: Option<Verdict>) -> Tried {
        let (end, serves) = match verdict {
            None => return Tried::NotNow("the daemon ends".into()),
            Some(Verdict::NotNow(why)) => return Tried::NotNow(why),
            Some(Verdict::Tried { end, serves }) => (end, serves),
        };
        let Some(trial) = &self.trial else {
            return Tried::NotNow("nothing was on trial".into());
        };
        match (trial.probe.verdict(&end), &end) {
            (None, _) => Tried::NotNow("something else had to be loaded".into()),
            (Some(Err(no)), _) => Tried::No(no),
            (Some(Ok(())), TrialEnd::Passed(shown)) => Tried::Passed {
                serves,
                detail: format!(
                    "loaded in {:.1} s, {} prompts answered, {} MiB",
                    shown.load.as_secs_f64(),
                    shown.answers.len(),
                    shown.peak_bytes >> 20
                ),
            },
            (Some(Ok(())), _) => Tried::NotNow("no verdict".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Cause;

    fn failed() -> Verdict {
        Verdict::Tried {
            end: TrialEnd::Ended(Cause::Unfit),
            serves: false,
        }
    }

    #[tokio::test]
    async fn a_release_that_is_loaded_and_judged_at_once_was_loaded_first() {
        let (trying, loaded) = oneshot::channel();
        let (verdict, mut judged) = oneshot::channel();
        trying.send(()).unwrap();
        verdict.send(failed()).unwrap();
        assert_eq!(loaded_or_judged(loaded, &mut judged).await, Early::Loaded);
        assert_eq!(judged.await, Ok(failed()));
    }

    #[tokio::test]
    async fn a_release_that_is_never_loaded_is_judged() {
        let (trying, loaded) = oneshot::channel();
        let (verdict, mut judged) = oneshot::channel();
        drop(trying);
        verdict.send(failed()).unwrap();
        let early = loaded_or_judged(loaded, &mut judged).await;
        assert_eq!(early, Early::Judged(Some(failed())));
    }

    #[tokio::test]
    async fn a_governor_that_has_ended_judges_nothing() {
        let (_, loaded) = oneshot::channel();
        let (_, mut judged) = oneshot::channel();
        let early = loaded_or_judged(loaded, &mut judged).await;
        assert_eq!(early, Early::Judged(None));
    }
}
