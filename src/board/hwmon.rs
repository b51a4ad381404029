//! Sensor chips below `/sys/class/hwmon`. Their numbers change from boot to boot; only their names count.

use super::root::{Faults, Root};

const CLASS: &str = "/sys/class/hwmon";

/// The directories of all chips with one of these names, in the order of their numbers.
pub(super) fn chips(root: &Root, names: &[&str], faults: &mut Faults) -> Vec<String> {
    root.names(CLASS, "hwmon")
        .into_iter()
        .map(|entry| format!("{CLASS}/{entry}"))
        .filter(|dir| {
            let name = faults.note(root.line(&format!("{dir}/name")));
            name.is_some_and(|name| names.contains(&name.as_str()))
        })
        .collect()
}
