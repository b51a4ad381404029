//! The command line: says what it does in the words of an operator, and what to do next.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the command line; its answers are for people"
)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use jiff::Timestamp;
use orinoco::ota::catalog::ReleaseState;
use orinoco::ota::pieces::PIECE_BYTES;
use orinoco::ota::waves::Wave;
use orinoco::ota::{GroupName, LineName, ModelId};

use crate::intake::{Intake, add};
use crate::keys::{self, short};
use crate::repository::Repository;
use crate::rollout::policy::Plan;
use crate::rollout::{self, End, Reach, Rollout};
use crate::root::{self, Ceremony, KeyRole, RootChange};
use crate::sign::{Expiry, Outcome, sign};
use crate::verify::Report;
use crate::{example, export, releases, time, verify};

/// Publishes signed model updates for a fleet of Orinoco devices.
///
/// Models are taken in and staged without any key; `sign` publishes what is staged. The repository is a folder of
/// static files: any web server, a mirror of the site or a USB stick serves it.
#[derive(Debug, Parser)]
#[command(name = "orinoco-ota", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// The time to sign and judge with, e.g. 2026-11-21T13:30:00Z; for hosts whose clock is wrong
    #[arg(long, global = true, value_parser = time::parse, value_name = "TIME")]
    now: Option<Timestamp>,

    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
From nothing to a fleet update:
  orinoco-ota init repo --keys keys
  orinoco-ota add repo model.gguf --line assistant --id smol-1 --licence Apache-2.0 \\
      --golden 'What is the capital of France?' '(?i)paris'
  orinoco-ota sign repo --keys keys
  orinoco-ota verify repo
  orinoco-ota export repo /media/stick
  orinoco-ota rollout --line assistant --release 1 --group hall2

ota/README.md explains each step, and what to do when a key is lost or a release is bad.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the keys and an empty repository (once for each fleet)
    #[command(after_help = "\
Example:
  orinoco-ota init repo --keys keys

Then give keys/root-1.p8, root-2.p8 and root-3.p8 to three people, offline; keep targets-*.p8 offline with whoever
releases; only online-1.p8 stays on the release host. Devices get repo/metadata/1.root.json.")]
    Init(Init),
    /// Take a model in and stage it as the next release of a line
    #[command(after_help = "\
Examples:
  orinoco-ota add repo smol.gguf --line assistant --id smol-1 --licence Apache-2.0
  orinoco-ota add repo qwen.gguf --line assistant --id qwen3-4b --manifest qwen.json --wave 5% --wave 100%@2d

qwen.json holds any part of a manifest, e.g.
  {\"model\": {\"licence\": \"Apache-2.0\"}, \"runtime\": {\"n_ctx\": 8192, \"kv_type_k\": \"q8_0\"},
   \"needs\": {\"memory_mib\": [{\"n_ctx\": 8192, \"mib\": 3760}], \"min_l4t\": \"36.4.0\", \"boards\": [\"orin-nx-16gb\"]},
   \"health\": {\"load_ms_max\": 45000, \"peak_mib_max\": 4100}}")]
    Add(Box<Add>),
    /// Publish what is staged; without anything staged, make the repository good for longer
    #[command(after_help = "\
Examples:
  orinoco-ota sign repo --keys /media/targets-stick --keys keys-online
  orinoco-ota sign repo --keys keys-online      (monthly: fresh snapshot and timestamp)")]
    Sign(Sign),
    /// Stage new keys of a role in the place of old ones
    #[command(after_help = "\
Examples:
  orinoco-ota rotate repo --role online --new-keys keys-online-2
  orinoco-ota rotate repo --role root --replace 3fa94c01 --new-keys keys-2     (root key 3fa94c01 is lost)

Sign it with root keys: `orinoco-ota sign repo --keys A --keys B`; one after the other is fine.")]
    Rotate(Rotate),
    /// Stage the same root keys for three more years
    Renew {
        /// The repository
        repo: PathBuf,
    },
    /// Recall a release: devices leave it at their next check
    #[command(after_help = "\
Example:
  orinoco-ota withdraw repo --line assistant --release 2 --fallback 1
  orinoco-ota sign repo --keys keys")]
    Withdraw(Withdraw),
    /// Set when devices take a release of themselves
    #[command(after_help = "\
Example: 5 % at once, a quarter after a day, all after three days, counted from when a device saw the release
  orinoco-ota waves repo --line assistant --release 2 --wave 5% --wave 25%@1d --wave 100%@3d")]
    Waves(Waves),
    /// Set the release below which no device goes, whoever asks
    MinSeq {
        /// The repository
        repo: PathBuf,
        /// The line
        #[arg(long)]
        line: LineName,
        /// The lowest release that may ever run
        #[arg(long)]
        release: u64,
    },
    /// Stage settings for the fleet: profiles, thresholds, limits
    #[command(after_help = "\
Example policy.toml:
  schema = 1
  policy_seq = 1        # rises with each policy
  [profiles.slow]
  model = \"assistant\"
  n_ctx = 4096")]
    Policy {
        /// The repository
        repo: PathBuf,
        /// The settings
        file: PathBuf,
    },
    /// What is published, what is staged, and when signatures expire
    Show {
        /// The repository
        repo: PathBuf,
    },
    /// Copy the published repository to a stick or a folder, and read the copy back
    Export {
        /// The repository
        repo: PathBuf,
        /// The stick or folder
        dest: PathBuf,
    },
    /// Check every signature and every byte, as a careful device would
    Verify {
        /// The repository or its copy
        repo: PathBuf,
        /// What devices were provisioned with [default: metadata/1.root.json of the repository itself]
        #[arg(long)]
        root: Option<PathBuf>,
    },
    /// Open a release to a group of devices, wave by wave; stop when too many fail
    #[command(after_help = "\
Example:
  orinoco-ota rollout --line assistant --release 2 --group hall2 --waves 5,25,100 --failures 2 \\
      --host broker.plant --user ops --password-file ops.password

Ended at any time, the same command goes on where it was. After a stop nobody else begins; `withdraw` the release, \
`sign`, and roll out the one that devices are to go back to.")]
    Rollout(RolloutArgs),
    /// Make a repository with two tiny models, for tests and for trying things out
    Example {
        /// A new folder; gets repo/ and keys/
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Init {
    /// A new folder for the repository
    repo: PathBuf,
    /// A folder for the keys
    #[arg(long)]
    keys: PathBuf,
    /// Root keys
    #[arg(long, default_value_t = 3)]
    root_keys: u32,
    /// Root keys that must sign
    #[arg(long, default_value_t = 2)]
    root_threshold: u32,
    /// Keys of which one signs releases
    #[arg(long, default_value_t = 2)]
    targets_keys: u32,
}

#[derive(Debug, Args)]
struct Add {
    /// The repository
    repo: PathBuf,
    /// The GGUF file
    model: PathBuf,
    /// The line that it continues: the name under which requests and profiles know it
    #[arg(long)]
    line: LineName,
    /// Its own name, never used again
    #[arg(long)]
    id: ModelId,
    /// Its number in the line [default: one more than the last]
    #[arg(long)]
    release: Option<u64>,
    /// For people [default: the name in the file]
    #[arg(long, default_value = "")]
    title: String,
    /// SPDX expression, e.g. Apache-2.0
    #[arg(long)]
    licence: Option<String>,
    /// Its text, which goes to the devices
    #[arg(long)]
    licence_file: Option<PathBuf>,
    /// What you know: any part of a manifest, as JSON
    #[arg(long)]
    manifest: Option<PathBuf>,
    /// A prompt, and the regular expression that its answer must match; may be said several times
    #[arg(long, num_args = 2, value_names = ["PROMPT", "REGEX"], action = clap::ArgAction::Append)]
    golden: Vec<String>,
    /// The line of the model that drafts for this one
    #[arg(long)]
    draft: Option<LineName>,
    /// The oldest release of it that will do
    #[arg(long, default_value_t = 1, requires = "draft")]
    draft_release: u64,
    /// A group that may take it; may be said several times [default: all]
    #[arg(long = "group")]
    groups: Vec<GroupName>,
    /// When devices take it of themselves: a share and a time, e.g. 25%@12h; may be said several times
    /// [default: not before a rollout or a command]
    #[arg(long = "wave", value_parser = releases::parse_wave)]
    waves: Vec<Wave>,
    /// Length of the pieces in which it is fetched, a power of two
    #[arg(long, default_value_t = PIECE_BYTES)]
    piece_bytes: u32,
}

#[derive(Debug, Args)]
struct Sign {
    /// The repository
    repo: PathBuf,
    /// A folder with keys (*.p8); may be said several times
    #[arg(long, required = true)]
    keys: Vec<PathBuf>,
    /// Days for which the list of targets is good
    #[arg(long, default_value_t = Expiry::default().targets_days)]
    targets_days: i64,
    /// Days for which snapshot and timestamp are good
    #[arg(long, default_value_t = Expiry::default().online_days)]
    online_days: i64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Say which keys count
    Root,
    /// Sign releases
    Targets,
    /// Sign snapshot and timestamp
    Online,
}

#[derive(Debug, Args)]
struct Rotate {
    /// The repository
    repo: PathBuf,
    /// Whose keys
    #[arg(long)]
    role: RoleArg,
    /// First digits of a key to go, as `show` prints them; may be said several times [default: all of the role]
    #[arg(long)]
    replace: Vec<String>,
    /// A folder for the new keys
    #[arg(long)]
    new_keys: PathBuf,
}

#[derive(Debug, Args)]
struct RolloutArgs {
    /// The line
    #[arg(long)]
    line: LineName,
    /// The release
    #[arg(long)]
    release: u64,
    /// The group of devices; `all` is that of devices without one
    #[arg(long, default_value = "all")]
    group: GroupName,
    /// Shares of the devices, in percent, one after the other
    #[arg(long, value_delimiter = ',', default_values_t = [5, 25, 100])]
    waves: Vec<u8>,
    /// Failures among the devices of the open waves at which it stops, in percent, e.g. 0.5
    #[arg(long, default_value = "2", value_parser = milli)]
    failures: u32,
    /// Devices of a wave that must have come to an end before the next opens, in percent
    #[arg(long, default_value_t = 90)]
    finished: u8,
    /// How long a wave stands before the next opens, in seconds
    #[arg(long, default_value_t = 600)]
    settle_seconds: u64,
    /// When devices put it into service: asap, window, staged-only
    #[arg(long, default_value = "asap", value_parser = ["asap", "window", "staged-only"])]
    when: String,
    /// For --when window, e.g. 22:00-05:00, local time of the devices
    #[arg(long, required_if_eq("when", "window"))]
    window: Option<String>,
    /// Most kilobits a second of each device [default: as configured there]
    #[arg(long, default_value_t = 0)]
    max_kbit_s: u32,
    /// Devices that must have been heard before anything opens
    #[arg(long, default_value_t = 1)]
    devices_min: usize,
    /// Give up after this time, in seconds; the same command goes on
    #[arg(long, default_value_t = 7 * 86_400)]
    limit_seconds: u64,
    /// Host of the broker
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port of the broker
    #[arg(long, default_value_t = 1883)]
    port: u16,
    /// First level of every topic
    #[arg(long, default_value = "orinoco")]
    root: String,
    /// MQTT user, an operator
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// File with the password on its first line
    #[arg(long, requires = "user")]
    password_file: Option<PathBuf>,
    /// Speak TLS, and trust the authorities in this PEM file
    #[arg(long)]
    ca_file: Option<PathBuf>,
}

/// A share in percent with at most one place behind the point, in thousandths.
fn milli(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?}, expected a share in percent, e.g. 2 or 0.5");
    let (whole, tenths) = text.split_once('.').unwrap_or((text, "0"));
    let is_fine = |part: &str, max| {
        (1..=max).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit())
    };
    match is_fine(whole, 3) && is_fine(tenths, 1) {
        true => {
            let number = |part: &str| part.parse::<u32>().map_err(|_| wrong());
            Ok(number(whole)? * 10 + number(tenths)?)
        }
        false => Err(wrong()),
    }
}

#[derive(Debug, Args)]
struct Withdraw {
    /// The repository
    repo: PathBuf,
    /// The line
    #[arg(long)]
    line: LineName,
    /// The release to be recalled
    #[arg(long)]
    release: u64,
    /// A lower release that devices go back to [default: they take the next higher one]
    #[arg(long)]
    fallback: Option<u64>,
}

#[derive(Debug, Args)]
struct Waves {
    /// The repository
    repo: PathBuf,
    /// The line
    #[arg(long)]
    line: LineName,
    /// The release
    #[arg(long)]
    release: u64,
    /// A share and a time, e.g. 25%@12h; may be said several times [default: not before a command]
    #[arg(long = "wave", value_parser = releases::parse_wave)]
    waves: Vec<Wave>,
    /// Groups that may take it from now on; may be said several times [default: as before]
    #[arg(long = "group")]
    groups: Vec<GroupName>,
}

/// Does what was asked for; errors go to stderr with their causes.
pub fn run(cli: Cli) -> ExitCode {
    let now = cli.now.unwrap_or_else(time::now);
    match run_command(cli.command, now) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_command(command: Command, now: Timestamp) -> Result<()> {
    match command {
        Command::Init(args) => init(&args, now),
        Command::Add(args) => add_model(*args),
        Command::Sign(args) => sign_staged(&args, now),
        Command::Rotate(args) => rotate(args, now),
        Command::Renew { repo } => {
            let repository = Repository::open(&repo)?;
            root::stage(&repository, &RootChange::Renew, now)?;
            staged_root(&repo)
        }
        Command::Withdraw(args) => withdraw(&args),
        Command::Waves(args) => {
            let repository = Repository::open(&args.repo)?;
            let groups = (!args.groups.is_empty()).then_some(args.groups);
            releases::set_waves(&repository, &args.line, args.release, args.waves, groups)?;
            staged(&args.repo)
        }
        Command::MinSeq {
            repo,
            line,
            release,
        } => {
            releases::set_min_seq(&Repository::open(&repo)?, &line, release)?;
            staged(&repo)
        }
        Command::Policy { repo, file } => {
            let seq = releases::set_policy(&Repository::open(&repo)?, &file)?;
            println!("policy {seq} is staged");
            staged(&repo)
        }
        Command::Show { repo } => show(&repo, now),
        Command::Export { repo, dest } => {
            let report = export::export(&Repository::look(&repo)?, &dest, now)?;
            println!("{} is a verified copy", dest.display());
            tell(&report);
            Ok(())
        }
        Command::Verify { repo, root } => {
            let report = verify::verify(&repo, root.as_deref(), now)?;
            println!("{} is whole and signed", repo.display());
            tell(&report);
            Ok(())
        }
        Command::Rollout(args) => roll_out(args, now),
        Command::Example { dir } => {
            let repository = example::make(&dir, now)?;
            println!(
                "{} with keys in {}",
                repository.dir().display(),
                dir.join("keys").display()
            );
            Ok(())
        }
    }
}

fn init(args: &Init, now: Timestamp) -> Result<()> {
    let ceremony = Ceremony {
        n_root: args.root_keys,
        root_threshold: args.root_threshold,
        n_targets: args.targets_keys,
        now,
    };
    let repository = root::init(&args.repo, &args.keys, ceremony)?;
    println!(
        "{} is a repository, empty and signed",
        repository.dir().display()
    );
    println!("keys in {}:", args.keys.display());
    for key in keys::in_folders(std::slice::from_ref(&args.keys))? {
        let name = key
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        println!("  {name:<16} {}", short(&key.id));
    }
    println!(
        "next: give root-*.p8 to {} people, offline; {} of them together change keys",
        args.root_keys, args.root_threshold
    );
    println!("      take targets-*.p8 offline; one of them signs releases");
    println!("      leave online-1.p8 on the release host");
    println!(
        "      provision devices with {}",
        args.repo.join("metadata/1.root.json").display()
    );
    Ok(())
}

fn add_model(args: Add) -> Result<()> {
    let repository = Repository::open(&args.repo)?;
    let golden = args.golden.chunks_exact(2);
    let intake = Intake {
        model: args.model,
        id: args.id,
        line: args.line,
        release_seq: args.release,
        title: args.title,
        licence: args.licence,
        licence_file: args.licence_file,
        manifest: args.manifest,
        golden: golden
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect(),
        draft: args.draft.map(|line| (line, args.draft_release)),
        groups: args.groups,
        waves: args.waves,
        piece_bytes: args.piece_bytes,
    };
    let manifest = add(&repository, &intake)?;
    let model = &manifest.model;
    println!(
        "release {} of {}: {} ({}, {}, {} parameters, {} bytes)",
        manifest.release_seq,
        manifest.line,
        manifest.id,
        model.arch,
        model.quant,
        model.n_params,
        manifest.weights().bytes
    );
    if manifest.health.golden.is_empty() {
        println!("note: no golden prompt; devices only see that it loads (--golden PROMPT REGEX)");
    }
    if manifest.needs.memory_mib.is_empty() {
        println!("note: needs.memory_mib is not said; devices learn at the load whether it fits");
    }
    staged(&args.repo)
}

fn staged(repo: &Path) -> Result<()> {
    println!(
        "staged; next: orinoco-ota sign {} --keys KEYS",
        repo.display()
    );
    Ok(())
}

fn staged_root(repo: &Path) -> Result<()> {
    println!(
        "staged; next, with enough root keys: orinoco-ota sign {} --keys A --keys B",
        repo.display()
    );
    Ok(())
}

fn sign_staged(args: &Sign, now: Timestamp) -> Result<()> {
    let repository = Repository::open(&args.repo)?;
    let keys = keys::in_folders(&args.keys)?;
    let expiry = Expiry {
        targets_days: args.targets_days,
        online_days: args.online_days,
    };
    match sign(&repository, &keys, now, expiry)? {
        Outcome::Published(versions) => {
            println!(
                "published: root {}, targets {}, snapshot {}, timestamp {}",
                versions.root, versions.targets, versions.snapshot, versions.timestamp
            );
            println!("next: orinoco-ota verify {}", args.repo.display());
        }
        Outcome::RootWaits { version, missing } => {
            println!("root {version} is signed in part, and nothing is published yet");
            println!("missing: {missing}");
        }
    }
    Ok(())
}

fn rotate(args: Rotate, now: Timestamp) -> Result<()> {
    let repository = Repository::open(&args.repo)?;
    let change = RootChange::Rotate {
        role: match args.role {
            RoleArg::Root => KeyRole::Root,
            RoleArg::Targets => KeyRole::Targets,
            RoleArg::Online => KeyRole::Online,
        },
        replaced: args.replace,
        new_dir: args.new_keys,
    };
    for key in root::stage(&repository, &change, now)? {
        println!("new key {} in {}", short(&key.id), key.path.display());
    }
    staged_root(&args.repo)
}

fn withdraw(args: &Withdraw) -> Result<()> {
    let repository = Repository::open(&args.repo)?;
    let (line, seq) = (&args.line, args.release);
    match releases::withdraw(&repository, line, seq, args.fallback)? {
        Some(best) => println!("devices on release {seq} of {line} will take release {best}"),
        None => println!(
            "note: release {seq} of {line} has no successor; devices go back to the release that they kept, \
             if it may run, and stop serving the line otherwise (--fallback N, or add a successor)"
        ),
    }
    staged(&args.repo)
}

fn roll_out(args: RolloutArgs, now: Timestamp) -> Result<()> {
    let reach = Reach {
        host: args.host,
        port: args.port,
        root: args.root,
        user: args.user.zip(args.password_file),
        ca_file: args.ca_file,
    };
    let (line, seq) = (args.line.clone(), args.release);
    let rollout = Rollout {
        line: args.line,
        release_seq: args.release,
        group: args.group,
        plan: Plan {
            waves: args.waves,
            failures_milli_max: args.failures,
            finished_percent_min: args.finished,
            settle: Duration::from_secs(args.settle_seconds),
        },
        when: args.when,
        window: args.window,
        max_kbit_s: args.max_kbit_s,
        devices_min: args.devices_min,
        limit: Duration::from_secs(args.limit_seconds),
    };
    let now_s = u64::try_from(now.as_second()).unwrap_or(0);
    match rollout::run(&reach, &rollout, now_s)? {
        End::Done { done, targeted } => {
            println!("release {seq} of {line} serves on {done} of {targeted} devices");
            Ok(())
        }
        End::Stopped {
            failed,
            targeted,
            percent,
            reasons,
        } => {
            for (reason, devices) in reasons {
                println!("  {reason}: {}", devices.join(", "));
            }
            bail!(
                "stopped at {percent} %: {failed} of {targeted} devices failed, and nobody else begins. To take the \
                 release back: orinoco-ota withdraw REPO --line {line} --release {seq} --fallback N, sign, and roll \
                 out N with --waves 100"
            )
        }
    }
}

fn tell(report: &Report) {
    let Report {
        versions,
        n_targets,
        bytes,
        releases: (active, withdrawn),
        expires_days,
    } = report;
    println!(
        "  root {}, targets {}, snapshot {}, timestamp {}",
        versions.root, versions.targets, versions.snapshot, versions.timestamp
    );
    println!("  {n_targets} targets, {bytes} bytes; {active} releases, {withdrawn} withdrawn");
    println!("  good for {expires_days} days");
}

fn show(repo: &Path, now: Timestamp) -> Result<()> {
    let repository = Repository::look(repo)?;
    let published = repository.published()?;
    let root = &published.root.signed;
    let days = |expires| time::days_between(now, expires);
    println!("root {} for {} days", root.version, days(root.expires));
    for role in [KeyRole::Root, KeyRole::Targets, KeyRole::Online] {
        let keys = &root.roles[&role.types()[0]];
        let ids: Vec<String> = keys.keyids.iter().map(short).collect();
        println!(
            "  {:<8} {} of {}",
            role.name(),
            keys.threshold,
            ids.join(" ")
        );
    }
    if let Some(targets) = &published.targets {
        let targets = &targets.signed;
        println!(
            "targets {} for {} days",
            targets.version,
            days(targets.expires)
        );
    }
    if let Some(timestamp) = &published.timestamp {
        let timestamp = &timestamp.signed;
        println!(
            "timestamp {} for {} days",
            timestamp.version,
            days(timestamp.expires)
        );
    }
    if let Some((path, _)) = root::staged(&repository)? {
        println!("staged: {} (needs root keys)", path.display());
    }
    if repository.is_staged() {
        println!("staged: changes of releases or policy (need a targets key); after signing:");
    }
    for line in &repository.catalog()?.lines {
        println!("{} (no device below {})", line.line, line.min_seq);
        for release in &line.releases {
            let state = match release.state {
                ReleaseState::Active => "",
                ReleaseState::Withdrawn => " WITHDRAWN",
            };
            let waves: Vec<String> = release
                .waves
                .iter()
                .map(|wave| format!("{}%@{}s", wave.percent, wave.start_after_s))
                .collect();
            let waves = match waves.is_empty() {
                true => "by rollout or command".to_owned(),
                false => waves.join(" "),
            };
            println!(
                "  {:>4} {}{state}: {waves}",
                release.release_seq, release.id
            );
        }
    }
    Ok(())
}
