//! The fleet's settings: read after each look at a source, judged, kept, put in force, taken back.

use tokio::time::Instant;
use tracing::{info, warn};

use super::report::Event;
use super::{Deploy, World};
use crate::ota::policy::Policy;
use crate::ota::reason::Reason;
use crate::ota::state::{Offered, Phase, Policies, Refused};

/// What stands in events where a release has its line.
const LINE: &str = "policy.toml";

impl<W: World> Deploy<W> {
    /// After a look at a source: what it has of settings.
    pub(super) async fn hear_policy(&mut self) {
        let (digest, bytes) = match self.world.policy().await {
            Ok(Some(found)) => found,
            // A fleet that signs none any more has said nothing new.
            Ok(None) => return,
            Err(no) => {
                warn!(reason = %no.reason, no.detail, "the fleet's settings cannot be read");
                return;
            }
        };
        let policies = &self.book.record.policies;
        let refused = |policy_seq, reason, detail: String| Refused {
            policy_seq,
            digest,
            reason,
            detail,
        };
        let outcome = match Policy::parse(&bytes) {
            Err(error) => Err(refused(0, Reason::BadCatalog, error.to_string())),
            Ok(policy) => match policies.offered(policy.policy_seq, digest) {
                Offered::Known => return,
                Offered::Refused(reason, detail) => Err(refused(policy.policy_seq, reason, detail)),
                Offered::New => match self.world.judge_policy(&policy, &bytes) {
                    Ok(()) => Ok(policy),
                    Err(no) => Err(refused(policy.policy_seq, no.reason, no.detail)),
                },
            },
        };
        match outcome {
            Ok(policy) => {
                info!(
                    policy_seq = policy.policy_seq,
                    "the fleet's settings are taken"
                );
                self.book.record.policies.take(policy.policy_seq, digest);
                if self.write().await {
                    self.steady_at = Some(Instant::now() + self.policy.probation);
                    self.world.apply_policy(&self.book.record.policies);
                    self.sweep();
                }
                // Only now: who reads the number reads with it what waits for the next start.
                self.tell();
            }
            Err(refused) => {
                warn!(policy_seq = refused.policy_seq, reason = %refused.reason, refused.detail, "the fleet's settings are refused");
                if self.book.record.policies.refuse(refused) {
                    self.save().await;
                }
            }
        }
    }

    /// An operator wants the settings before back.
    pub(super) async fn take_policy_back(&mut self) -> Result<(), String> {
        let policies = &mut self.book.record.policies;
        if !policies.take_back(Reason::Cancelled, "by an operator") {
            return Err("no settings of the fleet are in force".to_owned());
        }
        let is_written = self.write().await;
        if is_written {
            self.world.apply_policy(&self.book.record.policies);
        }
        self.tell();
        match is_written {
            true => Ok(()),
            false => Err("it could not be written down".to_owned()),
        }
    }
}

/// What happened between two records, as an event.
pub(super) fn event(before: &Policies, after: &Policies, at_ms: u64) -> Option<Event> {
    let event = |policy_seq: u64, state, refused: Option<&Refused>| Event {
        deployment: format!("policy-{policy_seq}"),
        line: LINE.to_owned(),
        release_seq: Some(policy_seq),
        state,
        reason: refused.map(|refused| refused.reason),
        detail: refused.map(|refused| refused.detail.clone()),
        at_ms,
        event_seq: None, // Given when it is kept.
    };
    if after.seq_max > before.seq_max {
        return Some(event(after.seq_max, Phase::Committed, None));
    }
    let refused = after
        .refused
        .as_ref()
        .filter(|_| before.refused != after.refused)?;
    let state = match before.active == after.active {
        true => Phase::Failed,
        false => Phase::RolledBack,
    };
    Some(event(refused.policy_seq, state, Some(refused)))
}
