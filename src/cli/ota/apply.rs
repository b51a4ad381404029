//! `orinoco ota apply`: hands a stick or a folder to the daemon, and waits for what becomes of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::cli::{exit, output};
use crate::config::Config;
use crate::ota::stick::{self, Request, Told};

/// Take the releases that lie in a directory
///
/// The daemon checks signatures and versions as for any other source, copies what it needs, verifies the copy,
/// and puts it into service. Metadata that has expired is accepted, since you are here; older releases than the
/// ones it has seen are not. Ends when the daemon is done with it.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco ota apply /media/stick
  orinoco ota apply /srv/mirror --no-wait      the daemon goes on by itself")]
pub(super) struct Args {
    /// Where `metadata` and `targets` are, as `orinoco-ota export` has written them
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Do not wait for the end
    #[arg(long)]
    no_wait: bool,
}

/// The daemon looks for requests every other second; after this it is not there.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);
/// The report is looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let ota_dir = &config.ota.deploy.dir;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Of clocks that stand still the process makes two names.
    let id = format!(
        "stick-{}-{}",
        now.map_or(0, |now| now.as_secs()),
        std::process::id()
    );
    let request = Request::new(&id, &args.path)?;
    stick::make_dir(ota_dir).with_context(|| format!("create {}", ota_dir.display()))?;
    request.leave(ota_dir)?;
    if args.no_wait {
        return output::answer(&format!("{id}\n"));
    }
    let asked = Instant::now();
    let mut last = Told::default();
    loop {
        if asked.elapsed() > TAKEN_WITHIN && Request::is_waiting(ota_dir) {
            output::say(
                "orinoco: the daemon has not taken the request yet: none is running, or another update is under way; it lies \
                 there until then (systemctl status orinoco)",
            );
            return Ok(ExitCode::from(exit::UNAVAILABLE));
        }
        let told = Told::read(ota_dir)?.filter(|told| told.deployment.as_ref() == Some(&id));
        if let Some(told) = told.filter(|told| *told != last) {
            let state = told.state.as_deref().unwrap_or("unknown");
            match &told.reason {
                None => output::say(state),
                Some(reason) => output::say(&format!("{state}: {reason}")),
            }
            if told.is_over() {
                return Ok(match state {
                    "committed" => ExitCode::SUCCESS,
                    _ => ExitCode::from(exit::FAILURE),
                });
            }
            last = told;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "nothing else happens in this process"
        )]
        std::thread::sleep(LOOK_EVERY);
    }
}
