//! Orders about updates, and what nodes answer.

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::order::{self, Heard};
use crate::cli::output;
use crate::cli::target::{Reach, Target};
use crate::config::Config;
use crate::ota::deploy::orders::{Action, OtaCommand, Status};

/// How every order reaches its node.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    reach: Reach,
    /// Give up, and take the order back, when the node has not answered by then
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait_seconds: u64,
}

/// What is ordered.
pub(super) struct Order {
    pub(super) action: Action,
    pub(super) line: Option<String>,
    pub(super) release_seq: Option<u64>,
    /// What to say when it was taken.
    pub(super) taken: &'static str,
}

pub(super) fn run(order: &mut Order, common: &Common, config: &Config) -> anyhow::Result<ExitCode> {
    let target = Target::find(&common.reach, None, config)?;
    let limit = Duration::from_secs(common.wait_seconds);
    match order::give(order, &target, limit)? {
        None => output::answer(&format!("{}: {}\n", target.names.node(), order.taken)),
        Some(code) => Ok(code),
    }
}

impl order::Order for Order {
    const KIND: &'static str = "ota";

    fn payload(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&OtaCommand {
            status: Status::Init,
            action: Some(self.action),
            line: self.line.clone(),
            release_seq: self.release_seq,
            deployment: None,
            reason: None,
        })
    }

    fn hear(&mut self, payload: &[u8]) -> Option<Heard> {
        let command: OtaCommand = serde_json::from_slice(payload).ok()?;
        match command.status {
            Status::Init | Status::Executing => None,
            Status::Successful => Some(Heard::Done),
            Status::Failed => {
                let reason = command.reason;
                let reason = reason.unwrap_or_else(|| "no reason given".to_owned());
                Some(Heard::Refused(reason))
            }
        }
    }
}
