//! The fleet's settings on this device: which are in force, which were, and what may follow.

use serde::{Deserialize, Serialize};

use super::STARTS_MAX;
use crate::ota::name::Digest;
use crate::ota::reason::Reason;

/// A policy that was judged and taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its number.
    pub policy_seq: u64,
    /// Its bytes, kept beside the manifests.
    pub digest: Digest,
}

/// A policy that was not taken, or not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its number; 0 where it could not even be read.
    pub policy_seq: u64,
    /// Its bytes.
    pub digest: Digest,
    /// Why.
    pub reason: Reason,
    /// The same for people.
    pub detail: String,
}

/// Settings of the fleet, as the device has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// In force.
    pub active: Option<Accepted>,
    /// To go back to; none: to the device's own settings.
    pub previous: Option<Accepted>,
    /// The highest number that was ever taken: nothing at or below it is taken again.
    pub seq_max: u64,
    /// The last that was not taken, or not kept.
    pub refused: Option<Refused>,
    /// Starts of the daemon since it came into force, while it has yet to show that the daemon stays up.
    pub n_starts: Option<u32>,
}

/// What a signed policy is to this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// In force already, or given up before.
    Known,
    /// To be judged.
    New,
    /// Not to be taken, and why.
    Refused(Reason, String),
}

impl Policies {
    /// What a policy of this number and these bytes is.
    pub fn offered(&self, policy_seq: u64, digest: Digest) -> Offered {
        let offered = Accepted { policy_seq, digest };
        if self.active == Some(offered) {
            return Offered::Known;
        }
        if policy_seq > self.seq_max {
            return Offered::New;
        }
        // One that was taken back stays so until there is a newer one.
        if self
            .refused
            .as_ref()
            .is_some_and(|refused| refused.digest == digest)
        {
            return Offered::Known;
        }
        let detail = match policy_seq == self.seq_max {
            true => format!("policy {policy_seq} was here with other content"),
            false => format!(
                "policy {policy_seq} is below {}, which was here",
                self.seq_max
            ),
        };
        Offered::Refused(Reason::DowngradeRefused, detail)
    }

    /// It is in force from now on.
    pub fn take(&mut self, policy_seq: u64, digest: Digest) {
        self.previous = self.active.replace(Accepted { policy_seq, digest });
        self.seq_max = policy_seq;
        self.refused = None;
        self.n_starts = Some(0);
    }

    /// It was not taken. False where that was known.
    pub fn refuse(&mut self, refused: Refused) -> bool {
        let is_news = self.refused.as_ref() != Some(&refused);
        self.refused = Some(refused);
        is_news
    }

    /// Back to the one before, or to the device's own settings. False where none is in force.
    pub fn take_back(&mut self, reason: Reason, detail: &str) -> bool {
        let Some(active) = self.active.take() else {
            return false;
        };
        self.active = self.previous.take();
        self.n_starts = None;
        self.refused = Some(Refused {
            policy_seq: active.policy_seq,
            digest: active.digest,
            reason,
            detail: detail.to_owned(),
        });
        true
    }

    /// Counts a start of the daemon; takes back a policy under which it starts again and again.
    pub fn started(&mut self) {
        let Some(n_starts) = &mut self.n_starts else {
            return;
        };
        *n_starts += 1;
        let n_starts = *n_starts;
        if n_starts > STARTS_MAX {
            let detail = format!("{n_starts} starts of the daemon in the policy's first minutes");
            self.take_back(Reason::CrashLoop, &detail);
        }
    }

    /// The daemon ends in order, or has been up for long enough.
    pub fn stayed_up(&mut self, for_good: bool) {
        match (for_good, &mut self.n_starts) {
            (true, n_starts) => *n_starts = None,
            (false, Some(n_starts)) => *n_starts = n_starts.saturating_sub(1),
            (false, None) => {}
        }
    }

    /// Digests of the files that must stay.
    pub fn kept(&self) -> impl Iterator<Item = Digest> + '_ {
        let both = [self.active, self.previous];
        both.into_iter().flatten().map(|accepted| accepted.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        Digest::of(&[n])
    }

    #[test]
    fn a_policy_never_goes_backwards_but_to_the_one_kept_before_it() {
        let mut policies = Policies::default();
        assert_eq!(policies.offered(2, digest(2)), Offered::New);
        policies.take(2, digest(2));
        policies.take(3, digest(3));
        assert_eq!(policies.offered(3, digest(3)), Offered::Known);
        for (seq, bytes) in [(2, 2), (3, 9), (1, 1)] {
            let offered = policies.offered(seq, digest(bytes));
            assert!(matches!(
                offered,
                Offered::Refused(Reason::DowngradeRefused, _)
            ));
        }
        assert!(policies.take_back(Reason::Cancelled, "by an operator"));
        assert_eq!(policies.active.unwrap().policy_seq, 2);
        assert_eq!(
            policies.offered(3, digest(3)),
            Offered::Known,
            "not again of itself"
        );
        assert_eq!(policies.offered(4, digest(4)), Offered::New);
        assert!(policies.take_back(Reason::Cancelled, "by an operator"));
        assert_eq!(policies.active, None, "the device's own settings");
        assert!(!policies.take_back(Reason::Cancelled, "by an operator"));
    }

    #[test]
    fn a_policy_under_which_the_daemon_starts_again_and_again_is_taken_back() {
        let mut policies = Policies::default();
        policies.take(2, digest(2));
        policies.stayed_up(true);
        policies.take(3, digest(3));
        for _ in 0..STARTS_MAX {
            policies.started();
            assert_eq!(policies.active.unwrap().policy_seq, 3);
        }
        policies.started();
        assert_eq!(policies.active.unwrap().policy_seq, 2);
        assert_eq!(policies.refused.unwrap().reason, Reason::CrashLoop);
    }

    proptest! {
        #[test]
        fn numbers_that_were_taken_only_rise(steps in prop::collection::vec((1_u64..9, 0_u8..4, any::<bool>()), 1..40)) {
            let mut policies = Policies::default();
            for (seq, bytes, back) in steps {
                let before = policies.seq_max;
                if back {
                    policies.take_back(Reason::Cancelled, "");
                } else if policies.offered(seq, digest(bytes)) == Offered::New {
                    policies.take(seq, digest(bytes));
                    prop_assert!(seq > before);
                }
                prop_assert!(policies.seq_max >= before);
                prop_assert!(policies.active.is_none_or(|active| active.policy_seq <= policies.seq_max));
            }
        }
    }
}
