//! `orinoco ota report`: what this board did with its updates, signed, onto a stick.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::cli::output;
use crate::config::Config;
use crate::ota::stick::{self, DeviceKey, kept_report, write_report};

/// Write the board's report onto a stick, signed with its own key
///
/// Three files in `reports`: NODE.json, NODE.json.sig, NODE.pub.pem. Any tool can check them:
/// openssl pkeyutl -verify -pubin -inkey NODE.pub.pem -rawin -in NODE.json -sigfile NODE.json.sig
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ota report /media/stick
  orinoco ota report --key                     this board's public key, to compare with")]
pub(super) struct Args {
    /// The stick, or any directory
    #[arg(value_name = "PATH", required_unless_present = "key")]
    path: Option<PathBuf>,
    /// Print the public key instead
    #[arg(long)]
    key: bool,
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let ota_dir = &config.ota.deploy.dir;
    stick::make_dir(ota_dir).with_context(|| format!("create {}", ota_dir.display()))?;
    let key = DeviceKey::load_or_make(&ota_dir.join("device.key"))?;
    if args.key {
        return output::answer(&key.public_pem());
    }
    let Some(report) = kept_report(ota_dir)? else {
        bail!(
            "{}: the daemon has told nothing about updates yet",
            ota_dir.display()
        );
    };
    let path = args
        .path
        .as_deref()
        .expect("clap asks for it without --key");
    write_report(path, &config.node.name, &report, &key)
        .with_context(|| format!("write the report to {}", path.display()))?;
    output::say(&format!(
        "reports/{}.json written and signed",
        config.node.name
    ));
    Ok(ExitCode::SUCCESS)
}
