//! The command line: what can be asked for, and which function answers.
//!
//! `main` does the steps in their order: arguments ([`Cli::from_args`]), configuration ([`Cli::load`]),
//! logging ([`Cli::start_logging`]), command ([`Cli::run`]), exit code. Each command is a file of its
//! own here and calls one public function of the library; no command holds logic of the daemon.
//!
//! Answers go to stdout, everything else to stderr. Exit codes are those of sysexits.h ([`exit`]).

mod acl;
mod ask;
mod bench;
mod broker;
mod configuration;
mod doctor;
mod embed;
mod models;
mod order;
mod ota;
mod output;
mod provision;
mod run;
mod schema;
mod target;
mod top;
mod user;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};

use crate::config::{self, Config, Environment, LogConfig, LogFormat, Place, Sources};
use crate::logging::{self, LogError};

/// Exit codes, by the names of sysexits.h.
pub mod exit {
    /// The command failed; stderr says why.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// A file is not what it should be.
    pub const DATA: u8 = 65;
    /// Nobody answers.
    pub const UNAVAILABLE: u8 = 69;
    /// The configuration is wrong; systemd does not start again on it.
    pub const CONFIG: u8 = 78;
    /// Ended by Ctrl-C, as shells say it.
    pub const INTERRUPTED: u8 = 130;
}

/// What was asked for.
#[derive(Debug, Parser)]
#[command(
    name = "orinoco",
    version,
    about = "An offline LLM appliance: prompts in over MQTT, streamed tokens out",
    propagate_version = true,
    after_help = "\
EXAMPLES
  orinoco models add SmolLM2-135M-Instruct.Q4_1.gguf   let a model in
  orinoco run                                          the daemon, as configured in /etc/orinoco
  orinoco config show --origin                         what is in force, and where it was set
  orinoco ask \"Why does pump 3 vibrate?\"               ask the daemon on this machine

Every setting is described in `orinoco config show --documented`."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// For every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Configuration")]
struct Global {
    /// Read this file, or DIR/config.toml and DIR/config.d/*.toml, instead of /etc/orinoco
    #[arg(long, global = true, value_name = "DIR_OR_FILE")]
    config: Option<PathBuf>,
    /// Set a key for this run, e.g. --set mqtt.port=1884; wins over files and environment
    #[arg(long, global = true, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Same as --set paths.state_dir=DIR
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,
    /// Same as --set paths.models_dir=DIR
    #[arg(long, global = true, value_name = "DIR")]
    models_dir: Option<String>,
    /// Log more: -v our debug, -vv our trace (prompts and answers among it)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Ask(Box<ask::Args>),
    Embed(Box<embed::Args>),
    Models(models::Args),
    Ota(ota::Args),
    Provision(Box<provision::Args>),
    User(user::Args),
    Acl(acl::Args),
    Broker(broker::Args),
    Bench(bench::Args),
    Top(Box<top::Args>),
    Doctor(doctor::Args),
    Config(configuration::Args),
    Schema(schema::Args),
    /// Print a completion script for a shell
    #[command(after_help = "\
EXAMPLES
  orinoco completions bash > /etc/bash_completion.d/orinoco
  orinoco completions zsh > ~/.zfunc/_orinoco")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

impl Cli {
    /// Parses the arguments. Help and mistakes are printed here, and end the process with the code given.
    ///
    /// # Errors
    /// The exit code after help or a mistake.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, ExitCode> {
        Self::try_parse_from(args).map_err(|error| {
            // Nobody is left to tell when the terminal has gone.
            let _ = error.print();
            match error.use_stderr() {
                true => ExitCode::from(exit::USAGE),
                false => ExitCode::SUCCESS,
            }
        })
    }

    /// Reads the configuration. Some commands need none and must work where there is a wrong one.
    ///
    /// # Errors
    /// The exit code, after every problem was printed.
    pub fn load(&self, environment: &Environment) -> Result<Config, ExitCode> {
        let sources = match self.command {
            // For the doctor a wrong configuration is a finding; it reads by itself.
            Command::Completions { .. } | Command::Schema(_) | Command::Doctor(_) => {
                Sources::defaults()
            }
            // The daemon has read the configuration and hands over what the broker needs.
            Command::Broker(ref args) if args.settings_from_stdin => {
                self.sources(Sources::defaults())
            }
            _ => self.sources(Sources::new(environment.clone())),
        };
        let mut config = config::load(&sources).map_err(|error| {
            output::complain(&error);
            ExitCode::from(exit::CONFIG)
        })?;
        // For children, who get this one; a wrong variable is told when logging starts.
        if let Ok(level) = logging::level(&config.log, environment, self.global.verbose) {
            config.log.level = level;
        }
        Ok(config)
    }

    fn sources(&self, mut sources: Sources) -> Sources {
        if let Some(path) = &self.global.config {
            sources.place = Place::Path(path.clone());
        }
        let mut flag = |key: &str, value: &str, label: String| {
            sources.flags.push(config::Flag {
                key: key.to_owned(),
                value: value.to_owned(),
                label,
            });
        };
        let directories = [
            ("paths.state_dir", "--state-dir", &self.global.state_dir),
            ("paths.models_dir", "--models-dir", &self.global.models_dir),
        ];
        for (key, name, value) in directories {
            if let Some(value) = value {
                flag(key, value, name.to_owned());
            }
        }
        if let Command::Run(args) = &self.command {
            for (key, name, value) in args.settings() {
                flag(key, value, name.to_owned());
            }
        }
        for setting in &self.global.set {
            // Without "=" it is reported as a setting of nothing, by the one place that reports.
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            flag(key.trim(), value.trim(), format!("--set {key}"));
        }
        sources
    }

    /// Starts logging: as configured for a service, errors alone for a person at a terminal, as
    /// commands report what concerns them by themselves.
    ///
    /// # Errors
    /// The exit code, after the reason was printed.
    pub fn start_logging(
        &self,
        config: &Config,
        environment: &Environment,
    ) -> Result<(), ExitCode> {
        let log = match self.command {
            Command::Run(_) | Command::Broker(_) => config.log.clone(),
            _ => LogConfig {
                level: "error".into(),
                format: LogFormat::Text,
            },
        };
        logging::init(&log, environment, self.global.verbose).map_err(|error| {
            output::complain(&error);
            match error {
                LogError::Filter { .. } => ExitCode::from(exit::CONFIG),
                _ => ExitCode::from(exit::FAILURE),
            }
        })
    }

    /// Does what was asked for; a failure is printed, with its causes.
    pub fn run(self, config: Config, environment: &Environment) -> ExitCode {
        let sources = self.sources(Sources::new(environment.clone()));
        let done = match self.command {
            Command::Run(_) => run::run(config, &sources),
            Command::Ask(args) => ask::run(*args, &config),
            Command::Embed(args) => embed::run(&args, &config),
            Command::Models(args) => models::run(args, &config),
            Command::Ota(args) => ota::run(&args, &config),
            Command::Provision(args) => provision::run(&args, &config),
            Command::User(args) => user::run(args, &config),
            Command::Acl(args) => acl::run(&args, &config),
            Command::Broker(args) => broker::run(&args, &config),
            Command::Bench(args) => bench::run(&args, &config),
            Command::Top(args) => top::run(&args, &config),
            Command::Doctor(args) => doctor::run(args, sources),
            Command::Config(args) => configuration::run(&args, &config),
            Command::Schema(args) => schema::run(&args),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "orinoco", &mut script);
                output::answer(&String::from_utf8_lossy(&script))
            }
        };
        done.unwrap_or_else(|error| {
            output::complain_of(&error);
            ExitCode::from(exit::FAILURE)
        })
    }
}

/// For a command that talks to a broker or an engine: one thread, as the daemon has.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    /// A person who asks for help gets an example, for every command.
    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            if command.get_name() == "help" {
                return;
            }
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(help.contains("EXAMPLES"), "orinoco {}", command.get_name());
            assert!(
                command.get_about().is_some(),
                "orinoco {}",
                command.get_name()
            );
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    /// The examples are commands that exist, with options that exist.
    #[test]
    fn every_example_can_be_parsed() {
        fn collect(command: &clap::Command, examples: &mut Vec<String>) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            examples.extend(
                help.lines()
                    .filter_map(|line| Some(line.trim().split_once("orinoco ")?.1.to_owned())),
            );
            command.get_subcommands().for_each(|c| collect(c, examples));
        }
        let mut examples = Vec::new();
        collect(&Cli::command(), &mut examples);
        assert!(examples.len() > 10);
        for example in examples {
            // Up to two spaces (the explanation), a redirection or a pipe.
            let line = example.split("  ").next().unwrap_or_default();
            let line = line.split(['>', '|', '`']).next().unwrap_or_default();
            let mut words = vec![OsString::from("orinoco")];
            for (i, part) in line.split('"').enumerate() {
                match i % 2 {
                    0 => words.extend(part.split_whitespace().map(OsString::from)),
                    _ => words.push(part.into()),
                }
            }
            if let Err(error) = Cli::try_parse_from(&words) {
                panic!("orinoco {line}: {error}");
            }
        }
    }
}
