//! `orinoco user`: the accounts of the embedded broker.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Subcommand;

use super::output;
use crate::access::Role;
use crate::config::Config;
use crate::secret;
use crate::users::{self, Added, Users};

/// Add, remove or list the users of the embedded broker
#[derive(Debug, clap::Args)]
#[command(after_help = "\
EXAMPLES
  orinoco user add plc-3                      prints a password made for it
  orinoco user add hmi --role operator
  orinoco user remove plc-3
  orinoco user list")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add a user, or give one a new password
    ///
    /// From the first user on, clients on loopback need a password too.
    #[command(after_help = "\
EXAMPLES
  orinoco user add plc-3                                prints a password made for it
  orinoco user add hmi --role operator                  may give orders to nodes
  orinoco user add plc-3 --password-file plc-3.password
  pass show plc-3 | orinoco user add plc-3 --password-file -")]
    Add {
        /// 1 to 64 of A-Z a-z 0-9 _ . -
        name: String,
        /// What it is for: device (asks), operator (also gives orders), monitor (only sees); without it a
        /// new user is a device, and a known one stays what it was
        #[arg(long, value_name = "ROLE")]
        role: Option<Role>,
        /// Take the password from the first line of this file; - is standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Remove a user
    #[command(after_help = "\
EXAMPLES
  orinoco user remove plc-3")]
    Remove {
        /// As listed
        name: String,
    },
    /// List the users and what they are for, one a line
    #[command(after_help = "\
EXAMPLES
  orinoco user list")]
    List,
}

pub(super) fn run(args: Args, config: &Config) -> anyhow::Result<ExitCode> {
    let file = config.paths.users_file();
    match args.command {
        Command::Add {
            name,
            role,
            password_file,
        } => {
            users::check_name(&name)?;
            let (password, is_made) = match password_file {
                Some(path) => (secret::password(&path)?, false),
                None => (make_password()?, true),
            };
            let added = users::add(&file, &name, &password, role)?;
            output::say(match added {
                Added::New => "user added; the broker takes it from the next connection on",
                Added::Replaced => "the user existed and has a new password now",
            });
            match is_made {
                true => output::answer(&format!("{password}\n")),
                false => Ok(ExitCode::SUCCESS),
            }
        }
        Command::Remove { name } => {
            users::remove(&file, &name)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List => {
            let users = Users::read(&file)?;
            // The configuration has the last word; see [users.NAME] in configs/default.toml.
            let configured = config.users.roles();
            let rows: Vec<_> = users
                .roles()
                .map(|(name, role)| {
                    let role = configured.get(name).copied().unwrap_or(role);
                    vec![name.to_owned(), role.to_string()]
                })
                .collect();
            output::answer(&output::table(&rows))
        }
    }
}

/// 24 hexadecimal digits: 96 bits, and typed on a panel without a shift key.
fn make_password() -> anyhow::Result<String> {
    let mut random = [0_u8; 12];
    getrandom::fill(&mut random).context("failed to make a password")?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
