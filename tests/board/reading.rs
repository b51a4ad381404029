//! A tree as its parts are asked for in these tests.

use orinoco::board::Faults;
use orinoco::board::identity::{self, Identity};
use orinoco::board::nvpmodel;
use orinoco::board::power::{NamedBy, PowerProbe, Present};
use orinoco::board::sensors::{Sensors, Snapshot};

use crate::support::board::Tree;

pub(crate) const KIB: u64 = 1024;

pub(crate) fn identity(tree: &Tree) -> Identity {
    let mut faults = Faults::default();
    let identity = identity::read(&tree.root(), &mut faults);
    assert!(faults.is_empty(), "{faults:?}");
    identity
}

pub(crate) fn snapshot(tree: &Tree) -> Snapshot {
    let mut faults = Faults::default();
    let snapshot = Sensors::find(&tree.root(), &mut faults).read();
    assert!(faults.is_empty(), "{faults:?}");
    snapshot
}

pub(crate) fn present(tree: &Tree) -> Present {
    let mut faults = Faults::default();
    let module = identity::read(&tree.root(), &mut faults).module;
    PowerProbe::new(&tree.root(), module).read(None)
}

pub(crate) fn mode(present: &Present) -> Option<(&str, NamedBy)> {
    let mode = present.mode.as_ref()?;
    Some((&mode.name, present.named_by))
}

pub(crate) fn faults(faults: &Faults) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

/// Names of the modes of a board, the slowest first.
pub(crate) fn ranking(tree: &Tree) -> Vec<String> {
    let limits = present(tree).limits;
    let table = nvpmodel::read_table(&tree.root(), "/etc/nvpmodel.conf");
    let mut modes = table.unwrap().unwrap().modes;
    modes.sort_by_key(|mode| mode.caps().within(&limits).rank());
    modes.into_iter().map(|mode| mode.name).collect()
}

/// Label and milliwatts of each rail.
pub(crate) fn rails(snapshot: &Snapshot) -> Vec<(&str, Option<i64>)> {
    let rails = snapshot.rails.iter();
    rails
        .map(|rail| (rail.name.as_str(), rail.milliwatts()))
        .collect()
}

pub(crate) fn celsius(snapshot: &Snapshot) -> Vec<(&str, Option<f32>)> {
    let zones = snapshot.zones.iter();
    zones
        .map(|zone| (zone.name.as_str(), zone.celsius()))
        .collect()
}
