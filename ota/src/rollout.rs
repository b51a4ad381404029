//! Opens a release to a group of devices, wave by wave, and stops at the first sign of trouble.
//!
//! ```text
//!   ROOT/v1/+/ota/state  (retained, from each device) ──▶ policy ──▶ ROOT/v1/fleet/GROUP/desired  (retained)
//! ```
//!
//! What is published only chooses a signed release and says which share of the devices may take it now; a device
//! knows its own place ([`orinoco::ota::waves`]). [`policy`] decides and does nothing else. Ended at any time, it
//! is started again with the same words: the retained wish says how far it was.

pub mod policy;
mod report;
mod session;

pub use report::Seen;
pub use session::{End, Reach, Rollout, run};
