//! Capabilities: a worker that root started is not root's equal.
//!
//! With them it could trace other processes, load drivers or read any process's environment, whatever
//! Landlock says (proc(5), since Linux 6.16 for CAP_PERFMON).

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;

/// What a privileged worker keeps: models and libraries often lie in a home that only its owner enters.
/// Which of the files it can open remains Landlock's business.
const KEPT: [Capability; 1] = [Capability::CAP_DAC_READ_SEARCH];

/// Why rights were not given away; fragments that complete "failed to close the sandbox: …".
#[derive(Debug, thiserror::Error)]
pub enum PrivilegesError {
    /// The capabilities are as before.
    #[error("drop capabilities: {0}")]
    Capabilities(#[from] CapsError),
    /// Programs could gain rights.
    #[error("set no_new_privs: {0}")]
    NoNewPrivs(#[from] nix::Error),
}

/// Keeps [`KEPT`] of the capabilities that this thread has, and makes sure that no program gives any.
pub(super) fn give_away() -> Result<(), PrivilegesError> {
    prctl::set_no_new_privs()?;
    let has = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|kept| has.contains(kept)).collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::clear(None, CapSet::Inheritable)?;
    Ok(())
}

/// Whether no program would gain rights.
pub(super) fn are_final() -> bool {
    prctl::get_no_new_privs().unwrap_or(false)
}
