//! `orinoco doctor`: every trouble that is known to befall such a board, looked for, one line each.
//!
//! ```text
//!     Question ──▶ facts (reads the board's files once, below one root)  ──▶ checks (pure) ──▶ report
//!                  live  (asks what runs; only on the machine itself)    ──▶
//! ```
//!
//! Owns the list of checks and their ids. It reads and asks, and changes nothing: no mode is set, no file
//! of the board is written. A tree of another board (`--root`) is examined as that board; what must be
//! asked of running programs is skipped there, and says so.

pub mod bundle;
pub mod checks;
pub mod facts;
pub mod live;
pub mod report;

use std::path::PathBuf;

pub use facts::Facts;
pub use report::{Finding, Line, Report, Status};

use crate::board::Root;
use crate::config::Sources;
use checks::CHECKS;

/// What is to be examined.
#[derive(Debug, Clone)]
pub struct Question {
    /// The tree of another board; `None`: this machine.
    pub root: Option<PathBuf>,
    /// Where its configuration is. With a tree, files and environment of this machine are left out, see
    /// [`facts::Facts::read`].
    pub sources: Sources,
    /// Whether model files are read whole, which takes seconds for each gigabyte.
    pub with_digests: bool,
    /// With which account the broker is asked; `None`: that of the daemon, or none where none is needed.
    pub asker: Option<live::Asker>,
}

/// Reads, asks, and judges. For this machine it must be called on the main thread: see [`live::ask`].
pub fn examine(question: &Question) -> Report {
    judge(&gather(question))
}

/// Reads and asks, as [`examine`].
pub fn gather(question: &Question) -> Facts {
    let root = question.root();
    let mut facts = Facts::read(&root, &question.sources, question.with_digests);
    if facts.is_live {
        facts.live = Some(live::ask(&facts, question.asker.as_ref()));
    }
    facts
}

impl Question {
    /// Below which everything is read.
    pub fn root(&self) -> Root {
        self.root.as_ref().map_or_else(Root::live, Root::new)
    }
}

/// All checks on these facts.
pub fn judge(facts: &Facts) -> Report {
    let line = |check: &checks::Check| Line {
        id: check.id,
        finding: (check.run)(facts),
    };
    Report::new(facts.shown_root.clone(), CHECKS.iter().map(line).collect())
}
