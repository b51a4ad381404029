//! `orinoco doctor`: what is wrong with this board, or a tree of another one, and what to do.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use super::{exit, output};
use crate::config::Sources;
use crate::doctor::{self, Question};

/// Look for every known trouble of such a board: one line each, with what to do
///
/// Best run as root, who may read everything. Lines say ok, warn, fail, or skipped and why. Exit code 1 when
/// one says fail. Every check is described in docs/doctor.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  sudo orinoco doctor
  orinoco doctor --json | jq '.checks[] | select(.status == \"fail\")'
  sudo orinoco doctor --bundle support.tar.gz                for somebody who is not at the board
  orinoco doctor --root /mnt/board                           a board's files, mounted or copied here")]
pub(super) struct Args {
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
    /// Read each model file whole and compare its SHA-256 with the one noted when it was added
    #[arg(long)]
    digests: bool,
    /// Ask the broker with this account; without it with the daemon's, or none where none is needed
    #[arg(long, value_name = "NAME", requires = "password_file")]
    user: Option<String>,
    /// File with its password on the first line
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// Write an archive with the report and what it was made from: no prompt, no answer, no secret
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Examine the board whose files are below DIR; what must be asked of running programs is skipped
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// Takes the sources and not a configuration: a wrong one is a finding.
pub(super) fn run(args: Args, sources: Sources) -> anyhow::Result<ExitCode> {
    if let Some(root) = &args.root {
        let meta = root.metadata();
        let is_dir = meta
            .with_context(|| format!("failed to open {}", root.display()))?
            .is_dir();
        anyhow::ensure!(is_dir, "--root {}: not a directory", root.display());
    }
    let is_machine = |root: &PathBuf| {
        root.canonicalize()
            .is_ok_and(|root| root.parent().is_none())
    };
    let question = Question {
        // "/" is the machine itself, however it is written.
        root: args.root.filter(|root| !is_machine(root)),
        sources,
        with_digests: args.digests,
        asker: args.user.zip(args.password_file),
    };
    let facts = doctor::gather(&question);
    let report = doctor::judge(&facts);
    let text = match args.json {
        true => {
            serde_json::to_string_pretty(&report).context("failed to encode the report")? + "\n"
        }
        false => report.to_string(),
    };
    output::answer(&text)?;
    if let Some(path) = &args.bundle {
        doctor::bundle::write(path, &question.root(), &facts, &report)?;
        output::say(&format!(
            "{} written; look into it before you send it",
            path.display()
        ));
    }
    Ok(match report.has_failed() {
        true => ExitCode::from(exit::FAILURE),
        false => ExitCode::SUCCESS,
    })
}
