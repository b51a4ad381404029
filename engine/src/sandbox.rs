//! Holds the worker in before it opens a model.
//!
//! A model is opened by parsers and kernels in C++ and CUDA that a hostile file, or a prompt, may take
//! over. So this process gives away, for good and for every thread that it will ever start, what it does
//! not need for decoding:
//!
//! | layer | what remains |
//! |---|---|
//! | [Landlock](files) | reads of the one model file, of libraries and of what describes the machine; reads and writes of the GPU's device nodes; nothing else, and no way to see into another process |
//! | [seccomp](calls) | the system calls of a program that computes: nothing to talk to anybody with, no programs, no other processes, no new files; of the file of saved states, which is open before, no more than its length |
//! | capabilities | of root: reading what its user could not; of everybody else: none. Nothing gives any back |
//!
//! Each layer stands alone where the kernel lacks the other, and [`enter`] says what is missing. Called
//! once, on the main thread, before any other thread exists. Never decides whether a partial sandbox is
//! good enough: the supervisor shows it to the operator.

mod calls;
mod files;
mod privileges;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::AsRawFd as _;

use orinoco::frames::{CheckSpec, LoadSpec, Sandbox, SandboxSpec};
use orinoco::kv_file::PIECE_BYTES;

/// Why the sandbox could not be closed although this kernel has what it takes; fragments that complete
/// "failed to …".
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A thread that already runs would stay outside.
    #[error("close the sandbox: {found} threads run already, expected this one alone")]
    Threads {
        /// Threads of this process.
        found: usize,
    },
    /// Rights could not be given away.
    #[error("close the sandbox: {0}")]
    Privileges(#[from] privileges::PrivilegesError),
    /// A rule for files was refused.
    #[error("close the sandbox for files: {0}")]
    Files(#[from] landlock::RulesetError),
    /// The filter of system calls was refused.
    #[error("close the sandbox for system calls: {0}")]
    Calls(#[from] seccompiler::Error),
}

/// Closes the sandbox around this process. `states` is the one file that it may go on writing, by its descriptor,
/// up to the length in `spec`. What the kernel cannot do is told in [`Sandbox::gaps`].
///
/// # Errors
/// The kernel could, and did not: then no model should be opened.
pub fn enter(spec: &LoadSpec, states: Option<&File>) -> Result<Sandbox, SandboxError> {
    let states = states
        .zip(spec.saved_states)
        .map(|(file, bounds)| calls::States {
            fd: file.as_raw_fd() as u64,
            // An index is written at the beginning, whatever there is room for.
            bytes_max: bounds.bytes_max.max(orinoco::kv_file::DATA_BEGIN),
            piece_bytes: PIECE_BYTES as u64,
        });
    match &spec.sandbox {
        Some(rules) => close(files::Allowed::of(spec, rules), rules, states),
        None => Ok(off()),
    }
}

/// As [`enter`], for a process that opens no model: it can read libraries and what describes the machine.
///
/// # Errors
/// As [`enter`].
pub fn enter_to_check(spec: &CheckSpec) -> Result<Sandbox, SandboxError> {
    match &spec.sandbox {
        Some(rules) => close(files::Allowed::without_model(rules), rules, None),
        None => Ok(off()),
    }
}

fn off() -> Sandbox {
    Sandbox {
        gaps: vec!["engine.sandbox is \"off\" in the configuration".to_owned()],
        ..Sandbox::default()
    }
}

fn close(
    allowed: files::Allowed,
    rules: &SandboxSpec,
    states: Option<calls::States>,
) -> Result<Sandbox, SandboxError> {
    alone()?;
    tracing::debug!(?allowed, "sandbox");
    privileges::give_away()?;
    let landlock = files::restrict(&allowed, files::ABI_USED)?;
    let needs = calls::Needs {
        gpu: allowed.has_gpu,
        may_write: rules.write.is_some(),
        states,
    };
    let calls = calls::restrict(std::process::id(), needs)?;
    let mut gaps = Vec::new();
    if let Err(missing) = landlock {
        gaps.push(match calls {
            true if needs.gpu => {
                format!("{missing}: the worker can read, overwrite and make files as its user can")
            }
            true => format!("{missing}: the worker can read and overwrite what its user can"),
            false => format!("{missing}: the worker can do with files what its user can"),
        });
    }
    if !calls {
        gaps.push(
            "this kernel has no seccomp filters: the worker can open sockets and start programs"
                .to_owned(),
        );
    }
    Ok(Sandbox {
        landlock_abi: landlock.ok(),
        seccomp: calls,
        no_new_privs: privileges::are_final(),
        gaps,
    })
}

/// Both layers hold the calling thread and those that it starts, not those that run beside it.
fn alone() -> Result<(), SandboxError> {
    match std::fs::read_dir("/proc/self/task").map(Iterator::count) {
        Ok(found) if found > 1 => Err(SandboxError::Threads { found }),
        // Without /proc nobody can tell; this is called where no thread was started.
        _ => Ok(()),
    }
}
