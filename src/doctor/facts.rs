//! What the checks judge, read once. A file that cannot be used is a fact as well.

use crate::board::cgroup::{self, Cgroup};
use crate::board::identity::{self, Identity};
use crate::board::memory::{self, MemInfo};
use crate::board::nvpmodel::{self, Table};
use crate::board::power::{PowerProbe, Present};
use crate::board::pressure::{Pressure, PressureProbe};
use crate::board::sensors::{Sensors, Snapshot};
use crate::board::swap::{self, Swap};
use crate::board::{Faults, ReadError, Root};
use crate::config::{self, Config, Environment, Place, Sources};

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
    /// What is wrong with it, a sentence for each mistake; empty when nothing is.
    pub config_problems: Vec<String>,
}

impl Facts {
    /// Reads all of it. For a tree the configuration is the tree's own `/etc/orinoco`, unless `sources` name
    /// another place; the environment of this machine says nothing about it.
    pub fn read(root: &Root, sources: &Sources) -> Self {
        let mut faults = Faults::default();
        let identity = identity::read(root, &mut faults);
        let power = PowerProbe::new(root, identity.module.clone()).read(None);
        let sensors = Sensors::find(root, &mut faults).read();
        let (config, config_problems) = configuration(root, sources);
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
            power,
            sensors,
            faults,
            identity,
            config,
            config_problems,
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
                problems.map(|p| on_board(root, &p.to_string())).collect(),
            )
        }
    }
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
