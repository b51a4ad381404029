//! `orinoco ota`: updates of models: what a node does about them, orders, and from where the board is.

mod apply;
mod order;
mod report;
mod status;

use std::process::ExitCode;

use clap::Subcommand;

use crate::config::Config;
use crate::ota::deploy::orders::Action;
use order::{Common, Order};

/// See what a node does about updates, give orders, take updates from a stick
///
/// Orders go over MQTT to the node; they can only choose among signed releases. The broker lets operators order
/// (`orinoco user add NAME --role operator`).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ota status                            release, progress, and why the last update failed
  orinoco ota check --user me --password-file me.password
  orinoco ota rollback --node press-7 --host broker.lan --user me --password-file -
  orinoco ota apply /media/stick                take the releases that lie there
  orinoco ota report /media/stick               write what this board did, signed, onto the stick")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Status(Box<status::Args>),
    /// Look at the sources now: a recall, or a release whose wave has come, begins
    #[command(after_help = "\
EXAMPLES
  orinoco ota check
  orinoco ota check --user me --password-file me.password")]
    Check(Box<Common>),
    /// Take the best release, or a certain one, of a line
    #[command(after_help = "\
EXAMPLES
  orinoco ota install                           the line deployed last
  orinoco ota install --line assistant --release 12")]
    Install {
        /// The line [default: the one deployed last]
        #[arg(long)]
        line: Option<String>,
        /// The release [default: the best that may be taken]
        #[arg(long, requires = "line", value_name = "SEQ")]
        release: Option<u64>,
        #[command(flatten)]
        common: Box<Common>,
    },
    /// Hold the download
    #[command(after_help = "\
EXAMPLES
  orinoco ota pause")]
    Pause(Box<Common>),
    /// Go on with a download that was held
    #[command(after_help = "\
EXAMPLES
  orinoco ota resume")]
    Resume(Box<Common>),
    /// Call off an update that has changed nothing yet
    #[command(after_help = "\
EXAMPLES
  orinoco ota cancel")]
    Cancel(Box<Common>),
    /// Put into service what is here and waits for it
    #[command(after_help = "\
EXAMPLES
  orinoco ota activate")]
    Activate(Box<Common>),
    /// Go back to the release before; needs no network
    #[command(after_help = "\
EXAMPLES
  orinoco ota rollback
  orinoco ota rollback --line assistant
  orinoco ota rollback --policy                 the settings of the fleet, not a model")]
    Rollback {
        /// The line [default: the one deployed last]
        #[arg(long)]
        line: Option<String>,
        /// The fleet's settings (policy.toml) instead of a model
        #[arg(long, conflicts_with = "line")]
        policy: bool,
        #[command(flatten)]
        common: Box<Common>,
    },
    /// Read all model files again; a damaged one is fetched anew
    #[command(after_help = "\
EXAMPLES
  orinoco ota scrub                             what it finds is in `orinoco ota status` and evt/ota")]
    Scrub(Box<Common>),
    Apply(apply::Args),
    Report(report::Args),
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let order = |action, taken| Order {
        action,
        line: None,
        release_seq: None,
        taken,
    };
    let (mut order, common) = match &args.command {
        Command::Status(args) => return status::run(args, config),
        Command::Apply(args) => return apply::run(args, config),
        Command::Report(args) => return report::run(args, config),
        Command::Check(common) => (order(Action::Check, "looked at its sources"), common),
        Command::Pause(common) => (order(Action::Pause, "holds the download"), common),
        Command::Resume(common) => (order(Action::Resume, "goes on with the download"), common),
        Command::Cancel(common) => (order(Action::Cancel, "called it off"), common),
        Command::Activate(common) => (order(Action::Activate, "puts it into service"), common),
        Command::Scrub(common) => (order(Action::Scrub, "reads its model files again"), common),
        Command::Install {
            line,
            release,
            common,
        } => {
            let mut order = order(Action::Install, "has begun: `orinoco ota status --watch`");
            (order.line, order.release_seq) = (line.clone(), *release);
            (order, common)
        }
        Command::Rollback {
            policy: true,
            common,
            ..
        } => (
            order(Action::RollbackPolicy, "went back to the settings before"),
            common,
        ),
        Command::Rollback { line, common, .. } => {
            let mut order = order(Action::Rollback, "goes back to the release before");
            order.line.clone_from(line);
            (order, common)
        }
    };
    order::run(&mut order, common, config)
}
