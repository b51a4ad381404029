//! The board, as `info` names it. What cannot be read is absent here; `doctor` says why.

use std::path::Path;

use crate::board::{Faults, Root, identity};
use crate::wire::report::Hardware;

/// Reads the board below `root` once.
pub(super) fn read(root: &Path) -> Hardware {
    let identity = identity::read(&Root::new(root), &mut Faults::default());
    Hardware {
        board: identity.model,
        arch: std::env::consts::ARCH.to_owned(),
        n_cores: std::thread::available_parallelism()
            .map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        memory_bytes: identity.memory_bytes,
        gpu: identity.gpu,
    }
}
