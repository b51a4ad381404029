//! What the checks judge, read once. A file that cannot be used is a fact as well.

pub mod host;
pub mod libraries;
pub mod models;
pub mod service;
pub mod updates;

use std::collections::BTreeMap;

use super::live::{Asked, Live};
use crate::board::cgroup::{self, Cgroup};
use crate::board::identity::{self, Identity};
use crate::board::memory::{self, MemInfo};
use crate::board::nvpmodel::{self, Table};
use crate::board::power::{PowerProbe, Present};
use crate::board::pressure::{Pressure, PressureProbe};
use crate::board::sensors::{Sensors, Snapshot};
use crate::board::swap::{self, Swap};
use crate::board::{Faults, ReadError, Root};
use crate::config::{self, Config, Environment, Place, Problem, Sources};
use host::{Account, Clocks, Disk, Kernel, Secret};
use libraries::{Libraries, Program};
use models::ModelFile;
use service::Service;
use updates::Updates;

/// The unit that starts the daemon, and the one for its broker with `broker.mode = "unit"`.
const UNIT: &str = "orinoco.service";
const BROKER_UNIT: &str = "orinoco-broker.service";

/// A board, and how Orinoco is set up on it.
#[derive(Debug)]
pub struct Facts {
    /// Whether it is the machine itself, whose programs can be asked.
    pub is_live: bool,
    /// The root, for the report.
    pub shown_root: String,
    /// Which board.
    pub identity: Identity,
    /// Memory now.
    pub memory: Result<MemInfo, ReadError>,
    /// Time lost waiting for memory; `None` where the kernel does not count it.
    pub pressure: Option<Pressure>,
    /// Swap devices and files.
    pub swaps: Vec<Swap>,
    /// Our control group; in a tree that of the process that the tree shows.
    pub cgroup: Option<Cgroup>,
    /// The power mode, and the clocks in force.
    pub power: Present,
    /// Where the table of power modes is, and what it says.
    pub power_table: Option<(String, Result<Table, ReadError>)>,
    /// Temperatures, clocks, rails, counters.
    pub sensors: Snapshot,
    /// Files of the board that are there and could not be used, the memory's, the power mode's and the
    /// sensors' excepted.
    pub faults: Faults,
    /// The configuration in force; the defaults where it is wrong.
    pub config: Config,
    /// How systemd starts the daemon; `None`: it does not; or why that cannot be told.
    pub service: Result<Option<Service>, String>,
    /// The unit of the broker; as `service`.
    pub broker_service: Result<Option<Service>, String>,
    /// Of [`config::OF_THE_ENGINE`] those that the daemon is started with, by the unit or, without one, by this shell.
    pub variables: BTreeMap<String, String>,
    /// The daemon's user; `None` without a unit.
    pub account: Option<Account>,
    /// Files with secrets.
    pub secrets: Vec<Secret>,
    /// CUDA, as it is installed.
    pub libraries: Libraries,
    /// The worker's program.
    pub engine: Program,
    /// The processor of this machine, as programs name it; `None` of a tree.
    pub arch: Option<&'static str>,
    /// Cores that are on; where the board does not say it, those that we may use.
    pub n_cores: Option<u32>,
    /// The models, or why they cannot be listed.
    pub models: Result<Vec<ModelFile>, String>,
    /// What there is to say about updates; `None`: the board takes none.
    pub updates: Option<Updates>,
    /// The kernel.
    pub kernel: Kernel,
    /// Clocks.
    pub clocks: Clocks,
    /// Disks; none of a tree.
    pub disks: Vec<Disk>,
    /// What running programs said, or why they could not be asked; `None`: they were not, as of a tree.
    pub live: Option<Asked<Live>>,
    /// What is wrong with it, a sentence for each mistake; empty when nothing is.
    pub config_problems: Vec<String>,
}

impl Facts {
    /// Reads all of it. For a tree the configuration is the tree's own `/etc/orinoco`, unless `sources` name
    /// another place; the environment of this machine says nothing about it. `with_digests`: see
    /// [`models::read`].
    pub fn read(root: &Root, sources: &Sources, with_digests: bool) -> Self {
        let mut faults = Faults::default();
        let identity = identity::read(root, &mut faults);
        let power = PowerProbe::new(root, identity.module.clone()).read(None);
        let sensors = Sensors::find(root, &mut faults).read();
        let (config, config_problems) = configuration(root, sources);
        let service = Service::read(root, UNIT);
        let unit = service.as_ref().ok().and_then(Option::as_ref);
        let variables = variables(root, unit, &sources.environment);
        let library_path = variables
            .get("LD_LIBRARY_PATH")
            .map(String::as_str)
            .unwrap_or_default();
        let library_dirs: Vec<String> = (library_path.split(':'))
            .filter(|dir| dir.starts_with('/'))
            .map(str::to_owned)
            .collect();
        Self {
            is_live: root.is_live(),
            shown_root: root
                .resolve("/")
                .map_or_else(|e| e.to_string(), |dir| dir.display().to_string()),
            memory: memory::read(root),
            pressure: faults.note(PressureProbe::new(root).read()),
            swaps: swap::read(root, &mut faults),
            cgroup: cgroup::read(root, &mut faults),
            power_table: power_table(root, &identity),
            account: unit.map(|unit| Account::read(root, unit)),
            secrets: host::secrets(root, &config, unit),
            libraries: libraries::read(root, &library_dirs),
            engine: libraries::program(root, &engine_path(root, unit, &config), &library_dirs),
            models: models::read(root, &config, with_digests),
            updates: Updates::read(root, &config),
            arch: root.is_live().then_some(std::env::consts::ARCH),
            n_cores: power.caps.n_cores.or_else(|| n_cores(root)),
            kernel: Kernel::read(root),
            clocks: Clocks::read(root),
            disks: host::disks(root, &config),
            variables,
            broker_service: Service::read(root, BROKER_UNIT),
            service,
            power,
            sensors,
            faults,
            identity,
            config,
            config_problems,
            live: None,
        }
    }
}

/// The configuration of the board; where it is wrong, the defaults and every mistake.
fn configuration(root: &Root, sources: &Sources) -> (Config, Vec<String>) {
    let mut sources = sources.clone();
    if !root.is_live() {
        sources.environment = Environment::default();
        if sources.place == Place::System {
            sources.place = place_in(root);
        }
    }
    match config::load(&sources) {
        Ok(config) => (config, Vec::new()),
        Err(error) => {
            let defaults = config::load(&Sources::defaults());
            let problems = error.problems.iter();
            (
                defaults.expect("a test loads the defaults"),
                problems.map(|p| on_board(root, &problem(p))).collect(),
            )
        }
    }
}

/// A mistake in words that may be shown to others: reports are sent around, and a value in the wrong place
/// may be a password. `orinoco config check` shows it to who sits here.
fn problem(problem: &Problem) -> String {
    let mut problem = problem.clone();
    if is_private(&problem.key) {
        problem.value = None;
    }
    // The second line of a mistake in TOML is the line of the file.
    problem.advice = problem.advice.lines().next().unwrap_or_default().to_owned();
    problem.to_string()
}

/// Whether the value of a configuration key is nobody else's business: prompts, and what stands where the
/// path of a secret should.
pub(super) fn is_private(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    is_prompt(key) || name.contains("password") || name.ends_with("key_file")
}

/// Whether a configuration key holds what is said to a model.
pub(super) fn is_prompt(key: &str) -> bool {
    let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
    let tells_nothing = ["name", "type", "bytes_max", "max_tokens", "required"];
    name == "system_prompt" || (section.starts_with("template") && !tells_nothing.contains(&name))
}

/// Text about files of this machine as text about files of the board.
fn on_board(root: &Root, text: &str) -> String {
    match root.resolve("/") {
        Ok(dir) if !root.is_live() => text
            .replace(&*dir.to_string_lossy(), "/")
            .replace("//", "/"),
        _ => text.to_owned(),
    }
}

/// Where the worker's program is: beside the daemon that the unit starts, else beside this one.
fn engine_path(root: &Root, unit: Option<&Service>, config: &Config) -> String {
    let program = match unit.and_then(Service::program) {
        Some(program) => program.into(),
        None if root.is_live() => std::env::current_exe().unwrap_or_default(),
        None => "/usr/bin/orinoco".into(),
    };
    config
        .engine
        .worker_program(&program)
        .to_string_lossy()
        .into_owned()
}

fn n_cores(root: &Root) -> Option<u32> {
    let cores = std::thread::available_parallelism().ok()?;
    u32::try_from(cores.get()).ok().filter(|_| root.is_live())
}

fn variables(root: &Root, unit: Option<&Service>, shell: &Environment) -> BTreeMap<String, String> {
    let known = |name: &&str| config::OF_THE_ENGINE.contains(name);
    match unit {
        Some(unit) => {
            let all = unit.environment().into_iter();
            all.filter(|(name, _)| known(&name.as_str())).collect()
        }
        None if root.is_live() => {
            let pairs = config::OF_THE_ENGINE
                .iter()
                .filter_map(|name| Some((*name, shell.get(name)?)));
            pairs
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        }
        None => BTreeMap::new(),
    }
}

fn place_in(root: &Root) -> Place {
    let dir = config::system_dir().to_string_lossy().into_owned();
    let has = |name: &str| root.exists(&format!("{dir}/{name}"));
    match root.resolve(&dir) {
        Ok(path) if has("config.toml") || has("config.d") => Place::Path(path),
        _ => Place::Defaults,
    }
}

fn power_table(root: &Root, identity: &Identity) -> Option<(String, Result<Table, ReadError>)> {
    // What cannot be read is told by the probe of the power mode too, which looks for the same file.
    let path = nvpmodel::find_conf(root, identity.module.as_ref(), &mut Faults::default())?;
    let table = nvpmodel::read_table(root, &path).transpose()?;
    Some((path, table))
}
