//! Why an update did not happen or was taken back: a closed list, the same in states, events and reports.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $variant:ident = $text:literal,)*) => {
        /// Why; each terminal state of a deployment that is no success carries one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
        pub enum Reason {
            $($(#[doc = $doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word in messages.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            /// What it means, a sentence for people.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),*).trim_ascii()),* }
            }
        }
    };
}

reasons! {
    /// Metadata is older than it may be, and nobody confirmed it on the spot.
    MetadataExpired = "metadata_expired",
    /// Metadata is not signed by enough of the right keys, or is none.
    Signature = "signature",
    /// Metadata is older than what was seen before.
    RollbackRefused = "rollback_refused",
    /// Both slots of the version floor are unreadable: nothing protects against old metadata.
    FloorCorrupt = "floor_corrupt",
    /// The files of trust could not be read or written.
    TrustStore = "trust_store",
    /// The catalogue has no such line or release, or not for this group.
    NotInCatalog = "not_in_catalog",
    /// A signed file breaks the rules of its kind, or needs a newer Orinoco.
    BadCatalog = "bad_catalog",
    /// A lower release than the one in service, and the catalogue does not allow it.
    DowngradeRefused = "downgrade_refused",
    /// The release was recalled.
    Withdrawn = "withdrawn",
    /// The disk has no room.
    NoSpace = "no_space",
    /// Needs a newer Jetson Linux.
    IncompatibleL4t = "incompatible_l4t",
    /// Made for other boards, or other power modes.
    IncompatibleBoard = "incompatible_board",
    /// Needs a newer engine, or another architecture or draft model than there is.
    IncompatibleEngine = "incompatible_engine",
    /// Needs more memory than the board has.
    IncompatibleMemory = "incompatible_memory",
    /// No source answers.
    SourceUnreachable = "source_unreachable",
    /// A source sends nothing any more.
    Stalled = "stalled",
    /// No source has a piece with the signed digest.
    PieceMismatch = "piece_mismatch",
    /// A whole file has another digest than the signed one.
    DigestMismatch = "digest_mismatch",
    /// The model file breaks the rules of the preflight, or is not what its manifest says.
    GgufRejected = "gguf_rejected",
    /// Probe: the model did not load, or not in time.
    ProbeLoad = "probe_load",
    /// Probe: a golden prompt was answered wrong.
    ProbeGolden = "probe_golden",
    /// Probe: slower than the release promises in this power mode.
    ProbeSpeed = "probe_speed",
    /// Probe: more memory than the release promises.
    ProbeMemory = "probe_memory",
    /// Probe: the worker died.
    ProbeCrash = "probe_crash",
    /// Probe: no verdict in time.
    ProbeTimeout = "probe_timeout",
    /// Probe: the chat template does not render.
    ProbeTemplate = "probe_template",
    /// The daemon started again and again after the release went into service.
    CrashLoop = "crash_loop",
    /// A deployment went round in circles.
    StateLoop = "state_loop",
    /// The previous release is gone, so there was nothing to go back to.
    PreviousMissing = "previous_missing",
    /// The device could not read or write its own state.
    DeviceError = "device_error",
    /// A file that was whole is damaged on the disk; it is fetched again, or the release before serves.
    FileDamaged = "file_damaged",
    /// Somebody called it off.
    Cancelled = "cancelled",
    /// A newer command took its place.
    Superseded = "superseded",
}

impl Reason {
    /// Whether trying again by itself can help: the world may be better later, without a new release.
    pub const fn is_passing(self) -> bool {
        matches!(
            self,
            Self::SourceUnreachable
                | Self::Stalled
                | Self::NoSpace
                | Self::MetadataExpired
                | Self::PieceMismatch
                | Self::DeviceError
                | Self::TrustStore
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_its_word_in_json() {
        for reason in Reason::ALL {
            assert!(reason.meaning().ends_with('.'), "{reason}");
            let json = serde_json::to_value(reason).unwrap();
            assert_eq!(json, reason.text());
            assert_eq!(serde_json::from_value::<Reason>(json).unwrap(), *reason);
        }
    }
}
